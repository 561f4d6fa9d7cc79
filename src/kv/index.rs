//! Which changes each key went through, in memory: it finds the record that holds a key at a revision without
//! reading any other. Values stay in the backend. A key that was written once costs its own bytes and about a
//! hundred and fifty more; each further change that is still kept costs 16.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use super::backend::RevisionKey;
use super::cost::{Budget, write_cost};
use super::keys::KeyRange;

/// One change of a key, packed: there are as many of these as there are records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    main: i64,
    sub: u32,
    /// Length of the record in bytes; the highest bit marks a tombstone.
    packed: u32,
}

const TOMBSTONE: u32 = 1 << 31;

impl Change {
    pub(super) fn new(at: RevisionKey, record_bytes: usize, tombstone: bool) -> Change {
        let sub = u32::try_from(at.sub).expect("fewer than 2^32 changes in a revision");
        // The length only feeds a statistic: a record beyond 2 GiB would count as that much.
        let length = u32::try_from(record_bytes).unwrap_or(u32::MAX) & !TOMBSTONE;
        Change { main: at.main, sub, packed: length | if tombstone { TOMBSTONE } else { 0 } }
    }

    pub(super) fn at(self) -> RevisionKey {
        RevisionKey { main: self.main, sub: i64::from(self.sub) }
    }

    pub(super) fn revision(self) -> i64 {
        self.main
    }

    pub(super) fn is_tombstone(self) -> bool {
        self.packed & TOMBSTONE != 0
    }

    pub(super) fn record_bytes(self) -> u64 {
        u64::from(self.packed & !TOMBSTONE)
    }
}

/// All changes of one key that are still kept, oldest first.
#[derive(Clone, Debug)]
pub(super) struct History {
    /// Kept apart from the older ones, so that a key written once needs no second allocation.
    newest: Change,
    /// Revision that created the key as it now is; meaningless while the newest change is a tombstone.
    created: i64,
    /// Writes since then; as `created`.
    version: i64,
    /// Taken from the front when compacted, however long it is.
    older: VecDeque<Change>,
}

impl History {
    /// What holds the key at `revision`; none where the key does not exist then.
    pub(super) fn live_at(&self, revision: i64) -> Option<Change> {
        let change = self.change_at(revision)?;
        (!change.is_tombstone()).then_some(change)
    }

    fn change_at(&self, revision: i64) -> Option<Change> {
        if self.newest.main <= revision {
            return Some(self.newest);
        }
        let later = self.older.partition_point(|change| change.main <= revision);
        later.checked_sub(1).map(|last| self.older[last])
    }

    /// As [`History::live_at`], and the key's `create_revision` and `version` then, where they are known without reading
    /// the record.
    pub(super) fn state_at(&self, revision: i64) -> Option<(Change, Option<(i64, i64)>)> {
        let change = self.live_at(revision)?;
        Some((change, (self.newest.main <= revision).then_some((self.created, self.version))))
    }

    /// `create_revision` and `version` of the newest change, where the key exists.
    pub(super) fn live_now(&self) -> Option<(Change, i64, i64)> {
        (!self.newest.is_tombstone()).then_some((self.newest, self.created, self.version))
    }

    fn push(&mut self, change: Change, created: i64, version: i64) {
        self.older.push_back(std::mem::replace(&mut self.newest, change));
        self.created = created;
        self.version = version;
    }

    /// Takes out up to `budget` of the changes that a store compacted at `compacted` does not keep, oldest first.
    fn forget(&mut self, compacted: i64, budget: usize, forgotten: &mut Vec<Change>) -> Forgotten {
        let later = self.older.partition_point(|change| change.main <= compacted);
        let (removable, whole) = if self.newest.main <= compacted {
            (later, !is_kept(self.newest, compacted))
        } else {
            let base_kept = later > 0 && is_kept(self.older[later - 1], compacted);
            (later - usize::from(base_kept), false)
        };
        let taken = removable.min(budget);
        forgotten.extend(self.older.drain(..taken));
        if self.older.capacity() > 4 * self.older.len() {
            self.older.shrink_to(self.older.len());
        }
        if taken < removable || (whole && taken == budget) {
            return Forgotten::NotYet;
        }
        if whole {
            forgotten.push(self.newest);
            return Forgotten::Key;
        }
        Forgotten::Old
    }
}

/// Of the last change at or below `compacted`: does anyone from there on see it? A tombstone made by that very
/// revision is an event for a watcher that starts there.
fn is_kept(change: Change, compacted: i64) -> bool {
    !change.is_tombstone() || change.main == compacted
}

enum Forgotten {
    /// The budget ended first.
    NotYet,
    /// What is left is kept.
    Old,
    /// Nothing is left of the key.
    Key,
}

/// The histories of all keys, in key order.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    keys: BTreeMap<Box<[u8]>, History>,
    /// Keys that exist now.
    live: usize,
    /// Bytes of all records that are kept.
    bytes: u64,
}

impl Index {
    pub(super) fn live_keys(&self) -> usize {
        self.live
    }

    pub(super) fn record_bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&History> {
        self.keys.get(key)
    }

