//! What a node knows when it starts: log, state and promise put together, and refused where they do not fit.

use super::link::ENTRIES_BYTES;
use super::log::{self, Log, LogError, Position};
use super::recent::Recent;
use super::state::StateError;
use super::{StateStore, snapshot};
use crate::kv;
use crate::protocol::{Mark, Outline, Run};
use crate::view::{ClusterId, Epoch, Index};

/// Why a node could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The log cannot be trusted.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The state cannot be read.
    #[error(transparent)]
    State(#[from] StateError),
    /// The state contradicts itself.
    #[error("state.redb is damaged: {0}")]
    Damaged(#[from] kv::Damaged),
    /// The state does not belong to the log.
    #[error(
        "state.redb holds everything up to entry {applied}, but the log begins after {base} and entries up to {known} were committed here: the state is missing, damaged or an old copy\nnothing was changed; bring the state back, or move the node's data directory away to let it join anew from its peers"
    )]
    StateBehind {
        /// The last entry applied to the state.
        applied: Index,
        /// What comes before the log.
        base: Index,
        /// Known to be committed.
        known: Index,
    },
    /// The log does not reach as far as the state.
    #[error(
        "state.redb holds everything up to entry {applied}, and the log ends at {last}: the end of the log is missing\nnothing was changed; bring the log back, or move the node's data directory away to let it join anew from its peers, unless it is the last in-sync copy"
    )]
    LogBehind {
        /// The last entry applied to the state.
        applied: Index,
        /// The last entry of the log.
        last: Index,
    },
    /// The node is counted on, and its log ends before something that it once held (R24).
    #[error(
        "the log ends at entry {last}, but this node has held everything up to entry {held}: the data was restored from an older copy or lost\nnothing was changed; bring the newer data back"
    )]
    RolledBack {
        /// The end of the log.
        last: Index,
        /// Held once, and committed.
        held: Index,
    },
    /// The register cannot be read.
    #[error("cannot read the register: {0}")]
    Register(String),
    /// Other nodes' lives cannot be watched.
    #[error("cannot watch the other nodes' processes: {0}")]
    Watch(std::io::Error),
    /// The register is not the one that this node has seen (R11).
    #[error(
        "the register stands at epoch {register}, but this node has seen epoch {seen}: the register was restored from a backup, deleted, or is another one\nput the right register back, or stop all nodes and see what is left with `replcluster recover`; this node will not serve against an older one"
    )]
    RegisterBehind {
        /// What the register says; zero for nothing.
        register: Epoch,
        /// What the node has seen.
        seen: Epoch,
    },
    /// The register belongs to another cluster.
    #[error(
        "the data belongs to cluster {data} and the register to cluster {register}; neither was changed\ngive the node its own data directory or its own register"
    )]
    OtherCluster {
        /// The data's.
        data: ClusterId,
        /// The register's.
        register: ClusterId,
    },
}

/// Log and state, put together.
#[derive(Debug, Clone)]
pub struct Found {
    /// The log, as the protocol knows it.
    pub outline: Outline,
    /// The end of the log.
    pub last: Position,
    /// The last entry applied to the state.
    pub applied: Position,
}

/// Puts log and state together. `promised_commit` is the commit index that the promise file knows.
///
/// # Errors
/// [`StartError::StateBehind`], [`StartError::LogBehind`], nothing was changed; [`StartError::Log`].
pub fn put_together<D: crate::disk::Disk>(
    log: &mut Log<D>,
    recovered: log::Recovered,
    store: &StateStore,
    promised_commit: Index,
) -> Result<Found, StartError> {
    let applied = snapshot::applied_of(store);
    // Between putting a snapshot in place and starting the log after it, a crash leaves a log that ends elsewhere.
    let fits = applied.index >= log.base().index && log.position(applied.index) == Some(applied);
    let known = recovered.commit.max(promised_commit);
    let (base, runs, last, commit) = if fits {
        log.forget_staged()?;
        (recovered.base, recovered.runs, recovered.last, known.max(applied.index))
    } else {
        // Only for a snapshot that was just put in place is a fresh log staged. A state that is behind its log's
        // beginning is lost or an old copy, and a log that is behind its state has lost its end: neither is thrown
        // away for the other.
        if recovered.staged != Some(applied) && applied.index > recovered.last.index {
            return Err(StartError::LogBehind { applied: applied.index, last: recovered.last.index });
        }
        if recovered.staged != Some(applied) {
            return Err(StartError::StateBehind {
                applied: applied.index,
                base: recovered.base.index,
                known,
            });
        }
        log.finish_reset()?;
        (applied, Vec::new(), applied, applied.index)
    };
    let runs = runs.into_iter().map(|(epoch, first)| Run { epoch, first }).collect();
    let base = Mark { index: base.index, epoch: base.epoch };
    let outline = Outline::recovered(base, runs, last.index, commit.min(last.index));
    tracing::info!(
        "log holds {}..={}, committed to {}, state applied to {}",
        base.index.next(),
        last.index,
        outline.commit(),
        applied.index
    );
    Ok(Found { outline, last, applied })
}

/// Uncommitted entries are always in memory: they may have to be cut.
pub fn load_tail(recent: &Recent, commit: Index, last: Position) {
    let mut first = commit.max(Index(1));
    while first <= last.index {
        let Ok(Some(chunk)) = recent.read(first, ENTRIES_BYTES) else { return };
        recent.push(first, chunk.frames, chunk.last, commit);
        first = chunk.last.index.next();
    }
}

#[cfg(test)]
mod tests;
