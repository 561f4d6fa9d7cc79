//! The history of a cluster: one JSON line an event, appended with a single write, so that the supervisor and a
//! command that works without one can both write and anybody can follow.

use std::fs::File;
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::control::cause::Cause;
use crate::telemetry::stamp;

/// An event with its time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Wall-clock time, UTC, as [`stamp`] writes it.
    pub at: String,
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
    /// What became of a kill.
    Verdict {
        /// The nodes killed.
        nodes: Vec<String>,
        /// Who leads now.
        leader: Option<String>,
        /// The longest gap between acknowledged writes, in milliseconds; absent without a load.
        #[serde(skip_serializing_if = "Option::is_none")]
        unavailable_ms: Option<f64>,
        /// Writes acknowledged.
        acknowledged: u64,
        /// Acknowledged and not read back.
        lost: u64,
        /// `proved`, `violated` or `inconclusive`.
        verdict: String,
    },
}

/// Where events are appended.
#[derive(Debug)]
pub struct EventLog {
    file: File,
}

impl EventLog {
    /// Opens the history for appending.
    ///
    /// # Errors
    /// What the system said.
    pub fn open(path: &Path) -> io::Result<EventLog> {
        Ok(EventLog { file: super::spawn::append(path)? })
    }

    /// Appends one event with the time of now, and gives it back as written.
    ///
    /// # Errors
    /// What the system said.
    pub fn append(&mut self, event: Event) -> io::Result<Entry> {
        let entry = Entry { at: stamp(crate::clock::wall()), event };
        let mut line = serde_json::to_vec(&entry)?;
        line.push(b'\n');
        self.file.write_all(&line)?;
        Ok(entry)
    }
}

/// Everything in the history, oldest first. A line that is none (the machine lost power while it was written) is
/// left out: the history explains, nothing is decided by it.
///
/// # Errors
/// What the system said, except that no history is an empty one.
pub fn read(path: &PathBuf) -> io::Result<Vec<Entry>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut entries = Vec::new();
    for line in io::BufReader::new(file).split(b'\n') {
        entries.extend(serde_json::from_slice(&line?).ok() as Option<Entry>);
    }
    Ok(entries)
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
        super::super::spawn::append(&path).unwrap().write_all(b"{\"at\":\"2026\n\xff\n").unwrap();
        EventLog::open(&path).unwrap().append(started("h:2")).unwrap();
        assert_eq!(read(&path).unwrap().len(), 2);
    }

    #[test]
    fn an_event_is_one_flat_object() {
        let entry = Entry {
            at: "t".to_owned(),
            event: Event::Exited {
                node: "h:1".to_owned(),
                pid: 7,
                code: None,
                signal: Some(9),
                cause: Cause::OutOfMemory,
                restart_in_ms: None,
            },
        };
        assert_eq!(
            serde_json::to_string(&entry).unwrap(),
            r#"{"at":"t","event":"exited","node":"h:1","pid":7,"code":null,"signal":9,"cause":"out-of-memory"}"#
        );
    }
}
