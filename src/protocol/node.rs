//! One node: dispatch, the register, views, writes. What a follower, a candidate and a leader do stands in the
//! modules beside.

use std::collections::{BTreeMap, VecDeque};

use super::damping::Debt;
use super::follower::Follower;
use super::leader::Leader;
use super::outline::{Mark, Outline};
use super::rules::Rule;
use super::takeover::Candidate;
use super::views::{Pause, Trouble};
use super::{Config, Effect, Envelope, Halt, Input, Message, Millis, WriteId};
use crate::view::{Checksum, Epoch, Incarnation, Index, NodeId, View};

/// Messages of a newer epoch kept while the register is read; more are dropped, and their senders repeat themselves.
const STASH_MAX: usize = 1024;

/// What a node is to its cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Obeys a leader, in sync or on the way there; or knows no view yet.
    Follower(Follower),
    /// Is taking over.
    Candidate(Candidate),
    /// Orders the writes.
    Leader(Leader),
}

/// What was persisted before a restart; a new directory gives the default log and nothing else.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// The newest promise (R5).
    pub promised: Epoch,
    /// The newest view adopted (R11).
    pub view: Option<View>,
    /// The log as recovered.
    pub log: Outline,
}

/// What a peer has shown of itself to this process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Peer {
    /// When it last spoke, or was given the benefit of the doubt.
    pub last_heard: Millis,
    /// The process that last spoke.
    pub session: Option<u64>,
    /// The data directory from which it last spoke under our view.
    pub incarnation: Option<Incarnation>,
    /// Proved dead.
    pub dead: Option<Death>,
    /// When we last said something to it.
    pub last_sent: Option<Millis>,
    /// What its process owes for silences (R36).
    pub silences: Debt,
}

/// A proof of death.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Death {
    /// The process; `None` where it is not known which.
    pub session: Option<u64>,
    /// What that process has said before it died may arrive until then, and revives nothing. Not for ever: should a
    /// later process have the same number, it is heard from then on (R32).
    pub stragglers_until: Millis,
}

/// A write on its way to the disk, and what becomes true when it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum PendingWrite {
    Log {
        last: Index,
    },
    Promise,
    /// Of a log that a snapshot has replaced.
    Superseded,
    Install {
        index: Index,
    },
}

/// The one operation on the register that may be open.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum RegisterTask {
    Idle,
    Reading {
        /// What had been heard when it was asked.
        heard: Epoch,
        /// The swap whose outcome is still unknown (R2).
        unsettled: Option<View>,
    },
    /// The register makes ready what a swap needs (R34).
    Preparing,
    Swapping {
        next: View,
        /// An earlier sending of it has ended without a known outcome.
        unsettled: bool,
    },
    /// The outcome is unknown; the same swap is sent again until it is settled (R2).
    Unsettled {
        next: View,
    },
}

/// The state machine. See the contract at the head of the module.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    pub(super) config: Config,
    pub(super) started_at: Millis,
    pub(super) now: Millis,
    pub(super) view: Option<View>,
    /// Of that view; zero before the first.
    pub(super) view_checksum: Checksum,
    pub(super) promised: Epoch,
    pub(super) log: Outline,
    pub(super) role: Role,
    pub(super) register: RegisterTask,
    pub(super) peers: BTreeMap<NodeId, Peer>,
    /// The newest epoch that anyone has spoken under: the register stood there once (R11).
    pub(super) heard: Epoch,
    /// Since when the leader is gone in our eyes.
    pub(super) leader_gone_since: Option<Millis>,
    /// Our disk is nearly full (R25).
    pub(super) full: bool,
    /// Since when.
    pub(super) full_since: Option<Millis>,
    /// Members that an operator wants out.
    pub(super) removing: Vec<NodeId>,
    pub(super) next_read_at: Millis,
    /// Messages of a newer epoch, until the register has been read.
    pub(super) stash: Vec<Envelope>,
    pub(super) next_write: WriteId,
    pub(super) pending: VecDeque<(WriteId, PendingWrite)>,
    /// What the driver was told to apply.
    announced_commit: Index,
    /// Why no view can change now; said once.
    pub(super) trouble: Option<Trouble>,
    /// Until when the register is left alone after it has failed.
    pub(super) pause: Pause,
    /// Views are made with the checksum of the one before (R11).
    pub(super) chained: bool,
    halted: bool,
    pub(super) effects: Vec<Effect>,
    /// The rule that a test has switched off.
    #[cfg(test)]
    pub(super) broken: Option<Rule>,
}

