//! Who is in the set: the leader takes out the gone and takes in those that have caught up (R3, R4, R30). And handing
//! leadership over, gracefully (R9).

use std::collections::BTreeMap;

use super::damping::Strikes;
use super::leader::Transfer;
use super::node::{Node, RegisterTask, Role};
use super::progress::{Phase, Progress};
use super::rules::Rule;
use super::{Effect, Message, Millis, Warning};
use crate::view::{Index, NodeId, VIEW_BYTES_MAX, View};

impl Node {
    // --- the set ---

    /// One swap for everything that should change: out with the gone, in with those that have caught up.
    pub(super) fn change_set(&mut self) {
        let Some(view) = &self.view else { return };
        let Role::Leader(leader) = &self.role else { return };
        // Who says nothing hears nothing, and must not judge.
        if !matches!(self.register, RegisterTask::Idle) || self.is_stuck() {
            return;
        }
        // Nor who has heard of a later view (R11); and what has failed is tried again after a time (R34).
        if self.is_behind_others() || self.is_in_doubt() || !self.pause.is_over(self.now) {
            return;
        }
        let commit = self.log.commit();
        // A node may live and yet not follow: it has promised another epoch, or cannot read the register and so not
        // learn of ours. It would be waited for as long as that lasts (R7).
        let mute = |node: &NodeId| {
            let known = leader.progress.get(node);
            known.is_some_and(|known| self.now - known.answered_at > self.config.failure_timeout)
        };
        // Or its disk may hang, or be nearly full, while ours goes on.
        let unfit = |node: &NodeId| {
            let hangs = |known: &Progress| {
                known.owing_since.is_some_and(|since| self.now - since > self.config.stall_timeout)
                    && !self.breaks(Rule::WaitForHungDisk)
            };
            // Long enough for our own disk to be looked at (R25).
            let full = |known: &Progress| self.has_more_room_than(known) && self.lasts(known.full_since);
            leader.progress.get(node).is_some_and(|known| hangs(known) || full(known))
        };
        let lags = |node: &NodeId| {
            let strikes = leader.strikes.get(node).map_or(0, Strikes::count);
            let late =
                |known: &Progress| known.lag.is_too_much(self.now, strikes, self.config.failure_timeout);
            leader.progress.get(node).is_some_and(late) && !self.breaks(Rule::WaitForSlow)
        };
        let strikes = |node: &NodeId| (self.is_silent(node) || mute(node) || lags(node)) && !unfit(node);
        let leaves = |node: &NodeId| {
            *node != self.config.id
                && (self.is_gone(node)
                    || mute(node)
                    || lags(node)
                    || unfit(node)
                    || leader.expelled.contains(node)
                    || self.removing.contains(node))
        };
        // A known address with another directory waits until the old one has left the set (R24).
        let may_join = |node: &NodeId, known: &Progress| {
            leader.serving
                && leader.transfer.is_none()
                && !view.in_sync.contains_key(node)
                && known.phase == Phase::Stream
                && !self.is_full_elsewhere(known)
                && self.is_undamped(node)
                && !self.is_gone(node)
                && !self.removing.contains(node)
        };
        // R30: reached the commit index, reached our opening entry, and has said so to us in this epoch.
        let joins =
            |known: &Progress| known.matched >= commit.max(leader.start) || self.breaks(Rule::JoinBehind);
        // Under steady load the commit index runs ahead of whoever has the slowest disk for ever. Who is that close is
        // waited for a moment, until it has reached it.
        let close = |known: &Progress| known.quick && self.now - known.round.0 <= self.patience();
        let mut growing = BTreeMap::new();
        let mut joining = BTreeMap::new();
        for (node, known) in leader.progress.iter().filter(|(node, known)| may_join(node, known)) {
            if joins(known) {
                joining.insert(node.clone(), known.incarnation);
            }
            if joins(known) || close(known) {
                growing.insert(node.clone(), known.incarnation);
            }
        }
        let mut in_sync = view.in_sync.clone();
        in_sync.retain(|node, _| !leaves(node));
        let mut members = view.members.clone();
        members.retain(|node, _| !self.removing.contains(node));
        // Beyond the bound nobody is taken in: a view must fit wherever it is kept.
        for (node, incarnation) in joining {
            in_sync.insert(node.clone(), incarnation);
            let before = members.insert(node.clone(), incarnation);
            let larger = View { in_sync: in_sync.clone(), members: members.clone(), ..view.clone() };
            if larger.bytes() > VIEW_BYTES_MAX {
                in_sync.remove(&node);
                growing.remove(&node);
                match before {
                    Some(known) => members.insert(node, known),
                    None => members.remove(&node),
                };
            }
        }
        let struck = view.in_sync.keys().filter(|node| !in_sync.contains_key(*node) && strikes(node));
        let struck = struck.cloned().collect();
        let relieved = leader.growing.keys().any(|node| !growing.contains_key(node));
        if in_sync == view.in_sync && members == view.members {
            self.leader().growing = growing;
            if relieved {
                self.advance_commit();
            }
            return;
        }
        // A new leader may not know yet how much its predecessor had committed: the floor never sinks.
        let floor = view.floor.max(commit);
        let previous = self.previous();
        let next = View { epoch: view.epoch.next(), in_sync, members, floor, previous, ..view.clone() };
        self.leader().growing = growing;
        self.leader().struck = struck;
        self.swap(next);
    }

