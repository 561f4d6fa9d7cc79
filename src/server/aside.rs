//! What becomes of a node's data when the node must not go on with it: kept in place, or set aside so that the next
//! start joins anew. Nothing is ever deleted.
//!
//! One rule decides: **data that the newest view counts on stays where it is.** Whoever is in the in-sync set may be
//! the only one that still holds what was acknowledged, however wrong something about it looks from here: the leader
//! that disagrees may be the one that was put back to an old backup. So such a node ends, the others drop it from the
//! set, and only when the register no longer counts on it, and a leader lives from whom everything can be had, is
//! its data set aside at the next occasion. Where nobody can drop it, it was the last copy, and an operator decides.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Exit, Failure};
use crate::node::directory::DataDirectory;
use crate::node::log::LogError;
use crate::node::{Ended, StartError};
use crate::protocol::Halt;
use crate::register::{Liveness, Register, probe};
use crate::view::{Epoch, Incarnation, NodeId, View, ViewId};

/// The copy of the data that this process works on, and whom to ask what it is worth.
pub(super) struct Copy {
    /// Whose.
    pub(super) address: NodeId,
    /// Which directory.
    pub(super) incarnation: Incarnation,
    /// Knows who is counted on.
    pub(super) register: Arc<dyn Register>,
    /// Knows who lives.
    pub(super) register_path: PathBuf,
    /// The newest view that it had seen when it was opened.
    pub(super) known: Option<ViewId>,
    /// It is to join, and was a member no more before it was started: it belongs to the cluster's past.
    pub(super) is_of_the_past: bool,
}

/// What the cluster loses if this copy goes.
#[derive(Debug, PartialEq, Eq)]
enum Worth {
    /// It is the only one that is counted on.
    Last,
    /// It is one of several that are counted on.
    Counted,
    /// Nobody counts on it, but nobody leads either from whom it could be had again.
    NobodyLeads(NodeId),
    /// Nobody counts on it, and this node leads.
    None(NodeId),
    /// The register does not say.
    Unknown(String),
}

impl Copy {
    /// `since`: a leader counts only if its view is newer than this. A register that does not hold the view that this
    /// copy knows says nothing about it (R11): it may have been put back to an older one, with leaders made since.
    fn worth(&self, since: Epoch, known: Option<ViewId>) -> Worth {
        match self.register.read(known) {
            Ok(Some(view)) => worth(&view, &self.address, self.incarnation, |leader| {
                view.epoch > since && matches!(probe(&self.register_path, leader), Liveness::Alive(_))
            }),
            Ok(None) => Worth::Unknown("the register is empty".to_owned()),
            Err(error) => Worth::Unknown(error.to_string()),
        }
    }

    /// Sets the data aside where that harms nobody, and says what happened and what to do.
    fn give_up(
        &self,
        why: &dyn Display,
        (since, known): (Epoch, Option<ViewId>),
        set_aside: impl FnOnce() -> Result<PathBuf, String>,
    ) -> Failure {
        let text = match self.worth(since, known) {
            Worth::Last => format!(
                "{why}\nit is the only in-sync copy: nothing was changed; bring the newer data back, or see what is left with `replcluster recover`"
            ),
            Worth::Counted => format!(
                "{why}\nthe cluster counts on this copy, so nothing was changed; the other in-sync nodes go on without it, and it can join again when it is started after that"
            ),
            Worth::NobodyLeads(leader) => format!(
                "{why}\nnothing was changed, because nobody leads from whom the data could be had again; start {leader}, then this node"
            ),
            Worth::None(leader) => match set_aside() {
                Ok(aside) => format!(
                    "{why}\nthe data was set aside in {}; start the node again and it joins anew from {leader}",
                    aside.display()
                ),
                Err(error) => format!(
                    "{why}\nthe data could not be set aside: {error}\nmove it away by hand and start the node again"
                ),
            },
            Worth::Unknown(reason) => format!(
                "{why}\nnothing was changed, because the register does not say whether this copy is counted on ({reason}); put the register right, then start the node again"
            ),
        };
        Failure::new(Exit::Failed, text)
    }
}

fn worth(view: &View, node: &NodeId, incarnation: Incarnation, leads: impl FnOnce(&NodeId) -> bool) -> Worth {
    if view.is_in_sync(node, incarnation) {
        if view.in_sync.len() == 1 { Worth::Last } else { Worth::Counted }
    } else if view.leader != *node && leads(&view.leader) {
        Worth::None(view.leader.clone())
    } else {
        Worth::NobodyLeads(view.leader.clone())
    }
}

