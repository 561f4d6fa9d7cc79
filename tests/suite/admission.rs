//! What stands in the log and cannot be applied: a cluster that an older build has left with such an entry starts, and an
//! operator can have an entry stepped over (R33, T28).

use std::path::PathBuf;

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use replcluster::disk::RealDisk;
use replcluster::node::log::{Log, Position, Record, encode};
use replcluster::proto::etcdserverpb as pb;
use replcluster::proto::replcluster::{Mutation, mutation};
use replcluster::view::Index;
use serde_json::Value;

use super::cli::Scene;
use super::cluster::{Cluster, put_request, replserver};

fn data(scene: &Scene, node: usize) -> PathBuf {
    scene.path(&format!(".replcluster/nodes/{}/data", scene.address(node).replace(':', "_")))
}

/// A request that an older build took and could not read again: it is one message deeper in the log than it came.
fn nested_49_deep() -> Bytes {
    let operation = |request| pb::RequestOp { request: Some(request) };
    let put = operation(pb::request_op::Request::RequestPut(put_request("nested", "deep")));
    let mut txn = pb::TxnRequest { success: vec![put], ..Default::default() };
    for _ in 0..49 {
        txn = pb::TxnRequest {
            success: vec![operation(pb::request_op::Request::RequestTxn(txn))],
            ..Default::default()
        };
    }
    let bytes = Bytes::from(Mutation { request: Some(mutation::Request::Txn(txn)) }.encode_to_vec());
    assert!(Mutation::decode(bytes.clone()).is_err(), "the decoder of the older build reads it");
    bytes
}

/// Appends an entry to the logs of all nodes, as a leader of the last epoch would have; answers with its index.
fn append_everywhere(directories: &[PathBuf], payload: &Bytes) -> u64 {
    let mut end: Option<Position> = None;
    for directory in directories {
        let (mut log, recovered) = Log::open(RealDisk, &directory.join("log"), Index(0)).unwrap();
        let last = recovered.last;
        assert_eq!(*end.get_or_insert(last), last, "the logs differ already");
        let record = Record {
            epoch: last.epoch,
            index: last.index.next(),
            commit: last.index,
            origin: 7,
            sequence: 1,
            payload: payload.clone(),
        };
        let mut frames = BytesMut::new();
        let chain = encode(&mut frames, &record, last.chain);
        let position = Position { index: record.index, epoch: record.epoch, chain };
        log.append(&frames.freeze(), position).unwrap();
        log.sync().unwrap();
    }
    end.unwrap().index.0 + 1
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_ended_by_an_entry_that_its_build_could_not_read_starts_again() {
    let mut cluster = Cluster::start(3).await;
    let addresses = cluster.addresses();
    cluster.client(&addresses).put(put_request("before", "here")).await.unwrap();
    // All that is written is applied everywhere, so that the logs are the same.
    let commit = cluster.describe(&addresses[0]).await.unwrap().last_index;
    cluster.wait_until("all applied", |said| said.applied_index >= commit && said.last_index == commit).await;
    cluster.nodes.values_mut().for_each(super::cluster::Process::kill);
    let directories: Vec<PathBuf> = cluster.nodes.values().map(|node| node.data.clone()).collect();
    let entries = [nested_49_deep(), Bytes::from_static(&[0xff, 0xff, 0xff])];
    for entry in &entries {
        append_everywhere(&directories, entry);
    }
    addresses.iter().for_each(|address| cluster.spawn(address));
    cluster.wait_in_sync().await;
    cluster.client(&addresses).put(put_request("after", "here")).await.unwrap();
    let mut said = Vec::new();
    for address in &addresses {
        said.push(cluster.describe(address).await.unwrap());
    }
    assert!(said.iter().all(|said| said.refused_entries >= 1), "{said:#?}");
    let commit = said[0].commit_index;
    cluster.wait_until("one state", |said| said.applied_index >= commit && said.commit_index >= commit).await;
    let mut revisions = Vec::new();
    for address in &addresses {
        revisions.push(cluster.describe(address).await.unwrap().revision);
    }
    assert!(revisions.iter().all(|revision| *revision == revisions[0]), "{revisions:?}");
}

#[test]
fn an_entry_is_shown_and_stepped_over_by_order_of_an_operator() {
    let scene = Scene::new(3);
    scene.done(&["up"]);
    scene.done(&["client", "put", "before", "here"]);
    let (code, text) = scene.said(&["recover", "--skip-entry", "1", "--yes"]);
    assert!(code == 1 && text.contains("none is to be stepped over"), "{code} {text}");
    scene.done(&["down", "--now"]);
    let directories: Vec<PathBuf> = (0..3).map(|node| data(&scene, node)).collect();
    let poison = Mutation { request: Some(mutation::Request::Put(put_request("poison", "carried-out"))) };
    let index = append_everywhere(&directories, &Bytes::from(poison.encode_to_vec()));
    let inspected = std::process::Command::new(replserver())
        .args(["inspect", "--json", "--entry", &index.to_string(), "--data-dir"])
        .arg(&directories[0])
        .output()
        .unwrap();
    let inspected: Value = serde_json::from_slice(&inspected.stdout).unwrap();
    let entries = inspected["entries"].as_array().unwrap();
    let shown = entries.iter().find(|entry| entry["index"] == index).unwrap();
    assert_eq!((&shown["what"], &shown["refused"]), (&Value::from("a put"), &Value::Null));

    let applied = inspected["state"]["applied"]["index"].as_u64().unwrap();
    let (code, text) = scene.said(&["recover", "--skip-entry", &applied.to_string(), "--yes"]);
    assert!(code == 1 && text.contains("the copies would differ"), "{code} {text}");
    let (code, text) = scene.said(&["recover", "--skip-entry", &(index + 1).to_string(), "--yes"]);
    assert!(code == 1 && text.contains("no copy holds"), "{code} {text}");

    let text = scene.done(&["recover", "--skip-entry", &index.to_string(), "--yes"]);
    assert!(text.contains(&format!("entry {index} ")), "{text}");
    assert!(scene.done(&["events"]).contains(&format!("recover --skip-entry {index}")));
    scene.done(&["up"]);
    assert!(scene.done(&["client", "get", "before"]).contains("here"));
    assert!(!scene.done(&["client", "get", "poison"]).contains("carried-out"), "it was carried out");
    scene.done(&["client", "put", "after", "here"]);
    // Every node reads its own: a node that had done it would answer with it.
    for node in 0..3 {
        let endpoint = scene.address(node);
        let arguments = ["client", "--endpoints", &endpoint, "get", "poison"];
        assert!(!scene.done(&arguments).contains("carried-out"), "{endpoint} has carried it out");
    }
}
