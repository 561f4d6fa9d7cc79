//! The services of a real node of its own, asked over TCP by the generated clients.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::node::directory::DataDirectory;
use crate::node::{self, Handle, Running, Settings, Start};
use crate::proto::etcdserverpb::cluster_client::ClusterClient;
use crate::proto::etcdserverpb::kv_client::KvClient;
use crate::proto::etcdserverpb::lease_client::LeaseClient;
use crate::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use crate::proto::etcdserverpb::request_op::Request as Operation;
use crate::proto::etcdserverpb::response_op::Response as Answer;
use crate::proto::etcdserverpb::watch_client::WatchClient;
use crate::proto::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, HashKvRequest, HashRequest, LeaseGrantRequest,
    MemberListRequest, MoveLeaderRequest, PutRequest, RangeRequest, RequestOp, ResponseHeader, StatusRequest,
    TxnRequest, WatchRequest,
};
use crate::proto::replcluster::node_client::NodeClient;
use crate::proto::replcluster::{DescribeRequest, RemoveRequest, ShutdownRequest, describe_response};
use crate::register::{DeathWatch, FileRegister, Register as _};
use crate::view::{ClusterId, Epoch, Index, NodeId, View};

/// A node that serves one port of the loopback interface until the test ends.
struct Server {
    address: NodeId,
    handle: Handle,
    ended: tokio::sync::oneshot::Receiver<node::Ended>,
    register: Arc<FileRegister>,
    channel: Channel,
    _directory: tempfile::TempDir,
}

fn settings() -> Settings {
    Settings {
        cluster_name: "test".to_owned(),
        max_request_bytes: 64 * 1024,
        max_txn_operations: 128,
        nonce: "nonce".to_owned(),
        min_in_sync: 1,
    }
}

/// A cluster of one node that leads.
async fn leader(settings: Settings) -> Server {
    let server = serve(settings, true).await;
    let mut changes = server.handle.changes();
    let led = async {
        while server.handle.describe().leader.is_none() || !server.handle.is_ready() {
            changes.changed().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(30), led).await.expect("a node alone leads soon");
    server
}

async fn serve(settings: Settings, create: bool) -> Server {
    let directory = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = NodeId::parse(&listener.local_addr().unwrap().to_string()).unwrap();
    let path: PathBuf = directory.path().join("register");
    let register = Arc::new(FileRegister::open(&path).unwrap());
    let start = Start {
        address: address.clone(),
        directory: DataDirectory::open(&directory.path().join("data"), &address).unwrap(),
        register: register.clone(),
        watch: Box::new(move |tell| DeathWatch::start(&path, tell)),
        settings,
        heartbeat_interval: Duration::from_millis(50),
        failure_timeout: Duration::from_millis(300),
        handback_after: None,
        create,
        held: None,
        acknowledge_early: false,
        log_keep_bytes: 256 << 20,
        space_reserve_bytes: 0,
    };
    let Running { handle, ended, .. } = node::start(start).unwrap();
    let routes = super::services(handle.clone());
    let incoming = TcpListenerStream::new(listener);
    tokio::spawn(super::server_builder().add_routes(routes).serve_with_incoming(incoming));
    let channel = Endpoint::try_from(format!("http://{address}")).unwrap().connect().await.unwrap();
    Server { address, handle, ended, register, channel, _directory: directory }
}

impl Server {
    fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone())
    }

    async fn end(self) {
        self.handle.shutdown().await;
        assert_eq!(self.ended.await, Ok(node::Ended::Stopped));
    }
}

fn put(key: &'static str, value: &'static str) -> PutRequest {
    PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() }
}

fn get(key: &'static str) -> RangeRequest {
    RangeRequest { key: key.into(), ..RangeRequest::default() }
}

fn txn(success: impl IntoIterator<Item = Operation>) -> TxnRequest {
    let success = success.into_iter().map(|request| RequestOp { request: Some(request) }).collect();
    TxnRequest { success, ..TxnRequest::default() }
}

#[track_caller]
fn refused<T>(answer: Result<T, Status>, code: Code, text: &str) {
    let status = answer.err().expect("the request is refused");
    assert_eq!((status.code(), status.message()), (code, text));
}

