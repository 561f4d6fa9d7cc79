use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::*;
use crate::kv::Backend as _;
use crate::node::log::{Options, Record, encode};
use crate::node::state::StateBackend;
use crate::node::testing::disk::SimDisk;
use crate::node::testing::rows::MemoryRows;

const SMALL: Options = Options { first_segment_bytes: 2 << 10, segment_bytes: 4 << 10 };

fn open(disk: &SimDisk) -> (Log<SimDisk>, log::Recovered) {
    Log::open_with(disk.clone(), Path::new("log"), Index(0), SMALL).unwrap()
}

/// A log of three entries.
fn three() -> (SimDisk, Log<SimDisk>) {
    let disk = SimDisk::new();
    let (mut log, _) = open(&disk);
    let (mut frames, mut last) = (BytesMut::new(), Position::default());
    for index in 1..=3 {
        let (epoch, index, payload) = (Epoch(1), Index(index), Bytes::from_static(b"payload"));
        let record = Record { epoch, index, commit: Index(0), origin: 1, sequence: 1, payload };
        last = Position { index, epoch, chain: encode(&mut frames, &record, last.chain) };
    }
    log.append(&frames.freeze(), last).unwrap();
    log.sync().unwrap();
    (disk, log)
}

fn state(applied: Position) -> StateStore {
    let mut backend = StateBackend::over(Arc::new(MemoryRows::default())).unwrap();
    backend.put_meta(snapshot::APPLIED, snapshot::encode_position(applied));
    kv::Store::open(backend).unwrap()
}

fn start(disk: &SimDisk, applied: Position) -> Result<Found, StartError> {
    disk.crash();
    let (mut log, recovered) = open(disk);
    put_together(&mut log, recovered, &state(applied), Index(0))
}

const AHEAD: Position = Position { index: Index(9), epoch: Epoch(2), chain: 5 };

#[test]
fn a_state_within_the_log_is_gone_on_with() {
    let (disk, log) = three();
    let found = start(&disk, log.position(Index(2)).unwrap()).unwrap();
    assert_eq!((found.last.index, found.outline.commit()), (Index(3), Index(2)));
}

#[test]
fn a_log_that_ends_before_its_state_has_lost_its_end_and_is_kept_as_it_is() {
    let (disk, log) = three();
    let error = start(&disk, AHEAD).unwrap_err();
    assert!(matches!(error, StartError::LogBehind { applied: Index(9), last: Index(3) }), "{error}");
    let end = log.last();
    disk.crash();
    assert_eq!(open(&disk).0.last(), end, "nothing was thrown away");
}

#[test]
fn a_snapshot_that_was_put_in_place_gets_the_log_that_was_staged_for_it() {
    let (disk, mut log) = three();
    log.stage_reset(AHEAD).unwrap();
    let found = start(&disk, AHEAD).unwrap();
    assert_eq!((found.last, found.outline.base().index, found.outline.commit()), (AHEAD, Index(9), Index(9)));
    disk.crash();
    assert_eq!(open(&disk).0.base(), AHEAD);
}

#[test]
fn a_log_staged_for_a_snapshot_that_never_came_is_given_up() {
    let (disk, mut log) = three();
    let applied = log.last();
    log.stage_reset(AHEAD).unwrap();
    assert_eq!(start(&disk, applied).unwrap().last, applied);
    assert!(start(&disk, AHEAD).is_err(), "it is not there for another time");
}
