//! What measurements and torture need for clusters of their own: a directory that goes with them, and free addresses.

use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use rand::RngExt as _;

/// Ports below this are for programs with a fixed place.
const FIRST_PORT: u16 = 10_000;
/// Where the ports begin that the kernel gives to outgoing connections, where it does not say.
const FIRST_OUTGOING_PORT: u16 = 32_768;

/// The directory of one run; removed with everything in it unless it is kept.
#[derive(Debug)]
pub(super) struct Scratch {
    path: PathBuf,
    keep: bool,
}

impl Scratch {
    /// Makes `.replcluster-PURPOSE/<pid>` in `parent`.
    ///
    /// # Errors
    /// The directory that could not be made, and what the system said.
    pub(super) fn new(parent: &Path, purpose: &str) -> Result<Scratch, (PathBuf, io::Error)> {
        let path = parent.join(format!(".replcluster-{purpose}")).join(std::process::id().to_string());
        // Servers get it on their command line and may have another working directory.
        match std::fs::create_dir_all(&path).and_then(|()| path.canonicalize()) {
            Ok(path) => Ok(Scratch { path, keep: false }),
            Err(error) => Err((path, error)),
        }
    }

    /// The directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A place inside it.
    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Leaves everything behind for whoever looks into it.
    pub(super) fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.keep {
            // Nothing depends on their being gone.
            let _ = std::fs::remove_dir_all(&self.path);
            let _ = self.path.parent().map(std::fs::remove_dir);
        }
    }
}

/// Loopback addresses that nobody listens on, all different. A node that is down must find its port free when it comes
/// back, so none of them is one that the kernel gives to outgoing connections.
///
/// # Errors
/// What the system said of the last address that was tried.
pub(super) fn free_addresses(count: usize) -> io::Result<Vec<String>> {
    let mut random = rand::rng();
    let end = first_outgoing_port().max(FIRST_PORT + 1000);
    let mut listeners: Vec<TcpListener> = Vec::new();
    let mut refused = None;
    for _ in 0..1000 {
        if listeners.len() == count {
            break;
        }
        match TcpListener::bind(("127.0.0.1", random.random_range(FIRST_PORT..end))) {
            Ok(listener) => listeners.push(listener),
            Err(error) => refused = Some(error),
        }
    }
    match refused {
        Some(error) if listeners.len() < count => Err(error),
        Some(_) | None => listeners.iter().map(|listener| Ok(listener.local_addr()?.to_string())).collect(),
    }
}

fn first_outgoing_port() -> u16 {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    range.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(FIRST_OUTGOING_PORT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_different_and_none_is_the_kernels_to_give() {
        let addresses = free_addresses(8).unwrap();
        let ports: std::collections::BTreeSet<u16> =
            addresses.iter().map(|address| address.rsplit_once(':').unwrap().1.parse().unwrap()).collect();
        assert_eq!(ports.len(), 8);
        assert!(ports.iter().all(|port| (FIRST_PORT..first_outgoing_port()).contains(port)), "{ports:?}");
    }

    #[test]
    fn the_directory_goes_unless_it_is_kept() {
        let parent = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(parent.path(), "test").unwrap();
        std::fs::write(scratch.join("file"), "").unwrap();
        drop(scratch);
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
        let mut scratch = Scratch::new(parent.path(), "test").unwrap();
        scratch.keep();
        let path = scratch.path().to_owned();
        drop(scratch);
        assert!(path.is_dir());
    }

    #[test]
    fn a_place_that_cannot_be_used_is_named() {
        let parent = tempfile::NamedTempFile::new().unwrap();
        let (path, _) = Scratch::new(parent.path(), "test").unwrap_err();
        assert!(path.starts_with(parent.path()));
    }
}
