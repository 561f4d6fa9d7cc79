//! The log on a disk that fails. What all the tests need stands here: a model of what the log should hold, and small
//! logs on a simulated disk. `histories` are seeded and long; `steps` breaks each change off at every single step;
//! `damage` is what happens to a disk later; `room` is what happens on a full one.

mod damage;
mod histories;
mod room;
mod steps;

use std::collections::BTreeMap;
use std::path::Path;

use bytes::{Bytes, BytesMut};

use super::{Log, LogError, Options, Position, Record, Recovered, decode, encode};
use crate::disk::Disk as _;
use crate::node::testing::disk::SimDisk;
use crate::view::{Epoch, Index};

const DIRECTORY: &str = "data/log";
const SMALL: Options = Options { first_segment_bytes: 3 << 10, segment_bytes: 6 << 10 };

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

fn open_log(disk: &SimDisk, commit: u64) -> Result<(Log<SimDisk>, Recovered), LogError> {
    Log::open_with(disk.clone(), Path::new(DIRECTORY), Index(commit), SMALL)
}

fn fresh_disk() -> SimDisk {
    let disk = SimDisk::new();
    disk.make_directory(Path::new("data")).unwrap();
    disk.sync_directory(Path::new("")).unwrap();
    disk
}

fn append(log: &mut Log<SimDisk>, count: u64) -> Result<(), LogError> {
    let (frames, positions) = frames_after(log.last(), 1, count, 0);
    log.append(&frames, positions[positions.len() - 1])
}
