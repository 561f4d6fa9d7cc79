//! One lock per node, held for the life of its process: `nodes/<address>.lock` in the register's directory.
//! A lock that is free is proof that the process which held it is gone (R28); nothing else here is.
//!
//! Which process that was is known by its session, a random number (R32). Process ids come again: in containers every
//! node is process 1. What `/proc` says of an id counts only within the pid namespace in which the id was given.
//! The text names the lock file itself, by its inode: a copy of the file is free too, and proves nothing.
//!
//! The locks belong to the open file (OFD locks), not to the process: no other descriptor of ours can lose them by
//! being closed, and looking who holds one takes nothing. The descriptors are close-on-exec (R27). What stands
//! *in* the file tells people and [`super::watch`] whom to look at; it is a hint, the lock is the fact.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use serde::{Deserialize, Serialize};

use crate::rules::{Rule, breaks};
use crate::view::NodeId;

/// Directory of the locks inside the register's.
pub(super) const NODES: &str = "nodes";

/// What the name of a lock ends with.
pub(super) const LOCK: &str = "lock";

/// A lock file may be replaced between opening and locking it; each round takes microseconds.
const ATTEMPTS: u32 = 64;

/// Identifies this process: random, never zero, made once. It stands in the node's lock, in its greeting to peers and in
/// a proof of its death (R32).
#[must_use]
pub fn session() -> u64 {
    static SESSION: OnceLock<u64> = OnceLock::new();
    *SESSION.get_or_init(|| rand::random::<u64>().max(1))
}

/// The process that holds a node's lock, as written in the lock file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// See [`session`]; zero in the lock of an older build.
    #[serde(default)]
    session: u64,
    /// Its process id, as it sees itself.
    pub pid: u32,
    /// When it started, in clock ticks since boot (`/proc/<pid>/stat`): tells it from a later process with its id.
    pub start_time: u64,
    /// The boot it runs in (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// The pid namespace in which it has its id (`/proc/self/ns/pid`); zero: not known.
    #[serde(default)]
    pid_namespace: u64,
    /// Device and inode of the lock file; zeros in the lock of an older build.
    #[serde(default)]
    lock_file: (u64, u64),
    /// The node's address.
    pub address: String,
    /// Where it keeps its data.
    pub data_dir: PathBuf,
}

impl Holder {
    /// This very process.
    ///
    /// # Errors
    /// Where `/proc` cannot be read.
    pub fn this_process(node: &NodeId, data_dir: &Path) -> io::Result<Holder> {
        let pid = std::process::id();
        // Not by the id: `/proc` may be that of another pid namespace.
        let start_time = start_time_of("self")?
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "/proc/self/stat is not there"))?;
        Ok(Holder {
            session: session(),
            pid,
            start_time,
            boot_id: boot_id()?,
            pid_namespace: pid_namespace(),
            // Written with the lock.
            lock_file: (0, 0),
            address: node.as_str().to_owned(),
            data_dir: data_dir.to_owned(),
        })
    }

    /// What identifies the process to its peers. An older build greets them with its process id.
    #[must_use]
    pub fn session(&self) -> u64 {
        if breaks(Rule::RandomSession) || self.session == 0 { u64::from(self.pid) } else { self.session }
    }

    /// True where its process id means the same process here and there. A lock that does not name its pid namespace is
    /// of an older build, or of a system that shows none.
    pub(super) fn shares_our_processes(&self) -> bool {
        breaks(Rule::SamePidNamespace)
            || boot_id().is_ok_and(|ours| ours == self.boot_id)
                && (self.pid_namespace == 0 || self.pid_namespace == pid_namespace())
    }

    /// The same process as it is seen from elsewhere.
    #[cfg(test)]
    pub(super) fn of_another_pid_namespace(self) -> Holder {
        Holder { pid_namespace: self.pid_namespace + 1, ..self }
    }

    /// True where it was written into this very file, not into one that this is a copy of.
    fn wrote(&self, file: &Metadata) -> bool {
        let (device, inode) = self.lock_file;
        // Devices are numbered anew at each boot.
        let same_device = device == file.dev() || boot_id().is_ok_and(|ours| ours != self.boot_id);
        breaks(Rule::NameLockFile) || inode == 0 || (inode == file.ino() && same_device)
    }

    /// The name of its program, where it can be seen from here.
    #[must_use]
    pub fn program(&self) -> Option<String> {
        // Looked up before and after, so that the name is not that of a later process with the same id.
        let alive =
            || self.shares_our_processes() && start_time(self.pid).ok().flatten() == Some(self.start_time);
        let name = alive().then(|| fs::read_to_string(format!("/proc/{}/comm", self.pid)).ok()).flatten()?;
        alive().then(|| name.trim_end().to_owned())
    }
}

