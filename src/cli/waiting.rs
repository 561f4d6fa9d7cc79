//! Why nobody leads, where that will not pass by itself: for whom the nodes that run wait, why for those, and what to do.

use crate::register::operator::{self, Found};
use crate::view::{NodeId, View};

use super::context::{Context, list};
use super::survey::Survey;

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Who waits for whom, and why.
    pub what: String,
    /// What to do.
    pub next: String,
}

/// What a survey says of one node, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It does not run.
    Down,
    /// Its process is frozen.
    Frozen,
    /// It runs with the data directory of this incarnation, or does not say with which.
    Runs(Option<u64>),
}

/// `None` where somebody leads, where it may still pass, or where nothing runs.
#[must_use]
pub fn waiting(context: &Context, found: &Survey) -> Option<Waiting> {
    if found.sum.leader.is_some() || found.running().is_empty() {
        return None;
    }
    let look = operator::look(&context.layout.register());
    let unusable = |why: String| {
        Some(Waiting {
            what: why,
            next: "put the right register back, or see what is left with `replcluster recover`".to_owned(),
        })
    };
    let view = match look.found {
        Found::Holds(view) => view,
        // Before the first node has made the first view it is empty as well.
        Found::Missing | Found::Empty if found.nodes.iter().all(|one| seen(found, &one.node) == 0) => {
            return None;
        }
        Found::Missing | Found::Empty => {
            return unusable(
                "the register is gone or empty, and the nodes have seen a view in it".to_owned(),
            );
        }
        Found::Damaged { why, .. } | Found::Unreadable(why) => {
            return unusable(format!("the register cannot be used: {why}"));
        }
    };
    let standing = |node: &NodeId| {
        let one = found.nodes.iter().find(|one| one.node == *node);
        match one {
            Some(one) if one.is_paused() => Standing::Frozen,
            Some(one) if one.runs() => Standing::Runs(one.answer.as_ref().map(|answer| answer.incarnation)),
            Some(_) | None => Standing::Down,
        }
    };
    let waiting: Vec<NodeId> = found
        .nodes
        .iter()
        .filter(|one| one.answer.is_some() && !view.in_sync.contains_key(&one.node))
        .map(|one| one.node.clone())
        .collect();
    explain(&view, &waiting, standing)
}

fn seen(found: &Survey, node: &NodeId) -> u64 {
    let one = found.nodes.iter().find(|one| one.node == *node);
    one.and_then(|one| one.answer.as_ref()).map_or(0, |answer| answer.epoch)
}

fn explain(view: &View, waiting: &[NodeId], standing: impl Fn(&NodeId) -> Standing) -> Option<Waiting> {
    let (mut down, mut frozen, mut replaced) = (Vec::new(), Vec::new(), Vec::new());
    for (node, counted) in &view.in_sync {
        match standing(node) {
            Standing::Down => down.push(node.clone()),
            Standing::Frozen => frozen.push(node.clone()),
            Standing::Runs(Some(own)) if own != counted.0 => replaced.push(node.clone()),
            Standing::Runs(_) => return None, // it can lead, and will
        }
    }
    let mut what: Vec<String> = Vec::new();
    let last: Vec<NodeId> = view.in_sync.keys().cloned().collect();
    let only = if last.len() == 1 { "it was the only one" } else { "they were the last" };
    let who =
        if waiting.is_empty() { "nobody leads:".to_owned() } else { format!("{} waiting for", are(waiting)) };
    what.push(format!(
        "{who} {}: {only} in sync (epoch {}), so no other surely holds every acknowledged write",
        list(&last),
        view.epoch
    ));
    for node in &replaced {
        what.push(format!("{node} runs, but with another data directory than the one that was in sync"));
    }
    let next = match (frozen.as_slice(), down.as_slice()) {
        ([node, ..], _) => format!("thaw it: `replcluster resume {node}`"),
        ([], [node, ..]) => format!(
            "start it: `replcluster start {node}`; if its data is gone for good, see what is left with `replcluster recover`"
        ),
        ([], []) => "put that directory back, or see what is left with `replcluster recover`".to_owned(),
    };
    Some(Waiting { what: what.join("\n"), next })
}

fn are(nodes: &[NodeId]) -> String {
    format!("{} {}", list(nodes), if nodes.len() == 1 { "is" } else { "are" })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::view::{ClusterId, Epoch, Incarnation, Index};

    fn node(port: u16) -> NodeId {
        NodeId::parse(&format!("h:{port}")).unwrap()
    }

    /// Of each node counted on the incarnation is its port.
    fn view(in_sync: &[u16]) -> View {
        let nodes: BTreeMap<_, _> =
            in_sync.iter().map(|port| (node(*port), Incarnation(u64::from(*port)))).collect();
        View {
            cluster: ClusterId(1),
            epoch: Epoch(7),
            leader: node(in_sync[0]),
            led_since: Epoch(7),
            members: nodes.clone(),
            in_sync: nodes,
            floor: Index(0),
            recovered: Epoch(0),
            previous: crate::view::Checksum(0),
        }
    }

    #[test]
    fn who_is_waited_for_is_named_with_the_reason_and_what_to_do() {
        let told = explain(&view(&[3]), &[node(1), node(2)], |_| Standing::Down).unwrap();
        assert_eq!(
            told.what,
            "h:1, h:2 are waiting for h:3: it was the only one in sync (epoch 7), so no other surely holds every acknowledged write"
        );
        assert!(told.next.contains("replcluster start h:3") && told.next.contains("replcluster recover"));
    }

    #[test]
    fn a_wiped_node_and_a_frozen_one_are_told_apart_from_one_that_is_down() {
        let told = explain(&view(&[3]), &[node(1)], |_| Standing::Runs(Some(99))).unwrap();
        assert!(told.what.contains("h:3 runs, but with another data directory"), "{told:?}");
        assert!(!told.next.contains("start"), "{told:?}");
        let told = explain(&view(&[2, 3]), &[node(1)], |node| {
            if node.as_str() == "h:3" { Standing::Frozen } else { Standing::Down }
        });
        assert_eq!(told.unwrap().next, "thaw it: `replcluster resume h:3`");
    }

    #[test]
    fn nothing_is_waited_for_where_one_of_them_runs_with_its_data() {
        let standing = |node: &NodeId| {
            if node.as_str() == "h:3" { Standing::Runs(Some(3)) } else { Standing::Down }
        };
        assert_eq!(explain(&view(&[2, 3]), &[node(1)], standing), None);
        assert_eq!(explain(&view(&[3]), &[node(1)], |_| Standing::Runs(None)), None, "it may yet say");
    }
}
