//! The replication protocol as a pure state machine: primary-backup with an external view register.
//!
//! No clock, disk, network or randomness lives here; the driver (`node/`) owns those. The same inputs give the same
//! effects, so that a simulation with a seed replays to the byte.
//!
//! # The protocol in one page
//!
//! A *view* names the leader and the in-sync set; the newest view stands in a *register*, a cell that only knows
//! compare-and-swap. **At every instant, the set of nodes that must hold an entry before it is acknowledged is a
//! superset of the set of nodes that may be elected**: the rest of the rules apply this sentence. (The shape is that
//! of PacificA, MSR-TR-2008-25, and of Vertical Paxos II; numbers R1–R39 name the project's rules.)
//!
//! *Writing.* The leader appends an entry, streams it to everyone in the set, and everyone syncs at the same time.
//! Each says up to where its disk agrees with the leader's log (`Appended`). The commit index is the lowest of these
//! over the in-sync set (R13), and everybody applies up to it (R15).
//!
//! *Losing a follower.* When one is proved dead (its lock is free; another data directory speaks from its address), or
//! is silent, or does not answer under this view for `failure_timeout`, the leader swaps in a view without it and only
//! then stops waiting for it (R3).
//!
//! *Disks.* Whose disk hangs for `stall_timeout` while others' work is as good as dead: a follower is taken out of the
//! set, a leader falls silent and so lets itself be replaced. Whose disk is nearly full while another's is not hands
//! leadership over, and is out of the set until there is room (R25). On a disk that nodes share none of them has more
//! room than another, so none of this is done among them.
//!
//! *Losing the leader.* The lowest live in-sync node (`takeover`) looks at the register, durably promises to obey
//! no older epoch (R5), swaps itself in, appends an entry of its own epoch, and serves once that entry, and so its
//! whole tail, is durable on every in-sync node of its view (R7). Tails of others that differ are cut above their
//! commit index (R14): everything up to it is surely in the new leader's log, because the new leader was in sync.
//! That is why a follower never searches for the place where logs part: it reports its commit index and the leader
//! streams from there; what the follower already has is recognised by (epoch, index) and not written again.
//!
//! *Joining.* A node outside the set reports to the leader until it is in. It gets a snapshot if the leader's log no
//! longer reaches back to its commit index, then the log. When it has reached the commit index and the leader's own
//! epoch entry in this epoch, the leader first waits for its acknowledgements and then swaps it in (R3, R30).
//!
//! *Handing over.* The leader stops ordering, waits until everyone has everything, and tells the target, which takes
//! over as above (R9). Nothing is lost if any step fails: the leader resumes after `failure_timeout`.
//!
//! *A register that goes back* (R11). Views form a chain: each holds the checksum of the one before it. A node follows a
//! newer view only where the chain below it contains the view that the node knows; an older one, or one of another
//! chain, it refuses. Each message names the view that its sender holds, so two leaders of one epoch notice each other. A
//! node counts for a view only once the view is on its own disk: it would find its way back to it after a restart. A
//! process that has just started knows no more than its disk, and an older register may say the same; so it replaces its
//! view only once it has heard every other node of the set, or has their deaths proved, or `failure_timeout` has passed.
//!
//! *Reading* (R17). A leader proves a read by a look at the register after the value was read, and only while each
//! in-sync follower has obeyed it less than `failure_timeout` ago: before that time no follower obeys another leader,
//! even where the register was put back to before that leader's view. [`Node::proof_until`] says until when.
//!
//! *Room before the promise* (R34). A promise cannot be taken back, so everything that may run out on the way to the new
//! view is had first: the candidate has the register write the view under another name ([`Effect::Prepare`]), then
//! promises, then swaps. Where it cannot be prepared nothing was promised, and it tries again after a pause.
//!
//! *Nodes that come and go* (R36). A node that is dropped again and again is let in later each time (`damping`).
//!
//! *Starting over.* Where the last in-sync copy is lost, an operator may declare another one the source of all others
//! (R4): a view made by hand, with that copy alone in sync and an epoch above all others, which it also names as
//! `recovered`. What another node knows to be committed may now be in no log at all, so it must not go on from there:
//! a node that holds anything from before that epoch, and is not the source, stops as soon as it sees such a view.
//!
//! # The contract between this machine and its driver
//!
//! 1. Feed one [`Input`] at a time with a time that never goes back, and carry out all its effects in order before
//!    the next. After a batch of inputs feed [`Input::Flush`]: replication is sent there, once a batch.
//! 2. [`Effect::Append`], [`Effect::Accept`], [`Effect::Truncate`], [`Effect::Persist`] and [`Effect::Install`] go to
//!    one writer in order. When everything up to a write is durable, say so by [`Input::Persisted`]. Durability is an
//!    input: an acknowledgement can only be its effect, and so group commit comes for free (R20). Where a write finds
//!    no room, those after it wait, but a promise does not: it is reported by [`Input::PromiseKept`] ahead of them.
//! 3. A failed write or sync is the end of the process; it is never reported and never retried (R21).
//! 4. Messages may be lost, repeated, delayed and reordered. Payloads of an `Append` travel beside it: the driver
//!    takes the entries that [`Effect::Accept`] names from the message just fed.
//! 5. At most one [`Effect::ReadRegister`], [`Effect::Prepare`] or [`Effect::Swap`] is open at a time; answer each by
//!    [`Input::RegisterAnswered`], [`Input::Prepared`] or [`Input::SwapAnswered`]. A swap whose outcome is not known is
//!    said to be unknown, never guessed (R2); where surely nothing was changed it is said to have failed (R34).
//! 6. [`Input::Died`] is for proof only: a freed lock or an exit seen through a pidfd (R28). Everything else is
//!    silence.
//! 7. Entries up to [`Effect::Commit`] may be applied and shown; nothing above (R15). Propose only while
//!    [`Node::can_propose`].
//! 8. After a restart build the node by [`Node::restore`] from what was persisted and from nothing else.
//! 9. On [`Effect::Halt`] stop at once; the reason says what the operator is told.
//!
//! `step` cannot fail: a refusal is an effect (or silence), a broken invariant is a panic, and a stale epoch is refused
//! in one place before any role sees it (`Node::receive`).
//!
//! # Caveats
//!
//! * A leader that is cut off learns of it by silence or by a refusal. Until then it orders entries that nobody will
//!   acknowledge. Whether a *read* may be answered is the driver's to prove, after the value was read (R17).
//! * While the register cannot be reached, views stay as they are: a healthy set goes on, a broken one waits (R10).
//! * A candidate that has promised cannot go back, not even by a restart: it must bring the next epoch about. If its
//!   swap cannot be settled, writes wait until it can, or until a leader drops it. It therefore looks at the register
//!   before it promises.
//!
//! What all this is worth is tried in `testing/`: seeded storms of faults with claims checked after every step, and
//! `scripts/`, one short story for each rule; read those first.

