//! Hashing the whole state while the node goes on: index and records are read in short looks, between which others go
//! first.

use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::handle::Handle;
use super::state::revision_of;
use crate::kv;

/// Keys looked at in one step, during which nothing can be applied: below a millisecond.
const KEYS_AT_A_TIME: usize = 4096;
/// Records looked at in one step, in bytes.
const PAGE_BYTES: usize = 128 << 10;

/// Why there is no hash.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    /// The revision cannot be hashed.
    #[error(transparent)]
    Refused(#[from] kv::Refusal),
    /// The node stops.
    #[error("the node stops")]
    Stopping,
}

impl Handle {
    /// Hashes what is here up to `revision`, or up to the newest for 0; whoever leads. Reads every record, in pages.
    ///
    /// # Errors
    /// [`HashError`].
    pub async fn hash(&self, revision: i64) -> Result<kv::Hash, HashError> {
        let _turn = self.shared.long_reads.acquire().await.map_err(|_| HashError::Stopping)?;
        loop {
            let replaced = self.shared.replaced.load(Ordering::Acquire);
            let mut scope = self.shared.look(&|store| store.begin_hash(revision))?;
            let step = loop {
                let step = self.step_hash(&mut scope);
                if step != kv::Step::More {
                    break step;
                }
                tokio::task::yield_now().await;
            };
            if step == kv::Step::Done
                && let Some(hash) = self.hash_records(scope, replaced).await
            {
                return Ok(hash);
            }
        }
    }

    /// One short look at the index.
    fn step_hash(&self, scope: &mut kv::Scope) -> kv::Step {
        self.shared.store.read().step_hash(scope, KEYS_AT_A_TIME)
    }

    /// `None` where the state was replaced meanwhile. What is hashed is pinned by the scope, so that no page finds it
    /// removed; what comes later lies beyond it.
    async fn hash_records(&self, scope: kv::Scope, replaced: u64) -> Option<kv::Hash> {
        let mut hasher = scope.clone().hasher();
        let mut after: Option<Bytes> = None;
        loop {
            let (rows, next) = self.shared.look(&|store| store.backend().page(after.as_deref(), PAGE_BYTES));
            if self.shared.replaced.load(Ordering::Acquire) != replaced {
                return None;
            }
            for (key, record) in rows {
                if let Some(at) = revision_of(&key)
                    && !hasher.add(at, &record)
                {
                    return Some(hasher.finish());
                }
            }
            match next {
                Some(next) => after = Some(next),
                None => return Some(hasher.finish()),
            }
            tokio::task::yield_now().await;
        }
    }
}
