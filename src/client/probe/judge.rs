//! Says what a history of writes and a read-back of the store prove. Pure: times and answers come as values.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::history::{Fault, Found, History, Outcome, ReadBack, Replica, WriteId};

/// At most this many violations are spelled out; the rest are counted.
const SPELLED_OUT: usize = 20;

/// What the load saw, and what was left of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evidence {
    /// Writes that a node acknowledged.
    pub acknowledged: u64,
    /// Acknowledged writes that were missing, or not as acknowledged, in the read-back; `None` where nothing was read.
    pub lost: Option<u64>,
    /// Writes whose fate their client was not told: they may be there or not, but not twice.
    pub indeterminate: u64,
    /// Writes that failed and surely were not carried out: refused, or never sent.
    pub errors: u64,
    /// Longest time without an acknowledgement that spans or follows the fault, in milliseconds; 0 without a fault.
    pub unavailable_ms: f64,
    /// A write that was sent after the fault's effect was seen was acknowledged. Otherwise the longest time without an
    /// acknowledgement was still going on when the load ended.
    pub resumed: bool,
    /// At every moment at which the fault can have struck a write was under way, so that it had something to destroy.
    pub in_flight_at_fault: bool,
    /// What must never be seen, in words.
    pub violations: Vec<String>,
    /// What all this amounts to.
    pub verdict: Verdict,
    /// Why the verdict is not `proved`.
    pub reason: Option<String>,
    /// What of the load's keys is still there, and why; no matter of the verdict.
    pub leftover: Option<String>,
}

/// What the evidence amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Everything acknowledged was read back, a write was in flight when the fault struck, and one that was sent after
    /// it was acknowledged.
    Proved,
    /// Something acknowledged is missing or wrong, or something was seen that must never be.
    Violated,
    /// Not enough was seen to say either.
    Inconclusive,
}

/// Judges a run.
#[must_use]
pub fn judge(history: &History, readback: &ReadBack) -> Evidence {
    let mut violations = Violations::default();
    let mut evidence = count(history);
    check_revisions(history, &mut violations);
    check_replicas(history, readback, &mut violations);
    evidence.lost =
        readback.replicas.first().map(|replica| check_contents(history, replica, &mut violations));
    evidence.violations = violations.into_texts();
    (evidence.verdict, evidence.reason) = decide(history, readback, &evidence);
    evidence
}

/// The numbers that need no read-back.
fn count(history: &History) -> Evidence {
    let seen_us = history.fault.and_then(|fault| fault.seen_us);
    let sent_after = |sent_us: u64| seen_us.is_some_and(|seen_us| sent_us > seen_us);
    let mut evidence = Evidence {
        acknowledged: 0,
        lost: None,
        indeterminate: 0,
        errors: 0,
        unavailable_ms: longest_gap_ms(history),
        resumed: history.acknowledgements().any(|(attempt, _, _)| sent_after(attempt.sent_us)),
        in_flight_at_fault: history.fault.is_some_and(|fault| is_under_way_throughout(history, fault)),
        violations: Vec::new(),
        verdict: Verdict::Inconclusive,
        reason: None,
        leftover: None,
    };
    for attempt in &history.attempts {
        match attempt.outcome {
            Outcome::Acknowledged { .. } => evidence.acknowledged += 1,
            Outcome::Indeterminate { .. } => evidence.indeterminate += 1,
            Outcome::NotDone { .. } => evidence.errors += 1,
        }
    }
    evidence
}

/// True where from the order to its seen effect there was always some write under way: whenever the fault struck, it
/// struck at least one. That some write was open at the order says nothing: it may have been acknowledged before.
fn is_under_way_throughout(history: &History, fault: Fault) -> bool {
    let Some(seen_us) = fault.seen_us else { return false };
    let mut open: Vec<(u64, u64)> = history
        .attempts
        .iter()
        .filter(|attempt| attempt.was_under_way())
        .map(|attempt| (attempt.sent_us, attempt.ended_us()))
        .collect();
    open.sort_unstable();
    let mut until = fault.ordered_us;
    for (sent_us, ended_us) in open {
        if sent_us > until {
            return false;
        }
        until = until.max(ended_us);
        if until > seen_us {
            return true;
        }
    }
    false
}

