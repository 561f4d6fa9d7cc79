//! The thread that talks to the register, so that a slow disk never stops the driver, and that keeps the watch on
//! other nodes' lives.

use std::sync::Arc;
use std::sync::mpsc;

use super::event::{Events, Internal};
use crate::protocol::{Found, NotPrepared, RegisterUnreachable, Swapped};
use crate::register::{DeathWatch, Register, RegisterError, SwapError};
use crate::view::{Epoch, NodeId, VIEW_BYTES_MAX, View, ViewId};

/// One thing to do.
pub enum Ask {
    /// Read the register, and look whether this view is in its chain.
    Read(Option<ViewId>),
    /// Make ready what a swap of this view needs.
    Prepare(View),
    /// Swap this view in; it succeeds only where the other one is the newest.
    Swap {
        /// The view that is replaced.
        replaces: Option<ViewId>,
        /// The view to swap in.
        next: View,
    },
    /// Tell when that node dies; at once if it is dead.
    Watch(NodeId),
    /// Its death is of no more interest.
    Forget(NodeId),
}

/// Runs until the asking side is gone.
pub fn run(register: &Arc<dyn Register>, watch: &DeathWatch, asks: &mpsc::Receiver<Ask>, events: &Events) {
    let mut said = None;
    while let Ok(ask) = asks.recv() {
        match ask {
            Ask::Read(known) => {
                let read = match register.read() {
                    Err(RegisterError::Backwards { held, .. }) => Ok(Found::Behind { newest: held }),
                    read => read.map(|view| found(view, known)),
                };
                let read = read.map_err(|error| {
                    // A node that waits reads again and again: the same trouble is said once.
                    let text = error.to_string();
                    if said.as_ref() != Some(&text) {
                        tracing::error!("cannot read the register: {text}");
                        said = Some(text);
                    }
                    RegisterUnreachable
                });
                if read.is_ok() {
                    said = None;
                }
                events.send_blocking(Internal::RegisterRead(read));
            }
            Ask::Prepare(next) => {
                let fits = next.bytes() <= VIEW_BYTES_MAX;
                events.send_blocking(Internal::Prepared(if fits { Ok(()) } else { Err(NotPrepared) }));
            }
            Ask::Swap { replaces, next } => {
                let outcome = match register.swap(Epoch(next.epoch.0 - 1), &next) {
                    Ok(()) => Swapped::Won,
                    Err(SwapError::Conflict(view)) => Swapped::Lost(found(Some(view), replaces)),
                    Err(SwapError::Failed(error)) => {
                        tracing::error!("view {} was not written: {error}", next.epoch);
                        Swapped::Failed
                    }
                    Err(SwapError::Unknown(error)) => {
                        tracing::error!("cannot tell whether view {} was written: {error}", next.epoch);
                        Swapped::Unknown
                    }
                };
                events.send_blocking(Internal::Swapped(outcome));
            }
            Ask::Watch(node) => watch.watch(node),
            Ask::Forget(node) => watch.forget(&node),
        }
    }
}

/// What stands in the register, seen from the view that is known.
pub fn found(view: Option<View>, known: Option<ViewId>) -> Found {
    match (view, known) {
        (None, None) => Found::Empty,
        (None, Some(_)) => Found::Behind { newest: Epoch(0) },
        (Some(view), Some(known)) if view.epoch < known.epoch => Found::Behind { newest: view.epoch },
        (Some(view), Some(known)) if view.epoch == known.epoch && view.id() != known => {
            Found::Forked { newest: view }
        }
        (Some(view), _) => Found::Holds(view),
    }
}
