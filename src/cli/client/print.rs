//! How answers look: as etcdctl prints them, in text and in JSON.

use serde_json::{Map, Value, json};

use crate::client::ClientError;
use crate::proto::etcdserverpb as pb;
use crate::proto::etcdserverpb::response_op::Response;
use crate::proto::mvccpb::KeyValue;

/// What of a range is printed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct GetLook {
    /// Keys without a line for their values; etcdctl leaves an empty line there.
    pub(super) keys_only: bool,
    /// The number of keys instead of the keys.
    pub(super) count_only: bool,
    /// Values without their keys.
    pub(super) value_only: bool,
}

/// One line of JSON.
pub(super) fn json(value: &Value) -> Vec<u8> {
    format!("{value}\n").into_bytes()
}

pub(super) fn range_text(answer: &pb::RangeResponse, look: GetLook) -> Vec<u8> {
    if look.count_only {
        return format!("{}\n", answer.count).into_bytes();
    }
    let mut out = Vec::new();
    for kv in &answer.kvs {
        if !look.value_only {
            line(&mut out, &kv.key);
        }
        if !look.keys_only {
            line(&mut out, &kv.value);
        }
    }
    out
}

pub(super) fn put_text(answer: &pb::PutResponse) -> Vec<u8> {
    let mut out = b"OK\n".to_vec();
    if let Some(kv) = &answer.prev_kv {
        key_and_value(&mut out, kv);
    }
    out
}

pub(super) fn delete_text(answer: &pb::DeleteRangeResponse) -> Vec<u8> {
    let mut out = format!("{}\n", answer.deleted).into_bytes();
    for kv in &answer.prev_kvs {
        key_and_value(&mut out, kv);
    }
    out
}

pub(super) fn txn_text(answer: &pb::TxnResponse) -> Vec<u8> {
    let mut out = if answer.succeeded { b"SUCCESS\n".to_vec() } else { b"FAILURE\n".to_vec() };
    for response in &answer.responses {
        out.push(b'\n');
        match &response.response {
            Some(Response::ResponseRange(range)) => out.extend(range_text(range, GetLook::default())),
            Some(Response::ResponsePut(put)) => out.extend(put_text(put)),
            Some(Response::ResponseDeleteRange(delete)) => out.extend(delete_text(delete)),
            Some(Response::ResponseTxn(nested)) => out.extend(txn_text(nested)),
            None => {}
        }
    }
    out
}

pub(super) fn compact_text(revision: i64) -> Vec<u8> {
    format!("compacted revision {revision}\n").into_bytes()
}

pub(super) fn members_text(answer: &pb::MemberListResponse) -> Vec<u8> {
    let rows = answer
        .members
        .iter()
        .map(|member| vec![format!("{:x}", member.id), member.name.clone(), member.client_ur_ls.join(",")]);
    table(&["ID", "NAME", "CLIENT URLS"], rows)
}

pub(super) fn status_text(answers: &[(String, Result<pb::StatusResponse, ClientError>)]) -> Vec<u8> {
    let rows = answers.iter().map(|(endpoint, answer)| match answer {
        Ok(status) => {
            let header = status.header.unwrap_or_default();
            let mut row = vec![
                endpoint.clone(),
                format!("{:x}", header.member_id),
                status.version.clone(),
                role(status).to_owned(),
                header.revision.to_string(),
                status.raft_term.to_string(),
                status.raft_index.to_string(),
                status.db_size.to_string(),
            ];
            row.push(status.errors.join("; "));
            row
        }
        Err(error) => {
            let mut row = vec![endpoint.clone()];
            row.resize(8, "-".to_owned());
            row.push(error.to_string().lines().next().unwrap_or_default().to_owned());
            row
        }
    });
    table(&["ENDPOINT", "ID", "VERSION", "ROLE", "REVISION", "TERM", "INDEX", "DB SIZE", "ERRORS"], rows)
}

pub(super) fn range_value(answer: &pb::RangeResponse) -> Value {
    let mut object = with_header(answer.header);
    if !answer.kvs.is_empty() {
        object.insert("kvs".to_owned(), answer.kvs.iter().map(key_value).collect());
    }
    if answer.more {
        object.insert("more".to_owned(), json!(true));
    }
    insert_number(&mut object, "count", answer.count);
    Value::Object(object)
}

pub(super) fn put_value(answer: &pb::PutResponse) -> Value {
    let mut object = with_header(answer.header);
    if let Some(kv) = &answer.prev_kv {
        object.insert("prev_kv".to_owned(), key_value(kv));
    }
    Value::Object(object)
}

pub(super) fn delete_value(answer: &pb::DeleteRangeResponse) -> Value {
    let mut object = with_header(answer.header);
    insert_number(&mut object, "deleted", answer.deleted);
    if !answer.prev_kvs.is_empty() {
        object.insert("prev_kvs".to_owned(), answer.prev_kvs.iter().map(key_value).collect());
    }
    Value::Object(object)
}

pub(super) fn txn_value(answer: &pb::TxnResponse) -> Value {
    let mut object = with_header(answer.header);
    object.insert("succeeded".to_owned(), json!(answer.succeeded));
    let responses = answer.responses.iter().map(|response| match &response.response {
        Some(Response::ResponseRange(range)) => json!({ "response_range": range_value(range) }),
        Some(Response::ResponsePut(put)) => json!({ "response_put": put_value(put) }),
        Some(Response::ResponseDeleteRange(delete)) => {
            json!({ "response_delete_range": delete_value(delete) })
        }
        Some(Response::ResponseTxn(nested)) => json!({ "response_txn": txn_value(nested) }),
        None => json!({}),
    });
    object.insert("responses".to_owned(), responses.collect());
    Value::Object(object)
}

