//! placeholder head
mod claims;
mod clock;
mod runs;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use stateright::{Model, Property};

use super::cluster::Write;
use super::invariants::{Claim, Violation};
use crate::protocol::node::RegisterTask;
use crate::protocol::rules::Rule;
use crate::protocol::{Input, Role};
use world::{Call, Notes, World};

/// How often each thing may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bounds {
    /// Entries that clients propose.
    pub writes: u8,
    /// Processes killed.
    pub crashes: u8,
    /// Times that a node hears nothing, of one other or of all, for `failure_timeout`.
    pub silences: u8,
    /// Answers of the register that do not arrive.
    pub losses: u8,
    /// Connections that break, with all that is in them.
    pub resets: u8,
    /// Messages that arrive late, or again.
    pub strays: u8,
    /// Heartbeat intervals that pass at a node for no other reason.
    pub beats: u8,
    /// Sleeps of a whole process, longer than `failure_timeout`.
    pub sleeps: u8,
    /// Hand-overs that an operator asks for.
    pub moves: u8,
    /// Things that take longer than all others, where the schedule is otherwise fixed ([`Setup::lockstep`]).
    pub stalls: u8,
}

impl Bounds {
    /// Nothing happens.
    pub const NONE: Bounds = Bounds {
        writes: 0,
        crashes: 0,
        silences: 0,
        losses: 0,
        resets: 0,
        strays: 0,
        beats: 0,
        sleeps: 0,
        moves: 0,
        stalls: 0,
    };
}

/// What a step of a disk is. Each covers what the one before it covers, and lets less come between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disks {
    /// One write.
    EachWrite,
    /// All pending writes.
    EachSync,
    /// All pending writes; where they are promises and views alone, they are on the disk at once.
    EachSyncOfEntries,
    /// Only what a leader writes takes a step. A follower that dies before it has written is one that dies before it
    /// has received.
    LeadersOnly,
}

/// What a step of a read of the register is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// The register is read, and the answer arrives later: it may be old by then.
    ThereAndBack,
    /// Asked, and answered later.
    Later,
    /// Whoever asks is answered at once.
    AtOnce,
}

/// What is checked.
#[derive(Clone, Debug)]
pub struct Setup {
    pub nodes: usize,
    pub bounds: Bounds,
    /// Nobody has run yet; otherwise all are in sync and idle.
    pub unborn: bool,
    pub disks: Disks,
    pub reads: Reads,
    /// A connection delivers all that is in it at once, as one batch; otherwise one message after the other.
    pub batches: bool,
    /// What can go on goes on in one order, and only `stalls` exceptions are made; otherwise in every order.
    pub lockstep: bool,
    /// A restart may find all that was applied, or nothing; otherwise nothing.
    pub remembers: bool,
    pub broken: Option<Rule>,
    /// Leave out the claims about how a rule is followed, and see what comes of breaking it.
    pub only_consequences: bool,
    /// What must be come across.
    pub reaches: Vec<&'static str>,
}

/// What can happen. Places are numbers: `a` is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Propose { at: usize },
    Deliver { from: usize, to: usize },
    Persist { at: usize, count: usize },
    RegisterActs { at: usize },
    RegisterAnswers { at: usize },
    AnswerIsLost { at: usize },
    LateSwap { number: usize },
    Retry { at: usize },
    Beat { at: usize },
    Silence { at: usize, of: Option<usize> },
    Sleep { at: usize },
    Crash { at: usize, whole: usize, part: usize },
    Start { at: usize, knows: bool },
    DeathIsProved { at: usize, of: usize },
    /// A sign of life that says more than that: it comes under an epoch that the receiver has not heard of.
    News { from: usize, to: usize },
    Reset { from: usize, to: usize },
    Stray { from: usize, to: usize, copy: bool },
    StrayArrives { number: usize },
    Move { at: usize, to: usize },
    Stall(Thing),
    Resume { number: usize },
}

/// What can be slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Thing {
    Link { from: usize, to: usize },
    Disk { at: usize },
    Register { at: usize },
    Proof { at: usize, of: usize },
}

impl Action {
    /// What takes its time when this goes on of itself; `None` for what somebody does.
    fn thing(self) -> Option<Thing> {
        match self {
            Action::Deliver { from, to } | Action::News { from, to } => Some(Thing::Link { from, to }),
            Action::Persist { at, .. } => Some(Thing::Disk { at }),
            Action::RegisterActs { at } | Action::RegisterAnswers { at } | Action::Retry { at } => {
                Some(Thing::Register { at })
            }
            Action::DeathIsProved { at, of } => Some(Thing::Proof { at, of }),
            Action::Propose { .. }
            | Action::AnswerIsLost { .. }
            | Action::LateSwap { .. }
            | Action::Beat { .. }
            | Action::Silence { .. }
            | Action::Sleep { .. }
            | Action::Crash { .. }
            | Action::Start { .. }
            | Action::Reset { .. }
            | Action::Stray { .. }
            | Action::StrayArrives { .. }
            | Action::Move { .. }
            | Action::Stall(_)
            | Action::Resume { .. } => None,
        }
    }
}

