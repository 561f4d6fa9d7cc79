//! Runs the golden scripts in `scripts/`: one claim a file, its name is the claim.
//!
//! ```text
//! put KEY VALUE [lease=N] [with=prev_kv,ignore_value,ignore_lease]
//! get KEY [END] [revision=N] [limit=N] [order=asc|desc] [by=version|create|mod|value] [with=keys_only,count_only]
//!     [min_mod=N] [max_mod=N] [min_create=N] [max_create=N]
//! delete KEY [END] [with=prev_kv]
//! compact REVISION        remove [BUDGET]        reopen        state        hash [REVISION]
//! txn … if TARGET KEY [END] RESULT OPERAND … then … else … end    (operations in between; may be nested)
//! nothing                 an operation without content
//! ```

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt::Write as _;
use std::str::FromStr;

use bytes::Bytes;
use goldenscript::{ArgumentConsumer, Command, Context};

use super::{Applied, MemoryBackend, Store, is_read_only};
use crate::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::response_op::Response;
use crate::proto::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, RequestOp, ResponseHeader, TxnRequest, TxnResponse,
};
use crate::proto::mvccpb::KeyValue;
use crate::proto::replcluster::{Mutation, SpaceAlarm, mutation};

macro_rules! scripts {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/kv/scripts/", stringify!($name));
            goldenscript::run(&mut Runner::default(), path).unwrap();
        })*

        #[test]
        fn every_script_is_run() {
            let listed: BTreeSet<String> = [$(stringify!($name).to_owned()),*].into();
            let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/src/kv/scripts");
            let names = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
            assert_eq!(listed, names.map(|name| name.into_string().unwrap()).collect());
        }
    };
}

scripts! {
    an_empty_store_is_at_revision_1_and_each_change_makes_one_more
    what_changes_nothing_makes_no_revision
    all_changes_of_a_transaction_share_one_revision
    a_hash_is_the_one_that_etcd_computes
    a_full_store_refuses_what_makes_it_grow_and_nothing_else
    range_end_decides_which_keys
    count_is_of_the_whole_range_whatever_the_limit
    a_limit_that_cuts_says_more
    sorting_by_something_else_than_the_key_ascends
    filters_drop_keys_but_not_from_the_count
    old_revisions_stay_readable_until_they_are_compacted
    a_put_that_keeps_value_or_lease_needs_a_key_that_exists
    version_and_create_revision_start_anew_after_a_delete
    an_unknown_lease_is_refused
    compares_see_a_missing_key_as_zero_and_its_value_as_nothing
    a_range_compare_must_hold_for_every_key
    compares_see_the_state_before_the_transaction
    reads_in_a_transaction_see_the_writes_before_them
    a_put_meets_no_other_put_and_no_delete
    what_etcd_lets_meet_is_done_in_order
    a_refused_transaction_leaves_nothing_done
    a_transaction_reads_old_revisions_by_its_own_rules
    compaction_keeps_what_is_alive_at_its_revision
    compaction_goes_forward_and_not_beyond_the_newest
    an_interrupted_removal_goes_on_after_a_restart
    previous_values_are_given_on_request
}

#[derive(Default)]
struct Runner {
    store: Option<Store<MemoryBackend>>,
    /// Transactions that are being written down, the innermost last.
    open: Vec<Draft>,
}

#[derive(Default)]
struct Draft {
    request: TxnRequest,
    in_failure: bool,
}

impl goldenscript::Runner for Runner {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn Error>> {
        let mut args = command.consume_args();
        let output = match command.name.as_str() {
            "put" => self.operation(Request::RequestPut(put(&mut args)?))?,
            "get" => self.operation(Request::RequestRange(range(&mut args)?))?,
            "delete" => self.operation(Request::RequestDeleteRange(delete_range(&mut args)?))?,
            "nothing" => {
                self.draft()?.operations().push(RequestOp { request: None });
                String::new()
            }
            "txn" => {
                self.open.push(Draft::default());
                String::new()
            }
            "if" => {
                let compare = compare(&mut args)?;
                self.draft()?.request.compare.push(compare);
                String::new()
            }
            "then" => String::new(),
            "else" => {
                self.draft()?.in_failure = true;
                String::new()
            }
            "end" => {
                let draft = self.open.pop().ok_or("no transaction is open")?;
                self.operation(Request::RequestTxn(draft.request))?
            }
            "compact" => {
                let revision = number(args.next_pos())?;
                let request = CompactionRequest { revision, physical: false };
                self.apply(mutation::Request::Compact(request))?
            }
            "alarm" => {
                let raised = args.next_pos() == Some("raised");
                self.apply(mutation::Request::Space(SpaceAlarm { raised }))?
            }
            "remove" => {
                let budget = args.next_pos().map_or(Ok(usize::MAX), str::parse)?;
                let more = self.store().compact_some(budget) == super::Removed::Some;
                format!(
                    "{} records left{}",
                    self.store().backend().len(),
                    if more { ", more to do" } else { "" }
                )
            }
            "reopen" => {
                let backend = self.store().backend().clone();
                self.store = Some(Store::open(backend)?);
                String::new()
            }
            "state" => {
                let store = self.store();
                format!(
                    "revision={} compacted={} keys={} records={} compacting={}",
                    store.revision(),
                    store.compact_revision(),
                    store.key_count(),
                    store.backend().len(),
                    store.is_compacting()
                )
            }
            "hash" => {
                let revision = args.next_pos().map_or(Ok(0), str::parse)?;
                let hash = self.store().hash(revision)?;
                format!("{:08x} compacted={}", hash.hash, hash.compact_revision)
            }
            other => return Err(format!("no command \"{other}\"").into()),
        };
        args.reject_next()?;
        Ok(output)
    }
}

