//! What a new supervisor makes of what an earlier one left. It compares three accounts: what was remembered
//! (`record`), what was told (`past`), and what lives. Living processes are taken over, unseen ends are told, nothing is
//! told twice, and what was begun is ended: a start whose process nobody noted, a stop, a pause, a kill.

use std::time::Duration;

use crate::clock;
use crate::control::cause::{self, Ended};
use crate::control::fault::{Duty, Kind, Phase};
use crate::control::life::{Event, Life, State};
use crate::telemetry::stamp;
use crate::view::NodeId;

use super::super::adopt::{self, Survivor};
use super::super::heal;
use super::super::past::{NodePast, Past};
use super::super::record::{self, Fault, LastExit, NodeRecord, Record};
use super::super::slot::{MemoryKills, Process, Slot};
use super::super::{events, os, spawn};
use super::{Message, Supervisor};

/// How long a node has that an earlier supervisor had told to end.
const END_PATIENCE: Duration = Duration::from_secs(5);

impl Supervisor {
    /// Takes over what an earlier supervisor left. What it left wanted and is dead now is treated like any other exit,
    /// where at least one node lives; a cluster that is dead as a whole waits for `up`.
    pub(super) async fn take_over(&mut self, record: &Record, past: &Past) {
        self.epoch = past.epoch;
        let nodes = self.known_nodes(record);
        let mut survivors = adopt::survivors(&self.layout, record, &nodes, &self.asker).await;
        let any_lives = !survivors.is_empty();
        for node in &nodes {
            let remembered = record.nodes.get(node.as_str()).cloned().unwrap_or_default();
            let of_past = past.node(node.as_str());
            let gave_up = remembered.phase == record::Phase::Failed;
            let slot = Slot {
                wanted: remembered.wanted && any_lives,
                spawns: remembered.spawns,
                last_exit: newer(remembered.last_exit.clone(), of_past.last_exit.clone()),
                last_answer: remembered.last_answer.clone(),
                life: Life { state: if gave_up { State::Failed } else { State::Down }, failures: 0 },
                fault: remembered.fault.clone(),
                settings: remembered.settings.clone(),
                ..Slot::default()
            };
            let known = remembered.spawns > 0 || self.config.nodes.contains(node);
            if survivors.contains_key(node) || known {
                self.nodes.insert(node.clone(), slot);
            }
        }
        // All slots are there before the first life is touched: a start needs to know what else is to run.
        for node in nodes {
            let remembered = record.nodes.get(node.as_str()).cloned().unwrap_or_default();
            let of_past = past.node(node.as_str());
            match survivors.remove(&node) {
                Some(survivor) => self.adopt(&node, survivor, &remembered, &of_past),
                None if self.nodes.contains_key(&node) => self.bury(&node, &remembered, &of_past, any_lives),
                None => {}
            }
        }
        self.remember();
        for (node, of_node) in &record.nodes {
            let of_past = past.node(node);
            if of_node.phase == record::Phase::Failed && !of_past.gave_up && self.known(node).is_some() {
                let reason = "restarts do not help".to_owned();
                self.tell(events::Event::GaveUp { node: node.clone(), reason });
            }
        }
    }

    /// The configured nodes, and those that were taken out of the configuration while they ran.
    fn known_nodes(&self, record: &Record) -> Vec<NodeId> {
        let mut nodes = self.config.nodes.clone();
        nodes.extend(record.nodes.keys().filter_map(|name| NodeId::parse(name).ok()));
        nodes.sort();
        nodes.dedup();
        nodes
    }

    fn adopt(&mut self, node: &NodeId, survivor: Survivor, remembered: &NodeRecord, past: &NodePast) {
        let pid = survivor.handle.id.pid;
        if past.open.is_some_and(|open| open != pid) {
            // The history knows an earlier process, whose end was not told.
            self.tell_unseen_end(node, past, !remembered.wanted);
        }
        let number = self.next_number;
        self.next_number += 1;
        let (inbox, name) = (self.inbox.clone(), node.clone());
        let watched = survivor.handle.try_clone().and_then(|handle| {
            spawn::watch_adopted(handle, move |ended| {
                let _ = inbox.blocking_send(Message::Ended { node: name, number, ended });
            })
        });
        if let Err(error) = watched {
            tracing::error!(%node, pid, %error, "cannot watch a living process: not taken over");
            return;
        }
        // Started, and the supervisor died before it could say so.
        let untold = past.open != Some(pid) && !survivor.nonce.is_empty();
        if let Some(slot) = self.nodes.get_mut(node) {
            slot.process = Some(Process {
                handle: survivor.handle,
                number,
                nonce: survivor.nonce,
                since: clock::now(),
                adopted: true,
                ready_told: past.ready && past.open == Some(pid),
                // What was said before is of no use: a process speaks of its end when it ends, and that is later.
                words_from: self.layout.stderr(node).metadata().map_or(0, |metadata| metadata.len()),
                asked_to_end: false,
                memory_kills: MemoryKills::new(clock::now(), os::memory_kills()),
                usage: None,
                cpu_percent: None,
            });
            slot.spawns = slot.spawns.max(1);
            slot.wanted = remembered.wanted || remembered.nonce.is_empty();
        }
        if untold {
            self.tell(events::Event::Started { node: node.to_string(), pid });
        }
        self.step(node, Event::Adopted { paused: survivor.paused });
        self.remember();
        self.tell(events::Event::Adopted { node: node.to_string(), pid });
        self.settle_fault(node, remembered, past);
        if self.nodes.get(node).is_some_and(|slot| !slot.wanted) {
            // The earlier supervisor died while it was ending this one.
            let deadline = self.moment() + END_PATIENCE;
            self.step(node, Event::Stop { deadline });
        } else if remembered.phase == record::Phase::Stopping {
            // It was to end and to run again.
            let deadline = self.moment() + END_PATIENCE;
            self.step(node, Event::Restart { deadline });
        }
    }

