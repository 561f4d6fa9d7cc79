//! The port as strangers meet it: probes over HTTP/1.1, connections that say nothing, and more of them than a node takes.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, get, put_request, until};

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(crate::cluster::PATIENCE)).unwrap();
    stream
}

/// Asks as a probe does; answers with the status and the body.
fn http(address: &str, method: &str, path: &str) -> (u16, String) {
    let mut stream = connect(address);
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// Processor time that a process has used.
fn used(pid: nix::unistd::Pid) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_get_etcds_answers_over_http_1() {
    let mut cluster = Cluster::start(2).await;
    let addresses = cluster.addresses();
    for address in &addresses {
        let version = r#"{"etcdcluster":"3.5.0","etcdserver":"3.5.0"}"#;
        assert_eq!(http(address, "GET", "/version"), (200, version.to_owned()));
        let healthy = r#"{"health":"true","reason":""}"#;
        assert_eq!(http(address, "GET", "/health"), (200, healthy.to_owned()));
        assert_eq!(
            http(address, "GET", "/health?serializable=true&exclude=NOSPACE"),
            (200, healthy.to_owned())
        );
        assert_eq!(http(address, "GET", "/livez"), (200, "ok\n".to_owned()));
        assert_eq!(http(address, "GET", "/livez?verbose"), (200, "[+]serializable_read ok\nok\n".to_owned()));
        let checks = "[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\n[+]non_learner ok\nok\n";
        assert_eq!(http(address, "GET", "/readyz?verbose"), (200, checks.to_owned()));
        let fewer = "[+]data_corruption ok\n[+]linearizable_read ok\nok\n";
        let path = "/readyz?verbose&exclude=non_learner&exclude=serializable_read";
        assert_eq!(http(address, "GET", path), (200, fewer.to_owned()));
        assert_eq!(http(address, "GET", "/readyz/linearizable_read"), (200, "ok\n".to_owned()));
        assert_eq!(http(address, "POST", "/health"), (405, "Method Not Allowed\n".to_owned()));
        assert_eq!(http(address, "GET", "/nothing").0, 404);
        assert_eq!(http(address, "GET", "/livez/linearizable_read").0, 404);
        let (status, body) = http(address, "POST", "/v3/kv/range");
        assert!(
            status == 501 && body.contains("replcluster 0.1 has no JSON gateway; version 0.2 will"),
            "{body}"
        );
        let (status, body) = http(address, "GET", "/metrics");
        assert!(status == 501 && body.contains(r#""code":12"#), "{body}");
    }
    // A follower alone, of a set that lost its leader's answer: not healthy, but alive.
    let leader = cluster.wait_in_sync().await;
    let follower = addresses.iter().find(|address| **address != leader).unwrap();
    cluster.nodes.get_mut(&leader).unwrap().kill();
    until("a healthy survivor", || http(follower, "GET", "/health").0 == 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_a_cluster_is_alive_and_not_healthy() {
    let directory = tempfile::tempdir().unwrap();
    let address = format!("127.0.0.1:{}", crate::cluster::free_port());
    let mut command = std::process::Command::new(crate::cluster::replserver());
    command.args(["--address", &address, "--join", "127.0.0.1:1", "--register"]);
    command.arg(format!("file:{}", directory.path().join("register").display()));
    command.arg("--data-dir").arg(directory.path().join("data"));
    let mut child = command.stderr(std::process::Stdio::null()).spawn().unwrap();
    until("a port", || TcpStream::connect(&address).is_ok());
    let health = http(&address, "GET", "/health");
    let ready = http(&address, "GET", "/readyz");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(health, (503, r#"{"health":"false","reason":"RAFT NO LEADER"}"#.to_owned()));
    assert!(
        ready.0 == 503 && ready.1.contains("[-]linearizable_read failed: etcdserver: no leader\n"),
        "{ready:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_send_a_few_bytes_and_wait_cost_nothing() {
    let cluster = Cluster::start(1).await;
    let address = cluster.addresses().remove(0);
    let waiting: Vec<TcpStream> = (0..16_usize)
        .map(|number| {
            let mut stream = connect(&address);
            stream.write_all(&b"PRI"[..1 + number % 3]).unwrap();
            stream
        })
        .collect();
    let client = cluster.client(std::slice::from_ref(&address));
    client.put(put_request("first", "1")).await.unwrap();
    let before = used(cluster.nodes[&address].pid());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let spent = used(cluster.nodes[&address].pid()) - before;
    // A loop that spins takes all of a core, or all that the machine gives it: heartbeats take a few milliseconds.
    assert!(spent < Duration::from_millis(500), "{spent:?} in two idle seconds");
    drop(waiting);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_says_nothing_is_closed_after_a_while() {
    let cluster = Cluster::start(1).await;
    let address = cluster.addresses().remove(0);
    let start = Instant::now();
    for begun in ["", "P", "PRI * HTTP/2.0\r\n", "REPLP", "GET /health HTTP/1.1\r\nx-slow: "] {
        let mut stream = connect(&address);
        stream.write_all(begun.as_bytes()).unwrap();
        std::thread::spawn(move || {
            // Either way of ending is an end.
            let _ = stream.read_to_end(&mut Vec::new());
        })
        .join()
        .unwrap();
    }
    assert!(start.elapsed() < Duration::from_secs(100), "{:?}", start.elapsed());
}

/// Thousands of idle connections of every kind against few descriptors: the leader stays, writes go on, the controller
/// is answered, and a client that is one too many is told so.
#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_take_neither_the_leader_nor_its_descriptors() {
    // This process holds the other ends.
    assert!(replcluster::descriptors::raise_limit() > 3000);
    let cluster = Cluster::start_limited(3, 600).await;
    let leader = cluster.wait_in_sync().await;
    let epoch = cluster.describe(&leader).await.unwrap().epoch;
    let client = cluster.client(&cluster.addresses());
    client.put(put_request("before", "1")).await.unwrap();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let mut idle = Vec::new();
    for number in 0..2000_usize {
        let Ok(mut stream) = TcpStream::connect(&leader) else { continue };
        if number % 2 == 0 {
            let _ = stream.write_all(preface);
        }
        idle.push(stream);
    }
    for number in 0..50 {
        client.put(put_request(&format!("during/{number}"), "1")).await.unwrap();
    }
    assert_eq!(get(&client, "during/49").await.as_deref(), Some("1"));
    for _ in 0..5 {
        let said = cluster.describe(&leader).await.expect("the controller is answered");
        assert_eq!((said.epoch, &said.leader), (epoch, &leader));
    }
    let refused = http(&leader, "GET", "/nothing");
    assert!(refused.0 == 503 && refused.1.contains("too many connections"), "{refused:?}");
    assert_eq!(http(&leader, "GET", "/livez").0, 200);
    let late = cluster.client(std::slice::from_ref(&leader));
    let error = late.put(put_request("late", "1")).await.unwrap_err().to_string();
    assert!(error.contains("too many connections"), "{error}");
    let log = std::fs::read_to_string(&cluster.nodes[&leader].log).unwrap();
    assert!(log.contains("descriptors leaves"), "the lowered cap is said:\n{log}");
    assert!(!log.contains("cannot accept"), "{log}");
    drop(idle);
    let start = Instant::now();
    while let Err(error) = late.put(put_request("late", "1")).await {
        assert!(start.elapsed() < crate::cluster::PATIENCE, "{error}");
    }
}
