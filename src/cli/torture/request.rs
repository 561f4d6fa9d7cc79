//! Requests of a history as etcd's requests, and its answers as those of a history. Each is sent once, to one node.

use std::time::Duration;

use bytes::Bytes;
use tonic::{Response, Status};

use crate::check::{Answer, Found, Freshness, Key, Request, Span, Token, Transaction};
use crate::client::{ClientError, Link, MAX_ANSWER_BYTES};
use crate::proto::etcdserverpb as pb;
use crate::proto::etcdserverpb::kv_client::KvClient;
use crate::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use crate::proto::mvccpb::KeyValue;

/// Of so many tokens one has a large value.
const LARGE_EVERY: u64 = 256;
/// How large, in turn.
const LARGE_BYTES: [usize; 4] = [1 << 10, 8 << 10, 64 << 10, 512 << 10];
/// The most transactions around another.
const DEEPEST: usize = 40;

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
        Request::DeleteRange(span) => {
            let answer = once(link, within, kv.delete_range(delete_range(span))).await?;
            let removed = answer.prev_kvs.iter().map(found).collect();
            Ok(Answer::RangeDeleted { revision: revision(answer.header.as_ref()), removed })
        }
        Request::Transaction(asked) => {
            let answer = once(link, within, kv.txn(transaction(&asked))).await?;
            Ok(transacted(&asked, &answer))
        }
        Request::Compact { revision: to } => {
            let request = pb::CompactionRequest { revision: to, physical: false };
            let answer = once(link, within, kv.compact(request)).await?;
            Ok(Answer::Compacted { revision: revision(answer.header.as_ref()) })
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
    pb::PutRequest { key: name(key), value: text(value), ..Default::default() }
}

/// Some values are large. How large is decided by the token, so that a value cut short or mixed up is no token at all.
fn text(Token(token): Token) -> Bytes {
    let digits = token.to_string();
    let bytes = match token % LARGE_EVERY {
        0 => LARGE_BYTES[usize::try_from(token / LARGE_EVERY).unwrap_or(0) % LARGE_BYTES.len()],
        _ => return digits.into(),
    };
    let mut text = digits.into_bytes();
    text.push(b' ');
    let filler = (token % 251).to_le_bytes()[0];
    text.resize(bytes, filler);
    text.into()
}

/// Which token a value stands for.
fn token(value: &Bytes) -> Option<Token> {
    let digits = value.split(|byte| *byte == b' ').next()?;
    let token = Token(std::str::from_utf8(digits).ok()?.parse().ok()?);
    (text(token) == *value).then_some(token)
}

fn has_mod_revision(key: Key, revision: i64) -> pb::Compare {
    pb::Compare {
        result: pb::compare::CompareResult::Equal.into(),
        target: pb::compare::CompareTarget::Mod.into(),
        key: name(key),
        target_union: Some(pb::compare::TargetUnion::ModRevision(revision)),
        ..Default::default()
    }
}

fn operation(request: pb::request_op::Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

fn put_if(key: Key, expected_mod_revision: i64, value: Token) -> pb::TxnRequest {
    pb::TxnRequest {
        compare: vec![has_mod_revision(key, expected_mod_revision)],
        success: vec![operation(pb::request_op::Request::RequestPut(put(key, value)))],
        ..Default::default()
    }
}

fn delete_range(Span { first, last }: Span) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest { key: name(first), range_end: name(Key(last.0 + 1)), prev_kv: true }
}

/// How many transactions stand around the one that sets the keys.
fn depth(asked: &Transaction) -> usize {
    match asked.sets.value.0 % 16 {
        0 => DEEPEST,
        token => usize::try_from(token).unwrap_or(0) % 4,
    }
}

