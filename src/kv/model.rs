//! Random mutations and reads against a model too simple to be wrong in the same way: a full copy of the keys for
//! every revision, and sets of keys where the store has ranges. The store is reopened, compacted
//! and cleaned up at random points; none of it may show.

use std::collections::BTreeMap;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Applied, Backend, MemoryBackend, Refusal, Store, check_range, is_read_only};
use crate::proto::etcdserverpb::compare::TargetUnion;
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::response_op::Response;
use crate::proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, RequestOp, ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
};
use crate::proto::mvccpb::KeyValue;
use crate::proto::replcluster::{Mutation, mutation};

const KEYS: [&str; 7] = ["a", "aa", "b", "c", "c\0", "d", "\u{ff}"];

type Keys = BTreeMap<Bytes, KeyValue>;

/// The revisions from 1 on.
#[derive(Clone)]
pub(super) struct Model {
    revisions: Vec<Keys>,
    /// Every change in order: its revision, its key, and whether it is a put.
    changes: Vec<(i64, Bytes, bool)>,
    pub(super) compacted: i64,
}

impl Model {
    pub(super) fn new() -> Model {
        Model { revisions: vec![Keys::new()], changes: Vec::new(), compacted: -1 }
    }

    pub(super) fn revision(&self) -> i64 {
        i64::try_from(self.revisions.len()).unwrap()
    }

    pub(super) fn at(&self, revision: i64) -> &Keys {
        &self.revisions[usize::try_from(revision - 1).unwrap()]
    }

    pub(super) fn apply(&mut self, mutation: &Mutation) -> Result<Applied, Refusal> {
        let mut next = Draft { model: self, keys: self.at(self.revision()).clone(), changes: Vec::new() };
        let applied = match mutation.request.as_ref().ok_or(Refusal::EmptyMutation)? {
            mutation::Request::Put(request) => {
                form(&Request::RequestPut(request.clone()))?;
                if request.lease != 0 {
                    return Err(Refusal::LeaseNotFound(request.lease));
                }
                next.check(&Request::RequestPut(request.clone()), &next.keys)?;
                Applied::Put(next.put(request))
            }
            mutation::Request::DeleteRange(request) => {
                form(&Request::RequestDeleteRange(request.clone()))?;
                Applied::DeleteRange(next.delete(request))
            }
            mutation::Request::Txn(request) => Applied::Txn(next.txn(request)?),
            mutation::Request::Space(_) | mutation::Request::FeatureLevel(_) => {
                unreachable!("the model has room")
            }
            mutation::Request::Compact(request) => {
                let (requested, current) = (request.revision, self.revision());
                if requested <= self.compacted {
                    return Err(Refusal::Compacted { requested, compacted: self.compacted });
                }
                if requested > current {
                    return Err(Refusal::FutureRevision { requested, current });
                }
                self.compacted = requested;
                return Ok(Applied::Compact(CompactionResponse { header: header(current) }));
            }
        };
        let Draft { keys, changes, .. } = next;
        if !changes.is_empty() {
            let revision = self.revision() + 1;
            self.changes.extend(changes.into_iter().map(|(key, is_put)| (revision, key, is_put)));
            self.revisions.push(keys);
        }
        Ok(applied)
    }

    pub(super) fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Refusal> {
        form(&Request::RequestRange(request.clone()))?;
        let (requested, current) = (request.revision, self.revision());
        if requested > current {
            return Err(Refusal::FutureRevision { requested, current });
        }
        let revision = if requested <= 0 { current } else { requested };
        if revision < self.compacted {
            return Err(Refusal::Compacted { requested, compacted: self.compacted });
        }
        Ok(select(self.at(revision), request, current))
    }

    /// How many records a store holds when nothing is left to remove.
    pub(super) fn kept_records(&self) -> usize {
        let kept = |(place, change): &(usize, &(i64, Bytes, bool))| {
            let (revision, key, is_put) = change;
            let later = &self.changes[place + 1..];
            let hidden = later.iter().any(|(next, same, _)| same == key && *next <= self.compacted);
            *revision > self.compacted || (!hidden && (*is_put || *revision == self.compacted))
        };
        self.changes.iter().enumerate().filter(kept).count()
    }
}

