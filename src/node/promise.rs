//! What a node must not forget: the epoch below which it obeys nobody (R5), the newest view it has seen (R11), and
//! how much it knew to be committed (R23).
//!
//! It lies on the way of a fail-over, so it is one file of fixed size, and a new promise costs one sync. Two slots are
//! written in turn: a promise torn by a power cut leaves the one before it. In each slot it stands twice: a bit that
//! flips later loses none. What cannot be told from a torn promise is damage to both copies of the newest; then the
//! one before it counts, as if the newest had never been given.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::lack::Lack;
use crate::disk::{Disk, DiskFile};
use crate::register::format;
use crate::rules::{Rule, breaks};
use crate::view::{Epoch, Index, View};

/// A view of some hundred members fits.
const COPY_BYTES: usize = 32 << 10;
const SLOT_BYTES: usize = 2 * COPY_BYTES;
const COPY_HEAD: usize = 4 + 4 + 8 + 8 + 8;
/// The file's name in the data directory.
const NAME: &str = "promise";

/// What survives a restart beside log and state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Promise {
    /// Obey no epoch below this one (R5).
    pub promised: Epoch,
    /// The newest view adopted (R11).
    pub view: Option<View>,
    /// Known to be committed when this was written (R23).
    pub commit: Index,
}

/// A promise could not be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum PromiseError {
    /// The disk failed. What is on it now is not known: the process must end (R21).
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The disk lacks something that the promise takes. No earlier promise is lost, and this one can be given again.
    /// Copy-on-write file systems (btrfs, zfs and others) answer so.
    #[error("no {lack} for {}", path.display())]
    Lack {
        /// The file.
        path: PathBuf,
        /// What.
        lack: Lack,
    },
    /// No copy can be read: what was promised is not known.
    #[error("{} is damaged: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// In words.
        why: String,
    },
    /// The view has no room.
    #[error("a view of {bytes} bytes does not fit into {}: use fewer nodes or shorter addresses", path.display())]
    TooBig {
        /// The file.
        path: PathBuf,
        /// Length of the view.
        bytes: usize,
    },
}

/// The promise file of a node; one process writes it.
pub struct Promises {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    latest: Mutex<Latest>,
}

#[derive(Debug, Clone)]
struct Latest {
    promise: Promise,
    /// Numbers the promises; tells which slot is the newer.
    sequence: u64,
    /// A write or sync has failed: nothing is promised any more (R21).
    failed: bool,
}

impl fmt::Debug for Promises {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Promises").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Promises {
    /// Reads the newest promise in a data directory, or makes the file. What is read is on the disk when this returns
    /// (R22): it is written again, because a sync that failed in an earlier process may have lost it behind our back.
    ///
    /// # Errors
    /// [`PromiseError`]; nothing was changed.
    pub fn open(disk: &impl Disk, directory: &Path) -> Result<Promises, PromiseError> {
        let path = directory.join(NAME);
        let io = |source| PromiseError::Io { path: path.clone(), source };
        let file = match disk.open(&path, false) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                create(disk, directory, &path).map_err(io)?;
                disk.open(&path, false).map_err(io)?
            }
            Err(error) => return Err(io(error)),
        };
        let (promise, sequence) = read(&*file, &path)?;
        let promises =
            Promises { path, file, latest: Mutex::new(Latest { promise, sequence, failed: false }) };
        if !breaks(Rule::RewritePromise) {
            let latest = promises.latest();
            promises.write(&latest.promise, latest.sequence)?;
        }
        if !breaks(Rule::SyncDirectories) {
            let io = |source| PromiseError::Io { path: directory.to_owned(), source };
            disk.sync_directory(directory).map_err(io)?;
        }
        Ok(promises)
    }

    /// The newest promise in the data directory of a node that does not run; changes nothing. Where there is no file,
    /// nothing was promised.
    ///
    /// # Errors
    /// [`PromiseError`].
    pub fn look(disk: &impl Disk, directory: &Path) -> Result<Promise, PromiseError> {
        let path = directory.join(NAME);
        match disk.open(&path, false) {
            Ok(file) => Ok(read(&*file, &path)?.0),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Promise::default()),
            Err(source) => Err(PromiseError::Io { path, source }),
        }
    }

    fn latest(&self) -> MutexGuard<'_, Latest> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest promise kept.
    #[must_use]
    pub fn promise(&self) -> Promise {
        self.latest().promise.clone()
    }

    /// Keeps a promise, durably. The commit index never sinks. The file's room is reserved: a full disk does not
    /// hinder it.
    ///
    /// # Errors
    /// [`PromiseError::TooBig`], nothing was changed; [`PromiseError::Lack`], the promise before is not lost and this one can
    /// be given again; [`PromiseError::Io`], the caller must end the process (R21).
    pub fn save(&self, promised: Epoch, view: Option<&View>, commit: Index) -> Result<(), PromiseError> {
        let mut latest = self.latest();
        if latest.failed {
            let source = io::Error::other("an earlier write or sync has failed");
            return Err(PromiseError::Io { path: self.path.clone(), source });
        }
        let promise = Promise { promised, view: view.cloned(), commit: commit.max(latest.promise.commit) };
        let sequence = latest.sequence + 1;
        let written = self.write(&promise, sequence);
        latest.failed = matches!(written, Err(PromiseError::Io { .. }));
        written?;
        latest.promise = promise;
        latest.sequence = sequence;
        Ok(())
    }

    fn write(&self, promise: &Promise, sequence: u64) -> Result<(), PromiseError> {
        let copy = encode(promise, sequence)
            .map_err(|bytes| PromiseError::TooBig { path: self.path.clone(), bytes })?;
        let slot = if breaks(Rule::TwoSlots) { 0 } else { sequence % 2 * SLOT_BYTES as u64 };
        let io = |source| PromiseError::Io { path: self.path.clone(), source };
        // A partial write leaves the newest promise whole: that is in the other slot.
        let lacking = |source: io::Error| match Lack::of(&source) {
            Some(lack) if !breaks(Rule::LackIsNoFailure) => {
                PromiseError::Lack { path: self.path.clone(), lack }
            }
            Some(_) | None => io(source),
        };
        self.file.write_at(&copy, slot).map_err(lacking)?;
        if !breaks(Rule::TwoCopies) {
            self.file.write_at(&copy, slot + COPY_BYTES as u64).map_err(lacking)?;
        }
        if breaks(Rule::SyncPromise) {
            return Ok(());
        }
        // What a failed sync has left behind is not known, whatever it says was missing.
        self.file.sync().map_err(io)
    }
}

