//! Pauses and kills, phase by phase ([`fault`](crate::control::fault)): each phase is remembered and told before the
//! next begins. A pause is answered when every thread of the process was seen frozen, and stays only if whoever ordered
//! it then says that they know.

use std::time::Duration;

use tokio::sync::oneshot;

use crate::clock;
use crate::config::show;
use crate::control::fault::{Kind, Phase};
use crate::control::life::{Answer, Event, SIGCONT, State};
use crate::register::operator::{self, Found};
use crate::view::NodeId;

use super::super::record::Fault;
use super::super::slot::Slot;
use super::super::wire::{Outcome, OutcomeKind, Reply};
use super::super::{crash, events, os};
use super::lives::unknown;
use super::{Message, Supervisor};

/// How long a process may take to freeze. Only one that waits in the kernel for a device takes long.
const FREEZE_PATIENCE: Duration = Duration::from_secs(1);
/// How often it is looked at meanwhile.
const FREEZE_LOOK: Duration = Duration::from_millis(1);

/// An order to freeze that was not answered yet.
pub(super) struct Pausing {
    fault: String,
    /// How long it is to last once it is seen.
    span: Option<Duration>,
    /// Those whose threads have not all been seen frozen.
    awaited: Vec<NodeId>,
    outcomes: Vec<Outcome>,
    reply: oneshot::Sender<Reply>,
}

impl Supervisor {
    /// Refuses what would leave no in-sync node running where nobody was asked about that. Whoever orders it has looked,
    /// but others may have been faster: only here do all orders come one after another.
    pub(super) fn unasked(&self, names: &[String], even_last: bool) -> Option<Reply> {
        if even_last {
            return None;
        }
        // Where it cannot be read nothing can change it either: what whoever orders has seen must do.
        let Found::Holds(view) = operator::look(&self.layout.register()).found else { return None };
        let (hit, spared): (Vec<&NodeId>, Vec<&NodeId>) = view
            .in_sync
            .keys()
            .filter(|node| self.nodes.get(*node).is_some_and(is_awake))
            .partition(|node| names.iter().any(|name| name == node.as_str()));
        if hit.is_empty() || !spared.is_empty() {
            return None;
        }
        let hit: Vec<&str> = hit.into_iter().map(NodeId::as_str).collect();
        let reason = format!(
            "nothing was done: another command was faster, and without {} no in-sync node would be left running\n\
             see how they stand with `replcluster status`; to do it all the same add --yes",
            hit.join(", ")
        );
        Some(Reply::Refused { reason, overtaken: true })
    }

    pub(super) fn pause(
        &mut self,
        names: &[String],
        for_ms: Option<u64>,
        fault: &str,
        reply: oneshot::Sender<Reply>,
    ) {
        let mut awaited = Vec::new();
        let mut outcomes = Vec::with_capacity(names.len());
        for name in names {
            let result = match self.known(name) {
                None => unknown(),
                Some(node) => {
                    let result = self.pause_one(&node, for_ms, fault);
                    if result == OutcomeKind::Accepted {
                        awaited.push(node);
                    }
                    result
                }
            };
            outcomes.push(self.outcome(name, result));
        }
        let span = for_ms.map(Duration::from_millis);
        self.pausing.push(Pausing { fault: fault.to_owned(), span, awaited, outcomes, reply });
        self.answer_pauses();
    }

