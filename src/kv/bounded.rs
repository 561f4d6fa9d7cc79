//! Requests at every bound and right above it: nested, wide, costly, with answers without end.

use bytes::Bytes;
use prost::Message as _;

use super::divided::{everything, store};
use super::{
    ANSWER_BYTES, Applied, Class, Limits, Look, MemoryBackend, Progress, Refusal, STEP_UNITS, Store, Work,
    check, decode, encode, grows, is_read_only,
};
use crate::proto::etcdserverpb::compare::CompareTarget;
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::{Compare, DeleteRangeRequest, PutRequest, RequestOp, TxnRequest};
use crate::proto::nested::{DEPTH, NESTED_WEIGHT};
use crate::proto::replcluster::{Mutation, mutation};
use crate::rules::{Rule, without};

/// A quarter of what a thread of the program has. Half of it is enough but for a build without any optimization.
const SMALL_STACK: usize = 512 << 10;

fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> PutRequest {
    PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() }
}

fn operation(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn txn_of(success: Vec<RequestOp>) -> TxnRequest {
    TxnRequest { success, ..TxnRequest::default() }
}

fn mutation_of(request: TxnRequest) -> Mutation {
    Mutation { request: Some(mutation::Request::Txn(request)) }
}

/// So many transactions inside each other, a put in the innermost.
fn nest(depth: usize) -> Mutation {
    let mut txn = txn_of(vec![operation(Request::RequestPut(put("k", "v")))]);
    for _ in 1..depth {
        txn = txn_of(vec![operation(Request::RequestTxn(txn))]);
    }
    mutation_of(txn)
}

fn on_a_small_stack<R: Send + 'static>(body: impl FnOnce() -> R + Send + 'static) -> R {
    std::thread::Builder::new().stack_size(SMALL_STACK).spawn(body).unwrap().join().unwrap()
}

#[test]
fn at_the_bound_of_depth_everything_is_done_on_a_small_stack() {
    on_a_small_stack(|| {
        // 49 is where the generated code decodes the request and not the entry; the innermost of 128 has an operation.
        for depth in [1, 48, 49, 50, DEPTH - 1, DEPTH] {
            let mutation = nest(depth);
            let bytes = encode(&mutation).unwrap();
            assert_eq!(decode(&bytes, 1).as_ref(), Ok(&mutation), "depth {depth}");
            assert_eq!(check(&mutation, Limits::NONE), Ok(()));
            assert_eq!(
                check(&mutation, Limits::DEFAULT).is_ok(),
                depth <= 128,
                "etcd's own bound is not below ours"
            );
            assert!(grows(&mutation));
            let Some(mutation::Request::Txn(txn)) = &mutation.request else { unreachable!() };
            assert!(!is_read_only(txn));
            let mut store = store(1);
            assert_eq!(store.class_of(&mutation), Class::Light);
            let Ok(Applied::Txn(answer)) = store.apply(&mutation) else { panic!("applied") };
            assert_eq!(store.key_count(), 1);
            assert!(answer.encode_to_vec().len() > depth);
            assert_eq!(crate::proto::nested::decode(answer.encode_to_vec().into()).as_ref(), Ok(&answer));
            let mut work = Work::new(mutation.clone(), true);
            while work.step(&mut store, 1) == Progress::More {}
        }
    });
}

#[test]
fn above_the_bound_of_depth_the_request_and_its_bytes_are_refused() {
    on_a_small_stack(|| {
        let too_deep = nest(DEPTH + 1);
        assert_eq!(encode(&too_deep), Err(Refusal::TooDeep));
        for level in [0, 1] {
            assert_eq!(decode(&too_deep.encode_to_vec().into(), level), Err(Refusal::TooDeep));
        }
    });
}

#[test]
fn bytes_that_are_no_mutation_are_refused_and_end_nothing() {
    for bytes in
        [&b"\xff\xff\xff"[..], b"\x1a", b"\x1a\x05\x12", b"\x0a\x02\x0a\x7f", b"\x1a\x02\x12\x7f", b"\x1b"]
    {
        assert_eq!(decode(&Bytes::from_static(bytes), 1), Err(Refusal::Undecodable), "{bytes:02x?}");
    }
    // Every mutation that is one is read as the generated code reads it, the last of several fields included.
    let both = [nest(2).encode_to_vec(), nest(3).encode_to_vec()].concat();
    assert_eq!(decode(&both.clone().into(), 1).ok(), Mutation::decode(&both[..]).ok());
}

