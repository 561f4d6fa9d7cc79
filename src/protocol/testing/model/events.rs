//! What a walk comes across. A walk that has not been anywhere has shown nothing.

use super::super::cluster::Write;
use super::Setup;
use super::world::{Attempt, Call, World};
use crate::protocol::Role;
use crate::protocol::damping::Strikes;
use crate::protocol::node::RegisterTask;
use crate::protocol::views::Trouble;

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

pub const OLD_REGISTER: &str = "a leader finds an older register than it knows";
pub const PUT_RIGHT: &str = "the set changes after the register was put back and put right";
pub const DAMPED: &str = "a node that was dropped twice waits outside the set";

pub const EVENTS: [Event; 12] = [
    (OLD_REGISTER, |_, world| {
        world.places.iter().filter_map(|place| place.process.as_ref()).any(|process| {
            matches!(process.node.role(), Role::Leader(_)) && process.node.trouble == Some(Trouble::Behind)
        })
    }),
    (PUT_RIGHT, |setup, world| {
        let over = setup.bounds.rollbacks > 0 && world.left.rollbacks == 0 && world.put_back.is_none();
        over && world.epoch_when_put_back.is_some_and(|epoch| world.register.epoch() > epoch)
    }),
    (DAMPED, |_, world| {
        world.places.iter().filter_map(|place| place.process.as_ref()).any(|process| {
            let damped = |strikes: &Strikes| strikes.count() > 1 && !strikes.are_over(process.node.now);
            matches!(process.node.role(), Role::Leader(leader) if leader.strikes.values().any(damped))
        })
    }),
    (FAIL_OVER, |_, world| world.fail_overs() > 0),
    (TWO_FAIL_OVERS, |_, world| world.fail_overs() > 1),
    (JOINS_AGAIN, |setup, world| {
        world.register.newest.as_ref().is_some_and(|view| {
            view.in_sync.len() == setup.nodes && view.epoch.0 > setup.nodes as u64 && view.led_since.0 == 1
        })
    }),
    (CANDIDATES_RACE, |_, world| world.races(false)),
    (LEADER_RACES, |_, world| world.races(true)),
    (DONE_UNHEARD, |_, world| {
        world.places.iter().filter_map(|place| place.process.as_ref()).any(|process| {
            matches!(&process.node.register, RegisterTask::Unsettled { next, .. }
                if world.register.newest.as_ref() == Some(next))
        })
    }),
    (TAIL_IS_CUT, |_, world| {
        world
            .places
            .iter()
            .filter_map(|place| place.process.as_ref())
            .any(|process| process.writes.iter().any(|(_, write)| matches!(write, Write::Truncate { .. })))
    }),
    (TAIL_LIVES, |_, world| world.tail_lives()),
    (ALL_WRITTEN, |setup, world| {
        let acknowledged = world.truth.iter().filter(|(_, payload)| *payload > 0).count();
        world.fail_overs() > 0 && acknowledged == usize::from(setup.bounds.writes)
    }),
];

/// What is looked for in a state, to know that the walk has been somewhere.
impl World {
    /// New leaders that came to serve after something of a client was acknowledged.
    pub fn fail_overs(&self) -> usize {
        let first = self.truth.iter().position(|(_, payload)| *payload > 0).unwrap_or(self.truth.len());
        self.truth[first..].iter().filter(|(_, payload)| *payload == 0).count()
    }

    /// Two want to swap in views of one epoch; one of them leads, or none.
    pub fn races(&self, one_leads: bool) -> bool {
        let asked = self.places.iter().filter_map(|place| match &place.process.as_ref()?.call {
            Some(Call::Swap(attempt)) => Some(attempt),
            Some(Call::Read(_) | Call::Prepare | Call::Found(_) | Call::Swapped(_)) | None => None,
        });
        let attempts: Vec<&Attempt> = asked.chain(&self.late).map(|attempt| &**attempt).collect();
        attempts.iter().enumerate().any(|(number, one)| {
            attempts[number + 1..].iter().any(|other| {
                one.view.epoch == other.view.epoch
                    && one.caller != other.caller
                    && (one.by_leader || other.by_leader) == one_leads
            })
        })
    }

    /// An entry that was not acknowledged when another leader's view came to stand, and is now.
    pub fn tail_lives(&self) -> bool {
        self.acknowledged.iter().any(|(epoch, before)| {
            let opened = self.truth.contains(&(*epoch, 0));
            opened && self.truth.get(*before).is_some_and(|entry| entry.0 < *epoch && entry.1 > 0)
        })
    }
}