#[tokio::test]
async fn every_answer_has_a_header_that_names_cluster_member_revision_and_epoch() {
    let server = leader(settings()).await;
    let mut kv = server.kv();
    let facts = server.handle.header();
    assert!(facts.cluster != 0 && facts.member == server.address.member_id() && facts.epoch != 0);
    let header = |revision| {
        let (cluster_id, member_id, raft_term) = (facts.cluster, facts.member, facts.epoch);
        Some(ResponseHeader { cluster_id, member_id, revision, raft_term })
    };
    assert_eq!(kv.range(get("a")).await.unwrap().into_inner().header, header(1));
    assert_eq!(kv.put(put("a", "1")).await.unwrap().into_inner().header, header(2));
    let read = kv.range(get("a")).await.unwrap().into_inner();
    assert_eq!((read.header, read.count, &*read.kvs[0].value), (header(2), 1, &b"1"[..]));

    let writes = txn([Operation::RequestPut(put("b", "2")), Operation::RequestRange(get("b"))]);
    let answer = kv.txn(writes).await.unwrap().into_inner();
    assert_eq!((answer.header, answer.succeeded, answer.responses.len()), (header(3), true, 2));
    let Some(Answer::ResponseRange(inner)) = &answer.responses[1].response else { panic!("{answer:?}") };
    assert_eq!((inner.header.as_ref().unwrap().revision, inner.count), (3, 1));

    let reads = kv.txn(txn([Operation::RequestRange(get("b"))])).await.unwrap().into_inner();
    assert_eq!((reads.header, reads.succeeded), (header(3), true));

    let delete = DeleteRangeRequest { key: "a".into(), ..DeleteRangeRequest::default() };
    let deleted = kv.delete_range(delete).await.unwrap().into_inner();
    assert_eq!((deleted.header, deleted.deleted), (header(4), 1));
    let compact = CompactionRequest { revision: 4, physical: true };
    assert_eq!(kv.compact(compact).await.unwrap().into_inner().header, header(4));
    let left = server.handle.read(true, tokio::time::Instant::now(), |store| store.is_compacting()).await;
    assert_eq!(left, Ok(false), "a physical compaction is answered when it is done");
    server.end().await;
}

#[tokio::test]
async fn refusals_come_with_etcds_codes_and_texts() {
    let server = leader(settings()).await;
    let mut kv = server.kv();
    kv.put(put("a", "1")).await.unwrap();
    let invalid = Code::InvalidArgument;
    refused(kv.range(get("")).await, invalid, "etcdserver: key is not provided");
    refused(kv.put(put("", "1")).await, invalid, "etcdserver: key is not provided");
    refused(kv.delete_range(DeleteRangeRequest::default()).await, invalid, "etcdserver: key is not provided");
    let sort = RangeRequest { sort_order: 9, ..get("a") };
    refused(kv.range(sort).await, invalid, "etcdserver: invalid sort option");
    let keeps = |key| PutRequest { ignore_value: true, ..put(key, "") };
    refused(kv.put(keeps("x")).await, invalid, "etcdserver: key not found");
    let both = PutRequest { ignore_value: true, ..put("a", "1") };
    refused(kv.put(both).await, invalid, "etcdserver: value is provided");
    let both = PutRequest { ignore_lease: true, lease: 7, ..put("a", "1") };
    refused(kv.put(both).await, invalid, "etcdserver: lease is provided");
    let leased = PutRequest { lease: 7, ..put("a", "1") };
    refused(kv.put(leased).await, Code::NotFound, "etcdserver: requested lease not found");

    let twice = txn([Operation::RequestPut(put("k", "1")), Operation::RequestPut(put("k", "2"))]);
    refused(kv.txn(twice).await, invalid, "etcdserver: duplicate key given in txn request");
    let empty = TxnRequest { success: vec![RequestOp { request: None }], ..TxnRequest::default() };
    refused(kv.txn(empty).await, invalid, "etcdserver: key not found");
    let too_many = "etcdserver: too many operations in txn request";
    let reads = txn((0..129).map(|_| Operation::RequestRange(get("a"))));
    refused(kv.txn(reads).await, invalid, too_many);
    let compares =
        TxnRequest { compare: vec![Compare { key: "a".into(), ..Compare::default() }; 129], ..txn([]) };
    refused(kv.txn(compares).await, invalid, too_many);

    let future = "etcdserver: mvcc: required revision is a future revision";
    let compacted = "etcdserver: mvcc: required revision has been compacted";
    refused(kv.range(RangeRequest { revision: 9, ..get("a") }).await, Code::OutOfRange, future);
    let compact = |revision| CompactionRequest { revision, physical: false };
    refused(kv.compact(compact(9)).await, Code::OutOfRange, future);
    kv.compact(compact(2)).await.unwrap();
    refused(kv.compact(compact(2)).await, Code::OutOfRange, compacted);
    refused(kv.range(RangeRequest { revision: 1, ..get("a") }).await, Code::OutOfRange, compacted);
    assert_eq!(server.handle.revision(), 2, "a refused request makes no revision");
    server.end().await;
}

