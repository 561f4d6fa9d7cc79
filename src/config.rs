//! `cluster.toml`: what a cluster consists of, where the file is found, and what is wrong with it.
//! Reading and judging only; nothing is started here, and writing back is in [`edit`].

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use miette::{Diagnostic, NamedSource, SourceSpan};

use crate::telemetry::DEFAULT_LEVEL;
use crate::telemetry::rotate::Limits;
use crate::view::NodeId;

mod addresses;
pub mod edit;
mod parse;
mod ports;
pub mod spelling;

pub use addresses::byte_order_warnings;
pub use ports::port_warnings;

/// The file's name where no other is given.
pub const FILE_NAME: &str = "cluster.toml";

/// The environment variable that names the file.
pub const FILE_VARIABLE: &str = "REPLCLUSTER_CONFIG";

/// What `init` writes: also a cluster anyone can start.
pub const SAMPLE: &str = include_str!("../cluster.toml");

/// Everything `cluster.toml` says, defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The file it was read from, absolute; its directory by its real name.
    pub path: PathBuf,
    /// What the cluster is called. Default: the name of the file's directory, or `demo` where that is no name.
    pub name: String,
    /// The nodes in byte order, so the first one is the preferred leader. Never empty.
    pub nodes: Vec<NodeId>,
    /// Directory of data, logs and control socket; absolute, not necessarily existing.
    pub data_dir: PathBuf,
    /// How the nodes watch each other.
    pub replication: Replication,
    /// Where the nodes agree on a view.
    pub register: Register,
    /// How the supervisor treats exits.
    pub supervisor: Supervisor,
    /// What clients may take of a node.
    pub limits: ClientLimits,
    /// What is logged and how much of it is kept.
    pub logs: Logs,
}

/// `[replication]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replication {
    /// How often a leader with nothing to say speaks. Default 50 ms.
    pub heartbeat_interval: Duration,
    /// Silence after which a live-looking node is suspected; more than twice the heartbeat. Default 300 ms.
    pub failure_timeout: Duration,
    /// Writes are refused while fewer nodes are in sync; 1 to the number of nodes. Default 1.
    pub min_in_sync: usize,
    /// How long a returned lower address must stay in sync before it leads again; `None` is "never". Default 5 s.
    pub handback_after: Option<Duration>,
}

impl Default for Replication {
    fn default() -> Replication {
        Replication {
            heartbeat_interval: Duration::from_millis(50),
            failure_timeout: Duration::from_millis(300),
            min_in_sync: 1,
            handback_after: Some(Duration::from_secs(5)),
        }
    }
}

/// `[register]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Register {
    /// A directory below `data_dir`: one host.
    #[default]
    File,
    /// An etcd cluster: several hosts. Parsed, but not served by this version.
    Etcd {
        /// Its client URLs.
        endpoints: Vec<String>,
    },
}

/// `[supervisor]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Supervisor {
    /// Which exits are answered with a restart.
    pub restart: Restart,
}

/// `[logs]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Logs {
    /// When a file is put aside, and how many such files are kept. Default: 16 MiB, 4 older ones.
    pub limits: Limits,
    /// A level or a filter, as written; `None` is what `RUST_LOG` says, or `info`.
    pub level: Option<String>,
}

/// `[limits]`; what is left out is the node's own default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientLimits {
    /// Connections that clients may have. Default 10,000.
    pub connections: Option<u32>,
    /// Largest request in bytes. Default 1.5 MiB.
    pub request: Option<u64>,
}

impl ClientLimits {
    /// So many connections can be asked for.
    pub const CONNECTIONS: RangeInclusive<u32> = 1..=1_000_000;
    /// So large a request can be allowed: beyond it no entry of the log holds it with what belongs to it.
    pub const REQUEST: RangeInclusive<u64> = 1 << 10..=15 << 20;
    /// What a node takes unless it is given something else.
    pub const DEFAULT_CONNECTIONS: u32 = 10_000;
    /// What a node takes unless it is given something else, in bytes.
    pub const DEFAULT_REQUEST: u64 = 3 << 19;
}

/// Which exits of a node that nobody asked for are answered with a restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Restart {
    /// Those that were not a clean end.
    #[default]
    OnFailure,
    /// All of them.
    Always,
    /// None.
    Never,
}

impl Restart {
    /// As written in the file.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Restart::OnFailure => "on-failure",
            Restart::Always => "always",
            Restart::Never => "never",
        }
    }
}

