use std::collections::BTreeMap;
use std::sync::Mutex;

use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use super::*;
use crate::proto::etcdserverpb::kv_server::{Kv, KvServer};
use crate::proto::mvccpb::KeyValue;

/// A store just true enough for a probe; it can be told to acknowledge without writing.
#[derive(Clone, Default)]
struct Store {
    keys: Arc<Mutex<BTreeMap<Vec<u8>, KeyValue>>>,
    revision: Arc<AtomicU64>,
    forgets: Arc<AtomicBool>,
}

impl Store {
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
        let keys = self.keys.lock().unwrap();
        let mut kvs: Vec<KeyValue> = keys
            .range(request.key.to_vec()..request.range_end.to_vec())
            .map(|(_, kv)| kv.clone())
            .take(usize::try_from(request.limit).unwrap() + 1)
            .collect();
        let more = kvs.len() > usize::try_from(request.limit).unwrap();
        kvs.truncate(usize::try_from(request.limit).unwrap());
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
            keys.insert(request.key.to_vec(), kv);
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
