//! The verdict of a kill rests on what was seen and on nothing else; what was not seen is told as that. And what is
//! killed: never the last in-sync node unasked, whoever else is at work.

use std::process::{Child, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::cli::Scene;
use super::cluster::until;

fn history(scene: &Scene, kind: &str) -> Vec<Value> {
    let events = scene.done(&["events", "--json"]);
    let events = events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    events.filter(|event| event["event"] == kind).collect()
}

fn last_verdict(scene: &Scene) -> Value {
    history(scene, "verdict").pop().unwrap()
}

/// How many keys loads have left behind.
fn left_behind(scene: &Scene) -> String {
    scene.done(&["client", "get", "--prefix", "replcluster/", "--count-only"]).trim().to_owned()
}

fn begun(scene: &Scene, arguments: &[&str]) -> Child {
    scene.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout))
}

fn pid_of(scene: &Scene, node: usize) -> Option<i64> {
    scene.status()["nodes"][node]["pid"].as_i64()
}

fn lives(pid: i64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

#[test]
fn what_was_not_seen_is_never_proved_nor_counted_and_the_next_up_takes_away_what_was_left() {
    let scene = Scene::new(3);
    let text = std::fs::read_to_string(scene.path("cluster.toml")).unwrap();
    scene.config(&format!("{text}[replication]\nmin_in_sync = 2\n"));
    scene.done(&["up"]);
    // The leader goes on, and may acknowledge nothing.
    let output = scene.run(&["kill", "followers", "--yes", "--json"]);
    let verdict: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &verdict["verdict"]), (Some(7), &"inconclusive".into()), "{verdict}");
    assert_eq!(verdict["resumed"], false, "{verdict}");
    assert!(verdict["reason"].as_str().unwrap().contains("sent after the fault"), "{verdict}");
    assert!(verdict["leftover"].as_str().unwrap().contains("replcluster/probe/"), "{verdict}");
    let told = last_verdict(&scene);
    assert!(told["unavailable_ms"].is_null() && told["silent_ms"].as_f64().unwrap() > 1000.0, "{told}");
    let sentences = scene.done(&["events"]);
    assert!(sentences.contains("writes did not come back within"), "{sentences}");
    scene.done(&["up"]);
    assert_eq!(left_behind(&scene), "0");
    // Nobody is left who could be read.
    let (code, said) = scene.said(&["kill", "all", "--yes"]);
    assert!(code == 7 && said.contains("acknowledged, not read back"), "{code} {said}");
    assert!(said.contains("the next `replcluster up` or `kill` removes them"), "{said}");
    let told = last_verdict(&scene);
    assert!(told["lost"].is_null() && told["acknowledged"].as_u64().unwrap() > 0, "{told}");
    scene.done(&["up"]);
    assert_eq!(left_behind(&scene), "0");
    scene.done(&["kill", "follower", "--no-probe"]);
    let told = last_verdict(&scene);
    assert!(told["lost"].is_null() && told["acknowledged"].is_null(), "{told}");
    assert!(scene.done(&["events"]).contains("not probed: "));
}

#[test]
fn a_kill_without_an_answer_of_the_supervisor_is_judged_all_the_same() {
    let mut scene = Scene::new(2);
    let counter = scene.path("dies");
    scene.environment("REPLCLUSTER_SUPERVISOR_DIES", counter.to_str().unwrap());
    let follower = scene.address(1);
    let mut judged = 0;
    for at in (1..).step_by(4) {
        scene.done(&["up"]);
        let (victim, before) = (pid_of(&scene, 1).unwrap(), history(&scene, "verdict").len());
        std::fs::write(&counter, at.to_string()).unwrap();
        let (code, said) = scene.said(&["kill", &follower]);
        let left = scene.counted(&counter);
        let context = format!("the supervisor {left} (step {at}), code {code}:\n{said}");
        if lives(victim) {
            assert_eq!(history(&scene, "verdict").len(), before, "{context}");
            assert!(!said.contains("acknowledged"), "{context}");
        } else {
            assert_eq!(history(&scene, "verdict").len(), before + 1, "{context}");
            assert!(said.contains("acknowledged, 0 lost"), "{context}");
            judged += 1;
        }
        if !left.starts_with("died") {
            // Whether a write was in flight is chance; that it is said where none was is not.
            assert!(code == 0 || said.contains("no write was in flight"), "{context}");
            break;
        }
    }
    assert!(judged >= 2, "{judged}");
}

