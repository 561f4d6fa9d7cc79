//! How long nobody can write after a node is killed or stopped, again and again, whether anything acknowledged is lost,
//! and whether a node that was stopped says anything stale when it wakes.

use std::time::Duration;

use super::awakening::{Awakening, Sleeper};
use super::cluster::{Cluster, Kind};
use super::load::wait_for;
use super::tally::Tally;
use super::{BenchArguments, BenchFailure, Fault, Report, Victim, data, note};
use crate::cli::client::print::table;
use crate::cli::scratch::Scratch;
use crate::client::probe::{Evidence, Probe, READ_PATIENCE};

/// Writes that are acknowledged before a node is struck, and again after.
const ENOUGH: u64 = 100;
/// How long the cluster may take to acknowledge them.
const PATIENCE: Duration = Duration::from_secs(30);

/// Strikes ours; in turn with it etcd, or one of ours that holds data, where that is asked for.
pub(super) async fn run(arguments: &BenchArguments, scratch: &Scratch) -> Result<Report, BenchFailure> {
    let mut kinds = vec![(Kind::Ours, 0)];
    kinds.extend(arguments.versus.map(|versus| (versus.kind(), 0)));
    if let Some(bytes) = arguments.data {
        data::check_space(&scratch.join(""), bytes)?;
        kinds.push((Kind::Ours, bytes));
    }
    let mut sides = Vec::new();
    for (number, (kind, bytes)) in kinds.into_iter().enumerate() {
        let cluster = Cluster::start(kind, scratch.join(&format!("{number}-{}", kind.name())), 3).await?;
        let held = if bytes == 0 { 0 } else { data::fill(&cluster.addresses(), bytes).await? };
        sides.push((cluster, Tally::new(kind, arguments.signal, arguments.target, held)));
    }
    for number in 1..=arguments.kills {
        for (cluster, tally) in &mut sides {
            let struck = strike(cluster, arguments).await?;
            note(&format!(
                "{number} of {}: {}: {:.1} ms, {:?}, {} stale of {} reads after waking",
                arguments.kills,
                cluster.kind.name(),
                struck.evidence.unavailable_ms,
                struck.evidence.verdict,
                struck.awakening.stale,
                struck.awakening.answered,
            ));
            tally.add(struck.evidence, struck.awakening, struck.resident_bytes);
        }
    }
    let head = sides.first().map(|(_, tally)| tally.head()).unwrap_or_default();
    let text = table(&head, sides.iter().map(|(_, tally)| tally.row()));
    let value = sides.iter().map(|(_, tally)| tally.value()).collect();
    let mut reasons: Vec<String> = sides.iter().flat_map(|(_, tally)| tally.doubts()).collect();
    reasons.dedup();
    let violations: Vec<String> = sides.into_iter().flat_map(|(_, tally)| tally.into_violations()).collect();
    let report = Report { text, value };
    match (violations.is_empty(), reasons.is_empty()) {
        (false, _) => Err(BenchFailure::Violated { report, violations }),
        (true, false) => Err(BenchFailure::Inconclusive { report, reasons }),
        (true, true) => Ok(report),
    }
}

/// One fault and what came of it.
struct Struck {
    evidence: Evidence,
    awakening: Awakening,
    resident_bytes: u64,
}

/// One fault: the load goes through the nodes that it does not strike.
async fn strike(cluster: &mut Cluster, arguments: &BenchArguments) -> Result<Struck, BenchFailure> {
    let leader = cluster.leader().await?;
    let victim = match arguments.target {
        Victim::Leader => leader,
        Victim::Follower => cluster.last_but(leader),
    };
    let others = cluster.addresses_without(victim);
    let resident_bytes = cluster.resident_bytes(victim);
    let probe = Probe::start_with(&others, arguments.writers).await?;
    if wait_for(PATIENCE, async || probe.acknowledged() >= ENOUGH).await.is_none() {
        return Err(BenchFailure::NoWrites(cluster.kind.name(), "before a node was struck"));
    }
    let (evidence, awakening) = match arguments.signal {
        Fault::Kill => {
            probe.mark_ordered();
            cluster.kill(victim)?;
            await_effect(cluster, victim, arguments.signal, &probe).await;
            go_on_without(cluster.address(victim), &probe).await;
            let evidence = probe.finish(&others, READ_PATIENCE).await;
            cluster.restart(victim).await?;
            (evidence, Awakening::default())
        }
        Fault::Stop => {
            let sleeper = Sleeper::connect(cluster.address(victim)).await?;
            probe.mark_ordered();
            cluster.stop(victim)?;
            await_effect(cluster, victim, arguments.signal, &probe).await;
            go_on_without(cluster.address(victim), &probe).await;
            let asked = sleeper.ask(&others).await?;
            cluster.wake(victim)?;
            let awakening = asked.answers().await;
            // The load goes on until it is in sync again: a return must not keep anybody from writing either.
            cluster.wait_in_sync(victim).await?;
            (probe.finish(&others, READ_PATIENCE).await, awakening)
        }
    };
    Ok(Struck { evidence, awakening, resident_bytes })
}

/// A signal that was sent has not had its effect yet.
async fn await_effect(cluster: &mut Cluster, victim: usize, fault: Fault, probe: &Probe) {
    if wait_for(PATIENCE, async || cluster.is_struck(victim, fault)).await.is_some() {
        probe.mark_seen();
    }
}

async fn go_on_without(address: &str, probe: &Probe) {
    if wait_for(PATIENCE, async || probe.acknowledged_after_fault() >= ENOUGH).await.is_none() {
        note(&format!("{address} was struck and too little is acknowledged since"));
    }
}
