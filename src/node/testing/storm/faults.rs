//! What goes wrong: processes and power, disks, the network, the register.

use super::Event;
use super::{Call, Storm};
use crate::node::event;
use crate::node::testing::disk::Fault;
use crate::node::testing::disk::Operation;
use crate::node::testing::world::{Broken, Flight};
use crate::node::wire::framed;
use crate::proto::replcluster::{Forward, frame::Body};
use crate::protocol::Millis;
use crate::protocol::testing::random::Random;
use crate::protocol::testing::spread::letter;
use crate::view::Epoch;
use bytes::Bytes;
use std::sync::atomic::Ordering;

impl Storm {
    pub(super) fn fault(&mut self) -> Result<(), Broken> {
        if !self.raging {
            return Ok(());
        }
        let delay = self.random.between(1, self.climate.between_faults);
        self.at(delay, Event::Fault);
        let now = self.world.now;
        let victim = self.victim();
        let long = self.random.pick(&[10, 40, 100, 250]);
        let until = now + self.random.between(1, long);
        match self.random.below(100) {
            0..20 => self.crash(victim, false, false),
            20..30 => self.crash(victim, true, false),
            30..38 => self.crash(victim, true, true),
            38..53 if self.climate.flaps => {
                let rounds = self.random.between(2, 6);
                self.flap(victim, rounds);
            }
            38..53 => {
                self.world.note(|| format!("{} stops until {until}", letter(victim)));
                self.places[victim].paused_until = until;
                self.world.excused_until[victim] = until;
            }
            53..68 => self.partition(victim, until),
            68..74 => {
                let other = self.random.below(self.places.len() as u64) as usize;
                self.world.note(|| format!("the connection {} -> {} breaks", letter(victim), letter(other)));
                self.world.disconnect(victim, other);
            }
            74..81 => {
                self.world.note(|| format!("{} cannot reach the register until {until}", letter(victim)));
                self.cut_register(victim, until);
            }
            81..84 => {
                self.world.note(|| format!("nobody can reach the register until {until}"));
                for machine in 0..self.places.len() {
                    self.cut_register(machine, until);
                }
            }
            84..88 => {
                let until = now + self.random.between(10, 400);
                self.world.note(|| format!("the disk of {} hangs until {until}", letter(victim)));
                self.places[victim].disk_hangs_until = until;
            }
            88..92 => self.disk_fault(victim),
            92..94 => self.forge_request(victim),
            94..95 => {
                self.world.note(|| format!("the register has no room until {until}"));
                self.world.cell.lock().unwrap().full = true;
                self.register_ill(until);
            }
            95..96 => self.put_register_back(until),
            96..98 => self.move_leader(victim),
            _ => {
                let power = self.climate.power_cuts && self.random.chance(600);
                for machine in 0..self.places.len() {
                    self.crash(machine, power, false);
                }
            }
        }
        Ok(())
    }

    /// Stops for about as long as it takes to be dropped, and goes on for about as long as it takes to join again.
    pub(super) fn flap(&mut self, machine: usize, rounds: u64) {
        if !self.raging {
            return;
        }
        let timeout = self.world.timing.failure_timeout;
        let until = self.world.now + self.random.between(timeout / 2, 2 * timeout);
        self.world.note(|| format!("{} stops until {until}, and {rounds} times more", letter(machine)));
        self.places[machine].paused_until = until;
        self.world.excused_until[machine] = until;
        if rounds > 0 {
            let awake = self.random.between(timeout / 2, 3 * timeout);
            let delay = until + awake - self.world.now;
            self.at(delay, Event::Flap { machine, rounds: rounds - 1 });
        }
    }

    fn victim(&mut self) -> usize {
        if self.random.chance(400)
            && let Some(view) = self.world.register()
        {
            return self.world.machine_of(&view.leader);
        }
        self.random.below(self.places.len() as u64) as usize
    }

    fn register_ill(&mut self, until: Millis) {
        self.register_ill_until = self.register_ill_until.max(until);
        self.at(until - self.world.now, Event::RegisterHeals);
    }

    /// An operator puts an older copy in the register's place, and later the right one back. Only while all nodes run and
    /// know a later view: one that knows less and hears of none could not tell.
    fn put_register_back(&mut self, until: Millis) {
        let processes = self.world.machines.iter().map(|machine| machine.process.as_ref());
        let known: Option<Vec<Epoch>> =
            processes.map(|process| Some(Epoch(process?.shared.epoch.load(Ordering::Relaxed)))).collect();
        let Some(known) = known else { return };
        if self.world.cell.lock().unwrap().put_back(known.into_iter()) {
            self.world.note(|| format!("an older copy of the register stands in its place until {until}"));
            self.register_ill(until);
        }
    }

    fn cut_register(&mut self, machine: usize, until: Millis) {
        self.places[machine].register_gone_until = until;
        self.world.machines[machine].register_cut.store(true, Ordering::Relaxed);
        self.at(until - self.world.now, Event::RegisterBack(machine));
    }