#[test]
fn kills_that_race_leave_the_last_in_sync_node_alone() {
    let scene = Scene::new(3);
    for _ in 0..3 {
        scene.done(&["up"]);
        let racing: Vec<Child> =
            (0..3).map(|node| begun(&scene, &["kill", &scene.address(node), "--no-probe"])).collect();
        let ended: Vec<Output> = racing.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
        let told: Vec<String> = ended.iter().map(said).collect();
        let refused = ended.iter().filter(|output| matches!(output.status.code(), Some(2 | 5))).count();
        assert!(refused >= 1, "{told:#?}");
        let alive = (0..3).filter(|node| pid_of(&scene, *node).is_some()).count();
        assert_eq!(alive, refused, "{told:#?}");
    }
    scene.done(&["up"]);
    let racing: Vec<Child> = (0..3).map(|node| begun(&scene, &["pause", &scene.address(node)])).collect();
    let told: Vec<String> =
        racing.into_iter().map(|child| said(&child.wait_with_output().unwrap())).collect();
    assert!(told.iter().any(|text| text.contains("--yes")), "{told:#?}");
    scene.done(&["resume", "all"]);
}

#[test]
fn down_and_up_at_once_do_not_wait_for_each_others_processes() {
    let scene = Scene::new(2);
    for delay_ms in [5, 20, 40] {
        scene.done(&["up"]);
        let began = Instant::now();
        let down = begun(&scene, &["down"]);
        while began.elapsed() < Duration::from_millis(delay_ms) {
            std::thread::yield_now();
        }
        let up = begun(&scene, &["up"]);
        let output = down.wait_with_output().unwrap();
        let (code, text) = (output.status.code(), said(&output));
        assert!(matches!(code, Some(0 | 5)), "{code:?} {text}");
        assert!(began.elapsed() < Duration::from_secs(10), "{:?} {text}", began.elapsed());
        assert!(code == Some(0) || text.contains("another command"), "{text}");
        up.wait_with_output().unwrap();
    }
}

#[test]
fn a_supervisor_in_the_foreground_is_asked_about_for_it_takes_all_nodes_with_it() {
    let scene = Scene::new(2);
    let mut foreground = scene.command(&["up", "--foreground"]);
    let mut foreground = foreground.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("both serve", || scene.status()["state"] == "healthy");
    let nodes: Vec<i64> = (0..2).map(|node| pid_of(&scene, node).unwrap()).collect();
    let (code, told) = scene.said(&["kill", "supervisor"]);
    assert!(code == 2 && told.contains("foreground"), "{code} {told}");
    assert!(nodes.iter().all(|pid| lives(*pid)), "nothing was done unasked");
    let (code, told) = scene.said(&["kill", "supervisor", "--yes"]);
    assert!(code == 7 && told.contains("its nodes ended with it"), "{code} {told}");
    assert!(!told.contains("no node was touched") && told.contains(&scene.address(1)), "{told}");
    assert!(nodes.iter().all(|pid| !lives(*pid)));
    foreground.wait().unwrap();
}

