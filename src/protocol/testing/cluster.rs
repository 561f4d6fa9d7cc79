//! N machines with disks, the processes on them, and one register. Mechanics only: when a message arrives, a write
//! completes or a machine dies is decided by whoever drives this.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::invariants::{Claim, Seen, Violation};
use super::register::Cell;
use super::text;
use crate::protocol::rules::Rule;
use crate::protocol::{
    Config, Effect, Envelope, Found, Halt, Input, Mark, Message, Millis, Node, NotPrepared, Outline,
    RegisterUnreachable, Restored, Role, Run, Swapped, WriteId,
};
use crate::view::{Checksum, ClusterId, Epoch, Incarnation, Index, NodeId, View, ViewId};

/// An entry: the epoch that ordered it, and a payload that no other entry has (zero: the opening of an epoch).
pub type Entry = (Epoch, u64);

/// What all nodes of a cluster are told at birth.
#[derive(Clone, Debug)]
pub struct Settings {
    pub heartbeat_interval: Millis,
    pub failure_timeout: Millis,
    pub stall_timeout: Millis,
    pub handback_after: Option<Millis>,
    /// Process numbers are only 1 and 2 (R32).
    pub few_sessions: bool,
    /// The data of all nodes lies on the same disk.
    pub one_disk: bool,
    pub broken: Option<Rule>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            heartbeat_interval: 20,
            failure_timeout: 60,
            stall_timeout: 200,
            handback_after: None,
            few_sessions: false,
            one_disk: false,
            broken: None,
        }
    }
}

/// What survives a crash. Entries below `base` are there as applied state: kept whole, so that logs of any two nodes
/// can be compared from the first entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Disk {
    pub incarnation: Incarnation,
    pub promised: Epoch,
    pub view: Option<View>,
    pub base: Mark,
    pub log: Vec<Entry>,
    /// All up to here was applied; a restart finds any part of it.
    pub applied: Index,
}

impl Disk {
    pub fn new(incarnation: Incarnation) -> Disk {
        Disk {
            incarnation,
            promised: Epoch(0),
            view: None,
            base: Mark::default(),
            log: Vec::new(),
            applied: Index(0),
        }
    }

    /// A write has reached the disk.
    pub fn apply(&mut self, write: &Write) {
        match write {
            Write::Append { first, entries } => {
                assert_eq!(self.log.len() as u64 + 1, first.0, "writes reach the disk in order");
                self.log.extend(entries);
            }
            Write::Truncate { after } => self.log.truncate(after.0 as usize),
            Write::Persist { promised, view } => {
                self.promised = *promised;
                self.view.clone_from(view);
            }
            Write::Install { mark, state } => {
                self.log.clone_from(state);
                self.base = *mark;
                self.applied = *mark_index(mark);
            }
        }
    }
}

fn mark_index(mark: &Mark) -> &Index {
    &mark.index
}

/// A write on its way to the disk.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Write {
    Append { first: Index, entries: Vec<Entry> },
    Truncate { after: Index },
    Persist { promised: Epoch, view: Option<View> },
    Install { mark: Mark, state: Vec<Entry> },
}

/// An operation on the register that the process waits for.
#[derive(Clone, Debug)]
pub enum Call {
    Read {
        known: Option<ViewId>,
    },
    Prepare(View),
    Swap {
        replaces: Option<ViewId>,
        view: View,
        /// The caller was already leader of the view it wants to replace.
        by_leader: bool,
        caller: usize,
        incarnation: Incarnation,
    },
}

/// What the register did.
#[derive(Clone, Debug)]
pub enum Answer {
    Read(Result<Found, RegisterUnreachable>),
    Prepare(Result<(), NotPrepared>),
    Swap(Swapped),
}

/// A running process.
#[derive(Debug)]
pub struct Process {
    pub node: Node,
    /// Names the process to the test, and no other ever.
    pub session: u64,
    /// What it calls itself.
    pub said: u64,
    /// What the register has made ready for it.
    pub prepared: Option<View>,
    pub base: Mark,
    pub log: Vec<Entry>,
    pub writes: VecDeque<(WriteId, Write)>,
    /// Asked and not yet answered.
    pub call: Option<Call>,
    /// What was to be applied so far.
    pub announced: Index,
    /// To whom a snapshot is under way.
    pub sending: BTreeSet<NodeId>,
}

