//! The register of one host: a directory with one file per view, `view-<epoch>`, each made once and never changed.
//!
//! * **Prepare.** The view is written and synced under another name (`room`): what can run out runs out here.
//! * **Swap.** A rename that replaces nothing gives it its own name: it has it or it has not, and of two swappers one is
//!   told that the name is taken. There is no critical section, so a stopped process holds nothing (R26).
//! * **Read.** The highest epoch counts. Its file is verified, and the directory synced before anyone acts on it.
//! * **Chain (R11).** Each view holds the checksum of the one before it. What a reader knows must be in the chain of what
//!   it finds: by the files as far as they go, then by the lineage (`lineage`).
//! * **Prune.** All but the newest `KEPT` views are forgotten, lowest first, once their lines in the lineage are on the
//!   disk. A swapper that slept through more than that could name a view of an epoch that is long gone. It looks again
//!   after, and so does no harm: the highest still counts, and nobody removes a view by any other rule than this one.
//! * **Proof (R17).** "No view e+1" proves nothing by itself, since a pruned one is not there either. But e+1 goes
//!   after e; so where e+1 is missing and *then* e is still the very file that was read (same inode, which we hold
//!   open, so the number is not used again), e+1 never existed when we looked for it. The file of a view that is
//!   forgotten may become that of a later one; but before it is, lines come into the lineage, whose length is looked at.
//!
//! The directory is held open and its path looked at again each time. Where it was moved away, or a copy put in its place,
//! or a file that was read replaced by another, nothing is answered any more: that is another register, whatever it holds.

mod chain;
mod tidy;

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::lineage::{self, Anchor, Lineage, Place, Replaced};
use super::room::{self, Room, Unfinished};
use super::secret::{self, Secret};
use super::{Register, RegisterError, SwapError, format, held, place};
use crate::disk::{Disk, DiskFile, FileId, RealDisk};
use crate::rules::{Rule, breaks};
use crate::view::{Epoch, View, ViewId};

/// How many views stay readable for people; also how far a swapper may fall behind and still find its name taken.
pub(super) const KEPT: u64 = 32;

/// Views are small; what is bigger than this is not one.
const LARGEST_VIEW_BYTES: u64 = 1 << 20;

/// How often a read starts again because views come faster than it reads.
const READ_ATTEMPTS: u32 = 64;

/// The file register; see the head of this module. Clone-free: share it in an `Arc`.
pub struct FileRegister<D: Disk = RealDisk> {
    place: Place<D>,
    /// The newest view this process has read: spares reading and syncing it again, and anchors the proof.
    seen: RwLock<Anchors>,
    lineage: Mutex<Lineage>,
    room: Mutex<Room>,
}

impl<D: Disk> fmt::Debug for FileRegister<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileRegister").field("path", &self.place.path).finish_non_exhaustive()
    }
}

/// What must be where it was, or this is another register.
#[derive(Default)]
struct Anchors {
    view: Option<Seen>,
    /// The lineage file as it was when this view was last seen to be the newest. A view goes only after lines have come.
    lineage: Option<Anchor>,
}

struct Seen {
    view: View,
    name: String,
    /// Held open so that its inode number cannot be given to another file.
    _file: Arc<dyn DiskFile>,
    identity: FileId,
}

fn view_name(epoch: Epoch) -> String {
    format!("view-{:020}", epoch.0)
}

impl FileRegister {
    /// Opens the directory, which it makes (mode 0700) where there is none.
    ///
    /// # Errors
    /// [`RegisterError::Place`] for a file system that is not known to be local, or a directory that cannot be written
    /// to.
    pub fn open(directory: &Path) -> Result<FileRegister, RegisterError> {
        let is_new = !directory.exists();
        place::private_directory(directory)?;
        let directory =
            fs::canonicalize(directory).map_err(|error| RegisterError::io("resolving", directory, error))?;
        place::private_directory(&directory.join(super::lock::NODES))?;
        if is_new {
            // No older program can be using it.
            make_secret(&directory)?;
        }
        FileRegister::on(RealDisk, &directory)
    }
}

impl<D: Disk> FileRegister<D> {
    /// The one in a directory that exists; makes nothing.
    pub(super) fn on(disk: D, directory: &Path) -> Result<FileRegister<D>, RegisterError> {
        let opened = disk
            .open_directory(directory)
            .map_err(|error| RegisterError::io("opening the directory", directory, error))?;
        Ok(FileRegister {
            place: Place { disk, path: directory.to_owned(), opened },
            seen: RwLock::default(),
            lineage: Mutex::default(),
            room: Mutex::default(),
        })
    }

