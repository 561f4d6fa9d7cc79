//! The services of a real node of its own, asked over TCP by the generated clients.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use prost::Message as _;
use tokio::net::TcpListener;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::serve::{Protocol, Scope, connection};
use crate::node::directory::DataDirectory;
use crate::node::{self, Handle, Running, Settings, Start};
use crate::proto::etcdserverpb as pb;
use crate::proto::etcdserverpb::auth_client::AuthClient;
use crate::proto::etcdserverpb::cluster_client::ClusterClient;
use crate::proto::etcdserverpb::kv_client::KvClient;
use crate::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use crate::proto::etcdserverpb::request_op::Request as Operation;
use crate::proto::etcdserverpb::response_op::Response as Answer;
use crate::proto::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, HashKvRequest, HashRequest, MemberListRequest,
    MoveLeaderRequest, PutRequest, RangeRequest, RequestOp, ResponseHeader, StatusRequest, TxnRequest,
};
use crate::proto::replcluster::node_client::NodeClient;
use crate::proto::replcluster::{
    DescribeRequest, Mutation, RemoveRequest, ShutdownRequest, SpaceAlarm, describe_response, mutation,
};
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
        skips: crate::skips::Skips::default(),
    };
    let Running { handle, ended, .. } = node::start(start).unwrap();
    let (api, (drain, drained)) = (super::services(handle.clone()), tokio::sync::watch::channel(false));
    tokio::spawn(async move {
        let _drain = drain;
        while let Ok((stream, _)) = listener.accept().await {
            let served = (api.clone(), Scope::Everything);
            tokio::spawn(connection(stream, BytesMut::new(), Protocol::Http2, served, drained.clone()));
        }
    });
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
    let (found, most) = (sized(700 * 1024).encoded_len(), (64 + 512) * 1024);
    let text = format!("grpc: received message larger than max ({found} vs. {most})");
    refused(kv.put(sized(700 * 1024)).await, Code::ResourceExhausted, &text);
    // An answer may be as large as it is.
    assert_eq!(kv.range(get("k")).await.unwrap().into_inner().kvs[0].value.len(), 60 * 1024);
    server.end().await;
}

/// To look at what a change would cost takes a while in which it is in memory: it is held against the bound before that.
#[tokio::test]
async fn a_request_counts_against_the_bound_before_it_is_admitted() {
    let server = leader(settings()).await;
    let mut kv = server.kv();
    for number in 0..100 {
        let (key, value) = (format!("k{number}").into(), vec![b'x'; 60 * 1024].into());
        kv.put(PutRequest { key, value, ..PutRequest::default() }).await.unwrap();
    }
    let all = RangeRequest {
        key: b"k".to_vec().into(),
        range_end: b"l".to_vec().into(),
        ..RangeRequest::default()
    };
    let mut operations = vec![RequestOp { request: Some(Operation::RequestRange(all)) }; 127];
    operations.push(RequestOp { request: Some(Operation::RequestPut(put("x", "y"))) });
    let txn = TxnRequest { success: operations, ..TxnRequest::default() };
    let not_admitted = kv.txn(txn.clone()).await.unwrap_err();
    assert!(!not_admitted.message().contains("too many requests"), "its answer is too large: {not_admitted}");
    let held = server.handle.pending().charge(server.handle.pending().most());
    refused(kv.txn(txn.clone()).await, Code::ResourceExhausted, "etcdserver: too many requests");
    drop(held);
    assert_eq!(kv.txn(txn).await.unwrap_err().message(), not_admitted.message());
    assert_eq!(server.handle.pending().held(), 0);
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
    server.register.swap(None, &view).unwrap();
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

/// Calls a method with bytes instead of a message.
async fn call(server: &Server, path: &'static str, message: &[u8]) -> Status {
    let mut grpc = tonic::client::Grpc::new(server.channel.clone());
    grpc.ready().await.unwrap();
    let request = Request::new(Bytes::copy_from_slice(message));
    let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
    grpc.unary(request, path, Raw)
        .await
        .map(|answer: tonic::Response<Bytes>| answer.into_inner())
        .unwrap_err()
}

/// Bytes as they are.
struct Raw;

impl tonic::codec::Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl tonic::codec::Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut tonic::codec::EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put(buffer, item);
        Ok(())
    }
}

impl tonic::codec::Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut tonic::codec::DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        use bytes::Buf as _;
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

