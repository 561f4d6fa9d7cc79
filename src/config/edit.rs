//! Writes changed nodes back into `cluster.toml`: comments and layout stay, and a reader never sees half a file.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::libc;

use crate::view::NodeId;

mod splice;

/// Why the file was not changed.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// The file cannot be read or replaced.
    #[error("cannot change {}: {cause}\ncheck that you may write to its directory", .path.display())]
    File {
        /// The file, or the new text beside it.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// Another command changes it.
    #[error("another command is just changing {}\ntry again when it has ended", .0.display())]
    Busy(PathBuf),
    /// The file changed since it was read and is no longer a configuration.
    #[error("{} has no list `nodes` any more\nlook at it with `replcluster check`", .0.display())]
    NoNodes(PathBuf),
}

/// The right to change a configuration. Two commands would take each other's nodes out again: each reads the whole file
/// and writes the whole file.
#[derive(Debug)]
pub struct Editor {
    /// The file itself where a symbolic link was given.
    path: PathBuf,
    /// On the directory: the file is another one after each change.
    _lock: Flock<fs::File>,
}

impl Editor {
    /// Where nobody else changes the file, and it can be changed.
    ///
    /// # Errors
    /// [`EditError`] where the file or its directory cannot be written, or somebody else is at it.
    pub fn open(path: &Path) -> Result<Editor, EditError> {
        let failed = |cause| EditError::File { path: path.to_owned(), cause };
        let path = fs::canonicalize(path).map_err(failed)?;
        let directory = fs::File::open(path.parent().unwrap_or(Path::new("/"))).map_err(failed)?;
        let lock =
            Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
                Errno::EWOULDBLOCK => EditError::Busy(path.clone()),
                other => failed(std::io::Error::from(other)),
            })?;
        // A file that is made immutable cannot be replaced either; whoever may only read it may yet replace it.
        match fs::OpenOptions::new().write(true).open(&path) {
            Err(cause) if matches!(cause.raw_os_error(), Some(libc::EPERM | libc::EROFS)) => {
                return Err(failed(cause));
            }
            Ok(_) | Err(_) => {}
        }
        let beside = beside(&path);
        fs::File::create(&beside).and_then(|_| fs::remove_file(&beside)).map_err(failed)?;
        Ok(Editor { path, _lock: lock })
    }

    /// Adds nodes at the end of `nodes`.
    ///
    /// # Errors
    /// [`EditError`]; the file is then as it was.
    pub fn add_nodes(&self, nodes: &[NodeId]) -> Result<(), EditError> {
        let nodes: Vec<&str> = nodes.iter().map(NodeId::as_str).collect();
        self.change(|text| splice::add(text, &nodes))
    }

    /// Takes nodes out of `nodes`; one that is not listed is not missed.
    ///
    /// # Errors
    /// [`EditError`]; the file is then as it was.
    pub fn remove_nodes(&self, nodes: &[NodeId]) -> Result<(), EditError> {
        let nodes: Vec<&str> = nodes.iter().map(NodeId::as_str).collect();
        self.change(|text| splice::remove(text, &nodes))
    }

    fn change(&self, edit: impl FnOnce(&str) -> Option<String>) -> Result<(), EditError> {
        let failed = |cause| EditError::File { path: self.path.clone(), cause };
        let text = fs::read_to_string(&self.path).map_err(failed)?;
        let changed = edit(&text).ok_or_else(|| EditError::NoNodes(self.path.clone()))?;
        replace(&self.path, changed.as_bytes()).map_err(failed)
    }
}

/// Where the new text is written before it takes the file's place.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.new", std::process::id()))
}

