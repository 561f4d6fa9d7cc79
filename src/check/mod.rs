//! Was this history of a replicated store linearizable? Pure: a value goes in, a verdict comes out. Who made the
//! history (a simulation, clients of real processes) and how is no business of this module.
//!
//! # What is checked
//! Clients write values that no other request writes ([`Token`]) and note when they asked and when they were
//! answered, on one clock. The store numbers its states as etcd does: every change makes the next *revision*, every
//! answer says the revision at which it was made, and what is read says when it was created, when it was last
//! changed, and how often. One request may change several keys in one revision. [`check`] looks for one order of all requests that did happen, such that
//!
//! 1. each stands between its call and its return (a request without an answer may stand anywhere after its call, or
//!    never have happened; one that was surely refused stands nowhere);
//! 2. each was answered as a store with one copy would have answered in that order, revisions included;
//! 3. serializable reads show a state of that order that was already made when they returned, and no older one than
//!    the same process of the same node has shown before.
//!
//! # Why a passing check means that there is such an order
//! In general this is a search that grows with every request in flight. Here the answers name the order themselves:
//! sort by (revision, the change that made it first, then what merely saw it in the order of their calls). There is
//! nothing left to search, only to verify, and each pass verifies one thing:
//!
//! * `facts`: every change that was acknowledged or seen gets its place: one revision for one request, one request
//!   for one revision, and what was seen was once asked for and not refused.
//! * `order`: the order by revision keeps real time. Whatever returned before a request was called stands before
//!   it: its revision is not greater, and smaller if the request made a change. This is enough: two that saw the
//!   same revision stand in the order of their calls.
//! * `replay`: carried out in this order, the requests give the answers that were noted: what each key holds,
//!   its create and mod revision, its version, the outcome of compares and deletes.
//! * `hidden`: a revision that nobody was told of and nobody saw must have been made by a request whose outcome is
//!   unknown. Only here is something to search: which one. Usually there are few or none, as reads of old states
//!   ([`Freshness::At`]) name them.
//!
//! * `compaction`: an old state is refused once a compaction beyond it is known to be done, and only where one was
//!   asked for. Each pair of requests is judged for itself.
//!
//! So a pass exhibits an order, and the history is linearizable for a store with revisions. The reverse holds as
//! well: a linearizable store that numbers its states as etcd does can make no history that is refused here. The
//! tests compare both with an exhaustive search over small histories. (Compaction stands outside of this claim.)
//!
//! # What is not seen
//! * Requests that were never made: what nobody reads back may be lost unseen. Read every key at the end, on every
//!   node.
//! * Compactions of which nothing but a refusal is known take part in no order.
//! * A search among hidden requests that is given up: [`Report::undecided`] says so; it is neither yes nor no.

mod compaction;
mod facts;
mod hidden;
mod order;
mod replay;
mod request;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod violation;

pub use request::{Freshness, Request, Sets, Span, Transaction};
pub use violation::{Side, Violation};

/// Names a key; whoever made the history knows its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub u32);

/// A value. No two requests of a history write the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// Everything that clients asked for and were told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// The revision at which the store stood before the first request, when it held none of the keys; 1 for an
    /// empty one.
    pub first_revision: i64,
    /// In any order.
    pub operations: Vec<Operation>,
}

/// One request, made once and never repeated by whoever made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Who asked; only named in violations.
    pub client: u32,
    /// Which node was asked.
    pub node: u32,
    /// Which process of that node answered: another number after every restart. A process that may be either the old
    /// or the new one gets a number of its own.
    pub session: u64,
    /// When it was sent, in any unit, on the clock that all operations share.
    pub called: u64,
    /// What was asked.
    pub request: Request,
    /// What is known of it.
    pub outcome: Outcome,
}

/// What is known of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered.
    Done {
        /// When the answer came; not before the call.
        returned: u64,
        /// What it says.
        answer: Answer,
    },
    /// It was surely not carried out and never will be.
    Refused,
    /// It was a read of an old state, or a compaction, and was answered that this state is compacted.
    Gone {
        /// When the answer came; not before the call.
        returned: u64,
    },
    /// It may have happened, may happen later, or never.
    Unknown,
}

/// What a request was told. `revision` is always that of the answer's header: for a change the revision it made, for
/// everything else that of the state it saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To a put.
    Written {
        /// The revision it made.
        revision: i64,
    },
    /// To a delete.
    Deleted {
        /// The revision it made, or saw where there was nothing to remove.
        revision: i64,
        /// There was something to remove.
        existed: bool,
    },
    /// To a compare-and-put.
    Compared {
        /// The revision it made, or saw where the comparison failed.
        revision: i64,
        /// The comparison held and the key was set.
        succeeded: bool,
    },
    /// To a delete of a span.
    RangeDeleted {
        /// The revision it made, or saw where there was nothing to remove.
        revision: i64,
        /// What was removed.
        removed: Vec<Found>,
    },
    /// To a transaction.
    Transacted {
        /// The revision it made, or saw where its condition did not hold.
        revision: i64,
        /// Its condition held, or it had none.
        succeeded: bool,
        /// What was there before it changed anything, of the keys it reads.
        met: Vec<Found>,
    },
    /// To a compaction.
    Compacted {
        /// The newest revision when it was carried out.
        revision: i64,
    },
    /// To a read.
    Read {
        /// The newest revision when it was answered; also that of the state shown, but for [`Freshness::At`].
        revision: i64,
        /// What exists of the keys asked for.
        found: Vec<Found>,
    },
}

