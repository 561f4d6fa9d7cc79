//! A model check: every schedule of a small cluster, within bounds, with the real [`Node`](crate::protocol::Node).
//!
//! `stateright` walks a graph. Its states are N real nodes, their disks, what is on the way between them, the register,
//! and what was ever acknowledged; its edges are the actions below. Every claim of `invariants` that is about safety is
//! looked up in every state, and each walk names what it must come across on the way ([`Setup::reaches`]), because a
//! walk that has been nowhere proves nothing. Nothing of the protocol is written a second time here.
//!
//! # What an action stands for
//!
//! | action | in the world |
//! |---|---|
//! | propose | a client writes one entry at a node that takes it |
//! | deliver | a connection hands over its next message, or all that is in it: one batch, one flush |
//! | persist | a sync ends: the next pending write, or all of them, are durable |
//! | register acts, answers | the register carries out an operation; its answer arrives, perhaps much later |
//! | answer is lost | the caller gives up: the read failed, or the swap is unknown (R2) |
//! | late swap | a swap that nobody waits for any more happens: its answer was lost, or its caller was killed |
//! | retry | a heartbeat interval passes and an unknown swap is sent again |
//! | crash | SIGKILL or loss of power: any prefix of the pending writes survives, down to single entries |
//! | start | a new process on the same disk, by `Node::restore`; it finds all that was applied, or nothing |
//! | death is proved | a freed lock or a pidfd (R28). It may come at once, late, or never |
//! | news | a sign of life under an epoch that its receiver has not heard of |
//! | silence | a node hears nothing, of one other or of all, for longer than `failure_timeout` |
//! | sleep | a process wakes up after longer than that, and forgives the others (SIGSTOP and SIGCONT) |
//! | reset | a connection breaks, with all that is in it: the rest of what it carried still arrives in order |
//! | stray | a message leaves its connection and arrives late, or a second time |
//! | beat | a heartbeat interval passes in which all that live are heard |
//! | move | an operator asks for a hand-over (R9) |
//! | put back, put right | an older copy of the register takes its place, and the right one again (R11) |
//! | stall, resume | in lockstep only: a link, a disk, a register call or a proof becomes slow |
//!
//! A *pause* needs no action: actions come in any order, and a node to which none happens for a while is paused, with
//! its inputs waiting. Connections are ordered, as TCP's are. What a process had sent when it was killed may still
//! arrive until its next process starts; what was on the way to it is lost.
//!
//! # Time
//!
//! `Node::step` takes milliseconds, and with them every state would be new. A node's clock therefore stands still but
//! for the actions named above that say that time passes, and after each action the times that a node keeps are counted
//! from one fixed now and cut off where nothing can tell them apart (`clock`). Timeouts are so small that all that is
//! derived from them is a whole number: what matters is only which is longer. Who is heard is the schedule's to choose,
//! so pings are not sent; where one would carry news, it is an action. Any node may take any other for dead as often as
//! `silences` says, whatever that one does meanwhile: this is more than any clock can do to it.
//!
//! # What is left out
//!
//! An older copy of the register takes its place only when everybody can tell that it is old, and while no swap is on its
//! way (`World::copy_to_put_back`): what comes of the rest is for an operator to put right, and for the seeded simulation.
//! Snapshots and dropped logs, wiped disks (R24), removal of members, handing back by time, clients' reads (R17), and
//! more than one entry in a proposal: the seeded simulation has all of these but reads. A repeated message right behind
//! its like on one connection is one message. Messages whose arrival can change nothing any more are taken away
//! (`World::is_noise`). States are told apart by 64 bits: in the largest walk two different ones are taken for the
//! same with a chance of one in seventeen thousand.
//!
//! # The walks
//!
//! Steps can be coarse: a connection delivers all that is in it, reads of the register are answered at once, and what
//! anyone but a leader writes is durable at once (a follower that dies before it has written is one that dies before it
//! has received). Coarse walks see fewer interleavings and reach further. In *lockstep* there is one order for all that
//! goes on of itself, save for `stalls` exceptions; what goes wrong still does so at any moment.
//!
//! | walk | nodes, steps | at most, at any moment | states | depth | processor time |
//! |---|---|---|---|---|---|
//! | *birth* | 2, from empty disks | 1 write, 1 crash, 1 lost answer | 63,148 | 44 | 0.4 s |
//! | *crash* | 3, coarse | 1 write, 1 crash | 29,844 | 33 | 0.3 s |
//! | fine | 3, everything on its own | 1 write, 1 crash | 2,555,121 | 57 | 37 s |
//! | silence | 3, coarse | 1 write, 1 silence | 141,044 | 38 | 1.6 s |
//! | sleep | 3, coarse | 1 write, 1 crash, 1 sleep | 497,000 | 37 | 5 s |
//! | writes | 3, coarse | 3 writes, 1 crash | 3,698,640 | 51 | 48 s |
//! | register | 3, but each read and sync | 1 write, 1 crash, 1 lost answer | 1,766,472 | 53 | 21 s |
//! | network | 3, coarse | 1 write, 1 crash, 1 reset, 1 stray | 7,684,513 | 52 | 92 s |
//! | hand-over | 3, coarse | 1 write, 1 crash, 1 hand-over | 1,554,363 | 62 | 18 s |
//! | stalls | 3, lockstep, everything on its own | 3 writes, 1 crash, 1 stall | 3,790,582 | 81 | 23 s |
//! | drop | 3, lockstep | 3 writes, 1 crash, 1 reset | 236,949 | 49 | 1.3 s |
//! | *rollback* | 3, lockstep, but each read | 1 write, 1 silence, 1 beat, 1 register put back | 209,552 | 53 | 2 s |
//! | rollback-crash | 3, lockstep | 1 write, 1 crash, 1 beat, 1 register put back | 160,879 | 41 | 1.5 s |
//! | *flapping* | 3, lockstep | 1 write, 2 silences | 81,287 | 63 | 0.8 s |
//! | silences | 3, lockstep | 2 writes, 2 silences | 467,990 | 71 | 2.8 s |
//! | crashes | 3, lockstep | 3 writes, 2 crashes | 2,779,185 | 69 | 17 s |
//! | lockstep | 3, lockstep | 3 writes, 1 crash, 1 silence, 1 reset | 46,951,900 | 76 | 318 s |
//!
//! Every walk ends: these are all the states that there are. Times are of both cores of a small machine together, so
//! that all take five minutes on two. Plain `cargo test` walks those in italics; any other is asked for by name, also with
//! other bounds or without a rule:
//!
//! ```text
//! export CARGO_PROFILE_TEST_OPT_LEVEL=2
//! REPLCLUSTER_MODEL=all cargo test --lib every_schedule_keeps_every_claim -- --nocapture
//! REPLCLUSTER_MODEL="writes,crash writes=2 strays=1" cargo test --lib every_schedule_keeps_every_claim -- --nocapture
//! REPLCLUSTER_MODEL="fine without=NoTruncate" cargo test --lib every_schedule_keeps_every_claim -- --nocapture
//! cargo test --lib a_rule_that_is_switched_off -- --nocapture
//! ```
//!
//! The last prints, for each rule, the shortest schedule found that breaks a claim, as a story.
//!
//! # A rule that is not needed for safety
//!
//! With any rule of the table in `runs` switched off some schedule loses what was acknowledged, or shows what was not,
//! within fifteen steps; without the two about a register put back (R11) and damping (R36) it breaks the rule's own claim.
//! `SkipPromise` (R5) is the exception: no schedule of *register* misses it, in 1.8 million states.
//! The reason: every view is elected out of the view before it, so whoever leads epoch e + 1 was one of those whose
//! acknowledgement each commit of epoch e has waited for, and holds it. It must only not acknowledge anything of epoch e once it leads
//! e + 1. While its swap is open it is a candidate, and candidates take no entries; and if it dies meanwhile, it has
//! also lost the swap's answer, so its next process can not lead e + 1: it finds itself named by the register and opens
//! e + 2 with the log it has by then. What the durable promise is for is to make that process look: without it, it obeys
//! the old leader again, nobody reads the register, and the old leader goes on under a view that no longer stands, in
//! which no linearizable read can be proved (R17) and no change of the set succeeds. The simulation sees this as "one
//! leader serves". The claim that the promise is on disk before the swap is still checked as such.

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
    /// Times that an older copy of the register takes its place.
    pub rollbacks: u8,
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
        rollbacks: 0,
    };
}

/// What a step of a disk is. Each covers what the one before it covers, and lets less come between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disks {
    /// One write.
    EachWrite,
    /// All pending writes; where they are promises and views alone, they are on the disk at once.
    EachSync,
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
            while world.register.newest.as_ref().is_none_or(|view| view.in_sync.len() < self.nodes) {
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
