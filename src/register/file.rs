//! The register of one host: a directory with one file per view, `view-<epoch>`, each made once and never changed.
//!
//! * **Swap.** The view is written and synced under another name, then link(2) gives it its own: the link exists
//!   or it does not, and of two swappers one gets EEXIST. There is no critical section, so a stopped process
//!   holds nothing (R26).
//! * **Read.** The highest epoch counts. Its file is verified, and the directory synced before anyone acts on it.
//! * **Prune.** The swapper forgets all but the newest `KEPT` views, lowest first. A swapper that slept through
//!   more than that could link an epoch that is long gone. It looks again after linking, and so does no harm: the
//!   highest still counts, and nobody removes a view by any other rule than this one.
//! * **Proof (R17).** "No view e+1" proves nothing by itself, since a pruned one is not there either. But e+1 goes
//!   after e; so where e+1 is missing and *then* e is still the very file that was read (same inode, which we hold
//!   open, so the number is not used again), e+1 never existed when we looked for it.
//!
//! Everything goes by path, not through a held directory: where somebody moves the directory away and puts a copy
//! in its place, all processes see the same one from then on.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use rustix::fs::Access;

use super::{Register, RegisterError, SwapError, format, held, place};
use crate::rules::{Rule, breaks};
use crate::view::{Epoch, View};

/// How many views stay readable for people; also how far a swapper may fall behind and still meet EEXIST.
const KEPT: u64 = 32;

/// Views are small; what is bigger than this is not one.
const LARGEST_VIEW_BYTES: u64 = 1 << 20;

/// How often a read starts again because views come faster than it reads.
const READ_ATTEMPTS: u32 = 64;

/// The file register; see the head of this module. Clone-free: share it in an `Arc`.
#[derive(Debug)]
pub struct FileRegister {
    /// Absolute, so that a change of the working directory means nothing.
    directory: PathBuf,
    /// The newest view this process has read: spares reading and syncing it again, and anchors the proof.
    seen: RwLock<Option<Seen>>,
}

#[derive(Debug)]
struct Seen {
    view: View,
    /// Held open so that its inode number cannot be given to another file.
    _file: File,
    identity: (u64, u64),
}

impl FileRegister {
    /// Opens the directory, which it makes (mode 0700) where there is none.
    ///
    /// # Errors
    /// [`RegisterError::Place`] for a network file system or a directory that cannot be written to.
    pub fn open(directory: &Path) -> Result<FileRegister, RegisterError> {
        place::private_directory(directory)?;
        let directory =
            fs::canonicalize(directory).map_err(|error| RegisterError::io("resolving", directory, error))?;
        place::private_directory(&directory.join(super::lock::NODES))?;
        Ok(FileRegister { directory, seen: RwLock::new(None) })
    }

    /// The one in a directory that exists; makes nothing.
    pub(super) fn existing(directory: &Path) -> FileRegister {
        FileRegister { directory: directory.to_owned(), seen: RwLock::new(None) }
    }

