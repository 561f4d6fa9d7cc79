//! The text of `cluster.toml` to a [`Config`], or to one error that points at the wrong place.
//! The document is walked by hand rather than derived: every value then knows its place and what was expected.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::{Range, RangeInclusive};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use miette::NamedSource;
use serde_spanned::Spanned;
use toml::de::{DeTable, DeValue};

use crate::telemetry::{self, rotate::Limits};
use crate::view::NodeId;

use super::{
    ClientLimits, Config, ConfigError, Logs, Register, Replication, Resolver, Restart, Supervisor, Wrong,
    addresses, parse_log_size, parse_size, show, show_size, spelling,
};

/// A dead leader would go unnoticed for longer than anybody waits.
const LONGEST_HEARTBEAT: Duration = Duration::from_secs(60);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(600);
const LONGEST_HANDBACK: Duration = Duration::from_secs(24 * 3600);

/// A finding before it is put into its place in the text.
struct Finding {
    span: Range<usize>,
    message: String,
    expected: String,
    help: Option<String>,
}

type Found<T> = Result<T, Finding>;
type Value<'a> = Spanned<DeValue<'a>>;

pub(super) fn parse(path: &Path, text: &str, resolver: Option<Resolver<'_>>) -> Result<Config, ConfigError> {
    document(path, text, resolver).map_err(|finding| ConfigError::Wrong(Box::new(place(path, text, finding))))
}

fn document(path: &Path, text: &str, resolver: Option<Resolver<'_>>) -> Found<Config> {
    let parsed = DeTable::parse(text).map_err(|error| Finding {
        span: error.span().unwrap_or(0..0),
        message: "not valid TOML".to_owned(),
        expected: error.message().replace('\n', ", "),
        help: None,
    })?;
    let table = parsed.get_ref();
    known(
        table,
        &["name", "nodes", "data_dir", "replication", "register", "supervisor", "limits", "logs"],
        "",
    )?;
    let nodes_value = table.get("nodes").ok_or_else(|| Finding {
        span: 0..text.find('\n').unwrap_or(text.len()),
        message: "`nodes` is missing".to_owned(),
        expected: "expected a list of addresses somewhere in this file".to_owned(),
        help: Some(
            "for example: nodes = [\"127.0.0.1:2379\", \"127.0.0.1:2380\", \"127.0.0.1:2381\"]".to_owned(),
        ),
    })?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    let name = table.get("name").map_or_else(|| Ok(default_name(directory)), name)?;
    let nodes = nodes(nodes_value, resolver)?;
    let data_dir = match table.get("data_dir") {
        Some(value) => data_dir(value, directory)?,
        None => directory.join(".replcluster"),
    };
    let replication = section(table, "replication")?
        .map_or_else(|| Ok(Replication::default()), |table| replication(table, nodes.len()))?;
    let register = section(table, "register")?.map_or(Ok(Register::File), register)?;
    let supervisor = section(table, "supervisor")?.map_or_else(|| Ok(Supervisor::default()), supervisor)?;
    let limits = section(table, "limits")?.map_or_else(|| Ok(ClientLimits::default()), limits)?;
    let logs = section(table, "logs")?.map_or_else(|| Ok(Logs::default()), logs)?;
    Ok(Config {
        path: path.to_owned(),
        name,
        nodes,
        data_dir,
        replication,
        register,
        supervisor,
        limits,
        logs,
    })
}

/// The directory is the cluster's alone: what it holds goes with the cluster.
fn data_dir(value: &Value<'_>, of_file: &Path) -> Found<PathBuf> {
    let data_dir = of_file.join(non_empty(value, "a directory, relative to this file")?);
    // Symbolic links are followed where they lead somewhere already.
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| without_dots(path));
    let contains = real(of_file).starts_with(real(&data_dir))
        || without_dots(of_file).starts_with(without_dots(&data_dir));
    if contains {
        let message = format!("{} contains this file", data_dir.display());
        return Err(wrong(value, &message, "a directory of its own, such as \".replcluster\""));
    }
    Ok(data_dir)
}

fn without_dots(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => drop(plain.pop()),
            Component::RootDir | Component::Normal(_) | Component::Prefix(_) => plain.push(component),
        }
    }
    plain
}

