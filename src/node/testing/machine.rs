//! A place where a node lives: what survives the death of a process, and the process.

use std::any::Any;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::disk::SimDisk;
use super::register::{Cell, Way};
use super::rows::MemoryRows;
use crate::disk::Disk as _;
use crate::kv;
use crate::node::Ended;
use crate::node::engine::{Engine, FEATURE_LEVEL, Options, Parts};
use crate::node::event::{Internal, Request};
use crate::node::handle::{Settings, Shared};
use crate::node::hands::{Hands, Snapshot};
use crate::node::link::Item;
use crate::node::log::{self, Log};
use crate::node::promise::Promises;
use crate::node::recent::Recent;
use crate::node::recovery::{self, Found};
use crate::node::registrar::Ask;
use crate::node::state::{FlushJob, StateBackend};
use crate::node::work::ApplyJob;
use crate::node::writer::{WriteOperation, Writer};
use crate::protocol::{Config, Millis, Node, Restored};
use crate::skips::Skips;
use crate::view::{ClusterId, Incarnation, NodeId};

/// Small files, so that a log has many.
const SIZES: log::Options = log::Options { first_segment_bytes: 2 << 10, segment_bytes: 8 << 10 };

/// What all nodes are told at birth, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    pub heartbeat: Millis,
    pub failure_timeout: Millis,
    pub handback_after: Option<Millis>,
}

/// What an engine wants done.
#[derive(Default)]
pub struct Wanted {
    pub writes: VecDeque<WriteOperation>,
    pub asks: Vec<Ask>,
    pub sends: Vec<(NodeId, Item)>,
    pub snapshots: Vec<(NodeId, Snapshot)>,
    pub flushes: Vec<FlushJob>,
    pub works: Vec<ApplyJob>,
}

/// Hands that only take note.
#[derive(Clone, Default)]
pub struct NotingHands(Rc<RefCell<Wanted>>);

impl Hands for NotingHands {
    fn write(&mut self, operation: WriteOperation) {
        self.0.borrow_mut().writes.push_back(operation);
    }

    fn ask(&mut self, ask: Ask) {
        self.0.borrow_mut().asks.push(ask);
    }

    fn send(&mut self, to: &NodeId, item: Item) -> bool {
        self.0.borrow_mut().sends.push((to.clone(), item));
        true
    }

    fn dial(&mut self, _: &NodeId) {}

    fn hang_up(&mut self, _: &NodeId) {}

    fn send_snapshot(&mut self, to: &NodeId, snapshot: Snapshot) {
        self.0.borrow_mut().snapshots.push((to.clone(), snapshot));
    }

    fn flush(&mut self, job: FlushJob) {
        self.0.borrow_mut().flushes.push(job);
    }

    fn apply(&mut self, job: ApplyJob) {
        self.0.borrow_mut().works.push(job);
    }

    fn discard(&mut self, what: Box<dyn Any + Send>) {
        drop(what);
    }
}

/// A running process.
pub struct Process {
    pub session: u64,
    pub engine: Engine<NotingHands>,
    pub wanted: Rc<RefCell<Wanted>>,
    pub shared: Arc<Shared>,
    pub recent: Arc<Recent>,
    pub writer: Writer<SimDisk, Promises>,
    /// On their way to the disk.
    pub writes: VecDeque<WriteOperation>,
    pub inbox: Vec<Internal>,
    pub requests: Vec<Request>,
}

/// A place where a node lives.
pub struct Machine {
    pub id: NodeId,
    pub incarnation: Incarnation,
    pub disk: SimDisk,
    /// The state's file, under its name.
    pub state: Arc<Mutex<Arc<MemoryRows>>>,
    pub process: Option<Process>,
    /// May create the cluster.
    pub creates: bool,
    /// Its clock runs so fast, in per mille of the world's.
    pub rate: u64,
    pub register_cut: Arc<AtomicBool>,
    /// The feature level of the build that runs here (R37).
    pub level: u32,
}

/// What a process is born with.
pub struct Birth<'a> {
    pub session: u64,
    pub origin: u64,
    pub timing: Timing,
    pub cell: &'a Cell,
    pub base: Instant,
    pub now: Millis,
    pub min_in_sync: usize,
    pub log_keep_bytes: u64,
    pub load: Load,
}

/// How long work on the state takes.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Done of a heavy entry at a time.
    pub piece_units: u64,
    /// Every so many entries one is heavy, however light; 0: none.
    pub apart_every: u64,
}

impl Machine {
    pub fn new(id: NodeId, incarnation: Incarnation) -> Machine {
        Machine {
            id,
            incarnation,
            disk: SimDisk::new(),
            state: Arc::default(),
            process: None,
            creates: false,
            rate: 1000,
            register_cut: Arc::default(),
            level: FEATURE_LEVEL,
        }
    }