    /// The register's directory, absolute.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn view_path(&self, epoch: Epoch) -> PathBuf {
        self.directory.join(format!("view-{:020}", epoch.0))
    }

    fn entries(&self) -> Result<Entries, RegisterError> {
        let failed = |error| RegisterError::io("listing", &self.directory, error);
        let mut entries = Entries::default();
        for entry in fs::read_dir(&self.directory).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let Some(name) = name.to_str() else { continue };
            if let Some(epoch) = name.strip_prefix("view-").and_then(number) {
                entries.views.push(epoch);
            } else if let Some(epoch) =
                name.strip_prefix("tmp-").and_then(|rest| number(rest.split('-').next()?))
            {
                entries.unfinished.push((epoch, name.to_owned()));
            }
        }
        entries.views.sort_unstable();
        Ok(entries)
    }

    /// The epochs of all views, and the highest that anything is named after.
    pub(super) fn epochs(&self) -> Result<Epochs, RegisterError> {
        let entries = self.entries()?;
        let unfinished = entries.unfinished.iter().map(|(epoch, _)| *epoch).max().unwrap_or_default();
        Ok(Epochs { highest: entries.highest().max(unfinished), views: entries.views })
    }

    /// The names of views and unfinished ones below an epoch, lowest first.
    pub(super) fn names_below(&self, epoch: Epoch) -> Result<Vec<String>, RegisterError> {
        let entries = self.entries()?;
        let views = entries.views.iter().map(|view| (*view, format!("view-{:020}", view.0)));
        let mut names: Vec<(Epoch, String)> = views.chain(entries.unfinished).collect();
        names.retain(|(of, _)| *of < epoch);
        names.sort();
        Ok(names.into_iter().map(|(_, name)| name).collect())
    }

    /// The view of this epoch, where it can be read.
    pub(super) fn view_of(&self, epoch: Epoch) -> Option<View> {
        Some(self.load(epoch).ok()??.view)
    }

    /// Puts a view there, durably, whatever else stands there. `Ok(false)`: one of its epoch does.
    pub(super) fn declare(&self, view: &View) -> Result<bool, RegisterError> {
        let (unfinished, _file) = self.write_unfinished(view)?;
        let linked = self.link(&unfinished, view.epoch);
        let _ = fs::remove_file(&unfinished);
        let linked =
            linked.map_err(|error| RegisterError::io("linking", &self.view_path(view.epoch), error))?;
        self.sync_directory()?;
        Ok(linked)
    }

    fn sync_directory(&self) -> Result<(), RegisterError> {
        File::open(&self.directory)
            .and_then(|directory| directory.sync_all())
            .map_err(|error| RegisterError::io("syncing", &self.directory, error))
    }

    /// The newest view, from memory where its file is still the one that was read.
    fn newest(&self) -> Result<Option<View>, RegisterError> {
        let mut backwards = None;
        for _ in 0..READ_ATTEMPTS {
            let highest = self.entries()?.highest();
            let known = self.seen_epoch();
            if highest < known {
                // The views may have been listed before another thread of ours read a newer one: look twice.
                if backwards.replace(highest) == Some(highest) {
                    return Err(RegisterError::Backwards {
                        path: self.directory.clone(),
                        held: highest,
                        known,
                    });
                }
                continue;
            }
            if highest == Epoch(0) {
                return Ok(None);
            }
            if let Some(view) = self.seen_still(highest)? {
                return Ok(Some(view));
            }
            let Some(seen) = self.load(highest)? else { continue };
            self.sync_directory()?;
            // Only a file that was the newest one while we opened it is known not to be a late swapper's.
            if self.entries()?.highest() == highest {
                let view = seen.view.clone();
                self.remember(seen);
                return Ok(Some(view));
            }
        }
        Err(RegisterError::io(
            "following",
            &self.directory,
            io::Error::other("views change faster than they can be read"),
        ))
    }

    /// Reads and verifies the file of one view; `None` where it is gone.
    fn load(&self, epoch: Epoch) -> Result<Option<Seen>, RegisterError> {
        let path = self.view_path(epoch);
        let failed = |error| RegisterError::io("reading", &path, error);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mut bytes = Vec::new();
        (&file).take(LARGEST_VIEW_BYTES).read_to_end(&mut bytes).map_err(failed)?;
        let view = format::decode(&bytes).and_then(|view| {
            if view.epoch == epoch {
                return Ok(view);
            }
            Err(format::BadView::Line {
                line: 3,
                why: format!("it says epoch {}, its name says {epoch}", view.epoch),
            })
        });
        let view = view.map_err(|why| RegisterError::Damaged { path: path.clone(), why })?;
        let identity = identity(&file.metadata().map_err(failed)?);
        Ok(Some(Seen { view, _file: file, identity }))
    }

    /// Links the view under its own name. `Ok(false)`: another one has that name.
    fn link(&self, unfinished: &Path, epoch: Epoch) -> io::Result<bool> {
        if breaks(Rule::LinkOnce) {
            return fs::rename(unfinished, self.view_path(epoch)).map(|()| true);
        }
        match fs::hard_link(unfinished, self.view_path(epoch)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The second half of a swap: links, makes the link durable, and looks whether it is the newest.
    fn publish(&self, unfinished: &Path, file: File, next: &View) -> Result<(), SwapError> {
        let linked = self.link(unfinished, next.epoch);
        // After a failure too: under its own name or not at all.
        let _ = fs::remove_file(unfinished);
        match linked {
            Ok(true) => self.settle(file, next),
            Ok(false) => Err(self.lost(SwapError::Failed)),
            // Pruned under our hands: we slept through many views, and nothing was linked.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(self.lost(SwapError::Failed)),
            Err(error) => {
                Err(SwapError::Unknown(RegisterError::io("linking", &self.view_path(next.epoch), error)))
            }
        }
    }

    /// The third: our link is there.
    fn settle(&self, file: File, next: &View) -> Result<(), SwapError> {
        self.sync_directory().map_err(SwapError::Unknown)?;
        let entries = self.entries().map_err(SwapError::Unknown)?;
        self.prune(&entries);
        if entries.highest() != next.epoch {
            return Err(self.lost(SwapError::Unknown));
        }
        let metadata = file.metadata().map_err(|error| {
            SwapError::Unknown(RegisterError::io("looking at", &self.view_path(next.epoch), error))
        })?;
        self.remember(Seen { view: next.clone(), _file: file, identity: identity(&metadata) });
        Ok(())
    }

    /// The answer to a swapper whose view is not the newest; `otherwise` where that cannot be read.
    fn lost(&self, otherwise: impl Fn(RegisterError) -> SwapError) -> SwapError {
        match self.newest() {
            Ok(Some(view)) => SwapError::Conflict(view),
            Ok(None) => otherwise(RegisterError::Backwards {
                path: self.directory.clone(),
                held: Epoch(0),
                known: Epoch(1),
            }),
            Err(error) => otherwise(error),
        }
    }

    /// Forgets old views, lowest first: the proof in [`Register::has_newer`] rests on that order, so the first
    /// that cannot be removed ends it.
    fn prune(&self, entries: &Entries) {
        let line = Epoch(entries.highest().0.saturating_sub(KEPT));
        for (epoch, name) in &entries.unfinished {
            if *epoch <= line {
                let _ = fs::remove_file(self.directory.join(name));
            }
        }
        for epoch in entries.views.iter().take_while(|epoch| **epoch <= line) {
            match fs::remove_file(self.view_path(*epoch)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(path = %self.view_path(*epoch).display(), %error, "an old view stays");
                    return;
                }
            }
        }
    }

    fn remember(&self, seen: Seen) {
        let mut newest = self.seen.write().unwrap_or_else(PoisonError::into_inner);
        if newest.as_ref().is_none_or(|known| known.view.epoch <= seen.view.epoch) {
            *newest = Some(seen);
        }
    }

    fn seen_epoch(&self) -> Epoch {
        self.seen
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .map_or(Epoch(0), |seen| seen.view.epoch)
    }

    /// The view read before, where it is of this epoch and its file is the same one still.
    fn seen_still(&self, epoch: Epoch) -> Result<Option<View>, RegisterError> {
        let guard = self.seen.read().unwrap_or_else(PoisonError::into_inner);
        let Some(seen) = guard.as_ref().filter(|seen| seen.view.epoch == epoch) else { return Ok(None) };
        Ok(self.is_same_file(seen)?.then(|| seen.view.clone()))
    }

    fn is_same_file(&self, seen: &Seen) -> Result<bool, RegisterError> {
        let path = self.view_path(seen.view.epoch);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(identity(&metadata) == seen.identity),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(RegisterError::io("looking at", &path, error)),
        }
    }

    fn exists(&self, epoch: Epoch) -> Result<bool, RegisterError> {
        let path = self.view_path(epoch);
        match rustix::fs::access(&path, Access::EXISTS) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::NOENT) => Ok(false),
            Err(error) => Err(RegisterError::io("looking for", &path, error)),
        }
    }

    /// Writes the view under a name of ours alone, synced.
    fn write_unfinished(&self, next: &View) -> Result<(PathBuf, File), RegisterError> {
        let name = format!("tmp-{:020}-{}-{:016x}", next.epoch.0, std::process::id(), rand::random::<u64>());
        let path = self.directory.join(name);
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| {
                file.write_all(format::encode(next).as_bytes())?;
                file.sync_data()?;
                Ok(file)
            })
            .map_err(|error| RegisterError::io("writing", &path, error));
        match written {
            Ok(file) => Ok((path, file)),
            Err(error) => {
                let _ = fs::remove_file(&path);
                Err(error)
            }
        }
    }
}

