//! Claims about the file register.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::*;
use crate::register::format::tests::view;
use crate::view::ClusterId;

fn register() -> (tempfile::TempDir, FileRegister) {
    let directory = tempfile::tempdir().unwrap();
    let register = FileRegister::open(directory.path()).unwrap();
    (directory, register)
}

/// The view that stands there after [`reach`].
fn reached(epoch: u64) -> Option<ViewId> {
    (epoch > 0).then(|| view(epoch, epoch).id())
}

fn reach(register: &FileRegister, epoch: u64) {
    let newest = register.read(None).unwrap();
    let (from, mut known) = newest.map_or((0, None), |view| (view.epoch.0, Some(view.id())));
    for next in from + 1..=epoch {
        register.swap(known, &view(next, next)).unwrap();
        known = reached(next);
        if next % 8 == 0 {
            register.tidy().unwrap();
        }
    }
    register.tidy().unwrap();
}

/// A view that was prepared, on its way to its name.
fn unfinished(register: &FileRegister, view: &View) -> Unfinished {
    register.prepare(view).unwrap();
    register.room().take(view.id()).unwrap()
}

#[test]
fn an_empty_register_has_no_view_and_nothing_newer_than_none() {
    let (_directory, register) = register();
    assert_eq!(register.read(None).unwrap(), None);
    assert!(!register.has_newer(Epoch(0)).unwrap());
}

#[test]
fn what_was_swapped_in_is_read_by_everyone() {
    let (directory, register) = register();
    let other = FileRegister::open(directory.path()).unwrap();
    register.swap(None, &view(1, 7)).unwrap();
    assert_eq!(other.read(None).unwrap(), Some(view(1, 7)));
    assert!(other.has_newer(Epoch(0)).unwrap());
    assert!(!other.has_newer(Epoch(1)).unwrap());
    other.swap(Some(view(1, 7).id()), &view(2, 8)).unwrap();
    assert!(register.has_newer(Epoch(1)).unwrap());
    assert_eq!(register.read(None).unwrap(), Some(view(2, 8)));
}

