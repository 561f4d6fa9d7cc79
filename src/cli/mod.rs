//! The command line: a file a verb. Verbs render from values; what runs is asked of the supervisor and of the nodes.

use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::OnceLock;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use clap_complete::engine::ArgValueCandidates;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

mod add_follower;
pub mod bench;
mod charset;
mod check;
pub mod client;
mod completions;
mod context;
mod deserted;
mod down;
mod events;
mod exit;
mod export;
mod holder;
mod init;
mod kill;
mod lines;
mod log_level;
mod logs;
mod man;
mod move_leader;
mod orphans;
mod pause;
mod pipe;
mod recover;
mod remove;
mod render;
mod scratch;
mod start;
mod status;
mod supervise;
mod survey;
mod target;
mod top;
mod torture;
mod up;
mod wait;
mod waiting;

use crate::inherited;
use crate::signals::Signals;

use completions::{node_or_role, nodes, targets};
use context::Context;
use exit::{Exit, Failure, Outcome};

/// A replicated key-value cluster that speaks the etcd v3 API: start it, break it, and prove what survived.
#[derive(Debug, Parser)]
#[command(name = "replcluster", version = crate::VERSION, max_term_width = 110, after_help = EXIT_CODES)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 no such cluster running, \
4 timed out, 5 conflict, 6 violated, 7 inconclusive, 8 degraded, 9 unavailable, 130 interrupted.";

