//! The README as a user follows it: the tour is typed again and its output compared, every task of the table and every
//! shell command is run. What only a builder of packages types is named in a list, so that nothing is left out unseen.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::cli::Scene;
use super::cluster::PATIENCE;
use super::outputs::Names;

/// Shell commands that build or install; here it is only checked that they are there still.
const BUILDS: &[&str] = &[
    "cargo install --path . --locked && replcluster up",
    "cargo test",
    "cargo install cargo-deb --locked",
    "cargo build --release --locked --bins",
    "packaging/assets.sh",
    "cargo deb --no-build",
];

/// The README's nodes are at these ports, those that it adds after them.
const FIRST_PORT: u16 = 2379;
const PORTS: u16 = 6;

fn readme() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap()
}

/// What a line says whatever numbers, times and places stand in it.
pub fn shape(line: &str) -> String {
    let word = |word: &str| {
        let digits = word.chars().any(|letter| letter.is_ascii_digit());
        let address = word.contains("127.0.0.1:");
        if digits && !address { "#".to_owned() } else { word.to_owned() }
    };
    line.split_whitespace().map(word).collect::<Vec<_>>().join(" ")
}

/// Commands of the first session in a text and what it says they print.
pub fn tour(text: &str) -> Vec<(String, Vec<String>)> {
    let block = text.split("```console\n").nth(1).unwrap().split("```").next().unwrap();
    let mut steps: Vec<(String, Vec<String>)> = Vec::new();
    for line in block.lines() {
        match line.strip_prefix("$ ") {
            Some(command) => steps.push((command.to_owned(), Vec::new())),
            None => steps.last_mut().unwrap().1.push(line.to_owned()),
        }
    }
    steps
}

/// The README's addresses and ends of them, as they are here.
fn here(scene: &Scene, text: &str) -> String {
    (0..PORTS).fold(text.to_owned(), |text, node| {
        let address = scene.address(usize::from(node));
        let port = address.rsplit(':').next().unwrap();
        let theirs = FIRST_PORT + node;
        text.replace(&format!("127.0.0.1:{theirs}"), &address)
            .replace(&format!(":{theirs}"), &format!(":{port}"))
    })
}

#[test]
fn the_tour_prints_what_the_readme_says() {
    let scene = Scene::new(3);
    let found_here =
        Names::new((0..usize::from(PORTS)).map(|node| scene.address(node)), scene.directory.path());
    let theirs = (0..PORTS).map(|node| format!("127.0.0.1:{}", FIRST_PORT + node));
    let in_readme = Names::new(theirs, Path::new("/home/me/demo"));
    let mut compared = 0;
    for (command, printed) in tour(&readme()) {
        let typed = here(&scene, &command);
        let words: Vec<&str> = typed.split(' ').skip(1).collect();
        let (code, text) = scene.said(&words);
        assert!(code == 0 || (words == ["status"] && code == 8), "{command}: {code} {text}");
        if !printed.is_empty() {
            assert_eq!(
                found_here.plain(&text),
                in_readme.plain(&printed.join("\n")),
                "{command} prints:\n{text}"
            );
            compared += 1;
        }
    }
    assert!(compared >= 5, "the tour shows what its commands print");
}

#[test]
fn the_tour_is_compared_by_its_words() {
    let names = Names::new(["127.0.0.1:2379".to_owned()], Path::new("/x"));
    let wrong = "47 acknowledged, 1 lost, 2 indeterminate · proved";
    assert_ne!(names.plain(wrong), names.plain(&wrong.replace("1 lost", "0 lost")));
    let (command, printed) = &tour("```console\n$ a b\nc\n$ d\n```\n")[0];
    assert_eq!((command.as_str(), printed.as_slice()), ("a b", ["c".to_owned()].as_slice()));
}

// --- the table ---

/// The tasks' commands. An option or a bare verb in backquotes goes on from the command before it.
fn tasks() -> Vec<String> {
    let readme = readme();
    let table = readme.split("## Common tasks").nth(1).unwrap().split("\n\n`kill` and").next().unwrap();
    let mut commands = Vec::new();
    for line in table.lines().filter(|line| line.starts_with("| ")).skip(1) {
        let Some(column) = line.trim_end_matches('|').rsplit('|').next() else { continue };
        let mut verb = String::new();
        for text in column.split('`').skip(1).step_by(2) {
            let command = match text.split(' ').next().unwrap() {
                "replcluster" | "etcdctl" => text.to_owned(),
                option if option.starts_with('-') => format!("{verb} {text}"),
                _ => format!("replcluster {text}"),
            };
            verb = command.split(' ').take(2).collect::<Vec<_>>().join(" ");
            commands.push(command);
        }
    }
    commands
}

/// No directory can be made there.
const NOWHERE: [&str; 2] = ["--dir", "/dev/null"];

/// What is added to a command so that it ends soon: what follows is followed for a moment, what measures for long is
/// turned away where it would begin, which shows that its options are right.
fn shortened(command: &str) -> Vec<String> {
    let mut words: Vec<&str> = command.split(' ').skip(1).collect();
    match words.as_slice() {
        ["bench"] => words.extend(["--seconds", "0.1", "--clients", "1"]),
        ["bench" | "torture", ..] => words.extend(NOWHERE),
        ["down" | "kill" | "pause" | "recover", rest @ ..]
            if !rest.contains(&"--yes")
                && rest.iter().any(|word| ["--purge", "all", "--accept-data-loss"].contains(word)) =>
        {
            words.push("--yes");
        }
        _ => {}
    }
    words.into_iter().map(str::to_owned).collect()
}