    fn pause_one(&mut self, node: &NodeId, for_ms: Option<u64>, fault: &str) -> OutcomeKind {
        let policy = self.config.supervisor.restart;
        let now = self.moment();
        let until_ms = for_ms.map(|span| os::milliseconds_since_boot().saturating_add(span));
        let resume_at = for_ms.map(|span| now + Duration::from_millis(span));
        let Some(slot) = self.nodes.get_mut(node) else { return OutcomeKind::Already };
        // A life is a value: what it would answer can be known before anything is written or done.
        match slot.life.clone().step(policy, now, Event::Pause) {
            Answer::Denied(denial) => return OutcomeKind::Denied { reason: denial.to_string() },
            Answer::Ignored => {
                if slot.fault.as_ref().is_some_and(|open| open.id != fault && open.phase < Phase::Held) {
                    let reason = "another command is just freezing it".to_owned();
                    return OutcomeKind::Denied { reason };
                }
                // It is frozen already; a second order changes when that ends.
                slot.resume_at = resume_at;
                if let Some(open) = &mut slot.fault {
                    open.until_ms = until_ms;
                }
                self.remember();
                return OutcomeKind::Already;
            }
            Answer::Accepted(_) => {}
        }
        self.close(node, Kind::Kill, Phase::Healed, "it runs again");
        let Some(slot) = self.nodes.get_mut(node) else { return OutcomeKind::Already };
        let Some(process) = &slot.process else { return unknown() };
        let (id, number) = (process.handle.id.clone(), process.number);
        slot.fault = Some(Fault {
            id: fault.to_owned(),
            kind: Kind::Pause,
            pid: id.pid,
            phase: Phase::Intent,
            until_ms,
        });
        slot.resume_at = None;
        self.phase(node, Phase::Intent, for_ms, None);
        self.step(node, Event::Pause);
        self.phase(node, Phase::Applied, None, None);
        let (inbox, node, fault) = (self.inbox.clone(), node.clone(), fault.to_owned());
        // Ends within its patience, and with the runtime at the latest.
        tokio::spawn(async move {
            let deadline = clock::now() + FREEZE_PATIENCE;
            while !os::is_frozen_whole(id.pid) && os::is_alive(&id) && clock::now() < deadline {
                tokio::time::sleep(FREEZE_LOOK).await;
            }
            let frozen = os::is_frozen_whole(id.pid);
            tracing::debug!(%node, number, frozen, "looked whether it is frozen");
            let _ = inbox.send(Message::Felt { node, fault, frozen }).await;
        });
        OutcomeKind::Accepted
    }

    /// The effect of an order to freeze was seen, or was not.
    pub(super) fn felt(&mut self, node: &NodeId, fault: &str, frozen: bool) {
        if self.has_fault(node, fault) {
            if frozen {
                self.begin_span(node, fault);
                self.phase(node, Phase::Seen, None, None);
            } else {
                self.thaw_as(node, Phase::Abandoned, "it did not freeze in time");
            }
        }
        for pausing in self.pausing.iter_mut().filter(|pausing| pausing.fault == fault) {
            pausing.awaited.retain(|awaited| awaited != node);
            if !frozen {
                for outcome in pausing.outcomes.iter_mut().filter(|one| one.node == node.as_str()) {
                    let reason = format!("it did not freeze within {}, or ended", show(FREEZE_PATIENCE));
                    outcome.result = OutcomeKind::Denied { reason };
                }
            }
        }
        self.answer_pauses();
    }

    /// The time of a pause begins when it is seen: before, the process may not have been frozen at all.
    fn begin_span(&mut self, node: &NodeId, fault: &str) {
        let now = self.moment();
        let span = self.pausing.iter().find(|pausing| pausing.fault == fault).and_then(|one| one.span);
        let (Some(span), Some(slot)) = (span, self.nodes.get_mut(node)) else { return };
        slot.resume_at = Some(now + span);
        if let Some(open) = &mut slot.fault {
            let milliseconds = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
            open.until_ms = Some(os::milliseconds_since_boot().saturating_add(milliseconds));
        }
    }

    fn answer_pauses(&mut self) {
        let (done, open) =
            std::mem::take(&mut self.pausing).into_iter().partition(|pausing| pausing.awaited.is_empty());
        self.pausing = open;
        let done: Vec<Pausing> = done;
        for Pausing { outcomes, reply, .. } in done {
            // Whoever asked may have gone away: their connection tells, and the pause is forsaken.
            let _ = reply.send(Reply::Outcomes { outcomes });
            crash::step("answered a pause");
        }
    }

