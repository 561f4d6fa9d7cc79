//! One good run, changed in one way each.

use super::super::history::{Attempt, Ending, Found, Past, Replica};
use super::*;
use crate::rules::{Rule, without};

const FAULT: Fault = Fault { ordered_us: 1_000, seen_us: Some(1_050) };

/// Two writers, five writes: acknowledged before, across and after the fault, one of unknown fate, one refused.
fn history() -> History {
    let attempt =
        |writer, number, sent_us, outcome| Attempt { id: WriteId { writer, number }, sent_us, outcome };
    let yes = |revision, at_us| Outcome::Acknowledged { revision, at_us };
    History {
        prefix: b"p/".to_vec(),
        attempts: vec![
            attempt(0, 0, 100, yes(2, 300)),
            attempt(1, 0, 150, yes(3, 400)),
            attempt(0, 1, 900, Outcome::Indeterminate { at_us: 1_100 }),
            attempt(1, 1, 950, yes(4, 9_400)),
            attempt(0, 2, 2_000, Outcome::NotDone { at_us: 2_100 }),
            attempt(0, 3, 9_450, yes(5, 9_500)),
        ],
        fault: Some(FAULT),
        stopped_us: 9_600,
    }
}

fn found(history: &History, writer: u16, number: u32, revision: i64) -> Found {
    let id = WriteId { writer, number };
    Found {
        key: history.key(id),
        value: history.value(id),
        create_revision: revision,
        mod_revision: revision,
        version: 1,
    }
}

fn replica(endpoint: &str, history: &History) -> Replica {
    let found = vec![
        found(history, 0, 0, 2),
        found(history, 0, 3, 5),
        found(history, 1, 0, 3),
        found(history, 1, 1, 4),
    ];
    Replica { endpoint: endpoint.to_owned(), revision: 5, found }
}

fn readback(history: &History) -> ReadBack {
    ReadBack { replicas: vec![replica("a:1", history), replica("b:1", history)], ..ReadBack::default() }
}

/// Changes a good run and says what the judge makes of it.
fn judged(change: impl FnOnce(&mut History, &mut ReadBack)) -> Evidence {
    let mut history = history();
    let mut readback = readback(&history);
    change(&mut history, &mut readback);
    judge(&history, &readback)
}

fn assert_violated(evidence: &Evidence, lost: u64, words: &str) {
    assert_eq!((evidence.verdict, evidence.lost), (Verdict::Violated, Some(lost)), "{evidence:?}");
    assert!(evidence.violations.iter().any(|text| text.contains(words)), "{:?}", evidence.violations);
    assert_eq!(evidence.reason.as_ref(), evidence.violations.first());
}

fn assert_inconclusive(evidence: &Evidence, words: &str) {
    assert_eq!(evidence.verdict, Verdict::Inconclusive, "{evidence:?}");
    assert!(evidence.reason.as_ref().is_some_and(|reason| reason.contains(words)), "{evidence:?}");
}

#[test]
fn a_run_in_which_everything_acknowledged_is_there_is_proved() {
    let evidence = judged(|_, _| {});
    assert_eq!((evidence.verdict, evidence.reason.clone()), (Verdict::Proved, None), "{evidence:?}");
    assert_eq!((evidence.acknowledged, evidence.indeterminate, evidence.errors), (4, 1, 1));
    assert!((evidence.unavailable_ms - 9.0).abs() < 1e-9, "{}", evidence.unavailable_ms);
}

#[test]
fn a_write_of_unknown_fate_may_be_there() {
    let evidence = judged(|history, readback| {
        for replica in &mut readback.replicas {
            replica.found.push(found(history, 0, 1, 6));
            replica.revision = 6;
        }
    });
    assert_eq!(evidence.verdict, Verdict::Proved, "{evidence:?}");
}

#[test]
fn a_missing_acknowledged_write_is_lost() {
    let evidence = judged(|_, readback| {
        for replica in &mut readback.replicas {
            replica.found.remove(0);
        }
    });
    assert_violated(&evidence, 1, "is missing on a:1");
}

#[test]
fn another_value_or_revision_than_acknowledged_is_lost() {
    let evidence = judged(|_, readback| {
        for replica in &mut readback.replicas {
            replica.found[0].value = b"other".to_vec();
            replica.found[1].mod_revision = 6;
            replica.found[1].create_revision = 6;
        }
    });
    assert_violated(&evidence, 2, "holds another value or revision");
}

#[test]
fn a_write_that_was_carried_out_twice_is_a_violation() {
    let evidence = judged(|history, readback| {
        for replica in &mut readback.replicas {
            replica.found.push(Found { version: 2, mod_revision: 7, ..found(history, 0, 1, 6) });
        }
    });
    assert_violated(&evidence, 0, "carried out 2 times");
}

#[test]
fn a_refused_write_that_is_there_is_a_violation() {
    let evidence = judged(|history, readback| {
        for replica in &mut readback.replicas {
            replica.found.push(found(history, 0, 2, 6));
        }
    });
    assert_violated(&evidence, 0, "was refused, yet");
}

