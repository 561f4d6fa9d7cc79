//! The runs of the load by name: a name says which process they are of, so that whoever finds keys of one knows whether
//! it is over, and never disturbs one that is under way.

use crate::client::probe;
use crate::supervisor::os;

/// How much of the boot's id stands in a name.
const BOOT_DIGITS: usize = 8;

/// A name that no other run has.
pub(super) fn name() -> String {
    let random = rand::random::<u32>();
    match os::identify(std::process::id()) {
        Ok(id) => format!("{}-{}-{}-{random:08x}", id.pid, id.start_time, boot(&id.boot_id)),
        // Nobody can tell that such a run goes on: the next one may take its keys away, which costs it its verdict.
        Err(_) => format!("{random:08x}"),
    }
}

fn boot(id: &str) -> &str {
    id.get(..BOOT_DIGITS).unwrap_or(id)
}

/// True unless the process that the run is of lives.
fn is_over(name: &str) -> bool {
    let mut parts = name.split('-');
    let mut number = || parts.next()?.parse::<u64>().ok();
    let (Some(pid), Some(start_time)) = (number(), number()) else { return true };
    let Ok(pid) = u32::try_from(pid) else { return true };
    let lives = |now: os::ProcessId| now.start_time == start_time && Some(boot(&now.boot_id)) == parts.next();
    !os::identify(pid).is_ok_and(lives)
}

/// Removes the keys that earlier loads could not remove themselves. What cannot be removed now stays for the next time.
pub(in super::super) async fn sweep(endpoints: &[String]) {
    match probe::sweep(endpoints, is_over).await {
        Ok(0) => {}
        Ok(removed) => tracing::info!(removed, "removed keys of earlier loads"),
        Err(error) => tracing::info!(%error, "cannot look for keys of earlier loads"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_over_when_its_process_is() {
        assert!(!is_over(&name()), "this one lives");
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let id = os::identify(child.id()).unwrap();
        let of_child = format!("{}-{}-{}-0", id.pid, id.start_time, boot(&id.boot_id));
        assert!(!is_over(&of_child));
        for other in [
            format!("{}-{}-{}-0", id.pid, id.start_time + 1, boot(&id.boot_id)),
            format!("{}-{}-00000000-0", id.pid, id.start_time),
            "0123456789abcdef".to_owned(),
            "up-7".to_owned(),
            String::new(),
        ] {
            assert!(is_over(&other), "{other}");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(is_over(&of_child));
    }
}
