//! Between the protocol's messages and the bytes that peers exchange.
//!
//! A connection carries one direction only. The side that dialled says [`MAGIC`] and greets (`greeting`), then it sends
//! frames; each is preceded by its length as a little-endian `u32`. Everything else on the port is HTTP and does not
//! start so.

use bytes::{BufMut, Bytes, BytesMut};

use super::log::{Position, decode};
use crate::proto::replcluster::{self as pb, Frame, frame::Body};
use crate::protocol::{Mark, Message, Run};
use crate::view::{Checksum, Epoch, Index};

/// The first bytes of a peer connection.
pub const MAGIC: &[u8; 8] = b"REPLPEER";
/// Version of what follows the magic; another one is refused.
pub const FORMAT: u32 = 1;
/// No frame is longer, in bytes: a batch of entries is cut at 1 MiB, or is one entry.
pub const FRAME_MAX: usize = 20 << 20;

/// A peer sent something that is not of this protocol.
#[derive(Debug, thiserror::Error)]
pub enum BadFrame {
    /// Longer than [`FRAME_MAX`].
    #[error("a frame of {0} bytes")]
    TooLong(usize),
    /// Not the encoding we know.
    #[error("a frame that cannot be read: {0}")]
    Encoding(#[from] prost::DecodeError),
    /// Records that contradict their own checksums or the frame around them.
    #[error("records that cannot be read: {0}")]
    Records(String),
    /// A forwarded request that no node may order (R33).
    #[error("a forwarded request that cannot be ordered: {0}")]
    Request(String),
}

/// Appends a length and a message.
pub fn put(buffer: &mut BytesMut, message: &impl prost::Message) {
    let length = message.encoded_len();
    buffer.reserve(4 + length);
    buffer.put_u32_le(u32::try_from(length).expect("frames are bounded"));
    message.encode(buffer).expect("room was reserved");
}

/// A frame with its length before it.
#[must_use]
pub fn framed(epoch: Epoch, view: Checksum, body: Body) -> Bytes {
    let mut buffer = BytesMut::new();
    put(&mut buffer, &Frame { epoch: epoch.0, view: view.0, body: Some(body) });
    buffer.freeze()
}

/// Takes one length-preceded message off the front, if it is whole.
///
/// # Errors
/// [`BadFrame`] where the length is beyond the bound or the bytes do not decode.
pub fn take<M: prost::Message + Default>(buffer: &mut BytesMut) -> Result<Option<M>, BadFrame> {
    Ok(take_bytes(buffer, FRAME_MAX)?.map(M::decode).transpose()?)
}

/// The bytes of one length-preceded message off the front, if it is whole.
///
/// # Errors
/// [`BadFrame`] where the length is beyond `most`.
pub fn take_bytes(buffer: &mut BytesMut, most: usize) -> Result<Option<Bytes>, BadFrame> {
    let Some(prefix) = buffer.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*prefix) as usize;
    if length > most {
        return Err(BadFrame::TooLong(length));
    }
    if buffer.len() < 4 + length {
        buffer.reserve(4 + length - buffer.len());
        return Ok(None);
    }
    Ok(Some(buffer.split_to(4 + length).freeze().slice(4..)))
}

/// What an `Append` without entries becomes; one with entries is built where the entries are read (`link`).
#[must_use]
pub fn body_of(message: &Message) -> Body {
    match message {
        Message::Append { previous, last, commit, sent, .. } => {
            append_body(*previous, *last, previous.epoch, *commit, *sent, Bytes::new())
        }
        Message::Appended { durable, full, heard, disk } => {
            let (durable, full, heard, disk) = (durable.0, *full, *heard, *disk);
            Body::Appended(pb::Appended { durable, full, heard, disk })
        }
        Message::Report { commit, last } => Body::Report(pb::Report { commit: commit.0, last_index: last.0 }),
        Message::Ping => Body::Ping(pb::Ping {}),
        Message::Stale => Body::Stale(pb::Stale {}),
        Message::Transfer => Body::Transfer(pb::Transfer {}),
    }
}

/// Entries `(previous, last]` as they stand in the log.
#[must_use]
pub fn append_body(
    previous: Mark,
    last: Index,
    last_epoch: Epoch,
    commit: Index,
    sent: Option<u64>,
    records: Bytes,
) -> Body {
    Body::Append(pb::Append {
        previous_index: previous.index.0,
        previous_epoch: previous.epoch.0,
        last_index: last.0,
        last_epoch: last_epoch.0,
        commit: commit.0,
        sent,
        records,
    })
}

/// An `Append` as the protocol sees it, and the records beside it.
#[derive(Debug)]
pub struct Entries {
    /// The record frames, whole.
    pub frames: Bytes,
    /// Where each record begins in `frames`, by order; the first has the index `first`.
    pub starts: Vec<usize>,
    /// Positions of the records, by order.
    pub positions: Vec<Position>,
}

/// Reads and checks the records of an `Append`.
///
/// # Errors
/// [`BadFrame::Records`] where a checksum fails or indexes are not the ones announced.
pub fn open_append(append: pb::Append) -> Result<(Message, Option<Entries>), BadFrame> {
    let previous = Mark { index: Index(append.previous_index), epoch: Epoch(append.previous_epoch) };
    let last = Index(append.last_index);
    let (commit, sent) = (Index(append.commit), append.sent);
    let mut runs: Vec<Run> = Vec::new();
    let mut entries = Entries { frames: append.records.clone(), starts: Vec::new(), positions: Vec::new() };
    let mut rest = append.records;
    let mut expected = previous.index.next();
    while !rest.is_empty() {
        let start = entries.frames.len() - rest.len();
        let (record, chain) = decode(&mut rest)
            .map_err(|bad| BadFrame::Records(bad.to_string()))?
            .ok_or_else(|| BadFrame::Records("the last record is cut".to_owned()))?;
        if record.index != expected || runs.last().is_some_and(|run| run.epoch > record.epoch) {
            return Err(BadFrame::Records(format!("index {} where {expected} was due", record.index)));
        }
        if runs.last().is_none_or(|run| run.epoch != record.epoch) {
            runs.push(Run { epoch: record.epoch, first: record.index });
        }
        entries.starts.push(start);
        entries.positions.push(Position { index: record.index, epoch: record.epoch, chain });
        expected = expected.next();
    }
    if expected != last.next() {
        return Err(BadFrame::Records(format!("records end before {last}")));
    }
    let entries = (!entries.starts.is_empty()).then_some(entries);
    Ok((Message::Append { previous, runs, last, commit, sent }, entries))
}

impl Entries {
    /// The frames of the records `first..=last`, and the position of the last.
    ///
    /// # Panics
    /// Where they are not among these entries: the protocol asks for what it was just fed.
    #[must_use]
    pub fn slice(&self, first: Index, last: Index) -> (Bytes, Position) {
        let own_first = self.positions[0].index;
        let from = usize::try_from(first.0 - own_first.0).expect("bounded by the frame");
        let to = usize::try_from(last.0 - own_first.0).expect("bounded by the frame");
        let end = self.starts.get(to + 1).copied().unwrap_or(self.frames.len());
        // A copy: a slice would keep the whole buffer that the connection was read into.
        (Bytes::copy_from_slice(&self.frames[self.starts[from]..end]), self.positions[to])
    }
}
