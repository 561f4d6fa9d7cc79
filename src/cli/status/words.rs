//! What stands above and below the table: what the nodes add up to, where they disagree, why one was given up, and
//! what happened last. Values in, lines out.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use crate::control::cause::Cause;
use crate::control::health::{Agreement, ClusterState, Confirmation, NodeState, Role, Sum};
use crate::supervisor::ask::account;
use crate::supervisor::events::{Entry, Event};
use crate::supervisor::record::{LastExit, Phase};
use crate::view::NodeId;

use super::super::context::list;
use super::super::events::sentence;
use super::super::lines::{Line, Tone, lines, piece};
use super::super::render;
use super::super::survey::{NodeSurvey, Supervision, Survey};
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
        line.push(piece(Tone::Plain, format!("  epoch {}  ", sum.epoch)));
        match (&sum.leader, found.two_leaders()) {
            (_, Some(two)) => line.push(piece(Tone::Bad, two)),
            (Some(leader), None) => line.push(piece(Tone::Plain, format!("leader {leader}"))),
            (None, None) if sum.unasked.is_empty() => line.push(piece(Tone::Plain, "leader none")),
            (None, None) => line.push(piece(Tone::Bad, "leader not known")),
        }
        line.push(piece(Tone::Plain, "  "));
        match sum.agreement {
            Agreement::Agreed => line.push(piece(Tone::Plain, format!("agreed {}/{count}", sum.agreeing))),
            Agreement::Disagree => {
                line.push(piece(Tone::Bad, "disagree"));
                line.push(piece(Tone::Plain, format!(", {}/{count} agree", sum.agreeing)));
            }
            Agreement::NoLeader => line.push(piece(Tone::Plain, "nobody knows a leader")),
            Agreement::Unknown => line.push(piece(Tone::Plain, "no node that answers knows a leader")),
        }
        if sum.refuses_writes() {
            line.push(piece(Tone::Plain, "  "));
            line.push(piece(Tone::Bad, refusal(sum)));
        } else if sum.leader.is_some() {
            line.push(piece(Tone::Plain, format!("  {}", survives(sum.failures_tolerated))));
        }
    }
    let supervisor = match found.supervisor {
        Supervision::Running(_) => return line,
        Supervision::Silent(pid) => {
            format!(
                "supervisor (pid {pid}) does not answer: `replcluster kill supervisor`, then `replcluster up`"
            )
        }
        Supervision::Dead if sum.state == ClusterState::Stopped => "supervisor dead".to_owned(),
        Supervision::Dead => "supervisor dead: `replcluster up` starts another".to_owned(),
    };
    line.push(piece(Tone::Plain, "  "));
    line.push(piece(Tone::Warning, supervisor));
    line
}

/// Why no write is acknowledged though somebody leads.
fn refusal(sum: &Sum) -> String {
    let (least, count) = (sum.min_in_sync, sum.in_sync.len());
    format!(
        "writes are refused: min_in_sync is {least} and {count} {} in sync",
        if count == 1 { "is" } else { "are" }
    )
}

/// How many nodes may still fail.
pub(in crate::cli) fn survives(failures: usize) -> String {
    match failures {
        1 => "survives 1 more failure".to_owned(),
        more => format!("survives {more} more failures"),
    }
}

