//! Transactions inside transactions, read from bytes without recursion.
//!
//! `prost` decodes by recursion and stops at 100 messages inside each other. A transaction takes two for each level,
//! and one more where it stands in a log entry: what decodes as a request need not decode as an entry, and what etcd
//! carries out need not decode at all. So [`scan`] first walks the bytes, iteratively and without allocating, and
//! bounds what it finds; what is shallow is then left to `prost`, and [`decode`] builds what is not.
//!
//! # Bounds
//! * [`DEPTH`]: what etcd's limit of 128 operations allows, which transactions inside share. It holds for any limit:
//!   check, apply, encoding and drop of a decoded transaction recurse, and a thread's stack must hold that.
//! * [`NESTED_WEIGHT`]: the operations and compares of transactions inside, each counted as often as it is deep. It
//!   bounds what costs more than the bytes of the request: lengths computed anew at each level, sets merged.

use bytes::{Buf, Bytes};
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use super::etcdserverpb::{
    RequestOp, ResponseOp, TxnRequest, TxnResponse, request_op::Request, response_op::Response,
};

/// Most transactions inside each other, the outermost included: 128 that hold an operation each, and an empty one.
pub const DEPTH: usize = 129;
/// Most operations and compares of transactions inside others, each counted as often as it is deep.
pub const NESTED_WEIGHT: usize = 1 << 16;
/// Up to here `prost` can decode on its own, also inside a log entry, and with room for what it skips.
const SHALLOW: usize = 40;
/// The field of an operation, in requests and in answers, that holds a transaction.
const INNER: u32 = 4;

/// Why bytes are no transaction that is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// They are no message of this type.
    #[error("the bytes are no transaction")]
    Malformed,
    /// More than [`DEPTH`] transactions inside each other.
    #[error("transactions stand too deep inside each other")]
    TooDeep,
}

/// What a scan has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Transactions inside each other, the outermost included.
    pub depth: usize,
    /// Compares, operations of success or operations of failure of the outermost, whichever are most.
    pub outermost: usize,
    /// Operations and compares of those inside, each counted as often as it is deep.
    pub weight: usize,
}

impl Shape {
    /// True where the generated code decodes what it encodes.
    #[must_use]
    pub fn is_shallow(self) -> bool {
        self.depth <= SHALLOW
    }
}

/// A message that may hold others of its kind, one in each of its operations.
pub trait Nested: Message + Default + 'static {
    /// What it has a list of.
    type Operation: Message + Default;
    /// The fields that hold such lists.
    const LISTS: &'static [u32];
    /// Adds an operation to a list.
    fn push(&mut self, list: u32, operation: Self::Operation);
    /// Takes out what an operation holds, if that is a transaction.
    fn take_inner(operation: &mut Self::Operation) -> Option<Self>;
    /// Makes an operation hold a transaction.
    fn set_inner(operation: &mut Self::Operation, inner: Self);
}

impl Nested for TxnRequest {
    type Operation = RequestOp;
    const LISTS: &'static [u32] = &[2, 3];

    fn push(&mut self, list: u32, operation: RequestOp) {
        if list == 2 { self.success.push(operation) } else { self.failure.push(operation) }
    }

    fn take_inner(operation: &mut RequestOp) -> Option<TxnRequest> {
        match operation.request.take() {
            Some(Request::RequestTxn(inner)) => Some(inner),
            Some(Request::RequestRange(_) | Request::RequestPut(_) | Request::RequestDeleteRange(_))
            | None => None,
        }
    }

    fn set_inner(operation: &mut RequestOp, inner: TxnRequest) {
        operation.request = Some(Request::RequestTxn(inner));
    }
}

impl Nested for TxnResponse {
    type Operation = ResponseOp;
    const LISTS: &'static [u32] = &[3];

    fn push(&mut self, _: u32, operation: ResponseOp) {
        self.responses.push(operation);
    }

