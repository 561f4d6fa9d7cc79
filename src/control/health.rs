//! What the nodes' own answers add up to. Nothing is averaged: where nodes disagree, the sum says so.

use serde::Serialize;

use crate::view::NodeId;

/// What a node says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Orders the writes.
    Leader,
    /// Copies them.
    Follower,
    /// Is on its way in.
    Joining,
    /// None of these, or nobody could ask it.
    None,
}

/// How a node stands, for a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// Serves and is in sync.
    Ready,
    /// Runs and does not serve yet.
    Starting,
    /// Runs and is catching up.
    Syncing,
    /// Runs, and does not answer though it should.
    Silent,
    /// Frozen.
    Paused,
    /// Does not run.
    Down,
    /// Does not run and was given up.
    Failed,
}

/// How the cluster stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ClusterState {
    /// Every configured node serves, is in sync, and agrees.
    Healthy,
    /// A leader serves, but not everything is as it should be.
    Degraded,
    /// Something runs, but no leader takes writes.
    Unavailable,
    /// Nothing runs.
    Stopped,
}

/// Whether the nodes that answered name the same leader of the same epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Agreement {
    /// They do.
    Agreed,
    /// They do not.
    Disagree,
    /// None of them names one.
    NoLeader,
}

/// What one node said of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its role.
    pub role: Role,
    /// It serves writes.
    pub ready: bool,
    /// The epoch of its view; 0 where it has none.
    pub epoch: u64,
    /// Whom it takes for the leader.
    pub leader: Option<NodeId>,
    /// Whom it takes for in sync.
    pub in_sync: Vec<NodeId>,
    /// How far its log is durable, as an index.
    pub durable: u64,
    /// How far it has applied, as an index.
    pub applied: u64,
}

/// One node as found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Which node.
    pub node: NodeId,
    /// Its process.
    pub process: Process,
    /// What it said; `None` where it did not answer.
    pub account: Option<Account>,
}

/// What is known of a node's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Process {
    /// None runs.
    Absent,
    /// None runs, and none will be started without the operator.
    GivenUp,
    /// One runs.
    Present {
        /// It is frozen.
        paused: bool,
        /// It has served before, or has had the time to come so far: if it does not answer it is not just starting.
        overdue: bool,
    },
}

/// The sum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sum {
    /// How the cluster stands.
    pub state: ClusterState,
    /// The newest epoch anyone named; 0 where nobody named one.
    pub epoch: u64,
    /// The node that says itself that it leads the newest epoch and serves.
    pub leader: Option<NodeId>,
    /// The in-sync set as the leader, or else whoever knows the newest epoch, names it.
    pub in_sync: Vec<NodeId>,
    /// Nodes that may still fail, one after another, without a write being refused.
    pub failures_tolerated: usize,
    /// Writes are refused while fewer nodes than this are in sync.
    pub min_in_sync: usize,
    /// Whether those that answered agree.
    pub agreement: Agreement,
    /// How many configured nodes name the newest epoch and its leader.
    pub agreeing: usize,
    /// How each node stands, in the order given.
    pub states: Vec<NodeState>,
    /// How many entries each node lacks of the leader's; `None` for the leader and where unknown.
    pub lags: Vec<Option<u64>>,
}

impl Sum {
    /// A leader serves, and refuses every write because too few nodes are in sync.
    #[must_use]
    pub fn refuses_writes(&self) -> bool {
        self.leader.is_some() && self.in_sync.len() < self.min_in_sync
    }
}

