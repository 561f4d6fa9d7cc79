//! The state on disk, snapshots of it, and how much of the log is kept.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Engine;
use crate::kv;
use crate::node::admission::Admitted;
use crate::node::handle::StateStore;
use crate::node::hands::{Hands, Snapshot};
use crate::node::lack::Lack;
use crate::node::log::Space;
use crate::node::snapshot;
use crate::node::state::FlushJob;
use crate::node::writer::WriteOperation;
use crate::proto::replcluster::{Mutation, SpaceAlarm, mutation};
use crate::protocol::{Input, Role};
use crate::rules::{Rule, breaks};
use crate::view::{Index, NodeId};

/// Unflushed state, in bytes, at which a flush begins at once.
const FLUSH_BYTES: usize = 16 << 20;
const FLUSH_EVERY: Duration = Duration::from_secs(2);
/// After so long without an answer the alarm is raised again.
const ALARM_MAX: Duration = Duration::from_secs(5);
const COMPACT_STEP: usize = 2000;
/// The rest of a flush that lacks something is tried again after this time, and then less and less often.
pub(super) const FLUSH_RETRY_MIN: Duration = Duration::from_millis(100);
const FLUSH_RETRY_MAX: Duration = Duration::from_secs(2);
/// How short room must be said again only after this time.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// What is left of a flush that lacks something.
pub(super) struct FlushRest {
    job: FlushJob,
    pause: Duration,
    at: Instant,
}

impl<H: Hands> Engine<H> {
    // --- state on disk ---

    /// What waits for a look at the state: all of it short, and put off where others hold the lock for long.
    pub(super) fn tend_state(&mut self) {
        self.end_flush();
        self.send_snapshots();
        self.compact_some();
    }

    pub(super) fn maybe_flush(&mut self) {
        if self.flushing {
            return self.go_on_with_flush();
        }
        // What is half done must not be on the disk without the rest of it.
        if self.applying.is_heavy() {
            return;
        }
        let shared = self.shared.clone();
        let Some(mut store) = shared.store_soon() else { return };
        let job = self.begin_due_flush(&mut store);
        drop(store);
        self.run_flush(job);
    }

    /// Begins a flush if one is due. The state must hold each entry up to its applied index whole, and nothing of a later
    /// one.
    pub(super) fn begin_due_flush(&mut self, store: &mut StateStore) -> Option<FlushJob> {
        let bytes = store.backend().overlay_bytes();
        let long_ago = bytes > 0 && self.now.duration_since(self.flushed_at) >= FLUSH_EVERY;
        let due = !self.flushing && (bytes >= FLUSH_BYTES || long_ago);
        if due { store.backend_mut().begin_flush() } else { None }
    }

    pub(super) fn run_flush(&mut self, job: Option<FlushJob>) {
        if let Some(job) = job {
            self.flushing = true;
            self.hands.flush(job);
        }
    }

    fn go_on_with_flush(&mut self) {
        if self.flush_rest.as_ref().is_some_and(|rest| self.now >= rest.at)
            && let Some(FlushRest { job, pause, .. }) = self.flush_rest.take()
        {
            self.flush_pause = (2 * pause).min(FLUSH_RETRY_MAX);
            self.hands.flush(job);
        }
    }

    /// The rest of a flush lacks something: the state in memory and the log hold it all until it is tried again.
    pub(super) fn flush_lacks(&mut self, job: FlushJob, lack: Lack) {
        // Each holder of the lock holds it for a piece only.
        let ours = job.is_of(self.shared.store.read().backend());
        if !ours {
            return; // of a state that a snapshot has replaced
        }
        if self.flush_pause == FLUSH_RETRY_MIN {
            tracing::warn!("no {lack} for the state: it stays in memory and in the log until there is");
        }
        let pause = self.flush_pause;
        self.flush_rest = Some(FlushRest { job, pause, at: self.now + pause });
        self.shared.lack.store(Some(lack));
    }

    fn end_flush(&mut self) {
        let Some(done) = self.flush_done.take() else { return };
        let shared = self.shared.clone();
        let Some(mut store) = shared.store_soon() else {
            self.flush_done = Some(done);
            return;
        };
        let ended = store.backend_mut().end_flush(&done);
        let (disk, durable) = (store.backend().disk_bytes(), snapshot::durable_of(&store).index);
        drop(store);
        // The last to hold what was flushed: it may be much to let go of.
        self.hands.discard(Box::new(done));
        if ended {
            self.flushed(disk, durable);
        }
    }

