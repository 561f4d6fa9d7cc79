//! What people and disks do to a register: it is copied, moved, put back to an older state, and has no room.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::file::FileRegister;
use super::format::tests::view;
use super::{Register as _, RegisterError, SwapError};
use crate::disk::Disk as _;
use crate::node::testing::disk::{Fault, Operation, SimDisk};
use crate::rules::{Rule, without};
use crate::view::{Checksum, Epoch, Incarnation, NodeId, View};

/// A chain of views: each names the one before it.
fn chain(length: u64, mark: u64) -> Vec<View> {
    let mut views: Vec<View> = Vec::new();
    for epoch in 1..=length {
        let previous = views.last().map_or(Checksum(0), View::checksum);
        views.push(View { previous, ..view(epoch, mark) });
    }
    views
}

/// The view after this one.
fn after(last: &View, mark: u64) -> View {
    View { previous: last.checksum(), ..view(last.epoch.0 + 1, mark) }
}

fn put<D: crate::disk::Disk>(register: &FileRegister<D>, views: &[View]) {
    for next in views {
        let known = register.read(None).unwrap().map(|view| view.id());
        register.swap(known, next).unwrap();
    }
    register.tidy().unwrap();
}

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(done.success());
}

/// A register with three views, and a process that knows the third.
fn three() -> (tempfile::TempDir, PathBuf, FileRegister, Vec<View>) {
    let parent = tempfile::tempdir().unwrap();
    let place = parent.path().join("register");
    let register = FileRegister::open(&place).unwrap();
    let views = chain(3, 1);
    put(&register, &views);
    assert!(!register.has_newer(Epoch(3)).unwrap());
    (parent, place, register, views)
}

/// Its directory is moved away and a copy put in its place: does a process that runs still call its view the newest?
fn answers_beside_a_copy() -> bool {
    let (parent, place, register, views) = three();
    let away = parent.path().join("away");
    fs::rename(&place, &away).unwrap();
    copy(&away, &place);
    let proved = register.has_newer(Epoch(3)).is_ok();
    let swapped = register.swap(Some(views[2].id()), &after(&views[2], 5)).is_ok();
    proved || swapped
}

#[test]
fn a_register_moved_away_and_copied_answers_nothing_and_unchecked_it_would() {
    assert!(!answers_beside_a_copy());
    assert!(without(Some(Rule::CheckDirectory), answers_beside_a_copy));
    // And once the one that was opened is back, it answers as before.
    let (parent, place, register, views) = three();
    let away = parent.path().join("away");
    fs::rename(&place, &away).unwrap();
    let error = register.read(Some(views[2].id())).unwrap_err();
    assert!(matches!(error, RegisterError::Replaced { .. }), "{error}");
    fs::rename(&away, &place).unwrap();
    assert!(!register.has_newer(Epoch(3)).unwrap());
    register.swap(Some(views[2].id()), &after(&views[2], 5)).unwrap();
}

/// The newest view is deleted: is the one before it taken for the newest?
fn misses_no_view() -> bool {
    let (_parent, place, register, _) = three();
    drop(register);
    fs::remove_file(place.join("view-00000000000000000003")).unwrap();
    let again = FileRegister::open(&place).unwrap();
    match again.read(None) {
        Ok(found) => found.is_some_and(|view| view.epoch == Epoch(2)),
        Err(error) => {
            assert!(matches!(error, RegisterError::Backwards { held: Epoch(2), known: Epoch(3), .. }));
            false
        }
    }
}

#[test]
fn a_view_that_was_taken_away_is_missed_and_without_the_lineage_it_is_not() {
    assert!(!misses_no_view());
    assert!(without(Some(Rule::CheckLineage), misses_no_view));
}

/// Puts the files of a backup back into the same directory.
fn put_back(backup: &Path, place: &Path) {
    for entry in fs::read_dir(place).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::remove_file(path).unwrap();
        }
    }
    for entry in fs::read_dir(backup).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, place.join(path.file_name().unwrap())).unwrap();
        }
    }
}

