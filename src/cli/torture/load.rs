//! Clients that work on every node while nodes die: each request is sent once, to one node, and gets one verdict.
//! Everything is noted with its times; nothing is judged here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::JoinSet;

use super::request::send;
use super::{TortureFailure, compaction};
use crate::check::{Answer, Freshness, Key, Operation, Outcome, Request, Sets, Span, Token, Transaction};
use crate::client::{Certainty, ClientError, Link};
use crate::clock;

/// Longer than any server here makes a client wait before it gives up.
const WITHIN: Duration = Duration::from_secs(10);
/// A client that finds no node to talk to looks again after this long.
const PAUSE: Duration = Duration::from_millis(2);

/// How many clients do what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) clients: u32,
    pub(super) keys: u32,
    /// Requests a second, of all clients together.
    pub(super) rate: u32,
    pub(super) seed: u64,
}

/// No change acknowledged for longer than this is a stall.
const STALL: Duration = Duration::from_millis(100);

/// Revisions of changes that somebody was told of or saw.
#[derive(Debug, Default)]
struct Known {
    /// Where the history begins.
    first: i64,
    /// Up to here all are known, or were read one by one.
    complete: i64,
    beyond: BTreeSet<i64>,
}

/// A node as the clients see it.
#[derive(Debug)]
struct Node {
    link: Link,
    /// Grows when a process of it is surely gone, before the next one starts.
    session: AtomicU64,
    /// Odd while it is killed, stopped, or on its way back.
    disturbances: AtomicU64,
    /// No process is there to be called.
    is_down: AtomicBool,
    /// Clients should let go of it, because it is going to be killed.
    is_shunned: AtomicBool,
    /// Requests on their way.
    in_flight: AtomicU64,
}

/// What clients and faults share.
#[derive(Debug)]
pub(super) struct Board {
    started: Instant,
    nodes: Vec<Node>,
    pub(super) stop: AtomicBool,
    next_token: AtomicU64,
    /// Sessions of answers that may be of the old process or of the new one.
    next_unclear: AtomicU64,
    /// The latest call of a change that was acknowledged.
    acknowledged_call: AtomicU64,
    /// When a change was last acknowledged.
    acknowledged_at: AtomicU64,
    /// The longest time between two acknowledged changes since it was last asked for, in nanoseconds.
    longest_gap: AtomicU64,
    /// The sum of those that were longer than [`STALL`], in nanoseconds.
    stalled: AtomicU64,
    /// Changes that somebody knows of.
    known: Mutex<Known>,
    /// The mod revision of each key that was seen last, for comparisons that hold.
    seen: Vec<AtomicI64>,
    /// Errors of nodes that nothing was done to, by their text.
    errors: Mutex<BTreeMap<String, u64>>,
}

impl Board {
    /// For the nodes at these addresses.
    pub(super) fn new(addresses: &[String], keys: u32) -> Result<Arc<Board>, TortureFailure> {
        let nodes = addresses.iter().map(|address| {
            Ok(Node {
                link: Link::new(address, Duration::from_secs(1))?,
                session: AtomicU64::new(0),
                disturbances: AtomicU64::new(0),
                is_down: AtomicBool::new(false),
                is_shunned: AtomicBool::new(false),
                in_flight: AtomicU64::new(0),
            })
        });
        Ok(Arc::new(Board {
            started: clock::now(),
            nodes: nodes.collect::<Result<_, TortureFailure>>()?,
            stop: AtomicBool::new(false),
            next_token: AtomicU64::new(1),
            next_unclear: AtomicU64::new(1 << 32),
            acknowledged_call: AtomicU64::new(0),
            acknowledged_at: AtomicU64::new(0),
            longest_gap: AtomicU64::new(0),
            stalled: AtomicU64::new(0),
            known: Mutex::new(Known::default()),
            seen: (0..keys).map(|_| AtomicI64::new(0)).collect(),
            errors: Mutex::new(BTreeMap::new()),
        }))
    }

    /// Nanoseconds since the beginning.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Something is about to be done to a node, or it is over and the node is in sync again.
    pub(super) fn set_disturbed(&self, node: usize, disturbed: bool) {
        let disturbances = &self.nodes[node].disturbances;
        let now = disturbances.load(Ordering::SeqCst);
        if (now % 2 == 1) != disturbed {
            disturbances.store(now + 1, Ordering::SeqCst);
        }
    }

    /// The process of a node is gone, and the next one not yet started.
    pub(super) fn note_gone(&self, node: usize) {
        self.nodes[node].is_down.store(true, Ordering::SeqCst);
        self.nodes[node].session.fetch_add(1, Ordering::SeqCst);
    }

