//! The words that the log and its users share: how it is set up, what it says, and how it fails.

use std::io;
use std::path::{Path, PathBuf};

use crate::node::lack::Lack;
use crate::rules::{Rule, breaks};
use crate::view::Position;
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
    /// Something that it takes is missing. The log is as it was and goes on when it is there (R25).
    #[error("no {lack} for the log: {} cannot be written", path.display())]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// What is missing.
        lack: Lack,
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
    #[error("{} has format version {found}, this program knows {}: use a program at least as new as the one that wrote it", path.display(), super::segment::FORMAT)]
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

/// The disk refused.
pub(super) fn io_error(path: &Path) -> impl FnOnce(io::Error) -> LogError + use<> {
    let path = path.to_owned();
    move |source| LogError::Io { path, source }
}

/// As `io_error`, where nothing was changed yet: what only lacks something can be tried again.
pub(super) fn room_error(path: &Path) -> impl FnOnce(io::Error) -> LogError + use<> {
    let path = path.to_owned();
    move |source| match Lack::of(&source) {
        Some(lack) if !breaks(Rule::LackIsNoFailure) => LogError::NoSpace { path, lack },
        Some(_) | None => LogError::Io { path, source },
    }
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
    /// A fresh start after this was staged, and not finished: see [`Log::stage_reset`](super::Log::stage_reset).
    pub staged: Option<Position>,
}

/// How the log stands with its room.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Space {
    /// Enough.
    #[default]
    Ample,
    /// There was no room to prepare what comes next: the log lives on what it has.
    Short,
    /// The last thing that was to be written found no room; it waits.
    Stuck,
}

/// What the log can still take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Free on the file system, in bytes.
    pub free_bytes: u64,
    /// Room for records in files that the log has already, in bytes.
    pub log_bytes: u64,
    /// How it stands.
    pub space: Space,
    /// What was missing when it was last tried to prepare what comes next.
    pub lack: Option<Lack>,
}
