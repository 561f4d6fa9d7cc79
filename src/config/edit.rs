//! Writes changed nodes back into `cluster.toml`: comments and layout stay, and a reader never sees half a file.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use toml_edit::{Array, DocumentMut, Value};

use crate::view::NodeId;

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
    /// The file changed since it was read and is no longer a configuration.
    #[error("{} has no list `nodes` any more\nlook at it with `replcluster check`", .0.display())]
    NoNodes(PathBuf),
}

/// Adds nodes at the end of `nodes`.
///
/// # Errors
/// [`EditError`]; the file is then as it was.
pub fn add_nodes(path: &Path, nodes: &[NodeId]) -> Result<(), EditError> {
    change(path, |list| {
        for node in nodes {
            let mut value = Value::from(node.as_str());
            // A list with one node a line goes on that way; a list on one line too.
            if let Some(last) = list.iter().last() {
                let prefix = last.decor().prefix().and_then(|raw| raw.as_str()).unwrap_or(" ").to_owned();
                let indent = prefix.rfind('\n').map_or(" ".to_owned(), |at| prefix[at..].to_owned());
                value.decor_mut().set_prefix(indent);
            }
            list.push_formatted(value);
        }
    })
}

/// Takes nodes out of `nodes`; one that is not listed is not missed.
///
/// # Errors
/// [`EditError`]; the file is then as it was.
pub fn remove_nodes(path: &Path, nodes: &[NodeId]) -> Result<(), EditError> {
    change(path, |list| {
        list.retain(|value| !nodes.iter().any(|node| value.as_str() == Some(node.as_str())));
    })
}

fn change(path: &Path, edit: impl FnOnce(&mut Array)) -> Result<(), EditError> {
    let failed = |cause| EditError::File { path: path.to_owned(), cause };
    let text = fs::read_to_string(path).map_err(failed)?;
    let mut document: DocumentMut = text.parse().map_err(|_| EditError::NoNodes(path.to_owned()))?;
    let list = document.get_mut("nodes").and_then(toml_edit::Item::as_array_mut);
    edit(list.ok_or_else(|| EditError::NoNodes(path.to_owned()))?);
    // A symbolic link stays one: its target is replaced.
    let target = fs::canonicalize(path).map_err(failed)?;
    replace(&target, document.to_string().as_bytes()).map_err(failed)
}

/// Replaces a file so that after a crash either the old or the new text is there, whole.
///
/// # Errors
/// What the system said; the old file is then untouched.
pub fn replace(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = directory.join(format!(".{name}.{}.new", std::process::id()));
    let written = (|| {
        let mut file = fs::File::create(&temporary)?;
        if let Ok(metadata) = fs::metadata(path) {
            file.set_permissions(metadata.permissions())?;
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

    #[test]
    fn comments_and_layout_stay() {
        let text = "# head\nnodes = [\"a:1\", \"a:2\"]   # lowest leads\n\n[supervisor] # why\nrestart = \"never\"\n";
        let after = edited(text, |path| add_nodes(path, &[node("a:3")]).unwrap());
        assert_eq!(after, text.replace("\"a:2\"]", "\"a:2\", \"a:3\"]"));
        let after = edited(text, |path| remove_nodes(path, &[node("a:2")]).unwrap());
        assert_eq!(after, text.replace(", \"a:2\"", ""));
    }

    #[test]
    fn a_list_with_one_node_a_line_stays_one() {
        let text = "nodes = [\n    \"a:1\", # first\n    \"a:2\",\n]\n";
        let after = edited(text, |path| add_nodes(path, &[node("a:3"), node("a:4")]).unwrap());
        assert_eq!(after, "nodes = [\n    \"a:1\", # first\n    \"a:2\",\n    \"a:3\",\n    \"a:4\",\n]\n");
    }

    #[test]
    fn adding_and_removing_the_sample_gives_the_sample() {
        let after = edited(super::super::SAMPLE, |path| {
            add_nodes(path, &[node("127.0.0.1:2382")]).unwrap();
            assert!(fs::read_to_string(path).unwrap().contains("    \"127.0.0.1:2382\",\n"));
            remove_nodes(path, &[node("127.0.0.1:2382")]).unwrap();
        });
        assert_eq!(after, super::super::SAMPLE);
    }

    #[test]
    fn a_file_without_nodes_is_left_alone() {
        let after = edited("x = 1\n", |path| {
            assert!(matches!(add_nodes(path, &[node("a:1")]), Err(EditError::NoNodes(_))));
        });
        assert_eq!(after, "x = 1\n");
    }
}
