//! Requests that followers forward, at the leader: each is taken once (R19), what waits to be ordered is bounded in bytes,
//! and what will not be ordered for want of room is answered (R25).

use std::collections::{BTreeMap, VecDeque};

use crate::node::admission::Admitted;
use crate::view::NodeId;

/// Sequences of one origin remembered; far more than can wait for an answer within the longest deadline.
const TAKEN_MAX: usize = 1 << 18;
/// Bytes of forwarded requests that wait to be ordered. What comes beyond it is not taken: its node gives it again.
const WAITING_BYTES_MAX: usize = 32 << 20;

/// A request as it is ordered: origin, sequence, what is asked.
pub(super) type Request = (u64, u64, Admitted);

/// What a leader knows of one forwarded request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// It was never taken in this leadership.
    New,
    /// It was ordered, or waits to be.
    Taken,
    /// Refused in this leadership; `NoRoom` was sent.
    Refused,
}

/// What was done with a request that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Taken,
    Refused,
}

/// One forwarding process.
struct Origin {
    node: NodeId,
    /// Everything up to here counts as taken.
    floor: u64,
    /// Above that, in whatever order a lossy link brings them.
    seen: BTreeMap<u64, Fate>,
}

/// Requests that will not be ordered, for the node that has forwarded them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) node: NodeId,
    pub(super) origin: u64,
    pub(super) sequences: Vec<u64>,
}

/// See the head of the module. Belongs to one leadership.
#[derive(Default)]
pub(super) struct Forwarded {
    origins: BTreeMap<u64, Origin>,
    waiting: VecDeque<Request>,
    bytes: usize,
}

impl Forwarded {
    /// Nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// What became of a request.
    pub(super) fn known(&self, origin: u64, sequence: u64) -> Known {
        let Some(origin) = self.origins.get(&origin) else { return Known::New };
        match origin.seen.get(&sequence) {
            Some(Fate::Refused) => Known::Refused,
            Some(Fate::Taken) => Known::Taken,
            None if sequence <= origin.floor => Known::Taken,
            None => Known::New,
        }
    }

