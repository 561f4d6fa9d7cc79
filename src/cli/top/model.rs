//! What the dashboard knows and how it changes: one event in, the effects out. Pure: time, the cluster, files and the
//! terminal are only in the events that are given to it.

use std::collections::VecDeque;
use std::time::Duration;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use crate::control::health::ClusterState;
use crate::supervisor::events::Entry;
use crate::view::NodeId;

use super::super::exit::Exit;
use super::super::lines::{Line, Tone};
use super::super::survey::{NodeSurvey, Survey};

use super::act::{Act, Verb};

/// Values kept for the graphs; wider windows than this are rare.
const SAMPLES: usize = 512;

/// Lines that one key scrolls the log, and that are in sight at its beginning.
const PAGE: usize = 10;

/// The cluster as it was last looked at.
#[derive(Debug)]
pub struct Picture {
    /// Everything found.
    pub found: Survey,
    /// What is not as it should be, and why.
    pub notes: Vec<Line>,
    /// The end of the history, oldest first.
    pub history: Vec<Entry>,
}

/// What happens.
#[derive(Debug)]
pub enum Event {
    /// The cluster was looked at.
    Looked {
        /// Since the dashboard was opened.
        at: Duration,
        /// What was found.
        picture: Box<Picture>,
    },
    /// It could not be looked at.
    Blind {
        /// Why.
        why: String,
    },
    /// How long a linearizable read took; `None` where no node answered.
    Probed(Option<Duration>),
    /// The log of a node.
    Logged {
        /// Whose.
        node: NodeId,
        /// Its last lines.
        lines: Vec<String>,
    },
    /// A key was pressed.
    Key(KeyEvent),
    /// The window has another size.
    Resized,
    /// What was begun has ended.
    Ended {
        /// Which.
        number: u64,
        /// It did what was asked.
        done: bool,
        /// What it said.
        said: String,
    },
    /// The process is told to end.
    Told,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Show the log of this node from now on.
    Follow(NodeId),
    /// Run this, and tell when it has ended.
    Begin {
        /// To tell it from others.
        number: u64,
        /// What.
        act: Act,
    },
    /// Leave.
    Quit(Exit),
}

/// What keys mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Keys choose.
    Browsing,
    /// Yes or no to this.
    Asking(Act),
    /// The help covers the rest.
    Helping,
}

/// The last values of something, newest first. `None`: it could not be measured.
#[derive(Clone, Debug, Default)]
pub struct Series {
    values: VecDeque<Option<u64>>,
}

/// Everything that is shown.
#[derive(Debug)]
pub struct Model {
    /// The name of the cluster.
    pub cluster: String,
    /// The last look; `None` before the first.
    pub picture: Option<Picture>,
    /// Why there is no newer one.
    pub blind: Option<String>,
    /// The node that keys act on.
    pub selected: Option<NodeId>,
    /// What keys mean.
    pub mode: Mode,
    /// The log has all the room.
    pub log_is_full: bool,
    /// The history is shown.
    pub shows_events: bool,
    /// The selected node's last lines.
    pub log: Vec<String>,
    /// So many of them are below what is shown. Where there are any the log stands still.
    pub log_below: usize,
    /// Changes a second.
    pub writes: Series,
    /// Microseconds of a linearizable read.
    pub latency: Series,
    /// What was begun and has not ended.
    pub running: Vec<(u64, Act)>,
    /// What happened last to what was asked.
    pub message: Option<(Tone, String)>,
    /// When the revision was last read, and what it was.
    last_revision: Option<(Duration, i64)>,
    /// The last lines, also while the log stands still.
    newest_log: Vec<String>,
    next_number: u64,
}

impl Series {
    fn push(&mut self, value: Option<u64>) {
        self.values.push_front(value);
        self.values.truncate(SAMPLES);
    }

    /// Newest first.
    pub fn iter(&self) -> impl Iterator<Item = Option<u64>> + '_ {
        self.values.iter().copied()
    }

    /// The newest value.
    #[must_use]
    pub fn newest(&self) -> Option<u64> {
        self.values.front().copied().flatten()
    }
}