/// Longest time between consecutive acknowledgements, of all writers together, that ends after the fault. The time
/// from the last one to the end of the load counts too: a cluster that never came back was not available for 0 ms.
fn longest_gap_ms(history: &History) -> f64 {
    let Some(fault) = history.fault.map(|fault| fault.ordered_us) else { return 0.0 };
    let mut times: Vec<u64> = history.acknowledgements().map(|(_, _, at_us)| at_us).collect();
    times.sort_unstable();
    let mut previous = times.iter().rfind(|at| **at <= fault).copied().unwrap_or(0);
    let mut longest = 0;
    for at in times.into_iter().filter(|at| *at > fault).chain([history.stopped_us]) {
        longest = longest.max(at.saturating_sub(previous));
        previous = previous.max(at);
    }
    #[expect(clippy::cast_precision_loss, reason = "exact up to 285 years of microseconds")]
    let micros = longest as f64;
    micros / 1000.0
}

/// One revision belongs to one write, and a write that began after another was acknowledged has a higher one.
fn check_revisions(history: &History, violations: &mut Violations) {
    let mut owner = BTreeMap::new();
    for (attempt, revision, _) in history.acknowledgements() {
        if let Some(other) = owner.insert(revision, attempt.id) {
            violations
                .add(format!("{other} and {} were both acknowledged at revision {revision}", attempt.id));
        }
    }
    let mut by_end: Vec<(u64, i64, WriteId)> =
        history.acknowledgements().map(|(attempt, revision, at_us)| (at_us, revision, attempt.id)).collect();
    by_end.sort_unstable();
    let mut by_start: Vec<(u64, i64, WriteId)> = history
        .acknowledgements()
        .map(|(attempt, revision, _)| (attempt.sent_us, revision, attempt.id))
        .collect();
    by_start.sort_unstable();
    let mut ended = by_end.into_iter().peekable();
    let mut highest: Option<(i64, WriteId)> = None;
    for (sent_us, revision, id) in by_start {
        while let Some((_, before, writer)) = ended.next_if(|(at_us, _, _)| *at_us < sent_us) {
            highest = highest.max(Some((before, writer)));
        }
        if let Some((before, earlier)) = highest
            && revision < before
        {
            violations.add(format!(
                "the revision went back: {id} began after {earlier} was acknowledged at {before}, and got {revision}"
            ));
        }
    }
}

/// All replicas were read at one revision, after every acknowledgement: they hold the same, and none is older.
fn check_replicas(history: &History, readback: &ReadBack, violations: &mut Violations) {
    for endpoint in &readback.stale {
        violations.add(format!(
            "{endpoint} answered a linearizable read without a revision that was served before"
        ));
    }
    let Some((first, others)) = readback.replicas.split_first() else { return };
    let acknowledged = history.acknowledgements().map(|(_, revision, _)| revision).max().unwrap_or(0);
    if first.revision < acknowledged {
        violations.add(format!(
            "the revision went back: {} is at {} after {acknowledged} was acknowledged",
            first.endpoint, first.revision
        ));
    }
    let first_by_key: BTreeMap<_, _> = first.found.iter().map(|found| (&found.key, found)).collect();
    for other in others {
        let by_key: BTreeMap<_, _> = other.found.iter().map(|found| (&found.key, found)).collect();
        let keys: BTreeSet<_> = first_by_key.keys().chain(by_key.keys()).collect();
        for key in keys.into_iter().filter(|key| first_by_key.get(*key) != by_key.get(*key)) {
            let key = String::from_utf8_lossy(key);
            violations.add(format!("{} and {} disagree on {key}", first.endpoint, other.endpoint));
        }
    }
}

/// Compares what is there with what was acknowledged; returns how many acknowledged writes are lost.
fn check_contents(history: &History, replica: &Replica, violations: &mut Violations) -> u64 {
    let Replica { endpoint, revision: _, found } = replica;
    let mut there: BTreeMap<&[u8], &Found> = found.iter().map(|found| (&found.key[..], found)).collect();
    let mut owner: BTreeMap<i64, &[u8]> = BTreeMap::new();
    for found in found {
        if let Some(other) = owner.insert(found.mod_revision, &found.key) {
            let (one, two) = (String::from_utf8_lossy(other), String::from_utf8_lossy(&found.key));
            violations.add(format!("{one} and {two} were both written at revision {}", found.mod_revision));
        }
    }
    let mut lost = 0;
    for attempt in &history.attempts {
        let key = history.key(attempt.id);
        let found = there.remove(&key[..]);
        let id = attempt.id;
        if let Some(found) = found
            && (found.version != 1 || found.create_revision != found.mod_revision)
        {
            violations.add(format!("{id} was sent once and carried out {} times", found.version));
        }
        match (attempt.outcome, found) {
            (Outcome::Acknowledged { revision, .. }, None) => {
                lost += 1;
                violations.add(format!(
                    "{id} was acknowledged at revision {revision} and is missing on {endpoint}"
                ));
            }
            (Outcome::Acknowledged { revision, .. }, Some(found)) => {
                if found.mod_revision != revision || found.value != history.value(id) {
                    lost += 1;
                    violations.add(format!(
                        "{id} was acknowledged at revision {revision} and {endpoint} holds another value or revision ({})",
                        found.mod_revision
                    ));
                }
            }
            (Outcome::Indeterminate { .. }, Some(found)) => {
                if found.value != history.value(id) {
                    violations.add(format!("{endpoint} holds a value for {id} that nobody wrote"));
                }
            }
            (Outcome::NotDone { .. }, Some(found)) => {
                violations.add(format!(
                    "{id} was refused, yet {endpoint} holds it at revision {}",
                    found.mod_revision
                ));
            }
            (Outcome::Indeterminate { .. } | Outcome::NotDone { .. }, None) => {}
        }
    }
    for key in there.keys() {
        violations.add(format!("{endpoint} holds {}, which nobody wrote", String::from_utf8_lossy(key)));
    }
    lost
}

