//! The bytes of one change: what a key became, or that it went. The format on disk and in snapshots:
//! one byte that tells which, then a protobuf `mvccpb.KeyValue` (put) or the bare key (delete).

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use crate::proto::mvccpb::KeyValue;

pub(super) const PUT: u8 = 0;
pub(super) const TOMBSTONE: u8 = 1;

/// One change, read back. Its bytes are slices of the record: nothing is copied.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Record {
    Put(KeyValue),
    Tombstone(Bytes),
}

pub(super) fn encode_put(kv: &KeyValue) -> Bytes {
    let mut buffer = BytesMut::with_capacity(1 + kv.encoded_len());
    buffer.put_u8(PUT);
    kv.encode_raw(&mut buffer);
    buffer.freeze()
}

pub(super) fn encode_tombstone(key: &[u8]) -> Bytes {
    let mut buffer = BytesMut::with_capacity(1 + key.len());
    buffer.put_u8(TOMBSTONE);
    buffer.put_slice(key);
    buffer.freeze()
}

/// # Errors
/// What is wrong with the bytes, in words.
pub(super) fn decode(mut bytes: Bytes) -> Result<Record, &'static str> {
    if bytes.is_empty() {
        return Err("it is empty");
    }
    let kind = bytes.split_to(1)[0];
    match kind {
        PUT => KeyValue::decode(bytes).map(Record::Put).map_err(|_| "its content is no key and value"),
        TOMBSTONE => Ok(Record::Tombstone(bytes)),
        _ => Err("its kind is unknown"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        let kv = KeyValue {
            key: Bytes::from_static(b"k"),
            create_revision: 2,
            mod_revision: 7,
            version: 3,
            value: Bytes::from_static(b"\0v"),
            lease: 5,
        };
        assert_eq!(decode(encode_put(&kv)), Ok(Record::Put(kv)));
        assert_eq!(decode(encode_tombstone(b"k")), Ok(Record::Tombstone(Bytes::from_static(b"k"))));
    }

    #[test]
    fn what_is_no_record_is_refused() {
        for bytes in [&b""[..], b"\x02k", b"\x00\xff\xff"] {
            assert!(decode(Bytes::from_static(bytes)).is_err(), "{bytes:?}");
        }
    }
}
