//! Files that are deleted, moved or held under what runs: nothing empty is ever served in their place, what runs is told
//! from what was left, and what cannot be done is said at once.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cli::Scene;
use super::cluster::{delete, until};

/// Writes through all nodes again and again until it is dropped, whatever comes of it.
struct Load(Child);

impl Load {
    fn new(scene: &Scene, nodes: usize) -> Load {
        let endpoints: Vec<String> = (0..nodes).map(|node| scene.address(node)).collect();
        let line = "while :; do \"$0\" client --endpoints \"$1\" --timeout 200ms put load value; done";
        let mut command = Command::new("sh");
        command.args(["-c", line, env!("CARGO_BIN_EXE_replcluster")]).arg(endpoints.join(","));
        Load(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// The processes that were given a place in this directory.
fn processes_of(directory: &Path) -> Vec<String> {
    let name = directory.to_str().unwrap();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(name) && (line.contains("replserver") || line.contains("supervise")) {
            found.push(line);
        }
    }
    found
}

#[test]
fn where_the_directory_is_deleted_or_moved_under_a_load_no_empty_cluster_takes_its_place() {
    for moved in [false, true] {
        let scene = Scene::new(3);
        scene.done(&["up"]);
        scene.done(&["client", "put", "precious", "1"]);
        let load = Load::new(&scene, 3);
        let (here, there) = (scene.path(".replcluster"), scene.path("elsewhere"));
        if moved {
            std::fs::rename(&here, &there).unwrap();
        } else {
            delete(&here);
        }
        let place = scene.directory.path().canonicalize().unwrap();
        until("the end of all of them", || processes_of(&place).is_empty());
        drop(load);
        assert!(!here.join("register").exists(), "moved: {moved}");
        let (code, text) = scene.said(&["status"]);
        assert_eq!(code, 3, "moved: {moved}: {text}");
        if moved {
            std::fs::rename(&there, &here).unwrap();
            scene.done(&["up"]);
            assert!(scene.done(&["client", "get", "precious"]).contains('1'));
        }
    }
}

#[test]
fn a_supervisor_in_the_foreground_whose_directory_is_gone_has_failed() {
    let scene = Scene::new(1);
    let mut command = scene.command(&["up", "--foreground"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Not before its first write is acknowledged: else that is what has failed.
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("in the foreground")));
    let _read = std::thread::spawn(move || lines.count());
    delete(&scene.path(".replcluster"));
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && text.contains("is gone"), "{text}");
}

#[test]
fn a_deleted_lock_is_taken_anew_by_the_living_supervisor() {
    let scene = Scene::new(1);
    scene.done(&["up"]);
    let before = scene.status()["supervisor"]["pid"].clone();
    std::fs::remove_file(scene.path(".replcluster/supervisor.lock")).unwrap();
    until("the lock", || scene.path(".replcluster/supervisor.lock").exists());
    scene.done(&["up"]);
    assert_eq!(scene.status()["supervisor"]["pid"], before);
}

#[test]
fn without_a_register_status_promises_nothing_and_says_why() {
    let scene = Scene::new(2);
    scene.done(&["up"]);
    delete(&scene.path(".replcluster/register"));
    let (code, text) = scene.said(&["status"]);
    assert!(code == 8 && text.contains("holds no view any more"), "{code} {text}");
    assert!(text.contains("survives 0 more failures"), "{text}");
}

#[test]
fn up_and_start_run_what_somebody_froze_and_stop_ends_it() {
    let scene = Scene::new(2);
    scene.done(&["up"]);
    let freeze = || {
        let pid = scene.status()["nodes"][1]["pid"].as_i64().unwrap();
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGSTOP).unwrap();
        until("a frozen process", || scene.status()["nodes"][1]["state"] == "paused");
        pid
    };
    for verb in [&["up"][..], &["start", &scene.address(1)]] {
        let pid = freeze();
        scene.done(verb);
        let status = scene.status();
        assert_eq!((&status["state"], &status["nodes"][1]["pid"]), (&"healthy".into(), &pid.into()));
    }
    freeze();
    scene.done(&["stop", &scene.address(1)]);
    let events = scene.done(&["events", "--json"]);
    let exit = events.lines().rev().find(|line| line.contains("\"exited\"")).unwrap();
    assert!(exit.contains("\"code\":0"), "it ended by itself: {exit}");
}

#[test]
fn a_cluster_may_move_to_other_addresses_altogether() {
    let scene = Scene::new(4);
    let addresses: Vec<String> = (0..4).map(|node| scene.address(node)).collect();
    let list = |nodes: &[String]| format!("name = \"demo\"\nnodes = [\"{}\"]\n", nodes.join("\", \""));
    scene.config(&list(&addresses[..2]));
    scene.done(&["up"]);
    scene.done(&["client", "put", "key", "kept"]);
    scene.config(&list(&addresses[1..]));
    let status = scene.status();
    assert_eq!(status["leader"], addresses[0], "it leads on, though it is listed no more");
    scene.config(&list(&addresses[2..]));
    scene.done(&["up"]);
    let status = scene.status();
    assert_eq!((&status["state"], &status["leader"]), (&"healthy".into(), &addresses[2].as_str().into()));
    assert_eq!(status["in_sync"].as_array().unwrap().len(), 2);
    assert!(scene.done(&["client", "get", "key"]).contains("kept"));
}

#[test]
fn a_log_whose_last_line_has_no_end_is_read_to_its_end() {
    let scene = Scene::new(1);
    scene.done(&["up"]);
    scene.done(&["down"]);
    let log = scene.path(&format!(".replcluster/nodes/{}/log", scene.address(0).replace(':', "_")));
    let mut text = std::fs::read(&log).unwrap();
    text.extend(vec![0; 1 << 20]);
    std::fs::write(&log, text).unwrap();
    assert!(scene.done(&["logs", "-n", "3"]).lines().count() >= 2);
}

#[test]
fn why_no_process_could_be_made_is_said_and_not_how_an_earlier_one_ended() {
    let scene = Scene::new(1);
    scene.done(&["up"]);
    scene.done(&["stop", &scene.address(0)]);
    delete(&scene.path(".replcluster/register"));
    let (code, text) = scene.said(&["start", &scene.address(0)]);
    assert!(code == 1 && text.contains("holds no view any more"), "{code} {text}");
}

#[test]
fn who_waits_to_change_the_configuration_says_for_what() {
    let scene = Scene::new(1);
    scene.done(&["up"]);
    let mut holder = Command::new("flock");
    let mut held = holder.arg(scene.directory.path()).args(["-c", "echo; read _"]);
    held = held.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut holder = held.spawn().unwrap();
    let mut first = [0];
    std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut first).unwrap();
    let mut command = scene.command(&["add-follower"]);
    let mut adding = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut told = String::new();
    let mut reader = std::io::BufReader::new(adding.stderr.take().unwrap());
    std::io::BufRead::read_line(&mut reader, &mut told).unwrap();
    assert!(told.contains("waiting for another command"), "{told}");
    drop(holder.stdin.take());
    holder.wait().unwrap();
    std::io::Read::read_to_string(&mut reader, &mut told).unwrap();
    assert!(adding.wait().unwrap().success(), "{told}");
}

#[test]
fn a_fresh_cluster_warns_of_nothing() {
    let scene = Scene::new(3);
    scene.done(&["up"]);
    scene.done(&["kill", "leader"]);
    let logs = scene.done(&["logs"]);
    let warnings: Vec<_> =
        logs.lines().filter(|line| line.contains(" WARN ") || line.contains(" ERROR ")).collect();
    assert!(warnings.is_empty(), "{warnings:#?}");
}
