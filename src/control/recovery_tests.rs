use std::collections::BTreeMap;

use super::*;

fn node(port: u16) -> NodeId {
    NodeId::parse(&format!("h:{port}")).unwrap()
}

/// Of each node counted on the incarnation is its port.
fn view_of(epoch: u64, in_sync: &[u16], floor: u64) -> View {
    let nodes = |ports: &[u16]| -> BTreeMap<NodeId, Incarnation> {
        ports.iter().map(|port| (node(*port), Incarnation(u64::from(*port)))).collect()
    };
    View {
        cluster: ClusterId(9),
        epoch: Epoch(epoch),
        leader: node(in_sync[0]),
        led_since: Epoch(epoch),
        in_sync: nodes(in_sync),
        members: nodes(&[1, 2, 3]),
        floor: Index(floor),
        recovered: Epoch(0),
        previous: crate::view::Checksum(0),
    }
}

/// A copy that has seen `view` and whose log ends at (epoch, index).
fn copy(port: u16, view: &View, epoch: u64, index: u64) -> Copy {
    let data = Data {
        incarnation: Incarnation(u64::from(port)),
        cluster: ClusterId(9),
        promised: view.epoch,
        view: Some(view.clone()),
        last: At { epoch, index },
        commit: Index(index - 1),
    };
    Copy { node: node(port), held: Held::Data(data), noted: None }
}

fn empty(port: u16) -> Copy {
    Copy { node: node(port), held: Held::Nothing, noted: None }
}

fn edit(copy: &mut Copy, change: impl FnOnce(&mut Data)) {
    let Held::Data(data) = &mut copy.held else { panic!("it holds nothing") };
    change(data);
}

fn says(finding: &Finding, text: &str) -> bool {
    finding.sentences.iter().any(|sentence| sentence.contains(text))
}

#[test]
fn while_one_of_the_last_in_sync_set_has_its_data_it_is_started_and_nothing_is_recovered() {
    let (old, last) = (view_of(5, &[1, 2, 3], 10), view_of(7, &[2, 3], 20));
    let register = Register::Holds(last.clone());
    let finding = judge(&register, &[copy(1, &old, 5, 15), empty(2), copy(3, &last, 7, 30)]);
    assert_eq!(finding.verdict, Verdict::Start(vec![node(3)]), "{finding:?}");
    assert!(says(&finding, "h:2: its data directory is empty"));
}

#[test]
fn with_the_last_in_sync_copy_gone_the_longest_of_the_latest_epoch_is_the_source() {
    let (old, last) = (view_of(5, &[1, 2, 3], 10), view_of(7, &[3], 20));
    let mut gone = empty(3);
    gone.noted = Some((Incarnation(3), Epoch(7), Index(34)));
    let copies = [copy(1, &old, 4, 99), copy(2, &old, 5, 18), gone];
    let finding = judge(&Register::Holds(last), &copies);
    assert_eq!(finding.verdict, Verdict::Recover { source: node(2) }, "the epoch before the length");
    let loss = loss(&node(2), &finding, &copies).unwrap().join("; ");
    // Known from the note that the lost one left in the register.
    assert!(loss.contains("entries 19 to 98 were") || loss.contains("entries 19 to 34 were"), "{loss}");
    assert!(loss.contains("everything acknowledged after entry 18 of epoch 5 may be gone"), "{loss}");
}

#[test]
fn of_equal_logs_the_lowest_address_is_the_source() {
    let old = view_of(5, &[1, 2, 3], 10);
    let copies = [copy(1, &old, 5, 18), copy(2, &old, 5, 18), empty(3)];
    let finding = judge(&Register::Holds(view_of(7, &[3], 10)), &copies);
    assert_eq!(finding.verdict, Verdict::Recover { source: node(1) });
}

#[test]
fn a_copy_of_the_last_set_that_is_damaged_replaced_put_back_or_foreign_does_not_count() {
    let last = view_of(7, &[3], 20);
    let other = copy(1, &view_of(5, &[1, 3], 1), 5, 10);
    let mut damaged = empty(3);
    damaged.held = Held::Damaged(vec!["the log is damaged".to_owned()]);
    let mut replaced = copy(3, &last, 7, 30);
    edit(&mut replaced, |data| data.incarnation = Incarnation(77));
    let mut foreign = copy(3, &last, 7, 30);
    edit(&mut foreign, |data| data.cluster = ClusterId(1));
    let mut put_back = copy(3, &last, 7, 30);
    put_back.noted = Some((Incarnation(3), Epoch(7), Index(31)));
    let short = copy(3, &last, 7, 19);
    for (bad, text) in [
        (damaged, "the log is damaged"),
        (replaced, "another one than"),
        (foreign, "another cluster"),
        (put_back, "put back"),
        (short, "put back"),
    ] {
        let finding = judge(&Register::Holds(last.clone()), &[other.clone(), bad]);
        assert!(matches!(finding.verdict, Verdict::Recover { .. }), "{finding:?}");
        assert!(says(&finding, text), "{text}: {finding:?}");
    }
    let mut whole = copy(3, &last, 7, 30);
    whole.noted = Some((Incarnation(3), Epoch(7), Index(30)));
    assert_eq!(judge(&Register::Holds(last), &[other, whole]).verdict, Verdict::Start(vec![node(3)]));
}

