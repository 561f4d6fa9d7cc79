//! A running node: the loop that drives `protocol`, the log and the state on disk, and the connections to peers.
//!
//! ```text
//!   clients ──Request──▶ ┌──────────┐ ──Append, Persist…──▶ writer ──▶ log, promise
//!   peers ──inbound────▶ │  driver  │ ◀──Persisted────────────┘
//!   register ◀─registrar─│ protocol │ ──Item──▶ links ──▶ peers
//!   deaths ──watch─────▶ └──────────┘ ──apply──▶ store (reads go here directly)
//!                              └──heavy──▶ worker ──▶ store
//! ```
//!
//! The `engine` is the node; the driver is the loop around it and its hands.
//! Driver, links and inbound connections share one thread, so that no load of clients delays a heartbeat; the writer
//! and the registrar have a thread each, because they wait for disks. `api` knows a node by its [`Handle`] only.

pub mod admission;
pub mod directory;
mod driver;
mod engine;
mod event;
mod greeting;
mod handle;
mod hands;
mod hash;
mod identity;
pub(crate) mod inbound;
pub mod inspect;
pub mod lack;
mod link;
pub mod log;
mod pieces;
pub mod promise;
mod reads;
mod recent;
mod recovery;
mod registrar;
mod requests;
mod snapshot;
pub mod state;
#[cfg(test)]
pub(crate) mod testing;
mod unchanged;
pub(crate) mod wire;
mod work;
mod writer;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, oneshot};

pub use handle::{
    CommandError, Description, Handle, HeaderFacts, RoleName, Settings, StateStore, Unavailable,
};
pub use hash::HashError;
pub use wire::MAGIC as PEER_MAGIC;
pub use work::applying;

use crate::bounds::{Budget, Room};
use crate::kv;
use crate::protocol::{self, Halt, Node, Restored};
use crate::register::watch::OnDeath;
use crate::register::{DeathWatch, Held, Register};
use crate::rules::{Rule, breaks};
use crate::view::{ClusterId, Epoch, NodeId, View};
use directory::DataDirectory;
use driver::{Inputs, ThreadHands};
pub use engine::FEATURE_LEVEL;
use engine::{Options, PENDING_MAX, Parts};
use event::{Events, Internal};
use inbound::Inbound;
use log::Log;
use recent::Recent;
use recovery::Found;
pub use recovery::StartError;
use state::StateBackend;

/// Reports that may wait for the driver; beyond it peers' connections are not read.
const EVENTS_MAX: usize = 4096;
/// Bytes of entries that came from peers and are neither taken by the driver nor written; beyond it their connections
/// are not read. More than a leader sends before it commits, so that a node in sync never waits for it.
const BACKLOG_BYTES_MAX: usize = 96 << 20;
/// Connections that may be greeting at a time; where one more comes the oldest is closed.
const GREETING_PEERS_MAX: usize = 64;
/// Connections of peers that have greeted: each has one, and one more while a snapshot arrives.
const PEER_CONNECTIONS_MAX: usize = 64;

/// A disk that hangs for so many times `failure_timeout`, while other nodes' disks work, is taken for dead. Disks
/// hiccup for longer than processes do.
const STALLED: u64 = 10;

/// Makes the watch on other nodes' lives; given what to call for each death.
pub type MakeWatch = Box<dyn FnOnce(OnDeath) -> std::io::Result<DeathWatch> + Send>;

/// Everything a node needs to start.
pub struct Start {
    /// Where clients and peers call it.
    pub address: NodeId,
    /// Its data, opened and locked.
    pub directory: DataDirectory,
    /// The register of its cluster.
    pub register: Arc<dyn Register>,
    /// Makes the watch on other nodes' lives; told whom to tell.
    pub watch: MakeWatch,
    /// What the API asks about.
    pub settings: Settings,
    /// See `protocol::Config`.
    pub heartbeat_interval: Duration,
    /// See `protocol::Config`.
    pub failure_timeout: Duration,
    /// See `protocol::Config`.
    pub handback_after: Option<Duration>,
    /// Create a cluster where the register is empty.
    pub create: bool,
    /// What this node is known to have held (R24).
    pub held: Option<Held>,
    /// Test switch: acknowledge before followers hold the entry.
    pub acknowledge_early: bool,
    /// The log is kept to this size, in bytes, for followers that were away; who was away longer gets a snapshot.
    pub log_keep_bytes: u64,
    /// With less than this free on its disk, in bytes, a node takes no more than it must (R25).
    pub space_reserve_bytes: u64,
    /// Entries that an operator has ordered to be stepped over.
    pub skips: crate::skips::Skips,
}

