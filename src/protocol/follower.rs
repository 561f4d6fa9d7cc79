//! What a follower does, in sync or on the way there: take the leader's entries, say how far its disk agrees.

use super::node::{Node, Role};
use super::outline::{Mark, Run};
use super::rules::Rule;
use super::{Halt, Message, Millis};
use crate::view::{Epoch, Incarnation, Index, NodeId};

/// What a follower knows beyond its log. Starts anew with each view.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Follower {
    /// Up to here our log is the same as the leader's. At first what is committed: a leader was in sync, and so holds
    /// all of that.
    matched: Index,
    /// What the leader says to be committed, as far as our log is the same as its.
    committed: Index,
    /// What the leader was last told, and when.
    acknowledged: Index,
    pub(super) acknowledged_at: Option<Millis>,
    /// When entries or a heartbeat of the leader last fitted our log.
    pub(super) fitted_at: Option<Millis>,
    /// When the newest of these was sent, by the leader's clock.
    pub(super) heard: Option<Millis>,
    pub(super) reported_at: Option<Millis>,
}

impl Follower {
    pub(super) fn new(commit: Index) -> Follower {
        Follower {
            matched: commit,
            committed: commit,
            acknowledged: Index(0),
            acknowledged_at: None,
            fitted_at: None,
            heard: None,
            reported_at: None,
        }
    }
}

impl Node {
    pub(super) fn follower_tick(&mut self) {
        self.report_when_unheard();
        self.consider_takeover();
    }

    /// Asks the leader for entries until they come: the first report of a new view may be lost, and a node outside
    /// the set is not known to the leader before it reports (R30).
    fn report_when_unheard(&mut self) {
        let Some(view) = &self.view else { return };
        if view.leader == self.config.id {
            return;
        }
        let (now, interval) = (self.now, self.config.heartbeat_interval);
        let Role::Follower(follower) = &mut self.role else { return };
        let fitted = follower.fitted_at.is_some_and(|at| now - at <= 2 * interval);
        let reported = follower.reported_at.is_some_and(|at| now - at < interval);
        if !fitted && !reported {
            follower.reported_at = Some(now);
            self.report();
        }
    }

    pub(super) fn append_received(
        &mut self,
        (from, incarnation): (&NodeId, Incarnation),
        previous: Mark,
        runs: &[Run],
        last: Index,
        commit: Index,
        sent: Option<Millis>,
    ) {
        let Some(view) = &self.view else { return };
        let from_leader = view.leader == *from && view.in_sync.get(from) == Some(&incarnation);
        // Whoever has promised a newer epoch takes nothing more of this one (R5).
        if !from_leader || self.promised > view.epoch || !matches!(self.role, Role::Follower(_)) {
            return;
        }
        if !self.fits(previous) {
            return;
        }
        if !self.take(runs, last) {
            return;
        }
        let now = self.now;
        let Role::Follower(follower) = &mut self.role else { return };
        follower.fitted_at = Some(now);
        follower.heard = follower.heard.max(sent);
        follower.matched = follower.matched.max(last).max(previous.index);
        follower.committed = follower.committed.max(commit.min(follower.matched));
        self.learn_commit();
        self.acknowledge();
    }

    /// Takes over what the leader says to be committed, once this node would find the leader's view again after a restart
    /// (R11): whoever knows less of the views than of the log could follow a chain of views to which it does not belong.
    pub(super) fn learn_commit(&mut self) {
        let Role::Follower(follower) = &self.role else { return };
        if follower.committed > self.log.commit() && self.view_is_durable() {
            self.log.set_commit(follower.committed);
        }
    }

    /// Does our log hold the entry that the leader's entries follow? If not, say where we stand (R14).
    fn fits(&mut self, previous: Mark) -> bool {
        if previous.index < self.log.base().index {
            return true; // what lies below the base is committed, and so the same everywhere
        }
        match self.log.epoch_at(previous.index) {
            Some(epoch) if epoch == previous.epoch || self.breaks(Rule::NoTruncate) => true,
            Some(_) if previous.index <= self.log.commit() => {
                self.contradict(previous.index, previous.epoch);
                false
            }
            Some(_) | None => {
                self.report();
                false
            }
        }
    }

    /// The leader's entry here is of `theirs`, and ours is committed. Somebody's data is not what it was. Where the leader
    /// wrote its entry in this very leadership, it did not have ours when it took over, as any leader must: its disk was
    /// put back to an older state. Who is counted on tells it so, and keeps what it has (R24). Otherwise the fault is
    /// ours (R14).
    fn contradict(&mut self, at: Index, theirs: Epoch) {
        let led_since = self.view.as_ref().map_or(Epoch(0), |view| view.led_since);
        let ours = self.log.epoch_at(at).unwrap_or_default();
        if self.is_in_sync() && theirs >= led_since && ours < led_since {
            self.report();
        } else {
            self.halt(Halt::Diverged { at });
        }
    }

    /// Appends what is new, after cutting what differs. False where that would cut committed entries.
    fn take(&mut self, runs: &[Run], last: Index) -> bool {
        for (number, run) in runs.iter().enumerate() {
            let end = runs.get(number + 1).map_or(last, |next| Index(next.first.0 - 1));
            let mut index = run.first.max(self.log.base().index.next());
            while index <= end
                && index <= self.log.last().index
                && (self.log.epoch_at(index) == Some(run.epoch) || self.breaks(Rule::NoTruncate))
            {
                index = index.next();
            }
            if index > end {
                continue;
            }
            if index <= self.log.last().index {
                if index <= self.log.commit() {
                    self.contradict(index, run.epoch);
                    return false;
                }
                self.truncate(Index(index.0 - 1));
            }
            // From here on everything is new.
            for (later, run) in runs.iter().enumerate().skip(number) {
                let end = runs.get(later + 1).map_or(last, |next| Index(next.first.0 - 1));
                self.log.append(run.epoch, end);
            }
            self.accept(index, last);
            return true;
        }
        true
    }

    /// Says how far our disk agrees with the leader's log: an acknowledgement is the effect of durability only (R20).
    pub(super) fn acknowledge(&mut self) {
        let Some(view) = &self.view else { return };
        if self.promised > view.epoch {
            return; // R5
        }
        // R11: what counts in this view is held by those alone that find the view again after a restart.
        if !self.view_is_durable() {
            return;
        }
        let leader = view.leader.clone();
        let (now, interval) = (self.now, self.config.heartbeat_interval);
        let durable = if self.breaks(Rule::AcknowledgeBeforeDurable) {
            self.log.last().index
        } else {
            self.log.durable()
        };
        let Role::Follower(follower) = &mut self.role else { return };
        if follower.fitted_at.is_none() {
            return; // nothing of this leader has been compared yet
        }
        let durable = durable.min(follower.matched);
        let due = follower.acknowledged_at.is_none_or(|at| now - at >= interval / 2);
        if durable > follower.acknowledged || due {
            follower.acknowledged = durable;
            follower.acknowledged_at = Some(now);
            let heard = follower.heard;
            let (full, disk) = (self.full, self.config.disk);
            self.send(&leader, Message::Appended { durable, full, heard, disk });
        }
    }
}