fn name(value: &Value<'_>) -> Found<String> {
    let expected = "a name of 1 to 64 letters, digits, '.', '_' or '-', a letter or digit first";
    let text = string(value, expected)?;
    if is_name(text) {
        Ok(text.to_owned())
    } else {
        Err(wrong(value, &format!("\"{text}\" is not a name"), expected))
    }
}

fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

fn default_name(directory: &Path) -> String {
    directory
        .file_name()
        .and_then(|name| name.to_str())
        .filter(|name| is_name(name))
        .unwrap_or("demo")
        .to_owned()
}

fn nodes(value: &Value<'_>, resolver: Option<Resolver<'_>>) -> Found<Vec<NodeId>> {
    let expected = "a list of addresses such as [\"127.0.0.1:2379\"]";
    let list = value.get_ref().as_array().ok_or_else(|| helped(kind(value, expected), value))?;
    if list.is_empty() {
        return Err(wrong(value, "a cluster needs at least one node", expected));
    }
    let mut taken: Vec<(NodeId, BTreeSet<SocketAddr>)> = Vec::new();
    for item in list.iter() {
        let expected = "an address such as \"127.0.0.1:2379\"";
        let text = string(item, expected).map_err(|finding| helped(finding, item))?;
        let node =
            NodeId::parse(text).map_err(|error| helped(wrong(item, &error.to_string(), expected), item))?;
        if taken.iter().any(|(other, _)| *other == node) {
            return Err(wrong(item, &format!("{node} is listed twice"), "each node once"));
        }
        let sockets = addresses::sockets(&node, resolver)
            .map_err(|message| wrong(item, &message, "an address of a host that can be reached"))?;
        if let Some((other, _)) = taken.iter().find(|(_, earlier)| !earlier.is_disjoint(&sockets)) {
            let message = format!("{node} is the same address as {other}");
            return Err(wrong(item, &message, "each node once: both names lead to one socket"));
        }
        taken.push((node, sockets));
    }
    let mut nodes: Vec<NodeId> = taken.into_iter().map(|(node, _)| node).collect();
    nodes.sort();
    Ok(nodes)
}

/// The finding with the right spelling of what was probably meant.
fn helped(finding: Finding, value: &Value<'_>) -> Finding {
    let text = match value.get_ref() {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(port) => Some(port.as_str().to_owned()),
        DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_)
        | DeValue::Array(_)
        | DeValue::Table(_) => None,
    };
    Finding { help: text.as_deref().and_then(spelling::advice).or(finding.help), ..finding }
}

fn replication(table: &DeTable<'_>, node_count: usize) -> Found<Replication> {
    known(
        table,
        &["heartbeat_interval", "failure_timeout", "min_in_sync", "handback_after"],
        "replication.",
    )?;
    let mut replication = Replication::default();
    let heartbeat = table.get("heartbeat_interval");
    let timeout = table.get("failure_timeout");
    if let Some(value) = heartbeat {
        replication.heartbeat_interval = duration(value, LONGEST_HEARTBEAT)?;
    }
    if let Some(value) = timeout {
        replication.failure_timeout = duration(value, LONGEST_TIMEOUT)?;
    }
    if let Some(value) = timeout.or(heartbeat)
        && replication.failure_timeout <= 2 * replication.heartbeat_interval
    {
        let message = format!(
            "a failure timeout of {} is too short for a heartbeat every {}",
            show(replication.failure_timeout),
            show(replication.heartbeat_interval)
        );
        return Err(wrong(value, &message, "failure_timeout to be more than twice heartbeat_interval"));
    }
    if let Some(value) = table.get("min_in_sync") {
        let expected = format!("a number from 1 to {node_count}, the number of nodes");
        let number = value.get_ref().as_integer().ok_or_else(|| kind(value, &expected))?;
        replication.min_in_sync = usize::from_str_radix(&number.as_str().replace('_', ""), number.radix())
            .ok()
            .filter(|count| (1..=node_count).contains(count))
            .ok_or_else(|| wrong(value, &format!("min_in_sync cannot be {}", number.as_str()), &expected))?;
    }
    if let Some(value) = table.get("handback_after") {
        replication.handback_after = match value.get_ref().as_str() {
            Some("never") => None,
            Some(_) | None => Some(duration(value, LONGEST_HANDBACK).map_err(|finding| Finding {
                expected: format!("{}, or \"never\"", finding.expected),
                ..finding
            })?),
        };
    }
    Ok(replication)
}

