//! What makes things durable: it takes all that waits, writes it, syncs once, and says so. Group commit is just this
//! (R20); a failed write or sync ends the process (R21).
//!
//! [`Writer`] does it and knows no threads; [`run`] is the thread. Where the disk is full, an operation waits with all
//! that come after it until there is room (R25); only dropping what nobody needs goes ahead, because it makes room.

use std::collections::VecDeque;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;

use super::directory::DataDirectory;
use super::disk::Disk;
use super::event::{Events, Internal};
use super::log::{Log, LogError, Position};
use super::promise::Promises;
use crate::protocol::WriteId;
use crate::view::{Epoch, Index, View};

/// After so long without operations there is time for what nobody waits for.
const IDLE: Duration = Duration::from_secs(1);
/// The disk was slow if writing and syncing what came together took this long.
const SLOW: Duration = Duration::from_secs(1);
/// Whether a full disk has room again can only be asked; asked this often.
const FULL: Duration = Duration::from_millis(100);

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

/// Where promises are kept.
pub trait KeepPromise {
    /// Keeps it, durably.
    ///
    /// # Errors
    /// In words; the process must end (R21).
    fn keep(&self, promised: Epoch, view: Option<&View>, commit: Index) -> Result<(), String>;
}

impl KeepPromise for DataDirectory {
    fn keep(&self, promised: Epoch, view: Option<&View>, commit: Index) -> Result<(), String> {
        self.save_promise(promised, view, commit).map_err(|error| error.to_string())
    }
}

impl KeepPromise for Promises {
    fn keep(&self, promised: Epoch, view: Option<&View>, commit: Index) -> Result<(), String> {
        self.save(promised, view, commit).map_err(|error| error.to_string())
    }
}

impl<P: KeepPromise> KeepPromise for &P {
    fn keep(&self, promised: Epoch, view: Option<&View>, commit: Index) -> Result<(), String> {
        (*self).keep(promised, view, commit)
    }
}

/// What a turn has brought about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TurnDone {
    /// Every write up to this one is durable.
    pub persisted: Option<WriteId>,
    /// Whole segments were dropped: the log begins after this entry now.
    pub dropped: Option<Index>,
    /// Operations that wait for room on the disk.
    pub waiting: usize,
}

/// Why nothing more can be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// What was to be appended here does not continue the log (R14).
    Diverged(Index),
    /// The disk failed (R21); in words.
    Fatal(String),
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Failure {
        match error {
            LogError::Diverged { index, .. } => Failure::Diverged(index),
            LogError::Io { .. }
            | LogError::NoSpace { .. }
            | LogError::Corrupt { .. }
            | LogError::Format { .. }
            | LogError::Gone { .. } => Failure::Fatal(error.to_string()),
        }
    }
}

/// Log and promises of a node. See the head of the module.
pub struct Writer<D: Disk, P: KeepPromise> {
    log: Log<D>,
    promises: P,
    /// Found no room, and what came after it.
    waiting: VecDeque<WriteOperation>,
    /// Nothing may follow.
    failed: Option<Failure>,
}

enum Step {
    Done,
    /// There was no room for it; nothing was done.
    NoSpace(WriteOperation),
}

impl<D: Disk, P: KeepPromise> Writer<D, P> {
    /// Takes over a log and what keeps promises.
    pub fn new(log: Log<D>, promises: P) -> Writer<D, P> {
        Writer { log, promises, waiting: VecDeque::new(), failed: None }
    }

    /// The log as it is.
    #[cfg(test)]
    pub fn log(&self) -> &Log<D> {
        &self.log
    }

