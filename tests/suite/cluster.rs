//! A cluster of real `replserver` processes in a temporary directory, ended by pid when the test ends.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use replcluster::client::{Client, Options};
use replcluster::proto::etcdserverpb as pb;
use replcluster::proto::replcluster::node_client::NodeClient;
use replcluster::proto::replcluster::{DescribeRequest, DescribeResponse};

/// Long enough for any machine; nothing waits for it to pass.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A port that no other test of this run gets.
pub fn free_port() -> u16 {
    free_ports(1)[0]
}

/// Deletes a directory in which something may be writing, as somebody does who types it again until it is gone.
pub fn delete(directory: &std::path::Path) {
    until("the end of a directory", || match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => false,
        done => {
            done.unwrap();
            true
        }
    });
}

/// Looks again and again until it is so; fails loudly rather than hang.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::yield_now();
    }
}

/// Ports one after another that no other test of this run gets; outside the range that the kernel gives to outgoing
/// connections.
pub fn free_ports(count: u16) -> Vec<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = 12_000 + u16::try_from(std::process::id() % 150).unwrap() * 100;
    loop {
        let first = start + NEXT.fetch_add(count, Ordering::Relaxed);
        let ports: Vec<u16> = (first..first + count).collect();
        if ports.iter().all(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()) {
            return ports;
        }
    }
}

/// For `unshare`: the process inside ends with the one outside.
const CONTAINER: [&str; 4] = ["--pid", "--fork", "--kill-child", "--mount-proc"];

pub struct Cluster {
    pub directory: tempfile::TempDir,
    pub nodes: BTreeMap<String, Process>,
    pub flags: Vec<String>,
    /// So many descriptors and no more, for each node that is started.
    pub descriptors: Option<u64>,
}

pub struct Process {
    pub address: String,
    pub data: PathBuf,
    pub log: PathBuf,
    child: Option<Child>,
}

impl Process {
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.as_ref().expect("it runs").id()).unwrap())
    }

    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Stops the process, and waits until none of its threads runs any more: the signal alone takes its time, and one
    /// that is inside of a sync goes on until that is done.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
        self.wait_until_stopped();
    }

    pub fn wait_until_stopped(&self) {
        let tasks = format!("/proc/{}/task", self.pid());
        let stopped = || {
            std::fs::read_dir(&tasks).unwrap().all(|task| {
                let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
                stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
            })
        };
        let start = Instant::now();
        while !stopped() {
            assert!(start.elapsed() < PATIENCE, "{} does not stop", self.address);
            std::thread::yield_now();
        }
    }

    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// SIGKILL, and wait until it is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            child.wait().unwrap();
        }
    }

    /// Waits until it has ended.
    pub fn wait(&mut self) {
        let address = &self.address;
        if let Some(child) = &mut self.child {
            until(&format!("the end of {address}"), || child.try_wait().unwrap().is_some());
        }
        self.child = None;
    }

    pub fn tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        format!("log of {}:\n{}", self.address, lines[lines.len().saturating_sub(30)..].join("\n"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in self.nodes.values_mut() {
            if std::thread::panicking() {
                eprintln!("{}", process.tail());
            }
            process.kill();
        }
    }
}

pub fn replserver() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_replserver"))
}

impl Cluster {
    /// `count` nodes, all in sync.
    pub async fn start(count: usize) -> Cluster {
        Cluster::start_with(count, &[]).await
    }

    /// As `start`, each node with so many descriptors and no more.
    pub async fn start_limited(count: usize, descriptors: u64) -> Cluster {
        Cluster::start_as(count, &[], Some(descriptors)).await
    }

    pub async fn start_with(count: usize, flags: &[&str]) -> Cluster {
        Cluster::start_as(count, flags, None).await
    }

    async fn start_as(count: usize, flags: &[&str], descriptors: Option<u64>) -> Cluster {
        let directory = tempfile::tempdir().unwrap();
        let flags = flags.iter().map(ToString::to_string).collect();
        let mut cluster = Cluster { directory, nodes: BTreeMap::new(), flags, descriptors };
        let mut addresses: Vec<String> = (0..count).map(|_| format!("127.0.0.1:{}", free_port())).collect();
        addresses.sort();
        for address in &addresses {
            cluster.spawn(address);
        }
        cluster.wait_in_sync().await;
        cluster
    }

    pub fn addresses(&self) -> Vec<String> {
        self.nodes.keys().cloned().collect()
    }

    pub fn register(&self) -> PathBuf {
        self.directory.path().join("register")
    }

    pub fn command(&self, address: &str, data: &Path) -> Command {
        let mut command = match self.descriptors {
            None => Command::new(replserver()),
            Some(most) => {
                let script = format!("ulimit -Sn {}; ulimit -Hn {most}; exec \"$0\" \"$@\"", most / 2);
                let mut limited = Command::new("sh");
                limited.arg("-c").arg(script).arg(replserver());
                limited
            }
        };
        command.args(["--address", address, "--cluster", "test", "--register"]);
        command.arg(format!("file:{}", self.register().display())).arg("--data-dir").arg(data);
        if let Some(first) = self.nodes.keys().find(|other| *other != address) {
            command.args(["--join", first]);
        }
        command.args(&self.flags).env("RUST_LOG", "info").stdin(Stdio::null());
        command
    }

    /// Starts a node, new or again.
    pub fn spawn(&mut self, address: &str) {
        self.spawn_as(address, |command| command);
    }

