//! What a node's engine has done for it: writing, sending, asking the register. The driver does it with threads and
//! sockets; a simulation does it with queues and a seed.

use std::any::Any;

use super::link::Item;
use super::log::Position;
use super::registrar::Ask;
use super::state::{FlushJob, SnapshotReader};
use super::work::ApplyJob;
use super::writer::WriteOperation;
use crate::protocol::WriteId;
use crate::view::{Epoch, NodeId};

/// The outside of an engine. No call waits: what comes of it is reported later, as an
/// [`Internal`](super::event::Internal), or not at all.
pub trait Hands {
    /// Queues a write for the disk; order is kept. `Persisted` reports it.
    fn write(&mut self, operation: WriteOperation);
    /// Everything queued for the disk up to this is written.
    fn written(&mut self, _: WriteId) {}
    /// Queues something for the register or the watch on deaths.
    fn ask(&mut self, ask: Ask);
    /// Queues something for a peer; false where the queue is full and it was dropped.
    fn send(&mut self, to: &NodeId, item: Item) -> bool;
    /// The peer lives: whatever waits before dialling it again need not.
    fn dial(&mut self, to: &NodeId);
    /// The peer is of no more interest.
    fn hang_up(&mut self, to: &NodeId);
    /// Streams a snapshot to a peer; `SnapshotSent` reports the end.
    fn send_snapshot(&mut self, to: &NodeId, snapshot: Snapshot);
    /// Makes a part of the state durable; `Flushed` reports it.
    fn flush(&mut self, job: FlushJob);
    /// Carries out a heavy entry, in pieces; `Applied` reports it. One at a time.
    fn apply(&mut self, job: ApplyJob);
    /// Lets go of something that may take long to be let go of.
    fn discard(&mut self, what: Box<dyn Any + Send>);
}

/// A snapshot to be sent.
pub struct Snapshot {
    /// The sender's epoch.
    pub epoch: Epoch,
    /// The last entry that it holds.
    pub position: Position,
    /// Its rows.
    pub rows: SnapshotReader,
}
