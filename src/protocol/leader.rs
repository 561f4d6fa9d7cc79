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
//!
//! Only nodes outside the set are ever sent a snapshot: whoever is counted on holds all that is committed.

use std::collections::{BTreeMap, BTreeSet};

use super::node::{Node, RegisterTask, Role};
use super::outline::Mark;
use super::rules::Rule;
use super::{Effect, Message, Millis, Warning};
use crate::view::{Incarnation, Index, NodeId, View};

/// Entries in one `Append`; the driver cuts further by bytes.
const APPEND_MAX: u64 = 4096;
/// Entries sent to one follower and not yet acknowledged; more wait for its answer.
const IN_FLIGHT_MAX: u64 = 65_536;

/// How the leader serves one follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Entries flow as they come.
    Stream,
    /// It gets a snapshot first, and reports when it has it.
    Snapshot,
}

/// What the leader knows of one follower, in sync or joining.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
    /// When it last took entries or a heartbeat from us under our view.
    pub(super) answered_at: Millis,
    /// What was committed when the present round began, and when that was: a round ends when the node has reached it.
    pub(super) round: (Millis, Index),
    /// The last round was short enough for writers to wait for the next.
    pub(super) quick: bool,
    /// Since when it is in sync without a break, as far as this leader knows.
    pub(super) in_sync_since: Option<Millis>,
}

/// A hand-over under way (R9).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Transfer {
    to: NodeId,
    pub(super) until: Millis,
    told: bool,
}

