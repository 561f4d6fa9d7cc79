//! The requests of this node's own clients, from arrival to answer (R19).
//!
//! Each gets a sequence number under the random number of this process, its *origin*, and both travel into the log.
//! Whoever leads orders the request; this node answers it when it applies the entry with that origin and sequence.
//! So it does not matter who led when the entry was ordered, and a request is answered once:
//!
//! * Within one leadership the leader takes each sequence number of an origin once, so that sending again what may have
//!   been lost is harmless.
//! * A new leadership opens with an entry of its own. Whatever this node has not applied before that entry can never
//!   be committed by an older leader; only then is it sent again.

use std::collections::BTreeMap;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::admission::Admitted;
use super::event::Outcome;
use super::handle::Unavailable;
use crate::kv;

/// One request that waits for its entry.
struct Pending {
    mutation: Admitted,
    deadline: Instant,
    answer: oneshot::Sender<Outcome>,
    /// It was given to some leader: it may be in some log.
    submitted: bool,
}

/// All requests of this node's clients that wait for their entries.
pub struct Requests {
    origin: u64,
    next: u64,
    /// Everything from here on has not been given to the present leader.
    cursor: u64,
    /// Everything from here on was never given to any leader.
    given: u64,
    pending: BTreeMap<u64, Pending>,
}

/// Consecutive-by-order requests for a leader.
pub struct Submission {
    /// Sequence number and request, by sequence number.
    pub mutations: Vec<(u64, Admitted)>,
    /// From this sequence on nothing was given to any leader before.
    pub given_before: u64,
}

impl Requests {
    /// Nothing waits.
    #[must_use]
    pub fn new(origin: u64) -> Requests {
        Requests { origin, next: 1, cursor: 1, given: 1, pending: BTreeMap::new() }
    }

