//! What happens to the nodes' processes: commands, starts, ends, and time.

use std::path::PathBuf;

use crate::clock;
use crate::config::show;
use crate::control::cause::{self, Ended};
use crate::control::fault::{Kind, Phase};
use crate::control::life::{Action, Answer, Event, SIGCONT, SIGKILL, SIGNAL_PATIENCE, State};
use crate::control::plan;
use crate::register::secret;
use crate::view::NodeId;

use super::super::slot::{MemoryKills, Process, Slot};
use super::super::spawn::{self, Job, SpawnError};
use super::super::wire::{Outcome, OutcomeKind, Reply};
use super::super::{crash, events};
use super::{Message, Supervisor};

impl Supervisor {
    /// Notes what is to run, before anything is done about it.
    pub(super) fn want(&mut self, nodes: &[String], wanted: bool) {
        for (_, slot) in
            self.nodes.iter_mut().filter(|(node, _)| nodes.iter().any(|name| name == node.as_str()))
        {
            slot.wanted = wanted;
        }
        self.remember();
    }

    /// Gives an event to each of these nodes.
    pub(super) fn each(&mut self, names: &[String], mut event: impl FnMut(&mut Slot) -> Event) -> Reply {
        let mut outcomes = Vec::with_capacity(names.len());
        for name in names {
            let result = match self.known(name) {
                None => unknown(),
                Some(node) => {
                    let event = self.nodes.get_mut(&node).map(&mut event);
                    event.map_or(OutcomeKind::Already, |event| self.step(&node, event))
                }
            };
            outcomes.push(self.outcome(name, result));
        }
        self.remember();
        Reply::Outcomes { outcomes }
    }

    pub(super) fn known(&self, name: &str) -> Option<NodeId> {
        self.nodes.keys().find(|node| node.as_str() == name).cloned()
    }

    pub(super) fn outcome(&self, name: &str, result: OutcomeKind) -> Outcome {
        let slot = self.nodes.iter().find(|(node, _)| node.as_str() == name).map(|(_, slot)| slot);
        let pid = slot.and_then(|slot| slot.process.as_ref()).map(|process| process.handle.id.pid);
        Outcome { node: name.to_owned(), result, pid }
    }

    /// Gives an event to a node's life and does what it answers.
    pub(super) fn step(&mut self, node: &NodeId, event: Event) -> OutcomeKind {
        let was_paused = self.is_paused(node);
        let result = self.step_only(node, event);
        if was_paused && !self.is_paused(node) {
            if let Some(slot) = self.nodes.get_mut(node) {
                slot.resume_at = None;
            }
            self.close(node, Kind::Pause, Phase::Healed, "another command ended it");
        }
        result
    }

    /// The same, where what it means for an open fault is the caller's to tell.
    pub(super) fn step_only(&mut self, node: &NodeId, event: Event) -> OutcomeKind {
        match self.decide(node, event) {
            Answer::Ignored => OutcomeKind::Already,
            Answer::Denied(denial) => OutcomeKind::Denied { reason: denial.to_string() },
            Answer::Accepted(actions) => {
                self.carry_out(node, actions);
                OutcomeKind::Accepted
            }
        }
    }

    fn is_paused(&self, node: &NodeId) -> bool {
        self.nodes.get(node).is_some_and(|slot| matches!(slot.life.state, State::Paused { .. }))
    }

    /// Gives an event to a node's life; nothing is done yet.
    fn decide(&mut self, node: &NodeId, event: Event) -> Answer {
        let (policy, now) = (self.config.supervisor.restart, self.moment());
        let Some(slot) = self.nodes.get_mut(node) else { return Answer::Ignored };
        let answer = slot.life.step(policy, now, event);
        if let Some(process) = &mut slot.process
            && matches!(slot.life.state, State::Stopping { .. } | State::Signalled { .. })
        {
            process.asked_to_end = true;
        }
        answer
    }

