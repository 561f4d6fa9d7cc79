//! Starts processes, from one thread that never ends, and tells when they end.
//! They stand in sessions of their own: neither a closed terminal nor a dead supervisor ends them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use crate::config::{Config, show, show_size};
use crate::control::cause::Ended;
use crate::inherited;
use crate::telemetry::rotate::{self, Limits};
use crate::view::NodeId;

use super::layout::Layout;
use super::os::{self, Handle};
use super::owner;

/// The environment variable that names the server program where none lies beside this one.
pub const SERVER_VARIABLE: &str = "REPLSERVER";

const SERVER_NAME: &str = "replserver";

/// Why no process was started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The program is nowhere.
    #[error(
        "no {SERVER_NAME} found in ${SERVER_VARIABLE}, beside this program, or on the PATH\ninstall both programs with `cargo install --path . --locked`"
    )]
    NoProgram,
    /// A file or the process could not be made.
    #[error("cannot start {}: {cause}\ncheck that {} exists and may be run and written to", .what.display(), .what.display())]
    System {
        /// The program, or the file meant for its output.
        what: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The cluster ran a moment ago, and its register holds nothing any more.
    #[error("the register in {} holds no view any more, and the cluster had one\nsee what is left with `replcluster recover`", .0.display())]
    NoView(PathBuf),
    /// The thread that starts processes is gone, which ends the supervisor.
    #[error(
        "the thread that starts processes has ended\nrun `replcluster up` again: what runs is taken over"
    )]
    NoThread,
}

/// A process to start.
#[derive(Clone, Debug)]
pub struct Job {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Where what it says goes; appended to.
    pub output: PathBuf,
    /// It is killed when this program ends, however that ends.
    pub dies_with_us: bool,
}

/// A process that was started.
#[derive(Debug)]
pub struct Started {
    /// To signal it.
    pub handle: Handle,
    /// To collect it.
    pub child: Child,
    /// What it says begins here in the file for it, in bytes.
    pub output_from: u64,
}

struct Order {
    job: Job,
    answer: mpsc::SyncSender<Result<Started, SpawnError>>,
}

/// The thread that starts processes.
#[derive(Clone, Debug)]
pub struct Spawner {
    orders: mpsc::SyncSender<Order>,
}

impl SpawnError {
    /// True where another try would fail as well: the program is not there or may not be run. Everything else passes: no
    /// memory, no descriptors, too many processes, a full disk.
    #[must_use]
    pub fn is_lasting(&self, program: &Path) -> bool {
        match self {
            SpawnError::NoProgram | SpawnError::NoView(_) | SpawnError::NoThread => true,
            SpawnError::System { what, cause } => {
                let kinds = [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied];
                what == program && kinds.contains(&cause.kind())
            }
        }
    }
}

impl Spawner {
    /// Starts the thread. It ends when the last `Spawner` is gone.
    ///
    /// # Errors
    /// What the system said.
    pub fn start() -> io::Result<Spawner> {
        // One order at a time: who asks waits for the answer, so more than one can never queue for long.
        let (orders, inbox) = mpsc::sync_channel::<Order>(1);
        std::thread::Builder::new().name("spawner".to_owned()).spawn(move || {
            for order in inbox {
                // Whoever asked and went away also dropped the process's handle; the process itself runs on.
                let _ = order.answer.send(start(&order.job));
            }
        })?;
        Ok(Spawner { orders })
    }

    /// Starts a process and waits until it exists: about a millisecond.
    ///
    /// # Errors
    /// [`SpawnError`]; no process was started then.
    pub fn spawn(&self, job: Job) -> Result<Started, SpawnError> {
        let (answer, result) = mpsc::sync_channel(1);
        self.orders.send(Order { job, answer }).map_err(|_| SpawnError::NoThread)?;
        result.recv().map_err(|_| SpawnError::NoThread)?
    }
}