    /// The random number of this process.
    #[must_use]
    pub fn origin(&self) -> u64 {
        self.origin
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// A client's request arrives.
    pub fn arrive(&mut self, mutation: Admitted, deadline: Instant, answer: oneshot::Sender<Outcome>) {
        self.pending.insert(self.next, Pending { mutation, deadline, answer, submitted: false });
        self.next += 1;
    }

    /// True where a client waits for this one: only then is its answer of use.
    #[must_use]
    pub fn is_waiting(&self, sequence: u64) -> bool {
        self.pending.get(&sequence).is_some_and(|pending| !pending.answer.is_closed())
    }

    /// True where something has not been given to the present leader.
    #[must_use]
    pub fn has_unsubmitted(&self) -> bool {
        self.pending.last_key_value().is_some_and(|(sequence, _)| *sequence >= self.cursor)
    }

    /// What the present leader has not been given, up to the bounds; it counts as given from now on.
    pub fn submit(&mut self, count_max: usize, bytes_max: usize) -> Submission {
        let mut mutations = Vec::new();
        let mut bytes = 0;
        for (sequence, pending) in self.pending.range_mut(self.cursor..) {
            if !mutations.is_empty()
                && (mutations.len() >= count_max || bytes + pending.mutation.length() > bytes_max)
            {
                break;
            }
            bytes += pending.mutation.length();
            pending.submitted = true;
            mutations.push((*sequence, pending.mutation.clone()));
        }
        let given_before = self.given;
        if let Some((sequence, _)) = mutations.last() {
            self.cursor = sequence + 1;
            self.given = self.given.max(self.cursor);
        }
        Submission { mutations, given_before }
    }

    /// What was given to the leader may be lost, or the leader is another one: give everything again.
    pub fn submit_again(&mut self) {
        self.cursor = 0;
    }

    /// An entry of this process was applied: it is never given to a leader again. Answers with where its client waits.
    pub fn applied(&mut self, sequence: u64) -> Option<oneshot::Sender<Outcome>> {
        self.pending.remove(&sequence).map(|pending| pending.answer)
    }

    /// Requests that were given to a leader may be part of a state that we got whole: their fate is not known here.
    pub fn fail_submitted(&mut self) {
        self.fail(|pending| pending.submitted, &Unavailable::TimedOut);
    }

    /// What no leader can hold yet: nothing of it was done, and nothing will be.
    pub fn fail_unsubmitted(&mut self, why: &Unavailable) {
        self.fail(|pending| !pending.submitted, why);
    }

    /// What [`Requests::submit`] has answered with did not reach the leader's queue, from this sequence on. `given_before`
    /// is what the submission says.
    pub fn take_back(&mut self, sequence: u64, given_before: u64) {
        self.cursor = self.cursor.min(sequence);
        self.given = self.given.min(sequence.max(given_before));
        for (_, pending) in self.pending.range_mut(sequence.max(given_before)..) {
            pending.submitted = false;
        }
    }

    /// Drops what fits without an answer.
    pub fn forget(&mut self, which: impl Fn(&Admitted) -> bool) {
        self.pending.retain(|_, pending| !which(&pending.mutation));
    }

    /// Refuses what fits and was not given to the present leader. Nothing of it was done: what an earlier leader was given,
    /// and is not applied by now, never is (see the head of the module).
    pub fn refuse_ungiven(&mut self, which: impl Fn(&Admitted) -> bool, why: &kv::Refusal) {
        let refused: Vec<u64> = self
            .pending
            .range(self.cursor..)
            .filter(|(_, pending)| which(&pending.mutation))
            .map(|(sequence, _)| *sequence)
            .collect();
        for sequence in refused {
            if let Some(answer) = self.applied(sequence) {
                // A client that has gone away does not wait for its answer.
                let _ = answer.send(Ok(Err(why.clone())));
            }
        }
    }

    /// Answers everyone whose time is up.
    pub fn expire(&mut self, now: Instant) {
        self.fail(|pending| pending.deadline <= now || pending.answer.is_closed(), &Unavailable::TimedOut);
    }

    /// Answers everyone: the node stops.
    pub fn fail_all(&mut self) {
        self.fail(|_| true, &Unavailable::Stopping);
    }

    fn fail(&mut self, which: impl Fn(&Pending) -> bool, why: &Unavailable) {
        let failed: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, pending)| which(pending))
            .map(|(sequence, _)| *sequence)
            .collect();
        for sequence in failed {
            if let Some(answer) = self.applied(sequence) {
                // A client that has gone away does not wait for its answer.
                let _ = answer.send(Err(why.clone()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrive(requests: &mut Requests, text: &'static str) -> oneshot::Receiver<Outcome> {
        let (answer, receiver) = oneshot::channel();
        requests.arrive(Admitted::unchecked(text), Instant::now(), answer);
        receiver
    }

    fn sequences(submission: &Submission) -> Vec<u64> {
        submission.mutations.iter().map(|(sequence, _)| *sequence).collect()
    }

    #[test]
    fn each_request_is_given_to_a_leader_once_until_the_leader_changes() {
        let mut requests = Requests::new(7);
        let _first = arrive(&mut requests, "a");
        let _second = arrive(&mut requests, "b");
        assert_eq!(sequences(&requests.submit(10, 100)), [1, 2]);
        assert!(!requests.has_unsubmitted());
        assert!(requests.applied(1).is_some());
        let _third = arrive(&mut requests, "c");
        requests.submit_again();
        assert_eq!(sequences(&requests.submit(10, 100)), [2, 3], "what was applied is never given again");
    }

    #[test]
    fn a_submission_keeps_to_its_bounds_but_always_moves() {
        let mut requests = Requests::new(7);
        let _kept: Vec<_> = (0..4).map(|_| arrive(&mut requests, "0123456789")).collect();
        assert_eq!(sequences(&requests.submit(10, 25)), [1, 2]);
        assert_eq!(sequences(&requests.submit(1, 25)), [3]);
        assert_eq!(sequences(&requests.submit(10, 1)), [4], "one request beyond the bound still goes");
    }

    #[test]
    fn only_what_some_leader_may_hold_is_failed_when_its_fate_is_lost() {
        let mut requests = Requests::new(7);
        let mut given = arrive(&mut requests, "a");
        let _ = requests.submit(1, 100);
        let mut waiting = arrive(&mut requests, "b");
        requests.fail_submitted();
        assert!(matches!(given.try_recv(), Ok(Err(Unavailable::TimedOut))));
        assert!(waiting.try_recv().is_err());
    }

    #[test]
    fn what_found_no_room_on_the_way_counts_as_not_given() {
        let mut requests = Requests::new(7);
        let mut waiting: Vec<_> = (0..4).map(|_| arrive(&mut requests, "0123456789")).collect();
        let first = requests.submit(1, 100);
        requests.take_back(1, first.given_before);
        let second = requests.submit(3, 100);
        assert_eq!(sequences(&second), [1, 2, 3]);
        requests.take_back(3, second.given_before);
        requests.fail_unsubmitted(&Unavailable::NoRoomHere);
        let failed: Vec<bool> = waiting.iter_mut().map(|answer| answer.try_recv().is_ok()).collect();
        assert_eq!(failed, [false, false, true, true]);
    }

    #[test]
    fn only_what_no_leader_can_hold_is_sent_elsewhere() {
        let mut requests = Requests::new(7);
        let mut given = arrive(&mut requests, "a");
        let _ = requests.submit(1, 100);
        let mut waiting = arrive(&mut requests, "b");
        requests.submit_again();
        requests.fail_unsubmitted(&Unavailable::NoRoomHere);
        assert!(given.try_recv().is_err(), "it was given to a leader once: its fate is not known");
        assert!(matches!(waiting.try_recv(), Ok(Err(Unavailable::NoRoomHere))));
    }
}
