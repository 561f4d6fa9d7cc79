//! The register: one small compare-and-swap cell that holds the newest view, and the proof of who is alive.
//! It knows views, not the protocol: who may swap, and when, is decided elsewhere.
//!
//! * [`Register`] is what every kind of register can do; calls block, so they run off the hot path.
//! * [`FileRegister`] keeps the views of one host in a directory ([`mod@file`]).
//! * [`lock`] holds one lock per node for the life of its process; a freed one is proof of death (R28).
//! * [`held`] remembers how much each node has held, so that data put back to an older state is found out (R24).
//! * [`operator`] is what only an operator may do, and only while no node runs (R4).
//! * [`watch`] tells, within about a millisecond, that a process which held such a lock has exited.

use std::io;
use std::path::{Path, PathBuf};

use crate::view::{ClusterId, Epoch, View};

pub mod file;
pub mod format;
pub mod held;
pub mod lock;
pub mod operator;
pub mod place;
pub mod watch;

pub use file::{FileRegister, views_between};
pub use held::{Held, HeldMark};
pub use lock::{Holder, Liveness, LockError, NodeLock, probe};
pub use watch::DeathWatch;

/// A compare-and-swap cell for views (R2). Every call may block for as long as the disk or the network does.
pub trait Register: Send + Sync {
    /// The newest view, safe to act on: a power cut cannot take it back. `None`: no view yet.
    ///
    /// # Errors
    /// [`RegisterError`]; never an older view in place of a damaged newest one.
    fn read(&self) -> Result<Option<View>, RegisterError>;

    /// Replaces the view of epoch `expected` (zero: none yet) by `next`, whose epoch is the one after.
    /// `Ok` means durable and newest.
    ///
    /// # Errors
    /// [`SwapError`] says whether it is sure that nothing was changed.
    fn swap(&self, expected: Epoch, next: &View) -> Result<(), SwapError>;

    /// True where a view newer than `than` exists. The answer is taken within the call, so `false` proves that
    /// `than` was the newest epoch at some moment after the call began (R17).
    ///
    /// # Errors
    /// [`RegisterError`] where neither can be proved, also for a register that never reached `than` (R11).
    fn has_newer(&self, than: Epoch) -> Result<bool, RegisterError>;
}

/// Why the register gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// The file system failed.
    #[error("{doing} {} failed: {source}", path.display())]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// The file or directory concerned.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The directory cannot serve.
    #[error(transparent)]
    Place(#[from] place::PlaceError),
    /// The newest view cannot be read back; an older one must not stand in for it.
    #[error(
        "the newest view {} is damaged: {why}; stop all nodes, then restore the file from a backup of this very epoch or run `replcluster recover`",
        path.display()
    )]
    Damaged {
        /// The file of the view.
        path: PathBuf,
        /// What is wrong with it.
        why: format::BadView,
    },
    /// The register is older than what was already seen (R11).
    #[error(
        "the register {} holds epoch {held}, but epoch {known} was already seen: it was deleted or restored from a backup; put the newer one back, or stop all nodes and run `replcluster recover`",
        path.display()
    )]
    Backwards {
        /// The register's directory.
        path: PathBuf,
        /// The newest epoch found; zero: none.
        held: Epoch,
        /// An epoch that existed.
        known: Epoch,
    },
    /// The directory belongs to another cluster.
    #[error("the register {} belongs to cluster {held}, not to {ours}: give each cluster its own", path.display())]
    OtherCluster {
        /// The register's directory.
        path: PathBuf,
        /// Whose views are there.
        held: ClusterId,
        /// Whose view was to be written.
        ours: ClusterId,
    },
}

impl RegisterError {
    fn io(doing: &'static str, path: &Path, source: impl Into<io::Error>) -> RegisterError {
        RegisterError::Io { doing, path: path.to_owned(), source: source.into() }
    }
}

/// Why a swap was not confirmed (R2).
#[derive(Debug, thiserror::Error)]
pub enum SwapError {
    /// The register holds this view now. Ours is not the newest (it may have been, for a moment).
    #[error("the register moved on to epoch {}", .0.epoch)]
    Conflict(View),
    /// Nothing was changed.
    #[error("the view was not written: {0}")]
    Failed(RegisterError),
    /// It may have happened: act as if both were true until a read settles it.
    #[error("whether the view was written is not known: {0}")]
    Unknown(RegisterError),
}
