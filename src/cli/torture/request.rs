//! Requests of a history as etcd's requests, and its answers as those of a history. Each is sent once, to one node.

use std::time::Duration;

use bytes::Bytes;
use tonic::{Response, Status};

use crate::check::{Answer, Found, Freshness, Key, Request, Token};
use crate::client::{ClientError, Link, MAX_ANSWER_BYTES};
use crate::proto::etcdserverpb as pb;
use crate::proto::etcdserverpb::kv_client::KvClient;
use crate::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use crate::proto::mvccpb::KeyValue;

/// All keys begin with it.
const PREFIX: &str = "replcluster/torture/";

/// Sends a request to one node, once.
pub(super) async fn send(link: &Link, request: &Request, within: Duration) -> Result<Answer, ClientError> {
    let mut kv = KvClient::new(link.channel()).max_decoding_message_size(MAX_ANSWER_BYTES);
    match *request {
        Request::Put { key, value } => {
            let answer = once(link, within, kv.put(put(key, value))).await?;
            Ok(Answer::Written { revision: revision(answer.header.as_ref()) })
        }
        Request::Delete { key } => {
            let request = pb::DeleteRangeRequest { key: name(key), ..Default::default() };
            let answer = once(link, within, kv.delete_range(request)).await?;
            Ok(Answer::Deleted { revision: revision(answer.header.as_ref()), existed: answer.deleted != 0 })
        }
        Request::CompareAndPut { key, expected_mod_revision, value } => {
            let answer = once(link, within, kv.txn(put_if(key, expected_mod_revision, value))).await?;
            Ok(Answer::Compared { revision: revision(answer.header.as_ref()), succeeded: answer.succeeded })
        }
        Request::Read { first, last, freshness } => {
            let answer = once(link, within, kv.range(range(first, last, freshness))).await?;
            let found = answer.kvs.iter().map(found).collect();
            Ok(Answer::Read { revision: revision(answer.header.as_ref()), found })
        }
    }
}

/// The hash of everything that a node holds up to a revision.
pub(super) async fn hash(link: &Link, revision: i64, within: Duration) -> Result<u32, ClientError> {
    let mut maintenance = MaintenanceClient::new(link.channel());
    Ok(once(link, within, maintenance.hash_kv(pb::HashKvRequest { revision })).await?.hash)
}

async fn once<T>(
    link: &Link,
    within: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, ClientError> {
    let endpoint = link.endpoint();
    match tokio::time::timeout(within, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(ClientError::from_status(endpoint, status)),
        Err(_) => Err(ClientError::TimedOut { endpoint: endpoint.to_owned(), after: within, read: false }),
    }
}

fn name(key: Key) -> Bytes {
    format!("{PREFIX}{:08}", key.0).into()
}

fn put(key: Key, value: Token) -> pb::PutRequest {
    pb::PutRequest { key: name(key), value: value.0.to_string().into(), ..Default::default() }
}

fn put_if(key: Key, expected_mod_revision: i64, value: Token) -> pb::TxnRequest {
    let compare = pb::Compare {
        result: pb::compare::CompareResult::Equal.into(),
        target: pb::compare::CompareTarget::Mod.into(),
        key: name(key),
        target_union: Some(pb::compare::TargetUnion::ModRevision(expected_mod_revision)),
        ..Default::default()
    };
    let operation = pb::request_op::Request::RequestPut(put(key, value));
    pb::TxnRequest {
        compare: vec![compare],
        success: vec![pb::RequestOp { request: Some(operation) }],
        ..Default::default()
    }
}

fn range(first: Key, last: Key, freshness: Freshness) -> pb::RangeRequest {
    let (serializable, revision) = match freshness {
        Freshness::Linearizable => (false, 0),
        Freshness::Serializable => (true, 0),
        Freshness::At(revision) => (false, revision),
    };
    let range_end = if first == last { Bytes::new() } else { name(Key(last.0 + 1)) };
    pb::RangeRequest { key: name(first), range_end, serializable, revision, ..Default::default() }
}

/// What a key and value say. Bytes that no request wrote become a key or token that no request has.
fn found(kv: &KeyValue) -> Found {
    let number = |bytes: &[u8]| std::str::from_utf8(bytes).ok()?.parse::<u64>().ok();
    let key = kv.key.strip_prefix(PREFIX.as_bytes()).and_then(number).and_then(|key| u32::try_from(key).ok());
    Found {
        key: Key(key.unwrap_or(u32::MAX)),
        value: Token(number(&kv.value).unwrap_or(u64::MAX)),
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
    }
}

fn revision(header: Option<&pb::ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_and_value_come_back_as_they_were_sent() {
        let request = put(Key(7), Token(12));
        let kv = KeyValue { key: request.key, value: request.value, mod_revision: 5, ..KeyValue::default() };
        let found = found(&kv);
        assert_eq!((found.key, found.value, found.mod_revision), (Key(7), Token(12), 5));
    }

    #[test]
    fn what_nobody_sent_is_no_key_and_no_token_of_anybody() {
        let kv = KeyValue { key: "elsewhere".into(), value: "x".into(), ..KeyValue::default() };
        let found = found(&kv);
        assert_eq!((found.key, found.value), (Key(u32::MAX), Token(u64::MAX)));
    }

    #[test]
    fn a_range_takes_in_its_last_key_and_no_more() {
        let request = range(Key(3), Key(5), Freshness::Serializable);
        assert!(name(Key(5)) < request.range_end && request.range_end <= name(Key(6)));
        assert!(request.serializable && request.revision == 0);
        let old = range(Key(3), Key(3), Freshness::At(9));
        assert!(old.range_end.is_empty() && !old.serializable && old.revision == 9);
    }
}
