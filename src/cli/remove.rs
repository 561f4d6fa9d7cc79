//! `remove`: out of the view and of the member list, then down, then out of `cluster.toml`. In this order, so that at
//! every moment a node that counts is a node that is listed.

use std::time::Duration;

use clap::Args;
use clap_complete::engine::ArgValueCandidates;

use crate::clock;
use crate::config::edit::{EditError, Editor};
use crate::supervisor::socket::Conversation;
use crate::supervisor::wire::Request;
use crate::view::NodeId;

use super::context::{Context, POLL_INTERVAL, ask, ask_nodes, confirm};
use super::exit::{Exit, Failure, Outcome};
use super::survey::{self, Survey};
use super::wait::{self, say};
use super::{down, node_or_role, status};

#[derive(Debug, Args)]
pub(super) struct Remove {
    /// The node: an address, an end of it that fits only one, leader or follower
    #[arg(value_name = "NODE", add = ArgValueCandidates::new(node_or_role))]
    node: String,
    /// Delete its data and logs as well
    #[arg(long)]
    purge: bool,
    /// Do not ask before deleting
    #[arg(long)]
    yes: bool,
}

const PATIENCE: Duration = Duration::from_secs(10);

pub(super) async fn run(verb: &Remove, context: &mut Context) -> Outcome {
    let found = survey::survey(context).await?;
    let node = found.target(&verb.node)?;
    let left = context.config.nodes.len() - 1;
    let min_in_sync = context.config.replication.min_in_sync;
    if left == 0 {
        return Err(Failure::usage(format!(
            "{node} is the last node of {}\nend the cluster with `replcluster down`",
            context.config.name
        )));
    }
    if left < min_in_sync {
        return Err(Failure::usage(format!(
            "{left} nodes would be left, and min_in_sync is {min_in_sync}\nlower it in cluster.toml first"
        )));
    }
    if let Some(why) = found.why_unconfirmed() {
        let message =
            format!("it cannot be known who leads: {why}\ntry again when `replcluster status` knows");
        return Err(Failure::new(Exit::Unavailable, message));
    }
    let Some(leader) = found.sum.leader.clone() else {
        let message = format!(
            "no node leads, so nobody can take {node} out\nstart the cluster with `replcluster up` first"
        );
        let held = found.nodes.iter().any(|one| one.holder.is_some());
        return Err(match (found.running().is_empty(), held) {
            (true, true) => found.nothing_to_change(context),
            (true, false) => Failure::new(Exit::NotRunning, message),
            (false, _) => Failure::new(Exit::Failed, message),
        });
    };
    if verb.purge {
        let directory = context.layout.node(&node);
        confirm(&format!("delete the copy of the data in {}?", directory.display()), verb.yes)?;
    }
    // Known before anything is done: a node that is out and still listed would be started again.
    let editor = editor(context).await?;
    let mut supervisor = context.ensure_supervisor().await?;
    let event = found.command("remove".to_owned(), std::slice::from_ref(&node));
    context.note(Some(&mut supervisor), event).await;
    let through = out_of_the_cluster(context, &found, &mut supervisor, &node, leader).await?;
    editor
        .remove_nodes(std::slice::from_ref(&node))
        .map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    drop(editor);
    context.reload()?;
    ask(&mut supervisor, &Request::Reload).await?;
    ask(&mut supervisor, &Request::Forget { nodes: vec![node.to_string()] }).await?;
    if verb.purge {
        let directory = context.layout.node(&node);
        match std::fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                let message = format!("cannot delete {}: {error}\ndelete it by hand", directory.display());
                return Err(Failure::new(Exit::Failed, message));
            }
            Ok(()) | Err(_) => {}
        }
    }
    say(&format!("{node} is out of the cluster (asked {through}) and of {}", context.config.path.display()));
    status::print_table(context, &status::after_change(context).await?);
    Ok(Exit::Done)
}

/// How long another command may take that changes the configuration: about as long as a node may take to leave.
const EDIT_PATIENCE: Duration = Duration::from_secs(20);

/// The right to change the configuration, once nobody else has it.
///
/// # Errors
/// Where it cannot be changed, or another command does not end.
pub(super) async fn editor(context: &Context) -> Result<Editor, Failure> {
    let deadline = clock::now() + EDIT_PATIENCE;
    let mut told = false;
    loop {
        match Editor::open(&context.config.path) {
            Ok(editor) => return Ok(editor),
            Err(busy @ EditError::Busy(_)) => {
                if clock::now() >= deadline {
                    return Err(Failure::new(Exit::Conflict, busy.to_string()));
                }
                if context.interrupt.is_cancelled() {
                    return Err(Failure::new(Exit::Interrupted, "interrupted: nothing was done"));
                }
                if !told {
                    say(&format!(
                        "waiting for another command that is changing {}",
                        context.config.path.display()
                    ));
                    told = true;
                }
            }
            Err(error) => return Err(Failure::new(Exit::Failed, error.to_string())),
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Takes a node out of the view and ends it; gives back who was asked.
///
/// # Errors
/// Where it is the only copy, or nobody can take it out, or it does not end.
pub(super) async fn out_of_the_cluster(
    context: &Context,
    found: &Survey,
    supervisor: &mut Conversation,
    node: &NodeId,
    leader: NodeId,
) -> Result<NodeId, Failure> {
    let through = leave_view(context, found, node, leader).await?;
    // One that was written into the configuration and never started.
    if !down::known(supervisor).await?.contains(node) {
        return Ok(through);
    }
    let patience_ms = u64::try_from(PATIENCE.as_millis()).unwrap_or(u64::MAX);
    let ordered =
        ask_nodes(supervisor, &Request::Stop { nodes: vec![node.to_string()], patience_ms }).await?;
    wait::ended_all(supervisor, &ordered, PATIENCE + Duration::from_secs(5)).await?;
    Ok(through)
}

/// Takes the node out of the view. The leader hands over first, if it is the one to go.
async fn leave_view(
    context: &Context,
    found: &Survey,
    node: &NodeId,
    leader: NodeId,
) -> Result<NodeId, Failure> {
    let through = if leader == *node {
        let successor = found.sum.in_sync.iter().find(|other| *other != node).ok_or_else(|| {
            let message = format!("{node} is the only node in sync: its data would be lost\nstart another one and wait until it is in sync");
            Failure::new(Exit::Failed, message)
        })?;
        wait::lead(context, successor).await?;
        successor.clone()
    } else {
        leader
    };
    let removed = match context.asker.remove(&through, node, PATIENCE).await {
        // It was taken out before, by a command that did not come to its end.
        Err(error) if error.is_not_found() => Ok(0),
        result => result,
    };
    removed.map_err(|error| {
        let message = format!(
            "{node} is still in the cluster: {error}\ntry again when `replcluster status` is healthy"
        );
        Failure::new(Exit::Failed, message).with_node_log(&context.layout, &through)
    })?;
    Ok(through)
}
