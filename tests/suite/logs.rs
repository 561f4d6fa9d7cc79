//! Logs as an operator has them: followed over kills and over files that are put aside, searched, and turned up live.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Instant;

use serde_json::Value;

use super::cli::Scene;
use super::cluster::PATIENCE;

/// A `replcluster logs -f` of which the lines are read as they come.
struct Follower {
    child: Child,
    lines: mpsc::Receiver<String>,
    seen: Vec<String>,
}

impl Follower {
    fn start(scene: &Scene, arguments: &[&str]) -> Follower {
        let mut command = command(scene, arguments);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (tell, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines() {
                let _ = tell.send(line.unwrap());
            }
        });
        Follower { child, lines, seen: Vec::new() }
    }

    /// Reads on until a line is one of those that are waited for.
    fn wait(&mut self, wanted: impl Fn(&str) -> bool) {
        loop {
            let line = self.lines.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|_| panic!("it never came; seen:\n{}", self.seen.join("\n")));
            self.seen.push(line);
            if wanted(self.seen.last().unwrap()) {
                return;
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(scene: &Scene, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_replcluster"));
    command.args(arguments).current_dir(scene.directory.path()).stdin(Stdio::null());
    command.env_remove("REPLCLUSTER_CONFIG");
    command
}

/// What a command prints, in lines; nothing else may be on stderr.
fn lines(scene: &Scene, arguments: &[&str]) -> Vec<String> {
    let output = command(scene, arguments).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

fn scene(logs: &str) -> Scene {
    let scene = Scene::new(2);
    let config = std::fs::read_to_string(scene.path("cluster.toml")).unwrap();
    scene.config(&format!("{config}[logs]\n{logs}\n"));
    scene.done(&["up"]);
    scene
}

fn node_file(scene: &Scene, node: usize, name: &str) -> PathBuf {
    scene.path(&format!(".replcluster/nodes/{}/{name}", scene.address(node).replace(':', "_")))
}

#[test]
fn a_follower_shows_every_line_once_over_kills_and_files_that_are_put_aside() {
    const KILLS: usize = 12;
    let scene = scene("max_size = \"4KiB\"\nkeep = 50\nlevel = \"debug\"");
    let node = scene.address(1);
    let mut follower = Follower::start(&scene, &["logs", "-f", "-n", "1000000", &node]);
    let is_start = |line: &str| line.starts_with(&format!("──── {node} started, pid "));
    follower.wait(is_start);
    for _ in 0..KILLS {
        scene.done(&["kill", &node, "--no-probe"]);
        scene.done(&["start", &node]);
        follower.wait(is_start);
    }
    scene.done(&["down"]);
    assert!(node_file(&scene, 1, "log.1").exists(), "it was put aside");
    let all = lines(&scene, &["logs", "-n", "1000000", &node]);
    let last = all.last().unwrap().clone();
    follower.wait(|line| line == last);
    assert_eq!(follower.seen, all);
    assert_eq!(all.iter().filter(|line| is_start(line)).count(), 1 + KILLS);
    // And that is what stands in the files, markers aside.
    let mut raw = lines(&scene, &["logs", "-n", "1000000", "--no-prefix", &node]);
    let mut number = 50;
    let mut files = String::new();
    while number > 0 {
        files.push_str(
            &std::fs::read_to_string(node_file(&scene, 1, &format!("log.{number}"))).unwrap_or_default(),
        );
        number -= 1;
    }
    files.push_str(&std::fs::read_to_string(node_file(&scene, 1, "log")).unwrap());
    assert_eq!(raw, files.lines().collect::<Vec<_>>());
    let length = raw.len();
    raw.sort();
    raw.dedup();
    assert_eq!(raw.len(), length, "no line twice");
}

#[test]
fn logs_are_searched_printed_as_json_and_only_their_owners() {
    let scene = scene("level = \"info\"");
    let (first, second) = (scene.address(0), scene.address(1));
    let both = lines(&scene, &["logs", "--grep", "listens$|listens  "]);
    assert_eq!(both.len(), 2, "{both:?}");
    assert!(
        both.iter().any(|line| line.starts_with(&first)) && both.iter().any(|line| line.starts_with(&second))
    );
    assert_eq!(lines(&scene, &["logs", "--grep", "(?i)LISTENS", "leader"]).len(), 1);
    assert_eq!(lines(&scene, &["logs", "--level", "error"]), Vec::<String>::new());
    assert_eq!(lines(&scene, &["logs", "-n", "1"]).len(), 2);
    assert!(lines(&scene, &["logs", "--since", "1h"]).len() > 4);
    assert!(lines(&scene, &["logs", "supervisor"])[0].starts_with("──── supervisor started, pid "));
    let (code, text) = scene.said(&["logs", "--grep", "(never closed"]);
    assert!(code == 2 && text.contains("unclosed group"), "{code} {text}");
    let status = scene.status();
    for line in lines(&scene, &["logs", "--json", "--since", "1h", &first]) {
        let line: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            (&line["node"], &line["pid"]),
            (&Value::from(first.clone()), &status["nodes"][0]["pid"]),
            "{line}"
        );
        for (name, kind) in [("at", "s"), ("level", "s"), ("target", "s"), ("message", "s"), ("fields", "o")]
        {
            assert!(
                if kind == "s" { line[name].is_string() } else { line[name].is_object() },
                "{name}: {line}"
            );
        }
        if line["message"] == "started" {
            assert_eq!(line["fields"]["pid"], line["pid"]);
        }
    }
    for node in 0..2 {
        assert_eq!(
            std::fs::read_to_string(node_file(&scene, node, "stderr")).unwrap(),
            "",
            "lines go to the log alone"
        );
        let mode = std::fs::metadata(node_file(&scene, node, "log")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[test]
fn a_command_whose_reader_has_left_ends_quietly() {
    let scene = scene("level = \"info\"");
    for arguments in [
        vec!["logs"],
        vec!["logs", "-f"],
        vec!["logs", "--json"],
        vec!["check"],
        vec!["events", "-f"],
        vec!["status", "--watch"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command(&scene, &arguments).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        let output = output.wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]), "{arguments:?}");
    }
    // One that reads a line and leaves, while nothing more is written: the follower does not wait for it.
    let mut child = command(&scene, &["logs", "-f", "-n", "2"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut first = [0];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_level_is_changed_while_a_node_runs_and_is_lost_when_it_starts_again() {
    let scene = scene("");
    let (leader, follower) = (scene.address(0), scene.address(1));
    let levels = || -> Vec<String> {
        let output = scene.run(&["log-level", "--json"]);
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        let nodes = answer["nodes"].as_array().unwrap();
        nodes.iter().map(|node| node["after"].as_str().unwrap().to_owned()).collect()
    };
    let debug_lines = || lines(&scene, &["logs", "--level", "debug", "--grep", " DEBUG ", &leader]).len();
    assert_eq!(levels(), ["info", "info"]);
    let (code, text) = scene.said(&["log-level", "debgu"]);
    assert!(code == 2 && text.contains("debgu"), "{code} {text}");
    let (code, text) = scene.said(&["log-level", "replcluster=loud"]);
    assert!(code == 2 && text.contains("error parsing level filter"), "{code} {text}");
    assert_eq!(levels(), ["info", "info"]);
    let text = scene.done(&["log-level", "debug", "leader"]);
    assert!(text.contains("[logs]"), "{text}");
    let now = levels();
    assert!(now[0].contains("replcluster=debug") && now[1] == "info", "{now:?}");
    assert_eq!(debug_lines(), 0);
    scene.done(&["kill", &follower, "--no-probe"]);
    scene.done(&["start", &follower]);
    let start = Instant::now();
    while debug_lines() == 0 {
        assert!(start.elapsed() < PATIENCE, "{}", scene.done(&["logs", &leader]));
    }
    scene.done(&["log-level", "trace"]);
    scene.done(&["client", "put", "name-of-a-key", "what-nobody-may-read"]);
    scene.done(&["client", "get", "name-of-a-key"]);
    for file in ["log", "stderr"] {
        let text = std::fs::read_to_string(node_file(&scene, 0, file)).unwrap();
        assert!(!text.contains("what-nobody-may-read") && !text.contains("name-of-a-key"), "{text}");
    }
    scene.done(&["log-level", "info"]);
    let before = debug_lines();
    scene.done(&["kill", &follower, "--no-probe"]);
    scene.done(&["start", &follower]);
    assert_eq!(debug_lines(), before, "turned down again");
    scene.done(&["log-level", "trace", &follower]);
    scene.done(&["restart", &follower]);
    assert_eq!(levels(), ["info", "info"]);
    let told = scene.done(&["logs", "--grep", "log level changed", &leader]);
    assert_eq!(told.lines().count(), 3, "{told}");
    let (code, text) = scene.said(&["log-level", "debug", ":1"]);
    assert!(code == 2 && text.contains(&leader), "{code} {text}");
}
