//! Whose a data directory is: the file `identity`, text that is replaced by rename; and the setting aside of all that goes
//! with it. On any disk, so that power cuts can be tried at every step.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::directory::DirectoryError;
use super::lack::Lack;
use crate::disk::{Disk, DiskDirectory, DiskFile};
use crate::rules::{Rule, breaks};
use crate::view::{ClusterId, Incarnation, NodeId};

/// Version of the layout of a data directory; another one is refused.
pub(super) const FORMAT: u32 = 1;
const FIRST_LINE: &str = "replcluster data ";
/// The file.
pub(super) const NAME: &str = "identity";
const NEW: &str = "identity.new";
/// The file has this many bytes, or a multiple of it: one sector, and empty lines at its end.
const BYTES: usize = 512;
/// What the names of directories begin with that hold what was set aside.
pub(super) const ASIDE: &str = "aside-";
/// What goes with an identity.
const DATA: [&str; 3] = ["promise", "log", "state.redb"];

/// What a directory says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    /// Whose it is.
    pub(super) address: String,
    /// Minted with the directory.
    pub(super) incarnation: Incarnation,
    /// The cluster that the data belongs to, once it belongs to one.
    pub(super) cluster: Option<ClusterId>,
}

/// Where the identity of an open directory is kept.
pub(super) struct Keeper<D: Disk> {
    disk: D,
    path: PathBuf,
    names: Arc<dyn DiskDirectory>,
    /// The file of the next identity, with its room on the disk: a full one does not hinder that a node joins.
    ready: Option<Arc<dyn DiskFile>>,
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> DirectoryError + use<> {
    let path = path.to_owned();
    move |source| DirectoryError::Io { path: path.clone(), source }
}

/// Where nothing was changed yet: what only lacks something can be tried again.
fn lack_error(path: &Path) -> impl Fn(io::Error) -> DirectoryError + use<> {
    let path = path.to_owned();
    move |source| match Lack::of(&source) {
        Some(lack) => DirectoryError::Lack { path: path.clone(), lack },
        None => DirectoryError::Io { path: path.clone(), source },
    }
}

fn encode(identity: &Identity) -> Vec<u8> {
    let cluster = identity.cluster.map_or_else(|| "none".to_owned(), |cluster| cluster.to_string());
    let Identity { address, incarnation, .. } = identity;
    let mut text =
        format!("{FIRST_LINE}{FORMAT}\naddress {address}\nincarnation {incarnation:?}\ncluster {cluster}\n")
            .into_bytes();
    text.resize(text.len().next_multiple_of(BYTES), b'\n');
    text
}

impl<D: Disk> Keeper<D> {
    /// Opens the directory to be held.
    pub(super) fn open(disk: D, path: &Path) -> Result<Keeper<D>, DirectoryError> {
        let names = disk.open_directory(path).map_err(io_error(path))?;
        Ok(Keeper { disk, path: path.to_owned(), names, ready: None })
    }

    /// The identity that stands there, or a new one, durably. `new` mints an incarnation.
    pub(super) fn settle(
        &mut self,
        address: &NodeId,
        new: impl FnOnce() -> Incarnation,
    ) -> Result<Identity, DirectoryError> {
        let identity = match self.read(address)? {
            Some(identity) => identity,
            None => {
                let address = address.as_str().to_owned();
                let identity = Identity { address, incarnation: new(), cluster: None };
                self.write(&identity)?;
                identity
            }
        };
        if identity.cluster.is_some() {
            refuse_missing(&self.disk, &self.path)?;
        } else {
            self.make_ready();
        }
        Ok(identity)
    }

    /// That there is no room for it matters when it is needed.
    fn make_ready(&mut self) {
        let made = self.disk.open(&self.path.join(NEW), true);
        self.ready = made.ok().filter(|file| file.allocate(BYTES as u64, true).is_ok());
    }

    fn read(&self, address: &NodeId) -> Result<Option<Identity>, DirectoryError> {
        match parse(&self.disk, &self.path)? {
            Some(found) if found.address != address.as_str() => Err(DirectoryError::OtherAddress {
                path: self.path.clone(),
                found: found.address,
                wanted: address.clone(),
            }),
            Some(identity) => Ok(Some(identity)),
            None => {
                // Setting data aside that was cut short is finished.
                if let Some(aside) = self.unfinished_aside()? {
                    self.move_aside(&aside)?;
                }
                refuse_orphans(&self.disk, &self.path)?;
                Ok(None)
            }
        }
    }

    /// Replaces the identity, durably.
    ///
    /// # Errors
    /// [`DirectoryError::Lack`], nothing was changed; otherwise the caller must end the process (R21).
    pub(super) fn write(&mut self, identity: &Identity) -> Result<(), DirectoryError> {
        let new = self.path.join(NEW);
        let file = match self.ready.take() {
            Some(file) => file,
            None => self.disk.open(&new, true).map_err(lack_error(&new))?,
        };
        file.write_at(&encode(identity), 0).map_err(lack_error(&new))?;
        if !breaks(Rule::SyncIdentity) {
            file.sync().map_err(io_error(&new))?;
        }
        self.disk.rename(&new, &self.path.join(NAME)).map_err(lack_error(&new))?;
        if breaks(Rule::SyncIdentityName) { Ok(()) } else { self.sync() }
    }

