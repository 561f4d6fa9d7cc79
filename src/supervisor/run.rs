//! The supervisor's loop. One task owns everything: it waits for a message, hands it to the life it concerns, and
//! does what that answers. Connections (`connections`), watchers and questions to nodes run beside it and only send
//! it messages; what it does before the first message, with what an earlier one left, is in `inherit`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{broadcast, mpsc, oneshot};

use tokio_util::task::AbortOnDropHandle;

use crate::clock;
use crate::config::{self, Config, ConfigError};
use crate::control::cause::Ended;
use crate::control::life::{Action, Answer, Event, Moment, State};
use crate::control::plan;
use crate::proto::replcluster::DescribeResponse;
use crate::telemetry::stamp;
use crate::view::NodeId;

use super::adopt;
use super::ask::{self, Asker};
use super::events::{self, Entry, EventLog};
use super::layout::Layout;
use super::lock::{Lock, LockError};
use super::os;
use super::record::{self, LastExit, Record};
use super::slot::{Process, Slot};
use super::socket;
use super::spawn::{self, Job, SpawnError, Spawner};
use super::wire::{Outcome, OutcomeKind, Reply, Request};

mod connections;
mod inherit;

/// How often nodes that serve are asked how they are.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// How often nodes that start are asked.
const EAGER_LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// How long a node may take to answer before it is asked again.
const LOOK_PATIENCE: Duration = Duration::from_secs(1);
/// How often the supervisor looks at its own directory and at what the nodes use.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(1);
/// Messages that wait for the loop. Full: whoever sends waits, which slows only commands and questions down.
const INBOX: usize = 256;
/// Events a follower may lag behind before it misses some; it then reads the file instead.
const FOLLOWERS_LAG: usize = 1024;

/// What a supervisor needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// The program to run a node with; `None` looks for it.
    pub server: Option<PathBuf>,
    /// Ends at a SIGINT or SIGTERM by itself. In the foreground whoever runs it handles these.
    pub handles_signals: bool,
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
    /// A file or socket of the cluster's directory fails.
    #[error("cannot use {}: {cause}\ncheck that the directory may be written to and has space left", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
}

/// What reaches the loop.
enum Message {
    /// Somebody asks.
    Asked { request: Request, reply: oneshot::Sender<Reply> },
    /// A process ended.
    Ended { node: NodeId, number: u64, ended: Ended },
    /// A node answered, or did not.
    Looked { node: NodeId, number: u64, answer: Option<Box<DescribeResponse>> },
}

