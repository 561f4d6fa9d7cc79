//! Three servers of one kind in a directory of their own, for as long as the benchmark runs: started, killed and
//! started again by process id, and gone when this value is.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;

use super::load::{cpu_time, wait_for};
use super::request::PREFIX;
use super::{BenchFailure, Fault};
use crate::cli::exit::last_lines;
use crate::cli::scratch::free_addresses;
use crate::client::{Client, ClientError, Link, Options};
use crate::clock;
use crate::proto::etcdserverpb as pb;
use crate::proto::replcluster::describe_response::Role;
use crate::proto::replcluster::node_client::NodeClient;
use crate::proto::replcluster::{DescribeRequest, DescribeResponse};
use crate::supervisor::os::is_frozen_whole;
use crate::supervisor::spawn::{self, SpawnError};

/// How long a cluster may take to serve, or a node to be in sync again.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one question about a node's state may take.
const ASK: Duration = Duration::from_secs(1);

/// Whose servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    /// `replserver`.
    Ours,
    /// `etcd` from the PATH with its defaults.
    Etcd,
    /// The `replserver` of another build, which `$REPLSERVER_OLD` names.
    Old,
}

/// Who leads, and under which number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) epoch: u64,
    pub(super) leader: String,
}

/// Names the program of another build.
const OLD: &str = "REPLSERVER_OLD";

impl Kind {
    /// As it is printed.
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Ours => "ours",
            Kind::Etcd => "etcd",
            Kind::Old => "old",
        }
    }

    /// What is started.
    fn program(self) -> Result<PathBuf, SpawnError> {
        match self {
            Kind::Etcd => Ok(PathBuf::from("etcd")),
            Kind::Ours => spawn::find_server(),
            // What is not set cannot be started, and says so by this name.
            Kind::Old => {
                Ok(std::env::var_os(OLD).map_or_else(|| PathBuf::from("$REPLSERVER_OLD"), PathBuf::from))
            }
        }
    }
}

/// A running cluster.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) kind: Kind,
    program: PathBuf,
    dir: PathBuf,
    nodes: Vec<Node>,
    /// From the first spawn to the first acknowledged write.
    pub(super) started_in: Duration,
}

#[derive(Debug)]
struct Node {
    address: String,
    /// Etcd's members talk on another port; ours use one for all.
    peer_address: String,
    child: Option<Child>,
}

impl Cluster {
    /// Starts `count` nodes at once in `dir` and waits until all of them serve and are in sync.
    pub(super) async fn start(kind: Kind, dir: PathBuf, count: usize) -> Result<Cluster, BenchFailure> {
        let program = kind.program()?;
        std::fs::create_dir_all(&dir).map_err(|error| BenchFailure::Directory(dir.clone(), error))?;
        let mut ports =
            free_addresses(count * 2).map_err(|error| BenchFailure::Directory(dir.clone(), error))?;
        let peers = ports.split_off(count);
        let nodes: Vec<Node> = ports
            .into_iter()
            .zip(peers)
            .map(|(address, peer_address)| Node { address, peer_address, child: None })
            .collect();
        let began = clock::now();
        let mut cluster = Cluster { kind, program, dir, nodes, started_in: Duration::ZERO };
        for position in 0..count {
            cluster.spawn(position, position > 0)?;
        }
        match tokio::time::timeout(PATIENCE, cluster.first_write()).await {
            Ok(written) => written?,
            Err(_) => return Err(cluster.failure(0, "acknowledged no write")),
        }
        cluster.started_in = began.elapsed();
        for position in 0..count {
            cluster.wait_in_sync(position).await?;
        }
        Ok(cluster)
    }

