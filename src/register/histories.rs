//! Histories of a register on a simulated disk: several processes read, swap, tidy up and die, an operator declares views,
//! and the power is cut at every kind of step. After each cut:
//!
//! * the register can be read, and what was once answered as newest, or as swapped in, has not been taken back;
//! * an epoch has never named two views, and no proof was given while a newer view was known;
//! * every view that was answered is in the chain of the newest, and in the lineage if its file is gone;
//! * the lineage names no view that was not there;
//! * what an operator was told to have been set aside is there, and what was on its way is here or there.
//!
//! Each sync of the register can be left out, and then some history must break a claim.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::file::FileRegister;
use super::format::tests::view;
use super::{Register as _, SwapError};
use crate::disk::Disk as _;
use crate::node::testing::disk::{Fault, Operation, SimDisk};
use crate::protocol::testing::random::Random;
use crate::rules::{Rule, without};
use crate::view::{Checksum, Epoch, View};

const STEPS: u64 = 120;

fn place() -> &'static Path {
    Path::new("/register")
}

struct Process {
    register: FileRegister<SimDisk>,
    known: Option<View>,
}

struct World {
    disk: SimDisk,
    random: Random,
    processes: Vec<Process>,
    /// Every view that was answered.
    answered: BTreeMap<Epoch, View>,
    set_aside: Vec<PathBuf>,
    /// Views that an operator was just setting aside: each is in its place or there.
    in_hand: Vec<String>,
    mark: u64,
}

type Claim = Result<(), String>;

impl World {
    fn new(seed: u64) -> World {
        let disk = SimDisk::new();
        disk.make_directory(&place().join("nodes")).unwrap();
        disk.sync_directory(Path::new("/")).unwrap();
        disk.sync_directory(place()).unwrap();
        let (random, answered) = (Random::new(seed), BTreeMap::new());
        let mut world = World {
            disk,
            random,
            processes: Vec::new(),
            answered,
            set_aside: Vec::new(),
            in_hand: Vec::new(),
            mark: 0,
        };
        world.start();
        world
    }

    fn open(&self) -> FileRegister<SimDisk> {
        FileRegister::on(self.disk.clone(), place()).unwrap()
    }

    fn start(&mut self) {
        self.processes = (0..3).map(|_| Process { register: self.open(), known: None }).collect();
    }

    fn newest(&self) -> Epoch {
        self.answered.keys().next_back().copied().unwrap_or_default()
    }

    fn answer(&mut self, view: &View) -> Claim {
        if view.epoch < self.newest() {
            return Err(format!("epoch {} after {}", view.epoch, self.newest()));
        }
        match self.answered.insert(view.epoch, view.clone()) {
            Some(before) if before != *view => Err(format!("epoch {} names two views", view.epoch)),
            Some(_) | None => Ok(()),
        }
    }

    /// An error is one only while the power is on.
    fn unless_off<E: std::fmt::Display>(&self, doing: &str, error: &E) -> Claim {
        if self.disk.is_off() { Ok(()) } else { Err(format!("{doing}: {error}")) }
    }

    fn read(&mut self, at: usize) -> Claim {
        let process = &self.processes[at];
        match process.register.read(process.known.as_ref().map(View::id)) {
            Ok(Some(view)) => {
                self.processes[at].known = Some(view.clone());
                self.answer(&view)
            }
            Ok(None) if self.answered.is_empty() => Ok(()),
            Ok(None) => Err("the register is empty".to_owned()),
            Err(error) => self.unless_off("read", &error),
        }
    }

    fn swap(&mut self, at: usize) -> Claim {
        self.mark += 1;
        let process = &self.processes[at];
        let known = process.known.as_ref();
        let next = View {
            previous: known.map_or(Checksum(0), View::checksum),
            recovered: known.map_or(Epoch(0), |view| view.recovered),
            ..view(known.map_or(1, |view| view.epoch.0 + 1), self.mark)
        };
        // The directory cannot be synced once: whether it happened is not known.
        if self.random.chance(100) {
            self.disk.fail(Operation::SyncDirectory, 0, Fault::Io);
        }
        let outcome = process.register.swap(known.map(View::id), &next);
        self.disk.forget_plan();
        match outcome {
            Ok(()) => {
                self.processes[at].known = Some(next.clone());
                self.answer(&next)
            }
            Err(SwapError::Conflict(view)) => {
                self.processes[at].known = Some(view.clone());
                self.answer(&view)
            }
            Err(SwapError::Unknown(_)) => Ok(()),
            // The sync that failed may have been the one before the swap.
            Err(SwapError::Failed(_)) => Ok(()),
        }
    }

    fn prove(&mut self, at: usize) -> Claim {
        let process = &self.processes[at];
        let Some(known) = process.known.as_ref().map(|view| view.epoch) else { return Ok(()) };
        match process.register.has_newer(known) {
            Ok(false) if self.newest() > known => Err(format!("{known} proved, {} known", self.newest())),
            Ok(_) => Ok(()),
            Err(error) => self.unless_off("proof", &error),
        }
    }

