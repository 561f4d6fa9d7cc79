//! `pause` and `resume`: SIGSTOP and SIGCONT, through the supervisor so that a pause with an end has one. A pause is told
//! when every thread of the process was seen frozen. It stays only if this command then says that it knows of it: whoever
//! dies in the middle, command or supervisor, leaves nothing frozen.

use std::time::Duration;

use clap::Args;

use crate::clock;
use crate::config::{parse_duration, show};
use crate::supervisor::events;
use crate::supervisor::wire::{Outcome as NodeOutcome, OutcomeKind, Request};
use crate::view::NodeId;

use super::context::{self, Context, ask, ask_nodes, list, names};
use super::exit::{Exit, Failure, Outcome};
use super::survey::{self, Survey};
use super::{Target, kill};

/// How long a pause that failed is tried to be undone.
const UNDO_PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(super) struct Pause {
    #[command(flatten)]
    target: Target,
    /// Thaw again after this long, even if nothing else is done; where the supervisor was killed meanwhile, with the next
    /// command
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    span: Option<Duration>,
    /// Do not ask before the last in-sync node is frozen for an open time
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Args)]
pub(super) struct Resume {
    #[command(flatten)]
    target: Target,
}

pub(super) async fn pause(verb: &Pause, context: &Context) -> Outcome {
    let (found, nodes) = targets(context, &verb.target.target).await?;
    // What ends by itself is no danger to the data or to the cluster.
    let even_last = verb.span.is_some() || verb.yes || {
        let survivors: Vec<NodeId> = found.awake().into_iter().filter(|node| !nodes.contains(node)).collect();
        kill::interlock("freezing", &found, &nodes, &survivors, verb.yes)?
    };
    let mut supervisor = context.ensure_supervisor().await?;
    let event = found.command(format!("pause {}", verb.target.target), &nodes);
    context.note(Some(&mut supervisor), event).await;
    let for_ms = verb.span.map(|span| u64::try_from(span.as_millis()).unwrap_or(u64::MAX));
    let fault = events::new_id();
    let request = Request::Pause { nodes: names(&nodes), for_ms, fault: fault.clone(), even_last };
    let ordered = async {
        let outcomes = ask_nodes(&mut supervisor, &request).await?;
        ask(&mut supervisor, &Request::Hold { fault: fault.clone() }).await?;
        Ok(outcomes)
    };
    let outcomes = match ordered.await {
        Ok(outcomes) => outcomes,
        Err(failure) => {
            undo(context, &fault).await;
            return Err(failure);
        }
    };
    let span = verb.span.map_or(String::new(), |span| format!(" for {}", show(span)));
    anstream::println!("{}", told(&outcomes, "paused", "frozen", &span));
    if verb.span.is_none() {
        // Not the role that was given: a frozen leader does not lead for long.
        let again = if let [one] = nodes.as_slice() { one.as_str() } else { "all" };
        anstream::println!("next: replcluster resume {again}");
    }
    Ok(Exit::Done)
}

/// What was changed, and what was so before.
fn told(outcomes: &[NodeOutcome], done: &str, so: &str, how: &str) -> String {
    let of = |changed: bool| {
        let names = outcomes.iter().filter(|one| (one.result == OutcomeKind::Accepted) == changed);
        names.map(|one| one.node.as_str()).collect::<Vec<_>>().join(", ")
    };
    let (changed, unchanged) = (of(true), of(false));
    match (changed.is_empty(), unchanged.is_empty()) {
        (false, true) => format!("{done} {changed}{how}"),
        (false, false) => format!("{done} {changed}{how}; {unchanged} was {so} already"),
        (true, _) if how.is_empty() => format!("{unchanged} was {so} already"),
        (true, _) => format!("{unchanged} was {so} already; now it is{how}"),
    }
}

/// A pause whose order failed must not stand, however far it had come: a supervisor that runs is told, be it another one
/// by now, and where none runs this command undoes it.
async fn undo(context: &Context, fault: &str) {
    let deadline = clock::now() + UNDO_PATIENCE;
    while clock::now() < deadline {
        if let Ok(Some(mut supervisor)) = context.supervisor().await
            && ask(&mut supervisor, &Request::Forsake { fault: fault.to_owned() }).await.is_ok()
        {
            return;
        }
        if context::heal_leftovers(&context.layout, Some(fault)) {
            return;
        }
        tokio::time::sleep(context::POLL_INTERVAL).await;
    }
}

pub(super) async fn resume(verb: &Resume, context: &Context) -> Outcome {
    let found = survey::survey(context).await?;
    if found.running().is_empty() {
        return Err(found.nothing_to_change(context));
    }
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
        return Err(found.nothing_to_change(context));
    }
    let mut nodes = found.targets(text)?;
    // Several are meant as far as they run; one that was named must run.
    if nodes.len() > 1 {
        nodes.retain(|node| found.running().contains(node));
    }
    Ok((found, nodes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_so_before_is_not_told_as_done() {
        let outcome = |node: &str, result| NodeOutcome { node: node.to_owned(), result, pid: None };
        let (one, other) = (outcome("h:1", OutcomeKind::Accepted), outcome("h:2", OutcomeKind::Already));
        let told = |outcomes: &[NodeOutcome]| told(outcomes, "paused", "frozen", " for 1s");
        assert_eq!(told(std::slice::from_ref(&one)), "paused h:1 for 1s");
        assert_eq!(told(&[one, other.clone()]), "paused h:1 for 1s; h:2 was frozen already");
        assert_eq!(told(&[other]), "h:2 was frozen already; now it is for 1s");
    }
}
