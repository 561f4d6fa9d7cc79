//! What the nodes say of themselves, asked again and again; and what the kernel says that they use.

use std::time::{Duration, Instant};

use crate::clock;
use crate::control::life::{Event, State};
use crate::proto::replcluster::DescribeResponse;
use crate::register;
use crate::telemetry::stamp;
use crate::view::{Epoch, NodeId};

use super::super::record::LastAnswer;
use super::super::slot::Slot;
use super::super::{adopt, ask, events};
use super::{Message, Supervisor};

/// How often a node is asked; one that starts more often at first.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// How often one is asked that was started just now.
const EAGER_LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// One that starts is asked again after this part of the time that it has taken so far.
const EAGERNESS: u32 = 16;
/// How long a node may take to answer before it is asked again.
const LOOK_PATIENCE: Duration = Duration::from_secs(1);

impl Supervisor {
    /// Asks every node whose turn it is how it is; the answers arrive as messages.
    pub(super) fn look(&mut self, now: Instant) {
        for (node, slot) in &mut self.nodes {
            if slot.next_look().is_none_or(|at| at > now) {
                continue;
            }
            let Some(process) = &slot.process else { continue };
            slot.asking = true;
            slot.ask_at = Some(now + interval(&slot.life.state, now.duration_since(process.since)));
            let (asker, inbox) = (self.asker.clone(), self.inbox.clone());
            let (node, number) = (node.clone(), process.number);
            // Ends within its patience, and with the runtime at the latest.
            tokio::spawn(async move {
                let answer = asker.describe(&node, LOOK_PATIENCE).await.ok().map(Box::new);
                let _ = inbox.send(Message::Looked { node, number, answer }).await;
            });
        }
    }

    pub(super) fn looked(&mut self, node: &NodeId, number: u64, answer: Option<Box<DescribeResponse>>) {
        let Some(slot) = self.nodes.get_mut(node) else { return };
        let Some(process) = slot.process.as_mut().filter(|process| process.number == number) else { return };
        slot.asking = false;
        let Some(answer) = answer else { return };
        if !adopt::matches(&answer, &process.handle.id, &process.nonce) {
            return;
        }
        slot.epoch = answer.epoch;
        slot.last_answer = Some(LastAnswer {
            at: stamp(clock::wall()),
            epoch: answer.epoch,
            leader: answer.leader.clone(),
            applied: answer.applied_index,
            revision: answer.revision,
        });
        let in_sync = ask::is_in_sync(&answer);
        if in_sync && slot.life.state == State::Starting {
            let after = process.since.elapsed();
            let after_ms = (!process.adopted).then(|| u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
            let told = std::mem::replace(&mut process.ready_told, true);
            self.step(node, Event::Ready);
            self.healed_by_serving(node);
            self.remember();
            if !told {
                self.tell(events::Event::Ready { node: node.to_string(), after_ms });
            }
        } else {
            // Every answer counts: what it fails of is forgiven after a time of service, and only after that.
            let failures = slot.life.failures;
            self.step(node, if in_sync { Event::Ready } else { Event::Behind });
            if self.nodes.get(node).is_some_and(|slot| slot.life.failures != failures) {
                self.remember();
            }
        }
        self.saw_view |= answer.epoch > 0;
        if answer.epoch > self.epoch && !answer.leader.is_empty() {
            self.tell_missed_views(answer.epoch);
            self.epoch = answer.epoch;
            self.tell(events::Event::View {
                epoch: answer.epoch,
                leader: answer.leader.clone(),
                in_sync: answer.in_sync.clone(),
            });
        }
    }

    /// Views may follow each other faster than nodes are asked: those in between stand in the register.
    fn tell_missed_views(&mut self, before: u64) {
        let missed = register::views_between(&self.layout.register(), Epoch(self.epoch), Epoch(before));
        for view in missed {
            self.epoch = view.epoch.0;
            self.tell(events::Event::View {
                epoch: view.epoch.0,
                leader: view.leader.to_string(),
                in_sync: view.in_sync.keys().map(ToString::to_string).collect(),
            });
        }
    }

    pub(super) fn measure(&mut self, now: Instant) {
        for process in self.nodes.values_mut().filter_map(|slot| slot.process.as_mut()) {
            process.measure(now);
        }
    }
}

impl Slot {
    /// When it is to be asked next: where it runs, is not frozen, and the last question is answered.
    pub(super) fn next_look(&self) -> Option<Instant> {
        let process = self.process.as_ref().filter(|_| !self.asking)?;
        let frozen = matches!(self.life.state, State::Paused { .. });
        (!frozen).then(|| self.ask_at.unwrap_or(process.since))
    }
}

/// The time between two questions to a node that runs for so long.
fn interval(state: &State, running: Duration) -> Duration {
    match state {
        State::Starting => (running / EAGERNESS).clamp(EAGER_LOOK_INTERVAL, LOOK_INTERVAL),
        State::Down
        | State::Spawning
        | State::Serving { .. }
        | State::Paused { .. }
        | State::Signalled { .. }
        | State::Stopping { .. }
        | State::Waiting { .. }
        | State::Failed => LOOK_INTERVAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_starts_is_asked_often_at_first_and_like_any_other_in_the_end() {
        let after = |seconds| interval(&State::Starting, Duration::from_secs(seconds));
        assert_eq!((after(0), after(3600)), (EAGER_LOOK_INTERVAL, LOOK_INTERVAL));
        assert!(after(1) > after(0) && after(1) < LOOK_INTERVAL);
        assert_eq!(interval(&State::Failed, Duration::ZERO), LOOK_INTERVAL);
    }
}
