//! etcd's data model, pure: what a request means for a store of keys with history. No clock, no disk, no network,
//! no randomness; records live behind [`Backend`].
//!
//! # The model
//! A *revision* numbers the states of the store. An empty store is at 1; a mutation that changes something makes
//! the next one, whatever the number of keys it changes; one that changes nothing makes none. A *change* is what
//! one revision did to one key: a put or a tombstone. It is written once, at ([`RevisionKey`]) (revision, place in
//! the revision), and stays readable until it is compacted away. A key *lives* from a put that found none to the
//! tombstone that ends it; `create_revision` and `version` count within one life.
//!
//! # How it is kept
//! ```text
//!   Backend    (revision, place) → record        everything, in the order it was made
//!   Index      key → its changes                 in memory, rebuilt from the records at open
//! ```
//! Writes append, which is what disks and B-trees like best; a read finds its records through the index and reads
//! no other. Values are never in the index.
//!
//! # The contract
//! * *Deterministic*: the same mutations give the same answers, refusals and bytes on every node. So what differs
//!   between nodes is no part of it: limits ([`Limits`]) are checked before a mutation is proposed, never in
//!   [`Store::apply`]; the progress of a removal shows nowhere.
//! * *All or nothing*: a refusal leaves nothing done, not even a revision.
//! * *Trusts nobody*: `apply` is safe for any mutation that can be decoded, checked or not.
//! * *One prefix*: a backend that keeps a prefix of the writes made to it, cut between two mutations, opens as the
//!   store it was then.
//!
//! # Where it differs from etcd
//! There are no leases yet: a put with a lease is answered as one with an unknown lease. A transaction that deletes
//! every key from one on and then keeps the value of one of them finds no key; etcd ends its process there.

mod apply;
mod backend;
#[cfg(test)]
mod bounded;
mod check;
mod compact;
mod compare;
mod cost;
#[cfg(test)]
mod divided;
mod estimate;
mod hash;
mod index;
mod keys;
#[cfg(test)]
mod model;
mod path;
mod pin;
mod plan;
mod program;
mod range;
mod record;
mod refusal;
#[cfg(test)]
mod scripts;
mod txn;
mod wire;
mod work;

pub use apply::{Applied, grows};
pub use backend::{Backend, MemoryBackend, RevisionKey};
pub use check::{Limits, check, check_range, check_txn, is_read_only};
pub use compact::Removed;
pub use cost::{ANSWER_BYTES, COST, Class, Progress, STEP_UNITS};
pub use hash::{Hash, Hasher, Scope, Step};
pub use pin::Pin;
pub use range::RangeWork;
pub use refusal::{Damaged, Refusal};
pub use txn::TxnWork;
pub use wire::{decode, encode};
pub use work::{Look, Work};

use std::sync::Arc;

use compact::Removal;
use index::{Change, Index};
use pin::Pins;
use record::Record;

use crate::proto::etcdserverpb::ResponseHeader;
use crate::rules::{Rule, breaks};

/// Name under which the space alarm is kept.
const SPACE_ALARM: &str = "space alarm";
/// Name under which the feature level is kept.
const FEATURE_LEVEL: &str = "feature level";

/// Keys with their history, and the rules by which they change.
#[derive(Clone, Debug)]
pub struct Store<B> {
    backend: B,
    index: Index,
    /// The newest revision.
    revision: i64,
    /// The oldest revision that can be read; −1 before the first compaction.
    compact_revision: i64,
    /// Present while records at or below `compact_revision` wait to be removed.
    removal: Option<Removal>,
    /// The disks are nearly full: what makes the store grow is refused, what makes it smaller is not (R25).
    space_alarm: bool,
    /// What every member knows (R37). From 1 on a transaction that is too costly is refused when it is applied.
    feature_level: u32,
    /// Readers that have paused. Shared with them, so that they let go of it without the store.
    pins: Arc<Pins>,
    /// Present while a mutation is half applied: what was there before.
    half: Option<Seen>,
}

/// What a reader sees that does not read as of a revision.
#[derive(Clone, Copy, Debug)]
struct Seen {
    keys: usize,
    bytes: u64,
}

impl<B: Backend> Store<B> {
    /// Takes over what the backend holds: reads every record once, to build the index. A compaction that was
    /// interrupted goes on with [`Store::compact_some`].
    ///
    /// # Errors
    /// [`Damaged`] where a record is not what a store wrote.
    pub fn open(backend: B) -> Result<Self, Damaged> {
        let (compact_revision, removal) = Self::compaction_of(&backend)?;
        let mut index = Index::default();
        // The last change is never removed before a later one is made, except by a compaction at its revision.
        let mut revision = compact_revision.max(1);
        let mut damaged = None;
        backend.scan(&mut |at, bytes| {
            if damaged.is_some() {
                return;
            }
            match restore(&mut index, at, bytes) {
                Ok(()) => revision = revision.max(at.main),
                Err(why) => damaged = Some(Damaged::Record { at, why }),
            }
        });
        match damaged {
            Some(damaged) => Err(damaged),
            None => {
                let space_alarm = backend.meta(SPACE_ALARM).is_some_and(|value| value[..] == [1]);
                let feature_level = feature_level_of(&backend)?;
                Ok(Store {
                    backend,
                    index,
                    revision,
                    compact_revision,
                    removal,
                    space_alarm,
                    feature_level,
                    pins: Arc::default(),
                    half: None,
                })
            }
        }
    }

