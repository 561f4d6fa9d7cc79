//! Who answers at a node's address, or serves from its directory, and is not the node of this cluster: another cluster,
//! often one of the same name started from a copy of the configuration; or a process of ours whose directory was deleted
//! under it. A name proves nothing. What does is the very process that was started here, the lock in its data directory, and the
//! id of the cluster in this directory's register.

use std::path::{Path, PathBuf};

use crate::config::Register;
use crate::proto::replcluster::DescribeResponse;
use crate::register::operator::{self, Found};
use crate::supervisor::adopt;
use crate::supervisor::layout::Layout;
use crate::supervisor::os::{self, ProcessId};
use crate::view::{ClusterId, NodeId};

use super::context::Context;

/// Whoever is there instead of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A node of another cluster.
    Foreign {
        /// What it calls its cluster.
        cluster: String,
        /// Its process, as it says.
        pid: u32,
        /// Where its data is, where its command line can be read.
        data_dir: Option<PathBuf>,
    },
    /// A process of this directory's cluster that works in files which were deleted: nobody will ever read them again.
    Deserted(ProcessId),
}

/// Whose an answer is.
pub(super) enum Origin {
    Ours,
    Held(Holder),
}

/// Judges an answer from a node's address. `process` is the living process known for the node, with the nonce that it
/// was given.
pub(super) fn origin(
    context: &Context,
    node: &NodeId,
    process: Option<(&ProcessId, &str)>,
    answer: &DescribeResponse,
) -> Origin {
    if process.is_some_and(|(id, nonce)| adopt::matches(answer, id, nonce)) {
        return Origin::Ours;
    }
    let ours = context.layout.data(node);
    let data_dir = data_dir(answer.pid, node);
    if data_dir.as_deref().is_some_and(|directory| os::is_same_file(directory, &ours)) {
        // It was started by hand, or moments ago.
        if works_in(answer.pid, &ours) {
            return Origin::Ours;
        }
        if let Some(id) = deserted_process(&context.layout, node, answer.pid) {
            return Origin::Held(Holder::Deserted(id));
        }
    }
    let elsewhere = data_dir.as_deref().is_some_and(|directory| !os::is_same_file(directory, &ours));
    let same_cluster = match &context.config.register {
        Register::File => registered(&context.layout).is_some_and(|id| id.0 == answer.cluster_id),
        // Not on this host: the name is all that can be compared.
        Register::Etcd { .. } => true,
    };
    if same_cluster && !elsewhere && answer.cluster_name == context.config.name {
        return Origin::Ours;
    }
    Origin::Held(Holder::Foreign { cluster: answer.cluster_name.clone(), pid: answer.pid, data_dir })
}

/// The processes that serve these nodes from deleted directories of this cluster. Looks through all processes: of use
/// only where nothing else is remembered of the cluster.
pub(super) fn deserted(layout: &Layout, nodes: &[NodeId]) -> Vec<(NodeId, ProcessId)> {
    let mut found = Vec::new();
    for pid in os::pids() {
        let Some(directory) = adopt::data_dir(pid) else { continue };
        let node = nodes.iter().find(|node| layout.data(node) == directory);
        if let Some(node) = node
            && let Some(id) = deserted_process(layout, node, pid)
        {
            found.push((node.clone(), id));
        }
    }
    found
}

/// This process, if it works in the deleted data directory of this node. That it was given the directory's name proves
/// nothing: in a container the same name is another directory, and one that begins has not made its own yet.
fn deserted_process(layout: &Layout, node: &NodeId, pid: u32) -> Option<ProcessId> {
    let id = os::identify(pid).ok()?;
    let directory = data_dir(pid, node)?;
    let is_one = directory == layout.data(node) && os::has_deleted(pid, &directory);
    (is_one && os::is_alive(&id)).then_some(id)
}

/// The data directory on a process's command line, if it is one of a program that was given this node's address.
fn data_dir(pid: u32, node: &NodeId) -> Option<PathBuf> {
    os::argument(pid, "--address").filter(|address| address == node.as_str())?;
    adopt::data_dir(pid)
}

