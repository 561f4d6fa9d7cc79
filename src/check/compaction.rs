//! Are old states there as long as they must be, and gone once they must be? A compaction changes no key and makes no
//! revision; what it does shows only in reads of old states.
//!
//! Known to be done is a compaction that was acknowledged, or one that refused somebody. What was called after that must
//! respect it, and so must whatever stands behind it by revision.

use super::facts::Facts;
use super::{Answer, Freshness, History, NAMED_OF_A_KIND, Operation, Outcome, Request, Side, Violation};

/// Something that proves that the states before `revision` are gone.
#[derive(Clone, Copy, Debug)]
struct Proof {
    index: usize,
    returned: u64,
    revision: i64,
}

pub(super) fn check(history: &History, facts: &Facts, violations: &mut Vec<Violation>) {
    let operations = || history.operations.iter().enumerate().filter(|(at, _)| !facts.malformed.contains(at));
    let before = violations.len();
    let mut proofs = Vec::new();
    // The call of each compaction that can have happened, with what it leaves.
    let mut asked: Vec<(u64, i64)> = Vec::new();
    for (index, operation) in operations() {
        match (&operation.request, &operation.outcome) {
            (Request::Compact { revision }, Outcome::Done { returned, .. }) => {
                proofs.push(Proof { index, returned: *returned, revision: *revision });
                asked.push((operation.called, *revision));
            }
            (Request::Compact { revision }, Outcome::Unknown) => asked.push((operation.called, *revision)),
            (Request::Compact { revision }, Outcome::Gone { returned }) => {
                proofs.push(Proof { index, returned: *returned, revision: *revision });
            }
            (Request::Read { freshness: Freshness::At(state), .. }, Outcome::Gone { returned }) => {
                let revision = state.saturating_add(1);
                proofs.push(Proof { index, returned: *returned, revision });
            }
            _ => {}
        }
    }
    proofs.sort_by_key(|proof| proof.returned);
    asked.sort_unstable();
    // For each proof the farthest of those that returned no later.
    let farthest = running(&proofs, |one, other| one.revision >= other.revision);
    let widest: Vec<i64> = asked
        .iter()
        .scan(i64::MIN, |widest, (_, revision)| {
            *widest = (*widest).max(*revision);
            Some(*widest)
        })
        .collect();
    for (index, operation) in operations() {
        if violations.len() - before >= NAMED_OF_A_KIND {
            return;
        }
        let Some((needs, is_gone)) = needs(operation) else { continue };
        let known = proofs.partition_point(|proof| proof.returned < operation.called).checked_sub(1);
        let known =
            known.map(|at| farthest[at]).filter(|proof| proof.revision > needs && proof.index != index);
        if let Some(known) = known.filter(|_| !is_gone) {
            let (gone, shown) = (Side::of(history, known.index), Side::of(history, index));
            violations.push(Violation::ShownAfterCompaction { gone, shown });
        }
        if let (true, Outcome::Gone { returned }) = (is_gone, &operation.outcome) {
            let in_time = asked.partition_point(|(called, _)| called <= returned).checked_sub(1);
            if in_time.is_none_or(|at| widest[at] <= needs) {
                violations.push(Violation::NeverCompacted { refused: Side::of(history, index) });
            }
        }
    }
    by_revision(history, facts, violations);
}

/// A read of an old state, or another compaction, must not stand by its revision behind a compaction beyond it.
fn by_revision(history: &History, facts: &Facts, violations: &mut Vec<Violation>) {
    let done = |(index, operation): (usize, &Operation)| match (&operation.request, operation.answer()) {
        (Request::Compact { revision }, Some((_, Answer::Compacted { revision: at }))) => {
            Some((*at, Proof { index, returned: 0, revision: *revision }))
        }
        _ => None,
    };
    let sound = || history.operations.iter().enumerate().filter(|(at, _)| !facts.malformed.contains(at));
    let mut done: Vec<(i64, Proof)> = sound().filter_map(done).collect();
    done.sort_by_key(|(at, _)| *at);
    let proofs: Vec<Proof> = done.iter().map(|(_, proof)| *proof).collect();
    let farthest = running(&proofs, |one, other| one.revision >= other.revision);
    let before = violations.len();
    for (index, operation) in sound() {
        if violations.len() - before >= NAMED_OF_A_KIND {
            return;
        }
        let (Some((needs, false)), Some((_, answer))) = (needs(operation), operation.answer()) else {
            continue;
        };
        let at = done.partition_point(|(at, _)| *at < answer.revision()).checked_sub(1);
        if let Some(known) = at.map(|at| farthest[at]).filter(|known| known.revision > needs) {
            let (gone, shown) = (Side::of(history, known.index), Side::of(history, index));
            violations.push(Violation::ShownAfterCompaction { gone, shown });
        }
    }
}

