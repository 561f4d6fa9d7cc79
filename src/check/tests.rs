//! Every violation by name in the smallest history that has it, and random histories against an exhaustive search.

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::testing::{exhaustive, mistake, store};
use super::*;

/// A history of one key that starts at revision 1: each operation has its own client and asks node 0.
#[derive(Default)]
struct Story {
    operations: Vec<Operation>,
}

const KEY: Key = Key(0);

impl Story {
    fn tell(mut self, times: (u64, u64), request: Request, answer: Answer) -> Story {
        self.note(times.0, request, Outcome::Done { returned: times.1, answer });
        self
    }

    fn fails(mut self, called: u64, request: Request, outcome: Outcome) -> Story {
        self.note(called, request, outcome);
        self
    }

    fn note(&mut self, called: u64, request: Request, outcome: Outcome) {
        let client = u32::try_from(self.operations.len()).unwrap();
        self.operations.push(Operation { client, node: 0, session: 0, called, request, outcome });
    }

    fn put(self, times: (u64, u64), value: u64, revision: i64) -> Story {
        self.tell(times, put(value), Answer::Written { revision })
    }

    fn get(self, times: (u64, u64), revision: i64, found: &[Found]) -> Story {
        let request = Request::get(KEY, Freshness::Linearizable);
        self.tell(times, request, Answer::Read { revision, found: found.to_vec() })
    }

    fn look(self, times: (u64, u64), revision: i64, found: &[Found]) -> Story {
        let request = Request::get(KEY, Freshness::Serializable);
        self.tell(times, request, Answer::Read { revision, found: found.to_vec() })
    }

    fn history(self) -> History {
        History { first_revision: 1, operations: self.operations }
    }

    fn passes(self) {
        let history = self.history();
        let report = check(&history);
        assert!(report.is_linearizable(), "{report:#?}");
        assert!(exhaustive::is_linearizable(&history));
    }

    /// The only violation; the exhaustive search must agree that there is one.
    fn violation(self) -> Violation {
        let history = self.history();
        let mut report = check(&history);
        assert_eq!(report.violations.len(), 1, "{report:#?}");
        assert!(!report.is_linearizable());
        assert!(!exhaustive::is_linearizable(&history));
        report.violations.remove(0)
    }
}

fn put(value: u64) -> Request {
    Request::Put { key: KEY, value: Token(value) }
}

fn put_if(expected_mod_revision: i64, value: u64) -> Request {
    Request::CompareAndPut { key: KEY, expected_mod_revision, value: Token(value) }
}

fn found(value: u64, create_revision: i64, mod_revision: i64, version: i64) -> Found {
    Found { key: KEY, value: Token(value), create_revision, mod_revision, version }
}

const DELETE: Request = Request::Delete { key: KEY };

macro_rules! is {
    ($violation:expr, $pattern:pat) => {
        let violation = $violation;
        assert!(matches!(violation, $pattern), "{violation}");
    };
}

#[test]
fn an_empty_history_is_fine() {
    Story::default().passes();
}

#[test]
fn requests_one_after_another_are_fine() {
    Story::default()
        .get((0, 1), 1, &[])
        .put((2, 3), 10, 2)
        .get((4, 5), 2, &[found(10, 2, 2, 1)])
        .tell((6, 7), put_if(2, 11), Answer::Compared { revision: 3, succeeded: true })
        .tell((8, 9), put_if(2, 12), Answer::Compared { revision: 3, succeeded: false })
        .get((10, 11), 3, &[found(11, 2, 3, 2)])
        .tell((12, 13), DELETE, Answer::Deleted { revision: 4, existed: true })
        .tell((14, 15), DELETE, Answer::Deleted { revision: 4, existed: false })
        .tell((16, 17), put_if(0, 13), Answer::Compared { revision: 5, succeeded: true })
        .get((18, 19), 5, &[found(13, 5, 5, 1)])
        .passes();
}

#[test]
fn a_lost_write_is_found_whether_or_not_its_revision_is_used_again() {
    let lost = Story::default().put((0, 1), 10, 2).get((2, 3), 2, &[]);
    is!(lost.violation(), Violation::Missing { changed_at: 2, .. });
    let overwritten = Story::default().put((0, 1), 10, 2).put((2, 3), 11, 2);
    let report = check(&overwritten.history());
    assert!(matches!(report.violations[0], Violation::RevisionShared { revision: 2, .. }), "{report:?}");
    let gone_back = Story::default().put((0, 1), 10, 2).get((2, 3), 1, &[]);
    is!(gone_back.violation(), Violation::Stale { .. });
}

