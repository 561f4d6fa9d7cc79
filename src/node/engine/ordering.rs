//! The way of a request: taken from a client, given to whoever leads, ordered, applied, answered. And reads (R17).

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Engine;
use crate::kv::{self, Backend as _};
use crate::node::event::Outcome;
use crate::node::handle::{StateStore, Unavailable};
use crate::node::hands::Hands;
use crate::node::link::{ENTRIES_BYTES, item};
use crate::node::log::{Position, decode};
use crate::node::snapshot::{APPLIED, encode_position};
use crate::proto::replcluster::{Forward, ReadIndex, ReadIndexAnswer, frame::Body};
use crate::protocol::{Input, Role};
use crate::rules::{Rule, breaks};
use crate::view::{Index, NodeId};

/// Entries applied in one turn, so that a long replay does not stop the heartbeats.
const TURN_APPLY: u64 = 16_384;
/// Entries and bytes ordered in one batch.
const BATCH_COUNT: usize = 4096;
const BATCH_BYTES: usize = 4 << 20;
/// How long the test switch keeps entries from followers.
const KEPT_BACK: Duration = Duration::from_millis(100);
/// Entries in memory, in bytes, beyond which nothing more is ordered.
const UNCOMMITTED_BYTES: usize = 256 << 20;
/// Sequences of one origin remembered; far more than can wait for an answer within the longest deadline.
const TAKEN_MAX: usize = 1 << 18;

/// Which requests of one origin a leader has taken: each once, in whatever order a lossy link brings them.
#[derive(Default)]
pub(super) struct Taken {
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

impl<H: Hands> Engine<H> {
    // --- requests ---

    pub(super) fn mutate(&mut self, mutation: Bytes, deadline: Instant, answer: oneshot::Sender<Outcome>) {
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
            if self.options.acknowledge_early {
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

    pub(super) fn take_forwarded(&mut self, forward: Forward) {
        if !matches!(self.node.role(), Role::Leader(_)) {
            return;
        }
        let taken = self.taken.entry(forward.origin).or_default();
        for (sequence, mutation) in (forward.first_sequence..).zip(forward.mutations) {
            if taken.take(sequence) || breaks(Rule::TakeOnce) {
                self.forwarded.push((forward.origin, sequence, mutation));
            }
        }
    }

    // --- applying ---

    pub(super) fn apply(&mut self) {
        if self.applied.index >= self.commit {
            return;
        }
        let shared = self.shared.clone();
        let mut store = shared.store.write().unwrap_or_else(PoisonError::into_inner);
        let stop = Index(self.commit.0.min(self.applied.index.0 + TURN_APPLY));
        let mut answers = Vec::new();
        let mut failed = None;
        while self.applied.index < stop && failed.is_none() {
            let chunk = match self.recent.read(self.applied.index.next(), ENTRIES_BYTES) {
                Ok(Some(chunk)) => chunk,
                Ok(None) => {
                    failed = Some("the log ends before its commit index".to_owned());
                    break;
                }
                Err(error) => {
                    failed = Some(format!("cannot read the log: {error}"));
                    break;
                }
            };
            let mut frames = chunk.frames;
            while self.applied.index < stop {
                let Ok(Some((record, chain))) = decode(&mut frames) else { break };
                let own = record.origin == self.requests.origin();
                let outcome = apply_to(&mut store, &record.payload, own);
                self.applied = Position { index: record.index, epoch: record.epoch, chain };
                if let Some(outcome) = outcome
                    && own
                {
                    answers.push((record.sequence, Ok(outcome)));
                }
            }
        }
        store.backend_mut().put_meta(APPLIED, encode_position(self.applied));
        self.compacting = true;
        self.shared.revision.store(store.revision(), Ordering::Release);
        drop(store);
        self.shared.applied.store(self.applied.index.0, Ordering::Release);
        self.recent.applied(self.applied.index);
        for (sequence, outcome) in answers {
            let answer = self.requests.applied(sequence);
            self.held_back.extend(answer.map(|answer| (answer, outcome)));
        }
        self.release();
        self.reads.reached(self.applied.index);
        if let Some(why) = failed {
            self.fail(why);
        }
    }

    /// Says what was done: whoever hears yes and looks at this node sees it. Not while we lead and a newer view exists
    /// (R13): then it is said under that view, once its opening shows that it holds it.
    pub(super) fn release(&mut self) {
        if self.held_back.is_empty() {
            return;
        }
        let ours = if self.node.is_serving() {
            self.swap_open || !matches!(self.shared.register.has_newer(self.node.epoch()), Ok(true))
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
                // A client that has gone away does not wait for its answer.
                let _ = answer.send(outcome);
            }
        }
    }

    /// What a build with the test switch does wrong: it applies, and so acknowledges, entries that only it holds.
    fn apply_early(&mut self) {
        let commit = self.commit;
        self.commit = self.tail.index;
        self.apply();
        self.commit = self.commit.max(commit);
    }

    // --- reads ---

    pub(super) fn answer_read_index(&mut self, from: &NodeId, question: u64) {
        if !self.node.is_serving() {
            return;
        }
        let unproved = breaks(Rule::AnswerOnlyAsLeader);
        let commit = self.node.log().commit();
        // The proof is taken after the value (R17). While a change of ours is on its way the follower asks again.
        if unproved || matches!(self.shared.register.has_newer(self.node.epoch()), Ok(false)) {
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

/// `None` for an entry that opens an epoch: it has no payload. What cannot be decoded is refused, as on every node. An
/// answer is built only where its client waits.
fn apply_to(store: &mut StateStore, payload: &Bytes, own: bool) -> Option<Result<kv::Applied, kv::Refusal>> {
    if payload.is_empty() {
        return None;
    }
    let mutation = match kv::decode(payload, store.feature_level()) {
        Ok(mutation) => mutation,
        Err(refusal) => return Some(Err(refusal)),
    };
    if own && breaks(Rule::ApplyTheSame) {
        // Depends on what another node cannot know: who was asked.
        let _ = store.apply(&mutation);
    }
    Some(store.apply_for(&mutation, own))
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
