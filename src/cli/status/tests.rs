use serde_json::json;

use super::super::holder::Holder;
use super::object::json as object;
use super::survey::NodeSurvey;
use super::words::{headline, last};
use super::*;
use crate::control::cause::Cause;
use crate::control::health;
use crate::proto::replcluster::DescribeResponse;
use crate::proto::replcluster::describe_response::Role as WireRole;
use crate::supervisor::ask::account;
use crate::supervisor::events::{Entry, Event};
use crate::supervisor::os::Stat;
use crate::supervisor::record::{LastExit, NodeRecord};
use crate::view::NodeId;

/// Two that serve and one that was killed.
pub(in crate::cli) fn survey(supervisor: Option<u32>) -> Survey {
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
        holder: None,
        seen: Some(Duration::from_millis(40)),
        unanswered: None,
        named: None,
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
        holder: None,
        seen: Some(Duration::from_secs(75)),
        unanswered: Some("tcp connect error".to_owned()),
        named: None,
    };
    let nodes = vec![answering(2379, WireRole::Leader, 12), answering(2380, WireRole::Follower, 10), dead];
    let found: Vec<_> = nodes
        .iter()
        .map(|one| health::Found {
            node: one.node.clone(),
            process: if one.process.is_some() {
                health::Process::Present { paused: false, overdue: true }
            } else {
                health::Process::Absent
            },
            account: one.answer.as_ref().map(account),
        })
        .collect();
    let supervisor = supervisor.map_or(Supervision::Dead, Supervision::Running);
    Survey {
        supervisor,
        sum: health::sum(&found, &[], 1),
        nodes,
        unlisted: vec![],
        unlisted_running: vec![],
        register_trouble: None,
    }
}

fn shown(found: &Survey, width: Option<usize>) -> Vec<String> {
    table::table(found, width).iter().map(|line| plain(line)).collect()
}

#[test]
fn the_table_is_as_documented() {
    assert_eq!(
        shown(&survey(Some(7)), None),
        [
            "  NODE            ROLE      STATE  IN-SYNC  LAG  REVISION  PID    UPTIME  RESTARTS  CPU  MEMORY  SEEN",
            "▶ 127.0.0.1:2379  leader    ready  yes      -    18204     43379  0s      1         4%   31M     0.0s",
            "  127.0.0.1:2380  follower  ready  yes      2    18204     43380  0s      1         4%   31M     0.0s",
            "  127.0.0.1:2381  -         down   no       -    -         -      -       0         -    -       1m15s",
        ]
    );
}

#[test]
fn the_table_loses_columns_in_a_fixed_order_as_it_narrows() {
    let cases: [(usize, &[&str]); 5] = [
        (
            80,
            &[
                "  NODE            ROLE      STATE  IN-SYNC  LAG  REVISION  PID    UPTIME  SEEN",
                "▶ 127.0.0.1:2379  leader    ready  yes      -    18204     43379  0s      0.0s",
                "  127.0.0.1:2380  follower  ready  yes      2    18204     43380  0s      0.0s",
                "  127.0.0.1:2381  -         down   no       -    -         -      -       1m15s",
            ],
        ),
        (
            60,
            &[
                "  NODE            ROLE      STATE  IN-SYNC  LAG  SEEN",
                "▶ 127.0.0.1:2379  leader    ready  yes      -    0.0s",
                "  127.0.0.1:2380  follower  ready  yes      2    0.0s",
                "  127.0.0.1:2381  -         down   no       -    1m15s",
            ],
        ),
        (
            40,
            &[
                "  NODE            ROLE      STATE",
                "▶ 127.0.0.1:2379  leader    ready",
                "  127.0.0.1:2380  follower  ready",
                "  127.0.0.1:2381  -         down",
            ],
        ),
        (
            30,
            &[
                "  NODE         ROLE      STATE",
                "▶ 127….1:2379  leader    ready",
                "  127….1:2380  follower  ready",
                "  127….1:2381  -         down",
            ],
        ),
        (
            20,
            &["  NODE   ROLE  STATE", "▶ 1…2379 lead… ready", "  1…2380 foll… ready", "  1…2381 -     down"],
        ),
    ];
    for (width, expected) in cases {
        assert_eq!(shown(&survey(Some(7)), Some(width)), expected, "{width} columns");
    }
}