/// A revision in the making.
struct Draft<'m> {
    model: &'m Model,
    keys: Keys,
    changes: Vec<(Bytes, bool)>,
}

impl Draft<'_> {
    fn newest(&self) -> i64 {
        self.model.revision() + i64::from(!self.changes.is_empty())
    }

    fn before(&self) -> &Keys {
        self.model.at(self.model.revision())
    }

    fn put(&mut self, request: &PutRequest) -> PutResponse {
        self.changes.push((request.key.clone(), true));
        let revision = self.newest();
        let previous = self.keys.get(&request.key).cloned();
        let (created, version) =
            previous.as_ref().map_or((revision, 0), |kv| (kv.create_revision, kv.version));
        let value =
            if request.ignore_value { previous.clone().unwrap().value } else { request.value.clone() };
        let kv = KeyValue {
            key: request.key.clone(),
            value,
            create_revision: created,
            mod_revision: revision,
            version: version + 1,
            lease: 0,
        };
        self.keys.insert(request.key.clone(), kv);
        PutResponse { header: header(revision), prev_kv: previous.filter(|_| request.prev_kv) }
    }

    fn delete(&mut self, request: &DeleteRangeRequest) -> DeleteRangeResponse {
        let inside = |key: &Bytes| inside(key, &request.key, &request.range_end);
        let gone: Vec<KeyValue> = self.keys.values().filter(|kv| inside(&kv.key)).cloned().collect();
        self.keys.retain(|key, _| !inside(key));
        self.changes.extend(gone.iter().map(|kv| (kv.key.clone(), false)));
        DeleteRangeResponse {
            header: header(self.newest()),
            deleted: i64::try_from(gone.len()).unwrap(),
            prev_kvs: if request.prev_kv { gone } else { Vec::new() },
        }
    }

    fn txn(&mut self, request: &TxnRequest) -> Result<TxnResponse, Refusal> {
        forms(request)?;
        collide(&request.success)?;
        collide(&request.failure)?;
        let mut puts_then_ranges = Vec::new();
        self.walk(request, &mut puts_then_ranges);
        puts_then_ranges.sort_by_key(|operation| matches!(operation, Request::RequestRange(_)));
        let mut left = self.keys.clone();
        for operation in &puts_then_ranges {
            self.check(operation, &left)?;
            if let Request::RequestDeleteRange(delete) = operation {
                left.retain(|key, _| !inside(key, &delete.key, &delete.range_end));
            }
        }
        let before = self.before().clone();
        let mut answer = self.run(request, &before);
        answer.header = header(self.newest());
        Ok(answer)
    }

    fn walk(&self, request: &TxnRequest, into: &mut Vec<Request>) {
        for operation in branch(request, self.before()) {
            match operation.request.as_ref().unwrap() {
                Request::RequestTxn(inner) => self.walk(inner, into),
                other => into.push(other.clone()),
            }
        }
    }

    fn check(&self, operation: &Request, keys: &Keys) -> Result<(), Refusal> {
        let (current, compacted) = (self.model.revision(), self.model.compacted);
        match operation {
            Request::RequestPut(put)
                if (put.ignore_value || put.ignore_lease) && !keys.contains_key(&put.key) =>
            {
                Err(Refusal::KeyNotFound)
            }
            Request::RequestPut(put) if put.lease != 0 => Err(Refusal::LeaseNotFound(put.lease)),
            Request::RequestRange(range) if range.revision > current => {
                Err(Refusal::FutureRevision { requested: range.revision, current })
            }
            Request::RequestRange(range) if range.revision != 0 && range.revision < compacted => {
                Err(Refusal::Compacted { requested: range.revision, compacted })
            }
            _ => Ok(()),
        }
    }

    fn run(&mut self, request: &TxnRequest, before: &Keys) -> TxnResponse {
        let mut responses = Vec::new();
        for operation in branch(request, before) {
            let response = match operation.request.as_ref().unwrap() {
                Request::RequestPut(put) => Response::ResponsePut(self.put(put)),
                Request::RequestDeleteRange(delete) => Response::ResponseDeleteRange(self.delete(delete)),
                Request::RequestTxn(inner) => Response::ResponseTxn(self.run(inner, before)),
                Request::RequestRange(range) if range.revision > 0 => {
                    Response::ResponseRange(select(self.model.at(range.revision), range, self.newest()))
                }
                Request::RequestRange(range) => {
                    Response::ResponseRange(select(&self.keys, range, self.newest()))
                }
            };
            responses.push(ResponseOp { response: Some(response) });
        }
        let succeeded = request.compare.iter().all(|compare| holds(compare, before));
        TxnResponse { header: Some(ResponseHeader::default()), succeeded, responses }
    }
}

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..ResponseHeader::default() })
}

