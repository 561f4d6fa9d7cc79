//! Carrying out a mutation: one revision for everything it changes, none where it changes nothing.

use bytes::Bytes;

use super::backend::{Backend, RevisionKey};
use super::check::{Limits, check};
use super::index::History;
use super::keys::KeyRange;
use super::record;
use super::refusal::Refusal;
use super::txn::{Path, check_lease};
use super::{SPACE_ALARM, Store, header};
use crate::proto::etcdserverpb::request_op::{self, Request};
use crate::proto::etcdserverpb::response_op::Response;
use crate::proto::etcdserverpb::{
    CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RequestOp,
    ResponseOp, TxnRequest, TxnResponse,
};
use crate::proto::mvccpb::KeyValue;
use crate::proto::replcluster::{Mutation, SpaceAlarm, mutation};

/// What a mutation did. Headers hold the revision and nothing else.
#[derive(Clone, Debug, PartialEq)]
pub enum Applied {
    /// Answer to a put.
    Put(PutResponse),
    /// Answer to a delete.
    DeleteRange(DeleteRangeResponse),
    /// Answer to a transaction.
    Txn(TxnResponse),
    /// Answer to a compaction: its effect is there, the removal may still be under way.
    Compact(CompactionResponse),
    /// The space alarm is as it should be.
    SpaceAlarm,
}

impl<B: Backend> Store<B> {
    /// Carries out one mutation. The same mutations in the same order give the same answers, refusals and records
    /// on every node.
    ///
    /// # Errors
    /// A [`Refusal`]; nothing was done then, and no revision was used.
    pub fn apply(&mut self, mutation: &Mutation) -> Result<Applied, Refusal> {
        if self.space_alarm && grows(mutation) {
            return Err(Refusal::SpaceExceeded);
        }
        match &mutation.request {
            Some(mutation::Request::Put(request)) => {
                check(mutation, Limits::NONE)?;
                // Inside a transaction it is the other way round, in etcd and so here.
                check_lease(request)?;
                self.check_kept(request)?;
                Ok(Applied::Put(self.write(|write| write.put(request))))
            }
            Some(mutation::Request::DeleteRange(request)) => {
                check(mutation, Limits::NONE)?;
                Ok(Applied::DeleteRange(self.write(|write| write.delete_range(request))))
            }
            Some(mutation::Request::Txn(request)) => {
                let path = self.path_of(request)?;
                Ok(Applied::Txn(self.write(|write| {
                    let mut answer = write.branch(request, &path);
                    answer.header = Some(header(write.newest()));
                    answer
                })))
            }
            Some(mutation::Request::Compact(request)) => {
                self.compact(request.revision)?;
                Ok(Applied::Compact(CompactionResponse { header: Some(header(self.revision)) }))
            }
            Some(mutation::Request::Space(SpaceAlarm { raised })) => {
                self.space_alarm = *raised;
                self.backend.put_meta(SPACE_ALARM, Bytes::copy_from_slice(&[u8::from(*raised)]));
                Ok(Applied::SpaceAlarm)
            }
            None => Err(Refusal::EmptyMutation),
        }
    }

    fn write<R>(&mut self, make: impl FnOnce(&mut Write<'_, B>) -> R) -> R {
        let mut write = Write { store: self, changes: 0 };
        let answer = make(&mut write);
        let newest = write.newest();
        self.revision = newest;
        answer
    }
}

/// True for what may add a record with a value, as etcd counts it: a put, or a transaction with one on either side.
#[must_use]
pub fn grows(mutation: &Mutation) -> bool {
    fn any_put(operations: &[RequestOp]) -> bool {
        operations.iter().any(|operation| match &operation.request {
            Some(request_op::Request::RequestPut(_)) => true,
            Some(request_op::Request::RequestTxn(inner)) => {
                any_put(&inner.success) || any_put(&inner.failure)
            }
            Some(request_op::Request::RequestRange(_) | request_op::Request::RequestDeleteRange(_))
            | None => false,
        })
    }
    match &mutation.request {
        Some(mutation::Request::Put(_)) => true,
        Some(mutation::Request::Txn(request)) => any_put(&request.success) || any_put(&request.failure),
        Some(
            mutation::Request::DeleteRange(_) | mutation::Request::Compact(_) | mutation::Request::Space(_),
        )
        | None => false,
    }
}

/// A revision in the making. Everything it will be asked was checked: it cannot fail.
struct Write<'s, B> {
    store: &'s mut Store<B>,
    changes: i64,
}

