//! The log on disk: segmented, checksummed, written by one thread and read by many.
//!
//! Nothing is ever rewritten in place. A segment says in its header what comes before its first record, and supersedes
//! whatever older segments hold after that. So rolling over to a new file, cutting an uncommitted tail (R14), cutting a
//! torn one, and starting anew after a snapshot are one operation, atomic because it is one rename: begin a segment.
//! Segments that are wholly superseded are removed afterwards, in any order.
//!
//! What was torn by a power cut, what was damaged later, and how the two are told apart: `recover` (R22, R23). Files
//! full of zeros that wait to become segments, and what is kept for when the disk is full: `spare` (R25).
//!
//! A write or sync that fails is the end of the log in this process (R21): everything after it fails too. Only what
//! fails for lack of room before anything was changed can be tried again.

mod map;
mod reader;
mod record;
mod recover;
mod segment;
mod spare;
mod words;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use bytes::Bytes;

pub use crate::view::Position;
use map::{Map, read_map, write_map};
pub use reader::LogReader;
pub use record::{BadRecord, PAYLOAD_MAX, Record, decode, encode};
use segment::{HEAD_BYTES, Head, Mark, Segment};
use spare::{Spare, Spares};
pub use words::{LogError, Options, Recovered, Room, Space};
use words::{io_error, room_error};

use crate::disk::{Disk, DiskDirectory, RealDisk};
use crate::rules::{Rule, breaks};
use crate::view::Index;

/// A large file being prepared; worthless until it is renamed.
const NEXT: &str = "next.tmp";
/// A small one.
const RESERVE: &str = "reserve.tmp";
/// The segment of a fresh start that waits for the state it belongs to.
const FRESH: &str = "fresh.tmp";

/// What a log of a stopped node holds, and its records. Changes nothing, and tells a torn tail from damage as
/// [`Log::open`] does.
///
/// # Errors
/// [`LogError`].
pub fn look(
    disk: &impl Disk,
    directory: &Path,
    durable_commit: Index,
) -> Result<(Recovered, LogReader), LogError> {
    let found = recover::recover(disk, directory, durable_commit)?;
    let map = Map { segments: found.segments, ..Map::default() };
    let recovered = Recovered {
        base: map.base(),
        last: map.last(),
        runs: found.runs,
        commit: found.commit,
        torn_bytes: found.torn_bytes,
        staged: found.staged.map(|head| head.base),
    };
    let (disk, asked) = (disk.clone(), directory.to_owned());
    let reader = LogReader {
        map: Arc::new(RwLock::new(map)),
        free_bytes: Arc::new(move || disk.free_bytes(&asked)),
        directory: Arc::from(directory),
    };
    Ok((recovered, reader))
}

/// The writing side. See the head of the module.
pub struct Log<D: Disk = RealDisk> {
    disk: D,
    directory: PathBuf,
    /// The same, held open: syncing names must not need a descriptor that may not be had.
    names: Arc<dyn DiskDirectory>,
    map: Arc<RwLock<Map>>,
    spares: Spares<D>,
    next_sequence: u64,
    /// Something was appended since the last sync.
    dirty: bool,
    /// What the mark in the newest segment says.
    marked: Index,
    /// A fresh start that waits for its state, and its file where this process has made it.
    staged: Option<(Head, Option<Spare>)>,
    /// Superseded files were removed, and may be back after a power cut.
    removed: bool,
    /// A write or sync has failed (R21).
    failed: bool,
}

impl<D: Disk> Log<D> {
    /// Opens the log in a directory, or makes an empty one. What was recovered is on the disk when this returns (R22).
    /// `durable_commit` is the commit index known from elsewhere: no bad record at or below it is a torn tail.
    ///
    /// # Errors
    /// [`LogError`]; no record was changed.
    pub fn open(disk: D, directory: &Path, durable_commit: Index) -> Result<(Log<D>, Recovered), LogError> {
        Log::open_with(disk, directory, durable_commit, Options::default())
    }

