//! Where every change stands that was acknowledged or seen: one revision for one request, one request for one
//! revision. What a state looked like is not judged here.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Answer, Found, Freshness, History, Key, NAMED_OF_A_KIND, Operation, Request, Side, Token, Violation,
};

/// What a revision did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Set(Token),
    Removed,
}

/// The change that has a certain revision.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fact {
    pub(super) key: Key,
    pub(super) change: Change,
    /// The operation that asked for it.
    pub(super) writer: usize,
    /// The operation that told us its revision.
    witness: usize,
}

/// All that is certain.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) by_revision: BTreeMap<i64, Fact>,
    /// The revision of each operation's change.
    pub(super) placed: BTreeMap<usize, i64>,
    /// The newest revision that anyone was told of.
    pub(super) last_revision: i64,
    /// Answers that mean nothing; later passes leave them out.
    pub(super) malformed: BTreeSet<usize>,
    /// Keys about which something impossible was said; what contradicts it further on would only follow from it.
    pub(super) spoiled: BTreeSet<Key>,
    /// Something above was refused, so that revisions may be missing for that reason.
    pub(super) is_incomplete: bool,
}

struct Collector<'h> {
    history: &'h History,
    writers: BTreeMap<Token, usize>,
    facts: Facts,
    violations: &'h mut Vec<Violation>,
    named: usize,
}

/// Collects what answers and reads say about changes.
pub(super) fn collect(history: &History, violations: &mut Vec<Violation>) -> Facts {
    let facts = Facts { last_revision: history.first_revision, ..Facts::default() };
    let mut collector = Collector { history, writers: BTreeMap::new(), facts, violations, named: 0 };
    for (index, operation) in history.operations.iter().enumerate() {
        collector.request(index, operation);
    }
    for (index, operation) in history.operations.iter().enumerate() {
        collector.answer(index, operation);
    }
    collector.facts
}

impl Collector<'_> {
    fn request(&mut self, index: usize, operation: &Operation) {
        if let Some((_, token)) = operation.request.writes()
            && let Some(first) = self.writers.insert(token, index)
        {
            let (first, second) = (self.side(first), self.side(index));
            self.refuse(Violation::TokenShared { first, second });
        }
    }

    fn answer(&mut self, index: usize, operation: &Operation) {
        let Some((returned, answer)) = operation.answer() else { return };
        let misfit = if returned < operation.called {
            Some("it returned before it was called")
        } else if operation.request.state(answer.revision()) < self.history.first_revision {
            Some("it shows a state from before the first request")
        } else {
            misfit(&operation.request, answer)
        };
        if let Some(why) = misfit {
            self.facts.malformed.insert(index);
            let operation = self.side(index);
            self.refuse(Violation::Malformed { operation, why });
            return;
        }
        self.facts.last_revision = self.facts.last_revision.max(answer.revision());
        if operation.has_changed() {
            let revision = answer.revision();
            match operation.request {
                Request::Put { key, value } | Request::CompareAndPut { key, value, .. } => {
                    self.claim(revision, key, Change::Set(value), index, index);
                }
                Request::Delete { key } => self.claim(revision, key, Change::Removed, index, index),
                Request::Read { .. } => {}
            }
        }
        if let Answer::Read { revision, found } = answer {
            let state = operation.request.state(*revision);
            found.iter().for_each(|found| self.found(index, state, *found));
        }
    }

    fn found(&mut self, reader: usize, state: i64, found: Found) {
        let writer = self.writers.get(&found.value).copied();
        let Some(writer) = writer.filter(|writer| self.key_of(*writer) == Some(found.key)) else {
            self.facts.spoiled.insert(found.key);
            let read = self.side(reader);
            self.refuse(Violation::NeverWritten { read, found });
            return;
        };
        if self.history.operations[writer].has_changed_nothing() {
            self.facts.spoiled.insert(found.key);
            let (request, witness) = (self.side(writer), self.side(reader));
            self.refuse(Violation::RefusedButSeen { request, witness });
        } else if found.mod_revision > state {
            self.facts.spoiled.insert(found.key);
            let read = self.side(reader);
            self.refuse(Violation::FromTheFuture { read, revision: state, found });
        } else {
            self.claim(found.mod_revision, found.key, Change::Set(found.value), writer, reader);
        }
    }

    /// Notes that `witness` says that the change of `writer` has this revision.
    fn claim(&mut self, revision: i64, key: Key, change: Change, writer: usize, witness: usize) {
        if revision <= self.history.first_revision {
            self.facts.spoiled.insert(key);
            let operation = self.side(witness);
            let why = "it tells of a change at a revision that existed before the first request";
            self.refuse(Violation::Malformed { operation, why });
            return;
        }
        let known = self.facts.by_revision.get(&revision).copied();
        if let Some(known) = known.filter(|known| known.writer != writer) {
            self.facts.spoiled.extend([key, known.key]);
            let (first, second) = (self.side(known.witness), self.side(witness));
            self.refuse(Violation::RevisionShared { revision, first, second });
            return;
        }
        match self.facts.placed.get(&writer).copied() {
            Some(first) if first != revision => {
                self.facts.spoiled.insert(key);
                let (request, witness) = (self.side(writer), self.side(witness));
                self.refuse(Violation::DoneTwice { first, second: revision, request, witness });
            }
            Some(_) => {}
            None => {
                self.facts.placed.insert(writer, revision);
                self.facts.by_revision.insert(revision, Fact { key, change, writer, witness });
            }
        }
    }

    fn key_of(&self, writer: usize) -> Option<Key> {
        self.history.operations[writer].request.writes().map(|(key, _)| key)
    }

    fn side(&self, index: usize) -> Side {
        Side::of(self.history, index)
    }

    fn refuse(&mut self, violation: Violation) {
        self.facts.is_incomplete = true;
        if self.named < NAMED_OF_A_KIND {
            self.violations.push(violation);
        }
        self.named += 1;
    }
}

impl Request {
    /// The revision of the state that a read shows whose header says `revision`.
    pub(super) fn state(&self, revision: i64) -> i64 {
        match self {
            Request::Read { freshness: Freshness::At(state), .. } => *state,
            Request::Read { freshness: Freshness::Linearizable | Freshness::Serializable, .. }
            | Request::Put { .. }
            | Request::Delete { .. }
            | Request::CompareAndPut { .. } => revision,
        }
    }
}

/// Why an answer does not belong to a request.
fn misfit(request: &Request, answer: &Answer) -> Option<&'static str> {
    match (request, answer) {
        (Request::Put { .. }, Answer::Written { .. })
        | (Request::Delete { .. }, Answer::Deleted { .. })
        | (Request::CompareAndPut { .. }, Answer::Compared { .. }) => None,
        (Request::Read { first, last, .. }, Answer::Read { revision, found }) => {
            if !found.iter().all(|found| (*first..=*last).contains(&found.key)) {
                Some("it found a key that was not asked for")
            } else if !found.is_sorted_by(|one, next| one.key < next.key) {
                Some("its keys are not in order")
            } else if request.state(*revision) > *revision {
                Some("it shows a state that does not exist yet")
            } else {
                None
            }
        }
        (
            Request::Put { .. }
            | Request::Delete { .. }
            | Request::CompareAndPut { .. }
            | Request::Read { .. },
            Answer::Written { .. } | Answer::Deleted { .. } | Answer::Compared { .. } | Answer::Read { .. },
        ) => Some("its answer is one to another kind of request"),
    }
}
