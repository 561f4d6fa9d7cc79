//! Every event in every state, and the lives that the table does not show.

use super::*;
use std::time::Duration;

const AT: fn(u64) -> Moment = Duration::from_secs;
const CRASH: Ended = Ended { code: None, signal: Some(11) };

fn exited(ended: Ended) -> Event {
    Event::Exited { ended, outside: false, chance: 0.0 }
}

fn states() -> Vec<State> {
    vec![
        State::Down,
        State::Spawning,
        State::Starting,
        State::Serving { since: AT(5), last: AT(9) },
        State::Paused { served: true },
        State::Signalled { deadline: AT(50), served: true },
        State::Stopping { deadline: Some(AT(50)), then_start: false },
        State::Waiting { until: AT(50) },
        State::Failed,
    ]
}

fn events() -> Vec<Event> {
    vec![
        Event::Start,
        Event::Stop { deadline: AT(60) },
        Event::Restart { deadline: AT(60) },
        Event::Kill { signal: SIGKILL },
        Event::Pause,
        Event::Resume,
        Event::Spawned,
        Event::SpawnFailed { lasting: true, chance: 0.0 },
        Event::Adopted { paused: false },
        Event::Ready,
        Event::Behind,
        exited(CRASH),
        Event::Tick,
    ]
}

/// One letter a pair: what became of the event, and where the node stands then.
fn cell(state: State, event: Event) -> String {
    let mut life = Life { state, failures: Failures::default() };
    let answer = match life.step(Restart::OnFailure, AT(10), event) {
        Answer::Accepted(actions) => {
            let name = match life.state {
                State::Down => "down",
                State::Spawning => "spawning",
                State::Starting => "starting",
                State::Serving { .. } => "serving",
                State::Paused { .. } => "paused",
                State::Signalled { .. } => "signalled",
                State::Stopping { then_start: false, .. } => "stopping",
                State::Stopping { then_start: true, .. } => "stopping+",
                State::Waiting { .. } => "waiting",
                State::Failed => "failed",
            };
            format!("{name}{}", actions.len())
        }
        Answer::Ignored => "-".to_owned(),
        Answer::Denied(_) => "no".to_owned(),
    };
    if answer == "-" || answer == "no" {
        assert_eq!(life.state, state, "what is not accepted changes nothing");
    }
    answer
}

#[test]
fn every_event_in_every_state_has_the_answer_of_the_table() {
    // Rows are states, columns are events in the order of `events()`; the digit counts the actions.
    let table = [
        "spawning1 -         spawning1  no        no      no       -         -       starting0 -        -        -        -",
        "-         no        no         no        no      no       starting0 failed0 -         -        -        -        -",
        "-         stopping1 stopping+1 stopping1 paused1 no       -         -       -         serving0 -        waiting0 -",
        "-         stopping1 stopping+1 stopping1 paused1 no       -         -       -         serving0 serving0 waiting0 -",
        "serving1  stopping2 stopping+2 stopping1 -       serving1 -         -       -         -        -        waiting0 -",
        "stopping+0 stopping1 stopping+1 stopping1 no     no       -         -       -         -        -        down0    -",
        "stopping+0 stopping1 stopping+1 stopping1 no     no       -         -       -         -        -        down0    -",
        "spawning1 down0     spawning1  no        no      no       -         -       starting0 -        -        -        -",
        "spawning1 down0     spawning1  no        no      no       -         -       starting0 -        -        -        -",
    ];
    for (state, row) in states().into_iter().zip(table) {
        let expected: Vec<&str> = row.split_whitespace().collect();
        let got: Vec<String> = events().into_iter().map(|event| cell(state, event)).collect();
        assert_eq!(got, expected, "{state:?}");
    }
}

#[test]
fn a_crash_is_restarted_when_its_delay_is_over_and_not_before() {
    let mut life = Life { state: State::Starting, failures: Failures::default() };
    life.step(Restart::OnFailure, AT(10), exited(CRASH));
    let until = life.due().unwrap();
    assert_eq!(until, AT(10) + restart::FIRST_DELAY);
    assert_eq!(life.step(Restart::OnFailure, until - Duration::from_millis(1), Event::Tick), Answer::Ignored);
    assert_eq!(life.step(Restart::OnFailure, until, Event::Tick), Answer::Accepted(vec![Action::Spawn]));
}