#[derive(Debug, Args)]
struct Global {
    /// The cluster's configuration, also as --config after the verb [default: $REPLCLUSTER_CONFIG, else
    /// cluster.toml here or in the nearest parent]
    #[arg(short = 'f', value_name = "PATH")]
    short_config: Option<PathBuf>,
    /// The cluster's configuration
    #[arg(long, global = true, value_name = "PATH")]
    config: Option<PathBuf>,
    /// When to colour what is printed
    #[arg(long, global = true, value_enum, default_value_t = Colour::Auto, value_name = "WHEN")]
    color: Colour,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Colour {
    Auto,
    Always,
    Never,
}

/// A node, or several.
#[derive(Debug, Args)]
struct Target {
    /// An address, an end of it that fits only one (:2380), leader, follower, followers or all
    #[arg(value_name = "TARGET", add = ArgValueCandidates::new(targets))]
    target: String,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Write a commented cluster.toml; never overwrites [changes nothing that runs]
    Init(init::Init),
    /// Validate the configuration and print what it resolves to [read-only]
    Check(check::Check),
    /// Start what is not running and return when it serves [changes the cluster]
    Up(up::Up),
    /// End the cluster, followers first [changes the cluster; destructive with --purge]
    Down(down::Down),
    /// Show how every node stands, by its own account [read-only]
    Status(status::Status),
    /// Show the cluster in one window, with the verbs a key away; asks before each [read-only until you say yes]
    Top(top::Top),
    /// Kill nodes and prove that no acknowledged write was lost [destructive]
    Kill(kill::Kill),
    /// Freeze nodes with SIGSTOP [changes the cluster]
    Pause(pause::Pause),
    /// Thaw frozen nodes [changes the cluster]
    Resume(pause::Resume),
    /// Start nodes that are down [changes the cluster]
    Start(start::Start),
    /// End nodes gracefully; they stay down until started [changes the cluster]
    Stop(start::Stop),
    /// End nodes gracefully one by one and start them again, the leader last [changes the cluster]
    Restart(start::Restart),
    /// Add followers to the running cluster and to cluster.toml [changes the cluster]
    AddFollower(add_follower::AddFollower),
    /// Take a node out of the cluster and out of cluster.toml [destructive with --purge]
    Remove(remove::Remove),
    /// Hand leadership to another node, gracefully [changes the cluster]
    MoveLeader(move_leader::MoveLeader),
    /// Show what every copy of the data holds, and go on from one where the last in-sync copy is gone [read-only;
    /// destructive with --accept-data-loss]
    Recover(recover::Recover),
    /// Print the nodes' logs, merged by time [read-only]
    Logs(logs::Logs),
    /// Change what nodes log while they run, or show it [changes the cluster]
    LogLevel(log_level::LogLevel),
    /// Print the cluster's history [read-only]
    Events(events::Events),
    /// Talk etcd v3 to the cluster, or to --endpoints; a prompt without a request [read-only, or changes the data]
    Client(client::ClientArguments),
    /// Measure any etcd v3 servers, or ours against a stock etcd [changes the data of --endpoints under one prefix]
    Bench(bench::BenchArguments),
    /// Kill the nodes of a cluster of its own again and again, and check every answer that clients got [destructive, to
    /// its own cluster only]
    Torture(torture::Torture),
    /// Print what another service manager needs to run the cluster, or write it to a directory [read-only]
    Export(export::Export),
    /// Print what makes a shell complete commands and node names [read-only]
    Completions(completions::Completions),
    /// Print the manual page, or write all of them to a directory [read-only]
    Man(man::Man),
    /// Run the supervisor; started by `up`
    #[command(hide = true)]
    Supervise(supervise::Supervise),
}

impl Verb {
    /// True where this process is to live as long as a cluster.
    fn supervises(&self) -> bool {
        match self {
            Verb::Supervise(_) => true,
            Verb::Up(up) => up.serves(),
            _ => false,
        }
    }
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    pipe::end_quietly_without_a_reader();
    clap_complete::CompleteEnv::with_factory(command).complete();
    let cli = parse(std::env::args_os()).unwrap_or_else(|error| error.exit());
    match cli.global.color {
        Colour::Auto => {}
        Colour::Always => anstream::ColorChoice::Always.write_global(),
        Colour::Never => anstream::ColorChoice::Never.write_global(),
    }
    if cli.verb.supervises() {
        inherited::begin();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => {
            let outcome = runtime.block_on(interruptible(cli));
            // Questions that nobody waits for any more may still be under way.
            runtime.shutdown_background();
            outcome
        }
        Err(error) => Err(Failure::new(
            Exit::Failed,
            format!("cannot start threads: {error}\nraise the limit of processes and try again"),
        )),
    };
    match outcome {
        Ok(exit) => exit.into(),
        Err(failure) => {
            failure.print();
            failure.exit.into()
        }
    }
}

/// The command line. `-f` names the configuration after a verb too, except where it means "follow".
fn command() -> clap::Command {
    let with_short = |verb: clap::Command| {
        let taken = verb.get_arguments().any(|argument| argument.get_short() == Some('f'));
        if taken { verb } else { verb.arg(short_config_of_verb()) }
    };
    let command = Cli::command();
    let verbs: Vec<String> = command.get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
    verbs.into_iter().fold(command, |command, verb| command.mut_subcommand(verb, with_short))
}

fn short_config_of_verb() -> clap::Arg {
    clap::Arg::new(SHORT_CONFIG_OF_VERB)
        .short('f')
        .value_name("PATH")
        .value_parser(clap::value_parser!(PathBuf))
        .hide(true)
}

const SHORT_CONFIG_OF_VERB: &str = "short_config_of_verb";

fn parse(
    arguments: impl IntoIterator<Item = impl Into<std::ffi::OsString> + Clone>,
) -> Result<Cli, clap::Error> {
    let matches = command().try_get_matches_from(arguments)?;
    let of_verb = matches
        .subcommand()
        .and_then(|(_, verb)| verb.try_get_one::<PathBuf>(SHORT_CONFIG_OF_VERB).ok().flatten().cloned());
    let mut cli = Cli::from_arg_matches(&matches)?;
    cli.global.config = of_verb.or(cli.global.config).or(cli.global.short_config.take());
    Ok(cli)
}

/// The first Ctrl-C asks: a verb that has something to put right does so. The second forces.
async fn interruptible(cli: Cli) -> Outcome {
    let mut interrupts = if cli.verb.supervises() {
        Interrupts::of_service(matches!(cli.verb, Verb::Supervise(_)))
    } else {
        Interrupts::new()
    };
    let interrupt = CancellationToken::new();
    let puts_right = matches!(
        cli.verb,
        Verb::Kill(_)
            | Verb::Up(_)
            | Verb::Status(_)
            | Verb::Top(_)
            | Verb::Client(_)
            | Verb::Bench(_)
            | Verb::Torture(_)
            | Verb::Supervise(_)
    );
    let only_shows = matches!(cli.verb, Verb::Logs(_) | Verb::Events(_) | Verb::Status(_));
    let serves = matches!(&cli.verb, Verb::Up(up) if up.serves());
    let mut verb = std::pin::pin!(run(cli, interrupt.clone()));
    let interruption = tokio::select! {
        outcome = &mut verb => return outcome,
        () = pipe::reader_left(), if only_shows => return Ok(Exit::Done),
        interruption = interrupts.next() => interruption,
    };
    if puts_right {
        interrupt.cancel();
        tokio::select! {
            outcome = &mut verb => return match (outcome, interruption) {
                // What a service manager asks for and gets is no failure of the service.
                (Ok(Exit::Interrupted), Interruption::Ended) if serves => Ok(Exit::Done),
                (outcome, Interruption::Ended | Interruption::Typed) => outcome,
            },
            _ = interrupts.next() => {}
        }
    }
    // What only shows has begun nothing that could go on.
    if !only_shows {
        anstream::eprintln!(
            "interrupted: what was begun may go on; see how it stands with `replcluster status`"
        );
    }
    Ok(Exit::Interrupted)
}

/// How a user or a service manager says that it is enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Interruption {
    /// Ctrl-C.
    Typed,
    /// The request to terminate that service managers and containers send, or the end of the terminal.
    Ended,
}