/// Why the loop ends.
enum End {
    Asked,
    Signalled(&'static str),
    DirectoryGone,
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
    followers: broadcast::Sender<Entry>,
    inbox: mpsc::Sender<Message>,
    /// The origin of every `Moment`.
    origin: Instant,
    /// Numbers the processes, so that late news of one cannot be taken for another's.
    next_number: u64,
    /// The newest view that went into the history.
    epoch: u64,
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
    let (inbox, messages) = mpsc::channel(INBOX);
    let mut supervisor = Supervisor {
        config_path: options.config,
        asker: Asker::new(&config.nodes),
        nodes: BTreeMap::new(),
        config,
        layout,
        lock,
        server,
        spawner,
        history,
        followers: broadcast::channel(FOLLOWERS_LAG).0,
        inbox,
        origin: clock::now(),
        next_number: 1,
        epoch: 0,
    };
    supervisor.tell(events::Event::SupervisorStarted { pid: std::process::id() });
    supervisor.take_over(&record).await;
    let reason = match supervisor.serve(listener, messages, options.handles_signals).await? {
        End::Asked => "asked to".to_owned(),
        End::Signalled(name) => format!("got {name}"),
        End::DirectoryGone => {
            tracing::warn!(directory = %root.display(), "the cluster's directory is gone: ending; no node is ended");
            return Ok(());
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
        listener: UnixListener,
        mut messages: mpsc::Receiver<Message>,
        handles_signals: bool,
    ) -> Result<End, SupervisorError> {
        let failed = |cause| SupervisorError::File { path: self.layout.socket(), cause };
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let connections =
            tokio::spawn(connections::accept(listener, self.inbox.clone(), self.followers.clone()));
        let _connections = AbortOnDropHandle::new(connections);
        let mut next_look = clock::now();
        let mut next_housekeeping = clock::now();
        let end = loop {
            let due = self.nodes.values().filter_map(Slot::due).min().map(|moment| self.origin + moment);
            let wake = [Some(next_look), Some(next_housekeeping), due].into_iter().flatten().min();
            tokio::select! {
                Some(message) = messages.recv() => {
                    if let Some(end) = self.handle(message) {
                        break end;
                    }
                }
                _ = terminate.recv(), if handles_signals => break End::Signalled("SIGTERM"),
                _ = interrupt.recv(), if handles_signals => break End::Signalled("SIGINT"),
                () = tokio::time::sleep_until(wake.unwrap_or(next_look).into()) => {}
            }
            self.tick();
            let now = clock::now();
            if now >= next_look {
                self.look();
                next_look = now + self.look_interval();
            } else {
                next_look = next_look.min(now + self.look_interval());
            }
            if now >= next_housekeeping {
                if !self.lock.is_in_place() {
                    break End::DirectoryGone;
                }
                self.measure(now);
                next_housekeeping = now + HOUSEKEEPING_INTERVAL;
            }
        };
        Ok(end)
    }

    fn handle(&mut self, message: Message) -> Option<End> {
        match message {
            Message::Asked { request: Request::Quit, reply } => {
                let _ = reply.send(Reply::Done);
                return Some(End::Asked);
            }
            Message::Asked { request, reply } => {
                let answer = self.answer(request);
                // Whoever asked may have gone away; what was asked is done all the same.
                let _ = reply.send(answer);
            }
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
                self.each(&nodes, |_| Event::Start)
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
            Request::Kill { nodes, signal } => self.each(&nodes, |slot| {
                slot.wanted = false;
                Event::Kill { signal }
            }),
            Request::Pause { nodes, for_ms } => {
                let until = for_ms.map(|milliseconds| self.moment() + Duration::from_millis(milliseconds));
                self.each(&nodes, |slot| {
                    slot.resume_at = until;
                    Event::Pause
                })
            }
            Request::Resume { nodes } => self.each(&nodes, |slot| {
                slot.resume_at = None;
                Event::Resume
            }),
            Request::Reload => self.reload(),
            Request::Note { event } => {
                self.tell(event);
                Reply::Done
            }
            Request::Follow | Request::Quit => Reply::Done,
        }
    }

    fn want(&mut self, nodes: &[String], wanted: bool) {
        for (_, slot) in
            self.nodes.iter_mut().filter(|(node, _)| nodes.iter().any(|name| name == node.as_str()))
        {
            slot.wanted = wanted;
        }
    }

    fn each(&mut self, names: &[String], mut event: impl FnMut(&mut Slot) -> Event) -> Reply {
        let mut outcomes = Vec::with_capacity(names.len());
        for name in names {
            let known = self.nodes.keys().find(|node| node.as_str() == name).cloned();
            let result = match known {
                None => OutcomeKind::Denied { reason: "it is not a node of this cluster".to_owned() },
                Some(node) => {
                    let event = self.nodes.get_mut(&node).map(&mut event);
                    event.map_or(OutcomeKind::Already, |event| self.step(&node, event))
                }
            };
            let slot = self.nodes.iter().find(|(node, _)| node.as_str() == name).map(|(_, slot)| slot);
            let pid = slot.and_then(|slot| slot.process.as_ref()).map(|process| process.handle.id.pid);
            outcomes.push(Outcome { node: name.clone(), result, pid });
        }
        self.remember();
        Reply::Outcomes { outcomes }
    }

    /// Gives an event to a node's life and does what it answers.
    fn step(&mut self, node: &NodeId, event: Event) -> OutcomeKind {
        let (policy, now) = (self.config.supervisor.restart, self.moment());
        let Some(slot) = self.nodes.get_mut(node) else { return OutcomeKind::Already };
        let answer = slot.life.step(policy, now, event);
        if let Some(process) = &mut slot.process
            && matches!(slot.life.state, State::Stopping { .. })
        {
            process.asked_to_end = true;
        }
        match answer {
            Answer::Ignored => OutcomeKind::Already,
            Answer::Denied(denial) => OutcomeKind::Denied { reason: denial.to_string() },
            Answer::Accepted(actions) => {
                for action in actions {
                    self.act(node, action);
                }
                OutcomeKind::Accepted
            }
        }
    }

    fn act(&mut self, node: &NodeId, action: Action) {
        match action {
            Action::Spawn => match self.spawn(node) {
                Ok(()) => {
                    self.step(node, Event::Spawned);
                }
                Err(error) => {
                    tracing::error!(%node, %error, "cannot start");
                    self.tell(events::Event::GaveUp { node: node.to_string(), reason: error.to_string() });
                    self.step(node, Event::SpawnFailed);
                }
            },
            // SIGTERM rather than a call: it needs no connection, and the node leaves the in-sync set all the same.
            Action::Terminate => self.signal(node, nix::libc::SIGTERM),
            Action::Signal(signal) => self.signal(node, signal),
            Action::GaveUp => {
                let exit = self.nodes.get(node).and_then(|slot| slot.last_exit.clone());
                if let Some(exit) = exit {
                    let ended = Ended { code: exit.code, signal: exit.signal };
                    let reason = format!("restarts do not help: last {ended}");
                    self.tell(events::Event::GaveUp { node: node.to_string(), reason });
                }
            }
        }
    }

    fn signal(&mut self, node: &NodeId, signal: i32) {
        let Some(process) = self.nodes.get(node).and_then(|slot| slot.process.as_ref()) else { return };
        if let Err(error) = process.handle.signal(signal) {
            tracing::error!(%node, pid = process.handle.id.pid, signal, %error, "cannot signal");
        }
    }

    fn spawn(&mut self, node: &NodeId) -> Result<(), SpawnError> {
        let wanted: Vec<NodeId> =
            self.nodes.iter().filter(|(_, slot)| slot.wanted).map(|(node, _)| node.clone()).collect();
        let register = self.layout.register();
        let system = |what: PathBuf| move |cause| SpawnError::System { what, cause };
        std::fs::create_dir_all(register.join("nodes")).map_err(system(register.clone()))?;
        std::fs::create_dir_all(self.layout.data(node)).map_err(system(self.layout.data(node)))?;
        let has_view = self.layout.has_view().map_err(system(register.clone()))?;
        let join = plan::join(node, &wanted, &self.config.nodes, has_view);
        let nonce = format!("{:032x}", rand::random::<u128>());
        let memory_kills_before = os::memory_kills();
        let job = Job {
            program: self.server.clone(),
            arguments: spawn::server_arguments(&self.config, &self.layout, node, join.as_deref(), &nonce),
            output: self.layout.stderr(node),
        };
        let started = self.spawner.spawn(job)?;
        let pid = started.handle.id.pid;
        let process = Process {
            handle: started.handle,
            number: self.next_number,
            nonce,
            since: clock::now(),
            adopted: false,
            asked_to_end: false,
            memory_kills_before,
            usage: None,
            cpu_percent: None,
        };
        let (inbox, number, name) = (self.inbox.clone(), self.next_number, node.clone());
        self.next_number += 1;
        spawn::watch_child(started.child, move |ended| {
            // The loop is gone only when the supervisor ends.
            let _ = inbox.blocking_send(Message::Ended { node: name, number, ended });
        })
        .map_err(system(self.server.clone()))?;
        if let Some(slot) = self.nodes.get_mut(node) {
            slot.process = Some(process);
            slot.spawns += 1;
            slot.asking = false;
        }
        self.remember();
        self.tell(events::Event::Started { node: node.to_string(), pid });
        Ok(())
    }

    fn ended(&mut self, node: &NodeId, number: u64, ended: Ended) {
        let Some(slot) = self.nodes.get_mut(node) else { return };
        let Some(process) = slot.process.take_if(|process| process.number == number) else { return };
        let cause = process.attribute(ended);
        slot.resume_at = None;
        slot.last_exit =
            Some(LastExit { code: ended.code, signal: ended.signal, cause, at: stamp(clock::wall()) });
        self.step(node, Event::Exited(ended));
        let now = self.moment();
        let restart_in_ms = self.nodes.get(node).and_then(|slot| slot.record(now).restart_in_ms);
        self.tell(events::Event::Exited {
            node: node.to_string(),
            pid: process.handle.id.pid,
            code: ended.code,
            signal: ended.signal,
            cause,
            restart_in_ms,
        });
        self.remember();
    }

    /// Lets time pass in every life.
    fn tick(&mut self) {
        let now = self.moment();
        let due: Vec<NodeId> = self
            .nodes
            .iter()
            .filter(|(_, slot)| slot.due().is_some_and(|due| due <= now))
            .map(|(node, _)| node.clone())
            .collect();
        for node in &due {
            let thaw = self
                .nodes
                .get_mut(node)
                .is_some_and(|slot| slot.resume_at.take_if(|at| *at <= now).is_some());
            if thaw {
                self.step(node, Event::Resume);
            }
            self.step(node, Event::Tick);
        }
        if !due.is_empty() {
            self.remember();
        }
    }

    fn look_interval(&self) -> Duration {
        let starting = self.nodes.values().any(|slot| slot.life.state == State::Starting);
        if starting { EAGER_LOOK_INTERVAL } else { LOOK_INTERVAL }
    }

    /// Asks every node that runs how it is; the answers arrive as messages.
    fn look(&mut self) {
        for (node, slot) in &mut self.nodes {
            let Some(process) = &slot.process else { continue };
            if slot.asking || matches!(slot.life.state, State::Paused { .. }) {
                continue;
            }
            slot.asking = true;
            let (asker, inbox) = (self.asker.clone(), self.inbox.clone());
            let (node, number) = (node.clone(), process.number);
            // Ends within its patience, and with the runtime at the latest.
            tokio::spawn(async move {
                let answer = asker.describe(&node, LOOK_PATIENCE).await.ok().map(Box::new);
                let _ = inbox.send(Message::Looked { node, number, answer }).await;
            });
        }
    }

    fn looked(&mut self, node: &NodeId, number: u64, answer: Option<Box<DescribeResponse>>) {
        let Some(slot) = self.nodes.get_mut(node) else { return };
        let Some(process) = slot.process.as_ref().filter(|process| process.number == number) else { return };
        slot.asking = false;
        let Some(answer) = answer else { return };
        if !adopt::matches(&answer, &process.handle.id, &process.nonce) {
            return;
        }
        slot.epoch = answer.epoch;
        let after = process.since.elapsed();
        let after_ms = (!process.adopted).then(|| u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
        if ask::is_in_sync(&answer) && slot.life.state == State::Starting {
            self.step(node, Event::Ready);
            self.tell(events::Event::Ready { node: node.to_string(), after_ms });
            self.remember();
        }
        if answer.epoch > self.epoch && !answer.leader.is_empty() {
            self.epoch = answer.epoch;
            self.tell(events::Event::View {
                epoch: answer.epoch,
                leader: answer.leader.clone(),
                in_sync: answer.in_sync.clone(),
            });
        }
    }

    fn measure(&mut self, now: Instant) {
        for process in self.nodes.values_mut().filter_map(|slot| slot.process.as_mut()) {
            process.measure(now);
        }
    }

    fn reload(&mut self) -> Reply {
        let config = match config::load(&self.config_path) {
            Ok(config) => config,
            Err(error) => return Reply::Refused { reason: error.to_string() },
        };
        if Layout::new(&config) != self.layout || config.name != self.config.name {
            let reason = "`name` or `data_dir` changed: that is another cluster\n\
                          change it back, or end this one first with `replcluster down`";
            return Reply::Refused { reason: reason.to_owned() };
        }
        for node in &config.nodes {
            self.nodes.entry(node.clone()).or_default();
        }
        self.nodes.retain(|node, slot| config.nodes.contains(node) || slot.process.is_some());
        let nodes: Vec<NodeId> = self.nodes.keys().cloned().collect();
        self.asker = Asker::new(&nodes);
        self.config = config;
        self.remember();
        Reply::Done
    }

    fn record(&self) -> Record {
        let now = self.moment();
        let nodes = self.nodes.iter().map(|(node, slot)| (node.to_string(), slot.record(now))).collect();
        Record { supervisor: os::identify(std::process::id()).ok(), nodes, ..Record::default() }
    }

    fn remember(&self) {
        if let Err(error) = record::save(&self.layout.state(), &self.record()) {
            tracing::error!(file = %self.layout.state().display(), %error, "cannot remember the processes");
        }
    }

    fn tell(&mut self, event: events::Event) {
        match self.history.append(event) {
            // Nobody follows: nobody is told.
            Ok(entry) => drop(self.followers.send(entry)),
            Err(error) => tracing::error!(%error, "cannot write the history"),
        }
    }

    fn moment(&self) -> Moment {
        clock::now().duration_since(self.origin)
    }
}

#[cfg(test)]
mod tests;