#[test]
fn a_key_that_nobody_wrote_is_a_violation() {
    let evidence = judged(|history, readback| {
        for replica in &mut readback.replicas {
            replica.found.push(found(history, 7, 7, 6));
        }
    });
    assert_violated(&evidence, 0, "which nobody wrote");
}

#[test]
fn one_revision_for_two_writes_is_a_violation() {
    let evidence = judged(|history, _| {
        history.attempts[1].outcome = Outcome::Acknowledged { revision: 2, at_us: 400 };
    });
    assert_violated(&evidence, 1, "both acknowledged at revision 2");
}

#[test]
fn a_revision_that_goes_back_is_a_violation() {
    let evidence = judged(|history, readback| {
        history.attempts[5].outcome = Outcome::Acknowledged { revision: 1, at_us: 9_500 };
        for replica in &mut readback.replicas {
            replica.found[1] = found(history, 0, 3, 1);
        }
    });
    assert_violated(&evidence, 0, "the revision went back: write 3 of writer 0");
    let evidence = judged(|_, readback| readback.replicas[0].revision = 4);
    assert_violated(&evidence, 0, "a:1 is at 4 after 5");
}

#[test]
fn overlapping_writes_may_take_their_revisions_in_any_order() {
    let evidence = judged(|history, readback| {
        history.attempts[0].outcome = Outcome::Acknowledged { revision: 3, at_us: 300 };
        history.attempts[1].outcome = Outcome::Acknowledged { revision: 2, at_us: 400 };
        for replica in &mut readback.replicas {
            replica.found[0] = found(history, 0, 0, 3);
            replica.found[2] = found(history, 1, 0, 2);
        }
    });
    assert_eq!(evidence.verdict, Verdict::Proved, "{evidence:?}");
}

#[test]
fn nodes_that_disagree_are_a_violation() {
    let evidence = judged(|_, readback| {
        readback.replicas[1].found.pop();
    });
    assert_violated(&evidence, 0, "a:1 and b:1 disagree on p/001-00000001");
    let evidence = judged(|_, readback| readback.stale.push("b:1".to_owned()));
    assert_violated(&evidence, 0, "b:1 answered a linearizable read without");
}

#[test]
fn without_a_read_back_from_every_survivor_nothing_is_proved() {
    let evidence = judged(|_, readback| readback.replicas.clear());
    assert_inconclusive(&evidence, "no node is left");
    assert_eq!(evidence.lost, None, "nothing is known of what was not read");
    let evidence = judged(|_, readback| {
        let gone = readback.replicas.pop().map(|replica| (replica.endpoint, "timed out".to_owned()));
        readback.unread.extend(gone);
    });
    assert_inconclusive(&evidence, "b:1 could not be read back: timed out");
}

#[test]
fn without_writes_before_through_and_after_the_fault_nothing_is_proved() {
    let faulted = |ordered_us, seen_us| {
        judged(|history, _| history.fault = Some(Fault { ordered_us, seen_us: Some(seen_us) }))
    };
    assert_inconclusive(&judged(|history, _| history.fault = None), "no fault");
    assert_inconclusive(&faulted(200, 250), "before the fault");
    assert_inconclusive(&faulted(9_510, 9_550), "after the fault");
    assert_inconclusive(&faulted(9_410, 9_420), "in flight");
    let unseen = judged(|history, _| history.fault = Some(Fault { seen_us: None, ..FAULT }));
    assert_inconclusive(&unseen, "not seen");
}

#[test]
fn what_was_sent_before_the_effect_was_seen_is_not_after_the_fault() {
    // The last write is acknowledged long after the order, but it was sent before the victim was seen gone.
    let evidence = judged(|history, _| history.fault = Some(Fault { seen_us: Some(9_460), ..FAULT }));
    assert_inconclusive(&evidence, "sent after the fault");
    assert!(!evidence.resumed);
}

#[test]
fn a_write_that_was_open_at_the_order_need_not_be_open_when_the_fault_struck() {
    let hole = |history: &mut History, _: &mut ReadBack| {
        // Both writes that were open at the order ended at 1.02 ms, before it must have struck.
        history.attempts[2].outcome = Outcome::Indeterminate { at_us: 1_020 };
        history.attempts[3].outcome = Outcome::Acknowledged { revision: 4, at_us: 1_020 };
    };
    assert_inconclusive(&judged(hole), "in flight");
    let evidence = judged(|history, readback| {
        hole(history, readback);
        // A third one bridges that.
        let id = WriteId { writer: 1, number: 2 };
        let outcome = Outcome::Indeterminate { at_us: 2_000 };
        history.attempts.push(Attempt { id, sent_us: 1_010, outcome });
    });
    assert_eq!(evidence.verdict, Verdict::Proved, "{evidence:?}");
}

#[test]
fn a_cluster_that_never_came_back_was_unavailable_to_the_end() {
    let evidence = judged(|history, readback| {
        history.attempts.truncate(3);
        for replica in &mut readback.replicas {
            replica.found.retain(|found| found.mod_revision < 4);
        }
    });
    assert_inconclusive(&evidence, "after the fault");
    assert!(!evidence.resumed);
    assert!((evidence.unavailable_ms - 9.2).abs() < 1e-9, "{}", evidence.unavailable_ms);
}

