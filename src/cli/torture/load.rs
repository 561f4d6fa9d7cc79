//! Clients that work on every node while nodes die: each request is sent once, to one node, and gets one verdict.
//! Everything is noted with its times; nothing is judged here.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::JoinSet;

use super::TortureFailure;
use super::request::send;
use crate::check::{Answer, Freshness, Key, Operation, Outcome, Request, Token};
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
    stop: AtomicBool,
    next_token: AtomicU64,
    /// Sessions of answers that may be of the old process or of the new one.
    next_unclear: AtomicU64,
    /// The latest call of a change that was acknowledged.
    acknowledged_call: AtomicU64,
    /// When a change was last acknowledged.
    acknowledged_at: AtomicU64,
    /// The longest time between two acknowledged changes since it was last asked for, in nanoseconds.
    longest_gap: AtomicU64,
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
        let has_changed = match answer {
            Answer::Written { .. } => true,
            Answer::Deleted { existed, .. } => *existed,
            Answer::Compared { succeeded, .. } => *succeeded,
            Answer::Read { .. } => false,
        };
        if has_changed {
            self.acknowledged_call.fetch_max(called, Ordering::SeqCst);
            let now = self.now();
            let last = self.acknowledged_at.swap(now, Ordering::Relaxed);
            self.longest_gap.fetch_max(now.saturating_sub(last), Ordering::Relaxed);
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
            (_, Answer::Read { found, .. }) => {
                found.iter().for_each(|found| see(found.key, found.mod_revision));
            }
            (_, Answer::Written { .. } | Answer::Deleted { .. } | Answer::Compared { .. }) => {}
        }
    }

    fn note_error(&self, request: &Request, error: &ClientError) {
        let what = match request {
            Request::Put { .. } | Request::Delete { .. } | Request::CompareAndPut { .. } => "a change",
            Request::Read { .. } => "a read",
        };
        let text = error.to_string();
        let text = format!("{what}: {}", text.lines().next().unwrap_or_default());
        *self.errors.lock().unwrap_or_else(PoisonError::into_inner).entry(text).or_default() += 1;
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
    done.retain(|operation: &Operation| match operation.request {
        Request::Read { .. } => matches!(operation.outcome, Outcome::Done { .. }),
        Request::Put { .. } | Request::Delete { .. } | Request::CompareAndPut { .. } => true,
    });
    done
}

/// A client stays with its node, and goes to the next one only while that is down or about to be killed: so a stopped
/// node holds up its own clients and nobody else's.
fn home(board: &Board, client: u32) -> Option<usize> {
    let count = board.nodes.len();
    (0..count).map(|turn| (client as usize + turn) % count).find(|node| {
        let node = &board.nodes[*node];
        !node.is_down.load(Ordering::SeqCst) && !node.is_shunned.load(Ordering::SeqCst)
    })
}

fn choose(board: &Board, keys: u32, random: &mut StdRng) -> Request {
    let key = Key(random.random_range(0..keys));
    let token = || Token(board.next_token.fetch_add(1, Ordering::Relaxed));
    let freshness = if random.random_bool(0.4) { Freshness::Serializable } else { Freshness::Linearizable };
    match random.random_range(0..100) {
        0..35 => Request::Put { key, value: token() },
        35..50 => {
            let held = board.seen[key.0 as usize].load(Ordering::Relaxed);
            // Often it holds, sometimes somebody was faster, now and then the key must not be there.
            let expected_mod_revision = if random.random_bool(0.1) { 0 } else { held };
            Request::CompareAndPut { key, expected_mod_revision, value: token() }
        }
        50..60 => Request::Delete { key },
        60..85 => Request::get(key, freshness),
        _ => {
            let last = Key(random.random_range(key.0..keys.min(key.0 + 8)));
            Request::Read { first: key, last, freshness }
        }
    }
}
