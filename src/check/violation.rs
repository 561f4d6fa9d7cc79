//! Why a history is refused: each reason names both sides, with everything that was noted of them.

use std::fmt;

use super::{Answer, Found, Freshness, History, Key, Operation, Outcome, Request, Token, Transaction};

/// One of the operations that contradict each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side {
    /// Its place in [`History::operations`], from 0.
    pub index: usize,
    /// The operation.
    pub operation: Box<Operation>,
}

/// Why there is no order of the operations as it should be. Each prints as a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// An answer that fits no request, or times that go back: whoever noted it made a mistake, or the server did.
    #[error("{operation}\n  {why}")]
    Malformed {
        /// The operation.
        operation: Side,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Two requests write one value, so nobody can tell them apart.
    #[error("two requests write one value:\n  {first}\n  {second}")]
    TokenShared {
        /// The one.
        first: Side,
        /// The other.
        second: Side,
    },
    /// Two changes have one revision.
    #[error("two changes have revision {revision}:\n  {first}\n  {second}")]
    RevisionShared {
        /// The revision.
        revision: i64,
        /// Who was told of the one, or saw it.
        first: Side,
        /// Who was told of the other, or saw it.
        second: Side,
    },
    /// One request was carried out twice.
    #[error(
        "one request was carried out at revision {first} and at revision {second}:\n  {request}\n  {witness}"
    )]
    DoneTwice {
        /// The one revision.
        first: i64,
        /// The other.
        second: i64,
        /// The request.
        request: Side,
        /// Who saw it at the other revision.
        witness: Side,
    },
    /// A change has a revision that existed before it was asked for.
    #[error(
        "a change was ordered behind what had returned before it was called:\n  returned: {earlier}\n  called later: {later}"
    )]
    OrderBroken {
        /// What returned first.
        earlier: Side,
        /// What was called after that and yet has no greater revision.
        later: Side,
    },
    /// A linearizable request saw a state older than one that had been shown or acknowledged before it was called.
    #[error("a stale state was shown:\n  known before: {earlier}\n  called later: {later}")]
    Stale {
        /// What returned first.
        earlier: Side,
        /// What was called after that and yet has a smaller revision.
        later: Side,
    },
    /// A change was known before it was asked for.
    #[error("a change was known before it was asked for:\n  known by: {witness}\n  asked for by: {request}")]
    BeforeItsCall {
        /// Who returned with its revision, or a later one.
        witness: Side,
        /// The request, called after that.
        request: Side,
    },
    /// One process of a node went back to an older state.
    #[error("one process of a node went back to an older state:\n  earlier: {earlier}\n  later: {later}")]
    WentBack {
        /// What returned first.
        earlier: Side,
        /// What was called after that and yet has a smaller revision.
        later: Side,
    },
    /// Something was read that nobody wrote.
    #[error("{found} was read, which nobody wrote there:\n  {read}")]
    NeverWritten {
        /// The read.
        read: Side,
        /// What it found.
        found: Found,
    },
    /// A change was seen although its request was told that it was not carried out.
    #[error("a change was seen whose request was not carried out:\n  {request}\n  {witness}")]
    RefusedButSeen {
        /// The request.
        request: Side,
        /// Who saw it.
        witness: Side,
    },
    /// A state shows a change that was made after it.
    #[error("{found} was read in the state of revision {revision}:\n  {read}")]
    FromTheFuture {
        /// The read.
        read: Side,
        /// The revision of the state.
        revision: i64,
        /// What it found.
        found: Found,
    },
    /// A change was made, and a later state is as if it had not been.
    #[error(
        "a change of key {} at revision {changed_at} is missing in the state of revision {revision}:\n  change: {}\n  missing in: {reader}", key.0, write
    )]
    Missing {
        /// The key.
        key: Key,
        /// The revision of the change.
        changed_at: i64,
        /// Who made it.
        write: Side,
        /// The revision of the later state.
        revision: i64,
        /// Who saw the later state.
        reader: Side,
    },
    /// An answer contradicts the state at its revision.
    #[error(
        "key {} holds {} at revision {revision}, and this says {said}:\n  {operation}", key.0, life(expected)
    )]
    Contradicted {
        /// The key.
        key: Key,
        /// The revision of the state.
        revision: i64,
        /// What the key holds then.
        expected: Option<Found>,
        /// What the answer says.
        said: Said,
        /// Who was answered so.
        operation: Side,
    },
    /// A state was shown, or compacted anew, although it was known to be compacted.
    #[error("a compacted state was used:\n  compacted: {gone}\n  used: {shown}")]
    ShownAfterCompaction {
        /// What proves that it was compacted.
        gone: Side,
        /// What used it all the same.
        shown: Side,
    },
    /// A state was refused as compacted, and no compaction goes beyond it.
    #[error(
        "a state was refused as compacted, and no compaction that was asked for goes beyond it:\n  {refused}"
    )]
    NeverCompacted {
        /// Who was refused.
        refused: Side,
    },
    /// Revisions that nobody was told of, and no request of unknown outcome can have made them.
    #[error("nobody can have made {}{}", revisions(missing), because(why))]
    Unexplained {
        /// The revisions; at most a hundred.
        missing: Vec<i64>,
        /// What contradicts the best explanation, if one comes near.
        why: Option<Box<Violation>>,
    },
}

