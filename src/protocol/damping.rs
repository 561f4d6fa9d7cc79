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
//! *A slow leader*: every node keeps the same account of how long each of its peers is silent, beyond `failure_timeout` / 2
//! for each silence. An in-sync follower whose leader owes more than 3 · `failure_timeout` takes over as if the leader had
//! died. That is more than a follower may owe: where one link is bad, the leader drops the follower before the follower
//! replaces the leader. The new leader counts two strikes for the one it has replaced. An account begins anew with each
//! process, so that a restart is no silence.
//!
//! Leadership is not handed back to a node that still owes something.
//!
//! All other strikes are knowledge of one leadership. A new leader counts anew, so a change of leader costs at most the
//! short pauses at the beginning. A damped node is missing from the set as any dropped node is: it is not counted on, and
//! may not lead. Damping never takes a follower out, it only lets it in later.

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
const OWED_MAX_OF_LEADER: Millis = 3;

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

/// What a node owes for being late; time pays it back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Debt {
    /// Looked at last.
    at: Option<Millis>,
    /// In quarters of milliseconds.
    owed: Millis,
}

impl Debt {
    /// What is left of it at `now`.
    fn left(&self, now: Millis) -> Millis {
        self.owed.saturating_sub(now - self.at.unwrap_or(now))
    }

    /// Something came after `waited`.
    pub(super) fn note(&mut self, now: Millis, waited: Millis, failure_timeout: Millis) {
        let late = waited.saturating_sub(failure_timeout / 2).min(failure_timeout);
        let most = 4 * (OWED_MAX + OWED_MAX_OF_LEADER) * failure_timeout;
        self.owed = (self.left(now) + 4 * late).min(most);
        self.at = Some(now);
    }

    /// A leader that owes so much is replaced.
    pub(super) fn is_too_much_for_leader(&self, now: Millis, failure_timeout: Millis) -> bool {
        self.left(now) > 4 * OWED_MAX_OF_LEADER * failure_timeout
    }

    /// Nothing is owed.
    pub(super) fn is_paid(&self, now: Millis) -> bool {
        self.left(now) == 0
    }

    /// We did not run for that long: that pays nothing back.
    pub(super) fn forgive(&mut self, slept: Millis, now: Millis) {
        self.at = self.at.map(|at| (at + slept).min(now));
    }

    /// Nothing is owed from now on.
    pub(super) fn forget(&mut self) {
        *self = Debt::default();
    }
}

/// How much a node holds up the writes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Lag {
    /// What our disk held when it was last compared, and since when the node has owed it.
    owes: Option<(crate::view::Index, Millis)>,
    debt: Debt,
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
        match self.owes {
            Some((mark, _)) if theirs < mark => return,
            Some((_, since)) => self.debt.note(now, now - since, failure_timeout),
            None => {}
        }
        self.owes = (theirs < ours).then_some((ours, now));
    }

    /// It holds up too much, for one with so many strikes.
    pub(super) fn is_too_much(&self, now: Millis, strikes: u32, failure_timeout: Millis) -> bool {
        self.debt.left(now) > (4 * OWED_MAX * failure_timeout) >> strikes.min(2)
    }

    /// It has held up nothing of late.
    pub(super) fn is_paid(&self, now: Millis) -> bool {
        self.debt.is_paid(now)
    }

    /// We did not run for that long.
    pub(super) fn forgive(&mut self, slept: Millis, now: Millis) {
        self.owes = self.owes.map(|(mark, since)| (mark, (since + slept).min(now)));
        self.debt.forgive(slept, now);
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
            if lag.is_too_much(now, 0, 300) {
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
