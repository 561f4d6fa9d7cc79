//! File descriptors: how many a process may have, and how a node divides them.
//!
//! A shell gives a process 1,024 by default although the hard limit is far higher: a server must raise the soft limit
//! itself. What remains bounded is divided, so that clients can never take what the node needs for its own work:
//!
//! | for | descriptors |
//! |---|---|
//! | log, state, register, locks, peers, the threads' own | [`OWN`], less where there are few |
//! | connections that have not said yet what they are; while clients have all of theirs, the controller and health checks | [`WAITING_MAX`], less where there are few |
//! | clients | the rest, at most what the operator sets |

use std::io;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// More than this is of no use, and some systems set no limit at all.
const ENOUGH: u64 = 1 << 20;
/// Kept for the node's own work. A node of three uses about 40 of them; each further member takes four more.
pub const OWN: u64 = 256;
/// Connections that are no client's yet, or beyond the clients' share.
pub const WAITING_MAX: u64 = 1024;
/// With fewer a node cannot work.
pub const LEAST: u64 = 96;

/// Raises the soft limit of descriptors to the hard one and returns the limit in force. A system that refuses leaves the
/// soft limit as it was.
#[must_use]
pub fn raise_limit() -> u64 {
    let found = getrlimit(Resource::Nofile);
    let wanted = found.maximum.unwrap_or(ENOUGH).min(ENOUGH);
    let soft = found.current.unwrap_or(ENOUGH);
    if soft >= wanted {
        return soft.min(ENOUGH);
    }
    let raised = Rlimit { current: Some(wanted), maximum: found.maximum };
    match setrlimit(Resource::Nofile, raised).map_err(io::Error::from) {
        Ok(()) => wanted,
        Err(error) => {
            tracing::warn!("cannot raise the limit of descriptors from {soft} to {wanted}: {error}");
            soft
        }
    }
}

/// How a node divides its descriptors between connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// Connections of clients.
    pub clients: usize,
    /// Connections that have not said yet what they are, or that are beyond the clients' share.
    pub waiting: usize,
}

/// Divides `limit` descriptors; clients get at most `wanted`. `None` where there are too few to work with.
#[must_use]
pub fn divide(limit: u64, wanted: usize) -> Option<Shares> {
    if limit < LEAST {
        return None;
    }
    // Few descriptors: half are the node's own.
    let shared = limit - OWN.min(limit / 2);
    let waiting = WAITING_MAX.min(shared / 4);
    let count = |share: u64| usize::try_from(share).unwrap_or(usize::MAX);
    Some(Shares { clients: wanted.min(count(shared - waiting)), waiting: count(waiting) })
}

/// What a loop that accepts connections does about failures: waits ever longer while something is lacking, and says so
/// once in a while.
#[derive(Debug, Default)]
pub struct AcceptFailures {
    since_logged: u32,
    logged_at: Option<Instant>,
    wait: Duration,
}

impl AcceptFailures {
    const WAIT_MIN: Duration = Duration::from_millis(10);
    const WAIT_MAX: Duration = Duration::from_secs(1);
    const LOG_INTERVAL: Duration = Duration::from_secs(10);

    /// A connection was accepted.
    pub fn end(&mut self) {
        self.wait = Duration::ZERO;
    }

    /// How long to wait before the next try. A connection that ended before it was accepted is no reason to wait.
    pub fn wait(&mut self, error: &io::Error, now: Instant) -> Duration {
        use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
        if matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
            return Duration::ZERO;
        }
        self.since_logged += 1;
        if self.logged_at.is_none_or(|at| now.duration_since(at) >= Self::LOG_INTERVAL) {
            tracing::warn!(
                "cannot accept a connection ({} times since it was last said): {error}",
                self.since_logged
            );
            self.logged_at = Some(now);
            self.since_logged = 0;
        }
        self.wait = (self.wait * 2).clamp(Self::WAIT_MIN, Self::WAIT_MAX);
        self.wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_never_get_what_the_node_needs() {
        for limit in (LEAST..5000).chain([65_536, 1 << 20]) {
            for wanted in [1, 500, 10_000] {
                let shares = divide(limit, wanted).unwrap();
                let taken = shares.clients + shares.waiting;
                let left = usize::try_from(limit).unwrap() - taken;
                assert!(left >= 48 && (limit < 512 || left >= 256), "{limit}: {shares:?} leave {left}");
                assert!(shares.clients > 0 && shares.waiting >= 12, "{limit}: {shares:?}");
            }
        }
        assert_eq!(divide(LEAST - 1, 1), None);
    }

    #[test]
    fn an_ordinary_limit_gives_clients_what_the_operator_sets() {
        assert_eq!(divide(524_288, 10_000).unwrap().clients, 10_000);
        assert_eq!(divide(4096, 10_000).unwrap(), Shares { clients: 2880, waiting: 960 });
    }

    #[test]
    fn the_soft_limit_is_raised_to_the_hard_one() {
        let limit = raise_limit();
        let found = getrlimit(Resource::Nofile);
        assert_eq!(found.current.unwrap_or(ENOUGH).min(ENOUGH), limit);
        assert!(found.maximum.is_none_or(|most| limit == most.min(ENOUGH)), "{found:?}");
    }

    #[test]
    fn a_lack_of_descriptors_is_waited_for_ever_longer_and_said_rarely() {
        let (mut failures, start) = (AcceptFailures::default(), Instant::now());
        let lacking = io::Error::from_raw_os_error(nix::libc::EMFILE);
        let (mut time, mut tries) = (Duration::ZERO, 0);
        while time < Duration::from_secs(60) {
            let said = failures.logged_at;
            time += failures.wait(&lacking, start + time);
            tries += 1;
            assert!(said.is_none_or(
                |at| failures.logged_at == said || start + time - at >= AcceptFailures::LOG_INTERVAL
            ));
        }
        assert!(tries < 80, "{tries} tries in a minute");
        failures.end();
        assert_eq!(failures.wait(&lacking, start), AcceptFailures::WAIT_MIN);
        assert_eq!(failures.wait(&io::ErrorKind::ConnectionAborted.into(), start), Duration::ZERO);
    }
}
