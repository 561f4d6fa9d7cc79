//! The log on disk: segmented, checksummed, written by one thread and read by many.
//!
//! Nothing is ever rewritten in place. A segment says in its header what comes before its first record, and supersedes
//! whatever older segments hold after that. So rolling over to a new file, cutting an uncommitted tail (R14), cutting a
//! torn one, and starting anew after a snapshot are one operation, atomic because it is one rename: begin a segment.
//! Segments that are wholly superseded are removed afterwards.
//!
//! Recovery reads segments in the order of their making. A bad record in the newest is a torn tail if nothing valid
//! follows it and it lies above the durable commit mark; everywhere else it is corruption, and the log is refused (R23).

mod record;
mod recover;
mod segment;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc};

use bytes::{Bytes, BytesMut};

pub use record::{BadRecord, PAYLOAD_MAX, Position, Record, decode, encode};
use segment::{HEAD_BYTES, Head, Segment};

use super::disk::{Disk, DiskFile, RealDisk};
use crate::view::{Epoch, Index};

/// How big the files are.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Records that fit into a segment that must be there at once, in bytes: small, so that a node starts quickly.
    pub first_segment_bytes: u64,
    /// Records that fit into all other segments, in bytes.
    pub segment_bytes: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options { first_segment_bytes: 4 << 20, segment_bytes: 32 << 20 }
    }
}

/// A file being prepared; worthless until it is renamed.
const PREPARED: &str = "next.tmp";

/// The log cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The disk refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A record that was once durable is not what it was (R23).
    #[error("the log is damaged: {} at byte {offset}, where entry {index} should be: {why}\nnothing was changed; move the node's data directory away to let it join anew from its peers, unless it is the last in-sync copy", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// The entry that should be there.
        index: Index,
        /// In words.
        why: String,
    },
    /// Another program wrote it.
    #[error("{} has format version {found}, this program knows {}: use a program at least as new as the one that wrote it", path.display(), segment::FORMAT)]
    Format {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: u32,
    },
    /// What is to be appended does not continue the log (R14).
    #[error("entry {index} does not continue the log: {why}")]
    Diverged {
        /// The entry.
        index: Index,
        /// In words.
        why: String,
    },
    /// The entry was dropped long ago.
    #[error("entry {wanted} is no longer in the log, which begins after {base}")]
    Gone {
        /// The entry.
        wanted: Index,
        /// What comes before the first entry.
        base: Index,
    },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> LogError + use<> {
    let path = path.to_owned();
    move |source| LogError::Io { path, source }
}

/// What was found at opening.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// What comes before the first record.
    pub base: Position,
    /// The last record.
    pub last: Position,
    /// Where each epoch begins.
    pub runs: Vec<(Epoch, Index)>,
    /// The highest commit index that any record carries.
    pub commit: Index,
    /// Bytes of a torn tail that were left behind.
    pub torn_bytes: u64,
}

#[derive(Default)]
struct Map {
    /// By the order of their making, which is the order of their entries.
    segments: Vec<Segment>,
}

impl Map {
    fn base(&self) -> Position {
        self.segments.first().map_or(Position::default(), |segment| segment.head.base)
    }

    fn last(&self) -> Position {
        self.segments.last().map_or(Position::default(), |segment| segment.last)
    }
}

/// The writing side. See the head of the module.
pub struct Log<D: Disk = RealDisk> {
    disk: D,
    directory: PathBuf,
    options: Options,
    map: Arc<RwLock<Map>>,
    next_sequence: u64,
    dirty: bool,
    /// The next file, while a thread fills it with zeros.
    preparing: Option<mpsc::Receiver<io::Result<Arc<dyn DiskFile>>>>,
}

/// The reading side; sees everything that was appended, synced or not.
#[derive(Clone)]
pub struct LogReader {
    map: Arc<RwLock<Map>>,
}

fn read_map(map: &RwLock<Map>) -> RwLockReadGuard<'_, Map> {
    map.read().unwrap_or_else(PoisonError::into_inner)
}

fn write_map(map: &RwLock<Map>) -> RwLockWriteGuard<'_, Map> {
    map.write().unwrap_or_else(PoisonError::into_inner)
}

impl<D: Disk> Log<D> {
    /// Opens the log in a directory, or makes an empty one. What was recovered is on the disk when this returns (R22).
    /// `durable_commit` is the commit index known from elsewhere: no bad record at or below it is a torn tail.
    ///
    /// # Errors
    /// [`LogError`]; nothing was changed.
    pub fn open(disk: D, directory: &Path, durable_commit: Index) -> Result<(Log<D>, Recovered), LogError> {
        Log::open_with(disk, directory, durable_commit, Options::default())
    }

