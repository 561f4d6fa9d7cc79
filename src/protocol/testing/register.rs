//! The register of a made-up world: the newest view, and the names of all views before it.

use crate::protocol::Found;
use crate::view::{Epoch, View, ViewId};

/// A compare-and-swap cell that knows its chain. A copy of it is what an operator puts back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Cell {
    pub newest: Option<View>,
    /// The names of all views of this chain, oldest first.
    chain: Vec<ViewId>,
}

impl Cell {
    pub fn epoch(&self) -> Epoch {
        self.newest.as_ref().map_or(Epoch(0), |view| view.epoch)
    }

    /// True where this view is the newest or one before it.
    pub fn has(&self, view: ViewId) -> bool {
        self.chain.contains(&view)
    }

    /// What a reader finds that knows this view.
    pub fn found(&self, known: Option<ViewId>) -> Found {
        match (&self.newest, known) {
            (None, None) => Found::Empty,
            (None, Some(_)) => Found::Behind { newest: Epoch(0) },
            (Some(newest), Some(known)) if newest.epoch < known.epoch => {
                Found::Behind { newest: newest.epoch }
            }
            (Some(newest), Some(known)) if !self.has(known) => Found::Forked { newest: newest.clone() },
            (Some(newest), _) => Found::Holds(newest.clone()),
        }
    }

    /// True where a swap of this view would succeed.
    pub fn would_take(&self, replaces: Option<ViewId>) -> bool {
        self.newest.as_ref().map(View::id) == replaces
    }

    /// Puts a view there, whatever stands there.
    pub fn put(&mut self, view: View) {
        self.chain.push(view.id());
        self.newest = Some(view);
    }

    /// A view made by hand begins a new chain (R4).
    pub fn declare(&mut self, view: View) {
        self.chain.clear();
        self.put(view);
    }
}
