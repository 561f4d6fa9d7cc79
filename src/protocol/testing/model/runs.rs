//! The tests.

use stateright::{Checker, HasDiscoveries, Model};

use crate::protocol::rules::Rule;
use super::{Bounds, Disks, Reads, Setup};

fn setup(bounds: Bounds) -> Setup {
    Setup {
        nodes: if number("NODES") > 0 { usize::from(number("NODES")) } else { 3 },
        bounds,
        unborn: number("UNBORN") > 0,
        disks: match number("DISKS") { 0 => Disks::EachWrite, 1 => Disks::EachSync, 2=> Disks::EachSyncOfEntries, _ => Disks::LeadersOnly },
        reads: match number("READS") { 0 => Reads::ThereAndBack, 1 => Reads::Later, _=> Reads::AtOnce },
        batches: number("BATCHES") > 0,
        lockstep: number("LOCKSTEP") > 0,
        remembers: number("REMEMBERS") > 0,
        broken: std::env::var("RULE").ok().map(|rule| *RULES.iter().find(|known| format!("{known:?}") == rule).unwrap()),
        only_consequences: number("ONLY") > 0,
        reaches: Vec::new(),
    }
}

const RULES: [Rule; 14] = [
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
];

fn number(text: &str) -> u8 {
    std::env::var(text).ok().map_or(0, |text| text.parse().expect("a number"))
}

fn walk(setup: Setup) {
    let started = crate::clock::now();
    let told = setup.clone();
    let mut checker = setup.checker().threads(2).finish_when(HasDiscoveries::AnyFailures);
    if let Ok(limit) = std::env::var("LIMIT") {
        checker = checker.target_state_count(limit.parse().unwrap());
    }
    let run = |checker: stateright::CheckerBuilder<Setup>| -> (usize, usize, usize, std::collections::BTreeMap<&'static str, Vec<super::Action>>) {
        if number("BFS") > 0 {
            let checker = checker.threads(1).spawn_bfs().join();
            (checker.unique_state_count(), checker.state_count(), checker.max_depth(), checker.discoveries().into_iter().map(|(n, p)| (n, p.into_actions())).collect())
        } else {
            let checker = checker.spawn_dfs().join();
            (checker.unique_state_count(), checker.state_count(), checker.max_depth(), checker.discoveries().into_iter().map(|(n, p)| (n, p.into_actions())).collect())
        }
    };
    let checker = run(checker);
    println!(
        "{:?}\n  {} states, {} steps, depth {}, {:.1?}",
        told.bounds,
        checker.0, checker.1, checker.2,
        started.elapsed()
    );
    for (name, path) in checker.3 {
        let actions = path;
        println!("{name}: {} actions", actions.len());
        if std::env::var("TELL").is_ok() {
        println!("{}", told.tell(&actions));
        }
    }
}

#[test]
fn probe() {
    let bounds = Bounds {
        writes: number("WRITES"),
        crashes: number("CRASHES"),
        silences: number("SILENCES"),
        losses: number("LOSSES"),
        resets: number("RESETS"),
        strays: number("STRAYS"),
        beats: number("BEATS"),
        sleeps: number("SLEEPS"),
        moves: number("MOVES"),
        stalls: number("STALLS"),
    };
    walk(Setup { reaches: super::EVENTS.iter().map(|event| event.0).collect(), ..setup(bounds) });
}