mod damping;
mod follower;
mod leader;
mod membership;
mod message;
mod node;
mod outline;
mod progress;
pub(crate) mod rules;
mod takeover;
#[cfg(test)]
pub(crate) mod testing;
mod views;

pub use message::{Envelope, Message};
pub use node::{Node, Restored, Role};
pub use outline::{Mark, Outline, Run};
pub use progress::{Phase, Progress};

use crate::view::{Checksum, ClusterId, Epoch, Incarnation, Index, NodeId, View, ViewId};

/// Milliseconds on a clock that never goes back; only differences mean anything.
pub type Millis = u64;

/// Numbers the writes that the driver was asked to make durable, from 1 without a gap.
pub type WriteId = u64;

/// What a node is told at birth.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// This node's address.
    pub id: NodeId,
    /// This node's data directory.
    pub incarnation: Incarnation,
    /// How often to speak to a peer that needs nothing, in milliseconds.
    pub heartbeat_interval: Millis,
    /// Silence after which a live-looking node is suspected, in milliseconds; at least twice `heartbeat_interval`.
    pub failure_timeout: Millis,
    /// How long the disk of one node may hang while those of others go on, in milliseconds: then that node is left
    /// out, however lively it talks.
    pub stall_timeout: Millis,
    /// How long a lower address must stay in sync before leadership goes back to it, in milliseconds (R9).
    pub handback_after: Option<Millis>,
    /// The disk that the data lies on: nodes that name the same one share its room. Zero where it is not known.
    pub disk: u64,
    /// A process that has just started hears who counts in its view before it replaces it (R11). Always, but in a model in
    /// which nobody is heard of himself.
    pub hears_first: bool,
    /// The number of a cluster to create where the register is empty; `None` waits for somebody else's.
    pub create: Option<ClusterId>,
}

