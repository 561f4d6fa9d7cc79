//! Which exits that nobody asked for are answered with a restart, and after how long.
//! Delays double from [`FIRST_DELAY`] to [`LONGEST_DELAY`], each shortened by up to [`JITTER`] of itself so that nodes
//! that fell together do not come back together; a node that said for [`STABLE_AFTER`] that it is in sync starts afresh
//! (time in which it said nothing, or was frozen, is no such time); after
//! [`GIVE_UP_AFTER`] failures of its own in a row the node is left down, because one more start would not help. What lies
//! outside the node (a port or directory that another process holds, a full disk, a kill by another process, no memory)
//! passes some day: it is tried again for as long as it lasts, at last every [`LONGEST_WAIT`]. Ends that the operator
//! ordered are no failures: they never come here.

use std::time::Duration;

use crate::config::Restart;

use super::cause::Ended;

/// Wait before the first restart.
pub const FIRST_DELAY: Duration = Duration::from_millis(100);
/// No wait is longer, for what a node does itself and for the first failures of another kind.
pub const LONGEST_DELAY: Duration = Duration::from_secs(10);
/// No wait is longer where what lies outside the node lasts.
pub const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// The largest part of a delay that chance takes off it.
pub const JITTER: f64 = 0.2;
/// Serving this long makes earlier failures forgotten.
pub const STABLE_AFTER: Duration = Duration::from_secs(10);
/// A longer silence between two answers is no time of service.
pub const LONGEST_SILENCE: Duration = Duration::from_secs(3);
/// Failures of its own in a row after which the node stays down: about half a minute of trying. After so many of another
/// kind the waits grow beyond [`LONGEST_DELAY`].
pub const GIVE_UP_AFTER: u32 = 9;
/// What `replserver` exits with where its command line or directory cannot be used: no restart changes that.
const EXIT_USAGE: i32 = 2;

/// What follows an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Start again after this long.
    RestartAfter(Duration),
    /// Leave it down: the policy asks for no restart.
    Stay,
    /// Leave it down: restarts have not helped, or cannot.
    GiveUp,
}

/// Failures in a row, including this one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Failures {
    /// Of any kind; at least 1 when something is decided.
    pub all: u32,
    /// Those that lay with the node itself.
    pub own: u32,
}

/// Decides; `chance` lies in 0..1.
#[must_use]
pub fn next(policy: Restart, ended: Ended, failures: Failures, chance: f64) -> Next {
    match policy {
        Restart::Never => Next::Stay,
        Restart::OnFailure if ended.is_clean() => Next::Stay,
        Restart::OnFailure | Restart::Always => {
            if failures.own >= GIVE_UP_AFTER || ended.code == Some(EXIT_USAGE) {
                Next::GiveUp
            } else {
                Next::RestartAfter(delay(failures.all, chance))
            }
        }
    }
}

/// The wait before a restart after this many failures in a row; `chance` in 0..1 takes up to [`JITTER`] off it.
#[must_use]
pub fn delay(failures: u32, chance: f64) -> Duration {
    let doubled = |from: Duration, times: u32| from * 2_u32.pow(times.min(16));
    let early = doubled(FIRST_DELAY, failures.saturating_sub(1)).min(LONGEST_DELAY);
    let longest = doubled(early, failures.saturating_sub(GIVE_UP_AFTER)).min(LONGEST_WAIT);
    longest.mul_f64(1.0 - JITTER * chance.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CRASH: Ended = Ended { code: None, signal: Some(11) };
    const CLEAN: Ended = Ended { code: Some(0), signal: None };
    const USAGE: Ended = Ended { code: Some(2), signal: None };

    fn own(count: u32) -> Failures {
        Failures { all: count, own: count }
    }

    #[test]
    fn what_lies_outside_a_node_is_never_given_up() {
        for all in [GIVE_UP_AFTER, 10 * GIVE_UP_AFTER, u32::MAX] {
            let next = next(Restart::OnFailure, CRASH, Failures { all, own: 0 }, 0.0);
            assert!(matches!(next, Next::RestartAfter(wait) if wait <= LONGEST_WAIT), "{all}: {next:?}");
        }
    }

    #[test]
    fn delays_double_up_to_the_cap() {
        let delays: Vec<u64> = (1..=9).map(|n| u64::try_from(delay(n, 0.0).as_millis()).unwrap()).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(delay(10, 0.0), 2 * LONGEST_DELAY);
        assert_eq!(delay(u32::MAX, 0.0), LONGEST_WAIT);
    }

    #[test]
    fn the_policy_decides_who_is_restarted() {
        let again = Next::RestartAfter(FIRST_DELAY);
        assert_eq!(next(Restart::OnFailure, CRASH, own(1), 0.0), again);
        assert_eq!(next(Restart::OnFailure, Ended::default(), own(1), 0.0), again);
        assert_eq!(next(Restart::OnFailure, CLEAN, own(1), 0.0), Next::Stay);
        assert_eq!(next(Restart::Always, CLEAN, own(1), 0.0), again);
        assert_eq!(next(Restart::Never, CRASH, own(1), 0.0), Next::Stay);
    }

    #[test]
    fn what_cannot_be_helped_is_given_up() {
        assert_eq!(next(Restart::OnFailure, USAGE, own(1), 0.0), Next::GiveUp);
        assert_eq!(next(Restart::Always, CRASH, own(GIVE_UP_AFTER), 0.0), Next::GiveUp);
        assert!(matches!(next(Restart::Always, CRASH, own(GIVE_UP_AFTER - 1), 0.0), Next::RestartAfter(_)));
    }

    #[test]
    fn chance_only_shortens_a_wait_and_never_by_more_than_its_share() {
        for failures in 1..=9 {
            let longest = delay(failures, 0.0);
            for chance in [0.0, 0.25, 0.5, 0.999, 7.0] {
                let wait = delay(failures, chance);
                assert!(wait <= longest && wait >= longest.mul_f64(1.0 - JITTER), "{failures} {chance}");
            }
            assert!(delay(failures, 0.9) < delay(failures, 0.1));
        }
    }
}