    fn sync(&self) -> Result<(), DirectoryError> {
        self.names.sync().map_err(io_error(&self.path))
    }

    /// Moves all that goes with the identity into `aside-N`, so that the next start finds a new node. Nothing is deleted.
    ///
    /// # Errors
    /// [`DirectoryError::Io`]; some of it may have been moved, and what has been is in the directory named.
    pub(super) fn set_aside(&self) -> Result<PathBuf, DirectoryError> {
        let there = names(&self.disk, &self.path)?;
        let name = (1..).map(|number| format!("{ASIDE}{number}")).find(|name| !there.contains(name));
        let aside = self.path.join(name.expect("some number is free"));
        self.disk.make_directory(&aside).map_err(io_error(&aside))?;
        if !breaks(Rule::SyncAsideMade) {
            self.sync()?;
        }
        // The identity first, and for good: without it the rest is nobody's, with it and no log it would be a wiped node.
        let identity = self.path.join(NAME);
        self.disk.rename(&identity, &aside.join(NAME)).map_err(io_error(&identity))?;
        self.sync_moved(&aside)?;
        self.move_aside(&aside)?;
        Ok(aside)
    }

    /// What was moved is in its new place, and no longer in its old one, for good.
    fn sync_moved(&self, aside: &Path) -> Result<(), DirectoryError> {
        if !breaks(Rule::SyncMoved) {
            self.disk.sync_directory(aside).map_err(io_error(aside))?;
        }
        if breaks(Rule::SyncLeft) { Ok(()) } else { self.sync() }
    }

    /// Moves what is nobody's any more to the identity that it belonged to.
    fn move_aside(&self, aside: &Path) -> Result<(), DirectoryError> {
        let there = names(&self.disk, &self.path)?;
        for name in DATA.iter().filter(|name| there.iter().any(|there| there == *name)) {
            let from = self.path.join(name);
            self.disk.rename(&from, &aside.join(name)).map_err(io_error(&from))?;
        }
        self.sync_moved(aside)
    }

    /// The newest directory with data set aside, where the setting aside may have been cut short: nothing of what is
    /// still here is in it yet.
    fn unfinished_aside(&self) -> Result<Option<PathBuf>, DirectoryError> {
        let here = names(&self.disk, &self.path)?;
        let asides = (1..).map(|number| format!("{ASIDE}{number}"));
        let Some(newest) = asides.take_while(|name| here.contains(name)).last() else { return Ok(None) };
        let aside = self.path.join(newest);
        let there = names(&self.disk, &aside)?;
        let begun = there.iter().any(|name| name == NAME);
        let has = |names: &[String], wanted: &str| names.iter().any(|name| name == wanted);
        let both = DATA.iter().any(|name| has(&here, name) && has(&there, name));
        Ok((begun && !both).then_some(aside))
    }
}

fn names(disk: &impl Disk, path: &Path) -> Result<Vec<String>, DirectoryError> {
    disk.list(path).map_err(io_error(path))
}

/// What was there before the node belonged to a cluster: without it the node would forget what it has said.
pub(super) fn refuse_missing(disk: &impl Disk, path: &Path) -> Result<(), DirectoryError> {
    let there = names(disk, path)?;
    for name in ["promise", "log"] {
        if !there.iter().any(|there| there == name) {
            let why = "it is missing".to_owned();
            return Err(DirectoryError::Damaged { path: path.join(name), why });
        }
    }
    Ok(())
}

/// A directory without an identity is new, unless it holds data.
pub(super) fn refuse_orphans(disk: &impl Disk, path: &Path) -> Result<(), DirectoryError> {
    let there = names(disk, path)?;
    for name in DATA {
        if there.iter().any(|there| there == name) {
            let why = format!("it is missing beside {name}");
            return Err(DirectoryError::Damaged { path: path.join(NAME), why });
        }
    }
    Ok(())
}

/// The identity in a directory; `None` where there is none.
pub(super) fn parse(disk: &impl Disk, path: &Path) -> Result<Option<Identity>, DirectoryError> {
    let path = path.join(NAME);
    let file = match disk.open(&path, false) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(&path)(error)),
    };
    let mut bytes = vec![0; 8 * BYTES];
    let count = file.read_at(&mut bytes, 0).map_err(io_error(&path))?;
    let text = String::from_utf8_lossy(&bytes[..count]).into_owned();
    let damaged = |why: &str| DirectoryError::Damaged { path: path.clone(), why: why.to_owned() };
    let mut lines = text.lines();
    let version = lines
        .next()
        .and_then(|line| line.strip_prefix(FIRST_LINE))
        .ok_or_else(|| damaged("it is no identity"))?;
    if version != FORMAT.to_string() {
        return Err(DirectoryError::Format { path, found: version.to_owned() });
    }
    let mut field = |name: &str| {
        lines
            .next()
            .and_then(|line| line.strip_prefix(name))
            .map(str::trim)
            .ok_or_else(|| damaged(&format!("no line \"{name}\"")))
    };
    let address = field("address ")?.to_owned();
    let number =
        |text: &str| u64::from_str_radix(text, 16).map_err(|_| damaged(&format!("\"{text}\" is no number")));
    let incarnation = Incarnation(number(field("incarnation ")?)?);
    let cluster = match field("cluster ")? {
        "none" => None,
        text => Some(ClusterId(number(text)?)),
    };
    Ok(Some(Identity { address, incarnation, cluster }))
}
