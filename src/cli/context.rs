//! What every command needs: the configuration, the cluster's directory, and a way to the supervisor.

use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::clock;
use crate::config::{self, Config};
use crate::inherited;
use crate::supervisor::ask::Asker;
use crate::supervisor::events::{self, Event, EventLog};
use crate::supervisor::heal;
use crate::supervisor::layout::Layout;
use crate::supervisor::lock;
use crate::supervisor::os;
use crate::supervisor::owner;
use crate::supervisor::socket::Conversation;
use crate::supervisor::spawn;
use crate::supervisor::wire::{Outcome, OutcomeKind, Reply, Request};
use crate::view::NodeId;

use super::Interrupts;
use super::exit::{Exit, Failure};

/// So much of the end of the history is looked through for what happened last.
pub const HISTORY_BYTES: u64 = 256 * 1024;
/// How long a supervisor may take to answer before it counts as stuck.
const SUPERVISOR_PATIENCE: Duration = Duration::from_secs(5);
/// How long a new supervisor may take until it listens.
const SUPERVISOR_START: Duration = Duration::from_secs(10);
/// How often something is looked at that is about to change.
pub const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// What every command needs.
#[derive(Debug)]
pub struct Context {
    /// The configuration.
    pub config: Config,
    /// The cluster's directory.
    pub layout: Layout,
    /// Connections to the nodes.
    pub asker: Asker,
    /// Data is printed as JSON.
    pub json: bool,
    /// Cancelled by the first Ctrl-C, for commands that have something to put right first.
    pub interrupt: CancellationToken,
}

