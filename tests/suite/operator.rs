//! The operator's seat under fire: the supervisor is killed at every step of what it does, commands are killed in the
//! middle, and afterwards no node is lost, doubled or left frozen, and the history tells everything once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::cli::Scene;
use super::cluster::until;

/// Names a file that says after how many steps a supervisor dies (builds with debug assertions only).
const DIES: &str = "REPLCLUSTER_SUPERVISOR_DIES";

/// A process of a node of this scene.
#[derive(Debug)]
struct Process {
    pid: i32,
    address: String,
    state: char,
}

fn processes(scene: &Scene) -> Vec<Process> {
    let inside = scene.directory.path().canonicalize().unwrap();
    let inside = inside.to_str().unwrap();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<String> =
            line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        let after =
            |flag: &str| words.iter().position(|word| word == flag).and_then(|at| words.get(at + 1)).cloned();
        let (Some(address), Some(data)) = (after("--address"), after("--data-dir")) else { continue };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let Some(state) = stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next()) else {
            continue;
        };
        if data.starts_with(inside) && state != 'Z' {
            found.push(Process { pid, address, state });
        }
    }
    found
}

fn history(scene: &Scene) -> Vec<Value> {
    scene.done(&["events", "--json"]).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Every process is told to start once and to end once, every view, order and phase of a fault once.
fn check_history(scene: &Scene, context: &str) {
    // A kill is healed when the supervisor has seen the node serve, a moment after everybody else may have.
    let is_open = |history: &[Value]| {
        let mut last = BTreeMap::new();
        for event in history.iter().filter(|event| event["event"] == "fault") {
            last.insert((event["fault"].to_string(), event["node"].to_string()), event["phase"].clone());
        }
        last.values().any(|phase| *phase != "healed" && *phase != "abandoned")
    };
    until(&format!("{context}: the end of every fault"), || !is_open(&history(scene)));
    let history = history(scene);
    let text = |event: &Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
    let mut ids = BTreeSet::new();
    let mut open: BTreeMap<String, u64> = BTreeMap::new();
    let mut ready = BTreeSet::new();
    let mut epoch = 0;
    let mut phases: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    let mut adopted = BTreeSet::new();
    let mut supervisors = 0;
    for event in &history {
        assert!(ids.insert(text(event, "id")), "{context}: told twice: {event}");
        let node = text(event, "node");
        let pid = event["pid"].as_u64().unwrap_or(0);
        match event["event"].as_str().unwrap() {
            "supervisor-started" => supervisors += 1,
            "started" => {
                let before = open.insert(node.clone(), pid);
                assert_eq!(before, None, "{context}: {node} started while it ran: {event}");
            }
            "adopted" => {
                assert_eq!(open.get(&node), Some(&pid), "{context}: {event} of no known process");
                assert!(adopted.insert((supervisors, pid)), "{context}: told twice: {event}");
            }
            "ready" => {
                let of_pid = open.get(&node).copied();
                assert!(ready.insert((node.clone(), of_pid)), "{context}: told twice: {event}");
            }
            "exited" => {
                assert_eq!(open.remove(&node), Some(pid), "{context}: {event} of no running process");
            }
            "view" => {
                let next = event["epoch"].as_u64().unwrap();
                assert!(next > epoch, "{context}: view {next} after {epoch}");
                epoch = next;
            }
            "fault" => {
                let order = ["intent", "applied", "seen", "held"];
                let told = phases.entry((text(event, "fault"), node)).or_default();
                let phase = text(event, "phase");
                let rank = |phase: &str| order.iter().position(|one| *one == phase).unwrap_or(order.len());
                assert!(
                    told.last().is_none_or(|last| rank(last) < rank(&phase)),
                    "{context}: {phase} after {told:?}"
                );
                told.push(phase);
            }
            _ => {}
        }
    }
    let alive: BTreeMap<String, u64> = processes(scene)
        .into_iter()
        .map(|process| (process.address, u64::try_from(process.pid).unwrap()))
        .collect();
    assert_eq!(open, alive, "{context}: what the history says runs and what runs");
}

/// No node is lost, doubled or frozen.
fn check_processes(scene: &Scene, context: &str) {
    let status = scene.status();
    assert_eq!(status["state"], "healthy", "{context}: {status:#}");
    let running = processes(scene);
    let mut addresses: Vec<&String> = running.iter().map(|process| &process.address).collect();
    addresses.sort();
    let listed: Vec<String> = status["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| node["address"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(addresses, listed.iter().collect::<Vec<_>>(), "{context}: one process a node");
    assert!(running.iter().all(|process| process.state != 'T'), "{context}: {running:?}");
}

/// True where the history says that a pause stands: it was confirmed, and neither it nor its process has ended.
fn is_held(scene: &Scene) -> bool {
    let mut last = BTreeMap::new();
    for event in history(scene) {
        match event["event"].as_str().unwrap() {
            "fault" if event["kind"] == "pause" => {
                last.insert(event["node"].to_string(), event["phase"] == "held");
            }
            _ => {}
        }
    }
    last.values().any(|held| *held)
}

struct Steps {
    scene: Scene,
    counter: PathBuf,
    kills: usize,
}

impl Steps {
    fn new() -> Steps {
        let mut scene = Scene::new(2);
        let counter = scene.path("dies");
        scene.environment(DIES, counter.to_str().unwrap());
        Steps { scene, counter, kills: 0 }
    }

    /// Runs this with its supervisor killed at every `stride`th step, from a state that `prepare` makes.
    fn kill_at_every_step(&mut self, verb: &[&str], stride: usize, prepare: impl Fn(&Scene)) {
        let mut at = 1;
        loop {
            prepare(&self.scene);
            std::fs::write(&self.counter, at.to_string()).unwrap();
            let (code, said) = self.scene.said(verb);
            let left = self.scene.counted(&self.counter);
            if !left.starts_with("died") {
                // It has fewer steps than that: all were tried.
                return;
            }
            let context = format!("{verb:?} whose supervisor {left} (step {at}), which said\n{said}");
            self.kills += 1;
            // Any command will do, also one that only looks: nothing stays frozen, unless a pause was told to stand, by
            // the help of the next supervisor.
            self.scene.said(&["status"]);
            let frozen: Vec<Process> =
                processes(&self.scene).into_iter().filter(|process| process.state == 'T').collect();
            let wanted = verb[0] == "pause" && code == 0 || is_held(&self.scene);
            assert!(frozen.is_empty() || wanted, "{context}: frozen: {frozen:?}");
            if verb[0] == "restart" {
                // Not `up`, which would start whatever is missing.
                self.scene.said(&["start", &self.scene.address(0)]);
                until(&format!("{context}: the node that was to run again"), || {
                    processes(&self.scene).len() == 2
                });
            }
            let up = self.scene.said(&["up"]);
            assert_eq!(up.0, 0, "{context}: {}", up.1);
            check_processes(&self.scene, &context);
            check_history(&self.scene, &context);
            at += stride;
        }
    }
}

fn running(scene: &Scene) {
    scene.done(&["up"]);
}

fn paused(scene: &Scene) {
    running(scene);
    scene.done(&["pause", &scene.address(1)]);
}

fn stopped(scene: &Scene) {
    scene.done(&["down"]);
}

/// `REPLCLUSTER_EVERY_STEP=1` kills at every step, as CI does; without it at every fifth.
#[test]
fn a_supervisor_killed_at_any_step_of_any_verb_loses_doubles_and_freezes_nothing() {
    let every = std::env::var_os("REPLCLUSTER_EVERY_STEP").is_some();
    let stride = if every { 1 } else { 5 };
    let mut steps = Steps::new();
    let follower = steps.scene.address(1);
    steps.kill_at_every_step(&["up"], stride, stopped);
    steps.kill_at_every_step(&["kill", &follower, "--no-probe"], stride, running);
    steps.kill_at_every_step(&["kill", &follower, "--no-probe"], stride, paused);
    steps.kill_at_every_step(&["pause", &follower], stride, running);
    steps.kill_at_every_step(&["pause", "all", "--for", "20ms"], stride, running);
    steps.kill_at_every_step(&["restart", &follower], stride, running);
    steps.kill_at_every_step(&["down"], stride, running);
    steps.kill_at_every_step(&["add-follower"], stride, |scene| {
        running(scene);
        let nodes = scene.status()["nodes"].as_array().unwrap().len();
        if nodes > 2 {
            let added = scene.status()["nodes"][nodes - 1]["address"].as_str().unwrap().to_owned();
            scene.done(&["remove", &added]);
        }
    });
    println!("the supervisor was killed {} times", steps.kills);
    assert!(steps.kills >= if every { 100 } else { 15 }, "{} kills", steps.kills);
}

#[test]
fn a_killed_supervisor_is_a_verdict_like_any_other_and_the_next_knows_how_its_nodes_end() {
    let scene = Scene::new(2);
    scene.done(&["up"]);
    let before: Vec<i32> = processes(&scene).iter().map(|process| process.pid).collect();
    let (code, said) = scene.said(&["kill", "supervisor", "--json"]);
    assert_eq!(code, 0, "{said}");
    let verdict: Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&verdict["verdict"], &verdict["killed"]),
        (&"proved".into(), &serde_json::json!(["supervisor"]))
    );
    assert_eq!(scene.status()["supervisor"]["state"], "dead");
    assert_eq!(scene.said(&["kill", "supervisor"]).0, 1);
    scene.done(&["up"]);
    let after: Vec<i32> = processes(&scene).iter().map(|process| process.pid).collect();
    assert_eq!(before, after, "nothing was touched");
    // No child of the new supervisor, and yet its exact end is known.
    let follower = scene.address(1);
    let victim = processes(&scene).into_iter().find(|process| process.address == follower).unwrap();
    kill(Pid::from_raw(victim.pid), Signal::SIGABRT).unwrap();
    until("the end of an adopted node", || {
        history(&scene).iter().any(|event| {
            event["event"] == "exited"
                && event["pid"] == victim.pid
                && event["signal"] == 6
                && event["cause"] == "crash"
        })
    });
}

