//! A whole node without threads, sockets and clocks: the protocol, the state, the requests of clients, and what is
//! known of the log. Everything that happens comes in as a value with the time; everything that is to be done goes
//! out through [`Hands`]. So the same code runs in a server (`driver`) and in a simulation (`testing`).
//!
//! Nothing here waits for a disk: writes go to the writer, the register has its own thread, and reads of old entries
//! are the exception (start-up).
//!
//! * this file: what comes in, and in which order
//! * `effects`: what the protocol wants done
//! * `apply`: committed entries, carried out at once or by a worker
//! * `forwarded`: requests of followers, at the leader
//! * `ordering`: requests of clients, from arrival to answer; reads
//! * `level`: what the log may hold, raised once every member knows it
//! * `operators`: commands, and a graceful end
//! * `storage`: the state on disk, and how much of the log is kept

mod apply;
mod effects;
mod forwarded;
mod level;
mod operators;
mod ordering;
mod storage;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use self::apply::Applying;
pub use self::apply::refusal_of;
use self::forwarded::Forwarded;
pub use self::level::FEATURE_LEVEL;
use self::level::Levels;
use self::operators::{Admin, Wish};
use self::storage::FlushRest;
use super::Ended;
use super::event::{ArrivedSnapshot, Internal, Outcome, Request};
use super::handle::Shared;
use super::hands::Hands;
use super::log::Position;
use super::reads::Reads;
use super::recent::Recent;
use super::requests::Requests;
use super::state::FlushDone;
use super::wire::Entries;
use crate::proto::replcluster::{ReadIndex, frame::Body};
use crate::protocol::{Halt, Input, Node, Role};
use crate::rules::{Rule, breaks};
use crate::skips::Skips;
use crate::view::{Epoch, Index, NodeId};

/// Requests that may wait for their entries; beyond it `too many requests` (etcd: 5,000 uncommitted proposals).
pub const PENDING_MAX: usize = 8192;
/// How often what waits is looked through for what has waited too long.
const SWEEP: Duration = Duration::from_millis(50);

/// What does not change while a node runs.
#[derive(Debug, Clone)]
pub struct Options {
    /// See `protocol::Config`.
    pub heartbeat: Duration,
    /// See `protocol::Config`.
    pub failure_timeout: Duration,
    /// Test switch: say yes before followers hold the entry, so that the checks can be seen to fail.
    pub acknowledge_early: bool,
    /// The log is kept to this size, in bytes, where nobody needs more of it.
    pub log_keep_bytes: u64,
    /// With less than this free on its disk, in bytes, a node takes no more than it must (R25).
    pub space_reserve_bytes: u64,
    /// A random number for this life of the process, never zero: requests travel under it (R19).
    pub origin: u64,
    /// What this build can do with entries of the log (R37): [`FEATURE_LEVEL`], but for tests of older builds.
    pub feature_level: u32,
    /// What a worker does of a heavy entry under the state's lock at a time; smaller in tests.
    pub piece_units: u64,
    /// Test switch: every so many entries one is heavy, however light it is; 0: none.
    pub apart_every: u64,
}

/// What an engine starts from: see [`recovery`](super::recovery).
pub struct Parts {
    /// The protocol, as restored.
    pub node: Node,
    /// What handles see.
    pub shared: Arc<Shared>,
    /// The newest entries.
    pub recent: Arc<Recent>,
    /// The end of the log.
    pub tail: Position,
    /// The last entry applied to the state.
    pub applied: Position,
    /// Entries that are stepped over.
    pub skips: Skips,
}

