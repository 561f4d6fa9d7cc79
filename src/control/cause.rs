//! Who or what ended a process, from what is known about its end. Says "unknown" rather than guess.

use serde::{Deserialize, Serialize};

/// Signals that a process raises against itself: abort, illegal instruction, bus error and their like.
const OWN_FAULTS: [i32; 7] = [3, 4, 5, 6, 7, 8, 11];
const SIGKILL: i32 = 9;
const SIGSYS: i32 = 31;

/// How a process ended, as the system tells its parent. Both are `None` where nobody could ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// The exit code, where it exited.
    pub code: Option<i32>,
    /// The signal, where one ended it.
    pub signal: Option<i32>,
}

impl Ended {
    /// True for an exit with code 0.
    #[must_use]
    pub fn is_clean(self) -> bool {
        self.code == Some(0)
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "exit code {code}"),
            (None, Some(signal)) => write!(f, "signal {signal}"),
            (None, None) => f.write_str("exit status unknown"),
        }
    }
}

/// Who or what ended a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// A command of ours.
    Operator,
    /// The process itself: it failed, or ran into a fault.
    Crash,
    /// The system, short of memory.
    OutOfMemory,
    /// Somebody else, or nobody can tell.
    Unknown,
}

impl Cause {
    /// As the interface writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Operator => "operator",
            Cause::Crash => "crash",
            Cause::OutOfMemory => "out-of-memory",
            Cause::Unknown => "unknown",
        }
    }
}

/// Attributes an end. `asked`: a command of ours was to end this process. `memory_kills_grew`: the system killed
/// something for memory while this process lived.
#[must_use]
pub fn attribute(ended: Ended, asked: bool, memory_kills_grew: bool) -> Cause {
    match (ended.code, ended.signal) {
        _ if asked => Cause::Operator,
        (Some(0), _) | (None, None) => Cause::Unknown,
        (Some(_), _) => Cause::Crash,
        (None, Some(SIGKILL)) if memory_kills_grew => Cause::OutOfMemory,
        (None, Some(signal)) if OWN_FAULTS.contains(&signal) || signal == SIGSYS => Cause::Crash,
        (None, Some(_)) => Cause::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(code: i32) -> Ended {
        Ended { code: Some(code), signal: None }
    }

    fn signal(signal: i32) -> Ended {
        Ended { code: None, signal: Some(signal) }
    }

    #[test]
    fn what_we_asked_for_is_the_operators_whatever_the_status() {
        for ended in [exit(0), exit(1), signal(9), signal(11), Ended::default()] {
            assert_eq!(attribute(ended, true, true), Cause::Operator);
        }
    }

    #[test]
    fn a_failure_of_its_own_is_a_crash() {
        for ended in [exit(1), exit(101), exit(134), signal(6), signal(11), signal(7), signal(31)] {
            assert_eq!(attribute(ended, false, true), Cause::Crash, "{ended}");
        }
    }

    #[test]
    fn a_kill_is_blamed_on_memory_only_where_memory_killed_somebody() {
        assert_eq!(attribute(signal(9), false, true), Cause::OutOfMemory);
        assert_eq!(attribute(signal(9), false, false), Cause::Unknown);
        assert_eq!(attribute(signal(15), false, true), Cause::Unknown);
    }

    #[test]
    fn a_clean_end_nobody_asked_for_and_an_unseen_one_are_unknown() {
        assert_eq!(attribute(exit(0), false, false), Cause::Unknown);
        assert_eq!(attribute(Ended::default(), false, false), Cause::Unknown);
    }
}
