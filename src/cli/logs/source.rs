//! One log with its older files, read like one file that only grows. Reads; what is printed is decided above.
//! A file is known by its inode: its name changes while it is read. What was held open is read to its end before the
//! next one is begun, so that no line is lost between the last read and the moment when the file was put aside.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tracing::Level;

use super::begin;
use crate::telemetry::STARTED;
use crate::telemetry::line::{Line, stamp_of};
use crate::telemetry::rotate::older;

/// About as much is read at once; the rest follows in the next round.
const MOST_BYTES: u64 = 256 << 10;
/// How often a directory is listed until two lists agree; files are put aside within microseconds.
const LISTS_MAX: usize = 100;

/// One line, with what it inherits from those before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// As in the file.
    pub text: String,
    /// Which of the sources.
    pub source: usize,
    /// Its own stamp, or that of the line it belongs to.
    pub stamp: String,
    /// Its own level, or that of the line it belongs to.
    pub level: Option<Level>,
    /// The process that wrote it, where its start was read.
    pub pid: Option<u64>,
    /// The data directory it worked on, where that was read.
    pub incarnation: Option<u64>,
}

/// What a line hands on to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Carried {
    stamp: String,
    level: Option<Level>,
    /// The process that wrote it.
    pub(super) pid: Option<u64>,
    /// The data directory it worked on.
    pub(super) incarnation: Option<u64>,
}

/// A log that is read on from where it was left.
#[derive(Debug)]
pub(super) struct Source {
    /// What lines are marked with.
    pub label: String,
    /// The newest file.
    pub path: PathBuf,
    index: usize,
    held: Option<Held>,
    /// The beginning of a line whose end was not written yet.
    partial: Vec<u8>,
    carried: Carried,
    /// So many of the next lines that pass are older than what is wanted.
    surplus: usize,
    /// All that was there has been read.
    at_end: bool,
}

/// The file that is read now.
#[derive(Debug)]
pub(super) struct Held {
    /// Open, whatever it is called by now.
    pub(super) file: File,
    inode: u64,
    /// Up to here it is read.
    pub(super) offset: u64,
}

/// How much of what is there is wanted.
pub(super) struct Wanted<'a> {
    /// So many lines of those that pass.
    pub lines: usize,
    /// Nothing with an older stamp.
    pub oldest: Option<&'a str>,
    /// Which process wrote the first of them is wanted as well.
    pub process: bool,
    /// What passes.
    pub keep: &'a dyn Fn(&Entry) -> bool,
}

impl Source {
    pub(super) fn new(index: usize, label: String, path: PathBuf) -> Source {
        Source {
            label,
            path,
            index,
            held: None,
            partial: Vec::new(),
            carried: Carried::default(),
            surplus: 0,
            at_end: false,
        }
    }

    /// Goes to the oldest of the newest lines that are wanted; [`Source::past`] then reads on from there.
    ///
    /// # Errors
    /// What the system said.
    pub(super) fn begin(&mut self, wanted: &Wanted<'_>) -> io::Result<()> {
        self.at_end = false;
        self.partial.clear();
        if let Some(begin) = begin::find(&self.path, self.index, wanted)? {
            self.held = Some(begin.held);
            self.carried = begin.carried;
            self.surplus = begin.surplus;
        }
        Ok(())
    }

    /// Some of the lines that are there and pass; none at their end.
    ///
    /// # Errors
    /// What the system said.
    pub(super) fn past(&mut self, keep: &dyn Fn(&Entry) -> bool) -> io::Result<Vec<Entry>> {
        while !self.at_end {
            let mut entries = self.more()?;
            entries.retain(keep);
            let surplus = self.surplus.min(entries.len());
            entries.drain(..surplus);
            self.surplus -= surplus;
            if !entries.is_empty() {
                return Ok(entries);
            }
        }
        Ok(Vec::new())
    }

