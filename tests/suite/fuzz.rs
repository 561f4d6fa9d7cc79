//! The port of a real node under bytes that nobody should send: HTTP/2 frames and headers, bodies of every method,
//! HTTP/1, peers' greetings and frames, and connections that say next to nothing and stay. Whatever comes, the processes
//! go on, their memory grows by no more than four times what was sent, and another client waits no more than 50 ms longer
//! than beside as many requests that are in order. Everything follows from a seed.
//!
//! `REPLCLUSTER_FUZZ_CASES` says how many inputs, `REPLCLUSTER_FUZZ_SEED` where they begin. The decoders themselves
//! are fuzzed in `src/fuzz.rs`.

#![allow(clippy::needless_update, reason = "messages gain fields")]

#[path = "../../src/fuzz/message.rs"]
mod message;
#[path = "../../src/fuzz/source.rs"]
mod source;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prost::Message as _;
use replcluster::proto::etcdserverpb as pb;
use replcluster::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use replcluster::proto::replcluster as own;

use self::source::Source;
use super::cluster::{Cluster, put_request};
use super::ledger::{connection, kv};

/// Inputs, unless `REPLCLUSTER_FUZZ_CASES` says otherwise.
const CASES: u64 = 600;
/// So many at a time, before as many that are in order.
const SLICE: u64 = 60;
/// How much longer another client may wait.
const HELD: Duration = Duration::from_millis(50);
/// What a node may take whatever was sent: buffers, threads, its log.
const MEMORY_FLOOR: u64 = 64 << 20;
/// A slice in which somebody waited too long is repeated so often: only bytes do it again and again.
const AGAIN: u32 = 3;
/// How long an answer is read.
const LISTEN: Duration = Duration::from_millis(3);

/// Every method but those whose very purpose is to end a node or to change who belongs to the cluster.
const METHODS: &[&str] = &[
    "/etcdserverpb.KV/Range",
    "/etcdserverpb.KV/Put",
    "/etcdserverpb.KV/DeleteRange",
    "/etcdserverpb.KV/Txn",
    "/etcdserverpb.KV/Compact",
    "/etcdserverpb.Watch/Watch",
    "/etcdserverpb.Lease/LeaseGrant",
    "/etcdserverpb.Lease/LeaseKeepAlive",
    "/etcdserverpb.Cluster/MemberList",
    "/etcdserverpb.Maintenance/Status",
    "/etcdserverpb.Maintenance/HashKV",
    "/etcdserverpb.Maintenance/Alarm",
    "/etcdserverpb.Maintenance/Snapshot",
    "/etcdserverpb.Auth/Authenticate",
    "/replcluster.Node/Describe",
    "/replcluster.Node/SetLogLevel",
    "/grpc.health.v1.Health/Check",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
];

/// Bodies that are in order, each of some method.
fn bodies() -> Vec<Vec<u8>> {
    let operation = |request| pb::RequestOp { request: Some(request) };
    let mut txn = pb::TxnRequest {
        success: vec![operation(pb::request_op::Request::RequestPut(put_request("fuzz", "value")))],
        ..Default::default()
    };
    let mut all = vec![
        pb::RangeRequest { key: "a".into(), range_end: "z".into(), limit: 10, ..Default::default() }
            .encode_to_vec(),
        put_request("fuzz", "value").encode_to_vec(),
        pb::DeleteRangeRequest { key: "fuzz".into(), range_end: "fuzz9".into(), prev_kv: true }
            .encode_to_vec(),
        pb::CompactionRequest { revision: 1, physical: false }.encode_to_vec(),
        pb::HashKvRequest { revision: 1 }.encode_to_vec(),
        own::SetLogLevelRequest { filter: String::new() }.encode_to_vec(),
        Vec::new(),
        // Two bytes for what takes hundreds in memory.
        [0x12, 0].repeat(400_000),
    ];
    for depth in 1..=60 {
        let inner = operation(pb::request_op::Request::RequestTxn(txn));
        txn = pb::TxnRequest { success: vec![inner], ..Default::default() };
        if depth % 6 == 0 || (44..52).contains(&depth) {
            all.push(txn.encode_to_vec());
        }
    }
    all
}

/// The head of an HTTP/2 frame, then what it carries.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// A header block with literals that enter no table.
fn headers(path: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x86];
    for (name, text) in [(4, path), (1, "fuzz"), (31 - 15, "application/grpc")] {
        match name {
            16 => block.extend_from_slice(&[0x0f, 16]),
            name => block.push(name),
        }
        block.push(u8::try_from(text.len()).unwrap());
        block.extend_from_slice(text.as_bytes());
    }
    block.extend_from_slice(b"\x00\x02te\x08trailers");
    block
}

