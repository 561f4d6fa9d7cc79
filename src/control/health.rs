//! What the nodes' own answers add up to. Nothing is averaged: where nodes disagree, the sum says so.

use std::collections::BTreeSet;

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
    /// None of those that answered names one, and one that may lead could not be asked.
    Unknown,
}

/// How it is known who leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Confirmation {
    /// The leader says so itself.
    Itself,
    /// The leader runs and could not be asked; in-sync followers hear it and name it.
    Followers,
}

/// A node that is taken for the leader of an epoch, by itself or by others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// Of which epoch.
    pub epoch: u64,
    /// Which node.
    pub node: NodeId,
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
    /// The node that leads the newest epoch and serves: it says so itself or, where it runs and cannot be asked,
    /// in-sync followers say so that hear it.
    pub leader: Option<NodeId>,
    /// How that is known.
    pub confirmation: Option<Confirmation>,
    /// The claims to lead where there are several: two nodes say that they lead, or two are named in one epoch.
    pub rivals: Vec<Claim>,
    /// Configured nodes that run and did not answer, though they are neither frozen nor just starting: what they are
    /// cannot be known.
    pub unasked: Vec<NodeId>,
    /// The in-sync set as the leader, or else a node that knows the newest epoch, names it.
    pub in_sync: Vec<NodeId>,
    /// A member of that set named it; else nothing is known of who is in sync.
    pub in_sync_confirmed: bool,
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

    /// The leader that an in-sync node confirmed and no other claim disputes. Nothing may be done to "the leader" or to
    /// "the followers" without one.
    #[must_use]
    pub fn confirmed_leader(&self) -> Option<&NodeId> {
        self.leader.as_ref().filter(|_| self.rivals.is_empty())
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
    let of_followers = || named_by_followers(found, outside, epoch);
    let (leader, confirmation) = match serving {
        Some((node, _)) => (Some(node.clone()), Some(Confirmation::Itself)),
        None => of_followers().map_or((None, None), |node| (Some(node), Some(Confirmation::Followers))),
    };
    // Where the leader does not say it, a member of the set is believed before other nodes.
    let member = || newest().find(|(node, account)| account.in_sync.contains(node));
    let source = serving.or_else(member).or_else(|| newest().next());
    let in_sync = source.map(|(_, account)| account.in_sync.clone()).unwrap_or_default();
    let in_sync_confirmed = source.is_some_and(|(node, account)| account.in_sync.contains(node));
    let named = leader.clone().or_else(|| newest().find_map(|(_, account)| account.leader.clone()));
    let rivals = rivals(accounts());
    let unasked: Vec<NodeId> = found
        .iter()
        .filter(|one| one.account.is_none())
        .filter(|one| matches!(one.process, Process::Present { paused: false, overdue: true }))
        .map(|one| one.node.clone())
        .collect();
    let agreement = match agreement(found) {
        Agreement::NoLeader if !unasked.is_empty() => Agreement::Unknown,
        agreement => agreement,
    };
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
    } else if all_ready && agreement == Agreement::Agreed && agreeing == found.len() && rivals.is_empty() {
        ClusterState::Healthy
    } else {
        ClusterState::Degraded
    };
    Sum {
        state,
        epoch,
        leader,
        confirmation,
        rivals,
        unasked,
        in_sync,
        in_sync_confirmed,
        failures_tolerated,
        min_in_sync,
        agreement,
        agreeing,
        states,
        lags,
    }
}

/// The leader of the newest epoch where it runs and could not be asked: every in-sync follower that serves names it,
/// which it does only while it hears it. A frozen or ended process leads nothing, though others may still name it.
fn named_by_followers(found: &[Found], outside: &[Found], epoch: u64) -> Option<NodeId> {
    let all = || found.iter().chain(outside);
    let mut named = all().filter_map(|one| {
        let account = one.account.as_ref().filter(|account| account.epoch == epoch && account.ready)?;
        let follows = account.role == Role::Follower && account.in_sync.contains(&one.node);
        account.leader.clone().filter(|_| follows)
    });
    let first = named.next()?;
    let runs = all().any(|one| {
        one.node == first
            && one.account.is_none()
            && matches!(one.process, Process::Present { paused: false, .. })
    });
    (runs && named.all(|other| other == first)).then_some(first)
}

