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
//! treated by [`restart`]. A signal that need not end a process (any but SIGKILL) leads to `Signalled`: from there back
//! to where it was if the process still lives after [`SIGNAL_PATIENCE`], and else as from `Stopping`.

use std::time::Duration;

use crate::config::Restart;

use super::cause::Ended;
use super::restart::{self, Failures, Next};

/// Time since an origin of the caller's choice; only differences matter.
pub type Moment = Duration;

/// The signal that cannot be handled.
pub const SIGKILL: i32 = 9;
/// The signal that freezes.
pub const SIGSTOP: i32 = 19;
/// The signal that thaws.
pub const SIGCONT: i32 = 18;
/// How long a process may take to end by a signal of the operator's choice before that counts as without effect.
pub const SIGNAL_PATIENCE: Duration = Duration::from_secs(10);

/// Where a node's process stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing runs and nothing is due.
    Down,
    /// Being started; there is no process id yet.
    Spawning,
    /// Runs, and has not served since it was started.
    Starting,
    /// Runs and has served.
    Serving {
        /// Since when every answer of it said so, without a long silence.
        since: Moment,
        /// When it said so last.
        last: Moment,
    },
    /// Frozen on purpose.
    Paused {
        /// It had served before.
        served: bool,
    },
    /// Runs, and got a signal that may end it.
    Signalled {
        /// When it counts as not ended by that.
        deadline: Moment,
        /// It had served before.
        served: bool,
    },
    /// Runs, and was told to end.
    Stopping {
        /// When patience ends and it is killed; `None` where it was killed already.
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
    SpawnFailed {
        /// Another try would fail as well.
        lasting: bool,
        /// As in `Exited`.
        chance: f64,
    },
    /// A process that was started earlier, by a supervisor now dead, was found alive.
    Adopted {
        /// Found frozen.
        paused: bool,
    },
    /// The node says that it serves; again and again.
    Ready,
    /// The node says that it does not.
    Behind,
    /// The process ended.
    Exited {
        /// How.
        ended: Ended,
        /// What it ended by lies outside of it and may pass.
        outside: bool,
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
    /// Tell that the signal has not ended the process: the node goes on as before.
    Outlived,
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
    pub failures: Failures,
}

impl Default for Life {
    fn default() -> Life {
        Life { state: State::Down, failures: Failures::default() }
    }
}

impl Life {
    /// Takes one event.
    pub fn step(&mut self, policy: Restart, now: Moment, event: Event) -> Answer {
        use State::{Down, Failed, Paused, Serving, Signalled, Spawning, Starting, Stopping, Waiting};
        match (self.state, event) {
            (Down | Failed, Event::Start | Event::Restart { .. }) => self.start(),
            (Waiting { .. }, Event::Start | Event::Restart { .. }) => self.start(),
            (Stopping { deadline, .. }, Event::Start) => {
                self.go(Stopping { deadline, then_start: true }, vec![])
            }
            // It was to end; that it is to run now does not undo that.
            (Signalled { deadline, .. }, Event::Start) => {
                self.go(Stopping { deadline: Some(deadline), then_start: true }, vec![])
            }
            (Spawning | Starting | Serving { .. }, Event::Start) => Answer::Ignored,
            (Paused { served }, Event::Start | Event::Resume) => {
                self.go(awake(served, now), vec![Action::Signal(SIGCONT)])
            }

            (Starting | Serving { .. } | Signalled { .. }, Event::Restart { deadline }) => {
                self.stop(deadline, true, vec![])
            }
            (Paused { .. }, Event::Restart { deadline }) => {
                self.stop(deadline, true, vec![Action::Signal(SIGCONT)])
            }
            (Stopping { deadline: earlier, .. }, Event::Restart { deadline }) => {
                self.stop(sooner(earlier, deadline), true, vec![])
            }

            (Starting | Serving { .. } | Signalled { .. }, Event::Stop { deadline }) => {
                self.stop(deadline, false, vec![])
            }
            (Paused { .. }, Event::Stop { deadline }) => {
                self.stop(deadline, false, vec![Action::Signal(SIGCONT)])
            }
            // A stop that comes after another asks again, and may be less patient.
            (Stopping { deadline: earlier, .. }, Event::Stop { deadline }) => {
                self.stop(sooner(earlier, deadline), false, vec![])
            }
            (Waiting { .. } | Failed, Event::Stop { .. }) => self.go(Down, vec![]),
            (Down, Event::Stop { .. }) => Answer::Ignored,

            (
                Starting | Serving { .. } | Paused { .. } | Signalled { .. } | Stopping { .. },
                Event::Kill { signal: SIGKILL },
            ) => self.go(Stopping { deadline: None, then_start: false }, vec![Action::Signal(SIGKILL)]),
            (Starting, Event::Kill { signal }) => self.hit(now, false, vec![Action::Signal(signal)]),
            (Serving { .. }, Event::Kill { signal }) => self.hit(now, true, vec![Action::Signal(signal)]),
            (Signalled { served, .. }, Event::Kill { signal }) => {
                self.hit(now, served, vec![Action::Signal(signal)])
            }
            // A frozen process would not feel anything but SIGKILL until it is thawed.
            (Paused { served }, Event::Kill { signal }) => {
                self.hit(now, served, vec![Action::Signal(signal), Action::Signal(SIGCONT)])
            }
            // It is to end already, and will.
            (Stopping { deadline, .. }, Event::Kill { signal }) => {
                self.go(Stopping { deadline, then_start: false }, vec![Action::Signal(signal)])
            }
            (Down | Waiting { .. } | Failed, Event::Kill { .. }) => Answer::Denied(Denial::NotRunning),

            (Starting, Event::Pause) => self.go(Paused { served: false }, vec![Action::Signal(SIGSTOP)]),
            (Serving { .. }, Event::Pause) => self.go(Paused { served: true }, vec![Action::Signal(SIGSTOP)]),
            (Paused { .. }, Event::Pause) => Answer::Ignored,
            (Stopping { .. } | Signalled { .. }, Event::Pause | Event::Resume) => {
                Answer::Denied(Denial::Stopping)
            }
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
            (Spawning, Event::SpawnFailed { lasting: true, .. }) => self.go(Failed, vec![]),
            (Spawning, Event::SpawnFailed { lasting: false, chance }) => {
                // No memory, no descriptors, a full disk: all outside of the node.
                self.fell(policy, now, (Ended::default(), true, chance), false);
                Answer::Accepted(vec![])
            }
            (
                Down
                | Starting
                | Serving { .. }
                | Paused { .. }
                | Signalled { .. }
                | Stopping { .. }
                | Waiting { .. }
                | Failed,
                Event::Spawned | Event::SpawnFailed { .. },
            ) => Answer::Ignored,

            (Down | Waiting { .. } | Failed, Event::Adopted { paused: false }) => self.go(Starting, vec![]),
            (Down | Waiting { .. } | Failed, Event::Adopted { paused: true }) => {
                self.go(Paused { served: false }, vec![])
            }
            (
                Spawning | Starting | Serving { .. } | Paused { .. } | Signalled { .. } | Stopping { .. },
                Event::Adopted { .. },
            ) => Answer::Ignored,

            (Starting, Event::Ready) => self.go(awake(true, now), vec![]),
            (Serving { since, last }, Event::Ready) => {
                let since = if now > last + restart::LONGEST_SILENCE { now } else { since };
                if is_stable(since, now) {
                    self.failures = Failures::default();
                }
                self.go(Serving { since, last: now }, vec![])
            }
            (Serving { .. }, Event::Behind) => self.go(awake(true, now), vec![]),
            (
                Down
                | Spawning
                | Paused { .. }
                | Signalled { .. }
                | Stopping { .. }
                | Waiting { .. }
                | Failed,
                Event::Ready | Event::Behind,
            )
            | (Starting, Event::Behind) => Answer::Ignored,

            (Starting | Paused { .. }, Event::Exited { ended, outside, chance }) => {
                self.fell(policy, now, (ended, outside, chance), false)
            }
            (Serving { since, last }, Event::Exited { ended, outside, chance }) => {
                self.fell(policy, now, (ended, outside, chance), is_stable(since, last))
            }
            (Stopping { then_start: true, .. }, Event::Exited { .. }) => self.start(),
            (Stopping { then_start: false, .. } | Signalled { .. }, Event::Exited { .. }) => {
                self.go(Down, vec![])
            }
            (Down | Spawning | Waiting { .. } | Failed, Event::Exited { .. }) => Answer::Ignored,

            (Waiting { until }, Event::Tick) if now >= until => self.go(Spawning, vec![Action::Spawn]),
            (Stopping { deadline: Some(deadline), then_start }, Event::Tick) if now >= deadline => {
                self.go(Stopping { deadline: None, then_start }, vec![Action::Signal(SIGKILL)])
            }
            (Signalled { deadline, served }, Event::Tick) if now >= deadline => {
                self.go(awake(served, now), vec![Action::Outlived])
            }
            (
                Down
                | Spawning
                | Starting
                | Serving { .. }
                | Paused { .. }
                | Signalled { .. }
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
            State::Signalled { deadline, .. } => Some(deadline),
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
            State::Starting
            | State::Serving { .. }
            | State::Paused { .. }
            | State::Signalled { .. }
            | State::Stopping { .. } => true,
            State::Down | State::Spawning | State::Waiting { .. } | State::Failed => false,
        }
    }

    fn start(&mut self) -> Answer {
        self.failures = Failures::default();
        self.go(State::Spawning, vec![Action::Spawn])
    }

    fn stop(&mut self, deadline: Moment, then_start: bool, mut first: Vec<Action>) -> Answer {
        first.push(Action::Terminate);
        self.go(State::Stopping { deadline: Some(deadline), then_start }, first)
    }

    fn hit(&mut self, now: Moment, served: bool, actions: Vec<Action>) -> Answer {
        self.go(State::Signalled { deadline: now + SIGNAL_PATIENCE, served }, actions)
    }

    fn fell(
        &mut self,
        policy: Restart,
        now: Moment,
        (ended, outside, chance): (Ended, bool, f64),
        was_stable: bool,
    ) -> Answer {
        if was_stable {
            self.failures = Failures::default();
        }
        self.failures.all = self.failures.all.saturating_add(1);
        self.failures.own = self.failures.own.saturating_add(u32::from(!outside));
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

/// The state of a process that is neither frozen nor to end. Whatever it has served before, that time begins anew.
fn awake(served: bool, now: Moment) -> State {
    if served { State::Serving { since: now, last: now } } else { State::Starting }
}

fn is_stable(since: Moment, last: Moment) -> bool {
    last >= since + restart::STABLE_AFTER
}

fn sooner(earlier: Option<Moment>, deadline: Moment) -> Moment {
    earlier.map_or(deadline, |earlier| earlier.min(deadline))
}

#[cfg(test)]
mod tests;
