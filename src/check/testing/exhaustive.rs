//! Tries every order of a few operations: what `check` proves by the revisions is found here by looking everywhere.

use std::collections::{BTreeMap, BTreeSet};

use super::{Answer, Found, Freshness, History, Key, Outcome, Request, Span, Token};

type Keys = BTreeMap<Key, Found>;

/// An order in the making.
#[derive(Clone)]
struct Order<'h> {
    history: &'h History,
    /// The states from the first revision on.
    states: Vec<Keys>,
    /// The revision at which each operation stands, and whether it made it.
    placed: BTreeMap<usize, (i64, bool)>,
}

/// True where some order of the operations explains every answer.
pub(in crate::check) fn is_linearizable(history: &History) -> bool {
    let tokens: Vec<Token> = history
        .operations
        .iter()
        .flat_map(|operation| operation.request.sets())
        .map(|(_, token)| token)
        .collect();
    if tokens.iter().collect::<BTreeSet<_>>().len() < tokens.len() {
        return false;
    }
    let backwards = |index: &usize| {
        let operation = &history.operations[*index];
        operation.answer().is_some_and(|(returned, _)| returned < operation.called)
    };
    if (0..history.operations.len()).any(|index| backwards(&index)) {
        return false;
    }
    let start = Order { history, states: vec![Keys::new()], placed: BTreeMap::new() };
    let waiting = (0..history.operations.len())
        .filter(|index| !is_serializable(history, *index))
        .filter(|index| history.operations[*index].outcome != Outcome::Refused)
        .collect();
    start.goes_on(&waiting)
}

fn is_serializable(history: &History, index: usize) -> bool {
    matches!(history.operations[index].request, Request::Read { freshness: Freshness::Serializable, .. })
}

impl Order<'_> {
    /// Tries each operation that may come next, and to leave out those that got no answer.
    fn goes_on(&self, waiting: &BTreeSet<usize>) -> bool {
        let operations = &self.history.operations;
        if waiting.iter().all(|index| operations[*index].outcome == Outcome::Unknown)
            && self.admits_serializable()
        {
            return true;
        }
        let earliest =
            waiting.iter().filter_map(|index| Some(operations[*index].answer()?.0)).min().unwrap_or(u64::MAX);
        waiting.iter().filter(|index| operations[**index].called <= earliest).any(|index| {
            let mut next = self.clone();
            let mut left = waiting.clone();
            left.remove(index);
            next.carry_out(*index) && next.goes_on(&left)
        })
    }

    fn newest(&self) -> i64 {
        self.history.first_revision + i64::try_from(self.states.len()).unwrap() - 1
    }

    fn at(&self, revision: i64) -> Option<&Keys> {
        self.states.get(usize::try_from(revision - self.history.first_revision).ok()?)
    }

    /// True where the operation is answered now as it was.
    fn carry_out(&mut self, index: usize) -> bool {
        let operation = &self.history.operations[index];
        let mut keys = self.states.last().unwrap().clone();
        let newest = self.newest();
        let answer = match operation.request {
            Request::Put { key, value } => {
                set(&mut keys, key, value, newest + 1);
                Answer::Written { revision: newest + 1 }
            }
            Request::Delete { key } => {
                let existed = keys.remove(&key).is_some();
                Answer::Deleted { revision: newest + i64::from(existed), existed }
            }
            Request::CompareAndPut { key, expected_mod_revision, value } => {
                let held = keys.get(&key).map_or(0, |found| found.mod_revision);
                let succeeded = held == expected_mod_revision;
                if succeeded {
                    set(&mut keys, key, value, newest + 1);
                }
                Answer::Compared { revision: newest + i64::from(succeeded), succeeded }
            }
            Request::DeleteRange(span) => {
                let removed = within(&keys, span);
                keys.retain(|key, _| !span.holds(*key));
                Answer::RangeDeleted { revision: newest + i64::from(!removed.is_empty()), removed }
            }
            Request::Transaction(asked) => {
                let met = within(&keys, asked.reads);
                let held = |key: &Key| keys.get(key).map_or(0, |found| found.mod_revision);
                let succeeded = asked.expected.is_none_or(|(key, expected)| held(&key) == expected);
                if succeeded {
                    if let Some(span) = asked.removes {
                        keys.retain(|key, _| !span.holds(*key));
                    }
                    asked.sets.iter().for_each(|(key, value)| set(&mut keys, key, value, newest + 1));
                }
                Answer::Transacted { revision: newest + i64::from(succeeded), succeeded, met }
            }
            Request::Compact { .. } => Answer::Compacted { revision: newest },
            Request::Read { first, last, freshness } => {
                let state = match freshness {
                    Freshness::At(revision) => revision,
                    Freshness::Linearizable | Freshness::Serializable => newest,
                };
                let Some(keys) = self.at(state) else { return false };
                let found = keys.iter().filter(|(key, _)| (first..=last).contains(key));
                Answer::Read { revision: newest, found: found.map(|(_, found)| *found).collect() }
            }
        };
        if operation.answer().is_some_and(|(_, given)| *given != answer) {
            return false;
        }
        let is_change = keys != *self.states.last().unwrap();
        if is_change {
            self.states.push(keys);
        }
        self.placed.insert(index, (self.newest(), is_change));
        true
    }

    /// Serializable reads show a state that was made when they returned, and no older one than their process has.
    fn admits_serializable(&self) -> bool {
        let operations = &self.history.operations;
        let serializable: Vec<usize> =
            (0..operations.len()).filter(|index| is_serializable(self.history, *index)).collect();
        serializable.into_iter().all(|index| {
            let read = &operations[index];
            let Some((returned, Answer::Read { revision, found })) = read.answer() else {
                return read.answer().is_none();
            };
            let Request::Read { first, last, .. } = read.request else { return false };
            let Some(keys) = self.at(*revision) else { return false };
            let shown: Vec<Found> =
                keys.values().filter(|found| (first..=last).contains(&found.key)).copied().collect();
            let made_in_time = self.placed.iter().all(|(other, (at, is_change))| {
                let is_after = operations[*other].called > returned;
                !is_after || at > revision || (at == revision && !is_change)
            });
            let no_step_back = operations.iter().filter_map(|other| Some((other, other.answer()?))).all(
                |(other, (other_returned, answer))| {
                    (other.node, other.session) != (read.node, read.session)
                        || other_returned >= read.called
                        || answer.revision() <= *revision
                },
            );
            shown == *found && made_in_time && no_step_back
        })
    }
}

fn within(keys: &Keys, span: Span) -> Vec<Found> {
    keys.values().filter(|found| span.holds(found.key)).copied().collect()
}

fn set(keys: &mut Keys, key: Key, value: Token, revision: i64) {
    let old = keys.get(&key).copied();
    let create_revision = old.map_or(revision, |old| old.create_revision);
    let version = old.map_or(0, |old| old.version) + 1;
    keys.insert(key, Found { key, value, create_revision, mod_revision: revision, version });
}
