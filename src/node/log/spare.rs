//! Segments to be: files of zeros, made beside everything else, so that the log seldom waits for one.
//!
//! There are two, and both are had all the time, because a disk can be filled to its last byte between two looks at it
//! (R25). `next` is as large as segments are, and is had again as soon as it was used; the `reserve` is small. Their
//! room is the disk's promise from the moment they are made (`DiskFile::allocate`). So when one of them can first not
//! be made the log still has a whole segment, and most often the reserve: that is for what ends the growth, and for what
//! must go on when nothing grows: deletes, compactions, openings of leaders, cuts. Zeros are written into `next` when the
//! present segment is half full, and into the reserve when there is nothing else to do.
//!
//! What a spare lacks may come back without a sign of it: room that others have freed shows in the bytes that are free,
//! but inodes, quota and descriptors do not. So it is tried again after a time, which doubles up to [`PAUSE_MAX`] looks.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

use super::segment::{HEAD_BYTES, prepare};
use super::{LogError, NEXT, Options, RESERVE, io_error};
use crate::disk::{Disk, DiskFile};
use crate::node::lack::Lack;
use crate::rules::{Rule, breaks};

/// Looks that pass at most before a spare that could not be made is tried again.
const PAUSE_MAX: u32 = 16;

/// A file of zeros.
pub struct Spare {
    /// Where it is, for now.
    pub path: PathBuf,
    /// The file.
    pub file: Arc<dyn DiskFile>,
    /// Its length in bytes.
    pub length: u64,
    /// Its zeros were written; otherwise the disk has only promised room for them.
    pub written: bool,
}

#[derive(Default)]
enum Slot {
    /// None, or one that is still to be written over.
    #[default]
    Empty,
    Pending(mpsc::Receiver<io::Result<Spare>>),
    Ready(Spare),
}

#[derive(Default)]
struct Kept {
    slot: Slot,
    /// What was missing when it could not be made.
    lack: Option<Lack>,
    /// How often in a row it was tried in vain.
    tried: u32,
    /// Looks that pass before it is tried again.
    pause: u32,
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Next,
    Reserve,
}

/// See the head of the module.
pub struct Spares<D: Disk> {
    disk: D,
    directory: PathBuf,
    options: Options,
    next: Kept,
    reserve: Kept,
}

impl<D: Disk> Spares<D> {
    /// Nothing is made yet.
    pub fn new(disk: D, directory: &Path, options: Options) -> Spares<D> {
        let directory = directory.to_owned();
        Spares { disk, directory, options, next: Kept::default(), reserve: Kept::default() }
    }

    /// What was missing for one of them.
    pub fn lack(&self) -> Option<Lack> {
        self.next.lack.or(self.reserve.lack)
    }

    /// Tries again what could not be made, after its pause.
    pub fn look_again(&mut self) {
        for which in [Which::Next, Which::Reserve] {
            self.settle(which, false);
            let kept = self.kept(which);
            let waits = kept.tried > 0 && breaks(Rule::RetryAfterLack);
            // One that is being made is not ordered again: two threads would write to one file, and the slower of them could
            // write zeros over it after it has become a segment.
            if kept.lack.is_none() || waits || !matches!(kept.slot, Slot::Empty) {
                continue;
            }
            match kept.pause.checked_sub(1) {
                Some(left) => kept.pause = left,
                None => self.make(which),
            }
        }
    }

    /// Bytes of records that fit into what is ready.
    pub fn room(&self) -> u64 {
        let room = |slot: &Slot| match slot {
            Slot::Ready(spare) => spare.length - HEAD_BYTES,
            Slot::Empty | Slot::Pending(_) => 0,
        };
        room(&self.next.slot) + room(&self.reserve.slot)
    }

    /// Has both made where they are missing.
    pub fn order(&mut self) {
        self.order_one(Which::Next);
        if !breaks(Rule::KeepReserve) {
            self.order_one(Which::Reserve);
        }
    }

    /// The present segment is half full: the next is made ready in full.
    pub fn write_next(&mut self) {
        self.write_zeros(Which::Next);
    }

    /// There is nothing else to do: the reserve is made ready in full.
    pub fn write_reserve(&mut self) {
        self.write_zeros(Which::Reserve);
    }

    /// One for at least so many bytes of records: the next in turn.
    ///
    /// # Errors
    /// [`LogError::NoSpace`], [`LogError::Io`]; nothing is changed.
    pub fn take_next(&mut self, bytes: u64) -> Result<Spare, LogError> {
        match self.take(Which::Next, bytes) {
            Err(LogError::NoSpace { .. }) => self.take(Which::Reserve, bytes),
            other => other,
        }
    }

    /// One of any size, soon.
    ///
    /// # Errors
    /// [`LogError::NoSpace`], [`LogError::Io`]; nothing is changed.
    pub fn take_any(&mut self) -> Result<Spare, LogError> {
        match self.take(Which::Reserve, 0) {
            Err(LogError::NoSpace { .. }) => self.take(Which::Next, 0),
            other => other,
        }
    }

    /// It was not used after all.
    pub fn give_back(&mut self, spare: Spare) {
        for which in [Which::Next, Which::Reserve] {
            if spare.path == self.path(which) {
                self.kept(which).slot = Slot::Ready(spare);
                return;
            }
        }
    }

    fn kept(&mut self, which: Which) -> &mut Kept {
        match which {
            Which::Next => &mut self.next,
            Which::Reserve => &mut self.reserve,
        }
    }

