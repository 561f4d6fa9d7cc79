//! What is typed: questions, prompts and interrupts on a real terminal, what is refused before anything is done, and
//! that nothing is left behind whoever stops listening.

use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cli::Scene;
use super::cluster::until;
use super::top::Terminal;

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

/// Waits until the program would not simply die of a Ctrl-C any more.
fn until_it_catches_interrupts(child: &Child) {
    until("a handler for SIGINT", || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0");
        u64::from_str_radix(mask.trim(), 16).unwrap() & (1 << (Signal::SIGINT as u64 - 1)) != 0
    });
}

/// Servers whose command line names a place in this directory.
fn servers_in(directory: &Path) -> Vec<u32> {
    let name = directory.as_os_str().as_bytes();
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            // The command that was started names the directory too, and is no server.
            let program = line.split(|byte| *byte == 0).next().unwrap_or_default();
            program.ends_with(b"replserver") && line.windows(name.len()).any(|part| part == name)
        })
        .collect()
}

#[test]
fn an_interrupt_ends_a_question_and_nothing_is_done() {
    let scene = Scene::new(1);
    scene.done(&["up"]);
    for ending in [Signal::SIGINT, Signal::SIGTERM] {
        let mut terminal = Terminal::new(&scene, &["down", "--purge"], 120, 10);
        terminal.wait("the question", |text| text.contains("[y/N]"));
        terminal.signal(ending);
        assert_eq!(terminal.ended(), 130);
        let text = terminal.wait("what was done", |text| text.contains("interrupted: nothing was done"));
        assert!(!text.contains("add --yes"), "{text}");
    }
    assert_eq!(scene.status()["state"], "healthy");
    let mut terminal = Terminal::new(&scene, &["down", "--purge"], 120, 10);
    terminal.wait("the question", |text| text.contains("[y/N]"));
    terminal.press("n\r");
    assert_eq!(terminal.ended(), 1);
    let mut terminal = Terminal::new(&scene, &["down", "--purge"], 120, 10);
    terminal.wait("the question", |text| text.contains("[y/N]"));
    terminal.press("y\r");
    assert_eq!(terminal.ended(), 0);
    assert!(!scene.path(".replcluster").exists());
    assert!(scene.done(&["down", "--purge", "--yes"]).contains("there was nothing of demo to delete"));
}

#[test]
fn an_interrupt_while_a_value_is_typed_writes_nothing() {
    let scene = Scene::new(1);
    scene.done(&["up"]);
    let mut terminal = Terminal::new(&scene, &["client", "put", "typed"], 120, 10);
    until_it_catches_interrupts(&terminal.child);
    terminal.press("half of a va");
    terminal.signal(Signal::SIGINT);
    assert_eq!(terminal.ended(), 130);
    terminal.wait("that nothing was sent", |text| text.contains("interrupted: nothing was sent"));
    assert_eq!(scene.done(&["client", "get", "typed"]), "");
    let mut terminal = Terminal::new(&scene, &["client", "put", "typed"], 120, 10);
    until_it_catches_interrupts(&terminal.child);
    terminal.press("all of it\r\u{4}");
    assert_eq!(terminal.ended(), 0);
    assert!(scene.done(&["client", "get", "typed"]).contains("all of it"));
}

