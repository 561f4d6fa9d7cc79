//! The way of a request: taken from a client, given to the leader, ordered, answered once it is applied. And reads (R17).

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Engine;
use super::forwarded::{Known, Refused};
use crate::kv::Refusal;
use crate::node::admission::Admitted;
use crate::node::event::Outcome;
use crate::node::handle::Unavailable;
use crate::node::hands::Hands;
use crate::node::link::{ENTRIES_BYTES, Item, item};
use crate::proto::replcluster::{Forward, NoRoom, ReadIndex, ReadIndexAnswer, frame::Body};
use crate::protocol::{Input, Role};
use crate::rules::{Rule, breaks};
use crate::view::NodeId;

/// Entries and bytes ordered in one batch. Own requests and forwarded ones are bounded separately; of each there is at
/// least one, however large.
const BATCH_COUNT: usize = 4096;
const BATCH_BYTES: usize = 4 << 20;
/// How long the test switch keeps entries from followers.
const KEPT_BACK: Duration = Duration::from_millis(100);
/// Entries in memory, in bytes, beyond which nothing more is ordered. With one batch more it is less than what each log
/// has in reserve when its node first says that room is short (R25).
const UNCOMMITTED_BYTES: usize = 24 << 20;
/// A follower's requests that found no room in the queue to the leader are given again after this time.
const FORWARD_AGAIN: Duration = Duration::from_millis(5);

impl<H: Hands> Engine<H> {
    // --- requests ---

    pub(super) fn mutate(&mut self, mutation: Admitted, deadline: Instant, answer: oneshot::Sender<Outcome>) {
        match self.too_few_in_sync() {
            // One that has gone away does not wait for its answer.
            Some((have, need)) => drop(answer.send(Err(Unavailable::TooFewInSync { have, need }))),
            None => self.requests.arrive(mutation, deadline, answer),
        }
    }

    /// A node that has left the set for want of room takes no entries (R25): it can neither say what became of a
    /// request nor what is newest, and nobody knows for how long. Whatever it has not given to a leader yet is better
    /// off elsewhere.
    pub(super) fn turn_away(&mut self) {
        if self.node.is_full() && !self.node.is_in_sync() {
            self.requests.fail_unsubmitted(&Unavailable::NoRoomHere);
            self.reads.fail_all(&Unavailable::NoRoomHere);
        }
    }

    /// How many nodes are in sync and how many the operator wants, where those are too few. Looked at twice: before a
    /// write is ordered, so that nothing is done that cannot be acknowledged; and again when it is to be acknowledged,
    /// because the set may have shrunk in between. An entry is held by the whole set of the view under which it was
    /// committed, so the set of now is never larger than what holds it, unless others have joined since, who hold
    /// it as well. A write that fails the second look is done and stays done: its client is told so, with an error,
    /// because one more failure may undo it (as Kafka's `NOT_ENOUGH_REPLICAS_AFTER_APPEND` says). To withhold the
    /// commit instead would also withhold a new leader's opening entry, and with it every read.
    fn too_few_in_sync(&self) -> Option<(usize, usize)> {
        let have = self.node.view().map_or(0, |view| view.in_sync.len());
        let need = self.shared.settings.min_in_sync;
        (have > 0 && have < need).then_some((have, need))
    }

    /// Always, but for the test switch: a leader that says yes early also keeps what it acknowledged to itself for a
    /// while, so that its death surely loses something.
    pub(super) fn may_flush(&mut self) -> bool {
        let may = !self.options.acknowledge_early || self.now.duration_since(self.sent_at) >= KEPT_BACK;
        if may {
            self.sent_at = self.now;
        }
        may
    }

    /// The opening entry of the present leadership is applied: what we have not seen committed before it never was.
    pub(super) fn leadership_is_open(&self) -> bool {
        self.node.view().is_some_and(|view| self.applied.epoch >= view.led_since)
    }

    /// Gives what clients want to whoever leads.
    pub(super) fn submit(&mut self) {
        if !self.leadership_is_open() && !breaks(Rule::WaitForOpening) {
            return;
        }
        match self.node.role() {
            Role::Leader(_) => self.order(),
            Role::Follower(_) => self.forward(),
            Role::Candidate(_) => {}
        }
    }

