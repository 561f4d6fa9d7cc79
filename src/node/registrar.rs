//! The thread that talks to the register, so that a slow disk never stops the driver, and that keeps the watch on
//! other nodes' lives. When nothing waits it tidies the register up.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::event::{Events, Internal};
use crate::clock;
use crate::protocol::{Found, NotPrepared, RegisterUnreachable, Swapped};
use crate::register::{DeathWatch, Register, RegisterError, SwapError};
use crate::view::{Epoch, NodeId, View, ViewId};

/// How long after a view changed the register is tidied up: a change of views seldom comes alone.
const TIDY_SOON: Duration = Duration::from_millis(20);
/// How long after that, where nothing changes: what others used up is made again.
const TIDY_SELDOM: Duration = Duration::from_secs(60);
/// And where there was no room.
const TIDY_AGAIN: Duration = Duration::from_secs(5);

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
    /// The feature level of the log is above 0 (R37): what came with it may be made, if it is not there.
    EnsureSecret,
}

/// Runs until the asking side is gone.
pub fn run(register: &Arc<dyn Register>, watch: &DeathWatch, asks: &mpsc::Receiver<Ask>, events: &Events) {
    let register = register.as_ref();
    let mut registrar =
        Registrar { register, said: Default::default(), newest: Epoch(0), due: clock::now() + TIDY_SOON };
    loop {
        let ask = match asks.recv_timeout(registrar.due.saturating_duration_since(clock::now())) {
            Ok(ask) => ask,
            Err(RecvTimeoutError::Timeout) => {
                registrar.tidy();
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        match ask {
            Ask::Read(known) => events.send_blocking(Internal::RegisterRead(registrar.read(known))),
            Ask::Prepare(next) => events.send_blocking(Internal::Prepared(registrar.prepare(&next))),
            Ask::Swap { replaces, next } => {
                events.send_blocking(Internal::Swapped(registrar.swap(replaces, &next)));
            }
            Ask::Watch(node) => watch.watch(node),
            Ask::Forget(node) => watch.forget(&node),
            Ask::EnsureSecret => {
                if let Err(error) = register.ensure_secret() {
                    tracing::warn!("cannot make the secret of the cluster, trying again later: {error}");
                }
            }
        }
    }
}

/// What is done with the register; each trouble is said once for as long as it lasts, since all of it is tried again and
/// again.
#[derive(Clone, Copy)]
enum Doing {
    Read,
    Prepare,
    Swap,
    Tidy,
}

struct Registrar<'a> {
    register: &'a dyn Register,
    /// Of each doing the trouble that was said last.
    said: [Option<String>; 4],
    newest: Epoch,
    /// When to tidy up.
    due: Instant,
}

impl Registrar<'_> {
    fn read(&mut self, known: Option<ViewId>) -> Result<Found, RegisterUnreachable> {
        let answer = match self.register.read(known) {
            Ok(view) => {
                if let Some(view) = &view
                    && view.epoch > self.newest
                {
                    self.newest = view.epoch;
                    self.tidy_within(TIDY_SOON);
                }
                Ok(view.map_or(Found::Empty, Found::Holds))
            }
            Err(error) => {
                self.say(Doing::Read, || format!("cannot read the register: {error}"));
                return found_instead(error).ok_or(RegisterUnreachable);
            }
        };
        self.worked(Doing::Read);
        answer
    }

    fn prepare(&mut self, next: &View) -> Result<(), NotPrepared> {
        self.tidy_within(TIDY_SOON);
        match self.register.prepare(next) {
            Ok(()) => {
                self.worked(Doing::Prepare);
                Ok(())
            }
            Err(error) => {
                self.say(Doing::Prepare, || format!("the register cannot take a view: {error}"));
                Err(NotPrepared)
            }
        }
    }

    fn swap(&mut self, replaces: Option<ViewId>, next: &View) -> Swapped {
        self.tidy_within(TIDY_SOON);
        let outcome = match self.register.swap(replaces, next) {
            Ok(()) => Swapped::Won,
            Err(SwapError::Conflict(view)) => Swapped::Lost(Found::Holds(view)),
            Err(SwapError::Failed(error)) => {
                self.say(Doing::Swap, || format!("view {} was not written: {error}", next.epoch));
                return found_instead(error).map_or(Swapped::Failed, Swapped::Lost);
            }
            Err(SwapError::Unknown(error)) => {
                let text = || format!("cannot tell whether view {} was written: {error}", next.epoch);
                self.say(Doing::Swap, text);
                return Swapped::Unknown;
            }
        };
        self.worked(Doing::Swap);
        outcome
    }

    fn tidy(&mut self) {
        let again = match self.register.tidy() {
            Ok(()) => {
                self.worked(Doing::Tidy);
                TIDY_SELDOM
            }
            Err(error) => {
                self.say(Doing::Tidy, || {
                    format!("the register cannot be tidied up, which is tried again: {error}")
                });
                TIDY_AGAIN
            }
        };
        self.due = clock::now() + again;
    }

    fn tidy_within(&mut self, time: Duration) {
        self.due = self.due.min(clock::now() + time);
    }

    fn say(&mut self, doing: Doing, text: impl FnOnce() -> String) {
        let text = text();
        let said = &mut self.said[doing as usize];
        if said.as_ref() != Some(&text) {
            tracing::error!("{text}");
            *said = Some(text);
        }
    }

    fn worked(&mut self, doing: Doing) {
        self.said[doing as usize] = None;
    }
}

