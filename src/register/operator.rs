//! What only an operator may do to a register, and only while no node runs (R4): make a view of one copy the newest,
//! whatever stands there. Everything that stood there is kept in `aside-N` beside the new view.
//!
//! One link(2) decides, as in a swap: until it is made nothing has changed, and from then on the new view is the newest,
//! because its epoch is above all others. What follows only tidies up, so whoever is killed here can begin again.
//! The older views go aside because a proof by [`super::Register::has_newer`] rests on views without a gap: a node that
//! slept through all this must not find the view that it knows.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::lock::{LOCK, NODES};
use super::{FileRegister, Holder, LockError, NodeLock, Register, RegisterError};
use crate::disk::{Disk, RealDisk};
use crate::rules::{Rule, breaks};
use crate::view::{Checksum, Epoch, NodeId, View};

/// What a register holds.
#[derive(Debug)]
pub enum Found {
    /// There is none.
    Missing,
    /// There is one, without a view.
    Empty,
    /// The newest view.
    Holds(View),
    /// The newest view cannot be read.
    Damaged {
        /// In words.
        why: String,
        /// The newest of the others that can.
        before: Option<View>,
    },
    /// It cannot be read at all.
    Unreadable(String),
}

/// A register as found, and the highest epoch that is named in it anywhere.
#[derive(Debug)]
pub struct Look {
    /// What it holds.
    pub found: Found,
    /// No view of it, whole, damaged or unfinished, is of a later epoch.
    pub highest: Epoch,
}

/// Why the register was not changed.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// A node runs, or another operator is at work.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The register failed.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// The file system failed.
    #[error("{doing} {} failed: {source}", path.display())]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// The file concerned.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Somebody was faster.
    #[error("a view of epoch {0} has appeared meanwhile\nlook again with `replcluster recover`")]
    Overtaken(Epoch),
}

/// Looks at a register without changing anything.
#[must_use]
pub fn look(directory: &Path) -> Look {
    let unreadable = |why: String| Look { found: Found::Unreadable(why), highest: Epoch(0) };
    match fs::metadata(directory) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return unreadable(format!("{} is not a directory", directory.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Look { found: Found::Missing, highest: Epoch(0) };
        }
        Err(error) => return unreadable(format!("{}: {error}", directory.display())),
    }
    let opened =
        FileRegister::on(RealDisk, directory).and_then(|register| Ok((register.epochs()?, register)));
    let (epochs, register) = match opened {
        Ok(opened) => opened,
        Err(error) => return unreadable(error.to_string()),
    };
    let found = match register.read(None) {
        Ok(Some(view)) => Found::Holds(view),
        Ok(None) => Found::Empty,
        Err(RegisterError::Damaged { path, why }) => {
            let before = epochs.views.iter().rev().find_map(|epoch| register.view_of(*epoch));
            Found::Damaged { why: format!("{}: {why}", path.display()), before }
        }
        Err(error @ RegisterError::Backwards { .. }) => {
            let before = epochs.views.iter().rev().find_map(|epoch| register.view_of(*epoch));
            Found::Damaged { why: error.to_string(), before }
        }
        Err(error) => Found::Unreadable(error.to_string()),
    };
    Look { found, highest: epochs.highest }
}

/// The register in an operator's hand: no node can start while this lives.
#[derive(Debug)]
pub struct Hold {
    register: FileRegister,
    _locks: Vec<NodeLock>,
}

