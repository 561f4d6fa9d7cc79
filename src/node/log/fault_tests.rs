//! The log on a disk that fails: seeded histories of appends, syncs, cuts, drops and fresh starts, each broken off by
//! a power cut, a death, an error or a full disk, at any operation of the disk, also while recovering; then recovered
//! and gone on with. After each start, what was acknowledged must be there, and nothing that was never written.

use std::collections::BTreeMap;

use bytes::BytesMut;

use super::*;
use crate::node::rules::without;
use crate::node::testing::disk::{Fault, Operation, SimDisk};
use crate::protocol::testing::random::Random;

const DIRECTORY: &str = "data/log";
const SMALL: Options = Options { first_segment_bytes: 3 << 10, segment_bytes: 6 << 10 };
const SEEDS: u64 = 1000;

fn payload(epoch: u64, index: u64) -> Bytes {
    let length = 30 + (epoch * 31 + index * 97) % 600;
    // No zeros in it, and another one for each epoch and index.
    Bytes::from(vec![((epoch * 7 + index * 13) % 255 + 1) as u8; length as usize])
}

fn frames_after(before: Position, epoch: u64, count: u64, commit: u64) -> (Bytes, Vec<Position>) {
    let mut buffer = BytesMut::new();
    let mut positions = vec![before];
    for _ in 0..count {
        let before = positions[positions.len() - 1];
        let index = before.index.next();
        let record = Record {
            epoch: Epoch(epoch),
            index,
            commit: Index(commit),
            origin: 1,
            sequence: index.0,
            payload: payload(epoch, index.0),
        };
        let chain = encode(&mut buffer, &record, before.chain);
        positions.push(Position { index, epoch: Epoch(epoch), chain });
    }
    positions.remove(0);
    (buffer.freeze(), positions)
}

/// What the log should hold: by index all records, and what comes before the first.
#[derive(Clone, Debug)]
struct Model {
    positions: BTreeMap<u64, Position>,
    /// Acknowledged as durable.
    synced: u64,
}

impl Model {
    fn starting_after(base: Position) -> Model {
        Model { positions: [(base.index.0, base)].into(), synced: base.index.0 }
    }

    fn base(&self) -> Position {
        *self.positions.first_key_value().unwrap().1
    }

    fn last(&self) -> Position {
        *self.positions.last_key_value().unwrap().1
    }

    fn cut(&self, index: u64) -> Model {
        let mut cut = self.clone();
        cut.positions.retain(|known, _| *known <= index);
        cut.synced = index;
        cut
    }

    /// May a start find this?
    fn allows(&self, found: &Model) -> Result<(), String> {
        if found.last().index.0 < self.synced {
            return Err(format!("{} was acknowledged, the log ends at {}", self.synced, found.last().index));
        }
        for (index, position) in &found.positions {
            if self.positions.get(index) != Some(position) {
                return Err(format!("{position:?} was never written there"));
            }
        }
        Ok(())
    }
}

/// Everything that the log holds, read and checked.
fn content(log: &Log<SimDisk>) -> Result<Model, String> {
    let mut found = Model::starting_after(log.base());
    let mut next = log.base().index.next();
    while let Some((mut frames, _)) = log.reader().read(next, 2000).map_err(|error| error.to_string())? {
        while let Some((record, chain)) = decode(&mut frames).map_err(|error| error.to_string())? {
            if record.payload != payload(record.epoch.0, record.index.0) {
                return Err(format!("entry {} has another payload", record.index));
            }
            let position = Position { index: record.index, epoch: record.epoch, chain };
            if record.index.0 % 8 == 0 && log.position(record.index) != Some(position) {
                return Err(format!("entry {} is not where it is", record.index));
            }
            found.positions.insert(record.index.0, position);
            next = record.index.next();
        }
    }
    if found.last() != log.last() {
        return Err(format!("it ends at {:?} and says {:?}", found.last(), log.last()));
    }
    Ok(found)
}

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