/// A register of five views is put back to three, and a process that knows three goes on from there. Does one that knows
/// the fifth obey, or put a view on top?
fn obeys_a_fork() -> bool {
    let (parent, place, register, views) = three();
    let backup = parent.path().join("backup");
    copy(&place, &backup);
    let (four, five) = (after(&views[2], 1), after(&after(&views[2], 1), 1));
    put(&register, &[four, five.clone()]);
    drop(register);
    put_back(&backup, &place);
    let late = FileRegister::open(&place).unwrap();
    let four = after(&views[2], 2);
    let five_again = after(&four, 2);
    let six = after(&five_again, 2);
    put(&late, &[four, five_again, six.clone()]);
    let knows = FileRegister::open(&place).unwrap();
    let read = knows.read(Some(five.id())).is_ok();
    let swapped = match knows.swap(Some(five.id()), &after(&five, 3)) {
        Ok(()) | Err(SwapError::Conflict(_)) => true,
        Err(SwapError::Failed(error)) => {
            assert!(matches!(&error, RegisterError::Forked { newest, .. } if **newest == six), "{error}");
            assert!(error.to_string().contains("replcluster recover"), "{error}");
            false
        }
        Err(SwapError::Unknown(error)) => panic!("{error}"),
    };
    assert_eq!(late.read(Some(six.id())).unwrap(), Some(six), "the others go on");
    read || swapped
}

#[test]
fn views_made_on_an_older_copy_are_a_fork_and_unchecked_they_are_taken() {
    assert!(!obeys_a_fork());
    assert!(without(Some(Rule::CheckAncestry), obeys_a_fork));
}

#[test]
fn a_leader_that_slept_while_its_register_was_put_back_proves_and_swaps_nothing() {
    // All files are put back, then only the later views and the lineage, as rsync would.
    for all in [true, false] {
        let (parent, place, sleeper, views) = three();
        let backup = parent.path().join("backup");
        copy(&place, &backup);
        let four = after(&views[2], 1);
        put(&FileRegister::open(&place).unwrap(), std::slice::from_ref(&four));
        if all {
            put_back(&backup, &place);
        } else {
            fs::remove_file(place.join("view-00000000000000000004")).unwrap();
            let lineage = "lineage-00000000000000000001";
            fs::remove_file(place.join(lineage)).unwrap();
            fs::copy(backup.join(lineage), place.join(lineage)).unwrap();
        }
        let proof = sleeper.has_newer(Epoch(3));
        assert!(matches!(proof, Err(RegisterError::Replaced { .. })), "all: {all}: {proof:?}");
        let swap = sleeper.swap(Some(views[2].id()), &after(&views[2], 7));
        assert!(
            matches!(swap, Err(SwapError::Failed(RegisterError::Replaced { .. }))),
            "all: {all}: {swap:?}"
        );
        // One that has seen the fourth waits too, also after a restart.
        let again = FileRegister::open(&place).unwrap().read(Some(four.id()));
        assert!(matches!(again, Err(RegisterError::Backwards { .. })), "all: {all}: {again:?}");
    }
}

#[test]
fn what_an_operator_declares_is_taken_by_all_whatever_they_know() {
    let (_parent, place, register, views) = three();
    let made = View { recovered: Epoch(1003), ..view(1003, 9) };
    register.replace_all(&made).unwrap();
    let found = FileRegister::open(&place).unwrap();
    let lost = after(&views[2], 1);
    for known in [views[0].id(), views[2].id(), lost.id(), after(&lost, 4).id()] {
        let read = found.read(Some(known)).unwrap().unwrap();
        assert_eq!(read.recovered, Epoch(1003));
        assert_eq!(read.previous, views[2].checksum(), "the chain goes on");
    }
}

#[test]
fn a_node_that_slept_through_hundreds_of_views_finds_its_own_in_the_lineage() {
    let parent = tempfile::tempdir().unwrap();
    let register = FileRegister::open(parent.path()).unwrap();
    let views = chain(300, 1);
    for part in views.chunks(20) {
        put(&register, part);
    }
    let again = FileRegister::open(parent.path()).unwrap();
    assert_eq!(again.view_of(Epoch(7)), None, "its file is gone");
    again.read(Some(views[6].id())).unwrap();
    let other = chain(7, 2).pop().unwrap();
    assert!(matches!(again.read(Some(other.id())), Err(RegisterError::Forked { known: Epoch(7), .. })));
}