    /// The time on this machine's clock.
    pub fn clock(&self, base: Instant, now: Millis) -> Instant {
        base + Duration::from_micros(now * self.rate)
    }

    /// What a server does when it starts.
    pub fn start(&mut self, birth: &Birth<'_>) -> Result<(), String> {
        assert!(self.process.is_none(), "one process an address");
        let words = |error: &dyn std::fmt::Display| error.to_string();
        let directory = Path::new("/node");
        let disk = self.disk.clone();
        // As a data directory does it.
        let made = disk.make_directory(directory).and_then(|()| disk.sync_directory(Path::new("/")));
        made.map_err(|error| words(&error))?;
        let promises = Promises::open(&disk, directory).map_err(|error| words(&error))?;
        let promise = promises.promise();
        let (mut log, recovered) = Log::open_with(disk, &directory.join("log"), promise.commit, SIZES)
            .map_err(|error| words(&error))?;
        let rows = self.state.lock().unwrap().clone();
        let backend = StateBackend::over(rows).map_err(|error| words(&error))?;
        let store = kv::Store::open(backend).map_err(|error| words(&error))?;
        let found = recovery::put_together(&mut log, recovered, &store, promise.commit);
        let Found { outline, last, applied } = found.map_err(|error| words(&error))?;
        let config = Config {
            id: self.id.clone(),
            incarnation: self.incarnation,
            heartbeat_interval: birth.timing.heartbeat,
            failure_timeout: birth.timing.failure_timeout,
            stall_timeout: 4 * birth.timing.failure_timeout,
            handback_after: birth.timing.handback_after,
            disk: 0,
            hears_first: true,
            create: self.creates.then_some(ClusterId(7)),
        };
        let view = promise.view.clone();
        let restored = Restored { promised: promise.promised, view: view.clone(), log: outline };
        let node = Node::restore(config, restored, 0);
        let settings = Settings {
            cluster_name: "test".to_owned(),
            max_request_bytes: 1 << 20,
            max_txn_operations: 128,
            nonce: String::new(),
            min_in_sync: birth.min_in_sync,
        };
        let way = Way { cell: birth.cell.clone(), cut: self.register_cut.clone() };
        let who = (self.id.clone(), self.incarnation);
        let mut shared = Shared::new(settings, who, store, Arc::new(way), view, (last.index, applied.index));
        shared.started = self.clock(birth.base, birth.now).into_std();
        let shared = Arc::new(shared);
        let recent = Arc::new(Recent::new(log.reader()));
        recovery::load_tail(&recent, node.log().commit(), last);
        let skips = Skips::default();
        let parts =
            Parts { node, shared: shared.clone(), recent: recent.clone(), tail: last, applied, skips };
        let options = Options {
            heartbeat: Duration::from_millis(birth.timing.heartbeat),
            failure_timeout: Duration::from_millis(birth.timing.failure_timeout),
            acknowledge_early: false,
            log_keep_bytes: birth.log_keep_bytes,
            space_reserve_bytes: 32 << 10,
            origin: birth.origin,
            feature_level: self.level,
            piece_units: birth.load.piece_units,
            apart_every: birth.load.apart_every,
        };
        let hands = NotingHands::default();
        let wanted = hands.0.clone();
        self.process = Some(Process {
            session: birth.session,
            engine: Engine::new(parts, options, hands),
            wanted,
            shared,
            recent,
            writer: Writer::new(log, promises),
            writes: VecDeque::new(),
            inbox: Vec::new(),
            requests: Vec::new(),
        });
        Ok(())
    }

    /// One turn of the engine; what it wants done is left in `wanted`.
    pub fn turn(&mut self, base: Instant, now: Millis, tick: bool) -> Option<Ended> {
        let clock = self.clock(base, now);
        let process = self.process.as_mut()?;
        let (inbox, requests) = (std::mem::take(&mut process.inbox), std::mem::take(&mut process.requests));
        let ended = process.engine.turn(clock, tick, inbox.into_iter(), requests.into_iter());
        let wrote = std::mem::take(&mut process.wanted.borrow_mut().writes);
        process.writes.extend(wrote);
        ended
    }

    pub fn can_reach_register(&self) -> bool {
        !self.register_cut.load(Ordering::Relaxed)
    }

    /// A new directory: another node at the same address.
    pub fn wipe(&mut self, incarnation: Incarnation) {
        assert!(self.process.is_none(), "only a stopped node is wiped");
        self.disk = SimDisk::new();
        self.state = Arc::default();
        self.incarnation = incarnation;
    }
}