    /// One direction, both, or all of a machine's; what is under way is lost or delayed.
    fn partition(&mut self, victim: usize, until: Millis) {
        let shape = self.random.below(4);
        let breaks = self.random.chance(500);
        let other = self.random.below(self.places.len() as u64) as usize;
        let mut directions = Vec::new();
        for peer in 0..self.places.len() {
            match shape {
                0 if peer == other => directions.push((victim, peer)),
                1 if peer == other => directions.extend([(victim, peer), (peer, victim)]),
                2 => directions.extend([(victim, peer), (peer, victim)]),
                3 => directions.push((victim, peer)),
                _ => {}
            }
        }
        self.world.note(|| format!("cut {directions:?} until {until}, connections break: {breaks}"));
        for (from, to) in directions {
            self.cut.insert((from, to), until);
            if breaks {
                self.world.disconnect(from, to);
            }
        }
    }

    fn disk_fault(&mut self, victim: usize) {
        if !self.climate.disk_faults {
            return;
        }
        let operation = self.random.pick(&[
            Operation::Write,
            Operation::Write,
            Operation::Sync,
            Operation::Rename,
            Operation::Create,
            Operation::SyncDirectory,
        ]);
        let nth = self.random.below(6);
        let fault = match self.random.below(4) {
            0 => Fault::Io,
            1 => Fault::Short(self.random.below(400) as usize),
            2 => Fault::SyncDrops,
            _ => Fault::SyncForgets,
        };
        self.world.note(|| format!("{}: {operation:?} number {nth} from now: {fault:?}", letter(victim)));
        self.world.machines[victim].disk.fail(operation, nth, fault);
    }

    /// A request that no node can read comes over a connection between two nodes.
    fn forge_request(&mut self, from: usize) {
        let to = self.random.below(self.places.len() as u64) as usize;
        let Some(connection) = self.world.connections.get(&(from, to)).copied() else { return };
        let (Some(session), Some(view)) = (self.world.session(from), self.world.register()) else { return };
        self.world.note(|| format!("a forged request from {} to {}", letter(from), letter(to)));
        let forward = Forward {
            origin: self.random.next() | 1,
            first_sequence: 1,
            mutations: vec![Bytes::from_static(&[0xff, 0xff, 0xff])],
        };
        let flight = Flight {
            from,
            to,
            from_session: session,
            to_session: connection.to_session,
            connection: connection.number,
            bytes: framed(view.epoch, view.checksum(), Body::Forward(forward)),
            forged: true,
        };
        self.at(0, Event::Deliver(flight));
    }

    fn move_leader(&mut self, asked: usize) {
        let to = self.random.below(self.places.len() as u64) as usize;
        let node = self.world.machines[to].id.clone();
        let clock = self.world.machines[asked].clock(self.world.base, self.world.now);
        if let Some(process) = &mut self.world.machines[asked].process {
            let (answer, _) = tokio::sync::oneshot::channel();
            let deadline = clock + std::time::Duration::from_millis(300);
            process.requests.push(event::Request::MoveLeader { node, deadline, answer });
        }
    }

    pub(super) fn process_ended(&mut self, machine: usize) {
        let place = &mut self.places[machine];
        place.heavy_inline = 0;
        place.disk_busy = false;
        place.turn_due = false;
        place.paused_until = 0;
        if !std::mem::replace(&mut place.restarting, true) {
            let long = self.random.pick(&[1, 20, 200]);
            let delay = self.random.between(0, long);
            self.at(delay, Event::Start(machine));
        }
    }

    /// Kills a process, perhaps with the power of its machine, perhaps in the middle of a write. Wipes it too, where
    /// others hold everything it has.
    fn crash(&mut self, machine: usize, power: bool, wipe: bool) {
        let Some(session) = self.world.session(machine) else { return };
        if power && self.climate.power_cuts {
            // The power goes while something is being written.
            let steps = self.random.below(8);
            self.world.machines[machine].disk.power_off_after(steps);
            if let Some(process) = &mut self.world.machines[machine].process {
                let count = process.writes.len();
                let operations: Vec<_> = process.writes.drain(..count).collect();
                let _ = process.writer.turn(operations);
            }
            let mut random = Random::new(self.random.next());
            self.world.kill(machine, Some(&mut random));
        } else {
            self.world.kill(machine, None);
        }
        if wipe && self.climate.wipes && self.may_wipe(machine) {
            self.world.wipe(machine);
        }
        for to in (0..self.places.len()).filter(|to| *to != machine) {
            if self.random.chance(self.climate.proofs) {
                let delay = self.random.between(0, 15);
                let session = if self.random.chance(800) { Some(session) } else { None };
                self.at(delay, Event::Died { to, machine, session });
            }
        }
        self.process_ended(machine);
    }

    /// In whatever view stands, or may come to stand through a swap on its way, another node has the data.
    fn may_wipe(&self, machine: usize) -> bool {
        let on_the_way = self.queue.values().filter_map(|event| match event {
            Event::AtRegister { ask: Call::Swap(_, view), .. } => Some(view.clone()),
            _ => None,
        });
        let Some(stands) = self.world.register() else { return false };
        std::iter::once(stands).chain(on_the_way).all(|view| {
            view.in_sync.iter().any(|(node, incarnation)| {
                let counted = self.world.machine_of(node);
                counted != machine && self.world.machines[counted].incarnation == *incarnation
            })
        })
    }
}
