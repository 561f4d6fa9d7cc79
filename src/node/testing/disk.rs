//! A disk in memory that fails on demand, the same way for the same seed.
//!
//! Of what was written, a power cut leaves each 512-byte sector in any state that it had since the last sync of its
//! file, and the file with any length that it had since. Of what was made, renamed or removed since the last sync of
//! the directory it leaves any part, whatever came before or after. What was synced stays. The death of a process
//! loses nothing.
//!
//! A handle belongs to one life of the machine: after a power cut or a crash it only fails.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::disk::{Disk, DiskDirectory, DiskFile, FileId, Job};
use crate::protocol::testing::random::Random;

const SECTOR: usize = 512;

/// What can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Read,
    Write,
    Sync,
    Create,
    Rename,
    Remove,
    SyncDirectory,
    /// A second name.
    Link,
    /// Room for a file, without content.
    Allocate,
}

impl Operation {
    pub const ALL: [Operation; 9] = [
        Operation::Read,
        Operation::Write,
        Operation::Sync,
        Operation::Create,
        Operation::Rename,
        Operation::Remove,
        Operation::SyncDirectory,
        Operation::Link,
        Operation::Allocate,
    ];
}

/// How it fails. A sync that fails in the two ways named after it is what Linux does: the pages count as clean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is done.
    Io,
    /// There is no room. Of a write so many bytes are done first.
    NoSpace(usize),
    /// The user may have no more.
    Quota,
    /// The process may open no more files.
    NoDescriptors,
    /// Nothing is done, and the system says this (`errno`).
    Lacks(i32),
    /// Of a write so many bytes are done first.
    Short(usize),
    /// What was not synced is gone, and reads show it gone.
    SyncDrops,
    /// What was not synced will never be on the disk, but reads go on showing it.
    SyncForgets,
}

/// See the head of the file.
#[derive(Clone, Default)]
pub struct SimDisk(Arc<Mutex<Platter>>);

#[derive(Default)]
struct Platter {
    life: u64,
    files: BTreeMap<u64, Content>,
    next_file: u64,
    names: BTreeMap<PathBuf, Entry>,
    durable_names: BTreeMap<PathBuf, Entry>,
    /// What the directories hold and the disk may not.
    changes: Vec<Pending>,
    /// Each fails the n-th operation of its kind from now, counted from zero.
    plan: Vec<(Operation, u64, Fault)>,
    /// After so many changing operations the power is off.
    steps_left: Option<u64>,
    /// Changing operations so far.
    steps: u64,
    /// Bytes that all files together may have.
    quota: Option<u64>,
    /// Names that all files together may have: on some file systems a second name counts as a file.
    files_max: Option<u64>,
    next_directory: u64,
    put_off: bool,
    jobs: Vec<Job>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Entry {
    Directory(u64),
    File(u64),
}

/// One operation: the names that it sets or removes.
type Change = Vec<(PathBuf, Option<Entry>)>;

/// One operation that the disk may not hold, and the directories whose sync is still to come: of a rename from one
/// into another both, because what moves is in its new place and out of its old one together or not at all.
#[derive(Clone)]
struct Pending {
    change: Change,
    unsynced: Vec<PathBuf>,
}

#[derive(Clone, Default)]
struct Content {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    /// States of each sector since the last sync, oldest first.
    sectors: BTreeMap<usize, Vec<[u8; SECTOR]>>,
    /// Lengths since the last sync.
    lengths: Vec<usize>,
    /// Room that it has beyond its length.
    allocated: usize,
}

impl Content {
    fn put(&mut self, bytes: &[u8], at: usize) {
        let end = at + bytes.len();
        if end > self.bytes.len() {
            self.resize(end);
        }
        self.bytes[at..end].copy_from_slice(bytes);
        for number in at / SECTOR..end.div_ceil(SECTOR) {
            let mut sector = [0; SECTOR];
            let from = number * SECTOR;
            let to = (from + SECTOR).min(self.bytes.len());
            sector[..to - from].copy_from_slice(&self.bytes[from..to]);
            self.sectors.entry(number).or_default().push(sector);
        }
    }

    fn resize(&mut self, length: usize) {
        self.bytes.resize(length, 0);
        self.lengths.push(length);
    }

