//! Where the newest lines of a log begin, however many are wanted: its files are read backwards, block by block, until
//! enough was seen. Nothing of them is kept, so that it costs no more than what is then printed.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::telemetry::line::{Line, stamp_of};

use super::source::{Carried, Entry, Held, Wanted, carry, entries, open_all, started};

/// So much is read at once.
const BLOCK_BYTES: u64 = 64 << 10;
/// A line of ours and what follows it is taken apart together, if it is not longer than this.
const LONGEST_MESSAGE: usize = 4 << 20;

/// A place to read on from.
pub(super) struct Begin {
    /// The file, open at the place.
    pub(super) held: Held,
    /// What the lines before it hand on.
    pub(super) carried: Carried,
    /// So many lines that pass come before the wanted ones.
    pub(super) surplus: usize,
}

/// What was seen so far, from the end backwards.
struct Seen<'a> {
    source: usize,
    wanted: &'a Wanted<'a>,
    /// Lines that pass.
    found: usize,
    /// An older line than any that is wanted.
    reaches_back: bool,
}

impl Seen<'_> {
    fn look(&mut self, bytes: &[u8]) {
        let mut lines: Vec<Entry> = entries(self.source, bytes);
        carry(&mut lines, &mut Carried::default());
        let older = |entry: &Entry| {
            self.wanted.oldest.is_some_and(|oldest| !entry.stamp.is_empty() && entry.stamp.as_str() < oldest)
        };
        self.reaches_back |= lines.iter().any(older);
        if self.wanted.lines < usize::MAX {
            self.found += lines.iter().filter(|entry| (self.wanted.keep)(entry)).count();
        }
    }

    fn is_enough(&self) -> bool {
        self.found >= self.wanted.lines || self.reaches_back
    }
}

/// Finds the place; `None` where there is no file.
///
/// # Errors
/// What the system said.
pub(super) fn find(path: &Path, source: usize, wanted: &Wanted<'_>) -> io::Result<Option<Begin>> {
    let mut files = open_all(path)?;
    let mut seen = Seen { source, wanted, found: 0, reaches_back: false };
    let everything = wanted.lines == usize::MAX && wanted.oldest.is_none();
    let mut place = None;
    // Lines whose stamp stands further back.
    let mut rest: Vec<u8> = Vec::new();
    if !everything {
        for (position, (number, held)) in files.iter().enumerate() {
            let newest = *number == 0 && position == 0;
            if let Some(offset) = back_through(held, newest, &mut rest, &mut seen)? {
                place = Some((position, offset));
                break;
            }
        }
        if place.is_none() {
            seen.look(&rest);
        }
    }
    // Without a place in between all of it is wanted, from the oldest file on.
    let Some((position, offset)) = place.or(files.len().checked_sub(1).map(|oldest| (oldest, 0))) else {
        return Ok(None);
    };
    let (_, mut held) = files.swap_remove(position);
    held.offset = offset;
    let carried = if wanted.process { process_before(&held)? } else { Carried::default() };
    let surplus = if everything { 0 } else { seen.found.saturating_sub(wanted.lines) };
    Ok(Some(Begin { held, carried, surplus }))
}

/// Reads one file backwards; gives the place where enough was seen.
fn back_through(
    held: &Held,
    newest: bool,
    rest: &mut Vec<u8>,
    seen: &mut Seen<'_>,
) -> io::Result<Option<u64>> {
    let length = held.file.metadata()?.len();
    let mut at = length;
    let mut unfinished = newest;
    while at > 0 {
        let start = at.saturating_sub(BLOCK_BYTES);
        let mut bytes = block(held, start, at)?;
        if unfinished {
            // No line yet: whoever reads on has it when it is one.
            let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            bytes.truncate(whole);
            unfinished = whole == 0;
        } else if at == length && bytes.last() != Some(&b'\n') {
            bytes.push(b'\n');
        }
        bytes.append(rest);
        let cut = if bytes.len() > LONGEST_MESSAGE {
            line_starts(&bytes, start == 0).next()
        } else {
            line_starts(&bytes, start == 0).find(|at| is_stamped(&bytes[*at..]))
        };
        let cut = cut.unwrap_or(bytes.len());
        seen.look(&bytes[cut..]);
        if cut < bytes.len() && seen.is_enough() {
            return Ok(Some(start + cut as u64));
        }
        bytes.truncate(cut);
        *rest = bytes;
        at = start;
    }
    Ok(None)
}

fn block(held: &Held, start: u64, end: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(end - start).unwrap_or(0)];
    held.file.read_exact_at(&mut bytes, start)?;
    Ok(bytes)
}

/// Where lines begin; the first bytes begin one only in a file's first block.
fn line_starts(bytes: &[u8], first: bool) -> impl Iterator<Item = usize> {
    let after_ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    first.then_some(0).into_iter().chain(after_ends).filter(|at| *at < bytes.len())
}

fn is_stamped(line: &[u8]) -> bool {
    let head = &line[..line.len().min(crate::telemetry::line::STAMP_BYTES)];
    std::str::from_utf8(head).is_ok_and(|head| stamp_of(head).is_some())
}

