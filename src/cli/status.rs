//! `status`: how every node stands by its own account, what that adds up to, and what happened last.
//! Values in, text or JSON out; the exit code says it to scripts.

use std::fmt::Write as _;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use crate::control::health::{Agreement, ClusterState, NodeState, Role};
use crate::supervisor::ask::account;
use crate::supervisor::events::{self, Entry, Event};

use super::context::Context;
use super::exit::{Exit, Outcome};
use super::render::{self, DIM, GREEN, PLAIN, RED, YELLOW};
use super::survey::{self, NodeSurvey, Survey};
use super::waiting;

#[derive(Debug, Args)]
pub(super) struct Status {
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
    /// Print it again twice a second until Ctrl-C
    #[arg(long)]
    watch: bool,
}

/// So much of the end of the history is looked through for what happened last.
const HISTORY_BYTES: u64 = 256 * 1024;
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

pub(super) async fn run(verb: &Status, context: &Context) -> Outcome {
    loop {
        let found = survey::survey(context).await?;
        if context.json {
            anstream::println!("{}", json(&context.config.name, &found));
        } else {
            if verb.watch && std::io::IsTerminal::is_terminal(&std::io::stdout()) {
                anstream::print!("\x1b[H\x1b[2J");
            }
            print_table(context, &found);
        }
        if !verb.watch {
            return Ok(exit(found.sum.state));
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

fn exit(state: ClusterState) -> Exit {
    match state {
        ClusterState::Healthy => Exit::Done,
        ClusterState::Degraded => Exit::Degraded,
        ClusterState::Unavailable => Exit::Unavailable,
        ClusterState::Stopped => Exit::NotRunning,
    }
}

/// Prints the table, and what happened last.
pub(super) fn print_table(context: &Context, found: &Survey) {
    anstream::println!("{}", headline(&context.config.name, found));
    for line in table(found) {
        anstream::println!("{line}");
    }
    if let Some(waiting) = waiting::waiting(context, found) {
        anstream::println!("{YELLOW}{}{PLAIN}\n{}", waiting.what, waiting.next);
    }
    // The history only explains: without it the status is the same.
    let history = events::recent(&context.layout.events(), HISTORY_BYTES).unwrap_or_default();
    if let Some(last) = last(&history) {
        anstream::println!("{DIM}last: {last}{PLAIN}");
    }
}

fn headline(cluster: &str, found: &Survey) -> String {
    let sum = &found.sum;
    let (colour, state) = match sum.state {
        ClusterState::Healthy => (GREEN, "healthy"),
        ClusterState::Degraded => (YELLOW, "degraded"),
        ClusterState::Unavailable => (RED, "unavailable"),
        ClusterState::Stopped => (DIM, "stopped"),
    };
    let mut text = format!("{cluster}  {colour}{state}{PLAIN}");
    let count = found.nodes.len();
    // Writing into a string cannot fail.
    if sum.state != ClusterState::Stopped {
        let leader = sum.leader.as_ref().map_or("none".to_owned(), ToString::to_string);
        let _ = write!(text, "  epoch {}  leader {leader}", sum.epoch);
        let _ = match sum.agreement {
            Agreement::Agreed => write!(text, "  agreed {}/{count}", sum.agreeing),
            Agreement::Disagree => write!(text, "  {RED}disagree{PLAIN}, {}/{count} agree", sum.agreeing),
            Agreement::NoLeader => write!(text, "  nobody knows a leader"),
        };
        if sum.leader.is_some() {
            let _ = match sum.failures_tolerated {
                1 => write!(text, "  survives 1 more failure"),
                more => write!(text, "  survives {more} more failures"),
            };
        }
    }
    if found.supervisor.is_none() {
        let advice =
            if sum.state == ClusterState::Stopped { "" } else { ": `replcluster up` starts another" };
        let _ = write!(text, "  {YELLOW}supervisor dead{advice}{PLAIN}");
    }
    text
}

fn table(found: &Survey) -> Vec<String> {
    let header = [
        "  NODE", "ROLE", "STATE", "IN-SYNC", "LAG", "REVISION", "PID", "UPTIME", "RESTARTS", "CPU", "MEMORY",
    ];
    let rows = found.nodes.iter().enumerate().map(|(index, one)| row(found, index, one)).collect();
    let mut lines = render::table(&header, rows);
    for (line, state) in lines.iter_mut().skip(1).zip(&found.sum.states) {
        let colour = match state {
            NodeState::Ready => continue,
            NodeState::Starting | NodeState::Syncing | NodeState::Paused => YELLOW,
            NodeState::Down | NodeState::Failed => RED,
        };
        *line = format!("{colour}{line}{PLAIN}");
    }
    lines
}

fn row(found: &Survey, index: usize, one: &NodeSurvey) -> Vec<String> {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let sum = &found.sum;
    let mark = if sum.leader.as_ref() == Some(&one.node) { "▶" } else { " " };
    let role = one.answer.as_ref().map(|answer| account(answer).role);
    let resident = one.stat.as_ref().map(|stat| render::bytes(stat.resident_bytes));
    vec![
        format!("{mark} {}", one.node),
        or_dash(role.filter(|role| *role != Role::None).map(|role| word(&role))),
        word(&sum.states[index]),
        if sum.in_sync.contains(&one.node) { "yes" } else { "no" }.to_owned(),
        or_dash(sum.lags[index].map(|lag| lag.to_string())),
        or_dash(one.answer.as_ref().map(|answer| answer.revision.to_string())),
        or_dash(one.pid().map(|pid| pid.to_string())),
        or_dash(one.uptime().map(render::span)),
        one.record.spawns.saturating_sub(1).to_string(),
        or_dash(one.cpu_percent().map(|percent| format!("{percent:.0}%"))),
        or_dash(resident),
    ]
}

/// The word of the interface for one of its enums.
fn word<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

fn json(cluster: &str, found: &Survey) -> Value {
    let sum = &found.sum;
    let supervisor = match found.supervisor {
        Some(pid) => json!({"state": "running", "pid": pid}),
        None => json!({"state": "dead", "pid": null}),
    };
    let nodes: Vec<Value> =
        found.nodes.iter().enumerate().map(|(index, one)| json_node(found, index, one)).collect();
    json!({
        "schema": 1,
        "cluster": cluster,
        "state": sum.state,
        "epoch": sum.epoch,
        "leader": sum.leader.as_ref().map(ToString::to_string),
        "in_sync": sum.in_sync.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "failures_tolerated": sum.failures_tolerated,
        "agreement": sum.agreement,
        "supervisor": supervisor,
        "nodes": nodes,
    })
}

fn json_node(found: &Survey, index: usize, one: &NodeSurvey) -> Value {
    let answer = one.answer.as_ref();
    let uptime_ms = one.uptime().map(|uptime| u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX));
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
        "waiting_for": answer.map(|answer| &answer.waiting_for).filter(|text| !text.is_empty()),
    })
}