impl Register for FileRegister {
    fn read(&self) -> Result<Option<View>, RegisterError> {
        // Noted before the views are looked at: a view comes first, and is noted after.
        let noted = held::newest_epoch(&self.directory).unwrap_or_default();
        let newest = self.newest()?;
        let held = newest.as_ref().map_or(Epoch(0), |view| view.epoch);
        if held < noted {
            return Err(RegisterError::Backwards { path: self.directory.clone(), held, known: noted });
        }
        Ok(newest)
    }

    fn swap(&self, expected: Epoch, next: &View) -> Result<(), SwapError> {
        assert_eq!(next.epoch, expected.next(), "epochs have no gap (R1)");
        let held = self.newest().map_err(SwapError::Failed)?;
        match held {
            Some(view) if view.epoch > expected => return Err(SwapError::Conflict(view)),
            Some(view) if view.cluster != next.cluster => {
                return Err(SwapError::Failed(RegisterError::OtherCluster {
                    path: self.directory.clone(),
                    held: view.cluster,
                    ours: next.cluster,
                }));
            }
            Some(view) if view.epoch == expected => {}
            None if expected == Epoch(0) => {}
            older => {
                return Err(SwapError::Failed(RegisterError::Backwards {
                    path: self.directory.clone(),
                    held: older.map_or(Epoch(0), |view| view.epoch),
                    known: expected,
                }));
            }
        }
        let (unfinished, file) = self.write_unfinished(next).map_err(SwapError::Failed)?;
        self.publish(&unfinished, file, next)
    }

