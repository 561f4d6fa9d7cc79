//! `kill`: end nodes, or the supervisor, under load; then prove from the outside what survived. The intent goes into the
//! history before anything is done, and the verdict rests on reading every acknowledged write back.

use std::time::Duration;

use clap::Args;
use clap_complete::engine::ArgValueCandidates;
use nix::sys::signal::Signal;

use crate::client::probe::{Evidence, PREFIX, Probe, Verdict};
use crate::clock;
use crate::supervisor::events::{self, Event};
use crate::supervisor::os;
use crate::supervisor::wire::Request;
use crate::view::NodeId;

use super::context::{Context, POLL_INTERVAL, ask_nodes, names};
use super::exit::{Exit, Failure, Outcome};
use super::survey::{self, Survey};
use super::targets;

mod verdict;
mod victims;

pub(super) use victims::interlock;

use verdict::{json, lines, word};
use victims::{Intent, SUPERVISOR, intend};

/// Writes that must be acknowledged before the kill, so that there is something to lose.
const WRITES_BEFORE: u64 = 20;
/// Writes that should be acknowledged after it, so that the gap has an end.
const WRITES_AFTER: u64 = 20;
/// How long either may take. Then the kill goes on, and the verdict says what is lacking.
const LOAD_PATIENCE: Duration = Duration::from_secs(5);
/// How long the processes may take to end, and the others to agree on a leader.
const KILL_PATIENCE: Duration = Duration::from_secs(15);

#[derive(Debug, Args)]
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
    #[arg(long, value_name = "SIGNAL", default_value = "KILL", value_parser = parse_signal)]
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

pub(super) async fn run(verb: &Kill, context: &Context) -> Outcome {
    let found = survey::survey(context).await?;
    if found.running().is_empty() {
        return Err(Failure::not_running(&context.config.name));
    }
    let intent = intend(verb, context, &found)?;
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
    let probe = if verb.no_probe { None } else { Some(load(context, &found).await?) };
    if context.interrupt.is_cancelled() {
        if let Some(probe) = probe {
            probe.finish(found.endpoints()).await;
        }
        anstream::eprintln!("interrupted before anything was killed");
        return Ok(Exit::Interrupted);
    }
    let struck = async {
        // While the load began another command may have taken away what this kill was to leave.
        if probe.is_some() && !agreed {
            allowed(verb, &survey::survey(context).await?, &intent)?;
        }
        strike(verb, context, &intent, command, probe.as_ref()).await
    };
    let after = match struck.await {
        Ok(after) => after,
        Err(failure) => {
            // Its keys go with it.
            if let Some(probe) = probe {
                probe.finish(found.endpoints()).await;
            }
            return Err(failure);
        }
    };
    let evidence = match probe {
        None => None,
        Some(probe) => Some(gather(probe, context, &after).await),
    };
    let leader_after = after.sum.leader.clone();
    let verdict = Event::Verdict {
        nodes: intent.names(),
        leader: leader_after.as_ref().map(ToString::to_string),
        unavailable_ms: evidence
            .as_ref()
            .filter(|_| leader_after.is_some())
            .map(|evidence| evidence.unavailable_ms),
        acknowledged: evidence.as_ref().map_or(0, |evidence| evidence.acknowledged),
        lost: evidence.as_ref().map_or(0, |evidence| evidence.lost),
        verdict: evidence.as_ref().map_or("none", |evidence| word(evidence.verdict)).to_owned(),
    };
    let mut supervisor = context.supervisor().await?;
    context.note(supervisor.as_mut(), verdict).await;
    if evidence.is_some() && after.endpoints().is_empty() {
        let prefix = String::from_utf8_lossy(PREFIX);
        anstream::eprintln!(
            "the load's keys are still in the cluster; once it is up: replcluster client del --prefix {prefix}"
        );
    }
    if context.json {
        anstream::println!("{}", json(&intent, leader_after.as_ref(), evidence.as_ref()));
    } else {
        for line in lines(&intent, leader_after.as_ref(), evidence.as_ref()) {
            anstream::println!("{line}");
        }
        if intent.is_supervisor() {
            anstream::println!(
                "no node was touched; the next command that needs a supervisor starts one, which takes over"
            );
        }
    }
    if context.interrupt.is_cancelled() {
        return Ok(Exit::Interrupted);
    }
    let no_leader = leader_after.is_none() && !intent.survivors.is_empty();
    Ok(match evidence.map(|evidence| evidence.verdict) {
        Some(Verdict::Violated) => Exit::Violated,
        Some(Verdict::Inconclusive) => Exit::Inconclusive,
        None if no_leader => Exit::Failed,
        None | Some(Verdict::Proved) => Exit::Done,
    })
}