impl Model {
    /// Before anything was looked at.
    #[must_use]
    pub fn new(cluster: &str) -> Model {
        Model {
            cluster: cluster.to_owned(),
            picture: None,
            blind: None,
            selected: None,
            mode: Mode::Browsing,
            log_is_full: false,
            shows_events: true,
            log: Vec::new(),
            log_below: 0,
            writes: Series::default(),
            latency: Series::default(),
            running: Vec::new(),
            message: None,
            last_revision: None,
            newest_log: Vec::new(),
            next_number: 0,
        }
    }

    /// Takes an event in.
    pub fn update(&mut self, event: Event) -> Vec<Effect> {
        match event {
            Event::Looked { at, picture } => self.looked(at, *picture),
            Event::Blind { why } => {
                self.blind = Some(why);
                Vec::new()
            }
            Event::Probed(took) => {
                let microseconds = |took: Duration| u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
                self.latency.push(took.map(microseconds));
                Vec::new()
            }
            Event::Logged { node, lines } => {
                // Late lines of another node are not this one's.
                if self.selected.as_ref() == Some(&node) {
                    self.newest_log = lines;
                    self.follow_log();
                }
                Vec::new()
            }
            Event::Key(key) if key.kind == KeyEventKind::Release => Vec::new(),
            Event::Key(key) => self.key(key),
            Event::Resized => Vec::new(),
            Event::Ended { number, done, said } => {
                self.running.retain(|(other, _)| *other != number);
                self.message = Some((if done { Tone::Good } else { Tone::Bad }, said));
                Vec::new()
            }
            Event::Told => vec![Effect::Quit(Exit::Interrupted)],
        }
    }

    /// The selected node as it was last seen.
    #[must_use]
    pub fn selected_node(&self) -> Option<&NodeSurvey> {
        let picture = self.picture.as_ref()?;
        picture.found.nodes.iter().find(|one| Some(&one.node) == self.selected.as_ref())
    }

    fn looked(&mut self, at: Duration, picture: Picture) -> Vec<Effect> {
        let found = &picture.found;
        let leader = found.nodes.iter().find(|one| Some(&one.node) == found.sum.leader.as_ref());
        let revision = leader.and_then(|one| one.answer.as_ref()).map(|answer| answer.revision);
        match (self.last_revision, revision) {
            (Some((before, old)), Some(new)) if at > before => {
                let written = u64::try_from(new - old).unwrap_or(0); // put back from a copy: it shrank
                self.writes.push(Some((written as f64 / (at - before).as_secs_f64()).round() as u64));
            }
            // One look is no rate.
            (Some(_) | None, Some(_)) => {}
            (Some(_) | None, None) if found.sum.state == ClusterState::Stopped => {}
            (Some(_) | None, None) => self.writes.push(None),
        }
        self.last_revision = revision.map(|revision| (at, revision));
        let is_there = |node: &NodeId| found.nodes.iter().any(|one| one.node == *node);
        let first = found.nodes.first().map(|one| one.node.clone());
        self.blind = None;
        let kept = self.selected.clone().filter(is_there);
        self.picture = Some(picture);
        if kept.is_some() { Vec::new() } else { self.select(first) }
    }

    fn select(&mut self, node: Option<NodeId>) -> Vec<Effect> {
        if node == self.selected {
            return Vec::new();
        }
        self.newest_log.clear();
        self.log_below = 0;
        self.follow_log();
        self.selected.clone_from(&node);
        node.map(Effect::Follow).into_iter().collect()
    }

