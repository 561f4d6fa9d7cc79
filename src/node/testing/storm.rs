//! A random schedule of faults, clients and delays, all from one seed; then a time without faults in which the cluster
//! must become whole again, and every client must have been answered.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::clients::Clients;
use super::machine::Timing;
use super::world::{Broken, Flight, Shipment, Wish, World};
use crate::node::engine::FEATURE_LEVEL;
use crate::node::event::Internal;
use crate::node::registrar::Ask;
use crate::node::state::{Flush, FlushJob};
use crate::node::work::ApplyJob;
use crate::protocol::testing::random::Random;
use crate::protocol::testing::spread::letter;
use crate::protocol::{Millis, NotPrepared, RegisterUnreachable, Swapped};
use crate::view::{View, ViewId};

mod after;
mod climate;
mod faults;

use climate::Climate;

/// How long faults go on, in virtual milliseconds.
const STORM: Millis = 900;
/// Within this time after the last fault all must be well.
const RECOVERY: Millis = 4_000;
const TICK: Millis = 5;
/// A heavy entry takes the leader so long where it is not divided; machines differ, and the others take less.
const HEAVY: Millis = 250;

/// An operation on the register.
enum Call {
    Read(Option<ViewId>),
    Prepare,
    Swap(Option<ViewId>, View),
}

#[expect(clippy::large_enum_variant, reason = "few at a time, in a simulation")]
enum Event {
    Tick {
        machine: usize,
        session: u64,
    },
    Turn {
        machine: usize,
        session: u64,
    },
    Deliver(Flight),
    Dial {
        from: usize,
        session: u64,
        to: usize,
    },
    Arrive(Shipment, bool),
    Disk {
        machine: usize,
        session: u64,
    },
    Flush {
        machine: usize,
        session: u64,
        job: FlushJob,
    },
    Work {
        machine: usize,
        session: u64,
        job: ApplyJob,
    },
    AtRegister {
        machine: usize,
        session: u64,
        ask: Call,
        answers: bool,
    },
    Answer {
        machine: usize,
        session: u64,
        answer: Internal,
    },
    Died {
        to: usize,
        machine: usize,
        session: Option<u64>,
    },
    RegisterBack(usize),
    RegisterHeals,
    Ask(usize),
    Fault,
    /// A process stops, and so many times more.
    Flap {
        machine: usize,
        rounds: u64,
    },
    Start(usize),
}

#[derive(Clone, Debug, Default)]
struct Place {
    paused_until: Millis,
    register_gone_until: Millis,
    disk_hangs_until: Millis,
    disk_busy: bool,
    turn_due: bool,
    restarting: bool,
    has_run: bool,
    /// Heavy entries applied on the thread of the protocol, as far as their time has passed.
    heavy_inline: u64,
}

/// See the head of the file.
pub struct Storm {
    random: Random,
    climate: Climate,
    pub world: World,
    places: Vec<Place>,
    /// Directions in which nothing passes until then.
    cut: BTreeMap<(usize, usize), Millis>,
    /// The register has no room, or is an older copy, until then.
    register_ill_until: Millis,
    queue: BTreeMap<(Millis, u64), Event>,
    next_event: u64,
    raging: bool,
    pub steps: u64,
    pub fail_overs: u64,
}

