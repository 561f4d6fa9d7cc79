//! What a new supervisor makes of what an earlier one left: living processes are taken over, unseen ends are told.

use std::time::Duration;

use crate::clock;
use crate::control::cause::Ended;
use crate::control::life::{Event, Life, State};
use crate::telemetry::stamp;
use crate::view::NodeId;

use super::super::adopt::{self, Survivor};
use super::super::record::{self, LastExit, Record};
use super::super::slot::{Process, Slot};
use super::super::{events, os, spawn};
use super::{Message, Supervisor};

impl Supervisor {
    /// Takes over what an earlier supervisor left running. What it left wanted and is dead now is treated like any
    /// other exit, where at least one node lives; a cluster that is dead as a whole waits for `up`.
    pub(super) async fn take_over(&mut self, record: &Record) {
        let nodes = self.known_nodes(record);
        let survivors = adopt::survivors(&self.layout, record, &nodes, &self.asker).await;
        let any_lives = !survivors.is_empty();
        let mut survivors = survivors;
        for node in nodes {
            let remembered = record.nodes.get(node.as_str()).cloned().unwrap_or_default();
            let slot = Slot {
                wanted: remembered.wanted && any_lives,
                spawns: remembered.spawns,
                last_exit: remembered.last_exit.clone(),
                life: Life { state: State::Down, failures: 0 },
                ..Slot::default()
            };
            let configured = self.config.nodes.contains(&node);
            match survivors.remove(&node) {
                Some(survivor) => {
                    self.nodes.insert(node.clone(), slot);
                    self.adopt(&node, survivor, &remembered);
                }
                None if configured => {
                    self.nodes.insert(node.clone(), slot);
                    if let Some(process) = remembered.process.filter(|_| any_lives) {
                        self.missed_exit(&node, process.pid, remembered.wanted);
                    }
                }
                None => {}
            }
        }
        self.remember();
    }

    /// The configured nodes, and those that were taken out of the configuration while they ran.
    fn known_nodes(&self, record: &Record) -> Vec<NodeId> {
        let mut nodes = self.config.nodes.clone();
        nodes.extend(record.nodes.keys().filter_map(|name| NodeId::parse(name).ok()));
        nodes.sort();
        nodes.dedup();
        nodes
    }

    fn adopt(&mut self, node: &NodeId, survivor: Survivor, remembered: &record::NodeRecord) {
        let pid = survivor.handle.id.pid;
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
        if let Some(slot) = self.nodes.get_mut(node) {
            slot.process = Some(Process {
                handle: survivor.handle,
                number,
                nonce: survivor.nonce,
                since: clock::now(),
                adopted: true,
                asked_to_end: false,
                memory_kills_before: os::memory_kills(),
                usage: None,
                cpu_percent: None,
            });
            slot.spawns = slot.spawns.max(1);
        }
        self.step(node, Event::Adopted { paused: survivor.paused });
        self.tell(events::Event::Adopted { node: node.to_string(), pid });
        let was_remembered = remembered.process.is_some();
        if let Some(slot) = self.nodes.get_mut(node) {
            slot.wanted = remembered.wanted || !was_remembered;
            if !slot.wanted {
                // The earlier supervisor died while it was ending this one.
                let deadline = self.moment() + Duration::from_secs(5);
                self.step(node, Event::Stop { deadline });
            }
        }
    }

    /// An exit that nobody saw.
    fn missed_exit(&mut self, node: &NodeId, pid: u32, wanted: bool) {
        let ended = Ended::default();
        let cause = crate::control::cause::attribute(ended, !wanted, false);
        self.tell(events::Event::Exited {
            node: node.to_string(),
            pid,
            code: None,
            signal: None,
            cause,
            restart_in_ms: None,
        });
        if let Some(slot) = self.nodes.get_mut(node) {
            slot.last_exit = Some(LastExit { code: None, signal: None, cause, at: stamp(clock::wall()) });
        }
        if wanted {
            self.step(node, Event::Adopted { paused: false });
            self.step(node, Event::Exited(ended));
        }
    }
}