fn open_log(disk: &SimDisk, commit: u64) -> Result<(Log<SimDisk>, Recovered), LogError> {
    Log::open_with(disk.clone(), Path::new(DIRECTORY), Index(commit), SMALL)
}

fn fresh_disk() -> SimDisk {
    let disk = SimDisk::new();
    disk.make_directory(Path::new("data")).unwrap();
    disk.sync_directory(Path::new("")).unwrap();
    disk
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
                if let Ok((log, _)) = open_log(&self.disk, self.commit) {
                    self.check(&log)?;
                } else {
                    self.count("broken recovery");
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
        Rule::RewriteTail,
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

type Change = fn(&mut Log<SimDisk>) -> Result<(), LogError>;

/// Entries synced before each of these changes.
const ENTRIES: u64 = 60;

/// What changes more than the end of the log, and what the log then begins after and ends with.
const CHANGES: [(&str, u64, u64, Change); 7] = [
    ("truncate", 0, 25, |log| log.truncate_after(Index(25))),
    ("truncate all", 0, 0, |log| log.truncate_after(Index(0))),
    ("reset", 90, 90, |log| log.reset(Position { index: Index(90), epoch: Epoch(7), chain: 5 })),
    ("reset and append", 90, 93, |log| {
        log.reset(Position { index: Index(90), epoch: Epoch(7), chain: 5 })?;
        let (frames, positions) = frames_after(log.last(), 7, 3, 0);
        log.append(&frames, positions[2])?;
        log.sync().map(drop)
    }),
    // What comes does not fit into the file that the log starts anew with.
    ("reset and go on", 90, 110, |log| {
        log.reset(Position { index: Index(90), epoch: Epoch(7), chain: 5 })?;
        let (frames, positions) = frames_after(log.last(), 7, 20, 0);
        log.append(&frames, positions[19])?;
        log.sync().map(drop)
    }),
    ("drop", 0, ENTRIES, |log| log.drop_before(Index(50))),
    ("append", 0, ENTRIES + 20, |log| {
        let (frames, positions) = frames_after(log.last(), 1, 20, 0);
        log.append(&frames, positions[19])?;
        log.sync().map(drop)
    }),
];

/// Each change broken off at any step by a death or a cut, its recovery at any step as well, and then cut.
fn every_step() -> Result<u64, String> {
    let mut tried = 0;
    let full = fresh_disk();
    let mut log = open_log(&full, 0).unwrap().0;
    for _ in 0..ENTRIES {
        let (frames, positions) = frames_after(log.last(), 1, 1, 0);
        log.append(&frames, positions[0]).unwrap();
        log.sync().unwrap();
    }
    let all = content(&log)?;
    drop(log);
    for (what, new_base, new_last, change) in CHANGES {
        for step in 1.. {
            let mut done = false;
            for way in 0..6 {
                let disk = full.fork();
                let mut log = open_log(&disk, 0).map_err(|error| error.to_string())?.0;
                disk.power_off_after(step);
                done = change(&mut log).is_ok();
                if way < 3 {
                    disk.crash();
                } else {
                    disk.power_cut(&mut Random::new(way));
                }
                for step_again in 1.. {
                    let again = disk.fork();
                    again.power_off_after(step_again);
                    let through = open_log(&again, 0).is_ok();
                    again.power_cut(&mut Random::new(step * 1000 + step_again * 10 + way));
                    let at = || format!("{what}, step {step}, way {way}, then step {step_again}");
                    let log = open_log(&again, 0).map_err(|error| format!("{}: {error}", at()))?.0;
                    let found = content(&log).map_err(|error| format!("{}: {error}", at()))?;
                    let (base, last) = (found.base().index.0, found.last().index.0);
                    let old = last == ENTRIES && (what == "drop" || base == 0);
                    let new = base == new_base || what == "drop";
                    let grown = new && last > ENTRIES && last <= new_last;
                    if !(new && last == new_last || (!done && (old || grown))) {
                        return Err(format!("{}: from {base} to {last}", at()));
                    }
                    let known = found.positions.iter().all(|(index, position)| {
                        *index > ENTRIES || all.positions.get(index) == Some(position)
                    });
                    if !known {
                        return Err(format!("{}: what was never written", at()));
                    }
                    tried += 1;
                    if through {
                        break;
                    }
                }
            }
            if done {
                break;
            }
        }
    }
    Ok(tried)
}

#[test]
fn a_change_broken_off_at_any_step_and_again_while_recovering_happened_or_did_not() {
    let tried = every_step().unwrap_or_else(|error| panic!("{error}"));
    println!("{tried} ways");
    assert!(tried > 1000, "{tried} ways show nothing");
}

#[test]
fn breaking_off_at_every_step_notices_each_rule_that_is_left_out() {
    for rule in [
        Rule::SyncNamesFound,
        Rule::SyncDirectories,
        Rule::SyncBeforeReport,
        Rule::SyncBeforeRename,
        Rule::SupersedeByHeads,
        Rule::InheritFresh,
        Rule::DropInOrder,
    ] {
        let found = without(Some(rule), every_step);
        assert!(found.is_err(), "{rule:?} can be left out");
    }
}

/// What is known of the end of the log that is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Nothing,
    Commit,
    Mark,
}

/// A log of some segments, all of it synced; the newest segment and where its records end.
fn synced(known: Known, random: &mut Random) -> (SimDisk, u64, PathBuf, u64) {
    let disk = fresh_disk();
    let mut log = open_log(&disk, 0).unwrap().0;
    for _ in 0..random.between(3, 30) {
        let (frames, positions) = frames_after(log.last(), 1, random.between(1, 3), 0);
        log.append(&frames, positions[positions.len() - 1]).unwrap();
        log.sync().unwrap();
    }
    if known == Known::Mark {
        log.mark().unwrap();
    }
    let newest = read_map(&log.map).segments.last().unwrap().clone();
    let commit = if known == Known::Commit { log.last().index.0 } else { 0 };
    disk.crash();
    (disk, commit, newest.path, newest.end)
}

/// A start on a damaged log: refused, or the same log as before.
fn is_noticed(disk: &SimDisk, commit: u64) -> Result<(), String> {
    let refused = |error: LogError| match error {
        LogError::Corrupt { .. } | LogError::Format { .. } => Ok(()),
        other => Err(other.to_string()),
    };
    let before = disk.paths();
    match open_log(disk, commit) {
        Err(error) => {
            assert_eq!(disk.paths(), before, "a refusal changes nothing");
            refused(error)
        }
        Ok((log, _)) => Err(format!("the log is taken to end at {}", log.last().index)),
    }
}

/// One flipped bit of a head or of a record.
fn flip(seed: u64) -> Result<(), String> {
    let mut random = Random::new(seed);
    let known = random.pick(&[Known::Nothing, Known::Commit, Known::Mark]);
    let (disk, commit, newest, end) = synced(known, &mut random);
    let segments: Vec<PathBuf> =
        disk.paths().into_iter().filter(|path| path.extension().is_some_and(|end| end == "log")).collect();
    let path = random.pick(&segments.iter().collect::<Vec<_>>()).clone();
    // In older segments the zeros after the last record do not matter.
    let used = disk.bytes(&path).iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1;
    let used = if path == newest { end } else { used };
    let offset = if random.chance(200) || used <= HEAD_BYTES {
        random.below(48)
    } else {
        random.between(HEAD_BYTES, used - 1)
    };
    disk.flip(&path, offset, random.below(8) as u8);
    is_noticed(&disk, commit).map_err(|error| format!("{known:?}, {} byte {offset}: {error}", path.display()))
}

/// The end of the newest segment is zeros, from any byte on, or some sectors of it are.
fn zeros(seed: u64, known: Known) -> Result<(), String> {
    let mut random = Random::new(seed);
    let (disk, commit, newest, end) = synced(known, &mut random);
    if end == HEAD_BYTES {
        return Ok(());
    }
    let from = random.between(HEAD_BYTES, end - 1);
    if random.chance(500) {
        disk.zero_tail(&newest, from);
    } else {
        let sector = from / 512 * 512;
        disk.damage(&newest, sector, |bytes| bytes[..512.min((end - sector) as usize)].fill(0));
    }
    is_noticed(&disk, commit).map_err(|error| format!("from {from}: {error}"))
}

#[test]
fn a_flipped_bit_in_what_was_synced_is_noticed_wherever_it_is() {
    for seed in 0..1500 {
        flip(seed).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    let missed = |seed: &u64| without(Some(Rule::TrustShape), || flip(*seed)).is_err();
    assert!((0..1500).any(|seed| missed(&seed)), "the shape of a record is what tells");
}

#[test]
fn zeros_in_what_was_synced_are_noticed_by_the_mark_or_by_the_commit() {
    for known in [Known::Mark, Known::Commit] {
        for seed in 0..300 {
            zeros(seed, known).unwrap_or_else(|error| panic!("seed {seed}: {known:?}: {error}"));
        }
    }
    for (known, rule) in [(Known::Mark, Rule::TrustMark), (Known::Commit, Rule::TrustCommit)] {
        let missed = |seed: &u64| without(Some(rule), || zeros(*seed, known)).is_err();
        assert!((0..300).any(|seed| missed(&seed)), "{rule:?} can be left out");
    }
}

#[test]
fn a_log_that_is_gone_is_no_new_one() {
    let (disk, commit, ..) = synced(Known::Commit, &mut Random::new(1));
    for path in disk.paths() {
        disk.remove(&path).unwrap();
    }
    is_noticed(&disk, commit).unwrap();
    let error = without(Some(Rule::TrustCommit), || is_noticed(&disk, commit)).unwrap_err();
    assert!(error.contains("end at 0"), "{error}");
}

#[test]
fn a_whole_record_with_another_history_before_it_is_noticed() {
    let disk = fresh_disk();
    let mut log = open_log(&disk, 0).unwrap().0;
    let (frames, positions) = frames_after(log.last(), 1, 2, 0);
    log.append(&frames, positions[1]).unwrap();
    log.sync().unwrap();
    let path = read_map(&log.map).segments[0].path.clone();
    let (other, _) = frames_after(Position { chain: 1, ..Position::default() }, 1, 2, 0);
    disk.damage(&path, HEAD_BYTES, |bytes| bytes[..other.len()].copy_from_slice(&other));
    disk.crash();
    is_noticed(&disk, 0).unwrap();
    assert!(without(Some(Rule::CheckChain), || is_noticed(&disk, 0)).is_err());
}

fn append(log: &mut Log<SimDisk>, count: u64) -> Result<(), LogError> {
    let (frames, positions) = frames_after(log.last(), 1, count, 0);
    log.append(&frames, positions[positions.len() - 1])
}

/// Appends until there is no room; how many entries came after room was first said to be short.
fn fill(disk: &SimDisk, log: &mut Log<SimDisk>, free: u64) -> u64 {
    disk.limit(Some(disk.used() + free));
    let mut after_short = 0;
    loop {
        log.tend();
        let room = log.reader().room().unwrap();
        match append(log, 1) {
            Ok(()) => after_short += u64::from(room.space != Space::Ample),
            Err(LogError::NoSpace { .. }) => return after_short,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_full_disk_is_told_while_the_log_can_still_take_some_and_stops_nothing_for_good() {
    for free in [0, 3_000, 9_000, 30_000, 60_000] {
        let disk = fresh_disk();
        let mut log = open_log(&disk, 0).unwrap().0;
        log.tend();
        let after_short = fill(&disk, &mut log, free);
        assert!(after_short >= 5, "{free} bytes free: {after_short} entries after the warning");
        assert_eq!(log.reader().room().unwrap().space, Space::Stuck);
        log.sync().unwrap();
        let last = log.last();
        disk.limit(None);
        log.tend();
        append(&mut log, 1).unwrap();
        log.sync().unwrap();
        log.tend();
        assert_eq!(log.reader().room().unwrap().space, Space::Ample);
        disk.power_cut(&mut Random::new(1));
        assert_eq!(open_log(&disk, last.index.0 + 1).unwrap().0.last().index, last.index.next());
    }
}

#[test]
fn what_an_earlier_process_failed_to_sync_and_still_reads_is_written_again() {
    let told_and_kept = || {
        let disk = fresh_disk();
        let mut log = open_log(&disk, 0).unwrap().0;
        append(&mut log, 3).unwrap();
        disk.fail(Operation::Sync, 0, Fault::SyncForgets);
        assert!(log.sync().is_err() && log.sync().is_err(), "a failed sync is never retried");
        disk.crash();
        let told = open_log(&disk, 0).unwrap().0.last();
        disk.power_cut(&mut Random::new(1));
        (told, open_log(&disk, 0).unwrap().0.last())
    };
    let (told, kept) = told_and_kept();
    assert_eq!((told.index, told), (Index(3), kept));
    let (told, kept) = without(Some(Rule::RewriteTail), told_and_kept);
    assert_ne!(told, kept, "writing it again is what helps");
}

#[test]
fn on_a_full_disk_the_log_can_still_be_cut_started_anew_and_recovered() {
    let ready = || {
        let disk = fresh_disk();
        let mut log = open_log(&disk, 0).unwrap().0;
        append(&mut log, 3).unwrap();
        log.sync().unwrap();
        log.tend();
        disk.limit(Some(disk.used()));
        (disk, log)
    };
    let (_, mut log) = ready();
    log.truncate_after(Index(2)).unwrap();
    append(&mut log, 1).unwrap();
    let (_, mut log) = ready();
    log.reset(Position { index: Index(9), epoch: Epoch(3), chain: 1 }).unwrap();
    let (disk, mut log) = ready();
    append(&mut log, 3).unwrap();
    let torn = (0..).find(|seed| {
        let after = disk.fork();
        after.power_cut(&mut Random::new(*seed));
        open_log(&after, 3).unwrap().1.torn_bytes > 0
    });
    assert!(torn.is_some());
    let without_reserve = without(Some(Rule::KeepReserve), || ready().1.truncate_after(Index(2)));
    assert!(matches!(without_reserve, Err(LogError::NoSpace { .. })), "the reserve is what helps");
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

#[test]
fn a_fresh_start_that_was_staged_is_finished_or_given_up_as_the_state_says() {
    let base = Position { index: Index(9), epoch: Epoch(3), chain: 1 };
    let disk = fresh_disk();
    let mut log = open_log(&disk, 0).unwrap().0;
    append(&mut log, 3).unwrap();
    log.stage_reset(base).unwrap();
    disk.power_cut(&mut Random::new(1));
    let finished = disk.fork();
    let (mut log, recovered) = open_log(&finished, 3).unwrap();
    assert_eq!((recovered.staged, recovered.last.index), (Some(base), Index(3)));
    log.finish_reset().unwrap();
    finished.power_cut(&mut Random::new(2));
    let (_, recovered) = open_log(&finished, 9).unwrap();
    assert_eq!((recovered.staged, recovered.base, recovered.last), (None, base, base));
    let (mut log, _) = open_log(&disk, 3).unwrap();
    log.forget_staged().unwrap();
    disk.power_cut(&mut Random::new(3));
    assert_eq!(open_log(&disk, 3).unwrap().1.staged, None);
}