#[test]
fn no_width_makes_a_line_wrap_or_loses_a_node() {
    let found = survey(None);
    for width in 1..130 {
        let lines = shown(&found, Some(width));
        assert_eq!(lines.len(), 4, "{width}");
        assert!(lines.iter().all(|line| columns(line) <= width), "{width}: {lines:?}");
        let headline = wrap(&headline("demo", &found), width);
        assert!(headline.iter().all(|line| columns(&plain(line)) <= width), "{width}: {headline:?}");
    }
}

/// What it says of a node.
fn answer_of(found: &mut Survey, index: usize) -> &mut DescribeResponse {
    found.nodes[index].answer.as_mut().unwrap()
}

#[test]
fn a_node_that_runs_and_says_nothing_shows_what_it_last_said_as_old() {
    let mut found = survey(Some(7));
    let silent = &mut found.nodes[1];
    silent.answer = None;
    silent.seen = Some(Duration::from_millis(3_240));
    silent.record.last_answer = Some(crate::supervisor::record::LastAnswer {
        at: "t".to_owned(),
        epoch: 4,
        leader: "127.0.0.1:2379".to_owned(),
        applied: 8,
        revision: 18_200,
    });
    found.sum.lags[1] = None;
    assert_eq!(
        shown(&found, None)[2],
        "  127.0.0.1:2380  ?       ready  yes      -    18200?    43380  0s      1         4%   31M     3.2s"
    );
    let row = &table::table(&found, None)[2];
    let dim = |text: &str| row.iter().find(|one| one.text == text).unwrap().tone == Tone::Dim;
    assert!(dim("18200?") && dim("3.2s") && !dim("43380"));
    let value = object("demo", &found);
    assert_eq!((&value["nodes"][1]["seen_ms"], &value["nodes"][1]["revision"]), (&json!(3240), &json!(null)));
    assert_eq!(value["nodes"][1]["last_said"]["revision"], 18_200);
    assert_eq!(value["nodes"][0]["last_said"], json!(null));
}

#[test]
fn nodes_that_disagree_are_each_quoted_and_those_that_agree_are_not() {
    let mut found = survey(Some(7));
    assert_eq!(words::disagreement(&found), Vec::<Line>::new());
    answer_of(&mut found, 1).epoch = 3;
    answer_of(&mut found, 1).in_sync.push("127.0.0.1:2381".to_owned());
    let told: Vec<String> = words::disagreement(&found).iter().map(|line| plain(line)).collect();
    assert_eq!(
        told,
        [
            "127.0.0.1:2379 says: epoch 4, leader 127.0.0.1:2379, in sync 127.0.0.1:2379, 127.0.0.1:2380",
            "127.0.0.1:2380 says: epoch 3, leader 127.0.0.1:2379, in sync 127.0.0.1:2379, 127.0.0.1:2380, 127.0.0.1:2381",
        ]
    );
    answer_of(&mut found, 1).leader.clear();
    let told: Vec<String> = words::disagreement(&found).iter().map(|line| plain(line)).collect();
    assert_eq!(told[1], "127.0.0.1:2380 says: epoch 3, no leader");
    answer_of(&mut found, 1).role = WireRole::Joining.into();
    assert_eq!(words::disagreement(&found), Vec::<Line>::new(), "on its way in it has no opinion yet");
    let opinions = &object("demo", &found)["opinions"];
    assert_eq!(opinions.as_array().unwrap().len(), 2, "the JSON quotes all that answered");
    assert_eq!(opinions[1]["leader"], json!(null));
    assert_eq!(opinions[0]["in_sync"], json!(["127.0.0.1:2379", "127.0.0.1:2380"]));
}

