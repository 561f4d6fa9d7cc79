//! `replcluster` as a user has it: verdicts, exit codes, and a supervisor that dies.

use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::cluster::free_ports;

/// A directory with a `cluster.toml`; whatever it started is ended with it.
pub struct Scene {
    pub directory: tempfile::TempDir,
    ports: Vec<u16>,
    server: Option<std::path::PathBuf>,
    environment: Vec<(String, String)>,
}

impl Drop for Scene {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in
                std::fs::read_dir(self.directory.path().join(".replcluster/nodes")).into_iter().flatten()
            {
                let log = node.unwrap().path().join("log");
                eprintln!("{}:\n{}", log.display(), std::fs::read_to_string(&log).unwrap_or_default());
            }
        }
        let _ = self.run(&["down", "--now"]);
    }
}

impl Scene {
    pub fn new(nodes: usize) -> Scene {
        // The next ones are what `add-follower` takes by itself.
        let ports = free_ports(u16::try_from(nodes).unwrap() + 3);
        let scene =
            Scene { directory: tempfile::tempdir().unwrap(), ports, server: None, environment: vec![] };
        let addresses: Vec<String> = (0..nodes).map(|node| format!("\"{}\"", scene.address(node))).collect();
        scene.config(&format!("name = \"demo\"\nnodes = [{}]\n", addresses.join(", ")));
        scene
    }

    /// A place in its directory.
    pub fn path(&self, inside: &str) -> std::path::PathBuf {
        self.directory.path().join(inside)
    }

    pub fn config(&self, text: &str) {
        std::fs::write(self.directory.path().join("cluster.toml"), text).unwrap();
    }

    pub fn address(&self, node: usize) -> String {
        format!("127.0.0.1:{}", self.ports[node])
    }

