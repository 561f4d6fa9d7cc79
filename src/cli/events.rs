//! `events`: the history, as sentences or as the JSON lines it is kept in. Works without a supervisor.

use std::time::Duration;

use clap::Args;

use crate::clock;
use crate::config::parse_duration;
use crate::control::fault::{Kind, Phase};
use crate::supervisor::events::{Entry, Event, Reader};
use crate::telemetry::stamp;

use super::charset;
use super::context::Context;
use super::exit::{Exit, Failure, Outcome};
use super::render::{self, DIM, PLAIN};
use super::wait::ended;

#[derive(Debug, Args)]
pub(super) struct Events {
    /// Go on with every new event until Ctrl-C
    #[arg(short = 'f', long)]
    follow: bool,
    /// Only the last so many
    #[arg(short = 'n', long, value_name = "N")]
    lines: Option<usize>,
    /// Only those at most this old
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    since: Option<Duration>,
    /// Print JSON lines, with every phase of every fault
    #[arg(long)]
    pub json: bool,
}

/// How often the file is looked at for more.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(100);

pub(super) async fn run(verb: &Events, context: &Context) -> Outcome {
    let mut history = Reader::new(context.layout.events());
    let mut entries = more(&mut history)?;
    if let Some(oldest) = verb.since.and_then(|since| clock::wall().checked_sub(since)).map(stamp) {
        entries.retain(|entry| entry.at >= oldest);
    }
    if let Some(lines) = verb.lines {
        let wanted: Vec<&Entry> = entries.iter().filter(|entry| is_shown(context, entry)).collect();
        let first = wanted.len().saturating_sub(lines);
        let kept: Vec<Entry> = wanted[first..].iter().map(|entry| (*entry).clone()).collect();
        entries = kept;
    }
    if entries.is_empty() && !verb.follow && !context.layout.events().exists() {
        anstream::eprintln!("nothing has happened yet\nstart the cluster with `replcluster up`");
    }
    print(context, &entries);
    if verb.follow { go_on(context, &mut history).await } else { Ok(Exit::Done) }
}

/// Prints every event from now on.
pub(super) async fn follow(context: &Context) -> Outcome {
    let mut history = Reader::new(context.layout.events());
    more(&mut history)?;
    go_on(context, &mut history).await
}

async fn go_on(context: &Context, history: &mut Reader) -> Outcome {
    loop {
        tokio::time::sleep(FOLLOW_INTERVAL).await;
        print(context, &more(history)?);
    }
}

fn more(history: &mut Reader) -> Result<Vec<Entry>, Failure> {
    history.more().map_err(|error| {
        let message =
            format!("cannot read the history: {error}\ncheck that you are the user who started the cluster");
        Failure::new(Exit::Failed, message)
    })
}

/// The phases of a fault that a reader can tell from others are left out of the sentences; JSON has them all.
fn is_shown(context: &Context, entry: &Entry) -> bool {
    context.json || !sentence(&entry.event).is_empty()
}

fn print(context: &Context, entries: &[Entry]) {
    for entry in entries.iter().filter(|entry| is_shown(context, entry)) {
        if context.json {
            anstream::println!("{}", serde_json::to_string(entry).unwrap_or_default());
        } else {
            anstream::println!("{DIM}{}{PLAIN} {}", entry.at, charset::fit(&sentence(&entry.event)));
        }
    }
}

