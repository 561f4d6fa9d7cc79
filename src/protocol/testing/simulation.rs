//! A random schedule: clients, faults and the delays of disks, network and register, all from one seed; then a time
//! without faults in which the cluster must become whole again.

use std::collections::BTreeMap;

use super::cluster::{Answer, Call, Cluster, Flight, Settings};
use super::event::Event;
use super::invariants::{Claim, Violation};
use super::random::Random;
use super::register::Cell;
use super::weather::Weather;
use crate::protocol::rules::Rule;
use crate::protocol::testing::spread::letter;
use crate::protocol::{Halt, Input, Millis, NotPrepared, RegisterUnreachable, Swapped};
use crate::view::{Index, View};

/// How long faults go on, in virtual milliseconds.
const STORM: Millis = 700;
/// Within this time after the last fault all must be well.
const RECOVERY: Millis = 4_000;
/// Nodes want a tick at least every quarter of a heartbeat.
const TICK: Millis = 5;

/// What only the schedule knows of a machine.
#[derive(Clone, Debug, Default)]
struct Place {
    paused_until: Millis,
    isolated_until: Millis,
    register_gone_until: Millis,
    slow_disk_until: Millis,
    disk_hangs_until: Millis,
    no_room_until: Millis,
    disk_busy: bool,
    call_taken: bool,
    removed: bool,
    restarting: bool,
}

pub struct Simulation {
    random: Random,
    weather: Weather,
    pub cluster: Cluster,
    places: Vec<Place>,
    /// Links that deliver nothing until then, by direction.
    cut: BTreeMap<(usize, usize), Millis>,
    /// When the last message of an ordered link arrives.
    arrives: BTreeMap<(usize, usize), Millis>,
    queue: BTreeMap<(Millis, u64), Event>,
    next_event: u64,
    /// A copy that an operator has taken of the register.
    backup: Option<Cell>,
    put_back: bool,
    storm: bool,
    pub steps: u64,
    proposed: u64,
}

impl Simulation {
    pub fn new(seed: u64, broken: Option<Rule>, traced: bool) -> Simulation {
        let mut random = Random::new(seed);
        // Drawn on the side: seeds without it are what they were.
        let flaps = Random::new(!seed).chance(200);
        let weather = Weather { flaps, ..Weather::draw(&mut random) };
        let handback_after = random.pick(&[None, Some(60), Some(250)]);
        let few_sessions = weather.few_sessions;
        let settings = Settings { handback_after, few_sessions, broken, ..Settings::default() };
        let mut cluster = Cluster::new(weather.machines, settings);
        cluster.trace = traced.then(Vec::new);
        cluster.note(|| format!("seed {seed}: {weather:?}, handback after {handback_after:?}"));
        let creates = random.below(weather.machines as u64) as usize;
        cluster.machines[creates].creates = true;
        let places = vec![Place::default(); weather.machines];
        let mut simulation = Simulation {
            random,
            weather,
            cluster,
            places,
            cut: BTreeMap::new(),
            arrives: BTreeMap::new(),
            queue: BTreeMap::new(),
            next_event: 0,
            backup: None,
            put_back: false,
            storm: true,
            steps: 0,
            proposed: 0,
        };
        for machine in 0..simulation.places.len() {
            let delay = simulation.random.below(30);
            simulation.at(delay, Event::Start(machine));
        }
        let delay = simulation.random.between(0, 150);
        simulation.at(delay, Event::Fault);
        simulation.at(10, Event::Propose);
        if simulation.weather.puts_back {
            let (copied, put_back) = (simulation.random.between(50, 400), simulation.random.between(5, 250));
            simulation.at(copied, Event::Meddle);
            simulation.at(copied + put_back, Event::Meddle);
        }
        simulation
    }

    fn at(&mut self, delay: Millis, event: Event) {
        self.queue.insert((self.cluster.now + delay, self.next_event), event);
        self.next_event += 1;
    }

    /// The whole life of a seed.
    pub fn run(&mut self) -> Result<(), Violation> {
        let storm_ends = self.cluster.now + STORM;
        self.run_until(storm_ends)?;
        self.cluster.check_all()?;
        self.calm_down()?;
        self.recover()?;
        self.cluster.check_all()
    }

