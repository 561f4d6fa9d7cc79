//! Log lines of both programs: one readable line an event, with its time, to stderr and where asked to a file.
//! The file is appended to with one write a line, so that it can be followed, and shared with whoever also appends.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// What is logged where neither `RUST_LOG` nor `--log-level` says.
pub const DEFAULT_LEVEL: &str = "info";

/// Why logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The level or filter is none.
    #[error(
        "\"{0}\" is no log level\nexpected error, warn, info, debug or trace, or a filter such as replcluster=debug"
    )]
    Level(String),
    /// The file cannot be appended to.
    #[error("cannot append to the log file {}: {cause}\ncheck that its directory exists and may be written to", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// Logging was started before.
    #[error("logging runs already: it is started once for a program")]
    Twice,
}

/// Starts logging for the whole program. `level` (a flag) wins over `RUST_LOG`, which wins over [`DEFAULT_LEVEL`].
///
/// # Errors
/// [`TelemetryError`]; nothing is logged then.
pub fn start(level: Option<&str>, log_file: Option<&Path>) -> Result<(), TelemetryError> {
    let from_environment = std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty());
    let filter = filter(level, from_environment.as_deref())?;
    let file = log_file.map(append).transpose()?;
    let colour =
        std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let to_stderr =
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_timer(Utc).with_ansi(colour);
    let to_file = file.map(|file| {
        tracing_subscriber::fmt::layer().with_writer(Arc::new(file)).with_timer(Utc).with_ansi(false)
    });
    tracing_subscriber::registry()
        .with(filter)
        .with(to_file)
        .with(to_stderr)
        .try_init()
        .map_err(|_| TelemetryError::Twice)
}

fn filter(level: Option<&str>, environment: Option<&str>) -> Result<EnvFilter, TelemetryError> {
    let text = level.or(environment).unwrap_or(DEFAULT_LEVEL);
    EnvFilter::try_new(text).map_err(|_| TelemetryError::Level(text.to_owned()))
}

fn append(path: &Path) -> Result<File, TelemetryError> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(|cause| TelemetryError::File { path: path.to_owned(), cause })
}

/// `2026-11-22T14:03:11.123456Z`: every line of every node sorts by its first 27 bytes.
struct Utc;

impl FormatTime for Utc {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        write!(writer, "{}", stamp(crate::clock::wall()))
    }
}

/// A wall-clock time as log lines and events write it: UTC, microseconds, always 27 bytes.
#[must_use]
pub fn stamp(time: std::time::SystemTime) -> String {
    match jiff::Timestamp::try_from(time) {
        Ok(timestamp) => format!("{timestamp:.6}"),
        Err(_) => "0000-00-00T00:00:00.000000Z".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn stamps_have_one_width_and_sort_by_time() {
        let at = |microseconds| stamp(SystemTime::UNIX_EPOCH + Duration::from_micros(microseconds));
        assert_eq!(at(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(at(1_795_356_191_000_001), "2026-11-22T14:03:11.000001Z");
        assert!(at(999_999) < at(1_000_000));
    }

    #[test]
    fn the_flag_wins_over_the_environment_and_both_over_the_default() {
        assert_eq!(filter(Some("warn"), Some("debug")).unwrap().to_string(), "warn");
        assert_eq!(filter(None, Some("debug")).unwrap().to_string(), "debug");
        assert_eq!(filter(None, None).unwrap().to_string(), "info");
        assert!(matches!(filter(Some("a=b=c"), None), Err(TelemetryError::Level(_))));
    }

    #[test]
    fn a_log_file_without_a_directory_is_refused_by_name() {
        let error = append(Path::new("/nonexistent/log")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/log"), "{error}");
    }
}