impl Hold {
    /// Takes the locks of these nodes, each with its data directory, and of all others that the register has a lock of.
    /// A register that is not there is made; what stands in its place is set aside.
    ///
    /// # Errors
    /// [`OperatorError::Lock`] names the process that runs.
    pub fn take(directory: &Path, nodes: &BTreeMap<NodeId, PathBuf>) -> Result<Hold, OperatorError> {
        if fs::metadata(directory).is_ok_and(|metadata| !metadata.is_dir()) {
            let name = |number: u64| directory.with_extension(format!("aside-{number}"));
            rename(directory, &free(name))?;
        }
        let register = FileRegister::open(directory)?;
        let mut wanted = nodes.clone();
        for other in locked_before(register.directory())? {
            wanted.entry(other).or_default();
        }
        let mut locks = Vec::new();
        for (node, data) in &wanted {
            let holder = Holder::this_process(node, data).map_err(|source| OperatorError::Io {
                doing: "looking at",
                path: PathBuf::from("/proc/self"),
                source,
            })?;
            locks.push(NodeLock::take(register.directory(), node, &holder)?);
        }
        Ok(Hold { register, _locks: locks })
    }

    /// Makes `view` the newest, durably, and sets aside what stood there; answers with where that is, if it was anything.
    ///
    /// # Errors
    /// [`OperatorError`]; where the view became the newest all the same, the next [`look`] says so.
    pub fn declare(&self, view: &View) -> Result<Option<PathBuf>, OperatorError> {
        self.register.replace_all(view)
    }
}

impl<D: Disk> FileRegister<D> {
    /// See [`Hold::declare`]. Where views name the ones before them, this one names the newest that can be read.
    pub(super) fn replace_all(&self, view: &View) -> Result<Option<PathBuf>, OperatorError> {
        let epochs = self.epochs()?;
        let replaced = epochs.views.iter().rev().find_map(|epoch| self.view_of(*epoch));
        let previous = replaced.filter(|view| view.previous != Checksum(0)).map(|view| view.checksum());
        let view = View { previous: previous.unwrap_or(view.previous), ..view.clone() };
        if epochs.highest >= view.epoch || !self.declare(&view)? {
            return Err(OperatorError::Overtaken(epochs.highest.max(view.epoch)));
        }
        let (disk, directory) = (self.disk(), self.directory());
        let older: Vec<String> = self.names_below(view.epoch)?;
        if older.is_empty() {
            return Ok(None);
        }
        let aside = (1..)
            .map(|number| directory.join(format!("aside-{number}")))
            .find(|path| disk.identity(path).is_err())
            .expect("some number is free");
        disk.make_directory(&aside).map_err(failed("creating", &aside))?;
        // On the disk before anything is moved into it: else a power cut could take what was moved along.
        self.sync_names(Rule::SyncAsideName)?;
        // The lowest first: what is left after a crash is still without a gap, as after pruning.
        for name in &older {
            let from = directory.join(name);
            disk.rename(&from, &aside.join(name)).map_err(failed("setting aside", &from))?;
        }
        if !breaks(Rule::SyncAside) {
            disk.sync_directory(&aside).map_err(failed("syncing", &aside))?;
        }
        self.sync_names(Rule::SyncAside)?;
        Ok(Some(aside))
    }
}

/// The nodes that have ever had a lock here.
fn locked_before(register: &Path) -> Result<Vec<NodeId>, OperatorError> {
    let directory = register.join(NODES);
    let mut found = Vec::new();
    for entry in fs::read_dir(&directory).map_err(failed("listing", &directory))? {
        let name = entry.map_err(failed("listing", &directory))?.file_name();
        let node = name
            .to_str()
            .and_then(|name| name.strip_suffix(LOCK)?.strip_suffix('.'))
            .and_then(|address| NodeId::parse(address).ok());
        found.extend(node);
    }
    Ok(found)
}

fn failed<'a>(doing: &'static str, path: &'a Path) -> impl Fn(io::Error) -> OperatorError + use<'a> {
    move |source| OperatorError::Io { doing, path: path.to_owned(), source }
}

fn rename(from: &Path, to: &Path) -> Result<(), OperatorError> {
    fs::rename(from, to).map_err(failed("setting aside", from))
}

fn free(name: impl Fn(u64) -> PathBuf) -> PathBuf {
    (1..).map(name).find(|path| fs::symlink_metadata(path).is_err()).expect("some number is free")
}

#[cfg(test)]
#[path = "operator_tests.rs"]
mod tests;
