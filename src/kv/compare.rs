//! The compares of transactions.

use std::cmp::Ordering;

use super::Store;
use super::backend::Backend;
use super::cost::{Budget, read_cost};
use super::keys::KeyRange;
use crate::proto::etcdserverpb::Compare;
use crate::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::proto::mvccpb::KeyValue;

/// How far the compares of one transaction have been looked at.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Compares that hold.
    held: usize,
    /// Of the next one: the last key that was looked at, and whether one was there.
    cursor: Option<Box<[u8]>>,
    any_live: bool,
}

/// What is known of compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    NotYet,
    Holds,
    Fails,
}

impl<B: Backend> Store<B> {
    /// Whether all compares hold at a revision, as far as the budget lasts.
    pub(super) fn holds_all(
        &self,
        compares: &[Compare],
        revision: i64,
        scan: &mut Scan,
        budget: &mut Budget,
    ) -> Verdict {
        while let Some(compare) = compares.get(scan.held) {
            match self.holds(compare, revision, scan, budget) {
                Verdict::Holds => *scan = Scan { held: scan.held + 1, ..Scan::default() },
                verdict @ (Verdict::NotYet | Verdict::Fails) => return verdict,
            }
            if budget.is_spent() {
                return Verdict::NotYet;
            }
        }
        Verdict::Holds
    }

    /// Must hold for every key of the range. Where there is none, a value compares with nothing and everything
    /// else with zero.
    fn holds(&self, compare: &Compare, revision: i64, scan: &mut Scan, budget: &mut Budget) -> Verdict {
        // Stateless on purpose: a compare that this program does not know must not read what it does not need.
        let by_value = compare.target == CompareTarget::Value as i32;
        let reads_record = by_value || compare.target == CompareTarget::Lease as i32;
        let keys = KeyRange::new(&compare.key, &compare.range_end);
        let mut last = None;
        for (key, history) in self.index.range(keys, scan.cursor.as_deref()) {
            budget.spend(1);
            if let Some((change, known)) = history.state_at(revision) {
                scan.any_live = true;
                let holds = match known {
                    Some((create_revision, version)) if !reads_record => {
                        let mod_revision = change.revision();
                        let kv = KeyValue { create_revision, mod_revision, version, ..KeyValue::default() };
                        compares(compare, &kv)
                    }
                    Some(_) | None => {
                        budget.spend(read_cost(change));
                        compares(compare, &self.read(change.at()))
                    }
                };
                if !holds {
                    return Verdict::Fails;
                }
            }
            if budget.is_spent() {
                last = Some(key);
                break;
            }
        }
        if let Some(last) = last {
            scan.cursor = Some(last.into());
            return Verdict::NotYet;
        }
        if scan.any_live || (!by_value && compares(compare, &KeyValue::default())) {
            Verdict::Holds
        } else {
            Verdict::Fails
        }
    }
}

/// As etcd: a target that does not match the operand given compares with zero, a result that does not exist holds.
fn compares(compare: &Compare, kv: &KeyValue) -> bool {
    let operand = compare.target_union.as_ref();
    let ordering = match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Version) => kv.version.cmp(&match operand {
            Some(TargetUnion::Version(version)) => *version,
            _ => 0,
        }),
        Ok(CompareTarget::Create) => kv.create_revision.cmp(&match operand {
            Some(TargetUnion::CreateRevision(revision)) => *revision,
            _ => 0,
        }),
        Ok(CompareTarget::Mod) => kv.mod_revision.cmp(&match operand {
            Some(TargetUnion::ModRevision(revision)) => *revision,
            _ => 0,
        }),
        Ok(CompareTarget::Value) => (*kv.value).cmp(match operand {
            Some(TargetUnion::Value(value)) => &**value,
            _ => &[],
        }),
        Ok(CompareTarget::Lease) => kv.lease.cmp(&match operand {
            Some(TargetUnion::Lease(lease)) => *lease,
            _ => 0,
        }),
        Err(_) => Ordering::Equal,
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => ordering.is_eq(),
        Ok(CompareResult::Greater) => ordering.is_gt(),
        Ok(CompareResult::Less) => ordering.is_lt(),
        Ok(CompareResult::NotEqual) => ordering.is_ne(),
        Err(_) => true,
    }
}
