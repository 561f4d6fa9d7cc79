//! All machines, and what is under way between them. Mechanics only: when something happens is decided by the storm.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::clients::Clients;
use super::machine::{Birth, Load, Machine, Process, Timing};
use super::register::Cell;
use super::rows::MemoryRows;
use crate::kv;
use crate::node::Ended;
use crate::node::engine::FEATURE_LEVEL;
use crate::node::event::{ArrivedSnapshot, Internal};
use crate::node::inbound::event_of;
use crate::node::link::{ENTRIES_BYTES, Item};
use crate::node::log::Position;
use crate::node::recent::Recent;
use crate::node::registrar::Ask;
use crate::node::snapshot;
use crate::node::state::{Changed, FlushJob, Row, RowStore as _, StateBackend};
use crate::node::wire::{BadFrame, append_body, put, take};
use crate::node::work::ApplyJob;
use crate::node::writer::{Failure, WriteOperation};
use crate::proto::replcluster::Frame;
use crate::protocol::testing::random::Random;
use crate::protocol::testing::spread::letter;
use crate::protocol::{Mark, Millis};
use crate::view::{Checksum, Epoch, Incarnation, Index, NodeId, View, ViewId};

/// A sentence that does not hold, and where.
#[derive(Debug)]
pub struct Broken(pub &'static str, pub String);

/// A frame on a connection.
#[derive(Clone, Debug)]
pub struct Flight {
    pub from: usize,
    pub to: usize,
    pub from_session: u64,
    pub to_session: u64,
    /// The connection; what is on a broken one is lost.
    pub connection: u64,
    pub bytes: Bytes,
    /// No node of this cluster has sent it.
    pub forged: bool,
}

/// A snapshot on a connection of its own.
pub struct Shipment {
    pub from: usize,
    pub from_session: u64,
    pub to: usize,
    pub to_session: u64,
    pub position: Position,
    pub rows: Vec<Row>,
}

/// A connection in one direction.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    pub number: u64,
    pub to_session: u64,
    /// When the last frame arrives.
    pub arrives: Millis,
}

/// What the engines want done, for the storm to give it its time.
#[expect(clippy::large_enum_variant, reason = "few at a time, in a simulation")]
pub enum Wish {
    Send(Flight),
    Dial { from: usize, session: u64, to: usize },
    Ship(Shipment),
    Flush { machine: usize, session: u64, job: FlushJob },
    Work { machine: usize, session: u64, job: ApplyJob },
    Ask { machine: usize, session: u64, ask: Ask },
}

/// See the head of the file.
pub struct World {
    pub now: Millis,
    pub base: Instant,
    pub timing: Timing,
    pub min_in_sync: usize,
    pub machines: Vec<Machine>,
    pub cell: Cell,
    pub clients: Clients,
    pub connections: BTreeMap<(usize, usize), Connection>,
    dialling: BTreeSet<(usize, usize)>,
    pub wishes: Vec<Wish>,
    /// Every view that ever stood in the register, by epoch.
    pub views: BTreeMap<Epoch, View>,
    /// What was applied at each index: its epoch and the running checksum up to it.
    applied: BTreeMap<Index, Position>,
    /// When the newest view came to stand.
    newest_since: Millis,
    /// Until when each machine cannot have known: it was stopped.
    pub excused_until: Vec<Millis>,
    /// The highest commit index of each machine, and when it last rose where the register could not be read: a set that
    /// is whole goes on without the register (R10), and that is as good a proof.
    proved_whole: Vec<(Index, Millis)>,
    /// Which process served in which epoch.
    served: BTreeMap<u64, u64>,
    pub trace: Option<Vec<String>>,
    next: u64,
    /// Processes that ended because their disk failed: expected where disks are made to fail.
    pub failures_expected: bool,
    /// Entries that cannot be read were put into the log.
    pub refusals_expected: bool,
    /// Processes draw their sessions from a set of two.
    pub sessions_repeat: bool,
}

impl World {
    pub fn new(count: usize, timing: Timing, clients: Clients, base: Instant) -> World {
        let mut world = World {
            now: 1000,
            base,
            timing,
            min_in_sync: 1,
            machines: Vec::new(),
            cell: Cell::default(),
            clients,
            connections: BTreeMap::new(),
            dialling: BTreeSet::new(),
            wishes: Vec::new(),
            views: BTreeMap::new(),
            applied: BTreeMap::new(),
            newest_since: 0,
            excused_until: vec![0; count],
            proved_whole: vec![(Index(0), 0); count],
            served: BTreeMap::new(),
            trace: None,
            next: 1,
            failures_expected: false,
            refusals_expected: false,
            sessions_repeat: false,
        };
        for machine in 0..count {
            let id = NodeId::parse(&format!("{}:1", letter(machine))).expect("an address");
            let incarnation = world.new_incarnation();
            world.machines.push(Machine::new(id, incarnation));
        }
        world
    }

