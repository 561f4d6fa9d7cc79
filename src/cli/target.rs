//! How a user names nodes: by address, by an end of it that fits only one, or by role.

use crate::config::{nearest, spelling};
use crate::view::NodeId;

/// What the grammar needs to know.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// All nodes, in byte order.
    pub nodes: &'a [NodeId],
    /// The one that leads, where one serves.
    pub leader: Option<&'a NodeId>,
    /// Those that run and do not lead.
    pub followers: &'a [NodeId],
}

const ROLES: [&str; 4] = ["leader", "follower", "followers", "all"];

fn roles(text: &str) -> String {
    let meant = nearest(text, &ROLES).map(|role| format!("\ndid you mean `{role}`?"));
    format!("; leader, follower, followers and all name some too{}", meant.unwrap_or_default())
}

/// The address that a text from elsewhere was meant to be.
fn spelt(text: &str) -> String {
    spelling::meant(text).map_or(String::new(), |address| format!("\ndid you mean `{address}`?"))
}

/// Why a text names no node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// It fits nothing.
    #[error("no node is called \"{text}\"\nthe nodes are {nodes}{}{}", if *.by_role { roles(.text) } else { String::new() }, spelt(.text))]
    Unknown {
        /// What was given.
        text: String,
        /// What could be.
        nodes: String,
        /// A role could be as well.
        by_role: bool,
    },
    /// It fits several.
    #[error("\"{text}\" could be {nodes}\ngive more of the address")]
    Ambiguous {
        /// What was given.
        text: String,
        /// What it fits.
        nodes: String,
    },
    /// Nobody has the role now.
    #[error(
        "there is no {0} now: a node that is down or frozen has no role\nname it by its address, or all; `replcluster status` shows them"
    )]
    Vacant(&'static str),
    /// It names more than the one node that can be meant.
    #[error("\"{text}\" names {nodes}, and only one can be meant\nname that one by its address")]
    Several {
        /// What was given.
        text: String,
        /// What it names.
        nodes: String,
    },
}

/// The nodes a text names, in byte order.
///
/// # Errors
/// [`TargetError`] with the names that would do.
pub fn resolve(text: &str, known: Known<'_>) -> Result<Vec<NodeId>, TargetError> {
    match text {
        "all" => Ok(known.nodes.to_vec()),
        "leader" => known.leader.map(|leader| vec![leader.clone()]).ok_or(TargetError::Vacant("leader")),
        "follower" => {
            known.followers.first().map(|node| vec![node.clone()]).ok_or(TargetError::Vacant("follower"))
        }
        "followers" if known.followers.is_empty() => Err(TargetError::Vacant("follower")),
        "followers" => Ok(known.followers.to_vec()),
        address => by_address(address, known.nodes).map(|node| vec![node]).map_err(|error| match error {
            TargetError::Unknown { text, nodes, .. } => TargetError::Unknown { text, nodes, by_role: true },
            TargetError::Ambiguous { .. } | TargetError::Vacant(_) | TargetError::Several { .. } => error,
        }),
    }
}

/// The only one of the nodes that a text was found to name.
///
/// # Errors
/// [`TargetError::Several`] with the nodes.
pub fn only(text: &str, named: Vec<NodeId>) -> Result<NodeId, TargetError> {
    let mut rest = named.iter();
    match (rest.next(), rest.next()) {
        (Some(one), None) => Ok(one.clone()),
        _ => Err(TargetError::Several { text: text.to_owned(), nodes: list(named.iter()) }),
    }
}

/// The node with this address, or with the only address that ends so.
///
/// # Errors
/// [`TargetError`] with the names that would do.
pub fn by_address(text: &str, nodes: &[NodeId]) -> Result<NodeId, TargetError> {
    if let Some(exact) = nodes.iter().find(|node| node.as_str() == text) {
        return Ok(exact.clone());
    }
    let fitting: Vec<&NodeId> =
        nodes.iter().filter(|node| !text.is_empty() && node.as_str().ends_with(text)).collect();
    match fitting.as_slice() {
        [one] => Ok((*one).clone()),
        [] => Err(TargetError::Unknown { text: text.to_owned(), nodes: list(nodes.iter()), by_role: false }),
        several => {
            Err(TargetError::Ambiguous { text: text.to_owned(), nodes: list(several.iter().copied()) })
        }
    }
}

fn list<'a>(nodes: impl Iterator<Item = &'a NodeId>) -> String {
    nodes.map(NodeId::as_str).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(texts: &[&str]) -> Vec<NodeId> {
        texts.iter().map(|text| NodeId::parse(text).unwrap()).collect()
    }

    fn resolved(text: &str) -> Result<String, TargetError> {
        let all = nodes(&["127.0.0.1:2379", "127.0.0.1:2380", "127.0.0.1:12380"]);
        let known = Known { nodes: &all, leader: Some(&all[0]), followers: &all[1..] };
        resolve(text, known).map(|found| list(found.iter()))
    }

    #[test]
    fn addresses_ends_of_them_and_roles_name_nodes() {
        assert_eq!(resolved("127.0.0.1:2380").unwrap(), "127.0.0.1:2380");
        assert_eq!(resolved(":2380").unwrap(), "127.0.0.1:2380");
        assert_eq!(resolved("79").unwrap(), "127.0.0.1:2379");
        assert_eq!(resolved("leader").unwrap(), "127.0.0.1:2379");
        assert_eq!(resolved("follower").unwrap(), "127.0.0.1:2380");
        assert_eq!(resolved("followers").unwrap(), "127.0.0.1:2380, 127.0.0.1:12380");
        assert_eq!(resolved("all").unwrap(), "127.0.0.1:2379, 127.0.0.1:2380, 127.0.0.1:12380");
    }

    #[test]
    fn what_fits_nothing_or_several_is_refused_with_the_names() {
        let error = resolved("2380").unwrap_err();
        assert_eq!(
            error.to_string().lines().next().unwrap(),
            "\"2380\" could be 127.0.0.1:2380, 127.0.0.1:12380"
        );
        let error = resolved(":9").unwrap_err();
        assert!(error.to_string().contains("the nodes are 127.0.0.1:2379, 127.0.0.1:2380"), "{error}");
        assert!(error.to_string().contains("leader, follower"), "{error}");
        assert!(resolved("leadr").unwrap_err().to_string().ends_with("did you mean `leader`?"));
        let several = only("all", nodes(&["h:1", "h:2"])).unwrap_err();
        assert!(several.to_string().starts_with("\"all\" names h:1, h:2, and only one"), "{several}");
        assert_eq!(only("leader", nodes(&["h:1"])).unwrap().as_str(), "h:1");
        let error = resolved("http://127.0.0.1:2380").unwrap_err().to_string();
        assert!(error.ends_with("did you mean `127.0.0.1:2380`?"), "{error}");
        assert!(matches!(resolved(""), Err(TargetError::Unknown { .. })));
        let error = by_address("leader", &nodes(&["h:1"])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no node is called \"leader\"\nthe nodes are h:1",
            "no role is offered"
        );
    }

    #[test]
    fn a_role_that_nobody_has_is_vacant() {
        let all = nodes(&["h:1"]);
        let known = Known { nodes: &all, leader: None, followers: &[] };
        for (text, role) in [("leader", "leader"), ("follower", "follower"), ("followers", "follower")] {
            assert_eq!(resolve(text, known), Err(TargetError::Vacant(role)));
        }
    }
}