/// Why it cannot be known who leads, or how it is known where the leader itself could not be asked.
pub(super) fn unconfirmed(found: &Survey) -> Vec<Line> {
    if !found.sum.rivals.is_empty() {
        // Said above the table; what each node says follows.
        return Vec::new();
    }
    if let Some(why) = found.why_unconfirmed() {
        return vec![vec![piece(Tone::Bad, why)]];
    }
    let (Some(leader), Some(Confirmation::Followers)) = (&found.sum.leader, found.sum.confirmation) else {
        return Vec::new();
    };
    let one = found.nodes.iter().find(|one| one.node == *leader);
    let why = one.and_then(|one| one.unanswered.as_deref()).unwrap_or("it does not answer");
    let text = format!("{leader} could not be asked: {why}. Its followers hear it, so it leads");
    vec![vec![piece(Tone::Warning, text)]]
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

/// What is odd about single nodes, a line each: somebody else in their place, another name, or no answer.
pub(super) fn odd(cluster: &str, found: &Survey) -> Vec<Line> {
    let mut told = Vec::new();
    let mut renamed: BTreeMap<&str, Vec<NodeId>> = BTreeMap::new();
    for (one, state) in found.nodes.iter().zip(&found.sum.states) {
        let NodeSurvey { node, answer, holder, .. } = one;
        if let Some(holder) = holder {
            told.push(vec![piece(Tone::Bad, holder.sentence(node))]);
        }
        if let Some(answer) = answer.as_ref().filter(|answer| answer.cluster_name != cluster) {
            renamed.entry(answer.cluster_name.as_str()).or_default().push(node.clone());
        }
        if *state == NodeState::Silent {
            let pid = one.pid().map_or(String::new(), |pid| format!(" (pid {pid})"));
            let since = match (one.seen, one.uptime()) {
                // What was heard last came from an earlier process.
                (Some(seen), Some(uptime)) if uptime < seen => {
                    format!("has not answered since its start {} ago", render::span(uptime))
                }
                (Some(seen), _) => format!("has not answered for {}", render::span(seen)),
                (None, Some(uptime)) => {
                    format!("has not answered since its start {} ago", render::span(uptime))
                }
                (None, None) => "does not answer".to_owned(),
            };
            let text = format!("{node}{pid} runs and {since}. See `replcluster logs {node}`");
            told.push(vec![piece(Tone::Warning, text)]);
        }
    }
    for (other, nodes) in renamed {
        let text = format!(
            "{} answers as a node of {other}, and the configuration says {cluster} now: put name = \"{other}\" back, \
             or end them with `replcluster down` first",
            list(&nodes)
        );
        told.push(vec![piece(Tone::Warning, text)]);
    }
    told
}

/// What nodes say that they wait for, a line each.
pub(super) fn waits(found: &Survey) -> Vec<Line> {
    let waiting = found.nodes.iter().filter_map(|one| {
        let what = &one.answer.as_ref()?.waiting_for;
        (!what.is_empty()).then(|| format!("{} waits for {what}", one.node))
    });
    waiting.flat_map(|text| lines(Tone::Warning, &text)).collect()
}

/// Why nodes were given up, a line each.
pub(super) fn given_up(found: &Survey, history: &[Entry]) -> Vec<Line> {
    let failed = found.nodes.iter().zip(&found.sum.states).filter(|(_, state)| **state == NodeState::Failed);
    failed.map(|(one, _)| vec![piece(Tone::Bad, why_given_up(one, history))]).collect()
}

/// Nodes that ended by themselves and are started again after a while, a line each. What takes a moment only is not worth
/// a line.
pub(super) fn retried(found: &Survey) -> Vec<Line> {
    let waiting =
        found.nodes.iter().filter(|one| one.process.is_none() && one.record.phase == Phase::Waiting);
    waiting.filter_map(|one| Some(vec![piece(Tone::Warning, retry(found, one)?)])).collect()
}

fn retry(found: &Survey, one: &NodeSurvey) -> Option<String> {
    let Supervision::Running(_) = found.supervisor else {
        return Some(format!(
            "{} is not started again while no supervisor runs: `replcluster up` starts one",
            one.node
        ));
    };
    let wait = Duration::from_millis(one.record.restart_in_ms?);
    if wait < WORTH_A_LINE {
        return None;
    }
    let times = one.record.failures;
    let mut text =
        format!("{} is started again in {} (it failed {times} times in a row)", one.node, render::span(wait));
    if let Some(exit) = &one.record.last_exit {
        // Writing into a string cannot fail.
        let _ = write!(text, "{}", how_it_ended(exit));
    }
    let _ = write!(text, "; at once with `replcluster start {}`", one.node);
    Some(text)
}

/// A shorter wait before a restart is over before it is read.
const WORTH_A_LINE: Duration = Duration::from_secs(1);

fn how_it_ended(exit: &LastExit) -> String {
    let (how, at) = (ended(exit.code, exit.signal), render::time_of_day(&exit.at));
    let trouble = exit.trouble.map_or(String::new(), |trouble| format!(", {}", trouble.as_str()));
    let words = exit.words.as_ref().map_or(String::new(), |words| format!(": {words}"));
    format!("; it ended at {at} ({how}, {}{trouble}){words}", exit.cause.as_str())
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
        let _ = write!(text, "{}", how_it_ended(exit));
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
        | Event::NotStarted { .. }
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
    let changed = |leader: &str| leader_before.as_deref() != Some(leader);
    if let Some((leader, gap)) = verdict(&history[index..]) {
        let after = match (leader, gap) {
            (None, _) => " → nobody leads".to_owned(),
            (Some(leader), Gap::Over(gap)) if changed(leader) => format!(" → {leader} leads after {gap}"),
            (Some(leader), Gap::Silent(span)) if changed(leader) => {
                format!(" → {leader} leads, and writes did not come back within {span}")
            }
            (Some(leader), Gap::Unprobed) if changed(leader) => format!(" → {leader} leads"),
            (Some(_), Gap::Over(gap)) => format!(" → writes paused {gap}"),
            (Some(_), Gap::Silent(span)) => format!(" → writes did not come back within {span}"),
            (Some(_), Gap::Unprobed) => String::new(),
        };
        text.push_str(&after);
        return Some(text);
    }
    // Views are told a moment late, and leadership may go on from one to the next: what counts is where it is now.
    let newest = history[index..].iter().rev().find_map(|entry| view_leader(&entry.event));
    if let Some(leader) = newest.filter(|leader| changed(leader))
        && moves_leadership(&entry.event, leader_before.as_deref(), leader)
    {
        let _ = write!(text, " → {leader} leads");
    }
    Some(text)
}

/// What a kill did to writes, each with its time as it is shown.
enum Gap {
    /// They paused.
    Over(String),
    /// They had not come back when the load ended.
    Silent(String),
    /// Nobody wrote.
    Unprobed,
}

/// What became of the kill that this part of the history begins with: who led after it, and what it did to writes.
fn verdict(history: &[Entry]) -> Option<(Option<&str>, Gap)> {
    let Event::Command { command, nodes: killed, .. } = &history.first()?.event else { return None };
    if !command.starts_with("kill ") {
        return None;
    }
    history.iter().find_map(|entry| {
        let Event::Verdict { nodes, leader, unavailable_ms, silent_ms, .. } = &entry.event else {
            return None;
        };
        let gap = match (unavailable_ms, silent_ms) {
            (_, Some(silent)) => Gap::Silent(render::milliseconds(*silent)),
            (Some(gap), None) => Gap::Over(render::milliseconds(*gap)),
            (None, None) => Gap::Unprobed,
        };
        (nodes == killed).then_some((leader.as_deref(), gap))
    })
}

/// Whether this event is what made another node lead: it ended or froze the leader, or it gave leadership away. Anything
/// else may have happened beside it.
fn moves_leadership(event: &Event, before: Option<&str>, after: &str) -> bool {
    let (does, to) = match event {
        Event::Command { command, nodes, .. } => (command.as_str(), nodes.as_slice()),
        Event::Exited { node, .. } => ("exit", std::slice::from_ref(node)),
        Event::GaveUp { .. }
        | Event::SupervisorStarted { .. }
        | Event::SupervisorEnded { .. }
        | Event::Started { .. }
        | Event::NotStarted { .. }
        | Event::Adopted { .. }
        | Event::Ready { .. }
        | Event::View { .. }
        | Event::Fault { .. }
        | Event::Verdict { .. } => return false,
    };
    let concerns = |node: &str| to.iter().any(|one| one == node);
    match does.split(' ').next().unwrap_or_default() {
        "exit" | "kill" | "pause" | "stop" | "restart" | "remove" | "take" => before.is_some_and(concerns),
        "move-leader" | "up" => concerns(after),
        _ => false,
    }
}

fn view_leader(event: &Event) -> Option<&str> {
    if let Event::View { leader, .. } = event { Some(leader) } else { None }
}
