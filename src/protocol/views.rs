//! The register as one node sees it: reading it, swapping a view in, and taking a view over, ours or somebody else's.
//! The only write is compare-and-swap, and an outcome that is not known is asked for until it is (R2).

use std::collections::BTreeMap;

use super::follower::Follower;
use super::leader::Leader;
use super::node::{Node, RegisterTask, Role};
use super::rules::Rule;
use super::{Effect, Found, Halt, Millis, RegisterUnreachable, Swapped, Warning};
use crate::view::{Checksum, ClusterId, Epoch, Index, View};

/// Why no view can change. Ends with the first answer of the register that is as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Trouble {
    /// It cannot be read (R10).
    Unreachable,
    /// It is older than what is known or heard of (R11).
    Behind,
    /// It holds another chain (R11).
    Forked,
    /// It is another directory (R11).
    Replaced,
    /// It has no room for a view (R34).
    NoRoom,
}

/// A pause after a failure, longer after each one in a row (R34).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Pause {
    pub(super) until: Millis,
    pub(super) length: Millis,
}

impl Pause {
    /// From `shortest` to `longest`, doubling.
    pub(super) fn begin(&mut self, now: Millis, shortest: Millis, longest: Millis) {
        self.length = (2 * self.length).clamp(shortest, longest);
        self.until = now + self.length;
    }

    pub(super) fn is_over(&self, now: Millis) -> bool {
        now >= self.until
    }

    /// What failed has succeeded.
    pub(super) fn end(&mut self) {
        *self = Pause::default();
    }
}

impl Node {
    pub(super) fn read_register(&mut self) {
        if matches!(self.register, RegisterTask::Idle) {
            self.read_register_for(None);
        }
    }

    fn read_register_for(&mut self, unsettled: Option<View>) {
        self.register = RegisterTask::Reading { heard: self.heard, unsettled };
        self.effects.push(Effect::ReadRegister { known: self.view.as_ref().map(View::id) });
    }

    /// Leaves the register alone for a while: at first for a heartbeat interval, at last for about a second.
    pub(super) fn pause(&mut self) {
        let (interval, timeout) = (self.config.heartbeat_interval, self.config.failure_timeout);
        self.pause.begin(self.now, interval, 4 * timeout);
    }

    /// Somebody has spoken under a later epoch than ours: the register has been there, and a swap on top of our view
    /// would use an epoch twice (R1, R11).
    pub(super) fn is_behind_others(&self) -> bool {
        self.heard > self.epoch() && !self.breaks(Rule::TrustOldRegister)
    }

    /// The checksum that a view made now carries of the one it replaces.
    pub(super) fn previous(&self) -> Checksum {
        let chained = |view: &View| self.chained || view.previous != Checksum(0);
        self.view.as_ref().filter(|view| chained(view)).map_or(Checksum(0), View::checksum)
    }

    pub(super) fn swap(&mut self, next: View) {
        assert!(matches!(self.register, RegisterTask::Idle), "two operations on the register at once");
        self.send_swap_of(next, false);
    }

    fn send_swap_of(&mut self, next: View, unsettled: bool) {
        assert_eq!(next.epoch, self.epoch().next(), "a swap follows the view it was made from");
        assert!(next.in_sync.contains_key(&next.leader), "a leader is in sync");
        let replaces = self.view.as_ref().map(View::id);
        self.register = RegisterTask::Swapping { next: next.clone(), unsettled };
        self.effects.push(Effect::Swap { replaces, next });
    }

    /// Asks for the outcome that is not known by sending the same swap again. Where somebody has spoken under a later
    /// epoch, ours or another view was there, and must not be put on top of a register that was put back: then it is
    /// read (R11).
    pub(super) fn settle_swap(&mut self) {
        if let RegisterTask::Unsettled { next } = &self.register
            && self.pause.is_over(self.now)
        {
            let next = next.clone();
            if self.is_behind_others() {
                self.read_register_for(Some(next));
            } else {
                self.send_swap_of(next, true);
            }
        }
    }

    pub(super) fn swap_answered(&mut self, outcome: Swapped) {
        let RegisterTask::Swapping { next, unsettled } =
            std::mem::replace(&mut self.register, RegisterTask::Idle)
        else {
            panic!("a swap was answered that nobody sent");
        };
        match outcome {
            Swapped::Won => self.swap_won(next),
            // An earlier sending of the same swap got through.
            Swapped::Lost(Found::Holds(view)) if view == next => self.swap_won(next),
            Swapped::Lost(found) if self.is_newer(&found) => self.observe(found, Epoch(0)),
            Swapped::Unknown if self.breaks(Rule::AssumeSwap) => self.swap_won(next),
            Swapped::Unknown if self.breaks(Rule::GuessLostSwap) => self.abandon_candidacy(),
            Swapped::Unknown => self.unsettle(next),
            // This sending has changed nothing; an earlier one still may.
            Swapped::Lost(found) if unsettled => self.still_unsettled(next, found, Epoch(0)),
            Swapped::Lost(found) => {
                self.pause();
                self.observe(found, Epoch(0));
            }
            Swapped::Failed if unsettled => self.unsettle(next),
            Swapped::Failed => {
                self.no_room_for_view();
                self.abandon_candidacy();
            }
        }
    }