    /// Our own change of the set has been confirmed.
    pub(super) fn set_changed(&mut self) {
        let view = self.view.clone().expect("a view was just adopted");
        let (now, timeout) = (self.now, self.config.failure_timeout);
        self.removing.retain(|node| view.members.contains_key(node));
        let leader = self.leader();
        for node in std::mem::take(&mut leader.struck) {
            let since = leader.progress.get(&node).and_then(|known| known.in_sync_since).unwrap_or(now);
            leader.strikes.entry(node).or_default().strike(now, now - since, timeout);
        }
        leader.strikes.retain(|node, _| view.members.contains_key(node));
        leader.growing.clear();
        leader.expelled.retain(|node| view.in_sync.contains_key(node));
        // Whoever left starts anew with a report.
        leader.progress.retain(|node, known| match view.in_sync.get(node) {
            Some(incarnation) => *incarnation == known.incarnation,
            None => known.in_sync_since.is_none(),
        });
        for (node, known) in &mut leader.progress {
            known.told_commit = Index(0); // everyone hears of the new epoch at once
            if view.in_sync.contains_key(node) {
                known.phase = Phase::Stream;
                known.answered_at = now;
                known.owing_since = None;
                if known.in_sync_since.is_none() {
                    known.in_sync_since = Some(now);
                    known.lag.forget();
                }
            }
        }
        self.advance_commit();
        self.flush();
        self.change_set();
    }

    /// For longer than everybody may need to notice the same.
    fn lasts(&self, since: Option<Millis>) -> bool {
        since.is_some_and(|since| self.now - since > self.config.failure_timeout)
    }

    /// It has not come and gone too often of late (R36).
    fn is_undamped(&self, node: &NodeId) -> bool {
        let Role::Leader(leader) = &self.role else { return true };
        self.breaks(Rule::JoinUndamped)
            || leader.strikes.get(node).is_none_or(|strikes| strikes.are_over(self.now))
    }

    /// How long writers may have to wait for a joiner that is close, in milliseconds.
    pub(super) fn patience(&self) -> Millis {
        2 * self.config.heartbeat_interval
    }

    pub(super) fn forget_silent_joiners(&mut self) {
        let Role::Leader(leader) = &self.role else { return };
        let Some(view) = &self.view else { return };
        let gone: Vec<NodeId> = leader
            .progress
            .keys()
            .filter(|node| {
                !view.in_sync.contains_key(*node) && !leader.growing.contains_key(*node) && self.is_gone(node)
            })
            .cloned()
            .collect();
        for node in gone {
            self.leader().progress.remove(&node);
        }
    }

    pub(super) fn remove(&mut self, node: NodeId) {
        let known = self.view.as_ref().is_some_and(|view| view.members.contains_key(&node));
        if matches!(self.role, Role::Leader(_))
            && known
            && node != self.config.id
            && !self.removing.contains(&node)
        {
            self.removing.push(node);
            self.change_set();
        }
    }

    // --- handing over ---

    pub(super) fn start_transfer(&mut self, to: &NodeId) {
        let able = self.can_propose()
            && *to != self.config.id
            && !self.is_gone(to)
            && !self.is_behind_others()
            && !self.is_in_doubt();
        if able && self.view.as_ref().is_some_and(|view| view.in_sync.contains_key(to)) {
            let until = self.now + self.config.failure_timeout;
            self.leader().transfer = Some(Transfer { to: to.clone(), until, told: false });
            self.effect(Effect::Fenced(true));
            self.tell_transfer();
        }
    }

    /// The target is told once everyone has everything, so that it opens its epoch at once.
    pub(super) fn tell_transfer(&mut self) {
        let last = self.log.last().index;
        let committed = self.log.commit() == last || self.breaks(Rule::HandOverUndrained);
        let idle = matches!(self.register, RegisterTask::Idle);
        let Role::Leader(leader) = &mut self.role else { return };
        if let Some(transfer) = &mut leader.transfer
            && !transfer.told
            && committed
            && idle
        {
            transfer.told = true;
            let to = transfer.to.clone();
            self.send(&to, Message::Transfer);
        }
    }

