//! What the rest of the program holds of a running node: ask for a change, read, look, command.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;

use super::admission::Admitted;
use super::event::{Confirmed, Events, Internal, Request};
use super::lack::{Lack, LackCell};
use super::pieces::{InPieces, Whole};
use super::state::StateBackend;
use crate::bounds::Budget;
use crate::kv;
use crate::proto::replcluster::Mutation;
use crate::register::Register;
use crate::rules::{Rule, breaks};
use crate::view::{ClusterId, Epoch, Incarnation, Index, NodeId, View};

/// The thread of the protocol waits for the state no longer than this; it tries again in its next turn.
const LOCK_WAIT: Duration = Duration::from_millis(1);
/// Bytes of changes that wait for their entries; beyond it `too many requests`.
const PENDING_BYTES_MAX: usize = 128 << 20;
/// Reads of many pieces that go on at a time.
const LONG_READS: usize = 2;

/// The store as a node holds it.
pub type StateStore = kv::Store<StateBackend>;

/// What the API needs to know that does not change while the node runs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The cluster's name.
    pub cluster_name: String,
    /// Largest request, in bytes (etcd: 1.5 MiB).
    pub max_request_bytes: usize,
    /// Most operations in one transaction (etcd: 128).
    pub max_txn_operations: usize,
    /// Given by whoever started the process; empty by hand.
    pub nonce: String,
    /// Fewer in-sync nodes than this refuse writes.
    pub min_in_sync: usize,
}

/// Why a request could not be served now. Each maps to one of etcd's errors.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// Nobody leads, as far as this node knows.
    #[error("no leader")]
    NoLeader,
    /// The leader changed while the request was under way; it may or may not have been done.
    #[error("leader changed")]
    LeaderChanged,
    /// The time of the request is up; it may or may not have been done.
    #[error("request timed out")]
    TimedOut,
    /// The queue is full; nothing was done.
    #[error("too many requests")]
    TooManyRequests,
    /// It was done, but fewer nodes hold it than the operator wants: it must not count as safe.
    #[error("done, but min_in_sync is {need}, and the nodes in sync that hold it are {have}")]
    HeldByTooFew {
        /// In sync when it was committed, or a moment later.
        have: usize,
        /// Wanted.
        need: usize,
    },
    /// The operator wants more copies than there are; nothing was done.
    #[error("{have} nodes in sync, and min_in_sync is {need}")]
    TooFewInSync {
        /// In sync now.
        have: usize,
        /// Wanted.
        need: usize,
    },
    /// This node has left the in-sync set for want of room on its disk; nothing was done, and whoever leads can.
    #[error("this node has no room on its disk and is not in sync")]
    NoRoomHere,
    /// The node stops.
    #[error("the node stops")]
    Stopping,
}

/// Why a command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The cluster cannot do it now.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// No member has this address.
    #[error("{0} is not a member of this cluster")]
    UnknownMember(String),
    /// It makes no sense as things stand.
    #[error("{0}")]
    Refused(String),
}

/// What a node is, for `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoleName {
    /// Knows no view.
    None,
    /// Leads.
    Leader,
    /// In sync.
    Follower,
    /// On the way into the set.
    Joining,
}