    fn order(&mut self) {
        if !self.node.can_propose() || (self.orders_no_growth() && !self.leave_out_growth()) {
            return;
        }
        // While nothing commits, requests wait in their bounded queues and not in the log.
        while self.node.can_propose()
            && self.recent.bytes() < UNCOMMITTED_BYTES
            && (self.requests.has_unsubmitted() || !self.forwarded.is_empty())
        {
            let origin = self.requests.origin();
            self.batch = self.forwarded.next_batch(BATCH_COUNT, BATCH_BYTES);
            let own = self.requests.submit(BATCH_COUNT, BATCH_BYTES);
            self.batch
                .extend(own.mutations.into_iter().map(|(sequence, mutation)| (origin, sequence, mutation)));
            let count = self.batch.len() as u64;
            self.step(Input::Proposed { count });
            if self.options.acknowledge_early {
                self.apply_early();
            }
        }
    }

    /// Requests that make the state grow are not ordered. They wait where another node is about to lead, because it has
    /// room; otherwise they are refused, with the same error as under the space alarm. True where the rest may be ordered.
    fn leave_out_growth(&mut self) -> bool {
        // The log may have found it out a moment ago.
        self.note_short_log();
        if !self.node.is_full() {
            self.look_for_room();
        }
        if self.node.hands_over_for_room() {
            self.forwarded.leave(Admitted::grows);
            return false;
        }
        // A build of level 0 does not know `NoRoom`: it gives its requests again until their time is up.
        if self.shared.feature_level.load(Ordering::Acquire) == 0 {
            self.forwarded.leave(Admitted::grows);
        }
        let epoch = self.node.epoch();
        for Refused { node, origin, sequences } in self.forwarded.refuse(Admitted::grows) {
            self.queue(&node, item(epoch, Body::NoRoom(NoRoom { origin, sequences })));
        }
        self.requests.refuse_ungiven(Admitted::grows, &Refusal::SpaceExceeded);
        true
    }

    fn forward(&mut self) {
        let Some(leader) = self.node.view().map(|view| view.leader.clone()) else { return };
        if leader == self.shared.address || self.forward_at.is_some_and(|at| self.now < at) {
            return;
        }
        self.forward_at = None;
        let epoch = self.node.epoch();
        while self.requests.has_unsubmitted() {
            let submission = self.requests.submit(BATCH_COUNT, ENTRIES_BYTES);
            // Sequence numbers have gaps where requests timed out: one frame for each stretch without a gap.
            let mut rest = submission.mutations.into_iter().peekable();
            while let Some((first_sequence, mutation)) = rest.next() {
                let mut mutations = vec![mutation.into_bytes()];
                while let Some((_, mutation)) =
                    rest.next_if(|(sequence, _)| *sequence == first_sequence + mutations.len() as u64)
                {
                    mutations.push(mutation.into_bytes());
                }
                let forward = Forward { origin: self.requests.origin(), first_sequence, mutations };
                // The queue is full: only what is not in it is given again.
                let Item::Frame(frame) = item(epoch, Body::Forward(forward)) else { return };
                if !self.hands.send(&leader, Item::Requests(frame)) {
                    self.requests.take_back(first_sequence, submission.given_before);
                    self.forward_at = Some(self.now + FORWARD_AGAIN);
                    return;
                }
            }
        }
    }

