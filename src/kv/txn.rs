//! Transactions: which path is taken, and whether it can be walked to its end. Both are decided before anything
//! is written, so that a refusal leaves nothing done.

use std::cmp::Ordering;

use super::backend::Backend;
use super::check::{Limits, check_txn, is_read_only};
use super::index::History;
use super::keys::KeyRange;
use super::refusal::Refusal;
use super::{Store, header};
use crate::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::response_op::Response;
use crate::proto::etcdserverpb::{
    Compare, PutRequest, RangeRequest, RequestOp, ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
};
use crate::proto::mvccpb::KeyValue;

/// The way through a transaction: all compares see the state before it, also those of the transactions inside.
pub(super) struct Path {
    succeeded: bool,
    /// One for every transaction among the operations of the branch that is taken, in order.
    inner: Vec<Path>,
}

impl Path {
    /// The operations to run, and whether the compares held.
    pub(super) fn branch<'r>(&self, request: &'r TxnRequest) -> &'r [RequestOp] {
        if self.succeeded { &request.success } else { &request.failure }
    }

    /// The answer of a transaction that took this path.
    pub(super) fn answer(&self, responses: Vec<ResponseOp>) -> TxnResponse {
        // As in etcd, only the outermost header is filled, by whoever knows that it is the outermost.
        TxnResponse { header: Some(ResponseHeader::default()), succeeded: self.succeeded, responses }
    }

    pub(super) fn inner(&self) -> std::slice::Iter<'_, Path> {
        self.inner.iter()
    }
}

impl<B: Backend> Store<B> {
    /// Answers a transaction for which [`is_read_only`] holds; any other belongs to [`Store::apply`].
    ///
    /// # Errors
    /// As [`Store::apply`].
    pub fn read_txn(&self, request: &TxnRequest) -> Result<TxnResponse, Refusal> {
        assert!(is_read_only(request), "a transaction with writes goes through apply");
        let path = self.path_of(request)?;
        let mut answer = self.read_branch(request, &path)?;
        answer.header = Some(header(self.revision));
        Ok(answer)
    }

    /// Everything that can be said against a transaction, and the path it takes if nothing can.
    pub(super) fn path_of(&self, request: &TxnRequest) -> Result<Path, Refusal> {
        check_txn(request, Limits::NONE)?;
        let path = self.compare_all(request);
        // etcd's order: first the puts of the whole path, then its ranges.
        let mut swept: Option<&[u8]> = None;
        self.check_path(request, &path, &mut |request| match request {
            Request::RequestPut(put) => {
                // The one way in which a put finds less than was there before: a delete without end went ahead of
                // it. etcd ends its process here.
                if keeps_something(put) && swept.is_some_and(|from| from <= &*put.key) {
                    return Err(Refusal::KeyNotFound);
                }
                self.check_kept(put)?;
                check_lease(put)
            }
            Request::RequestDeleteRange(delete) => {
                if let KeyRange::Span(from, None) = KeyRange::new(&delete.key, &delete.range_end) {
                    swept = swept.into_iter().chain([from]).min();
                }
                Ok(())
            }
            Request::RequestRange(_) | Request::RequestTxn(_) => Ok(()),
        })?;
        self.check_path(request, &path, &mut |request| match request {
            Request::RequestRange(range) => self.check_range_here(range),
            Request::RequestPut(_) | Request::RequestDeleteRange(_) | Request::RequestTxn(_) => Ok(()),
        })?;
        Ok(path)
    }

    /// Refuses to keep the value or lease of a key that does not exist.
    pub(super) fn check_kept(&self, request: &PutRequest) -> Result<(), Refusal> {
        let lives = || self.index.get(&request.key).and_then(History::live_now).is_some();
        if keeps_something(request) && !lives() { Err(Refusal::KeyNotFound) } else { Ok(()) }
    }

    /// What the state holds against a range inside a transaction. Unlike one outside, a negative revision is taken
    /// at its word.
    fn check_range_here(&self, request: &RangeRequest) -> Result<(), Refusal> {
        let requested = request.revision;
        if requested > self.revision {
            return Err(Refusal::FutureRevision { requested, current: self.revision });
        }
        if requested != 0 && requested < self.compact_revision {
            return Err(Refusal::Compacted { requested, compacted: self.compact_revision });
        }
        Ok(())
    }

