//! The first process of a container inherits every process there whose parent has ended, and has to collect them when
//! they end too: nobody else can. Elsewhere this has nothing to do.

use std::time::Duration;

use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

/// How often it is looked for ended processes, and for how long one of ours may wait for whoever started it.
const INTERVAL: Duration = Duration::from_secs(1);

/// Collects them for ever, where this is the first process.
pub(super) async fn collect() {
    if std::process::id() != 1 {
        std::future::pending::<()>().await;
    }
    let mut before = None;
    loop {
        tokio::time::sleep(INTERVAL).await;
        before = collect_once(before);
    }
}

/// Collects what has ended if it had ended when this was called `before` as well: a thread waits for each process that
/// was started here and collects it at once. Says what has ended since.
fn collect_once(mut before: Option<Pid>) -> Option<Pid> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    loop {
        // Without children it is an error, which says as much as that none has ended.
        let ended = waitid(Id::All, flags).ok().as_ref().and_then(WaitStatus::pid)?;
        if before.take() != Some(ended) {
            return Some(ended);
        }
        tracing::debug!(pid = ended.as_raw(), "collected a process without a parent");
        // Whoever else collected it at this very moment did what was to be done.
        let _ = waitpid(ended, Some(WaitPidFlag::WNOHANG));
    }
}