    fn path(&self, which: Which) -> PathBuf {
        self.directory.join(match which {
            Which::Next => NEXT,
            Which::Reserve => RESERVE,
        })
    }

    /// Length of the file, if the disk gives it.
    fn bytes(&self, which: Which) -> u64 {
        HEAD_BYTES
            + match which {
                Which::Next => self.options.segment_bytes,
                Which::Reserve => self.options.first_segment_bytes,
            }
    }

    fn order_one(&mut self, which: Which) {
        self.settle(which, false);
        let kept = self.kept(which);
        if matches!(kept.slot, Slot::Empty) && kept.lack.is_none() {
            self.make(which);
        }
    }

    /// Has it made, unless the disk says that it has not enough room: trying would take what little there is from all
    /// others.
    fn make(&mut self, which: Which) {
        let (path, bytes) = (self.path(which), self.bytes(which));
        if self.room_for(&path) < bytes {
            self.kept(which).lack = Some(Lack::Space);
            return;
        }
        self.prepare(which, path, bytes, false);
    }

    fn prepare(&mut self, which: Which, path: PathBuf, bytes: u64, written: bool) {
        let (tell, ready) = mpsc::sync_channel(1);
        self.kept(which).slot = Slot::Pending(ready);
        let disk = self.disk.clone();
        self.disk.in_background(Box::new(move || {
            let made = prepare(&disk, &path, bytes, written);
            let made = made.map(|(file, length)| Spare { path, file, length, written });
            // Not wanted any more where nothing listens.
            let _ = tell.send(made);
        }));
    }

    fn write_zeros(&mut self, which: Which) {
        self.settle(which, false);
        if let Slot::Ready(spare) = &self.kept(which).slot
            && !spare.written
        {
            let (path, length) = (spare.path.clone(), spare.length);
            self.prepare(which, path, length, true);
        }
    }

    /// Bytes that this file can have.
    fn room_for(&self, path: &Path) -> u64 {
        // A file that is there already needs no room to be written over.
        let there = self.disk.open(path, false).and_then(|file| file.length()).unwrap_or(0);
        self.disk.free_bytes(&self.directory).unwrap_or(0).saturating_add(there)
    }

    /// Looks whether one that was ordered is there, or waits until it is.
    fn settle(&mut self, which: Which, wait: bool) {
        let Slot::Pending(ready) = &self.kept(which).slot else { return };
        let mut made = ready.try_recv();
        if matches!(made, Err(mpsc::TryRecvError::Empty)) {
            if !wait {
                return;
            }
            let Slot::Pending(ready) = std::mem::take(&mut self.kept(which).slot) else { return };
            self.disk.hurry_background();
            made = ready.recv().map_err(|mpsc::RecvError| mpsc::TryRecvError::Disconnected);
        }
        self.kept(which).slot = Slot::Empty;
        match made {
            Ok(Ok(spare)) => *self.kept(which) = Kept { slot: Slot::Ready(spare), ..Kept::default() },
            Ok(Err(error)) => {
                self.failed(which, &error);
            }
            Err(_) => {}
        }
    }

    /// Not the end of anything: it is made when it is needed, and then a failure is one.
    fn failed(&mut self, which: Which, error: &io::Error) -> Option<Lack> {
        let path = self.path(which);
        let lack = Lack::found(error, self.disk.free_files(&self.directory).unwrap_or(u64::MAX));
        let kept = self.kept(which);
        let first = kept.lack != lack || lack.is_none();
        if lack.is_some() {
            kept.lack = lack;
            kept.pause = (1 << kept.tried.min(4)).min(PAUSE_MAX) - 1;
            kept.tried += 1;
            // What was written of it takes the room that others need.
            let _ = self.disk.remove(&path);
        }
        if first {
            tracing::warn!("no log segment could be prepared: {}: {error}", path.display());
        }
        lack
    }

    fn take(&mut self, which: Which, bytes: u64) -> Result<Spare, LogError> {
        self.settle(which, true);
        match std::mem::take(&mut self.kept(which).slot) {
            Slot::Ready(spare) if spare.length - HEAD_BYTES >= bytes => return Ok(spare),
            Slot::Ready(_) | Slot::Empty | Slot::Pending(_) => {}
        }
        let path = self.path(which);
        if which == Which::Reserve && breaks(Rule::KeepReserve) {
            return Err(LogError::NoSpace { path, lack: Lack::Space });
        }
        // Asked first: trying would take what little room there is from everybody else.
        let room = self.room_for(&path);
        let small = HEAD_BYTES + bytes.max(self.options.first_segment_bytes);
        let wanted = self.bytes(which).max(small);
        let least = HEAD_BYTES + bytes.max(self.options.first_segment_bytes / 16);
        let length = if room >= wanted { wanted } else { small.min(room) };
        if length < least {
            self.kept(which).lack.get_or_insert(Lack::Space);
            return Err(LogError::NoSpace { path, lack: Lack::Space });
        }
        match prepare(&self.disk, &path, length, true) {
            Ok((file, length)) => {
                *self.kept(which) = Kept::default();
                Ok(Spare { path, file, length, written: true })
            }
            Err(error) => match self.failed(which, &error) {
                Some(lack) if !breaks(Rule::LackIsNoFailure) => Err(LogError::NoSpace { path, lack }),
                Some(_) | None => Err(io_error(&path)(error)),
            },
        }
    }
}