    /// The register's directory, absolute.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.place.path
    }

    pub(super) fn disk(&self) -> &D {
        &self.place.disk
    }

    fn view_path(&self, epoch: Epoch) -> PathBuf {
        self.place.path.join(view_name(epoch))
    }

    fn io(&self, doing: &'static str) -> impl Fn(io::Error) -> RegisterError + use<D> {
        let path = self.place.path.clone();
        move |error| RegisterError::io(doing, &path, error)
    }

    fn lineage(&self) -> MutexGuard<'_, Lineage> {
        self.lineage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entries(&self) -> Result<Entries, RegisterError> {
        let mut entries = Entries::default();
        for name in self.place.opened.list().map_err(self.io("listing"))? {
            if let Some(epoch) = name.strip_prefix("view-").and_then(number) {
                entries.views.push(epoch);
            } else if let Some(epoch) = name
                .strip_prefix(room::UNFINISHED)
                .and_then(|rest| rest.split('-').next()?.parse().ok().map(Epoch))
            {
                entries.unfinished.push((epoch, name));
            } else if name.starts_with(room::MAKING) {
                entries.making.push(name);
            } else if name.starts_with(room::PREFIX) {
                entries.spares.push(name);
            } else if name.strip_prefix(lineage::PREFIX).and_then(number).is_some() {
                entries.lineages.push(name);
            }
        }
        entries.views.sort_unstable();
        entries.lineages.sort_unstable();
        Ok(entries)
    }

    /// The epochs of all views, and the highest that anything is named after.
    pub(super) fn epochs(&self) -> Result<Epochs, RegisterError> {
        let entries = self.entries()?;
        let unfinished = entries.unfinished.iter().map(|(epoch, _)| *epoch).max().unwrap_or_default();
        let recorded = {
            let mut lineage = self.lineage();
            // What cannot be read names nothing.
            let _ = lineage.follow(&self.place, &entries.lineages);
            lineage.latest(&self.place).ok().and_then(Result::ok).unwrap_or_default()
        };
        Ok(Epochs { highest: entries.highest().max(unfinished).max(recorded), views: entries.views })
    }

    /// The names of views and unfinished ones below an epoch, lowest first.
    pub(super) fn names_below(&self, epoch: Epoch) -> Result<Vec<String>, RegisterError> {
        let entries = self.entries()?;
        let views = entries.views.iter().map(|view| (*view, view_name(*view)));
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
        let entries = self.entries()?;
        self.prepare_among(&entries, view)?;
        let Some(unfinished) = self.room().take(view.id()) else { return Ok(false) };
        let linked = self.link(&unfinished, view.epoch);
        if !matches!(linked, Ok(true)) {
            let _ = self.place.disk.remove(&unfinished.path);
        }
        let linked =
            linked.map_err(|error| RegisterError::io("naming", &self.view_path(view.epoch), error))?;
        self.sync_names(Rule::SyncViewName)?;
        Ok(linked)
    }

    /// Has the names in the directory on the disk.
    pub(super) fn sync_names(&self, rule: Rule) -> Result<(), RegisterError> {
        if breaks(rule) { Ok(()) } else { self.place.opened.sync().map_err(self.io("syncing")) }
    }

    fn replaced(&self, what: &'static str) -> RegisterError {
        RegisterError::Replaced { path: self.place.path.clone(), what }
    }

    /// R11: the directory that was opened is still the register.
    fn check_opened(&self) -> Result<(), RegisterError> {
        match self.place.disk.identity(&self.place.path) {
            _ if breaks(Rule::CheckDirectory) => Ok(()),
            Ok(there) if there == self.place.opened.identity() => Ok(()),
            Ok(_) => Err(self.replaced("another directory stands in its place")),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Err(self.replaced("it was moved or deleted"))
            }
            Err(error) => Err(RegisterError::io("looking for", &self.place.path, error)),
        }
    }

    /// The latest epoch that is recorded, and what stands in the directory after that was read.
    fn recorded_and_found(&self) -> Result<(Epoch, Entries), RegisterError> {
        loop {
            // Before the views are looked at: a view comes first, and is recorded after.
            let recorded = {
                let mut lineage = self.lineage();
                let latest = lineage.latest(&self.place).map_err(self.io("reading the lineage in"))?;
                latest.map(|latest| (latest, lineage.current()))
            };
            let entries = self.entries()?;
            let mut lineage = self.lineage();
            if lineage.follow(&self.place, &entries.lineages).map_err(self.io("reading the lineage in"))? {
                continue;
            }
            return match recorded {
                _ if breaks(Rule::CheckLineage) => Ok((Epoch(0), entries)),
                Ok((latest, anchor)) => Ok((latest, Entries { anchor, ..entries })),
                Err(Replaced) => Err(self.replaced("its lineage was cut or is another file")),
            };
        }
    }

    /// The newest view, from memory where its file is still the one that was read.
    fn newest(&self) -> Result<Option<View>, RegisterError> {
        let mut backwards = None;
        for _ in 0..READ_ATTEMPTS {
            self.check_opened()?;
            let (recorded, entries) = self.recorded_and_found()?;
            let highest = entries.highest();
            let known = self.seen_epoch().max(recorded);
            if highest < known {
                // The views may have been listed before another thread of ours read a newer one: look twice.
                if backwards.replace(highest) == Some(highest) {
                    return Err(self.backwards(highest, known));
                }
                continue;
            }
            if highest == Epoch(0) {
                return Ok(None);
            }
            if let Some(view) = self.seen_still(highest)? {
                self.anchor(highest, entries.anchor);
                return Ok(Some(view));
            }
            let Some(seen) = self.load(highest)? else { continue };
            self.sync_names(Rule::SyncViewRead)?;
            // Only a file that was the newest one while we opened it is known not to be a late swapper's.
            if self.entries()?.highest() == highest {
                let view = seen.view.clone();
                self.remember(seen);
                self.anchor(highest, entries.anchor);
                return Ok(Some(view));
            }
        }
        Err(self.io("following")(io::Error::other("views change faster than they can be read")))
    }

    fn backwards(&self, held: Epoch, known: Epoch) -> RegisterError {
        RegisterError::Backwards { path: self.place.path.clone(), held, known }
    }

    /// Reads and verifies the file of one view; `None` where it is gone.
    fn load(&self, epoch: Epoch) -> Result<Option<Seen>, RegisterError> {
        let path = self.view_path(epoch);
        let failed = |error| RegisterError::io("reading", &path, error);
        let file = match self.place.disk.open_to_read(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let bytes = lineage::read_from(&*file, 0, LARGEST_VIEW_BYTES).map_err(failed)?;
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
        let identity = file.identity().map_err(failed)?;
        Ok(Some(Seen { view, name: view_name(epoch), _file: file, identity }))
    }

    /// Gives the view its own name. `Ok(false)`: another one has that name.
    fn link(&self, unfinished: &Unfinished, epoch: Epoch) -> io::Result<bool> {
        let (disk, to) = (&self.place.disk, self.view_path(epoch));
        if breaks(Rule::LinkOnce) {
            return disk.rename(&unfinished.path, &to).map(|()| true);
        }
        let give = || match disk.rename_new(&unfinished.path, &to) {
            Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => {
                disk.link(&unfinished.path, &to)?;
                // Both names lead to it: the other one is tidied away if not now.
                let _ = disk.remove(&unfinished.path);
                Ok(())
            }
            given => given,
        };
        let given = match give() {
            Err(error) if room::is_shortage(&error) => {
                let spares = self.entries().map(|entries| entries.spares).unwrap_or_default();
                if self.room().give_up_spare(&self.place, &spares) { give() } else { Err(error) }
            }
            given => given,
        };
        match given {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The second half of a swap: gives the name, makes it durable, and looks whether it is the newest.
    fn publish(
        &self,
        unfinished: Unfinished,
        replaces: Option<ViewId>,
        next: &View,
    ) -> Result<(), SwapError> {
        match self.link(&unfinished, next.epoch) {
            Ok(true) => self.settle(unfinished.file, replaces, next),
            Ok(false) => {
                self.room().give_back(next.id(), unfinished);
                Err(self.lost(replaces, SwapError::Failed))
            }
            // Pruned under our hands: we slept through many views, and nothing was named.
            Err(error) if error.kind() == ErrorKind::NotFound => Err(self.lost(replaces, SwapError::Failed)),
            Err(error) => {
                let nothing_done = room::is_shortage(&error)
                    || matches!(error.kind(), ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied);
                if nothing_done {
                    self.room().give_back(next.id(), unfinished);
                }
                let error = RegisterError::io("naming", &self.view_path(next.epoch), error);
                Err(if nothing_done { SwapError::Failed(error) } else { SwapError::Unknown(error) })
            }
        }
    }

    /// The third: our view is there.
    fn settle(
        &self,
        file: Arc<dyn DiskFile>,
        replaces: Option<ViewId>,
        next: &View,
    ) -> Result<(), SwapError> {
        self.sync_names(Rule::SyncViewName).map_err(SwapError::Unknown)?;
        self.check_opened().map_err(SwapError::Unknown)?;
        let entries = self.entries().map_err(SwapError::Unknown)?;
        if entries.highest() != next.epoch {
            // Where ours is an epoch that was there long ago, it goes again.
            if self.record(&entries).is_ok() {
                self.prune(&entries, KEPT);
            }
            return Err(self.lost(replaces, SwapError::Unknown));
        }
        let identity = file.identity().map_err(|error| {
            SwapError::Unknown(RegisterError::io("looking at", &self.view_path(next.epoch), error))
        })?;
        let name = view_name(next.epoch);
        self.remember(Seen { view: next.clone(), name, _file: file, identity });
        Ok(())
    }

    /// The answer to a swapper whose view is not the newest; `otherwise` where that cannot be read, or is of another chain.
    fn lost(&self, replaces: Option<ViewId>, otherwise: impl Fn(RegisterError) -> SwapError) -> SwapError {
        match self.newest() {
            Ok(Some(view)) => match replaces.map_or(Ok(()), |known| self.check_chain(known, &view)) {
                Ok(()) => SwapError::Conflict(view),
                Err(error) => otherwise(error),
            },
            Ok(None) => otherwise(self.backwards(Epoch(0), Epoch(1))),
            Err(error) => otherwise(error),
        }
    }

    fn anchors_mut(&self) -> std::sync::RwLockWriteGuard<'_, Anchors> {
        self.seen.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn anchors(&self) -> std::sync::RwLockReadGuard<'_, Anchors> {
        self.seen.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, seen: Seen) {
        let mut newest = self.anchors_mut();
        if newest.view.as_ref().is_none_or(|known| known.view.epoch <= seen.view.epoch) {
            *newest = Anchors { view: Some(seen), lineage: None };
        }
    }

    /// The view of this epoch was the newest after the lineage was read as far as this.
    fn anchor(&self, epoch: Epoch, lineage: Option<Anchor>) {
        let mut anchors = self.anchors_mut();
        if anchors.view.as_ref().is_some_and(|seen| seen.view.epoch == epoch) {
            anchors.lineage = lineage;
        }
    }

    fn seen_epoch(&self) -> Epoch {
        self.anchors().view.as_ref().map_or(Epoch(0), |seen| seen.view.epoch)
    }

    /// The view read before, where it is of this epoch and its file is the same one still.
    fn seen_still(&self, epoch: Epoch) -> Result<Option<View>, RegisterError> {
        let anchors = self.anchors();
        let Some(seen) = anchors.view.as_ref().filter(|seen| seen.view.epoch == epoch) else {
            return Ok(None);
        };
        match self.look(&seen.name)? {
            Some(there) if there == seen.identity => Ok(Some(seen.view.clone())),
            Some(_) if !breaks(Rule::CheckDirectory) => {
                Err(self.replaced("the file of its newest view is another one"))
            }
            Some(_) | None => Ok(None),
        }
    }

    fn look(&self, name: &str) -> Result<Option<FileId>, RegisterError> {
        let found = self.place.opened.look(name);
        found.map(|found| found.map(|(id, _)| id)).map_err(self.io("looking into"))
    }

    #[cfg(test)]
    fn exists(&self, epoch: Epoch) -> Result<bool, RegisterError> {
        Ok(self.look(&view_name(epoch))?.is_some())
    }

    /// The order of the looks is the proof; see the head of this module.
    fn proves_newest(&self, anchors: &Anchors, seen: &Seen) -> Result<bool, RegisterError> {
        if self.look(&seen.name)? != Some(seen.identity) {
            return Ok(false);
        }
        let Some(lineage) = &anchors.lineage else { return Ok(false) };
        let there = self.place.opened.look(&lineage.name).map_err(self.io("looking into"))?;
        if there != Some(lineage.is) {
            return Ok(false);
        }
        self.check_opened().map(|()| true)
    }

    fn prepare_among(&self, entries: &Entries, next: &View) -> Result<(), RegisterError> {
        let text = format::encode(next);
        if text.len() > format::TEXT_BYTES_MAX && !breaks(Rule::BoundViews) {
            return Err(RegisterError::TooBig { bytes: text.len() });
        }
        let prepared = self.room().prepare(&self.place, &entries.spares, (next.id(), &text));
        prepared.map_err(|error| RegisterError::io("writing a view in", &self.place.path, error))
    }
}

impl<D: Disk> Register for FileRegister<D> {
    fn read(&self, known: Option<ViewId>) -> Result<Option<View>, RegisterError> {
        // Noted before the views are looked at: a view comes first, and is noted after.
        let noted = held::newest_epoch(&self.place.disk, &self.place.path).unwrap_or_default();
        let newest = self.newest()?;
        let held = newest.as_ref().map_or(Epoch(0), |view| view.epoch);
        if held < noted {
            return Err(self.backwards(held, noted));
        }
        match (known, &newest) {
            (Some(known), Some(newest)) => self.check_chain(known, newest)?,
            (Some(known), None) => return Err(self.backwards(Epoch(0), known.epoch)),
            (None, _) => {}
        }
        Ok(newest)
    }

    fn prepare(&self, next: &View) -> Result<(), RegisterError> {
        self.check_opened()?;
        self.prepare_among(&self.entries()?, next)
    }

    fn swap(&self, replaces: Option<ViewId>, next: &View) -> Result<(), SwapError> {
        let expected = replaces.map_or(Epoch(0), |view| view.epoch);
        assert_eq!(next.epoch, expected.next(), "epochs have no gap (R1)");
        match (replaces, self.newest().map_err(SwapError::Failed)?) {
            (Some(_), Some(view)) if view.cluster != next.cluster => {
                return Err(SwapError::Failed(RegisterError::OtherCluster {
                    path: self.place.path.clone(),
                    held: view.cluster,
                    ours: next.cluster,
                }));
            }
            (Some(known), Some(view)) if view.id() != known => {
                self.check_chain(known, &view).map_err(SwapError::Failed)?;
                // Where the chain is not looked at, the epoch alone must do.
                if view.epoch != expected {
                    return Err(SwapError::Conflict(view));
                }
            }
            (None, Some(view)) => return Err(SwapError::Conflict(view)),
            (Some(known), None) => {
                return Err(SwapError::Failed(self.backwards(Epoch(0), known.epoch)));
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
        // Bound to a statement of its own: the lock must be free again.
        let prepared = self.room().take(next.id());
        let unfinished = match prepared {
            Some(unfinished) => unfinished,
            None => {
                self.prepare(next).map_err(SwapError::Failed)?;
                let prepared = self.room().take(next.id());
                prepared.expect("it was prepared just now, and one thread swaps")
            }
        };
        self.publish(unfinished, replaces, next)
    }

    fn has_newer(&self, than: Epoch) -> Result<bool, RegisterError> {
        {
            let anchors = self.anchors();
            if let Some(seen) = &anchors.view {
                if seen.view.epoch > than {
                    return Ok(true);
                }
                if seen.view.epoch == than {
                    if self.look(&view_name(than.next()))?.is_some() {
                        return Ok(true);
                    }
                    if self.proves_newest(&anchors, seen)? {
                        return Ok(false);
                    }
                }
            }
        }
        let held = self.newest()?.map_or(Epoch(0), |view| view.epoch);
        if held < than { Err(self.backwards(held, than)) } else { Ok(held > than) }
    }

    fn tidy(&self) -> Result<(), RegisterError> {
        self.tidy_up()
    }

    fn secret(&self) -> Result<Option<Secret>, RegisterError> {
        let place = secret::Place::of(&self.place.path);
        place.read().map_err(|error| RegisterError::io("reading the secret in", &self.place.path, error))
    }

    fn ensure_secret(&self) -> Result<(), RegisterError> {
        make_secret(&self.place.path)
    }
}

fn make_secret(directory: &Path) -> Result<(), RegisterError> {
    let made = secret::Place::of(directory).ensure();
    made.map(|_| ()).map_err(|error| RegisterError::io("making the secret in", directory, error))
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
    let Ok(register) = FileRegister::on(RealDisk, directory) else { return Vec::new() };
    let first = (after.0 + 1).max(before.0.saturating_sub(KEPT));
    (first..before.0).filter_map(|epoch| register.view_of(Epoch(epoch))).collect()
}

/// What a directory holds, as far as it is ours.
#[derive(Default)]
struct Entries {
    /// Ascending.
    views: Vec<Epoch>,
    /// Views that have no name of their own yet, or whose swapper died.
    unfinished: Vec<(Epoch, String)>,
    spares: Vec<String>,
    /// Spares that are being made, or whose maker died.
    making: Vec<String>,
    /// Ascending.
    lineages: Vec<String>,
    /// The lineage as it was before this was found.
    anchor: Option<Anchor>,
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

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