#[test]
fn an_onlooker_finds_the_views_it_missed_as_far_as_they_are_kept() {
    let (directory, register) = register();
    let missed = |after, before| -> Vec<u64> {
        let views = views_between(directory.path(), Epoch(after), Epoch(before));
        views.iter().map(|view| view.epoch.0).collect()
    };
    reach(&register, 5);
    assert_eq!(missed(1, 5), [2, 3, 4]);
    assert_eq!(missed(4, 5), [0; 0]);
    assert_eq!(missed(0, 1), [0; 0]);
    reach(&register, 100);
    let kept = missed(0, 100);
    assert!(kept.len() >= 30 && kept.last() == Some(&99), "{kept:?}");
    assert!(kept.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{kept:?}");
}

#[test]
fn of_many_swappers_exactly_one_wins_each_epoch() {
    const SWAPPERS: u64 = 8;
    const EPOCHS: u64 = 60;
    let directory = tempfile::tempdir().unwrap();
    let winners: Vec<BTreeMap<Epoch, u64>> = std::thread::scope(|scope| {
        let swappers: Vec<_> = (0..SWAPPERS)
            .map(|swapper| {
                let path = directory.path();
                scope.spawn(move || {
                    let register = FileRegister::open(path).unwrap();
                    let mut won = BTreeMap::new();
                    let (mut epoch, mut known) = (Epoch(0), None);
                    while epoch.0 < EPOCHS {
                        let next = view(epoch.0 + 1, swapper);
                        match register.swap(known, &next) {
                            Ok(()) => {
                                won.insert(epoch.next(), swapper);
                                epoch = epoch.next();
                                known = Some(next.id());
                                register.tidy().unwrap();
                            }
                            Err(SwapError::Conflict(held)) => {
                                assert!(held.epoch > epoch, "a conflict shows something newer");
                                epoch = held.epoch;
                                known = Some(held.id());
                            }
                            Err(error) => panic!("{error}"),
                        }
                    }
                    won
                })
            })
            .collect();
        swappers.into_iter().map(|swapper| swapper.join().unwrap()).collect()
    });
    let mut all = BTreeMap::new();
    for (epoch, swapper) in winners.into_iter().flatten() {
        assert_eq!(all.insert(epoch, swapper), None, "epoch {epoch} was won twice");
    }
    let register = FileRegister::open(directory.path()).unwrap();
    let newest = register.read(None).unwrap().unwrap();
    assert_eq!(all.get(&newest.epoch), Some(&newest.floor.0), "the winner's view is the one that is there");
    // Each loser kept its file for a view that it never made; the next that tidies up removes them.
    register.tidy().unwrap();
    assert!(register.entries().unwrap().unfinished.is_empty());
}

#[test]
fn a_swap_against_an_old_epoch_shows_the_newest_view() {
    let (_directory, register) = register();
    reach(&register, 3);
    let Err(SwapError::Conflict(held)) = register.swap(reached(1), &view(2, 99)) else {
        panic!("epoch 2 was taken")
    };
    assert_eq!(held, view(3, 3));
}

#[test]
fn a_damaged_newest_view_is_an_error_that_names_it_never_an_older_view() {
    let good = format::encode(&view(3, 3));
    let damages: [(&str, Vec<u8>); 4] = [
        ("empty", Vec::new()),
        ("cut short", good.as_bytes()[..good.len() / 2].to_vec()),
        ("garbage", vec![0xa5; 300]),
        ("another epoch's", format::encode(&view(2, 2)).into_bytes()),
    ];
    for (what, bytes) in damages {
        let (_directory, register) = register();
        reach(&register, 2);
        fs::write(register.view_path(Epoch(3)), bytes).unwrap();
        let error = register.read(None).unwrap_err();
        assert!(matches!(error, RegisterError::Damaged { .. }), "{what}: {error}");
        assert!(error.to_string().contains("view-00000000000000000003"), "{what}: {error}");
        assert!(register.has_newer(Epoch(2)).unwrap(), "{what}: it is newer all the same");
        assert!(matches!(register.swap(reached(2), &view(3, 9)), Err(SwapError::Failed(_))), "{what}");
    }
}

#[test]
fn a_register_that_went_back_or_vanished_is_refused() {
    let (directory, register) = register();
    reach(&register, 3);
    fs::remove_file(register.view_path(Epoch(3))).unwrap();
    assert!(matches!(
        register.read(None),
        Err(RegisterError::Backwards { held: Epoch(2), known: Epoch(3), .. })
    ));
    assert!(matches!(register.has_newer(Epoch(3)), Err(RegisterError::Backwards { .. })));
    // A process that never saw epoch 3 itself, but whose caller did (R11).
    let fresh = FileRegister::open(directory.path()).unwrap();
    assert!(matches!(fresh.has_newer(Epoch(3)), Err(RegisterError::Backwards { .. })));
    assert!(matches!(
        fresh.swap(reached(3), &view(4, 4)),
        Err(SwapError::Failed(RegisterError::Backwards { .. }))
    ));
    fs::remove_dir_all(directory.path()).unwrap();
    assert!(register.has_newer(Epoch(3)).is_err());
    assert!(register.read(None).is_err());
}

#[test]
fn another_cluster_is_refused() {
    let (_directory, register) = register();
    reach(&register, 1);
    let mut foreign = view(2, 2);
    foreign.cluster = ClusterId(0xdead);
    assert!(matches!(
        register.swap(reached(1), &foreign),
        Err(SwapError::Failed(RegisterError::OtherCluster { .. }))
    ));
}

#[test]
fn a_crash_after_any_step_of_a_swap_leaves_a_register_that_goes_on() {
    // Died before the link: half a file, then a whole one.
    let (directory, register) = register();
    reach(&register, 2);
    let whole = format::encode(&view(3, 50));
    for (name, length) in [("a", whole.len() / 2), ("b", whole.len())] {
        let path = directory.path().join(format!("tmp-{:020}-1-{name}", 3));
        fs::write(path, &whole[..length]).unwrap();
    }
    assert_eq!(register.read(None).unwrap(), Some(view(2, 2)));
    assert!(!register.has_newer(Epoch(2)).unwrap());
    // Died after the link: it happened.
    let path = directory.path().join(format!("tmp-{:020}-1-b", 3));
    fs::hard_link(&path, register.view_path(Epoch(3))).unwrap();
    assert!(register.has_newer(Epoch(2)).unwrap());
    assert_eq!(register.read(None).unwrap(), Some(view(3, 50)));
    // What was left lying about goes with its epoch.
    let newest = register.read(None).unwrap().unwrap();
    register.swap(Some(newest.id()), &view(4, 4)).unwrap();
    register.tidy().unwrap();
    assert!(register.entries().unwrap().unfinished.is_empty());
}

#[test]
fn only_the_newest_views_are_kept() {
    let (_directory, register) = register();
    reach(&register, KEPT + 10);
    let views = register.entries().unwrap().views;
    assert_eq!(views.first(), Some(&Epoch(11)));
    assert_eq!(views.len() as u64, KEPT);
}

#[test]
fn a_reader_that_slept_through_the_pruning_is_not_told_that_nothing_is_newer() {
    let (directory, sleeper) = register();
    reach(&sleeper, 5);
    assert!(!sleeper.has_newer(Epoch(5)).unwrap());
    reach(&FileRegister::open(directory.path()).unwrap(), 5 + 2 * KEPT);
    assert!(!sleeper.exists(Epoch(6)).unwrap(), "the test needs epoch 6 to be gone");
    assert!(sleeper.has_newer(Epoch(5)).unwrap());
}

#[test]
fn a_swapper_that_slept_through_the_pruning_neither_wins_nor_hides_newer_views() {
    let (directory, register) = register();
    reach(&register, 6);
    let leader_of_6 = FileRegister::open(directory.path()).unwrap();
    let leader_of_5 = FileRegister::open(directory.path()).unwrap();
    assert!(!leader_of_6.has_newer(Epoch(6)).unwrap());
    let stale = view(6, 999);
    let newest = 6 + 2 * KEPT;
    reach(&register, newest);
    // Its file was pruned with its epoch, so what it would link is written now, as if it had been overlooked.
    let named = unfinished(&leader_of_5, &stale);
    assert!(register.link(&named, Epoch(6)).unwrap(), "the test needs the name to be free");
    assert!(
        leader_of_6.has_newer(Epoch(6)).unwrap(),
        "an old epoch's name with another file in it is no proof"
    );
    fs::remove_file(register.view_path(Epoch(6))).unwrap();
    let Err(SwapError::Conflict(held)) =
        leader_of_5.publish(unfinished(&leader_of_5, &stale), reached(5), &stale)
    else {
        panic!("epoch 6 came and went long ago")
    };
    assert_eq!(held.epoch.0, newest);
    assert_eq!(register.read(None).unwrap().unwrap().epoch.0, newest);
    assert!(!register.exists(Epoch(6)).unwrap(), "what it linked is pruned again");
    // And the usual case: its unfinished file is gone.
    let late = unfinished(&leader_of_5, &stale);
    fs::remove_file(&late.path).unwrap();
    assert!(matches!(leader_of_5.publish(late, reached(5), &stale), Err(SwapError::Conflict(_))));
}

#[test]
fn a_swapper_overtaken_after_its_link_keeps_its_view_in_the_chain() {
    let (directory, register) = register();
    reach(&register, 2);
    let slow = FileRegister::open(directory.path()).unwrap();
    let named = unfinished(&slow, &view(3, 33));
    assert!(slow.link(&named, Epoch(3)).unwrap());
    reach(&register, 4);
    // It must not take its view back: a leader of epoch 2 that wakes up looks for it.
    assert!(
        matches!(slow.settle(named.file, reached(2), &view(3, 33)), Err(SwapError::Conflict(held)) if held.epoch.0 == 4)
    );
    let sleeper = FileRegister::open(directory.path()).unwrap();
    assert!(sleeper.exists(Epoch(3)).unwrap());
}

#[test]
fn readers_beside_swappers_never_go_back() {
    let directory = tempfile::tempdir().unwrap();
    let register = Arc::new(FileRegister::open(directory.path()).unwrap());
    reach(&register, 1);
    std::thread::scope(|scope| {
        scope.spawn(|| reach(&FileRegister::open(directory.path()).unwrap(), 120));
        for _ in 0..2 {
            let register = register.clone();
            scope.spawn(move || {
                let mut last = Epoch(0);
                while last < Epoch(120) {
                    let read = register.read(None).unwrap().unwrap().epoch;
                    assert!(read >= last);
                    // Whatever was read before is never newer than the newest.
                    let _ = register.has_newer(read).unwrap();
                    assert!(read == last || register.has_newer(last).unwrap());
                    last = read;
                }
            });
        }
    });
    assert_eq!(register.read(None).unwrap().unwrap().epoch, Epoch(120));
}

#[test]
fn the_proof_and_the_swap_are_quick() {
    let (_directory, register) = register();
    reach(&register, 40);
    let begun = Instant::now();
    for _ in 0..10_000 {
        assert!(!register.has_newer(Epoch(40)).unwrap());
    }
    println!("has_newer: {:?} each", begun.elapsed() / 10_000);
    let begun = Instant::now();
    reach(&register, 140);
    println!("swap, with the read before it: {:?} each", begun.elapsed() / 100);
    assert_eq!(register.read(None).unwrap(), Some(view(140, 140)));
}

/// Do two swappers that both saw epoch 2 both win epoch 3?
fn two_win_one_epoch() -> bool {
    let (directory, register) = register();
    reach(&register, 2);
    let other = FileRegister::open(directory.path()).unwrap();
    let views = [(&register, view(3, 33)), (&other, view(3, 44))];
    let unfinished = views.map(|(swapper, view)| (swapper, unfinished(swapper, &view), view));
    unfinished.map(|(swapper, file, view)| swapper.publish(file, reached(2), &view).is_ok()) == [true, true]
}

#[test]
fn of_two_swappers_one_wins_and_without_a_link_made_once_both_would() {
    assert!(!two_win_one_epoch());
    assert!(crate::rules::without(Some(crate::rules::Rule::LinkOnce), two_win_one_epoch));
}
