//! The prompt of `replcluster client`: one request a line, with history and help. Where standard input is no
//! terminal, the same lines come from it and the first failure ends the run.

use std::cell::Cell;
use std::ffi::OsString;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::os::unix::ffi::OsStringExt as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::Parser;
use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::Validator;
use rustyline::{Context, Editor, Helper};
use tokio_util::sync::CancellationToken;

use super::{ClientFailure, ClientVerb, Input, UNANSWERED, perform, txn, words, write_out};
use crate::client::Client;
use crate::clock;

const HELP: &str = "\
get KEY [END]      --prefix --from-key --limit N --rev N --keys-only --count-only --serializable
put KEY VALUE      --prev-kv
del KEY [END]      --prefix --from-key --prev-kv
txn                then compares, a blank line, what to do if they hold, a blank line, what to do if not
compact REVISION   forgets older revisions
members, status    the cluster
help [VERB], exit  or Ctrl-D";

/// A line as it is typed.
#[derive(Debug, Parser)]
#[command(name = "", no_binary_name = true, disable_version_flag = true)]
struct Line {
    #[command(subcommand)]
    verb: ClientVerb,
}

/// Reads and carries out lines until the user leaves.
pub(super) async fn run(
    client: &Client,
    json: bool,
    interrupt: &CancellationToken,
) -> Result<(), ClientFailure> {
    let mut source = Source::open()?;
    if source.is_terminal() {
        println!("{} · help lists what can be asked", client.endpoints().join(","));
    }
    // A thread that waits for a line cannot be called off, so it cannot give the terminal back either.
    let _given_back = source.is_terminal().then(|| GivenBack::remember(source.reading()));
    loop {
        let next = tokio::select! {
            biased;
            () = interrupt.cancelled() => return Err(ClientFailure::Interrupted("nothing more was sent")),
            next = source.next("> ") => next?,
        };
        let line = match next {
            Typed::Line(line) => line,
            Typed::Dropped => continue,
            Typed::Left | Typed::End => return Ok(()),
        };
        let outcome = tokio::select! {
            biased;
            () = interrupt.cancelled() => return Err(ClientFailure::Interrupted(UNANSWERED)),
            outcome = answer(client, json, &line, &mut source) => outcome,
        };
        match outcome {
            Ok(Next::Print(output)) => write_out(&output)?,
            Ok(Next::Leave) => return Ok(()),
            Err(failure) if source.is_terminal() => anstream::eprintln!("{failure}"),
            Err(failure) => return Err(failure),
        }
    }
}

/// What a line leads to.
enum Next {
    Print(Vec<u8>),
    Leave,
}

async fn answer(client: &Client, json: bool, line: &str, source: &mut Source) -> Result<Next, ClientFailure> {
    let words = words::split(line).map_err(ClientFailure::Usage)?;
    match words.first().map(Vec::as_slice) {
        None => return Ok(Next::Print(Vec::new())),
        Some(b"exit" | b"quit") => return Ok(Next::Leave),
        Some(b"help" | b"?") if words.len() == 1 => return Ok(Next::Print(format!("{HELP}\n").into_bytes())),
        Some(_) => {}
    }
    let line = match Line::try_parse_from(words.into_iter().map(OsString::from_vec)) {
        Ok(line) => line,
        Err(error) if error.use_stderr() => {
            // Whoever prints a failure says that it is one.
            let text = error.render().to_string();
            return Err(ClientFailure::Usage(text.trim_start_matches("error: ").trim_end().to_owned()));
        }
        Err(help) => return Ok(Next::Print(help.render().to_string().into_bytes())),
    };
    let more = match line.verb {
        ClientVerb::Txn => match source.txn().await? {
            Some(lines) => lines,
            None => return Ok(Next::Print(b"nothing was sent\n".to_vec())),
        },
        ClientVerb::Get(_)
        | ClientVerb::Put(_)
        | ClientVerb::Del(_)
        | ClientVerb::Compact { .. }
        | ClientVerb::Members
        | ClientVerb::Status
        | ClientVerb::Watch { .. }
        | ClientVerb::Lease { .. } => Vec::new(),
    };
    Ok(Next::Print(perform(client, line.verb, json, Input::Lines(more)).await?))
}

/// What comes of waiting for a line.
enum Typed {
    Line(String),
    /// Ctrl-C on something.
    Dropped,
    /// Ctrl-C on nothing.
    Left,
    /// Ctrl-D, or the end of the input.
    End,
}

/// Where lines come from.
enum Source {
    /// Somebody types. The editor is away while a blocking thread waits for a line.
    Terminal {
        editor: Option<Box<Editor<Watcher, DefaultHistory>>>,
        reading: Reading,
    },
    Pipe,
}

impl Source {
    fn open() -> Result<Source, ClientFailure> {
        if !std::io::stdin().is_terminal() {
            return Ok(Source::Pipe);
        }
        let mut editor = Editor::new().map_err(terminal)?;
        let reading = Reading::default();
        editor.set_helper(Some(Watcher { reading: reading.clone(), ..Watcher::default() }));
        Ok(Source::Terminal { editor: Some(Box::new(editor)), reading })
    }

    fn is_terminal(&self) -> bool {
        match self {
            Source::Terminal { .. } => true,
            Source::Pipe => false,
        }
    }

