//! Closed-loop load over all endpoints: every client sends its next request when the last one was answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::request::{Mix, PREFIX, Template};
use super::wire::{Connection, Tally, Window, histogram};
use crate::client::{Client, ClientError, Options, prefix_end};
use crate::clock;
use crate::proto::etcdserverpb as pb;

/// Puts in one transaction when the keys are laid out; servers take 128.
const BATCH: u64 = 100;
/// Answers that come earlier than this after the start are warm-up.
const WARM_UP: Duration = Duration::from_millis(500);
/// How long the last answers are waited for after an interrupt.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// What to run.
#[derive(Clone, Debug)]
pub(super) struct Load {
    /// What the clients do.
    pub(super) mix: Mix,
    /// How many, over all endpoints.
    pub(super) clients: usize,
    /// How long answers count, after the warm-up.
    pub(super) measured: Duration,
    /// Bytes in a value.
    pub(super) value_length: usize,
    /// How many keys there are.
    pub(super) keys: u64,
    /// Connections to one endpoint at most.
    pub(super) connections: usize,
}

impl Load {
    /// How often the clients move on: where there are fewer of them than endpoints, so that every endpoint gets its
    /// share.
    fn turns(&self, endpoints: usize) -> usize {
        if self.clients < endpoints { endpoints } else { 1 }
    }

    /// The part of a run that is measured; the rest is warm-up, whose requests cost as much.
    pub(super) fn measured_share(&self, endpoints: usize) -> f64 {
        let warm_up = WARM_UP * u32::try_from(self.turns(endpoints)).unwrap_or(1);
        self.measured.as_secs_f64() / (self.measured + warm_up).as_secs_f64()
    }
}

/// What came of it.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// Answers a second.
    pub(super) per_second: f64,
    /// Microseconds.
    pub(super) latency: Histogram<u64>,
    /// Requests that were answered with an error.
    pub(super) failed: u64,
    /// Processor time this program spent on one request, in microseconds.
    pub(super) client_cpu_us: f64,
}

/// Why there is no sample.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    /// A connection ended or could not be made.
    #[error("the load on {address} ended early: {source}\nis the server still running?")]
    Connection {
        /// Whom it led to.
        address: String,
        /// What happened.
        source: std::io::Error,
    },
    /// Requests beside the load failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Every request was answered with an error; this is one of them.
    #[error("every request failed: {0}")]
    AllFailed(String),
    /// The user stopped it.
    #[error("interrupted")]
    Interrupted,
    /// The thread for the load could not be had.
    #[error("the load cannot be started: {0}")]
    Thread(std::io::Error),
}

/// Lays out the keys, so that a read finds one.
pub(super) async fn fill(
    endpoints: &[String],
    keys: u64,
    value_length: usize,
    interrupt: &CancellationToken,
) -> Result<(), LoadError> {
    let client = Client::new(endpoints, Options { timeout: Duration::from_secs(30), ..Options::default() })?;
    let value = bytes::Bytes::from(vec![b'v'; value_length]);
    for first in (0..keys).step_by(usize::try_from(BATCH).unwrap_or(1)) {
        // Between two requests: one that nobody waits for could still write after the keys are cleared.
        if interrupt.is_cancelled() {
            return Err(LoadError::Interrupted);
        }
        let put = |number: u64| {
            let key = [PREFIX, format!("{number:014}").as_bytes()].concat().into();
            let put = pb::PutRequest { key, value: value.clone(), ..Default::default() };
            pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) }
        };
        let success = (first..keys.min(first + BATCH)).map(put).collect();
        client.txn(pb::TxnRequest { success, ..Default::default() }).await?;
    }
    Ok(())
}

/// Removes what [`fill`] and the load wrote, until nothing more is found.
pub(super) async fn clear(endpoints: &[String]) -> Result<(), LoadError> {
    let client = Client::new(endpoints, Options { timeout: Duration::from_secs(30), ..Options::default() })?;
    let request =
        pb::DeleteRangeRequest { key: PREFIX.into(), range_end: prefix_end(PREFIX), prev_kv: false };
    while client.delete(request.clone()).await?.deleted > 0 {}
    Ok(())
}

/// Runs the load on one thread of its own, so that nothing else of this program runs there. A second thread was
/// measured: it cost as much again on one request and brought nothing.
///
/// After an interrupt no request is sent, and this returns when those under way are answered or given up and the thread
/// has ended: whoever clears the keys then has the last word.
pub(super) async fn run(
    load: &Load,
    addresses: &[String],
    interrupt: &CancellationToken,
) -> Result<Sample, LoadError> {
    let (load, addresses) = (load.clone(), addresses.to_vec());
    let (tx, mut rx) = tokio::sync::oneshot::channel();
    let stop = Arc::new(AtomicBool::new(false));
    // Also cancelled when this is dropped.
    let given_up = CancellationToken::new();
    let _give_up = given_up.clone().drop_guard();
    let (stopped, given_up_there) = (stop.clone(), given_up.clone());
    let thread = std::thread::Builder::new().name("load".to_owned());
    let spawned = thread.spawn(move || {
        let sample = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(async {
                tokio::select! {
                    biased;
                    () = given_up_there.cancelled() => Err(LoadError::Interrupted),
                    sample = all_turns(&load, &addresses, &stopped) => sample,
                }
            }),
            Err(error) => Err(LoadError::Thread(error)),
        };
        // The receiver is gone when the run was interrupted; then nobody wants the sample.
        let _ = tx.send(sample);
    });
    spawned.map_err(LoadError::Thread)?;
    let ended = |sample: Result<_, _>| {
        sample.unwrap_or_else(|_| Err(LoadError::Thread(std::io::Error::other("its thread ended"))))
    };
    tokio::select! {
        sample = &mut rx => return ended(sample),
        () = interrupt.cancelled() => {}
    }
    stop.store(true, Ordering::Relaxed);
    if tokio::time::timeout(LAST_ANSWERS, &mut rx).await.is_err() {
        given_up.cancel();
        // It says so when its connections are closed.
        let _ = rx.await;
    }
    Err(LoadError::Interrupted)
}

