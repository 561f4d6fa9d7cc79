//! `kill`: end nodes, or the supervisor, under load; then prove from the outside what survived. The intent goes into the
//! history before anything is done, and the verdict rests on reading every acknowledged write back.

use std::cell::Cell;
use std::time::Duration;

use clap::Args;
use clap_complete::engine::ArgValueCandidates;
use nix::sys::signal::Signal;

use crate::client::probe::{Evidence, Probe, READ_PATIENCE, Verdict};
use crate::clock;
use crate::supervisor::events::Event;
use crate::view::NodeId;

use super::charset;
use super::context::{Context, POLL_INTERVAL, names};
use super::exit::{Exit, Failure, Outcome};
use super::survey::{self, Supervision, Survey};
use super::{completions, targets};

mod runs;
mod signals;
mod strike;
mod verdict;
mod victims;

pub(super) use runs::sweep;
pub(super) use victims::interlock;

use strike::{Strike, Struck};
use verdict::Leadership;
use victims::{Intent, SUPERVISOR, intend};

/// Writes that must be acknowledged before the kill, so that there is something to lose.
const WRITES_BEFORE: u64 = 20;
/// Writes that should be acknowledged after it, so that the gap has an end.
const WRITES_AFTER: u64 = 20;
/// How long either may take. Then the kill goes on, and the verdict says what is lacking.
const LOAD_PATIENCE: Duration = Duration::from_secs(5);
/// How long the read-back may take where nobody leads, so that nobody is likely to answer.
const VAIN_READ_PATIENCE: Duration = Duration::from_secs(2);

const HELP: &str = "A short write load runs before, through and after the kill; then every write that was acknowledged \
is read back. Its keys begin with replcluster/probe/ and are removed at the end; where nobody could be reached for that, \
the next `kill` or `up` removes them.

proved (exit 0): everything acknowledged was read back, a write was in flight when the kill struck, and one that was \
sent after it was acknowledged. violated (exit 6): something acknowledged is missing or wrong. inconclusive (exit 7): \
not enough evidence, with the reason: also where later revisions of another client removed or rewrote what was \
acknowledged, or a compaction took that history away.";

#[derive(Debug, Args)]
#[command(after_long_help = HELP)]
pub(super) struct Kill {
    /// An address, an end of it that fits only one (:2380), leader, follower, followers or all; or supervisor
    #[arg(value_name = "TARGET", required_unless_present = "random", add = ArgValueCandidates::new(victims))]
    target: Option<String>,
    /// Kill only one of them, drawn by lot [default TARGET: all]
    #[arg(long)]
    random: bool,
    /// Draw the same node as the kill that printed this number
    #[arg(long, value_name = "N", requires = "random")]
    seed: Option<u64>,
    /// Which signal to send
    #[arg(long, value_name = "SIGNAL", default_value = "KILL", value_parser = signals::parse,
          add = ArgValueCandidates::new(completions::signals))]
    signal: Signal,
    /// Kill without a load and without a verdict
    #[arg(long)]
    no_probe: bool,
    /// Do not ask before the last in-sync node is killed
    #[arg(long)]
    yes: bool,
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
}

/// What can be killed, for the shell.
fn victims() -> Vec<clap_complete::CompletionCandidate> {
    let mut all = targets();
    let what = "the process behind it all; no node";
    all.push(clap_complete::CompletionCandidate::new(SUPERVISOR).help(Some(what.into())));
    all
}

