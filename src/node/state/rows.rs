//! Where the rows of the state stand: ordered keys and values, changed all at once or not at all.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bytes::Bytes;

use crate::node::lack::Lack;

/// The state could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", path.display())]
pub struct StateError {
    /// The file.
    pub path: PathBuf,
    /// In words.
    pub why: String,
}

/// Rows that change; `None` removes one.
pub type Changed = BTreeMap<Vec<u8>, Option<Bytes>>;

/// A key and its value.
pub type Row = (Bytes, Bytes);

/// Rows on a disk.
pub trait RowStore: Send + Sync {
    /// Everything as it is now; it stays so while the rows go on.
    ///
    /// # Errors
    /// [`StateError`].
    fn view(&self) -> Result<Box<dyn RowView>, StateError>;
    /// Changes all of these rows or none. Where not `durable`, a power cut may take it back, together with all that
    /// came after.
    ///
    /// # Errors
    /// [`StateError`]; what was not durable before is not known then (R21).
    fn write(&self, rows: &Changed, durable: bool) -> Result<(), StateError>;
    /// Does what a write has put off for want of room; answers with what is missing for the rest. Until there is
    /// nothing left, what was written is not durable, and nothing else is written.
    ///
    /// # Errors
    /// [`StateError`]; the process must end (R21).
    fn catch_up(&self) -> Result<Option<Lack>, StateError> {
        Ok(None)
    }
    /// What it takes on the disk, in bytes.
    fn bytes(&self) -> u64;
    /// False where a write of so many rows, with so many bytes, may find no room (R25).
    fn has_room_for(&self, _rows: usize, _bytes: usize) -> bool {
        true
    }
}

/// The rows at one moment.
pub trait RowView: Send + Sync {
    /// One value.
    ///
    /// # Errors
    /// [`StateError`].
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError>;
    /// Rows after a key, in order, until they are `bytes_max` together; none where there are no more.
    ///
    /// # Errors
    /// [`StateError`].
    fn page(&self, after: Option<&[u8]>, bytes_max: usize) -> Result<Vec<Row>, StateError>;
}
