//! The tests: seeds, and seeds with a rule switched off.
//!
//! Run more or other seeds, or one seed with all that happened in it:
//!
//! ```text
//! REPLCLUSTER_SEEDS=100000 cargo test --lib every_seed_keeps_every_claim -- --nocapture
//! REPLCLUSTER_SEED=17 cargo test --lib every_seed_keeps_every_claim -- --nocapture
//! ```

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::cluster::{Cluster, Settings};
use super::invariants::{Claim, Violation};
use super::simulation::Simulation;
use super::spread;
use crate::protocol::rules::Rule;
use crate::protocol::{Input, Millis};
use crate::view::{Epoch, Index};

/// What a seed came to.
#[derive(Debug)]
struct Outcome {
    violation: Option<Violation>,
    trace: Vec<String>,
    acknowledged: usize,
    epochs: u64,
    steps: u64,
}

fn run_seed(seed: u64, broken: Option<Rule>, traced: bool) -> Outcome {
    finish(Simulation::new(seed, broken, traced))
}

fn finish(mut simulation: Simulation) -> Outcome {
    let result = catch_unwind(AssertUnwindSafe(|| simulation.run()));
    let violation = match result {
        Ok(Ok(())) => None,
        Ok(Err(violation)) => Some(violation),
        Err(panic) => Some(Violation::new(Claim::NoPanic, spread::panic_text(&*panic))),
    };
    Outcome {
        violation,
        trace: simulation.cluster.trace.take().unwrap_or_default(),
        acknowledged: simulation.cluster.truth.len(),
        epochs: simulation.cluster.register().map_or(Epoch(0), |view| view.epoch).0,
        steps: simulation.steps,
    }
}

/// Seeds beyond those that always run, which have found something once.
const ONCE_BROKEN: &[u64] = &[109_687];

/// What many seeds came to.
#[derive(Default)]
struct Sums {
    /// Those that broke a claim.
    bad: Vec<(u64, Violation)>,
    seeds: u64,
    acknowledged: u64,
    epochs: u64,
    steps: u64,
}

fn run_seeds(seeds: &std::ops::Range<u64>) -> Sums {
    let take = |sums: &mut Sums, seed| {
        let outcome = run_seed(seed, None, false);
        sums.seeds += 1;
        sums.acknowledged += outcome.acknowledged as u64;
        sums.epochs += outcome.epochs;
        sums.steps += outcome.steps;
        sums.bad.extend(outcome.violation.map(|violation| (seed, violation)));
    };
    let mut all = spread::over_all_cores(seeds, take, |all: &mut Sums, more| {
        all.seeds += more.seeds;
        all.acknowledged += more.acknowledged;
        all.epochs += more.epochs;
        all.steps += more.steps;
        all.bad.extend(more.bad);
    });
    all.bad.sort_by_key(|(seed, _)| *seed);
    all
}

fn explain(seed: u64) -> String {
    let outcome = run_seed(seed, None, true);
    let Some(violation) = outcome.violation else { return format!("seed {seed} is well when repeated") };
    let tail = outcome.trace.len().saturating_sub(60);
    format!(
        "seed {seed} breaks \"{}\": {}\n{}\nrepeat with: REPLCLUSTER_SEED={seed} cargo test --lib \
         every_seed_keeps_every_claim -- --nocapture",
        violation.claim,
        violation.detail,
        outcome.trace[tail..].join("\n"),
    )
}

#[test]
fn every_seed_keeps_every_claim() {
    if let Some(seed) = spread::from_environment("REPLCLUSTER_SEED") {
        let outcome = run_seed(seed, None, true);
        println!("{}", outcome.trace.join("\n"));
        assert!(outcome.violation.is_none(), "seed {seed}: {:?}", outcome.violation);
        return;
    }
    for seed in ONCE_BROKEN {
        assert!(run_seed(*seed, None, false).violation.is_none(), "{}", explain(*seed));
    }
    let started = crate::clock::now();
    let Sums { bad, seeds, acknowledged, epochs, steps } = run_seeds(&spread::seeds(2_000));
    println!(
        "{seeds} seeds in {:.1?}: {acknowledged} entries acknowledged, {epochs} epochs, {steps} events",
        started.elapsed()
    );
    spread::print_broken(bad.iter().map(|(seed, violation)| (violation.claim, *seed)));
    if let Some((seed, _)) = bad.first() {
        panic!("{}", explain(*seed));
    }
    assert!(
        acknowledged > 20 * seeds && epochs > 3 * seeds,
        "a storm in which nothing happens proves nothing"
    );
}