    fn has_newer(&self, than: Epoch) -> Result<bool, RegisterError> {
        {
            let guard = self.seen.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(seen) = guard.as_ref() {
                if seen.view.epoch > than {
                    return Ok(true);
                }
                // The order of the two looks is the proof; see the head of this module.
                if seen.view.epoch == than {
                    if self.exists(than.next())? {
                        return Ok(true);
                    }
                    if self.is_same_file(seen)? {
                        return Ok(false);
                    }
                }
            }
        }
        let held = self.newest()?.map_or(Epoch(0), |view| view.epoch);
        if held < than {
            return Err(RegisterError::Backwards { path: self.directory.clone(), held, known: than });
        }
        Ok(held > than)
    }
}

/// What a register is named after.
#[derive(Debug)]
pub(super) struct Epochs {
    /// Of its views, ascending.
    pub views: Vec<Epoch>,
    /// Zero: nothing is there.
    pub highest: Epoch,
}

/// The views of the epochs between these two that still stand there, oldest first: what an onlooker has missed, who asks
/// now and then. One that cannot be read is left out. Looks only.
#[must_use]
pub fn views_between(directory: &Path, after: Epoch, before: Epoch) -> Vec<View> {
    let register = FileRegister::existing(directory);
    let first = (after.0 + 1).max(before.0.saturating_sub(KEPT));
    (first..before.0).filter_map(|epoch| register.view_of(Epoch(epoch))).collect()
}

/// What a directory holds, as far as it is ours.
#[derive(Default)]
struct Entries {
    /// Ascending.
    views: Vec<Epoch>,
    /// Views that were not linked yet, or whose swapper died.
    unfinished: Vec<(Epoch, String)>,
}

impl Entries {
    /// Zero: no view.
    fn highest(&self) -> Epoch {
        self.views.last().copied().unwrap_or_default()
    }
}

fn number(digits: &str) -> Option<Epoch> {
    let all_digits = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    all_digits.then(|| digits.parse().ok()).flatten().map(Epoch)
}

fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