#[test]
fn a_lost_delete_is_found() {
    let story = Story::default()
        .put((0, 1), 10, 2)
        .tell((2, 3), DELETE, Answer::Deleted { revision: 3, existed: true })
        .get((4, 5), 3, &[found(10, 2, 2, 1)]);
    is!(story.violation(), Violation::Contradicted { expected: None, .. });
}

#[test]
fn two_changes_with_one_revision_are_found() {
    let story = Story::default().put((0, 9), 10, 2).put((0, 9), 11, 2);
    is!(story.violation(), Violation::RevisionShared { revision: 2, .. });
}

#[test]
fn a_request_that_was_carried_out_twice_is_found() {
    let story = Story::default()
        .fails(0, put(10), Outcome::Unknown)
        .look((1, 2), 2, &[found(10, 2, 2, 1)])
        .look((3, 4), 3, &[found(10, 2, 3, 2)]);
    is!(story.violation(), Violation::DoneTwice { first: 2, second: 3, .. });
}

#[test]
fn a_write_ordered_behind_what_had_returned_is_found() {
    let story = Story::default().put((0, 1), 10, 3).put((2, 3), 11, 2);
    is!(story.violation(), Violation::OrderBroken { .. });
    Story::default().put((0, 2), 10, 3).put((2, 3), 11, 2).passes();
}

#[test]
fn a_write_at_the_revision_of_an_earlier_read_is_found() {
    let story = Story::default().fails(0, put(10), Outcome::Unknown).get((0, 1), 2, &[]).put((2, 3), 11, 2);
    let report = check(&story.history());
    assert!(matches!(report.violations[0], Violation::OrderBroken { .. }), "{report:?}");
}

#[test]
fn a_stale_linearizable_read_is_found_and_a_serializable_one_is_fine() {
    let story = Story::default().put((0, 1), 10, 2).get((2, 3), 1, &[]);
    is!(story.violation(), Violation::Stale { .. });
    let shown = Story::default()
        .fails(0, put(10), Outcome::Unknown)
        .look((1, 2), 2, &[found(10, 2, 2, 1)])
        .get((3, 4), 1, &[]);
    is!(shown.violation(), Violation::Stale { .. });
    let mut elsewhere = Story::default().put((0, 1), 10, 2).look((2, 3), 1, &[]);
    elsewhere.operations[1].node = 1;
    elsewhere.passes();
}

#[test]
fn a_process_that_goes_back_is_found_and_a_new_one_may() {
    let story = || Story::default().put((0, 1), 10, 2).look((2, 3), 1, &[]);
    is!(story().violation(), Violation::WentBack { .. });
    let mut restarted = story();
    restarted.operations[1].session = 1;
    restarted.passes();
}

#[test]
fn reading_what_nobody_wrote_is_found() {
    let story = Story::default().put((0, 1), 10, 2).get((2, 3), 2, &[found(99, 2, 2, 1)]);
    is!(story.violation(), Violation::NeverWritten { .. });
}

#[test]
fn reading_what_is_asked_for_only_later_is_found() {
    let story = Story::default().look((0, 1), 2, &[found(10, 2, 2, 1)]).fails(2, put(10), Outcome::Unknown);
    is!(story.violation(), Violation::BeforeItsCall { .. });
    let acknowledged = Story::default().look((0, 1), 2, &[found(10, 2, 2, 1)]).put((2, 3), 10, 2);
    is!(acknowledged.violation(), Violation::OrderBroken { .. });
}

#[test]
fn a_state_that_shows_a_later_change_is_found() {
    let story = Story::default().put((0, 9), 10, 2).put((0, 9), 11, 3).get((0, 9), 2, &[found(11, 2, 3, 2)]);
    is!(story.violation(), Violation::FromTheFuture { revision: 2, .. });
}

#[test]
fn a_wrong_version_create_or_mod_revision_is_found() {
    let story = |last| Story::default().put((0, 1), 10, 2).put((2, 3), 11, 3).get((4, 5), 3, &[last]);
    story(found(11, 2, 3, 2)).passes();
    is!(story(found(11, 2, 3, 1)).violation(), Violation::Contradicted { .. });
    is!(story(found(11, 3, 3, 2)).violation(), Violation::Contradicted { .. });
    is!(story(found(11, 2, 2, 2)).violation(), Violation::RevisionShared { .. });
    is!(story(found(10, 2, 2, 1)).violation(), Violation::Missing { .. });
}

