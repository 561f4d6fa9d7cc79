//! What the log holds and where, shared between the writing side and all that read.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::segment::Segment;
use super::words::Space;
use crate::node::lack::Lack;
use crate::view::Position;

/// See the head of the module.
#[derive(Default)]
pub struct Map {
    /// By the order of their making, which is the order of their entries.
    pub segments: Vec<Segment>,
    /// Bytes that fit into the spare files.
    pub spare_bytes: u64,
    pub space: Space,
    /// What was missing for a spare file.
    pub lack: Option<Lack>,
    /// The newest segment holds the remains of an append that found no room: nothing is written behind them.
    pub closed: bool,
}

impl Map {
    /// What comes before the first record.
    pub fn base(&self) -> Position {
        self.segments.first().map_or(Position::default(), |segment| segment.head.base)
    }

    /// The last record.
    pub fn last(&self) -> Position {
        self.segments.last().map_or(Position::default(), |segment| segment.last)
    }

    /// Bytes of records that the newest segment can still take.
    pub fn segment_room(&self) -> u64 {
        self.segments.last().filter(|_| !self.closed).map_or(0, Segment::room)
    }

    /// Bytes of records that the newest segment and the spare files can take.
    pub fn room(&self) -> u64 {
        self.segment_room() + self.spare_bytes
    }

    /// The segment that is written.
    pub fn newest(&mut self) -> &mut Segment {
        self.segments.last_mut().expect("one was begun at least")
    }
}

/// To read it.
pub fn read_map(map: &RwLock<Map>) -> RwLockReadGuard<'_, Map> {
    map.read().unwrap_or_else(PoisonError::into_inner)
}

/// To change it.
pub fn write_map(map: &RwLock<Map>) -> RwLockWriteGuard<'_, Map> {
    map.write().unwrap_or_else(PoisonError::into_inner)
}
