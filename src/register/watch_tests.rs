//! Claims about the death watch.

use std::sync::mpsc::{self, Receiver};
use std::time::Instant;

use nix::sys::signal::Signal;

use super::*;
use crate::register::lock::tests::{HoldingProcess, node, register};
use crate::register::{Holder, NodeLock};

/// Long enough for any machine; nothing waits for it to pass.
const PATIENCE: Duration = Duration::from_secs(30);

fn watch(directory: &Path) -> (DeathWatch, Receiver<(NodeId, Instant)>) {
    let (tx, rx) = mpsc::channel();
    let report = Box::new(move |node, _session| tx.send((node, Instant::now())).unwrap());
    (DeathWatch::start(directory, report).unwrap(), rx)
}

#[test]
fn a_killed_process_is_reported_once_for_each_watch() {
    let directory = register();
    let (deaths, reports) = watch(directory.path());
    let mut delays = Vec::new();
    for round in 0..10 {
        let mut other = HoldingProcess::start(directory.path(), &node(1));
        deaths.watch(node(1));
        deaths.watch(node(1));
        let killed = Instant::now();
        other.signal(Signal::SIGKILL);
        let (dead, at) = reports.recv_timeout(PATIENCE).unwrap();
        assert_eq!(dead, node(1), "round {round}");
        delays.push(at - killed);
        other.kill();
        assert!(reports.try_recv().is_err(), "round {round}");
    }
    delays.sort_unstable();
    println!(
        "SIGKILL to report: median {:?}, longest {:?}",
        delays[delays.len() / 2],
        delays[delays.len() - 1]
    );
}

#[test]
fn a_stopped_process_is_not_reported_until_it_is_killed() {
    let directory = register();
    let (deaths, reports) = watch(directory.path());
    let stopped = HoldingProcess::start(directory.path(), &node(1));
    let killed = HoldingProcess::start(directory.path(), &node(2));
    deaths.watch(node(1));
    deaths.watch(node(2));
    stopped.signal(Signal::SIGSTOP);
    killed.signal(Signal::SIGKILL);
    assert_eq!(reports.recv_timeout(PATIENCE).unwrap().0, node(2), "the stopped one would have come first");
    stopped.signal(Signal::SIGKILL);
    assert_eq!(reports.recv_timeout(PATIENCE).unwrap().0, node(1));
}

#[test]
fn one_that_was_dead_before_the_watch_is_reported() {
    let directory = register();
    HoldingProcess::start(directory.path(), &node(1)).kill();
    let (deaths, reports) = watch(directory.path());
    deaths.watch(node(1));
    assert_eq!(reports.recv_timeout(PATIENCE).unwrap().0, node(1));
}

#[test]
fn a_node_that_starts_after_the_watch_is_reported_when_it_dies() {
    let directory = register();
    let (deaths, reports) = watch(directory.path());
    deaths.watch(node(1));
    let other = HoldingProcess::start(directory.path(), &node(1));
    other.signal(Signal::SIGKILL);
    assert_eq!(reports.recv_timeout(PATIENCE).unwrap().0, node(1));
}

#[test]
fn a_forgotten_node_is_not_reported() {
    let directory = register();
    let (deaths, reports) = watch(directory.path());
    let others: Vec<_> = (1..=3).map(|port| HoldingProcess::start(directory.path(), &node(port))).collect();
    (1..=3).for_each(|port| deaths.watch(node(port)));
    deaths.forget(&node(1));
    // The report of each later death shows that the orders and the deaths before it were seen.
    others[1].signal(Signal::SIGKILL);
    assert_eq!(reports.recv_timeout(PATIENCE).unwrap().0, node(2));
    others[0].signal(Signal::SIGKILL);
    others[2].signal(Signal::SIGKILL);
    assert_eq!(reports.recv_timeout(PATIENCE).unwrap().0, node(3));
    drop(deaths);
    assert!(reports.try_recv().is_err());
}

#[test]
fn a_process_that_cannot_be_seen_is_reported_when_its_lock_is_freed() {
    let directory = register();
    let (deaths, reports) = watch(directory.path());
    let mut holder = Holder::this_process(&node(1), Path::new("data")).unwrap();
    // As if it lived in another pid namespace: there the same id means another process.
    holder.start_time += 1;
    let lock = NodeLock::take(directory.path(), &node(1), &holder).unwrap();
    deaths.watch(node(1));
    assert!(matches!(look(directory.path(), &node(1)), (Watched::Looking, _)));
    assert!(reports.try_recv().is_err());
    drop(lock);
    assert_eq!(reports.recv_timeout(PATIENCE).unwrap().0, node(1));
}

#[test]
fn a_dead_process_whose_lock_lives_on_is_not_reported_before_the_lock_is_free() {
    let directory = register();
    let mut other = HoldingProcess::start(directory.path(), &node(2));
    let lock::Liveness::Alive(of_the_dead) = lock::probe(directory.path(), &node(2)) else {
        panic!("it holds it")
    };
    // The lock of node 1 says that the other process holds it, but we do: as a child would that inherited it.
    let lock = NodeLock::take(directory.path(), &node(1), &of_the_dead).unwrap();
    let lock::Liveness::Alive(as_written) = lock::probe(directory.path(), &node(1)) else {
        panic!("we hold it")
    };
    let (deaths, reports) = watch(directory.path());
    deaths.watch(node(1));
    deaths.watch(node(2));
    other.kill();
    assert_eq!(reports.recv_timeout(PATIENCE).unwrap().0, node(2));
    assert!(matches!(confirm(directory.path(), &node(1), CONFIRM_LOOKS, &as_written), (Watched::Looking, _)));
    assert!(reports.try_recv().is_err());
    drop(lock);
    assert_eq!(reports.recv_timeout(PATIENCE).unwrap().0, node(1));
}

#[test]
fn a_process_replaced_by_a_new_one_is_reported() {
    let directory = register();
    let mut first = HoldingProcess::start(directory.path(), &node(1));
    let lock::Liveness::Alive(holder) = lock::probe(directory.path(), &node(1)) else {
        panic!("it holds it")
    };
    first.kill();
    let mut second = HoldingProcess::start(directory.path(), &node(1));
    let (next, dead) = confirm(directory.path(), &node(1), 0, &holder);
    assert!(matches!(next, Watched::Reported) && dead == [holder.session()], "{dead:?}");
    let lock::Liveness::Alive(later) = lock::probe(directory.path(), &node(1)) else { panic!("it holds it") };
    second.kill();
    let (next, dead) = confirm(directory.path(), &node(1), 0, &holder);
    let both = [holder.session(), later.session()];
    assert!(matches!(next, Watched::Reported) && dead == both, "both: {dead:?}");
}

/// The lock's process lives in another pid namespace, where its id is that of a process that also lives here: is the
/// wrong one watched, so that the death goes unnoticed?
fn watches_another_process_of_that_pid() -> bool {
    let directory = register();
    let holder = Holder::this_process(&node(1), Path::new("data")).unwrap().of_another_pid_namespace();
    let lock = NodeLock::take(directory.path(), &node(1), &holder).unwrap();
    let (watched, _) = look(directory.path(), &node(1));
    drop(lock);
    matches!(watched, Watched::Armed { .. })
}

#[test]
fn a_pid_of_another_namespace_is_watched_by_its_lock_and_else_another_process_is() {
    assert!(!watches_another_process_of_that_pid());
    assert!(crate::rules::without(
        Some(crate::rules::Rule::SamePidNamespace),
        watches_another_process_of_that_pid
    ));
}
