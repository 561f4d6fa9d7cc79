//! The rows in a redb file.

use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use redb::{Database, Durability, Error, ReadOnlyTable, ReadableDatabase, TableDefinition};

use super::super::disk::{Disk as _, RealDisk};
use super::super::unchanged::Unchanged;
use super::rows::{Changed, Row, RowStore, RowView, StateError};

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
/// whether there is room before.
pub struct RedbRows {
    path: PathBuf,
    database: Arc<Database>,
}

struct RedbView {
    path: PathBuf,
    table: ReadOnlyTable<&'static [u8], &'static [u8]>,
}

fn fail(path: &Path) -> impl Fn(Error) -> StateError {
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
    /// Opens the file, or makes an empty one.
    ///
    /// # Errors
    /// [`StateError`] with the path.
    pub fn open(path: &Path) -> Result<RedbRows, StateError> {
        let open = || with_table(Database::builder().set_cache_size(CACHE_BYTES).create(path)?);
        let database = Arc::new(open().map_err(fail(path))?);
        Ok(RedbRows { path: path.to_owned(), database })
    }

    /// Opens the file and changes nothing on the disk.
    ///
    /// # Errors
    /// [`StateError`] with the path.
    pub fn look(path: &Path) -> Result<RedbRows, StateError> {
        let open = || {
            let file = Unchanged::open(path)?;
            with_table(Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(file)?)
        };
        let database = Arc::new(open().map_err(fail(path))?);
        Ok(RedbRows { path: path.to_owned(), database })
    }

    /// The same rows under the name that their file is about to get.
    #[must_use]
    pub fn renamed(self, path: &Path) -> RedbRows {
        RedbRows { path: path.to_owned(), database: self.database }
    }
}

impl RowStore for RedbRows {
    fn view(&self) -> Result<Box<dyn RowView>, StateError> {
        let table = || -> Result<_, Error> { Ok(self.database.begin_read()?.open_table(TABLE)?) };
        let table = table().map_err(fail(&self.path))?;
        Ok(Box::new(RedbView { path: self.path.clone(), table }))
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

    fn bytes(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |file| file.len())
    }

    fn has_room_for(&self, rows: usize, bytes: usize) -> bool {
        let needed = flush_bytes(rows as u64, bytes as u64, self.bytes());
        let directory = self.path.parent().unwrap_or(&self.path);
        RealDisk.free_bytes(directory).map_or(true, |free| free >= needed)
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
