//! The tests: walks in which every claim holds, and walks with a rule switched off, in which one must not.

use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::time::Duration;

use stateright::{Checker, Expectation, HasDiscoveries, Model};

use super::actions::Action;
use super::events::{
    ALL_WRITTEN, CANDIDATES_RACE, DAMPED, DONE_UNHEARD, FAIL_OVER, JOINS_AGAIN, LEADER_RACES, OLD_REGISTER,
    PUT_RIGHT, TAIL_IS_CUT, TAIL_LIVES, TWO_FAIL_OVERS,
};
use super::{Bounds, Disks, Reads, Setup};
use crate::protocol::rules::Rule;

/// A walk with a name. See the table at the head of the model.
struct Walk {
    name: &'static str,
    setup: Setup,
}

/// The coarsest steps.
const COARSE: Setup = Setup {
    nodes: 3,
    bounds: Bounds::NONE,
    unborn: false,
    disks: Disks::LeadersOnly,
    reads: Reads::AtOnce,
    batches: true,
    lockstep: false,
    remembers: false,
    broken: None,
    only_consequences: false,
    reaches: &[],
};

/// Everything takes its own step.
const FINE: Setup =
    Setup { disks: Disks::EachWrite, reads: Reads::ThereAndBack, batches: false, remembers: true, ..COARSE };

/// Two nodes that begin with empty disks: the second joins.
const BIRTH: Setup = Setup { nodes: 2, unborn: true, disks: Disks::EachSync, ..COARSE };

/// Walked by every `cargo test`.
fn quick() -> Vec<Walk> {
    vec![
        Walk {
            name: "birth",
            setup: Setup {
                bounds: Bounds { writes: 1, crashes: 1, losses: 1, ..Bounds::NONE },
                reaches: &[FAIL_OVER, DONE_UNHEARD],
                ..BIRTH
            },
        },
        Walk {
            name: "crash",
            setup: Setup {
                bounds: Bounds { writes: 1, crashes: 1, ..Bounds::NONE },
                reaches: &[FAIL_OVER, JOINS_AGAIN, CANDIDATES_RACE, TAIL_LIVES],
                ..COARSE
            },
        },
        Walk {
            name: "rollback",
            setup: Setup {
                bounds: Bounds { writes: 1, silences: 1, beats: 1, rollbacks: 1, ..Bounds::NONE },
                lockstep: true,
                reaches: &[FAIL_OVER, OLD_REGISTER, PUT_RIGHT],
                reads: Reads::Later,
                ..COARSE
            },
        },
        Walk {
            name: "flapping",
            setup: Setup {
                bounds: Bounds { writes: 1, silences: 2, ..Bounds::NONE },
                lockstep: true,
                reaches: &[FAIL_OVER, JOINS_AGAIN, DAMPED],
                ..COARSE
            },
        },
    ]
}