/// A key that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The key.
    pub key: Key,
    /// What it holds.
    pub value: Token,
    /// The revision that created it.
    pub create_revision: i64,
    /// The revision that set it to this.
    pub mod_revision: i64,
    /// How often it was set since it was created, from 1.
    pub version: i64,
}

/// The verdict on a history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Requests in the history.
    pub operations: usize,
    /// Of these, the ones that were answered.
    pub acknowledged: usize,
    /// Of these, the ones whose outcome is unknown; what is left was refused.
    pub unknown: usize,
    /// The newest revision that anyone was told of.
    pub last_revision: i64,
    /// Revisions that nobody was told of and nobody saw; each was made by a request whose outcome is unknown.
    pub hidden: usize,
    /// Why there is no order as it should be; empty for a history that is linearizable (unless undecided). Of those
    /// that follow from one another only the first is named, and at most [`NAMED_OF_A_KIND`] of every kind.
    pub violations: Vec<Violation>,
    /// It was not found out who made the hidden revisions, nor that nobody can have.
    pub undecided: bool,
}

impl Report {
    /// True where an order was found: the history is linearizable.
    #[must_use]
    pub fn is_linearizable(&self) -> bool {
        self.violations.is_empty() && !self.undecided
    }
}

/// How many violations of one kind are named at most.
pub const NAMED_OF_A_KIND: usize = 100;

/// Judges a history; see the head of the module. Takes time and memory in proportion to the keys read, times the
/// logarithm of the operations.
#[must_use]
pub fn check(history: &History) -> Report {
    let operations = &history.operations;
    let mut violations = Vec::new();
    let facts = facts::collect(history, &mut violations);
    order::check(history, &facts, &mut violations);
    let (hidden, undecided) = replay::check(history, &facts, &mut violations);
    compaction::check(history, &facts, &mut violations);
    Report {
        operations: operations.len(),
        acknowledged: operations.iter().filter(|operation| operation.answer().is_some()).count(),
        unknown: operations.iter().filter(|operation| operation.outcome == Outcome::Unknown).count(),
        last_revision: facts.last_revision,
        hidden,
        violations,
        undecided,
    }
}

impl Operation {
    fn answer(&self) -> Option<(u64, &Answer)> {
        match &self.outcome {
            Outcome::Done { returned, answer } => Some((*returned, answer)),
            Outcome::Refused | Outcome::Gone { .. } | Outcome::Unknown => None,
        }
    }

    /// It was told that it made a change.
    #[must_use]
    pub fn has_changed(&self) -> bool {
        match self.answer() {
            Some((_, Answer::Written { .. })) => true,
            Some((_, Answer::Deleted { existed, .. })) => *existed,
            Some((_, Answer::Compared { succeeded, .. } | Answer::Transacted { succeeded, .. })) => {
                *succeeded
            }
            Some((_, Answer::RangeDeleted { removed, .. })) => !removed.is_empty(),
            Some((_, Answer::Compacted { .. } | Answer::Read { .. })) | None => false,
        }
    }

    /// The revision of the state that its answer shows: a change shows the one that it met.
    fn shows(&self) -> Option<i64> {
        let (_, answer) = self.answer()?;
        Some(match (&self.request, answer) {
            (Request::Read { freshness: Freshness::At(state), .. }, _) => *state,
            (_, Answer::RangeDeleted { revision, .. } | Answer::Transacted { revision, .. }) => {
                revision - i64::from(self.has_changed())
            }
            (_, answer) => answer.revision(),
        })
    }

    /// It surely changed nothing.
    fn has_changed_nothing(&self) -> bool {
        match self.outcome {
            Outcome::Done { .. } => !self.has_changed(),
            Outcome::Refused | Outcome::Gone { .. } => true,
            Outcome::Unknown => false,
        }
    }
}

impl Answer {
    /// The revision in its header.
    #[must_use]
    pub fn revision(&self) -> i64 {
        match self {
            Answer::Written { revision }
            | Answer::Deleted { revision, .. }
            | Answer::Compared { revision, .. }
            | Answer::RangeDeleted { revision, .. }
            | Answer::Transacted { revision, .. }
            | Answer::Compacted { revision }
            | Answer::Read { revision, .. } => *revision,
        }
    }

    /// What it says to have found.
    #[must_use]
    pub fn found(&self) -> &[Found] {
        match self {
            Answer::Read { found, .. }
            | Answer::RangeDeleted { removed: found, .. }
            | Answer::Transacted { met: found, .. } => found,
            Answer::Written { .. }
            | Answer::Deleted { .. }
            | Answer::Compared { .. }
            | Answer::Compacted { .. } => &[],
        }
    }
}
