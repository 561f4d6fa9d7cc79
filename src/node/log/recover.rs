//! Reading the log after a restart: which segments count, where the log ends, and whether it can be trusted (R23).
//!
//! 1. Segments are ordered by their numbers; the head of each supersedes what older ones hold after its base. Which
//!    count is known from the heads alone, because a crash may have removed any part of the superseded ones.
//! 2. A segment got its name after everything before its base had been synced. So in all but the newest every record
//!    up to the next base must be there: one that is not is damage.
//! 3. In the newest, records count up to the first place that holds none. Either what follows was never synced and a
//!    power cut tore it, or it was synced once and is damaged now.
//!
//! # Torn or damaged
//!
//! That whole records follow the bad place proves nothing: the sectors of one unsynced batch reach the disk in any
//! order. Nor do the commit numbers of these records: a node that catches up may get a record and its commit number
//! in one batch. What proves that an entry was synced on *this* disk:
//!
//! * the commit index beside the promise: an entry is committed here only after it was synced here;
//! * the mark in the segment's head, which is written after a sync and says how far that one went. It stands apart
//!   from the records, so it also tells of an end that was zeroed, and it lags by one sync at most;
//! * the shape of the bad record. The file was zeros, and synced as such, before its first record, and nothing in it
//!   is written twice. So a write that did not reach the disk in full left zeros: in whole sectors after a power cut,
//!   from some byte to the end after a death in the middle of writing. A record that has neither a line of zeros nor
//!   zeros at its end is there in full, and not as it was written. Lines of 64 bytes are looked at, the smallest
//!   unit that any persistent store tears at.
//!
//! With any of these the log is refused; without, the tail is cut. What remains undecided: zeros in the very last
//! synced batch, if the mark after it did not reach the disk either. There only the view helps, which says how much it
//! counts on (its floor, R24).

use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::record;
use super::segment::{BadHead, HEAD_BYTES, Head, Mark, Segment};
use super::{FRESH, LogError, NEXT, RESERVE, io_error};
use crate::disk::Disk;
use crate::rules::{Rule, breaks};
use crate::view::Position;
use crate::view::{Epoch, Index};

/// The smallest piece that a power cut leaves whole or not at all, in bytes.
const LINE: usize = 64;

/// What the disk holds.
pub struct Found {
    /// Those that count, in order.
    pub segments: Vec<Segment>,
    /// Files that hold nothing that counts.
    pub superseded: Vec<PathBuf>,
    /// A fresh start that was staged and not finished.
    pub staged: Option<Head>,
    /// For the next segment.
    pub next_sequence: u64,
    /// Where each epoch begins.
    pub runs: Vec<(Epoch, Index)>,
    /// The highest commit index that a record carries.
    pub commit: Index,
    /// Bytes after the last record that are no zeros.
    pub torn_bytes: u64,
    /// What the newest segment is known to have synced.
    pub mark: Mark,
}

/// Reads everything; changes nothing.
pub fn recover(disk: &impl Disk, directory: &Path, durable_commit: Index) -> Result<Found, LogError> {
    let mut found = Found {
        segments: Vec::new(),
        superseded: Vec::new(),
        staged: None,
        next_sequence: 1,
        runs: Vec::new(),
        commit: Index(0),
        torn_bytes: 0,
        mark: Mark::default(),
    };
    let opened = open_all(disk, directory, &mut found)?;
    let mut counting = by_heads(opened, &mut found.superseded).into_iter().peekable();
    while let Some(mut segment) = counting.next() {
        match counting.peek() {
            Some(next) => scan_older(&mut segment, next, &mut found)?,
            None => scan_newest(&mut segment, durable_commit, &mut found)?,
        }
        found.segments.push(segment);
    }
    if found.segments.is_empty() && durable_commit > Index(0) && !breaks(Rule::TrustCommit) {
        let why = format!("there is no log, and entries up to {durable_commit} were committed here");
        return Err(LogError::Corrupt { path: directory.to_owned(), offset: 0, index: Index(1), why });
    }
    Ok(found)
}

