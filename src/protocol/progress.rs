//! What a leader knows of one follower.
//!
//! ```text
//!            report: log reaches back to its commit
//!   ┌────────────────────────────────────────────────┐
//!   ▼                                                │
//! Stream ──report: log no longer reaches back──▶ Snapshot
//! ```
//!
//! Only nodes outside the set are ever sent a snapshot: whoever is counted on holds all that is committed.

use super::Millis;
use super::damping::Lag;
use crate::view::{Incarnation, Index};

/// How the leader serves one follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Entries flow as they come.
    Stream,
    /// It gets a snapshot first, and reports when it has it.
    Snapshot,
}

/// What the leader knows of one follower, in sync or joining.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Progress {
    /// The data directory that this knowledge is about.
    pub incarnation: Incarnation,
    /// How it is served.
    pub phase: Phase,
    /// Durable there and the same as ours.
    pub matched: Index,
    /// The next entry to send.
    pub next: Index,
    /// The commit index it was last told.
    pub(super) told_commit: Index,
    /// When it last took entries or a heartbeat from us under our view.
    pub(super) answered_at: Millis,
    /// When we sent the newest `Append` that it has surely obeyed under our view; no pause of ours is forgiven here (R17).
    pub(super) obeyed: Option<Millis>,
    /// How much it holds up the writes (R36).
    pub(super) lag: Lag,
    /// Since when our disk holds entries that its disk does not, without its having taken any.
    pub(super) owing_since: Option<Millis>,
    /// Its disk is nearly full (R25).
    pub(super) full: bool,
    /// Since when that is so.
    pub(super) full_since: Option<Millis>,
    /// The disk that its data lies on; zero where it is not known.
    pub(super) disk: u64,
    /// What was committed when the present round began, and when that was: a round ends when the node has reached it.
    pub(super) round: (Millis, Index),
    /// The last round was short enough for writers to wait for the next.
    pub(super) quick: bool,
    /// Since when it is in sync without a break, as far as this leader knows.
    pub(super) in_sync_since: Option<Millis>,
}

impl Progress {
    /// Nothing is known yet; entries go out from `next`. Everyone gets the time of one silence to answer.
    pub(super) fn new(incarnation: Incarnation, next: Index, now: Millis, commit: Index) -> Progress {
        Progress {
            incarnation,
            phase: Phase::Stream,
            matched: Index(0),
            next,
            told_commit: Index(0),
            answered_at: now,
            owing_since: None,
            full: false,
            full_since: None,
            disk: 0,
            obeyed: None,
            lag: Lag::default(),
            round: (now, commit),
            quick: false,
            in_sync_since: None,
        }
    }

    /// We did not run for that long, and nobody could answer.
    pub(super) fn forgive(&mut self, slept: Millis, now: Millis) {
        self.answered_at = (self.answered_at + slept).min(now);
        self.owing_since = self.owing_since.map(|since| (since + slept).min(now));
        self.full_since = self.full_since.map(|since| (since + slept).min(now));
        self.lag.forgive(slept, now);
    }
}
