//! Entries that an operator has ordered to be stepped over, because nodes end by them (R33). The same ones on every node:
//! the list stands in the register, where every node of the cluster reads it when it starts, and again in every data
//! directory, so that it outlives a register that is lost. It is written while no node runs, and only grows.
//!
//! An entry is named by its index, its epoch and the running checksum of the log up to it: what is stepped over is that
//! entry after that history, and no other that may come to stand at its place.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::view::{Epoch, Index, Position};

/// The list's name, in the register's directory and in a node's.
pub const FILE: &str = "skipped.json";
const FILE_NEW: &str = "skipped.json.new";

/// The list cannot be trusted or not be written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", path.display())]
pub struct SkipError {
    /// The file.
    pub path: PathBuf,
    /// In words.
    pub why: String,
}

#[derive(Serialize, Deserialize)]
struct Listed {
    index: u64,
    epoch: u64,
    chain: u32,
}

#[derive(Serialize, Deserialize)]
struct List {
    schema: u32,
    skipped: Vec<Listed>,
}

/// What is stepped over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skips(BTreeMap<Index, Position>);

impl Skips {
    /// Everything that is listed in these directories; one without a list counts for nothing.
    ///
    /// # Errors
    /// [`SkipError`]: a list that cannot be read is not a list without entries.
    pub fn read<'p>(directories: impl IntoIterator<Item = &'p Path>) -> Result<Skips, SkipError> {
        let mut skips = Skips::default();
        for directory in directories {
            let path = directory.join(FILE);
            let failed = |why: String| SkipError { path: path.clone(), why };
            let text = match fs::read_to_string(&path) {
                Ok(text) => text,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(error.to_string())),
            };
            let list: List = serde_json::from_str(&text)
                .map_err(|error| failed(format!("the list of entries to step over is damaged: {error}")))?;
            for Listed { index, epoch, chain } in list.skipped {
                skips.add(Position { index: Index(index), epoch: Epoch(epoch), chain });
            }
        }
        Ok(skips)
    }

    /// One more.
    pub fn add(&mut self, position: Position) {
        self.0.insert(position.index, position);
    }

    /// True for an entry that is to be stepped over.
    #[must_use]
    pub fn contain(&self, position: Position) -> bool {
        self.0.get(&position.index) == Some(&position)
    }

    /// All of them, in their order.
    pub fn positions(&self) -> impl Iterator<Item = Position> {
        self.0.values().copied()
    }

    /// Replaces the list in a directory, durably: it is there whole, or as it was.
    ///
    /// # Errors
    /// [`SkipError`].
    pub fn write(&self, directory: &Path) -> Result<(), SkipError> {
        let (path, new) = (directory.join(FILE), directory.join(FILE_NEW));
        let listed = |position: Position| Listed {
            index: position.index.0,
            epoch: position.epoch.0,
            chain: position.chain,
        };
        let list = List { schema: 1, skipped: self.positions().map(listed).collect() };
        let written = (|| {
            let mut file = File::create(&new)?;
            serde_json::to_writer(&mut file, &list)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(directory)?.sync_all()
        })();
        written.map_err(|error: io::Error| SkipError { path, why: error.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(index: u64, chain: u32) -> Position {
        Position { index: Index(index), epoch: Epoch(3), chain }
    }

    #[test]
    fn a_list_names_an_entry_with_its_history() {
        let (register, node) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let both = [register.path(), node.path()];
        assert_eq!(Skips::read(both).unwrap(), Skips::default());
        let mut skips = Skips::default();
        skips.add(position(7, 1));
        skips.write(register.path()).unwrap();
        skips.add(position(9, 2));
        skips.write(node.path()).unwrap();
        let read = Skips::read(both).unwrap();
        assert_eq!(read, skips, "what either lists");
        assert!(read.contain(position(7, 1)) && read.contain(position(9, 2)));
        assert!(!read.contain(position(7, 2)), "another entry came to stand there");
    }

    #[test]
    fn a_damaged_list_is_not_an_empty_one() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join(FILE), "{").unwrap();
        assert!(Skips::read([place.path()]).unwrap_err().to_string().contains("damaged"));
    }
}