/// What the end of the node means for the process and for its data.
pub(super) fn conclude(
    end: &Ended,
    copy: &Copy,
    directory: &DataDirectory,
    exit: Exit,
) -> Result<Exit, Failure> {
    let give_up = |why: String, since: Epoch| {
        let known = directory.promise().view.map(|view| view.id());
        Err(copy.give_up(&why, (since, known), || directory.set_aside().map_err(|error| error.to_string())))
    };
    let halt = match end {
        Ended::Stopped => return Ok(exit),
        // Whoever starts it again, with nodes to join, wants it back.
        Ended::Removed | Ended::Halted(Halt::Removed) if copy.is_of_the_past => {
            return give_up(
                "this node was removed from the cluster before it was started".to_owned(),
                Epoch(0),
            );
        }
        Ended::Removed | Ended::Halted(Halt::Removed) => {
            tracing::info!("this node was removed from the cluster");
            eprintln!("replserver: this node was removed from the cluster");
            return Ok(Exit::Done);
        }
        Ended::Failed(why) => return Err(Failure::new(Exit::Failed, why.clone())),
        Ended::Halted(halt) => halt,
    };
    match halt {
        Halt::Removed => Ok(Exit::Done),
        Halt::Diverged { at } => give_up(
            format!("the log differs from the leader's at entry {at}, where both should agree"),
            Epoch(0),
        ),
        Halt::LogTooShort { last, floor } => give_up(
            format!(
                "the log ends at entry {last}, but the cluster counts on this node to hold entry {floor}: the data was restored from an older copy or lost"
            ),
            Epoch(0),
        ),
        Halt::Superseded => give_up(
            "this address belongs to another data directory by now, so this one is an older copy".to_owned(),
            Epoch(0),
        ),
        // The source must have led since: until then the operator may still choose another.
        Halt::Overruled { epoch } => give_up(
            format!(
                "an operator made another copy the source of all others in epoch {epoch}: what this one holds belongs to the cluster no longer"
            ),
            *epoch,
        ),
        Halt::OtherCluster { ours, register } => Err(Failure::new(
            Exit::Conflict,
            format!(
                "the data belongs to cluster {ours}, the register to {register}; neither was changed\ngive the node its own data directory or its own register"
            ),
        )),
    }
}

/// What a refusal to start means for the process and for its data: damage is repaired from a peer (R23).
pub(super) fn refused_to_start(error: &StartError, copy: &Copy, data: &Path) -> Failure {
    let exit = match error {
        StartError::Log(LogError::Corrupt { .. })
        | StartError::StateBehind { .. }
        | StartError::LogBehind { .. }
        | StartError::RolledBack { .. }
        | StartError::Damaged(_) => {
            // The first line says what is wrong; what to do depends on who else is there.
            let text = error.to_string();
            let why = text.lines().next().unwrap_or_default();
            return copy.give_up(&why, (Epoch(0), copy.known), || {
                let again = DataDirectory::open(data, &copy.address).map_err(|error| error.to_string())?;
                again.set_aside().map_err(|error| error.to_string())
            });
        }
        StartError::OtherCluster { .. } => Exit::Conflict,
        StartError::Log(_)
        | StartError::State(_)
        | StartError::Register(_)
        | StartError::Watch(_)
        | StartError::RegisterBehind { .. } => Exit::Failed,
    };
    Failure::new(exit, error.to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::view::{ClusterId, Index};

    fn node(port: u16) -> NodeId {
        NodeId::parse(&format!("h:{port}")).unwrap()
    }

    /// Led by `h:1`; of each node counted on the incarnation is its port.
    fn view(in_sync: &[u16]) -> View {
        let nodes: BTreeMap<_, _> =
            in_sync.iter().map(|port| (node(*port), Incarnation(u64::from(*port)))).collect();
        View {
            cluster: ClusterId(1),
            epoch: Epoch(5),
            leader: node(1),
            led_since: Epoch(5),
            members: nodes.clone(),
            in_sync: nodes,
            floor: Index(0),
            recovered: Epoch(0),
            previous: crate::view::Checksum(0),
        }
    }

    #[test]
    fn a_copy_that_is_counted_on_is_worth_keeping_whoever_leads() {
        for leads in [true, false] {
            let of = |view: &View, port: u16, own: u64| worth(view, &node(port), Incarnation(own), |_| leads);
            assert_eq!(of(&view(&[1]), 1, 1), Worth::Last);
            assert_eq!(of(&view(&[1, 2]), 2, 2), Worth::Counted);
        }
    }

    #[test]
    fn a_copy_that_nobody_counts_on_may_go_only_while_a_leader_lives() {
        let of = |own: u64, leads: bool| worth(&view(&[1, 2]), &node(3), Incarnation(own), |_| leads);
        assert_eq!(of(3, true), Worth::None(node(1)));
        assert_eq!(of(3, false), Worth::NobodyLeads(node(1)));
        let older = worth(&view(&[1, 2]), &node(2), Incarnation(9), |_| true);
        assert_eq!(older, Worth::None(node(1)), "an older directory of a node that is in sync with another");
        let own = worth(&view(&[1]), &node(1), Incarnation(9), |_| true);
        assert_eq!(own, Worth::NobodyLeads(node(1)), "the leader's address, and not its directory");
    }
}