/// Everything a node says of itself.
#[derive(Debug, Clone)]
pub struct Description {
    /// The cluster.
    pub cluster: ClusterId,
    /// This node.
    pub address: NodeId,
    /// Its data directory.
    pub incarnation: Incarnation,
    /// Its role.
    pub role: RoleName,
    /// Serves writes.
    pub ready: bool,
    /// The newest view's epoch.
    pub epoch: Epoch,
    /// Who leads, where a leader is heard.
    pub leader: Option<NodeId>,
    /// In sync by the newest view.
    pub in_sync: Vec<NodeId>,
    /// Members by the newest view.
    pub members: Vec<NodeId>,
    /// The newest view adopted.
    pub view: Option<View>,
    /// End of the log.
    pub last_index: Index,
    /// Under which the entry there was ordered.
    pub last_epoch: Epoch,
    /// On disk.
    pub durable_index: Index,
    /// Committed.
    pub commit_index: Index,
    /// Applied.
    pub applied_index: Index,
    /// The store's revision.
    pub revision: i64,
    /// What the log may hold (R37).
    pub feature_level: u32,
    /// Entries applied as a refusal because they cannot be read or carried out (R33).
    pub refused_entries: u64,
    /// Log and state, in bytes.
    pub disk_bytes: u64,
    /// What stops the node from serving; empty when nothing does.
    pub waiting_for: String,
    /// Since the process started, in milliseconds.
    pub uptime_ms: u64,
    /// Since the last committed entry or heard heartbeat, in milliseconds.
    pub healthy_age_ms: u64,
}

/// What stands in the header of every answer.
#[derive(Debug, Clone, Copy)]
pub struct HeaderFacts {
    /// The cluster.
    pub cluster: u64,
    /// This node.
    pub member: u64,
    /// The newest view's epoch.
    pub epoch: u64,
}

/// A value read on a leader that is still to be proved.
pub(super) struct Reading<R> {
    epoch: Epoch,
    /// Missing only in a test that takes the proof too early.
    pub(super) value: Option<R>,
}

/// What a read on the leader must find applied: the commit index at the read's first try. The commit index of each later
/// try might never be reached under steady load. It holds for one epoch: between two epochs of ours another node may have
/// led.
#[derive(Default)]
pub(super) struct Wanted {
    epoch: Epoch,
    commit: u64,
}

/// What driver and handles share.
pub struct Shared {
    pub(super) settings: Settings,
    pub(super) address: NodeId,
    pub(super) incarnation: Incarnation,
    /// Held for a piece of work of about half a millisecond at most; by the thread of the protocol only where it is had
    /// at once or soon (R35).
    pub(super) store: parking_lot::RwLock<StateStore>,
    /// Numbers the work on a heavy entry that belongs to this state; 0: none.
    pub(super) working: AtomicU64,
    /// Heavy entries applied on the thread of the protocol: none, but for the test switch.
    pub(super) heavy_inline: AtomicU64,
    /// How often the state was replaced by a snapshot.
    pub(super) replaced: AtomicU64,
    /// Reads of more than one piece: so many at a time, so that others come in between.
    pub(super) long_reads: Semaphore,
    /// What changes that wait for their entries may hold, beside their number.
    pub(super) pending: Budget,
    /// The state refuses what makes it grow (R25), as applied here.
    pub(super) space_alarm: AtomicBool,
    pub(super) register: Arc<dyn Register>,
    /// The newest view.
    pub(super) view: RwLock<Option<Arc<View>>>,
    /// The epoch in which this node serves as leader; zero where it does not.
    pub(super) serving: AtomicU64,
    /// Until when a look at the register proves a read, in milliseconds after `started`; zero: not now (R17).
    pub(super) proof_until: AtomicU64,
    /// The engine's time in its last turn, in milliseconds after `started`.
    pub(super) turned_at: AtomicU64,
    pub(super) cluster: AtomicU64,
    pub(super) epoch: AtomicU64,
    pub(super) last: AtomicU64,
    pub(super) last_epoch: AtomicU64,
    pub(super) durable: AtomicU64,
    pub(super) commit: AtomicU64,
    pub(super) applied: AtomicU64,
    pub(super) revision: AtomicI64,
    /// What the log may hold (R37), as applied here.
    pub(super) feature_level: AtomicU32,
    /// Entries applied as a refusal because they cannot be read or carried out (R33).
    pub(super) refused_entries: AtomicU64,
    pub(super) ready: AtomicBool,
    pub(super) leader_heard: AtomicBool,
    pub(super) stopping: AtomicBool,
    /// The last read could not be proved, and that was said.
    pub(super) proof_fails: AtomicBool,
    pub(super) disk_bytes: AtomicU64,
    /// Free on the disk, in bytes.
    pub(super) free_bytes: AtomicU64,
    /// What must be free before the node takes what grows again, in bytes.
    pub(super) needed_bytes: AtomicU64,
    /// What its log or its state was last found to lack.
    pub(super) lack: LackCell,
    /// Too little of it.
    pub(super) full: AtomicBool,
    /// Milliseconds after `started` at which the node last was healthy (R31).
    pub(super) healthy_at: AtomicU64,
    pub(super) started: std::time::Instant,
    /// Grows whenever view, service or the applied index change; readers wait on it.
    pub(super) changed: watch::Sender<u64>,
}