    fn carry_out(&mut self, node: &NodeId, actions: Vec<Action>) {
        for action in actions {
            self.act(node, action);
        }
    }

    fn act(&mut self, node: &NodeId, action: Action) {
        match action {
            Action::Spawn => match self.spawn(node) {
                Ok(()) => {
                    self.step(node, Event::Spawned);
                }
                Err(error) => self.not_started(node, &error),
            },
            // SIGTERM rather than a call: it needs no connection, and the node leaves the in-sync set all the same.
            // One that somebody froze would not hear it.
            Action::Terminate => {
                self.signal(node, nix::libc::SIGTERM);
                self.signal(node, SIGCONT);
            }
            Action::Signal(signal) => self.signal(node, signal),
            Action::Outlived => {
                let now = show(SIGNAL_PATIENCE);
                if let Some(slot) = self.nodes.get_mut(node) {
                    slot.wanted = true;
                    if let Some(process) = &mut slot.process {
                        process.asked_to_end = false;
                    }
                }
                self.close(node, Kind::Kill, Phase::Abandoned, &format!("it did not end within {now}"));
                self.remember();
            }
            Action::GaveUp => {
                let exit = self.nodes.get(node).and_then(|slot| slot.last_exit.clone());
                if let Some(exit) = exit {
                    let ended = Ended { code: exit.code, signal: exit.signal };
                    let words = exit.words.map_or(String::new(), |words| format!(": {words}"));
                    let reason = format!("{}: last {ended}{words}", events::RESTARTS_DO_NOT_HELP);
                    self.tell(events::Event::GaveUp { node: node.to_string(), reason });
                }
            }
        }
    }

    pub(super) fn signal(&mut self, node: &NodeId, signal: i32) {
        let Some(process) = self.nodes.get(node).and_then(|slot| slot.process.as_ref()) else { return };
        if let Err(error) = process.handle.signal(signal) {
            tracing::error!(%node, pid = process.handle.id.pid, signal, %error, "cannot signal");
        }
        crash::step("signalled");
    }

    /// What is missing for the moment is tried again like any other failure, and told; what another try cannot change
    /// needs the operator.
    fn not_started(&mut self, node: &NodeId, error: &SpawnError) {
        tracing::error!(%node, %error, "cannot start");
        let lasting = error.is_lasting(&self.server);
        self.step(node, Event::SpawnFailed { lasting, chance: rand::random() });
        let now = self.moment();
        let wait = self.nodes.get(node).and_then(|slot| slot.record(now).restart_in_ms);
        let (node, reason) = (node.to_string(), error.to_string());
        self.tell(match wait {
            Some(restart_in_ms) => events::Event::NotStarted { node, reason, restart_in_ms },
            None => events::Event::GaveUp { node, reason },
        });
    }

