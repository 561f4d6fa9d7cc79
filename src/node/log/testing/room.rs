//! A full disk (R25): told in time, waited for, and nothing lost.

use super::*;
use crate::node::log::Space;
use crate::node::testing::disk::{Fault, Operation};
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
    // Two leaders die one after the other: each cut takes a file.
    let cut_twice = || {
        let (_disk, mut log) = ready();
        log.truncate_after(Index(2))?;
        append(&mut log, 1)?;
        log.truncate_after(Index(2))
    };
    cut_twice().unwrap();
    let without_reserve = without(Some(Rule::KeepReserve), cut_twice);
    assert!(matches!(without_reserve, Err(LogError::NoSpace { .. })), "the reserve is what helps");
}

/// Can the log take a segment's worth after the disk was filled to its last byte, right after a start?
fn goes_on_without_a_free_byte() -> Result<(), LogError> {
    let disk = fresh_disk();
    let mut log = open_log(&disk, 0)?.0;
    disk.limit(Some(disk.used()));
    for _ in 0..12 {
        append(&mut log, 1)?;
        log.sync()?;
    }
    Ok(())
}

#[test]
fn what_is_kept_in_reserve_has_its_room_from_the_start() {
    goes_on_without_a_free_byte().unwrap();
    let unallocated = without(Some(Rule::AllocateSpares), goes_on_without_a_free_byte);
    assert!(matches!(unallocated, Err(LogError::NoSpace { .. })), "{unallocated:?}");
}

/// Something that no count of free bytes shows is missing for a moment: is the log ample again after a time?
fn ample_again_after(fault: Fault) -> bool {
    let disk = fresh_disk();
    let mut log = open_log(&disk, 0).unwrap().0;
    for _ in 0..3 {
        disk.fail(Operation::Create, 0, fault);
    }
    while log.reader().room().unwrap().space == Space::Ample {
        append(&mut log, 1).unwrap();
    }
    (0..100).any(|_| {
        log.tend();
        log.reader().room().unwrap().space == Space::Ample
    })
}

#[test]
fn what_failed_for_want_of_something_is_tried_again_after_a_time() {
    for fault in [
        Fault::NoSpace(0),
        Fault::Lacks(nix::libc::EDQUOT),
        Fault::Lacks(nix::libc::EMFILE),
        Fault::Lacks(nix::libc::ENFILE),
        Fault::Lacks(nix::libc::ENOMEM),
    ] {
        assert!(ample_again_after(fault), "{fault:?}");
        let never = without(Some(Rule::RetryAfterLack), || ample_again_after(fault));
        assert!(!never, "{fault:?} without another try");
    }
}

#[test]
fn a_spare_that_is_being_made_is_not_ordered_again() {
    let disk = fresh_disk();
    let mut log = open_log(&disk, 0).unwrap().0;
    for _ in 0..3 {
        disk.fail(Operation::Create, 0, Fault::Lacks(nix::libc::EMFILE));
    }
    while log.reader().room().unwrap().space == Space::Ample {
        append(&mut log, 1).unwrap();
    }
    disk.heal();
    disk.put_off_background(true);
    // A thread is slow: a second one, at the same file, could write zeros over it once it is a segment of the log.
    for _ in 0..200 {
        log.tend();
        assert!(disk.waiting_in_background() <= 2, "one for each spare");
    }
    assert!(disk.waiting_in_background() > 0, "none was ordered again");
}

/// Nothing is prepared, and the next segment cannot be made just now: does the log live on?
fn lives_on_without(code: i32) -> bool {
    let disk = fresh_disk();
    disk.put_off_background(true);
    let mut log = open_log(&disk, 0).unwrap().0;
    let base = log.last();
    for _ in 0..8 {
        disk.fail(Operation::Create, 0, Fault::Lacks(code));
    }
    let stuck = (0..100).map(|_| append(&mut log, 1)).find_map(Result::err);
    let waits = matches!(stuck, Some(LogError::NoSpace { .. }));
    disk.heal();
    waits && append(&mut log, 1).is_ok() && log.sync().is_ok_and(|last| last > base.index)
}

#[test]
fn a_missing_descriptor_or_inode_is_no_failure_of_the_disk() {
    for code in
        [nix::libc::EMFILE, nix::libc::ENFILE, nix::libc::ENOMEM, nix::libc::EDQUOT, nix::libc::ENOSPC]
    {
        assert!(lives_on_without(code), "{code}");
        assert!(!without(Some(Rule::LackIsNoFailure), || lives_on_without(code)), "{code}: it is one");
    }
}