    fn take_inner(operation: &mut ResponseOp) -> Option<TxnResponse> {
        match operation.response.take() {
            Some(Response::ResponseTxn(inner)) => Some(inner),
            Some(
                Response::ResponseRange(_) | Response::ResponsePut(_) | Response::ResponseDeleteRange(_),
            )
            | None => None,
        }
    }

    fn set_inner(operation: &mut ResponseOp, inner: TxnResponse) {
        operation.response = Some(Response::ResponseTxn(inner));
    }
}

/// Walks an encoded transaction and says how it is nested. Allocates nothing.
///
/// # Errors
/// [`Fault`].
pub fn scan<T: Nested>(bytes: &[u8]) -> Result<Shape, Fault> {
    let mut shape = Shape { depth: 1, ..Shape::default() };
    let mut outermost = [0_usize; 4];
    // How many bytes were left where each message around ends: transactions at even places, operations at odd ones.
    let mut ends = [0_u32; 2 * DEPTH];
    let mut level = 0;
    let mut rest = bytes;
    loop {
        let end = ends[level] as usize;
        if rest.len() == end {
            let Some(around) = level.checked_sub(1) else { break };
            level = around;
            continue;
        }
        let (number, wire) = decode_key(&mut rest).map_err(|_| Fault::Malformed)?;
        if wire != WireType::LengthDelimited {
            skip(wire, number, &mut rest)?;
        } else {
            let length = length(&mut rest)?;
            let inner_end = rest.len() - length;
            if inner_end < end {
                return Err(Fault::Malformed);
            }
            let is_transaction = level % 2 == 0;
            if is_transaction && (number == 1 || T::LISTS.contains(&number)) {
                if level == 0 {
                    outermost[number as usize] += 1;
                } else {
                    shape.weight += level / 2 + 1;
                }
            }
            let is_inside = if is_transaction { T::LISTS.contains(&number) } else { number == INNER };
            if is_inside {
                level += 1;
                if level == ends.len() {
                    return Err(Fault::TooDeep);
                }
                shape.depth = shape.depth.max(level / 2 + 1);
                // gRPC's own lengths have 32 bits, and those of the log fewer.
                ends[level] = u32::try_from(inner_end).map_err(|_| Fault::Malformed)?;
            } else {
                rest.advance(length);
            }
        }
        if rest.len() < ends[level] as usize {
            return Err(Fault::Malformed);
        }
    }
    shape.outermost = outermost.into_iter().max().unwrap_or_default();
    Ok(shape)
}

/// Adds what the bytes hold to `into`, as the generated code does: lists grow, single values are replaced. `shape` is
/// what [`scan`] found in them.
///
/// # Errors
/// [`Fault`].
pub fn merge<T: Nested>(into: T, bytes: Bytes, shape: Shape) -> Result<T, Fault> {
    if shape.is_shallow() {
        let mut into = into;
        into.merge(bytes).map_err(|_| Fault::Malformed)?;
        return Ok(into);
    }
    if shape.depth > DEPTH {
        return Err(Fault::TooDeep);
    }
    build(into, bytes)
}

/// Scans and decodes. For bytes that nothing else bounds; requests are bounded by what [`scan`] says first.
///
/// # Errors
/// [`Fault`].
pub fn decode<T: Nested>(bytes: Bytes) -> Result<T, Fault> {
    let shape = scan::<T>(&bytes)?;
    merge(T::default(), bytes, shape)
}

/// A transaction under construction: what of it is not read yet, and the operation that is being read.
struct Frame<T: Nested> {
    transaction: T,
    rest: Bytes,
    open: Option<Open<T>>,
}

struct Open<T: Nested> {
    list: u32,
    operation: T::Operation,
    rest: Bytes,
}

impl<T: Nested> Frame<T> {
    fn new(transaction: T, rest: Bytes) -> Frame<T> {
        Frame { transaction, rest, open: None }
    }
}