/// One call on a connection of its own.
fn call(path: &str, body: &[u8]) -> Vec<u8> {
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    frame(4, 0, 0, &[], &mut out);
    frame(1, 4, 1, &headers(path), &mut out);
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    let whole = [&[0][..], &length, body].concat();
    let pieces = whole.chunks(16_000).count();
    for (number, piece) in whole.chunks(16_000).enumerate() {
        frame(0, u8::from(number + 1 == pieces), 1, piece, &mut out);
    }
    out
}

fn greeting(cluster_id: u64, to: &str) -> Vec<u8> {
    let hello = own::Hello {
        cluster_id,
        from: "127.0.0.1:1".to_owned(),
        incarnation: 7,
        to: to.to_owned(),
        format: 1,
        session: 9,
        ..Default::default()
    };
    let hello = hello.encode_to_vec();
    let length = u32::try_from(hello.len()).unwrap().to_le_bytes();
    [&b"REPLPEER"[..], &length, &hello].concat()
}

/// What peers say, as frames with their lengths.
fn peer_frames(source: &mut Source) -> Vec<u8> {
    use own::frame::Body;
    let mutations = vec![vec![1, 2, 3].into(), vec![0x0a, 0x02, 0x0a, 0x00].into()];
    let bodies = [
        Body::Ping(own::Ping {}),
        Body::Appended(own::Appended { durable: source.number(), full: false, ..Default::default() }),
        Body::Report(own::Report {
            commit: source.number(),
            last_index: source.number(),
            ..Default::default()
        }),
        Body::Forward(own::Forward { origin: 7, first_sequence: 1, mutations, ..Default::default() }),
        Body::ReadIndex(own::ReadIndex { question: 1, ..Default::default() }),
        Body::SnapshotBegin(own::SnapshotBegin {
            index: source.number(),
            epoch: 1,
            chain: 1,
            ..Default::default()
        }),
        Body::Append(own::Append {
            last_index: source.number(),
            records: vec![9; 80].into(),
            ..Default::default()
        }),
    ];
    let mut out = Vec::new();
    for _ in 0..=source.below(6) {
        let body = source.pick(&bodies).clone();
        let said =
            own::Frame { epoch: source.number(), body: Some(body), ..Default::default() }.encode_to_vec();
        let said = if source.chance(60) { message::mistakes(source, &said) } else { said };
        let length = if source.chance(90) { said.len() as u64 } else { source.number() };
        out.extend_from_slice(&length.to_le_bytes()[..4]);
        out.extend_from_slice(&said);
    }
    out
}

fn method(source: &mut Source) -> &'static str {
    METHODS[source.below(METHODS.len())]
}

/// The input of a seed.
fn input(seed: u64, cluster_id: u64, to: &str) -> Vec<u8> {
    let mut source = Source::new(seed);
    let source = &mut source;
    match source.below(10) {
        0..4 => {
            let body = source.pick(&bodies()).clone();
            let body = if source.chance(85) { message::mistakes(source, &body) } else { body };
            call(method(source), &body)
        }
        4..6 => {
            let whole = call(method(source), &[0x0a, 0x01, b'k']);
            let preface = 24;
            [&whole[..preface], &source.mistakes(&whole[preface..])].concat()
        }
        6 => {
            let lines = b"GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\nbody";
            source.mistakes(lines)
        }
        7 => source.mistakes(&greeting(cluster_id, to)),
        8 => [greeting(cluster_id, to), peer_frames(source)].concat(),
        _ => {
            // Little, and then nothing: the connection stays for a while.
            let begin = *source.pick(&[&b"P"[..], b"PR", b"REP", b"REPLPEER", b"GET", b"\0\0"]);
            begin.to_vec()
        }
    }
}

/// Sends it, listens for a moment, and keeps the connection for later.
fn send(address: &str, bytes: &[u8]) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    stream.set_read_timeout(Some(LISTEN)).unwrap();
    // The node may have closed it in the middle.
    let _ = stream.write_all(bytes);
    let mut answer = [0; 4096];
    let _ = stream.read(&mut answer);
    Some(stream)
}

