//! Tells at once that a node's process has exited, from its pidfd. It reports deaths and nothing else: a stopped
//! or hung process is not dead, and what a death means is decided elsewhere.
//!
//! One thread. For each node it watches:
//!
//! ```text
//!             lock held, process seen            pidfd says: exited
//!   Looking ───────────────────────────► Armed ──────────────────────► Confirming
//!      ▲  │ lock free                                                   │      │ lock free, or
//!      │  └────────► Reported ◄─────────────────────────────────────────┼──────┘ held by another process
//!      └────────────────────────────────────────────────────────────────┘ still held (by a child of the dead one)
//! ```
//!
//! The pidfd only says *when* to look: the report itself always rests on the lock having been freed (R28). It is
//! about the process that was watched, or that last held the lock, and no other: the node may have been started again
//! in the same moment, or somebody unlinked its lock, so that another held one of that name. Where the process
//! cannot be seen (another pid namespace, a lock inherited by a child) the lock is looked at every
//! [`LOOK_INTERVAL`].

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};

use super::lock::{self, Holder, Liveness};
use crate::view::NodeId;

/// How often a lock is looked at whose process cannot be watched.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// How often a lock is looked at whose holder has just exited: the kernel frees it a moment before or after.
const CONFIRM_INTERVAL: Duration = Duration::from_micros(500);

/// After this many looks the lock is taken to be held by somebody else, such as a child of the dead process.
const CONFIRM_LOOKS: u32 = 40;

/// What is called, on the watching thread, for each process that was found dead: the one that was watched, and the one
/// that last held the lock where that is another. It must be quick; the next death waits for it.
/// Takes the session of the process that died (R32): another process of the same node may live.
pub type OnDeath = Box<dyn Fn(NodeId, u64) + Send>;

/// The watch; dropping it ends its thread.
#[derive(Debug)]
pub struct DeathWatch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// Orders that the thread has not seen; at most a few, since `watch` and `forget` come with views.
    orders: Mutex<Vec<Order>>,
    /// Wakes the thread.
    bell: OwnedFd,
}

#[derive(Debug)]
enum Order {
    Watch(NodeId),
    Forget(NodeId),
    Stop,
}

impl DeathWatch {
    /// Starts the thread; it watches nobody yet.
    ///
    /// # Errors
    /// Where the system gives no descriptor or no thread.
    pub fn start(register: &Path, on_death: OnDeath) -> io::Result<DeathWatch> {
        let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared { orders: Mutex::new(Vec::new()), bell });
        let mut watcher = Watcher {
            register: register.to_owned(),
            on_death,
            nodes: BTreeMap::new(),
            shared: shared.clone(),
        };
        let thread = std::thread::Builder::new().name("death-watch".into()).spawn(move || watcher.run())?;
        Ok(DeathWatch { shared, thread: Some(thread) })
    }

    /// Reports the node's death, also if it is dead already. Does nothing for a node that is being watched and was
    /// not reported since; arms it anew for one that was.
    pub fn watch(&self, node: NodeId) {
        self.order(Order::Watch(node));
    }

    /// Stops watching the node. A report that is on its way may still come.
    pub fn forget(&self, node: &NodeId) {
        self.order(Order::Forget(node.clone()));
    }

    fn order(&self, order: Order) {
        self.shared.orders.lock().unwrap_or_else(PoisonError::into_inner).push(order);
        // It fails only when the counter is full, and then the bell is ringing already.
        let _ = rustix::io::write(&self.shared.bell, &1_u64.to_ne_bytes());
    }
}

