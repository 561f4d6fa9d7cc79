//! The supervisor's loop. One task owns everything: it waits for a message, hands it to the life it concerns, and
//! does what that answers. Connections, watchers and questions to nodes run beside it and only send it messages.
//!
//! - `lives`: what happens to the nodes' processes
//! - `faults`: pauses and kills, phase by phase
//! - `looks`: what the nodes say of themselves
//! - `connections`: the control socket
//! - `inherit`: what it does before the first message, with what an earlier one left
//!
//! It can be killed between any two of its steps. Whatever it is about to do is written down before it is done, and
//! told in the history after; a new one compares what was written and told with what is so. What cannot be written down
//! and would have to be undone (a pause, a kill) is not done; what ends or starts nodes for good is.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::clock;
use crate::config::{self, Config, ConfigError};
use crate::control::cause::Ended;
use crate::control::fault::{Kind, Phase};
use crate::control::life::{Event, Moment};
use crate::notify;
use crate::proto::replcluster::DescribeResponse;
use crate::view::NodeId;

use super::adopt;
use super::ask::Asker;
use super::crash;
use super::events::{self, EventLog};
use super::layout::Layout;
use super::lock::{Lock, LockError, Standing};
use super::os;
use super::past::Past;
use super::record::{self, Record};
use super::slot::Slot;
use super::socket::{self, Listener, Place};
use super::spawn::{self, SpawnError, Spawner};
use super::wire::{Reply, Request};

mod connections;
mod faults;
mod inherit;
mod lives;
mod looks;

use faults::Pausing;

/// How often the supervisor looks at its own directory and at what the nodes use.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(1);
/// Messages that wait for the loop. Full: whoever sends waits, which slows only commands and questions down.
const INBOX: usize = 256;

/// What a supervisor needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// The program to run a node with; `None` looks for it.
    pub server: Option<PathBuf>,
    /// It runs within the command of somebody at a terminal, or of a service manager: no node outlives it, however it
    /// ends.
    pub foreground: bool,
    /// Cancelled when this program is to end, also while the supervisor is still beginning. Never cancelled in the
    /// foreground, where the command ends the cluster first.
    pub interrupt: CancellationToken,
}

/// Why a supervisor could not begin, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Another one runs, or the lock cannot be taken.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// No process can be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// Nodes run that would outlive a supervisor in the foreground: a process keeps its parent.
    #[error("{} runs already and would outlive a supervisor in the foreground\nend it first with `replcluster down`, or take it over with `replcluster up`", list(.nodes))]
    Survivors {
        /// Which.
        nodes: Vec<NodeId>,
    },
    /// The cluster's directory was deleted, moved or replaced.
    #[error("{} is gone: deleted, moved or replaced while the cluster ran\nwhat is there now is served by `replcluster up` in its directory", .0.display())]
    DirectoryGone(PathBuf),
    /// A file or socket of the cluster's directory fails.
    #[error("cannot use {}: {cause}\ncheck that the directory may be written to and has space left", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
}

fn list(nodes: &[NodeId]) -> String {
    nodes.iter().map(NodeId::as_str).collect::<Vec<_>>().join(", ")
}

/// What reaches the loop.
enum Message {
    /// Somebody asks.
    Asked { request: Request, reply: oneshot::Sender<Reply> },
    /// A process ended.
    Ended { node: NodeId, number: u64, ended: Ended },
    /// A node answered, or did not.
    Looked { node: NodeId, number: u64, answer: Option<Box<DescribeResponse>> },
    /// A process that got SIGSTOP was seen frozen, or was not within its time.
    Felt { node: NodeId, fault: String, frozen: bool },
    /// Whoever ordered this went away without a word that they want it.
    Forsaken { fault: String },
}

/// Why the loop ends.
enum End {
    Asked,
    Interrupted,
    DirectoryGone,
}

/// Where commands connect.
struct Connections {
    place: Place,
    /// Takes them while this value lives.
    _taking: AbortOnDropHandle<()>,
}

