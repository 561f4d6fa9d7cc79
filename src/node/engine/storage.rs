//! The state on disk, snapshots of it, and how much of the log is kept.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tokio::sync::oneshot;

use super::Engine;
use crate::kv;
use crate::node::handle::StateStore;
use crate::node::hands::Hands;
use crate::node::log::Space;
use crate::node::snapshot;
use crate::node::state::FlushDone;
use crate::node::writer::WriteOperation;
use crate::proto::replcluster::{Mutation, SpaceAlarm, mutation};
use crate::protocol::{Input, Role};
use crate::rules::{Rule, breaks};

/// Unflushed state, in bytes, at which a flush begins at once.
const FLUSH_BYTES: usize = 16 << 20;
const FLUSH_EVERY: Duration = Duration::from_secs(2);
/// After so long without an answer the alarm is raised again.
const ALARM_MAX: Duration = Duration::from_secs(5);
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

    /// R25: says early that room is short, while the log can still take what makes room: deletes, compactions, views. If
    /// another in-sync node has room it leads from now on; if none has, the state refuses what would make it grow.
    pub(super) fn look_for_room(&mut self) {
        let reserve = self.options.space_reserve_bytes;
        match self.recent.room() {
            Ok(room) => {
                self.room_untold = None;
                // Twice as much before it counts as enough again, so that it does not flap.
                let enough = if self.node.is_full() { 2 * reserve } else { reserve };
                let flush_waits = self.shared.look(&|store| store.backend().waits_for_room());
                let full = room.space != Space::Ample || room.free_bytes < enough || flush_waits;
                self.shared.free_bytes.store(room.free_bytes, Ordering::Relaxed);
                if full != self.node.is_full() && !breaks(Rule::WatchRoom) {
                    tracing::warn!(
                        "{}: {} bytes free on the disk, {reserve} are kept in reserve",
                        if full { "room is short" } else { "there is room again" },
                        room.free_bytes
                    );
                    self.shared.full.store(full, Ordering::Relaxed);
                    self.step(Input::Space { full });
                }
            }
            // It is asked many times a second: said once, and again when it is another.
            Err(error) => {
                let why = error.to_string();
                if self.room_untold.as_ref() != Some(&why) {
                    tracing::warn!("cannot tell how much room is left: {why}");
                    self.room_untold = Some(why);
                }
            }
        }
        self.raise_alarm();
    }

    /// The leader keeps the alarm as its own disk is: with another to hand over to, it does not lead for long.
    fn raise_alarm(&mut self) {
        if let Some(open) = &mut self.alarm
            && matches!(open.try_recv(), Err(oneshot::error::TryRecvError::Empty))
        {
            return;
        }
        self.alarm = None;
        let raised = self.shared.look(&StateStore::has_space_alarm);
        let roomy = self.node.has_roomy_follower();
        if !self.node.can_propose()
            || !self.leadership_is_open()
            || raised == self.node.is_full()
            || (self.node.is_full() && roomy)
        {
            return;
        }
        let request = mutation::Request::Space(SpaceAlarm { raised: self.node.is_full() });
        let mutation = Bytes::from(Mutation { request: Some(request) }.encode_to_vec());
        let (answer, outcome) = oneshot::channel();
        self.requests.arrive(mutation, self.now + ALARM_MAX, answer);
        self.alarm = Some(outcome);
    }

    pub(super) fn compact_some(&mut self) {
        if self.compacting {
            let mut store = self.shared.store.write().unwrap_or_else(PoisonError::into_inner);
            // What a reader holds back is tried again after the next entry.
            self.compacting = store.compact_some(COMPACT_STEP) == kv::Removed::Some;
        }
    }
}
