use std::collections::BTreeMap;
use std::sync::Mutex;

use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use super::*;
use crate::proto::etcdserverpb::kv_server::{Kv, KvServer};
use crate::proto::mvccpb::KeyValue;

/// A store just true enough for a probe, with its history; a switch makes it acknowledge without writing.
#[derive(Clone, Default)]
struct Store {
    keys: Arc<Mutex<BTreeMap<Vec<u8>, KeyValue>>>,
    /// Every change: the revision, the key, and its value, or none where it was deleted.
    changes: Arc<Mutex<Vec<Change>>>,
    /// Revisions below it cannot be read.
    compacted: Arc<AtomicU64>,
    revision: Arc<AtomicU64>,
    forgets: Arc<AtomicBool>,
}

type Change = (i64, Vec<u8>, Option<KeyValue>);

impl Store {
    /// The keys as they were at a revision; 0 is the newest.
    fn at(&self, revision: i64) -> Result<BTreeMap<Vec<u8>, KeyValue>, Status> {
        if revision == 0 {
            return Ok(self.keys.lock().unwrap().clone());
        }
        if revision < i64::try_from(self.compacted.load(Ordering::SeqCst)).unwrap() {
            return Err(Status::out_of_range("etcdserver: mvcc: required revision has been compacted"));
        }
        let mut keys = BTreeMap::new();
        for (_, key, value) in self.changes.lock().unwrap().iter().take_while(|(at, ..)| *at <= revision) {
            match value {
                Some(value) => drop(keys.insert(key.clone(), value.clone())),
                None => drop(keys.remove(key)),
            }
        }
        Ok(keys)
    }

    /// Another client's change of the keys that this picks: their new value, or none to delete them.
    fn disturb(&self, picks: impl Fn(usize) -> bool, value: Option<&[u8]>) {
        let mut keys = self.keys.lock().unwrap();
        let revision = i64::try_from(self.revision.fetch_add(1, Ordering::SeqCst)).unwrap() + 2;
        let picked: Vec<Vec<u8>> =
            keys.keys().enumerate().filter(|(at, _)| picks(*at)).map(|(_, key)| key.clone()).collect();
        assert!(!picked.is_empty(), "there is something to disturb");
        for key in picked {
            let Some(mut kv) = keys.remove(&key) else { continue };
            let after = value.map(|value| {
                kv.value = value.to_vec().into();
                kv.mod_revision = revision;
                kv.version += 1;
                keys.insert(key.clone(), kv.clone());
                kv
            });
            self.changes.lock().unwrap().push((revision, key, after));
        }
    }

    async fn serve(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = tonic::transport::Server::builder().add_service(KvServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        address
    }

    fn header(&self) -> Option<pb::ResponseHeader> {
        let revision = i64::try_from(self.revision.load(Ordering::SeqCst)).unwrap() + 1;
        Some(pb::ResponseHeader { revision, ..Default::default() })
    }
}

#[tonic::async_trait]
impl Kv for Store {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        let request = request.into_inner();
        let keys = self.at(request.revision)?;
        let from = request.key.to_vec();
        let to = if request.range_end.is_empty() {
            [&from[..], &[0]].concat()
        } else {
            request.range_end.to_vec()
        };
        let limit = if request.limit == 0 { usize::MAX - 1 } else { usize::try_from(request.limit).unwrap() };
        let mut kvs: Vec<KeyValue> = keys.range(from..to).map(|(_, kv)| kv.clone()).take(limit + 1).collect();
        let more = kvs.len() > limit;
        kvs.truncate(limit);
        Ok(Response::new(pb::RangeResponse { header: self.header(), kvs, more, count: 0 }))
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        let request = request.into_inner();
        let mut keys = self.keys.lock().unwrap();
        self.revision.fetch_add(1, Ordering::SeqCst);
        let header = self.header();
        let revision = header.unwrap().revision;
        if !self.forgets.load(Ordering::SeqCst) {
            let kv = KeyValue {
                key: request.key.clone(),
                value: request.value,
                create_revision: revision,
                mod_revision: revision,
                version: 1,
                lease: 0,
            };
            keys.insert(request.key.to_vec(), kv.clone());
            self.changes.lock().unwrap().push((revision, request.key.to_vec(), Some(kv)));
        }
        Ok(Response::new(pb::PutResponse { header, prev_kv: None }))
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        let request = request.into_inner();
        let mut keys = self.keys.lock().unwrap();
        let before = keys.len();
        keys.retain(|key, _| *key < request.key.to_vec() || *key >= request.range_end.to_vec());
        let deleted = i64::try_from(before - keys.len()).unwrap();
        Ok(Response::new(pb::DeleteRangeResponse { header: self.header(), deleted, prev_kvs: Vec::new() }))
    }
}

