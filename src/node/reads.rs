//! Linearizable reads on a follower: one question to the leader serves every read that waited when it was asked, and
//! each is answered when this node has applied what the leader had committed (R17; the read index of Raft's thesis,
//! §6.4). An answer is never used for a read that came after the question.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::event::Confirmed;
use super::handle::Unavailable;
use crate::rules::{Rule, breaks};
use crate::view::Index;

struct Waiting {
    deadline: Instant,
    answer: oneshot::Sender<Result<Confirmed, Unavailable>>,
}

struct Question {
    number: u64,
    asked_at: Instant,
    readers: Vec<Waiting>,
}

/// All reads that wait.
pub struct Reads {
    arrived: Vec<Waiting>,
    open: Option<Question>,
    /// Answered by the leader, and waiting for this index to be applied.
    applying: BTreeMap<Index, Vec<Waiting>>,
    last_number: u64,
    /// What the leader last had committed when it was asked: of no use for any other read.
    last_answer: Option<Index>,
}

impl Reads {
    /// Nothing waits. Questions are numbered from a random number on, so that no answer to an earlier process fits.
    #[must_use]
    pub fn numbered_from(number: u64) -> Reads {
        Reads {
            arrived: Vec::new(),
            open: None,
            applying: BTreeMap::new(),
            last_number: number,
            last_answer: None,
        }
    }

    /// A client wants to read.
    pub fn arrive(&mut self, deadline: Instant, answer: oneshot::Sender<Result<Confirmed, Unavailable>>) {
        if breaks(Rule::AskLeader) {
            let _ = answer.send(Ok(Confirmed::Ready));
            return;
        }
        if let Some(commit) = self.last_answer
            && breaks(Rule::AskAnew)
        {
            self.applying.entry(commit).or_default().push(Waiting { deadline, answer });
            return;
        }
        self.arrived.push(Waiting { deadline, answer });
    }

    /// The number of a question to ask now, if one is due: readers wait and none is open, or the open one has had no
    /// answer for two heartbeats.
    pub fn next_question(&mut self, now: Instant, heartbeat: Duration) -> Option<u64> {
        if let Some(open) = &self.open
            && now.duration_since(open.asked_at) >= 2 * heartbeat
        {
            self.ask_again();
        }
        if self.open.is_some() || self.arrived.is_empty() {
            return None;
        }
        self.last_number += 1;
        let readers = std::mem::take(&mut self.arrived);
        self.open = Some(Question { number: self.last_number, asked_at: now, readers });
        Some(self.last_number)
    }

    /// The open question may be lost, or the leader is another one.
    pub fn ask_again(&mut self) {
        if let Some(open) = self.open.take() {
            self.arrived.extend(open.readers);
        }
    }

    /// The leader had committed this when it was asked.
    pub fn answered(&mut self, number: u64, commit: Index) {
        if let Some(open) = self.open.take_if(|open| open.number == number) {
            self.last_answer = Some(commit);
            self.applying.entry(commit).or_default().extend(open.readers);
        }
    }

    /// Everything up to here is applied.
    pub fn reached(&mut self, applied: Index) {
        while let Some(entry) = self.applying.first_entry()
            && *entry.key() <= applied
        {
            for waiting in entry.remove() {
                let _ = waiting.answer.send(Ok(Confirmed::Ready));
            }
        }
    }

    /// This node leads: whoever has not been answered reads with this node's own proof.
    pub fn lead_here(&mut self) {
        self.ask_again();
        for waiting in self.arrived.drain(..) {
            let _ = waiting.answer.send(Ok(Confirmed::LeadsHere));
        }
    }

    /// Answers those whose time is up.
    pub fn expire(&mut self, now: Instant, leader_is_heard: bool) {
        let why = if leader_is_heard { Unavailable::TimedOut } else { Unavailable::NoLeader };
        self.fail(|waiting| waiting.deadline <= now || waiting.answer.is_closed(), &why);
    }

    /// Answers everyone: nobody can read here any more.
    pub fn fail_all(&mut self, why: &Unavailable) {
        self.fail(|_| true, why);
    }

    fn fail(&mut self, which: impl Fn(&Waiting) -> bool, why: &Unavailable) {
        let sweep = |readers: &mut Vec<Waiting>| {
            for waiting in readers.extract_if(.., |waiting| which(waiting)) {
                let _ = waiting.answer.send(Err(why.clone()));
            }
        };
        sweep(&mut self.arrived);
        if let Some(open) = &mut self.open {
            sweep(&mut open.readers);
        }
        self.applying.values_mut().for_each(sweep);
        self.applying.retain(|_, readers| !readers.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEAT: Duration = Duration::from_millis(50);

    fn arrive(reads: &mut Reads) -> oneshot::Receiver<Result<Confirmed, Unavailable>> {
        let (answer, receiver) = oneshot::channel();
        reads.arrive(Instant::now() + Duration::from_secs(5), answer);
        receiver
    }

    #[test]
    fn one_question_serves_all_that_waited_and_none_that_came_later() {
        let mut reads = Reads::numbered_from(7);
        let (mut first, mut second) = (arrive(&mut reads), arrive(&mut reads));
        let question = reads.next_question(Instant::now(), BEAT).unwrap();
        let mut late = arrive(&mut reads);
        assert_eq!(reads.next_question(Instant::now(), BEAT), None, "one question at a time");
        reads.answered(question, Index(5));
        reads.reached(Index(4));
        assert!(first.try_recv().is_err(), "not before the index is applied");
        reads.reached(Index(5));
        assert_eq!(first.try_recv().unwrap(), Ok(Confirmed::Ready));
        assert_eq!(second.try_recv().unwrap(), Ok(Confirmed::Ready));
        assert!(late.try_recv().is_err(), "a proof is never reused");
        assert!(reads.next_question(Instant::now(), BEAT).is_some());
    }

    #[test]
    fn an_answer_to_a_question_that_was_given_up_counts_for_nothing() {
        let mut reads = Reads::numbered_from(7);
        let mut reader = arrive(&mut reads);
        let old = reads.next_question(Instant::now(), BEAT).unwrap();
        reads.ask_again();
        let new = reads.next_question(Instant::now(), BEAT).unwrap();
        reads.answered(old, Index(0));
        reads.reached(Index(9));
        assert!(reader.try_recv().is_err());
        reads.answered(new, Index(3));
        reads.reached(Index(9));
        assert_eq!(reader.try_recv().unwrap(), Ok(Confirmed::Ready));
    }

    #[test]
    fn where_nobody_can_read_everyone_is_told_whatever_they_wait_for() {
        let mut reads = Reads::numbered_from(7);
        let mut applying = arrive(&mut reads);
        let question = reads.next_question(Instant::now(), BEAT).unwrap();
        reads.answered(question, Index(5));
        let mut asked = arrive(&mut reads);
        reads.next_question(Instant::now(), BEAT).unwrap();
        let mut waiting = arrive(&mut reads);
        reads.fail_all(&Unavailable::NoRoomHere);
        for reader in [&mut applying, &mut asked, &mut waiting] {
            assert_eq!(reader.try_recv().unwrap(), Err(Unavailable::NoRoomHere));
        }
    }
}
