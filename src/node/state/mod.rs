//! The store's records on disk: redb behind [`Backend`], with what is newer than the disk in memory.
//!
//! Applying never touches the disk: changes gather in an overlay, and a flush moves them to redb in one durable
//! transaction on another thread. The index of the last applied entry travels with the records it belongs to, so what
//! redb holds is always the state after some entry; everything later is in the log, which is durable before anything
//! is applied. One table holds it all: `m` and a name, or `r` and a revision in big-endian order. What the rows stand
//! in is behind [`RowStore`], so that a simulation keeps them in memory.

mod file;
mod install;
mod redb;
mod rows;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use file::WhenFull;
pub use install::{Placement, StateInstaller};
pub use rows::{Changed, Row, RowStore, RowView, StateError};

use super::lack::Lack;
use crate::disk::{Disk, RealDisk};
use crate::kv::{Backend, RevisionKey};
use crate::rules::{Rule, breaks};

const FILE: &str = "state.redb";
/// A new state under construction; worthless until it is renamed.
const FILE_NEW: &str = "state.redb.new";
/// Rows in one piece of a snapshot, in bytes.
const CHUNK_BYTES: usize = 1 << 20;
const RECORD: u8 = b'r';
const META: u8 = b'm';

#[derive(Default)]
struct Changes {
    rows: Changed,
    bytes: usize,
}

impl Changes {
    fn set(&mut self, key: Vec<u8>, value: Option<Bytes>) {
        let size = |key: &[u8], value: &Option<Bytes>| key.len() + value.as_ref().map_or(0, Bytes::len) + 64;
        self.bytes += size(&key, &value);
        let length = key.len();
        if let Some(old) = self.rows.insert(key, value) {
            self.bytes -= length + old.map_or(0, |old| old.len()) + 64;
        }
    }
}

/// See the head of the module.
pub struct StateBackend {
    rows: Arc<dyn RowStore>,
    /// As of the last flush; replaced after each.
    view: Box<dyn RowView>,
    /// On the way to the disk.
    flushing: Option<Arc<Changes>>,
    overlay: Changes,
    /// Tells a flush of this store from one of a store that has been replaced.
    generation: Arc<()>,
}

/// Changes to be made durable, away from the store.
pub struct FlushJob {
    rows: Arc<dyn RowStore>,
    changes: Arc<Changes>,
    generation: Arc<()>,
    /// Only what was put off for want of room is left to do.
    written: bool,
}

/// What came of a flush.
pub enum Flush {
    /// It is durable.
    Done(FlushDone),
    /// The rest of it waits for something that is missing.
    Waits(FlushJob, Lack),
}

/// A flush that is durable. Whoever drops it last lets go of what was flushed.
pub struct FlushDone {
    generation: Arc<()>,
    _changes: Arc<Changes>,
}

/// New states whose building or installing was cut off.
fn drop_unfinished(disk: &impl Disk, directory: &Path) {
    for name in disk.list(directory).unwrap_or_default() {
        if name.starts_with(FILE_NEW) {
            // One that stays takes room, and means nothing.
            let _ = disk.remove(&directory.join(name));
        }
    }
}

fn record_key(at: RevisionKey) -> Vec<u8> {
    let mut key = Vec::with_capacity(17);
    key.push(RECORD);
    key.extend_from_slice(&at.main.to_be_bytes());
    key.extend_from_slice(&at.sub.to_be_bytes());
    key
}

/// Which record stands in a row; none where it is no record.
#[must_use]
pub fn revision_of(key: &[u8]) -> Option<RevisionKey> {
    let (main, sub) = key.strip_prefix(&[RECORD])?.split_first_chunk::<8>()?;
    Some(RevisionKey { main: i64::from_be_bytes(*main), sub: i64::from_be_bytes(*sub.first_chunk::<8>()?) })
}

fn meta_key(name: &str) -> Vec<u8> {
    [&[META], name.as_bytes()].concat()
}

/// By the contract of [`Backend`]: a replica that cannot read its state must not answer.
fn unreadable(error: &StateError) -> ! {
    tracing::error!("cannot read the state: {error}");
    eprintln!("replserver: cannot read the state: {error}");
    std::process::exit(1)
}

