//! Room for views, had before it is needed (R34).
//!
//! A view needs a file, blocks in it, a name and a descriptor. Whatever of these can run out runs out in
//! [`Room::prepare`], before anything is promised: the view is written and synced there, under a name of its own, and the
//! swap only gives that file the view's name. The name costs nothing where a rename is known; where it is not, or where
//! the directory has no room for a name, a spare is given up for it.
//!
//! Spares are files `spare-*` of [`SPARE_BYTES`] that all nodes share. They are used where the disk gives no new file, and
//! made again by [`Room::replenish`]. One is held open, in case no descriptor can be had.
//!
//! All names here and those of views are of 25 to 28 bytes: so in a directory that cannot grow the room of any of them is
//! room for any other, also where names take room by fours (ext4).

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::lineage::Place;
use crate::disk::{Disk, DiskFile};
use crate::rules::{Rule, breaks};
use crate::view::{Epoch, ViewId};

/// What the names of spares begin with.
pub(super) const PREFIX: &str = "spare-";
/// What the names of spares begin with that are being made.
pub(super) const MAKING: &str = "make-";
/// What the names of views begin with that have not got their own yet.
pub(super) const UNFINISHED: &str = "tmp-";
/// Views that can be made on a full disk, until older ones are forgotten and their room is used again.
pub(super) const SPARES: usize = 12;
/// The largest view fits.
const SPARE_BYTES: u64 = super::format::TEXT_BYTES_MAX as u64;
/// A view of some tens of members fits.
const SMALL_SPARE_BYTES: u64 = 4096;

/// A view under a name of its own, written and synced.
pub(super) struct Unfinished {
    pub path: PathBuf,
    pub file: Arc<dyn DiskFile>,
}

/// What one process has in store.
#[derive(Default)]
pub(super) struct Room {
    /// The view that was prepared, until it is swapped in or another one is.
    prepared: Option<(Option<ViewId>, Unfinished)>,
    /// A spare that is held open.
    ready: Option<Unfinished>,
}

/// True where an error says that something has run out: nothing was done, and later it may be.
pub(super) fn is_shortage(error: &io::Error) -> bool {
    use nix::libc::{EDQUOT, EMFILE, ENFILE, ENOMEM, ENOSPC};
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::OutOfMemory)
        || matches!(error.raw_os_error(), Some(EDQUOT | EMFILE | ENFILE | ENOMEM | ENOSPC))
}

fn fill(file: &dyn DiskFile, text: &str) -> io::Result<()> {
    file.write_at(text.as_bytes(), 0)?;
    file.cut(text.len() as u64)?;
    if breaks(Rule::SyncViewFile) { Ok(()) } else { file.sync() }
}

fn name_of(epoch: Epoch) -> String {
    format!("{UNFINISHED}{:011}-{:012x}", epoch.0, rand::random::<u64>() >> 16)
}

pub(super) fn spare_name() -> String {
    format!("{PREFIX}{:020x}", rand::random::<u64>())
}

/// Makes a spare, or enlarges one. As long as it is not done it has a name that nobody looks for: another process that
/// takes it earlier would find zeros behind its view.
fn make<D: Disk>(place: &Place<D>, small: Option<&str>) -> io::Result<String> {
    let path = place.path.join(format!("{MAKING}{:020x}", rand::random::<u64>()));
    let file = match small {
        Some(name) => {
            place.disk.rename(&place.path.join(name), &path)?;
            place.disk.open(&path, false)
        }
        None => place.disk.create_new(&path),
    };
    let result = file.and_then(|file| match file.allocate(SPARE_BYTES, true) {
        // Better one for a view of few members than none.
        Err(error) if is_shortage(&error) && small.is_none() => file.allocate(SMALL_SPARE_BYTES, true),
        made => made,
    });
    let result = match (result, small) {
        (Err(error), None) => {
            let _ = place.disk.remove(&path);
            return Err(error);
        }
        (result, _) => result,
    };
    let name = spare_name();
    place.disk.rename(&path, &place.path.join(&name))?;
    result.map(|()| name)
}

impl Room {
    /// Writes and syncs a view, so that [`Room::take`] has it. What was prepared before is given up.
    pub(super) fn prepare<D: Disk>(
        &mut self,
        place: &Place<D>,
        spares: &[String],
        (view, text): (ViewId, &str),
    ) -> io::Result<()> {
        let unfinished = self.write(place, spares, view.epoch, text)?;
        self.prepared = Some((Some(view), unfinished));
        Ok(())
    }

    /// The file that was prepared for this very view.
    pub(super) fn take(&mut self, view: ViewId) -> Option<Unfinished> {
        let ours = self.prepared.as_ref().is_some_and(|(of, _)| *of == Some(view));
        ours.then(|| self.prepared.take()).flatten().map(|(_, unfinished)| unfinished)
    }