    fn sync(&mut self) {
        let shortest = self.lengths.iter().min().copied().unwrap_or(usize::MAX);
        self.durable.truncate(shortest);
        self.durable.resize(self.bytes.len(), 0);
        for number in std::mem::take(&mut self.sectors).into_keys() {
            let from = (number * SECTOR).min(self.bytes.len());
            let to = (from + SECTOR).min(self.bytes.len());
            self.durable[from..to].copy_from_slice(&self.bytes[from..to]);
        }
        self.lengths.clear();
    }

    fn forget(&mut self) {
        self.sectors.clear();
        self.lengths.clear();
    }

    fn cut(&mut self, random: &mut Random) {
        let mut bytes = std::mem::take(&mut self.durable);
        let chosen = random.below(self.lengths.len() as u64 + 1) as usize;
        let length = self.lengths[..chosen].last().copied().unwrap_or(bytes.len());
        bytes.truncate(self.lengths[..chosen].iter().min().copied().unwrap_or(bytes.len()));
        bytes.resize(length, 0);
        // Sometimes hardly anything was written back, sometimes nearly all.
        let kept = random.below(17);
        for (number, states) in &self.sectors {
            let from = number * SECTOR;
            if from < length && random.below(16) < kept {
                let to = (from + SECTOR).min(length);
                let state = &states[random.below(states.len() as u64) as usize];
                bytes[from..to].copy_from_slice(&state[..to - from]);
            }
        }
        let allocated = self.allocated;
        *self = Content { durable: bytes.clone(), bytes, allocated, ..Content::default() };
    }
}

fn apply(change: &Change, names: &mut BTreeMap<PathBuf, Entry>) {
    for (path, entry) in change {
        match entry {
            Some(entry) => names.insert(path.clone(), *entry),
            None => names.remove(path),
        };
    }
}

fn power_is_off() -> io::Error {
    io::Error::other("the power is off")
}

impl SimDisk {
    /// An empty one.
    pub fn new() -> SimDisk {
        SimDisk::default()
    }

    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap()
    }

    /// The power goes and comes back.
    pub fn power_cut(&self, random: &mut Random) {
        let mut platter = self.platter();
        let mut names = std::mem::take(&mut platter.durable_names);
        let kept = random.below(17);
        for pending in std::mem::take(&mut platter.changes) {
            if random.below(16) < kept {
                apply(&pending.change, &mut names);
            }
        }
        // What lies in a directory that is not there is not there.
        let all = names.clone();
        names.retain(|path, _| {
            path.ancestors().skip(1).all(|above| above.parent().is_none() || all.contains_key(above))
        });
        platter.files.values_mut().for_each(|content| content.cut(random));
        platter.begin_life(names);
    }

    /// The process dies and another is started.
    pub fn crash(&self) {
        let mut platter = self.platter();
        platter.life += 1;
        platter.plan.clear();
        platter.steps_left = None;
        platter.jobs.clear();
    }

    /// Another disk with the same content, without handles, faults and jobs.
    pub fn fork(&self) -> SimDisk {
        let platter = self.platter();
        SimDisk(Arc::new(Mutex::new(Platter {
            files: platter.files.clone(),
            next_file: platter.next_file,
            names: platter.names.clone(),
            durable_names: platter.durable_names.clone(),
            changes: platter.changes.clone(),
            quota: platter.quota,
            files_max: platter.files_max,
            next_directory: platter.next_directory,
            put_off: platter.put_off,
            ..Platter::default()
        })))
    }

    /// Fails the `nth` (from zero) such operation from now on, once.
    pub fn fail(&self, operation: Operation, nth: u64, fault: Fault) {
        self.platter().plan.push((operation, nth, fault));
    }

    /// Every operation does what it should again.
    pub fn heal(&self) {
        let mut platter = self.platter();
        platter.plan.clear();
        platter.steps_left = None;
    }

    /// What was planned to fail and has not come to it does not fail any more.
    pub fn forget_plan(&self) {
        self.platter().plan.clear();
    }

    /// Turns the power off after so many changing operations: until the cut, nothing works. The operation under way
    /// may or may not have reached the disk.
    pub fn power_off_after(&self, steps: u64) {
        self.platter().steps_left = Some(steps);
    }