    fn reading(&self) -> Reading {
        match self {
            Source::Terminal { reading, .. } => reading.clone(),
            Source::Pipe => Reading::default(),
        }
    }

    /// The next line. Ctrl-C drops what was typed; on an empty line it leaves.
    async fn next(&mut self, prompt: &'static str) -> Result<Typed, ClientFailure> {
        let editor = match self {
            Source::Terminal { editor, reading } => {
                reading.set(Stage::Begins);
                editor.take()
            }
            Source::Pipe => None,
        };
        // Reading blocks, and the connections must be served meanwhile.
        let read = tokio::task::spawn_blocking(move || match editor {
            Some(mut editor) => {
                let line = read_terminal(&mut editor, prompt);
                (Some(editor), line)
            }
            None => (None, read_pipe()),
        });
        let (editor, line) = read.await.map_err(|error| terminal(ReadlineError::Io(error.into())))?;
        if let Source::Terminal { editor: place, reading } = self {
            *place = editor;
            reading.set(Stage::Idle);
        }
        line
    }

    /// The lines of a transaction, up to the end of its third part; nothing where Ctrl-C drops it.
    async fn txn(&mut self) -> Result<Option<Vec<String>>, ClientFailure> {
        let mut lines = Vec::new();
        let prompts = ["compare> ", "then> ", "else> "];
        for prompt in prompts.iter().take(txn::PARTS) {
            loop {
                let line = match self.next(prompt).await? {
                    Typed::Line(line) => line,
                    Typed::Dropped | Typed::Left => return Ok(None),
                    Typed::End => return Ok(Some(lines)),
                };
                let ends = line.trim().is_empty();
                lines.push(line);
                if ends {
                    break;
                }
            }
        }
        Ok(Some(lines))
    }
}

/// How far the thread is that waits for a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nobody waits.
    Idle,
    /// It has not changed the terminal's settings yet, and will.
    Begins,
    /// It has.
    Reads,
}

/// That stage, as both sides see it.
#[derive(Clone)]
struct Reading(Arc<Mutex<Stage>>);

impl Default for Reading {
    fn default() -> Reading {
        Reading(Arc::new(Mutex::new(Stage::Idle)))
    }
}

impl Reading {
    fn set(&self, stage: Stage) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = stage;
    }

    fn stage(&self) -> Stage {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sees every line while it is typed: the editor does not tell what Ctrl-C was pressed on.
#[derive(Default)]
struct Watcher {
    holds_text: Cell<bool>,
    reading: Reading,
}

impl Hinter for Watcher {
    type Hint = String;

    fn hint(&self, line: &str, _: usize, _: &Context<'_>) -> Option<String> {
        self.holds_text.set(!line.is_empty());
        // The line is drawn for the first time when the terminal is set.
        self.reading.set(Stage::Reads);
        None
    }
}

impl Completer for Watcher {
    type Candidate = String;
}

impl Highlighter for Watcher {}
impl Validator for Watcher {}
impl Helper for Watcher {}

/// Gives the terminal back as it was found, on whatever way out.
struct GivenBack {
    before: Option<Termios>,
    reading: Reading,
}

/// How long the reading thread may take to begin.
const BEGINNING: Duration = Duration::from_millis(500);

impl GivenBack {
    fn remember(reading: Reading) -> GivenBack {
        GivenBack { before: tcgetattr(std::io::stdin()).ok(), reading }
    }
}

impl Drop for GivenBack {
    fn drop(&mut self) {
        // Nothing can be done where it fails: the terminal is gone then.
        let Some(before) = &self.before else { return };
        // Else it would set the terminal after us.
        let deadline = clock::now() + BEGINNING;
        while self.reading.stage() == Stage::Begins && clock::now() < deadline {
            std::thread::yield_now();
        }
        if tcgetattr(std::io::stdin()).is_ok_and(|now| now != *before) {
            let _ = tcsetattr(std::io::stdin(), SetArg::TCSADRAIN, before);
            let _ = std::io::stdout().write_all(PASTES_PLAIN);
            let _ = std::io::stdout().flush();
        }
    }
}

/// Takes back what the editor asked of the terminal, and leaves the line.
const PASTES_PLAIN: &[u8] = b"\x1b[?2004l\n";

fn read_terminal(editor: &mut Editor<Watcher, DefaultHistory>, prompt: &str) -> Result<Typed, ClientFailure> {
    match editor.readline(prompt) {
        Ok(line) => {
            if !line.trim().is_empty() {
                editor.add_history_entry(&line).map_err(terminal)?;
            }
            Ok(Typed::Line(line))
        }
        Err(ReadlineError::Interrupted) => {
            let holds_text = editor.helper().is_some_and(|watcher| watcher.holds_text.get());
            Ok(if holds_text { Typed::Dropped } else { Typed::Left })
        }
        Err(ReadlineError::Eof) => Ok(Typed::End),
        Err(error) => Err(terminal(error)),
    }
}

fn read_pipe() -> Result<Typed, ClientFailure> {
    let mut line = String::new();
    let length = std::io::stdin().lock().read_line(&mut line)?;
    if length == 0 {
        return Ok(Typed::End);
    }
    Ok(Typed::Line(line.trim_end_matches(['\n', '\r']).to_owned()))
}

fn terminal(error: ReadlineError) -> ClientFailure {
    ClientFailure::Terminal(std::io::Error::other(error))
}