    /// Starts a node with another build of the server.
    pub fn spawn_program(&mut self, address: &str, program: &Path) {
        self.spawn_as(address, |inner| {
            let mut command = Command::new(program);
            command.args(inner.get_args()).env("RUST_LOG", "info").stdin(Stdio::null());
            command
        });
    }

    /// The same, as process 1 of a pid namespace of its own, with its own `/proc`.
    pub fn spawn_in_container(&mut self, address: &str) {
        self.spawn_as(address, |inner| {
            let mut command = Command::new("unshare");
            command.args(CONTAINER).arg(inner.get_program()).args(inner.get_args());
            command.env("RUST_LOG", "info").stdin(Stdio::null());
            command
        });
    }

    /// As [`Cluster::start`], each node in a container. `None` where that is not permitted.
    pub async fn start_in_containers(count: usize) -> Option<Cluster> {
        let tried = Command::new("unshare").args(CONTAINER).arg("true").output();
        if !tried.as_ref().is_ok_and(|output| output.status.success()) {
            println!("skipped, no pid namespace can be made: {tried:?}");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let mut cluster = Cluster { directory, nodes: BTreeMap::new(), flags: Vec::new(), descriptors: None };
        let mut addresses: Vec<String> = (0..count).map(|_| format!("127.0.0.1:{}", free_port())).collect();
        addresses.sort();
        for address in &addresses {
            cluster.spawn_in_container(address);
        }
        cluster.wait_in_sync().await;
        Some(cluster)
    }

    fn spawn_as(&mut self, address: &str, wrap: impl FnOnce(Command) -> Command) {
        let data = self.directory.path().join(address.replace(':', "_"));
        let log = self.directory.path().join(format!("{}.log", address.replace(':', "_")));
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let mut command = wrap(self.command(address, &data));
        command.stdout(file.try_clone().unwrap()).stderr(file);
        let child = Some(command.spawn().unwrap());
        self.nodes.insert(address.to_owned(), Process { address: address.to_owned(), data, log, child });
    }

    pub async fn describe(&self, address: &str) -> Option<DescribeResponse> {
        let asked = async {
            let mut client = NodeClient::connect(format!("http://{address}")).await.ok()?;
            Some(client.describe(DescribeRequest {}).await.ok()?.into_inner())
        };
        tokio::time::timeout(Duration::from_secs(2), asked).await.ok().flatten()
    }

    /// Waits until every running node says what `wanted` wants of it, all of the same epoch; answers with the leader.
    pub async fn wait_until(&self, what: &str, wanted: impl Fn(&DescribeResponse) -> bool) -> String {
        let start = Instant::now();
        loop {
            let mut said = Vec::new();
            for process in self.nodes.values().filter(|process| process.runs()) {
                said.push(self.describe(&process.address).await);
            }
            let said: Option<Vec<DescribeResponse>> = said.into_iter().collect();
            if let Some(said) = &said
                && !said.is_empty()
                && said.iter().all(&wanted)
                && said.iter().all(|one| one.epoch == said[0].epoch && one.leader == said[0].leader)
            {
                return said[0].leader.clone();
            }
            assert!(start.elapsed() < PATIENCE, "never {what}: {said:#?}");
            tokio::task::yield_now().await;
        }
    }

    /// Waits until all running nodes are ready, and in sync, and agree; answers with the leader.
    pub async fn wait_in_sync(&self) -> String {
        let running = self.nodes.values().filter(|process| process.runs()).count();
        self.wait_until("all in sync", |said| said.ready && said.in_sync.len() == running).await
    }

    /// True while the node's process has not ended by itself.
    pub fn has_not_ended(&mut self, address: &str) -> bool {
        let child = self.nodes.get_mut(address).and_then(|process| process.child.as_mut());
        child.is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// The exit code of a node that has ended by itself, where it has; `Some(None)` where a signal ended it.
    pub fn exit_code(&mut self, address: &str) -> Option<Option<i32>> {
        let process = self.nodes.get_mut(address)?;
        let status = process.child.as_mut()?.try_wait().unwrap()?;
        process.child = None;
        Some(status.code())
    }

    /// Waits until the node is in sync (true), or has ended by itself (false).
    pub async fn joins_or_ends(&mut self, address: &str) -> bool {
        let start = Instant::now();
        loop {
            let process = self.nodes.get_mut(address).unwrap();
            if process.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_some()) {
                process.child = None;
                return false;
            }
            if self.describe(address).await.is_some_and(|said| said.ready) {
                return true;
            }
            assert!(start.elapsed() < PATIENCE, "{address} neither joins nor ends");
            tokio::task::yield_now().await;
        }
    }

    pub fn client(&self, addresses: &[String]) -> Client {
        Client::new(addresses, Options::default()).unwrap()
    }
}

pub fn put_request(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest {
        key: bytes::Bytes::copy_from_slice(key.as_bytes()),
        value: bytes::Bytes::copy_from_slice(value.as_bytes()),
        ..Default::default()
    }
}

pub async fn get(client: &Client, key: &str) -> Option<String> {
    let request =
        pb::RangeRequest { key: bytes::Bytes::copy_from_slice(key.as_bytes()), ..Default::default() };
    let response = client.range(request).await.unwrap();
    response.kvs.first().map(|kv| String::from_utf8(kv.value.to_vec()).unwrap())
}
