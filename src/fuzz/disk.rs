//! What is read from the disk: log, promise, rows of the state, views and marks of the register.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::source::Source;
use super::target;
use crate::disk::{Disk as _, RealDisk};
use crate::kv::Store;
use crate::node::log;
use crate::node::promise::Promises;
use crate::node::state::{Changed, RowStore as _, StateBackend};
use crate::node::testing::rows::MemoryRows;
use crate::register::format;
use crate::view::{Epoch, Index};

/// Records as they stand in a log, one after the other from index 5 on.
pub(super) fn records(count: u64) -> Vec<u8> {
    let mut buffer = BytesMut::new();
    let mut chain = 0;
    for number in 0..count {
        let record = log::Record {
            epoch: Epoch(2),
            index: Index(5 + number),
            commit: Index(4),
            origin: 7,
            sequence: number,
            payload: Bytes::from(vec![9; 40]),
        };
        chain = log::encode(&mut buffer, &record, chain);
    }
    buffer.to_vec()
}

/// A mistake, and then the checksum of the header made right again, mostly: what lies behind it is to be tried too.
fn mistaken_record(source: &mut Source, bytes: &[u8]) -> Vec<u8> {
    let mut bytes = source.mistakes(bytes);
    if bytes.len() >= HEADER_BYTES && source.chance(80) {
        let crc = crc32c::crc32c(&bytes[4..HEADER_BYTES]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
    }
    bytes
}

/// Length of a record's header: what its checksum covers.
const HEADER_BYTES: usize = 56;

#[test]
fn log_records() {
    let decode = |bytes: &[u8]| {
        let mut frames = Bytes::copy_from_slice(bytes);
        while let Ok(Some(_)) = log::decode(&mut frames) {}
        Ok(())
    };
    target("disk::log_records", vec![records(1), records(4)], &mistaken_record, &decode).run();
}

/// The files of a data directory with one of them replaced.
fn with_file(name: &str, bytes: &[u8], look: impl Fn(&Path) -> Result<(), String>) -> Result<(), String> {
    let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
    std::fs::write(directory.path().join(name), bytes).map_err(|error| error.to_string())?;
    look(directory.path())
}

#[test]
fn promises() {
    let directory = tempfile::tempdir().unwrap();
    let promises = Promises::open(&RealDisk, directory.path()).unwrap();
    promises.save(Epoch(3), Some(&crate::register::format::tests::view(2, 1)), Index(9)).unwrap();
    let valid = std::fs::read(directory.path().join("promise")).unwrap();
    let decode = |bytes: &[u8]| {
        with_file("promise", bytes, |directory| {
            let _ = Promises::look(&RealDisk, directory);
            Ok(())
        })
    };
    let mistake = |source: &mut Source, bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        // In the heads and the beginning of the views: elsewhere are zeros.
        let copy = source.below(4) * (bytes.len() / 4);
        let mistaken = source.mistakes(&bytes[copy..copy + 400]);
        bytes.splice(copy..copy + 400, mistaken);
        bytes
    };
    target("disk::promises", vec![valid], &mistake, &decode).run();
}

#[test]
fn log_segments() {
    let directory = tempfile::tempdir().unwrap();
    let options = log::Options { segment_bytes: 64 << 10, ..log::Options::default() };
    let (mut written, _) = log::Log::open_with(RealDisk, directory.path(), Index(0), options).unwrap();
    let mut buffer = BytesMut::new();
    let record = log::Record {
        epoch: Epoch(1),
        index: Index(1),
        commit: Index(0),
        origin: 7,
        sequence: 1,
        payload: Bytes::from(vec![9; 400]),
    };
    let chain = log::encode(&mut buffer, &record, 0);
    let last = log::Position { index: Index(1), epoch: Epoch(1), chain };
    written.append(&buffer.freeze(), last).unwrap();
    written.sync().unwrap();
    drop(written);
    let name =
        RealDisk.list(directory.path()).unwrap().into_iter().find(|name| name.ends_with(".log")).unwrap();
    let valid = std::fs::read(directory.path().join(&name)).unwrap();
    let decode = |bytes: &[u8]| {
        with_file(&name, bytes, |directory| {
            let _ = log::look(&RealDisk, directory, Index(0));
            Ok(())
        })
    };
    let mistake = |source: &mut Source, bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        let at = *source.pick(&[0, 512, 4096]);
        let mistaken = source.mistakes(&bytes[at..at + 100]);
        bytes.splice(at..at + 100, mistaken);
        if source.chance(70) && bytes.len() > 48 {
            let crc = crc32c::crc32c(&bytes[..44]);
            bytes[44..48].copy_from_slice(&crc.to_le_bytes());
        }
        bytes
    };
    let mut target = target("disk::log_segments", vec![valid], &mistake, &decode);
    // Four mebibytes, read when a node starts.
    (target.cpu, target.one_of) = (Duration::from_secs(2), 50);
    target.run();
}

