//! Each change of the log broken off at every step, and its recovery as well.

use super::*;
use crate::node::testing::disk::{Fault, Operation};
use crate::protocol::testing::random::Random;
use crate::rules::{Rule, without};

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
