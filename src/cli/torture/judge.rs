//! What is left of everything when the clients are done: reads it all back on every node, compares the nodes by their
//! hashes, has the history checked, and says what it proves.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use super::faults::{Broken, Done, Kind};
use super::load::Board;
use super::machine::{InMillis, Stalls};
use super::request::hash;
use crate::check::{self, Freshness, History, Key, Operation, Outcome, Request, Violation};
use crate::client::probe::Verdict;
use crate::clock;

/// How long reading one thing back may take; the nodes are whole, so it should not.
const PATIENCE: Duration = Duration::from_secs(10);
/// Revisions that nobody was told of and that are read one by one; beyond it the check searches for who made them.
const MOST_READ: usize = 50_000;

/// A node that flaps, be it the leader, may keep writers from being acknowledged for this share of the time.
const MOST_STALLED_PERCENT: f64 = 50.0;

/// Where the machine stood still for this long, nobody can say whether the cluster was slow.
const STALL: Duration = Duration::from_secs(5);

/// What was read when all was over.
#[derive(Debug)]
pub(super) struct ReadBack {
    /// The reads.
    operations: Vec<Operation>,
    /// Each node's hash at the last revision; none where it could not be had.
    hashes: Option<Vec<u32>>,
    /// Something could not be read, in words.
    failed: Option<String>,
}

/// Reads everything on every node, every revision that nobody was told of, and every node's hash.
pub(super) async fn read_back(board: &Board, keys: u32, history: &History, client: u32) -> ReadBack {
    let nodes = board.node_count();
    let mut back = ReadBack { operations: Vec::new(), hashes: None, failed: None };
    let everything =
        |freshness| Request::Read { first: Key(0), last: Key(keys.saturating_sub(1)), freshness };
    for node in 0..nodes {
        for freshness in [Freshness::Linearizable, Freshness::Serializable] {
            back.read(board, client, node, everything(freshness)).await;
        }
    }
    let known = known_revisions(history.operations.iter().chain(&back.operations));
    let Some(last) = known.last().copied().filter(|_| back.failed.is_none()) else { return back };
    let hidden = (history.first_revision + 1..=last).filter(|revision| !known.contains(revision));
    for revision in hidden.take(MOST_READ) {
        back.read(board, client, 0, everything(Freshness::At(revision))).await;
    }
    let mut hashes = Vec::new();
    for node in 0..nodes {
        match hash(board.link(node), last, PATIENCE).await {
            Ok(hash) => hashes.push(hash),
            Err(error) => back.failed = Some(format!("no hash: {error}")),
        }
    }
    back.hashes = Some(hashes).filter(|hashes| hashes.len() == nodes);
    back
}

impl ReadBack {
    /// Where nothing could be read, with the reason.
    pub(super) fn missing(why: &str) -> ReadBack {
        ReadBack { operations: Vec::new(), hashes: None, failed: Some(why.to_owned()) }
    }

    /// A read can be repeated without harm.
    async fn read(&mut self, board: &Board, client: u32, node: usize, request: Request) {
        let began = clock::now();
        while self.failed.is_none() {
            match board.ask(client, node, request).await {
                Some(operation)
                    if matches!(operation.outcome, Outcome::Done { .. } | Outcome::Gone { .. }) =>
                {
                    self.operations.push(operation);
                    return;
                }
                Some(_) | None if began.elapsed() >= PATIENCE => {
                    self.failed = Some(format!("{} cannot be read", board.link(node).endpoint()));
                }
                Some(_) | None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }
}

/// Revisions of changes that somebody was told of or saw.
fn known_revisions<'h>(operations: impl Iterator<Item = &'h Operation>) -> BTreeSet<i64> {
    let mut known = BTreeSet::new();
    for operation in operations {
        let Outcome::Done { answer, .. } = &operation.outcome else { continue };
        known.extend(operation.has_changed().then(|| answer.revision()));
        known.extend(answer.found().iter().map(|found| found.mod_revision));
    }
    known
}

/// For how long no change was acknowledged around one kind of fault, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Gaps {
    /// How often the fault struck.
    times: usize,
    median_ms: f64,
    longest_ms: f64,
}