impl Storm {
    pub fn new(seed: u64, traced: bool, base: Instant) -> Storm {
        let mut random = Random::new(seed);
        // Drawn on the side: seeds without it are what they were.
        let flaps = Random::new(!seed).chance(200);
        let climate = Climate { flaps, ..Climate::draw(&mut random) };
        let timing = Timing {
            heartbeat: 20,
            failure_timeout: 60,
            handback_after: random.pick(&[None, Some(60), Some(250)]),
        };
        let clients = Clients::new(climate.clients, Random::new(random.next()));
        let mut world = World::new(climate.machines, timing, clients, base);
        world.trace = traced.then(Vec::new);
        world.failures_expected = climate.disk_faults;
        world.sessions_repeat = climate.sessions_repeat;
        world.note(|| format!("seed {seed}: {climate:?} {timing:?}"));
        let creates = random.below(climate.machines as u64) as usize;
        world.machines[creates].creates = true;
        for machine in &mut world.machines {
            machine.rate = 1000 + random.between(0, climate.drift) - climate.drift / 2;
            if climate.old_builds && random.chance(500) {
                machine.level = 0;
            }
        }
        let places = vec![Place::default(); climate.machines];
        let mut storm = Storm {
            random,
            climate,
            world,
            places,
            cut: BTreeMap::new(),
            register_ill_until: 0,
            queue: BTreeMap::new(),
            next_event: 0,
            raging: true,
            steps: 0,
            fail_overs: 0,
        };
        for machine in 0..storm.places.len() {
            let delay = storm.random.below(30);
            storm.at(delay, Event::Start(machine));
        }
        for client in 0..storm.climate.clients {
            storm.at(10, Event::Ask(client));
        }
        let delay = storm.random.between(0, 150);
        storm.at(delay, Event::Fault);
        storm
    }

    fn at(&mut self, delay: Millis, event: Event) {
        self.queue.insert((self.world.now + delay, self.next_event), event);
        self.next_event += 1;
    }

    /// The whole life of a seed.
    pub fn run(&mut self) -> Result<(), Broken> {
        let ends = self.world.now + STORM;
        self.run_until(ends)?;
        self.calm_down();
        self.recover()?;
        self.read_everything_back()?;
        self.fail_overs =
            self.world.views.values().filter(|view| view.led_since == view.epoch).count() as u64;
        let report = crate::check::check(&self.world.clients.history);
        if let Some(violation) = report.violations.first() {
            return Err(Broken("what clients were told is linearizable", violation.to_string()));
        }
        if let Some(error) = self.world.clients.errors.first() {
            return Err(Broken("a client of a node that lives through it hears no error", error.clone()));
        }
        self.world.check_states()
    }

    /// No storm at all: the cluster comes up and is whole.
    pub fn begin_calm(&mut self) -> Result<(), Broken> {
        self.calm_down();
        self.recover()
    }

    /// Time passes.
    pub fn go_on(&mut self, time: Millis) -> Result<(), Broken> {
        let end = self.world.now + time;
        self.run_until(end)
    }