impl Model for Setup {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![self.initial()]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.violation.is_some() {
            return;
        }
        self.every_action(world, actions);
        if self.lockstep {
            let mut next = None;
            actions.retain(|action| {
                let Some(thing) = action.thing() else { return true };
                if !world.stalled.contains(&thing) && next.is_none() {
                    next = Some(thing);
                    return true;
                }
                false
            });
            actions.extend(next.filter(|_| world.left.stalls > 0).map(Action::Stall));
            actions.extend((0..world.stalled.len()).map(|number| Action::Resume { number }));
        }
    }

    fn next_state(&self, last: &World, action: Action) -> Option<World> {
        let mut world = last.clone();
        self.apply(&mut world, action);
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Setup>> {
        let mut properties = claims::always();
        for (name, happens) in EVENTS.iter().filter(|(name, _)| self.reaches.contains(name)) {
            properties.push(Property::sometimes(name, *happens));
        }
        properties
    }
}

impl Setup {
    /// Whatever can happen next.
    fn every_action(&self, world: &World, actions: &mut Vec<Action>) {
        for at in 0..self.nodes {
            if world.process(at).is_some() {
                self.actions_of(world, at, actions);
            } else if world.places[at].session > 0 || self.unborn {
                actions.push(Action::Start { at, knows: false });
                if self.remembers && world.places[at].disk.applied.0 > 0 {
                    actions.push(Action::Start { at, knows: true });
                }
            }
            for to in 0..self.nodes {
                let waiting = world.links[world.link(at, to)].len();
                if waiting == 0 {
                    continue;
                }
                if world.process(to).is_some() {
                    actions.push(Action::Deliver { from: at, to });
                }
                if world.left.resets > 0 {
                    actions.push(Action::Reset { from: at, to });
                }
                if world.left.strays > 0 {
                    actions.push(Action::Stray { from: at, to, copy: true });
                    actions.push(Action::Stray { from: at, to, copy: false });
                }
            }
        }
        if let Some((from, to)) = world.news() {
            actions.push(Action::News { from, to });
        }
        for (number, stray) in world.strays.iter().enumerate() {
            if world.process(stray.to).is_some() {
                actions.push(Action::StrayArrives { number });
            }
        }
        let stands = world.register.as_ref().map_or(0, |view| view.epoch.0);
        for (number, attempt) in world.late.iter().enumerate() {
            if attempt.view.epoch.0 == stands + 1 {
                actions.push(Action::LateSwap { number });
            }
        }
    }

    /// What a running node may do, and what may happen to it.
    fn actions_of(&self, world: &World, at: usize, actions: &mut Vec<Action>) {
        let Some(process) = world.process(at) else { return };
        let (node, left) = (&process.node, &world.left);
        if left.writes > 0 && node.can_propose() {
            actions.push(Action::Propose { at });
        }
        if !process.writes.is_empty() {
            let count = if self.disks == Disks::EachWrite { 1 } else { process.writes.len() };
            actions.push(Action::Persist { at, count });
        }
        match &process.call {
            Some(Call::Read | Call::Swap(_)) => {
                actions.push(Action::RegisterActs { at });
                if left.losses > 0 {
                    actions.push(Action::AnswerIsLost { at });
                }
            }
            Some(Call::Found(_) | Call::Swapped(_)) => actions.push(Action::RegisterAnswers { at }),
            None => {}
        }
        if matches!(node.register, RegisterTask::Unsettled { .. }) {
            actions.push(Action::Retry { at });
        }
        if left.beats > 0 {
            actions.push(Action::Beat { at });
        }
        if left.sleeps > 0 {
            actions.push(Action::Sleep { at });
        }
        let others = (0..self.nodes).filter(|other| *other != at);
        for of in others.clone() {
            let follows = node.view().is_some_and(|view| world.place_of(&view.leader) == of);
            if left.silences > 0 && (follows || matches!(node.role(), Role::Leader(_))) {
                actions.push(Action::Silence { at, of: Some(of) });
            }
            let known = node.peers.get(&world.places[of].id).is_some_and(|peer| peer.dead.is_some());
            if world.process(of).is_none() && world.places[of].session > 0 && !known {
                actions.push(Action::DeathIsProved { at, of });
            }
            if left.moves > 0 && node.can_propose() {
                actions.push(Action::Move { at, to: of });
            }
        }
        if left.silences > 0 {
            actions.push(Action::Silence { at, of: None });
        }
        if left.crashes > 0 {
            for (whole, (_, write)) in process.writes.iter().enumerate() {
                let parts = if let Write::Append { entries, .. } = write { entries.len() } else { 1 };
                actions.extend((0..parts).map(|part| Action::Crash { at, whole, part }));
            }
            actions.push(Action::Crash { at, whole: process.writes.len(), part: 0 });
        }
    }