#[test]
fn what_was_changed_in_the_configuration_is_shown_and_applied_without_a_failed_write() {
    let scene = Scene::new(3);
    scene.done(&["up"]);
    // The one that goes leads.
    let addresses: Vec<String> = (1..3).map(|node| format!("\"{}\"", scene.address(node))).collect();
    let gone = scene.address(0);
    let edited = |timeout: &str| {
        scene.config(&format!(
            "name = \"demo\"\nnodes = [{}]\n[replication]\nfailure_timeout = \"{timeout}\"\n",
            addresses.join(", ")
        ));
    };
    edited("450ms");
    let plan = scene.done(&["up", "--dry-run"]);
    assert!(plan.contains("failure_timeout 300ms → 450ms"), "{plan}");
    assert!(plan.contains(&format!("take out {gone}")), "{plan}");
    assert_eq!(processes(&scene).len(), 3, "a dry run does nothing");
    let (code, said) = scene.said(&["up"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("failure_timeout 300ms → 450ms"), "{said}");
    check_processes(&scene, "after the change");
    assert!(processes(&scene).iter().all(|process| process.address != gone));
    assert!(!scene.done(&["up", "--dry-run"]).contains("restart"), "it is applied");
    let members = scene.done(&["client", "get", "nothing"]);
    assert_eq!(members, "");
}

#[test]
fn a_command_killed_in_the_middle_of_a_pause_leaves_nothing_frozen() {
    let scene = Scene::new(2);
    scene.done(&["up"]);
    let follower = scene.address(1);
    for delay_us in (0..60).map(|round| round * 1500) {
        let mut command = scene.command(&["pause", &follower]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_micros(delay_us) {
            std::thread::yield_now();
        }
        let _ = child.kill();
        let told = child.wait().unwrap().success();
        let resumed = scene.said(&["resume", &follower]).0 == 0;
        // Killed before it was done: nothing is frozen, at the latest when the supervisor notices. Done: it stays frozen
        // until resumed.
        assert!(!told || resumed, "told so, but not frozen");
        until("thawing", || processes(&scene).iter().all(|process| process.state != 'T'));
    }
    check_processes(&scene, "after the pauses");
}

#[test]
fn nothing_outlives_a_supervisor_in_the_foreground() {
    let scene = Scene::new(2);
    let mut command = scene.command(&["up", "--foreground"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("both serve", || scene.status()["state"] == "healthy");
    let running = processes(&scene);
    assert_eq!(running.len(), 2);
    let frozen = running[0].pid;
    kill(Pid::from_raw(frozen), Signal::SIGSTOP).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    until("the end of all nodes", || processes(&scene).is_empty());
    assert_eq!(scene.said(&["status"]).0, 3);
    // And a graceful end ends all as well.
    let mut child = Command::spawn(command.stdout(Stdio::null())).unwrap();
    until("both serve again", || scene.status()["state"] == "healthy");
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().code().is_some(), "it ends by itself");
    assert!(processes(&scene).is_empty());
}

#[test]
fn a_supervisor_in_the_foreground_does_not_begin_beside_a_node_that_would_outlive_it() {
    let scene = Scene::new(2);
    let whole = std::fs::read_to_string(scene.path("cluster.toml")).unwrap();
    scene.done(&["up"]);
    scene.done(&["kill", &scene.address(0), "--no-probe"]);
    scene.done(&["kill", "supervisor", "--no-probe"]);
    // The one that lives is edited out.
    let left = scene.address(1);
    scene.config(&whole.replace(&format!(", \"{left}\""), ""));
    let (code, said) = scene.said(&["up", "--foreground"]);
    assert!(code == 5 && said.contains(&left) && said.contains("would outlive"), "{code} {said}");
    assert_eq!(processes(&scene).len(), 1, "nothing was started and nothing ended");
    scene.done(&["down"]);
    assert_eq!(processes(&scene).len(), 0);
}

#[test]
fn a_copied_directory_is_another_cluster_and_a_moved_one_is_the_same() {
    let scene = Scene::new(2);
    let place = scene.path("first");
    std::fs::create_dir(&place).unwrap();
    std::fs::rename(scene.path("cluster.toml"), place.join("cluster.toml")).unwrap();
    let at = |place: &Path, verb: &[&str]| {
        let output = scene.command(verb).current_dir(place).output().unwrap();
        let said = [output.stderr, output.stdout].concat();
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned())
    };
    let done = |place: &Path, verb: &[&str]| {
        let (code, said) = at(place, verb);
        assert_eq!(code, 0, "{verb:?} in {}: {said}", place.display());
        said
    };
    let _ended = Ended { scene: &scene, places: ["first", "moved"].map(|name| scene.path(name)) };
    done(&place, &["up"]);
    let follower = scene.address(1);
    let copy = scene.path("copy");
    done(&place, &["pause", &follower]);
    assert!(Command::new("cp").arg("-a").args([&place, &copy]).status().unwrap().success());
    // Whatever is said in the copy, nothing of the first one is touched.
    let before = pids(&scene);
    for verb in [&["up"][..], &["resume", &follower], &["kill", "all", "--yes"], &["down", "--now"]] {
        let (code, said) = at(&copy, verb);
        assert!(code != 0 || verb[0] == "down", "{verb:?}: {said}");
        assert_eq!(pids(&scene), before, "{verb:?}: {said}");
    }
    done(&place, &["resume", &follower]);
    // One that is moved while its nodes run is the same cluster: they are known for its own, and started anew, for they
    // would look for their files and their register where these are no more.
    done(&place, &["client", "put", "key", "kept"]);
    done(&place, &["kill", "supervisor", "--no-probe"]);
    let moved = scene.path("moved");
    std::fs::rename(&place, &moved).unwrap();
    std::fs::rename(&copy, &place).unwrap();
    let said = done(&moved, &["up"]);
    assert!(said.contains("the directory was moved while it ran"), "{said}");
    assert_eq!(processes(&scene).len(), 2);
    assert!(pids(&scene).iter().all(|pid| !before.contains(pid)), "{said}");
    assert!(done(&moved, &["client", "get", "key"]).contains("kept"));
    done(&moved, &["down"]);
    assert_eq!(processes(&scene).len(), 0);
}

/// Clusters in other directories than the scene's own, which end with it whatever a test finds.
struct Ended<'a> {
    scene: &'a Scene,
    places: [PathBuf; 2],
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        for place in self.places.iter().filter(|place| place.exists()) {
            let _ = self.scene.command(&["down", "--now"]).current_dir(place).output();
        }
    }
}

