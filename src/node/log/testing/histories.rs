//! Seeded histories of appends, syncs, cuts, drops and fresh starts, each broken off by a power cut, a death, an error
//! or a full disk, at any operation of the disk, also while recovering; then recovered and gone on with. After each
//! start, what was acknowledged must be there, and nothing that was never written.

use super::*;
use crate::node::testing::disk::{Fault, Operation};
use crate::protocol::testing::random::Random;
use crate::rules::{Rule, without};

const SEEDS: u64 = 1000;

#[derive(Clone, Copy, Debug)]
enum Step {
    Append(u64),
    Sync,
    Mark,
    Tend,
    /// Up to a part, in percent, of what is above the commit.
    Truncate(u64),
    /// So far ahead of the commit.
    Reset(u64),
    /// Up to a part, in percent, of what is below the commit.
    Drop(u64),
    Background,
}

struct History {
    random: Random,
    disk: SimDisk,
    model: Model,
    /// What may be there instead, because something was begun that did not end.
    instead: Vec<Model>,
    commit: u64,
    /// Grows with every cut: so a record's epoch and index say which one it is.
    epoch: u64,
    tally: BTreeMap<&'static str, u64>,
    story: Vec<String>,
}

impl History {
    fn new(seed: u64) -> History {
        History {
            random: Random::new(seed),
            disk: fresh_disk(),
            model: Model::starting_after(Position::default()),
            instead: Vec::new(),
            commit: 0,
            epoch: 1,
            tally: BTreeMap::new(),
            story: Vec::new(),
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    fn any_step(&mut self) -> Step {
        match self.random.below(24) {
            0..10 if self.random.chance(100) => Step::Append(20),
            0..10 => Step::Append(self.random.between(1, 5)),
            10..16 => Step::Sync,
            16 => Step::Mark,
            17 => Step::Tend,
            18 | 19 => Step::Truncate(self.random.below(100)),
            20 | 21 => Step::Drop(self.random.between(0, 100)),
            22 if self.random.chance(300) => Step::Reset(self.random.below(60)),
            _ => Step::Background,
        }
    }

    fn perform(&mut self, log: &mut Log<SimDisk>, step: Step) -> Result<(), LogError> {
        self.story.push(format!("{step:?} at {}", self.model.last().index));
        match step {
            Step::Append(count) => {
                let (frames, positions) = frames_after(self.model.last(), self.epoch, count, self.commit);
                let mut after = self.model.clone();
                after.positions.extend(positions.iter().map(|position| (position.index.0, *position)));
                let last = after.last();
                self.instead.push(after.clone());
                log.append(&frames, last)?;
                self.changed(after);
            }
            Step::Sync => {
                self.synced(log.sync()?.0);
                if self.random.chance(500) {
                    self.commit = self.model.synced;
                }
            }
            Step::Mark => log.mark()?,
            Step::Tend => log.tend(),
            Step::Truncate(percent) => {
                let above = self.model.last().index.0 - self.commit;
                let to = (self.commit + above * percent / 100).max(self.model.base().index.0);
                let after = self.model.cut(to);
                if to < self.model.last().index.0 {
                    self.instead.push(after.clone());
                    log.truncate_after(Index(to))?;
                    self.changed(after);
                    self.epoch += 1;
                    self.count("truncated");
                }
            }
            Step::Reset(ahead) => {
                self.epoch += 1;
                let base = Position {
                    index: Index(self.commit + ahead),
                    epoch: Epoch(self.epoch),
                    chain: self.random.next() as u32,
                };
                log.stage_reset(base)?;
                let after = Model::starting_after(base);
                self.instead.push(after.clone());
                log.finish_reset()?;
                self.changed(after);
                self.commit = base.index.0;
                self.count("reset");
            }
            Step::Drop(percent) => {
                let base = self.model.base().index.0;
                let to = base + self.commit.saturating_sub(base) * percent / 100;
                log.drop_before(Index(to))?;
                let kept = log.base().index.0;
                assert!(kept <= to.max(base), "dropped up to {kept}, asked for {to}");
                if kept > base {
                    self.count("dropped");
                }
                self.model.positions.retain(|index, _| *index >= kept);
            }
            Step::Background => drop(self.disk.run_background()),
        }
        Ok(())
    }

    fn changed(&mut self, after: Model) {
        self.model = after;
        self.instead.clear();
    }

    fn synced(&mut self, to: u64) {
        for model in self.instead.iter_mut().chain([&mut self.model]) {
            model.synced = model.synced.max(to);
        }
    }

    fn break_in(&mut self) {
        self.disk.put_off_background(self.random.chance(500));
        match self.random.below(10) {
            0..5 => self.disk.power_off_after(self.random.between(1, 60)),
            5 | 6 => {
                let fault = self.random.pick(&[Fault::Io, Fault::SyncDrops, Fault::SyncForgets]);
                self.disk.fail(self.random.pick(&Operation::ALL), self.random.below(12), fault);
            }
            7 => {
                let done = self.random.below(3000) as usize;
                let fault =
                    self.random.pick(&[Fault::Short(done), Fault::NoSpace(done), Fault::NoSpace(done)]);
                self.disk.fail(Operation::Write, self.random.below(12), fault);
            }
            8 => self.disk.limit(Some(self.disk.used() + self.random.below(30_000))),
            _ => {}
        }
    }

    fn work(&mut self, mut log: Log<SimDisk>) -> Result<(), String> {
        for _ in 0..self.random.below(60) {
            let step = self.any_step();
            match self.perform(&mut log, step) {
                Ok(()) => {}
                Err(LogError::NoSpace { .. }) => {
                    // The log is as it was, and goes on when there is room again.
                    self.count("full");
                    if content(&log)?.positions != self.model.positions {
                        return Err("a full disk changed the log".to_owned());
                    }
                    if !matches!(step, Step::Append(_)) {
                        self.instead.clear();
                    }
                    self.epoch += self.random.below(2);
                    self.disk.limit(None);
                }
                Err(LogError::Io { .. }) => {
                    self.count("error");
                    let (frames, positions) = frames_after(log.last(), self.epoch, 1, 0);
                    // A cut that could not even be read has changed nothing.
                    let again = log.append(&frames, positions[0]).and_then(|()| log.sync());
                    if !matches!(step, Step::Truncate(_)) && again.is_ok() {
                        return Err(format!("{step:?} failed, and what followed was acknowledged"));
                    }
                    if again.is_ok() {
                        self.model.positions.insert(log.last().index.0, log.last());
                        self.model.synced = log.last().index.0;
                    }
                    return Ok(());
                }
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(())
    }

    /// The machine comes back; recovering may be broken off too.
    fn come_back(&mut self) -> Result<Log<SimDisk>, String> {
        loop {
            if self.random.chance(400) {
                self.count("crash");
                self.story.push("crash".to_owned());
                self.disk.crash();
            } else {
                self.count("cut");
                self.story.push("power cut".to_owned());
                self.disk.power_cut(&mut self.random);
            }
            self.disk.limit(None);
            if self.random.chance(400) {
                self.disk.power_off_after(self.random.between(1, 12));
                match open_log(&self.disk, self.commit) {
                    // What it prepares last may have been cut short, and then nothing can be read.
                    Ok((log, _)) if !self.disk.is_off() => self.check(&log)?,
                    Ok(_) | Err(_) => self.count("broken recovery"),
                }
                continue;
            }
            let (log, recovered) = open_log(&self.disk, self.commit).map_err(|error| error.to_string())?;
            if recovered.torn_bytes > 0 {
                self.count("torn");
            }
            self.check(&log)?;
            if self.random.chance(200) {
                let twice = open_log(&self.disk.fork(), self.commit).map_err(|error| error.to_string())?.1;
                if (Recovered { torn_bytes: 0, ..recovered }) != (Recovered { torn_bytes: 0, ..twice }) {
                    return Err("recovering twice finds something else".to_owned());
                }
            }
            return Ok(log);
        }
    }

    fn check(&mut self, log: &Log<SimDisk>) -> Result<(), String> {
        let found = content(log)?;
        self.story.push(format!("found {} to {}", found.base().index, found.last().index));
        let mut reasons = Vec::new();
        for model in self.instead.iter().chain([&self.model]) {
            match model.allows(&found) {
                Ok(()) => {
                    reasons.clear();
                    break;
                }
                Err(reason) => reasons.push(reason),
            }
        }
        if !reasons.is_empty() {
            return Err(reasons.join("; or "));
        }
        // R22: what was found is told to others.
        self.model = Model { synced: found.last().index.0, ..found };
        self.instead.clear();
        self.epoch += self.random.below(2);
        Ok(())
    }
}

fn history(seed: u64) -> Result<BTreeMap<&'static str, u64>, String> {
    let mut history = History::new(seed);
    let mut run = || {
        let mut log = open_log(&history.disk, 0).map_err(|error| error.to_string())?.0;
        for _ in 0..8 {
            history.break_in();
            history.work(log)?;
            log = history.come_back()?;
        }
        Ok(())
    };
    let result: Result<(), String> = run();
    let story = history.story.split_off(history.story.len().saturating_sub(40)).join("\n");
    result.map_err(|error| {
        format!("seed {seed}: {error}\n{story}\nrepeat: LOG_SEED={seed} cargo test --lib one_history")
    })?;
    Ok(history.tally)
}

#[test]
fn whatever_breaks_off_a_history_nothing_acknowledged_is_lost_and_nothing_is_made_up() {
    let mut all: BTreeMap<&'static str, u64> = BTreeMap::new();
    let seeds = std::env::var("LOG_SEEDS").map_or(SEEDS, |seeds| seeds.parse().unwrap());
    for seed in 0..seeds {
        for (what, count) in history(seed).unwrap_or_else(|error| panic!("{error}")) {
            *all.entry(what).or_default() += count;
        }
    }
    println!("{all:?}");
    for what in ["crash", "cut", "error", "full", "broken recovery", "torn", "reset", "truncated", "dropped"]
    {
        assert!(all.get(what).is_some_and(|count| *count > 50), "{what} must happen: {all:?}");
    }
}

#[test]
fn one_history() {
    if let Ok(seed) = std::env::var("LOG_SEED") {
        println!("{:?}", history(seed.parse().unwrap()).unwrap_or_else(|error| panic!("{error}")));
    }
}

#[test]
fn the_histories_notice_each_rule_that_is_left_out() {
    for rule in [
        Rule::SyncBeforeReport,
        Rule::EndOnFailedSync,
        Rule::SyncBeforeRename,
        Rule::SyncDirectories,
        Rule::SyncTail,
        Rule::DoubtWhatFollows,
        Rule::SupersedeTornTail,
        Rule::SupersedeByHeads,
        Rule::DropInOrder,
        Rule::LeaveRemains,
    ] {
        let found = (0..SEEDS).find(|seed| without(Some(rule), || history(*seed)).is_err());
        println!("{rule:?}: {found:?}");
        assert!(found.is_some(), "{rule:?} can be left out");
    }
}

#[test]
fn the_same_history_leaves_the_same_disk() {
    let run = || {
        let mut history = History::new(7);
        let log = open_log(&history.disk, 0).unwrap().0;
        history.break_in();
        history.work(log).unwrap();
        let paths = history.disk.paths();
        paths.into_iter().map(|path| (path.clone(), history.disk.bytes(&path))).collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}
