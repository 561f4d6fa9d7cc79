//! What the load asks: put and get requests as bytes that only need a stream id and a key.

use bytes::Bytes;
use clap::ValueEnum;
use prost::Message as _;

use super::wire::{FRAME_HEAD, STREAM_ID, request_frames};
use crate::proto::etcdserverpb as pb;

/// All keys of the load begin with it; 14 digits make them 32 bytes long.
pub(super) const PREFIX: &[u8] = b"replcluster/bench/";
const DIGITS: usize = 14;
const KEY_LENGTH: usize = PREFIX.len() + DIGITS;

/// What the clients of a load do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Mix {
    /// Writes.
    Put,
    /// Linearizable reads of one key.
    Get,
    /// Reads of one key that may be stale.
    Serializable,
}

impl Mix {
    /// As it is typed and printed.
    pub(super) fn name(self) -> &'static str {
        match self {
            Mix::Put => "put",
            Mix::Get => "get",
            Mix::Serializable => "serializable",
        }
    }

    fn path(self) -> &'static str {
        match self {
            Mix::Put => "/etcdserverpb.KV/Put",
            Mix::Get | Mix::Serializable => "/etcdserverpb.KV/Range",
        }
    }

    fn message(self, value_length: usize, seed: u64) -> Vec<u8> {
        let key = Bytes::from([PREFIX, &[b'0'; DIGITS]].concat());
        match self {
            Mix::Put => pb::PutRequest { key, value: value(value_length, seed).into(), ..Default::default() }
                .encode_to_vec(),
            Mix::Get => pb::RangeRequest { key, ..Default::default() }.encode_to_vec(),
            Mix::Serializable => {
                pb::RangeRequest { key, serializable: true, ..Default::default() }.encode_to_vec()
            }
        }
    }
}

/// The requests of one connection.
#[derive(Clone, Debug)]
pub(super) struct Template {
    /// Puts the headers into the server's table: for the first request, or for all where it keeps no table.
    spelled_out: Frames,
    /// Names them by their place in the table.
    indexed: Frames,
    data_length: u32,
    /// Which key comes next: a walk through all of them that visits each once in a round.
    next_key: u64,
    step: u64,
    keys: u64,
}

#[derive(Clone, Debug)]
struct Frames {
    bytes: Vec<u8>,
    /// Where the second frame, the data, begins.
    data: usize,
    /// Where the digits of the key begin.
    digits: usize,
}

impl Template {
    /// Requests to `authority`, walking through `keys` keys from `first` on in steps of `step`.
    pub(super) fn new(
        mix: Mix,
        authority: &str,
        value_length: usize,
        keys: u64,
        first: u64,
        step: u64,
    ) -> Template {
        let message = mix.message(value_length, first);
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
        // Uncompressed, and how long (the frame of gRPC).
        let data = [&[0_u8][..], &length.to_be_bytes(), &message].concat();
        Template {
            spelled_out: Frames::new(&spelled_out(mix.path(), authority), &data),
            indexed: Frames::new(&INDEXED, &data),
            data_length: length + 5,
            next_key: first % keys,
            step,
            keys,
        }
    }

    /// Bytes that count against the server's windows.
    pub(super) fn data_length(&self) -> u32 {
        self.data_length
    }

    /// Appends the next request.
    pub(super) fn append(&mut self, out: &mut Vec<u8>, stream: u32, indexed: bool) {
        let frames = if indexed { &self.indexed } else { &self.spelled_out };
        let begin = out.len();
        out.extend_from_slice(&frames.bytes);
        let request = &mut out[begin..];
        request[STREAM_ID..FRAME_HEAD].copy_from_slice(&stream.to_be_bytes());
        request[frames.data + STREAM_ID..frames.data + FRAME_HEAD].copy_from_slice(&stream.to_be_bytes());
        let mut rest = self.next_key;
        for digit in request[frames.digits..frames.digits + DIGITS].iter_mut().rev() {
            *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
            rest /= 10;
        }
        self.next_key = (self.next_key + self.step) % self.keys;
    }
}

impl Frames {
    fn new(block: &[u8], data: &[u8]) -> Frames {
        let bytes = request_frames(block, data);
        let data_begin = FRAME_HEAD + block.len();
        let digits = bytes
            .windows(KEY_LENGTH)
            .position(|window| window.starts_with(PREFIX))
            .map_or(bytes.len(), |position| position + PREFIX.len());
        Frames { bytes, data: data_begin, digits }
    }
}

/// `POST`, `http`, then the four entries that [`spelled_out`] put into the table, newest at 62 (RFC 7541).
const INDEXED: [u8; 6] = [0x83, 0x86, 0x80 | 65, 0x80 | 64, 0x80 | 63, 0x80 | 62];

/// The header block with literals that enter the server's table: path, authority, content type, te.
fn spelled_out(path: &str, authority: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x86];
    for (name, text) in [(4, path), (1, authority), (31, "application/grpc")] {
        block.push(0x40 | name);
        literal(&mut block, text);
    }
    block.push(0x40);
    literal(&mut block, "te");
    literal(&mut block, "trailers");
    block
}

/// A text of less than 127 bytes without Huffman coding.
fn literal(block: &mut Vec<u8>, text: &str) {
    block.push(u8::try_from(text.len()).unwrap_or(126).min(126));
    block.extend_from_slice(&text.as_bytes()[..text.len().min(126)]);
}

/// Bytes that do not compress (xorshift).
fn value(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()[0]
    })
    .take(length)
    .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_request_is_two_frames_with_its_stream_and_its_key() {
        let mut template = Template::new(Mix::Put, "127.0.0.1:1", 256, 1000, 41, 1);
        let mut out = Vec::new();
        template.append(&mut out, 7, true);
        assert_eq!(out[..3], [0, 0, 6]);
        assert_eq!(out[FRAME_HEAD..FRAME_HEAD + 6], INDEXED);
        let data = &out[FRAME_HEAD + 6..];
        assert_eq!(
            (&out[STREAM_ID..FRAME_HEAD], &data[STREAM_ID..FRAME_HEAD]),
            (&[0, 0, 0, 7][..], &[0, 0, 0, 7][..])
        );
        let message = pb::PutRequest::decode(&data[FRAME_HEAD + 5..]).unwrap();
        assert_eq!(&message.key[..], b"replcluster/bench/00000000000041");
        assert_eq!((message.key.len(), message.value.len()), (32, 256));
        assert_eq!(usize::try_from(template.data_length()).unwrap(), data.len() - FRAME_HEAD);
    }

    #[test]
    fn the_walk_visits_every_key() {
        let mut template = Template::new(Mix::Get, "h:1", 0, 10, 3, 7);
        let mut seen = BTreeSet::new();
        for _ in 0..10 {
            let mut out = Vec::new();
            template.append(&mut out, 1, false);
            let key = out.windows(KEY_LENGTH).find(|window| window.starts_with(PREFIX)).unwrap();
            seen.insert(key.to_vec());
        }
        assert_eq!(seen.len(), 10);
    }

    #[test]
    fn serializable_reads_say_so() {
        let message = pb::RangeRequest::decode(&Mix::Serializable.message(0, 1)[..]).unwrap();
        assert!(message.serializable);
        assert!(!pb::RangeRequest::decode(&Mix::Get.message(0, 1)[..]).unwrap().serializable);
    }
}
