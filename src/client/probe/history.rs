//! What the writers of a probe did and what was read back: plain values, so that judging them needs no cluster.

use std::collections::BTreeMap;
use std::fmt;

/// One write: which writer, and its how-manieth. Its key and its value follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WriteId {
    /// Numbers the writers from 0.
    pub writer: u16,
    /// Numbers the writes of one writer from 0, in the order they were sent.
    pub number: u32,
}

/// One write that was tried once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Which write.
    pub id: WriteId,
    /// When it was handed to the connection, in microseconds since the load began.
    pub sent_us: u64,
    /// What its client was told.
    pub outcome: Outcome,
}

/// What became of a write as far as its client was told, and when it was told, in microseconds since the load began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A node said yes.
    Acknowledged {
        /// The revision it was said to have.
        revision: i64,
        /// When the answer was read.
        at_us: u64,
    },
    /// Nobody said what became of it.
    Indeterminate {
        /// When its client gave up.
        at_us: u64,
    },
    /// It surely was not carried out.
    NotDone {
        /// When its client was told.
        at_us: u64,
    },
}

/// Between which moments the fault struck, in microseconds since the load began. Nobody sees the very moment: whoever
/// ordered it knows only that it was not before the order and not after its effect was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// It was about to be ordered.
    pub ordered_us: u64,
    /// Its effect was seen; `None` where it never was.
    pub seen_us: Option<u64>,
}

/// Everything the writers did.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// All keys of this run begin with it.
    pub prefix: Vec<u8>,
    /// Every write that was tried, each once.
    pub attempts: Vec<Attempt>,
    /// When the fault was injected, if ever.
    pub fault: Option<Fault>,
    /// When the load was told to stop, in microseconds since it began.
    pub stopped_us: u64,
}

impl Attempt {
    /// When its client heard of it, or gave up, in microseconds since the load began.
    #[must_use]
    pub fn ended_us(&self) -> u64 {
        match self.outcome {
            Outcome::Acknowledged { at_us, .. }
            | Outcome::Indeterminate { at_us }
            | Outcome::NotDone { at_us } => at_us,
        }
    }

    /// It was under way between `sent_us` and its end. One that was refused, or could not even be sent, was not.
    #[must_use]
    pub fn was_under_way(&self) -> bool {
        !matches!(self.outcome, Outcome::NotDone { .. })
    }
}

impl History {
    /// The key of a write; no two writes share one, so that none can hide the loss of another.
    #[must_use]
    pub fn key(&self, id: WriteId) -> Vec<u8> {
        key(&self.prefix, id)
    }

    /// The value of a write: unlike that of every other write, of this run or another.
    #[must_use]
    pub fn value(&self, id: WriteId) -> Vec<u8> {
        value(&self.prefix, id)
    }

    /// True for a value of this run, whichever key it was written under.
    #[must_use]
    pub fn is_own_value(&self, value: &[u8]) -> bool {
        value.strip_prefix(VALUE).is_some_and(|key| key.starts_with(&self.prefix))
    }

    /// The acknowledged writes with their revision and the time of the answer.
    pub fn acknowledgements(&self) -> impl Iterator<Item = (&Attempt, i64, u64)> {
        self.attempts.iter().filter_map(|attempt| match attempt.outcome {
            Outcome::Acknowledged { revision, at_us } => Some((attempt, revision, at_us)),
            Outcome::Indeterminate { .. } | Outcome::NotDone { .. } => None,
        })
    }
}

/// Every value begins with it.
const VALUE: &[u8] = b"value of ";

/// The key of a write of the run whose keys begin with `prefix`.
#[must_use]
pub fn key(prefix: &[u8], id: WriteId) -> Vec<u8> {
    [prefix, format!("{:03}-{:08}", id.writer, id.number).as_bytes()].concat()
}

/// The value of a write of the run whose keys begin with `prefix`.
#[must_use]
pub fn value(prefix: &[u8], id: WriteId) -> Vec<u8> {
    [VALUE, &key(prefix, id)[..]].concat()
}

/// One key of the run as a node holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its key.
    pub key: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
    /// The revision that made it.
    pub create_revision: i64,
    /// The revision that last changed it.
    pub mod_revision: i64,
    /// How often it was written.
    pub version: i64,
}

/// All keys of the run as one node holds them.
#[derive(Clone, Debug)]
pub struct Replica {
    /// Who answered.
    pub endpoint: String,
    /// The store's revision that was read; the same for all replicas of one read-back.
    pub revision: i64,
    /// The keys.
    pub found: Vec<Found>,
}

/// What the surviving nodes hold after the load, all read at one revision by linearizable reads.
#[derive(Clone, Debug, Default)]
pub struct ReadBack {
    /// One for each node that could be read.
    pub replicas: Vec<Replica>,
    /// Nodes that did not know a revision which another had already served: a stale linearizable read.
    pub stale: Vec<String>,
    /// Nodes that could not be read, with the reason.
    pub unread: Vec<(String, String)>,
    /// What the store's history says of the acknowledged writes that the first replica does not show as acknowledged.
    pub past: BTreeMap<WriteId, Past>,
    /// How one of those that stood came to its end, as an example.
    pub ending: Option<Ending>,
}

/// What the store's history says of one acknowledged write that is not there as it was acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Past {
    /// It stood at its own revision as it was acknowledged: a later revision removed or rewrote it.
    Stood,
    /// It did not stand at its own revision.
    NeverStood,
    /// Its revision was compacted away, as was everything below this one.
    Compacted {
        /// The oldest revision that can be read.
        up_to: i64,
    },
    /// Its revision could not be read: why.
    Unread(String),
}

/// How a write that stood came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Which write.
    pub id: WriteId,
    /// The revision it was acknowledged at.
    pub stood_at: i64,
    /// The first revision at which it did not stand any more.
    pub ended_at: i64,
    /// It was deleted; else another value took its place.
    pub deleted: bool,
}

impl fmt::Display for WriteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "write {} of writer {}", self.number, self.writer)
    }
}
