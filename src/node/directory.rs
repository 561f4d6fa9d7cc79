//! A node's data directory: whose it is, that nobody else uses it, and what the node has promised.
//!
//! ```text
//! lock       held for the life of the process; says by whom
//! identity   format version, address, incarnation, cluster: text, replaced by rename
//! promise    the newest promise, view and commit index (`promise`)
//! log/       state.redb       what the log and the state store keep
//! aside-N/   what was set aside; never deleted by us
//! ```

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::identity::{self, FORMAT, Identity, Keeper};
use super::lack::Lack;
use super::promise::{Promise, PromiseError, Promises};
use crate::disk::{Disk, RealDisk};
use crate::register::place::{PlaceError, private_directory};
use crate::view::{ClusterId, Epoch, Incarnation, Index, NodeId, View};

/// Why a directory cannot be used. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// It will not do.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// Another process works in it.
    #[error("the data directory {} is in use by {holder}\nstop that process, or give this node a directory of its own", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Who says to hold it.
        holder: String,
    },
    /// It belongs to another address.
    #[error("the data directory {} belongs to node {found}, not to {wanted}\ngive each node a directory of its own", path.display())]
    OtherAddress {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Who wants it.
        wanted: NodeId,
    },
    /// Another program wrote it.
    #[error("{} has format version {found}, this program knows {FORMAT}: use a program at least as new as the one that wrote it", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: String,
    },
    /// A file is not what it should be.
    #[error("{} is damaged: {why}\nnothing was changed; move the directory away to let the node join anew from its peers", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// In words.
        why: String,
    },
    /// A view has no room.
    #[error(transparent)]
    TooBig(PromiseError),
    /// Something is missing for it, and nothing was changed.
    #[error("no {lack} for {}", path.display())]
    Lack {
        /// The file.
        path: PathBuf,
        /// What.
        lack: Lack,
    },
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl From<PromiseError> for DirectoryError {
    fn from(error: PromiseError) -> DirectoryError {
        match error {
            PromiseError::Io { path, source } => DirectoryError::Io { path, source },
            PromiseError::Lack { path, lack } => DirectoryError::Lack { path, lack },
            PromiseError::Damaged { path, why } => DirectoryError::Damaged { path, why },
            PromiseError::TooBig { .. } => DirectoryError::TooBig(error),
        }
    }
}

impl DirectoryError {
    /// What is missing, where only that is wrong: it can be tried again.
    #[must_use]
    pub fn lack(&self) -> Option<Lack> {
        match self {
            DirectoryError::Lack { lack, .. } => Some(*lack),
            DirectoryError::Place(_)
            | DirectoryError::InUse { .. }
            | DirectoryError::OtherAddress { .. }
            | DirectoryError::Format { .. }
            | DirectoryError::Damaged { .. }
            | DirectoryError::TooBig(_)
            | DirectoryError::Io { .. } => None,
        }
    }

    /// True where somebody else holds what this node wants.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        match self {
            DirectoryError::InUse { .. } | DirectoryError::OtherAddress { .. } => true,
            DirectoryError::Place(_)
            | DirectoryError::Format { .. }
            | DirectoryError::Damaged { .. }
            | DirectoryError::TooBig(_)
            | DirectoryError::Lack { .. }
            | DirectoryError::Io { .. } => false,
        }
    }
}

/// An open, locked data directory. The lock goes with it.
pub struct DataDirectory {
    path: PathBuf,
    incarnation: Incarnation,
    _lock: File,
    /// The directory itself, whatever it is called now.
    opened: File,
    promises: Promises,
    known: Mutex<Known>,
}

/// Its identity, and where that is kept.
struct Known {
    identity: Identity,
    keeper: Keeper<RealDisk>,
}

impl fmt::Debug for DataDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataDirectory").field("path", &self.path).finish_non_exhaustive()
    }
}

