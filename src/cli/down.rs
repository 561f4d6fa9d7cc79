//! `down`: followers first, then the leader, then the supervisor. Data stays unless it is asked to go.

use std::io;
use std::time::Duration;

use clap::Args;

use crate::clock;
use crate::config::parse_duration;
use crate::control::life::SIGKILL;
use crate::control::plan::{self, Step};
use crate::supervisor::events;
use crate::supervisor::lock::{self, Lock, LockError};
use crate::supervisor::socket::Conversation;
use crate::supervisor::wire::{Reply, Request};
use crate::view::NodeId;

use super::context::{Context, POLL_INTERVAL, ask, ask_nodes, confirm, list, names};
use super::deserted;
use super::exit::{Exit, Failure, Outcome};
use super::holder::Holder;
use super::survey::{self, Supervision};
use super::wait::{self, say};

/// How long a node may take to end gracefully before it is killed.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(super) struct Down {
    /// SIGKILL every node instead of asking it
    #[arg(long)]
    now: bool,
    /// Delete the cluster's data, logs and history as well
    #[arg(long)]
    purge: bool,
    /// Do not ask before deleting
    #[arg(long)]
    yes: bool,
    /// How long a node may take to end before it is killed
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    timeout: Duration,
}

pub(super) async fn run(verb: &Down, context: &Context) -> Outcome {
    if verb.purge {
        let root = context.layout.root();
        confirm(&format!("delete all data of {} in {}?", context.config.name, root.display()), verb.yes)?;
    }
    let found = survey::survey(context).await?;
    let deserted =
        deserted::end(context, &found, if verb.now { Duration::ZERO } else { verb.timeout }).await?;
    let ended = end_all(context, verb.now, verb.timeout).await?;
    if verb.purge {
        if purge(context)? || !deserted.is_empty() {
            anstream::println!("deleted the data of {}", context.config.name);
        } else {
            anstream::println!("there was nothing of {} to delete", context.config.name);
        }
    } else if ended.is_empty() && !deserted.is_empty() {
        anstream::println!(
            "ended {}; the data had been deleted while it ran\nnext: replcluster up",
            list(&deserted)
        );
    } else if ended.is_empty() {
        anstream::println!("nothing of {} was running", context.config.name);
    } else {
        anstream::println!("ended {}; the data stays\nnext: replcluster up", list(&ended));
    }
    Ok(Exit::Done)
}

/// Ends every node and the supervisor, and says which nodes ran.
///
/// # Errors
/// What did not end.
pub(super) async fn end_all(
    context: &Context,
    now: bool,
    patience: Duration,
) -> Result<Vec<NodeId>, Failure> {
    let found = survey::survey(context).await?;
    let running = found.running();
    let stray: Vec<String> = found
        .nodes
        .iter()
        .filter(|one| one.runs() && one.process.is_none())
        .map(|one| one.node.to_string())
        .collect();
    if !stray.is_empty() {
        say(&format!("{} was not started by this supervisor and is left running", stray.join(", ")));
    }
    for one in &found.nodes {
        if let Some(holder @ Holder::Foreign { .. }) = &one.holder {
            say(&format!("{}, which is left running", holder.sentence(&one.node)));
        }
    }
    let mut mine: Vec<NodeId> =
        running.iter().filter(|node| !stray.contains(&node.to_string())).cloned().collect();
    // Edited out of the configuration while they ran: nobody else would ever end them.
    mine.extend(found.unlisted_running.iter().cloned());
    if mine.is_empty() && found.supervisor == Supervision::Dead {
        return Ok(mine);
    }
    // Without a supervisor one is started for the purpose: it takes over what lives and ends it by the same rules.
    let mut supervisor = context.ensure_supervisor().await?;
    let command = if now { "down --now" } else { "down" }.to_owned();
    let event = found.command(command, &mine);
    context.note(Some(&mut supervisor), event).await;
    // Nodes that wait for a restart have no process: they are told to stay down as well.
    let patience_ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
    for step in plan::down(&mine, found.sum.leader.as_ref(), now) {
        match step {
            Step::Kill(nodes) => {
                let request = Request::Kill {
                    nodes: names(&nodes),
                    signal: SIGKILL,
                    fault: events::new_id(),
                    only: vec![],
                    even_last: true,
                };
                let ordered = ask_nodes(&mut supervisor, &request).await?;
                wait::ended_all(&mut supervisor, &ordered, patience).await?;
            }
            Step::Stop(nodes) => {
                say(&format!("stop {}", list(&nodes)));
                let request = Request::Stop { nodes: names(&nodes), patience_ms };
                let ordered = ask_nodes(&mut supervisor, &request).await?;
                wait::ended_all(&mut supervisor, &ordered, patience + Duration::from_secs(5)).await?;
            }
            Step::EndSupervisor => {
                let all = known(&mut supervisor).await?;
                let request = Request::Stop { nodes: names(&all), patience_ms };
                let ordered = ask_nodes(&mut supervisor, &request).await?;
                wait::ended_all(&mut supervisor, &ordered, patience + Duration::from_secs(5)).await?;
                end_supervisor(context, &mut supervisor).await?;
            }
            Step::StartSupervisor
            | Step::Keep { .. }
            | Step::Resume { .. }
            | Step::Spawn { .. }
            | Step::AwaitInSync(_)
            | Step::Lead(_)
            | Step::ConfirmWrite
            | Step::Restart { .. }
            | Step::TakeOut(_) => {}
        }
    }
    Ok(mine)
}