    /// Nothing was changed, for want of room: tried again after a time (R34).
    pub(super) fn no_room_for_view(&mut self) {
        self.pause();
        // A doubt stays until the register was seen to hold what it should (R11).
        if !self.is_in_doubt() {
            self.warn_of(Trouble::NoRoom, Warning::NoRoomForView);
        }
    }

    fn still_unsettled(&mut self, next: View, found: Found, heard: Epoch) {
        self.unsettle(next);
        self.observe_trouble(found, heard);
    }

    /// A view that follows the one that we know, or that an operator has made since (R4).
    fn is_newer(&self, found: &Found) -> bool {
        match found {
            Found::Holds(view) => view.epoch > self.epoch(),
            Found::Forked { newest } => newest.recovered > self.epoch(),
            Found::Empty | Found::Behind { .. } | Found::Replaced => false,
        }
    }

    /// The register is not the one that we know (R11): it is looked at again until it is.
    pub(super) fn is_in_doubt(&self) -> bool {
        match self.trouble {
            Some(Trouble::Behind | Trouble::Forked | Trouble::Replaced) => true,
            Some(Trouble::Unreachable | Trouble::NoRoom) | None => false,
        }
    }

    /// Nobody else would look whether the register was put right.
    pub(super) fn look_again_when_in_doubt(&mut self) {
        if self.is_in_doubt() && self.pause.is_over(self.now) && matches!(self.register, RegisterTask::Idle) {
            self.read_register();
        }
    }

    /// The register holds what it should. That it has no room is another matter.
    fn register_is_well(&mut self) {
        if self.trouble != Some(Trouble::NoRoom) {
            self.trouble = None;
            self.pause.end();
        }
    }

    fn unsettle(&mut self, next: View) {
        self.register = RegisterTask::Unsettled { next };
        self.pause();
    }

    fn swap_won(&mut self, next: View) {
        self.trouble = None;
        self.pause.end();
        let was_leader = matches!(self.role, Role::Leader(_));
        self.accept_view(next);
        if was_leader {
            self.set_changed();
        } else {
            self.become_leader();
        }
        self.replay_stash();
    }

    pub(super) fn register_answered(&mut self, answer: Result<Found, RegisterUnreachable>) {
        let RegisterTask::Reading { heard, unsettled } =
            std::mem::replace(&mut self.register, RegisterTask::Idle)
        else {
            panic!("an answer that nobody asked for");
        };
        match (answer, unsettled) {
            (Ok(Found::Holds(view)), Some(next)) if view == next => self.swap_won(next),
            // The register has moved on past it, so that it can never happen.
            (Ok(found), Some(_)) if self.is_newer(&found) => self.observe(found, heard),
            (Ok(found), Some(next)) => self.still_unsettled(next, found, heard),
            (Ok(found), None) => self.observe(found, heard),
            (Err(RegisterUnreachable), unsettled) => {
                // A doubt lasts until the register is read and holds what it should (R11).
                if !self.is_in_doubt() {
                    self.warn_of(Trouble::Unreachable, Warning::RegisterUnreachable);
                }
                self.stash.clear();
                if let Some(next) = unsettled {
                    return self.unsettle(next);
                }
                let interval = self.config.heartbeat_interval;
                self.pause.begin(self.now, interval, interval);
                self.abandon_candidacy();
            }
        }
    }

    fn warn_of(&mut self, trouble: Trouble, warning: Warning) {
        if self.trouble.replace(trouble) != Some(trouble) {
            self.effects.push(Effect::Warn(warning));
        }
    }

    /// What is wrong with what the register was seen to hold. Up to the epoch `heard`, others had spoken before it was
    /// asked.
    fn observe_trouble(&mut self, found: Found, heard: Epoch) {
        let seen = self.epoch().max(heard);
        match found {
            Found::Replaced => self.warn_of(Trouble::Replaced, Warning::RegisterReplaced),
            Found::Forked { newest } => {
                let warning = Warning::RegisterForked { register: newest.epoch, seen };
                self.warn_of(Trouble::Forked, warning);
            }
            Found::Empty => self.warn_of_behind(Epoch(0), seen),
            Found::Behind { newest } => self.warn_of_behind(newest, seen),
            Found::Holds(view) => self.warn_of_behind(view.epoch, seen),
        }
    }

    fn warn_of_behind(&mut self, register: Epoch, seen: Epoch) {
        if register < seen {
            self.warn_of(Trouble::Behind, Warning::RegisterBehind { register, seen });
        }
    }

