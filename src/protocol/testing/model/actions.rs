//! What can happen next, and what then happens.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::super::cluster::Write;
use super::super::invariants::{Claim, Violation};
use super::world::{Call, World};
use super::{Disks, Reads, Setup, clock};
use crate::protocol::node::RegisterTask;
use crate::protocol::testing::spread::{self, letter};
use crate::protocol::{Input, Role};

/// What can happen. Places are numbers: `a` is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Propose {
        at: usize,
    },
    Deliver {
        from: usize,
        to: usize,
    },
    Persist {
        at: usize,
        count: usize,
    },
    RegisterActs {
        at: usize,
    },
    RegisterAnswers {
        at: usize,
    },
    AnswerIsLost {
        at: usize,
    },
    LateSwap {
        number: usize,
    },
    Retry {
        at: usize,
    },
    Beat {
        at: usize,
    },
    Silence {
        at: usize,
        of: Option<usize>,
    },
    Sleep {
        at: usize,
    },
    Crash {
        at: usize,
        whole: usize,
        part: usize,
    },
    Start {
        at: usize,
        knows: bool,
    },
    DeathIsProved {
        at: usize,
        of: usize,
    },
    /// A sign of life that says more than that: it comes under an epoch that the receiver has not heard of.
    News {
        from: usize,
        to: usize,
    },
    Reset {
        from: usize,
        to: usize,
    },
    Stray {
        from: usize,
        to: usize,
        copy: bool,
    },
    StrayArrives {
        number: usize,
    },
    Move {
        at: usize,
        to: usize,
    },
    PutBack,
    PutRight,
    Stall(Thing),
    Resume {
        number: usize,
    },
}

/// What can be slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Thing {
    Link { from: usize, to: usize },
    Disk { at: usize },
    Register { at: usize },
    Proof { at: usize, of: usize },
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Action::Propose { at } => write!(f, "a client writes at {}", letter(at)),
            Action::Deliver { from, to } => write!(f, "{} reads from {}", letter(to), letter(from)),
            Action::Persist { at, .. } => write!(f, "the disk of {} syncs", letter(at)),
            Action::RegisterActs { at } => write!(f, "the register does what {} asked", letter(at)),
            Action::RegisterAnswers { at } => write!(f, "the register's answer reaches {}", letter(at)),
            Action::AnswerIsLost { at } => write!(f, "the register's answer to {} is lost", letter(at)),
            Action::LateSwap { .. } => write!(f, "a swap that nobody waits for any more happens"),
            Action::Retry { at } | Action::Beat { at } => write!(f, "time passes at {}", letter(at)),
            Action::Silence { at, of: Some(of) } => {
                write!(f, "{} hears nothing of {}", letter(at), letter(of))
            }
            Action::Silence { at, of: None } => write!(f, "{} hears nothing of anybody", letter(at)),
            Action::Sleep { at } => write!(f, "{} wakes up from a long sleep", letter(at)),
            Action::Crash { at, whole, part } => {
                write!(f, "{} is killed; {whole} writes and {part} entries survive", letter(at))
            }
            Action::Start { at, knows } => {
                write!(f, "{} starts; it knows what it applied: {knows}", letter(at))
            }
            Action::DeathIsProved { at, of } => {
                write!(f, "{} learns that {} is dead", letter(at), letter(of))
            }
            Action::News { from, to } => {
                write!(f, "{} hears {} live in a newer epoch", letter(to), letter(from))
            }
            Action::Reset { from, to } => {
                write!(f, "the connection from {} to {} breaks", letter(from), letter(to))
            }
            Action::Stray { from, to, copy } => {
                write!(f, "a message from {} to {} strays; repeated: {copy}", letter(from), letter(to))
            }
            Action::StrayArrives { .. } => write!(f, "a stray arrives"),
            Action::Move { at, to } => {
                write!(f, "an operator asks {} to hand over to {}", letter(at), letter(to))
            }
            Action::PutBack => write!(f, "an older copy of the register takes its place"),
            Action::PutRight => write!(f, "the right register is in its place again"),
            Action::Stall(thing) => write!(f, "{thing:?} stalls"),
            Action::Resume { .. } => write!(f, "what stalled goes on"),
        }
    }
}

impl Action {
    /// What takes its time when this goes on of itself; `None` for what somebody does.
    pub(super) fn thing(self) -> Option<Thing> {
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
            | Action::PutBack
            | Action::PutRight
            | Action::Stall(_)
            | Action::Resume { .. } => None,
        }
    }
}

impl Setup {
    /// Whatever can happen next.
    pub(super) fn every_action(&self, world: &World, actions: &mut Vec<Action>) {
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
        if world.put_back.is_some() {
            actions.push(Action::PutRight);
        } else if world.left.rollbacks > 0 && world.copy_to_put_back().is_some() {
            actions.push(Action::PutBack);
        }
        if let Some((from, to)) = world.news() {
            actions.push(Action::News { from, to });
        }
        for (number, stray) in world.strays.iter().enumerate() {
            if world.process(stray.to).is_some() {
                actions.push(Action::StrayArrives { number });
            }
        }
        for (number, attempt) in world.late.iter().enumerate() {
            if world.shown().would_take(attempt.replaces) {
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
            Some(Call::Read(_) | Call::Swap(_)) => {
                actions.push(Action::RegisterActs { at });
                if left.losses > 0 {
                    actions.push(Action::AnswerIsLost { at });
                }
            }
            Some(Call::Found(_) | Call::Swapped(_)) => actions.push(Action::RegisterAnswers { at }),
            Some(Call::Prepare) | None => {}
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
    pub(super) fn apply(&self, world: &mut World, action: Action) {
        world.note(|| action.to_string());
        let result = catch_unwind(AssertUnwindSafe(|| {
            self.act(world, action)?;
            self.hurry(world)?;
            world.check_all()
        }));
        let violation = match result {
            Ok(Ok(())) => None,
            Ok(Err(violation)) => Some(violation),
            Err(panic) => Some(Violation::new(Claim::NoPanic, spread::panic_text(&*panic))),
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
                    Disks::EachWrite => false,
                    Disks::EachSync => promises,
                    Disks::LeadersOnly => promises || !leads,
                };
                if process.call == Some(Call::Prepare) {
                    world.prepare(at)?;
                    quiet = false;
                } else if self.reads == Reads::AtOnce && matches!(process.call, Some(Call::Read(_))) {
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
                let reads =
                    world.process(at).is_some_and(|process| matches!(process.call, Some(Call::Read(_))));
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
            Action::PutBack => {
                world.left.rollbacks -= 1;
                world.put_back();
                Ok(())
            }
            Action::PutRight => {
                world.put_back = None;
                Ok(())
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
}
