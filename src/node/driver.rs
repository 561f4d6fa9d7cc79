//! The loop that drives the protocol: it gathers a batch of events, feeds them one by one, carries out the effects,
//! submits what clients want, sends, and says what changed. It never waits for a disk: writes go to the writer thread,
//! the register has a thread of its own, and reads of old entries are the exception (start-up).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, mpsc as std_mpsc};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Ended;
use super::event::{ArrivedSnapshot, Events, Internal, Request};
use super::handle::{CommandError, Shared, Unavailable};
use super::link::{ENTRIES_BYTES, Item, Link, item};
use super::log::{Position, Record, decode, encode};
use super::reads::Reads;
use super::recent::Recent;
use super::registrar::Ask;
use super::requests::Requests;
use super::snapshot::{self, APPLIED, encode_position};
use super::wire::{Entries, FORMAT, body_of};
use super::writer::WriteOperation;
use crate::kv::{self, Backend as _};
use crate::proto::replcluster::{
    Command, Forward, Hello, Mutation, ReadIndex, ReadIndexAnswer, command, frame::Body,
};
use crate::protocol::{Effect, Halt, Input, Message, Node, Role, Warning, WriteId};
use crate::view::{Epoch, Index, NodeId, View};

/// Events taken in one turn.
const TURN_EVENTS: usize = 1024;
/// Entries applied in one turn, so that a long replay does not stop the heartbeats.
const TURN_APPLY: u64 = 16_384;
/// Requests that may wait for their entries; beyond it `too many requests` (etcd: 5,000 uncommitted proposals).
pub const PENDING_MAX: usize = 8192;
/// Entries and bytes ordered in one batch.
const BATCH_COUNT: usize = 4096;
const BATCH_BYTES: usize = 4 << 20;
/// Unflushed state, in bytes, at which a flush begins at once.
const FLUSH_BYTES: usize = 16 << 20;
const FLUSH_EVERY: Duration = Duration::from_secs(2);
const COMPACT_STEP: usize = 2000;
/// How long the test switch keeps entries from followers.
const KEPT_BACK: Duration = Duration::from_millis(100);
/// Entries in memory, in bytes, beyond which nothing more is ordered.
const UNCOMMITTED_BYTES: usize = 256 << 20;
/// Sequences of one origin remembered; far more than can wait for an answer within the longest deadline.
const TAKEN_MAX: usize = 1 << 18;
const ADMIN_RETRY: Duration = Duration::from_millis(100);

/// An operator's wish, kept until the view shows that it came true.
struct Admin {
    wish: Wish,
    deadline: Instant,
    asked_at: Option<Instant>,
    answer: tokio::sync::oneshot::Sender<Result<Epoch, CommandError>>,
}

enum Wish {
    Remove(NodeId),
    MoveLeader(NodeId),
}

/// Which requests of one origin a leader has taken: each once, in whatever order a lossy link brings them.
#[derive(Default)]
struct Taken {
    /// Everything up to here counts as taken.
    floor: u64,
    seen: BTreeSet<u64>,
}

impl Taken {
    /// True the first time.
    fn take(&mut self, sequence: u64) -> bool {
        let new = sequence > self.floor && self.seen.insert(sequence);
        while self.seen.len() > TAKEN_MAX
            && let Some(lowest) = self.seen.pop_first()
        {
            self.floor = lowest;
        }
        new
    }
}

