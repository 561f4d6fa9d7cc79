//! Who holds a port. Asked before a node is started, so that a conflict is reported by name and at once instead of
//! as a node that does not come up.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::Duration;

use crate::clock;
use crate::view::NodeId;

use super::os;

/// A process that listens where a node is to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its number; `None` where it belongs to somebody whose processes we may not see.
    pub pid: Option<u32>,
    /// Its command line, or its name.
    pub program: String,
}

/// Why a node cannot listen on its address.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// Somebody listens there.
    #[error("{node} is held by {}\nend that process, or give the node another address in cluster.toml", describe(.holder))]
    Held {
        /// The node whose address it is.
        node: NodeId,
        /// Who.
        holder: Holder,
    },
    /// The address is not one of this host, or may not be used.
    #[error("cannot listen on {node}: {cause}\ngive the node an address of this host in cluster.toml")]
    Unusable {
        /// The node whose address it is.
        node: NodeId,
        /// What the system said.
        cause: io::Error,
    },
}

/// As people read it.
#[must_use]
pub fn describe(holder: &Holder) -> String {
    match holder.pid {
        Some(pid) => format!("pid {pid} ({})", holder.program),
        None => holder.program.clone(),
    }
}

/// Checks that a node could listen on its address now.
///
/// # Errors
/// [`PortError`] with the holder's name.
pub fn check(node: &NodeId) -> Result<(), PortError> {
    let unusable = |cause| PortError::Unusable { node: node.clone(), cause };
    let mut usable = false;
    let mut refusal = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for socket in crate::config::resolve(node.as_str()).map_err(unusable)? {
        match TcpListener::bind(socket) {
            Ok(_) => usable = true,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let holder = holder(socket).unwrap_or_else(|| Holder {
                    pid: None,
                    program: "a process of another user, or a connection that is just closing".to_owned(),
                });
                return Err(PortError::Held { node: node.clone(), holder });
            }
            // A name may stand for several addresses; one of them is enough.
            Err(error) => refusal = error,
        }
    }
    if usable { Ok(()) } else { Err(unusable(refusal)) }
}

/// How long what has no holder may be in the way: sockets of a process that has just ended go one after another.
const CLOSING: Duration = Duration::from_secs(1);

/// The same, and waits a moment where nobody is seen to hold the address.
///
/// # Errors
/// [`PortError`] with the holder's name.
pub async fn await_free(node: &NodeId) -> Result<(), PortError> {
    let deadline = clock::now() + CLOSING;
    loop {
        match check(node) {
            Err(PortError::Held { holder: Holder { pid: None, .. }, .. }) if clock::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            judged => return judged,
        }
    }
}

/// The process that listens on this socket, or on the same port of every interface.
#[must_use]
pub fn holder(socket: SocketAddr) -> Option<Holder> {
    let inodes: BTreeSet<u64> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|table| listening(&table, socket))
        .collect();
    if inodes.is_empty() {
        return None;
    }
    os::pids()
        .into_iter()
        .find(|pid| owns(*pid, &inodes))
        .map(|pid| Holder { pid: Some(pid), program: program(pid) })
}

fn owns(pid: u32, inodes: &BTreeSet<u64>) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()).any(|target| {
        target
            .to_str()
            .and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok())
            .is_some_and(|inode| inodes.contains(&inode))
    })
}

/// What a process calls itself: its command line, else the kernel's short name.
#[must_use]
pub fn program(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<String> = line
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty())
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    if words.is_empty() {
        return fs::read_to_string(format!("/proc/{pid}/comm"))
            .map_or("unknown".to_owned(), |name| name.trim().to_owned());
    }
    let text = words.join(" ");
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// The inodes of sockets in the kernel's table that listen where `socket` would.
fn listening(table: &str, socket: SocketAddr) -> Vec<u64> {
    const LISTEN: &str = "0A";
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let (address, port) = fields.get(1)?.split_once(':')?;
            let address = kernel_address(address)?;
            let same_port = u16::from_str_radix(port, 16).ok()? == socket.port();
            let same_address = address.is_unspecified() || address == socket.ip().to_canonical();
            (*fields.get(3)? == LISTEN && same_port && same_address).then(|| fields.get(9)?.parse().ok())?
        })
        .collect()
}

/// The kernel prints addresses as 32-bit words in the machine's own byte order.
fn kernel_address(text: &str) -> Option<IpAddr> {
    let words: Vec<[u8; 4]> = text
        .as_bytes()
        .chunks(8)
        .map(|chunk| Some(u32::from_str_radix(std::str::from_utf8(chunk).ok()?, 16).ok()?.to_ne_bytes()))
        .collect::<Option<_>>()?;
    match words.as_slice() {
        [word] => Some(IpAddr::V4(Ipv4Addr::from(*word))),
        [a, b, c, d] => {
            let mut bytes = [0; 16];
            for (part, word) in bytes.chunks_mut(4).zip([a, b, c, d]) {
                part.copy_from_slice(word);
            }
            Some(IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_port_names_this_very_process() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let node = NodeId::parse(&listener.local_addr().unwrap().to_string()).unwrap();
        match check(&node) {
            Err(PortError::Held { holder, .. }) => {
                assert_eq!(holder.pid, Some(std::process::id()));
                assert!(!holder.program.is_empty());
            }
            other => panic!("{other:?}"),
        }
        drop(listener);
        check(&node).unwrap();
    }

    #[test]
    fn a_listener_on_every_interface_is_found_too() {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let found = holder(SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
        assert_eq!(found.pid, Some(std::process::id()));
    }

    #[test]
    fn an_address_of_another_host_is_refused() {
        let node = NodeId::parse("192.0.2.1:2379").unwrap();
        assert!(matches!(check(&node), Err(PortError::Unusable { .. })));
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn the_kernels_addresses_are_read() {
        assert_eq!(kernel_address("0100007F"), Some(IpAddr::from([127, 0, 0, 1])));
        assert_eq!(kernel_address("00000000000000000000000001000000"), Some(IpAddr::V6(Ipv6Addr::LOCALHOST)));
        assert_eq!(kernel_address("0000000000000000FFFF00000100007F"), Some(IpAddr::from([127, 0, 0, 1])));
        assert_eq!(kernel_address("xyz"), None);
    }
}
