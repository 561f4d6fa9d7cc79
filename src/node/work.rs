//! A heavy entry on its way into the state: carried out by a worker in pieces, each of about half a millisecond under the
//! state's lock. What it has done so far is seen by no reader: the revision moves with the last piece.
//!
//! A piece that finds the state replaced, by a snapshot, or the node ending, gives the rest up: the entry belongs to a
//! state that is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{RwLockReadGuard, RwLockWriteGuard};

use super::handle::{Shared, StateStore};
use super::log::Position;
use super::snapshot::{APPLIED, encode_position};
use crate::kv::{self, Backend as _, Look, Progress, Refusal, Work};
use crate::proto::replcluster::Mutation;
use crate::view::Index;

/// The entry that is being applied; 0: none.
static APPLYING: AtomicU64 = AtomicU64::new(0);

/// The entry that is being applied somewhere in this process: for the last words of one that ends by it.
#[must_use]
pub fn applying() -> Option<Index> {
    let index = APPLYING.load(Ordering::Relaxed);
    (index > 0).then_some(Index(index))
}

/// Notes which entry is being applied; `None` when that is over.
pub(super) fn note_applying(index: Option<Index>) {
    APPLYING.store(index.map_or(0, |index| index.0), Ordering::Relaxed);
}

/// See the head of the module.
pub struct ApplyJob {
    shared: Arc<Shared>,
    number: u64,
    position: Position,
    work: Work<'static>,
    /// Under the lock in one piece.
    units: u64,
    /// The next piece changes the state.
    changes: bool,
}

/// A heavy entry that is done.
pub struct ApplyDone {
    /// Which work.
    pub number: u64,
    /// The entry.
    pub position: Position,
    /// What became of it; `None` where it was given up with the state that it belongs to.
    pub outcome: Option<Result<kv::Applied, Refusal>>,
}

impl ApplyJob {
    /// Nothing is done yet. Only where `want_answer` an answer is built.
    #[must_use]
    pub fn new(
        shared: Arc<Shared>,
        number: u64,
        position: Position,
        mutation: Mutation,
        want_answer: bool,
        units: u64,
    ) -> ApplyJob {
        let work = Work::new(mutation, want_answer);
        ApplyJob { shared, number, position, work, units, changes: false }
    }

    /// One piece. `None`: there is more to do.
    pub fn piece(&mut self) -> Option<ApplyDone> {
        note_applying(Some(self.position.index));
        let done = if self.changes { self.change() } else { self.look() };
        note_applying(None);
        self.work.settle();
        done
    }

    fn look(&mut self) -> Option<ApplyDone> {
        let shared = self.shared.clone();
        let store = shared.store.read();
        if self.is_given_up() {
            return Some(self.done(None));
        }
        let look = self.work.look(&store, self.units);
        RwLockReadGuard::unlock_fair(store);
        match look {
            Look::More => None,
            Look::Write => {
                self.changes = true;
                None
            }
            Look::Done(outcome) => {
                let mut store = shared.store.write();
                if self.is_given_up() {
                    return Some(self.done(None));
                }
                Some(self.finish(&mut store, outcome))
            }
        }
    }

    fn change(&mut self) -> Option<ApplyDone> {
        let shared = self.shared.clone();
        let mut store = shared.store.write();
        if self.is_given_up() {
            return Some(self.done(None));
        }
        self.changes = false;
        let done = match self.work.step(&mut store, self.units) {
            Progress::More => None,
            Progress::Done(outcome) => Some(self.finish(&mut store, outcome)),
        };
        RwLockWriteGuard::unlock_fair(store);
        done
    }

    /// In one step with the last change, so that no flush can part the two.
    fn finish(&self, store: &mut StateStore, outcome: Result<kv::Applied, Refusal>) -> ApplyDone {
        store.backend_mut().put_meta(APPLIED, encode_position(self.position));
        self.shared.publish_state(store);
        self.done(Some(outcome))
    }

    fn done(&self, outcome: Option<Result<kv::Applied, Refusal>>) -> ApplyDone {
        ApplyDone { number: self.number, position: self.position, outcome }
    }

    /// Asked under the lock: the number changes under it where the state is replaced.
    fn is_given_up(&self) -> bool {
        self.shared.working.load(Ordering::Acquire) != self.number
            || self.shared.stopping.load(Ordering::Acquire)
    }
}

/// The worker's thread: one work after the other, until the node ends.
pub fn run(jobs: &std::sync::mpsc::Receiver<ApplyJob>, done: impl Fn(ApplyDone)) {
    while let Ok(mut job) = jobs.recv() {
        loop {
            if let Some(ended) = job.piece() {
                done(ended);
                break;
            }
        }
    }
}