/// Everything that can happen to a node.
#[derive(Clone, Debug)]
pub enum Input {
    /// Time passed. Feed one at least every quarter of `heartbeat_interval`.
    Tick,
    /// The batch is over: send what has gathered.
    Flush,
    /// Order this many entries now. Only while [`Node::can_propose`].
    Proposed {
        /// How many, at least one.
        count: u64,
    },
    /// A peer spoke.
    Received(Envelope),
    /// What is sent to this peer reaches it from now on.
    Linked(NodeId),
    /// Every write up to this one is durable.
    Persisted(WriteId),
    /// This promise is durable, although writes before it still wait for room on the disk.
    PromiseKept(WriteId),
    /// The answer to [`Effect::ReadRegister`]: what stands there, `Err` where it could not be read.
    RegisterAnswered(Result<Found, RegisterUnreachable>),
    /// The answer to [`Effect::Prepare`].
    Prepared(Result<(), NotPrepared>),
    /// The answer to [`Effect::Swap`].
    SwapAnswered(Swapped),
    /// Every member reads views with a checksum of the one before: from now on they are made with it (R11, R37). Said
    /// again after each start.
    ChainViews,
    /// Proof that this process of that node is dead (R28).
    Died {
        /// The node.
        node: NodeId,
        /// Its process; `None` where only "nobody runs there" is known.
        session: Option<u64>,
    },
    /// This node's disk is nearly full, or no longer so (R25).
    Space {
        /// Nearly full.
        full: bool,
    },
    /// A snapshot of everything up to this mark has arrived and can be installed.
    SnapshotReceived(Mark),
    /// Entries up to and including this one are no longer on our disk; they were committed and applied.
    Dropped(Index),
    /// The register does not hold what this node knows, as a look at it has shown: read it, and say what is wrong (R11).
    RegisterDoubted,
    /// An operator wants this node to lead (R9).
    MoveLeader(NodeId),
    /// An operator wants this node out of the cluster.
    Remove(NodeId),
}

/// The register could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegisterUnreachable;

/// What stands in the register, seen from the view that its reader knows (R11).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Found {
    /// No view.
    Empty,
    /// This view is the newest, and the known one is in its chain or is this very one. Also where the reader knows none,
    /// or the chain does not reach back to it.
    Holds(View),
    /// The newest view is older than the known one: a restored backup, or a deleted file.
    Behind {
        /// Of the newest view; zero: there is none.
        newest: Epoch,
    },
    /// Another view stands in the chain in place of the known one: the register was put back to an older copy, and views
    /// were made from there.
    Forked {
        /// The newest view of that chain.
        newest: View,
    },
    /// The register is not the one that this process has opened.
    Replaced,
}

/// The register cannot take this view; nothing was changed (R34).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NotPrepared;

/// How a swap ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Swapped {
    /// The view proposed stands in the register.
    Won,
    /// The register holds something else than the view that was to be replaced; nothing was changed.
    Lost(Found),
    /// Nothing was changed, for want of a resource or because the register failed before the decisive step (R34).
    Failed,
    /// It may or may not have happened (R2).
    Unknown,
}

