//! Disks that are really full (R25, R34, T16, T29). First each node's directory is a small tmpfs of its own; then all of
//! them and the register lie on one disk, tmpfs or ext4, that another program keeps filled to its last byte or inode.
//! Needs the right to mount; where that is refused the tests say so and claim nothing.

use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use replcluster::client::Options;
use replcluster::proto::etcdserverpb as pb;
use replcluster::proto::etcdserverpb::cluster_client::ClusterClient;
use tonic::Code;

use super::cluster::{Cluster, PATIENCE, free_port, get, put_request};
use super::ledger::{Load, OnError, connection, kv};

/// What each node has: ample for what is written here, history and all, where nobody else takes it.
const MEBIBYTES: u32 = 384;

/// A mounted disk; gone with this value.
struct Mount(PathBuf);

impl Mount {
    /// `None`, loudly, where it is refused.
    fn tmpfs(at: &Path) -> Option<Mount> {
        std::fs::create_dir_all(at).unwrap();
        let size = format!("size={MEBIBYTES}m,mode=0700");
        Mount::with(at, &["-t", "tmpfs", "-o", &size, "tmpfs"])
    }

    fn with(at: &Path, arguments: &[&str]) -> Option<Mount> {
        std::fs::create_dir_all(at).unwrap();
        let mounted = Command::new("mount").args(arguments).arg(at).output().unwrap();
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
        let mut cluster =
            Cluster { directory, nodes: std::collections::BTreeMap::new(), flags, descriptors: None };
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

/// What all nodes and the register share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tmpfs,
    Ext4,
    /// A tmpfs with few inodes: these are what is used up.
    Inodes,
}

impl Kind {
    fn mount(self, directory: &Path) -> Option<Mount> {
        let at = directory.join("disk");
        match self {
            Kind::Tmpfs => Mount::with(&at, &["-t", "tmpfs", "-o", "size=600m,mode=0700", "tmpfs"]),
            Kind::Inodes => {
                Mount::with(&at, &["-t", "tmpfs", "-o", "size=600m,mode=0700,nr_inodes=160", "tmpfs"])
            }
            Kind::Ext4 => {
                let image = directory.join("image");
                let file = std::fs::File::create(&image).unwrap();
                file.set_len(700 << 20).unwrap();
                let made = Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image).status();
                if !made.is_ok_and(|status| status.success()) {
                    eprintln!("SKIPPED, NOTHING IS SHOWN: there is no mkfs.ext4");
                    return None;
                }
                Mount::with(&at, &["-o", "loop", image.to_str().unwrap()])
            }
        }
    }
}

/// Numbers that a seed repeats.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// Another program that takes all that is free, again and again, until it is ended.
struct Filler {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Filler {
    /// Returns when the disk is full for the first time.
    fn start(kind: Kind, disk: &Path, seed: u64) -> Filler {
        let stop = Arc::new(AtomicBool::new(false));
        let (full, is_full) = std::sync::mpsc::channel();
        let (stopped, disk) = (stop.clone(), disk.to_owned());
        let thread = std::thread::spawn(move || {
            let mut random = Random(seed);
            let bytes = disk.join("of-somebody-else");
            let mut file = std::fs::File::create(&bytes).unwrap();
            let mut files = Vec::new();
            while !stopped.load(Ordering::SeqCst) {
                if kind == Kind::Inodes {
                    let path = disk.join(format!("of-somebody-else-{}", files.len()));
                    if std::fs::File::create(&path).is_ok() {
                        files.push(path);
                        continue;
                    }
                } else {
                    // Great steps and small ones, and at last single bytes.
                    let mut steps: Vec<usize> = (0..3).map(|_| 1 << (12 + random.below(12))).collect();
                    steps.extend([4096, 1]);
                    for step in steps {
                        while !stopped.load(Ordering::SeqCst) && file.write_all(&vec![b'x'; step]).is_ok() {
                            if random.below(40) == 0 {
                                std::thread::yield_now();
                            }
                        }
                    }
                }
                let _ = full.send(());
                std::thread::yield_now();
            }
            drop(file);
            files.push(bytes);
            files.iter().for_each(|path| std::fs::remove_file(path).unwrap());
        });
        is_full.recv().unwrap();
        Filler { stop, thread: Some(thread) }
    }

