//! `replserver`: one node in the foreground. Reads its arguments, takes what is its own (address, directory, port),
//! starts the node, and serves clients and peers on one port until it is told to stop. What an end means for the data
//! is decided in `aside`; `replserver inspect` is in `inspect`.

mod aside;
mod inspect;

use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use crate::config::parse_log_size;
use crate::node::directory::DataDirectory;
use crate::node::{self, Handle, Running, Settings, Start};
use crate::register::{
    DeathWatch, FileRegister, Held, HeldMark, Holder, LockError, NodeLock, Register, held,
};
use crate::supervisor::ports;
use crate::telemetry::{LogFile, TelemetryError, rotate::Limits};
use crate::view::{Index, NodeId};
use crate::{api, inherited, notify, telemetry};

/// How long clients may take to get their answers when the node is told to stop; those that only watch are cut off then.
const DRAIN_MAX: Duration = Duration::from_secs(1);
/// How long a connection may stay silent before it says what it is.
const FIRST_BYTES_MAX: Duration = Duration::from_secs(30);
/// What is waited for longer than this is said in the log.
const WAITING_LASTS: Duration = Duration::from_secs(1);

const INSPECT_HELP: &str = "replserver inspect --data-dir DIRECTORY shows what the directory of a stopped node holds and changes nothing.";

/// One node of a replicated key-value cluster that speaks the etcd v3 API.
#[derive(Parser, Debug)]
#[command(name = "replserver", version = crate::VERSION, max_term_width = 100, after_help = INSPECT_HELP)]
struct Arguments {
    /// Where clients and the other nodes call this node; the lowest in-sync address (by bytes) leads.
    #[arg(long, value_parser = parse_address)]
    address: NodeId,
    /// The cluster's name, for people.
    #[arg(long, default_value = "demo")]
    cluster: String,
    /// The node's own directory; made if it is not there.
    #[arg(long)]
    data_dir: PathBuf,
    /// Where the cluster's view stands, the same for all its nodes: `file:DIRECTORY`.
    #[arg(long, value_parser = parse_register)]
    register: PathBuf,
    /// Join a cluster and never create one; the addresses are for people, the register says who leads.
    #[arg(long, value_delimiter = ',', value_parser = parse_address)]
    join: Vec<NodeId>,
    /// How often nodes speak to each other when there is nothing to say.
    #[arg(long, default_value = "50ms", value_parser = parse_duration)]
    heartbeat_interval: Duration,
    /// Silence after which a node that still seems to run is suspected.
    #[arg(long, default_value = "300ms", value_parser = parse_duration)]
    failure_timeout: Duration,
    /// Refuse writes while fewer nodes are in sync.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    min_in_sync: u16,
    /// How long a lower address stays in sync before it leads again, or `never`.
    #[arg(long, default_value = "5s", value_parser = parse_handback)]
    handback_after: Handback,
    /// Largest request, in bytes.
    #[arg(long, default_value_t = 1_572_864)]
    max_request_bytes: usize,
    /// Most operations in one transaction.
    #[arg(long, default_value_t = 128)]
    max_txn_operations: usize,
    /// Keep about this much log for followers that were away, in bytes; who was away longer gets a snapshot.
    #[arg(long, default_value_t = 256 << 20)]
    log_keep_bytes: u64,
    /// With less than this free on its disk, in bytes, the node hands leadership to one that has room; where none has,
    /// writes that need room are refused until there is twice as much. Reads, deletes and compaction go on.
    #[arg(long, default_value_t = 64 << 20)]
    space_reserve_bytes: u64,
    /// Threads that serve clients; as many as the machine has cores, unless given.
    #[arg(long)]
    threads: Option<usize>,
    /// Log to this file; stderr then gets only panics and last words, unless it is a terminal.
    #[arg(long)]
    log_file: Option<PathBuf>,
    /// Put the log file aside before it gets larger than this: from 4KiB to 1GiB.
    #[arg(long, default_value = "16MiB", value_parser = parse_log_size, value_name = "SIZE")]
    log_max_size: u64,
    /// Keep so many log files that were put aside.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    log_keep: u32,
    /// What to log: error, warn, info, debug or trace, or a filter such as info,replcluster::node=debug
    /// [default: $RUST_LOG, else info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Told back to whoever asks, so that a supervisor knows its own.
    #[arg(long, default_value = "", hide = true)]
    nonce: String,
    /// Say yes before followers hold an entry: shows that the checks can fail.
    #[cfg(feature = "fault-switches")]
    #[arg(long, hide = true)]
    unsafe_acknowledge_early: bool,
}

#[derive(Debug, Clone, Copy)]
struct Handback(Option<Duration>);

fn parse_address(text: &str) -> Result<NodeId, String> {
    NodeId::parse(text).map_err(|error| error.to_string())
}