fn start(job: &Job) -> Result<Started, SpawnError> {
    let unusable = |cause| SpawnError::System { what: job.output.clone(), cause };
    // Nobody has it open between two processes, so now it can be put aside.
    rotate::bound(&job.output, Limits::OUTPUT).map_err(unusable)?;
    let output = append(&job.output).map_err(unusable)?;
    let output_from = output.metadata().map_err(unusable)?.len();
    let failed = |cause| SpawnError::System { what: job.program.clone(), cause };
    let mut command = Command::new(&job.program);
    command
        .args(&job.arguments)
        .stdin(Stdio::null())
        .stdout(output.try_clone().map_err(failed)?)
        .stderr(output);
    inherited::of_child(&mut command);
    detach(&mut command);
    if job.dies_with_us {
        die_with_parent(&mut command);
    }
    let mut child = command.spawn().map_err(failed)?;
    // Not collected yet, so the number cannot have been given to anybody else.
    let held = os::stat(child.id())
        .and_then(|stat| {
            let id = os::ProcessId { pid: child.id(), start_time: stat.start_time, boot_id: os::boot_id()? };
            Handle::of_child(&id)
        })
        .map_err(failed);
    match held {
        Ok(handle) => Ok(Started { handle, child, output_from }),
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

/// Gives the process a session of its own, without a terminal.
/// A process group alone would not do: when its parent dies the kernel ends a group that holds a frozen process.
#[expect(unsafe_code, reason = "the standard library has no stable call that starts a session")]
pub fn detach(command: &mut Command) {
    // SAFETY: between fork and exec the closure makes one system call, which is async-signal-safe, and allocates
    // nothing: its error is a plain number.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid().map_err(|errno| io::Error::from_raw_os_error(errno as i32))?;
            Ok(())
        });
    }
}

/// Has the kernel kill the process when the thread that starts it ends. Of use only from a thread that lives as long as
/// its program: the signal follows the thread's end, not the program's.
#[expect(unsafe_code, reason = "the standard library cannot set the parent-death signal")]
pub fn die_with_parent(command: &mut Command) {
    let parent = nix::unistd::getpid();
    // SAFETY: between fork and exec the closure makes two system calls, which are async-signal-safe, and allocates
    // nothing: its errors are plain numbers.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)
                .map_err(|errno| io::Error::from_raw_os_error(errno as i32))?;
            // It may have died before the kernel was told.
            if nix::unistd::getppid() == parent { Ok(()) } else { Err(io::ErrorKind::NotConnected.into()) }
        });
    }
}

/// Opens a file for appending, and makes its directory where there is none. Both are for their owner only,
/// whatever the umask of the command that came first.
///
/// # Errors
/// What the system said.
pub fn append(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    owner::like_directory(&file, path)?;
    Ok(file)
}

/// Calls `tell` once with how a child of ours ended, from a thread of its own.
///
/// # Errors
/// What the system said where no thread can be started.
pub fn watch_child(mut child: Child, tell: impl FnOnce(Ended) + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(format!("reap {}", child.id())).spawn(move || {
        let ended = child
            .wait()
            .map_or(Ended::default(), |status| Ended { code: status.code(), signal: status.signal() });
        tell(ended);
    })?;
    Ok(())
}

/// Calls `tell` once when a process that is no child of ours ended, and how, where the kernel tells strangers.
///
/// # Errors
/// What the system said where no thread can be started.
pub fn watch_adopted(handle: Handle, tell: impl FnOnce(Ended) + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(format!("watch {}", handle.id.pid)).spawn(move || {
        handle.wait();
        tell(handle.ended());
    })?;
    Ok(())
}

/// The server program: where the environment says, else beside this one, else on the PATH.
///
/// # Errors
/// [`SpawnError::NoProgram`].
pub fn find_server() -> Result<PathBuf, SpawnError> {
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join(SERVER_NAME)));
    let named = std::env::var_os(SERVER_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|directory| directory.join(SERVER_NAME));
    named
        .into_iter()
        .chain(beside)
        .chain(on_path)
        .find(|candidate| candidate.is_file())
        .and_then(|found| std::path::absolute(found).ok())
        .ok_or(SpawnError::NoProgram)
}

