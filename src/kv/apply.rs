//! Carrying out a mutation: one revision for everything it changes, none where it changes nothing.

use std::borrow::Cow;

use bytes::Bytes;

use super::backend::{Backend, RevisionKey};
use super::check::{Limits, check};
use super::cost::{Budget, Progress};
use super::index::History;
use super::keys::KeyRange;
use super::record;
use super::refusal::Refusal;
use super::txn::check_lease;
use super::work::Work;
use super::{FEATURE_LEVEL, SPACE_ALARM, Seen, Store, header};
use crate::proto::etcdserverpb::request_op;
use crate::proto::etcdserverpb::{
    CompactionResponse, DeleteRangeResponse, PutRequest, PutResponse, RequestOp, TxnResponse,
};
use crate::proto::mvccpb::KeyValue;
use crate::proto::replcluster::{FeatureLevel, Mutation, SpaceAlarm, mutation};

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
    /// The feature level is at least as high as it should be.
    FeatureLevel,
}

impl<B: Backend> Store<B> {
    /// Carries out one mutation at once. The same mutations in the same order give the same answers, refusals and
    /// records on every node.
    ///
    /// # Errors
    /// A [`Refusal`]; nothing was done then, and no revision was used.
    pub fn apply(&mut self, mutation: &Mutation) -> Result<Applied, Refusal> {
        self.apply_for(mutation, true)
    }

    /// As [`Store::apply`]. Where `wants_answer` is false, what it would answer is not read: nothing that it does or
    /// refuses depends on that.
    ///
    /// # Errors
    /// As [`Store::apply`].
    pub fn apply_for(&mut self, mutation: &Mutation, wants_answer: bool) -> Result<Applied, Refusal> {
        if !takes_long(mutation) {
            self.admits(mutation)?;
            check(mutation, Limits::NONE)?;
            return self.apply_at_once(mutation, wants_answer);
        }
        let mut work = Work::of(Cow::Borrowed(mutation), wants_answer);
        loop {
            match work.step(self, u64::MAX) {
                Progress::More => work.settle(),
                Progress::Done(outcome) => return outcome,
            }
        }
    }

    /// Refuses what makes a store grow that is full.
    pub(super) fn admits(&self, mutation: &Mutation) -> Result<(), Refusal> {
        if self.space_alarm && grows(mutation) { Err(Refusal::SpaceExceeded) } else { Ok(()) }
    }

    /// What never takes long; checked as far as that needs no store.
    pub(super) fn apply_at_once(
        &mut self,
        mutation: &Mutation,
        wants_answer: bool,
    ) -> Result<Applied, Refusal> {
        assert!(self.half.is_none(), "another mutation is half applied");
        match &mutation.request {
            Some(mutation::Request::Put(request)) => {
                // Inside a transaction it is the other way round, in etcd and so here.
                check_lease(request)?;
                self.check_kept(request, None)?;
                let mut changes = 0;
                let answer = self.put(request, &mut changes, wants_answer);
                self.revision += 1;
                Ok(Applied::Put(answer))
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
            Some(mutation::Request::FeatureLevel(FeatureLevel { level })) => {
                if *level > self.feature_level {
                    self.feature_level = *level;
                    self.backend.put_meta(FEATURE_LEVEL, Bytes::copy_from_slice(&level.to_be_bytes()));
                }
                Ok(Applied::FeatureLevel)
            }
            Some(mutation::Request::Txn(_) | mutation::Request::DeleteRange(_)) | None => {
                Err(Refusal::EmptyMutation)
            }
        }
    }

    /// Writes one put into the revision in the making, which has `changes` so far.
    pub(super) fn put(&mut self, request: &PutRequest, changes: &mut i64, wants_answer: bool) -> PutResponse {
        let wants_previous =
            (request.prev_kv && wants_answer) || request.ignore_value || request.ignore_lease;
        let previous = if wants_previous { self.current(&request.key) } else { None };
        let kept = |ignore: bool| previous.as_ref().filter(|_| ignore);
        let value = kept(request.ignore_value).map_or(&request.value, |kv| &kv.value);
        let lease = kept(request.ignore_lease).map_or(request.lease, |kv| kv.lease);
        let at = RevisionKey { main: self.revision + 1, sub: *changes };
        *changes += 1;
        let backend = &mut self.backend;
        self.index.put(&request.key, at, |create_revision, version| {
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
        let prev_kv = previous.filter(|_| request.prev_kv && wants_answer);
        PutResponse { header: Some(header(at.main)), prev_kv }
    }

    /// Writes tombstones into the revision in the making, which has `changes` so far, until the budget is spent.
    /// Returns the last key that was looked at; none when the range is done.
    pub(super) fn delete(
        &mut self,
        range: KeyRange<'_>,
        cursor: Option<&[u8]>,
        changes: &mut i64,
        budget: &mut Budget,
    ) -> Option<Box<[u8]>> {
        let (main, backend) = (self.revision + 1, &mut self.backend);
        self.index.delete(range, cursor, budget, |key| {
            let at = RevisionKey { main, sub: *changes };
            *changes += 1;
            let record = record::encode_tombstone(key);
            let length = record.len();
            backend.put(at, record);
            (at, length)
        })
    }

    fn current(&self, key: &[u8]) -> Option<KeyValue> {
        let (change, ..) = self.index.get(key).and_then(History::live_now)?;
        Some(self.read(change.at()))
    }

    /// What can be seen stays as it is until [`Store::end_half`].
    pub(super) fn begin_half(&mut self) {
        let index = &self.index;
        self.half.get_or_insert_with(|| Seen { keys: index.live_keys(), bytes: index.record_bytes() });
    }

    pub(super) fn end_half(&mut self, revision: i64) {
        self.half = None;
        self.revision = revision;
    }
}

/// True for what is carried out as a program, because it can be divided.
pub(super) fn takes_long(mutation: &Mutation) -> bool {
    match &mutation.request {
        Some(mutation::Request::Txn(_) | mutation::Request::DeleteRange(_)) => true,
        Some(
            mutation::Request::Put(_)
            | mutation::Request::Compact(_)
            | mutation::Request::Space(_)
            | mutation::Request::FeatureLevel(_),
        )
        | None => false,
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
            mutation::Request::DeleteRange(_)
            | mutation::Request::Compact(_)
            | mutation::Request::Space(_)
            | mutation::Request::FeatureLevel(_),
        )
        | None => false,
    }
}
