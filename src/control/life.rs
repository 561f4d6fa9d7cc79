//! The life of one node's process. No process is touched here: [`Life::step`] says what to do, the supervisor does it.
//!
//! ```text
//!            Start                Spawned             Ready
//!   Down ────────────▶ Spawning ──────────▶ Starting ───────▶ Serving
//!    ▲ ▲                   ▲ │SpawnFailed      │  ▲ Resume       │
//!    │ │              Tick │ └──────────▶ Failed│ └── Paused ◀───┤ Pause
//!    │ │                   │                ▲   │                │
//!    │ └── no restart ── Waiting ── gave up ┘   ├─ Stop, Kill ───┤
//!    │                     ▲                    ▼                │
//!    └──── Exited ──── Stopping                 └─ Exited ───────┘
//! ```
//! A node that was ended on purpose (`Stop`, `Kill`) is never restarted by policy; one that ended by itself is
//! treated by [`restart`].

use std::time::Duration;

use crate::config::Restart;

use super::cause::Ended;
use super::restart::{self, Next};

/// Time since an origin of the caller's choice; only differences matter.
pub type Moment = Duration;

/// The signal that cannot be handled.
pub const SIGKILL: i32 = 9;
/// The signal that freezes.
pub const SIGSTOP: i32 = 19;
/// The signal that thaws.
pub const SIGCONT: i32 = 18;

/// Where a node's process stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing runs and nothing is due.
    Down,
    /// Being started; there is no process id yet.
    Spawning,
    /// Runs, and has not served since it was started.
    Starting,
    /// Runs and has served since the moment given.
    Serving {
        /// When it said so first.
        since: Moment,
    },
    /// Frozen on purpose.
    Paused {
        /// Since when it had served before, if it had.
        served_since: Option<Moment>,
    },
    /// Runs, and was told to end.
    Stopping {
        /// When patience ends and it is killed; `None` where it was killed or signalled on purpose.
        deadline: Option<Moment>,
        /// Whether it is to run again afterwards.
        then_start: bool,
    },
    /// Ended by itself and is started again at the moment given.
    Waiting {
        /// When.
        until: Moment,
    },
    /// Ended by itself too often, or cannot be started: needs the operator.
    Failed,
}

/// What happens to a node's process.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event {
    /// The operator wants it to run.
    Start,
    /// The operator wants it to end gracefully and stay down.
    Stop {
        /// When patience ends.
        deadline: Moment,
    },
    /// The operator wants it to end gracefully and run again.
    Restart {
        /// When patience ends.
        deadline: Moment,
    },
    /// The operator sends a signal that ends it; it stays down.
    Kill {
        /// Which signal.
        signal: i32,
    },
    /// The operator freezes it.
    Pause,
    /// The operator thaws it.
    Resume,
    /// A process was started.
    Spawned,
    /// A process could not be started.
    SpawnFailed,
    /// A process that was started earlier, by a supervisor now dead, was found alive.
    Adopted {
        /// Found frozen.
        paused: bool,
    },
    /// The node says that it serves.
    Ready,
    /// The process ended.
    Exited {
        /// How.
        ended: Ended,
        /// A number in 0..1 from the caller's dice: takes a little off the wait before a restart.
        chance: f64,
    },
    /// Time went by.
    Tick,
}

/// What the supervisor has to do, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start a process, then report `Spawned` or `SpawnFailed`.
    Spawn,
    /// Ask the process to end gracefully.
    Terminate,
    /// Send the process this signal.
    Signal(i32),
    /// Tell that the node was given up.
    GaveUp,
}

/// What became of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was taken; do this.
    Accepted(Vec<Action>),
    /// It changes nothing: what it asks for is so already, or it is late news.
    Ignored,
    /// It cannot be done now.
    Denied(Denial),
}

/// Why a command cannot be carried out now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// There is no process.
    #[error("it is not running")]
    NotRunning,
    /// There is a process that was told to end.
    #[error("it is stopping")]
    Stopping,
    /// A process is being started this very moment.
    #[error("it is just being started")]
    Spawning,
    /// Only what is paused can be resumed.
    #[error("it is not paused")]
    NotPaused,
}

/// A node's process and what has to be remembered of its past.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    /// Where it stands.
    pub state: State,
    /// Exits in a row that nobody asked for, without a stable time of service between them.
    pub failures: u32,
}

impl Default for Life {
    fn default() -> Life {
        Life { state: State::Down, failures: 0 }
    }
}

