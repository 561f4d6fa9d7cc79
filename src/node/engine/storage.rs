//! The state on disk, snapshots of it, and how much of the log is kept.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Engine;
use crate::node::hands::Hands;
use crate::node::snapshot;
use crate::node::state::FlushDone;
use crate::node::writer::WriteOperation;
use crate::protocol::Role;

/// Unflushed state, in bytes, at which a flush begins at once.
const FLUSH_BYTES: usize = 16 << 20;
const FLUSH_EVERY: Duration = Duration::from_secs(2);
const COMPACT_STEP: usize = 2000;

impl<H: Hands> Engine<H> {
    // --- state on disk ---

    pub(super) fn maybe_flush(&mut self) {
        if self.flushing {
            return;
        }
        let job = {
            let mut store = self.shared.store.write().unwrap_or_else(PoisonError::into_inner);
            let bytes = store.backend().overlay_bytes();
            let due = bytes >= FLUSH_BYTES
                || (bytes > 0 && self.now.duration_since(self.flushed_at) >= FLUSH_EVERY);
            if due { store.backend_mut().begin_flush() } else { None }
        };
        if let Some(job) = job {
            self.flushing = true;
            self.hands.flush(job);
        }
    }

    pub(super) fn flushed(&mut self, done: &FlushDone) {
        let (disk, durable) = {
            let mut store = self.shared.store.write().unwrap_or_else(PoisonError::into_inner);
            if !store.backend_mut().end_flush(done) {
                return; // of a state that a snapshot has replaced
            }
            (store.backend().disk_bytes(), snapshot::durable_of(&store).index)
        };
        self.flushing = false;
        self.flushed_at = self.now;
        let log = self.recent.disk_bytes();
        self.shared.disk_bytes.store(disk + log, Ordering::Relaxed);
        if log > self.options.log_keep_bytes {
            // What the state holds durably may leave the log, up to what followers still have to read.
            let mut needed = durable;
            if let Role::Leader(leader) = self.node.role() {
                for progress in leader.progress().values() {
                    needed = needed.min(progress.matched);
                }
            }
            self.hands.write(WriteOperation::DropBefore(needed));
        }
    }

    pub(super) fn compact_some(&mut self) {
        if self.compacting {
            let mut store = self.shared.store.write().unwrap_or_else(PoisonError::into_inner);
            self.compacting = store.compact_some(COMPACT_STEP);
        }
    }
}
