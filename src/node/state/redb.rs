//! The rows in a redb file.

use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use redb::{Database, Durability, Error, ReadOnlyTable, ReadableDatabase, TableDefinition};

use super::rows::{Changed, Row, RowStore, RowView, StateError};

const TABLE: TableDefinition<&[u8], &[u8]> = TableDefinition::new("state");
const CACHE_BYTES: usize = 32 << 20;

/// An open file.
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

impl RedbRows {
    /// Opens the file, or makes an empty one.
    ///
    /// # Errors
    /// [`StateError`] with the path.
    pub fn open(path: &Path) -> Result<RedbRows, StateError> {
        let open = || -> Result<Database, Error> {
            let database = Database::builder().set_cache_size(CACHE_BYTES).create(path)?;
            let transaction = database.begin_write()?;
            transaction.open_table(TABLE)?;
            transaction.commit()?;
            Ok(database)
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
