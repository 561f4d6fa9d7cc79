//! Where records live: the few operations the data model needs from whatever holds its bytes. The durable
//! implementation belongs to the node; here is only the contract and a map in memory for tests and simulation.

use std::collections::BTreeMap;

use bytes::Bytes;

/// Names one change: the revision that made it and its place among the changes of that revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RevisionKey {
    /// The revision, from 2 on (an empty store is at 1).
    pub main: i64,
    /// Counts the changes of one revision from 0.
    pub sub: i64,
}

/// Where records live. Infallible by contract: an implementation that cannot read ends the process, because a
/// replica that answers from what it could not read is worse than one that is gone.
pub trait Backend: Send + Sync {
    /// The record at this place, if there is one.
    fn get(&self, at: RevisionKey) -> Option<Bytes>;
    /// Writes a record. A place is written once.
    fn put(&mut self, at: RevisionKey, record: Bytes);
    /// Removes a record; nothing happens where there is none.
    fn delete(&mut self, at: RevisionKey);
    /// Shows every record in the order of its place; used once, at open.
    fn scan(&self, visit: &mut dyn FnMut(RevisionKey, Bytes));
    /// A named value beside the records.
    fn meta(&self, name: &str) -> Option<Bytes>;
    /// Sets a named value, in one step with the records written around it.
    fn put_meta(&mut self, name: &str, value: Bytes);
}

/// Records in memory: equal contents are equal values, which is what determinism is tested by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryBackend {
    records: BTreeMap<RevisionKey, Bytes>,
    meta: BTreeMap<String, Bytes>,
}

impl MemoryBackend {
    /// How many records there are, of all revisions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// True where no record was ever written or all are gone.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

impl Backend for MemoryBackend {
    fn get(&self, at: RevisionKey) -> Option<Bytes> {
        self.records.get(&at).cloned()
    }

    fn put(&mut self, at: RevisionKey, record: Bytes) {
        self.records.insert(at, record);
    }

    fn delete(&mut self, at: RevisionKey) {
        self.records.remove(&at);
    }

    fn scan(&self, visit: &mut dyn FnMut(RevisionKey, Bytes)) {
        for (at, record) in &self.records {
            visit(*at, record.clone());
        }
    }

    fn meta(&self, name: &str) -> Option<Bytes> {
        self.meta.get(name).cloned()
    }

    fn put_meta(&mut self, name: &str, value: Bytes) {
        self.meta.insert(name.to_owned(), value);
    }
}
