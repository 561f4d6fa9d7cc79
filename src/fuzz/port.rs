//! What comes in by the port: bodies of requests, and what peers say.

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message;

use super::message;
use super::source::Source;
use super::target;
use crate::kv::{self, Limits, MemoryBackend, Store};
use crate::node::inbound::event_of;
use crate::node::wire;
use crate::proto::etcdserverpb as pb;
use crate::proto::replcluster as peers;
use crate::view::{Checksum, Epoch, Incarnation, NodeId};

/// A transaction inside of so many others.
pub(super) fn transaction(depth: usize) -> pb::TxnRequest {
    let operation = |request| pb::RequestOp { request: Some(request) };
    let put = pb::PutRequest { key: "k".into(), value: "v".into(), ..Default::default() };
    let range = pb::RangeRequest { key: "a".into(), range_end: "z".into(), limit: 3, ..Default::default() };
    let delete = pb::DeleteRangeRequest { key: "x".into(), range_end: "y".into(), prev_kv: true };
    let compare = pb::Compare {
        result: pb::compare::CompareResult::Equal.into(),
        target: pb::compare::CompareTarget::Version.into(),
        key: "k".into(),
        target_union: Some(pb::compare::TargetUnion::Version(0)),
        ..Default::default()
    };
    let mut txn = pb::TxnRequest {
        compare: vec![compare.clone()],
        success: vec![
            operation(pb::request_op::Request::RequestPut(put)),
            operation(pb::request_op::Request::RequestRange(range.clone())),
            operation(pb::request_op::Request::RequestDeleteRange(delete)),
        ],
        failure: vec![operation(pb::request_op::Request::RequestRange(range))],
    };
    for _ in 0..depth {
        txn = pb::TxnRequest {
            compare: vec![compare.clone()],
            success: vec![operation(pb::request_op::Request::RequestTxn(txn))],
            failure: Vec::new(),
        };
    }
    txn
}

fn mutations() -> Vec<Vec<u8>> {
    use peers::mutation::Request;
    let encoded = |request| peers::Mutation { request: Some(request), ..Default::default() }.encode_to_vec();
    let put = pb::PutRequest { key: "key".into(), value: vec![7; 300].into(), ..Default::default() };
    let delete = pb::DeleteRangeRequest { key: "a".into(), range_end: "z".into(), prev_kv: true };
    let compact = pb::CompactionRequest { revision: 1, physical: true };
    let mut all = vec![
        encoded(Request::Put(put)),
        encoded(Request::DeleteRange(delete)),
        encoded(Request::Compact(compact)),
        encoded(Request::Space(peers::SpaceAlarm { raised: true, ..Default::default() })),
    ];
    all.extend([0, 1, 7, 30, 46, 47, 48, 49, 50, 100].map(|depth| encoded(Request::Txn(transaction(depth)))));
    all
}

/// What passes for the log, from a client or from another node, is applied from the log's bytes by every node alike.
fn log_entry(bytes: &[u8]) -> Result<(), String> {
    let Ok(mutation) = kv::decode(&Bytes::copy_from_slice(bytes), 1) else { return Ok(()) };
    if kv::check(&mutation, Limits::DEFAULT).is_err() {
        return Ok(());
    }
    let Ok(logged) = kv::encode(&mutation) else { return Ok(()) };
    let again = kv::decode(&logged, 1)
        .map_err(|error| format!("accepted, and cannot be decoded from the log: {error}"))?;
    if again != mutation {
        return Err("another one after the log".to_owned());
    }
    // The two are equal: from here on one of them is enough.
    drop((mutation, logged));
    let applied = || -> Result<_, String> {
        let mut store = Store::open(MemoryBackend::default()).map_err(|error| error.to_string())?;
        Ok(store.apply(&again))
    };
    let (first, second) = (applied()?, applied()?);
    if first == second { Ok(()) } else { Err(format!("applied as {first:?} and as {second:?}")) }
}

#[test]
fn log_entries() {
    let mut target = target("port::log_entries", mutations(), &message::mistakes, &log_entry);
    // What transactions inside others may hold together, and texts of their answers.
    target.fixed_bytes = 32 << 20;
    // Decoded, encoded and applied twice each.
    target.cpu = super::CPU * 6;
    target.run();
}

/// A message of a type that is checked nowhere but by its decoder.
fn decodes<M: Message + Default>(bytes: &[u8]) {
    if let Ok(message) = M::decode(bytes) {
        drop(message.encode_to_vec());
    }
}