/// Why a lock could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error("the address {node} is held by {}: stop that one first", describe(holder.as_deref(), program.as_deref()))]
    Held {
        /// The node whose lock was wanted.
        node: NodeId,
        /// Who has it; `None` in the moment in which it is still writing its name.
        holder: Option<Box<Holder>>,
        /// The holder's program.
        program: Option<String>,
    },
    /// The file system failed.
    #[error("{doing} {} failed: {source}", path.display())]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// The lock file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

fn describe(holder: Option<&Holder>, program: Option<&str>) -> String {
    match holder {
        Some(holder) => format!(
            "process {} ({}) with the data directory {}",
            holder.pid,
            program.unwrap_or("program unknown"),
            holder.data_dir.display()
        ),
        None => "another process".to_owned(),
    }
}

/// A node's lock, ours until this value is dropped or the process is gone. Dropping it tells the others that this
/// node can do no harm any more: do it last.
#[derive(Debug)]
pub struct NodeLock {
    file: File,
    path: PathBuf,
}

impl NodeLock {
    /// Takes the lock of `node` and writes `holder` into it.
    ///
    /// # Errors
    /// [`LockError::Held`] names the process that has it.
    pub fn take(register: &Path, node: &NodeId, holder: &Holder) -> Result<NodeLock, LockError> {
        let path = path_of(register, node, LOCK);
        let failed = |doing| {
            let path = path.clone();
            move |source: io::Error| LockError::Io { doing, path, source }
        };
        for _ in 0..ATTEMPTS {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .map_err(failed("opening the lock"))?;
            // What std opens is close-on-exec (R27).
            if breaks(Rule::CloseOnExec) {
                fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty()))
                    .map_err(|error| failed("opening")(error.into()))?;
            }
            match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file())) {
                Ok(_) => {}
                Err(Errno::EAGAIN | Errno::EACCES) => {
                    let holder = read_holder(&file).map(Box::new);
                    let program = holder.as_deref().and_then(Holder::program);
                    return Err(LockError::Held { node: node.clone(), holder, program });
                }
                Err(error) => return Err(failed("locking")(error.into())),
            }
            let lock = NodeLock { file, path: path.clone() };
            // Unlinked or replaced since we opened it: what we hold has no name, so nobody would meet it.
            if lock.is_named().map_err(failed("looking at the lock"))? {
                lock.write(holder).map_err(failed("writing the lock"))?;
                return Ok(lock);
            }
        }
        Err(failed("locking")(io::Error::other("the file is replaced again and again")))
    }

    /// True while the lock's name still leads to the lock that we hold. False: somebody unlinked the file, so that
    /// another process could take the same address.
    ///
    /// # Errors
    /// What the file system says, other than that the file is gone.
    pub fn is_named(&self) -> io::Result<bool> {
        names(&self.path, &self.file)
    }

    fn write(&self, holder: &Holder) -> io::Result<()> {
        let file = self.file.metadata()?;
        let mut text = serde_json::to_vec(&Holder { lock_file: (file.dev(), file.ino()), ..holder.clone() })?;
        text.push(b'\n');
        self.file.write_all_at(&text, 0)?;
        self.file.set_len(text.len() as u64)
    }
}

