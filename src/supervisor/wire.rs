//! What the command line and the supervisor say to each other: one JSON line a message, over the control socket.
//! A request is answered by one line.

use serde::{Deserialize, Serialize};

use super::events::Event;
use super::record::Record;

/// A line may not be longer: nobody has more to say.
pub const LONGEST_LINE_BYTES: usize = 1 << 20;

/// What is asked. Nodes are addresses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Request {
    /// What do you know of the nodes' processes?
    Snapshot,
    /// Have these run.
    Start {
        /// Which.
        nodes: Vec<String>,
    },
    /// End these gracefully; they stay down.
    Stop {
        /// Which.
        nodes: Vec<String>,
        /// Milliseconds until one that has not ended is killed.
        patience_ms: u64,
    },
    /// End these gracefully and start them again.
    Restart {
        /// Which.
        nodes: Vec<String>,
        /// Milliseconds until one that has not ended is killed.
        patience_ms: u64,
    },
    /// Send these a signal that ends them; they stay down.
    Kill {
        /// Which.
        nodes: Vec<String>,
        /// The signal's number.
        signal: i32,
        /// An id for the order.
        fault: String,
        /// Only if the process is one of these. Where none is named whatever runs is to end, even if that cannot be written
        /// down first: a cluster on a full disk can be ended.
        #[serde(default)]
        only: Vec<u32>,
        /// Also if no in-sync node is left running by it: the operator was asked.
        #[serde(default)]
        even_last: bool,
    },
    /// Freeze these; answered when they are seen frozen. Undone when the conversation ends before `Hold`: an order whose
    /// giver does not know that it was carried out is none.
    Pause {
        /// Which.
        nodes: Vec<String>,
        /// Milliseconds until they are thawed again, where they are by themselves.
        for_ms: Option<u64>,
        /// An id for the order.
        fault: String,
        /// Also if no in-sync node is left awake by it: the operator was asked, or it ends by itself.
        #[serde(default)]
        even_last: bool,
    },
    /// The operator was not told that this pause stands: undo it.
    Forsake {
        /// The order's id.
        fault: String,
    },
    /// The operator knows of this pause and wants it so.
    Hold {
        /// The order's id.
        fault: String,
    },
    /// Thaw these.
    Resume {
        /// Which.
        nodes: Vec<String>,
    },
    /// Read the configuration again: nodes were added or taken out.
    Reload,
    /// Forget these, which do not run and are not in the configuration any more.
    Forget {
        /// Which.
        nodes: Vec<String>,
    },
    /// Put this into the history, once.
    Note {
        /// The event's id.
        id: String,
        /// What.
        event: Event,
    },
    /// End. No node is ended by this.
    Quit,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Reply {
    /// To `Snapshot`.
    Snapshot {
        /// Everything remembered, as of now.
        record: Record,
    },
    /// To a request that names nodes: one outcome each, in the order asked.
    Outcomes {
        /// What became of each.
        outcomes: Vec<Outcome>,
    },
    /// To everything else that was done.
    Done,
    /// It was not done.
    Refused {
        /// Why, and what to do.
        reason: String,
        /// Another command was faster; what was asked may be asked again.
        #[serde(default)]
        overtaken: bool,
    },
}

/// What became of a request for one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The node.
    pub node: String,
    /// What became of it.
    #[serde(flatten)]
    pub result: OutcomeKind,
    /// Its process after the request was taken.
    pub pid: Option<u32>,
}

/// What became of a request for one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum OutcomeKind {
    /// It is being done.
    Accepted,
    /// It was so already.
    Already,
    /// It cannot be done.
    Denied {
        /// Why.
        reason: String,
    },
}