    /// The register was seen to hold this. Up to the epoch `heard`, others had spoken before it was asked.
    fn observe(&mut self, found: Found, heard: Epoch) {
        let known = self.epoch();
        // Others count too: whoever swapped on top of an old view would use an epoch twice (R1).
        let seen = if self.breaks(Rule::TrustOldRegister) { known } else { known.max(heard) };
        let found = match found {
            Found::Empty if self.view.is_none() && seen == Epoch(0) => {
                return match (self.config.create, &self.role) {
                    (Some(cluster), Role::Follower(_)) => self.create_cluster(cluster),
                    (Some(_) | None, _) => self.candidacy_confirmed(),
                };
            }
            Found::Holds(view) => view,
            // An operator has decided (R4): the new chain begins with a view made by hand.
            Found::Forked { newest } if newest.recovered > known || self.breaks(Rule::TrustOtherChain) => {
                newest
            }
            Found::Empty | Found::Behind { .. } | Found::Forked { .. } | Found::Replaced => {
                return self.refuse(found, heard);
            }
        };
        if let Some(ours) = self.view.as_ref().map(|view| view.cluster)
            && ours != found.cluster
        {
            return self.halt(Halt::OtherCluster { ours, register: found.cluster });
        }
        if found.epoch < seen {
            return self.refuse(Found::Holds(found), heard);
        }
        if found.epoch > known {
            self.trouble = None;
            self.pause.end();
            self.adopt(found);
        } else if found.epoch < self.heard && !self.breaks(Rule::TrustOldRegister) {
            self.abandon_candidacy(); // the answer was overtaken
            self.read_register();
        } else if self.view.as_ref() != Some(&found) {
            self.refuse(Found::Forked { newest: found }, heard);
        } else if let Role::Leader(Leader { doubted: Some(floor), start, .. }) = &self.role {
            // The view is still ours: our disk was put back (R24).
            let (last, floor) = (Index(start.0 - 1), *floor);
            self.halt(Halt::LogTooShort { last, floor });
        } else {
            self.register_is_well();
            self.stash.retain(|envelope| envelope.epoch <= known);
            self.candidacy_confirmed();
        }
    }

    /// No view can change now: this register does not follow what we know (R11).
    fn refuse(&mut self, found: Found, heard: Epoch) {
        self.observe_trouble(found, heard);
        self.pause();
        self.stash.clear();
        self.abandon_candidacy();
    }

    fn create_cluster(&mut self, cluster: ClusterId) {
        let own = BTreeMap::from([(self.config.id.clone(), self.config.incarnation)]);
        let leader = self.config.id.clone();
        let first = View {
            cluster,
            epoch: Epoch(1),
            leader,
            led_since: Epoch(1),
            in_sync: own.clone(),
            members: own,
            floor: Index(0),
            recovered: Epoch(0),
            previous: Checksum(0),
        };
        self.prepare(first, false);
    }

    /// Somebody else's newer view: obey it.
    fn adopt(&mut self, view: View) {
        let own = self.config.incarnation;
        let in_sync = view.is_in_sync(&self.config.id, own);
        // R4: an operator has made another copy the source since we last saw a view. What we know to be committed may
        // be in no log of today, so nothing of ours can be continued.
        let holds = self.log.last().index > Index(0);
        if holds && !in_sync && self.view.as_ref().is_some_and(|old| old.epoch < view.recovered) {
            return self.halt(Halt::Overruled { epoch: view.recovered });
        }
        let was_member = self.view.as_ref().is_some_and(|old| old.members.get(&self.config.id) == Some(&own));
        match view.members.get(&self.config.id) {
            None if was_member => return self.halt(Halt::Removed),
            Some(other) if was_member && *other != own => return self.halt(Halt::Superseded),
            None | Some(_) => {}
        }
        let last = self.log.last().index;
        if in_sync && last < view.floor {
            return self.halt(Halt::LogTooShort { last, floor: view.floor });
        }
        let leader = view.leader.clone();
        if let Role::Leader(Leader { transfer: Some(_), .. }) = &self.role {
            self.effects.push(Effect::Fenced(false));
        }
        self.accept_view(view);
        self.role = Role::Follower(Follower::new(self.log.commit()));
        self.leader_gone_since = None;
        self.removing.clear();
        if leader == self.config.id {
            // We led and came back, or never learned that our swap had succeeded: lead again, in a new epoch (R7).
            self.consider_takeover();
        } else {
            // It led after whatever was proved of an earlier process of it; the driver proves anew if need be.
            let now = self.now;
            let peer = self.peer(&leader);
            peer.last_heard = now;
            peer.dead = None;
            self.report();
        }
        self.replay_stash();
    }

    fn accept_view(&mut self, view: View) {
        assert!(view.epoch > self.epoch(), "views only go forward (R1)");
        self.promised = self.promised.max(view.epoch);
        for peer in self.peers.values_mut() {
            peer.incarnation = None;
        }
        self.view_checksum = view.checksum();
        self.view = Some(view.clone());
        self.persist_promise();
        self.effects.push(Effect::Adopted(view));
    }
}
