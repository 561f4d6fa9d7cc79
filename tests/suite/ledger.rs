//! A load that knows what every answer may be. Writers put one shared key and a key of their own in one transaction,
//! each write once; readers read the shared key. Whatever was acknowledged or read before a read was sent is the least
//! that it may answer. It is no general history checker: one key, whose revisions only grow, shows a stale read at
//! once and at no cost.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use replcluster::client::{Client, MAX_ANSWER_BYTES, Options, prefix_end};
use replcluster::proto::etcdserverpb as pb;
use replcluster::proto::etcdserverpb::kv_client::KvClient;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};

use super::cluster::{Cluster, PATIENCE};

const SHARED: &[u8] = b"ledger/shared";
const OWN: &[u8] = b"ledger/own/";

/// A connection of its own, made when it is first used.
pub fn connection(address: &str) -> Channel {
    Endpoint::from_shared(format!("http://{address}")).unwrap().tcp_nodelay(true).connect_lazy()
}

pub fn kv(channel: Channel) -> KvClient<Channel> {
    KvClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES)
}

/// What has been acknowledged and read so far.
#[derive(Default)]
pub struct Ledger {
    /// The highest revision of the shared key that anybody was told.
    floor: AtomicI64,
    acknowledged: AtomicU64,
    reads: AtomicU64,
    failed: AtomicU64,
    /// What clients of failed writes were told, and how often.
    told: Mutex<BTreeMap<String, u64>>,
    writes: Mutex<BTreeMap<String, Option<i64>>>,
    /// Longest time between two acknowledgements since [`Ledger::watch_gaps`], with the end of the last.
    gaps: Mutex<(Option<Instant>, Duration)>,
}

