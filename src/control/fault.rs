//! The life of a fault that the operator ordered: a pause, or a kill. Every phase is written into the history before
//! the next begins, so that whoever comes after a supervisor that died in the middle knows what may have been done and
//! undoes what nobody was told about. No process is touched here.
//!
//! ```text
//!          signal sent          effect seen         the operator was told
//!  Intent ────────────▶ Applied ───────────▶ Seen ───────────────────────▶ Held
//!    │                     │                   │                             │ resumed, its time is over,
//!    └── Abandoned ◀───────┴──── Healed ◀──────┴─────────────────────────────┘ or the process ended
//! ```
//! A fault tool that is killed between a fault and its end usually leaves the fault behind; here that end is written
//! down as a duty. A pause that was *held* is the operator's wish and stays until they, or its time, end it. A kill has
//! no undoing: it is healed when its node serves again.

use serde::{Deserialize, Serialize};

/// What is done to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// It is frozen.
    Pause,
    /// It is ended by a signal.
    Kill,
}

/// How far a fault has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// It is about to be done, and may have been.
    Intent,
    /// The signal was sent.
    Applied,
    /// The process was seen frozen, or gone.
    Seen,
    /// The operator knows of it and wants it so.
    Held,
    /// It is over.
    Healed,
    /// It was never done, or nobody was told of it: it counts as not ordered.
    Abandoned,
}

impl Phase {
    /// True once nothing is left to undo.
    #[must_use]
    pub fn is_over(self) -> bool {
        match self {
            Phase::Intent | Phase::Applied | Phase::Seen | Phase::Held => false,
            Phase::Healed | Phase::Abandoned => true,
        }
    }
}

/// What to do about an open fault whose supervisor is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Thaw the process; then the fault is over.
    Thaw(Phase),
    /// Leave it frozen; it was wanted so.
    Keep,
    /// The process is as if nothing had been done.
    End(Phase),
    /// It is dead, as ordered; the fault is healed when the node serves again.
    Dead,
    /// It was told to end and has not yet.
    Ending,
}

/// What an open fault asks of whoever finds it. `expired`: its time is over.
#[must_use]
pub fn duty(kind: Kind, phase: Phase, lives: bool, frozen: bool, expired: bool) -> Duty {
    match (kind, phase) {
        (_, Phase::Healed | Phase::Abandoned) => Duty::End(phase),
        (Kind::Pause, _) if !lives => Duty::End(Phase::Healed),
        (Kind::Pause, Phase::Held) if !frozen => Duty::End(Phase::Healed),
        (Kind::Pause, Phase::Held) if expired => Duty::Thaw(Phase::Healed),
        (Kind::Pause, Phase::Held) => Duty::Keep,
        // Thawed even where it does not look frozen: the signal may be under way to a thread that sleeps in the kernel.
        (Kind::Pause, Phase::Intent | Phase::Applied | Phase::Seen) => Duty::Thaw(Phase::Abandoned),
        (Kind::Kill, _) if !lives => Duty::Dead,
        (Kind::Kill, Phase::Intent) => Duty::End(Phase::Abandoned),
        (Kind::Kill, Phase::Applied | Phase::Seen | Phase::Held) => Duty::Ending,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: [Phase; 4] = [Phase::Intent, Phase::Applied, Phase::Seen, Phase::Held];

    #[test]
    fn a_pause_that_nobody_was_told_of_is_undone_whatever_it_looks_like() {
        for phase in [Phase::Intent, Phase::Applied, Phase::Seen] {
            for (frozen, expired) in [(false, false), (true, false), (true, true)] {
                assert_eq!(
                    duty(Kind::Pause, phase, true, frozen, expired),
                    Duty::Thaw(Phase::Abandoned),
                    "{phase:?}"
                );
            }
        }
    }

    #[test]
    fn a_pause_that_is_wanted_stays_until_its_time_is_over_or_somebody_ended_it() {
        assert_eq!(duty(Kind::Pause, Phase::Held, true, true, false), Duty::Keep);
        assert_eq!(duty(Kind::Pause, Phase::Held, true, true, true), Duty::Thaw(Phase::Healed));
        assert_eq!(duty(Kind::Pause, Phase::Held, true, false, false), Duty::End(Phase::Healed));
    }

    #[test]
    fn nothing_is_owed_to_a_dead_process_but_the_truth() {
        for phase in OPEN {
            assert_eq!(duty(Kind::Pause, phase, false, false, false), Duty::End(Phase::Healed));
            assert_eq!(duty(Kind::Kill, phase, false, false, false), Duty::Dead);
        }
    }

    #[test]
    fn a_kill_that_was_not_begun_is_none() {
        assert_eq!(duty(Kind::Kill, Phase::Intent, true, false, false), Duty::End(Phase::Abandoned));
        assert_eq!(duty(Kind::Kill, Phase::Applied, true, false, false), Duty::Ending);
    }

    #[test]
    fn what_is_over_stays_over() {
        for kind in [Kind::Pause, Kind::Kill] {
            for phase in [Phase::Healed, Phase::Abandoned] {
                assert!(phase.is_over());
                assert_eq!(duty(kind, phase, true, true, true), Duty::End(phase));
            }
        }
        assert!(OPEN.iter().all(|phase| !phase.is_over()));
    }
}
