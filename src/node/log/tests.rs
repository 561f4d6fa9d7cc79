use bytes::BytesMut;

use super::*;
use crate::disk::RealDisk;
use crate::view::Epoch;

fn frames(log: &Log, epoch: u64, count: u64, payload: &[u8]) -> (Bytes, Position) {
    let mut last = log.last();
    let mut buffer = BytesMut::new();
    for _ in 0..count {
        let index = last.index.next();
        let payload = Bytes::copy_from_slice(payload);
        let record =
            Record { epoch: Epoch(epoch), index, commit: Index(0), origin: 1, sequence: index.0, payload };
        let chain = encode(&mut buffer, &record, last.chain);
        last = Position { index, epoch: Epoch(epoch), chain };
    }
    (buffer.freeze(), last)
}

fn append(log: &mut Log, epoch: u64, count: u64, payload: &[u8]) {
    let (bytes, last) = frames(log, epoch, count, payload);
    log.append(&bytes, last).unwrap();
}

fn open(directory: &Path, commit: u64) -> Result<(Log, Recovered), LogError> {
    Log::open(RealDisk, directory, Index(commit))
}

fn newest(directory: &Path) -> PathBuf {
    let mut names: Vec<PathBuf> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    names.sort();
    names.pop().unwrap()
}

fn entries(log: &Log) -> Vec<(u64, u64)> {
    let reader = log.reader();
    let mut found = Vec::new();
    let mut next = log.base().index.next();
    while let Some((mut bytes, last)) = reader.read(next, 1000).unwrap() {
        while let Some((record, _)) = decode(&mut bytes).unwrap() {
            found.push((record.epoch.0, record.index.0));
        }
        next = last.index.next();
    }
    found
}

#[test]
fn what_was_synced_is_there_after_a_restart_across_segments() {
    let directory = tempfile::tempdir().unwrap();
    let (mut log, _) = open(directory.path(), 0).unwrap();
    for _ in 0..6 {
        append(&mut log, 1, 2, &[7; 1 << 20]);
    }
    append(&mut log, 3, 5, b"small");
    log.sync().unwrap();
    let (last, bytes) = (log.last(), log.disk_bytes());
    drop(log);
    let (log, recovered) = open(directory.path(), 17).unwrap();
    assert_eq!(recovered.last, last);
    assert_eq!(recovered.runs, [(Epoch(1), Index(1)), (Epoch(3), Index(13))]);
    assert_eq!(recovered.torn_bytes, 0);
    assert_eq!(log.disk_bytes(), bytes);
    assert_eq!(entries(&log).len(), 17);
}

#[test]
fn a_cut_tail_stays_cut_and_what_follows_replaces_it() {
    let directory = tempfile::tempdir().unwrap();
    let (mut log, _) = open(directory.path(), 0).unwrap();
    append(&mut log, 1, 10, b"one");
    log.truncate_after(Index(6)).unwrap();
    append(&mut log, 2, 3, b"two");
    log.sync().unwrap();
    log.truncate_after(Index(4)).unwrap();
    append(&mut log, 3, 1, b"three");
    log.sync().unwrap();
    let expected = [(1, 1), (1, 2), (1, 3), (1, 4), (3, 5)];
    assert_eq!(entries(&log), expected);
    let last = log.last();
    drop(log);
    let (log, recovered) = open(directory.path(), 0).unwrap();
    assert_eq!(entries(&log), expected);
    assert_eq!(recovered.last, last);
}

#[test]
fn after_a_reset_the_log_continues_the_snapshot() {
    let directory = tempfile::tempdir().unwrap();
    let (mut log, _) = open(directory.path(), 0).unwrap();
    append(&mut log, 1, 10, b"old");
    let base = Position { index: Index(100), epoch: Epoch(4), chain: 77 };
    log.reset(base).unwrap();
    append(&mut log, 5, 2, b"new");
    log.sync().unwrap();
    drop(log);
    let (log, recovered) = open(directory.path(), 100).unwrap();
    assert_eq!(recovered.base, base);
    assert_eq!(entries(&log), [(5, 101), (5, 102)]);
    assert!(matches!(log.reader().read(Index(100), 10), Err(LogError::Gone { .. })));
}

#[test]
fn dropped_segments_are_gone_and_the_rest_reads_on() {
    let directory = tempfile::tempdir().unwrap();
    let (mut log, _) = open(directory.path(), 0).unwrap();
    for _ in 0..40 {
        append(&mut log, 1, 1, &[1; 1 << 20]);
    }
    log.sync().unwrap();
    log.drop_before(Index(30)).unwrap();
    let base = log.base().index;
    assert!(base.0 > 0 && base < Index(30), "{base}");
    let expected: Vec<_> = (base.0 + 1..=40).map(|index| (1, index)).collect();
    assert_eq!(entries(&log), expected);
    drop(log);
    let (log, _) = open(directory.path(), 40).unwrap();
    assert_eq!(entries(&log), expected);
}