#[test]
fn what_stands_inside_is_bounded_from_level_1_on() {
    let operations = vec![RequestOp::default(); NESTED_WEIGHT / 2 + 1];
    let wide = mutation_of(txn_of(vec![operation(Request::RequestTxn(txn_of(operations)))]));
    let bytes = Bytes::from(wide.encode_to_vec());
    assert_eq!(decode(&bytes, 1), Err(Refusal::TooDeep));
    assert_eq!(encode(&wide), Err(Refusal::TooDeep));
    // An older build has carried such an entry out, or refused it, so this one does the same.
    assert_eq!(decode(&bytes, 0), Ok(wide));
    // A field that comes again is added to what stood before, and so counts with it.
    let operations = vec![RequestOp::default(); NESTED_WEIGHT / 4 + 1];
    let half = mutation_of(txn_of(vec![operation(Request::RequestTxn(txn_of(operations)))]));
    let half = half.encode_to_vec();
    assert!(decode(&Bytes::from(half.clone()), 1).is_ok());
    assert_eq!(decode(&Bytes::from(half.repeat(2)), 1), Err(Refusal::TooDeep));
}

/// 64 MiB in 64 keys.
fn large() -> Store<MemoryBackend> {
    let mut store = store(1);
    for key in 0..64_u8 {
        let put = mutation::Request::Put(put(vec![b'k', key], vec![key; 1 << 20]));
        store.apply(&Mutation { request: Some(put) }).unwrap();
    }
    store
}

fn reads_and_a_put(reads: usize) -> Mutation {
    let mut operations = vec![operation(Request::RequestRange(everything())); reads];
    operations.push(operation(Request::RequestPut(put("x", "y"))));
    mutation_of(txn_of(operations))
}

/// Applies the same where an answer is wanted and where not; true where both end with the same records.
fn alike(mutation: &Mutation) -> (bool, Result<Applied, Refusal>) {
    let (mut asked, mut other) = (large(), large());
    let outcome = asked.apply_for(mutation, true);
    let _ = other.apply_for(mutation, false);
    (asked.backend() == other.backend() && asked.revision() == other.revision(), outcome)
}

#[test]
fn too_large_an_answer_is_refused_by_all_nodes_or_by_none() {
    let (same, outcome) = alike(&reads_and_a_put(7));
    assert!(same && outcome.is_ok(), "448 MiB are answered");
    let (same, outcome) = alike(&reads_and_a_put(60));
    assert!(same);
    assert!(matches!(outcome, Err(Refusal::AnswerTooLarge { allowed: ANSWER_BYTES, .. })), "{outcome:?}");
    let (same, _) = without(Some(Rule::RefuseAlike), || alike(&reads_and_a_put(60)));
    assert!(!same, "nodes that differ are noticed");
}

#[test]
fn too_large_an_answer_is_refused_before_any_record_is_read() {
    let mut store = large();
    let Look::Done(Err(Refusal::AnswerTooLarge { .. })) =
        Work::new(reads_and_a_put(60), true).look(&store, u64::MAX)
    else {
        panic!("refused by looking at the index")
    };
    let allowed = 32 << 20;
    let mut range = super::RangeWork::begin(&store, everything(), allowed).unwrap();
    assert!(matches!(range.step(&store, u64::MAX), Err(Refusal::AnswerTooLarge { .. })));
    // Keys alone, a count, and the newest one of all are little.
    for little in [
        crate::proto::etcdserverpb::RangeRequest { keys_only: true, ..everything() },
        crate::proto::etcdserverpb::RangeRequest { count_only: true, ..everything() },
        crate::proto::etcdserverpb::RangeRequest { limit: 1, sort_order: 2, sort_target: 3, ..everything() },
    ] {
        let mut operations = vec![operation(Request::RequestRange(little)); 60];
        operations.push(operation(Request::RequestPut(put("x", "y"))));
        assert!(store.apply(&mutation_of(txn_of(operations))).is_ok());
    }
    let delete = DeleteRangeRequest { key: "\0".into(), range_end: "\0".into(), prev_kv: true };
    let deletes = vec![operation(Request::RequestDeleteRange(delete)); 9];
    let revision = store.revision();
    let refused = store.apply(&mutation_of(txn_of(deletes)));
    assert!(matches!(refused, Err(Refusal::AnswerTooLarge { .. })), "previous values count: {refused:?}");
    assert_eq!((store.revision(), store.key_count()), (revision, 65));
}

#[test]
fn below_level_1_nothing_is_refused_that_an_older_build_did() {
    let mut store = Store::open(MemoryBackend::default()).unwrap();
    for key in 0..64_u8 {
        let put = mutation::Request::Put(put(vec![b'k', key], vec![key; 1 << 20]));
        store.apply(&Mutation { request: Some(put) }).unwrap();
    }
    assert_eq!(store.feature_level(), 0);
    assert!(store.apply_for(&reads_and_a_put(60), false).is_ok());
    assert_eq!(store.key_count(), 65);
}