async fn all_turns(load: &Load, addresses: &[String], stop: &Arc<AtomicBool>) -> Result<Sample, LoadError> {
    let turns = load.turns(addresses.len());
    let measured = load.measured / u32::try_from(turns).unwrap_or(1);
    let mut sum = Tally { latency: histogram(), failed: 0 };
    let cpu_before = cpu_time("self");
    for turn in 0..turns {
        let tally = together(load, addresses, turn, measured, stop).await?;
        sum.latency.add(&tally.latency).expect("histograms of one shape");
        sum.failed += tally.failed;
    }
    if sum.latency.is_empty() {
        return Err(LoadError::AllFailed(why(addresses).await));
    }
    #[expect(clippy::cast_precision_loss, reason = "a count of requests is far below 2^52")]
    let requests = sum.latency.len() as f64;
    let cpu = cpu_time("self").saturating_sub(cpu_before);
    Ok(Sample {
        per_second: requests / load.measured.as_secs_f64(),
        latency: sum.latency,
        failed: sum.failed,
        client_cpu_us: cpu.as_secs_f64() * 1e6 * load.measured_share(addresses.len()) / requests,
    })
}

/// All clients at once, client i on endpoint (i + turn) modulo the number of endpoints.
async fn together(
    load: &Load,
    addresses: &[String],
    turn: usize,
    measured: Duration,
    stop: &Arc<AtomicBool>,
) -> Result<Tally, LoadError> {
    let mut on_endpoint = vec![0_usize; addresses.len()];
    for client in 0..load.clients {
        on_endpoint[(client + turn) % addresses.len()] += 1;
    }
    let mut connections = Vec::new();
    for (address, clients) in addresses.iter().zip(on_endpoint) {
        let count = clients.min(load.connections.max(1));
        for number in 0..count {
            let share = clients / count + usize::from(number < clients % count);
            connections.push((address.clone(), share));
        }
    }
    let count = u64::try_from(connections.len()).unwrap_or(1).max(1);
    let mut opened = Vec::new();
    for (number, (address, share)) in (0_u64..).zip(connections) {
        // Every connection starts elsewhere on the same walk: 7919 and the number of keys have no common divisor
        // unless the latter is a multiple of it, and even then only fewer keys are visited.
        let first = number * (load.keys / count).max(1);
        let template = Template::new(load.mix, &address, load.value_length, load.keys, first, 7919);
        match Connection::open(&address, template).await {
            Ok(connection) => opened.push((address, share, connection)),
            Err(source) => return Err(LoadError::Connection { address, source }),
        }
    }
    let begins = clock::now() + WARM_UP;
    let window = Window { begins, ends: begins + measured };
    let mut running = JoinSet::new();
    for (address, share, connection) in opened {
        let stop = stop.clone();
        running.spawn(async move {
            let tally = connection.run(share, window, &stop).await;
            tally.map_err(|source| LoadError::Connection { address, source })
        });
    }
    let mut sum = Tally { latency: histogram(), failed: 0 };
    while let Some(ended) = running.join_next().await {
        let tally = ended.map_err(|error| LoadError::Thread(error.into()))??;
        sum.latency.add(&tally.latency).expect("histograms of one shape");
        sum.failed += tally.failed;
    }
    Ok(sum)
}

/// The load does not read error texts; one ordinary request tells what is wrong.
async fn why(addresses: &[String]) -> String {
    let put = pb::PutRequest { key: PREFIX.into(), ..Default::default() };
    match Client::new(addresses, Options::default()) {
        Ok(client) => match client.put(put).await {
            Ok(_) => "an ordinary request succeeds, though".to_owned(),
            Err(error) => error.to_string(),
        },
        Err(error) => error.to_string(),
    }
}

/// Processor time that a process has used, from `/proc`; zero where it cannot be told.
pub(super) fn cpu_time(process: &str) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The second field is the program's name in parentheses and may hold blanks; utime and stime are 14 and 15.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 =
        after_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    // Linux shows hundredths of a second to user space on every architecture this builds for.
    Duration::from_millis(ticks * 10)
}

/// How long it takes `condition` to come true; `None` when `patience` ends first.
pub(super) async fn wait_for(
    patience: Duration,
    mut condition: impl AsyncFnMut() -> bool,
) -> Option<Duration> {
    let began: Instant = clock::now();
    loop {
        if condition().await {
            return Some(began.elapsed());
        }
        if began.elapsed() >= patience {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
