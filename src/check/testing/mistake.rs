//! One mistake, put into a history at random: the kind that a broken store would make. Some change nothing that
//! anyone could notice; who puts it there must find out which.

use rand::RngExt;
use rand::rngs::StdRng;

use super::{Answer, Found, Freshness, History, Outcome, Request, Token};

/// A mistake that was made.
#[derive(Clone, Debug)]
pub(in crate::check) struct Mistake {
    /// Where and what, in words.
    #[expect(dead_code, reason = "printed by a test that fails")]
    pub text: String,
    /// No order can explain it, if no request is of unknown outcome.
    pub is_certain: bool,
}

/// Changes one fact. None where the kind chosen finds nothing to change.
pub(in crate::check) fn make(history: &mut History, random: &mut StdRng) -> Option<Mistake> {
    if history.operations.is_empty() {
        return None;
    }
    let index = random.random_range(0..history.operations.len());
    let other = random.random_range(0..history.operations.len());
    let step = if random.random_bool(0.5) { 1 } else { -1 };
    let kind = random.random_range(0..9);
    let has_changed = history.operations[index].has_changed();
    let what = match kind {
        0 => {
            *revision(history, index)? += step;
            "another revision in the header"
        }
        1 => {
            let theirs = *revision(history, other)?;
            let mine = revision(history, index)?;
            if *mine == theirs {
                return None;
            }
            *mine = theirs;
            "the revision of another operation"
        }
        2 => found(history, index, random)
            .map(|found| match step {
                1 => found.version += 1,
                _ => found.create_revision -= 1,
            })
            .map(|()| "another version or create revision")?,
        3 => found(history, index, random)
            .map(|found| found.mod_revision += step)
            .map(|()| "another mod revision")?,
        4 => {
            let (_, token) = history.operations[other].request.sets().next()?;
            let found = found(history, index, random)?;
            if found.value == token {
                return None;
            }
            found.value = token;
            "the value of another operation"
        }
        5 => {
            let key = history.operations[index].request.reads()?.first;
            let old = Found { key, value: Token(1), create_revision: 2, mod_revision: 2, version: 1 };
            let found = all_found(&mut history.operations[index].outcome)?;
            if found.is_empty() {
                found.push(old);
            } else {
                found.remove(random.random_range(0..found.len()));
            }
            "a key more or less"
        }
        6 => match &mut history.operations[index].outcome {
            Outcome::Done { answer: Answer::Compared { succeeded: yes, .. }, .. }
            | Outcome::Done { answer: Answer::Transacted { succeeded: yes, .. }, .. }
            | Outcome::Done { answer: Answer::Deleted { existed: yes, .. }, .. } => {
                *yes = !*yes;
                "the other outcome"
            }
            Outcome::Done { .. } | Outcome::Refused | Outcome::Gone { .. } | Outcome::Unknown => return None,
        },
        7 => {
            history.operations[index].outcome = Outcome::Refused;
            "refused"
        }
        _ => {
            // As if it had been asked for after the other returned.
            let (returned, _) = history.operations[other].answer()?;
            let operation = &mut history.operations[index];
            if operation.called > returned || is_serializable(&operation.request) {
                return None;
            }
            operation.called = returned + 1;
            if let Outcome::Done { returned: mine, .. } = &mut operation.outcome {
                *mine = (returned + 1).max(*mine);
            }
            "called later"
        }
    };
    let is_certain = match kind {
        0 | 1 | 7 => has_changed,
        8 => false,
        _ => true,
    };
    Some(Mistake { text: format!("operation {index}: {what}"), is_certain })
}

fn is_serializable(request: &Request) -> bool {
    matches!(request, Request::Read { freshness: Freshness::Serializable, .. })
}

fn revision(history: &mut History, index: usize) -> Option<&mut i64> {
    match &mut history.operations[index].outcome {
        Outcome::Done { answer, .. } => Some(match answer {
            Answer::Written { revision }
            | Answer::Deleted { revision, .. }
            | Answer::Compared { revision, .. }
            | Answer::RangeDeleted { revision, .. }
            | Answer::Transacted { revision, .. }
            | Answer::Compacted { revision }
            | Answer::Read { revision, .. } => revision,
        }),
        Outcome::Refused | Outcome::Gone { .. } | Outcome::Unknown => None,
    }
}

fn all_found(outcome: &mut Outcome) -> Option<&mut Vec<Found>> {
    match outcome {
        Outcome::Done { answer, .. } => match answer {
            Answer::Read { found, .. }
            | Answer::RangeDeleted { removed: found, .. }
            | Answer::Transacted { met: found, .. } => Some(found),
            Answer::Written { .. }
            | Answer::Deleted { .. }
            | Answer::Compared { .. }
            | Answer::Compacted { .. } => None,
        },
        Outcome::Refused | Outcome::Gone { .. } | Outcome::Unknown => None,
    }
}

fn found<'h>(history: &'h mut History, index: usize, random: &mut StdRng) -> Option<&'h mut Found> {
    let found = all_found(&mut history.operations[index].outcome).filter(|found| !found.is_empty())?;
    let place = random.random_range(0..found.len());
    found.get_mut(place)
}