/// The nodes' processes, and which of them are frozen.
fn pids(scene: &Scene) -> Vec<(i32, bool)> {
    let mut all: Vec<(i32, bool)> =
        processes(scene).into_iter().map(|process| (process.pid, process.state == 'T')).collect();
    all.sort_unstable();
    all
}

#[test]
fn the_last_in_sync_node_is_not_frozen_or_killed_by_accident() {
    let scene = Scene::new(2);
    scene.done(&["up"]);
    for verb in [["kill", "all"], ["pause", "all"]] {
        let (code, said) = scene.said(&verb);
        assert_eq!(code, 2, "{said}");
        assert!(said.contains("survives 1 failure now") && said.contains("--yes"), "{said}");
    }
    assert_eq!(scene.status()["state"], "healthy");
    scene.done(&["pause", "all", "--for", "10ms"]);
    scene.done(&["pause", "all", "--yes"]);
    assert_eq!(scene.status()["state"], "unavailable");
    scene.done(&["resume", "all"]);
    until("serving again", || scene.status()["state"] == "healthy");
}

#[test]
fn a_draw_is_repeated_by_its_seed() {
    let scene = Scene::new(3);
    scene.done(&["up"]);
    let draw = |seed: &str| {
        let said = scene.done(&["kill", "--random", "--seed", seed, "--no-probe", "--json"]);
        let killed: Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
        scene.done(&["up"]);
        killed["killed"][0].as_str().unwrap().to_owned()
    };
    assert_eq!(draw("7"), draw("7"));
    let drawn: BTreeSet<String> = (0..6).map(|seed| draw(&seed.to_string())).collect();
    assert!(drawn.len() > 1, "{drawn:?}");
    assert_eq!(scene.said(&["kill"]).0, 2, "a target or --random is needed");
    assert_eq!(scene.said(&["kill", "all", "--seed", "1"]).0, 2);
}

#[test]
fn an_address_that_was_removed_joins_again_and_its_former_data_is_kept() {
    let scene = Scene::new(2);
    scene.done(&["up"]);
    scene.done(&["client", "put", "k", "v"]);
    for round in 0..2 {
        scene.done(&["add-follower"]);
        check_processes(&scene, "added");
        let added = scene.status()["nodes"][2]["address"].as_str().unwrap().to_owned();
        let data = scene.path(&format!(".replcluster/nodes/{}/data", added.replace(':', "_")));
        let aside = data.join(format!("aside-{}", round + 1));
        scene.done(&["remove", &added]);
        assert!(data.join("identity").exists() && !aside.exists(), "what is removed keeps its data in place");
        assert_eq!(data.join("aside-1").exists(), round > 0);
    }
    check_history(&scene, "after it all");
}