/// The command line of one node.
#[must_use]
pub fn server_arguments(
    config: &Config,
    layout: &Layout,
    node: &NodeId,
    join: Option<&[NodeId]>,
    nonce: &str,
) -> Vec<OsString> {
    let mut register = OsString::from("file:");
    register.push(layout.register());
    let mut arguments: Vec<OsString> = vec!["--address".into(), node.as_str().into()];
    let mut option = |name: &str, value: OsString| {
        arguments.push(name.into());
        arguments.push(value);
    };
    option(CLUSTER_FLAG, (&config.name).into());
    option(DATA_DIR_FLAG, layout.data(node).into());
    option("--register", register);
    if let Some(others) = join {
        option("--join", others.iter().map(NodeId::as_str).collect::<Vec<_>>().join(",").into());
    }
    for (name, value) in settings(config) {
        option(&name, value.into());
    }
    option(NONCE_FLAG, nonce.into());
    option("--log-file", layout.log(node).into());
    arguments
}

/// What the name of the cluster is given behind.
pub const CLUSTER_FLAG: &str = "--cluster";
/// What the data directory of a node is given behind: by this a process can be found whose directory, and with it all
/// that was known of it, was deleted.
pub const DATA_DIR_FLAG: &str = "--data-dir";

/// By this a process can be found that was started by a supervisor that died before it could note its number.
pub const NONCE_FLAG: &str = "--nonce";

/// Among what a node is told: fewer nodes in sync than this, and it refuses writes.
pub const MIN_IN_SYNC_FLAG: &str = "--min-in-sync";

