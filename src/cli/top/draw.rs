//! The dashboard as it is drawn: a model and a window in, cells out.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line as Text, Span};
use ratatui::widgets::{Block, Borders, Clear, Paragraph, RenderDirection, Sparkline};

use super::super::events::sentence;
use super::super::lines::{Line, Piece, Tone, columns, cut_line, piece, wrap};
use super::super::render;
use super::super::status::{table, words};

use super::model::{Mode, Model, Picture, Series};

/// Below this nothing useful fits.
pub const SMALLEST: (u16, u16) = (40, 10);
/// Graphs are shown in windows at least this high.
const GRAPHS_FROM: u16 = 18;
/// Rows of the graphs with their titles.
const GRAPHS: u16 = 4;
/// Both panes are shown where there are at least so many rows for them.
const BOTH_PANES_FROM: u16 = 9;

/// Rows of what came of an act: enough for a verdict in a window of 80 columns.
const MOST_MESSAGE: usize = 3;

const HELP: &[&str] = &[
    "↑ ↓  k j   select a node",
    "x          kill it (SIGKILL) under a load, with a verdict",
    "p          pause it (SIGSTOP)        r   resume it",
    "s          start it                  S   stop it gracefully",
    "a          add a follower on the next free port",
    "l          its log in the whole window, and back",
    "PgUp PgDn  back and forth in it; Home, End: first and last",
    "e          the history, shown or not",
    "q  Esc     leave; nothing that runs is ended by that",
    "",
    "Every act is asked before it is done: y does it, any other",
    "key does not. What it said stands above the keys.",
    "The dashboard itself only reads: the latency is that of a",
    "linearizable read of a key that does not exist.",
];

const KEYS: &[&str] =
    &["↑↓ select", "x kill", "p pause", "r resume", "s start", "S stop", "a add", "l log", "e events"];
const LAST_KEYS: &str = "? help  q quit";

/// With colours or without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Palette {
    /// With.
    Coloured,
    /// Without: `NO_COLOR`, `--color never`.
    Plain,
}

impl Palette {
    fn style(self, tone: Tone) -> Style {
        let colour = |colour| match self {
            Palette::Coloured => Style::new().fg(colour),
            Palette::Plain => Style::new(),
        };
        match tone {
            Tone::Plain => Style::new(),
            Tone::Good => colour(Color::Green),
            Tone::Warning => colour(Color::Yellow),
            Tone::Bad => colour(Color::Red).add_modifier(Modifier::BOLD),
            Tone::Dim => Style::new().add_modifier(Modifier::DIM),
        }
    }

    fn text(self, line: &[Piece]) -> Text<'static> {
        Text::from_iter(line.iter().map(|one| Span::styled(one.text.clone(), self.style(one.tone))))
    }
}

/// Draws everything.
pub fn draw(model: &Model, palette: Palette, frame: &mut Frame<'_>) {
    let area = frame.area();
    let (width, height) = (area.width, area.height);
    if width < SMALLEST.0 || height < SMALLEST.1 {
        let told = format!("the window is {width}×{height}; top needs {}×{}  q quit", SMALLEST.0, SMALLEST.1);
        show(frame, area, palette, wrap(&[piece(Tone::Plain, told)], usize::from(width)));
        return;
    }
    let below = below(model, usize::from(width));
    let [body, bottom] = Layout::vertical([Constraint::Min(0), length(below.len())]).areas(area);
    show(frame, bottom, palette, below);
    match (&model.mode, model.log_is_full) {
        (Mode::Helping, _) => {
            show(frame, body, palette, HELP.iter().map(|line| vec![piece(Tone::Plain, *line)]).collect());
        }
        (Mode::Browsing | Mode::Asking(_), true) => log(model, palette, frame, body),
        (Mode::Browsing | Mode::Asking(_), false) => overview(model, palette, frame, body),
    }
}