fn open_all(disk: &impl Disk, directory: &Path, found: &mut Found) -> Result<Vec<Segment>, LogError> {
    let mut opened = Vec::new();
    for name in disk.list(directory).map_err(io_error(directory))? {
        let path = directory.join(&name);
        if name == NEXT || name == RESERVE {
            continue; // room that will be used again
        }
        let sequence = name.strip_suffix(".log").and_then(|number| number.parse::<u64>().ok());
        if sequence.is_none() && name != FRESH {
            continue; // not ours
        }
        let file = disk.open(&path, false).map_err(io_error(&path))?;
        let length = file.length().map_err(io_error(&path))?;
        let mut bytes = [0; 64];
        file.read_at(&mut bytes, 0).map_err(io_error(&path))?;
        let head = Head::decode(&bytes);
        let Some(sequence) = sequence else {
            // Its head is synced before it has this name, but not the name: the start may have been given up.
            found.staged = head.ok();
            continue;
        };
        found.next_sequence = found.next_sequence.max(sequence + 1);
        // A header is synced before the file gets its name: a bad one was good once.
        match head {
            Ok(head) if head.sequence == sequence && length >= HEAD_BYTES => {
                opened.push(Segment::new(head, file, path, length));
            }
            Err(BadHead::Format(version)) => return Err(LogError::Format { path, found: version }),
            Ok(_) | Err(BadHead::Damaged) => {
                let why = "the head of the file is not what was written".to_owned();
                return Err(LogError::Corrupt { path, offset: 0, index: Index(0), why });
            }
        }
    }
    opened.sort_by_key(|segment| segment.head.sequence);
    Ok(opened)
}

/// Those that count, in order.
fn by_heads(opened: Vec<Segment>, superseded: &mut Vec<PathBuf>) -> Vec<Segment> {
    let mut counting: Vec<Segment> = Vec::new();
    for segment in opened {
        let head = segment.head;
        if !breaks(Rule::SupersedeByHeads) {
            let gone = |old: &mut Segment| head.fresh || old.head.base.index >= head.base.index;
            superseded.extend(counting.extract_if(.., gone).map(|old| old.path));
        }
        counting.push(segment);
    }
    counting
}

/// Why reading stopped before the end of what the file holds.
struct Bad {
    /// In words.
    why: String,
    /// No power cut leaves it like that.
    damaged: bool,
}

/// Reads records, at most up to `until`. Answers with the bytes of the file and with why it stopped.
fn scan(segment: &mut Segment, until: Option<Index>, found: &mut Found) -> Result<(Bytes, Bad), LogError> {
    let mut bytes = vec![0; usize::try_from(segment.length).expect("a segment fits in memory")];
    let count = segment.file.read_at(&mut bytes, 0).map_err(io_error(&segment.path))?;
    bytes.truncate(count);
    let file = Bytes::from(bytes);
    let stop = |why: String, damaged: bool| Ok((file.clone(), Bad { why, damaged }));
    loop {
        let at = usize::try_from(segment.end).expect("a segment fits in memory").min(count);
        if until.is_some_and(|until| segment.last.index >= until) {
            return stop("it goes on".to_owned(), false);
        }
        let mut rest = file.slice(at..);
        let (record, chain) = match record::decode(&mut rest) {
            Ok(Some(found)) => found,
            // Records do not reach over the end of the file.
            Ok(None) => return stop("a record that is cut".to_owned(), !may_be_torn(&file, at)),
            Err(bad) => return stop(bad.to_string(), !may_be_torn(&file, at)),
        };
        let before = segment.last;
        let follows = record.index == before.index.next()
            && record.epoch >= before.epoch
            && (breaks(Rule::CheckChain) || record::chain_after(&record, before.chain) == chain);
        if !follows {
            // It was written as it is, so nothing was torn here.
            return stop(format!("a record that does not follow entry {}", before.index), true);
        }
        let position = Position { index: record.index, epoch: record.epoch, chain };
        segment.note(position, (count - rest.len() - at) as u64);
        found.commit = found.commit.max(record.commit);
        if found.runs.last().is_none_or(|(epoch, _)| *epoch < record.epoch) {
            found.runs.push((record.epoch, record.index));
        }
    }
}

/// A segment that another one follows: everything up to the other's base was synced.
fn scan_older(segment: &mut Segment, next: &Segment, found: &mut Found) -> Result<(), LogError> {
    let base = next.head.base;
    let (_, bad) = scan(segment, Some(base.index), found)?;
    if segment.last == base {
        return Ok(());
    }
    let why = format!(
        "{}; the next file continues entry {} of epoch {}, and this one ends at {} of epoch {}",
        bad.why, base.index, base.epoch, segment.last.index, segment.last.epoch
    );
    Err(corrupt(segment, why))
}

