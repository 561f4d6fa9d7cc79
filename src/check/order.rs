//! Does the order by revision keep real time? What each revision did is not asked here.
//!
//! Sweep over calls and returns by time, with the greatest revision that has returned so far: a request called now
//! stands behind it. So a change needs a greater revision and anything else one that is not smaller. Serializable
//! reads prove that their revision exists, like every answer; what they may show themselves is bounded only by what
//! the same process of the same node has shown.

use std::collections::BTreeMap;

use super::facts::Facts;
use super::{Freshness, History, NAMED_OF_A_KIND, Operation, Request, Side, Violation};

/// One operation with a place in the order.
#[derive(Clone, Copy, Debug)]
struct Placed {
    index: usize,
    called: u64,
    /// None where no answer came: its place is known because others saw what it did.
    returned: Option<u64>,
    revision: i64,
    is_change: bool,
}

/// Checks the order of everything, then of what each process of a node showed.
pub(super) fn check(history: &History, facts: &Facts, violations: &mut Vec<Violation>) {
    let placed = place(history, facts);
    let before = violations.len();
    sweep(history.first_revision, &placed, |known, late| {
        let operation = &history.operations[late.index];
        if violations.len() - before < NAMED_OF_A_KIND && !is_serializable(&operation.request) {
            let later = Side::of(history, late.index);
            violations.push(match known {
                Some(known) => {
                    let earlier = Side::of(history, known.index);
                    if late.returned.is_none() {
                        Violation::BeforeItsCall { witness: earlier, request: later }
                    } else if late.is_change {
                        Violation::OrderBroken { earlier, later }
                    } else {
                        Violation::Stale { earlier, later }
                    }
                }
                None => Violation::Malformed {
                    operation: later,
                    why: "its revision existed before the first request",
                },
            });
        }
    });
    let before = violations.len();
    for shown in by_process(history, &placed) {
        sweep(i64::MIN, &shown, |known, late| {
            // The sweep above has named all others.
            let is_serializable = is_serializable(&history.operations[late.index].request);
            if let Some(known) = known
                && is_serializable
                && violations.len() - before < NAMED_OF_A_KIND
            {
                let (earlier, later) = (Side::of(history, known.index), Side::of(history, late.index));
                violations.push(Violation::WentBack { earlier, later });
            }
        });
    }
}

/// Calls `refuse` for each operation that stands before what had returned when it was called, together with what
/// had; with none where that is only `floor`.
fn sweep(floor: i64, placed: &[Placed], mut refuse: impl FnMut(Option<Placed>, Placed)) {
    let mut calls = placed.to_vec();
    calls.sort_by_key(|operation| operation.called);
    let mut returns: Vec<(u64, Placed)> =
        placed.iter().filter_map(|operation| Some((operation.returned?, *operation))).collect();
    returns.sort_by_key(|(returned, _)| *returned);
    let mut returns = returns.into_iter().peekable();
    let mut greatest: Option<Placed> = None;
    for call in calls {
        // What returns in the moment of a call may have overlapped it.
        while let Some((_, returned)) = returns.next_if(|(returned, _)| *returned < call.called) {
            if greatest.is_none_or(|greatest| greatest.revision < returned.revision) {
                greatest = Some(returned);
            }
        }
        let known = greatest.filter(|greatest| greatest.revision >= floor);
        let least = known.map_or(floor, |known| known.revision);
        if call.revision < least || (call.is_change && call.revision == least) {
            refuse(known, call);
        }
    }
}

fn place(history: &History, facts: &Facts) -> Vec<Placed> {
    let operations = history.operations.iter().enumerate();
    let place = |(index, operation): (usize, &Operation)| {
        if facts.malformed.contains(&index) {
            return None;
        }
        let called = operation.called;
        match operation.answer() {
            Some((returned, answer)) => {
                let (revision, is_change) = (answer.revision(), operation.has_changed());
                Some(Placed { index, called, returned: Some(returned), revision, is_change })
            }
            None => facts.placed.get(&index).map(|revision| Placed {
                index,
                called,
                returned: None,
                revision: *revision,
                is_change: true,
            }),
        }
    };
    operations.filter_map(place).collect()
}

/// What each process of a node answered.
fn by_process(history: &History, placed: &[Placed]) -> impl Iterator<Item = Vec<Placed>> {
    let mut processes: BTreeMap<(u32, u64), Vec<Placed>> = BTreeMap::new();
    for operation in placed.iter().filter(|operation| operation.returned.is_some()) {
        let Operation { node, session, .. } = history.operations[operation.index];
        processes.entry((node, session)).or_default().push(*operation);
    }
    processes.into_values()
}

fn is_serializable(request: &Request) -> bool {
    match request {
        Request::Read { freshness, .. } => match freshness {
            Freshness::Serializable => true,
            Freshness::Linearizable | Freshness::At(_) => false,
        },
        Request::Put { .. }
        | Request::Delete { .. }
        | Request::CompareAndPut { .. }
        | Request::DeleteRange(_)
        | Request::Transaction(_)
        | Request::Compact { .. } => false,
    }
}
