//! The rows of the state in memory. A flush is one step: it is there whole or not at all.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use crate::node::state::{Changed, Row, RowStore, RowView, StateError};

type Rows = BTreeMap<Vec<u8>, Bytes>;

/// What a file of rows would hold.
#[derive(Default)]
pub struct MemoryRows(Mutex<Arc<Rows>>);

struct MemoryView(Arc<Rows>);

impl RowStore for MemoryRows {
    fn view(&self) -> Result<Box<dyn RowView>, StateError> {
        Ok(Box::new(MemoryView(self.0.lock().unwrap().clone())))
    }

    fn write(&self, rows: &Changed, _durable: bool) -> Result<(), StateError> {
        let mut all = self.0.lock().unwrap();
        let all = Arc::make_mut(&mut all);
        for (key, value) in rows {
            match value {
                Some(value) => all.insert(key.clone(), value.clone()),
                None => all.remove(key),
            };
        }
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.0.lock().unwrap().iter().map(|(key, value)| (key.len() + value.len()) as u64).sum()
    }
}

impl RowView for MemoryView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        Ok(self.0.get(key).cloned())
    }

    fn page(&self, after: Option<&[u8]>, bytes_max: usize) -> Result<Vec<Row>, StateError> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let (mut rows, mut bytes) = (Vec::new(), 0);
        for (key, value) in self.0.range::<[u8], _>((start, Bound::Unbounded)) {
            bytes += key.len() + value.len();
            rows.push((Bytes::copy_from_slice(key), value.clone()));
            if bytes >= bytes_max {
                break;
            }
        }
        Ok(rows)
    }
}
