//! Whose a data directory is, what was promised in it, its log and its state, all on one simulated disk whose power goes
//! at any step: of appends, promises, flushes, snapshots put in place, and data set aside. The parts are those of a
//! server; only what keeps two processes apart is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::disk::SimDisk;
use crate::disk::Disk as _;
use crate::kv::{self, Backend as _};
use crate::node::handle::StateStore;
use crate::node::identity::{Identity, Keeper};
use crate::node::log::{Log, Options, Position, Record, encode};
use crate::node::promise::Promises;
use crate::node::recovery;
use crate::node::snapshot::{APPLIED, applied_of, encode_position};
use crate::node::state::{Flush, StateBackend, StateInstaller};
use crate::node::writer::{KeepPromise as _, WriteOperation, Writer};
use crate::protocol::testing::random::Random;
use crate::protocol::testing::spread;
use crate::register::format::tests::view;
use crate::rules::{Rule, without};
use crate::view::{Epoch, Incarnation, Index, NodeId};

const SIZES: Options = Options { first_segment_bytes: 2 << 10, segment_bytes: 4 << 10 };

fn directory() -> &'static Path {
    Path::new("/node")
}

/// What was said to others, and so must be there after any power cut.
#[derive(Clone, Default)]
struct Said {
    incarnation: Option<Incarnation>,
    /// It belongs to a cluster.
    member: bool,
    promised: Epoch,
    /// By index; whatever was written, acknowledged or not.
    written: BTreeMap<Index, Position>,
    acknowledged: Position,
    /// The state holds at least this on the disk.
    flushed: Position,
    /// Incarnations whose data was set aside, by the directory that has it.
    aside: BTreeMap<PathBuf, Incarnation>,
}

/// What a change that was broken off may have brought about, beside nothing.
#[derive(Default)]
struct Perhaps {
    installed: Option<Position>,
    left: bool,
}

/// An open directory.
struct Node {
    keeper: Keeper<SimDisk>,
    identity: Identity,
    promises: Arc<Promises>,
    writer: Writer<SimDisk, Arc<Promises>>,
    store: StateStore,
    next_write: u64,
}