#[tokio::test]
async fn a_large_request_is_refused_and_a_larger_one_is_not_even_read() {
    let server = leader(settings()).await;
    let mut kv = server.kv();
    let sized = |bytes: usize| PutRequest { value: vec![b'x'; bytes].into(), ..put("k", "") };
    kv.put(sized(60 * 1024)).await.unwrap();
    let too_large = "etcdserver: request is too large";
    refused(kv.put(sized(64 * 1024)).await, Code::InvalidArgument, too_large);
    refused(kv.put(sized(500 * 1024)).await, Code::InvalidArgument, too_large);
    let status = kv.put(sized(700 * 1024)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    // An answer may be as large as it is.
    assert_eq!(kv.range(get("k")).await.unwrap().into_inner().kvs[0].value.len(), 60 * 1024);
    server.end().await;
}

#[tokio::test]
async fn writes_are_refused_while_fewer_nodes_are_in_sync_than_wanted_and_reads_are_not() {
    let server = serve(Settings { min_in_sync: 2, ..settings() }, true).await;
    let mut changes = server.handle.changes();
    while server.handle.describe().leader.is_none() {
        changes.changed().await.unwrap();
    }
    let mut kv = server.kv();
    let why = "replcluster: writes need 2 nodes in sync, and 1 are; start more nodes";
    refused(kv.put(put("a", "1")).await, Code::Unavailable, why);
    assert_eq!(kv.range(get("a")).await.unwrap().into_inner().count, 0);
    server.end().await;
}

#[tokio::test]
async fn a_node_without_a_cluster_says_that_there_is_no_leader() {
    let server = serve(settings(), false).await;
    let mut kv = server.kv();
    let no_leader = "etcdserver: no leader";
    refused(kv.range(get("a")).await, Code::Unavailable, no_leader);
    let stale = RangeRequest { serializable: true, ..get("a") };
    refused(kv.range(stale).await, Code::Unavailable, no_leader);
    refused(kv.put(put("a", "1")).await, Code::Unavailable, no_leader);
    let mut cluster = ClusterClient::new(server.channel.clone());
    refused(cluster.member_list(MemberListRequest::default()).await, Code::Unavailable, no_leader);
    let mut maintenance = MaintenanceClient::new(server.channel.clone());
    let status = maintenance.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.leader, status.errors), (0, vec![no_leader.to_owned()]));
    let mut health = HealthClient::new(server.channel.clone());
    let answer = health.check(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(answer.status(), ServingStatus::NotServing);
    let mut controller = NodeClient::new(server.channel.clone());
    let description = controller.describe(DescribeRequest {}).await.unwrap().into_inner();
    assert_eq!((description.role(), description.ready), (describe_response::Role::None, false));
    assert!(!description.waiting_for.is_empty(), "it says what it waits for");
    server.end().await;
}

#[tokio::test]
async fn a_client_that_insists_on_a_leader_is_served_where_there_is_one() {
    let server = leader(settings()).await;
    let mut request = Request::new(RangeRequest { serializable: true, ..get("a") });
    request.metadata_mut().insert("hasleader", "true".parse().unwrap());
    assert_eq!(server.kv().range(request).await.unwrap().into_inner().count, 0);
    server.end().await;
}

