//! How a range request is to be answered: order, filters, limit.

use super::index::Change;
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::proto::mvccpb::KeyValue;

/// The order in which keys are found anyway.
const KEY_ORDER: (SortOrder, SortTarget) = (SortOrder::Ascend, SortTarget::Key);
/// What is gathered beyond the limit before it is sorted and cut.
const GATHERED: usize = 4096;

/// How a request is to be answered.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    order: SortOrder,
    target: SortTarget,
    filters: Filters,
    /// Most keys in the answer.
    pub(super) limit: usize,
    /// Keys to look at before sorting.
    pub(super) fetch: usize,
}

impl Plan {
    pub(super) fn of(request: &RangeRequest) -> Plan {
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
        let fetch = if limited { limit.saturating_add(1) } else { usize::MAX };
        Plan { order, target, filters, limit, fetch }
    }

    /// The order or a filter needs what only the records hold.
    pub(super) fn decides_by_record(&self) -> bool {
        let sorted_by_record = match self.target {
            SortTarget::Key | SortTarget::Mod => false,
            SortTarget::Version | SortTarget::Create | SortTarget::Value => true,
        };
        sorted_by_record || self.filters.min_created != 0 || self.filters.max_created != 0
    }

    pub(super) fn orders_by_value(&self) -> bool {
        self.target == SortTarget::Value
    }

    pub(super) fn passes_modified(&self, change: Change) -> bool {
        within(change.revision(), self.filters.min_modified, self.filters.max_modified)
    }

    pub(super) fn passes_created(&self, kv: &KeyValue) -> bool {
        within(kv.create_revision, self.filters.min_created, self.filters.max_created)
    }

    /// True where so much more than the limit is gathered that it is to be cut.
    pub(super) fn is_full(&self, gathered: usize) -> bool {
        gathered > self.limit.saturating_add(self.limit.max(GATHERED))
    }

    /// Orders what was found, in key order, by the index. May be done again when more is found behind it.
    pub(super) fn order_changes(&self, found: &mut [Change]) {
        match (self.target, self.order) {
            (_, SortOrder::None) | (SortTarget::Key, _) => {}
            (_, SortOrder::Ascend) => found.sort_by_key(|change| change.revision()),
            (_, SortOrder::Descend) => found.sort_by_key(|change| std::cmp::Reverse(change.revision())),
        }
    }

    /// Key order is wanted from the last to the first.
    pub(super) fn is_reversed(&self) -> bool {
        (self.target, self.order) == (SortTarget::Key, SortOrder::Descend)
    }

    /// Orders what was read, in key order, by the records. May be done again when more is read behind it.
    pub(super) fn order_records(&self, kvs: &mut [KeyValue]) {
        let ascending = |a: &KeyValue, b: &KeyValue| match self.target {
            SortTarget::Key => a.key.cmp(&b.key),
            SortTarget::Version => a.version.cmp(&b.version),
            SortTarget::Create => a.create_revision.cmp(&b.create_revision),
            SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
            SortTarget::Value => a.value.cmp(&b.value),
        };
        match self.order {
            SortOrder::None => {}
            SortOrder::Ascend => kvs.sort_by(ascending),
            SortOrder::Descend => kvs.sort_by(|a, b| ascending(b, a)),
        }
    }
}

/// Bounds that a key must keep to be in the answer; zero: none. They do not change the count.
#[derive(Clone, Debug)]
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
}

fn within(revision: i64, min: i64, max: i64) -> bool {
    (min == 0 || revision >= min) && (max == 0 || revision <= max)
}
