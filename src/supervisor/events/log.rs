//! The files of the history: appended to by whoever has something to tell, put aside when full, read on from where one
//! left off.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::telemetry::rotate::older;
use crate::telemetry::stamp;

use super::super::past::Past;
use super::super::{os, spawn};
use super::{Entry, Event, new_id};

/// A file is put aside before the next event once it has this many bytes.
pub const LONGEST_FILE: u64 = 4 << 20;
/// So many older files are kept.
pub const KEPT: u32 = 4;
/// How long another writer may take; it writes a few lines.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
/// How long nobody is waited for any more after one took longer than that.
const IMPATIENCE: Duration = Duration::from_secs(10);
/// How often a lock is tried meanwhile.
const LOCK_LOOK: Duration = Duration::from_millis(1);
/// How far back an event is looked for that may have been written already.
const LOOK_BACK_BYTES: u64 = 1 << 20;
/// So many ids are remembered of the events that came last.
const IDS: usize = 4096;

/// Where events are appended.
#[derive(Debug)]
pub struct EventLog {
    path: PathBuf,
    file: File,
    /// Nobody is waited for until then: another writer holds the lock and does not go on.
    impatient_until: Option<Instant>,
    /// The file is put aside when it is this long.
    longest: u64,
    /// It could not be put aside; tried again when it has grown as much again.
    held_up_until: u64,
    /// What was written lately, by whomever; read when it is first needed.
    lately: Option<Lately>,
}

/// The ids of the newest events.
#[derive(Debug)]
struct Lately {
    reader: Reader,
    ids: VecDeque<String>,
}

impl Lately {
    fn holds(&mut self, id: &str) -> io::Result<bool> {
        self.ids.extend(self.reader.more()?.into_iter().map(|entry| entry.id));
        self.ids.drain(..self.ids.len().saturating_sub(IDS));
        Ok(self.ids.iter().any(|known| known == id))
    }
}

impl EventLog {
    /// Opens the history for appending.
    ///
    /// # Errors
    /// What the system said.
    pub fn open(path: &Path) -> io::Result<EventLog> {
        let writable = spawn::append(path)?;
        drop(writable);
        Ok(EventLog {
            path: path.to_owned(),
            file: reopen(path)?,
            impatient_until: None,
            longest: LONGEST_FILE,
            held_up_until: 0,
            lately: None,
        })
    }

    /// Appends these events with the time of now, and gives them back as written. They are on disk then; or none is,
    /// where there is an error.
    ///
    /// # Errors
    /// What the system said.
    pub fn append(&mut self, events: Vec<Event>) -> io::Result<Vec<Entry>> {
        let events: Vec<(String, Event)> = events.into_iter().map(|event| (new_id(), event)).collect();
        self.locked(|log, held| log.write(events, held))
    }

    /// Appends an event that may have been written before under the same id; `None` where it was.
    ///
    /// # Errors
    /// What the system said.
    pub fn append_once(&mut self, id: &str, event: Event) -> io::Result<Option<Entry>> {
        self.locked(|log, held| {
            let path = &log.path;
            let lately = log.lately.get_or_insert_with(|| Lately {
                reader: near_end(path, LOOK_BACK_BYTES),
                ids: VecDeque::new(),
            });
            if lately.holds(id)? {
                return Ok(None);
            }
            Ok(log.write(vec![(id.to_owned(), event)], held)?.pop())
        })
    }

    /// Several processes may append: one at a time. A writer that was frozen while it held the lock is not waited for
    /// without end: events are one write, so no line can be torn by another.
    fn locked<T>(&mut self, work: impl FnOnce(&mut EventLog, bool) -> io::Result<T>) -> io::Result<T> {
        let deadline = crate::clock::now() + LOCK_PATIENCE;
        let held = loop {
            let impatient = self.impatient_until.is_some_and(|until| crate::clock::now() < until);
            let held = match self.file.try_lock() {
                Ok(()) => {
                    self.impatient_until = None;
                    true
                }
                Err(TryLockError::WouldBlock) if !impatient && crate::clock::now() < deadline => {
                    pause_a_moment();
                    continue;
                }
                Err(TryLockError::WouldBlock) => {
                    if !impatient {
                        self.impatient_until = Some(crate::clock::now() + IMPATIENCE);
                    }
                    false
                }
                Err(TryLockError::Error(error)) => return Err(error),
            };
            // Somebody put the file aside meanwhile, or we do now: the lock that counts is that of the new one.
            if os::is_at(&self.file, &self.path) && !(held && self.put_aside()) {
                break held;
            }
            match reopen(&self.path) {
                Ok(file) => self.file = file,
                // Its directory is gone. What we have open is better than nothing.
                Err(error) if error.kind() == io::ErrorKind::NotFound => break held,
                Err(error) => return Err(error),
            }
        };
        let result = work(self, held);
        if held {
            self.file.unlock()?;
        }
        result
    }