#[tokio::test]
async fn members_have_names_and_urls_and_status_tells_who_leads() {
    let server = leader(settings()).await;
    server.kv().put(put("a", "1")).await.unwrap();
    let url = vec![format!("http://{}", server.address)];
    let mut cluster = ClusterClient::new(server.channel.clone());
    for linearizable in [false, true] {
        let answer = cluster.member_list(MemberListRequest { linearizable }).await.unwrap().into_inner();
        let [member] = &answer.members[..] else { panic!("{answer:?}") };
        assert_eq!((member.id, member.name.as_str()), (server.address.member_id(), server.address.as_str()));
        assert_eq!((&member.client_ur_ls, &member.peer_ur_ls, member.is_learner), (&url, &url, false));
        assert_eq!(answer.header.unwrap().revision, 2);
    }
    let mut maintenance = MaintenanceClient::new(server.channel.clone());
    let status = maintenance.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.leader, status.version.as_str()), (server.address.member_id(), "3.5.0"));
    assert!(status.errors.is_empty() && !status.is_learner);
    assert!(
        status.raft_term > 0
            && status.raft_index >= status.raft_applied_index
            && status.raft_applied_index > 0
    );
    assert!(status.db_size > 0 && status.db_size_in_use > 0);
    let nobody = MoveLeaderRequest { target_id: 12345 };
    let bad = "etcdserver: bad leader transferee";
    refused(maintenance.move_leader(nobody).await, Code::FailedPrecondition, bad);
    server.end().await;
}

#[tokio::test]
async fn a_node_that_leads_is_healthy_whatever_service_is_asked_about() {
    let server = leader(settings()).await;
    let mut health = HealthClient::new(server.channel.clone());
    for service in ["", "etcdserverpb.KV"] {
        let answer = health.check(HealthCheckRequest { service: service.to_owned() }).await.unwrap();
        assert_eq!(answer.into_inner().status(), ServingStatus::Serving, "{service}");
    }
    refused(
        health.check(HealthCheckRequest { service: "x".to_owned() }).await,
        Code::NotFound,
        "no such service",
    );
    server.end().await;
}

#[tokio::test]
async fn who_watches_the_health_is_told_when_the_node_serves() {
    let server = serve(settings(), false).await;
    let mut health = HealthClient::new(server.channel.clone());
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(watch.next().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    // A cluster appears, and this node is all of it.
    let myself = BTreeMap::from([(server.address.clone(), server.handle.describe().incarnation)]);
    let view = View {
        cluster: ClusterId(7),
        epoch: Epoch(1),
        leader: server.address.clone(),
        led_since: Epoch(1),
        in_sync: myself.clone(),
        members: myself,
        floor: Index(0),
        recovered: Epoch(0),
        previous: crate::view::Checksum(0),
    };
    server.register.swap(Epoch(0), &view).unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap().status(), ServingStatus::Serving);
    server.end().await;
}

#[tokio::test]
async fn the_controller_ends_a_node() {
    let server = leader(settings()).await;
    let mut controller = NodeClient::new(server.channel.clone());
    controller.shutdown(ShutdownRequest {}).await.unwrap();
    assert_eq!(server.ended.await, Ok(node::Ended::Stopped));
    refused(
        KvClient::new(server.channel).put(put("a", "1")).await,
        Code::Unavailable,
        "etcdserver: server stopped",
    );
}

#[tokio::test]
async fn the_controller_learns_what_the_node_is() {
    let server = leader(settings()).await;
    let mut controller = NodeClient::new(server.channel.clone());
    let answer = controller.describe(DescribeRequest {}).await.unwrap().into_inner();
    assert_eq!((answer.cluster_name.as_str(), answer.nonce.as_str()), ("test", "nonce"));
    assert_eq!((answer.pid, answer.role()), (std::process::id(), describe_response::Role::Leader));
    assert_eq!((&answer.address, &answer.leader), (&server.address.to_string(), &server.address.to_string()));
    assert_eq!(
        (&answer.in_sync, &answer.members),
        (&vec![answer.address.clone()], &vec![answer.address.clone()])
    );
    assert!(answer.ready && answer.waiting_for.is_empty() && answer.revision == 1);
    let nonsense = controller.remove(RemoveRequest { address: "nonsense".to_owned() }).await;
    assert_eq!(nonsense.unwrap_err().code(), Code::InvalidArgument);
    let nobody = controller.remove(RemoveRequest { address: "127.0.0.1:1".to_owned() }).await;
    refused(nobody, Code::NotFound, "etcdserver: member not found");
    server.end().await;
}

