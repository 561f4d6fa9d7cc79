//! How much each node has held, kept beside its lock: `nodes/<address>.held`. A data directory that was put back to an
//! older state has forgotten that itself; the register has not (R24).
//!
//! A mark is written without a sync, some tens of milliseconds after what it tells of, so it may be a little behind, and
//! after a power cut more than a little; but it never tells of more than the node's disk held then. It is evidence, not
//! a promise: where it is missing or cannot be read, nothing follows.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use super::lock::{NODES, path_of};
use crate::view::{Epoch, Incarnation, Index, NodeId, View};

const HELD: &str = "held";

/// What a node is known to have held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// In which data directory.
    pub incarnation: Incarnation,
    /// The epoch of the view under which this was noted.
    pub epoch: Epoch,
    /// Everything up to here was committed, and on its disk.
    pub commit: Index,
}

impl Held {
    /// What is missing from a log that ends at `last`, as the entry up to which it once reached. What an operator has
    /// given up since is not missed.
    #[must_use]
    pub fn missing(&self, incarnation: Incarnation, view: &View, last: Index) -> Option<Index> {
        let speaks = self.incarnation == incarnation && self.epoch >= view.recovered;
        (speaks && last < self.commit).then_some(self.commit)
    }

    fn encode(&self) -> String {
        let text = format!("{:?} {} {}", self.incarnation, self.epoch, self.commit);
        // Of one length, so that a shorter one leaves nothing of a longer one behind.
        format!("{text:<64} {:08x}\n", crc32c::crc32c(text.as_bytes()))
    }

    fn decode(line: &str) -> Option<Held> {
        let (text, checksum) = line.trim_end().rsplit_once(' ')?;
        let text = text.trim_end();
        if u32::from_str_radix(checksum, 16).ok()? != crc32c::crc32c(text.as_bytes()) {
            return None;
        }
        let mut fields = text.split(' ');
        Some(Held {
            incarnation: Incarnation(u64::from_str_radix(fields.next()?, 16).ok()?),
            epoch: Epoch(fields.next()?.parse().ok()?),
            commit: Index(fields.next()?.parse().ok()?),
        })
    }
}

/// Where a running node notes what it holds.
#[derive(Debug)]
pub struct HeldMark {
    file: File,
}

impl HeldMark {
    /// Opens the mark of a node whose lock is held by this process. What stands there stays until the first note.
    ///
    /// # Errors
    /// From the system.
    pub fn open(register: &Path, node: &NodeId) -> io::Result<HeldMark> {
        let path = path_of(register, node, HELD);
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        Ok(HeldMark { file })
    }

    /// Notes it, in one write and without a sync.
    ///
    /// # Errors
    /// From the system.
    pub fn note(&self, held: &Held) -> io::Result<()> {
        self.file.write_all_at(held.encode().as_bytes(), 0)
    }
}

/// What a node is known to have held; `None` where nothing is known.
#[must_use]
pub fn read(register: &Path, node: &NodeId) -> Option<Held> {
    Held::decode(&fs::read_to_string(path_of(register, node, HELD)).ok()?)
}

/// The newest view that any node has noted something under.
///
/// # Errors
/// From the system.
pub fn newest_epoch(register: &Path) -> io::Result<Epoch> {
    let mut newest = Epoch(0);
    for entry in fs::read_dir(register.join(NODES))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == HELD) {
            let held = fs::read_to_string(&path).ok().and_then(|line| Held::decode(&line));
            newest = newest.max(held.map_or(Epoch(0), |held| held.epoch));
        }
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use super::super::format::tests::view;
    use super::*;

    fn held(epoch: u64, commit: u64) -> Held {
        Held { incarnation: Incarnation(0xa2), epoch: Epoch(epoch), commit: Index(commit) }
    }

    #[test]
    fn the_newest_note_is_read_back_and_damage_is_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let register = directory.path();
        fs::create_dir(register.join("nodes")).unwrap();
        let node = NodeId::parse("127.0.0.1:2380").unwrap();
        assert_eq!(read(register, &node), None);
        let mark = HeldMark::open(register, &node).unwrap();
        mark.note(&held(u64::MAX, u64::MAX)).unwrap();
        assert_eq!(read(register, &node), Some(held(u64::MAX, u64::MAX)));
        mark.note(&held(4, 7)).unwrap();
        assert_eq!(read(register, &node), Some(held(4, 7)));
        mark.file.write_all_at(b"x", 3).unwrap();
        assert_eq!(read(register, &node), None);
    }

    #[test]
    fn a_register_that_lost_its_newest_view_is_known_by_the_notes() {
        use super::super::{FileRegister, Register as _, RegisterError};
        let directory = tempfile::tempdir().unwrap();
        let register = FileRegister::open(directory.path()).unwrap();
        for epoch in 1..=3 {
            register.swap(Epoch(epoch - 1), &view(epoch, 1)).unwrap();
        }
        let node = NodeId::parse("127.0.0.1:2380").unwrap();
        HeldMark::open(directory.path(), &node).unwrap().note(&held(3, 7)).unwrap();
        let again = FileRegister::open(directory.path()).unwrap();
        assert_eq!(again.read().unwrap(), Some(view(3, 1)));
        fs::remove_file(directory.path().join("view-00000000000000000003")).unwrap();
        let again = FileRegister::open(directory.path()).unwrap();
        let found = again.read();
        assert!(
            matches!(found, Err(RegisterError::Backwards { held: Epoch(2), known: Epoch(3), .. })),
            "{found:?}"
        );
    }

    #[test]
    fn what_was_held_and_is_not_there_is_missed_unless_it_was_given_up() {
        let own = Incarnation(0xa2);
        let now = view(9, 0);
        assert_eq!(held(9, 50).missing(own, &now, Index(49)), Some(Index(50)));
        assert_eq!(held(9, 50).missing(own, &now, Index(50)), None);
        assert_eq!(held(9, 50).missing(Incarnation(1), &now, Index(0)), None, "another directory");
        let recovered = View { recovered: Epoch(10), ..view(12, 0) };
        assert_eq!(held(9, 50).missing(own, &recovered, Index(3)), None, "from before the recovery");
        assert_eq!(held(10, 50).missing(own, &recovered, Index(3)), Some(Index(50)));
    }
}
