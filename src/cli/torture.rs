//! `replcluster torture`: a cluster of its own, in a directory of its own, under the load of many clients, whose nodes
//! are killed and stopped again and again; at the end the history of every request is checked. Nothing that runs
//! already is touched.

mod cluster;
mod compaction;
mod descriptors;
mod disk;
mod faults;
mod flapping;
mod judge;
mod load;
mod machine;
mod record;
mod request;
mod rollback;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use nix::errno::Errno;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use self::cluster::Cluster;
use self::disk::Disk;
use self::faults::{Done, Kind, Plan, Torturer};
use self::judge::{Demands, Judgement};
use self::load::{Board, Clients, Load};
use self::machine::Watch;
use self::record::Record;
use super::client::parse_duration;
use super::exit::{Exit, Failure, Outcome};
use super::pipe::{self, tell};
use super::scratch::Scratch;
use crate::check::{self, Freshness, History, Key, Request};
use crate::client::ClientError;
use crate::client::probe::Verdict;
use crate::clock;
use crate::supervisor::spawn::SpawnError;

/// How long the cluster may take to serve for the first time.
const START: Duration = Duration::from_secs(60);

/// So many reasons are printed for people.
const REASONS: usize = 5;

/// What the user typed after `torture`.
#[derive(Debug, Args)]
pub struct Torture {
    /// How many times something is done to the nodes
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    cycles: u32,
    /// How many nodes the cluster has; all but one may die at once
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=9))]
    nodes: u8,
    /// What is done to them
    #[arg(long, value_delimiter = ',', value_enum, default_value = "kill")]
    faults: Vec<Kind>,
    /// Kill only leaders, while all clients talk to the other nodes; any error is then a violation
    #[arg(long, conflicts_with = "faults")]
    survivors_only: bool,
    /// Decides what is done to whom; printed, so that it can be repeated [default: another one every time]
    #[arg(long)]
    seed: Option<u64>,
    /// How many clients work at the same time
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=1000))]
    clients: u32,
    /// How many different keys they use
    #[arg(long, default_value_t = 48, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    keys: u32,
    /// Requests a second, of all clients together
    #[arg(long, default_value_t = 4000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// Stop after this long, however many cycles are done
    #[arg(long, default_value = "1h", value_parser = parse_duration, value_name = "D")]
    timeout: Duration,
    /// Where the temporary directory is made
    #[arg(long, default_value = ".", value_name = "DIR")]
    dir: PathBuf,
    /// Leave logs, data and history behind, whatever the verdict
    #[arg(long)]
    keep: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Let leaders say yes before followers hold an entry: shows that the check can fail
    #[cfg(feature = "fault-switches")]
    #[arg(long, hide = true)]
    unsafe_acknowledge_early: bool,
}

/// Why a run has no verdict.
#[derive(Debug, thiserror::Error)]
pub(super) enum TortureFailure {
    /// A directory or file could not be made.
    #[error("{0}: {1}\nchoose another place with --dir")]
    Directory(PathBuf, std::io::Error),
    /// There is no server to start.
    #[error(transparent)]
    NoProgram(#[from] SpawnError),
    /// A server could not be started, or not be waited for.
    #[error("{0} cannot be started: {1}\nis it installed beside this program or on the PATH?")]
    Spawn(PathBuf, std::io::Error),
    /// There is no disk that can be filled without harm.
    #[error(
        "full-disk needs a small file system of its own, and none can be mounted: {0}\nrun it as root, or leave full-disk out"
    )]
    NoDisk(String),
    /// A node could not be sent a signal.
    #[error("{0} cannot be sent a signal: {1}\nonly processes of this user can be")]
    Signal(String, Errno),
    /// An address cannot be used.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The cluster never came to serve.
    #[error("the cluster did not come to serve; the end of the first node's log:\n{0}\nread the logs in {1}")]
    NotServing(String, PathBuf),
    /// The user stopped it.
    #[error("interrupted; everything that was started is ended")]
    Interrupted,
}

impl From<TortureFailure> for Failure {
    fn from(failure: TortureFailure) -> Failure {
        let exit = match &failure {
            TortureFailure::Interrupted => Exit::Interrupted,
            TortureFailure::NotServing(..) => Exit::TimedOut,
            TortureFailure::Directory(..)
            | TortureFailure::NoProgram(_)
            | TortureFailure::Spawn(..)
            | TortureFailure::NoDisk(_)
            | TortureFailure::Signal(..)
            | TortureFailure::Client(_) => Exit::Failed,
        };
        Failure::new(exit, failure.to_string())
    }
}