/// What is being waited for, in case somebody asks.
#[derive(Debug)]
struct Stage(Cell<&'static str>);

impl Stage {
    fn set(&self, what: &'static str) {
        self.0.set(what);
    }
}

pub(super) async fn run(verb: &Kill, context: &Context) -> Outcome {
    let stage = Stage(Cell::new("looking at the cluster"));
    let mut work = std::pin::pin!(carry_out(verb, context, &stage));
    tokio::select! {
        biased;
        outcome = &mut work => return outcome,
        () = context.interrupt.cancelled() => {}
    }
    anstream::eprintln!("interrupted while {}; Ctrl-C again to leave at once", stage.0.get());
    work.await
}

async fn carry_out(verb: &Kill, context: &Context, stage: &Stage) -> Outcome {
    let found = survey::survey(context).await?;
    // A supervisor that hangs can be ended whatever the nodes do.
    let hangs =
        matches!(found.supervisor, Supervision::Silent(_)) && verb.target.as_deref() == Some(SUPERVISOR);
    if found.running().is_empty() && !hangs {
        return Err(found.nothing_to_change(context));
    }
    let mut intent = intend(verb, context, &found)?;
    let agreed = allowed(verb, &found, &intent)?;
    if let Some(seed) = intent.seed
        && !context.json
    {
        anstream::println!("drawn with --seed {seed}");
    }
    let command = Event::Command {
        command: format!("kill {}", verb.target.as_deref().unwrap_or("--random")),
        nodes: intent.names(),
        signal: Some(verb.signal.as_str().to_owned()),
        leader: intent.leader_before.as_ref().map(ToString::to_string),
    };
    stage.set("beginning to write");
    let unprobed = verb.no_probe || (hangs && (found.sum.leader.is_none() || found.sum.refuses_writes()));
    let probe = if unprobed { None } else { Some(load(context, &found).await?) };
    let struck = async {
        if context.interrupt.is_cancelled() {
            return Err(Failure::new(Exit::Interrupted, "nothing was killed"));
        }
        // While the load began another command may have taken away what this kill was to leave.
        if probe.is_some() && !agreed {
            allowed(verb, &survey::survey(context).await?, &intent)?;
        }
        let strike = Strike { verb, context, even_last: verb.yes || agreed, stage };
        strike.carry_out(&mut intent, command, probe.as_ref()).await
    };
    match struck.await {
        Ok(struck) => judge(context, &intent, struck, probe, stage).await,
        Err(failure) => spare(context, &intent, &found, (failure, probe), stage).await,
    }
}

/// Nobody was struck: the load ends and takes its keys along. Only what must never be is told of it.
async fn spare(
    context: &Context,
    intent: &Intent,
    found: &Survey,
    (failure, probe): (Failure, Option<Probe>),
    stage: &Stage,
) -> Outcome {
    let Some(probe) = probe else { return Err(failure) };
    stage.set("removing the load's keys");
    let evidence = probe.finish(&found.endpoints(), VAIN_READ_PATIENCE).await;
    match evidence.verdict {
        Verdict::Violated => {
            tell(context, intent, &Leadership::of(found), Some(&evidence)).await;
            failure.print();
            Ok(Exit::Violated)
        }
        Verdict::Proved | Verdict::Inconclusive => {
            if let Some(leftover) = evidence.leftover {
                anstream::eprintln!("{}", verdict::leftover(&leftover));
            }
            if failure.exit == Exit::Interrupted {
                anstream::eprintln!("{}", failure.message);
                return Ok(Exit::Interrupted);
            }
            Err(failure)
        }
    }
}

/// What the load saw is told in any case, whatever else failed.
async fn judge(
    context: &Context,
    intent: &Intent,
    struck: Struck,
    probe: Option<Probe>,
    stage: &Stage,
) -> Outcome {
    let Struck { after, failure, waiting } = struck;
    let leadership = after.as_ref().map(Leadership::of).unwrap_or_default();
    let leader = leadership.leader.as_ref();
    // Without a look at the cluster those that were not struck may still answer.
    let endpoints = after.as_ref().map_or_else(|| names(&intent.survivors), Survey::endpoints);
    let evidence = match probe {
        None => None,
        Some(probe) => {
            let evidence = gather(probe, context, (&endpoints, leader.is_some()), stage).await;
            Some(leadership.temper(evidence))
        }
    };
    tell(context, intent, &leadership, evidence.as_ref()).await;
    if let Some(waiting) = waiting {
        anstream::eprintln!("{}\n{}", waiting.what, waiting.next);
    }
    if intent.is_supervisor() && !context.json && failure.is_none() {
        let then = if intent.ends_with_supervisor() {
            "it ran in the foreground, so its nodes ended with it\nnext: replcluster up"
        } else {
            "no node was touched; the next command that needs a supervisor starts one, which takes over"
        };
        anstream::println!("{then}");
    }
    let verdict = evidence.map(|evidence| evidence.verdict);
    let no_leader = leader.is_none() && !intent.survivors.is_empty();
    match (verdict, failure) {
        (Some(Verdict::Violated), failure) => {
            failure.iter().for_each(Failure::print);
            Ok(Exit::Violated)
        }
        (_, Some(failure)) => Err(failure),
        _ if context.interrupt.is_cancelled() => Ok(Exit::Interrupted),
        (Some(Verdict::Inconclusive), None) => Ok(Exit::Inconclusive),
        (None, None) if no_leader => Ok(Exit::Failed),
        (None | Some(Verdict::Proved), None) => Ok(Exit::Done),
    }
}

/// Into the history first, then to whoever asked.
async fn tell(context: &Context, intent: &Intent, leader: &Leadership, evidence: Option<&Evidence>) {
    let mut supervisor = context.supervisor().await.ok().flatten();
    context.note(supervisor.as_mut(), verdict::event(intent, leader, evidence)).await;
    if context.json {
        anstream::println!("{}", verdict::json(intent, leader, evidence));
    } else {
        for line in verdict::lines(intent, leader, evidence) {
            anstream::println!("{}", charset::fit(&line));
        }
    }
}

/// Whether this kill may be done as things stand; `true` where somebody was asked and agreed.
fn allowed(verb: &Kill, found: &Survey, intent: &Intent) -> Result<bool, Failure> {
    let survivors: Vec<NodeId> =
        found.awake().into_iter().filter(|node| intent.survivors.contains(node)).collect();
    let act = if intent.ends_with_supervisor() {
        "killing the supervisor, which runs in the foreground, and with it"
    } else {
        "killing"
    };
    interlock(act, found, &intent.nodes(), &survivors, verb.yes)
}

async fn load(context: &Context, found: &Survey) -> Result<Probe, Failure> {
    let endpoints = found.endpoints();
    sweep(&endpoints).await;
    let probe = Probe::start_as(&endpoints, &runs::name()).await.map_err(|error| {
        Failure::new(
            Exit::Failed,
            format!("cannot write to the cluster: {error}\nkill without a verdict: --no-probe"),
        )
    })?;
    let deadline = clock::now() + LOAD_PATIENCE;
    while probe.acknowledged() < WRITES_BEFORE && clock::now() < deadline && !context.interrupt.is_cancelled()
    {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(probe)
}

async fn gather(
    probe: Probe,
    context: &Context,
    (endpoints, serves): (&[String], bool),
    stage: &Stage,
) -> Evidence {
    stage.set("waiting for writes after the kill");
    let deadline = clock::now() + LOAD_PATIENCE;
    while serves
        && probe.acknowledged_after_fault() < WRITES_AFTER
        && clock::now() < deadline
        && !context.interrupt.is_cancelled()
    {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    stage.set("reading back what was acknowledged, and removing the load's keys");
    let patience = if serves { READ_PATIENCE } else { VAIN_READ_PATIENCE };
    probe.finish(endpoints, patience).await
}
