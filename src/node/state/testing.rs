//! The state on a simulated disk that is full, or becomes so at any byte.

use std::path::Path;

use bytes::Bytes;

use super::{Flush, FlushJob, StateBackend, StateError};
use crate::disk::Disk as _;
use crate::kv::{Backend as _, RevisionKey};
use crate::node::lack::Lack;
use crate::node::testing::disk::SimDisk;
use crate::protocol::testing::random::Random;
use crate::rules::{Rule, without};

const DIRECTORY: &str = "data";

fn fresh() -> SimDisk {
    let disk = SimDisk::new();
    disk.make_directory(Path::new(DIRECTORY)).unwrap();
    disk.sync_directory(Path::new("")).unwrap();
    disk
}

fn open(disk: &SimDisk) -> Result<StateBackend, StateError> {
    StateBackend::open_on(disk, Path::new(DIRECTORY))
}

fn put(backend: &mut StateBackend, from: i64, to: i64) {
    for main in from..to {
        backend.put(RevisionKey { main, sub: 0 }, Bytes::from(vec![main as u8; 900]));
    }
    backend.put_meta("applied", Bytes::copy_from_slice(&to.to_le_bytes()));
}

fn holds(backend: &StateBackend, to: i64) -> bool {
    let all = (1..to).all(|main| {
        let found = backend.get(RevisionKey { main, sub: 0 });
        found.is_some_and(|value| value.len() == 900 && value[0] == main as u8)
    });
    all && backend.meta("applied").as_deref() == Some(&to.to_le_bytes()[..])
}

/// Runs it again and again, as its owner does after a time.
fn finish(backend: &mut StateBackend, mut job: FlushJob) {
    for _ in 0..3 {
        match job.run().unwrap() {
            Flush::Done(done) => return assert!(backend.end_flush(&done)),
            Flush::Waits(rest, _) => job = rest,
        }
    }
    panic!("there is room");
}

/// A flush while the disk has so many bytes free, after it was asked for room. What was durable before stays, whatever
/// happens; and where it is put off the state is read as it should be, and is durable once there is room.
fn flush_with(free: u64) -> Result<bool, StateError> {
    let disk = fresh();
    let mut backend = open(&disk).unwrap();
    put(&mut backend, 1, 200);
    let job = backend.begin_flush().expect("there is room");
    finish(&mut backend, job);
    put(&mut backend, 200, 1200);
    let job = backend.begin_flush().expect("there is room");
    disk.limit(Some(disk.used() + free));
    let put_off = match job.run()? {
        Flush::Done(done) => {
            assert!(backend.end_flush(&done));
            false
        }
        Flush::Waits(rest, lack) => {
            assert_eq!(lack, Lack::Space);
            assert!(holds(&backend, 1200), "{free} bytes: what is put off is read");
            let cut = disk.fork();
            cut.power_cut(&mut Random::new(free));
            cut.limit(None);
            assert!(holds(&open(&cut).unwrap(), 200), "{free} bytes: what was durable is lost");
            disk.limit(None);
            finish(&mut backend, rest);
            true
        }
    };
    assert!(holds(&backend, 1200));
    drop(backend);
    disk.power_cut(&mut Random::new(free));
    assert!(holds(&open(&disk).unwrap(), 1200), "{free} bytes: a flush that is done is lost");
    Ok(put_off)
}

#[test]
fn a_flush_that_meets_a_full_disk_is_put_off_and_loses_nothing() {
    let put_off = (0..24).filter(|step| flush_with(step * 97_003).unwrap()).count();
    assert!((2..24).contains(&put_off), "{put_off} of 24 show nothing");
    let ends = without(Some(Rule::PutOffState), || flush_with(4_096));
    assert!(ends.is_err(), "without it the process ends");
}

#[test]
fn a_state_that_was_not_closed_is_opened_on_a_full_disk() {
    let disk = fresh();
    let mut backend = open(&disk).unwrap();
    put(&mut backend, 1, 300);
    let job = backend.begin_flush().expect("there is room");
    finish(&mut backend, job);
    disk.crash();
    disk.limit(Some(disk.used()));
    let mut backend = open(&disk).unwrap();
    assert!(holds(&backend, 300));
    put(&mut backend, 300, 400);
    assert!(backend.begin_flush().is_none() && backend.waits_for_room() && holds(&backend, 400));
    disk.limit(None);
    let job = backend.begin_flush().expect("there is room again");
    finish(&mut backend, job);
    disk.crash();
    assert!(holds(&open(&disk).unwrap(), 400));
}
