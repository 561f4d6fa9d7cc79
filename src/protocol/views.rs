//! The register as one node sees it: reading it, swapping a view in, and taking a view over, ours or somebody else's.
//! The only write is compare-and-swap, and an outcome that is not known is asked for until it is (R2).

use std::collections::BTreeMap;

use super::follower::Follower;
use super::leader::Leader;
use super::node::{Node, RegisterTask, Role};
use super::rules::Rule;
use super::{Effect, Halt, RegisterUnreachable, Swapped, Warning};
use crate::view::{ClusterId, Epoch, Index, View};

impl Node {
    pub(super) fn read_register(&mut self) {
        if matches!(self.register, RegisterTask::Idle) {
            self.register = RegisterTask::Reading { heard: self.heard };
            self.effects.push(Effect::ReadRegister);
        }
    }

    pub(super) fn swap(&mut self, next: View) {
        assert!(matches!(self.register, RegisterTask::Idle), "two operations on the register at once");
        assert_eq!(next.epoch, self.epoch().next(), "a swap follows the view it was made from");
        assert!(next.in_sync.contains_key(&next.leader), "a leader is in sync");
        self.register = RegisterTask::Swapping(next.clone());
        self.effects.push(Effect::Swap(next));
    }

    pub(super) fn retry_swap(&mut self) {
        if let RegisterTask::Unsettled { next, retry_at } = &self.register
            && self.now >= *retry_at
        {
            let next = next.clone();
            self.register = RegisterTask::Swapping(next.clone());
            self.effects.push(Effect::Swap(next));
        }
    }

    pub(super) fn swap_answered(&mut self, outcome: Swapped) {
        let RegisterTask::Swapping(next) = std::mem::replace(&mut self.register, RegisterTask::Idle) else {
            panic!("a swap was answered that nobody sent");
        };
        match outcome {
            Swapped::Won => self.swap_won(next),
            // An earlier sending of the same swap got through.
            Swapped::Lost(view) if view == next => self.swap_won(next),
            Swapped::Lost(view) => self.observe(Some(view), Epoch(0)),
            Swapped::Unknown if self.breaks(Rule::AssumeSwap) => self.swap_won(next),
            Swapped::Unknown if self.breaks(Rule::GuessLostSwap) => self.abandon_candidacy(),
            Swapped::Unknown => {
                let retry_at = self.now + self.config.heartbeat_interval;
                self.register = RegisterTask::Unsettled { next, retry_at };
            }
        }
    }

    fn swap_won(&mut self, next: View) {
        self.register_warned = false;
        let was_leader = matches!(self.role, Role::Leader(_));
        self.accept_view(next);
        if was_leader {
            self.set_changed();
        } else {
            self.become_leader();
        }
        self.replay_stash();
    }

    pub(super) fn register_answered(&mut self, answer: Result<Option<View>, RegisterUnreachable>) {
        let RegisterTask::Reading { heard } = std::mem::replace(&mut self.register, RegisterTask::Idle)
        else {
            panic!("an answer that nobody asked for");
        };
        match answer {
            Ok(view) => self.observe(view, heard),
            Err(RegisterUnreachable) => {
                self.warn_once(Warning::RegisterUnreachable);
                self.stash.clear();
                self.abandon_candidacy();
            }
        }
    }

    fn warn_once(&mut self, warning: Warning) {
        if !std::mem::replace(&mut self.register_warned, true) {
            self.effects.push(Effect::Warn(warning));
        }
    }

    /// The register was seen to hold this. Up to the epoch `heard`, others had spoken before it was asked.
    fn observe(&mut self, found: Option<View>, heard: Epoch) {
        let known = self.epoch();
        let Some(found) = found else {
            if self.view.is_some() {
                self.warn_once(Warning::RegisterBehind { register: Epoch(0), seen: known });
                self.abandon_candidacy();
            } else if let (Some(cluster), Role::Follower(_)) = (self.config.create, &self.role) {
                self.create_cluster(cluster);
            } else {
                self.candidacy_confirmed();
            }
            return;
        };
        if let Some(ours) = self.view.as_ref().map(|view| view.cluster)
            && ours != found.cluster
        {
            return self.halt(Halt::OtherCluster { ours, register: found.cluster });
        }
        // Others count too: whoever swapped on top of an old view would use an epoch twice (R1).
        let seen = if self.breaks(Rule::TrustOldRegister) { known } else { known.max(heard) };
        if found.epoch < seen {
            self.warn_once(Warning::RegisterBehind { register: found.epoch, seen });
            self.stash.clear();
            return self.abandon_candidacy();
        }
        self.register_warned = false;
        if found.epoch > known {
            self.adopt(found);
        } else if found.epoch < self.heard && !self.breaks(Rule::TrustOldRegister) {
            self.abandon_candidacy(); // the answer was overtaken
            self.read_register();
        } else if self.view.as_ref() != Some(&found) {
            self.halt(Halt::RegisterSplit { epoch: known });
        } else if let Role::Leader(Leader { doubted: Some(floor), start, .. }) = &self.role {
            // The view is still ours: our disk was put back (R24).
            let (last, floor) = (Index(start.0 - 1), *floor);
            self.halt(Halt::LogTooShort { last, floor });
        } else {
            self.stash.retain(|envelope| envelope.epoch <= known);
            self.candidacy_confirmed();
        }
    }

    fn create_cluster(&mut self, cluster: ClusterId) {
        let own = BTreeMap::from([(self.config.id.clone(), self.config.incarnation)]);
        let leader = self.config.id.clone();
        self.promise_and_swap(View {
            cluster,
            epoch: Epoch(1),
            leader,
            led_since: Epoch(1),
            in_sync: own.clone(),
            members: own,
            floor: Index(0),
            recovered: Epoch(0),
        });
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
        self.view = Some(view.clone());
        self.persist_promise();
        self.effects.push(Effect::Adopted(view));
    }
}
