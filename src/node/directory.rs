//! A node's data directory: whose it is, that nobody else uses it, and what the node has promised.
//!
//! ```text
//! lock       held for the life of the process; says by whom
//! identity   format version, address, incarnation, cluster: text, replaced by rename
//! promise    the newest promise, view and commit index (`promise`)
//! log/       state.redb       what the log and the state store keep
//! aside-N/   what was set aside; never deleted by us
//! ```

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::disk::{Disk, RealDisk};
use super::promise::{Promise, PromiseError, Promises};
use crate::register::place::{PlaceError, private_directory};
use crate::view::{ClusterId, Epoch, Incarnation, Index, NodeId, View};

/// Version of the layout above; another one is refused.
const FORMAT: u32 = 1;
const FIRST_LINE: &str = "replcluster data ";
/// What the names of directories begin with that hold what was set aside.
pub(super) const ASIDE: &str = "aside-";

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
            PromiseError::Damaged { path, why } => DirectoryError::Damaged { path, why },
            PromiseError::TooBig { .. } => DirectoryError::TooBig(error),
        }
    }
}

impl DirectoryError {
    /// True where somebody else holds what this node wants.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        match self {
            DirectoryError::InUse { .. } | DirectoryError::OtherAddress { .. } => true,
            DirectoryError::Place(_)
            | DirectoryError::Format { .. }
            | DirectoryError::Damaged { .. }
            | DirectoryError::TooBig(_)
            | DirectoryError::Io { .. } => false,
        }
    }
}

/// An open, locked data directory. The lock goes with it.
#[derive(Debug)]
pub struct DataDirectory {
    path: PathBuf,
    address: NodeId,
    incarnation: Incarnation,
    _lock: File,
    /// The directory itself, whatever it is called now.
    opened: File,
    promises: Promises,
    cluster: Mutex<Option<ClusterId>>,
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
        let identity = match read_identity(path, address)? {
            Some(identity) => identity,
            None => {
                let identity = Identity { incarnation: Incarnation(super::random_number()), cluster: None };
                write_identity(path, address, &identity)?;
                identity
            }
        };
        if identity.cluster.is_some() {
            refuse_missing(path)?;
        }
        let promises = Promises::open(&RealDisk, path)?;
        let incarnation = identity.incarnation;
        Ok(DataDirectory {
            path: path.to_owned(),
            address: address.clone(),
            incarnation,
            _lock: lock,
            opened,
            promises,
            cluster: Mutex::new(identity.cluster),
        })
    }

    fn cluster_known(&self) -> MutexGuard<'_, Option<ClusterId>> {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.path.join("identity").try_exists()
    }

    /// Minted with the directory.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// The cluster that the data belongs to, once it belongs to one.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        *self.cluster_known()
    }

    /// The newest promise kept.
    #[must_use]
    pub fn promise(&self) -> Promise {
        self.promises.promise()
    }

    /// Keeps a promise, durably, and with the first view the cluster that the data belongs to.
    ///
    /// # Errors
    /// The caller must end the process (R21).
    pub fn save_promise(
        &self,
        promised: Epoch,
        view: Option<&View>,
        commit: Index,
    ) -> Result<(), DirectoryError> {
        let mut cluster = self.cluster_known();
        if let (None, Some(view)) = (*cluster, view) {
            let identity = Identity { incarnation: self.incarnation, cluster: Some(view.cluster) };
            write_identity(&self.path, &self.address, &identity)?;
            *cluster = Some(view.cluster);
        }
        Ok(self.promises.save(promised, view, commit)?)
    }

    /// Moves everything but the lock into `aside-N`, so that the next start finds a new node. Nothing is deleted.
    ///
    /// # Errors
    /// [`DirectoryError::Io`]; some of it may have been moved, and what has been is in the directory named.
    pub fn set_aside(&self) -> Result<PathBuf, DirectoryError> {
        let aside =
            (1..).map(|number| self.path.join(format!("{ASIDE}{number}"))).find(|path| !path.exists());
        let aside = aside.expect("some number is free");
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| DirectoryError::Io { path, source }
        };
        std::fs::create_dir(&aside).map_err(io(&aside))?;
        // The identity first, and for good: without it the rest is nobody's, with it and no log it would be a wiped node.
        let identity = self.path.join("identity");
        std::fs::rename(&identity, aside.join("identity")).map_err(io(&identity))?;
        sync_directory(&aside)?;
        sync_directory(&self.path)?;
        move_aside(&self.path, &aside)?;
        Ok(aside)
    }
}

/// What goes with an identity.
const DATA: [&str; 3] = ["promise", "log", "state.redb"];

/// Moves what is nobody's any more to the identity that it belonged to.
fn move_aside(path: &Path, aside: &Path) -> Result<(), DirectoryError> {
    for name in DATA {
        let from = path.join(name);
        if from.exists() {
            let io = |source| DirectoryError::Io { path: from.clone(), source };
            std::fs::rename(&from, aside.join(name)).map_err(io)?;
        }
    }
    sync_directory(aside)?;
    sync_directory(path)
}