/// Whether this kill may be done as things stand; `true` where somebody was asked and agreed.
fn allowed(verb: &Kill, found: &Survey, intent: &Intent) -> Result<bool, Failure> {
    let survivors: Vec<NodeId> =
        found.awake().into_iter().filter(|node| intent.survivors.contains(node)).collect();
    interlock("killing", found, &intent.nodes(), &survivors, verb.yes)
}

async fn load(context: &Context, found: &Survey) -> Result<Probe, Failure> {
    let probe = Probe::start(found.endpoints()).await.map_err(|error| {
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

/// Nodes through the supervisor, which then leaves them down; where it is dead a new one takes over first. The
/// supervisor itself directly. Returns when the victims are gone and the others have settled.
async fn strike(
    verb: &Kill,
    context: &Context,
    intent: &Intent,
    command: Event,
    probe: Option<&Probe>,
) -> Result<Survey, Failure> {
    let mut supervisor = context.ensure_supervisor().await?;
    context.note(Some(&mut supervisor), command).await;
    if let Some(probe) = probe {
        probe.mark_fault();
    }
    if intent.is_supervisor() {
        for handle in &intent.handles {
            handle.signal(verb.signal as i32).map_err(|error| {
                let message =
                    format!("cannot signal pid {}: {error}\ncheck that you are its user", handle.id.pid);
                Failure::new(Exit::Failed, message)
            })?;
        }
    } else {
        let nodes = names(&intent.nodes());
        let only = intent.handles.iter().map(|handle| handle.id.pid).collect();
        let request = Request::Kill { nodes, signal: verb.signal as i32, fault: events::new_id(), only };
        ask_nodes(&mut supervisor, &request).await?;
    }
    gone(context, intent).await?;
    let after = survey::until(context, KILL_PATIENCE, |survey| settled(survey, intent)).await?;
    Ok(after.unwrap_or_else(|unsettled| unsettled))
}

async fn gone(context: &Context, intent: &Intent) -> Result<(), Failure> {
    let deadline = clock::now() + KILL_PATIENCE;
    loop {
        let left = intent.handles.iter().position(|handle| os::is_alive(&handle.id));
        let Some(left) = left else { return Ok(()) };
        if clock::now() >= deadline {
            let message = format!(
                "{} got the signal and has not ended\nkill it with `replcluster kill --signal KILL`",
                intent.victims[left]
            );
            let failure = Failure::new(Exit::TimedOut, message);
            return Err(match intent.nodes().get(left) {
                Some(node) => failure.with_node_log(&context.layout, node),
                None => failure.with_log(context.layout.supervisor_log()),
            });
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// The survivors that were in sync agree on a leader among them that serves; or nobody is left.
fn settled(survey: &Survey, intent: &Intent) -> bool {
    if intent.survivors.is_empty() {
        return true;
    }
    let Some(leader) = &survey.sum.leader else { return false };
    let victims = intent.nodes();
    intent.survivors.contains(leader)
        && !victims.iter().any(|victim| survey.sum.in_sync.contains(victim))
        && survey
            .nodes
            .iter()
            .filter(|one| survey.sum.in_sync.contains(&one.node))
            .all(|one| one.answer.as_ref().is_some_and(|answer| answer.leader == leader.as_str()))
}

async fn gather(probe: Probe, context: &Context, after: &Survey) -> Evidence {
    let deadline = clock::now() + LOAD_PATIENCE;
    let serves = after.sum.leader.is_some();
    while serves
        && probe.acknowledged_after_fault() < WRITES_AFTER
        && clock::now() < deadline
        && !context.interrupt.is_cancelled()
    {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    probe.finish(after.endpoints()).await
}

/// A signal by its name, with or without `SIG`, or by its number; only such as end a process.
fn parse_signal(text: &str) -> Result<Signal, String> {
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    let signal = match text.parse::<i32>() {
        Ok(number) => Signal::try_from(number).ok(),
        Err(_) => name.parse::<Signal>().ok(),
    };
    match signal {
        None => Err("expected a signal such as KILL, TERM or SEGV".to_owned()),
        Some(Signal::SIGSTOP | Signal::SIGTSTP | Signal::SIGTTIN | Signal::SIGTTOU) => {
            Err("that freezes a node: use `replcluster pause`".to_owned())
        }
        Some(Signal::SIGCONT) => Err("that thaws a node: use `replcluster resume`".to_owned()),
        Some(Signal::SIGCHLD | Signal::SIGWINCH | Signal::SIGURG) => {
            Err("that signal ends no process".to_owned())
        }
        Some(signal) => Ok(signal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_signals_that_end_a_process_are_taken() {
        for text in ["KILL", "SIGKILL", "kill", "9"] {
            assert_eq!(parse_signal(text), Ok(Signal::SIGKILL));
        }
        assert!(parse_signal("STOP").unwrap_err().contains("pause"));
        assert!(parse_signal("CONT").unwrap_err().contains("resume"));
        for text in ["", "NOPE", "0", "99", "CHLD"] {
            assert!(parse_signal(text).is_err(), "{text}");
        }
    }
}
