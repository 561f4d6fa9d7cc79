//! A signal without a decision would end a supervisor by its default, without a word.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cli::Scene;
use super::cluster::until;

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
