//! Carries out all changes in the order of their revisions, key by key, and compares every answer with the state at
//! its revision. What nobody saw is left to `hidden`.

use std::collections::{BTreeMap, BTreeSet};

use super::facts::Facts;
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

/// What a request did to a key.
#[derive(Clone, Copy, Debug)]
enum Change {
    Set(Token),
    Removed,
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
    let mut evidence = gather(history, facts);
    // A key on which something may have happened that nobody saw cannot be replayed by itself.
    let open: BTreeSet<Key> = match hidden {
        0 => BTreeSet::new(),
        _ => unseen
            .iter()
            .flat_map(|index| concerned(&history.operations[*index].request, &evidence))
            .collect(),
    };
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
        && operation.request.may_change()
        && !facts.placed.contains_key(&index)
}

/// The keys that a request would change or that decide whether it does, of those about which anything is known.
pub(super) fn concerned(request: &Request, lines: &BTreeMap<Key, Vec<Evidence>>) -> BTreeSet<Key> {
    let mut keys: BTreeSet<Key> = request.sets().map(|(key, _)| key).collect();
    keys.extend(request.expects().map(|(key, _)| key));
    if let Some(span) = request.removes().filter(|span| span.first <= span.last) {
        keys.extend(lines.range(span.first..=span.last).map(|(key, _)| *key));
    }
    keys
}

/// Everything that is known about each key, in the order of revisions.
fn gather(history: &History, facts: &Facts) -> BTreeMap<Key, Vec<Evidence>> {
    let mut lines = Lines(BTreeMap::new());
    for Operation { request, .. } in &history.operations {
        let keys = request.sets().map(|(key, _)| key);
        let keys = keys.chain(request.expects().map(|(key, _)| key));
        lines.0.extend(keys.map(|key| (key, Vec::new())));
        if let Request::Delete { key } = request {
            lines.0.entry(*key).or_default();
        }
    }
    for (revision, fact) in &facts.by_revision {
        let request = &history.operations[fact.writer].request;
        let note = |key, order, what, lines: &mut Lines| {
            lines.note(key, Evidence { revision: *revision, order, operation: fact.writer, what });
        };
        if let Some(span) = request.removes() {
            for key in lines.keys(span.first, span.last) {
                note(key, Order::Change, What::Changed(Change::Removed), &mut lines);
            }
        }
        for (key, value) in request.sets() {
            note(key, Order::Change, What::Changed(Change::Set(value)), &mut lines);
        }
        if let Some((key, expected)) = request.expects() {
            note(key, Order::Before, What::Said(Said::ModRevisionIs(expected)), &mut lines);
        }
        if let Request::Delete { key } = request {
            note(*key, Order::Before, What::Said(Said::Exists), &mut lines);
        }
    }
    let sound = history.operations.iter().enumerate().filter(|(index, _)| !facts.malformed.contains(index));
    for (index, operation) in sound {
        let Some((_, answer)) = operation.answer() else { continue };
        let revision = answer.revision();
        let said =
            |said| Evidence { revision, order: Order::After, operation: index, what: What::Said(said) };
        match answer {
            Answer::Deleted { existed: false, .. } => {
                if let Some(span) = operation.request.removes() {
                    lines.note(span.first, said(Said::Absent));
                }
            }
            Answer::Compared { succeeded: false, .. } | Answer::Transacted { succeeded: false, .. } => {
                if let Some((key, expected)) = operation.request.expects() {
                    lines.note(key, said(Said::ModRevisionIsNot(expected)));
                }
            }
            Answer::Deleted { existed: true, .. }
            | Answer::Compared { succeeded: true, .. }
            | Answer::Transacted { succeeded: true, .. }
            | Answer::Written { .. }
            | Answer::RangeDeleted { .. }
            | Answer::Compacted { .. }
            | Answer::Read { .. } => {}
        }
        lines.note_read(index, operation, answer);
    }
    lines.0.values_mut().for_each(|line| line.sort_by_key(|evidence| (evidence.revision, evidence.order)));
    lines.0
}

/// What is known about each key.
struct Lines(BTreeMap<Key, Vec<Evidence>>);

impl Lines {
    fn note(&mut self, key: Key, evidence: Evidence) {
        self.0.entry(key).or_default().push(evidence);
    }

    fn keys(&self, first: Key, last: Key) -> Vec<Key> {
        if first > last { Vec::new() } else { self.0.range(first..=last).map(|(key, _)| *key).collect() }
    }

    /// What was read says something about every key asked for that was ever written. A change has read the state that
    /// it met.
    fn note_read(&mut self, index: usize, operation: &Operation, answer: &Answer) {
        let Some(span) = operation.request.reads().filter(|span| span.first <= span.last) else { return };
        let (revision, order) = match operation.request {
            Request::Read { .. } => (operation.shows().unwrap_or_default(), Order::After),
            _ if operation.has_changed() => (answer.revision(), Order::Before),
            _ => (answer.revision(), Order::After),
        };
        let mut found = answer.found().iter().peekable();
        for (key, line) in self.0.range_mut(span.first..=span.last) {
            let said = match found.next_if(|found| found.key == *key) {
                Some(found) => Said::Holds(*found),
                None => Said::Absent,
            };
            line.push(Evidence { revision, order, operation: index, what: What::Said(said) });
        }
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