    /// [`Log::open`] with files of other sizes.
    ///
    /// # Errors
    /// As for [`Log::open`].
    pub fn open_with(
        disk: D,
        directory: &Path,
        durable_commit: Index,
        options: Options,
    ) -> Result<(Log<D>, Recovered), LogError> {
        disk.make_directory(directory).map_err(io_error(directory))?;
        let found = recover::recover(&disk, directory, durable_commit)?;
        let mut log = Log {
            disk,
            directory: directory.to_owned(),
            options,
            map: Arc::new(RwLock::new(Map { segments: found.segments })),
            next_sequence: found.next_sequence,
            dirty: false,
            preparing: None,
        };
        for superseded in found.superseded {
            log.disk.remove(&superseded).map_err(io_error(&superseded))?;
        }
        // What we found may only be in the kernel's memory; nothing is advertised before it is on the disk.
        if let Some(segment) = read_map(&log.map).segments.last() {
            segment.file.sync().map_err(io_error(&segment.path))?;
        }
        if log.is_new() || found.torn_bytes > 0 {
            let base = log.last();
            log.begin(
                Head { sequence: log.next_sequence, base, fresh: false },
                log.options.first_segment_bytes,
            )?;
        }
        log.disk.sync_directory(directory).map_err(io_error(directory))?;
        let recovered = Recovered {
            base: log.base(),
            last: log.last(),
            runs: found.runs,
            commit: found.commit,
            torn_bytes: found.torn_bytes,
        };
        Ok((log, recovered))
    }

    fn is_new(&self) -> bool {
        read_map(&self.map).segments.is_empty()
    }

    /// What comes before the first record.
    #[must_use]
    pub fn base(&self) -> Position {
        read_map(&self.map).base()
    }

    /// The last record, synced or not.
    #[must_use]
    pub fn last(&self) -> Position {
        read_map(&self.map).last()
    }

    /// Index, epoch and running checksum at `index`, where the log holds it or starts after it.
    #[must_use]
    pub fn position(&self, index: Index) -> Option<Position> {
        self.reader().position(index)
    }

    /// For other threads.
    #[must_use]
    pub fn reader(&self) -> LogReader {
        LogReader { map: self.map.clone() }
    }