#[test]
fn a_refused_write_that_is_seen_is_found() {
    let story = |outcome| Story::default().fails(0, put(10), outcome).get((2, 3), 2, &[found(10, 2, 2, 1)]);
    story(Outcome::Unknown).passes();
    is!(story(Outcome::Refused).violation(), Violation::RefusedButSeen { .. });
    let compared = Story::default()
        .tell((0, 1), put_if(7, 10), Answer::Compared { revision: 1, succeeded: false })
        .get((2, 3), 2, &[found(10, 2, 2, 1)]);
    is!(compared.violation(), Violation::RefusedButSeen { .. });
}

#[test]
fn a_wrong_comparison_is_found() {
    let held = |expected, succeeded| {
        let revision = if succeeded { 3 } else { 2 };
        Story::default().put((0, 1), 10, 2).tell(
            (2, 3),
            put_if(expected, 11),
            Answer::Compared { revision, succeeded },
        )
    };
    held(2, true).passes();
    held(0, false).passes();
    is!(
        held(2, false).violation(),
        Violation::Contradicted { said: violation::Said::ModRevisionIsNot(2), .. }
    );
    is!(held(0, true).violation(), Violation::Missing { .. });
}

#[test]
fn a_wrong_count_of_deleted_keys_is_found() {
    let nothing = Story::default().tell((0, 1), DELETE, Answer::Deleted { revision: 2, existed: true });
    is!(nothing.violation(), Violation::Contradicted { .. });
    let something = Story::default().put((0, 1), 10, 2).tell(
        (2, 3),
        DELETE,
        Answer::Deleted { revision: 2, existed: false },
    );
    is!(something.violation(), Violation::Missing { .. });
}

#[test]
fn an_unknown_write_may_be_missing_may_come_late_and_may_be_hidden() {
    Story::default().fails(0, put(10), Outcome::Unknown).get((2, 3), 1, &[]).passes();
    Story::default()
        .fails(0, put(10), Outcome::Unknown)
        .get((2, 3), 1, &[])
        .get((4, 5), 2, &[found(10, 2, 2, 1)])
        .passes();
    Story::default()
        .fails(0, put(10), Outcome::Unknown)
        .put((2, 3), 11, 3)
        .get((4, 5), 3, &[found(11, 2, 3, 2)])
        .passes();
}

#[test]
fn a_revision_that_nobody_can_have_made_is_found() {
    let nobody = Story::default().put((0, 1), 10, 3);
    is!(nobody.violation(), Violation::Unexplained { .. });
    let too_late = Story::default().put((0, 1), 10, 3).fails(2, put(11), Outcome::Unknown);
    is!(too_late.violation(), Violation::Unexplained { .. });
    // The hidden write would be the first version, and the acknowledged one the second.
    let uncounted = Story::default().fails(0, put(10), Outcome::Unknown).put((0, 1), 11, 3).get(
        (2, 3),
        3,
        &[found(11, 3, 3, 1)],
    );
    let violation = uncounted.violation();
    is!(&violation, Violation::Unexplained { why: Some(_), .. });
    assert!(violation.to_string().contains("key 0 holds 0=11"), "{violation}");
}

#[test]
fn a_key_that_vanishes_needs_a_hidden_delete() {
    let story =
        |request| Story::default().put((0, 1), 10, 2).fails(1, request, Outcome::Unknown).get((2, 3), 3, &[]);
    story(DELETE).passes();
    is!(story(put(11)).violation(), Violation::Unexplained { .. });
    is!(story(put_if(2, 11)).violation(), Violation::Unexplained { .. });
}

#[test]
fn a_read_of_an_old_state_names_what_was_hidden() {
    let story = |state: &[Found]| {
        Story::default()
            .fails(0, put(10), Outcome::Unknown)
            .fails(0, DELETE, Outcome::Unknown)
            .put((0, 1), 11, 3)
            .tell(
                (2, 3),
                Request::get(KEY, Freshness::At(2)),
                Answer::Read { revision: 3, found: state.to_vec() },
            )
    };
    story(&[found(10, 2, 2, 1)]).passes();
    is!(story(&[]).violation(), Violation::Unexplained { .. });
}

const BOTH: Span = Span { first: Key(0), last: Key(1) };

fn two(value: u64) -> Request {
    let sets = Sets { first: Key(0), step: 1, count: 2, value: Token(value) };
    Request::Transaction(Transaction { expected: None, reads: BOTH, removes: None, sets })
}

