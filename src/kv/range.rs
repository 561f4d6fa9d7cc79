//! Reading a range of keys as of a revision. Only the index is walked for what is counted; a record is read for
//! what is answered, and before that only where its content decides the order or the filter.
//!
//! A range can be divided: [`RangeWork`] walks and reads in steps under a lock, orders between them without one, and
//! sees one revision throughout, whatever is written or compacted meanwhile.

use bytes::Bytes;

use super::backend::{Backend, RevisionKey};
use super::check::check_range;
use super::cost::{Budget, Progress, answer_bytes, read_cost};
use super::index::Change;
use super::keys::KeyRange;
use super::pin::Pin;
use super::plan::Plan;
use super::record::{self, Record};
use super::refusal::Refusal;
use super::{Store, header};
use crate::proto::etcdserverpb::{RangeRequest, RangeResponse};
use crate::proto::mvccpb::KeyValue;

/// So much is ordered within a step; more waits until no lock is held.
const ORDERED_AT_ONCE: usize = 512;
/// A value of at least so many bytes that is not answered is let go of, and the key copied out of its record.
const LET_GO_BYTES: usize = 256;

impl<B: Backend> Store<B> {
    /// Answers a range request at once. The header holds the revision and nothing else.
    ///
    /// # Errors
    /// What [`check_range`] refuses, [`Refusal::Compacted`], [`Refusal::FutureRevision`].
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Refusal> {
        check_range(request)?;
        let mut reading = begin(self, request, u64::MAX)?;
        let mut budget = Budget::new(u64::MAX);
        while reading.step(self, request, &mut budget)? == Progress::More {
            reading.settle();
        }
        Ok(reading.finish())
    }

    /// The revision to read at: the one that is named if it can be read, the newest if none is.
    pub(super) fn readable(&self, requested: i64, newest: i64) -> Result<i64, Refusal> {
        if requested > newest {
            return Err(Refusal::FutureRevision { requested, current: newest });
        }
        let revision = if requested <= 0 { newest } else { requested };
        if revision < self.compact_revision {
            return Err(Refusal::Compacted { requested, compacted: self.compact_revision });
        }
        Ok(revision)
    }

    /// The key and value that a put left. A record that the index names and the backend does not have, or that is
    /// not what was written, is a bug or a broken disk: no answer is better than a wrong one.
    pub(super) fn read(&self, at: RevisionKey) -> KeyValue {
        let bytes = self.backend.get(at).expect("the backend holds every record the index names");
        match record::decode(bytes) {
            Ok(Record::Put(kv)) => kv,
            Ok(Record::Tombstone(_)) => {
                panic!("record {}.{} is a tombstone where a put was written", at.main, at.sub)
            }
            Err(why) => panic!("record {}.{} is damaged: {why}", at.main, at.sub),
        }
    }
}

/// A range request that is answered in steps.
///
/// ```text
///   begin, step (under a lock of the store) → settle (without) → step … until Done → finish (without)
/// ```
#[derive(Debug)]
pub struct RangeWork {
    request: RangeRequest,
    reading: Reading,
    most_bytes: u64,
    /// From the first pause on.
    pin: Option<Pin>,
}

impl RangeWork {
    /// Begins to answer, as of now or of the revision that is named. An answer of more than `most_bytes` is refused.
    ///
    /// # Errors
    /// As [`Store::range`].
    pub fn begin<B: Backend>(
        store: &Store<B>,
        request: RangeRequest,
        most_bytes: u64,
    ) -> Result<RangeWork, Refusal> {
        check_range(&request)?;
        let reading = begin(store, &request, most_bytes)?;
        Ok(RangeWork { request, reading, most_bytes, pin: None })
    }

    /// Spends up to `units`. What it has not read yet is kept from being removed while it pauses. On a store that has
    /// taken the place of the one it began on, it begins anew.
    ///
    /// # Errors
    /// [`Refusal::AnswerTooLarge`], before the records of too large an answer are read; on a new store also
    /// [`Refusal::Compacted`] and [`Refusal::FutureRevision`].
    pub fn step<B: Backend>(&mut self, store: &Store<B>, units: u64) -> Result<Progress<()>, Refusal> {
        if self.pin.as_ref().is_some_and(|pin| !pin.is_of(&store.pins)) {
            self.pin = None;
            self.reading = begin(store, &self.request, self.most_bytes)?;
        }
        let progress = self.reading.step(store, &self.request, &mut Budget::new(units))?;
        if progress == Progress::More && self.pin.is_none() {
            self.pin = Some(Pin::new(&store.pins, self.reading.revision));
        }
        Ok(progress)
    }