/// See the head of the module.
pub struct Driver {
    pub(super) node: Node,
    pub(super) shared: Arc<Shared>,
    pub(super) events: Events,
    pub(super) internal: mpsc::Receiver<Internal>,
    pub(super) clients: mpsc::Receiver<Request>,
    pub(super) writer: std_mpsc::Sender<WriteOperation>,
    pub(super) registrar: std_mpsc::Sender<Ask>,
    pub(super) recent: Arc<Recent>,
    pub(super) heartbeat: Duration,
    pub(super) failure_timeout: Duration,
    /// Test switch: say yes before followers hold the entry, so that the checks can be seen to fail.
    pub(super) acknowledge_early: bool,
    /// The log is kept to this size where nobody needs more of it.
    pub(super) log_keep_bytes: u64,
    pub(super) links: BTreeMap<NodeId, Link>,
    /// The end of the log, written or on its way to the disk.
    pub(super) tail: Position,
    pub(super) applied: Position,
    pub(super) commit: Index,
    pub(super) requests: Requests,
    pub(super) reads: Reads,
    admin: Vec<Admin>,
    /// Requests that followers forwarded and that wait to be ordered: origin, sequence, mutation.
    forwarded: Vec<(u64, u64, Bytes)>,
    /// The sequences of each origin taken in this leadership.
    taken: BTreeMap<u64, Taken>,
    /// What the `Append` effect of the proposal just fed will write.
    batch: Vec<(u64, u64, Bytes)>,
    arrived: Option<ArrivedSnapshot>,
    sending_snapshot: Vec<NodeId>,
    flushing: bool,
    flushed_at: Instant,
    /// Told to end; leadership is being handed over until then.
    stopping: Option<Instant>,
    ended: Option<Ended>,
    /// A swap of ours is on its way.
    swap_open: bool,
    compacting: bool,
    link_lost: bool,
    swept_at: Instant,
    /// When replication was last sent; of interest to the test switch only.
    sent_at: Instant,
}

/// What the driver is made of, see [`super::start`].
pub struct Parts {
    pub(super) node: Node,
    pub(super) shared: Arc<Shared>,
    pub(super) events: Events,
    pub(super) internal: mpsc::Receiver<Internal>,
    pub(super) clients: mpsc::Receiver<Request>,
    pub(super) writer: std_mpsc::Sender<WriteOperation>,
    pub(super) registrar: std_mpsc::Sender<Ask>,
    pub(super) recent: Arc<Recent>,
    pub(super) heartbeat: Duration,
    pub(super) failure_timeout: Duration,
    pub(super) acknowledge_early: bool,
    pub(super) log_keep_bytes: u64,
    pub(super) tail: Position,
    pub(super) applied: Position,
    pub(super) origin: u64,
}

impl Driver {
    /// Nothing has happened yet.
    #[must_use]
    pub fn new(parts: Parts) -> Driver {
        Driver {
            commit: Index(0),
            requests: Requests::new(parts.origin),
            reads: Reads::default(),
            admin: Vec::new(),
            forwarded: Vec::new(),
            taken: BTreeMap::new(),
            batch: Vec::new(),
            arrived: None,
            sending_snapshot: Vec::new(),
            flushing: false,
            flushed_at: Instant::now(),
            stopping: None,
            ended: None,
            swap_open: false,
            compacting: true,
            link_lost: false,
            swept_at: Instant::now(),
            sent_at: Instant::now(),
            links: BTreeMap::new(),
            node: parts.node,
            shared: parts.shared,
            events: parts.events,
            internal: parts.internal,
            clients: parts.clients,
            writer: parts.writer,
            registrar: parts.registrar,
            recent: parts.recent,
            heartbeat: parts.heartbeat,
            failure_timeout: parts.failure_timeout,
            acknowledge_early: parts.acknowledge_early,
            log_keep_bytes: parts.log_keep_bytes,
            tail: parts.tail,
            applied: parts.applied,
        }
    }

    fn now_ms(&self) -> u64 {
        super::millis_since(self.shared.started)
    }