impl StateBackend {
    /// Opens the state in a node's data directory, or makes an empty one. A half-built new state is dropped.
    ///
    /// # Errors
    /// [`StateError`] with the path.
    pub fn open(directory: &Path) -> Result<StateBackend, StateError> {
        StateBackend::open_on(&RealDisk, directory)
    }

    /// The same, on any disk.
    ///
    /// # Errors
    /// [`StateError`] with the path.
    pub fn open_on(disk: &impl Disk, directory: &Path) -> Result<StateBackend, StateError> {
        drop_unfinished(disk, directory);
        let path = directory.join(FILE);
        let (rows, made) = redb::RedbRows::open(disk, &path, WhenFull::PutOff)?;
        // The log drops what the state holds: its name must be there for certain before.
        if made && !breaks(Rule::SyncStateName) {
            let synced = disk.open_directory(directory).and_then(|names| names.sync());
            synced.map_err(|error| StateError { path, why: error.to_string() })?;
        }
        StateBackend::over(Arc::new(rows))
    }

    /// Opens the state of a node that does not run, and changes nothing on the disk: what recovery after a crash
    /// would write stays in memory.
    ///
    /// # Errors
    /// [`StateError`] with the path.
    pub fn look(directory: &Path) -> Result<StateBackend, StateError> {
        StateBackend::over(Arc::new(redb::LookedAt::open(&directory.join(FILE))?))
    }

    /// The state kept in these rows.
    ///
    /// # Errors
    /// [`StateError`] where they cannot be read.
    pub fn over(rows: Arc<dyn RowStore>) -> Result<StateBackend, StateError> {
        let view = rows.view()?;
        Ok(StateBackend { rows, view, flushing: None, overlay: Changes::default(), generation: Arc::new(()) })
    }

    fn read(&self, key: &[u8]) -> Option<Bytes> {
        if let Some(value) = self.overlay.rows.get(key) {
            return value.clone();
        }
        if let Some(value) = self.flushing.as_ref().and_then(|changes| changes.rows.get(key)) {
            return value.clone();
        }
        self.read_durable(key)
    }

    fn read_durable(&self, key: &[u8]) -> Option<Bytes> {
        self.view.get(key).unwrap_or_else(|error| unreadable(&error))
    }

    /// A named value as it stands on the disk.
    #[must_use]
    pub fn durable_meta(&self, name: &str) -> Option<Bytes> {
        self.read_durable(&meta_key(name))
    }

    /// How much is not on the disk yet and not on the way there, in bytes.
    #[must_use]
    pub fn overlay_bytes(&self) -> usize {
        self.overlay.bytes
    }

