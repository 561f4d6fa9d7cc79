//! What work costs: the unit in which it is divided, the bounds beyond which it is refused, and whether it can be done
//! at once.
//!
//! A unit is about a key looked at in the index. Bounds that decide whether a transaction is done must be the same on
//! every node: they are constants, and count what every node has in its index. They hold from feature level 1 on.

use super::Store;
use super::backend::Backend;
use super::index::Change;
use super::keys::KeyRange;
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::{Compare, RequestOp, TxnRequest};
use crate::proto::replcluster::{Mutation, mutation};

/// What can be done under a lock in about half a millisecond.
pub const STEP_UNITS: u64 = 4096;
/// Most that one transaction may cost: half a minute at worst. Thirty compares by value over 200,000 keys are 60 million.
pub const COST: u64 = 1 << 27;
/// Most bytes in the answer of one request: ranges and previous values, of a transaction all together.
pub const ANSWER_BYTES: u64 = 512 << 20;

/// Reading a record.
pub(super) const READ: u64 = 8;
/// Writing a record.
pub(super) const WRITE: u64 = 8;
/// Bytes that take as long to copy as a key to look at.
const BYTES: u64 = 1024;

/// Keys looked at to tell light from heavy.
const LIGHT_KEYS: usize = 256;
/// Operations and compares, of all paths together, of a transaction that may be light.
const LIGHT_OPERATIONS: usize = 256;
/// Bytes that a light mutation may have to read or write.
const LIGHT_BYTES: u64 = 4 << 20;

/// What is left to spend in a step.
#[derive(Debug)]
pub(super) struct Budget {
    left: u64,
    pub(super) spent: u64,
}

impl Budget {
    pub(super) fn new(units: u64) -> Budget {
        Budget { left: units, spent: 0 }
    }

    pub(super) fn spend(&mut self, units: u64) {
        self.left = self.left.saturating_sub(units);
        self.spent = self.spent.saturating_add(units);
    }

    /// To be asked after each piece of work, so that every step does one.
    pub(super) fn is_spent(&self) -> bool {
        self.left == 0
    }
}

/// What it costs to read a record.
pub(super) fn read_cost(change: Change) -> u64 {
    READ + change.record_bytes() / BYTES
}

/// What it costs to write a record with so many bytes.
pub(super) fn write_cost(bytes: usize) -> u64 {
    WRITE + bytes as u64 / BYTES
}

/// How far a piece of work is.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress<T> {
    /// There is more to do.
    More,
    /// It is done.
    Done(T),
}

/// Whether a mutation can be done at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// In less than about a millisecond.
    Light,
    /// It may take longer.
    Heavy,
}

impl<B: Backend> Store<B> {
    /// Whether a mutation can be done at once on the store as it is. Looks at no more than a few hundred keys, and at
    /// none for what names single keys.
    #[must_use]
    pub fn class_of(&self, mutation: &Mutation) -> Class {
        let mut look =
            Look { store: self, keys: LIGHT_KEYS, operations: LIGHT_OPERATIONS, bytes: LIGHT_BYTES };
        let is_light = match &mutation.request {
            Some(mutation::Request::DeleteRange(request)) => look.span(&request.key, &request.range_end),
            Some(mutation::Request::Txn(request)) => look.transaction(request),
            Some(
                mutation::Request::Put(_)
                | mutation::Request::Compact(_)
                | mutation::Request::Space(_)
                | mutation::Request::FeatureLevel(_),
            )
            | None => Some(()),
        };
        if is_light.is_some() { Class::Light } else { Class::Heavy }
    }
}

/// What may still be found for a mutation to be light.
struct Look<'s, B> {
    store: &'s Store<B>,
    keys: usize,
    operations: usize,
    bytes: u64,
}

impl<B: Backend> Look<'_, B> {
    /// None where it is heavy. As deep as a decoded transaction can be.
    fn transaction(&mut self, request: &TxnRequest) -> Option<()> {
        let operations = request.compare.len() + request.success.len() + request.failure.len();
        self.operations = self.operations.checked_sub(operations)?;
        for Compare { key, range_end, .. } in &request.compare {
            self.span(key, range_end)?;
        }
        for RequestOp { request } in request.success.iter().chain(&request.failure) {
            match request {
                Some(Request::RequestRange(range)) => self.span(&range.key, &range.range_end)?,
                Some(Request::RequestDeleteRange(delete)) => self.span(&delete.key, &delete.range_end)?,
                Some(Request::RequestPut(put)) => {
                    self.bytes = self.bytes.checked_sub(put.value.len() as u64)?;
                }
                Some(Request::RequestTxn(inner)) => self.transaction(inner)?,
                None => {}
            }
        }
        Some(())
    }

    fn span(&mut self, key: &[u8], range_end: &[u8]) -> Option<()> {
        let range = KeyRange::new(key, range_end);
        if let KeyRange::One(_) = range {
            return Some(());
        }
        for (_, history) in self.store.index.range(range, None) {
            self.keys = self.keys.checked_sub(1)?;
            let bytes = history.live_now().map_or(0, |(change, ..)| change.record_bytes());
            self.bytes = self.bytes.checked_sub(bytes)?;
        }
        Some(())
    }
}

/// Bytes of a record as they count in an answer.
pub(super) fn answer_bytes(key: &[u8], change: Change, keys_only: bool) -> u64 {
    // Field numbers and lengths around it, and revisions.
    const AROUND: u64 = 8;
    const NUMBERS: u64 = 24;
    AROUND + if keys_only { key.len() as u64 + NUMBERS } else { change.record_bytes() }
}