/// Walked when asked for by name.
fn named() -> Vec<Walk> {
    vec![
        Walk {
            name: "silence",
            setup: Setup {
                bounds: Bounds { writes: 1, silences: 1, ..Bounds::NONE },
                reaches: &[FAIL_OVER, JOINS_AGAIN, TAIL_LIVES],
                ..COARSE
            },
        },
        Walk {
            name: "fine",
            setup: Setup {
                bounds: Bounds { writes: 1, crashes: 1, ..Bounds::NONE },
                reaches: &[FAIL_OVER, JOINS_AGAIN, CANDIDATES_RACE, TAIL_IS_CUT, TAIL_LIVES],
                ..FINE
            },
        },
        Walk {
            name: "silences",
            setup: Setup {
                bounds: Bounds { writes: 2, silences: 2, ..Bounds::NONE },
                lockstep: true,
                reaches: &[TWO_FAIL_OVERS, JOINS_AGAIN, CANDIDATES_RACE, LEADER_RACES, TAIL_LIVES],
                ..COARSE
            },
        },
        Walk {
            name: "writes",
            setup: Setup {
                bounds: Bounds { writes: 3, crashes: 1, ..Bounds::NONE },
                reaches: &[FAIL_OVER, JOINS_AGAIN, CANDIDATES_RACE, TAIL_LIVES, ALL_WRITTEN],
                ..COARSE
            },
        },
        Walk {
            name: "crashes",
            setup: Setup {
                bounds: Bounds { writes: 3, crashes: 2, ..Bounds::NONE },
                lockstep: true,
                reaches: &[TWO_FAIL_OVERS, JOINS_AGAIN, CANDIDATES_RACE, LEADER_RACES, TAIL_LIVES],
                ..COARSE
            },
        },
        Walk {
            name: "register",
            setup: Setup {
                bounds: Bounds { writes: 1, crashes: 1, losses: 1, ..Bounds::NONE },
                reads: Reads::ThereAndBack,
                disks: Disks::EachSync,
                reaches: &[FAIL_OVER, JOINS_AGAIN, CANDIDATES_RACE, DONE_UNHEARD, TAIL_LIVES],
                ..COARSE
            },
        },
        Walk {
            name: "network",
            setup: Setup {
                bounds: Bounds { writes: 1, crashes: 1, resets: 1, strays: 1, ..Bounds::NONE },
                reaches: &[FAIL_OVER, JOINS_AGAIN, CANDIDATES_RACE, TAIL_LIVES],
                ..COARSE
            },
        },
        Walk {
            name: "hand-over",
            setup: Setup {
                bounds: Bounds { writes: 1, crashes: 1, moves: 1, ..Bounds::NONE },
                reaches: &[FAIL_OVER, TWO_FAIL_OVERS, JOINS_AGAIN],
                ..COARSE
            },
        },
        Walk {
            name: "drop",
            setup: Setup {
                bounds: Bounds { writes: 3, crashes: 1, resets: 1, ..Bounds::NONE },
                lockstep: true,
                reaches: &[FAIL_OVER, JOINS_AGAIN, TAIL_LIVES, ALL_WRITTEN],
                ..COARSE
            },
        },
        Walk {
            name: "sleep",
            setup: Setup {
                bounds: Bounds { writes: 1, crashes: 1, sleeps: 1, ..Bounds::NONE },
                reaches: &[FAIL_OVER, JOINS_AGAIN, CANDIDATES_RACE, TAIL_LIVES],
                ..COARSE
            },
        },
        Walk {
            name: "rollback-crash",
            setup: Setup {
                bounds: Bounds { writes: 1, crashes: 1, beats: 1, rollbacks: 1, ..Bounds::NONE },
                lockstep: true,
                reaches: &[FAIL_OVER, OLD_REGISTER, PUT_RIGHT],
                ..COARSE
            },
        },
        Walk {
            name: "lockstep",
            setup: Setup {
                bounds: Bounds { writes: 3, crashes: 1, silences: 1, resets: 1, ..Bounds::NONE },
                lockstep: true,
                reaches: &[TWO_FAIL_OVERS, JOINS_AGAIN, TAIL_LIVES, ALL_WRITTEN],
                ..COARSE
            },
        },
        Walk {
            name: "stalls",
            setup: Setup {
                bounds: Bounds { writes: 3, crashes: 1, stalls: 1, ..Bounds::NONE },
                lockstep: true,
                reaches: &[FAIL_OVER, JOINS_AGAIN, CANDIDATES_RACE, TAIL_LIVES, ALL_WRITTEN],
                ..FINE
            },
        },
    ]
}