impl Node {
    /// A node as it was persisted. Nothing happens until the first input.
    #[must_use]
    pub fn restore(config: Config, restored: Restored, now: Millis) -> Node {
        assert!(config.failure_timeout >= 2 * config.heartbeat_interval, "failure_timeout is too short");
        let Restored { promised, view, log } = restored;
        let promised = promised.max(view.as_ref().map_or(Epoch(0), |view| view.epoch));
        Node {
            started_at: now,
            now,
            view_checksum: view.as_ref().map_or(Checksum(0), View::checksum),
            role: Role::Follower(Follower::new(log.commit())),
            announced_commit: Index(0),
            config,
            view,
            promised,
            log,
            register: RegisterTask::Idle,
            peers: BTreeMap::new(),
            heard: Epoch(0),
            leader_gone_since: None,
            full: false,
            full_since: None,
            removing: Vec::new(),
            next_read_at: now,
            stash: Vec::new(),
            next_write: 1,
            pending: VecDeque::new(),
            trouble: None,
            pause: Pause::default(),
            chained: false,
            halted: false,
            effects: Vec::new(),
            #[cfg(test)]
            broken: None,
        }
    }

    /// One input, all its effects. `now` must not go back.
    ///
    /// # Panics
    /// On a broken invariant: a bug here or in the driver. The process must not go on.
    pub fn step(&mut self, now: Millis, input: Input) -> Vec<Effect> {
        assert!(now >= self.now, "time went back from {} to {now}", self.now);
        let slept = now - self.now;
        self.now = now;
        if self.halted {
            return Vec::new();
        }
        self.forgive(slept);
        match input {
            Input::Tick => self.tick(),
            Input::Flush => self.flush(),
            Input::Proposed { count } => self.propose(count),
            Input::Received(envelope) => {
                self.receive(envelope);
                if !self.halted {
                    self.go_on_when_heard();
                }
            }
            Input::Linked(node) => self.greet(&node),
            Input::Persisted(write) => self.persisted(write),
            Input::PromiseKept(write) => self.promise_kept(write),
            Input::RegisterAnswered(answer) => self.register_answered(answer),
            Input::Prepared(outcome) => self.prepared(outcome.is_ok()),
            Input::SwapAnswered(outcome) => self.swap_answered(outcome),
            Input::ChainViews => self.chained = true,
            Input::RegisterDoubted => self.read_register(),
            Input::Died { node, session } => self.died(node, session),
            Input::Space { full } => self.space(full),
            Input::SnapshotReceived(mark) => self.snapshot_received(mark),
            Input::Dropped(index) => self.log.drop_through(index),
            Input::MoveLeader(to) => self.start_transfer(&to),
            Input::Remove(node) => self.remove(node),
        }
        if !self.halted {
            self.announce_commit();
        }
        std::mem::take(&mut self.effects)
    }

    // --- what the driver may ask ---

    /// The newest view adopted.
    #[must_use]
    pub fn view(&self) -> Option<&View> {
        self.view.as_ref()
    }

    /// The log's outline.
    #[must_use]
    pub fn log(&self) -> &Outline {
        &self.log
    }

    /// What this node is.
    #[must_use]
    pub fn role(&self) -> &Role {
        &self.role
    }

    /// The lowest epoch that this node obeys.
    #[must_use]
    pub fn promised(&self) -> Epoch {
        self.promised
    }

