//! Who answers, and a status that never lies: clusters of the same name, supervisors that hang, directories deleted under
//! what runs in them. What an operator does by mistake must not hit somebody else, and must be called what it is.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::cli::Scene;
use super::cluster::{delete, until};

fn pid(value: &Value) -> Pid {
    Pid::from_raw(i32::try_from(value.as_i64().unwrap_or_else(|| panic!("no pid: {value}"))).unwrap())
}

/// Who leads and which processes run, as a cluster's own directory sees it.
fn standing(scene: &Scene) -> (Value, Vec<Value>) {
    let status = scene.status();
    let pids = status["nodes"].as_array().unwrap().iter().map(|node| node["pid"].clone()).collect();
    (status["leader"].clone(), pids)
}

/// Another directory in which nothing was started, with the configuration of this one.
fn copy_of(original: &Scene) -> Scene {
    let copy = Scene::new(1);
    copy.config(&std::fs::read_to_string(original.path("cluster.toml")).unwrap());
    copy
}

fn every_verb_leaves_it_alone(copy: &Scene, original: &Scene) {
    let before = standing(original);
    let last = original.address(2);
    let (code, text) = copy.said(&["status"]);
    assert_eq!(code, 3, "{text}");
    let place = std::fs::canonicalize(original.directory.path()).unwrap();
    for part in ["stopped", "is held by another cluster called demo", &place.display().to_string()] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let status = copy.status();
    assert_eq!((&status["state"], &status["leader"]), (&Value::from("stopped"), &Value::Null));
    assert_eq!(status["nodes"][0]["held_by"]["pid"], before.1[0]);
    assert_eq!(copy.said(&["log-level"]).0, 3);
    for verb in [
        &["remove", &last, "--yes"][..],
        &["restart", "all"],
        &["stop", "all"],
        &["kill", "all", "--yes", "--no-probe"],
        &["kill", "supervisor", "--no-probe"],
        &["pause", "all", "--yes"],
        &["resume", "all"],
        &["move-leader", &last],
        &["log-level", "debug"],
        &["client", "put", "a", "stray"],
        &["up"],
    ] {
        let (code, text) = copy.said(verb);
        assert!(code == 5 && text.contains("held by another cluster"), "{verb:?}: {code} {text}");
    }
    copy.done(&["down", "--now"]);
    assert_eq!(standing(original), before, "the original is as it was");
    assert_eq!(original.said(&["status"]).0, 0);
}

#[test]
fn no_verb_touches_a_cluster_of_the_same_name_in_another_directory() {
    let original = Scene::new(3);
    original.config(&format!(
        "{}[replication]\nhandback_after = \"never\"\n",
        std::fs::read_to_string(original.path("cluster.toml")).unwrap()
    ));
    original.done(&["up"]);
    every_verb_leaves_it_alone(&copy_of(&original), &original);
    // A copy of everything remembers the processes of the original, and even has its register.
    let copy = copy_of(&original);
    let copied = Command::new("cp")
        .arg("-r")
        .args([original.path(".replcluster"), copy.path(".replcluster")])
        .status()
        .unwrap();
    assert!(copied.success());
    every_verb_leaves_it_alone(&copy, &original);
}

