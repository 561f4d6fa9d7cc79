//! A node that has next to no descriptors left: its limit is lowered to little more than it has open, and idle
//! connections take the rest. What it has open must stay open, and it must go on with what it does.

use std::time::Duration;

use nix::unistd::Pid;
use rustix::process::{Resource, Rlimit, prlimit};
use tokio::net::TcpStream;

use super::TortureFailure;
use super::faults::{Kind, Stop, Torturer};

/// So many are left beyond what is open.
const LEFT: u64 = 16;
/// So many connections are opened; each is one more than the node can take, sooner or later.
const CONNECTIONS: usize = 64;
/// One that is not taken at once never will be.
const CONNECT: Duration = Duration::from_millis(100);

impl Torturer<'_> {
    pub(super) async fn take_descriptors(&mut self, node: usize, lasting: Duration) -> Result<String, Stop> {
        self.disturb(&[node]);
        let struck = self.strike(Kind::NoDescriptors);
        let Some(pid) = self.cluster.pid(node) else { return Ok("nothing".to_owned()) };
        let address = self.cluster.address(node).to_owned();
        let before = limit(pid, &address, open_descriptors(pid) + LEFT)?;
        let mut idle = Vec::new();
        for _ in 0..CONNECTIONS {
            if let Ok(Ok(stream)) = tokio::time::timeout(CONNECT, TcpStream::connect(&address)).await {
                idle.push(stream);
            }
        }
        tokio::time::sleep(lasting).await;
        let served = self.acknowledged(struck, "the nodes, one of them without descriptors,").await;
        if self.cluster.pid(node) == Some(pid) {
            set(pid, &address, before)?;
        }
        drop(idle);
        served?;
        Ok(format!("left {address} {LEFT} descriptors for {} ms", lasting.as_millis()))
    }
}

fn open_descriptors(pid: Pid) -> u64 {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    u64::try_from(open).unwrap_or(0)
}

/// Lowers the limit; answers with what it was.
fn limit(pid: Pid, address: &str, soft: u64) -> Result<Rlimit, TortureFailure> {
    // The hard limit stays above: only the soft one is lowered, so that it can be given back without privileges.
    let text = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("Max open files")).unwrap_or_default();
    let number = |at| line.split_whitespace().nth(at).and_then(|word: &str| word.parse().ok());
    let before = Rlimit { current: number(3), maximum: number(4) };
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
