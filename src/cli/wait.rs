//! Waiting for the cluster to become what was asked for, and saying what is missing where it does not.

use std::time::Duration;

use indicatif::ProgressBar;

use crate::clock;
use crate::control::cause::EXIT_CONFLICT;
use crate::control::health::Role;
use crate::supervisor::ask::is_in_sync;
use crate::supervisor::events::{self, Event};
use crate::supervisor::record::{NodeRecord, Phase, Record};
use crate::supervisor::socket::Conversation;
use crate::supervisor::wire::{Outcome, Reply, Request};
use crate::view::NodeId;

use super::charset;
use super::context::{Context, HISTORY_BYTES, POLL_INTERVAL, ask, other_version};
use super::exit::{Exit, Failure};
use super::survey::{self, NodeSurvey, Supervision, Survey};
use super::waiting;

/// So often a supervisor that died is replaced while something is waited for.
const REVIVALS_MAX: u32 = 3;

/// What lasts shorter than this is not worth a word.
const PASSING: Duration = Duration::from_secs(2);

/// How long leadership may take to move.
const HANDOVER_PATIENCE: Duration = Duration::from_secs(10);

/// Says what happens meanwhile: one line after another, so that a log of it reads as well as a terminal.
pub fn say(line: &str) {
    let (dim, plain) = (super::render::DIM, super::render::PLAIN);
    anstream::eprintln!("{dim}{}{plain} {}", charset::fit("•"), charset::fit(line));
}

/// Waits until all of these nodes say that they serve and are in sync, under one leader.
///
/// # Errors
/// A node that cannot start, or what is missing when patience ends.
pub async fn in_sync(context: &Context, nodes: &[NodeId], patience: Duration) -> Result<Survey, Failure> {
    // Drawn on a terminal only; elsewhere the lines that are said have to do.
    let progress = ProgressBar::new_spinner();
    let waited = in_sync_quietly(context, nodes, patience, &progress).await;
    progress.finish_and_clear();
    waited
}

