//! Committed entries, carried out in their order. What is light is done at once, on the thread of the protocol; what is
//! not is done by a worker, in pieces, while acknowledgements, heartbeats and views go on (R35). Entries behind it wait.
//!
//! An entry that cannot be read or carried out is the same refusal on every node (R33): it changes nothing, is logged and
//! counted, and the node goes on. So is one that an operator has ordered to be stepped over (`skip`).

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLockWriteGuard;
use tokio::time::Instant;

use super::Engine;
use crate::kv::{self, Backend as _, Refusal};
use crate::node::event::Outcome;
use crate::node::handle::StateStore;
use crate::node::hands::Hands;
use crate::node::link::ENTRIES_BYTES;
use crate::node::log::{Position, Record, decode};
use crate::node::snapshot::{APPLIED, encode_position};
use crate::node::work::{ApplyDone, ApplyJob, note_applying};
use crate::proto::replcluster::Mutation;
use crate::rules::{Rule, breaks};

/// Light entries applied in one turn, so that a long replay does not stop the heartbeats: each may look at some hundred
/// keys.
const TURN_APPLY: u64 = 1024;
/// Bytes of entries applied in one turn.
const TURN_BYTES: usize = 4 << 20;
/// Refused entries are logged so often; the others are counted.
const SAY_EVERY: Duration = Duration::from_secs(1);

/// What the apply of this node is doing.
#[derive(Default)]
pub(super) struct Applying {
    /// Numbers the works given to the worker.
    last_number: u64,
    /// What the worker carries out.
    heavy: Option<Heavy>,
    /// When a refused entry was last logged, and how many were not since.
    said: Option<(Instant, u64)>,
}

struct Heavy {
    number: u64,
    /// The request of an own client.
    sequence: Option<u64>,
}

impl Applying {
    /// A change is half done, or may be any moment.
    pub(super) fn is_heavy(&self) -> bool {
        self.heavy.is_some()
    }

    /// What the worker does is of a state that is gone.
    pub(super) fn abandon(&mut self) {
        self.heavy = None;
    }
}

/// What becomes of an entry at once.
enum Now {
    /// Applied, or refused.
    Done(Option<Result<kv::Applied, Refusal>>),
    /// It is work for the worker.
    Heavy(Mutation),
}

impl<H: Hands> Engine<H> {
    /// True where a turn would apply something although nothing has come in.
    pub(super) fn can_apply(&self) -> bool {
        self.applied.index < self.commit && !self.applying.is_heavy()
    }

    pub(super) fn apply(&mut self) {
        if !self.can_apply() || self.turn_entries >= TURN_APPLY || self.turn_bytes >= TURN_BYTES {
            return;
        }
        let shared = self.shared.clone();
        let Some(mut store) = shared.store_soon() else {
            return; // locked by others for long: the next turn tries again
        };
        let mut answers = Vec::new();
        let mut failed = None;
        let mut heavy = None;
        while self.applied.index < self.commit && heavy.is_none() && failed.is_none() {
            let chunk = match self.recent.read(self.applied.index.next(), ENTRIES_BYTES) {
                Ok(Some(chunk)) => chunk,
                Ok(None) => {
                    failed = Some("the log ends before its commit index".to_owned());
                    break;
                }
                Err(error) => {
                    failed = Some(format!("cannot read the log: {error}"));
                    break;
                }
            };
            let mut frames = chunk.frames;
            while self.applied.index < self.commit {
                if self.turn_entries >= TURN_APPLY || self.turn_bytes >= TURN_BYTES {
                    break;
                }
                let Ok(Some((record, chain))) = decode(&mut frames) else { break };
                self.turn_entries += 1;
                self.turn_bytes += record.payload.len();
                let position = Position { index: record.index, epoch: record.epoch, chain };
                let own = record.origin == self.requests.origin();
                match self.apply_now(&mut store, &record, position, own) {
                    Ok(Now::Done(outcome)) => {
                        self.applied = position;
                        if let Some(outcome) = outcome
                            && own
                        {
                            answers.push((record.sequence, Ok(outcome)));
                        }
                    }
                    Ok(Now::Heavy(mutation)) => {
                        heavy = Some((position, own.then_some(record.sequence), mutation));
                        break;
                    }
                    Err(why) => {
                        failed = Some(why);
                        break;
                    }
                }
            }
            if self.turn_entries >= TURN_APPLY || self.turn_bytes >= TURN_BYTES {
                break;
            }
        }
        store.backend_mut().put_meta(APPLIED, encode_position(self.applied));
        self.compacting = true;
        self.publish_state(&store);
        // Where one heavy entry follows the other, the state is whole at no other time.
        let flush = if heavy.is_some() { self.begin_due_flush(&mut store) } else { None };
        RwLockWriteGuard::unlock_fair(store);
        self.run_flush(flush);
        self.applied_more(answers);
        if let Some((position, sequence, mutation)) = heavy {
            self.hand_to_worker(position, sequence, mutation);
        }
        if let Some(why) = failed {
            self.fail(why);
        }
    }

