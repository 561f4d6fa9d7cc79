//! placeholder head
mod actions;
mod claims;
mod clock;
mod events;
mod runs;
mod world;

use stateright::{Model, Property};

use crate::protocol::rules::Rule;
use actions::{Action, Thing};
use events::EVENTS;
use world::{Notes, World};

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
#[derive(Clone, Copy, Debug)]
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
    pub reaches: &'static [&'static str],
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