    /// Does what an open fault asks for.
    fn settle_fault(&mut self, node: &NodeId, remembered: &NodeRecord, past: &NodePast) {
        let Some(open) = &remembered.fault else { return };
        let process = self
            .nodes
            .get(node)
            .and_then(|slot| slot.process.as_ref())
            .map(|process| process.handle.id.clone());
        let now_ms = os::milliseconds_since_boot();
        let told = past.told(&open.id);
        if told.is_none_or(Phase::is_over) {
            // Never told, so hardly done; or told to be over. In either case nothing is to stay frozen.
            if process.as_ref().is_some_and(|id| id.pid == open.pid) {
                self.thaw_anyway(node);
            }
            self.forget(node);
            return;
        }
        match open.duty(process.as_ref(), now_ms) {
            Duty::Thaw(phase) => {
                self.thaw_anyway(node);
                self.close(node, open.kind, phase, heal::why(phase));
            }
            Duty::Keep => {
                let left = open.until_ms.map(|until| Duration::from_millis(until.saturating_sub(now_ms)));
                let at = left.map(|left| self.moment() + left);
                if let Some(slot) = self.nodes.get_mut(node) {
                    slot.resume_at = at;
                }
                if told.is_some_and(|told| told < open.phase) {
                    self.tell_phase(node, open.phase, None, None);
                }
            }
            Duty::End(phase) => {
                if open.kind == Kind::Kill {
                    // It may have been frozen before.
                    self.thaw_anyway(node);
                }
                self.close(node, open.kind, phase, heal::why(phase));
            }
            Duty::Dead => {
                if told.is_some_and(|told| told < Phase::Seen) {
                    self.phase(node, Phase::Seen, None, None);
                }
            }
            Duty::Ending => {}
        }
    }

    fn forget(&mut self, node: &NodeId) {
        if let Some(slot) = self.nodes.get_mut(node) {
            slot.fault = None;
        }
        self.remember();
    }

    /// A node without a process: tells the end of the last one where nobody did, and starts what is to run.
    fn bury(&mut self, node: &NodeId, remembered: &NodeRecord, past: &NodePast, any_lives: bool) {
        let killed = |fault: &Fault| is_kill(fault) && past.open == Some(fault.pid);
        let by_order = !remembered.wanted || remembered.fault.as_ref().is_some_and(killed);
        if past.open.is_some() {
            self.tell_unseen_end(node, past, by_order);
        }
        self.settle_fault(node, remembered, past);
        let wanted = self.nodes.get(node).is_some_and(|slot| slot.wanted);
        if !wanted || by_order {
            if let Some(slot) = self.nodes.get_mut(node) {
                slot.wanted = false;
            }
            return;
        }
        match remembered.phase {
            record::Phase::Failed | record::Phase::Down => {}
            // Its process ended unseen: the policy decides.
            record::Phase::Serving | record::Phase::Paused | record::Phase::Stopping if any_lives => {
                // Where its end was told its status is known.
                let told = past.last_exit.as_ref().filter(|_| past.open.is_none());
                let ended =
                    told.map_or(Ended::default(), |exit| Ended { code: exit.code, signal: exit.signal });
                self.step(node, Event::Adopted { paused: false });
                self.step(node, Event::Exited { ended, chance: rand::random() });
            }
            // It was about to be started.
            record::Phase::Starting | record::Phase::Waiting if any_lives => {
                self.step(node, Event::Start);
            }
            record::Phase::Serving
            | record::Phase::Paused
            | record::Phase::Stopping
            | record::Phase::Starting
            | record::Phase::Waiting => {}
        }
    }

    /// An end that nobody saw, of the process that the history knows.
    fn tell_unseen_end(&mut self, node: &NodeId, past: &NodePast, by_order: bool) {
        let Some(pid) = past.open else { return };
        let cause = cause::attribute(Ended::default(), by_order, false);
        self.tell(events::Event::Exited {
            node: node.to_string(),
            pid,
            code: None,
            signal: None,
            cause,
            trouble: None,
            words: None,
            restart_in_ms: None,
        });
        if let Some(slot) = self.nodes.get_mut(node) {
            slot.last_exit = Some(LastExit {
                code: None,
                signal: None,
                cause,
                at: stamp(clock::wall()),
                trouble: None,
                words: None,
            });
        }
    }
}

fn is_kill(fault: &Fault) -> bool {
    fault.kind == Kind::Kill && !fault.phase.is_over()
}

/// The later of two accounts of the last end: one of them may have been written just before the other's writer died.
fn newer(one: Option<LastExit>, other: Option<LastExit>) -> Option<LastExit> {
    match (one, other) {
        (Some(one), Some(other)) => Some(if other.at > one.at { other } else { one }),
        (one, other) => one.or(other),
    }
}
