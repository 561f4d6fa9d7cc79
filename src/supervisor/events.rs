//! The history of a cluster: what was ordered, what was done to processes, how they ended, who led. One JSON object a
//! line in a file that only grows; each is on disk before what it tells of is done or answered. The supervisor and any
//! command that works without one can both write and anybody can follow.
//!
//! Every event has an id. Whoever cannot tell whether an event was written, because the supervisor it was given to
//! died, offers it again under the same id ([`EventLog::append_once`]); so every event is there once. The file is the
//! journal of faults too: what was begun and not ended shows in it ([`super::past`]).

use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::control::cause::{Cause, Trouble};
use crate::control::fault;
use crate::telemetry::stamp;

/// An event with its time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Wall-clock time, UTC, as [`stamp`] writes it.
    pub at: String,
    /// Tells it from every other event; empty in histories written before there were ids.
    #[serde(default)]
    pub id: String,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// What can happen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A supervisor began its work.
    SupervisorStarted {
        /// Its process.
        pid: u32,
    },
    /// A supervisor ended its work on purpose.
    SupervisorEnded {
        /// Its process.
        pid: u32,
        /// Why.
        reason: String,
    },
    /// A node's process was started.
    Started {
        /// The node.
        node: String,
        /// The process.
        pid: u32,
    },
    /// A process of a node that an earlier supervisor started was taken over.
    Adopted {
        /// The node.
        node: String,
        /// The process.
        pid: u32,
    },
    /// A node serves for the first time since its process started.
    Ready {
        /// The node.
        node: String,
        /// Since the start, in milliseconds; absent for a process that was taken over.
        #[serde(skip_serializing_if = "Option::is_none")]
        after_ms: Option<u64>,
    },
    /// A node's process ended.
    Exited {
        /// The node.
        node: String,
        /// The process.
        pid: u32,
        /// Exit code, where it exited and could be asked.
        code: Option<i32>,
        /// Signal, where one ended it.
        signal: Option<i32>,
        /// Who or what ended it.
        cause: Cause,
        /// What it had run into, where its last words tell.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        trouble: Option<Trouble>,
        /// Its last words, where it ended by itself and had any.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        words: Option<String>,
        /// Milliseconds until it is started again, where it is.
        #[serde(skip_serializing_if = "Option::is_none")]
        restart_in_ms: Option<u64>,
    },
    /// A node will not be started again without the operator.
    GaveUp {
        /// The node.
        node: String,
        /// Why.
        reason: String,
    },
    /// The nodes have another view.
    View {
        /// Its number.
        epoch: u64,
        /// Who leads.
        leader: String,
        /// Who is in sync.
        in_sync: Vec<String>,
    },
    /// The operator asked for something.
    Command {
        /// In the words of the command line, such as `kill leader`.
        command: String,
        /// The nodes it concerns.
        nodes: Vec<String>,
        /// The signal, for a kill.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signal: Option<String>,
        /// Who led when it was asked.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        leader: Option<String>,
    },
    /// A phase of a fault that the operator ordered, for one node.
    Fault {
        /// Which order; the same for all nodes of one command.
        fault: String,
        /// What is done.
        kind: fault::Kind,
        /// The node.
        node: String,
        /// The process.
        pid: u32,
        /// How far it has come.
        phase: fault::Phase,
        /// For how many milliseconds, where it ends by itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        for_ms: Option<u64>,
        /// Why, where that is not plain.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
    /// What became of a kill.
    Verdict {
        /// The nodes killed.
        nodes: Vec<String>,
        /// Who leads now.
        leader: Option<String>,
        /// The longest gap between acknowledged writes, in milliseconds; absent without a load, and where writes did not
        /// come back.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unavailable_ms: Option<f64>,
        /// How long no write had been acknowledged when the load ended, in milliseconds; only where writes did not come
        /// back.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        silent_ms: Option<f64>,
        /// Writes acknowledged; absent without a load.
        #[serde(default)]
        acknowledged: Option<u64>,
        /// Acknowledged and not read back as they were; absent where nothing was read back.
        #[serde(default)]
        lost: Option<u64>,
        /// `proved`, `violated` or `inconclusive`; `none` without a load.
        verdict: String,
    },
}

/// An id for a new event or fault.
#[must_use]
pub fn new_id() -> String {
    format!("{:016x}", rand::random::<u64>())
}

