//! What a supervisor remembers of its nodes' processes: kept in a file so that the next one can take them over, and
//! shown as it is to whoever asks for the status.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::control::cause::{Cause, Trouble};
use crate::control::fault::{self, Duty};

use super::os::{self, ProcessId};
use super::owner;

/// The form of the file; another one is not read.
const SCHEMA: u32 = 1;

/// Everything remembered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The form of this record.
    pub schema: u32,
    /// Who wrote this.
    pub supervisor: Option<ProcessId>,
    /// It runs within the command of somebody at a terminal, or of a service manager: no node outlives it.
    #[serde(default)]
    pub foreground: bool,
    /// Each node by its address.
    pub nodes: BTreeMap<String, NodeRecord>,
}

impl Default for Record {
    fn default() -> Record {
        Record { schema: SCHEMA, supervisor: None, foreground: false, nodes: BTreeMap::new() }
    }
}

/// What is remembered of one node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// It is to run: not stopped or killed by the operator.
    pub wanted: bool,
    /// How its process stood.
    pub phase: Phase,
    /// Its process, while one runs.
    pub process: Option<ProcessId>,
    /// What the process was given to prove that it is the one started.
    pub nonce: String,
    /// How many processes were started for it, ever.
    pub spawns: u64,
    /// How its last process ended.
    pub last_exit: Option<LastExit>,
    /// What the operator ordered to be done to it and is not over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// What its process was told of the configuration: flag and value.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// Share of one processor lately, in percent; only from a living supervisor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<f64>,
    /// Milliseconds until it is started again, where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_in_ms: Option<u64>,
    /// When that is, in milliseconds since the boot: for a supervisor that comes after this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_at_ms: Option<u64>,
    /// Ends in a row that nobody asked for, so that a supervisor which itself does not live long gives up too.
    #[serde(default)]
    pub failures: u32,
    /// Those of them that lay with the node itself.
    #[serde(default)]
    pub own_failures: u32,
    /// What it last said, whether or not its process lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_answer: Option<LastAnswer>,
}

/// What a node last said of itself: shown with its age where the node says nothing now, and never as how it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastAnswer {
    /// When, UTC.
    pub at: String,
    /// The epoch of its view.
    pub epoch: u64,
    /// Whom it took for the leader; empty where it knew none.
    pub leader: String,
    /// How far it had applied, as an index.
    pub applied: u64,
    /// Its revision.
    pub revision: i64,
}

/// How a node's process stands, without the moments that only its supervisor understands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Nothing runs and nothing is due.
    #[default]
    Down,
    /// Runs and has not served yet.
    Starting,
    /// Has served.
    Serving,
    /// Frozen.
    Paused,
    /// Told to end.
    Stopping,
    /// Ended by itself and is started again soon.
    Waiting,
    /// Given up.
    Failed,
}

/// An open fault of one node. Written down before anything is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Which order.
    pub id: String,
    /// What is done.
    pub kind: fault::Kind,
    /// To which process.
    pub pid: u32,
    /// How far it has come.
    pub phase: fault::Phase,
    /// When it ends by itself, in milliseconds since the boot.
    pub until_ms: Option<u64>,
}

impl Fault {
    /// What it asks for where its supervisor is gone, given the process that is remembered for its node.
    #[must_use]
    pub fn duty(&self, process: Option<&ProcessId>, now_ms: u64) -> Duty {
        let process = process.filter(|id| id.pid == self.pid && os::is_alive(id));
        let frozen = process.is_some_and(|id| os::stat(id.pid).is_ok_and(|stat| stat.is_frozen()));
        let expired = self.until_ms.is_some_and(|until| until <= now_ms);
        fault::duty(self.kind, self.phase, process.is_some(), frozen, expired)
    }
}

/// How a process ended, as the status shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastExit {
    /// Exit code, where it exited and could be asked.
    pub code: Option<i32>,
    /// Signal, where one ended it.
    pub signal: Option<i32>,
    /// Who or what ended it.
    pub cause: Cause,
    /// When, UTC.
    pub at: String,
    /// What it had run into, where its last words tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<Trouble>,
    /// Its last words, where it ended by itself and had any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub words: Option<String>,
}

/// Reads what was remembered. No file, a torn one and one of another form are all "nothing": the locks of the nodes
/// in the register still name their processes, and the history tells what was begun.
///
/// # Errors
/// What the system said where the file is there and cannot be read.
pub fn load(path: &Path) -> io::Result<Record> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Record::default()),
        Err(error) => return Err(error),
    };
    match serde_json::from_slice::<Record>(&text) {
        Ok(record) if record.schema == SCHEMA => Ok(record),
        Ok(record) => {
            tracing::warn!(file = %path.display(), schema = record.schema, "unknown form, left aside");
            Ok(Record::default())
        }
        Err(error) => {
            tracing::warn!(file = %path.display(), %error, "cannot be understood, left aside");
            Ok(Record::default())
        }
    }
}

/// Replaces what was remembered. Not synced: after a power cut no process is left to remember.
///
/// # Errors
/// What the system said; the old file is then untouched.
pub fn save(path: &Path, record: &Record) -> io::Result<()> {
    let temporary = path.with_extension("json.new");
    let mut file = fs::File::create(&temporary)?;
    file.write_all(&serde_json::to_vec(record)?)?;
    owner::like_directory(&file, &temporary)?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        assert_eq!(load(&path).unwrap(), Record::default());
        let node = NodeRecord {
            wanted: true,
            phase: Phase::Serving,
            process: Some(ProcessId { pid: 7, start_time: 8, boot_id: "b".to_owned() }),
            last_exit: Some(LastExit {
                code: Some(1),
                signal: None,
                cause: Cause::Crash,
                at: "t".to_owned(),
                trouble: Some(Trouble::Disk),
                words: Some("no space left".to_owned()),
            }),
            fault: Some(Fault {
                id: "f".to_owned(),
                kind: fault::Kind::Pause,
                pid: 7,
                phase: fault::Phase::Held,
                until_ms: Some(9),
            }),
            ..NodeRecord::default()
        };
        let record = Record { nodes: BTreeMap::from([("h:1".to_owned(), node)]), ..Record::default() };
        save(&path, &record).unwrap();
        assert_eq!(load(&path).unwrap(), record);
    }

    #[test]
    fn what_cannot_be_understood_is_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        for text in ["", "{", "{\"schema\":2,\"supervisor\":null,\"nodes\":{}}"] {
            fs::write(&path, text).unwrap();
            assert_eq!(load(&path).unwrap(), Record::default(), "{text}");
        }
    }
}
