//! What a long-lived process takes over from the command that started it: a shell in a test, a service manager, `flock`,
//! `nohup`, `sudo`. A supervisor and its nodes run for months after that command, so each of these is put right once, or
//! named and refused.
//!
//! | taken over | what is done | where |
//! |---|---|---|
//! | descriptors from 3 up | closed when a program of ours is started | [`of_child`] |
//! | blocked signals | all are let through | [`begin`], [`of_child`] |
//! | ignored signals | back to their defaults; then the program sets its own | [`begin`], [`of_child`] |
//! | a running alarm | ended | [`begin`] |
//! | limits of file size and processor time | raised as far as allowed; what is left of a limit is refused | [`begin`], [`refusal`] |
//! | limit of memory | raised as far as allowed; what is left of it is named | [`begin`], [`warnings`] |
//! | limit of descriptors | raised by each program for itself | – |
//! | niceness | kept, it may be meant; named | [`warnings`] |
//! | readiness to be killed for memory (`oom_score_adj`) | put back to 0 where it was raised; else named | [`begin`], [`warnings`] |
//! | umask | 077: all files are for their owner | [`begin`] |
//! | working directory | `/`: a mounted or deleted one is not held | [`of_child`] |
//! | terminal, session, process group | a session of its own | `supervisor::spawn` |
//! | standard input and output | `/dev/null` and a log file | `supervisor::spawn` |
//! | environment | kept, except what one service manager tells one process | [`of_child`] |
//! | control group, namespaces, root directory, capabilities, `no_new_privs`, secure bits, seccomp, scheduling class, processor set | kept: they are walls that were built on purpose, and only an administrator takes them down | – |

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::show_size;

/// What a service manager tells the one process that it started, and no other.
const OF_ONE_PROCESS: [&str; 8] = [
    crate::notify::SOCKET_VARIABLE,
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "FDSTORE",
    "MAINPID",
];
/// With less than this the file of the state may reach its end.
const LEAST_FILE_BYTES: u64 = 16 << 30;
/// Descriptors up to this number are looked at where the system cannot close a range at once.
const MOST_DESCRIPTORS: i32 = 1 << 16;
/// Where the kernel keeps how willingly it kills this process for memory.
const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// Puts right what this process took over and can put right itself. Called once, before there is another thread.
pub fn begin() {
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
    // An ignored one would have the kernel collect children itself, so that their parent does not learn how they ended.
    default_action(Signal::SIGCHLD);
    // A write beyond the limit is an error of that write, which every writer handles, instead of the end of the process.
    ignore(Signal::SIGXFSZ);
    nix::unistd::alarm::cancel();
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    for resource in [Resource::Fsize, Resource::Cpu, Resource::As, Resource::Data] {
        raise(resource);
    }
    if oom_score() > 0 {
        // Lower than what an administrator has set is not allowed.
        let _ = std::fs::write(OOM_SCORE, "0");
    }
}

/// Why no long-lived process can be started with what this one took over; `None` where it can.
#[must_use]
pub fn refusal() -> Option<String> {
    if let Some(bytes) = getrlimit(Resource::Fsize).maximum.filter(|bytes| *bytes < LEAST_FILE_BYTES) {
        return Some(format!(
            "files may not grow beyond {} here (ulimit -f), and the data and its log will\nraise the limit for this user, or start it from a shell without one",
            show_size(bytes)
        ));
    }
    if let Some(seconds) = getrlimit(Resource::Cpu).maximum {
        return Some(format!(
            "processes are ended here after {seconds} s of processor time (ulimit -t), and a node runs for months\nraise the limit for this user, or start it from a shell without one"
        ));
    }
    None
}

/// What was taken over, stays, and may surprise.
#[must_use]
pub fn warnings() -> Vec<String> {
    let mut found = Vec::new();
    for (resource, option) in [(Resource::As, "-v"), (Resource::Data, "-d")] {
        if let Some(bytes) = getrlimit(resource).maximum {
            found.push(format!(
                "a node may use {} of memory here (ulimit {option}); it ends where it needs more",
                show_size(bytes)
            ));
        }
    }
    match rustix::process::getpriority_process(None) {
        Ok(nice) if nice > 0 => found.push(format!(
            "the nodes run at niceness {nice}, as this command does: on a busy machine they speak late and are dropped"
        )),
        Ok(_) | Err(_) => {}
    }
    match oom_score() {
        0 => {}
        score if score < 0 => {}
        score => found.push(format!(
            "the system ends these nodes before others where memory is short (oom_score_adj {score}), and only root may change that"
        )),
    }
    found
}

/// Has a child of this process take over nothing that is meant for another.
#[expect(unsafe_code, reason = "the standard library resets neither signals nor descriptors")]
pub fn of_child(command: &mut Command) {
    command.current_dir("/");
    for name in OF_ONE_PROCESS {
        command.env_remove(name);
    }
    // SAFETY: between fork and exec the closure makes system calls only, all async-signal-safe, and allocates nothing.
    unsafe {
        command.pre_exec(|| {
            for number in 1..=libc::SIGRTMAX() {
                // Those that cannot be changed are refused, which changes nothing.
                libc::signal(number, libc::SIG_DFL);
            }
            // The runtime of the new program ignores it itself; a program of another kind gets the default.
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
                .map_err(|errno| io::Error::from_raw_os_error(errno as i32))?;
            close_from_three();
            Ok(())
        });
    }
}

/// Marks all descriptors but the standard ones to be closed by exec: the standard library still needs one until then.
#[expect(unsafe_code, reason = "no crate in use closes a range of descriptors")]
fn close_from_three() {
    const CLOSE_ON_EXEC: libc::c_uint = 4;
    // SAFETY: plain system calls on numbers; a descriptor that is not open is an error that changes nothing.
    unsafe {
        if libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, CLOSE_ON_EXEC) == 0 {
            return;
        }
        // A kernel before 5.11.
        let mut limit = std::mem::zeroed::<libc::rlimit>();
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        let end = i32::try_from(limit.rlim_cur).unwrap_or(MOST_DESCRIPTORS).min(MOST_DESCRIPTORS);
        for descriptor in 3..end {
            libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC);
        }
    }
}

fn default_action(signal: Signal) {
    set(signal, SigHandler::SigDfl);
}

fn ignore(signal: Signal) {
    set(signal, SigHandler::SigIgn);
}

#[expect(unsafe_code, reason = "a disposition is set by a system call that can also install a handler")]
fn set(signal: Signal, handler: SigHandler) {
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: neither the default nor "ignored" runs code of ours.
    let _ = unsafe { sigaction(signal, &action) };
}

fn raise(resource: Resource) {
    let limit = getrlimit(resource);
    if limit.current != limit.maximum {
        let _ = setrlimit(resource, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
}

fn oom_score() -> i32 {
    std::fs::read_to_string(OOM_SCORE).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}
