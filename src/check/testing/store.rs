//! Histories that are right by construction: clients of a store with one copy and several nodes that lag behind it,
//! all from one seed. Requests overlap; some are refused, some are never answered, whether carried out or not.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{
    Answer, Found, Freshness, History, Key, Operation, Outcome, Request, Sets, Span, Token, Transaction,
};

/// The size of a history.
#[derive(Clone, Copy, Debug)]
pub(in crate::check) struct Shape {
    pub operations: usize,
    pub clients: u32,
    pub keys: u32,
    pub nodes: u32,
    /// Of a hundred requests, how many get no answer.
    pub unknown_percent: u32,
    /// Read everything at the end.
    pub final_read: bool,
    /// And then every old state.
    pub old_reads: bool,
}

type Keys = BTreeMap<Key, Found>;

/// What waits between its call and its return.
struct Open {
    client: u32,
    node: u32,
    called: u64,
    request: Request,
    /// Its answer once it was carried out, and which process of the node gave it.
    answer: Option<(Answer, u64)>,
    /// It will get no answer.
    is_unknown: bool,
}

struct Cluster {
    random: StdRng,
    shape: Shape,
    /// The states from the first revision on.
    states: Vec<Keys>,
    /// For each node which process it is, and up to which revision it has applied.
    nodes: Vec<(u64, i64)>,
    now: u64,
    next_token: u64,
    history: History,
}

/// A history that a linearizable store made.
pub(in crate::check) fn history(seed: u64, shape: Shape) -> History {
    let mut random = StdRng::seed_from_u64(seed);
    let first_revision = random.random_range(1..5);
    let mut cluster = Cluster {
        random,
        shape,
        states: vec![Keys::new()],
        nodes: vec![(0, first_revision); shape.nodes as usize],
        now: 0,
        next_token: 1,
        history: History { first_revision, operations: Vec::new() },
    };
    cluster.run();
    cluster.history
}

impl Cluster {
    fn run(&mut self) {
        let mut idle: Vec<u32> = (0..self.shape.clients).collect();
        let mut next_client = self.shape.clients;
        let mut open: Vec<Open> = Vec::new();
        let mut late: Vec<Open> = Vec::new();
        let mut asked = 0;
        while asked < self.shape.operations || !open.is_empty() {
            self.now += u64::from(self.random.random_bool(0.8));
            self.nodes_move();
            if !late.is_empty() && self.random.random_bool(0.1) {
                let place = self.random.random_range(0..late.len());
                let forgotten = late.swap_remove(place);
                let _ = self.carry_out(&forgotten.request, forgotten.node);
            }
            if asked < self.shape.operations && !idle.is_empty() && self.random.random_bool(0.5) {
                let place = self.random.random_range(0..idle.len());
                open.push(self.ask(idle.swap_remove(place)));
                asked += 1;
            } else if !open.is_empty() {
                let place = self.random.random_range(0..open.len());
                if open[place].answer.is_none() && !open[place].is_unknown {
                    let (request, node) = (open[place].request, open[place].node);
                    let answer = self.carry_out(&request, node);
                    let (session, _) = self.nodes[node as usize];
                    open[place].answer = Some((answer, session));
                    continue;
                }
                let done = open.swap_remove(place);
                if done.is_unknown {
                    // A client that gave up comes back as another one: what it asked may still be on its way.
                    idle.push(next_client);
                    next_client += 1;
                    self.note(&done, 0, Outcome::Unknown);
                    late.extend(self.random.random_bool(0.6).then_some(done));
                } else {
                    idle.push(done.client);
                    let (answer, session) = done.answer.clone().unwrap();
                    self.note(&done, session, Outcome::Done { returned: self.now, answer });
                }
            }
        }
        if self.shape.final_read {
            self.read_everything(next_client, Freshness::Linearizable);
        }
        if self.shape.old_reads {
            for revision in self.history.first_revision..=self.newest() {
                self.read_everything(next_client, Freshness::At(revision));
            }
        }
    }

    fn read_everything(&mut self, client: u32, freshness: Freshness) {
        self.now += 1;
        let mut read = self.ask(client);
        read.request = Request::Read { first: Key(0), last: Key(self.shape.keys), freshness };
        let answer = self.carry_out(&read.request, read.node);
        let (session, _) = self.nodes[read.node as usize];
        self.note(&read, session, Outcome::Done { returned: self.now, answer });
    }

    fn newest(&self) -> i64 {
        self.history.first_revision + i64::try_from(self.states.len()).unwrap() - 1
    }

    fn at(&self, revision: i64) -> &Keys {
        &self.states[usize::try_from(revision - self.history.first_revision).unwrap()]
    }

    /// Nodes apply what others wrote, and sometimes are restarted, perhaps behind.
    fn nodes_move(&mut self) {
        let newest = self.newest();
        let node = self.random.random_range(0..self.nodes.len());
        let (session, applied) = self.nodes[node];
        self.nodes[node] = if self.random.random_bool(0.02) {
            (session + 1, self.random.random_range(self.history.first_revision..=applied))
        } else {
            (session, self.random.random_range(applied..=newest))
        };
    }

