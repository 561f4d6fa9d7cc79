//! Debian's `etcdctl` (package etcd-client) as a user has it, against a cluster whose leader is killed meanwhile.

use std::io::Write as _;
use std::process::{Command, Stdio};

use super::cluster::Cluster;

/// Runs `etcdctl` and answers with what it printed; it must succeed.
fn etcdctl(endpoints: &[String], arguments: &[&str], input: &str) -> String {
    let mut child = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", &endpoints.join(","), "--command-timeout", "10s"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("etcdctl is installed: apt-get install etcd-client");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "etcdctl {arguments:?}: {text}{errors}");
    text.into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_puts_gets_deletes_and_transacts_while_the_leader_is_killed() {
    let mut cluster = Cluster::start(3).await;
    let addresses = cluster.addresses();
    let survivors = addresses[1..].to_vec();
    let members = etcdctl(&addresses, &["member", "list"], "");
    for address in &addresses {
        assert!(members.contains(&format!("http://{address}")), "{members}");
    }
    assert_eq!(etcdctl(&addresses, &["put", "app/a", "1"], ""), "OK\n");

    // From here on the leader dies while requests are under way through the others.
    let through_survivors = survivors.clone();
    let writing = std::thread::spawn(move || {
        for number in 0..40 {
            etcdctl(&through_survivors, &["put", &format!("app/n{number:02}"), "x"], "");
        }
    });
    while etcdctl(&survivors, &["get", "--prefix", "--keys-only", "app/n"], "").lines().count() < 6 {}
    cluster.nodes.get_mut(&addresses[0]).unwrap().kill();
    writing.join().unwrap();

    let listed = etcdctl(&survivors, &["get", "--prefix", "--keys-only", "app/n"], "");
    assert_eq!(listed.lines().filter(|line| !line.is_empty()).count(), 40, "{listed}");
    assert_eq!(etcdctl(&survivors, &["get", "app/a", "--print-value-only"], ""), "1\n");
    let transaction = "value(\"app/a\") = \"1\"\n\nput app/a 2\nget app/a\n\nput app/a wrong\n\n";
    let answer = etcdctl(&survivors, &["txn", "--interactive=false"], transaction);
    assert!(answer.starts_with("SUCCESS") && answer.ends_with("app/a\n2\n"), "{answer}");
    assert_eq!(etcdctl(&survivors, &["del", "--prefix", "app/n"], ""), "40\n");
    assert_eq!(etcdctl(&survivors, &["get", "--prefix", "app/", "--print-value-only"], ""), "2\n");
    let status = etcdctl(&survivors, &["endpoint", "status", "--write-out=json"], "");
    let leader: u64 = replcluster::view::NodeId::parse(&addresses[1]).unwrap().member_id();
    assert_eq!(status.matches(&format!("\"leader\":{leader}")).count(), 2, "{status}");
    cluster.spawn(&addresses[0]);
    cluster.wait_in_sync().await;
    assert_eq!(etcdctl(&addresses[..1], &["get", "app/a", "--print-value-only"], ""), "2\n");
    let health = etcdctl(&addresses, &["endpoint", "health"], "");
    assert_eq!(health.matches("is healthy").count(), 0, "etcdctl says so on standard error: {health}");
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_may_be_written_as_urls_and_are_taken_from_the_list_of_members() {
    let cluster = Cluster::start(3).await;
    let addresses = cluster.addresses();
    let url = vec![format!("http://{}", addresses[1])];
    for arguments in
        [&["endpoint", "status"][..], &["endpoint", "hashkv"], &["endpoint", "health"], &["put", "a", "1"]]
    {
        etcdctl(&url, arguments, "");
    }
    assert_eq!(etcdctl(&url, &["get", "a", "--print-value-only"], ""), "1\n");
    let status = etcdctl(&addresses[..1], &["endpoint", "status", "--cluster"], "");
    assert_eq!(status.lines().count(), 3, "{status}");
    let hashes = etcdctl(&addresses[..1], &["endpoint", "hashkv", "--cluster"], "");
    let mut hashes: Vec<&str> = hashes.lines().map(|line| line.rsplit(", ").next().unwrap()).collect();
    hashes.dedup();
    assert_eq!(hashes.len(), 1, "{hashes:?}");
}