    /// True where a request of so many bytes may wait too.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.waiting.is_empty() || self.bytes + bytes <= WAITING_BYTES_MAX
    }

    /// Takes a request that is [`Known::New`].
    pub(super) fn take(&mut self, node: &NodeId, origin: u64, sequence: u64, mutation: Admitted) {
        let known = self.origins.entry(origin).or_insert_with(|| Origin {
            node: node.clone(),
            floor: 0,
            seen: BTreeMap::new(),
        });
        known.seen.insert(sequence, Fate::Taken);
        while known.seen.len() > TAKEN_MAX
            && let Some((lowest, _)) = known.seen.pop_first()
        {
            known.floor = known.floor.max(lowest);
        }
        self.bytes += mutation.length();
        // A slice would keep the whole frame that it came in.
        self.waiting.push_back((origin, sequence, mutation.detached()));
    }

    /// The next ones in their order, up to the bounds, but at least one.
    pub(super) fn next_batch(&mut self, count_max: usize, bytes_max: usize) -> Vec<Request> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while let Some((_, _, mutation)) = self.waiting.front() {
            bytes += mutation.length();
            if !batch.is_empty() && (batch.len() >= count_max || bytes > bytes_max) {
                break;
            }
            batch.extend(self.waiting.pop_front());
        }
        self.bytes -= batch.iter().map(|(_, _, mutation)| mutation.length()).sum::<usize>();
        batch
    }

    /// Removes the waiting requests for which `which` is true, and forgets them: given again, they are taken again.
    pub(super) fn leave(&mut self, which: impl Fn(&Admitted) -> bool) {
        for (origin, sequence, _) in self.part(which) {
            if let Some(origin) = self.origins.get_mut(&origin) {
                origin.seen.remove(&sequence);
            }
        }
    }

    /// Removes the waiting requests for which `which` is true, for good: given again, they are refused again in this
    /// leadership. Answers with what to say to the nodes that forwarded them.
    pub(super) fn refuse(&mut self, which: impl Fn(&Admitted) -> bool) -> Vec<Refused> {
        let mut refused = BTreeMap::<u64, Vec<u64>>::new();
        for (origin, sequence, _) in self.part(which) {
            refused.entry(origin).or_default().push(sequence);
        }
        let mut answers = Vec::new();
        for (number, sequences) in refused {
            let origin = self.origins.get_mut(&number).expect("what waits was taken");
            let floor = origin.floor;
            // Up to the floor everything counts as taken anyway.
            origin.seen.extend(sequences.iter().filter(|one| **one > floor).map(|one| (*one, Fate::Refused)));
            answers.push(Refused { node: origin.node.clone(), origin: number, sequences });
        }
        answers
    }

    fn part(&mut self, which: impl Fn(&Admitted) -> bool) -> Vec<Request> {
        let (parted, rest) =
            std::mem::take(&mut self.waiting).into_iter().partition(|(_, _, mutation)| which(mutation));
        self.waiting = rest;
        self.bytes = self.waiting.iter().map(|(_, _, mutation)| mutation.length()).sum();
        VecDeque::into(parted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeId {
        NodeId::parse("b:1").unwrap()
    }

    fn request(text: &'static str) -> Admitted {
        Admitted::unchecked(text)
    }

    fn sequences(batch: &[Request]) -> Vec<u64> {
        batch.iter().map(|(_, sequence, _)| *sequence).collect()
    }

    #[test]
    fn a_request_is_taken_once_in_whatever_order_it_comes() {
        let mut forwarded = Forwarded::default();
        let mut take = |sequence| {
            let known = forwarded.known(7, sequence);
            if known == Known::New {
                forwarded.take(&node(), 7, sequence, request("a"));
            }
            known
        };
        assert_eq!([take(11), take(12)], [Known::New; 2], "the first frame was lost");
        assert_eq!([take(1), take(2)], [Known::New; 2], "and comes again after the second");
        assert_eq!([take(1), take(12)], [Known::Taken; 2], "but nothing twice");
        assert_eq!(sequences(&forwarded.next_batch(9, 9)), [11, 12, 1, 2]);
    }

    #[test]
    fn a_batch_keeps_to_its_bounds_but_always_moves() {
        let mut forwarded = Forwarded::default();
        for sequence in 1..=5 {
            forwarded.take(&node(), 7, sequence, request("0123456789"));
        }
        assert_eq!(sequences(&forwarded.next_batch(9, 25)), [1, 2]);
        assert_eq!(sequences(&forwarded.next_batch(1, 25)), [3]);
        assert_eq!(sequences(&forwarded.next_batch(9, 1)), [4], "one beyond the bound still goes");
        assert_eq!(forwarded.bytes, 10);
    }

    #[test]
    fn what_waits_is_bounded_in_bytes() {
        let mut forwarded = Forwarded::default();
        assert!(forwarded.has_room(WAITING_BYTES_MAX + 1), "alone it may be of any size");
        forwarded.take(&node(), 7, 1, request("0123456789"));
        assert!(forwarded.has_room(WAITING_BYTES_MAX - 10));
        assert!(!forwarded.has_room(WAITING_BYTES_MAX - 9));
        let _ = forwarded.next_batch(9, 99);
        assert!(forwarded.has_room(WAITING_BYTES_MAX));
    }

    #[test]
    fn what_is_refused_is_never_taken_again_and_what_is_left_to_others_is() {
        let mut forwarded = Forwarded::default();
        for (sequence, text) in [(1, "grows"), (2, "shrinks"), (3, "grows")] {
            forwarded.take(&node(), 7, sequence, request(text));
        }
        let grows = |mutation: &Admitted| *mutation == request("grows");
        assert_eq!(forwarded.refuse(grows), [Refused { node: node(), origin: 7, sequences: vec![1, 3] }]);
        assert_eq!(forwarded.known(7, 1), Known::Refused);
        assert_eq!(forwarded.known(7, 2), Known::Taken);
        forwarded.take(&node(), 7, 4, request("grows"));
        forwarded.leave(grows);
        assert_eq!(forwarded.known(7, 4), Known::New);
        assert_eq!(sequences(&forwarded.next_batch(9, 99)), [2]);
        assert!(forwarded.is_empty() && forwarded.bytes == 0);
    }
}