fn inside(key: &[u8], from: &[u8], to: &[u8]) -> bool {
    match to {
        b"" => key == from,
        b"\0" => key >= from,
        to => key >= from && key < to,
    }
}

fn branch<'r>(request: &'r TxnRequest, before: &Keys) -> &'r [RequestOp] {
    let succeeded = request.compare.iter().all(|compare| holds(compare, before));
    if succeeded { &request.success } else { &request.failure }
}

fn holds(compare: &Compare, before: &Keys) -> bool {
    let zero = KeyValue::default();
    let mut kvs: Vec<&KeyValue> =
        before.values().filter(|kv| inside(&kv.key, &compare.key, &compare.range_end)).collect();
    if kvs.is_empty() {
        if compare.target == 3 {
            return false;
        }
        kvs.push(&zero);
    }
    kvs.iter().all(|kv| {
        let ordering = match compare.target_union.as_ref().unwrap() {
            TargetUnion::Version(version) => kv.version.cmp(version),
            TargetUnion::CreateRevision(revision) => kv.create_revision.cmp(revision),
            TargetUnion::ModRevision(revision) => kv.mod_revision.cmp(revision),
            TargetUnion::Value(value) => kv.value.cmp(value),
            TargetUnion::Lease(lease) => kv.lease.cmp(lease),
        };
        match compare.result {
            0 => ordering.is_eq(),
            1 => ordering.is_gt(),
            2 => ordering.is_lt(),
            _ => ordering.is_ne(),
        }
    })
}

/// Selects, filters, sorts and cuts, always looking at everything.
fn select(keys: &Keys, request: &RangeRequest, newest: i64) -> RangeResponse {
    let mut kvs: Vec<KeyValue> =
        keys.values().filter(|kv| inside(&kv.key, &request.key, &request.range_end)).cloned().collect();
    let count = i64::try_from(kvs.len()).unwrap();
    if request.count_only {
        return RangeResponse { header: header(newest), kvs: Vec::new(), more: false, count };
    }
    let limit = usize::try_from(request.limit).unwrap_or(0);
    let filters = [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ];
    if limit > 0 && request.sort_order == 0 && filters == [0; 4] {
        kvs.truncate(limit + 1);
    }
    let [min_mod, max_mod, min_create, max_create] = filters;
    let keep = |value: i64, min: i64, max: i64| (min == 0 || value >= min) && (max == 0 || value <= max);
    kvs.retain(|kv| {
        keep(kv.mod_revision, min_mod, max_mod) && keep(kv.create_revision, min_create, max_create)
    });
    let by = |kv: &KeyValue| match request.sort_target {
        0 => (0, kv.key.clone()),
        1 => (kv.version, Bytes::new()),
        2 => (kv.create_revision, Bytes::new()),
        3 => (kv.mod_revision, Bytes::new()),
        _ => (0, kv.value.clone()),
    };
    if request.sort_order == 2 {
        kvs.sort_by_key(|kv| std::cmp::Reverse(by(kv)));
    } else {
        kvs.sort_by_key(by);
    }
    let more = limit > 0 && kvs.len() > limit;
    if limit > 0 {
        kvs.truncate(limit);
    }
    if request.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    RangeResponse { header: header(newest), kvs, more, count }
}

fn forms(request: &TxnRequest) -> Result<(), Refusal> {
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(Refusal::EmptyKey);
    }
    for operation in request.success.iter().chain(&request.failure) {
        match operation.request.as_ref().ok_or(Refusal::EmptyOperation)? {
            Request::RequestTxn(inner) => forms(inner)?,
            other => form(other)?,
        }
    }
    Ok(())
}

