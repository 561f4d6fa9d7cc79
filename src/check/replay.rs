//! Carries out all changes in the order of their revisions, key by key, and compares every answer with the state at
//! its revision. What nobody saw is left to `hidden`.

use std::collections::{BTreeMap, BTreeSet};

use super::facts::{Change, Facts};
use super::hidden::{self, Search};
use super::violation::Said;
use super::{Answer, Found, History, Key, Operation, Outcome, Request, Side, Token, Violation};

/// What is known about a key at a revision: a change, or what an answer says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Evidence {
    pub(super) revision: i64,
    order: Order,
    /// Who made the change, or was told.
    operation: usize,
    what: What,
}

/// The order of evidence about one revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Order {
    /// The state that the change met.
    Before,
    Change,
    /// The state that it left.
    After,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Changed(Change),
    Said(Said),
}

/// Replays every key. Returns how many revisions nobody saw, and whether the search for who made them was given up.
pub(super) fn check(history: &History, facts: &Facts, violations: &mut Vec<Violation>) -> (usize, bool) {
    let unseen: Vec<usize> =
        (0..history.operations.len()).filter(|index| is_unseen(history, facts, *index)).collect();
    let hidden = hidden::count(history, facts);
    // A key on which something may have happened that nobody saw cannot be replayed by itself.
    let open: BTreeSet<Key> = match hidden {
        0 => BTreeSet::new(),
        _ => unseen.iter().filter_map(|index| history.operations[*index].request.changes()).collect(),
    };
    let mut evidence = gather(history, facts);
    let closed = evidence.extract_if(.., |key, _| !open.contains(key));
    for (key, line) in closed.filter(|(key, _)| !facts.spoiled.contains(key)) {
        violations.extend(replay(history, facts, key, &line).err());
    }
    // Where an answer was impossible, a revision may be missing because of that.
    if hidden == 0 || facts.is_incomplete {
        return (hidden, false);
    }
    match hidden::search(history, facts, evidence, &unseen) {
        Search::Explained => (hidden, false),
        Search::GivenUp => (hidden, true),
        Search::Impossible(violation) => {
            violations.push(violation);
            (hidden, false)
        }
    }
}

/// A request of unknown outcome that would change something, and nobody saw that it did.
fn is_unseen(history: &History, facts: &Facts, index: usize) -> bool {
    let operation = &history.operations[index];
    operation.outcome == Outcome::Unknown
        && operation.request.changes().is_some()
        && !facts.placed.contains_key(&index)
}

impl Request {
    /// The key that it would change.
    pub(super) fn changes(&self) -> Option<Key> {
        match *self {
            Request::Put { key, .. } | Request::CompareAndPut { key, .. } | Request::Delete { key } => {
                Some(key)
            }
            Request::Read { .. } => None,
        }
    }
}

/// Everything that is known about each key, in the order of revisions.
fn gather(history: &History, facts: &Facts) -> BTreeMap<Key, Vec<Evidence>> {
    let operations = history.operations.iter();
    let mut lines: BTreeMap<Key, Vec<Evidence>> = BTreeMap::new();
    for operation in operations {
        lines.extend(operation.request.changes().map(|key| (key, Vec::new())));
    }
    let mut note = |key, revision, order, operation, what| {
        lines.entry(key).or_default().push(Evidence { revision, order, operation, what });
    };
    for (revision, fact) in &facts.by_revision {
        note(fact.key, *revision, Order::Change, fact.writer, What::Changed(fact.change));
        let met = match history.operations[fact.writer].request {
            Request::Delete { .. } => Some(Said::Exists),
            Request::CompareAndPut { expected_mod_revision, .. } => {
                Some(Said::ModRevisionIs(expected_mod_revision))
            }
            Request::Put { .. } | Request::Read { .. } => None,
        };
        if let Some(said) = met {
            note(fact.key, *revision, Order::Before, fact.writer, What::Said(said));
        }
    }
    let sound = history.operations.iter().enumerate().filter(|(index, _)| !facts.malformed.contains(index));
    let mut reads = Vec::new();
    for (index, operation) in sound {
        match (&operation.request, operation.answer()) {
            (Request::Delete { key }, Some((_, Answer::Deleted { revision, existed: false }))) => {
                note(*key, *revision, Order::After, index, What::Said(Said::Absent));
            }
            (
                Request::CompareAndPut { key, expected_mod_revision, .. },
                Some((_, Answer::Compared { revision, succeeded: false })),
            ) => {
                let said = Said::ModRevisionIsNot(*expected_mod_revision);
                note(*key, *revision, Order::After, index, What::Said(said));
            }
            (Request::Read { .. }, Some((_, Answer::Read { .. }))) => reads.push((index, operation)),
            (
                Request::Put { .. }
                | Request::Delete { .. }
                | Request::CompareAndPut { .. }
                | Request::Read { .. },
                _,
            ) => {}
        }
    }
    for (index, operation) in reads {
        note_read(index, operation, &mut lines);
    }
    lines.values_mut().for_each(|line| line.sort_by_key(|evidence| (evidence.revision, evidence.order)));
    lines
}