impl DataDirectory {
    /// Makes the directory where there is none, locks it, and reads what it says.
    ///
    /// # Errors
    /// [`DirectoryError`]; nothing was changed.
    pub fn open(path: &Path, address: &NodeId) -> Result<DataDirectory, DirectoryError> {
        private_directory(path)?;
        let lock = lock(path)?;
        let opened =
            File::open(path).map_err(|source| DirectoryError::Io { path: path.to_owned(), source })?;
        let mut keeper = Keeper::open(RealDisk, path)?;
        let identity = keeper.settle(address, || Incarnation(super::random_number()))?;
        let promises = Promises::open(&RealDisk, path)?;
        let incarnation = identity.incarnation;
        let known = Mutex::new(Known { identity, keeper });
        Ok(DataDirectory { path: path.to_owned(), incarnation, _lock: lock, opened, promises, known })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// False once the directory was deleted, emptied, moved or replaced: what is written goes into files that no start
    /// will ever read again, so nothing acknowledged from now on is durable. The lock's file is not what tells: somebody
    /// who takes it for left behind and deletes it has harmed no data.
    ///
    /// # Errors
    /// What the system said, where it cannot be told.
    pub fn is_in_place(&self) -> io::Result<bool> {
        let (ours, gone) = (self.opened.metadata()?, io::ErrorKind::NotFound);
        match std::fs::metadata(&self.path) {
            Ok(there) if there.ino() != ours.ino() || there.dev() != ours.dev() => return Ok(false),
            Ok(_) => {}
            Err(error) if error.kind() == gone => return Ok(false),
            Err(error) => return Err(error),
        }
        self.path.join(identity::NAME).try_exists()
    }

    /// Names the disk that it lies on: the same number for all directories of this host on the same file system, and for
    /// none of another host. Zero where it cannot be told.
    #[must_use]
    pub fn disk(&self) -> u64 {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let Ok(there) = self.opened.metadata() else { return 0 };
        let device = there.dev().to_le_bytes();
        let high = crc32c::crc32c_append(crc32c::crc32c(boot.as_bytes()), &device);
        let low = crc32c::crc32c_append(crc32c::crc32c(&device), boot.as_bytes());
        u64::from(high) << 32 | u64::from(low)
    }

    /// Minted with the directory.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// The cluster that the data belongs to, once it belongs to one.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        self.known().identity.cluster
    }

    /// The newest promise kept.
    #[must_use]
    pub fn promise(&self) -> Promise {
        self.promises.promise()
    }

    /// Keeps a promise, durably, and with the first view the cluster that the data belongs to.
    ///
    /// # Errors
    /// [`DirectoryError::Lack`], nothing was changed; otherwise the caller must end the process (R21).
    pub fn save_promise(
        &self,
        promised: Epoch,
        view: Option<&View>,
        commit: Index,
    ) -> Result<(), DirectoryError> {
        let mut known = self.known();
        if let (None, Some(view)) = (known.identity.cluster, view) {
            let identity = Identity { cluster: Some(view.cluster), ..known.identity.clone() };
            known.keeper.write(&identity)?;
            known.identity = identity;
        }
        Ok(self.promises.save(promised, view, commit)?)
    }

    /// Moves everything but the lock into `aside-N`, so that the next start finds a new node. Nothing is deleted.
    ///
    /// # Errors
    /// [`DirectoryError::Io`]; some of it may have been moved, and what has been is in the directory named.
    pub fn set_aside(&self) -> Result<PathBuf, DirectoryError> {
        self.known().keeper.set_aside()
    }
}

fn lock(path: &Path) -> Result<File, DirectoryError> {
    let file = path.join("lock");
    let io = |source| DirectoryError::Io { path: file.clone(), source };
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&file)
        .map_err(io)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(in_use(path, &mut lock)),
        Err(TryLockError::Error(source)) => return Err(io(source)),
    }
    // Written over and not anew: that needs no room, except the very first time. Who holds it is for people only.
    let holder = format!("pid {}", std::process::id());
    match lock.write_all_at(holder.as_bytes(), 0).and_then(|()| lock.set_len(holder.len() as u64)) {
        Err(error) if Lack::of(&error).is_none() => Err(io(error)),
        Ok(()) | Err(_) => Ok(lock),
    }
}