#[test]
fn at_the_prompt_an_interrupt_drops_the_line_and_an_end_gives_the_terminal_back() {
    let scene = Scene::new(1);
    scene.done(&["up"]);
    let mut prompt = Terminal::new(&scene, &["client"], 120, 20);
    prompt.wait("the prompt", |text| text.lines().any(|line| line.trim_end() == ">"));
    prompt.press("put dropped by-ctrl-c");
    prompt.wait("what was typed", |text| text.contains("by-ctrl-c"));
    prompt.press("\u{3}");
    // What is typed before the next prompt is there belongs to the line that is dropped.
    prompt.wait("the next prompt", |text| text.trim_end().ends_with("\n>"));
    prompt.press("put written after-it\r");
    prompt.wait("that it goes on", |text| text.lines().any(|line| line.trim() == "OK"));
    prompt.press("txn\r");
    prompt.wait("the transaction", |text| text.contains("compare>"));
    prompt.press("\r");
    prompt.wait("its second part", |text| text.contains("then>"));
    prompt.press("put dropped too\r");
    prompt.wait("the next line of it", |text| text.trim_end().ends_with("put dropped too\nthen>"));
    prompt.press("\u{3}");
    prompt.wait("that it is dropped", |text| text.contains("nothing was sent"));
    prompt.press("get nothi");
    prompt.wait("another line", |text| text.contains("get nothi"));
    prompt.signal(Signal::SIGTERM);
    assert_eq!(prompt.ended(), 130);
    assert_eq!(scene.done(&["client", "get", "dropped"]), "");
    assert!(scene.done(&["client", "get", "written"]).contains("after-it"));
    let mut prompt = Terminal::new(&scene, &["client"], 120, 20);
    prompt.wait("the prompt", |text| text.lines().any(|line| line.trim_end() == ">"));
    prompt.press("\u{3}");
    assert_eq!(prompt.ended(), 0, "on nothing it leaves");
}

#[test]
fn a_piped_request_that_is_wrong_is_called_an_error_once() {
    let scene = Scene::new(1);
    let mut command = scene.command(&["client", "--endpoints", "127.0.0.1:1"]);
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"gett x\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), text.matches("error:").count()), (Some(2), 1), "{text}");
}

#[test]
fn a_service_that_is_told_to_end_and_does_has_done_what_was_asked() {
    for (ending, code) in [(Signal::SIGTERM, 0), (Signal::SIGHUP, 0), (Signal::SIGINT, 130)] {
        let scene = Scene::new(1);
        let mut command = scene.command(&["up", "--foreground"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("in the foreground")));
        signal(&child, ending);
        assert_eq!(child.wait().unwrap().code(), Some(code), "{ending}");
        assert_eq!(scene.said(&["status"]).0, 3, "{ending}: nothing runs");
    }
}

fn torture(directory: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_replcluster"));
    command.args(["torture", "--cycles", "1000", "--rate", "200", "--dir"]).arg(directory);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn whoever_stops_listening_to_a_torture_leaves_no_server_behind() {
    let directory = tempfile::tempdir().unwrap();
    let inside = directory.path().canonicalize().unwrap();
    let mut child = torture(directory.path());
    let mut first = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.starts_with("seed "), "{first}");
    // The end that was read is closed now, and more is told with every cycle.
    until("its servers", || !servers_in(&inside).is_empty());
    until_it_catches_interrupts(&child);
    signal(&child, Signal::SIGINT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(servers_in(&inside), [0_u32; 0]);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "it cleans up");
}

#[test]
fn servers_of_a_torture_that_is_killed_die_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let inside = directory.path().canonicalize().unwrap();
    let mut child = torture(directory.path());
    until("its servers", || !servers_in(&inside).is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
    until("their end", || servers_in(&inside).is_empty());
}