    /// [`Log::open`] with files of other sizes.
    ///
    /// # Errors
    /// As for [`Log::open`].
    pub fn open_with(
        disk: D,
        directory: &Path,
        durable_commit: Index,
        options: Options,
    ) -> Result<(Log<D>, Recovered), LogError> {
        disk.make_directory(directory).map_err(io_error(directory))?;
        let open = |path: &Path| disk.open_directory(path).map_err(io_error(path));
        sync(&*open(directory.parent().unwrap_or(directory))?, directory)?;
        let names = open(directory)?;
        let found = recover::recover(&disk, directory, durable_commit)?;
        // A process that was killed may have left names that are not on the disk yet. They must be before anything
        // that they supersede is removed.
        if !breaks(Rule::SyncNamesFound) {
            sync(&*names, directory)?;
        }
        if let Some(segment) = found.segments.last() {
            settle_tail(segment, found.mark)?;
        }
        let mut log = Log {
            spares: Spares::new(disk.clone(), directory, options),
            disk,
            directory: directory.to_owned(),
            names,
            map: Arc::new(RwLock::new(Map { segments: found.segments, ..Map::default() })),
            next_sequence: found.next_sequence,
            dirty: false,
            marked: found.mark.durable,
            staged: found.staged.map(|head| (head, None)),
            removed: false,
            failed: false,
        };
        let torn = found.torn_bytes > 0 && !breaks(Rule::SupersedeTornTail);
        if read_map(&log.map).segments.is_empty() || torn {
            let head = log.head(log.last(), false);
            let spare = log.spares.take_any()?;
            log.begin(head, spare)?;
        }
        for superseded in found.superseded {
            log.disk.remove(&superseded).map_err(io_error(&superseded))?;
        }
        log.sync_names()?;
        log.spares.order();
        log.publish_room(None);
        let recovered = Recovered {
            base: log.base(),
            last: log.last(),
            runs: found.runs,
            commit: found.commit,
            torn_bytes: found.torn_bytes,
            staged: found.staged.map(|head| head.base),
        };
        Ok((log, recovered))
    }

    /// What comes before the first record.
    #[must_use]
    pub fn base(&self) -> Position {
        read_map(&self.map).base()
    }

    /// The last record, synced or not.
    #[must_use]
    pub fn last(&self) -> Position {
        read_map(&self.map).last()
    }

    /// Index, epoch and running checksum at `index`, where the log holds it or starts after it.
    #[must_use]
    pub fn position(&self, index: Index) -> Option<Position> {
        self.reader().position(index)
    }

    /// For other threads.
    #[must_use]
    pub fn reader(&self) -> LogReader {
        let (disk, directory) = (self.disk.clone(), Arc::<Path>::from(self.directory.as_path()));
        let asked = directory.clone();
        let free_bytes = Arc::new(move || disk.free_bytes(&asked));
        LogReader { map: self.map.clone(), free_bytes, directory }
    }