#[tokio::test]
async fn what_this_version_lacks_names_the_version_that_will_have_it() {
    let server = leader(settings()).await;
    for (path, text) in [
        ("/etcdserverpb.Watch/Watch", "replcluster 0.1 has no watches; version 0.2 will"),
        ("/etcdserverpb.Lease/LeaseGrant", "replcluster 0.1 has no leases; version 0.2 will"),
        ("/etcdserverpb.Lease/LeaseKeepAlive", "replcluster 0.1 has no leases; version 0.2 will"),
        ("/v3lockpb.Lock/Lock", "replcluster 0.1 has no locks; version 0.2 will"),
        ("/v3electionpb.Election/Campaign", "replcluster 0.1 has no elections; version 0.2 will"),
        (
            "/etcdserverpb.Maintenance/Snapshot",
            "replcluster 0.1 has no snapshots to a file; version 0.2 will",
        ),
        (
            "/etcdserverpb.Cluster/MemberAdd",
            "replcluster 0.1 has no MemberAdd; version 0.2 will; use `replcluster add-follower`",
        ),
        ("/etcdserverpb.KV/RangeStream", "replcluster 0.1 has no streamed ranges; version 0.2 will"),
        ("/no.such.Service/Method", "unknown service no.such.Service"),
        ("/etcdserverpb.KV/NoSuchMethod", "unknown method"),
        ("/replcluster.Node/NoSuchMethod", "unknown method"),
        ("/nonsense", "malformed method name: \"/nonsense\""),
    ] {
        let status = call(&server, path, b"").await;
        assert_eq!((status.code(), status.message()), (Code::Unimplemented, text), "{path}");
    }
    server.end().await;
}

#[tokio::test]
async fn bytes_that_are_no_request_are_refused_with_a_text() {
    let server = leader(settings()).await;
    let status = call(&server, "/etcdserverpb.KV/Put", b"\xff\xff\xff").await;
    assert_eq!(status.code(), Code::Internal);
    assert!(status.message().starts_with("grpc: error unmarshalling request: "), "{status}");
    server.end().await;
}

#[tokio::test]
async fn alarms_defragmentation_and_downgrade_answer_as_where_they_are_not_in_use() {
    let server = leader(settings()).await;
    let mut maintenance = MaintenanceClient::new(server.channel.clone());
    let alarm = |action, member_id, alarm| pb::AlarmRequest { action, member_id, alarm };
    for request in [alarm(0, 0, 0), alarm(0, 0, 1), alarm(1, 0, 0), alarm(2, 7, 1), alarm(2, 0, 0)] {
        let answer = maintenance.alarm(request).await.unwrap().into_inner();
        assert!(answer.alarms.is_empty() && answer.header.is_some(), "{answer:?}");
    }
    let by_hand = maintenance.alarm(alarm(1, 0, 1)).await;
    assert_eq!(by_hand.unwrap_err().code(), Code::Unimplemented);
    let unknown = maintenance.alarm(alarm(9, 0, 0)).await;
    refused(unknown, Code::InvalidArgument, "replcluster: no such alarm action");

    // The space alarm as the leader raises it.
    let space = |raised| Mutation { request: Some(mutation::Request::Space(SpaceAlarm { raised })) };
    let until = || tokio::time::Instant::now() + Duration::from_secs(7);
    server.handle.mutate(space(true), until()).await.unwrap().unwrap();
    let raised = server.handle.read(true, until(), crate::node::StateStore::has_space_alarm).await.unwrap();
    if raised {
        // This node has room: its leader ends the alarm within a sweep, so it may be gone by now.
        let listed = maintenance.alarm(alarm(0, 0, 0)).await.unwrap().into_inner().alarms;
        let own = pb::AlarmMember { member_id: server.address.member_id(), alarm: 1 };
        assert!(listed.is_empty() || listed == [own], "{listed:?}");
    }
    let ended = maintenance.alarm(alarm(2, server.address.member_id(), 1)).await.unwrap().into_inner();
    assert!(ended.alarms.len() <= 1);
    assert!(maintenance.alarm(alarm(0, 0, 0)).await.unwrap().into_inner().alarms.is_empty());

    let done = maintenance.defragment(pb::DefragmentRequest {}).await.unwrap().into_inner();
    assert_eq!(done.header, None);
    let downgrade = |action, version: &str| pb::DowngradeRequest { action, version: version.to_owned() };
    let format = "etcdserver: wrong downgrade target version format";
    refused(maintenance.downgrade(downgrade(0, "old")).await, Code::InvalidArgument, format);
    let target = "etcdserver: invalid downgrade target version";
    refused(maintenance.downgrade(downgrade(1, "3.4.0")).await, Code::InvalidArgument, target);
    let none = "etcdserver: no inflight downgrade job";
    refused(maintenance.downgrade(downgrade(2, "")).await, Code::FailedPrecondition, none);
    server.end().await;
}

