//! A mutation that is carried out in steps. Nothing of it can be seen before the last one: readers read as of
//! [`Store::revision`], and that moves at the end.

use std::borrow::Cow;

use super::Store;
use super::apply::{Applied, takes_long};
use super::backend::Backend;
use super::check::{Limits, check};
use super::cost::{Budget, Progress};
use super::program::{Bounds, Next, Program};
use super::refusal::Refusal;
use crate::proto::etcdserverpb::response_op::Response;
use crate::proto::replcluster::{Mutation, mutation};

/// A mutation on its way into a store.
///
/// ```text
///   new (no lock; checks the request)
///   ┌→ look (read lock) ─ More ─→ settle (no lock) ─┐
///   │        │ Write                                │
///   │        ▼                                      │
///   │  step (write lock) ─ More ─→ settle (no lock) ─┤
///   └───────────────────────────────────────────────┘   until one of them is Done
/// ```
/// `step` alone is enough where nobody minds a write lock while it reads. From the first write to the end
/// [`Store::is_half_applied`]: until then the backend must not be flushed or copied, and nothing else be applied.
#[derive(Debug)]
pub struct Work<'m> {
    task: Task<'m>,
    wants_answer: bool,
    /// What the request alone is refused for.
    refused: Option<Refusal>,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "no allocation for a small transaction")]
enum Task<'m> {
    /// Not begun.
    Whole(Cow<'m, Mutation>),
    Program(Program<'m>),
    /// Done, and its outcome taken.
    Nothing,
}

/// What a [`Work`] needs next.
#[derive(Clone, Debug, PartialEq)]
pub enum Look {
    /// More time to look.
    More,
    /// To write: [`Work::step`].
    Write,
    /// It is done.
    Done(Result<Applied, Refusal>),
}

impl<'m> Work<'m> {
    /// Checks what can be checked without a store. `wants_answer` where a client of this node waits: without it, ranges
    /// and previous values are not read and the answer is empty, but everything is done, or refused, alike.
    #[must_use]
    pub fn new(mutation: Mutation, wants_answer: bool) -> Work<'static> {
        Work::of(Cow::Owned(mutation), wants_answer)
    }

    pub(super) fn of(mutation: Cow<'m, Mutation>, wants_answer: bool) -> Work<'m> {
        Work { refused: check(&mutation, Limits::NONE).err(), wants_answer, task: Task::Whole(mutation) }
    }

    /// Spends up to `units` on what does not write.
    pub fn look<B: Backend>(&mut self, store: &Store<B>, units: u64) -> Look {
        self.look_within(store, &mut Budget::new(units))
    }

    fn look_within<B: Backend>(&mut self, store: &Store<B>, budget: &mut Budget) -> Look {
        if let Err(refusal) = self.begin(store) {
            self.task = Task::Nothing;
            return Look::Done(Err(refusal));
        }
        let Task::Program(program) = &mut self.task else { return Look::Write };
        match program.look(store, budget) {
            Ok(Next::More) => Look::More,
            Ok(Next::Write) => Look::Write,
            Ok(Next::Nothing) => Look::Done(Ok(self.finish())),
            Err(refusal) => {
                self.task = Task::Nothing;
                Look::Done(Err(refusal))
            }
        }
    }

    /// Spends up to `units`, on whatever comes.
    pub fn step<B: Backend>(
        &mut self,
        store: &mut Store<B>,
        units: u64,
    ) -> Progress<Result<Applied, Refusal>> {
        let mut budget = Budget::new(units);
        loop {
            match self.look_within(store, &mut budget) {
                Look::More => return Progress::More,
                Look::Done(outcome) => return Progress::Done(outcome),
                Look::Write => {}
            }
            match &mut self.task {
                Task::Program(program) => match program.write(store, &mut budget) {
                    Progress::Done(()) => return Progress::Done(Ok(self.finish())),
                    Progress::More if budget.is_spent() => return Progress::More,
                    Progress::More => {}
                },
                Task::Whole(mutation) => {
                    let outcome = store.apply_at_once(mutation, self.wants_answer);
                    self.task = Task::Nothing;
                    return Progress::Done(outcome);
                }
                Task::Nothing => unreachable!("its outcome was taken"),
            }
        }
    }

    /// Makes a program of what can take long, once the store is there.
    fn begin<B: Backend>(&mut self, store: &Store<B>) -> Result<(), Refusal> {
        let Task::Whole(mutation) = &self.task else { return Ok(()) };
        store.admits(mutation)?;
        if let Some(refusal) = self.refused.take() {
            return Err(refusal);
        }
        if !takes_long(mutation) {
            return Ok(());
        }
        assert!(!store.is_half_applied(), "another mutation is half applied");
        let Task::Whole(mutation) = std::mem::replace(&mut self.task, Task::Nothing) else { return Ok(()) };
        let bounds = if store.feature_level >= 1 { Bounds::WRITES } else { Bounds::NONE };
        let (revision, wants_answer) = (store.revision, self.wants_answer);
        let program = match mutation {
            Cow::Borrowed(Mutation { request: Some(mutation::Request::Txn(txn)) }) => {
                Program::of_txn(Cow::Borrowed(txn), revision, bounds, wants_answer)
            }
            Cow::Owned(Mutation { request: Some(mutation::Request::Txn(txn)) }) => {
                Program::of_txn(Cow::Owned(txn), revision, bounds, wants_answer)
            }
            Cow::Borrowed(Mutation { request: Some(mutation::Request::DeleteRange(delete)) }) => {
                Program::of_delete(Cow::Borrowed(delete), revision, bounds, wants_answer)
            }
            Cow::Owned(Mutation { request: Some(mutation::Request::DeleteRange(delete)) }) => {
                Program::of_delete(Cow::Owned(delete), revision, bounds, wants_answer)
            }
            Cow::Borrowed(_) | Cow::Owned(_) => return Err(Refusal::EmptyMutation),
        };
        self.task = Task::Program(program);
        Ok(())
    }

    fn finish(&mut self) -> Applied {
        match std::mem::replace(&mut self.task, Task::Nothing) {
            Task::Program(program) => match program.into_answer() {
                Response::ResponseTxn(answer) => Applied::Txn(answer),
                Response::ResponseDeleteRange(answer) => Applied::DeleteRange(answer),
                Response::ResponsePut(_) | Response::ResponseRange(_) => {
                    unreachable!("a program is a transaction or a delete")
                }
            },
            Task::Whole(_) | Task::Nothing => unreachable!("finished once, when its program is done"),
        }
    }

    /// What takes long and needs no store: call it between steps, without a lock. Mostly does nothing.
    pub fn settle(&mut self) {
        match &mut self.task {
            Task::Program(program) => program.settle(),
            Task::Whole(_) | Task::Nothing => {}
        }
    }
}
