use std::sync::Mutex;

use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request};

use super::*;
use crate::proto::etcdserverpb::cluster_server::{Cluster, ClusterServer};
use crate::proto::etcdserverpb::kv_server::{Kv, KvServer};

/// Answers like a node; each request takes the next refusal from the list until it is empty.
#[derive(Clone, Default)]
struct Fake {
    refusals: Arc<Mutex<Vec<(Code, &'static str)>>>,
    ranges: Arc<AtomicUsize>,
    puts: Arc<AtomicUsize>,
    client_urls: Vec<String>,
}

impl Fake {
    fn refuse(&self) -> Result<(), Status> {
        match self.refusals.lock().unwrap().pop() {
            Some((code, text)) => Err(Status::new(code, text)),
            None => Ok(()),
        }
    }

    async fn serve(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = tonic::transport::Server::builder()
            .add_service(KvServer::new(self.clone()))
            .add_service(ClusterServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        address
    }
}

#[tonic::async_trait]
impl Kv for Fake {
    async fn range(&self, _: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        self.ranges.fetch_add(1, Ordering::SeqCst);
        self.refuse()?;
        Ok(Response::new(pb::RangeResponse { count: 7, ..Default::default() }))
    }

    async fn put(&self, _: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        self.puts.fetch_add(1, Ordering::SeqCst);
        self.refuse()?;
        Ok(Response::new(pb::PutResponse::default()))
    }
}

#[tonic::async_trait]
impl Cluster for Fake {
    async fn member_list(
        &self,
        _: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        let member = pb::Member { client_ur_ls: self.client_urls.clone(), ..Default::default() };
        Ok(Response::new(pb::MemberListResponse { members: vec![member], ..Default::default() }))
    }
}

/// An address on which nobody listens.
async fn dead_address() -> String {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string()
}

fn client(endpoints: &[&String]) -> Client {
    let endpoints: Vec<String> = endpoints.iter().map(|endpoint| (*endpoint).clone()).collect();
    Client::new(&endpoints, Options::default()).unwrap()
}

#[tokio::test]
async fn where_nobody_listens_reads_and_writes_go_on_to_the_next_endpoint() {
    let fake = Fake::default();
    let (dead, alive) = (dead_address().await, fake.serve().await);
    let read = client(&[&dead, &alive]).range(pb::RangeRequest::default()).await.unwrap();
    assert_eq!(read.count, 7);
    client(&[&dead, &alive]).put(pb::PutRequest::default()).await.unwrap();
    assert_eq!(fake.puts.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn where_nobody_listens_anywhere_every_endpoint_is_named() {
    let (one, two) = (dead_address().await, dead_address().await);
    let error = client(&[&one, &two]).put(pb::PutRequest::default()).await.unwrap_err();
    assert_eq!(error.certainty(), Certainty::NotDone);
    let text = error.to_string();
    assert!(text.contains(&one) && text.contains(&two), "{text}");
}

#[tokio::test]
async fn a_write_whose_fate_is_unknown_is_never_sent_twice() {
    let (first, second) = (Fake::default(), Fake::default());
    first.refusals.lock().unwrap().push((Code::Unavailable, "etcdserver: leader changed"));
    let (one, two) = (first.serve().await, second.serve().await);
    let error = client(&[&one, &two]).put(pb::PutRequest::default()).await.unwrap_err();
    assert_eq!(error.status().unwrap().message(), "etcdserver: leader changed");
    assert_eq!(error.certainty(), Certainty::Unknown);
    assert_eq!(first.puts.load(Ordering::SeqCst) + second.puts.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_read_outlives_a_time_without_a_leader() {
    let fake = Fake::default();
    fake.refusals.lock().unwrap().extend([(Code::Unavailable, "etcdserver: no leader"); 3]);
    let alive = fake.serve().await;
    assert_eq!(client(&[&alive]).range(pb::RangeRequest::default()).await.unwrap().count, 7);
    assert_eq!(fake.ranges.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn a_read_that_was_turned_down_is_not_asked_again() {
    let fake = Fake::default();
    fake.refusals.lock().unwrap().push((Code::InvalidArgument, "etcdserver: key is not provided"));
    let alive = fake.serve().await;
    let error =
        client(&[&alive, &dead_address().await]).range(pb::RangeRequest::default()).await.unwrap_err();
    assert_eq!(error.status().unwrap().code(), Code::InvalidArgument);
    assert_eq!(fake.ranges.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn the_list_of_endpoints_is_learnt_from_the_cluster() {
    let second = Fake::default().serve().await;
    let urls = vec![format!("http://{second}"), "https://127.0.0.1:1".to_owned()];
    let first = Fake { client_urls: urls, ..Fake::default() }.serve().await;
    let client = client(&[&first]);
    assert_eq!(client.sync().await.unwrap(), 1);
    assert_eq!(client.sync().await.unwrap(), 0);
    assert_eq!(client.endpoints(), [first, second]);
}

#[test]
fn the_end_of_a_prefix_is_the_next_possible_key() {
    assert_eq!(&prefix_end(b"ab")[..], b"ac");
    assert_eq!(&prefix_end(b"a\xff")[..], b"b");
    assert_eq!(&prefix_end(b"\xff\xff")[..], b"\0");
    assert_eq!(&prefix_end(b"")[..], b"\0");
}

#[test]
fn what_is_no_endpoint_is_refused_by_name() {
    for text in ["", "nohost", "https://127.0.0.1:2379", "ftp://127.0.0.1:1"] {
        let error = address_of(text).unwrap_err();
        assert!(matches!(&error, ClientError::BadEndpoint { endpoint, .. } if endpoint == text), "{error}");
    }
    assert_eq!(address_of("http://127.0.0.1:2379/").unwrap(), "127.0.0.1:2379");
}

#[test]
fn a_transaction_that_only_reads_may_be_repeated() {
    let read =
        pb::RequestOp { request: Some(pb::request_op::Request::RequestRange(pb::RangeRequest::default())) };
    let write =
        pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(pb::PutRequest::default())) };
    let inner = pb::TxnRequest { failure: vec![write], ..Default::default() };
    let nested = pb::RequestOp { request: Some(pb::request_op::Request::RequestTxn(inner)) };
    assert!(only_reads(&pb::TxnRequest { success: vec![read.clone()], ..Default::default() }));
    assert!(!only_reads(&pb::TxnRequest { success: vec![read, nested], ..Default::default() }));
}