    fn ask(&mut self, client: u32) -> Open {
        let key = Key(self.random.random_range(0..self.shape.keys));
        let node = self.random.random_range(0..self.shape.nodes);
        let request = match self.random.random_range(0..13) {
            10 => Request::DeleteRange(Span { first: key, last: self.up_from(key) }),
            11..13 => self.transaction(key),
            0..3 => Request::Put { key, value: self.token() },
            3 => Request::Delete { key },
            4..6 => {
                let held = self.states.last().unwrap().get(&key).map_or(0, |found| found.mod_revision);
                let expected_mod_revision = held - i64::from(self.random.random_bool(0.1));
                Request::CompareAndPut { key, expected_mod_revision, value: self.token() }
            }
            6 => Request::get(key, Freshness::Serializable),
            7 => {
                let last = Key(self.random.random_range(key.0..self.shape.keys));
                let freshness = match self.random.random_range(0..3) {
                    0 => Freshness::Linearizable,
                    1 => Freshness::Serializable,
                    _ => {
                        let newest = self.newest();
                        Freshness::At(self.random.random_range(self.history.first_revision..=newest))
                    }
                };
                Request::Read { first: key, last, freshness }
            }
            _ => Request::get(key, Freshness::Linearizable),
        };
        let is_unknown = self.random.random_range(0..100) < self.shape.unknown_percent;
        Open { client, node, called: self.now, request, answer: None, is_unknown }
    }

    fn up_from(&mut self, key: Key) -> Key {
        Key(self.random.random_range(key.0..self.shape.keys))
    }

    fn transaction(&mut self, key: Key) -> Request {
        let step = self.random.random_range(1..3);
        let last = self.up_from(key);
        let count = (last.0 - key.0) / step + 1;
        let value = self.token();
        self.next_token += u64::from(count);
        let sets = Sets { first: key, step, count, value };
        // What lies before the first that is set.
        let removes = (key.0 > 0 && self.random.random_bool(0.4))
            .then(|| Span { first: Key(self.random.random_range(0..key.0)), last: Key(key.0 - 1) });
        let expected = self.random.random_bool(0.5).then(|| {
            let other = Key(self.random.random_range(0..self.shape.keys));
            let held = self.states.last().unwrap().get(&other).map_or(0, |found| found.mod_revision);
            (other, held - i64::from(self.random.random_bool(0.1)))
        });
        let first = Key(self.random.random_range(0..self.shape.keys));
        let reads = Span { first, last: self.up_from(first) };
        Request::Transaction(Transaction { expected, reads, removes, sets })
    }

    fn token(&mut self) -> Token {
        self.next_token += 1;
        Token(self.next_token - 1)
    }

    fn carry_out(&mut self, request: &Request, node: u32) -> Answer {
        let (_, applied) = self.nodes[node as usize];
        let newest = self.newest();
        let mut keys = self.states.last().unwrap().clone();
        let answer = match *request {
            Request::Put { key, value } => {
                set(&mut keys, key, value, newest + 1);
                Answer::Written { revision: newest + 1 }
            }
            Request::Delete { key } => {
                let existed = keys.remove(&key).is_some();
                Answer::Deleted { revision: newest + i64::from(existed), existed }
            }
            Request::CompareAndPut { key, expected_mod_revision, value } => {
                let succeeded = keys.get(&key).map_or(0, |found| found.mod_revision) == expected_mod_revision;
                if succeeded {
                    set(&mut keys, key, value, newest + 1);
                }
                Answer::Compared { revision: newest + i64::from(succeeded), succeeded }
            }
            Request::DeleteRange(span) => {
                let removed = within(&keys, span);
                keys.retain(|key, _| !span.holds(*key));
                Answer::RangeDeleted { revision: newest + i64::from(!removed.is_empty()), removed }
            }
            Request::Transaction(asked) => {
                let met = within(&keys, asked.reads);
                let held = |key: &Key| keys.get(key).map_or(0, |found| found.mod_revision);
                let succeeded = asked.expected.is_none_or(|(key, expected)| held(&key) == expected);
                if succeeded {
                    if let Some(span) = asked.removes {
                        keys.retain(|key, _| !span.holds(*key));
                    }
                    asked.sets.iter().for_each(|(key, value)| set(&mut keys, key, value, newest + 1));
                }
                Answer::Transacted { revision: newest + i64::from(succeeded), succeeded, met }
            }
            Request::Compact { .. } => Answer::Compacted { revision: newest },
            Request::Read { first, last, freshness } => {
                let (revision, state) = match freshness {
                    Freshness::Linearizable => (newest, newest),
                    Freshness::Serializable => (applied, applied),
                    Freshness::At(state) => (newest, state),
                };
                Answer::Read {
                    revision,
                    found: self.at(state).range(first..=last).map(|(_, found)| *found).collect(),
                }
            }
        };
        if keys != *self.states.last().unwrap() {
            self.states.push(keys);
        }
        // Who answers has applied what it tells of.
        let (_, applied) = &mut self.nodes[node as usize];
        *applied = answer.revision().max(*applied);
        answer
    }

    fn note(&mut self, open: &Open, session: u64, outcome: Outcome) {
        let Open { client, node, called, request, .. } = *open;
        self.history.operations.push(Operation { client, node, session, called, request, outcome });
    }
}

fn within(keys: &Keys, span: Span) -> Vec<Found> {
    keys.values().filter(|found| span.holds(found.key)).copied().collect()
}

fn set(keys: &mut Keys, key: Key, value: Token, revision: i64) {
    let old = keys.get(&key);
    let found = Found {
        key,
        value,
        create_revision: old.map_or(revision, |old| old.create_revision),
        mod_revision: revision,
        version: old.map_or(1, |old| old.version + 1),
    };
    keys.insert(key, found);
}
