//! A whole new state from a snapshot: built beside the old one, and then put in its place.
//!
//! What must be on the disk before what (each is a switch of its own):
//! 1. the head of the fresh log, staged (`Log::stage_reset`), before the new state has the old one's name;
//! 2. the new state, before it has that name;
//! 3. that name, before the fresh log begins (`Log::finish_reset`) and supersedes the old one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::file::WhenFull;
use super::redb::RedbRows;
use super::rows::{Changed, RowStore as _, StateError};
use super::{FILE, FILE_NEW, StateBackend};
use crate::disk::{Disk, DiskDirectory};
use crate::rules::{Rule, breaks};

/// Builds a new state beside the old one.
pub struct StateInstaller<D: Disk> {
    disk: D,
    directory: PathBuf,
    /// The same, held open: nothing that has to be had may be missing when the state is put in place.
    names: Arc<dyn DiskDirectory>,
    path: PathBuf,
    rows: RedbRows,
}

/// A finished new state that only has to take the old one's name.
pub struct Placement<D: Disk> {
    disk: D,
    directory: PathBuf,
    names: Arc<dyn DiskDirectory>,
    from: PathBuf,
}

impl<D: Disk> StateInstaller<D> {
    /// Begins with nothing. What an attempt leaves that came to no end is dropped at the next start.
    ///
    /// # Errors
    /// [`StateError`] with the path.
    pub fn create(disk: &D, directory: &Path) -> Result<StateInstaller<D>, StateError> {
        // A name of its own: another snapshot may arrive before this one is in place.
        let path = directory.join(format!("{FILE_NEW}-{:016x}", crate::node::random_number()));
        let names = disk
            .open_directory(directory)
            .map_err(|error| StateError { path: directory.to_owned(), why: error.to_string() })?;
        let opened = RedbRows::open(disk, &path, WhenFull::Fail);
        if opened.is_err() {
            // Half of it would take the room that others need.
            let _ = disk.remove(&path);
        }
        let (rows, _) = opened?;
        Ok(StateInstaller { disk: disk.clone(), directory: directory.to_owned(), names, path, rows })
    }

    /// Adds rows. Where that fails the half of it is removed: it takes the room that others need.
    ///
    /// # Errors
    /// [`StateError`] with the path.
    pub fn push(&mut self, rows: impl Iterator<Item = (Bytes, Bytes)>) -> Result<(), StateError> {
        let rows = rows.map(|(key, value)| (key.to_vec(), Some(value))).collect();
        // Nothing is lost if it is not durable yet: until it is in place it counts for nothing.
        self.rows.write(&rows, false).inspect_err(|_| self.give_up())
    }

    /// Nothing comes of it: what was built is removed.
    pub fn give_up(&self) {
        let _ = self.disk.remove(&self.path);
    }

    /// Makes it durable and opens it.
    ///
    /// # Errors
    /// [`StateError`] with the path.
    pub fn finish(self) -> Result<(StateBackend, Placement<D>), StateError> {
        if !breaks(Rule::SyncNewState) {
            self.rows.write(&Changed::new(), true).inspect_err(|_| self.give_up())?;
        }
        let rows = self.rows.renamed(&self.directory.join(FILE));
        let backend = StateBackend::over(Arc::new(rows)).inspect_err(|_| {
            let _ = self.disk.remove(&self.path);
        })?;
        let placement =
            Placement { disk: self.disk, directory: self.directory, names: self.names, from: self.path };
        Ok((backend, placement))
    }
}

impl<D: Disk> Placement<D> {
    /// Takes the old state's place, durably.
    ///
    /// # Errors
    /// From the file system; the old state is still in place, or which one is there is not known.
    pub fn put(&self) -> std::io::Result<()> {
        self.disk.rename(&self.from, &self.directory.join(FILE))?;
        if breaks(Rule::SyncPlacedState) { Ok(()) } else { self.names.sync() }
    }

    /// Nothing comes of it: what was built is removed.
    pub fn give_up(&self) {
        let _ = self.disk.remove(&self.from);
    }
}
