//! A short steady write load that runs before, through and after a fault, and the proof of what survived it.
//!
//! A few writers, at least one through each endpoint, write one key after another without a pause; no key is
//! written twice and no write is tried twice. Afterwards every surviving node is read at one revision and the
//! outcome is judged (`judge`). The keys lie below [`PREFIX`] and are removed at the end. Where nobody could be reached
//! for that, or the load was dropped instead of finished, they stay until somebody sweeps (`sweep`).

pub mod history;
mod judge;
mod past;
mod sweep;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::task::JoinSet;
use tonic::Code;

pub use judge::{Evidence, Verdict, judge};
pub use sweep::sweep;

use self::history::{Attempt, Fault, Found, History, Outcome, ReadBack, Replica, WriteId};
use super::{Certainty, Client, ClientError, Link, Options, prefix_end};
use crate::clock;
use crate::proto::etcdserverpb as pb;

/// All keys of all probes begin with it; those of one run with this, the run's name and a slash.
pub const PREFIX: &[u8] = b"replcluster/probe/";

/// So many writers at least, however few endpoints there are: writes that are synced together are answered together, and
/// with fewer writers there would be moments at which none is in flight.
const WRITERS: usize = 8;
/// So many writers at most; endpoints beyond them get none.
const MOST_WRITERS: usize = 64;
/// A writer stops here, to bound the memory of the history (40 bytes each) and of the store.
const MOST_WRITES: u32 = 100_000;
/// How long a writer waits for an answer: longer than any server here makes a client wait before it gives up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// A writer sends its next write after this long even if the last one is not answered.
const OVERTAKEN_AFTER: Duration = Duration::from_millis(100);
/// So many writes of one writer may be without an answer at a time.
const MOST_PENDING: usize = 32;
/// How long the writes in flight may take once the load is told to stop.
const DRAIN: Duration = Duration::from_secs(3);
/// A writer whose write failed tries the next one after this long, so that a dead node is not hammered.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(2);
/// How long the whole read-back may take where the nodes serve.
pub const READ_PATIENCE: Duration = Duration::from_secs(10);
/// How long the keys are tried to be removed.
const REMOVE_PATIENCE: Duration = Duration::from_secs(3);
/// Keys in one page of the read-back.
const PAGE: i64 = 4096;

/// A running load.
#[derive(Debug)]
pub struct Probe {
    shared: Arc<Shared>,
    /// Owned, so that a dropped probe stops writing.
    writers: JoinSet<Vec<Attempt>>,
}

#[derive(Debug)]
struct Shared {
    prefix: Vec<u8>,
    began: Instant,
    stop: AtomicBool,
    acknowledged: AtomicU64,
    after_fault: AtomicU64,
    /// When the fault was about to be ordered, in microseconds since `began`; 0 while it was not.
    ordered_us: AtomicU64,
    /// When its effect was seen, likewise.
    seen_us: AtomicU64,
}

impl Shared {
    fn micros(&self) -> u64 {
        // Zero stands for "never", so the load begins at 1.
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX).max(1)
    }

    fn seen_us(&self) -> Option<u64> {
        Some(self.seen_us.load(Ordering::SeqCst)).filter(|at_us| *at_us > 0)
    }

    fn fault(&self) -> Option<Fault> {
        let ordered_us = self.ordered_us.load(Ordering::SeqCst);
        (ordered_us > 0).then(|| Fault { ordered_us, seen_us: self.seen_us() })
    }

    /// Now, where no moment stands there yet.
    fn mark(&self, moment: &AtomicU64) {
        let _ = moment.compare_exchange(0, self.micros(), Ordering::SeqCst, Ordering::SeqCst);
    }
}

impl Probe {
    /// Starts the load through all endpoints. Those that cannot be reached are tried again and again.
    ///
    /// # Errors
    /// [`ClientError::NoEndpoints`], [`ClientError::BadEndpoint`].
    pub async fn start(endpoints: &[String]) -> Result<Probe, ClientError> {
        Probe::start_with(endpoints, WRITERS).await
    }

    /// As [`Probe::start`], with at least so many writers.
    ///
    /// # Errors
    /// As [`Probe::start`].
    pub async fn start_with(endpoints: &[String], writers: usize) -> Result<Probe, ClientError> {
        Probe::begin(endpoints, writers, &format!("{:016x}", rand::random::<u64>()))
    }

    /// As [`Probe::start`], under a name that no other run has: by it whoever sweeps knows whether this one is over.
    ///
    /// # Errors
    /// As [`Probe::start`].
    pub async fn start_as(endpoints: &[String], run: &str) -> Result<Probe, ClientError> {
        Probe::begin(endpoints, WRITERS, run)
    }