fn build<T: Nested>(into: T, bytes: Bytes) -> Result<T, Fault> {
    let mut around: Vec<Frame<T>> = Vec::new();
    let mut frame = Frame::new(into, bytes);
    loop {
        if let Some(open) = &mut frame.open {
            if open.rest.is_empty() {
                let Some(done) = frame.open.take() else { continue };
                frame.transaction.push(done.list, done.operation);
                continue;
            }
            match field(&mut open.rest)? {
                Field { number: INNER, content: Some(content), .. } => {
                    let inner = T::take_inner(&mut open.operation).unwrap_or_default();
                    around.push(std::mem::replace(&mut frame, Frame::new(inner, content)));
                }
                Field { whole, .. } => open.operation.merge(whole).map_err(|_| Fault::Malformed)?,
            }
        } else if frame.rest.is_empty() {
            let Some(mut outer) = around.pop() else { return Ok(frame.transaction) };
            if let Some(open) = &mut outer.open {
                T::set_inner(&mut open.operation, frame.transaction);
            }
            frame = outer;
        } else {
            match field(&mut frame.rest)? {
                Field { number, content: Some(content), .. } if T::LISTS.contains(&number) => {
                    let operation = T::Operation::default();
                    frame.open = Some(Open { list: number, operation, rest: content });
                }
                Field { whole, .. } => frame.transaction.merge(whole).map_err(|_| Fault::Malformed)?,
            }
        }
    }
}

/// One field of a message.
pub struct Field {
    /// Its number.
    pub number: u32,
    /// What a field with a length holds.
    pub content: Option<Bytes>,
    /// All of it, from its number on.
    pub whole: Bytes,
}

/// Takes the next field from bytes that are not empty.
///
/// # Errors
/// [`Fault::Malformed`].
pub fn field(bytes: &mut Bytes) -> Result<Field, Fault> {
    let mut rest = &bytes[..];
    let (number, wire) = decode_key(&mut rest).map_err(|_| Fault::Malformed)?;
    let mut content = None;
    if wire == WireType::LengthDelimited {
        let length = length(&mut rest)?;
        let start = bytes.len() - rest.len();
        content = Some(bytes.slice(start..start + length));
        rest.advance(length);
    } else {
        skip(wire, number, &mut rest)?;
    }
    let whole = bytes.split_to(bytes.len() - rest.len());
    Ok(Field { number, content, whole })
}

fn skip(wire: WireType, number: u32, rest: &mut &[u8]) -> Result<(), Fault> {
    skip_field(wire, number, rest, DecodeContext::default()).map_err(|_| Fault::Malformed)
}

