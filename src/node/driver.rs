//! The loop around the engine: it gathers a batch of events, gives the engine a turn, and has hands for what the
//! engine wants done: threads for the disk and the register, a task for each link.

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc as std_mpsc};

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Ended;
use super::engine::{Engine, FEATURE_LEVEL, Options, Parts};
use super::event::{Events, Internal, Reported, Request};
use super::greeting::Secrets;
use super::handle::Shared;
use super::hands::{Hands, Snapshot};
use super::link::{Item, Link};
use super::recent::Recent;
use super::registrar::Ask;
use super::snapshot;
use super::state::{Flush, FlushJob};
use super::wire::FORMAT;
use super::work::ApplyJob;
use super::writer::WriteOperation;
use crate::bounds::{Budget, Charge};
use crate::proto::replcluster::Hello;
use crate::protocol::WriteId;
use crate::view::NodeId;

/// Events taken in one turn.
const TURN_EVENTS: usize = 1024;

/// What comes in from outside.
pub struct Inputs {
    /// From the node's own parts.
    pub internal: mpsc::Receiver<Reported>,
    /// From clients and operators.
    pub clients: mpsc::Receiver<Request>,
}

/// Threads, sockets and tasks.
pub struct ThreadHands {
    /// What handles see.
    pub shared: Arc<Shared>,
    /// By which peers know each other.
    pub secrets: Arc<Secrets>,
    /// The newest entries.
    pub recent: Arc<Recent>,
    /// Where what was done is reported.
    pub events: Events,
    /// The writer's thread.
    pub writer: std_mpsc::Sender<WriteOperation>,
    /// The registrar's thread.
    pub registrar: std_mpsc::Sender<Ask>,
    /// Entries that came from peers and are not written yet; peers wait while it is full.
    pub backlog: Budget,
    /// What the writer's queue holds of it, by order.
    pub unwritten: VecDeque<(WriteId, Charge)>,
    /// The thread that carries out heavy entries.
    pub applier: std_mpsc::Sender<ApplyJob>,
    /// One to each peer.
    pub links: BTreeMap<NodeId, Link>,
}

impl ThreadHands {
    fn hello(&self, to: &NodeId) -> Hello {
        Hello {
            cluster_id: self.shared.cluster.load(Ordering::Relaxed),
            from: self.shared.address.to_string(),
            incarnation: self.shared.incarnation.0,
            to: to.to_string(),
            format: FORMAT,
            session: crate::register::session(),
            feature_level: FEATURE_LEVEL,
            ..Hello::default()
        }
    }
}

impl Hands for ThreadHands {
    fn write(&mut self, operation: WriteOperation) {
        if let WriteOperation::Append { write, frames, .. } = &operation {
            self.unwritten.push_back((*write, self.backlog.charge(frames.len())));
        }
        self.writer.send(operation).expect("the writer ends only with the process");
    }

    fn written(&mut self, write: WriteId) {
        while self.unwritten.pop_front_if(|(first, _)| *first <= write).is_some() {}
    }

    fn ask(&mut self, ask: Ask) {
        self.registrar.send(ask).expect("the registrar ends only with the process");
    }

    fn send(&mut self, to: &NodeId, item: Item) -> bool {
        if let Some(link) = self.links.get(to) {
            return link.send(item);
        }
        let link = Link::open(self.hello(to), self.secrets.clone(), self.recent.clone(), self.events.clone());
        let sent = link.send(item);
        self.links.insert(to.clone(), link);
        sent
    }

    fn dial(&mut self, to: &NodeId) {
        if let Some(link) = self.links.get(to) {
            link.dial_now();
        }
    }

    fn hang_up(&mut self, to: &NodeId) {
        self.links.remove(to);
    }

    fn send_snapshot(&mut self, to: &NodeId, snapshot: Snapshot) {
        let (hello, to, events) = (self.hello(to), to.clone(), self.events.clone());
        let secrets = self.secrets.clone();
        tokio::spawn(async move {
            match snapshot::send(hello, &secrets, snapshot).await {
                Ok(rows) => tracing::info!("{to} has the snapshot of {rows} rows"),
                Err(error) => tracing::warn!("snapshot for {to}: {error}"),
            }
            events.send(Internal::SnapshotSent(to)).await;
        });
    }

    fn apply(&mut self, job: ApplyJob) {
        self.applier.send(job).expect("the applier ends only with the process");
    }

    fn discard(&mut self, what: Box<dyn Any + Send>) {
        tokio::task::spawn_blocking(move || drop(what));
    }

    fn flush(&mut self, job: FlushJob) {
        let events = self.events.clone();
        tokio::task::spawn_blocking(move || {
            events.send_blocking(match job.run() {
                Ok(Flush::Done(done)) => Internal::Flushed(done),
                Ok(Flush::Waits(rest, lack)) => Internal::FlushWaits(rest, lack),
                Err(error) => Internal::Failed(format!("cannot write the state: {error}")),
            });
        });
    }
}

/// Runs until the node ends, and says why.
pub async fn run(parts: Parts, options: Options, hands: ThreadHands, inputs: Inputs) -> Ended {
    let Inputs { mut internal, mut clients } = inputs;
    let mut ticks = tokio::time::interval(options.heartbeat / 4);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut engine = Engine::new(parts, options, hands);
    let mut reports = Vec::with_capacity(TURN_EVENTS);
    let mut requests = Vec::with_capacity(TURN_EVENTS);
    loop {
        let room = engine.room().min(TURN_EVENTS);
        let mut tick = false;
        tokio::select! {
            biased;
            _ = ticks.tick() => tick = true,
            count = internal.recv_many(&mut reports, TURN_EVENTS) => if count == 0 { return Ended::Stopped },
            _ = clients.recv_many(&mut requests, room), if room > 0 => {}
            () = std::future::ready(()), if engine.is_busy() => {}
        }
        // Whatever else has gathered belongs to the same batch.
        while reports.len() < TURN_EVENTS
            && let Ok(report) = internal.try_recv()
        {
            reports.push(report);
        }
        while requests.len() < room
            && let Ok(request) = clients.try_recv()
        {
            requests.push(request);
        }
        if let Some(ended) = engine.turn(
            now(),
            tick,
            reports.drain(..).map(|reported: Reported| reported.event),
            requests.drain(..),
        ) {
            return ended;
        }
        tokio::task::yield_now().await;
    }
}

fn now() -> Instant {
    Instant::from_std(crate::clock::now())
}