    /// Carries out all operations in order, and syncs once. What waited for room comes first. Nothing may follow a
    /// failure.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn turn(
        &mut self,
        operations: impl IntoIterator<Item = WriteOperation>,
    ) -> Result<TurnDone, Failure> {
        if let Some(failure) = &self.failed {
            return Err(failure.clone());
        }
        let turned = self.try_turn(operations);
        self.failed = turned.as_ref().err().cloned();
        turned
    }

    fn try_turn(
        &mut self,
        operations: impl IntoIterator<Item = WriteOperation>,
    ) -> Result<TurnDone, Failure> {
        let mut done = TurnDone::default();
        let waited = std::mem::take(&mut self.waiting);
        for operation in waited.into_iter().chain(operations) {
            let goes_ahead = matches!(operation, WriteOperation::DropBefore(_));
            if self.waiting.is_empty() || goes_ahead {
                match self.carry_out(operation, &mut done)? {
                    Step::Done => {}
                    Step::NoSpace(operation) => self.waiting.push_back(operation),
                }
            } else {
                self.waiting.push_back(operation);
            }
        }
        self.log.sync()?;
        done.waiting = self.waiting.len();
        Ok(done)
    }

    /// To be called after what a turn has brought about was told, when nothing waits.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn rest(&mut self) -> Result<(), Failure> {
        Ok(self.log.mark()?)
    }

    /// To be called when nothing has happened for a while.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn tend(&mut self) -> Result<(), Failure> {
        self.rest()?;
        self.log.tend();
        Ok(())
    }

    fn carry_out(&mut self, operation: WriteOperation, done: &mut TurnDone) -> Result<Step, Failure> {
        let (write, result) = match &operation {
            WriteOperation::Append { write, frames, last } => (*write, self.log.append(frames, *last)),
            WriteOperation::Truncate { write, after } => (*write, self.log.truncate_after(*after)),
            WriteOperation::Persist { write, promised, view, commit } => {
                self.promises.keep(*promised, view.as_ref(), *commit).map_err(Failure::Fatal)?;
                (*write, Ok(()))
            }
            // First the head of the new log, then the state, then the log's name: whatever a crash leaves, the next
            // start can tell a new state that is in place from an old one whose log has lost its end.
            WriteOperation::Install { write, base, .. } => (*write, self.log.stage_reset(*base)),
            WriteOperation::DropBefore(index) => {
                self.log.drop_before(*index)?;
                done.dropped = Some(self.log.base().index);
                return Ok(Step::Done);
            }
        };
        match result {
            Err(LogError::NoSpace { path }) => {
                tracing::warn!("no room for {}: what is to be written waits", path.display());
                return Ok(Step::NoSpace(operation));
            }
            other => other?,
        }
        if let WriteOperation::Install { place, .. } = operation {
            place().map_err(Failure::Fatal)?;
            self.log.finish_reset()?;
        }
        done.persisted = Some(write);
        Ok(Step::Done)
    }
}

/// Runs until the sending side is gone.
pub fn run(
    log: Log,
    directory: &DataDirectory,
    operations: &mpsc::Receiver<WriteOperation>,
    events: &Events,
) {
    let mut writer = Writer::new(log, directory);
    let mut wait = IDLE;
    loop {
        let mut begun = None;
        let worked = match operations.recv_timeout(wait) {
            Ok(first) => {
                begun = Some(crate::clock::now());
                writer.turn(std::iter::once(first).chain(operations.try_iter()))
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let tended = writer.tend();
                tended.and_then(|()| if wait == FULL { writer.turn(None) } else { Ok(TurnDone::default()) })
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        };
        let done = match worked {
            Ok(done) => done,
            Err(Failure::Diverged(at)) => {
                events.send_blocking(Internal::Diverged(at));
                // Nothing more is written; what the driver still sends until it halts is of no use.
                while operations.recv().is_ok() {}
                return;
            }
            Err(Failure::Fatal(why)) => fail(directory, &why),
        };
        // Nobody hears yes meanwhile, and it looks like anything else from outside.
        if let Some(took) = begun.map(|begun| begun.elapsed()).filter(|took| *took >= SLOW) {
            tracing::warn!("the disk took {} ms to write and sync: writes waited for it", took.as_millis());
        }
        // Before anything is reported: what was written into deleted files is lost with this process (R21). What cannot
        // be told is no reason to end.
        if matches!(directory.is_in_place(), Ok(false)) {
            fail(directory, "it was deleted, emptied, moved or replaced while the node ran");
        }
        if let Some(index) = done.dropped {
            events.send_blocking(Internal::Dropped(index));
        }
        if let Some(write) = done.persisted {
            events.send_blocking(Internal::Persisted(write));
            if let Err(Failure::Fatal(why)) = writer.rest() {
                fail(directory, &why);
            }
        }
        wait = if done.waiting > 0 { FULL } else { IDLE };
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

#[cfg(test)]
mod tests;
