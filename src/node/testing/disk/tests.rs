use std::collections::BTreeSet;

use super::*;

fn cut(disk: &SimDisk, seed: u64) -> SimDisk {
    let other = disk.fork();
    other.power_cut(&mut Random::new(seed));
    other
}

#[test]
fn a_power_cut_keeps_what_was_synced_and_may_lose_each_sector_that_was_not() {
    let disk = SimDisk::new();
    let path = Path::new("f");
    let file = disk.open(path, true).unwrap();
    disk.sync_directory(Path::new("")).unwrap();
    file.write_at(&[1; 4 * SECTOR], 0).unwrap();
    file.sync().unwrap();
    file.write_at(&[2; 2 * SECTOR], 0).unwrap();
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        let bytes = cut(&disk, seed).bytes(path);
        assert!(bytes[2 * SECTOR..].iter().all(|byte| *byte == 1), "seed {seed}");
        seen.insert((bytes[0], bytes[SECTOR]));
    }
    assert_eq!(seen.len(), 4, "each of the two sectors old or new: {seen:?}");
    disk.crash();
    assert_eq!(disk.bytes(path)[0], 2, "a dead process loses nothing");
    assert!(file.read_at(&mut [0], 0).is_err(), "but its handles are worth nothing");
}

#[test]
fn names_survive_a_power_cut_for_certain_only_after_their_directory_was_synced() {
    let disk = SimDisk::new();
    disk.make_directory(Path::new("d")).unwrap();
    disk.open(Path::new("d/a"), true).unwrap();
    disk.sync_directory(Path::new("d")).unwrap();
    let lost = (0..50).filter(|seed| cut(&disk, *seed).paths().is_empty()).count();
    assert!((1..50).contains(&lost), "the directory itself was not synced: {lost}");
    disk.sync_directory(Path::new("")).unwrap();
    disk.rename(Path::new("d/a"), Path::new("d/b")).unwrap();
    disk.open(Path::new("d/c"), true).unwrap();
    let names: BTreeSet<_> = (0..80).map(|seed| cut(&disk, seed).list(Path::new("d")).unwrap()).collect();
    let expected: BTreeSet<Vec<String>> = [vec!["a"], vec!["b"], vec!["a", "c"], vec!["b", "c"]]
        .map(|names| names.into_iter().map(str::to_owned).collect())
        .into();
    assert_eq!(names, expected);
}

#[test]
fn a_failed_sync_can_lose_for_good_what_reads_go_on_showing() {
    let disk = SimDisk::new();
    let file = disk.open(Path::new("f"), true).unwrap();
    disk.sync_directory(Path::new("")).unwrap();
    file.write_at(&[7; 100], 0).unwrap();
    disk.fail(Operation::Sync, 0, Fault::SyncForgets);
    file.sync().unwrap_err();
    file.sync().unwrap();
    assert_eq!(disk.bytes(Path::new("f"))[0], 7);
    assert!(cut(&disk, 1).bytes(Path::new("f")).iter().all(|byte| *byte == 0));
}

#[test]
fn when_the_power_goes_the_write_under_way_may_or_may_not_be_there() {
    let disk = SimDisk::new();
    let file = disk.open(Path::new("f"), true).unwrap();
    disk.sync_directory(Path::new("")).unwrap();
    disk.power_off_after(1);
    file.write_at(&[7; 10], 0).unwrap_err();
    assert!(disk.is_off() && file.sync().is_err() && file.read_at(&mut [0], 0).is_err());
    let found: BTreeSet<_> =
        (0..50).map(|seed| cut(&disk, seed).bytes(Path::new("f")).first().copied()).collect();
    assert!(found.contains(&Some(7)) && found.contains(&None), "{found:?}");
}

#[test]
fn a_quota_lets_in_what_fits_and_nothing_more() {
    let disk = SimDisk::new();
    disk.limit(Some(1000));
    let file = disk.open(Path::new("f"), true).unwrap();
    file.write_at(&[1; 600], 0).unwrap();
    let error = file.write_at(&[2; 600], 500).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_eq!((disk.bytes(Path::new("f")).len(), disk.free_bytes(Path::new("")).unwrap()), (1000, 0));
    file.write_at(&[3; 100], 0).unwrap();
}