    /// The client addresses of all nodes.
    pub(super) fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.address.clone()).collect()
    }

    /// The client addresses of all nodes but one.
    pub(super) fn addresses_without(&self, position: usize) -> Vec<String> {
        let others = self.nodes.iter().enumerate().filter(|(other, _)| *other != position);
        others.map(|(_, node)| node.address.clone()).collect()
    }

    /// The last node that is not this one.
    pub(super) fn last_but(&self, position: usize) -> usize {
        (0..self.nodes.len()).rev().find(|other| *other != position).unwrap_or(position)
    }

    /// The address of one node.
    pub(super) fn address(&self, position: usize) -> &str {
        &self.nodes[position].address
    }

    /// Processor time that the living nodes have used since they were started.
    pub(super) fn cpu_time(&self) -> Duration {
        self.nodes
            .iter()
            .filter_map(|node| node.child.as_ref())
            .map(|child| cpu_time(&child.id().to_string()))
            .sum()
    }

    /// Which node leads, once one does.
    pub(super) async fn leader(&self) -> Result<usize, BenchFailure> {
        let mut leader = None;
        let found = wait_for(PATIENCE, async || {
            for position in 0..self.nodes.len() {
                if self.leads(position).await {
                    leader = Some(position);
                    return true;
                }
            }
            false
        })
        .await;
        match (found, leader) {
            (Some(_), Some(position)) => Ok(position),
            _ => Err(self.failure(0, "found no leader")),
        }
    }

    /// Sends SIGKILL and does not wait, so that what follows can be timed.
    pub(super) fn kill(&mut self, position: usize) -> Result<(), BenchFailure> {
        let node = &mut self.nodes[position];
        match &mut node.child {
            Some(child) => child.kill().map_err(|error| BenchFailure::Spawn(self.program.clone(), error)),
            None => Ok(()),
        }
    }

    /// Sends SIGSTOP: the node keeps its locks, its connections and what it believes.
    pub(super) fn stop(&self, position: usize) -> Result<(), BenchFailure> {
        self.signal(position, Signal::SIGSTOP)
    }

    /// Sends SIGCONT.
    pub(super) fn wake(&self, position: usize) -> Result<(), BenchFailure> {
        self.signal(position, Signal::SIGCONT)
    }

    fn signal(&self, position: usize, signal: Signal) -> Result<(), BenchFailure> {
        let pid = self.nodes[position].child.as_ref().and_then(|child| i32::try_from(child.id()).ok());
        let Some(pid) = pid else { return Ok(()) };
        kill(Pid::from_raw(pid), signal)
            .map_err(|error| BenchFailure::Spawn(self.program.clone(), error.into()))
    }

    /// True where the node has ended, or all of it is frozen.
    pub(super) fn is_struck(&mut self, position: usize, fault: Fault) -> bool {
        let Some(child) = &mut self.nodes[position].child else { return true };
        match fault {
            Fault::Kill => matches!(child.try_wait(), Ok(Some(_))),
            Fault::Stop => is_frozen_whole(child.id()),
        }
    }

    /// Memory of a node that is in use and not only reserved, in bytes; zero where it cannot be told.
    pub(super) fn resident_bytes(&self, position: usize) -> u64 {
        let Some(child) = &self.nodes[position].child else { return 0 };
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes =
            line.and_then(|line| line.split_whitespace().next()).and_then(|text| text.parse().ok());
        kibibytes.map_or(0, |kibibytes: u64| kibibytes * 1024)
    }

    /// Starts a killed node on its old data and waits until it is in sync again.
    pub(super) async fn restart(&mut self, position: usize) -> Result<(), BenchFailure> {
        if let Some(mut child) = self.nodes[position].child.take() {
            child.wait().map_err(|error| BenchFailure::Spawn(self.program.clone(), error))?;
        }
        self.spawn(position, true)?;
        self.wait_in_sync(position).await
    }

    fn spawn(&mut self, position: usize, joins: bool) -> Result<(), BenchFailure> {
        let node = &self.nodes[position];
        let data = self.dir.join(format!("{}-data", node.address.replace(':', "_")));
        let mut command = Command::new(&self.program);
        match self.kind {
            Kind::Ours | Kind::Old => {
                command
                    .arg("--address")
                    .arg(&node.address)
                    .args(["--cluster", "bench"])
                    .arg("--data-dir")
                    .arg(data);
                command.arg("--register").arg(format!("file:{}", self.dir.join("register").display()));
                if joins {
                    command.arg("--join").arg(self.addresses_without(position).join(","));
                }
            }
            Kind::Etcd => {
                let client_url = format!("http://{}", node.address);
                let peer_url = format!("http://{}", node.peer_address);
                let members: Vec<String> = self
                    .nodes
                    .iter()
                    .map(|node| format!("{}=http://{}", node.address, node.peer_address))
                    .collect();
                command.args(["--name", &node.address]).arg("--data-dir").arg(data);
                command.args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url]);
                command.args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url]);
                command.args(["--initial-cluster", &members.join(","), "--initial-cluster-state", "new"]);
            }
        }
        let path = self.log_path(position);
        let log = File::options().create(true).append(true).open(&path);
        let log = log.map_err(|error| BenchFailure::Directory(path.clone(), error))?;
        let error_log = log.try_clone().map_err(|error| BenchFailure::Directory(path, error))?;
        // Own process group: a Ctrl-C on the terminal reaches this program alone, which then ends its children.
        command.stdin(Stdio::null()).stdout(log).stderr(error_log).process_group(0);
        // However this program ends. Servers are started on its main thread, which lives as long as it does.
        spawn::die_with_parent(&mut command);
        let child = command.spawn().map_err(|error| BenchFailure::Spawn(self.program.clone(), error))?;
        self.nodes[position].child = Some(child);
        Ok(())
    }

    /// Ends with the first acknowledged write. One that came too early may hang until it times out, so others overtake
    /// it; all write the same, so none does harm.
    async fn first_write(&self) -> Result<(), BenchFailure> {
        let client = self.client(self.addresses())?;
        let write = pb::PutRequest { key: self.ready_key(), ..Default::default() };
        let mut pending = FuturesUnordered::new();
        let mut next = tokio::time::interval(Duration::from_millis(5));
        loop {
            tokio::select! {
                Some::<Result<pb::PutResponse, ClientError>>(answer) = pending.next() => {
                    if answer.is_ok() {
                        return Ok(());
                    }
                }
                _ = next.tick(), if pending.len() < 64 => pending.push(client.put(write.clone())),
            }
        }
    }

    /// Waits until a node is in sync.
    pub(super) async fn wait_in_sync(&self, position: usize) -> Result<(), BenchFailure> {
        if wait_for(PATIENCE, async || self.is_in_sync(position).await).await.is_some() {
            return Ok(());
        }
        Err(self.failure(position, "did not get in sync"))
    }

    async fn leads(&self, position: usize) -> bool {
        match self.kind {
            Kind::Ours | Kind::Old => {
                self.describe(position).await.is_some_and(|node| node.role() == Role::Leader && node.ready)
            }
            Kind::Etcd => self.status(position).await.is_some_and(|status| {
                status.leader != 0 && status.header.is_some_and(|header| header.member_id == status.leader)
            }),
        }
    }

    /// Ours: the node says so of itself and the leader agrees. Etcd: it answers a linearizable read, for which it
    /// must have caught up with the leader.
    async fn is_in_sync(&self, position: usize) -> bool {
        match self.kind {
            Kind::Ours | Kind::Old => {
                let Some(node) = self.describe(position).await.filter(|node| node.ready) else {
                    return false;
                };
                let leader = self.nodes.iter().position(|other| other.address == node.leader);
                let Some(leader) = leader else { return false };
                let address = self.nodes[position].address.as_str();
                self.describe(leader).await.is_some_and(|leader| {
                    leader.epoch == node.epoch && leader.in_sync.iter().any(|member| member == address)
                })
            }
            Kind::Etcd => match self.client(vec![self.nodes[position].address.clone()]) {
                Ok(client) => client.get(self.ready_key()).await.is_ok(),
                Err(_) => false,
            },
        }
    }

    /// Who leads by what this node knows.
    pub(super) async fn standing(&self, position: usize) -> Option<Standing> {
        match self.kind {
            Kind::Ours | Kind::Old => {
                let said = self.describe(position).await?;
                Some(Standing { epoch: said.epoch, leader: said.leader })
            }
            Kind::Etcd => {
                let said = self.status(position).await?;
                Some(Standing { epoch: said.raft_term, leader: said.leader.to_string() })
            }
        }
    }

    async fn describe(&self, position: usize) -> Option<DescribeResponse> {
        let link = Link::new(&self.nodes[position].address, ASK).ok()?;
        let mut node = NodeClient::new(link.channel());
        let answer = tokio::time::timeout(ASK, node.describe(DescribeRequest {})).await;
        Some(answer.ok()?.ok()?.into_inner())
    }

    async fn status(&self, position: usize) -> Option<pb::StatusResponse> {
        let client = self.client(vec![self.nodes[position].address.clone()]).ok()?;
        client.status().await.into_iter().find_map(|(_, answer)| answer.ok())
    }

    fn client(&self, addresses: Vec<String>) -> Result<Client, BenchFailure> {
        Ok(Client::new(&addresses, Options { timeout: ASK, ..Options::default() })?)
    }

    fn ready_key(&self) -> Bytes {
        [PREFIX, b"ready"].concat().into()
    }

    fn log_path(&self, position: usize) -> PathBuf {
        self.dir.join(format!("{}.log", self.nodes[position].address.replace(':', "_")))
    }

    fn failure(&self, position: usize, what: &'static str) -> BenchFailure {
        let log = self.log_path(position);
        let tail = last_lines(&log, 10).join("\n");
        BenchFailure::Cluster {
            kind: self.kind.name(),
            address: self.nodes[position].address.clone(),
            what,
            tail,
            log,
        }
    }
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
