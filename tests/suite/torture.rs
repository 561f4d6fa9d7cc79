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

/// The machine's own stalls make a run inconclusive and never violated.
fn assert_not_violated(output: &Output, faults: &[&str]) {
    let said = verdict(output);
    let is_fine = said["verdict"] == "proved" || said["machine"]["disk_ms"].as_u64() > Some(5000);
    assert!(is_fine && output.status.code() != Some(6), "{said:#}");
    for fault in faults {
        assert!(said["faults"][fault]["times"].as_u64() > Some(0), "{fault} did not strike: {said:#}");
    }
}

#[test]
fn nothing_acknowledged_is_lost_when_the_register_is_put_back_or_descriptors_run_out() {
    let directory = tempfile::tempdir().unwrap();
    let faults = "no-descriptors,register-rollback";
    let output = torture(directory.path(), &["--cycles", "6", "--faults", faults]);
    assert_not_violated(&output, &["no-descriptors", "register-rollback"]);
}

#[test]
fn a_node_that_flaps_keeps_writers_for_less_than_half_of_the_time() {
    let directory = tempfile::tempdir().unwrap();
    let output = torture(directory.path(), &["--cycles", "1", "--faults", "flapping"]);
    assert_not_violated(&output, &["flapping"]);
    assert!(verdict(&output)["stalled_percent"].as_f64().unwrap() < 50.0);
}

#[cfg(feature = "full-tests")]
#[test]
fn a_full_disk_keeps_reads_and_deletes_going_and_loses_nothing() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED, NOTHING IS SHOWN: only root can mount a disk to fill");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let output = torture(directory.path(), &["--cycles", "5", "--faults", "full-disk"]);
    if String::from_utf8_lossy(&output.stderr).contains("none can be mounted") {
        eprintln!("SKIPPED, NOTHING IS SHOWN: {}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    assert_not_violated(&output, &["full-disk"]);
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