/// The oldest state that must be there for it to be answered, and whether it was told that it is gone. A compaction
/// must go beyond every one before it.
fn needs(operation: &Operation) -> Option<(i64, bool)> {
    let is_gone = match operation.outcome {
        Outcome::Done { .. } => false,
        Outcome::Gone { .. } => true,
        Outcome::Refused | Outcome::Unknown => return None,
    };
    match operation.request {
        Request::Read { freshness: Freshness::At(state), .. } => Some((state, is_gone)),
        Request::Compact { revision } => Some((revision - 1, is_gone)),
        _ => None,
    }
}

/// For each the best so far.
fn running(proofs: &[Proof], is_better: impl Fn(&Proof, &Proof) -> bool) -> Vec<Proof> {
    let mut best: Option<Proof> = None;
    let step = |proof: &Proof| {
        let better = best.filter(|best| is_better(best, proof)).unwrap_or(*proof);
        best = Some(better);
        better
    };
    proofs.iter().map(step).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Key, check as judge};
    use super::*;

    struct Story(Vec<Operation>);

    impl Story {
        fn add(mut self, called: u64, request: Request, outcome: Outcome) -> Story {
            let client = u32::try_from(self.0.len()).unwrap();
            self.0.push(Operation { client, node: 0, session: 0, called, request, outcome });
            self
        }

        fn compact(self, times: (u64, u64), revision: i64, newest: i64) -> Story {
            let answer = Answer::Compacted { revision: newest };
            self.add(times.0, Request::Compact { revision }, Outcome::Done { returned: times.1, answer })
        }

        fn read(self, times: (u64, u64), state: i64, newest: i64) -> Story {
            let answer = Answer::Read { revision: newest, found: Vec::new() };
            self.add(times.0, at(state), Outcome::Done { returned: times.1, answer })
        }

        fn violations(self) -> Vec<Violation> {
            // So many revisions of another key that there is something to compact.
            let puts = (2..=9).map(|revision: i64| Operation {
                client: 99,
                node: 0,
                session: 0,
                called: 0,
                request: Request::Put { key: Key(7), value: super::super::Token(revision.unsigned_abs()) },
                outcome: Outcome::Done { returned: 1, answer: Answer::Written { revision } },
            });
            let operations = self.0.into_iter().chain(puts).collect();
            judge(&History { first_revision: 1, operations }).violations
        }

        fn passes(self) {
            assert_eq!(self.violations(), []);
        }
    }

    fn at(state: i64) -> Request {
        Request::get(Key(0), Freshness::At(state))
    }

    #[test]
    fn what_is_compacted_is_refused_and_what_is_not_is_shown() {
        Story(Vec::new())
            .read((2, 3), 4, 9)
            .compact((4, 5), 5, 9)
            .read((6, 7), 5, 9)
            .add(6, at(4), Outcome::Gone { returned: 7 })
            .add(8, Request::Compact { revision: 5 }, Outcome::Gone { returned: 9 })
            .compact((10, 11), 8, 9)
            .passes();
    }

    #[test]
    fn a_state_shown_after_its_compaction_is_found() {
        let acknowledged = Story(Vec::new()).compact((2, 3), 5, 9).read((4, 5), 4, 9).violations();
        assert!(matches!(acknowledged[..], [Violation::ShownAfterCompaction { .. }]), "{acknowledged:?}");
        let refused = Story(Vec::new()).add(2, Request::Compact { revision: 5 }, Outcome::Unknown).add(
            2,
            at(3),
            Outcome::Gone { returned: 3 },
        );
        let refused = refused.read((4, 5), 3, 9).violations();
        assert!(matches!(refused[..], [Violation::ShownAfterCompaction { .. }]), "{refused:?}");
        let again = Story(Vec::new()).compact((2, 3), 5, 9).compact((4, 5), 5, 9).violations();
        assert!(matches!(again[..], [Violation::ShownAfterCompaction { .. }]), "{again:?}");
        // At the same time, but behind it by revision.
        let behind = Story(Vec::new()).compact((0, 9), 5, 8).read((0, 9), 4, 9).violations();
        assert!(matches!(behind[..], [Violation::ShownAfterCompaction { .. }]), "{behind:?}");
        Story(Vec::new()).compact((2, 9), 5, 9).read((3, 8), 4, 9).passes();
    }

    #[test]
    fn a_state_refused_without_a_compaction_is_found() {
        let story = |compaction: Option<(u64, i64)>| {
            let story = Story(Vec::new()).add(2, at(4), Outcome::Gone { returned: 3 });
            match compaction {
                Some((called, revision)) => {
                    story.add(called, Request::Compact { revision }, Outcome::Unknown)
                }
                None => story,
            }
        };
        story(Some((2, 5))).passes();
        for refused in [story(None), story(Some((2, 4))), story(Some((4, 5)))] {
            let violations = refused.violations();
            assert!(matches!(violations[..], [Violation::NeverCompacted { .. }]), "{violations:?}");
        }
    }
}
