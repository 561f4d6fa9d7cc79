//! A history as JSON, for whoever looks into a violation: one object an operation.

use serde::Serialize;

use crate::check::{Answer, Found, Freshness, History, Operation, Outcome, Request, Span};

/// Everything needed to look into a run and to repeat its decisions.
#[derive(Debug, Serialize)]
pub(super) struct Record<'h> {
    seed: u64,
    /// Operations name them by their place here.
    nodes: &'h [String],
    first_revision: i64,
    /// Times are nanoseconds since the beginning.
    operations: Vec<Line>,
}

#[derive(Debug, Serialize)]
struct Line {
    client: u32,
    node: u32,
    session: u64,
    called: u64,
    #[serde(flatten)]
    request: Asked,
    outcome: &'static str,
    #[serde(flatten)]
    answer: Option<Answered>,
}

#[derive(Debug, Serialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
enum Asked {
    Put {
        key: u32,
        value: u64,
    },
    Delete {
        key: u32,
    },
    CompareAndPut {
        key: u32,
        expected_mod_revision: i64,
        value: u64,
    },
    DeleteRange {
        first: u32,
        last: u32,
    },
    Transaction {
        #[serde(skip_serializing_if = "Option::is_none")]
        expected: Option<(u32, i64)>,
        reads: (u32, u32),
        #[serde(skip_serializing_if = "Option::is_none")]
        removes: Option<(u32, u32)>,
        sets: Vec<(u32, u64)>,
    },
    Compact {
        at: i64,
    },
    Read {
        first: u32,
        last: u32,
    },
    SerializableRead {
        first: u32,
        last: u32,
    },
    ReadAt {
        first: u32,
        last: u32,
        at: i64,
    },
}

#[derive(Debug, Serialize)]
struct Answered {
    returned: u64,
    revision: i64,
    /// A delete removed something, a comparison held.
    #[serde(skip_serializing_if = "Option::is_none")]
    changed: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    found: Option<Vec<Seen>>,
}

#[derive(Debug, Serialize)]
struct Seen {
    key: u32,
    value: u64,
    create_revision: i64,
    mod_revision: i64,
    version: i64,
}

impl<'h> Record<'h> {
    /// The history of a run.
    pub(super) fn new(seed: u64, nodes: &'h [String], history: &History) -> Record<'h> {
        let operations = history.operations.iter().map(line).collect();
        Record { seed, nodes, first_revision: history.first_revision, operations }
    }
}

fn line(operation: &Operation) -> Line {
    let request = match operation.request {
        Request::Put { key, value } => Asked::Put { key: key.0, value: value.0 },
        Request::Delete { key } => Asked::Delete { key: key.0 },
        Request::CompareAndPut { key, expected_mod_revision, value } => {
            Asked::CompareAndPut { key: key.0, expected_mod_revision, value: value.0 }
        }
        Request::DeleteRange(Span { first, last }) => Asked::DeleteRange { first: first.0, last: last.0 },
        Request::Transaction(asked) => {
            let ends = |span: Span| (span.first.0, span.last.0);
            Asked::Transaction {
                expected: asked.expected.map(|(key, revision)| (key.0, revision)),
                reads: ends(asked.reads),
                removes: asked.removes.map(ends),
                sets: asked.sets.iter().map(|(key, value)| (key.0, value.0)).collect(),
            }
        }
        Request::Compact { revision } => Asked::Compact { at: revision },
        Request::Read { first, last, freshness } => {
            let (first, last) = (first.0, last.0);
            match freshness {
                Freshness::Linearizable => Asked::Read { first, last },
                Freshness::Serializable => Asked::SerializableRead { first, last },
                Freshness::At(at) => Asked::ReadAt { first, last, at },
            }
        }
    };
    let (outcome, answer) = match &operation.outcome {
        Outcome::Done { returned, answer } => ("done", Some(answered(*returned, answer))),
        Outcome::Refused => ("refused", None),
        Outcome::Gone { .. } => ("compacted", None),
        Outcome::Unknown => ("unknown", None),
    };
    let Operation { client, node, session, called, .. } = *operation;
    Line { client, node, session, called, request, outcome, answer }
}

fn answered(returned: u64, answer: &Answer) -> Answered {
    let seen = |found: &Vec<Found>| Some(found.iter().map(seen).collect());
    let (changed, found) = match answer {
        Answer::Written { .. } | Answer::Compacted { .. } => (None, None),
        Answer::Deleted { existed, .. } => (Some(*existed), None),
        Answer::Compared { succeeded, .. } => (Some(*succeeded), None),
        Answer::RangeDeleted { removed, .. } => (Some(!removed.is_empty()), seen(removed)),
        Answer::Transacted { succeeded, met, .. } => (Some(*succeeded), seen(met)),
        Answer::Read { found, .. } => (None, seen(found)),
    };
    Answered { returned, revision: answer.revision(), changed, found }
}

fn seen(found: &Found) -> Seen {
    let Found { key, value, create_revision, mod_revision, version } = *found;
    Seen { key: key.0, value: value.0, create_revision, mod_revision, version }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Key, Token};

    #[test]
    fn an_operation_is_one_flat_object() {
        let operation = Operation {
            client: 1,
            node: 2,
            session: 3,
            called: 4,
            request: Request::get(Key(5), Freshness::At(6)),
            outcome: Outcome::Done {
                returned: 7,
                answer: Answer::Read {
                    revision: 8,
                    found: vec![Found {
                        key: Key(5),
                        value: Token(9),
                        create_revision: 2,
                        mod_revision: 6,
                        version: 2,
                    }],
                },
            },
        };
        let history = History { first_revision: 1, operations: vec![operation] };
        let json = serde_json::to_value(Record::new(10, &["a:1".to_owned()], &history)).unwrap();
        assert_eq!(json["operations"][0]["request"], "read-at");
        assert_eq!(json["operations"][0]["found"][0]["mod_revision"], 6);
        assert_eq!((&json["operations"][0]["outcome"], &json["seed"]), (&"done".into(), &10.into()));
    }
}