#[test]
fn a_torn_line_in_the_lineage_harms_no_other() {
    let (_parent, place, register, views) = three();
    let path = place.join("lineage-00000000000000000001");
    let whole = fs::read(&path).unwrap();
    for length in [whole.len() - 1, whole.len() - 20, 50, 1, 0] {
        fs::write(&path, &whole[..length]).unwrap();
        let again = FileRegister::open(&place).unwrap();
        again.tidy().unwrap();
        let records = again.records().unwrap();
        assert!(views.iter().all(|view| records.get(&view.epoch) == Some(&view.checksum())), "{length}");
    }
    drop(register);
}

// --- room ---

/// A register on a disk without any room left, neither bytes nor files: how many of 100 views come about?
fn views_on_a_full_disk() -> u64 {
    let disk = SimDisk::new();
    disk.make_directory(Path::new("/register/nodes")).unwrap();
    let register = FileRegister::on(disk.clone(), Path::new("/register")).unwrap();
    let mut last = chain(1, 1).pop().unwrap();
    put(&register, std::slice::from_ref(&last));
    disk.limit(Some(disk.used()));
    disk.limit_files(Some(disk.paths().len() as u64));
    for made in 0..100 {
        let next = after(&last, made);
        if register.prepare(&next).is_err() {
            return made;
        }
        register.swap(Some(last.id()), &next).expect("what was prepared can be swapped in");
        last = next;
        let _ = register.tidy();
    }
    100
}

#[test]
fn a_full_disk_stops_no_view_and_without_spares_it_would() {
    assert_eq!(views_on_a_full_disk(), 100);
    assert_eq!(without(Some(Rule::KeepSpares), views_on_a_full_disk), 0);
}

#[test]
fn whatever_runs_out_does_so_before_anything_is_promised_and_changes_nothing() {
    for fault in [Fault::NoSpace(0), Fault::NoSpace(100), Fault::Quota, Fault::NoDescriptors, Fault::Io] {
        for operation in [Operation::Create, Operation::Write, Operation::Sync] {
            let disk = SimDisk::new();
            disk.make_directory(Path::new("/register/nodes")).unwrap();
            let register = FileRegister::on(disk.clone(), Path::new("/register")).unwrap();
            let views = chain(2, 1);
            put(&register, &views[..1]);
            disk.fail(operation, 0, fault);
            disk.fail(operation, 0, fault);
            let prepared = register.prepare(&views[1]);
            disk.heal();
            assert_eq!(register.read(None).unwrap().as_ref(), views.first(), "{operation:?} {fault:?}");
            assert!(!register.has_newer(Epoch(1)).unwrap());
            if prepared.is_err() {
                register.prepare(&views[1]).expect("there is room again");
            }
            register.swap(Some(views[0].id()), &views[1]).unwrap();
            put(&register, &[]);
        }
    }
}

#[test]
fn no_room_for_a_name_is_a_sure_no_and_the_same_swap_can_be_sent_again() {
    let disk = SimDisk::new();
    disk.make_directory(Path::new("/register/nodes")).unwrap();
    let register = FileRegister::on(disk.clone(), Path::new("/register")).unwrap();
    let views = chain(2, 1);
    put(&register, &views[..1]);
    register.prepare(&views[1]).unwrap();
    // Also with the spare that is given up for it.
    disk.fail(Operation::Rename, 0, Fault::NoSpace(0));
    disk.fail(Operation::Rename, 0, Fault::NoSpace(0));
    let swapped = register.swap(Some(views[0].id()), &views[1]);
    assert!(matches!(swapped, Err(SwapError::Failed(RegisterError::Io { .. }))), "{swapped:?}");
    disk.heal();
    assert_eq!(register.read(None).unwrap().as_ref(), views.first());
    register.swap(Some(views[0].id()), &views[1]).unwrap();
    // One that ends in any other way may have happened.
    let three = after(&views[1], 1);
    register.prepare(&three).unwrap();
    disk.fail(Operation::SyncDirectory, 0, Fault::Io);
    let swapped = register.swap(Some(views[1].id()), &three);
    assert!(matches!(swapped, Err(SwapError::Unknown(_))), "{swapped:?}");
}

