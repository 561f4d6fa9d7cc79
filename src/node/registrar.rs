//! The thread that talks to the register, so that a slow disk never stops the driver, and that keeps the watch on
//! other nodes' lives.

use std::sync::Arc;
use std::sync::mpsc;

use super::event::{Events, Internal};
use crate::protocol::{RegisterUnreachable, Swapped};
use crate::register::{DeathWatch, Register, SwapError};
use crate::view::{Epoch, NodeId, View};

/// One thing to do.
pub enum Ask {
    /// Read the register.
    Read,
    /// Swap this view in; it follows the epoch before its own.
    Swap(View),
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
            Ask::Read => {
                let read = register.read().map_err(|error| {
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
            Ask::Swap(next) => {
                let outcome = match register.swap(Epoch(next.epoch.0 - 1), &next) {
                    Ok(()) => Swapped::Won,
                    Err(SwapError::Conflict(view)) => Swapped::Lost(view),
                    // Where nothing was written the same swap may be sent again, just as where that is not known.
                    Err(SwapError::Failed(error) | SwapError::Unknown(error)) => {
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
