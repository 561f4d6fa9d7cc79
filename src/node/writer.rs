//! What makes things durable: it takes all that waits, writes it, syncs once, and says so. Group commit is just this
//! (R20); a failed write or sync ends the process (R21).
//!
//! [`Writer`] does it and knows no threads; [`run`] is the thread. Where something is missing that an operation takes
//! (room on the disk, most often), it waits with all that come after it (R25) and is tried again after a time, which
//! doubles up to a bound. Two things go ahead: dropping what nobody needs, because it makes room, and promises, because
//! their room is had already and the cluster waits for them (R34).

use std::collections::VecDeque;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::directory::DataDirectory;
use super::event::{Events, Internal};
use super::lack::Lack;
use super::log::{Log, LogError, Position};
use super::promise::{PromiseError, Promises};
use crate::disk::Disk;
use crate::protocol::WriteId;
use crate::rules::{Rule, breaks};
use crate::view::{Epoch, Index, View};

/// After so long without operations there is time for what nobody waits for.
const IDLE: Duration = Duration::from_secs(1);
/// The disk was slow if writing and syncing what came together took this long.
const SLOW: Duration = Duration::from_secs(1);
/// Whether a full disk has room again can only be tried: first after this time.
const RETRY_MIN: Duration = Duration::from_millis(100);
/// And at last every so often.
const RETRY_MAX: Duration = Duration::from_secs(2);
/// That something still waits is said again after so long.
const SAY_AGAIN: Duration = Duration::from_secs(60);

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

/// Why a promise was not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotKept {
    /// Something is missing, and nothing was changed: it can be tried again.
    Lack(Lack),
    /// In words; the process must end (R21).
    Fatal(String),
}

/// Where promises are kept.
pub trait KeepPromise {
    /// Keeps it, durably.
    ///
    /// # Errors
    /// [`NotKept`].
    fn keep(&self, promised: Epoch, view: Option<&View>, commit: Index) -> Result<(), NotKept>;
}

impl KeepPromise for DataDirectory {
    fn keep(&self, promised: Epoch, view: Option<&View>, commit: Index) -> Result<(), NotKept> {
        self.save_promise(promised, view, commit).map_err(|error| match error.lack() {
            Some(lack) => NotKept::Lack(lack),
            None => NotKept::Fatal(error.to_string()),
        })
    }
}

impl KeepPromise for Promises {
    fn keep(&self, promised: Epoch, view: Option<&View>, commit: Index) -> Result<(), NotKept> {
        self.save(promised, view, commit).map_err(|error| match error {
            PromiseError::Lack { lack, .. } => NotKept::Lack(lack),
            PromiseError::Io { .. } | PromiseError::Damaged { .. } | PromiseError::TooBig { .. } => {
                NotKept::Fatal(error.to_string())
            }
        })
    }
}

impl<P: KeepPromise> KeepPromise for &P {
    fn keep(&self, promised: Epoch, view: Option<&View>, commit: Index) -> Result<(), NotKept> {
        (*self).keep(promised, view, commit)
    }
}

#[cfg(test)]
impl<P: KeepPromise> KeepPromise for std::sync::Arc<P> {
    fn keep(&self, promised: Epoch, view: Option<&View>, commit: Index) -> Result<(), NotKept> {
        (**self).keep(promised, view, commit)
    }
}

/// What a turn has brought about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TurnDone {
    /// Every write up to this one is durable.
    pub persisted: Option<WriteId>,
    /// Promises that are durable although writes before them wait.
    pub kept: Vec<WriteId>,
    /// Whole segments were dropped: the log begins after this entry now.
    pub dropped: Option<Index>,
    /// Operations that wait for something that is missing.
    pub waiting: usize,
    /// What is missing for the first of them.
    pub lack: Option<Lack>,
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
    /// Found something missing, and what came after it.
    waiting: VecDeque<WriteOperation>,
    /// Nothing may follow.
    failed: Option<Failure>,
}

