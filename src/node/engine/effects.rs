//! What the protocol wants done, handed on.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use bytes::{Bytes, BytesMut};

use super::Engine;
use super::forwarded::Forwarded;
use crate::node::admission::Admitted;
use crate::node::hands::Hands;
use crate::node::link::{Item, item_of};
use crate::node::log::{Position, Record, encode};
use crate::node::registrar::Ask;
use crate::node::wire::{Entries, body_of};
use crate::node::writer::WriteOperation;
use crate::protocol::{Effect, Message, Role, Warning, WriteId};
use crate::rules::{Rule, breaks};
use crate::view::{Checksum, Epoch, Index, NodeId, View};

impl<H: Hands> Engine<H> {
    pub(super) fn carry_out(&mut self, effect: Effect, entries: Option<&Entries>) {
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
                self.hands.write(WriteOperation::Truncate { write, after });
            }
            Effect::Persist { write, promised, view } => {
                let commit = self.commit;
                self.hands.write(WriteOperation::Persist { write, promised, view, commit });
            }
            Effect::Install { write, mark } => self.install(write, mark.index),
            Effect::Commit(to) => {
                self.commit = to;
                self.shared.commit.store(to.0, Ordering::Release);
                self.apply();
            }
            Effect::Send { to, epoch, view, message } => self.send(&to, epoch, view, &message),
            Effect::SendSnapshot(to) => self.snapshot_due(to),
            Effect::ReadRegister { known } => self.hands.ask(Ask::Read(known)),
            Effect::Prepare(next) => self.hands.ask(Ask::Prepare(next)),
            Effect::Swap { replaces, next } => {
                self.swap_open = true;
                self.hands.ask(Ask::Swap { replaces, next });
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

    fn append(&mut self, write: WriteId, epoch: Epoch, first: Index, last: Index, opening: bool) {
        let mut buffer = BytesMut::new();
        let batch: Vec<(u64, u64, Bytes)> = if opening {
            vec![(0, 0, Bytes::new())]
        } else {
            let batch = std::mem::take(&mut self.batch).into_iter();
            batch.map(|(origin, sequence, mutation)| (origin, sequence, mutation.into_bytes())).collect()
        };
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
        self.recent.push(first, frames.clone(), last, self.commit);
        self.hands.write(WriteOperation::Append { write, frames, last });
    }

    fn adopted(&mut self, view: View) {
        let in_sync: Vec<&str> = view.in_sync.keys().map(NodeId::as_str).collect();
        tracing::info!("epoch {}: {} leads, in sync: {}", view.epoch, view.leader, in_sync.join(", "));
        let before = self.shared.view();
        let new_leadership = before.as_ref().is_none_or(|old| old.led_since != view.led_since);
        if new_leadership {
            self.forwarded = Forwarded::default();
            self.requests.forget(Admitted::is_for_the_leader);
            self.alarm = None;
            self.levels.forget_raising();
        }
        // Only what a leader gave itself in this leadership cannot have been lost on the way.
        if new_leadership || view.leader != self.shared.address {
            self.requests.submit_again();
        }
        self.reads.ask_again();
        for node in view.members.keys().filter(|node| **node != self.shared.address) {
            self.hands.ask(Ask::Watch(node.clone()));
        }
        if let Some(old) = before {
            for node in old.members.keys().filter(|node| !view.members.contains_key(*node)) {
                self.hands.ask(Ask::Forget(node.clone()));
                self.hands.hang_up(node);
            }
        }
        self.shared.cluster.store(view.cluster.0, Ordering::Relaxed);
        self.shared.epoch.store(view.epoch.0, Ordering::Release);
        self.is_healthy_now();
        *self.shared.view.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(view));
    }

    // --- peers ---

    fn send(&mut self, to: &NodeId, epoch: Epoch, view: Checksum, message: &Message) {
        let item = match message {
            Message::Append { previous, last, commit, runs, sent } if !runs.is_empty() => {
                Item::Entries { epoch, view, previous: *previous, last: *last, commit: *commit, sent: *sent }
            }
            other => item_of(epoch, view, body_of(other)),
        };
        self.queue(to, item);
    }

    pub(super) fn queue(&mut self, to: &NodeId, item: Item) {
        if *to == self.shared.address {
            return; // the view may name us before we lead in it; nobody would answer
        }
        if !self.hands.send(to, item) {
            self.link_lost = true;
        }
    }

    /// What we had sent to the leader may be lost with the old connection.
    pub(super) fn resend_to(&mut self, node: &NodeId) {
        let Some(view) = self.node.view() else { return };
        if view.leader == *node && *node != self.shared.address && self.repeat_requests() {
            self.reads.ask_again();
        }
    }

    /// Gives the leader again what it has not answered; it takes each request once. `false` where that is this node:
    /// what it gave to itself cannot be lost, and given again it would be done twice (R19).
    pub(super) fn repeat_requests(&mut self) -> bool {
        if matches!(self.node.role(), Role::Leader(_)) {
            return false;
        }
        self.requests.submit_again();
        true
    }

    fn install(&mut self, write: WriteId, index: Index) {
        let snapshot = self.arrived.take().expect("a snapshot is installed as it arrives");
        assert_eq!(snapshot.position.index, index, "the snapshot that arrived is the one installed");
        tracing::info!("installing a snapshot of everything up to {index}");
        self.recent.clear();
        self.tail = snapshot.position;
        self.applied = snapshot.position;
        self.commit = index;
        self.applying.abandon();
        let replaced = {
            // Each holder of the lock holds it for a piece only.
            let mut store = self.shared.store.write();
            // The worker sees under the lock that its state is gone.
            self.shared.working.store(0, Ordering::Release);
            self.shared.replaced.fetch_add(1, Ordering::AcqRel);
            std::mem::replace(&mut *store, snapshot.store)
        };
        // An index of millions of keys takes its time to go.
        self.hands.discard(Box::new(replaced));
        self.flushing = false;
        self.flush_done = None;
        self.flush_rest = None;
        self.requests.fail_submitted();
        self.hands.write(WriteOperation::Install { write, base: snapshot.position, place: snapshot.place });
        self.publish_installed();
    }

    /// What the installed state holds is seen at once, and not with the next commit.
    fn publish_installed(&mut self) {
        if breaks(Rule::PublishInstalled) {
            return;
        }
        let shared = self.shared.clone();
        let store = shared.store.read();
        self.publish_state(&store);
        drop(store);
        self.compacting = true;
        shared.commit.store(self.commit.0, Ordering::Release);
        shared.applied.store(self.applied.index.0, Ordering::Release);
        shared.changed.send_modify(|count| *count += 1);
        self.reads.reached(self.applied.index);
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
        Warning::RegisterForked { register, seen } => tracing::error!(
            "the register holds other views than this node has seen (its newest is of epoch {register}, this node has seen {seen}): it was put back to an older copy, and other nodes went on from there; this node waits and keeps its data: stop all nodes, then put the newer register back or decide with `replcluster recover`"
        ),
        Warning::RegisterReplaced => tracing::error!(
            "the register's directory is no longer the one that this node has opened: it was moved or replaced; no view can change until it is put right"
        ),
        Warning::NoRoomForView => tracing::error!(
            "the register cannot take a view for want of room; the set stays as it is, and it is tried again"
        ),
        Warning::TransferFailed(node) => tracing::warn!("{node} did not take over in time; leading on"),
    }
}