#[test]
fn a_load_that_is_interrupted_leaves_no_key() {
    let scene = Scene::new(1);
    scene.done(&["up"]);
    let count = || {
        let text = scene.done(&["client", "get", "--prefix", "replcluster/bench/", "--count-only"]);
        text.trim().parse::<u64>().unwrap()
    };
    let mut command = scene.command(&["bench", "--seconds", "60", "--clients", "16", "--keys", "500"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    until("keys", || count() > 400);
    signal(&child, Signal::SIGINT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(count(), 0);
}

/// Each with the exit code, and a part of what is said.
const REFUSED: &[(&[&str], i32, &str)] = &[
    (&["up", "--timeout", "2562047788015215h"], 2, "longer than a year"),
    (&["status", "--watch", "0s"], 2, "at least 50ms"),
    (&["bench", "--kills", "3"], 2, "--failover"),
    (&["bench", "--signal", "STOP"], 2, "--failover"),
    (&["bench", "--data", "1GiB"], 2, "--failover"),
    (&["torture", "--timeout", "0s"], 2, "above zero"),
    (&["add-follower", "no-such-host.invalid:7"], 2, "no-such-host.invalid:7"),
    (&["add-follower", "[::0]:7"], 2, "every interface"),
    (&["kill", "leadr"], 3, "replcluster up"),
];

#[test]
fn what_cannot_be_meant_is_refused_with_its_reason() {
    let scene = Scene::new(2);
    for (arguments, code, expected) in REFUSED {
        let (found, text) = scene.said(arguments);
        assert!(found == *code && text.contains(expected), "{arguments:?}: {found} {text}");
        assert!(!text.contains("cluster.toml:"), "the file is not to blame: {text}");
    }
    let nodes = std::fs::read_to_string(scene.path("cluster.toml")).unwrap().replace("name = \"demo\"\n", "");
    for (text, expected) in [
        (format!("name = \"-a\"\n{nodes}"), "a letter or digit first"),
        (format!("data_dir = \".\"\n{nodes}"), "contains this file"),
        (format!("data_dir = \"/\"\n{nodes}"), "contains this file"),
        (format!("{nodes}[replication]\nfailure_timeout = \"2562047788015215h\"\n"), "to 600s"),
        (format!("{nodes}[register]\nkind = \"etcd\"\nendpoints = [\"http://h:1\"]\n"), "not served"),
        (nodes.replace("127.0.0.1", "no-such-host.invalid"), "cannot be resolved"),
    ] {
        scene.config(&text);
        for arguments in [&["check"][..], &["check", "--json"], &["up"], &["up", "--dry-run"]] {
            let (found, said) = scene.said(arguments);
            assert!(found == 2 && said.contains(expected), "{arguments:?}: {text}: {found} {said}");
        }
    }
    // With names out of order the cluster can still be seen and ended.
    assert_eq!(scene.said(&["status"]).0, 3);
    assert_eq!(scene.said(&["down"]).0, 0);
}

#[test]
fn a_path_that_is_no_text_is_refused() {
    let scene = Scene::new(1);
    let directory = scene.directory.path().join(std::ffi::OsStr::from_bytes(b"not-\xff-text"));
    std::fs::create_dir(&directory).unwrap();
    std::fs::copy(scene.path("cluster.toml"), directory.join("cluster.toml")).unwrap();
    for arguments in [&["check", "--json"][..], &["up"], &["recover", "--json"]] {
        let output = scene.command(arguments).current_dir(&directory).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && text.contains("not valid UTF-8"), "{arguments:?}: {text}");
    }
}

#[test]
fn an_address_that_is_only_in_the_file_keeps_nothing_from_ending() {
    let scene = Scene::new(2);
    scene.done(&["up"]);
    let new = scene.address(2);
    let before = std::fs::read_to_string(scene.path("cluster.toml")).unwrap();
    let with_new = before.replace(']', &format!(", \"{new}\"]"));
    scene.config(&with_new);
    let (code, text) = scene.said(&["start", &new]);
    assert!(code == 1 && text.contains("new in cluster.toml"), "{code} {text}");
    let shown = scene.done(&["remove", &new]);
    assert!(shown.contains(&format!("{new} is out of the cluster")), "{shown}");
    assert_eq!(std::fs::read_to_string(scene.path("cluster.toml")).unwrap(), before);
    scene.config(&with_new);
    scene.done(&["down", "--purge", "--yes"]);
    assert!(!scene.path(".replcluster").exists());
}

#[test]
fn nodes_are_named_by_role_wherever_one_is_named() {
    let scene = Scene::new(3);
    scene.done(&["up", "--only", &scene.address(0)]);
    scene.done(&["up"]);
    scene.done(&["up", "--only", "leader,followers"]);
    let (code, text) = scene.said(&["move-leader", "followers"]);
    assert!(code == 2 && text.contains("only one can be meant"), "{code} {text}");
    scene.done(&["move-leader", "follower"]);
    assert_eq!(scene.status()["leader"], scene.address(1));
    scene.done(&["remove", "leader"]);
    assert_eq!(scene.status()["nodes"].as_array().unwrap().len(), 2);
    let (code, text) = scene.said(&["kill", "leadr"]);
    assert!(code == 2 && text.contains("did you mean `leader`?"), "{code} {text}");
    scene.done(&["kill", "followers", "--no-probe"]);
    let (code, text) = scene.said(&["start", "followers"]);
    assert!(code == 1 && text.contains("or all"), "{code} {text}");
}

#[test]
fn followers_added_at_the_same_time_are_all_in_the_file_and_in_the_cluster() {
    let scene = Scene::new(1);
    scene.done(&["up"]);
    let (code, text) = scene.said(&["add-follower", &scene.address(0).replace("127.0.0.1", "localhost")]);
    let same = format!("{}, which is a node of demo already", scene.address(0));
    assert!(code == 5 && text.contains("already"), "{same}: {code} {text}");
    let start = || scene.command(&["add-follower"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let both = [start().unwrap(), start().unwrap()];
    for child in both {
        let output = child.wait_with_output().unwrap();
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !text.contains("any more"), "{text}");
    }
    let status = scene.status();
    assert_eq!((status["nodes"].as_array().unwrap().len(), &status["state"]), (3, &"healthy".into()));
}

#[test]
fn a_configuration_that_cannot_be_changed_keeps_a_node_where_it_is() {
    let scene = Scene::new(2);
    scene.done(&["up"]);
    // Root may write anywhere; but the new text is written beside the file first, under a name that is longer than any may be.
    let name = format!("{}.toml", "c".repeat(250));
    std::fs::copy(scene.path("cluster.toml"), scene.path(&name)).unwrap();
    let (code, text) = scene.said(&["-f", &name, "remove", &scene.address(1)]);
    assert!(code == 1 && text.contains("cannot change"), "{code} {text}");
    let (code, text) = scene.said(&["-f", &name, "add-follower"]);
    assert!(code == 1 && text.contains("cannot change"), "{code} {text}");
    let status = scene.status();
    assert_eq!((status["in_sync"].as_array().unwrap().len(), &status["state"]), (2, &"healthy".into()));
}

#[test]
fn a_dry_run_refuses_what_the_run_would_refuse() {
    let scene = Scene::new(2);
    scene.done(&["up"]);
    let text = std::fs::read_to_string(scene.path("cluster.toml")).unwrap();
    for changed in [text.replace("demo", "other"), format!("data_dir = \"elsewhere\"\n{text}")] {
        scene.config(&changed);
        let real = scene.said(&["up"]);
        let dry = scene.said(&["up", "--dry-run"]);
        assert_ne!(real.0, 0, "{}", real.1);
        assert_eq!(real.0, dry.0, "{} {}", real.1, dry.1);
    }
    scene.config(&text);
}

#[test]
fn shells_and_signals_are_offered() {
    let scene = Scene::new(1);
    let offered = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_replcluster"));
        command.args(["--", "replcluster"]).args(words).current_dir(scene.directory.path());
        command.env_remove("REPLCLUSTER_CONFIG").env("COMPLETE", "bash");
        command.env("_CLAP_COMPLETE_INDEX", words.len().to_string()).env("_CLAP_IFS", "\n");
        String::from_utf8(command.stdin(Stdio::null()).output().unwrap().stdout).unwrap()
    };
    assert!(offered(&["completions", ""]).contains("fish"));
    assert!(offered(&["kill", "--signal", ""]).contains("TERM"));
}