async fn in_sync_quietly(
    context: &Context,
    nodes: &[NodeId],
    patience: Duration,
    progress: &ProgressBar,
) -> Result<Survey, Failure> {
    let mut told: Vec<(NodeId, String)> = Vec::new();
    let begun = clock::now();
    let deadline = begun + patience;
    let mut waiting_told = None;
    let mut arrived: Vec<(NodeId, u128)> = Vec::new();
    let mut looks = 0;
    let mut revived = 0;
    loop {
        let survey = survey::survey(context).await?;
        let wanted: Vec<&NodeSurvey> = survey.nodes.iter().filter(|one| nodes.contains(&one.node)).collect();
        // Its own answer, known by the nonce that it was started with: a stranger at its address proves nothing.
        let ready = |one: &&NodeSurvey| one.own_answer().is_some_and(is_in_sync);
        let epochs =
            |one: &&NodeSurvey| one.answer.as_ref().map(|answer| (answer.epoch, answer.leader.clone()));
        let first = wanted.first().and_then(epochs);
        looks += 1;
        for one in wanted.iter().filter(|one| ready(one)) {
            if !arrived.iter().any(|(node, _)| *node == one.node) {
                arrived.push((one.node.clone(), begun.elapsed().as_millis()));
            }
        }
        if survey.sum.leader.is_some()
            && wanted.len() == nodes.len()
            && wanted.iter().all(|one| ready(one) && epochs(one) == first)
        {
            // Where nothing had to be waited for nothing is said.
            if looks > 1 {
                arrived.sort();
                let times: Vec<String> =
                    arrived.iter().map(|(node, after)| format!("{node} after {after} ms")).collect();
                progress.suspend(|| say(&format!("in sync: {}", times.join(", "))));
            }
            return Ok(survey);
        }
        let count = wanted.iter().filter(|one| ready(one)).count();
        let lacking: Vec<String> =
            wanted.iter().filter(|one| !ready(one)).map(|one| one.node.to_string()).collect();
        progress.set_message(format!(
            "{count} of {} in sync, waiting for {}",
            nodes.len(),
            lacking.join(", ")
        ));
        progress.tick();
        // Not in the first moment: until the nodes have found each other everybody waits for somebody.
        if clock::now() >= begun + PASSING.min(patience / 2) {
            let waiting = waiting::waiting(context, &survey);
            if let Some(waiting) = waiting.as_ref().filter(|waiting| waiting_told.as_ref() != Some(*waiting))
            {
                progress
                    .suspend(|| say(&format!("{}\n  {}", waiting.what.replace('\n', "\n  "), waiting.next)));
            }
            waiting_told = waiting.or(waiting_told);
        }
        // What runs needs no supervisor to come in sync; what does not run needs one to be started.
        let idle = wanted.iter().any(|one| !one.runs());
        if idle && survey.supervisor == Supervision::Dead && revived < REVIVALS_MAX {
            revived += 1;
            progress.suspend(|| say("the supervisor died; starting another one, which takes over"));
            context.ensure_supervisor().await?;
        }
        for one in &wanted {
            cannot_start(context, one)?;
            let Some(exit) = one.record.last_exit.as_ref().filter(|_| one.record.phase == Phase::Waiting)
            else {
                continue;
            };
            if !told.iter().any(|(node, at)| *node == one.node && *at == exit.at) {
                let how = ended(exit.code, exit.signal);
                progress.suspend(|| say(&format!("{} ended ({how}), starting it again", one.node)));
                told.push((one.node.clone(), exit.at.clone()));
            }
        }
        if clock::now() >= deadline {
            return Err(missing(context, &survey, &wanted, patience));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// What nothing will change by waiting.
fn cannot_start(context: &Context, one: &NodeSurvey) -> Result<(), Failure> {
    let NodeSurvey { node, record, .. } = one;
    if matches!(record.phase, Phase::Failed | Phase::Down)
        && one.answer.is_none()
        && let Some(why) = never_ran(context, node)
    {
        return Err(Failure::new(Exit::Failed, format!("{node} cannot be started: {why}")));
    }
    let how = record
        .last_exit
        .as_ref()
        .map_or("it could not be run".to_owned(), |exit| ended(exit.code, exit.signal));
    let conflict = record.last_exit.as_ref().is_some_and(|exit| exit.code == Some(EXIT_CONFLICT));
    let failure = match record.phase {
        Phase::Waiting | Phase::Failed if conflict => {
            let message = format!(
                "{node} cannot start: its address or directory is held by another ({how})\nend the holder that its log names, then `replcluster up`"
            );
            Failure::new(Exit::Conflict, message)
        }
        Phase::Failed => {
            let message =
                format!("{node} cannot start ({how})\nput right what its log says, then `replcluster up`");
            Failure::new(Exit::Failed, message)
        }
        Phase::Down if record.last_exit.is_some() && one.answer.is_none() => {
            let message = format!("{node} ended ({how})\nput right what its log says, then `replcluster up`");
            Failure::new(Exit::Failed, message)
        }
        Phase::Down | Phase::Starting | Phase::Serving | Phase::Paused | Phase::Stopping | Phase::Waiting => {
            return Ok(());
        }
    };
    Err(failure.with_node_log(&context.layout, node))
}

/// Why no process could be made for a node at all: its last exit then is that of an earlier one and tells nothing.
fn never_ran(context: &Context, node: &NodeId) -> Option<String> {
    let history = events::recent(&context.layout.events(), HISTORY_BYTES).unwrap_or_default();
    let newest = history.iter().rev().find_map(|entry| {
        if let Event::GaveUp { node: of, reason } = &entry.event
            && of == node.as_str()
        {
            return Some(Some(reason.clone()));
        }
        // A process could be made after all.
        let started = matches!(&entry.event, Event::Started { node: of, .. } if of == node.as_str());
        started.then_some(None)
    });
    newest.flatten().filter(|reason| !reason.starts_with(events::RESTARTS_DO_NOT_HELP))
}

fn missing(context: &Context, survey: &Survey, wanted: &[&NodeSurvey], patience: Duration) -> Failure {
    if let Some(waiting) = waiting::waiting(context, survey) {
        let patience = crate::config::show(patience);
        let message = format!("not in sync after {patience}: {}\n{}", waiting.what, waiting.next);
        return Failure::new(Exit::TimedOut, message);
    }
    let lacking: Vec<&&NodeSurvey> =
        wanted.iter().filter(|one| !one.own_answer().is_some_and(is_in_sync)).collect();
    let reasons: Vec<String> = lacking
        .iter()
        .map(|one| match &one.answer {
            Some(answer) if !answer.waiting_for.is_empty() => {
                format!("{} waits for {}", one.node, answer.waiting_for)
            }
            Some(_) => format!("{} is not in sync", one.node),
            None => match &one.holder {
                Some(holder) => holder.sentence(&one.node),
                None => format!("{} does not answer", one.node),
            },
        })
        .collect();
    let what =
        if reasons.is_empty() { "the nodes do not agree on a leader".to_owned() } else { reasons.join("; ") };
    let message = format!(
        "not in sync after {}: {what}\nlook at `replcluster status` and `replcluster logs`; what runs was left running",
        crate::config::show(patience)
    );
    let failure = Failure::new(Exit::TimedOut, message);
    match lacking.first() {
        Some(one) => failure.with_node_log(&context.layout, &one.node),
        None => failure,
    }
}

/// Waits until the processes that these orders to end were given to are gone. Which those are stands in the answers: a
/// node may have another one by then.
///
/// # Errors
/// Those that have not ended when patience ends; and where one has, but another command has started the node again.
pub async fn ended_all(
    supervisor: &mut Conversation,
    ordered: &[Outcome],
    patience: Duration,
) -> Result<(), Failure> {
    let deadline = clock::now() + patience;
    loop {
        let record = snapshot(supervisor).await?;
        let mut left = Vec::new();
        for Outcome { node, pid: ordered, .. } in ordered {
            let process = record.nodes.get(node).and_then(|node| node.process.as_ref());
            match (ordered, process.map(|process| process.pid)) {
                (None, _) | (_, None) => {}
                (Some(ordered), Some(now)) if *ordered == now => left.push(node.as_str()),
                (Some(_), Some(now)) => {
                    let message = format!(
                        "{node} ended, and another command has started it again (pid {now})\nsee how it stands with `replcluster status`"
                    );
                    return Err(Failure::new(Exit::Conflict, message));
                }
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        if clock::now() >= deadline {
            let message = format!("{} did not end\nend it with `replcluster down --now`", left.join(", "));
            return Err(Failure::new(Exit::TimedOut, message));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// What the supervisor knows of the nodes' processes.
async fn snapshot(supervisor: &mut Conversation) -> Result<Record, Failure> {
    match ask(supervisor, &Request::Snapshot).await? {
        Reply::Snapshot { record } => Ok(record),
        Reply::Outcomes { .. } | Reply::Done | Reply::Refused { .. } => Err(other_version()),
    }
}

/// What the supervisor knows of one node.
///
/// # Errors
/// Where it does not say.
pub async fn record(supervisor: &mut Conversation, node: &NodeId) -> Result<NodeRecord, Failure> {
    Ok(snapshot(supervisor).await?.nodes.remove(node.as_str()).unwrap_or_default())
}

/// Has `target` lead: asks the leader to hand over, and waits until every node that answers says the same.
///
/// # Errors
/// A refusal in the leader's own words, or that it took too long.
pub async fn lead(context: &Context, target: &NodeId) -> Result<Survey, Failure> {
    let leads = |survey: &Survey| {
        let answered = || survey.nodes.iter().filter_map(|one| one.answer.as_ref());
        survey.sum.leader.as_ref() == Some(target)
            && answered().all(|answer| answer.leader == target.as_str())
    };
    let found = survey::survey(context).await?;
    if leads(&found) {
        return Ok(found);
    }
    if let Some(leader) = found.sum.leader.clone().filter(|leader| leader != target)
        && let Err(error) = context.asker.move_leader(&leader, target, HANDOVER_PATIENCE).await
    {
        // The old leader's answer can be lost with its leadership: what counts is who leads afterwards.
        let now = survey::until(context, Duration::from_secs(1), |survey| leads(survey)).await?;
        return now.map_err(|_| {
            let message = format!(
                "{target} does not lead: {error}\ntry again when `replcluster status` shows it in sync"
            );
            Failure::new(Exit::Failed, message).with_node_log(&context.layout, target)
        });
    }
    survey::until(context, HANDOVER_PATIENCE, |survey| leads(survey)).await?.map_err(|_| {
        let message = format!("{target} does not lead yet\nlook at `replcluster status`");
        Failure::new(Exit::TimedOut, message).with_node_log(&context.layout, target)
    })
}

/// How a process ended, in words.
#[must_use]
pub fn ended(code: Option<i32>, signal: Option<i32>) -> String {
    match (code, signal) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => super::render::signal_name(signal),
        (None, None) => "exit status unknown".to_owned(),
    }
}

/// The role of a node, for a sentence.
#[must_use]
pub fn role(one: &NodeSurvey) -> &'static str {
    match one.answer.as_ref().map(crate::supervisor::ask::account).map(|account| account.role) {
        Some(Role::Leader) => "leader",
        Some(Role::Follower) => "follower",
        Some(Role::Joining) => "joining",
        Some(Role::None) | None => "no role",
    }
}
