//! Taking over: who may, when, and in which steps.
//!
//! ```text
//! Follower ──leader gone, my turn──▶ Confirming ──register agrees──▶ Preparing ──has room──▶ Promising
//!     ▲                                  │                               │ (R34)                │ (R5)
//!     ├── leader lives, newer view, ◀────┴───────────────────────────────┘                durable
//!     │   no room for a view                                                                   ▼
//!     └──────────────── another view stands there, or nothing was changed ◀── Swapping ◀── Ready
//!                                                                                  │
//!                                                                                  └──won──▶ Leader
//! ```

use super::node::{Node, RegisterTask, Role};
use super::rules::Rule;
use super::{Effect, Halt, Millis, WriteId};
use crate::view::{NodeId, View};

/// A node on its way to leadership.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Candidate {
    pub(super) stage: Stage,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Stage {
    /// The register is being read: after the promise there is no way back, so look first (R10).
    Confirming,
    /// The register makes ready all that a swap needs: nothing is promised yet (R34).
    Preparing {
        next: View,
        /// The leader has asked for it (R9), and lives.
        asked: bool,
    },
    /// The promise is on its way to the disk (R5).
    Promising { write: WriteId, next: View },
    /// Promised, but the register is busy with another operation of ours.
    Ready { next: View },
    /// The swap is sent, or its outcome not settled.
    Swapping,
}

impl Node {
    /// How long rank k waits for the k live nodes below it, per node (R8).
    fn rank_delay(&self) -> Millis {
        (self.config.failure_timeout / 3).max(2 * self.config.heartbeat_interval)
    }

    /// Starts a candidacy where the leader is gone and it is our turn: the lowest live in-sync address (R8, O7).
    pub(super) fn consider_takeover(&mut self) {
        let Some(view) = &self.view else { return };
        let may = self.is_in_sync() || self.breaks(Rule::ElectOutsideSet);
        if !matches!(self.role, Role::Follower(_)) || !may {
            return;
        }
        let last = self.log.last().index;
        if last < view.floor {
            let floor = view.floor;
            return self.halt(Halt::LogTooShort { last, floor }); // R24
        }
        if view.leader != self.config.id && !self.has_renounced() {
            if !self.is_gone(&view.leader) && !self.is_slow_leader(&view.leader) {
                self.leader_gone_since = None;
                return;
            }
            let since = *self.leader_gone_since.get_or_insert(self.now);
            if self.now < since + self.rank() * self.rank_delay() {
                return;
            }
        }
        if self.has_others_to_hear() {
            return;
        }
        if matches!(self.register, RegisterTask::Idle) && self.pause.is_over(self.now) {
            self.role = Role::Candidate(Candidate { stage: Stage::Confirming });
            self.read_register();
        }
    }

    /// A process that has just started knows what its disk says, and an older copy of the register may say the same while
    /// others have long gone on (R11). They would say so: whoever counts in the view is heard first, or proved dead, but is
    /// waited for no longer than a silence takes.
    fn has_others_to_hear(&self) -> bool {
        let Some(view) = &self.view else { return false };
        let known = |node: &NodeId| {
            self.peers.get(node).is_some_and(|peer| peer.session.is_some() || peer.dead.is_some())
        };
        let unknown = view.in_sync.keys().any(|node| *node != self.config.id && !known(node));
        unknown && self.is_starting() && self.config.hears_first && !self.breaks(Rule::SwapUnheard)
    }

    /// The last that was to be heard may have spoken.
    pub(super) fn go_on_when_heard(&mut self) {
        if self.is_starting() {
            self.consider_takeover();
        }
    }

    /// We have promised to obey nobody in this epoch, and then perhaps died before the swap. There is no way back: the
    /// leader waits for acknowledgements that we must not give, so the next epoch has to come, and from us.
    fn has_renounced(&self) -> bool {
        self.promised > self.epoch()
    }

    /// Live in-sync nodes that go before us.
    fn rank(&self) -> Millis {
        let Some(view) = &self.view else { return 0 };
        if self.breaks(Rule::TakeOverAtOnce) {
            return 0;
        }
        let before = |node: &&NodeId| **node < self.config.id && **node != view.leader && !self.is_gone(node);
        view.in_sync.keys().filter(before).count() as Millis
    }

    /// The register was read and holds the view we know.
    pub(super) fn candidacy_confirmed(&mut self) {
        let Role::Candidate(candidate) = &self.role else { return };
        match &candidate.stage {
            Stage::Confirming => self.promise_to_replace_leader(),
            Stage::Preparing { .. } | Stage::Promising { .. } => {}
            Stage::Ready { next } => {
                let next = next.clone();
                self.send_swap(next);
            }
            Stage::Swapping => self.become_follower(),
        }
    }

