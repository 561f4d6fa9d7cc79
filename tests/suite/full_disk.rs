//! Disks that are really full: each node's directory is a small tmpfs of its own, and somebody else's file takes what is
//! left of it (R25, T16). Needs the right to mount; where that is refused the tests say so and claim nothing.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use bytes::Bytes;
use replcluster::client::Options;
use replcluster::proto::etcdserverpb as pb;
use replcluster::proto::etcdserverpb::cluster_client::ClusterClient;
use tonic::Code;

use super::cluster::{Cluster, PATIENCE, free_port, get, put_request};
use super::ledger::{Load, OnError, connection, kv};

/// What each node has: ample for what is written here, history and all, where nobody else takes it.
const MEBIBYTES: u32 = 256;

/// A mounted tmpfs; gone with this value.
struct Mount(PathBuf);

impl Mount {
    /// `None`, loudly, where it is refused.
    fn tmpfs(at: &Path) -> Option<Mount> {
        std::fs::create_dir_all(at).unwrap();
        let size = format!("size={MEBIBYTES}m,mode=0700");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).output().unwrap();
        if mounted.status.success() {
            return Some(Mount(at.to_owned()));
        }
        eprintln!("SKIPPED, NOTHING IS SHOWN: {}", String::from_utf8_lossy(&mounted.stderr));
        None
    }

    fn filler(&self) -> PathBuf {
        self.0.join("of-somebody-else")
    }

    /// Takes everything that is free.
    fn fill(&self) {
        let mut file = std::fs::File::options().create(true).append(true).open(self.filler()).unwrap();
        for size in [1 << 20, 4096] {
            while file.write_all(&vec![b'x'; size]).is_ok() {}
        }
    }

    fn make_room(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Three nodes, each on a small disk; dropped before their disks are.
struct Scene {
    cluster: Cluster,
    addresses: Vec<String>,
    disks: Vec<Mount>,
}

impl Scene {
    async fn start() -> Option<Scene> {
        let directory = tempfile::tempdir().unwrap();
        let mut addresses: Vec<String> = (0..3).map(|_| format!("127.0.0.1:{}", free_port())).collect();
        addresses.sort();
        let mut disks = Vec::new();
        for address in &addresses {
            disks.push(Mount::tmpfs(&directory.path().join(address.replace(':', "_")))?);
        }
        let flags = ["--handback-after", "never", "--log-keep-bytes", "8000000"].map(str::to_owned).to_vec();
        let mut cluster = Cluster { directory, nodes: std::collections::BTreeMap::new(), flags };
        addresses.iter().for_each(|address| cluster.spawn(address));
        cluster.wait_in_sync().await;
        Some(Scene { cluster, addresses, disks })
    }

    /// Writes large values one after the other until the log has needed new room several times, or a write is refused.
    async fn write_much(&self, through: &[String]) -> Result<(), tonic::Status> {
        let value = "v".repeat(128 << 10);
        let mut kv = kv(connection(&through[0]));
        for number in 0..400 {
            kv.put(put_request(&format!("much{}", number % 50), &value)).await?;
        }
        Ok(())
    }

    /// Any node takes any request: also one that has left the set and can neither apply nor know what is newest.
    async fn serves_through(&self, full: usize) {
        let address = &self.addresses[full];
        let said = self.cluster.describe(address).await.unwrap();
        assert!(!said.in_sync.contains(address), "it is still in the set: {said:?}");
        let channel = connection(address);
        let mut kv = kv(channel.clone());
        let written = kv.put(put_request("through", "a full node")).await.unwrap().into_inner();
        let request = pb::RangeRequest { key: Bytes::from_static(b"through"), ..Default::default() };
        let read = kv.range(request.clone()).await.unwrap().into_inner();
        assert_eq!(read.kvs[0].mod_revision, written.header.unwrap().revision, "a stale read");
        let operation =
            pb::RequestOp { request: Some(pb::request_op::Request::RequestRange(request.clone())) };
        let txn = pb::TxnRequest { success: vec![operation], ..Default::default() };
        assert_eq!(kv.txn(txn).await.unwrap().into_inner().responses.len(), 1);
        let delete = pb::DeleteRangeRequest { key: Bytes::from_static(b"through"), ..Default::default() };
        assert_eq!(kv.delete_range(delete).await.unwrap().into_inner().deleted, 1);
        let refused = kv.put(put_request("", "no key")).await.unwrap_err();
        assert_eq!(refused.message(), "etcdserver: key is not provided", "refusals are the same");
        let members = pb::MemberListRequest { linearizable: true };
        let members = ClusterClient::new(channel).member_list(members).await.unwrap().into_inner();
        assert_eq!(members.members.len(), 3);
        // What was handed on once is not handed on again.
        let mut handed_on = tonic::Request::new(request);
        handed_on.metadata_mut().insert("replcluster-handed-on", "true".parse().unwrap());
        let refused = kv.range(handed_on).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable);
        assert!(refused.message().contains("no room on its disk"), "{refused:?}");
    }

    fn all_run(&mut self) {
        for address in &self.addresses {
            assert!(
                self.cluster.has_not_ended(address),
                "{address} has ended: {}",
                self.cluster.nodes[address].tail()
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_whose_disk_is_full_keeps_nobody_from_writing_and_is_back_when_there_is_room() {
    let Some(mut scene) = Scene::start().await else { return };
    let survivors = scene.addresses[..2].to_vec();
    let mut load = Load::new();
    load.writers(1, &survivors, OnError::Fail);
    load.readers(1, &survivors, OnError::Fail);
    load.ledger.advance(20).await;
    scene.disks[2].fill();
    scene.write_much(&survivors).await.expect("two of three have room");
    load.ledger.advance(50).await;
    load.check().await;
    scene.all_run();
    scene.serves_through(2).await;
    scene.disks[2].make_room();
    scene.cluster.wait_in_sync().await;
    load.finish().await.verify(&scene.addresses).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_disk_is_full_hands_over_and_no_client_of_the_others_is_told_an_error() {
    let Some(mut scene) = Scene::start().await else { return };
    let survivors = scene.addresses[1..].to_vec();
    let mut load = Load::new();
    load.writers(1, &survivors, OnError::Fail);
    load.readers(1, &survivors, OnError::Fail);
    load.ledger.advance(20).await;
    scene.disks[0].fill();
    scene.write_much(&survivors).await.expect("two of three have room");
    load.ledger.advance(50).await;
    load.check().await;
    scene.all_run();
    let said = scene.cluster.describe(&survivors[0]).await.unwrap();
    assert!(survivors.contains(&said.leader), "a leader that cannot write leads: {said:?}");
    scene.serves_through(0).await;
    scene.disks[0].make_room();
    scene.cluster.wait_in_sync().await;
    load.finish().await.verify(&scene.addresses).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_all_disks_are_full_writes_are_refused_and_reads_deletes_and_compaction_go_on() {
    let Some(mut scene) = Scene::start().await else { return };
    // Who asks the first node asks one that leaves the set where the others have room for longer.
    let client = replcluster::client::Client::new(&scene.addresses, Options::default()).unwrap();
    client.put(put_request("kept", "through all of it")).await.unwrap();
    scene.disks.iter().for_each(Mount::fill);
    let refused = scene.write_much(&scene.addresses).await.expect_err("nobody has room");
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded")
    );
    scene.all_run();
    assert_eq!(get(&client, "kept").await.as_deref(), Some("through all of it"));
    let request = pb::DeleteRangeRequest {
        key: Bytes::from_static(b"much"),
        range_end: Bytes::from_static(b"muci"),
        prev_kv: false,
    };
    let deleted = client.delete(request).await.expect("deletes make room");
    let revision = deleted.header.unwrap().revision;
    client.compact(revision, true).await.expect("so does compaction");
    scene.all_run();
    scene.disks.iter().for_each(Mount::make_room);
    let start = Instant::now();
    while client.put(put_request("again", "there is room")).await.is_err() {
        assert!(start.elapsed() < PATIENCE, "there is room, and writes are still refused");
    }
    scene.cluster.wait_in_sync().await;
    assert_eq!(get(&client, "kept").await.as_deref(), Some("through all of it"));
    // And from the disks, not only from memory.
    for address in scene.addresses.clone() {
        scene.cluster.nodes.get_mut(&address).unwrap().kill();
    }
    scene.addresses.iter().for_each(|address| scene.cluster.spawn(address));
    scene.cluster.wait_in_sync().await;
    assert_eq!(get(&client, "kept").await.as_deref(), Some("through all of it"));
    assert_eq!(get(&client, "again").await.as_deref(), Some("there is room"));
}
