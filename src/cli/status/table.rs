//! The table of nodes, made to fit: columns go in a fixed order as the width shrinks, then addresses are cut in their
//! middle. Values in, lines out.

use crate::control::health::{NodeState, Role};
use crate::supervisor::ask::account;

use super::super::lines::{Line, Piece, Tone, columns, cut_end, cut_line, cut_middle, piece};
use super::super::render;
use super::super::survey::{NodeSurvey, Survey};
use super::word;

/// A column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    Node,
    Role,
    State,
    InSync,
    Lag,
    Revision,
    Pid,
    Uptime,
    Restarts,
    Cpu,
    Memory,
    Seen,
}

const COLUMNS: [Column; 12] = [
    Column::Node,
    Column::Role,
    Column::State,
    Column::InSync,
    Column::Lag,
    Column::Revision,
    Column::Pid,
    Column::Uptime,
    Column::Restarts,
    Column::Cpu,
    Column::Memory,
    Column::Seen,
];

/// What goes first where there is no room. The rest stays.
const DROPPED: [Column; 9] = [
    Column::Memory,
    Column::Cpu,
    Column::Restarts,
    Column::Uptime,
    Column::Revision,
    Column::Pid,
    Column::Seen,
    Column::Lag,
    Column::InSync,
];

/// No address is cut to fewer columns: the mark of the leader, and a port.
const NARROWEST_NODE: usize = 8;

/// The header and a line a node, in the order of the survey; none is wider than `width`.
pub(in crate::cli) fn table(found: &Survey, width: Option<usize>) -> Vec<Line> {
    let width = width.unwrap_or(usize::MAX);
    let rows: Vec<Vec<Piece>> =
        found.nodes.iter().enumerate().map(|(index, one)| row(found, index, one)).collect();
    let natural = |index: usize| {
        let cells = rows.iter().map(|row| columns(&row[index].text)).max().unwrap_or(0);
        cells.max(columns(COLUMNS[index].title()))
    };
    let mut shown: Vec<(usize, usize)> = (0..COLUMNS.len()).map(|index| (index, natural(index))).collect();
    let mut gap = 2;
    let total = |shown: &[(usize, usize)], gap: usize| {
        shown.iter().map(|(_, width)| width).sum::<usize>() + gap * (shown.len() - 1)
    };
    for column in DROPPED {
        if total(&shown, gap) > width {
            shown.retain(|(index, _)| COLUMNS[*index] != column);
        }
    }
    shrink(&mut shown, 0, NARROWEST_NODE, total, gap, width);
    if total(&shown, gap) > width {
        gap = 1;
    }
    shrink(&mut shown, 1, 1, total, gap, width);
    shrink(&mut shown, 2, 1, total, gap, width);
    let header: Vec<Piece> = COLUMNS.iter().map(|column| piece(Tone::Plain, column.title())).collect();
    std::iter::once(&header)
        .chain(&rows)
        .map(|cells| cut_line(&laid_out(cells, &shown, gap), width))
        .collect()
}

/// Makes one column narrower, as far as needed and allowed.
fn shrink(
    shown: &mut [(usize, usize)],
    at: usize,
    narrowest: usize,
    total: impl Fn(&[(usize, usize)], usize) -> usize,
    gap: usize,
    width: usize,
) {
    let excess = total(shown, gap).saturating_sub(width);
    let (_, own) = &mut shown[at];
    *own = own.saturating_sub(excess).max(narrowest.min(*own));
}

/// Cells in their columns, no space at the end.
fn laid_out(cells: &[Piece], shown: &[(usize, usize)], gap: usize) -> Line {
    let mut line = Line::new();
    let mut owed = 0;
    for (place, (index, width)) in shown.iter().enumerate() {
        let cell = &cells[*index];
        let text = match COLUMNS[*index] {
            Column::Node => {
                // The mark stays, the address is cut.
                let (mark, address) =
                    cell.text.split_at(cell.text.char_indices().nth(2).map_or(0, |(at, _)| at));
                format!("{mark}{}", cut_middle(address, width.saturating_sub(2)))
            }
            Column::Role
            | Column::State
            | Column::InSync
            | Column::Lag
            | Column::Revision
            | Column::Pid
            | Column::Uptime
            | Column::Restarts
            | Column::Cpu
            | Column::Memory
            | Column::Seen => cut_end(&cell.text, *width),
        };
        if place > 0 {
            line.push(piece(Tone::Plain, " ".repeat(owed + gap)));
        }
        owed = width.saturating_sub(columns(&text));
        line.push(piece(cell.tone, text));
    }
    line
}

impl Column {
    fn title(self) -> &'static str {
        match self {
            Column::Node => "  NODE",
            Column::Role => "ROLE",
            Column::State => "STATE",
            Column::InSync => "IN-SYNC",
            Column::Lag => "LAG",
            Column::Revision => "REVISION",
            Column::Pid => "PID",
            Column::Uptime => "UPTIME",
            Column::Restarts => "RESTARTS",
            Column::Cpu => "CPU",
            Column::Memory => "MEMORY",
            Column::Seen => "SEEN",
        }
    }
}

fn row(found: &Survey, index: usize, one: &NodeSurvey) -> Vec<Piece> {
    let tone = match found.sum.states[index] {
        NodeState::Ready => Tone::Plain,
        NodeState::Starting | NodeState::Syncing | NodeState::Paused => Tone::Warning,
        NodeState::Silent | NodeState::Down | NodeState::Failed => Tone::Bad,
    };
    COLUMNS
        .iter()
        .map(|column| {
            let (text, is_of_now) = cell(*column, found, index, one);
            piece(if is_of_now { tone } else { Tone::Dim }, text)
        })
        .collect()
}

/// What stands in a cell, and whether it is so now rather than what the node last said.
fn cell(column: Column, found: &Survey, index: usize, one: &NodeSurvey) -> (String, bool) {
    let sum = &found.sum;
    // It runs and says nothing: what it last said may not be so any more.
    let silent = one.process.is_some() && one.answer.is_none();
    let last = one.record.last_answer.as_ref().filter(|_| silent);
    let text = match column {
        Column::Node => {
            let mark = if sum.leader.as_ref() == Some(&one.node) { "▶" } else { " " };
            Some(format!("{mark} {}", one.node))
        }
        Column::Role => match &one.answer {
            Some(answer) => {
                let role = account(answer).role;
                (role != Role::None).then(|| word(&role))
            }
            None => silent.then(|| "?".to_owned()),
        },
        Column::State => Some(word(&sum.states[index])),
        Column::InSync => Some(if sum.in_sync.contains(&one.node) { "yes" } else { "no" }.to_owned()),
        Column::Lag => sum.lags[index].map(|lag| lag.to_string()),
        Column::Revision => match (&one.answer, last) {
            (Some(answer), _) => Some(answer.revision.to_string()),
            (None, Some(last)) => return (format!("{}?", last.revision), false),
            (None, None) => None,
        },
        Column::Pid => one.pid().map(|pid| pid.to_string()),
        Column::Uptime => one.uptime().map(render::span),
        Column::Restarts => Some(one.record.spawns.saturating_sub(1).to_string()),
        Column::Cpu => one.cpu_percent().map(|percent| format!("{percent:.0}%")),
        Column::Memory => one.stat.as_ref().map(|stat| render::bytes(stat.resident_bytes)),
        Column::Seen => return (one.seen.map_or("-".to_owned(), render::age), one.answer.is_some()),
    };
    (text.unwrap_or_else(|| "-".to_owned()), true)
}
