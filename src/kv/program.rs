//! A mutation or a transaction that only reads, as a list of operations that are carried out one after the other and
//! can be divided anywhere.
//!
//! ```text
//!   Decide      which path: all compares see the state before the transaction, also those of transactions inside
//!   CheckPuts   what the state holds against the puts of the path,
//!   CheckRanges and then against its ranges: etcd's order
//!   Estimate    what the path costs and answers, from the index
//!   Run         the operations; from the first write on nothing can fail
//!   Finish      the revision moves
//! ```
//! Everything before the first write only looks. What is refused is decided there, from the request and the index, so
//! by every node alike; whether an answer is built is not part of it.

use std::borrow::Cow;

use bytes::Bytes;

use super::backend::Backend;
use super::check::check_range;
use super::compare::{Scan, Verdict};
use super::cost::{ANSWER_BYTES, Budget, COST, Progress, write_cost};
use super::estimate::Estimate;
use super::keys::KeyRange;
use super::path::{Branch, Item, Operation};
use super::range::Reading;
use super::refusal::Refusal;
use super::{Store, header};
use crate::proto::etcdserverpb::response_op::Response;
use crate::proto::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, RangeRequest, ResponseHeader, ResponseOp, TxnRequest,
    TxnResponse,
};
use crate::proto::mvccpb::KeyValue;
use crate::rules::{Rule, breaks};

/// So many single records are answered without looking up their sizes first.
const FEW_ANSWERS: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Decide,
    CheckPuts,
    CheckRanges,
    Estimate,
    Run,
    Finish,
}

/// What bounds a program. The same on every node where it can write.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) cost: u64,
    pub(super) answer_bytes: u64,
}

impl Bounds {
    /// For what can write.
    pub(super) const WRITES: Bounds = Bounds { cost: COST, answer_bytes: ANSWER_BYTES };
    pub(super) const NONE: Bounds = Bounds { cost: u64::MAX, answer_bytes: u64::MAX };
}

/// See the head of the module.
#[derive(Debug)]
pub(super) struct Program<'m> {
    /// The revision it finds.
    pub(super) revision: i64,
    bounds: Bounds,
    wants_answer: bool,
    phase: Phase,

    /// The transaction whose compares are being looked at.
    deciding: Option<(Cow<'m, TxnRequest>, Scan)>,
    /// Branches that are taken and not walked to their end, the innermost last.
    branches: Vec<Branch<'m>>,
    items: Vec<Item<'m>>,
    /// The next item of this phase.
    next: usize,

    /// From which key on everything is deleted by an operation before.
    swept: Option<Bytes>,
    estimate: Estimate,
    cost: u64,

    running: Running,
    /// Something on the path writes.
    writes: bool,
    /// A write was begun: the store is half changed until the end.
    began: bool,
    /// Of this revision, how many are written.
    changes: i64,
    /// Of all ranges and previous values so far.
    answered: u64,
    /// Transactions whose answers are not complete, the innermost last.
    open: Vec<(bool, Vec<ResponseOp>)>,
    answer: Option<Response>,
}

/// The operation that is being carried out.
#[derive(Debug)]
enum Running {
    Nothing,
    Range(Box<Reading>),
    /// Reads what will be deleted.
    Previous(Box<Reading>),
    Delete {
        cursor: Option<Box<[u8]>>,
        deleted: i64,
        previous: Vec<KeyValue>,
    },
}

/// What a program needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// More of the same.
    More,
    /// To write.
    Write,
    /// Nothing: it is done.
    Nothing,
}

