//! Exit codes as one table, and failures as what a user reads: what went wrong, what to do next, and the last lines
//! of the log concerned.

use std::path::{Path, PathBuf};

use super::charset;

use crate::client::ClientError;
use crate::config::{ConfigError, Wrong};
use crate::supervisor::layout::Layout;
use crate::supervisor::lock::LockError;
use crate::supervisor::ports::PortError;
use crate::supervisor::run::SupervisorError;
use crate::view::NodeId;

/// Lines of a log shown with a failure.
const LOG_LINES: usize = 10;
/// No more than this is read from the end of a log to find them.
const LOG_TAIL_BYTES: u64 = 16 * 1024;

/// What a process says on stderr this soon after its last log line belongs to that line.
const LAST_WORDS_WITHIN: std::time::Duration = std::time::Duration::from_secs(1);

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Everything asked for was done.
    Done = 0,
    /// It failed.
    Failed = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// No such cluster runs.
    NotRunning = 3,
    /// It took too long.
    TimedOut = 4,
    /// An address, port or directory is held by another.
    Conflict = 5,
    /// `kill`: something acknowledged is missing or wrong.
    Violated = 6,
    /// `kill`: not enough evidence to say.
    Inconclusive = 7,
    /// `status`: serves, but not everything is as it should be.
    Degraded = 8,
    /// `status`: no leader serves.
    Unavailable = 9,
    /// Ended by the user.
    Interrupted = 130,
}