/// What an answer says about a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// It does not exist.
    Absent,
    /// It exists.
    Exists,
    /// It holds this.
    Holds(Found),
    /// Its mod revision is this; 0 for none.
    ModRevisionIs(i64),
    /// Its mod revision is another than this; 0 for none.
    ModRevisionIsNot(i64),
}

impl Side {
    pub(super) fn of(history: &History, index: usize) -> Side {
        Side { index, operation: Box::new(history.operations[index].clone()) }
    }
}

fn life(expected: &Option<Found>) -> String {
    expected.map_or_else(|| "nothing".to_owned(), |found| found.to_string())
}

fn revisions(missing: &[i64]) -> String {
    match missing {
        [one] => format!("revision {one}"),
        [first, .., last] => format!("{} revisions from {first} to {last}", missing.len()),
        [] => "no revision".to_owned(),
    }
}

fn because(why: &Option<Box<Violation>>) -> String {
    why.as_ref().map_or_else(String::new, |why| format!("; the best attempt ends where {why}"))
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Said::Absent => f.write_str("that it does not exist"),
            Said::Exists => f.write_str("that it exists"),
            Said::Holds(found) => write!(f, "that it holds {found}"),
            Said::ModRevisionIs(0) => f.write_str("that it does not exist"),
            Said::ModRevisionIs(revision) => write!(f, "that its mod revision is {revision}"),
            Said::ModRevisionIsNot(0) => f.write_str("that it exists"),
            Said::ModRevisionIsNot(revision) => write!(f, "that its mod revision is not {revision}"),
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Found { key: Key(key), value: Token(value), create_revision, mod_revision, version } = self;
        write!(f, "{key}={value} (created {create_revision}, modified {mod_revision}, version {version})")
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Operation { client, node, session, called, request, outcome } = &*self.operation;
        write!(f, "operation {} of client {client} on node {node} (session {session}): ", self.index)?;
        write!(f, "{request} called at {called}, {outcome}")
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Request::Put { key, value } => write!(f, "put {}={}", key.0, value.0),
            Request::Delete { key } => write!(f, "delete {}", key.0),
            Request::CompareAndPut { key, expected_mod_revision, value } => {
                write!(f, "put {}={} if its mod revision is {expected_mod_revision}", key.0, value.0)
            }
            Request::DeleteRange(span) => write!(f, "delete {} to {}", span.first.0, span.last.0),
            Request::Transaction(Transaction { expected, reads, removes, sets }) => {
                write!(f, "read {} to {}", reads.first.0, reads.last.0)?;
                if let Some((key, revision)) = expected {
                    write!(f, "; if the mod revision of {} is {revision}", key.0)?;
                }
                if let Some(span) = removes {
                    write!(f, "; delete {} to {}", span.first.0, span.last.0)?;
                }
                sets.iter().try_for_each(|(key, value)| write!(f, "; put {}={}", key.0, value.0))
            }
            Request::Compact { revision } => write!(f, "compact to {revision}"),
            Request::Read { first, last, freshness } => {
                match freshness {
                    Freshness::Linearizable => f.write_str("read ")?,
                    Freshness::Serializable => f.write_str("serializable read ")?,
                    Freshness::At(revision) => write!(f, "read at revision {revision} ")?,
                }
                if first == last { write!(f, "{}", first.0) } else { write!(f, "{} to {}", first.0, last.0) }
            }
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Done { returned, answer } => write!(f, "returned at {returned}, {answer}"),
            Outcome::Refused => f.write_str("refused"),
            Outcome::Gone { returned } => write!(f, "refused at {returned} as compacted"),
            Outcome::Unknown => f.write_str("outcome unknown"),
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Answer::Written { revision } => write!(f, "revision {revision}"),
            Answer::Deleted { revision, existed: true } => write!(f, "revision {revision}"),
            Answer::Deleted { revision, existed: false } => {
                write!(f, "revision {revision}, nothing was there")
            }
            Answer::Compared { revision, succeeded: true } => write!(f, "revision {revision}, it held"),
            Answer::Compared { revision, succeeded: false } => {
                write!(f, "revision {revision}, it did not hold")
            }
            Answer::Transacted { revision, succeeded, met } => {
                let held = if *succeeded { "it held" } else { "it did not hold" };
                write!(f, "revision {revision}, {held}, met")?;
                met.iter().try_for_each(|found| write!(f, " {found}"))
            }
            Answer::Compacted { revision } => write!(f, "compacted at revision {revision}"),
            Answer::RangeDeleted { revision, removed: found } | Answer::Read { revision, found }
                if found.is_empty() =>
            {
                write!(f, "revision {revision}, nothing found")
            }
            Answer::RangeDeleted { revision, removed: found } | Answer::Read { revision, found } => {
                write!(f, "revision {revision}, found")?;
                found.iter().try_for_each(|found| write!(f, " {found}"))
            }
        }
    }
}