fn register(table: &DeTable<'_>) -> Found<Register> {
    known(table, &["kind", "endpoints"], "register.")?;
    let kind_name = table.get("kind").map(|value| choice(value, &["file", "etcd"])).transpose()?;
    let endpoints = table.get("endpoints");
    match (kind_name, endpoints) {
        (None | Some("file"), None) => Ok(Register::File),
        (None | Some("file"), Some(value)) => {
            Err(wrong(value, "a file register has no endpoints", "this only with kind = \"etcd\""))
        }
        (Some(_), Some(value)) => {
            let expected = "a list of URLs such as [\"http://10.0.0.1:2379\"]";
            let list = value.get_ref().as_array().ok_or_else(|| kind(value, expected))?;
            let endpoints: Vec<String> = list
                .iter()
                .map(|item| {
                    let text = string(item, "a URL such as \"http://10.0.0.1:2379\"")?;
                    if text.starts_with("http://") || text.starts_with("https://") {
                        Ok(text.to_owned())
                    } else {
                        Err(wrong(
                            item,
                            &format!("\"{text}\" is not a URL"),
                            "http://HOST:PORT or https://HOST:PORT",
                        ))
                    }
                })
                .collect::<Found<_>>()?;
            if endpoints.is_empty() {
                return Err(wrong(value, "an etcd register needs at least one endpoint", expected));
            }
            Ok(Register::Etcd { endpoints })
        }
        (Some(_), None) => Err(match table.get("kind") {
            Some(value) => {
                wrong(value, "an etcd register needs `endpoints`", "endpoints = [\"http://…\"] beside this")
            }
            None => unreachable!("the kind was read from this table"),
        }),
    }
}

fn supervisor(table: &DeTable<'_>) -> Found<Supervisor> {
    known(table, &["restart"], "supervisor.")?;
    let restart = match table
        .get("restart")
        .map(|value| choice(value, &["on-failure", "always", "never"]))
        .transpose()?
    {
        Some("always") => Restart::Always,
        Some("never") => Restart::Never,
        Some(_) | None => Restart::OnFailure,
    };
    Ok(Supervisor { restart })
}

fn limits(table: &DeTable<'_>) -> Found<ClientLimits> {
    known(table, &["connections", "request"], "limits.")?;
    let mut limits = ClientLimits::default();
    if let Some(value) = table.get("connections") {
        let range = ClientLimits::CONNECTIONS;
        let expected = format!("a number of connections from {} to {}", range.start(), range.end());
        limits.connections = Some(number(value, range, &expected, "connections")?);
    }
    if let Some(value) = table.get("request") {
        let range = ClientLimits::REQUEST;
        let (least, most) = (show_size(*range.start()), show_size(*range.end()));
        let expected = format!("a size such as \"1.5MiB\", from {least} to {most}");
        let text = string(value, &expected)?;
        let size = parse_size(text).ok().filter(|size| range.contains(size));
        limits.request =
            Some(size.ok_or_else(|| wrong(value, &format!("\"{text}\" is not a usable size"), &expected))?);
    }
    Ok(limits)
}

/// A whole number within its range.
fn number(value: &Value<'_>, range: RangeInclusive<u32>, expected: &str, key: &str) -> Found<u32> {
    let number = value.get_ref().as_integer().ok_or_else(|| kind(value, expected))?;
    u32::from_str_radix(&number.as_str().replace('_', ""), number.radix())
        .ok()
        .filter(|number| range.contains(number))
        .ok_or_else(|| wrong(value, &format!("{key} cannot be {}", number.as_str()), expected))
}