/// Caught from its making on: a verb may print before it lets anybody else run. Without a handler a signal ends the
/// program itself.
struct Interrupts {
    interrupt: Option<Signal>,
    terminate: Option<Signal>,
    hang_up: Option<Signal>,
    quit: Option<Signal>,
    power_fails: Option<Signal>,
}

impl Interrupts {
    /// Those of a command at a terminal.
    fn new() -> Interrupts {
        Interrupts {
            interrupt: signal(SignalKind::interrupt()).ok(),
            terminate: signal(SignalKind::terminate()).ok(),
            hang_up: if outlives_terminal() { None } else { signal(SignalKind::hangup()).ok() },
            quit: None,
            power_fails: None,
        }
    }

    /// Those of a process that lives as long as a cluster, by the table of [`crate::signals`]. In the background it has
    /// no terminal whose end could mean anything.
    fn of_service(in_background: bool) -> Interrupts {
        let interrupts = Interrupts::new();
        Interrupts {
            hang_up: interrupts.hang_up.filter(|_| !in_background),
            quit: signal(SignalKind::quit()).ok(),
            power_fails: signal(SignalKind::from_raw(nix::libc::SIGPWR)).ok(),
            ..interrupts
        }
    }

    async fn next(&mut self) -> Interruption {
        tokio::select! {
            () = came(self.interrupt.as_mut()) => Interruption::Typed,
            () = came(self.quit.as_mut()) => Interruption::Typed,
            () = came(self.terminate.as_mut()) => Interruption::Ended,
            () = came(self.power_fails.as_mut()) => Interruption::Ended,
            () = came(self.hang_up.as_mut()) => Interruption::Ended,
        }
    }
}

/// Catches what must not end a process that lives as long as a cluster, and logs it, for as long as this is awaited.
async fn ignore_signals(in_background: bool) {
    let meant: &[i32] = if in_background { &[] } else { &[nix::libc::SIGHUP] };
    match Signals::catch_ignored_but(meant) {
        // None of those that are caught asks for an end.
        Ok(mut signals) => drop(signals.stop().await),
        Err(error) => tracing::error!(%error, "cannot catch signals"),
    }
}

