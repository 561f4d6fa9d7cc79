//! Log lines of both programs: one line an event, in the form of [`mod@line`], to a file of bounded size ([`rotate`]) or
//! to stderr. Each process writes its own file, so no line depends on a supervisor that lives. Reading logs is not
//! here but in `cli::logs`.
//!
//! Where there is a file, stderr gets lines only if it is a terminal: somebody watches. Otherwise it is left to panics
//! and last words. A panic is also logged, by a hook, so that it stands in its place among the lines.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use anstyle::{AnsiColor, Reset, Style};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::{LookupSpan, Registry};
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

pub mod line;
pub mod rotate;

use line::{Collected, Line};
use rotate::{Limits, Rotated};

/// What is logged where neither `RUST_LOG` nor `--log-level` says.
pub const DEFAULT_LEVEL: &str = "info";

/// What a process says first when it has taken what is its own; `logs` draws a line there.
pub const STARTED: &str = "started";

/// The levels, from the worst.
pub const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// Why logging cannot start, or cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The level or filter is none.
    #[error(
        "\"{text}\" is no log level: {reason}\nexpected error, warn, info, debug or trace, or a filter such as replcluster::node=debug"
    )]
    Level {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The file cannot be appended to.
    #[error("cannot append to the log file {}: {cause}\ncheck that its directory exists and may be written to", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// Logging was started before.
    #[error("logging runs already: it is started once for a program")]
    Twice,
    /// Logging was never started, so there is no level.
    #[error("this process logs nothing\nstart it as a program of its own")]
    Off,
}

/// A file to log to.
#[derive(Clone, Copy, Debug)]
pub struct LogFile<'a> {
    /// Its path; older files get `.1` and so on.
    pub path: &'a Path,
    /// How much is kept.
    pub limits: Limits,
    /// Nothing goes to stderr even where it is a terminal: something else is shown there.
    pub alone: bool,
}

/// A level before and after it was changed, as filters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// What was logged so far.
    pub before: String,
    /// What is logged from now on.
    pub after: String,
}

/// The filter of the running program, for changing it.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Starts logging for the whole program. `level` (a flag) wins over `RUST_LOG`, which wins over [`DEFAULT_LEVEL`].
///
/// # Errors
/// [`TelemetryError`]; nothing is logged then.
pub fn start(level: Option<&str>, log_file: Option<LogFile<'_>>) -> Result<(), TelemetryError> {
    let from_environment = std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty());
    let (filter, handle) = reload::Layer::new(chosen(level, from_environment.as_deref())?);
    let file = log_file.map(open).transpose()?;
    let alone = log_file.is_some_and(|file| file.alone);
    let terminal = io::stderr().is_terminal() && !alone;
    let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let to_stderr = (terminal || file.is_none()).then(|| {
        // What cannot be written to stderr must not be told on stderr: that would be a panic.
        tracing_subscriber::fmt::layer()
            .event_format(Lines)
            .with_writer(io::stderr)
            .with_ansi(colour)
            .log_internal_errors(false)
    });
    let to_file = file.map(|file| {
        let shared = Shared(Mutex::new(file));
        tracing_subscriber::fmt::layer().event_format(Lines).with_writer(shared).with_ansi(false)
    });
    let logs_to_file = to_file.is_some();
    tracing_subscriber::registry()
        .with(filter)
        .with(to_file)
        .with(to_stderr)
        .try_init()
        .map_err(|_| TelemetryError::Twice)?;
    // Nobody else can have set it: logging was started just now.
    let _ = FILTER.set(handle);
    if logs_to_file {
        log_panics();
    }
    Ok(())
}

/// What is logged now, as a filter.
///
/// # Errors
/// [`TelemetryError::Off`].
pub fn level() -> Result<String, TelemetryError> {
    let filter = FILTER.get().ok_or(TelemetryError::Off)?;
    filter.with_current(ToString::to_string).map_err(|_| TelemetryError::Off)
}

/// Changes what is logged from now on, until the process ends.
///
/// # Errors
/// [`TelemetryError`]; nothing is changed then.
pub fn set_level(text: &str) -> Result<Changed, TelemetryError> {
    let filter = parse_level(text)?;
    let changed = Changed { before: level()?, after: filter.to_string() };
    let tell = || tracing::info!(before = changed.before, after = changed.after, "log level changed");
    // Told once, under whichever of the two lets it through.
    let told = tracing::enabled!(Level::INFO);
    if told {
        tell();
    }
    FILTER.get().ok_or(TelemetryError::Off)?.reload(filter).map_err(|_| TelemetryError::Off)?;
    if !told {
        tell();
    }
    Ok(changed)
}

/// Reads a level or a filter in the form of `RUST_LOG`. A level alone is meant for this program; libraries go on with
/// what is important, as they would drown it: they name every frame of every connection.
///
/// # Errors
/// [`TelemetryError::Level`]; also for a word that is no level, which a bare filter takes for a module's name.
pub fn parse_level(text: &str) -> Result<EnvFilter, TelemetryError> {
    let wrong = |reason: String| TelemetryError::Level { text: text.to_owned(), reason };
    let word = text.trim().to_ascii_lowercase();
    let filter = match word.as_str() {
        "debug" | "trace" => format!("{DEFAULT_LEVEL},replcluster={word}"),
        "" => return Err(wrong("it is empty".to_owned())),
        _ => text.trim().to_owned(),
    };
    // A filter for spans holds commas of its own.
    if !filter.contains('[') {
        let is_level = |word: &str| word == "off" || LEVELS.contains(&word.to_ascii_lowercase().as_str());
        let stray = filter.split(',').find(|part| !part.contains('=') && !is_level(part.trim()));
        if let Some(stray) = stray {
            return Err(wrong(format!("nothing is called \"{stray}\"")));
        }
    }
    EnvFilter::try_new(filter).map_err(|error| wrong(error.to_string()))
}