    pub fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    pub fn new_incarnation(&mut self) -> Incarnation {
        Incarnation(self.number())
    }

    pub fn note(&mut self, text: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>6} {}", self.now, text()));
        }
    }

    pub fn machine_of(&self, node: &NodeId) -> usize {
        self.machines.iter().position(|machine| machine.id == *node).expect("a node of this cluster")
    }

    pub fn session(&self, machine: usize) -> Option<u64> {
        self.machines[machine].process.as_ref().map(|process| process.session)
    }

    pub fn runs(&self, machine: usize, session: u64) -> bool {
        self.session(machine) == Some(session)
    }

    /// The session that a process says it is. Here each has a number of its own; where sessions come again, they are drawn
    /// from a set of two (R32).
    pub fn said(&self, session: u64) -> u64 {
        if self.sessions_repeat { 1 + session % 2 } else { session }
    }

    pub fn register(&self) -> Option<View> {
        self.cell.lock().unwrap().newest()
    }

    // --- life and death ---

    pub fn start(
        &mut self,
        machine: usize,
        origin: u64,
        log_keep_bytes: u64,
        load: Load,
    ) -> Result<(), String> {
        let session = self.number();
        let birth = Birth {
            session,
            origin,
            timing: self.timing,
            cell: &self.cell,
            base: self.base,
            now: self.now,
            min_in_sync: self.min_in_sync,
            log_keep_bytes,
            load,
        };
        let outcome = self.machines[machine].start(&birth);
        self.note(|| match &outcome {
            Ok(()) => format!("{} starts", letter(machine)),
            Err(why) => format!("{} does not start: {why}", letter(machine)),
        });
        outcome
    }

    /// The process is gone; what it had written is in the machine's memory, unless the power went too.
    pub fn kill(&mut self, machine: usize, power: Option<&mut Random>) {
        self.note(|| {
            format!("{} {}", letter(machine), if power.is_some() { "loses power" } else { "is killed" })
        });
        let place = &mut self.machines[machine];
        place.process = None;
        match power {
            Some(random) => place.disk.power_cut(random),
            None => place.disk.crash(),
        }
        self.clients.process_gone(machine);
        self.connections.retain(|link, _| link.0 != machine && link.1 != machine);
        self.dialling.retain(|link| link.0 != machine);
    }

    pub fn wipe(&mut self, machine: usize) {
        self.note(|| format!("{} gets an empty directory", letter(machine)));
        let incarnation = self.new_incarnation();
        self.machines[machine].wipe(incarnation);
    }

    // --- turns ---

    pub fn report(&mut self, machine: usize, report: Internal) {
        if let Some(process) = &mut self.machines[machine].process {
            process.inbox.push(report);
        }
    }

    /// One turn of a machine's engine, and everything that is checked after it.
    pub fn turn(&mut self, machine: usize, tick: bool) -> Result<(), Broken> {
        let Some(session) = self.session(machine) else { return Ok(()) };
        let before = self.facts(machine);
        let ended = self.machines[machine].turn(self.base, self.now, tick);
        let after = self.facts(machine);
        if before != after {
            self.note(|| format!("{} {after}", letter(machine)));
        }
        self.take_wishes(machine, session);
        self.check(machine)?;
        let clock = self.machines[machine].clock(self.base, self.now);
        self.clients.poll(&self.machines, machine, clock);
        match ended {
            None => Ok(()),
            Some(ended) => self.ended(machine, &ended),
        }
    }

    fn facts(&self, machine: usize) -> String {
        if self.trace.is_none() {
            return String::new();
        }
        self.machines[machine].process.as_ref().map_or(String::new(), |process| process.engine.describe())
    }

    fn ended(&mut self, machine: usize, ended: &Ended) -> Result<(), Broken> {
        self.note(|| format!("{} ends: {ended:?}", letter(machine)));
        self.kill(machine, None);
        match ended {
            Ended::Failed(_) if self.failures_expected => Ok(()),
            // An older build that came too late for the level of the log takes no part in it.
            Ended::Failed(_) if self.machines[machine].level < FEATURE_LEVEL && !self.is_member(machine) => {
                Ok(())
            }
            Ended::Stopped => Ok(()),
            Ended::Failed(_) | Ended::Removed | Ended::Halted(_) => Err(Broken(
                "no node stops that nobody has stopped",
                format!("{}: {ended:?}", letter(machine)),
            )),
        }
    }

    fn is_member(&self, machine: usize) -> bool {
        let place = &self.machines[machine];
        self.register().is_some_and(|view| view.members.get(&place.id) == Some(&place.incarnation))
    }

    fn take_wishes(&mut self, machine: usize, session: u64) {
        let Some(process) = &mut self.machines[machine].process else { return };
        let (asks, sends, snapshots, flushes, works) = {
            let mut wanted = process.wanted.borrow_mut();
            let wanted = &mut *wanted;
            (
                std::mem::take(&mut wanted.asks),
                std::mem::take(&mut wanted.sends),
                std::mem::take(&mut wanted.snapshots),
                std::mem::take(&mut wanted.flushes),
                std::mem::take(&mut wanted.works),
            )
        };
        let recent = process.recent.clone();
        self.wishes.extend(asks.into_iter().map(|ask| Wish::Ask { machine, session, ask }));
        self.wishes.extend(flushes.into_iter().map(|job| Wish::Flush { machine, session, job }));
        self.wishes.extend(works.into_iter().map(|job| Wish::Work { machine, session, job }));
        for (to, item) in sends {
            let to = self.machine_of(&to);
            match self.connections.get(&(machine, to)) {
                Some(connection) => {
                    let connection = *connection;
                    for bytes in frames(&recent, &item) {
                        self.wishes.push(Wish::Send(Flight {
                            from: machine,
                            to,
                            from_session: session,
                            to_session: connection.to_session,
                            connection: connection.number,
                            bytes,
                            forged: false,
                        }));
                    }
                }
                // What is queued for a connection that does not stand is dropped.
                None if self.dialling.insert((machine, to)) => {
                    self.wishes.push(Wish::Dial { from: machine, session, to });
                }
                None => {}
            }
        }
        for (to, snapshot) in snapshots {
            let to = self.machine_of(&to);
            let rows: Vec<Row> = snapshot.rows.flat_map(|chunk| chunk.expect("rows can be read")).collect();
            let shipment = Shipment {
                from: machine,
                from_session: session,
                to,
                to_session: self.session(to).unwrap_or_default(),
                position: snapshot.position,
                rows,
            };
            self.wishes.push(Wish::Ship(shipment));
        }
    }

    // --- the network ---

    /// A connection stands from now on.
    pub fn connect(&mut self, from: usize, to: usize) {
        self.dialling.remove(&(from, to));
        let (Some(from_session), Some(to_session)) = (self.session(from), self.session(to)) else { return };
        if self.is_too_old(from, to) {
            return;
        }
        let number = self.number();
        let connection = Connection { number, to_session, arrives: self.now };
        self.connections.insert((from, to), connection);
        let (dialler, dialled) = (self.machines[from].id.clone(), self.machines[to].id.clone());
        self.report(from, Internal::LinkUp(dialled));
        let level = self.machines[from].level;
        let session = self.said(from_session);
        self.report(to, Internal::PeerArrived { node: dialler, session, level });
    }

    /// As a server does with an older build, when it greets and whenever it speaks.
    fn is_too_old(&self, from: usize, to: usize) -> bool {
        let level = |process: &Process| process.shared.feature_level.load(Ordering::Relaxed);
        self.machines[from].level < self.machines[to].process.as_ref().map_or(0, level)
    }

    /// A connection breaks; its side that sends dials again when it next has something to say.
    pub fn disconnect(&mut self, from: usize, to: usize) {
        self.connections.remove(&(from, to));
    }

    pub fn deliver(&mut self, flight: &Flight) -> Result<(), Broken> {
        let stands = self.connections.get(&(flight.from, flight.to)).is_some_and(|connection| {
            connection.number == flight.connection && self.runs(flight.to, flight.to_session)
        });
        if !stands {
            return Ok(());
        }
        if self.is_too_old(flight.from, flight.to) {
            self.disconnect(flight.from, flight.to);
            return Ok(());
        }
        let mut buffer = BytesMut::from(&flight.bytes[..]);
        let frame: Frame = take(&mut buffer).expect("a frame as it was sent").expect("a whole frame");
        let from = &self.machines[flight.from];
        let body = frame.body.expect("a frame has a body");
        let under = (Epoch(frame.epoch), Checksum(frame.view));
        let session = self.said(flight.from_session);
        let event = event_of(&from.id, from.incarnation, session, under, body);
        let event = match event {
            Ok(event) => event,
            // As a server does with a peer that forwards what no node may order.
            Err(BadFrame::Request(_)) if flight.forged => {
                self.disconnect(flight.from, flight.to);
                return Ok(());
            }
            Err(error) => return Err(Broken("what is sent can be read", error.to_string())),
        };
        self.report(flight.to, event);
        Ok(())
    }

    /// A snapshot has arrived whole, or the connection broke.
    pub fn arrive(&mut self, shipment: Shipment, whole: bool) {
        let to = self.machines[shipment.to].id.clone();
        if self.runs(shipment.from, shipment.from_session) {
            self.report(shipment.from, Internal::SnapshotSent(to));
        }
        if !whole || !self.runs(shipment.to, shipment.to_session) {
            return;
        }
        let rows = Arc::new(MemoryRows::default());
        let changed: Changed =
            shipment.rows.into_iter().map(|(key, value)| (key.to_vec(), Some(value))).collect();
        rows.write(&changed, true).expect("memory takes it");
        let store = kv::Store::open(StateBackend::over(rows.clone()).expect("memory can be read"))
            .expect("a snapshot holds a state");
        assert_eq!(snapshot::applied_of(&store), shipment.position, "a snapshot is what it says");
        let state = self.machines[shipment.to].state.clone();
        let place = Box::new(move || {
            *state.lock().unwrap() = rows;
            Ok(())
        });
        let arrived = ArrivedSnapshot { position: shipment.position, store, place };
        self.report(shipment.to, Internal::SnapshotArrived(Box::new(arrived)));
    }

    // --- the disk ---

    /// The writer takes the first `count` operations that wait. False where the disk failed: the process has ended.
    pub fn write(&mut self, machine: usize, count: usize) -> Result<bool, Broken> {
        let Some(process) = &mut self.machines[machine].process else { return Ok(true) };
        let count = count.min(process.writes.len());
        let operations: Vec<WriteOperation> = process.writes.drain(..count).collect();
        let done = process.writer.turn(operations);
        match done {
            Ok(done) => {
                process.inbox.extend(done.dropped.map(Internal::Dropped));
                process.inbox.extend(done.kept.into_iter().map(Internal::PromiseKept));
                process.inbox.extend(done.persisted.map(Internal::Persisted));
                let rested = done.persisted.map_or(Ok(()), |_| process.writer.rest());
                if let Err(failure) = rested {
                    return self.disk_failed(machine, &failure);
                }
                Ok(true)
            }
            Err(failure) => self.disk_failed(machine, &failure),
        }
    }

    fn disk_failed(&mut self, machine: usize, failure: &Failure) -> Result<bool, Broken> {
        self.note(|| format!("{} cannot write: {failure:?}", letter(machine)));
        match failure {
            Failure::Fatal(_) if self.failures_expected => {
                self.kill(machine, None);
                Ok(false)
            }
            Failure::Fatal(why) => Err(Broken("a disk that works takes what is written", why.clone())),
            Failure::Diverged(at) => {
                Err(Broken("what a leader sends continues the log", format!("{} at {at}", letter(machine))))
            }
        }
    }

    // --- the register ---

    /// Carries out a swap, at once and whole.
    pub fn swap(
        &mut self,
        replaces: Option<ViewId>,
        next: &View,
    ) -> Result<crate::protocol::Swapped, Broken> {
        use crate::protocol::Swapped;
        let swapped = self.cell.lock().unwrap().swap(replaces, next);
        if let Err(found) = swapped {
            return Ok(Swapped::Lost(found));
        }
        self.note(|| {
            let in_sync: Vec<&str> = next.in_sync.keys().map(NodeId::as_str).collect();
            format!("register: epoch {} leader {} in sync {}", next.epoch, next.leader, in_sync.join(" "))
        });
        self.newest_since = self.now;
        match self.views.insert(next.epoch, next.clone()) {
            None => Ok(Swapped::Won),
            Some(old) => Err(Broken("an epoch never comes twice (R1)", format!("{old:?} and then {next:?}"))),
        }
    }

    // --- what must be true after every step ---

    fn check(&mut self, machine: usize) -> Result<(), Broken> {
        let Some(process) = &self.machines[machine].process else { return Ok(()) };
        let position = process.engine.applied();
        if position.index > Index(0) {
            let seen = *self.applied.entry(position.index).or_insert(position);
            if seen != position {
                let detail = format!("{} has applied {position:?}, another {seen:?}", letter(machine));
                return Err(Broken("all nodes apply the same entries in the same order", detail));
            }
        }
        let shared = &process.shared;
        let refused = shared.refused_entries.load(Ordering::Relaxed);
        if refused > 0 && !self.refusals_expected {
            let detail = format!("{} has refused {refused}", letter(machine));
            return Err(Broken("nothing is in the log that cannot be applied (R33)", detail));
        }
        let said = (shared.applied.load(Ordering::Relaxed), shared.revision.load(Ordering::Relaxed));
        let (applied, revision) = (position.index.0, shared.look(&|store| store.revision()));
        if said.0 != applied || said.1 != revision || shared.commit.load(Ordering::Relaxed) < applied {
            let detail = format!("{}: {said:?} and {:?}", letter(machine), (applied, revision));
            return Err(Broken("what a node says of its state is what it holds", detail));
        }
        let serving = process.shared.serving.load(Ordering::Relaxed);
        if serving != 0 {
            let session = *self.served.entry(serving).or_insert(process.session);
            if session != process.session {
                let detail = format!("epoch {serving}: {session} and {}", process.session);
                return Err(Broken("one process serves in an epoch", detail));
            }
        }
        let commit = process.engine.node().log().commit();
        let proved = &mut self.proved_whole[machine];
        if commit > proved.0 {
            let cut = !self.machines[machine].can_reach_register();
            *proved = (commit, if cut { self.now } else { proved.1 });
        }
        self.check_health(machine)
    }

    /// The register is as it should be. Where an older copy stood in its place nobody could know of the newest view.
    pub fn heal_register(&mut self) {
        if self.cell.lock().unwrap().heal() {
            self.newest_since = self.now;
        }
    }

    /// R31, R18: whoever is not counted on any more must notice, however it was cut off.
    fn check_health(&self, machine: usize) -> Result<(), Broken> {
        let place = &self.machines[machine];
        let Some(process) = &place.process else { return Ok(()) };
        let counted = self.register().is_some_and(|view| view.is_in_sync(&place.id, place.incarnation));
        let patience = 4 * self.timing.failure_timeout;
        let excused = self.excused_until[machine].max(self.proved_whole[machine].1);
        let known = self.newest_since.max(excused) + patience;
        if process.shared.ready.load(Ordering::Relaxed) && !counted && self.now > known {
            let detail =
                format!("{}, {} ms after it was left out", letter(machine), self.now - self.newest_since);
            return Err(Broken("whoever is not counted on does not call itself ready (R31)", detail));
        }
        Ok(())
    }

    /// All states are the same, row by row.
    pub fn check_states(&self) -> Result<(), Broken> {
        let mut first: Option<(usize, Vec<Row>)> = None;
        for (number, machine) in self.machines.iter().enumerate() {
            let Some(process) = &machine.process else { continue };
            let rows: Vec<Row> = process
                .shared
                .look(&|store| store.backend().snapshot())
                .flat_map(|chunk| chunk.expect("rows can be read"))
                .collect();
            match &first {
                None => first = Some((number, rows)),
                Some((other, expected)) if *expected != rows => {
                    let detail = format!("{} and {}", letter(*other), letter(number));
                    return Err(Broken("all nodes hold the same state", detail));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

/// What a link writes for an item: entries are read when their turn comes.
fn frames(recent: &Recent, item: &Item) -> Vec<Bytes> {
    match item {
        Item::Frame(bytes) | Item::Requests(bytes) => vec![bytes.clone()],
        Item::Entries { epoch, view, previous, last, commit, sent } => {
            let mut previous = *previous;
            let mut frames = Vec::new();
            while previous.index < *last {
                let Ok(Some(chunk)) = recent.read(previous.index.next(), ENTRIES_BYTES) else { break };
                let end = Mark { index: chunk.last.index, epoch: chunk.last.epoch };
                let body = append_body(previous, end.index, end.epoch, *commit, *sent, chunk.frames);
                let mut buffer = BytesMut::new();
                put(&mut buffer, &Frame { epoch: epoch.0, view: view.0, body: Some(body) });
                frames.push(buffer.freeze());
                previous = end;
            }
            frames
        }
    }
}