/// What can be known about the process of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// Its lock is free: this process, which last held it, is gone. Proof (R28), and of this process only: where
    /// somebody unlinked the file of a living one, it is another process that held the lock of that name.
    Dead(Holder),
    /// Its lock is held. It may be stopped or hung all the same.
    Alive(Holder),
    /// Neither is certain, for this reason.
    Unknown(String),
}

/// Looks at the lock of a node without taking it.
#[must_use]
pub fn probe(register: &Path, node: &NodeId) -> Liveness {
    let path = path_of(register, node, LOCK);
    for _ in 0..ATTEMPTS {
        match look(&path) {
            Ok(Some(liveness)) => return liveness,
            Ok(None) => {}
            // No file is no proof: it may have been unlinked under a living process.
            Err(error) => return Liveness::Unknown(format!("{}: {error}", path.display())),
        }
    }
    Liveness::Unknown(format!("{} is replaced again and again", path.display()))
}

/// `None`: the file was replaced meanwhile.
fn look(path: &Path) -> io::Result<Option<Liveness>> {
    let file = File::open(path)?;
    // Read before the look at the lock: read after it, it might name one that has taken the lock since.
    let last = read_holder(&file);
    let mut wanted = whole_file();
    fcntl(&file, FcntlArg::F_OFD_GETLK(&mut wanted))?;
    let unreadable = |state| Liveness::Unknown(format!("{} {state}", path.display()));
    if i32::from(wanted.l_type) != libc::F_UNLCK {
        let holder = read_holder(&file).map(Liveness::Alive);
        return Ok(Some(holder.unwrap_or_else(|| unreadable("is held, but does not say by whom"))));
    }
    let metadata = file.metadata()?;
    let dead = match last {
        None => unreadable("is free, but does not say who held it"),
        Some(last) if !last.wrote(&metadata) => unreadable("is free, but a copy of another lock"),
        Some(last) => Liveness::Dead(last),
    };
    Ok(names(path, &file)?.then_some(dead))
}

fn names(path: &Path, file: &File) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The lock that covers a whole file, whatever its length.
fn whole_file() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// The first line; what may follow is the rest of a longer, older one that is just being overwritten.
fn read_holder(file: &File) -> Option<Holder> {
    let mut bytes = vec![0; 16 * 1024];
    let length = file.read_at(&mut bytes, 0).ok()?;
    let line = bytes[..length].split(|byte| *byte == b'\n').next()?;
    serde_json::from_slice(line).ok()
}

/// `<address>.lock` or another file of that node, with `%XX` for whatever has no place in a file name.
pub(super) fn path_of(register: &Path, node: &NodeId, extension: &str) -> PathBuf {
    let mut name = String::new();
    for byte in node.as_str().bytes() {
        if byte.is_ascii_alphanumeric() || b"._-:[]".contains(&byte) {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("%{byte:02X}"));
        }
    }
    name.push('.');
    register.join(NODES).join(name + extension)
}

/// When a process started, in clock ticks since boot; `None`: there is none with this id.
pub(super) fn start_time(pid: u32) -> io::Result<Option<u64>> {
    start_time_of(&pid.to_string())
}

fn start_time_of(pid: &str) -> io::Result<Option<u64>> {
    let text = match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        Err(error) => return Err(error),
    };
    // The program's name stands in parentheses and may hold any character; the 22nd field is the 20th after it.
    let after_name = text.rfind(") ").map(|at| &text[at + 2..]);
    let field = after_name.and_then(|rest| rest.split(' ').nth(19)).and_then(|field| field.parse().ok());
    field
        .map(Some)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat: {text}")))
}

/// Numbers the pid namespace of this process; zero where the system does not say.
fn pid_namespace() -> u64 {
    fs::metadata("/proc/self/ns/pid").map_or(0, |namespace| namespace.ino())
}

/// Names this boot of the machine.
pub(super) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim_end().to_owned())
}

#[cfg(test)]
#[path = "lock_tests.rs"]
pub(super) mod tests;
