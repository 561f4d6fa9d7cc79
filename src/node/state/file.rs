//! The file under redb. A write that meets a full disk must not reach redb as an error: it would let nobody read or write
//! the file until it is opened anew. So what finds no room is put off: it is kept in memory with all that comes after it,
//! writes and syncs in their order, reads see it, and [`StateFile::catch_up`] does it when there is room. Until then the
//! file is what a power cut at that moment would have left, which redb is made for; and nothing counts as durable.
//!
//! So a state can also be opened, and recovered after a crash, on a full disk.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

use crate::disk::{Disk, DiskFile};
use crate::node::lack::Lack;
use crate::node::unchanged::Overlay;
use crate::rules::{Rule, breaks};

/// Whether what finds no room is put off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// It stays in memory until there is room.
    PutOff,
    /// It is an error: what is built here is worth nothing until it is whole, and may be large.
    Fail,
}

/// What was asked of the file and is not done.
enum Step {
    Write(u64, Vec<u8>),
    SetLength(u64),
    Sync,
}

#[derive(Default)]
struct Behind {
    steps: VecDeque<Step>,
    seen: Overlay,
}

/// See the head of the module.
pub struct StateFile {
    file: Arc<dyn DiskFile>,
    puts_off: AtomicBool,
    /// Something is put off.
    is_behind: AtomicBool,
    behind: Mutex<Behind>,
}

impl fmt::Debug for StateFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateFile").field("is_behind", &self.is_behind).finish_non_exhaustive()
    }
}

impl StateFile {
    /// Opens the file, or makes an empty one; true where it was made.
    ///
    /// # Errors
    /// From the disk.
    pub fn open(disk: &impl Disk, path: &Path, when_full: WhenFull) -> io::Result<(StateFile, bool)> {
        let (file, made) = match disk.open(path, false) {
            Ok(file) => (file, false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (disk.open(path, true)?, true),
            Err(error) => return Err(error),
        };
        let puts_off = AtomicBool::new(when_full == WhenFull::PutOff);
        let (is_behind, behind) = (AtomicBool::new(false), Mutex::default());
        Ok((StateFile { file, puts_off, is_behind, behind }, made))
    }

    /// What finds no room is no error any more.
    pub fn put_off_from_now_on(&self) {
        self.puts_off.store(true, Ordering::Release);
    }

    /// Length of the file on the disk.
    ///
    /// # Errors
    /// From the disk.
    pub fn length(&self) -> io::Result<u64> {
        self.file.length()
    }

    fn behind(&self) -> Option<MutexGuard<'_, Behind>> {
        // Most often nothing is put off, and no lock is taken.
        if !self.is_behind.load(Ordering::Acquire) {
            return None;
        }
        let behind = self.behind.lock().unwrap_or_else(PoisonError::into_inner);
        // It may have been caught up with in between.
        self.is_behind.load(Ordering::Acquire).then_some(behind)
    }

    fn read_file(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(out, offset)
    }

    /// Puts off the first step, where it only lacks something.
    fn put_off(&self, error: io::Error, step: Step) -> io::Result<()> {
        if !self.puts_off.load(Ordering::Acquire) || Lack::of(&error).is_none() || breaks(Rule::PutOffState) {
            return Err(error);
        }
        let mut behind = self.behind.lock().unwrap_or_else(PoisonError::into_inner);
        *behind = Behind { steps: VecDeque::new(), seen: Overlay::over(self.file.length()?) };
        self.take(&mut behind, step)?;
        self.is_behind.store(true, Ordering::Release);
        Ok(())
    }

    fn take(&self, behind: &mut Behind, step: Step) -> io::Result<()> {
        match &step {
            Step::Write(offset, data) => {
                behind.seen.write(*offset, data, &|out, offset| self.read_file(out, offset))?;
            }
            Step::SetLength(length) => behind.seen.set_length(*length),
            Step::Sync => {}
        }
        behind.steps.push_back(step);
        Ok(())
    }

    /// Does what was put off, in its order; answers with what is missing for the rest of it. One thread does it at a
    /// time; nobody waits for it.
    ///
    /// # Errors
    /// From the disk, where something other than room is missing (R21).
    pub fn catch_up(&self) -> io::Result<Option<Lack>> {
        loop {
            let Some(mut behind) = self.behind() else { return Ok(None) };
            let Some(step) = behind.steps.pop_front() else {
                *behind = Behind::default();
                self.is_behind.store(false, Ordering::Release);
                return Ok(None);
            };
            drop(behind);
            let done = match &step {
                Step::Write(offset, data) => self.file.write_at(data, *offset),
                Step::SetLength(length) => self.file.cut(*length),
                Step::Sync => self.file.sync(),
            };
            let Err(error) = done else { continue };
            // A sync that fails for want of room has failed: what it lost is not known.
            let lack = Lack::of(&error).filter(|_| !matches!(step, Step::Sync));
            let Some(lack) = lack else { return Err(error) };
            if let Some(mut behind) = self.behind() {
                behind.steps.push_front(step);
            }
            return Ok(Some(lack));
        }
    }
}

impl StorageBackend for StateFile {
    fn len(&self) -> io::Result<u64> {
        match self.behind() {
            Some(behind) => Ok(behind.seen.length()),
            None => self.file.length(),
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if let Some(behind) = self.behind() {
            return behind.seen.read(offset, out, &|out, offset| self.read_file(out, offset));
        }
        if self.file.read_at(out, offset)? < out.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        if let Some(mut behind) = self.behind() {
            return self.take(&mut behind, Step::SetLength(length));
        }
        match self.file.cut(length) {
            Err(error) => self.put_off(error, Step::SetLength(length)),
            done => done,
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        if let Some(mut behind) = self.behind() {
            return self.take(&mut behind, Step::Sync);
        }
        if breaks(Rule::SyncState) { Ok(()) } else { self.file.sync() }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if let Some(mut behind) = self.behind() {
            return self.take(&mut behind, Step::Write(offset, data.to_vec()));
        }
        match self.file.write_at(data, offset) {
            Err(error) => self.put_off(error, Step::Write(offset, data.to_vec())),
            done => done,
        }
    }
}