/// The directory of the cluster that a node's data directory is part of; the data directory where it is of none.
fn cluster_of(data_dir: &Path) -> &Path {
    let nodes = data_dir.parent().and_then(Path::parent).filter(|nodes| nodes.ends_with("nodes"));
    nodes.and_then(Path::parent).unwrap_or(data_dir)
}

/// The lock in the data directory is this process's. One that was deleted and made anew holds another's or nobody's.
fn works_in(pid: u32, data_dir: &Path) -> bool {
    std::fs::read_to_string(data_dir.join("lock")).is_ok_and(|text| text.trim() == format!("pid {pid}"))
}

/// What is wrong with the register of a cluster that runs: it goes on, and no view can be changed any more.
pub(super) fn register_trouble(context: &Context) -> Option<String> {
    let (Register::File, place) = (&context.config.register, context.layout.register()) else { return None };
    let what = match operator::look(&place).found {
        Found::Holds(_) => return None,
        Found::Missing | Found::Empty => "holds no view any more".to_owned(),
        Found::Damaged { why, .. } | Found::Unreadable(why) => format!("cannot be used: {why}"),
    };
    Some(format!(
        "the register in {} {what}. No node can take over from the leader or join. See `replcluster recover`",
        place.display()
    ))
}

/// The cluster that this directory's register belongs to.
fn registered(layout: &Layout) -> Option<ClusterId> {
    match operator::look(&layout.register()).found {
        Found::Holds(view) | Found::Damaged { before: Some(view), .. } => Some(view.cluster),
        Found::Missing | Found::Empty | Found::Damaged { before: None, .. } | Found::Unreadable(_) => None,
    }
}

impl Holder {
    /// What it is to the node, for a sentence's end and its cure.
    pub(super) fn sentence(&self, node: &NodeId) -> String {
        match self {
            Holder::Foreign { cluster, pid, data_dir } => {
                let place = data_dir
                    .as_ref()
                    .map_or(String::new(), |place| format!(", data in {}", cluster_of(place).display()));
                format!("{node} is held by another cluster called {cluster} (pid {pid}{place})")
            }
            Holder::Deserted(id) => format!(
                "{node} (pid {}) still serves from its directory, which was deleted: `replcluster down` ends it",
                id.pid
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::ask::Asker;
    use tokio_util::sync::CancellationToken;

    fn context(directory: &Path) -> Context {
        let config = "name = \"demo\"\nnodes = [\"127.0.0.1:1\"]";
        let config =
            crate::config::parse(&directory.join("cluster.toml"), config, &crate::config::resolve).unwrap();
        Context {
            layout: Layout::new(&config),
            asker: Asker::default(),
            config,
            json: false,
            interrupt: CancellationToken::new(),
        }
    }

    fn answer(cluster_id: u64) -> DescribeResponse {
        // A process whose command line says nothing of nodes.
        let pid = std::process::id();
        DescribeResponse { cluster_name: "demo".to_owned(), cluster_id, pid, ..DescribeResponse::default() }
    }

    #[test]
    fn the_same_name_is_not_the_same_cluster() {
        let directory = tempfile::tempdir().unwrap();
        let context = context(directory.path());
        let node = context.config.nodes[0].clone();
        let is_ours = |process: Option<(&ProcessId, &str)>, answer: &DescribeResponse| {
            matches!(origin(&context, &node, process, answer), Origin::Ours)
        };
        assert!(!is_ours(None, &answer(7)), "there is no register: nothing that answers is ours");
        assert!(!is_ours(None, &answer(0)));
        let own = os::identify(std::process::id()).unwrap();
        assert!(is_ours(Some((&own, "n")), &answer(7)), "the process that was started here");
        let other = DescribeResponse { nonce: "m".to_owned(), ..answer(7) };
        assert!(!is_ours(Some((&own, "n")), &other), "another start");
    }

    #[test]
    fn a_data_directory_is_shown_by_its_cluster() {
        let inside = Path::new("/c/.replcluster/nodes/127.0.0.1_1/data");
        assert_eq!(cluster_of(inside), Path::new("/c/.replcluster"));
        assert_eq!(cluster_of(Path::new("/srv/data")), Path::new("/srv/data"));
    }
}