fn other(value: u64, mod_revision: i64) -> Found {
    Found { key: Key(1), ..found(value, mod_revision, mod_revision, 1) }
}

fn read_both(story: Story, times: (u64, u64), revision: i64, found: &[Found]) -> Story {
    let request = Request::Read { first: Key(0), last: Key(1), freshness: Freshness::Linearizable };
    story.tell(times, request, Answer::Read { revision, found: found.to_vec() })
}

fn transacted(revision: i64, met: &[Found]) -> Answer {
    Answer::Transacted { revision, succeeded: true, met: met.to_vec() }
}

#[test]
fn half_of_a_transaction_is_found_whether_it_was_answered_or_not() {
    let whole = [found(10, 2, 2, 1), other(11, 2)];
    let answered = || Story::default().tell((0, 1), two(10), transacted(2, &[]));
    read_both(answered(), (2, 3), 2, &whole).passes();
    is!(read_both(answered(), (2, 3), 2, &whole[..1]).violation(), Violation::Missing { .. });
    is!(read_both(answered(), (2, 3), 2, &whole[1..]).violation(), Violation::Missing { .. });
    let unknown = || Story::default().fails(0, two(10), Outcome::Unknown);
    read_both(unknown(), (2, 3), 2, &whole).passes();
    read_both(unknown(), (2, 3), 1, &[]).passes();
    is!(read_both(unknown(), (2, 3), 2, &whole[1..]).violation(), Violation::Missing { .. });
    let apart = [found(10, 2, 2, 1), other(11, 3)];
    is!(read_both(unknown(), (2, 3), 3, &apart).violation(), Violation::DoneTwice { .. });
}

#[test]
fn what_a_transaction_met_must_be_the_state_before_it() {
    let story = |met: &[Found]| Story::default().put((0, 1), 10, 2).tell((2, 3), two(11), transacted(3, met));
    story(&[found(10, 2, 2, 1)]).passes();
    is!(story(&[]).violation(), Violation::Missing { .. });
    is!(story(&[found(11, 2, 3, 2)]).violation(), Violation::FromTheFuture { revision: 2, .. });
}

#[test]
fn a_range_delete_that_leaves_or_invents_a_key_is_found() {
    let both = [found(10, 2, 2, 1), other(11, 2)];
    let deleted = |removed: &[Found]| {
        let answer = Answer::RangeDeleted { revision: 3, removed: removed.to_vec() };
        Story::default().tell((0, 1), two(10), transacted(2, &[])).tell(
            (2, 3),
            Request::DeleteRange(BOTH),
            answer,
        )
    };
    read_both(deleted(&both), (4, 5), 3, &[]).passes();
    is!(read_both(deleted(&both), (4, 5), 3, &both[1..]).violation(), Violation::Contradicted { .. });
    is!(read_both(deleted(&both[..1]), (4, 5), 3, &[]).violation(), Violation::Missing { .. });
}

#[test]
fn a_hidden_revision_of_several_keys_is_explained_by_one_request_alone() {
    let gone = |request| {
        let story = Story::default().tell((0, 1), two(10), transacted(2, &[]));
        read_both(story.fails(2, request, Outcome::Unknown), (4, 5), 3, &[])
    };
    gone(Request::DeleteRange(BOTH)).passes();
    is!(gone(DELETE).violation(), Violation::Missing { key: Key(1), .. });
    is!(gone(Request::DeleteRange(Span::one(Key(1)))).violation(), Violation::Missing { key: KEY, .. });
    // Two requests, each of one key, cannot share a revision.
    let apart = Story::default()
        .tell((0, 1), two(10), transacted(2, &[]))
        .fails(2, DELETE, Outcome::Unknown)
        .fails(2, Request::Delete { key: Key(1) }, Outcome::Unknown);
    is!(read_both(apart, (4, 5), 3, &[]).violation(), Violation::Unexplained { .. });
}

#[test]
fn an_answer_that_fits_no_request_is_found() {
    let stories = [
        Story::default().tell((0, 1), put(10), Answer::Deleted { revision: 2, existed: true }),
        Story::default().put((5, 4), 10, 2),
        Story::default().get((0, 1), 0, &[]),
        Story::default().tell(
            (0, 1),
            Request::get(KEY, Freshness::At(2)),
            Answer::Read { revision: 1, found: Vec::new() },
        ),
    ];
    for story in stories {
        is!(story.violation(), Violation::Malformed { .. });
    }
    let shared = Story::default().put((0, 1), 10, 2).fails(0, put(10), Outcome::Unknown);
    is!(shared.violation(), Violation::TokenShared { .. });
}