/// A place where a node lives.
#[derive(Debug)]
pub struct Machine {
    pub id: NodeId,
    pub disk: Disk,
    pub process: Option<Process>,
    /// Why the last process stopped of its own will.
    pub halt: Option<Halt>,
    /// May create the cluster.
    pub creates: bool,
}

/// A message under way, and the entries beside it.
#[derive(Clone, Debug)]
pub struct Flight {
    pub from: usize,
    pub to: usize,
    pub envelope: Envelope,
    pub entries: Vec<Entry>,
}

/// A snapshot under way: everything the sender had applied when it began.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub from: usize,
    pub from_session: u64,
    pub to: usize,
    pub to_session: Option<u64>,
    pub mark: Mark,
    pub state: Vec<Entry>,
}

/// A register that is out of use for the moment.
#[derive(Clone, Debug)]
pub struct Vault {
    pub cell: Cell,
    pub truth: Vec<Entry>,
    pub truth_of: Vec<Epoch>,
}

/// What travels beside an input.
enum Beside<'a> {
    Nothing,
    Entries { after: Index, entries: &'a [Entry] },
    State(&'a [Entry]),
}

/// The whole world of a test.
#[derive(Debug)]
pub struct Cluster {
    pub settings: Settings,
    pub now: Millis,
    pub machines: Vec<Machine>,
    /// Disks that were wiped: what they held when they went.
    pub ghosts: BTreeMap<Incarnation, Disk>,
    pub cell: Cell,
    /// Sent, and not yet taken up by the network.
    pub sent: Vec<Flight>,
    pub snapshots: Vec<Snapshot>,
    /// Every entry that was ever committed, in order: found out by watching.
    pub truth: Vec<Entry>,
    /// The epoch of the view under which each of them was first committed.
    pub truth_of: Vec<Epoch>,
    /// The register that an older copy of it has taken the place of, and what was committed by then or since under its
    /// views (R11).
    pub vault: Option<Vault>,
    pub seen: Seen,
    /// One line an event, where somebody wants to read them.
    pub trace: Option<Vec<String>>,
    next_session: u64,
    next_incarnation: u64,
    next_payload: u64,
}

impl Cluster {
    /// Machines named `a`, `b`, …; nothing runs yet.
    pub fn new(count: usize, settings: Settings) -> Cluster {
        let mut cluster = Cluster {
            settings,
            now: 1000,
            machines: Vec::new(),
            ghosts: BTreeMap::new(),
            cell: Cell::default(),
            sent: Vec::new(),
            snapshots: Vec::new(),
            truth: Vec::new(),
            truth_of: Vec::new(),
            vault: None,
            seen: Seen::default(),
            trace: None,
            next_session: 1,
            next_incarnation: 1,
            next_payload: 1,
        };
        for letter in ('a'..='z').take(count) {
            let id = NodeId::parse(&format!("{letter}:1")).expect("an address");
            let disk = cluster.new_disk();
            cluster.machines.push(Machine { id, disk, process: None, halt: None, creates: false });
        }
        cluster
    }

    fn new_disk(&mut self) -> Disk {
        self.next_incarnation += 1;
        Disk::new(Incarnation(self.next_incarnation - 1))
    }

    pub fn note(&mut self, text: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>5} {}", self.now, text()));
        }
    }

    pub fn name(&self, machine: usize) -> &str {
        text::name(&self.machines[machine].id)
    }

    /// The newest view that the register holds.
    pub fn register(&self) -> Option<&View> {
        self.cell.newest.as_ref()
    }

    pub fn machine_of(&self, node: &NodeId) -> usize {
        self.machines.iter().position(|machine| machine.id == *node).expect("a node of this cluster")
    }

    pub fn process(&self, machine: usize) -> Option<&Process> {
        self.machines[machine].process.as_ref()
    }

    /// The disk of an incarnation, also where it has been wiped since.
    pub fn disk_of(&self, incarnation: Incarnation) -> &Disk {
        let living = self.machines.iter().map(|machine| &machine.disk);
        living
            .chain(self.ghosts.values())
            .find(|disk| disk.incarnation == incarnation)
            .expect("every incarnation has or had a disk")
    }

    // --- life and death ---

    /// Starts a process on what the disk holds; of what was applied it finds all up to `commit`.
    pub fn start(&mut self, machine: usize, commit: Index) {
        self.note(|| format!("{} starts", (b'a' + machine as u8) as char));
        let session = self.next_session;
        self.next_session += 1;
        let mixed = session.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 63;
        let said = if self.settings.few_sessions { 1 + mixed } else { session };
        let place = &mut self.machines[machine];
        assert!(place.process.is_none(), "one process an address");
        let disk = &place.disk;
        let last = Index(disk.log.len() as u64);
        let commit = commit.min(disk.applied).min(last).max(disk.base.index);
        let config = Config {
            id: place.id.clone(),
            incarnation: disk.incarnation,
            heartbeat_interval: self.settings.heartbeat_interval,
            failure_timeout: self.settings.failure_timeout,
            stall_timeout: self.settings.stall_timeout,
            handback_after: self.settings.handback_after,
            disk: u64::from(self.settings.one_disk),
            hears_first: true,
            create: place.creates.then_some(ClusterId(7)),
        };
        let log = Outline::recovered(disk.base, outline_runs(&disk.log, disk.base.index), last, commit);
        let restored = Restored { promised: disk.promised, view: disk.view.clone(), log };
        let mut node = Node::restore(config, restored, self.now);
        node.broken = self.settings.broken;
        place.halt = None;
        place.process = Some(Process {
            node,
            session,
            said,
            prepared: None,
            base: disk.base,
            log: disk.log.clone(),
            writes: VecDeque::new(),
            call: None,
            announced: Index(0),
            sending: BTreeSet::new(),
        });
    }

    /// Kills a process. Of its pending writes the first `whole` survive, and `part` entries of the one after.
    pub fn crash(&mut self, machine: usize, whole: usize, part: usize) -> Result<(), Violation> {
        self.note(|| format!("{} is killed", (b'a' + machine as u8) as char));
        let place = &mut self.machines[machine];
        let Some(process) = place.process.take() else { return Ok(()) };
        for (number, (_, write)) in process.writes.iter().enumerate() {
            if number < whole {
                place.disk.apply(write);
            } else if number == whole
                && let Write::Append { first, entries } = write
            {
                let entries = entries[..part.min(entries.len())].to_vec();
                place.disk.apply(&Write::Append { first: *first, entries });
            }
        }
        self.check_disk(machine)
    }

    /// Replaces the disk of a machine on which nothing runs by an empty one.
    pub fn wipe(&mut self, machine: usize) {
        assert!(self.machines[machine].process.is_none(), "only a stopped node is wiped");
        self.note(|| format!("{} is wiped", (b'a' + machine as u8) as char));
        let disk = self.new_disk();
        let old = std::mem::replace(&mut self.machines[machine].disk, disk);
        self.ghosts.insert(old.incarnation, old);
    }

    // --- inputs ---

    pub fn input(&mut self, machine: usize, input: Input) -> Result<(), Violation> {
        self.step(machine, input, &Beside::Nothing)
    }

    pub fn deliver(&mut self, flight: Flight) -> Result<(), Violation> {
        let after = match &flight.envelope.message {
            Message::Append { previous, .. } => previous.index,
            Message::Appended { .. }
            | Message::Report { .. }
            | Message::Ping
            | Message::Stale
            | Message::Transfer => Index(0),
        };
        let beside = Beside::Entries { after, entries: &flight.entries };
        self.step(flight.to, Input::Received(flight.envelope), &beside)
    }

    /// A snapshot is addressed to a process; another one at that address does not get it.
    pub fn deliver_snapshot(&mut self, snapshot: &Snapshot) -> Result<(), Violation> {
        self.end_snapshot(snapshot);
        let receiver = self.process(snapshot.to).map(|process| process.session);
        if receiver.is_none() || receiver != snapshot.to_session {
            return Ok(());
        }
        self.step(snapshot.to, Input::SnapshotReceived(snapshot.mark), &Beside::State(&snapshot.state))
    }

    /// The sender knows that the stream has ended, one way or the other.
    pub fn end_snapshot(&mut self, snapshot: &Snapshot) {
        let to = self.machines[snapshot.to].id.clone();
        if let Some(sender) = &mut self.machines[snapshot.from].process
            && sender.session == snapshot.from_session
        {
            sender.sending.remove(&to);
        }
    }

    /// Completes the first `count` pending writes.
    pub fn persist(&mut self, machine: usize, count: usize) -> Result<(), Violation> {
        let place = &mut self.machines[machine];
        let Some(process) = &mut place.process else { return Ok(()) };
        let mut done = None;
        for (write, what) in process.writes.drain(..count.min(process.writes.len())) {
            place.disk.apply(&what);
            done = Some(write);
        }
        self.check_disk(machine)?;
        match done {
            Some(write) => self.input(machine, Input::Persisted(write)),
            None => Ok(()),
        }
    }

    /// The first promise that waits is kept, ahead of what came before it: room is missing for the log only (R34).
    pub fn keep_promise(&mut self, machine: usize) -> Result<(), Violation> {
        let place = &mut self.machines[machine];
        let Some(process) = &mut place.process else { return Ok(()) };
        let first = process.writes.iter().position(|(_, what)| matches!(what, Write::Persist { .. }));
        let Some((write, what)) = first.and_then(|first| process.writes.remove(first)) else { return Ok(()) };
        place.disk.apply(&what);
        self.check_disk(machine)?;
        self.input(machine, Input::PromiseKept(write))
    }

    /// Orders entries where the node takes them.
    pub fn propose(&mut self, machine: usize, count: u64) -> Result<bool, Violation> {
        let able = self.process(machine).is_some_and(|process| process.node.can_propose());
        if able {
            self.input(machine, Input::Proposed { count })?;
        }
        Ok(able)
    }

    /// Drops the log up to `index`, as far as it is applied and on the disk.
    pub fn drop_log(&mut self, machine: usize, index: Index) -> Result<(), Violation> {
        let place = &mut self.machines[machine];
        let Some(process) = &mut place.process else { return Ok(()) };
        let index = index.min(process.announced).min(process.node.log().durable()).min(place.disk.applied);
        if index <= process.base.index {
            return Ok(());
        }
        let base = Mark { index, epoch: process.log[index.0 as usize - 1].0 };
        process.base = base;
        place.disk.base = base;
        self.input(machine, Input::Dropped(index))
    }

    // --- the register ---

    /// Carries out an operation at the register, at once and whole.
    pub fn at_register(&mut self, call: &Call) -> Result<Answer, Violation> {
        match call {
            Call::Read { known } => Ok(Answer::Read(Ok(self.cell.found(*known)))),
            Call::Prepare(_) => Ok(Answer::Prepare(Ok(()))),
            Call::Swap { replaces, view, by_leader, caller, incarnation } => {
                if self.cell.would_take(*replaces) {
                    self.note(|| format!("register: {}", text::view(view)));
                    self.check_swap(view, *by_leader, *caller, *incarnation)?;
                    self.cell.put(view.clone());
                    self.meet_vault(view);
                    self.check_set()?;
                    Ok(Answer::Swap(Swapped::Won))
                } else {
                    Ok(Answer::Swap(Swapped::Lost(self.cell.found(*replaces))))
                }
            }
        }
    }

    pub fn answer(&mut self, machine: usize, answer: Answer) -> Result<(), Violation> {
        if let Some(process) = &mut self.machines[machine].process {
            if let (Some(Call::Prepare(view)), Answer::Prepare(Ok(()))) = (&process.call, &answer) {
                process.prepared = Some(view.clone());
            }
            process.call = None;
        }
        match answer {
            Answer::Read(answer) => self.input(machine, Input::RegisterAnswered(answer)),
            Answer::Prepare(outcome) => self.input(machine, Input::Prepared(outcome)),
            Answer::Swap(outcome) => self.input(machine, Input::SwapAnswered(outcome)),
        }
    }

    /// An older copy of the register takes its place, as a restored backup would. Nothing that was committed under a
    /// later view belongs to that chain.
    pub fn put_back(&mut self, copy: Cell) {
        self.note(|| format!("the register is put back to epoch {}", copy.epoch()));
        let epoch = copy.epoch();
        let kept = self.truth_of.iter().position(|of| *of > epoch).unwrap_or(self.truth.len());
        self.vault = Some(Vault {
            cell: self.cell.clone(),
            truth: self.truth.clone(),
            truth_of: self.truth_of.clone(),
        });
        self.truth.truncate(kept);
        self.truth_of.truncate(kept);
        self.seen.forget_after(epoch);
        self.cell = copy;
    }

    /// A swap that was on its way has made the very view again that stood there before.
    fn meet_vault(&mut self, view: &View) {
        let Some(vault) = self.vault.as_ref().filter(|vault| vault.cell.has(view.id())) else { return };
        let kept = vault.truth_of.iter().position(|of| *of > view.epoch).unwrap_or(vault.truth.len());
        self.truth = vault.truth[..kept].to_vec();
        self.truth_of = vault.truth_of[..kept].to_vec();
        if self.cell == vault.cell {
            self.vault = None;
        }
    }

    /// The views that a node knows, on its disk and in its process.
    fn known_views(&self, machine: usize) -> impl Iterator<Item = &View> {
        let place = &self.machines[machine];
        let running = place.process.as_ref().and_then(|process| process.node.view());
        place.disk.view.iter().chain(running)
    }

    /// Which register an operator chooses: the newer one where a node of its in-sync set knows it; where none does nothing
    /// was acknowledged under it. Also where nothing is left of the older one's set. And the machines that have gone on
    /// with the other one: what they hold is given up, and they have said that an operator must decide.
    pub fn decide(&self) -> Option<(bool, Vec<usize>)> {
        let vault = self.vault.as_ref()?;
        let knows = |machine: usize, cell: &Cell, other: &Cell| {
            self.known_views(machine).any(|view| cell.has(view.id()) && !other.has(view.id()))
        };
        let lives = |(node, own): (&NodeId, &Incarnation)| {
            let machine = self.machine_of(node);
            (self.machines[machine].disk.incarnation == *own).then_some(machine)
        };
        let mut holders = vault.cell.newest.iter().flat_map(|view| &view.in_sync).filter_map(lives);
        let mut counted = self.register().into_iter().flat_map(|view| &view.in_sync).filter_map(lives);
        let newer =
            holders.any(|machine| knows(machine, &vault.cell, &self.cell)) || counted.next().is_none();
        let (chosen, other) = if newer { (&vault.cell, &self.cell) } else { (&self.cell, &vault.cell) };
        let others = (0..self.machines.len()).filter(|machine| knows(*machine, other, chosen)).collect();
        Some((newer, others))
    }

    /// The operator's choice is carried out.
    pub fn put_right(&mut self, newer: bool) -> Result<(), Violation> {
        let Some(vault) = self.vault.take() else { return Ok(()) };
        self.note(|| format!("an operator puts the newer register back: {newer}"));
        if newer {
            self.seen.forget_after(vault.cell.epoch());
            self.truth_of = vault.truth_of;
            self.truth = vault.truth;
            self.cell = vault.cell;
        } else if !self.truth.starts_with(&vault.truth) {
            let (was, is) = (vault.truth.len(), self.truth.len());
            let detail = format!("{was} entries, of which the register's chain has {is}");
            return Err(Violation::new(Claim::NothingIsLostSilently, detail));
        }
        self.check_set()
    }

    // --- one step ---

    fn step(&mut self, machine: usize, input: Input, beside: &Beside<'_>) -> Result<(), Violation> {
        if self.trace.is_some() {
            let quiet = matches!(input, Input::Tick | Input::Flush);
            let line = format!("{} {}", self.name(machine), text::input(&input));
            if !quiet {
                self.note(|| line);
            }
        }
        let now = self.now;
        let Some(process) = &mut self.machines[machine].process else { return Ok(()) };
        let was_serving = process.node.is_serving();
        let effects = process.node.step(now, input);
        let by_leader = matches!(process.node.role(), Role::Leader(_));
        for effect in effects {
            if self.trace.is_some() {
                let line = format!("  {} {}", self.name(machine), text::effect(&effect));
                self.note(|| line);
            }
            self.carry_out(machine, effect, beside, by_leader)?;
        }
        self.check_node(machine, was_serving)
    }

    fn carry_out(
        &mut self,
        machine: usize,
        effect: Effect,
        beside: &Beside<'_>,
        by_leader: bool,
    ) -> Result<(), Violation> {
        let place = &mut self.machines[machine];
        let Some(process) = &mut place.process else { return Ok(()) };
        let fits = |first: Index, log: &[Entry]| {
            if first.0 == log.len() as u64 + 1 {
                return Ok(());
            }
            Err(Violation::new(Claim::EffectsFitTheLog, format!("entry {first} after {}", log.len())))
        };
        match effect {
            Effect::Append { write, epoch, first, last, opening } => {
                fits(first, &process.log)?;
                let mut entries = Vec::new();
                for _ in first.0..=last.0 {
                    let payload = if opening { 0 } else { self.next_payload };
                    self.next_payload += u64::from(!opening);
                    entries.push((epoch, payload));
                }
                process.log.extend(&entries);
                process.writes.push_back((write, Write::Append { first, entries }));
            }
            Effect::Accept { write, first, last } => {
                fits(first, &process.log)?;
                let Beside::Entries { after, entries } = beside else {
                    return Err(Violation::new(Claim::EffectsFitTheLog, "entries out of nowhere".to_owned()));
                };
                let from = (first.0 - after.0 - 1) as usize;
                let entries = entries[from..(last.0 - after.0) as usize].to_vec();
                process.log.extend(&entries);
                process.writes.push_back((write, Write::Append { first, entries }));
            }
            Effect::Truncate { write, after } => {
                process.log.truncate(after.0 as usize);
                process.writes.push_back((write, Write::Truncate { after }));
            }
            Effect::Persist { write, promised, view } => {
                process.writes.push_back((write, Write::Persist { promised, view }));
            }
            Effect::Install { write, mark } => {
                let Beside::State(state) = beside else {
                    return Err(Violation::new(
                        Claim::EffectsFitTheLog,
                        "a snapshot out of nowhere".to_owned(),
                    ));
                };
                process.log = state.to_vec();
                process.base = mark;
                process.announced = mark.index;
                process.writes.push_back((write, Write::Install { mark, state: state.to_vec() }));
                self.check_snapshot(machine)?;
            }
            Effect::Commit(to) => return self.committed(machine, to),
            Effect::Send { to, epoch, view, message } => self.send(machine, &to, (epoch, view), message),
            Effect::SendSnapshot(to) => self.start_snapshot(machine, &to),
            Effect::ReadRegister { known } => {
                assert!(process.call.is_none(), "one operation on the register at a time");
                process.call = Some(Call::Read { known });
            }
            Effect::Prepare(next) => {
                assert!(process.call.is_none(), "one operation on the register at a time");
                process.call = Some(Call::Prepare(next));
            }
            Effect::Swap { replaces, next: view } => {
                let heard = process.node.heard();
                let newest = heard < view.epoch || self.seen.only_consequences;
                if !newest {
                    let detail = format!("{} after having heard of {heard}", text::view(&view));
                    return Err(Violation::new(Claim::NothingIsPutOnAnOldRegister, detail));
                }
                assert!(process.call.is_none(), "one operation on the register at a time");
                let incarnation = place.disk.incarnation;
                process.call = Some(Call::Swap { replaces, view, by_leader, caller: machine, incarnation });
            }
            Effect::Adopted(_) | Effect::Serving | Effect::Fenced(_) | Effect::Warn(_) => {}
            Effect::Halt(reason) => {
                place.halt = Some(reason);
                place.process = None;
            }
        }
        Ok(())
    }

    fn send(&mut self, machine: usize, to: &NodeId, under: (Epoch, Checksum), message: Message) {
        let (epoch, view) = under;
        let place = &self.machines[machine];
        let Some(process) = &place.process else { return };
        let entries = match &message {
            Message::Append { previous, last, .. } => {
                process.log[previous.index.0 as usize..last.0 as usize].to_vec()
            }
            Message::Appended { .. }
            | Message::Report { .. }
            | Message::Ping
            | Message::Stale
            | Message::Transfer => Vec::new(),
        };
        let envelope = Envelope {
            from: place.id.clone(),
            incarnation: place.disk.incarnation,
            session: process.said,
            epoch,
            view,
            message,
        };
        let to = self.machine_of(to);
        self.sent.push(Flight { from: machine, to, envelope, entries });
    }

    fn start_snapshot(&mut self, machine: usize, node: &NodeId) {
        let to = self.machine_of(node);
        let to_session = self.process(to).map(|process| process.session);
        let Some(process) = &mut self.machines[machine].process else { return };
        let index = process.announced.max(process.base.index);
        if index == Index(0) || !process.sending.insert(node.clone()) {
            return;
        }
        let state = process.log[..index.0 as usize].to_vec();
        let mark = Mark { index, epoch: state[state.len() - 1].0 };
        let from_session = process.session;
        self.snapshots.push(Snapshot { from: machine, from_session, to, to_session, mark, state });
    }
}

/// The runs of a log after its base.
pub fn outline_runs(log: &[Entry], base: Index) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (number, (epoch, _)) in log.iter().enumerate().skip(base.0 as usize) {
        if runs.last().is_none_or(|run| run.epoch != *epoch) {
            runs.push(Run { epoch: *epoch, first: Index(number as u64 + 1) });
        }
    }
    runs
}
