//! `logs`: the nodes' log files merged by time. A node is followed, not a process: its log goes on over restarts, each
//! marked with a line, and over files that are put aside. Reads files only, so it works with everything dead.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use anstyle::Style;
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use regex::Regex;
use serde::Serialize;
use tracing::Level;

use crate::clock;
use crate::config::parse_duration;
use crate::telemetry::line::{Fields, Line};
use crate::telemetry::{LEVELS, coloured, stamp};
use crate::view::NodeId;

use super::charset;
use super::context::Context;
use super::exit::{Exit, Failure, Outcome};
use super::render::{DIM, NODE_COLOURS, PLAIN, unfolded};
use super::{survey, target, targets};

mod begin;
mod source;

use source::{Entry, Source, Wanted};

#[derive(Debug, Args)]
pub(super) struct Logs {
    /// Only these: addresses, ends of them, leader, follower, followers, all; or supervisor, whose log is its own
    #[arg(value_name = "NODE", add = ArgValueCandidates::new(names))]
    nodes: Vec<String>,
    /// Go on with every new line until Ctrl-C
    #[arg(short = 'f', long)]
    follow: bool,
    /// Only so many lines of each node to begin with [default: 100, or all with --since]
    #[arg(short = 'n', long, value_name = "N")]
    lines: Option<usize>,
    /// Only lines at most this old, such as 90s or 2h
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    since: Option<Duration>,
    /// Only lines that match this regular expression; (?i) before it ignores case
    #[arg(long, value_name = "RE")]
    grep: Option<String>,
    /// Only lines at least this bad
    #[arg(long, value_parser = PossibleValuesParser::new(LEVELS).map(|word| level(&word)))]
    level: Option<Level>,
    /// Print JSON lines: at, node, level, target, message, fields, and pid and incarnation of the process where known
    #[arg(long)]
    pub json: bool,
    /// Print lines as they stand in the files, without the node
    #[arg(long, conflicts_with = "json")]
    no_prefix: bool,
}

/// The name of the supervisor's log.
const SUPERVISOR: &str = "supervisor";
/// Lines of each node to begin with, unless told otherwise.
const LINES: usize = 100;
/// Lines that are printed at once.
const BATCH: usize = 1000;
/// How often the files are looked at for more.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(50);

/// A line as JSON.
#[derive(Debug, Serialize)]
struct Printed<'a> {
    at: &'a str,
    node: &'a str,
    level: Option<String>,
    target: Option<&'a str>,
    message: &'a str,
    fields: &'a Fields,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    incarnation: Option<u64>,
}

pub(super) async fn run(verb: &Logs, context: &Context) -> Outcome {
    let pattern = verb.grep.as_deref().map(Regex::new).transpose().map_err(|error| {
        Failure::usage(format!(
            "--grep: {error}\nput a backslash before a character that is meant as it stands, and quotes around all"
        ))
    })?;
    let mut sources = sources(verb, context).await?;
    let oldest = verb.since.and_then(|since| clock::wall().checked_sub(since)).map(stamp);
    let keep = |entry: &Entry| {
        oldest.as_ref().is_none_or(|oldest| entry.stamp >= *oldest)
            && verb.level.is_none_or(|level| entry.level.is_some_and(|own| own <= level))
            && pattern.as_ref().is_none_or(|pattern| pattern.is_match(&entry.text))
    };
    let lines = verb.lines.unwrap_or(if verb.since.is_some() { usize::MAX } else { LINES });
    let wanted = Wanted { lines, oldest: oldest.as_deref(), process: verb.json, keep: &keep };
    // What may not be looked at is not what was never written.
    for source in &sources {
        source.path.try_exists().map_err(|error| unreadable(source, &error))?;
    }
    if !verb.follow && !sources.iter().any(|source| source.path.exists()) {
        let message = format!(
            "no log was written yet below {}\nstart the cluster with `replcluster up`",
            context.layout.root().display()
        );
        return Err(Failure::new(Exit::NotRunning, message));
    }
    for source in &mut sources {
        source.begin(&wanted).map_err(|error| unreadable(source, &error))?;
    }
    let labels = Labels::of(&sources);
    let mut past = Past::new(sources.len());
    loop {
        let entries = past.next(&mut sources, &keep)?;
        if entries.is_empty() {
            break;
        }
        if write(&text(&entries, &labels, verb))?.is_none() {
            return Ok(Exit::Done);
        }
        // Ctrl-C is seen here.
        tokio::task::yield_now().await;
    }
    if !verb.follow {
        return Ok(Exit::Done);
    }
    loop {
        tokio::time::sleep(FOLLOW_INTERVAL).await;
        let mut batch = Vec::new();
        for source in &mut sources {
            let mut entries = source.more().map_err(|error| unreadable(source, &error))?;
            entries.retain(keep);
            batch.extend(entries);
        }
        if write(&text(&merged(batch), &labels, verb))?.is_none() {
            return Ok(Exit::Done);
        }
    }
}