    /// The register could not be read, or is older than what we know: no view can change now (R10, R11).
    pub(super) fn abandon_candidacy(&mut self) {
        let Role::Candidate(candidate) = &self.role else { return };
        match &candidate.stage {
            Stage::Confirming | Stage::Ready { .. } => self.become_follower(),
            Stage::Swapping if matches!(self.register, RegisterTask::Idle) => self.become_follower(),
            Stage::Preparing { .. } | Stage::Promising { .. } | Stage::Swapping => {}
        }
    }

    /// There is a leader to obey, and nothing promised against it.
    fn leader_lives(&self) -> bool {
        self.view.as_ref().is_some_and(|view| {
            view.leader != self.config.id
                && !self.has_renounced()
                && !self.is_gone(&view.leader)
                && !self.is_slow_leader(&view.leader)
        })
    }

    fn become_follower(&mut self) {
        self.role = Role::Follower(super::follower::Follower::new(self.log.commit()));
    }

    fn promise_to_replace_leader(&mut self) {
        let Some(view) = &self.view else { return };
        if self.leader_lives() {
            return self.become_follower(); // it spoke while we looked
        }
        let in_sync =
            view.in_sync.iter().filter(|(node, _)| !self.is_gone(node) && !self.is_slow_leader(node));
        let intruder =
            self.breaks(Rule::ElectOutsideSet).then_some((&self.config.id, &self.config.incarnation));
        let next = View {
            leader: self.config.id.clone(),
            epoch: view.epoch.next(),
            led_since: view.epoch.next(),
            in_sync: in_sync
                .chain(intruder)
                .map(|(node, incarnation)| (node.clone(), *incarnation))
                .collect(),
            floor: view.floor.max(self.log.commit()),
            previous: self.previous(),
            ..view.clone()
        };
        self.prepare(next, false);
    }

    /// R34: first all that the swap needs; the promise cannot be taken back.
    pub(super) fn prepare(&mut self, next: View, asked: bool) {
        let ready = self.breaks(Rule::PromiseUnprepared) || self.breaks(Rule::SkipPromise);
        if ready || !matches!(self.register, RegisterTask::Idle) {
            return self.promise_and_swap(next);
        }
        self.register = RegisterTask::Preparing;
        self.effects.push(Effect::Prepare(next.clone()));
        self.role = Role::Candidate(Candidate { stage: Stage::Preparing { next, asked } });
    }

    /// The register has made ready what the swap needs, or cannot. A candidate that gives up here has promised nothing
    /// and obeys its leader as before.
    pub(super) fn prepared(&mut self, ready: bool) {
        assert!(matches!(self.register, RegisterTask::Preparing), "an answer that nobody asked for");
        self.register = RegisterTask::Idle;
        let Role::Candidate(Candidate { stage: Stage::Preparing { next, asked } }) = &self.role else {
            return;
        };
        let next = next.clone();
        let spoke = !asked && self.leader_lives();
        if !ready {
            self.no_room_for_view();
            self.become_follower();
        } else if spoke {
            self.become_follower();
        } else if self.is_behind_others() {
            self.become_follower(); // heard meanwhile: look again before anything is promised
            self.read_register();
        } else {
            self.promise_and_swap(next);
        }
    }

    /// R5: first the promise, durably; then the swap.
    fn promise_and_swap(&mut self, next: View) {
        if self.breaks(Rule::SkipPromise) && matches!(self.register, RegisterTask::Idle) {
            return self.send_swap(next);
        }
        self.promised = next.epoch;
        let write = self.persist_promise();
        self.role = Role::Candidate(Candidate { stage: Stage::Promising { write, next } });
    }

    pub(super) fn promise_persisted(&mut self, up_to: WriteId) {
        let Role::Candidate(candidate) = &mut self.role else { return };
        if let Stage::Promising { write, next } = &candidate.stage
            && *write <= up_to
        {
            let next = next.clone();
            if matches!(self.register, RegisterTask::Idle) {
                self.send_swap(next);
            } else {
                candidate.stage = Stage::Ready { next };
            }
        }
    }

    fn send_swap(&mut self, next: View) {
        if self.is_behind_others() {
            // The promise stands, and so does the wish to bring the next epoch about; but not on top of this view (R11).
            self.become_follower();
            return self.read_register();
        }
        self.role = Role::Candidate(Candidate { stage: Stage::Swapping });
        self.swap(next);
    }

    /// The leader has drained everything and asks us to lead (R9).
    pub(super) fn transfer_received(&mut self, from: &NodeId) {
        let Some(view) = &self.view else { return };
        let willing =
            matches!(self.role, Role::Follower(_)) && self.is_in_sync() && self.promised == view.epoch;
        let idle = matches!(self.register, RegisterTask::Idle);
        if view.leader == *from && willing && idle {
            let next = View {
                leader: self.config.id.clone(),
                epoch: view.epoch.next(),
                led_since: view.epoch.next(),
                floor: view.floor.max(self.log.commit()),
                previous: self.previous(),
                ..view.clone()
            };
            self.prepare(next, true);
        }
    }
}