impl Runner {
    fn store(&mut self) -> &mut Store<MemoryBackend> {
        self.store.get_or_insert_with(|| Store::open(MemoryBackend::default()).unwrap())
    }

    fn draft(&mut self) -> Result<&mut Draft, Box<dyn Error>> {
        self.open.last_mut().ok_or_else(|| "no transaction is open".into())
    }

    /// Adds an operation to the open transaction, or carries it out where none is open.
    fn operation(&mut self, request: Request) -> Result<String, Box<dyn Error>> {
        if let Some(draft) = self.open.last_mut() {
            draft.operations().push(RequestOp { request: Some(request) });
            return Ok(String::new());
        }
        match request {
            Request::RequestRange(request) => Ok(show_range(&self.store().range(&request)?)),
            Request::RequestPut(request) => self.apply(mutation::Request::Put(request)),
            Request::RequestDeleteRange(request) => self.apply(mutation::Request::DeleteRange(request)),
            Request::RequestTxn(request) => {
                let read = is_read_only(&request).then(|| self.store().read_txn(&request));
                let applied =
                    self.store().apply(&Mutation { request: Some(mutation::Request::Txn(request)) });
                if let Some(read) = read {
                    assert_eq!(read.map(Applied::Txn), applied, "a read gives what a mutation gives");
                }
                Ok(show_applied(&applied?))
            }
        }
    }

    fn apply(&mut self, request: mutation::Request) -> Result<String, Box<dyn Error>> {
        Ok(show_applied(&self.store().apply(&Mutation { request: Some(request) })?))
    }
}

impl Draft {
    fn operations(&mut self) -> &mut Vec<RequestOp> {
        if self.in_failure { &mut self.request.failure } else { &mut self.request.success }
    }
}

fn bytes(text: Option<&str>) -> Bytes {
    Bytes::from(text.unwrap_or_default().to_owned())
}

fn number<N: FromStr<Err: Error + 'static>>(text: Option<&str>) -> Result<N, Box<dyn Error>> {
    Ok(text.ok_or("a number is missing")?.parse()?)
}

fn optional(args: &mut ArgumentConsumer<'_>, name: &str) -> Result<i64, Box<dyn Error>> {
    args.take_key(name).map_or(Ok(0), |text| Ok(text.parse()?))
}

fn flags<'a>(args: &mut ArgumentConsumer<'a>, known: &[&str]) -> Result<BTreeSet<&'a str>, Box<dyn Error>> {
    let flags: BTreeSet<_> = args.take_key("with").into_iter().flat_map(|text| text.split(',')).collect();
    match flags.iter().find(|flag| !known.contains(flag)) {
        Some(flag) => Err(format!("no flag \"{flag}\"").into()),
        None => Ok(flags),
    }
}

fn put(args: &mut ArgumentConsumer<'_>) -> Result<PutRequest, Box<dyn Error>> {
    let flags = flags(args, &["prev_kv", "ignore_value", "ignore_lease"])?;
    Ok(PutRequest {
        lease: optional(args, "lease")?,
        key: bytes(args.next_pos()),
        value: bytes(args.next_pos()),
        prev_kv: flags.contains("prev_kv"),
        ignore_value: flags.contains("ignore_value"),
        ignore_lease: flags.contains("ignore_lease"),
    })
}

fn range(args: &mut ArgumentConsumer<'_>) -> Result<RangeRequest, Box<dyn Error>> {
    let flags = flags(args, &["keys_only", "count_only"])?;
    let order = match args.take_key("order") {
        None => SortOrder::None as i32,
        Some("asc") => SortOrder::Ascend as i32,
        Some("desc") => SortOrder::Descend as i32,
        Some(other) => other.parse()?,
    };
    let target = match args.take_key("by") {
        None | Some("key") => SortTarget::Key as i32,
        Some("version") => SortTarget::Version as i32,
        Some("create") => SortTarget::Create as i32,
        Some("mod") => SortTarget::Mod as i32,
        Some("value") => SortTarget::Value as i32,
        Some(other) => other.parse()?,
    };
    Ok(RangeRequest {
        limit: optional(args, "limit")?,
        revision: optional(args, "revision")?,
        sort_order: order,
        sort_target: target,
        serializable: false,
        keys_only: flags.contains("keys_only"),
        count_only: flags.contains("count_only"),
        min_mod_revision: optional(args, "min_mod")?,
        max_mod_revision: optional(args, "max_mod")?,
        min_create_revision: optional(args, "min_create")?,
        max_create_revision: optional(args, "max_create")?,
        key: bytes(args.next_pos()),
        range_end: bytes(args.next_pos()),
    })
}

