//! Compaction: from one mutation to the next the old revisions can no longer be read; their records go later, in
//! bounded steps, so that no client waits for them. How far the removal is differs from node to node and nobody
//! can see it: not in an answer, not in a hash.

use bytes::Bytes;

use super::Store;
use super::backend::Backend;
use super::refusal::{Damaged, Refusal};
use crate::rules::{Rule, breaks};

/// The revision up to which the store is compacted, written when the compaction is applied.
const COMPACTED: &str = "compacted";
/// The revision for which the removal is complete, written when it is. Behind the other: interrupted.
const REMOVED: &str = "removed";
/// etcd's value for a store that was never compacted.
pub(super) const NEVER: i64 = -1;

/// A removal under way.
#[derive(Clone, Debug)]
pub(super) struct Removal {
    /// The last key that is done; none at the start.
    cursor: Option<Box<[u8]>>,
}

/// How far a removal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// There is more to do.
    Some,
    /// Nothing is left to remove.
    All,
    /// There is more to do, but a reader may need it: nothing was done, and nothing can be until the reader goes on.
    Held,
}

impl<B: Backend> Store<B> {
    pub(super) fn compact(&mut self, revision: i64) -> Result<(), Refusal> {
        if revision <= self.compact_revision {
            return Err(Refusal::Compacted { requested: revision, compacted: self.compact_revision });
        }
        if revision > self.revision {
            return Err(Refusal::FutureRevision { requested: revision, current: self.revision });
        }
        self.compact_revision = revision;
        self.backend.put_meta(COMPACTED, Bytes::copy_from_slice(&revision.to_be_bytes()));
        // One that is under way starts over: what it has left to do is part of what is to do now.
        self.removal = Some(Removal { cursor: None });
        Ok(())
    }

    /// Removes some of the records that compaction made unreadable: looks at up to `budget` keys and removes up to
    /// about as many records. While a reader that has paused may still need them, none.
    pub fn compact_some(&mut self, budget: usize) -> Removed {
        let held = self.pins.oldest().is_some_and(|oldest| oldest < self.compact_revision);
        if self.removal.is_some() && held && !breaks(Rule::KeepForReaders) {
            return Removed::Held;
        }
        let Some(removal) = self.removal.take() else { return Removed::All };
        let (forgotten, next) =
            self.index.forget(self.compact_revision, removal.cursor.as_deref(), budget.max(1));
        for change in forgotten {
            self.backend.delete(change.at());
        }
        match next {
            Some(cursor) => {
                self.removal = Some(Removal { cursor: Some(cursor) });
                Removed::Some
            }
            None => {
                self.backend.put_meta(REMOVED, Bytes::copy_from_slice(&self.compact_revision.to_be_bytes()));
                Removed::All
            }
        }
    }

    /// True while records that compaction made unreadable are still there.
    #[must_use]
    pub fn is_compacting(&self) -> bool {
        self.removal.is_some()
    }

    /// What an earlier run left: the revision it was compacted to, and a removal if that was interrupted.
    pub(super) fn compaction_of(backend: &B) -> Result<(i64, Option<Removal>), Damaged> {
        let compacted = revision_in(backend, COMPACTED)?;
        let removed = revision_in(backend, REMOVED)?;
        Ok((compacted, (removed != compacted).then_some(Removal { cursor: None })))
    }
}

fn revision_in<B: Backend>(backend: &B, name: &'static str) -> Result<i64, Damaged> {
    let Some(value) = backend.meta(name) else { return Ok(NEVER) };
    let bytes = <[u8; 8]>::try_from(&*value).map_err(|_| Damaged::Meta { name, length: value.len() })?;
    Ok(i64::from_be_bytes(bytes))
}
