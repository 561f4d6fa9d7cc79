//! What the protocol knows of the log: positions and epochs, never payloads.
//!
//! A log is told apart by runs: stretches of consecutive entries of one epoch. Because an epoch has one leader,
//! two entries with the same (epoch, index) are the same entry and have the same entries before them.

use crate::view::{Epoch, Index};

/// One place in the log and the epoch of the entry there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark {
    /// Where; zero for "before the first entry".
    pub index: Index,
    /// The epoch under which the entry there was ordered.
    pub epoch: Epoch,
}

/// Consecutive entries of one epoch, up to the next run or the end of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Run {
    /// The epoch under which these entries were ordered.
    pub epoch: Epoch,
    /// The first of them.
    pub first: Index,
}

/// The log without its payloads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Outline {
    /// What comes right before the first entry we hold: the end of a snapshot, or nothing.
    base: Mark,
    /// Runs after `base`, by index; epochs grow from run to run.
    runs: Vec<Run>,
    last: Index,
    /// All up to here is on our disk.
    durable: Index,
    /// All up to here is durable on every in-sync node, as far as we know.
    commit: Index,
}

impl Outline {
    /// The log as found on disk after a restart. Everything recovered is durable (R22).
    ///
    /// # Panics
    /// Where the parts contradict each other: that is a bug of the storage, not an input.
    #[must_use]
    pub fn recovered(base: Mark, runs: Vec<Run>, last: Index, commit: Index) -> Outline {
        let outline = Outline { base, runs, last, durable: last, commit: commit.max(base.index) };
        assert!(last >= base.index, "the log ends at {last}, before its base {}", base.index);
        assert!(outline.commit <= last, "commit {commit} lies beyond the end {last} of the log");
        outline.check();
        outline
    }

    fn check(&self) {
        let mut before = (self.base.index, self.base.epoch);
        for run in &self.runs {
            assert!(run.first > before.0 && run.epoch >= before.1, "runs out of order: {self:?}");
            before = (run.first, run.epoch);
        }
        assert!(
            self.runs.is_empty() == (self.last == self.base.index),
            "runs do not reach the end: {self:?}"
        );
    }

    /// What comes right before the first entry.
    #[must_use]
    pub fn base(&self) -> Mark {
        self.base
    }

    /// The end of the log.
    #[must_use]
    pub fn last(&self) -> Mark {
        Mark { index: self.last, epoch: self.runs.last().map_or(self.base.epoch, |run| run.epoch) }
    }

    /// All up to here is on our disk.
    #[must_use]
    pub fn durable(&self) -> Index {
        self.durable
    }

    /// All up to here is known to be committed.
    #[must_use]
    pub fn commit(&self) -> Index {
        self.commit
    }

    /// The epoch of the entry at `index`, where we hold it (or it is the base).
    #[must_use]
    pub fn epoch_at(&self, index: Index) -> Option<Epoch> {
        if index == self.base.index {
            return Some(self.base.epoch);
        }
        if index < self.base.index || index > self.last {
            return None;
        }
        let after = self.runs.partition_point(|run| run.first <= index);
        Some(self.runs[after - 1].epoch)
    }

    /// The runs of the entries `first..=last`, the first of them cut to begin at `first`.
    #[must_use]
    pub fn runs_between(&self, first: Index, last: Index) -> Vec<Run> {
        assert!(first > self.base.index && last <= self.last, "{first}..={last} is not held: {self:?}");
        if first > last {
            return Vec::new();
        }
        let from = self.runs.partition_point(|run| run.first <= first) - 1;
        let to = self.runs.partition_point(|run| run.first <= last);
        self.runs[from..to].iter().map(|run| Run { epoch: run.epoch, first: run.first.max(first) }).collect()
    }

    pub(super) fn append(&mut self, epoch: Epoch, last: Index) {
        assert!(last > self.last, "append to {last} does not extend {self:?}");
        assert!(epoch >= self.last().epoch, "epoch {epoch} after {self:?}");
        if self.runs.last().is_none_or(|run| run.epoch != epoch) {
            self.runs.push(Run { epoch, first: self.last.next() });
        }
        self.last = last;
    }

    pub(super) fn truncate(&mut self, after: Index) {
        assert!(after >= self.commit, "truncating committed entries after {after}: {self:?}");
        self.last = self.last.min(after);
        self.durable = self.durable.min(after);
        while self.runs.last().is_some_and(|run| run.first > after) {
            self.runs.pop();
        }
    }

    pub(super) fn set_durable(&mut self, index: Index) {
        self.durable = self.durable.max(index).min(self.last);
    }

    pub(super) fn set_commit(&mut self, index: Index) {
        assert!(index >= self.commit && index <= self.last, "commit {index}: {self:?}");
        self.commit = index;
    }

    /// The log becomes the end of a snapshot: nothing is held, nothing is yet durable.
    pub(super) fn reset(&mut self, base: Mark) {
        *self = Outline { base, runs: Vec::new(), last: base.index, durable: Index(0), commit: base.index };
    }

    /// Entries up to and including `index` were dropped from disk.
    pub(super) fn drop_through(&mut self, index: Index) {
        if index <= self.base.index {
            return;
        }
        assert!(index <= self.commit, "dropping uncommitted entries through {index}: {self:?}");
        let epoch = self.epoch_at(index).expect("held, because it lies between base and commit");
        let keep_from = index.next();
        let from = self.runs.partition_point(|run| run.first <= keep_from).saturating_sub(1);
        self.runs.drain(..from);
        self.base = Mark { index, epoch };
        match self.runs.first_mut() {
            Some(_) if self.last == index => self.runs.clear(),
            Some(run) => run.first = run.first.max(keep_from),
            None => {}
        }
        self.check();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outline(runs: &[(u64, u64)]) -> Outline {
        let mut outline = Outline::default();
        for &(epoch, last) in runs {
            outline.append(Epoch(epoch), Index(last));
        }
        outline
    }

    #[test]
    fn every_index_knows_its_epoch() {
        let outline = outline(&[(1, 3), (4, 5)]);
        let epochs: Vec<_> =
            (0..7).map(|index| outline.epoch_at(Index(index)).map(|epoch| epoch.0)).collect();
        assert_eq!(epochs, [Some(0), Some(1), Some(1), Some(1), Some(4), Some(4), None]);
    }

    #[test]
    fn runs_are_cut_to_what_was_asked() {
        let outline = outline(&[(1, 3), (4, 5), (6, 9)]);
        let runs = outline.runs_between(Index(2), Index(6));
        let expected = [(1, 2), (4, 4), (6, 6)];
        assert_eq!(runs, expected.map(|(epoch, first)| Run { epoch: Epoch(epoch), first: Index(first) }));
        assert!(outline.runs_between(Index(10), Index(9)).is_empty());
    }

    #[test]
    fn dropping_a_prefix_changes_no_answer_about_the_rest() {
        for dropped in 0..=9 {
            let whole = {
                let mut o = outline(&[(1, 3), (4, 5), (6, 9)]);
                o.set_commit(Index(9));
                o
            };
            let mut cut = whole.clone();
            cut.drop_through(Index(dropped));
            for index in dropped..=10 {
                assert_eq!(cut.epoch_at(Index(index)), whole.epoch_at(Index(index)), "{dropped} {index}");
            }
            assert_eq!(cut.last(), whole.last());
        }
    }

    #[test]
    #[should_panic(expected = "truncating committed entries")]
    fn committed_entries_are_never_truncated() {
        let mut outline = outline(&[(1, 3)]);
        outline.set_commit(Index(2));
        outline.truncate(Index(1));
    }
}
