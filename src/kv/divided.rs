//! Mutations and reads that are divided: however they are, nothing else comes out than in one go, and nobody sees a half.

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::model::{Generator, Model};
use super::{
    Applied, Hash, Look, MemoryBackend, Progress, RangeWork, Refusal, Removed, Store, TxnWork, Work,
    is_read_only,
};
use crate::proto::etcdserverpb::{RangeRequest, RangeResponse, TxnRequest, TxnResponse};
use crate::proto::replcluster::{FeatureLevel, Mutation, mutation};
use crate::rules::{Rule, without};

pub(super) fn store(level: u32) -> Store<MemoryBackend> {
    let mut store = Store::open(MemoryBackend::default()).unwrap();
    if level > 0 {
        let level = mutation::Request::FeatureLevel(FeatureLevel { level });
        store.apply(&Mutation { request: Some(level) }).unwrap();
    }
    store
}

pub(super) fn everything() -> RangeRequest {
    RangeRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        ..RangeRequest::default()
    }
}

/// A read that is under way, and what it must come to.
enum Read {
    Range(Box<RangeWork>, RangeResponse),
    Txn(Box<TxnWork>, TxnResponse),
}

impl Read {
    /// True while there is more to do.
    fn step(&mut self, store: &Store<MemoryBackend>, units: u64) -> bool {
        match self {
            Read::Range(work, _) => {
                work.settle();
                work.step(store, units) == Ok(Progress::More)
            }
            Read::Txn(work, _) => {
                work.settle();
                work.step(store, units) == Ok(Progress::More)
            }
        }
    }

    fn compare(self, place: &str) {
        match self {
            Read::Range(work, expected) => assert_eq!(work.finish(), expected, "{place}"),
            Read::Txn(work, expected) => assert_eq!(work.finish(), expected, "{place}"),
        }
    }
}

/// What a reader sees of a store.
fn seen(store: &Store<MemoryBackend>) -> (i64, usize, u64, RangeResponse, Hash) {
    let hash = store.hash(0).unwrap();
    (store.revision(), store.key_count(), store.record_bytes(), store.range(&everything()).unwrap(), hash)
}

struct Divider {
    generator: Generator,
    store: Store<MemoryBackend>,
    reads: Vec<Read>,
}

impl Divider {
    fn units(&mut self) -> u64 {
        self.generator.random.random_range(1..30)
    }

    /// Begins a read of what is there now.
    fn begin_read(&mut self) {
        let range = self.generator.range();
        if let Ok(work) = RangeWork::begin(&self.store, range.clone(), u64::MAX) {
            let expected = self.store.range(&range).unwrap();
            self.reads.push(Read::Range(Box::new(work), expected));
        }
        let txn = self.generator.txn(2);
        if is_read_only(&txn)
            && let Ok(expected) = self.store.read_txn(&txn)
        {
            let work = TxnWork::begin(&self.store, txn, u64::MAX).unwrap();
            self.reads.push(Read::Txn(Box::new(work), expected));
        }
    }

    /// What others do between two steps of a mutation.
    fn others(&mut self, place: &str) {
        if self.generator.one_in(3) {
            self.begin_read();
        }
        if self.generator.one_in(3) {
            self.store.compact_some(2);
        }
        for mut read in std::mem::take(&mut self.reads) {
            let units = self.units();
            if read.step(&self.store, units) {
                self.reads.push(read);
            } else {
                read.compare(place);
            }
        }
    }

    fn apply(&mut self, mutation: &Mutation, place: &str) -> Result<Applied, Refusal> {
        let before = seen(&self.store);
        let mut work = Work::new(mutation.clone(), true);
        loop {
            let units = self.units();
            let looked = if self.generator.one_in(3) { Look::Write } else { work.look(&self.store, units) };
            match looked {
                Look::Done(outcome) => return outcome,
                Look::Write => {
                    if let Progress::Done(outcome) = work.step(&mut self.store, units) {
                        return outcome;
                    }
                }
                Look::More => {}
            }
            if self.generator.one_in(2) {
                work.settle();
            }
            let now = seen(&self.store);
            assert_eq!((now.0, now.1, &now.3, now.4), (before.0, before.1, &before.3, before.4), "{place}");
            self.others(place);
        }
    }
}

fn run(seed: u64, steps: u32) {
    let random = StdRng::seed_from_u64(seed);
    let generator = Generator { random, revision: 1, compacted: -1 };
    let mut divider = Divider { generator, store: store(1), reads: Vec::new() };
    let mut model = Model::new();
    for step in 0..steps {
        let place = format!("seed {seed} step {step}");
        (divider.generator.revision, divider.generator.compacted) =
            (model.revision(), divider.store.compact_revision());
        let mutation = divider.generator.mutation();
        let expected = model.apply(&mutation);
        assert_eq!(divider.apply(&mutation, &place), expected, "{place}: {mutation:?}");
        divider.others(&place);
        assert_eq!(divider.store.range(&everything()), model.range(&everything()), "{place}");
    }
    // What was held back for readers goes when they have gone.
    while !divider.reads.is_empty() {
        divider.others("at the end");
        if divider.reads.len() > 8 {
            divider.reads.truncate(1);
        }
    }
    while divider.store.compact_some(3) == Removed::Some {}
    assert!(!divider.store.is_compacting());
    assert_eq!(divider.store.backend().len(), model.kept_records(), "seed {seed}");
}

