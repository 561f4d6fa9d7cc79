//! Hashing the whole state while the node goes on: the index is looked at in short steps, and the records are read
//! from a copy that stands still, on a thread that may wait.

use std::sync::PoisonError;

use super::handle::Handle;
use super::state::{SnapshotReader, StateError, revision_of};
use crate::kv;

/// Keys looked at in one step, during which nothing can be applied: below a millisecond.
const KEYS_AT_A_TIME: usize = 4096;

/// Why there is no hash.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    /// The revision cannot be hashed.
    #[error(transparent)]
    Refused(#[from] kv::Refusal),
    /// The state could not be read.
    #[error(transparent)]
    State(#[from] StateError),
    /// The node stops.
    #[error("the node stops")]
    Stopping,
}

impl Handle {
    /// Hashes what is here up to `revision`, or up to the newest for 0; whoever leads. Reads every record.
    ///
    /// # Errors
    /// [`HashError`].
    pub async fn hash(&self, revision: i64) -> Result<kv::Hash, HashError> {
        loop {
            let mut scope = self.shared.look(&|store| store.begin_hash(revision))?;
            let records = loop {
                match self.step_hash(&mut scope) {
                    (kv::Step::More, _) => tokio::task::yield_now().await,
                    (kv::Step::Done, records) => break records,
                    (kv::Step::Replaced, _) => break None,
                }
            };
            if let Some(records) = records {
                let hashing = tokio::task::spawn_blocking(move || read(scope.hasher(), records));
                return Ok(hashing.await.map_err(|_| HashError::Stopping)??);
            }
        }
    }
}

impl Handle {
    /// One short look at the index; after the last one the records as they are.
    fn step_hash(&self, scope: &mut kv::Scope) -> (kv::Step, Option<SnapshotReader>) {
        let store = self.shared.store.read().unwrap_or_else(PoisonError::into_inner);
        let step = store.step_hash(scope, KEYS_AT_A_TIME);
        (step, (step == kv::Step::Done).then(|| store.backend().snapshot()))
    }
}

fn read(mut hasher: kv::Hasher, records: SnapshotReader) -> Result<kv::Hash, StateError> {
    for rows in records {
        for (key, record) in rows? {
            if let Some(at) = revision_of(&key)
                && !hasher.add(at, &record)
            {
                return Ok(hasher.finish());
            }
        }
    }
    Ok(hasher.finish())
}