pub(super) fn compact_value(answer: &pb::CompactionResponse) -> Value {
    Value::Object(with_header(answer.header))
}

pub(super) fn members_value(answer: &pb::MemberListResponse) -> Value {
    let mut object = with_header(answer.header);
    let members = answer.members.iter().map(|member| {
        json!({
            "ID": member.id,
            "name": member.name,
            "peerURLs": member.peer_ur_ls,
            "clientURLs": member.client_ur_ls,
        })
    });
    object.insert("members".to_owned(), members.collect());
    Value::Object(object)
}

pub(super) fn status_value(answers: &[(String, Result<pb::StatusResponse, ClientError>)]) -> Value {
    let entries = answers.iter().map(|(endpoint, answer)| match answer {
        Ok(status) => {
            let mut object = with_header(status.header);
            object.insert("version".to_owned(), json!(status.version));
            object.insert("dbSize".to_owned(), json!(status.db_size));
            object.insert("leader".to_owned(), json!(status.leader));
            object.insert("raftIndex".to_owned(), json!(status.raft_index));
            object.insert("raftTerm".to_owned(), json!(status.raft_term));
            object.insert("errors".to_owned(), json!(status.errors));
            json!({ "Endpoint": endpoint, "Status": object })
        }
        Err(error) => json!({ "Endpoint": endpoint, "error": error.to_string() }),
    });
    entries.collect()
}

fn role(status: &pb::StatusResponse) -> &'static str {
    let member = status.header.unwrap_or_default().member_id;
    match status.leader {
        0 => "no leader",
        leader if leader == member => "leader",
        _ => "follower",
    }
}

fn with_header(header: Option<pb::ResponseHeader>) -> Map<String, Value> {
    let mut object = Map::new();
    if let Some(header) = header {
        object.insert(
            "header".to_owned(),
            json!({
                "cluster_id": header.cluster_id,
                "member_id": header.member_id,
                "revision": header.revision,
                "raft_term": header.raft_term,
            }),
        );
    }
    object
}

fn key_value(kv: &KeyValue) -> Value {
    let mut object = Map::new();
    object.insert("key".to_owned(), json!(base64(&kv.key)));
    insert_number(&mut object, "create_revision", kv.create_revision);
    insert_number(&mut object, "mod_revision", kv.mod_revision);
    insert_number(&mut object, "version", kv.version);
    if !kv.value.is_empty() {
        object.insert("value".to_owned(), json!(base64(&kv.value)));
    }
    insert_number(&mut object, "lease", kv.lease);
    Value::Object(object)
}

/// etcdctl leaves zeros out.
fn insert_number(object: &mut Map<String, Value>, name: &str, number: i64) {
    if number != 0 {
        object.insert(name.to_owned(), json!(number));
    }
}

/// RFC 4648 with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0_u32, |group, byte| (group << 8) | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let six = (group >> (18 - 6 * place)) & 63;
            text.push(if place <= chunk.len() { char::from(ALPHABET[six as usize]) } else { '=' });
        }
    }
    text
}

fn key_and_value(out: &mut Vec<u8>, kv: &KeyValue) {
    line(out, &kv.key);
    line(out, &kv.value);
}

fn line(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
    out.push(b'\n');
}

/// Columns with two blanks between.
pub(in crate::cli) fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> Vec<u8> {
    let mut lines = vec![head.iter().map(|text| (*text).to_owned()).collect::<Vec<String>>()];
    lines.extend(rows);
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|text| text.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut out = Vec::new();
    for cells in &lines {
        let padded: Vec<String> =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        line(&mut out, padded.join("  ").trim_end().as_bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(key: &'static [u8], value: &'static [u8]) -> KeyValue {
        KeyValue {
            key: key.into(),
            value: value.into(),
            create_revision: 2,
            mod_revision: 3,
            version: 2,
            lease: 0,
        }
    }

    #[test]
    fn base64_pads_like_everybody_elses() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xff, 0xfe, 0xfd]), "//79");
    }

    #[test]
    fn a_missing_key_prints_nothing() {
        assert_eq!(range_text(&pb::RangeResponse::default(), GetLook::default()), b"");
    }

    #[test]
    fn keys_and_values_are_printed_raw() {
        let answer = pb::RangeResponse { kvs: vec![kv(b"a\xff", b"1"), kv(b"b", b"")], ..Default::default() };
        assert_eq!(range_text(&answer, GetLook::default()), b"a\xff\n1\nb\n\n");
        let look = GetLook { keys_only: true, ..GetLook::default() };
        assert_eq!(range_text(&answer, look), b"a\xff\nb\n");
        let look = GetLook { value_only: true, ..GetLook::default() };
        assert_eq!(range_text(&answer, look), b"1\n\n");
    }

    #[test]
    fn json_has_etcdctls_fields() {
        let header = Some(pb::ResponseHeader { cluster_id: 1, member_id: 2, revision: 3, raft_term: 4 });
        let answer = pb::RangeResponse { header, kvs: vec![kv(b"a", b"1")], more: false, count: 1 };
        assert_eq!(
            range_value(&answer),
            json!({
                "header": {"cluster_id": 1, "member_id": 2, "revision": 3, "raft_term": 4},
                "kvs": [{"key": "YQ==", "create_revision": 2, "mod_revision": 3, "version": 2, "value": "MQ=="}],
                "count": 1,
            })
        );
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".to_owned(), "bb".to_owned()], vec!["ccc".to_owned(), "d".to_owned()]];
        assert_eq!(table(&["X", "Y"], rows.into_iter()), b"X    Y\na    bb\nccc  d\n");
    }
}
