//! What nodes say to each other about the log and the view. Requests of clients travel beside these and are the
//! driver's business.
//!
//! | message | from → to | says |
//! |---|---|---|
//! | `Append` | leader → everyone it streams to | entries after `previous`, and the commit index; empty as a heartbeat |
//! | `Appended` | follower → leader | all up to `durable` is on my disk and the same as yours |
//! | `Report` | anyone → leader | where I stand: continue from `commit`, or send a snapshot |
//! | `Ping` | anyone → anyone | I live |
//! | `Stale` | anyone → anyone | your epoch is behind mine |
//! | `Transfer` | leader → an in-sync follower | everything is drained: take over |

use super::Millis;
use super::outline::{Mark, Run};
use crate::view::{Checksum, Epoch, Incarnation, Index, NodeId};

/// A message and who sent it (R6).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Envelope {
    /// Who sent it.
    pub from: NodeId,
    /// The sender's data directory.
    pub incarnation: Incarnation,
    /// The sender's process: a death is proved of a process, not of an address.
    pub session: u64,
    /// The epoch of the newest view the sender had adopted.
    pub epoch: Epoch,
    /// The checksum of that view; zero where there is none, or from a build that does not say. Two views of one epoch
    /// are told apart by it (R11).
    pub view: Checksum,
    /// What it says.
    pub message: Message,
}

/// See the table at the head of the module.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Message {
    /// Entries `(previous.index, last]` in the runs given; the payloads travel beside it.
    Append {
        /// The entry that comes right before.
        previous: Mark,
        /// The epochs of the entries; empty for a heartbeat.
        runs: Vec<Run>,
        /// The last of the entries; `previous.index` for a heartbeat.
        last: Index,
        /// What the leader knows to be committed.
        commit: Index,
        /// When it was sent, by the leader's clock; `None` from a build that does not say.
        sent: Option<Millis>,
    },
    /// All up to `durable` is on disk here and the same as the leader's.
    Appended {
        /// See above.
        durable: Index,
        /// The disk is nearly full (R25).
        full: bool,
        /// Which disk that is, as in [`Config::disk`](super::Config::disk).
        disk: u64,
        /// When the newest `Append` that the sender has obeyed was sent, by the leader's clock; `None` from a build that
        /// does not say. Up to `failure_timeout` after that moment the sender obeys no other leader, unless a death is
        /// proved (R17).
        heard: Option<Millis>,
    },
    /// Where the sender stands.
    Report {
        /// Everything up to here is surely a prefix of the leader's log.
        commit: Index,
        /// The end of the sender's log.
        last: Index,
    },
    /// A sign of life.
    Ping,
    /// The receiver's epoch is behind the sender's.
    Stale,
    /// Take over now (R9).
    Transfer,
}