impl Drop for DeathWatch {
    fn drop(&mut self) {
        self.order(Order::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[derive(Debug)]
enum Watched {
    Looking,
    Armed { exit: OwnedFd, holder: Holder },
    Confirming { looks: u32, holder: Holder },
    Reported,
}

struct Watcher {
    register: PathBuf,
    on_death: OnDeath,
    nodes: BTreeMap<NodeId, Watched>,
    shared: Arc<Shared>,
}

impl Watcher {
    fn run(&mut self) {
        loop {
            let exited = self.wait();
            if !self.take_orders() {
                return;
            }
            for node in exited {
                if let Some(watched) = self.nodes.get_mut(&node)
                    && let Watched::Armed { holder, .. } = watched
                {
                    *watched = Watched::Confirming { looks: 0, holder: holder.clone() };
                }
            }
            self.look();
        }
    }

    /// Waits for an order, an exit, or the time for the next look; says who exited.
    fn wait(&self) -> Vec<NodeId> {
        let mut names = Vec::new();
        let mut descriptors = vec![PollFd::new(&self.shared.bell, PollFlags::IN)];
        let mut timeout = None;
        for (node, watched) in &self.nodes {
            let again = match watched {
                Watched::Armed { exit, .. } => {
                    names.push(node.clone());
                    descriptors.push(PollFd::new(exit, PollFlags::IN));
                    continue;
                }
                Watched::Reported => continue,
                Watched::Looking => LOOK_INTERVAL,
                Watched::Confirming { .. } => CONFIRM_INTERVAL,
            };
            timeout = Some(timeout.map_or(again, |earlier: Duration| earlier.min(again)));
        }
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: timeout.as_secs().cast_signed(),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        match rustix::event::poll(&mut descriptors, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("poll(2) failed on descriptors of our own: {error}"),
        }
        let rang = descriptors[1..].iter().map(|descriptor| !descriptor.revents().is_empty());
        names.into_iter().zip(rang).filter(|(_, rang)| *rang).map(|(node, _)| node).collect()
    }

    /// False: stop.
    fn take_orders(&mut self) -> bool {
        let _ = rustix::io::read(&self.shared.bell, &mut [0_u8; 8]);
        let orders = std::mem::take(&mut *self.shared.orders.lock().unwrap_or_else(PoisonError::into_inner));
        for order in orders {
            match order {
                Order::Watch(node) => {
                    let watched = self.nodes.entry(node).or_insert(Watched::Looking);
                    if matches!(watched, Watched::Reported) {
                        *watched = Watched::Looking;
                    }
                }
                Order::Forget(node) => {
                    self.nodes.remove(&node);
                }
                Order::Stop => return false,
            }
        }
        true
    }

    /// Looks at the locks of all that are neither armed nor reported.
    fn look(&mut self) {
        for (node, watched) in &mut self.nodes {
            let (next, dead) = match &*watched {
                Watched::Armed { .. } | Watched::Reported => continue,
                Watched::Looking => look(&self.register, node),
                Watched::Confirming { looks, holder } => confirm(&self.register, node, *looks, holder),
            };
            for session in dead {
                (self.on_death)(node.clone(), session);
            }
            *watched = next;
        }
    }
}

/// What comes next, and the sessions of the processes that are dead: none unless it is `Reported`.
type Found = (Watched, Vec<u64>);

fn look(register: &Path, node: &NodeId) -> Found {
    match lock::probe(register, node) {
        Liveness::Dead(last) => (Watched::Reported, vec![last.session()]),
        Liveness::Unknown(_) => (Watched::Looking, Vec::new()),
        Liveness::Alive(holder) => arm(register, node, holder),
    }
}

/// Opens the holder's pidfd and then makes sure that it is the holder's: the same start, and it still has the lock. A
/// process id of another pid namespace is the id of another process here.
fn arm(register: &Path, node: &NodeId, holder: Holder) -> Found {
    if !holder.shares_our_processes() {
        return (Watched::Looking, Vec::new());
    }
    let exit = i32::try_from(holder.pid)
        .ok()
        .filter(|pid| *pid > 0)
        .and_then(Pid::from_raw)
        .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
    let Some(exit) = exit else { return (Watched::Looking, Vec::new()) };
    let is_the_holder = lock::start_time(holder.pid).ok().flatten() == Some(holder.start_time);
    match lock::probe(register, node) {
        Liveness::Dead(last) => (Watched::Reported, vec![last.session()]),
        Liveness::Alive(now) if is_the_holder && now == holder => {
            (Watched::Armed { exit, holder }, Vec::new())
        }
        Liveness::Alive(_) | Liveness::Unknown(_) => (Watched::Looking, Vec::new()),
    }
}

fn confirm(register: &Path, node: &NodeId, looks: u32, holder: &Holder) -> Found {
    match lock::probe(register, node) {
        Liveness::Dead(last) if last == *holder => (Watched::Reported, vec![holder.session()]),
        // A later process of the node has died as well.
        Liveness::Dead(last) => (Watched::Reported, vec![holder.session(), last.session()]),
        // Started again already: it could only get the lock because the one we watched had lost it.
        Liveness::Alive(now) if now != *holder => (Watched::Reported, vec![holder.session()]),
        Liveness::Alive(now) if looks < CONFIRM_LOOKS => {
            (Watched::Confirming { looks: looks + 1, holder: now }, Vec::new())
        }
        Liveness::Alive(_) | Liveness::Unknown(_) => (Watched::Looking, Vec::new()),
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
