//! `replcluster bench`: load against any etcd v3 endpoints; with `--versus`, ours and a stock etcd or another build
//! side by side on one disk; with `--interference`, what big operations cost another client; with `--failover`, how long a killed or stopped node keeps everybody from writing, and whether one that
//! was stopped says anything stale when it wakes; with `--controller`, how long an operator waits for this program. The machines this runs on are shared: only ratios taken in one run
//! mean anything.

mod awakening;
mod cluster;
mod controller;
mod data;
mod failover;
mod interference;
mod load;
mod request;
mod tally;
mod throughput;
mod wire;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use self::load::LoadError;
use self::request::Mix;
use super::exit::{Exit, Failure, Outcome};
use super::pipe::{self, tell};
use super::scratch::Scratch;
use crate::client::ClientError;
use crate::supervisor::spawn::SpawnError;

/// How long deleting the load's keys may take where the load has failed or was stopped.
const CLEAR: Duration = Duration::from_secs(5);

/// What the user typed after `bench`.
#[derive(Debug, Args)]
pub struct BenchArguments {
    /// Addresses of any etcd v3 servers, host:port with commas between; the cluster of the config where none is given
    #[arg(long, value_delimiter = ',', value_name = "ADDR,…", conflicts_with_all = ["versus", "failover", "controller", "interference"])]
    pub endpoints: Vec<String>,
    /// Start ours and another in temporary directories, load them in turn, and print ratios
    #[arg(long, value_enum)]
    versus: Option<Versus>,
    /// Kill leaders of a cluster started for it and measure for how long no write is acknowledged
    #[arg(long)]
    failover: bool,
    /// Measure what a big range, a big delete and many range compares cost another client's small puts
    #[arg(long, conflicts_with_all = ["failover", "controller"])]
    interference: bool,
    /// With --interference: how big they are; 1 is 200 MB, a million keys, 30 times 200,000 keys
    #[arg(long, default_value = "1", requires = "interference", value_parser = parse_scale, value_name = "FACTOR")]
    scale: f64,
    /// Time the commands of this program on a cluster started for it: up, status, kill, down
    #[arg(long, conflicts_with_all = ["versus", "failover"])]
    controller: bool,
    /// With --controller: how often everything is done
    #[arg(long, default_value_t = 10, requires = "controller", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    runs: u32,
    /// With --failover: KILL, or STOP and CONT with a look for stale reads after waking
    #[arg(long, value_enum, ignore_case = true, default_value = "KILL", requires = "failover")]
    signal: Fault,
    /// With --failover: whom it strikes
    #[arg(long, value_enum, default_value = "leader", requires = "failover")]
    target: Victim,
    /// With --failover: compare an empty cluster with one that holds this much, such as 1GiB
    #[arg(long, value_name = "BYTES", value_parser = data::parse_bytes, conflicts_with = "versus", requires = "failover")]
    data: Option<u64>,
    /// Numbers of closed-loop clients, over all endpoints
    #[arg(long, value_delimiter = ',', default_value = "1,64,512", value_parser = parse_clients)]
    clients: Vec<usize>,
    /// What the clients do
    #[arg(long, value_delimiter = ',', value_enum, default_value = "put")]
    mix: Vec<Mix>,
    /// How long each number of clients is measured, in seconds, after half a second of warm-up
    #[arg(long, default_value = "5", value_parser = parse_seconds)]
    seconds: Duration,
    /// Bytes in a value; keys have 32
    #[arg(long, default_value = "256", value_parser = parse_size)]
    size: usize,
    /// How many different keys
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    keys: u64,
    /// Connections to one endpoint at most; clients share them
    #[arg(long, default_value_t = 2)]
    connections: usize,
    /// With --versus: how often everything is measured
    #[arg(long, default_value_t = 3, requires = "versus", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// With --failover: how often a node is struck, in each cluster
    #[arg(long, default_value_t = 20, requires = "failover", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    kills: u32,
    /// With --failover: how many clients write at the same time
    #[arg(long, default_value_t = 4, requires = "failover", value_parser = parse_writers)]
    writers: usize,
    /// Where the temporary directory of --versus, --failover, --interference and --controller is made; its disk is the one that is measured
    #[arg(long, default_value = ".", value_name = "DIR")]
    dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is done to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Fault {
    /// SIGKILL, and start it again afterwards.
    #[value(name = "KILL", alias = "SIGKILL")]
    Kill,
    /// SIGSTOP, and SIGCONT once the others go on without it.
    #[value(name = "STOP", alias = "SIGSTOP")]
    Stop,
}

/// To which node it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Victim {
    /// The one that leads.
    Leader,
    /// The last one that does not.
    Follower,
}