#[test]
fn however_it_is_divided_nothing_else_comes_out_and_no_half_is_seen() {
    for seed in 0..60 {
        run(seed, 80);
    }
    let seen = without(Some(Rule::HideHalf), || std::panic::catch_unwind(|| run(0, 80)));
    assert!(seen.is_err(), "a half that can be seen is noticed");
}

#[test]
fn whether_an_answer_is_wanted_changes_nothing_but_the_answer() {
    for seed in 0..40 {
        let random = StdRng::seed_from_u64(seed);
        let mut generator = Generator { random, revision: 1, compacted: -1 };
        let (mut one, mut other) = (store(1), store(1));
        for step in 0..100 {
            (generator.revision, generator.compacted) = (one.revision(), one.compact_revision());
            let mutation = generator.mutation();
            let (wanted, not) = (one.apply_for(&mutation, true), other.apply_for(&mutation, false));
            assert_eq!(wanted.as_ref().err(), not.as_ref().err(), "seed {seed} step {step}: {mutation:?}");
            if let (Ok(Applied::Txn(wanted)), Ok(Applied::Txn(not))) = (wanted, not) {
                assert_eq!((wanted.succeeded, wanted.header), (not.succeeded, not.header));
                assert!(not.responses.is_empty(), "nothing was built");
            }
        }
        assert_eq!(one.backend(), other.backend(), "seed {seed}");
    }
}

#[test]
fn a_read_that_began_before_a_compaction_keeps_its_records() {
    read_across_a_compaction();
    let lost = without(Some(Rule::KeepForReaders), || std::panic::catch_unwind(read_across_a_compaction));
    assert!(lost.is_err(), "records that are removed too early are noticed");
}

fn read_across_a_compaction() {
    let mut generator = Generator { random: StdRng::seed_from_u64(3), revision: 1, compacted: -1 };
    let mut store = store(1);
    for _ in 0..40 {
        let mutation = generator.mutation();
        if !matches!(mutation.request, Some(mutation::Request::Compact(_))) {
            let _ = store.apply(&mutation);
        }
        generator.revision = store.revision();
    }
    let expected = store.range(&everything()).unwrap();
    assert!(expected.count > 2);
    let mut work = RangeWork::begin(&store, everything(), u64::MAX).unwrap();
    assert_eq!(work.step(&store, 1), Ok(Progress::More));
    for key in &expected.kvs {
        let put = crate::proto::etcdserverpb::PutRequest { key: key.key.clone(), ..Default::default() };
        store.apply(&Mutation { request: Some(mutation::Request::Put(put)) }).unwrap();
    }
    let compact =
        crate::proto::etcdserverpb::CompactionRequest { revision: store.revision(), physical: false };
    store.apply(&Mutation { request: Some(mutation::Request::Compact(compact)) }).unwrap();
    let held = store.compact_some(usize::MAX);
    while work.step(&store, 1) == Ok(Progress::More) {}
    assert_eq!(work.finish(), expected);
    assert_eq!(held, Removed::Held);
    assert_eq!(store.compact_some(usize::MAX), Removed::All);
    assert_eq!(store.backend().len(), expected.kvs.len());
}

#[test]
fn a_read_goes_on_where_the_store_was_replaced() {
    let mut generator = Generator { random: StdRng::seed_from_u64(3), revision: 1, compacted: -1 };
    let mut store = store(1);
    for _ in 0..40 {
        let _ = store.apply(&generator.mutation());
        generator.revision = store.revision();
    }
    let mut work = RangeWork::begin(&store, everything(), u64::MAX).unwrap();
    assert_eq!(work.step(&store, 1), Ok(Progress::More));
    let mut snapshot = Store::open(store.backend().clone()).unwrap();
    let put = crate::proto::etcdserverpb::PutRequest { key: "new".into(), ..Default::default() };
    snapshot.apply(&Mutation { request: Some(mutation::Request::Put(put)) }).unwrap();
    drop(store);
    while work.step(&snapshot, 1) == Ok(Progress::More) {}
    assert_eq!(work.finish(), snapshot.range(&everything()).unwrap(), "what the new one holds, all of it");
}

#[test]
fn an_empty_transaction_is_done_at_once() {
    let mut store = store(1);
    let mut work = Work::new(Mutation { request: Some(mutation::Request::Txn(TxnRequest::default())) }, true);
    let done = work.step(&mut store, u64::MAX);
    assert!(matches!(done, Progress::Done(Ok(Applied::Txn(answer))) if answer.succeeded));
}