/// Adds up the nodes that are listed. Those `outside` of the list count only in what they say of the view: one that was
/// taken out of the list leads on until it hands over. Writes are refused while fewer than `min_in_sync` nodes are in sync.
#[must_use]
pub fn sum(found: &[Found], outside: &[Found], min_in_sync: usize) -> Sum {
    let accounts = || {
        found.iter().chain(outside).filter_map(|one| one.account.as_ref().map(|account| (&one.node, account)))
    };
    let epoch = accounts().map(|(_, account)| account.epoch).max().unwrap_or(0);
    let newest = || accounts().filter(|(_, account)| account.epoch == epoch);
    let serving = newest().find(|(_, account)| account.role == Role::Leader && account.ready);
    let leader = serving.map(|(node, _)| node.clone());
    let in_sync =
        serving.or_else(|| newest().next()).map(|(_, account)| account.in_sync.clone()).unwrap_or_default();
    let named = leader.clone().or_else(|| newest().find_map(|(_, account)| account.leader.clone()));
    let agreement = agreement(found);
    let agreeing = newest()
        .filter(|(node, account)| {
            account.leader.is_some() && account.leader == named && found.iter().any(|one| one.node == **node)
        })
        .count();
    let failures_tolerated =
        if leader.is_some() { in_sync.len().saturating_sub(min_in_sync.max(1)) } else { 0 };
    let states: Vec<NodeState> = found.iter().map(|one| node_state(one, &in_sync)).collect();
    let leader_durable = serving.map(|(_, account)| account.durable);
    let lags = found
        .iter()
        .map(|one| match (&one.account, leader_durable) {
            (Some(account), Some(durable)) if leader.as_ref() != Some(&one.node) => {
                Some(durable.saturating_sub(account.durable))
            }
            _ => None,
        })
        .collect();
    let nothing_runs = found
        .iter()
        .all(|one| one.account.is_none() && matches!(one.process, Process::Absent | Process::GivenUp));
    let all_ready = states.iter().all(|state| *state == NodeState::Ready);
    let state = if nothing_runs {
        ClusterState::Stopped
    } else if leader.is_none() || in_sync.len() < min_in_sync {
        ClusterState::Unavailable
    } else if all_ready && agreement == Agreement::Agreed && agreeing == found.len() {
        ClusterState::Healthy
    } else {
        ClusterState::Degraded
    };
    Sum { state, epoch, leader, in_sync, failures_tolerated, min_in_sync, agreement, agreeing, states, lags }
}

/// A node that is on its way in and knows no leader has no opinion yet.
fn agreement(found: &[Found]) -> Agreement {
    let mut opinions = found
        .iter()
        .filter_map(|one| one.account.as_ref())
        .filter(|account| account.leader.is_some())
        .map(|account| (account.epoch, account.leader.as_ref()));
    match opinions.next() {
        None => Agreement::NoLeader,
        Some(first) if opinions.all(|other| other == first) => Agreement::Agreed,
        Some(_) => Agreement::Disagree,
    }
}

