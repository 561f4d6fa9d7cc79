//! `logs`: the nodes' log files merged by time. A node is followed, not a process: its file goes on over restarts.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use anstyle::Style;
use clap::Args;
use clap_complete::engine::ArgValueCandidates;

use crate::clock;
use crate::config::parse_duration;
use crate::telemetry::stamp;
use crate::view::NodeId;

use super::context::Context;
use super::exit::{Exit, Failure, Outcome};
use super::render::{NODE_COLOURS, PLAIN};
use super::{nodes, target};

#[derive(Debug, Args)]
pub(super) struct Logs {
    /// Only these nodes
    #[arg(value_name = "NODE", add = ArgValueCandidates::new(nodes))]
    nodes: Vec<String>,
    /// Go on with every new line until Ctrl-C
    #[arg(short = 'f', long)]
    follow: bool,
    /// Only so many lines of each node to begin with
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
    lines: usize,
    /// Only lines at most this old
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    since: Option<Duration>,
    /// Only lines that contain this text
    #[arg(long, value_name = "TEXT")]
    grep: Option<String>,
}

/// How often the files are looked at for more.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(50);
/// Bytes of a stamp at the start of a line, as telemetry writes it.
const STAMP_BYTES: usize = 27;
/// No more of a file is read at once; the rest follows in the next round.
const MOST_BYTES: u64 = 4 << 20;

/// One line of one node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Line {
    stamp: String,
    source: usize,
    text: String,
}

/// A file that is read on from where it was left.
#[derive(Debug)]
struct Source {
    node: NodeId,
    path: PathBuf,
    /// Which file it was: another one under the same name is read from its start.
    inode: u64,
    offset: u64,
    /// The beginning of a line whose end was not written yet.
    partial: Vec<u8>,
    /// The stamp of the last line: lines without one belong to it.
    stamp: String,
}

pub(super) async fn run(verb: &Logs, context: &Context) -> Outcome {
    let chosen: Vec<NodeId> = verb
        .nodes
        .iter()
        .map(|text| target::by_address(text, &context.config.nodes))
        .collect::<Result<_, _>>()
        .map_err(|error| Failure::usage(error.to_string()))?;
    let chosen = if chosen.is_empty() { context.config.nodes.clone() } else { chosen };
    let mut sources: Vec<Source> =
        chosen.into_iter().map(|node| Source::new(context.layout.log(&node), node)).collect();
    let oldest = verb.since.and_then(|since| clock::wall().checked_sub(since)).map(stamp);
    let keep = |line: &Line| {
        oldest.as_ref().is_none_or(|oldest| line.stamp >= *oldest)
            && verb.grep.as_ref().is_none_or(|part| line.text.contains(part))
    };
    let width = sources.iter().map(|source| source.node.as_str().len()).max().unwrap_or(0);
    let mut first = true;
    loop {
        let mut batch = Vec::new();
        for (index, source) in sources.iter_mut().enumerate() {
            let mut lines = if first { source.all(index) } else { source.more(index) }.map_err(|error| {
                let message = format!(
                    "cannot read {}: {error}\ncheck that you are the user who started the cluster",
                    source.path.display()
                );
                Failure::new(Exit::Failed, message)
            })?;
            lines.retain(keep);
            if first {
                lines.drain(..lines.len().saturating_sub(verb.lines));
            }
            batch.extend(lines);
        }
        for line in merged(batch) {
            print(&line, &sources[line.source].node, width);
        }
        if !verb.follow {
            return Ok(Exit::Done);
        }
        first = false;
        tokio::time::sleep(FOLLOW_INTERVAL).await;
    }
}

fn print(line: &Line, node: &NodeId, width: usize) {
    let colour = Style::new().fg_color(Some(NODE_COLOURS[line.source % NODE_COLOURS.len()].into()));
    anstream::println!("{colour}{:width$}{PLAIN} {}", node.as_str(), line.text);
}

/// By time; lines of one node stay in their order.
fn merged(mut lines: Vec<Line>) -> Vec<Line> {
    lines.sort_by(|one, other| one.stamp.cmp(&other.stamp));
    lines
}