#[test]
fn without_a_name_the_cluster_is_the_same_however_its_file_is_named() {
    let scene = Scene::new(1);
    scene.config(&format!("nodes = [\"{}\"]", scene.address(0)));
    let (real, link) = (scene.path("orders"), scene.path("link"));
    std::fs::create_dir_all(real.join("deep")).unwrap();
    std::fs::rename(scene.path("cluster.toml"), real.join("cluster.toml")).unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let run = |here: &Path, arguments: &[&str], variable: Option<&Path>| {
        let mut command = scene.command(arguments);
        command.current_dir(here).envs(variable.map(|path| ("REPLCLUSTER_CONFIG", path)));
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    assert_eq!(run(&real.join("deep"), &["-f", "../cluster.toml", "up"], None).0, Some(0));
    let through_link = link.join("cluster.toml");
    for (here, arguments, variable) in [
        (real.as_path(), &["status"][..], None),
        (&link, &["status"], None),
        (Path::new("/"), &["-f", through_link.to_str().unwrap(), "status"], None),
        (Path::new("/"), &["status"], Some(through_link.as_path())),
    ] {
        let (code, text) = run(here, arguments, variable);
        assert!(
            code == Some(0) && text.starts_with("orders  healthy"),
            "{here:?} {arguments:?}: {code:?} {text}"
        );
    }
    // Under another name they are still the nodes of this directory, and it is said which name they have.
    let text = std::fs::read_to_string(real.join("cluster.toml")).unwrap();
    std::fs::write(real.join("cluster.toml"), format!("name = \"bills\"\n{text}")).unwrap();
    let (code, shown) = run(&real, &["status"], None);
    assert!(code == Some(0) && shown.contains("answers as a node of orders"), "{code:?} {shown}");
    assert_eq!(run(&real, &["down", "--now"], None).0, Some(0));
}

#[test]
fn a_frozen_supervisor_is_called_silent_and_can_be_killed_and_followed() {
    let scene = Scene::new(2);
    scene.done(&["up"]);
    let before = standing(&scene);
    let supervisor = pid(&scene.status()["supervisor"]["pid"]);
    kill(supervisor, Signal::SIGSTOP).unwrap();
    until("the freeze", || scene.status()["supervisor"]["state"] == "silent");
    assert_eq!(pid(&scene.status()["supervisor"]["pid"]), supervisor);
    let (code, text) = scene.said(&["status"]);
    assert!(code == 0 && text.contains(&format!("supervisor (pid {supervisor}) does not answer")), "{text}");
    let since = Instant::now();
    for verb in [&["stop", &scene.address(1)][..], &["up"], &["down"]] {
        let (code, text) = scene.said(verb);
        assert!(code == 4 && text.contains("replcluster kill supervisor"), "{verb:?}: {code} {text}");
    }
    assert!(since.elapsed() < Duration::from_secs(4), "said at once, and not after {:?}", since.elapsed());
    let told = scene.done(&["kill", "supervisor"]);
    assert!(told.contains("proved"), "{told}");
    scene.done(&["up"]);
    assert_eq!(standing(&scene), before, "no node was touched");
    let supervisor = pid(&scene.status()["supervisor"]["pid"]);
    kill(supervisor, Signal::SIGSTOP).unwrap();
    until("the freeze", || scene.status()["supervisor"]["state"] == "silent");
    scene.done(&["kill", "supervisor", "--no-probe"]);
    scene.done(&["down"]);
}

#[test]
fn a_deleted_socket_is_made_anew_by_the_living_supervisor() {
    let scene = Scene::new(1);
    scene.done(&["up"]);
    let before = scene.status()["supervisor"].clone();
    std::fs::remove_file(scene.path(".replcluster/supervisor.sock")).unwrap();
    scene.done(&["restart", "all"]);
    assert_eq!(scene.status()["supervisor"], before);
}

#[test]
fn nodes_whose_directory_was_deleted_are_ended_by_down_and_up() {
    let scene = Scene::new(2);
    let lose = || {
        let before = scene.status();
        // Frozen ones do not notice, and do not answer.
        kill(pid(&before["nodes"][1]["pid"]), Signal::SIGSTOP).unwrap();
        delete(&scene.path(".replcluster"));
        [0, 1].map(|node| pid(&before["nodes"][node]["pid"]))
    };
    let runs = |pid: Pid| Path::new(&format!("/proc/{pid}")).exists();
    scene.done(&["up"]);
    let old = lose();
    let (code, text) = scene.said(&["status"]);
    assert!(code == 3 && text.contains("which was deleted: `replcluster down` ends it"), "{code} {text}");
    let told = scene.done(&["down", "--purge", "--yes"]);
    assert!(told.contains("deleted the data of demo"), "{told}");
    until("their end", || old.iter().all(|pid| !runs(*pid)));
    scene.done(&["up"]);
    let old = lose();
    scene.done(&["up"]);
    until("their end", || old.iter().all(|pid| !runs(*pid)));
    let status = scene.status();
    assert_eq!(status["state"], "healthy", "{status}");
    assert!(!status.to_string().contains(&format!("\"pid\":{}", old[0])), "{status}");
}

#[test]
fn a_node_whose_data_directory_was_deleted_ends_loudly_and_joins_anew() {
    let scene = Scene::new(3);
    scene.done(&["up"]);
    let before = pid(&scene.status()["nodes"][1]["pid"]);
    let directory = scene.path(&format!(".replcluster/nodes/{}/data", scene.address(1).replace(':', "_")));
    delete(&directory);
    until("a new process", || {
        let status = scene.status();
        status["state"] == "healthy" && pid(&status["nodes"][1]["pid"]) != before
    });
    let (code, text) = scene.said(&["events"]);
    assert!(
        code == 0 && text.contains("it was deleted, emptied, moved or replaced while the node ran"),
        "{text}"
    );
}

#[test]
fn below_min_in_sync_the_cluster_is_unavailable_and_says_that_writes_are_refused() {
    let scene = Scene::new(2);
    let text = std::fs::read_to_string(scene.path("cluster.toml")).unwrap();
    scene.config(&format!("{text}[replication]\nmin_in_sync = 2\n"));
    scene.done(&["up"]);
    scene.done(&["stop", &scene.address(1)]);
    // What the nodes were told counts, not what the file says now.
    scene.config(&text);
    let (code, shown) = scene.said(&["status"]);
    assert!(
        code == 9 && shown.contains("writes are refused: min_in_sync is 2 and 1 is in sync"),
        "{code} {shown}"
    );
    assert_eq!(scene.status()["state"], "unavailable");
    assert_ne!(scene.said(&["client", "--timeout", "1s", "put", "a", "b"]).0, 0, "and so they are");
    scene.done(&["start", &scene.address(1)]);
    assert_eq!(scene.status()["state"], "healthy");
}

#[test]
fn resume_thaws_a_node_that_somebody_else_froze() {
    let scene = Scene::new(2);
    scene.done(&["up"]);
    let node = scene.address(1);
    kill(pid(&scene.status()["nodes"][1]["pid"]), Signal::SIGSTOP).unwrap();
    until("the freeze", || scene.status()["nodes"][1]["state"] == "paused");
    let told = scene.done(&["resume", &node]);
    assert!(told.contains(&format!("resumed {node} (1 of 1)")), "{told}");
    until("the thaw", || scene.status()["state"] == "healthy");
}

#[test]
fn logs_that_cannot_be_looked_at_are_not_called_unwritten() {
    let scene = Scene::new(1);
    std::fs::create_dir(scene.path(".replcluster")).unwrap();
    std::fs::write(scene.path(".replcluster/nodes"), "no directory").unwrap();
    let (code, text) = scene.said(&["logs"]);
    assert!(
        code == 1 && text.contains("cannot read") && !text.contains("no log was written"),
        "{code} {text}"
    );
}
