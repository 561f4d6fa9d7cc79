//! The steps of `up`, `down` and a rolling restart. A plan is what gets carried out and what `--dry-run` prints:
//! there is no second description of what `up` does.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::view::NodeId;

/// What should run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// All nodes of the cluster, in byte order.
    pub nodes: Vec<NodeId>,
    /// Those that `up` was limited to; all where it was not.
    pub only: Option<Vec<NodeId>>,
}

impl Spec {
    /// The nodes that are to run, in byte order.
    #[must_use]
    pub fn wanted(&self) -> Vec<NodeId> {
        match &self.only {
            None => self.nodes.clone(),
            Some(only) => self.nodes.iter().filter(|node| only.contains(node)).cloned().collect(),
        }
    }
}

/// What was found before anything is done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The supervisor's process id, where one runs.
    pub supervisor: Option<u32>,
    /// The register holds a view: the cluster was created before.
    pub register_has_view: bool,
    /// The processes of ours that run.
    pub running: BTreeMap<NodeId, Running>,
    /// Nodes that we started once and that the configuration does not list any more.
    pub unlisted: Vec<NodeId>,
    /// Who leads, where a node does.
    pub leader: Option<NodeId>,
    /// Who is in sync and could lead.
    pub in_sync: Vec<NodeId>,
}

/// A process of ours that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its id.
    pub pid: u32,
    /// It is frozen.
    pub paused: bool,
    /// What it was told at its start and what the configuration says now, where they differ.
    pub changes: Vec<Change>,
}

/// A setting that a running node was started with and that the configuration gives another value now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// In the words of the configuration.
    pub setting: String,
    /// What the node was told; `None` where it was not told at all.
    pub from: Option<String>,
    /// What it is to be told; `None` where it is told no more.
    pub to: Option<String>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_none = |value: &Option<String>| value.clone().unwrap_or_else(|| "none".to_owned());
        write!(f, "{} {} → {}", self.setting, or_none(&self.from), or_none(&self.to))
    }
}

/// What differs between the flags that a node was started with and those it would be started with now.
#[must_use]
pub fn changes(before: &BTreeMap<String, String>, now: &BTreeMap<String, String>) -> Vec<Change> {
    let names: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    names
        .into_iter()
        .filter(|name| before.get(*name) != now.get(*name))
        .map(|name| Change {
            setting: name.trim_start_matches('-').replace('-', "_"),
            from: before.get(name).cloned(),
            to: now.get(name).cloned(),
        })
        .collect()
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Start the background process.
    StartSupervisor,
    /// Leave a running process as it is; a fresh supervisor takes it over.
    Keep {
        /// Whose.
        node: NodeId,
        /// Which process.
        pid: u32,
        /// A supervisor now dead started it.
        adopt: bool,
    },
    /// Thaw a frozen process.
    Resume {
        /// Whose.
        node: NodeId,
        /// Which process.
        pid: u32,
    },
    /// Start a process.
    Spawn {
        /// Whose.
        node: NodeId,
        /// Whom it asks to let it in; `None` for the one that creates the cluster or needs nobody.
        join: Option<Vec<NodeId>>,
    },
    /// Wait until these nodes are in sync.
    AwaitInSync(Vec<NodeId>),
    /// Have this node lead, where another does.
    Lead(NodeId),
    /// Write, have it acknowledged, and take it back.
    ConfirmWrite,
    /// End these nodes gracefully, all at once.
    Stop(Vec<NodeId>),
    /// End these nodes by SIGKILL, all at once.
    Kill(Vec<NodeId>),
    /// End this node gracefully and start it again.
    Restart {
        /// Which.
        node: NodeId,
        /// Because of these, where that is why.
        changes: Vec<Change>,
    },
    /// Take this node, which the configuration lists no more, out of the cluster and end it. Its data stays.
    TakeOut(NodeId),
    /// End the background process.
    EndSupervisor,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::StartSupervisor => f.write_str("start the supervisor"),
            Step::Keep { node, pid, adopt: false } => write!(f, "keep {node} (pid {pid})"),
            Step::Keep { node, pid, adopt: true } => write!(f, "adopt {node} (pid {pid})"),
            Step::Resume { node, pid } => write!(f, "resume {node} (pid {pid})"),
            Step::Spawn { node, join: None } => write!(f, "start {node}"),
            Step::Spawn { node, join: Some(others) } => write!(f, "start {node}, joining {}", list(others)),
            Step::AwaitInSync(nodes) => write!(f, "wait until {} in sync", are(nodes)),
            Step::Lead(node) => write!(f, "have {node} lead"),
            Step::ConfirmWrite => f.write_str("confirm with one acknowledged write"),
            Step::Stop(nodes) => write!(f, "stop {}", list(nodes)),
            Step::Kill(nodes) => write!(f, "kill {}", list(nodes)),
            Step::Restart { node, changes } if changes.is_empty() => write!(f, "restart {node}"),
            Step::Restart { node, changes } => {
                let changes: Vec<String> = changes.iter().map(Change::to_string).collect();
                write!(f, "restart {node} ({})", changes.join(", "))
            }
            Step::TakeOut(node) => write!(f, "take out {node}, which the configuration lists no more"),
            Step::EndSupervisor => f.write_str("end the supervisor"),
        }
    }
}

