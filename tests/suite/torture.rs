//! `replcluster torture`: what it proves of the real thing, and that it can fail.

use std::path::Path;
use std::process::{Command, Output};

fn torture(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_replcluster"));
    command.args(["torture", "--json", "--seed", "1", "--rate", "1500", "--dir"]).arg(directory);
    command.args(arguments).output().unwrap()
}

fn verdict(output: &Output) -> serde_json::Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|error| {
        panic!("{error}: {text}\n{}", String::from_utf8_lossy(&output.stderr));
    })
}

#[test]
fn nothing_acknowledged_is_lost_and_every_answer_fits_whoever_is_killed_or_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let faults = "kill,stop,all-kill,strand";
    let output = torture(directory.path(), &["--cycles", "5", "--faults", faults]);
    let said = verdict(&output);
    assert_eq!((said["verdict"].as_str(), output.status.code()), (Some("proved"), Some(0)), "{said:#}");
    assert_eq!(said["hash_equal"], true);
    assert!(said["acknowledged"].as_u64().unwrap() > 100, "{said:#}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "it cleans up");
}

#[test]
fn clients_of_surviving_nodes_see_no_error_when_leaders_are_killed() {
    let directory = tempfile::tempdir().unwrap();
    let output = torture(directory.path(), &["--cycles", "4", "--survivors-only", "--nodes", "4"]);
    let said = verdict(&output);
    assert_eq!((said["verdict"].as_str(), output.status.code()), (Some("proved"), Some(0)), "{said:#}");
    assert_eq!((&said["unknown"], &said["refused"]), (&0.into(), &0.into()));
}

/// A check that cannot fail proves nothing.
#[cfg(feature = "fault-switches")]
#[test]
fn a_leader_that_says_yes_too_early_is_found_out() {
    let directory = tempfile::tempdir().unwrap();
    let switches = ["--cycles", "6", "--faults", "strand", "--unsafe-acknowledge-early"];
    let output = torture(directory.path(), &switches);
    let said = verdict(&output);
    assert_eq!((said["verdict"].as_str(), output.status.code()), (Some("violated"), Some(6)), "{said:#}");
    assert!(said["linearizability_violations"].as_u64().unwrap() > 0, "{said:#}");
    let history = std::fs::read(said["history"].as_str().unwrap()).unwrap();
    let history: serde_json::Value = serde_json::from_slice(&history).unwrap();
    assert_eq!(history["seed"], 1);
    assert!(history["operations"].as_array().unwrap().len() > 100);
}