/// Whom ours is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Versus {
    /// The `etcd` of the PATH with its defaults.
    Etcd,
    /// The `replserver` of another build, named by $REPLSERVER_OLD.
    Old,
}

impl Versus {
    fn kind(self) -> cluster::Kind {
        match self {
            Versus::Etcd => cluster::Kind::Etcd,
            Versus::Old => cluster::Kind::Old,
        }
    }
}

/// What a benchmark found, for people and for programs.
#[derive(Debug)]
pub struct Report {
    /// A table.
    text: Vec<u8>,
    /// The same with everything behind it.
    value: Value,
}

impl BenchArguments {
    /// True where the load goes to the cluster of the configuration.
    #[must_use]
    pub fn uses_configuration(&self) -> bool {
        self.endpoints.is_empty() && !self.starts_its_own()
    }

    fn starts_its_own(&self) -> bool {
        self.versus.is_some() || self.failover || self.controller || self.interference
    }
}

/// Why there is no result, or none to be proud of.
#[derive(Debug, thiserror::Error)]
pub enum BenchFailure {
    /// A request beside the load failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The load failed.
    #[error("{0}")]
    Load(String),
    /// A directory or file could not be made.
    #[error("{0}: {1}\nchoose another place with --dir")]
    Directory(PathBuf, std::io::Error),
    /// There is no server to start.
    #[error(transparent)]
    NoProgram(#[from] SpawnError),
    /// A server could not be started.
    #[error("{0} cannot be started: {1}\nis it installed beside this program or on the PATH?")]
    Spawn(PathBuf, std::io::Error),
    /// A server did not do what it must before anything can be measured.
    #[error("{kind}: {address} {what}; the end of its log:\n{tail}\nread the rest in {log}")]
    Cluster {
        /// Whose servers.
        kind: &'static str,
        /// Which server.
        address: String,
        /// What it did not do.
        what: &'static str,
        /// The last lines of its log.
        tail: String,
        /// Where the log is.
        log: PathBuf,
    },
    /// A command of the controller failed.
    #[error("`replcluster {command}` ended with {status}:\n{said}\nread the logs in {}", .directory.display())]
    Command {
        /// What was typed.
        command: &'static str,
        /// How it ended.
        status: std::process::ExitStatus,
        /// Everything it printed.
        said: String,
        /// Where its cluster is.
        directory: PathBuf,
    },
    /// The disk is too small for what was asked.
    #[error(
        "{} has {free_bytes} bytes free, and {needed_bytes} are needed\nchoose another disk with --dir, or less --data",
        .directory.display()
    )]
    Space {
        /// Where the data would be.
        directory: PathBuf,
        /// What is free there.
        free_bytes: u64,
        /// What all copies, their logs and some slack take.
        needed_bytes: u64,
    },
    /// A cluster acknowledges nothing.
    #[error("{0}: too few writes were acknowledged {1}\nread the logs in the directory that is left behind")]
    NoWrites(&'static str, &'static str),
    /// Something acknowledged is missing or wrong.
    #[error("violated: {}\nread the logs in the directory that is left behind", .violations.join("; "))]
    Violated {
        /// What was measured all the same.
        report: Report,
        /// What was seen that must never be.
        violations: Vec<String>,
    },
    /// No fault in a cluster was seen by enough writes to say anything of it.
    #[error("inconclusive: {}\ntry again on a machine with less to do", .reasons.join("; "))]
    Inconclusive {
        /// What was measured all the same.
        report: Report,
        /// Why, once each.
        reasons: Vec<String>,
    },
    /// The user stopped it.
    #[error("interrupted; everything that was started is ended")]
    Interrupted,
    /// The user stopped it, and the load's keys could not be deleted.
    #[error("interrupted; keys of the load may be left\ndelete them: replcluster client del --prefix {0}")]
    KeysLeft(String),
}