/// What is wrong with the configuration: always one thing, shown in its place.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No file where one was looked for.
    #[error("no {FILE_NAME} in {} or a directory above it\nwrite one with `replcluster init`, or name one with --config", .0.display())]
    NotFound(PathBuf),
    /// The file cannot be read.
    #[error("cannot read {}: {cause}\nname another file with --config, or write one with `replcluster init`", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The file's path is no text.
    #[error("the path {} is not valid UTF-8\nrename what is not in it", .0.display())]
    NotText(PathBuf),
    /// The text is wrong at one place.
    #[error("{}:{}:{}: {}", .0.path.display(), .0.line, .0.column, .0.message)]
    Wrong(Box<Wrong>),
}

/// One wrong place in the file.
#[derive(Debug, thiserror::Error, Diagnostic)]
#[error("{}:{}:{}: {}", .path.display(), .line, .column, .message)]
pub struct Wrong {
    /// The file.
    pub path: PathBuf,
    /// Line of the offending text, from 1.
    pub line: usize,
    /// Column of the offending text in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What was expected, written under the underlined text.
    pub expected: String,
    /// The whole text, to show the place.
    #[source_code]
    pub source_text: NamedSource<String>,
    /// The offending text.
    #[label("{expected}")]
    pub span: SourceSpan,
    /// A spelling or a next step, where one is known.
    #[help]
    pub help: Option<String>,
}

/// How a host name becomes numbers: the system's resolver, or a table in tests.
pub type Resolver<'a> = &'a dyn Fn(&str) -> std::io::Result<Vec<SocketAddr>>;

/// Asks the system; numeric addresses need no look-up.
///
/// # Errors
/// What the system's resolver says.
pub fn resolve(address: &str) -> std::io::Result<Vec<SocketAddr>> {
    Ok(address.to_socket_addrs()?.collect())
}

/// The file to use: the one given, else the one of the environment, else `cluster.toml` here or in the nearest
/// directory above.
///
/// # Errors
/// [`ConfigError::NotFound`] where none of these names a file.
pub fn find(given: Option<&Path>, environment: Option<&Path>, here: &Path) -> Result<PathBuf, ConfigError> {
    if let Some(path) = given.or(environment) {
        return Ok(here.join(path));
    }
    here.ancestors()
        .map(|directory| directory.join(FILE_NAME))
        .find(|path| path.is_file())
        .ok_or_else(|| ConfigError::NotFound(here.to_owned()))
}

/// Reads and judges the file at `path`. No name of a host is looked up: a cluster can be seen and ended while names
/// are out of order.
///
/// # Errors
/// [`ConfigError`] with the first thing that is wrong.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    read(path, None)
}

/// The same with every name looked up: each must mean a socket, and no two the same one.
///
/// # Errors
/// [`ConfigError`] with the first thing that is wrong.
pub fn load_and_resolve(path: &Path) -> Result<Config, ConfigError> {
    read(path, Some(&resolve))
}

/// The node among `nodes` that an address given elsewhere is another name of.
///
/// # Errors
/// In words, where the address means no socket.
pub fn same_socket(address: &NodeId, nodes: &[NodeId]) -> Result<Option<NodeId>, String> {
    let own = addresses::sockets(address, Some(&resolve))?;
    // What another name means is not for this one to answer for.
    let means = |node: &NodeId| addresses::sockets(node, Some(&resolve)).unwrap_or_default();
    Ok(nodes.iter().find(|node| !means(node).is_disjoint(&own)).cloned())
}

fn read(path: &Path, resolver: Option<Resolver<'_>>) -> Result<Config, ConfigError> {
    let path = in_real_directory(path);
    let text = std::fs::read_to_string(&path)
        .map_err(|cause| ConfigError::Unreadable { path: path.clone(), cause })?;
    // Units, JSON and the nodes' command lines hold it as text.
    if path.to_str().is_none() {
        return Err(ConfigError::NotText(path));
    }
    parse::parse(&path, &text, resolver)
}

/// The same file by the real name of its directory: however it was named, it is the same cluster, with the same name and
/// the same data. Where there is no such directory the path is only made absolute.
fn in_real_directory(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match (path.parent().map(Path::canonicalize), path.file_name()) {
        (Some(Ok(directory)), Some(name)) => directory.join(name),
        (Some(Ok(_) | Err(_)) | None, Some(_) | None) => path,
    }
}

/// Judges a text as if it stood at `path`, with the names resolved by `resolver`.
///
/// # Errors
/// [`ConfigError::Wrong`] with the first thing that is wrong.
pub fn parse(path: &Path, text: &str, resolver: Resolver<'_>) -> Result<Config, ConfigError> {
    parse::parse(path, text, Some(resolver))
}

