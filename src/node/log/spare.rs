//! Segments to be: files full of zeros, made beside everything else, so that the log seldom waits for one.
//!
//! There are two, and they are made when the present segment is half full, or when there is nothing else to do. `next`
//! is as large as segments are. The `reserve` is small and is made again whenever it was used (R25): from it the log
//! goes on where the disk has no room for the next one, and a cut or a snapshot seldom waits for zeros. So when room is
//! first found short, the log can still take half a segment, and most often the reserve.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

use super::segment::{HEAD_BYTES, prepare};
use super::{LogError, NEXT, Options, RESERVE, io_error, is_full};
use crate::node::disk::{Disk, DiskFile};
use crate::rules::{Rule, breaks};

/// A file full of zeros.
pub struct Spare {
    /// Where it is, for now.
    pub path: PathBuf,
    /// The file.
    pub file: Arc<dyn DiskFile>,
    /// Its length in bytes.
    pub length: u64,
}

#[derive(Default)]
enum Slot {
    /// None, or one that is still to be written over.
    #[default]
    Empty,
    Pending(mpsc::Receiver<io::Result<Arc<dyn DiskFile>>>),
    Ready(Spare),
}

#[derive(Default)]
struct Kept {
    slot: Slot,
    /// There was no room to make it.
    short: bool,
    /// What the disk said to have free, in bytes, when it could not be made after all: it is not tried again in vain.
    failed_at: Option<u64>,
    /// What the disk said when it was last ordered.
    ordered_at: u64,
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

    /// The disk had no room for one of them.
    pub fn is_short(&self) -> bool {
        self.next.short || self.reserve.short
    }

    /// Orders again what there was no room for.
    pub fn look_again(&mut self) {
        for which in [Which::Next, Which::Reserve] {
            if self.kept(which).short {
                self.order(which);
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

    /// Has a large one made, if there is none and the disk has room.
    pub fn order_next(&mut self) {
        self.order(Which::Next);
    }

    /// Has a small one made, if there is none and the disk has room.
    pub fn order_reserve(&mut self) {
        if !breaks(Rule::KeepReserve) {
            self.order(Which::Reserve);
        }
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

    fn order(&mut self, which: Which) {
        self.settle(which, false);
        let (path, bytes) = (self.path(which), self.bytes(which));
        if !matches!(self.kept(which).slot, Slot::Empty) {
            return;
        }
        // A file that is there already needs no room to be written over.
        let there = self.disk.open(&path, false).and_then(|file| file.length()).unwrap_or(0);
        let free = self.disk.free_bytes(&self.directory).unwrap_or(0);
        let kept = self.kept(which);
        kept.short =
            free.saturating_add(there) < bytes || kept.failed_at.is_some_and(|failed| free <= failed);
        if kept.short {
            return;
        }
        let (tell, ready) = mpsc::sync_channel(1);
        kept.ordered_at = free;
        kept.slot = Slot::Pending(ready);
        let disk = self.disk.clone();
        self.disk.in_background(Box::new(move || {
            let _ = tell.send(prepare(&disk, &path, bytes));
        }));
    }

    /// Bytes free on the file system, and bytes that this file can have.
    fn room_for(&self, path: &Path) -> (u64, u64) {
        // A file that is there already needs no room to be written over.
        let there = self.disk.open(path, false).and_then(|file| file.length()).unwrap_or(0);
        let free = self.disk.free_bytes(&self.directory).unwrap_or(0);
        (free, free.saturating_add(there))
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
        let path = self.path(which);
        self.kept(which).slot = Slot::Empty;
        match made {
            Ok(Ok(file)) => {
                let length = file.length().unwrap_or(HEAD_BYTES);
                *self.kept(which) =
                    Kept { slot: Slot::Ready(Spare { path, file, length }), ..Kept::default() };
            }
            Ok(Err(error)) => self.failed(which, &error),
            Err(_) => {}
        }
    }

    /// Not the end of anything: it is made when it is needed, and then a failure is one.
    fn failed(&mut self, which: Which, error: &io::Error) {
        let path = self.path(which);
        let kept = self.kept(which);
        if is_full(error) {
            kept.short = true;
            kept.failed_at = Some(kept.ordered_at);
            // What was written of it takes the room that others need.
            let _ = self.disk.remove(&path);
        }
        tracing::warn!("no log segment could be prepared: {}: {error}", path.display());
    }

    fn take(&mut self, which: Which, bytes: u64) -> Result<Spare, LogError> {
        self.settle(which, true);
        match std::mem::take(&mut self.kept(which).slot) {
            Slot::Ready(spare) if spare.length - HEAD_BYTES >= bytes => return Ok(spare),
            Slot::Ready(_) | Slot::Empty | Slot::Pending(_) => {}
        }
        let path = self.path(which);
        if which == Which::Reserve && breaks(Rule::KeepReserve) {
            return Err(LogError::NoSpace { path });
        }
        // Asked first: trying would take what little room there is from everybody else.
        let (free, room) = self.room_for(&path);
        let small = HEAD_BYTES + bytes.max(self.options.first_segment_bytes);
        let wanted = self.bytes(which).max(small);
        let length = if room < wanted { small } else { wanted };
        if room < length {
            self.kept(which).short = true;
            return Err(LogError::NoSpace { path });
        }
        self.kept(which).ordered_at = free;
        match prepare(&self.disk, &path, length) {
            Ok(file) => {
                *self.kept(which) = Kept::default();
                let length = file.length().map_err(io_error(&path))?;
                Ok(Spare { path, file, length })
            }
            Err(error) if is_full(&error) => {
                self.failed(which, &error);
                Err(LogError::NoSpace { path })
            }
            Err(error) => Err(io_error(&path)(error)),
        }
    }
}