impl<B: Backend> Write<'_, B> {
    /// The revision that a reader inside sees as the newest: the one in the making once it has a change.
    fn newest(&self) -> i64 {
        self.store.revision + i64::from(self.changes > 0)
    }

    /// Where the next change goes.
    fn next(&mut self) -> RevisionKey {
        let at = RevisionKey { main: self.store.revision + 1, sub: self.changes };
        self.changes += 1;
        at
    }

    fn put(&mut self, request: &PutRequest) -> PutResponse {
        let wants_previous = request.prev_kv || request.ignore_value || request.ignore_lease;
        let previous = if wants_previous { self.current(&request.key) } else { None };
        let kept = |ignore: bool| previous.as_ref().filter(|_| ignore);
        let value = kept(request.ignore_value).map_or(&request.value, |kv| &kv.value);
        let lease = kept(request.ignore_lease).map_or(request.lease, |kv| kv.lease);
        let at = self.next();
        let backend = &mut self.store.backend;
        self.store.index.put(&request.key, at, |create_revision, version| {
            let record = record::encode_put(&KeyValue {
                key: request.key.clone(),
                create_revision,
                mod_revision: at.main,
                version,
                value: value.clone(),
                lease,
            });
            let length = record.len();
            backend.put(at, record);
            length
        });
        PutResponse { header: Some(header(at.main)), prev_kv: previous.filter(|_| request.prev_kv) }
    }

    fn delete_range(&mut self, request: &DeleteRangeRequest) -> DeleteRangeResponse {
        let keys = KeyRange::new(&request.key, &request.range_end);
        let live = self.store.index.range(keys).filter_map(|(key, history)| {
            let (change, ..) = history.live_now()?;
            Some((Bytes::copy_from_slice(key), change))
        });
        let doomed: Vec<_> = live.collect();
        let prev_kvs = if request.prev_kv {
            doomed.iter().map(|(_, change)| self.store.read(change.at())).collect()
        } else {
            Vec::new()
        };
        for (key, _) in &doomed {
            let at = self.next();
            let record = record::encode_tombstone(key);
            self.store.index.delete(key, at, record.len());
            self.store.backend.put(at, record);
        }
        let deleted = i64::try_from(doomed.len()).unwrap_or(i64::MAX);
        DeleteRangeResponse { header: Some(header(self.newest())), deleted, prev_kvs }
    }

    fn branch(&mut self, request: &TxnRequest, path: &Path) -> TxnResponse {
        let mut inner = path.inner();
        let mut responses = Vec::new();
        for operation in path.branch(request) {
            let response = match operation.request.as_ref().expect("checked: every operation has content") {
                Request::RequestRange(range) => Response::ResponseRange(
                    self.store.range_as_of(range, self.newest()).expect("checked: the revision can be read"),
                ),
                Request::RequestPut(put) => Response::ResponsePut(self.put(put)),
                Request::RequestDeleteRange(delete) => {
                    Response::ResponseDeleteRange(self.delete_range(delete))
                }
                Request::RequestTxn(txn) => {
                    let path = inner.next().expect("a path has one for each transaction inside");
                    Response::ResponseTxn(self.branch(txn, path))
                }
            };
            responses.push(ResponseOp { response: Some(response) });
        }
        path.answer(responses)
    }

    fn current(&self, key: &[u8]) -> Option<KeyValue> {
        let (change, ..) = self.store.index.get(key).and_then(History::live_now)?;
        Some(self.store.read(change.at()))
    }
}