impl Shared {
    /// What is known at the start: who the node is, the newest view it has seen, the end of its log and what of it is
    /// applied.
    pub(super) fn new(
        settings: Settings,
        (address, incarnation): (NodeId, Incarnation),
        store: StateStore,
        register: Arc<dyn Register>,
        view: Option<View>,
        (last, applied): (Index, Index),
    ) -> Shared {
        Shared {
            settings,
            address,
            incarnation,
            revision: AtomicI64::new(store.revision()),
            feature_level: AtomicU32::new(store.feature_level()),
            refused_entries: AtomicU64::new(0),
            space_alarm: AtomicBool::new(store.has_space_alarm()),
            store: parking_lot::RwLock::new(store),
            working: AtomicU64::new(0),
            heavy_inline: AtomicU64::new(0),
            replaced: AtomicU64::new(0),
            long_reads: Semaphore::new(LONG_READS),
            pending: Budget::new(PENDING_BYTES_MAX),
            register,
            serving: AtomicU64::new(0),
            proof_until: AtomicU64::new(0),
            turned_at: AtomicU64::new(0),
            cluster: AtomicU64::new(view.as_ref().map_or(0, |view| view.cluster.0)),
            epoch: AtomicU64::new(view.as_ref().map_or(0, |view| view.epoch.0)),
            view: RwLock::new(view.map(Arc::new)),
            last: AtomicU64::new(last.0),
            // Told with the first turn of the engine.
            last_epoch: AtomicU64::new(0),
            durable: AtomicU64::new(last.0),
            commit: AtomicU64::new(applied.0),
            applied: AtomicU64::new(applied.0),
            ready: AtomicBool::new(false),
            leader_heard: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            proof_fails: AtomicBool::new(false),
            disk_bytes: AtomicU64::new(0),
            free_bytes: AtomicU64::new(0),
            needed_bytes: AtomicU64::new(0),
            lack: LackCell::default(),
            full: AtomicBool::new(false),
            healthy_at: AtomicU64::new(0),
            started: crate::clock::now(),
            changed: watch::Sender::new(0),
        }
    }

    pub(super) fn view(&self) -> Option<Arc<View>> {
        self.view.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the state as it is here.
    pub(super) fn look<R>(&self, read: &impl Fn(&StateStore) -> R) -> R {
        read(&self.store.read())
    }

    /// The state, to be changed, for the thread of the protocol: `None` where others hold it for longer than they should.
    pub(super) fn store_soon(&self) -> Option<parking_lot::RwLockWriteGuard<'_, StateStore>> {
        self.store.try_write_for(LOCK_WAIT)
    }