impl Life {
    /// Takes one event.
    pub fn step(&mut self, policy: Restart, now: Moment, event: Event) -> Answer {
        use State::{Down, Failed, Paused, Serving, Spawning, Starting, Stopping, Waiting};
        match (self.state, event) {
            (Down | Failed, Event::Start | Event::Restart { .. }) => self.start(),
            (Waiting { .. }, Event::Start | Event::Restart { .. }) => self.start(),
            (Stopping { deadline, .. }, Event::Start) => {
                self.go(Stopping { deadline, then_start: true }, vec![])
            }
            (Spawning | Starting | Serving { .. }, Event::Start) => Answer::Ignored,
            (Paused { served_since }, Event::Start | Event::Resume) => {
                self.go(awake(served_since), vec![Action::Signal(SIGCONT)])
            }

            (Starting | Serving { .. }, Event::Restart { deadline }) => self.stop(deadline, true, vec![]),
            (Paused { .. }, Event::Restart { deadline }) => {
                self.stop(deadline, true, vec![Action::Signal(SIGCONT)])
            }
            (Stopping { deadline, .. }, Event::Restart { .. }) => {
                self.go(Stopping { deadline, then_start: true }, vec![])
            }

            (Starting | Serving { .. }, Event::Stop { deadline }) => self.stop(deadline, false, vec![]),
            (Paused { .. }, Event::Stop { deadline }) => {
                self.stop(deadline, false, vec![Action::Signal(SIGCONT)])
            }
            // A stop that comes after another asks again, and may be less patient.
            (Stopping { deadline: earlier, .. }, Event::Stop { deadline }) => {
                let deadline = earlier.map_or(deadline, |earlier| earlier.min(deadline));
                self.go(Stopping { deadline: Some(deadline), then_start: false }, vec![Action::Terminate])
            }
            (Waiting { .. } | Failed, Event::Stop { .. }) => self.go(Down, vec![]),
            (Down, Event::Stop { .. }) => Answer::Ignored,

            (Starting | Serving { .. }, Event::Kill { signal }) => self.kill(vec![Action::Signal(signal)]),
            // A frozen process would not feel anything but SIGKILL until it is thawed.
            (Paused { .. }, Event::Kill { signal: SIGKILL }) => self.kill(vec![Action::Signal(SIGKILL)]),
            (Paused { .. }, Event::Kill { signal }) => {
                self.kill(vec![Action::Signal(signal), Action::Signal(SIGCONT)])
            }
            (Stopping { .. }, Event::Kill { signal }) => self.kill(vec![Action::Signal(signal)]),
            (Down | Waiting { .. } | Failed, Event::Kill { .. }) => Answer::Denied(Denial::NotRunning),

            (Starting, Event::Pause) => self.go(Paused { served_since: None }, vec![Action::Signal(SIGSTOP)]),
            (Serving { since }, Event::Pause) => {
                self.go(Paused { served_since: Some(since) }, vec![Action::Signal(SIGSTOP)])
            }
            (Paused { .. }, Event::Pause) => Answer::Ignored,
            (Stopping { .. }, Event::Pause | Event::Resume) => Answer::Denied(Denial::Stopping),
            (Down | Waiting { .. } | Failed, Event::Pause | Event::Resume) => {
                Answer::Denied(Denial::NotRunning)
            }
            (Starting | Serving { .. }, Event::Resume) => Answer::Denied(Denial::NotPaused),

            (
                Spawning,
                Event::Restart { .. }
                | Event::Stop { .. }
                | Event::Kill { .. }
                | Event::Pause
                | Event::Resume,
            ) => Answer::Denied(Denial::Spawning),

            (Spawning, Event::Spawned) => self.go(Starting, vec![]),
            // Whoever failed to start it knows why, and tells.
            (Spawning, Event::SpawnFailed) => self.go(Failed, vec![]),
            (
                Down | Starting | Serving { .. } | Paused { .. } | Stopping { .. } | Waiting { .. } | Failed,
                Event::Spawned | Event::SpawnFailed,
            ) => Answer::Ignored,

            (Down | Waiting { .. } | Failed, Event::Adopted { paused: false }) => self.go(Starting, vec![]),
            (Down | Waiting { .. } | Failed, Event::Adopted { paused: true }) => {
                self.go(Paused { served_since: None }, vec![])
            }
            (
                Spawning | Starting | Serving { .. } | Paused { .. } | Stopping { .. },
                Event::Adopted { .. },
            ) => Answer::Ignored,

            (Starting, Event::Ready) => self.go(Serving { since: now }, vec![]),
            (
                Down | Spawning | Serving { .. } | Paused { .. } | Stopping { .. } | Waiting { .. } | Failed,
                Event::Ready,
            ) => Answer::Ignored,

            (Starting, Event::Exited { ended, chance }) => self.fell(policy, now, (ended, chance), None),
            (Serving { since }, Event::Exited { ended, chance }) => {
                self.fell(policy, now, (ended, chance), Some(since))
            }
            (Paused { served_since }, Event::Exited { ended, chance }) => {
                self.fell(policy, now, (ended, chance), served_since)
            }
            (Stopping { then_start: true, .. }, Event::Exited { .. }) => self.start(),
            (Stopping { then_start: false, .. }, Event::Exited { .. }) => self.go(Down, vec![]),
            (Down | Spawning | Waiting { .. } | Failed, Event::Exited { .. }) => Answer::Ignored,

            (Waiting { until }, Event::Tick) if now >= until => self.go(Spawning, vec![Action::Spawn]),
            (Stopping { deadline: Some(deadline), then_start }, Event::Tick) if now >= deadline => {
                self.go(Stopping { deadline: None, then_start }, vec![Action::Signal(SIGKILL)])
            }
            (Serving { since }, Event::Tick) if self.failures > 0 && now >= since + restart::STABLE_AFTER => {
                self.failures = 0;
                Answer::Accepted(vec![])
            }
            (
                Down
                | Spawning
                | Starting
                | Serving { .. }
                | Paused { .. }
                | Stopping { .. }
                | Waiting { .. }
                | Failed,
                Event::Tick,
            ) => Answer::Ignored,
        }
    }