    /// One action, all that follows from it at once, and the checks.
    fn apply(&self, world: &mut World, action: Action) {
        world.note(|| format!("{action:?}"));
        let result = catch_unwind(AssertUnwindSafe(|| {
            self.act(world, action)?;
            self.hurry(world)?;
            world.check_all()
        }));
        let violation = match result {
            Ok(Ok(())) => None,
            Ok(Err(violation)) => Some(violation),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                Some(Violation::new(Claim::NoPanic, text.unwrap_or_default()))
            }
        };
        world.violation = violation.map(Box::new);
        world.seal();
    }

    /// What does not take a step of its own in this setup happens now.
    fn hurry(&self, world: &mut World) -> Result<(), Violation> {
        loop {
            let mut quiet = true;
            for at in 0..self.nodes {
                let Some(process) = world.process(at) else { continue };
                let count = process.writes.len();
                let promises = process.writes.iter().all(|(_, write)| matches!(write, Write::Persist { .. }));
                let leads = matches!(process.node.role(), Role::Leader(_));
                let at_once = match self.disks {
                    Disks::EachWrite | Disks::EachSync => false,
                    Disks::EachSyncOfEntries => promises,
                    Disks::LeadersOnly => promises || !leads,
                };
                if self.reads == Reads::AtOnce && process.call == Some(Call::Read) {
                    world.carry_out_call(at)?;
                    world.answer_call(at)?;
                    quiet = false;
                } else if at_once && count > 0 {
                    world.persist(at, count)?;
                    quiet = false;
                }
            }
            if quiet {
                return Ok(());
            }
        }
    }

    /// A heartbeat interval passes, `count` times, in which all that live are heard, but for those in `silent`.
    fn beats(&self, world: &mut World, at: usize, count: usize, silent: &[usize]) -> Result<(), Violation> {
        for _ in 0..count {
            world.beat(at, silent)?;
            self.hurry(world)?;
        }
        Ok(())
    }

    fn act(&self, world: &mut World, action: Action) -> Result<(), Violation> {
        match action {
            Action::Propose { at } => {
                world.left.writes -= 1;
                world.input(at, Input::Proposed { count: 1 })
            }
            Action::Deliver { from, to } => {
                let link = world.link(from, to);
                let rest = if self.batches { Vec::new() } else { world.links[link].split_off(1) };
                let batch = std::mem::replace(&mut world.links[link], rest);
                world.deliver(&batch)
            }
            Action::Persist { at, count } => world.persist(at, count),
            Action::RegisterActs { at } => {
                let reads = world.process(at).is_some_and(|process| process.call == Some(Call::Read));
                world.carry_out_call(at)?;
                if reads && self.reads == Reads::Later { world.answer_call(at) } else { Ok(()) }
            }
            Action::RegisterAnswers { at } => world.answer_call(at),
            Action::AnswerIsLost { at } => {
                world.left.losses -= 1;
                world.lose_call(at)
            }
            Action::LateSwap { number } => {
                let attempt = world.late.remove(number);
                world.swap(&attempt).map(drop)
            }
            Action::Retry { at } => self.beats(world, at, 1, &[]),
            Action::Beat { at } => {
                world.left.beats -= 1;
                self.beats(world, at, 1, &[])
            }
            Action::Silence { at, of } => {
                world.left.silences -= 1;
                let silent: Vec<usize> = of.map_or_else(|| (0..self.nodes).collect(), |of| vec![of]);
                self.beats(world, at, clock::SILENCE, &silent)
            }
            Action::Sleep { at } => {
                world.left.sleeps -= 1;
                world.tick(at, clock::SLEEP)
            }
            Action::Crash { at, whole, part } => {
                world.left.crashes -= 1;
                world.crash(at, whole, part)
            }
            Action::Start { at, knows } => world.start(at, knows, self),
            Action::DeathIsProved { at, of } => {
                let (node, last) = (world.places[of].id.clone(), world.places[of].session);
                let heard = world.process(at).and_then(|process| process.node.peers.get(&node)?.session);
                // Of a process never heard only "nobody runs there" can be said.
                let session = (heard == Some(last)).then_some(last);
                world.input(at, Input::Died { node, session })
            }
            Action::News { from, to } => world.tell_news(from, to),
            Action::Reset { from, to } => {
                world.left.resets -= 1;
                let link = world.link(from, to);
                world.links[link].clear();
                Ok(())
            }
            Action::Stray { from, to, copy } => {
                world.left.strays -= 1;
                let link = world.link(from, to);
                let flight = world.links[link][0].clone();
                if !copy {
                    world.links[link].remove(0);
                }
                world.strays.push(flight);
                Ok(())
            }
            Action::StrayArrives { number } => {
                let flight = world.strays.remove(number);
                world.deliver(&[flight])
            }
            Action::Stall(thing) => {
                world.left.stalls -= 1;
                world.stalled.push(thing);
                world.stalled.sort();
                Ok(())
            }
            Action::Resume { number } => {
                world.stalled.remove(number);
                Ok(())
            }
            Action::Move { at, to } => {
                world.left.moves -= 1;
                let to = world.places[to].id.clone();
                world.input(at, Input::MoveLeader(to))
            }
        }
    }

    /// Nobody has run yet, or everybody has come to rest: all in sync, nothing under way.
    pub fn initial(&self) -> World {
        let mut world = World::new(self);
        if !self.unborn {
            for at in 0..self.nodes {
                self.apply(&mut world, Action::Start { at, knows: false });
                self.rest(&mut world);
            }
            while world.register.as_ref().is_none_or(|view| view.in_sync.len() < self.nodes) {
                world.left.beats = self.nodes as u8;
                for at in 0..self.nodes {
                    self.apply(&mut world, Action::Beat { at });
                }
                self.rest(&mut world);
            }
            assert!(world.violation.is_none(), "{:?}", world.violation);
        }
        world.left = self.bounds;
        world
    }

    /// Everything under way arrives and is answered.
    fn rest(&self, world: &mut World) {
        loop {
            let mut actions = Vec::new();
            self.actions(world, &mut actions);
            let next = actions.into_iter().find(|action| {
                matches!(
                    action,
                    Action::Deliver { .. }
                        | Action::Persist { .. }
                        | Action::RegisterActs { .. }
                        | Action::RegisterAnswers { .. }
                )
            });
            let Some(action) = next else { return };
            self.apply(world, action);
        }
    }

    /// The story of these actions, for a reader.
    pub fn tell(&self, actions: &[Action]) -> String {
        let mut world = self.initial();
        world.notes = Notes(Some(Vec::new()));
        for action in actions {
            self.apply(&mut world, *action);
        }
        let mut lines = world.notes.0.take().unwrap_or_default();
        if let Some(violation) = &world.violation {
            lines.push(format!("broken: {}: {}", violation.claim, violation.detail));
        }
        lines.join("\n")
    }
}

