//! `recover`: what every copy of the data holds, what is wrong, and, where the last in-sync copy is gone and the operator
//! accepts what that costs, a new view in which one copy is the source of all others.
//!
//! What is found and what follows from it is one value, printed with and without the override. The override itself is one
//! write to the register: whoever is killed before it has changed nothing, and after it everything is done but tidying
//! up. The other copies are not touched here: their nodes set them aside themselves, once the source leads.

mod gather;
mod report;
mod skip;

use std::time::Duration;

use clap::Args;
use clap_complete::engine::ArgValueCandidates;

use crate::control::recovery::{self, Finding, Verdict};
use crate::register::operator::{Hold, OperatorError};
use crate::supervisor::events::Event;
use crate::view::{NodeId, View};

use super::context::{Context, confirm, list, names};
use super::exit::{Exit, Failure, Outcome};
use super::wait::say;
use super::{down, nodes, survey, target};
use gather::Gathered;

pub(super) use gather::register_trouble;

#[derive(Debug, Args)]
pub(super) struct Recover {
    /// Make one copy the source of all others and give up what only the others hold; ends the cluster first
    #[arg(long)]
    accept_data_loss: bool,
    /// The copy to go on from [default: the one recommended]
    #[arg(long, value_name = "NODE", requires = "accept_data_loss", add = ArgValueCandidates::new(nodes))]
    source: Option<String>,
    /// Have every node step over this entry of the log, for an entry by which nodes end; ends the cluster first
    #[arg(long, value_name = "INDEX", conflicts_with = "accept_data_loss")]
    skip_entry: Option<u64>,
    /// Do not ask before giving up data
    #[arg(long)]
    yes: bool,
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
}

/// How long a node may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) async fn run(verb: &Recover, context: &Context) -> Outcome {
    let chosen = verb
        .source
        .as_ref()
        .map(|text| target::by_address(text, &context.config.nodes))
        .transpose()
        .map_err(|error| Failure::usage(error.to_string()))?;
    let survey = survey::survey(context).await?;
    if let Some(index) = verb.skip_entry {
        return skip::run(context, &survey, index, verb.yes).await;
    }
    let found = gather::gather(context, &survey).await?;
    let finding = recovery::judge(&found.register, &found.copies);
    let leader = survey.sum.leader.clone();
    if !verb.accept_data_loss {
        let shown = report::Report { found: &found, finding: &finding, leader: leader.as_ref(), made: None };
        report::print(context, &shown);
        return Ok(exit(&finding, leader.as_ref(), !survey.running().is_empty()));
    }
    if let Some(refusal) = refusal(&finding, leader.as_ref()) {
        report::print_table(context, &found);
        return Err(refusal);
    }
    // Whoever is asked reads first what is at stake.
    if !context.json && !verb.yes {
        let shown = report::Report { found: &found, finding: &finding, leader: leader.as_ref(), made: None };
        report::print(context, &shown);
    }
    let question = match chosen.as_ref().or(source(&finding)) {
        Some(source) => format!(
            "end {} and go on from the copy of {source}, giving up what only others hold?",
            context.config.name
        ),
        None => format!("end {} to find out what its copies hold?", context.config.name),
    };
    confirm(&question, verb.yes)?;
    let made = declare(context, chosen.as_ref()).await?;
    let shown =
        report::Report { found: &made.found, finding: &made.finding, leader: None, made: Some(&made.view) };
    report::print_made(context, &shown, made.aside.as_deref());
    Ok(Exit::Done)
}

/// The codes of `status`, since this says the same about the cluster.
fn exit(finding: &Finding, leader: Option<&NodeId>, runs: bool) -> Exit {
    match (&finding.verdict, leader) {
        (Verdict::Start(_), Some(_)) => Exit::Done,
        // It serves, but no view can change and no read be proved.
        (Verdict::FindOut(_) | Verdict::Recover { .. } | Verdict::Nothing | Verdict::New, Some(_)) => {
            Exit::Degraded
        }
        (Verdict::Start(_) | Verdict::New, None) if !runs => Exit::NotRunning,
        (Verdict::Start(_) | Verdict::New, None)
        | (Verdict::FindOut(_) | Verdict::Recover { .. } | Verdict::Nothing, None) => Exit::Unavailable,
    }
}