    /// Keeps the file of a view that could not be swapped in: the next view goes into it.
    pub(super) fn give_back(&mut self, view: ViewId, unfinished: Unfinished) {
        self.prepared = Some((Some(view), unfinished));
    }

    /// The name of the file that is kept, which is nobody's remains.
    pub(super) fn kept(&self) -> Option<&Path> {
        self.prepared.as_ref().map(|(_, unfinished)| unfinished.path.as_path())
    }

    fn write<D: Disk>(
        &mut self,
        place: &Place<D>,
        spares: &[String],
        epoch: Epoch,
        text: &str,
    ) -> io::Result<Unfinished> {
        let path = place.path.join(name_of(epoch));
        if let Some((_, kept)) = self.prepared.take() {
            match place.disk.rename_new(&kept.path, &path) {
                Ok(()) => return self.finish(place, path, kept.file, text),
                // Another process has tidied it away, or this file system renames in its own way only.
                Err(_) => drop(place.disk.remove(&kept.path)),
            }
        }
        let made = place.disk.create_new(&path).and_then(|file| {
            fill(&*file, text)?;
            Ok(file)
        });
        match made {
            Ok(file) => Ok(Unfinished { path, file }),
            Err(error) => {
                // It may not have been made at all.
                let _ = place.disk.remove(&path);
                if breaks(Rule::KeepSpares) || !is_shortage(&error) {
                    return Err(error);
                }
                if let Some(unfinished) = self.use_spare(place, spares, &path, text)? {
                    return Ok(unfinished);
                }
                // The directory may have no room for the other name of a spare: the name of one makes it.
                if !self.give_up_spare(place, spares) {
                    return Err(error);
                }
                self.use_spare(place, spares, &path, text)?.ok_or(error)
            }
        }
    }

    /// `None`: there is no spare.
    fn use_spare<D: Disk>(
        &mut self,
        place: &Place<D>,
        spares: &[String],
        path: &Path,
        text: &str,
    ) -> io::Result<Option<Unfinished>> {
        if let Some(ready) = self.ready.take()
            && place.disk.rename(&ready.path, path).is_ok()
        {
            return self.finish(place, path.to_owned(), ready.file, text).map(Some);
        }
        for spare in spares {
            let spare = place.path.join(spare);
            // Opened first: where no descriptor is left the spare stays one.
            let file = match place.disk.open(&spare, false) {
                Ok(file) => file,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            // Another process may take it first.
            if place.disk.rename(&spare, path).is_ok() {
                return self.finish(place, path.to_owned(), file, text).map(Some);
            }
        }
        Ok(None)
    }

    /// Fills a file that was had before. After a failed sync it is never used again (R21).
    fn finish<D: Disk>(
        &mut self,
        place: &Place<D>,
        path: PathBuf,
        file: Arc<dyn DiskFile>,
        text: &str,
    ) -> io::Result<Unfinished> {
        match fill(&*file, text) {
            Ok(()) => Ok(Unfinished { path, file }),
            Err(error) if is_shortage(&error) => {
                self.prepared = Some((None, Unfinished { path, file }));
                Err(error)
            }
            Err(error) => {
                let _ = place.disk.remove(&path);
                Err(error)
            }
        }
    }

    /// Gives up a spare, so that something else has room. False: there is none.
    pub(super) fn give_up_spare<D: Disk>(&mut self, place: &Place<D>, spares: &[String]) -> bool {
        self.ready = None;
        spares.iter().any(|spare| place.disk.remove(&place.path.join(spare)).is_ok())
    }

    /// Makes the spares that are missing, and holds one open. `Err`: something has run out; so many as could be are
    /// there.
    pub(super) fn replenish<D: Disk>(&mut self, place: &Place<D>, spares: &[String]) -> io::Result<()> {
        let mut names = spares.to_vec();
        let mut result = Ok(());
        while names.len() < SPARES && result.is_ok() {
            result = make(place, None).map(|name| names.push(name));
        }
        // The files of forgotten views are small.
        for name in &mut names {
            let is_small = |(_, length)| length < SPARE_BYTES;
            if result.is_ok() && place.opened.look(name)?.is_some_and(is_small) {
                result = match make(place, Some(name.as_str())) {
                    Ok(larger) => {
                        *name = larger;
                        Ok(())
                    }
                    // Another process has taken it.
                    Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
                    Err(error) => Err(error),
                };
            }
        }
        let is_there = |spare: &Unfinished| names.iter().any(|name| place.path.join(name) == spare.path);
        if !self.ready.as_ref().is_some_and(is_there) {
            // Each process another one, so that not all reach for the same.
            let at = rand::random_range(0..names.len().max(1));
            self.ready = names.get(at).and_then(|name| {
                let path = place.path.join(name);
                Some(Unfinished { file: place.disk.open(&path, false).ok()?, path })
            });
        }
        result
    }
}
