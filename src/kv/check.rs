//! What can be refused by looking at a request alone. `api` asks before it proposes, so that what cannot succeed
//! never reaches the log; `apply` asks again and trusts nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::keys::KeyRange;
use super::refusal::Refusal;
use crate::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};
use crate::proto::replcluster::{Mutation, mutation};

/// What a node is willing to accept, beyond what makes sense at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most compares, operations of success or operations of failure in a transaction; one inside another gets
    /// what the outer leaves.
    pub operations: usize,
}

impl Limits {
    /// etcd's: 128 operations.
    pub const DEFAULT: Limits = Limits { operations: 128 };
    /// Everything that makes sense. Used where a limit would have to be the same on every node.
    pub const NONE: Limits = Limits { operations: usize::MAX };
}

/// Checks a mutation without looking at the store.
///
/// # Errors
/// The same [`Refusal`] that `apply` would come to, or [`Refusal::TooManyOperations`], which only this knows.
pub fn check(mutation: &Mutation, limits: Limits) -> Result<(), Refusal> {
    match &mutation.request {
        Some(mutation::Request::Put(request)) => check_put(request),
        Some(mutation::Request::DeleteRange(request)) => check_delete_range(request),
        Some(mutation::Request::Txn(request)) => check_txn(request, limits),
        Some(
            mutation::Request::Compact(_) | mutation::Request::Space(_) | mutation::Request::FeatureLevel(_),
        ) => Ok(()),
        None => Err(Refusal::EmptyMutation),
    }
}

/// Checks a range request without looking at the store.
///
/// # Errors
/// [`Refusal::EmptyKey`], [`Refusal::InvalidSort`].
pub fn check_range(request: &RangeRequest) -> Result<(), Refusal> {
    key_given(&request.key)?;
    let sort_exists =
        SortOrder::try_from(request.sort_order).is_ok() && SortTarget::try_from(request.sort_target).is_ok();
    if sort_exists { Ok(()) } else { Err(Refusal::InvalidSort) }
}

/// Checks a transaction without looking at the store.
///
/// # Errors
/// The first [`Refusal`] that one of its operations meets, or that the whole does.
pub fn check_txn(request: &TxnRequest, limits: Limits) -> Result<(), Refusal> {
    check_operations(request, limits.operations)?;
    changes_of(&request.success)?;
    changes_of(&request.failure)?;
    Ok(())
}

/// True where a transaction holds no write on any path, so that any node may answer it from what it has.
#[must_use]
pub fn is_read_only(request: &TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).all(|operation| match &operation.request {
        Some(Request::RequestRange(_)) => true,
        Some(Request::RequestTxn(inner)) => is_read_only(inner),
        Some(Request::RequestPut(_) | Request::RequestDeleteRange(_)) | None => false,
    })
}

fn check_put(request: &PutRequest) -> Result<(), Refusal> {
    key_given(&request.key)?;
    if request.ignore_value && !request.value.is_empty() {
        return Err(Refusal::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Refusal::LeaseProvided);
    }
    Ok(())
}

fn check_delete_range(request: &DeleteRangeRequest) -> Result<(), Refusal> {
    key_given(&request.key)
}

fn key_given(key: &[u8]) -> Result<(), Refusal> {
    if key.is_empty() { Err(Refusal::EmptyKey) } else { Ok(()) }
}

fn check_operations(request: &TxnRequest, allowed: usize) -> Result<(), Refusal> {
    let given = request.compare.len().max(request.success.len()).max(request.failure.len());
    let Some(left) = allowed.checked_sub(given) else {
        return Err(Refusal::TooManyOperations { given, allowed });
    };
    for compare in &request.compare {
        key_given(&compare.key)?;
    }
    for operation in request.success.iter().chain(&request.failure) {
        match &operation.request {
            Some(Request::RequestRange(request)) => check_range(request)?,
            Some(Request::RequestPut(request)) => check_put(request)?,
            Some(Request::RequestDeleteRange(request)) => check_delete_range(request)?,
            Some(Request::RequestTxn(request)) => check_operations(request, left)?,
            None => return Err(Refusal::EmptyOperation),
        }
    }
    Ok(())
}