#[test]
fn what_does_not_continue_the_log_is_refused_and_nothing_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let (mut log, _) = open(directory.path(), 0).unwrap();
    append(&mut log, 1, 3, b"mine");
    let (bytes, last) = frames(&log, 1, 1, b"next");
    append(&mut log, 1, 1, b"another");
    let error = log.append(&bytes, last).unwrap_err();
    assert!(matches!(error, LogError::Diverged { index: Index(4), .. }), "{error}");
    log.truncate_after(Index(2)).unwrap();
    append(&mut log, 2, 1, b"different");
    let error = log.append(&bytes, last).unwrap_err();
    assert!(error.to_string().contains("epoch") || error.to_string().contains("checksum"), "{error}");
    assert_eq!(log.last().index, Index(3));
}

fn damage(path: &Path, offset: u64, bytes: &[u8]) {
    use std::os::unix::fs::FileExt as _;
    std::fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}

/// Three records of one size; where each begins.
fn three(directory: &Path) -> [u64; 3] {
    let (mut log, _) = open(directory, 0).unwrap();
    append(&mut log, 1, 3, &[9; 100]);
    log.sync().unwrap();
    let size = (record::HEADER_BYTES + 100) as u64;
    [HEAD_BYTES, HEAD_BYTES + size, HEAD_BYTES + 2 * size]
}

#[test]
fn a_torn_tail_above_the_commit_mark_is_cut_and_the_log_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let starts = three(directory.path());
    damage(&newest(directory.path()), starts[2] + 60, &[0; 92]);
    let (mut log, recovered) = open(directory.path(), 2).unwrap();
    assert_eq!(recovered.last.index, Index(2));
    assert!(recovered.torn_bytes > 0);
    append(&mut log, 2, 1, b"after");
    log.sync().unwrap();
    drop(log);
    let (log, recovered) = open(directory.path(), 3).unwrap();
    assert_eq!(entries(&log), [(1, 1), (1, 2), (2, 3)]);
    assert_eq!(recovered.torn_bytes, 0);
}

#[test]
fn a_bad_record_that_is_there_in_full_is_corruption() {
    let directory = tempfile::tempdir().unwrap();
    let starts = three(directory.path());
    damage(&newest(directory.path()), starts[1] + 70, b"x");
    let before = std::fs::read(newest(directory.path())).unwrap();
    let error = open(directory.path(), 0).err().unwrap();
    assert!(matches!(error, LogError::Corrupt { index: Index(2), .. }), "{error}");
    assert!(error.to_string().contains("no power cut"), "{error}");
    assert_eq!(std::fs::read(newest(directory.path())).unwrap(), before, "a refusal changes nothing");
}

#[test]
fn a_bad_last_record_at_or_below_the_commit_mark_is_corruption() {
    let directory = tempfile::tempdir().unwrap();
    let starts = three(directory.path());
    damage(&newest(directory.path()), starts[2] + 70, b"x");
    let error = open(directory.path(), 3).err().unwrap();
    assert!(matches!(error, LogError::Corrupt { index: Index(3), .. }), "{error}");
}

#[test]
fn a_zeroed_tail_below_the_commit_mark_is_corruption() {
    let directory = tempfile::tempdir().unwrap();
    let starts = three(directory.path());
    damage(&newest(directory.path()), starts[1], &[0; 400]);
    let error = open(directory.path(), 2).err().unwrap();
    assert!(error.to_string().contains("committed"), "{error}");
    assert!(open(directory.path(), 1).is_ok(), "above the mark it is a tail that never reached the disk");
}

#[test]
fn another_format_and_a_damaged_head_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    three(directory.path());
    let path = newest(directory.path());
    damage(&path, 8, &9_u32.to_le_bytes());
    assert!(matches!(open(directory.path(), 0).err().unwrap(), LogError::Format { found: 9, .. }));
    damage(&path, 8, &segment::FORMAT.to_le_bytes());
    damage(&path, 25, b"x");
    assert!(matches!(open(directory.path(), 0).err().unwrap(), LogError::Corrupt { .. }));
}

#[test]
fn a_record_larger_than_the_window_is_read_whole() {
    let directory = tempfile::tempdir().unwrap();
    let (mut log, _) = open(directory.path(), 0).unwrap();
    append(&mut log, 1, 1, b"first");
    append(&mut log, 1, 1, &[5; 900_000]);
    let (bytes, last) = log.reader().read(Index(2), 10).unwrap().unwrap();
    assert_eq!((bytes.len(), last.index), (record::HEADER_BYTES + 900_000, Index(2)));
}