    /// The epoch of the newest view adopted; zero before the first.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.view.as_ref().map_or(Epoch(0), |view| view.epoch)
    }

    /// True where the newest view counts on this node.
    #[must_use]
    pub fn is_in_sync(&self) -> bool {
        self.view.as_ref().is_some_and(|view| view.is_in_sync(&self.config.id, self.config.incarnation))
    }

    /// True where this node leads and its opening entry is committed (R7).
    #[must_use]
    pub fn is_serving(&self) -> bool {
        matches!(&self.role, Role::Leader(leader) if leader.serving)
    }

    /// True where new entries may be ordered: serving, and not handing over.
    #[must_use]
    pub fn can_propose(&self) -> bool {
        matches!(&self.role, Role::Leader(leader) if leader.serving && leader.transfer.is_none())
    }

    /// True where the process that leads the newest view was heard within `failure_timeout`, or is ourselves.
    #[must_use]
    pub fn leader_is_heard(&self) -> bool {
        match (&self.role, &self.view) {
            (Role::Leader(_), _) => true,
            (Role::Follower(_) | Role::Candidate(_), Some(view)) => {
                self.peers.get(&view.leader).is_some_and(|peer| peer.session.is_some())
                    && !self.is_gone(&view.leader)
            }
            (Role::Follower(_) | Role::Candidate(_), None) => false,
        }
    }

    /// The newest epoch that anybody has spoken under, or that we have seen: the register has been there (R11).
    #[must_use]
    pub fn heard(&self) -> Epoch {
        self.heard.max(self.epoch())
    }

    /// True where a look at the register may prove that our view is the newest, and so a linearizable read (R17): we
    /// serve, have heard of no later epoch, and the register is the one that we know (R11). And every in-sync follower
    /// obeyed us under our view less than `failure_timeout` ago: a leader that slept may have been replaced, and the
    /// register been put back to where it was before.
    #[must_use]
    pub fn may_prove(&self) -> bool {
        self.proof_until().is_some_and(|until| self.now <= until)
    }

    /// Until when a look at the register proves a read, see [`Node::may_prove`]: a process may be stopped between two
    /// inputs, so whoever takes the proof compares this with the clock after it has looked. `None`: not now.
    #[must_use]
    pub fn proof_until(&self) -> Option<Millis> {
        if !self.is_serving() || self.is_in_doubt() || self.is_behind_others() {
            return None;
        }
        if self.breaks(Rule::ProveUnheard) { Some(Millis::MAX) } else { self.leases_until() }
    }

    /// Our disk is nearly full (R25).
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// True where this node's disk is known to hang or to be nearly full: it holds what it has, and takes no more.
    #[must_use]
    pub fn is_unfit(&self) -> bool {
        self.full || self.is_stuck()
    }

    fn space(&mut self, full: bool) {
        self.full = full;
        self.full_since = if full { self.full_since.or(Some(self.now)) } else { None };
    }

    // --- time ---

    /// If we ourselves did not run for a while, nobody could be heard: silence in that time proves nothing. Done before
    /// any input is looked at, since what wakes us is as likely a message as a tick.
    fn forgive(&mut self, slept: Millis) {
        if slept > self.config.failure_timeout / 2 {
            for peer in self.peers.values_mut() {
                peer.last_heard = (peer.last_heard + slept).min(self.now);
                peer.silences.forgive(slept, self.now);
            }
            self.forgive_followers(slept);
        }
    }

    fn tick(&mut self) {
        self.settle_swap();
        self.read_register_when_lost();
        self.look_again_when_in_doubt();
        match &self.role {
            Role::Follower(_) => self.follower_tick(),
            Role::Candidate(_) => {}
            Role::Leader(_) => self.leader_tick(),
        }
        self.ping();
    }

    /// A node without a view, or outside the set with a silent leader, has nobody to tell it of a newer view.
    fn read_register_when_lost(&mut self) {
        let lost = match (&self.role, &self.view) {
            (Role::Follower(_), None) => true,
            (Role::Follower(_), Some(view)) => {
                !self.is_in_sync() && !self.heard_within(&view.leader, 2 * self.config.heartbeat_interval)
            }
            (Role::Candidate(_) | Role::Leader(_), _) => false,
        };
        if lost && self.now >= self.next_read_at {
            self.next_read_at = self.now + self.config.heartbeat_interval;
            self.read_register();
        }
    }

    /// Says at once that we live, and under which epoch.
    fn greet(&mut self, node: &NodeId) {
        if self.view.as_ref().is_some_and(|view| view.members.contains_key(node)) && !self.is_stuck() {
            self.send(node, Message::Ping);
        }
    }

    fn ping(&mut self) {
        if self.is_stuck() {
            return;
        }
        let Some(view) = &self.view else { return };
        let due: Vec<NodeId> = view
            .members
            .keys()
            .filter(|node| **node != self.config.id)
            .filter(|node| self.sent_before(node, self.config.heartbeat_interval))
            .cloned()
            .collect();
        for node in due {
            self.send(&node, Message::Ping);
        }
    }

    // --- messages ---

    /// The one place where epochs are compared (R6).
    fn receive(&mut self, envelope: Envelope) {
        if envelope.from == self.config.id {
            return;
        }
        if self.is_of_another_chain(&envelope) {
            return self.read_register();
        }
        self.hear(&envelope);
        self.heard = self.heard.max(envelope.epoch);
        if matches!(envelope.message, Message::Ping) && envelope.epoch <= self.epoch() {
            return;
        }
        if envelope.epoch < self.epoch() && self.breaks(Rule::ObeyStaleEpoch) {
            self.dispatch(envelope);
        } else if envelope.epoch < self.epoch() {
            // A refusal is not answered: two stale nodes would refuse each other for ever.
            if !matches!(envelope.message, Message::Stale) {
                self.send(&envelope.from, Message::Stale);
            }
        } else if envelope.epoch > self.epoch() {
            if self.stash.len() < STASH_MAX {
                self.stash.push(envelope);
            }
            self.read_register();
        } else {
            self.dispatch(envelope);
        }
    }

    /// Its sender has another view of our epoch: the register was put back in between (R11). What it says is not about
    /// what we hold.
    fn is_of_another_chain(&self, envelope: &Envelope) -> bool {
        let known = envelope.view != Checksum(0) && self.view_checksum != Checksum(0);
        let differs = envelope.epoch == self.epoch() && envelope.view != self.view_checksum;
        known && differs && !self.breaks(Rule::TrustOtherChain)
    }

    fn dispatch(&mut self, envelope: Envelope) {
        let Envelope { from, incarnation, message, .. } = envelope;
        match message {
            Message::Append { previous, runs, last, commit, sent } => {
                self.append_received((&from, incarnation), previous, &runs, last, commit, sent);
            }
            Message::Appended { durable, full, heard, disk } => {
                self.appended_received(&from, incarnation, durable, (full, disk), heard);
            }
            Message::Report { commit, last } => self.report_received(&from, incarnation, commit, last),
            Message::Transfer => self.transfer_received(&from),
            Message::Ping | Message::Stale => {}
        }
    }

    pub(super) fn replay_stash(&mut self) {
        let epoch = self.epoch();
        for envelope in std::mem::take(&mut self.stash) {
            if envelope.epoch > epoch {
                self.stash.push(envelope);
            } else if envelope.epoch == epoch {
                // Entries travelled beside the message and are gone by now; what it says without them still counts.
                if !matches!(&envelope.message, Message::Append { runs, .. } if !runs.is_empty()) {
                    self.dispatch(envelope);
                }
            }
        }
    }

    pub(super) fn send(&mut self, to: &NodeId, message: Message) {
        let now = self.now;
        self.peer(to).last_sent = Some(now);
        let (epoch, view) = (self.epoch(), self.view_checksum);
        self.effects.push(Effect::Send { to: to.clone(), epoch, view, message });
    }

    pub(super) fn effect(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    pub(super) fn halt(&mut self, reason: Halt) {
        self.halted = true;
        self.effects.push(Effect::Halt(reason));
    }

    // --- who lives ---

    pub(super) fn peer(&mut self, node: &NodeId) -> &mut Peer {
        let now = self.now;
        self.peers.entry(node.clone()).or_insert(Peer {
            last_heard: now,
            session: None,
            incarnation: None,
            dead: None,
            last_sent: None,
            silences: Debt::default(),
        })
    }

    fn hear(&mut self, envelope: &Envelope) {
        let (now, session, timeout) = (self.now, envelope.session, self.config.failure_timeout);
        // Only under our view or a newer one: a straggler from before a wipe must not speak for the node of today.
        let current = envelope.epoch >= self.epoch();
        let peer = self.peer(&envelope.from);
        let straggles = |dead: &Death| dead.session == Some(session) && now < dead.stragglers_until;
        if peer.dead.as_ref().is_some_and(straggles) {
            return;
        }
        if current {
            peer.incarnation = Some(envelope.incarnation);
        }
        peer.dead = None;
        if peer.session == Some(session) {
            let silent = now - peer.last_heard;
            peer.silences.note(now, silent, timeout);
        } else {
            peer.silences.forget();
        }
        peer.session = Some(session);
        peer.last_heard = now;
    }

    fn died(&mut self, node: NodeId, session: Option<u64>) {
        let any = self.breaks(Rule::AnyDeathCounts);
        let stragglers_until =
            if self.breaks(Rule::DeadForEver) { Millis::MAX } else { self.now + self.config.failure_timeout };
        let peer = self.peer(&node);
        if !any && session.is_some() && peer.session.is_some() && peer.session != session {
            return; // another process of that node has spoken since
        }
        // "Nobody runs there" proves the death of whichever process we last heard.
        peer.dead = Some(Death { session: session.or(peer.session), stragglers_until });
        match &self.role {
            Role::Follower(_) => self.consider_takeover(),
            Role::Candidate(_) => {}
            Role::Leader(_) => self.change_set(),
        }
    }

    pub(super) fn heard_within(&self, node: &NodeId, time: Millis) -> bool {
        self.peers.get(node).is_some_and(|peer| peer.session.is_some() && self.now - peer.last_heard <= time)
    }

    fn sent_before(&self, node: &NodeId, time: Millis) -> bool {
        self.peers.get(node).and_then(|peer| peer.last_sent).is_none_or(|sent| self.now - sent >= time)
    }

    /// This process runs for less time than a silence takes.
    pub(super) fn is_starting(&self) -> bool {
        self.now - self.started_at < self.config.failure_timeout
    }

    /// Proved dead, or silent for `failure_timeout`, or another data directory speaks from its address, so that the
    /// one we count on is no more (R24). While we ourselves have just started, a node that has not spoken to us yet
    /// gets the same time: nodes of a cluster are started together.
    pub(super) fn is_gone(&self, node: &NodeId) -> bool {
        if *node == self.config.id {
            return false;
        }
        let starting = self.is_starting();
        match self.peers.get(node) {
            None => !starting,
            Some(peer) if peer.session.is_none() && starting => false,
            Some(peer) => {
                peer.dead.is_some()
                    || self.is_replaced(node)
                    || self.now - peer.last_heard > self.config.failure_timeout
            }
        }
    }

    /// A leader that lives, and yet is silent for most of the time: it is replaced as one that is gone (R36).
    pub(super) fn is_slow_leader(&self, node: &NodeId) -> bool {
        let timeout = self.config.failure_timeout;
        let leads = self.view.as_ref().is_some_and(|view| view.leader == *node);
        let slow = |peer: &Peer| peer.silences.is_too_much_for_leader(self.now, timeout);
        leads && self.peers.get(node).is_some_and(slow) && !self.breaks(Rule::FollowSlow)
    }

    /// Gone for its silence alone: it may live.
    pub(super) fn is_silent(&self, node: &NodeId) -> bool {
        let proved = self.peers.get(node).is_some_and(|peer| peer.dead.is_some());
        self.is_gone(node) && !proved && !self.is_replaced(node)
    }

    /// Another data directory speaks from its address (R24).
    fn is_replaced(&self, node: &NodeId) -> bool {
        let counted = self.view.as_ref().and_then(|view| view.in_sync.get(node));
        let spoke = self.peers.get(node).and_then(|peer| peer.incarnation);
        !self.breaks(Rule::TrustWipedNode)
            && counted.is_some()
            && spoke.is_some_and(|spoke| Some(&spoke) != counted)
    }

    // --- writes ---

    fn write(&mut self, pending: PendingWrite) -> WriteId {
        let write = self.next_write;
        self.next_write += 1;
        self.pending.push_back((write, pending));
        write
    }

    pub(super) fn persist_promise(&mut self) -> WriteId {
        let write = self.write(PendingWrite::Promise);
        self.effects.push(Effect::Persist { write, promised: self.promised, view: self.view.clone() });
        write
    }

    /// True where the newest view and promise are on the disk.
    pub(super) fn view_is_durable(&self) -> bool {
        self.breaks(Rule::ForgetView)
            || !self.pending.iter().any(|(_, pending)| matches!(pending, PendingWrite::Promise))
    }

    /// Own entries at the end of the log.
    pub(super) fn append_own(&mut self, count: u64, opening: bool) -> Index {
        let epoch = self.epoch();
        let first = self.log.last().index.next();
        let last = Index(first.0 + count - 1);
        self.log.append(epoch, last);
        let write = self.write(PendingWrite::Log { last });
        self.effects.push(Effect::Append { write, epoch, first, last, opening });
        first
    }

    pub(super) fn accept(&mut self, first: Index, last: Index) {
        let write = self.write(PendingWrite::Log { last });
        self.effects.push(Effect::Accept { write, first, last });
    }

    pub(super) fn truncate(&mut self, after: Index) {
        self.log.truncate(after);
        for (_, pending) in &mut self.pending {
            if let PendingWrite::Log { last } = pending {
                *last = (*last).min(after);
            }
        }
        let write = self.write(PendingWrite::Log { last: after });
        self.effects.push(Effect::Truncate { write, after });
    }

    fn persisted(&mut self, up_to: WriteId) {
        while let Some(&(write, pending)) = self.pending.front()
            && write <= up_to
        {
            self.pending.pop_front();
            match pending {
                PendingWrite::Log { last } => self.log.set_durable(last),
                PendingWrite::Promise | PendingWrite::Superseded => {}
                PendingWrite::Install { index } => self.log.set_durable(index),
            }
        }
        match &self.role {
            Role::Follower(_) => {
                self.learn_commit();
                self.acknowledge();
            }
            Role::Candidate(_) => self.promise_persisted(up_to),
            Role::Leader(_) => {
                self.disk_moved();
                self.advance_commit();
            }
        }
    }

    /// A promise says nothing of the entries before it: these wait on. What is durable already may count from now on,
    /// since it counts with a durable view only (R11).
    fn promise_kept(&mut self, kept: WriteId) {
        self.pending.retain(|(write, _)| *write != kept);
        match &self.role {
            Role::Follower(_) => {
                self.learn_commit();
                self.acknowledge();
            }
            Role::Candidate(_) => self.promise_persisted(kept),
            Role::Leader(_) => self.advance_commit(),
        }
    }

    fn snapshot_received(&mut self, mark: Mark) {
        let useless = mark.index <= self.log.commit() || mark.epoch > self.epoch();
        if useless || self.is_in_sync() || !matches!(self.role, Role::Follower(_)) {
            return;
        }
        if self.log.epoch_at(mark.index) == Some(mark.epoch) {
            // The log has gone past it, and the leader counts on everything that we have acknowledged: it may be
            // about to take us in. Nothing is cut; only that so much is committed is news.
            self.log.set_commit(mark.index);
            return self.report();
        }
        for (_, pending) in &mut self.pending {
            *pending = PendingWrite::Superseded;
        }
        self.log.reset(mark);
        self.role = Role::Follower(Follower::new(mark.index));
        let write = self.write(PendingWrite::Install { index: mark.index });
        self.announced_commit = mark.index;
        self.effects.push(Effect::Install { write, mark });
        self.report();
    }

    /// Entries are applied once they are committed and on our own disk (R15).
    fn announce_commit(&mut self) {
        let committed =
            if self.breaks(Rule::ApplyUncommitted) { self.log.last().index } else { self.log.commit() };
        let to = committed.min(self.log.durable());
        if to > self.announced_commit {
            self.announced_commit = to;
            self.effects.push(Effect::Commit(to));
        }
    }

    /// Says to the leader where we stand; the leader streams from there.
    pub(super) fn report(&mut self) {
        let Some(leader) = self.view.as_ref().map(|view| view.leader.clone()) else { return };
        let (commit, last) = (self.log.commit(), self.log.last().index);
        self.send(&leader, Message::Report { commit, last });
    }
}