    /// The operator knows of it and wants it.
    pub(super) fn hold(&mut self, fault: &str) -> Reply {
        for node in self.nodes_with(fault) {
            self.phase(&node, Phase::Held, None, None);
        }
        Reply::Done
    }

    /// Nobody knows of it: undo it.
    pub(super) fn forsake(&mut self, fault: &str) {
        for node in self.nodes_with(fault) {
            self.thaw_as(&node, Phase::Abandoned, "whoever ordered it went away");
        }
    }

    pub(super) fn resume(&mut self, names: &[String]) -> Reply {
        let outcomes = names
            .iter()
            .map(|name| {
                let result = self.known(name).map_or_else(unknown, |node| self.resume_one(&node));
                self.outcome(name, result)
            })
            .collect();
        Reply::Outcomes { outcomes }
    }

    /// A pause of ours is healed. A process that somebody else froze is thawed as well: whoever resumes a node wants it
    /// to run, and its life knows of no pause that would end.
    fn resume_one(&mut self, node: &NodeId) -> OutcomeKind {
        let result = self.thaw(node, "resumed");
        let process = self.nodes.get(node).and_then(|slot| slot.process.as_ref());
        let frozen =
            process.is_some_and(|process| os::stat(process.handle.id.pid).is_ok_and(|stat| stat.is_frozen()));
        if result == OutcomeKind::Accepted || !frozen {
            return result;
        }
        self.signal(node, SIGCONT);
        OutcomeKind::Accepted
    }

    /// Thaws a node's process; its pause is healed.
    pub(super) fn thaw(&mut self, node: &NodeId, why: &str) -> OutcomeKind {
        self.thaw_as(node, Phase::Healed, why)
    }

    pub(super) fn thaw_as(&mut self, node: &NodeId, phase: Phase, why: &str) -> OutcomeKind {
        let result = self.step_only(node, Event::Resume);
        if result == OutcomeKind::Accepted {
            if let Some(slot) = self.nodes.get_mut(node) {
                slot.resume_at = None;
            }
            self.close(node, Kind::Pause, phase, why);
            self.remember();
        }
        result
    }

    pub(super) fn kill(&mut self, names: &[String], signal: i32, fault: &str, only: &[u32]) -> Reply {
        let mut outcomes = Vec::with_capacity(names.len());
        for name in names {
            let result = match self.known(name) {
                None => unknown(),
                Some(node) => self.kill_one(&node, signal, fault, only),
            };
            outcomes.push(self.outcome(name, result));
        }
        self.remember();
        Reply::Outcomes { outcomes }
    }

    fn kill_one(&mut self, node: &NodeId, signal: i32, fault: &str, only: &[u32]) -> OutcomeKind {
        let Some(slot) = self.nodes.get_mut(node) else { return OutcomeKind::Already };
        if let Some(process) = &slot.process {
            let pid = process.handle.id.pid;
            if !only.is_empty() && !only.contains(&pid) {
                let reason = format!("another process runs by now (pid {pid})");
                return OutcomeKind::Denied { reason };
            }
            // The new intent is remembered before the former fault is told to be over: at no moment is a frozen process
            // without a fault that says what is owed to it.
            let intent =
                Fault { id: fault.to_owned(), kind: Kind::Kill, pid, phase: Phase::Intent, until_ms: None };
            let former = slot.fault.replace(intent);
            slot.resume_at = None;
            self.remember();
            if let Some(former) = former {
                self.tell_fault(node, &former, Phase::Healed, None, Some("it is killed".to_owned()));
            }
            self.tell_phase(node, Phase::Intent, None, None);
        }
        let result = self.step(node, Event::Kill { signal });
        if result == OutcomeKind::Accepted {
            if let Some(slot) = self.nodes.get_mut(node) {
                slot.wanted = false;
            }
            self.phase(node, Phase::Applied, None, None);
        } else if self.has_fault(node, fault) {
            self.close(node, Kind::Kill, Phase::Abandoned, "it cannot be killed now");
        }
        result
    }

