//! Deaths on order, for the tests that kill a supervisor at every step of what it does. Only in builds with debug
//! assertions: a released supervisor has no such switch.

/// Names a file with a number: so many steps from now the supervisor is killed, as by SIGKILL from outside.
#[cfg(debug_assertions)]
const VARIABLE: &str = "REPLCLUSTER_SUPERVISOR_DIES";

/// A step: something that a reader of the cluster's directory, or a process, can tell from its not having happened.
#[cfg(debug_assertions)]
pub(super) fn step(name: &str) {
    let Some(path) = std::env::var_os(VARIABLE) else { return };
    let Some(left) = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<u64>().ok())
    else {
        return;
    };
    if left > 1 {
        let _ = std::fs::write(&path, (left - 1).to_string());
        return;
    }
    let _ = std::fs::write(&path, format!("died at {name}"));
    let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
}

#[cfg(not(debug_assertions))]
pub(super) fn step(_: &str) {}
