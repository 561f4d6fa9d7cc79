//! The reading side of the log: for links, snapshots and the driver, on any thread. It sees everything that was
//! appended, synced or not, and never a part of an append.

use std::io;
use std::path::Path;
use std::sync::{Arc, RwLock};

use bytes::{Bytes, BytesMut};

use super::map::{Map, read_map};
use super::record::{self, decode};
use super::segment::Segment;
use super::{LogError, Room, Space, io_error};
use crate::view::Index;
use crate::view::Position;

/// Bytes free on the log's file system.
pub(super) type FreeBytes = dyn Fn() -> io::Result<u64> + Send + Sync;

/// See the head of the module. Cheap to clone.
#[derive(Clone)]
pub struct LogReader {
    pub(super) map: Arc<RwLock<Map>>,
    /// Asks the disk.
    pub(super) free_bytes: Arc<FreeBytes>,
    pub(super) directory: Arc<Path>,
}

impl LogReader {
    /// Bytes of all segments.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        read_map(&self.map).segments.iter().map(|segment| segment.length).sum()
    }

    /// How much the log can still take (R25). Asks the system; for now and then.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn room(&self) -> Result<Room, LogError> {
        let free_bytes = (self.free_bytes)().map_err(io_error(&self.directory))?;
        let map = read_map(&self.map);
        Ok(Room { free_bytes, log_bytes: map.room(), space: map.space, lack: map.lack })
    }

    /// How the log stands with its room as of the last write; asks nothing of the system.
    #[must_use]
    pub fn space(&self) -> Space {
        read_map(&self.map).space
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

    /// Index, epoch and running checksum at `index`, where the log holds it or starts after it and it can be read.
    #[must_use]
    pub fn position(&self, index: Index) -> Option<Position> {
        self.find(index).ok().flatten()
    }

    /// As [`LogReader::position`]; `None` where the log does not reach so far.
    ///
    /// # Errors
    /// As for [`LogReader::read`].
    pub fn find(&self, index: Index) -> Result<Option<Position>, LogError> {
        {
            let map = read_map(&self.map);
            for segment in &map.segments {
                if segment.head.base.index == index {
                    return Ok(Some(segment.head.base));
                }
                if segment.last.index == index {
                    return Ok(Some(segment.last));
                }
            }
        }
        let found = self.read(index, 1)?;
        Ok(found.map(|(_, last)| last).filter(|last| last.index == index))
    }
}

/// Where the record of this index ends in its segment, and its position.
pub(super) fn find_end(segment: &Segment, index: Index) -> io::Result<(u64, Position)> {
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
