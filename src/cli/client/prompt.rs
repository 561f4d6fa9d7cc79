//! The prompt of `replcluster client`: one request a line, with history and help. Where standard input is no
//! terminal, the same lines come from it and the first failure ends the run.

use std::ffi::OsString;
use std::io::{BufRead as _, IsTerminal as _};
use std::os::unix::ffi::OsStringExt as _;

use clap::Parser;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use super::{ClientFailure, ClientVerb, Input, perform, txn, words, write_out};
use crate::client::Client;

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
pub(super) async fn run(client: &Client, json: bool) -> Result<(), ClientFailure> {
    let mut source = Source::open()?;
    if source.is_terminal() {
        println!("{} · help lists what can be asked", client.endpoints().join(","));
    }
    while let Some(line) = source.next("> ").await? {
        let outcome = answer(client, json, &line, &mut source).await;
        match outcome {
            Ok(Next::Print(output)) => write_out(&output)?,
            Ok(Next::Leave) => break,
            Err(failure) if source.is_terminal() => eprintln!("{failure}"),
            Err(failure) => return Err(failure),
        }
    }
    Ok(())
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
        Err(error) if error.use_stderr() => return Err(ClientFailure::Usage(error.render().to_string())),
        Err(help) => return Ok(Next::Print(help.render().to_string().into_bytes())),
    };
    let more = match line.verb {
        ClientVerb::Txn => source.txn().await?,
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

/// Where lines come from.
enum Source {
    /// Somebody types. The editor is away while a blocking thread waits for a line.
    Terminal(Option<Box<DefaultEditor>>),
    Pipe,
}

impl Source {
    fn open() -> Result<Source, ClientFailure> {
        if !std::io::stdin().is_terminal() {
            return Ok(Source::Pipe);
        }
        Ok(Source::Terminal(Some(Box::new(DefaultEditor::new().map_err(terminal)?))))
    }

    fn is_terminal(&self) -> bool {
        match self {
            Source::Terminal(_) => true,
            Source::Pipe => false,
        }
    }

    /// The next line, or nothing at the end. Ctrl-C drops what was typed; on an empty line it leaves.
    async fn next(&mut self, prompt: &'static str) -> Result<Option<String>, ClientFailure> {
        let editor = match self {
            Source::Terminal(editor) => editor.take(),
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
        if let Source::Terminal(place) = self {
            *place = editor;
        }
        line
    }

    /// The lines of a transaction, up to the end of its third part.
    async fn txn(&mut self) -> Result<Vec<String>, ClientFailure> {
        let mut lines = Vec::new();
        let prompts = ["compare> ", "then> ", "else> "];
        for prompt in prompts.iter().take(txn::PARTS) {
            loop {
                let Some(line) = self.next(prompt).await? else { return Ok(lines) };
                let ends = line.trim().is_empty();
                lines.push(line);
                if ends {
                    break;
                }
            }
        }
        Ok(lines)
    }
}

fn read_terminal(editor: &mut DefaultEditor, prompt: &str) -> Result<Option<String>, ClientFailure> {
    match editor.readline(prompt) {
        Ok(line) => {
            if !line.trim().is_empty() {
                editor.add_history_entry(&line).map_err(terminal)?;
            }
            Ok(Some(line))
        }
        Err(ReadlineError::Eof | ReadlineError::Interrupted) => Ok(None),
        Err(error) => Err(terminal(error)),
    }
}

fn read_pipe() -> Result<Option<String>, ClientFailure> {
    let mut line = String::new();
    let length = std::io::stdin().lock().read_line(&mut line)?;
    Ok((length > 0).then(|| line.trim_end_matches(['\n', '\r']).to_owned()))
}

fn terminal(error: ReadlineError) -> ClientFailure {
    ClientFailure::Terminal(std::io::Error::other(error))
}