    /// There is room again when this returns.
    fn end(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Three nodes and their register on one disk.
struct Shared {
    cluster: Cluster,
    addresses: Vec<String>,
    disk: Mount,
}

impl Shared {
    async fn start(kind: Kind) -> Option<Shared> {
        let directory = tempfile::tempdir().unwrap();
        let disk = kind.mount(directory.path())?;
        let mut addresses: Vec<String> = (0..3).map(|_| format!("127.0.0.1:{}", free_port())).collect();
        addresses.sort();
        let names = addresses.iter().map(|address| address.replace(':', "_"));
        for name in names.chain(["register".to_owned()]) {
            let there = disk.0.join(&name);
            std::fs::DirBuilder::new().mode(0o700).create(&there).unwrap();
            std::os::unix::fs::symlink(there, directory.path().join(name)).unwrap();
        }
        let flags = ["--handback-after", "never"].map(str::to_owned).to_vec();
        let mut cluster =
            Cluster { directory, nodes: std::collections::BTreeMap::new(), flags, descriptors: None };
        addresses.iter().for_each(|address| cluster.spawn(address));
        cluster.wait_in_sync().await;
        Some(Shared { cluster, addresses, disk })
    }

    async fn wait_for_the_whole_set(&self) -> String {
        self.cluster.wait_until("three in sync", |said| said.in_sync.len() == 3).await
    }

    /// Deletes a key through each of these nodes, and reads through each.
    async fn serves(&self, through: &[String], round: usize) {
        for (number, address) in through.iter().enumerate() {
            let client = self.cluster.client(std::slice::from_ref(address));
            assert_eq!(get(&client, "kept").await.as_deref(), Some("through all of it"), "{address}");
            let key = Bytes::from(format!("key-{}", 3 * round + number));
            let delete = pb::DeleteRangeRequest { key, ..Default::default() };
            let deleted = client.delete(delete).await.unwrap_or_else(|error| panic!("{address}: {error}"));
            assert_eq!(deleted.deleted, 1, "{address}");
        }
    }

    fn all_run(&mut self) {
        for address in self.addresses.clone() {
            let process = &self.cluster.nodes[&address];
            let tail = process.tail();
            assert!(!process.runs() || self.cluster.has_not_ended(&address), "{address} has ended: {tail}");
        }
    }
}

/// Everything that must still work on a disk without a free byte, and the time from the leader's death to the next
/// answer.
async fn asks_all_of_a_full_disk(kind: Kind, seed: u64) -> Option<Duration> {
    let mut scene = Shared::start(kind).await?;
    let client = scene.cluster.client(&scene.addresses);
    client.put(put_request("kept", "through all of it")).await.unwrap();
    for number in 0..30 {
        client.put(put_request(&format!("key-{number}"), &"v".repeat(1000))).await.unwrap();
    }
    let mut filler = Filler::start(kind, &scene.disk.0, seed);
    if kind != Kind::Inodes {
        // Growth is refused as etcd refuses it, and no sooner is anything else.
        let start = Instant::now();
        let value = "v".repeat(100_000);
        let refused = loop {
            match client.put(put_request("much", &value)).await {
                Ok(_) => assert!(start.elapsed() < PATIENCE, "the disk is full, and writes go on"),
                Err(error) => break error.to_string(),
            }
        };
        assert!(refused.contains("etcdserver: mvcc: database space exceeded"), "{refused}");
    }
    scene.serves(&scene.addresses, 0).await;
    let members = pb::RangeRequest { key: Bytes::from_static(b"kept"), ..Default::default() };
    let revision = client.range(members).await.unwrap().header.unwrap().revision;
    client.compact(revision, true).await.expect("compaction makes room");
    let leader = scene.wait_for_the_whole_set().await;
    scene.all_run();
    scene.cluster.nodes.get_mut(&leader).unwrap().kill();
    let died = Instant::now();
    let others: Vec<String> = scene.addresses.iter().filter(|address| **address != leader).cloned().collect();
    scene.serves(&others, 1).await;
    let gap = died.elapsed();
    scene.cluster.spawn(&leader);
    scene.wait_for_the_whole_set().await;
    scene.serves(&scene.addresses, 2).await;
    scene.all_run();
    filler.end();
    let start = Instant::now();
    while let Err(error) = client.put(put_request("again", "there is room")).await {
        assert!(start.elapsed() < PATIENCE, "there is room, and writes are refused: {error}");
    }
    scene.cluster.wait_in_sync().await;
    scene.serves(&scene.addresses, 3).await;
    scene.all_run();
    Some(gap)
}

async fn ask_many_times(kind: Kind, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let Some(gap) = asks_all_of_a_full_disk(kind, seed).await else { return };
        println!("{kind:?}, seed {seed}: {} ms without a leader", gap.as_millis());
        assert!(gap < Duration::from_secs(10), "{kind:?}, seed {seed}: {gap:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_tmpfs_filled_to_its_last_byte_stops_nothing_but_growth() {
    ask_many_times(Kind::Tmpfs, 0..5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_ext4_filled_to_its_last_byte_stops_nothing_but_growth() {
    ask_many_times(Kind::Ext4, 10..13).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_disk_without_inodes_stops_nothing_that_needs_none() {
    ask_many_times(Kind::Inodes, 20..22).await;
}
