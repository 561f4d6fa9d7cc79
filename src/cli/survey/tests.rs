//! Which nodes a role names: none without a leader that an in-sync node confirms.

use super::super::status::tests::survey;
use super::*;
use crate::rules::without;

/// The survey of two that serve and one that is down, changed, and what it adds up to.
fn changed(change: impl FnOnce(&mut Vec<NodeSurvey>)) -> Survey {
    let mut found = survey(Some(1));
    change(&mut found.nodes);
    let nodes: Vec<Found> = found.nodes.iter().map(NodeSurvey::found).collect();
    found.sum = health::sum(&nodes, &[], 1);
    found
}

fn silence(one: &mut NodeSurvey) {
    one.answer = None;
    one.record.phase = Phase::Serving;
    one.unanswered = Some("too many open files".to_owned());
}

fn refused(found: &Survey, role: &str) -> (Exit, String) {
    let failure = found.targets(role).unwrap_err();
    (failure.exit, failure.message)
}

#[test]
fn roles_name_nothing_where_the_only_node_that_may_lead_cannot_be_asked() {
    let found = changed(|nodes| {
        silence(&mut nodes[0]);
        let other = nodes[1].answer.as_mut().unwrap();
        other.leader = String::new();
        other.ready = false;
    });
    for role in ["leader", "follower", "followers"] {
        let (exit, message) = refused(&found, role);
        assert_eq!(exit, Exit::Unavailable, "{role}");
        assert!(
            message.contains("127.0.0.1:2379 may lead and cannot be asked: too many open files"),
            "{message}"
        );
    }
    assert_eq!(found.targets("all").unwrap().len(), 3, "an address list needs no role");
    assert_eq!(found.targets(":2380").unwrap().len(), 1);
}

#[test]
fn a_leader_that_only_its_followers_can_name_is_never_among_the_followers() {
    let found = changed(|nodes| silence(&mut nodes[0]));
    assert_eq!(found.targets("leader").unwrap()[0].as_str(), "127.0.0.1:2379");
    let followers = found.targets("followers").unwrap();
    assert_eq!(followers.iter().map(NodeId::as_str).collect::<Vec<_>>(), ["127.0.0.1:2380"]);
    assert_eq!(found.sum.state, ClusterState::Degraded);
}

#[test]
fn roles_name_nothing_where_two_claim_to_lead() {
    let found = changed(|nodes| {
        let answer = nodes[1].answer.as_mut().unwrap();
        answer.role = crate::proto::replcluster::describe_response::Role::Leader.into();
        answer.leader = "127.0.0.1:2380".to_owned();
    });
    let (exit, message) = refused(&found, "leader");
    assert_eq!(exit, Exit::Unavailable);
    assert!(
        message.contains("two leaders: 127.0.0.1:2379 (epoch 4) and 127.0.0.1:2380 (epoch 4)"),
        "{message}"
    );
    assert!(found.targets("followers").is_err());
}

#[test]
fn where_nothing_runs_a_role_is_refused_as_not_running() {
    let found = changed(|nodes| {
        for one in nodes {
            (one.answer, one.process, one.stat) = (None, None, None);
        }
    });
    assert_eq!(refused(&found, "leader").0, Exit::NotRunning);
}

#[test]
fn a_verb_on_the_followers_never_hits_the_leader() {
    // The leader has no descriptor left to answer with, and its follower has just lost it.
    let found = changed(|nodes| {
        silence(&mut nodes[0]);
        let other = nodes[1].answer.as_mut().unwrap();
        other.leader = String::new();
        other.ready = false;
    });
    for rule in [None, Some(Rule::ConfirmRoles)] {
        let named = without(rule, || found.targets("followers")).unwrap_or_default();
        let hit = named.iter().any(|node| node.as_str() == "127.0.0.1:2379");
        assert_eq!(hit, rule.is_some(), "{rule:?}: {named:?}");
    }
}
