use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::BytesMut;

use super::*;
use crate::node::log::{Options, Record, encode};
use crate::node::testing::disk::{Fault, Operation, SimDisk};
use crate::protocol::testing::random::Random;
use crate::rules::without;

const SMALL: Options = Options { first_segment_bytes: 2 << 10, segment_bytes: 4 << 10 };

fn start(disk: &SimDisk) -> Writer<SimDisk, Promises> {
    disk.make_directory(Path::new("data")).unwrap();
    disk.sync_directory(Path::new("")).unwrap();
    let promises = Promises::open(disk, Path::new("data")).unwrap();
    let commit = promises.promise().commit;
    let (log, _) = Log::open_with(disk.clone(), Path::new("data/log"), commit, SMALL).unwrap();
    Writer::new(log, promises)
}

fn append(write: WriteId, before: &mut Position, epoch: u64, count: u64, bytes: usize) -> WriteOperation {
    let mut frames = BytesMut::new();
    for _ in 0..count {
        let record = Record {
            epoch: Epoch(epoch),
            index: before.index.next(),
            commit: Index(0),
            origin: 1,
            sequence: 1,
            payload: Bytes::from(vec![epoch as u8; bytes]),
        };
        let chain = encode(&mut frames, &record, before.chain);
        *before = Position { index: record.index, epoch: record.epoch, chain };
    }
    WriteOperation::Append { write, frames: frames.freeze(), last: *before }
}

fn persist(write: WriteId, epoch: u64) -> WriteOperation {
    WriteOperation::Persist { write, promised: Epoch(epoch), view: None, commit: Index(0) }
}

#[test]
fn a_turn_is_one_sync_for_all_that_it_appends() {
    let disk = SimDisk::new();
    let mut writer = start(&disk);
    let mut end = Position::default();
    let operations: Vec<_> = (1..=5).map(|write| append(write, &mut end, 1, 2, 20)).collect();
    let before = disk.steps();
    let done = writer.turn(operations).unwrap();
    assert_eq!(done, TurnDone { persisted: Some(5), ..TurnDone::default() });
    assert_eq!(disk.steps() - before, 6, "five writes and a sync");
    writer.rest().unwrap();
    writer.rest().unwrap();
    assert_eq!(disk.steps() - before, 7, "and one mark");
}

#[test]
fn what_a_turn_reports_is_there_after_a_power_cut_at_any_step() {
    for seed in 0..400 {
        let mut random = Random::new(seed);
        let disk = SimDisk::new();
        let mut writer = start(&disk);
        disk.power_off_after(random.between(1, 60));
        let (mut end, mut write, mut epoch) = (Position::default(), 0, 1);
        // By write: what the log ends with and what was promised then.
        let mut ends = vec![(end, 1)];
        let mut persisted = 0;
        loop {
            let mut operations = Vec::new();
            for _ in 0..random.between(1, 4) {
                write += 1;
                operations.push(match random.below(8) {
                    0 => {
                        epoch += 1;
                        persist(write, epoch)
                    }
                    _ => append(write, &mut end, epoch, random.between(1, 3), 100),
                });
                ends.push((end, epoch));
            }
            match writer.turn(operations) {
                Ok(done) => persisted = done.persisted.unwrap(),
                Err(Failure::Fatal(_)) => break,
                Err(Failure::Diverged(at)) => panic!("seed {seed}: diverged at {at}"),
            }
        }
        assert!(writer.turn(None).is_err(), "nothing follows a failure");
        disk.power_cut(&mut random);
        let writer = start(&disk);
        let (end, promised) = ends[usize::try_from(persisted).unwrap()];
        assert!(writer.log().position(end.index) == Some(end), "seed {seed}: {end:?} is not there");
        assert!(writer.promises.promise().promised.0 >= promised || promised == 1, "seed {seed}");
    }
}

#[test]
fn on_a_full_disk_all_waits_in_its_order_but_dropping_which_makes_room() {
    let disk = SimDisk::new();
    let mut writer = start(&disk);
    let mut end = Position::default();
    writer.tend().unwrap();
    disk.limit(Some(disk.used() + 10_000));
    let mut write = 0;
    let stuck = loop {
        write += 1;
        let done = writer.turn([append(write, &mut end, 1, 1, 500)]).unwrap();
        if done.waiting > 0 {
            break done;
        }
        assert_eq!(done.persisted, Some(write));
    };
    assert_eq!(stuck, TurnDone { waiting: 1, lack: Some(Lack::Space), ..TurnDone::default() });
    let held = end.index.0 - 1;
    let done = writer.turn([persist(write + 1, 7), append(write + 2, &mut end, 1, 1, 500)]).unwrap();
    assert_eq!(
        (done.persisted, done.kept, done.waiting),
        (None, vec![write + 1], 2),
        "only a promise overtakes"
    );
    assert_eq!(writer.promises.promise().promised, Epoch(7));
    assert_eq!(writer.log().last().index, Index(held));
    let done = writer.turn([WriteOperation::DropBefore(Index(held))]).unwrap();
    assert!(done.dropped.is_some_and(|base| base > Index(0)), "{done:?}");
    let done = writer.turn(None).unwrap();
    assert_eq!((done.persisted, done.waiting), (Some(write + 2), 0));
    assert_eq!(writer.log().last(), end);
}

