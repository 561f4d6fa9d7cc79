//! The tests.

use stateright::{Checker, HasDiscoveries, Model};

use super::{ALL_WRITTEN, Bounds, FAIL_OVER, Setup};

fn setup(bounds: Bounds) -> Setup {
    Setup {
        nodes: 3,
        bounds,
        unborn: false,
        one_by_one: false,
        slow_reads: false,
        remembers: false,
        broken: None,
        only_consequences: false,
        reaches: Vec::new(),
    }
}

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
    let checker = checker.spawn_dfs().join();
    println!(
        "{:?}\n  {} states, {} steps, depth {}, {:.1?}",
        told.bounds,
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        started.elapsed()
    );
    for (name, path) in checker.discoveries() {
        let actions = path.into_actions();
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
    };
    walk(Setup { reaches: super::EVENTS.iter().map(|event| event.0).collect(), ..setup(bounds) });
}