/// What some operations may change, on whichever path.
#[derive(Default)]
struct Changes<'a> {
    puts: BTreeSet<&'a [u8]>,
    deletes: Deletes<'a>,
}

/// Collects the changes of operations that run one after the other, and refuses two that put the same key, or put
/// and delete it. Deleting it twice is harmless, and the branches of one transaction exclude each other.
///
/// This is etcd's rule with what it lets pass: a delete without end meets nothing, and a delete in a transaction
/// inside does not meet a put in one before it. Whoever relies on that finds the operations carried out in order.
fn changes_of(operations: &[RequestOp]) -> Result<Changes<'_>, Refusal> {
    let mut all = Changes::default();
    for operation in operations {
        if let Some(Request::RequestDeleteRange(request)) = &operation.request {
            all.deletes.add(KeyRange::new(&request.key, &request.range_end));
        }
    }
    for operation in operations {
        if let Some(Request::RequestTxn(inner)) = &operation.request {
            let mut either = changes_of(&inner.success)?;
            either.merge(changes_of(&inner.failure)?);
            if either.puts.iter().any(|key| all.meets(key)) {
                return Err(Refusal::DuplicateKey);
            }
            all.merge(either);
        }
    }
    for operation in operations {
        if let Some(Request::RequestPut(request)) = &operation.request {
            if all.meets(&request.key) {
                return Err(Refusal::DuplicateKey);
            }
            all.puts.insert(&request.key);
        }
    }
    Ok(all)
}

impl<'a> Changes<'a> {
    fn len(&self) -> usize {
        self.puts.len() + self.deletes.keys.len() + self.deletes.spans.len()
    }

    fn meets(&self, put: &[u8]) -> bool {
        self.puts.contains(put) || self.deletes.contain(put)
    }

    fn merge(&mut self, mut other: Changes<'a>) {
        // The smaller into the larger: through however many levels a key comes, it is moved a few times.
        if self.len() < other.len() {
            std::mem::swap(self, &mut other);
        }
        self.puts.extend(other.puts);
        self.deletes.keys.extend(other.deletes.keys);
        for (from, to) in other.deletes.spans {
            self.deletes.add_span(from, to);
        }
    }
}

/// Deleted keys. A request of a megabyte can hold a hundred thousand deletes and as many puts: one look-up has to
/// tell whether they meet.
#[derive(Default)]
struct Deletes<'a> {
    keys: BTreeSet<&'a [u8]>,
    /// Start to end, exclusive. Never overlapping nor touching.
    spans: BTreeMap<&'a [u8], &'a [u8]>,
}

impl<'a> Deletes<'a> {
    fn contain(&self, key: &[u8]) -> bool {
        self.keys.contains(key) || self.last_from(key).is_some_and(|(_, to)| key < to)
    }

    fn add(&mut self, range: KeyRange<'a>) {
        match range {
            KeyRange::One(key) => {
                self.keys.insert(key);
            }
            KeyRange::Span(from, Some(to)) if from < to => self.add_span(from, to),
            KeyRange::Span(_, Some(_) | None) => {}
        }
    }

    fn add_span(&mut self, mut from: &'a [u8], mut to: &'a [u8]) {
        // Takes in every span that touches this one, the last first: the first that ends before this one starts
        // ends the search, because none overlap.
        while let Some((start, end)) = self.last_from(to).filter(|(_, end)| from <= *end) {
            self.spans.remove(start);
            (from, to) = (from.min(start), to.max(end));
        }
        self.spans.insert(from, to);
    }

