//! `replserver`: one node in the foreground. Reads its arguments, takes what is its own (address, directory, port),
//! starts the node, and serves clients and peers on one port until it is told to stop. What an end means for the data
//! is decided in `aside`; `replserver inspect` is in `inspect`.

mod aside;
mod inspect;
mod port;

use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::config::parse_log_size;
use crate::descriptors::Shares;
use crate::node::directory::DataDirectory;
use crate::node::log::PAYLOAD_MAX;
use crate::node::{self, Handle, Running, Settings, Start};
use crate::register::{
    DeathWatch, FileRegister, Held, HeldMark, Holder, LockError, NodeLock, Register, held,
};
use crate::signals::{Decision, Signals};
use crate::skips::Skips;
use crate::supervisor::ports;
use crate::telemetry::{LogFile, TelemetryError, rotate::Limits};
use crate::view::NodeId;
use crate::{api, clock, descriptors, inherited, notify, telemetry};
use port::Port;

/// How long clients may take to get their answers when the node is told to stop; those that only watch are cut off then.
const DRAIN_MAX: Duration = Duration::from_secs(1);
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
    /// Connections that clients may have; one more is refused with an error that says so. Lowered where the system gives
    /// fewer descriptors.
    #[arg(long, default_value_t = 10_000, value_parser = parse_connections)]
    max_connections: usize,
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

fn parse_connections(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(most @ 1..=1_000_000) => Ok(most),
        Ok(_) | Err(_) => Err("expected a number from 1 to 1000000".to_owned()),
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

/// Has a panic name the entry of the log that was being applied: every node may end by it, and an operator can have all of
/// them step over it (R33).
fn name_entry_in_panics() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if let Some(index) = node::applying() {
            tracing::error!(
                "this process ends while entry {index} of the log is applied; if every node does: replcluster recover --skip-entry {index}"
            );
        }
        print(panic);
    }));
}

fn run(arguments: Arguments) -> Result<Exit, Failure> {
    name_entry_in_panics();
    if arguments.failure_timeout < 2 * arguments.heartbeat_interval {
        return Err(Failure::new(
            Exit::Usage,
            "--failure-timeout must be at least twice --heartbeat-interval",
        ));
    }
    if arguments.max_request_bytes > PAYLOAD_MAX {
        let given = arguments.max_request_bytes;
        let text = format!(
            "--max-request-bytes is {given}, and an entry of the log holds at most {PAYLOAD_MAX} bytes"
        );
        return Err(Failure::new(Exit::Usage, text));
    }
    let threads =
        arguments.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(2, Into::into));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads.max(1))
        .thread_name("clients")
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot start threads: {error}")))?;
    let signals = {
        let _of_runtime = runtime.enter();
        Signals::catch_ignored().map_err(|error| Failure::new(Exit::Failed, error.to_string()))?
    };
    let limit = descriptors::raise_limit();
    let shares = divide(limit, arguments.max_connections)?;
    let (lock, register) = take_address(&arguments)?;
    // Only now: the log of a process that runs under this address must not say that another one started.
    let version = env!("CARGO_PKG_VERSION");
    tracing::info!(pid = std::process::id(), version, address = %arguments.address, "{}", telemetry::STARTED);
    let directory = DataDirectory::open(&arguments.data_dir, &arguments.address).map_err(|error| {
        let exit = if error.is_conflict() { Exit::Conflict } else { Exit::Failed };
        Failure::new(exit, error.to_string())
    })?;
    let exit = runtime.block_on(serve(arguments, directory, register, (signals, shares)));
    drop(lock);
    // Connections that clients keep open must not keep the process.
    runtime.shutdown_background();
    exit
}

/// What the limit of descriptors leaves to clients, after what the node needs itself.
fn divide(limit: u64, wanted: usize) -> Result<Shares, Failure> {
    let shares = descriptors::divide(limit, wanted).ok_or_else(|| {
        let least = descriptors::LEAST;
        Failure::new(
            Exit::Failed,
            format!(
                "{limit} descriptors are too few, a node needs {least}\nraise the hard limit (ulimit -Hn)"
            ),
        )
    })?;
    if shares.clients < wanted {
        tracing::warn!(
            "the limit of {limit} descriptors leaves {} connections to clients, not {wanted}: raise the hard limit (ulimit -Hn)",
            shares.clients
        );
    }
    Ok(shares)
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
    (mut signals, shares): (Signals, Shares),
) -> Result<Exit, Failure> {
    let listener = bind(&arguments.address).await?;
    let register_path = arguments.register.clone();
    // What an operator has given up since it was noted no longer counts; a register that cannot be read is refused below.
    let known_held = held::read(&arguments.register, &arguments.address)
        .filter(|held| !matches!(register.read(None), Ok(Some(view)) if view.recovered > held.epoch));
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
        skips: Skips::read([arguments.register.as_path(), arguments.data_dir.as_path()])
            .map_err(|error| Failure::new(Exit::Failed, error.to_string()))?,
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
        known: start.directory.promise().view.map(|view| view.id()),
        is_of_the_past: !arguments.join.is_empty() && !is_member(&start),
    };
    let running =
        node::start(start).map_err(|error| aside::refused_to_start(&error, &copy, &arguments.data_dir))?;
    tracing::info!(incarnation = copy.incarnation.0, "{} listens", arguments.address);
    let Running { handle, peers, mut ended, directory } = running;
    let port = Port::new(api::services(handle.clone()), peers, shares);
    let accepting = tokio::spawn(port.clone().accept(listener));
    tokio::spawn(notify_when_ready(handle.clone()));
    tokio::spawn(say_what_is_waited_for(handle.clone()));
    let noted = known_held.filter(|noted| noted.incarnation == copy.incarnation);
    let mut mark = HeldMark::new(&arguments.register, &arguments.address, noted);
    let mut times = tokio::time::interval(arguments.heartbeat_interval);
    let mut running = Some((port, accepting));
    signals.catch_stops().map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    let mut interrupted = false;
    loop {
        tokio::select! {
            signal = signals.stop() => {
                if signal.decision == Decision::StopOrForce && std::mem::replace(&mut interrupted, true) {
                    return Ok(Exit::Interrupted);
                }
                tracing::info!("signal {}: stopping", signal.name);
                stop(&handle, running.take());
            }
            _ = times.tick() => note(&mut mark, &handle),
            end = &mut ended => {
                note(&mut mark, &handle);
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
    match start.register.read(None) {
        Ok(Some(view)) => view.members.get(&start.address) == Some(&start.directory.incarnation()),
        Ok(None) | Err(_) => true,
    }
}

/// Ends the node once its clients have their answers. The port is closed first, so that whoever is told to go away is
/// refused when it comes back, which is a sure "not done", and turns to another node (T25).
fn stop(handle: &Handle, running: Option<(Arc<Port>, JoinHandle<()>)>) {
    let Some((port, accepting)) = running else { return };
    notify::tell(notify::STOPPING);
    let handle = handle.clone();
    tokio::spawn(async move {
        accepting.abort();
        // It ends by having been aborted.
        let _ = accepting.await;
        if tokio::time::timeout(DRAIN_MAX, port.drain()).await.is_err() {
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

/// Keeps noted in the register how much this node holds (R24).
fn note(mark: &mut HeldMark, handle: &Handle) {
    let own = handle.describe();
    let held = Held { incarnation: own.incarnation, epoch: own.epoch, commit: own.commit_index };
    if let Err(error) = mark.note(held, clock::now()) {
        // Only evidence against an older copy rests on this: it stops nothing.
        tracing::warn!("cannot note what {} holds, which is tried again: {error}", own.address);
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
