//! What a leader does: order, stream, commit. What it knows of each follower stands in `progress`, who is in the set
//! in `membership`.

use std::collections::{BTreeMap, BTreeSet};

use super::damping::Strikes;
use super::node::{Node, RegisterTask, Role};
use super::outline::Mark;
use super::progress::{Phase, Progress};
use super::rules::Rule;
use super::views::Pause;
use super::{Effect, Message, Millis};
use crate::view::{Incarnation, Index, NodeId, View};

/// Entries in one `Append`; the driver cuts further by bytes.
const APPEND_MAX: u64 = 4096;
/// Entries sent to one follower and not yet acknowledged; more wait for its answer.
const IN_FLIGHT_MAX: u64 = 65_536;

/// A hand-over under way (R9).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Transfer {
    pub(super) to: NodeId,
    pub(super) until: Millis,
    pub(super) told: bool,
}

/// What a leader knows beyond its log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Leader {
    /// Our opening entry: nothing is served until it is committed (R7).
    pub(super) start: Index,
    pub(super) serving: bool,
    pub(super) progress: BTreeMap<NodeId, Progress>,
    /// Nodes whose acknowledgements are waited for already although the view does not yet count them (R3).
    pub(super) growing: BTreeMap<NodeId, Incarnation>,
    /// In-sync nodes that have shown that their data is not what it was (R24).
    pub(super) expelled: BTreeSet<NodeId>,
    pub(super) transfer: Option<Transfer>,
    /// After a hand-over that did not happen the next one waits.
    pub(super) transfer_pause: Pause,
    /// Who was dropped how often (R36).
    pub(super) strikes: BTreeMap<NodeId, Strikes>,
    /// Who leaves the set by the swap under way for a reason that counts as a strike.
    pub(super) struck: BTreeSet<NodeId>,
    /// Since when a follower's disk holds entries that ours does not, without our disk's having taken any.
    pub(super) stuck_since: Option<Millis>,
    /// What an in-sync follower knows to be committed, and we never had.
    pub(super) doubted: Option<Index>,
}

impl Leader {
    /// What is known of each follower.
    #[must_use]
    pub fn progress(&self) -> &BTreeMap<NodeId, Progress> {
        &self.progress
    }
}

