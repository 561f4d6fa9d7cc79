//! What packagers and service managers get: versions, manual pages, units. Programs that judge them (groff, systemd)
//! are asked where they are installed; with the feature `full-tests` they must be.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cli::Scene;
use super::cluster::PATIENCE;

/// Runs a program that judges files. Nothing where it is not installed and need not be.
fn judge(program: &str, arguments: &[&str], files: &[&Path]) -> Option<Output> {
    let output = Command::new(program).args(arguments).args(files).stdin(Stdio::null()).output();
    match output {
        Ok(output) => Some(output),
        Err(error) if cfg!(feature = "full-tests") => panic!("{program}: {error}; .ci/run installs it"),
        Err(error) => {
            eprintln!("SKIPPED: {program} is not asked: {error}");
            None
        }
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn both_programs_say_the_same_version() {
    let version = |program: &str| {
        let output = Command::new(program).arg("--version").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let (controller, server) =
        (version(env!("CARGO_BIN_EXE_replcluster")), version(env!("CARGO_BIN_EXE_replserver")));
    let rest = controller.strip_prefix("replcluster ").unwrap();
    assert!(rest.starts_with(env!("CARGO_PKG_VERSION")), "{controller}");
    assert_eq!(server.strip_prefix("replserver "), Some(rest));
}

#[test]
fn the_manual_pages_are_clean() {
    let scene = Scene::new(1);
    scene.done(&["man", "--out", "man"]);
    let mut pages: Vec<_> =
        std::fs::read_dir(scene.path("man")).unwrap().map(|entry| entry.unwrap().path()).collect();
    pages.sort();
    assert!(pages.iter().any(|page| page.ends_with("replserver.1")), "{pages:?}");
    for page in &pages {
        let Some(output) = judge("groff", &["-K", "utf8", "-man", "-Tutf8", "-z", "-ww"], &[page]) else {
            return;
        };
        assert!(output.status.success() && said(&output).is_empty(), "{}: {}", page.display(), said(&output));
    }
}

#[test]
fn a_page_that_is_not_clean_would_be_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let page = directory.path().join("bad.1");
    std::fs::write(&page, ".TH BAD 1\n.SH NAME\nbad \\- x\n.NOSUCH request\n").unwrap();
    let Some(output) = judge("groff", &["-K", "utf8", "-man", "-Tutf8", "-z", "-ww"], &[&page]) else {
        return;
    };
    assert!(!said(&output).is_empty());
}

/// The units of a cluster whose path has everything in it that systemd could take for something else.
fn exported() -> (Scene, Vec<std::path::PathBuf>) {
    let scene = Scene::new(3);
    let config = std::fs::read_to_string(scene.path("cluster.toml")).unwrap();
    scene.config(&format!("data_dir = \"with space, 100%i and $HOME\"\n{config}"));
    let mut units = Vec::new();
    for what in [vec!["--cluster"], vec!["--node", "all"]] {
        scene.done(&[&["export", "systemd", "--user", "root", "--out", "units"], &what[..]].concat());
    }
    for entry in std::fs::read_dir(scene.path("units")).unwrap() {
        units.push(entry.unwrap().path());
    }
    units.sort();
    (scene, units)
}

#[test]
fn the_units_are_accepted_by_systemd() {
    let (_scene, units) = exported();
    assert_eq!(units.len(), 4, "{units:?}");
    let units: Vec<&Path> = units.iter().map(std::path::PathBuf::as_path).collect();
    let Some(output) = judge("systemd-analyze", &["verify", "--man=no"], &units) else { return };
    let said = said(&output);
    let ours: Vec<&str> =
        said.lines().filter(|line| line.contains("replcluster") || line.contains("replserver")).collect();
    assert!(output.status.success() && ours.is_empty(), "{said}");
}

#[test]
fn a_unit_that_systemd_does_not_accept_would_be_noticed() {
    let (_scene, units) = exported();
    let text = std::fs::read_to_string(&units[0]).unwrap();
    std::fs::write(&units[0], text.replace("KillMode=process", "KillMode=nobody")).unwrap();
    let Some(output) = judge("systemd-analyze", &["verify", "--man=no"], &[&units[0]]) else { return };
    assert!(said(&output).contains("kill mode"), "{}", said(&output));
}

#[test]
fn nothing_is_written_with_dry_run_and_a_unit_alone_can_go_into_a_file() {
    let scene = Scene::new(3);
    let told = scene.done(&["export", "systemd", "--out", "units", "--dry-run"]);
    assert!(told.contains("would write units/replcluster-demo.service"), "{told}");
    assert!(!scene.path("units").exists());
    let output = scene.run(&["export", "systemd", "--node", &scene.address(1)]);
    let unit = String::from_utf8(output.stdout).unwrap();
    assert!(
        unit.starts_with("# replserver-demo-") && unit.trim_end().ends_with("WantedBy=multi-user.target"),
        "{unit}"
    );
    assert!(unit.contains(&format!("--join {},{}", scene.address(0), scene.address(2))), "{unit}");
}

#[test]
fn the_seat_is_measured_on_a_cluster_of_its_own_and_nothing_of_it_is_left() {
    let scene = Scene::new(1);
    let output = scene.run(&["bench", "--controller", "--runs", "1", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let measured: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let commands = measured["commands"].as_array().unwrap();
    assert_eq!(commands.len(), 6);
    for command in commands {
        assert!(command["median_ms"].as_f64().unwrap() > 0.0, "{command}");
    }
    let left: Vec<_> =
        std::fs::read_dir(scene.directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["cluster.toml"]);
}

/// What a service manager is told in this scene.
fn listening(scene: &Scene) -> UnixDatagram {
    let socket = scene.path("notify");
    let _ = std::fs::remove_file(&socket);
    let told = UnixDatagram::bind(&socket).unwrap();
    told.set_read_timeout(Some(PATIENCE)).unwrap();
    told
}

fn heard(told: &UnixDatagram) -> String {
    let mut buffer = [0; 64];
    let length = told.recv(&mut buffer).unwrap();
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

fn pids(scene: &Scene) -> Vec<serde_json::Value> {
    scene.status()["nodes"].as_array().unwrap().iter().map(|node| node["pid"].clone()).collect()
}

#[test]
fn a_service_manager_is_told_by_a_cluster_in_the_foreground_and_stopping_it_ends_the_cluster() {
    let scene = Scene::new(2);
    let told = listening(&scene);
    let mut command = Command::new(env!("CARGO_BIN_EXE_replcluster"));
    command.args(["up", "--foreground"]).current_dir(scene.directory.path());
    command.env_remove("REPLCLUSTER_CONFIG").env("NOTIFY_SOCKET", scene.path("notify"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    assert_eq!(heard(&told), "READY=1\n");
    assert_eq!(scene.status()["state"], "healthy");
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(heard(&told), "STOPPING=1\n");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(scene.status()["state"], "stopped");
}

/// The command of a unit: program and arguments. The paths of this test need no quotes.
fn of_unit(unit: &str, key: &str) -> Command {
    let line = unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap();
    let mut words = line.trim_start_matches('-').split_whitespace();
    let mut command = Command::new(words.next().unwrap());
    command.args(words).env_remove("REPLCLUSTER_CONFIG").current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// The main process of a unit, once it has said that it is ready.
fn started(scene: &Scene, unit: &str) -> Child {
    let told = listening(scene);
    let child = of_unit(unit, "ExecStart").env("NOTIFY_SOCKET", scene.path("notify")).spawn().unwrap();
    assert_eq!(heard(&told), "READY=1\n");
    child
}

#[test]
fn a_service_whose_supervisor_is_killed_loses_no_node_and_stops_as_one() {
    let scene = Scene::new(2);
    let output = scene.run(&["export", "systemd"]);
    let unit = String::from_utf8(output.stdout).unwrap();
    let mut supervisor = started(&scene, &unit);
    assert!(of_unit(&unit, "ExecStartPost").status().unwrap().success());
    let before = pids(&scene);
    assert_eq!(scene.status()["supervisor"]["pid"], supervisor.id());
    supervisor.kill().unwrap();
    supervisor.wait().unwrap();
    assert_eq!(pids(&scene), before);
    let mut supervisor = started(&scene, &unit);
    assert!(of_unit(&unit, "ExecStartPost").status().unwrap().success());
    assert_eq!(pids(&scene), before);
    assert!(of_unit(&unit, "ExecStop").status().unwrap().success());
    assert!(supervisor.wait().unwrap().success());
    assert_eq!(scene.status()["state"], "stopped");
}

/// The children of a process that are called so.
fn children(parent: u32, name: &str) -> Vec<u32> {
    // Each thread has its own.
    let threads = std::fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
    let all: String = threads
        .map(|thread| std::fs::read_to_string(thread.path().join("children")).unwrap_or_default())
        .collect();
    let pids = all.split_whitespace().filter_map(|pid| pid.parse().ok());
    pids.filter(|pid| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == name)
    })
    .collect()
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn the_first_process_of_a_container_collects_orphans_and_ends_its_cluster() {
    let scene = Scene::new(2);
    let mut unshare = Command::new("unshare");
    unshare.args(["--pid", "--fork", "--mount-proc", "--kill-child", env!("CARGO_BIN_EXE_replcluster")]);
    unshare.args(["up", "--foreground"]).current_dir(scene.directory.path()).env_remove("REPLCLUSTER_CONFIG");
    unshare.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let allowed = nix::unistd::Uid::effective().is_root()
        && Command::new("unshare")
            .args(["--pid", "--fork", "--mount-proc", "true"])
            .status()
            .is_ok_and(|it| it.success());
    if !allowed {
        return eprintln!("SKIPPED: no namespace for processes can be made here");
    }
    let mut outside = unshare.spawn().unwrap();
    let mut lines = BufReader::new(outside.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("in the foreground")), "it did not come to serve");
    let first = children(outside.id(), "replcluster")[0];
    let entered = Command::new("nsenter")
        .args(["--target", &first.to_string(), "--pid", "--mount", "sh", "-c", "sleep 1 & exit 0"])
        .status();
    assert!(entered.unwrap().success());
    wait_for("an orphan comes to the first process", || !children(first, "sleep").is_empty());
    wait_for("the orphan is collected", || children(first, "sleep").is_empty());
    assert_eq!(children(first, "replserver").len(), 2);
    // Their process ids in there are small, and out here belong to others: nothing of those may be shown.
    let seen = scene.status();
    for node in seen["nodes"].as_array().unwrap() {
        assert_eq!(node["state"], "ready", "{seen}");
        for figure in ["pid", "uptime_ms", "cpu_percent", "memory_bytes"] {
            assert!(node[figure].is_null(), "{figure}: {seen}");
        }
    }
    kill(Pid::from_raw(i32::try_from(first).unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(outside.wait().unwrap().code(), Some(0));
    assert_eq!(scene.status()["state"], "stopped");
}
