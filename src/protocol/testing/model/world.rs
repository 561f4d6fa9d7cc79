//! The state of the model: real nodes, their disks, the links between them, one register, and what was acknowledged.
//! Mechanics only; which of the possible things happens next is the checker's to choose.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::super::cluster::{Disk, Entry, Write, outline_runs};
use super::super::invariants::{Claim, Violation};
use super::super::register::Cell;
use super::super::text;
use super::claims::check_damped;
use super::clock;
use super::{Bounds, Setup, Thing};
use crate::protocol::node::RegisterTask;
use crate::protocol::rules::Rule;
use crate::protocol::testing::spread::letter;
use crate::protocol::{
    Config, Effect, Envelope, Found, Input, Message, Millis, Node, Outline, RegisterUnreachable, Restored,
    Role, Swapped, WriteId,
};
use crate::view::{Checksum, ClusterId, Epoch, Incarnation, Index, NodeId, View, ViewId};

/// The whole world. What can be shared between two states is shared: a step copies one place, not all.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub places: Vec<Arc<Place>>,
    /// What is on the way from `from` to `to`, in order, at `from * places + to`.
    pub links: Vec<Vec<Arc<Flight>>>,
    /// Messages that have left their connection and arrive at any time, or never.
    pub strays: Vec<Arc<Flight>>,
    /// Swaps whose callers were told nothing: they happen at any time, or never.
    pub late: Vec<Arc<Attempt>>,
    pub register: Arc<Cell>,
    /// An older copy that stands in its place.
    pub put_back: Option<Arc<Cell>>,
    /// At which epoch the register was when that happened.
    pub epoch_when_put_back: Option<Epoch>,
    /// What an operator may put back, oldest first; none where that is not to happen.
    pub copies: Option<Vec<Arc<Cell>>>,
    /// Every entry that was ever acknowledged, in order.
    pub truth: Vec<Entry>,
    /// How much was acknowledged when an epoch came into the register.
    pub acknowledged: Vec<(Epoch, usize)>,
    /// Which process led which epoch.
    pub leaders: Vec<(Epoch, usize, u64)>,
    /// What is slow now.
    pub stalled: Vec<Thing>,
    /// What may still go wrong.
    pub left: Bounds,
    pub next_payload: u64,
    /// Leave out the claims about how a rule is followed, and see what comes of breaking it.
    pub only_consequences: bool,
    /// The claim that does not hold here; nothing follows such a state.
    pub violation: Option<Box<Violation>>,
    pub notes: Notes,
}

/// Lines for a reader; no part of the state.
#[derive(Clone, Debug, Default)]
pub struct Notes(pub Option<Vec<String>>);

impl PartialEq for Notes {
    fn eq(&self, _: &Notes) -> bool {
        true
    }
}

impl Eq for Notes {}

impl Hash for Notes {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

/// A place where a node lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub id: NodeId,
    pub disk: Disk,
    pub process: Option<Process>,
    /// The process that runs here, or last ran.
    pub session: u64,
    /// Of all the above; zero while it changes.
    fingerprint: u64,
}

impl Hash for Place {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.fingerprint);
    }
}

/// A running process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Process {
    pub node: Node,
    pub log: Vec<Entry>,
    pub writes: VecDeque<(WriteId, Write)>,
    pub call: Option<Call>,
    /// What was to be applied so far.
    pub announced: Index,
}

/// An operation on the register that a process waits for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// Asked; nothing has happened yet.
    Read(Option<ViewId>),
    Prepare,
    Swap(Arc<Attempt>),
    /// It has happened, and the answer is on its way.
    Found(Arc<Found>),
    Swapped(Swapped),
}

/// A swap and who wants it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Attempt {
    pub replaces: Option<ViewId>,
    pub view: View,
    /// The caller already led the view that it wants to replace.
    pub by_leader: bool,
    pub caller: usize,
    pub incarnation: Incarnation,
}

/// A message under way, and the entries beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flight {
    pub from: usize,
    pub to: usize,
    pub envelope: Envelope,
    pub entries: Vec<Entry>,
    fingerprint: u64,
}

impl Hash for Flight {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.fingerprint);
    }
}

