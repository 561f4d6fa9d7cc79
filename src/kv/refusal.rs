//! Why the data model says no. Each variant is one of etcd's answers; its code and etcd's exact text are the
//! business of `api`, which holds them in one table.

use super::backend::RevisionKey;

/// A request that was not carried out: nothing was done, not even a revision was used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A key that must be given is empty.
    #[error("no key is given")]
    EmptyKey,
    /// `ignore_value` stands beside a value.
    #[error("a value is given together with ignore_value")]
    ValueProvided,
    /// `ignore_lease` stands beside a lease.
    #[error("a lease is given together with ignore_lease")]
    LeaseProvided,
    /// `ignore_value` or `ignore_lease` on a key that does not exist.
    #[error("the key whose value or lease should be kept does not exist")]
    KeyNotFound,
    /// An operation of a transaction that says nothing.
    #[error("a transaction holds an operation without content")]
    EmptyOperation,
    /// A mutation that says nothing.
    #[error("the request has no content")]
    EmptyMutation,
    /// A put names a lease that does not exist.
    #[error("lease {0} does not exist")]
    LeaseNotFound(i64),
    /// A transaction with more operations than the node accepts.
    #[error("a transaction has {given} operations where {allowed} are left")]
    TooManyOperations {
        /// Compares, operations of success or operations of failure, whichever are most.
        given: usize,
        /// The limit, less what the transactions around this one use.
        allowed: usize,
    },
    /// The bytes are no mutation.
    #[error("the bytes are no request")]
    Undecodable,
    /// Transactions stand too deep inside each other, or too much stands in those inside.
    #[error("transactions stand too deep inside each other")]
    TooDeep,
    /// The operations of a transaction look at too many keys.
    #[error("a transaction looks at too many keys")]
    TooCostly,
    /// Ranges and previous values are more than is answered.
    #[error("the answer would have {bytes} bytes or more, and {allowed} are allowed")]
    AnswerTooLarge {
        /// As far as was counted.
        bytes: u64,
        /// The most.
        allowed: u64,
    },
    /// Two operations that may run together change the same key, at least one by a put.
    #[error("a transaction changes the same key twice")]
    DuplicateKey,
    /// A sort order or sort target that does not exist.
    #[error("the sort order or target does not exist")]
    InvalidSort,
    /// The disks are nearly full: nothing that makes the store grow is accepted (R25).
    #[error("there is no room for more")]
    SpaceExceeded,
    /// The revision asked for is no longer kept.
    #[error("revision {requested} was asked for, but everything below {compacted} is compacted")]
    Compacted {
        /// What the request names.
        requested: i64,
        /// The oldest revision that can be read.
        compacted: i64,
    },
    /// The revision asked for does not exist yet.
    #[error("revision {requested} was asked for, but the newest is {current}")]
    FutureRevision {
        /// What the request names.
        requested: i64,
        /// The newest revision.
        current: i64,
    },
}

/// Why the records at hand are no store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damaged {
    /// A record cannot be what the store wrote.
    #[error("record {}.{} of the store is damaged: {why}\nset the data directory aside and let the node copy from the leader", at.main, at.sub)]
    Record {
        /// Which one.
        at: RevisionKey,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A named value beside the records cannot be what the store wrote.
    #[error(
        "\"{name}\" of the store is damaged: {length} bytes are not its length\nset the data directory aside and let the node copy from the leader"
    )]
    Meta {
        /// Its name.
        name: &'static str,
        /// Its length in bytes.
        length: usize,
    },
}
