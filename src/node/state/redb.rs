//! The rows in a redb file.

use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use redb::{Database, Durability, Error, ReadOnlyTable, ReadableDatabase, StorageBackend, TableDefinition};

use super::super::lack::Lack;
use super::super::unchanged::Unchanged;
use super::file::{StateFile, WhenFull};
use super::rows::{Changed, Row, RowStore, RowView, StateError};
use crate::disk::Disk;

const TABLE: TableDefinition<&[u8], &[u8]> = TableDefinition::new("state");
const CACHE_BYTES: usize = 32 << 20;

/// A row that changes has these pages written anew: a leaf and what leads to it.
const PAGES_BYTES: u64 = 16 << 10;
/// Beyond what is certainly written.
const SPARE_BYTES: u64 = 1 << 20;

/// Bytes that a write may take, at most: pages are never written over, but all of them are not more than the file.
fn flush_bytes(rows: u64, bytes: u64, file: u64) -> u64 {
    rows.saturating_mul(PAGES_BYTES).min(file) + 2 * bytes + SPARE_BYTES
}

/// An open file. After a write that failed redb lets nobody write it or read it, until it is opened anew: so it is asked
/// whether there is room before, and what finds none nevertheless is put off below redb ([`StateFile`]).
pub struct RedbRows {
    path: PathBuf,
    database: Arc<Database>,
    file: Arc<StateFile>,
    free_bytes: Arc<FreeBytes>,
}

/// Bytes free on the file system of the rows.
type FreeBytes = dyn Fn() -> std::io::Result<u64> + Send + Sync;

struct RedbView {
    path: PathBuf,
    table: ReadOnlyTable<&'static [u8], &'static [u8]>,
}

fn fail(path: &Path) -> impl Fn(Error) -> StateError {
    let path = path.to_owned();
    move |error| StateError { path: path.clone(), why: error.to_string() }
}

fn fail_io(path: &Path) -> impl Fn(std::io::Error) -> StateError {
    let path = path.to_owned();
    move |error| StateError { path: path.clone(), why: error.to_string() }
}

/// Nothing is written where the table is there, so that a full disk hinders no start.
fn with_table(database: Database) -> Result<Database, Error> {
    match database.begin_read()?.open_table(TABLE) {
        Ok(_) => return Ok(database),
        Err(redb::TableError::TableDoesNotExist(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let transaction = database.begin_write()?;
    transaction.open_table(TABLE)?;
    transaction.commit()?;
    Ok(database)
}

impl RedbRows {
    /// Opens the file, or makes an empty one; true where it was made.
    ///
    /// # Errors
    /// [`StateError`] with the path.
    pub fn open(disk: &impl Disk, path: &Path, when_full: WhenFull) -> Result<(RedbRows, bool), StateError> {
        let (file, made) = StateFile::open(disk, path, when_full).map_err(fail_io(path))?;
        let file = Arc::new(file);
        let builder =
            || Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(Shared(file.clone()));
        let open = || with_table(builder()?);
        let database = Arc::new(open().map_err(fail(path))?);
        let directory = path.parent().unwrap_or(path).to_owned();
        let disk = disk.clone();
        let free_bytes = Arc::new(move || disk.free_bytes(&directory));
        Ok((RedbRows { path: path.to_owned(), database, file, free_bytes }, made))
    }

    /// The same rows under the name that their file is about to get, where a full disk is no more an error.
    #[must_use]
    pub fn renamed(self, path: &Path) -> RedbRows {
        self.file.put_off_from_now_on();
        RedbRows { path: path.to_owned(), ..self }
    }
}

/// The file as redb wants it.
#[derive(Debug)]
struct Shared(Arc<StateFile>);

impl StorageBackend for Shared {
    fn len(&self) -> std::io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, length: u64) -> std::io::Result<()> {
        self.0.set_len(length)
    }

    fn sync_data(&self) -> std::io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.0.write(offset, data)
    }
}

/// The rows in a file that is only looked at.
pub struct LookedAt {
    path: PathBuf,
    database: Database,
}

impl LookedAt {
    /// Opens the file and changes nothing on the disk.
    ///
    /// # Errors
    /// [`StateError`] with the path.
    pub fn open(path: &Path) -> Result<LookedAt, StateError> {
        let open = || {
            let file = Unchanged::open(path)?;
            with_table(Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(file)?)
        };
        Ok(LookedAt { path: path.to_owned(), database: open().map_err(fail(path))? })
    }
}

impl RowStore for LookedAt {
    fn view(&self) -> Result<Box<dyn RowView>, StateError> {
        view(&self.database, &self.path)
    }

    fn write(&self, _: &Changed, _: bool) -> Result<(), StateError> {
        Err(StateError { path: self.path.clone(), why: "it is only looked at".to_owned() })
    }

    fn bytes(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |file| file.len())
    }
}

fn view(database: &Database, path: &Path) -> Result<Box<dyn RowView>, StateError> {
    let table = || -> Result<_, Error> { Ok(database.begin_read()?.open_table(TABLE)?) };
    let table = table().map_err(fail(path))?;
    Ok(Box::new(RedbView { path: path.to_owned(), table }))
}

impl RowStore for RedbRows {
    fn view(&self) -> Result<Box<dyn RowView>, StateError> {
        view(&self.database, &self.path)
    }

    fn write(&self, rows: &Changed, durable: bool) -> Result<(), StateError> {
        let write = || -> Result<(), Error> {
            let mut transaction = self.database.begin_write()?;
            let durability = if durable { Durability::Immediate } else { Durability::None };
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
        };
        write().map_err(fail(&self.path))
    }

    fn catch_up(&self) -> Result<Option<Lack>, StateError> {
        self.file.catch_up().map_err(fail_io(&self.path))
    }

    fn bytes(&self) -> u64 {
        self.file.length().unwrap_or(0)
    }

    fn has_room_for(&self, rows: usize, bytes: usize) -> bool {
        let needed = flush_bytes(rows as u64, bytes as u64, self.bytes());
        (self.free_bytes)().map_or(true, |free| free >= needed)
    }
}

impl RowView for RedbView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        let found = self.table.get(key).map_err(|error| fail(&self.path)(error.into()))?;
        Ok(found.map(|value| Bytes::copy_from_slice(value.value())))
    }

    fn page(&self, after: Option<&[u8]>, bytes_max: usize) -> Result<Vec<Row>, StateError> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let failed = |error: redb::StorageError| fail(&self.path)(error.into());
        let (mut rows, mut bytes) = (Vec::new(), 0);
        for row in self.table.range::<&[u8]>((start, Bound::Unbounded)).map_err(failed)? {
            let (key, value) = row.map_err(failed)?;
            bytes += key.value().len() + value.value().len();
            rows.push((Bytes::copy_from_slice(key.value()), Bytes::copy_from_slice(value.value())));
            if bytes >= bytes_max {
                break;
            }
        }
        Ok(rows)
    }
}