    /// True once [`SimDisk::power_off_after`] has come true.
    pub fn is_off(&self) -> bool {
        self.platter().steps_left == Some(0)
    }

    /// Changing operations so far.
    pub fn steps(&self) -> u64 {
        self.platter().steps
    }

    /// Lets all files together have so many bytes.
    pub fn limit(&self, quota: Option<u64>) {
        self.platter().quota = quota;
    }

    /// Lets there be so many names of files.
    pub fn limit_files(&self, most: Option<u64>) {
        self.platter().files_max = most;
    }

    /// Bytes of all files together.
    pub fn used(&self) -> u64 {
        self.platter().used()
    }

    /// Background jobs wait for [`SimDisk::run_background`] or for somebody who needs them; else they are done at once.
    pub fn put_off_background(&self, put_off: bool) {
        self.platter().put_off = put_off;
    }

    /// Jobs that were put off and not done yet.
    pub fn waiting_in_background(&self) -> usize {
        self.platter().jobs.len()
    }

    /// Does the jobs that were put off. True where there were any.
    pub fn run_background(&self) -> bool {
        let jobs = std::mem::take(&mut self.platter().jobs);
        let any = !jobs.is_empty();
        jobs.into_iter().for_each(|job| job());
        any
    }

    /// Every file.
    pub fn paths(&self) -> Vec<PathBuf> {
        let platter = self.platter();
        platter
            .names
            .iter()
            .filter(|(_, entry)| matches!(entry, Entry::File(_)))
            .map(|(path, _)| path.clone())
            .collect()
    }

    /// Content of a file.
    pub fn bytes(&self, path: &Path) -> Vec<u8> {
        let platter = self.platter();
        platter.files[&platter.find(path).unwrap()].bytes.clone()
    }

    /// Changes bytes behind everybody's back, on the disk and in memory.
    pub fn damage(&self, path: &Path, offset: u64, change: impl FnOnce(&mut [u8])) {
        let mut platter = self.platter();
        let number = platter.find(path).unwrap();
        let content = platter.files.get_mut(&number).unwrap();
        change(&mut content.bytes[offset as usize..]);
        content.durable = content.bytes.clone();
        content.forget();
    }

    /// Flips one bit.
    pub fn flip(&self, path: &Path, offset: u64, bit: u8) {
        self.damage(path, offset, |bytes| bytes[0] ^= 1 << bit);
    }

    /// What stands in the file from there on is zeros.
    pub fn zero_tail(&self, path: &Path, from: u64) {
        self.damage(path, from, |bytes| bytes.fill(0));
    }
}

impl Platter {
    fn begin_life(&mut self, names: BTreeMap<PathBuf, Entry>) {
        self.files.retain(|number, _| names.values().any(|entry| *entry == Entry::File(*number)));
        self.durable_names.clone_from(&names);
        self.names = names;
        self.changes.clear();
        self.life += 1;
        self.plan.clear();
        self.steps_left = None;
        self.jobs.clear();
    }

    /// Counts the operation: `Ok` where it is done, else how it fails.
    fn begin(&mut self, operation: Operation) -> Result<(), Fault> {
        let mut fault = None;
        self.plan.retain_mut(|(kind, left, how)| {
            if *kind != operation || fault.is_some() {
                return true;
            }
            if *left == 0 {
                fault = Some(*how);
                return false;
            }
            *left -= 1;
            true
        });
        fault.map_or(Ok(()), Err)
    }

    /// One more changing operation. `Err` where the power is off; `Ok(false)` where it goes off in the middle of it.
    fn step(&mut self) -> io::Result<bool> {
        self.steps += 1;
        match &mut self.steps_left {
            None => Ok(true),
            Some(0) => Err(power_is_off()),
            Some(left) => {
                *left -= 1;
                Ok(*left > 0)
            }
        }
    }

    fn change(&mut self, operation: Operation, change: Change) -> io::Result<()> {
        self.begin(operation).map_err(answer)?;
        let powered = self.step()?;
        apply(&change, &mut self.names);
        let first = |gone: bool| change.iter().find(|(_, entry)| entry.is_none() == gone);
        let parent = |(path, _): &(PathBuf, Option<Entry>)| path.parent().map(Path::to_owned);
        let mut unsynced: Vec<PathBuf> =
            [first(true), first(false)].into_iter().flatten().filter_map(parent).collect();
        unsynced.dedup();
        self.changes.push(Pending { change, unsynced });
        if powered { Ok(()) } else { Err(power_is_off()) }
    }