/// Replaces a file so that after a crash either the old or the new text is there, whole.
///
/// # Errors
/// What the system said; the old file is then untouched.
pub fn replace(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let temporary = beside(path);
    let written = (|| {
        let mut file = fs::File::create(&temporary)?;
        if let Ok(metadata) = fs::metadata(path) {
            file.set_permissions(metadata.permissions())?;
            // Root may edit the file of a user, who keeps it.
            let (owner, group) = (metadata.uid().into(), metadata.gid().into());
            if nix::unistd::geteuid().is_root() {
                nix::unistd::fchown(&file, Some(owner), Some(group)).map_err(std::io::Error::from)?;
            }
        }
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        fs::File::open(directory)?.sync_all()
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edited(text: &str, edit: impl FnOnce(&Path)) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cluster.toml");
        fs::write(&path, text).unwrap();
        edit(&path);
        let names: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
        assert_eq!(names.len(), 1, "nothing else is left in the directory");
        fs::read_to_string(&path).unwrap()
    }

    fn node(text: &str) -> NodeId {
        NodeId::parse(text).unwrap()
    }

    fn opened(path: &Path) -> Editor {
        loop {
            match Editor::open(path) {
                Err(EditError::Busy(_)) => std::thread::yield_now(),
                other => return other.unwrap(),
            }
        }
    }

    fn add(path: &Path, nodes: &[NodeId]) -> Result<(), EditError> {
        opened(path).add_nodes(nodes)
    }

    fn remove(path: &Path, nodes: &[NodeId]) -> Result<(), EditError> {
        opened(path).remove_nodes(nodes)
    }

    #[test]
    fn of_many_changes_at_the_same_time_none_is_lost() {
        let after = edited("nodes = [\"a:1\"]\n", |path| {
            std::thread::scope(|scope| {
                for port in 2..10 {
                    scope.spawn(move || add(path, &[node(&format!("a:{port}"))]).unwrap());
                }
            });
        });
        assert_eq!(after.matches("a:").count(), 9, "{after}");
    }

    #[test]
    fn a_file_that_cannot_be_changed_is_told_before_anything_else_is_done() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cluster.toml");
        assert!(matches!(Editor::open(&path), Err(EditError::File { .. })), "it is not there");
        fs::write(&path, "nodes = []").unwrap();
        // Where the new text would be written; root may write anywhere else.
        fs::create_dir(beside(&path)).unwrap();
        assert!(matches!(Editor::open(&path), Err(EditError::File { .. })));
    }

    #[test]
    fn comments_and_layout_stay() {
        let text = "# head\nnodes = [\"a:1\", \"a:2\"]   # lowest leads\n\n[supervisor] # why\nrestart = \"never\"\n";
        let after = edited(text, |path| add(path, &[node("a:3")]).unwrap());
        assert_eq!(after, text.replace("\"a:2\"]", "\"a:2\", \"a:3\"]"));
        let after = edited(text, |path| remove(path, &[node("a:2")]).unwrap());
        assert_eq!(after, text.replace(", \"a:2\"", ""));
    }

    #[test]
    fn a_list_with_one_node_a_line_stays_one() {
        let text = "nodes = [\n    \"a:1\", # first\n    \"a:2\",\n]\n";
        let after = edited(text, |path| add(path, &[node("a:3"), node("a:4")]).unwrap());
        assert_eq!(after, "nodes = [\n    \"a:1\", # first\n    \"a:2\",\n    \"a:3\",\n    \"a:4\",\n]\n");
    }

    #[test]
    fn adding_and_removing_the_sample_gives_the_sample() {
        let after = edited(super::super::SAMPLE, |path| {
            add(path, &[node("127.0.0.1:2382")]).unwrap();
            assert!(fs::read_to_string(path).unwrap().contains("    \"127.0.0.1:2382\",\n"));
            remove(path, &[node("127.0.0.1:2382")]).unwrap();
        });
        assert_eq!(after, super::super::SAMPLE);
    }

    #[test]
    fn a_file_without_nodes_is_left_alone() {
        let after = edited("x = 1\n", |path| {
            assert!(matches!(add(path, &[node("a:1")]), Err(EditError::NoNodes(_))));
        });
        assert_eq!(after, "x = 1\n");
    }
}