/// The rows of a state with some keys, some of them deleted.
fn state_rows() -> Vec<(Vec<u8>, Bytes)> {
    use crate::proto::etcdserverpb as pb;
    use crate::proto::replcluster::{Mutation, mutation::Request};
    let rows = Arc::new(MemoryRows::default());
    let mut store = Store::open(StateBackend::over(rows.clone()).unwrap()).unwrap();
    for number in 0..6_u8 {
        let key = Bytes::from(vec![b'a' + number % 3]);
        let request = match number {
            4 => Request::DeleteRange(pb::DeleteRangeRequest { key, ..Default::default() }),
            _ => Request::Put(pb::PutRequest { key, value: "value".into(), ..Default::default() }),
        };
        store.apply(&Mutation { request: Some(request), ..Default::default() }).unwrap();
    }
    let job = store.backend_mut().begin_flush().unwrap();
    let crate::node::state::Flush::Done(done) = job.run().unwrap() else { panic!("memory lacks nothing") };
    store.backend_mut().end_flush(&done);
    let view = rows.view().unwrap();
    view.page(None, usize::MAX).unwrap().into_iter().map(|(key, value)| (key.to_vec(), value)).collect()
}

/// What a snapshot brings is rows: any of them may be other than a store wrote it.
#[test]
fn snapshot_rows() {
    let rows = state_rows();
    let decode = |bytes: &[u8]| {
        // The first byte says which row, the second how its key ends; the rest is its value.
        let Some((which, rest)) = bytes.split_first() else { return Ok(()) };
        let mut changed: Changed = rows.iter().cloned().map(|(key, value)| (key, Some(value))).collect();
        let key = rows[usize::from(*which) % rows.len()].0.clone();
        let key = if which & 0x80 == 0 { key } else { [&key[..], &rest[..rest.len().min(1)]].concat() };
        changed.insert(key, Some(Bytes::copy_from_slice(rest)));
        let memory = MemoryRows::default();
        memory.write(&changed, true).map_err(|error| error.to_string())?;
        if let Ok(backend) = StateBackend::over(Arc::new(memory)) {
            let _ = Store::open(backend);
        }
        Ok(())
    };
    let corpus: Vec<Vec<u8>> =
        rows.iter().zip(0_u8..).map(|((_, value), which)| [&[which], &value[..]].concat()).collect();
    let mistake = |source: &mut Source, bytes: &[u8]| {
        let mut mistaken = source.mistakes(bytes);
        if source.chance(60) && bytes.len() > 1 {
            mistaken = [&bytes[..1], &super::message::mistakes(source, &bytes[1..])[..]].concat();
        }
        mistaken
    };
    let mut target = target("disk::snapshot_rows", corpus, &mistake, &decode);
    target.fixed_bytes = 256 << 10;
    target.run();
}

#[test]
fn views() {
    let valid = format::encode(&format::tests::view(4, 18_204)).into_bytes();
    let mistake = |source: &mut Source, bytes: &[u8]| {
        let mut lines: Vec<Vec<u8>> = bytes.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        let at = source.below(lines.len());
        lines[at] = source.mistakes(&lines[at]);
        if source.chance(30) {
            let line = source.pick(&lines).clone();
            lines.insert(at, line);
        }
        let mut text = lines.join(&b'\n');
        // The last line vouches for the others; mostly it is made right again.
        if source.chance(80)
            && let Some(end) = text.windows(7).rposition(|window| window == b"crc32c ")
        {
            let crc = crc32c::crc32c(&text[..end]);
            text.truncate(end);
            text.extend_from_slice(format!("crc32c {crc:08x}\n").as_bytes());
        }
        text
    };
    let decode = |bytes: &[u8]| match format::decode(bytes) {
        Ok(view) => {
            let again = format::decode(format::encode(&view).as_bytes());
            if again == Ok(view) {
                Ok(())
            } else {
                Err("a view that does not come back as it was".to_owned())
            }
        }
        Err(_) => Ok(()),
    };
    target("disk::views", vec![valid], &mistake, &decode).run();
}

/// The files beside the views: who holds a lock, and how much a node has held.
#[test]
fn marks() {
    use crate::register::{HeldMark, held, lock};
    let node = crate::view::NodeId::parse("127.0.0.1:2380").unwrap();
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("nodes")).unwrap();
    let held_now = held::Held { incarnation: crate::view::Incarnation(7), epoch: Epoch(3), commit: Index(9) };
    HeldMark::new(directory.path(), &node, None).note(held_now, crate::clock::now()).unwrap();
    let mark = std::fs::read(directory.path().join("nodes/127.0.0.1:2380.held")).unwrap();
    let holder = lock::Holder::this_process(&node, directory.path()).unwrap();
    let holder = serde_json::to_vec(&holder).unwrap();
    let decode = |bytes: &[u8]| {
        std::fs::write(directory.path().join("nodes/127.0.0.1:2380.held"), bytes)
            .map_err(|e| e.to_string())?;
        std::fs::write(directory.path().join("nodes/127.0.0.1:2380.lock"), bytes)
            .map_err(|e| e.to_string())?;
        let _ = held::read(directory.path(), &node);
        let _ = held::newest_epoch(&crate::disk::RealDisk, directory.path());
        let _ = lock::probe(directory.path(), &node);
        Ok(())
    };
    target("disk::marks", vec![mark, holder], &Source::mistakes, &decode).run();
}