    /// The newest revision: 1 for an empty store.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The newest revision that a reader may see: not the one in the making.
    fn visible(&self) -> i64 {
        self.revision + i64::from(self.half.is_some() && breaks(Rule::HideHalf))
    }

    /// The oldest revision that can be read; −1 before the first compaction.
    #[must_use]
    pub fn compact_revision(&self) -> i64 {
        self.compact_revision
    }

    /// The disks are nearly full: what makes the store grow is refused (etcd's NOSPACE alarm).
    #[must_use]
    pub fn has_space_alarm(&self) -> bool {
        self.space_alarm
    }

    /// What every member of the cluster is known to know (R37).
    #[must_use]
    pub fn feature_level(&self) -> u32 {
        self.feature_level
    }

    /// True from the first write of a [`Work`] to its end: the backend must not be flushed or copied then.
    #[must_use]
    pub fn is_half_applied(&self) -> bool {
        self.half.is_some()
    }

    /// Keeps what can be read at a revision from being removed, whatever is compacted, until the pin is dropped.
    ///
    /// # Errors
    /// [`Refusal::Compacted`], [`Refusal::FutureRevision`].
    pub fn pin(&self, revision: i64) -> Result<Pin, Refusal> {
        Ok(Pin::new(&self.pins, self.readable(revision, self.revision)?))
    }

    /// Keys that exist now.
    #[must_use]
    pub fn key_count(&self) -> usize {
        self.half.map_or(self.index.live_keys(), |seen| seen.keys)
    }

    /// Bytes of all records that are kept, of all revisions; what holds them needs more.
    #[must_use]
    pub fn record_bytes(&self) -> u64 {
        self.half.map_or(self.index.record_bytes(), |seen| seen.bytes)
    }

    /// What holds the records.
    #[must_use]
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// What holds the records, for what is no business of the store: flushing, and names of its own beside it.
    #[must_use]
    pub fn backend_mut(&mut self) -> &mut B {
        &mut self.backend
    }
}

/// Puts a record that was read back into the index.
fn restore(index: &mut Index, at: RevisionKey, bytes: bytes::Bytes) -> Result<(), &'static str> {
    let length = bytes.len();
    if at.main < 2 || u32::try_from(at.sub).is_err() {
        return Err("no store makes such a revision");
    }
    match record::decode(bytes)? {
        Record::Put(kv) if kv.key.is_empty() => Err("it has no key"),
        Record::Put(kv) if kv.mod_revision != at.main => Err("it was written for another revision"),
        Record::Put(kv) => {
            index.restore(&kv.key, Change::new(at, length, false), kv.create_revision, kv.version);
            Ok(())
        }
        Record::Tombstone(key) if key.is_empty() => Err("it has no key"),
        Record::Tombstone(key) => {
            index.restore(&key, Change::new(at, length, true), 0, 0);
            Ok(())
        }
    }
}

fn feature_level_of<B: Backend>(backend: &B) -> Result<u32, Damaged> {
    let Some(value) = backend.meta(FEATURE_LEVEL) else { return Ok(0) };
    let bytes = <[u8; 4]>::try_from(&*value)
        .map_err(|_| Damaged::Meta { name: FEATURE_LEVEL, length: value.len() })?;
    Ok(u32::from_be_bytes(bytes))
}

/// A header that says what the store knows: the revision.
fn header(revision: i64) -> ResponseHeader {
    ResponseHeader { revision, ..ResponseHeader::default() }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::proto::etcdserverpb::PutRequest;
    use crate::proto::replcluster::{Mutation, mutation};

    fn backend_with_one_record() -> MemoryBackend {
        let mut store = Store::open(MemoryBackend::default()).unwrap();
        let put = PutRequest { key: "k".into(), value: "v".into(), ..PutRequest::default() };
        store.apply(&Mutation { request: Some(mutation::Request::Put(put)) }).unwrap();
        store.backend
    }

    #[test]
    fn a_damaged_record_is_named_and_refused() {
        let good = backend_with_one_record().get(RevisionKey { main: 2, sub: 0 }).unwrap();
        let cases = [
            (RevisionKey { main: 2, sub: 0 }, good.slice(..5)),
            (RevisionKey { main: 2, sub: 0 }, Bytes::from_static(b"\x09")),
            (RevisionKey { main: 3, sub: 0 }, good.clone()),
            (RevisionKey { main: 1, sub: 0 }, good.clone()),
            (RevisionKey { main: 3, sub: -1 }, good),
            (RevisionKey { main: 3, sub: 0 }, Bytes::from_static(b"\x01")),
        ];
        for (at, bytes) in cases {
            let mut backend = backend_with_one_record();
            backend.put(at, bytes);
            let refused = Store::open(backend).unwrap_err();
            assert!(matches!(&refused, Damaged::Record { at: named, .. } if *named == at), "{refused}");
        }
    }

    #[test]
    fn a_damaged_compaction_mark_is_refused() {
        let mut backend = backend_with_one_record();
        backend.put_meta("compacted", Bytes::from_static(b"7"));
        assert_eq!(Store::open(backend).unwrap_err(), Damaged::Meta { name: "compacted", length: 1 });
    }

    #[test]
    fn a_mutation_without_content_is_refused() {
        let mut store = Store::open(backend_with_one_record()).unwrap();
        assert_eq!(store.apply(&Mutation { request: None }), Err(Refusal::EmptyMutation));
        assert_eq!(store.revision(), 2);
    }
}