/// Is a promise kept that comes after an append for which there is no room?
fn a_promise_is_kept() -> bool {
    let disk = SimDisk::new();
    let mut writer = start(&disk);
    let (mut end, mut write) = (Position::default(), 0);
    disk.limit(Some(disk.used()));
    loop {
        write += 1;
        if writer.turn([append(write, &mut end, 1, 1, 500)]).unwrap().waiting > 0 {
            break;
        }
    }
    writer.turn([persist(write + 1, 7)]).unwrap();
    disk.power_cut(&mut Random::new(1));
    start(&disk).promises.promise().promised == Epoch(7)
}

#[test]
fn a_promise_does_not_wait_behind_what_finds_no_room() {
    assert!(a_promise_is_kept());
    assert!(!without(Some(Rule::PromiseAhead), a_promise_is_kept));
}

#[test]
fn a_promise_that_overtakes_an_install_does_not_speak_of_what_that_holds() {
    let disk = SimDisk::new();
    let mut writer = start(&disk);
    let mut end = Position::default();
    writer.turn([append(1, &mut end, 1, 3, 10)]).unwrap();
    // No spare file is left, and none can be made.
    for path in disk.paths().iter().filter(|path| path.extension().is_some_and(|kind| kind == "tmp")) {
        disk.remove(path).unwrap();
    }
    disk.crash();
    disk.limit(Some(disk.used()));
    let mut writer = start(&disk);
    let base = Position { index: Index(50), epoch: Epoch(3), chain: 9 };
    let place = Box::new(|| panic!("there is no room for the log that it needs"));
    let install = WriteOperation::Install { write: 2, base, place };
    let promise = WriteOperation::Persist { write: 3, promised: Epoch(9), view: None, commit: Index(50) };
    let done = writer.turn([install, promise]).unwrap();
    assert_eq!((done.kept, done.waiting), (vec![3], 1));
    disk.power_cut(&mut Random::new(1));
    let writer = start(&disk);
    assert_eq!((writer.promises.promise().promised, writer.log().last()), (Epoch(9), end));
}

#[test]
fn a_failed_sync_reports_nothing_and_ends_everything() {
    let disk = SimDisk::new();
    let mut writer = start(&disk);
    let mut end = Position::default();
    disk.fail(Operation::Sync, 0, Fault::SyncForgets);
    assert!(matches!(writer.turn([append(1, &mut end, 1, 1, 10)]), Err(Failure::Fatal(_))));
    assert!(matches!(writer.turn([append(2, &mut end, 1, 1, 10)]), Err(Failure::Fatal(_))));
    assert!(matches!(writer.turn(None), Err(Failure::Fatal(_))));
}

#[test]
fn what_does_not_continue_the_log_is_told_as_such() {
    let disk = SimDisk::new();
    let mut writer = start(&disk);
    let mut end = Position { index: Index(4), ..Position::default() };
    assert_eq!(writer.turn([append(1, &mut end, 1, 1, 10)]), Err(Failure::Diverged(Index(5))));
}

#[test]
fn an_install_broken_off_at_any_step_is_known_by_the_next_start() {
    let base = Position { index: Index(50), epoch: Epoch(3), chain: 9 };
    for step in 1.. {
        let disk = SimDisk::new();
        let mut writer = start(&disk);
        let mut end = Position::default();
        writer.turn([append(1, &mut end, 1, 3, 10)]).unwrap();
        disk.power_off_after(step);
        let placed = Arc::new(Mutex::new(false));
        let tell = placed.clone();
        let place = Box::new(move || {
            *tell.lock().unwrap() = true;
            Ok(())
        });
        let done = writer.turn([WriteOperation::Install { write: 2, base, place }]).is_ok();
        disk.power_cut(&mut Random::new(step));
        let (log, recovered) = Log::open_with(disk.clone(), Path::new("data/log"), Index(3), SMALL).unwrap();
        let placed = *placed.lock().unwrap();
        let finished = log.base() == base;
        assert!(finished || log.last() == end, "step {step}: the old log or the new one");
        assert!(finished || !done, "step {step}");
        assert!(!placed || finished || recovered.staged == Some(base), "step {step}: the state has no log");
        if done {
            assert!(step > 5, "{step} steps show nothing");
            break;
        }
    }
}