    /// The histories of the keys in `range` and behind `cursor`, in key order, also of keys that no longer exist.
    pub(super) fn range<'a>(
        &'a self,
        range: KeyRange<'a>,
        cursor: Option<&'a [u8]>,
    ) -> impl Iterator<Item = (&'a [u8], &'a History)> {
        // A single key is looked up, which is twice as fast as a walk of one step.
        let (one, span) = match range {
            KeyRange::One(key) => (self.keys.get_key_value(key).filter(|_| cursor.is_none()), None),
            KeyRange::Span(..) => {
                (None, range.bounds(cursor).map(|bounds| self.keys.range::<[u8], _>(bounds)))
            }
        };
        one.into_iter().chain(span.into_iter().flatten()).map(|(key, history)| (&**key, history))
    }

    /// The histories of the keys behind `cursor`, in key order; of all keys where there is none.
    pub(super) fn after(&self, cursor: Option<&[u8]>) -> impl Iterator<Item = (&[u8], &History)> {
        let from = cursor.map_or(Bound::Unbounded, Bound::Excluded);
        self.keys.range::<[u8], _>((from, Bound::Unbounded)).map(|(key, history)| (&**key, history))
    }

    /// Notes a put. `write` is told the `create_revision` and `version` that the key gets, writes the record
    /// and returns its length.
    pub(super) fn put(&mut self, key: &[u8], at: RevisionKey, write: impl FnOnce(i64, i64) -> usize) {
        match self.keys.get_mut(key) {
            Some(history) => {
                let (created, version) = match history.live_now() {
                    Some((_, created, version)) => (created, version + 1),
                    None => {
                        self.live += 1;
                        (at.main, 1)
                    }
                };
                let change = Change::new(at, write(created, version), false);
                self.bytes += change.record_bytes();
                history.push(change, created, version);
            }
            None => {
                let record_bytes = write(at.main, 1);
                self.insert(key, Change::new(at, record_bytes, false), at.main, 1);
            }
        }
    }

    /// Deletes keys that exist, in key order, from the one behind `cursor` on, until the budget is spent. `write` gets
    /// each key, writes its tombstone and returns where and how long. Returns the last key that was looked at; none
    /// when the range is done.
    pub(super) fn delete(
        &mut self,
        range: KeyRange<'_>,
        cursor: Option<&[u8]>,
        budget: &mut Budget,
        mut write: impl FnMut(&[u8]) -> (RevisionKey, usize),
    ) -> Option<Box<[u8]>> {
        let (live, bytes) = (&mut self.live, &mut self.bytes);
        let mut delete = |key: &[u8], history: &mut History, budget: &mut Budget| {
            budget.spend(1);
            if history.live_now().is_some() {
                let (at, record_bytes) = write(key);
                let change = Change::new(at, record_bytes, true);
                history.push(change, 0, 0);
                *live -= 1;
                *bytes += change.record_bytes();
                budget.spend(write_cost(record_bytes));
            }
        };
        match range {
            KeyRange::One(key) => {
                if let Some(history) = self.keys.get_mut(key) {
                    delete(key, history, budget);
                }
            }
            KeyRange::Span(..) => {
                let bounds = range.bounds(cursor)?;
                for (key, history) in self.keys.range_mut::<[u8], _>(bounds) {
                    delete(key, history, budget);
                    if budget.is_spent() {
                        return Some(key.clone());
                    }
                }
            }
        }
        None
    }

    /// Notes a change that was read back from a record; changes must come in order.
    pub(super) fn restore(&mut self, key: &[u8], change: Change, created: i64, version: i64) {
        let Some(history) = self.keys.get_mut(key) else {
            self.insert(key, change, created, version);
            return;
        };
        let was = !history.newest.is_tombstone();
        history.push(change, created, version);
        self.bytes += change.record_bytes();
        match (was, change.is_tombstone()) {
            (true, true) => self.live -= 1,
            (false, false) => self.live += 1,
            (true, false) | (false, true) => {}
        }
    }

    fn insert(&mut self, key: &[u8], newest: Change, created: i64, version: i64) {
        self.bytes += newest.record_bytes();
        self.live += usize::from(!newest.is_tombstone());
        self.keys.insert(key.into(), History { newest, created, version, older: VecDeque::new() });
    }

    /// One bounded step of forgetting what a store compacted at `compacted` does not keep, from the key after
    /// `cursor` on. Visits at most `budget` keys and forgets at most about as many changes. Returns what to
    /// remove from the backend and where to go on; none when the last key is done.
    pub(super) fn forget(
        &mut self,
        compacted: i64,
        cursor: Option<&[u8]>,
        budget: usize,
    ) -> (Vec<Change>, Option<Box<[u8]>>) {
        let from = cursor.map_or(Bound::Unbounded, Bound::Excluded);
        let mut forgotten = Vec::new();
        let mut emptied: Vec<Box<[u8]>> = Vec::new();
        let mut last_done: Option<&Box<[u8]>> = None;
        let mut finished = true;
        for (visited, (key, history)) in self.keys.range_mut::<[u8], _>((from, Bound::Unbounded)).enumerate()
        {
            let left = budget.saturating_sub(forgotten.len());
            if visited >= budget || left == 0 {
                finished = false;
                break;
            }
            match history.forget(compacted, left, &mut forgotten) {
                Forgotten::NotYet => {
                    finished = false;
                    break;
                }
                Forgotten::Old => {}
                Forgotten::Key => emptied.push(key.clone()),
            }
            last_done = Some(key);
        }
        // The empty key exists nowhere, so it stands before every other.
        let next = (!finished).then(|| last_done.cloned().or(cursor.map(Box::from)).unwrap_or_default());
        for key in emptied {
            self.keys.remove(&key);
        }
        self.bytes -= forgotten.iter().map(|change| change.record_bytes()).sum::<u64>();
        (forgotten, next)
    }
}