/// Everything there is to say.
#[derive(Debug)]
pub(super) struct Judgement {
    report: check::Report,
    /// Operations that were surely not carried out.
    refused: usize,
    hashes_equal: Option<bool>,
    gaps: BTreeMap<Kind, Gaps>,
    longest_gap_ms: f64,
    killed: usize,
    stalled_percent: Option<f64>,
    /// Errors of nodes that nothing was done to.
    errors: BTreeMap<String, u64>,
    stalls: Stalls,
    pub(super) verdict: Verdict,
    /// Why it is not proved.
    pub(super) reasons: Vec<String>,
}

/// What was asked of the run, beside the history.
#[derive(Clone, Copy, Debug)]
pub(super) struct Demands {
    /// Cycles that should be done.
    pub(super) cycles: u32,
    /// No error is forgiven.
    pub(super) no_errors: bool,
    /// The time was up before all were done.
    pub(super) timed_out: bool,
    /// How the machine did meanwhile.
    pub(super) stalls: Stalls,
}

/// Judges a run. Takes a while for a long history.
pub(super) fn judge(
    history: &mut History,
    back: ReadBack,
    done: &Done,
    errors: BTreeMap<String, u64>,
    demands: Demands,
) -> Judgement {
    let ReadBack { operations, hashes, failed } = back;
    history.operations.extend(operations);
    let report = check::check(history);
    let refused = history.operations.iter().filter(|operation| operation.outcome == Outcome::Refused).count();
    let hashes_equal = hashes.map(|hashes| hashes.windows(2).all(|pair| pair[0] == pair[1]));
    let acknowledged = acknowledged_changes(history);

    let mut violations: Vec<String> = report.violations.iter().map(ToString::to_string).collect();
    let mut doubts: Vec<String> = failed.into_iter().collect();
    match &done.broken {
        Some(Broken::Ended(what)) => violations.push(what.clone()),
        Some(Broken::TooSlow(what)) if demands.stalls.longest() < STALL => violations.push(what.clone()),
        Some(Broken::TooSlow(what)) => {
            doubts.push(format!("{what}, but the machine itself stood still meanwhile"));
        }
        None => {}
    }
    violations.extend(done.violations.iter().cloned());
    if let Some(percent) = done.stalled_percent.filter(|percent| *percent > MOST_STALLED_PERCENT) {
        let what = format!("writers stood still for {percent:.0} % of the time while a node flapped");
        if demands.stalls.longest() < STALL { violations.push(what) } else { doubts.push(what) }
    }
    if hashes_equal == Some(false) {
        violations.push("the nodes hold different data at the same revision".to_owned());
    }
    if demands.no_errors && !errors.is_empty() {
        violations.push("clients that only talked to surviving nodes got errors".to_owned());
    }
    if report.undecided {
        doubts.push("it was not found out who made the revisions that nobody was told of".to_owned());
    }
    if demands.timed_out {
        let faults = done.faults.len();
        doubts.push(format!("the time was up after {faults} of {} cycles", demands.cycles));
    }
    if acknowledged.is_empty() {
        doubts.push("nothing was acknowledged".to_owned());
    }
    let (verdict, reasons) = match (violations.is_empty(), doubts.is_empty()) {
        (false, _) => (Verdict::Violated, violations),
        (true, false) => (Verdict::Inconclusive, doubts),
        (true, true) => (Verdict::Proved, Vec::new()),
    };
    Judgement {
        refused,
        hashes_equal,
        gaps: gaps(&acknowledged, &done.faults),
        longest_gap_ms: longest_gap(&acknowledged),
        killed: done.killed,
        stalled_percent: done.stalled_percent,
        errors,
        stalls: demands.stalls,
        verdict,
        reasons,
        report,
    }
}

/// When each change was acknowledged, in order.
fn acknowledged_changes(history: &History) -> Vec<u64> {
    let mut times: Vec<u64> = history
        .operations
        .iter()
        .filter_map(|operation| match &operation.outcome {
            Outcome::Done { returned, .. } => operation.has_changed().then_some(*returned),
            Outcome::Refused | Outcome::Gone { .. } | Outcome::Unknown => None,
        })
        .collect();
    times.sort_unstable();
    times
}

fn longest_gap(acknowledged: &[u64]) -> f64 {
    millis(acknowledged.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0))
}