/// What a leader knows beyond its log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Leader {
    /// Our opening entry: nothing is served until it is committed (R7).
    start: Index,
    pub(super) serving: bool,
    pub(super) progress: BTreeMap<NodeId, Progress>,
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
                answered_at: now,
                round: (now, Index(0)),
                quick: false,
                in_sync_since: Some(now),
            };
            progress.insert(node.clone(), known);
        }
        let start = self.append_own(1, true);
        let serving = self.breaks(Rule::ServeBeforeOpening);
        self.leader_gone_since = None;
        self.role = Role::Leader(Leader {
            start,
            serving,
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

    /// We did not run for that long, and nobody could answer.
    pub(super) fn forgive_followers(&mut self, slept: Millis) {
        let now = self.now;
        if let Role::Leader(leader) = &mut self.role {
            for known in leader.progress.values_mut() {
                known.answered_at = (known.answered_at + slept).min(now);
            }
        }
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
        let counted = self.view.as_ref().is_some_and(|view| view.in_sync.contains_key(node));
        let Some(known) = self.leader().progress.get_mut(node) else { return };
        if counted {
            known.next = known.next.max(base.next());
        }
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
        let (last, committed) = (self.log.last().index, self.log.commit());
        let patience = self.patience();
        let (now, trusting) = (self.now, self.breaks(Rule::TrustWipedNode));
        let counted = self.view.as_ref().is_some_and(|view| view.in_sync.contains_key(from));
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(known) = leader.progress.get_mut(from) else { return };
        if known.incarnation != incarnation && !trusting {
            // One of the two is a straggler from before a wipe. Forget what we know; whoever lives there reports anew.
            if !counted {
                leader.progress.remove(from);
            }
            return;
        }
        known.answered_at = now;
        known.matched = known.matched.max(durable.min(last));
        if known.matched >= known.round.1 {
            known.quick = now - known.round.0 <= patience;
            known.round = (now, committed);
        }
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
        let trusting = self.breaks(Rule::TrustWipedNode);
        let counted_on = self.view.as_ref().and_then(|view| view.in_sync.get(from)).copied();
        let Role::Leader(leader) = &mut self.role else { return };
        let other = counted_on.is_some_and(|counted| counted != incarnation);
        let shorter = leader.progress.get(from).is_some_and(|known| last < known.matched);
        if counted_on.is_some() && (other || shorter) && !trusting {
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
            answered_at: self.now,
            round: (self.now, self.log.commit()),
            quick: false,
            in_sync_since: None,
        };
        let known = leader.progress.entry(from.clone()).or_insert_with(|| fresh.clone());
        if known.incarnation != incarnation && !trusting {
            *known = fresh;
        }
        if last < known.matched {
            known.matched = Index(0); // it does not hold what it said: count from nothing again (R30)
        }
        known.told_commit = Index(0);
        if commit >= base || counted_on.is_some() {
            // Whoever is counted on holds everything committed, however little of it it knows to be committed, and
            // would refuse a snapshot.
            known.phase = Phase::Stream;
            known.next = commit.max(base).next();
        } else {
            known.phase = Phase::Snapshot;
            self.effect(Effect::SendSnapshot(from.clone()));
        }
    }

    /// Whose disks must hold an entry before it is committed: the view's in-sync set and those about to join it (R3).
    pub(super) fn waited_for(&self) -> impl Iterator<Item = (&NodeId, &Incarnation)> {
        let growing = match &self.role {
            Role::Leader(leader) if !self.breaks(Rule::GrowAfterSwap) => Some(&leader.growing),
            Role::Leader(_) | Role::Follower(_) | Role::Candidate(_) => None,
        };
        let leaving = |node: &NodeId| match &self.register {
            RegisterTask::Swapping(next) | RegisterTask::Unsettled { next, .. } => {
                !next.in_sync.contains_key(node) && self.breaks(Rule::ShrinkBeforeConfirmed)
            }
            RegisterTask::Idle | RegisterTask::Reading => false,
        };
        let in_sync = self.view.iter().flat_map(|view| &view.in_sync).filter(move |(node, _)| !leaving(node));
        in_sync.chain(growing.into_iter().flatten())
    }

    /// Commit is what every node holds that must hold it (R13).
    pub(super) fn advance_commit(&mut self) {
        let own =
            if self.breaks(Rule::CountOwnBeforeDurable) { self.log.last().index } else { self.log.durable() };
        let Role::Leader(leader) = &self.role else { return };
        let trusting = self.breaks(Rule::TrustWipedNode);
        let held = self.waited_for().map(|(node, incarnation)| {
            if *node == self.config.id {
                return own;
            }
            // What another directory at that address holds does not count (R24).
            let known = leader.progress.get(node);
            known
                .filter(|known| known.incarnation == *incarnation || trusting)
                .map_or(Index(0), |k| k.matched)
        });
        let lowest = if self.breaks(Rule::CommitWithoutEveryone) { held.max() } else { held.min() };
        let commit = lowest.expect("the in-sync set is never empty");
        if commit > self.log.commit() {
            self.log.set_commit(commit);
        }
        let Role::Leader(leader) = &mut self.role else { return };
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
        // A node may live and yet not follow: it has promised another epoch, or cannot read the register and so not
        // learn of ours. It would be waited for as long as that lasts (R7).
        let mute = |node: &NodeId| {
            let known = leader.progress.get(node);
            known.is_some_and(|known| self.now - known.answered_at > self.config.failure_timeout)
        };
        let leaves = |node: &NodeId| {
            *node != self.config.id
                && (self.is_gone(node)
                    || mute(node)
                    || leader.expelled.contains(node)
                    || self.removing.contains(node))
        };
        // A known address with another directory waits until the old one has left the set (R24).
        let may_join = |node: &NodeId, known: &Progress| {
            leader.serving
                && leader.transfer.is_none()
                && !view.in_sync.contains_key(node)
                && known.phase == Phase::Stream
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
        in_sync.extend(joining.clone());
        let mut members = view.members.clone();
        members.retain(|node, _| !self.removing.contains(node));
        members.extend(joining);
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
        let next = View { epoch: view.epoch.next(), in_sync, members, floor, ..view.clone() };
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
                known.phase = Phase::Stream;
                known.answered_at = now;
                known.in_sync_since.get_or_insert(now);
            }
        }
        self.advance_commit();
        self.flush();
        self.change_set();
    }

    /// How long writers may have to wait for a joiner that is close, in milliseconds.
    fn patience(&self) -> Millis {
        2 * self.config.heartbeat_interval
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
