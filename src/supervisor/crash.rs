//! Deaths on order, for the tests that kill a supervisor at every step of what it does. Only in builds with debug
//! assertions: a released supervisor has no such switch.

/// Names a file with a number: so many steps from now the supervisor is killed, as by SIGKILL from outside.
#[cfg(debug_assertions)]
const VARIABLE: &str = "REPLCLUSTER_SUPERVISOR_DIES";

/// A step: something that a reader of the cluster's directory, or a process, can tell from its not having happened.
#[cfg(debug_assertions)]
pub(super) fn step(name: &str) {
    let Some(path) = std::env::var_os(VARIABLE) else { return };
    // Whoever takes the file away has it whole: from then on nobody dies.
    let path = std::path::PathBuf::from(path);
    let taken = path.with_extension("taken");
    if std::fs::rename(&path, &taken).is_err() {
        return;
    }
    let text = std::fs::read_to_string(&taken).unwrap_or_default();
    let (left, dies) = match text.trim().parse::<u64>() {
        Ok(left) if left > 1 => ((left - 1).to_string(), false),
        Ok(_) => (format!("died at {name}"), true),
        Err(_) => (text, false),
    };
    let _ = std::fs::write(&taken, left);
    let _ = std::fs::rename(&taken, &path);
    if dies {
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
    }
}

#[cfg(not(debug_assertions))]
pub(super) fn step(_: &str) {}