    /// As [`Shared::store_soon`], to be looked at.
    pub(super) fn look_soon(&self) -> Option<parking_lot::RwLockReadGuard<'_, StateStore>> {
        self.store.try_read_for(LOCK_WAIT)
    }

    /// What is seen of the state without its lock.
    pub(super) fn publish_state(&self, store: &StateStore) {
        self.revision.store(store.revision(), Ordering::Release);
        self.space_alarm.store(store.has_space_alarm(), Ordering::Release);
    }

    /// Reads the state where it holds everything that this leader knew to be committed at the first try of the read in
    /// this epoch. To be proved by [`Shared::end_read`].
    pub(super) fn begin_read<R>(
        &self,
        epoch: Epoch,
        wanted: &mut Wanted,
        read: &impl Fn(&StateStore) -> R,
    ) -> Option<Reading<R>> {
        if breaks(Rule::ProveAfterReading) {
            return self.prove(epoch).then_some(Reading { epoch, value: None });
        }
        if wanted.epoch != epoch {
            *wanted = Wanted { epoch, commit: self.commit.load(Ordering::Acquire) };
        }
        let applied = self.applied.load(Ordering::Acquire) >= wanted.commit;
        applied.then(|| Reading { epoch, value: Some(self.look(read)) })
    }

    /// The value, where it is proved that it was the newest when it was read (R17). However long the process was
    /// stopped in between, the proof is newer than the value.
    pub(super) fn end_read<R>(&self, reading: Reading<R>, read: &impl Fn(&StateStore) -> R) -> Option<R> {
        match reading.value {
            Some(value) => (breaks(Rule::ProveReads) || self.prove(reading.epoch)).then_some(value),
            None => Some(self.look(read)),
        }
    }

    /// Milliseconds after `started`. In a simulation the engine's, which alone knows the time there.
    fn elapsed_ms(&self) -> u64 {
        if cfg!(test) {
            return self.turned_at.load(Ordering::Acquire);
        }
        u64::try_from(crate::clock::now().duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }

    /// True where no newer view than this one existed at some moment of this call, and this node serves in it: what
    /// was read before the call was the newest then (R17). Holds for nothing that is read later.
    pub(super) fn prove(&self, epoch: Epoch) -> bool {
        match self.register.has_newer(epoch) {
            Ok(newer) => {
                self.proof_fails.store(false, Ordering::Relaxed);
                // The time comes last: the process may have been stopped before it.
                !newer
                    && self.serving.load(Ordering::Acquire) == epoch.0
                    && self.elapsed_ms() <= self.proof_until.load(Ordering::Acquire)
            }
            // Every read looks again and again: said once until one can be proved.
            Err(error) => {
                if !self.proof_fails.swap(true, Ordering::Relaxed) {
                    tracing::warn!("cannot prove a read against the register: {error}");
                }
                false
            }
        }
    }
}

/// A running node. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    pub(super) shared: Arc<Shared>,
    pub(super) requests: mpsc::Sender<Request>,
    pub(super) events: Events,
}

impl Handle {
    /// Orders a change and waits until it is applied here. A refusal by the store is an answer, not an error; what cannot
    /// be logged, or would cost too much, is refused before it is ordered (R33).
    ///
    /// # Errors
    /// [`Unavailable`]; after `TimedOut` and `LeaderChanged` the change may or may not have been done.
    pub async fn mutate(
        &self,
        mutation: Mutation,
        deadline: Instant,
    ) -> Result<Result<kv::Applied, kv::Refusal>, Unavailable> {
        let admitted = match Admitted::request(&mutation, self.feature_level()) {
            Ok(admitted) => admitted,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let pending = &self.shared.pending;
        let _held = pending.try_charge(admitted.length()).ok_or(Unavailable::TooManyRequests)?;
        {
            // While it is being admitted there are two copies: the decoded request, and its bytes for the log.
            let _twice = pending.try_charge(admitted.length()).ok_or(Unavailable::TooManyRequests)?;
            if let Err(refusal) = self.admit(mutation, deadline).await? {
                return Ok(Err(refusal));
            }
        }
        let (answer, outcome) = oneshot::channel();
        self.request(Request::Mutate { mutation: admitted, deadline, answer })?;
        match tokio::time::timeout_at(deadline, outcome).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(Unavailable::Stopping),
            Err(_) => Err(Unavailable::TimedOut),
        }
    }