/// A read says something about every key it asked for that was ever written.
fn note_read(index: usize, operation: &Operation, lines: &mut BTreeMap<Key, Vec<Evidence>>) {
    let Request::Read { first, last, .. } = operation.request else { return };
    let Some((_, Answer::Read { revision, found })) = operation.answer() else { return };
    if first > last {
        return;
    }
    let revision = operation.request.state(*revision);
    let mut found = found.iter().peekable();
    for (key, line) in lines.range_mut(first..=last) {
        let said = match found.next_if(|found| found.key == *key) {
            Some(found) => Said::Holds(*found),
            None => Said::Absent,
        };
        line.push(Evidence { revision, order: Order::After, operation: index, what: What::Said(said) });
    }
}

/// Carries out what is known about a key from its beginning.
fn replay(history: &History, facts: &Facts, key: Key, line: &[Evidence]) -> Result<(), Violation> {
    let mut state = None;
    for evidence in line {
        evidence.follow(key, &mut state).map_err(|said| evidence.refuse(history, facts, key, state, said))?;
    }
    Ok(())
}

/// Sets a key as a store does.
pub(super) fn set(key: Key, revision: i64, value: Token, state: Option<Found>) -> Found {
    let fresh = Found { key, value, create_revision: revision, mod_revision: revision, version: 1 };
    state.map_or(fresh, |old| Found {
        create_revision: old.create_revision,
        version: old.version + 1,
        ..fresh
    })
}

impl Evidence {
    /// Takes the change to the state, or compares what was said with it.
    ///
    /// # Errors
    /// What was said and is not so.
    pub(super) fn follow(&self, key: Key, state: &mut Option<Found>) -> Result<(), Said> {
        match self.what {
            What::Changed(Change::Set(value)) => *state = Some(set(key, self.revision, value, *state)),
            What::Changed(Change::Removed) => *state = None,
            What::Said(said) if said.holds(*state) => {}
            What::Said(said) => return Err(said),
        }
        Ok(())
    }

    /// The violation that lies in what was said about a key in this state.
    pub(super) fn refuse(
        &self,
        history: &History,
        facts: &Facts,
        key: Key,
        state: Option<Found>,
        said: Said,
    ) -> Violation {
        let operation = Side::of(history, self.operation);
        let revision = if self.order == Order::Before { self.revision - 1 } else { self.revision };
        let writer = state
            .filter(|state| said.is_older_than(*state))
            .and_then(|state| Some((state, facts.by_revision.get(&state.mod_revision)?.writer)));
        match writer {
            Some((state, writer)) => {
                let (changed_at, write) = (state.mod_revision, Side::of(history, writer));
                Violation::Missing { key, changed_at, write, revision, reader: operation }
            }
            None => Violation::Contradicted { key, revision, expected: state, said, operation },
        }
    }
}

impl Said {
    fn holds(self, state: Option<Found>) -> bool {
        match self {
            Said::Absent => state.is_none(),
            Said::Exists => state.is_some(),
            Said::Holds(found) => state == Some(found),
            Said::ModRevisionIs(revision) => mod_revision(state) == revision,
            Said::ModRevisionIsNot(revision) => mod_revision(state) != revision,
        }
    }

    /// It would have been true before the last change.
    fn is_older_than(self, state: Found) -> bool {
        match self {
            Said::Absent => true,
            Said::Holds(found) => found.mod_revision < state.mod_revision,
            Said::ModRevisionIs(revision) => revision < state.mod_revision,
            Said::Exists | Said::ModRevisionIsNot(_) => false,
        }
    }
}

fn mod_revision(state: Option<Found>) -> i64 {
    state.map_or(0, |state| state.mod_revision)
}
