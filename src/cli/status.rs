//! `status`: how every node stands by its own account, what that adds up to, and what happened last.
//! Values in, text or JSON out; the exit code says it to scripts.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use clap::Args;

use crate::clock;
use crate::config::parse_interval;
use crate::control::health::{Agreement, ClusterState};
use crate::supervisor::events;

use super::context::{self, Context};
use super::exit::{Exit, Failure, Outcome};
use super::lines::{self, Line, Tone, columns, painted, piece, plain, wrap};
use super::survey::{self, Supervision, Survey};
use super::waiting;

pub(super) use object::json_claim;

mod object;
pub(super) mod table;
pub(super) mod words;

#[cfg(test)]
pub(super) mod tests;

#[derive(Debug, Args)]
pub(super) struct Status {
    /// Print it as JSON; with --watch one object a line
    #[arg(long)]
    pub json: bool,
    /// Print it again and again until Ctrl-C: in place on a terminal, as blocks elsewhere
    #[arg(long, value_name = "INTERVAL", num_args = 0..=1, default_missing_value = "500ms",
          value_parser = parse_interval)]
    watch: Option<Duration>,
}

/// So often nodes that disagree are asked again.
const DISAGREEMENT_LOOKS: u32 = 5;
/// After this long each time: several times what a new view takes to reach everybody.
const DISAGREEMENT_INTERVAL: Duration = Duration::from_millis(20);

/// How long a supervisor that is not frozen may say nothing.
const SUPERVISOR_PATIENCE: Duration = Duration::from_millis(1500);

/// How long a change may take until everybody has heard of it.
const CHANGE_PATIENCE: Duration = Duration::from_millis(500);

pub(super) async fn run(verb: &Status, context: &Context) -> Outcome {
    tokio::select! {
        outcome = show(verb, context) => outcome,
        () = context.interrupt.cancelled() => {
            // The shell's prompt does not belong behind the ^C.
            if io::stdout().is_terminal() {
                eprintln!();
            }
            Ok(Exit::Interrupted)
        }
    }
}

/// The nodes are asked at one moment but answer at several: in the middle of a change of view one may tell of it before
/// another, and the leader of none. A disagreement, or that nobody leads, is real when it lasts; and so is the silence of
/// a supervisor, which may have begun just now, or be about to make its deleted socket anew.
async fn settled(context: &Context) -> Result<Survey, Failure> {
    let begun = clock::now();
    let mut found = survey::survey(context).await?;
    let mut looks = 0;
    loop {
        let is_plain = found.sum.agreement != Agreement::Disagree
            && found.sum.state != ClusterState::Unavailable
            && found.sum.rivals.is_empty();
        let has_voice = match found.supervisor {
            Supervision::Running(_) | Supervision::Dead => true,
            Supervision::Silent(_) => {
                context.frozen_supervisor().is_some() || begun.elapsed() >= SUPERVISOR_PATIENCE
            }
        };
        if (is_plain || looks >= DISAGREEMENT_LOOKS) && has_voice {
            return Ok(found);
        }
        tokio::time::sleep(DISAGREEMENT_INTERVAL).await;
        found = survey::survey(context).await?;
        looks += 1;
    }
}

/// The cluster after something was changed, when everybody who answers has heard of it. Whoever takes longer is shown as
/// it is.
///
/// # Errors
/// Where the cluster's directory cannot be read.
pub(super) async fn after_change(context: &Context) -> Result<Survey, Failure> {
    let all_know =
        |found: &Survey| found.sum.agreeing == found.nodes.iter().filter(|one| one.answer.is_some()).count();
    let found = survey::until(context, CHANGE_PATIENCE, all_know).await?;
    Ok(found.unwrap_or_else(|unsettled| unsettled))
}

async fn show(verb: &Status, context: &Context) -> Outcome {
    let mut first = true;
    loop {
        let found = settled(context).await?;
        let text = if context.json {
            format!("{}\n", object::json(&context.config.name, &found))
        } else if verb.watch.is_some() && io::stdout().is_terminal() {
            in_place(&frame(context, &found, width()), size(), first)
        } else {
            let separator = if first { "" } else { "\n" };
            format!("{separator}{}", text(&frame(context, &found, width())))
        };
        if !print(&text)? {
            return Ok(Exit::Done);
        }
        let Some(interval) = verb.watch else { return Ok(exit(found.sum.state)) };
        first = false;
        tokio::time::sleep(interval).await;
    }
}