enum Step {
    Done,
    /// Something was missing for it; nothing was done.
    Lack(WriteOperation, Lack),
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
            if !self.goes_ahead(&operation) {
                self.waiting.push_back(operation);
                continue;
            }
            match self.carry_out(operation, &mut done)? {
                Step::Done => {}
                Step::Lack(operation, lack) => {
                    done.lack.get_or_insert(lack);
                    self.waiting.push_back(operation);
                }
            }
        }
        self.log.sync()?;
        done.waiting = self.waiting.len();
        Ok(done)
    }

    /// Promises keep their order among themselves.
    fn goes_ahead(&self, operation: &WriteOperation) -> bool {
        let promise = |operation: &WriteOperation| matches!(operation, WriteOperation::Persist { .. });
        match operation {
            WriteOperation::DropBefore(_) => true,
            WriteOperation::Persist { .. } if !breaks(Rule::PromiseAhead) => {
                !self.waiting.iter().any(promise)
            }
            WriteOperation::Persist { .. }
            | WriteOperation::Append { .. }
            | WriteOperation::Truncate { .. }
            | WriteOperation::Install { .. } => self.waiting.is_empty(),
        }
    }

    /// To be called after what a turn has brought about was told, when nothing waits.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn rest(&mut self) -> Result<(), Failure> {
        Ok(self.log.mark()?)
    }

    /// Tries again to prepare what was missing something. To be called about once a second.
    pub fn look_again(&mut self) {
        self.log.look_again();
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
                let ahead = !self.waiting.is_empty();
                // What is committed may be in a snapshot that waits: the log that the next start finds ends before it.
                let commit = if ahead { Index(0) } else { *commit };
                match self.promises.keep(*promised, view.as_ref(), commit) {
                    Ok(()) if ahead => {
                        done.kept.push(*write);
                        return Ok(Step::Done);
                    }
                    Ok(()) => {}
                    Err(NotKept::Lack(lack)) => return Ok(Step::Lack(operation, lack)),
                    Err(NotKept::Fatal(why)) => return Err(Failure::Fatal(why)),
                }
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
            Err(LogError::NoSpace { lack, .. }) => return Ok(Step::Lack(operation, lack)),
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
    let mut patience = Patience::new();
    loop {
        let mut begun = None;
        let worked = match operations.recv_timeout(patience.pause()) {
            Ok(first) => {
                let now = crate::clock::now();
                begun = Some(now);
                if patience.looks_again(now) {
                    writer.look_again();
                }
                writer.turn(std::iter::once(first).chain(operations.try_iter()))
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                patience.looks_again(crate::clock::now());
                writer.tend().and_then(|()| writer.turn(None))
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
        for write in &done.kept {
            events.send_blocking(Internal::PromiseKept(*write));
        }
        if let Some(write) = done.persisted {
            events.send_blocking(Internal::Persisted(write));
            if let Err(Failure::Fatal(why)) = writer.rest() {
                fail(directory, &why);
            }
        }
        patience.note(&done, directory);
    }
}

/// How long the thread waits for the next operation, and what it says of what waits.
struct Patience {
    /// Until what waits is tried again; `None` while nothing does.
    retry: Option<Duration>,
    /// When it was last said.
    said_at: Option<Instant>,
    /// When what could not be prepared was last tried again.
    looked_at: Instant,
}

impl Patience {
    fn new() -> Patience {
        Patience { retry: None, said_at: None, looked_at: crate::clock::now() }
    }

    fn pause(&self) -> Duration {
        self.retry.unwrap_or(IDLE)
    }

    /// True about once a second, also under steady load.
    fn looks_again(&mut self, now: Instant) -> bool {
        let due = now.duration_since(self.looked_at) >= IDLE;
        if due {
            self.looked_at = now;
        }
        due
    }

    fn note(&mut self, done: &TurnDone, directory: &DataDirectory) {
        let now = || crate::clock::now();
        let Some(lack) = done.lack else {
            if self.retry.take().is_some() {
                tracing::warn!("what waited to be written to {} is written", directory.path().display());
            }
            self.said_at = None;
            return;
        };
        self.retry = Some(match self.retry {
            Some(pause) if done.persisted.is_none() => (2 * pause).min(RETRY_MAX),
            Some(_) | None => RETRY_MIN,
        });
        if self.said_at.is_none_or(|at| now().duration_since(at) >= SAY_AGAIN) {
            self.said_at = Some(now());
            tracing::warn!("no {lack} for {}: what is to be written waits", directory.path().display());
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

#[cfg(test)]
mod tests;