/// True where whoever started this program had it ignore the end of its terminal, as `nohup` does.
fn outlives_terminal() -> bool {
    static IGNORED: OnceLock<bool> = OnceLock::new();
    // Asked once, before a handler of ours is there. The first bit is SIGHUP, whose number is 1.
    *IGNORED.get_or_init(|| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
    })
}

async fn came(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

fn run(cli: Cli, interrupt: CancellationToken) -> impl Future<Output = Outcome> {
    let config = cli.global.config;
    async move {
        let context = |json: bool| Context::load(config.clone(), json, interrupt.clone());
        match cli.verb {
            Verb::Init(verb) => init::run(&verb, config.clone()),
            Verb::Check(verb) => check::run(&verb, &context(verb.json)?),
            Verb::Up(verb) => up::run(&verb, &context(false)?).await,
            Verb::Down(verb) => down::run(&verb, &context(false)?).await,
            Verb::Status(verb) => status::run(&verb, &context(verb.json)?).await,
            Verb::Top(verb) => top::run(&verb, context(false)?).await,
            Verb::Kill(verb) => kill::run(&verb, &context(verb.json)?).await,
            Verb::Pause(verb) => pause::pause(&verb, &context(false)?).await,
            Verb::Resume(verb) => pause::resume(&verb, &context(false)?).await,
            Verb::Start(verb) => start::start(&verb, &context(false)?).await,
            Verb::Stop(verb) => start::stop(&verb, &context(false)?).await,
            Verb::Restart(verb) => start::restart(&verb, &context(false)?).await,
            Verb::AddFollower(verb) => add_follower::run(&verb, &mut context(false)?).await,
            Verb::Remove(verb) => remove::run(&verb, &mut context(false)?).await,
            Verb::MoveLeader(verb) => move_leader::run(&verb, &context(false)?).await,
            Verb::Recover(verb) => recover::run(&verb, &context(verb.json)?).await,
            Verb::Logs(verb) => logs::run(&verb, &context(verb.json)?).await,
            Verb::LogLevel(verb) => log_level::run(&verb, &context(verb.json)?).await,
            Verb::Events(verb) => events::run(&verb, &context(verb.json)?).await,
            Verb::Client(verb) => {
                // With endpoints no configuration is needed.
                let configured = if verb.endpoints.is_empty() {
                    survey::for_clients(&context(false)?).await?
                } else {
                    Vec::new()
                };
                client::run(verb, &configured, &interrupt).await?;
                Ok(Exit::Done)
            }
            Verb::Bench(verb) => {
                // Only a running cluster of the configuration needs one; of that the nodes that answer.
                let endpoints = if verb.uses_configuration() {
                    let context = context(false)?;
                    let answering = survey::survey(&context).await?.endpoints();
                    if answering.is_empty() { survey::for_clients(&context).await? } else { answering }
                } else {
                    Vec::new()
                };
                bench::run(verb, &endpoints, &interrupt).await
            }
            Verb::Torture(verb) => torture::run(&verb, interrupt.clone()).await,
            Verb::Export(verb) => export::run(&verb, &context(false)?),
            Verb::Completions(verb) => completions::run(&verb),
            Verb::Man(verb) => man::run(&verb),
            Verb::Supervise(verb) => supervise::run(&verb, config.clone(), interrupt.clone()).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_verb_says_what_it_touches() {
        for verb in Cli::command().get_subcommands().filter(|verb| !verb.is_hide_set()) {
            let about = verb.get_about().map(ToString::to_string).unwrap_or_default();
            let labels = ["read-only", "changes", "destructive"];
            assert!(labels.iter().any(|label| about.contains(label)), "{}: {about}", verb.get_name());
        }
    }

    #[test]
    fn the_configuration_can_be_named_before_and_after_the_verb() {
        for line in ["-f x status", "status -f x", "status --config x", "--config x status", "-f x logs -f"] {
            let cli = parse(format!("replcluster {line}").split(' ')).unwrap();
            assert_eq!(cli.global.config, Some(PathBuf::from("x")), "{line}");
        }
        assert_eq!(parse(["replcluster", "logs", "-f"]).unwrap().global.config, None);
    }
}