#[test]
fn crashing_on_ends_in_failed_and_start_tries_again() {
    let mut life = Life { state: State::Starting, failures: Failures::default() };
    let mut now = AT(0);
    for crash in 1..=restart::GIVE_UP_AFTER {
        let answer = life.step(Restart::OnFailure, now, exited(CRASH));
        if crash == restart::GIVE_UP_AFTER {
            assert_eq!(answer, Answer::Accepted(vec![Action::GaveUp]));
            break;
        }
        now = life.due().unwrap();
        life.step(Restart::OnFailure, now, Event::Tick);
        life.step(Restart::OnFailure, now, Event::Spawned);
    }
    assert_eq!(life.state, State::Failed);
    assert_eq!(life.step(Restart::OnFailure, now, Event::Start), Answer::Accepted(vec![Action::Spawn]));
    assert_eq!(life.failures.all, 0);
}

#[test]
fn what_another_does_to_a_node_never_gives_it_up_and_does_not_count_as_its_own() {
    let mut life = Life { state: State::Starting, failures: Failures::default() };
    let mut now = AT(0);
    let killed = Event::Exited { ended: Ended { code: None, signal: Some(9) }, outside: true, chance: 0.0 };
    for _ in 0..5 * restart::GIVE_UP_AFTER {
        life.step(Restart::OnFailure, now, killed);
        let due = life.due().expect("another try");
        assert!(due - now <= restart::LONGEST_WAIT);
        now = due;
        life.step(Restart::OnFailure, now, Event::Tick);
        life.step(Restart::OnFailure, now, Event::Spawned);
    }
    life.step(Restart::OnFailure, now, exited(CRASH));
    assert!(matches!(life.state, State::Waiting { .. }), "its first failure of its own: {life:?}");
}

#[test]
fn a_stable_time_of_service_forgives_and_a_short_one_does_not() {
    let mut life = served_for(1);
    life.step(Restart::OnFailure, AT(101), exited(CRASH));
    assert_eq!(life.failures.all, 6);
    let mut life = served_for(restart::STABLE_AFTER.as_secs());
    assert_eq!(life.failures.all, 0);
    life.step(Restart::OnFailure, AT(200), exited(CRASH));
    assert_eq!(life.failures.all, 1);
}

/// After five failures, and with an answer every second for so long from the hundredth second on.
fn served_for(seconds: u64) -> Life {
    let mut life = Life { state: State::Starting, failures: Failures { all: 5, own: 5 } };
    for second in 0..=seconds {
        life.step(Restart::OnFailure, AT(100 + second), Event::Ready);
    }
    life
}

#[test]
fn time_frozen_or_silent_or_out_of_sync_is_no_time_of_service() {
    let on = Restart::OnFailure;
    let mut frozen = served_for(1);
    frozen.step(on, AT(101), Event::Pause);
    frozen.step(on, AT(500), Event::Resume);
    frozen.step(on, AT(501), Event::Ready);
    let mut silent = served_for(1);
    silent.step(on, AT(500), Event::Ready);
    let mut behind = served_for(1);
    for second in 102..500 {
        behind.step(on, AT(second), Event::Behind);
    }
    behind.step(on, AT(500), Event::Ready);
    for mut life in [frozen, silent, behind] {
        assert_eq!(life.failures.all, 5);
        life.step(on, AT(502), exited(CRASH));
        assert_eq!(life.failures.all, 6);
    }
}

