//! What a big operation of one client costs another: one client puts small keys steadily while a second reads, deletes or
//! compares much. Shown are the waits of the first beside its waits before, whether the leader or its epoch changed, and
//! the memory of the nodes; ours and, where asked for, etcd in the same run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::cluster::{Cluster, Kind, Standing};
use super::request::PREFIX;
use super::wire::histogram;
use super::{BenchArguments, BenchFailure, Report, data, note};
use crate::cli::client::print::table;
use crate::cli::scratch::Scratch;
use crate::client::{Client, ClientError, Options, prefix_end};
use crate::clock;
use crate::proto::etcdserverpb as pb;

/// Bytes that the big range reads, keys that the big delete removes, keys that each compare looks at.
const RANGE_BYTES: f64 = 200e6;
const DELETED_KEYS: f64 = 1e6;
const COMPARED_KEYS: f64 = 2e5;
/// Compares in the one transaction.
const COMPARES: usize = 30;
/// The other client's puts begin at this distance, or when the one before is answered.
const BEAT: Duration = Duration::from_millis(5);
/// For so long it is measured undisturbed, and so long again after a big operation.
const QUIET: Duration = Duration::from_secs(2);
/// How long a big operation may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long a small put may take before it counts as failed and is tried again.
const PUT_PATIENCE: Duration = Duration::from_secs(60);
/// Puts in one transaction when keys are laid out, and transactions under way at a time.
const BATCH: u64 = 100;
const UNDER_WAY: usize = 8;

/// Which big operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Big {
    Range,
    Delete,
    Compare,
}

/// What it did to the other client.
#[derive(Debug)]
struct Effect {
    kind: Kind,
    big: Big,
    took: Duration,
    /// The refusal, where it was not carried out.
    refused: Option<String>,
    quiet: Waits,
    disturbed: Waits,
    before: Option<Standing>,
    after: Option<Standing>,
    most_memory: u64,
}

/// The waits of small puts, in microseconds.
#[derive(Debug)]
struct Waits {
    puts: Histogram<u64>,
    failed: u64,
}

pub(super) async fn run(arguments: &BenchArguments, scratch: &Scratch) -> Result<Report, BenchFailure> {
    let other = arguments.versus.map(super::Versus::kind);
    data::check_space(&scratch.join(""), scaled(RANGE_BYTES, arguments.scale))?;
    let mut effects = Vec::new();
    for kind in [Kind::Ours].into_iter().chain(other) {
        let cluster = Cluster::start(kind, scratch.join(kind.name()), 3).await?;
        for big in [Big::Range, Big::Delete, Big::Compare] {
            let effect = disturb(&cluster, big, arguments.scale).await?;
            note(&effect.row().join("  "));
            effects.push(effect);
        }
    }
    let text = table(&HEAD, effects.iter().map(Effect::row));
    let value = json!({
        "scale": arguments.scale,
        "results": effects.iter().map(Effect::value).collect::<Vec<Value>>(),
    });
    let report = Report { text, value };
    let deposed = effects.iter().filter(|effect| effect.kind == Kind::Ours && effect.has_changed_view());
    let violations: Vec<String> =
        deposed.map(|effect| format!("{} changed the view or the leader", effect.big.name())).collect();
    if violations.is_empty() { Ok(report) } else { Err(BenchFailure::Violated { report, violations }) }
}