    fn declare(&mut self) -> Claim {
        self.processes.clear();
        let register = self.open();
        let epoch = Epoch(self.newest().0.max(register.epochs().map_or(0, |epochs| epochs.highest.0)) + 1000);
        self.mark += 1;
        let made = View { recovered: epoch, ..view(epoch.0, self.mark) };
        let below = register.names_below(epoch).unwrap_or_default();
        // Of the others a power cut may have left no name.
        let answered = self.answered.keys().map(|epoch| format!("view-{:020}", epoch.0));
        self.in_hand = answered.filter(|name| below.contains(name)).collect();
        if self.random.chance(400) {
            let steps = self.random.below(2 * below.len() as u64 + 12);
            self.disk.power_off_after(steps);
        }
        match register.replace_all(&made) {
            Ok(aside) => {
                self.in_hand.clear();
                self.set_aside.extend(below.iter().filter_map(|name| Some(aside.as_ref()?.join(name))));
                let found = register.read(None);
                self.start();
                match found {
                    Ok(Some(view)) => self.answer(&view),
                    Ok(None) => Err("what was declared is not there".to_owned()),
                    Err(error) => self.unless_off("read after a declaration", &error),
                }
            }
            Err(error) => {
                self.start();
                self.unless_off("declare", &error)
            }
        }
    }

    /// More views than are kept, as an older build leaves them: the first that tidies up makes the lineage and forgets
    /// views at once.
    fn begin_untidied(&mut self) -> Claim {
        for _ in 0..45 {
            self.read(0)?;
            self.swap(0)?;
        }
        let steps = self.random.below(80);
        self.disk.power_off_after(steps);
        // It may or may not come to an end.
        let _ = self.processes[0].register.tidy();
        self.restart()
    }

    fn step(&mut self) -> Claim {
        let at = self.random.below(3) as usize;
        match self.random.below(100) {
            0..=14 => self.read(at),
            15..=69 => self.swap(at),
            70..=79 => self.prove(at),
            80..=97 => match self.processes[at].register.tidy() {
                Ok(()) => Ok(()),
                Err(error) => self.unless_off("tidy", &error),
            },
            98 => {
                self.processes[at] = Process { register: self.open(), known: None };
                Ok(())
            }
            _ => self.declare(),
        }
    }

    /// The power comes back, or all processes are started again.
    fn restart(&mut self) -> Claim {
        self.processes.clear();
        if self.random.chance(700) {
            self.disk.power_cut(&mut self.random);
        } else {
            self.disk.crash();
        }
        for path in &self.set_aside {
            if self.disk.identity(path).is_err() {
                return Err(format!("{} was set aside and is gone", path.display()));
            }
        }
        let places = self.disk.list(place()).unwrap_or_default();
        for name in self.in_hand.drain(..) {
            let asides = places.iter().filter(|place| place.starts_with("aside-"));
            let mut there = asides.map(|aside| place().join(aside).join(&name)).chain([place().join(&name)]);
            if !there.any(|path| self.disk.identity(&path).is_ok()) {
                return Err(format!("{name} was being set aside and is gone"));
            }
        }
        self.start();
        self.read(0)?;
        self.check_chain()
    }

    fn check_chain(&mut self) -> Claim {
        let register = &self.processes[0].register;
        let recovered = register.read(None).map_err(|error| error.to_string())?.map(|view| view.recovered);
        let recovered = recovered.unwrap_or_default();
        let records = register.records().map_err(|error| error.to_string())?;
        for view in self.answered.values() {
            register.read(Some(view.id())).map_err(|error| format!("knows {}: {error}", view.epoch))?;
            let recorded = records.get(&view.epoch);
            if recorded.is_some_and(|recorded| *recorded != view.checksum()) {
                return Err(format!("the lineage lies of epoch {}", view.epoch));
            }
            let there = register.view_of(view.epoch).is_some();
            if view.epoch >= recovered && !there && recorded.is_none() {
                return Err(format!("epoch {} is neither there nor recorded", view.epoch));
            }
        }
        Ok(())
    }
}

fn history(seed: u64) -> Claim {
    let mut world = World::new(seed);
    if world.random.chance(300) {
        world.begin_untidied()?;
    }
    for _ in 0..4 {
        let steps = world.random.below(STEPS * 8);
        if world.random.chance(800) {
            world.disk.power_off_after(steps);
        }
        for _ in 0..STEPS {
            if world.disk.is_off() {
                break;
            }
            world.step()?;
        }
        world.restart()?;
    }
    Ok(())
}

#[test]
fn no_power_cut_takes_back_what_the_register_has_answered() {
    for seed in 0..300 {
        history(seed).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

#[test]
fn the_register_misses_each_sync_that_is_left_out() {
    for rule in [
        Rule::SyncViewFile,
        Rule::SyncViewName,
        Rule::SyncViewRead,
        Rule::SyncBeforeRecord,
        Rule::SyncLineage,
        Rule::SyncLineageName,
        Rule::SyncAsideName,
        Rule::SyncAside,
    ] {
        let broken =
            (0..600).find_map(|seed| without(Some(rule), || history(seed)).err().map(|why| (seed, why)));
        let (seed, why) = broken.unwrap_or_else(|| panic!("{rule:?} can be left out"));
        println!("{rule:?}: seed {seed}: {why}");
    }
}