    /// Begins a new file where this one is full. `false` where nothing was changed: a history that cannot be put aside
    /// goes on growing rather than lose an event.
    fn put_aside(&mut self) -> bool {
        let length = self.file.metadata().map_or(0, |metadata| metadata.len());
        if length < self.longest.max(self.held_up_until) {
            return false;
        }
        let result = begin_anew(&self.path, length);
        self.held_up_until = 0;
        if let Err(error) = &result {
            tracing::warn!(file = %self.path.display(), %error, "cannot put the history aside: it goes on growing");
            self.held_up_until = length.saturating_add(self.longest);
        }
        result.is_ok()
    }

    fn write(&mut self, events: Vec<(String, Event)>, held: bool) -> io::Result<Vec<Entry>> {
        let mut lines = Vec::new();
        // A line that a power cut left half written must not swallow this one.
        let end = self.file.metadata()?.len();
        let mut last = [b'\n'];
        if end > 0 {
            self.file.read_exact_at(&mut last, end - 1)?;
        }
        if last != [b'\n'] {
            lines.push(b'\n');
        }
        let at = stamp(crate::clock::wall());
        let mut entries = Vec::with_capacity(events.len());
        for (id, event) in events {
            let entry = Entry { at: at.clone(), id, event };
            serde_json::to_writer(&mut lines, &entry)?;
            lines.push(b'\n');
            entries.push(entry);
        }
        let written = self.file.write_all(&lines).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // Whoever is told that it was not written must be right.
            if held {
                let _ = self.file.set_len(end);
            }
            return Err(error);
        }
        Ok(entries)
    }
}

fn reopen(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).read(true).append(true).mode(0o600).open(path)
}

#[expect(
    clippy::disallowed_methods,
    reason = "a lock of another process cannot be waited for with a deadline"
)]
fn pause_a_moment() {
    std::thread::sleep(LOCK_LOOK);
}

