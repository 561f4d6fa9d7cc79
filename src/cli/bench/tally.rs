//! What many faults in one cluster came to: the gaps in order, and everything that must never be, counted and in words.

use serde_json::{Value, json};

use super::awakening::Awakening;
use super::cluster::Kind;
use super::data::show;
use super::{Fault, Victim};
use crate::client::probe::{Evidence, Verdict};

/// All faults of one cluster.
#[derive(Debug)]
pub(super) struct Tally {
    kind: Kind,
    fault: Fault,
    victim: Victim,
    /// Bytes of values that it holds.
    data_bytes: u64,
    gaps_ms: Vec<f64>,
    acknowledged: u64,
    lost: u64,
    indeterminate: u64,
    errors: u64,
    proved: u64,
    /// Linearizable reads that a woken node answered, and those of them that were stale.
    reads_awake: u64,
    stale: u64,
    /// Memory of the node that was struck, when it was, at most.
    resident_bytes: u64,
    /// Why some faults prove nothing.
    inconclusive: Vec<String>,
    violations: Vec<String>,
}

impl Tally {
    /// Nothing has happened yet.
    pub(super) fn new(kind: Kind, fault: Fault, victim: Victim, data_bytes: u64) -> Tally {
        Tally {
            kind,
            fault,
            victim,
            data_bytes,
            gaps_ms: Vec::new(),
            acknowledged: 0,
            lost: 0,
            indeterminate: 0,
            errors: 0,
            proved: 0,
            reads_awake: 0,
            stale: 0,
            resident_bytes: 0,
            inconclusive: Vec::new(),
            violations: Vec::new(),
        }
    }

    /// One fault.
    pub(super) fn add(&mut self, evidence: Evidence, awakening: Awakening, resident_bytes: u64) {
        self.gaps_ms.push(evidence.unavailable_ms);
        self.acknowledged += evidence.acknowledged;
        // Where nothing was read back nothing is known to be lost: that fault counts as inconclusive.
        self.lost += evidence.lost.unwrap_or(0);
        self.indeterminate += evidence.indeterminate;
        self.errors += evidence.errors;
        self.reads_awake += awakening.answered;
        self.stale += awakening.stale;
        self.resident_bytes = self.resident_bytes.max(resident_bytes);
        self.violations.extend(evidence.violations);
        self.violations.extend(awakening.violations);
        match evidence.verdict {
            Verdict::Proved => self.proved += 1,
            Verdict::Inconclusive => self.inconclusive.extend(evidence.reason),
            Verdict::Violated => {}
        }
    }

    /// What was seen that must never be.
    pub(super) fn into_violations(self) -> Vec<String> {
        self.violations
    }

    /// Why no fault at all proves anything; empty where one does.
    pub(super) fn doubts(&self) -> Vec<String> {
        let mut doubts = if self.proved == 0 { self.inconclusive.clone() } else { Vec::new() };
        doubts.sort();
        doubts.dedup();
        doubts
    }

    /// The columns of [`Tally::row`].
    pub(super) fn head(&self) -> Vec<&'static str> {
        let faults = match self.fault {
            Fault::Kill => "KILLS",
            Fault::Stop => "STOPS",
        };
        let mut head =
            vec!["CLUSTER", "DATA", faults, "MEDIAN MS", "P99 MS", "MAX MS", "ACKNOWLEDGED", "LOST"];
        head.extend(["INDETERMINATE", "ERRORS", "PROVED", "INCONCLUSIVE", "MEMORY"]);
        match self.fault {
            Fault::Kill => {}
            Fault::Stop => head.extend(["READS AWAKE", "STALE"]),
        }
        head
    }

    /// For people.
    pub(super) fn row(&self) -> Vec<String> {
        let millis = |quantile| format!("{:.1}", nearest_rank(&self.gaps_ms, quantile));
        let mut row = vec![
            self.kind.name().to_owned(),
            if self.data_bytes == 0 { "-".to_owned() } else { show(self.data_bytes) },
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
            show(self.resident_bytes),
        ];
        match self.fault {
            Fault::Kill => {}
            Fault::Stop => row.extend([self.reads_awake.to_string(), self.stale.to_string()]),
        }
        row
    }

    /// For programs.
    pub(super) fn value(&self) -> Value {
        json!({
            "cluster": self.kind,
            "signal": match self.fault { Fault::Kill => "KILL", Fault::Stop => "STOP" },
            "target": match self.victim { Victim::Leader => "leader", Victim::Follower => "follower" },
            "data_bytes": self.data_bytes,
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
            "reads_awake": self.reads_awake,
            "stale_reads": self.stale,
            "resident_bytes": self.resident_bytes,
            "inconclusive": self.inconclusive,
            "violations": self.violations,
        })
    }
}

/// The smallest number that at least this share of the numbers does not exceed.
pub(super) fn nearest_rank(numbers: &[f64], quantile: f64) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a count of faults times a share between 0 and 1"
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
            lost: Some(u64::from(verdict == Verdict::Violated)),
            overtaken: 0,
            indeterminate: 1,
            errors: 0,
            unavailable_ms,
            resumed: true,
            in_flight_at_fault: true,
            violations: if verdict == Verdict::Violated { vec!["lost".to_owned()] } else { Vec::new() },
            verdict,
            reason: (verdict != Verdict::Proved).then(|| "why".to_owned()),
            leftover: None,
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
    fn a_lost_write_or_a_stale_read_in_one_fault_of_many_is_not_averaged_away() {
        let mut tally = Tally::new(Kind::Ours, Fault::Stop, Victim::Leader, 0);
        for verdict in [Verdict::Proved, Verdict::Violated, Verdict::Inconclusive] {
            tally.add(evidence(verdict, 7.0), Awakening::default(), 1);
        }
        let stale = Awakening { answered: 5, stale: 1, violations: vec!["stale".to_owned()] };
        tally.add(evidence(Verdict::Proved, 7.0), stale, 2);
        assert_eq!((tally.lost, tally.proved, tally.inconclusive.len()), (1, 2, 1));
        assert!(tally.doubts().is_empty());
        let value = tally.value();
        assert_eq!((value["lost"].as_u64(), value["kills"].as_u64()), (Some(1), Some(4)));
        assert_eq!((value["stale_reads"].as_u64(), value["resident_bytes"].as_u64()), (Some(1), Some(2)));
        assert_eq!(tally.head().len(), tally.row().len());
        assert_eq!(tally.into_violations(), ["lost", "stale"]);
    }

    #[test]
    fn where_every_fault_is_inconclusive_so_is_the_whole() {
        let mut tally = Tally::new(Kind::Ours, Fault::Kill, Victim::Leader, 0);
        for _ in 0..3 {
            tally.add(evidence(Verdict::Inconclusive, 7.0), Awakening::default(), 1);
        }
        assert_eq!(tally.doubts(), ["why"]);
    }
}