/// An event in words.
pub(super) fn sentence(event: &Event) -> String {
    match event {
        Event::SupervisorStarted { pid } => format!("supervisor started (pid {pid})"),
        Event::SupervisorEnded { pid, reason } => format!("supervisor ended (pid {pid}): {reason}"),
        Event::Started { node, pid } => format!("{node} started (pid {pid})"),
        Event::Adopted { node, pid } => format!("{node} taken over (pid {pid})"),
        Event::Ready { node, after_ms: Some(after_ms) } => {
            format!("{node} in sync {after_ms} ms after its start")
        }
        Event::Ready { node, after_ms: None } => format!("{node} in sync"),
        Event::Exited { node, pid, code, signal, cause, trouble, words, restart_in_ms } => {
            let how = ended(*code, *signal);
            let next = restart_in_ms.map_or(String::new(), |wait| format!(", starting again in {wait} ms"));
            let trouble = trouble.map_or(String::new(), |trouble| format!(", {}", trouble.as_str()));
            let words = words.as_ref().map_or(String::new(), |words| format!(": {words}"));
            format!("{node} ended (pid {pid}, {how}, {}{trouble}){next}{words}", cause.as_str())
        }
        Event::NotStarted { node, reason, restart_in_ms } => {
            let reason = reason.lines().next().unwrap_or_default();
            format!("{node} not started: {reason}; trying again in {restart_in_ms} ms")
        }
        Event::GaveUp { node, reason } => {
            format!("{node} given up: {}", reason.lines().next().unwrap_or_default())
        }
        Event::View { epoch, leader, in_sync } => {
            format!("epoch {epoch}: {leader} leads, in sync {}", in_sync.join(", "))
        }
        Event::Command { command, nodes, signal, .. } => {
            let nodes = nodes.join(", ");
            let signal = signal.as_ref().map_or(String::new(), |signal| format!("{signal}, "));
            format!("{command} ({nodes}{}{signal}operator)", if nodes.is_empty() { "" } else { ", " })
        }
        Event::Fault { kind, node, pid, phase, why, .. } => {
            let why = why.as_ref().map_or(String::new(), |why| format!(": {why}"));
            match (kind, phase) {
                (Kind::Pause, Phase::Seen) => format!("{node} frozen (pid {pid})"),
                (Kind::Pause, Phase::Healed | Phase::Abandoned) => format!("{node} thawed (pid {pid}){why}"),
                (Kind::Kill, Phase::Abandoned) => format!("{node} not killed (pid {pid}){why}"),
                (Kind::Pause | Kind::Kill, Phase::Intent | Phase::Applied | Phase::Held)
                | (Kind::Kill, Phase::Seen | Phase::Healed) => String::new(),
            }
        }
        Event::Verdict { leader, unavailable_ms, silent_ms, acknowledged, lost, verdict, nodes: _ } => {
            let leader = leader.as_deref().unwrap_or("nobody");
            // Without a load there is nothing that could have been counted.
            let Some(acknowledged) = acknowledged else { return format!("not probed: {leader} leads") };
            let gap = match (unavailable_ms, silent_ms) {
                (_, Some(silent)) => {
                    format!(", writes did not come back within {}", render::milliseconds(*silent))
                }
                (Some(gap), None) => format!(", writes paused {}", render::milliseconds(*gap)),
                (None, None) => String::new(),
            };
            let lost =
                lost.map_or("not read back".to_owned(), |lost| format!("{} lost", render::grouped(lost)));
            format!("{verdict}: {leader} leads{gap}, {} acknowledged, {lost}", render::grouped(*acknowledged))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::cause::Cause;

    #[test]
    fn events_read_as_sentences() {
        let exited = Event::Exited {
            node: "h:1".to_owned(),
            pid: 7,
            code: None,
            signal: Some(11),
            cause: Cause::Crash,
            trouble: None,
            words: Some("a word".to_owned()),
            restart_in_ms: Some(100),
        };
        assert_eq!(sentence(&exited), "h:1 ended (pid 7, SIGSEGV, crash), starting again in 100 ms: a word");
        let command = |nodes: &[&str]| Event::Command {
            command: "down".to_owned(),
            nodes: nodes.iter().map(ToString::to_string).collect(),
            signal: None,
            leader: None,
        };
        assert_eq!(sentence(&command(&["h:1", "h:2"])), "down (h:1, h:2, operator)");
        assert_eq!(sentence(&command(&[])), "down (operator)");
    }

    #[test]
    fn a_verdict_never_tells_a_number_that_nobody_counted() {
        let verdict = |silent_ms: Option<f64>, acknowledged, lost| Event::Verdict {
            nodes: vec![],
            leader: Some("h:1".to_owned()),
            unavailable_ms: silent_ms.is_none().then_some(11.0),
            silent_ms,
            acknowledged,
            lost,
            verdict: "inconclusive".to_owned(),
        };
        let told = |silent_ms, acknowledged, lost| sentence(&verdict(silent_ms, acknowledged, lost));
        assert_eq!(
            told(None, Some(48), Some(0)),
            "inconclusive: h:1 leads, writes paused 11 ms, 48 acknowledged, 0 lost"
        );
        assert_eq!(
            told(Some(5004.0), Some(48), None),
            "inconclusive: h:1 leads, writes did not come back within 5 004 ms, 48 acknowledged, not read back"
        );
        assert_eq!(told(None, None, None), "not probed: h:1 leads");
    }

    #[test]
    fn verdicts_of_histories_that_were_written_before_still_read() {
        let old =
            r#"{"event":"verdict","nodes":[],"leader":null,"acknowledged":48,"lost":0,"verdict":"proved"}"#;
        let event: Event = serde_json::from_str(old).unwrap();
        assert_eq!(sentence(&event), "proved: nobody leads, 48 acknowledged, 0 lost");
    }
}