/// Runs a load with a fault in the middle; `at_fault` is the fault.
async fn run(
    store: &Store,
    endpoints: Vec<String>,
    surviving: Vec<String>,
    at_fault: impl FnOnce(),
) -> Evidence {
    let probe = Probe::start(&endpoints).await.unwrap();
    while probe.acknowledged() < 100 {
        tokio::task::yield_now().await;
    }
    probe.mark_ordered();
    at_fault();
    probe.mark_seen();
    while probe.acknowledged_after_fault() < 100 {
        tokio::task::yield_now().await;
    }
    assert!(!store.keys.lock().unwrap().is_empty());
    probe.finish(&surviving, READ_PATIENCE).await
}

#[tokio::test]
async fn a_store_that_keeps_its_word_is_proved_and_left_empty() {
    let store = Store::default();
    let endpoints = vec![store.serve().await, store.serve().await];
    let evidence = run(&store, endpoints.clone(), endpoints, || {}).await;
    assert_eq!((evidence.verdict, evidence.lost), (Verdict::Proved, Some(0)), "{evidence:?}");
    assert!(evidence.acknowledged >= 200);
    assert!(store.keys.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_store_that_forgets_what_it_acknowledged_is_caught() {
    let store = Store::default();
    let endpoints = vec![store.serve().await];
    let evidence =
        run(&store, endpoints.clone(), endpoints, || store.forgets.store(true, Ordering::SeqCst)).await;
    assert_eq!(evidence.verdict, Verdict::Violated);
    assert!(evidence.lost.unwrap() >= 100, "{evidence:?}");
}

/// What is made of a store in which another client does this while the load runs.
async fn disturbed(disturbance: impl FnOnce(&Store)) -> Evidence {
    let store = Store::default();
    let endpoints = vec![store.serve().await];
    run(&store, endpoints.clone(), endpoints, || disturbance(&store)).await
}

fn assert_overtaken(evidence: &Evidence, how: &str) {
    assert_eq!((evidence.verdict, evidence.lost), (Verdict::Inconclusive, Some(0)), "{evidence:?}");
    assert!(evidence.overtaken > 0 && evidence.violations.is_empty(), "{evidence:?}");
    assert!(evidence.reason.as_ref().unwrap().contains(how), "{evidence:?}");
}

#[tokio::test]
async fn a_delete_or_rewrite_by_another_client_is_told_and_is_no_loss() {
    let everything = disturbed(|store| store.disturb(|_| true, None)).await;
    assert_overtaken(&everything, "was deleted at revision");
    // Each of them a revision of its own: more than reads of the whole prefix explain.
    let one_by_one = disturbed(|store| {
        for _ in 0..40 {
            store.disturb(|at| at == 0, None);
        }
    });
    assert_overtaken(&one_by_one.await, "removed or rewrote");
    let rewritten = disturbed(|store| store.disturb(|at| at % 2 == 0, Some(b"mine"))).await;
    assert_overtaken(&rewritten, "was rewritten at revision");
}

#[tokio::test]
async fn a_delete_whose_history_is_compacted_away_is_inconclusive() {
    let evidence = disturbed(|store| {
        store.disturb(|_| true, None);
        store.compacted.store(store.revision.load(Ordering::SeqCst) + 1, Ordering::SeqCst);
    });
    assert_overtaken(&evidence.await, "compacted away up to revision");
    // A compaction alone takes no value away.
    let evidence = disturbed(|store| {
        store.compacted.store(store.revision.load(Ordering::SeqCst) + 1, Ordering::SeqCst);
    });
    let evidence = evidence.await;
    assert_eq!((evidence.verdict, evidence.overtaken), (Verdict::Proved, 0), "{evidence:?}");
}

#[tokio::test]
async fn a_store_that_forgets_is_caught_while_another_client_deletes() {
    let evidence = disturbed(|store| {
        store.disturb(|at| at % 2 == 0, None);
        store.forgets.store(true, Ordering::SeqCst);
    });
    let evidence = evidence.await;
    assert_eq!(evidence.verdict, Verdict::Violated);
    assert!(evidence.lost.unwrap() >= 100 && evidence.overtaken > 0, "{evidence:?}");
}

#[tokio::test]
async fn a_node_that_holds_less_than_another_is_caught() {
    let (store, empty) = (Store::default(), Store::default());
    let endpoints = vec![store.serve().await];
    let surviving = vec![endpoints[0].clone(), empty.serve().await];
    let evidence = run(&store, endpoints, surviving, || {}).await;
    assert_eq!((evidence.verdict, evidence.lost), (Verdict::Violated, Some(0)), "{evidence:?}");
    assert!(evidence.violations[0].contains("disagree"), "{evidence:?}");
}

#[tokio::test]
async fn without_survivors_the_verdict_is_inconclusive() {
    let store = Store::default();
    let evidence = run(&store, vec![store.serve().await], Vec::new(), || {}).await;
    assert_eq!(evidence.verdict, Verdict::Inconclusive);
    assert_eq!(evidence.reason.as_deref(), Some("no node is left to read back from"));
    assert_eq!(evidence.lost, None);
    assert!(evidence.leftover.is_some_and(|left| left.contains("no node is left to remove them through")));
}

#[tokio::test]
async fn without_an_endpoint_there_is_no_load() {
    assert!(matches!(Probe::start(&[]).await, Err(ClientError::NoEndpoints)));
}

#[tokio::test]
async fn a_sweep_removes_what_runs_left_that_are_over_and_nothing_else() {
    let store = Store::default();
    let endpoint = store.serve().await;
    let client = Client::new(std::slice::from_ref(&endpoint), Options::default()).unwrap();
    let put = async |key: String| {
        let request = pb::PutRequest { key: key.into(), ..Default::default() };
        client.put(request).await.unwrap();
    };
    let prefix = String::from_utf8_lossy(PREFIX);
    for key in ["over/1", "over/2", "goes-on/1", "up-7", "zz/1"] {
        put(format!("{prefix}{key}")).await;
    }
    put("replcluster/probe0".to_owned()).await;
    let removed = sweep(&[endpoint], |run| run != "goes-on").await.unwrap();
    assert_eq!(removed, 4);
    let left: Vec<Vec<u8>> = store.keys.lock().unwrap().keys().cloned().collect();
    assert_eq!(left, [b"replcluster/probe/goes-on/1".to_vec(), b"replcluster/probe0".to_vec()]);
}

#[tokio::test]
async fn a_node_that_never_answers_is_waited_for_no_longer_than_allowed() {
    let store = Store::default();
    let endpoint = store.serve().await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let surviving = [endpoint.clone(), silent.local_addr().unwrap().to_string()];
    let probe = Probe::start(&[endpoint]).await.unwrap();
    let began = Instant::now();
    let evidence = probe.finish(&surviving, Duration::from_millis(50)).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let reason = evidence.reason.unwrap();
    assert!(reason.contains("could not be read back") && !reason.contains("carried out"), "{reason}");
}
