//! What `recover` prints. Values in, text or JSON out.

use std::path::Path;

use serde_json::{Value, json};

use crate::control::recovery::{self, Finding, Held, Register, Verdict};
use crate::inspection::Inspection;
use crate::view::{NodeId, View};

use super::super::charset;
use super::super::context::{Context, list};
use super::super::render::{self, DIM, GREEN, PLAIN, RED, YELLOW};
use super::gather::{Gathered, Row};

/// Everything there is to tell.
pub(super) struct Report<'a> {
    pub(super) found: &'a Gathered,
    pub(super) finding: &'a Finding,
    pub(super) leader: Option<&'a NodeId>,
    /// The view that the override has made.
    pub(super) made: Option<&'a View>,
}

/// What was found, what is wrong, and what to do.
pub(super) fn print(context: &Context, report: &Report) {
    if context.json {
        anstream::println!("{}", json(&context.config.name, report, None));
        return;
    }
    print_table(context, report.found);
    let (colour, headline, next) = advice(report);
    anstream::println!("\n{colour}{headline}{PLAIN}");
    let served = report.leader.is_some() && matches!(report.finding.verdict, Verdict::Start(_));
    if !served {
        for sentence in report.finding.sentences.iter().chain(&losses(report)) {
            anstream::println!("{} {sentence}", charset::fit("•"));
        }
    }
    anstream::println!("next: {next}");
}

/// What each copy holds.
pub(super) fn print_table(context: &Context, found: &Gathered) {
    if context.json {
        return;
    }
    for line in table(found) {
        anstream::println!("{line}");
    }
    for row in &found.rows {
        let entries = row.inspection.iter().flat_map(|found| &found.entries);
        for entry in entries.filter(|entry| entry.refused.is_some()) {
            anstream::println!("{YELLOW}{}: {entry}{PLAIN}", row.node);
        }
        for aside in row.inspection.iter().flat_map(|found| &found.aside) {
            anstream::println!("{DIM}{}: {}{PLAIN}", row.node, kept(aside));
        }
    }
    let register = match &found.register {
        Register::Holds(view) => {
            let in_sync: Vec<NodeId> = view.in_sync.keys().cloned().collect();
            format!("epoch {}, led by {}, in sync {}", view.epoch, view.leader, list(&in_sync))
        }
        Register::Gone => "gone or empty".to_owned(),
        Register::Unusable { why, .. } => why.clone(),
    };
    anstream::println!("register: {register}");
    anstream::println!(
        "{DIM}times are those of files: they prove nothing, and nothing is decided by them{PLAIN}"
    );
}

/// What the override did.
pub(super) fn print_made(context: &Context, report: &Report, aside: Option<&Path>) {
    let Some(view) = report.made else { return };
    if context.json {
        anstream::println!("{}", json(&context.config.name, report, aside));
        return;
    }
    anstream::println!("{} is the source of all others in epoch {}", view.leader, view.epoch);
    for sentence in losses(report) {
        anstream::println!("{} {sentence}", charset::fit("•"));
    }
    if let Some(aside) = aside {
        anstream::println!("the views before it are kept in {}", aside.display());
    }
    anstream::println!(
        "the other nodes set their data aside when they start, in aside-N of their directories, and join anew; nothing is deleted\nnext: replcluster up"
    );
}

/// How to start nodes, as one would type it.
pub(super) fn start(nodes: &[NodeId]) -> String {
    match nodes {
        [one] => format!("start it: `replcluster up`, or `replcluster start {one}` where others run"),
        _ => "start them: `replcluster up`".to_owned(),
    }
}

fn advice(report: &Report) -> (anstyle::Style, String, String) {
    match (&report.finding.verdict, report.leader) {
        (Verdict::Start(_), Some(leader)) => {
            (GREEN, format!("{leader} leads: nothing is to be recovered"), "replcluster status".to_owned())
        }
        (Verdict::Start(have), None) => {
            (YELLOW, "no node leads, but nothing is lost: no recovery is needed".to_owned(), start(have))
        }
        (Verdict::FindOut(unknown), _) => (
            RED,
            "it is not known what the last in-sync set holds".to_owned(),
            format!("put {} right, then look again", list(unknown)),
        ),
        (Verdict::Recover { source }, _) => (
            RED,
            format!("no node can lead by itself any more; the best copy is that of {source}"),
            format!(
                "bring the lost copy or register back, or go on from {source}: replcluster recover --accept-data-loss"
            ),
        ),
        (Verdict::Nothing, _) => (
            RED,
            "no copy can be used".to_owned(),
            "bring one back, for example from what was set aside or from a backup".to_owned(),
        ),
        (Verdict::New, _) => (
            GREEN,
            "there is no data and no view: nothing is to be recovered".to_owned(),
            "replcluster up".to_owned(),
        ),
    }
}

