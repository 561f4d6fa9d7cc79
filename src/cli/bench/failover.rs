//! How long nobody can write after the leader is killed, again and again, and whether anything acknowledged is lost.

use std::time::Duration;

use serde_json::{Value, json};

use super::cluster::{Cluster, Kind, Scratch};
use super::load::wait_for;
use super::{BenchArguments, BenchFailure, Report, note};
use crate::cli::client::print::table;
use crate::client::probe::{Evidence, Probe, Verdict};

/// Writes that are acknowledged before the leader is killed, and again after.
const ENOUGH: u64 = 100;
/// How long the cluster may take to acknowledge them.
const PATIENCE: Duration = Duration::from_secs(30);

/// All kills of one kind of cluster.
#[derive(Debug, Default)]
struct Tally {
    gaps_ms: Vec<f64>,
    acknowledged: u64,
    lost: u64,
    indeterminate: u64,
    errors: u64,
    proved: u64,
    /// Why some kills prove nothing.
    inconclusive: Vec<String>,
    violations: Vec<String>,
}

/// Kills leaders of ours, and of etcd in turn where it is asked for.
pub(super) async fn run(arguments: &BenchArguments, scratch: &Scratch) -> Result<Report, BenchFailure> {
    let kinds: &[Kind] = match arguments.versus {
        Some(_) => &[Kind::Ours, Kind::Etcd],
        None => &[Kind::Ours],
    };
    let mut sides = Vec::new();
    for kind in kinds {
        let cluster = Cluster::start(*kind, scratch.join(kind.name()), 3).await?;
        sides.push((cluster, Tally::default()));
    }
    for kill in 0..arguments.kills {
        for (cluster, tally) in &mut sides {
            let evidence = kill_leader(cluster, arguments.writers).await?;
            note(&format!(
                "kill {} of {}: {}: {:.1} ms, {:?}",
                kill + 1,
                arguments.kills,
                cluster.kind.name(),
                evidence.unavailable_ms,
                evidence.verdict
            ));
            tally.add(evidence);
        }
    }
    let text = table(&HEAD, sides.iter().map(|(cluster, tally)| tally.row(cluster.kind)));
    let value = sides.iter().map(|(cluster, tally)| tally.value(cluster.kind)).collect();
    let violations: Vec<String> = sides.into_iter().flat_map(|(_, tally)| tally.violations).collect();
    let report = Report { text, value };
    if violations.is_empty() { Ok(report) } else { Err(BenchFailure::Violated { report, violations }) }
}

/// One kill: the load goes through the nodes that will survive it.
async fn kill_leader(cluster: &mut Cluster, writers: usize) -> Result<Evidence, BenchFailure> {
    let leader = cluster.leader().await?;
    let survivors = cluster.addresses_without(leader);
    let probe = Probe::start_with(survivors.clone(), writers).await?;
    if wait_for(PATIENCE, async || probe.acknowledged() >= ENOUGH).await.is_none() {
        return Err(BenchFailure::NoWrites(cluster.kind.name(), "before the leader was killed"));
    }
    probe.mark_fault();
    cluster.kill(leader)?;
    if wait_for(PATIENCE, async || probe.acknowledged_after_fault() >= ENOUGH).await.is_none() {
        let address = cluster.address(leader);
        note(&format!("{address} is dead and too little is acknowledged since"));
    }
    let evidence = probe.finish(survivors).await;
    cluster.restart(leader).await?;
    Ok(evidence)
}

const HEAD: [&str; 11] = [
    "CLUSTER",
    "KILLS",
    "MEDIAN MS",
    "P99 MS",
    "MAX MS",
    "ACKNOWLEDGED",
    "LOST",
    "INDETERMINATE",
    "ERRORS",
    "PROVED",
    "INCONCLUSIVE",
];

impl Tally {
    fn add(&mut self, evidence: Evidence) {
        self.gaps_ms.push(evidence.unavailable_ms);
        self.acknowledged += evidence.acknowledged;
        self.lost += evidence.lost;
        self.indeterminate += evidence.indeterminate;
        self.errors += evidence.errors;
        self.violations.extend(evidence.violations);
        match evidence.verdict {
            Verdict::Proved => self.proved += 1,
            Verdict::Inconclusive => self.inconclusive.extend(evidence.reason),
            Verdict::Violated => {}
        }
    }

    fn row(&self, kind: Kind) -> Vec<String> {
        let millis = |quantile| format!("{:.1}", nearest_rank(&self.gaps_ms, quantile));
        vec![
            kind.name().to_owned(),
            self.gaps_ms.len().to_string(),
            millis(0.5),
            millis(0.99),
            millis(1.0),
            self.acknowledged.to_string(),
            self.lost.to_string(),
            self.indeterminate.to_string(),
            self.errors.to_string(),
            self.proved.to_string(),
            self.inconclusive.len().to_string(),
        ]
    }

    fn value(&self, kind: Kind) -> Value {
        json!({
            "cluster": kind,
            "kills": self.gaps_ms.len(),
            "median_ms": nearest_rank(&self.gaps_ms, 0.5),
            "p99_ms": nearest_rank(&self.gaps_ms, 0.99),
            "max_ms": nearest_rank(&self.gaps_ms, 1.0),
            "gaps_ms": self.gaps_ms,
            "acknowledged": self.acknowledged,
            "lost": self.lost,
            "indeterminate": self.indeterminate,
            "errors": self.errors,
            "proved": self.proved,
            "inconclusive": self.inconclusive,
            "violations": self.violations,
        })
    }
}

/// The smallest number that at least this share of the numbers does not exceed.
fn nearest_rank(numbers: &[f64], quantile: f64) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a count of kills times a share between 0 and 1"
    )]
    let rank = (sorted.len() as f64 * quantile).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(verdict: Verdict, unavailable_ms: f64) -> Evidence {
        Evidence {
            acknowledged: 10,
            lost: u64::from(verdict == Verdict::Violated),
            indeterminate: 1,
            errors: 0,
            unavailable_ms,
            in_flight_at_fault: true,
            violations: if verdict == Verdict::Violated { vec!["lost".to_owned()] } else { Vec::new() },
            verdict,
            reason: (verdict != Verdict::Proved).then(|| "why".to_owned()),
        }
    }

    #[test]
    fn ranks_are_of_numbers_that_were_seen() {
        let numbers = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert!((nearest_rank(&numbers, 0.5) - 3.0).abs() < f64::EPSILON);
        assert!((nearest_rank(&numbers, 0.99) - 5.0).abs() < f64::EPSILON);
        assert!((nearest_rank(&numbers, 0.0) - 1.0).abs() < f64::EPSILON);
        assert!(nearest_rank(&[], 0.5).abs() < f64::EPSILON);
    }

    #[test]
    fn a_lost_write_in_one_kill_of_many_is_not_averaged_away() {
        let mut tally = Tally::default();
        for verdict in [Verdict::Proved, Verdict::Violated, Verdict::Inconclusive] {
            tally.add(evidence(verdict, 7.0));
        }
        assert_eq!((tally.lost, tally.proved, tally.inconclusive.len()), (1, 1, 1));
        assert_eq!(tally.violations, ["lost"]);
        let value = tally.value(Kind::Ours);
        assert_eq!((value["lost"].as_u64(), value["kills"].as_u64()), (Some(1), Some(3)));
    }
}