impl Config {
    /// Every node except this one, in order.
    #[must_use]
    pub fn others(&self, node: &NodeId) -> Vec<NodeId> {
        self.nodes.iter().filter(|other| *other != node).cloned().collect()
    }

    /// What the file resolves to, in the words of the file.
    #[must_use]
    pub fn settings(&self) -> BTreeMap<&'static str, String> {
        let nodes: Vec<&str> = self.nodes.iter().map(NodeId::as_str).collect();
        let register = match &self.register {
            Register::File => "file".to_owned(),
            Register::Etcd { endpoints } => format!("etcd {}", endpoints.join(" ")),
        };
        BTreeMap::from([
            ("name", self.name.clone()),
            ("nodes", nodes.join(" ")),
            ("data_dir", self.data_dir.display().to_string()),
            ("replication.heartbeat_interval", show(self.replication.heartbeat_interval)),
            ("replication.failure_timeout", show(self.replication.failure_timeout)),
            ("replication.min_in_sync", self.replication.min_in_sync.to_string()),
            ("replication.handback_after", self.replication.handback_after.map_or("never".to_owned(), show)),
            ("register.kind", register),
            ("supervisor.restart", self.supervisor.restart.as_str().to_owned()),
            (
                "limits.connections",
                self.limits.connections.unwrap_or(ClientLimits::DEFAULT_CONNECTIONS).to_string(),
            ),
            ("limits.request", show_size(self.limits.request.unwrap_or(ClientLimits::DEFAULT_REQUEST))),
            ("logs.max_size", show_size(self.logs.limits.max_size)),
            ("logs.keep", self.logs.limits.keep.to_string()),
            ("logs.level", self.logs.level.clone().unwrap_or_else(|| DEFAULT_LEVEL.to_owned())),
        ])
    }
}

/// A duration as the file and the programs' flags write it: whole milliseconds, or seconds where they are whole.
#[must_use]
pub fn show(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    if milliseconds >= 1000 && milliseconds.is_multiple_of(1000) {
        format!("{}s", milliseconds / 1000)
    } else {
        format!("{milliseconds}ms")
    }
}

/// Far beyond what anybody waits for, and far below what a moment can be moved by.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

const SHORTEST_INTERVAL: Duration = Duration::from_millis(50);

/// Reads a duration such as `50ms`, `5s` or `1m 30s`.
///
/// # Errors
/// In words, where it is none, is negative, is finer than a millisecond, or is longer than a year.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wanted = "expected a duration such as 50ms, 5s or 1m";
    let signed: jiff::SignedDuration =
        text.trim().parse().map_err(|_| format!("\"{text}\" is not a duration: {wanted}"))?;
    let duration = Duration::try_from(signed).map_err(|_| format!("\"{text}\" is negative: {wanted}"))?;
    if !duration.subsec_nanos().is_multiple_of(1_000_000) {
        return Err(format!("\"{text}\" is finer than a millisecond: {wanted}"));
    }
    if duration > LONGEST {
        return Err(format!("\"{text}\" is longer than a year: {wanted}"));
    }
    Ok(duration)
}

/// Reads how often something is looked at again: a duration that leaves time for other work.
///
/// # Errors
/// In words, where it is none or too short.
pub fn parse_interval(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        interval if interval < SHORTEST_INTERVAL => {
            Err(format!("\"{text}\" is too often: expected at least {}", show(SHORTEST_INTERVAL)))
        }
        interval => Ok(interval),
    }
}

/// The word among `candidates` that a misspelt one was probably meant to be.
#[must_use]
pub fn nearest<'a>(text: &str, candidates: &[&'a str]) -> Option<&'a str> {
    parse::nearest(text, candidates)
}

/// Units of sizes, the largest first.
const SIZE_UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// A size as the file and the programs' flags write it: in the largest unit in which it is whole.
#[must_use]
pub fn show_size(bytes: u64) -> String {
    let fitting = SIZE_UNITS.into_iter().find(|(_, unit)| bytes >= *unit && bytes.is_multiple_of(*unit));
    let (name, unit) = fitting.unwrap_or(("B", 1));
    format!("{}{name}", bytes / unit)
}

/// Reads a size such as `16MiB`, `1.5MiB`, `512KiB` or `4096` in bytes. A fraction must come to whole bytes.
///
/// # Errors
/// In words, where it is none.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("\"{text}\" is not a size: expected a size such as 512KiB or 16MiB");
    let text = text.trim();
    let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = match unit.trim() {
        "" => 1,
        unit => SIZE_UNITS.into_iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?.1,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let bytes = || {
        let whole = whole.parse::<u64>().ok()?.checked_mul(unit)?;
        let parts = 10_u64.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        let fraction = fraction.parse::<u64>().ok()?.checked_mul(unit)?;
        fraction.is_multiple_of(parts).then(|| whole.checked_add(fraction / parts))?
    };
    bytes().ok_or_else(wrong)
}

