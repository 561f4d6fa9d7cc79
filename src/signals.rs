//! What each signal does to a long-lived process of ours (`replserver` and the supervisor): one decision for every signal,
//! so that none ends a process by its default without a word.
//!
//! | signals | decision |
//! |---|---|
//! | `TERM`, `INT`, `QUIT`, `PWR` | stop gracefully; a second `INT` or `QUIT` ends at once |
//! | `HUP` | ignored and logged: the end of the terminal is not the end of a node |
//! | `USR1`, `USR2`, `ALRM`, `VTALRM`, `PROF`, `IO`, `STKFLT`, `XCPU`, real-time signals | ignored and logged: nothing here asks for them |
//! | `PIPE`, `XFSZ` | ignored: the call that caused it fails with an error, which is handled where it occurs |
//! | `ABRT`, `BUS`, `FPE`, `ILL`, `SEGV`, `SYS`, `TRAP` | left: the process is broken and must end with a core |
//! | `KILL`, `STOP` | left: no process can choose |
//! | `TSTP`, `TTIN`, `TTOU`, `CONT`, `CHLD`, `URG`, `WINCH` | left: their default ends nothing |
//!
//! Signals are caught, never set to "ignore": a caught one is back at its default in a program that is started, an
//! ignored one would be inherited.

use std::future::poll_fn;
use std::io;
use std::task::Poll;
use std::time::Duration;

use nix::libc;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

/// What a signal does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The process ends gracefully.
    Stop,
    /// The process ends gracefully; a second one ends it at once.
    StopOrForce,
    /// Nothing happens; it is logged.
    Ignore,
    /// Nothing happens, and it is no news: the call that caused it fails.
    IgnoreQuietly,
    /// The kernel's default.
    Leave,
}

/// One line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The kernel's number.
    pub number: i32,
    /// Without `SIG`; real-time signals are all called `RT`.
    pub name: &'static str,
    /// What it does.
    pub decision: Decision,
}

const fn entry(number: i32, name: &'static str, decision: Decision) -> Entry {
    Entry { number, name, decision }
}

/// Every signal that has a name, by number.
pub const TABLE: [Entry; 31] = [
    entry(libc::SIGHUP, "HUP", Decision::Ignore),
    entry(libc::SIGINT, "INT", Decision::StopOrForce),
    entry(libc::SIGQUIT, "QUIT", Decision::StopOrForce),
    entry(libc::SIGILL, "ILL", Decision::Leave),
    entry(libc::SIGTRAP, "TRAP", Decision::Leave),
    entry(libc::SIGABRT, "ABRT", Decision::Leave),
    entry(libc::SIGBUS, "BUS", Decision::Leave),
    entry(libc::SIGFPE, "FPE", Decision::Leave),
    entry(libc::SIGKILL, "KILL", Decision::Leave),
    entry(libc::SIGUSR1, "USR1", Decision::Ignore),
    entry(libc::SIGSEGV, "SEGV", Decision::Leave),
    entry(libc::SIGUSR2, "USR2", Decision::Ignore),
    entry(libc::SIGPIPE, "PIPE", Decision::IgnoreQuietly),
    entry(libc::SIGALRM, "ALRM", Decision::Ignore),
    entry(libc::SIGTERM, "TERM", Decision::Stop),
    entry(libc::SIGSTKFLT, "STKFLT", Decision::Ignore),
    entry(libc::SIGCHLD, "CHLD", Decision::Leave),
    entry(libc::SIGCONT, "CONT", Decision::Leave),
    entry(libc::SIGSTOP, "STOP", Decision::Leave),
    entry(libc::SIGTSTP, "TSTP", Decision::Leave),
    entry(libc::SIGTTIN, "TTIN", Decision::Leave),
    entry(libc::SIGTTOU, "TTOU", Decision::Leave),
    entry(libc::SIGURG, "URG", Decision::Leave),
    entry(libc::SIGXCPU, "XCPU", Decision::Ignore),
    entry(libc::SIGXFSZ, "XFSZ", Decision::IgnoreQuietly),
    entry(libc::SIGVTALRM, "VTALRM", Decision::Ignore),
    entry(libc::SIGPROF, "PROF", Decision::Ignore),
    entry(libc::SIGWINCH, "WINCH", Decision::Leave),
    entry(libc::SIGIO, "IO", Decision::Ignore),
    entry(libc::SIGPWR, "PWR", Decision::Stop),
    entry(libc::SIGSYS, "SYS", Decision::Leave),
];