/// The steps from what was found to what should run.
#[must_use]
pub fn up(spec: &Spec, observed: &Observed) -> Vec<Step> {
    let wanted = spec.wanted();
    let mut steps = Vec::new();
    if observed.supervisor.is_none() {
        steps.push(Step::StartSupervisor);
    }
    for node in &wanted {
        steps.push(match observed.running.get(node) {
            Some(Running { pid, paused: true, .. }) => Step::Resume { node: node.clone(), pid: *pid },
            Some(Running { pid, paused: false, .. }) => {
                Step::Keep { node: node.clone(), pid: *pid, adopt: observed.supervisor.is_none() }
            }
            None => Step::Spawn {
                node: node.clone(),
                join: join(node, &wanted, &spec.nodes, observed.register_has_view),
            },
        });
    }
    steps.push(Step::AwaitInSync(wanted.clone()));
    // What is new is in before what is old goes.
    if spec.only.is_none() {
        steps.extend(observed.unlisted.iter().cloned().map(Step::TakeOut));
    }
    let outdated: Vec<NodeId> = wanted
        .iter()
        .filter(|node| observed.running.get(node).is_some_and(|running| !running.changes.is_empty()))
        .cloned()
        .collect();
    let successors = if observed.in_sync.is_empty() { &wanted } else { &observed.in_sync };
    for step in roll(&outdated, observed.leader.as_ref(), successors) {
        steps.push(match step {
            Step::Restart { node, .. } => {
                let changes = observed.running.get(&node).map(|running| running.changes.clone());
                Step::Restart { node, changes: changes.unwrap_or_default() }
            }
            other => other,
        });
    }
    if wanted.len() == spec.nodes.len()
        && let Some(lowest) = wanted.first()
        && steps.last() != Some(&Step::Lead(lowest.clone()))
    {
        steps.push(Step::Lead(lowest.clone()));
    }
    steps.push(Step::ConfirmWrite);
    steps
}

/// Whom a node asks to let it in. The lowest of the nodes that are to run creates the cluster where none exists;
/// two nodes can therefore never create one each.
#[must_use]
pub fn join(
    node: &NodeId,
    wanted: &[NodeId],
    all: &[NodeId],
    register_has_view: bool,
) -> Option<Vec<NodeId>> {
    let creates = !register_has_view && wanted.iter().min() == Some(node);
    let others: Vec<NodeId> = all.iter().filter(|other| *other != node).cloned().collect();
    if creates || others.is_empty() { None } else { Some(others) }
}

/// The steps that end everything: followers first, so that leadership does not wander, or all at once and at once.
#[must_use]
pub fn down(running: &[NodeId], leader: Option<&NodeId>, now: bool) -> Vec<Step> {
    let (leaders, followers): (Vec<NodeId>, Vec<NodeId>) =
        running.iter().cloned().partition(|node| Some(node) == leader);
    let mut steps = Vec::new();
    if now {
        if !running.is_empty() {
            steps.push(Step::Kill(running.to_vec()));
        }
    } else {
        steps.extend([followers, leaders].into_iter().filter(|nodes| !nodes.is_empty()).map(Step::Stop));
    }
    steps.push(Step::EndSupervisor);
    steps
}