fn decide(history: &History, readback: &ReadBack, evidence: &Evidence) -> (Verdict, Option<String>) {
    if let Some(first) = evidence.violations.first() {
        return (Verdict::Violated, Some(first.clone()));
    }
    let inconclusive = |reason: &str| (Verdict::Inconclusive, Some(reason.to_owned()));
    if let Some((endpoint, cause)) = readback.unread.first() {
        return inconclusive(&format!("{endpoint} could not be read back: {cause}"));
    }
    if readback.replicas.is_empty() {
        return inconclusive("no node is left to read back from");
    }
    let Some(fault) = history.fault else { return inconclusive("no fault was injected") };
    if fault.seen_us.is_none() {
        return inconclusive("the fault was not seen to have an effect");
    }
    if !history.acknowledgements().any(|(_, _, at_us)| at_us <= fault.ordered_us) {
        return inconclusive("no write was acknowledged before the fault");
    }
    if !evidence.resumed {
        return inconclusive("no write that was sent after the fault was acknowledged");
    }
    if !evidence.in_flight_at_fault {
        return inconclusive("no write was in flight when the fault struck");
    }
    (Verdict::Proved, None)
}

/// Collects sentences up to a bound.
#[derive(Default)]
struct Violations {
    texts: Vec<String>,
    more: u64,
}

impl Violations {
    fn add(&mut self, text: String) {
        if self.texts.len() < SPELLED_OUT {
            self.texts.push(text);
        } else {
            self.more += 1;
        }
    }