    fn find(&self, path: &Path) -> io::Result<u64> {
        match self.names.get(path) {
            Some(Entry::File(number)) => Ok(*number),
            Some(Entry::Directory(_)) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn used(&self) -> u64 {
        let length = |entry: &Entry| match entry {
            Entry::File(number) => {
                let content = &self.files[number];
                content.bytes.len().max(content.allocated) as u64
            }
            Entry::Directory(_) => 0,
        };
        // A file counts once, however many names it has.
        let files: BTreeMap<u64, &Entry> = self
            .names
            .values()
            .filter_map(|entry| match entry {
                Entry::File(number) => Some((*number, entry)),
                Entry::Directory(_) => None,
            })
            .collect();
        files.into_values().map(length).sum()
    }

    /// Room for one more name.
    fn has_room_for_a_name(&self) -> io::Result<()> {
        let names = self.names.values().filter(|entry| matches!(entry, Entry::File(_))).count() as u64;
        if self.files_max.is_none_or(|most| names < most) {
            Ok(())
        } else {
            Err(io::ErrorKind::StorageFull.into())
        }
    }

    fn identity(&self, path: &Path) -> io::Result<FileId> {
        match self.names.get(path) {
            Some(Entry::File(inode)) => Ok(FileId { device: 1, inode: *inode }),
            Some(Entry::Directory(inode)) => Ok(FileId { device: 2, inode: *inode }),
            None if path.parent().is_none() => Ok(FileId { device: 2, inode: u64::MAX }),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Both names are of this directory; the new one is given once.
    fn must_be_free(&self, to: &Path) -> io::Result<()> {
        if self.names.contains_key(to) { Err(io::ErrorKind::AlreadyExists.into()) } else { Ok(()) }
    }

    fn check(&self, life: u64) -> io::Result<()> {
        if self.life != life {
            return Err(io::Error::other("a handle of an earlier life"));
        }
        if self.steps_left == Some(0) { Err(power_is_off()) } else { Ok(()) }
    }
}

fn answer(fault: Fault) -> io::Error {
    match fault {
        Fault::NoSpace(_) => io::ErrorKind::StorageFull.into(),
        Fault::Quota => io::ErrorKind::QuotaExceeded.into(),
        Fault::Lacks(code) => io::Error::from_raw_os_error(code),
        Fault::NoDescriptors => io::Error::from_raw_os_error(nix::libc::EMFILE),
        Fault::Io | Fault::Short(_) | Fault::SyncDrops | Fault::SyncForgets => {
            io::Error::from_raw_os_error(nix::libc::EIO)
        }
    }
}

impl Disk for SimDisk {
    fn make_directory(&self, path: &Path) -> io::Result<()> {
        let mut platter = self.platter();
        let mut missing: Vec<PathBuf> = path
            .ancestors()
            .filter(|above| above.parent().is_some() && !platter.names.contains_key(*above))
            .map(Path::to_owned)
            .collect();
        while let Some(path) = missing.pop() {
            let number = platter.next_directory;
            platter.next_directory += 1;
            platter.change(Operation::Create, vec![(path, Some(Entry::Directory(number)))])?;
        }
        Ok(())
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let platter = self.platter();
        let inside = platter.names.keys().filter(|path| path.parent() == Some(directory));
        Ok(inside.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect())
    }

    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        let mut platter = self.platter();
        let number = match platter.find(path) {
            Ok(number) => {
                if create {
                    platter.begin(Operation::Create).map_err(answer)?;
                    platter.step()?;
                    platter.files.get_mut(&number).unwrap().resize(0);
                }
                number
            }
            Err(error) if create && error.kind() == io::ErrorKind::NotFound => {
                platter.has_room_for_a_name()?;
                let number = platter.next_file;
                platter.next_file += 1;
                platter.files.insert(number, Content::default());
                platter.change(Operation::Create, vec![(path.to_owned(), Some(Entry::File(number)))])?;
                number
            }
            Err(error) => return Err(error),
        };
        let life = platter.life;
        Ok(Arc::new(SimFile { disk: self.clone(), life, number }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut platter = self.platter();
        // A directory takes along what is in it.
        let moved: Vec<(PathBuf, Entry)> = platter
            .names
            .iter()
            .filter(|(path, _)| path.starts_with(from))
            .map(|(path, entry)| (path.clone(), *entry))
            .collect();
        if moved.is_empty() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let target = |path: &Path| match path.strip_prefix(from) {
            Ok(rest) if rest.as_os_str().is_empty() => to.to_owned(),
            Ok(rest) => to.join(rest),
            Err(_) => unreachable!("it was looked for by this prefix"),
        };
        let gone = moved.iter().map(|(path, _)| (path.clone(), None));
        let change = gone.chain(moved.iter().map(|(path, entry)| (target(path), Some(*entry)))).collect();
        platter.change(Operation::Rename, change)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut platter = self.platter();
        platter.find(path)?;
        platter.change(Operation::Remove, vec![(path.to_owned(), None)])
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        let mut platter = self.platter();
        platter.begin(Operation::SyncDirectory).map_err(answer)?;
        if !platter.step()? {
            return Err(power_is_off());
        }
        let mut durable = std::mem::take(&mut platter.durable_names);
        platter.changes.retain_mut(|pending| {
            pending.unsynced.retain(|directory| directory != path);
            let all = pending.unsynced.is_empty();
            if all {
                apply(&pending.change, &mut durable);
            }
            !all
        });
        platter.durable_names = durable;
        Ok(())
    }

    fn open_to_append(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        match self.open(path, false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.create_new(path),
            opened => opened,
        }
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.platter().must_be_free(path)?;
        self.open(path, true)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut platter = self.platter();
        let number = platter.find(from)?;
        platter.must_be_free(to)?;
        platter.has_room_for_a_name()?;
        platter.change(Operation::Link, vec![(to.to_owned(), Some(Entry::File(number)))])
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.platter().must_be_free(to)?;
        self.rename(from, to)
    }

    fn identity(&self, path: &Path) -> io::Result<FileId> {
        self.platter().identity(path)
    }

    fn open_directory(&self, path: &Path) -> io::Result<Arc<dyn DiskDirectory>> {
        let platter = self.platter();
        let identity = platter.identity(path)?;
        let life = platter.life;
        Ok(Arc::new(SimDirectory { disk: self.clone(), life, path: path.to_owned(), identity }))
    }

    fn free_files(&self, _: &Path) -> io::Result<u64> {
        let platter = self.platter();
        let names = platter.names.values().filter(|entry| matches!(entry, Entry::File(_))).count() as u64;
        Ok(platter.files_max.map_or(u64::MAX, |most| most.saturating_sub(names)))
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        let platter = self.platter();
        Ok(platter.quota.unwrap_or(1 << 40).saturating_sub(platter.used()))
    }

    fn in_background(&self, job: Job) {
        let mut platter = self.platter();
        platter.jobs.push(job);
        let put_off = platter.put_off;
        drop(platter);
        if !put_off {
            self.run_background();
        }
    }

    fn hurry_background(&self) {
        self.run_background();
    }
}

struct SimDirectory {
    disk: SimDisk,
    life: u64,
    path: PathBuf,
    identity: FileId,
}

impl DiskDirectory for SimDirectory {
    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.platter().check(self.life)?;
        self.disk.list(&self.path)
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.platter().check(self.life)?;
        self.disk.sync_directory(&self.path)
    }

    fn identity(&self) -> FileId {
        self.identity
    }

    fn look(&self, name: &str) -> io::Result<Option<(FileId, u64)>> {
        let platter = self.disk.platter();
        platter.check(self.life)?;
        match platter.find(&self.path.join(name)) {
            Ok(inode) => {
                let length = platter.files[&inode].bytes.len() as u64;
                Ok(Some((FileId { device: 1, inode }, length)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

struct SimFile {
    disk: SimDisk,
    life: u64,
    number: u64,
}

impl DiskFile for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut platter = self.disk.platter();
        platter.check(self.life)?;
        platter.begin(Operation::Read).map_err(answer)?;
        let bytes = &platter.files[&self.number].bytes;
        let from = (offset as usize).min(bytes.len());
        let count = buffer.len().min(bytes.len() - from);
        buffer[..count].copy_from_slice(&bytes[from..from + count]);
        Ok(count)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut platter = self.disk.platter();
        platter.check(self.life)?;
        let fault = platter.begin(Operation::Write).err();
        let powered = platter.step()?;
        let content = &platter.files[&self.number];
        let length = content.bytes.len().max(content.allocated) as u64;
        let free = platter.quota.map_or(u64::MAX, |quota| quota.saturating_sub(platter.used()));
        let fits = (length.saturating_add(free)).saturating_sub(offset).min(bytes.len() as u64) as usize;
        let (done, result) = match fault {
            Some(Fault::NoSpace(count) | Fault::Short(count)) => {
                (count.min(fits), Err(answer(fault.unwrap())))
            }
            Some(
                fault @ (Fault::Io
                | Fault::SyncDrops
                | Fault::SyncForgets
                | Fault::Quota
                | Fault::Lacks(_)
                | Fault::NoDescriptors),
            ) => (0, Err(answer(fault))),
            None if fits < bytes.len() => (fits, Err(io::ErrorKind::StorageFull.into())),
            None => (fits, if powered { Ok(()) } else { Err(power_is_off()) }),
        };
        if done > 0 {
            platter.files.get_mut(&self.number).unwrap().put(&bytes[..done], offset as usize);
        }
        result
    }

    fn sync(&self) -> io::Result<()> {
        let mut platter = self.disk.platter();
        platter.check(self.life)?;
        let fault = platter.begin(Operation::Sync).err();
        if !platter.step()? {
            return Err(power_is_off());
        }
        let content = platter.files.get_mut(&self.number).unwrap();
        match fault {
            None => content.sync(),
            Some(Fault::SyncDrops) => {
                *content = Content {
                    bytes: content.durable.clone(),
                    durable: std::mem::take(&mut content.durable),
                    allocated: content.allocated,
                    ..Content::default()
                }
            }
            Some(Fault::SyncForgets) => content.forget(),
            Some(
                Fault::Io
                | Fault::NoSpace(_)
                | Fault::Short(_)
                | Fault::Quota
                | Fault::Lacks(_)
                | Fault::NoDescriptors,
            ) => {}
        }
        fault.map_or(Ok(()), |fault| Err(answer(fault)))
    }

    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        let end = self.length()?;
        self.write_at(bytes, end)
    }

    fn cut(&self, length: u64) -> io::Result<()> {
        let mut platter = self.disk.platter();
        platter.check(self.life)?;
        platter.begin(Operation::Write).map_err(answer)?;
        let powered = platter.step()?;
        let content = &platter.files[&self.number];
        let more = length.saturating_sub(content.bytes.len().max(content.allocated) as u64);
        // There are no holes in these files.
        if more > 0 && platter.quota.is_some_and(|quota| platter.used() + more > quota) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let content = platter.files.get_mut(&self.number).unwrap();
        content.resize(length as usize);
        content.allocated = length as usize;
        if powered { Ok(()) } else { Err(power_is_off()) }
    }

    fn allocate(&self, bytes: u64, grow: bool) -> io::Result<()> {
        let mut platter = self.disk.platter();
        platter.check(self.life)?;
        platter.begin(Operation::Allocate).map_err(answer)?;
        let powered = platter.step()?;
        let content = &platter.files[&self.number];
        let more = bytes.saturating_sub(content.bytes.len().max(content.allocated) as u64);
        if platter.quota.is_some_and(|quota| platter.used() + more > quota) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let content = platter.files.get_mut(&self.number).unwrap();
        content.allocated = content.allocated.max(bytes as usize);
        if grow && content.bytes.len() < bytes as usize {
            content.resize(bytes as usize);
        }
        if powered { Ok(()) } else { Err(power_is_off()) }
    }

    fn identity(&self) -> io::Result<FileId> {
        self.disk.platter().check(self.life)?;
        Ok(FileId { device: 1, inode: self.number })
    }

    fn length(&self) -> io::Result<u64> {
        let platter = self.disk.platter();
        platter.check(self.life)?;
        Ok(platter.files[&self.number].bytes.len() as u64)
    }
}

mod tests;