#[test]
fn a_node_that_was_given_up_says_why_and_what_to_do() {
    let mut found = survey(Some(7));
    found.sum.states[2] = crate::control::health::NodeState::Failed;
    let gave_up = Event::GaveUp {
        node: "127.0.0.1:2381".to_owned(),
        reason: "restarts do not help: last exit code 1".to_owned(),
    };
    let history = [Entry { at: "x".to_owned(), id: String::new(), event: gave_up }];
    let told: Vec<String> = words::given_up(&found, &history).iter().map(|line| plain(line)).collect();
    assert_eq!(
        told,
        [
            "127.0.0.1:2381 failed: restarts do not help: last exit code 1; it ended at t (SIGKILL, operator). \
          See `replcluster logs 127.0.0.1:2381`, then `replcluster start 127.0.0.1:2381`"
        ]
    );
}

#[test]
fn a_frame_is_written_over_the_last_one_and_says_what_does_not_fit() {
    let frame: Vec<Line> = (0..5).map(|row| vec![piece(Tone::Plain, format!("row {row}"))]).collect();
    let first = in_place(&frame, Some((40, 24)), true);
    assert!(first.contains("\x1b[2J") && first.contains("row 4"), "{first:?}");
    let next = in_place(&frame, Some((40, 24)), false);
    assert!(!next.contains("\x1b[2J") && next.contains("\x1b[Hrow 0\x1b[K\r\n"), "{next:?}");
    let low = in_place(&frame, Some((40, 4)), false);
    assert!(low.contains("row 1") && !low.contains("row 2") && low.contains("… 3 more lines"), "{low:?}");
}

#[test]
fn the_headline_says_what_the_nodes_add_up_to_and_whether_a_supervisor_lives() {
    let told = |found: &Survey| plain(&headline("demo", found));
    assert_eq!(
        told(&survey(Some(7))),
        "demo  degraded  epoch 4  leader 127.0.0.1:2379  agreed 2/3  survives 1 more failure"
    );
    assert!(told(&survey(None)).ends_with("supervisor dead: `replcluster up` starts another"));
    let mut hung = survey(None);
    hung.supervisor = Supervision::Silent(7);
    assert!(told(&hung).contains("supervisor (pid 7) does not answer: `replcluster kill supervisor`"));
    assert_eq!(object("demo", &hung)["supervisor"], json!({"state": "silent", "pid": 7}));
}

#[test]
fn the_json_has_every_documented_field() {
    let value = object("demo", &survey(Some(7)));
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
        "opinions",
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
        "seen_ms",
        "last_said",
        "waiting_for",
        "held_by",
    ];
    for key in fields {
        assert!(value["nodes"][0].get(key).is_some(), "{key}");
    }
    let dead = &value["nodes"][2];
    assert_eq!((dead["role"].as_str(), dead["state"].as_str()), (Some("none"), Some("down")));
    assert_eq!(dead["last_exit"], json!({"code": null, "signal": 9, "cause": "operator", "at": "t"}));
    assert_eq!(object("demo", &survey(None))["supervisor"], json!({"state": "dead", "pid": null}));
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
        nodes: vec!["h:1".to_owned()],
        leader: Some("h:2".to_owned()),
        unavailable_ms: Some(11.0),
        silent_ms: None,
        acknowledged: Some(1),
        lost: Some(0),
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

#[test]
fn below_min_in_sync_the_headline_says_that_writes_are_refused() {
    let mut found = survey(Some(7));
    found.sum.min_in_sync = 3;
    found.sum.state = ClusterState::Unavailable;
    assert_eq!(
        plain(&headline("demo", &found)),
        "demo  unavailable  epoch 4  leader 127.0.0.1:2379  agreed 2/3  writes are refused: min_in_sync is 3 and 2 are in sync"
    );
    assert_eq!(object("demo", &found)["refuses_writes"], true);
}

#[test]
fn who_is_there_instead_of_a_node_is_named() {
    let mut found = survey(Some(7));
    for one in &mut found.nodes {
        if let Some(answer) = &mut one.answer {
            answer.cluster_name = "demo".to_owned();
        }
    }
    assert_eq!(words::odd("demo", &found), Vec::<Line>::new());
    let told = |found: &Survey| {
        words::odd("demo", found).iter().map(|line| plain(line)).collect::<Vec<_>>().join("\n")
    };
    found.nodes[2].holder = Some(Holder::Foreign {
        cluster: "demo".to_owned(),
        pid: 9,
        data_dir: Some("/elsewhere/nodes/n/data".into()),
    });
    assert_eq!(
        told(&found),
        "127.0.0.1:2381 is held by another cluster called demo (pid 9, data in /elsewhere)"
    );
    assert_eq!(object("demo", &found)["nodes"][2]["held_by"]["data_dir"], "/elsewhere/nodes/n/data");
    found.nodes[2].holder = None;
    answer_of(&mut found, 1).cluster_name = "old".to_owned();
    assert!(told(&found).contains("127.0.0.1:2380 answers as a node of old"), "{}", told(&found));
}