fn parse_register(text: &str) -> Result<PathBuf, String> {
    match text.split_once(':') {
        Some(("file", path)) if !path.is_empty() => Ok(PathBuf::from(path)),
        Some(("etcd", _)) => Err("a register in etcd is not in this version; use file:DIRECTORY".to_owned()),
        _ => Err("expected file:DIRECTORY".to_owned()),
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let parsed: jiff::SignedDuration =
        text.parse().map_err(|_| format!("\"{text}\" is not a duration such as 300ms"))?;
    let duration = Duration::try_from(parsed).map_err(|_| "a duration cannot be negative".to_owned())?;
    match duration {
        Duration::ZERO => Err("must be longer than nothing".to_owned()),
        // No moment could be moved by much more.
        _ if duration > Duration::from_secs(365 * 24 * 3600) => Err("is longer than a year".to_owned()),
        _ => Ok(duration),
    }
}

fn parse_handback(text: &str) -> Result<Handback, String> {
    if text == "never" { Ok(Handback(None)) } else { parse_duration(text).map(|after| Handback(Some(after))) }
}

/// How the process ends, by INTERFACE's table.
#[derive(Debug, Clone, Copy)]
enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    Conflict = 5,
    Interrupted = 130,
}

struct Failure {
    exit: Exit,
    text: String,
}

impl Failure {
    fn new(exit: Exit, text: impl Into<String>) -> Failure {
        Failure { exit, text: text.into() }
    }
}

/// The command line, for the manual.
#[must_use]
pub fn command() -> clap::Command {
    <Arguments as clap::CommandFactory>::command()
}

/// The whole program.
#[must_use]
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    if arguments.get(1).is_some_and(|verb| verb == inspect::VERB) {
        return inspect::main(&arguments);
    }
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { Exit::Usage as u8 } else { Exit::Done as u8 });
        }
    };
    inherited::begin();
    let limits = Limits { max_size: arguments.log_max_size, keep: arguments.log_keep };
    let file = arguments.log_file.as_deref().map(|path| LogFile { path, limits, alone: false });
    let exit = match telemetry::start(arguments.log_level.as_deref(), file) {
        Ok(()) => match inherited::refusal() {
            Some(why) => Err(Failure::new(Exit::Usage, why)),
            None => run(arguments),
        },
        Err(error) => {
            let wrong_flag = matches!(error, TelemetryError::Level { .. });
            Err(Failure::new(if wrong_flag { Exit::Usage } else { Exit::Failed }, error.to_string()))
        }
    };
    match exit {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(failure) => {
            tracing::error!("{}", failure.text);
            // Where not even this can be written nobody is left to tell, and the exit code still says it.
            let _ = writeln!(std::io::stderr(), "replserver: {}", failure.text);
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn run(arguments: Arguments) -> Result<Exit, Failure> {
    if arguments.failure_timeout < 2 * arguments.heartbeat_interval {
        return Err(Failure::new(
            Exit::Usage,
            "--failure-timeout must be at least twice --heartbeat-interval",
        ));
    }
    let (lock, register) = take_address(&arguments)?;
    // Only now: the log of a process that runs under this address must not say that another one started.
    let version = env!("CARGO_PKG_VERSION");
    tracing::info!(pid = std::process::id(), version, address = %arguments.address, "{}", telemetry::STARTED);
    let directory = DataDirectory::open(&arguments.data_dir, &arguments.address).map_err(|error| {
        let exit = if error.is_conflict() { Exit::Conflict } else { Exit::Failed };
        Failure::new(exit, error.to_string())
    })?;
    let threads =
        arguments.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(2, Into::into));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads.max(1))
        .thread_name("clients")
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot start threads: {error}")))?;
    let exit = runtime.block_on(serve(arguments, directory, register));
    drop(lock);
    // Connections that clients keep open must not keep the process.
    runtime.shutdown_background();
    exit
}

/// The address first, by its lock in the register: a second process is refused before it touches the port (O10).
fn take_address(arguments: &Arguments) -> Result<(NodeLock, Arc<dyn Register>), Failure> {
    let register = FileRegister::open(&arguments.register)
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot use the register: {error}")))?;
    let holder = Holder::this_process(&arguments.address, &arguments.data_dir)
        .map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    let lock = NodeLock::take(&arguments.register, &arguments.address, &holder).map_err(|error| {
        let exit = if matches!(error, LockError::Held { .. }) { Exit::Conflict } else { Exit::Failed };
        Failure::new(exit, error.to_string())
    })?;
    Ok((lock, Arc::new(register)))
}