/// A checker that cannot fail proves nothing: without any one of these rules some seed must break a claim.
#[test]
fn every_rule_that_is_switched_off_is_missed() {
    const SEEDS: u64 = 20_000;
    let rules = [
        Rule::AcknowledgeBeforeDurable,
        Rule::CountOwnBeforeDurable,
        Rule::CommitWithoutEveryone,
        Rule::ShrinkBeforeConfirmed,
        Rule::GrowAfterSwap,
        Rule::JoinBehind,
        Rule::GuessLostSwap,
        Rule::ElectOutsideSet,
        Rule::SkipPromise,
        Rule::ObeyStaleEpoch,
        Rule::ServeBeforeOpening,
        Rule::NoTruncate,
        Rule::ApplyUncommitted,
        Rule::TrustWipedNode,
        Rule::AssumeSwap,
        Rule::TrustOldRegister,
        Rule::TrustOtherChain,
        Rule::ForgetView,
        Rule::ProveUnheard,
        Rule::DeadForEver,
    ];
    // Panics are how a node says that an invariant of its own is broken; here they are expected.
    let mut unnoticed = Vec::new();
    for rule in rules {
        // A fork of the register alone is what this rule prevents; what it may lead to is prevented by others as well.
        let claims: &[bool] = if rule == Rule::TrustOldRegister { &[false] } else { &[false, true] };
        for &only_consequences in claims {
            // Where few seeds miss a rule the search begins at one that did.
            let first = match (rule, only_consequences) {
                (Rule::SkipPromise, true) => 10_880,
                (Rule::TrustOtherChain, _) => 1_426,
                (Rule::ForgetView, _) => 4_840,
                (Rule::ProveUnheard, _) => 1_305,
                _ => 0,
            };
            let caught = spread::from_there(first, SEEDS).find_map(|seed| {
                let mut simulation = Simulation::new(seed, Some(rule), false);
                simulation.cluster.seen.only_consequences = only_consequences;
                Some((seed, finish(simulation).violation?))
            });
            match caught {
                Some((seed, violation)) => {
                    println!("{rule:?}: seed {seed} breaks \"{}\"", violation.claim);
                }
                None => unnoticed.push((rule, only_consequences)),
            }
        }
    }
    assert!(unnoticed.is_empty(), "{SEEDS} seeds do not miss {unnoticed:?}");
}

#[test]
fn a_seed_gives_the_same_trace_twice() {
    for seed in 0..20 {
        let (first, second) = (run_seed(seed, None, true), run_seed(seed, None, true));
        assert!(first.trace.len() > 100, "seed {seed} does nothing");
        assert!(first.trace == second.trace, "seed {seed} differs from itself");
    }
}

/// A joiner whose disk is slower than everybody else's is always a little behind the commit index (R30).
#[test]
fn a_joiner_with_the_slowest_disk_joins_under_steady_load() {
    for disk_delay in [1, 2, 3, 5, 9, 20] {
        let mut cluster = Cluster::new(3, Settings::default());
        cluster.machines[0].creates = true;
        cluster.start(0, Index(0));
        cluster.start(1, Index(0));
        let mut syncing: [Option<(Millis, usize)>; 3] = [None; 3];
        let (mut stall, mut longest_stall, mut committed) = (0, 0, 0);
        for time in 0..1_000 {
            cluster.now += 1;
            if time == 300 {
                cluster.start(2, Index(0));
            }
            let under_way = std::mem::take(&mut cluster.sent);
            for flight in under_way {
                cluster.deliver(flight).unwrap();
            }
            for (machine, syncing) in syncing.iter_mut().enumerate() {
                let Some(process) = cluster.process(machine) else { continue };
                if let Some(call) = process.call.clone() {
                    let answer = cluster.at_register(&call).unwrap();
                    cluster.answer(machine, answer).unwrap();
                }
                if let Some((due, count)) = *syncing
                    && time >= due
                {
                    *syncing = None;
                    cluster.persist(machine, count).unwrap();
                }
                // Group commit: one sync at a time, of all that waits when it begins.
                let waiting = cluster.process(machine).expect("runs").writes.len();
                if syncing.is_none() && waiting > 0 {
                    *syncing = Some((time + if machine == 2 { disk_delay } else { 2 }, waiting));
                }
                if time % 5 == 0 {
                    cluster.input(machine, Input::Tick).unwrap();
                }
                if time > 200 {
                    cluster.propose(machine, 1).unwrap();
                }
                cluster.input(machine, Input::Flush).unwrap();
            }
            stall = if cluster.truth.len() > committed || time < 250 { 0 } else { stall + 1 };
            committed = cluster.truth.len();
            longest_stall = longest_stall.max(stall);
        }
        let view = cluster.register().expect("a view");
        assert_eq!(view.in_sync.len(), 3, "with a disk of {disk_delay} ms: {view:?}");
        println!("disk of {disk_delay} ms: writers waited {longest_stall} ms at most");
        assert!(longest_stall <= 3 * disk_delay + 10, "{longest_stall} ms with a disk of {disk_delay} ms");
    }
}
