//! The cluster that is tortured: real `replserver` processes in a directory of their own, started, stopped, killed and
//! started again by process id, and gone when this value is.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use futures_util::future::join_all;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::TortureFailure;
use crate::cli::exit::last_lines;
use crate::cli::scratch::free_addresses;
use crate::client::Link;
use crate::proto::replcluster::node_client::NodeClient;
use crate::proto::replcluster::{DescribeRequest, DescribeResponse};
use crate::supervisor::spawn;

/// How long one question about a node's state may take.
const ASK: Duration = Duration::from_secs(1);

/// A cluster whose nodes may be down.
#[derive(Debug)]
pub(super) struct Cluster {
    program: PathBuf,
    dir: PathBuf,
    /// Given to every node.
    flags: Vec<String>,
    /// In the order of their addresses: the first one leads where it can.
    nodes: Vec<Node>,
}

#[derive(Debug)]
struct Node {
    address: String,
    link: Link,
    child: Option<Child>,
}

impl Cluster {
    /// Starts `count` nodes.
    pub(super) fn start(dir: PathBuf, count: usize, flags: Vec<String>) -> Result<Cluster, TortureFailure> {
        std::fs::create_dir_all(&dir).map_err(|error| TortureFailure::Directory(dir.clone(), error))?;
        let mut addresses =
            free_addresses(count).map_err(|error| TortureFailure::Directory(dir.clone(), error))?;
        addresses.sort_unstable();
        let nodes = addresses.into_iter().map(|address| {
            let link = Link::new(&address, ASK)?;
            Ok(Node { address, link, child: None })
        });
        let nodes = nodes.collect::<Result<_, TortureFailure>>()?;
        let mut cluster = Cluster { program: spawn::find_server()?, dir, flags, nodes };
        for position in 0..count {
            cluster.spawn(position, position > 0)?;
        }
        Ok(cluster)
    }

