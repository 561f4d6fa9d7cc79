//! What every node and the register hold: a node that runs is asked, a stopped one's directory is looked at through
//! `replserver inspect`. Nothing is changed.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::control::recovery::{Copy, Data, Held, Register};
use crate::inspection::{At, Inspection};
use crate::proto::replcluster::{Copy as WireCopy, DescribeResponse, View as WireView};
use crate::register::held;
use crate::register::operator::{self, Found};
use crate::supervisor::spawn;
use crate::view::{Checksum, ClusterId, Epoch, Incarnation, Index, NodeId, View};

use super::super::context::Context;
use super::super::exit::{Exit, Failure};
use super::super::survey::{NodeSurvey, Survey};

/// Everything that was found.
pub(super) struct Gathered {
    pub(super) register: Register,
    /// No epoch that the register names is above this.
    pub(super) highest: Epoch,
    /// In the order of the configuration, as `rows`.
    pub(super) copies: Vec<Copy>,
    pub(super) rows: Vec<Row>,
}

/// One node, for people.
pub(super) struct Row {
    pub(super) node: NodeId,
    pub(super) state: &'static str,
    pub(super) inspection: Option<Inspection>,
    pub(super) answer: Option<DescribeResponse>,
}

/// Asks and looks.
pub(super) async fn gather(context: &Context, survey: &Survey) -> Result<Gathered, Failure> {
    let mut rows = Vec::new();
    let mut copies = Vec::new();
    for one in &survey.nodes {
        let (held, row) = if one.runs() {
            running(one, set_aside(&context.layout.data(&one.node)).await?)
        } else {
            stopped(context, &one.node).await?
        };
        copies.push(copy(context, &one.node, held));
        rows.push(row);
    }
    Ok(with_register(context, rows, copies))
}

/// As [`gather`], where it is known that no node runs.
pub(super) async fn gather_stopped(context: &Context) -> Result<Gathered, Failure> {
    let mut rows = Vec::new();
    let mut copies = Vec::new();
    for node in &context.config.nodes {
        let (held, row) = stopped(context, node).await?;
        copies.push(copy(context, node, held));
        rows.push(row);
    }
    Ok(with_register(context, rows, copies))
}

/// Why nothing should be started as things stand: the register is behind what a stopped node has seen, or cannot be read.
/// A node that has not seen the newest view itself would lead by the older one, and what was acknowledged without it would
/// be lost (R11).
pub(in super::super) async fn register_trouble(context: &Context) -> Result<Option<String>, Failure> {
    let mut newest: Option<(u64, NodeId)> = None;
    for node in &context.config.nodes {
        let directory = context.layout.data(node);
        // What cannot be read says so itself when its node is started.
        if directory.exists()
            && let Ok(found) = inspect(&directory, Depth::Brief).await?
        {
            let seen = found.view.map_or(0, |view| view.epoch);
            if seen > newest.as_ref().map_or(0, |(epoch, _)| *epoch) {
                newest = Some((seen, node.clone()));
            }
        }
    }
    let (held, what) = match operator::look(&context.layout.register()).found {
        Found::Holds(view) => (view.epoch.0, format!("stands at epoch {}", view.epoch)),
        Found::Missing | Found::Empty => (0, "is gone or empty".to_owned()),
        Found::Damaged { why, .. } | Found::Unreadable(why) => return Ok(Some(why)),
    };
    Ok(newest.filter(|(seen, _)| *seen > held).map(|(seen, node)| {
        format!(
            "the register {what}, but {node} has seen epoch {seen}: it was deleted or restored from a backup"
        )
    }))
}

fn with_register(context: &Context, rows: Vec<Row>, copies: Vec<Copy>) -> Gathered {
    let look = operator::look(&context.layout.register());
    let register = match look.found {
        Found::Holds(view) => Register::Holds(view),
        Found::Missing | Found::Empty => Register::Gone,
        Found::Damaged { why, before } => Register::Unusable { why, before },
        Found::Unreadable(why) => Register::Unusable { why, before: None },
    };
    Gathered { register, highest: look.highest, copies, rows }
}

fn copy(context: &Context, node: &NodeId, held: Held) -> Copy {
    let noted = held::read(&context.layout.register(), node);
    Copy {
        node: node.clone(),
        held,
        noted: noted.map(|noted| (noted.incarnation, noted.epoch, noted.commit)),
    }
}

// --- a node that runs ---

fn running(one: &NodeSurvey, aside: Vec<Inspection>) -> (Held, Row) {
    let pid = one.pid().map_or("unknown".to_owned(), |pid| pid.to_string());
    let (held, state) = match &one.answer {
        Some(answer) => match told(answer) {
            Some(data) => (Held::Data(data), "running"),
            None => (Held::Nothing, "running"),
        },
        None if one.is_paused() => (
            Held::Unknown(format!("its process {pid} is frozen; `replcluster resume {}`", one.node)),
            "frozen",
        ),
        None => (Held::Unknown(format!("its process {pid} does not answer")), "silent"),
    };
    let inspection = Some(Inspection { aside, ..Inspection::default() });
    let row = Row { node: one.node.clone(), state, inspection, answer: one.answer.clone() };
    (held, row)
}