/// What a walk must come across, or it has not been anywhere.
type Event = (&'static str, fn(&Setup, &World) -> bool);

pub const FAIL_OVER: &str = "a fail-over happens after an acknowledgement";
pub const JOINS_AGAIN: &str = "a follower is dropped and joins again";
pub const CANDIDATES_RACE: &str = "two candidates race for one epoch";
pub const LEADER_RACES: &str = "a leader and a candidate race for one epoch";
pub const DONE_UNHEARD: &str = "a swap's answer is lost and it had been done";
pub const TAIL_IS_CUT: &str = "an uncommitted tail is cut";
pub const TAIL_LIVES: &str = "an entry is acknowledged after its leader was replaced";
pub const TWO_FAIL_OVERS: &str = "two fail-overs happen after an acknowledgement";
pub const ALL_WRITTEN: &str = "every write that clients propose is acknowledged after a fail-over";

const EVENTS: [Event; 9] = [
    (FAIL_OVER, |_, world| world.fail_overs() > 0),
    (TWO_FAIL_OVERS, |_, world| world.fail_overs() > 1),
    (JOINS_AGAIN, |setup, world| {
        world.register.as_ref().is_some_and(|view| {
            view.in_sync.len() == setup.nodes && view.epoch.0 > setup.nodes as u64 && view.led_since.0 == 1
        })
    }),
    (CANDIDATES_RACE, |_, world| world.races(false)),
    (LEADER_RACES, |_, world| world.races(true)),
    (DONE_UNHEARD, |_, world| {
        world.places.iter().filter_map(|place| place.process.as_ref()).any(|process| {
            matches!(&process.node.register, RegisterTask::Unsettled { next, .. }
                if world.register.as_deref() == Some(next))
        })
    }),
    (TAIL_IS_CUT, |_, world| {
        world.places.iter().filter_map(|place| place.process.as_ref()).any(|process| {
            process.writes.iter().any(|(_, write)| matches!(write, Write::Truncate { .. }))
        })
    }),
    (TAIL_LIVES, |_, world| world.tail_lives()),
    (ALL_WRITTEN, |setup, world| {
        let acknowledged = world.truth.iter().filter(|(_, payload)| *payload > 0).count();
        world.fail_overs() > 0 && acknowledged == usize::from(setup.bounds.writes)
    }),
];