/// What a register holds in place of what was known (R11); `None`: it gave no answer.
fn found_instead(error: RegisterError) -> Option<Found> {
    match error {
        RegisterError::Backwards { held, .. } => Some(Found::Behind { newest: held }),
        RegisterError::Forked { newest, .. } => Some(Found::Forked { newest: *newest }),
        RegisterError::Replaced { .. } => Some(Found::Replaced),
        RegisterError::Io { .. }
        | RegisterError::Place(_)
        | RegisterError::Damaged { .. }
        | RegisterError::TooBig { .. }
        | RegisterError::OtherCluster { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::register::format::tests::view;

    /// A register that answers what it is told to.
    #[derive(Default)]
    struct Scripted {
        swaps: Mutex<Vec<SwapError>>,
        tidied: Mutex<u32>,
    }

    impl Register for Scripted {
        fn read(&self, _: Option<ViewId>) -> Result<Option<View>, RegisterError> {
            Ok(None)
        }

        fn prepare(&self, _: &View) -> Result<(), RegisterError> {
            Err(RegisterError::TooBig { bytes: 1 << 20 })
        }

        fn swap(&self, _: Option<ViewId>, _: &View) -> Result<(), SwapError> {
            self.swaps.lock().unwrap().pop().map_or(Ok(()), Err)
        }

        fn has_newer(&self, _: Epoch) -> Result<bool, RegisterError> {
            Ok(false)
        }

        fn tidy(&self) -> Result<(), RegisterError> {
            *self.tidied.lock().unwrap() += 1;
            Err(RegisterError::TooBig { bytes: 1 })
        }
    }

    #[test]
    fn a_sure_no_is_told_from_what_is_not_known_and_from_another_register() {
        let io = || RegisterError::Io {
            doing: "naming",
            path: "r".into(),
            source: std::io::ErrorKind::StorageFull.into(),
        };
        let behind = RegisterError::Backwards { path: "r".into(), held: Epoch(2), known: Epoch(4) };
        let newest = Box::new(view(9, 2));
        let forked = RegisterError::Forked { path: "r".into(), known: Epoch(4), newest };
        let replaced = RegisterError::Replaced { path: "r".into(), what: "it was moved" };
        let register = Scripted::default();
        let mut registrar =
            Registrar { register: &register, said: Default::default(), newest: Epoch(0), due: clock::now() };
        for (error, expected) in [
            (SwapError::Failed(io()), Swapped::Failed),
            (SwapError::Unknown(io()), Swapped::Unknown),
            (SwapError::Conflict(view(5, 1)), Swapped::Lost(Found::Holds(view(5, 1)))),
            (SwapError::Failed(behind), Swapped::Lost(Found::Behind { newest: Epoch(2) })),
            (SwapError::Failed(forked), Swapped::Lost(Found::Forked { newest: view(9, 2) })),
            (SwapError::Failed(replaced), Swapped::Lost(Found::Replaced)),
        ] {
            register.swaps.lock().unwrap().push(error);
            assert_eq!(registrar.swap(None, &view(1, 1)), expected);
        }
        assert_eq!(registrar.swap(None, &view(1, 1)), Swapped::Won);
        assert_eq!(registrar.prepare(&view(1, 1)), Err(NotPrepared));
    }

    #[test]
    fn what_could_not_be_tidied_up_is_tried_again_after_a_time() {
        let register = Scripted::default();
        let due = clock::now();
        let mut registrar =
            Registrar { register: &register, said: Default::default(), newest: Epoch(0), due };
        registrar.tidy();
        assert_eq!(*register.tidied.lock().unwrap(), 1);
        assert!(registrar.due > due && registrar.due <= clock::now() + TIDY_AGAIN);
        assert_eq!(registrar.swap(None, &view(1, 1)), Swapped::Won);
        assert!(registrar.due <= clock::now() + TIDY_SOON, "a new view takes room");
    }
}
