//! `kill`: end nodes under load, then prove from the outside what survived. The intent goes into the history before
//! anything is done, and the verdict rests on reading every acknowledged write back.

use std::time::Duration;

use clap::Args;
use clap_complete::engine::ArgValueCandidates;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::client::probe::{Evidence, PREFIX, Probe, Verdict};
use crate::clock;
use crate::supervisor::events::Event;
use crate::supervisor::lock::Lock;
use crate::supervisor::os::{self, Handle};
use crate::supervisor::record::{self, LastExit, Phase};
use crate::supervisor::socket::Conversation;
use crate::supervisor::wire::Request;
use crate::view::NodeId;

use super::context::{Context, POLL_INTERVAL, ask_nodes, confirm, list, names};
use super::exit::{Exit, Failure, Outcome};
use super::render::{grouped, milliseconds};
use super::survey::{self, Survey};
use super::{targets, wait};

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
    /// An address, an end of it that fits only one (:2380), leader, follower, followers or all
    #[arg(value_name = "TARGET", add = ArgValueCandidates::new(targets))]
    target: String,
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

/// Everything known before the kill.
struct Intent {
    /// Each node with its process and its role in words.
    victims: Vec<(NodeId, u32, &'static str)>,
    handles: Vec<Handle>,
    leader_before: Option<NodeId>,
    survivors: Vec<NodeId>,
}

pub(super) async fn run(verb: &Kill, context: &Context) -> Outcome {
    let found = survey::survey(context).await?;
    if found.running().is_empty() {
        return Err(Failure::not_running(&context.config.name));
    }
    let nodes = found.targets(&verb.target)?;
    let intent = intend(&found, nodes)?;
    spare_the_last(verb, &found, &intent)?;
    let mut supervisor = context.supervisor().await?;
    let command = Event::Command {
        command: format!("kill {}", verb.target),
        nodes: intent.victims.iter().map(|(node, ..)| node.to_string()).collect(),
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
    context.note(supervisor.as_mut(), command).await;
    if let Some(probe) = &probe {
        probe.mark_fault();
    }
    strike(context, supervisor.as_mut(), &intent, verb.signal).await?;
    gone(context, &intent).await?;
    let after = survey::until(context, KILL_PATIENCE, |survey| settled(survey, &intent)).await?;
    let after = after.unwrap_or_else(|unsettled| unsettled);
    let evidence = match probe {
        None => None,
        Some(probe) => Some(gather(probe, context, &after).await),
    };
    let leader_after = after.sum.leader.clone();
    let verdict = Event::Verdict {
        nodes: intent.victims.iter().map(|(node, ..)| node.to_string()).collect(),
        leader: leader_after.as_ref().map(ToString::to_string),
        unavailable_ms: evidence
            .as_ref()
            .filter(|_| leader_after.is_some())
            .map(|evidence| evidence.unavailable_ms),
        acknowledged: evidence.as_ref().map_or(0, |evidence| evidence.acknowledged),
        lost: evidence.as_ref().map_or(0, |evidence| evidence.lost),
        verdict: evidence.as_ref().map_or("none", |evidence| word(evidence.verdict)).to_owned(),
    };
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

/// Takes hold of every process before anything is done: from here on no other process can be hit.
fn intend(found: &Survey, nodes: Vec<NodeId>) -> Result<Intent, Failure> {
    // "all" means all that run; a node that was named must run.
    let several = nodes.len() > 1;
    let mut victims = Vec::new();
    let mut handles = Vec::new();
    for one in found.nodes.iter().filter(|one| nodes.contains(&one.node)) {
        let Some(id) = &one.process else {
            if several {
                continue;
            }
            let known = match &one.record.last_exit {
                Some(exit) => {
                    let how = wait::ended(exit.code, exit.signal);
                    format!(
                        "it ended {} ({how}, {})",
                        super::render::time_of_day(&exit.at),
                        exit.cause.as_str()
                    )
                }
                None if one.answer.is_some() => {
                    "it answers, but no process of it was started here".to_owned()
                }
                None => "it was not started yet".to_owned(),
            };
            let message = format!(
                "{} is not running: {known}\nstart it with `replcluster start {}`",
                one.node, one.node
            );
            return Err(Failure::new(Exit::Failed, message));
        };
        let handle = Handle::open(id).map_err(|error| {
            let message = format!(
                "cannot take hold of {} (pid {}): {error}\ncheck that you are the user who started it",
                one.node, id.pid
            );
            Failure::new(Exit::Failed, message)
        })?;
        if let Some(handle) = handle {
            victims.push((one.node.clone(), id.pid, wait::role(one)));
            handles.push(handle);
        }
    }
    if victims.is_empty() {
        return Err(Failure::new(
            Exit::Failed,
            "none of these nodes is running\nsee how they stand with `replcluster status`",
        ));
    }
    let survivors = found
        .running()
        .into_iter()
        .filter(|node| !victims.iter().any(|(victim, ..)| victim == node))
        .collect();
    Ok(Intent { victims, handles, leader_before: found.sum.leader.clone(), survivors })
}

/// Nobody kills the last node that holds everything by accident.
fn spare_the_last(verb: &Kill, found: &Survey, intent: &Intent) -> Result<(), Failure> {
    let spared = found.sum.in_sync.iter().any(|node| intent.survivors.contains(node));
    if spared || found.sum.in_sync.is_empty() {
        return Ok(());
    }
    confirm(
        "this kills the last running in-sync node: nothing serves until one is started again, and nothing can be \
         proved meanwhile. Go on?",
        verb.yes,
    )
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

/// Through the supervisor, which then leaves the nodes down; directly where it is dead.
async fn strike(
    context: &Context,
    supervisor: Option<&mut Conversation>,
    intent: &Intent,
    signal: Signal,
) -> Result<(), Failure> {
    let nodes: Vec<NodeId> = intent.victims.iter().map(|(node, ..)| node.clone()).collect();
    if let Some(supervisor) = supervisor {
        ask_nodes(supervisor, &Request::Kill { nodes: names(&nodes), signal: signal as i32 }).await?;
        return Ok(());
    }
    // The lock keeps a supervisor from starting meanwhile and from undoing what is written here.
    let lock = Lock::take(&context.layout.lock());
    for handle in &intent.handles {
        handle.signal(signal as i32).map_err(|error| {
            let message = format!(
                "cannot signal pid {}: {error}\ncheck that you are the user who started it",
                handle.id.pid
            );
            Failure::new(Exit::Failed, message)
        })?;
    }
    if lock.is_ok() {
        leave_down(context, &nodes).unwrap_or_else(|error| {
            anstream::eprintln!("warning: cannot write {}: {error}", context.layout.state().display());
        });
    }
    Ok(())
}

/// What the next supervisor has to know: these ended on purpose.
fn leave_down(context: &Context, nodes: &[NodeId]) -> std::io::Result<()> {
    let path = context.layout.state();
    let mut record = record::load(&path)?;
    for node in nodes {
        let of_node = record.nodes.entry(node.to_string()).or_default();
        of_node.wanted = false;
        of_node.phase = Phase::Down;
        of_node.process = None;
        of_node.last_exit = Some(LastExit {
            code: None,
            signal: None,
            cause: crate::control::cause::Cause::Operator,
            at: crate::telemetry::stamp(clock::wall()),
        });
    }
    record::save(&path, &record)
}

async fn gone(context: &Context, intent: &Intent) -> Result<(), Failure> {
    let deadline = clock::now() + KILL_PATIENCE;
    loop {
        let left: Vec<NodeId> = intent
            .victims
            .iter()
            .zip(&intent.handles)
            .filter(|(_, handle)| os::is_alive(&handle.id))
            .map(|((node, ..), _)| node.clone())
            .collect();
        if left.is_empty() {
            return Ok(());
        }
        if clock::now() >= deadline {
            let message = format!(
                "{} got the signal and has not ended\nkill it with `replcluster kill --signal KILL`",
                list(&left)
            );
            return Err(Failure::new(Exit::TimedOut, message).with_node_log(&context.layout, &left[0]));
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
    let victims = || intent.victims.iter().map(|(node, ..)| node);
    intent.survivors.contains(leader)
        && !victims().any(|victim| survey.sum.in_sync.contains(victim))
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

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Proved => "proved",
        Verdict::Violated => "violated",
        Verdict::Inconclusive => "inconclusive",
    }
}

fn lines(intent: &Intent, leader: Option<&NodeId>, evidence: Option<&Evidence>) -> Vec<String> {
    let killed: Vec<String> =
        intent.victims.iter().map(|(node, pid, role)| format!("{node} ({role}, pid {pid})")).collect();
    let mut first = format!("killed {}", killed.join(", "));
    match leader {
        Some(leader) => first.push_str(&format!(" · {leader} leads")),
        None => first.push_str(" · nobody leads"),
    }
    let Some(evidence) = evidence else { return vec![first] };
    if leader.is_some() {
        first.push_str(&format!(" · writes paused {}", milliseconds(evidence.unavailable_ms)));
    }
    let second = format!(
        "{} acknowledged, {} lost, {} indeterminate · {}",
        grouped(evidence.acknowledged),
        grouped(evidence.lost),
        grouped(evidence.indeterminate),
        word(evidence.verdict)
    );
    let reason = evidence.reason.iter().map(|reason| format!("because {reason}"));
    let violations = evidence.violations.iter().map(|violation| format!("violation: {violation}"));
    [first, second].into_iter().chain(reason).chain(violations).collect()
}

fn json(intent: &Intent, leader: Option<&NodeId>, evidence: Option<&Evidence>) -> serde_json::Value {
    json!({
        "schema": 1,
        "killed": intent.victims.iter().map(|(node, ..)| node.to_string()).collect::<Vec<_>>(),
        "leader_before": intent.leader_before.as_ref().map(ToString::to_string),
        "leader_after": leader.map(ToString::to_string),
        "unavailable_ms": evidence.map(|evidence| evidence.unavailable_ms),
        "acknowledged": evidence.map(|evidence| evidence.acknowledged),
        "lost": evidence.map(|evidence| evidence.lost),
        "indeterminate": evidence.map(|evidence| evidence.indeterminate),
        "errors": evidence.map(|evidence| evidence.errors),
        "verdict": evidence.map(|evidence| word(evidence.verdict)),
        "reason": evidence.and_then(|evidence| evidence.reason.clone()),
        "violations": evidence.map(|evidence| evidence.violations.clone()).unwrap_or_default(),
    })
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

    fn intent() -> Intent {
        let node = |port: u16| NodeId::parse(&format!("127.0.0.1:{port}")).unwrap();
        Intent {
            victims: vec![(node(2379), 41_021, "leader")],
            handles: vec![],
            leader_before: Some(node(2379)),
            survivors: vec![node(2380)],
        }
    }

    fn evidence(verdict: Verdict) -> Evidence {
        Evidence {
            acknowledged: 1204,
            lost: 0,
            indeterminate: 1,
            errors: 0,
            unavailable_ms: 11.2,
            in_flight_at_fault: true,
            violations: vec![],
            verdict,
            reason: None,
        }
    }

    #[test]
    fn the_verdict_reads_as_documented() {
        let leader = NodeId::parse("127.0.0.1:2380").unwrap();
        assert_eq!(
            lines(&intent(), Some(&leader), Some(&evidence(Verdict::Proved))),
            [
                "killed 127.0.0.1:2379 (leader, pid 41021) · 127.0.0.1:2380 leads · writes paused 11 ms",
                "1 204 acknowledged, 0 lost, 1 indeterminate · proved",
            ]
        );
        assert_eq!(
            lines(&intent(), None, None),
            ["killed 127.0.0.1:2379 (leader, pid 41021) · nobody leads"]
        );
    }

    #[test]
    fn a_bad_verdict_says_why() {
        let mut violated = evidence(Verdict::Violated);
        violated.reason = Some("a write is missing".to_owned());
        violated.violations = vec!["k was acknowledged".to_owned()];
        let told = lines(&intent(), None, Some(&violated));
        assert_eq!(told[2..], ["because a write is missing", "violation: k was acknowledged"]);
    }

    #[test]
    fn the_json_has_every_documented_field() {
        let value = json(&intent(), None, Some(&evidence(Verdict::Inconclusive)));
        let fields = [
            "killed",
            "leader_before",
            "leader_after",
            "unavailable_ms",
            "acknowledged",
            "lost",
            "indeterminate",
            "verdict",
        ];
        for field in fields {
            assert!(value.get(field).is_some(), "{field}");
        }
        assert_eq!(value["verdict"], "inconclusive");
        assert_eq!(value["leader_after"], serde_json::Value::Null);
    }

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