/// The claims to lead, where two nodes say that they lead or two are named in one epoch.
fn rivals<'a>(accounts: impl Iterator<Item = (&'a NodeId, &'a Account)> + Clone) -> Vec<Claim> {
    let own = accounts.clone().filter(|(_, account)| account.role == Role::Leader);
    let own: BTreeSet<Claim> =
        own.map(|(node, account)| Claim { epoch: account.epoch, node: node.clone() }).collect();
    let named = accounts.filter_map(|(_, account)| {
        let node = account.leader.clone()?;
        Some(Claim { epoch: account.epoch, node })
    });
    let named: BTreeSet<Claim> = named.collect();
    let disputed =
        |claim: &&Claim| named.iter().any(|other| other.epoch == claim.epoch && other.node != claim.node);
    let mut rivals: BTreeSet<Claim> = named.iter().filter(disputed).cloned().collect();
    let leaders: BTreeSet<&NodeId> = own.iter().map(|claim| &claim.node).collect();
    if leaders.len() > 1 {
        rivals.extend(own);
    }
    rivals.into_iter().collect()
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

    const HUNG: Process = Process::Present { paused: false, overdue: true };

    #[test]
    fn a_leader_that_cannot_be_asked_leads_while_followers_hear_it() {
        for process in [RUNS, HUNG] {
            let sum = sum(&[silent(1, process), found(2, Role::Follower, 4, 1, &[1, 2])], &[], 1);
            assert_eq!((sum.state, sum.confirmed_leader()), (ClusterState::Degraded, Some(&node(1))));
            assert_eq!((sum.confirmation, sum.agreement), (Some(Confirmation::Followers), Agreement::Agreed));
            assert!(sum.in_sync_confirmed);
        }
    }

    #[test]
    fn a_leader_that_ended_or_is_frozen_or_only_named_from_outside_the_set_is_not_confirmed() {
        let frozen = Process::Present { paused: true, overdue: true };
        for process in [Process::Absent, Process::GivenUp, frozen] {
            let sum = sum(&[silent(1, process), found(2, Role::Follower, 4, 1, &[1, 2])], &[], 1);
            assert_eq!((sum.state, sum.leader, sum.failures_tolerated), (ClusterState::Unavailable, None, 0));
        }
        let outsider = sum(&[silent(1, HUNG), found(3, Role::Follower, 4, 1, &[1, 2])], &[], 1);
        assert_eq!((outsider.confirmed_leader(), outsider.in_sync_confirmed), (None, false));
        let asked = [found(1, Role::Follower, 4, 1, &[1, 2]), found(2, Role::Follower, 4, 1, &[1, 2])];
        assert_eq!(sum(&asked, &[], 1).leader, None, "it was asked and does not say so");
    }

    #[test]
    fn where_a_node_that_may_lead_cannot_be_asked_nobody_knows_a_leader_instead_of_there_being_none() {
        let unknown = sum(&[silent(1, HUNG), silent(2, Process::Absent)], &[], 1);
        assert_eq!((unknown.agreement, unknown.unasked), (Agreement::Unknown, vec![node(1)]));
        let none = sum(&[silent(1, RUNS), silent(2, Process::Absent)], &[], 1);
        assert_eq!((none.agreement, none.unasked), (Agreement::NoLeader, vec![]));
    }

    #[test]
    fn two_that_claim_to_lead_are_rivals_and_neither_is_confirmed() {
        let claim = |epoch, port| Claim { epoch, node: node(port) };
        let of = |nodes: &[Found]| sum(nodes, &[], 1);
        let same = of(&[found(1, Role::Leader, 4, 1, &[1]), found(2, Role::Leader, 4, 2, &[2])]);
        assert_eq!((same.rivals.clone(), same.confirmed_leader()), (vec![claim(4, 1), claim(4, 2)], None));
        let both = of(&[found(1, Role::Leader, 4, 1, &[1]), found(2, Role::Leader, 5, 2, &[1, 2])]);
        assert_eq!((both.rivals.clone(), both.confirmed_leader()), (vec![claim(4, 1), claim(5, 2)], None));
        let named = of(&[found(1, Role::Leader, 4, 1, &[1]), found(2, Role::Follower, 4, 3, &[2, 3])]);
        assert_eq!(named.rivals, [claim(4, 1), claim(4, 3)]);
        let late = of(&[found(1, Role::Leader, 5, 1, &[1, 2]), found(2, Role::Follower, 4, 3, &[2, 3])]);
        assert_eq!((late.rivals.len(), late.confirmed_leader()), (0, Some(&node(1))), "it is only late");
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