impl Context {
    /// Finds and reads the configuration. Must be called within a runtime.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn load(
        given: Option<PathBuf>,
        json: bool,
        interrupt: CancellationToken,
    ) -> Result<Context, Failure> {
        let config = config::load(&config_path(given)?)?;
        let layout = Layout::new(&config);
        let asker = Asker::new(&config.nodes);
        heal_leftovers(&layout, None);
        Ok(Context { config, layout, asker, json, interrupt })
    }

    /// Reads the configuration again after it was changed.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn reload(&mut self) -> Result<(), Failure> {
        self.config = config::load(&self.config.path)?;
        self.asker = Asker::new(&self.config.nodes);
        Ok(())
    }

    /// A conversation with the supervisor, where one runs and is not frozen: that one would take the connection and
    /// never answer.
    ///
    /// # Errors
    /// Where it runs and does not listen.
    pub async fn supervisor(&self) -> Result<Option<Conversation>, Failure> {
        if self.frozen_supervisor().is_some() {
            return Ok(None);
        }
        match Conversation::connect(&self.layout.socket()).await {
            Ok(conversation) => Ok(Some(conversation)),
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                Ok(None)
            }
            Err(error) => Err(Failure::new(
                Exit::Failed,
                format!(
                    "cannot talk to the supervisor over {}: {error}\n{}",
                    self.layout.socket().display(),
                    owner::advice(&self.layout.socket())
                ),
            )),
        }
    }

    /// A conversation with a supervisor that has answered; one is started where none runs. One that lives and does not
    /// answer is in the way: two must not work in one directory.
    ///
    /// # Errors
    /// Where it cannot be started, or does not answer.
    pub async fn ensure_supervisor(&self) -> Result<Conversation, Failure> {
        let begun = clock::now();
        let mut started: Option<Child> = None;
        let mut deaf_since = None;
        loop {
            if let Some(pid) = self.frozen_supervisor() {
                return Err(silent(pid, "it is frozen"));
            }
            if let Some(mut conversation) = self.supervisor().await? {
                match tokio::time::timeout(SUPERVISOR_PATIENCE, conversation.ask(&Request::Snapshot)).await {
                    Ok(Ok(_)) => return Ok(conversation),
                    // It ended at this moment.
                    Ok(Err(_)) => {}
                    Err(_) => {
                        if let Some(pid) = self.supervisor_pid() {
                            return Err(silent(pid, &within(SUPERVISOR_PATIENCE)));
                        }
                    }
                }
            }
            match self.supervisor_pid() {
                // It begins just now, or its socket was deleted and it is about to make another.
                Some(pid) => {
                    let since = *deaf_since.get_or_insert_with(clock::now);
                    if clock::now() >= since + SUPERVISOR_PATIENCE {
                        return Err(silent(pid, &within(SUPERVISOR_PATIENCE)));
                    }
                }
                None => {
                    deaf_since = None;
                    started = Some(self.begin_supervisor(started)?);
                }
            }
            if clock::now() >= begun + SUPERVISOR_START {
                let message = "the supervisor does not listen\nlook at its log, then try again";
                return Err(Failure::new(Exit::TimedOut, message).with_log(self.layout.supervisor_log()));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Starts a supervisor where this command has not done so yet. Another command may do so at the same moment: then
    /// that one serves us too. Or one held the lock for a moment only: then ours is started again.
    fn begin_supervisor(&self, started: Option<Child>) -> Result<Child, Failure> {
        let failed = |cause: io::Error| {
            let message = format!(
                "cannot start the supervisor: {cause}\ncheck that {} may be written to",
                self.layout.root().display()
            );
            Failure::new(Exit::Failed, message)
        };
        let Some(mut child) = started else {
            self.may_begin()?;
            return self.spawn_supervisor().map_err(failed);
        };
        match child.try_wait().map_err(failed)? {
            None => Ok(child),
            Some(status) if status.code() == Some(i32::from(Exit::Conflict as u8)) => {
                self.spawn_supervisor().map_err(failed)
            }
            Some(_) => {
                let message = "the supervisor ended at once\nput right what its log says, then try again";
                Err(Failure::new(Exit::Failed, message).with_log(self.layout.supervisor_log()))
            }
        }
    }

    /// Whether this command may start what is to live for long: with what it was given itself, and in this directory.
    ///
    /// # Errors
    /// What stands against it.
    pub fn may_begin(&self) -> Result<(), Failure> {
        match inherited::refusal().or_else(|| owner::refusal(self.layout.root())) {
            Some(why) => Err(Failure::new(Exit::Failed, why)),
            None => Ok(()),
        }
    }

    fn spawn_supervisor(&self) -> io::Result<Child> {
        let output = spawn::append(&self.layout.supervisor_log())?;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("supervise")
            .arg("--config")
            .arg(&self.config.path)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        inherited::of_child(&mut command);
        spawn::detach(&mut command);
        command.spawn()
    }

    /// Puts an event into the history, with or without a supervisor.
    pub async fn note(&self, supervisor: Option<&mut Conversation>, event: Event) {
        let id = events::new_id();
        if let Some(supervisor) = supervisor
            && ask(supervisor, &Request::Note { id: id.clone(), event: event.clone() }).await.is_ok()
        {
            return;
        }
        // It may have been written by a supervisor that died before it could say so.
        let written = EventLog::open(&self.layout.events()).and_then(|mut log| log.append_once(&id, event));
        if let Err(error) = written {
            anstream::eprintln!("warning: cannot write {}: {error}", self.layout.events().display());
        }
    }

    /// The process of the supervisor, where one runs.
    #[must_use]
    pub fn supervisor_pid(&self) -> Option<u32> {
        lock::holding(&self.layout.lock()).map(|id| id.pid)
    }

    /// The process of the supervisor, where it is frozen.
    #[must_use]
    pub fn frozen_supervisor(&self) -> Option<u32> {
        self.supervisor_pid().filter(|pid| os::stat(*pid).is_ok_and(|stat| stat.is_frozen()))
    }
}

/// What is said of a supervisor that lives and does not answer.
fn silent(pid: u32, why: &str) -> Failure {
    let message = format!("the supervisor (pid {pid}) does not answer: {why}\n{}", cure_of_silence());
    Failure::new(Exit::TimedOut, message)
}

fn within(patience: Duration) -> String {
    format!("nothing came within {}", config::show(patience))
}

/// What to do about a supervisor that lives and does not answer.
pub fn cure_of_silence() -> &'static str {
    "end it with `replcluster kill supervisor`: no node is touched, and the next command that needs one starts another"
}

/// Ends what a supervisor that died had begun and nobody is there to end; this order too, however far it has come.
/// `false` where a supervisor runs, whose task that is.
pub(super) fn heal_leftovers(layout: &Layout, order: Option<&str>) -> bool {
    match heal::heal(layout, order) {
        Ok(None) => return false,
        Ok(Some(healed)) => {
            for one in healed {
                let why =
                    if one.unconfirmed { "its supervisor died in the middle" } else { "its time was over" };
                anstream::eprintln!("thawed {} (pid {}), which was left frozen: {why}", one.node, one.pid);
            }
        }
        Err(error) => {
            anstream::eprintln!(
                "warning: cannot look for what was left frozen in {}: {error}",
                layout.root().display()
            );
        }
    }
    true
}

/// The configuration file to use.
///
/// # Errors
/// Where none is found.
pub fn config_path(given: Option<PathBuf>) -> Result<PathBuf, Failure> {
    let environment =
        std::env::var_os(config::FILE_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
    // An absolute name needs no current directory, which may have been deleted.
    if let Some(path) = given.as_ref().or(environment.as_ref()).filter(|path| path.is_absolute()) {
        return Ok(path.clone());
    }
    let here = std::env::current_dir().map_err(|error| {
        let message = format!(
            "cannot tell the current directory: {error}\nchange to another one, or give the whole path with --config"
        );
        Failure::new(Exit::Failed, message)
    })?;
    Ok(config::find(given.as_deref(), environment.as_deref(), &here)?)
}

/// Asks the supervisor and waits for its answer.
///
/// # Errors
/// Where it went away, is stuck, or refuses.
pub async fn ask(supervisor: &mut Conversation, request: &Request) -> Result<Reply, Failure> {
    let advice = "look at supervisor.log in the cluster's directory; `replcluster up` starts another one";
    match tokio::time::timeout(SUPERVISOR_PATIENCE, supervisor.ask(request)).await {
        Err(_) => Err(Failure::new(
            Exit::TimedOut,
            format!("the supervisor does not answer\n{}", cure_of_silence()),
        )),
        Ok(Err(error)) => {
            Err(Failure::new(Exit::Failed, format!("the supervisor went away: {error}\n{advice}")))
        }
        Ok(Ok(Reply::Refused { reason, overtaken })) => {
            Err(Failure::new(if overtaken { Exit::Conflict } else { Exit::Failed }, reason))
        }
        Ok(Ok(reply)) => Ok(reply),
    }
}

/// Asks for something that concerns nodes; every node must accept it or have it so already.
///
/// # Errors
/// The first node that cannot, and why.
pub async fn ask_nodes(supervisor: &mut Conversation, request: &Request) -> Result<Vec<Outcome>, Failure> {
    match ask(supervisor, request).await? {
        Reply::Outcomes { outcomes } => {
            for outcome in &outcomes {
                if let OutcomeKind::Denied { reason } = &outcome.result {
                    let message =
                        format!("{}: {reason}\nsee how it stands with `replcluster status`", outcome.node);
                    return Err(Failure::new(Exit::Failed, message));
                }
            }
            Ok(outcomes)
        }
        Reply::Snapshot { .. } | Reply::Done | Reply::Refused { .. } => Err(other_version()),
    }
}

/// A supervisor that answers something else than what it was asked.
#[must_use]
pub fn other_version() -> Failure {
    let message = "the supervisor is of another version\nrestart it: `replcluster down`, then `up`";
    Failure::new(Exit::Failed, message)
}

/// Addresses as the wire has them.
#[must_use]
pub fn names(nodes: &[NodeId]) -> Vec<String> {
    nodes.iter().map(NodeId::to_string).collect()
}

/// Addresses in one line.
#[must_use]
pub fn list(nodes: &[NodeId]) -> String {
    names(nodes).join(", ")
}

/// What comes of a question.
enum Answer {
    Said(String),
    Interrupted,
}

/// Asks the user before something that cannot be undone. `--yes` answers for them. Waits on this thread, while the
/// others of the runtime go on. Must be called within a runtime.
///
/// # Errors
/// Where the user says no or interrupts, or nobody is there to ask.
pub fn confirm(question: &str, yes: bool) -> Result<(), Failure> {
    use std::io::{BufRead, IsTerminal, Write};
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::usage(format!("{question}\nnobody is there to say yes: add --yes")));
    }
    let (tell, told) = mpsc::channel();
    let interrupted = tell.clone();
    let mut interrupts = Interrupts::new();
    let _interrupts = AbortOnDropHandle::new(tokio::spawn(async move {
        interrupts.next().await;
        let _ = interrupted.send(Answer::Interrupted);
    }));
    anstream::eprint!("{question} [y/N] ");
    let _ = io::stderr().flush();
    // A line that is being read cannot be given up: after an interrupt the thread ends with the program.
    let reading = std::thread::Builder::new().name("answer".to_owned()).spawn(move || {
        let mut line = String::new();
        // Where nothing can be read nobody has said yes.
        let _ = io::stdin().lock().read_line(&mut line);
        let _ = tell.send(Answer::Said(line));
    });
    let answer = if reading.is_ok() { told.recv().ok() } else { None };
    match answer {
        Some(Answer::Said(line)) if matches!(line.trim(), "y" | "Y" | "yes") => return Ok(()),
        // Enter has ended the line.
        Some(Answer::Said(line)) if line.ends_with('\n') => {}
        Some(Answer::Said(_)) | None => anstream::eprintln!(),
        Some(Answer::Interrupted) => {
            anstream::eprintln!();
            return Err(Failure::new(Exit::Interrupted, "interrupted: nothing was done"));
        }
    }
    Err(Failure::new(Exit::Failed, "nothing was done\nsay y, or add --yes"))
}
