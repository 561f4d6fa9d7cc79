//! What survives: leaders killed, followers killed, everything killed, and the ones that come back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::sys::signal::Signal;
use replcluster::client::Client;

use super::cluster::{Cluster, get, put_request};

/// Writes `prefix0`, `prefix1`, … one after the other until told to stop; answers with how many were acknowledged.
fn write_on(
    client: Client,
    prefix: &'static str,
    stop: Arc<AtomicBool>,
) -> tokio::task::JoinHandle<Vec<i64>> {
    tokio::spawn(async move {
        let mut revisions = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let key = format!("{prefix}{}", revisions.len());
            match client.put(put_request(&key, &key)).await {
                Ok(response) => revisions.push(response.header.unwrap().revision),
                Err(error) => panic!("write {} of {prefix} failed: {error}", revisions.len()),
            }
        }
        revisions
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn leaders_killed_one_after_the_other_are_followed_by_the_next_lowest_and_lose_nothing() {
    let mut cluster = Cluster::start_with(4, &["--handback-after", "500ms"]).await;
    let addresses = cluster.addresses();
    // Connected only to the one that is never killed: its client sees no error at all, each write is done once.
    let stop = Arc::new(AtomicBool::new(false));
    let writer = write_on(cluster.client(&addresses[3..]), "k", stop.clone());
    for (number, address) in addresses[..3].iter().enumerate() {
        cluster.nodes.get_mut(address).unwrap().kill();
        let leader = cluster.wait_in_sync().await;
        assert_eq!(leader, addresses[number + 1], "the next lowest leads");
    }
    stop.store(true, Ordering::Relaxed);
    let revisions = writer.await.unwrap();
    assert!(revisions.windows(2).all(|pair| pair[0] + 1 == pair[1]), "each write is one revision");
    let last = cluster.client(&addresses[3..]);
    for number in 0..revisions.len() {
        let key = format!("k{number}");
        assert_eq!(get(&last, &key).await, Some(key));
    }
    for address in &addresses[..3] {
        cluster.spawn(address);
    }
    cluster.wait_in_sync().await;
    cluster.wait_until("handed back", |said| said.leader == addresses[0] && said.ready).await;
    let first = cluster.client(&addresses[..1]);
    assert_eq!(get(&first, "k0").await.as_deref(), Some("k0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_follower_stalls_nobody_and_comes_back_with_everything() {
    let mut cluster = Cluster::start(3).await;
    let addresses = cluster.addresses();
    let stop = Arc::new(AtomicBool::new(false));
    let writer = write_on(cluster.client(&addresses[..1]), "f", stop.clone());
    for _ in 0..3 {
        cluster.nodes.get_mut(&addresses[2]).unwrap().kill();
        cluster.wait_in_sync().await;
        cluster.spawn(&addresses[2]);
        cluster.wait_in_sync().await;
    }
    stop.store(true, Ordering::Relaxed);
    let written = writer.await.unwrap().len();
    let returned = cluster.client(&addresses[2..]);
    assert_eq!(get(&returned, &format!("f{}", written - 1)).await, Some(format!("f{}", written - 1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_all_are_killed_everything_acknowledged_is_there() {
    let mut cluster = Cluster::start(3).await;
    let addresses = cluster.addresses();
    let acknowledged = Arc::new(AtomicU64::new(0));
    let client = cluster.client(&addresses);
    let counter = acknowledged.clone();
    let writer = tokio::spawn(async move {
        for number in 0_u64.. {
            let key = format!("w{number}");
            if client.put(put_request(&key, &key)).await.is_err() {
                return;
            }
            counter.store(number + 1, Ordering::SeqCst);
        }
    });
    while acknowledged.load(Ordering::SeqCst) < 200 {
        tokio::task::yield_now().await;
    }
    for process in cluster.nodes.values_mut() {
        process.signal(Signal::SIGKILL);
    }
    for process in cluster.nodes.values_mut() {
        process.kill();
    }
    writer.abort();
    let count = acknowledged.load(Ordering::SeqCst);
    for address in addresses.iter().rev() {
        cluster.spawn(address);
    }
    let leader = cluster.wait_in_sync().await;
    let client = cluster.client(&addresses);
    for number in 0..count {
        let key = format!("w{number}");
        assert_eq!(get(&client, &key).await, Some(key), "led by {leader}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_last_in_sync_node_may_lead_after_all_have_stopped() {
    let mut cluster = Cluster::start(3).await;
    let addresses = cluster.addresses();
    cluster.nodes.get_mut(&addresses[0]).unwrap().kill();
    cluster.nodes.get_mut(&addresses[1]).unwrap().kill();
    cluster.wait_in_sync().await;
    let alone = cluster.client(&addresses[2..]);
    alone.put(put_request("only", "here")).await.unwrap();
    cluster.nodes.get_mut(&addresses[2]).unwrap().kill();
    cluster.spawn(&addresses[0]);
    cluster.spawn(&addresses[1]);
    // The stale ones wait, and say for whom.
    cluster.wait_until("waiting", |said| !said.ready && said.waiting_for.contains(&addresses[2])).await;
    cluster.spawn(&addresses[2]);
    cluster.wait_in_sync().await;
    assert_eq!(get(&cluster.client(&addresses[..1]), "only").await.as_deref(), Some("here"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_leader_is_deposed_and_says_nothing_stale_when_it_wakes() {
    let cluster = Cluster::start_with(3, &["--handback-after", "never"]).await;
    let addresses = cluster.addresses();
    let both = cluster.client(&addresses[1..]);
    both.put(put_request("x", "old")).await.unwrap();
    cluster.nodes[&addresses[0]].freeze();
    both.put(put_request("x", "new")).await.unwrap();
    let old_leader = cluster.client(&addresses[..1]);
    let reading = tokio::spawn(async move { get(&old_leader, "x").await });
    tokio::task::yield_now().await;
    cluster.nodes[&addresses[0]].thaw();
    assert_eq!(reading.await.unwrap().as_deref(), Some("new"), "a stale read");
    assert_eq!(cluster.wait_in_sync().await, addresses[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_node_joins_anew_and_gets_everything() {
    let mut cluster = Cluster::start(2).await;
    let addresses = cluster.addresses();
    let client = cluster.client(&addresses);
    for number in 0..50 {
        client.put(put_request(&format!("n{number}"), "v")).await.unwrap();
    }
    for address in addresses.iter().rev() {
        let process = cluster.nodes.get_mut(address).unwrap();
        process.kill();
        std::fs::remove_dir_all(&process.data).unwrap();
        cluster.wait_in_sync().await;
        cluster.spawn(address);
        cluster.wait_in_sync().await;
        let wiped = cluster.client(std::slice::from_ref(address));
        assert_eq!(get(&wiped, "n49").await.as_deref(), Some("v"), "{address}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_longer_than_the_log_reaches_gets_a_snapshot_and_then_the_log() {
    let mut cluster = Cluster::start_with(2, &["--log-keep-bytes", "1000000"]).await;
    let addresses = cluster.addresses();
    let client = cluster.client(&addresses[..1]);
    client.put(put_request("before", "b")).await.unwrap();
    cluster.nodes.get_mut(&addresses[1]).unwrap().kill();
    cluster.wait_in_sync().await;
    let big = "x".repeat(1 << 20);
    let log = cluster.nodes[&addresses[0]].data.join("log");
    let oldest = || std::fs::read_dir(&log).unwrap().map(|entry| entry.unwrap().file_name()).min();
    let first = oldest();
    let mut written = 0;
    // Until the segment that the absent node would need is gone.
    while oldest() == first {
        client.put(put_request(&format!("big{}", written % 40), &big)).await.unwrap();
        written += 1;
        assert!(written < 3000, "the log is never cut");
    }
    let stop = Arc::new(AtomicBool::new(false));
    let writer = write_on(cluster.client(&addresses[..1]), "s", stop.clone());
    cluster.spawn(&addresses[1]);
    cluster.wait_in_sync().await;
    stop.store(true, Ordering::Relaxed);
    let last = writer.await.unwrap().len() - 1;
    assert!(cluster.nodes[&addresses[1]].tail().contains("installing a snapshot"), "it came by log alone");
    cluster.nodes.get_mut(&addresses[0]).unwrap().kill();
    cluster.wait_in_sync().await;
    let joined = cluster.client(&addresses[1..]);
    assert_eq!(get(&joined, "before").await.as_deref(), Some("b"));
    assert_eq!(get(&joined, &format!("s{last}")).await, Some(format!("s{last}")));
    assert_eq!(get(&joined, "big0").await.map(|value| value.len()), Some(1 << 20));
    // And once more from its own disk.
    cluster.nodes.get_mut(&addresses[1]).unwrap().kill();
    cluster.spawn(&addresses[1]);
    cluster.wait_in_sync().await;
    assert_eq!(get(&joined, &format!("s{last}")).await, Some(format!("s{last}")));
}