fn logs(table: &DeTable<'_>) -> Found<Logs> {
    known(table, &["max_size", "keep", "level"], "logs.")?;
    let mut logs = Logs::default();
    if let Some(value) = table.get("max_size") {
        let sizes = Limits::SIZES;
        let (least, most) = (show_size(*sizes.start()), show_size(*sizes.end()));
        let expected = format!("a size such as \"16MiB\", from {least} to {most}");
        let text = string(value, &expected)?;
        logs.limits.max_size = parse_log_size(text)
            .map_err(|_| wrong(value, &format!("\"{text}\" is not a usable size"), &expected))?;
    }
    if let Some(value) = table.get("keep") {
        let keeps = Limits::KEEPS;
        let expected = format!("a number of older files from {} to {}", keeps.start(), keeps.end());
        logs.limits.keep = number(value, keeps, &expected, "keep")?;
    }
    if let Some(value) = table.get("level") {
        let expected = "error, warn, info, debug or trace, or a filter such as replcluster::node=debug";
        let text = string(value, expected)?;
        telemetry::parse_level(text).map_err(|_| {
            let mut finding = wrong(value, &format!("\"{text}\" is no log level"), expected);
            finding.help =
                nearest(text, &telemetry::LEVELS).map(|level| format!("did you mean \"{level}\"?"));
            finding
        })?;
        logs.level = Some(text.to_owned());
    }
    Ok(logs)
}

fn section<'a, 'i>(table: &'a DeTable<'i>, name: &str) -> Found<Option<&'a DeTable<'i>>> {
    table
        .get(name)
        .map(|value| value.get_ref().as_table().ok_or_else(|| kind(value, &format!("a section [{name}]"))))
        .transpose()
}

fn known(table: &DeTable<'_>, keys: &[&str], prefix: &str) -> Found<()> {
    for key in table.keys() {
        let text: &str = key.get_ref().as_ref();
        if !keys.contains(&text) {
            let list: Vec<String> = keys.iter().map(|key| format!("`{key}`")).collect();
            return Err(Finding {
                span: key.span(),
                message: format!("unknown key `{prefix}{text}`"),
                expected: format!("expected one of {}", list.join(", ")),
                help: nearest(text, keys).map(|key| format!("did you mean `{key}`?")),
            });
        }
    }
    Ok(())
}

fn choice<'a>(value: &'a Value<'_>, choices: &[&str]) -> Found<&'a str> {
    let list: Vec<String> = choices.iter().map(|choice| format!("\"{choice}\"")).collect();
    let expected = list.join(" or ");
    let text = string(value, &expected)?;
    if choices.contains(&text) {
        return Ok(text);
    }
    let mut finding = wrong(value, &format!("\"{text}\" is not a choice"), &expected);
    finding.help = nearest(text, choices).map(|choice| format!("did you mean \"{choice}\"?"));
    Err(finding)
}

fn duration(value: &Value<'_>, longest: Duration) -> Found<Duration> {
    let expected = format!("a duration from a millisecond to {}, such as \"50ms\" or \"5s\"", show(longest));
    let text = string(value, &expected)?;
    match super::parse_duration(text) {
        Ok(duration) if (Duration::from_millis(1)..=longest).contains(&duration) => Ok(duration),
        Ok(_) | Err(_) => Err(wrong(value, &format!("\"{text}\" is not a usable duration"), &expected)),
    }
}

fn non_empty<'a>(value: &'a Value<'_>, expected: &str) -> Found<&'a str> {
    let text = string(value, expected)?;
    if text.is_empty() { Err(wrong(value, "this is empty", expected)) } else { Ok(text) }
}

fn string<'a>(value: &'a Value<'_>, expected: &str) -> Found<&'a str> {
    value.get_ref().as_str().ok_or_else(|| kind(value, expected))
}

fn kind(value: &Value<'_>, expected: &str) -> Finding {
    wrong(value, &format!("wrong kind of value: {}", value.get_ref().type_str()), expected)
}

fn wrong(value: &Value<'_>, message: &str, expected: &str) -> Finding {
    Finding {
        span: value.span(),
        message: message.to_owned(),
        expected: format!("expected {expected}"),
        help: None,
    }
}