    /// A process of the node is there again.
    pub(super) fn note_started(&self, node: usize) {
        self.nodes[node].is_down.store(false, Ordering::SeqCst);
    }

    /// Keeps clients off a node, or lets them come back.
    pub(super) fn shun(&self, node: usize, shunned: bool) {
        self.nodes[node].is_shunned.store(shunned, Ordering::SeqCst);
    }

    /// No request is on its way to the node.
    pub(super) fn is_idle(&self, node: usize) -> bool {
        self.nodes[node].in_flight.load(Ordering::SeqCst) == 0
    }

    /// Some change that was asked for after this time has been acknowledged.
    pub(super) fn has_acknowledged_since(&self, time: u64) -> bool {
        self.acknowledged_call.load(Ordering::SeqCst) > time
    }

    /// The longest time between two acknowledged changes since the last such question, for whoever watches.
    pub(super) fn take_longest_gap(&self) -> Duration {
        Duration::from_nanos(self.longest_gap.swap(0, Ordering::Relaxed))
    }

    /// How long writers stood still since the last such question, in pauses longer than [`STALL`].
    pub(super) fn take_stalled(&self) -> Duration {
        Duration::from_nanos(self.stalled.swap(0, Ordering::Relaxed))
    }

    /// The newest revision that anybody knows of.
    pub(super) fn newest_known(&self) -> i64 {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.beyond.last().copied().unwrap_or(0).max(known.complete)
    }

    /// The history begins at this revision.
    pub(super) fn note_first(&self, revision: i64) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).first = revision;
        self.note_complete(revision);
    }

    /// A revision of late, from the beginning of the history on.
    fn of_late(&self, back: i64) -> i64 {
        let first = self.known.lock().unwrap_or_else(PoisonError::into_inner).first;
        (self.newest_known() - back).max(first)
    }

    /// The revisions up to this one that nobody knows of.
    pub(super) fn unknown_up_to(&self, revision: i64) -> Vec<i64> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        (known.complete + 1..=revision).filter(|revision| !known.beyond.contains(revision)).collect()
    }

    /// All up to this revision are known now.
    pub(super) fn note_complete(&self, revision: i64) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.complete = known.complete.max(revision);
        known.beyond = known.beyond.split_off(&(revision + 1));
    }

    /// A number that no request has written.
    fn tokens(&self, count: u32) -> Token {
        Token(self.next_token.fetch_add(u64::from(count), Ordering::Relaxed))
    }

    /// Errors of nodes that nothing was done to while they worked on the request, by their text.
    pub(super) fn errors(&self) -> BTreeMap<String, u64> {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many nodes there are.
    pub(super) fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// The connection to a node.
    pub(super) fn link(&self, node: usize) -> &Link {
        &self.nodes[node].link
    }

    /// Sends a request to a node and notes what became of it; none where the clients were told to let go of the node.
    pub(super) async fn ask(&self, client: u32, node: usize, request: Request) -> Option<Operation> {
        let there = &self.nodes[node];
        // Counted first: whoever shuns the node and then sees nothing in flight can be sure that nothing will be.
        there.in_flight.fetch_add(1, Ordering::SeqCst);
        if there.is_shunned.load(Ordering::SeqCst) {
            there.in_flight.fetch_sub(1, Ordering::SeqCst);
            return None;
        }
        let session = there.session.load(Ordering::SeqCst);
        let disturbances = there.disturbances.load(Ordering::SeqCst);
        let called = self.now();
        let result = send(&there.link, &request, WITHIN).await;
        let returned = self.now();
        let undisturbed =
            disturbances.is_multiple_of(2) && there.disturbances.load(Ordering::SeqCst) == disturbances;
        let same = there.session.load(Ordering::SeqCst) == session;
        there.in_flight.fetch_sub(1, Ordering::SeqCst);
        let session = if same { session } else { self.next_unclear.fetch_add(1, Ordering::SeqCst) };
        let outcome = match result {
            Ok(answer) => {
                self.learn(&request, called, &answer);
                Outcome::Done { returned, answer }
            }
            Err(error) if is_compacted(&request, &error) => Outcome::Gone { returned },
            Err(error) => {
                if undisturbed {
                    self.note_error(&request, &error);
                }
                match error.certainty() {
                    Certainty::NotDone => Outcome::Refused,
                    Certainty::Unknown => Outcome::Unknown,
                }
            }
        };
        let node = u32::try_from(node).unwrap_or(u32::MAX);
        Some(Operation { client, node, session, called, request, outcome })
    }

    fn learn(&self, request: &Request, called: u64, answer: &Answer) {
        let has_changed = changes(answer);
        if has_changed {
            self.acknowledged_call.fetch_max(called, Ordering::SeqCst);
            let now = self.now();
            let last = self.acknowledged_at.swap(now, Ordering::Relaxed);
            let gap = now.saturating_sub(last);
            self.longest_gap.fetch_max(gap, Ordering::Relaxed);
            if Duration::from_nanos(gap) > STALL {
                self.stalled.fetch_add(gap, Ordering::Relaxed);
            }
        }
        {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            let complete = known.complete;
            let found = answer.found().iter().map(|found| found.mod_revision);
            known
                .beyond
                .extend(found.chain(has_changed.then(|| answer.revision())).filter(|at| *at > complete));
        }
        let see = |key: Key, revision: i64| {
            if let Some(seen) = self.seen.get(key.0 as usize) {
                seen.store(revision, Ordering::Relaxed);
            }
        };
        match (request, answer) {
            (Request::Put { key, .. } | Request::CompareAndPut { key, .. }, _) if has_changed => {
                see(*key, answer.revision());
            }
            (Request::Delete { key }, _) => see(*key, 0),
            (Request::DeleteRange(_), _) => answer.found().iter().for_each(|found| see(found.key, 0)),
            (Request::Transaction(asked), _) if has_changed => {
                asked.sets.iter().for_each(|(key, _)| see(key, answer.revision()));
            }
            (_, Answer::Read { found, .. }) => {
                found.iter().for_each(|found| see(found.key, found.mod_revision));
            }
            (
                _,
                Answer::Written { .. }
                | Answer::Deleted { .. }
                | Answer::Compared { .. }
                | Answer::RangeDeleted { .. }
                | Answer::Transacted { .. }
                | Answer::Compacted { .. },
            ) => {}
        }
    }

    fn note_error(&self, request: &Request, error: &ClientError) {
        let what = match request {
            Request::Read { .. } => "a read",
            Request::Compact { .. } => "a compaction",
            Request::Put { .. }
            | Request::Delete { .. }
            | Request::CompareAndPut { .. }
            | Request::DeleteRange(_)
            | Request::Transaction(_) => "a change",
        };
        let text = error.to_string();
        let text = format!("{what}: {}", text.lines().next().unwrap_or_default());
        *self.errors.lock().unwrap_or_else(PoisonError::into_inner).entry(text).or_default() += 1;
    }
}

