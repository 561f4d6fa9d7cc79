//! Which processes of a cluster live, though nobody supervises them. A process is taken for a node's only where the
//! kernel says that it is the very process that was remembered and that it uses the node's directory, and the node
//! itself, if it answers, does not object. What is remembered alone would not do: a directory that was copied with
//! all that it remembers is another cluster, whose processes are still to be started.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::proto::replcluster::DescribeResponse;
use crate::view::NodeId;

use super::ask::Asker;
use super::layout::Layout;
use super::os::{self, Handle, ProcessId};
use super::record::Record;
use super::spawn;

/// How long a node may take to say who it is. A frozen one never does.
const PATIENCE: Duration = Duration::from_millis(300);

/// A living process of a node.
#[derive(Debug)]
pub struct Survivor {
    /// To signal it.
    pub handle: Handle,
    /// What it was given when it was started; empty where only the node's own lock names it.
    pub nonce: String,
    /// It is frozen.
    pub paused: bool,
    /// What it says of itself, where it answered.
    pub answer: Option<DescribeResponse>,
}

/// What a node writes into its lock file in the register.
#[derive(Debug, Deserialize)]
struct NodeLock {
    pid: u32,
    start_time: u64,
    boot_id: String,
}

/// Finds the living processes of these nodes. Reads and asks; changes nothing.
pub async fn survivors(
    layout: &Layout,
    record: &Record,
    nodes: &[NodeId],
    asker: &Asker,
) -> BTreeMap<NodeId, Survivor> {
    let candidates: Vec<Candidate> =
        nodes.iter().filter_map(|node| candidate(layout, record, node)).collect();
    let confirmed = candidates.into_iter().map(|candidate| confirm(candidate, asker));
    futures_util::future::join_all(confirmed).await.into_iter().flatten().collect()
}

struct Candidate {
    node: NodeId,
    handle: Handle,
    nonce: String,
    paused: bool,
}

/// The living process of a node, as remembered or as its own lock names it.
#[must_use]
pub fn living(layout: &Layout, record: &Record, node: &NodeId) -> Option<ProcessId> {
    let of_node = record.nodes.get(node.as_str());
    let remembered = of_node.and_then(|node| node.process.clone());
    let is_nodes = |id: &ProcessId| os::is_alive(id) && uses(layout, node, id);
    // A process that was being started and whose number nobody noted is known by what it was given.
    let unnoted = || {
        let nonce = of_node.filter(|node| node.process.is_none()).map(|node| node.nonce.as_str())?;
        let pids = if nonce.is_empty() { Vec::new() } else { os::with_argument(spawn::NONCE_FLAG, nonce) };
        pids.into_iter().filter_map(|pid| os::identify(pid).ok()).find(is_nodes)
    };
    remembered.filter(is_nodes).or_else(|| locked_by(layout, node).filter(is_nodes)).or_else(unnoted)
}

/// True where this process works in this node's directory. By the files that it has open: those move with the directory,
/// and a copy of the directory has others. The name that it was given at its start tells neither.
#[must_use]
pub fn uses(layout: &Layout, node: &NodeId, id: &ProcessId) -> bool {
    os::has_open(id.pid, &layout.node(node), &layout.stderr(node)).unwrap_or_else(|_| {
        // Its files are not ours to see; what it was given is.
        data_dir(id.pid).is_some_and(|given| os::is_same_file(&given, &layout.data(node)))
    })
}

/// The data directory that a process was given on its command line, where that can be read.
#[must_use]
pub fn data_dir(pid: u32) -> Option<PathBuf> {
    let directory = PathBuf::from(os::argument(pid, spawn::DATA_DIR_FLAG)?);
    if directory.is_absolute() {
        return Some(directory);
    }
    Some(std::fs::read_link(format!("/proc/{pid}/cwd")).ok()?.join(directory))
}

/// The process remembered for a node, or else the one that the node's own lock names: the supervisor may have died
/// between starting a process and remembering it.
fn candidate(layout: &Layout, record: &Record, node: &NodeId) -> Option<Candidate> {
    let remembered = record.nodes.get(node.as_str());
    let nonce = remembered.map(|node| node.nonce.clone()).unwrap_or_default();
    let id = living(layout, record, node)?;
    let handle = Handle::open(&id).ok()??;
    let paused = os::stat(id.pid).is_ok_and(|stat| stat.is_frozen());
    Some(Candidate { node: node.clone(), handle, nonce, paused })
}

fn locked_by(layout: &Layout, node: &NodeId) -> Option<ProcessId> {
    let lock: NodeLock = serde_json::from_slice(&std::fs::read(layout.node_lock(node)).ok()?).ok()?;
    Some(ProcessId { pid: lock.pid, start_time: lock.start_time, boot_id: lock.boot_id })
}

async fn confirm(candidate: Candidate, asker: &Asker) -> Option<(NodeId, Survivor)> {
    let Candidate { node, handle, nonce, paused } = candidate;
    let answer = if paused { None } else { asker.describe(&node, PATIENCE).await.ok() };
    if let Some(answer) = &answer
        && !matches(answer, &handle.id, &nonce)
    {
        tracing::warn!(%node, pid = handle.id.pid, answered = answer.pid, "another process answers: not taken over");
        return None;
    }
    Some((node, Survivor { handle, nonce, paused, answer }))
}

