//! What a leader does: order, stream, commit, and keep the in-sync set true.
//!
//! Each follower has a small machine of its own:
//!
//! ```text
//!            report: log reaches back to its commit
//!   ┌────────────────────────────────────────────────┐
//!   ▼                                                │
//! Stream ──report: log no longer reaches back──▶ Snapshot
//! ```

use std::collections::{BTreeMap, BTreeSet};

use super::node::{Node, RegisterTask, Role};
use super::outline::Mark;
use super::{Effect, Message, Millis, Warning};
use crate::view::{Incarnation, Index, NodeId, View};

/// Entries in one `Append`; the driver cuts further by bytes.
const APPEND_MAX: u64 = 4096;
/// Entries sent to one follower and not yet acknowledged; more wait for its answer.
const IN_FLIGHT_MAX: u64 = 65_536;

/// How the leader serves one follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Entries flow as they come.
    Stream,
    /// It gets a snapshot first, and reports when it has it.
    Snapshot,
}

/// What the leader knows of one follower, in sync or joining.
#[derive(Clone, Debug)]
pub struct Progress {
    /// The data directory that this knowledge is about.
    pub incarnation: Incarnation,
    /// How it is served.
    pub phase: Phase,
    /// Durable there and the same as ours.
    pub matched: Index,
    /// The next entry to send.
    pub next: Index,
    /// The commit index it was last told.
    told_commit: Index,
    /// Since when it is in sync without a break, as far as this leader knows.
    in_sync_since: Option<Millis>,
}

/// A hand-over under way (R9).
#[derive(Clone, Debug)]
pub(super) struct Transfer {
    to: NodeId,
    until: Millis,
    told: bool,
}

/// What a leader knows beyond its log.
#[derive(Clone, Debug)]
pub struct Leader {
    /// Our opening entry: nothing is served until it is committed (R7).
    start: Index,
    pub(super) serving: bool,
    progress: BTreeMap<NodeId, Progress>,
    /// Nodes whose acknowledgements are waited for already although the view does not yet count them (R3).
    growing: BTreeMap<NodeId, Incarnation>,
    /// In-sync nodes that have shown that their data is not what it was (R24).
    expelled: BTreeSet<NodeId>,
    pub(super) transfer: Option<Transfer>,
}

impl Leader {
    /// What is known of each follower.
    #[must_use]
    pub fn progress(&self) -> &BTreeMap<NodeId, Progress> {
        &self.progress
    }
}

impl Node {
    fn leader(&mut self) -> &mut Leader {
        match &mut self.role {
            Role::Leader(leader) => leader,
            Role::Follower(_) | Role::Candidate(_) => panic!("only a leader does this"),
        }
    }

    /// Our swap has won: open the epoch (R7).
    pub(super) fn become_leader(&mut self) {
        let view = self.view.clone().expect("a view was just adopted");
        let now = self.now;
        let next = self.log.commit().next();
        let mut progress = BTreeMap::new();
        for (node, incarnation) in &view.in_sync {
            if *node == self.config.id {
                continue;
            }
            // Everyone gets the time of one silence to answer the new leader, unless proved dead.
            self.peer(node).last_heard = now;
            let known = Progress {
                incarnation: *incarnation,
                phase: Phase::Stream,
                matched: Index(0),
                next,
                told_commit: Index(0),
                in_sync_since: Some(now),
            };
            progress.insert(node.clone(), known);
        }
        let start = self.append_own(1, true);
        self.leader_gone_since = None;
        self.role = Role::Leader(Leader {
            start,
            serving: false,
            progress,
            growing: BTreeMap::new(),
            expelled: BTreeSet::new(),
            transfer: None,
        });
        self.flush();
        self.change_set();
    }

    pub(super) fn propose(&mut self, count: u64) {
        assert!(self.can_propose() && count > 0, "proposed {count} entries to a node that does not order");
        self.append_own(count, false);
    }

    pub(super) fn leader_tick(&mut self) {
        self.forget_silent_joiners();
        self.change_set();
        self.end_late_transfer();
        self.hand_back();
        self.heartbeat();
    }

    // --- streaming ---

    /// Sends what each follower lacks: new entries, or the commit index.
    pub(super) fn flush(&mut self) {
        let Role::Leader(leader) = &self.role else { return };
        let (last, commit) = (self.log.last().index, self.log.commit());
        let wanting: Vec<NodeId> = leader
            .progress
            .iter()
            .filter(|(_, known)| {
                known.phase == Phase::Stream && (known.next <= last || known.told_commit < commit)
            })
            .map(|(node, _)| node.clone())
            .collect();
        for node in wanting {
            self.stream_to(&node);
        }
    }

