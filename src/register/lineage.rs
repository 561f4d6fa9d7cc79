//! Which view was there in which epoch, also when its file is gone: files `lineage-<epoch>` in the register's directory,
//! one line for each view, only appended to.
//!
//! ```text
//! 00000000000000000004 9d1f3c5a7b9e0d24 1b2f00aa
//! epoch                checksum         crc32c of what stands before it
//! ```
//!
//! A line is written only once the view's own name is on the disk, and a view is forgotten only once its line is. So a
//! line that names a later epoch than any view shows that views were taken away; and a node that slept for long learns
//! whether its view belongs to this chain. A torn line is none: the next one begins on a line of its own. Two files are
//! kept, each of [`RECORDS_MAX`] lines; of what is older nothing is known.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::disk::{Disk, DiskDirectory, DiskFile, FileId};
use crate::rules::{Rule, breaks};
use crate::view::{Checksum, Epoch};

/// What the names of lineage files begin with; then comes the first epoch in it.
pub(super) const PREFIX: &str = "lineage-";

/// Lines of one file. With one view each second that is four and a half hours; with a handful a day, centuries.
const RECORDS_MAX: u64 = 1 << 14;
const LINE_BYTES: u64 = 47;
/// So many epochs with a line are remembered: more than there are views.
const RECENT: usize = 1024;
/// Room that is had ahead, so that a full disk stops no line.
const AHEAD_BYTES: u64 = 64 << 10;

/// The directory that was opened, on its disk.
#[derive(Clone)]
pub(super) struct Place<D: Disk> {
    pub disk: D,
    /// Absolute, so that a change of the working directory means nothing.
    pub path: PathBuf,
    /// Held open, wherever it was moved.
    pub opened: Arc<dyn DiskDirectory>,
}

/// The newest lineage file, read as far as this process knows.
struct Current {
    name: String,
    id: FileId,
    file: Arc<dyn DiskFile>,
    read_to: u64,
    /// Opened to append.
    writable: bool,
}

/// What must be as it was, or there is something to be read first.
pub(super) struct Anchor {
    pub name: String,
    /// The file and its length.
    pub is: (FileId, u64),
}

/// The lineage as this process has read it.
#[derive(Default)]
pub(super) struct Lineage {
    current: Option<Current>,
    /// The latest epochs with a line, at most [`RECENT`] of them. Not all before the latest need have one: a power cut may
    /// take one line and leave the next.
    recorded: BTreeSet<Epoch>,
    /// Lines up to this epoch are on the disk.
    durable: Epoch,
    /// A sync has failed: this process counts no line as being on the disk any more (R21).
    failed: bool,
}

/// The lineage is not what it was: a file is gone, shorter, or another one.
#[derive(Debug)]
pub(super) struct Replaced;

fn line(epoch: Epoch, checksum: Checksum) -> String {
    let text = format!("{:020} {checksum}", epoch.0);
    format!("\n{text} {:08x}", crc32c::crc32c(text.as_bytes()))
}

fn parse(line: &str) -> Option<(Epoch, Checksum)> {
    let (text, crc) = line.rsplit_once(' ')?;
    if crc.len() != 8 || u32::from_str_radix(crc, 16).ok()? != crc32c::crc32c(text.as_bytes()) {
        return None;
    }
    let (epoch, checksum) = text.split_once(' ')?;
    Some((Epoch(epoch.parse().ok()?), Checksum(u64::from_str_radix(checksum, 16).ok()?)))
}

fn records(bytes: &[u8]) -> impl Iterator<Item = (Epoch, Checksum)> {
    bytes.split(|byte| *byte == b'\n').filter_map(|line| parse(std::str::from_utf8(line).ok()?))
}

/// All of a file from there on.
pub(super) fn read_from(file: &dyn DiskFile, from: u64, most: u64) -> io::Result<Vec<u8>> {
    let length = file.length()?.saturating_sub(from).min(most);
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    let count = file.read_at(&mut bytes, from)?;
    bytes.truncate(count);
    Ok(bytes)
}

impl Lineage {
    /// The latest epoch that has a line by now. Reads what was appended since the last time.
    pub(super) fn latest<D: Disk>(&mut self, place: &Place<D>) -> io::Result<Result<Epoch, Replaced>> {
        if let Some(current) = &mut self.current {
            match place.opened.look(&current.name)? {
                Some((id, length)) if id == current.id && length >= current.read_to => {
                    if length > current.read_to {
                        // A line that was just being written is read again, whole.
                        let from = current.read_to.saturating_sub(LINE_BYTES);
                        let bytes = read_from(&*current.file, from, u64::MAX)?;
                        current.read_to = from + bytes.len() as u64;
                        self.remember(records(&bytes).map(|(epoch, _)| epoch));
                    }
                }
                Some(_) | None => return Ok(Err(Replaced)),
            }
        }
        Ok(Ok(self.last()))
    }

    fn last(&self) -> Epoch {
        self.recorded.last().copied().unwrap_or_default()
    }

