//! Clients of a made-up world: each makes one request at a time to one node, never repeats it, and notes what it was
//! told. The notes are a history for [`check`](crate::check).

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::machine::Machine;
use crate::check::{
    Answer, Found, Freshness, History, Key, Operation, Outcome, Request, Sets, Span, Token, Transaction,
};
use crate::kv::{Applied, RangeWork};
use crate::node::admission::Admitted;
use crate::node::event::{self, Confirmed};
use crate::node::handle::{Reading, StateStore, Unavailable, Wanted};
use crate::node::pieces::{InPieces as _, Pieces};
use crate::proto::etcdserverpb as pb;
use crate::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::proto::etcdserverpb::{request_op, response_op};
use crate::proto::mvccpb::KeyValue;
use crate::proto::replcluster::{Mutation, mutation};
use crate::protocol::Millis;
use crate::protocol::testing::random::Random;
use crate::view::Epoch;

/// Few keys, so that requests meet.
const KEYS: u64 = 5;
/// Every so many values one is large, and so large, in bytes.
const LARGE_EVERY: u64 = 13;
const LARGE: usize = 3000;
/// So many transactions stand around one; from 49 on a build of level 0 cannot read it.
const DEPTHS: &[usize] = &[0, 0, 0, 0, 1, 5, 47, 60, 120];
/// Longer than a storm: who hears nothing for so long was forgotten.
pub const PATIENCE: Millis = 6_000;

type ConfirmAnswer = oneshot::Receiver<Result<Confirmed, Unavailable>>;

/// How far a request has come.
#[expect(clippy::large_enum_variant, reason = "few at a time, in a simulation")]
enum Stage {
    Writing(oneshot::Receiver<event::Outcome>),
    /// A follower's read waits for the leader's commit index.
    Confirming(ConfirmAnswer),
    /// A leader's read that has to be tried, or tried again.
    Trying,
    /// Read in pieces, and then to be proved: the process may be stopped in between.
    Reading(Reading<Pieces<RangeWork>>),
    /// A compaction: of no interest but for what it does to the log and the state.
    Compacting(oneshot::Receiver<event::Outcome>),
}

struct Pending {
    operation: Option<usize>,
    machine: usize,
    deadline: Instant,
    stage: Stage,
    wanted: Wanted,
}

/// All clients.
pub struct Clients {
    random: Random,
    pending: Vec<Option<Pending>>,
    pub history: History,
    /// One clock for all: grows with every call and every answer.
    clock: u64,
    next_token: u64,
    /// Reads that have to be confirmed, for the machine's next turn.
    pub confirm: Vec<(usize, event::Request)>,
    /// Requests of processes that live, answered by an error.
    pub errors: Vec<String>,
}

fn name(key: Key) -> Bytes {
    Bytes::from(format!("k{}", key.0))
}

/// Some are large: several in a segment are too many.
fn value(token: Token) -> Bytes {
    let length = if token.0.is_multiple_of(LARGE_EVERY) { LARGE } else { 8 };
    let mut bytes = vec![0; length];
    bytes[..8].copy_from_slice(&token.0.to_be_bytes());
    Bytes::from(bytes)
}