/// The file with nothing promised, written in full under another name: later writes change no metadata, and one that
/// has its name is whole.
fn create(disk: &impl Disk, directory: &Path, path: &Path) -> io::Result<()> {
    let new = directory.join("promise.new");
    let mut bytes = vec![0; 2 * SLOT_BYTES];
    let first = encode(&Promise::default(), 1).expect("there is no view in it");
    for at in [SLOT_BYTES, SLOT_BYTES + COPY_BYTES] {
        bytes[at..at + first.len()].copy_from_slice(&first);
    }
    let file = disk.open(&new, true)?;
    file.write_at(&bytes, 0)?;
    file.sync()?;
    disk.rename(&new, path)
}

/// checksum, length of the view, sequence, promise, commit, view; `Err` with its length where the view is too long.
fn encode(promise: &Promise, sequence: u64) -> Result<Vec<u8>, usize> {
    let view = promise.view.as_ref().map(format::encode).unwrap_or_default();
    if COPY_HEAD + view.len() > COPY_BYTES {
        return Err(view.len());
    }
    let mut copy = vec![0; 4];
    copy.extend_from_slice(&u32::try_from(view.len()).expect("bounded above").to_le_bytes());
    copy.extend_from_slice(&sequence.to_le_bytes());
    copy.extend_from_slice(&promise.promised.0.to_le_bytes());
    copy.extend_from_slice(&promise.commit.0.to_le_bytes());
    copy.extend_from_slice(view.as_bytes());
    let checksum = crc32c::crc32c(&copy[4..]);
    copy[..4].copy_from_slice(&checksum.to_le_bytes());
    Ok(copy)
}

/// `Ok(None)` where no promise was ever written, or where it was torn or damaged.
fn decode(copy: &[u8]) -> Result<Option<(Promise, u64)>, String> {
    let u32_at = |at: usize| u32::from_le_bytes(copy[at..at + 4].try_into().expect("four bytes"));
    let u64_at = |at: usize| u64::from_le_bytes(copy[at..at + 8].try_into().expect("eight bytes"));
    let end = COPY_HEAD + u32_at(4) as usize;
    if end > copy.len() || u64_at(8) == 0 || crc32c::crc32c(&copy[4..end]) != u32_at(0) {
        return Ok(None);
    }
    let view = match &copy[COPY_HEAD..end] {
        [] => None,
        bytes => Some(format::decode(bytes).map_err(|error| error.to_string())?),
    };
    Ok(Some((Promise { promised: Epoch(u64_at(16)), view, commit: Index(u64_at(24)) }, u64_at(8))))
}

fn read(file: &dyn DiskFile, path: &Path) -> Result<(Promise, u64), PromiseError> {
    let damaged = |why: String| PromiseError::Damaged { path: path.to_owned(), why };
    let mut bytes = vec![0; 2 * SLOT_BYTES];
    let count =
        file.read_at(&mut bytes, 0).map_err(|source| PromiseError::Io { path: path.to_owned(), source })?;
    if count < bytes.len() {
        return Err(damaged(format!("it has {count} bytes of {}", bytes.len())));
    }
    let mut newest: Option<(Promise, u64)> = None;
    for copy in bytes.chunks(COPY_BYTES) {
        if let Some(found) = decode(copy).map_err(damaged)?
            && newest.as_ref().is_none_or(|(_, sequence)| *sequence < found.1)
        {
            newest = Some(found);
        }
    }
    newest.ok_or_else(|| damaged("none of its copies can be read".to_owned()))
}

#[cfg(test)]
mod tests;