struct Supervisor {
    config_path: PathBuf,
    config: Config,
    layout: Layout,
    /// Held for the life of the supervisor.
    lock: Lock,
    server: PathBuf,
    spawner: Spawner,
    nodes: BTreeMap<NodeId, Slot>,
    asker: Asker,
    history: EventLog,
    inbox: mpsc::Sender<Message>,
    /// The origin of every `Moment`.
    origin: Instant,
    /// Numbers the processes, so that late news of one cannot be taken for another's.
    next_number: u64,
    /// The newest view that went into the history.
    epoch: u64,
    /// A node answered that it follows a view, since this supervisor began.
    saw_view: bool,
    /// Nodes die with this program.
    foreground: bool,
    /// Orders to freeze that are answered when their effect is seen.
    pausing: Vec<Pausing>,
}

/// Runs a supervisor until it is told to end. The nodes go on.
///
/// # Errors
/// [`SupervisorError`].
pub async fn run(options: Options) -> Result<(), SupervisorError> {
    let config = config::load(&options.config)?;
    let layout = Layout::new(&config);
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let root = layout.root().to_owned();
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |cause| SupervisorError::File { path, cause }
    };
    std::fs::create_dir_all(&root).map_err(failed(&root))?;
    let lock = Lock::take(&layout.lock())?;
    let server = options.server.map_or_else(spawn::find_server, Ok)?;
    let spawner = Spawner::start().map_err(failed(&root))?;
    let history = EventLog::open(&layout.events()).map_err(failed(&layout.events()))?;
    let listener = socket::listen(&layout.socket()).map_err(failed(&layout.socket()))?;
    let record = record::load(&layout.state()).map_err(failed(&layout.state()))?;
    let past = Past::read(&layout.events()).map_err(failed(&layout.events()))?;
    let asker = Asker::new(&config.nodes);
    let nodes = inherit::known_nodes(&config, &record);
    let survivors = adopt::survivors(&layout, &record, &nodes, &asker).await;
    if options.foreground && !survivors.is_empty() {
        let _ = std::fs::remove_file(layout.socket());
        return Err(SupervisorError::Survivors { nodes: survivors.into_keys().collect() });
    }
    let (inbox, messages) = mpsc::channel(INBOX);
    let mut supervisor = Supervisor {
        config_path: options.config,
        asker,
        nodes: BTreeMap::new(),
        config,
        layout,
        lock,
        server,
        spawner,
        history,
        inbox,
        origin: clock::now(),
        next_number: 1,
        epoch: 0,
        saw_view: false,
        foreground: options.foreground,
        pausing: Vec::new(),
    };
    supervisor.tell(events::Event::SupervisorStarted { pid: std::process::id() });
    supervisor.take_over(&record, &past, survivors);
    if !options.foreground {
        // In the foreground it is the cluster that has to be ready.
        notify::tell(notify::READY);
    }
    let reason = match supervisor.serve(listener, messages, &options.interrupt).await {
        End::Asked => "asked to".to_owned(),
        End::Interrupted => "got SIGINT or SIGTERM".to_owned(),
        End::DirectoryGone => {
            tracing::warn!(directory = %root.display(), "the cluster's directory is gone: ending; no node is ended");
            return Err(SupervisorError::DirectoryGone(root));
        }
    };
    supervisor.tell(events::Event::SupervisorEnded { pid: std::process::id(), reason });
    supervisor.remember();
    let _ = std::fs::remove_file(supervisor.layout.socket());
    Ok(())
}

impl Supervisor {
    async fn serve(
        &mut self,
        listener: Listener,
        mut messages: mpsc::Receiver<Message>,
        interrupt: &CancellationToken,
    ) -> End {
        let mut connections = self.take_connections(listener);
        let mut next_housekeeping = clock::now();
        let end = loop {
            self.look(clock::now());
            let due = self.nodes.values().filter_map(Slot::due).min().map(|moment| self.origin + moment);
            let next_look = self.nodes.values().filter_map(Slot::next_look).min();
            let wake = [next_look, due].into_iter().flatten().fold(next_housekeeping, Instant::min);
            tokio::select! {
                Some(message) = messages.recv() => {
                    if !self.is_at_home() {
                        break End::DirectoryGone;
                    }
                    if let Some(end) = self.handle(message) {
                        break end;
                    }
                }
                () = interrupt.cancelled() => break End::Interrupted,
                () = tokio::time::sleep_until(wake.into()) => {}
            }
            // Before anything is started or written: in a directory that was deleted a new and empty cluster would begin.
            if !self.is_at_home() {
                break End::DirectoryGone;
            }
            self.tick();
            let now = clock::now();
            if now >= next_housekeeping {
                if !connections.place.is_in_place() {
                    self.listen_anew(&mut connections);
                }
                self.measure(now);
                next_housekeeping = now + HOUSEKEEPING_INTERVAL;
            }
        };
        match end {
            // What ended meanwhile is told by us, who know how.
            End::Asked | End::Interrupted => {
                while let Ok(message) = messages.try_recv() {
                    if let Message::Ended { node, number, ended } = message {
                        self.ended(&node, number, ended);
                    }
                }
            }
            End::DirectoryGone => {}
        }
        end
    }