/// Everything a node wants done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Append own entries `first..=last` under `epoch`: what was proposed, or (`opening`) one empty entry that opens
    /// the epoch.
    Append {
        /// Number of this write.
        write: WriteId,
        /// The epoch of the entries.
        epoch: Epoch,
        /// The first entry.
        first: Index,
        /// The last entry.
        last: Index,
        /// This is the entry that opens an epoch (R7); it has no payload.
        opening: bool,
    },
    /// Append the entries `first..=last` of the `Append` message just fed.
    Accept {
        /// Number of this write.
        write: WriteId,
        /// The first entry to take.
        first: Index,
        /// The last entry to take.
        last: Index,
    },
    /// Cut the log after this entry (R14).
    Truncate {
        /// Number of this write.
        write: WriteId,
        /// The last entry that stays.
        after: Index,
    },
    /// Keep the promise and the newest view (R5, R11).
    Persist {
        /// Number of this write.
        write: WriteId,
        /// Obey no epoch below this one.
        promised: Epoch,
        /// The newest view adopted.
        view: Option<View>,
    },
    /// Replace log and state by the snapshot just received.
    Install {
        /// Number of this write.
        write: WriteId,
        /// The last entry that the snapshot holds.
        mark: Mark,
    },
    /// Entries up to here are committed and on our disk: apply them.
    Commit(Index),
    /// Say this to that node, under the epoch given. May be lost.
    Send {
        /// To whom.
        to: NodeId,
        /// The epoch to say it under.
        epoch: Epoch,
        /// The checksum of the view of that epoch; see [`Envelope::view`].
        view: Checksum,
        /// What.
        message: Message,
    },
    /// Stream a snapshot to that node, unless one is already under way to this process of it.
    SendSnapshot(NodeId),
    /// Read the register, and look whether the known view is in its chain.
    ReadRegister {
        /// The newest view adopted; `None` before the first.
        known: Option<ViewId>,
    },
    /// Make ready whatever a swap of this view needs, so that it cannot fail for want of room (R34). What was made ready
    /// before for another view is of no use any more.
    Prepare(View),
    /// Swap this view in; it succeeds only where the register's newest view is the very one it replaces.
    Swap {
        /// The view that it replaces; `None`: the register is empty.
        replaces: Option<ViewId>,
        /// The view to swap in.
        next: View,
    },
    /// A newer view was adopted.
    Adopted(View),
    /// We lead and the opening entry is committed: requests may be served (R7).
    Serving,
    /// Leadership is being handed over, or that ended without success.
    Fenced(bool),
    /// Something an operator should know.
    Warn(Warning),
    /// Stop now.
    Halt(Halt),
}

/// Something an operator should know; the node goes on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Warning {
    /// The register stands at a lower epoch than this node has seen: a restored backup or a deleted file (R11).
    RegisterBehind {
        /// What the register says; zero for nothing at all.
        register: Epoch,
        /// What this node has seen.
        seen: Epoch,
    },
    /// The register could not be read; views stay as they are (R10).
    RegisterUnreachable,
    /// The register holds another chain of views than the one this node knows (R11): it was put back to an older copy,
    /// and another node went on from there. An operator has to decide which copy counts.
    RegisterForked {
        /// The newest view of that chain.
        register: Epoch,
        /// The newest view that this node has seen.
        seen: Epoch,
    },
    /// The register's directory is no longer the one that this process has opened (R11).
    RegisterReplaced,
    /// The register cannot take a view for want of a resource; tried again after a time (R34).
    NoRoomForView,
    /// A hand-over did not happen in time; this node goes on leading.
    TransferFailed(NodeId),
}

/// Why a node must stop.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Halt {
    /// The register belongs to another cluster.
    OtherCluster {
        /// Ours.
        ours: ClusterId,
        /// The register's.
        register: ClusterId,
    },
    /// The leader's log differs from ours at or below our commit index (R14): set the data aside and join anew.
    Diverged {
        /// Where.
        at: Index,
    },
    /// The log ends below what the view counts on (R24): set the data aside and join anew.
    LogTooShort {
        /// Where it ends.
        last: Index,
        /// What the view counts on.
        floor: Index,
    },
    /// The view knows this address with another data directory.
    Superseded,
    /// An operator has made another copy the source of all others (R4): this one is of no more use to the cluster.
    Overruled {
        /// The epoch in which that was done.
        epoch: Epoch,
    },
    /// The node was removed from the cluster.
    Removed,
}
