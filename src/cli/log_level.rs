//! `log-level`: what nodes log, shown or changed while they run. Asked of the nodes themselves.

use clap::Args;
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use serde_json::json;

use crate::telemetry::{LEVELS, parse_level};
use crate::view::NodeId;

use super::context::{Context, names};
use super::exit::{Exit, Failure, Outcome};
use super::render::table;
use super::{survey, targets};

#[derive(Debug, Args)]
pub(super) struct LogLevel {
    /// error, warn, info, debug or trace for the cluster's own code, or a filter such as
    /// info,replcluster::node=trace,h2=debug; left out, what is logged now is shown
    #[arg(value_name = "LEVEL", add = ArgValueCandidates::new(levels))]
    level: Option<String>,
    /// An address, an end of it that fits only one (:2380), leader, follower, followers or all
    #[arg(value_name = "TARGET", default_value = "all", add = ArgValueCandidates::new(targets))]
    target: String,
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
}

/// What a node answered.
struct Answer {
    node: NodeId,
    before: String,
    after: String,
}

pub(super) async fn run(verb: &LogLevel, context: &Context) -> Outcome {
    if let Some(level) = &verb.level {
        // Refused before anybody is asked, so that never only some nodes change.
        parse_level(level).map_err(|error| Failure::usage(error.to_string()))?;
    }
    let found = survey::survey(context).await?;
    let running = found.running();
    if running.is_empty() {
        let changes = verb.level.is_some();
        return Err(if changes { found.nothing_to_change(context) } else { found.nothing_to_show(context) });
    }
    let named = found.targets(&verb.target)?;
    let (asked, down): (Vec<NodeId>, Vec<NodeId>) =
        named.into_iter().partition(|node| running.contains(node));
    if asked.is_empty() {
        let message = format!(
            "{} is not running, so it logs nothing\nstart it with `replcluster start {}`",
            super::context::list(&down),
            verb.target
        );
        return Err(Failure::new(Exit::Failed, message));
    }
    let filter = verb.level.as_deref().unwrap_or_default();
    let answers = futures_util::future::join_all(asked.iter().map(|node| async move {
        let answer = context.asker.log_level(node, filter, survey::PATIENCE).await?;
        Ok(Answer { node: node.clone(), before: answer.before, after: answer.after })
    }))
    .await;
    let (answers, errors): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(Result::<Answer, crate::supervisor::ask::AskError>::is_ok);
    let answers: Vec<Answer> = answers.into_iter().flatten().collect();
    if verb.level.is_some() && !answers.is_empty() {
        let nodes: Vec<NodeId> = answers.iter().map(|answer| answer.node.clone()).collect();
        let mut supervisor = context.supervisor().await.ok().flatten();
        context.note(supervisor.as_mut(), found.command(format!("log-level {filter}"), &nodes)).await;
    }
    print(verb, context, &answers, &down);
    match errors.into_iter().find_map(Result::err) {
        Some(error) => {
            let message =
                format!("{error}\nsee how it stands with `replcluster status`, then give the command again");
            Err(Failure::new(Exit::Failed, message))
        }
        None => Ok(Exit::Done),
    }
}

fn print(verb: &LogLevel, context: &Context, answers: &[Answer], down: &[NodeId]) {
    if context.json {
        let nodes: Vec<_> = answers
            .iter()
            .map(|answer| {
                json!({ "address": answer.node.as_str(), "before": answer.before, "after": answer.after })
            })
            .collect();
        let value = json!({ "schema": 1, "nodes": nodes, "not_running": names(down) });
        anstream::println!("{value}");
        return;
    }
    let changed = verb.level.is_some();
    let row = |answer: &Answer| {
        let mut cells = vec![answer.node.to_string(), answer.after.clone()];
        if changed {
            cells.push(answer.before.clone());
        }
        cells
    };
    let mut rows: Vec<Vec<String>> = answers.iter().map(row).collect();
    rows.extend(down.iter().map(|node| vec![node.to_string(), "not running".to_owned()]));
    let header: &[&str] = if changed { &["NODE", "LEVEL", "BEFORE"] } else { &["NODE", "LEVEL"] };
    for line in table(header, rows) {
        anstream::println!("{line}");
    }
    if changed {
        anstream::println!("until a node starts again; to keep it, set level under [logs] in cluster.toml");
    }
}

fn levels() -> Vec<CompletionCandidate> {
    LEVELS.into_iter().map(CompletionCandidate::new).collect()
}