fn node_state(one: &Found, in_sync: &[NodeId]) -> NodeState {
    match (&one.account, one.process) {
        (_, Process::Present { paused: true, .. }) => NodeState::Paused,
        (Some(account), Process::Absent | Process::GivenUp | Process::Present { paused: false, .. }) => {
            match account.role {
                Role::Leader | Role::Follower if account.ready && in_sync.contains(&one.node) => {
                    NodeState::Ready
                }
                Role::Follower if !in_sync.contains(&one.node) => NodeState::Syncing,
                Role::Joining => NodeState::Syncing,
                Role::Leader | Role::Follower | Role::None => NodeState::Starting,
            }
        }
        (None, Process::Present { paused: false, overdue: true }) => NodeState::Silent,
        (None, Process::Present { paused: false, overdue: false }) => NodeState::Starting,
        (None, Process::Absent) => NodeState::Down,
        (None, Process::GivenUp) => NodeState::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(port: u16) -> NodeId {
        NodeId::parse(&format!("h:{port}")).unwrap()
    }

    const RUNS: Process = Process::Present { paused: false, overdue: false };

    fn found(port: u16, role: Role, epoch: u64, leader: u16, in_sync: &[u16]) -> Found {
        let account = Account {
            role,
            ready: matches!(role, Role::Leader | Role::Follower),
            epoch,
            leader: (leader > 0).then(|| node(leader)),
            in_sync: in_sync.iter().map(|port| node(*port)).collect(),
            durable: 100 - u64::from(port),
            applied: 90,
        };
        Found { node: node(port), process: RUNS, account: Some(account) }
    }

    fn silent(port: u16, process: Process) -> Found {
        Found { node: node(port), process, account: None }
    }

    #[test]
    fn three_that_agree_are_healthy_and_survive_two_more() {
        let all = [1, 2, 3];
        let sum = sum(
            &[
                found(1, Role::Leader, 4, 1, &all),
                found(2, Role::Follower, 4, 1, &all),
                found(3, Role::Follower, 4, 1, &all),
            ],
            &[],
            1,
        );
        assert_eq!((sum.state, sum.agreement, sum.agreeing), (ClusterState::Healthy, Agreement::Agreed, 3));
        assert_eq!((sum.epoch, sum.leader, sum.failures_tolerated), (4, Some(node(1)), 2));
        assert_eq!(sum.lags, [None, Some(1), Some(2)]);
        assert_eq!(sum.states, [NodeState::Ready; 3]);
    }

    #[test]
    fn min_in_sync_is_what_failures_may_not_go_below() {
        let nodes = [found(1, Role::Leader, 4, 1, &[1, 2, 3])];
        assert_eq!(sum(&nodes, &[], 2).failures_tolerated, 1);
        assert_eq!(sum(&nodes, &[], 3).failures_tolerated, 0);
        assert_eq!(sum(&nodes, &[], 9).failures_tolerated, 0);
    }

    #[test]
    fn a_leader_that_refuses_every_write_is_unavailable() {
        let nodes = [found(1, Role::Leader, 4, 1, &[1]), silent(2, Process::Absent)];
        let short = sum(&nodes, &[], 2);
        assert_eq!((short.state, short.failures_tolerated), (ClusterState::Unavailable, 0));
        assert!(short.refuses_writes() && short.leader.is_some());
        assert!(!sum(&nodes, &[], 1).refuses_writes());
    }

    #[test]
    fn one_that_has_served_and_says_nothing_is_silent_and_not_starting() {
        let hung = Process::Present { paused: false, overdue: true };
        let sum = sum(&[found(1, Role::Leader, 4, 1, &[1, 2]), silent(2, hung)], &[], 1);
        assert_eq!((sum.state, sum.states[1]), (ClusterState::Degraded, NodeState::Silent));
    }

    #[test]
    fn one_down_is_degraded_and_still_agreed() {
        let sum = sum(
            &[
                found(1, Role::Leader, 5, 1, &[1, 2]),
                found(2, Role::Follower, 5, 1, &[1, 2]),
                silent(3, Process::Absent),
            ],
            &[],
            1,
        );
        assert_eq!((sum.state, sum.agreement, sum.agreeing), (ClusterState::Degraded, Agreement::Agreed, 2));
        assert_eq!(sum.failures_tolerated, 1);
        assert_eq!(sum.states[2], NodeState::Down);
    }

    #[test]
    fn a_node_that_names_another_leader_is_a_disagreement_and_never_healthy() {
        let sum = sum(&[found(1, Role::Leader, 4, 1, &[1]), found(2, Role::Leader, 5, 2, &[1, 2])], &[], 1);
        assert_eq!((sum.state, sum.agreement), (ClusterState::Degraded, Agreement::Disagree));
        assert_eq!((sum.epoch, sum.leader, sum.agreeing), (5, Some(node(2)), 1));
    }

    #[test]
    fn a_leader_that_is_named_but_does_not_say_so_itself_serves_nobody() {
        let sum = sum(&[silent(1, RUNS), found(2, Role::Follower, 4, 1, &[1, 2])], &[], 1);
        assert_eq!((sum.state, sum.leader, sum.failures_tolerated), (ClusterState::Unavailable, None, 0));
        assert_eq!(sum.agreement, Agreement::Agreed);
        assert_eq!(sum.states[0], NodeState::Starting);
    }

    #[test]
    fn nobody_who_names_a_leader_is_no_leader() {
        let sum = sum(&[found(1, Role::None, 0, 0, &[]), found(2, Role::Joining, 0, 0, &[])], &[], 1);
        assert_eq!((sum.state, sum.agreement), (ClusterState::Unavailable, Agreement::NoLeader));
        assert_eq!(sum.states, [NodeState::Starting, NodeState::Syncing]);
    }

    #[test]
    fn nothing_that_runs_is_stopped_and_a_frozen_process_is_not() {
        assert_eq!(
            sum(&[silent(1, Process::Absent), silent(2, Process::GivenUp)], &[], 1).state,
            ClusterState::Stopped
        );
        let frozen = sum(&[silent(1, Process::Present { paused: true, overdue: true })], &[], 1);
        assert_eq!((frozen.state, frozen.states[0]), (ClusterState::Unavailable, NodeState::Paused));
    }

    #[test]
    fn a_joiner_without_an_opinion_does_not_disturb_agreement_but_health() {
        let sum = sum(&[found(1, Role::Leader, 4, 1, &[1]), found(2, Role::Joining, 0, 0, &[])], &[], 1);
        assert_eq!((sum.state, sum.agreement), (ClusterState::Degraded, Agreement::Agreed));
        assert_eq!(sum.states[1], NodeState::Syncing);
    }

    #[test]
    fn a_leader_that_is_listed_no_more_leads_all_the_same() {
        let listed = [found(2, Role::Follower, 4, 1, &[1, 2, 3]), found(3, Role::Follower, 4, 1, &[1, 2, 3])];
        let outside = [found(1, Role::Leader, 4, 1, &[1, 2, 3])];
        let with = sum(&listed, &outside, 1);
        assert_eq!((with.state, with.leader), (ClusterState::Healthy, Some(node(1))));
        assert_eq!((with.agreeing, with.states.len(), with.failures_tolerated), (2, 2, 2));
        assert_eq!(sum(&listed, &[], 1).state, ClusterState::Unavailable);
    }
}