    /// What takes long and needs no store: call it between steps, without a lock. Mostly does nothing.
    pub fn settle(&mut self) {
        self.reading.settle();
    }

    /// The revision as of which it reads.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.reading.revision
    }

    /// The answer, after the last step.
    #[must_use]
    pub fn finish(self) -> RangeResponse {
        self.reading.finish()
    }
}

fn begin<B: Backend>(store: &Store<B>, request: &RangeRequest, most_bytes: u64) -> Result<Reading, Refusal> {
    let newest = store.visible();
    let revision = store.readable(request.revision, newest)?;
    Ok(Reading::new(request, revision, newest, most_bytes))
}

/// A range that is being read. Takes the request with each step, so that nothing is copied for a small one.
#[derive(Debug)]
pub(super) struct Reading {
    plan: Plan,
    pub(super) revision: i64,
    /// What the header says.
    newest: i64,
    phase: Phase,
    /// The last key that was looked at.
    cursor: Option<Box<[u8]>>,
    count: usize,
    found: Vec<Change>,
    /// Of `found`, how many are read.
    read: usize,
    kvs: Vec<KeyValue>,
    /// More was found than the limit lets be answered.
    more: bool,
    keys_only: bool,
    /// Of what was read and is kept.
    pub(super) bytes: u64,
    /// Of what was found and will be read.
    expected: u64,
    most_bytes: u64,
    /// Waits for [`Reading::settle`].
    due: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Through the index.
    Walk,
    /// What was found is to be ordered and cut, before it is read.
    OrderFound,
    /// The records of what was found.
    Read,
    /// What was read is to be ordered and cut.
    OrderRead,
    Done,
}

impl Reading {
    /// Begins at a revision that can be read.
    pub(super) fn new(request: &RangeRequest, revision: i64, newest: i64, most_bytes: u64) -> Reading {
        Reading {
            plan: Plan::of(request),
            revision,
            newest,
            phase: Phase::Walk,
            cursor: None,
            count: 0,
            found: Vec::new(),
            read: 0,
            kvs: Vec::new(),
            more: false,
            keys_only: request.keys_only,
            bytes: 0,
            expected: 0,
            most_bytes,
            due: false,
        }
    }

    pub(super) fn step<B: Backend>(
        &mut self,
        store: &Store<B>,
        request: &RangeRequest,
        budget: &mut Budget,
    ) -> Result<Progress<()>, Refusal> {
        if self.due {
            self.settle();
        }
        loop {
            match self.phase {
                Phase::Walk => {
                    if self.walk(store, request, budget) == Progress::More {
                        return Ok(Progress::More);
                    }
                }
                Phase::OrderFound if self.found.len() > ORDERED_AT_ONCE => return Ok(self.wait()),
                Phase::OrderRead if self.kvs.len() > ORDERED_AT_ONCE => return Ok(self.wait()),
                Phase::OrderFound | Phase::OrderRead => self.settle(),
                Phase::Read => {
                    if self.read(store, budget)? == Progress::More {
                        return Ok(Progress::More);
                    }
                }
                Phase::Done => return Ok(Progress::Done(())),
            }
        }
    }

    /// What comes next is done by [`Reading::settle`], or by the next step if nobody calls that.
    fn wait(&mut self) -> Progress<()> {
        self.due = true;
        Progress::More
    }

    fn walk<B: Backend>(
        &mut self,
        store: &Store<B>,
        request: &RangeRequest,
        budget: &mut Budget,
    ) -> Progress<()> {
        let keys = KeyRange::new(&request.key, &request.range_end);
        let mut last = None;
        for (key, history) in store.index.range(keys, self.cursor.as_deref()) {
            if let Some(change) = history.live_at(self.revision) {
                self.count += 1;
                if !request.count_only
                    && self.found.len() < self.plan.fetch
                    && self.plan.passes_modified(change)
                {
                    self.found.push(change);
                }
            }
            budget.spend(1);
            if budget.is_spent() {
                last = Some(key);
                break;
            }
        }
        if let Some(last) = last {
            self.cursor = Some(last.into());
            return if self.has_too_much_found() { self.wait() } else { Progress::More };
        }
        self.cursor = None;
        self.phase = if request.count_only {
            Phase::Done
        } else if self.plan.decides_by_record() {
            Phase::Read
        } else {
            Phase::OrderFound
        };
        Progress::Done(())
    }