impl From<LoadError> for BenchFailure {
    fn from(error: LoadError) -> BenchFailure {
        match error {
            LoadError::Client(error) => BenchFailure::Client(error),
            LoadError::Interrupted => BenchFailure::Interrupted,
            other @ (LoadError::Connection { .. } | LoadError::AllFailed(_) | LoadError::Thread(_)) => {
                BenchFailure::Load(other.to_string())
            }
        }
    }
}

impl From<BenchFailure> for Failure {
    fn from(error: BenchFailure) -> Failure {
        let exit = match &error {
            BenchFailure::Client(error) => Exit::from(error),
            BenchFailure::Load(_)
            | BenchFailure::Directory(..)
            | BenchFailure::NoProgram(_)
            | BenchFailure::Spawn(..)
            | BenchFailure::Command { .. }
            | BenchFailure::Cluster { .. }
            | BenchFailure::Space { .. }
            | BenchFailure::NoWrites(..) => Exit::Failed,
            BenchFailure::Violated { .. } => Exit::Violated,
            BenchFailure::Inconclusive { .. } => Exit::Inconclusive,
            BenchFailure::Interrupted | BenchFailure::KeysLeft(_) => Exit::Interrupted,
        };
        Failure::new(exit, error.to_string())
    }
}

impl BenchFailure {
    /// A directory with the logs helps whoever looks into it.
    fn keeps_logs(&self) -> bool {
        match self {
            BenchFailure::Interrupted
            | BenchFailure::KeysLeft(_)
            | BenchFailure::NoProgram(_)
            | BenchFailure::Spawn(..)
            | BenchFailure::Directory(..)
            | BenchFailure::Space { .. } => false,
            BenchFailure::Client(_)
            | BenchFailure::Load(_)
            | BenchFailure::Command { .. }
            | BenchFailure::Cluster { .. }
            | BenchFailure::NoWrites(..)
            | BenchFailure::Violated { .. }
            | BenchFailure::Inconclusive { .. } => true,
        }
    }
}

/// Runs the benchmark against `--endpoints` or else `configured`, or against clusters of its own, until `interrupt`.
///
/// # Errors
/// What went wrong, or what was found that must never be.
pub async fn run(arguments: BenchArguments, configured: &[String], interrupt: &CancellationToken) -> Outcome {
    let outcome = if arguments.starts_its_own() {
        let made = Scratch::new(&arguments.dir, "bench");
        let mut scratch = made.map_err(|(path, error)| BenchFailure::Directory(path, error))?;
        // Dropping the work ends the servers; the directory goes after them.
        let outcome = tokio::select! {
            biased;
            () = interrupt.cancelled() => Err(BenchFailure::Interrupted),
            outcome = own_clusters(&arguments, &scratch, interrupt) => outcome,
        };
        if outcome.as_ref().is_err_and(BenchFailure::keeps_logs) {
            scratch.keep();
        }
        outcome
    } else {
        let endpoints = if arguments.endpoints.is_empty() { configured } else { &arguments.endpoints };
        match throughput::endpoints(&arguments, endpoints, interrupt).await {
            Err(failure) => Err(cleared(endpoints, failure).await),
            Ok(report) => Ok(report),
        }
    };
    match &outcome {
        Ok(report)
        | Err(BenchFailure::Violated { report, .. } | BenchFailure::Inconclusive { report, .. }) => {
            print(report, arguments.json)?;
        }
        Err(_) => {}
    }
    outcome.map(|_| Exit::Done).map_err(Failure::from)
}

/// The failure, after what the load wrote is gone. The first failure says more than one of cleaning up after it.
async fn cleared(endpoints: &[String], failure: BenchFailure) -> BenchFailure {
    let cleared = tokio::time::timeout(CLEAR, load::clear(endpoints)).await;
    if matches!(failure, BenchFailure::Interrupted) && !matches!(cleared, Ok(Ok(()))) {
        return BenchFailure::KeysLeft(String::from_utf8_lossy(request::PREFIX).into_owned());
    }
    failure
}

