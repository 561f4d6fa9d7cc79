//! The operations of a transaction, taken out of it in order: borrowed where the request is, moved where it is owned.

use std::borrow::Cow;

use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};

/// One operation of the path.
#[derive(Debug)]
pub(super) enum Item<'m> {
    /// A transaction begins; what follows up to its end is in its answer.
    Begin {
        succeeded: bool,
    },
    End,
    Range(Cow<'m, RangeRequest>),
    Put(Cow<'m, PutRequest>),
    Delete(Cow<'m, DeleteRangeRequest>),
}

/// Operations of a branch that are not on the path yet.
#[derive(Debug)]
pub(super) enum Branch<'m> {
    Borrowed(std::slice::Iter<'m, RequestOp>),
    Owned(std::vec::IntoIter<RequestOp>),
}

pub(super) enum Operation<'m> {
    Item(Item<'m>),
    Inner(Cow<'m, TxnRequest>),
    Empty,
}

impl<'m> Branch<'m> {
    pub(super) fn of(request: Cow<'m, TxnRequest>, succeeded: bool) -> Branch<'m> {
        match request {
            Cow::Borrowed(request) => {
                Branch::Borrowed(if succeeded { request.success.iter() } else { request.failure.iter() })
            }
            Cow::Owned(request) => {
                Branch::Owned(if succeeded { request.success } else { request.failure }.into_iter())
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Branch::Borrowed(operations) => operations.len(),
            Branch::Owned(operations) => operations.len(),
        }
    }

    pub(super) fn next(&mut self) -> Option<Operation<'m>> {
        match self {
            Branch::Borrowed(operations) => operations.next().map(|operation| match &operation.request {
                Some(Request::RequestRange(range)) => Operation::Item(Item::Range(Cow::Borrowed(range))),
                Some(Request::RequestPut(put)) => Operation::Item(Item::Put(Cow::Borrowed(put))),
                Some(Request::RequestDeleteRange(delete)) => {
                    Operation::Item(Item::Delete(Cow::Borrowed(delete)))
                }
                Some(Request::RequestTxn(inner)) => Operation::Inner(Cow::Borrowed(inner)),
                None => Operation::Empty,
            }),
            Branch::Owned(operations) => operations.next().map(|operation| match operation.request {
                Some(Request::RequestRange(range)) => Operation::Item(Item::Range(Cow::Owned(range))),
                Some(Request::RequestPut(put)) => Operation::Item(Item::Put(Cow::Owned(put))),
                Some(Request::RequestDeleteRange(delete)) => {
                    Operation::Item(Item::Delete(Cow::Owned(delete)))
                }
                Some(Request::RequestTxn(inner)) => Operation::Inner(Cow::Owned(inner)),
                None => Operation::Empty,
            }),
        }
    }
}