    fn flushed(&mut self, disk: u64, durable: Index) {
        self.flushing = false;
        self.flush_pause = FLUSH_RETRY_MIN;
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
                let shared = self.shared.clone();
                if let Some(store) = shared.look_soon() {
                    self.flush_waits = store.backend().waits_for_room();
                }
                let flush_waits = self.flush_rest.is_some() || self.flush_waits;
                let full = room.space != Space::Ample || room.free_bytes < enough || flush_waits;
                shared.free_bytes.store(room.free_bytes, Ordering::Relaxed);
                shared.needed_bytes.store(2 * reserve, Ordering::Relaxed);
                if self.flush_rest.is_none() {
                    shared.lack.store(room.lack);
                }
                if full != self.node.is_full() && !breaks(Rule::WatchRoom) {
                    self.say_how_short(full, room.lack);
                    self.is_now_full(full);
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

    /// Where room comes and goes many times a minute, that is said once.
    fn say_how_short(&mut self, full: bool, lack: Option<Lack>) {
        let said_of_late = self.room_said_at.is_some_and(|at| self.now.duration_since(at) < SAY_AGAIN);
        // Of a shortness that was not said, neither is its end.
        if (full && said_of_late) || (!full && !std::mem::take(&mut self.short_room_said)) {
            return;
        }
        if full {
            self.room_said_at = Some(self.now);
            self.short_room_said = true;
        }
        let free = self.shared.free_bytes.load(Ordering::Relaxed) >> 20;
        let reserve = self.options.space_reserve_bytes >> 20;
        match (full, lack) {
            (false, _) => tracing::warn!("there is room again: {free} MiB are free on the disk"),
            (true, Some(lack)) => tracing::warn!(
                "room is short: no {lack} for the log; {free} MiB are free on the disk, and {reserve} MiB are needed"
            ),
            (true, None) => tracing::warn!(
                "room is short: {free} MiB are free on the disk, and {reserve} MiB are needed; writes go on where {} MiB are",
                2 * reserve
            ),
        }
    }

    fn is_now_full(&mut self, full: bool) {
        self.shared.full.store(full, Ordering::Relaxed);
        self.step(Input::Space { full });
    }

    /// Says that room is short as soon as the log has found it so.
    pub(super) fn note_short_log(&mut self) {
        if self.recent.space() != Space::Ample && !self.node.is_full() && !breaks(Rule::WatchRoom) {
            self.is_now_full(true);
        }
    }

    /// True where we lead and what makes the state grow must not be ordered: our log or one that ours waits for lives on
    /// what is kept in reserve, and that is for what must go on (R25, R34).
    pub(super) fn orders_no_growth(&self) -> bool {
        (self.recent.space() != Space::Ample || self.node.has_full_follower()) && !breaks(Rule::SpareReserve)
    }

    /// The leader keeps the alarm as its own disk is: with another to hand over to, it does not lead for long.
    fn raise_alarm(&mut self) {
        if let Some(open) = &mut self.alarm
            && matches!(open.try_recv(), Err(oneshot::error::TryRecvError::Empty))
        {
            return;
        }
        self.alarm = None;
        let raised = self.shared.space_alarm.load(Ordering::Acquire);
        let hands_over = self.node.hands_over_for_room();
        let full = self.node.is_full() || self.node.has_full_follower();
        if !self.node.can_propose() || !self.leadership_is_open() || raised == full || (full && hands_over) {
            return;
        }
        let request = mutation::Request::Space(SpaceAlarm { raised: full });
        let mutation = Admitted::made_here(&Mutation { request: Some(request) });
        let (answer, outcome) = oneshot::channel();
        self.requests.arrive(mutation, self.now + ALARM_MAX, answer);
        self.alarm = Some(outcome);
    }

    /// Removes a little of what compaction has made unreadable.
    fn compact_some(&mut self) {
        if !self.compacting {
            return;
        }
        let shared = self.shared.clone();
        let Some(mut store) = shared.store_soon() else { return };
        match store.compact_some(COMPACT_STEP) {
            kv::Removed::Some => {}
            kv::Removed::All => self.compacting = false,
            // A reader that pauses still needs it: looked at again with the next sweep.
            kv::Removed::Held => (self.compacting, self.removal_held) = (false, true),
        }
    }

    // --- snapshots for others ---

    pub(super) fn snapshot_due(&mut self, to: NodeId) {
        if !self.sending_snapshot.contains(&to) && !self.snapshots_due.contains(&to) {
            self.snapshots_due.push(to);
        }
    }

    /// A snapshot is the state as it stands on the disk: nothing is copied for it, and nothing half done is in it. The log
    /// is kept from there on.
    fn send_snapshots(&mut self) {
        for to in std::mem::take(&mut self.snapshots_due) {
            let shared = self.shared.clone();
            let Some(store) = shared.look_soon() else {
                self.snapshots_due.push(to);
                continue;
            };
            let rows = store.backend().durable();
            drop(store);
            // Of what it shows: a flush may have come to its end that the state has not heard of.
            let position = snapshot::position_of(&rows);
            let epoch = self.node.epoch();
            tracing::info!("sending {to} a snapshot of everything up to {}", position.index);
            self.hands.send_snapshot(&to, Snapshot { epoch, position, rows });
            self.sending_snapshot.push(to);
        }
    }
}