    fn stream_to(&mut self, node: &NodeId) {
        let (last, commit, base) = (self.log.last().index, self.log.commit(), self.log.base().index);
        let Some(known) = self.leader().progress.get_mut(node) else { return };
        if known.next <= base {
            known.phase = Phase::Snapshot;
            return self.effect(Effect::SendSnapshot(node.clone()));
        }
        let mut next = known.next;
        let limit = Index(known.matched.max(Index(next.0 - 1).min(commit)).0 + IN_FLIGHT_MAX);
        let stale_commit = known.told_commit < commit;
        let mut sent = false;
        while next <= last && next <= limit {
            let end = Index((next.0 + APPEND_MAX - 1).min(last.0));
            self.send_append(node, next, end);
            next = end.next();
            sent = true;
        }
        if !sent && stale_commit {
            self.send_append(node, next, Index(next.0 - 1));
        }
    }

    fn send_append(&mut self, node: &NodeId, first: Index, last: Index) {
        let commit = self.log.commit();
        let before = Index(first.0 - 1);
        let epoch = self.log.epoch_at(before).expect("streaming starts after the base");
        let runs = if first <= last { self.log.runs_between(first, last) } else { Vec::new() };
        if let Some(known) = self.leader().progress.get_mut(node) {
            known.next = last.next();
            known.told_commit = commit;
        }
        self.send(node, Message::Append { previous: Mark { index: before, epoch }, runs, last, commit });
    }

    fn heartbeat(&mut self) {
        let (now, interval) = (self.now, self.config.heartbeat_interval);
        let Role::Leader(leader) = &self.role else { return };
        let due: Vec<(NodeId, Phase, Index)> = leader
            .progress
            .iter()
            .filter(|(node, _)| {
                self.peers
                    .get(*node)
                    .and_then(|peer| peer.last_sent)
                    .is_none_or(|sent| now - sent >= interval)
            })
            .map(|(node, known)| (node.clone(), known.phase, known.next))
            .collect();
        for (node, phase, next) in due {
            match phase {
                Phase::Stream if next > self.log.base().index => {
                    self.send_append(&node, next, Index(next.0 - 1));
                }
                Phase::Stream | Phase::Snapshot => self.send(&node, Message::Ping),
            }
        }
    }

    // --- what followers say ---

    pub(super) fn appended_received(&mut self, from: &NodeId, incarnation: Incarnation, durable: Index) {
        let last = self.log.last().index;
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(known) = leader.progress.get_mut(from) else { return };
        if known.incarnation != incarnation {
            return;
        }
        known.matched = known.matched.max(durable.min(last));
        known.next = known.next.max(known.matched.next());
        self.advance_commit();
        self.change_set();
    }

    pub(super) fn report_received(
        &mut self,
        from: &NodeId,
        incarnation: Incarnation,
        commit: Index,
        last: Index,
    ) {
        let (base, end) = (self.log.base().index, self.log.last().index);
        let counted_on = self.view.as_ref().and_then(|view| view.in_sync.get(from)).copied();
        let Role::Leader(leader) = &mut self.role else { return };
        if let Some(known) = leader.progress.get(from)
            && counted_on.is_some()
            && (known.incarnation != incarnation || last < known.matched)
        {
            // Another directory, or one that lost what it had acknowledged: it is not the copy we count on (R24).
            leader.expelled.insert(from.clone());
            return self.change_set();
        }
        if commit > end {
            return; // it knows of more than we hold; never cut that
        }
        let fresh = Progress {
            incarnation,
            phase: Phase::Stream,
            matched: Index(0),
            next: commit.next(),
            told_commit: Index(0),
            in_sync_since: None,
        };
        let known = leader.progress.entry(from.clone()).or_insert_with(|| fresh.clone());
        if known.incarnation != incarnation {
            *known = fresh;
        }
        known.told_commit = Index(0);
        if commit >= base {
            known.phase = Phase::Stream;
            known.next = commit.next();
        } else {
            known.phase = Phase::Snapshot;
            self.effect(Effect::SendSnapshot(from.clone()));
        }
    }