#[test]
fn the_feature_level_grows_and_stays() {
    let level = |level| {
        let request = mutation::Request::FeatureLevel(crate::proto::replcluster::FeatureLevel { level });
        Mutation { request: Some(request) }
    };
    let mut store = store(0);
    assert_eq!(store.apply(&level(1)), Ok(Applied::FeatureLevel));
    assert_eq!(store.apply(&level(0)), Ok(Applied::FeatureLevel));
    let store = Store::open(store.backend().clone()).unwrap();
    assert_eq!((store.feature_level(), store.revision()), (1, 1), "it is no change of the data");
}

fn many(keys: u32) -> Store<MemoryBackend> {
    let mut store = store(1);
    for key in 0..keys {
        let put = mutation::Request::Put(put(key.to_be_bytes().to_vec(), "v"));
        store.apply(&Mutation { request: Some(put) }).unwrap();
    }
    store
}

#[test]
fn a_request_for_many_keys_is_heavy_and_one_for_few_is_light() {
    let store = many(1000);
    let class = |request| store.class_of(&Mutation { request: Some(request) });
    assert_eq!(class(mutation::Request::Put(put("k", vec![0; 1 << 20]))), Class::Light);
    let delete = |range_end: &'static str| {
        let key = "\0".into();
        mutation::Request::DeleteRange(DeleteRangeRequest {
            key,
            range_end: range_end.into(),
            prev_kv: false,
        })
    };
    assert_eq!(class(delete("")), Class::Light);
    assert_eq!(class(delete("\0")), Class::Heavy);
    assert_eq!(class(delete("\0\0\0\u{50}")), Class::Light, "eighty keys");
    let compare = Compare { key: "\0".into(), range_end: "\0".into(), ..Compare::default() };
    let compares = TxnRequest { compare: vec![compare], ..TxnRequest::default() };
    assert_eq!(class(mutation::Request::Txn(compares)), Class::Heavy);
    let range = operation(Request::RequestRange(everything()));
    let inside = txn_of(vec![operation(Request::RequestTxn(txn_of(vec![range])))]);
    assert_eq!(class(mutation::Request::Txn(inside)), Class::Heavy);
    let puts: Vec<_> =
        (0..128).map(|key| operation(Request::RequestPut(put(format!("{key}"), "v")))).collect();
    assert_eq!(class(mutation::Request::Txn(txn_of(puts.clone()))), Class::Light);
    assert_eq!(
        class(mutation::Request::Txn(txn_of([puts.clone(), puts.clone(), puts].concat()))),
        Class::Heavy
    );
}

#[test]
fn thirty_compares_by_value_of_every_key_are_within_the_bound_and_divided() {
    let mut store = many(20_000);
    let compare = Compare {
        key: "\0".into(),
        range_end: "\0".into(),
        target: CompareTarget::Value as i32,
        target_union: Some(crate::proto::etcdserverpb::compare::TargetUnion::Value("v".into())),
        ..Compare::default()
    };
    let put = operation(Request::RequestPut(put("x", "y")));
    let request = TxnRequest { compare: vec![compare; 30], success: vec![put], failure: vec![] };
    let mut work = Work::new(mutation_of(request), true);
    let mut looks = 0_u64;
    let most = 30 * 20_000 * 12 / STEP_UNITS;
    let outcome = loop {
        match work.look(&store, STEP_UNITS) {
            Look::More => looks += 1,
            Look::Write => match work.step(&mut store, STEP_UNITS) {
                Progress::More => {}
                Progress::Done(outcome) => break outcome,
            },
            Look::Done(outcome) => break outcome,
        }
    };
    assert!(matches!(outcome, Ok(Applied::Txn(answer)) if answer.succeeded));
    assert!(looks > 100 && looks < most, "{looks}");
    // The bound leaves room for ten times as many keys.
    const { assert!(super::COST > 30 * 200_000 * 12) };
}

#[test]
fn a_transaction_that_looks_at_everything_again_and_again_is_refused_by_its_cost() {
    let store = many(200_000);
    let count = crate::proto::etcdserverpb::RangeRequest { count_only: true, ..everything() };
    let mut operations = vec![operation(Request::RequestRange(count)); 1000];
    operations.push(operation(Request::RequestPut(put("x", "y"))));
    let refused = Work::new(mutation_of(txn_of(operations)), false).look(&store, u64::MAX);
    assert_eq!(refused, Look::Done(Err(Refusal::TooCostly)));
}
