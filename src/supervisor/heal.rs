//! Faults whose supervisor died and that nobody supervises: any command, also one that only looks, ends those whose end
//! is due. A fault that was held and has time left stays; a supervisor that comes will end it.

use std::io;

use crate::control::fault::{self, Duty};
use crate::view::NodeId;

use super::adopt;
use super::events::{Event, EventLog};
use super::layout::Layout;
use super::lock::Lock;
use super::os::{self, Handle, ProcessId};
use super::past::{Past, PastFault};
use super::record::{self, Fault, Record};

/// A process that was thawed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Healed {
    /// The node.
    pub node: String,
    /// Its process.
    pub pid: u32,
    /// The order was never confirmed; else its time was over.
    pub unconfirmed: bool,
}

/// Ends what is due, where no supervisor runs to do so; and undoes this order too, however far it has come, whose giver
/// was not told that it stands. `None` where a supervisor runs, or another command does the same. Costs one look at a
/// small file where nothing is to be done.
///
/// # Errors
/// What the system said.
pub fn heal(layout: &Layout, order: Option<&str>) -> io::Result<Option<Vec<Healed>>> {
    let seen = record::load(&layout.state())?;
    if due(layout, &seen, order).is_empty() && order.is_none() && frozen(layout, &seen).is_empty() {
        return Ok(Some(Vec::new()));
    }
    // Whoever holds the lock is a supervisor and does this itself, or another command that does it now.
    let Ok(_lock) = Lock::take_briefly(&layout.lock()) else { return Ok(None) };
    let mut record = record::load(&layout.state())?;
    // It may have been told to be over by a supervisor that died before it could forget it.
    let past = Past::read(&layout.events())?;
    let mut history = EventLog::open(&layout.events())?;
    let mut healed = Vec::new();
    let forgotten = frozen(layout, &record);
    for (node, fault, phase) in due(layout, &record, order) {
        let process = process_of(layout, &record, &node).filter(|id| id.pid == fault.pid);
        if let Some(handle) = process.map(|id| Handle::open(&id)).transpose()?.flatten() {
            handle.signal(crate::control::life::SIGCONT)?;
        }
        let Some(phase) = phase else { continue };
        let of_past = past.node(&node);
        let told = of_past.told(&fault.id);
        // What this one took the place of, where nobody came to say that it is over.
        if let Some(former) = of_past.open_fault().filter(|open| open.id != fault.id) {
            history.append(vec![forgotten_is_over(&node, former)])?;
        }
        if let Some(of_node) = record.nodes.get_mut(&node) {
            of_node.fault = None;
        }
        if told.is_some_and(fault::Phase::is_over) {
            continue;
        }
        history.append(vec![Event::Fault {
            fault: fault.id.clone(),
            kind: fault.kind,
            node: node.clone(),
            pid: fault.pid,
            phase,
            for_ms: None,
            why: Some(why(phase).to_owned()),
        }])?;
        healed.push(Healed { node, pid: fault.pid, unconfirmed: phase == fault::Phase::Abandoned });
    }
    for (node, id) in forgotten {
        let of_past = past.node(&node);
        let Some(open) = of_past.open_fault().filter(|open| open.pid == id.pid) else { continue };
        let Some(handle) = Handle::open(&id)?.filter(|_| open.kind == fault::Kind::Pause) else { continue };
        handle.signal(crate::control::life::SIGCONT)?;
        history.append(vec![forgotten_is_over(&node, open)])?;
        healed.push(Healed { pid: open.pid, node, unconfirmed: true });
    }
    record::save(&layout.state(), &record)?;
    Ok(Some(healed))
}

/// The end of a fault that the history knows as open and nobody remembers.
pub(super) fn forgotten_is_over(node: &str, open: &PastFault) -> Event {
    Event::Fault {
        fault: open.id.clone(),
        kind: open.kind,
        node: node.to_owned(),
        pid: open.pid,
        phase: fault::Phase::Healed,
        for_ms: None,
        why: Some("its supervisor died before it could remember it or say that it was over".to_owned()),
    }
}

/// Processes that are frozen without a fault that is remembered: by somebody else, or by a supervisor that could not
/// write down what it did.
fn frozen(layout: &Layout, record: &Record) -> Vec<(String, ProcessId)> {
    let without = record.nodes.iter().filter(|(_, of_node)| of_node.fault.is_none());
    without
        .filter_map(|(node, of_node)| Some((node, of_node.process.as_ref()?)))
        .filter(|(_, id)| os::stat(id.pid).is_ok_and(|stat| stat.is_frozen()))
        .filter_map(|(node, id)| {
            let living = process_of(layout, record, node)?;
            (living == *id).then(|| (node.clone(), living))
        })
        .collect()
}

/// Why a fault ended in this phase that no command ended.
pub(super) fn why(phase: fault::Phase) -> &'static str {
    match phase {
        fault::Phase::Healed => "its time was over, or somebody else ended it",
        fault::Phase::Abandoned
        | fault::Phase::Intent
        | fault::Phase::Applied
        | fault::Phase::Seen
        | fault::Phase::Held => "its supervisor died in the middle",
    }
}

/// The living process of a node, and of this cluster: a copied directory remembers those of another.
fn process_of(layout: &Layout, record: &Record, node: &str) -> Option<ProcessId> {
    adopt::living(layout, record, &NodeId::parse(node).ok()?)
}