fn unreadable(source: &Source, error: &io::Error) -> Failure {
    let message = format!(
        "cannot read {}: {error}\ncheck that you are the user who started the cluster",
        source.path.display()
    );
    Failure::new(Exit::Failed, message)
}

/// The logs that were asked for, each once and in the order of the nodes, which their colours follow.
async fn sources(verb: &Logs, context: &Context) -> Result<Vec<Source>, Failure> {
    let known = &context.config.nodes;
    let mut chosen: Vec<NodeId> = Vec::new();
    let mut survey = None;
    for name in verb.nodes.iter().filter(|name| *name != SUPERVISOR) {
        // Who has a role only the nodes can say; an address needs nobody.
        if matches!(name.as_str(), "leader" | "follower" | "followers") {
            let found = match survey.take() {
                Some(found) => found,
                None => survey::survey(context).await?,
            };
            chosen.extend(found.targets(name)?);
            survey = Some(found);
        } else if name == "all" {
            chosen.extend(known.iter().cloned());
        } else {
            let node = target::by_address(name, known).map_err(|error| Failure::usage(error.to_string()))?;
            chosen.push(node);
        }
    }
    let everything = verb.nodes.is_empty();
    let of_node = known.iter().filter(|node| everything || chosen.contains(node));
    let mut logs: Vec<_> = of_node.map(|node| (node.to_string(), context.layout.log(node))).collect();
    if verb.nodes.iter().any(|name| name == SUPERVISOR) {
        logs.push((SUPERVISOR.to_owned(), context.layout.supervisor_log()));
    }
    Ok(logs.into_iter().enumerate().map(|(index, (label, path))| Source::new(index, label, path)).collect())
}

/// What is there already, merged by time without holding more than a batch of each log.
struct Past {
    /// What was read of each log and not given yet, each with the time that it is placed at.
    heads: Vec<VecDeque<(String, Entry)>>,
    places: Places,
}

impl Past {
    fn new(sources: usize) -> Past {
        Past { heads: (0..sources).map(|_| VecDeque::new()).collect(), places: Places::default() }
    }

    /// The next lines; none at the end.
    fn next(&mut self, sources: &mut [Source], keep: &dyn Fn(&Entry) -> bool) -> Result<Vec<Entry>, Failure> {
        let mut entries = Vec::new();
        while entries.len() < BATCH {
            for (source, head) in sources.iter_mut().zip(&mut self.heads).filter(|(_, head)| head.is_empty())
            {
                let more = source.past(keep).map_err(|error| unreadable(source, &error))?;
                head.extend(more.into_iter().map(|entry| (self.places.place(&entry), entry)));
            }
            let fronts = self.heads.iter().enumerate();
            let first = fronts.filter_map(|(index, head)| Some((&head.front()?.0, index))).min();
            let Some((_, index)) = first else { break };
            entries.extend(self.heads[index].pop_front().map(|(_, entry)| entry));
        }
        Ok(entries)
    }
}

/// Where lines belong in time. Lines of one node stay in their order, also where two of its threads took their stamps
/// in one order and wrote in the other: a line is nowhere before the one it follows in its file.
#[derive(Default)]
struct Places {
    latest: BTreeMap<usize, String>,
}

impl Places {
    fn place(&mut self, entry: &Entry) -> String {
        let latest = self.latest.entry(entry.source).or_default();
        if entry.stamp > *latest {
            latest.clone_from(&entry.stamp);
        }
        latest.clone()
    }
}

/// What was written since, by time.
fn merged(entries: Vec<Entry>) -> Vec<Entry> {
    let mut places = Places::default();
    let mut placed: Vec<(String, Entry)> =
        entries.into_iter().map(|entry| (places.place(&entry), entry)).collect();
    placed.sort_by(|(one, _), (other, _)| one.cmp(other));
    placed.into_iter().map(|(_, entry)| entry).collect()
}

/// What the lines of each log are marked with, and how they are laid out.
struct Labels {
    labels: Vec<String>,
    width: usize,
    /// A message of several lines is shown as such, to people; a program gets each in one line.
    unfolds: bool,
}

impl Labels {
    fn of(sources: &[Source]) -> Labels {
        let labels: Vec<String> = sources.iter().map(|source| source.label.clone()).collect();
        Labels {
            width: labels.iter().map(String::len).max().unwrap_or(0),
            labels,
            unfolds: io::stdout().is_terminal(),
        }
    }
}

fn text(entries: &[Entry], labels: &Labels, verb: &Logs) -> String {
    let width = labels.width;
    let mut text = String::new();
    for entry in entries {
        let label = &labels.labels[entry.source];
        if verb.json {
            text.push_str(&json(entry, label));
        } else if verb.no_prefix {
            text.push_str(&in_colour(&entry.text));
        } else if let Some(pid) = entry.start() {
            let rule = charset::fit("────");
            text.push_str(&format!("{DIM}{rule} {label} started, pid {pid} {rule}{PLAIN}"));
        } else {
            let style = Style::new().fg_color(Some(NODE_COLOURS[entry.source % NODE_COLOURS.len()].into()));
            let line =
                if labels.unfolds { in_colour(&unfolded(&entry.text)) } else { in_colour(&entry.text) };
            text.push_str(&format!("{style}{label:width$}{PLAIN} {line}"));
        }
        text.push('\n');
    }
    text
}

