//! One file of the log: a header that says what comes before its first record, then records, then zeros.
//!
//! The file is written full of zeros before it is used, so that appending changes no metadata and a sync is one write
//! to the disk.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::record::Position;
use crate::node::disk::{Disk, DiskFile};
use crate::view::{Epoch, Index};

/// Where the records begin.
pub const HEAD_BYTES: u64 = 4096;
const MAGIC: &[u8; 8] = b"REPLLOG\n";
/// Version of header and records; another one is refused.
pub const FORMAT: u32 = 1;
const FIELDS: usize = 48;
/// A place is remembered about every so many bytes, so that finding an entry reads little.
const SPARSE_BYTES: u64 = 64 << 10;

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Numbers the segments in the order of their making. A segment supersedes everything that older ones hold after
    /// its base.
    pub sequence: u64,
    /// What comes before the first record.
    pub base: Position,
    /// Supersedes older segments whole: the log starts anew after `base`.
    pub fresh: bool,
}

/// Why a header cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub enum BadHead {
    /// It is not one, or not whole.
    Damaged,
    /// Another program's.
    Format(u32),
}

impl Head {
    fn encode(&self) -> [u8; FIELDS] {
        let mut bytes = [0; FIELDS];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[12..16].copy_from_slice(&u32::from(self.fresh).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.base.index.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.base.epoch.0.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.base.chain.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..44]);
        bytes[44..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`BadHead`].
    pub fn decode(bytes: &[u8]) -> Result<Head, BadHead> {
        if bytes.len() < FIELDS || bytes[..8] != MAGIC[..] {
            return Err(BadHead::Damaged);
        }
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        if u32_at(8) != FORMAT {
            return Err(BadHead::Format(u32_at(8)));
        }
        if crc32c::crc32c(&bytes[..44]) != u32_at(44) {
            return Err(BadHead::Damaged);
        }
        let base = Position { index: Index(u64_at(24)), epoch: Epoch(u64_at(32)), chain: u32_at(40) };
        Ok(Head { sequence: u64_at(16), base, fresh: u32_at(12) != 0 })
    }
}

/// An open segment.
#[derive(Clone)]
pub struct Segment {
    /// What its header says.
    pub head: Head,
    /// Its file.
    pub file: Arc<dyn DiskFile>,
    /// Where it is.
    pub path: PathBuf,
    /// Bytes of the file.
    pub length: u64,
    /// End of the records that count.
    pub end: u64,
    /// The last record that counts; `head.base` while there is none.
    pub last: Position,
    sparse: Vec<(Index, u64)>,
}

impl Segment {
    /// A segment just opened or made, without records.
    #[must_use]
    pub fn new(head: Head, file: Arc<dyn DiskFile>, path: PathBuf, length: u64) -> Segment {
        Segment { head, file, path, length, end: HEAD_BYTES, last: head.base, sparse: Vec::new() }
    }

    /// Bytes that fit.
    #[must_use]
    pub fn room(&self) -> u64 {
        self.length - self.end
    }

    /// A record of this index begins at `end` and has this many bytes.
    pub fn note(&mut self, position: Position, bytes: u64) {
        if self.sparse.last().is_none_or(|(_, at)| self.end - at >= SPARSE_BYTES) {
            self.sparse.push((position.index, self.end));
        }
        self.end += bytes;
        self.last = position;
    }

    /// A place at or before the record of this index.
    #[must_use]
    pub fn near(&self, index: Index) -> u64 {
        let after = self.sparse.partition_point(|(first, _)| *first <= index);
        after.checked_sub(1).map_or(HEAD_BYTES, |at| self.sparse[at].1)
    }

    /// What counts ends here from now on.
    pub fn cut(&mut self, end: u64, last: Position) {
        self.end = end;
        self.last = last;
        self.sparse.retain(|(_, at)| *at < end);
    }
}

/// The name of the segment with this number.
#[must_use]
pub fn name(sequence: u64) -> String {
    format!("{sequence:020}.log")
}

/// A file full of zeros, synced, under a name that counts for nothing.
///
/// # Errors
/// From the disk.
pub fn prepare(disk: &impl Disk, path: &Path, length: u64) -> io::Result<Arc<dyn DiskFile>> {
    let file = disk.open(path, true)?;
    let zeros = vec![0; 1 << 20];
    let mut at = 0;
    while at < length {
        let count = (length - at).min(zeros.len() as u64);
        file.write_at(&zeros[..usize::try_from(count).expect("at most 1 MiB")], at)?;
        at += count;
    }
    file.sync()?;
    Ok(file)
}

/// Turns a prepared file into a segment, durably.
///
/// # Errors
/// From the disk.
pub fn begin(
    disk: &impl Disk,
    directory: &Path,
    prepared: (&Path, Arc<dyn DiskFile>),
    head: Head,
) -> io::Result<Segment> {
    let (from, file) = prepared;
    file.write_at(&head.encode(), 0)?;
    file.sync()?;
    let path = directory.join(name(head.sequence));
    disk.rename(from, &path)?;
    disk.sync_directory(directory)?;
    let length = file.length()?;
    Ok(Segment::new(head, file, path, length))
}
