//! The status as the JSON object that scripts depend on. Fields are added, never changed.

use std::time::Duration;

use serde_json::{Value, json};

use crate::control::health::{Claim, Role};
use crate::supervisor::ask::account;

use super::super::holder::Holder;
use super::super::survey::{NodeSurvey, Supervision, Survey};

pub(super) fn json(cluster: &str, found: &Survey) -> Value {
    let sum = &found.sum;
    let supervisor = match found.supervisor {
        Supervision::Running(pid) => json!({"state": "running", "pid": pid}),
        Supervision::Silent(pid) => json!({"state": "silent", "pid": pid}),
        Supervision::Dead => json!({"state": "dead", "pid": null}),
    };
    let nodes: Vec<Value> =
        found.nodes.iter().enumerate().map(|(index, one)| json_node(found, index, one)).collect();
    json!({
        "schema": 1,
        "cluster": cluster,
        "state": sum.state,
        "epoch": sum.epoch,
        "leader": sum.leader.as_ref().map(ToString::to_string),
        "leader_confirmed_by": sum.confirmation,
        "two_leaders": !sum.rivals.is_empty(),
        "claims": sum.rivals.iter().map(json_claim).collect::<Vec<_>>(),
        "cannot_know": found.why_unconfirmed(),
        "in_sync": sum.in_sync.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "failures_tolerated": sum.failures_tolerated,
        "refuses_writes": sum.refuses_writes(),
        "agreement": sum.agreement,
        "supervisor": supervisor,
        "opinions": found.nodes.iter().filter_map(opinion).collect::<Vec<_>>(),
        "nodes": nodes,
    })
}

/// A node that is taken for the leader where another one is too.
pub(in crate::cli) fn json_claim(claim: &Claim) -> Value {
    json!({"address": claim.node.to_string(), "epoch": claim.epoch})
}

/// What a node that answered takes for the view.
fn opinion(one: &NodeSurvey) -> Option<Value> {
    let account = account(one.answer.as_ref()?);
    Some(json!({
        "address": one.node.to_string(),
        "epoch": account.epoch,
        "leader": account.leader.as_ref().map(ToString::to_string),
        "in_sync": account.in_sync.iter().map(ToString::to_string).collect::<Vec<_>>(),
    }))
}

fn json_node(found: &Survey, index: usize, one: &NodeSurvey) -> Value {
    let answer = one.answer.as_ref();
    let milliseconds = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let uptime_ms = one.uptime().map(milliseconds);
    json!({
        "address": one.node.to_string(),
        "role": answer.map_or(Role::None, |answer| account(answer).role),
        "state": found.sum.states[index],
        "in_sync": found.sum.in_sync.contains(&one.node),
        "epoch": answer.map(|answer| answer.epoch),
        "applied": answer.map(|answer| answer.applied_index),
        "lag": found.sum.lags[index],
        "revision": answer.map(|answer| answer.revision),
        "pid": one.pid(),
        "uptime_ms": uptime_ms,
        "restarts": one.record.spawns.saturating_sub(1),
        "cpu_percent": one.cpu_percent(),
        "memory_bytes": one.stat.as_ref().map(|stat| stat.resident_bytes),
        "disk_bytes": answer.map(|answer| answer.disk_bytes),
        "last_exit": one.record.last_exit,
        "failures": one.record.failures,
        "restart_in_ms": restart_in_ms(found, one),
        "seen_ms": one.seen.map(milliseconds),
        "last_said": one.record.last_answer.as_ref().filter(|_| answer.is_none()),
        "waiting_for": answer.map(|answer| &answer.waiting_for).filter(|text| !text.is_empty()),
        "unanswered": one.unanswered.as_ref().filter(|_| one.process.is_some()),
        "held_by": one.holder.as_ref().map(json_holder),
    })
}

/// When a node that ended by itself is started again; only a living supervisor does so.
fn restart_in_ms(found: &Survey, one: &NodeSurvey) -> Option<u64> {
    let runs = matches!(found.supervisor, Supervision::Running(_));
    one.record.restart_in_ms.filter(|_| runs && one.process.is_none())
}

/// Who is there instead of the node.
fn json_holder(holder: &Holder) -> Value {
    match holder {
        Holder::Foreign { cluster, pid, data_dir } => {
            json!({"kind": "foreign", "cluster": cluster, "pid": pid, "data_dir": data_dir})
        }
        Holder::Deserted(id) => json!({"kind": "deserted", "pid": id.pid}),
    }
}