fn in_use(path: &Path, lock: &mut File) -> DirectoryError {
    let mut holder = String::new();
    let _ = lock.read_to_string(&mut holder);
    let holder = match holder.trim() {
        "" => "another process".to_owned(),
        holder => holder.to_owned(),
    };
    DirectoryError::InUse { path: path.to_owned(), holder }
}

/// What a directory says of itself, read without changing anything.
pub(super) struct Look {
    /// Whose it is: address, incarnation, and the cluster once there is one. `None` for a new directory.
    pub(super) identity: Result<Option<(NodeId, Incarnation, Option<ClusterId>)>, DirectoryError>,
    /// The newest promise kept.
    pub(super) promise: Result<Promise, DirectoryError>,
    /// Nobody can begin to work in the directory while this is held. `None` where nobody ever has.
    pub(super) _lock: Option<File>,
}

/// Looks at the directory of a node that does not run.
///
/// # Errors
/// [`DirectoryError::InUse`] where it does.
pub(super) fn look(disk: &impl Disk, path: &Path) -> Result<Look, DirectoryError> {
    let lock = match File::open(path.join("lock")) {
        Ok(mut file) => {
            match file.try_lock_shared() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(in_use(path, &mut file)),
                Err(TryLockError::Error(source)) => {
                    return Err(DirectoryError::Io { path: path.join("lock"), source });
                }
            }
            Some(file)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(DirectoryError::Io { path: path.join("lock"), source }),
    };
    let identity = identity::parse(disk, path).and_then(|found| {
        let Some(identity) = found else {
            identity::refuse_orphans(disk, path)?;
            return Ok(None);
        };
        let address = NodeId::parse(&identity.address).map_err(|error| DirectoryError::Damaged {
            path: path.join(identity::NAME),
            why: error.to_string(),
        })?;
        if identity.cluster.is_some() {
            identity::refuse_missing(disk, path)?;
        }
        Ok(Some((address, identity.incarnation, identity.cluster)))
    });
    let promise = Promises::look(disk, path).map_err(DirectoryError::from);
    Ok(Look { identity, promise, _lock: lock })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn address() -> NodeId {
        NodeId::parse("127.0.0.1:2379").unwrap()
    }

    fn view(epoch: u64) -> View {
        let nodes = BTreeMap::from([(address(), Incarnation(5))]);
        View {
            cluster: ClusterId(9),
            epoch: Epoch(epoch),
            leader: address(),
            led_since: Epoch(1),
            in_sync: nodes.clone(),
            members: nodes,
            floor: Index(3),
            recovered: Epoch(0),
            previous: crate::view::Checksum(0),
        }
    }

    fn open(path: &Path) -> Result<DataDirectory, DirectoryError> {
        DataDirectory::open(path, &address())
    }

    #[test]
    fn a_directory_that_was_deleted_emptied_moved_or_replaced_is_noticed() {
        let parent = tempfile::tempdir().unwrap();
        let (path, elsewhere) = (parent.path().join("data"), parent.path().join("elsewhere"));
        let held = open(&path).unwrap();
        assert!(held.is_in_place().unwrap());
        std::fs::rename(&path, &elsewhere).unwrap();
        assert!(!held.is_in_place().unwrap());
        let other = open(&path).unwrap();
        assert!(other.is_in_place().unwrap() && !held.is_in_place().unwrap());
        std::fs::remove_file(path.join("lock")).unwrap();
        assert!(other.is_in_place().unwrap(), "no data is gone");
        std::fs::remove_file(path.join("identity")).unwrap();
        assert!(!other.is_in_place().unwrap());
        std::fs::remove_dir_all(&path).unwrap();
        let last = open(&path).unwrap();
        std::fs::remove_dir_all(&path).unwrap();
        assert!(!last.is_in_place().unwrap());
    }

    #[test]
    fn what_was_promised_is_there_after_a_restart() {
        let parent = tempfile::tempdir().unwrap();
        let first = open(parent.path()).unwrap();
        std::fs::create_dir(parent.path().join("log")).unwrap();
        for epoch in 1..=5 {
            first.save_promise(Epoch(epoch + 1), Some(&view(epoch)), Index(epoch)).unwrap();
        }
        let (incarnation, promise) = (first.incarnation(), first.promise());
        drop(first);
        let again = open(parent.path()).unwrap();
        assert_eq!(again.incarnation(), incarnation);
        assert_eq!(again.promise(), promise);
        assert_eq!(again.cluster(), Some(ClusterId(9)));
        assert_eq!(promise, Promise { promised: Epoch(6), view: Some(view(5)), commit: Index(5) });
    }

    #[test]
    fn a_directory_in_use_names_its_user() {
        let parent = tempfile::tempdir().unwrap();
        let _held = open(parent.path()).unwrap();
        let error = open(parent.path()).unwrap_err();
        assert!(
            error.is_conflict() && error.to_string().contains(&format!("pid {}", std::process::id())),
            "{error}"
        );
    }

    #[test]
    fn a_directory_of_another_node_or_format_is_refused_and_left_alone() {
        let parent = tempfile::tempdir().unwrap();
        drop(open(parent.path()).unwrap());
        let other = NodeId::parse("127.0.0.1:2380").unwrap();
        let error = DataDirectory::open(parent.path(), &other).unwrap_err();
        assert!(matches!(error, DirectoryError::OtherAddress { .. }), "{error}");
        let identity = parent.path().join("identity");
        let text = std::fs::read_to_string(&identity).unwrap();
        std::fs::write(&identity, text.replace("data 1", "data 2")).unwrap();
        let error = open(parent.path()).unwrap_err();
        assert!(matches!(&error, DirectoryError::Format { found, .. } if found == "2"), "{error}");
        std::fs::remove_file(&identity).unwrap();
        let error = open(parent.path()).unwrap_err();
        assert!(
            matches!(error, DirectoryError::Damaged { .. }),
            "data without an identity is not a new node: {error}"
        );
    }

    #[test]
    fn what_is_set_aside_is_kept_and_the_next_start_is_a_new_node() {
        let parent = tempfile::tempdir().unwrap();
        let first = open(parent.path()).unwrap();
        first.save_promise(Epoch(2), Some(&view(1)), Index(1)).unwrap();
        std::fs::write(parent.path().join("state.redb"), "data").unwrap();
        let aside = first.set_aside().unwrap();
        assert_eq!(std::fs::read_to_string(aside.join("state.redb")).unwrap(), "data");
        let old = first.incarnation();
        drop(first);
        let new = open(parent.path()).unwrap();
        assert_ne!(new.incarnation(), old);
        assert_eq!(new.promise(), Promise::default());
    }

    #[test]
    fn setting_aside_that_was_cut_short_is_finished_by_the_next_start() {
        let parent = tempfile::tempdir().unwrap();
        let first = open(parent.path()).unwrap();
        std::fs::create_dir(parent.path().join("log")).unwrap();
        first.save_promise(Epoch(2), Some(&view(1)), Index(1)).unwrap();
        let old = first.incarnation();
        drop(first);
        let aside = parent.path().join("aside-1");
        std::fs::create_dir(&aside).unwrap();
        std::fs::rename(parent.path().join("identity"), aside.join("identity")).unwrap();
        let new = open(parent.path()).unwrap();
        assert_ne!(new.incarnation(), old);
        assert_eq!(new.promise(), Promise::default());
        assert!(aside.join("promise").exists() && aside.join("log").exists());
    }

    #[test]
    fn a_member_without_its_log_or_promise_is_no_new_node() {
        for name in ["log", "promise"] {
            let parent = tempfile::tempdir().unwrap();
            let first = open(parent.path()).unwrap();
            std::fs::create_dir(parent.path().join("log")).unwrap();
            first.save_promise(Epoch(2), Some(&view(1)), Index(1)).unwrap();
            drop(first);
            drop(open(parent.path()).unwrap());
            std::fs::rename(parent.path().join(name), parent.path().join("elsewhere")).unwrap();
            let error = open(parent.path()).unwrap_err();
            assert!(matches!(error, DirectoryError::Damaged { .. }), "{error}");
        }
    }
}
