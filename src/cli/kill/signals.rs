//! Which signals `kill` sends, and how a process of ours takes them.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::signals::{self, Decision};

/// A signal by its name, with or without `SIG`, or by its number; only such as end a process.
///
/// # Errors
/// What to say of any other.
pub(super) fn parse(text: &str) -> Result<Signal, String> {
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    let signal = match text.parse::<i32>() {
        Ok(number) => Signal::try_from(number).ok(),
        Err(_) => name.parse::<Signal>().ok(),
    };
    match signal {
        None => Err("expected a signal such as KILL, TERM or ABRT".to_owned()),
        Some(Signal::SIGSTOP | Signal::SIGTSTP | Signal::SIGTTIN | Signal::SIGTTOU) => {
            Err("that freezes a node: use `replcluster pause`".to_owned())
        }
        Some(Signal::SIGCONT) => Err("that thaws a node: use `replcluster resume`".to_owned()),
        Some(Signal::SIGCHLD | Signal::SIGWINCH | Signal::SIGURG) => {
            Err("that signal ends no process".to_owned())
        }
        Some(signal) if is_ignored(signal) => {
            Err("a node ignores that signal: use KILL, TERM or ABRT".to_owned())
        }
        Some(signal) => Ok(signal),
    }
}

fn is_ignored(signal: Signal) -> bool {
    let entry = signals::TABLE.iter().find(|entry| entry.number == signal as i32);
    entry.is_some_and(|entry| matches!(entry.decision, Decision::Ignore | Decision::IgnoreQuietly))
}

/// Of these the first only takes away the handler that the language's runtime has for its own faults (a full stack),
/// and is gone with it; the second has the usual effect. When to send the second.
pub(super) fn sent_again_after(signal: Signal) -> Option<Duration> {
    matches!(signal, Signal::SIGSEGV | Signal::SIGBUS).then_some(Duration::from_millis(20))
}

/// A process that gets it puts its affairs in order first, which takes its time.
pub(super) fn is_graceful(signal: Signal) -> bool {
    matches!(signal, Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT | Signal::SIGPWR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_signals_that_end_a_process_are_taken() {
        for text in ["KILL", "SIGKILL", "kill", "9"] {
            assert_eq!(parse(text), Ok(Signal::SIGKILL));
        }
        assert!(parse("STOP").unwrap_err().contains("pause"));
        assert!(parse("CONT").unwrap_err().contains("resume"));
        for text in ["PIPE", "HUP", "USR1", "USR2", "ALRM", "IO"] {
            assert!(parse(text).unwrap_err().contains("ignores"), "{text}");
        }
        assert_eq!(parse("QUIT"), Ok(Signal::SIGQUIT));
        for text in ["", "NOPE", "0", "99", "CHLD"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