    /// Every command from now on gets this variable, and so does a supervisor that it starts.
    pub fn environment(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_replcluster"));
        command.args(arguments).current_dir(self.directory.path()).stdin(Stdio::null());
        command.env_remove("REPLCLUSTER_CONFIG").env_remove("COLUMNS").env("NO_COLOR", "1");
        if let Some(server) = &self.server {
            command.env("REPLSERVER", server);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Exit code, and everything printed.
    pub fn said(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.run(arguments);
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
        (output.status.code().unwrap_or(-1), text)
    }

    pub fn done(&self, arguments: &[&str]) -> String {
        let (code, text) = self.said(arguments);
        assert_eq!(code, 0, "{arguments:?}: {text}");
        text
    }

    /// Takes away the file by which a supervisor counts the steps to its death, and gives what stands in it.
    pub fn counted(&self, counter: &std::path::Path) -> String {
        // One that counts just now has it under another name.
        let taken = self.path("counted");
        super::cluster::until("the counter", || std::fs::rename(counter, &taken).is_ok());
        std::fs::read_to_string(&taken).unwrap()
    }

    pub fn status(&self) -> Value {
        let output = self.run(&["status", "--json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }
}

#[test]
fn three_leaders_killed_in_turn_each_proved_and_up_brings_all_back_under_the_lowest() {
    let scene = Scene::new(3);
    scene.done(&["up"]);
    let status = scene.status();
    assert_eq!(status["leader"], scene.address(0));
    assert_eq!(status["in_sync"].as_array().unwrap().len(), 3);
    assert_eq!((&status["failures_tolerated"], &status["state"]), (&Value::from(2), &Value::from("healthy")));
    scene.done(&["up"]);
    let fourth = scene.address(3);
    scene.done(&["add-follower", &fourth]);
    assert!(std::fs::read_to_string(scene.directory.path().join("cluster.toml")).unwrap().contains(&fourth));
    scene.done(&["client", "put", "kept", "through all of it"]);
    for node in 0..3 {
        let output = scene.run(&["kill", "leader", "--json"]);
        let verdict: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{verdict}");
        assert_eq!(
            (&verdict["verdict"], &verdict["lost"]),
            (&Value::from("proved"), &Value::from(0)),
            "{verdict}"
        );
        assert_eq!(verdict["leader_before"], scene.address(node));
        assert_eq!(verdict["leader_after"], scene.address(node + 1));
    }
    assert_eq!(scene.said(&["status"]).0, 8, "serves, but not all are there");
    scene.done(&["client", "put", "last", "one writes"]);
    scene.done(&["up"]);
    let status = scene.status();
    assert_eq!(status["leader"], scene.address(0));
    assert_eq!(status["in_sync"].as_array().unwrap().len(), 4);
    assert!(scene.done(&["client", "get", "kept"]).contains("through all of it"));
    scene.done(&["remove", &fourth]);
    scene.done(&["down"]);
    assert_eq!(scene.said(&["status"]).0, 3);
}

#[test]
fn a_killed_supervisor_stops_no_node_and_the_next_up_adopts_them() {
    let scene = Scene::new(2);
    scene.done(&["up"]);
    let before = scene.status();
    let pid = i32::try_from(before["supervisor"]["pid"].as_i64().unwrap()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    while scene.status()["supervisor"]["state"] != "dead" {}
    scene.done(&["client", "put", "still", "serving"]);
    scene.done(&["up"]);
    let after = scene.status();
    assert_eq!(after["supervisor"]["state"], "running");
    assert_ne!(after["supervisor"]["pid"], before["supervisor"]["pid"]);
    for node in 0..2 {
        assert_eq!(after["nodes"][node]["pid"], before["nodes"][node]["pid"], "the same process");
    }
}

#[test]
fn wrong_input_has_its_exit_code_and_says_what_to_do() {
    let scene = Scene::new(2);
    for (arguments, code, expected) in [
        (vec!["kill", "leader"], 3, "replcluster up"),
        (vec!["status"], 3, "stopped"),
        (vec!["init"], 5, "cluster.toml"),
        (vec!["nonsense"], 2, "nonsense"),
        (vec!["-f", "missing.toml", "status"], 2, "missing.toml"),
    ] {
        let (found, text) = scene.said(&arguments);
        assert!(found == code && text.contains(expected), "{arguments:?}: {found} {text}");
    }
    let good = std::fs::read_to_string(scene.directory.path().join("cluster.toml")).unwrap();
    let port = scene.ports[0];
    for (text, expected) in [
        ("nodes = [".to_owned(), "cluster.toml"),
        (format!("{good}nmae = \"x\"\n"), "nmae"),
        (format!("nodes = [\"127.0.0.1:{port}\", \"127.0.0.1:{port}\"]"), "twice"),
        (format!("nodes = [\"127.0.0.1:{port}\", \"localhost:{port}\"]"), "same"),
        (format!("{good}[replication]\nfailure_timeout = \"soon\"\n"), "soon"),
    ] {
        scene.config(&text);
        let (code, said) = scene.said(&["up"]);
        assert!(code == 2 && said.contains(expected), "{text}: {code} {said}");
    }
    scene.config(&good);
    scene.done(&["up"]);
    let (code, text) = scene.said(&["kill", "127.0.0.1:9"]);
    assert!(code == 2 && text.contains(&scene.address(0)), "an unknown node: {code} {text}");
    scene.done(&["kill", &scene.address(1)]);
    let (code, text) = scene.said(&["kill", &scene.address(1)]);
    assert!(code == 1 && text.contains("not running"), "a dead node: {code} {text}");
    let (code, text) = scene.said(&["add-follower", &scene.address(0)]);
    assert!(code != 0 && text.contains(&scene.address(0)), "a taken address: {code} {text}");
    scene.done(&["down"]);
    let holder = std::net::TcpListener::bind(scene.address(1)).unwrap();
    let (code, text) = scene.said(&["up"]);
    assert!(code == 5 && text.contains(&std::process::id().to_string()), "a port taken: {code} {text}");
    drop(holder);
    scene.done(&["up"]);
}

#[test]
fn a_node_edited_out_while_it_runs_is_shown_and_ends_with_the_cluster() {
    let scene = Scene::new(3);
    let whole = std::fs::read_to_string(scene.path("cluster.toml")).unwrap();
    let out = scene.address(2);
    for supervisor_dies in [false, true] {
        scene.config(&whole);
        scene.done(&["up"]);
        scene.config(&whole.replace(&format!(", \"{out}\""), ""));
        let shown = scene.done(&["status"]);
        assert!(shown.contains(&format!("{out} runs and is not in cluster.toml any more")), "{shown}");
        if supervisor_dies {
            scene.done(&["kill", "supervisor", "--no-probe"]);
        }
        let ended = scene.done(&["down"]);
        assert!(ended.contains(&out), "{ended}");
        std::net::TcpListener::bind(&out).unwrap();
    }
}

/// A build that acknowledges before its followers hold an entry must be found out: the verdict can fail.
#[cfg(feature = "full-tests")]
#[test]
fn a_build_that_acknowledges_too_early_is_violated() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut scene = Scene::new(3);
    let server = scene.directory.path().join("early");
    let real = super::cluster::replserver().display();
    std::fs::write(&server, format!("#!/bin/sh\nexec {real} \"$@\" --unsafe-acknowledge-early\n")).unwrap();
    std::fs::set_permissions(&server, std::fs::Permissions::from_mode(0o755)).unwrap();
    scene.server = Some(server);
    scene.done(&["up"]);
    let (code, text) = scene.said(&["kill", "leader"]);
    assert!(code == 6 && text.contains("violated"), "{code} {text}");
}
