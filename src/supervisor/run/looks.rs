//! What the nodes say of themselves, asked again and again; and what the kernel says that they use.

use std::time::{Duration, Instant};

use crate::clock;
use crate::control::life::{Event, State};
use crate::proto::replcluster::DescribeResponse;
use crate::register;
use crate::telemetry::stamp;
use crate::view::{Epoch, NodeId};

use super::super::record::LastAnswer;
use super::super::{adopt, ask, events};
use super::{EAGER_LOOK_INTERVAL, LOOK_INTERVAL, Message, Supervisor};

/// How long a node may take to answer before it is asked again.
const LOOK_PATIENCE: Duration = Duration::from_secs(1);

impl Supervisor {
    pub(super) fn look_interval(&self) -> Duration {
        let starting = self.nodes.values().any(|slot| slot.life.state == State::Starting);
        if starting { EAGER_LOOK_INTERVAL } else { LOOK_INTERVAL }
    }

    /// Asks every node that runs how it is; the answers arrive as messages.
    pub(super) fn look(&mut self) {
        for (node, slot) in &mut self.nodes {
            let Some(process) = &slot.process else { continue };
            if slot.asking || matches!(slot.life.state, State::Paused { .. }) {
                continue;
            }
            slot.asking = true;
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
        if ask::is_in_sync(&answer) && slot.life.state == State::Starting {
            let after = process.since.elapsed();
            let after_ms = (!process.adopted).then(|| u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
            let told = std::mem::replace(&mut process.ready_told, true);
            self.step(node, Event::Ready);
            self.healed_by_serving(node);
            self.remember();
            if !told {
                self.tell(events::Event::Ready { node: node.to_string(), after_ms });
            }
        }
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