/// The process that wrote what begins at the place, and its data directory, as far as the same file tells.
fn process_before(held: &Held) -> io::Result<Carried> {
    let mut carried = Carried::default();
    let mut rest: Vec<u8> = Vec::new();
    let mut at = held.offset;
    while at > 0 {
        let start = at.saturating_sub(BLOCK_BYTES);
        let mut bytes = block(held, start, at)?;
        bytes.append(&mut rest);
        let cut = line_starts(&bytes, start == 0).next().unwrap_or(bytes.len());
        for text in String::from_utf8_lossy(&bytes[cut..]).lines().rev() {
            // Most lines say nothing of their process, so most are not taken apart.
            let telling = [": started  ", "incarnation="].iter().any(|part| text.contains(part));
            let Some(line) = telling.then(|| Line::parse(text)).flatten() else { continue };
            carried.incarnation = carried.incarnation.or(line.fields.number("incarnation"));
            carried.pid = started(&line);
            if carried.pid.is_some() {
                return Ok(carried);
            }
        }
        bytes.truncate(cut);
        rest = bytes;
        at = start;
    }
    Ok(carried)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::rotate::older;

    fn stamped(number: usize) -> String {
        format!(
            "2026-11-22T14:03:11.{number:06}Z  INFO a::b: line {number}\n  and what belongs to it {number}\n"
        )
    }

    /// A log of three files, with more in each than a block.
    fn written(directory: &Path) -> (std::path::PathBuf, Vec<String>) {
        let path = directory.join("log");
        let mut all = Vec::new();
        for (file, path) in [older(&path, 2), older(&path, 1), path.clone()].iter().enumerate() {
            let text: String = (0..2000).map(|number| stamped(file * 2000 + number)).collect();
            assert!(text.len() as u64 > BLOCK_BYTES);
            all.extend(text.lines().map(str::to_owned));
            std::fs::write(path, text).unwrap();
        }
        (path, all)
    }

    fn read(path: &Path, wanted: &Wanted<'_>) -> Vec<String> {
        let mut source = super::super::source::Source::new(0, "h:1".to_owned(), path.to_owned());
        source.begin(wanted).unwrap();
        let mut all = Vec::new();
        loop {
            match source.past(wanted.keep).unwrap() {
                none if none.is_empty() => return all,
                some => all.extend(some.into_iter().map(|entry| entry.text)),
            }
        }
    }

    #[test]
    fn however_many_lines_are_wanted_they_are_the_last_ones() {
        let directory = tempfile::tempdir().unwrap();
        let (path, all) = written(directory.path());
        for lines in [0, 1, 2, 3, 1000, 3999, 4000, 4001, 8123, 11_999, 12_000, 13_000, usize::MAX] {
            let wanted = Wanted { lines, oldest: None, process: true, keep: &|_| true };
            assert_eq!(read(&path, &wanted), all[all.len().saturating_sub(lines)..], "{lines} lines");
        }
        let keep = |entry: &Entry| entry.text.ends_with("77");
        let matching: Vec<String> = all.iter().filter(|line| line.ends_with("77")).cloned().collect();
        let wanted = Wanted { lines: 90, oldest: None, process: false, keep: &keep };
        assert_eq!(read(&path, &wanted), matching[matching.len() - 90..]);
        for oldest in [0, 1999, 2000, 3456, 5999] {
            let stamp = stamped(oldest)[..27].to_owned();
            let keep = |entry: &Entry| entry.stamp >= stamp;
            let wanted = Wanted { lines: usize::MAX, oldest: Some(&stamp), process: false, keep: &keep };
            assert_eq!(read(&path, &wanted), all[oldest * 2..], "since {stamp}");
        }
    }

    #[test]
    fn a_few_lines_of_a_long_log_are_found_without_reading_it() {
        let directory = tempfile::tempdir().unwrap();
        let (path, all) = written(directory.path());
        let wanted = Wanted { lines: 3, oldest: None, process: false, keep: &|_| true };
        let begin = find(&path, 0, &wanted).unwrap().unwrap();
        let length = std::fs::metadata(&path).unwrap().len();
        assert!(length - begin.held.offset <= BLOCK_BYTES, "{} of {length}", begin.held.offset);
        assert_eq!(read(&path, &wanted), all[all.len() - 3..]);
    }

    #[test]
    fn the_process_of_the_first_line_is_told_where_its_file_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let stamp = &stamped(0)[..27];
        let mut text = format!(
            "{stamp}  INFO replcluster::server: started  pid=7\n{stamp}  INFO replcluster::server: h:1 listens  incarnation=9\n"
        );
        text.extend((0..2000).map(stamped));
        std::fs::write(&path, text).unwrap();
        let wanted = Wanted { lines: 3, oldest: None, process: true, keep: &|_| true };
        let carried = find(&path, 0, &wanted).unwrap().unwrap().carried;
        assert_eq!((carried.pid, carried.incarnation), (Some(7), Some(9)));
    }

    #[test]
    fn text_without_any_stamp_is_read_too() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let text: String = (0..500_000).map(|number| format!("word {number}\n")).collect();
        assert!(text.len() > LONGEST_MESSAGE);
        std::fs::write(&path, &text).unwrap();
        let all: Vec<&str> = text.lines().collect();
        for lines in [1, 1000, 499_999, 500_000] {
            let wanted = Wanted { lines, oldest: None, process: false, keep: &|_| true };
            assert_eq!(read(&path, &wanted), all[all.len() - lines..], "{lines} lines");
        }
    }
}