    fn read_branch(&self, request: &TxnRequest, path: &Path) -> Result<TxnResponse, Refusal> {
        let mut inner = path.inner();
        let mut responses = Vec::new();
        for operation in path.branch(request) {
            let response = match &operation.request {
                Some(Request::RequestRange(range)) => {
                    Response::ResponseRange(self.range_as_of(range, self.revision)?)
                }
                Some(Request::RequestTxn(txn)) => {
                    let path = inner.next().expect("a path has one for each transaction inside");
                    Response::ResponseTxn(self.read_branch(txn, path)?)
                }
                Some(Request::RequestPut(_) | Request::RequestDeleteRange(_)) | None => {
                    unreachable!("checked to be read-only")
                }
            };
            responses.push(ResponseOp { response: Some(response) });
        }
        Ok(path.answer(responses))
    }

    fn compare_all(&self, request: &TxnRequest) -> Path {
        let succeeded = request.compare.iter().all(|compare| self.holds(compare));
        let branch = if succeeded { &request.success } else { &request.failure };
        let inner = branch.iter().filter_map(|operation| match &operation.request {
            Some(Request::RequestTxn(inner)) => Some(self.compare_all(inner)),
            Some(Request::RequestRange(_) | Request::RequestPut(_) | Request::RequestDeleteRange(_))
            | None => None,
        });
        Path { succeeded, inner: inner.collect() }
    }

    fn check_path<'r>(
        &self,
        request: &'r TxnRequest,
        path: &Path,
        check: &mut dyn FnMut(&'r Request) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let mut inner = path.inner();
        for operation in path.branch(request) {
            match &operation.request {
                Some(Request::RequestTxn(txn)) => {
                    let path = inner.next().expect("a path has one for each transaction inside");
                    self.check_path(txn, path, check)?;
                }
                Some(request) => check(request)?,
                None => return Err(Refusal::EmptyOperation),
            }
        }
        Ok(())
    }

    /// Must hold for every key of the range. Where there is none, a value compares with nothing and everything
    /// else with zero.
    fn holds(&self, compare: &Compare) -> bool {
        // Stateless on purpose: a compare that this program does not know must not read what it does not need.
        let by_value = compare.target == CompareTarget::Value as i32;
        let mut live = self
            .index
            .range(KeyRange::new(&compare.key, &compare.range_end))
            .filter_map(|(_, history)| history.live_now())
            .peekable();
        if live.peek().is_none() {
            return !by_value && compares(compare, &KeyValue::default());
        }
        let reads_record = by_value || compare.target == CompareTarget::Lease as i32;
        live.all(|(change, create_revision, version)| {
            if reads_record {
                return compares(compare, &self.read(change.at()));
            }
            let mod_revision = change.revision();
            compares(compare, &KeyValue { create_revision, mod_revision, version, ..KeyValue::default() })
        })
    }
}

/// There are no leases yet, so every lease is an unknown one.
pub(super) fn check_lease(request: &PutRequest) -> Result<(), Refusal> {
    if request.lease == 0 { Ok(()) } else { Err(Refusal::LeaseNotFound(request.lease)) }
}

fn keeps_something(request: &PutRequest) -> bool {
    request.ignore_value || request.ignore_lease
}

/// As etcd: a target that does not match the operand given compares with zero, a result that does not exist holds.
fn compares(compare: &Compare, kv: &KeyValue) -> bool {
    let operand = compare.target_union.as_ref();
    let ordering = match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Version) => kv.version.cmp(&match operand {
            Some(TargetUnion::Version(version)) => *version,
            _ => 0,
        }),
        Ok(CompareTarget::Create) => kv.create_revision.cmp(&match operand {
            Some(TargetUnion::CreateRevision(revision)) => *revision,
            _ => 0,
        }),
        Ok(CompareTarget::Mod) => kv.mod_revision.cmp(&match operand {
            Some(TargetUnion::ModRevision(revision)) => *revision,
            _ => 0,
        }),
        Ok(CompareTarget::Value) => (*kv.value).cmp(match operand {
            Some(TargetUnion::Value(value)) => &**value,
            _ => &[],
        }),
        Ok(CompareTarget::Lease) => kv.lease.cmp(&match operand {
            Some(TargetUnion::Lease(lease)) => *lease,
            _ => 0,
        }),
        Err(_) => Ordering::Equal,
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => ordering.is_eq(),
        Ok(CompareResult::Greater) => ordering.is_gt(),
        Ok(CompareResult::Less) => ordering.is_lt(),
        Ok(CompareResult::NotEqual) => ordering.is_ne(),
        Err(_) => true,
    }
}