/// Where events are appended.
#[derive(Debug)]
pub struct EventLog {
    file: File,
}

/// How long another writer may take; it writes one line.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
/// How far back an event is looked for that may have been written already.
const LOOK_BACK_BYTES: u64 = 1 << 20;

impl EventLog {
    /// Opens the history for appending.
    ///
    /// # Errors
    /// What the system said.
    pub fn open(path: &Path) -> io::Result<EventLog> {
        let writable = super::spawn::append(path)?;
        drop(writable);
        Ok(EventLog { file: File::options().read(true).append(true).open(path)? })
    }

    /// Appends one event with the time of now, and gives it back as written. It is on disk then.
    ///
    /// # Errors
    /// What the system said.
    pub fn append(&mut self, event: Event) -> io::Result<Entry> {
        self.locked(|log| log.write(new_id(), event))
    }

    /// Appends an event that may have been written before under the same id; `None` where it was.
    ///
    /// # Errors
    /// What the system said.
    pub fn append_once(&mut self, id: &str, event: Event) -> io::Result<Option<Entry>> {
        self.locked(|log| {
            let end = log.file.metadata()?.len();
            let mut text = vec![0; usize::try_from(end.min(LOOK_BACK_BYTES)).unwrap_or(0)];
            log.file.read_exact_at(&mut text, end.saturating_sub(LOOK_BACK_BYTES))?;
            let there = text
                .split(|byte| *byte == b'\n')
                .any(|line| serde_json::from_slice::<Entry>(line).is_ok_and(|entry| entry.id == id));
            if there { Ok(None) } else { log.write(id.to_owned(), event).map(Some) }
        })
    }

    /// Several processes may append: one at a time. A writer that was frozen while it held the lock is not waited for
    /// without end: a line is one write, so no line can be torn by another.
    fn locked<T>(&mut self, work: impl FnOnce(&mut EventLog) -> io::Result<T>) -> io::Result<T> {
        let deadline = crate::clock::now() + LOCK_PATIENCE;
        let held = loop {
            match self.file.try_lock() {
                Ok(()) => break true,
                Err(TryLockError::WouldBlock) if crate::clock::now() < deadline => std::thread::yield_now(),
                Err(TryLockError::WouldBlock) => break false,
                Err(TryLockError::Error(error)) => return Err(error),
            }
        };
        let result = work(self);
        if held {
            self.file.unlock()?;
        }
        result
    }

    fn write(&mut self, id: String, event: Event) -> io::Result<Entry> {
        let entry = Entry { at: stamp(crate::clock::wall()), id, event };
        let mut line = Vec::new();
        // A line that a power cut left half written must not swallow this one.
        let end = self.file.metadata()?.len();
        let mut last = [b'\n'];
        if end > 0 {
            self.file.read_exact_at(&mut last, end - 1)?;
        }
        if last != [b'\n'] {
            line.push(b'\n');
        }
        serde_json::to_writer(&mut line, &entry)?;
        line.push(b'\n');
        self.file.write_all(&line)?;
        self.file.sync_data()?;
        Ok(entry)
    }
}

/// Everything in the history, oldest first. A line that is none (the machine lost power while it was written) is
/// left out: the others explain enough.
///
/// # Errors
/// What the system said, except that no history is an empty one.
pub fn read(path: &Path) -> io::Result<Vec<Entry>> {
    Reader::new(path.to_owned()).more()
}

/// The newest part of the history, oldest first: what the last so many bytes hold.
///
/// # Errors
/// What the system said, except that no history is an empty one.
pub fn recent(path: &Path, bytes: u64) -> io::Result<Vec<Entry>> {
    let mut reader = Reader::new(path.to_owned());
    if let Ok(metadata) = path.metadata() {
        reader.inode = metadata.ino();
        // The line that this falls into is no whole one, and so is left out.
        reader.offset = metadata.len().saturating_sub(bytes);
    }
    reader.more()
}

/// Reads a history on from where it was left.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    /// Which file it was: another one under the same name is read from its start.
    inode: u64,
    offset: u64,
    /// The beginning of a line whose end was not written yet.
    partial: Vec<u8>,
}

impl Reader {
    /// From the beginning.
    #[must_use]
    pub fn new(path: PathBuf) -> Reader {
        Reader { path, inode: 0, offset: 0, partial: Vec::new() }
    }

