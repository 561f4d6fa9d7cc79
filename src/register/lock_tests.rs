//! Claims about node locks, and the child process that other tests kill.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use super::*;
use crate::register::FileRegister;

const DIRECTORY: &str = "REPLCLUSTER_TEST_REGISTER";
const NODE: &str = "REPLCLUSTER_TEST_NODE";

pub(crate) fn node(port: u16) -> NodeId {
    NodeId::parse(&format!("127.0.0.1:{port}")).unwrap()
}

pub(crate) fn register() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    FileRegister::open(directory.path()).unwrap();
    directory
}

fn take(directory: &Path, node: &NodeId) -> Result<NodeLock, LockError> {
    NodeLock::take(directory, node, &Holder::this_process(node, Path::new("data")).unwrap())
}

/// A process that holds a node's lock until it is killed or its standard input ends.
pub(crate) struct HoldingProcess {
    child: Child,
    _stdout: BufReader<ChildStdout>,
}

impl HoldingProcess {
    pub(crate) fn start(directory: &Path, node: &NodeId) -> HoldingProcess {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "register::lock::tests::the_other_process", "--nocapture"])
            .env(DIRECTORY, directory)
            .env(NODE, node.as_str())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("holding") {
            line.clear();
            assert_ne!(
                stdout.read_line(&mut line).unwrap(),
                0,
                "the other process ended before it held the lock"
            );
        }
        HoldingProcess { child, _stdout: stdout }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.pid()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// SIGKILL, and waits until the process is gone.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for HoldingProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The other half of tests that start this program again: it holds a lock until it is ended. Alone it claims nothing.
#[test]
fn the_other_process() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let node = NodeId::parse(&std::env::var(NODE).unwrap()).unwrap();
    let _lock = take(Path::new(&directory), &node).unwrap();
    println!("\nholding");
    std::io::stdout().flush().unwrap();
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

#[test]
fn a_lock_is_held_once_and_names_its_holder() {
    let directory = register();
    let held = take(directory.path(), &node(1)).unwrap();
    let Err(LockError::Held { holder: Some(holder), program: Some(program), .. }) =
        take(directory.path(), &node(1))
    else {
        panic!("it is held and the holder can be seen")
    };
    assert_eq!(holder.pid, std::process::id());
    assert_eq!(holder.address, "127.0.0.1:1");
    assert!(!program.is_empty());
    let _another_node = take(directory.path(), &node(2)).unwrap();
    drop(held);
    take(directory.path(), &node(1)).unwrap();
}

#[test]
fn a_refusal_is_readable() {
    let directory = register();
    let _held = take(directory.path(), &node(1)).unwrap();
    let text = take(directory.path(), &node(1)).unwrap_err().to_string();
    assert!(text.contains("127.0.0.1:1") && text.contains(&std::process::id().to_string()), "{text}");
}

#[test]
fn a_probe_tells_held_from_free_and_takes_nothing() {
    let directory = register();
    assert!(matches!(probe(directory.path(), &node(1)), Liveness::Unknown(_)), "no file is no proof");
    let held = take(directory.path(), &node(1)).unwrap();
    for _ in 0..3 {
        assert!(
            matches!(probe(directory.path(), &node(1)), Liveness::Alive(holder) if holder.pid == std::process::id())
        );
    }
    drop(held);
    assert!(
        matches!(probe(directory.path(), &node(1)), Liveness::Dead(last) if last.pid == std::process::id())
    );
    take(directory.path(), &node(1)).expect("the probes left nothing behind");
}

#[test]
fn a_killed_process_frees_its_lock_and_a_stopped_one_does_not() {
    let directory = register();
    let mut other = HoldingProcess::start(directory.path(), &node(1));
    let Liveness::Alive(holder) = probe(directory.path(), &node(1)) else {
        panic!("it said that it holds it")
    };
    assert_eq!(holder.pid, other.pid());
    other.signal(nix::sys::signal::Signal::SIGSTOP);
    assert!(matches!(probe(directory.path(), &node(1)), Liveness::Alive(_)));
    assert!(matches!(take(directory.path(), &node(1)), Err(LockError::Held { .. })));
    other.kill();
    assert_eq!(probe(directory.path(), &node(1)), Liveness::Dead(holder));
    take(directory.path(), &node(1)).unwrap();
}

#[test]
fn a_lock_is_inherited_by_no_program_started_while_it_is_held() {
    let directory = register();
    let held = take(directory.path(), &node(1)).unwrap();
    let heir = HoldingProcess::start(directory.path(), &node(2));
    drop(held);
    assert!(matches!(probe(directory.path(), &node(1)), Liveness::Dead(_)));
    assert!(matches!(probe(directory.path(), &node(2)), Liveness::Alive(holder) if holder.pid == heir.pid()));
}

#[test]
fn an_unlinked_lock_is_noticed_by_its_holder_and_is_no_proof_of_death() {
    let directory = register();
    let held = take(directory.path(), &node(1)).unwrap();
    assert!(held.is_named().unwrap());
    fs::remove_file(path_of(directory.path(), &node(1), LOCK)).unwrap();
    assert!(!held.is_named().unwrap());
    assert!(matches!(probe(directory.path(), &node(1)), Liveness::Unknown(_)));
    let _second = take(directory.path(), &node(1)).unwrap();
    assert!(!held.is_named().unwrap(), "the name leads to another lock now");
}

