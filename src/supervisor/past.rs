//! What the history says of what an earlier supervisor had begun: which processes it had started and not seen end, who
//! was known to serve, which faults were open. A new supervisor compares it with what is so, tells what was left
//! untold, and tells nothing twice.

use std::collections::BTreeMap;

use crate::control::fault;

use super::events::{Entry, Event};
use super::record::LastExit;

/// The past of a cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Past {
    /// The newest view told.
    pub epoch: u64,
    /// Each node by its address.
    pub nodes: BTreeMap<String, NodePast>,
}

/// The past of one node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodePast {
    /// Its process, started or taken over and not told to have ended.
    pub open: Option<u32>,
    /// That process was told to be in sync.
    pub ready: bool,
    /// The node was given up, and not started since.
    pub gave_up: bool,
    /// How the last process ended.
    pub last_exit: Option<LastExit>,
    /// The fault told last: its id and phase.
    pub fault: Option<(String, fault::Phase)>,
}

impl NodePast {
    /// How far this fault was told to have come; `None` where nothing was told of it.
    #[must_use]
    pub fn told(&self, fault: &str) -> Option<fault::Phase> {
        self.fault.as_ref().filter(|(id, _)| id == fault).map(|(_, phase)| *phase)
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
            Event::Fault { fault, node, phase, .. } => {
                self.nodes.entry(node.clone()).or_default().fault = Some((fault.clone(), *phase));
            }
            Event::SupervisorStarted { .. }
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
        assert_eq!(of_node.fault, Some(("f".to_owned(), fault::Phase::Applied)));
        assert_eq!(past.node("h:2"), NodePast::default());
    }
}
