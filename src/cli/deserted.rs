//! Processes of a cluster whose directory was deleted while they ran. They serve from files that nobody will ever read
//! again and hold the addresses, so `down` ends them and `up` does so before it begins anew. The supervisor of the
//! deleted directory ends by itself; until then it might start them again, so it goes first.

use std::time::Duration;

use crate::clock;
use crate::control::life::{SIGCONT, SIGKILL};
use crate::supervisor::os::{self, Handle, ProcessId};
use crate::view::NodeId;

use super::context::{Context, POLL_INTERVAL};
use super::exit::{Exit, Failure};
use super::survey::Survey;
use super::wait::say;

/// How long a supervisor may take to notice that its directory is gone.
const SUPERVISOR_PATIENCE: Duration = Duration::from_secs(3);
/// How long a killed process may take to end.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// Ends them, within `patience` gracefully, and says which nodes they were.
///
/// # Errors
/// What did not end, with its process.
pub(super) async fn end(
    context: &Context,
    found: &Survey,
    patience: Duration,
) -> Result<Vec<NodeId>, Failure> {
    let processes = found.deserted();
    if processes.is_empty() {
        return Ok(Vec::new());
    }
    for id in supervisors(context) {
        end_one("the supervisor", &id, None, SUPERVISOR_PATIENCE).await?;
    }
    let mut ended = Vec::new();
    for (node, id) in processes {
        say(&format!(
            "end {node} (pid {}), whose directory was deleted while it ran: its data is gone",
            id.pid
        ));
        end_one(node.as_str(), &id, Some(nix::libc::SIGTERM), patience).await?;
        ended.push(node);
    }
    Ok(ended)
}

/// The supervisors of this configuration whose directory was deleted.
fn supervisors(context: &Context) -> Vec<ProcessId> {
    let path = context.config.path.to_string_lossy();
    os::with_argument("--config", &path)
        .into_iter()
        .filter_map(|pid| os::identify(pid).ok())
        .filter(|id| os::argument(id.pid, "supervise").is_some())
        .filter(|id| os::has_deleted(id.pid, context.layout.root()) && os::is_alive(id))
        .collect()
}

async fn end_one(name: &str, id: &ProcessId, signal: Option<i32>, patience: Duration) -> Result<(), Failure> {
    let failed = |why: String| {
        let message = format!(
            "cannot end {name} (pid {}): {why}\nend that process by hand: kill -9 {}",
            id.pid, id.pid
        );
        Failure::new(Exit::Failed, message)
    };
    let Some(handle) = Handle::open(id).map_err(|error| failed(error.to_string()))? else { return Ok(()) };
    // It may be frozen.
    for signal in signal.into_iter().chain([SIGCONT]) {
        handle.signal(signal).map_err(|error| failed(error.to_string()))?;
    }
    if gone(id, patience).await {
        return Ok(());
    }
    handle.signal(SIGKILL).map_err(|error| failed(error.to_string()))?;
    if gone(id, KILL_PATIENCE).await { Ok(()) } else { Err(failed("it does not end".to_owned())) }
}

async fn gone(id: &ProcessId, patience: Duration) -> bool {
    let deadline = clock::now() + patience;
    while os::is_alive(id) {
        if clock::now() >= deadline {
            return false;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    true
}