    fn run_until(&mut self, end: Millis) -> Result<(), Broken> {
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > end {
                break;
            }
            let ((time, _), event) = entry.remove_entry();
            self.world.now = time;
            self.steps += 1;
            self.handle(event)?;
            self.take_up();
        }
        self.world.now = end;
        Ok(())
    }

    fn concerns(event: &Event) -> Option<usize> {
        match event {
            Event::Tick { machine, .. }
            | Event::Turn { machine, .. }
            | Event::Disk { machine, .. }
            | Event::Flush { machine, .. }
            | Event::Work { machine, .. }
            | Event::Answer { machine, .. } => Some(*machine),
            Event::Dial { from, .. } => Some(*from),
            Event::Deliver(flight) => Some(flight.to),
            Event::Arrive(shipment, _) => Some(shipment.to),
            Event::Died { to, .. } => Some(*to),
            Event::AtRegister { .. }
            | Event::RegisterBack(_)
            | Event::RegisterHeals
            | Event::Ask(_)
            | Event::Fault
            | Event::Flap { .. }
            | Event::Start(_) => None,
        }
    }

    fn handle(&mut self, event: Event) -> Result<(), Broken> {
        // A stopped process finds everything in its sockets when it goes on.
        if let Some(machine) = Storm::concerns(&event)
            && self.places[machine].paused_until > self.world.now
        {
            let delay = self.places[machine].paused_until - self.world.now;
            self.at(delay, event);
            return Ok(());
        }
        match event {
            Event::Tick { machine, session } if self.world.runs(machine, session) => {
                self.world.turn(machine, true)?;
                let delay = self.random.between(1, TICK);
                self.at(delay, Event::Tick { machine, session });
                Ok(())
            }
            Event::Turn { machine, session } if self.world.runs(machine, session) => {
                self.places[machine].turn_due = false;
                self.world.turn(machine, false)
            }
            Event::Deliver(flight) => {
                if self.is_cut(flight.from, flight.to) {
                    let delay = self.cut[&(flight.from, flight.to)] - self.world.now;
                    self.at(delay, Event::Deliver(flight)); // TCP sends it again
                    return Ok(());
                }
                self.world.deliver(&flight)?;
                self.turn_soon(flight.to)
            }
            Event::Dial { from, session, to } if self.world.runs(from, session) => {
                let there = self.world.machines[to].process.is_some()
                    && !self.is_cut(from, to)
                    && !self.is_cut(to, from)
                    && self.places[to].paused_until <= self.world.now;
                if there {
                    self.world.connect(from, to);
                    self.turn_soon(from)?;
                    self.turn_soon(to)
                } else {
                    let delay = self.random.between(5, 50);
                    self.at(delay, Event::Dial { from, session, to });
                    Ok(())
                }
            }
            Event::Arrive(shipment, whole) => {
                let to = shipment.to;
                let whole = whole && !self.is_cut(shipment.from, to);
                self.world.arrive(shipment, whole);
                self.turn_soon(to)
            }
            Event::Disk { machine, session } if self.world.runs(machine, session) => {
                self.places[machine].disk_busy = false;
                let waiting = self.world.machines[machine].process.as_ref().map_or(0, |p| p.writes.len());
                let count = self.random.between(1, waiting.max(1) as u64) as usize;
                if !self.world.write(machine, count)? {
                    self.process_ended(machine);
                    return Ok(());
                }
                self.turn_soon(machine)
            }
            Event::Flush { machine, session, job } if self.world.runs(machine, session) => {
                let report = match job.run().expect("memory takes it") {
                    Flush::Done(done) => Internal::Flushed(done),
                    Flush::Waits(rest, lack) => Internal::FlushWaits(rest, lack),
                };
                self.world.report(machine, report);
                self.turn_soon(machine)
            }
            Event::Work { machine, session, mut job } if self.world.runs(machine, session) => {
                match job.piece() {
                    None => {
                        let delay = self.random.between(0, self.climate.work_delay);
                        self.at(delay, Event::Work { machine, session, job });
                        Ok(())
                    }
                    Some(done) => {
                        self.world.report(machine, Internal::Applied(done));
                        self.turn_soon(machine)
                    }
                }
            }
            Event::AtRegister { machine, session, ask, answers } => {
                let answer = match ask {
                    Call::Read(known) => {
                        Internal::RegisterRead(Ok(self.world.cell.lock().unwrap().found(known)))
                    }
                    Call::Prepare if self.world.cell.lock().unwrap().full => {
                        Internal::Prepared(Err(NotPrepared))
                    }
                    Call::Prepare => Internal::Prepared(Ok(())),
                    Call::Swap(replaces, next) => Internal::Swapped(self.world.swap(replaces, &next)?),
                };
                if answers {
                    let delay = self.random.between(0, self.climate.register_delay);
                    self.at(delay, Event::Answer { machine, session, answer });
                }
                Ok(())
            }
            Event::Answer { machine, session, answer } if self.world.runs(machine, session) => {
                self.world.report(machine, answer);
                self.turn_soon(machine)
            }
            Event::Died { to, machine, session } => {
                // "Nobody runs there" is found out at the moment that it is said.
                if session.is_none() && self.world.machines[machine].process.is_some() {
                    return Ok(());
                }
                let node = self.world.machines[machine].id.clone();
                let session = session.map(|session| self.world.said(session));
                self.world.report(to, Internal::Died { node, session });
                self.turn_soon(to)
            }
            Event::RegisterHeals => {
                if self.register_ill_until <= self.world.now {
                    self.world.heal_register();
                }
                Ok(())
            }
            Event::RegisterBack(machine) => {
                if self.places[machine].register_gone_until <= self.world.now {
                    self.world.machines[machine].register_cut.store(false, Ordering::Relaxed);
                }
                Ok(())
            }
            Event::Ask(client) => self.ask(client),
            Event::Fault => self.fault(),
            Event::Flap { machine, rounds } => {
                self.flap(machine, rounds);
                Ok(())
            }
            Event::Start(machine) => self.start(machine),
            Event::Tick { .. }
            | Event::Turn { .. }
            | Event::Dial { .. }
            | Event::Disk { .. }
            | Event::Flush { .. }
            | Event::Work { .. }
            | Event::Answer { .. } => Ok(()),
        }
    }

    /// The batch ends here, or a little later with what comes until then.
    fn turn_soon(&mut self, machine: usize) -> Result<(), Broken> {
        if self.places[machine].paused_until > self.world.now {
            return Ok(());
        }
        if self.random.chance(700) {
            return self.world.turn(machine, false);
        }
        if let Some(session) = self.world.session(machine)
            && !std::mem::replace(&mut self.places[machine].turn_due, true)
        {
            self.at(1, Event::Turn { machine, session });
        }
        Ok(())
    }

    fn take_up(&mut self) {
        for machine in 0..self.places.len() {
            let Some(process) = &self.world.machines[machine].process else { continue };
            // What a turn spends on the state, the node is silent for.
            let inline = process.shared.heavy_inline.load(Ordering::Relaxed);
            let more =
                inline.saturating_sub(std::mem::replace(&mut self.places[machine].heavy_inline, inline));
            if more > 0 {
                let leads =
                    self.world.register().is_some_and(|view| view.leader == self.world.machines[machine].id);
                let long = if leads { HEAVY } else { HEAVY / 10 };
                self.places[machine].paused_until = self.world.now + more * long;
            }
        }
        for (machine, request) in std::mem::take(&mut self.world.clients.confirm) {
            if let Some(process) = &mut self.world.machines[machine].process {
                process.requests.push(request);
            }
        }
        for wish in std::mem::take(&mut self.world.wishes) {
            self.grant(wish);
        }
        for machine in 0..self.places.len() {
            let Some(process) = &self.world.machines[machine].process else { continue };
            let session = process.session;
            if !process.writes.is_empty() && !self.places[machine].disk_busy {
                self.places[machine].disk_busy = true;
                let hangs = self.places[machine].disk_hangs_until.saturating_sub(self.world.now);
                let delay = hangs + self.random.between(0, self.climate.disk_delay);
                self.at(delay, Event::Disk { machine, session });
            }
        }
    }

    fn grant(&mut self, wish: Wish) {
        match wish {
            Wish::Send(flight) => {
                let now = self.world.now;
                let delay = self.random.between(0, self.climate.network_delay);
                let Some(connection) = self.world.connections.get_mut(&(flight.from, flight.to)) else {
                    return;
                };
                connection.arrives = connection.arrives.max(now + delay);
                let delay = connection.arrives - now;
                self.at(delay, Event::Deliver(flight));
            }
            Wish::Dial { from, session, to } => {
                let delay = self.random.between(0, self.climate.network_delay + 1);
                self.at(delay, Event::Dial { from, session, to });
            }
            Wish::Ship(shipment) => {
                let delay = self.random.between(0, 2 * self.climate.network_delay + 10);
                let whole = !self.raging || self.random.chance(900);
                self.at(delay, Event::Arrive(shipment, whole));
            }
            Wish::Flush { machine, session, job } => {
                let delay = self.random.between(1, 2 * self.climate.disk_delay + 5);
                self.at(delay, Event::Flush { machine, session, job });
            }
            Wish::Work { machine, session, job } => {
                let delay = self.random.between(0, self.climate.work_delay);
                self.at(delay, Event::Work { machine, session, job });
            }
            Wish::Ask { machine, session, ask } => self.call(machine, session, ask),
        }
    }

    fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cut.get(&(from, to)).is_some_and(|until| *until > self.world.now)
    }

    /// An operation on the register: done, lost before, lost after, or done long after everybody gave up on it.
    fn call(&mut self, machine: usize, session: u64, ask: Ask) {
        let ask = match ask {
            Ask::Read(known) => Call::Read(known),
            Ask::Prepare(_) => Call::Prepare,
            Ask::Swap { replaces, next } => Call::Swap(replaces, next),
            Ask::Watch(node) => {
                let other = self.world.machine_of(&node);
                if self.world.machines[other].process.is_none() && self.random.chance(self.climate.proofs) {
                    self.at(1, Event::Died { to: machine, machine: other, session: None });
                }
                return;
            }
            Ask::Forget(_) | Ask::EnsureSecret => return,
        };
        let there = self.random.between(0, self.climate.register_delay);
        let gone = !self.world.machines[machine].can_reach_register();
        if !gone && !self.random.chance(self.climate.register_failures) {
            return self.at(there, Event::AtRegister { machine, session, ask, answers: true });
        }
        let back = there + self.random.between(0, self.climate.register_delay);
        let answer = match &ask {
            Call::Read(_) => Internal::RegisterRead(Err(RegisterUnreachable)),
            Call::Prepare => Internal::Prepared(Err(NotPrepared)),
            Call::Swap(..) => Internal::Swapped(Swapped::Unknown),
        };
        self.at(back, Event::Answer { machine, session, answer });
        if matches!(ask, Call::Swap(..)) {
            match self.random.below(3) {
                0 => {}
                1 => self.at(there, Event::AtRegister { machine, session, ask, answers: false }),
                _ => {
                    let late = there + self.random.between(0, 150);
                    self.at(late, Event::AtRegister { machine, session, ask, answers: false });
                }
            }
        }
    }

    // --- clients ---

    fn ask(&mut self, client: usize) -> Result<(), Broken> {
        if !self.raging {
            return Ok(());
        }
        let delay = self.random.between(1, self.climate.between_requests);
        self.at(delay, Event::Ask(client));
        let machine = self.random.below(self.places.len() as u64) as usize;
        if !self.world.clients.is_idle(client) || self.world.machines[machine].process.is_none() {
            return Ok(());
        }
        let world = &mut self.world;
        world.clients.ask(client, &mut world.machines, machine, world.base, world.now);
        self.take_up();
        self.turn_soon(machine)
    }

    fn start(&mut self, machine: usize) -> Result<(), Broken> {
        self.places[machine].restarting = false;
        self.places[machine].disk_busy = false;
        if self.world.machines[machine].process.is_some() {
            return Ok(());
        }
        let origin = self.random.next() | 1;
        if self.places[machine].has_run {
            // Whoever starts again does so with the new build.
            self.world.machines[machine].level = FEATURE_LEVEL;
        }
        self.places[machine].has_run = true;
        if let Err(why) = self.world.start(machine, origin, self.climate.log_keep_bytes, self.climate.load) {
            if !self.climate.disk_faults {
                return Err(Broken(
                    "a node starts on what a power cut leaves",
                    format!("{}: {why}", letter(machine)),
                ));
            }
            // An error of the disk while starting; try again.
            self.world.machines[machine].disk.heal();
            self.process_ended(machine);
            return Ok(());
        }
        let session = self.world.session(machine).expect("just started");
        self.at(0, Event::Tick { machine, session });
        for other in (0..self.places.len()).filter(|other| *other != machine) {
            if self.world.machines[other].process.is_none() && self.random.chance(self.climate.proofs) {
                self.at(1, Event::Died { to: machine, machine: other, session: None });
            }
        }
        Ok(())
    }
}