    /// When `Tick` is next of use, if ever.
    #[must_use]
    pub fn due(&self) -> Option<Moment> {
        match self.state {
            State::Waiting { until } => Some(until),
            State::Stopping { deadline, .. } => deadline,
            State::Serving { since } if self.failures > 0 => Some(since + restart::STABLE_AFTER),
            State::Down
            | State::Spawning
            | State::Starting
            | State::Serving { .. }
            | State::Paused { .. }
            | State::Failed => None,
        }
    }

    /// True while a process exists.
    #[must_use]
    pub fn runs(&self) -> bool {
        match self.state {
            State::Starting | State::Serving { .. } | State::Paused { .. } | State::Stopping { .. } => true,
            State::Down | State::Spawning | State::Waiting { .. } | State::Failed => false,
        }
    }

    fn start(&mut self) -> Answer {
        self.failures = 0;
        self.go(State::Spawning, vec![Action::Spawn])
    }

    fn stop(&mut self, deadline: Moment, then_start: bool, mut first: Vec<Action>) -> Answer {
        first.push(Action::Terminate);
        self.go(State::Stopping { deadline: Some(deadline), then_start }, first)
    }

    fn kill(&mut self, actions: Vec<Action>) -> Answer {
        self.go(State::Stopping { deadline: None, then_start: false }, actions)
    }

    fn fell(
        &mut self,
        policy: Restart,
        now: Moment,
        (ended, chance): (Ended, f64),
        served_since: Option<Moment>,
    ) -> Answer {
        if served_since.is_some_and(|since| now >= since + restart::STABLE_AFTER) {
            self.failures = 0;
        }
        self.failures += 1;
        match restart::next(policy, ended, self.failures, chance) {
            Next::RestartAfter(delay) => self.go(State::Waiting { until: now + delay }, vec![]),
            Next::Stay => self.go(State::Down, vec![]),
            Next::GiveUp => self.go(State::Failed, vec![Action::GaveUp]),
        }
    }

    fn go(&mut self, state: State, actions: Vec<Action>) -> Answer {
        self.state = state;
        Answer::Accepted(actions)
    }
}