    /// False once the cluster's directory is not there any more, or is another supervisor's. A lock that somebody took
    /// for left behind and deleted is taken anew.
    fn is_at_home(&mut self) -> bool {
        match self.lock.standing() {
            Standing::Held => true,
            Standing::DirectoryGone => false,
            // Emptied is as good as deleted.
            Standing::Unlinked if !self.layout.state().exists() => false,
            Standing::Unlinked => match Lock::take(&self.layout.lock()) {
                Ok(lock) => {
                    tracing::warn!(file = %self.layout.lock().display(), "the lock was deleted: taken anew");
                    self.lock = lock;
                    true
                }
                Err(error) => {
                    tracing::error!(%error, "the lock was deleted, and cannot be taken anew");
                    false
                }
            },
        }
    }

    fn take_connections(&self, listener: Listener) -> Connections {
        let Listener { listener, place } = listener;
        let taking = connections::accept(listener, self.inbox.clone());
        Connections { place, _taking: AbortOnDropHandle::new(tokio::spawn(taking)) }
    }

    /// The socket was deleted or replaced: nobody could reach this supervisor any more, nor could another one begin.
    /// Conversations that stand go on.
    fn listen_anew(&self, connections: &mut Connections) {
        match socket::listen(&self.layout.socket()) {
            Ok(listener) => {
                tracing::warn!(socket = %self.layout.socket().display(), "the control socket was gone: made anew");
                *connections = self.take_connections(listener);
            }
            Err(error) => tracing::error!(socket = %self.layout.socket().display(), %error, "cannot listen"),
        }
    }

    fn handle(&mut self, message: Message) -> Option<End> {
        match message {
            Message::Asked { request: Request::Quit, reply } => {
                let _ = reply.send(Reply::Done);
                return Some(End::Asked);
            }
            Message::Asked { request: Request::Pause { nodes, for_ms, fault, even_last }, reply } => {
                match self.unasked(&nodes, even_last) {
                    Some(refused) => drop(reply.send(refused)),
                    None => self.pause(&nodes, for_ms, &fault, reply),
                }
            }
            Message::Asked { request, reply } => {
                let answer = self.answer(request);
                // Whoever asked may have gone away; what was asked is done all the same.
                let _ = reply.send(answer);
                crash::step("answered");
            }
            Message::Felt { node, fault, frozen } => self.felt(&node, &fault, frozen),
            Message::Forsaken { fault } => self.forsake(&fault),
            Message::Ended { node, number, ended } => self.ended(&node, number, ended),
            Message::Looked { node, number, answer } => self.looked(&node, number, answer),
        }
        None
    }

