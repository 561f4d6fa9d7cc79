//! The one thread that writes: it takes all that waits, writes it, syncs once, and says so. Group commit is just this
//! (R20); a failed write or sync ends the process (R21).

use std::sync::mpsc;

use bytes::Bytes;

use super::directory::DataDirectory;
use super::event::{Events, Internal};
use super::log::{Log, LogError, Position};
use crate::protocol::WriteId;
use crate::view::{Epoch, Index, View};

/// One thing to make durable, in order.
pub enum WriteOperation {
    /// Consecutive records that follow the end of the log.
    Append {
        /// Number of the write.
        write: WriteId,
        /// The records.
        frames: Bytes,
        /// The last of them.
        last: Position,
    },
    /// Cut the log after this entry.
    Truncate {
        /// Number of the write.
        write: WriteId,
        /// The last entry that stays.
        after: Index,
    },
    /// Keep promise and view.
    Persist {
        /// Number of the write.
        write: WriteId,
        /// The promise (R5).
        promised: Epoch,
        /// The newest view (R11).
        view: Option<View>,
        /// The commit index: no bad record at or below it is a torn tail (R23).
        commit: Index,
    },
    /// Put an installed snapshot in place of state and log.
    Install {
        /// Number of the write.
        write: WriteId,
        /// The log continues after this.
        base: Position,
        /// Moves the new state file into place, durably.
        place: Box<dyn FnOnce() -> Result<(), String> + Send>,
    },
    /// Whole segments below this entry are of no more use.
    DropBefore(Index),
}

/// Runs until the sending side is gone.
pub fn run(
    mut log: Log,
    directory: &DataDirectory,
    operations: &mpsc::Receiver<WriteOperation>,
    events: &Events,
) {
    while let Ok(operation) = operations.recv() {
        let mut durable = None;
        let mut appended = false;
        let mut next = Some(operation);
        while let Some(operation) = next {
            match carry_out(&mut log, directory, operation, events) {
                Ok(Done { write, unsynced }) => {
                    durable = write.or(durable);
                    appended |= unsynced;
                }
                Err(Failure::Diverged(at)) => {
                    events.send_blocking(Internal::Diverged(at));
                    // Nothing more is written; what the driver still sends until it halts is of no use.
                    while operations.recv().is_ok() {}
                    return;
                }
                Err(Failure::Fatal(why)) => fail(directory, &why),
            }
            next = operations.try_recv().ok();
        }
        if appended && let Err(error) = log.sync() {
            fail(directory, &error.to_string());
        }
        if let Some(write) = durable {
            events.send_blocking(Internal::Persisted(write));
        }
    }
}

struct Done {
    write: Option<WriteId>,
    unsynced: bool,
}

enum Failure {
    Diverged(Index),
    Fatal(String),
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Failure {
        match error {
            LogError::Diverged { index, .. } => Failure::Diverged(index),
            other => Failure::Fatal(other.to_string()),
        }
    }
}

fn carry_out(
    log: &mut Log,
    directory: &DataDirectory,
    operation: WriteOperation,
    events: &Events,
) -> Result<Done, Failure> {
    match operation {
        WriteOperation::Append { write, frames, last } => {
            log.append(&frames, last)?;
            Ok(Done { write: Some(write), unsynced: true })
        }
        WriteOperation::Truncate { write, after } => {
            log.truncate_after(after)?;
            Ok(Done { write: Some(write), unsynced: false })
        }
        WriteOperation::Persist { write, promised, view, commit } => {
            directory
                .save_promise(promised, view.as_ref(), commit)
                .map_err(|error| Failure::Fatal(error.to_string()))?;
            Ok(Done { write: Some(write), unsynced: false })
        }
        WriteOperation::Install { write, base, place } => {
            // State first: if we stop in between, the log is found to end elsewhere and is reset at the next start.
            place().map_err(Failure::Fatal)?;
            log.reset(base)?;
            Ok(Done { write: Some(write), unsynced: false })
        }
        WriteOperation::DropBefore(index) => {
            log.drop_before(index)?;
            events.send_blocking(Internal::Dropped(log.base().index));
            Ok(Done { write: None, unsynced: false })
        }
    }
}

/// R21: what was not written may be anything now; only a restart reads what is really there.
fn fail(directory: &DataDirectory, why: &str) -> ! {
    tracing::error!(
        "cannot write to {}: {why}; ending, so that nothing unwritten is ever acknowledged",
        directory.path().display()
    );
    eprintln!("replserver: cannot write to {}: {why}", directory.path().display());
    std::process::exit(1);
}