    /// How many nodes there are, running or not.
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// All addresses.
    pub(super) fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.address.clone()).collect()
    }

    /// The address of one node.
    pub(super) fn address(&self, position: usize) -> &str {
        &self.nodes[position].address
    }

    /// Sends a signal to a running node and does not wait.
    pub(super) fn signal(&self, position: usize, signal: Signal) -> Result<(), TortureFailure> {
        let node = &self.nodes[position];
        let Some(child) = &node.child else { return Ok(()) };
        // It is our child and has not been waited for, so that nobody else can have its number.
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("the kernel gave it"));
        kill(pid, signal).map_err(|error| TortureFailure::Signal(node.address.clone(), error))
    }

    /// Waits until a node that was killed is gone.
    pub(super) fn reap(&mut self, position: usize) -> Result<(), TortureFailure> {
        if let Some(mut child) = self.nodes[position].child.take() {
            child.wait().map_err(|error| TortureFailure::Spawn(self.program.clone(), error))?;
        }
        Ok(())
    }

    /// Starts a node on the data it has.
    pub(super) fn restart(&mut self, position: usize) -> Result<(), TortureFailure> {
        self.spawn(position, true)
    }

    /// A node that has ended without being told to.
    pub(super) fn ended_by_itself(&mut self) -> Option<(String, ExitStatus)> {
        self.nodes.iter_mut().find_map(|node| {
            let status = node.child.as_mut()?.try_wait().ok()??;
            Some((node.address.clone(), status))
        })
    }

    /// The process id of a running node.
    pub(super) fn pid(&self, position: usize) -> Option<Pid> {
        let child = self.nodes[position].child.as_ref()?;
        i32::try_from(child.id()).ok().map(Pid::from_raw)
    }

    /// The nodes that have ended without being told to; they count as down from now on.
    pub(super) fn take_ended(&mut self) -> Vec<usize> {
        let has_ended = |node: &mut Node| {
            let ended = node.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(Some(_))));
            node.child.take_if(|_| ended).is_some()
        };
        self.nodes.iter_mut().enumerate().filter_map(|(at, node)| has_ended(node).then_some(at)).collect()
    }

    /// The directory of the register.
    pub(super) fn register(&self) -> PathBuf {
        self.dir.join("register")
    }

    /// Copies the logs to where they outlive the cluster's disk. What cannot be copied is left out.
    pub(super) fn save_logs(&self, from: &Path, to: &Path) {
        for node in &self.nodes {
            let log = self.log(&node.address);
            if let (true, Some(name)) = (log.starts_with(from), log.file_name()) {
                let _ = std::fs::copy(&log, to.join(name));
            }
        }
    }

    /// What each running node says of itself; those that do not answer are left out.
    pub(super) async fn descriptions(&self) -> Vec<DescribeResponse> {
        let running = self.nodes.iter().filter(|node| node.child.is_some());
        join_all(running.map(|node| describe(&node.link))).await.into_iter().flatten().collect()
    }

    /// The end of a node's log.
    pub(super) fn last_lines(&self, address: &str) -> String {
        last_lines(&self.log(address), 10).join("\n")
    }

    fn spawn(&mut self, position: usize, joins: bool) -> Result<(), TortureFailure> {
        let address = &self.nodes[position].address;
        let mut command = Command::new(&self.program);
        command.args(["--address", address, "--cluster", "torture"]);
        command.arg("--data-dir").arg(self.dir.join(format!("{}-data", address.replace(':', "_"))));
        command.arg("--register").arg(format!("file:{}", self.register().display()));
        if joins {
            let others = self.nodes.iter().map(|node| node.address.as_str()).filter(|other| other != address);
            command.arg("--join").arg(others.collect::<Vec<_>>().join(","));
        }
        command.args(&self.flags);
        let path = self.log(address);
        let opened = File::options().create(true).append(true).open(&path);
        let logs = opened.and_then(|log| Ok((log.try_clone()?, log)));
        let (log, error_log) = logs.map_err(|error| TortureFailure::Directory(path, error))?;
        // Own process group: a Ctrl-C on the terminal reaches this program alone, which then ends its children.
        command.stdin(Stdio::null()).stdout(log).stderr(error_log).process_group(0);
        // However this program ends. Servers are started on its main thread, which lives as long as it does.
        spawn::die_with_parent(&mut command);
        let child = command.spawn().map_err(|error| TortureFailure::Spawn(self.program.clone(), error))?;
        self.nodes[position].child = Some(child);
        Ok(())
    }

    fn log(&self, address: &str) -> PathBuf {
        self.dir.join(format!("{}.log", address.replace(':', "_")))
    }

    /// Who leads, where all running nodes serve, are in sync, and agree; no other node may be in sync.
    pub(super) async fn agreed_leader(&self) -> Option<usize> {
        let running: Vec<&Node> = self.nodes.iter().filter(|node| node.child.is_some()).collect();
        let answers: Option<Vec<DescribeResponse>> =
            join_all(running.iter().map(|node| describe(&node.link))).await.into_iter().collect();
        let answers = answers?;
        let first = answers.first()?;
        let agreed = answers.iter().all(|answer| {
            let same = answer.epoch == first.epoch && answer.leader == first.leader;
            same && answer.ready && answer.in_sync.len() == running.len()
        });
        self.nodes.iter().position(|node| agreed && node.address == first.leader)
    }
}

async fn describe(link: &Link) -> Option<DescribeResponse> {
    let mut node = NodeClient::new(link.channel());
    let answer = tokio::time::timeout(ASK, node.describe(DescribeRequest {})).await;
    Some(answer.ok()?.ok()?.into_inner())
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.nodes.iter_mut().filter_map(|node| node.child.as_mut()) {
            // It may have ended by itself; then there is nothing to end.
            let _ = child.kill();
        }
        for child in self.nodes.iter_mut().filter_map(|node| node.child.as_mut()) {
            let _ = child.wait();
        }
    }
}