#[tokio::test]
async fn authentication_answers_as_an_etcd_where_it_is_off() {
    let server = leader(settings()).await;
    let mut auth = AuthClient::new(server.channel.clone());
    let status = auth.auth_status(pb::AuthStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.enabled, status.auth_revision), (false, 1));
    let failed = Code::FailedPrecondition;
    let (name, password) = ("root".to_owned(), "secret".to_owned());
    let token = pb::AuthenticateRequest { name: name.clone(), password };
    refused(auth.authenticate(token).await, failed, "etcdserver: authentication is not enabled");
    auth.auth_disable(pb::AuthDisableRequest {}).await.unwrap();
    let no_root = "etcdserver: root user does not exist";
    refused(auth.auth_enable(pb::AuthEnableRequest {}).await, failed, no_root);
    let users = auth.user_list(pb::AuthUserListRequest {}).await.unwrap().into_inner();
    assert!(users.users.is_empty() && users.header.is_some());
    assert!(auth.role_list(pb::AuthRoleListRequest {}).await.unwrap().into_inner().roles.is_empty());
    let no_user = "etcdserver: user name not found";
    refused(auth.user_get(pb::AuthUserGetRequest { name: name.clone() }).await, failed, no_user);
    let grant = pb::AuthUserGrantRoleRequest { user: name.clone(), role: name.clone() };
    refused(auth.user_grant_role(grant).await, failed, no_user);
    let no_role = "etcdserver: role name not found";
    refused(auth.role_get(pb::AuthRoleGetRequest { role: name.clone() }).await, failed, no_role);
    let grant = pb::AuthRoleGrantPermissionRequest { name: name.clone(), perm: None };
    let none = "etcdserver: permission not given";
    refused(auth.role_grant_permission(grant).await, Code::InvalidArgument, none);
    let nameless = auth.user_add(pb::AuthUserAddRequest::default()).await;
    refused(nameless, Code::InvalidArgument, "etcdserver: user name is empty");
    let lacks = "replcluster 0.1 has no users; version 0.2 will";
    let add = pb::AuthUserAddRequest { name, ..Default::default() };
    refused(auth.user_add(add).await, Code::Unimplemented, lacks);
    server.end().await;
}

#[tokio::test]
async fn members_that_do_not_exist_are_not_found_and_none_is_a_learner() {
    let server = leader(settings()).await;
    let mut cluster = ClusterClient::new(server.channel.clone());
    let (unknown, own) = (12345, server.address.member_id());
    let not_found = "etcdserver: member not found";
    refused(cluster.member_remove(pb::MemberRemoveRequest { id: unknown }).await, Code::NotFound, not_found);
    let update = pb::MemberUpdateRequest { id: unknown, peer_ur_ls: Vec::new() };
    refused(cluster.member_update(update).await, Code::NotFound, not_found);
    let promote = |id| pb::MemberPromoteRequest { id };
    refused(cluster.member_promote(promote(unknown)).await, Code::NotFound, not_found);
    let no_learner = "etcdserver: can only promote a learner member";
    refused(cluster.member_promote(promote(own)).await, Code::FailedPrecondition, no_learner);
    let remove = cluster.member_remove(pb::MemberRemoveRequest { id: own }).await.unwrap_err();
    assert_eq!(remove.code(), Code::Unimplemented);
    server.end().await;
}

#[tokio::test]
async fn changes_that_wait_for_a_leader_are_bounded_in_bytes() {
    let server = serve(Settings { max_request_bytes: 2 << 20, ..settings() }, false).await;
    let until = tokio::time::Instant::now() + Duration::from_secs(1);
    let puts = (0..200).map(|number: u32| {
        let (key, value) = (number.to_string().into(), vec![b'x'; 1 << 20].into());
        let put = PutRequest { key, value, ..PutRequest::default() };
        server.handle.mutate(Mutation { request: Some(mutation::Request::Put(put)) }, until)
    });
    let refused = join_all(puts).await;
    let at_once = refused.iter().filter(|end| **end == Err(node::Unavailable::TooManyRequests)).count();
    assert!((72..=74).contains(&at_once), "{at_once} of 200 MiB, where 128 MiB may wait");
    // What has waited for nothing holds nothing.
    let put = Mutation { request: Some(mutation::Request::Put(put("k", "v"))) };
    let later = tokio::time::Instant::now() + Duration::from_millis(100);
    let end = server.handle.mutate(put, later).await;
    assert_ne!(end, Err(node::Unavailable::TooManyRequests));
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