/// How a node ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// It was asked to.
    Stopped,
    /// It was removed from the cluster.
    Removed,
    /// It must not go on.
    Halted(Halt),
    /// It cannot trust what it holds, or not write it.
    Failed(String),
}

/// A connection that begins as a peer's does.
pub struct PeerConnection {
    /// Where more of it is to be read.
    pub stream: std::net::TcpStream,
    /// What was read of it already: its first bytes.
    pub read: BytesMut,
}

/// A node that runs.
pub struct Running {
    /// To talk to it.
    pub handle: Handle,
    /// Takes peers' connections.
    pub peers: mpsc::Sender<PeerConnection>,
    /// Resolves when it has ended.
    pub ended: oneshot::Receiver<Ended>,
    /// Its data directory, to set aside what is not to be trusted.
    pub directory: Arc<DataDirectory>,
}

/// Recovers what is on disk and starts the node's threads.
///
/// # Errors
/// [`StartError`]; nothing was changed on disk but a torn tail cut off.
pub fn start(start: Start) -> Result<Running, StartError> {
    let Start { address, directory, register, settings, .. } = start;
    let promise = directory.promise().clone();
    let found = check_register(register.as_ref(), promise.view.as_ref())?;
    let (mut log, recovered) =
        Log::open(crate::disk::RealDisk, &directory.path().join("log"), promise.commit)?;
    let store = kv::Store::open(StateBackend::open(directory.path())?)?;
    let Found { outline, last, applied } =
        recovery::put_together(&mut log, recovered, &store, promise.commit)?;
    if let (Some(held), Some(view)) = (start.held, &found)
        && view.is_in_sync(&address, directory.incarnation())
        && let Some(held) = held.missing(directory.incarnation(), view, last.index)
    {
        return Err(StartError::RolledBack { last: last.index, held });
    }
    let config = protocol::Config {
        id: address.clone(),
        incarnation: directory.incarnation(),
        heartbeat_interval: millis(start.heartbeat_interval),
        failure_timeout: millis(start.failure_timeout),
        stall_timeout: STALLED * millis(start.failure_timeout),
        handback_after: start.handback_after.map(millis),
        disk: directory.disk(),
        hears_first: true,
        create: start.create.then(|| ClusterId(random_number())),
    };
    let restored = Restored { promised: promise.promised, view: promise.view.clone(), log: outline };
    let node = Node::restore(config, restored, 0);
    let shared = Arc::new(handle::Shared::new(
        settings,
        (address.clone(), directory.incarnation()),
        store,
        register.clone(),
        promise.view.clone(),
        (last.index, applied.index),
    ));
    shared.disk_bytes.store(log.disk_bytes(), Ordering::Relaxed);
    let (events, internal) = Events::channel(EVENTS_MAX);
    let (requests, clients) = mpsc::channel(PENDING_MAX);
    let recent = Arc::new(Recent::new(log.reader()));
    recovery::load_tail(&recent, node.log().commit(), last);
    let directory = Arc::new(directory);
    let writer = spawn_writer(log, directory.clone(), events.clone());
    let of_register = register.clone();
    let registrar = spawn_registrar(register, start.watch, events.clone())?;
    let (peers, connections) = mpsc::channel(64);
    let (tell, ended) = oneshot::channel();
    let secrets = greeting::Secrets::of(of_register.clone());
    let backlog = Budget::new(BACKLOG_BYTES_MAX);
    let inbound = Inbound {
        address,
        level: {
            let shared = shared.clone();
            Box::new(move || shared.feature_level.load(Ordering::Acquire))
        },
        cluster: {
            let (shared, register) = (shared.clone(), of_register);
            Box::new(move || match shared.cluster.load(Ordering::Relaxed) {
                0 => register.read(None).ok().flatten().map_or(0, |view| view.cluster.0),
                known => known,
            })
        },
        secrets: secrets.clone(),
        demands_proof: !breaks(Rule::ProvePeers),
        greeting: Room::new(GREETING_PEERS_MAX),
        greeted: Semaphore::new(PEER_CONNECTIONS_MAX),
        refusals: inbound::Refusals::default(),
        backlog: backlog.clone(),
        snapshots: Semaphore::new(1),
        events: events.clone(),
        installer: snapshot::Place { directory: Arc::new(directory.path().to_owned()) },
    };
    let skips = start.skips;
    let parts = Parts { node, shared: shared.clone(), recent: recent.clone(), tail: last, applied, skips };
    let options = Options {
        heartbeat: start.heartbeat_interval,
        failure_timeout: start.failure_timeout,
        acknowledge_early: start.acknowledge_early,
        log_keep_bytes: start.log_keep_bytes,
        space_reserve_bytes: start.space_reserve_bytes,
        origin: random_number(),
        feature_level: FEATURE_LEVEL,
        piece_units: kv::STEP_UNITS,
        apart_every: 0,
    };
    let hands = ThreadHands {
        shared: shared.clone(),
        secrets,
        recent,
        events: events.clone(),
        writer,
        registrar,
        backlog,
        unwritten: VecDeque::new(),
        applier: spawn_applier(events.clone()),
        links: BTreeMap::new(),
    };
    let inputs = Inputs { internal, clients };
    spawn_thread("replication", move || {
        replicate(driver::run(parts, options, hands, inputs), Arc::new(inbound), connections, tell);
    });
    Ok(Running { handle: Handle { shared, requests, events }, peers, ended, directory })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A random number that is not zero.
#[must_use]
pub fn random_number() -> u64 {
    rand::random::<u64>().max(1)
}

/// R11: what this node has seen is never forgotten because a register has. Answers with what stands in the register.
fn check_register(register: &dyn Register, seen: Option<&View>) -> Result<Option<View>, StartError> {
    let read = |known| register.read(known).map_err(|error| StartError::Register(error.to_string()));
    let found = read(None)?;
    match (seen, &found) {
        (None, _) => Ok(found),
        (Some(seen), None) => Err(StartError::RegisterBehind { register: Epoch(0), seen: seen.epoch }),
        (Some(seen), Some(view)) if view.cluster != seen.cluster => {
            Err(StartError::OtherCluster { data: seen.cluster, register: view.cluster })
        }
        (Some(seen), Some(view)) if view.epoch < seen.epoch => {
            Err(StartError::RegisterBehind { register: view.epoch, seen: seen.epoch })
        }
        (Some(seen), Some(_)) => read(Some(seen.id())),
    }
}

fn spawn_thread(name: &str, body: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().name(name.to_owned()).spawn(body).expect("a thread can be started");
}

fn spawn_writer(
    log: Log,
    directory: Arc<DataDirectory>,
    events: Events,
) -> std::sync::mpsc::Sender<writer::WriteOperation> {
    let (sender, operations) = std::sync::mpsc::channel();
    spawn_thread("log", move || writer::run(log, &directory, &operations, &events));
    sender
}

fn spawn_applier(events: Events) -> std::sync::mpsc::Sender<work::ApplyJob> {
    let (sender, jobs) = std::sync::mpsc::channel();
    spawn_thread("apply", move || {
        work::run(&jobs, |done| events.send_blocking(Internal::Applied(done)));
    });
    sender
}

fn spawn_registrar(
    register: Arc<dyn Register>,
    watch: MakeWatch,
    events: Events,
) -> Result<std::sync::mpsc::Sender<registrar::Ask>, StartError> {
    let (sender, asks) = std::sync::mpsc::channel();
    let deaths = events.clone();
    let tell: OnDeath = Box::new(move |node, session| {
        deaths.send_blocking(Internal::Died { node, session: Some(session) });
    });
    let watch = watch(tell).map_err(StartError::Watch)?;
    spawn_thread("register", move || registrar::run(&register, &watch, &asks, &events));
    Ok(sender)
}

/// The replication thread: driver, links and peers' connections, apart from all client load.
fn replicate(
    driver: impl Future<Output = Ended>,
    inbound: Arc<Inbound>,
    mut connections: mpsc::Receiver<PeerConnection>,
    tell: oneshot::Sender<Ended>,
) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be built");
    let ended = runtime.block_on(async move {
        tokio::spawn(async move {
            while let Some(PeerConnection { stream, read }) = connections.recv().await {
                if let Ok(stream) = TcpStream::from_std(stream) {
                    let served = inbound.clone();
                    inbound.greeting.enter(|place| inbound::serve(served, stream, read, place));
                }
            }
        });
        driver.await
    });
    let _ = tell.send(ended);
}