/// The same, where it is one for a log file.
///
/// # Errors
/// In words, where it is none, or too small or too large to be of use.
pub fn parse_log_size(text: &str) -> Result<u64, String> {
    let sizes = Limits::SIZES;
    parse_size(text).and_then(|size| {
        let (least, most) = (show_size(*sizes.start()), show_size(*sizes.end()));
        if sizes.contains(&size) { Ok(size) } else { Err(format!("expected a size from {least} to {most}")) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_is_a_cluster_of_three_with_every_default() {
        let config = parse(Path::new("/x/cluster.toml"), SAMPLE, &resolve).unwrap();
        assert_eq!(config.name, "demo");
        assert_eq!(config.nodes.len(), 3);
        assert_eq!(config.data_dir, Path::new("/x/.replcluster"));
        assert_eq!(config.replication, Replication::default());
        assert_eq!(config.register, Register::File);
        assert_eq!(config.supervisor, Supervisor::default());
        assert_eq!(config.logs, Logs::default());
    }

    #[test]
    fn the_nearest_file_above_is_found_and_a_given_one_wins() {
        let top = tempfile::tempdir().unwrap();
        let deep = top.path().join("a/b");
        std::fs::create_dir_all(&deep).unwrap();
        assert!(matches!(find(None, None, Path::new("/nonexistent/x")), Err(ConfigError::NotFound(_))));
        std::fs::write(top.path().join(FILE_NAME), SAMPLE).unwrap();
        assert_eq!(find(None, None, &deep).unwrap(), top.path().join(FILE_NAME));
        std::fs::write(top.path().join("a").join(FILE_NAME), SAMPLE).unwrap();
        assert_eq!(find(None, None, &deep).unwrap(), top.path().join("a").join(FILE_NAME));
        assert_eq!(find(None, Some(Path::new("/e.toml")), &deep).unwrap(), Path::new("/e.toml"));
        assert_eq!(
            find(Some(Path::new("g.toml")), Some(Path::new("/e.toml")), &deep).unwrap(),
            deep.join("g.toml")
        );
    }

    #[test]
    fn a_cluster_without_a_name_is_called_like_the_real_directory_however_its_file_is_named() {
        let top = tempfile::tempdir().unwrap();
        let real = top.path().join("orders");
        std::fs::create_dir_all(real.join("deep")).unwrap();
        std::fs::write(real.join(FILE_NAME), "nodes = [\"127.0.0.1:1\"]").unwrap();
        std::os::unix::fs::symlink(&real, top.path().join("link")).unwrap();
        let expected = load(&real.join(FILE_NAME)).unwrap();
        assert_eq!(expected.name, "orders");
        for path in ["orders/deep/../cluster.toml", "link/cluster.toml", "link/deep/../cluster.toml"] {
            assert_eq!(load(&top.path().join(path)).unwrap(), expected, "{path}");
        }
    }

    #[test]
    fn durations_are_read_and_shown_the_same_way() {
        for (text, milliseconds) in [("50ms", 50), ("5s", 5000), ("1m 30s", 90_000), ("1500ms", 1500)] {
            let duration = parse_duration(text).unwrap();
            assert_eq!(duration, Duration::from_millis(milliseconds), "{text}");
            assert_eq!(parse_duration(&show(duration)).unwrap(), duration, "{text}");
        }
        for text in ["", "fast", "5", "-5s", "10us", "8761h", "2562047788015215h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert!(parse_interval("49ms").unwrap_err().contains("at least 50ms"));
        assert_eq!(parse_interval("50ms"), Ok(Duration::from_millis(50)));
    }

    #[test]
    fn sizes_are_read_and_shown_the_same_way() {
        for (text, bytes) in [("16MiB", 16 << 20), ("512KiB", 512 << 10), ("1GiB", 1 << 30), ("4097B", 4097)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
            assert_eq!(show_size(bytes), text);
        }
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("1.5MiB"), Ok(3 << 19));
        for text in
            ["", "MiB", "-1", "1.5", "1.1KiB", ".5MiB", "1.MiB", "1.5.5MiB", "16 megabytes", "99999999999GiB"]
        {
            assert!(parse_size(text).is_err(), "{text}");
        }
        assert!(parse_log_size("1KiB").unwrap_err().contains("4KiB to 1GiB"));
    }
}