    /// Size of the file, in bytes.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.rows.bytes()
    }

    /// True where a flush would be begun if there were room for it on the disk (R25). What has gathered stays in
    /// memory, and in the log, until there is: writes must be refused meanwhile, or both grow without end.
    #[must_use]
    pub fn waits_for_room(&self) -> bool {
        self.flushing.is_none() && !self.overlay.rows.is_empty() && !self.has_room()
    }

    fn has_room(&self) -> bool {
        self.rows.has_room_for(self.overlay.rows.len(), self.overlay.bytes)
    }

    /// Freezes what has gathered; run the job on a thread that may wait. `None` while one is under way, and while
    /// there is no room for it.
    pub fn begin_flush(&mut self) -> Option<FlushJob> {
        if self.flushing.is_some() || self.overlay.rows.is_empty() || !self.has_room() {
            return None;
        }
        let changes = Arc::new(std::mem::take(&mut self.overlay));
        self.flushing = Some(changes.clone());
        let (rows, generation) = (self.rows.clone(), self.generation.clone());
        Some(FlushJob { rows, changes, generation, written: false })
    }

    /// The flush is durable: read from the disk from now on. False for a flush of a store that has been replaced.
    pub fn end_flush(&mut self, done: &FlushDone) -> bool {
        if !Arc::ptr_eq(&done.generation, &self.generation) {
            return false;
        }
        self.view = self.rows.view().unwrap_or_else(|error| unreadable(&error));
        self.flushing = None;
        true
    }

    /// Rows after a key, in order, about so many bytes of them; and where to go on, unless that was all. A short look, for
    /// who reads everything and lets others go in between.
    #[must_use]
    pub fn page(&self, after: Option<&[u8]>, bytes_max: usize) -> (Vec<Row>, Option<Bytes>) {
        let old = self.view.page(after, bytes_max).unwrap_or_else(|error| unreadable(&error));
        let mut end = old.last().map(|(key, _)| key.clone());
        let layers = self.flushing.iter().map(|changes| &changes.rows).chain([&self.overlay.rows]);
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        if end.is_none() {
            // No old rows are left. A layer that holds too many for one page says where the page ends.
            let cut = |layer: &Changed| {
                let mut bytes = 0;
                let fits = |(_, value): &(&Vec<u8>, &Option<Bytes>)| {
                    bytes += 64 + value.as_ref().map_or(0, Bytes::len);
                    bytes >= bytes_max
                };
                layer.range::<[u8], _>((start, Bound::Unbounded)).find(fits).map(|(key, _)| key.clone())
            };
            end = layers.clone().filter_map(cut).min().map(Bytes::from);
        }
        let last = end.as_deref().map_or(Bound::Unbounded, Bound::Included);
        let mut rows: BTreeMap<Bytes, Option<Bytes>> =
            old.into_iter().map(|(key, value)| (key, Some(value))).collect();
        for layer in layers {
            for (key, value) in layer.range::<[u8], _>((start, last)) {
                rows.insert(Bytes::copy_from_slice(key), value.clone());
            }
        }
        (rows.into_iter().filter_map(|(key, value)| Some((key, value?))).collect(), end)
    }

    /// Everything as it stands on the disk, to be read while the store goes on: what the last flush has brought there.
    #[must_use]
    pub fn durable(&self) -> SnapshotReader {
        let view = self.rows.view().unwrap_or_else(|error| unreadable(&error));
        SnapshotReader { view, newer: Changed::new(), after: None, ended: false }
    }

    /// Everything as it is now, to be read while the store goes on. Copies what is not on the disk.
    #[must_use]
    pub fn snapshot(&self) -> SnapshotReader {
        let mut newer = self.flushing.as_ref().map_or_else(Changed::new, |changes| changes.rows.clone());
        newer.extend(self.overlay.rows.iter().map(|(key, value)| (key.clone(), value.clone())));
        let view = self.rows.view().unwrap_or_else(|error| unreadable(&error));
        SnapshotReader { view, newer, after: None, ended: false }
    }
}

impl Backend for StateBackend {
    fn get(&self, at: RevisionKey) -> Option<Bytes> {
        self.read(&record_key(at))
    }

    fn put(&mut self, at: RevisionKey, record: Bytes) {
        self.overlay.set(record_key(at), Some(record));
    }

    fn delete(&mut self, at: RevisionKey) {
        self.overlay.set(record_key(at), None);
    }

    fn scan(&self, visit: &mut dyn FnMut(RevisionKey, Bytes)) {
        for chunk in self.snapshot() {
            let rows = chunk.unwrap_or_else(|error| unreadable(&error));
            for (key, value) in rows {
                if let Some(at) = revision_of(&key) {
                    visit(at, value);
                }
            }
        }
    }

    fn meta(&self, name: &str) -> Option<Bytes> {
        self.read(&meta_key(name))
    }

    fn put_meta(&mut self, name: &str, value: Bytes) {
        self.overlay.set(meta_key(name), Some(value));
    }
}

impl FlushJob {
    /// Makes the changes durable, all or none of them.
    ///
    /// # Errors
    /// [`StateError`]; the caller ends the process (R21).
    pub fn run(self) -> Result<Flush, StateError> {
        if !self.written {
            self.rows.write(&self.changes.rows, true)?;
        }
        Ok(match self.rows.catch_up()? {
            Some(lack) => Flush::Waits(FlushJob { written: true, ..self }, lack),
            None => Flush::Done(FlushDone { generation: self.generation, _changes: self.changes }),
        })
    }

