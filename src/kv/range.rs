//! Reading a range of keys as of a revision. Only the index is walked for what is counted; a record is read for
//! what is answered, and before that only where its content decides the order or the filter.

use bytes::Bytes;

use super::backend::{Backend, RevisionKey};
use super::check::check_range;
use super::index::Change;
use super::keys::KeyRange;
use super::record::{self, Record};
use super::refusal::Refusal;
use super::{Store, header};
use crate::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::proto::etcdserverpb::{RangeRequest, RangeResponse};
use crate::proto::mvccpb::KeyValue;

impl<B: Backend> Store<B> {
    /// Answers a range request. The header holds the revision and nothing else.
    ///
    /// # Errors
    /// What [`check_range`] refuses, [`Refusal::Compacted`], [`Refusal::FutureRevision`].
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Refusal> {
        check_range(request)?;
        self.range_as_of(request, self.revision)
    }

    /// As [`Store::range`], where `newest` is the newest revision: inside a transaction that has written, that
    /// is the one it makes.
    pub(super) fn range_as_of(&self, request: &RangeRequest, newest: i64) -> Result<RangeResponse, Refusal> {
        let revision = self.readable(request.revision, newest)?;
        let keys = KeyRange::new(&request.key, &request.range_end);
        let live = self.index.range(keys).filter_map(|(_, history)| history.live_at(revision));
        let mut answer = RangeResponse { header: Some(header(newest)), ..RangeResponse::default() };
        if request.count_only {
            answer.count = as_count(live.count());
            return Ok(answer);
        }

        let plan = Plan::of(request);
        let mut found: Vec<Change> = Vec::new();
        let mut count = 0;
        for change in live {
            count += 1;
            if found.len() < plan.fetch && plan.filters.passes_modified(change) {
                found.push(change);
            }
        }
        answer.count = as_count(count);
        (answer.kvs, answer.more) = if plan.decides_by_record() {
            self.by_record(&plan, &found)
        } else {
            self.by_index(&plan, found)
        };
        if request.keys_only {
            for kv in &mut answer.kvs {
                kv.value = Bytes::new();
            }
        }
        Ok(answer)
    }

    /// The revision to read at: the one that is named if it can be read, the newest if none is.
    pub(super) fn readable(&self, requested: i64, newest: i64) -> Result<i64, Refusal> {
        if requested > newest {
            return Err(Refusal::FutureRevision { requested, current: newest });
        }
        let revision = if requested <= 0 { newest } else { requested };
        if revision < self.compact_revision {
            return Err(Refusal::Compacted { requested, compacted: self.compact_revision });
        }
        Ok(revision)
    }

    /// The key and value that a put left. A record that the index names and the backend does not have, or that is
    /// not what was written, is a bug or a broken disk: no answer is better than a wrong one.
    pub(super) fn read(&self, at: RevisionKey) -> KeyValue {
        let bytes = self.backend.get(at).expect("the backend holds every record the index names");
        match record::decode(bytes) {
            Ok(Record::Put(kv)) => kv,
            Ok(Record::Tombstone(_)) => {
                panic!("record {}.{} is a tombstone where a put was written", at.main, at.sub)
            }
            Err(why) => panic!("record {}.{} is damaged: {why}", at.main, at.sub),
        }
    }

    /// The index alone decides: reads the records of the answer and no other.
    fn by_index(&self, plan: &Plan, mut found: Vec<Change>) -> (Vec<KeyValue>, bool) {
        match (plan.target, plan.order) {
            (_, SortOrder::None) | (SortTarget::Key, SortOrder::Ascend) => {}
            (SortTarget::Key, SortOrder::Descend) => found.reverse(),
            (_, SortOrder::Ascend) => found.sort_by_key(|change| change.revision()),
            (_, SortOrder::Descend) => found.sort_by_key(|change| std::cmp::Reverse(change.revision())),
        }
        let more = found.len() > plan.limit;
        found.truncate(plan.limit);
        (found.into_iter().map(|change| self.read(change.at())).collect(), more)
    }

    /// The order or a filter needs what only the records hold.
    fn by_record(&self, plan: &Plan, found: &[Change]) -> (Vec<KeyValue>, bool) {
        let mut kvs: Vec<KeyValue> = found.iter().map(|change| self.read(change.at())).collect();
        kvs.retain(|kv| plan.filters.passes_created(kv));
        let ascending = |a: &KeyValue, b: &KeyValue| match plan.target {
            SortTarget::Key => a.key.cmp(&b.key),
            SortTarget::Version => a.version.cmp(&b.version),
            SortTarget::Create => a.create_revision.cmp(&b.create_revision),
            SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
            SortTarget::Value => a.value.cmp(&b.value),
        };
        match plan.order {
            SortOrder::None => {}
            SortOrder::Ascend => kvs.sort_by(ascending),
            SortOrder::Descend => kvs.sort_by(|a, b| ascending(b, a)),
        }
        let more = kvs.len() > plan.limit;
        kvs.truncate(plan.limit);
        (kvs, more)
    }
}

/// How a request is to be answered.
struct Plan {
    order: SortOrder,
    target: SortTarget,
    filters: Filters,
    /// Most keys in the answer.
    limit: usize,
    /// Keys to look at before sorting.
    fetch: usize,
}

impl Plan {
    fn of(request: &RangeRequest) -> Plan {
        let asked = SortOrder::try_from(request.sort_order).unwrap_or(SortOrder::None);
        let target = SortTarget::try_from(request.sort_target).unwrap_or(SortTarget::Key);
        let order = match (asked, target) {
            (SortOrder::None, SortTarget::Key) => SortOrder::None,
            (SortOrder::None, _) => SortOrder::Ascend,
            (order, _) => order,
        };
        let filters = Filters::of(request);
        let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        // One more than the limit tells whether there is more. As in etcd, a sort order or a filter looks at
        // the whole range first; a sort target without an order does not.
        let limited = filters.is_empty() && (asked == SortOrder::None || (asked, target) == KEY_ORDER);
        Plan {
            order,
            target,
            filters,
            limit,
            fetch: if limited { limit.saturating_add(1) } else { usize::MAX },
        }
    }

    fn decides_by_record(&self) -> bool {
        let sorted_by_record = match self.target {
            SortTarget::Key | SortTarget::Mod => false,
            SortTarget::Version | SortTarget::Create | SortTarget::Value => true,
        };
        sorted_by_record || self.filters.min_created != 0 || self.filters.max_created != 0
    }
}

/// The order in which keys are found anyway.
const KEY_ORDER: (SortOrder, SortTarget) = (SortOrder::Ascend, SortTarget::Key);

/// Bounds that a key must keep to be in the answer; zero: none. They do not change the count.
struct Filters {
    min_modified: i64,
    max_modified: i64,
    min_created: i64,
    max_created: i64,
}

impl Filters {
    fn of(request: &RangeRequest) -> Filters {
        Filters {
            min_modified: request.min_mod_revision,
            max_modified: request.max_mod_revision,
            min_created: request.min_create_revision,
            max_created: request.max_create_revision,
        }
    }

    fn is_empty(&self) -> bool {
        [self.min_modified, self.max_modified, self.min_created, self.max_created] == [0; 4]
    }

    fn passes_modified(&self, change: Change) -> bool {
        within(change.revision(), self.min_modified, self.max_modified)
    }

    fn passes_created(&self, kv: &KeyValue) -> bool {
        within(kv.create_revision, self.min_created, self.max_created)
    }
}

fn within(revision: i64, min: i64, max: i64) -> bool {
    (min == 0 || revision >= min) && (max == 0 || revision <= max)
}

fn as_count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