impl Source {
    fn new(path: PathBuf, node: NodeId) -> Source {
        Source { node, path, inode: 0, offset: 0, partial: Vec::new(), stamp: String::new() }
    }

    /// Everything that is there.
    fn all(&mut self, index: usize) -> io::Result<Vec<Line>> {
        let mut lines = Vec::new();
        loop {
            let more = self.more(index)?;
            if more.is_empty() {
                return Ok(lines);
            }
            lines.extend(more);
        }
    }

    /// What was written since the last time. No file yet is no lines yet.
    fn more(&mut self, index: usize) -> io::Result<Vec<Line>> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        if metadata.ino() != self.inode || metadata.len() < self.offset {
            self.inode = metadata.ino();
            self.offset = 0;
            self.partial.clear();
        }
        file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = std::mem::take(&mut self.partial);
        self.offset += file.take(MOST_BYTES).read_to_end(&mut bytes)? as u64;
        let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.partial = bytes.split_off(end);
        Ok(String::from_utf8_lossy(&bytes).lines().map(|text| self.line(index, text)).collect())
    }

    fn line(&mut self, source: usize, text: &str) -> Line {
        if let Some(head) = text.get(..STAMP_BYTES).filter(|head| is_stamp(head)) {
            self.stamp = head.to_owned();
        }
        Line { stamp: self.stamp.clone(), source, text: text.to_owned() }
    }
}

fn is_stamp(text: &str) -> bool {
    text.ends_with('Z') && text.as_bytes().get(10) == Some(&b'T') && text.as_bytes()[0].is_ascii_digit()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::Path;

    use super::*;

    const ONE: &str = "2026-11-22T14:03:11.000001Z";
    const TWO: &str = "2026-11-22T14:03:11.000002Z";
    const THREE: &str = "2026-11-22T14:03:11.000003Z";

    fn source(path: &Path) -> Source {
        Source::new(path.to_owned(), NodeId::parse("h:1").unwrap())
    }

    fn append(path: &Path, text: &str) {
        crate::supervisor::spawn::append(path).unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn texts(lines: &[Line]) -> Vec<&str> {
        lines.iter().map(|line| line.text.as_str()).collect()
    }

    #[test]
    fn lines_of_several_nodes_are_merged_by_time_and_a_long_message_stays_together() {
        let directory = tempfile::tempdir().unwrap();
        let (a, b) = (directory.path().join("a"), directory.path().join("b"));
        append(&a, &format!("{ONE} a1\n  more of a1\n{THREE} a2\n"));
        append(&b, &format!("{TWO} b1\n"));
        let mut lines = source(&a).all(0).unwrap();
        lines.extend(source(&b).all(1).unwrap());
        let merged = merged(lines);
        assert_eq!(
            texts(&merged),
            [&format!("{ONE} a1"), "  more of a1", &format!("{TWO} b1"), &format!("{THREE} a2")]
        );
    }

    #[test]
    fn a_line_is_shown_once_it_is_whole_and_only_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut source = source(&path);
        assert_eq!(source.all(0).unwrap(), []);
        append(&path, "one\ntw");
        assert_eq!(texts(&source.more(0).unwrap()), ["one"]);
        append(&path, "o\n");
        assert_eq!(texts(&source.more(0).unwrap()), ["two"]);
        assert_eq!(source.more(0).unwrap(), []);
    }

    #[test]
    fn a_file_that_was_replaced_or_cut_is_read_from_its_start() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut source = source(&path);
        append(&path, "one\ntwo\n");
        source.more(0).unwrap();
        std::fs::rename(&path, directory.path().join("log.1")).unwrap();
        append(&path, "three, longer than all before it\n");
        assert_eq!(texts(&source.more(0).unwrap()), ["three, longer than all before it"]);
        std::fs::write(&path, "four\n").unwrap();
        assert_eq!(texts(&source.more(0).unwrap()), ["four"]);
    }
}