/// Lays out what the operation needs, then measures puts before, during and after it.
async fn disturb(cluster: &Cluster, big: Big, scale: f64) -> Result<Effect, BenchFailure> {
    let leader = cluster.leader().await?;
    let addresses = vec![cluster.address(leader).to_owned()];
    match big {
        Big::Range => drop(data::fill(&addresses, scaled(RANGE_BYTES, scale)).await?),
        Big::Delete => fill(&addresses, big, scaled(DELETED_KEYS, scale)).await?,
        Big::Compare => fill(&addresses, big, scaled(COMPARED_KEYS, scale)).await?,
    }
    let before = cluster.standing(leader).await;
    let steady = Steady::start(&addresses)?;
    let quiet = steady.measure(QUIET).await?;
    let client = Client::new(&addresses, options(PATIENCE))?;
    let began = clock::now();
    let most_memory = AtomicU64::new(0);
    let carried_out = async {
        let outcome = big.carry_out(&client).await;
        (outcome, began.elapsed())
    };
    let watched = async {
        loop {
            let most = (0..cluster.addresses().len()).map(|node| cluster.resident_bytes(node)).max();
            most_memory.fetch_max(most.unwrap_or(0), Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (outcome, took) = tokio::select! {
        done = carried_out => done,
        () = watched => unreachable!("it watches for ever"),
    };
    tokio::time::sleep(QUIET).await;
    let disturbed = steady.stop().await?;
    let refused = match outcome {
        Ok(()) => None,
        Err(error @ ClientError::Refused { .. }) => Some(error.what()),
        Err(error) => return Err(error.into()),
    };
    let after = cluster.standing(leader).await;
    let most_memory = most_memory.into_inner();
    client
        .delete(pb::DeleteRangeRequest {
            key: big.prefix().into(),
            range_end: prefix_end(&big.prefix()),
            prev_kv: false,
        })
        .await?;
    Ok(Effect { kind: cluster.kind, big, took, refused, quiet, disturbed, before, after, most_memory })
}

/// Puts the keys that a big operation is about.
async fn fill(addresses: &[String], big: Big, count: u64) -> Result<(), BenchFailure> {
    let client = Client::new(addresses, options(PATIENCE))?;
    let prefix = big.prefix();
    let batch = |first: u64| {
        let put = |number: u64| {
            let key = [&prefix[..], format!("{number:010}").as_bytes()].concat().into();
            let put = pb::PutRequest { key, value: Bytes::from_static(b"value"), ..Default::default() };
            pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) }
        };
        pb::TxnRequest { success: (first..count.min(first + BATCH)).map(put).collect(), ..Default::default() }
    };
    let mut under_way = FuturesUnordered::new();
    for first in (0..count).step_by(usize::try_from(BATCH).unwrap_or(1)) {
        if under_way.len() >= UNDER_WAY
            && let Some::<Result<pb::TxnResponse, ClientError>>(done) = under_way.next().await
        {
            done?;
        }
        under_way.push(client.txn(batch(first)));
    }
    while let Some(done) = under_way.next().await {
        done?;
    }
    Ok(())
}

impl Big {
    fn name(self) -> &'static str {
        match self {
            Big::Range => "range",
            Big::Delete => "delete",
            Big::Compare => "compare",
        }
    }

    fn prefix(self) -> Vec<u8> {
        let name: &[u8] = match self {
            Big::Range => b"data/",
            Big::Delete => b"deleted/",
            Big::Compare => b"compared/",
        };
        [PREFIX, name].concat()
    }

    async fn carry_out(self, client: &Client) -> Result<(), ClientError> {
        let (key, range_end) = (Bytes::from(self.prefix()), prefix_end(&self.prefix()));
        match self {
            Big::Range => {
                client.range(pb::RangeRequest { key, range_end, ..Default::default() }).await.map(drop)
            }
            Big::Delete => {
                client.delete(pb::DeleteRangeRequest { key, range_end, prev_kv: false }).await.map(drop)
            }
            Big::Compare => {
                // Holds for every key, so that every key is looked at.
                let compare = pb::Compare {
                    result: pb::compare::CompareResult::NotEqual.into(),
                    target: pb::compare::CompareTarget::Value.into(),
                    key,
                    range_end,
                    target_union: Some(pb::compare::TargetUnion::Value(Bytes::from_static(b"another"))),
                };
                let put = pb::PutRequest { key: [PREFIX, b"done"].concat().into(), ..Default::default() };
                let put = pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) };
                let compare = vec![compare; COMPARES];
                let txn = pb::TxnRequest { compare, success: vec![put], failure: Vec::new() };
                client.txn(txn).await.map(drop)
            }
        }
    }
}

/// The other client, at work in a task of its own.
struct Steady {
    stop: Arc<AtomicBool>,
    waits: Arc<std::sync::Mutex<Waits>>,
    task: JoinHandle<Result<(), ClientError>>,
}

impl Steady {
    fn start(addresses: &[String]) -> Result<Steady, BenchFailure> {
        let client = Client::new(addresses, options(PUT_PATIENCE))?;
        let stop = Arc::new(AtomicBool::new(false));
        let waits = Arc::new(std::sync::Mutex::new(Waits::none()));
        let task = tokio::spawn(put_steadily(client, stop.clone(), waits.clone()));
        Ok(Steady { stop, waits, task })
    }

    /// The waits of the time that comes; those until now are forgotten.
    async fn measure(&self, lasting: Duration) -> Result<Waits, BenchFailure> {
        self.take();
        tokio::time::sleep(lasting).await;
        Ok(self.take())
    }

    fn take(&self) -> Waits {
        let mut waits = self.waits.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        std::mem::replace(&mut *waits, Waits::none())
    }