fn chosen(level: Option<&str>, environment: Option<&str>) -> Result<EnvFilter, TelemetryError> {
    match (level, environment) {
        (Some(level), _) => parse_level(level),
        // What the variable means is known to everybody who uses it, libraries included.
        (None, Some(text)) => EnvFilter::try_new(text)
            .map_err(|error| TelemetryError::Level { text: text.to_owned(), reason: error.to_string() }),
        (None, None) => parse_level(DEFAULT_LEVEL),
    }
}

fn open(file: LogFile<'_>) -> Result<Rotated, TelemetryError> {
    Rotated::open(file.path, file.limits)
        .map_err(|cause| TelemetryError::File { path: file.path.to_owned(), cause })
}

/// A panic becomes a line, and is printed as ever.
fn log_panics() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("unnamed");
        tracing::error!(thread, place, "panicked: {}", panic.payload_as_str().unwrap_or("without a word"));
        print(panic);
    }));
}

/// One file for all threads. A thread waits for no more than another one's line.
struct Shared(Mutex<Rotated>);

impl<'a> MakeWriter<'a> for Shared {
    type Writer = &'a Shared;

    fn make_writer(&'a self) -> &'a Shared {
        self
    }
}

impl Write for &Shared {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if std::thread::panicking() {
            // This thread may have panicked with the file in its hands.
            if let Ok(mut file) = self.0.try_lock() {
                file.append(line);
            }
        } else {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).append(line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Events in the form of [`mod@line`], with colours where a terminal shows them.
struct Lines;

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut collected = Collected::default();
        event.record(&mut collected);
        let line = Line {
            at: stamp(crate::clock::wall()),
            level: *event.metadata().level(),
            target: event.metadata().target().to_owned(),
            message: collected.message,
            fields: collected.fields,
        };
        if to.has_ansi_escapes() {
            writeln!(to, "{}", coloured(&line.to_string(), line.level))
        } else {
            writeln!(to, "{line}")
        }
    }
}

/// A line as a terminal shows it: the stamp steps back, the level stands out.
#[must_use]
pub fn coloured(text: &str, level: Level) -> String {
    const DIM: Style = Style::new().dimmed();
    let style = match level {
        Level::ERROR => AnsiColor::Red.on_default().bold(),
        Level::WARN => AnsiColor::Yellow.on_default(),
        Level::INFO => AnsiColor::Green.on_default(),
        Level::DEBUG => AnsiColor::Blue.on_default(),
        Level::TRACE => DIM,
    };
    let split = text.split_at_checked(line::STAMP_BYTES).and_then(|(stamp, rest)| {
        let (level, rest) = rest.split_at_checked(line::STAMP_TO_TARGET_BYTES)?;
        Some(format!("{DIM}{stamp}{Reset}{style}{level}{Reset}{rest}"))
    });
    split.unwrap_or_else(|| text.to_owned())
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
        assert_eq!(chosen(Some("warn"), Some("debug")).unwrap().to_string(), "warn");
        assert_eq!(chosen(None, Some("debug")).unwrap().to_string(), "debug");
        assert_eq!(chosen(None, None).unwrap().to_string(), "info");
        assert!(matches!(chosen(Some("a=b=c"), None), Err(TelemetryError::Level { .. })));
    }

    #[test]
    fn a_level_alone_is_meant_for_us_and_a_misspelt_one_is_refused() {
        let filter = |text: &str| parse_level(text).unwrap().to_string();
        let parts = |text: &str| {
            let mut parts: Vec<String> = filter(text).split(',').map(str::to_owned).collect();
            parts.sort();
            parts
        };
        assert_eq!(parts("debug"), ["info", "replcluster=debug"]);
        assert_eq!(parts("warn,h2=trace"), ["h2=trace", "warn"]);
        assert_eq!(filter("replcluster::node=trace"), "replcluster::node=trace");
        for (text, reason) in [("debgu", "debgu"), ("", "empty"), ("replcluster=loud", "loud"), ("info,", "")]
        {
            match parse_level(text) {
                Err(error) => assert!(error.to_string().contains(reason), "{text}: {error}"),
                Ok(filter) => panic!("{text} became {filter}"),
            }
        }
    }

    #[test]
    fn a_log_file_without_a_directory_is_refused_by_name() {
        let file = LogFile { path: Path::new("/proc/none/log"), limits: Limits::default(), alone: false };
        let error = open(file).unwrap_err();
        assert!(error.to_string().contains("/proc/none/log"), "{error}");
    }

    #[test]
    fn colours_change_no_letter() {
        let text = "2026-11-22T14:03:11.000001Z  WARN a: b  c=d";
        let plain = anstream::adapter::strip_str(&coloured(text, Level::WARN)).to_string();
        assert_eq!(plain, text);
        assert_eq!(coloured("short", Level::INFO), "short");
    }
}
