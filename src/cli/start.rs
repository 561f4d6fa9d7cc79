//! `start`, `stop`, `restart`: single nodes of a cluster that runs. Each returns when what it asked for is so.

use std::time::Duration;

use clap::Args;

use crate::clock;
use crate::config::parse_duration;
use crate::control::plan::{self, Step};
use crate::supervisor::ports;
use crate::supervisor::socket::Conversation;
use crate::supervisor::wire::{OutcomeKind, Request};
use crate::view::NodeId;

use super::Target;
use super::context::{Context, POLL_INTERVAL, ask_nodes, list, names};
use super::exit::{Exit, Failure, Outcome};
use super::survey::{self, Supervision, Survey};
use super::wait::{self, say};

#[derive(Debug, Args)]
pub(super) struct Start {
    #[command(flatten)]
    target: Target,
    /// How long the nodes may take to be in sync
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    timeout: Duration,
}

#[derive(Debug, Args)]
pub(super) struct Stop {
    #[command(flatten)]
    target: Target,
    /// How long a node may take to end before it is killed
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    timeout: Duration,
}

#[derive(Debug, Args)]
pub(super) struct Restart {
    #[command(flatten)]
    target: Target,
    /// How long a node may take to be in sync again
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    timeout: Duration,
}

/// How long a node may take to end gracefully during a restart.
const END_PATIENCE: Duration = Duration::from_secs(10);

pub(super) async fn start(verb: &Start, context: &Context) -> Outcome {
    let found = survey::survey(context).await?;
    if found.running().is_empty() && found.supervisor == Supervision::Dead {
        return Err(found.nothing_to_change(context));
    }
    let nodes = found.targets(&verb.target.target)?;
    for one in found.nodes.iter().filter(|one| nodes.contains(&one.node) && one.process.is_none()) {
        ports::await_free(&one.node).await?;
    }
    let mut supervisor = begin(context, &found, format!("start {}", verb.target.target), &nodes).await?;
    ask_nodes(&mut supervisor, &Request::Start { nodes: names(&nodes) }).await?;
    wait::in_sync(context, &nodes, verb.timeout).await?;
    anstream::println!("{} in sync", list(&nodes));
    Ok(Exit::Done)
}

pub(super) async fn stop(verb: &Stop, context: &Context) -> Outcome {
    let (found, nodes) = running_targets(context, &verb.target.target).await?;
    let mut supervisor = begin(context, &found, format!("stop {}", verb.target.target), &nodes).await?;
    let patience_ms = u64::try_from(verb.timeout.as_millis()).unwrap_or(u64::MAX);
    let mut stopped = Vec::new();
    for step in plan::down(&nodes, found.sum.leader.as_ref(), false) {
        let Step::Stop(group) = step else { continue };
        let request = Request::Stop { nodes: names(&group), patience_ms };
        let ordered = ask_nodes(&mut supervisor, &request).await?;
        wait::ended_all(&mut supervisor, &ordered, verb.timeout + Duration::from_secs(5)).await?;
        let changed = ordered.iter().filter(|one| one.result == OutcomeKind::Accepted);
        stopped.extend(changed.map(|one| one.node.clone()));
    }
    // Not the role that was given: another node has it now.
    let again = if let [one] = nodes.as_slice() { format!("start {one}") } else { "up".to_owned() };
    let down: Vec<String> = names(&nodes).into_iter().filter(|node| !stopped.contains(node)).collect();
    let mut told = Vec::new();
    if !stopped.is_empty() {
        stopped.sort();
        told.push(format!("stopped {}", stopped.join(", ")));
    }
    if !down.is_empty() {
        told.push(format!("{} was down already", down.join(", ")));
    }
    anstream::println!("{}\nnext: replcluster {again}", told.join("; "));
    Ok(Exit::Done)
}

pub(super) async fn restart(verb: &Restart, context: &Context) -> Outcome {
    let (found, mut nodes) = running_targets(context, &verb.target.target).await?;
    // What the operator has ended stays down unless it is named itself.
    if nodes.len() > 1 {
        nodes.retain(|node| found.running().contains(node));
        // "Followers first, the leader last" needs to know which of them leads.
        if let Some(why) = found.why_unconfirmed() {
            let message = format!(
                "it cannot be known who leads, and the leader has to be the last: {why}\nrestart the nodes one by one, by their addresses"
            );
            return Err(Failure::new(Exit::Unavailable, message));
        }
    }
    let mut supervisor = begin(context, &found, format!("restart {}", verb.target.target), &nodes).await?;
    for step in plan::roll(&nodes, found.sum.leader.as_ref(), &found.sum.in_sync) {
        say(&step.to_string());
        match step {
            Step::Restart { node, .. } => restart_one(&mut supervisor, &node).await?,
            Step::AwaitInSync(group) => drop(wait::in_sync(context, &group, verb.timeout).await?),
            Step::Lead(node) => drop(wait::lead(context, &node).await?),
            Step::StartSupervisor
            | Step::Keep { .. }
            | Step::Resume { .. }
            | Step::Spawn { .. }
            | Step::ConfirmWrite
            | Step::Stop(_)
            | Step::Kill(_)
            | Step::TakeOut(_)
            | Step::EndSupervisor => {}
        }
    }
    anstream::println!("restarted {}", list(&nodes));
    Ok(Exit::Done)
}

/// Ends one node and starts it again, and returns when its new process runs. One order, so that whoever dies in the
/// middle leaves a node that is to run.
pub(super) async fn restart_one(supervisor: &mut Conversation, node: &NodeId) -> Result<(), Failure> {
    let nodes = vec![node.to_string()];
    let before = wait::record(supervisor, node).await?.spawns;
    let patience_ms = u64::try_from(END_PATIENCE.as_millis()).unwrap_or(u64::MAX);
    ask_nodes(supervisor, &Request::Restart { nodes, patience_ms }).await?;
    let deadline = clock::now() + END_PATIENCE + Duration::from_secs(5);
    loop {
        let now = wait::record(supervisor, node).await?;
        if now.spawns != before {
            return Ok(());
        }
        if now.process.is_none() && !now.wanted {
            let message = format!(
                "{node} ended, and another command has it stay down\nstart it with `replcluster start {node}`"
            );
            return Err(Failure::new(Exit::Conflict, message));
        }
        if clock::now() >= deadline {
            let message = format!("{node} did not end\nend it with `replcluster kill {node}`");
            return Err(Failure::new(Exit::TimedOut, message));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

async fn running_targets(context: &Context, text: &str) -> Result<(Survey, Vec<NodeId>), Failure> {
    let found = survey::survey(context).await?;
    if found.running().is_empty() {
        return Err(found.nothing_to_change(context));
    }
    let nodes = found.targets(text)?;
    Ok((found, nodes))
}

async fn begin(
    context: &Context,
    found: &Survey,
    command: String,
    nodes: &[NodeId],
) -> Result<Conversation, Failure> {
    let mut supervisor = context.ensure_supervisor().await?;
    context.note(Some(&mut supervisor), found.command(command, nodes)).await;
    Ok(supervisor)
}
