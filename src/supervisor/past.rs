//! What the history says of what an earlier supervisor had begun: which processes it had started and not seen end, who
//! was known to serve, which faults were open. A new supervisor compares it with what is so, tells what was left
//! untold, and tells nothing twice.
//!
//! The history is kept in several files of which the oldest is given up one day. So each but the first begins with the
//! past as the files before it tell it, in a line that is no event: the newest file alone says all that is asked here.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::control::fault;

use super::events::{Entry, Event};
use super::record::LastExit;

/// The past of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Past {
    /// The newest view told.
    pub epoch: u64,
    /// Each node by its address.
    pub nodes: BTreeMap<String, NodePast>,
}

/// The past of one node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodePast {
    /// Its process, started or taken over and not told to have ended.
    pub open: Option<u32>,
    /// That process was told to be in sync.
    pub ready: bool,
    /// The node was given up, and not started since.
    pub gave_up: bool,
    /// How the last process ended.
    pub last_exit: Option<LastExit>,
    /// The fault told last.
    pub fault: Option<PastFault>,
}

/// A fault as it was told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastFault {
    /// Which order.
    pub id: String,
    /// What was done.
    pub kind: fault::Kind,
    /// To which process.
    pub pid: u32,
    /// How far it had come.
    pub phase: fault::Phase,
}

/// The first line of a file that has a predecessor.
#[derive(Serialize, Deserialize)]
struct Carried {
    carried: Past,
}

/// What that line begins with, and no event.
const CARRIED: &[u8] = b"{\"carried\":";

impl NodePast {
    /// How far this fault was told to have come; `None` where nothing was told of it.
    #[must_use]
    pub fn told(&self, fault: &str) -> Option<fault::Phase> {
        self.fault.as_ref().filter(|told| told.id == fault).map(|told| told.phase)
    }

    /// The fault that was told last, where its end was not.
    #[must_use]
    pub fn open_fault(&self) -> Option<&PastFault> {
        self.fault.as_ref().filter(|told| !told.phase.is_over())
    }
}

impl Past {
    /// The past as this history tells it.
    #[must_use]
    pub fn of(history: &[Entry]) -> Past {
        let mut past = Past::default();
        for entry in history {
            past.take(entry);
        }
        past
    }