    pub(super) fn take_forwarded(&mut self, from: &NodeId, forward: Forward) {
        if !matches!(self.node.role(), Role::Leader(_)) {
            return;
        }
        let level = self.shared.feature_level.load(Ordering::Acquire);
        let origin = forward.origin;
        let mut refused = Vec::new();
        for (sequence, mutation) in (forward.first_sequence..=u64::MAX).zip(forward.mutations) {
            match self.forwarded.known(origin, sequence) {
                Known::New => {}
                Known::Taken if breaks(Rule::TakeOnce) => {}
                Known::Taken => continue,
                Known::Refused => {
                    refused.push(sequence);
                    continue;
                }
            }
            if !self.forwarded.has_room(mutation.len()) {
                break; // its node gives it again
            }
            // Not taken, so that it is looked at again when its node gives it again: by then what that node has applied
            // may have been applied here too, the level among it.
            let mutation = match Admitted::forwarded(mutation, level) {
                Ok(mutation) => mutation,
                Err(refusal) => {
                    tracing::debug!("a forwarded request is not taken at feature level {level}: {refusal}");
                    continue;
                }
            };
            if !mutation.is_for_the_leader() {
                self.forwarded.take(from, origin, sequence, mutation);
            }
        }
        if !refused.is_empty() {
            let epoch = self.node.epoch();
            self.queue(from, item(epoch, Body::NoRoom(NoRoom { origin, sequences: refused })));
        }
    }

    /// The leader will not order these in this leadership, and no earlier leader's log holds them (see `Requests`). They
    /// are removed here, so that no later leader gets them: nothing of them was done, and nothing will be.
    pub(super) fn refused_by_leader(&mut self, from: &NodeId, no_room: NoRoom) {
        let leads = self.node.view().is_some_and(|view| view.leader == *from);
        if !leads || no_room.origin != self.requests.origin() {
            return;
        }
        for sequence in no_room.sequences {
            if let Some(answer) = self.requests.applied(sequence) {
                // A client that has gone away does not wait for its answer.
                let _ = answer.send(Ok(Err(Refusal::SpaceExceeded)));
            }
        }
    }

    /// Says what was done: whoever hears yes and looks at this node sees it. Not while we lead and a newer view exists
    /// (R13): then it is said under that view, once its opening shows that it holds it.
    pub(super) fn release(&mut self) {
        if self.held_back.is_empty() {
            return;
        }
        let ours = if self.node.is_serving() {
            // Nor where the register holds another view in place of ours: another leader may have come of it (R11).
            self.swap_open
                || match self.shared.register.has_newer(self.node.epoch()) {
                    Ok(newer) => !newer,
                    Err(error) => !error.is_of_another(),
                }
        } else {
            self.leadership_is_open()
        };
        if ours {
            let too_few = self.too_few_in_sync();
            for (answer, outcome) in self.held_back.drain(..) {
                let outcome = match (too_few, outcome) {
                    (Some((have, need)), Ok(Ok(_))) => Err(Unavailable::HeldByTooFew { have, need }),
                    // A refusal has changed nothing that could be lost.
                    (Some(_) | None, outcome) => outcome,
                };
                // A client that has gone away does not wait for its answer, which may be large.
                if let Err(outcome) = answer.send(outcome) {
                    self.hands.discard(Box::new(outcome));
                }
            }
        }
    }

    // --- reads ---

    pub(super) fn answer_read_index(&mut self, from: &NodeId, question: u64) {
        if !self.node.is_serving() {
            return;
        }
        let unproved = breaks(Rule::AnswerOnlyAsLeader);
        let commit = self.node.log().commit();
        // The proof is taken after the value (R17). While a change of ours is on its way the follower asks again.
        if unproved || self.shared.prove(self.node.epoch()) {
            let epoch = self.node.epoch();
            let answer = ReadIndexAnswer { question, commit: commit.0 };
            self.queue(from, item(epoch, Body::ReadIndexAnswer(answer)));
        }
    }

    pub(super) fn ask_leader(&mut self) {
        match self.node.role() {
            Role::Leader(_) if self.node.is_serving() && self.leadership_is_open() => self.reads.lead_here(),
            Role::Follower(_) => {
                let Some(leader) = self.node.view().map(|view| view.leader.clone()) else { return };
                if leader == self.shared.address || !self.leadership_is_open() {
                    return;
                }
                if let Some(question) = self.reads.next_question(self.now, self.options.heartbeat) {
                    let epoch = self.node.epoch();
                    self.queue(&leader, item(epoch, Body::ReadIndex(ReadIndex { question })));
                }
            }
            Role::Leader(_) | Role::Candidate(_) => {}
        }
    }
}