#[test]
fn a_free_lock_that_replaced_one_of_a_living_process_proves_nothing_of_that() {
    let directory = register();
    let first = take(directory.path(), &node(1)).unwrap();
    fs::remove_file(super::path_of(directory.path(), &node(1), "lock")).unwrap();
    let mut second = HoldingProcess::start(directory.path(), &node(1));
    let of_second = second.pid();
    second.kill();
    assert!(matches!(probe(directory.path(), &node(1)), Liveness::Dead(last) if last.pid == of_second));
    fs::write(super::path_of(directory.path(), &node(1), "lock"), "").unwrap();
    assert!(matches!(probe(directory.path(), &node(1)), Liveness::Unknown(_)), "free, but of whom?");
    assert!(!first.is_named().unwrap());
}

#[test]
fn a_lock_file_with_a_torn_or_older_longer_text_is_read_as_far_as_it_is_whole() {
    let directory = register();
    let held = take(directory.path(), &node(1)).unwrap();
    let whole = fs::read(&held.path).unwrap();
    fs::write(&held.path, [whole.as_slice(), b"tail of a longer text\"}\n"].concat()).unwrap();
    assert!(matches!(probe(directory.path(), &node(1)), Liveness::Alive(_)));
    fs::write(&held.path, &whole[..whole.len() / 2]).unwrap();
    assert!(
        matches!(probe(directory.path(), &node(1)), Liveness::Unknown(_)),
        "held, but by whom is not known"
    );
}

#[test]
fn no_address_can_leave_the_directory_of_locks_or_meet_another_ones_lock() {
    let base = Path::new("r");
    assert_eq!(path_of(base, &node(2379), LOCK), Path::new("r/nodes/127.0.0.1:2379.lock"));
    let strange = NodeId::parse("[/../../x]:1").unwrap();
    assert_eq!(path_of(base, &strange, LOCK).parent(), Some(Path::new("r/nodes")));
    let escaped = NodeId::parse("[%2F]:1").unwrap();
    assert_ne!(path_of(base, &NodeId::parse("[/]:1").unwrap(), LOCK), path_of(base, &escaped, LOCK));
}

/// Is the lock still held when its holder is gone and a child of it lives?
fn outlives_its_holder_in_a_child() -> bool {
    let directory = register();
    let lock = take(directory.path(), &node(1)).unwrap();
    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    drop(lock);
    // A process that another test is just starting has the descriptor too, until it is another program.
    let deadline = Instant::now() + Duration::from_secs(1);
    let held = loop {
        let held = take(directory.path(), &node(1)).is_err();
        if !held || Instant::now() >= deadline {
            break held;
        }
        std::thread::yield_now();
    };
    child.kill().unwrap();
    child.wait().unwrap();
    held
}

#[test]
fn no_child_keeps_a_lock_and_without_close_on_exec_one_would() {
    assert!(!outlives_its_holder_in_a_child());
    assert!(crate::rules::without(Some(crate::rules::Rule::CloseOnExec), outlives_its_holder_in_a_child));
}

/// A node is started again and gets the process id that it had: is the new process dead to those who have a proof that
/// the first one is?
fn is_dead_to_its_peers_after_a_restart() -> bool {
    let directory = register();
    let first = Holder { session: 7, ..Holder::this_process(&node(1), Path::new("data")).unwrap() };
    let second = Holder { session: 8, ..first.clone() };
    drop(NodeLock::take(directory.path(), &node(1), &first).unwrap());
    let Liveness::Dead(dead) = probe(directory.path(), &node(1)) else { panic!("its lock is free") };
    let _lock = NodeLock::take(directory.path(), &node(1), &second).unwrap();
    let Liveness::Alive(alive) = probe(directory.path(), &node(1)) else { panic!("it is held again") };
    dead.session() == alive.session()
}

#[test]
fn a_process_with_the_pid_of_a_dead_one_is_another_and_by_its_pid_it_is_not() {
    assert!(!is_dead_to_its_peers_after_a_restart());
    assert!(crate::rules::without(
        Some(crate::rules::Rule::RandomSession),
        is_dead_to_its_peers_after_a_restart
    ));
}

#[test]
fn a_lock_of_an_older_build_names_its_process_by_the_pid_that_it_greets_with() {
    let directory = register();
    let path = path_of(directory.path(), &node(1), LOCK);
    let older = r#"{"pid":77,"start_time":5,"boot_id":"b","address":"127.0.0.1:1","data_dir":"data"}"#;
    fs::write(&path, format!("{older}\n")).unwrap();
    let Liveness::Dead(last) = probe(directory.path(), &node(1)) else { panic!("it is free") };
    assert_eq!(last.session(), 77);
    assert_ne!(session(), 0);
    assert_eq!(Holder::this_process(&node(1), Path::new("data")).unwrap().session(), session());
}

/// A node runs and the register's directory is copied: is the node dead by the copy?
fn is_dead_by_a_copy_of_its_lock() -> bool {
    let (directory, copy) = (register(), register());
    let _held = take(directory.path(), &node(1)).unwrap();
    let [from, to] = [&directory, &copy].map(|register| path_of(register.path(), &node(1), LOCK));
    fs::copy(from, to).unwrap();
    matches!(probe(copy.path(), &node(1)), Liveness::Dead(_))
}

#[test]
fn a_copied_lock_proves_nothing_and_without_its_inode_a_living_process_is_dead() {
    assert!(!is_dead_by_a_copy_of_its_lock());
    assert!(crate::rules::without(Some(crate::rules::Rule::NameLockFile), is_dead_by_a_copy_of_its_lock));
}
