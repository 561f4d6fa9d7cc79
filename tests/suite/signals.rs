//! Every signal whose default is death has its decision, in a node and in a supervisor: it is ignored and logged, or ends
//! the process gracefully.

use std::time::Instant;

use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use replcluster::signals::{Decision, all};

use super::cli::Scene;
use super::cluster::{Cluster, PATIENCE, put_request, until};

fn supervisor(scene: &Scene) -> Pid {
    let pid = scene.status()["supervisor"]["pid"].as_i64().unwrap();
    Pid::from_raw(i32::try_from(pid).unwrap())
}

#[test]
fn signals_without_a_meaning_are_logged_by_a_supervisor_and_end_nothing() {
    let scene = Scene::new(2);
    scene.done(&["up"]);
    let (pid, log) = (supervisor(&scene), scene.path(".replcluster/supervisor.log"));
    for signal in [
        Signal::SIGHUP,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGALRM,
        Signal::SIGVTALRM,
        Signal::SIGPROF,
        Signal::SIGIO,
        Signal::SIGXCPU,
    ] {
        kill(pid, signal).unwrap();
        let name = signal.as_str().trim_start_matches("SIG");
        let line = format!("signal {name} ({}) is ignored", signal as i32);
        until(&line, || std::fs::read_to_string(&log).is_ok_and(|text| text.contains(&line)));
    }
    assert_eq!(supervisor(&scene), pid, "the same supervisor");
    assert_eq!(scene.status()["state"], "healthy");
}

#[test]
fn a_signal_that_asks_for_an_end_ends_a_supervisor_gracefully_and_no_node() {
    let scene = Scene::new(2);
    for signal in [Signal::SIGQUIT, Signal::SIGPWR] {
        scene.done(&["up"]);
        kill(supervisor(&scene), signal).unwrap();
        until("the end of the supervisor", || scene.status()["supervisor"]["state"] == "dead");
        let events = scene.done(&["events", "--json"]);
        assert!(
            events.lines().last().unwrap().contains("supervisor-ended"),
            "it said that it ended: {events}"
        );
        assert_eq!(scene.status()["leader"], scene.address(0), "the nodes go on");
    }
}

/// Sends a signal by number: real-time signals have no name in `nix`.
fn send(pid: nix::unistd::Pid, number: i32) {
    let status =
        std::process::Command::new("kill").arg(format!("-{number}")).arg(pid.to_string()).status().unwrap();
    assert!(status.success(), "signal {number}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_ignores_every_signal_that_asks_for_nothing() {
    let mut cluster = Cluster::start(1).await;
    let address = cluster.addresses().remove(0);
    let ignored: Vec<_> =
        all().filter(|entry| matches!(entry.decision, Decision::Ignore | Decision::IgnoreQuietly)).collect();
    assert!(ignored.iter().any(|entry| entry.number == libc::SIGHUP));
    for entry in &ignored {
        send(cluster.nodes[&address].pid(), entry.number);
    }
    let client = cluster.client(std::slice::from_ref(&address));
    client.put(put_request("after", "signals")).await.unwrap();
    let process = cluster.nodes.get_mut(&address).unwrap();
    let said = || std::fs::read_to_string(&process.log).unwrap();
    until("a line in the log", || said().contains("signal HUP (1) is ignored"));
    assert!(!said().contains("signal PIPE"), "{}", said());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_that_asks_for_an_end_ends_a_node_gracefully() {
    for entry in all().filter(|entry| matches!(entry.decision, Decision::Stop | Decision::StopOrForce)) {
        let mut cluster = Cluster::start(1).await;
        let address = cluster.addresses().remove(0);
        send(cluster.nodes[&address].pid(), entry.number);
        let start = Instant::now();
        let code = loop {
            if let Some(code) = cluster.exit_code(&address) {
                break code;
            }
            assert!(start.elapsed() < PATIENCE, "signal {} does not end it", entry.name);
            tokio::task::yield_now().await;
        };
        assert_eq!(code, Some(if entry.decision == Decision::Stop { 0 } else { 130 }), "{}", entry.name);
    }
}