fn awake(served_since: Option<Moment>) -> State {
    served_since.map_or(State::Starting, |since| State::Serving { since })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const AT: fn(u64) -> Moment = Duration::from_secs;
    const CRASH: Ended = Ended { code: None, signal: Some(11) };

    fn exited(ended: Ended) -> Event {
        Event::Exited { ended, chance: 0.0 }
    }

    fn states() -> Vec<State> {
        vec![
            State::Down,
            State::Spawning,
            State::Starting,
            State::Serving { since: AT(5) },
            State::Paused { served_since: Some(AT(5)) },
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
            Event::SpawnFailed,
            Event::Adopted { paused: false },
            Event::Ready,
            exited(CRASH),
            Event::Tick,
        ]
    }

    /// One letter a pair: what became of the event, and where the node stands then.
    fn cell(state: State, event: Event) -> String {
        let mut life = Life { state, failures: 0 };
        let answer = match life.step(Restart::OnFailure, AT(10), event) {
            Answer::Accepted(actions) => {
                let name = match life.state {
                    State::Down => "down",
                    State::Spawning => "spawning",
                    State::Starting => "starting",
                    State::Serving { .. } => "serving",
                    State::Paused { .. } => "paused",
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
            "spawning1 -         spawning1  no        no      no       -         -       starting0 -        -        -",
            "-         no        no         no        no      no       starting0 failed0 -         -        -        -",
            "-         stopping1 stopping+1 stopping1 paused1 no       -         -       -         serving0 waiting0 -",
            "-         stopping1 stopping+1 stopping1 paused1 no       -         -       -         -        waiting0 -",
            "serving1  stopping2 stopping+2 stopping1 -       serving1 -         -       -         -        waiting0 -",
            "stopping+0 stopping1 stopping+0 stopping1 no     no       -         -       -         -        down0    -",
            "spawning1 down0     spawning1  no        no      no       -         -       starting0 -        -        -",
            "spawning1 down0     spawning1  no        no      no       -         -       starting0 -        -        -",
        ];
        for (state, row) in states().into_iter().zip(table) {
            let expected: Vec<&str> = row.split_whitespace().collect();
            let got: Vec<String> = events().into_iter().map(|event| cell(state, event)).collect();
            assert_eq!(got, expected, "{state:?}");
        }
    }

    #[test]
    fn a_crash_is_restarted_when_its_delay_is_over_and_not_before() {
        let mut life = Life { state: State::Starting, failures: 0 };
        life.step(Restart::OnFailure, AT(10), exited(CRASH));
        let until = life.due().unwrap();
        assert_eq!(until, AT(10) + restart::FIRST_DELAY);
        assert_eq!(
            life.step(Restart::OnFailure, until - Duration::from_millis(1), Event::Tick),
            Answer::Ignored
        );
        assert_eq!(life.step(Restart::OnFailure, until, Event::Tick), Answer::Accepted(vec![Action::Spawn]));
    }

    #[test]
    fn crashing_on_ends_in_failed_and_start_tries_again() {
        let mut life = Life { state: State::Starting, failures: 0 };
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
        assert_eq!(life.failures, 0);
    }

    #[test]
    fn a_stable_time_of_service_forgives_and_a_short_one_does_not() {
        let mut life = Life { state: State::Serving { since: AT(100) }, failures: 5 };
        life.step(Restart::OnFailure, AT(101), exited(CRASH));
        assert_eq!(life.failures, 6);
        let mut life = Life { state: State::Serving { since: AT(100) }, failures: 5 };
        life.step(Restart::OnFailure, AT(100) + restart::STABLE_AFTER, exited(CRASH));
        assert_eq!(life.failures, 1);
        let mut life = Life { state: State::Serving { since: AT(100) }, failures: 5 };
        assert_eq!(life.step(Restart::OnFailure, life.due().unwrap(), Event::Tick), Answer::Accepted(vec![]));
        assert_eq!((life.failures, life.due()), (0, None));
    }

    #[test]
    fn a_killed_node_stays_down_whatever_the_policy() {
        for policy in [Restart::OnFailure, Restart::Always, Restart::Never] {
            let mut life = Life { state: State::Serving { since: AT(0) }, failures: 0 };
            life.step(policy, AT(1), Event::Kill { signal: SIGKILL });
            life.step(policy, AT(1), exited(Ended { code: None, signal: Some(9) }));
            assert_eq!((life.state, life.due()), (State::Down, None));
        }
    }

    #[test]
    fn a_stop_that_takes_too_long_becomes_a_kill_once() {
        let mut life = Life { state: State::Starting, failures: 0 };
        life.step(Restart::OnFailure, AT(1), Event::Stop { deadline: AT(3) });
        assert_eq!(life.due(), Some(AT(3)));
        assert_eq!(life.step(Restart::OnFailure, AT(2), Event::Tick), Answer::Ignored);
        let killed = Answer::Accepted(vec![Action::Signal(SIGKILL)]);
        assert_eq!(life.step(Restart::OnFailure, AT(3), Event::Tick), killed);
        assert_eq!(life.step(Restart::OnFailure, AT(4), Event::Tick), Answer::Ignored);
    }

    #[test]
    fn a_start_during_a_stop_starts_it_again_afterwards() {
        let mut life = Life { state: State::Serving { since: AT(0) }, failures: 0 };
        life.step(Restart::Never, AT(1), Event::Stop { deadline: AT(3) });
        life.step(Restart::Never, AT(1), Event::Start);
        let answer = life.step(Restart::Never, AT(2), exited(Ended { code: Some(0), signal: None }));
        assert_eq!(answer, Answer::Accepted(vec![Action::Spawn]));
    }

    #[test]
    fn a_frozen_node_feels_a_gentle_signal_only_when_thawed() {
        let mut life = Life { state: State::Paused { served_since: None }, failures: 0 };
        let answer = life.step(Restart::Never, AT(1), Event::Kill { signal: 15 });
        assert_eq!(answer, Answer::Accepted(vec![Action::Signal(15), Action::Signal(SIGCONT)]));
    }
}