impl Clients {
    pub fn new(count: usize, random: Random) -> Clients {
        Clients {
            random,
            pending: (0..count).map(|_| None).collect(),
            history: History { first_revision: 1, operations: Vec::new() },
            clock: 1,
            next_token: 1,
            confirm: Vec::new(),
            errors: Vec::new(),
        }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    pub fn is_idle(&self, client: usize) -> bool {
        self.pending[client].is_none()
    }

    pub fn all_idle(&self) -> bool {
        self.pending.iter().all(Option::is_none)
    }

    /// Who waits, and for what.
    pub fn waiting(&self) -> String {
        let mut text = String::new();
        for (client, pending) in self.pending.iter().enumerate() {
            let Some(pending) = pending else { continue };
            let stage = match &pending.stage {
                Stage::Writing(_) => "write",
                Stage::Confirming(_) => "confirmation",
                Stage::Trying => "try",
                Stage::Reading(_) => "read and its proof",
                Stage::Compacting(_) => "compaction",
            };
            text += &format!("client {client} waits for a {stage} of machine {}; ", pending.machine);
        }
        text
    }

    /// An idle client asks this machine for something.
    pub fn ask(
        &mut self,
        client: usize,
        machines: &mut [Machine],
        machine: usize,
        base: Instant,
        now: Millis,
    ) {
        let key = Key(self.random.below(KEYS) as u32);
        let dice = self.random.below(100);
        if dice < 3 {
            return self.compact(client, machines, machine, base, now);
        }
        let request = match dice {
            0..30 => Request::Put { key, value: self.token() },
            30..36 => Request::Delete { key },
            36..42 => Request::DeleteRange(self.span()),
            42..52 => Request::Transaction(self.transaction(key)),
            52..62 => {
                // What it was when last seen, or what it may have become.
                let expected_mod_revision = self.guess(key);
                Request::CompareAndPut { key, expected_mod_revision, value: self.token() }
            }
            62..92 => Request::get(key, Freshness::Linearizable),
            92..96 => Request::get(key, Freshness::Serializable),
            _ => Request::Read {
                first: Key(0),
                last: Key(KEYS as u32 - 1),
                freshness: Freshness::Linearizable,
            },
        };
        self.send(client, machines, machine, request, base, now);
    }

    fn token(&mut self) -> Token {
        self.next_token += 1;
        Token(self.next_token)
    }

    fn span(&mut self) -> Span {
        let (a, b) = (self.random.below(KEYS) as u32, self.random.below(KEYS) as u32);
        Span { first: Key(a.min(b)), last: Key(a.max(b)) }
    }

    /// Several keys in one revision, some of them removed, under a condition or none.
    fn transaction(&mut self, key: Key) -> Transaction {
        let count = self.random.between(1, KEYS) as u32;
        let value = Token(self.next_token + 1);
        self.next_token += u64::from(count);
        let sets = Sets { first: Key(0), step: 1, count, value };
        let left = u64::from(count) < KEYS && self.random.chance(500);
        let removes = left.then_some(Span { first: Key(count), last: Key(KEYS as u32 - 1) });
        let expected = self.random.chance(500).then(|| (key, self.guess(key)));
        Transaction { expected, reads: self.span(), removes, sets }
    }

    fn guess(&mut self, key: Key) -> i64 {
        let seen = self.history.operations.iter().rev().take(200).find_map(|operation| {
            let Outcome::Done { answer: Answer::Read { found, .. }, .. } = &operation.outcome else {
                return None;
            };
            found.iter().find(|found| found.key == key).map(|found| found.mod_revision)
        });
        seen.unwrap_or_default()
    }

    /// As [`Clients::ask`], with a request of one's own.
    pub fn send(
        &mut self,
        client: usize,
        machines: &mut [Machine],
        machine: usize,
        request: Request,
        base: Instant,
        now: Millis,
    ) {
        let clock = machines[machine].clock(base, now);
        let called = self.tick();
        let Some(process) = &mut machines[machine].process else { return };
        let deadline = clock + Duration::from_millis(PATIENCE);
        let operation = self.history.operations.len();
        self.history.operations.push(Operation {
            client: client as u32,
            node: machine as u32,
            session: process.session,
            called,
            request,
            outcome: Outcome::Unknown,
        });
        let stage = match (request, mutation_of(&request)) {
            (_, Some(mutation)) => {
                let (answer, receiver) = oneshot::channel();
                let mutation = nested(mutation, self.random.pick(DEPTHS));
                let level = process.shared.feature_level.load(Ordering::Acquire);
                match Admitted::request(&mutation, level) {
                    Ok(mutation) => {
                        process.requests.push(event::Request::Mutate { mutation, deadline, answer });
                        Stage::Writing(receiver)
                    }
                    // Refused before it is ordered: surely not done.
                    Err(_) => {
                        self.history.operations[operation].outcome = Outcome::Refused;
                        return;
                    }
                }
            }
            (Request::Read { freshness: Freshness::Serializable, .. }, None) => {
                let answer = process.shared.look(&|store| read(store, &request));
                self.finish(operation, answer);
                return;
            }
            (_, None) => Stage::Trying,
        };
        let wanted = Wanted::default();
        self.pending[client] = Some(Pending { operation: Some(operation), machine, deadline, stage, wanted });
        self.advance(client, machines, clock);
    }

    fn compact(
        &mut self,
        client: usize,
        machines: &mut [Machine],
        machine: usize,
        base: Instant,
        now: Millis,
    ) {
        let deadline = machines[machine].clock(base, now) + Duration::from_millis(PATIENCE);
        let Some(process) = &mut machines[machine].process else { return };
        let newest = process.shared.look(&StateStore::revision);
        let revision = newest - self.random.below(20) as i64;
        if revision < 1 {
            return;
        }
        let request = mutation::Request::Compact(pb::CompactionRequest { revision, physical: false });
        let mutation = Admitted::made_here(&Mutation { request: Some(request) });
        let (answer, receiver) = oneshot::channel();
        process.requests.push(event::Request::Mutate { mutation, deadline, answer });
        self.pending[client] = Some(Pending {
            operation: None,
            machine,
            deadline,
            stage: Stage::Compacting(receiver),
            wanted: Wanted::default(),
        });
    }

    /// Looks after everyone who waits for this machine.
    pub fn poll(&mut self, machines: &[Machine], machine: usize, clock: Instant) {
        for client in 0..self.pending.len() {
            if self.pending[client].as_ref().is_some_and(|pending| pending.machine == machine) {
                self.advance(client, machines, clock);
            }
        }
    }

    fn advance(&mut self, client: usize, machines: &[Machine], clock: Instant) {
        let Some(mut pending) = self.pending[client].take() else { return };
        let Some(process) = &machines[pending.machine].process else { return };
        let request = pending.operation.map(|operation| self.history.operations[operation].request);
        loop {
            match pending.stage {
                Stage::Writing(mut receiver) => match receiver.try_recv() {
                    Ok(outcome) => {
                        return self.written(pending.operation.expect("a write is noted"), outcome);
                    }
                    Err(oneshot::error::TryRecvError::Empty) => {
                        pending.stage = Stage::Writing(receiver);
                        break;
                    }
                    Err(oneshot::error::TryRecvError::Closed) => return,
                },
                Stage::Compacting(mut receiver) => match receiver.try_recv() {
                    Err(oneshot::error::TryRecvError::Empty) => {
                        pending.stage = Stage::Compacting(receiver);
                        break;
                    }
                    Ok(_) | Err(oneshot::error::TryRecvError::Closed) => return,
                },
                Stage::Confirming(mut receiver) => match receiver.try_recv() {
                    Ok(Ok(Confirmed::Ready)) => {
                        let request = request.expect("a read is noted");
                        let answer = process.shared.look(&|store| read(store, &request));
                        return self.finish(pending.operation.expect("a read is noted"), answer);
                    }
                    Ok(Ok(Confirmed::LeadsHere)) => pending.stage = Stage::Trying,
                    Ok(Err(why)) => return self.refused(pending.operation.expect("a read is noted"), &why),
                    Err(oneshot::error::TryRecvError::Empty) => {
                        pending.stage = Stage::Confirming(receiver);
                        break;
                    }
                    Err(oneshot::error::TryRecvError::Closed) => return,
                },
                Stage::Trying => {
                    let epoch = process.shared.serving.load(Ordering::Acquire);
                    if epoch == 0 {
                        let (answer, receiver) = oneshot::channel();
                        self.confirm.push((
                            pending.machine,
                            event::Request::Confirm { deadline: pending.deadline, answer },
                        ));
                        pending.stage = Stage::Confirming(receiver);
                        break;
                    }
                    let request = request.expect("a read is noted");
                    let units = self.random.pick(&[1, 3, 1000]);
                    let first = |store: &StateStore| begin(store, &request, units);
                    match process.shared.begin_read(Epoch(epoch), &mut pending.wanted, &first) {
                        Some(reading) => pending.stage = Stage::Reading(reading),
                        None => {
                            pending.stage = Stage::Trying;
                            break;
                        }
                    }
                }
                Stage::Reading(mut reading) => {
                    let waits = self.random.chance(300);
                    if let Some(pieces) = &mut reading.value
                        && !pieces.is_done()
                    {
                        pieces.piece(&process.shared.store.read());
                        pieces.settle();
                        pending.stage = Stage::Reading(reading);
                        if waits { break } else { continue }
                    }
                    if waits {
                        pending.stage = Stage::Reading(reading);
                        break;
                    }
                    let request = request.expect("a read is noted");
                    let again = |store: &StateStore| begin(store, &request, 1000);
                    if let Some(pieces) = process.shared.end_read(reading, &again) {
                        let read = pieces.work.expect("the newest revision can be read").finish();
                        return self.finish(pending.operation.expect("a read is noted"), answer_of(&read));
                    }
                    pending.stage = Stage::Trying;
                    break;
                }
            }
        }
        if clock >= pending.deadline + Duration::from_millis(100) {
            self.errors.push("a request was forgotten".to_owned());
            return;
        }
        self.pending[client] = Some(pending);
    }

    fn finish(&mut self, operation: usize, answer: Answer) {
        let returned = self.tick();
        self.history.operations[operation].outcome = Outcome::Done { returned, answer };
    }

    fn refused(&mut self, operation: usize, why: &Unavailable) {
        self.history.operations[operation].outcome = Outcome::Refused;
        self.errors.push(format!("{:?}: {why}", self.history.operations[operation].request));
    }

    fn written(&mut self, operation: usize, outcome: event::Outcome) {
        match outcome {
            Ok(Ok(applied)) => {
                let answer = written(&self.history.operations[operation].request, &applied);
                self.finish(operation, answer);
            }
            Ok(Err(refusal)) => panic!("the store refuses what clients ask: {refusal:?}"),
            Err(
                why @ (Unavailable::TooManyRequests
                | Unavailable::TooFewInSync { .. }
                | Unavailable::NoRoomHere
                | Unavailable::NoLeader),
            ) => {
                self.refused(operation, &why);
            }
            Err(Unavailable::Stopping) => {}
            Err(
                why @ (Unavailable::LeaderChanged | Unavailable::TimedOut | Unavailable::HeldByTooFew { .. }),
            ) => {
                self.errors.push(format!("{:?}: {why}", self.history.operations[operation].request));
            }
        }
    }

    /// Everyone who waited for this machine hears nothing any more.
    pub fn process_gone(&mut self, machine: usize) {
        for pending in &mut self.pending {
            if let Some(gone) = pending.take_if(|pending| pending.machine == machine)
                && let Some(operation) = gone.operation
                && matches!(self.history.operations[operation].request, Request::Read { .. })
            {
                self.history.operations[operation].outcome = Outcome::Refused;
            }
        }
    }
}

/// A transaction inside so many others; anything else as it is.
fn nested(mutation: Mutation, depth: usize) -> Mutation {
    let Some(mutation::Request::Txn(mut txn)) = mutation.request else { return mutation };
    for _ in 0..depth {
        let inner = pb::RequestOp { request: Some(request_op::Request::RequestTxn(txn)) };
        txn = pb::TxnRequest { success: vec![inner], ..Default::default() };
    }
    Mutation { request: Some(mutation::Request::Txn(txn)) }
}

/// The answer to the innermost transaction, with the header of the outermost.
fn innermost(answer: &pb::TxnResponse) -> pb::TxnResponse {
    let mut inner = answer.clone();
    while let [pb::ResponseOp { response: Some(response_op::Response::ResponseTxn(next)) }] =
        &inner.responses[..]
    {
        inner = next.clone();
    }
    inner.header = answer.header;
    inner
}

fn mutation_of(request: &Request) -> Option<Mutation> {
    let put =
        |key: Key, token: Token| pb::PutRequest { key: name(key), value: value(token), ..Default::default() };
    let request = match *request {
        Request::Put { key, value } => mutation::Request::Put(put(key, value)),
        Request::Delete { key } => {
            mutation::Request::DeleteRange(pb::DeleteRangeRequest { key: name(key), ..Default::default() })
        }
        Request::CompareAndPut { key, expected_mod_revision, value } => {
            let compare = pb::Compare {
                result: CompareResult::Equal as i32,
                target: CompareTarget::Mod as i32,
                key: name(key),
                target_union: Some(TargetUnion::ModRevision(expected_mod_revision)),
                ..Default::default()
            };
            let operation = pb::RequestOp { request: Some(request_op::Request::RequestPut(put(key, value))) };
            mutation::Request::Txn(pb::TxnRequest {
                compare: vec![compare],
                success: vec![operation],
                failure: Vec::new(),
            })
        }
        Request::DeleteRange(span) => mutation::Request::DeleteRange(delete(span)),
        Request::Transaction(asked) => {
            let compare = asked.expected.map(|(key, mod_revision)| pb::Compare {
                result: CompareResult::Equal as i32,
                target: CompareTarget::Mod as i32,
                key: name(key),
                target_union: Some(TargetUnion::ModRevision(mod_revision)),
                ..Default::default()
            });
            let operation = |request| pb::RequestOp { request: Some(request) };
            let (key, range_end) = ends(asked.reads);
            let reads = pb::RangeRequest { key, range_end, ..Default::default() };
            let reads = operation(request_op::Request::RequestRange(reads));
            let removes =
                asked.removes.map(|span| operation(request_op::Request::RequestDeleteRange(delete(span))));
            let sets = asked
                .sets
                .iter()
                .map(|(key, token)| operation(request_op::Request::RequestPut(put(key, token))));
            mutation::Request::Txn(pb::TxnRequest {
                compare: compare.into_iter().collect(),
                success: [reads.clone()].into_iter().chain(removes).chain(sets).collect(),
                failure: vec![reads],
            })
        }
        Request::Compact { revision } => {
            mutation::Request::Compact(pb::CompactionRequest { revision, physical: false })
        }
        Request::Read { .. } => return None,
    };
    Some(Mutation { request: Some(request) })
}

/// First key and end of a span.
fn ends(span: Span) -> (Bytes, Bytes) {
    (name(span.first), name(Key(span.last.0 + 1)))
}

fn delete(span: Span) -> pb::DeleteRangeRequest {
    let (key, range_end) = ends(span);
    pb::DeleteRangeRequest { key, range_end, prev_kv: true }
}

fn found(kvs: &[KeyValue]) -> Vec<Found> {
    kvs.iter()
        .map(|kv| Found {
            key: Key(std::str::from_utf8(&kv.key[1..]).unwrap().parse().unwrap()),
            value: Token(u64::from_be_bytes(kv.value[..8].try_into().expect("eight bytes"))),
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            version: kv.version,
        })
        .collect()
}

fn written(request: &Request, applied: &Applied) -> Answer {
    let revision =
        |header: &Option<pb::ResponseHeader>| header.as_ref().expect("answers have a header").revision;
    match (request, applied) {
        (Request::Put { .. }, Applied::Put(answer)) => Answer::Written { revision: revision(&answer.header) },
        (Request::Delete { .. }, Applied::DeleteRange(answer)) => {
            Answer::Deleted { revision: revision(&answer.header), existed: answer.deleted > 0 }
        }
        (Request::CompareAndPut { .. }, Applied::Txn(answer)) => {
            let answer = innermost(answer);
            Answer::Compared { revision: revision(&answer.header), succeeded: answer.succeeded }
        }
        (Request::DeleteRange(_), Applied::DeleteRange(answer)) => {
            Answer::RangeDeleted { revision: revision(&answer.header), removed: found(&answer.prev_kvs) }
        }
        (Request::Transaction(_), Applied::Txn(answer)) => {
            let answer = innermost(answer);
            let read = answer.responses.first().and_then(|response| response.response.as_ref());
            let Some(response_op::Response::ResponseRange(read)) = read else {
                panic!("a transaction reads first: {answer:?}")
            };
            Answer::Transacted {
                revision: revision(&answer.header),
                succeeded: answer.succeeded,
                met: found(&read.kvs),
            }
        }
        (request, applied) => panic!("{request:?} was answered by {applied:?}"),
    }
}

fn range_of(request: &Request) -> pb::RangeRequest {
    let Request::Read { first, last, .. } = *request else { panic!("not a read: {request:?}") };
    let range_end = if first == last { Bytes::new() } else { Bytes::from_static(b"l") };
    pb::RangeRequest { key: name(first), range_end, ..Default::default() }
}

/// Begins a read of so many keys at a time.
fn begin(store: &StateStore, request: &Request, units: u64) -> Pieces<RangeWork> {
    Pieces::begin(RangeWork::begin(store, range_of(request), u64::MAX), store, units)
}

fn read(store: &StateStore, request: &Request) -> Answer {
    answer_of(&store.range(&range_of(request)).expect("the newest revision can be read"))
}

fn answer_of(answer: &pb::RangeResponse) -> Answer {
    let revision = answer.header.as_ref().expect("a header").revision;
    Answer::Read { revision, found: found(&answer.kvs) }
}
