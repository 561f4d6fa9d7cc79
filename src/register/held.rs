//! How much each node has held, kept beside its lock: `nodes/<address>.held`. A data directory that was put back to an
//! older state has forgotten that itself; the register has not (R24).
//!
//! A mark is written without a sync, some tens of milliseconds after what it tells of, so it may be a little behind, and
//! after a power cut more than a little; but it never tells of more than the node's disk held then. It is evidence, not
//! a promise: where it is missing or cannot be read, nothing follows.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::lineage::read_from;
use super::lock::{NODES, path_of};
use crate::disk::Disk;
use crate::view::{Epoch, Incarnation, Index, NodeId, View};

const HELD: &str = "held";
/// No mark is longer.
const MARK_BYTES: u64 = 256;

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
    path: PathBuf,
    /// Opened when it is first needed, and again after it failed.
    file: Option<File>,
    noted: Option<Held>,
    /// When a note last failed: it is tried again after [`RETRY`], and said once.
    failed_at: Option<Instant>,
}

/// How long nothing is noted after a failure: what ran out comes back, and the log is not filled with it (R34).
const RETRY: Duration = Duration::from_secs(10);

impl HeldMark {
    /// The mark of a node whose lock is held by this process. What stands there stays until the first note. `noted` is
    /// what this node is known to have held, with the directory that it has now.
    #[must_use]
    pub fn new(register: &Path, node: &NodeId, noted: Option<Held>) -> HeldMark {
        HeldMark { path: path_of(register, node, HELD), file: None, noted, failed_at: None }
    }

    /// Notes it where it is news, in one write and without a sync. After a start less is known to be committed for a
    /// moment than was noted before. What cannot be noted stops nothing: it is said once, and tried again after a time.
    ///
    /// # Errors
    /// From the system, once for each time in which nothing can be noted.
    pub fn note(&mut self, held: Held, now: Instant) -> io::Result<()> {
        let before = self.noted.map_or(Index(0), |noted| noted.commit);
        let held = Held { commit: held.commit.max(before), ..held };
        let waits = self.failed_at.is_some_and(|failed| now.duration_since(failed) < RETRY);
        if self.noted == Some(held) || held.commit == Index(0) || waits {
            return Ok(());
        }
        match self.write(&held) {
            Ok(()) => {
                self.noted = Some(held);
                self.failed_at = None;
                Ok(())
            }
            Err(error) => {
                self.file = None;
                if self.failed_at.replace(now).is_none() { Err(error) } else { Ok(()) }
            }
        }
    }

    fn write(&mut self, held: &Held) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let mut options = OpenOptions::new();
                options.write(true).create(true).truncate(false).mode(0o600);
                none.insert(options.open(&self.path)?)
            }
        };
        file.write_all_at(held.encode().as_bytes(), 0)
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
pub fn newest_epoch(disk: &impl Disk, register: &Path) -> io::Result<Epoch> {
    let nodes = register.join(NODES);
    let mut newest = Epoch(0);
    for name in disk.list(&nodes)? {
        if name.strip_suffix(HELD).is_some_and(|name| name.ends_with('.')) {
            let read = disk.open_to_read(&nodes.join(name)).and_then(|file| read_from(&*file, 0, MARK_BYTES));
            let held = read.ok().and_then(|line| Held::decode(std::str::from_utf8(&line).ok()?));
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
        let now = crate::clock::now();
        let noted = |held| HeldMark::new(register, &node, None).note(held, now).unwrap();
        noted(held(u64::MAX, u64::MAX));
        assert_eq!(read(register, &node), Some(held(u64::MAX, u64::MAX)));
        noted(held(4, 7));
        assert_eq!(read(register, &node), Some(held(4, 7)));
        let path = path_of(register, &node, HELD);
        OpenOptions::new().write(true).open(path).unwrap().write_all_at(b"x", 3).unwrap();
        assert_eq!(read(register, &node), None);
    }

    #[test]
    fn what_cannot_be_noted_is_said_once_and_noted_later() {
        let directory = tempfile::tempdir().unwrap();
        let (register, node) = (directory.path(), NodeId::parse("127.0.0.1:2380").unwrap());
        let mut mark = HeldMark::new(register, &node, Some(held(2, 9)));
        let begun = crate::clock::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        mark.note(held(3, 7), at(0)).expect_err("there is no directory for marks");
        for seconds in 0..60 {
            mark.note(held(3, 7), at(seconds)).expect("it was said already");
        }
        fs::create_dir(register.join("nodes")).unwrap();
        mark.note(held(3, 7), at(61)).unwrap();
        assert_eq!(read(register, &node), Some(held(3, 9)), "and never less than was known before");
    }

    #[test]
    fn a_register_that_lost_its_newest_view_is_known_by_the_notes() {
        use super::super::{FileRegister, Register as _, RegisterError};
        let directory = tempfile::tempdir().unwrap();
        let register = FileRegister::open(directory.path()).unwrap();
        let mut known = None;
        for epoch in 1..=3 {
            register.swap(known, &view(epoch, 1)).unwrap();
            known = Some(view(epoch, 1).id());
        }
        let node = NodeId::parse("127.0.0.1:2380").unwrap();
        HeldMark::new(directory.path(), &node, None).note(held(3, 7), crate::clock::now()).unwrap();
        let again = FileRegister::open(directory.path()).unwrap();
        assert_eq!(again.read(None).unwrap(), Some(view(3, 1)));
        fs::remove_file(directory.path().join("view-00000000000000000003")).unwrap();
        let again = FileRegister::open(directory.path()).unwrap();
        let found = again.read(None);
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