#[test]
fn every_signal_that_is_taken_ends_a_node_and_several_nodes_means_those_that_run() {
    let scene = Scene::new(3);
    scene.done(&["up"]);
    for signal in ["SEGV", "BUS"] {
        let (code, told) = scene.said(&["kill", &scene.address(2), "--signal", signal]);
        assert!(code == 0 && told.contains("proved"), "{signal}: {code} {told}");
        let exit = history(&scene, "exited").pop().unwrap();
        let expected =
            signal.parse::<Signal>().or_else(|_| format!("SIG{signal}").parse::<Signal>()).unwrap();
        assert_eq!((&exit["signal"], &exit["cause"]), (&(expected as i32).into(), &"operator".into()));
        scene.done(&["up"]);
    }
    let (code, told) = scene.said(&["kill", "follower", "--signal", "PIPE"]);
    assert!(code == 2 && told.contains("ignores"), "{code} {told}");
    let down = scene.address(2);
    scene.done(&["kill", &down, "--no-probe"]);
    let told = scene.done(&["pause", "all", "--for", "20ms"]);
    assert!(told.contains(&scene.address(1)) && !told.contains(&down), "{told}");
    until("thawed", || scene.status()["nodes"][1]["state"] == "ready");
    let told = scene.done(&["restart", "all"]);
    assert!(!told.contains(&down), "{told}");
    let told = scene.done(&["stop", "all"]);
    assert!(told.contains(&format!("{down} was down already")), "{told}");
    assert!(
        !told
            .lines()
            .any(|line| line.starts_with("stopped") && line.split(';').next().unwrap().contains(&down))
    );
}

#[test]
fn without_a_register_a_kill_says_what_it_waits_for_and_ends_when_it_is_told_to() {
    let scene = Scene::new(2);
    scene.done(&["up"]);
    let leader = pid_of(&scene, 0).unwrap();
    std::fs::rename(scene.path(".replcluster/register"), scene.path("away")).unwrap();
    let child = begun(&scene, &["kill", "leader", "--yes"]);
    until("the end of the leader", || !lives(leader));
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    let began = Instant::now();
    let output = child.wait_with_output().unwrap();
    let text = said(&output);
    assert_eq!(output.status.code(), Some(130), "{text}");
    assert!(text.contains("interrupted while ") && text.contains("Ctrl-C again"), "{text}");
    assert!(!text.contains("carried out"), "only reads failed: {text}");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?} {text}", began.elapsed());
    std::fs::rename(scene.path("away"), scene.path(".replcluster/register")).unwrap();
}

/// Runs `kill` while another client does this over and over, and gives its exit code and verdict.
fn killed_while(scene: &Scene, disturb: impl Fn(&Scene) + Sync) -> (Option<i32>, Value) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                disturb(scene);
            }
        });
        let output = scene.run(&["kill", "leader", "--json"]);
        over.store(true, Ordering::SeqCst);
        (
            output.status.code(),
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}")),
        )
    })
}

/// Kills until what the other client does has met the load of a kill, which is short. No kill calls anything lost.
fn overtaken_while(scene: &Scene, disturb: impl Fn(&Scene) + Sync) -> Value {
    for _ in 0..20 {
        scene.done(&["up"]);
        let (code, verdict) = killed_while(scene, &disturb);
        assert_eq!((&verdict["lost"], verdict["violations"].as_array().map(Vec::len)), (&0.into(), Some(0)));
        match code {
            Some(7) => return verdict,
            other => assert_eq!(other, Some(0), "{verdict}"),
        }
    }
    panic!("no delete of another client has met the load of any kill");
}

#[test]
fn a_delete_of_everything_during_a_kill_is_no_data_loss() {
    let scene = Scene::new(3);
    let verdict = overtaken_while(&scene, |scene| drop(scene.run(&["client", "del", "--prefix", ""])));
    assert_eq!(verdict["verdict"], "inconclusive", "{verdict}");
    assert!(verdict["overtaken"].as_u64().unwrap() > 0, "{verdict}");
    assert!(verdict["reason"].as_str().unwrap().contains("another client"), "{verdict}");
    overtaken_while(&scene, |scene| {
        drop(scene.run(&["client", "del", "--prefix", ""]));
        if let Some(revision) = scene.status()["nodes"][1]["revision"].as_i64() {
            drop(scene.run(&["client", "compact", &revision.to_string()]));
        }
    });
}
