//! etcd's `HashKV`, bit for bit: a CRC-32C over the bucket's name and every record up to a revision, as etcd keeps
//! them, less what a compaction removes sooner or later. So it is the same on all nodes that hold the same revisions,
//! however far each is with its removal, and the same as on an etcd that was asked for the same things.
//!
//! It reads everything there is. So that nobody waits for it, it comes in two halves: [`Scope`] takes from the index
//! what is needed, in short steps; then [`Hasher`] is shown the records, from a copy that stands still.
//!
//! What etcd leaves out is decided as etcd does it, odd corners included: of the records at or below the compacted
//! revision those that no key lives by at the revision asked for, but none where no key lives then at all. In that one
//! case etcd's own hash changes while it removes; ours is the one that it comes to.

use bytes::Bytes;
use prost::Message as _;

use super::Store;
use super::backend::{Backend, RevisionKey};
use super::index::Index;
use super::pin::Pin;
use super::record::{PUT, TOMBSTONE};
use super::refusal::Refusal;
use crate::proto::mvccpb::KeyValue;

/// What etcd calls the place where it keeps its records.
const BUCKET: &[u8] = b"key";

/// A hash, and what it is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hash {
    /// The hash.
    pub hash: u32,
    /// The newest revision when it was asked for.
    pub revision: i64,
    /// The revision up to which it looked.
    pub hash_revision: i64,
    /// The revision up to which the store is compacted; −1 before the first compaction.
    pub compact_revision: i64,
}

/// A record at or below the compacted revision that is not removed.
#[derive(Clone, Copy, Debug)]
struct Base {
    at: RevisionKey,
    /// Its key still holds it at the revision asked for.
    is_live: bool,
}

/// What to hash and what to leave out.
#[derive(Clone, Debug)]
pub struct Scope {
    revision: i64,
    hash_revision: i64,
    compact_revision: i64,
    base: Vec<Base>,
    any_live: bool,
    /// The last key that was looked at; none at the start.
    cursor: Option<Box<[u8]>>,
    pin: Pin,
}

/// How far a hash is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Call it again.
    More,
    /// The records may be hashed: those of the store as it was in this step, before anything else happens to it.
    Done,
    /// Another store has taken the place of the one that it began on: begin anew.
    Replaced,
}

impl<B: Backend> Store<B> {
    /// Begins a hash of everything up to `revision`, or up to the newest for 0.
    ///
    /// # Errors
    /// [`Refusal::Compacted`], [`Refusal::FutureRevision`].
    pub fn begin_hash(&self, revision: i64) -> Result<Scope, Refusal> {
        // As in etcd since 3.5: the compacted revision itself can be hashed.
        if revision > 0 && revision < self.compact_revision {
            return Err(Refusal::Compacted { requested: revision, compacted: self.compact_revision });
        }
        if revision > self.revision {
            return Err(Refusal::FutureRevision { requested: revision, current: self.revision });
        }
        Ok(Scope {
            revision: self.revision,
            hash_revision: if revision == 0 { self.revision } else { revision },
            compact_revision: self.compact_revision,
            base: Vec::new(),
            any_live: false,
            cursor: None,
            // Whatever is compacted meanwhile is removed later.
            pin: Pin::new(&self.pins, self.compact_revision),
        })
    }

    /// Looks at up to `budget` more keys.
    pub fn step_hash(&self, scope: &mut Scope, budget: usize) -> Step {
        if !scope.pin.is_of(&self.pins) {
            return Step::Replaced;
        }
        // No record is older than revision 2, so before that a compaction removes none.
        if scope.compact_revision < 2 || !scope.look_at(&self.index, budget.max(1)) {
            return Step::Done;
        }
        Step::More
    }

    /// Hashes everything up to `revision`, or up to the newest for 0, at once.
    ///
    /// # Errors
    /// As [`Store::begin_hash`].
    pub fn hash(&self, revision: i64) -> Result<Hash, Refusal> {
        let mut scope = self.begin_hash(revision)?;
        while self.step_hash(&mut scope, usize::MAX) == Step::More {}
        let mut hasher = scope.hasher();
        self.backend.scan(&mut |at, record| {
            hasher.add(at, &record);
        });
        Ok(hasher.finish())
    }
}

impl Scope {
    /// True where there are more keys.
    fn look_at(&mut self, index: &Index, budget: usize) -> bool {
        let (compacted, revision) = (self.compact_revision, self.hash_revision);
        let mut last = None;
        let mut visited = 0;
        for (key, history) in index.after(self.cursor.as_deref()).take(budget) {
            let live = history.live_at(revision);
            self.any_live |= live.is_some();
            if let Some(base) = history.live_at(compacted) {
                self.base.push(Base { at: base.at(), is_live: live == Some(base) });
            }
            last = Some(key);
            visited += 1;
        }
        self.cursor = last.map(Box::from).or(self.cursor.take());
        visited == budget
    }

    /// To be shown the records.
    #[must_use]
    pub fn hasher(self) -> Hasher {
        let mut base: Vec<RevisionKey> =
            self.base.iter().filter(|base| base.is_live || !self.any_live).map(|base| base.at).collect();
        base.sort_unstable();
        let Scope { revision, hash_revision, compact_revision, .. } = self;
        let hash = Hash { hash: crc32c::crc32c(BUCKET), revision, hash_revision, compact_revision };
        Hasher { hash, base }
    }
}

/// Takes in records in the order of their places.
#[derive(Clone, Debug)]
pub struct Hasher {
    hash: Hash,
    /// What is hashed of the records at or below the compacted revision, in order.
    base: Vec<RevisionKey>,
}

impl Hasher {
    /// Takes in one record, if it belongs to the hash. False from the first record on that lies beyond it.
    pub fn add(&mut self, at: RevisionKey, record: &Bytes) -> bool {
        if at.main > self.hash.hash_revision {
            return false;
        }
        if at.main <= self.hash.compact_revision && self.base.binary_search(&at).is_err() {
            return true;
        }
        // A record that is empty or of no known kind was refused when the store was opened.
        let Some((kind, content)) = record.split_first() else { return true };
        let mut key = [0_u8; 18];
        key[..8].copy_from_slice(&at.main.to_be_bytes());
        key[8] = b'_';
        key[9..17].copy_from_slice(&at.sub.to_be_bytes());
        key[17] = b't';
        match *kind {
            TOMBSTONE => {
                self.write(&key);
                // etcd keeps it as a key and value of which only the key is set.
                let key = record.slice_ref(content);
                self.write(&KeyValue { key, ..KeyValue::default() }.encode_to_vec());
            }
            PUT => {
                self.write(&key[..17]);
                self.write(content);
            }
            _ => {}
        }
        true
    }

    fn write(&mut self, bytes: &[u8]) {
        self.hash.hash = crc32c::crc32c_append(self.hash.hash, bytes);
    }

    /// The hash of what was taken in.
    #[must_use]
    pub fn finish(self) -> Hash {
        self.hash
    }
}