pub(super) async fn run(verb: &Torture, interrupt: CancellationToken) -> Outcome {
    let seed = verb.seed.unwrap_or_else(rand::random);
    let mut scratch =
        Scratch::new(&verb.dir, "torture").map_err(|(path, error)| TortureFailure::Directory(path, error))?;
    tell(&format!("seed {seed}, {} nodes, in {}", verb.nodes, scratch.path().display()));
    let began = clock::now();
    // Dropping the work ends clients and servers; the directory goes after them.
    let outcome = tokio::select! {
        biased;
        () = interrupt.cancelled() => Err(TortureFailure::Interrupted),
        outcome = torture(verb, seed, &scratch) => outcome,
    };
    let (judgement, history, addresses) = match outcome {
        Ok(done) => done,
        Err(failure) => {
            if matches!(failure, TortureFailure::NotServing(..)) {
                scratch.keep();
            }
            return Err(failure.into());
        }
    };
    let mut kept = None;
    if verb.keep || judgement.verdict == Verdict::Violated {
        scratch.keep();
        let path = scratch.path().join("history.json");
        let record = Record::new(seed, &addresses, &history);
        let written = std::fs::File::create(&path)
            .and_then(|file| Ok(serde_json::to_writer(std::io::BufWriter::new(file), &record)?));
        written.map_err(|error| TortureFailure::Directory(path.clone(), error))?;
        kept = Some(path);
    }
    let seconds = began.elapsed().as_secs_f64();
    pipe::print(report(verb, seed, seconds, &judgement, kept.as_deref()).as_bytes())?;
    Ok(match judgement.verdict {
        Verdict::Proved => Exit::Done,
        Verdict::Violated => Exit::Violated,
        Verdict::Inconclusive => Exit::Inconclusive,
    })
}

async fn torture(
    verb: &Torture,
    seed: u64,
    scratch: &Scratch,
) -> Result<(Judgement, History, Vec<String>), TortureFailure> {
    let disk = match verb.kinds().contains(&Kind::FullDisk) {
        true => Some(Disk::mount(&scratch.join("disk"))?),
        false => None,
    };
    let place = disk.as_ref().map_or(scratch.path(), Disk::root).to_owned();
    let mut cluster = Cluster::start(place, verb.nodes.into(), verb.flags())?;
    let addresses = cluster.addresses();
    let board = Board::new(&addresses, verb.keys)?;
    let Some(first_revision) = first_revision(&cluster, &board, verb).await else {
        let log = cluster.last_lines(&addresses[0]);
        return Err(TortureFailure::NotServing(log, scratch.path().to_owned()));
    };
    board.note_first(first_revision);
    let watch = Watch::start(scratch.path())?;
    let load = Load { clients: verb.clients, keys: verb.keys, rate: verb.rate, seed };
    let clients = Clients::start(&board, load);
    let mut done = Done::default();
    let mut torturer = Torturer {
        cluster: &mut cluster,
        board: board.clone(),
        done: &mut done,
        disk: disk.as_ref(),
        forgives_ends: false,
    };
    let mut plan = Plan::new(seed, verb.nodes.into(), &verb.kinds());
    let tell_cycle = |number: u32, text: &str| tell(&format!("cycle {number} of {}: {text}", verb.cycles));
    let cycles = torturer.run(&mut plan, verb.cycles, tell_cycle);
    let timed_out = match tokio::time::timeout(verb.timeout, cycles).await {
        Ok(finished) => finished.map(|()| false)?,
        Err(_) => true,
    };
    let mut history = History { first_revision, operations: clients.finish().await };
    history.operations.append(&mut done.operations);
    // A cycle that was cut off may have left nodes down, and a broken one surely something worth seeing as it is.
    let whole = done.broken.is_none() && !timed_out;
    let back = if whole {
        judge::read_back(&board, verb.keys, &history, verb.clients).await
    } else {
        judge::ReadBack::missing("the cluster was not whole at the end, so not everything was read back")
    };
    let errors = board.errors();
    if let Some(disk) = &disk
        && (verb.keep || done.broken.is_some())
    {
        cluster.save_logs(disk.root(), scratch.path());
    }
    drop(cluster);
    drop(disk);
    let stalls = watch.end();
    let demands = Demands { cycles: verb.cycles, no_errors: verb.survivors_only, timed_out, stalls };
    let judging = tokio::task::spawn_blocking(move || {
        let judgement = judge::judge(&mut history, back, &done, errors, demands);
        (judgement, history)
    });
    let (judgement, history) = judging.await.map_err(|_| TortureFailure::Interrupted)?;
    Ok((judgement, history, addresses))
}

