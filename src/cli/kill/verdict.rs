//! What became of a kill, in words and as JSON. Values in, text out.

use serde_json::json;

use crate::client::probe::{Evidence, Verdict};
use crate::control::health::Claim;
use crate::supervisor::events::Event;
use crate::view::NodeId;

use super::super::render::{grouped, milliseconds};
use super::super::status::json_claim;
use super::super::survey::Survey;
use super::victims::{Intent, Victim};

pub(super) fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Proved => "proved",
        Verdict::Violated => "violated",
        Verdict::Inconclusive => "inconclusive",
    }
}

/// Who leads after the kill, as far as in-sync nodes confirm it.
#[derive(Clone, Debug, Default)]
pub(super) struct Leadership {
    /// The confirmed leader.
    pub leader: Option<NodeId>,
    /// Why none is confirmed, where that does not just mean that none leads.
    pub unconfirmed: Option<String>,
    /// The claims where several nodes claim to lead.
    pub claims: Vec<Claim>,
}

impl Leadership {
    /// As found by a look at the cluster.
    pub fn of(found: &Survey) -> Leadership {
        Leadership {
            leader: found.sum.confirmed_leader().cloned(),
            unconfirmed: found.why_unconfirmed(),
            claims: found.sum.rivals.clone(),
        }
    }

    fn text(&self) -> String {
        match (&self.leader, &self.unconfirmed) {
            (Some(leader), _) => format!("{leader} leads"),
            (None, Some(why)) => format!("no leader is confirmed: {why}"),
            (None, None) => "nobody leads".to_owned(),
        }
    }

    /// What the evidence amounts to: nothing is proved of a cluster in which several nodes claim to lead.
    pub fn temper(&self, mut evidence: Evidence) -> Evidence {
        if !self.claims.is_empty() && evidence.verdict == Verdict::Proved {
            evidence.verdict = Verdict::Inconclusive;
            evidence.reason.clone_from(&self.unconfirmed);
        }
        evidence
    }
}

pub(super) fn lines(intent: &Intent, after: &Leadership, evidence: Option<&Evidence>) -> Vec<String> {
    let leader = after.leader.as_ref();
    let killed: Vec<String> = intent.victims.iter().map(Victim::to_string).collect();
    let mut first = format!("killed {}", killed.join(", "));
    first.push_str(&format!(" · {}", after.text()));
    let Some(evidence) = evidence else { return vec![first] };
    let gap = milliseconds(evidence.unavailable_ms);
    match (leader, evidence.resumed) {
        (Some(_), true) => first.push_str(&format!(" · writes paused {gap}")),
        (Some(_), false) => first.push_str(&format!(" · writes did not come back within {gap}")),
        (None, _) => {}
    }
    let lost = evidence.lost.map_or("not read back".to_owned(), |lost| format!("{} lost", grouped(lost)));
    let second = format!(
        "{} acknowledged, {lost}, {} indeterminate · {}",
        grouped(evidence.acknowledged),
        grouped(evidence.indeterminate),
        word(evidence.verdict)
    );
    let reason = evidence.reason.iter().map(|reason| format!("because {reason}"));
    let violations = evidence.violations.iter().map(|violation| format!("violation: {violation}"));
    // A line of its own: it is no reason for or against anything.
    let leftover = evidence.leftover.iter().map(|left| leftover(left));
    [first, second].into_iter().chain(reason).chain(violations).chain(leftover).collect()
}

/// That the load's keys are still there, and what becomes of them.
pub(super) fn leftover(what: &str) -> String {
    format!("{what}; the next `replcluster up` or `kill` removes them")
}

