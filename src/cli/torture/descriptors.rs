//! A node that has next to no descriptors left, because idle connections take them: as many as its limit allows, or, with
//! the limit lowered to little more than it has open, a few. Meanwhile another node is stopped, so that there is
//! something to open. What cannot be opened is no failed sync: no process may end, and once descriptors are there again
//! all goes on.

use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rustix::process::{Resource, Rlimit, getrlimit, prlimit, setrlimit};
use tokio::net::TcpStream;

use super::TortureFailure;
use super::faults::{Kind, Stop, Torturer};

/// So many are left beyond what is open, where the limit is lowered.
const LEFT: u64 = 16;
/// So many connections are opened then; each is one more than the node can take, sooner or later.
const FEW: u64 = 64;
/// And so many at most where the limit stays as it is.
const MANY: u64 = 2_000;
/// After so many that were not taken no more are tried.
const REFUSED: u32 = 8;
/// One that is not taken at once never will be.
const CONNECT: Duration = Duration::from_millis(100);

impl Torturer<'_> {
    pub(super) async fn take_descriptors(
        &mut self,
        node: usize,
        lowers_limit: bool,
        lasting: Duration,
    ) -> Result<String, Stop> {
        let other = (node + 1) % self.cluster.len();
        self.disturb(&[node, other]);
        self.strike(Kind::NoDescriptors);
        let Some(pid) = self.cluster.pid(node) else { return Ok("nothing".to_owned()) };
        let address = self.cluster.address(node).to_owned();
        let before = match lowers_limit {
            true => Some(limit(pid, &address, open_descriptors(pid) + LEFT)?),
            false => None,
        };
        let (mut idle, mut refused) = (Vec::new(), 0);
        for _ in 0..if lowers_limit { FEW } else { connections_to_fill(pid) } {
            match tokio::time::timeout(CONNECT, TcpStream::connect(&address)).await {
                Ok(Ok(stream)) => idle.push(stream),
                Ok(Err(_)) | Err(_) => refused += 1,
            }
            if refused == REFUSED {
                break;
            }
        }
        self.cluster.signal(other, Signal::SIGSTOP)?;
        tokio::time::sleep(lasting).await;
        self.cluster.signal(other, Signal::SIGCONT)?;
        if let Some(before) = before
            && self.cluster.pid(node) == Some(pid)
        {
            set(pid, &address, before)?;
        }
        let count = idle.len();
        drop(idle);
        let lowered = if lowers_limit { " and a low limit" } else { "" };
        let (other, lasting) = (self.names(&[other]), lasting.as_millis());
        Ok(format!("gave {address} {count} idle connections{lowered}, and stopped {other} for {lasting} ms"))
    }
}

/// As many as a process may still open, and some more; but no more than this one can have open itself.
fn connections_to_fill(pid: Pid) -> u64 {
    let left = limits(pid).current.unwrap_or(u64::MAX).saturating_sub(open_descriptors(pid));
    let ours = getrlimit(Resource::Nofile);
    // Where it is refused there are as many as there were.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: ours.maximum, maximum: ours.maximum });
    let own = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    left.saturating_add(FEW).min(MANY).min(own.saturating_sub(512))
}

fn open_descriptors(pid: Pid) -> u64 {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    u64::try_from(open).unwrap_or(0)
}

fn limits(pid: Pid) -> Rlimit {
    let text = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("Max open files")).unwrap_or_default();
    let number = |at| line.split_whitespace().nth(at).and_then(|word: &str| word.parse().ok());
    Rlimit { current: number(3), maximum: number(4) }
}

/// Lowers the limit; answers with what it was. Only the soft one, so that it can be given back without privileges.
fn limit(pid: Pid, address: &str, soft: u64) -> Result<Rlimit, TortureFailure> {
    let before = limits(pid);
    set(pid, address, Rlimit { current: Some(soft), maximum: before.maximum })?;
    Ok(before)
}

fn set(pid: Pid, address: &str, limit: Rlimit) -> Result<(), TortureFailure> {
    let now = of(pid).ok_or_else(|| refused(address, rustix::io::Errno::SRCH))?;
    prlimit(Some(now), Resource::Nofile, limit).map(drop).map_err(|error| refused(address, error))
}

fn of(pid: Pid) -> Option<rustix::process::Pid> {
    rustix::process::Pid::from_raw(pid.as_raw())
}

fn refused(address: &str, error: rustix::io::Errno) -> TortureFailure {
    TortureFailure::Signal(address.to_owned(), nix::errno::Errno::from_raw(error.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_process_can_be_left_fewer_descriptors_and_given_them_back() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let limits = || std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let before = limits();
        let was = limit(pid, "sleep", 12).unwrap();
        let line = limits().lines().find(|line| line.starts_with("Max open files")).unwrap().to_owned();
        assert_eq!(line.split_whitespace().nth(3), Some("12"), "{line}");
        set(pid, "sleep", was).unwrap();
        assert_eq!(limits(), before);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