#[test]
fn what_is_not_known_is_found_out_before_anything_is_given_up() {
    let last = view_of(7, &[3], 20);
    let mut silent = empty(3);
    silent.held = Held::Unknown("it is frozen".to_owned());
    let finding = judge(&Register::Holds(last), &[copy(1, &view_of(5, &[1], 1), 5, 10), silent]);
    assert_eq!(finding.verdict, Verdict::FindOut(vec![node(3)]));
}

#[test]
fn a_register_that_is_gone_older_or_damaged_is_recovered_from_the_best_copy_without_known_loss() {
    let last = view_of(7, &[1, 2], 20);
    let copies = [copy(1, &last, 7, 30), copy(2, &last, 7, 30), empty(3)];
    let damaged =
        Register::Unusable { why: "view-7 is damaged".to_owned(), before: Some(view_of(6, &[1, 2, 3], 20)) };
    for (register, text) in [
        (Register::Gone, "gone or empty"),
        (Register::Holds(view_of(6, &[1, 2, 3], 20)), "stands at epoch 6"),
        (damaged, "view-7 is damaged"),
    ] {
        let finding = judge(&register, &copies);
        assert_eq!(finding.verdict, Verdict::Recover { source: node(1) }, "{finding:?}");
        assert!(says(&finding, text), "{finding:?}");
        let loss = loss(&node(1), &finding, &copies).unwrap().join("; ");
        assert!(loss.contains("nothing acknowledged is known to be missing"), "{loss}");
    }
}

#[test]
fn the_view_of_a_recovery_is_above_everything_ever_promised_and_counts_on_the_source_alone() {
    let (old, last) = (view_of(5, &[1, 2, 3], 10), view_of(7, &[3], 50));
    let mut promising = copy(2, &old, 5, 18);
    edit(&mut promising, |data| data.promised = Epoch(60));
    let copies = [copy(1, &old, 5, 18), promising, empty(3)];
    let finding = judge(&Register::Holds(last), &copies);
    let made = view(&node(1), &finding, &copies, Epoch(80)).unwrap();
    assert!(made.epoch > Epoch(80));
    assert_eq!((made.led_since, made.recovered), (made.epoch, made.epoch));
    assert_eq!(made.in_sync, BTreeMap::from([(node(1), Incarnation(1))]));
    assert_eq!(made.members.len(), 3);
    assert_eq!(made.floor, Index(18), "what it holds, and not what the lost one held");
    let later = view(&node(1), &finding, &copies, Epoch(0)).unwrap();
    assert!(later.epoch > Epoch(60));
}

#[test]
fn a_source_that_is_none_is_refused() {
    let last = view_of(7, &[3], 20);
    let mut foreign = copy(2, &last, 7, 30);
    edit(&mut foreign, |data| data.cluster = ClusterId(1));
    let copies = [empty(1), foreign, empty(3)];
    let finding = judge(&Register::Holds(last), &copies);
    assert_eq!(finding.verdict, Verdict::Nothing);
    let refused = |port: u16| view(&node(port), &finding, &copies, Epoch(0)).unwrap_err();
    assert!(matches!(refused(1), BadSource::Unusable(_)));
    assert!(matches!(refused(2), BadSource::OtherCluster { .. }));
    assert!(matches!(refused(9), BadSource::Unknown(_)));
}

#[test]
fn where_nothing_was_ever_written_there_is_nothing_to_recover() {
    assert_eq!(judge(&Register::Gone, &[empty(1), empty(2)]).verdict, Verdict::New);
}

#[test]
fn a_recovery_that_was_made_needs_no_other() {
    let (old, last) = (view_of(5, &[1, 2, 3], 10), view_of(7, &[3], 50));
    let mut noted = copy(1, &old, 5, 18);
    // The source itself had held more once: that was given up.
    noted.noted = Some((Incarnation(1), Epoch(7), Index(40)));
    let copies = [noted, copy(2, &old, 5, 17), empty(3)];
    let finding = judge(&Register::Holds(last), &copies);
    let made = view(&node(1), &finding, &copies, Epoch(7)).unwrap();
    assert_eq!(judge(&Register::Holds(made), &copies).verdict, Verdict::Start(vec![node(1)]));
}
