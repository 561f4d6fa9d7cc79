//! What a command was started with never reaches what it starts: each test starts a cluster with one thing that a shell,
//! a service manager or a wrapper may hand on.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask};

use super::cli::Scene;

/// The supervisor and every node that runs.
fn started(scene: &Scene) -> Vec<u64> {
    let status = scene.status();
    let nodes = status["nodes"].as_array().unwrap().iter().filter_map(|node| node["pid"].as_u64());
    let pids: Vec<u64> = nodes.chain(status["supervisor"]["pid"].as_u64()).collect();
    assert_eq!(pids.len(), 3, "two nodes and a supervisor: {status}");
    pids
}

#[expect(unsafe_code, reason = "what a process starts with is set between fork and exec")]
fn with(command: &mut Command, before: impl Fn() + Send + Sync + 'static) -> Output {
    // SAFETY: the closures make system calls only.
    unsafe {
        command.pre_exec(move || {
            before();
            Ok(())
        });
    }
    command.output().unwrap()
}

fn assert_up(output: &Output) {
    assert!(output.status.success(), "{output:?}");
}

fn status_of(pid: u64, field: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').trim().to_owned()
}

#[test]
fn a_lock_that_up_was_started_under_is_free_when_up_returns() {
    let scene = Scene::new(2);
    let path = scene.path("held");
    let held = File::create(&path).unwrap();
    held.lock().unwrap();
    let descriptor = held.as_raw_fd();
    assert_up(&with(&mut scene.command(&["up"]), move || {
        // Handed on, as a shell or flock(1) does it.
        let open = unsafe_borrowed(descriptor);
        fcntl(open, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    }));
    drop(held);
    File::open(&path).unwrap().try_lock().expect("nothing that runs on holds the lock");
    for pid in started(&scene) {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let names = open.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
        assert!(!names.into_iter().any(|name| name == path), "{pid} has it open");
    }
}

#[expect(
    unsafe_code,
    reason = "the descriptor is open in the parent for as long as the child is being started"
)]
fn unsafe_borrowed(descriptor: i32) -> std::os::fd::BorrowedFd<'static> {
    // SAFETY: see above.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(descriptor) }
}

#[test]
fn signals_that_up_was_started_with_blocked_end_nodes_all_the_same() {
    let scene = Scene::new(2);
    assert_up(&with(&mut scene.command(&["up"]), || {
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None).unwrap();
    }));
    for pid in started(&scene) {
        assert_eq!(status_of(pid, "SigBlk"), "0000000000000000", "{pid}");
    }
    let begun = Instant::now();
    scene.done(&["down"]);
    assert!(begun.elapsed() < Duration::from_secs(8), "no patience had to end: {:?}", begun.elapsed());
}

#[test]
fn signals_that_up_was_started_with_ignored_are_taken_and_ends_are_seen() {
    let scene = Scene::new(2);
    assert_up(&with(&mut scene.command(&["up"]), || {
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            ignored(signal);
        }
    }));
    for pid in started(&scene) {
        let mask = u64::from_str_radix(&status_of(pid, "SigIgn"), 16).unwrap();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM] {
            assert_eq!(mask & (1 << (signal as u64 - 1)), 0, "{pid} ignores {signal}");
        }
    }
    // Where the kernel collected children itself, its end would be unknown.
    scene.done(&["kill", &scene.address(1), "--signal", "ABRT"]);
    let exit = &scene.status()["nodes"][1]["last_exit"];
    assert_eq!(exit["signal"], Signal::SIGABRT as i32, "{exit}");
}

#[expect(unsafe_code, reason = "a disposition is set by a system call that can also install a handler")]
fn ignored(signal: Signal) {
    let action = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY: no code of ours runs by it.
    unsafe { sigaction(signal, &action) }.unwrap();
}

#[test]
fn limits_that_would_end_a_node_are_refused_and_soft_ones_are_raised() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let scene = Scene::new(2);
    for (resource, words) in [(Resource::Fsize, "ulimit -f"), (Resource::Cpu, "ulimit -t")] {
        let limit = Rlimit { current: Some(1 << 20), maximum: Some(1 << 20) };
        let output = with(&mut scene.command(&["up"]), move || setrlimit(resource, limit).unwrap());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(words) && said.contains("raise the limit"), "{said}");
        assert!(!scene.path(".replcluster").join("nodes").exists(), "nothing was started");
    }
    assert_up(&with(&mut scene.command(&["up"]), || {
        setrlimit(Resource::Fsize, Rlimit { current: Some(1 << 20), maximum: None }).unwrap();
    }));
    for pid in started(&scene) {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max file size")).unwrap();
        assert_eq!(line.matches("unlimited").count(), 2, "{line}");
    }
}

#[test]
fn umask_directory_session_environment_and_alarm_of_up_stay_with_it() {
    let scene = Scene::new(2);
    let mut command = scene.command(&["up"]);
    command.env("LISTEN_FDS", "3").env("WATCHDOG_USEC", "1000").env("MAINPID", "1");
    assert_up(&with(&mut command, || {
        nix::sys::stat::umask(nix::sys::stat::Mode::empty());
        nix::unistd::alarm::set(600);
    }));
    for pid in started(&scene) {
        assert_eq!(status_of(pid, "Umask"), "0077", "{pid}");
        assert_eq!(std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap().to_str(), Some("/"), "{pid}");
        let own = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
        assert_eq!(nix::unistd::getsid(Some(own)).unwrap(), own, "a session of its own");
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
        let environment = String::from_utf8_lossy(&environment);
        for name in ["LISTEN_FDS=", "WATCHDOG_USEC=", "MAINPID="] {
            assert!(!environment.split('\0').any(|one| one.starts_with(name)), "{pid}: {name}");
        }
    }
    let mode = std::fs::metadata(scene.path(".replcluster/state.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "no other user reads it: {mode:o}");
}

#[test]
fn niceness_is_named_because_only_an_administrator_takes_it_back() {
    let scene = Scene::new(2);
    let output = with(&mut scene.command(&["up"]), || {
        rustix::process::setpriority_process(None, 5).unwrap();
    });
    assert_up(&output);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("run at niceness 5"), "{said}");
}
