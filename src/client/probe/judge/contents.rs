//! Compares what a replica holds with what was acknowledged. What differs is lost only where the store's own history
//! has no other explanation: a later revision of another client, or a compaction that took the history away.

use std::collections::BTreeMap;

use super::super::history::{Attempt, Ending, Found, History, Outcome, Past, Replica, WriteId};
use super::Violations;
use crate::rules::{Rule, breaks};

/// What the comparison found.
pub(super) struct Contents {
    /// Acknowledged writes that are missing or wrong, with nothing that explains it.
    pub lost: u64,
    /// What other clients did meanwhile.
    pub overtaken: Overtaken,
}

/// What is not as the load left it, and is no fault of the store as far as can be seen.
#[derive(Default)]
pub(super) struct Overtaken {
    /// Acknowledged writes that stood at their revisions; later ones removed or rewrote them.
    ended: u64,
    /// Acknowledged writes whose revisions were compacted away, and up to which revision.
    compacted: Option<(u64, i64)>,
    /// Acknowledged writes whose revisions could not be read, and why.
    unread: Option<(u64, String)>,
    /// Keys with values that the load never wrote.
    strange: u64,
}

impl Overtaken {
    /// How many acknowledged writes are not there as they were acknowledged.
    pub fn writes(&self) -> u64 {
        self.ended
            + self.compacted.as_ref().map_or(0, |(count, _)| *count)
            + self.unread.as_ref().map_or(0, |(count, _)| *count)
    }

    fn note(&mut self, past: &Past) {
        match past {
            Past::Stood => self.ended += 1,
            Past::NeverStood => {}
            Past::Compacted { up_to } => self.compacted.get_or_insert((0, *up_to)).0 += 1,
            Past::Unread(why) => self.unread.get_or_insert_with(|| (0, why.clone())).0 += 1,
        }
    }

    /// What was seen, in one sentence; `None` where nothing disturbed the load.
    pub fn sentence(&self, history: &History, ending: Option<&Ending>) -> Option<String> {
        let mut seen = Vec::new();
        if self.ended > 0 {
            let example = ending.map_or(String::new(), |ending| {
                let key = String::from_utf8_lossy(&history.key(ending.id)).into_owned();
                let how = if ending.deleted { "deleted" } else { "rewritten" };
                format!(
                    ": {key} stood at revision {} and was {how} at revision {}",
                    ending.stood_at, ending.ended_at
                )
            });
            let writes = counted(self.ended, "acknowledged write");
            seen.push(format!("later revisions of another client removed or rewrote {writes}{example}"));
        }
        if let Some((count, up_to)) = &self.compacted {
            seen.push(format!(
                "{} may have been removed by another client: their history was compacted away up to revision {up_to}",
                counted(*count, "acknowledged write")
            ));
        }
        if let Some((count, why)) = &self.unread {
            seen.push(format!(
                "the history of {} could not be read: {why}",
                counted(*count, "acknowledged write")
            ));
        }
        if self.strange > 0 {
            let prefix = String::from_utf8_lossy(&history.prefix);
            seen.push(format!("another client wrote {} below {prefix}", counted(self.strange, "key")));
        }
        (!seen.is_empty()).then(|| seen.join("; "))
    }
}

