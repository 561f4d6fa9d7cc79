//! Clients that hoard: answers they never read, requests they never finish. What a node holds for them is bounded, and
//! others are served.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::Duration;

use nix::unistd::Pid;
use replcluster::proto::etcdserverpb as pb;

use crate::cluster::{Cluster, get, put_request};
use crate::ledger::{connection, kv};

/// A connection that speaks HTTP/2 as far as it is needed to ask, and never reads.
struct Hoarder(TcpStream);

impl Hoarder {
    fn connect(address: &str) -> Hoarder {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        let mut hoarder = Hoarder(stream);
        hoarder.frame(4, 0, 0, &[]).unwrap();
        hoarder
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> std::io::Result<()> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.0.write_all(&frame)
    }

    /// The head of a request, in literals.
    fn head(&mut self, stream: u32, path: &str) -> std::io::Result<()> {
        let mut block = vec![0x83, 0x86];
        let mut field = |name: &[u8], value: &str| {
            block.extend(name);
            block.push(u8::try_from(value.len()).unwrap());
            block.extend(value.as_bytes());
        };
        field(&[0x04], path);
        field(&[0x01], "127.0.0.1:1");
        field(&[0x0f, 0x10], "application/grpc");
        field(b"\x00\x02te", "trailers");
        self.frame(1, 4, stream, &block)
    }

    /// A whole request.
    fn ask(&mut self, stream: u32, path: &str, message: &impl prost::Message) -> std::io::Result<()> {
        self.head(stream, path)?;
        let mut body = vec![0];
        body.extend(u32::try_from(message.encoded_len()).unwrap().to_be_bytes());
        body.extend(message.encode_to_vec());
        self.frame(0, 1, stream, &body)
    }
}

/// Resident memory now, in MiB.
fn resident(pid: Pid) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_reads_take_no_more_than_their_budget() {
    let cluster = Cluster::start(1).await;
    let address = cluster.addresses().remove(0);
    let client = cluster.client(std::slice::from_ref(&address));
    for number in 0..4 {
        client.put(put_request(&format!("large/{number}"), &"x".repeat(1_500_000))).await.unwrap();
    }
    let all = pb::RangeRequest { key: "large/".into(), range_end: "large0".into(), ..Default::default() };
    assert_eq!(client.range(all.clone()).await.unwrap().kvs.len(), 4);
    let pid = cluster.nodes[&address].pid();
    let before = resident(pid);
    // 100 times 6 MB; the window that HTTP/2 gives by itself takes 64 KiB of each.
    let hoarders: Vec<Hoarder> = (0..100)
        .map(|_| {
            let mut hoarder = Hoarder::connect(&address);
            hoarder.ask(1, "/etcdserverpb.KV/Range", &all).unwrap();
            hoarder
        })
        .collect();
    // A small answer is given whatever is held.
    client.put(put_request("small", "1")).await.unwrap();
    for _ in 0..20 {
        assert_eq!(get(&client, "small").await.as_deref(), Some("1"));
    }
    // One more large answer waits, and is refused when its time is up.
    let refused = kv(connection(&address)).range(all.clone()).await.unwrap_err();
    assert_eq!(refused.message(), "etcdserver: too many requests");
    let grown = resident(pid).saturating_sub(before);
    println!("100 answers of 6 MB that nobody reads: {before} MiB before, {grown} MiB more");
    assert!(grown < 300, "{grown} MiB more than {before}");
    drop(hoarders);
    let start = std::time::Instant::now();
    while let Err(error) = client.range(all.clone()).await {
        assert!(start.elapsed() < crate::cluster::PATIENCE, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_nobody_finishes_take_no_more_than_their_budget() {
    let cluster = Cluster::start(1).await;
    let address = cluster.addresses().remove(0);
    let client = cluster.client(std::slice::from_ref(&address));
    client.put(put_request("small", "1")).await.unwrap();
    let pid = cluster.nodes[&address].pid();
    let before = resident(pid);
    // 10 connections of 60 requests of 1 MiB each, all but the last byte: 600 MiB.
    let piece = vec![b'x'; 1 << 16];
    let mut hoarders = Vec::new();
    for _ in 0..10 {
        let mut hoarder = Hoarder::connect(&address);
        for number in 0..60 {
            let stream = 2 * number + 1;
            let begun = hoarder.head(stream, "/etcdserverpb.KV/Put").and_then(|()| {
                let mut head = vec![0];
                head.extend((1_u32 << 20).to_be_bytes());
                hoarder.frame(0, 0, stream, &head)?;
                (0..15).try_for_each(|_| hoarder.frame(0, 0, stream, &piece))
            });
            if begun.is_err() {
                break; // the node takes no more of this one
            }
        }
        hoarders.push(hoarder);
    }
    let grown = resident(pid).saturating_sub(before);
    println!("600 MiB of requests that nobody finishes: {before} MiB before, {grown} MiB more");
    assert!(grown < 450, "{grown} MiB more than {before}");
    for number in 0..20 {
        client.put(put_request(&format!("small/{number}"), "1")).await.unwrap();
    }
    drop(hoarders);
}
