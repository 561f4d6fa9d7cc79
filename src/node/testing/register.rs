//! The register of a made-up world: a chain of views, what people and disks do to it, and for each machine a way to it that
//! may be cut.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::protocol::Found;
use crate::protocol::testing::register::Cell as Chain;
use crate::register::{Register, RegisterError, SwapError};
use crate::view::{Epoch, View, ViewId};

/// The register, shared by all machines.
pub type Cell = Arc<Mutex<Stand>>;

/// What stands there.
#[derive(Default)]
pub struct Stand {
    chain: Chain,
    /// What it was after each view, oldest first.
    copies: Vec<Chain>,
    /// An older copy stands in its place, for a while.
    put_back: Option<Chain>,
    /// There is no room for another view.
    pub full: bool,
}

impl Stand {
    /// The newest view that was ever swapped in, whatever is shown.
    pub fn newest(&self) -> Option<View> {
        self.chain.newest.clone()
    }

    fn shown(&self) -> &Chain {
        self.put_back.as_ref().unwrap_or(&self.chain)
    }

    /// What a reader finds that knows this view.
    pub fn found(&self, known: Option<ViewId>) -> Found {
        self.shown().found(known)
    }

    /// `Err`: what stands there instead of the view that was to be replaced.
    pub fn swap(&mut self, replaces: Option<ViewId>, next: &View) -> Result<(), Found> {
        if self.put_back.is_some() {
            return Err(Found::Replaced);
        }
        if !self.chain.would_take(replaces) {
            return Err(self.chain.found(replaces));
        }
        self.put(next.clone());
        Ok(())
    }

    /// Puts a view there, whatever stands there.
    pub fn put(&mut self, view: View) {
        self.chain.put(view);
        self.copies.push(self.chain.clone());
    }

    /// An operator puts the newest copy back that is older than all of these epochs. False: there is none.
    pub fn put_back(&mut self, known: impl Iterator<Item = Epoch>) -> bool {
        let oldest = known.min().unwrap_or_default();
        self.put_back = self.copies.iter().rev().find(|copy| copy.epoch() < oldest).cloned();
        self.put_back.is_some()
    }

    /// The right register is back, and has room. True where another one stood there before.
    pub fn heal(&mut self) -> bool {
        self.full = false;
        self.put_back.take().is_some()
    }
}

/// One machine's way to the register.
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
    fn read(&self, known: Option<ViewId>) -> Result<Option<View>, RegisterError> {
        self.check()?;
        let path = PathBuf::from("register");
        let epoch = known.map_or(Epoch(0), |known| known.epoch);
        match self.cell.lock().unwrap().found(known) {
            Found::Empty => Ok(None),
            Found::Holds(view) => Ok(Some(view)),
            Found::Behind { newest } => Err(RegisterError::Backwards { path, held: newest, known: epoch }),
            Found::Forked { newest } => {
                Err(RegisterError::Forked { path, known: epoch, newest: Box::new(newest) })
            }
            Found::Replaced => Err(RegisterError::Replaced { path, what: "an older copy" }),
        }
    }

    fn prepare(&self, _: &View) -> Result<(), RegisterError> {
        self.check()
    }

    fn swap(&self, replaces: Option<ViewId>, next: &View) -> Result<(), SwapError> {
        self.cell.lock().unwrap().swap(replaces, next).map_err(|found| match found {
            Found::Holds(view) => SwapError::Conflict(view),
            _ => SwapError::Failed(unreachable()),
        })
    }

    fn has_newer(&self, than: Epoch) -> Result<bool, RegisterError> {
        self.check()?;
        let stands = self.cell.lock().unwrap().shown().epoch();
        if stands < than { Err(unreachable()) } else { Ok(stands > than) }
    }
}