/// See the head of the module.
pub struct Engine<H: Hands> {
    hands: H,
    options: Options,
    node: Node,
    shared: Arc<Shared>,
    recent: Arc<Recent>,
    /// Time zero of the protocol.
    started: Instant,
    /// The time of this turn.
    now: Instant,
    /// The end of the log, written or on its way to the disk.
    tail: Position,
    applied: Position,
    applying: Applying,
    /// Entries applied in this turn, and their bytes.
    turn_entries: u64,
    turn_bytes: usize,
    skips: Skips,
    commit: Index,
    requests: Requests,
    reads: Reads,
    admin: Vec<Admin>,
    /// What followers have forwarded in this leadership.
    forwarded: Forwarded,
    /// Until when nothing more is forwarded: the queue to the leader was full.
    forward_at: Option<Instant>,
    /// What the `Append` effect of the proposal just fed will write.
    batch: Vec<forwarded::Request>,
    /// Done, but a newer view was seen to exist: said once this node has caught up with it (R13).
    held_back: Vec<(oneshot::Sender<Outcome>, Outcome)>,
    arrived: Option<ArrivedSnapshot>,
    sending_snapshot: Vec<NodeId>,
    /// Peers that are to get a snapshot as soon as the state can be looked at.
    snapshots_due: Vec<NodeId>,
    flushing: bool,
    /// A flush that is durable, and that the state is to hear of.
    flush_done: Option<FlushDone>,
    flushed_at: Instant,
    /// The rest of the flush, and when it is tried again.
    flush_rest: Option<FlushRest>,
    /// How long the rest of a flush waits next.
    flush_pause: Duration,
    /// The space alarm that is on its way into the log.
    alarm: Option<oneshot::Receiver<Outcome>>,
    levels: Levels,
    /// What has gathered waits for room on the disk (R25), as it was last seen.
    flush_waits: bool,
    /// When it was last said that room is short.
    room_said_at: Option<Instant>,
    /// It was said of the present shortness.
    short_room_said: bool,
    /// Why the disk does not say how much room it has, as it was logged.
    room_untold: Option<String>,
    /// Told to end; leadership is being handed over until then.
    stopping: Option<Instant>,
    /// When this node last had a proof that it can do its part (R31).
    healthy_at: Option<Instant>,
    /// The commit index at the last sweep.
    swept_commit: Index,
    /// The commit index when more was first seen to wait for it, and when that was.
    stalled: Option<(Index, Instant)>,
    ended: Option<Ended>,
    /// A swap of ours is on its way.
    swap_open: bool,
    compacting: bool,
    /// A removal waits for a reader.
    removal_held: bool,
    link_lost: bool,
    /// When what waits was last given again.
    given_again_at: Instant,
    swept_at: Instant,
    /// When replication was last sent; of interest to the test switch only.
    sent_at: Instant,
}

impl<H: Hands> Engine<H> {
    /// Nothing has happened yet. Time zero is when `shared` says that the node started.
    #[must_use]
    pub fn new(parts: Parts, options: Options, hands: H) -> Engine<H> {
        let Parts { node, shared, recent, tail, applied, skips } = parts;
        let now = Instant::from_std(shared.started);
        let recovered = node.log().commit();
        Engine {
            hands,
            node,
            shared,
            recent,
            started: now,
            now,
            tail,
            applied,
            applying: Applying::default(),
            turn_entries: 0,
            turn_bytes: 0,
            skips,
            commit: Index(0),
            requests: Requests::new(options.origin),
            reads: Reads::numbered_from(options.origin >> 1),
            options,
            admin: Vec::new(),
            forwarded: Forwarded::default(),
            forward_at: None,
            batch: Vec::new(),
            held_back: Vec::new(),
            arrived: None,
            sending_snapshot: Vec::new(),
            snapshots_due: Vec::new(),
            flushing: false,
            flush_done: None,
            flushed_at: now,
            flush_rest: None,
            flush_pause: storage::FLUSH_RETRY_MIN,
            alarm: None,
            levels: Levels::default(),
            flush_waits: false,
            room_said_at: None,
            short_room_said: false,
            room_untold: None,
            stopping: None,
            healthy_at: None,
            swept_commit: recovered,
            stalled: None,
            ended: None,
            swap_open: false,
            compacting: true,
            removal_held: false,
            link_lost: false,
            given_again_at: now,
            swept_at: now,
            sent_at: now,
        }
    }

    /// More requests that may come in now.
    #[must_use]
    pub fn room(&self) -> usize {
        PENDING_MAX.saturating_sub(self.requests.len())
    }

