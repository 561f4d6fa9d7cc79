//! What to do with data that cannot be trusted any more (R23, R24): pure policy. Whoever found the damage reads the
//! register and asks here; nothing here touches a disk.

use crate::view::{Incarnation, NodeId, View};

/// What becomes of a damaged data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Others hold all that was acknowledged: set the directory aside and join as a new node.
    JoinAnew,
    /// It is the only in-sync copy: nothing is changed, an operator must bring the data back or decide to lose it.
    OnlyCopy,
    /// The register knows no cluster, so nobody can be known to hold a copy: nothing is changed.
    Unknown,
}

/// Decides from what stands in the register now. An older view, such as that of the node's own promise, will not do:
/// the others may have left the set since.
#[must_use]
pub fn remedy(register: Option<&View>, node: &NodeId, incarnation: Incarnation) -> Remedy {
    let Some(view) = register else { return Remedy::Unknown };
    // An entry is acknowledged when every in-sync node holds it (R13): one other is enough.
    if view.is_in_sync(node, incarnation) && view.in_sync.len() == 1 {
        return Remedy::OnlyCopy;
    }
    Remedy::JoinAnew
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::view::{ClusterId, Epoch, Index};

    fn node(port: u16) -> NodeId {
        NodeId::parse(&format!("127.0.0.1:{port}")).unwrap()
    }

    fn view(in_sync: &[(u16, u64)]) -> View {
        let in_sync: BTreeMap<_, _> =
            in_sync.iter().map(|(port, number)| (node(*port), Incarnation(*number))).collect();
        let leader = in_sync.keys().next().unwrap().clone();
        View {
            cluster: ClusterId(1),
            epoch: Epoch(4),
            leader,
            led_since: Epoch(2),
            members: in_sync.clone(),
            in_sync,
            floor: Index(0),
        }
    }

    #[test]
    fn only_a_copy_that_others_hold_too_is_given_up() {
        let decide = |register: Option<View>| remedy(register.as_ref(), &node(1), Incarnation(7));
        assert_eq!(decide(Some(view(&[(1, 7), (2, 8)]))), Remedy::JoinAnew);
        assert_eq!(decide(Some(view(&[(2, 8)]))), Remedy::JoinAnew, "it was dropped from the set before");
        assert_eq!(decide(Some(view(&[(1, 9)]))), Remedy::JoinAnew, "another directory is counted on by now");
        assert_eq!(decide(Some(view(&[(1, 7)]))), Remedy::OnlyCopy);
        assert_eq!(decide(None), Remedy::Unknown);
    }
}