    fn into_texts(mut self) -> Vec<String> {
        if self.more > 0 {
            self.texts.push(format!("and {} more", self.more));
        }
        self.texts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::probe::history::Attempt;

    const FAULT: Fault = Fault { ordered_us: 1_000, seen_us: Some(1_050) };

    /// Two writers, five writes: acknowledged before, across and after the fault, one of unknown fate, one refused.
    fn history() -> History {
        let attempt =
            |writer, number, sent_us, outcome| Attempt { id: WriteId { writer, number }, sent_us, outcome };
        let yes = |revision, at_us| Outcome::Acknowledged { revision, at_us };
        History {
            prefix: b"p/".to_vec(),
            attempts: vec![
                attempt(0, 0, 100, yes(2, 300)),
                attempt(1, 0, 150, yes(3, 400)),
                attempt(0, 1, 900, Outcome::Indeterminate { at_us: 1_100 }),
                attempt(1, 1, 950, yes(4, 9_400)),
                attempt(0, 2, 2_000, Outcome::NotDone { at_us: 2_100 }),
                attempt(0, 3, 9_450, yes(5, 9_500)),
            ],
            fault: Some(FAULT),
            stopped_us: 9_600,
        }
    }

    fn found(history: &History, writer: u16, number: u32, revision: i64) -> Found {
        let id = WriteId { writer, number };
        Found {
            key: history.key(id),
            value: history.value(id),
            create_revision: revision,
            mod_revision: revision,
            version: 1,
        }
    }

    fn replica(endpoint: &str, history: &History) -> Replica {
        let found = vec![
            found(history, 0, 0, 2),
            found(history, 0, 3, 5),
            found(history, 1, 0, 3),
            found(history, 1, 1, 4),
        ];
        Replica { endpoint: endpoint.to_owned(), revision: 5, found }
    }

    fn readback(history: &History) -> ReadBack {
        ReadBack { replicas: vec![replica("a:1", history), replica("b:1", history)], ..ReadBack::default() }
    }

    /// Changes a good run and says what the judge makes of it.
    fn judged(change: impl FnOnce(&mut History, &mut ReadBack)) -> Evidence {
        let mut history = history();
        let mut readback = readback(&history);
        change(&mut history, &mut readback);
        judge(&history, &readback)
    }

    fn assert_violated(evidence: &Evidence, lost: u64, words: &str) {
        assert_eq!((evidence.verdict, evidence.lost), (Verdict::Violated, Some(lost)), "{evidence:?}");
        assert!(evidence.violations.iter().any(|text| text.contains(words)), "{:?}", evidence.violations);
        assert_eq!(evidence.reason.as_ref(), evidence.violations.first());
    }

    fn assert_inconclusive(evidence: &Evidence, words: &str) {
        assert_eq!(evidence.verdict, Verdict::Inconclusive, "{evidence:?}");
        assert!(evidence.reason.as_ref().is_some_and(|reason| reason.contains(words)), "{evidence:?}");
    }

    #[test]
    fn a_run_in_which_everything_acknowledged_is_there_is_proved() {
        let evidence = judged(|_, _| {});
        assert_eq!((evidence.verdict, evidence.reason.clone()), (Verdict::Proved, None), "{evidence:?}");
        assert_eq!((evidence.acknowledged, evidence.indeterminate, evidence.errors), (4, 1, 1));
        assert!((evidence.unavailable_ms - 9.0).abs() < 1e-9, "{}", evidence.unavailable_ms);
    }

    #[test]
    fn a_write_of_unknown_fate_may_be_there() {
        let evidence = judged(|history, readback| {
            for replica in &mut readback.replicas {
                replica.found.push(found(history, 0, 1, 6));
                replica.revision = 6;
            }
        });
        assert_eq!(evidence.verdict, Verdict::Proved, "{evidence:?}");
    }

    #[test]
    fn a_missing_acknowledged_write_is_lost() {
        let evidence = judged(|_, readback| {
            for replica in &mut readback.replicas {
                replica.found.remove(0);
            }
        });
        assert_violated(&evidence, 1, "is missing on a:1");
    }

    #[test]
    fn another_value_or_revision_than_acknowledged_is_lost() {
        let evidence = judged(|_, readback| {
            for replica in &mut readback.replicas {
                replica.found[0].value = b"other".to_vec();
                replica.found[1].mod_revision = 6;
                replica.found[1].create_revision = 6;
            }
        });
        assert_violated(&evidence, 2, "holds another value or revision");
    }

    #[test]
    fn a_write_that_was_carried_out_twice_is_a_violation() {
        let evidence = judged(|history, readback| {
            for replica in &mut readback.replicas {
                replica.found.push(Found { version: 2, mod_revision: 7, ..found(history, 0, 1, 6) });
            }
        });
        assert_violated(&evidence, 0, "carried out 2 times");
    }

    #[test]
    fn a_refused_write_that_is_there_is_a_violation() {
        let evidence = judged(|history, readback| {
            for replica in &mut readback.replicas {
                replica.found.push(found(history, 0, 2, 6));
            }
        });
        assert_violated(&evidence, 0, "was refused, yet");
    }

    #[test]
    fn a_key_that_nobody_wrote_is_a_violation() {
        let evidence = judged(|history, readback| {
            for replica in &mut readback.replicas {
                replica.found.push(found(history, 7, 7, 6));
            }
        });
        assert_violated(&evidence, 0, "which nobody wrote");
    }

    #[test]
    fn one_revision_for_two_writes_is_a_violation() {
        let evidence = judged(|history, _| {
            history.attempts[1].outcome = Outcome::Acknowledged { revision: 2, at_us: 400 };
        });
        assert_violated(&evidence, 1, "both acknowledged at revision 2");
    }

    #[test]
    fn a_revision_that_goes_back_is_a_violation() {
        let evidence = judged(|history, readback| {
            history.attempts[5].outcome = Outcome::Acknowledged { revision: 1, at_us: 9_500 };
            for replica in &mut readback.replicas {
                replica.found[1] = found(history, 0, 3, 1);
            }
        });
        assert_violated(&evidence, 0, "the revision went back: write 3 of writer 0");
        let evidence = judged(|_, readback| readback.replicas[0].revision = 4);
        assert_violated(&evidence, 0, "a:1 is at 4 after 5");
    }

    #[test]
    fn overlapping_writes_may_take_their_revisions_in_any_order() {
        let evidence = judged(|history, readback| {
            history.attempts[0].outcome = Outcome::Acknowledged { revision: 3, at_us: 300 };
            history.attempts[1].outcome = Outcome::Acknowledged { revision: 2, at_us: 400 };
            for replica in &mut readback.replicas {
                replica.found[0] = found(history, 0, 0, 3);
                replica.found[2] = found(history, 1, 0, 2);
            }
        });
        assert_eq!(evidence.verdict, Verdict::Proved, "{evidence:?}");
    }

    #[test]
    fn nodes_that_disagree_are_a_violation() {
        let evidence = judged(|_, readback| {
            readback.replicas[1].found.pop();
        });
        assert_violated(&evidence, 0, "a:1 and b:1 disagree on p/001-00000001");
        let evidence = judged(|_, readback| readback.stale.push("b:1".to_owned()));
        assert_violated(&evidence, 0, "b:1 answered a linearizable read without");
    }

    #[test]
    fn without_a_read_back_from_every_survivor_nothing_is_proved() {
        let evidence = judged(|_, readback| readback.replicas.clear());
        assert_inconclusive(&evidence, "no node is left");
        assert_eq!(evidence.lost, None, "nothing is known of what was not read");
        let evidence = judged(|_, readback| {
            let gone = readback.replicas.pop().map(|replica| (replica.endpoint, "timed out".to_owned()));
            readback.unread.extend(gone);
        });
        assert_inconclusive(&evidence, "b:1 could not be read back: timed out");
    }

    #[test]
    fn without_writes_before_through_and_after_the_fault_nothing_is_proved() {
        let faulted = |ordered_us, seen_us| {
            judged(|history, _| history.fault = Some(Fault { ordered_us, seen_us: Some(seen_us) }))
        };
        assert_inconclusive(&judged(|history, _| history.fault = None), "no fault");
        assert_inconclusive(&faulted(200, 250), "before the fault");
        assert_inconclusive(&faulted(9_510, 9_550), "after the fault");
        assert_inconclusive(&faulted(9_410, 9_420), "in flight");
        let unseen = judged(|history, _| history.fault = Some(Fault { seen_us: None, ..FAULT }));
        assert_inconclusive(&unseen, "not seen");
    }

    #[test]
    fn what_was_sent_before_the_effect_was_seen_is_not_after_the_fault() {
        // The last write is acknowledged long after the order, but it was sent before the victim was seen gone.
        let evidence = judged(|history, _| history.fault = Some(Fault { seen_us: Some(9_460), ..FAULT }));
        assert_inconclusive(&evidence, "sent after the fault");
        assert!(!evidence.resumed);
    }

    #[test]
    fn a_write_that_was_open_at_the_order_need_not_be_open_when_the_fault_struck() {
        let hole = |history: &mut History, _: &mut ReadBack| {
            // Both writes that were open at the order ended at 1.02 ms, before it must have struck.
            history.attempts[2].outcome = Outcome::Indeterminate { at_us: 1_020 };
            history.attempts[3].outcome = Outcome::Acknowledged { revision: 4, at_us: 1_020 };
        };
        assert_inconclusive(&judged(hole), "in flight");
        let evidence = judged(|history, readback| {
            hole(history, readback);
            // A third one bridges that.
            let id = WriteId { writer: 1, number: 2 };
            let outcome = Outcome::Indeterminate { at_us: 2_000 };
            history.attempts.push(Attempt { id, sent_us: 1_010, outcome });
        });
        assert_eq!(evidence.verdict, Verdict::Proved, "{evidence:?}");
    }

    #[test]
    fn a_cluster_that_never_came_back_was_unavailable_to_the_end() {
        let evidence = judged(|history, readback| {
            history.attempts.truncate(3);
            for replica in &mut readback.replicas {
                replica.found.retain(|found| found.mod_revision < 4);
            }
        });
        assert_inconclusive(&evidence, "after the fault");
        assert!(!evidence.resumed);
        assert!((evidence.unavailable_ms - 9.2).abs() < 1e-9, "{}", evidence.unavailable_ms);
    }

    #[test]
    fn a_flood_of_violations_is_bounded_but_counted() {
        let evidence = judged(|history, readback| {
            for number in 100..200 {
                let lost = Attempt {
                    id: WriteId { writer: 0, number },
                    sent_us: 9_500,
                    outcome: Outcome::Acknowledged { revision: i64::from(number), at_us: 9_550 },
                };
                history.attempts.push(lost);
            }
            readback.replicas.truncate(1);
            readback.replicas[0].revision = 1_000;
        });
        assert_eq!(evidence.lost, Some(100));
        assert_eq!(evidence.violations.len(), SPELLED_OUT + 1);
        assert_eq!(evidence.violations.last().map(String::as_str), Some("and 80 more"));
    }
}