/// The nodes that the supervisor knows; the configuration may list others since it was read.
///
/// # Errors
/// Where it does not say.
pub(super) async fn known(supervisor: &mut Conversation) -> Result<Vec<NodeId>, Failure> {
    match ask(supervisor, &Request::Snapshot).await? {
        Reply::Snapshot { record } => {
            Ok(record.nodes.keys().filter_map(|name| NodeId::parse(name).ok()).collect())
        }
        Reply::Outcomes { .. } | Reply::Done | Reply::Refused { .. } => Ok(Vec::new()),
    }
}

async fn end_supervisor(context: &Context, supervisor: &mut Conversation) -> Result<(), Failure> {
    let holder = lock::holding(&context.layout.lock());
    // It may be gone before its answer arrives.
    let _ = ask(supervisor, &Request::Quit).await;
    // In the foreground it is this very process.
    let Some(holder) = holder.filter(|id| id.pid != std::process::id()) else { return Ok(()) };
    let deadline = clock::now() + PATIENCE;
    while crate::supervisor::os::is_alive(&holder) {
        if clock::now() >= deadline {
            let message = format!(
                "the supervisor (pid {}) does not end\nend that process: no node runs any more",
                holder.pid
            );
            return Err(Failure::new(Exit::TimedOut, message).with_log(context.layout.supervisor_log()));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

/// Deletes what the cluster made and nothing else: its directory may be one that holds more. `false` where there was
/// nothing.
fn purge(context: &Context) -> Result<bool, Failure> {
    let layout = &context.layout;
    let root = layout.root();
    let failed = |path: std::path::PathBuf| {
        move |error: io::Error| {
            let message = format!("cannot delete {}: {error}\ndelete it by hand", path.display());
            Failure::new(Exit::Failed, message)
        }
    };
    let mut found = false;
    let mut missing_is_fine = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(()) => {
            found = true;
            Ok(())
        }
        other @ Err(_) => other,
    };
    // No supervisor may begin in what is being deleted; the lock itself goes last.
    let conflict = |error: LockError| Failure::new(Exit::Conflict, error.to_string());
    let _lock =
        if root.exists() { Some(Lock::take_briefly(&layout.lock()).map_err(conflict)?) } else { None };
    for directory in [layout.register(), root.join("nodes")] {
        missing_is_fine(std::fs::remove_dir_all(&directory)).map_err(failed(directory))?;
    }
    let files = [layout.socket(), layout.supervisor_log(), layout.state(), events::begun(&layout.events())];
    for file in events::files(&layout.events()).chain(files) {
        missing_is_fine(std::fs::remove_file(&file)).map_err(failed(file))?;
    }
    // The lock may have been made just now.
    match std::fs::remove_file(layout.lock()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(layout.lock())(error)),
        Ok(()) | Err(_) => {}
    }
    match std::fs::remove_dir(root) {
        Ok(()) => Ok(found),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
            Ok(found)
        }
        Err(error) => Err(failed(root.to_owned())(error)),
    }
}
