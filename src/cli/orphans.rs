//! The first process of a container inherits every process there whose parent has ended, and has to collect them when
//! they end too: nobody else can. Elsewhere this has nothing to do.

use std::collections::BTreeSet;
use std::time::Duration;

use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::supervisor::os;

/// How often it is looked for ended processes, and for how long one of ours may wait for whoever started it.
const INTERVAL: Duration = Duration::from_secs(1);

/// Collects them for ever, where this is the first process.
pub(super) async fn collect() {
    if std::process::id() != 1 {
        std::future::pending::<()>().await;
    }
    let mut before = BTreeSet::new();
    loop {
        tokio::time::sleep(INTERVAL).await;
        before = collect_once(&before);
    }
}

/// Collects what has ended if it had ended when this was called `before` as well: a thread waits for each process that
/// was started here and collects it at once. Says what has ended since.
fn collect_once(before: &BTreeSet<u32>) -> BTreeSet<u32> {
    let (old, new): (BTreeSet<u32>, BTreeSet<u32>) =
        os::ended_children().into_iter().partition(|pid| before.contains(pid));
    for pid in old {
        tracing::debug!(pid, "collected a process without a parent");
        // Whoever else collected it at this very moment did what was to be done.
        let pid = i32::try_from(pid).map(Pid::from_raw);
        let _ = pid.map(|pid| waitpid(pid, Some(WaitPidFlag::WNOHANG)));
    }
    new
}