fn counted(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// The acknowledged writes that a replica does not show as they were acknowledged, with their revisions: what became of
/// them stands in the store's history.
pub(in super::super) fn in_doubt(history: &History, replica: &Replica) -> Vec<(WriteId, i64)> {
    let there: BTreeMap<&[u8], &Found> = replica.found.iter().map(|found| (&found.key[..], found)).collect();
    history
        .acknowledgements()
        .filter(|(attempt, revision, _)| {
            let found = there.get(&history.key(attempt.id)[..]);
            !found.is_some_and(|found| {
                found.mod_revision == *revision && found.value == history.value(attempt.id)
            })
        })
        .map(|(attempt, revision, _)| (attempt.id, revision))
        .collect()
}

/// Compares; `past` is what the history says of the writes in doubt. One that it says nothing of is not excused.
pub(super) fn check(
    history: &History,
    replica: &Replica,
    past: &BTreeMap<WriteId, Past>,
    violations: &mut Violations,
) -> Contents {
    let found = &replica.found;
    one_revision_each(history, found, violations);
    let mut there: BTreeMap<&[u8], &Found> = found.iter().map(|found| (&found.key[..], found)).collect();
    let mut contents = Contents { lost: 0, overtaken: Overtaken::default() };
    for attempt in &history.attempts {
        let found = there.remove(&history.key(attempt.id)[..]);
        let past = past.get(&attempt.id).filter(|_| !breaks(Rule::LookBack)).unwrap_or(&Past::NeverStood);
        check_one(history, replica, (attempt, found, past), &mut contents, violations);
    }
    for (key, found) in there {
        if history.is_own_value(&found.value) {
            let key = String::from_utf8_lossy(key);
            violations.add(format!("{} holds {key}, which nobody wrote", replica.endpoint));
        } else {
            contents.overtaken.strange += 1;
        }
    }
    contents
}

/// A transaction of another client may write several keys at one revision; the load never does.
fn one_revision_each(history: &History, found: &[Found], violations: &mut Violations) {
    let mut owner: BTreeMap<i64, &[u8]> = BTreeMap::new();
    for found in found.iter().filter(|found| history.is_own_value(&found.value)) {
        if let Some(other) = owner.insert(found.mod_revision, &found.key) {
            let (one, two) = (String::from_utf8_lossy(other), String::from_utf8_lossy(&found.key));
            violations.add(format!("{one} and {two} were both written at revision {}", found.mod_revision));
        }
    }
}

fn check_one(
    history: &History,
    replica: &Replica,
    (attempt, found, past): (&Attempt, Option<&Found>, &Past),
    contents: &mut Contents,
    violations: &mut Violations,
) {
    let Attempt { id, outcome, .. } = *attempt;
    let endpoint = &replica.endpoint;
    let Some(found) = found else {
        if let Outcome::Acknowledged { revision, .. } = outcome {
            contents.overtaken.note(past);
            if *past == Past::NeverStood {
                contents.lost += 1;
                violations.add(format!(
                    "{id} was acknowledged at revision {revision} and is missing on {endpoint}"
                ));
            }
        }
        return;
    };
    let is_own = found.value == history.value(id);
    if is_own && (found.version != 1 || found.create_revision != found.mod_revision) {
        violations.add(format!("{id} was sent once and carried out {} times", found.version));
    }
    if !is_own && history.is_own_value(&found.value) {
        violations.add(format!("{endpoint} holds a value for {id} that was written under another key"));
    }
    match outcome {
        Outcome::Acknowledged { revision, .. } if is_own && found.mod_revision == revision => {}
        Outcome::Acknowledged { revision, .. } => {
            match past {
                Past::NeverStood => {
                    contents.lost += 1;
                    violations.add(format!(
                        "{id} was acknowledged at revision {revision} and {endpoint} holds another value or revision ({})",
                        found.mod_revision
                    ));
                }
                Past::Stood if is_own => {
                    violations.add(format!(
                        "{id} was acknowledged at revision {revision} and was carried out again at revision {}",
                        found.mod_revision
                    ));
                }
                Past::Stood | Past::Compacted { .. } | Past::Unread(_) => {}
            }
            contents.overtaken.note(past);
        }
        Outcome::NotDone { .. } if is_own => {
            violations
                .add(format!("{id} was refused, yet {endpoint} holds it at revision {}", found.mod_revision));
        }
        Outcome::Indeterminate { .. } if is_own => {}
        Outcome::Indeterminate { .. } | Outcome::NotDone { .. } => contents.overtaken.strange += 1,
    }
}