/// What a node is told of the configuration and can only be told at its start: flag and value.
#[must_use]
pub fn settings(config: &Config) -> BTreeMap<String, String> {
    let replication = &config.replication;
    let handback_after = replication.handback_after.map_or("never".to_owned(), show);
    [
        ("--heartbeat-interval", show(replication.heartbeat_interval)),
        ("--failure-timeout", show(replication.failure_timeout)),
        (MIN_IN_SYNC_FLAG, replication.min_in_sync.to_string()),
        ("--handback-after", handback_after),
        ("--log-max-size", show_size(config.logs.limits.max_size)),
        ("--log-keep", config.logs.limits.keep.to_string()),
    ]
    .into_iter()
    // Left out, RUST_LOG counts, as it does for the supervisor.
    .chain(config.logs.level.clone().map(|level| ("--log-level", level)))
    // Left out, the node's own defaults count.
    .chain(config.limits.connections.map(|most| ("--max-connections", most.to_string())))
    .chain(config.limits.request.map(|most| ("--max-request-bytes", most.to_string())))
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(directory: &Path, script: &str) -> Job {
        Job {
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            output: directory.join("deep/out"),
            dies_with_us: false,
        }
    }

    fn ended(started: Started) -> Ended {
        let (tell, told) = mpsc::sync_channel(1);
        watch_child(started.child, move |ended| tell.send(ended).unwrap()).unwrap();
        told.recv().unwrap()
    }

    #[test]
    fn a_childs_exact_end_is_told_and_what_it_said_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let spawner = Spawner::start().unwrap();
        let first = spawner.spawn(shell(directory.path(), "echo one; echo two >&2; exit 7")).unwrap();
        assert_eq!(ended(first), Ended { code: Some(7), signal: None });
        let second = spawner.spawn(shell(directory.path(), "echo three; kill -SEGV $$")).unwrap();
        assert_eq!(ended(second), Ended { code: None, signal: Some(11) });
        assert_eq!(std::fs::read_to_string(directory.path().join("deep/out")).unwrap(), "one\ntwo\nthree\n");
    }

    #[test]
    fn a_child_leads_a_session_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let started = Spawner::start().unwrap().spawn(shell(directory.path(), "exec sleep 1000")).unwrap();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(started.handle.id.pid).unwrap());
        assert_eq!(nix::unistd::getsid(Some(pid)).unwrap(), pid);
        started.handle.signal(9).unwrap();
        assert_eq!(ended(started).signal, Some(9));
    }

    #[test]
    fn a_program_that_cannot_run_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let job = Job { program: "/nonexistent/replserver".into(), ..shell(directory.path(), "") };
        let error = Spawner::start().unwrap().spawn(job).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/replserver"), "{error}");
        assert!(error.is_lasting(Path::new("/nonexistent/replserver")));
        let full = SpawnError::System { what: "/p".into(), cause: io::ErrorKind::StorageFull.into() };
        let no_directory = SpawnError::System { what: "/d".into(), cause: io::ErrorKind::NotFound.into() };
        assert!(!full.is_lasting(Path::new("/p")) && !no_directory.is_lasting(Path::new("/p")));
    }

    #[test]
    fn what_a_process_says_begins_where_its_own_file_does() {
        let directory = tempfile::tempdir().unwrap();
        let job = shell(directory.path(), "echo last words");
        let long = "x".repeat(usize::try_from(Limits::OUTPUT.max_size).unwrap() + 1);
        append(&job.output).unwrap();
        std::fs::write(&job.output, long).unwrap();
        let spawner = Spawner::start().unwrap();
        let first = spawner.spawn(job.clone()).unwrap();
        assert_eq!(first.output_from, 0, "the former file was put aside");
        ended(first);
        let second = spawner.spawn(job).unwrap();
        assert_eq!(second.output_from, 11);
        ended(second);
    }

    #[test]
    fn the_end_of_an_adopted_process_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let mut started =
            Spawner::start().unwrap().spawn(shell(directory.path(), "exec sleep 1000")).unwrap();
        let (tell, told) = mpsc::sync_channel(1);
        let handle = started.handle.try_clone().unwrap();
        watch_adopted(handle, move |ended| tell.send(ended).unwrap()).unwrap();
        started.handle.signal(9).unwrap();
        // We are its parent and collect it, which a watcher of a stranger waits for.
        started.child.wait().unwrap();
        let ended = told.recv().unwrap();
        assert!(ended == Ended::default() || ended.signal == Some(9), "{ended}");
    }

    #[test]
    fn a_node_is_told_everything_the_configuration_says() {
        let text = "name = \"c\"\nnodes = [\"127.0.0.1:1\", \"127.0.0.1:2\"]\n[replication]\nhandback_after = \"never\"";
        let config =
            crate::config::parse(Path::new("/d/cluster.toml"), text, &crate::config::resolve).unwrap();
        let layout = Layout::new(&config);
        let line = |join: Option<&[NodeId]>| {
            let arguments = server_arguments(&config, &layout, &config.nodes[0], join, "n0");
            arguments
                .into_iter()
                .map(|argument| argument.into_string().unwrap())
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(
            line(None),
            "--address 127.0.0.1:1 --cluster c --data-dir /d/.replcluster/nodes/127.0.0.1_1/data \
             --register file:/d/.replcluster/register --failure-timeout 300ms --handback-after never \
             --heartbeat-interval 50ms --log-keep 4 --log-max-size 16MiB --min-in-sync 1 --nonce n0 \
             --log-file /d/.replcluster/nodes/127.0.0.1_1/log"
        );
        assert!(line(Some(&config.nodes[1..])).contains(" --join 127.0.0.1:2 "));
        let text = format!("{text}\n[limits]\nconnections = 50\nrequest = \"1MiB\"");
        let config =
            crate::config::parse(Path::new("/d/cluster.toml"), &text, &crate::config::resolve).unwrap();
        let told = settings(&config);
        assert_eq!(
            (told["--max-connections"].as_str(), told["--max-request-bytes"].as_str()),
            ("50", "1048576")
        );
    }

    #[test]
    fn what_is_to_die_with_us_dies_with_the_thread_that_started_it() {
        let directory = tempfile::tempdir().unwrap();
        let job = Job { dies_with_us: true, ..shell(directory.path(), "exec sleep 1000") };
        let spawner = Spawner::start().unwrap();
        let bound = spawner.spawn(job).unwrap();
        let free = spawner.spawn(shell(directory.path(), "exec sleep 1000")).unwrap();
        // The thread ends with its last user, as it does with the program.
        drop(spawner);
        assert_eq!(ended(bound).signal, Some(9));
        assert!(os::is_alive(&free.handle.id));
        free.handle.signal(9).unwrap();
        ended(free);
    }
}