#[test]
fn a_node_says_what_it_waits_for_and_a_silent_one_since_when() {
    let mut found = survey(Some(7));
    answer_of(&mut found, 0).cluster_name = "demo".to_owned();
    answer_of(&mut found, 0).waiting_for = "room on its disk: only 12 MiB are free".to_owned();
    let told: Vec<String> = words::waits(&found).iter().map(|line| plain(line)).collect();
    assert_eq!(told, ["127.0.0.1:2379 waits for room on its disk: only 12 MiB are free"]);
    found.nodes[1].answer = None;
    found.nodes[1].stat = None;
    found.nodes[1].seen = Some(Duration::from_secs(75));
    found.sum.states[1] = crate::control::health::NodeState::Silent;
    let told: Vec<String> = words::odd("demo", &found).iter().map(|line| plain(line)).collect();
    assert_eq!(
        told,
        [
            "127.0.0.1:2380 (pid 43380) runs and has not answered for 1m15s. See `replcluster logs 127.0.0.1:2380`"
        ]
    );
}

#[test]
fn the_last_line_credits_nothing_with_a_leader_that_it_did_not_make() {
    let at = |event| Entry { at: "x".to_owned(), id: String::new(), event };
    let command = |command: &str, nodes: &[&str]| Event::Command {
        command: command.to_owned(),
        nodes: nodes.iter().map(ToString::to_string).collect(),
        signal: None,
        leader: Some("h:1".to_owned()),
    };
    let view = |leader: &str| Event::View { epoch: 5, leader: leader.to_owned(), in_sync: vec![] };
    let judged = |nodes: &[&str], leader: &str, resumed: bool| Event::Verdict {
        nodes: nodes.iter().map(ToString::to_string).collect(),
        leader: Some(leader.to_owned()),
        unavailable_ms: resumed.then_some(5004.0),
        silent_ms: (!resumed).then_some(5004.0),
        acknowledged: Some(1),
        lost: Some(0),
        verdict: "proved".to_owned(),
    };
    let verdict = |nodes: &[&str], leader: &str| judged(nodes, leader, true);
    for (history, expected) in [
        (
            vec![command("log-level debug", &["h:1", "h:2"]), view("h:2")],
            "x log-level debug (h:1, h:2, operator)",
        ),
        (vec![command("stop follower", &["h:3"]), view("h:2")], "x stop follower (h:3, operator)"),
        (vec![command("stop leader", &["h:1"]), view("h:2")], "x stop leader (h:1, operator) → h:2 leads"),
        (vec![command("move-leader", &["h:2"]), view("h:2")], "x move-leader (h:2, operator) → h:2 leads"),
        (
            vec![command("kill h:3", &["h:3"]), verdict(&["h:3"], "h:1")],
            "x kill h:3 (h:3, operator) → writes paused 5 004 ms",
        ),
        (
            vec![command("kill h:3", &["h:3"]), judged(&["h:3"], "h:1", false)],
            "x kill h:3 (h:3, operator) → writes did not come back within 5 004 ms",
        ),
        (
            vec![command("kill h:1", &["h:1"]), judged(&["h:1"], "h:2", false)],
            "x kill h:1 (h:1, operator) → h:2 leads, and writes did not come back within 5 004 ms",
        ),
        (vec![command("resume h:3", &["h:3"]), verdict(&["h:3"], "h:2")], "x resume h:3 (h:3, operator)"),
    ] {
        let history: Vec<Entry> = history.into_iter().map(at).collect();
        assert_eq!(last(&history).unwrap(), expected);
    }
}

