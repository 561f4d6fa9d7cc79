//! What only real processes and a real kernel show: descriptors and who inherits them, lock files that are unlinked,
//! directories that are copied or put back from a backup, addresses with two names, everything killed at once, and
//! restarts under load (R24, R27, R28; T5, T6, T7, T17, T19, T20, T25).
//!
//! `REPLCLUSTER_KERNEL_ROUNDS` repeats what is repeated more often; a failure names the seed that repeats it.

use std::path::Path;
use std::process::{Command, Stdio};

use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use super::cli::Scene;
use super::cluster::{Cluster, free_port, get, put_request};
use super::ledger::{Load, OnError};

fn rounds(default: usize) -> usize {
    std::env::var("REPLCLUSTER_KERNEL_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Runs a node that should refuse to start; its exit code and words.
fn refused(cluster: &Cluster, address: &str, data: &Path) -> (i32, String) {
    let mut command = cluster.command(address, data);
    let output = command.stderr(Stdio::piped()).stdout(Stdio::null()).output().unwrap();
    (output.status.code().expect("it exits"), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn copy_directory(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success(), "cp -a {} {}", from.display(), to.display());
}

/// Descriptors that a child of this process would inherit, and what they lead to; without those that it has itself
/// inherited from whatever runs the tests.
fn inheritable(pid: i32) -> Vec<String> {
    let ours = with_inheritance(i32::try_from(std::process::id()).unwrap());
    with_inheritance(pid).into_iter().filter(|one| !ours.contains(one)).collect()
}

/// Beyond the three standard ones.
fn with_inheritance(pid: i32) -> Vec<String> {
    let close_on_exec = 0o2_000_000; // O_CLOEXEC as /proc shows it, see proc_pid_fdinfo(5)
    let mut found = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let entry = entry.unwrap();
        let number: u32 = entry.file_name().to_str().unwrap().parse().unwrap();
        // Closed since it was listed, where it cannot be read any more.
        let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let Some(flags) = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok()) else { continue };
        if number > 2 && flags & close_on_exec == 0 {
            found.push(format!(
                "{number}: {}",
                std::fs::read_link(entry.path()).unwrap_or_default().display()
            ));
        }
    }
    found
}

/// Files that a process has open, by what they lead to.
fn open_files(pid: i32) -> Vec<String> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    entries
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .map(|target| target.display().to_string())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_lock_and_nothing_else_of_a_node_can_be_inherited() {
    let cluster = Cluster::start(2).await;
    cluster.client(&cluster.addresses()).put(put_request("some", "work")).await.unwrap();
    for process in cluster.nodes.values() {
        let pid = process.pid().as_raw();
        let files = open_files(pid);
        assert!(files.iter().any(|file| file.ends_with(".lock")), "it holds its locks: {files:?}");
        assert_eq!(inheritable(pid), Vec::<String>::new(), "{}", process.address);
    }
}

#[test]
fn a_node_inherits_no_lock_and_no_socket_of_its_supervisor() {
    let scene = Scene::new(2);
    scene.done(&["up"]);
    let status = scene.status();
    let pid = |value: &serde_json::Value| i32::try_from(value["pid"].as_i64().unwrap()).unwrap();
    let supervisor = pid(&status["supervisor"]);
    assert_eq!(inheritable(supervisor), Vec::<String>::new(), "of the supervisor");
    let held: Vec<String> = open_files(supervisor)
        .into_iter()
        .filter(|file| file.contains("lock") || file.starts_with("socket"))
        .collect();
    assert!(!held.is_empty(), "the supervisor holds a lock and a socket");
    for node in status["nodes"].as_array().unwrap() {
        let inherited: Vec<String> =
            open_files(pid(node)).into_iter().filter(|file| held.contains(file)).collect();
        assert_eq!(inherited, Vec::<String>::new(), "{}", node["address"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unlinked_lock_lets_no_second_process_in_and_proves_nobody_dead() {
    let mut cluster = Cluster::start_with(3, &["--handback-after", "never"]).await;
    let addresses = cluster.addresses();
    let mut load = Load::new();
    load.writers(1, &addresses[..2], OnError::Fail);
    let holder = cluster.nodes[&addresses[0]].pid().to_string();
    let lock = cluster.register().join("nodes").join(format!("{}.lock", addresses[0]));
    std::fs::remove_file(&lock).unwrap();
    let elsewhere = cluster.directory.path().join("elsewhere");
    let (code, text) = refused(&cluster, &addresses[0], &elsewhere);
    assert!(code == 5 && text.contains(&holder), "the same address: {code} {text}");
    let data = cluster.nodes[&addresses[0]].data.clone();
    for entry in std::fs::read_dir(&data).unwrap() {
        let path = entry.unwrap().path();
        if path.to_string_lossy().contains("lock") {
            std::fs::remove_file(&path).unwrap();
        }
    }
    let (code, text) = refused(&cluster, &addresses[0], &data);
    assert!(code == 5 && text.contains(&holder), "the same address and directory: {code} {text}");
    // A lock file stands there now that nobody holds. Whoever looks at it anew must not take the leader for dead.
    cluster.nodes.get_mut(&addresses[2]).unwrap().kill();
    cluster.spawn(&addresses[2]);
    assert_eq!(cluster.wait_in_sync().await, addresses[0], "it still leads");
    load.ledger.advance(50).await;
    assert_eq!(cluster.wait_in_sync().await, addresses[0], "and goes on leading");
    load.finish().await.verify(&addresses).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_directory_is_refused_while_the_original_runs() {
    let cluster = Cluster::start(2).await;
    let addresses = cluster.addresses();
    cluster.client(&addresses).put(put_request("one", "copy")).await.unwrap();
    let copy = cluster.directory.path().join("copy");
    copy_directory(&cluster.nodes[&addresses[1]].data, &copy);
    let (code, text) = refused(&cluster, &addresses[1], &copy);
    let holder = cluster.nodes[&addresses[1]].pid().to_string();
    assert!(code == 5 && text.contains(&holder), "at its own address: {code} {text}");
    let spare = format!("127.0.0.1:{}", free_port());
    let (code, text) = refused(&cluster, &spare, &copy);
    assert!(code == 5 && text.contains(&addresses[1]), "at another address: {code} {text}");
    assert_eq!(cluster.wait_in_sync().await, addresses[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_backup_put_back_into_a_node_is_noticed_set_aside_and_made_good_from_the_others() {
    let mut cluster = Cluster::start_with(3, &["--handback-after", "never"]).await;
    let addresses = cluster.addresses();
    let mut load = Load::new();
    load.writers(1, &addresses[..1], OnError::Fail);
    load.ledger.advance(50).await;
    let backup = cluster.directory.path().join("backup");
    let process = cluster.nodes.get_mut(&addresses[2]).unwrap();
    process.kill();
    copy_directory(&process.data, &backup);
    cluster.spawn(&addresses[2]);
    cluster.wait_in_sync().await;
    load.ledger.advance(50).await;
    let process = cluster.nodes.get_mut(&addresses[2]).unwrap();
    process.kill();
    std::fs::remove_dir_all(&process.data).unwrap();
    std::fs::rename(&backup, &process.data).unwrap();
    // Once out of the set it is only a node that is behind; in it, it would be counted on for what it does not hold.
    cluster.spawn(&addresses[2]);
    if !cluster.joins_or_ends(&addresses[2]).await {
        cluster.spawn(&addresses[2]);
    }
    cluster.wait_in_sync().await;
    load.ledger.advance(50).await;
    load.finish().await.verify(&addresses).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_name_for_a_taken_address_is_refused() {
    let cluster = Cluster::start(2).await;
    let addresses = cluster.addresses();
    let port = addresses[0].rsplit_once(':').unwrap().1;
    let holder = cluster.nodes[&addresses[0]].pid().to_string();
    for host in ["localhost", "127.1", "127.0.0.1."] {
        let elsewhere = cluster.directory.path().join(host);
        let (code, text) = refused(&cluster, &format!("{host}:{port}"), &elsewhere);
        // Not every host can look all of these up.
        let unknown = code == 1 && text.contains("cannot resolve");
        assert!((code == 5 && text.contains(&holder)) || code == 2 || unknown, "{host}: {code} {text}");
    }
    assert_eq!(cluster.wait_in_sync().await, addresses[0], "and nobody new is in the set");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_was_acknowledged_outlives_the_death_of_all_nodes_at_once_in_whatever_order_they_return() {
    let seed = std::env::var("REPLCLUSTER_SEED").ok().and_then(|text| text.parse().ok());
    let seed: u64 = seed.unwrap_or_else(rand::random);
    println!("REPLCLUSTER_SEED={seed} cargo test --test suite whatever_was_acknowledged");
    let mut random = SmallRng::seed_from_u64(seed);
    let mut cluster = Cluster::start_with(3, &["--handback-after", "never"]).await;
    let addresses = cluster.addresses();
    let mut load = Load::new();
    let ledger = load.ledger.clone();
    load.writers(3, &addresses, OnError::GoOn);
    load.readers(1, &addresses, OnError::GoOn);
    for _ in 0..rounds(6) {
        ledger.advance(random.random_range(1..200)).await;
        let mut order: Vec<&String> = addresses.iter().collect();
        order.shuffle(&mut random);
        for address in &order {
            cluster.nodes[*address].signal(nix::sys::signal::Signal::SIGKILL);
        }
        for address in &order {
            cluster.nodes.get_mut(*address).unwrap().kill();
        }
        order.shuffle(&mut random);
        for address in &order {
            cluster.spawn(address);
            if random.random_bool(0.5) {
                // Now and then one is up before the next is started.
                let _ = cluster.describe(address).await;
            }
        }
        cluster.wait_in_sync().await;
        load.check().await;
    }
    ledger.advance(10).await;
    load.finish().await.verify(&addresses).await;
}

#[test]
fn a_rolling_restart_fails_no_operation_of_any_client() {
    let scene = Scene::new(3);
    scene.done(&["up"]);
    let addresses: Vec<String> = (0..3).map(|node| scene.address(node)).collect();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let before: Vec<serde_json::Value> = scene.status()["nodes"].as_array().unwrap().clone();
    let mut load = runtime.block_on(async {
        let mut load = Load::new();
        load.clients(3, &addresses);
        load.ledger.advance(50).await;
        load
    });
    scene.done(&["restart", "all"]);
    let after = scene.status();
    for (old, new) in before.iter().zip(after["nodes"].as_array().unwrap()) {
        assert_ne!(old["pid"], new["pid"], "{} is another process", old["address"]);
    }
    runtime.block_on(async {
        load.ledger.advance(50).await;
        load.check().await;
        let ledger = load.finish().await;
        assert_eq!(ledger.failed(), 0, "{:?}", ledger.errors());
        ledger.verify(&addresses).await;
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_returns_to_a_lower_address_without_one_failed_request() {
    let mut cluster = Cluster::start_with(3, &["--handback-after", "200ms"]).await;
    let addresses = cluster.addresses();
    for _ in 0..rounds(3) {
        cluster.nodes.get_mut(&addresses[0]).unwrap().kill();
        cluster.wait_in_sync().await;
        let mut load = Load::new();
        // Through the one that hands over too: what it has queued goes on to the next leader.
        load.writers(2, &addresses[1..], OnError::Fail);
        load.readers(2, &addresses[1..], OnError::Fail);
        load.ledger.advance(20).await;
        cluster.spawn(&addresses[0]);
        cluster.wait_until("handed back", |said| said.leader == addresses[0] && said.ready).await;
        load.ledger.advance(50).await;
        load.check().await;
        load.finish().await.verify(&addresses).await;
    }
    assert_eq!(get(&cluster.client(&addresses), "nothing").await, None);
}