/// The gap in which each fault struck.
fn gaps(acknowledged: &[u64], faults: &[(Kind, u64)]) -> BTreeMap<Kind, Gaps> {
    let mut by_kind: BTreeMap<Kind, Vec<u64>> = BTreeMap::new();
    for (kind, struck) in faults {
        let next = acknowledged.partition_point(|time| time <= struck);
        let before = next.checked_sub(1).map_or(*struck, |last| acknowledged[last]);
        let after = acknowledged.get(next).copied().unwrap_or(*struck);
        by_kind.entry(*kind).or_default().push(after - before);
    }
    let summary = |(kind, mut gaps): (Kind, Vec<u64>)| {
        gaps.sort_unstable();
        let median_ms = millis(gaps[gaps.len() / 2]);
        let longest_ms = gaps.last().copied().map_or(0.0, millis);
        (kind, Gaps { times: gaps.len(), median_ms, longest_ms })
    };
    by_kind.into_iter().map(summary).collect()
}

#[expect(clippy::cast_precision_loss, reason = "nanoseconds of a run")]
fn millis(nanos: u64) -> f64 {
    (nanos as f64 / 1e4).round() / 100.0
}

/// The check stops naming violations at some number.
fn at_least(count: usize) -> String {
    if count < check::NAMED_OF_A_KIND { count.to_string() } else { format!("{count} or more") }
}

impl Judgement {
    /// Acknowledged changes that are missing, or whose revision another change has. Of each key only the first is
    /// counted: the check says nothing on what follows from it.
    fn lost(&self) -> usize {
        let is_loss = |violation: &&Violation| {
            matches!(violation, Violation::Missing { .. } | Violation::RevisionShared { .. })
        };
        self.report.violations.iter().filter(is_loss).count()
    }

    /// Answers older than what was known when they were asked for.
    fn regressions(&self) -> usize {
        let is_regression = |violation: &&Violation| {
            matches!(
                violation,
                Violation::Stale { .. }
                    | Violation::WentBack { .. }
                    | Violation::OrderBroken { .. }
                    | Violation::BeforeItsCall { .. }
            )
        };
        self.report.violations.iter().filter(is_regression).count()
    }

    /// For people.
    pub(super) fn lines(&self) -> Vec<String> {
        let report = &self.report;
        let kinds = self.gaps.iter().map(|(kind, gaps)| {
            let Gaps { times, median_ms, longest_ms } = gaps;
            format!(
                "{:<18}{times} times, writes paused {median_ms} ms (median), {longest_ms} ms (longest)",
                kind.name()
            )
        });
        let mut lines: Vec<String> = kinds.collect();
        lines.push(format!(
            "{:<18}{} processes; longest gap between acknowledged writes {} ms",
            "killed", self.killed, self.longest_gap_ms
        ));
        lines.push(format!(
            "{:<18}{}: {} acknowledged, {} refused, {} unknown; {} revisions, {} of them made by unknown ones unseen",
            "operations",
            report.operations,
            report.acknowledged,
            self.refused,
            report.unknown,
            report.last_revision,
            report.hidden
        ));
        let errors: u64 = self.errors.values().sum();
        lines.push(format!("{:<18}{errors} from nodes that nothing was done to", "errors"));
        lines.extend(self.errors.iter().map(|(text, times)| format!("{:<18}{times} times {text}", "")));
        let Stalls { processor, disk } = self.stalls;
        lines.push(format!(
            "{:<18}stood still for {} ms at most, took {} ms at most to sync a few bytes",
            "machine",
            processor.as_millis(),
            disk.as_millis()
        ));
        let equal = match self.hashes_equal {
            Some(true) => "yes",
            Some(false) => "no",
            None => "unknown",
        };
        lines.push(format!(
            "{} lost · {} linearizability violations · {} revision regressions · hash equal {equal}",
            at_least(self.lost()),
            at_least(report.violations.len()),
            at_least(self.regressions())
        ));
        lines
    }