/// Puts the history aside and begins another file with what of the past is open. To be called with the lock of the file
/// there, which has this length. There is a file under the name at every moment, and whoever dies in between has
/// changed nothing or everything.
fn begin_anew(path: &Path, length: u64) -> io::Result<()> {
    let fresh = begun(path);
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&fresh)?;
    file.write_all(&Past::read(path)?.carried()?)?;
    file.sync_data()?;
    // Somebody wrote without the lock, because whoever had it was frozen: perhaps we were.
    if fs::metadata(path)?.len() != length {
        return Err(io::Error::other("somebody is just writing to it"));
    }
    // Where an earlier try came as far as that and no further, it has its second name already.
    if !os::is_same_file(path, &older(path, 1)) {
        for number in (1..KEPT).rev() {
            match fs::rename(older(path, number), older(path, number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        // Where there are no second names there is no file for a moment.
        fs::hard_link(path, older(path, 1)).or_else(|_| fs::rename(path, older(path, 1)))?;
    }
    fs::rename(&fresh, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// The file that is to be the next one of a history, while it is made; a crash can leave it behind.
#[must_use]
pub fn begun(path: &Path) -> PathBuf {
    path.with_extension("jsonl.new")
}

/// All files of a history, the newest first, whether or not they are there.
pub fn files(path: &Path) -> impl Iterator<Item = PathBuf> {
    let path = path.to_owned();
    (0..=KEPT).map(move |number| if number == 0 { path.clone() } else { older(&path, number) })
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
    near_end(path, bytes).more()
}

/// A reader that begins so many bytes before the end.
fn near_end(path: &Path, bytes: u64) -> Reader {
    let mut reader = Reader::new(path.to_owned());
    let mut left = bytes;
    for metadata in files(path).map_while(|file| file.metadata().ok()) {
        if metadata.len() >= left {
            reader.inode = metadata.ino();
            // The line that this falls into is no whole one, and so is left out.
            reader.offset = metadata.len() - left;
            break;
        }
        left -= metadata.len();
    }
    reader
}

/// Reads a history on from where it was left, also after its file was put aside.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    /// Which file it was: where none is that any more, all is read from the start.
    inode: u64,
    offset: u64,
    /// The beginning of a line whose end was not written yet.
    partial: Vec<u8>,
    /// The newest events that were given.
    given: VecDeque<String>,
}

/// So many events that were given are known again where the file became shorter.
const KNOWN_AGAIN: usize = 256;

impl Reader {
    /// From the beginning.
    #[must_use]
    pub fn new(path: PathBuf) -> Reader {
        Reader { path, inode: 0, offset: 0, partial: Vec::new(), given: VecDeque::new() }
    }

    /// What came since the last call.
    ///
    /// # Errors
    /// What the system said, except that no history is an empty one.
    pub fn more(&mut self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for file in self.unread()? {
            self.read_on(file, &mut entries)?;
        }
        Ok(entries)
    }

    /// The files that may hold something that was not read, the oldest first: back to the one that was read last.
    fn unread(&self) -> io::Result<Vec<File>> {
        let mut unread: Vec<(u64, File)> = Vec::new();
        for path in files(&self.path) {
            let file = match File::open(path) {
                Ok(file) => file,
                // Without the newest there is no history; of the others there may be fewer.
                Err(error) if error.kind() == io::ErrorKind::NotFound && unread.is_empty() => break,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let inode = file.metadata()?.ino();
            // One that is just being put aside has two names.
            if unread.last().is_none_or(|(newer, _)| *newer != inode) {
                unread.push((inode, file));
            }
            if inode == self.inode {
                break;
            }
        }
        Ok(unread.into_iter().rev().map(|(_, file)| file).collect())
    }

    fn read_on(&mut self, mut file: File, entries: &mut Vec<Entry>) -> io::Result<()> {
        let metadata = file.metadata()?;
        // Another history is a new one: it was put aside, or the cluster was purged. A shorter one may be that too, or
        // what could not be written whole was taken back.
        let shorter = metadata.len() < self.offset;
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
        let lines = lines.split(|byte| *byte == b'\n');
        let mut read: Vec<Entry> = lines.filter_map(|line| serde_json::from_slice(line).ok()).collect();
        if shorter {
            let known = read.iter().rposition(|entry| self.given.contains(&entry.id));
            read.drain(..known.map_or(0, |last| last + 1));
        }
        self.given.extend(read.iter().map(|entry| entry.id.clone()));
        self.given.drain(..self.given.len().saturating_sub(KNOWN_AGAIN));
        entries.extend(read);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(node: &str) -> Event {
        Event::Started { node: node.to_owned(), pid: 7 }
    }

    #[test]
    fn what_two_writers_append_at_the_same_time_is_all_there_once_and_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c/events.jsonl");
        assert_eq!(read(&path).unwrap(), []);
        let writers: Vec<_> = ["h:1", "h:2"]
            .into_iter()
            .map(|node| {
                let mut log = small(&path);
                std::thread::spawn(move || {
                    (0..60)
                        .flat_map(|_| append(&mut log, vec![started(node), started(node)]))
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        let written: Vec<Vec<Entry>> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
        let all = read(&path).unwrap();
        assert!(older(&path, 1).exists(), "files were put aside meanwhile");
        for (node, written) in ["h:1", "h:2"].into_iter().zip(written) {
            let read: Vec<Entry> = all.iter().filter(|entry| entry.event == started(node)).cloned().collect();
            assert_eq!(read, written);
        }
    }

    /// One that puts files aside often, but keeps all that the tests write.
    fn small(path: &Path) -> EventLog {
        let mut log = EventLog::open(path).unwrap();
        log.longest = 8 << 10;
        log
    }

    fn append(log: &mut EventLog, events: Vec<Event>) -> Vec<Entry> {
        log.append(events).unwrap()
    }

    #[test]
    fn the_history_is_bounded_and_knows_what_is_open_however_long_ago_it_began() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.jsonl");
        let mut log = small(&path);
        let mut following = Reader::new(path.clone());
        append(&mut log, vec![started("old:1")]);
        let mut followed = following.more().unwrap();
        let mut written = followed.clone();
        for round in 0..100 {
            let view = |epoch| Event::View { epoch, leader: "h:1".to_owned(), in_sync: vec![] };
            written.extend(append(&mut log, (round * 7..round * 7 + 7).map(view).collect()));
            if round % 3 == 0 {
                followed.extend(following.more().unwrap());
            }
        }
        followed.extend(following.more().unwrap());
        assert_eq!(followed, written, "whoever follows misses nothing");
        let sizes: Vec<u64> = files(&path).map(|file| file.metadata().unwrap().len()).collect();
        assert!(sizes.iter().all(|size| *size < (8 << 10) + 2000), "{sizes:?}");
        assert!(!older(&path, KEPT + 1).exists());
        let kept = read(&path).unwrap();
        assert!(kept.len() < written.len() && written.ends_with(&kept), "the newest is kept, without a hole");
        let past = Past::read(&path).unwrap();
        assert_eq!((past.node("old:1").open, past.epoch), (Some(7), 699));
        // A file that was being put aside when its writer died has two names for a while.
        std::fs::remove_file(older(&path, 1)).unwrap();
        std::fs::hard_link(&path, older(&path, 1)).unwrap();
        let once = read(&path).unwrap();
        let mut ids: Vec<&String> = once.iter().map(|entry| &entry.id).collect();
        ids.dedup();
        assert_eq!(ids.len(), once.len());
    }

    #[test]
    fn an_event_is_known_to_be_written_also_after_its_file_was_put_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.jsonl");
        let id = new_id();
        let mut log = small(&path);
        assert!(log.append_once(&id, started("h:1")).unwrap().is_some());
        while !older(&path, 1).exists() {
            append(&mut log, vec![started("h:2")]);
        }
        assert_eq!(log.append_once(&id, started("h:1")).unwrap(), None);
        assert_eq!(EventLog::open(&path).unwrap().append_once(&id, started("h:1")).unwrap(), None);
    }

    #[test]
    fn what_cannot_be_written_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.jsonl");
        let mut log = EventLog::open(&path).unwrap();
        append(&mut log, vec![started("h:1")]);
        // Not open for writing: as good as a disk that is full.
        log.file = File::open(&path).unwrap();
        log.append(vec![started("h:2")]).unwrap_err();
        assert_eq!(read(&path).unwrap().len(), 1);
    }

    #[test]
    fn a_torn_line_costs_itself_and_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.jsonl");
        append(&mut EventLog::open(&path).unwrap(), vec![started("h:1")]);
        spawn::append(&path).unwrap().write_all(b"{\"at\":\"2026\n\xff\n{\"at\"").unwrap();
        append(&mut EventLog::open(&path).unwrap(), vec![started("h:2")]);
        assert_eq!(read(&path).unwrap().len(), 2);
    }

    #[test]
    fn a_writer_that_is_stuck_with_the_lock_stops_nobody_for_long() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.jsonl");
        let stuck = EventLog::open(&path).unwrap();
        stuck.file.lock().unwrap();
        let mut log = EventLog::open(&path).unwrap();
        append(&mut log, vec![started("h:1")]);
        // Nor is it waited for again and again.
        let begun = crate::clock::now();
        for _ in 0..20 {
            append(&mut log, vec![started("h:1")]);
        }
        assert!(begun.elapsed() < LOCK_PATIENCE * 10);
        assert_eq!(read(&path).unwrap().len(), 21);
    }

    #[test]
    fn an_event_that_is_offered_again_is_written_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.jsonl");
        let mut log = EventLog::open(&path).unwrap();
        let id = new_id();
        assert!(log.append_once(&id, started("h:1")).unwrap().is_some());
        append(&mut log, vec![started("h:2")]);
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
        let one = append(&mut log, vec![started("h:1")]).remove(0);
        assert_eq!(reader.more().unwrap(), std::slice::from_ref(&one));
        let two = append(&mut log, vec![started("h:2")]).remove(0);
        log.file.write_all(b"{\"at\":\"half").unwrap();
        assert_eq!(reader.more().unwrap(), std::slice::from_ref(&two));
        assert_eq!(reader.more().unwrap(), []);
        assert_eq!(recent(&path, 1 << 20).unwrap(), [one, two]);
        assert_eq!(recent(&path, 30).unwrap(), []);
        std::fs::remove_file(&path).unwrap();
        let three = append(&mut EventLog::open(&path).unwrap(), vec![started("h:3")]).remove(0);
        assert_eq!(reader.more().unwrap(), [three]);
    }
}
