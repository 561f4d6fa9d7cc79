//! Client reads, and the look at a heavy change before it is ordered: in pieces of about half a millisecond under the
//! state's lock, so that neither the protocol nor another client waits for a long one (R35). Between its pieces a read
//! lets others go first; what it still has to read is pinned (`kv`), so that all of it is as of one revision.

use parking_lot::RwLockReadGuard;
use tokio::time::Instant;

use super::handle::{Handle, StateStore, Unavailable};
use crate::kv::{self, Progress, RangeWork, Refusal, TxnWork, Work};
use crate::proto::etcdserverpb::{RangeRequest, RangeResponse, TxnRequest, TxnResponse};
use crate::proto::replcluster::{Mutation, mutation};

/// A read that may be paused.
pub(super) trait InPieces: Send {
    /// Nothing is left to read.
    fn is_done(&self) -> bool;
    /// Reads some more, under the lock.
    fn piece(&mut self, store: &StateStore);
    /// Does what needs no lock.
    fn settle(&mut self);
}

/// A read that is done in its first piece.
pub(super) struct Whole<R>(pub(super) R);

impl<R: Send> InPieces for Whole<R> {
    fn is_done(&self) -> bool {
        true
    }

    fn piece(&mut self, _: &StateStore) {}

    fn settle(&mut self) {}
}

/// What is divided: a range, a transaction that only reads, or the look at a change before it is ordered.
pub(super) trait Divided: Send {
    fn step(&mut self, store: &StateStore, units: u64) -> Result<Progress<()>, Refusal>;
    fn settle(&mut self);
}

impl Divided for RangeWork {
    fn step(&mut self, store: &StateStore, units: u64) -> Result<Progress<()>, Refusal> {
        RangeWork::step(self, store, units)
    }

    fn settle(&mut self) {
        RangeWork::settle(self);
    }
}

impl Divided for TxnWork {
    fn step(&mut self, store: &StateStore, units: u64) -> Result<Progress<()>, Refusal> {
        TxnWork::step(self, store, units)
    }

    fn settle(&mut self) {
        TxnWork::settle(self);
    }
}

/// Looks and changes nothing: whether the change may be ordered. Only its cost is judged: what else may be said against it
/// depends on a state that is not the one in which it will be carried out.
struct Admission {
    work: Work<'static>,
    begun: bool,
}

impl Divided for Admission {
    fn step(&mut self, store: &StateStore, units: u64) -> Result<Progress<()>, Refusal> {
        // While another change is half done there is nothing to judge by: applying it judges again, on every node alike.
        if !std::mem::replace(&mut self.begun, true) && store.is_half_applied() {
            return Ok(Progress::Done(()));
        }
        match self.work.look(store, units) {
            kv::Look::More => Ok(Progress::More),
            kv::Look::Done(Err(refusal @ (Refusal::TooCostly | Refusal::AnswerTooLarge { .. }))) => {
                Err(refusal)
            }
            kv::Look::Write | kv::Look::Done(_) => Ok(Progress::Done(())),
        }
    }

    fn settle(&mut self) {
        self.work.settle();
    }
}

/// A divided read and how far it is.
pub(super) struct Pieces<W> {
    pub(super) work: Result<W, Refusal>,
    done: bool,
    units: u64,
}

impl<W: Divided> Pieces<W> {
    /// With its first piece, so that a short read takes the lock once.
    pub(super) fn begin(work: Result<W, Refusal>, store: &StateStore, units: u64) -> Pieces<W> {
        let done = work.is_err();
        let mut pieces = Pieces { work, done, units };
        if !done {
            pieces.piece(store);
        }
        pieces
    }
}

impl<W: Divided> InPieces for Pieces<W> {
    fn is_done(&self) -> bool {
        self.done
    }

    fn piece(&mut self, store: &StateStore) {
        let Ok(work) = &mut self.work else { return };
        match work.step(store, self.units) {
            Ok(Progress::More) => {}
            Ok(Progress::Done(())) => self.done = true,
            Err(refusal) => {
                self.work = Err(refusal);
                self.done = true;
            }
        }
    }

    fn settle(&mut self) {
        if let Ok(work) = &mut self.work {
            work.settle();
        }
    }
}

impl Handle {
    /// Answers a range request.
    ///
    /// # Errors
    /// [`Unavailable`]; nothing was answered.
    pub async fn range(
        &self,
        request: &RangeRequest,
        deadline: Instant,
    ) -> Result<Result<RangeResponse, Refusal>, Unavailable> {
        let begin = |store: &StateStore| {
            let work = RangeWork::begin(store, request.clone(), kv::ANSWER_BYTES);
            Pieces::begin(work, store, kv::STEP_UNITS)
        };
        let read = self.read_in_pieces(request.serializable, deadline, begin).await?;
        Ok(read.work.map(RangeWork::finish))
    }

    /// Answers a transaction that only reads.
    ///
    /// # Errors
    /// [`Unavailable`]; nothing was answered.
    pub async fn read_txn(
        &self,
        request: &TxnRequest,
        serializable: bool,
        deadline: Instant,
    ) -> Result<Result<TxnResponse, Refusal>, Unavailable> {
        let begin = |store: &StateStore| {
            let work = TxnWork::begin(store, request.clone(), kv::ANSWER_BYTES);
            Pieces::begin(work, store, kv::STEP_UNITS)
        };
        let read = self.read_in_pieces(serializable, deadline, begin).await?;
        Ok(read.work.map(TxnWork::finish))
    }

    /// Whether a change may be ordered, by what it would cost here and now.
    pub(super) async fn admit(
        &self,
        mutation: Mutation,
        deadline: Instant,
    ) -> Result<Result<(), Refusal>, Unavailable> {
        match &mutation.request {
            Some(mutation::Request::Txn(_) | mutation::Request::DeleteRange(_)) => {}
            Some(
                mutation::Request::Put(_)
                | mutation::Request::Compact(_)
                | mutation::Request::Space(_)
                | mutation::Request::FeatureLevel(_),
            )
            | None => return Ok(Ok(())),
        }
        if self.shared.look(&|store| store.class_of(&mutation)) == kv::Class::Light {
            return Ok(Ok(()));
        }
        let admission = Admission { work: Work::new(mutation, false), begun: false };
        let work = Pieces { work: Ok(admission), done: false, units: kv::STEP_UNITS };
        Ok(self.go_on(work, deadline).await?.work.map(drop))
    }

    /// Reads to the end what has begun. A read of many pieces waits for its turn among such reads.
    pub(super) async fn go_on<P: InPieces>(&self, mut read: P, deadline: Instant) -> Result<P, Unavailable> {
        if read.is_done() {
            return Ok(read);
        }
        read.settle();
        let turn = tokio::time::timeout_at(deadline, self.shared.long_reads.acquire()).await;
        let _turn = turn.map_err(|_| Unavailable::TimedOut)?.map_err(|_| Unavailable::Stopping)?;
        while !read.is_done() {
            if Instant::from_std(crate::clock::now()) >= deadline {
                return Err(Unavailable::TimedOut);
            }
            self.one_piece(&mut read);
            tokio::task::yield_now().await;
        }
        Ok(read)
    }

    fn one_piece(&self, read: &mut impl InPieces) {
        let store = self.shared.store.read();
        read.piece(&store);
        RwLockReadGuard::unlock_fair(store);
        read.settle();
    }
}
