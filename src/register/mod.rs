//! The register: one small compare-and-swap cell that holds the newest view, and the proof of who is alive.
//! It knows views, not the protocol: who may swap, and when, is decided elsewhere.
//!
//! * [`Register`] is what every kind of register can do; calls block, so they run off the hot path.
//! * [`FileRegister`] keeps the views of one host in a directory ([`mod@file`]); `lineage` is what is left of views that
//!   are gone, `room` what is had before it is needed.
//! * [`lock`] holds one lock per node for the life of its process; a freed one is proof of death (R28).
//! * [`held`] remembers how much each node has held, so that data put back to an older state is found out (R24).
//! * [`operator`] is what only an operator may do, and only while no node runs (R4).
//! * [`secret`] is what the nodes of one cluster know each other by (R38).
//! * [`watch`] tells, within about a millisecond, that a process which held such a lock has exited.

use std::io;
use std::path::{Path, PathBuf};

use crate::view::{ClusterId, Epoch, View, ViewId};

#[cfg(test)]
mod faults;
pub mod file;
pub mod format;
pub mod held;
#[cfg(test)]
mod histories;
mod lineage;
pub mod lock;
pub mod operator;
pub mod place;
mod room;
pub mod secret;
pub mod watch;

pub use file::{FileRegister, views_between};
pub use held::{Held, HeldMark};
pub use lock::{Holder, Liveness, LockError, NodeLock, probe, session};
pub use watch::DeathWatch;

/// A compare-and-swap cell for views (R2). Every call may block for as long as the disk or the network does.
pub trait Register: Send + Sync {
    /// The newest view, safe to act on: a power cut cannot take it back, and the view that the caller knows is in its
    /// chain (R11). `None`: no view yet.
    ///
    /// # Errors
    /// [`RegisterError`]; never an older view in place of a damaged newest one.
    fn read(&self, known: Option<ViewId>) -> Result<Option<View>, RegisterError>;

    /// Makes ready all that a swap of this view needs, so that nothing can run out once it has been promised (R34).
    ///
    /// # Errors
    /// [`RegisterError`]; the register holds what it held.
    fn prepare(&self, next: &View) -> Result<(), RegisterError>;

    /// Replaces the very view that is named (`None`: there is none yet) by `next`, whose epoch is the one after.
    /// `Ok` means durable and newest. Prepares what was not prepared.
    ///
    /// # Errors
    /// [`SwapError`] says whether it is sure that nothing was changed.
    fn swap(&self, replaces: Option<ViewId>, next: &View) -> Result<(), SwapError>;

    /// True where a view newer than `than` exists. The answer is taken within the call, so `false` proves that
    /// `than` was the newest epoch at some moment after the call began (R17).
    ///
    /// # Errors
    /// [`RegisterError`] where neither can be proved, also for a register that never reached `than`, and for one that is
    /// no longer where it was (R11).
    fn has_newer(&self, than: Epoch) -> Result<bool, RegisterError>;

    /// Does what need not be done at once: to be called now and then, when nothing waits.
    ///
    /// # Errors
    /// [`RegisterError`]; the register answers as before, but it may run out of room later.
    fn tidy(&self) -> Result<(), RegisterError> {
        Ok(())
    }

    /// The secret of the cluster; `None` where it has none yet.
    ///
    /// # Errors
    /// [`RegisterError`] where that cannot be told: no peer may be listened to then.
    fn secret(&self) -> Result<Option<secret::Secret>, RegisterError> {
        Ok(None)
    }

    /// Makes what only a cluster of new builds has (R37, R38): called when the feature level of the log is raised, at
    /// each start above level 0, and now and then. Does nothing where it is there.
    ///
    /// # Errors
    /// [`RegisterError`]; it is tried again later.
    fn ensure_secret(&self) -> Result<(), RegisterError> {
        Ok(())
    }
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
    /// Views were made on top of an older copy of the register (R11).
    #[error(
        "the register {} holds other views than the one of epoch {known} that was seen (its newest is of epoch {}): it was restored from a backup, and views were made on top of it; stop all nodes, put the newer register back, or run `replcluster recover` to choose the data to go on from",
        path.display(), newest.epoch
    )]
    Forked {
        /// The register's directory.
        path: PathBuf,
        /// The epoch of the view that was seen.
        known: Epoch,
        /// The newest of the other views.
        newest: Box<View>,
    },
    /// It is not the register that this process has opened (R11).
    #[error(
        "the register {} is not the one that was opened: {what}; put the original back, or start the nodes again, one after the other: each looks whether the register there holds what it knows",
        path.display()
    )]
    Replaced {
        /// The register's directory.
        path: PathBuf,
        /// What shows it.
        what: &'static str,
    },
    /// A view that not every reader could keep.
    #[error(
        "a view of {bytes} bytes is larger than a register takes ({} bytes): use fewer nodes or shorter addresses",
        format::TEXT_BYTES_MAX
    )]
    TooBig {
        /// As text.
        bytes: usize,
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
    /// The register answers, and is not the one whose newest view is known (R11). Not so one that gives no answer: a set
    /// that is whole goes on without it (R10).
    #[must_use]
    pub fn is_of_another(&self) -> bool {
        match self {
            RegisterError::Backwards { .. }
            | RegisterError::Forked { .. }
            | RegisterError::Replaced { .. } => true,
            RegisterError::Io { .. }
            | RegisterError::Place(_)
            | RegisterError::Damaged { .. }
            | RegisterError::TooBig { .. }
            | RegisterError::OtherCluster { .. } => false,
        }
    }

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