fn delete_range(args: &mut ArgumentConsumer<'_>) -> Result<DeleteRangeRequest, Box<dyn Error>> {
    let flags = flags(args, &["prev_kv"])?;
    Ok(DeleteRangeRequest {
        key: bytes(args.next_pos()),
        range_end: bytes(args.next_pos()),
        prev_kv: flags.contains("prev_kv"),
    })
}

fn compare(args: &mut ArgumentConsumer<'_>) -> Result<Compare, Box<dyn Error>> {
    let words: Vec<&str> = std::iter::from_fn(|| args.next_pos()).collect();
    let (target, key, end, result, operand) = match *words {
        [target, key, result, operand] => (target, key, "", result, operand),
        [target, key, end, result, operand] => (target, key, end, result, operand),
        _ => return Err("if TARGET KEY [END] RESULT OPERAND".into()),
    };
    let result = match result {
        "is" => CompareResult::Equal,
        "not" => CompareResult::NotEqual,
        "above" => CompareResult::Greater,
        "below" => CompareResult::Less,
        other => return Err(format!("no result \"{other}\"").into()),
    };
    let (target, operand) = match target {
        "version" => (CompareTarget::Version, TargetUnion::Version(operand.parse()?)),
        "create" => (CompareTarget::Create, TargetUnion::CreateRevision(operand.parse()?)),
        "mod" => (CompareTarget::Mod, TargetUnion::ModRevision(operand.parse()?)),
        "value" => (CompareTarget::Value, TargetUnion::Value(bytes(Some(operand)))),
        "lease" => (CompareTarget::Lease, TargetUnion::Lease(operand.parse()?)),
        other => return Err(format!("no target \"{other}\"").into()),
    };
    Ok(Compare {
        result: result as i32,
        target: target as i32,
        key: bytes(Some(key)),
        range_end: bytes(Some(end)),
        target_union: Some(operand),
    })
}

fn show_applied(applied: &Applied) -> String {
    match applied {
        Applied::Put(answer) => show_put(answer),
        Applied::DeleteRange(answer) => show_delete(answer),
        Applied::Txn(answer) => show_txn(answer),
        Applied::SpaceAlarm | Applied::FeatureLevel => "so be it".to_owned(),
        Applied::Compact(answer) => format!("revision={}", revision(answer.header.as_ref())),
    }
}

fn show_put(answer: &PutResponse) -> String {
    let mut text = format!("put revision={}", revision(answer.header.as_ref()));
    if let Some(kv) = &answer.prev_kv {
        write!(text, "\n  was {}", show(kv)).unwrap();
    }
    text
}

fn show_delete(answer: &DeleteRangeResponse) -> String {
    let mut text = format!("deleted={} revision={}", answer.deleted, revision(answer.header.as_ref()));
    for kv in &answer.prev_kvs {
        write!(text, "\n  was {}", show(kv)).unwrap();
    }
    text
}

fn show_range(answer: &RangeResponse) -> String {
    let more = if answer.more { " more" } else { "" };
    let mut text = format!("count={} revision={}{more}", answer.count, revision(answer.header.as_ref()));
    for kv in &answer.kvs {
        write!(text, "\n  {}", show(kv)).unwrap();
    }
    text
}

fn show_txn(answer: &TxnResponse) -> String {
    let branch = if answer.succeeded { "success" } else { "failure" };
    let mut text = format!("{branch} revision={}", revision(answer.header.as_ref()));
    for response in &answer.responses {
        let shown = match response.response.as_ref().unwrap() {
            Response::ResponseRange(answer) => show_range(answer),
            Response::ResponsePut(answer) => show_put(answer),
            Response::ResponseDeleteRange(answer) => show_delete(answer),
            Response::ResponseTxn(answer) => show_txn(answer),
        };
        for line in shown.lines() {
            write!(text, "\n  {line}").unwrap();
        }
    }
    text
}

fn revision(header: Option<&ResponseHeader>) -> i64 {
    header.expect("every answer has a header").revision
}

fn show(kv: &KeyValue) -> String {
    let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
    format!(
        "{}={} create={} mod={} version={}{}",
        text(&kv.key),
        text(&kv.value),
        kv.create_revision,
        kv.mod_revision,
        kv.version,
        if kv.lease == 0 { String::new() } else { format!(" lease={}", kv.lease) }
    )
}