fn exit(state: ClusterState) -> Exit {
    match state {
        ClusterState::Healthy => Exit::Done,
        ClusterState::Degraded => Exit::Degraded,
        ClusterState::Unavailable => Exit::Unavailable,
        ClusterState::Stopped => Exit::NotRunning,
    }
}

/// Prints the table, and what happened last.
pub(super) fn print_table(context: &Context, found: &Survey) {
    for line in frame(context, found, width()) {
        anstream::println!("{}", painted(&line));
    }
}

/// Everything that is shown of a survey, in lines that are at most `width` columns wide.
fn frame(context: &Context, found: &Survey, width: Option<usize>) -> Vec<Line> {
    // The history only explains: without it the status is the same.
    let history = events::recent(&context.layout.events(), context::HISTORY_BYTES).unwrap_or_default();
    let mut below = notes(context, found, &history);
    below.extend(words::last(&history).map(|last| vec![piece(Tone::Dim, format!("last: {last}"))]));
    let fit = |line: Line| width.map_or_else(|| vec![line.clone()], |width| wrap(&line, width));
    let mut shown = fit(words::headline(&context.config.name, found));
    shown.extend(table::table(found, width));
    shown.extend(below.into_iter().flat_map(fit));
    shown
}

/// What is not as it should be, and why: disagreement, nodes given up, whom the nodes wait for.
pub(super) fn notes(context: &Context, found: &Survey, history: &[events::Entry]) -> Vec<Line> {
    let mut told = words::unconfirmed(found);
    told.extend(words::disagreement(found));
    told.extend(found.register_trouble.iter().flat_map(|text| lines::lines(Tone::Bad, text)));
    told.extend(words::odd(&context.config.name, found));
    told.extend(words::given_up(found, history));
    told.extend(words::retried(found));
    for node in &found.unlisted_running {
        let what = format!("{node} runs and is not in cluster.toml any more: `replcluster up` takes it out");
        told.extend(lines::lines(Tone::Warning, &what));
    }
    if let Some(waiting) = waiting::waiting(context, found) {
        told.extend(lines::lines(Tone::Warning, &waiting.what));
        told.extend(lines::lines(Tone::Plain, &waiting.next));
    } else {
        told.extend(words::waits(found));
    }
    told
}

fn text(frame: &[Line]) -> String {
    let coloured = is_coloured();
    frame.iter().map(|line| if coloured { painted(line) } else { plain(line) } + "\n").collect()
}

/// A frame over the one before it. Nothing is cleared before it is written again, so nothing flickers; what does not
/// fit into the window is named.
fn in_place(frame: &[Line], size: Option<(usize, usize)>, first: bool) -> String {
    let (columns_of_window, rows) = size.unwrap_or((usize::MAX, usize::MAX));
    // The cursor stands below the last line.
    let room = rows.saturating_sub(1).max(1);
    let mut shown = frame.to_vec();
    if shown.len() > room {
        let missing = shown.len() - room + 1;
        shown.truncate(room - 1);
        let told = format!("… {missing} more lines in a taller window");
        shown.push(vec![piece(Tone::Dim, lines::cut_end(&told, columns_of_window))]);
    }
    // The escapes around it have terminals that know them show it as a whole; others take no notice.
    let mut written = String::from("\x1b[?2026h");
    written.push_str(if first { "\x1b[2J\x1b[H" } else { "\x1b[H" });
    for line in text(&shown).lines() {
        written.push_str(line);
        // A full line leaves the cursor on its last column, which must stay.
        if columns(&anstream::adapter::strip_str(line).to_string()) < columns_of_window {
            written.push_str("\x1b[K");
        }
        written.push_str("\r\n");
    }
    written.push_str("\x1b[J\x1b[?2026l");
    written
}

/// Writes it at once; false where nobody reads any more.
fn print(text: &str) -> Result<bool, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => {
            let message = format!("cannot write: {error}\ncheck where the output goes");
            Err(Failure::new(Exit::Failed, message))
        }
    }
}

fn is_coloured() -> bool {
    anstream::AutoStream::choice(&io::stdout()) != anstream::ColorChoice::Never
}

/// Columns to keep to: those of the terminal; elsewhere `$COLUMNS`, or as many as it takes.
fn width() -> Option<usize> {
    size().map(|(columns, _)| columns).or_else(|| {
        let given = std::env::var("COLUMNS").ok()?.parse().ok()?;
        (given > 0).then_some(given)
    })
}

/// Columns and rows of the terminal that is written to.
fn size() -> Option<(usize, usize)> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then(|| (usize::from(size.ws_col), usize::from(size.ws_row)))
}

/// The word of the interface for one of its enums.
fn word<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}
