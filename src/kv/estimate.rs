//! What the operations of a transaction cost and answer, from the index alone: it knows the size of every record, and is
//! the same on all nodes. So what is too much is refused by all, before anything is written or read.

use super::Store;
use super::backend::Backend;
use super::cost::{Budget, Progress, answer_bytes, read_cost, write_cost};
use super::index::History;
use super::keys::KeyRange;
use super::path::Item;
use super::plan::Plan;
use super::refusal::Refusal;

/// How far the walk through the operations has come.
#[derive(Debug, Default)]
pub(super) struct Estimate {
    /// The operation at hand.
    next: usize,
    /// Answered by all operations before.
    bytes: u64,
    /// What the puts before will have written: a range may find it.
    written: u64,
    /// Of the operation at hand: the last key looked at, the bytes of all records found and of the longest.
    cursor: Option<Box<[u8]>>,
    total: u64,
    longest: u64,
}

/// What an operation looks at.
struct Target<'i> {
    keys: KeyRange<'i>,
    revision: i64,
    deletes: bool,
    answers: bool,
    keys_only: bool,
    limit: u64,
}

impl<'i> Target<'i> {
    fn of(item: &'i Item<'_>, newest: i64) -> Option<Target<'i>> {
        let keys_now = |keys, deletes, answers| Target {
            keys,
            revision: newest,
            deletes,
            answers,
            keys_only: false,
            limit: u64::MAX,
        };
        match item {
            Item::Begin { .. } | Item::End => None,
            Item::Put(put) => Some(keys_now(KeyRange::One(&put.key), false, put.prev_kv)),
            Item::Delete(delete) => {
                Some(keys_now(KeyRange::new(&delete.key, &delete.range_end), true, delete.prev_kv))
            }
            Item::Range(range) => Some(Target {
                keys: KeyRange::new(&range.key, &range.range_end),
                revision: if range.revision <= 0 { newest } else { range.revision },
                deletes: false,
                answers: !range.count_only,
                keys_only: range.keys_only,
                limit: Plan::of(range).limit as u64,
            }),
        }
    }
}

impl Estimate {
    /// Walks what the operations will, in the state before the transaction. A delete before them can only make it less;
    /// what a put before them adds is counted.
    pub(super) fn step<B: Backend>(
        &mut self,
        items: &[Item<'_>],
        (store, newest): (&Store<B>, i64),
        allowed: u64,
        budget: &mut Budget,
    ) -> Result<Progress<()>, Refusal> {
        while let Some(item) = items.get(self.next) {
            if let Some(target) = Target::of(item, newest) {
                let (mut last, cursor) = (None, self.cursor.take());
                for (key, history) in store.index.range(target.keys, cursor.as_deref()) {
                    self.look_at(&target, key, history, budget);
                    if budget.is_spent() {
                        last = Some(key);
                        break;
                    }
                }
                if let Some(last) = last {
                    self.cursor = Some(last.into());
                    return Ok(Progress::More);
                }
                self.add(&target, allowed)?;
            }
            if let Item::Put(put) = item {
                self.written += (put.key.len() + put.value.len()) as u64;
                budget.spend(write_cost(put.value.len()));
            }
            self.next += 1;
        }
        Ok(Progress::Done(()))
    }

    fn look_at(&mut self, target: &Target<'_>, key: &[u8], history: &History, budget: &mut Budget) {
        budget.spend(1);
        let Some(change) = history.live_at(target.revision) else { return };
        if target.deletes {
            budget.spend(write_cost(key.len()));
        }
        if target.answers {
            let bytes = answer_bytes(key, change, target.keys_only);
            self.total = self.total.saturating_add(bytes);
            self.longest = self.longest.max(bytes);
            budget.spend(read_cost(change));
        }
    }

    /// Adds what the operation at hand answers at most.
    fn add(&mut self, target: &Target<'_>, allowed: u64) -> Result<(), Refusal> {
        let found_writes = if target.answers && !target.deletes { self.written } else { 0 };
        let most = self.total.min(self.longest.saturating_mul(target.limit)).saturating_add(found_writes);
        let bytes = self.bytes.saturating_add(most);
        *self = Estimate { next: self.next, bytes, written: self.written, ..Estimate::default() };
        if bytes > allowed { Err(Refusal::AnswerTooLarge { bytes, allowed }) } else { Ok(()) }
    }
}