    pub(super) fn end_late_transfer(&mut self) {
        let (now, timeout) = (self.now, self.config.failure_timeout);
        self.tell_transfer();
        let Role::Leader(leader) = &mut self.role else { return };
        if let Some(transfer) = &leader.transfer
            && now > transfer.until
        {
            let to = transfer.to.clone();
            leader.transfer = None;
            leader.transfer_pause.begin(now, timeout, 32 * timeout);
            if let Some(known) = leader.progress.get_mut(&to) {
                known.in_sync_since = Some(now);
            }
            self.effect(Effect::Fenced(false));
            self.effect(Effect::Warn(Warning::TransferFailed(to)));
        }
    }

    /// A leader whose disk is nearly full lets one lead that has room (R25). The lowest, as always.
    pub(super) fn hand_over_when_full(&mut self) {
        if self.lasts(self.full_since)
            && self.may_hand_over_unasked()
            && !self.breaks(Rule::LeadWithFullDisk)
            && self.can_propose()
            && let Some(to) = self.roomy_follower().cloned()
        {
            self.start_transfer(&to);
        }
    }

    /// Not right after a hand-over that failed: each one keeps the writers waiting.
    fn may_hand_over_unasked(&self) -> bool {
        matches!(&self.role, Role::Leader(leader) if leader.transfer_pause.is_over(self.now))
    }

    /// True where the node's data lies on the disk that ours lies on: it has as much room as we have.
    fn shares_disk(&self, known: &Progress) -> bool {
        known.disk != 0 && known.disk == self.config.disk && !self.breaks(Rule::CompareSharedDisk)
    }

    /// True where the node's disk is nearly full, and is another one than ours: what is left of it is for keeping what it
    /// has (R25).
    pub(super) fn is_full_elsewhere(&self, known: &Progress) -> bool {
        known.full && !self.shares_disk(known)
    }

    /// True where that is so, and our disk is not.
    pub(super) fn has_more_room_than(&self, known: &Progress) -> bool {
        !self.full && self.is_full_elsewhere(known)
    }

    /// True where we lead, and an in-sync follower that stays in sync is short of room: what grows must not be ordered.
    #[must_use]
    pub fn has_full_follower(&self) -> bool {
        let (Role::Leader(leader), Some(view)) = (&self.role, &self.view) else { return false };
        let stays = |known: &Progress| known.full && !self.has_more_room_than(known);
        leader.progress.iter().any(|(node, known)| stays(known) && view.in_sync.contains_key(node))
    }

    fn roomy_follower(&self) -> Option<&NodeId> {
        let Role::Leader(leader) = &self.role else { return None };
        let counted = |node: &NodeId| self.view.as_ref().is_some_and(|view| view.in_sync.contains_key(node));
        let fit = |node: &NodeId, known: &Progress| {
            counted(node)
                && !known.full
                && !self.shares_disk(known)
                && known.matched > Index(0)
                && !self.is_gone(node)
        };
        leader.progress.iter().find(|(node, known)| fit(node, known)).map(|(node, _)| node)
    }

    /// True where another node is about to lead in our place: because our disk is full and an in-sync follower has room, or
    /// because one leads already under a later epoch that we have not adopted. Requests for more room may wait for it. False
    /// where no hand-over comes now, and while the register is in doubt (R25).
    #[must_use]
    pub fn hands_over_for_room(&self) -> bool {
        let hands_over = self.full && self.may_hand_over_unasked() && self.roomy_follower().is_some();
        !self.is_in_doubt() && (hands_over || self.is_behind_others())
    }

    /// It has kept nothing waiting of late (R36).
    fn is_steady(&self, node: &NodeId, known: &Progress) -> bool {
        let speaks = self.peers.get(node).is_none_or(|peer| peer.silences.is_paid(self.now));
        speaks && known.lag.is_paid(self.now) || self.breaks(Rule::HandBackToSlow)
    }

    /// Leadership goes back to the lowest address once it has stayed in sync long enough (R9).
    pub(super) fn hand_back(&mut self) {
        let (Some(after), Some(view)) = (self.config.handback_after, &self.view) else { return };
        let Role::Leader(leader) = &self.role else { return };
        let Some(lowest) = view.in_sync.keys().next().filter(|lowest| **lowest < self.config.id).cloned()
        else {
            return;
        };
        let fit = leader.progress.get(&lowest).filter(|known| !known.full || self.full);
        let fit = fit.filter(|known| self.is_steady(&lowest, known));
        let since = fit.and_then(|known| known.in_sync_since);
        if self.can_propose()
            && self.may_hand_over_unasked()
            && since.is_some_and(|since| self.now - since >= after || self.breaks(Rule::HandBackAtOnce))
        {
            self.start_transfer(&lowest);
        }
    }
}