    /// What came since the last call.
    ///
    /// # Errors
    /// What the system said, except that no history is an empty one.
    pub fn more(&mut self) -> io::Result<Vec<Entry>> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        // Another or a shorter history is a new one: the cluster was purged.
        if metadata.ino() != self.inode || metadata.len() < self.offset {
            self.inode = metadata.ino();
            self.offset = 0;
            self.partial.clear();
        }
        file.seek(SeekFrom::Start(self.offset))?;
        let read = file.read_to_end(&mut self.partial)?;
        self.offset += read as u64;
        let whole = self.partial.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        let lines: Vec<u8> = self.partial.drain(..whole).collect();
        Ok(lines.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(node: &str) -> Event {
        Event::Started { node: node.to_owned(), pid: 7 }
    }

    #[test]
    fn what_two_writers_append_is_read_back_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c/events.jsonl");
        assert_eq!(read(&path).unwrap(), []);
        let (mut one, mut two) = (EventLog::open(&path).unwrap(), EventLog::open(&path).unwrap());
        let written = [one.append(started("h:1")).unwrap(), two.append(started("h:2")).unwrap()];
        assert_eq!(read(&path).unwrap(), written);
    }

    #[test]
    fn a_torn_line_costs_itself_and_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.jsonl");
        EventLog::open(&path).unwrap().append(started("h:1")).unwrap();
        super::super::spawn::append(&path).unwrap().write_all(b"{\"at\":\"2026\n\xff\n{\"at\"").unwrap();
        EventLog::open(&path).unwrap().append(started("h:2")).unwrap();
        assert_eq!(read(&path).unwrap().len(), 2);
    }

    #[test]
    fn a_writer_that_is_stuck_with_the_lock_stops_nobody_for_long() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.jsonl");
        let stuck = EventLog::open(&path).unwrap();
        stuck.file.lock().unwrap();
        EventLog::open(&path).unwrap().append(started("h:1")).unwrap();
        assert_eq!(read(&path).unwrap().len(), 1);
    }

    #[test]
    fn an_event_that_is_offered_again_is_written_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.jsonl");
        let mut log = EventLog::open(&path).unwrap();
        let id = new_id();
        assert!(log.append_once(&id, started("h:1")).unwrap().is_some());
        log.append(started("h:2")).unwrap();
        assert_eq!(EventLog::open(&path).unwrap().append_once(&id, started("h:1")).unwrap(), None);
        assert!(log.append_once(&new_id(), started("h:1")).unwrap().is_some());
        assert_eq!(read(&path).unwrap().len(), 3);
    }

    #[test]
    fn a_reader_gives_every_event_once_and_begins_again_with_another_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.jsonl");
        let mut reader = Reader::new(path.clone());
        assert_eq!(reader.more().unwrap(), []);
        let mut log = EventLog::open(&path).unwrap();
        let one = log.append(started("h:1")).unwrap();
        assert_eq!(reader.more().unwrap(), std::slice::from_ref(&one));
        let two = log.append(started("h:2")).unwrap();
        log.file.write_all(b"{\"at\":\"half").unwrap();
        assert_eq!(reader.more().unwrap(), std::slice::from_ref(&two));
        assert_eq!(reader.more().unwrap(), []);
        assert_eq!(recent(&path, 1 << 20).unwrap(), [one, two]);
        assert_eq!(recent(&path, 30).unwrap(), []);
        std::fs::remove_file(&path).unwrap();
        let three = EventLog::open(&path).unwrap().append(started("h:3")).unwrap();
        assert_eq!(reader.more().unwrap(), [three]);
    }

    #[test]
    fn an_event_is_one_flat_object() {
        let entry = Entry {
            at: "t".to_owned(),
            id: "i".to_owned(),
            event: Event::Exited {
                node: "h:1".to_owned(),
                pid: 7,
                code: None,
                signal: Some(9),
                cause: Cause::OutOfMemory,
                trouble: None,
                words: None,
                restart_in_ms: None,
            },
        };
        assert_eq!(
            serde_json::to_string(&entry).unwrap(),
            r#"{"at":"t","id":"i","event":"exited","node":"h:1","pid":7,"code":null,"signal":9,"cause":"out-of-memory"}"#
        );
    }
}