    fn run_until(&mut self, end: Millis) -> Result<(), Violation> {
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > end {
                break;
            }
            let ((time, _), event) = entry.remove_entry();
            self.cluster.now = time;
            self.steps += 1;
            self.handle(event)?;
            self.take_up()?;
        }
        self.cluster.now = end;
        Ok(())
    }

    /// The running process, unless another has taken its place.
    fn runs(&self, machine: usize, session: u64) -> bool {
        self.cluster.process(machine).is_some_and(|process| process.session == session)
    }

    fn handle(&mut self, event: Event) -> Result<(), Violation> {
        let receiver = match &event {
            Event::Tick { machine, .. }
            | Event::Flush { machine, .. }
            | Event::Disk { machine, .. }
            | Event::Answer { machine, .. } => Some(*machine),
            Event::Deliver(flight) => Some(flight.to),
            Event::Arrives(snapshot) => Some(snapshot.to),
            Event::Died { to, .. } => Some(*to),
            Event::SnapshotLost(_)
            | Event::AtRegister { .. }
            | Event::Propose
            | Event::PutRight
            | Event::Meddle
            | Event::Fault
            | Event::Flap { .. }
            | Event::Start(_) => None,
        };
        // A stopped process finds everything in its sockets when it goes on.
        if let Some(machine) = receiver
            && self.places[machine].paused_until > self.cluster.now
        {
            let delay = self.places[machine].paused_until - self.cluster.now;
            self.at(delay, event);
            return Ok(());
        }
        match event {
            Event::Tick { machine, session } if self.runs(machine, session) => {
                self.look_at_the_register(machine)?;
                self.cluster.input(machine, Input::Tick)?;
                self.cluster.input(machine, Input::Flush)?;
                let delay = self.random.between(1, TICK);
                self.at(delay, Event::Tick { machine, session });
                Ok(())
            }
            Event::Flush { machine, session } if self.runs(machine, session) => {
                self.cluster.input(machine, Input::Flush)
            }
            Event::Deliver(flight) => {
                let machine = flight.to;
                self.cluster.deliver(flight)?;
                self.flush_soon(machine)
            }
            Event::Arrives(snapshot) => self.cluster.deliver_snapshot(&snapshot),
            Event::SnapshotLost(snapshot) => {
                self.cluster.end_snapshot(&snapshot);
                Ok(())
            }
            Event::Disk { machine, session } if self.runs(machine, session) => {
                self.places[machine].disk_busy = false;
                let pending = self.cluster.process(machine).map_or(0, |process| process.writes.len());
                let count = self.random.between(1, pending.max(1) as u64) as usize;
                self.cluster.persist(machine, count)?;
                self.flush_soon(machine)
            }
            Event::AtRegister { machine, session, call, answers } => {
                let answer = match self.without_room(machine, session, &call) {
                    Some(answer) => answer,
                    None => self.cluster.at_register(&call)?,
                };
                if answers {
                    let delay = self.random.between(0, self.weather.register_delay);
                    self.at(delay, Event::Answer { machine, session, answer });
                }
                Ok(())
            }
            Event::Answer { machine, session, answer } if self.runs(machine, session) => {
                self.places[machine].call_taken = false;
                self.cluster.answer(machine, answer)?;
                self.flush_soon(machine)
            }
            Event::Died { to, machine, session } => {
                // "Nobody runs there" is found out at the moment that it is said.
                if session.is_none() && self.cluster.process(machine).is_some() {
                    return Ok(());
                }
                let node = self.cluster.machines[machine].id.clone();
                self.cluster.input(to, Input::Died { node, session })?;
                self.flush_soon(to)
            }
            Event::PutRight => self.put_right(),
            Event::Meddle => {
                self.meddle_with_the_register();
                Ok(())
            }
            Event::Propose => self.propose(),
            Event::Fault => self.fault(),
            Event::Flap { machine, rounds } => {
                self.flap(machine, rounds);
                Ok(())
            }
            Event::Start(machine) => {
                self.start(machine);
                Ok(())
            }
            Event::Tick { .. } | Event::Flush { .. } | Event::Disk { .. } | Event::Answer { .. } => Ok(()),
        }
    }

    /// The batch ends here, or with what comes next.
    fn flush_soon(&mut self, machine: usize) -> Result<(), Violation> {
        if self.random.chance(750) {
            return self.cluster.input(machine, Input::Flush);
        }
        if let Some(process) = self.cluster.process(machine) {
            let session = process.session;
            self.at(1, Event::Flush { machine, session });
        }
        Ok(())
    }

    /// Everything that the last step has set going gets its time.
    fn take_up(&mut self) -> Result<(), Violation> {
        for flight in std::mem::take(&mut self.cluster.sent) {
            self.send(flight);
        }
        for snapshot in std::mem::take(&mut self.cluster.snapshots) {
            let delay = self.random.between(0, 2 * self.weather.network_delay + 10);
            let lost = self.is_cut(snapshot.from, snapshot.to) || self.random.chance(self.weather.loss);
            self.at(delay, if lost { Event::SnapshotLost(snapshot) } else { Event::Arrives(snapshot) });
        }
        for machine in 0..self.places.len() {
            let Some(process) = self.cluster.process(machine) else {
                self.stopped(machine)?;
                continue;
            };
            let session = process.session;
            let call = if self.places[machine].call_taken { None } else { process.call.clone() };
            if !process.writes.is_empty() && !self.places[machine].disk_busy {
                self.places[machine].disk_busy = true;
                let slow = if self.places[machine].slow_disk_until > self.cluster.now { 100 } else { 0 };
                let hangs = self.places[machine].disk_hangs_until.saturating_sub(self.cluster.now);
                let delay = hangs + self.random.between(0, self.weather.disk_delay + slow);
                self.at(delay, Event::Disk { machine, session });
            }
            if let Some(call) = call {
                self.places[machine].call_taken = true;
                self.call(machine, session, call);
            }
        }
        Ok(())
    }

    fn is_cut(&self, from: usize, to: usize) -> bool {
        let now = self.cluster.now;
        self.cut.get(&(from, to)).is_some_and(|until| *until > now)
            || self.places[from].isolated_until > now
            || self.places[to].isolated_until > now
    }

    fn send(&mut self, flight: Flight) {
        let link = (flight.from, flight.to);
        if self.is_cut(link.0, link.1) || self.random.chance(self.weather.loss) {
            return;
        }
        if self.random.chance(self.weather.duplicates) {
            let delay = self.random.between(0, 4 * self.weather.network_delay + 20);
            self.at(delay, Event::Deliver(flight.clone()));
        }
        let mut delay = self.random.between(0, self.weather.network_delay);
        if self.weather.ordered {
            let arrives = self.arrives.entry(link).or_insert(0);
            *arrives = (*arrives).max(self.cluster.now + delay);
            delay = *arrives - self.cluster.now;
        } else if self.storm && self.random.chance(10) {
            delay += 150; // a straggler from another time
        }
        self.at(delay, Event::Deliver(flight));
    }

    /// An operation on the register: done, lost before, lost after, or done long after everybody gave up on it.
    fn call(&mut self, machine: usize, session: u64, call: Call) {
        let there = self.random.between(0, self.weather.register_delay);
        let gone = self.places[machine].register_gone_until > self.cluster.now;
        if !gone && !self.random.chance(self.weather.register_failures) {
            return self.at(there, Event::AtRegister { machine, session, call, answers: true });
        }
        let is_swap = matches!(call, Call::Swap { .. });
        let failed = match &call {
            Call::Read { .. } => Answer::Read(Err(RegisterUnreachable)),
            Call::Prepare(_) => Answer::Prepare(Err(NotPrepared)),
            Call::Swap { .. } => Answer::Swap(Swapped::Unknown),
        };
        let answer = Event::Answer { machine, session, answer: failed };
        let back = there + self.random.between(0, self.weather.register_delay);
        self.at(back, answer);
        if is_swap {
            match self.random.below(3) {
                0 => {}
                1 => self.at(there, Event::AtRegister { machine, session, call, answers: false }),
                _ => {
                    let late = there + self.random.between(0, 150);
                    self.at(late, Event::AtRegister { machine, session, call, answers: false });
                }
            }
        }
    }

    // --- clients and operators ---

    fn propose(&mut self) -> Result<(), Violation> {
        if self.storm {
            let delay = self.random.between(1, self.weather.between_proposals);
            self.at(delay, Event::Propose);
        }
        let machine = self.random.below(self.places.len() as u64) as usize;
        if self.places[machine].paused_until > self.cluster.now {
            return Ok(());
        }
        // Ask around, as clients do.
        for offset in 0..self.places.len() {
            let asked = (machine + offset) % self.places.len();
            if self.places[asked].paused_until <= self.cluster.now {
                let count = self.random.pick(&[1, 1, 2, 9]);
                if self.cluster.propose(asked, count)? {
                    self.proposed += 1;
                    return self.flush_soon(asked);
                }
            }
        }
        Ok(())
    }

    // --- faults ---

    fn fault(&mut self) -> Result<(), Violation> {
        if !self.storm {
            return Ok(());
        }
        let delay = self.random.between(1, self.weather.between_faults);
        self.at(delay, Event::Fault);
        let now = self.cluster.now;
        let victim = self.victim();
        let long = self.random.pick(&[10, 40, 100, 200]);
        let until = now + self.random.between(1, long);
        match self.random.below(100) {
            0..25 => self.crash(victim, false)?,
            25..35 => self.crash(victim, true)?,
            35..50 if self.weather.flaps => {
                let rounds = self.random.between(2, 6);
                self.flap(victim, rounds);
            }
            35..50 => {
                self.cluster.note(|| format!("{} stops until {until}", letter(victim)));
                self.places[victim].paused_until = until;
            }
            50..58 => {
                self.cluster.note(|| format!("{} is cut off until {until}", letter(victim)));
                self.places[victim].isolated_until = until;
            }
            58..66 => {
                let other = self.random.below(self.places.len() as u64) as usize;
                let both = self.random.chance(500);
                self.cluster.note(|| {
                    format!("cut {} -> {} until {until}, both ways: {both}", letter(victim), letter(other))
                });
                self.cut.insert((victim, other), until);
                if both {
                    self.cut.insert((other, victim), until);
                }
            }
            66..74 => {
                self.cluster.note(|| format!("{} cannot reach the register until {until}", letter(victim)));
                self.places[victim].register_gone_until = until;
            }
            74..77 => {
                self.cluster.note(|| format!("nobody can reach the register until {until}"));
                for place in &mut self.places {
                    place.register_gone_until = until;
                }
            }
            78..79 if self.weather.rooms => {
                self.cluster.note(|| format!("the register has no room until {until}"));
                for place in &mut self.places {
                    place.no_room_until = until;
                }
            }
            77..80 => self.places[victim].slow_disk_until = until,
            80..81 => {
                // Longer than anybody waits for it.
                self.cluster.note(|| format!("the disk of {} hangs", letter(victim)));
                self.places[victim].disk_hangs_until = now + self.random.between(100, 500);
            }
            81..82 => {
                let full = self.random.chance(700);
                if self.places[victim].paused_until <= now {
                    self.cluster.input(victim, Input::Space { full })?;
                }
            }
            82..91 => {
                let last = self.cluster.truth.len() as u64;
                if self.weather.drops_log {
                    let index = Index(self.random.between(last / 2, last));
                    self.cluster.drop_log(victim, index)?;
                }
            }
            91..95 => {
                let to = self.random.below(self.places.len() as u64) as usize;
                let to = self.cluster.machines[to].id.clone();
                if self.places[victim].paused_until <= now {
                    self.cluster.input(victim, Input::MoveLeader(to))?;
                }
            }
            95..97 => {
                let other = self.random.below(self.places.len() as u64) as usize;
                if self.weather.removes && self.places[victim].paused_until <= now && other != victim {
                    self.places[other].removed = true;
                    let node = self.cluster.machines[other].id.clone();
                    self.cluster.input(victim, Input::Remove(node))?;
                }
            }
            _ => {
                for machine in 0..self.places.len() {
                    self.crash(machine, false)?;
                }
            }
        }
        Ok(())
    }

    /// Stops for about as long as it takes to be dropped, and goes on for about as long as it takes to join again.
    fn flap(&mut self, machine: usize, rounds: u64) {
        if !self.storm {
            return;
        }
        let timeout = self.cluster.settings.failure_timeout;
        let until = self.cluster.now + self.random.between(timeout / 2, 2 * timeout);
        self.cluster.note(|| format!("{} stops until {until}, and {rounds} times more", letter(machine)));
        self.places[machine].paused_until = until;
        if rounds > 0 {
            let awake = self.random.between(timeout / 2, 3 * timeout);
            self.at(until + awake - self.cluster.now, Event::Flap { machine, rounds: rounds - 1 });
        }
    }

    /// The leader twice as often as chance would have it.
    fn victim(&mut self) -> usize {
        if self.random.chance(400)
            && let Some(view) = self.cluster.register()
        {
            return self.cluster.machine_of(&view.leader);
        }
        self.random.below(self.places.len() as u64) as usize
    }

    /// Kills a node; some of what it was writing survives. Wipes it too, where others hold everything it has.
    fn crash(&mut self, machine: usize, wipe: bool) -> Result<(), Violation> {
        let Some(process) = self.cluster.process(machine) else { return Ok(()) };
        let (session, pending) = (process.said, process.writes.len() as u64);
        let (whole, part) = (self.random.between(0, pending) as usize, self.random.below(10) as usize);
        self.cluster.crash(machine, whole, part)?;
        let place = &mut self.places[machine];
        place.disk_busy = false;
        place.call_taken = false;
        place.paused_until = 0;
        // A lost disk on top of a register that was put back is more than an operator can set right.
        let one_fault = self.cluster.vault.is_none();
        if wipe && one_fault && self.weather.wipes && self.may_wipe(machine) {
            self.cluster.wipe(machine);
            self.places[machine].removed = false;
        }
        for to in (0..self.places.len()).filter(|to| *to != machine) {
            if self.random.chance(self.weather.proofs) {
                let delay = self.random.between(0, 15);
                let session = if self.random.chance(800) { Some(session) } else { None };
                self.at(delay, Event::Died { to, machine, session });
            }
        }
        if !self.places[machine].restarting {
            self.places[machine].restarting = true;
            let long = self.random.pick(&[1, 20, 200]);
            let delay = self.random.between(0, long);
            self.at(delay, Event::Start(machine));
        }
        Ok(())
    }

    /// The promise is that n followers survive n faults: in whatever view stands, or may come to stand through a swap
    /// that is on its way, a node other than this one must still have its data.
    fn may_wipe(&self, machine: usize) -> bool {
        let on_the_way = self.queue.values().filter_map(|event| match event {
            Event::AtRegister { call: Call::Swap { view, .. }, .. } => Some(view),
            _ => None,
        });
        let vault = self.cluster.vault.as_ref().and_then(|vault| vault.cell.newest.as_ref());
        self.cluster.register().into_iter().chain(vault).chain(on_the_way).all(|view| {
            view.in_sync.iter().any(|(node, incarnation)| {
                let counted = self.cluster.machine_of(node);
                counted != machine && self.cluster.machines[counted].disk.incarnation == *incarnation
            })
        }) && self.cluster.register().is_some()
    }

    /// The register has no room: nothing new is made ready, and only what was made ready before can be swapped in (R34).
    fn without_room(&self, machine: usize, session: u64, call: &Call) -> Option<Answer> {
        if self.places[machine].no_room_until <= self.cluster.now {
            return None;
        }
        match call {
            Call::Read { .. } => None,
            Call::Prepare(_) => Some(Answer::Prepare(Err(NotPrepared))),
            Call::Swap { view, .. } => {
                let process = self.cluster.process(machine).filter(|process| process.session == session);
                let ready = process.is_some_and(|process| process.prepared.as_ref() == Some(view));
                (!ready).then_some(Answer::Swap(Swapped::Failed))
            }
        }
    }

    /// An operator takes a copy of the register, and puts it back later: once in a storm.
    fn meddle_with_the_register(&mut self) {
        let cell = &self.cluster.cell;
        match self.backup.take() {
            None => self.backup = Some(cell.clone()).filter(|cell| cell.newest.is_some()),
            Some(backup) if !self.put_back && !self.is_noted() => {
                // An operator is not so quick that a leader has not noted its own newest view.
                self.backup = Some(backup);
                self.at(5, Event::Meddle);
            }
            Some(backup) if !self.put_back && backup.epoch() < cell.epoch() => {
                self.put_back = true;
                self.cluster.put_back(backup);
                let delay = self.random.between(20, 500);
                self.at(delay, Event::PutRight);
            }
            Some(_) => {}
        }
    }

    /// The leader of the newest view would find it again after a restart.
    fn is_noted(&self) -> bool {
        self.cluster.register().is_none_or(|view| {
            let disk = &self.cluster.machines[self.cluster.machine_of(&view.leader)].disk;
            disk.view.as_ref() == Some(view) || view.in_sync.get(&view.leader) != Some(&disk.incarnation)
        })
    }

    /// The operator looks at what the nodes say, and decides.
    fn put_right(&mut self) -> Result<(), Violation> {
        let Some((newer, others)) = self.cluster.decide() else { return Ok(()) };
        let newest = self.cluster.register().map(View::id);
        let forked =
            self.cluster.vault.as_ref().is_some_and(|v| newest.is_some_and(|newest| !v.cell.has(newest)));
        if forked || !newer || !others.is_empty() {
            // What was heard of the other chain is forgotten: all nodes are stopped for it, and nothing that they have
            // said arrives any more.
            for machine in 0..self.places.len() {
                self.crash(machine, false)?;
            }
            self.queue.retain(|_, event| !matches!(event, Event::Deliver(_) | Event::Arrives(_)));
        }
        // Once more: a crash may leave more on a disk than was there.
        let others = self.cluster.decide().map_or(others, |(_, others)| others);
        for machine in others {
            let given_up = self.cluster.machines[machine].disk.incarnation;
            self.cluster.seen.given_up.insert(given_up);
            self.cluster.wipe(machine);
        }
        self.cluster.put_right(newer)
    }

    /// A driver looks whether its view is in place now and then, and says so where it is not.
    fn look_at_the_register(&mut self, machine: usize) -> Result<(), Violation> {
        if self.cluster.vault.is_none() || !self.random.chance(100) {
            return Ok(());
        }
        let known = self.cluster.process(machine).and_then(|process| process.node.view());
        let holds = known.is_none_or(|view| self.cluster.cell.has(view.id()));
        let gone = self.places[machine].register_gone_until > self.cluster.now;
        if holds || gone { Ok(()) } else { self.cluster.input(machine, Input::RegisterDoubted) }
    }

    fn start(&mut self, machine: usize) {
        self.places[machine].restarting = false;
        if self.cluster.process(machine).is_some() {
            return;
        }
        let applied = self.cluster.machines[machine].disk.applied.0;
        let commit = if self.random.chance(300) { applied } else { self.random.between(0, applied) };
        self.cluster.start(machine, Index(commit));
        let session = self.cluster.process(machine).expect("just started").session;
        self.at(0, Event::Tick { machine, session });
        for other in (0..self.places.len()).filter(|other| *other != machine) {
            if self.cluster.process(other).is_none() && self.random.chance(self.weather.proofs) {
                self.at(1, Event::Died { to: machine, machine: other, session: None });
            }
        }
    }

    /// A node that stopped of its own will: only who was removed may. It comes back as another node.
    fn stopped(&mut self, machine: usize) -> Result<(), Violation> {
        let Some(reason) = self.cluster.machines[machine].halt.take() else { return Ok(()) };
        let place = &mut self.places[machine];
        place.disk_busy = false;
        place.call_taken = false;
        if reason != Halt::Removed || !place.removed {
            let detail = format!("{} halts: {reason:?}", letter(machine));
            return Err(Violation::new(Claim::NobodyStopsUnasked, detail));
        }
        place.removed = false;
        if !place.restarting {
            place.restarting = true;
            self.at(20, Event::Start(machine));
        }
        self.cluster.wipe(machine);
        Ok(())
    }

    // --- after the storm ---

    fn calm_down(&mut self) -> Result<(), Violation> {
        self.cluster.note(|| "the storm is over".to_owned());
        self.storm = false;
        self.weather = self.weather.calm();
        self.cut.clear();
        self.put_right()?;
        let now = self.cluster.now;
        for machine in 0..self.places.len() {
            let place = &mut self.places[machine];
            place.paused_until = place.paused_until.min(now + 1);
            place.isolated_until = 0;
            place.register_gone_until = 0;
            place.no_room_until = 0;
            place.slow_disk_until = 0;
            if std::mem::take(&mut place.disk_hangs_until) > now
                && let Some(process) = self.cluster.process(machine)
            {
                let session = process.session;
                self.at(1, Event::Disk { machine, session });
            }
            self.cluster.input(machine, Input::Space { full: false })?;
            if self.cluster.process(machine).is_none() && !self.places[machine].restarting {
                self.places[machine].restarting = true;
                self.at(1, Event::Start(machine));
            }
        }
        Ok(())
    }

    fn recover(&mut self) -> Result<(), Violation> {
        let deadline = self.cluster.now + RECOVERY;
        let leader = loop {
            let next = self.cluster.now + 20;
            self.run_until(next)?;
            match self.is_whole() {
                Ok(leader) => break leader,
                Err(violation) if self.cluster.now >= deadline => return Err(violation),
                Err(_) => {}
            }
        };
        let before = self.cluster.truth.len() as u64;
        if !self.cluster.propose(leader, 1)? {
            return Err(Violation::new(Claim::NewEntryCommits, "the leader takes nothing".to_owned()));
        }
        self.cluster.input(leader, Input::Flush)?;
        self.take_up()?;
        let end = self.cluster.now + 200;
        self.run_until(end)?;
        for (number, machine) in self.cluster.machines.iter().enumerate() {
            let applied = machine.process.as_ref().map_or(Index(0), |process| process.announced);
            if applied.0 <= before {
                let detail = format!("{} has applied {applied} of {}", letter(number), before + 1);
                return Err(Violation::new(Claim::NewEntryCommits, detail));
            }
        }
        Ok(())
    }

    /// The leader, where nothing is left to wish for.
    fn is_whole(&self) -> Result<usize, Violation> {
        let wish = |claim, detail: String| Err(Violation::new(claim, detail));
        let Some(view) = self.cluster.register() else {
            return wish(Claim::OneServesAgain, "the register is empty".to_owned());
        };
        let leader = self.cluster.machine_of(&view.leader);
        let serves = self.cluster.process(leader).is_some_and(|process| {
            let node = &process.node;
            // Nor does it still owe an operator a removal, or wonder about the register.
            let idle = process.call.is_none() && node.removing.is_empty() && !node.is_in_doubt();
            node.can_propose() && node.epoch() == view.epoch && idle
        });
        if !serves {
            return wish(Claim::OneServesAgain, format!("{} does not", letter(leader)));
        }
        for machine in &self.cluster.machines {
            if !view.is_in_sync(&machine.id, machine.disk.incarnation) || view.members != view.in_sync {
                return wish(Claim::AllAreInSyncAgain, format!("{} is not: {view:?}", machine.id));
            }
            if machine.process.as_ref().is_none_or(|process| process.node.epoch() != view.epoch) {
                return wish(Claim::AllAreInSyncAgain, format!("{} has not seen the view", machine.id));
            }
        }
        if self.cluster.settings.handback_after.is_some() && leader != 0 {
            return wish(Claim::LowestLeadsAgain, format!("{} does", letter(leader)));
        }
        Ok(leader)
    }
}
