//! Processes that hang: stopped leaders, stopped followers, stopped candidates, everything stopped at once, and
//! processors so busy that everything is late. A stopped process keeps its locks, its connections and what it
//! believes; what it says when it wakes is what these tests are about (R17, R18, R31; T8, T9, T10, T15, T24).
//!
//! Bounds in time are wide here, since the machine does other work; `replcluster bench --failover --signal STOP` is
//! the one that measures. `REPLCLUSTER_HUNG_SECONDS` makes the long ones longer.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use replcluster::proto::etcdserverpb as pb;
use replcluster::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use replcluster::proto::replcluster::describe_response::Role;
use replcluster::proto::replcluster::node_client::NodeClient;
use replcluster::proto::replcluster::{DescribeRequest, DescribeResponse};
use tokio::task::JoinSet;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::cluster::{Cluster, PATIENCE, Process};
use super::ledger::{Ledger, Load, OnError, connection, kv, rethrow};

/// What a silence of `failure_timeout` (0.3 s) may cost at most on a machine that does other work.
const BOUND: Duration = Duration::from_secs(3);

/// How long the tests that take their time take it.
fn seconds(default: u64) -> Duration {
    let given = std::env::var("REPLCLUSTER_HUNG_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(given.unwrap_or(default))
}

/// The running node that is not `except`, is ready, and says that it leads; with all it says.
async fn leader_but(cluster: &Cluster, except: &str) -> DescribeResponse {
    let start = Instant::now();
    loop {
        for address in cluster.addresses().iter().filter(|address| *address != except) {
            if let Some(said) = cluster.describe(address).await
                && said.role() == Role::Leader
                && said.ready
            {
                return said;
            }
        }
        assert!(start.elapsed() < PATIENCE, "nobody but {except} leads");
    }
}

/// What a node said when it was asked in its sleep.
enum Answer {
    /// It calls itself healthy.
    Healthy,
    Said(Box<DescribeResponse>),
    Status(pb::StatusResponse),
    /// A read or write, which the ledger has judged, or a refusal.
    Other,
}

/// Everything that a node which has missed something could answer wrongly, written into its sockets.
fn ask_in_its_sleep(address: &str, ledger: &std::sync::Arc<Ledger>, tag: &str) -> JoinSet<Answer> {
    let mut asked = JoinSet::new();
    for number in 0..8 {
        let channel = connection(address);
        let (of_read, of_write) = (channel.clone(), channel.clone());
        let (ledger, name, address) = (ledger.clone(), format!("{tag}-{number}"), address.to_owned());
        let (reader, from) = (ledger.clone(), address.clone());
        asked.spawn(async move {
            let _ = reader.read(&mut kv(of_read), &from).await;
            Answer::Other
        });
        asked.spawn(async move {
            let _ = ledger.write(&mut kv(of_write), &name).await;
            Answer::Other
        });
        let of_health = channel.clone();
        asked.spawn(async move {
            match HealthClient::new(of_health).check(HealthCheckRequest::default()).await {
                Ok(answer) if answer.get_ref().status() == ServingStatus::Serving => Answer::Healthy,
                Ok(_) | Err(_) => Answer::Other,
            }
        });
        let of_node = channel.clone();
        asked.spawn(async move {
            let said = NodeClient::new(of_node).describe(DescribeRequest {}).await;
            said.map_or(Answer::Other, |said| Answer::Said(Box::new(said.into_inner())))
        });
        asked.spawn(async move {
            let status = MaintenanceClient::new(channel).status(pb::StatusRequest {}).await;
            status.map_or(Answer::Other, |status| Answer::Status(status.into_inner()))
        });
    }
    asked
}

/// R18, R31: a node that was deposed while it slept may call itself healthy again only once it is back in the set.
async fn judge_answers(cluster: &Cluster, woken: &str, old_epoch: u64, mut asked: JoinSet<Answer>) {
    while let Some(answer) = asked.join_next().await {
        match rethrow(answer) {
            Answer::Other => {}
            Answer::Healthy => {
                let leader = leader_but(cluster, woken).await;
                assert!(
                    leader.in_sync.iter().any(|node| node == woken),
                    "{woken} calls itself healthy, and epoch {} is in sync without it: {:?}",
                    leader.epoch,
                    leader.in_sync
                );
            }
            Answer::Said(said) => {
                let knows = said.epoch > old_epoch;
                let claims = said.ready || said.role() == Role::Leader;
                assert!(
                    if knows {
                        !claims || said.in_sync.contains(&said.address)
                    } else {
                        !claims && said.leader.is_empty()
                    },
                    "{woken} was deposed in epoch {old_epoch} and says {said:?}"
                );
            }
            Answer::Status(status) => assert!(
                status.raft_term > old_epoch || (!status.errors.is_empty() && status.leader == 0),
                "{woken} was deposed in epoch {old_epoch} and says {status:?}"
            ),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_leader_is_deposed_in_time_and_when_it_wakes_it_says_nothing_of_its_old_view() {
    let cluster = Cluster::start_with(3, &["--handback-after", "never"]).await;
    let addresses = cluster.addresses();
    let mut load = Load::new();
    let ledger = load.ledger.clone();
    load.writers(2, &addresses, OnError::GoOn);
    load.readers(2, &addresses, OnError::GoOn);
    for round in 0..3 {
        let leader = cluster.wait_in_sync().await;
        let old_epoch = cluster.describe(&leader).await.unwrap().epoch;
        ledger.advance(50).await;
        let failed = ledger.failed();
        cluster.nodes[&leader].freeze();
        let since = Instant::now();
        let asked = ask_in_its_sleep(&leader, &ledger, &format!("asleep{round}"));
        let next = leader_but(&cluster, &leader).await;
        let deposed_after = since.elapsed();
        assert!(deposed_after < BOUND, "{} led after {deposed_after:?}", next.address);
        assert!(next.epoch > old_epoch);
        ledger.advance(50).await;
        assert_eq!(
            ledger.failed(),
            failed,
            "only clients of the stopped node may notice, and they hear nothing yet"
        );
        cluster.nodes[&leader].thaw();
        judge_answers(&cluster, &leader, next.epoch - 1, asked).await;
        load.check().await;
    }
    cluster.wait_in_sync().await;
    load.finish().await.verify(&addresses).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_stopped_for_less_than_the_timeout_leads_on_and_no_client_is_told_an_error() {
    let cluster = Cluster::start_with(3, &["--failure-timeout", "2s"]).await;
    let addresses = cluster.addresses();
    let leader = cluster.wait_in_sync().await;
    let epoch = cluster.describe(&leader).await.unwrap().epoch;
    let mut load = Load::new();
    load.writers(2, &addresses, OnError::Fail);
    load.readers(2, &addresses, OnError::Fail);
    for _ in 0..5 {
        load.ledger.advance(20).await;
        cluster.nodes[&leader].freeze();
        tokio::time::sleep(Duration::from_millis(100)).await;
        cluster.nodes[&leader].thaw();
        load.check().await;
    }
    load.ledger.advance(20).await;
    assert_eq!(cluster.wait_in_sync().await, leader);
    assert_eq!(cluster.describe(&leader).await.unwrap().epoch, epoch, "nothing has changed");
    load.finish().await.verify(&addresses).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_follower_stalls_writers_for_a_moment_without_an_error_and_is_back_when_it_wakes() {
    let cluster = Cluster::start(3).await;
    let addresses = cluster.addresses();
    let mut load = Load::new();
    let ledger = load.ledger.clone();
    load.writers(2, &addresses[..2], OnError::Fail);
    load.readers(1, &addresses[..2], OnError::Fail);
    load.readers(2, &addresses[2..], OnError::GoOn);
    for round in 0..3 {
        ledger.advance(50).await;
        ledger.watch_gaps();
        cluster.nodes[&addresses[2]].freeze();
        let asked = ask_in_its_sleep(&addresses[2], &ledger, &format!("asleep{round}"));
        let old_epoch = cluster.describe(&addresses[0]).await.unwrap().epoch;
        let start = Instant::now();
        // Once it is out of the set, and not only because a few writes were on their way.
        while cluster.describe(&addresses[0]).await.is_none_or(|said| said.in_sync.len() != 2) {
            assert!(start.elapsed() < PATIENCE, "the stopped follower is waited for");
        }
        ledger.advance(50).await;
        assert!(ledger.longest_gap() < BOUND, "writers stood for {:?}", ledger.longest_gap());
        cluster.nodes[&addresses[2]].thaw();
        judge_answers(&cluster, &addresses[2], old_epoch, asked).await;
        assert_eq!(cluster.wait_in_sync().await, addresses[0], "it is back, and nobody else leads");
        load.check().await;
    }
    load.finish().await.verify(&addresses).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_next_in_line_is_stopped_when_the_leader_dies_the_one_after_it_leads() {
    let mut cluster = Cluster::start_with(3, &["--handback-after", "never"]).await;
    let addresses = cluster.addresses();
    let mut load = Load::new();
    let ledger = load.ledger.clone();
    load.writers(2, &addresses[2..], OnError::Fail);
    load.readers(2, &addresses[1..2], OnError::GoOn);
    ledger.advance(50).await;
    cluster.nodes[&addresses[1]].freeze();
    cluster.nodes.get_mut(&addresses[0]).unwrap().kill();
    let since = Instant::now();
    let asked = ask_in_its_sleep(&addresses[1], &ledger, "asleep");
    ledger.advance(50).await;
    let led = leader_but(&cluster, &addresses[1]).await;
    assert!(since.elapsed() < BOUND, "it led after {:?}", since.elapsed());
    assert_eq!((&led.address, led.in_sync.len()), (&addresses[2], 1));
    cluster.nodes[&addresses[1]].thaw();
    judge_answers(&cluster, &addresses[1], led.epoch - 1, asked).await;
    assert_eq!(cluster.wait_in_sync().await, addresses[2], "who wakes does not lead at once");
    cluster.spawn(&addresses[0]);
    cluster.wait_in_sync().await;
    load.finish().await.verify(&addresses).await;
}

/// The death of a follower makes the leader swap; the stop falls before, into or after that (R2, R26; T8).
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_stopped_while_it_changes_the_view_freezes_nobody_and_wakes_up_to_the_truth() {
    let seed = std::env::var("REPLCLUSTER_SEED").ok().and_then(|text| text.parse().ok());
    let seed: u64 = seed.unwrap_or_else(rand::random);
    println!("REPLCLUSTER_SEED={seed} cargo test --test suite a_leader_stopped_while_it_changes");
    let mut random = SmallRng::seed_from_u64(seed);
    let mut cluster = Cluster::start_with(3, &["--handback-after", "200ms"]).await;
    let addresses = cluster.addresses();
    let mut load = Load::new();
    let ledger = load.ledger.clone();
    load.writers(2, &addresses[1..2], OnError::Fail);
    load.readers(1, &addresses[..2], OnError::GoOn);
    for round in 0..3 {
        cluster.wait_until("led by the lowest", |said| said.ready && said.leader == addresses[0]).await;
        cluster.wait_in_sync().await;
        cluster.nodes.get_mut(&addresses[2]).unwrap().kill();
        let moment = Instant::now() + Duration::from_micros(random.random_range(0..15_000));
        while Instant::now() < moment {
            std::hint::spin_loop();
        }
        cluster.nodes[&addresses[0]].freeze();
        let asked = ask_in_its_sleep(&addresses[0], &ledger, &format!("asleep{round}"));
        let next = leader_but(&cluster, &addresses[0]).await;
        assert_eq!((&next.address, next.in_sync.len()), (&addresses[1], 1));
        ledger.advance(20).await;
        cluster.nodes[&addresses[0]].thaw();
        judge_answers(&cluster, &addresses[0], next.epoch - 1, asked).await;
        cluster.spawn(&addresses[2]);
        load.check().await;
    }
    cluster.wait_in_sync().await;
    load.finish().await.verify(&addresses).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_node_that_is_killed_frees_everything_and_can_be_started_again() {
    let mut cluster = Cluster::start_with(3, &["--handback-after", "never"]).await;
    let addresses = cluster.addresses();
    let mut load = Load::new();
    load.writers(1, &addresses[2..], OnError::Fail);
    for victim in [0, 1] {
        load.ledger.advance(20).await;
        cluster.nodes[&addresses[victim]].freeze();
        cluster.nodes.get_mut(&addresses[victim]).unwrap().kill();
        load.ledger.advance(20).await;
        cluster.spawn(&addresses[victim]);
        cluster.wait_in_sync().await;
    }
    load.finish().await.verify(&addresses).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspend_of_all_nodes_together_is_no_failure_of_any() {
    // Nodes that run a little longer than others count that as silence: the timeout is far above what it can be here.
    let cluster = Cluster::start_with(3, &["--failure-timeout", "1s"]).await;
    let addresses = cluster.addresses();
    let leader = cluster.wait_in_sync().await;
    let epoch = cluster.describe(&leader).await.unwrap().epoch;
    let mut load = Load::new();
    load.writers(1, &addresses, OnError::Fail);
    load.readers(1, &addresses, OnError::Fail);
    for order in [[0, 1, 2], [2, 1, 0]] {
        load.ledger.advance(20).await;
        order.iter().for_each(|node| cluster.nodes[&addresses[*node]].signal(Signal::SIGSTOP));
        cluster.nodes.values().for_each(Process::wait_until_stopped);
        tokio::time::sleep(Duration::from_secs(2)).await;
        order.iter().rev().for_each(|node| cluster.nodes[&addresses[*node]].thaw());
    }
    load.ledger.advance(20).await;
    assert_eq!(cluster.wait_in_sync().await, leader);
    let now = cluster.describe(&leader).await.unwrap().epoch;
    assert_eq!(now, epoch, "a node that did not run itself heard nobody, which proves nothing");
    load.finish().await.verify(&addresses).await;
}

/// Stops of any length at any moment, more than one at a time: the ones around `failure_timeout` are those that race.
#[tokio::test(flavor = "multi_thread")]
async fn stops_of_any_length_at_any_moment_lose_nothing_and_show_nothing_stale() {
    let seed = std::env::var("REPLCLUSTER_SEED").ok().and_then(|text| text.parse().ok());
    let seed: u64 = seed.unwrap_or_else(rand::random);
    println!("REPLCLUSTER_SEED={seed} cargo test --test suite stops_of_any_length");
    let mut random = SmallRng::seed_from_u64(seed);
    let cluster = Cluster::start_with(3, &["--handback-after", "200ms"]).await;
    let addresses = cluster.addresses();
    let mut load = Load::new();
    let ledger = load.ledger.clone();
    load.writers(2, &addresses, OnError::GoOn);
    load.readers(2, &addresses, OnError::GoOn);
    let (start, length) = (Instant::now(), seconds(4));
    while start.elapsed() < length {
        let victims: Vec<&String> = addresses.iter().filter(|_| random.random_bool(0.4)).collect();
        victims.iter().for_each(|victim| cluster.nodes[*victim].freeze());
        tokio::time::sleep(Duration::from_millis(random.random_range(1..600))).await;
        victims.iter().for_each(|victim| cluster.nodes[*victim].thaw());
        tokio::time::sleep(Duration::from_millis(random.random_range(1..300))).await;
        load.check().await;
    }
    cluster.wait_in_sync().await;
    ledger.advance(20).await;
    let ledger = load.finish().await;
    println!("{} acknowledged, {} read, told: {:?}", ledger.acknowledged(), ledger.reads(), ledger.errors());
    ledger.verify(&addresses).await;
}

/// Processes that do nothing but use a processor; ended with this value.
struct Busy(Vec<Child>);

impl Busy {
    fn start(count: usize) -> Busy {
        let spin =
            || Command::new("sh").args(["-c", "while :; do :; done"]).stdin(Stdio::null()).spawn().unwrap();
        Busy((0..count).map(|_| spin()).collect())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Among other tests the processors are busier than this test makes them, and the timeout is longer for that; asked for
/// by its own length it runs alone, with the timeout that users have.
#[tokio::test(flavor = "multi_thread")]
async fn while_all_processors_are_busy_nobody_is_taken_for_dead() {
    let alone = std::env::var_os("REPLCLUSTER_HUNG_SECONDS").is_some();
    let cluster = Cluster::start_with(3, &["--failure-timeout", if alone { "300ms" } else { "1s" }]).await;
    let addresses = cluster.addresses();
    let leader = cluster.wait_in_sync().await;
    let epoch = cluster.describe(&leader).await.unwrap().epoch;
    let mut load = Load::new();
    load.writers(1, &addresses, OnError::Fail);
    load.readers(1, &addresses, OnError::Fail);
    let cores = std::thread::available_parallelism().unwrap().get();
    let busy = Busy::start(2 * cores);
    let (start, length) = (Instant::now(), seconds(6));
    while start.elapsed() < length {
        tokio::time::sleep(Duration::from_millis(100)).await;
        load.check().await;
        let now = cluster.describe(&leader).await.map(|said| said.epoch);
        assert!(
            now.is_none_or(|now| now == epoch),
            "epoch {epoch} became {now:?} after {:?}",
            start.elapsed()
        );
    }
    drop(busy);
    assert_eq!(cluster.wait_in_sync().await, leader);
    assert_eq!(cluster.describe(&leader).await.unwrap().epoch, epoch);
    load.finish().await.verify(&addresses).await;
}

/// The named command, as a user has it.
fn bench(arguments: &[&str]) -> serde_json::Value {
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_replcluster"))
        .args(["bench", "--failover", "--json", "--dir"])
        .arg(directory.path())
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "it leaves nothing behind");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_benchmark_stops_leaders_and_followers_and_reads_from_them_when_they_wake() {
    for target in ["leader", "follower"] {
        let said = bench(&["--signal", "STOP", "--target", target, "--kills", "2"]);
        let ours = &said[0];
        assert_eq!((&ours["signal"], &ours["target"]), (&"STOP".into(), &target.into()), "{said}");
        assert_eq!(
            (&ours["stale_reads"], &ours["lost"], &ours["kills"]),
            (&0.into(), &0.into(), &2.into()),
            "{said}"
        );
        assert!(ours["reads_awake"].as_u64() > Some(0), "nothing was read: {said}");
        assert!(ours["max_ms"].as_f64() > Some(100.0), "a stop is seen by silence only: {said}");
    }
}

#[test]
fn the_benchmark_compares_an_empty_cluster_with_one_that_holds_data() {
    let said = bench(&["--data", "16MiB", "--kills", "1"]);
    let bytes: Vec<_> =
        said.as_array().unwrap().iter().map(|side| side["data_bytes"].as_u64().unwrap()).collect();
    assert_eq!(bytes, [0, 16 << 20]);
    let memory: Vec<_> =
        said.as_array().unwrap().iter().map(|side| side["resident_bytes"].as_u64().unwrap()).collect();
    assert!(memory[0] > 0 && memory[1] > 0, "{said}");
}