    async fn stop(self) -> Result<Waits, BenchFailure> {
        self.stop.store(true, Ordering::Relaxed);
        let Steady { task, waits, .. } = self;
        task.await.map_err(|error| BenchFailure::Load(error.to_string()))??;
        let mut waits = waits.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Ok(std::mem::replace(&mut *waits, Waits::none()))
    }
}

/// A put that fails is tried again, and its wait goes on.
async fn put_steadily(
    client: Client,
    stop: Arc<AtomicBool>,
    waits: Arc<std::sync::Mutex<Waits>>,
) -> Result<(), ClientError> {
    let mut beats = tokio::time::interval(BEAT);
    beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut number = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        beats.tick().await;
        number = (number + 1) % 1000;
        let key = [PREFIX, format!("{number:014}").as_bytes()].concat().into();
        let put = pb::PutRequest { key, value: vec![b'v'; 256].into(), ..Default::default() };
        let began = clock::now();
        let mut failed = 0;
        while let Err(error) = client.put(put.clone()).await {
            if began.elapsed() > PATIENCE {
                return Err(error);
            }
            failed += 1;
            tokio::time::sleep(BEAT).await;
        }
        let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let mut waits = waits.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        waits.puts.saturating_record(micros);
        waits.failed += failed;
    }
    Ok(())
}

impl Waits {
    fn none() -> Waits {
        Waits { puts: histogram(), failed: 0 }
    }

    fn value(&self) -> Value {
        json!({
            "puts": self.puts.len(),
            "p99_ms": millis(self.puts.value_at_quantile(0.99)),
            "longest_ms": millis(self.puts.max()),
            "failed": self.failed,
        })
    }
}

const HEAD: [&str; 11] = [
    "SIDE",
    "BIG",
    "TOOK MS",
    "QUIET P99",
    "QUIET MAX",
    "PUTS",
    "P99 MS",
    "LONGEST MS",
    "FAILED",
    "VIEW",
    "MEMORY",
];

impl Effect {
    fn has_changed_view(&self) -> bool {
        self.before.is_none() || self.before != self.after
    }

    fn row(&self) -> Vec<String> {
        let view = if self.has_changed_view() { "changed" } else { "same" };
        vec![
            self.kind.name().to_owned(),
            match &self.refused {
                None => self.big.name().to_owned(),
                Some(_) => format!("{} (refused)", self.big.name()),
            },
            self.took.as_millis().to_string(),
            millis(self.quiet.puts.value_at_quantile(0.99)).to_string(),
            millis(self.quiet.puts.max()).to_string(),
            self.disturbed.puts.len().to_string(),
            millis(self.disturbed.puts.value_at_quantile(0.99)).to_string(),
            millis(self.disturbed.puts.max()).to_string(),
            self.disturbed.failed.to_string(),
            view.to_owned(),
            data::show(self.most_memory),
        ]
    }

    fn value(&self) -> Value {
        json!({
            "side": self.kind.name(),
            "operation": self.big.name(),
            "took_ms": u64::try_from(self.took.as_millis()).unwrap_or(u64::MAX),
            "refused": self.refused,
            "quiet": self.quiet.value(),
            "during": self.disturbed.value(),
            "view_changed": self.has_changed_view(),
            "memory_bytes": self.most_memory,
        })
    }
}

fn options(timeout: Duration) -> Options {
    Options { timeout, attempt_timeout: timeout, ..Options::default() }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most a million million")]
fn scaled(whole: f64, scale: f64) -> u64 {
    (whole * scale).ceil() as u64
}

#[expect(clippy::cast_precision_loss, reason = "shown with two digits")]
fn millis(micros: u64) -> f64 {
    (micros as f64 / 10.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn effect(before: u64, after: u64) -> Effect {
        let standing = |epoch| Some(Standing { epoch, leader: "a:1".to_owned() });
        Effect {
            kind: Kind::Ours,
            big: Big::Delete,
            took: Duration::from_millis(7),
            refused: None,
            quiet: Waits::none(),
            disturbed: Waits::none(),
            before: standing(before),
            after: standing(after),
            most_memory: 1 << 20,
        }
    }

    #[test]
    fn a_leader_of_another_epoch_is_a_change_of_view() {
        assert_eq!(effect(3, 3).value()["view_changed"], false);
        assert_eq!(effect(3, 4).value()["view_changed"], true);
        let silent = Effect { before: None, after: None, ..effect(3, 3) };
        assert!(silent.has_changed_view(), "a node that cannot be asked proves nothing");
    }
}