impl Ledger {
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::SeqCst)
    }

    /// Writes whose client was told an error.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::SeqCst)
    }

    /// What their clients were told, and how often.
    pub fn errors(&self) -> BTreeMap<String, u64> {
        self.told.lock().unwrap().clone()
    }

    /// The longest stall is counted from here on.
    pub fn watch_gaps(&self) {
        *self.gaps.lock().unwrap() = (Some(Instant::now()), Duration::ZERO);
    }

    /// The longest time without an acknowledgement since [`Ledger::watch_gaps`].
    pub fn longest_gap(&self) -> Duration {
        self.gaps.lock().unwrap().1
    }

    /// Waits until so many more writes are acknowledged.
    pub async fn advance(&self, count: u64) {
        let (start, before) = (Instant::now(), self.acknowledged());
        while self.acknowledged() < before + count {
            assert!(start.elapsed() < PATIENCE, "nothing is acknowledged any more after {before} writes");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn raise(&self, revision: i64) {
        self.floor.fetch_max(revision, Ordering::SeqCst);
    }

    /// One write, tried once. What became of it is looked up in [`Ledger::verify`].
    pub async fn write(&self, kv: &mut KvClient<Channel>, name: &str) -> Result<i64, tonic::Status> {
        self.write_with(name, async |request| Ok(kv.txn(request).await?.into_inner())).await
    }

    async fn write_with<E: std::fmt::Display>(
        &self,
        name: &str,
        send: impl AsyncFnOnce(pb::TxnRequest) -> Result<pb::TxnResponse, E>,
    ) -> Result<i64, E> {
        let put = |key: Bytes| {
            let put = pb::PutRequest { key, value: Bytes::from(name.to_owned()), ..Default::default() };
            pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) }
        };
        let own = [OWN, name.as_bytes()].concat().into();
        let success = vec![put(Bytes::from_static(SHARED)), put(own)];
        self.writes.lock().unwrap().insert(name.to_owned(), None);
        match send(pb::TxnRequest { success, ..Default::default() }).await {
            Ok(response) => {
                let revision = response.header.unwrap().revision;
                self.writes.lock().unwrap().insert(name.to_owned(), Some(revision));
                self.raise(revision);
                self.acknowledged.fetch_add(1, Ordering::SeqCst);
                let mut gaps = self.gaps.lock().unwrap();
                if let Some(last) = gaps.0 {
                    gaps.1 = gaps.1.max(last.elapsed());
                    gaps.0 = Some(Instant::now());
                }
                Ok(revision)
            }
            Err(error) => {
                self.failed.fetch_add(1, Ordering::SeqCst);
                *self.told.lock().unwrap().entry(error.to_string()).or_default() += 1;
                Err(error)
            }
        }
    }

    /// One linearizable read; a stale answer ends the test.
    pub async fn read(&self, kv: &mut KvClient<Channel>, from: &str) -> Result<i64, tonic::Status> {
        self.read_with(from, async |request| Ok(kv.range(request).await?.into_inner())).await
    }

    async fn read_with<E>(
        &self,
        from: &str,
        send: impl AsyncFnOnce(pb::RangeRequest) -> Result<pb::RangeResponse, E>,
    ) -> Result<i64, E> {
        let floor = self.floor.load(Ordering::SeqCst);
        let request = pb::RangeRequest { key: Bytes::from_static(SHARED), ..Default::default() };
        let answer = send(request).await?;
        let revision = answer.kvs.first().map_or(0, |kv| kv.mod_revision);
        let header = answer.header.unwrap().revision;
        assert!(
            revision >= floor && header >= revision,
            "a stale read: {from} answered revision {revision} (store {header}) after {floor} was known"
        );
        self.raise(revision);
        self.reads.fetch_add(1, Ordering::SeqCst);
        Ok(revision)
    }

    /// Reads everything through every address: acknowledged writes are there at their revision, each once, and all
    /// nodes hold the same.
    pub async fn verify(&self, addresses: &[String]) {
        let mut first = None;
        for address in addresses {
            let request = pb::RangeRequest {
                key: Bytes::from_static(OWN),
                range_end: prefix_end(OWN),
                ..Default::default()
            };
            let answer = kv(connection(address)).range(request).await.unwrap().into_inner();
            let found: BTreeMap<String, (i64, i64)> = answer
                .kvs
                .iter()
                .map(|kv| {
                    let name = String::from_utf8(kv.key[OWN.len()..].to_vec()).unwrap();
                    (name, (kv.mod_revision, kv.version))
                })
                .collect();
            for (name, acknowledged) in &*self.writes.lock().unwrap() {
                let held = found.get(name);
                if let Some(revision) = acknowledged {
                    assert_eq!(held, Some(&(*revision, 1)), "{name}: acknowledged, on {address}");
                }
                assert!(held.is_none_or(|(_, version)| *version == 1), "{name}: done twice, on {address}");
            }
            let first = first.get_or_insert_with(|| found.clone());
            assert_eq!(*first, found, "{address} holds something else than {}", addresses[0]);
        }
    }
}

/// What a client does when it is told an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// The test fails: this node's clients must not notice anything.
    Fail,
    /// It goes on with the next request; the node is one that is meddled with.
    GoOn,
}

/// Clients that run until they are told to stop.
pub struct Load {
    pub ledger: Arc<Ledger>,
    stop: Arc<AtomicBool>,
    clients: JoinSet<()>,
    /// Part of the name of every write, so that loads do not meet.
    name: String,
    started: u64,
}

impl Load {
    pub fn new() -> Load {
        Load {
            ledger: Arc::default(),
            stop: Arc::default(),
            clients: JoinSet::new(),
            name: format!("{:08x}", rand::random::<u32>()),
            started: 0,
        }
    }

    /// So many writers, each with a connection of its own to each of the addresses.
    pub fn writers(&mut self, count: u64, addresses: &[String], on_error: OnError) {
        for address in addresses {
            for _ in 0..count {
                self.started += 1;
                let (ledger, stop) = (self.ledger.clone(), self.stop.clone());
                let writer = format!("{}-{}", self.name, self.started);
                let address = address.clone();
                self.clients.spawn(async move {
                    let mut kv = kv(connection(&address));
                    let mut number = 0_u64;
                    while !stop.load(Ordering::Relaxed) {
                        let written = ledger.write(&mut kv, &format!("{writer}-{number}")).await;
                        proceed(written, on_error, "write", &address).await;
                        number += 1;
                    }
                });
            }
        }
    }

