//! Transactions: what the state holds against their operations, and those that only read.

use std::borrow::Cow;

use super::Store;
use super::backend::Backend;
use super::check::{Limits, check_txn, is_read_only};
use super::cost::{Budget, Progress};
use super::index::History;
use super::pin::Pin;
use super::program::{Bounds, Next, Program};
use super::refusal::Refusal;
use crate::proto::etcdserverpb::response_op::Response;
use crate::proto::etcdserverpb::{PutRequest, RangeRequest, TxnRequest, TxnResponse};

impl<B: Backend> Store<B> {
    /// Answers a transaction for which [`is_read_only`] holds at once; any other belongs to [`Store::apply`].
    ///
    /// # Errors
    /// As [`Store::apply`].
    pub fn read_txn(&self, request: &TxnRequest) -> Result<TxnResponse, Refusal> {
        let mut program = reading(Cow::Borrowed(request), self.revision, u64::MAX)?;
        let mut budget = Budget::new(u64::MAX);
        while program.look(self, &mut budget)? == Next::More {
            program.settle();
        }
        Ok(answer(program))
    }

    /// Refuses to keep the value or lease of a key that does not exist, or that a delete without end from `swept` on
    /// will have removed before. That is the one way in which a put finds less than was there; etcd ends its process.
    pub(super) fn check_kept(&self, request: &PutRequest, swept: Option<&[u8]>) -> Result<(), Refusal> {
        if !request.ignore_value && !request.ignore_lease {
            return Ok(());
        }
        let is_swept = swept.is_some_and(|from| from <= &*request.key);
        let lives = self.index.get(&request.key).and_then(History::live_now).is_some();
        if lives && !is_swept { Ok(()) } else { Err(Refusal::KeyNotFound) }
    }

    /// What the state holds against a range inside a transaction that finds it at `revision`. Unlike one outside, a
    /// negative revision is taken at its word.
    pub(super) fn check_range_inside(&self, request: &RangeRequest, revision: i64) -> Result<(), Refusal> {
        let requested = request.revision;
        if requested > revision {
            return Err(Refusal::FutureRevision { requested, current: revision });
        }
        if requested != 0 && requested < self.compact_revision {
            return Err(Refusal::Compacted { requested, compacted: self.compact_revision });
        }
        Ok(())
    }
}

/// There are no leases yet, so every lease is an unknown one.
pub(super) fn check_lease(request: &PutRequest) -> Result<(), Refusal> {
    if request.lease == 0 { Ok(()) } else { Err(Refusal::LeaseNotFound(request.lease)) }
}

/// A transaction that only reads, answered in steps. To be used as [`RangeWork`](super::RangeWork).
#[derive(Debug)]
pub struct TxnWork {
    program: Program<'static>,
    /// Kept until it is answered, for a store that takes the place of the one it began on.
    request: TxnRequest,
    most_bytes: u64,
    pin: Option<Pin>,
}

impl TxnWork {
    /// Begins to answer as of now. An answer of more than `most_bytes` is refused.
    ///
    /// # Errors
    /// As [`Store::read_txn`].
    pub fn begin<B: Backend>(
        store: &Store<B>,
        request: TxnRequest,
        most_bytes: u64,
    ) -> Result<TxnWork, Refusal> {
        let program = reading(Cow::Owned(request.clone()), store.revision, most_bytes)?;
        Ok(TxnWork { program, request, most_bytes, pin: None })
    }

    /// Spends up to `units`.
    ///
    /// # Errors
    /// A [`Refusal`] of one of its operations; [`Refusal::AnswerTooLarge`] before the records of too large an answer are
    /// read.
    pub fn step<B: Backend>(&mut self, store: &Store<B>, units: u64) -> Result<Progress<()>, Refusal> {
        if self.pin.as_ref().is_some_and(|pin| !pin.is_of(&store.pins)) {
            self.pin = None;
            self.program = reading(Cow::Owned(self.request.clone()), store.revision, self.most_bytes)?;
        }
        match self.program.look(store, &mut Budget::new(units))? {
            Next::More => {
                if self.pin.is_none() {
                    // Its ranges may name any revision that can be read now.
                    self.pin = Some(Pin::new(&store.pins, store.compact_revision));
                }
                Ok(Progress::More)
            }
            Next::Write | Next::Nothing => Ok(Progress::Done(())),
        }
    }

    /// What takes long and needs no store: call it between steps, without a lock. Mostly does nothing.
    pub fn settle(&mut self) {
        self.program.settle();
    }

    /// The answer, after the last step.
    #[must_use]
    pub fn finish(self) -> TxnResponse {
        answer(self.program)
    }
}

fn reading(request: Cow<'_, TxnRequest>, revision: i64, most_bytes: u64) -> Result<Program<'_>, Refusal> {
    assert!(is_read_only(&request), "a transaction with writes goes through apply");
    check_txn(&request, Limits::NONE)?;
    let bounds = Bounds { answer_bytes: most_bytes, ..Bounds::NONE };
    Ok(Program::of_txn(request, revision, bounds, true))
}

fn answer(program: Program<'_>) -> TxnResponse {
    match program.into_answer() {
        Response::ResponseTxn(answer) => answer,
        Response::ResponseRange(_) | Response::ResponsePut(_) | Response::ResponseDeleteRange(_) => {
            TxnResponse::default()
        }
    }
}
