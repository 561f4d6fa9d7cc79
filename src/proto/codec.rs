//! The gRPC codec of all services: `prost`, except for transactions. Those are bounded on their bytes before anything
//! is built from them, so that neither a thread's stack nor memory depends on what a client sends, and are read as deep
//! as etcd reads them.

use std::any::Any;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Buf, Bytes};
use prost::Message;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::ProstEncoder;

use super::etcdserverpb::{TxnRequest, TxnResponse};
use super::nested::{Fault, NESTED_WEIGHT, Shape, decode, merge, scan};

/// etcd's text for a transaction with too many operations.
const TOO_MANY: &str = "etcdserver: too many operations in txn request";

/// The most operations that a node of this process accepts at the outermost level of a transaction. An operation takes
/// two bytes on the wire and two hundred in memory: what will be refused is not built first.
static OPERATIONS: AtomicUsize = AtomicUsize::new(128);

/// Has transactions of up to `operations` operations decoded. A node that accepts fewer refuses them itself.
pub fn admit_operations(operations: usize) {
    OPERATIONS.fetch_max(operations, Ordering::Relaxed);
}

/// See the head of the module.
pub struct BoundedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for BoundedCodec<T, U> {
    fn default() -> Self {
        BoundedCodec(PhantomData)
    }
}

impl<T, U> Codec for BoundedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> ProstEncoder<T> {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> BoundedDecoder<U> {
        BoundedDecoder(PhantomData)
    }
}

/// The reading half.
pub struct BoundedDecoder<U>(PhantomData<U>);

impl<U: Message + Default + Send + 'static> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let mut item = U::default();
        let any: &mut dyn Any = &mut item;
        if let Some(request) = any.downcast_mut::<TxnRequest>() {
            *request = decode_request(buffer.copy_to_bytes(buffer.remaining()))?;
        } else if let Some(answer) = any.downcast_mut::<TxnResponse>() {
            *answer = decode(buffer.copy_to_bytes(buffer.remaining())).map_err(refuse)?;
        } else {
            item.merge(buffer).map_err(|error| Status::internal(error.to_string()))?;
        }
        Ok(Some(item))
    }
}

fn decode_request(bytes: Bytes) -> Result<TxnRequest, Status> {
    let shape: Shape = scan::<TxnRequest>(&bytes).map_err(refuse)?;
    if shape.outermost > OPERATIONS.load(Ordering::Relaxed) || shape.weight > NESTED_WEIGHT {
        return Err(Status::invalid_argument(TOO_MANY));
    }
    merge(TxnRequest::default(), bytes, shape).map_err(refuse)
}

fn refuse(fault: Fault) -> Status {
    match fault {
        // As the generated code does.
        Fault::Malformed => Status::internal(fault.to_string()),
        Fault::TooDeep => Status::invalid_argument(TOO_MANY),
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn operations_that_will_be_refused_are_not_built() {
        let empty_operations = Bytes::from([0x12, 0].repeat(700_000));
        let refused = decode_request(empty_operations).unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, TOO_MANY));
        assert!(decode_request(Bytes::from([0x12, 0].repeat(128))).is_ok());
    }

    #[test]
    fn operations_inside_are_bounded_by_number_and_depth() {
        let mut operation = vec![0x22];
        prost::encoding::encode_varint(2 * 40_000, &mut operation);
        operation.extend([0x12, 0].repeat(40_000));
        let mut transaction = vec![0x12];
        prost::encoding::encode_varint(operation.len() as u64, &mut transaction);
        transaction.extend(operation);
        let refused = decode_request(transaction.into()).unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, TOO_MANY));
    }
}
