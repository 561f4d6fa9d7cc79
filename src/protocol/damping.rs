//! Who comes and goes is let in less often (R36).
//!
//! Every time a leader drops a node that lives and yet does not follow, writers have waited for about
//! `failure_timeout`. A node that is frozen again and again would cost that once in each of its rounds. So:
//!
//! * A *strike* is a drop for silence, for not answering under the leader's view, or for lagging (below). A proof of
//!   death, another data directory, a full or hung disk and an operator's wish are none: a restart is never damped, and
//!   a first join never is.
//! * After its first strike a node may join again at once; after strike k it stays a learner for
//!   `failure_timeout` · 4 · 2^(k-2), at most `failure_timeout` · 64. As a learner it goes on taking the log, so that it
//!   has nothing to catch up on when it may join.
//! * Strikes are forgotten once the node has stayed in sync for `failure_timeout` · 200.
//!
//! With `failure_timeout` f a node that freezes for ever costs writers f once in each 65 f, 1.5 %; in the first 50 f it
//! is dropped five times, which is 10 %. A node that was only once silent loses nothing, one that recovers is out for at
//! most 64 f.
//!
//! *Lagging*: a node may speak in time and yet hold up every write, frozen for a little less than `failure_timeout` in
//! every round. Where our disk has held an entry for longer than `failure_timeout` / 2 before this node's disk has it,
//! the time beyond that is owed, at most `failure_timeout` for one wait; time pays back a quarter of itself. A node that
//! owes more than 2 · `failure_timeout` is dropped: it takes at least three such waits close to each other. With each
//! strike that is not forgotten it may owe half as much, down to a quarter. Our own disk
//! is the measure: one disk that all share makes nobody lag. A disk that hangs for good is the business of
//! `stall_timeout`.
//!
//! All this is knowledge of one leadership. A new leader knows of no strikes and counts anew, so a change of leader costs
//! at most the short pauses at the beginning. A damped node is missing from the set as any dropped node is: it is not
//! counted on, and may not lead. Damping never takes a node out, it only lets it in later.

use super::Millis;

/// What a leader remembers of a node's strikes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Strikes {
    count: u32,
    /// It stays a learner until then.
    out_until: Millis,
}

/// Times `failure_timeout`, in the order of the rule above.
const FIRST_PAUSE: Millis = 4;
const LONGEST_PAUSE: Millis = 64;
const MEMORY: Millis = 200;
const OWED_MAX: Millis = 2;

impl Strikes {
    /// It was dropped, after it had been in sync for that long.
    pub(super) fn strike(&mut self, now: Millis, in_sync_for: Millis, failure_timeout: Millis) {
        if in_sync_for > MEMORY * failure_timeout {
            self.count = 0;
        }
        self.count += 1;
        let pause = match self.count {
            1 => 0,
            count => (FIRST_PAUSE << (count - 2).min(16)).min(LONGEST_PAUSE),
        };
        self.out_until = now + pause * failure_timeout;
    }

    /// How often it was dropped of late.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// It may join.
    pub(super) fn are_over(&self, now: Millis) -> bool {
        now >= self.out_until
    }

    /// Until then it may not.
    #[cfg(test)]
    pub(super) fn out_until_mut(&mut self) -> &mut Millis {
        &mut self.out_until
    }
}

/// How much a node holds up the writes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Lag {
    /// What our disk held when it was last compared, and since when the node has owed it.
    owes: Option<(crate::view::Index, Millis)>,
    /// Looked at last.
    at: Option<Millis>,
    /// In quarters of milliseconds.
    owed: Millis,
}

impl Lag {
    /// Looks at the node: our disk holds all up to `ours`, its disk up to `theirs`.
    pub(super) fn note(
        &mut self,
        now: Millis,
        ours: crate::view::Index,
        theirs: crate::view::Index,
        failure_timeout: Millis,
    ) {
        let passed = now - self.at.replace(now).unwrap_or(now);
        self.owed = self.owed.saturating_sub(passed);
        match self.owes {
            Some((mark, _)) if theirs < mark => return,
            Some((_, since)) => {
                let late = (now - since).saturating_sub(failure_timeout / 2).min(failure_timeout);
                self.owed = (self.owed + 4 * late).min(8 * OWED_MAX * failure_timeout);
            }
            None => {}
        }
        self.owes = (theirs < ours).then_some((ours, now));
    }

    /// It holds up too much, for one with so many strikes.
    pub(super) fn is_too_much(&self, strikes: u32, failure_timeout: Millis) -> bool {
        self.owed > (4 * OWED_MAX * failure_timeout) >> strikes.min(2)
    }

    /// We did not run for that long.
    pub(super) fn forgive(&mut self, slept: Millis, now: Millis) {
        self.at = Some(now);
        self.owes = self.owes.map(|(mark, since)| (mark, (since + slept).min(now)));
    }

    /// Nothing is owed.
    pub(super) fn forget(&mut self) {
        *self = Lag::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::Index;

    #[test]
    fn pauses_double_up_to_a_bound_and_are_forgotten() {
        let mut strikes = Strikes::default();
        let mut pauses = Vec::new();
        for _ in 0..9 {
            strikes.strike(1_000, 10, 1);
            pauses.push(strikes.out_until - 1_000);
        }
        assert_eq!(pauses, [0, 4, 8, 16, 32, 64, 64, 64, 64]);
        strikes.strike(1_000, 201, 1);
        assert!(strikes.are_over(1_000));
    }

    /// Frozen for `frozen` of every 300 ms with a timeout of 300 ms, looked at every 12 ms.
    fn dropped_after(frozen: Millis) -> Option<Millis> {
        let (mut lag, mut theirs) = (Lag::default(), Index(0));
        for now in (0..60_000).step_by(12) {
            if now % 300 >= frozen {
                theirs = Index(now);
            }
            lag.note(now, Index(now), theirs, 300);
            if lag.is_too_much(0, 300) {
                return Some(now);
            }
        }
        None
    }

    #[test]
    fn who_is_slow_most_of_the_time_lags_and_who_is_slow_at_times_does_not() {
        let dropped = dropped_after(280).expect("it holds up nearly all");
        assert!(dropped < 5_000, "{dropped} ms");
        assert_eq!(dropped_after(150), None);
    }
}