/// Reads and removes on the outside, sets in the innermost of several transactions, each with the same condition. Its
/// other branch sets something that no request of the history writes: conditions hold for all of it or for nothing.
fn transaction(asked: &Transaction) -> pb::TxnRequest {
    let condition: Vec<pb::Compare> =
        asked.expected.iter().map(|(key, revision)| has_mod_revision(*key, *revision)).collect();
    let puts = asked.sets.iter().map(|(key, value)| put(key, value));
    let puts = puts.map(|put| operation(pb::request_op::Request::RequestPut(put)));
    let mut innermost: Vec<pb::RequestOp> = puts.collect();
    for around in 0..depth(asked) {
        let forbidden =
            pb::PutRequest { key: name(asked.sets.first), value: "never".into(), ..Default::default() };
        let failure = match around {
            0 => vec![operation(pb::request_op::Request::RequestPut(forbidden))],
            _ => Vec::new(),
        };
        let inner = pb::TxnRequest { compare: condition.clone(), success: innermost, failure };
        innermost = vec![operation(pb::request_op::Request::RequestTxn(inner))];
    }
    let reads = range(asked.reads.first, asked.reads.last, Freshness::Linearizable);
    let reads = operation(pb::request_op::Request::RequestRange(reads));
    let removes =
        asked.removes.map(|span| operation(pb::request_op::Request::RequestDeleteRange(delete_range(span))));
    let success = [reads.clone()].into_iter().chain(removes).chain(innermost).collect();
    pb::TxnRequest { compare: condition, success, failure: vec![reads] }
}

/// The answer to it. One whose parts contradict each other becomes an answer to another kind of request.
fn transacted(asked: &Transaction, answer: &pb::TxnResponse) -> Answer {
    let revision = revision(answer.header.as_ref());
    let first = answer.responses.first().and_then(|response| response.response.as_ref());
    let Some(pb::response_op::Response::ResponseRange(read)) = first else {
        return Answer::Written { revision };
    };
    let met = read.kvs.iter().map(found).collect();
    let succeeded = answer.succeeded;
    let mut inner = &answer.responses[1..];
    if succeeded {
        inner = &inner[inner.len().min(usize::from(asked.removes.is_some()))..];
        for _ in 0..depth(asked) {
            match inner.first().and_then(|response| response.response.as_ref()) {
                Some(pb::response_op::Response::ResponseTxn(response)) if response.succeeded => {
                    inner = &response.responses;
                }
                _ => return Answer::Written { revision },
            }
        }
    }
    let answers = if succeeded { asked.sets.iter().count() } else { 0 };
    if inner.len() == answers {
        Answer::Transacted { revision, succeeded, met }
    } else {
        Answer::Written { revision }
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
        value: token(&kv.value).unwrap_or(Token(u64::MAX)),
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
    use crate::check::Sets;

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
    fn a_large_value_that_is_cut_short_is_no_token() {
        for large in (0..8).map(|n| Token(n * LARGE_EVERY)) {
            let value = text(large);
            assert!(value.len() >= 1 << 10);
            assert_eq!(token(&value), Some(large));
            assert_eq!(token(&value.slice(..value.len() - 1)), None);
        }
        assert_eq!(token(&text(Token(77))), Some(Token(77)));
    }

    #[test]
    fn a_transaction_whose_inner_one_took_the_other_branch_is_found_out() {
        let sets = Sets { first: Key(4), step: 1, count: 2, value: Token(3) };
        let reads = Span { first: Key(4), last: Key(5) };
        let asked = Transaction { expected: Some((Key(4), 0)), reads, removes: None, sets };
        assert_eq!(depth(&asked), 3);
        let answer = |inner_succeeded| {
            let put = || pb::ResponseOp {
                response: Some(pb::response_op::Response::ResponsePut(pb::PutResponse::default())),
            };
            let mut responses = vec![put(), put()];
            for _ in 0..3 {
                let inner = pb::TxnResponse { succeeded: inner_succeeded, responses, header: None };
                responses =
                    vec![pb::ResponseOp { response: Some(pb::response_op::Response::ResponseTxn(inner)) }];
            }
            let read = pb::response_op::Response::ResponseRange(pb::RangeResponse::default());
            responses.insert(0, pb::ResponseOp { response: Some(read) });
            pb::TxnResponse { succeeded: true, responses, header: None }
        };
        let right = Answer::Transacted { revision: 0, succeeded: true, met: Vec::new() };
        assert_eq!(transacted(&asked, &answer(true)), right);
        assert_eq!(transacted(&asked, &answer(false)), Answer::Written { revision: 0 });
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
