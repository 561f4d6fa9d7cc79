//! The history of a cluster: what was ordered, what was done to processes, how they ended, who led. One JSON object a
//! line. What is to be done is on disk before it is done, and what was done before anybody is answered. The supervisor
//! and any command that works without one can both write, and anybody can follow.
//!
//! A file that is full is put aside, and the oldest is given up: all files together stay within [`LONGEST_FILE`] times
//! one more than [`KEPT`]. Each new one begins with what of the past is still open ([`super::past`]).
//!
//! Every event has an id. Whoever cannot tell whether an event was written, because the supervisor it was given to
//! died, offers it again under the same id ([`EventLog::append_once`]); so every event is there once. The history is the
//! journal of faults too: what was begun and not ended shows in it.

use serde::{Deserialize, Serialize};

use crate::control::cause::{Cause, Trouble};
use crate::control::fault;

mod log;

/// How the reason begins for which a node was given up whose processes ended again and again.
pub const RESTARTS_DO_NOT_HELP: &str = "restarts do not help";

pub use log::{EventLog, KEPT, LONGEST_FILE, Reader, begun, files, read, recent};

/// An event with its time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Wall-clock time, UTC, as [`stamp`](crate::telemetry::stamp) writes it.
    pub at: String,
    /// Tells it from every other event; empty in histories written before there were ids.
    #[serde(default)]
    pub id: String,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// What can happen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A supervisor began its work.
    SupervisorStarted {
        /// Its process.
        pid: u32,
    },
    /// A supervisor ended its work on purpose.
    SupervisorEnded {
        /// Its process.
        pid: u32,
        /// Why.
        reason: String,
    },
    /// A node's process was started.
    Started {
        /// The node.
        node: String,
        /// The process.
        pid: u32,
    },
    /// A process of a node that an earlier supervisor started was taken over.
    Adopted {
        /// The node.
        node: String,
        /// The process.
        pid: u32,
    },
    /// A node serves for the first time since its process started.
    Ready {
        /// The node.
        node: String,
        /// Since the start, in milliseconds; absent for a process that was taken over.
        #[serde(skip_serializing_if = "Option::is_none")]
        after_ms: Option<u64>,
    },
    /// A node's process ended.
    Exited {
        /// The node.
        node: String,
        /// The process.
        pid: u32,
        /// Exit code, where it exited and could be asked.
        code: Option<i32>,
        /// Signal, where one ended it.
        signal: Option<i32>,
        /// Who or what ended it.
        cause: Cause,
        /// What it had run into, where its last words tell.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        trouble: Option<Trouble>,
        /// Its last words, where it ended by itself and had any.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        words: Option<String>,
        /// Milliseconds until it is started again, where it is.
        #[serde(skip_serializing_if = "Option::is_none")]
        restart_in_ms: Option<u64>,
    },
    /// No process could be started for a node; it is tried again.
    NotStarted {
        /// The node.
        node: String,
        /// Why.
        reason: String,
        /// Milliseconds until it is tried again.
        restart_in_ms: u64,
    },
    /// A node will not be started again without the operator.
    GaveUp {
        /// The node.
        node: String,
        /// Why.
        reason: String,
    },
    /// The nodes have another view.
    View {
        /// Its number.
        epoch: u64,
        /// Who leads.
        leader: String,
        /// Who is in sync.
        in_sync: Vec<String>,
    },
    /// The operator asked for something.
    Command {
        /// In the words of the command line, such as `kill leader`.
        command: String,
        /// The nodes it concerns.
        nodes: Vec<String>,
        /// The signal, for a kill.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signal: Option<String>,
        /// Who led when it was asked.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        leader: Option<String>,
    },
    /// A phase of a fault that the operator ordered, for one node.
    Fault {
        /// Which order; the same for all nodes of one command.
        fault: String,
        /// What is done.
        kind: fault::Kind,
        /// The node.
        node: String,
        /// The process.
        pid: u32,
        /// How far it has come.
        phase: fault::Phase,
        /// For how many milliseconds, where it ends by itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        for_ms: Option<u64>,
        /// Why, where that is not plain.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
    /// What became of a kill.
    Verdict {
        /// The nodes killed.
        nodes: Vec<String>,
        /// Who leads now.
        leader: Option<String>,
        /// The longest gap between acknowledged writes, in milliseconds; absent without a load, and where writes did not
        /// come back.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unavailable_ms: Option<f64>,
        /// How long no write had been acknowledged when the load ended, in milliseconds; only where writes did not come
        /// back.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        silent_ms: Option<f64>,
        /// Writes acknowledged; absent without a load.
        #[serde(default)]
        acknowledged: Option<u64>,
        /// Acknowledged and not read back as they were; absent where nothing was read back.
        #[serde(default)]
        lost: Option<u64>,
        /// `proved`, `violated` or `inconclusive`; `none` without a load.
        verdict: String,
    },
}

/// An id for a new event or fault.
#[must_use]
pub fn new_id() -> String {
    format!("{:016x}", rand::random::<u64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_flat_object() {
        let entry = Entry {
            at: "t".to_owned(),
            id: "i".to_owned(),
            event: Event::Exited {
                node: "h:1".to_owned(),
                pid: 7,
                code: None,
                signal: Some(9),
                cause: Cause::OutOfMemory,
                trouble: None,
                words: None,
                restart_in_ms: None,
            },
        };
        assert_eq!(
            serde_json::to_string(&entry).unwrap(),
            r#"{"at":"t","id":"i","event":"exited","node":"h:1","pid":7,"code":null,"signal":9,"cause":"out-of-memory"}"#
        );
    }
}