fn overview(model: &Model, palette: Palette, frame: &mut Frame<'_>, area: Rect) {
    let width = usize::from(area.width);
    let Some(picture) = &model.picture else {
        let told = model.blind.clone().unwrap_or_else(|| format!("looking at {} …", model.cluster));
        show(frame, area, palette, wrap(&[piece(Tone::Plain, told)], width));
        return;
    };
    let high = frame.area().height >= GRAPHS_FROM;
    let mut head = wrap(&words::headline(&model.cluster, &picture.found), width);
    head.truncate(if high { 3 } else { 2 });
    let mut notes: Vec<Line> = model.blind.iter().map(|why| vec![piece(Tone::Bad, why.clone())]).collect();
    notes.extend(picture.notes.iter().flat_map(|note| wrap(note, width)));
    notes.truncate(if high { 5 } else { 1 });
    // Never so many rows that nothing else fits.
    let rows = picture.found.nodes.len().min(usize::from(area.height / 2).max(1));
    let [head_area, nodes_area, notes_area, graphs_area, rest] = Layout::vertical([
        length(head.len()),
        length(rows + 1),
        length(notes.len()),
        Constraint::Length(if high { GRAPHS } else { 0 }),
        Constraint::Min(0),
    ])
    .areas(area);
    show(frame, head_area, palette, head);
    nodes(model, picture, palette, frame, nodes_area);
    show(frame, notes_area, palette, notes);
    if high {
        graphs(model, palette, frame, graphs_area);
    }
    panes(model, picture, palette, frame, rest);
}

fn length(rows: usize) -> Constraint {
    Constraint::Length(u16::try_from(rows).unwrap_or(u16::MAX))
}

fn nodes(model: &Model, picture: &Picture, palette: Palette, frame: &mut Frame<'_>, area: Rect) {
    let mut lines = table::table(&picture.found, Some(usize::from(area.width))).into_iter();
    let header: Line =
        lines.next().unwrap_or_default().into_iter().map(|one| Piece { tone: Tone::Dim, ..one }).collect();
    let selected =
        picture.found.nodes.iter().position(|one| Some(&one.node) == model.selected.as_ref()).unwrap_or(0);
    let room = usize::from(area.height).saturating_sub(1);
    let first = (selected + 1).saturating_sub(room);
    show(frame, row(area, 0), palette, vec![header]);
    for (place, (index, line)) in lines.enumerate().skip(first).take(room).enumerate() {
        let text = palette.text(&line);
        let style =
            if index == selected { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() };
        frame.render_widget(Paragraph::new(text).style(style), row(area, place + 1));
    }
}

/// One row of an area; nothing where it is outside.
fn row(area: Rect, place: usize) -> Rect {
    let place = u16::try_from(place).unwrap_or(u16::MAX);
    Rect { y: area.y.saturating_add(place), height: 1, ..area }.intersection(area)
}

fn graphs(model: &Model, palette: Palette, frame: &mut Frame<'_>, area: Rect) {
    let [left, right] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).spacing(2).areas(area);
    let now = model.writes.newest().map_or("-".to_owned(), render::grouped);
    graph(&model.writes, &format!("writes/s {now}"), Tone::Good, palette, frame, left);
    let now =
        model.latency.newest().map_or("-".to_owned(), |took| render::milliseconds(took as f64 / 1000.0));
    graph(&model.latency, &format!("read latency {now}"), Tone::Warning, palette, frame, right);
}

fn graph(series: &Series, title: &str, tone: Tone, palette: Palette, frame: &mut Frame<'_>, area: Rect) {
    let graph = Sparkline::default()
        .block(pane(title, palette))
        .data(series.iter().take(usize::from(area.width)).collect::<Vec<Option<u64>>>())
        .direction(RenderDirection::RightToLeft)
        .absent_value_symbol("×")
        .absent_value_style(palette.style(Tone::Bad))
        .style(palette.style(tone));
    frame.render_widget(graph, area);
}

