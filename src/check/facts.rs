//! Where every change stands that was acknowledged or seen: one revision for one request, one request for one
//! revision. What a state looked like is not judged here.

use std::collections::{BTreeMap, BTreeSet};

use super::{Answer, Found, History, Key, NAMED_OF_A_KIND, Operation, Request, Side, Token, Violation};

/// The change that has a certain revision: all that this request sets and removes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fact {
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
        for (_, token) in operation.request.sets() {
            if let Some(first) = self.writers.insert(token, index) {
                let (first, second) = (self.side(first), self.side(index));
                self.refuse(Violation::TokenShared { first, second });
            }
        }
    }

    fn answer(&mut self, index: usize, operation: &Operation) {
        let Some((returned, answer)) = operation.answer() else { return };
        let shows = operation.shows().unwrap_or_else(|| answer.revision());
        let misfit = if returned < operation.called {
            Some("it returned before it was called")
        } else if shows < self.history.first_revision && !operation.has_changed() {
            Some("it shows a state from before the first request")
        } else {
            misfit(operation, answer)
        };
        if let Some(why) = misfit {
            self.facts.malformed.insert(index);
            let operation = self.side(index);
            self.refuse(Violation::Malformed { operation, why });
            return;
        }
        self.facts.last_revision = self.facts.last_revision.max(answer.revision());
        if operation.has_changed() {
            self.claim(answer.revision(), index, index);
        }
        answer.found().iter().for_each(|found| self.found(index, shows, *found));
    }

    fn found(&mut self, reader: usize, state: i64, found: Found) {
        let writer = self.writers.get(&found.value).copied();
        let there = (found.key, found.value);
        let Some(writer) = writer.filter(|writer| self.asks(*writer).sets().any(|set| set == there)) else {
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
            self.claim(found.mod_revision, writer, reader);
        }
    }

    /// Notes that `witness` says that the change of `writer` has this revision.
    fn claim(&mut self, revision: i64, writer: usize, witness: usize) {
        if revision <= self.history.first_revision {
            self.spoil(writer);
            let operation = self.side(witness);
            let why = "it tells of a change at a revision that existed before the first request";
            self.refuse(Violation::Malformed { operation, why });
            return;
        }
        let known = self.facts.by_revision.get(&revision).copied();
        if let Some(known) = known.filter(|known| known.writer != writer) {
            self.spoil(known.writer);
            self.spoil(writer);
            let (first, second) = (self.side(known.witness), self.side(witness));
            self.refuse(Violation::RevisionShared { revision, first, second });
            return;
        }
        match self.facts.placed.get(&writer).copied() {
            Some(first) if first != revision => {
                self.spoil(writer);
                let (request, witness) = (self.side(writer), self.side(witness));
                self.refuse(Violation::DoneTwice { first, second: revision, request, witness });
            }
            Some(_) => {}
            None => {
                self.facts.placed.insert(writer, revision);
                self.facts.by_revision.insert(revision, Fact { writer, witness });
            }
        }
    }

    /// Leaves the keys of a request out of what follows.
    fn spoil(&mut self, writer: usize) {
        let request = *self.asks(writer);
        self.facts.spoiled.extend(request.sets().map(|(key, _)| key));
        if let Some(span) = request.removes() {
            self.facts.spoiled.extend((span.first.0..=span.last.0).map(Key));
        }
    }

    fn asks(&self, writer: usize) -> &Request {
        &self.history.operations[writer].request
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

/// Why an answer does not belong to a request.
fn misfit(operation: &Operation, answer: &Answer) -> Option<&'static str> {
    let is_kind = match (&operation.request, answer) {
        (Request::Put { .. }, Answer::Written { .. })
        | (Request::Delete { .. }, Answer::Deleted { .. })
        | (Request::CompareAndPut { .. }, Answer::Compared { .. })
        | (Request::DeleteRange(_), Answer::RangeDeleted { .. })
        | (Request::Compact { .. }, Answer::Compacted { .. })
        | (Request::Read { .. }, Answer::Read { .. }) => true,
        (Request::Transaction(asked), Answer::Transacted { succeeded, .. }) => {
            *succeeded || asked.expected.is_some()
        }
        (
            Request::Put { .. }
            | Request::Delete { .. }
            | Request::CompareAndPut { .. }
            | Request::DeleteRange(_)
            | Request::Transaction(_)
            | Request::Compact { .. }
            | Request::Read { .. },
            _,
        ) => false,
    };
    let found = answer.found();
    if !is_kind {
        Some("its answer is one to another kind of request")
    } else if !found.iter().all(|found| operation.request.reads().is_some_and(|span| span.holds(found.key))) {
        Some("it found a key that was not asked for")
    } else if !found.is_sorted_by(|one, next| one.key < next.key) {
        Some("its keys are not in order")
    } else if operation.shows().is_some_and(|state| state > answer.revision()) {
        Some("it shows a state that does not exist yet")
    } else if matches!(operation.request, Request::Compact { revision } if revision > answer.revision()) {
        Some("it compacted what does not exist yet")
    } else {
        None
    }
}