    /// Runs until the node ends, and says why.
    pub async fn run(mut self) -> Ended {
        let mut ticks = tokio::time::interval(self.heartbeat / 4);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut reports = Vec::with_capacity(TURN_EVENTS);
        let mut requests = Vec::with_capacity(TURN_EVENTS);
        loop {
            let room = PENDING_MAX.saturating_sub(self.requests.len()).min(TURN_EVENTS);
            let busy = self.applied.index < self.commit || self.compacting;
            tokio::select! {
                biased;
                _ = ticks.tick() => self.tick(),
                count = self.internal.recv_many(&mut reports, TURN_EVENTS) => if count == 0 { return Ended::Stopped },
                _ = self.clients.recv_many(&mut requests, room), if room > 0 => {}
                () = std::future::ready(()), if busy => {}
            }
            // Whatever else has gathered belongs to the same batch: one sync, one message to each follower.
            while reports.len() < TURN_EVENTS
                && let Ok(report) = self.internal.try_recv()
            {
                reports.push(report);
            }
            while requests.len() < room
                && let Ok(request) = self.clients.try_recv()
            {
                requests.push(request);
            }
            for report in reports.drain(..) {
                self.report(report);
            }
            for request in requests.drain(..) {
                self.request(request);
            }
            self.apply();
            self.submit();
            if self.may_flush() {
                self.step(Input::Flush);
            }
            self.ask_leader();
            self.publish();
            if let Some(ended) = self.ended.take() {
                self.shared.stopping.store(true, Ordering::Release);
                self.shared.ready.store(false, Ordering::Release);
                self.requests.fail_all();
                return ended;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Always, but for the test switch: a leader that says yes early also keeps what it acknowledged to itself for a
    /// while, so that its death surely loses something.
    fn may_flush(&mut self) -> bool {
        let now = Instant::now();
        let may = !self.acknowledge_early || now.duration_since(self.sent_at) >= KEPT_BACK;
        if may {
            self.sent_at = now;
        }
        may
    }

    // --- what comes in ---

    fn report(&mut self, report: Internal) {
        match report {
            Internal::Persisted(write) => self.step(Input::Persisted(write)),
            Internal::Diverged(at) => self.halt(&Halt::Diverged { at }),
            Internal::Dropped(index) => self.step(Input::Dropped(index)),
            Internal::RegisterRead(answer) => self.step(Input::RegisterAnswered(answer)),
            Internal::Swapped(outcome) => {
                self.swap_open = false;
                self.step(Input::SwapAnswered(outcome));
            }
            Internal::Died { node, session } => {
                tracing::info!("{node} is dead: its lock is free");
                self.step(Input::Died { node, session });
            }
            Internal::Message { envelope, entries } => self.feed(Input::Received(envelope), entries.as_ref()),
            Internal::Frame { from, epoch, body } => self.frame(&from, epoch, body),
            Internal::PeerArrived(node) => {
                if let Some(link) = self.links.get(&node) {
                    link.dial_now();
                }
                let _ = self.registrar.send(Ask::Watch(node));
            }
            Internal::LinkUp(node) => {
                tracing::debug!("link to {node} stands");
                self.resend_to(&node);
            }
            Internal::SnapshotArrived(snapshot) => {
                let mark =
                    crate::protocol::Mark { index: snapshot.position.index, epoch: snapshot.position.epoch };
                self.arrived = Some(*snapshot);
                self.step(Input::SnapshotReceived(mark));
                self.arrived = None;
            }
            Internal::SnapshotSent(node) => self.sending_snapshot.retain(|other| *other != node),
            Internal::Flushed(done) => self.flushed(&done),
            Internal::Stop => self.begin_stop(),
        }
    }

    fn request(&mut self, request: Request) {
        match request {
            Request::Mutate { mutation, deadline, answer } => {
                let have = self.node.view().map_or(0, |view| view.in_sync.len());
                let need = self.shared.settings.min_in_sync;
                if have > 0 && have < need {
                    let _ = answer.send(Err(Unavailable::TooFewInSync { have, need }));
                } else {
                    self.requests.arrive(mutation, deadline, answer);
                }
            }
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
            Body::Forward(forward) => self.take_forwarded(forward),
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
        let now = Instant::now();
        if now.duration_since(self.swept_at) >= Duration::from_millis(50) {
            self.swept_at = now;
            self.requests.expire(now);
            self.reads.expire(now, self.node.leader_is_heard());
            self.pursue_wishes(now);
            self.maybe_flush(now);
            // A leader gives its own requests to itself: nothing of them can be lost on a link, and giving them again
            // would do them twice (R19).
            if std::mem::take(&mut self.link_lost) && !matches!(self.node.role(), Role::Leader(_)) {
                self.requests.submit_again();
            }
        }
        if let Some(deadline) = self.stopping
            && (now >= deadline || !self.must_hand_over())
        {
            self.ended.get_or_insert(Ended::Stopped);
        }
    }

    // --- the protocol ---

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

    fn carry_out(&mut self, effect: Effect, entries: Option<&Entries>) {
        match effect {
            Effect::Append { write, epoch, first, last, opening } => {
                self.append(write, epoch, first, last, opening);
            }
            Effect::Accept { write, first, last } => {
                let entries = entries.expect("entries are accepted from the message just fed");
                let (frames, end) = entries.slice(first, last);
                self.put(write, first, frames, end);
            }
            Effect::Truncate { write, after } => {
                tracing::info!("cutting the log after {after}: what follows was never committed");
                let end =
                    self.recent.position(after).or((self.applied.index == after).then_some(self.applied));
                self.tail = end.expect("the log keeps its committed end");
                self.recent.truncate(after);
                self.write(WriteOperation::Truncate { write, after });
            }
            Effect::Persist { write, promised, view } => {
                let commit = self.commit;
                self.write(WriteOperation::Persist { write, promised, view, commit });
            }
            Effect::Install { write, mark } => self.install(write, mark.index),
            Effect::Commit(to) => {
                self.commit = to;
                self.shared.commit.store(to.0, Ordering::Release);
                self.apply();
            }
            Effect::Send { to, epoch, message } => self.send(&to, epoch, &message),
            Effect::SendSnapshot(to) => self.send_snapshot(to),
            Effect::ReadRegister => self.ask(Ask::Read),
            Effect::Swap(next) => {
                self.swap_open = true;
                self.ask(Ask::Swap(next));
            }
            Effect::Adopted(view) => self.adopted(view),
            Effect::Serving => tracing::info!("leading since epoch {}", self.node.epoch()),
            Effect::Fenced(fenced) => {
                tracing::info!("{}", if fenced { "handing leadership over" } else { "hand-over ended" });
            }
            Effect::Warn(warning) => warn(&warning),
            Effect::Halt(halt) => self.halt(&halt),
        }
    }

    fn write(&self, operation: WriteOperation) {
        self.writer.send(operation).expect("the writer ends only with the process");
    }

    fn ask(&self, ask: Ask) {
        self.registrar.send(ask).expect("the registrar ends only with the process");
    }

    fn append(&mut self, write: WriteId, epoch: Epoch, first: Index, last: Index, opening: bool) {
        let mut buffer = BytesMut::new();
        let batch = if opening { vec![(0, 0, Bytes::new())] } else { std::mem::take(&mut self.batch) };
        assert_eq!(batch.len() as u64, last.0 - first.0 + 1, "the batch is what was proposed");
        let commit = self.node.log().commit();
        let mut chain = self.tail.chain;
        for (index, (origin, sequence, payload)) in (first.0..).zip(batch) {
            let record = Record { epoch, index: Index(index), commit, origin, sequence, payload };
            chain = encode(&mut buffer, &record, chain);
        }
        self.put(write, first, buffer.freeze(), Position { index: last, epoch, chain });
    }

    fn put(&mut self, write: WriteId, first: Index, frames: Bytes, last: Position) {
        self.tail = last;
        self.recent.push(first, frames.clone(), last, self.applied.index);
        self.write(WriteOperation::Append { write, frames, last });
    }

    fn adopted(&mut self, view: View) {
        let in_sync: Vec<&str> = view.in_sync.keys().map(NodeId::as_str).collect();
        tracing::info!("epoch {}: {} leads, in sync: {}", view.epoch, view.leader, in_sync.join(", "));
        let before = self.shared.view();
        let new_leadership = before.as_ref().is_none_or(|old| old.led_since != view.led_since);
        if new_leadership {
            self.taken.clear();
            self.forwarded.clear();
        }
        // Only what a leader gave itself in this leadership cannot have been lost on the way.
        if new_leadership || view.leader != self.shared.address {
            self.requests.submit_again();
        }
        self.reads.ask_again();
        for node in view.members.keys().filter(|node| **node != self.shared.address) {
            self.ask(Ask::Watch(node.clone()));
        }
        if let Some(old) = before {
            for node in old.members.keys().filter(|node| !view.members.contains_key(*node)) {
                self.ask(Ask::Forget(node.clone()));
                self.links.remove(node);
            }
        }
        self.shared.cluster.store(view.cluster.0, Ordering::Relaxed);
        self.shared.epoch.store(view.epoch.0, Ordering::Release);
        self.shared.healthy_at.store(self.now_ms(), Ordering::Relaxed);
        *self.shared.view.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(view));
    }

    fn halt(&mut self, halt: &Halt) {
        self.ended.get_or_insert(match halt {
            Halt::Removed => Ended::Removed,
            other => Ended::Halted(other.clone()),
        });
    }

    // --- peers ---

    fn hello(&self, to: &NodeId) -> Hello {
        Hello {
            cluster_id: self.shared.cluster.load(Ordering::Relaxed),
            from: self.shared.address.to_string(),
            incarnation: self.shared.incarnation.0,
            to: to.to_string(),
            format: FORMAT,
            session: u64::from(std::process::id()),
        }
    }

    fn link(&mut self, to: &NodeId) -> &Link {
        if !self.links.contains_key(to) {
            let link = Link::open(self.hello(to), self.recent.clone(), self.events.clone());
            self.links.insert(to.clone(), link);
        }
        &self.links[to]
    }

    fn send(&mut self, to: &NodeId, epoch: Epoch, message: &Message) {
        let item = match message {
            Message::Append { previous, last, commit, runs } if !runs.is_empty() => {
                Item::Entries { epoch, previous: *previous, last: *last, commit: *commit }
            }
            other => item(epoch, body_of(other)),
        };
        self.queue(to, item);
    }

    fn queue(&mut self, to: &NodeId, item: Item) {
        if !self.link(to).send(item) {
            self.link_lost = true;
        }
    }

    /// What we had sent to the leader may be lost with the old connection.
    fn resend_to(&mut self, node: &NodeId) {
        let Some(view) = self.node.view() else { return };
        if view.leader == *node {
            self.requests.submit_again();
            self.reads.ask_again();
        }
    }

    fn send_snapshot(&mut self, to: NodeId) {
        if self.sending_snapshot.contains(&to) {
            return;
        }
        self.sending_snapshot.push(to.clone());
        let reader = {
            let store = self.shared.store.read().unwrap_or_else(PoisonError::into_inner);
            store.backend().snapshot()
        };
        let (hello, epoch, position, events) =
            (self.hello(&to), self.node.epoch(), self.applied, self.events.clone());
        tracing::info!("sending {to} a snapshot of everything up to {}", position.index);
        tokio::spawn(async move {
            match snapshot::send(hello, epoch, position, reader).await {
                Ok(rows) => tracing::info!("{to} has the snapshot of {rows} rows"),
                Err(error) => tracing::warn!("snapshot for {to}: {error}"),
            }
            events.send(Internal::SnapshotSent(to)).await;
        });
    }

    fn install(&mut self, write: WriteId, index: Index) {
        let snapshot = self.arrived.take().expect("a snapshot is installed as it arrives");
        assert_eq!(snapshot.position.index, index, "the snapshot that arrived is the one installed");
        tracing::info!("installing a snapshot of everything up to {index}");
        self.recent.clear();
        self.tail = snapshot.position;
        self.applied = snapshot.position;
        self.commit = index;
        *self.shared.store.write().unwrap_or_else(PoisonError::into_inner) = snapshot.store;
        self.flushing = false;
        self.requests.fail_submitted();
        self.write(WriteOperation::Install { write, base: snapshot.position, place: snapshot.place });
    }

    // --- requests ---

    /// The opening entry of the present leadership is applied: what we have not seen committed before it never was.
    fn leadership_is_open(&self) -> bool {
        self.node.view().is_some_and(|view| self.applied.epoch >= view.led_since)
    }

    /// Gives what clients want to whoever leads.
    fn submit(&mut self) {
        if !self.leadership_is_open() {
            return;
        }
        match self.node.role() {
            Role::Leader(_) => self.order(),
            Role::Follower(_) => self.forward(),
            Role::Candidate(_) => {}
        }
    }

    fn order(&mut self) {
        // While nothing commits, requests wait in their bounded queue and not in the log.
        while self.node.can_propose()
            && self.recent.bytes() < UNCOMMITTED_BYTES
            && (self.requests.has_unsubmitted() || !self.forwarded.is_empty())
        {
            let origin = self.requests.origin();
            let own = self.requests.submit(BATCH_COUNT, BATCH_BYTES);
            self.batch = std::mem::take(&mut self.forwarded);
            self.batch
                .extend(own.mutations.into_iter().map(|(sequence, mutation)| (origin, sequence, mutation)));
            let count = self.batch.len() as u64;
            self.step(Input::Proposed { count });
            if self.acknowledge_early {
                self.apply_early();
            }
        }
    }

    fn forward(&mut self) {
        let Some(leader) = self.node.view().map(|view| view.leader.clone()) else { return };
        if leader == self.shared.address {
            return;
        }
        let epoch = self.node.epoch();
        while self.requests.has_unsubmitted() {
            let submission = self.requests.submit(BATCH_COUNT, ENTRIES_BYTES);
            // Sequence numbers have gaps where requests timed out: one frame for each stretch without a gap.
            let mut rest = submission.mutations.into_iter().peekable();
            while let Some((first_sequence, mutation)) = rest.next() {
                let mut mutations = vec![mutation];
                while let Some((_, mutation)) =
                    rest.next_if(|(sequence, _)| *sequence == first_sequence + mutations.len() as u64)
                {
                    mutations.push(mutation);
                }
                let forward = Forward { origin: self.requests.origin(), first_sequence, mutations };
                self.queue(&leader, item(epoch, Body::Forward(forward)));
            }
        }
    }

    fn take_forwarded(&mut self, forward: Forward) {
        if !matches!(self.node.role(), Role::Leader(_)) {
            return;
        }
        let taken = self.taken.entry(forward.origin).or_default();
        for (sequence, mutation) in (forward.first_sequence..).zip(forward.mutations) {
            if taken.take(sequence) {
                self.forwarded.push((forward.origin, sequence, mutation));
            }
        }
    }

    // --- applying ---

    fn apply(&mut self) {
        if self.applied.index >= self.commit {
            return;
        }
        // R13: the view must still be ours when a client hears yes.
        let ours = !self.node.is_serving()
            || self.swap_open
            || !matches!(self.shared.register.has_newer(self.node.epoch()), Ok(true));
        let shared = self.shared.clone();
        let mut store = shared.store.write().unwrap_or_else(PoisonError::into_inner);
        let stop = Index(self.commit.0.min(self.applied.index.0 + TURN_APPLY));
        let mut answers = Vec::new();
        while self.applied.index < stop {
            let chunk = self
                .recent
                .read(self.applied.index.next(), ENTRIES_BYTES)
                .unwrap_or_else(|error| fatal(&format!("cannot read the log: {error}")))
                .unwrap_or_else(|| fatal("the log ends before its commit index"));
            let mut frames = chunk.frames;
            while self.applied.index < stop {
                let Ok(Some((record, chain))) = decode(&mut frames) else { break };
                self.applied = Position { index: record.index, epoch: record.epoch, chain };
                if record.payload.is_empty() {
                    continue; // opens an epoch
                }
                let outcome = apply_to(&mut store, &record.payload);
                if record.origin == self.requests.origin() {
                    let answer = if ours { Ok(outcome) } else { Err(Unavailable::LeaderChanged) };
                    answers.push((record.sequence, answer));
                }
            }
        }
        store.backend_mut().put_meta(APPLIED, encode_position(self.applied));
        self.compacting = true;
        self.shared.revision.store(store.revision(), Ordering::Release);
        drop(store);
        self.shared.applied.store(self.applied.index.0, Ordering::Release);
        self.recent.applied(self.applied.index);
        self.shared.healthy_at.store(self.now_ms(), Ordering::Relaxed);
        // Whoever hears yes and looks at this node sees what was done.
        for (sequence, answer) in answers {
            self.requests.applied(sequence, answer);
        }
        self.reads.reached(self.applied.index);
    }

    /// What a build with the test switch does wrong: it applies, and so acknowledges, entries that only it holds.
    fn apply_early(&mut self) {
        let commit = self.commit;
        self.commit = self.tail.index;
        self.apply();
        self.commit = self.commit.max(commit);
    }

    // --- reads ---

    fn answer_read_index(&mut self, from: &NodeId, question: u64) {
        if !self.node.is_serving() {
            return;
        }
        let commit = self.node.log().commit();
        // The proof is taken after the value (R17). While a change of ours is on its way the follower asks again.
        if matches!(self.shared.register.has_newer(self.node.epoch()), Ok(false)) {
            let epoch = self.node.epoch();
            let answer = ReadIndexAnswer { question, commit: commit.0 };
            self.queue(from, item(epoch, Body::ReadIndexAnswer(answer)));
        }
    }

    fn ask_leader(&mut self) {
        match self.node.role() {
            Role::Leader(_) if self.node.is_serving() && self.leadership_is_open() => self.reads.lead_here(),
            Role::Follower(_) => {
                let Some(leader) = self.node.view().map(|view| view.leader.clone()) else { return };
                if leader == self.shared.address || !self.leadership_is_open() {
                    return;
                }
                if let Some(question) = self.reads.next_question(Instant::now(), self.heartbeat) {
                    let epoch = self.node.epoch();
                    self.queue(&leader, item(epoch, Body::ReadIndex(ReadIndex { question })));
                }
            }
            Role::Leader(_) | Role::Candidate(_) => {}
        }
    }

    // --- operators ---

    fn wish(
        &mut self,
        wish: Wish,
        deadline: Instant,
        answer: tokio::sync::oneshot::Sender<Result<Epoch, CommandError>>,
    ) {
        let refusal = match (&wish, self.node.view()) {
            (_, None) => Some(CommandError::Unavailable(Unavailable::NoLeader)),
            (Wish::Remove(node) | Wish::MoveLeader(node), Some(view)) if !view.members.contains_key(node) => {
                Some(CommandError::UnknownMember(node.to_string()))
            }
            (Wish::Remove(_), Some(view)) if view.members.len() == 1 => Some(CommandError::Refused(
                "it is the last node of the cluster; `replcluster down --purge` ends a cluster".to_owned(),
            )),
            (Wish::Remove(node), Some(view))
                if view.in_sync.len() == 1 && view.in_sync.contains_key(node) =>
            {
                Some(CommandError::Refused(format!(
                    "{node} holds the only in-sync copy; wait until another is in sync"
                )))
            }
            (Wish::MoveLeader(node), Some(view)) if !view.in_sync.contains_key(node) => {
                Some(CommandError::Refused(format!("{node} is not in sync")))
            }
            (Wish::Remove(_) | Wish::MoveLeader(_), Some(_)) => None,
        };
        match refusal {
            Some(refusal) => drop(answer.send(Err(refusal))),
            None => {
                self.admin.push(Admin { wish, deadline, asked_at: None, answer });
                self.pursue_wishes(Instant::now());
            }
        }
    }

    /// Asks whoever leads again and again until the view shows that it is done.
    fn pursue_wishes(&mut self, now: Instant) {
        for mut admin in std::mem::take(&mut self.admin) {
            let Some(view) = self.node.view().cloned() else { continue };
            let done = match &admin.wish {
                Wish::Remove(node) => !view.members.contains_key(node),
                Wish::MoveLeader(node) => view.leader == *node && self.leadership_is_open(),
            };
            if done {
                let _ = admin.answer.send(Ok(view.epoch));
                continue;
            }
            if now >= admin.deadline {
                let _ = admin.answer.send(Err(Unavailable::TimedOut.into()));
                continue;
            }
            if admin.asked_at.is_none_or(|at| now.duration_since(at) >= ADMIN_RETRY) {
                admin.asked_at = Some(now);
                let what = match &admin.wish {
                    Wish::Remove(node) => command::What::Remove(node.to_string()),
                    Wish::MoveLeader(node) => command::What::MoveLeader(node.to_string()),
                };
                let command = Command { question: 0, what: Some(what) };
                if matches!(self.node.role(), Role::Leader(_)) {
                    self.command(command);
                } else {
                    let epoch = self.node.epoch();
                    self.queue(&view.leader, item(epoch, Body::Command(command)));
                }
            }
            self.admin.push(admin);
        }
    }

    fn command(&mut self, command: Command) {
        if !matches!(self.node.role(), Role::Leader(_)) {
            return;
        }
        match command.what {
            Some(command::What::Remove(node)) => match NodeId::parse(&node) {
                Ok(node) if node == self.shared.address => self.move_leadership_away(),
                Ok(node) => self.step(Input::Remove(node)),
                Err(error) => tracing::warn!("remove: {error}"),
            },
            Some(command::What::MoveLeader(node)) => match NodeId::parse(&node) {
                Ok(node) if node == self.shared.address => {}
                Ok(node) => self.step(Input::MoveLeader(node)),
                Err(error) => tracing::warn!("move leader: {error}"),
            },
            None => {}
        }
    }

    /// To the lowest other in-sync node.
    fn move_leadership_away(&mut self) {
        let target = self
            .node
            .view()
            .and_then(|view| view.in_sync.keys().find(|node| **node != self.shared.address).cloned());
        if let Some(target) = target {
            self.step(Input::MoveLeader(target));
        }
    }

    // --- stopping ---

    fn must_hand_over(&self) -> bool {
        matches!(self.node.role(), Role::Leader(_))
            && self.node.view().is_some_and(|view| view.in_sync.len() > 1)
    }

    fn begin_stop(&mut self) {
        if self.stopping.is_some() {
            return;
        }
        self.stopping = Some(Instant::now() + 2 * self.failure_timeout);
        if self.must_hand_over() {
            tracing::info!("stopping: handing leadership over first");
            self.move_leadership_away();
        }
    }

    // --- state on disk ---

    fn maybe_flush(&mut self, now: Instant) {
        if self.flushing {
            return;
        }
        let job = {
            let mut store = self.shared.store.write().unwrap_or_else(PoisonError::into_inner);
            let bytes = store.backend().overlay_bytes();
            let due =
                bytes >= FLUSH_BYTES || (bytes > 0 && now.duration_since(self.flushed_at) >= FLUSH_EVERY);
            if due { store.backend_mut().begin_flush() } else { None }
        };
        if let Some(job) = job {
            self.flushing = true;
            let events = self.events.clone();
            tokio::task::spawn_blocking(move || match job.run() {
                Ok(done) => events.send_blocking(Internal::Flushed(done)),
                Err(error) => fatal(&format!("cannot write the state: {error}")),
            });
        }
    }

    fn flushed(&mut self, done: &super::state::FlushDone) {
        let (disk, durable) = {
            let mut store = self.shared.store.write().unwrap_or_else(PoisonError::into_inner);
            if !store.backend_mut().end_flush(done) {
                return; // of a state that a snapshot has replaced
            }
            (store.backend().disk_bytes(), snapshot::durable_of(&store).index)
        };
        self.flushing = false;
        self.flushed_at = Instant::now();
        let log = self.recent.disk_bytes();
        self.shared.disk_bytes.store(disk + log, Ordering::Relaxed);
        if log > self.log_keep_bytes {
            // What the state holds durably may leave the log, up to what followers still have to read.
            let mut needed = durable;
            if let Role::Leader(leader) = self.node.role() {
                for progress in leader.progress().values() {
                    needed = needed.min(progress.matched);
                }
            }
            self.write(WriteOperation::DropBefore(needed));
        }
    }

    // --- what others see ---

    fn publish(&mut self) {
        let shared = &self.shared;
        let serving = self.node.is_serving() && self.leadership_is_open();
        let epoch = if serving { self.node.epoch().0 } else { 0 };
        let mut changed = shared.serving.swap(epoch, Ordering::AcqRel) != epoch;
        let log = self.node.log();
        shared.last.store(log.last().index.0, Ordering::Relaxed);
        shared.durable.store(log.durable().0, Ordering::Relaxed);
        let heard = self.node.leader_is_heard();
        changed |= shared.leader_heard.swap(heard, Ordering::AcqRel) != heard;
        let ready = serving || (self.node.is_in_sync() && heard && self.leadership_is_open());
        changed |= shared.ready.swap(ready, Ordering::AcqRel) != ready;
        if changed {
            shared.changed.send_modify(|count| *count += 1);
        }
        if self.compacting {
            let mut store = shared.store.write().unwrap_or_else(PoisonError::into_inner);
            self.compacting = store.compact_some(COMPACT_STEP);
        }
    }
}

fn apply_to(store: &mut super::handle::StateStore, payload: &Bytes) -> Result<kv::Applied, kv::Refusal> {
    match Mutation::decode(payload.clone()) {
        Ok(mutation) => store.apply(&mutation),
        // The leader encoded it and the checksum is right: only another version can have written this.
        Err(error) => fatal(&format!("an entry of the log cannot be understood: {error}")),
    }
}

fn warn(warning: &Warning) {
    match warning {
        Warning::RegisterBehind { register, seen } => tracing::error!(
            "the register stands at epoch {register}, this node has seen {seen}: it was restored or deleted; no view can change until it is put right"
        ),
        Warning::RegisterUnreachable => {
            tracing::error!("the register cannot be read; the set stays as it is and no view can change");
        }
        Warning::TransferFailed(node) => tracing::warn!("{node} did not take over in time; leading on"),
    }
}

/// A node that cannot trust what it holds must not go on.
fn fatal(why: &str) -> ! {
    tracing::error!("{why}");
    eprintln!("replserver: {why}");
    std::process::exit(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forwarded_request_is_taken_once_in_whatever_order_it_comes() {
        let mut taken = Taken::default();
        assert!(taken.take(11) && taken.take(12), "the first frame was lost");
        assert!(taken.take(1) && taken.take(2), "and comes again after the second");
        assert!(!taken.take(1) && !taken.take(12), "but nothing twice");
    }
}