    /// True where a turn would find work although nothing has come in.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.can_apply() || self.compacting || self.flush_done.is_some() || !self.snapshots_due.is_empty()
    }

    /// One turn: everything that has come in by `now`, as one batch: one sync, one message to each follower. Answers
    /// with the end of the node, once.
    pub fn turn(
        &mut self,
        now: Instant,
        tick: bool,
        reports: impl Iterator<Item = Internal>,
        requests: impl Iterator<Item = Request>,
    ) -> Option<Ended> {
        self.now = now;
        self.begin_applying();
        if tick {
            self.tick();
        }
        for report in reports {
            self.report(report);
        }
        for request in requests {
            self.request(request);
        }
        self.apply();
        self.tend_state();
        self.release();
        self.turn_away();
        self.submit();
        if self.may_flush() {
            self.step(Input::Flush);
        }
        self.ask_leader();
        self.publish();
        let ended = self.ended.take();
        if ended.is_some() {
            self.shared.stopping.store(true, Ordering::Release);
            self.shared.ready.store(false, Ordering::Release);
            self.shared.serving.store(0, Ordering::Release);
            self.requests.fail_all();
        }
        ended
    }

    fn report(&mut self, report: Internal) {
        match report {
            Internal::Persisted(write) => {
                self.hands.written(write);
                // The acknowledgement that follows says how the log stands after these very entries (R25).
                self.note_short_log();
                self.step(Input::Persisted(write));
            }
            Internal::PromiseKept(write) => self.step(Input::PromiseKept(write)),
            Internal::Diverged(at) => self.halt(&Halt::Diverged { at }),
            Internal::Dropped(index) => self.step(Input::Dropped(index)),
            Internal::RegisterRead(answer) => self.step(Input::RegisterAnswered(answer)),
            Internal::Prepared(outcome) => self.step(Input::Prepared(outcome)),
            Internal::Swapped(outcome) => {
                self.swap_open = false;
                self.step(Input::SwapAnswered(outcome));
            }
            Internal::Died { node, session } => {
                tracing::info!("{node} is dead: its lock is free");
                self.levels.died(&node, session);
                self.step(Input::Died { node, session });
            }
            Internal::Message { envelope, entries } => self.feed(Input::Received(envelope), entries.as_ref()),
            Internal::Frame { from, epoch, body } => self.frame(&from, epoch, body),
            Internal::PeerArrived { node, session, level } => {
                self.levels.greeted(node.clone(), session, level, self.now);
                self.hands.dial(&node);
                self.hands.ask(super::registrar::Ask::Watch(node));
            }
            Internal::LinkUp(node) => {
                tracing::debug!("link to {node} stands");
                self.step(Input::Linked(node.clone()));
                self.resend_to(&node);
            }
            Internal::SnapshotArrived(snapshot) => {
                let mark =
                    crate::protocol::Mark { index: snapshot.position.index, epoch: snapshot.position.epoch };
                self.arrived = Some(*snapshot);
                self.step(Input::SnapshotReceived(mark));
                // Not installed. To free an index of millions of keys takes long.
                if let Some(unwanted) = self.arrived.take() {
                    self.hands.discard(Box::new(unwanted));
                }
            }
            Internal::SnapshotSent(node) => self.sending_snapshot.retain(|other| *other != node),
            Internal::Flushed(done) => self.flush_done = Some(done),
            Internal::FlushWaits(rest, lack) => self.flush_lacks(rest, lack),
            Internal::Applied(done) => self.worker_done(done),
            Internal::Failed(why) => self.fail(why),
            Internal::Stop => self.begin_stop(),
        }
    }

    fn request(&mut self, request: Request) {
        match request {
            Request::Mutate { mutation, deadline, answer } => self.mutate(mutation, deadline, answer),
            Request::Confirm { deadline, answer } => self.reads.arrive(deadline, answer),
            Request::Remove { node, deadline, answer } => self.wish(Wish::Remove(node), deadline, answer),
            Request::MoveLeader { node, deadline, answer } => {
                self.wish(Wish::MoveLeader(node), deadline, answer);
            }
        }
    }

    /// What peers say beside the protocol. An older epoch is refused like there (R6); a newer one is repeated by its
    /// sender once we have caught up.
    fn frame(&mut self, from: &NodeId, epoch: Epoch, body: Body) {
        if epoch != self.node.epoch() {
            return;
        }
        match body {
            Body::Forward(forward) => self.take_forwarded(from, forward),
            Body::NoRoom(no_room) => self.refused_by_leader(from, no_room),
            Body::ReadIndex(ReadIndex { question }) => self.answer_read_index(from, question),
            Body::ReadIndexAnswer(answer) => {
                self.reads.answered(answer.question, Index(answer.commit));
                self.reads.reached(self.applied.index);
            }
            Body::Command(command) => self.command(command),
            Body::Append(_)
            | Body::Appended(_)
            | Body::Report(_)
            | Body::Ping(_)
            | Body::Stale(_)
            | Body::Transfer(_) => {
                unreachable!("these reach the protocol as messages")
            }
            Body::SnapshotBegin(_) | Body::SnapshotChunk(_) | Body::SnapshotEnd(_) => {
                tracing::warn!("{from} sent a frame that has no place here");
            }
        }
    }

    fn tick(&mut self) {
        self.step(Input::Tick);
        if self.now.duration_since(self.swept_at) >= SWEEP {
            self.swept_at = self.now;
            self.requests.expire(self.now);
            self.reads.expire(self.now, self.node.leader_is_heard());
            self.pursue_wishes();
            self.maybe_flush();
            self.look_for_room();
            self.compacting |= std::mem::take(&mut self.removal_held);
            self.raise_level();
            self.ensure_secret();
            self.confirm_health();
            // Also without a lost link: a leader drops what comes under another epoch than its own, and we may have read
            // a new view before the leader knew that its swap had won.
            let long_ago = self.now.duration_since(self.given_again_at) >= self.options.failure_timeout;
            if (std::mem::take(&mut self.link_lost) || long_ago) && self.repeat_requests() {
                self.given_again_at = self.now;
            }
        }
        self.stop_when_handed_over();
    }

    // --- the protocol ---

    fn now_ms(&self) -> u64 {
        u64::try_from(self.now.duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }

    fn step(&mut self, input: Input) {
        self.feed(input, None);
    }

    fn feed(&mut self, input: Input, entries: Option<&Entries>) {
        let now = self.now_ms();
        let effects = self.node.step(now, input);
        for effect in effects {
            self.carry_out(effect, entries);
        }
    }

    fn halt(&mut self, halt: &Halt) {
        self.ended.get_or_insert(match halt {
            Halt::Removed => Ended::Removed,
            other => Ended::Halted(other.clone()),
        });
    }

    /// A node that cannot trust what it holds must not go on.
    fn fail(&mut self, why: String) {
        self.ended.get_or_insert(Ended::Failed(why));
    }

    // --- what others see ---

    /// The node has just shown that it can do its part: it has committed something, or the view is known to be the
    /// newest (R31).
    fn is_healthy_now(&mut self) {
        self.healthy_at = Some(self.now);
        self.shared.healthy_at.store(self.now_ms(), Ordering::Relaxed);
    }

    fn confirm_health(&mut self) {
        let log = self.node.log();
        let leads = matches!(self.node.role(), Role::Leader(_));
        let (commit, waits) = (log.commit(), log.commit() < log.last().index);
        self.stalled = match self.stalled {
            Some((at, since)) if waits && at == commit => Some((at, since)),
            Some(_) | None => waits.then_some((commit, self.now)),
        };
        let moves = self
            .stalled
            .is_none_or(|(_, since)| self.now.duration_since(since) <= 2 * self.options.failure_timeout);
        let newest = match self.shared.register.has_newer(self.node.epoch()) {
            Ok(newer) => !newer,
            // A set that is whole goes on without the register (R10), and that is its own proof. A follower sees it by
            // what is committed.
            Err(error) => {
                if error.is_of_another() {
                    self.step(Input::RegisterDoubted);
                }
                self.node.is_followed() || (!leads && commit > self.swept_commit)
            }
        };
        self.swept_commit = commit;
        if newest && moves && !self.node.is_unfit() {
            self.is_healthy_now();
        }
    }

    fn publish(&mut self) {
        let serving = self.node.is_serving() && self.leadership_is_open();
        let epoch = if serving { self.node.epoch().0 } else { 0 };
        let shared = &self.shared;
        let mut changed = shared.serving.swap(epoch, Ordering::AcqRel) != epoch;
        shared.turned_at.store(self.now_ms(), Ordering::Release);
        shared.proof_until.store(self.node.proof_until().unwrap_or(0), Ordering::Release);
        let log = self.node.log();
        shared.last.store(log.last().index.0, Ordering::Relaxed);
        shared.last_epoch.store(log.last().epoch.0, Ordering::Relaxed);
        shared.durable.store(log.durable().0, Ordering::Relaxed);
        let heard = self.node.leader_is_heard();
        changed |= shared.leader_heard.swap(heard, Ordering::AcqRel) != heard;
        let able = serving || (self.node.is_in_sync() && heard && self.leadership_is_open());
        let confirmed =
            self.healthy_at.is_some_and(|at| self.now.duration_since(at) <= 2 * self.options.failure_timeout);
        let ready = able && (confirmed || breaks(Rule::ConfirmHealth));
        changed |= shared.ready.swap(ready, Ordering::AcqRel) != ready;
        if changed {
            shared.changed.send_modify(|count| *count += 1);
        }
    }
}

/// What a simulation looks at.
#[cfg(test)]
impl<H: Hands> Engine<H> {
    /// The protocol.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The last entry applied.
    pub fn applied(&self) -> Position {
        self.applied
    }

    /// Where the node stands, in a line.
    pub fn describe(&self) -> String {
        let role = match self.node.role() {
            Role::Leader(_) if self.node.can_propose() => "leads",
            Role::Leader(_) if self.node.is_serving() => "hands over",
            Role::Leader(_) => "opens its epoch",
            Role::Candidate(_) => "takes over",
            Role::Follower(_) if self.node.is_in_sync() => "follows in sync",
            Role::Follower(_) => "follows",
        };
        let log = self.node.log();
        format!(
            "{role}, epoch {} promised {}, log to {} durable {} commit {} applied {}",
            self.node.epoch(),
            self.node.promised(),
            log.last().index,
            log.durable(),
            log.commit(),
            self.applied.index
        )
    }
}