async fn serve(
    arguments: Arguments,
    directory: DataDirectory,
    register: Arc<dyn Register>,
) -> Result<Exit, Failure> {
    let listener = bind(&arguments.address).await?;
    let register_path = arguments.register.clone();
    // What an operator has given up since it was noted no longer counts; a register that cannot be read is refused below.
    let known_held = held::read(&arguments.register, &arguments.address)
        .filter(|held| !matches!(register.read(), Ok(Some(view)) if view.recovered > held.epoch));
    let start = Start {
        address: arguments.address.clone(),
        directory,
        register,
        watch: Box::new(move |tell| DeathWatch::start(&register_path, tell)),
        settings: Settings {
            cluster_name: arguments.cluster.clone(),
            max_request_bytes: arguments.max_request_bytes,
            max_txn_operations: arguments.max_txn_operations,
            nonce: arguments.nonce.clone(),
            min_in_sync: usize::from(arguments.min_in_sync),
        },
        heartbeat_interval: arguments.heartbeat_interval,
        failure_timeout: arguments.failure_timeout,
        handback_after: arguments.handback_after.0,
        create: arguments.join.is_empty(),
        held: known_held,
        log_keep_bytes: arguments.log_keep_bytes,
        space_reserve_bytes: arguments.space_reserve_bytes,
        #[cfg(feature = "fault-switches")]
        acknowledge_early: arguments.unsafe_acknowledge_early,
        #[cfg(not(feature = "fault-switches"))]
        acknowledge_early: false,
    };
    let copy = aside::Copy {
        address: arguments.address.clone(),
        incarnation: start.directory.incarnation(),
        register: start.register.clone(),
        register_path: arguments.register.clone(),
        is_of_the_past: !arguments.join.is_empty() && !is_member(&start),
    };
    let running =
        node::start(start).map_err(|error| aside::refused_to_start(&error, &copy, &arguments.data_dir))?;
    tracing::info!(incarnation = copy.incarnation.0, "{} listens", arguments.address);
    let Running { handle, peers, mut ended, directory } = running;
    let (connections, incoming) = mpsc::channel(256);
    let (last_call, told) = oneshot::channel();
    let accepting = tokio::spawn(accept(listener, peers, connections));
    let serving = tokio::spawn(serve_clients(handle.clone(), incoming, told));
    tokio::spawn(notify_when_ready(handle.clone()));
    tokio::spawn(say_what_is_waited_for(handle.clone()));
    let mut notes = Notes::open(&arguments, &handle, known_held);
    let mut times = tokio::time::interval(arguments.heartbeat_interval);
    let mut running = Some((accepting, last_call, serving));
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    let mut interrupted = false;
    loop {
        tokio::select! {
            _ = terminate.recv() => stop(&handle, running.take()),
            _ = interrupt.recv() => {
                if std::mem::replace(&mut interrupted, true) {
                    return Ok(Exit::Interrupted);
                }
                stop(&handle, running.take());
            }
            _ = times.tick() => notes.note(&handle),
            end = &mut ended => {
                notes.note(&handle);
                let exit = if interrupted { Exit::Interrupted } else { Exit::Done };
                return match end {
                    Ok(end) => aside::conclude(&end, &copy, &directory, exit),
                    Err(_) => Err(Failure::new(Exit::Failed, "the replication thread ended without a word")),
                };
            }
        }
    }
}

/// True where the newest view lists this very directory, or cannot be read.
fn is_member(start: &Start) -> bool {
    match start.register.read() {
        Ok(Some(view)) => view.members.get(&start.address) == Some(&start.directory.incarnation()),
        Ok(None) | Err(_) => true,
    }
}

/// The tasks that take connections and serve them, and the way to tell the latter that no more will come.
type Serving = (JoinHandle<()>, oneshot::Sender<()>, JoinHandle<()>);

/// Ends the node once its clients have their answers. The port is closed first, so that whoever is told to go away is
/// refused when it comes back, which is a sure "not done", and turns to another node (T25).
fn stop(handle: &Handle, running: Option<Serving>) {
    let Some((accepting, last_call, serving)) = running else { return };
    notify::tell(notify::STOPPING);
    let handle = handle.clone();
    tokio::spawn(async move {
        accepting.abort();
        // It ends by having been aborted.
        let _ = accepting.await;
        // The other side is gone only where serving has failed, and then the process ends.
        let _ = last_call.send(());
        if tokio::time::timeout(DRAIN_MAX, serving).await.is_err() {
            tracing::info!("clients are still connected; stopping without them");
        }
        handle.shutdown().await;
    });
}

async fn bind(address: &NodeId) -> Result<TcpListener, Failure> {
    let resolved: Vec<SocketAddr> = tokio::net::lookup_host(address.as_str())
        .await
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot resolve {address}: {error}")))?
        .collect();
    TcpListener::bind(resolved.as_slice()).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            let holder = resolved.first().and_then(|address| ports::holder(*address));
            let who = holder.map_or_else(|| "another process".to_owned(), |holder| ports::describe(&holder));
            Failure::new(
                Exit::Conflict,
                format!("{address} is taken by {who}\nstop it or give this node another address"),
            )
        }
        std::io::ErrorKind::AddrNotAvailable => {
            Failure::new(Exit::Usage, format!("{address} is not an address of this host"))
        }
        _ => Failure::new(Exit::Failed, format!("cannot listen on {address}: {error}")),
    })
}