    /// What was written since the last time. No file yet is no lines yet.
    ///
    /// # Errors
    /// What the system said.
    pub(super) fn more(&mut self) -> io::Result<Vec<Entry>> {
        let mut bytes = std::mem::take(&mut self.partial);
        self.at_end = true;
        if self.held.is_none() {
            // There was no file when we looked, so all that are there now are new, the oldest too.
            self.held = open_all(&self.path)?.pop().map(|(_, oldest)| oldest);
        }
        while let Some(held) = &mut self.held {
            // A line without an end can be longer than that: what counts is whether there was more of it.
            if held.read(&mut bytes)? > 0 && bytes.len() as u64 >= MOST_BYTES {
                self.at_end = false;
                break;
            }
            let Some(next) = held.next(&self.path)? else { break };
            // It lost its name after it was read above, and nothing is written to it any more.
            held.file.read_to_end(&mut bytes)?;
            if bytes.last().is_some_and(|byte| *byte != b'\n') {
                bytes.push(b'\n');
            }
            self.held = Some(next);
        }
        self.partial = after_last_line(&mut bytes);
        let mut entries = entries(self.index, &bytes);
        carry(&mut entries, &mut self.carried);
        Ok(entries)
    }
}

/// The lines of what was read, each on its own.
pub(super) fn entries(source: usize, bytes: &[u8]) -> Vec<Entry> {
    let entry = |text: &str| Entry {
        text: text.to_owned(),
        source,
        stamp: String::new(),
        level: None,
        pid: None,
        incarnation: None,
    };
    String::from_utf8_lossy(bytes).lines().map(entry).collect()
}

impl Entry {
    /// What it says, where it is a line of ours.
    pub(super) fn line(&self) -> Option<Line> {
        Line::parse(&self.text)
    }

    /// The process that it says has started.
    pub(super) fn start(&self) -> Option<u64> {
        started(&self.line()?)
    }
}

pub(super) fn started(line: &Line) -> Option<u64> {
    if line.message == STARTED { line.fields.number("pid") } else { None }
}

impl Held {
    fn read(&mut self, bytes: &mut Vec<u8>) -> io::Result<u64> {
        if self.file.metadata()?.len() < self.offset {
            self.offset = 0;
            bytes.clear();
        }
        self.file.seek(SeekFrom::Start(self.offset))?;
        let read = (&self.file).take(MOST_BYTES).read_to_end(bytes)? as u64;
        self.offset += read;
        Ok(read)
    }

    /// The file that was begun after this one. `None` while this is the newest, or while files are being renamed.
    fn next(&self, path: &Path) -> io::Result<Option<Held>> {
        if std::fs::metadata(path).is_ok_and(|metadata| metadata.ino() == self.inode) {
            return Ok(None);
        }
        let Some(files) = files(path)? else { return Ok(None) };
        let number = match files.iter().find(|(_, inode)| *inode == self.inode) {
            Some((0, _)) => return Ok(None),
            // Not always one less: somebody may have deleted a file by hand.
            Some((number, _)) => match files.iter().rev().find(|(other, _)| other < number) {
                Some((next, _)) => *next,
                None => return Ok(None),
            },
            // It was taken away, so what followed it is the oldest that is left.
            None => match files.last() {
                Some((number, _)) => *number,
                None => return Ok(None),
            },
        };
        let expected = files.iter().find(|(other, _)| *other == number).map(|(_, inode)| *inode);
        Ok(open(&named(path, number))?.filter(|opened| Some(opened.inode) == expected))
    }
}

/// Gives every entry what it inherits, and ends with what the next ones inherit.
pub(super) fn carry(entries: &mut [Entry], carried: &mut Carried) {
    for entry in entries {
        if let Some(stamp) = stamp_of(&entry.text) {
            stamp.clone_into(&mut carried.stamp);
            // Most lines say nothing of their process, so most are not taken apart.
            let telling = [": started  ", "incarnation="].iter().any(|part| entry.text.contains(part));
            if telling && let Some(line) = Line::parse(&entry.text) {
                if let Some(pid) = started(&line) {
                    carried.pid = Some(pid);
                    carried.incarnation = None;
                }
                carried.incarnation = line.fields.number("incarnation").or(carried.incarnation);
            }
            carried.level = Line::level_of(&entry.text);
        }
        entry.stamp.clone_from(&carried.stamp);
        (entry.level, entry.pid, entry.incarnation) = (carried.level, carried.pid, carried.incarnation);
    }
}