/// The table, and the real-time signals that programs can send.
pub fn all() -> impl Iterator<Item = Entry> {
    let real_time = libc::SIGRTMIN()..=libc::SIGRTMAX();
    TABLE.into_iter().chain(real_time.map(|number| entry(number, "RT", Decision::Ignore)))
}

/// A signal that is sent in a loop is logged so often and no more.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

struct Caught {
    entry: Entry,
    signal: Signal,
    logged_at: Option<Instant>,
}

/// The signals of this process, caught from the moment it was made until the process ends.
pub struct Signals(Vec<Caught>);

impl Signals {
    /// Catches every signal that is to be ignored. Those that ask for a stop keep their default, which is right as long
    /// as there is nothing to stop gracefully. Needs a runtime with IO.
    ///
    /// # Errors
    /// What the system said.
    pub fn catch_ignored() -> io::Result<Signals> {
        let mut signals = Signals(Vec::new());
        signals.catch(|decision| matches!(decision, Decision::Ignore | Decision::IgnoreQuietly))?;
        Ok(signals)
    }

    /// The same but for these, which mean something else to the caller.
    ///
    /// # Errors
    /// What the system said.
    pub fn catch_ignored_but(left: &[i32]) -> io::Result<Signals> {
        let mut signals = Signals(Vec::new());
        for entry in all().filter(|entry| !left.contains(&entry.number)) {
            if matches!(entry.decision, Decision::Ignore | Decision::IgnoreQuietly) {
                let signal = signal(SignalKind::from_raw(entry.number))?;
                signals.0.push(Caught { entry, signal, logged_at: None });
            }
        }
        Ok(signals)
    }

    /// Catches those that ask for a stop, too.
    ///
    /// # Errors
    /// What the system said.
    pub fn catch_stops(&mut self) -> io::Result<()> {
        self.catch(|decision| matches!(decision, Decision::Stop | Decision::StopOrForce))
    }

    fn catch(&mut self, which: impl Fn(Decision) -> bool) -> io::Result<()> {
        for entry in all().filter(|entry| which(entry.decision)) {
            let signal = signal(SignalKind::from_raw(entry.number))?;
            self.0.push(Caught { entry, signal, logged_at: None });
        }
        Ok(())
    }

    /// Waits for the next signal that asks the process to stop. Others are logged here. Can be cancelled without losing
    /// a signal.
    pub async fn stop(&mut self) -> Entry {
        poll_fn(|context| {
            for caught in &mut self.0 {
                while let Poll::Ready(Some(())) = caught.signal.poll_recv(context) {
                    match caught.entry.decision {
                        Decision::Stop | Decision::StopOrForce => return Poll::Ready(caught.entry),
                        Decision::Ignore => caught.log(),
                        Decision::IgnoreQuietly | Decision::Leave => {}
                    }
                }
            }
            Poll::Pending
        })
        .await
    }
}

impl Caught {
    fn log(&mut self) {
        let now = Instant::from_std(crate::clock::now());
        if self.logged_at.is_none_or(|at| now.duration_since(at) >= LOG_INTERVAL) {
            self.logged_at = Some(now);
            tracing::info!("signal {} ({}) is ignored", self.entry.name, self.entry.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_has_exactly_one_decision() {
        let mut numbers: Vec<i32> = all().map(|entry| entry.number).collect();
        numbers.sort_unstable();
        // 32 and 33 belong to the C library, which lets no program have them.
        let expected: Vec<i32> = (1..=31).chain(34..=64).collect();
        assert_eq!(numbers, expected);
    }

    #[test]
    fn the_table_in_the_documentation_names_every_signal() {
        let head: String =
            include_str!("signals.rs").lines().filter(|line| line.starts_with("//! |")).collect();
        for entry in TABLE {
            assert!(head.contains(&format!("`{}`", entry.name)), "{}", entry.name);
        }
    }
}
