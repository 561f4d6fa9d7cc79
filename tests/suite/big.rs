//! Reads, deletes and compares that take far longer than the failure timeout: no view changes because of them, and other
//! clients are served meanwhile (R35, T30).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use replcluster::proto::etcdserverpb as pb;

use super::cluster::{Cluster, put_request};
use super::ledger::{connection, kv};

const TRANSACTIONS: usize = 400;
const OPERATIONS: usize = 128;
const VALUE: usize = 1024;

fn key(number: usize) -> String {
    format!("big/{number:08}")
}

fn everything() -> (Bytes, Bytes) {
    (Bytes::from_static(b"big/"), Bytes::from_static(b"big0"))
}

async fn fill(address: &str) {
    let value = "v".repeat(VALUE);
    let mut kv = kv(connection(address));
    for transaction in 0..TRANSACTIONS {
        let put = |operation| {
            let put = put_request(&key(transaction * OPERATIONS + operation), &value);
            pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) }
        };
        let success = (0..OPERATIONS).map(put).collect();
        kv.txn(pb::TxnRequest { success, ..Default::default() }).await.unwrap();
    }
}

/// Puts one small key after the other until it is told to end; answers with the longest wait, and how many were put.
fn small_puts(address: &str, end: &Arc<AtomicBool>) -> tokio::task::JoinHandle<(Duration, u64)> {
    let (channel, end) = (connection(address), end.clone());
    tokio::spawn(async move {
        let mut kv = kv(channel);
        let (mut longest, mut count) = (Duration::ZERO, 0);
        while !end.load(Ordering::Relaxed) {
            let begun = Instant::now();
            kv.put(put_request("small", "value")).await.expect("an undisturbed client hears no error");
            longest = longest.max(begun.elapsed());
            count += 1;
        }
        (longest, count)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn big_reads_compares_and_deletes_change_no_view() {
    let cluster = Cluster::start_with(3, &["--handback-after", "never"]).await;
    let addresses = cluster.addresses();
    let leader = cluster.wait_in_sync().await;
    fill(&leader).await;
    let before = cluster.describe(&leader).await.unwrap();
    let other = addresses.iter().find(|address| **address != leader).unwrap();
    let end = Arc::new(AtomicBool::new(false));
    let small = small_puts(other, &end);
    let mut kv = kv(connection(&leader)).max_decoding_message_size(usize::MAX);
    let (from, to) = everything();

    let range = pb::RangeRequest { key: from.clone(), range_end: to.clone(), ..Default::default() };
    let begun = Instant::now();
    let read = kv.range(range).await.unwrap().into_inner();
    assert_eq!(read.kvs.len(), TRANSACTIONS * OPERATIONS);
    println!("range: {:?}", begun.elapsed());

    let compare = pb::Compare {
        result: pb::compare::CompareResult::NotEqual as i32,
        target: pb::compare::CompareTarget::Value as i32,
        key: from.clone(),
        range_end: to.clone(),
        target_union: Some(pb::compare::TargetUnion::Value(Bytes::from_static(b"other"))),
    };
    let success = vec![pb::RequestOp {
        request: Some(pb::request_op::Request::RequestPut(put_request("compared", "yes"))),
    }];
    let begun = Instant::now();
    let txn = pb::TxnRequest { compare: vec![compare; 10], success, ..Default::default() };
    assert!(kv.txn(txn).await.unwrap().into_inner().succeeded);
    println!("compares: {:?}", begun.elapsed());

    let begun = Instant::now();
    let delete = pb::DeleteRangeRequest { key: from, range_end: to, prev_kv: false };
    let deleted = kv.delete_range(delete).await.unwrap().into_inner().deleted;
    assert_eq!(usize::try_from(deleted).unwrap(), TRANSACTIONS * OPERATIONS);
    println!("delete: {:?}", begun.elapsed());

    end.store(true, Ordering::Relaxed);
    let (longest, count) = small.await.unwrap();
    println!("{count} small puts, the longest waited {longest:?}");
    cluster.wait_in_sync().await;
    let after = cluster.describe(&leader).await.unwrap();
    assert_eq!((after.epoch, &after.leader), (before.epoch, &before.leader), "a view changed");
    assert!(count > 10, "nothing else was served meanwhile");
}