/// The faults whose process is to be thawed, each with the phase it is over in; without one it goes on.
fn due(layout: &Layout, record: &Record, order: Option<&str>) -> Vec<(String, Fault, Option<fault::Phase>)> {
    let now = os::milliseconds_since_boot();
    record
        .nodes
        .iter()
        .filter_map(|(node, of_node)| {
            let fault = of_node.fault.clone()?;
            let process = process_of(layout, record, node);
            // A kill of a node that was frozen ends its pause, also where nothing came of it: nobody else would thaw it.
            let frozen = || {
                let pid =
                    process.as_ref().filter(|id| fault.kind == fault::Kind::Kill && id.pid == fault.pid)?;
                os::stat(pid.pid).ok().filter(os::Stat::is_frozen)
            };
            match fault.duty(process.as_ref(), now) {
                Duty::Keep if order == Some(fault.id.as_str()) => {
                    Some((node.clone(), fault, Some(fault::Phase::Abandoned)))
                }
                Duty::Thaw(phase) => Some((node.clone(), fault, Some(phase))),
                Duty::End(phase) if frozen().is_some() => Some((node.clone(), fault, Some(phase))),
                Duty::Ending if frozen().is_some() => Some((node.clone(), fault, None)),
                Duty::Keep | Duty::End(_) | Duty::Dead | Duty::Ending => None,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::process::Command;

    use super::super::record::NodeRecord;
    use super::*;

    /// A frozen process with a fault in this phase, and what healing made of it.
    fn healing(phase: fault::Phase, until_ms: Option<u64>) -> (Vec<Healed>, bool, usize) {
        healing_of((fault::Kind::Pause, phase), until_ms, true)
    }

    /// The same, where the fault is remembered, or where only the history knows of it.
    fn healing_of(
        (kind, phase): (fault::Kind, fault::Phase),
        until_ms: Option<u64>,
        is_remembered: bool,
    ) -> (Vec<Healed>, bool, usize) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cluster.toml");
        let config =
            crate::config::parse(&path, "nodes = [\"127.0.0.1:1\"]", &crate::config::resolve).unwrap();
        let layout = Layout::new(&config);
        std::fs::create_dir_all(layout.root()).unwrap();
        let output = super::super::spawn::append(&layout.stderr(&config.nodes[0])).unwrap();
        let mut child = Command::new("sleep").arg("1000").stdout(output).spawn().unwrap();
        let id = os::identify(child.id()).unwrap();
        let handle = Handle::open(&id).unwrap().unwrap();
        handle.signal(19).unwrap();
        while !os::is_frozen_whole(id.pid) {
            std::thread::yield_now();
        }
        let fault = Fault { id: "f".to_owned(), kind, pid: id.pid, phase, until_ms };
        if !is_remembered {
            let event = Event::Fault {
                fault: fault.id.clone(),
                kind: fault.kind,
                node: "127.0.0.1:1".to_owned(),
                pid: fault.pid,
                phase,
                for_ms: None,
                why: None,
            };
            EventLog::open(&layout.events()).unwrap().append(vec![event]).unwrap();
        }
        let fault = is_remembered.then_some(fault);
        let of_node = NodeRecord { process: Some(id.clone()), fault, ..NodeRecord::default() };
        let nodes = BTreeMap::from([("127.0.0.1:1".to_owned(), of_node)]);
        record::save(&layout.state(), &Record { nodes, ..Record::default() }).unwrap();
        let healed = heal(&layout, None).unwrap().unwrap();
        assert_eq!(heal(&layout, None).unwrap(), Some(vec![]), "what was healed is not healed again");
        let frozen = os::stat(id.pid).unwrap().is_frozen();
        let told = super::super::events::read(&layout.events()).unwrap().len();
        handle.signal(9).unwrap();
        child.wait().unwrap();
        (healed, frozen, told)
    }

    #[test]
    fn a_pause_that_nobody_confirmed_is_undone_and_told() {
        for phase in [fault::Phase::Intent, fault::Phase::Applied, fault::Phase::Seen] {
            let (healed, frozen, told) = healing(phase, None);
            assert!(healed[0].unconfirmed && !frozen, "{phase:?}");
            assert_eq!(told, 1);
        }
    }

    #[test]
    fn a_pause_whose_time_is_over_is_undone_and_a_wanted_one_stays() {
        let (healed, frozen, _) = healing(fault::Phase::Held, Some(1));
        assert!(!healed[0].unconfirmed && !frozen);
        for until in [None, Some(u64::MAX)] {
            let (healed, frozen, told) = healing(fault::Phase::Held, until);
            assert_eq!((healed.len(), frozen, told), (0, true, 0));
        }
    }

    #[test]
    fn a_kill_of_a_frozen_node_thaws_it_also_where_nothing_came_of_it() {
        let of = |phase| healing_of((fault::Kind::Kill, phase), None, true);
        let (healed, frozen, told) = of(fault::Phase::Intent);
        assert!(healed[0].unconfirmed && !frozen);
        assert_eq!(told, 1);
        let (healed, frozen, told) = of(fault::Phase::Applied);
        assert_eq!((healed.len(), frozen, told), (0, false, 0), "it ends, and is told by whoever sees that");
    }

    #[test]
    fn a_pause_that_only_the_history_knows_is_undone_and_one_that_nobody_ordered_is_left() {
        for phase in [fault::Phase::Seen, fault::Phase::Held] {
            let (healed, frozen, told) = healing_of((fault::Kind::Pause, phase), None, false);
            assert_eq!((healed.len(), frozen, told), (1, false, 2));
        }
        let (healed, frozen, _) = healing_of((fault::Kind::Pause, fault::Phase::Healed), None, false);
        assert_eq!((healed.len(), frozen), (0, true));
    }
}