/// Follows it until it has printed a line, and ends it as a user does.
fn followed(scene: &Scene, words: &[&str]) -> i32 {
    use std::io::BufRead as _;
    let mut child = scene.command(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(!line.is_empty(), "{words:?}");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.stderr.is_empty(), "nothing was begun that could go on: {output:?}");
    output.status.code().unwrap_or(-1)
}

#[test]
fn every_task_of_the_table_is_done_as_it_is_written() {
    let scene = Scene::new(3);
    let is_installed = |program: &str| {
        std::env::split_paths(&std::env::var_os("PATH").unwrap())
            .any(|directory| directory.join(program).exists())
    };
    let mut seen = BTreeSet::new();
    for command in tasks() {
        let begins_with = |start: &str| command.starts_with(&format!("replcluster {start}"));
        if begins_with("init") {
            std::fs::rename(scene.path("cluster.toml"), scene.path("kept.toml")).unwrap();
        } else {
            let _ = std::fs::rename(scene.path("kept.toml"), scene.path("cluster.toml"));
            // These go on from the command before them.
            let goes_on = begins_with("resume") || begins_with("start");
            if !goes_on && scene.said(&["status"]).0 != 0 {
                scene.done(&["up"]);
            }
        }
        let command = here(&scene, &command);
        if command.starts_with("etcdctl ") {
            if is_installed("etcdctl") {
                let words = command.split(' ').skip(1);
                let output = Command::new("etcdctl").env("ETCDCTL_API", "3").args(words).output().unwrap();
                assert!(output.status.success(), "{command}: {output:?}");
            }
            continue;
        }
        let words = shortened(&command);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        seen.insert(words[0].to_owned());
        if words.iter().any(|word| ["--watch", "-f", "--follow"].contains(word)) {
            assert_eq!(followed(&scene, &words), 130, "{command}");
            continue;
        }
        let (code, text) = scene.said(&words);
        let turned_away = words.ends_with(&NOWHERE) && code == 1 && text.contains("/dev/null");
        let needs_a_terminal = words == ["top"] && code == 2;
        assert!(code == 0 || turned_away || needs_a_terminal, "{command}: {code} {text}");
    }
    assert!(seen.len() > 20, "{seen:?}");
}

#[test]
fn options_in_the_table_go_on_from_their_verb() {
    assert_eq!(shortened("replcluster bench --failover"), ["bench", "--failover", "--dir", "/dev/null"]);
    assert_eq!(shortened("replcluster kill leader"), ["kill", "leader"]);
    let tasks = tasks();
    assert!(tasks.iter().any(|command| command == "replcluster torture --survivors-only"), "{tasks:?}");
    assert!(tasks.len() > 25, "{tasks:?}");
}

// --- the shell commands ---

/// Lines of the `sh` blocks, without their comments.
fn shell_commands() -> Vec<String> {
    let readme = readme();
    let blocks = readme.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks
        .flat_map(str::lines)
        .map(|line| line.split("  #").next().unwrap().trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect()
}

#[test]
fn every_shell_command_is_run_or_named_as_one_that_builds() {
    let scene = Scene::new(3);
    std::fs::create_dir_all(scene.path(".config/fish/completions")).unwrap();
    std::fs::create_dir_all(scene.path(".local/share/man/man1")).unwrap();
    let programs = Path::new(env!("CARGO_BIN_EXE_replcluster")).parent().unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let mut built = BTreeSet::new();
    let mut nodes = Vec::new();
    for command in shell_commands() {
        if let Some(exempt) = BUILDS.iter().find(|build| command.ends_with(**build)) {
            built.insert(*exempt);
            continue;
        }
        let mut shell = Command::new("bash");
        shell.env("PATH", &path).env("HOME", scene.directory.path()).current_dir(scene.directory.path());
        shell.env_remove("REPLCLUSTER_CONFIG").stdin(Stdio::null());
        let local = here(&scene, &command.replace("~/", "$HOME/"));
        if command.starts_with("replserver ") {
            nodes.push(Ended(
                shell.args(["-c", &format!("exec {local}")]).stderr(Stdio::null()).spawn().unwrap(),
            ));
            let node = scene.address(nodes.len() - 1);
            let deadline = Instant::now() + PATIENCE;
            while scene.said(&["client", "--endpoints", &node, "get", "x"]).0 != 0 {
                assert!(Instant::now() < deadline, "{command} never served");
            }
        } else {
            let output = shell.args(["-ec", &local]).output().unwrap();
            assert!(output.status.success() && output.stderr.is_empty(), "{command}: {output:?}");
        }
    }
    assert_eq!(nodes.len(), 2);
    assert!(scene.path(".local/share/man/man1/replcluster-kill.1").exists());
    assert_eq!(built.len(), BUILDS.len(), "one that the README has no more: {built:?}");
}

/// A node that is ended with the test.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_exit_codes_are_those_of_help() {
    let codes = |text: &str| -> Vec<u32> {
        let list = text.split("xit codes: ").nth(1).unwrap();
        let list = list.split(" interrupted").next().unwrap();
        list.split_whitespace().filter_map(|word| word.parse().ok()).collect()
    };
    let scene = Scene::new(1);
    assert_eq!(codes(&scene.done(&["--help"])), codes(&readme()));
    assert_eq!(codes(&readme()).len(), 11);
}
