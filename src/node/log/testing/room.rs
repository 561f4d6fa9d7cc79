//! A full disk (R25): told in time, waited for, and nothing lost.

use super::*;
use crate::node::log::Space;
use crate::protocol::testing::random::Random;
use crate::rules::{Rule, without};

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