impl<'m> Program<'m> {
    fn new(revision: i64, bounds: Bounds, wants_answer: bool) -> Program<'m> {
        Program {
            revision,
            bounds,
            wants_answer,
            phase: Phase::Run,
            deciding: None,
            branches: Vec::new(),
            items: Vec::new(),
            next: 0,
            swept: None,
            estimate: Estimate::default(),
            cost: 0,
            running: Running::Nothing,
            writes: false,
            began: false,
            changes: 0,
            answered: 0,
            open: Vec::new(),
            answer: None,
        }
    }

    /// A transaction that was checked.
    pub(super) fn of_txn(
        request: Cow<'m, TxnRequest>,
        revision: i64,
        bounds: Bounds,
        wants_answer: bool,
    ) -> Program<'m> {
        Program {
            phase: Phase::Decide,
            deciding: Some((request, Scan::default())),
            ..Program::new(revision, bounds, wants_answer)
        }
    }

    /// A delete that was checked.
    pub(super) fn of_delete(
        request: Cow<'m, DeleteRangeRequest>,
        revision: i64,
        bounds: Bounds,
        wants_answer: bool,
    ) -> Program<'m> {
        let is_span = !matches!(KeyRange::new(&request.key, &request.range_end), KeyRange::One(_));
        let is_bounded = bounds.answer_bytes != u64::MAX;
        Program {
            // What it costs is bounded by what there is; only what it answers can be too much.
            bounds: Bounds { cost: u64::MAX, ..bounds },
            phase: if request.prev_kv && is_span && is_bounded { Phase::Estimate } else { Phase::Run },
            writes: true,
            items: vec![Item::Delete(request)],
            ..Program::new(revision, bounds, wants_answer)
        }
    }

    /// The revision that a reader inside sees as the newest: the one in the making once it has a change.
    fn newest(&self) -> i64 {
        self.revision + i64::from(self.changes > 0)
    }

    /// What it answers, with nothing inside where no answer is wanted.
    pub(super) fn into_answer(self) -> Response {
        let newest = self.newest();
        match self.answer {
            Some(Response::ResponseTxn(mut answer)) => {
                // As in etcd, only the outermost header is filled.
                answer.header = Some(header(newest));
                Response::ResponseTxn(answer)
            }
            Some(other) => other,
            None => Response::ResponseTxn(TxnResponse::default()),
        }
    }

    /// Everything that needs no write, until the budget is spent or a write comes next.
    ///
    /// # Errors
    /// A [`Refusal`]; nothing is written then.
    pub(super) fn look<B: Backend>(
        &mut self,
        store: &Store<B>,
        budget: &mut Budget,
    ) -> Result<Next, Refusal> {
        loop {
            let spent = budget.spent;
            let progress = match self.phase {
                Phase::Decide => self.decide(store, budget)?,
                Phase::CheckPuts => self.check_puts(store, budget)?,
                Phase::CheckRanges => self.check_ranges(store, budget)?,
                Phase::Estimate => {
                    let allowed = self.bounds.answer_bytes;
                    self.estimate.step(&self.items, (store, self.revision), allowed, budget)?
                }
                Phase::Run => match self.run(store, budget)? {
                    Next::Nothing => Progress::Done(()),
                    Next::More => Progress::More,
                    Next::Write => return Ok(Next::Write),
                },
                Phase::Finish if self.began => return Ok(Next::Write),
                Phase::Finish => return Ok(Next::Nothing),
            };
            if self.phase != Phase::Run {
                self.cost = self.cost.saturating_add(budget.spent - spent);
                if self.cost > self.bounds.cost {
                    return Err(Refusal::TooCostly);
                }
            }
            match progress {
                Progress::More => return Ok(Next::More),
                Progress::Done(()) => self.advance(),
            }
        }
    }

    fn advance(&mut self) {
        self.next = 0;
        if self.phase == Phase::Decide {
            self.writes = self.items.iter().any(|item| match item {
                Item::Put(_) | Item::Delete(_) => true,
                Item::Range(_) | Item::Begin { .. } | Item::End => false,
            });
        }
        self.phase = match self.phase {
            Phase::Decide => Phase::CheckPuts,
            Phase::CheckPuts => Phase::CheckRanges,
            Phase::CheckRanges if self.needs_estimate() => Phase::Estimate,
            Phase::CheckRanges | Phase::Estimate => Phase::Run,
            Phase::Run | Phase::Finish => Phase::Finish,
        };
    }

    /// False where the index need not be asked for sizes: a few single keys are never too much.
    fn needs_estimate(&self) -> bool {
        if self.bounds.cost == u64::MAX || !self.writes || (!self.wants_answer && breaks(Rule::RefuseAlike)) {
            return false;
        }
        let mut answers = 0;
        self.items.iter().any(|item| {
            let (key, end, answered) = match item {
                Item::Begin { .. } | Item::End => return false,
                Item::Put(put) => (&put.key, &Bytes::new(), put.prev_kv),
                Item::Range(range) => (&range.key, &range.range_end, true),
                Item::Delete(delete) => (&delete.key, &delete.range_end, delete.prev_kv),
            };
            answers += usize::from(answered);
            answers > FEW_ANSWERS || !matches!(KeyRange::new(key, end), KeyRange::One(_))
        })
    }

    fn decide<B: Backend>(&mut self, store: &Store<B>, budget: &mut Budget) -> Result<Progress<()>, Refusal> {
        loop {
            if let Some((request, scan)) = &mut self.deciding {
                let succeeded = match store.holds_all(&request.compare, self.revision, scan, budget) {
                    Verdict::NotYet => return Ok(Progress::More),
                    Verdict::Holds => true,
                    Verdict::Fails => false,
                };
                let Some((request, _)) = self.deciding.take() else { continue };
                let branch = Branch::of(request, succeeded);
                self.items.reserve(branch.len() + 2);
                self.items.push(Item::Begin { succeeded });
                self.branches.push(branch);
            }
            let Some(branch) = self.branches.last_mut() else { return Ok(Progress::Done(())) };
            match branch.next() {
                Some(Operation::Item(item)) => self.items.push(item),
                Some(Operation::Inner(request)) => self.deciding = Some((request, Scan::default())),
                Some(Operation::Empty) => return Err(Refusal::EmptyOperation),
                None => {
                    self.items.push(Item::End);
                    self.branches.pop();
                }
            }
            budget.spend(1);
            if budget.is_spent() {
                return Ok(Progress::More);
            }
        }
    }

    fn check_puts<B: Backend>(
        &mut self,
        store: &Store<B>,
        budget: &mut Budget,
    ) -> Result<Progress<()>, Refusal> {
        while let Some(item) = self.items.get(self.next) {
            self.next += 1;
            match item {
                Item::Put(put) => {
                    store.check_kept(put, self.swept.as_deref())?;
                    super::txn::check_lease(put)?;
                }
                Item::Delete(delete) => {
                    if let KeyRange::Span(from, None) = KeyRange::new(&delete.key, &delete.range_end)
                        && self.swept.as_deref().is_none_or(|swept| from < swept)
                    {
                        self.swept = Some(delete.key.clone());
                    }
                }
                Item::Range(_) | Item::Begin { .. } | Item::End => {}
            }
            budget.spend(1);
            if budget.is_spent() {
                return Ok(Progress::More);
            }
        }
        Ok(Progress::Done(()))
    }

    fn check_ranges<B: Backend>(
        &mut self,
        store: &Store<B>,
        budget: &mut Budget,
    ) -> Result<Progress<()>, Refusal> {
        while let Some(item) = self.items.get(self.next) {
            self.next += 1;
            if let Item::Range(range) = item {
                check_range(range)?;
                store.check_range_inside(range, self.revision)?;
            }
            budget.spend(1);
            if budget.is_spent() {
                return Ok(Progress::More);
            }
        }
        Ok(Progress::Done(()))
    }

    /// Carries operations out until a write comes next.
    fn run<B: Backend>(&mut self, store: &Store<B>, budget: &mut Budget) -> Result<Next, Refusal> {
        loop {
            let Some(item) = self.items.get(self.next) else { return Ok(Next::Nothing) };
            match (item, &mut self.running) {
                (Item::Begin { succeeded }, _) => {
                    self.open.push((*succeeded, Vec::new()));
                    self.next += 1;
                }
                (Item::End, _) => {
                    self.next += 1;
                    if let Some((succeeded, responses)) = self.open.pop() {
                        let header = Some(ResponseHeader::default());
                        let answer = TxnResponse { header, succeeded, responses };
                        self.respond(Response::ResponseTxn(answer));
                    }
                }
                (Item::Range(_), _) if !self.wants_answer => self.next += 1,
                (Item::Range(range), Running::Range(reading)) => {
                    if reading.step(store, range, budget)? == Progress::More {
                        return Ok(Next::More);
                    }
                    if let Running::Range(reading) = std::mem::replace(&mut self.running, Running::Nothing) {
                        self.answered = self.answered.saturating_add(reading.bytes);
                        self.next += 1;
                        self.respond(Response::ResponseRange(reading.finish()));
                    }
                }
                (Item::Range(range), _) => {
                    let newest = self.newest();
                    let revision = if range.revision <= 0 { newest } else { range.revision };
                    self.running = Running::Range(Box::new(self.reading(range, revision, newest)));
                }
                (Item::Put(_), _) | (Item::Delete(_), Running::Delete { .. }) => return Ok(Next::Write),
                (Item::Delete(delete), Running::Previous(reading)) => {
                    if reading.step(store, &as_range(delete), budget)? == Progress::More {
                        return Ok(Next::More);
                    }
                    if let Running::Previous(reading) = std::mem::replace(&mut self.running, Running::Nothing)
                    {
                        self.answered = self.answered.saturating_add(reading.bytes);
                        let previous = reading.finish().kvs;
                        self.running = Running::Delete { cursor: None, deleted: 0, previous };
                    }
                }
                (Item::Delete(delete), Running::Nothing | Running::Range(_)) => {
                    self.running = if delete.prev_kv && self.wants_answer {
                        let newest = self.newest();
                        Running::Previous(Box::new(self.reading(&as_range(delete), newest, newest)))
                    } else {
                        Running::Delete { cursor: None, deleted: 0, previous: Vec::new() }
                    };
                }
            }
            if budget.is_spent() {
                return Ok(Next::More);
            }
            budget.spend(1);
        }
    }

    fn reading(&self, range: &RangeRequest, revision: i64, newest: i64) -> Reading {
        // What writes is bounded before, by the same reckoning on all nodes. From here on nothing may fail.
        let left =
            if self.writes { u64::MAX } else { self.bounds.answer_bytes.saturating_sub(self.answered) };
        Reading::new(range, revision, newest, left)
    }

    /// Carries writes out, at least one, until something else comes next or the budget is spent. Done where the
    /// program is, and then the revision has moved.
    pub(super) fn write<B: Backend>(&mut self, store: &mut Store<B>, budget: &mut Budget) -> Progress<()> {
        while self.phase == Phase::Run {
            let Some(item) = self.items.get(self.next) else {
                self.advance();
                break;
            };
            match (item, &mut self.running) {
                (Item::Put(put), _) => {
                    self.began = true;
                    store.begin_half();
                    let answer = store.put(put, &mut self.changes, self.wants_answer);
                    budget.spend(write_cost(put.value.len()));
                    self.next += 1;
                    self.respond(Response::ResponsePut(answer));
                }
                (Item::Delete(delete), Running::Delete { cursor, deleted, .. }) => {
                    self.began = true;
                    store.begin_half();
                    let range = KeyRange::new(&delete.key, &delete.range_end);
                    let before = self.changes;
                    let last = store.delete(range, cursor.as_deref(), &mut self.changes, budget);
                    *deleted += self.changes - before;
                    if last.is_some() {
                        *cursor = last;
                        return Progress::More;
                    }
                    if let Running::Delete { deleted, previous, .. } =
                        std::mem::replace(&mut self.running, Running::Nothing)
                    {
                        self.next += 1;
                        self.respond(Response::ResponseDeleteRange(DeleteRangeResponse {
                            header: Some(header(self.newest())),
                            deleted,
                            prev_kvs: previous,
                        }));
                    }
                }
                (Item::Delete(_) | Item::Range(_) | Item::Begin { .. } | Item::End, _) => {
                    return Progress::More;
                }
            }
            if budget.is_spent() {
                return Progress::More;
            }
        }
        if self.phase != Phase::Finish {
            return Progress::More;
        }
        store.end_half(self.newest());
        Progress::Done(())
    }

    fn respond(&mut self, response: Response) {
        match self.open.last_mut() {
            Some((_, responses)) if self.wants_answer => {
                responses.push(ResponseOp { response: Some(response) });
            }
            Some(_) => {}
            None => self.answer = Some(response),
        }
    }

    /// Orders what is read, without the store.
    pub(super) fn settle(&mut self) {
        match &mut self.running {
            Running::Range(reading) | Running::Previous(reading) => reading.settle(),
            Running::Nothing | Running::Delete { .. } => {}
        }
    }
}

/// What a delete deletes, to be read.
fn as_range(delete: &DeleteRangeRequest) -> RangeRequest {
    RangeRequest { key: delete.key.clone(), range_end: delete.range_end.clone(), ..RangeRequest::default() }
}