    /// What the bytes of requests that are admitted or wait for their entries are held against.
    #[cfg(test)]
    pub fn pending(&self) -> &Budget {
        &self.shared.pending
    }

    /// What the log may hold (R37), as applied here.
    #[must_use]
    pub fn feature_level(&self) -> u32 {
        self.shared.feature_level.load(Ordering::Acquire)
    }

    /// True while the state here refuses what makes it grow (R25).
    #[must_use]
    pub fn has_space_alarm(&self) -> bool {
        self.shared.space_alarm.load(Ordering::Acquire)
    }

    /// Runs `read`, which must be short, on a state that holds everything acknowledged before the call; where
    /// `serializable`, on what is here. `read` may run more than once. What may be long is read in pieces
    /// ([`Handle::range`], [`Handle::read_txn`]).
    ///
    /// # Errors
    /// [`Unavailable`]; nothing was answered.
    pub async fn read<R: Send>(
        &self,
        serializable: bool,
        deadline: Instant,
        read: impl Fn(&StateStore) -> R + Send,
    ) -> Result<R, Unavailable> {
        let whole = self.read_in_pieces(serializable, deadline, move |store| Whole(read(store))).await?;
        Ok(whole.0)
    }

    /// Begins a read and goes on until it is done, piece by piece, each under the lock for a short time.
    ///
    /// On the leader the proof that no newer view exists is taken after all was read (R17) and never used twice: what is
    /// read is the state as it was when the read began, and that was the newest then. A follower asks the leader once
    /// for all reads that wait.
    pub(super) async fn read_in_pieces<P: InPieces>(
        &self,
        serializable: bool,
        deadline: Instant,
        begin: impl Fn(&StateStore) -> P + Send,
    ) -> Result<P, Unavailable> {
        if serializable {
            return self.go_on(self.shared.look(&begin), deadline).await;
        }
        let mut wanted = Wanted::default();
        let mut pause = Duration::from_millis(1);
        let mut changed = None;
        loop {
            let epoch = self.shared.serving.load(Ordering::Acquire);
            if epoch == 0 {
                match self.confirm(deadline).await? {
                    Confirmed::Ready => return self.go_on(self.shared.look(&begin), deadline).await,
                    Confirmed::LeadsHere => continue,
                }
            }
            if let Some(Reading { epoch, value }) = self.shared.begin_read(Epoch(epoch), &mut wanted, &begin)
            {
                let value = match value {
                    Some(value) => Some(self.go_on(value, deadline).await?),
                    None => None,
                };
                if let Some(value) = self.shared.end_read(Reading { epoch, value }, &begin) {
                    return Ok(value);
                }
            }
            // Most reads come no further, and subscribe to nothing. One that does tries again: it may have changed before.
            let Some(changed) = &mut changed else {
                changed = Some(self.shared.changed.subscribe());
                continue;
            };
            // What is committed is about to be applied, a change of the set by ourselves is under way, or we have been
            // replaced: the driver will tell of all that takes long. The wait is bounded so that a register which comes
            // back is noticed.
            let wait = (Instant::now() + pause).min(deadline);
            pause = (2 * pause).min(Duration::from_millis(20));
            let _ = tokio::time::timeout_at(wait, changed.changed()).await;
            if Instant::now() >= deadline {
                return Err(Unavailable::TimedOut);
            }
        }
    }