/// More records and keys than one step of the hash looks at, so that every step is taken; etcd's own number is in
/// `kv/scripts`.
#[tokio::test]
async fn a_hash_of_a_big_store_is_that_of_its_records_also_while_it_is_written_and_compacted() {
    let server = leader(settings()).await;
    for number in 0..40 {
        let puts = (0..128).map(|place| PutRequest {
            key: format!("{number:02}{place:03}").into(),
            value: vec![b'x'; 400].into(),
            ..PutRequest::default()
        });
        let success = puts.map(|put| RequestOp { request: Some(Operation::RequestPut(put)) }).collect();
        server.kv().txn(TxnRequest { success, ..TxnRequest::default() }).await.unwrap();
    }
    server.kv().put(put("00000", "again")).await.unwrap();
    let revision = server.handle.revision();
    let mut maintenance = MaintenanceClient::new(server.channel.clone());
    let direct =
        server.handle.read(true, tokio::time::Instant::now(), |store| store.hash(0).unwrap()).await.unwrap();
    let answer = maintenance.hash_kv(HashKvRequest { revision: 0 }).await.unwrap().into_inner();
    assert_eq!((answer.hash, answer.hash_revision, answer.compact_revision), (direct.hash, revision, -1));
    assert_eq!(maintenance.hash(HashRequest {}).await.unwrap().into_inner().hash, direct.hash);
    let mut writer = server.kv();
    let (answer, written) =
        tokio::join!(maintenance.hash_kv(HashKvRequest { revision }), writer.put(put("00000", "later")));
    written.unwrap();
    assert_eq!(answer.unwrap().into_inner().hash, direct.hash, "what comes later is no part of it");
    let compaction = CompactionRequest { revision: revision - 1, physical: false };
    server.kv().compact(compaction).await.unwrap();
    let direct = server
        .handle
        .read(true, tokio::time::Instant::now(), |store| store.hash(revision).unwrap())
        .await
        .unwrap();
    let answer = maintenance.hash_kv(HashKvRequest { revision }).await.unwrap().into_inner();
    assert_eq!((answer.hash, answer.compact_revision), (direct.hash, revision - 1));
    refused(
        maintenance.hash_kv(HashKvRequest { revision: revision - 2 }).await,
        Code::OutOfRange,
        "etcdserver: mvcc: required revision has been compacted",
    );
    refused(
        maintenance.hash_kv(HashKvRequest { revision: revision + 9 }).await,
        Code::OutOfRange,
        "etcdserver: mvcc: required revision is a future revision",
    );
    server.end().await;
}

#[tokio::test]
async fn what_is_not_served_yet_says_so() {
    let server = leader(settings()).await;
    let watch =
        WatchClient::new(server.channel.clone()).watch(futures_util::stream::empty::<WatchRequest>()).await;
    assert_eq!(watch.unwrap_err().code(), Code::Unimplemented);
    let grant = LeaseClient::new(server.channel.clone()).lease_grant(LeaseGrantRequest::default()).await;
    assert_eq!(grant.unwrap_err().code(), Code::Unimplemented);
    server.end().await;
}

#[tokio::test]
async fn a_thousand_requests_share_one_connection() {
    let server = leader(settings()).await;
    server.kv().put(put("a", "1")).await.unwrap();
    let reads = (0..1000).map(|_| {
        let mut kv = server.kv();
        async move { kv.range(get("a")).await.map(|answer| answer.into_inner().count) }
    });
    for count in join_all(reads).await {
        assert_eq!(count.unwrap(), 1);
    }
    server.end().await;
}

#[tokio::test]
async fn reflection_names_the_services() {
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

    let server = leader(settings()).await;
    let list = MessageRequest::ListServices(String::new());
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(list) };
    let mut reflection = ServerReflectionClient::new(server.channel.clone());
    let requests = futures_util::stream::iter([request]);
    let mut answers = reflection.server_reflection_info(requests).await.unwrap().into_inner();
    let answer: ServerReflectionResponse = answers.next().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(services)) = answer.message_response else {
        panic!("{answer:?}");
    };
    let names: Vec<&str> = services.service.iter().map(|service| service.name.as_str()).collect();
    for name in ["etcdserverpb.KV", "etcdserverpb.Maintenance", "replcluster.Node", "grpc.health.v1.Health"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    server.end().await;
}