/// The state asked for, or that should be compacted, is compacted already.
fn is_compacted(request: &Request, error: &ClientError) -> bool {
    let can_be =
        matches!(request, Request::Compact { .. } | Request::Read { freshness: Freshness::At(_), .. });
    let says = |status: &tonic::Status| {
        status.code() == tonic::Code::OutOfRange && status.message().ends_with("has been compacted")
    };
    can_be && error.status().is_some_and(says)
}

/// It tells of a change that was made.
fn changes(answer: &Answer) -> bool {
    match answer {
        Answer::Written { .. } => true,
        Answer::Deleted { existed, .. } => *existed,
        Answer::Compared { succeeded, .. } | Answer::Transacted { succeeded, .. } => *succeeded,
        Answer::RangeDeleted { removed, .. } => !removed.is_empty(),
        Answer::Compacted { .. } | Answer::Read { .. } => false,
    }
}

/// Clients at work.
#[derive(Debug)]
pub(super) struct Clients {
    board: Arc<Board>,
    /// Owned, so that dropping them ends them.
    tasks: JoinSet<Vec<Operation>>,
}

impl Clients {
    /// Lets them begin.
    pub(super) fn start(board: &Arc<Board>, load: Load) -> Clients {
        let mut tasks = JoinSet::new();
        for client in 0..load.clients {
            tasks.spawn(work(board.clone(), client, load));
        }
        tasks.spawn(compaction::keep(board.clone(), load));
        Clients { board: board.clone(), tasks }
    }

    /// Lets each of them finish its request; answers with everything they did.
    pub(super) async fn finish(self) -> Vec<Operation> {
        self.board.stop.store(true, Ordering::SeqCst);
        self.tasks.join_all().await.into_iter().flatten().collect()
    }
}

