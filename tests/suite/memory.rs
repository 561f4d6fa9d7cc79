//! A node that the system really kills for memory: it is put under a limit of its own, and written to until it is over
//! it. Needs the right to make a control group; where that is refused the test says so and claims nothing.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::Value;

use super::cli::Scene;
use super::cluster::PATIENCE;

/// Less than any node needs for a few requests.
const LIMIT_BYTES: &str = "4194304";

/// A control group that limits memory; gone with this value.
struct Limit(PathBuf);

impl Limit {
    /// `None`, loudly, where it is refused: of the first version of the interface, or of the second.
    fn new() -> Option<Limit> {
        let name = format!("replcluster-test-{}", std::process::id());
        for (root, limits) in [
            ("/sys/fs/cgroup/memory", ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]),
            ("/sys/fs/cgroup", ["memory.max", "memory.swap.max"]),
        ] {
            let group = Path::new(root).join(&name);
            if std::fs::create_dir(&group).is_ok() {
                let limit = Limit(group);
                if limits.iter().all(|limit_of| std::fs::metadata(limit.0.join(limit_of)).is_ok()) {
                    return Some(limit);
                }
            }
        }
        eprintln!("SKIPPED, NOTHING IS SHOWN: no control group for memory can be made");
        None
    }

    /// From now on the process, and what it takes from now on, is under the limit.
    fn hold(&self, pid: i64) {
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
        for name in ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.max", "memory.swap.max"]
        {
            let path = self.0.join(name);
            if path.exists() {
                let limit = if name == "memory.swap.max" { "0" } else { LIMIT_BYTES };
                // The second version kills at once where too much is in use already.
                std::fs::write(path, limit).unwrap();
            }
        }
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn a_node_killed_for_memory_is_said_to_have_died_of_it_and_runs_again() {
    let scene = Scene::new(2);
    let Some(limit) = Limit::new() else { return };
    scene.done(&["up"]);
    let victim = scene.address(1);
    limit.hold(scene.status()["nodes"][1]["pid"].as_i64().unwrap());
    let value = "v".repeat(100_000);
    let start = Instant::now();
    let ended = || {
        scene
            .done(&["events", "--json"])
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .find(|event| event["event"] == "exited" && event["node"] == victim.as_str())
    };
    let end = loop {
        if let Some(end) = ended() {
            break end;
        }
        assert!(start.elapsed() < PATIENCE, "it lives on under its limit");
        scene.done(&["client", "put", "much", &value]);
    };
    assert_eq!((&end["signal"], &end["cause"]), (&Value::from(9), &Value::from("out-of-memory")), "{end}");
    // The new process is not in the group: only the one that ended was put there.
    scene.done(&["up"]);
    assert_eq!(scene.status()["state"], "healthy");
}
