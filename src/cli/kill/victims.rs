//! Who is to be killed: named, or drawn by lot; held by their processes before anything is done, so that from then on
//! no other process can be hit; and spared where nobody would be left.

use std::fmt;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;

use crate::supervisor::os::Handle;
use crate::supervisor::{lock, record};
use crate::view::NodeId;

use super::super::context::{Context, confirm, list};
use super::super::exit::{Exit, Failure};
use super::super::render::time_of_day;
use super::super::survey::Survey;
use super::super::wait;
use super::Kill;

/// Names the supervisor where nodes are named.
pub(super) const SUPERVISOR: &str = "supervisor";

/// Everything known before the kill.
#[derive(Debug)]
pub(super) struct Intent {
    pub victims: Vec<Victim>,
    /// One for each victim, in their order.
    pub handles: Vec<Handle>,
    /// With this a draw can be repeated.
    pub seed: Option<u64>,
    pub leader_before: Option<NodeId>,
    /// Nodes that run and are not to be killed.
    pub survivors: Vec<NodeId>,
}

/// One process to be killed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Victim {
    /// A node's, with its role in words.
    Node { node: NodeId, pid: u32, role: &'static str },
    /// The supervisor's.
    Supervisor { pid: u32 },
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Victim::Node { node, pid, role } => write!(f, "{node} ({role}, pid {pid})"),
            Victim::Supervisor { pid } => write!(f, "the supervisor (pid {pid})"),
        }
    }
}

impl Intent {
    /// The nodes among the victims.
    pub fn nodes(&self) -> Vec<NodeId> {
        self.victims
            .iter()
            .filter_map(|victim| match victim {
                Victim::Node { node, .. } => Some(node.clone()),
                Victim::Supervisor { .. } => None,
            })
            .collect()
    }

    /// All victims as JSON and the history name them.
    pub fn names(&self) -> Vec<String> {
        self.victims
            .iter()
            .map(|victim| match victim {
                Victim::Node { node, .. } => node.to_string(),
                Victim::Supervisor { .. } => SUPERVISOR.to_owned(),
            })
            .collect()
    }

    /// Only these were struck; the other victims live on.
    pub fn retain(&mut self, struck: &[bool]) {
        let mut kept = struck.iter();
        self.handles.retain(|_| kept.next().copied().unwrap_or(false));
        let mut kept = struck.iter();
        let (victims, spared): (Vec<Victim>, Vec<Victim>) = std::mem::take(&mut self.victims)
            .into_iter()
            .partition(|_| kept.next().copied().unwrap_or(false));
        self.victims = victims;
        self.survivors.extend(spared.into_iter().filter_map(|victim| match victim {
            Victim::Node { node, .. } => Some(node),
            Victim::Supervisor { .. } => None,
        }));
    }

    /// Those of the processes that get a signal: nodes that end with their supervisor get none.
    pub fn signalled(&self) -> &[Handle] {
        if self.is_supervisor() { self.handles.get(..1).unwrap_or_default() } else { &self.handles }
    }

    /// The supervisor, where no node outlives it.
    pub fn ends_with_supervisor(&self) -> bool {
        self.is_supervisor() && self.victims.len() > 1
    }

    /// True where the supervisor is to be killed.
    pub fn is_supervisor(&self) -> bool {
        self.victims.iter().any(|victim| matches!(victim, Victim::Supervisor { .. }))
    }
}

/// Chooses, and takes hold.
///
/// # Errors
/// Where nobody has that name, or does not run.
pub(super) fn intend(verb: &Kill, context: &Context, found: &Survey) -> Result<Intent, Failure> {
    let named = verb.target.as_deref().unwrap_or("all");
    if named == SUPERVISOR {
        return the_supervisor(context, found);
    }
    let mut nodes = found.targets(named)?;
    let several = nodes.len() > 1;
    let mut seed = None;
    if verb.random {
        let drawn = verb.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
        nodes.retain(|node| found.running().contains(node));
        nodes = draw(&nodes, drawn).into_iter().collect();
        seed = Some(drawn);
    }
    let mut intent = of_nodes(found, &nodes, several)?;
    intent.seed = seed;
    Ok(intent)
}

/// One of these, the same for the same seed.
fn draw(nodes: &[NodeId], seed: u64) -> Option<NodeId> {
    nodes.choose(&mut SmallRng::seed_from_u64(seed)).cloned()
}

fn the_supervisor(context: &Context, found: &Survey) -> Result<Intent, Failure> {
    let handle = lock::holding(&context.layout.lock())
        .map(|id| Handle::open(&id))
        .transpose()
        .map_err(|error| cannot_hold(SUPERVISOR, &error))?
        .flatten()
        .ok_or_else(|| {
            let message = "no supervisor is running\nthe next `replcluster up` starts one";
            Failure::new(Exit::Failed, message)
        })?;
    let mut intent = Intent {
        victims: vec![Victim::Supervisor { pid: handle.id.pid }],
        handles: vec![],
        seed: None,
        leader_before: found.sum.confirmed_leader().cloned(),
        survivors: found.running(),
    };
    // Without a record nothing is known to end with it.
    let record = record::load(&context.layout.state()).unwrap_or_default();
    let in_foreground = record.foreground && record.supervisor.as_ref() == Some(&handle.id);
    intent.handles.push(handle);
    if in_foreground && !intent.survivors.is_empty() {
        let nodes = of_nodes(found, &intent.survivors, true)?;
        intent.survivors = nodes.survivors;
        intent.victims.extend(nodes.victims);
        intent.handles.extend(nodes.handles);
    }
    Ok(intent)
}