fn scan_newest(segment: &mut Segment, durable_commit: Index, found: &mut Found) -> Result<(), LogError> {
    let (file, bad) = scan(segment, None, found)?;
    let mark = Mark::read(&file);
    let end = usize::try_from(segment.end).expect("a segment fits in memory");
    let used = file[end.min(file.len())..].iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
    let last = segment.last.index;
    if last < durable_commit && !breaks(Rule::TrustCommit) {
        return Err(corrupt(
            segment,
            format!("{}, and entries up to {durable_commit} were committed here", bad.why),
        ));
    }
    if last < mark.durable && !breaks(Rule::TrustMark) {
        return Err(corrupt(
            segment,
            format!("{}, and entries up to {} were synced here", bad.why, mark.durable),
        ));
    }
    if used > 0 && bad.damaged && !breaks(Rule::TrustShape) {
        return Err(corrupt(segment, format!("{}, and no power cut leaves it like that", bad.why)));
    }
    if used > 0 && breaks(Rule::DoubtWhatFollows) && followed_by_valid(&file.slice(end..), last) {
        return Err(corrupt(segment, format!("{}, and valid records follow", bad.why)));
    }
    found.torn_bytes = used as u64;
    found.mark = mark;
    Ok(())
}

fn corrupt(segment: &Segment, why: String) -> LogError {
    let index = segment.last.index.next();
    LogError::Corrupt { path: segment.path.clone(), offset: segment.end, index, why }
}

/// Could the record that begins there have been left like this by a power cut or by a death while it was written?
fn may_be_torn(file: &[u8], at: usize) -> bool {
    let total = match record::measure(&file[at..]) {
        Ok(Some((_, total))) => total,
        Ok(None) | Err(_) => record::HEADER_BYTES,
    };
    let end = (at + total).min(file.len());
    let zeros = |from: usize, to: usize| file[from..to].iter().all(|byte| *byte == 0);
    let mut from = at;
    while from < end {
        let to = (from / LINE + 1) * LINE;
        if zeros(from, to.min(end)) {
            return true;
        }
        from = to;
    }
    at == file.len() || zeros(end - 1, file.len())
}

/// What made a torn tail look like damage before: is there a valid record of a later entry anywhere?
fn followed_by_valid(bytes: &Bytes, after: Index) -> bool {
    (1..bytes.len().saturating_sub(record::HEADER_BYTES)).any(
        |at| matches!(record::decode(&mut bytes.slice(at..)), Ok(Some((record, _))) if record.index > after),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;

    fn written(at: usize) -> (Vec<u8>, usize) {
        let mut record = BytesMut::new();
        let payload = Bytes::from(vec![7; 300]);
        let entry = record::Record {
            epoch: Epoch(0x0101_0101_0101_0101),
            index: Index(0x0101_0101_0101_0101),
            commit: Index(0x0101_0101_0101_0101),
            origin: u64::MAX,
            sequence: u64::MAX,
            payload,
        };
        record::encode(&mut record, &entry, 1);
        let mut file = vec![0; 1024];
        file[at..at + record.len()].copy_from_slice(&record);
        (file, record.len())
    }

    #[test]
    fn a_record_without_one_of_its_lines_or_without_its_end_may_be_torn() {
        for at in 0..LINE {
            let (whole, length) = written(at);
            for line in at / LINE..(at + length).div_ceil(LINE) {
                let mut file = whole.clone();
                file[(line * LINE).max(at)..((line + 1) * LINE).min(at + length)].fill(0);
                assert!(may_be_torn(&file, at), "line {line} of a record at {at}");
            }
            for end in at..at + length {
                let mut file = whole.clone();
                file[end..].fill(0);
                assert!(may_be_torn(&file, at), "a record at {at} that ends at {end}");
            }
        }
    }

    #[test]
    fn a_record_that_is_there_in_full_was_not_torn_whatever_bit_flipped() {
        for at in [0, 13, 40, 60] {
            let (whole, length) = written(at);
            let mut missed = 0;
            for bit in 0..length * 8 {
                let mut file = whole.clone();
                file[at + bit / 8] ^= 1 << (bit % 8);
                missed += usize::from(may_be_torn(&file, at));
            }
            assert_eq!(missed, 0, "a record at {at}");
        }
    }
}
