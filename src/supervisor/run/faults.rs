//! Pauses and kills, phase by phase ([`fault`](crate::control::fault)): each phase is remembered and told before the
//! next begins, for all nodes of an order together. What cannot be written down is not done. A pause is answered when every thread of the process was seen frozen, and stays only if whoever ordered
//! it then says that they know.

use std::io;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::clock;
use crate::config::show;
use crate::control::fault::{Kind, Phase};
use crate::control::life::{Answer, Event, SIGCONT, SIGSTOP, State};
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
                Some(node) if awaited.contains(&node) => OutcomeKind::Already,
                Some(node) => {
                    let result = self.may_pause(&node, for_ms, fault);
                    if result == OutcomeKind::Accepted {
                        awaited.push(node);
                    }
                    result
                }
            };
            outcomes.push(self.outcome(name, result));
        }
        match self.begin(&awaited, Kind::Pause, fault, for_ms) {
            Ok(()) => self.freeze(&awaited, fault),
            Err(error) => {
                let reason = self.cannot_note(&error);
                for outcome in outcomes.iter_mut().filter(|one| one.result == OutcomeKind::Accepted) {
                    outcome.result = OutcomeKind::Denied { reason: reason.clone() };
                }
                awaited.clear();
            }
        }
        let span = for_ms.map(Duration::from_millis);
        self.pausing.push(Pausing { fault: fault.to_owned(), span, awaited, outcomes, reply });
        self.answer_pauses();
    }

    /// Whether it can be frozen now. One that is frozen stays so, and a second order changes when that ends.
    fn may_pause(&mut self, node: &NodeId, for_ms: Option<u64>, fault: &str) -> OutcomeKind {
        let policy = self.config.supervisor.restart;
        let now = self.moment();
        let Some(slot) = self.nodes.get_mut(node) else { return OutcomeKind::Already };
        // A life is a value: what it would answer can be known before anything is written or done.
        match slot.life.clone().step(policy, now, Event::Pause) {
            Answer::Denied(denial) => return OutcomeKind::Denied { reason: denial.to_string() },
            Answer::Accepted(_) => return OutcomeKind::Accepted,
            Answer::Ignored => {}
        }
        match &mut slot.fault {
            Some(open) if open.kind == Kind::Pause => {
                if open.id != fault && open.phase < Phase::Held {
                    let reason = "another command is just freezing it".to_owned();
                    return OutcomeKind::Denied { reason };
                }
                let before = (open.until_ms, slot.resume_at);
                open.until_ms = for_ms.map(|span| os::milliseconds_since_boot().saturating_add(span));
                slot.resume_at = for_ms.map(|span| now + Duration::from_millis(span));
                let Err(error) = self.try_remember() else { return OutcomeKind::Already };
                if let Some(slot) = self.nodes.get_mut(node)
                    && let Some(open) = &mut slot.fault
                {
                    (open.until_ms, slot.resume_at) = before;
                }
                OutcomeKind::Denied { reason: self.cannot_note(&error) }
            }
            // Frozen by somebody else: from now on by us.
            Some(_) | None => OutcomeKind::Accepted,
        }
    }

    /// Writes down for all these nodes what is about to be done to them, before it is done to the first. Either all of it
    /// is on disk then, or there is an error and everything is as before.
    fn begin(&mut self, nodes: &[NodeId], kind: Kind, fault: &str, for_ms: Option<u64>) -> io::Result<()> {
        let until_ms = for_ms.map(|span| os::milliseconds_since_boot().saturating_add(span));
        let mut before = Vec::with_capacity(nodes.len());
        for (node, slot) in self.nodes.iter_mut().filter(|(node, _)| nodes.contains(node)) {
            let Some(process) = &slot.process else { continue };
            let pid = process.handle.id.pid;
            let intent = Fault { id: fault.to_owned(), kind, pid, phase: Phase::Intent, until_ms };
            before.push((node.clone(), slot.fault.replace(intent), slot.resume_at.take()));
        }
        if before.is_empty() {
            return Ok(());
        }
        // The new intent is remembered before the former fault is told to be over: at no moment is a frozen process
        // without a fault that says what is owed to it.
        let written = self.try_remember().and_then(|()| {
            let why = match kind {
                Kind::Pause => "it runs again",
                Kind::Kill => "it is killed",
            };
            let former = before.iter().filter_map(|(node, former, _)| {
                Some(told(node, former.as_ref()?, Phase::Healed, None, Some(why.to_owned())))
            });
            let mut events: Vec<events::Event> = former.collect();
            events.extend(
                self.open_faults(nodes).map(|(node, open)| told(node, open, Phase::Intent, for_ms, None)),
            );
            self.try_tell(events)
        });
        if written.is_err() {
            for (node, former, resume_at) in before {
                if let Some(slot) = self.nodes.get_mut(&node) {
                    (slot.fault, slot.resume_at) = (former, resume_at);
                }
            }
            self.remember();
        }
        written
    }

    /// The signals were sent. Where that cannot be written down it counts as never told, and is undone.
    fn applied(&mut self, nodes: &[NodeId]) {
        let _ = self.phases(nodes, Phase::Applied);
    }

    fn freeze(&mut self, nodes: &[NodeId], fault: &str) {
        for node in nodes {
            if self.step(node, Event::Pause) != OutcomeKind::Accepted {
                // It is frozen already, and by us now.
                self.signal(node, SIGSTOP);
            }
        }
        self.applied(nodes);
        for node in nodes {
            let process = self.nodes.get(node).and_then(|slot| slot.process.as_ref());
            let Some((id, number)) = process.map(|process| (process.handle.id.clone(), process.number))
            else {
                continue;
            };
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
        }
    }

    /// The effect of an order to freeze was seen, or was not.
    pub(super) fn felt(&mut self, node: &NodeId, fault: &str, frozen: bool) {
        if self.has_fault(node, fault) {
            if frozen {
                self.begin_span(node, fault);
                self.phase(node, Phase::Seen);
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
        let nodes = self.nodes_with(fault);
        match self.phases(&nodes, Phase::Held) {
            Ok(()) => Reply::Done,
            // Who comes after us would take it for one that nobody was told of.
            Err(error) => {
                let reason = format!("thawed again, for {}", self.cannot_note(&error));
                for node in &nodes {
                    self.thaw_as(node, Phase::Abandoned, "it could not be written down that it was wanted");
                }
                Reply::Refused { reason, overtaken: false }
            }
        }
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

    /// What is to run is not to stay frozen, whoever froze it.
    pub(super) fn thaw_strangers(&mut self, names: &[String]) {
        for node in names.iter().filter_map(|name| self.known(name)).collect::<Vec<_>>() {
            self.resume_one(&node);
        }
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
        let mut victims = Vec::new();
        let mut results = Vec::with_capacity(names.len());
        for name in names {
            results.push(match self.known(name) {
                None => unknown(),
                Some(node) if victims.contains(&node) => OutcomeKind::Already,
                Some(node) => {
                    let result = self.may_kill(&node, signal, only);
                    if result == OutcomeKind::Accepted {
                        victims.push(node);
                    }
                    result
                }
            });
        }
        match self.begin(&victims, Kind::Kill, fault, None) {
            Ok(()) => {
                self.strike(&victims, signal);
                self.applied(&victims);
            }
            // An order to end whatever runs is carried out all the same.
            Err(_) if only.is_empty() => {
                self.strike(&victims, signal);
                self.remember();
            }
            Err(error) => {
                let reason = self.cannot_note(&error);
                for result in results.iter_mut().filter(|one| **one == OutcomeKind::Accepted) {
                    *result = OutcomeKind::Denied { reason: reason.clone() };
                }
            }
        }
        let outcomes = names.iter().zip(results).map(|(name, result)| self.outcome(name, result)).collect();
        Reply::Outcomes { outcomes }
    }

    fn strike(&mut self, nodes: &[NodeId], signal: i32) {
        for node in nodes {
            self.step(node, Event::Kill { signal });
            if let Some(slot) = self.nodes.get_mut(node) {
                slot.wanted = false;
            }
        }
    }

    fn may_kill(&self, node: &NodeId, signal: i32, only: &[u32]) -> OutcomeKind {
        let Some(slot) = self.nodes.get(node) else { return OutcomeKind::Already };
        let pid = slot.process.as_ref().map(|process| process.handle.id.pid);
        if let Some(pid) = pid.filter(|pid| !only.is_empty() && !only.contains(pid)) {
            let reason = format!("another process runs by now (pid {pid})");
            return OutcomeKind::Denied { reason };
        }
        match slot.life.clone().step(self.config.supervisor.restart, self.moment(), Event::Kill { signal }) {
            Answer::Denied(denial) => OutcomeKind::Denied { reason: denial.to_string() },
            Answer::Ignored => OutcomeKind::Already,
            Answer::Accepted(_) => OutcomeKind::Accepted,
        }
    }

    /// A process ended: a kill has had its effect, a pause is over.
    pub(super) fn ended_by_fault(&mut self, node: &NodeId, pid: u32) {
        let Some(open) = self.nodes.get(node).and_then(|slot| slot.fault.as_ref()) else { return };
        if open.pid != pid {
            return;
        }
        match open.kind {
            Kind::Kill => self.phase(node, Phase::Seen),
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
        self.tell_phase(node, phase, Some(why.to_owned()));
        if let Some(slot) = self.nodes.get_mut(node) {
            slot.fault = None;
        }
        self.remember();
    }

    /// A fault has come further: remembered, then told.
    pub(super) fn phase(&mut self, node: &NodeId, phase: Phase) {
        let _ = self.phases(std::slice::from_ref(node), phase);
    }

    /// The open faults of these nodes have come further: remembered, then told, each in one go.
    fn phases(&mut self, nodes: &[NodeId], phase: Phase) -> io::Result<()> {
        let open = self.nodes.iter_mut().filter(|(node, _)| nodes.contains(node));
        let open: Vec<&mut Fault> = open.filter_map(|(_, slot)| slot.fault.as_mut()).collect();
        if open.is_empty() {
            return Ok(());
        }
        for fault in open {
            fault.phase = phase;
        }
        self.try_remember()?;
        let events =
            self.open_faults(nodes).map(|(node, open)| told(node, open, phase, None, None)).collect();
        self.try_tell(events)
    }

    pub(super) fn tell_phase(&mut self, node: &NodeId, phase: Phase, why: Option<String>) {
        if let Some(open) = self.nodes.get(node).and_then(|slot| slot.fault.as_ref()) {
            self.tell(told(node, open, phase, None, why));
        }
    }

    fn open_faults(&self, nodes: &[NodeId]) -> impl Iterator<Item = (&NodeId, &Fault)> {
        let of_these = self.nodes.iter().filter(|(node, _)| nodes.contains(node));
        of_these.filter_map(|(node, slot)| Some((node, slot.fault.as_ref()?)))
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
        | State::Signalled { .. }
        | State::Stopping { .. }
        | State::Waiting { .. }
        | State::Failed => false,
    };
    let stat = slot.process.as_ref().and_then(|process| os::stat(process.handle.id.pid).ok());
    runs && stat.is_some_and(|stat| !stat.is_frozen() && !stat.has_ended())
}

/// The event that tells of a phase of a fault.
fn told(
    node: &NodeId,
    fault: &Fault,
    phase: Phase,
    for_ms: Option<u64>,
    why: Option<String>,
) -> events::Event {
    events::Event::Fault {
        fault: fault.id.clone(),
        kind: fault.kind,
        node: node.to_string(),
        pid: fault.pid,
        phase,
        for_ms,
        why,
    }
}