/// The revision of the empty store, once all nodes are in sync.
async fn first_revision(cluster: &Cluster, board: &Arc<Board>, verb: &Torture) -> Option<i64> {
    let began = clock::now();
    while began.elapsed() < START {
        if cluster.agreed_leader().await.is_some() {
            let last = Key(verb.keys - 1);
            let read = Request::Read { first: Key(0), last, freshness: Freshness::Linearizable };
            let read = board.ask(verb.clients, 0, read).await;
            if let Some(check::Outcome::Done { answer, .. }) = read.map(|operation| operation.outcome) {
                return Some(answer.revision());
            }
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    None
}

impl Torture {
    fn kinds(&self) -> Vec<Kind> {
        if self.survivors_only { vec![Kind::Leader] } else { self.faults.clone() }
    }

    /// What every node is started with.
    fn flags(&self) -> Vec<String> {
        let mut flags = Vec::new();
        #[cfg(feature = "fault-switches")]
        if self.unsafe_acknowledge_early {
            flags.push("--unsafe-acknowledge-early".to_owned());
        }
        // Leadership also goes back between the cycles.
        flags.extend(["--handback-after".to_owned(), "500ms".to_owned()]);
        if self.kinds().contains(&Kind::FullDisk) {
            // Short logs: what fills the disk should be what the fault puts there.
            flags.extend(["--log-keep-bytes".to_owned(), "8000000".to_owned()]);
        }
        flags
    }
}

fn report(verb: &Torture, seed: u64, seconds: f64, judgement: &Judgement, kept: Option<&Path>) -> String {
    if verb.json {
        let mut value = judgement.value();
        value["schema"] = json!(1);
        value["seed"] = json!(seed);
        value["nodes"] = json!(verb.nodes);
        value["cycles"] = json!(verb.cycles);
        value["survivors_only"] = json!(verb.survivors_only);
        value["seconds"] = json!((seconds * 10.0).round() / 10.0);
        value["history"] = json!(kept.map(Path::to_string_lossy));
        return format!("{value}\n");
    }
    let mut lines =
        vec![format!("seed {seed}, {} nodes, {} cycles, {seconds:.1} s", verb.nodes, verb.cycles)];
    lines.extend(judgement.lines());
    lines.extend(judgement.reasons.iter().take(REASONS).cloned());
    if let Some(more) = judgement.reasons.len().checked_sub(REASONS + 1) {
        lines.push(format!("and {} more; all of them with --json", more + 1));
    }
    lines.push(
        match judgement.verdict {
            Verdict::Proved => "proved",
            Verdict::Violated => "violated",
            Verdict::Inconclusive => "inconclusive",
        }
        .to_owned(),
    );
    if let Some(path) = kept {
        lines.push(format!(
            "everything that was asked and answered is in {}; the logs are beside it",
            path.display()
        ));
        lines.push(format!(
            "the same decisions again: replcluster torture --seed {seed} with the same options"
        ));
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Torture,
    }

    #[test]
    fn numbers_out_of_bounds_are_refused() {
        for words in [
            &["--cycles", "0"][..],
            &["--nodes", "1"],
            &["--keys", "0"],
            &["--timeout", "-1s"],
            &["--faults", "leader"],
            &["--survivors-only", "--faults", "kill"],
        ] {
            assert!(Line::try_parse_from([&["torture"], words].concat()).is_err(), "{words:?}");
        }
    }

    #[test]
    fn several_kinds_of_fault_are_named_with_commas_between() {
        let words = ["torture", "--faults", "kill,stop,all-kill,strand"];
        let arguments = Line::try_parse_from(words).unwrap().arguments;
        assert_eq!(arguments.kinds(), [Kind::Kill, Kind::Stop, Kind::AllKill, Kind::Strand]);
        let words = ["torture", "--faults", "full-disk,no-descriptors,register-rollback,flapping"];
        let arguments = Line::try_parse_from(words).unwrap().arguments;
        let kinds = [Kind::FullDisk, Kind::NoDescriptors, Kind::RegisterRollback, Kind::Flapping];
        assert_eq!(arguments.kinds(), kinds);
    }
}