    fn begin(endpoints: &[String], writers: usize, run: &str) -> Result<Probe, ClientError> {
        let links = endpoints
            .iter()
            .take(MOST_WRITERS)
            .map(|endpoint| Link::new(endpoint, Duration::from_secs(1)))
            .collect::<Result<Vec<Link>, ClientError>>()?;
        if links.is_empty() {
            return Err(ClientError::NoEndpoints);
        }
        let prefix = [PREFIX, run.as_bytes(), b"/"].concat();
        let shared = Arc::new(Shared {
            prefix,
            began: clock::now(),
            stop: AtomicBool::new(false),
            acknowledged: AtomicU64::new(0),
            after_fault: AtomicU64::new(0),
            ordered_us: AtomicU64::new(0),
            seen_us: AtomicU64::new(0),
        });
        let count = links.len().max(writers.min(MOST_WRITERS));
        let mut writers = JoinSet::new();
        for (writer, link) in (0..).zip(links.iter().cycle().take(count)) {
            writers.spawn(write(Arc::clone(&shared), link.clone(), writer));
        }
        Ok(Probe { shared, writers })
    }

    /// Writes acknowledged so far.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::SeqCst)
    }

    /// To be called right before the fault is ordered; the first call counts.
    pub fn mark_ordered(&self) {
        self.shared.mark(&self.shared.ordered_us);
    }

    /// To be called as soon as the fault is seen to have struck; the first call counts.
    pub fn mark_seen(&self) {
        self.shared.mark(&self.shared.seen_us);
    }

    /// Acknowledged writes that were sent after [`Probe::mark_seen`].
    #[must_use]
    pub fn acknowledged_after_fault(&self) -> u64 {
        self.shared.after_fault.load(Ordering::SeqCst)
    }

    /// Stops the load, reads everything back through each of the surviving endpoints within `patience`, removes the
    /// keys, and judges.
    pub async fn finish(mut self, surviving: &[String], patience: Duration) -> Evidence {
        let stopped_us = self.shared.micros();
        self.shared.stop.store(true, Ordering::SeqCst);
        let mut attempts = Vec::new();
        // Bounded: a writer looks at the flag between two writes, and one write ends after `DRAIN` once it is set.
        while let Some(writer) = self.writers.join_next().await {
            match writer {
                Ok(of_one) => attempts.extend(of_one),
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        }
        let prefix = self.shared.prefix.clone();
        let history = History { prefix, attempts, fault: self.shared.fault(), stopped_us };
        let deadline = clock::now() + patience;
        let mut readback = read_back(&history.prefix, surviving, deadline).await;
        if let Some(first) = readback.replicas.first() {
            let in_doubt = judge::in_doubt(&history, first);
            let left = deadline.saturating_duration_since(clock::now());
            past::look_back(&history.prefix, &mut readback, in_doubt, left).await;
        }
        let mut evidence = judge(&history, &readback);
        let read: Vec<String> = readback.replicas.into_iter().map(|replica| replica.endpoint).collect();
        let reachable = if read.is_empty() { surviving } else { &read };
        if let Err(why) = remove(&history.prefix, reachable).await {
            let prefix = String::from_utf8_lossy(&history.prefix).into_owned();
            evidence.leftover = Some(format!("the load's keys below {prefix} are still there: {why}"));
        }
        evidence
    }
}

/// One writer: one write after another through one endpoint until it is told to stop. A write that hangs is left
/// behind and overtaken, so that it cannot make a cluster that serves again look as if it did not.
async fn write(shared: Arc<Shared>, link: Link, writer: u16) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    let mut pending = FuturesUnordered::new();
    for number in 0..MOST_WRITES {
        if shared.stop.load(Ordering::SeqCst) {
            break;
        }
        pending.push(write_once(&shared, &link, WriteId { writer, number }));
        let ended = tokio::select! {
            biased;
            ended = pending.next() => ended,
            () = tokio::time::sleep(OVERTAKEN_AFTER), if pending.len() < MOST_PENDING => None,
        };
        if let Some(attempt) = ended {
            attempts.push(attempt);
            match attempt.outcome {
                Outcome::Acknowledged { .. } => {}
                Outcome::Indeterminate { .. } | Outcome::NotDone { .. } => {
                    tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
                }
            }
        }
    }
    while let Some(attempt) = pending.next().await {
        attempts.push(attempt);
    }
    attempts
}

/// One write, sent once.
async fn write_once(shared: &Shared, link: &Link, id: WriteId) -> Attempt {
    let request = pb::PutRequest {
        key: history::key(&shared.prefix, id).into(),
        value: history::value(&shared.prefix, id).into(),
        ..Default::default()
    };
    let mut kv = link.kv();
    let sent_us = shared.micros();
    let answer = tokio::select! {
        biased;
        answer = kv.put(request) => Some(answer),
        () = give_up(shared) => None,
    };
    let at_us = shared.micros();
    let outcome = match answer {
        Some(Ok(answer)) => {
            let revision = answer.into_inner().header.unwrap_or_default().revision;
            shared.acknowledged.fetch_add(1, Ordering::SeqCst);
            if shared.seen_us().is_some_and(|seen_us| sent_us > seen_us) {
                shared.after_fault.fetch_add(1, Ordering::SeqCst);
            }
            Outcome::Acknowledged { revision, at_us }
        }
        Some(Err(status)) => match ClientError::from_status(link.endpoint(), status).certainty() {
            Certainty::NotDone => Outcome::NotDone { at_us },
            Certainty::Unknown => Outcome::Indeterminate { at_us },
        },
        None => Outcome::Indeterminate { at_us },
    };
    Attempt { id, sent_us, outcome }
}