    /// Bytes of all segments.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.reader().disk_bytes()
    }

    /// Appends whole records that continue the log; `last` is the last of them. They are durable after [`Log::sync`].
    ///
    /// # Errors
    /// [`LogError::Diverged`] where they do not continue the log, nothing was written; [`LogError::Io`].
    pub fn append(&mut self, frames: &Bytes, last: Position) -> Result<(), LogError> {
        let records = self.check(frames, last)?;
        if read_map(&self.map).segments.last().is_none_or(|segment| segment.room() < frames.len() as u64) {
            self.sync()?;
            let base = self.last();
            let bytes = self.options.segment_bytes.max(frames.len() as u64);
            self.begin(Head { sequence: self.next_sequence, base, fresh: false }, bytes)?;
        }
        let (file, path, end, length) = {
            let map = read_map(&self.map);
            let segment = map.segments.last().expect("one was begun at least");
            (segment.file.clone(), segment.path.clone(), segment.end, segment.length)
        };
        file.write_at(frames, end).map_err(io_error(&path))?;
        self.dirty = true;
        {
            let mut map = write_map(&self.map);
            let segment = map.segments.last_mut().expect("looked at just now");
            for (position, bytes) in records {
                segment.note(position, bytes);
            }
        }
        if end > length / 2 {
            self.prepare_next();
        }
        Ok(())
    }

    /// Do these records continue the log? Their positions and lengths.
    fn check(&self, frames: &Bytes, last: Position) -> Result<Vec<(Position, u64)>, LogError> {
        let mut before = self.last();
        let mut rest = frames.clone();
        let mut records = Vec::new();
        let diverged = |index, why: String| Err(LogError::Diverged { index, why });
        while !rest.is_empty() {
            let length = rest.len();
            let (record, chain) = match decode(&mut rest) {
                Ok(Some(found)) => found,
                Ok(None) => return diverged(before.index.next(), "it is cut".to_owned()),
                Err(bad) => return diverged(before.index.next(), bad.to_string()),
            };
            if record.index != before.index.next() || record.epoch < before.epoch {
                return diverged(
                    record.index,
                    format!("it follows {} of epoch {}", before.index, before.epoch),
                );
            }
            let expected = record::chain_after(&record, before.chain);
            if chain != expected {
                let why = format!("the running checksum is {expected:08x} here and {chain:08x} there");
                return diverged(record.index, why);
            }
            before = Position { index: record.index, epoch: record.epoch, chain };
            records.push((before, (length - rest.len()) as u64));
        }
        if before != last {
            return diverged(last.index, format!("the records end at {}", before.index));
        }
        Ok(records)
    }

    /// Everything appended is on the disk; answers with the last entry.
    ///
    /// # Errors
    /// [`LogError::Io`]; what is on the disk is unknown then, and the process must end (R21).
    pub fn sync(&mut self) -> Result<Index, LogError> {
        let (file, path, last) = {
            let map = read_map(&self.map);
            let Some(segment) = map.segments.last() else { return Ok(Index(0)) };
            (segment.file.clone(), segment.path.clone(), segment.last.index)
        };
        if self.dirty {
            file.sync().map_err(io_error(&path))?;
            self.dirty = false;
        }
        Ok(last)
    }

    /// Cuts the log after `index`, durably.
    ///
    /// # Errors
    /// [`LogError::Gone`] where the log begins later; [`LogError::Io`].
    pub fn truncate_after(&mut self, index: Index) -> Result<(), LogError> {
        if index >= self.last().index {
            return Ok(());
        }
        self.sync()?;
        let base = self.position(index).ok_or(LogError::Gone { wanted: index, base: self.base().index })?;
        self.begin(
            Head { sequence: self.next_sequence, base, fresh: false },
            self.options.first_segment_bytes,
        )
    }

    /// An empty log that continues after `base`, durably: what was before is in a snapshot.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn reset(&mut self, base: Position) -> Result<(), LogError> {
        self.sync()?;
        self.begin(Head { sequence: self.next_sequence, base, fresh: true }, self.options.first_segment_bytes)
    }

    /// Removes segments that hold nothing from `index` on.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn drop_before(&mut self, index: Index) -> Result<(), LogError> {
        let removed: Vec<PathBuf> = {
            let mut map = write_map(&self.map);
            let keep_from =
                map.segments.windows(2).take_while(|pair| pair[1].head.base.index < index).count();
            map.segments.drain(..keep_from).map(|segment| segment.path).collect()
        };
        // Oldest first: what is left after a crash is still without a gap.
        for path in &removed {
            self.disk.remove(path).map_err(io_error(path))?;
        }
        if !removed.is_empty() {
            self.disk.sync_directory(&self.directory).map_err(io_error(&self.directory))?;
        }
        Ok(())
    }

    /// Begins a segment with room for so many bytes; what it supersedes is removed.
    fn begin(&mut self, head: Head, bytes: u64) -> Result<(), LogError> {
        let bytes = HEAD_BYTES + bytes;
        let path = self.directory.join(PREPARED);
        self.disk.hurry_background();
        let prepared = match self.preparing.take().and_then(|ready| ready.recv().ok()) {
            Some(file) => Some(file.map_err(io_error(&path))?),
            None => None,
        };
        let file = match prepared {
            Some(file) if file.length().map_err(io_error(&path))? >= bytes => file,
            Some(_) | None => segment::prepare(&self.disk, &path, bytes).map_err(io_error(&path))?,
        };
        let segment =
            segment::begin(&self.disk, &self.directory, (&path, file), head).map_err(io_error(&path))?;
        self.next_sequence = head.sequence + 1;
        let superseded = {
            let mut map = write_map(&self.map);
            let superseded = supersede(&mut map.segments, &head).map_err(io_error(&segment.path))?;
            map.segments.push(segment);
            superseded
        };
        for path in superseded {
            self.disk.remove(&path).map_err(io_error(&path))?;
        }
        Ok(())
    }

    /// Fills the next file with zeros before it is needed.
    fn prepare_next(&mut self) {
        if self.preparing.is_none() {
            let (tell, ready) = mpsc::sync_channel(1);
            let (disk, path) = (self.disk.clone(), self.directory.join(PREPARED));
            let bytes = HEAD_BYTES + self.options.segment_bytes;
            self.disk.in_background(Box::new(move || {
                let _ = tell.send(segment::prepare(&disk, &path, bytes));
            }));
            // Where the job is dropped, the file is made when it is needed.
            self.preparing = Some(ready);
        }
    }
}

/// Applies a new segment's header to the older ones: cuts what lies after its base. Answers with those that hold
/// nothing any more.
fn supersede(segments: &mut Vec<Segment>, head: &Head) -> io::Result<Vec<PathBuf>> {
    let mut superseded = Vec::new();
    let mut kept = Vec::new();
    for mut segment in segments.drain(..) {
        let base = segment.head.base.index;
        if head.fresh || base >= head.base.index {
            superseded.push(segment.path);
        } else {
            if segment.last.index > head.base.index {
                let (end, last) = find_end(&segment, head.base.index)?;
                segment.cut(end, last);
            }
            kept.push(segment);
        }
    }
    *segments = kept;
    Ok(superseded)
}

