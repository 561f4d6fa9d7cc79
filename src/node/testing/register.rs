//! The register of a made-up world: a cell, and for each machine a way to it that may be cut.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::register::{Register, RegisterError, SwapError};
use crate::view::{Epoch, View};

/// The cell.
pub type Cell = Arc<Mutex<Option<View>>>;

/// One machine's way to the cell.
pub struct Way {
    pub cell: Cell,
    pub cut: Arc<AtomicBool>,
}

fn unreachable() -> RegisterError {
    RegisterError::Io {
        doing: "reaching",
        path: PathBuf::from("register"),
        source: io::Error::other("the way is cut"),
    }
}

impl Way {
    fn check(&self) -> Result<(), RegisterError> {
        if self.cut.load(Ordering::Relaxed) { Err(unreachable()) } else { Ok(()) }
    }
}

impl Register for Way {
    fn read(&self) -> Result<Option<View>, RegisterError> {
        self.check()?;
        Ok(self.cell.lock().unwrap().clone())
    }

    fn swap(&self, expected: Epoch, next: &View) -> Result<(), SwapError> {
        let mut cell = self.cell.lock().unwrap();
        let stands = cell.as_ref().map_or(Epoch(0), |view| view.epoch);
        if stands == expected {
            *cell = Some(next.clone());
            return Ok(());
        }
        Err(cell.clone().map_or(SwapError::Failed(unreachable()), SwapError::Conflict))
    }

    fn has_newer(&self, than: Epoch) -> Result<bool, RegisterError> {
        self.check()?;
        let stands = self.cell.lock().unwrap().as_ref().map_or(Epoch(0), |view| view.epoch);
        if stands < than { Err(unreachable()) } else { Ok(stands > than) }
    }
}