async fn own_clusters(
    arguments: &BenchArguments,
    scratch: &Scratch,
    interrupt: &CancellationToken,
) -> Result<Report, BenchFailure> {
    if arguments.controller {
        controller::run(arguments, scratch).await
    } else if arguments.interference {
        interference::run(arguments, scratch).await
    } else if arguments.failover {
        failover::run(arguments, scratch).await
    } else {
        let versus = arguments.versus.unwrap_or(Versus::Etcd);
        throughput::versus(arguments, versus, scratch, interrupt).await
    }
}

fn print(report: &Report, json: bool) -> Result<(), Failure> {
    if json { pipe::print(format!("{}\n", report.value).as_bytes()) } else { pipe::print(&report.text) }
}

/// Says how far it is, to people who wait.
fn note(text: &str) {
    if std::io::stderr().is_terminal() {
        tell(text);
    }
}

fn parse_clients(text: &str) -> Result<usize, String> {
    within(text, 1, 100_000)
}

fn parse_writers(text: &str) -> Result<usize, String> {
    within(text, 1, 64)
}

/// A request must fit into one HTTP/2 frame of the size that every server takes.
fn parse_size(text: &str) -> Result<usize, String> {
    within(text, 0, 16_000)
}

fn within(text: &str, low: usize, high: usize) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (low..=high).contains(number));
    number.ok_or_else(|| format!("expected a number from {low} to {high}"))
}

fn parse_scale(text: &str) -> Result<f64, String> {
    let factor = text.parse().ok().filter(|factor| (0.001..=10.0).contains(factor));
    factor.ok_or_else(|| "expected a factor from 0.001 to 10".to_owned())
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.1..=3600.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "expected seconds from 0.1 to 3600".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        arguments: BenchArguments,
    }

    #[test]
    fn numbers_out_of_bounds_are_refused() {
        for words in [
            ["--clients", "0"],
            ["--size", "20000"],
            ["--seconds", "0"],
            ["--keys", "0"],
            ["--writers", "65"],
            ["--mix", "watch"],
            ["--versus", "redis"],
        ] {
            assert!(Line::try_parse_from([&["bench"], &words[..]].concat()).is_err(), "{words:?}");
        }
        for words in [["--signal", "TERM"], ["--target", "everybody"], ["--data", "much"]] {
            assert!(
                Line::try_parse_from([&["bench", "--failover"], &words[..]].concat()).is_err(),
                "{words:?}"
            );
        }
    }

    #[test]
    fn what_only_another_kind_of_run_takes_is_refused() {
        for (words, kind) in [
            (["--signal", "STOP"], "--failover"),
            (["--target", "follower"], "--failover"),
            (["--data", "1GiB"], "--failover"),
            (["--kills", "3"], "--failover"),
            (["--writers", "3"], "--failover"),
            (["--runs", "3"], "--controller"),
            (["--scale", "0.5"], "--interference"),
        ] {
            let error = Line::try_parse_from([&["bench"], &words[..]].concat()).unwrap_err();
            assert!(error.to_string().contains(kind), "{error}");
            assert!(Line::try_parse_from([&["bench", kind], &words[..]].concat()).is_ok(), "{words:?}");
        }
        assert!(Line::try_parse_from(["bench", "--rounds", "2"]).is_err());
    }

    #[test]
    fn the_defaults_are_those_of_the_targets() {
        let arguments = Line::try_parse_from(["bench"]).unwrap().arguments;
        assert_eq!(
            (arguments.clients, arguments.mix, arguments.size),
            (vec![1, 64, 512], vec![Mix::Put], 256)
        );
    }

    #[test]
    fn a_signal_has_its_short_and_its_long_name_in_any_case() {
        for name in ["STOP", "stop", "SIGSTOP"] {
            let words = ["bench", "--failover", "--signal", name];
            assert_eq!(Line::try_parse_from(words).unwrap().arguments.signal, Fault::Stop, "{name}");
        }
    }

    #[test]
    fn clusters_of_its_own_and_endpoints_exclude_each_other() {
        let words = ["bench", "--endpoints", "a:1", "--failover"];
        assert!(Line::try_parse_from(words).is_err());
    }
}