/// What a walk came to.
struct Outcome {
    states: usize,
    steps: usize,
    depth: usize,
    time: Duration,
    /// What broke, and the shortest way there that was found.
    broken: Option<(&'static str, Vec<Action>)>,
    /// What should have been come across and was not.
    missed: Vec<&'static str>,
}

/// Walks until everything has been seen or something breaks. Breadth first finds short stories, depth first needs
/// little memory.
fn walk(setup: &Setup, breadth_first: bool) -> Outcome {
    fn outcome(checker: &impl Checker<Setup>, time: Duration) -> Outcome {
        let found = checker.discoveries();
        let mut broken: Option<(&'static str, Vec<Action>)> = None;
        let mut missed = Vec::new();
        for property in checker.model().properties() {
            let path = found.get(property.name).map(|path| path.clone().into_actions());
            match (property.expectation, path) {
                (Expectation::Always | Expectation::Eventually, Some(path)) => {
                    if broken.as_ref().is_none_or(|(_, known)| path.len() < known.len()) {
                        broken = Some((property.name, path));
                    }
                }
                (Expectation::Sometimes, None) => missed.push(property.name),
                (Expectation::Always | Expectation::Eventually, None) | (Expectation::Sometimes, Some(_)) => {
                }
            }
        }
        let (states, steps, depth) =
            (checker.unique_state_count(), checker.state_count(), checker.max_depth());
        Outcome { states, steps, depth, time, broken, missed }
    }
    let started = crate::clock::now();
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let checker = setup.checker().finish_when(HasDiscoveries::AnyFailures);
    let mut outcome = if breadth_first {
        outcome(&checker.spawn_bfs().join(), started.elapsed())
    } else {
        outcome(&checker.threads(cores).spawn_dfs().join(), started.elapsed())
    };
    if let Some((_, actions)) = &mut outcome.broken {
        *actions = shortest(setup, actions);
    }
    outcome
}

/// Leaves out whatever is not needed to break the same claim.
fn shortest(setup: &Setup, actions: &[Action]) -> Vec<Action> {
    let breaks = |actions: &[Action]| {
        let mut world = setup.initial();
        for action in actions {
            let mut possible = Vec::new();
            setup.actions(&world, &mut possible);
            if !possible.contains(action) {
                return None;
            }
            setup.apply(&mut world, *action);
        }
        world.violation.map(|violation| violation.claim)
    };
    let claim = breaks(actions);
    let mut kept = actions.to_vec();
    let mut number = 0;
    while number < kept.len() {
        let mut fewer = kept.clone();
        fewer.remove(number);
        if breaks(&fewer) == claim {
            (kept, number) = (fewer, 0);
        } else {
            number += 1;
        }
    }
    kept
}

fn walk_well(walk: &Walk) {
    let Walk { name, setup } = walk;
    let outcome = self::walk(setup, false);
    let Outcome { states, steps, depth, time, .. } = outcome;
    println!("{name}: {states} states, {steps} steps, depth {depth}, {time:.1?}");
    if let Some((claim, actions)) = outcome.broken {
        panic!(
            "{name} breaks \"{claim}\":\n{}\nrepeat with: REPLCLUSTER_MODEL={name} cargo test --lib \
             every_schedule_keeps_every_claim -- --nocapture",
            setup.tell(&actions)
        );
    }
    assert!(outcome.missed.is_empty(), "{name} never comes across: {:?}", outcome.missed);
}

/// `crashes`, or `crashes writes=3 without=NoTruncate`: a walk by its name, with other bounds or less of a rule.
fn asked_for(text: &str) -> Walk {
    let mut words = text.split_whitespace();
    let name = words.next().expect("the name of a walk");
    let known = quick().into_iter().chain(named()).find(|walk| walk.name == name);
    let mut walk = known.unwrap_or_else(|| panic!("there is no walk called {name}"));
    for word in words {
        let (key, value) = word.split_once('=').expect("key=value");
        if key == "without" {
            let rule = Rule::ALL.iter().find(|rule| format!("{rule:?}") == value);
            walk.setup.broken = Some(*rule.unwrap_or_else(|| panic!("there is no rule called {value}")));
            walk.setup.only_consequences = true;
            walk.setup.reaches = &[];
            continue;
        }
        let value = value.parse().expect("a number");
        let mut bounds = walk.setup.bounds;
        let setup = &mut walk.setup;
        match key {
            "nodes" => setup.nodes = usize::from(value),
            "writes" => bounds.writes = value,
            "crashes" => bounds.crashes = value,
            "silences" => bounds.silences = value,
            "losses" => bounds.losses = value,
            "resets" => bounds.resets = value,
            "strays" => bounds.strays = value,
            "beats" => bounds.beats = value,
            "sleeps" => bounds.sleeps = value,
            "moves" => bounds.moves = value,
            "stalls" => bounds.stalls = value,
            "rollbacks" => bounds.rollbacks = value,
            other => panic!("there is no bound called {other}"),
        }
        setup.bounds = bounds;
        setup.reaches = &[];
    }
    walk
}

#[test]
fn every_schedule_keeps_every_claim() {
    match std::env::var("REPLCLUSTER_MODEL") {
        Err(_) => quick().iter().for_each(walk_well),
        Ok(all) if all == "all" => quick().iter().chain(&named()).for_each(walk_well),
        Ok(text) => text.split(',').map(asked_for).for_each(|walk| walk_well(&walk)),
    }
}

/// The smallest worlds in which each rule is missed, with all claims and with those about consequences only.
fn switched_off() -> Vec<(Rule, Setup)> {
    let write = Bounds { writes: 1, ..Bounds::NONE };
    let crash = Bounds { crashes: 1, ..write };
    let three = Setup { bounds: crash, disks: Disks::EachSync, ..COARSE };
    let birth = |bounds| Setup { bounds, ..BIRTH };
    vec![
        (Rule::AcknowledgeBeforeDurable, three),
        (Rule::CountOwnBeforeDurable, three),
        (Rule::CommitWithoutEveryone, Setup { bounds: crash, ..COARSE }),
        (Rule::ShrinkBeforeConfirmed, Setup { bounds: Bounds { silences: 1, ..write }, ..COARSE }),
        (Rule::GrowAfterSwap, birth(write)),
        (Rule::JoinBehind, birth(write)),
        (Rule::GuessLostSwap, birth(Bounds { losses: 1, ..crash })),
        (Rule::ElectOutsideSet, birth(crash)),
        (Rule::ObeyStaleEpoch, Setup { nodes: 2, bounds: Bounds { strays: 1, ..crash }, ..three }),
        (Rule::ServeBeforeOpening, Setup { bounds: crash, ..COARSE }),
        (Rule::NoTruncate, Setup { bounds: crash, ..COARSE }),
        (Rule::ApplyUncommitted, Setup { bounds: crash, ..COARSE }),
    ]
}

/// Rules whose own claim is checked: what comes of breaking them needs more than this model has.
fn switched_off_and_claimed() -> Vec<(Rule, Setup)> {
    vec![
        (
            Rule::TrustOldRegister,
            Setup {
                bounds: Bounds { silences: 2, rollbacks: 1, ..Bounds::NONE },
                reads: Reads::Later,
                lockstep: true,
                ..COARSE
            },
        ),
        (
            Rule::JoinUndamped,
            Setup { bounds: Bounds { silences: 2, ..Bounds::NONE }, lockstep: true, ..COARSE },
        ),
    ]
}

/// A checker that cannot fail proves nothing: without any one of these rules some schedule breaks a claim. For those of
/// [`switched_off`] that is not only a claim about how the rule is followed.
#[test]
fn a_rule_that_is_switched_off_is_missed_by_some_schedule() {
    let (mut table, mut stories, mut unnoticed) = (String::new(), String::new(), Vec::new());
    for (rule, setup) in switched_off().into_iter().chain(switched_off_and_claimed()) {
        let setup = Setup { broken: Some(rule), only_consequences: true, ..setup };
        let outcome = walk(&setup, true);
        let Some((claim, actions)) = outcome.broken else {
            unnoticed.push(rule);
            continue;
        };
        let (steps, states) = (actions.len(), outcome.states);
        let _ = writeln!(table, "{rule:?}: {steps} steps ({states} states seen) break \"{claim}\"");
        let _ = writeln!(stories, "\nwithout {rule:?}:\n{}", setup.tell(&actions));
    }
    println!("{table}{stories}");
    assert!(unnoticed.is_empty(), "no schedule misses {unnoticed:?}");
}

/// R5 is not needed for what is acknowledged to last; see the head of the model for why, and for what it is needed.
#[test]
fn without_the_promise_nothing_acknowledged_is_lost_but_the_rule_is_seen_to_be_broken() {
    let bounds = Bounds { writes: 1, crashes: 1, losses: 1, ..Bounds::NONE };
    let setup = Setup { bounds, broken: Some(Rule::SkipPromise), ..BIRTH };
    let seen = walk(&setup, true).broken;
    assert_eq!(seen.map(|(claim, _)| claim), Some("whoever elects itself has its promise on disk (R5)"));
    let outcome = walk(&Setup { only_consequences: true, ..setup }, false);
    println!("{} states without a promise", outcome.states);
    assert!(outcome.broken.is_none(), "{:?}", outcome.broken);
}

/// A walk says what it should come across, and is not content with less.
#[test]
fn a_walk_without_faults_comes_across_no_fail_over() {
    let bounds = Bounds { writes: 2, ..Bounds::NONE };
    let outcome = walk(&Setup { bounds, reaches: &[FAIL_OVER], ..COARSE }, false);
    assert!(outcome.broken.is_none() && outcome.states > 100, "{} states", outcome.states);
    assert_eq!(outcome.missed, [FAIL_OVER]);
}