fn cannot_hold(name: &str, error: &std::io::Error) -> Failure {
    let message = format!("cannot take hold of {name}: {error}\ncheck that you are the user who started it");
    Failure::new(Exit::Failed, message)
}

fn of_nodes(found: &Survey, nodes: &[NodeId], several: bool) -> Result<Intent, Failure> {
    // "all" means all that run; a node that was named must run.
    let mut victims = Vec::new();
    let mut handles = Vec::new();
    for one in found.nodes.iter().filter(|one| nodes.contains(&one.node)) {
        let Some(id) = &one.process else {
            if several {
                continue;
            }
            let known = match &one.record.last_exit {
                Some(exit) => {
                    let how = wait::ended(exit.code, exit.signal);
                    format!("it ended {} ({how}, {})", time_of_day(&exit.at), exit.cause.as_str())
                }
                None if one.answer.is_some() => {
                    "it answers, but no process of it was started here".to_owned()
                }
                None => "it was not started yet".to_owned(),
            };
            let message = format!(
                "{} is not running: {known}\nstart it with `replcluster start {}`",
                one.node, one.node
            );
            return Err(Failure::new(Exit::Failed, message));
        };
        let handle = Handle::open(id)
            .map_err(|error| cannot_hold(&format!("{} (pid {})", one.node, id.pid), &error))?;
        if let Some(handle) = handle {
            victims.push(Victim::Node { node: one.node.clone(), pid: id.pid, role: wait::role(one) });
            handles.push(handle);
        }
    }
    if victims.is_empty() {
        return Err(Failure::new(
            Exit::Failed,
            "none of these nodes is running\nsee how they stand with `replcluster status`",
        ));
    }
    let leader_before = found.sum.confirmed_leader().cloned();
    let mut intent = Intent { victims, handles, seed: None, leader_before, survivors: vec![] };
    let killed = intent.nodes();
    intent.survivors = found.running().into_iter().filter(|node| !killed.contains(node)).collect();
    Ok(intent)
}

/// What a fault leaves: asks first where no in-sync copy would go on running, and says what could still fail after.
/// `true` where it asked.
///
/// # Errors
/// Where the user says no, or nobody is there to ask.
pub(in super::super) fn interlock(
    act: &str,
    found: &Survey,
    victims: &[NodeId],
    survivors: &[NodeId],
    yes: bool,
) -> Result<bool, Failure> {
    let spared: Vec<NodeId> =
        found.sum.in_sync.iter().filter(|node| survivors.contains(node)).cloned().collect();
    let hit = found.sum.in_sync.iter().any(|node| victims.contains(node));
    // Where no in-sync node says who is in sync, any of the victims may be the last.
    let is_known = found.sum.in_sync_confirmed;
    if is_known && (!spared.is_empty() || !hit) || victims.is_empty() {
        return Ok(false);
    }
    if !is_known {
        let why = found.why_unconfirmed().unwrap_or_else(|| "no in-sync node answers".to_owned());
        let question = format!(
            "it cannot be known which nodes are in sync ({why}): {act} {} may leave none running. What was acknowledged \
             stays on disk. Go on?",
            list(victims)
        );
        confirm(&question, yes)?;
        return Ok(true);
    }
    let standing = match found.sum.failures_tolerated {
        0 => "the cluster survives no failure now".to_owned(),
        1 => "the cluster survives 1 failure now, and this is more".to_owned(),
        more => format!("the cluster survives {more} failures now, and this is more"),
    };
    confirm(
        &format!(
            "{standing}: {act} {} leaves no running in-sync node. Nothing serves until one runs again, and nothing can be \
             proved meanwhile; what was acknowledged stays on disk. Go on?",
            list(victims)
        ),
        yes,
    )?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_not_struck_lives_on() {
        let node = |port: u16| NodeId::parse(&format!("h:{port}")).unwrap();
        let victim = |port: u16| Victim::Node { node: node(port), pid: u32::from(port), role: "follower" };
        let mut intent = Intent {
            victims: vec![victim(1), victim(2)],
            handles: vec![],
            seed: None,
            leader_before: None,
            survivors: vec![node(3)],
        };
        intent.retain(&[false, true]);
        assert_eq!((intent.nodes(), intent.survivors), (vec![node(2)], vec![node(3), node(1)]));
    }

    #[test]
    fn the_same_seed_draws_the_same_node_and_every_node_is_drawn_by_some() {
        let nodes: Vec<NodeId> = (1..=3).map(|port| NodeId::parse(&format!("h:{port}")).unwrap()).collect();
        let drawn: Vec<NodeId> = (0..50).map(|seed| draw(&nodes, seed).unwrap()).collect();
        assert_eq!(drawn, (0..50).map(|seed| draw(&nodes, seed).unwrap()).collect::<Vec<_>>());
        assert!(nodes.iter().all(|node| drawn.contains(node)));
        assert_eq!(draw(&[], 1), None);
    }
}