    fn answer(&mut self, request: Request) -> Reply {
        match request {
            Request::Snapshot => Reply::Snapshot { record: self.record() },
            Request::Start { nodes } => {
                // All are wanted before the first is started: the lowest of them creates the cluster.
                self.want(&nodes, true);
                let reply = self.each(&nodes, |_| Event::Start);
                self.thaw_strangers(&nodes);
                reply
            }
            Request::Stop { nodes, patience_ms } => {
                self.want(&nodes, false);
                let deadline = self.moment() + Duration::from_millis(patience_ms);
                self.each(&nodes, |_| Event::Stop { deadline })
            }
            Request::Restart { nodes, patience_ms } => {
                self.want(&nodes, true);
                let deadline = self.moment() + Duration::from_millis(patience_ms);
                self.each(&nodes, |_| Event::Restart { deadline })
            }
            Request::Kill { nodes, signal, fault, only, even_last } => {
                match self.unasked(&nodes, even_last) {
                    Some(refused) => refused,
                    None => self.kill(&nodes, signal, &fault, &only),
                }
            }
            Request::Forsake { fault } => {
                self.forsake(&fault);
                Reply::Done
            }
            Request::Resume { nodes } => self.resume(&nodes),
            Request::Hold { fault } => self.hold(&fault),
            Request::Reload => self.reload(),
            Request::Forget { nodes } => {
                let known: Vec<NodeId> = nodes.iter().filter_map(|name| self.known(name)).collect();
                for node in known {
                    self.close(&node, Kind::Kill, Phase::Healed, "it is no node any more");
                }
                let listed = &self.config.nodes;
                self.nodes.retain(|node, slot| {
                    let named = nodes.iter().any(|name| name == node.as_str());
                    !named || listed.contains(node) || slot.process.is_some()
                });
                self.remember();
                Reply::Done
            }
            Request::Note { id, event } => {
                let written = self.history.append_once(&id, event);
                crash::step("told");
                match written {
                    Ok(_) => Reply::Done,
                    Err(error) => Reply::Refused { reason: self.cannot_note(&error), overtaken: false },
                }
            }
            // These are answered elsewhere.
            Request::Quit | Request::Pause { .. } => Reply::Done,
        }
    }

    fn reload(&mut self) -> Reply {
        let config = match config::load(&self.config_path) {
            Ok(config) => config,
            Err(error) => return Reply::Refused { reason: error.to_string(), overtaken: false },
        };
        if Layout::new(&config) != self.layout || config.name != self.config.name {
            let reason = "`name` or `data_dir` changed: that is another cluster\n\
                          change it back, or end this one first with `replcluster down`";
            return Reply::Refused { reason: reason.to_owned(), overtaken: false };
        }
        for node in &config.nodes {
            self.nodes.entry(node.clone()).or_default();
        }
        // One that was started once may still count in the cluster: it stays known until it is taken out.
        self.nodes
            .retain(|node, slot| config.nodes.contains(node) || slot.spawns > 0 || slot.process.is_some());
        let nodes: Vec<NodeId> = self.nodes.keys().cloned().collect();
        self.asker = Asker::new(&nodes);
        self.config = config;
        self.remember();
        Reply::Done
    }

    fn record(&self) -> Record {
        let now = self.moment();
        let nodes = self.nodes.iter().map(|(node, slot)| (node.to_string(), slot.record(now))).collect();
        let supervisor = os::identify(std::process::id()).ok();
        Record { supervisor, foreground: self.foreground, nodes, ..Record::default() }
    }

    /// Writes down how everything stands, where nothing hangs on that: what cannot be written is logged.
    fn remember(&self) {
        let _ = self.try_remember();
    }

    fn try_remember(&self) -> io::Result<()> {
        crash::step("before remembering");
        let saved = record::save(&self.layout.state(), &self.record());
        if let Err(error) = &saved {
            tracing::error!(file = %self.layout.state().display(), %error, "cannot remember the processes");
        }
        crash::step("remembered");
        saved
    }

    /// Puts an event into the history, where nothing hangs on that: what cannot be written is logged.
    fn tell(&mut self, event: events::Event) {
        let _ = self.try_tell(vec![event]);
    }

    fn try_tell(&mut self, events: Vec<events::Event>) -> io::Result<()> {
        let told = self.history.append(events);
        if let Err(error) = &told {
            tracing::error!(file = %self.layout.events().display(), %error, "cannot write the history");
        }
        crash::step("told");
        told.map(drop)
    }

    /// Why something was not done that has to be written down before it is done.
    fn cannot_note(&self, error: &io::Error) -> String {
        let directory = self.layout.root().display();
        format!("it cannot be written down in {directory}: {error}\nmake room there, or make it writable")
    }

    fn moment(&self) -> Moment {
        clock::now().duration_since(self.origin)
    }
}

#[cfg(test)]
mod tests;