    /// True where it belongs to this store, and not to one that has been replaced.
    #[must_use]
    pub fn is_of(&self, backend: &StateBackend) -> bool {
        Arc::ptr_eq(&self.generation, &backend.generation)
    }
}

/// One state, row by row in key order, in pieces of about 1 MiB.
pub struct SnapshotReader {
    view: Box<dyn RowView>,
    newer: Changed,
    after: Option<Vec<u8>>,
    ended: bool,
}

impl SnapshotReader {
    /// A named value beside the records.
    #[must_use]
    pub fn meta(&self, name: &str) -> Option<Bytes> {
        let key = meta_key(name);
        match self.newer.get(&key) {
            Some(value) => value.clone(),
            None => self.view.get(&key).unwrap_or_else(|error| unreadable(&error)),
        }
    }

    fn chunk(&mut self) -> Result<Vec<Row>, StateError> {
        let old = self.view.page(self.after.as_deref(), CHUNK_BYTES)?;
        // What is newer belongs to this piece up to the last old key in it; to the last piece, all that is left.
        let start = self.after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let end = old.last().map(|(key, _)| key.clone());
        let last = end.as_deref().map_or(Bound::Unbounded, Bound::Included);
        let mut rows: BTreeMap<Bytes, Bytes> = old.into_iter().collect();
        let (mut bytes, mut after) = (0, end.clone());
        for (key, value) in self.newer.range::<[u8], _>((start, last)) {
            match value {
                Some(value) => {
                    bytes += key.len() + value.len();
                    rows.insert(Bytes::copy_from_slice(key), value.clone());
                }
                None => drop(rows.remove(key.as_slice())),
            }
            if end.is_none() {
                after = Some(Bytes::copy_from_slice(key));
                if bytes >= CHUNK_BYTES {
                    break;
                }
            }
        }
        match after {
            Some(after) => self.after = Some(after.to_vec()),
            None => self.ended = true,
        }
        Ok(rows.into_iter().collect())
    }
}

