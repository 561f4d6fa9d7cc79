//! `events`: the history, as sentences or as the JSON lines it is kept in. Works without a supervisor.

use std::time::Duration;

use clap::Args;

use crate::supervisor::events::{Entry, Event, read};

use super::context::Context;
use super::exit::{Exit, Failure, Outcome};
use super::render::{self, DIM, PLAIN};
use super::wait::ended;

#[derive(Debug, Args)]
pub(super) struct Events {
    /// Go on with every new event until Ctrl-C
    #[arg(short = 'f', long)]
    follow: bool,
    /// Print JSON lines
    #[arg(long)]
    pub json: bool,
}

/// How often the file is looked at for more.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(100);

pub(super) async fn run(verb: &Events, context: &Context) -> Outcome {
    let mut shown = 0;
    loop {
        shown = print_from(context, shown)?;
        if !verb.follow {
            return Ok(Exit::Done);
        }
        tokio::time::sleep(FOLLOW_INTERVAL).await;
    }
}

/// Prints every event from now on.
pub(super) async fn follow(context: &Context) -> Outcome {
    let mut shown = history(context)?.len();
    loop {
        shown = print_from(context, shown)?;
        tokio::time::sleep(FOLLOW_INTERVAL).await;
    }
}

fn history(context: &Context) -> Result<Vec<Entry>, Failure> {
    let path = context.layout.events();
    read(&path).map_err(|error| {
        let message = format!(
            "cannot read {}: {error}\ncheck that you are the user who started the cluster",
            path.display()
        );
        Failure::new(Exit::Failed, message)
    })
}

fn print_from(context: &Context, shown: usize) -> Result<usize, Failure> {
    let entries = history(context)?;
    // A shorter history is a new one: the cluster was purged.
    let first = if entries.len() < shown { 0 } else { shown };
    for entry in &entries[first..] {
        if context.json {
            anstream::println!("{}", serde_json::to_string(entry).unwrap_or_default());
        } else {
            anstream::println!("{DIM}{}{PLAIN} {}", entry.at, sentence(&entry.event));
        }
    }
    Ok(entries.len())
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
        Event::Exited { node, pid, code, signal, cause, restart_in_ms } => {
            let how = ended(*code, *signal);
            let next = restart_in_ms.map_or(String::new(), |wait| format!(", starting again in {wait} ms"));
            format!("{node} ended (pid {pid}, {how}, {}){next}", cause.as_str())
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
        Event::Verdict { leader, unavailable_ms, acknowledged, lost, verdict, .. } => {
            let leader = leader.as_deref().unwrap_or("nobody");
            let gap = unavailable_ms
                .map_or(String::new(), |gap| format!(", writes paused {}", render::milliseconds(gap)));
            format!(
                "{verdict}: {leader} leads{gap}, {} acknowledged, {lost} lost",
                render::grouped(*acknowledged)
            )
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
            restart_in_ms: Some(100),
        };
        assert_eq!(sentence(&exited), "h:1 ended (pid 7, SIGSEGV, crash), starting again in 100 ms");
        let command = |nodes: &[&str]| Event::Command {
            command: "down".to_owned(),
            nodes: nodes.iter().map(ToString::to_string).collect(),
            signal: None,
            leader: None,
        };
        assert_eq!(sentence(&command(&["h:1", "h:2"])), "down (h:1, h:2, operator)");
        assert_eq!(sentence(&command(&[])), "down (operator)");
    }
}
