//! What a new supervisor makes of what an earlier one left. It compares three accounts: what was remembered
//! (`record`), what was told (`past`), and what lives. Living processes are taken over, unseen ends are told, nothing is
//! told twice, and what was begun is ended: a start whose process nobody noted, a stop, a pause, a kill.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock;
use crate::config::Config;
use crate::control::cause::{self, Ended};
use crate::control::fault::{Duty, Kind, Phase};
use crate::control::life::{Event, Life, State};
use crate::control::restart::{self, Failures};
use crate::telemetry::stamp;
use crate::view::NodeId;

use super::super::adopt::Survivor;
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
    pub(super) fn take_over(
        &mut self,
        record: &Record,
        past: &Past,
        mut survivors: BTreeMap<NodeId, Survivor>,
    ) {
        self.epoch = past.epoch;
        let nodes = known_nodes(&self.config, record);
        let boot = record.supervisor.as_ref().map(|id| id.boot_id.as_str());
        let this_boot = boot.is_some_and(|boot| os::boot_id().is_ok_and(|now| now == boot));
        let any_lives = !survivors.is_empty();
        for node in &nodes {
            let remembered = record.nodes.get(node.as_str()).cloned().unwrap_or_default();
            let of_past = past.node(node.as_str());
            let gave_up = remembered.phase == record::Phase::Failed;
            let slot = Slot {
                wanted: remembered.wanted && (any_lives || this_boot && is_restarting(&remembered)),
                spawns: remembered.spawns,
                // An end is told before it is remembered, so the history is never behind.
                last_exit: of_past.last_exit.clone().or(remembered.last_exit.clone()),
                last_answer: remembered.last_answer.clone(),
                life: Life {
                    state: if gave_up { State::Failed } else { State::Down },
                    failures: Failures { all: remembered.failures, own: remembered.own_failures },
                },
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
                None if self.nodes.contains_key(&node) => self.bury(&node, &remembered, &of_past, this_boot),
                None => {}
            }
        }
        self.remember();
        for (node, of_node) in &record.nodes {
            let of_past = past.node(node);
            if of_node.phase == record::Phase::Failed && !of_past.gave_up && self.known(node).is_some() {
                let reason = events::RESTARTS_DO_NOT_HELP.to_owned();
                self.tell(events::Event::GaveUp { node: node.clone(), reason });
            }
        }
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
                memory_kills: MemoryKills::of(clock::now(), pid),
                usage: None,
                cpu_percent: None,
            });
            // Started, and the supervisor died before it could count that.
            slot.spawns += u64::from(remembered.process.as_ref().is_none_or(|id| id.pid != pid));
            // Of one that nobody remembers it is only known that it runs.
            slot.wanted = remembered.wanted || remembered.spawns == 0 && remembered.nonce.is_empty();
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
        self.settle_forgotten(node, remembered, past);
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
                    self.tell_phase(node, open.phase, None);
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
                    self.phase(node, Phase::Seen);
                }
            }
            Duty::Ending => {}
        }
    }

    /// Ends a fault that the history knows as open and that is not remembered: another one took its place and the
    /// supervisor died before it could say so, or it could not be written down.
    fn settle_forgotten(&mut self, node: &NodeId, remembered: &NodeRecord, past: &NodePast) {
        let Some(told) = past.open_fault() else { return };
        if remembered.fault.as_ref().is_some_and(|open| open.id == told.id) {
            return;
        }
        let process = self.nodes.get(node).and_then(|slot| slot.process.as_ref());
        if told.kind == Kind::Pause && process.is_some_and(|process| process.handle.id.pid == told.pid) {
            self.thaw_anyway(node);
        }
        self.tell(heal::forgotten_is_over(node.as_str(), told));
    }

    fn forget(&mut self, node: &NodeId) {
        if let Some(slot) = self.nodes.get_mut(node) {
            slot.fault = None;
        }
        self.remember();
    }

    /// A node without a process: tells the end of the last one where nobody did, and starts what is to run.
    fn bury(&mut self, node: &NodeId, remembered: &NodeRecord, past: &NodePast, this_boot: bool) {
        let was_to_end = remembered.phase == record::Phase::Stopping;
        // Wanted and to end: an order to run again came after whatever else was ordered.
        let killed = |fault: &Fault| is_kill(fault) && past.open == Some(fault.pid) && !was_to_end;
        let by_order = !remembered.wanted || remembered.fault.as_ref().is_some_and(killed);
        if past.open.is_some() {
            self.tell_unseen_end(node, past, by_order || was_to_end);
        }
        self.settle_fault(node, remembered, past);
        let wanted = self.nodes.get(node).is_some_and(|slot| slot.wanted);
        if !wanted || by_order {
            if let Some(slot) = self.nodes.get_mut(node) {
                slot.wanted = false;
            }
            return;
        }
        match (remembered.phase, &remembered.process) {
            (record::Phase::Failed | record::Phase::Down, _) => {}
            // It was told to end in order to be started again.
            (record::Phase::Stopping, _) => drop(self.step(node, Event::Start)),
            // Its process ended unseen: the policy decides.
            (record::Phase::Serving | record::Phase::Paused, _) | (record::Phase::Starting, Some(_)) => {
                // Where its end was told its status is known.
                let told = past.last_exit.as_ref().filter(|_| past.open.is_none());
                let ended =
                    told.map_or(Ended::default(), |exit| Ended { code: exit.code, signal: exit.signal });
                self.step(node, Event::Adopted { paused: false });
                let outside = told.is_none_or(|exit| cause::is_outside(exit.cause, exit.trouble));
                self.step(node, Event::Exited { ended, outside, chance: rand::random() });
            }
            // It was about to be started, at once or after a while. What it failed of counts on.
            (record::Phase::Starting | record::Phase::Waiting, _) => {
                let at_ms = remembered.restart_at_ms.filter(|_| this_boot).unwrap_or(0);
                let wait = Duration::from_millis(at_ms.saturating_sub(os::milliseconds_since_boot()));
                let until = self.moment() + wait.min(restart::LONGEST_WAIT);
                if let Some(slot) = self.nodes.get_mut(node) {
                    slot.life.state = State::Waiting { until };
                }
            }
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

/// True where a process of this node was to end, or had ended, and another one was to follow at once: what was ordered
/// as one thing is ended, even where no other node lives.
fn is_restarting(remembered: &NodeRecord) -> bool {
    match remembered.phase {
        record::Phase::Stopping => true,
        record::Phase::Starting => remembered.process.is_none() && remembered.spawns > 0,
        record::Phase::Down
        | record::Phase::Serving
        | record::Phase::Paused
        | record::Phase::Waiting
        | record::Phase::Failed => false,
    }
}

/// The configured nodes, and those that were taken out of the configuration while they ran.
pub(super) fn known_nodes(config: &Config, record: &Record) -> Vec<NodeId> {
    let mut nodes = config.nodes.clone();
    nodes.extend(record.nodes.keys().filter_map(|name| NodeId::parse(name).ok()));
    nodes.sort();
    nodes.dedup();
    nodes
}