    /// Bytes of all segments.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.reader().disk_bytes()
    }

    /// Appends whole records that continue the log; `last` is the last of them. They are durable after [`Log::sync`].
    ///
    /// # Errors
    /// [`LogError::Diverged`] where they do not continue the log, nothing was written; [`LogError::NoSpace`], the log
    /// is as it was and the append can be tried again; [`LogError::Io`].
    pub fn append(&mut self, frames: &Bytes, last: Position) -> Result<(), LogError> {
        self.check_alive()?;
        let records = self.check(frames, last)?;
        let done = self.write(frames, &records);
        self.settled(done)
    }

    fn write(&mut self, frames: &Bytes, records: &[(Position, u64)]) -> Result<(), LogError> {
        let bytes = frames.len() as u64;
        if read_map(&self.map).segment_room() < bytes {
            self.sync()?;
            let spare = self.spares.take_next(bytes)?;
            self.begin(self.head(self.last(), false), spare)?;
        }
        let (file, path, end, length) = {
            let mut map = write_map(&self.map);
            let segment = map.newest();
            (segment.file.clone(), segment.path.clone(), segment.end, segment.length)
        };
        if let Err(error) = file.write_at(frames, end).map_err(room_error(&path)) {
            self.dirty = true;
            // Written over, these remains could come to count behind what is shorter: they are left where they are.
            write_map(&self.map).closed = !breaks(Rule::LeaveRemains);
            return Err(error);
        }
        self.dirty = true;
        {
            let mut map = write_map(&self.map);
            let segment = map.newest();
            for (position, bytes) in records {
                segment.note(*position, *bytes);
            }
        }
        if end + bytes - HEAD_BYTES > (length - HEAD_BYTES) / 2 {
            self.spares.order();
            self.spares.write_next();
        }
        Ok(())
    }

    /// Do these records continue the log? Their positions and lengths.
    fn check(&self, frames: &Bytes, last: Position) -> Result<Vec<(Position, u64)>, LogError> {
        let mut before = self.last();
        let mut rest = frames.clone();
        let mut records = Vec::new();
        let diverged = |index, why: String| Err(LogError::Diverged { index, why });
        while !rest.is_empty() {
            let length = rest.len();
            let (record, chain) = match decode(&mut rest) {
                Ok(Some(found)) => found,
                Ok(None) => return diverged(before.index.next(), "it is cut".to_owned()),
                Err(bad) => return diverged(before.index.next(), bad.to_string()),
            };
            if record.index != before.index.next() || record.epoch < before.epoch {
                return diverged(
                    record.index,
                    format!("it follows {} of epoch {}", before.index, before.epoch),
                );
            }
            let expected = record::chain_after(&record, before.chain);
            if chain != expected && !breaks(Rule::CheckChain) {
                let why = format!("the running checksum is {expected:08x} here and {chain:08x} there");
                return diverged(record.index, why);
            }
            before = Position { index: record.index, epoch: record.epoch, chain };
            records.push((before, (length - rest.len()) as u64));
        }
        if before != last {
            return diverged(last.index, format!("the records end at {}", before.index));
        }
        Ok(records)
    }

    /// Everything appended is on the disk; answers with the last entry.
    ///
    /// # Errors
    /// [`LogError::Io`]; what is on the disk is unknown then, and the process must end (R21).
    pub fn sync(&mut self) -> Result<Index, LogError> {
        self.check_alive()?;
        let last = self.last().index;
        if self.dirty {
            let (file, path) = {
                let mut map = write_map(&self.map);
                let segment = map.newest();
                (segment.file.clone(), segment.path.clone())
            };
            let mut synced = if breaks(Rule::SyncBeforeReport) { Ok(()) } else { file.sync() };
            if synced.is_err() && breaks(Rule::EndOnFailedSync) {
                synced = file.sync();
            }
            self.failed = synced.is_err();
            synced.map_err(io_error(&path))?;
            self.dirty = false;
        }
        Ok(last)
    }

    /// Notes in the segment how far it is synced, so that damage is told from a torn tail later (R23). Not itself
    /// synced: it goes to the disk with what comes next. To be called when nobody waits.
    ///
    /// # Errors
    /// [`LogError::Io`]; the process must end (R21).
    pub fn mark(&mut self) -> Result<(), LogError> {
        self.check_alive()?;
        let (file, path, mark) = {
            let map = read_map(&self.map);
            let Some(segment) = map.segments.last().filter(|_| !self.dirty) else { return Ok(()) };
            let mark = Mark { durable: segment.last.index, end: segment.end };
            (segment.file.clone(), segment.path.clone(), mark)
        };
        if mark.durable <= self.marked {
            return Ok(());
        }
        match mark.write(&*file).map_err(room_error(&path)) {
            Ok(()) => self.marked = mark.durable,
            Err(LogError::NoSpace { .. }) => {} // proves nothing, hurts nothing
            Err(error) => return self.settled(Err(error)),
        }
        Ok(())
    }

    /// Tries again what could not be prepared for want of something. To be called about once a second.
    pub fn look_again(&mut self) {
        self.spares.order();
        self.spares.look_again();
        self.publish_room(None);
    }

    /// For when there is nothing else to do: as [`Log::look_again`], and has the reserve made ready.
    pub fn tend(&mut self) {
        self.spares.write_reserve();
        self.look_again();
    }

    /// Cuts the log after `index`, durably.
    ///
    /// # Errors
    /// [`LogError::Gone`] where the log begins later; [`LogError::NoSpace`], nothing was changed; [`LogError::Io`].
    pub fn truncate_after(&mut self, index: Index) -> Result<(), LogError> {
        if index >= self.last().index {
            return Ok(());
        }
        self.sync()?;
        let base =
            self.reader().find(index)?.ok_or(LogError::Gone { wanted: index, base: self.base().index })?;
        let begun = self.spares.take_any().and_then(|spare| self.begin(self.head(base, false), spare));
        self.settled(begun)
    }

    /// An empty log that continues after `base`, durably: what was before is in a snapshot.
    ///
    /// # Errors
    /// [`LogError::NoSpace`], nothing was changed; [`LogError::Io`].
    pub fn reset(&mut self, base: Position) -> Result<(), LogError> {
        self.stage_reset(base)?;
        self.finish_reset()
    }

    /// Prepares a fresh start after `base`, durably, without beginning it: so that a start after a crash knows whether
    /// a state that is ahead of the log belongs to it. Whatever was staged before is given up.
    ///
    /// # Errors
    /// [`LogError::NoSpace`], nothing was changed; [`LogError::Io`].
    pub fn stage_reset(&mut self, base: Position) -> Result<(), LogError> {
        self.sync()?;
        self.staged = None;
        let head = self.head(base, true);
        let staged = self.spares.take_any().and_then(|spare| self.name(head, spare, FRESH));
        let (staged, result) = match staged {
            Ok(segment) => (Some(segment), Ok(())),
            Err(error) => (None, Err(error)),
        };
        self.settled(result)?;
        self.staged = staged.map(|Segment { path, file, length, .. }| {
            (head, Some(Spare { path, file, length, written: true }))
        });
        Ok(())
    }

    /// Begins what was staged, durably.
    ///
    /// # Errors
    /// [`LogError::Io`], also where there is no room: the next start can finish it.
    ///
    /// # Panics
    /// Where nothing was staged.
    pub fn finish_reset(&mut self) -> Result<(), LogError> {
        self.sync()?;
        let (staged, spare) = self.staged.take().expect("a fresh start was staged");
        let head = Head { sequence: self.next_sequence, ..staged };
        let finished = match spare {
            Some(spare) => self.begin(head, spare),
            None => self.finish(head, &self.directory.join(FRESH)),
        };
        self.settled(finished.map_err(|error| match error {
            LogError::NoSpace { path, .. } => {
                LogError::Io { path, source: io::ErrorKind::StorageFull.into() }
            }
            other => other,
        }))
    }

    /// Gives up what an earlier process has staged: the state that it was for is not there.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn forget_staged(&mut self) -> Result<(), LogError> {
        if self.staged.take().is_some() {
            let path = self.directory.join(FRESH);
            self.disk.remove(&path).map_err(io_error(&path))?;
            self.sync_names()?;
        }
        Ok(())
    }

    fn sync_names(&self) -> Result<(), LogError> {
        sync(&*self.names, &self.directory)
    }

    fn finish(&mut self, head: Head, path: &Path) -> Result<(), LogError> {
        let file = self.disk.open(path, false).map_err(io_error(path))?;
        let length = file.length().map_err(io_error(path))?;
        self.begin(head, Spare { path: path.to_owned(), file, length, written: true })
    }

    /// Removes segments that hold nothing from `index` on.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn drop_before(&mut self, index: Index) -> Result<(), LogError> {
        self.check_alive()?;
        let removed: Vec<PathBuf> = {
            let mut map = write_map(&self.map);
            let keep_from =
                map.segments.windows(2).take_while(|pair| pair[1].head.base.index < index).count();
            map.segments.drain(..keep_from).map(|segment| segment.path).collect()
        };
        let dropped = self.remove_in_order(&removed);
        self.publish_room(None);
        self.settled(dropped)
    }

    /// Oldest first, each for good before the next: what is left after a power cut is without a gap.
    fn remove_in_order(&mut self, removed: &[PathBuf]) -> Result<(), LogError> {
        // What superseded other files must not be gone while these can come back.
        if self.removed && !removed.is_empty() && !breaks(Rule::DropInOrder) {
            self.sync_names()?;
            self.removed = false;
        }
        for path in removed {
            self.disk.remove(path).map_err(io_error(path))?;
            if !breaks(Rule::DropInOrder) {
                self.sync_names()?;
            }
        }
        Ok(())
    }

    fn head(&self, base: Position, fresh: bool) -> Head {
        Head { sequence: self.next_sequence, base, fresh }
    }

    /// Gives a spare file a head and a name, durably. Where there is no room, nothing was changed.
    fn name(&mut self, head: Head, spare: Spare, name: &str) -> Result<Segment, LogError> {
        let path = self.directory.join(name);
        let written = spare.file.write_at(&head.encode(), 0).map_err(room_error(&spare.path));
        if let Err(error) = written {
            self.spares.give_back(spare);
            return Err(error);
        }
        if !breaks(Rule::SyncBeforeRename) {
            spare.file.sync().map_err(io_error(&spare.path))?;
        }
        if let Err(error) = self.disk.rename(&spare.path, &path).map_err(room_error(&spare.path)) {
            self.spares.give_back(spare);
            return Err(error);
        }
        self.sync_names()?;
        Ok(Segment::new(head, spare.file, path, spare.length))
    }

    /// Begins a segment; what it supersedes is removed. The segment before must be synced.
    fn begin(&mut self, mut head: Head, spare: Spare) -> Result<(), LogError> {
        // The present beginning of the log may have superseded files that can still come back. What takes its place
        // supersedes them too.
        head.fresh |= !breaks(Rule::InheritFresh)
            && read_map(&self.map)
                .segments
                .first()
                .is_some_and(|first| first.head.fresh && first.head.base.index >= head.base.index);
        let segment = self.name(head, spare, &segment::name(head.sequence))?;
        self.next_sequence = head.sequence + 1;
        self.marked = Index(0);
        let superseded = {
            let mut map = write_map(&self.map);
            let superseded = supersede(&mut map.segments, &head).map_err(io_error(&segment.path))?;
            map.segments.push(segment);
            map.closed = false;
            superseded
        };
        // Whatever was used is had again at once: the disk may be full the next moment.
        self.spares.order();
        self.removed = !superseded.is_empty();
        for path in superseded {
            self.disk.remove(&path).map_err(io_error(&path))?;
        }
        Ok(())
    }

    fn check_alive(&self) -> Result<(), LogError> {
        if self.failed {
            let source = io::Error::other("an earlier write or sync has failed");
            return Err(LogError::Io { path: self.directory.clone(), source });
        }
        Ok(())
    }

    /// What becomes of the log after something that changes it.
    fn settled(&mut self, result: Result<(), LogError>) -> Result<(), LogError> {
        self.failed |= matches!(&result, Err(LogError::Io { .. }));
        self.publish_room(Some(matches!(&result, Err(LogError::NoSpace { .. }))));
        result
    }

    /// Tells readers how the log stands with its room; `stuck` where that may have changed.
    fn publish_room(&mut self, stuck: Option<bool>) {
        let mut map = write_map(&self.map);
        let stuck = stuck.unwrap_or(map.space == Space::Stuck);
        map.spare_bytes = self.spares.room();
        map.lack = self.spares.lack();
        map.space = match (stuck, map.lack) {
            (true, _) => Space::Stuck,
            (false, Some(_)) => Space::Short,
            (false, None) => Space::Ample,
        };
    }
}

