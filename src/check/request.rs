//! What can be asked, and what each request would change: the keys it sets, the keys it removes, and under which
//! condition.

use super::{Key, Token};

/// Keys from the first to the last, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// The first key.
    pub first: Key,
    /// The last key.
    pub last: Key,
}

/// Several keys at equal distances, each set to a value of its own: key `first + n * step` to `value + n`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sets {
    /// The first key.
    pub first: Key,
    /// The distance to the next; at least 1.
    pub step: u32,
    /// How many; at least 1.
    pub count: u32,
    /// What the first is set to. No other request of the history writes any of these values.
    pub value: Token,
}

/// Several changes that share one revision, or none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Change only where this key has this mod revision (0: where it does not exist); without it, always.
    pub expected: Option<(Key, i64)>,
    /// Read before anything is changed, whether or not it is.
    pub reads: Span,
    /// All keys of it are removed.
    pub removes: Option<Span>,
    /// Set after that; none of them lies in `removes`.
    pub sets: Sets,
}

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Set a key.
    Put {
        /// The key.
        key: Key,
        /// What to set it to; no other request of the history writes it.
        value: Token,
    },
    /// Remove a key.
    Delete {
        /// The key.
        key: Key,
    },
    /// Set a key if it was not changed since.
    CompareAndPut {
        /// The key.
        key: Key,
        /// Do so only where this is its mod revision; 0 where it must not exist.
        expected_mod_revision: i64,
        /// What to set it to; no other request of the history writes it.
        value: Token,
    },
    /// Remove all keys of a span and answer with what they held.
    DeleteRange(Span),
    /// Change several keys in one revision.
    Transaction(Transaction),
    /// Forget the states before this revision.
    Compact {
        /// The oldest revision that can be read afterwards.
        revision: i64,
    },
    /// Read keys as they are in one state.
    Read {
        /// The first key.
        first: Key,
        /// The last key; the same as the first for a single one.
        last: Key,
        /// Which state.
        freshness: Freshness,
    },
}

/// Which state a read may show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// No older one than at the call.
    Linearizable,
    /// Any that was made, but no older one than the same process of the same node has shown.
    Serializable,
    /// The one of this revision, asked linearizably.
    At(i64),
}

impl Span {
    /// Of one key.
    #[must_use]
    pub fn one(key: Key) -> Span {
        Span { first: key, last: key }
    }

    /// Whether a key lies in it.
    #[must_use]
    pub fn holds(&self, key: Key) -> bool {
        (self.first..=self.last).contains(&key)
    }
}

impl Sets {
    /// Each key with its value.
    pub fn iter(&self) -> impl Iterator<Item = (Key, Token)> + use<> {
        let Sets { first, step, count, value } = *self;
        (0..count).map(move |n| (Key(first.0 + n * step), Token(value.0 + u64::from(n))))
    }
}

impl Request {
    /// A read of one key.
    #[must_use]
    pub fn get(key: Key, freshness: Freshness) -> Request {
        Request::Read { first: key, last: key, freshness }
    }

    /// The keys that it would set, with their values.
    pub(super) fn sets(&self) -> impl Iterator<Item = (Key, Token)> + use<> {
        let sets = match *self {
            Request::Put { key, value } | Request::CompareAndPut { key, value, .. } => {
                Some(Sets { first: key, step: 1, count: 1, value })
            }
            Request::Transaction(Transaction { sets, .. }) => Some(sets),
            Request::Delete { .. }
            | Request::DeleteRange(_)
            | Request::Compact { .. }
            | Request::Read { .. } => None,
        };
        sets.into_iter().flat_map(|sets| sets.iter())
    }

    /// The keys that it would remove, before it sets any.
    pub(super) fn removes(&self) -> Option<Span> {
        match *self {
            Request::Delete { key } => Some(Span::one(key)),
            Request::DeleteRange(span) => Some(span),
            Request::Transaction(Transaction { removes, .. }) => removes,
            Request::Put { .. }
            | Request::CompareAndPut { .. }
            | Request::Compact { .. }
            | Request::Read { .. } => None,
        }
    }

    /// The mod revision that a key must have for it to change anything.
    pub(super) fn expects(&self) -> Option<(Key, i64)> {
        match *self {
            Request::CompareAndPut { key, expected_mod_revision, .. } => Some((key, expected_mod_revision)),
            Request::Transaction(Transaction { expected, .. }) => expected,
            Request::Put { .. }
            | Request::Delete { .. }
            | Request::DeleteRange(_)
            | Request::Compact { .. }
            | Request::Read { .. } => None,
        }
    }

    /// It can make a revision.
    #[must_use]
    pub fn may_change(&self) -> bool {
        match self {
            Request::Put { .. }
            | Request::Delete { .. }
            | Request::CompareAndPut { .. }
            | Request::DeleteRange(_)
            | Request::Transaction(_) => true,
            Request::Compact { .. } | Request::Read { .. } => false,
        }
    }

    /// It may leave this key other than it was.
    pub(super) fn touches(&self, key: Key) -> bool {
        self.removes().is_some_and(|span| span.holds(key)) || self.sets().any(|(set, _)| set == key)
    }

    /// Which keys it reads, and answers with what they held.
    pub(super) fn reads(&self) -> Option<Span> {
        match *self {
            Request::Read { first, last, .. } => Some(Span { first, last }),
            Request::DeleteRange(span) => Some(span),
            Request::Transaction(Transaction { reads, .. }) => Some(reads),
            Request::Put { .. }
            | Request::Delete { .. }
            | Request::CompareAndPut { .. }
            | Request::Compact { .. } => None,
        }
    }
}