    /// So many readers, each with a connection of its own to each of the addresses.
    pub fn readers(&mut self, count: u64, addresses: &[String], on_error: OnError) {
        for address in addresses {
            for _ in 0..count {
                let (ledger, stop, address) = (self.ledger.clone(), self.stop.clone(), address.clone());
                self.clients.spawn(async move {
                    let mut kv = kv(connection(&address));
                    while !stop.load(Ordering::Relaxed) {
                        proceed(ledger.read(&mut kv, &address).await, on_error, "read", &address).await;
                    }
                });
            }
        }
    }

    /// So many clients that know all addresses and move on when one goes away, as users have them; each writes and
    /// reads in turn, and no error may reach it.
    pub fn clients(&mut self, count: u64, addresses: &[String]) {
        for _ in 0..count {
            self.started += 1;
            let (ledger, stop) = (self.ledger.clone(), self.stop.clone());
            let writer = format!("{}-{}", self.name, self.started);
            let client = Client::new(addresses, Options::default()).unwrap();
            self.clients.spawn(async move {
                let mut number = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    let name = format!("{writer}-{number}");
                    let written = ledger.write_with(&name, |request| client.txn(request)).await;
                    written.unwrap_or_else(|error| panic!("write {name} failed: {error}"));
                    let read = ledger.read_with("a client", |request| client.range(request)).await;
                    read.unwrap_or_else(|error| panic!("a read after {name} failed: {error}"));
                    number += 1;
                }
            });
        }
    }

    /// Fails the test now if a client has ended by failing.
    pub async fn check(&mut self) {
        while let Some(ended) = self.clients.try_join_next() {
            rethrow(ended);
        }
    }

    /// Stops all clients.
    pub async fn finish(mut self) -> Arc<Ledger> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            rethrow(ended);
        }
        self.ledger
    }
}

pub fn rethrow<T>(ended: Result<T, tokio::task::JoinError>) -> T {
    ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

async fn proceed(outcome: Result<i64, tonic::Status>, on_error: OnError, what: &str, address: &str) {
    match (outcome, on_error) {
        (Ok(_), OnError::Fail | OnError::GoOn) => {}
        (Err(status), OnError::Fail) => panic!("a {what} through {address} failed: {status}"),
        // A node that is down answers at once; do not hammer it.
        (Err(_), OnError::GoOn) => tokio::time::sleep(Duration::from_millis(5)).await,
    }
}

/// A ledger that believes more than is so must say that the cluster is wrong.
async fn suspicious() -> (Cluster, Ledger, KvClient<Channel>) {
    let cluster = Cluster::start(1).await;
    let mut kv = kv(connection(&cluster.addresses()[0]));
    let ledger = Ledger::default();
    ledger.write(&mut kv, "real").await.unwrap();
    ledger.read(&mut kv, "the node").await.unwrap();
    ledger.verify(&cluster.addresses()).await;
    (cluster, ledger, kv)
}

#[tokio::test(flavor = "multi_thread")]
#[should_panic(expected = "a stale read")]
async fn a_read_older_than_what_is_known_is_found_out() {
    let (_cluster, ledger, mut kv) = suspicious().await;
    ledger.raise(1000);
    let _ = ledger.read(&mut kv, "the node").await;
}

#[tokio::test(flavor = "multi_thread")]
#[should_panic(expected = "never: acknowledged")]
async fn an_acknowledged_write_that_is_not_there_is_found_out() {
    let (cluster, ledger, _) = suspicious().await;
    ledger.writes.lock().unwrap().insert("never".to_owned(), Some(7));
    ledger.verify(&cluster.addresses()).await;
}

#[tokio::test(flavor = "multi_thread")]
#[should_panic(expected = "done twice")]
async fn a_write_without_an_answer_that_was_done_twice_is_found_out() {
    let (cluster, ledger, mut kv) = suspicious().await;
    ledger.write(&mut kv, "real").await.unwrap();
    ledger.writes.lock().unwrap().insert("real".to_owned(), None);
    ledger.verify(&cluster.addresses()).await;
}