/// Names in this directory are on the disk.
fn sync(names: &dyn DiskDirectory, directory: &Path) -> Result<(), LogError> {
    if breaks(Rule::SyncDirectories) {
        return Ok(());
    }
    names.sync().map_err(io_error(directory))
}

/// R22: what we found may only be in the kernel's memory, and nothing is told before it is on the disk. It is written
/// again, because a sync that failed in an earlier process has left pages that count as clean and are not on the disk:
/// another sync would say yes to them.
fn settle_tail(segment: &Segment, mark: Mark) -> Result<(), LogError> {
    if breaks(Rule::SyncTail) {
        return Ok(());
    }
    let io = |source| LogError::Io { path: segment.path.clone(), source };
    let from = if (HEAD_BYTES..=segment.end).contains(&mark.end) { mark.end } else { HEAD_BYTES };
    let mut bytes = vec![0; usize::try_from(segment.end - from).expect("a segment fits in memory")];
    let count = segment.file.read_at(&mut bytes, from).map_err(io)?;
    if !breaks(Rule::RewriteTail) {
        // The same bytes are written again: a partial write changes nothing.
        segment.file.write_at(&bytes[..count], from).map_err(room_error(&segment.path))?;
    }
    segment.file.sync().map_err(io)
}

/// Applies a new segment's header to the older ones: cuts what lies after its base. Answers with those that hold
/// nothing any more.
fn supersede(segments: &mut Vec<Segment>, head: &Head) -> io::Result<Vec<PathBuf>> {
    let mut superseded = Vec::new();
    let mut kept = Vec::new();
    for mut segment in segments.drain(..) {
        let base = segment.head.base.index;
        if head.fresh || base >= head.base.index {
            superseded.push(segment.path);
        } else {
            if segment.last.index > head.base.index {
                let (end, last) = reader::find_end(&segment, head.base.index)?;
                segment.cut(end, last);
            }
            kept.push(segment);
        }
    }
    *segments = kept;
    Ok(superseded)
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