fn place(path: &Path, text: &str, finding: Finding) -> Wrong {
    let start = finding.span.start.min(text.len());
    let before = text.get(..start).unwrap_or("");
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let length = finding.span.end.saturating_sub(start).max(1);
    Wrong {
        path: path.to_owned(),
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
        message: finding.message,
        expected: finding.expected,
        source_text: NamedSource::new(path.display().to_string(), text.to_owned()),
        span: (start, length).into(),
        help: finding.help,
    }
}

/// The candidate that is close enough to be meant: at most a third of its letters differ.
pub(super) fn nearest<'a>(text: &str, candidates: &[&'a str]) -> Option<&'a str> {
    candidates
        .iter()
        .map(|candidate| (distance(text, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).max(2))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Optimal string alignment: insertions, deletions, replacements and swaps of neighbours cost one each.
fn distance(left: &str, right: &str) -> usize {
    let (left, right): (Vec<char>, Vec<char>) = (left.chars().collect(), right.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=right.len()).collect()];
    for i in 1..=left.len() {
        let mut row = vec![i];
        for j in 1..=right.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(left[i - 1] != right[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[left.len()][right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODES: &str = "nodes = [\"127.0.0.1:1\", \"127.0.0.1:2\"]\n";

    /// The one error of a text: where it is, which text it underlines, and all its words.
    fn refused(text: &str) -> (usize, usize, String, String) {
        match parse(Path::new("/d/cluster.toml"), text, Some(&super::super::resolve)) {
            Err(ConfigError::Wrong(wrong)) => {
                let underlined = text
                    [wrong.span.offset()..(wrong.span.offset() + wrong.span.len()).min(text.len())]
                    .to_owned();
                let words = format!(
                    "{} | {} | {}",
                    wrong.message,
                    wrong.expected,
                    wrong.help.clone().unwrap_or_default()
                );
                (wrong.line, wrong.column, underlined, words)
            }
            other => panic!("{text:?} gave {other:?}"),
        }
    }

    #[test]
    fn only_nodes_are_required_and_they_are_sorted_by_bytes() {
        let text = "nodes = [\"127.0.0.1:9999\", \"127.0.0.1:10000\"]";
        let config = parse(Path::new("/d/my-cluster/cluster.toml"), text, None).unwrap();
        assert_eq!(config.name, "my-cluster");
        assert_eq!(config.nodes[0].as_str(), "127.0.0.1:10000");
        assert_eq!(config.data_dir, Path::new("/d/my-cluster/.replcluster"));
        assert_eq!(default_name(Path::new("/")), "demo");
        assert_eq!(default_name(Path::new("/has space")), "demo");
    }

    #[test]
    fn a_misspelt_key_is_underlined_and_the_right_one_offered() {
        let (line, column, underlined, words) = refused(&format!("{NODES}nmae = \"x\"\n"));
        assert_eq!((line, column, underlined.as_str()), (2, 1, "nmae"));
        assert!(words.contains("did you mean `name`?"), "{words}");
        let (line, _, underlined, words) = refused(&format!("{NODES}[replication]\nheartbeat = \"1s\"\n"));
        assert_eq!((line, underlined.as_str()), (3, "heartbeat"));
        assert!(words.contains("unknown key `replication.heartbeat`"), "{words}");
    }

    #[test]
    fn every_bad_value_is_refused_in_its_place() {
        let cases = [
            ("nodes = []", "[]", "at least one node"),
            ("nodes = \"127.0.0.1:1\"", "\"127.0.0.1:1\"", "wrong kind of value"),
            ("nodes = [1]", "1", "wrong kind of value"),
            ("nodes = [\"nowhere\"]", "\"nowhere\"", "expected an address"),
            ("nodes = [\"0.0.0.0:1\"]", "\"0.0.0.0:1\"", "every interface"),
            ("nodes = [\"127.0.0.1:1\", \"127.0.0.1:1\"]", "\"127.0.0.1:1\"", "listed twice"),
            ("nodes = [\"127.0.0.1:1\", \"localhost:1\"]", "\"localhost:1\"", "same address as 127.0.0.1:1"),
            ("nodes = [\"[::1]:1\", \"[0:0::1]:1\"]", "\"[0:0::1]:1\"", "same address"),
            ("name = \"a b\"\nnodes = [\"127.0.0.1:1\"]", "\"a b\"", "not a name"),
            ("name = \"-a\"\nnodes = [\"127.0.0.1:1\"]", "\"-a\"", "a letter or digit first"),
            ("nodes = [\"[::0]:1\"]", "\"[::0]:1\"", "every interface"),
            ("data_dir = \".\"\nnodes = [\"127.0.0.1:1\"]", "\".\"", "contains this file"),
            ("data_dir = \"x/../..\"\nnodes = [\"127.0.0.1:1\"]", "\"x/../..\"", "contains this file"),
            ("data_dir = \"/\"\nnodes = [\"127.0.0.1:1\"]", "\"/\"", "a directory of its own"),
            (
                "nodes = [\"127.0.0.1:1\"]\n[replication]\nfailure_timeout = \"2562047788015215h\"",
                "\"2562047788015215h\"",
                "to 600s",
            ),
            ("nodes = [\"127.0.0.1:1\"]\n[replication]\nheartbeat_interval = \"1h\"", "\"1h\"", "to 60s"),
            ("data_dir = \"\"\nnodes = [\"127.0.0.1:1\"]", "\"\"", "empty"),
            ("nodes = [\"127.0.0.1:1\"]\nreplication = 1", "1", "a section [replication]"),
            (
                "nodes = [\"127.0.0.1:1\"]\n[replication]\nheartbeat_interval = \"fast\"",
                "\"fast\"",
                "duration",
            ),
            (
                "nodes = [\"127.0.0.1:1\"]\n[replication]\nheartbeat_interval = \"0s\"",
                "\"0s\"",
                "millisecond",
            ),
            ("nodes = [\"127.0.0.1:1\"]\n[replication]\nheartbeat_interval = \"1s\"", "\"1s\"", "twice"),
            ("nodes = [\"127.0.0.1:1\"]\n[replication]\nfailure_timeout = \"100ms\"", "\"100ms\"", "twice"),
            ("nodes = [\"127.0.0.1:1\"]\n[replication]\nmin_in_sync = 2", "2", "from 1 to 1"),
            ("nodes = [\"127.0.0.1:1\"]\n[replication]\nmin_in_sync = 0", "0", "from 1 to 1"),
            (
                "nodes = [\"127.0.0.1:1\"]\n[replication]\nhandback_after = \"nevr\"",
                "\"nevr\"",
                "or \"never\"",
            ),
            ("nodes = [\"127.0.0.1:1\"]\n[register]\nkind = \"fil\"", "\"fil\"", "did you mean \"file\"?"),
            ("nodes = [\"127.0.0.1:1\"]\n[register]\nkind = \"etcd\"", "\"etcd\"", "needs `endpoints`"),
            (
                "nodes = [\"127.0.0.1:1\"]\n[register]\nendpoints = [\"http://a:1\"]",
                "[\"http://a:1\"]",
                "no endpoints",
            ),
            (
                "nodes = [\"127.0.0.1:1\"]\n[supervisor]\nrestart = \"allways\"",
                "\"allways\"",
                "did you mean \"always\"?",
            ),
            ("nodes = [\"127.0.0.1:1\"]\n[logs]\nmax_size = \"1KiB\"", "\"1KiB\"", "from 4KiB to 1GiB"),
            ("nodes = [\"127.0.0.1:1\"]\n[logs]\nmax_size = 16", "16", "wrong kind of value"),
            ("nodes = [\"127.0.0.1:1\"]\n[logs]\nkeep = 0", "0", "from 1 to 100"),
            ("nodes = [\"127.0.0.1:1\"]\n[logs]\nlevel = \"debgu\"", "\"debgu\"", "did you mean \"debug\"?"),
            ("nodes = [\"127.0.0.1:1\"]\n[logs]\nmaxsize = 1", "maxsize", "did you mean `max_size`?"),
            ("nodes = [\"http://127.0.0.1:1\"]", "\"http://127.0.0.1:1\"", "did you mean \"127.0.0.1:1\"?"),
            ("nodes = [\"n0=http://h:1\"]", "\"n0=http://h:1\"", "did you mean \"h:1\"?"),
            ("nodes = [2379]", "2379", "did you mean \"127.0.0.1:2379\"?"),
            ("nodes = [\"unix:///x\"]", "\"unix:///x\"", "no socket in the file system"),
            ("nodes = \"a:1,http://b:2\"", "\"a:1,http://b:2\"", "did you mean \"a:1\", \"b:2\"?"),
            ("nodes = [\"127.0.0.1:1\"]\n[limits]\nconnections = 0", "0", "from 1 to 1000000"),
            ("nodes = [\"127.0.0.1:1\"]\n[limits]\nconnections = 1000001", "1000001", "from 1 to 1000000"),
            ("nodes = [\"127.0.0.1:1\"]\n[limits]\nconnections = \"5\"", "\"5\"", "wrong kind of value"),
            ("nodes = [\"127.0.0.1:1\"]\n[limits]\nrequest = \"16MiB\"", "\"16MiB\"", "from 1KiB to 15MiB"),
            ("nodes = [\"127.0.0.1:1\"]\n[limits]\nrequest = \"1B\"", "\"1B\"", "from 1KiB to 15MiB"),
            ("nodes = [\"127.0.0.1:1\"]\n[limits]\nrequest = 4096", "4096", "wrong kind of value"),
            ("nodes = [\"127.0.0.1:1\"]\n[limits]\nquota = \"1GiB\"", "quota", "unknown key `limits.quota`"),
        ];
        for (text, underlined, words) in cases {
            let (_, _, got, said) = refused(text);
            assert_eq!(got, underlined, "{text}: {said}");
            assert!(said.contains(words), "{text}: {said}");
        }
    }

    #[test]
    fn a_data_directory_is_told_from_that_of_the_file_through_a_link() {
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(directory.path(), directory.path().join("link")).unwrap();
        let judged = |data_dir: &str| {
            let text = format!("data_dir = \"{data_dir}\"\n{NODES}");
            parse(&directory.path().join("cluster.toml"), &text, None)
        };
        assert!(judged("link").is_err());
        assert_eq!(judged("link/data").unwrap().data_dir, directory.path().join("link/data"));
        assert!(judged("../elsewhere").is_ok());
    }

    #[test]
    fn what_is_not_toml_and_what_has_no_nodes_point_somewhere() {
        assert_eq!(refused("nodes = [").0, 1);
        let (line, column, _, words) = refused("name = \"x\"\n");
        assert_eq!((line, column), (1, 1));
        assert!(words.contains("`nodes` is missing"), "{words}");
        assert!(refused("").3.contains("`nodes` is missing"));
    }

    #[test]
    fn an_etcd_register_is_understood() {
        let text =
            "nodes = [\"127.0.0.1:1\"]\n[register]\nkind = \"etcd\"\nendpoints = [\"http://10.0.0.1:2379\"]";
        let config = parse(Path::new("/d/cluster.toml"), text, Some(&super::super::resolve)).unwrap();
        assert_eq!(config.register, Register::Etcd { endpoints: vec!["http://10.0.0.1:2379".to_owned()] });
    }

    #[test]
    fn what_is_logged_and_kept_is_understood() {
        let text =
            format!("{NODES}[logs]\nmax_size = \"64KiB\"\nkeep = 2\nlevel = \"info,replcluster=debug\"");
        let logs = parse(Path::new("/d/cluster.toml"), &text, None).unwrap().logs;
        assert_eq!(logs.limits, Limits { max_size: 64 << 10, keep: 2 });
        assert_eq!(logs.level.as_deref(), Some("info,replcluster=debug"));
    }

    #[test]
    fn limits_of_clients_are_understood() {
        let text = format!("{NODES}[limits]\nconnections = 2_000\nrequest = \"1.5MiB\"");
        let limits = parse(Path::new("/d/cluster.toml"), &text, None).unwrap().limits;
        assert_eq!(limits, ClientLimits { connections: Some(2000), request: Some(3 << 19) });
    }

    #[test]
    fn far_fetched_spellings_are_not_offered() {
        assert_eq!(nearest("completely", &["name", "nodes"]), None);
        assert_eq!(nearest("ndoes", &["name", "nodes"]), Some("nodes"));
    }
}