    /// `Done(None)` for an entry without an answer: one that opens an epoch, or is stepped over.
    fn apply_now(
        &mut self,
        store: &mut StateStore,
        record: &Record,
        position: Position,
        own: bool,
    ) -> Result<Now, String> {
        if record.payload.is_empty() {
            return Ok(Now::Done(None));
        }
        if self.skips.contain(position) {
            tracing::warn!("entry {} is stepped over, as an operator has ordered", position.index);
            return Ok(Now::Done(None));
        }
        if self.options.feature_level == 0 {
            self.old_build_decodes(&record.payload)?;
        }
        let mutation = match read(&record.payload, store.feature_level()) {
            Ok(mutation) => mutation,
            Err(refusal) => {
                if breaks(Rule::RefuseUnreadable) {
                    return Err(format!("entry {} cannot be understood: {refusal}", position.index));
                }
                self.refused_entry(position, &record.payload, &refusal);
                return Ok(Now::Done(Some(Err(refusal))));
            }
        };
        if own && breaks(Rule::ApplyTheSame) {
            // Depends on what another node cannot know: who was asked.
            let _ = store.apply(&mutation);
        }
        let every = self.options.apart_every;
        let apart = position.index.0.is_multiple_of(every);
        if apart || store.class_of(&mutation) == kv::Class::Heavy {
            if !breaks(Rule::ApplyApart) {
                return Ok(Now::Heavy(mutation));
            }
            self.shared.heavy_inline.fetch_add(1, Ordering::Relaxed);
        }
        note_applying(Some(position.index));
        // Answers may be large: only the node whose client waits builds one.
        let outcome = store.apply_for(&mutation, own);
        note_applying(None);
        if matches!(outcome, Err(Refusal::EmptyMutation)) {
            self.refused_entry(position, &record.payload, &Refusal::EmptyMutation);
        }
        Ok(Now::Done(Some(outcome)))
    }

    /// A build of level 0 ends where the generated decoder cannot read an entry. For tests of mixed clusters.
    fn old_build_decodes(&self, payload: &Bytes) -> Result<(), String> {
        use prost::Message as _;
        Mutation::decode(payload.clone()).map(drop).map_err(|error| format!("an older build ends: {error}"))
    }

    /// The same on every node, and no reason to end: logged and counted.
    fn refused_entry(&mut self, position: Position, payload: &Bytes, refusal: &Refusal) {
        self.shared.refused_entries.fetch_add(1, Ordering::Relaxed);
        let unsaid = match self.applying.said {
            Some((at, unsaid)) if self.now.duration_since(at) < SAY_EVERY => {
                self.applying.said = Some((at, unsaid + 1));
                return;
            }
            Some((_, unsaid)) => unsaid,
            None => 0,
        };
        self.applying.said = Some((self.now, 0));
        tracing::error!(
            "entry {} of epoch {}, {} bytes, is refused on every node: {refusal} (and {unsaid} more since this was last logged)",
            position.index,
            position.epoch,
            payload.len()
        );
    }

    // --- the worker ---

    fn hand_to_worker(&mut self, position: Position, sequence: Option<u64>, mutation: Mutation) {
        self.applying.last_number += 1;
        let number = self.applying.last_number;
        // Answers may be large: only the node whose client waits builds one.
        let want_answer = sequence.is_some_and(|sequence| self.requests.is_waiting(sequence));
        self.shared.working.store(number, Ordering::Release);
        self.applying.heavy = Some(Heavy { number, sequence });
        let units = self.options.piece_units;
        self.hands.apply(ApplyJob::new(self.shared.clone(), number, position, mutation, want_answer, units));
    }

    pub(super) fn worker_done(&mut self, done: ApplyDone) {
        let Some(heavy) = self.applying.heavy.take_if(|heavy| heavy.number == done.number) else { return };
        let Some(outcome) = done.outcome else { return };
        self.applied = done.position;
        self.compacting = true;
        let answers = heavy.sequence.map(|sequence| (sequence, Ok(outcome)));
        self.applied_more(answers.into_iter().collect());
        // Reads have waited for it.
        self.shared.changed.send_modify(|count| *count += 1);
        self.apply();
    }

    /// What is applied is published, and who waited for it is answered.
    fn applied_more(&mut self, answers: Vec<(u64, Outcome)>) {
        self.shared.applied.store(self.applied.index.0, Ordering::Release);
        self.recent.applied(self.applied.index);
        for (sequence, outcome) in answers {
            let answer = self.requests.applied(sequence);
            self.held_back.extend(answer.map(|answer| (answer, outcome)));
        }
        self.release();
        self.reads.reached(self.applied.index);
    }

    /// What others see of the state, as soon as it is so.
    pub(super) fn publish_state(&mut self, store: &StateStore) {
        self.shared.publish_state(store);
        let level = store.feature_level();
        if self.shared.feature_level.swap(level, Ordering::AcqRel) < level {
            self.ensure_secret();
        }
    }

    /// The next turn may apply as much again.
    pub(super) fn begin_applying(&mut self) {
        self.turn_entries = 0;
        self.turn_bytes = 0;
    }

    /// What a build with the test switch does wrong: it applies, and so acknowledges, entries that only it holds.
    pub(super) fn apply_early(&mut self) {
        let commit = self.commit;
        self.commit = self.tail.index;
        self.apply();
        self.commit = self.commit.max(commit);
    }
}

/// By the decoder that bounds what it builds, at the level that the state has where the entry stands.
fn read(payload: &Bytes, level: u32) -> Result<Mutation, Refusal> {
    kv::decode(payload, level)
}

/// An entry that a start would refuse, for who looks at a log.
#[must_use]
pub fn refusal_of(payload: &Bytes, level: u32) -> Option<Refusal> {
    match read(payload, level) {
        Ok(Mutation { request: Some(_) }) => None,
        Ok(Mutation { request: None }) if payload.is_empty() => None,
        Ok(Mutation { request: None }) => Some(Refusal::EmptyMutation),
        Err(refusal) => Some(refusal),
    }
}