    /// The last span that starts at or before `key`.
    fn last_from(&self, key: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
        let up_to = (Bound::Unbounded, Bound::Included(key));
        self.spans.range::<[u8], _>(up_to).next_back().map(|(from, to)| (*from, *to))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::proto::etcdserverpb::Compare;

    fn operation(request: Request) -> RequestOp {
        RequestOp { request: Some(request) }
    }

    fn range() -> RequestOp {
        operation(Request::RequestRange(RangeRequest { key: "k".into(), ..RangeRequest::default() }))
    }

    fn key(number: usize) -> Bytes {
        format!("{number:06}").into()
    }

    fn put(number: usize) -> RequestOp {
        operation(Request::RequestPut(PutRequest { key: key(number), ..PutRequest::default() }))
    }

    fn delete(from: usize, to: usize) -> RequestOp {
        let request = DeleteRangeRequest { key: key(from), range_end: key(to), prev_kv: false };
        operation(Request::RequestDeleteRange(request))
    }

    fn txn(success: Vec<RequestOp>) -> TxnRequest {
        TxnRequest { success, ..TxnRequest::default() }
    }

    #[test]
    fn a_transaction_holds_as_many_operations_as_allowed_and_no_more() {
        let allowed = 128;
        assert_eq!(check_txn(&txn(vec![range(); 128]), Limits::DEFAULT), Ok(()));
        let refused = Err(Refusal::TooManyOperations { given: 129, allowed });
        assert_eq!(check_txn(&txn(vec![range(); 129]), Limits::DEFAULT), refused);
        let failure = TxnRequest { failure: vec![range(); 129], ..TxnRequest::default() };
        assert_eq!(check_txn(&failure, Limits::DEFAULT), refused);
        let compare = Compare { key: "k".into(), ..Compare::default() };
        let compares = TxnRequest { compare: vec![compare; 129], ..TxnRequest::default() };
        assert_eq!(check_txn(&compares, Limits::DEFAULT), refused);
        assert_eq!(check_txn(&compares, Limits::NONE), Ok(()));
    }

    #[test]
    fn a_transaction_inside_has_what_the_outer_leaves() {
        let inner = |operations| operation(Request::RequestTxn(txn(vec![range(); operations])));
        let outer = |inner: RequestOp| {
            let mut operations = vec![range(); 99];
            operations.push(inner);
            txn(operations)
        };
        assert_eq!(check_txn(&outer(inner(28)), Limits::DEFAULT), Ok(()));
        let refused = Err(Refusal::TooManyOperations { given: 29, allowed: 28 });
        assert_eq!(check_txn(&outer(inner(29)), Limits::DEFAULT), refused);
    }

    #[test]
    fn deleted_spans_are_joined_where_they_touch() {
        let mut deletes = Deletes::default();
        for (from, to) in [("d", "f"), ("a", "b"), ("m", "p"), ("b", "c"), ("e", "g"), ("x", "a")] {
            deletes.add(KeyRange::new(from.as_bytes(), to.as_bytes()));
        }
        let spans = |deletes: &Deletes<'_>| {
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            deletes.spans.iter().map(|(from, to)| format!("{}-{}", text(from), text(to))).collect::<Vec<_>>()
        };
        assert_eq!(spans(&deletes), ["a-c", "d-g", "m-p"]);
        deletes.add(KeyRange::new(b"bb", b"n"));
        assert_eq!(spans(&deletes), ["a-p"]);
        assert!(deletes.contain(b"a") && deletes.contain(b"oz"));
        assert!(!deletes.contain(b"A") && !deletes.contain(b"p"));
    }

    #[test]
    fn a_hundred_thousand_puts_and_spans_are_compared_without_meeting_each_other() {
        // Every pair looked at would be ten thousand million comparisons.
        let mut operations: Vec<RequestOp> = (0..100_000).map(|number| put(number * 2)).collect();
        operations.extend((0..100_000).map(|number| delete(number * 2 + 1, number * 2 + 2)));
        assert_eq!(check_txn(&txn(operations.clone()), Limits::NONE), Ok(()));
        operations.push(put(777));
        assert_eq!(check_txn(&txn(operations), Limits::NONE), Err(Refusal::DuplicateKey));
    }
}