    /// The past as the newest file of the history tells it. A line that is none is left out.
    ///
    /// # Errors
    /// What the system said, except that no history is an empty one.
    pub fn read(path: &Path) -> io::Result<Past> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Past::default()),
            Err(error) => return Err(error),
        };
        let mut past = Past::default();
        for line in text.split(|byte| *byte == b'\n') {
            if line.starts_with(CARRIED) {
                if let Ok(Carried { carried }) = serde_json::from_slice(line) {
                    past = carried;
                }
            } else if let Ok(entry) = serde_json::from_slice(line) {
                past.take(&entry);
            }
        }
        Ok(past)
    }

    /// The line by which a new file begins with this past.
    ///
    /// # Errors
    /// None that can happen: it can be written as JSON.
    pub fn carried(self) -> io::Result<Vec<u8>> {
        let mut line = serde_json::to_vec(&Carried { carried: self })?;
        line.push(b'\n');
        Ok(line)
    }

    /// A node's past; an empty one where nothing is told of it.
    #[must_use]
    pub fn node(&self, node: &str) -> NodePast {
        self.nodes.get(node).cloned().unwrap_or_default()
    }

    fn take(&mut self, entry: &Entry) {
        match &entry.event {
            Event::Started { node, pid } => {
                let of_node = self.nodes.entry(node.clone()).or_default();
                (of_node.open, of_node.ready, of_node.gave_up) = (Some(*pid), false, false);
            }
            Event::Adopted { node, pid } => {
                let of_node = self.nodes.entry(node.clone()).or_default();
                // The same process goes on: what is known of it stays known.
                of_node.ready &= of_node.open == Some(*pid);
                (of_node.open, of_node.gave_up) = (Some(*pid), false);
            }
            Event::Ready { node, .. } => self.nodes.entry(node.clone()).or_default().ready = true,
            Event::Exited { node, code, signal, cause, trouble, words, .. } => {
                let of_node = self.nodes.entry(node.clone()).or_default();
                (of_node.open, of_node.ready) = (None, false);
                of_node.last_exit = Some(LastExit {
                    code: *code,
                    signal: *signal,
                    cause: *cause,
                    at: entry.at.clone(),
                    trouble: *trouble,
                    words: words.clone(),
                });
            }
            Event::GaveUp { node, .. } => self.nodes.entry(node.clone()).or_default().gave_up = true,
            Event::View { epoch, .. } => self.epoch = self.epoch.max(*epoch),
            Event::Fault { fault, kind, node, pid, phase, .. } => {
                self.nodes.entry(node.clone()).or_default().fault =
                    Some(PastFault { id: fault.clone(), kind: *kind, pid: *pid, phase: *phase });
            }
            Event::NotStarted { .. }
            | Event::SupervisorStarted { .. }
            | Event::SupervisorEnded { .. }
            | Event::Command { .. }
            | Event::Verdict { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::cause::Cause;

    fn history(events: Vec<Event>) -> Vec<Entry> {
        events.into_iter().map(|event| Entry { at: "t".to_owned(), id: String::new(), event }).collect()
    }

    fn node() -> String {
        "h:1".to_owned()
    }

    fn exited(pid: u32) -> Event {
        Event::Exited {
            node: node(),
            pid,
            code: Some(1),
            signal: None,
            cause: Cause::Crash,
            trouble: None,
            words: None,
            restart_in_ms: None,
        }
    }

    #[test]
    fn a_process_is_open_from_its_start_to_its_end() {
        let started = Event::Started { node: node(), pid: 7 };
        let ready = Event::Ready { node: node(), after_ms: None };
        let past = Past::of(&history(vec![started.clone(), ready.clone()])).node("h:1");
        assert_eq!((past.open, past.ready, past.last_exit.is_some()), (Some(7), true, false));
        let past = Past::of(&history(vec![started.clone(), ready.clone(), exited(7)])).node("h:1");
        assert_eq!((past.open, past.ready, past.last_exit.unwrap().code), (None, false, Some(1)));
        let again = Event::Started { node: node(), pid: 8 };
        let past = Past::of(&history(vec![started, ready, exited(7), again])).node("h:1");
        assert_eq!((past.open, past.ready), (Some(8), false));
    }

    #[test]
    fn a_process_that_is_taken_over_stays_known_to_serve_and_another_one_does_not() {
        let events = |pid| {
            vec![
                Event::Started { node: node(), pid: 7 },
                Event::Ready { node: node(), after_ms: Some(3) },
                Event::Adopted { node: node(), pid },
            ]
        };
        assert!(Past::of(&history(events(7))).node("h:1").ready);
        assert!(!Past::of(&history(events(8))).node("h:1").ready);
    }

    #[test]
    fn the_newest_view_and_the_last_phase_of_a_fault_are_remembered() {
        let view = |epoch| Event::View { epoch, leader: node(), in_sync: vec![node()] };
        let fault = |phase| Event::Fault {
            fault: "f".to_owned(),
            kind: fault::Kind::Pause,
            node: node(),
            pid: 7,
            phase,
            for_ms: None,
            why: None,
        };
        let gave_up = Event::GaveUp { node: node(), reason: "r".to_owned() };
        let past = Past::of(&history(vec![
            view(3),
            fault(fault::Phase::Intent),
            fault(fault::Phase::Applied),
            gave_up,
        ]));
        assert_eq!(past.epoch, 3);
        let of_node = past.node("h:1");
        assert!(of_node.gave_up);
        assert_eq!(of_node.told("f"), Some(fault::Phase::Applied));
        assert_eq!((of_node.told("g"), of_node.open_fault().map(|open| open.pid)), (None, Some(7)));
        assert_eq!(past.node("h:2"), NodePast::default());
    }

    #[test]
    fn the_past_that_a_file_begins_with_is_read_with_what_follows() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.jsonl");
        assert_eq!(Past::read(&path).unwrap(), Past::default());
        let before = Past::of(&history(vec![
            Event::Started { node: node(), pid: 7 },
            Event::View { epoch: 3, leader: node(), in_sync: vec![node()] },
        ]));
        let mut text = before.clone().carried().unwrap();
        std::fs::write(&path, &text).unwrap();
        assert_eq!(Past::read(&path).unwrap(), before);
        text.extend_from_slice(b"half a li\n");
        serde_json::to_writer(&mut text, &history(vec![exited(7)])[0]).unwrap();
        std::fs::write(&path, &text).unwrap();
        let past = Past::read(&path).unwrap();
        assert_eq!((past.epoch, past.node("h:1").open), (3, None));
    }
}