#[test]
fn a_signal_that_does_not_end_a_process_leaves_it_as_it_was_after_a_while() {
    for (state, after) in [
        (State::Starting, State::Starting),
        (State::Serving { since: AT(0), last: AT(9) }, State::Serving { since: AT(20), last: AT(20) }),
        (State::Paused { served: false }, State::Starting),
    ] {
        let mut life = Life { state, failures: Failures::default() };
        life.step(Restart::OnFailure, AT(10), Event::Kill { signal: 15 });
        assert_eq!(life.due(), Some(AT(10) + SIGNAL_PATIENCE));
        assert_eq!(life.step(Restart::OnFailure, AT(19), Event::Tick), Answer::Ignored);
        let outlived = Answer::Accepted(vec![Action::Outlived]);
        assert_eq!(life.step(Restart::OnFailure, AT(20), Event::Tick), outlived);
        assert_eq!(life.state, after);
        life.step(Restart::OnFailure, AT(21), exited(CRASH));
        assert_eq!(
            (life.state, life.failures.all),
            (State::Waiting { until: AT(21) + restart::FIRST_DELAY }, 1)
        );
    }
}

#[test]
fn a_start_that_fails_for_the_moment_is_tried_again_and_one_that_cannot_succeed_is_not() {
    let failed = |policy, lasting| {
        let mut life = Life { state: State::Spawning, failures: Failures::default() };
        life.step(policy, AT(10), Event::SpawnFailed { lasting, chance: 0.0 });
        life
    };
    let again = failed(Restart::OnFailure, false);
    assert_eq!(
        (again.state, again.failures.all),
        (State::Waiting { until: AT(10) + restart::FIRST_DELAY }, 1)
    );
    assert_eq!(failed(Restart::OnFailure, true).state, State::Failed);
    assert_eq!(failed(Restart::Never, false).state, State::Down);
}

#[test]
fn a_restart_during_a_stop_asks_again_and_keeps_the_earlier_deadline() {
    let mut life = Life { state: State::Starting, failures: Failures::default() };
    life.step(Restart::Never, AT(1), Event::Stop { deadline: AT(3) });
    let answer = life.step(Restart::Never, AT(2), Event::Restart { deadline: AT(9) });
    assert_eq!(answer, Answer::Accepted(vec![Action::Terminate]));
    assert_eq!(life.state, State::Stopping { deadline: Some(AT(3)), then_start: true });
}

#[test]
fn a_killed_node_stays_down_whatever_the_policy() {
    for policy in [Restart::OnFailure, Restart::Always, Restart::Never] {
        let mut life =
            Life { state: State::Serving { since: AT(0), last: AT(0) }, failures: Failures::default() };
        life.step(policy, AT(1), Event::Kill { signal: SIGKILL });
        life.step(policy, AT(1), exited(Ended { code: None, signal: Some(9) }));
        assert_eq!((life.state, life.due()), (State::Down, None));
    }
}

#[test]
fn a_stop_that_takes_too_long_becomes_a_kill_once() {
    let mut life = Life { state: State::Starting, failures: Failures::default() };
    life.step(Restart::OnFailure, AT(1), Event::Stop { deadline: AT(3) });
    assert_eq!(life.due(), Some(AT(3)));
    assert_eq!(life.step(Restart::OnFailure, AT(2), Event::Tick), Answer::Ignored);
    let killed = Answer::Accepted(vec![Action::Signal(SIGKILL)]);
    assert_eq!(life.step(Restart::OnFailure, AT(3), Event::Tick), killed);
    assert_eq!(life.step(Restart::OnFailure, AT(4), Event::Tick), Answer::Ignored);
}

#[test]
fn a_start_during_a_stop_starts_it_again_afterwards() {
    let mut life =
        Life { state: State::Serving { since: AT(0), last: AT(0) }, failures: Failures::default() };
    life.step(Restart::Never, AT(1), Event::Stop { deadline: AT(3) });
    life.step(Restart::Never, AT(1), Event::Start);
    let answer = life.step(Restart::Never, AT(2), exited(Ended { code: Some(0), signal: None }));
    assert_eq!(answer, Answer::Accepted(vec![Action::Spawn]));
}

#[test]
fn a_frozen_node_feels_a_gentle_signal_only_when_thawed() {
    let mut life = Life { state: State::Paused { served: false }, failures: Failures::default() };
    let answer = life.step(Restart::Never, AT(1), Event::Kill { signal: 15 });
    assert_eq!(answer, Answer::Accepted(vec![Action::Signal(15), Action::Signal(SIGCONT)]));
}