#[test]
fn a_flood_of_violations_is_bounded_but_counted() {
    let evidence = judged(|history, readback| {
        for number in 100..200 {
            let lost = Attempt {
                id: WriteId { writer: 0, number },
                sent_us: 9_500,
                outcome: Outcome::Acknowledged { revision: i64::from(number), at_us: 9_550 },
            };
            history.attempts.push(lost);
        }
        readback.replicas.truncate(1);
        readback.replicas[0].revision = 1_000;
    });
    assert_eq!(evidence.lost, Some(100));
    assert_eq!(evidence.violations.len(), SPELLED_OUT + 1);
    assert_eq!(evidence.violations.last().map(String::as_str), Some("and 80 more"));
}

/// The good run as a replica shows it after another client removed the first write and rewrote the second.
fn disturbed(past: impl Fn(WriteId) -> Option<Past>) -> Evidence {
    judged(|history, readback| {
        for replica in &mut readback.replicas {
            replica.revision = 9;
            replica.found[2].value = b"mine".to_vec();
            replica.found[2].version = 2;
            replica.found[2].mod_revision = 8;
            replica.found.remove(0);
        }
        for (id, _) in in_doubt(history, &readback.replicas[0]) {
            readback.past.extend(past(id).map(|past| (id, past)));
        }
    })
}

#[test]
fn what_another_client_removed_or_rewrote_is_no_loss() {
    let evidence = disturbed(|_| Some(Past::Stood));
    assert_inconclusive(&evidence, "removed or rewrote 2 acknowledged writes");
    assert_eq!((evidence.lost, evidence.overtaken), (Some(0), 2));
    assert_eq!(evidence.violations, Vec::<String>::new());
}

#[test]
fn the_revision_that_ended_a_write_is_named() {
    let evidence = judged(|history, readback| {
        let id = history.attempts[0].id;
        readback.replicas.iter_mut().for_each(|replica| drop(replica.found.remove(0)));
        readback.past.insert(id, Past::Stood);
        readback.ending = Some(Ending { id, stood_at: 2, ended_at: 5, deleted: true });
    });
    assert_inconclusive(&evidence, "p/000-00000000 stood at revision 2 and was deleted at revision 5");
}

#[test]
fn what_never_stood_at_its_own_revision_is_lost_whatever_else_was_deleted() {
    let evidence = disturbed(|id| Some(if id.writer == 0 { Past::NeverStood } else { Past::Stood }));
    assert_violated(&evidence, 1, "is missing on a:1");
    assert_eq!(evidence.overtaken, 1);
    let evidence = disturbed(|id| Some(if id.writer == 1 { Past::NeverStood } else { Past::Stood }));
    assert_violated(&evidence, 1, "holds another value or revision");
    // Without any look at the past nothing excuses a missing write.
    assert_violated(&disturbed(|_| None), 2, "is missing on a:1");
}

#[test]
fn a_compacted_or_unread_past_neither_proves_nor_violates() {
    let evidence = disturbed(|_| Some(Past::Compacted { up_to: 7 }));
    assert_inconclusive(&evidence, "compacted away up to revision 7");
    let evidence = disturbed(|_| Some(Past::Unread("timed out".to_owned())));
    assert_inconclusive(&evidence, "could not be read: timed out");
    assert_eq!((evidence.lost, evidence.overtaken), (Some(0), 2));
}

#[test]
fn a_write_of_ours_that_is_carried_out_again_is_a_violation_though_it_stood() {
    let evidence = judged(|history, readback| {
        for replica in &mut readback.replicas {
            replica.revision = 9;
            replica.found[0].mod_revision = 8;
            replica.found[0].create_revision = 8;
        }
        readback.past.insert(history.attempts[0].id, Past::Stood);
    });
    assert_violated(&evidence, 0, "was carried out again");
}

#[test]
fn values_of_other_clients_below_the_prefix_disturb_and_violate_nothing() {
    let evidence = judged(|history, readback| {
        for replica in &mut readback.replicas {
            replica.found.push(Found { value: b"mine".to_vec(), ..found(history, 0, 1, 6) });
            replica.found.push(Found { key: b"p/notes".to_vec(), ..replica.found[4].clone() });
            replica.revision = 7;
        }
    });
    assert_inconclusive(&evidence, "another client wrote 2 keys below");
}

#[test]
fn a_value_of_ours_under_another_key_is_a_violation() {
    let evidence = judged(|history, readback| {
        for replica in &mut readback.replicas {
            let swapped = history.value(history.attempts[0].id);
            replica.found.push(Found { value: swapped, ..found(history, 0, 1, 6) });
            replica.revision = 6;
        }
    });
    assert_violated(&evidence, 0, "that was written under another key");
}

#[test]
fn a_delete_by_another_client_is_never_called_a_loss() {
    for rule in [None, Some(Rule::LookBack)] {
        let evidence = without(rule, || disturbed(|_| Some(Past::Stood)));
        assert_eq!(evidence.verdict == Verdict::Violated, rule.is_some(), "{rule:?}: {evidence:?}");
    }
}
