//! Full disks under whole nodes (R25, R34): what grows is refused in time, the rest goes on.

use tokio::time::Instant;

use super::storm::Storm;
use crate::kv::Refusal;
use crate::node::handle::StateStore;
use crate::proto::etcdserverpb as pb;
use crate::proto::replcluster::mutation;
use crate::rules::{Rule, without};

/// A cluster that is whole.
fn calm() -> Storm {
    let mut storm = Storm::new(7, false, Instant::from_std(crate::clock::now()));
    storm.begin_calm().unwrap_or_else(|broken| panic!("{broken:?}"));
    storm
}

fn go_on(storm: &mut Storm, time: u64) {
    storm.go_on(time).unwrap_or_else(|broken| panic!("{broken:?}"));
}

/// Only so many more bytes fit on the disk.
fn leave_room(storm: &Storm, machine: usize, bytes: u64) {
    let disk = &storm.world.machines[machine].disk;
    disk.limit(Some(disk.used() + bytes));
}

fn put() -> mutation::Request {
    let (key, value) = (b"k".as_slice().into(), vec![7; 900].into());
    mutation::Request::Put(pb::PutRequest { key, value, ..Default::default() })
}

fn delete() -> mutation::Request {
    mutation::Request::DeleteRange(pb::DeleteRangeRequest {
        key: b"k".as_slice().into(),
        ..Default::default()
    })
}

/// Do all nodes refuse what makes the state grow while their disks are full, and no longer?
fn alarm_follows_room() -> bool {
    let mut storm = calm();
    let alarmed = |storm: &Storm| {
        let alarm = |process: &super::machine::Process| process.shared.look(&StateStore::has_space_alarm);
        let all = storm.world.machines.iter().map(|machine| machine.process.as_ref().is_some_and(alarm));
        all.collect::<Vec<bool>>()
    };
    assert!(!alarmed(&storm).contains(&true));
    for machine in 0..storm.world.machines.len() {
        leave_room(&storm, machine, 16 << 10);
    }
    go_on(&mut storm, 500);
    let raised = !alarmed(&storm).contains(&false);
    for machine in &storm.world.machines {
        machine.disk.limit(None);
    }
    go_on(&mut storm, 500);
    raised && !alarmed(&storm).contains(&true)
}

#[test]
fn full_disks_raise_an_alarm_and_room_ends_it() {
    assert!(alarm_follows_room());
    assert!(!without(Some(Rule::WatchRoom), alarm_follows_room));
}

/// The disks are filled to the last byte while puts come as fast as they can: is a delete carried out afterwards?
fn a_delete_is_carried_out() -> bool {
    let mut storm = calm();
    for machine in 0..storm.world.machines.len() {
        leave_room(&storm, machine, 0);
    }
    let leader = storm.leader();
    let mut waiting = Vec::new();
    for _ in 0..60 {
        waiting.push(storm.order(leader, put()));
        go_on(&mut storm, 1);
    }
    let mut outcome = storm.order(leader, delete());
    go_on(&mut storm, 1000);
    matches!(outcome.try_recv(), Ok(Ok(Ok(_))))
}

#[test]
fn deletes_go_on_where_puts_would_fill_the_reserve() {
    assert!(a_delete_is_carried_out());
    assert!(!without(Some(Rule::SpareReserve), a_delete_is_carried_out));
}

#[test]
fn what_a_follower_forwards_to_a_leader_without_room_is_refused_and_not_forgotten() {
    let mut storm = calm();
    let leader = storm.leader();
    let follower = (0..storm.world.machines.len()).find(|machine| *machine != leader).expect("a follower");
    for machine in 0..storm.world.machines.len() {
        leave_room(&storm, machine, 0);
    }
    go_on(&mut storm, 60);
    let mut outcomes: Vec<_> = (0..20).map(|_| storm.order(follower, put())).collect();
    let mut deleted = storm.order(follower, delete());
    go_on(&mut storm, 1000);
    for outcome in &mut outcomes {
        let outcome = outcome.try_recv();
        assert!(matches!(outcome, Ok(Ok(Ok(_) | Err(Refusal::SpaceExceeded)))), "{outcome:?}");
    }
    assert!(matches!(deleted.try_recv(), Ok(Ok(Ok(_)))));
}

/// The leader's disk is full, those of the others are not, and none of them can take over: its clients do not wait for
/// what does not come.
#[test]
fn where_nobody_takes_over_from_a_full_leader_puts_are_refused_and_deletes_go_on() {
    let mut storm = calm();
    let leader = storm.leader();
    leave_room(&storm, leader, 0);
    for (number, machine) in storm.world.machines.iter().enumerate() {
        machine.register_cut.store(number != leader, std::sync::atomic::Ordering::Relaxed);
    }
    go_on(&mut storm, 1000);
    for _ in 0..5 {
        let mut refused = storm.order(leader, put());
        let mut deleted = storm.order(leader, delete());
        go_on(&mut storm, 400);
        let refused = refused.try_recv();
        assert!(matches!(refused, Ok(Ok(Err(Refusal::SpaceExceeded)))), "{refused:?}");
        assert!(matches!(deleted.try_recv(), Ok(Ok(Ok(_)))));
    }
    assert_eq!(leader, storm.leader());
}

#[test]
fn what_waits_at_a_full_leader_is_not_refused_while_another_takes_over() {
    let mut storm = calm();
    let full = storm.leader();
    leave_room(&storm, full, 0);
    let mut outcomes = Vec::new();
    for _ in 0..40 {
        outcomes.push(storm.order(full, put()));
        go_on(&mut storm, 5);
    }
    go_on(&mut storm, 1_000);
    let next = storm.leader();
    assert_ne!(next, full, "one with room leads");
    for outcome in &mut outcomes {
        // Some are done, some are sent away before any leader got them, and of some the full node cannot say more: it has
        // left the set and takes no entries.
        let outcome = outcome.try_recv();
        assert!(!matches!(outcome, Ok(Ok(Err(Refusal::SpaceExceeded)))), "{outcome:?}");
    }
    let mut done = storm.order(next, put());
    go_on(&mut storm, 100);
    assert!(matches!(done.try_recv(), Ok(Ok(Ok(_)))));
}
