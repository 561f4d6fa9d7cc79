//! `move-leader`: a graceful hand-over, asked of the leader itself.

use clap::Args;
use clap_complete::engine::ArgValueCandidates;

use super::context::Context;
use super::exit::{Exit, Failure, Outcome};
use super::{node_or_role, survey, wait};

#[derive(Debug, Args)]
pub(super) struct MoveLeader {
    /// The node that is to lead: an address, an end of it that fits only one, or follower
    #[arg(value_name = "NODE", add = ArgValueCandidates::new(node_or_role))]
    node: String,
}

pub(super) async fn run(verb: &MoveLeader, context: &Context) -> Outcome {
    let found = survey::survey(context).await?;
    if found.running().is_empty() {
        return Err(found.nothing_to_change(context));
    }
    // Of the followers one that can.
    let leader = found.sum.confirmed_leader();
    let able = leader.and_then(|leader| found.sum.in_sync.iter().find(|node| *node != leader));
    let node = match (verb.node.as_str(), able) {
        ("follower", Some(able)) => able.clone(),
        (text, _) => found.target(text)?,
    };
    if found.sum.leader.as_ref() == Some(&node) {
        anstream::println!("{node} leads already");
        return Ok(Exit::Done);
    }
    if !found.sum.in_sync.contains(&node) {
        let message = format!(
            "{node} is not in sync and cannot lead\nstart it, or wait until `replcluster status` shows it in sync"
        );
        return Err(Failure::new(Exit::Failed, message).with_node_log(&context.layout, &node));
    }
    let mut supervisor = context.supervisor().await?;
    let event = found.command("move-leader".to_owned(), std::slice::from_ref(&node));
    context.note(supervisor.as_mut(), event).await;
    let after = wait::lead(context, &node).await?;
    let before = found.sum.leader.map_or("nobody".to_owned(), |leader| leader.to_string());
    anstream::println!("{node} leads since epoch {}; before it {before} did", after.sum.epoch);
    if context.config.nodes.first() != Some(&node) && context.config.replication.handback_after.is_some() {
        anstream::println!(
            "a lower address that is in sync takes over again: set handback_after = \"never\" to keep it so"
        );
    }
    Ok(Exit::Done)
}
