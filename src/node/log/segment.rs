//! One file of the log: a header that says what comes before its first record, a mark that says how much was synced,
//! then records, then zeros.
//!
//! The file is written full of zeros, and these are synced, before it is used. So appending changes no metadata and a
//! sync is one write to the disk; and what a power cut leaves of a record is the record with zeros in it, which
//! `recover` tells from damage.
//!
//! | bytes | what |
//! |---|---|
//! | 0..48 | [`Head`], written before the file gets its name |
//! | 512..532 | [`Mark`], written over after every sync, itself not synced |
//! | 4096.. | records |

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::{Disk, DiskFile};
use crate::rules::{Rule, breaks};
use crate::view::Position;
use crate::view::{Epoch, Index};

/// Where the records begin.
pub const HEAD_BYTES: u64 = 4096;
const MAGIC: &[u8; 8] = b"REPLLOG\n";
/// Version of header and records; another one is refused.
pub const FORMAT: u32 = 2;
const FIELDS: usize = 48;
const MARK_AT: usize = 512;
const MARK_BYTES: usize = 20;
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

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

impl Head {
    /// As it stands at the beginning of the file.
    #[must_use]
    pub fn encode(&self) -> [u8; FIELDS] {
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
        // Another program may check it in another way: its version comes first.
        if u32_at(bytes, 8) != FORMAT {
            return Err(BadHead::Format(u32_at(bytes, 8)));
        }
        if crc32c::crc32c(&bytes[..44]) != u32_at(bytes, 44) {
            return Err(BadHead::Damaged);
        }
        let base = Position {
            index: Index(u64_at(bytes, 24)),
            epoch: Epoch(u64_at(bytes, 32)),
            chain: u32_at(bytes, 40),
        };
        Ok(Head { sequence: u64_at(bytes, 16), base, fresh: u32_at(bytes, 12) != 0 })
    }
}

/// Proof that the segment was synced up to a place: written after that sync. One that is missing, torn or damaged
/// proves nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mark {
    /// The last entry that was synced.
    pub durable: Index,
    /// Where its record ends.
    pub end: u64,
}

impl Mark {
    fn encode(self) -> [u8; MARK_BYTES] {
        let mut bytes = [0; MARK_BYTES];
        bytes[4..12].copy_from_slice(&self.durable.0.to_le_bytes());
        bytes[12..].copy_from_slice(&self.end.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[4..]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The mark in a file that begins with these bytes.
    #[must_use]
    pub fn read(file: &[u8]) -> Mark {
        match file.get(MARK_AT..MARK_AT + MARK_BYTES) {
            Some(bytes) if crc32c::crc32c(&bytes[4..]) == u32_at(bytes, 0) => {
                Mark { durable: Index(u64_at(bytes, 4)), end: u64_at(bytes, 12) }
            }
            Some(_) | None => Mark::default(),
        }
    }

    /// Writes it over the one before, without a sync.
    ///
    /// # Errors
    /// From the disk.
    pub fn write(self, file: &dyn DiskFile) -> io::Result<()> {
        file.write_at(&self.encode(), MARK_AT as u64)
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
        self.length.saturating_sub(self.end)
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

/// A file of zeros, synced, under a name that counts for nothing, with room on the disk for all of it. One that is
/// there already is written over: on a full disk that needs no room. A new one is written in full only where `written`;
/// otherwise its zeros are the file system's, which is quick, and the first records cost it more.
///
/// # Errors
/// From the disk.
pub fn prepare(
    disk: &impl Disk,
    path: &Path,
    length: u64,
    written: bool,
) -> io::Result<(Arc<dyn DiskFile>, u64)> {
    let (file, new) = match disk.open(path, false) {
        Ok(file) => (file, false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (disk.open(path, true)?, true),
        Err(error) => return Err(error),
    };
    let length = length.max(file.length()?);
    if !breaks(Rule::AllocateSpares) {
        file.allocate(length, true)?;
    }
    if written || !new {
        write_zeros(&*file, length)?;
    }
    if !breaks(Rule::SyncBeforeRename) {
        file.sync()?;
    }
    Ok((file, length))
}

fn write_zeros(file: &dyn DiskFile, length: u64) -> io::Result<()> {
    let zeros = vec![0; usize::try_from(length.min(1 << 20)).expect("at most 1 MiB")];
    let mut at = 0;
    while at < length {
        let count = (length - at).min(zeros.len() as u64);
        file.write_at(&zeros[..usize::try_from(count).expect("at most 1 MiB")], at)?;
        at += count;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_flipped_bit_makes_another_head_or_mark() {
        let head =
            Head { sequence: 7, base: Position { index: Index(3), epoch: Epoch(2), chain: 99 }, fresh: true };
        let mark = Mark { durable: Index(9), end: 5000 };
        let mut page = vec![0; 4096];
        page[..FIELDS].copy_from_slice(&head.encode());
        page[MARK_AT..MARK_AT + MARK_BYTES].copy_from_slice(&mark.encode());
        assert_eq!((Head::decode(&page), Mark::read(&page)), (Ok(head), mark));
        for bit in 0..8 * FIELDS {
            let mut page = page.clone();
            page[bit / 8] ^= 1 << (bit % 8);
            assert!(Head::decode(&page).is_err(), "bit {bit}");
        }
        for bit in 0..8 * MARK_BYTES {
            let mut page = page.clone();
            page[MARK_AT + bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Mark::read(&page), Mark::default(), "bit {bit}");
        }
        assert_eq!(Mark::read(&[0; 4096]), Mark::default());
    }
}