fn words(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn open(disk: &SimDisk, minted: Incarnation) -> Result<(Node, Position), String> {
    let address = NodeId::parse("127.0.0.1:2379").map_err(words)?;
    disk.make_directory(directory()).and_then(|()| disk.sync_directory(Path::new("/"))).map_err(words)?;
    let mut keeper = Keeper::open(disk.clone(), directory()).map_err(words)?;
    let identity = keeper.settle(&address, || minted).map_err(words)?;
    let promises = Arc::new(Promises::open(disk, directory()).map_err(words)?);
    let commit = promises.promise().commit;
    let opened = Log::open_with(disk.clone(), &directory().join("log"), commit, SIZES);
    let (mut log, recovered) = opened.map_err(words)?;
    let store = kv::Store::open(StateBackend::open_on(disk, directory()).map_err(words)?).map_err(words)?;
    let found = recovery::put_together(&mut log, recovered, &store, commit).map_err(words)?;
    let writer = Writer::new(log, promises.clone());
    Ok((Node { keeper, identity, promises, writer, store, next_write: 1 }, found.last))
}

/// Is the identity of this incarnation in that directory?
fn has_identity(disk: &SimDisk, directory: &Path, incarnation: Incarnation) -> bool {
    let path = directory.join("identity");
    let line = format!("incarnation {incarnation:?}");
    disk.paths().contains(&path) && String::from_utf8_lossy(&disk.bytes(&path)).contains(&line)
}

/// A place where a node lives, and dies again and again.
struct Place {
    disk: SimDisk,
    random: Random,
    said: Said,
    next: u64,
    /// Minted by starts that were cut short, and not heard of.
    minted: BTreeSet<Incarnation>,
}

impl Place {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Starts the node on what the last cut has left, and looks whether all that was said holds.
    fn start(&mut self, perhaps: &Perhaps) -> Result<Node, String> {
        let minted = Incarnation(self.number());
        self.minted.insert(minted);
        let (node, last) = open(&self.disk, minted).map_err(|why| format!("it does not start: {why}"))?;
        let said = &mut self.said;
        let found = node.identity.incarnation;
        match said.incarnation {
            Some(said) if found == said => {}
            Some(left) if perhaps.left && self.minted.contains(&found) => {
                let mut asides = (1..9).map(|number| directory().join(format!("aside-{number}")));
                let has = |aside: &PathBuf| has_identity(&self.disk, aside, left);
                let aside = asides.find(has).ok_or("what was set aside is nowhere")?;
                let known = std::mem::take(&mut said.aside);
                *said = Said { aside: known, ..Said::default() };
                said.aside.insert(aside, left);
            }
            None if self.minted.contains(&found) => {}
            Some(said) => return Err(format!("it is {found:?} and has spoken as {said:?}")),
            None => return Err(format!("it is {found:?}, and that was set aside")),
        }
        said.incarnation = Some(found);
        self.minted.clear();
        self.look_aside()?;
        let said = &mut self.said;
        if said.member && node.identity.cluster.is_none() {
            return Err("it has forgotten to which cluster it belongs".to_owned());
        }
        let promised = node.promises.promise().promised;
        if promised < said.promised {
            return Err(format!("it has promised {} and knows of {promised}", said.promised));
        }
        let applied = applied_of(&node.store);
        if let Some(base) = perhaps.installed.filter(|base| applied == *base) {
            said.install(base);
        }
        if last.index < said.acknowledged.index {
            return Err(format!(
                "{} was acknowledged, the log ends at {}",
                said.acknowledged.index, last.index
            ));
        }
        if applied.index < said.flushed.index || applied.index > last.index {
            return Err(format!(
                "the state holds {}, the log ends at {}, and {} was flushed",
                applied.index, last.index, said.flushed.index
            ));
        }
        for position in [applied, last] {
            if said.written.get(&position.index).copied().unwrap_or_default() != position {
                return Err(format!("{position:?} was never written"));
            }
        }
        // What a start has found is on the disk, and is told.
        said.acknowledged = last;
        said.written.retain(|index, _| *index <= last.index);
        Ok(node)
    }

    fn look_aside(&self) -> Result<(), String> {
        for (path, incarnation) in &self.said.aside {
            let kept = has_identity(&self.disk, path, *incarnation);
            let promise = self.disk.paths().contains(&path.join("promise"));
            if !kept || !promise {
                return Err(format!("what {incarnation:?} had is not in {}", path.display()));
            }
        }
        Ok(())
    }

    /// One change. `Ok(None)` where it is done, `Ok(Some)` where it was broken off.
    fn change(&mut self, node: &mut Node) -> Result<Option<Perhaps>, String> {
        match self.random.below(10) {
            0..4 => self.append(node),
            4 => self.promise(node),
            5 | 6 => self.flush(node),
            7 | 8 => self.install(node),
            _ => self.leave(node),
        }
    }

    fn turn(&self, node: &mut Node, operation: WriteOperation) -> Result<bool, String> {
        match node.writer.turn([operation]) {
            Ok(done) => Ok(done.waiting == 0),
            Err(_) if self.disk.is_off() => Ok(false),
            Err(failure) => Err(format!("{failure:?}")),
        }
    }

    fn append(&mut self, node: &mut Node) -> Result<Option<Perhaps>, String> {
        let (mut frames, mut last) = (BytesMut::new(), self.said.acknowledged);
        for _ in 0..self.random.between(1, 6) {
            let epoch = last.epoch.max(Epoch(1));
            let payload = Bytes::from(vec![self.random.below(255) as u8 + 1; 200]);
            let (index, commit) = (last.index.next(), Index(0));
            let record = Record { epoch, index, commit, origin: 1, sequence: 1, payload };
            last = Position { index, epoch, chain: encode(&mut frames, &record, last.chain) };
            self.said.written.insert(index, last);
        }
        node.next_write += 1;
        let append = WriteOperation::Append { write: node.next_write, frames: frames.freeze(), last };
        if !self.turn(node, append)? {
            return Ok(Some(Perhaps::default()));
        }
        self.said.acknowledged = last;
        Ok(None)
    }

    /// As a data directory does it: the cluster first.
    fn promise(&mut self, node: &mut Node) -> Result<Option<Perhaps>, String> {
        let promised = Epoch(self.said.promised.0 + 1);
        let view = view(promised.0, 1);
        let off = |place: &Place, error: String| {
            if place.disk.is_off() { Ok(Some(Perhaps::default())) } else { Err(error) }
        };
        if node.identity.cluster.is_none() {
            let identity = Identity { cluster: Some(view.cluster), ..node.identity.clone() };
            if let Err(error) = node.keeper.write(&identity) {
                return off(self, error.to_string());
            }
            node.identity = identity;
        }
        match node.promises.keep(promised, Some(&view), Index(0)) {
            Ok(()) => {
                self.said.promised = promised;
                self.said.member = true;
                Ok(None)
            }
            Err(error) => off(self, format!("{error:?}")),
        }
    }

    /// The state holds what is committed, and the log need not.
    fn flush(&mut self, node: &mut Node) -> Result<Option<Perhaps>, String> {
        let (from, to) = (self.said.flushed.index, self.said.acknowledged.index);
        let index = Index(self.random.between(from.0, to.0));
        let Some(applied) = self.said.written.get(&index).copied() else { return Ok(None) };
        node.store.backend_mut().put_meta(APPLIED, encode_position(applied));
        let Some(job) = node.store.backend_mut().begin_flush() else { return Ok(None) };
        match job.run() {
            Ok(Flush::Done(done)) => {
                // The view of the rows is read anew: with the power off that ends a process.
                if self.disk.is_off() {
                    return Ok(Some(Perhaps::default()));
                }
                node.store.backend_mut().end_flush(&done);
            }
            Ok(Flush::Waits(_, lack)) => return Err(format!("no {lack}")),
            Err(_) if self.disk.is_off() => return Ok(Some(Perhaps::default())),
            Err(error) => return Err(error.to_string()),
        }
        self.said.flushed = applied;
        let dropped = self.turn(node, WriteOperation::DropBefore(index))?;
        Ok((!dropped).then(Perhaps::default))
    }

    fn install(&mut self, node: &mut Node) -> Result<Option<Perhaps>, String> {
        let before = self.said.acknowledged;
        let base = Position {
            index: Index(before.index.0 + self.random.between(1, 9)),
            epoch: Epoch(before.epoch.0 + 1),
            chain: self.random.below(1 << 30) as u32,
        };
        let built = StateInstaller::create(&self.disk, directory()).and_then(|mut installer| {
            let key = [b"m", APPLIED.as_bytes()].concat();
            installer.push(std::iter::once((Bytes::from(key), encode_position(base))))?;
            installer.finish()
        });
        let (backend, placement) = match built {
            Ok(built) => built,
            Err(_) if self.disk.is_off() => return Ok(Some(Perhaps::default())),
            Err(error) => return Err(error.to_string()),
        };
        let place = Box::new(move || placement.put().map_err(words));
        node.next_write += 1;
        let install = WriteOperation::Install { write: node.next_write, base, place };
        if !self.turn(node, install)? {
            return Ok(Some(Perhaps { installed: Some(base), ..Perhaps::default() }));
        }
        node.store = kv::Store::open(backend).map_err(words)?;
        self.said.install(base);
        Ok(None)
    }

    /// What is there is set aside; the process ends.
    fn leave(&mut self, node: &mut Node) -> Result<Option<Perhaps>, String> {
        if self.said.aside.len() > 2 {
            return Ok(None);
        }
        match node.keeper.set_aside() {
            Ok(aside) => {
                let left = self.said.incarnation.take().expect("it has started");
                let mut known = std::mem::take(&mut self.said.aside);
                known.insert(aside, left);
                self.said = Said { aside: known, ..Said::default() };
                Ok(Some(Perhaps::default()))
            }
            Err(_) if self.disk.is_off() => Ok(Some(Perhaps { left: true, ..Perhaps::default() })),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Said {
    fn install(&mut self, base: Position) {
        self.written = BTreeMap::from([(base.index, base)]);
        self.acknowledged = base;
        self.flushed = base;
    }
}

/// One life after another.
fn history(seed: u64) -> Result<u64, String> {
    let random = Random::new(seed);
    let (said, minted) = (Said::default(), BTreeSet::new());
    let mut place = Place { disk: SimDisk::new(), random, said, next: 0, minted };
    place.said.written.insert(Index(0), Position::default());
    let mut perhaps = Perhaps::default();
    let mut starts = 0;
    for _ in 0..6 {
        // A start can be cut short as well, and said nothing then.
        while place.random.chance(250) {
            let steps = place.random.between(1, 30);
            place.disk.power_off_after(steps);
            let minted = Incarnation(place.number());
            place.minted.insert(minted);
            // Whatever comes of it, nothing was told.
            let _ = open(&place.disk, minted);
            place.cut();
        }
        let mut node = place.start(&perhaps)?;
        starts += 1;
        place.said.written.entry(Index(0)).or_default();
        let steps = place.random.between(1, 120);
        place.disk.power_off_after(steps);
        perhaps = loop {
            if let Some(perhaps) = place.change(&mut node)? {
                break perhaps;
            }
        };
        drop(node);
        place.cut();
    }
    place.start(&perhaps)?;
    Ok(starts)
}

impl Place {
    fn cut(&mut self) {
        let mut random = Random::new(self.random.next());
        self.disk.power_cut(&mut random);
    }
}

fn histories(seeds: std::ops::Range<u64>) -> Result<u64, String> {
    seeds.map(|seed| history(seed).map_err(|why| format!("seed {seed}: {why}"))).sum()
}

#[test]
fn no_power_cut_takes_identity_log_and_state_apart() {
    let starts = histories(spread::seeds(60)).unwrap_or_else(|why| panic!("{why}"));
    println!("{starts} starts");
    assert!(starts > 100, "{starts} starts show nothing");
}

#[test]
fn the_places_notice_each_sync_that_is_left_out() {
    let mut unnoticed = Vec::new();
    for rule in [
        Rule::SyncState,
        Rule::SyncStateName,
        Rule::SyncNewState,
        Rule::SyncPlacedState,
        Rule::SyncIdentity,
        Rule::SyncIdentityName,
        Rule::SyncAsideMade,
        Rule::SyncMoved,
        Rule::SyncLeft,
    ] {
        match without(Some(rule), || histories(0..1000)) {
            Err(why) => println!("{rule:?}: {why}"),
            Ok(_) => unnoticed.push(rule),
        }
    }
    assert!(unnoticed.is_empty(), "no power cut misses {unnoticed:?}");
}
