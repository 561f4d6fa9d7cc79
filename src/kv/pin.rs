//! Readers that pause. What they still have to read must not be removed, though it was compacted meanwhile.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The revisions that somebody reads, and how many do.
#[derive(Debug, Default)]
pub(super) struct Pins {
    held: Mutex<BTreeMap<i64, usize>>,
}

impl Pins {
    fn held(&self) -> std::sync::MutexGuard<'_, BTreeMap<i64, usize>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The oldest revision that is read.
    pub(super) fn oldest(&self) -> Option<i64> {
        self.held().keys().next().copied()
    }
}

/// Keeps everything that can be read at a revision or later from being removed, until it is dropped.
#[derive(Debug)]
pub struct Pin {
    pins: Arc<Pins>,
    revision: i64,
}

impl Pin {
    /// Only while the revision can be read: what is gone already does not come back.
    pub(super) fn new(pins: &Arc<Pins>, revision: i64) -> Pin {
        *pins.held().entry(revision).or_default() += 1;
        Pin { pins: pins.clone(), revision }
    }

    /// False where the store was replaced by another.
    pub(super) fn is_of(&self, pins: &Arc<Pins>) -> bool {
        Arc::ptr_eq(&self.pins, pins)
    }
}

impl Clone for Pin {
    fn clone(&self) -> Pin {
        Pin::new(&self.pins, self.revision)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut held = self.pins.held();
        if let Some(count) = held.get_mut(&self.revision) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.revision);
            }
        }
    }
}