/// A view with so many members: is it prepared although no node's promise could keep it?
fn takes_what_no_promise_keeps() -> bool {
    let parent = tempfile::tempdir().unwrap();
    let register = FileRegister::open(parent.path()).unwrap();
    let nodes = (0..600).map(|number| NodeId::parse(&format!("node-{number:012}.example.org:2379")).unwrap());
    let members = nodes.map(|node| (node, Incarnation(7))).collect();
    let large = View { members, ..view(1, 1) };
    let directory = crate::node::directory::DataDirectory::open(
        &parent.path().join("data"),
        &NodeId::parse("127.0.0.1:2380").unwrap(),
    )
    .unwrap();
    let prepared = register.prepare(&large);
    if let Err(error) = &prepared {
        assert!(matches!(error, RegisterError::TooBig { .. }), "{error}");
    }
    let kept = directory.save_promise(Epoch(1), Some(&large), crate::view::Index(0)).is_ok();
    prepared.is_ok() && !kept
}

#[test]
fn a_view_that_is_too_large_is_refused_before_anything_is_promised() {
    assert!(!takes_what_no_promise_keeps());
    assert!(without(Some(Rule::BoundViews), takes_what_no_promise_keeps));
}

/// A file system of its own, mounted for one test; `None` where that is not permitted.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(arguments: &[&str]) -> Option<Mounted> {
        let place = tempfile::tempdir().unwrap();
        let done = Command::new("mount").args(arguments).arg(place.path()).output();
        match done {
            Ok(output) if output.status.success() => Some(Mounted(place)),
            other => {
                println!("skipped, nothing can be mounted: {other:?}");
                None
            }
        }
    }

    /// Fills it to the last byte, or with as many files as it takes.
    fn fill(&self, with_files: bool) {
        let fill = |name: String, bytes: &[u8]| {
            use std::io::Write as _;
            let file = fs::File::options().create(true).append(true).open(self.0.path().join(name));
            file.and_then(|mut file| file.write_all(bytes)).is_ok()
        };
        for number in 0.. {
            let full = if with_files {
                !fill(format!("file-{number}"), b"")
            } else {
                !fill("large".to_owned(), &[7; 4096]) && !fill("large".to_owned(), b"7")
            };
            if full {
                break;
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn views_come_about_on(mounted: &Mounted, with_files: bool) {
    let register = FileRegister::open(&mounted.0.path().join("register")).unwrap();
    let mut last = chain(1, 1).pop().unwrap();
    put(&register, std::slice::from_ref(&last));
    let mut tidied = register.tidy();
    for made in 0..45 {
        // Whatever room a view has left is taken by something else.
        mounted.fill(with_files);
        let next = after(&last, made);
        let failed = |error: &dyn std::fmt::Display| {
            let names = fs::read_dir(mounted.0.path().join("register")).unwrap();
            let names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
            panic!("view {made}: {error}; tidied: {tidied:?}; {names:?}")
        };
        register.prepare(&next).unwrap_or_else(|error| failed(&error));
        register.swap(Some(last.id()), &next).unwrap_or_else(|error| failed(&error));
        last = next;
        tidied = register.tidy();
    }
    assert_eq!(register.read(Some(last.id())).unwrap(), Some(last));
}

#[test]
fn views_come_about_on_a_tmpfs_without_a_free_byte() {
    let Some(mounted) = Mounted::new(&["-t", "tmpfs", "-o", "size=2m", "tmpfs"]) else { return };
    views_come_about_on(&mounted, false);
}

#[test]
fn views_come_about_on_a_tmpfs_without_a_free_inode() {
    let options = "size=2m,nr_inodes=64";
    let Some(mounted) = Mounted::new(&["-t", "tmpfs", "-o", options, "tmpfs"]) else { return };
    views_come_about_on(&mounted, true);
}

#[test]
fn views_come_about_on_an_ext4_without_a_free_byte() {
    let parent = tempfile::tempdir().unwrap();
    let image = parent.path().join("image");
    fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
    let made = Command::new("mkfs.ext4").arg("-q").arg("-F").arg(&image).output();
    if !made.as_ref().is_ok_and(|output| output.status.success()) {
        return println!("skipped, there is no mkfs.ext4: {made:?}");
    }
    let Some(mounted) = Mounted::new(&["-o", "loop", image.to_str().unwrap()]) else { return };
    views_come_about_on(&mounted, false);
}