/// The steps that restart nodes one by one without a failed operation: followers first; the leader hands over to
/// another node before its turn. `in_sync` are the nodes that could take over.
#[must_use]
pub fn roll(targets: &[NodeId], leader: Option<&NodeId>, in_sync: &[NodeId]) -> Vec<Step> {
    let mut steps = Vec::new();
    for node in targets.iter().filter(|node| Some(*node) != leader) {
        steps.push(Step::Restart { node: node.clone(), changes: Vec::new() });
        steps.push(Step::AwaitInSync(vec![node.clone()]));
    }
    if let Some(leader) = leader.filter(|leader| targets.contains(leader)) {
        if let Some(successor) = in_sync.iter().find(|node| *node != leader) {
            steps.push(Step::Lead(successor.clone()));
        }
        steps.push(Step::Restart { node: leader.clone(), changes: Vec::new() });
        steps.push(Step::AwaitInSync(vec![leader.clone()]));
        steps.push(Step::Lead(leader.clone()));
    }
    steps
}

fn list(nodes: &[NodeId]) -> String {
    nodes.iter().map(NodeId::as_str).collect::<Vec<_>>().join(", ")
}

fn are(nodes: &[NodeId]) -> String {
    let verb = if nodes.len() == 1 { "is" } else { "are" };
    format!("{} {verb}", list(nodes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(port: u16) -> NodeId {
        NodeId::parse(&format!("h:{port}")).unwrap()
    }

    fn nodes(ports: &[u16]) -> Vec<NodeId> {
        ports.iter().map(|port| node(*port)).collect()
    }

    fn spec() -> Spec {
        Spec { nodes: nodes(&[1, 2, 3]), only: None }
    }

    fn printed(steps: &[Step]) -> Vec<String> {
        steps.iter().map(Step::to_string).collect()
    }

    #[test]
    fn a_new_cluster_is_created_by_the_lowest_and_joined_by_the_others() {
        let steps = up(&spec(), &Observed::default());
        let expected = [
            "start the supervisor",
            "start h:1",
            "start h:2, joining h:1, h:3",
            "start h:3, joining h:1, h:2",
            "wait until h:1, h:2, h:3 are in sync",
            "have h:1 lead",
            "confirm with one acknowledged write",
        ];
        assert_eq!(printed(&steps), expected);
    }

    #[test]
    fn nobody_creates_a_cluster_that_exists() {
        let observed = Observed { register_has_view: true, ..Observed::default() };
        let steps = up(&spec(), &observed);
        assert!(steps.contains(&Step::Spawn { node: node(1), join: Some(nodes(&[2, 3])) }));
    }

    #[test]
    fn what_runs_is_kept_or_adopted_or_thawed() {
        let running = BTreeMap::from([
            (node(1), Running { pid: 11, paused: false, changes: vec![] }),
            (node(2), Running { pid: 12, paused: true, changes: vec![] }),
        ]);
        let mut observed =
            Observed { supervisor: Some(9), register_has_view: true, running, ..Observed::default() };
        let printed_now = printed(&up(&spec(), &observed));
        assert_eq!(
            printed_now[..3],
            ["keep h:1 (pid 11)", "resume h:2 (pid 12)", "start h:3, joining h:1, h:2"]
        );
        observed.supervisor = None;
        assert_eq!(printed(&up(&spec(), &observed))[..2], ["start the supervisor", "adopt h:1 (pid 11)"]);
    }

    #[test]
    fn what_was_changed_in_the_configuration_is_applied_one_node_at_a_time_the_leader_last() {
        let told = |timeout: &str| {
            BTreeMap::from([
                ("--failure-timeout".to_owned(), timeout.to_owned()),
                ("--min-in-sync".to_owned(), "1".to_owned()),
            ])
        };
        let changes = changes(&told("300ms"), &told("1s"));
        let running = |pid, changes: &[Change]| Running { pid, paused: false, changes: changes.to_vec() };
        let observed = Observed {
            supervisor: Some(9),
            register_has_view: true,
            running: BTreeMap::from([(node(1), running(11, &changes)), (node(2), running(12, &changes))]),
            unlisted: nodes(&[4]),
            leader: Some(node(1)),
            in_sync: nodes(&[1, 2]),
        };
        let expected = [
            "keep h:1 (pid 11)",
            "keep h:2 (pid 12)",
            "start h:3, joining h:1, h:2",
            "wait until h:1, h:2, h:3 are in sync",
            "take out h:4, which the configuration lists no more",
            "restart h:2 (failure_timeout 300ms → 1s)",
            "wait until h:2 is in sync",
            "have h:2 lead",
            "restart h:1 (failure_timeout 300ms → 1s)",
            "wait until h:1 is in sync",
            "have h:1 lead",
            "confirm with one acknowledged write",
        ];
        assert_eq!(printed(&up(&spec(), &observed)), expected);
        let part = Spec { only: Some(nodes(&[3])), ..spec() };
        assert!(!printed(&up(&part, &observed)).iter().any(|step| step.starts_with("take out")));
    }

    #[test]
    fn a_setting_that_appears_or_goes_is_a_change_too() {
        let one = BTreeMap::from([("--a-b".to_owned(), "1".to_owned())]);
        let none = BTreeMap::new();
        assert_eq!(changes(&one, &none)[0].to_string(), "a_b 1 → none");
        assert_eq!(changes(&none, &one)[0].to_string(), "a_b none → 1");
        assert_eq!(changes(&one, &one), []);
    }

    #[test]
    fn a_part_of_the_cluster_can_create_it_but_does_not_choose_the_leader() {
        let part = Spec { only: Some(nodes(&[2, 3])), ..spec() };
        let steps = up(&part, &Observed::default());
        assert!(steps.contains(&Step::Spawn { node: node(2), join: None }));
        assert!(steps.contains(&Step::Spawn { node: node(3), join: Some(nodes(&[1, 2])) }));
        assert!(!steps.iter().any(|step| matches!(step, Step::Lead(_))));
    }

    #[test]
    fn exactly_one_node_creates_the_cluster_whatever_is_wanted() {
        let all = nodes(&[1, 2, 3]);
        for wanted in [nodes(&[1, 2, 3]), nodes(&[2, 3]), nodes(&[3]), nodes(&[1, 3])] {
            let creators = wanted.iter().filter(|node| join(node, &wanted, &all, false).is_none()).count();
            assert_eq!(creators, 1, "{wanted:?}");
            assert!(wanted.iter().all(|node| join(node, &wanted, &all, true).is_some()));
        }
        assert_eq!(join(&node(1), &nodes(&[1]), &nodes(&[1]), true), None);
    }

    #[test]
    fn down_ends_the_leader_last_or_everything_at_once() {
        let leader = node(1);
        let gentle = down(&nodes(&[1, 2, 3]), Some(&leader), false);
        assert_eq!(printed(&gentle), ["stop h:2, h:3", "stop h:1", "end the supervisor"]);
        let hard = down(&nodes(&[1, 2, 3]), Some(&leader), true);
        assert_eq!(printed(&hard), ["kill h:1, h:2, h:3", "end the supervisor"]);
        assert_eq!(down(&[], None, false), [Step::EndSupervisor]);
    }

    #[test]
    fn a_rolling_restart_moves_leadership_away_before_the_leaders_turn_and_back_after() {
        let leader = node(1);
        let steps = roll(&nodes(&[1, 2]), Some(&leader), &nodes(&[1, 2]));
        let expected = [
            "restart h:2",
            "wait until h:2 is in sync",
            "have h:2 lead",
            "restart h:1",
            "wait until h:1 is in sync",
            "have h:1 lead",
        ];
        assert_eq!(printed(&steps), expected);
        let alone = roll(&nodes(&[1]), Some(&leader), &nodes(&[1]));
        assert_eq!(printed(&alone)[0], "restart h:1");
    }
}