fn source(finding: &Finding) -> Option<&NodeId> {
    match &finding.verdict {
        Verdict::Recover { source } => Some(source),
        Verdict::Start(_) | Verdict::FindOut(_) | Verdict::Nothing | Verdict::New => None,
    }
}

/// Why no data need be given up, or none can be gone on from.
fn refusal(finding: &Finding, leader: Option<&NodeId>) -> Option<Failure> {
    let failed = |message: String| Some(Failure::new(Exit::Failed, message));
    let why = finding.sentences.join("\n");
    match (&finding.verdict, leader) {
        (Verdict::Start(_), Some(leader)) => failed(format!(
            "{leader} leads and nothing is lost: no data was given up\nsee how it stands with `replcluster status`"
        )),
        (Verdict::Start(have), None) => failed(format!("{why}\nno data was given up\n{}", report::start(have))),
        (Verdict::Nothing, _) => failed(format!(
            "{why}\nthere is no copy to go on from\nbring one back, for example from what was set aside or from a backup"
        )),
        (Verdict::New, _) => failed(
            "there is no data and no view: nothing is to be recovered\nstart the cluster with `replcluster up`"
                .to_owned(),
        ),
        (Verdict::Recover { .. } | Verdict::FindOut(_), _) => None,
    }
}

struct Made {
    found: Gathered,
    finding: Finding,
    view: View,
    /// Where the older views are.
    aside: Option<std::path::PathBuf>,
}

/// Ends what runs, looks again at what is really on the disks, and makes the view.
async fn declare(context: &Context, chosen: Option<&NodeId>) -> Result<Made, Failure> {
    down::end_all(context, false, PATIENCE).await?;
    let data = context.config.nodes.iter().map(|node| (node.clone(), context.layout.data(node))).collect();
    // From here on no node can start before this is done.
    let hold = Hold::take(&context.layout.register(), &data).map_err(failure)?;
    let found = gather::gather_stopped(context).await?;
    let finding = recovery::judge(&found.register, &found.copies);
    if let Some(refusal) = refusal(&finding, None) {
        return Err(refusal);
    }
    let source = match &finding.verdict {
        Verdict::Recover { source } => chosen.unwrap_or(source).clone(),
        // What may be everything is not given up because it cannot be read just now.
        Verdict::FindOut(unknown) => {
            let message = format!(
                "{}\nput that right; if the data of {} is gone for good, move its directory away",
                finding.sentences.join("\n"),
                list(unknown)
            );
            return Err(Failure::new(Exit::Failed, message));
        }
        Verdict::Start(_) | Verdict::Nothing | Verdict::New => unreachable!("refused just above"),
    };
    let view = recovery::view(&source, &finding, &found.copies, found.highest)
        .map_err(|error| Failure::new(Exit::Failed, format!("{error}\nname another copy with --source")))?;
    let command = format!("recover --accept-data-loss --source {source}");
    let event =
        Event::Command { command, nodes: names(std::slice::from_ref(&source)), signal: None, leader: None };
    context.note(None, event).await;
    if !context.json {
        say(&format!("make {source} the source, in epoch {}", view.epoch));
    }
    let aside = hold.declare(&view).map_err(failure)?;
    Ok(Made { found, finding, view, aside })
}

/// For an error of what only an operator may do.
fn failure(error: OperatorError) -> Failure {
    let exit = match &error {
        OperatorError::Lock(crate::register::LockError::Held { .. }) | OperatorError::Overtaken(_) => {
            Exit::Conflict
        }
        OperatorError::Lock(crate::register::LockError::Io { .. })
        | OperatorError::Register(_)
        | OperatorError::Io { .. } => Exit::Failed,
    };
    Failure::new(exit, error.to_string())
}
