//! `pause` and `resume`: SIGSTOP and SIGCONT, through the supervisor so that a pause with an end has one.

use std::time::Duration;

use clap::Args;

use crate::config::{parse_duration, show};
use crate::supervisor::wire::{OutcomeKind, Request};
use crate::view::NodeId;

use super::Target;
use super::context::{Context, ask_nodes, list, names};
use super::exit::{Exit, Failure, Outcome};
use super::survey::{self, Survey};

#[derive(Debug, Args)]
pub(super) struct Pause {
    #[command(flatten)]
    target: Target,
    /// Thaw again after this long, even if nothing else is done
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    span: Option<Duration>,
}

#[derive(Debug, Args)]
pub(super) struct Resume {
    #[command(flatten)]
    target: Target,
}

pub(super) async fn pause(verb: &Pause, context: &Context) -> Outcome {
    let (found, nodes) = targets(context, &verb.target.target).await?;
    let mut supervisor = context.ensure_supervisor().await?;
    let event = found.command(format!("pause {}", verb.target.target), &nodes);
    context.note(Some(&mut supervisor), event).await;
    let for_ms = verb.span.map(|span| u64::try_from(span.as_millis()).unwrap_or(u64::MAX));
    ask_nodes(&mut supervisor, &Request::Pause { nodes: names(&nodes), for_ms }).await?;
    match verb.span {
        Some(span) => anstream::println!("paused {} for {}", list(&nodes), show(span)),
        None => {
            // Not the role that was given: a frozen leader does not lead for long.
            let again = if let [one] = nodes.as_slice() { one.as_str() } else { "all" };
            anstream::println!("paused {}\nnext: replcluster resume {again}", list(&nodes));
        }
    }
    Ok(Exit::Done)
}

pub(super) async fn resume(verb: &Resume, context: &Context) -> Outcome {
    let found = survey::survey(context).await?;
    // By role a frozen node is hard to name: it has none while it cannot answer. "all" means all that are frozen.
    let nodes: Vec<NodeId> = match verb.target.target.as_str() {
        "all" => found.nodes.iter().filter(|one| one.is_paused()).map(|one| one.node.clone()).collect(),
        _ => targets(context, &verb.target.target).await?.1,
    };
    if nodes.is_empty() {
        return Err(Failure::new(
            Exit::Failed,
            "no node is paused\nsee how they stand with `replcluster status`",
        ));
    }
    let mut supervisor = context.ensure_supervisor().await?;
    let event = found.command(format!("resume {}", verb.target.target), &nodes);
    context.note(Some(&mut supervisor), event).await;
    let outcomes = ask_nodes(&mut supervisor, &Request::Resume { nodes: names(&nodes) }).await?;
    let changed = outcomes.iter().filter(|outcome| outcome.result == OutcomeKind::Accepted).count();
    anstream::println!("resumed {} ({changed} of {})", list(&nodes), nodes.len());
    Ok(Exit::Done)
}

async fn targets(context: &Context, text: &str) -> Result<(Survey, Vec<NodeId>), Failure> {
    let found = survey::survey(context).await?;
    if found.running().is_empty() {
        return Err(Failure::not_running(&context.config.name));
    }
    let nodes = found.targets(text)?;
    Ok((found, nodes))
}