fn fingerprint(of: &impl Hash) -> u64 {
    let mut hasher = Folded(0x9e37_79b9_7f4a_7c15);
    of.hash(&mut hasher);
    hasher.finish().max(1)
}

/// Multiplies 64 bits by 64 and folds the 128 that come out: half of a walk's time went into the standard hasher.
struct Folded(u64);

impl Hasher for Folded {
    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, word: u8) {
        self.write_u64(u64::from(word));
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn write_u64(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word.wrapping_add(0xd6e8_feb8_6659_fd93))
            * u128::from(0xa076_1d64_78bd_642f_u64 ^ self.0.rotate_left(23) | 1);
        self.0 = (product as u64) ^ ((product >> 64) as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl World {
    /// Places named `a`, `b`, …; nothing runs yet and nothing is limited.
    pub fn new(setup: &Setup) -> World {
        let places = (0..setup.nodes).map(|number| {
            let id = NodeId::parse(&format!("{}:1", letter(number))).expect("an address");
            let disk = Disk::new(Incarnation(number as u64 + 1));
            Arc::new(Place { id, disk, process: None, session: 0, fingerprint: 0 })
        });
        let mut world = World {
            places: places.collect(),
            links: vec![Vec::new(); setup.nodes * setup.nodes],
            strays: Vec::new(),
            late: Vec::new(),
            register: Arc::default(),
            put_back: None,
            epoch_when_put_back: None,
            copies: (setup.bounds.rollbacks > 0).then(Vec::new),
            truth: Vec::new(),
            acknowledged: Vec::new(),
            leaders: Vec::new(),
            stalled: Vec::new(),
            left: Bounds::NONE,
            next_payload: 1,
            only_consequences: setup.only_consequences,
            violation: None,
            notes: Notes::default(),
        };
        world.seal();
        world
    }

    pub fn note(&mut self, text: impl FnOnce() -> String) {
        if let Notes(Some(lines)) = &mut self.notes {
            lines.push(text());
        }
    }

    pub fn process(&self, place: usize) -> Option<&Process> {
        self.places[place].process.as_ref()
    }

    pub fn place(&mut self, place: usize) -> &mut Place {
        let place = Arc::make_mut(&mut self.places[place]);
        place.fingerprint = 0;
        place
    }

    pub fn place_of(&self, node: &NodeId) -> usize {
        self.places.iter().position(|place| place.id == *node).expect("a node of this cluster")
    }

    pub fn link(&self, from: usize, to: usize) -> usize {
        from * self.places.len() + to
    }

    /// An action is over: whatever it touched gets its one form and its fingerprint.
    pub fn seal(&mut self) {
        for place in self.places.iter_mut().filter(|place| place.fingerprint == 0) {
            let place = Arc::make_mut(place);
            if let Some(process) = &mut place.process {
                clock::settle(process);
            }
            place.fingerprint = fingerprint(&(&place.disk, &place.process, place.session));
        }
        for number in 0..self.links.len() {
            let mut link = std::mem::take(&mut self.links[number]);
            link.retain(|flight| !self.is_noise(flight));
            self.links[number] = link;
        }
        let stands = self.register.epoch();
        self.late.retain(|attempt| attempt.view.epoch > stands);
        self.late.sort_by_key(|attempt| (attempt.view.epoch, attempt.caller, fingerprint(attempt)));
        self.strays.sort_by_key(|flight| flight.fingerprint);
    }

    /// True where the arrival of this message changes nothing, now or later: its epoch is behind the receiver's, whose
    /// refusal would tell the sender nothing new either. To leave it out is to leave out a step that goes nowhere.
    fn is_noise(&self, flight: &Flight) -> bool {
        let Some(receiver) = self.process(flight.to) else { return false };
        let (epoch, session) = (receiver.node.epoch(), flight.envelope.session);
        let heard = receiver.node.peers.get(&flight.envelope.from).is_some_and(|peer| {
            peer.dead
                .as_ref()
                .is_some_and(|dead| dead.session == Some(session) && dead.stragglers_until > clock::NOW)
                || (peer.dead.is_none() && peer.session == Some(session) && peer.last_heard == clock::NOW)
        });
        if !heard || receiver.node.broken == Some(Rule::ObeyStaleEpoch) {
            return false;
        }
        let refused = flight.envelope.epoch < epoch
            && self.process(flight.from).is_none_or(|sender| sender.node.epoch() >= epoch);
        refused || (flight.envelope.message == Message::Stale && flight.envelope.epoch <= epoch)
    }

    // --- life and death ---

    /// Starts a process on what the disk holds; of what was applied it finds nothing, or all where `knows`.
    pub fn start(&mut self, at: usize, knows: bool, setup: &Setup) -> Result<(), Violation> {
        let peers = self.places.len();
        for other in 0..peers {
            // A new connection: what was left in the old one is lost.
            let link = self.link(at, other);
            self.links[link].clear();
        }
        let place = self.place(at);
        place.session += 1;
        let last = Index(place.disk.log.len() as u64);
        let commit = if knows { place.disk.applied.min(last) } else { Index(0) };
        let config = Config {
            id: place.id.clone(),
            incarnation: place.disk.incarnation,
            heartbeat_interval: clock::HEARTBEAT,
            failure_timeout: clock::TIMEOUT,
            // Disks are slow here as often as they like, but never taken for hung.
            stall_timeout: Millis::MAX,
            handback_after: None,
            disk: 0,
            hears_first: false,
            create: (at == 0).then_some(ClusterId(7)),
        };
        let log = Outline::recovered(place.disk.base, outline_runs(&place.disk.log, Index(0)), last, commit);
        let restored = Restored { promised: place.disk.promised, view: place.disk.view.clone(), log };
        let mut node = Node::restore(config, restored, clock::NOW);
        node.broken = setup.broken;
        place.process = Some(Process {
            node,
            log: place.disk.log.clone(),
            writes: VecDeque::new(),
            call: None,
            announced: Index(0),
        });
        self.tick(at, 0)
    }

    /// Kills a process. Of its pending writes the first `whole` survive, and `part` entries of the one after.
    pub fn crash(&mut self, at: usize, whole: usize, part: usize) -> Result<(), Violation> {
        for from in 0..self.places.len() {
            let link = self.link(from, at);
            self.links[link].clear();
        }
        let place = self.place(at);
        let Some(process) = place.process.take() else { return Ok(()) };
        for (number, (_, write)) in process.writes.iter().enumerate() {
            if number < whole {
                place.disk.apply(write);
            } else if number == whole
                && part > 0
                && let Write::Append { first, entries } = write
            {
                let entries = entries[..part].to_vec();
                place.disk.apply(&Write::Append { first: *first, entries });
            }
        }
        if let Some(Call::Swap(attempt)) = process.call {
            self.late.push(attempt);
        }
        Ok(())
    }

    // --- inputs ---

    /// Messages that are read together are one batch.
    pub fn deliver(&mut self, flights: &[Arc<Flight>]) -> Result<(), Violation> {
        flights.iter().try_for_each(|flight| self.receive(flight))?;
        flights.first().map_or(Ok(()), |flight| self.flush(flight.to))
    }

    fn receive(&mut self, flight: &Flight) -> Result<(), Violation> {
        let after = match &flight.envelope.message {
            Message::Append { previous, .. } => previous.index,
            Message::Appended { .. }
            | Message::Report { .. }
            | Message::Ping
            | Message::Stale
            | Message::Transfer => Index(0),
        };
        let input = Input::Received(flight.envelope.clone());
        self.step(flight.to, 0, input, (after, &flight.entries))
    }

    /// The first `count` pending writes are on the disk.
    pub fn persist(&mut self, at: usize, count: usize) -> Result<(), Violation> {
        let place = self.place(at);
        let Some(process) = &mut place.process else { return Ok(()) };
        let mut done = None;
        for (write, what) in process.writes.drain(..count) {
            place.disk.apply(&what);
            done = Some(write);
        }
        let Some(write) = done else { return Ok(()) };
        self.input(at, Input::Persisted(write))
    }

    /// An input that ends its batch.
    pub fn input(&mut self, at: usize, input: Input) -> Result<(), Violation> {
        self.step(at, 0, input, (Index(0), &[]))?;
        self.flush(at)
    }

    pub fn tick(&mut self, at: usize, after: Millis) -> Result<(), Violation> {
        self.step(at, after, Input::Tick, (Index(0), &[]))?;
        self.flush(at)
    }

    fn flush(&mut self, at: usize) -> Result<(), Violation> {
        self.step(at, 0, Input::Flush, (Index(0), &[]))
    }

    /// A heartbeat interval passes in which all that live are heard, but for those in `silent`.
    pub fn beat(&mut self, at: usize, silent: &[usize]) -> Result<(), Violation> {
        for other in 0..self.places.len() {
            if other != at && !silent.contains(&other) {
                self.hear(at, other)?;
            }
        }
        self.tick(at, clock::HEARTBEAT)
    }

    /// A sign of life that tells nothing else. A follower's is an answer to the leader's heartbeat.
    fn hear(&mut self, at: usize, from: usize) -> Result<(), Violation> {
        let (Some(receiver), Some(sender)) = (self.process(at), self.process(from)) else { return Ok(()) };
        let answers = matches!(receiver.node.role(), Role::Leader(_))
            && matches!(sender.node.role(), Role::Follower(_))
            && receiver.node.epoch() == sender.node.epoch();
        let heard = Some(receiver.node.now);
        let message = if answers {
            Message::Appended { durable: Index(0), full: false, heard, disk: 0 }
        } else {
            Message::Ping
        };
        let epoch = sender.node.epoch().min(receiver.node.epoch());
        let envelope = self.envelope(from, (epoch, Checksum(0)), message);
        self.step(at, 0, Input::Received(envelope), (Index(0), &[]))
    }

    /// Who could hear of a newer epoch by a sign of life, and from whom. Those that know the newest tell it.
    pub fn news(&self) -> Option<(usize, usize)> {
        let running = || (0..self.places.len()).filter_map(|at| Some((at, &self.process(at)?.node)));
        let newest = running().map(|(_, node)| node.epoch()).max()?;
        let (from, _) = running().find(|(_, node)| node.epoch() == newest)?;
        running()
            .find(|(at, node)| {
                let idle = node.register == RegisterTask::Idle;
                let empty = self.links[self.link(from, *at)].is_empty();
                node.epoch() < newest && idle && empty
            })
            .map(|(to, _)| (from, to))
    }

    pub fn tell_news(&mut self, from: usize, to: usize) -> Result<(), Violation> {
        let Some(sender) = self.process(from) else { return Ok(()) };
        let envelope = self.envelope(from, (sender.node.epoch(), Checksum(0)), Message::Ping);
        self.input(to, Input::Received(envelope))
    }

    fn envelope(&self, from: usize, (epoch, view): (Epoch, Checksum), message: Message) -> Envelope {
        let place = &self.places[from];
        Envelope {
            from: place.id.clone(),
            incarnation: place.disk.incarnation,
            session: place.session,
            epoch,
            view,
            message,
        }
    }

    // --- the register ---

    /// The register carries out what this process asked for.
    pub fn carry_out_call(&mut self, at: usize) -> Result<(), Violation> {
        let call = self.place(at).process.as_mut().and_then(|process| process.call.take());
        let answer = match call {
            Some(Call::Read(known)) => Call::Found(Arc::new(self.shown().found(known))),
            Some(Call::Swap(attempt)) => Call::Swapped(self.swap(&attempt)?),
            Some(Call::Found(_) | Call::Swapped(_) | Call::Prepare) | None => panic!("nothing was asked"),
        };
        if let Some(process) = &mut self.place(at).process {
            process.call = Some(answer);
        }
        Ok(())
    }

    /// The register has room for every view here.
    pub fn prepare(&mut self, at: usize) -> Result<(), Violation> {
        if let Some(process) = &mut self.place(at).process {
            process.call = None;
        }
        self.input(at, Input::Prepared(Ok(())))
    }

    /// What stands where the register should.
    pub fn shown(&self) -> &Cell {
        self.put_back.as_ref().unwrap_or(&self.register)
    }

    /// Compare and swap.
    pub fn swap(&mut self, attempt: &Attempt) -> Result<Swapped, Violation> {
        if !self.shown().would_take(attempt.replaces) {
            return Ok(Swapped::Lost(self.shown().found(attempt.replaces)));
        }
        self.note(|| format!("  register: {}", text::view(&attempt.view)));
        if let Some(copy) = &self.put_back {
            let (was, is) = (self.register.epoch(), copy.epoch());
            let detail = format!("{} at epoch {is} of {was}", letter(attempt.caller));
            return Err(Violation::new(Claim::NothingIsPutOnAnOldRegister, detail));
        }
        self.check_swap(attempt)?;
        Arc::make_mut(&mut self.register).put(attempt.view.clone());
        if let Some(copies) = &mut self.copies {
            copies.push(self.register.clone());
        }
        self.acknowledged.push((attempt.view.epoch, self.truth.len()));
        Ok(Swapped::Won)
    }

    /// The newest copy of the register of which everybody can tell that it is old: all run, each knows a later view or has
    /// heard of a later epoch, and does not forget it where processes can be killed. One that knows less and hears of
    /// none could not tell; nor can a swap that is on its way be called back.
    pub fn copy_to_put_back(&self) -> Option<&Arc<Cell>> {
        let knows = |at: usize| {
            let process = self.process(at)?;
            let on_disk = self.places[at].disk.view.as_ref().map_or(Epoch(0), |view| view.epoch);
            let heard = process.node.heard();
            Some(if self.left.crashes > 0 { heard.min(on_disk) } else { heard })
        };
        let known: Option<Vec<Epoch>> = (0..self.places.len()).map(knows).collect();
        let least = known?.into_iter().min()?;
        let under_way = (0..self.places.len()).filter_map(|at| match &self.process(at)?.call {
            Some(Call::Swap(attempt)) => Some(attempt),
            Some(Call::Read(_) | Call::Prepare | Call::Found(_) | Call::Swapped(_)) | None => None,
        });
        let attempts: Vec<&Arc<Attempt>> = under_way.chain(&self.late).collect();
        let takes_none = |copy: &Cell| !attempts.iter().any(|attempt| copy.would_take(attempt.replaces));
        self.copies.iter().flatten().rfind(|copy| copy.epoch() < least && takes_none(copy))
    }

    /// An older copy takes the register's place.
    pub fn put_back(&mut self) {
        self.put_back = self.copy_to_put_back().cloned();
        self.epoch_when_put_back = Some(self.register.epoch());
    }

    /// The answer arrives.
    pub fn answer_call(&mut self, at: usize) -> Result<(), Violation> {
        let call = self.place(at).process.as_mut().and_then(|process| process.call.take());
        match call {
            Some(Call::Found(found)) => self.input(at, Input::RegisterAnswered(Ok(Found::clone(&found)))),
            Some(Call::Swapped(outcome)) => self.input(at, Input::SwapAnswered(outcome)),
            Some(Call::Read(_) | Call::Prepare | Call::Swap(_)) | None => panic!("nothing was answered"),
        }
    }

    /// The process gives up waiting. A swap may happen all the same, now or later (R2).
    pub fn lose_call(&mut self, at: usize) -> Result<(), Violation> {
        let call = self.place(at).process.as_mut().and_then(|process| process.call.take());
        match call {
            Some(Call::Read(_)) => self.input(at, Input::RegisterAnswered(Err(RegisterUnreachable))),
            Some(Call::Swap(attempt)) => {
                self.late.push(attempt);
                self.input(at, Input::SwapAnswered(Swapped::Unknown))
            }
            Some(Call::Found(_) | Call::Swapped(_) | Call::Prepare) | None => panic!("nothing was asked"),
        }
    }

    // --- one step ---

    fn step(
        &mut self,
        at: usize,
        after: Millis,
        input: Input,
        beside: (Index, &[Entry]),
    ) -> Result<(), Violation> {
        if self.notes.0.is_some() && !matches!(input, Input::Tick | Input::Flush) {
            let line = format!("  {} {}", letter(at), text::input(&input));
            self.note(|| line);
        }
        let Some(process) = &mut self.place(at).process else { return Ok(()) };
        let was_serving = process.node.is_serving();
        let now = process.node.now + after;
        let effects = process.node.step(now, input);
        let by_leader = matches!(process.node.role(), Role::Leader(_));
        for effect in effects {
            if self.notes.0.is_some() {
                let line = format!("    {} {}", letter(at), text::effect(&effect));
                self.note(|| line);
            }
            self.carry_out(at, effect, beside, by_leader)?;
        }
        self.check_node(at, was_serving)
    }

    fn carry_out(
        &mut self,
        at: usize,
        effect: Effect,
        beside: (Index, &[Entry]),
        by_leader: bool,
    ) -> Result<(), Violation> {
        let mut payload = self.next_payload;
        let place = self.place(at);
        let incarnation = place.disk.incarnation;
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
                    entries.push((epoch, if opening { 0 } else { payload }));
                    payload += u64::from(!opening);
                }
                process.log.extend(&entries);
                process.writes.push_back((write, Write::Append { first, entries }));
                self.next_payload = payload;
            }
            Effect::Accept { write, first, last } => {
                fits(first, &process.log)?;
                let (after, entries) = beside;
                let taken = entries.get((first.0 - after.0 - 1) as usize..(last.0 - after.0) as usize);
                let Some(taken) = taken else {
                    return Err(Violation::new(Claim::EffectsFitTheLog, "entries from nowhere".to_owned()));
                };
                process.log.extend(taken);
                process.writes.push_back((write, Write::Append { first, entries: taken.to_vec() }));
            }
            Effect::Truncate { write, after } => {
                process.log.truncate(after.0 as usize);
                process.writes.push_back((write, Write::Truncate { after }));
            }
            Effect::Persist { write, promised, view } => {
                process.writes.push_back((write, Write::Persist { promised, view }));
            }
            Effect::Commit(to) => return self.committed(at, to),
            Effect::Send { to, epoch, view, message } => self.send(at, &to, (epoch, view), message),
            Effect::ReadRegister { known } => {
                assert!(process.call.is_none(), "one operation on the register at a time");
                process.call = Some(Call::Read(known));
            }
            // Answered at once; what the register may refuse is in the seeded simulation.
            Effect::Prepare(_) => {
                assert!(process.call.is_none(), "one operation on the register at a time");
                process.call = Some(Call::Prepare);
            }
            Effect::Swap { replaces, next: view } => {
                check_damped(&process.node, &view)?;
                assert!(process.call.is_none(), "one operation on the register at a time");
                let attempt = Attempt { replaces, view, by_leader, caller: at, incarnation };
                process.call = Some(Call::Swap(Arc::new(attempt)));
            }
            Effect::Adopted(_) | Effect::Serving | Effect::Fenced(_) | Effect::Warn(_) => {}
            Effect::Halt(reason) => {
                let detail = format!("{} halts: {reason:?}", letter(at));
                return Err(Violation::new(Claim::NobodyStopsUnasked, detail));
            }
            Effect::Install { .. } | Effect::SendSnapshot(_) => {
                return Err(Violation::new(Claim::EffectsFitTheLog, "no log was ever dropped".to_owned()));
            }
        }
        Ok(())
    }

    /// Signs of life are left out: whether a node is heard is the checker's to choose. So is whatever says nothing
    /// that the message before it on the same connection does not say.
    fn send(&mut self, at: usize, to: &NodeId, under: (Epoch, Checksum), message: Message) {
        let to = self.place_of(to);
        let (place, receiver) = (&self.places[at], &self.places[to]);
        let (Some(process), Some(_)) = (&place.process, &receiver.process) else { return };
        let entries = match &message {
            Message::Append { previous, last, .. } => {
                process.log[previous.index.0 as usize..last.0 as usize].to_vec()
            }
            Message::Ping => return,
            Message::Appended { .. } | Message::Report { .. } | Message::Stale | Message::Transfer => {
                Vec::new()
            }
        };
        let envelope = self.envelope(at, under, message);
        let fingerprint = fingerprint(&(at, to, &envelope, &entries));
        let link = self.link(at, to);
        if self.links[link].last().is_some_and(|last| last.fingerprint == fingerprint) {
            return;
        }
        self.links[link].push(Arc::new(Flight { from: at, to, envelope, entries, fingerprint }));
    }
}
