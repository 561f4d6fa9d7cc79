//! The bytes of a mutation. What is logged is what was shown to decode; what cannot be decoded is refused, by each node
//! for the same reason.

use bytes::Bytes;
use prost::Message as _;
use prost::encoding::{WireType, decode_key, decode_varint};

use super::refusal::Refusal;
use crate::proto::etcdserverpb::TxnRequest;
use crate::proto::nested::{self, Fault, NESTED_WEIGHT, Shape};
use crate::proto::replcluster::{Mutation, mutation};

/// The field of a mutation that holds a transaction.
const TXN: u32 = 3;

/// The bytes to be logged, shown to decode.
///
/// # Errors
/// [`Refusal::TooDeep`].
pub fn encode(mutation: &Mutation) -> Result<Bytes, Refusal> {
    let bytes = Bytes::from(mutation.encode_to_vec());
    match &mutation.request {
        // Without transactions inside nothing can stand too deep.
        Some(
            mutation::Request::Put(_)
            | mutation::Request::DeleteRange(_)
            | mutation::Request::Compact(_)
            | mutation::Request::Space(_)
            | mutation::Request::FeatureLevel(_),
        )
        | None => {}
        Some(mutation::Request::Txn(_)) => {
            let (_, content) = only_field(&bytes).ok_or(Refusal::Undecodable)?;
            let shape = shape_of(content, 1)?;
            if !shape.is_shallow() {
                decode(&bytes, 1)?;
            }
        }
    }
    Ok(bytes)
}

/// Reads a mutation: one of this node's clients, one that another node has forwarded, or a committed one. Bounded in
/// depth whatever the bytes are; from feature level 1 on also in what stands in transactions inside transactions.
///
/// # Errors
/// [`Refusal::Undecodable`], [`Refusal::TooDeep`]; the same on every node that is at the same level.
pub fn decode(bytes: &Bytes, level: u32) -> Result<Mutation, Refusal> {
    if let Some((field, content)) = only_field(bytes)
        && (field != TXN || shape_of(content, level)?.is_shallow())
    {
        return Mutation::decode(bytes.clone()).map_err(|_| Refusal::Undecodable);
    }
    let mut fields = bytes.clone();
    let mut mutation = Mutation::default();
    // A field may come again, and is then added to what stood before: the bound is on all of it.
    let mut weight = 0_usize;
    while !fields.is_empty() {
        let field = nested::field(&mut fields).map_err(|_| Refusal::Undecodable)?;
        match field.content {
            Some(content) if field.number == TXN => {
                let before = match mutation.request.take() {
                    Some(mutation::Request::Txn(before)) => before,
                    Some(
                        mutation::Request::Put(_)
                        | mutation::Request::DeleteRange(_)
                        | mutation::Request::Compact(_)
                        | mutation::Request::Space(_)
                        | mutation::Request::FeatureLevel(_),
                    )
                    | None => TxnRequest::default(),
                };
                let shape = shape_of(&content, level)?;
                weight += shape.weight;
                if level >= 1 && weight > NESTED_WEIGHT {
                    return Err(Refusal::TooDeep);
                }
                let txn = nested::merge(before, content, shape).map_err(refuse)?;
                mutation.request = Some(mutation::Request::Txn(txn));
            }
            Some(_) | None => mutation.merge(field.whole).map_err(|_| Refusal::Undecodable)?,
        }
    }
    Ok(mutation)
}

/// The number and the content of the one field that there is, as in everything that [`encode`] makes.
fn only_field(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let mut rest = bytes;
    let (number, wire) = decode_key(&mut rest).ok()?;
    let length = (wire == WireType::LengthDelimited).then(|| decode_varint(&mut rest).ok())??;
    (length == rest.len() as u64).then_some((number, rest))
}

fn shape_of(bytes: &[u8], level: u32) -> Result<Shape, Refusal> {
    let shape = nested::scan::<TxnRequest>(bytes).map_err(refuse)?;
    if level >= 1 && shape.weight > NESTED_WEIGHT { Err(Refusal::TooDeep) } else { Ok(shape) }
}

fn refuse(fault: Fault) -> Refusal {
    match fault {
        Fault::Malformed => Refusal::Undecodable,
        Fault::TooDeep => Refusal::TooDeep,
    }
}