fn panes(model: &Model, picture: &Picture, palette: Palette, frame: &mut Frame<'_>, area: Rect) {
    if !model.shows_events {
        log(model, palette, frame, area);
        return;
    }
    if area.height < BOTH_PANES_FROM {
        events(picture, palette, frame, area);
        return;
    }
    let [upper, lower] = Layout::vertical([Constraint::Fill(2), Constraint::Fill(3)]).areas(area);
    events(picture, palette, frame, upper);
    log(model, palette, frame, lower);
}

fn events(picture: &Picture, palette: Palette, frame: &mut Frame<'_>, area: Rect) {
    let lines = picture.history.iter().filter_map(|entry| {
        let told = Some(sentence(&entry.event)).filter(|told| !told.is_empty())?;
        let time = format!("{} ", render::time_of_day(&entry.at));
        Some(vec![piece(Tone::Dim, time), piece(Tone::Plain, told)])
    });
    tail("events", lines.collect(), 0, palette, frame, area);
}

fn log(model: &Model, palette: Palette, frame: &mut Frame<'_>, area: Rect) {
    let mut title = model.selected.as_ref().map_or("log".to_owned(), |node| format!("log of {node}"));
    if model.log_below > 0 {
        title += " (stands still: End follows it)";
    }
    let lines = model.log.iter().map(|line| vec![piece(Tone::Plain, line.clone())]);
    tail(&title, lines.collect(), model.log_below, palette, frame, area);
}

/// A pane with the last lines that fit, or where some are to be below it, those before them; it is full where it can be.
fn tail(title: &str, lines: Vec<Line>, below: usize, palette: Palette, frame: &mut Frame<'_>, area: Rect) {
    let block = pane(title, palette);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let (height, width) = (usize::from(inner.height), usize::from(inner.width));
    let last = lines.len().saturating_sub(below).max(height.min(lines.len()));
    let first = last.saturating_sub(height);
    show(frame, inner, palette, lines[first..last].iter().map(|line| cut_line(line, width)).collect());
}

fn pane(title: &str, palette: Palette) -> Block<'static> {
    let dim = palette.style(Tone::Dim);
    Block::new().borders(Borders::TOP).border_style(dim).title(format!(" {title} "))
}

/// What is under way, or what came of the last that was.
fn message_line(model: &Model) -> Line {
    let mut line = Line::new();
    for (_, act) in &model.running {
        line.push(piece(Tone::Warning, format!("{act} …  ")));
    }
    line.extend(model.message.iter().map(|(tone, text)| piece(*tone, text.clone())));
    line
}

/// The bottom of the window: what came of what was asked, then the question, or the keys.
fn below(model: &Model, width: usize) -> Vec<Line> {
    let mut lines = wrap(&message_line(model), width);
    lines.truncate(MOST_MESSAGE);
    match (&model.mode, &model.picture) {
        (Mode::Asking(act), Some(picture)) => {
            lines = wrap(&[piece(Tone::Warning, act.question(&picture.found))], width);
            if lines.len() == 1 {
                lines.insert(0, cut_line(&message_line(model), width));
            }
        }
        (Mode::Asking(_), None) | (Mode::Browsing, _) => lines.push(key_line(width)),
        (Mode::Helping, _) => lines.push(vec![piece(Tone::Dim, "any key closes the help")]),
    }
    lines
}

/// As many keys as fit; how to get help and how to leave always do.
fn key_line(width: usize) -> Line {
    let mut line = Line::new();
    let mut used = columns(LAST_KEYS);
    for key in KEYS {
        used += columns(key) + 2;
        if used > width {
            break;
        }
        line.push(piece(Tone::Dim, format!("{key}  ")));
    }
    line.push(piece(Tone::Dim, LAST_KEYS));
    line
}

/// Lines from the top of an area.
fn show(frame: &mut Frame<'_>, area: Rect, palette: Palette, lines: Vec<Line>) {
    frame.render_widget(Clear, area);
    let texts: Vec<Text<'static>> = lines.iter().map(|line| palette.text(line)).collect();
    frame.render_widget(Paragraph::new(texts), area);
}
