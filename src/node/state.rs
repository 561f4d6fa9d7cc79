//! The store's records on disk: redb behind [`Backend`], with what is newer than the disk in memory.
//!
//! Applying never touches the disk: changes gather in an overlay, and a flush moves them to redb in one durable
//! transaction on another thread. The index of the last applied entry travels with the records it belongs to, so what
//! redb holds is always the state after some entry; everything later is in the log, which is durable before anything
//! is applied. One table holds it all: `m` and a name, or `r` and a revision in big-endian order.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use redb::{Database, Durability, ReadOnlyTable, ReadableDatabase, TableDefinition};

use crate::kv::{Backend, RevisionKey};

const TABLE: TableDefinition<&[u8], &[u8]> = TableDefinition::new("state");
const FILE: &str = "state.redb";
/// A new state under construction; worthless until it is renamed.
const FILE_NEW: &str = "state.redb.new";
const CACHE_BYTES: usize = 32 << 20;
/// Rows in one piece of a snapshot, in bytes.
const CHUNK_BYTES: usize = 1 << 20;
const RECORD: u8 = b'r';
const META: u8 = b'm';

/// The state could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub struct StateError {
    path: PathBuf,
    source: redb::Error,
}

type Rows = BTreeMap<Vec<u8>, Option<Bytes>>;
type Table = ReadOnlyTable<&'static [u8], &'static [u8]>;

#[derive(Default)]
struct Changes {
    rows: Rows,
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
    path: PathBuf,
    database: Arc<Database>,
    /// As of the last flush; replaced after each.
    table: Table,
    /// On the way to the disk.
    flushing: Option<Arc<Changes>>,
    overlay: Changes,
    /// Tells a flush of this store from one of a store that has been replaced.
    generation: Arc<()>,
}

/// Changes to be made durable, away from the store.
pub struct FlushJob {
    path: PathBuf,
    database: Arc<Database>,
    changes: Arc<Changes>,
    generation: Arc<()>,
}

/// A flush that is durable.
pub struct FlushDone {
    generation: Arc<()>,
}

