//! Where everything of a cluster lies on disk. Names only; nothing is created by asking.

use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::view::NodeId;

/// The directory of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout below the configuration's `data_dir`.
    #[must_use]
    pub fn new(config: &Config) -> Layout {
        Layout { root: config.data_dir.clone() }
    }

    /// The directory itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the nodes agree on a view.
    #[must_use]
    pub fn register(&self) -> PathBuf {
        self.root.join("register")
    }

    /// What a node writes about its process while it lives.
    #[must_use]
    pub fn node_lock(&self, node: &NodeId) -> PathBuf {
        self.register().join("nodes").join(format!("{node}.lock"))
    }

    /// All that belongs to one node.
    #[must_use]
    pub fn node(&self, node: &NodeId) -> PathBuf {
        let name: String = node.as_str().chars().map(|c| if c == ':' { '_' } else { c }).collect();
        self.root.join("nodes").join(name)
    }

    /// A node's copy of the data.
    #[must_use]
    pub fn data(&self, node: &NodeId) -> PathBuf {
        self.node(node).join("data")
    }

    /// A node's log lines.
    #[must_use]
    pub fn log(&self, node: &NodeId) -> PathBuf {
        self.node(node).join("log")
    }

    /// What a node's process says outside its log: panics and last words.
    #[must_use]
    pub fn stderr(&self, node: &NodeId) -> PathBuf {
        self.node(node).join("stderr")
    }

    /// The control socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.root.join("supervisor.sock")
    }

    /// Held by the one supervisor of the cluster.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.root.join("supervisor.lock")
    }

    /// The supervisor's own log lines.
    #[must_use]
    pub fn supervisor_log(&self) -> PathBuf {
        self.root.join("supervisor.log")
    }

    /// The history.
    #[must_use]
    pub fn events(&self) -> PathBuf {
        self.root.join("events.jsonl")
    }

    /// What the supervisor remembers of its processes.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.root.join("state.json")
    }

    /// True where the register holds a view, so that the cluster was created.
    ///
    /// # Errors
    /// What the system said, except that a missing directory is an empty one.
    pub fn has_view(&self) -> std::io::Result<bool> {
        let entries = match std::fs::read_dir(self.register()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        for entry in entries {
            if entry?.file_name().to_string_lossy().starts_with("view-") {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_register_without_a_directory_or_a_view_is_empty() {
        let top = tempfile::tempdir().unwrap();
        let layout = Layout { root: top.path().join("c") };
        assert!(!layout.has_view().unwrap());
        std::fs::create_dir_all(layout.register().join("nodes")).unwrap();
        assert!(!layout.has_view().unwrap());
        std::fs::write(layout.register().join("view-00000000000000000001"), "").unwrap();
        assert!(layout.has_view().unwrap());
    }

    #[test]
    fn a_nodes_directory_has_no_colon() {
        let layout = Layout { root: PathBuf::from("/c") };
        let node = NodeId::parse("[::1]:2379").unwrap();
        assert_eq!(layout.data(&node), Path::new("/c/nodes/[__1]_2379/data"));
    }
}