/// What happened last that a reader asks about: what the operator did, or an end nobody asked for; and what followed.
fn last(history: &[Entry]) -> Option<String> {
    let index = history.iter().rposition(|entry| match &entry.event {
        Event::Command { .. } | Event::GaveUp { .. } => true,
        Event::Exited { cause, .. } => *cause != crate::control::cause::Cause::Operator,
        Event::SupervisorStarted { .. }
        | Event::SupervisorEnded { .. }
        | Event::Started { .. }
        | Event::Adopted { .. }
        | Event::Ready { .. }
        | Event::View { .. }
        | Event::Fault { .. }
        | Event::Verdict { .. } => false,
    })?;
    let entry = &history[index];
    let mut text = format!("{} {}", render::time_of_day(&entry.at), super::events::sentence(&entry.event));
    let leader_before = match &entry.event {
        Event::Command { leader, .. } => leader.clone(),
        Event::SupervisorStarted { .. }
        | Event::SupervisorEnded { .. }
        | Event::Started { .. }
        | Event::Adopted { .. }
        | Event::Ready { .. }
        | Event::Exited { .. }
        | Event::GaveUp { .. }
        | Event::View { .. }
        | Event::Fault { .. }
        | Event::Verdict { .. } => {
            history[..index].iter().rev().find_map(|entry| view_leader(&entry.event)).map(str::to_owned)
        }
    };
    let verdict = history[index..].iter().find_map(|entry| match &entry.event {
        Event::Verdict { leader, unavailable_ms, .. } => Some((leader.clone(), *unavailable_ms)),
        Event::SupervisorStarted { .. }
        | Event::SupervisorEnded { .. }
        | Event::Started { .. }
        | Event::Adopted { .. }
        | Event::Ready { .. }
        | Event::Exited { .. }
        | Event::GaveUp { .. }
        | Event::View { .. }
        | Event::Fault { .. }
        | Event::Command { .. } => None,
    });
    // Views are told a moment late, so the first one after the event can still be the one before it.
    let mut leaders_after = history[index..].iter().filter_map(|entry| view_leader(&entry.event));
    let leader_after = leaders_after.find(|leader| leader_before.as_deref() != Some(*leader));
    match (verdict, leader_after) {
        (Some((Some(leader), Some(gap))), _) => {
            let _ = write!(text, " → {leader} leads after {}", render::milliseconds(gap));
        }
        (Some((Some(leader), None)), _) => {
            let _ = write!(text, " → {leader} leads");
        }
        (Some((None, _)), _) => text.push_str(" → nobody leads"),
        (None, Some(leader)) => {
            let _ = write!(text, " → {leader} leads");
        }
        (None, None) => {}
    }
    Some(text)
}