/// New states whose building or installing was cut off.
fn drop_unfinished(directory: &Path) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(FILE_NEW) {
            let _ = std::fs::remove_file(entry.path());
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

fn revision_of(key: &[u8]) -> Option<RevisionKey> {
    let (main, sub) = key.strip_prefix(&[RECORD])?.split_first_chunk::<8>()?;
    Some(RevisionKey { main: i64::from_be_bytes(*main), sub: i64::from_be_bytes(*sub.first_chunk::<8>()?) })
}

fn meta_key(name: &str) -> Vec<u8> {
    [&[META], name.as_bytes()].concat()
}

/// By the contract of [`Backend`]: a replica that cannot read its state must not answer.
fn unreadable(path: &Path, error: &redb::Error) -> ! {
    tracing::error!("cannot read {}: {error}", path.display());
    eprintln!("replserver: cannot read {}: {error}", path.display());
    std::process::exit(1)
}

impl StateBackend {
    /// Opens the state in a node's data directory, or makes an empty one. A half-built new state is dropped.
    ///
    /// # Errors
    /// [`StateError`] with the path.
    pub fn open(directory: &Path) -> Result<StateBackend, StateError> {
        drop_unfinished(directory);
        StateBackend::open_file(&directory.join(FILE))
    }

    fn open_file(path: &Path) -> Result<StateBackend, StateError> {
        let fail = |source: redb::Error| StateError { path: path.to_owned(), source };
        let mut builder = Database::builder();
        let database =
            builder.set_cache_size(CACHE_BYTES).create(path).map_err(|error| fail(error.into()))?;
        let transaction = database.begin_write().map_err(|error| fail(error.into()))?;
        transaction.open_table(TABLE).map_err(|error| fail(error.into()))?;
        transaction.commit().map_err(|error| fail(error.into()))?;
        let table = read_table(&database).map_err(fail)?;
        Ok(StateBackend {
            path: path.to_owned(),
            database: Arc::new(database),
            table,
            flushing: None,
            overlay: Changes::default(),
            generation: Arc::new(()),
        })
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
        match self.table.get(key) {
            Ok(value) => value.map(|value| Bytes::copy_from_slice(value.value())),
            Err(error) => unreadable(&self.path, &error.into()),
        }
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
        std::fs::metadata(&self.path).map_or(0, |file| file.len())
    }

    /// Freezes what has gathered; run the job on a thread that may wait. `None` while one is under way.
    pub fn begin_flush(&mut self) -> Option<FlushJob> {
        if self.flushing.is_some() || self.overlay.rows.is_empty() {
            return None;
        }
        let changes = Arc::new(std::mem::take(&mut self.overlay));
        self.flushing = Some(changes.clone());
        let (path, database, generation) =
            (self.path.clone(), self.database.clone(), self.generation.clone());
        Some(FlushJob { path, database, changes, generation })
    }

    /// The flush is durable: read from the disk from now on. False for a flush of a store that has been replaced.
    pub fn end_flush(&mut self, done: &FlushDone) -> bool {
        if !Arc::ptr_eq(&done.generation, &self.generation) {
            return false;
        }
        match read_table(&self.database) {
            Ok(table) => self.table = table,
            Err(error) => unreadable(&self.path, &error),
        }
        self.flushing = None;
        true
    }

    /// Everything as it is now, to be read while the store goes on.
    #[must_use]
    pub fn snapshot(&self) -> SnapshotReader {
        let mut newer = self.flushing.as_ref().map_or_else(Rows::new, |changes| changes.rows.clone());
        newer.extend(self.overlay.rows.iter().map(|(key, value)| (key.clone(), value.clone())));
        match read_table(&self.database) {
            Ok(table) => SnapshotReader { path: self.path.clone(), table, newer, after: None, ended: false },
            Err(error) => unreadable(&self.path, &error),
        }
    }
}

fn read_table(database: &Database) -> Result<Table, redb::Error> {
    Ok(database.begin_read()?.open_table(TABLE)?)
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
            let rows = chunk.unwrap_or_else(|error| unreadable(&self.path, &error.source));
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
    pub fn run(self) -> Result<FlushDone, StateError> {
        write(&self.database, &self.changes.rows, Durability::Immediate)
            .map_err(|source| StateError { path: self.path, source })?;
        Ok(FlushDone { generation: self.generation })
    }
}

fn write(database: &Database, rows: &Rows, durability: Durability) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(durability)?;
    {
        let mut table = transaction.open_table(TABLE)?;
        for (key, value) in rows {
            match value {
                Some(value) => drop(table.insert(key.as_slice(), value.as_ref())?),
                None => drop(table.remove(key.as_slice())?),
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

/// One state, row by row in key order, in pieces of about 1 MiB.
pub struct SnapshotReader {
    path: PathBuf,
    table: Table,
    newer: Rows,
    after: Option<Vec<u8>>,
    ended: bool,
}

impl SnapshotReader {
    fn chunk(&mut self) -> Result<Vec<(Bytes, Bytes)>, redb::Error> {
        let start = match &self.after {
            Some(key) => Bound::Excluded(key.as_slice()),
            None => Bound::Unbounded,
        };
        let mut old = self.table.range::<&[u8]>((start, Bound::Unbounded))?.peekable();
        let mut newer = self.newer.range::<[u8], _>((start, Bound::Unbounded)).peekable();
        let (mut rows, mut bytes, mut after) = (Vec::new(), 0, None);
        while bytes < CHUNK_BYTES {
            // The smaller key of the two; of equal ones the newer row hides the older.
            let take_newer = match (old.peek(), newer.peek()) {
                (None, None) => {
                    self.ended = true;
                    break;
                }
                (Some(Err(_)), _) | (Some(_), None) => false,
                (None, Some(_)) => true,
                (Some(Ok((key, _))), Some((newer, _))) => newer.as_slice() <= key.value(),
            };
            if take_newer {
                let (key, value) = newer.next().expect("peeked at");
                if let Some(Ok((hidden, _))) = old.peek()
                    && hidden.value() == key.as_slice()
                {
                    old.next();
                }
                if let Some(value) = value {
                    bytes += key.len() + value.len();
                    rows.push((Bytes::copy_from_slice(key), value.clone()));
                }
                after = Some(key.clone());
            } else {
                let (key, value) = old.next().expect("peeked at")?;
                bytes += key.value().len() + value.value().len();
                rows.push((Bytes::copy_from_slice(key.value()), Bytes::copy_from_slice(value.value())));
                after = Some(key.value().to_vec());
            }
        }
        if after.is_some() {
            self.after = after;
        }
        Ok(rows)
    }
}

impl Iterator for SnapshotReader {
    type Item = Result<Vec<(Bytes, Bytes)>, StateError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        match self.chunk() {
            Ok(rows) if rows.is_empty() => None,
            Ok(rows) => Some(Ok(rows)),
            Err(source) => {
                self.ended = true;
                Some(Err(StateError { path: self.path.clone(), source }))
            }
        }
    }
}

/// Builds a new state beside the old one.
pub struct StateInstaller {
    directory: PathBuf,
    backend: StateBackend,
}

/// A finished new state that only has to take the old one's name.
pub struct Placement {
    directory: PathBuf,
    from: PathBuf,
}

impl StateInstaller {
    /// Begins with nothing. What an attempt leaves that came to no end is dropped at the next start.
    ///
    /// # Errors
    /// [`StateError`] with the path.
    pub fn create(directory: &Path) -> Result<StateInstaller, StateError> {
        // A name of its own: another snapshot may arrive before this one is in place.
        let path = directory.join(format!("{FILE_NEW}-{:016x}", super::random_number()));
        Ok(StateInstaller { directory: directory.to_owned(), backend: StateBackend::open_file(&path)? })
    }

    /// Adds rows.
    ///
    /// # Errors
    /// [`StateError`] with the path.
    pub fn push(&mut self, rows: impl Iterator<Item = (Bytes, Bytes)>) -> Result<(), StateError> {
        let rows = rows.map(|(key, value)| (key.to_vec(), Some(value))).collect();
        // Nothing is lost if it is not durable yet: until it is in place it counts for nothing.
        write(&self.backend.database, &rows, Durability::None)
            .map_err(|source| StateError { path: self.backend.path.clone(), source })
    }

    /// Makes it durable and opens it.
    ///
    /// # Errors
    /// [`StateError`] with the path.
    pub fn finish(mut self) -> Result<(StateBackend, Placement), StateError> {
        let fail = |source: redb::Error| StateError { path: self.backend.path.clone(), source };
        write(&self.backend.database, &Rows::new(), Durability::Immediate).map_err(fail)?;
        self.backend.table = read_table(&self.backend.database).map_err(fail)?;
        let from = std::mem::replace(&mut self.backend.path, self.directory.join(FILE));
        Ok((self.backend, Placement { directory: self.directory, from }))
    }
}

impl Placement {
    /// Takes the old state's place, durably.
    ///
    /// # Errors
    /// From the file system; the old state is still in place.
    pub fn put(&self) -> std::io::Result<()> {
        std::fs::rename(&self.from, self.directory.join(FILE))?;
        std::fs::File::open(&self.directory)?.sync_all()
    }
}

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

    fn flush(backend: &mut StateBackend) {
        let done = backend.begin_flush().expect("something to flush").run().expect("flushed");
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
        let done = job.run().unwrap();
        assert!(backend.end_flush(&done));
        assert_eq!(backend.get(at(6)), Some(value("v6")), "what came during a flush is kept");
        assert_eq!(&scan(&backend)[..4], expected);
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
        let mut installer = StateInstaller::create(directory.path()).unwrap();
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
