//! Two builds in one cluster (R37, T32): nodes are replaced one by one under load, from the build that `$REPLSERVER_OLD`
//! names to this one, and back while that is still allowed. Nothing is lost, no node comes to hold anything else than the
//! others, and what only the new build knows begins when all are new. `.ci/run` makes the old build; without it the tests
//! say that they show nothing.

use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use replcluster::proto::etcdserverpb as pb;
use replcluster::proto::etcdserverpb::maintenance_client::MaintenanceClient;

use super::cluster::{Cluster, free_port, put_request, replserver, until};
use super::ledger::{Load, OnError, connection, kv};

/// Writes that must be acknowledged between two steps.
const ENOUGH: u64 = 50;

fn old() -> Option<PathBuf> {
    let path = std::env::var_os("REPLSERVER_OLD").map(PathBuf::from);
    if path.is_none() {
        eprintln!("SKIPPED, NOTHING IS SHOWN: $REPLSERVER_OLD names no program of the build before");
    }
    path
}

async fn start(program: &Path) -> (Cluster, Vec<String>) {
    let directory = tempfile::tempdir().unwrap();
    let flags = ["--handback-after", "never"].map(str::to_owned).to_vec();
    let mut cluster =
        Cluster { directory, nodes: std::collections::BTreeMap::new(), flags, descriptors: None };
    let mut addresses: Vec<String> = (0..3).map(|_| format!("127.0.0.1:{}", free_port())).collect();
    addresses.sort();
    addresses.iter().for_each(|address| cluster.spawn_program(address, program));
    cluster.wait_in_sync().await;
    (cluster, addresses)
}

/// Ends one node as a service manager does, and starts it with another program on the data it has.
async fn replace(cluster: &mut Cluster, address: &str, program: &Path) {
    end(cluster, address);
    cluster.spawn_program(address, program);
    cluster.wait_in_sync().await;
}

fn end(cluster: &mut Cluster, address: &str) {
    let process = cluster.nodes.get_mut(address).unwrap();
    process.signal(Signal::SIGTERM);
    process.wait();
}

/// All nodes hold the same at the same revision.
async fn assert_equal(addresses: &[String]) {
    let asked = pb::RangeRequest { key: "any".into(), ..Default::default() };
    let newest = kv(connection(&addresses[0])).range(asked.clone()).await.unwrap().into_inner();
    let revision = newest.header.unwrap().revision;
    let mut hashes = Vec::new();
    for address in addresses {
        kv(connection(address)).range(asked.clone()).await.unwrap();
        let request = pb::HashKvRequest { revision };
        let hash = MaintenanceClient::new(connection(address)).hash_kv(request).await.unwrap().into_inner();
        hashes.push((hash.hash, hash.compact_revision));
    }
    assert!(hashes.windows(2).all(|pair| pair[0] == pair[1]), "{hashes:?} at revision {revision}");
}

/// So many transactions inside of each other, and one put in the innermost.
fn nested(depth: usize, key: &str) -> pb::TxnRequest {
    let put = pb::request_op::Request::RequestPut(put_request(key, "nested"));
    let mut operation = pb::RequestOp { request: Some(put) };
    for _ in 1..depth {
        let txn = pb::TxnRequest { success: vec![operation], ..Default::default() };
        operation = pb::RequestOp { request: Some(pb::request_op::Request::RequestTxn(txn)) };
    }
    pb::TxnRequest { success: vec![operation], ..Default::default() }
}

/// Requests that an older build and this one could take for something else, through every node. Each may be refused; none
/// may part the nodes.
async fn try_what_may_differ(addresses: &[String]) {
    for (number, address) in addresses.iter().enumerate() {
        let mut kv = kv(connection(address));
        for depth in [1, 2, 40, 47, 48] {
            let _ = kv.txn(nested(depth, &format!("nested-{number}-{depth}"))).await;
        }
        let everything = pb::RangeRequest { key: "a".into(), range_end: "zz".into(), ..Default::default() };
        let read = pb::RequestOp { request: Some(pb::request_op::Request::RequestRange(everything)) };
        let put = pb::request_op::Request::RequestPut(put_request("beside-reads", "x"));
        let mut success = vec![read; 60];
        success.push(pb::RequestOp { request: Some(put) });
        let _ = kv.txn(pb::TxnRequest { success, ..Default::default() }).await;
        let delete =
            pb::DeleteRangeRequest { key: "nested-".into(), range_end: "nested.".into(), prev_kv: true };
        let _ = kv.delete_range(delete).await;
    }
}

fn secret(cluster: &Cluster) -> PathBuf {
    cluster.register().join("secret")
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_upgraded_one_by_one_under_load_and_nothing_is_lost() {
    let Some(old) = old() else { return };
    let (mut cluster, addresses) = start(&old).await;
    let mut load = Load::new();
    load.writers(2, &addresses, OnError::GoOn);
    load.readers(1, &addresses, OnError::GoOn);
    load.ledger.advance(ENOUGH).await;
    let leader = cluster.wait_in_sync().await;
    let mut order: Vec<String> = addresses.iter().filter(|address| **address != leader).cloned().collect();
    order.push(leader);
    for (turn, address) in order.iter().enumerate() {
        replace(&mut cluster, address, replserver()).await;
        load.ledger.advance(ENOUGH).await;
        try_what_may_differ(&addresses).await;
        assert_equal(&addresses).await;
        if turn == 0 {
            // Before all are new, there is a way back.
            replace(&mut cluster, address, &old).await;
            load.ledger.advance(ENOUGH).await;
            assert_equal(&addresses).await;
            replace(&mut cluster, address, replserver()).await;
        }
        if turn + 1 < order.len() {
            assert!(!secret(&cluster).exists(), "the secret comes when all are new");
        }
    }
    let secret = secret(&cluster);
    until("the secret of a cluster whose nodes are all new", || secret.exists());
    load.ledger.advance(ENOUGH).await;
    // Now a node of the old build is refused, and harms nothing.
    end(&mut cluster, &order[0]);
    cluster.spawn_program(&order[0], &old);
    load.ledger.advance(10 * ENOUGH).await;
    let said = cluster.describe(&addresses[1]).await.or(cluster.describe(&addresses[2]).await);
    assert!(
        said.is_none_or(|said| !said.in_sync.contains(&order[0])),
        "an old node without the secret is in sync"
    );
    cluster.nodes.get_mut(&order[0]).unwrap().kill();
    cluster.spawn_program(&order[0], replserver());
    cluster.wait_in_sync().await;
    try_what_may_differ(&addresses).await;
    let ledger = load.finish().await;
    assert_equal(&addresses).await;
    ledger.verify(&addresses).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_an_entry_has_ended_for_the_old_build_starts_again() {
    let Some(old) = old() else { return };
    let (mut cluster, addresses) = start(&old).await;
    let mut first = kv(connection(&addresses[0]));
    first.put(put_request("before", "kept")).await.unwrap();
    // Deeper by one than what the old build can read back from its own log, which is what its port still takes.
    let _ = first.txn(nested(50, "deep")).await;
    for address in &addresses {
        cluster.nodes.get_mut(address).unwrap().wait();
    }
    addresses.iter().for_each(|address| cluster.spawn_program(address, replserver()));
    cluster.wait_in_sync().await;
    for address in &addresses {
        let mut kv = kv(connection(address));
        let asked = pb::RangeRequest { key: "before".into(), ..Default::default() };
        assert_eq!(kv.range(asked).await.unwrap().into_inner().kvs.len(), 1, "{address}");
        kv.put(put_request("after", address)).await.unwrap();
    }
    assert_equal(&addresses).await;
}