#[test]
fn requests() {
    let range = pb::RangeRequest { key: "a".into(), range_end: "b".into(), ..Default::default() };
    let put = pb::PutRequest { key: "a".into(), value: "b".into(), ..Default::default() };
    let corpus = vec![
        range.encode_to_vec(),
        put.encode_to_vec(),
        pb::DeleteRangeRequest { key: "a".into(), ..Default::default() }.encode_to_vec(),
        pb::CompactionRequest { revision: 5, physical: true }.encode_to_vec(),
        pb::HashKvRequest { revision: 5 }.encode_to_vec(),
        pb::MoveLeaderRequest { target_id: 5 }.encode_to_vec(),
        peers::SetLogLevelRequest { filter: "info,replcluster=debug".to_owned() }.encode_to_vec(),
        peers::RemoveRequest { address: "127.0.0.1:1".to_owned() }.encode_to_vec(),
    ];
    let decode = |bytes: &[u8]| {
        if let Ok(request) = pb::RangeRequest::decode(bytes) {
            let _ = kv::check_range(&request);
        }
        decodes::<pb::PutRequest>(bytes);
        decodes::<pb::DeleteRangeRequest>(bytes);
        decodes::<pb::CompactionRequest>(bytes);
        decodes::<pb::HashKvRequest>(bytes);
        decodes::<pb::MoveLeaderRequest>(bytes);
        decodes::<pb::MemberListRequest>(bytes);
        decodes::<peers::SetLogLevelRequest>(bytes);
        decodes::<peers::RemoveRequest>(bytes);
        decodes::<peers::DescribeRequest>(bytes);
        Ok(())
    };
    target("port::requests", corpus, &message::mistakes, &decode).run();
}

fn frames() -> Vec<Vec<u8>> {
    use peers::frame::Body;
    let records = super::disk::records(3);
    let append = peers::Append {
        previous_index: 4,
        previous_epoch: 1,
        last_index: 7,
        commit: 4,
        records: records.into(),
        last_epoch: 2,
        ..Default::default()
    };
    let forward = peers::Forward {
        origin: 7,
        first_sequence: 1,
        mutations: mutations().into_iter().map(Bytes::from).collect(),
        ..Default::default()
    };
    let row = peers::SnapshotRow { key: "k".into(), value: "v".into(), ..Default::default() };
    let bodies = [
        Body::Append(append),
        Body::Appended(peers::Appended { durable: 5, full: true, ..Default::default() }),
        Body::Report(peers::Report { commit: 5, last_index: 6, ..Default::default() }),
        Body::Ping(peers::Ping {}),
        Body::Forward(forward),
        Body::ReadIndex(peers::ReadIndex { question: 5, ..Default::default() }),
        Body::SnapshotBegin(peers::SnapshotBegin { index: 5, epoch: 1, chain: 7, ..Default::default() }),
        Body::SnapshotChunk(peers::SnapshotChunk { rows: vec![row; 20], ..Default::default() }),
        Body::SnapshotEnd(peers::SnapshotEnd { rows: 20, ..Default::default() }),
        Body::Command(peers::Command {
            question: 5,
            what: Some(peers::command::What::Remove("127.0.0.1:1".to_owned())),
            ..Default::default()
        }),
    ];
    bodies
        .into_iter()
        .map(|body| peers::Frame { epoch: 3, body: Some(body), ..Default::default() }.encode_to_vec())
        .collect()
}

/// A length that is mostly right, then the message.
fn framed(source: &mut Source, bytes: &[u8]) -> Vec<u8> {
    let mistaken = message::mistakes(source, bytes);
    let length = if source.chance(10) { source.number() } else { mistaken.len() as u64 };
    let mut framed = BytesMut::new();
    framed.put_u32_le(u32::try_from(length).unwrap_or(u32::MAX));
    framed.put_slice(&mistaken);
    framed.to_vec()
}

#[test]
fn peer_frames() {
    let from = NodeId::parse("127.0.0.1:7").unwrap();
    let decode = |bytes: &[u8]| {
        let mut buffer = BytesMut::from(bytes);
        while let Ok(Some(frame)) = wire::take::<peers::Frame>(&mut buffer) {
            if let Some(body) = frame.body {
                let _ = event_of(&from, Incarnation(1), 1, (Epoch(frame.epoch), Checksum(frame.view)), body);
            }
        }
        Ok(())
    };
    let mut target = target("port::peer_frames", frames(), &framed, &decode);
    // The buffer of one frame of a peer that has shown that it is one.
    target.fixed_bytes = wire::FRAME_MAX as u64 + (1 << 20);
    target.run();
}

#[test]
fn greetings() {
    let hello = peers::Hello {
        cluster_id: 7,
        from: "127.0.0.1:1".to_owned(),
        incarnation: 8,
        to: "127.0.0.1:2".to_owned(),
        format: wire::FORMAT,
        session: 9,
        ..Default::default()
    };
    let decode = |bytes: &[u8]| {
        let mut buffer = BytesMut::from(bytes);
        let _ = wire::take::<peers::Hello>(&mut buffer);
        Ok(())
    };
    let mut target = target("port::greetings", vec![hello.encode_to_vec()], &framed, &decode);
    target.fixed_bytes = wire::FRAME_MAX as u64 + (1 << 20);
    target.run();
}

#[test]
fn a_message_without_a_mistake_comes_back_as_it_was() {
    let bytes = transaction(40).encode_to_vec();
    assert_eq!(message::again(&bytes), bytes);
}