/// What is lost with the source that was made, or else with the one that is recommended.
fn losses(report: &Report) -> Vec<String> {
    let recommended = match &report.finding.verdict {
        Verdict::Recover { source } => Some(source),
        Verdict::Start(_) | Verdict::FindOut(_) | Verdict::Nothing | Verdict::New => None,
    };
    let source = report.made.map(|view| &view.leader).or(recommended);
    source
        .and_then(|source| recovery::loss(source, report.finding, &report.found.copies).ok())
        .unwrap_or_default()
}

fn table(found: &Gathered) -> Vec<String> {
    let header = ["NODE", "STATE", "HOLDS", "SEEN", "LAST", "OF-EPOCH", "COMMITTED", "LAST-WRITE"];
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let rows = found.rows.iter().zip(&found.copies).map(|(row, copy)| {
        vec![
            row.node.to_string(),
            row.state.to_owned(),
            holds(&copy.held).to_owned(),
            or_dash(row.seen().map(|epoch| epoch.to_string())),
            or_dash(row.last().map(|last| last.index.to_string())),
            or_dash(row.last().map(|last| last.epoch.to_string())),
            or_dash(row.commit().map(|commit| commit.to_string())),
            or_dash(row.written_at().map(|at| at.get(..19).unwrap_or(at).to_owned())),
        ]
    });
    render::table(&header, rows.collect())
}

fn holds(held: &Held) -> &'static str {
    match held {
        Held::Nothing => "nothing",
        Held::Data(data) if data.last.index == 0 => "no entries",
        Held::Data(_) => "data",
        Held::Damaged(_) => "damaged",
        Held::Unknown(_) => "unknown",
    }
}

/// What was set aside, in words.
fn kept(aside: &Inspection) -> String {
    let end = aside.log.as_ref().map_or("without a log that can be read".to_owned(), |log| {
        format!("to entry {} of epoch {}", log.last.index, log.last.epoch)
    });
    format!("set aside in {}, {end}", aside.directory.display())
}

fn json(cluster: &str, report: &Report, aside: Option<&Path>) -> Value {
    let finding = report.finding;
    let verdict = match (&finding.verdict, report.leader) {
        (Verdict::Start(_), Some(_)) => "serving",
        (Verdict::Start(_), None) => "start",
        (Verdict::FindOut(_), _) => "find-out",
        (Verdict::Recover { .. }, _) => "recover",
        (Verdict::Nothing, _) => "nothing",
        (Verdict::New, _) => "new",
    };
    let concerned: Vec<String> = match &finding.verdict {
        Verdict::Start(nodes) | Verdict::FindOut(nodes) => nodes.iter().map(NodeId::to_string).collect(),
        Verdict::Recover { source } => vec![source.to_string()],
        Verdict::Nothing | Verdict::New => Vec::new(),
    };
    let register = match &report.found.register {
        Register::Holds(view) => json!({"state": "holds", "epoch": view.epoch.0, "why": null}),
        Register::Gone => json!({"state": "gone", "epoch": null, "why": null}),
        Register::Unusable { why, .. } => json!({"state": "unusable", "epoch": null, "why": why}),
    };
    let copies: Vec<Value> = report
        .found
        .rows
        .iter()
        .zip(&report.found.copies)
        .map(|(row, copy)| json_copy(row, &copy.held))
        .collect();
    json!({
        "schema": 1,
        "cluster": cluster,
        "verdict": verdict,
        "nodes": concerned,
        "leader": report.leader.map(ToString::to_string),
        "register": register,
        "sentences": finding.sentences,
        "loss": losses(report),
        "copies": copies,
        "recovered": report.made.map(|view| json!({
            "source": view.leader.to_string(),
            "epoch": view.epoch.0,
            "last": view.floor.0,
            "register_aside": aside,
        })),
    })
}

fn json_copy(row: &Row, held: &Held) -> Value {
    let why = match held {
        Held::Damaged(why) => why.clone(),
        Held::Unknown(why) => vec![why.clone()],
        Held::Nothing | Held::Data(_) => Vec::new(),
    };
    json!({
        "address": row.node.to_string(),
        "state": row.state,
        "holds": holds(held),
        "why": why,
        "seen_epoch": row.seen(),
        "last": row.last(),
        "commit": row.commit(),
        "revision": row.revision(),
        "written_at": row.written_at(),
        "entries": row.inspection.as_ref().map_or(Vec::new(), |found| found.entries.clone()),
        "aside": row.inspection.as_ref().map_or(Vec::new(), |found| found.aside.clone()),
    })
}
