//! One record of the log (R12): a fixed little-endian header, then the payload. The leader encodes it once; the same
//! bytes go to its disk, to its followers, and to theirs.
//!
//! | bytes | field |
//! |---|---|
//! | 0..4 | crc32c of the rest of the header |
//! | 4..8 | length of the payload |
//! | 8..16 | epoch |
//! | 16..24 | index |
//! | 24..28 | running crc32c over the log up to and including this record |
//! | 28..36 | commit index when it was written |
//! | 36..44 | origin: number of the process whose client asked |
//! | 44..52 | sequence: number of the request at its origin |
//! | 52..56 | crc32c of the payload |
//!
//! The header has a checksum of its own, so that the length of a record with a damaged payload is known.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::view::{Epoch, Index};

/// Bytes before the payload.
pub const HEADER_BYTES: usize = 56;
/// What the checksum of a payload starts with: that of an empty one is not zero.
const PAYLOAD_SEED: u32 = 0xa5a5_a5a5;
/// No payload is longer; far above any request that the API lets through.
pub const PAYLOAD_MAX: usize = 16 << 20;

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Under which it was ordered.
    pub epoch: Epoch,
    /// Where it stands.
    pub index: Index,
    /// What its leader knew to be committed when it was written.
    pub commit: Index,
    /// The process whose client asked; zero for the entry that opens an epoch.
    pub origin: u64,
    /// The number of the request at its origin.
    pub sequence: u64,
    /// What was asked, encoded.
    pub payload: Bytes,
}

/// Bytes that are no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRecord {
    /// The header announces more than any record has.
    #[error("a payload of {0} bytes")]
    Length(usize),
    /// The header is not the one that was written.
    #[error("a header whose checksum does not match")]
    Header,
    /// The payload is not the one that was written.
    #[error("a payload whose checksum does not match")]
    Payload,
}

/// Appends a record to `buffer`; answers with the running checksum after it.
pub fn encode(buffer: &mut BytesMut, record: &Record, chain_before: u32) -> u32 {
    assert!(record.payload.len() <= PAYLOAD_MAX, "a payload of {} bytes", record.payload.len());
    let start = buffer.len();
    buffer.reserve(HEADER_BYTES + record.payload.len());
    buffer.put_u32_le(0);
    buffer.put_u32_le(u32::try_from(record.payload.len()).expect("bounded above"));
    buffer.put_u64_le(record.epoch.0);
    buffer.put_u64_le(record.index.0);
    let chain = chain_after(record, chain_before);
    buffer.put_u32_le(chain);
    buffer.put_u64_le(record.commit.0);
    buffer.put_u64_le(record.origin);
    buffer.put_u64_le(record.sequence);
    buffer.put_u32_le(crc32c::crc32c_append(PAYLOAD_SEED, &record.payload));
    let crc = crc32c::crc32c(&buffer[start + 4..]);
    buffer.put_slice(&record.payload);
    buffer[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    chain
}

/// The running checksum after a record.
#[must_use]
pub fn chain_after(record: &Record, chain_before: u32) -> u32 {
    let mut head = [0_u8; 32];
    head[..8].copy_from_slice(&record.epoch.0.to_le_bytes());
    head[8..16].copy_from_slice(&record.index.0.to_le_bytes());
    head[16..24].copy_from_slice(&record.origin.to_le_bytes());
    head[24..].copy_from_slice(&record.sequence.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(chain_before, &head), &record.payload)
}

/// Takes a record off the front: the record and the running checksum it carries. `None` where the bytes end first.
///
/// # Errors
/// [`BadRecord`]; nothing is taken.
pub fn decode(frames: &mut Bytes) -> Result<Option<(Record, u32)>, BadRecord> {
    let Some((length, total)) = measure(frames)? else { return Ok(None) };
    if frames.len() < total {
        return Ok(None);
    }
    if crc32c::crc32c_append(PAYLOAD_SEED, &frames[HEADER_BYTES..total]) != u32_at(frames, 52) {
        return Err(BadRecord::Payload);
    }
    let mut head = frames.split_to(total);
    head.advance(8);
    let epoch = Epoch(head.get_u64_le());
    let index = Index(head.get_u64_le());
    let chain = head.get_u32_le();
    let commit = Index(head.get_u64_le());
    let origin = head.get_u64_le();
    let sequence = head.get_u64_le();
    head.advance(4);
    assert_eq!(head.len(), length, "what is left is the payload");
    Ok(Some((Record { epoch, index, commit, origin, sequence, payload: head }, chain)))
}

/// Length of the payload and of the whole record at the front. `None` where the bytes end within the header.
///
/// # Errors
/// [`BadRecord::Header`], [`BadRecord::Length`].
pub fn measure(bytes: &[u8]) -> Result<Option<(usize, usize)>, BadRecord> {
    if bytes.len() < HEADER_BYTES {
        return Ok(None);
    }
    if crc32c::crc32c(&bytes[4..HEADER_BYTES]) != u32_at(bytes, 0) {
        return Err(BadRecord::Header);
    }
    let length = u32_at(bytes, 4) as usize;
    if length > PAYLOAD_MAX {
        return Err(BadRecord::Length(length));
    }
    Ok(Some((length, HEADER_BYTES + length)))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(index: u64, payload: &'static [u8]) -> Record {
        let payload = Bytes::from_static(payload);
        Record { epoch: Epoch(2), index: Index(index), commit: Index(1), origin: 7, sequence: 9, payload }
    }

    #[test]
    fn what_is_encoded_is_decoded_and_the_chain_depends_on_all_before() {
        let mut buffer = BytesMut::new();
        let one = encode(&mut buffer, &record(1, b"a"), 0);
        let two = encode(&mut buffer, &record(2, b""), one);
        let mut frames = buffer.freeze();
        assert_eq!(decode(&mut frames).unwrap(), Some((record(1, b"a"), one)));
        assert_eq!(decode(&mut frames).unwrap(), Some((record(2, b""), two)));
        assert_eq!(decode(&mut frames).unwrap(), None);
        assert_ne!(chain_after(&record(2, b""), one), chain_after(&record(2, b""), one ^ 1));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let mut buffer = BytesMut::new();
        encode(&mut buffer, &record(1, b"payload"), 0);
        for bit in 0..buffer.len() * 8 {
            let mut bytes = buffer.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let found = decode(&mut Bytes::from(bytes));
            assert!(!matches!(found, Ok(Some(_))), "bit {bit}: {found:?}");
        }
    }
}