/// Peers and clients share the port: a peer's first bytes are those of no HTTP.
async fn accept(
    listener: TcpListener,
    peers: mpsc::Sender<std::net::TcpStream>,
    clients: mpsc::Sender<std::io::Result<TcpStream>>,
) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(sort(stream, peers.clone(), clients.clone()))),
            Err(error) => {
                // Out of descriptors, most likely: connections that end will free some.
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

async fn sort(
    stream: TcpStream,
    peers: mpsc::Sender<std::net::TcpStream>,
    clients: mpsc::Sender<std::io::Result<TcpStream>>,
) {
    let mut first = [0_u8; 4];
    let peeked = tokio::time::timeout(FIRST_BYTES_MAX, async {
        // All of HTTP's first words and ours differ within four bytes; a shorter packet brings the rest soon.
        while stream.peek(&mut first).await? < first.len() {
            stream.readable().await?;
            tokio::task::yield_now().await;
            if stream.peek(&mut first).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok::<_, std::io::Error>(())
    })
    .await;
    if !matches!(peeked, Ok(Ok(()))) {
        return;
    }
    if first == node::PEER_MAGIC[..4] {
        if let Ok(stream) = stream.into_std() {
            let _ = peers.send(stream).await;
        }
    } else if stream.set_nodelay(true).is_ok() {
        let _ = clients.send(Ok(stream)).await;
    }
}

/// Serves until it is told that no more clients will come and the last one has gone.
async fn serve_clients(
    handle: Handle,
    incoming: mpsc::Receiver<std::io::Result<TcpStream>>,
    told: oneshot::Receiver<()>,
) {
    let routes = api::services(handle);
    let incoming = ReceiverStream::new(incoming).map(|stream| stream.map(api::Forgiving::new));
    let last_call = async {
        // A sender that is dropped without a word belongs to a process that ends anyway.
        let _ = told.await;
    };
    let served =
        api::server_builder().add_routes(routes).serve_with_incoming_shutdown(incoming, last_call).await;
    if let Err(error) = served {
        tracing::error!("cannot serve clients: {error}");
        std::process::exit(Exit::Failed as i32);
    }
}

/// Keeps the register told of how much this node holds (R24).
struct Notes {
    mark: Option<HeldMark>,
    noted: Option<Held>,
}

impl Notes {
    fn open(arguments: &Arguments, handle: &Handle, noted: Option<Held>) -> Notes {
        let mark = HeldMark::open(&arguments.register, &arguments.address).inspect_err(|error| {
            tracing::warn!("cannot note what {} holds: {error}", handle.describe().address);
        });
        let own = handle.describe().incarnation;
        Notes { mark: mark.ok(), noted: noted.filter(|noted| noted.incarnation == own) }
    }

    /// Only evidence against an older copy rests on this: what cannot be noted is said once and stops nothing.
    fn note(&mut self, handle: &Handle) {
        let Some(mark) = &self.mark else { return };
        let own = handle.describe();
        // After a start less is known to be committed for a moment than was noted before.
        let commit = own.commit_index.max(self.noted.map_or(Index(0), |noted| noted.commit));
        let held = Held { incarnation: own.incarnation, epoch: own.epoch, commit };
        if self.noted == Some(held) || held.commit == Index(0) {
            return;
        }
        match mark.note(&held) {
            Ok(()) => self.noted = Some(held),
            Err(error) => {
                tracing::warn!("cannot note what {} holds: {error}", own.address);
                self.mark = None;
            }
        }
    }
}

/// Says in the log what stops the node from serving, once it has lasted and once for each reason.
async fn say_what_is_waited_for(handle: Handle) {
    let mut changes = handle.changes();
    let (mut lasting, mut said) = (String::new(), String::new());
    loop {
        let waiting = handle.describe().waiting_for;
        if waiting.is_empty() {
            said.clear();
        } else if waiting == lasting && waiting != said {
            tracing::warn!("waiting for {waiting}");
            said.clone_from(&waiting);
        }
        lasting = waiting;
        changes.borrow_and_update();
        // Some reasons show themselves only by time that passes: a leader that is not heard.
        if let Ok(Err(_)) = tokio::time::timeout(WAITING_LASTS, changes.changed()).await {
            return;
        }
    }
}

/// Tells a service manager that waits for it.
async fn notify_when_ready(handle: Handle) {
    let mut changes = handle.changes();
    while !handle.is_ready() {
        if changes.changed().await.is_err() {
            return;
        }
    }
    notify::tell(notify::READY);
}