    fn key(&mut self, key: KeyEvent) -> Vec<Effect> {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => vec![Effect::Quit(Exit::Interrupted)],
                _ => Vec::new(),
            };
        }
        match std::mem::replace(&mut self.mode, Mode::Browsing) {
            Mode::Browsing => self.browse(key.code),
            // Any key closes it.
            Mode::Helping => Vec::new(),
            Mode::Asking(act) => match key.code {
                KeyCode::Char('y' | 'Y') => self.begin(act),
                // Only a clear yes is one.
                _ => {
                    self.message = Some((Tone::Dim, format!("{act}: not done")));
                    Vec::new()
                }
            },
        }
    }

    fn browse(&mut self, key: KeyCode) -> Vec<Effect> {
        match key {
            KeyCode::Esc if self.log_is_full => {
                self.log_is_full = false;
                Vec::new()
            }
            KeyCode::Char('q') | KeyCode::Esc => vec![Effect::Quit(Exit::Done)],
            KeyCode::Up | KeyCode::Char('k') => self.step(-1),
            KeyCode::Down | KeyCode::Char('j') => self.step(1),
            KeyCode::Char('l') => {
                self.log_is_full = !self.log_is_full;
                Vec::new()
            }
            KeyCode::PageUp => self.scroll(self.log_below.saturating_add(PAGE)),
            KeyCode::PageDown => self.scroll(self.log_below.saturating_sub(PAGE)),
            KeyCode::Home => self.scroll(usize::MAX),
            KeyCode::End => self.scroll(0),
            KeyCode::Char('e') => {
                self.shows_events = !self.shows_events;
                Vec::new()
            }
            KeyCode::Char('?') => {
                self.mode = Mode::Helping;
                Vec::new()
            }
            KeyCode::Char('x') => self.ask(Verb::Kill),
            KeyCode::Char('p') => self.ask(Verb::Pause),
            KeyCode::Char('r') => self.ask(Verb::Resume),
            KeyCode::Char('s') => self.ask(Verb::Start),
            KeyCode::Char('S') => self.ask(Verb::Stop),
            KeyCode::Char('a') => self.ask(Verb::AddFollower),
            _ => Vec::new(),
        }
    }

    /// Shows the log so far from its end; what is looked at does not move away under the eye.
    fn scroll(&mut self, below: usize) -> Vec<Effect> {
        self.log_below = below.min(self.log.len().saturating_sub(PAGE));
        self.follow_log();
        Vec::new()
    }

    fn follow_log(&mut self) {
        if self.log_below == 0 {
            self.log.clone_from(&self.newest_log);
        }
    }

    fn step(&mut self, by: isize) -> Vec<Effect> {
        let Some(picture) = &self.picture else { return Vec::new() };
        let nodes: Vec<NodeId> = picture.found.nodes.iter().map(|one| one.node.clone()).collect();
        let now = nodes.iter().position(|node| Some(node) == self.selected.as_ref()).unwrap_or(0);
        let next = now.saturating_add_signed(by).min(nodes.len().saturating_sub(1));
        self.select(nodes.get(next).cloned())
    }

    /// Asks before something is done; says at once what cannot be.
    fn ask(&mut self, verb: Verb) -> Vec<Effect> {
        let Some(one) = self.selected_node() else { return Vec::new() };
        let node = one.node.clone();
        let (runs, paused) = (one.runs(), one.is_paused());
        let nothing_runs =
            self.picture.as_ref().is_some_and(|picture| picture.found.sum.state == ClusterState::Stopped);
        let refused = match verb {
            Verb::Kill | Verb::Pause | Verb::Stop if !runs => {
                Some(format!("{node} does not run: s starts it"))
            }
            Verb::Pause if paused => Some(format!("{node} is paused: r resumes it")),
            Verb::Resume if !paused => Some(format!("{node} is not paused")),
            Verb::Start if paused => Some(format!("{node} is paused: r resumes it")),
            Verb::Start if runs => Some(format!("{node} runs")),
            Verb::Kill
            | Verb::Pause
            | Verb::Resume
            | Verb::Start
            | Verb::Stop
            | Verb::AddFollower
            | Verb::Up => None,
        };
        if let Some(why) = refused {
            self.message = Some((Tone::Warning, why));
            return Vec::new();
        }
        let act = match verb {
            // One node of a cluster that is down as a whole cannot serve: the others may be waited for.
            Verb::Start if nothing_runs => Act { verb: Verb::Up, node: None },
            Verb::AddFollower | Verb::Up => Act { verb, node: None },
            Verb::Kill | Verb::Pause | Verb::Resume | Verb::Start | Verb::Stop => {
                Act { verb, node: Some(node) }
            }
        };
        if self.running.iter().any(|(_, running)| *running == act) {
            self.message = Some((Tone::Warning, format!("{act} is under way")));
            return Vec::new();
        }
        self.mode = Mode::Asking(act);
        Vec::new()
    }

    fn begin(&mut self, act: Act) -> Vec<Effect> {
        let number = self.next_number;
        self.next_number += 1;
        self.message = None;
        self.running.push((number, act.clone()));
        vec![Effect::Begin { number, act }]
    }
}