    fn spawn(&mut self, node: &NodeId) -> Result<(), SpawnError> {
        let listed = &self.config.nodes;
        let wanted: Vec<NodeId> = self
            .nodes
            .iter()
            .filter(|(node, slot)| slot.wanted && listed.contains(node))
            .map(|(node, _)| node.clone())
            .collect();
        let register = self.layout.register();
        let system = |what: PathBuf| move |cause| SpawnError::System { what, cause };
        let is_new = !register.exists();
        std::fs::create_dir_all(register.join("nodes")).map_err(system(register.clone()))?;
        if is_new {
            // No older program can be using it: its nodes know each other by the secret from the start.
            secret::Place::of(&register).ensure().map_err(system(register.clone()))?;
        }
        std::fs::create_dir_all(self.layout.data(node)).map_err(system(self.layout.data(node)))?;
        let has_view = self.layout.has_view().map_err(system(register.clone()))?;
        // Where the register is being deleted under us, the lowest node would create another cluster, which is empty.
        if !has_view && self.saw_view {
            return Err(SpawnError::NoView(register));
        }
        let join = plan::join(node, &wanted, &self.config.nodes, has_view);
        let nonce = format!("{:032x}", rand::random::<u128>());
        if let Some(slot) = self.nodes.get_mut(node) {
            slot.nonce.clone_from(&nonce);
            slot.settings = spawn::settings(&self.config);
        }
        // By the nonce a successor finds the process, should we die before we know its number.
        self.remember();
        let job = Job {
            program: self.server.clone(),
            arguments: spawn::server_arguments(&self.config, &self.layout, node, join.as_deref(), &nonce),
            output: self.layout.stderr(node),
            dies_with_us: self.foreground,
        };
        let started = self.spawner.spawn(job)?;
        crash::step("spawned");
        let pid = started.handle.id.pid;
        let process = Process {
            handle: started.handle,
            number: self.next_number,
            nonce,
            since: clock::now(),
            adopted: false,
            ready_told: false,
            words_from: started.output_from,
            asked_to_end: false,
            memory_kills: MemoryKills::of(clock::now(), pid),
            usage: None,
            cpu_percent: None,
        };
        let (inbox, number, name) = (self.inbox.clone(), self.next_number, node.clone());
        self.next_number += 1;
        let watched = spawn::watch_child(started.child, move |ended| {
            // The loop is gone only when the supervisor ends.
            let _ = inbox.blocking_send(Message::Ended { node: name, number, ended });
        });
        if let Err(error) = watched {
            // A process that nobody watches must not live.
            let _ = process.handle.signal(SIGKILL);
            return Err(system(self.server.clone())(error));
        }
        if let Some(slot) = self.nodes.get_mut(node) {
            slot.process = Some(process);
            slot.spawns += 1;
            slot.nonce.clear();
            (slot.asking, slot.ask_at) = (false, None);
        }
        self.remember();
        self.tell(events::Event::Started { node: node.to_string(), pid });
        Ok(())
    }

    pub(super) fn ended(&mut self, node: &NodeId, number: u64, ended: Ended) {
        let words_file = self.layout.stderr(node);
        let Some(slot) = self.nodes.get_mut(node) else { return };
        let Some(process) = slot.process.take_if(|process| process.number == number) else { return };
        let pid = process.handle.id.pid;
        let exit = process.explain(ended, &words_file);
        slot.resume_at = None;
        slot.last_exit = Some(exit.clone());
        let outside = cause::is_outside(exit.cause, exit.trouble);
        let answer = self.decide(node, Event::Exited { ended, outside, chance: rand::random() });
        let now = self.moment();
        let restart_in_ms = self.nodes.get(node).and_then(|slot| slot.record(now).restart_in_ms);
        // The end of one process is told before the start of the next.
        self.tell(events::Event::Exited {
            node: node.to_string(),
            pid,
            code: ended.code,
            signal: ended.signal,
            cause: exit.cause,
            trouble: exit.trouble,
            words: exit.words,
            restart_in_ms,
        });
        self.ended_by_fault(node, pid);
        self.remember();
        if let Answer::Accepted(actions) = answer {
            self.carry_out(node, actions);
            self.remember();
        }
    }

    /// Lets time pass in every life.
    pub(super) fn tick(&mut self) {
        let now = self.moment();
        let due: Vec<NodeId> = self
            .nodes
            .iter()
            .filter(|(_, slot)| slot.due().is_some_and(|due| due <= now))
            .map(|(node, _)| node.clone())
            .collect();
        for node in &due {
            let thaw = self
                .nodes
                .get_mut(node)
                .is_some_and(|slot| slot.resume_at.take_if(|at| *at <= now).is_some());
            if thaw {
                self.thaw(node, "its time was over");
            }
            self.step(node, Event::Tick);
        }
        if !due.is_empty() {
            self.remember();
        }
    }
}

/// What is said of a node that nobody knows.
pub(super) fn unknown() -> OutcomeKind {
    OutcomeKind::Denied {
        reason:
            "it is new in cluster.toml, which the supervisor has not read since: `replcluster up` starts it"
                .to_owned(),
    }
}