fn form(operation: &Request) -> Result<(), Refusal> {
    match operation {
        Request::RequestPut(put) if put.key.is_empty() => Err(Refusal::EmptyKey),
        Request::RequestPut(put) if put.ignore_value && !put.value.is_empty() => Err(Refusal::ValueProvided),
        Request::RequestPut(put) if put.ignore_lease && put.lease != 0 => Err(Refusal::LeaseProvided),
        Request::RequestDeleteRange(delete) if delete.key.is_empty() => Err(Refusal::EmptyKey),
        Request::RequestRange(range) => check_range(range),
        _ => Ok(()),
    }
}

/// The keys that are put and those that are deleted, by etcd's rule: deletes of this level, then the transactions
/// inside in order, then puts of this level. A delete without end counts for nothing.
fn collide(operations: &[RequestOp]) -> Result<(Vec<Bytes>, Vec<Bytes>), Refusal> {
    let (mut puts, mut deletes) = (Vec::new(), Vec::new());
    let requests = || operations.iter().map(|operation| operation.request.as_ref().unwrap());
    for request in requests() {
        if let Request::RequestDeleteRange(delete) = request
            && delete.range_end != "\0"
        {
            let doomed =
                KEYS.into_iter().filter(|key| inside(key.as_bytes(), &delete.key, &delete.range_end));
            deletes.extend(doomed.map(Bytes::from));
        }
    }
    for request in requests() {
        if let Request::RequestTxn(inner) = request {
            let (mut new_puts, mut new_deletes) = collide(&inner.success)?;
            let (other_puts, other_deletes) = collide(&inner.failure)?;
            new_puts.extend(other_puts);
            new_deletes.extend(other_deletes);
            if new_puts.iter().any(|key| puts.contains(key) || deletes.contains(key)) {
                return Err(Refusal::DuplicateKey);
            }
            puts.extend(new_puts);
            deletes.extend(new_deletes);
        }
    }
    for request in requests() {
        if let Request::RequestPut(put) = request {
            if puts.contains(&put.key) || deletes.contains(&put.key) {
                return Err(Refusal::DuplicateKey);
            }
            puts.push(put.key.clone());
        }
    }
    Ok((puts, deletes))
}

/// Makes requests that meet each other: few keys, few values, revisions around those that exist.
pub(super) struct Generator {
    pub(super) random: StdRng,
    pub(super) revision: i64,
    pub(super) compacted: i64,
}

impl Generator {
    pub(super) fn one_in(&mut self, number: u32) -> bool {
        self.random.random_range(0..number) == 0
    }

    fn key(&mut self) -> Bytes {
        if self.one_in(150) {
            return Bytes::new();
        }
        Bytes::from_static(KEYS[self.random.random_range(0..KEYS.len())].as_bytes())
    }

    fn range_end(&mut self) -> Bytes {
        match self.random.random_range(0..6) {
            0..=2 => Bytes::new(),
            3 => Bytes::from_static(b"\0"),
            _ => self.key(),
        }
    }

    fn revision(&mut self) -> i64 {
        match self.random.random_range(0..10) {
            0..=5 => 0,
            6 => self.random.random_range(-2..=self.revision + 2),
            _ => self.random.random_range(self.compacted.max(1) - 1..=self.revision + 1),
        }
    }

    fn filter(&mut self) -> i64 {
        if self.one_in(8) { self.random.random_range(1..=self.revision) } else { 0 }
    }

    pub(super) fn range(&mut self) -> RangeRequest {
        RangeRequest {
            key: self.key(),
            range_end: self.range_end(),
            limit: if self.one_in(3) { self.random.random_range(-1..5) } else { 0 },
            revision: self.revision(),
            sort_order: if self.one_in(2) { self.random.random_range(0..3) } else { 0 },
            sort_target: if self.one_in(2) { self.random.random_range(0..5) } else { 0 },
            serializable: false,
            keys_only: self.one_in(8),
            count_only: self.one_in(8),
            min_mod_revision: self.filter(),
            max_mod_revision: self.filter(),
            min_create_revision: self.filter(),
            max_create_revision: self.filter(),
        }
    }