/// The same for the history.
pub(super) fn event(intent: &Intent, after: &Leadership, evidence: Option<&Evidence>) -> Event {
    let leader = after.leader.as_ref();
    let gap = evidence.filter(|_| leader.is_some());
    let gap_where =
        |resumed| gap.filter(|evidence| evidence.resumed == resumed).map(|evidence| evidence.unavailable_ms);
    Event::Verdict {
        nodes: intent.names(),
        leader: leader.map(ToString::to_string),
        unavailable_ms: gap_where(true),
        silent_ms: gap_where(false),
        acknowledged: evidence.map(|evidence| evidence.acknowledged),
        lost: evidence.and_then(|evidence| evidence.lost),
        verdict: evidence.map_or("none", |evidence| word(evidence.verdict)).to_owned(),
    }
}

pub(super) fn json(intent: &Intent, after: &Leadership, evidence: Option<&Evidence>) -> serde_json::Value {
    json!({
        "schema": 1,
        "killed": intent.names(),
        "seed": intent.seed,
        "leader_before": intent.leader_before.as_ref().map(ToString::to_string),
        "leader_after": after.leader.as_ref().map(ToString::to_string),
        "two_leaders": !after.claims.is_empty(),
        "claims": after.claims.iter().map(json_claim).collect::<Vec<_>>(),
        "cannot_know": after.unconfirmed,
        "unavailable_ms": evidence.map(|evidence| evidence.unavailable_ms),
        "resumed": evidence.map(|evidence| evidence.resumed),
        "acknowledged": evidence.map(|evidence| evidence.acknowledged),
        "lost": evidence.and_then(|evidence| evidence.lost),
        "overtaken": evidence.map(|evidence| evidence.overtaken),
        "indeterminate": evidence.map(|evidence| evidence.indeterminate),
        "errors": evidence.map(|evidence| evidence.errors),
        "verdict": evidence.map(|evidence| word(evidence.verdict)),
        "reason": evidence.and_then(|evidence| evidence.reason.clone()),
        "leftover": evidence.and_then(|evidence| evidence.leftover.clone()),
        "violations": evidence.map(|evidence| evidence.violations.clone()).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intent() -> Intent {
        let node = |port: u16| NodeId::parse(&format!("127.0.0.1:{port}")).unwrap();
        Intent {
            victims: vec![Victim::Node { node: node(2379), pid: 41_021, role: "leader" }],
            handles: vec![],
            seed: None,
            leader_before: Some(node(2379)),
            survivors: vec![node(2380)],
        }
    }

    fn led(leader: &NodeId) -> Leadership {
        Leadership { leader: Some(leader.clone()), ..Leadership::default() }
    }

    fn evidence(verdict: Verdict) -> Evidence {
        Evidence {
            acknowledged: 1204,
            lost: Some(0),
            overtaken: 0,
            indeterminate: 1,
            errors: 0,
            unavailable_ms: 11.2,
            resumed: true,
            in_flight_at_fault: true,
            violations: vec![],
            verdict,
            reason: None,
            leftover: None,
        }
    }

    #[test]
    fn the_verdict_reads_as_documented() {
        let leader = NodeId::parse("127.0.0.1:2380").unwrap();
        assert_eq!(
            lines(&intent(), &led(&leader), Some(&evidence(Verdict::Proved))),
            [
                "killed 127.0.0.1:2379 (leader, pid 41021) · 127.0.0.1:2380 leads · writes paused 11 ms",
                "1 204 acknowledged, 0 lost, 1 indeterminate · proved",
            ]
        );
        assert_eq!(
            lines(&intent(), &Leadership::default(), None),
            ["killed 127.0.0.1:2379 (leader, pid 41021) · nobody leads"]
        );
    }

    #[test]
    fn what_was_not_seen_is_not_told_as_a_number() {
        let leader = NodeId::parse("127.0.0.1:2380").unwrap();
        let unread = Evidence {
            lost: None,
            resumed: false,
            unavailable_ms: 5004.0,
            reason: Some("no node is left to read back from".to_owned()),
            leftover: Some("the keys are still there".to_owned()),
            ..evidence(Verdict::Inconclusive)
        };
        assert_eq!(
            lines(&intent(), &led(&leader), Some(&unread)),
            [
                "killed 127.0.0.1:2379 (leader, pid 41021) · 127.0.0.1:2380 leads · writes did not come back within 5 004 ms",
                "1 204 acknowledged, not read back, 1 indeterminate · inconclusive",
                "because no node is left to read back from",
                "the keys are still there; the next `replcluster up` or `kill` removes them",
            ]
        );
        let value = json(&intent(), &Leadership::default(), Some(&unread));
        assert_eq!((&value["lost"], &value["resumed"]), (&serde_json::Value::Null, &false.into()));
        let Event::Verdict { unavailable_ms, silent_ms, acknowledged, lost, .. } =
            event(&intent(), &led(&leader), Some(&unread))
        else {
            panic!("it is a verdict");
        };
        assert_eq!((unavailable_ms, silent_ms), (None, Some(5004.0)));
        assert_eq!((acknowledged, lost), (Some(1204), None));
        let Event::Verdict { acknowledged, lost, verdict, .. } = event(&intent(), &led(&leader), None) else {
            panic!("it is a verdict");
        };
        assert_eq!((acknowledged, lost, verdict.as_str()), (None, None, "none"));
    }

    #[test]
    fn two_leaders_are_said_and_nothing_is_proved_of_them() {
        let claim = |port: u16| Claim { epoch: 4, node: NodeId::parse(&format!("h:{port}")).unwrap() };
        let after = Leadership {
            leader: None,
            unconfirmed: Some("two leaders: h:1 (epoch 4) and h:2 (epoch 4)".to_owned()),
            claims: vec![claim(1), claim(2)],
        };
        let tempered = after.temper(evidence(Verdict::Proved));
        assert_eq!(tempered.verdict, Verdict::Inconclusive);
        let told = lines(&intent(), &after, Some(&tempered));
        assert!(told[0].contains("no leader is confirmed: two leaders: h:1 (epoch 4)"), "{told:?}");
        assert!(told[2].starts_with("because two leaders"), "{told:?}");
        let value = json(&intent(), &after, Some(&tempered));
        assert_eq!((&value["two_leaders"], &value["claims"][1]["address"]), (&true.into(), &"h:2".into()));
        assert_eq!(after.temper(evidence(Verdict::Violated)).verdict, Verdict::Violated);
    }

    #[test]
    fn a_dead_supervisor_is_named_as_such() {
        let intent = Intent { victims: vec![Victim::Supervisor { pid: 7 }], ..intent() };
        let leader = NodeId::parse("127.0.0.1:2379").unwrap();
        assert_eq!(
            lines(&intent, &led(&leader), None),
            ["killed the supervisor (pid 7) · 127.0.0.1:2379 leads"]
        );
        assert_eq!(json(&intent, &Leadership::default(), None)["killed"], serde_json::json!(["supervisor"]));
    }

    #[test]
    fn a_bad_verdict_says_why() {
        let mut violated = evidence(Verdict::Violated);
        violated.reason = Some("a write is missing".to_owned());
        violated.violations = vec!["k was acknowledged".to_owned()];
        let told = lines(&intent(), &Leadership::default(), Some(&violated));
        assert_eq!(told[2..], ["because a write is missing", "violation: k was acknowledged"]);
    }

    #[test]
    fn the_json_has_every_documented_field() {
        let value = json(&intent(), &Leadership::default(), Some(&evidence(Verdict::Inconclusive)));
        let fields = [
            "killed",
            "leader_before",
            "leader_after",
            "unavailable_ms",
            "acknowledged",
            "lost",
            "indeterminate",
            "verdict",
        ];
        for field in fields {
            assert!(value.get(field).is_some(), "{field}");
        }
        assert_eq!(value["verdict"], "inconclusive");
        assert_eq!(value["leader_after"], serde_json::Value::Null);
    }
}