/// What was set aside in the directory of a node that runs: it works beside it and not in it.
async fn set_aside(directory: &Path) -> Result<Vec<Inspection>, Failure> {
    let mut places: Vec<PathBuf> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("aside-"))
        .map(|entry| entry.path())
        .collect();
    places.sort();
    let mut found = Vec::new();
    for place in places {
        found.extend(inspect(&place, Depth::Everything).await?.ok());
    }
    Ok(found)
}

fn told(answer: &DescribeResponse) -> Option<Data> {
    let view = answer.view.as_ref().and_then(view_told)?;
    Some(Data {
        incarnation: Incarnation(answer.incarnation),
        cluster: ClusterId(answer.cluster_id),
        promised: view.epoch.max(Epoch(answer.last_epoch)),
        view: Some(view),
        last: At { epoch: answer.last_epoch, index: answer.last_index },
        commit: Index(answer.commit_index),
    })
}

fn view_told(view: &WireView) -> Option<View> {
    let copies = |copies: &[WireCopy]| {
        copies
            .iter()
            .map(|copy| Some((NodeId::parse(&copy.address).ok()?, Incarnation(copy.incarnation))))
            .collect::<Option<_>>()
    };
    Some(View {
        cluster: ClusterId(view.cluster_id),
        epoch: Epoch(view.epoch),
        leader: NodeId::parse(&view.leader).ok()?,
        led_since: Epoch(view.led_since),
        floor: Index(view.floor),
        recovered: Epoch(view.recovered),
        previous: Checksum(view.previous),
        in_sync: copies(&view.in_sync)?,
        members: copies(&view.members)?,
    })
}

// --- a node that does not ---

async fn stopped(context: &Context, node: &NodeId) -> Result<(Held, Row), Failure> {
    let directory = context.layout.data(node);
    let found = if directory.exists() { Some(inspect(&directory, Depth::Everything).await?) } else { None };
    let row = |inspection: Option<Inspection>| Row {
        node: node.clone(),
        state: "stopped",
        inspection,
        answer: None,
    };
    Ok(match found {
        None => (Held::Nothing, row(None)),
        Some(Err(why)) => (Held::Unknown(why), row(None)),
        Some(Ok(found)) => {
            let held = match Data::of(&found) {
                Some(data) => Held::Data(data),
                None if found.damage.is_empty() => Held::Nothing,
                None => Held::Damaged(found.damage.clone()),
            };
            (held, row(Some(found)))
        }
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    Brief,
    Everything,
    /// And this entry of the log.
    Entry(u64),
}

/// Through the program whose directory it is: this one knows nothing of what stands in there.
pub(super) async fn inspect(directory: &Path, depth: Depth) -> Result<Result<Inspection, String>, Failure> {
    let program = spawn::find_server().map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    let mut command = Command::new(&program);
    command.arg("inspect").arg("--json").arg("--data-dir").arg(directory);
    match depth {
        Depth::Brief => drop(command.arg("--brief")),
        Depth::Everything => {}
        Depth::Entry(index) => drop(command.arg("--entry").arg(index.to_string())),
    }
    let output = tokio::task::spawn_blocking(move || command.output()).await;
    let output = match output {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => {
            let message = format!("cannot run {}: {error}\ncheck that it may be run", program.display());
            return Err(Failure::new(Exit::Failed, message));
        }
        Err(error) => return Ok(Err(error.to_string())),
    };
    if output.status.success() {
        return Ok(serde_json::from_slice(&output.stdout)
            .map_err(|error| format!("{} is of another version: {error}", program.display())));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().next().unwrap_or("it says nothing").trim_start_matches("replserver: ");
    Ok(Err(said.to_owned()))
}

impl Row {
    /// The newest view that the node has seen.
    pub(super) fn seen(&self) -> Option<u64> {
        let told = self.answer.as_ref().map(|answer| answer.epoch).filter(|epoch| *epoch > 0);
        let kept = self.inspection.as_ref().and_then(|found| found.view.as_ref()).map(|view| view.epoch);
        told.or(kept)
    }

    /// The end of its log.
    pub(super) fn last(&self) -> Option<At> {
        let told =
            self.answer.as_ref().map(|answer| At { epoch: answer.last_epoch, index: answer.last_index });
        told.or_else(|| Some(self.inspection.as_ref()?.log.as_ref()?.last)).filter(|last| last.index > 0)
    }

    /// What it knows to be committed.
    pub(super) fn commit(&self) -> Option<u64> {
        let told = self.answer.as_ref().map(|answer| answer.commit_index);
        told.or_else(|| self.inspection.as_ref().map(|found| found.commit)).filter(|commit| *commit > 0)
    }

    /// The revision of its state.
    pub(super) fn revision(&self) -> Option<i64> {
        let told = self.answer.as_ref().map(|answer| answer.revision);
        told.or_else(|| Some(self.inspection.as_ref()?.state.as_ref()?.revision))
    }

    /// About when something was written last.
    pub(super) fn written_at(&self) -> Option<&str> {
        self.inspection.as_ref()?.written_at.as_deref()
    }
}