    fn put(&mut self) -> PutRequest {
        let ignore_value = self.one_in(10);
        let no_value = ignore_value && !self.one_in(10);
        let value = if no_value { String::new() } else { self.random.random_range(0..5).to_string() };
        PutRequest {
            key: self.key(),
            value: value.into(),
            lease: if self.one_in(60) { 7 } else { 0 },
            prev_kv: self.one_in(3),
            ignore_value,
            ignore_lease: self.one_in(15),
        }
    }

    fn delete(&mut self) -> DeleteRangeRequest {
        DeleteRangeRequest { key: self.key(), range_end: self.range_end(), prev_kv: self.one_in(3) }
    }

    fn compare(&mut self) -> Compare {
        let number = if self.one_in(2) { self.random.random_range(0..3) } else { self.revision };
        let target = self.random.random_range(0..5);
        let operand = match target {
            0 => TargetUnion::Version(number),
            1 => TargetUnion::CreateRevision(number),
            2 => TargetUnion::ModRevision(number),
            3 => TargetUnion::Value(self.random.random_range(0..5).to_string().into()),
            _ => TargetUnion::Lease(number),
        };
        let range_end = if self.one_in(3) { self.range_end() } else { Bytes::new() };
        let result = self.random.random_range(0..4);
        Compare { result, target, key: self.key(), range_end, target_union: Some(operand) }
    }

    fn operations(&mut self, depth: u32) -> Vec<RequestOp> {
        let operation = |this: &mut Self| match this.random.random_range(0..8) {
            0..=2 => Request::RequestRange(this.range()),
            3..=4 => Request::RequestPut(this.put()),
            5 => Request::RequestDeleteRange(this.delete()),
            _ if depth > 0 => Request::RequestTxn(this.txn(depth - 1)),
            _ => Request::RequestPut(this.put()),
        };
        (0..self.random.random_range(0..4))
            .map(|_| RequestOp { request: if self.one_in(200) { None } else { Some(operation(self)) } })
            .collect()
    }

    pub(super) fn txn(&mut self, depth: u32) -> TxnRequest {
        let compare = (0..self.random.random_range(0..3)).map(|_| self.compare()).collect();
        TxnRequest { compare, success: self.operations(depth), failure: self.operations(depth) }
    }

    pub(super) fn mutation(&mut self) -> Mutation {
        let request = match self.random.random_range(0..20) {
            0..=7 => mutation::Request::Put(self.put()),
            8..=10 => mutation::Request::DeleteRange(self.delete()),
            11 => {
                let near = self.random.random_range(self.compacted - 1..=self.revision + 1);
                let revision = if self.one_in(3) { near } else { near.min(self.compacted + 6) };
                mutation::Request::Compact(CompactionRequest { revision, physical: false })
            }
            _ => mutation::Request::Txn(self.txn(2)),
        };
        Mutation { request: Some(request) }
    }
}

fn reopened(store: &Store<MemoryBackend>) -> Store<MemoryBackend> {
    Store::open(store.backend().clone()).expect("what a store wrote can be opened")
}

fn record_bytes(backend: &MemoryBackend) -> u64 {
    let mut bytes = 0;
    backend.scan(&mut |_, record| bytes += u64::try_from(record.len()).unwrap());
    bytes
}