    /// A process ended: a kill has had its effect, a pause is over.
    pub(super) fn ended_by_fault(&mut self, node: &NodeId, pid: u32) {
        let Some(open) = self.nodes.get(node).and_then(|slot| slot.fault.as_ref()) else { return };
        if open.pid != pid {
            return;
        }
        match open.kind {
            Kind::Kill => self.phase(node, Phase::Seen, None, None),
            Kind::Pause => self.close(node, Kind::Pause, Phase::Healed, "its process ended"),
        }
    }

    /// A node serves: what its last process was killed by is healed.
    pub(super) fn healed_by_serving(&mut self, node: &NodeId) {
        let Some(slot) = self.nodes.get(node) else { return };
        let (Some(open), Some(process)) = (&slot.fault, &slot.process) else { return };
        if open.pid != process.handle.id.pid {
            self.close(node, Kind::Kill, Phase::Healed, "the node serves again");
        }
    }

    /// Ends an open fault of this kind, if there is one. Told first: a successor then knows that it is over.
    pub(super) fn close(&mut self, node: &NodeId, kind: Kind, phase: Phase, why: &str) {
        if self.nodes.get(node).and_then(|slot| slot.fault.as_ref()).is_none_or(|open| open.kind != kind) {
            return;
        }
        self.tell_phase(node, phase, None, Some(why.to_owned()));
        if let Some(slot) = self.nodes.get_mut(node) {
            slot.fault = None;
        }
        self.remember();
    }

    /// A fault has come further: remembered, then told.
    pub(super) fn phase(&mut self, node: &NodeId, phase: Phase, for_ms: Option<u64>, why: Option<String>) {
        let Some(open) = self.nodes.get_mut(node).and_then(|slot| slot.fault.as_mut()) else { return };
        open.phase = phase;
        self.remember();
        self.tell_phase(node, phase, for_ms, why);
    }

    pub(super) fn tell_phase(
        &mut self,
        node: &NodeId,
        phase: Phase,
        for_ms: Option<u64>,
        why: Option<String>,
    ) {
        let Some(open) = self.nodes.get(node).and_then(|slot| slot.fault.clone()) else { return };
        self.tell_fault(node, &open, phase, for_ms, why);
    }

    fn tell_fault(
        &mut self,
        node: &NodeId,
        fault: &Fault,
        phase: Phase,
        for_ms: Option<u64>,
        why: Option<String>,
    ) {
        self.tell(events::Event::Fault {
            fault: fault.id.clone(),
            kind: fault.kind,
            node: node.to_string(),
            pid: fault.pid,
            phase,
            for_ms,
            why,
        });
    }

    fn has_fault(&self, node: &NodeId, fault: &str) -> bool {
        self.nodes.get(node).and_then(|slot| slot.fault.as_ref()).is_some_and(|open| open.id == fault)
    }

    fn nodes_with(&self, fault: &str) -> Vec<NodeId> {
        self.nodes.keys().filter(|node| self.has_fault(node, fault)).cloned().collect()
    }

    /// Sends SIGCONT to a process whose life does not know that it may be frozen.
    pub(super) fn thaw_anyway(&mut self, node: &NodeId) {
        match self.nodes.get(node).map(|slot| slot.life.state) {
            Some(State::Paused { .. }) => drop(self.step_only(node, Event::Resume)),
            Some(_) | None => self.signal(node, SIGCONT),
        }
    }
}

/// It has a process that neither was told to end nor is frozen, by whomever.
fn is_awake(slot: &Slot) -> bool {
    let runs = match slot.life.state {
        State::Starting | State::Serving { .. } => true,
        State::Down
        | State::Spawning
        | State::Paused { .. }
        | State::Stopping { .. }
        | State::Waiting { .. }
        | State::Failed => false,
    };
    let stat = slot.process.as_ref().and_then(|process| os::stat(process.handle.id.pid).ok());
    runs && stat.is_some_and(|stat| !stat.is_frozen() && !stat.has_ended())
}