/// True where an answer can come from this process.
#[must_use]
pub fn matches(answer: &DescribeResponse, id: &ProcessId, nonce: &str) -> bool {
    answer.pid == id.pid && (nonce.is_empty() || answer.nonce.is_empty() || answer.nonce == nonce)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::super::record::NodeRecord;
    use super::*;

    struct Scene {
        directory: tempfile::TempDir,
        layout: Layout,
        node: NodeId,
        child: Child,
        id: ProcessId,
    }

    impl Scene {
        fn new() -> Scene {
            let directory = tempfile::tempdir().unwrap();
            let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let text = format!("nodes = [\"{port}\"]");
            let path = directory.path().join("cluster.toml");
            let config = crate::config::parse(&path, &text, &crate::config::resolve).unwrap();
            let (layout, node) = (Layout::new(&config), config.nodes[0].clone());
            let output = spawn::append(&layout.stderr(&node)).unwrap();
            let child = Command::new("sleep").arg("1000").stdout(output).spawn().unwrap();
            let id = os::identify(child.id()).unwrap();
            Scene { layout, node, directory, child, id }
        }

        /// The same nodes in another directory, with a record and a lock of the first.
        fn elsewhere(&self, name: &str) -> Layout {
            let path = self.directory.path().join(name).join("cluster.toml");
            let text = format!("nodes = [\"{}\"]", self.node);
            let config = crate::config::parse(&path, &text, &crate::config::resolve).unwrap();
            Layout::new(&config)
        }

        fn remembering(&self, id: ProcessId) -> Record {
            let node = NodeRecord { process: Some(id), nonce: "n".to_owned(), ..NodeRecord::default() };
            Record { nodes: BTreeMap::from([(self.node.to_string(), node)]), ..Record::default() }
        }

        fn found(&self, record: &Record) -> Option<(u32, bool)> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let nodes = [self.node.clone()];
                let found = survivors(&self.layout, record, &nodes, &Asker::new(&nodes)).await;
                found.get(&self.node).map(|survivor| (survivor.handle.id.pid, survivor.paused))
            })
        }

        fn write_lock(&self, id: &ProcessId) {
            let path = self.layout.node_lock(&self.node);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let text = serde_json::json!({"pid": id.pid, "start_time": id.start_time, "boot_id": id.boot_id,
                "address": self.node.as_str(), "data_dir": self.layout.data(&self.node)});
            std::fs::write(path, text.to_string()).unwrap();
        }
    }

    impl Drop for Scene {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    #[test]
    fn a_remembered_process_is_found_awake_and_frozen() {
        let scene = Scene::new();
        let record = scene.remembering(scene.id.clone());
        assert_eq!(scene.found(&record), Some((scene.id.pid, false)));
        Handle::open(&scene.id).unwrap().unwrap().signal(19).unwrap();
        while !os::stat(scene.id.pid).unwrap().is_frozen() {
            std::thread::yield_now();
        }
        assert_eq!(scene.found(&record), Some((scene.id.pid, true)));
    }

    #[test]
    fn a_number_that_is_somebody_elses_now_is_not_taken_over() {
        let scene = Scene::new();
        let earlier = ProcessId { start_time: scene.id.start_time - 1, ..scene.id.clone() };
        assert_eq!(scene.found(&scene.remembering(earlier)), None);
        let other_boot = ProcessId { boot_id: "earlier".to_owned(), ..scene.id.clone() };
        assert_eq!(scene.found(&scene.remembering(other_boot)), None);
    }

    #[test]
    fn a_process_nobody_remembers_is_found_by_its_own_lock_if_the_directory_is_ours() {
        let scene = Scene::new();
        assert_eq!(scene.found(&Record::default()), None);
        scene.write_lock(&scene.id);
        assert_eq!(scene.found(&Record::default()), Some((scene.id.pid, false)));
        let mut stranger = Command::new("sleep").arg("1000").spawn().unwrap();
        scene.write_lock(&os::identify(stranger.id()).unwrap());
        assert_eq!(scene.found(&Record::default()), None);
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }

    #[test]
    fn a_copied_directory_has_no_processes_and_a_moved_one_keeps_them() {
        let scene = Scene::new();
        scene.write_lock(&scene.id);
        let record = scene.remembering(scene.id.clone());
        let (moved, copied) = (scene.elsewhere("moved"), scene.elsewhere("copied"));
        let copy = |from: &Layout, to: &Layout| {
            std::fs::create_dir_all(to.root().parent().unwrap()).unwrap();
            let done = Command::new("cp").arg("-a").args([from.root(), to.root()]).status().unwrap();
            assert!(done.success());
        };
        copy(&scene.layout, &copied);
        assert_eq!(living(&copied, &record, &scene.node), None);
        assert_eq!(living(&scene.layout, &record, &scene.node), Some(scene.id.clone()));
        std::fs::create_dir_all(moved.root().parent().unwrap()).unwrap();
        std::fs::rename(scene.layout.root(), moved.root()).unwrap();
        assert_eq!(living(&moved, &record, &scene.node), Some(scene.id.clone()));
        // A copy that has the name which the process was given is a copy all the same.
        copy(&moved, &scene.layout);
        assert_eq!(living(&scene.layout, &record, &scene.node), None);
        assert_eq!(living(&moved, &record, &scene.node), Some(scene.id.clone()));
    }

    #[test]
    fn an_answer_of_another_process_or_another_start_does_not_match() {
        let id = ProcessId { pid: 7, start_time: 1, boot_id: "b".to_owned() };
        let answer = |pid, nonce: &str| DescribeResponse {
            pid,
            nonce: nonce.to_owned(),
            ..DescribeResponse::default()
        };
        assert!(matches(&answer(7, "n"), &id, "n"));
        assert!(matches(&answer(7, "n"), &id, ""));
        assert!(!matches(&answer(8, "n"), &id, "n"));
        assert!(!matches(&answer(7, "m"), &id, "n"));
    }
}
