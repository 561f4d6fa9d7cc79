//! Everything that reaches the driver, as two closed enums: what clients want, and what the node's own parts report.

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::admission::Admitted;
use super::handle::{CommandError, Unavailable};
use super::lack::Lack;
use super::log::Position;
use super::state::StateBackend;
use super::wire::Entries;
use crate::bounds::Charge;
use crate::kv;
use crate::proto::replcluster::frame::Body;
use crate::protocol::{Envelope, Found, NotPrepared, RegisterUnreachable, Swapped, WriteId};
use crate::view::{Epoch, Index, NodeId};

/// What becomes of a mutation.
pub type Outcome = Result<Result<kv::Applied, kv::Refusal>, Unavailable>;

/// What clients and operators want of this node. The queue is bounded: when it is full, the request is refused with
/// `etcdserver: too many requests` at once.
pub enum Request {
    /// Order this.
    Mutate {
        /// What is to be logged.
        mutation: Admitted,
        /// Until when the client waits.
        deadline: Instant,
        /// Where the answer goes.
        answer: oneshot::Sender<Outcome>,
    },
    /// Say when the local state holds all that was acknowledged before now.
    Confirm {
        /// Until when the client waits.
        deadline: Instant,
        /// Where the answer goes.
        answer: oneshot::Sender<Result<Confirmed, Unavailable>>,
    },
    /// Take a node out of the cluster.
    Remove {
        /// The node.
        node: NodeId,
        /// Until when the operator waits.
        deadline: Instant,
        /// Where the answer goes.
        answer: oneshot::Sender<Result<Epoch, CommandError>>,
    },
    /// Let this node lead.
    MoveLeader {
        /// The node.
        node: NodeId,
        /// Until when the operator waits.
        deadline: Instant,
        /// Where the answer goes.
        answer: oneshot::Sender<Result<Epoch, CommandError>>,
    },
}

/// How a linearizable read may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirmed {
    /// The local state is fresh enough.
    Ready,
    /// This node leads by now: read and prove it here.
    LeadsHere,
}

/// What the node's own parts report.
pub enum Internal {
    /// Every write up to this one is durable.
    Persisted(WriteId),
    /// This promise is durable, although writes before it wait for room on the disk.
    PromiseKept(WriteId),
    /// The log on disk does not continue as the leader says.
    Diverged(Index),
    /// The log now starts after this entry.
    Dropped(Index),
    /// The register was read.
    RegisterRead(Result<Found, RegisterUnreachable>),
    /// The register has made ready what a swap needs, or cannot.
    Prepared(Result<(), NotPrepared>),
    /// A swap ended.
    Swapped(Swapped),
    /// A process of that node is proved dead (R28).
    Died {
        /// The node.
        node: NodeId,
        /// Which process, where known (R32).
        session: Option<u64>,
    },
    /// A peer said something about log or view.
    Message {
        /// What.
        envelope: Envelope,
        /// The entries beside it.
        entries: Option<Entries>,
    },
    /// A peer said something else.
    Frame {
        /// Who.
        from: NodeId,
        /// Under which epoch.
        epoch: Epoch,
        /// What.
        body: Body,
    },
    /// A peer has dialled us: it lives, and our link to it need not wait.
    PeerArrived {
        /// Who.
        node: NodeId,
        /// Which process of it.
        session: u64,
        /// Its feature level (R37).
        level: u32,
    },
    /// Our link to that node stands; what was sent before may be lost.
    LinkUp(NodeId),
    /// A snapshot has arrived whole.
    SnapshotArrived(Box<ArrivedSnapshot>),
    /// A snapshot that we sent has ended, well or not.
    SnapshotSent(NodeId),
    /// The state was made durable up to what it held when the flush began.
    Flushed(super::state::FlushDone),
    /// A heavy entry is carried out.
    Applied(super::work::ApplyDone),
    /// The rest of a flush waits for something that is missing.
    FlushWaits(super::state::FlushJob, Lack),
    /// A part of the node cannot go on, and says why: neither can the node (R21).
    Failed(String),
    /// Hand leadership over if need be, then end.
    Stop,
}

/// A snapshot ready to be put in place.
pub struct ArrivedSnapshot {
    /// The last entry it holds.
    pub position: Position,
    /// The state, opened beside the old one.
    pub store: kv::Store<StateBackend>,
    /// Moves its file into place, durably.
    pub place: Box<dyn FnOnce() -> Result<(), String> + Send>,
}

/// A report, and what it holds until the driver takes it.
pub struct Reported {
    /// The report.
    pub event: Internal,
    _held: Option<Charge>,
}

/// Where the node's own parts send what they report. Bounded: a full queue makes peers' connections wait, which TCP
/// passes on to the peer.
#[derive(Clone)]
pub struct Events(mpsc::Sender<Reported>);

impl Events {
    /// A queue for at most `bound` reports.
    #[must_use]
    pub fn channel(bound: usize) -> (Events, mpsc::Receiver<Reported>) {
        let (sender, receiver) = mpsc::channel(bound);
        (Events(sender), receiver)
    }

    /// Waits for room. False where the driver has ended.
    pub async fn send(&self, event: Internal) -> bool {
        self.0.send(Reported { event, _held: None }).await.is_ok()
    }

    /// As [`Events::send`], with what the report holds in memory.
    pub async fn send_held(&self, event: Internal, held: Charge) -> bool {
        self.0.send(Reported { event, _held: Some(held) }).await.is_ok()
    }

    /// As [`Events::send`], from a thread of its own.
    pub fn send_blocking(&self, event: Internal) {
        // Where the driver has ended, so has the node: nobody is left to tell.
        let _ = self.0.blocking_send(Reported { event, _held: None });
    }
}