#[test]
fn an_answer_from_before_the_first_request_is_found() {
    let change = check(&Story::default().put((0, 1), 10, 1).history());
    assert!(matches!(change.violations[0], Violation::Malformed { .. }), "{change:?}");
    is!(Story::default().look((0, 1), 0, &[]).violation(), Violation::Malformed { .. });
}

#[test]
fn a_violation_names_both_sides() {
    let story = Story::default().put((0, 1), 10, 2).get((2, 3), 1, &[]);
    let text = story.violation().to_string();
    for part in
        ["operation 0 of client 0 on node 0", "put 0=10", "operation 1 of client 1", "read 0 called at 2"]
    {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

#[test]
fn far_away_revisions_cost_nothing() {
    let report = check(&Story::default().put((0, 1), 10, i64::MAX).history());
    assert!(matches!(report.violations[..], [Violation::Unexplained { .. }]));
}

fn shape(operations: usize, clients: u32, keys: u32) -> store::Shape {
    store::Shape {
        operations,
        clients,
        keys,
        nodes: 2,
        unknown_percent: 15,
        final_read: false,
        old_reads: false,
    }
}

#[test]
fn what_a_correct_store_does_is_never_refused() {
    for seed in 0..300 {
        let history = store::history(seed, store::Shape { final_read: true, ..shape(400, 8, 6) });
        let report = check(&history);
        assert!(report.is_linearizable(), "seed {seed}: {:#?}", report.violations.first());
    }
}

/// A search among hidden requests that went astray would take for ever.
#[test]
fn many_unknown_outcomes_are_decided() {
    for seed in 0..10 {
        let shape = store::Shape { final_read: true, unknown_percent: 20, ..shape(1_500, 16, 8) };
        let history = store::history(seed, shape);
        let report = check(&history);
        assert!(report.hidden > 30, "seed {seed}: {} hidden", report.hidden);
        assert!(report.is_linearizable(), "seed {seed}: {:#?}", report.violations.first());
    }
}

/// Where every old state is read there is nothing to guess, however much is unknown.
#[test]
fn old_states_decide_whatever_is_unknown() {
    for seed in 0..3 {
        let pinned = store::Shape { final_read: true, old_reads: true, ..shape(1_500, 32, 32) };
        let history = store::history(seed, store::Shape { unknown_percent: 50, ..pinned });
        let report = check(&history);
        assert!(report.hidden > 10, "seed {seed}: {} hidden", report.hidden);
        assert!(report.is_linearizable(), "seed {seed}: {:#?}", report.violations.first());
    }
}

#[test]
fn small_histories_are_judged_as_an_exhaustive_search_judges_them() {
    let (mut wrong, mut right) = (0, 0);
    for seed in 0..60_000 {
        let mut random = StdRng::seed_from_u64(seed);
        let small = shape(2 + usize::try_from(seed % 7).unwrap(), 3, 1 + u32::try_from(seed % 2).unwrap());
        let mut history = store::history(seed, small);
        let mistake = mistake::make(&mut history, &mut random);
        let report = check(&history);
        let expected = exhaustive::is_linearizable(&history);
        assert!(!report.undecided, "seed {seed}");
        assert_eq!(
            report.is_linearizable(),
            expected,
            "seed {seed}, mistake {mistake:?}: {:#?}\n{history:#?}",
            report.violations
        );
        if expected { right += 1 } else { wrong += 1 }
    }
    assert!(wrong > 10_000 && right > 10_000, "{wrong} wrong, {right} right");
}

#[test]
fn a_mistake_in_a_long_history_without_unknown_outcomes_is_caught() {
    let mut made = 0;
    for seed in 0..1_500 {
        let mut random = StdRng::seed_from_u64(seed);
        let shape = store::Shape { final_read: true, unknown_percent: 0, ..shape(150, 6, 4) };
        let mut history = store::history(seed, shape);
        let mistake = mistake::make(&mut history, &mut random);
        let Some(mistake) = mistake.filter(|mistake| mistake.is_certain) else { continue };
        made += 1;
        assert!(!check(&history).violations.is_empty(), "seed {seed}: {mistake:?}");
    }
    assert!(made > 300, "{made} mistakes");
}
