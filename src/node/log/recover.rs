//! Reading the log after a restart: which segments count, where the log ends, and whether it can be trusted (R23).

use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::record::{self, Position};
use super::segment::{BadHead, HEAD_BYTES, Head, Segment};
use super::{LogError, io_error, supersede};
use crate::node::disk::Disk;
use crate::view::{Epoch, Index};

/// What the disk holds.
pub struct Found {
    /// Those that count, in order.
    pub segments: Vec<Segment>,
    /// Files that hold nothing that counts.
    pub superseded: Vec<PathBuf>,
    /// For the next segment.
    pub next_sequence: u64,
    /// Where each epoch begins.
    pub runs: Vec<(Epoch, Index)>,
    /// The highest commit index that a record carries.
    pub commit: Index,
    /// Bytes after the last record that are no zeros.
    pub torn_bytes: u64,
}

/// Reads everything; changes nothing.
pub fn recover(disk: &impl Disk, directory: &Path, durable_commit: Index) -> Result<Found, LogError> {
    let mut found = Found {
        segments: Vec::new(),
        superseded: Vec::new(),
        next_sequence: 1,
        runs: Vec::new(),
        commit: Index(0),
        torn_bytes: 0,
    };
    let mut opened = open_all(disk, directory, &mut found)?;
    opened.sort_by_key(|segment| segment.head.sequence);
    let mut marks: Vec<(Position, Index)> = Vec::new();
    let count = opened.len();
    for (number, mut segment) in opened.into_iter().enumerate() {
        let head = segment.head;
        let superseded = supersede(&mut found.segments, &head).map_err(io_error(&segment.path))?;
        found.superseded.extend(superseded);
        connect(&found.segments, &segment)?;
        if head.fresh {
            marks.clear();
        }
        marks.retain(|(position, _)| position.index <= head.base.index);
        let scanned = scan(&mut segment, &mut marks)?;
        let known = marks.iter().map(|(_, commit)| *commit).max().unwrap_or_default().max(durable_commit);
        if let Some(bad) = scanned.bad {
            judge(&segment, bad, number + 1 == count, known, &mut found)?;
        }
        found.segments.push(segment);
    }
    found.commit = marks.iter().map(|(_, commit)| *commit).max().unwrap_or_default();
    let last = found.segments.last().map_or(Index(0), |segment| segment.last.index);
    let wanted = durable_commit.max(found.commit);
    if let Some(segment) = found.segments.last().filter(|_| last < wanted) {
        return Err(LogError::Corrupt {
            path: segment.path.clone(),
            offset: segment.end,
            index: last.next(),
            why: format!("the log ends, and entries up to {wanted} were committed here"),
        });
    }
    for (position, _) in marks {
        if found.runs.last().is_none_or(|(epoch, _)| *epoch != position.epoch) {
            found.runs.push((position.epoch, position.index));
        }
    }
    Ok(found)
}

fn open_all(disk: &impl Disk, directory: &Path, found: &mut Found) -> Result<Vec<Segment>, LogError> {
    let mut opened = Vec::new();
    for name in disk.list(directory).map_err(io_error(directory))? {
        let path = directory.join(&name);
        let Some(sequence) = name.strip_suffix(".log").and_then(|number| number.parse::<u64>().ok()) else {
            found.superseded.push(path); // a file that was being prepared
            continue;
        };
        found.next_sequence = found.next_sequence.max(sequence + 1);
        let file = disk.open(&path, false).map_err(io_error(&path))?;
        let length = file.length().map_err(io_error(&path))?;
        let mut bytes = vec![0; 64];
        file.read_at(&mut bytes, 0).map_err(io_error(&path))?;
        // A header is synced before the file gets its name: a bad one was good once.
        match Head::decode(&bytes) {
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
    Ok(opened)
}

/// A segment must begin where the ones before it end.
fn connect(before: &[Segment], segment: &Segment) -> Result<(), LogError> {
    let Some(last) = before.last().map(|segment| segment.last) else { return Ok(()) };
    if last == segment.head.base {
        return Ok(());
    }
    let base = segment.head.base;
    Err(LogError::Corrupt {
        path: segment.path.clone(),
        offset: 0,
        index: last.index.next(),
        why: format!(
            "the file continues entry {} of epoch {}, the one before it ends at {} of epoch {}",
            base.index, base.epoch, last.index, last.epoch
        ),
    })
}

struct Scanned {
    bad: Option<Bad>,
}

struct Bad {
    why: String,
    /// Bytes from the bad place to the last byte that is not zero.
    bytes: u64,
    /// Something valid follows.
    followed: bool,
}

/// Reads the records of one segment up to its end or to something that is no record.
fn scan(segment: &mut Segment, marks: &mut Vec<(Position, Index)>) -> Result<Scanned, LogError> {
    let mut bytes = vec![0; usize::try_from(segment.length).expect("a segment fits in memory")];
    let count = segment.file.read_at(&mut bytes, 0).map_err(io_error(&segment.path))?;
    bytes.truncate(count);
    let whole = Bytes::from(bytes);
    let mut rest = whole.slice(usize::try_from(HEAD_BYTES).expect("small").min(count)..);
    let why = loop {
        let before = segment.last;
        let length = rest.len();
        let mut next = rest.clone();
        match record::decode(&mut next) {
            Ok(Some((record, chain))) => {
                let expected = before.index.next();
                if record.index != expected
                    || record::chain_after(&record, before.chain) != chain
                    || record.epoch < before.epoch
                {
                    break format!("a record that does not follow entry {}", before.index);
                }
                let position = Position { index: record.index, epoch: record.epoch, chain };
                segment.note(position, (length - next.len()) as u64);
                marks.push((position, record.commit));
                rest = next;
            }
            Ok(None) => break "a record that is cut".to_owned(),
            Err(bad) => break bad.to_string(),
        }
    };
    let used = rest.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
    if used == 0 {
        return Ok(Scanned { bad: None });
    }
    let followed = followed_by_valid(&rest.slice(..), segment.last.index);
    Ok(Scanned { bad: Some(Bad { why, bytes: used as u64, followed }) })
}

/// Is there a valid record of a later entry anywhere after the first byte?
fn followed_by_valid(bytes: &Bytes, after: Index) -> bool {
    (1..bytes.len().saturating_sub(record::HEADER_BYTES)).any(|at| {
        if bytes[at..at + record::HEADER_BYTES].iter().all(|byte| *byte == 0) {
            return false;
        }
        let index = record::index_of(&bytes[at..]);
        index > after
            && index.0 - after.0 < bytes.len() as u64
            && matches!(record::decode(&mut bytes.slice(at..)), Ok(Some(_)))
    })
}

/// Torn, or corrupt?
fn judge(
    segment: &Segment,
    bad: Bad,
    newest: bool,
    commit: Index,
    found: &mut Found,
) -> Result<(), LogError> {
    let index = segment.last.index.next();
    let corrupt =
        |why: String| Err(LogError::Corrupt { path: segment.path.clone(), offset: segment.end, index, why });
    if !newest {
        // What lies after the next segment's base was cut deliberately; `connect` sees whether enough is left.
        return Ok(());
    }
    if bad.followed {
        return corrupt(format!("{}, and valid records follow it", bad.why));
    }
    if index <= commit {
        return corrupt(format!("{}, and entries up to {commit} were committed here", bad.why));
    }
    found.torn_bytes = bad.bytes;
    Ok(())
}
