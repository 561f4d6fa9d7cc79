//! What was synced and is not what it was any more: it is found, and refused (R23).

use std::path::PathBuf;

use super::*;
use crate::node::log::read_map;
use crate::node::log::segment::HEAD_BYTES;
use crate::protocol::testing::random::Random;
use crate::rules::{Rule, without};

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