impl From<&ClientError> for Exit {
    fn from(error: &ClientError) -> Exit {
        match error {
            ClientError::NoEndpoints | ClientError::BadEndpoint { .. } => Exit::Usage,
            ClientError::Unreachable { .. } => Exit::NotRunning,
            ClientError::TimedOut { .. } => Exit::TimedOut,
            ClientError::Refused { .. } | ClientError::Broken { .. } => Exit::Failed,
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> std::process::ExitCode {
        std::process::ExitCode::from(exit as u8)
    }
}

/// Why a command did not do what was asked.
#[derive(Debug)]
pub struct Failure {
    /// How the program ends.
    pub exit: Exit,
    /// What went wrong; the last line says what to do.
    pub message: String,
    /// The place in the configuration, where that is what is wrong.
    pub place: Option<Box<Wrong>>,
    /// The log whose last lines explain it.
    pub log: Option<PathBuf>,
}

/// What a command ends with.
pub type Outcome = Result<Exit, Failure>;

impl Failure {
    /// A failure with its message; its last line says what to do.
    pub fn new(exit: Exit, message: impl Into<String>) -> Failure {
        Failure { exit, message: message.into(), place: None, log: None }
    }

    /// The command line cannot be carried out as it stands.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure::new(Exit::Usage, message)
    }

    /// Nothing of the cluster runs.
    #[must_use]
    pub fn not_running(cluster: &str) -> Failure {
        Failure::new(
            Exit::NotRunning,
            format!("no node of {cluster} is running\nstart it with `replcluster up`"),
        )
    }

    /// The same with the log that explains it.
    #[must_use]
    pub fn with_log(mut self, log: PathBuf) -> Failure {
        self.log = Some(log);
        self
    }

    /// The same with the log of a node: its own, or what its process said where it wrote none.
    #[must_use]
    pub fn with_node_log(self, layout: &Layout, node: &NodeId) -> Failure {
        let (log, stderr) = (layout.log(node), layout.stderr(node));
        self.with_log(if said_something_later(&stderr, &log) { stderr } else { log })
    }

    /// Writes all of it to stderr.
    pub fn print(&self) {
        if let Some(wrong) = &self.place {
            anstream::eprint!("{}", render_place(wrong));
        } else {
            let mut lines = self.message.lines();
            anstream::eprintln!(
                "{}error:{} {}",
                super::render::RED,
                super::render::PLAIN,
                charset::fit(lines.next().unwrap_or(""))
            );
            for line in lines {
                anstream::eprintln!("  {}", charset::fit(line));
            }
        }
        if let Some(log) = &self.log {
            anstream::eprintln!("last lines of {}:", log.display());
            for line in last_lines(log, LOG_LINES) {
                anstream::eprintln!("  {}", super::render::unfolded(&line));
            }
        }
    }
}

/// True where a process had last words that its log does not end with: it could not even start to log. Those of one
/// that could are written within a moment of the log's last line, and the log has more.
fn said_something_later(stderr: &Path, log: &Path) -> bool {
    let written = |path: &Path| {
        let metadata = std::fs::metadata(path).ok().filter(|metadata| metadata.len() > 0)?;
        metadata.modified().ok()
    };
    match (written(stderr), written(log)) {
        (Some(said), Some(logged)) => {
            said.duration_since(logged).is_ok_and(|after| after > LAST_WORDS_WITHIN)
        }
        (said, None) => said.is_some(),
        (None, Some(_)) => false,
    }
}

/// The end of a file, in lines. A file that cannot be read says so in its place.
#[must_use]
pub fn last_lines(path: &Path, count: usize) -> Vec<String> {
    use std::io::{Read, Seek, SeekFrom};
    let read = || -> std::io::Result<String> {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match read() {
        Ok(text) if text.trim().is_empty() => vec!["(nothing was written)".to_owned()],
        Ok(text) => {
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(count)..].iter().map(|line| (*line).to_owned()).collect()
        }
        Err(error) => vec![format!("(cannot be read: {error})")],
    }
}

fn render_place(wrong: &Wrong) -> String {
    let colour = super::render::is_coloured_stderr();
    let mut theme =
        if colour { miette::GraphicalTheme::unicode() } else { miette::GraphicalTheme::unicode_nocolor() };
    if !charset::is_unicode() {
        theme.characters = miette::ThemeCharacters::ascii();
    }
    let mut text = String::new();
    // Formatting into a string cannot fail.
    let _ =
        miette::GraphicalReportHandler::new_themed(theme).with_links(false).render_report(&mut text, wrong);
    text
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Failure {
        let message = error.to_string();
        match error {
            ConfigError::NotFound(_) | ConfigError::Unreadable { .. } | ConfigError::NotText(_) => {
                Failure::usage(message)
            }
            ConfigError::Wrong(wrong) => Failure { place: Some(wrong), ..Failure::usage(message) },
        }
    }
}

impl From<PortError> for Failure {
    fn from(error: PortError) -> Failure {
        let exit = match &error {
            PortError::Held { .. } => Exit::Conflict,
            PortError::Unusable { .. } => Exit::Usage,
        };
        Failure::new(exit, error.to_string())
    }
}

impl From<SupervisorError> for Failure {
    fn from(error: SupervisorError) -> Failure {
        let message = error.to_string();
        match error {
            SupervisorError::Config(error) => error.into(),
            SupervisorError::Lock(LockError::Held { .. }) | SupervisorError::Survivors { .. } => {
                Failure::new(Exit::Conflict, message)
            }
            SupervisorError::Lock(LockError::System { .. })
            | SupervisorError::Spawn(_)
            | SupervisorError::DirectoryGone(_)
            | SupervisorError::File { .. } => Failure::new(Exit::Failed, message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_are_those_that_scripts_depend_on() {
        let table = [
            (Exit::Done, 0),
            (Exit::Failed, 1),
            (Exit::Usage, 2),
            (Exit::NotRunning, 3),
            (Exit::TimedOut, 4),
            (Exit::Conflict, 5),
            (Exit::Violated, 6),
            (Exit::Inconclusive, 7),
            (Exit::Degraded, 8),
            (Exit::Unavailable, 9),
            (Exit::Interrupted, 130),
        ];
        assert!(table.iter().all(|(exit, code)| *exit as u8 == *code));
    }

    #[test]
    fn the_last_lines_of_a_log_are_its_last_ones() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        assert!(last_lines(&path, 3)[0].starts_with("(cannot be read"));
        std::fs::write(&path, "").unwrap();
        assert_eq!(last_lines(&path, 3), ["(nothing was written)"]);
        let text: Vec<String> = (0..5000).map(|number| format!("line {number}")).collect();
        std::fs::write(&path, text.join("\n")).unwrap();
        assert_eq!(last_lines(&path, 2), ["line 4998", "line 4999"]);
    }

    #[test]
    fn last_words_are_shown_where_the_log_does_not_have_them() {
        use std::time::{Duration, SystemTime};
        let directory = tempfile::tempdir().unwrap();
        let (log, stderr) = (directory.path().join("log"), directory.path().join("stderr"));
        let write = |path: &Path, second: u64| {
            std::fs::write(path, "x").unwrap();
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
            std::fs::File::options().write(true).open(path).unwrap().set_modified(at).unwrap();
        };
        assert!(!said_something_later(&stderr, &log), "neither is there");
        write(&stderr, 9);
        assert!(said_something_later(&stderr, &log), "only this one is");
        for (logged, later) in [(9, false), (8, false), (5, true), (20, false)] {
            write(&log, logged);
            assert_eq!(said_something_later(&stderr, &log), later, "{logged}");
        }
    }

    #[test]
    fn a_wrong_configuration_is_shown_in_its_place() {
        let error =
            crate::config::parse(Path::new("/c.toml"), "nmae = 1\n", &crate::config::resolve).unwrap_err();
        let failure = Failure::from(error);
        assert_eq!(failure.exit, Exit::Usage);
        let text = render_place(failure.place.as_ref().unwrap());
        for part in ["/c.toml:1:1", "unknown key `nmae`", "did you mean `name`?", "nmae = 1"] {
            assert!(text.contains(part), "{text}");
        }
    }
}