#[test]
fn without_a_process_nobodys_word_is_a_nodes_own() {
    let mut found = survey(Some(7));
    let one = &mut found.nodes[0];
    let pid = one.process.as_ref().unwrap().pid;
    one.answer.as_mut().unwrap().pid = pid;
    assert!(one.own_answer().is_some());
    one.answer.as_mut().unwrap().pid = pid + 1;
    assert!(one.own_answer().is_none(), "another process");
    one.process = None;
    assert!(one.own_answer().is_none(), "between two starts of a node that crashes");
}

#[test]
fn a_node_that_is_tried_again_later_says_when_and_why() {
    use crate::control::cause::Trouble;
    use crate::supervisor::record::Phase;
    let mut found = survey(Some(1));
    let record = &mut found.nodes[2].record;
    (record.phase, record.failures, record.restart_in_ms) = (Phase::Waiting, 12, Some(37_400));
    let exit = record.last_exit.as_mut().unwrap();
    (exit.code, exit.signal, exit.cause) = (Some(5), None, Cause::Crash);
    (exit.trouble, exit.words) =
        (Some(Trouble::Port), Some("127.0.0.1:2381 is taken by nginx (pid 7)".to_owned()));
    let line = plain(&words::retried(&found)[0]);
    assert!(
        line.starts_with("127.0.0.1:2381 is started again in 37s (it failed 12 times in a row)"),
        "{line}"
    );
    assert!(line.contains("its port is taken): 127.0.0.1:2381 is taken by nginx"), "{line}");
    assert_eq!(object("demo", &found)["nodes"][2]["restart_in_ms"], 37_400);
    found.supervisor = Supervision::Dead;
    assert!(plain(&words::retried(&found)[0]).contains("while no supervisor runs"));
    assert_eq!(object("demo", &found)["nodes"][2]["restart_in_ms"], serde_json::Value::Null);
}

#[test]
fn two_leaders_stand_above_the_table_and_in_the_object() {
    let mut found = survey(Some(1));
    let answer = found.nodes[1].answer.as_mut().unwrap();
    answer.role = WireRole::Leader.into();
    answer.leader = "127.0.0.1:2380".to_owned();
    let nodes: Vec<_> = found.nodes.iter().map(NodeSurvey::found).collect();
    found.sum = health::sum(&nodes, &[], 1);
    let above = plain(&headline("demo", &found));
    assert!(above.contains("two leaders: 127.0.0.1:2379 (epoch 4) and 127.0.0.1:2380 (epoch 4)"), "{above}");
    let object = object("demo", &found);
    assert_eq!((&object["two_leaders"], &object["state"]), (&true.into(), &"degraded".into()));
    assert_eq!(object["claims"].as_array().unwrap().len(), 2);
}

#[test]
fn a_leader_that_cannot_be_asked_is_never_said_to_be_none() {
    use crate::supervisor::record::Phase;
    let silenced = |change: fn(&mut Survey)| {
        let mut found = survey(Some(1));
        found.nodes[0].answer = None;
        found.nodes[0].unanswered = Some("too many open files".to_owned());
        found.nodes[0].record.phase = Phase::Serving;
        change(&mut found);
        let nodes: Vec<_> = found.nodes.iter().map(NodeSurvey::found).collect();
        found.sum = health::sum(&nodes, &[], 1);
        let notes = words::unconfirmed(&found).iter().map(|line| plain(line)).collect::<String>();
        (plain(&headline("demo", &found)), notes, object("demo", &found))
    };
    let (above, notes, object) = silenced(|_| {});
    assert!(above.contains("degraded") && above.contains("leader 127.0.0.1:2379"), "{above}");
    assert!(
        notes.contains("127.0.0.1:2379 could not be asked: too many open files. Its followers hear it"),
        "{notes}"
    );
    assert_eq!(object["leader_confirmed_by"], "followers");
    let (above, notes, object) = silenced(|found| found.nodes[1].answer = None);
    assert!(above.contains("leader not known") && !above.contains("none"), "{above}");
    assert!(notes.contains("127.0.0.1:2379 may lead and cannot be asked: too many open files"), "{notes}");
    assert_eq!((&object["agreement"], &object["leader"]), (&"unknown".into(), &serde_json::Value::Null));
    assert!(object["cannot_know"].as_str().unwrap().contains("cannot be asked"), "{object}");
}
