//! What stands above and below the table: what the nodes add up to, where they disagree, why one was given up, and
//! what happened last. Values in, lines out.

use std::fmt::Write as _;

use crate::control::cause::Cause;
use crate::control::health::{Agreement, ClusterState, NodeState, Role};
use crate::supervisor::ask::account;
use crate::supervisor::events::{Entry, Event};
use crate::view::NodeId;

use super::super::context::list;
use super::super::events::sentence;
use super::super::lines::{Line, Tone, piece};
use super::super::render;
use super::super::survey::{NodeSurvey, Survey};
use super::super::wait::ended;

/// What the nodes add up to.
pub(in crate::cli) fn headline(cluster: &str, found: &Survey) -> Line {
    let sum = &found.sum;
    let (tone, state) = match sum.state {
        ClusterState::Healthy => (Tone::Good, "healthy"),
        ClusterState::Degraded => (Tone::Warning, "degraded"),
        ClusterState::Unavailable => (Tone::Bad, "unavailable"),
        ClusterState::Stopped => (Tone::Dim, "stopped"),
    };
    let mut line = vec![piece(Tone::Plain, format!("{cluster}  ")), piece(tone, state)];
    let count = found.nodes.len();
    if sum.state != ClusterState::Stopped {
        let leader = sum.leader.as_ref().map_or("none".to_owned(), ToString::to_string);
        line.push(piece(Tone::Plain, format!("  epoch {}  leader {leader}  ", sum.epoch)));
        match sum.agreement {
            Agreement::Agreed => line.push(piece(Tone::Plain, format!("agreed {}/{count}", sum.agreeing))),
            Agreement::Disagree => {
                line.push(piece(Tone::Bad, "disagree"));
                line.push(piece(Tone::Plain, format!(", {}/{count} agree", sum.agreeing)));
            }
            Agreement::NoLeader => line.push(piece(Tone::Plain, "nobody knows a leader")),
        }
        if sum.leader.is_some() {
            line.push(piece(Tone::Plain, format!("  {}", survives(sum.failures_tolerated))));
        }
    }
    if found.supervisor.is_none() {
        let advice =
            if sum.state == ClusterState::Stopped { "" } else { ": `replcluster up` starts another" };
        line.push(piece(Tone::Plain, "  "));
        line.push(piece(Tone::Warning, format!("supervisor dead{advice}")));
    }
    line
}

/// How many nodes may still fail.
pub(in crate::cli) fn survives(failures: usize) -> String {
    match failures {
        1 => "survives 1 more failure".to_owned(),
        more => format!("survives {more} more failures"),
    }
}

/// What each node that answered takes for the view; nothing where all say the same.
pub(super) fn disagreement(found: &Survey) -> Vec<Line> {
    let opinions: Vec<(&NodeId, u64, Option<NodeId>, Vec<NodeId>)> = found
        .nodes
        .iter()
        .filter_map(|one| {
            let account = account(one.answer.as_ref()?);
            // On its way in it has no opinion yet.
            let has_opinion = account.role != Role::Joining || account.leader.is_some();
            has_opinion.then_some((&one.node, account.epoch, account.leader, account.in_sync))
        })
        .collect();
    let Some((_, epoch, leader, in_sync)) = opinions.first() else { return Vec::new() };
    if opinions.iter().all(|other| (other.1, &other.2, &other.3) == (*epoch, leader, in_sync)) {
        return Vec::new();
    }
    opinions
        .iter()
        .map(|(node, epoch, leader, in_sync)| {
            let says = match leader {
                Some(leader) => format!("epoch {epoch}, leader {leader}, in sync {}", list(in_sync)),
                None => format!("epoch {epoch}, no leader"),
            };
            vec![piece(Tone::Warning, format!("{node} says: {says}"))]
        })
        .collect()
}

/// Why nodes were given up, a line each.
pub(super) fn given_up(found: &Survey, history: &[Entry]) -> Vec<Line> {
    let failed = found.nodes.iter().zip(&found.sum.states).filter(|(_, state)| **state == NodeState::Failed);
    failed.map(|(one, _)| vec![piece(Tone::Bad, why_given_up(one, history))]).collect()
}

fn why_given_up(one: &NodeSurvey, history: &[Entry]) -> String {
    let node = &one.node;
    let mut text = format!("{node} failed");
    let reason = history.iter().rev().find_map(|entry| {
        let Event::GaveUp { node: of, reason } = &entry.event else { return None };
        if of == node.as_str() { reason.lines().next() } else { None }
    });
    // Writing into a string cannot fail.
    if let Some(reason) = reason {
        let _ = write!(text, ": {reason}");
    }
    if let Some(exit) = &one.record.last_exit {
        let (how, at) = (ended(exit.code, exit.signal), render::time_of_day(&exit.at));
        let trouble = exit.trouble.map_or(String::new(), |trouble| format!(", {}", trouble.as_str()));
        let words = exit.words.as_ref().map_or(String::new(), |words| format!(": {words}"));
        let _ = write!(text, "; it ended at {at} ({how}, {}{trouble}){words}", exit.cause.as_str());
    }
    let _ = write!(text, ". See `replcluster logs {node}`, then `replcluster start {node}`");
    text
}

/// What happened last that a reader asks about: what the operator did, or an end nobody asked for; and what followed.
pub(super) fn last(history: &[Entry]) -> Option<String> {
    let index = history.iter().rposition(|entry| match &entry.event {
        Event::Command { .. } | Event::GaveUp { .. } => true,
        Event::Exited { cause, .. } => *cause != Cause::Operator,
        Event::SupervisorStarted { .. }
        | Event::SupervisorEnded { .. }
        | Event::Started { .. }
        | Event::Adopted { .. }
        | Event::Ready { .. }
        | Event::View { .. }
        | Event::Fault { .. }
        | Event::Verdict { .. } => false,
    })?;
    let entry = &history[index];
    let mut text = format!("{} {}", render::time_of_day(&entry.at), sentence(&entry.event));
    let leader_before = if let Event::Command { leader, .. } = &entry.event {
        leader.clone()
    } else {
        history[..index].iter().rev().find_map(|entry| view_leader(&entry.event)).map(str::to_owned)
    };
    let verdict = history[index..].iter().find_map(|entry| {
        if let Event::Verdict { leader, unavailable_ms, .. } = &entry.event {
            Some((leader.clone(), *unavailable_ms))
        } else {
            None
        }
    });
    // Views are told a moment late, so the first one after the event can still be the one before it.
    let mut leaders_after = history[index..].iter().filter_map(|entry| view_leader(&entry.event));
    let leader_after = leaders_after.find(|leader| leader_before.as_deref() != Some(*leader));
    match (verdict, leader_after) {
        (Some((Some(leader), Some(gap))), _) => {
            let _ = write!(text, " → {leader} leads after {}", render::milliseconds(gap));
        }
        (Some((Some(leader), None)), _) => {
            let _ = write!(text, " → {leader} leads");
        }
        (Some((None, _)), _) => text.push_str(" → nobody leads"),
        (None, Some(leader)) => {
            let _ = write!(text, " → {leader} leads");
        }
        (None, None) => {}
    }
    Some(text)
}

fn view_leader(event: &Event) -> Option<&str> {
    if let Event::View { leader, .. } = event { Some(leader) } else { None }
}
