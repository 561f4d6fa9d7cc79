//! Says what a history of writes and a read-back of the store prove. Pure: times and answers come as values.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::history::{Fault, History, Outcome, ReadBack, WriteId};

mod contents;

pub(super) use contents::in_doubt;

/// At most this many violations are spelled out; the rest are counted.
const SPELLED_OUT: usize = 20;

/// What the load saw, and what was left of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evidence {
    /// Writes that a node acknowledged.
    pub acknowledged: u64,
    /// Acknowledged writes that were missing, or not as acknowledged, in the read-back; `None` where nothing was read.
    pub lost: Option<u64>,
    /// Acknowledged writes that later revisions of other clients removed or rewrote, or that nothing is known of because
    /// their revisions were compacted away or could not be read. They are not lost, and nothing is proved by them.
    pub overtaken: u64,
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
    let contents = readback
        .replicas
        .first()
        .map(|replica| contents::check(history, replica, &readback.past, &mut violations));
    evidence.lost = contents.as_ref().map(|contents| contents.lost);
    let overtaken = contents.map(|contents| contents.overtaken).unwrap_or_default();
    evidence.overtaken = overtaken.writes();
    evidence.violations = violations.into_texts();
    let disturbance = overtaken.sentence(history, readback.ending.as_ref());
    (evidence.verdict, evidence.reason) = decide(history, readback, &evidence, disturbance);
    evidence
}

/// The numbers that need no read-back.
fn count(history: &History) -> Evidence {
    let seen_us = history.fault.and_then(|fault| fault.seen_us);
    let sent_after = |sent_us: u64| seen_us.is_some_and(|seen_us| sent_us > seen_us);
    let mut evidence = Evidence {
        acknowledged: 0,
        lost: None,
        overtaken: 0,
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

fn decide(
    history: &History,
    readback: &ReadBack,
    evidence: &Evidence,
    disturbance: Option<String>,
) -> (Verdict, Option<String>) {
    if let Some(first) = evidence.violations.first() {
        return (Verdict::Violated, Some(first.clone()));
    }
    if disturbance.is_some() {
        return (Verdict::Inconclusive, disturbance);
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
mod tests;