/// One run. The store under test is reopened and cleaned up at random; the other never is.
fn run(seed: u64, steps: u32) {
    let mut model = Model::new();
    let mut store = Store::open(MemoryBackend::default()).unwrap();
    let mut hoarder = store.clone();
    let mut generator = Generator { random: StdRng::seed_from_u64(seed), revision: 1, compacted: -1 };
    for step in 0..steps {
        let place = format!("seed {seed} step {step}");
        (generator.revision, generator.compacted) = (model.revision(), model.compacted);
        let mutation = generator.mutation();
        let expected = model.apply(&mutation);
        if let Some(mutation::Request::Txn(request)) = &mutation.request
            && is_read_only(request)
        {
            assert_eq!(store.read_txn(request).map(Applied::Txn), expected, "{place}: {request:?}");
        }
        assert_eq!(store.apply(&mutation), expected, "{place}: {mutation:?}");
        assert_eq!(hoarder.apply(&mutation), expected, "{place}: {mutation:?}");

        match generator.random.random_range(0..8) {
            0 => store = reopened(&store),
            1 | 2 => {
                let budget = generator.random.random_range(1..6);
                store.compact_some(budget);
            }
            _ => {}
        }
        let read = generator.range();
        assert_eq!(store.range(&read), model.range(&read), "{place}: {read:?}");
        assert_eq!(store.revision(), model.revision(), "{place}");
        assert_eq!(store.compact_revision(), model.compacted, "{place}");
        assert_eq!(store.key_count(), model.at(model.revision()).len(), "{place}");
        assert_eq!(store.record_bytes(), record_bytes(store.backend()), "{place}");
        if step % 16 == 0 {
            compare_histories(&store, &hoarder, &model, &place);
        }
    }
    while store.compact_some(3) == super::Removed::Some {}
    assert_eq!(store.backend().len(), model.kept_records(), "seed {seed}: what is left after the removal");
    compare_histories(&store, &hoarder, &model, &format!("seed {seed} at the end"));
    assert_eq!(reopened(&store).backend(), store.backend());
}

fn compare_histories(
    store: &Store<MemoryBackend>,
    hoarder: &Store<MemoryBackend>,
    model: &Model,
    place: &str,
) {
    let everything = |revision| RangeRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        revision,
        ..RangeRequest::default()
    };
    for revision in model.compacted.max(1)..=model.revision() {
        let request = everything(revision);
        assert_eq!(store.range(&request), model.range(&request), "{place} revision {revision}");
        assert_eq!(store.hash(revision), hoarder.hash(revision), "{place} revision {revision}");
    }
}

#[test]
fn the_store_answers_as_the_model_does() {
    for seed in 0..150 {
        run(seed, 200);
    }
}

#[test]
fn the_same_mutations_give_the_same_bytes() {
    for seed in 0..20 {
        let mut stores = [(); 2].map(|()| Store::open(MemoryBackend::default()).unwrap());
        let mut generator = Generator { random: StdRng::seed_from_u64(seed), revision: 1, compacted: -1 };
        for step in 0..200 {
            (generator.revision, generator.compacted) = (stores[0].revision(), stores[0].compact_revision());
            let mutation = generator.mutation();
            let answers = stores.each_mut().map(|store| store.apply(&mutation));
            assert_eq!(answers[0], answers[1], "seed {seed} step {step}");
            let removals = stores.each_mut().map(|store| store.compact_some(2));
            assert_eq!(removals[0], removals[1], "seed {seed} step {step}");
        }
        assert_eq!(stores[0].backend(), stores[1].backend(), "seed {seed}");
        assert_eq!(stores[0].hash(0), stores[1].hash(0), "seed {seed}");
    }
}

#[test]
fn different_contents_have_different_hashes() {
    let hash = |value: &'static str| {
        let mut store = Store::open(MemoryBackend::default()).unwrap();
        let put = PutRequest { key: "k".into(), value: value.into(), ..PutRequest::default() };
        store.apply(&Mutation { request: Some(mutation::Request::Put(put)) }).unwrap();
        store.hash(0).unwrap()
    };
    assert_ne!(hash("1"), hash("2"));
}

#[test]
fn the_model_tells_a_store_that_loses_a_record() {
    let mut store = Store::open(MemoryBackend::default()).unwrap();
    let mut model = Model::new();
    for value in ["1", "2"] {
        let put = PutRequest { key: "a".into(), value: value.into(), ..PutRequest::default() };
        let mutation = Mutation { request: Some(mutation::Request::Put(put)) };
        assert_eq!(store.apply(&mutation), model.apply(&mutation));
    }
    store.backend_mut().delete(super::RevisionKey { main: 3, sub: 0 });
    let request = RangeRequest { key: "a".into(), ..RangeRequest::default() };
    assert_ne!(reopened(&store).range(&request), model.range(&request));
}