impl Iterator for SnapshotReader {
    type Item = Result<Vec<Row>, StateError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended {
            match self.chunk() {
                // A piece whose rows are all deleted by newer ones.
                Ok(rows) if rows.is_empty() => {}
                Ok(rows) => return Some(Ok(rows)),
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests {
    use super::*;

    fn at(main: i64) -> RevisionKey {
        RevisionKey { main, sub: 0 }
    }

    fn value(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    fn scan(backend: &StateBackend) -> Vec<(i64, Bytes)> {
        let mut rows = Vec::new();
        backend.scan(&mut |at, record| rows.push((at.main, record)));
        rows
    }

    fn run(job: FlushJob) -> FlushDone {
        match job.run().expect("flushed") {
            Flush::Done(done) => done,
            Flush::Waits(_, lack) => panic!("no {lack}"),
        }
    }

    fn flush(backend: &mut StateBackend) {
        let done = run(backend.begin_flush().expect("something to flush"));
        assert!(backend.end_flush(&done));
    }

    #[test]
    fn rows_read_the_same_before_during_and_after_a_flush() {
        let directory = tempfile::tempdir().unwrap();
        let mut backend = StateBackend::open(directory.path()).unwrap();
        for main in 1..5 {
            backend.put(at(main), value(&format!("v{main}")));
        }
        flush(&mut backend);
        backend.delete(at(2));
        backend.put(at(5), value("v5"));
        let expected = vec![(1, value("v1")), (3, value("v3")), (4, value("v4")), (5, value("v5"))];
        assert_eq!(scan(&backend), expected, "from the overlay");
        let job = backend.begin_flush().unwrap();
        backend.put(at(6), value("v6"));
        assert_eq!(backend.get(at(2)), None);
        assert_eq!(backend.get(at(5)), Some(value("v5")));
        let done = run(job);
        assert!(backend.end_flush(&done));
        assert_eq!(backend.get(at(6)), Some(value("v6")), "what came during a flush is kept");
        assert_eq!(&scan(&backend)[..4], expected);
    }

    #[test]
    fn pages_show_what_is_there_before_during_and_after_a_flush() {
        let directory = tempfile::tempdir().unwrap();
        let mut backend = StateBackend::open(directory.path()).unwrap();
        let paged = |backend: &StateBackend| {
            let (mut all, mut after) = (Vec::new(), None::<Bytes>);
            loop {
                let (rows, next) = backend.page(after.as_deref(), 100);
                all.extend(rows);
                match next {
                    Some(next) => after = Some(next),
                    None => return all,
                }
            }
        };
        let whole = |backend: &StateBackend| -> Vec<Row> {
            backend.snapshot().flat_map(|rows| rows.unwrap()).collect()
        };
        for main in 1..40 {
            backend.put(at(main), value(&format!("value {main}")));
        }
        assert_eq!(paged(&backend), whole(&backend), "all of it new");
        flush(&mut backend);
        for main in (1..40).step_by(3) {
            backend.delete(at(main));
        }
        for main in 40..60 {
            backend.put(at(main), value("newer"));
        }
        assert_eq!(paged(&backend), whole(&backend), "both");
        let job = backend.begin_flush().unwrap();
        backend.delete(at(41));
        backend.put(at(70), value("newest"));
        assert_eq!(paged(&backend).len(), 26 + 19 + 1);
        assert_eq!(paged(&backend), whole(&backend), "three layers");
        drop(job);
    }

    #[test]
    fn what_was_not_flushed_is_gone_after_a_crash_and_what_was_is_there_with_its_mark() {
        let directory = tempfile::tempdir().unwrap();
        let mut backend = StateBackend::open(directory.path()).unwrap();
        backend.put(at(1), value("kept"));
        backend.put_meta("applied", value("1"));
        flush(&mut backend);
        backend.put(at(2), value("lost"));
        backend.put_meta("applied", value("2"));
        // A copy of the file as it is now is what a crash leaves.
        let after = tempfile::tempdir().unwrap();
        std::fs::copy(directory.path().join(FILE), after.path().join(FILE)).unwrap();
        let reopened = StateBackend::open(after.path()).unwrap();
        assert_eq!(scan(&reopened), [(1, value("kept"))]);
        assert_eq!(reopened.meta("applied"), Some(value("1")));
    }

    #[test]
    fn a_snapshot_stays_as_it_was_while_the_store_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let mut backend = StateBackend::open(directory.path()).unwrap();
        let big = Bytes::from(vec![7_u8; 300_000]);
        for main in 1..=8 {
            backend.put(at(main), big.clone());
        }
        flush(&mut backend);
        backend.delete(at(3));
        let snapshot = backend.snapshot();
        backend.put(at(9), big.clone());
        flush(&mut backend);
        let chunks: Vec<_> = snapshot.map(Result::unwrap).collect();
        assert!(chunks.len() > 1, "large states come in pieces");
        let mains: Vec<_> =
            chunks.concat().iter().filter_map(|(key, _)| revision_of(key)).map(|at| at.main).collect();
        assert_eq!(mains, [1, 2, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn an_installed_state_replaces_the_old_one_only_when_it_is_put_in_place() {
        let directory = tempfile::tempdir().unwrap();
        let mut old = StateBackend::open(directory.path()).unwrap();
        old.put(at(1), value("old"));
        flush(&mut old);
        let mut source = StateBackend::open(tempfile::tempdir().unwrap().path()).unwrap();
        source.put(at(2), value("new"));
        let mut installer = StateInstaller::create(&RealDisk, directory.path()).unwrap();
        for chunk in source.snapshot() {
            installer.push(chunk.unwrap().into_iter()).unwrap();
        }
        let (mut new, placement) = installer.finish().unwrap();
        assert_eq!(scan(&new), [(2, value("new"))]);
        placement.put().unwrap();
        let stale = old.begin_flush();
        assert!(stale.is_none());
        new.put(at(3), value("later"));
        flush(&mut new);
        drop((old, new));
        let reopened = StateBackend::open(directory.path()).unwrap();
        assert_eq!(scan(&reopened), [(2, value("new")), (3, value("later"))]);
    }
}