/// Ends when a write has waited long enough: its own time, or less once the load was told to stop.
async fn give_up(shared: &Shared) {
    let began = tokio::time::Instant::now();
    let mut stopping = None;
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    loop {
        let now = tick.tick().await;
        if stopping.is_none() && shared.stop.load(Ordering::SeqCst) {
            stopping = Some(now);
        }
        if now - began >= WRITE_TIMEOUT || stopping.is_some_and(|since| now - since >= DRAIN) {
            return;
        }
    }
}

/// So often the read-back begins anew where another client compacts the revision that is being read.
const COMPACTIONS: usize = 3;

/// Reads the run's keys through every endpoint, all at one revision.
async fn read_back(prefix: &[u8], surviving: &[String], deadline: Instant) -> ReadBack {
    for _ in 0..COMPACTIONS {
        if let Some(readback) = read_back_once(prefix, surviving, deadline, false).await {
            return readback;
        }
    }
    read_back_once(prefix, surviving, deadline, true).await.unwrap_or_default()
}

/// The first endpoint says at which revision, the others must know it. `None` where that revision was compacted away
/// meanwhile, which is an error only the `last` time.
async fn read_back_once(
    prefix: &[u8],
    surviving: &[String],
    deadline: Instant,
    last: bool,
) -> Option<ReadBack> {
    let mut readback = ReadBack::default();
    let mut revision = 0;
    for endpoint in surviving {
        let left = deadline.saturating_duration_since(clock::now());
        if left.is_zero() {
            readback.unread.push((endpoint.clone(), "no time was left to ask it".to_owned()));
            continue;
        }
        // Its own time never ends first, so that what is said of it is said in one way.
        let read = read_replica(prefix, endpoint, revision, left * 2);
        match tokio::time::timeout(left, read).await {
            Ok(Ok(replica)) => {
                revision = replica.revision;
                readback.replicas.push(replica);
            }
            Ok(Err(error)) if past::is_compacted(&error) && !last => return None,
            Ok(Err(error)) if is_future_revision(&error) => readback.stale.push(endpoint.clone()),
            Ok(Err(error)) => readback.unread.push((endpoint.clone(), error.what())),
            Err(_) => {
                let late = format!("no answer within {:.1} s", left.as_secs_f64());
                readback.unread.push((endpoint.clone(), late));
            }
        }
    }
    Some(readback)
}

/// Reads all keys below the prefix through one endpoint, at `revision` or, where that is 0, at the newest.
async fn read_replica(
    prefix: &[u8],
    endpoint: &str,
    revision: i64,
    timeout: Duration,
) -> Result<Replica, ClientError> {
    let options = Options { timeout, ..Options::default() };
    let client = Client::new(std::slice::from_ref(&endpoint.to_owned()), options)?;
    let (revision, found) = range_all(&client, prefix, revision).await?;
    Ok(Replica { endpoint: endpoint.to_owned(), revision, found })
}

/// All keys below the prefix at `revision` or, where that is 0, at the newest; and which revision that was.
async fn range_all(
    client: &Client,
    prefix: &[u8],
    mut revision: i64,
) -> Result<(i64, Vec<Found>), ClientError> {
    let mut found = Vec::new();
    let mut from = Bytes::copy_from_slice(prefix);
    loop {
        let request = pb::RangeRequest {
            key: from,
            range_end: prefix_end(prefix),
            revision,
            limit: PAGE,
            ..Default::default()
        };
        let page = client.range(request).await?;
        if revision == 0 {
            revision = page.header.unwrap_or_default().revision;
        }
        let last = page.kvs.last().map(|kv| kv.key.clone());
        found.extend(page.kvs.into_iter().map(|kv| Found {
            key: kv.key.into(),
            value: kv.value.into(),
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            version: kv.version,
        }));
        match last {
            Some(last) if page.more => from = [&last[..], &[0]].concat().into(),
            _ => return Ok((revision, found)),
        }
    }
}

fn is_future_revision(error: &ClientError) -> bool {
    error.status().is_some_and(|status| {
        status.code() == Code::OutOfRange
            && status.message().contains("required revision is a future revision")
    })
}

/// Removes the run's keys; says why, where that is not done.
async fn remove(prefix: &[u8], endpoints: &[String]) -> Result<(), String> {
    if endpoints.is_empty() {
        return Err("no node is left to remove them through".to_owned());
    }
    let options = Options { timeout: REMOVE_PATIENCE, ..Options::default() };
    let client = Client::new(endpoints, options).map_err(|error| error.what())?;
    match tokio::time::timeout(REMOVE_PATIENCE, sweep::delete(&client, prefix, prefix_end(prefix))).await {
        Ok(deleted) => deleted.map(|_| ()).map_err(|error| error.what()),
        Err(_) => Err(format!("no delete was acknowledged within {REMOVE_PATIENCE:?}")),
    }
}

#[cfg(test)]
mod tests;
