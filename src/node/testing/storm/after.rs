//! After the storm: without faults all must become whole again, and everything must be readable.

use std::sync::atomic::Ordering;

use tokio::sync::oneshot;

use super::{Event, RECOVERY, Storm};
use crate::check::{Freshness, Key, Request};
use crate::node::admission::Admitted;
use crate::node::engine::FEATURE_LEVEL;
use crate::node::event;
use crate::node::testing::machine::Load;
use crate::node::testing::world::Broken;
use crate::proto::replcluster::{Mutation, mutation};
use crate::protocol::testing::spread::letter;
use crate::protocol::{Millis, Role};

impl Storm {
    pub(super) fn calm_down(&mut self) {
        self.world.note(|| "the storm is over".to_owned());
        self.raging = false;
        self.climate = self.climate.calm();
        self.cut.clear();
        self.world.heal_register();
        let now = self.world.now;
        for machine in 0..self.places.len() {
            self.world.machines[machine].register_cut.store(false, Ordering::Relaxed);
            self.world.machines[machine].disk.heal();
            let place = &mut self.places[machine];
            place.paused_until = place.paused_until.min(now + 1);
            if std::mem::take(&mut place.disk_hangs_until) > now
                && let Some(session) = self.world.session(machine)
            {
                self.at(1, Event::Disk { machine, session });
            }
            // An older build that came too late for its level is replaced.
            if self.world.machines[machine].level < FEATURE_LEVEL && self.world.session(machine).is_some() {
                self.world.kill(machine, None);
                self.process_ended(machine);
            }
            if self.world.machines[machine].process.is_none() && !self.places[machine].restarting {
                self.places[machine].restarting = true;
                self.at(1, Event::Start(machine));
            }
        }
    }

    pub(super) fn recover(&mut self) -> Result<(), Broken> {
        let latest = self.world.now + 20 * RECOVERY;
        let epoch = |storm: &Storm| storm.world.register().map(|view| view.epoch);
        let (mut deadline, mut seen) = (self.world.now + RECOVERY, (epoch(self), 0));
        loop {
            let next = self.world.now + 20;
            self.run_until(next)?;
            // Entries can take long each: while one after the other gets done, and no view changes, more time is given.
            let now = (epoch(self), self.applied());
            if now.0 == seen.0 && now.1 > seen.1 {
                deadline = (self.world.now + RECOVERY).min(latest);
            }
            seen = now;
            match self.is_whole() {
                Ok(()) => return Ok(()),
                Err(broken) if self.world.now >= deadline => return Err(broken),
                Err(_) => {}
            }
        }
    }

    /// Entries applied by all processes together.
    fn applied(&self) -> u64 {
        let processes = self.world.machines.iter().filter_map(|machine| machine.process.as_ref());
        processes.map(|process| process.engine.applied().index.0).sum()
    }

    fn is_whole(&self) -> Result<(), Broken> {
        let wish = |sentence, detail: String| Err(Broken(sentence, detail));
        let Some(view) = self.world.register() else {
            return wish("once faults end, one leader serves", "the register is empty".to_owned());
        };
        let leader = self.world.machine_of(&view.leader);
        let serves = self.world.machines[leader].process.as_ref().is_some_and(|process| {
            let node = process.engine.node();
            node.can_propose() && node.epoch() == view.epoch && matches!(node.role(), Role::Leader(_))
        });
        if !serves {
            return wish("once faults end, one leader serves", format!("{} does not", letter(leader)));
        }
        for (number, machine) in self.world.machines.iter().enumerate() {
            let ready = machine.process.as_ref().is_some_and(|process| {
                process.shared.ready.load(Ordering::Relaxed)
                    && process.engine.node().epoch() == view.epoch
                    && process.writes.is_empty()
                    && !process.engine.is_busy()
                    && process.engine.applied().index == process.engine.node().log().commit()
            });
            let counted = view.is_in_sync(&machine.id, machine.incarnation);
            if !counted || !ready || view.members != view.in_sync {
                let detail = format!("{}: in sync {counted}, ready {ready}", letter(number));
                return wish("once faults end, everyone is in sync and ready again", detail);
            }
        }
        if self.world.timing.handback_after.is_some() && leader != 0 {
            return wish(
                "once faults end, the lowest address leads again",
                format!("{} does", letter(leader)),
            );
        }
        if !self.world.clients.all_idle() {
            return wish("once faults end, every request is answered", self.world.clients.waiting());
        }
        Ok(())
    }

    /// From now on every entry is work for the worker, in pieces that take up to so long.
    pub fn every_entry_is_heavy(&mut self, work_delay: Millis) {
        self.climate.work_delay = work_delay;
        self.climate.load = Load { piece_units: 1, apart_every: 1 };
        self.climate.old_builds = false;
        for machine in &mut self.world.machines {
            machine.level = FEATURE_LEVEL;
        }
    }

    /// From now on a log keeps nothing that its state holds durably.
    pub fn keep_no_log(&mut self) {
        self.climate.log_keep_bytes = 0;
    }

    /// Kills a process, and starts another one there after that time.
    pub fn leave_out(&mut self, machine: usize, time: Millis) -> Result<(), Broken> {
        self.world.kill(machine, None);
        let place = &mut self.places[machine];
        (place.disk_busy, place.turn_due, place.restarting) = (false, false, true);
        self.go_on(time)?;
        self.start(machine)
    }

    /// The machine that leads by the newest view.
    pub fn leader(&self) -> usize {
        self.world.machine_of(&self.world.register().expect("a view").leader)
    }

    /// Somebody beside the clients asks a machine for a change, and has a minute.
    pub fn order(&mut self, machine: usize, request: mutation::Request) -> oneshot::Receiver<event::Outcome> {
        let mutation = Admitted::made_here(&Mutation { request: Some(request) });
        let deadline = self.world.machines[machine].clock(self.world.base, self.world.now + 60_000);
        let (answer, outcome) = oneshot::channel();
        let process = self.world.machines[machine].process.as_mut().expect("it runs");
        process.requests.push(event::Request::Mutate { mutation, deadline, answer });
        outcome
    }

    /// A client asks the leader.
    pub fn send(&mut self, client: usize, request: Request) {
        let Some(view) = self.world.register() else { return };
        let leader = self.world.machine_of(&view.leader);
        let world = &mut self.world;
        world.clients.send(client, &mut world.machines, leader, request, world.base, world.now);
        self.take_up();
    }

    /// Every key, on every node; and one more write.
    pub fn read_everything_back(&mut self) -> Result<(), Broken> {
        let all = Request::Read { first: Key(0), last: Key(9), freshness: Freshness::Linearizable };
        let write = Request::Put { key: Key(9), value: crate::check::Token(u64::MAX) };
        for (request, everywhere) in [(all, true), (write, false), (all, true)] {
            let machines = if everywhere { self.places.len() } else { 1 };
            for machine in 0..machines {
                let world = &mut self.world;
                world.clients.send(0, &mut world.machines, machine, request, world.base, world.now);
                self.take_up();
                let deadline = self.world.now + 500;
                while !self.world.clients.is_idle(0) {
                    let next = self.world.now + 5;
                    self.run_until(next)?;
                    if next > deadline {
                        return Err(Broken(
                            "once faults end, a request is answered soon",
                            format!("{request:?}"),
                        ));
                    }
                }
            }
        }
        let settle = self.world.now + 200;
        self.run_until(settle)
    }
}
