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
    /// From the raw status of `wait`.
    #[must_use]
    pub fn of_wait_status(status: i32) -> Ended {
        match status & 0x7f {
            0 => Ended { code: Some(status >> 8 & 0xff), signal: None },
            signal => Ended { code: None, signal: Some(signal) },
        }
    }

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

/// What a process that ended by itself had run into, where its last words tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trouble {
    /// Another process listens on its address.
    Port,
    /// Another process uses its data directory, or runs under its address.
    Directory,
    /// The disk is full, read-only or failing.
    Disk,
    /// A bug of ours stopped it.
    Panic,
    /// It refused what it was given, and said why.
    Refused,
}

impl Trouble {
    /// In the words of a sentence.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Trouble::Port => "its port is taken",
            Trouble::Directory => "its data or address is in use",
            Trouble::Disk => "the disk fails or is full",
            Trouble::Panic => "a bug",
            Trouble::Refused => "refused to go on",
        }
    }
}

/// True where what ended a process, or kept it from serving, lies outside of it and may pass without it: another holds
/// its port or directory, the disk is full, memory is short, another process killed it, or the cause is not known.
#[must_use]
pub fn is_outside(cause: Cause, trouble: Option<Trouble>) -> bool {
    match (trouble, cause) {
        (Some(Trouble::Port | Trouble::Directory | Trouble::Disk), _) => true,
        (Some(Trouble::Panic | Trouble::Refused), _) | (None, Cause::Crash) => false,
        (None, Cause::Operator | Cause::OutOfMemory | Cause::Unknown) => true,
    }
}

/// What `replserver` exits with where another holds its address or directory.
pub const EXIT_CONFLICT: i32 = 5;
/// How the system, and we, call a disk that cannot be written to.
const DISK_WORDS: [&str; 7] = [
    "no space left",
    "no storage space",
    "quota exceeded",
    "input/output error",
    "read-only file system",
    "disk is full",
    "sync failed",
];

/// What a process ran into, from how it ended and what it said last. `None` where neither tells.
#[must_use]
pub fn trouble(ended: Ended, last_words: &str) -> Option<Trouble> {
    let words = last_words.to_lowercase();
    if ended.code == Some(EXIT_CONFLICT) {
        let port = words.contains("is taken by") || words.contains("address already in use");
        return Some(if port { Trouble::Port } else { Trouble::Directory });
    }
    if DISK_WORDS.iter().any(|phrase| words.contains(phrase)) {
        return Some(Trouble::Disk);
    }
    if words.contains("panicked at") {
        return Some(Trouble::Panic);
    }
    (ended.code.is_some_and(|code| code != 0) && !words.is_empty()).then_some(Trouble::Refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_ran_into_is_read_from_its_end_and_its_last_words() {
        let cases = [
            (exit(5), "replserver: 127.0.0.1:1 is taken by nginx (pid 7)", Some(Trouble::Port)),
            (exit(5), "replserver: the directory is in use by pid 7", Some(Trouble::Directory)),
            (exit(1), "cannot write d/log: No space left on device (os error 28)", Some(Trouble::Disk)),
            (signal(6), "cannot sync: Input/output error (os error 5)", Some(Trouble::Disk)),
            (signal(6), "thread 'main' panicked at src/x.rs:1:2: index out of bounds", Some(Trouble::Panic)),
            (exit(1), "replserver: the log is damaged at entry 7", Some(Trouble::Refused)),
            (exit(1), "", None),
            (exit(0), "bye", None),
            (signal(9), "", None),
        ];
        for (ended, words, expected) in cases {
            assert_eq!(trouble(ended, words), expected, "{words}");
        }
    }

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
    fn what_another_did_is_outside_and_what_a_node_did_itself_is_not() {
        assert!(
            is_outside(Cause::Crash, Some(Trouble::Port)) && is_outside(Cause::Crash, Some(Trouble::Disk))
        );
        assert!(is_outside(Cause::Unknown, None) && is_outside(Cause::OutOfMemory, None));
        assert!(!is_outside(Cause::Crash, None) && !is_outside(Cause::Crash, Some(Trouble::Panic)));
        assert!(!is_outside(Cause::Crash, Some(Trouble::Refused)));
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