    /// For programs.
    pub(super) fn value(&self) -> Value {
        let report = &self.report;
        let gaps: BTreeMap<&str, &Gaps> = self.gaps.iter().map(|(kind, gaps)| (kind.name(), gaps)).collect();
        json!({
            "faults": gaps,
            "killed": self.killed,
            "stalled_percent": self.stalled_percent,
            "operations": report.operations,
            "acknowledged": report.acknowledged,
            "refused": self.refused,
            "unknown": report.unknown,
            "last_revision": report.last_revision,
            "hidden_revisions": report.hidden,
            "lost": self.lost(),
            "linearizability_violations": report.violations.len(),
            "revision_regressions": self.regressions(),
            "hash_equal": self.hashes_equal,
            "longest_gap_ms": self.longest_gap_ms,
            "errors": self.errors,
            "machine": InMillis::from(self.stalls),
            "verdict": self.verdict,
            "reasons": self.reasons,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Answer, Token};

    fn put(called: u64, revision: i64) -> Operation {
        let answer = Answer::Written { revision };
        Operation {
            client: 0,
            node: 0,
            session: 0,
            called,
            request: Request::Put { key: Key(0), value: Token(called) },
            outcome: Outcome::Done { returned: called + 1_000_000, answer },
        }
    }

    fn judged(operations: Vec<Operation>, back: ReadBack, done: &Done, demands: Demands) -> Judgement {
        let errors = BTreeMap::from([("a change: no leader".to_owned(), 2)]);
        judge(&mut History { first_revision: 1, operations }, back, done, errors, demands)
    }

    fn whole() -> ReadBack {
        ReadBack { operations: Vec::new(), hashes: Some(vec![1, 1]), failed: None }
    }

    const STALLS: Stalls = Stalls { processor: Duration::ZERO, disk: Duration::ZERO };
    const DEMANDS: Demands = Demands { cycles: 1, no_errors: false, timed_out: false, stalls: STALLS };

    #[test]
    fn each_reason_alone_keeps_a_run_from_being_proved() {
        let fine = || vec![put(0, 2), put(5_000_000, 3)];
        let nothing = Done::default();
        assert_eq!(judged(fine(), whole(), &nothing, DEMANDS).verdict, Verdict::Proved);

        let lost = judged(vec![put(0, 2), put(5_000_000, 2)], whole(), &nothing, DEMANDS);
        assert_eq!((lost.verdict, lost.lost()), (Verdict::Violated, 1));
        let differ = ReadBack { hashes: Some(vec![1, 2]), ..whole() };
        let differ = judged(fine(), differ, &nothing, DEMANDS);
        assert_eq!((differ.verdict, differ.hashes_equal), (Verdict::Violated, Some(false)));
        let ended = Done { broken: Some(Broken::Ended("it ended".to_owned())), ..Done::default() };
        assert_eq!(judged(fine(), whole(), &ended, DEMANDS).verdict, Verdict::Violated);
        let slow = Done { broken: Some(Broken::TooSlow("it is slow".to_owned())), ..Done::default() };
        assert_eq!(judged(fine(), whole(), &slow, DEMANDS).verdict, Verdict::Violated);
        let two = Done { violations: vec!["two lead".to_owned()], ..Done::default() };
        assert_eq!(judged(fine(), whole(), &two, DEMANDS).verdict, Verdict::Violated);
        let flapped = |percent| Done { stalled_percent: Some(percent), ..Done::default() };
        assert_eq!(judged(fine(), whole(), &flapped(70.0), DEMANDS).verdict, Verdict::Violated);
        assert_eq!(judged(fine(), whole(), &flapped(20.0), DEMANDS).verdict, Verdict::Proved);
        let strict = Demands { no_errors: true, ..DEMANDS };
        assert_eq!(judged(fine(), whole(), &nothing, strict).verdict, Verdict::Violated);

        let unread = judged(fine(), ReadBack::missing("why"), &nothing, DEMANDS);
        assert_eq!((unread.verdict, unread.reasons), (Verdict::Inconclusive, vec!["why".to_owned()]));
        let stalls = Stalls { disk: Duration::from_secs(9), ..STALLS };
        let slow = judged(fine(), whole(), &slow, Demands { stalls, ..DEMANDS });
        assert_eq!(slow.verdict, Verdict::Inconclusive, "the machine was slow itself");
        let late = Demands { timed_out: true, ..DEMANDS };
        assert_eq!(judged(fine(), whole(), &nothing, late).verdict, Verdict::Inconclusive);
        assert_eq!(judged(Vec::new(), whole(), &nothing, DEMANDS).verdict, Verdict::Inconclusive);
    }

    #[test]
    fn a_gap_is_the_one_in_which_the_fault_struck() {
        let acknowledged = [0, 10_000_000, 40_000_000, 41_000_000];
        let gaps = gaps(&acknowledged, &[(Kind::Kill, 11_000_000), (Kind::Kill, 40_500_000)]);
        assert_eq!(gaps[&Kind::Kill], Gaps { times: 2, median_ms: 30.0, longest_ms: 30.0 });
        assert!((longest_gap(&acknowledged) - 30.0).abs() < f64::EPSILON);
    }
}