async fn work(board: Arc<Board>, client: u32, load: Load) -> Vec<Operation> {
    let mut random = StdRng::seed_from_u64(load.seed ^ (u64::from(client) << 32));
    let mut done = Vec::new();
    let beat = Duration::from_secs_f64(f64::from(load.clients) / f64::from(load.rate.max(1)));
    // Each begins at a time of its own, so that they do not march in step.
    tokio::time::sleep(beat.mul_f64(random.random())).await;
    let mut beats = tokio::time::interval(beat);
    beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !board.stop.load(Ordering::SeqCst) {
        beats.tick().await;
        let request = choose(&board, load.keys, &mut random);
        match home(&board, client) {
            Some(node) => done.extend(board.ask(client, node, request).await),
            None => tokio::time::sleep(PAUSE).await,
        }
    }
    // What a read that failed says is nothing.
    done.retain(|operation: &Operation| match operation.outcome {
        Outcome::Done { .. } | Outcome::Gone { .. } => true,
        Outcome::Refused | Outcome::Unknown => operation.request.may_change(),
    });
    done
}

/// A client stays with its node, and goes to the next one only while that is down or about to be killed: so a stopped
/// node holds up its own clients and nobody else's.
pub(super) fn home(board: &Board, client: u32) -> Option<usize> {
    let count = board.nodes.len();
    (0..count).map(|turn| (client as usize + turn) % count).find(|node| {
        let node = &board.nodes[*node];
        !node.is_down.load(Ordering::SeqCst) && !node.is_shunned.load(Ordering::SeqCst)
    })
}

fn choose(board: &Board, keys: u32, random: &mut StdRng) -> Request {
    let key = Key(random.random_range(0..keys));
    let near = |random: &mut StdRng| Key(random.random_range(key.0..keys.min(key.0 + 8)));
    let freshness = if random.random_bool(0.4) { Freshness::Serializable } else { Freshness::Linearizable };
    match random.random_range(0..100) {
        0..30 => Request::Put { key, value: board.tokens(1) },
        30..42 => {
            let expected_mod_revision = guess(board, key, random);
            Request::CompareAndPut { key, expected_mod_revision, value: board.tokens(1) }
        }
        42..49 => Request::Delete { key },
        49..52 => Request::DeleteRange(Span { first: key, last: near(random) }),
        52..62 => Request::Transaction(transaction(board, key, keys, random)),
        62..84 => Request::get(key, freshness),
        84..87 => {
            // Not always there any more.
            let at = board.of_late(random.random_range(0..2000));
            Request::Read { first: key, last: near(random), freshness: Freshness::At(at) }
        }
        _ => Request::Read { first: key, last: near(random), freshness },
    }
}

/// Often it holds, sometimes another client was faster, now and then the key must not be there.
fn guess(board: &Board, key: Key, random: &mut StdRng) -> i64 {
    let held = board.seen[key.0 as usize].load(Ordering::Relaxed);
    if random.random_bool(0.1) { 0 } else { held }
}

fn transaction(board: &Board, key: Key, keys: u32, random: &mut StdRng) -> Transaction {
    let step = random.random_range(1..4);
    let room = (keys - 1 - key.0) / step + 1;
    let count = random.random_range(1..=room.min(6));
    let sets = Sets { first: key, step, count, value: board.tokens(count) };
    let removes = (key.0 > 0 && random.random_bool(0.3)).then(|| Span {
        first: Key(random.random_range(key.0.saturating_sub(6)..key.0)),
        last: Key(key.0 - 1),
    });
    let expected = random.random_bool(0.5).then(|| {
        let other = Key(random.random_range(0..keys));
        (other, guess(board, other, random))
    });
    let last = Key(keys.min(key.0 + 8) - 1);
    let reads = Span { first: Key(key.0.saturating_sub(8)), last };
    Transaction { expected, reads, removes, sets }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_load_has_every_kind_of_request() {
        let board = Board::new(&["127.0.0.1:1".to_owned()], 12).unwrap();
        board.note_first(1);
        let mut random = StdRng::seed_from_u64(1);
        let mut seen = BTreeSet::new();
        for _ in 0..2000 {
            let request = choose(&board, 12, &mut random);
            let kind = match request {
                Request::Transaction(asked) => {
                    assert!(asked.sets.iter().all(|(key, _)| key.0 < 12), "{asked:?}");
                    let is_removed = |key| asked.removes.is_some_and(|span| span.holds(key));
                    assert!(!asked.sets.iter().any(|(key, _)| is_removed(key)), "{asked:?}");
                    if asked.removes.is_some() { "removes and sets" } else { "sets" }
                }
                Request::DeleteRange(_) => "range delete",
                Request::Read { freshness: Freshness::At(_), .. } => "old state",
                Request::Read { .. } => "read",
                Request::Put { .. } | Request::Delete { .. } | Request::CompareAndPut { .. } => "one key",
                Request::Compact { .. } => "compaction",
            };
            seen.insert(kind);
        }
        let all = ["old state", "one key", "range delete", "read", "removes and sets", "sets"];
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), all);
    }
}
