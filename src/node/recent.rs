//! The newest entries in memory, shared between the driver, which appends and applies them, and the links, which send
//! them; what is older is read from the log. Uncommitted entries are always here.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use super::log::{LogError, LogReader, Position, Room, Space, decode};
use crate::view::Index;

/// Committed entries are kept up to this many bytes, so that followers and the driver need not read the disk.
const KEEP_BYTES_MAX: usize = 16 << 20;

struct Batch {
    first: Index,
    last: Position,
    frames: Bytes,
}

#[derive(Default)]
struct Tail {
    batches: VecDeque<Batch>,
    bytes: usize,
}

impl Tail {
    fn evict(&mut self, below: Index) {
        while self.bytes > KEEP_BYTES_MAX
            && self.batches.front().is_some_and(|batch| batch.last.index < below)
        {
            let gone = self.batches.pop_front().expect("looked at just now");
            self.bytes -= gone.frames.len();
        }
    }
}

/// Where entries are read: memory first, then the log on disk.
pub struct Recent {
    tail: Mutex<Tail>,
    log: LogReader,
}

/// Some consecutive entries as they stand in the log.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// Whole record frames; the first has the index asked for.
    pub frames: Bytes,
    /// The last of them.
    pub last: Position,
}

impl Recent {
    /// Nothing in memory yet.
    #[must_use]
    pub fn new(log: LogReader) -> Recent {
        Recent { tail: Mutex::default(), log }
    }

    fn tail(&self) -> std::sync::MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Entries that follow what is here; committed ones beyond the bound leave.
    pub fn push(&self, first: Index, frames: Bytes, last: Position, commit: Index) {
        let mut tail = self.tail();
        if tail.batches.back().is_some_and(|batch| batch.last.index.next() != first) {
            *tail = Tail::default();
        }
        tail.bytes += frames.len();
        tail.batches.push_back(Batch { first, last, frames });
        tail.evict(commit);
    }

    /// Lets go of what was applied, beyond the bound.
    pub fn applied(&self, index: Index) {
        self.tail().evict(index);
    }

    /// Cuts what lies after `index`.
    pub fn truncate(&self, index: Index) {
        let mut tail = self.tail();
        while let Some(batch) = tail.batches.back()
            && batch.last.index > index
        {
            let batch = tail.batches.pop_back().expect("looked at just now");
            tail.bytes -= batch.frames.len();
            if batch.first <= index
                && let Some((frames, last)) = cut(&batch.frames, batch.first, index)
            {
                tail.bytes += frames.len();
                tail.batches.push_back(Batch { first: batch.first, last, frames });
            }
        }
    }

    /// How much is in memory: what is uncommitted, and up to a bound what is not.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.tail().bytes
    }

    /// Forgets everything: the log was replaced.
    pub fn clear(&self) {
        *self.tail() = Tail::default();
    }

    /// Entries from `first` on, at least one where there is one, else at most `bytes_max`.
    ///
    /// # Errors
    /// What reading the log says; [`LogError::Gone`] where the entry was dropped.
    pub fn read(&self, first: Index, bytes_max: usize) -> Result<Option<Chunk>, LogError> {
        if let Some(chunk) = self.read_memory(first, bytes_max) {
            return Ok(Some(chunk));
        }
        let (frames, last) = match self.log.read(first, bytes_max)? {
            Some(read) => read,
            None => return Ok(None),
        };
        Ok(Some(Chunk { frames, last }))
    }

    /// As [`Recent::read`], from memory only.
    #[must_use]
    pub fn read_memory(&self, first: Index, bytes_max: usize) -> Option<Chunk> {
        let tail = self.tail();
        let at = tail.batches.partition_point(|batch| batch.last.index < first);
        let batch = tail.batches.get(at).filter(|batch| batch.first <= first)?;
        let frames = skip(&batch.frames, batch.first, first);
        if frames.len() <= bytes_max {
            return Some(Chunk { frames, last: batch.last });
        }
        let (mut rest, mut last, mut length) = (frames.clone(), None, 0);
        while let Ok(Some((record, chain))) = decode(&mut rest) {
            let end = frames.len() - rest.len();
            if last.is_some() && end > bytes_max {
                break;
            }
            last = Some(Position { index: record.index, epoch: record.epoch, chain });
            length = end;
        }
        last.map(|last| Chunk { frames: frames.slice(..length), last })
    }

    /// What the log and its file system can still take.
    ///
    /// # Errors
    /// Where the file system does not say.
    pub fn room(&self) -> Result<Room, LogError> {
        self.log.room()
    }

    /// How the log stands with its room, as of its last write; asks nothing of the system.
    #[must_use]
    pub fn space(&self) -> Space {
        self.log.space()
    }

    /// Size of the log on disk, in bytes.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.log.disk_bytes()
    }

    /// Index, epoch and running checksum at `index`, where it is held.
    #[must_use]
    pub fn position(&self, index: Index) -> Option<Position> {
        let chunk = self.read(index, 1).ok().flatten()?;
        (chunk.last.index == index).then_some(chunk.last)
    }
}

/// The frames from `index` on.
fn skip(frames: &Bytes, first: Index, index: Index) -> Bytes {
    let mut rest = frames.clone();
    for _ in first.0..index.0 {
        decode(&mut rest).expect("own records are sound").expect("own records are whole");
    }
    rest
}

/// The frames up to and including `index`.
fn cut(frames: &Bytes, first: Index, index: Index) -> Option<(Bytes, Position)> {
    let mut rest = frames.clone();
    let mut last = None;
    for _ in first.0..=index.0 {
        let (record, chain) = decode(&mut rest).ok().flatten()?;
        last = Some(Position { index: record.index, epoch: record.epoch, chain });
    }
    Some((frames.slice(..frames.len() - rest.len()), last?))
}