    fn remember(&mut self, epochs: impl Iterator<Item = Epoch>) {
        for epoch in epochs {
            self.recorded.insert(epoch);
            if self.recorded.len() > RECENT {
                self.recorded.pop_first();
            }
        }
    }

    /// True where this view has a line.
    pub(super) fn has(&self, epoch: Epoch) -> bool {
        self.recorded.contains(&epoch)
    }

    /// Turns to the newest of these files, where that is another one than before. True: it did.
    pub(super) fn follow<D: Disk>(&mut self, place: &Place<D>, names: &[String]) -> io::Result<bool> {
        let Some(newest) = names.last() else { return Ok(false) };
        if self.current.as_ref().is_some_and(|current| current.name >= *newest) {
            return Ok(false);
        }
        let file = place.disk.open_to_read(&place.path.join(newest))?;
        self.adopt(newest.clone(), file, false)?;
        Ok(true)
    }

    fn adopt(&mut self, name: String, file: Arc<dyn DiskFile>, writable: bool) -> io::Result<()> {
        let bytes = read_from(&*file, 0, u64::MAX)?;
        self.remember(records(&bytes).map(|(epoch, _)| epoch));
        // What another process has written may not be on the disk yet.
        self.durable = Epoch(0);
        self.current =
            Some(Current { id: file.identity()?, name, file, read_to: bytes.len() as u64, writable });
        Ok(())
    }

    /// Lines up to this epoch are on the disk: the views may go.
    pub(super) fn durable(&self) -> Epoch {
        self.durable
    }

    /// Which file is appended to, and how far it is read: to notice that another one has its name, or that a line came.
    pub(super) fn current(&self) -> Option<Anchor> {
        self.current
            .as_ref()
            .map(|current| Anchor { name: current.name.clone(), is: (current.id, current.read_to) })
    }

    /// The view of that epoch; `None` where nothing is known of it.
    pub(super) fn find<D: Disk>(
        place: &Place<D>,
        names: &[String],
        epoch: Epoch,
    ) -> io::Result<Option<Checksum>> {
        for name in names.iter().rev() {
            let file = place.disk.open_to_read(&place.path.join(name))?;
            let bytes = read_from(&*file, 0, u64::MAX)?;
            let found = records(&bytes).filter(|(of, _)| *of == epoch).last();
            if let Some((_, checksum)) = found {
                return Ok(Some(checksum));
            }
        }
        Ok(None)
    }

    /// Every line.
    #[cfg(test)]
    pub(super) fn all<D: Disk>(
        place: &Place<D>,
        names: &[String],
    ) -> io::Result<std::collections::BTreeMap<Epoch, Checksum>> {
        let mut all = std::collections::BTreeMap::new();
        for name in names {
            let file = place.disk.open_to_read(&place.path.join(name))?;
            all.extend(records(&read_from(&*file, 0, u64::MAX)?));
        }
        Ok(all)
    }

    /// Appends these lines, in ascending order, and has all lines on the disk. The views' own names must be there
    /// already.
    pub(super) fn append<D: Disk>(
        &mut self,
        place: &Place<D>,
        names: &[String],
        lines: &[(Epoch, Checksum)],
    ) -> io::Result<()> {
        let Some(first) = lines.first().map(|(epoch, _)| *epoch) else { return self.sync() };
        let is_full = |current: &Current| current.read_to >= RECORDS_MAX * LINE_BYTES;
        match &self.current {
            Some(current) if !is_full(current) => {
                if !current.writable {
                    let name = current.name.clone();
                    let file = place.disk.open_to_append(&place.path.join(&name))?;
                    self.adopt(name, file, true)?;
                }
            }
            Some(_) | None => {
                let name = format!("{PREFIX}{:020}", first.0);
                let file = place.disk.open_to_append(&place.path.join(&name))?;
                self.adopt(name, file, true)?;
                if !breaks(Rule::SyncLineageName) {
                    place.opened.sync()?;
                }
                for old in names.iter().rev().skip(1) {
                    let _ = place.disk.remove(&place.path.join(old));
                }
            }
        }
        let current = self.current.as_ref().expect("it was just opened");
        let text: String = lines.iter().map(|(epoch, checksum)| line(*epoch, *checksum)).collect();
        let end = current.file.length()?;
        current.file.append(text.as_bytes())?;
        let _ = current.file.allocate((end / AHEAD_BYTES + 1) * AHEAD_BYTES, false);
        self.remember(lines.iter().map(|(epoch, _)| *epoch));
        self.sync()
    }

    fn sync(&mut self) -> io::Result<()> {
        let last = self.last();
        if let Some(current) = self.current.as_ref().filter(|_| self.durable < last) {
            if self.failed {
                return Err(io::Error::other("an earlier sync has failed"));
            }
            if !breaks(Rule::SyncLineage) {
                current.file.sync().inspect_err(|_| self.failed = true)?;
            }
            self.durable = last;
        }
        Ok(())
    }
}
