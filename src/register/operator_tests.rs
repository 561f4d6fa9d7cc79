use super::super::format::tests::view;
use super::super::{Register as _, SwapError, held};
use super::*;

fn nodes() -> BTreeMap<NodeId, PathBuf> {
    ["127.0.0.1:2380", "127.0.0.1:2381"]
        .map(|text| (NodeId::parse(text).unwrap(), PathBuf::from("/data")))
        .into()
}

fn filled(directory: &Path, views: u64) -> FileRegister {
    let register = FileRegister::open(directory).unwrap();
    for epoch in 1..=views {
        register.swap((epoch > 1).then(|| view(epoch - 1, 1).id()), &view(epoch, 1)).unwrap();
    }
    register
}

fn recovered(epoch: u64) -> View {
    View { recovered: Epoch(epoch), ..view(epoch, 9) }
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn what_an_operator_declares_is_the_newest_and_everything_older_is_kept() {
    let parent = tempfile::tempdir().unwrap();
    let sleeper = filled(parent.path(), 3);
    assert!(!sleeper.has_newer(Epoch(3)).unwrap());
    let hold = Hold::take(parent.path(), &nodes()).unwrap();
    let aside = hold.declare(&recovered(1003)).unwrap().unwrap();
    assert_eq!(names(&aside).len(), 3);
    assert!(matches!(look(parent.path()).found, Found::Holds(view) if view == recovered(1003)));
    // Whoever slept through it finds out, although no view has the next number.
    assert!(sleeper.has_newer(Epoch(3)).unwrap());
    let late = sleeper.swap(Some(view(3, 1).id()), &view(4, 1));
    assert!(matches!(late, Err(SwapError::Conflict(view)) if view == recovered(1003)));
    // And the cluster goes on from there.
    drop(hold);
    FileRegister::open(parent.path()).unwrap().swap(Some(recovered(1003).id()), &view(1004, 1)).unwrap();
}

#[test]
fn nothing_is_declared_below_what_stands_there_even_if_that_is_damaged() {
    let parent = tempfile::tempdir().unwrap();
    filled(parent.path(), 3);
    let newest = parent.path().join("view-00000000000000000003");
    fs::write(&newest, "garbage").unwrap();
    let seen = look(parent.path());
    assert_eq!(seen.highest, Epoch(3));
    let Found::Damaged { why, before } = seen.found else { panic!("{seen:?}") };
    assert!(why.contains("view-00000000000000000003"), "{why}");
    assert_eq!(before.unwrap(), view(2, 1));
    let hold = Hold::take(parent.path(), &nodes()).unwrap();
    assert!(matches!(hold.declare(&recovered(3)), Err(OperatorError::Overtaken(Epoch(3)))));
    let aside = hold.declare(&recovered(4)).unwrap().unwrap();
    assert_eq!(fs::read(aside.join("view-00000000000000000003")).unwrap(), b"garbage");
}

#[test]
fn while_a_node_runs_nothing_can_be_declared_and_no_node_starts_meanwhile() {
    let parent = tempfile::tempdir().unwrap();
    filled(parent.path(), 1);
    let unlisted = NodeId::parse("127.0.0.1:2399").unwrap();
    let holder = Holder::this_process(&unlisted, Path::new("/x")).unwrap();
    let running = NodeLock::take(parent.path(), &unlisted, &holder).unwrap();
    let error = Hold::take(parent.path(), &nodes()).unwrap_err();
    assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
    drop(running);
    let _hold = Hold::take(parent.path(), &nodes()).unwrap();
    assert!(matches!(NodeLock::take(parent.path(), &unlisted, &holder), Err(LockError::Held { .. })));
}

#[test]
fn a_register_that_is_gone_is_made_anew_and_what_is_none_is_set_aside() {
    let parent = tempfile::tempdir().unwrap();
    let place = parent.path().join("register");
    assert!(matches!(look(&place), Look { found: Found::Missing, highest: Epoch(0) }));
    assert!(names(parent.path()).is_empty(), "a look makes nothing");
    Hold::take(&place, &nodes()).unwrap().declare(&recovered(1000)).unwrap();
    assert!(matches!(look(&place).found, Found::Holds(_)));
    fs::remove_dir_all(&place).unwrap();
    fs::write(&place, "a file").unwrap();
    assert!(matches!(look(&place).found, Found::Unreadable(_)));
    Hold::take(&place, &nodes()).unwrap().declare(&recovered(1000)).unwrap();
    assert!(matches!(look(&place).found, Found::Holds(_)));
    assert_eq!(fs::read(parent.path().join("register.aside-1")).unwrap(), b"a file");
}

#[test]
fn a_recovery_killed_before_it_tidied_up_has_happened() {
    let parent = tempfile::tempdir().unwrap();
    filled(parent.path(), 3);
    let register = FileRegister::on(RealDisk, parent.path()).unwrap();
    assert!(register.declare(&recovered(1003)).unwrap());
    assert!(matches!(look(parent.path()).found, Found::Holds(view) if view == recovered(1003)));
    assert_eq!(held::read(parent.path(), &nodes().into_keys().next().unwrap()), None);
    let hold = Hold::take(parent.path(), &nodes()).unwrap();
    assert!(hold.declare(&recovered(2003)).unwrap().is_some(), "and can be done again");
    assert!(matches!(look(parent.path()).found, Found::Holds(view) if view == recovered(2003)));
}