    fn read<B: Backend>(&mut self, store: &Store<B>, budget: &mut Budget) -> Result<Progress<()>, Refusal> {
        let by_record = self.plan.decides_by_record();
        let keeps_values = !self.keys_only || self.plan.orders_by_value();
        // The index knows the sizes: nothing is read of what would be too much.
        self.bounded(self.expected)?;
        while let Some(change) = self.found.get(self.read).copied() {
            self.read += 1;
            let mut kv = store.read(change.at());
            budget.spend(read_cost(change));
            if !by_record || self.plan.passes_created(&kv) {
                self.bytes = self.bytes.saturating_add(answer_bytes(&kv.key, change, !keeps_values));
                self.bounded(self.bytes)?;
                if !keeps_values {
                    drop_value(&mut kv);
                }
                self.kvs.push(kv);
            }
            if by_record && self.plan.is_full(self.kvs.len()) {
                // To be cut before more is read.
                return Ok(self.wait());
            }
            if budget.is_spent() && self.read < self.found.len() {
                return Ok(Progress::More);
            }
        }
        self.found = Vec::new();
        self.phase = if by_record { Phase::OrderRead } else { Phase::Done };
        Ok(Progress::Done(()))
    }

    fn has_too_much_found(&self) -> bool {
        !self.plan.decides_by_record() && self.plan.is_full(self.found.len())
    }

    fn bounded(&self, bytes: u64) -> Result<(), Refusal> {
        if bytes > self.most_bytes {
            return Err(Refusal::AnswerTooLarge { bytes, allowed: self.most_bytes });
        }
        Ok(())
    }

    /// Orders and cuts, without the store.
    pub(super) fn settle(&mut self) {
        self.due = false;
        match self.phase {
            Phase::Walk => {
                if self.has_too_much_found() {
                    self.cut_found();
                }
            }
            Phase::OrderFound => {
                self.cut_found();
                if self.plan.is_reversed() {
                    self.found.reverse();
                }
                self.kvs.reserve_exact(self.found.len());
                if !self.keys_only {
                    self.expected = self.found.iter().map(|change| answer_bytes(&[], *change, false)).sum();
                }
                self.phase = Phase::Read;
            }
            Phase::Read => {
                if self.plan.decides_by_record() && self.plan.is_full(self.kvs.len()) {
                    self.cut_read();
                }
            }
            Phase::OrderRead => {
                self.cut_read();
                self.phase = Phase::Done;
            }
            Phase::Done => {}
        }
    }

    fn cut_found(&mut self) {
        self.plan.order_changes(&mut self.found);
        let Some(over) = self.found.len().checked_sub(self.plan.limit).filter(|over| *over > 0) else {
            return;
        };
        self.more = true;
        if self.plan.is_reversed() {
            drop(self.found.drain(..over));
        } else {
            self.found.truncate(self.plan.limit);
        }
    }

    fn cut_read(&mut self) {
        self.plan.order_records(&mut self.kvs);
        if self.kvs.len() > self.plan.limit {
            self.more = true;
            self.kvs.truncate(self.plan.limit);
            // What was cut no longer counts.
            self.bytes = self.kvs.iter().map(|kv| (kv.key.len() + kv.value.len()) as u64 + 32).sum();
        }
    }

    /// The answer.
    pub(super) fn finish(mut self) -> RangeResponse {
        debug_assert_eq!(self.phase, Phase::Done, "finished after the last step");
        if self.keys_only {
            self.kvs.iter_mut().for_each(drop_value);
        }
        RangeResponse {
            header: Some(header(self.newest)),
            kvs: self.kvs,
            more: self.more,
            count: i64::try_from(self.count).unwrap_or(i64::MAX),
        }
    }
}

/// Takes the value out. A record whose key alone is answered need not stay in memory for it.
fn drop_value(kv: &mut KeyValue) {
    if kv.value.len() >= LET_GO_BYTES {
        kv.key = Bytes::copy_from_slice(&kv.key);
    }
    kv.value = Bytes::new();
}