/// Another client, at work all the time.
struct Other {
    stop: Arc<AtomicBool>,
    longest: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Other {
    fn start(address: &str) -> Other {
        let (stop, longest) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, noted, address) = (stop.clone(), longest.clone(), address.to_owned());
        let task = tokio::spawn(async move {
            let mut kv = kv(connection(&address));
            while !stopped.load(Ordering::SeqCst) {
                let began = Instant::now();
                kv.put(put_request("other", "value")).await.expect("another client's put");
                let asked = pb::RangeRequest { key: "other".into(), ..Default::default() };
                kv.range(asked).await.expect("another client's read");
                let waited = u64::try_from(began.elapsed().as_micros()).unwrap();
                noted.fetch_max(waited, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        Other { stop, longest, task }
    }

    fn take_longest(&self) -> Duration {
        Duration::from_micros(self.longest.swap(0, Ordering::SeqCst))
    }
}

/// Sends the inputs of some seeds, or as many that are in order; answers with how much was sent.
async fn slice(address: &str, seeds: std::ops::Range<u64>, cluster_id: u64, in_order: bool) -> u64 {
    let address = address.to_owned();
    let sending = move || {
        let mut kept = Vec::new();
        let mut sent = 0;
        for seed in seeds {
            let bytes = match in_order {
                true => call("/etcdserverpb.KV/Put", &put_request("fuzz", "value").encode_to_vec()),
                false => input(seed, cluster_id, &address),
            };
            sent += bytes.len() as u64;
            kept.extend(send(&address, &bytes));
        }
        sent
    };
    tokio::task::spawn_blocking(sending).await.unwrap()
}

fn resident_bytes(cluster: &Cluster, address: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", cluster.nodes[address].pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it runs");
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

/// `None` where everything runs; else who has ended.
fn ended(cluster: &mut Cluster) -> Option<String> {
    let addresses = cluster.addresses();
    addresses.into_iter().find(|address| !cluster.has_not_ended(address))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_bytes_end_a_node_hold_others_or_fill_its_memory() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let cases = number("REPLCLUSTER_FUZZ_CASES").unwrap_or(CASES);
    let first = number("REPLCLUSTER_FUZZ_SEED").unwrap_or(0);
    let mut cluster = Cluster::start(2).await;
    let leader = cluster.wait_in_sync().await;
    let addresses = cluster.addresses();
    let cluster_id = cluster.describe(&leader).await.unwrap().cluster_id;
    let other = Other::start(&leader);
    for address in &addresses {
        slice(address, 0..SLICE, cluster_id, true).await;
    }
    let before: Vec<u64> = addresses.iter().map(|address| resident_bytes(&cluster, address)).collect();
    let mut sent = vec![0; addresses.len()];
    let mut seed = first;
    while seed < first + cases {
        let seeds = seed..(seed + SLICE).min(first + cases);
        let again = format!(
            "again: REPLCLUSTER_FUZZ_SEED={} REPLCLUSTER_FUZZ_CASES={} cargo test --test suite no_bytes_end_a_node",
            seeds.start,
            seeds.end - seeds.start
        );
        let at = usize::try_from(seed / SLICE).unwrap() % addresses.len();
        let mut tries = 0;
        loop {
            other.take_longest();
            sent[at] += slice(&addresses[at], seeds.clone(), cluster_id, true).await;
            let undisturbed = other.take_longest();
            sent[at] += slice(&addresses[at], seeds.clone(), cluster_id, false).await;
            let disturbed = other.take_longest();
            if let Some(address) = ended(&mut cluster) {
                panic!("{address} has ended\n{again}\n{}", inputs(seeds, cluster_id, &addresses[at]));
            }
            tries += 1;
            if disturbed <= undisturbed + HELD {
                break;
            }
            assert!(
                tries < AGAIN,
                "another client waited {disturbed:?}, and {undisturbed:?} beside requests in order\n{again}"
            );
        }
        let growth = resident_bytes(&cluster, &addresses[at]).saturating_sub(before[at]);
        assert!(
            growth <= 4 * sent[at] + MEMORY_FLOOR,
            "{} grew by {growth} bytes when {} were sent\n{again}",
            addresses[at],
            sent[at]
        );
        seed += SLICE;
    }
    other.stop.store(true, Ordering::SeqCst);
    super::ledger::rethrow(other.task.await);
    // What was accepted was applied, on both the same, and is again after a restart.
    cluster.wait_in_sync().await;
    assert_equal(&addresses).await;
    for address in &addresses {
        cluster.nodes.get_mut(address).unwrap().kill();
    }
    addresses.iter().for_each(|address| cluster.spawn(address));
    cluster.wait_in_sync().await;
    assert_equal(&addresses).await;
}

async fn assert_equal(addresses: &[String]) {
    let asked = pb::RangeRequest { key: "other".into(), ..Default::default() };
    let newest = kv(connection(&addresses[0])).range(asked.clone()).await.unwrap().into_inner();
    // At one revision: what was sent last on a connection that has ended may still be carried out.
    let revision = newest.header.unwrap().revision;
    let mut hashes = Vec::new();
    for address in addresses {
        kv(connection(address)).range(asked.clone()).await.unwrap();
        let asked = pb::HashKvRequest { revision };
        let said = MaintenanceClient::new(connection(address)).hash_kv(asked).await.unwrap().into_inner();
        hashes.push((revision, said.hash));
    }
    assert!(hashes.windows(2).all(|pair| pair[0] == pair[1]), "{hashes:?}");
}

/// The bytes of some seeds, for a failure that ends a node.
fn inputs(seeds: std::ops::Range<u64>, cluster_id: u64, to: &str) -> String {
    let shown = |seed: u64| {
        let bytes = input(seed, cluster_id, to);
        let digits: String = bytes.iter().take(300).map(|byte| format!("{byte:02x}")).collect();
        format!("seed {seed}, {} bytes: {digits}\n", bytes.len())
    };
    seeds.map(shown).collect()
}