fn view_leader(event: &Event) -> Option<&str> {
    if let Event::View { leader, .. } = event { Some(leader) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::cause::Cause;
    use crate::control::health;
    use crate::proto::replcluster::DescribeResponse;
    use crate::proto::replcluster::describe_response::Role as WireRole;
    use crate::supervisor::os::Stat;
    use crate::supervisor::record::{LastExit, NodeRecord};
    use crate::view::NodeId;

    fn survey(supervisor: Option<u32>) -> Survey {
        let node = |port: u16| NodeId::parse(&format!("127.0.0.1:{port}")).unwrap();
        let in_sync = vec!["127.0.0.1:2379".to_owned(), "127.0.0.1:2380".to_owned()];
        let answering = |port: u16, role: WireRole, durable_index| NodeSurvey {
            node: node(port),
            record: NodeRecord { spawns: 2, cpu_percent: Some(4.2), ..NodeRecord::default() },
            process: Some(crate::supervisor::os::ProcessId {
                pid: 41_000 + u32::from(port),
                start_time: 0,
                boot_id: String::new(),
            }),
            stat: Some(Stat { state: 'S', cpu_ticks: 0, start_time: u64::MAX, resident_bytes: 31 << 20 }),
            answer: Some(DescribeResponse {
                address: node(port).to_string(),
                role: role.into(),
                ready: true,
                epoch: 4,
                leader: "127.0.0.1:2379".to_owned(),
                in_sync: in_sync.clone(),
                durable_index,
                applied_index: 9,
                revision: 18_204,
                disk_bytes: 77,
                ..DescribeResponse::default()
            }),
        };
        let dead = NodeSurvey {
            node: node(2381),
            record: NodeRecord {
                spawns: 1,
                last_exit: Some(LastExit {
                    code: None,
                    signal: Some(9),
                    cause: Cause::Operator,
                    at: "t".to_owned(),
                    trouble: None,
                    words: None,
                }),
                ..NodeRecord::default()
            },
            process: None,
            stat: None,
            answer: None,
        };
        let nodes =
            vec![answering(2379, WireRole::Leader, 12), answering(2380, WireRole::Follower, 10), dead];
        let found: Vec<_> = nodes
            .iter()
            .map(|one| health::Found {
                node: one.node.clone(),
                process: if one.process.is_some() {
                    health::Process::Present { paused: false }
                } else {
                    health::Process::Absent
                },
                account: one.answer.as_ref().map(account),
            })
            .collect();
        Survey { supervisor, sum: health::sum(&found, 1), nodes, unlisted: vec![] }
    }

    #[test]
    fn the_table_is_as_documented() {
        let lines: Vec<String> = table(&survey(Some(7)))
            .iter()
            .map(|line| anstream::adapter::strip_str(line).to_string())
            .collect();
        assert_eq!(
            lines,
            [
                "  NODE            ROLE      STATE  IN-SYNC  LAG  REVISION  PID    UPTIME  RESTARTS  CPU  MEMORY",
                "▶ 127.0.0.1:2379  leader    ready  yes      -    18204     43379  0s      1         4%   31M",
                "  127.0.0.1:2380  follower  ready  yes      2    18204     43380  0s      1         4%   31M",
                "  127.0.0.1:2381  -         down   no       -    -         -      -       0         -    -",
            ]
        );
    }

    #[test]
    fn the_headline_says_what_the_nodes_add_up_to_and_whether_a_supervisor_lives() {
        let plain = |found: &Survey| anstream::adapter::strip_str(&headline("demo", found)).to_string();
        assert_eq!(
            plain(&survey(Some(7))),
            "demo  degraded  epoch 4  leader 127.0.0.1:2379  agreed 2/3  survives 1 more failure"
        );
        assert!(plain(&survey(None)).ends_with("supervisor dead: `replcluster up` starts another"));
    }

    #[test]
    fn the_json_has_every_documented_field() {
        let value = json("demo", &survey(Some(7)));
        let top = [
            "schema",
            "cluster",
            "state",
            "epoch",
            "leader",
            "in_sync",
            "failures_tolerated",
            "agreement",
            "supervisor",
            "nodes",
        ];
        for key in top {
            assert!(value.get(key).is_some(), "{key}");
        }
        assert_eq!(value["state"], "degraded");
        assert_eq!(value["agreement"], "agreed");
        assert_eq!(value["supervisor"], json!({"state": "running", "pid": 7}));
        let fields = [
            "address",
            "role",
            "state",
            "in_sync",
            "epoch",
            "applied",
            "lag",
            "revision",
            "pid",
            "uptime_ms",
            "restarts",
            "cpu_percent",
            "memory_bytes",
            "disk_bytes",
            "last_exit",
        ];
        for key in fields {
            assert!(value["nodes"][0].get(key).is_some(), "{key}");
        }
        let dead = &value["nodes"][2];
        assert_eq!((dead["role"].as_str(), dead["state"].as_str()), (Some("none"), Some("down")));
        assert_eq!(dead["last_exit"], json!({"code": null, "signal": 9, "cause": "operator", "at": "t"}));
        assert_eq!(json("demo", &survey(None))["supervisor"], json!({"state": "dead", "pid": null}));
    }

    #[test]
    fn exit_codes_follow_the_state() {
        let codes =
            [ClusterState::Healthy, ClusterState::Degraded, ClusterState::Unavailable, ClusterState::Stopped]
                .map(|state| exit(state) as u8);
        assert_eq!(codes, [0, 8, 9, 3]);
    }

    #[test]
    fn the_last_line_tells_the_kill_and_who_leads_after_it() {
        let at = |event| Entry { at: "x".to_owned(), id: String::new(), event };
        let kill = Event::Command {
            command: "kill leader".to_owned(),
            nodes: vec!["h:1".to_owned()],
            signal: Some("SIGKILL".to_owned()),
            leader: Some("h:1".to_owned()),
        };
        let late = Event::View { epoch: 4, leader: "h:1".to_owned(), in_sync: vec![] };
        let view = Event::View { epoch: 5, leader: "h:2".to_owned(), in_sync: vec![] };
        let verdict = Event::Verdict {
            nodes: vec![],
            leader: Some("h:2".to_owned()),
            unavailable_ms: Some(11.0),
            acknowledged: 1,
            lost: 0,
            verdict: "proved".to_owned(),
        };
        assert_eq!(last(&[]), None);
        let told = last(&[at(kill.clone()), at(view.clone()), at(verdict)]).unwrap();
        assert_eq!(told, "x kill leader (h:1, SIGKILL, operator) → h:2 leads after 11 ms");
        let unchanged = "x kill leader (h:1, SIGKILL, operator)";
        assert_eq!(last(&[at(kill.clone()), at(late.clone())]).unwrap(), unchanged);
        let moved = "x kill leader (h:1, SIGKILL, operator) → h:2 leads";
        assert_eq!(last(&[at(kill), at(late), at(view)]).unwrap(), moved);
    }
}