fn in_colour(text: &str) -> String {
    match Line::level_of(text) {
        Some(level) => coloured(text, level),
        None => text.to_owned(),
    }
}

fn json(entry: &Entry, label: &str) -> String {
    let line = entry.line();
    let none = Fields::default();
    let printed = Printed {
        at: &entry.stamp,
        node: label,
        level: line.as_ref().map(|line| line.level.as_str().to_ascii_lowercase()),
        target: line.as_ref().map(|line| line.target.as_str()),
        message: line.as_ref().map_or(&entry.text, |line| &line.message),
        fields: line.as_ref().map_or(&none, |line| &line.fields),
        pid: entry.pid,
        incarnation: entry.incarnation,
    };
    serde_json::to_string(&printed).unwrap_or_default()
}

/// What is not a terminal gets no colours. `None` where nobody reads any more.
fn write(text: &str) -> Result<Option<()>, Failure> {
    let mut stdout = anstream::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(Some(())),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(None),
        Err(error) => {
            Err(Failure::new(Exit::Failed, format!("cannot print: {error}\nmake room where the output goes")))
        }
    }
}

fn level(word: &str) -> Level {
    word.parse().unwrap_or(Level::INFO)
}

/// What can be named, for the shell.
fn names() -> Vec<CompletionCandidate> {
    let mut names = targets();
    names.push(CompletionCandidate::new(SUPERVISOR));
    names
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    const ONE: &str = "2026-11-22T14:03:11.000001Z";
    const TWO: &str = "2026-11-22T14:03:11.000002Z";
    const THREE: &str = "2026-11-22T14:03:11.000003Z";

    fn written(directory: &Path, index: usize, text: &str) -> Source {
        let path: PathBuf = directory.join(index.to_string());
        std::fs::write(&path, text).unwrap();
        Source::new(index, format!("h:{index}"), path)
    }

    fn printed(sources: &mut [Source], verb: &Logs) -> Vec<String> {
        let wanted = Wanted { lines: usize::MAX, oldest: None, process: true, keep: &|_| true };
        for source in sources.iter_mut() {
            source.begin(&wanted).unwrap();
        }
        let labels = Labels::of(sources);
        let entries = Past::new(sources.len()).next(sources, &|_| true).unwrap();
        let text = text(&entries, &labels, verb);
        anstream::adapter::strip_str(&text).to_string().lines().map(str::to_owned).collect()
    }

    fn verb() -> Logs {
        Logs {
            nodes: Vec::new(),
            follow: false,
            lines: None,
            since: None,
            grep: None,
            level: None,
            json: false,
            no_prefix: false,
        }
    }

    #[test]
    fn lines_of_several_nodes_are_merged_by_time_and_a_long_message_stays_together() {
        let directory = tempfile::tempdir().unwrap();
        let first = format!("{ONE} a1\n  more of a1\n{THREE} a2\n");
        let mut sources = [
            written(directory.path(), 0, &first),
            written(directory.path(), 1, &format!("{TWO}  INFO replcluster::server: started  pid=7\n")),
        ];
        assert_eq!(
            printed(&mut sources, &verb()),
            [
                format!("h:0 {ONE} a1"),
                "h:0   more of a1".to_owned(),
                "──── h:1 started, pid 7 ────".to_owned(),
                format!("h:0 {THREE} a2"),
            ]
        );
        let without = Logs { no_prefix: true, ..verb() };
        assert_eq!(printed(&mut sources, &without)[0], format!("{ONE} a1"));
    }

    #[test]
    fn lines_of_one_node_stay_in_the_order_of_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let mut sources = [
            written(directory.path(), 0, &format!("{THREE} a1\n{ONE} a2\n")),
            written(directory.path(), 1, &format!("{TWO} b1\n")),
        ];
        let expected = [format!("h:1 {TWO} b1"), format!("h:0 {THREE} a1"), format!("h:0 {ONE} a2")];
        assert_eq!(printed(&mut sources, &verb()), expected);
    }

    #[test]
    fn json_has_what_was_logged_and_what_is_no_line_as_its_message() {
        let directory = tempfile::tempdir().unwrap();
        let line = format!("{ONE}  WARN a::b: one\\ntwo  count=3 why=\"x y\"\nat src/x.rs\n");
        let mut sources = [written(directory.path(), 0, &line)];
        assert_eq!(
            printed(&mut sources, &Logs { json: true, ..verb() }),
            [
                format!(
                    r#"{{"at":"{ONE}","node":"h:0","level":"warn","target":"a::b","message":"one\ntwo","fields":{{"count":3,"why":"x y"}}}}"#
                ),
                format!(
                    r#"{{"at":"{ONE}","node":"h:0","level":null,"target":null,"message":"at src/x.rs","fields":{{}}}}"#
                ),
            ]
        );
    }
}