impl Node {
    pub(super) fn leader(&mut self) -> &mut Leader {
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
            let known = Progress::new(*incarnation, next, now, Index(0));
            progress.insert(node.clone(), Progress { in_sync_since: Some(now), ..known });
        }
        let start = self.append_own(1, true);
        let strikes = self.strikes_of_slow_leader(&view);
        let serving = self.breaks(Rule::ServeBeforeOpening);
        self.leader_gone_since = None;
        self.role = Role::Leader(Leader {
            start,
            serving,
            progress,
            growing: BTreeMap::new(),
            expelled: BTreeSet::new(),
            transfer: None,
            transfer_pause: Pause::default(),
            strikes,
            struck: BTreeSet::new(),
            stuck_since: None,
            doubted: None,
        });
        self.flush();
        self.change_set();
    }

    /// The leader that we have replaced because it was slow comes back with two strikes (R36).
    fn strikes_of_slow_leader(&self, view: &View) -> BTreeMap<NodeId, Strikes> {
        let (now, timeout) = (self.now, self.config.failure_timeout);
        let slow = |node: &NodeId| {
            let known = self.peers.get(node);
            known.is_some_and(|peer| peer.silences.is_too_much_for_leader(now, timeout))
        };
        let left = view.members.keys().filter(|node| !view.in_sync.contains_key(*node) && slow(node));
        left.map(|node| {
            let mut strikes = Strikes::default();
            strikes.strike(now, 0, timeout);
            strikes.strike(now, 0, timeout);
            (node.clone(), strikes)
        })
        .collect()
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
                known.forgive(slept, now);
            }
            leader.stuck_since = leader.stuck_since.map(|since| (since + slept).min(now));
        }
    }

    pub(super) fn leader_tick(&mut self) {
        self.note_stalls();
        self.forget_silent_joiners();
        self.change_set();
        self.end_late_transfer();
        self.hand_over_when_full();
        self.hand_back();
        self.heartbeat();
    }

    /// Whose disk takes nothing while somebody else's does? Without such a comparison a disk that all nodes share would
    /// look like as many hung ones.
    fn note_stalls(&mut self) {
        let (now, durable, last) = (self.now, self.log.durable(), self.log.last().index);
        let timeout = self.config.failure_timeout;
        let Role::Leader(leader) = &mut self.role else { return };
        let mut behind = false;
        for known in leader.progress.values_mut() {
            behind |= known.matched > durable;
            if known.matched >= durable {
                known.owing_since = None;
            } else {
                known.owing_since.get_or_insert(now);
            }
            known.lag.note(now, durable, known.matched, timeout);
        }
        if behind && durable < last {
            leader.stuck_since.get_or_insert(now);
        } else {
            leader.stuck_since = None;
        }
    }

    /// Our own disk hangs while followers' work: say nothing, so that they take over as from a dead leader.
    pub(super) fn is_stuck(&self) -> bool {
        let Role::Leader(leader) = &self.role else { return false };
        leader.stuck_since.is_some_and(|since| self.now - since > self.config.stall_timeout)
            && !self.breaks(Rule::LeadWithHungDisk)
    }

    /// True where every in-sync follower has answered us under this view within `failure_timeout`: none of them can have
    /// promised another (R5).
    #[must_use]
    pub fn is_followed(&self) -> bool {
        let (Role::Leader(leader), Some(view)) = (&self.role, &self.view) else { return false };
        view.in_sync.keys().filter(|node| **node != self.config.id).all(|node| {
            let known = leader.progress.get(node);
            known.is_some_and(|known| self.now - known.answered_at <= self.config.failure_timeout)
        })
    }

    /// Until when no in-sync follower can obey another leader: each has obeyed us less than `failure_timeout` before, by
    /// our clock and counted from the moment of sending (R17).
    pub(super) fn leases_until(&self) -> Option<Millis> {
        let (Role::Leader(leader), Some(view)) = (&self.role, &self.view) else { return None };
        let followers = view.in_sync.keys().filter(|node| **node != self.config.id);
        let leases =
            followers.map(|node| Some(leader.progress.get(node)?.obeyed? + self.config.failure_timeout));
        leases.min().unwrap_or(Some(Millis::MAX))
    }

    /// Our disk has taken something.
    pub(super) fn disk_moved(&mut self) {
        if let Role::Leader(leader) = &mut self.role {
            leader.stuck_since = None;
        }
    }

    // --- streaming ---

    /// Sends what each follower lacks: new entries, or the commit index.
    pub(super) fn flush(&mut self) {
        let Role::Leader(leader) = &self.role else { return };
        if self.is_stuck() {
            return;
        }
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
        let fuller =
            self.leader().progress.get(node).cloned().is_some_and(|known| self.is_full_elsewhere(&known));
        let Some(known) = self.leader().progress.get_mut(node) else { return };
        if counted {
            known.next = known.next.max(base.next());
        } else if fuller {
            return; // what is left of its disk is for keeping what it has (R25)
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
        let (previous, sent) = (Mark { index: before, epoch }, Some(self.now));
        self.send(node, Message::Append { previous, runs, last, commit, sent });
    }

    fn heartbeat(&mut self) {
        let (now, interval) = (self.now, self.config.heartbeat_interval);
        let Role::Leader(leader) = &self.role else { return };
        if self.is_stuck() {
            return;
        }
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

    pub(super) fn appended_received(
        &mut self,
        from: &NodeId,
        incarnation: Incarnation,
        durable: Index,
        (full, disk): (bool, u64),
        heard: Option<Millis>,
    ) {
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
        known.full = full;
        known.full_since = if full { known.full_since.or(Some(now)) } else { None };
        known.disk = disk;
        // A build that does not say when: as if it had heard us just now.
        known.obeyed = known.obeyed.max(Some(heard.map_or(now, |sent| sent.min(now))));
        if durable.min(last) > known.matched {
            known.matched = durable.min(last);
            known.owing_since = None;
        }
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
        // Whatever was committed before we took over lies before our opening entry; of what came after, we told it.
        let (start, told) = (leader.start, self.log.commit());
        if counted_on == Some(incarnation) && commit >= start && commit > told {
            // It knows of committed entries that we never had: ours is the disk that was put back (R24). We have served
            // nothing yet, since our opening entry needed its acknowledgement (R7).
            // Or we have been replaced and do not know it yet: the register tells the two apart.
            leader.doubted = Some(commit);
            return self.read_register();
        }
        if commit > end {
            return; // it knows of more than we hold; never cut that
        }
        // Counted on already where all that was known of it was about the directory before.
        let in_sync_since = counted_on.map(|_| self.now);
        let fresh = Progress::new(incarnation, commit.next(), self.now, self.log.commit());
        let fresh = Progress { in_sync_since, ..fresh };
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
            RegisterTask::Swapping { next, .. } | RegisterTask::Unsettled { next } => {
                !next.in_sync.contains_key(node) && self.breaks(Rule::ShrinkBeforeConfirmed)
            }
            RegisterTask::Idle | RegisterTask::Preparing | RegisterTask::Reading { .. } => false,
        };
        let in_sync = self.view.iter().flat_map(|view| &view.in_sync).filter(move |(node, _)| !leaving(node));
        in_sync.chain(growing.into_iter().flatten())
    }

    /// Commit is what every node holds that must hold it (R13).
    pub(super) fn advance_commit(&mut self) {
        // R11: not before this node would find the view again after a restart.
        if !self.view_is_durable() && !self.breaks(Rule::CountOwnBeforeDurable) {
            return;
        }
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
}