/// The newest directory with data set aside, where the setting aside may have been cut short: nothing of what is still
/// here is in it yet.
fn unfinished_aside(path: &Path) -> Option<PathBuf> {
    let asides = (1..).map(|number| path.join(format!("{ASIDE}{number}")));
    let newest = asides.take_while(|aside| aside.exists()).last()?;
    let begun = newest.join("identity").exists();
    let both = DATA.iter().any(|name| path.join(name).exists() && newest.join(name).exists());
    (begun && !both).then_some(newest)
}

fn sync_directory(path: &Path) -> Result<(), DirectoryError> {
    let io = |source| DirectoryError::Io { path: path.to_owned(), source };
    File::open(path).and_then(|directory| directory.sync_all()).map_err(io)
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
    lock.set_len(0).map_err(io)?;
    write!(lock, "pid {}", std::process::id()).map_err(io)?;
    Ok(lock)
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

struct Identity {
    incarnation: Incarnation,
    cluster: Option<ClusterId>,
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
    let identity = parse_identity(path).and_then(|found| {
        let Some((address, identity)) = found else {
            refuse_orphans(path)?;
            return Ok(None);
        };
        let address = NodeId::parse(&address).map_err(|error| DirectoryError::Damaged {
            path: path.join("identity"),
            why: error.to_string(),
        })?;
        if identity.cluster.is_some() {
            refuse_missing(path)?;
        }
        Ok(Some((address, identity.incarnation, identity.cluster)))
    });
    let promise = Promises::look(disk, path).map_err(DirectoryError::from);
    Ok(Look { identity, promise, _lock: lock })
}

/// What was there before the node belonged to a cluster: without it the node would forget what it has said.
fn refuse_missing(path: &Path) -> Result<(), DirectoryError> {
    for name in ["promise", "log"] {
        let file = path.join(name);
        if !file.exists() {
            return Err(DirectoryError::Damaged { path: file, why: "it is missing".to_owned() });
        }
    }
    Ok(())
}

fn read_identity(path: &Path, address: &NodeId) -> Result<Option<Identity>, DirectoryError> {
    match parse_identity(path)? {
        Some((found, _)) if found != address.as_str() => {
            Err(DirectoryError::OtherAddress { path: path.to_owned(), found, wanted: address.clone() })
        }
        Some((_, identity)) => Ok(Some(identity)),
        None => {
            // Setting data aside that was cut short is finished.
            if let Some(aside) = unfinished_aside(path) {
                move_aside(path, &aside)?;
            }
            refuse_orphans(path)?;
            Ok(None)
        }
    }
}

/// The address in the identity, and the rest of it.
fn parse_identity(path: &Path) -> Result<Option<(String, Identity)>, DirectoryError> {
    let file = path.join("identity");
    let text = match std::fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(DirectoryError::Io { path: file, source }),
    };
    let damaged = |why: &str| DirectoryError::Damaged { path: file.clone(), why: why.to_owned() };
    let mut lines = text.lines();
    let version = lines
        .next()
        .and_then(|line| line.strip_prefix(FIRST_LINE))
        .ok_or_else(|| damaged("it is no identity"))?;
    if version != FORMAT.to_string() {
        return Err(DirectoryError::Format { path: file, found: version.to_owned() });
    }
    let mut field = |name: &str| {
        lines
            .next()
            .and_then(|line| line.strip_prefix(name))
            .map(str::trim)
            .ok_or_else(|| damaged(&format!("no line \"{name}\"")))
    };
    let found = field("address ")?.to_owned();
    let number =
        |text: &str| u64::from_str_radix(text, 16).map_err(|_| damaged(&format!("\"{text}\" is no number")));
    let incarnation = Incarnation(number(field("incarnation ")?)?);
    let cluster = match field("cluster ")? {
        "none" => None,
        text => Some(ClusterId(number(text)?)),
    };
    Ok(Some((found, Identity { incarnation, cluster })))
}

/// A directory without an identity is new, unless it holds data.
fn refuse_orphans(path: &Path) -> Result<(), DirectoryError> {
    for name in DATA {
        if path.join(name).exists() {
            let why = format!("it is missing beside {name}");
            return Err(DirectoryError::Damaged { path: path.join("identity"), why });
        }
    }
    Ok(())
}

fn write_identity(path: &Path, address: &NodeId, identity: &Identity) -> Result<(), DirectoryError> {
    let cluster = identity.cluster.map_or_else(|| "none".to_owned(), |cluster| cluster.to_string());
    let text = format!(
        "{FIRST_LINE}{FORMAT}\naddress {address}\nincarnation {:?}\ncluster {cluster}\n",
        identity.incarnation
    );
    let new = path.join("identity.new");
    let io = |source| DirectoryError::Io { path: new.clone(), source };
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new).map_err(io)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(io)?;
    std::fs::rename(&new, path.join("identity")).map_err(io)?;
    sync_directory(path)
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