/// Where the record of this index ends in its segment, and its position.
fn find_end(segment: &Segment, index: Index) -> io::Result<(u64, Position)> {
    let mut at = segment.near(index);
    loop {
        let record = read_record(segment, at)?;
        let mut bytes = record.clone();
        let (found, chain) = decode(&mut bytes)
            .ok()
            .flatten()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("no record at byte {at}")))?;
        at += record.len() as u64;
        if found.index == index {
            return Ok((at, Position { index, epoch: found.epoch, chain }));
        }
    }
}

fn read_record(segment: &Segment, at: u64) -> io::Result<Bytes> {
    let mut head = [0_u8; record::HEADER_BYTES];
    segment.file.read_at(&mut head, at)?;
    let bad = |why: String| io::Error::new(io::ErrorKind::InvalidData, format!("byte {at}: {why}"));
    let (_, total) = record::measure(&head).map_err(|error| bad(error.to_string()))?.expect("a whole header");
    let mut bytes = vec![0; total];
    if at + total as u64 > segment.end || segment.file.read_at(&mut bytes, at)? < total {
        return Err(bad("a record beyond the end".to_owned()));
    }
    Ok(Bytes::from(bytes))
}

impl LogReader {
    /// Bytes of all segments.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        read_map(&self.map).segments.iter().map(|segment| segment.length).sum()
    }

    /// Whole records from `first` on, within one segment: at least one, else at most `bytes_max`; and the last of them.
    /// `None` where the log ends before it.
    ///
    /// # Errors
    /// [`LogError::Gone`], [`LogError::Io`], [`LogError::Corrupt`].
    pub fn read(&self, first: Index, bytes_max: usize) -> Result<Option<(Bytes, Position)>, LogError> {
        let segment = {
            let map = read_map(&self.map);
            let base = map.base().index;
            if first <= base {
                return Err(LogError::Gone { wanted: first, base });
            }
            match map
                .segments
                .iter()
                .find(|segment| segment.head.base.index < first && first <= segment.last.index)
            {
                Some(segment) => segment.clone(),
                None => return Ok(None),
            }
        };
        let start = segment.near(first);
        let window = u64::try_from(bytes_max).unwrap_or(u64::MAX).saturating_add(2 * (64 << 10));
        let wanted = (segment.end - start).min(window);
        let mut buffer = BytesMut::zeroed(usize::try_from(wanted).expect("a segment fits in memory"));
        let count = segment.file.read_at(&mut buffer, start).map_err(io_error(&segment.path))?;
        buffer.truncate(count);
        let bytes = buffer.freeze();
        let corrupt = |at: usize, why: String| LogError::Corrupt {
            path: segment.path.clone(),
            offset: start + at as u64,
            index: first,
            why,
        };
        let (mut rest, mut begins, mut ends, mut last) = (bytes.clone(), None, 0, None);
        loop {
            let at = bytes.len() - rest.len();
            match decode(&mut rest).map_err(|bad| corrupt(at, bad.to_string()))? {
                Some((record, _)) if record.index < first => {}
                Some((record, chain)) => {
                    let end = bytes.len() - rest.len();
                    let begin = *begins.get_or_insert(at);
                    if last.is_some() && end - begin > bytes_max {
                        break;
                    }
                    ends = end;
                    last = Some(Position { index: record.index, epoch: record.epoch, chain });
                }
                None => break,
            }
        }
        match (begins, last) {
            (Some(begin), Some(last)) => Ok(Some((bytes.slice(begin..ends), last))),
            // The one record is longer than the window: read just that one.
            _ => {
                let mut at = segment.near(first);
                loop {
                    let frame = read_record(&segment, at).map_err(io_error(&segment.path))?;
                    let (record, chain) = decode(&mut frame.clone())
                        .map_err(|bad| corrupt(0, bad.to_string()))?
                        .expect("it was read whole");
                    if record.index == first {
                        let last = Position { index: record.index, epoch: record.epoch, chain };
                        return Ok(Some((frame, last)));
                    }
                    at += frame.len() as u64;
                }
            }
        }
    }

    /// Index, epoch and running checksum at `index`, where the log holds it or starts after it.
    #[must_use]
    pub fn position(&self, index: Index) -> Option<Position> {
        {
            let map = read_map(&self.map);
            for segment in &map.segments {
                if segment.head.base.index == index {
                    return Some(segment.head.base);
                }
                if segment.last.index == index {
                    return Some(segment.last);
                }
            }
        }
        let (_, last) = self.read(index, 1).ok().flatten()?;
        (last.index == index).then_some(last)
    }
}

#[cfg(test)]
mod tests;