    /// Commit is what every node holds that must hold it: the view's in-sync set and those about to join it (R13, R3).
    pub(super) fn advance_commit(&mut self) {
        let Some(view) = &self.view else { return };
        let own = self.log.durable();
        let Role::Leader(leader) = &mut self.role else { return };
        let waited_for = view.in_sync.keys().chain(leader.growing.keys());
        let held = waited_for.map(|node| {
            if *node == self.config.id {
                own
            } else {
                leader.progress.get(node).map_or(Index(0), |known| known.matched)
            }
        });
        let commit = held.min().expect("the in-sync set is never empty");
        if commit > self.log.commit() {
            self.log.set_commit(commit);
        }
        if !leader.serving && self.log.commit() >= leader.start {
            leader.serving = true;
            self.effect(Effect::Serving);
        }
        self.tell_transfer();
    }

    // --- the set ---

    /// One swap for everything that should change: out with the gone, in with those that have caught up.
    pub(super) fn change_set(&mut self) {
        let Some(view) = &self.view else { return };
        let Role::Leader(leader) = &self.role else { return };
        if !matches!(self.register, RegisterTask::Idle) {
            return;
        }
        let commit = self.log.commit();
        let leaves = |node: &NodeId| {
            *node != self.config.id
                && (self.is_gone(node) || leader.expelled.contains(node) || self.removing.contains(node))
        };
        // R30: reached the commit index, reached our opening entry, and has said so to us in this epoch. A known
        // address with another directory waits until the old one has left the set (R24).
        let joins = |node: &NodeId, known: &Progress| {
            leader.serving
                && leader.transfer.is_none()
                && !view.in_sync.contains_key(node)
                && known.phase == Phase::Stream
                && known.matched >= commit.max(leader.start)
                && !self.is_gone(node)
                && !self.removing.contains(node)
        };
        let growing: BTreeMap<NodeId, Incarnation> = leader
            .progress
            .iter()
            .filter(|(node, known)| joins(node, known))
            .map(|(node, known)| (node.clone(), known.incarnation))
            .collect();
        let mut in_sync = view.in_sync.clone();
        in_sync.retain(|node, _| !leaves(node));
        in_sync.extend(growing.clone());
        let mut members = view.members.clone();
        members.retain(|node, _| !self.removing.contains(node));
        members.extend(growing.clone());
        if in_sync == view.in_sync && members == view.members {
            return;
        }
        let next = View { epoch: view.epoch.next(), in_sync, members, floor: commit, ..view.clone() };
        self.leader().growing = growing;
        self.swap(next);
    }

    /// Our own change of the set has been confirmed.
    pub(super) fn set_changed(&mut self) {
        let view = self.view.clone().expect("a view was just adopted");
        let now = self.now;
        self.removing.retain(|node| view.members.contains_key(node));
        let leader = self.leader();
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
                known.in_sync_since.get_or_insert(now);
            }
        }
        self.advance_commit();
        self.flush();
        self.change_set();
    }

    fn forget_silent_joiners(&mut self) {
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
        let able = self.can_propose() && *to != self.config.id && !self.is_gone(to);
        if able && self.view.as_ref().is_some_and(|view| view.in_sync.contains_key(to)) {
            let until = self.now + self.config.failure_timeout;
            self.leader().transfer = Some(Transfer { to: to.clone(), until, told: false });
            self.effect(Effect::Fenced(true));
            self.tell_transfer();
        }
    }

    /// The target is told once everyone has everything, so that it opens its epoch at once.
    fn tell_transfer(&mut self) {
        let last = self.log.last().index;
        let committed = self.log.commit() == last;
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

    fn end_late_transfer(&mut self) {
        let now = self.now;
        self.tell_transfer();
        let Role::Leader(leader) = &mut self.role else { return };
        if let Some(transfer) = &leader.transfer
            && now > transfer.until
        {
            let to = transfer.to.clone();
            leader.transfer = None;
            if let Some(known) = leader.progress.get_mut(&to) {
                known.in_sync_since = Some(now);
            }
            self.effect(Effect::Fenced(false));
            self.effect(Effect::Warn(Warning::TransferFailed(to)));
        }
    }

    /// Leadership goes back to the lowest address once it has stayed in sync long enough (R9).
    fn hand_back(&mut self) {
        let (Some(after), Some(view)) = (self.config.handback_after, &self.view) else { return };
        let Role::Leader(leader) = &self.role else { return };
        let Some(lowest) = view.in_sync.keys().next().filter(|lowest| **lowest < self.config.id).cloned()
        else {
            return;
        };
        let since = leader.progress.get(&lowest).and_then(|known| known.in_sync_since);
        if self.can_propose() && since.is_some_and(|since| self.now - since >= after) {
            self.start_transfer(&lowest);
        }
    }
}
