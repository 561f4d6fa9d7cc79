//! `top` and `status --watch` on a terminal: a real one, read by a terminal's own rules.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{Termios, tcgetattr};
use nix::unistd::Pid;

use super::cli::Scene;
use super::cluster::PATIENCE;

/// `replcluster` with a terminal of its own.
pub struct Terminal {
    pub child: Child,
    keyboard: File,
    /// The program's end: what its settings are is asked here.
    line: OwnedFd,
    before: Termios,
    screen: Arc<Mutex<vt100::Parser>>,
    changed: Receiver<()>,
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Terminal {
    pub fn new(scene: &Scene, arguments: &[&str], columns: u16, rows: u16) -> Terminal {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(&size, None).unwrap();
        let before = tcgetattr(&pair.slave).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_replcluster"));
        command.args(arguments).current_dir(scene.directory.path());
        command.env_remove("REPLCLUSTER_CONFIG").env_remove("NO_COLOR").env("TERM", "xterm-256color");
        for stream in [Command::stdin, Command::stdout, Command::stderr] {
            stream(&mut command, Stdio::from(pair.slave.try_clone().unwrap()));
        }
        // Without this it would be asked for the size of the terminal that the tests were started from.
        replcluster::supervisor::spawn::detach(&mut command);
        let child = command.spawn().unwrap();
        drop(command);
        let keyboard = File::from(pair.master);
        let size = |cells: u16| NonZeroU16::new(cells).unwrap();
        let parser = vt100::Parser::new(size(rows), size(columns), 0);
        let screen = Arc::new(Mutex::new(parser));
        let (tx, changed) = channel();
        let (mut output, shown) = (keyboard.try_clone().unwrap(), screen.clone());
        // Ends with the last holder of the program's end.
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                shown.lock().unwrap().process(&bytes[..count]);
                let _ = tx.send(());
            }
        });
        Terminal { child, keyboard, line: pair.slave, before, screen, changed }
    }

    pub fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    pub fn text(&self) -> String {
        self.screen.lock().unwrap().screen().contents()
    }

    /// Waits until the screen is as wanted.
    pub fn wait(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = self.text();
            if wanted(&text) {
                return text;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(self.changed.recv_timeout(left).is_ok(), "never showed {what}:\n{text}");
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Waits for the end; the terminal must be as it was.
    pub fn ended(&mut self) -> i32 {
        let code = self.child.wait().unwrap().code().expect("it exits");
        let is_left = |screen: &vt100::Screen| !screen.alternate_screen() && !screen.hide_cursor();
        let deadline = Instant::now() + PATIENCE;
        // What it wrote last may still be on its way.
        while !is_left(self.screen.lock().unwrap().screen()) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                self.changed.recv_timeout(left).is_ok(),
                "the screen was not given back:\n{}",
                self.text()
            );
        }
        assert!(tcgetattr(&self.line).unwrap() == self.before, "the terminal's settings are not as before");
        code
    }
}

/// True where a line of the screen holds all of these.
fn row(text: &str, parts: &[&str]) -> bool {
    text.lines().any(|line| parts.iter().all(|part| line.contains(part)))
}

#[test]
fn top_shows_three_nodes_kills_the_leader_and_gives_the_terminal_back() {
    let scene = Scene::new(3);
    scene.done(&["up"]);
    let mut top = Terminal::new(&scene, &["top"], 80, 24);
    let nodes: Vec<String> = (0..3).map(|node| scene.address(node)).collect();
    top.wait("three nodes", |text| nodes.iter().all(|node| row(text, &[node, "ready"])));
    assert!(row(&top.text(), &["▶", &nodes[0], "leader"]), "{}", top.text());
    assert!(top.screen.lock().unwrap().screen().alternate_screen());
    top.wait("a latency", |text| row(text, &["read latency", " ms"]));
    top.press("x");
    top.wait("the question", |text| {
        row(text, &["kill", &nodes[0], "(leader)? survives 2 more failures", "[y/N]"])
    });
    assert_eq!(scene.status()["leader"], nodes[0].as_str(), "nothing is done before a yes");
    top.press("y");
    top.wait("the leader down", |text| row(text, &[&nodes[0], "down"]) && row(text, &["▶", &nodes[1]]));
    top.wait("the verdict", |text| row(text, &["proved"]));
    assert_eq!(scene.status()["leader"], nodes[1].as_str());
    // Down, and back: s acts on the node that was killed.
    top.press("s");
    top.wait("the question", |text| row(text, &["start", &nodes[0], "[y/N]"]));
    top.press("y");
    top.wait("it in sync again", |text| row(text, &[&nodes[0], "ready"]) && row(text, &["in sync"]));
    top.press("q");
    assert_eq!(top.ended(), 0);
}

#[test]
fn top_works_on_a_stopped_cluster_and_gives_the_terminal_back_when_it_is_terminated() {
    let scene = Scene::new(2);
    let mut top = Terminal::new(&scene, &["top"], 80, 24);
    top.wait("that nothing runs", |text| text.starts_with("demo  stopped"));
    top.press("s");
    top.wait("the question", |text| text.contains("start the whole cluster? [y/N]"));
    top.press("y");
    top.wait("two nodes", |text| (0..2).all(|node| row(text, &[&scene.address(node), "ready"])));
    top.wait("what was done", |text| row(text, &["up: done"]));
    let pid = i32::try_from(scene.status()["supervisor"]["pid"].as_i64().unwrap()).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    top.wait("that the supervisor is dead", |text| text.contains("supervisor dead"));
    top.signal(Signal::SIGTERM);
    assert_eq!(top.ended(), 130);
}

#[test]
fn top_without_a_terminal_says_what_a_script_should_use() {
    let scene = Scene::new(1);
    let (code, text) = scene.said(&["top"]);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("for scripts: `replcluster status --watch --json`"), "{text}");
}

#[test]
fn a_watched_status_is_drawn_in_place_and_fits_a_narrow_terminal() {
    let scene = Scene::new(2);
    scene.done(&["up"]);
    let mut watch = Terminal::new(&scene, &["status", "--watch", "50ms"], 40, 20);
    watch.wait("two nodes", |text| (0..2).all(|node| row(text, &[&scene.address(node), "ready"])));
    scene.done(&["kill", "follower", "--no-probe"]);
    let text = watch.wait("one down", |text| row(text, &[&scene.address(1), "down"]));
    assert_eq!(text.matches("NODE").count(), 1, "one table, not one below the other:\n{text}");
    watch.signal(Signal::SIGINT);
    assert_eq!(watch.ended(), 130);
}

#[test]
fn a_watched_status_in_a_pipe_is_one_object_a_line() {
    let scene = Scene::new(1);
    let mut command = Command::new(env!("CARGO_BIN_EXE_replcluster"));
    command.args(["status", "--json", "--watch", "50ms"]).current_dir(scene.directory.path());
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..3 {
        let value: serde_json::Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(value["state"], "stopped");
    }
    // Nobody reads any more: that is an end and no failure.
    drop(lines);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