/// Cuts off what follows the last newline.
fn after_last_line(bytes: &mut Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    bytes.split_off(end)
}

fn named(path: &Path, number: u32) -> PathBuf {
    if number == 0 { path.to_owned() } else { older(path, number) }
}

fn open(path: &Path) -> io::Result<Option<Held>> {
    match File::open(path) {
        Ok(file) => Ok(Some(Held { inode: file.metadata()?.ino(), file, offset: 0 })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// All files of a log by number, the newest first, each opened as what its number meant at one moment.
pub(super) fn open_all(path: &Path) -> io::Result<Vec<(u32, Held)>> {
    let mut opened = Vec::new();
    for _ in 0..LISTS_MAX {
        opened.clear();
        let Some(files) = files(path)? else { break };
        for (number, inode) in &files {
            if let Some(held) = open(&named(path, *number))?
                && held.inode == *inode
            {
                opened.push((*number, held));
            }
        }
        if opened.len() == files.len() {
            break;
        }
    }
    Ok(opened)
}

/// Numbers and inodes of a log's files at one moment, the newest first. `None` where they never stand still.
fn files(path: &Path) -> io::Result<Option<Vec<(u32, u64)>>> {
    let mut before = list(path)?;
    for _ in 0..LISTS_MAX {
        let now = list(path)?;
        if now == before {
            return Ok(Some(now));
        }
        before = now;
    }
    Ok(None)
}

fn list(path: &Path) -> io::Result<Vec<(u32, u64)>> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return Ok(Vec::new()) };
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let name = name.to_string_lossy();
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let other = entry.file_name().to_string_lossy().into_owned();
        let number = match other.strip_prefix(&*name) {
            Some("") => Some(0),
            Some(suffix) => suffix.strip_prefix('.').and_then(|number| number.parse().ok()),
            None => None,
        };
        // One that was renamed meanwhile is in the next list.
        if let Some(number) = number
            && let Ok(metadata) = entry.metadata()
        {
            found.push((number, metadata.ino()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::rotate::{Limits, Rotated};

    const ONE: &str = "2026-11-22T14:03:11.000001Z";
    const TWO: &str = "2026-11-22T14:03:11.000002Z";
    const EVERYTHING: Wanted<'static> =
        Wanted { lines: usize::MAX, oldest: None, process: true, keep: &|_| true };

    fn history(source: &mut Source, wanted: &Wanted<'_>) -> Vec<Entry> {
        source.begin(wanted).unwrap();
        let mut all = Vec::new();
        loop {
            match source.past(wanted.keep).unwrap() {
                none if none.is_empty() => return all,
                some => all.extend(some),
            }
        }
    }

    fn source(path: &Path) -> Source {
        Source::new(0, "h:1".to_owned(), path.to_owned())
    }

    fn append(path: &Path, text: &str) {
        use std::io::Write;
        crate::supervisor::spawn::append(path).unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn texts(entries: &[Entry]) -> Vec<&str> {
        entries.iter().map(|entry| entry.text.as_str()).collect()
    }

    #[test]
    fn a_line_is_shown_once_it_is_whole_and_only_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut source = source(&path);
        assert_eq!(history(&mut source, &EVERYTHING), []);
        append(&path, "one\ntw");
        assert_eq!(texts(&source.more().unwrap()), ["one"]);
        append(&path, "o\n");
        assert_eq!(texts(&source.more().unwrap()), ["two"]);
        assert_eq!(source.more().unwrap(), []);
    }

    #[test]
    fn a_file_that_was_replaced_or_cut_is_read_from_its_start() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut source = source(&path);
        append(&path, "one\ntwo\n");
        source.more().unwrap();
        append(&path, "just before\n");
        std::fs::rename(&path, older(&path, 1)).unwrap();
        append(&path, "three, longer than all before it\n");
        assert_eq!(texts(&source.more().unwrap()), ["just before", "three, longer than all before it"]);
        std::fs::write(&path, "four\n").unwrap();
        assert_eq!(texts(&source.more().unwrap()), ["four"]);
        std::fs::remove_file(&path).unwrap();
        std::fs::remove_file(older(&path, 1)).unwrap();
        assert_eq!(source.more().unwrap(), []);
        append(&path, "five\n");
        assert_eq!(texts(&source.more().unwrap()), ["five"], "purged, and begun anew");
    }

    #[test]
    fn history_reaches_into_older_files_as_far_as_it_is_wanted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let stamped = |second: u32| format!("2026-11-22T14:03:{second:02}.000000Z  INFO a: {second}");
        let mut log = Rotated::open(&path, Limits { max_size: 100, keep: 9 }).unwrap();
        for second in 0..10 {
            log.append(format!("{}\n", stamped(second)).as_bytes());
        }
        assert!(older(&path, 3).exists());
        let seconds = |wanted: &Wanted<'_>| -> Vec<String> {
            let entries = history(&mut source(&path), wanted);
            entries.iter().map(|entry| entry.line().unwrap().message).collect()
        };
        assert_eq!(seconds(&EVERYTHING), ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]);
        assert_eq!(seconds(&Wanted { lines: 5, ..EVERYTHING }), ["5", "6", "7", "8", "9"]);
        let oldest = stamped(7)[..27].to_owned();
        let keep = |entry: &Entry| entry.stamp >= oldest;
        let since = Wanted { lines: usize::MAX, oldest: Some(&oldest), process: false, keep: &keep };
        assert_eq!(seconds(&since), ["7", "8", "9"]);
    }

    #[test]
    fn a_line_belongs_to_a_process_and_what_is_no_line_to_the_line_before_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        append(&path, &format!("{ONE}  INFO replcluster::server: started  pid=7\n"));
        append(&path, &format!("{ONE} ERROR replcluster::server: h:1 listens  incarnation=9\nat src/x.rs\n"));
        append(&path, &format!("{TWO}  INFO replcluster::server: started  pid=8\n"));
        let entries = history(&mut source(&path), &EVERYTHING);
        let told: Vec<_> = entries.iter().map(|entry| (entry.pid, entry.incarnation, entry.level)).collect();
        assert_eq!(
            told,
            [
                (Some(7), None, Some(Level::INFO)),
                (Some(7), Some(9), Some(Level::ERROR)),
                (Some(7), Some(9), Some(Level::ERROR)),
                (Some(8), None, Some(Level::INFO)),
            ]
        );
        assert_eq!((entries[2].stamp.as_str(), entries[2].start(), entries[3].start()), (ONE, None, Some(8)));
    }

    /// All of the files are kept, so that a reader may be as slow as it likes.
    #[test]
    fn a_follower_reads_every_line_once_and_in_order_however_often_the_file_is_put_aside() {
        const LINES: usize = 20_000;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let writer = {
            let path = path.clone();
            std::thread::spawn(move || {
                let mut log = Rotated::open(&path, Limits { max_size: 16 << 10, keep: 100 }).unwrap();
                for number in 0..LINES {
                    log.append(format!("line {number} of many, and long enough to fill files\n").as_bytes());
                    if number % 1000 == 0 {
                        std::thread::yield_now();
                    }
                }
            })
        };
        let mut source = source(&path);
        let mut next = 0;
        let mut ended = false;
        while next < LINES {
            let last_round = std::mem::replace(&mut ended, writer.is_finished());
            for entry in source.more().unwrap() {
                assert!(
                    entry.text.starts_with(&format!("line {next} of")),
                    "expected {next}: {}",
                    entry.text
                );
                next += 1;
            }
            assert!(!(last_round && next < LINES), "the last line read is {next}");
        }
        writer.join().unwrap();
        assert_eq!(source.more().unwrap(), []);
    }
}