    async fn confirm(&self, deadline: Instant) -> Result<Confirmed, Unavailable> {
        let (answer, outcome) = oneshot::channel();
        self.request(Request::Confirm { deadline, answer })?;
        match tokio::time::timeout_at(deadline, outcome).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(Unavailable::Stopping),
            Err(_) if self.shared.leader_heard.load(Ordering::Relaxed) => Err(Unavailable::TimedOut),
            Err(_) => Err(Unavailable::NoLeader),
        }
    }

    fn request(&self, request: Request) -> Result<(), Unavailable> {
        if self.shared.stopping.load(Ordering::Relaxed) {
            return Err(Unavailable::Stopping);
        }
        self.requests.try_send(request).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Unavailable::TooManyRequests,
            mpsc::error::TrySendError::Closed(_) => Unavailable::Stopping,
        })
    }

    /// Takes a node out of the cluster for good; answers with the epoch that no longer knows it.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn remove(&self, node: NodeId, deadline: Instant) -> Result<Epoch, CommandError> {
        let (answer, outcome) = oneshot::channel();
        self.request(Request::Remove { node, deadline, answer })?;
        Self::command(outcome, deadline).await
    }

    /// Lets an in-sync node lead; answers with the epoch in which it does.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn move_leader(&self, to: NodeId, deadline: Instant) -> Result<Epoch, CommandError> {
        let (answer, outcome) = oneshot::channel();
        self.request(Request::MoveLeader { node: to, deadline, answer })?;
        Self::command(outcome, deadline).await
    }

    async fn command(
        outcome: oneshot::Receiver<Result<Epoch, CommandError>>,
        deadline: Instant,
    ) -> Result<Epoch, CommandError> {
        match tokio::time::timeout_at(deadline, outcome).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(Unavailable::Stopping.into()),
            Err(_) => Err(Unavailable::TimedOut.into()),
        }
    }

    /// Hands leadership over if need be, then ends the node; [`super::Running::ended`] tells when.
    pub async fn shutdown(&self) {
        self.events.send(Internal::Stop).await;
    }

    /// What does not change while the node runs.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    /// The node's own.
    #[must_use]
    pub fn address(&self) -> &NodeId {
        &self.shared.address
    }

    /// What stands in the header of every answer.
    #[must_use]
    pub fn header(&self) -> HeaderFacts {
        HeaderFacts {
            cluster: self.shared.cluster.load(Ordering::Relaxed),
            member: self.shared.address.member_id(),
            epoch: self.shared.epoch.load(Ordering::Relaxed),
        }
    }

    /// The revision of the store.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.shared.revision.load(Ordering::Acquire)
    }

    /// True where the node serves writes, as far as it knows.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.shared.ready.load(Ordering::Acquire)
    }

    /// True where the node serves writes and the register does not say otherwise: a node that was stopped or cut off
    /// may have been replaced without knowing it, and must not call itself healthy (R18, R31).
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        // The view first: what is believed under it counts only if no newer one exists after that (as in `read`). What
        // was believed under the view before may still stand here when a view is adopted that no longer counts on us.
        let Some(view) = self.shared.view() else { return false };
        let in_sync = view.is_in_sync(&self.shared.address, self.shared.incarnation);
        in_sync && self.is_ready() && !self.is_outdated(view.epoch)
    }

    /// A newer view than this one stands in the register. Where the register cannot be read the set goes on as it is
    /// (R10), so that counts as no.
    fn is_outdated(&self, epoch: Epoch) -> bool {
        matches!(self.shared.register.has_newer(epoch), Ok(true))
    }

    /// Changes whenever view, service or readiness may have changed.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// Who must lead before this node can do anything, and why only they.
    fn waits_for_the_last_set(&self, view: &View) -> String {
        let own = &self.shared.address;
        let others: Vec<&str> = view.in_sync.keys().filter(|node| *node != own).map(NodeId::as_str).collect();
        let others = others.join(", ");
        match (view.in_sync.contains_key(own), others.is_empty()) {
            (true, true) => format!(
                "the data directory with which {own} was the only node in sync: this one is new or an older one"
            ),
            (true, false) => format!(
                "{others} to lead: last in sync were they and {own} with another data directory than this one"
            ),
            (false, _) => format!(
                "one of the last in-sync nodes to lead, because no other surely holds what was acknowledged: {others}"
            ),
        }
    }

    /// The node's own view of itself.
    #[must_use]
    pub fn describe(&self) -> Description {
        let shared = &self.shared;
        let view = shared.view();
        let in_sync = view.as_ref().is_some_and(|view| view.is_in_sync(&shared.address, shared.incarnation));
        let serving = shared.serving.load(Ordering::Acquire) != 0;
        let heard = serving || shared.leader_heard.load(Ordering::Acquire);
        let ready = in_sync && self.is_ready();
        // Looked at after all that was believed under this view (R18).
        let outdated = self.is_outdated(view.as_ref().map_or(Epoch(0), |view| view.epoch));
        let (serving, heard, ready) = (serving && !outdated, heard && !outdated, ready && !outdated);
        let leads = view.as_ref().is_some_and(|view| view.leader == shared.address);
        let role = match (&view, leads && serving, in_sync) {
            (None, _, _) => RoleName::None,
            (Some(_), true, _) => RoleName::Leader,
            (Some(_), false, true) => RoleName::Follower,
            (Some(_), false, false) => RoleName::Joining,
        };
        let free = shared.free_bytes.load(Ordering::Relaxed);
        let waiting_for = match (&view, ready, heard, in_sync) {
            (_, true, _, _) => String::new(),
            (Some(view), _, _, _) if outdated => {
                format!("the newest view: this node still knows epoch {} only", view.epoch)
            }
            (Some(_), _, true, _) if shared.full.load(Ordering::Relaxed) => {
                let needed = shared.needed_bytes.load(Ordering::Relaxed);
                let (free_mib, needed_mib) = (free >> 20, needed >> 20);
                match shared.lack.load() {
                    Some(lack) if lack != Lack::Space => {
                        format!("room for its log: there are no {lack}; {free_mib} MiB are free")
                    }
                    Some(_) | None => {
                        format!("room on its disk: {free_mib} MiB are free, and {needed_mib} MiB are needed")
                    }
                }
            }
            (None, _, _, _) => "a view in the register: no node has created the cluster yet".to_owned(),
            (Some(view), _, false, false) => self.waits_for_the_last_set(view),
            (Some(view), _, false, true) => format!("the leader {} or its successor", view.leader),
            (Some(view), _, true, false) => format!("the log of the leader {}", view.leader),
            (Some(view), _, true, true) => format!("the leader {} to open its epoch", view.leader),
        };
        let uptime_ms = u64::try_from((crate::clock::now() - shared.started).as_millis()).unwrap_or(u64::MAX);
        Description {
            cluster: ClusterId(shared.cluster.load(Ordering::Relaxed)),
            address: shared.address.clone(),
            incarnation: shared.incarnation,
            role,
            ready,
            epoch: view.as_ref().map_or(Epoch(0), |view| view.epoch),
            leader: view.as_ref().filter(|_| heard).map(|view| view.leader.clone()),
            in_sync: view.as_ref().map_or(Vec::new(), |view| view.in_sync.keys().cloned().collect()),
            members: view.as_ref().map_or(Vec::new(), |view| view.members.keys().cloned().collect()),
            view: view.as_ref().map(|view| View::clone(view)),
            last_index: Index(shared.last.load(Ordering::Acquire)),
            last_epoch: Epoch(shared.last_epoch.load(Ordering::Acquire)),
            durable_index: Index(shared.durable.load(Ordering::Acquire)),
            commit_index: Index(shared.commit.load(Ordering::Acquire)),
            applied_index: Index(shared.applied.load(Ordering::Acquire)),
            revision: shared.revision.load(Ordering::Acquire),
            feature_level: shared.feature_level.load(Ordering::Acquire),
            refused_entries: shared.refused_entries.load(Ordering::Relaxed),
            disk_bytes: shared.disk_bytes.load(Ordering::Relaxed),
            waiting_for,
            uptime_ms,
            healthy_age_ms: uptime_ms.saturating_sub(shared.healthy_at.load(Ordering::Relaxed)),
        }
    }
}