/// A length that lies within what is left.
fn length(rest: &mut &[u8]) -> Result<usize, Fault> {
    let length = decode_varint(rest).map_err(|_| Fault::Malformed)?;
    usize::try_from(length).ok().filter(|length| *length <= rest.len()).ok_or(Fault::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::etcdserverpb::{Compare, PutRequest, RangeResponse};

    fn put(key: &'static str) -> RequestOp {
        let put = PutRequest { key: key.into(), value: "v".into(), ..PutRequest::default() };
        RequestOp { request: Some(Request::RequestPut(put)) }
    }

    /// So many transactions inside each other, a put in the innermost.
    fn nest(depth: usize) -> TxnRequest {
        let mut txn = TxnRequest { success: vec![put("k")], ..TxnRequest::default() };
        for _ in 1..depth {
            let operation = RequestOp { request: Some(Request::RequestTxn(txn)) };
            txn = TxnRequest { success: vec![put("a"), operation], failure: vec![put("b")], compare: vec![] };
        }
        txn
    }

    fn bytes(message: &impl Message) -> Bytes {
        message.encode_to_vec().into()
    }

    #[test]
    fn a_scan_finds_depth_width_and_weight() {
        let mut txn = nest(3);
        txn.compare = vec![Compare::default(); 5];
        let shape = scan::<TxnRequest>(&bytes(&txn)).unwrap();
        // Level 2 holds three operations, level 3 one.
        assert_eq!(shape, Shape { depth: 3, outermost: 5, weight: 3 * 2 + 3 });
    }

    #[test]
    fn what_is_built_is_what_was_encoded_at_every_depth() {
        for depth in [1, 2, SHALLOW, SHALLOW + 1, 49, 50, DEPTH] {
            let txn = nest(depth);
            assert_eq!(decode::<TxnRequest>(bytes(&txn)).as_ref(), Ok(&txn), "depth {depth}");
            assert_eq!(build(TxnRequest::default(), bytes(&txn)).as_ref(), Ok(&txn), "depth {depth}");
        }
        assert_eq!(decode::<TxnRequest>(bytes(&nest(DEPTH + 1))), Err(Fault::TooDeep));
    }

    #[test]
    fn an_answer_is_read_as_deep_as_a_request() {
        let mut txn = TxnResponse::default();
        for _ in 1..DEPTH {
            let range = RangeResponse { count: 7, ..RangeResponse::default() };
            let range = ResponseOp { response: Some(Response::ResponseRange(range)) };
            let inner = ResponseOp { response: Some(Response::ResponseTxn(txn)) };
            txn = TxnResponse { succeeded: true, responses: vec![range, inner], ..TxnResponse::default() };
        }
        assert!(TxnResponse::decode(bytes(&txn)).is_err(), "the generated code cannot");
        assert_eq!(decode::<TxnResponse>(bytes(&txn)), Ok(txn));
    }

    /// Both decoders on bytes that are nearly right: cut, changed, doubled.
    #[test]
    fn both_decoders_agree_on_damaged_bytes() {
        use rand::{RngExt, SeedableRng};
        let mut random = rand::rngs::StdRng::seed_from_u64(7);
        for round in 0..20_000 {
            let mut damaged = nest(random.random_range(1..6)).encode_to_vec();
            for _ in 0..random.random_range(0..4) {
                let at = random.random_range(0..damaged.len());
                match random.random_range(0..4) {
                    0 => damaged[at] = random.random(),
                    1 => drop(damaged.remove(at)),
                    2 => damaged.insert(at, [0x0a, 0x12, 0x1a, 0x22, 0x0b, 0x0c][random.random_range(0..6)]),
                    _ => damaged.extend_from_within(at..),
                }
                if damaged.is_empty() {
                    break;
                }
            }
            let damaged = Bytes::from(damaged);
            let theirs = TxnRequest::decode(damaged.clone()).map_err(|_| Fault::Malformed);
            assert_eq!(
                build(TxnRequest::default(), damaged.clone()),
                theirs,
                "round {round}: {damaged:02x?}"
            );
            assert_eq!(decode::<TxnRequest>(damaged.clone()), theirs, "round {round}: {damaged:02x?}");
        }
    }

    #[test]
    fn lengths_and_groups_that_lead_outside_are_refused() {
        for bad in
            [&b"\x12\x7f"[..], b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x12\x04\x22\x09\0\0"]
        {
            assert_eq!(scan::<TxnRequest>(bad), Err(Fault::Malformed), "{bad:02x?}");
        }
        // A million groups inside each other are not a million calls inside each other.
        assert_eq!(decode::<TxnRequest>(vec![0x0b; 1 << 20].into()), Err(Fault::Malformed));
    }

    #[test]
    fn a_megabyte_of_levels_is_refused_by_the_scan() {
        // Each level in front of the rest: lengths grow, so it is built from the inside.
        let mut reversed: Vec<u8> = Vec::new();
        for _ in 0..100_000 {
            for tag in [0x22, 0x12] {
                let mut head = vec![tag];
                prost::encoding::encode_varint(reversed.len() as u64, &mut head);
                reversed.extend(head.iter().rev());
            }
        }
        reversed.reverse();
        assert_eq!(decode::<TxnRequest>(reversed.into()), Err(Fault::TooDeep));
    }
}
