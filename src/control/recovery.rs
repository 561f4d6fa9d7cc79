//! What can be done for a cluster that cannot lead itself any more: which copy of the data holds most, what may be lost
//! with it, and whether an operator need decide at all (R4, row O11). Values in, a finding out; nothing is asked or
//! written here.
//!
//! Only the last in-sync set surely holds every acknowledged write. As long as one of its copies can be used the answer is
//! to start that one. Otherwise, or where the register itself is lost, the copy whose log is ahead of all others is the
//! one to go on from: logs are compared by the epoch of their last entry and then by their length, as the protocol does.

use std::fmt;

use crate::inspection::{At, Inspection};
use crate::view::{Checksum, ClusterId, Epoch, Incarnation, Index, NodeId, View};

/// So many epochs are skipped by a recovery. Views that nobody shows us any more (of a lost register, or known only to a
/// copy that was not found) must not have the number of a later one (R1).
const EPOCHS_SKIPPED: u64 = 1000;

/// What is known of the register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Register {
    /// Its newest view.
    Holds(View),
    /// There is none, or nothing in it.
    Gone,
    /// It cannot be used, for this reason; and the newest view in it that could be read.
    Unusable {
        /// In words.
        why: String,
        /// An older view.
        before: Option<View>,
    },
}

/// What is known of one node's copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Whose.
    pub node: NodeId,
    /// The copy.
    pub held: Held,
    /// Up to here a directory of this node has held everything, by the register's own notes.
    pub noted: Option<(Incarnation, Epoch, Index)>,
}

/// What a node holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    /// Nothing: no directory, or a new one.
    Nothing,
    /// Data, from the directory or from the running node itself.
    Data(Data),
    /// Data that no node would start on.
    Damaged(Vec<String>),
    /// It could not be found out, for this reason.
    Unknown(String),
}

/// A copy that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data {
    /// Which directory.
    pub incarnation: Incarnation,
    /// Whose data.
    pub cluster: ClusterId,
    /// The highest epoch it has promised or seen.
    pub promised: Epoch,
    /// The newest view it has seen; a running node does not tell all of it.
    pub view: Option<View>,
    /// The end of its log.
    pub last: At,
    /// Known to be committed.
    pub commit: Index,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// These have everything: start them, and nothing is lost.
    Start(Vec<NodeId>),
    /// These were in the last in-sync set, and it is not known what they hold.
    FindOut(Vec<NodeId>),
    /// An operator must make this one the source.
    Recover {
        /// Whose copy.
        source: NodeId,
    },
    /// No copy can be used.
    Nothing,
    /// There never was a cluster.
    New,
}

/// The finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is to be done.
    pub verdict: Verdict,
    /// What is wrong, and what may be lost, a sentence each.
    pub sentences: Vec<String>,
    /// The newest view that anybody has shown.
    pub newest: Option<View>,
}

/// Why a copy cannot be the source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSource {
    /// Nothing is known of such a node.
    #[error("{0} is not a node of this cluster")]
    Unknown(NodeId),
    /// It holds nothing that can be used.
    #[error("{0} holds no data that a node would start on")]
    Unusable(NodeId),
    /// It is of another cluster.
    #[error("{node} holds data of cluster {held}, and the register is of cluster {register}")]
    OtherCluster {
        /// Whose copy.
        node: NodeId,
        /// The copy's cluster.
        held: ClusterId,
        /// The register's.
        register: ClusterId,
    },
}

impl Data {
    /// What an inspection found; `None` where a node would not start on it.
    #[must_use]
    pub fn of(found: &Inspection) -> Option<Data> {
        if !found.usable {
            return None;
        }
        let view = found.view.as_ref().and_then(crate::inspection::KeptView::view);
        let last = found.log.as_ref()?.last;
        let seen = view.as_ref().map_or(0, |view| view.epoch.0);
        Some(Data {
            incarnation: found.incarnation()?,
            cluster: found.cluster()?,
            promised: Epoch(found.promised.max(seen).max(last.epoch)),
            view,
            last,
            commit: Index(found.commit),
        })
    }
}

impl Copy {
    fn data(&self) -> Option<&Data> {
        match &self.held {
            Held::Data(data) => Some(data),
            Held::Nothing | Held::Damaged(_) | Held::Unknown(_) => None,
        }
    }

    /// What this copy lacks of what it is known to have held or must hold as one that `view` counts on.
    fn lacks(&self, view: &View, data: &Data) -> Option<Index> {
        let noted = self
            .noted
            .filter(|(incarnation, epoch, _)| *incarnation == data.incarnation && *epoch >= view.recovered)
            .map_or(Index(0), |(_, _, commit)| commit);
        let wanted = view.floor.max(noted);
        (data.last.index < wanted.0).then_some(wanted)
    }

    /// How this copy stands as one that `view` counts on with this incarnation: `None` where it has everything.
    fn fails(&self, view: &View, counted: Incarnation) -> Option<Failing> {
        match &self.held {
            Held::Unknown(why) => Some(Failing::Unknown(why.clone())),
            Held::Nothing => Some(Failing::Lost("its data directory is empty or missing".to_owned())),
            Held::Damaged(why) => Some(Failing::Lost(format!("its data cannot be used: {}", why.join("; ")))),
            Held::Data(data) if data.cluster != view.cluster => {
                Some(Failing::Lost(format!("it holds data of another cluster, {}", data.cluster)))
            }
            Held::Data(data) if data.incarnation != counted => {
                Some(Failing::Lost("its data directory is another one than the one that was in sync".to_owned()))
            }
            Held::Data(data) => self.lacks(view, data).map(|wanted| {
                Failing::Lost(format!(
                    "its log ends at entry {}, and it has held entry {wanted}: it was put back to an older state",
                    data.last.index
                ))
            }),
        }
    }
}

enum Failing {
    Unknown(String),
    Lost(String),
}

/// What is to be done, from everything that could be found.
#[must_use]
pub fn judge(register: &Register, copies: &[Copy]) -> Finding {
    let views = copies.iter().filter_map(|copy| copy.data()?.view.as_ref());
    let of_register = match register {
        Register::Holds(view) => Some(view),
        Register::Unusable { before, .. } => before.as_ref(),
        Register::Gone => None,
    };
    let newest = views.chain(of_register).max_by_key(|view| view.epoch).cloned();
    let mut sentences = Vec::new();
    let Some(view) = newest else {
        return without_a_view(register, copies);
    };
    let trusted = match register {
        Register::Holds(held) if held.epoch >= view.epoch => true,
        Register::Holds(held) => {
            sentences.push(format!(
                "the register stands at epoch {}, and a node has seen epoch {}: it was restored from a backup, or is another one",
                held.epoch, view.epoch
            ));
            false
        }
        Register::Gone => {
            sentences.push(format!(
                "the register is gone or empty; a node has seen its epoch {}: put it back if you can",
                view.epoch
            ));
            false
        }
        Register::Unusable { why, .. } => {
            sentences.push(format!("the register cannot be used: {why}"));
            false
        }
    };
    sentences.push(format!(
        "the last in-sync set{} was {}",
        if trusted { "" } else { " that is known" },
        set(&view)
    ));
    let (mut have, mut unknown) = (Vec::new(), Vec::new());
    for (node, counted) in &view.in_sync {
        let failing = match copies.iter().find(|copy| copy.node == *node) {
            Some(copy) => copy.fails(&view, *counted),
            None => Some(Failing::Lost("it is not in the configuration".to_owned())),
        };
        match failing {
            None => have.push(node.clone()),
            Some(Failing::Unknown(why)) => {
                sentences.push(format!("{node}: it is not known what it holds: {why}"));
                unknown.push(node.clone());
            }
            Some(Failing::Lost(why)) => sentences.push(format!("{node}: {why}")),
        }
    }
    let verdict = if trusted && !have.is_empty() {
        let given_up = match view.recovered {
            Epoch(0) => String::new(),
            epoch => format!(", but for what the recovery in epoch {epoch} gave up"),
        };
        let has = if have.len() == 1 { "has" } else { "have" };
        sentences.push(format!("{} {has} everything that was acknowledged{given_up}", list(&have)));
        Verdict::Start(have)
    } else if !unknown.is_empty() {
        Verdict::FindOut(unknown)
    } else {
        match recommended(copies, view.cluster) {
            Some(source) => Verdict::Recover { source },
            None => {
                sentences.push("no copy holds anything that a node would start on".to_owned());
                Verdict::Nothing
            }
        }
    };
    Finding { verdict, sentences, newest: Some(view) }
}

/// Nobody has ever seen a view, or what has is damaged.
fn without_a_view(register: &Register, copies: &[Copy]) -> Finding {
    let mut sentences: Vec<String> = copies
        .iter()
        .filter_map(|copy| match &copy.held {
            Held::Damaged(why) => Some(format!("{}: its data cannot be used: {}", copy.node, why.join("; "))),
            Held::Unknown(why) => Some(format!("{}: it is not known what it holds: {why}", copy.node)),
            Held::Nothing | Held::Data(_) => None,
        })
        .collect();
    if let Register::Unusable { why, .. } = register {
        sentences.push(format!("the register cannot be used: {why}"));
    }
    let verdict = if sentences.is_empty() { Verdict::New } else { Verdict::Nothing };
    Finding { verdict, sentences, newest: None }
}

/// The copy whose log is ahead of all others; the lowest address of those that are.
fn recommended(copies: &[Copy], cluster: ClusterId) -> Option<NodeId> {
    let usable = copies.iter().filter_map(|copy| Some((copy, copy.data()?)));
    let best = usable
        .filter(|(_, data)| data.cluster == cluster)
        .max_by(|(one, a), (other, b)| a.last.cmp(&b.last).then_with(|| other.node.cmp(&one.node)));
    best.map(|(copy, _)| copy.node.clone())
}

/// What is surely lost, and what may be, if this copy becomes the source.
///
/// # Errors
/// [`BadSource`].
pub fn loss(source: &NodeId, finding: &Finding, copies: &[Copy]) -> Result<Vec<String>, BadSource> {
    let data = source_data(source, finding, copies)?;
    let At { epoch, index } = data.last;
    let mut said = Vec::new();
    let Some(view) = &finding.newest else { return Ok(said) };
    let noted = copies
        .iter()
        .filter_map(|copy| copy.noted)
        .filter(|(_, epoch, _)| *epoch >= view.recovered)
        .map(|(_, _, commit)| commit);
    let committed = copies.iter().filter_map(|copy| Some(copy.data()?.commit));
    let known = noted.chain(committed).chain([view.floor]).max().unwrap_or_default();
    if known.0 > index {
        said.push(format!(
            "{source} ends at entry {index} of epoch {epoch}: entries {} to {known} were committed and are not there",
            index + 1
        ));
    }
    let counted = view.in_sync.get(source) == Some(&data.incarnation);
    if counted && known.0 <= index {
        said.push(format!(
            "{source} was in sync in the newest view that is known (epoch {}): nothing acknowledged is known to be missing from it",
            view.epoch
        ));
    } else {
        said.push(format!(
            "everything acknowledged after entry {index} of epoch {epoch} may be gone, and no copy says how much that is"
        ));
    }
    Ok(said)
}

fn source_data<'a>(source: &NodeId, finding: &Finding, copies: &'a [Copy]) -> Result<&'a Data, BadSource> {
    let copy =
        copies.iter().find(|copy| copy.node == *source).ok_or_else(|| BadSource::Unknown(source.clone()))?;
    let data = copy.data().ok_or_else(|| BadSource::Unusable(source.clone()))?;
    match &finding.newest {
        Some(view) if view.cluster != data.cluster => {
            Err(BadSource::OtherCluster { node: source.clone(), held: data.cluster, register: view.cluster })
        }
        Some(_) | None => Ok(data),
    }
}

/// The view that makes this copy the source of all others. `highest`: no epoch that the register names is above it.
///
/// # Errors
/// [`BadSource`].
pub fn view(source: &NodeId, finding: &Finding, copies: &[Copy], highest: Epoch) -> Result<View, BadSource> {
    let data = source_data(source, finding, copies)?;
    // Above everything that any copy has promised (R5) or seen (R11), and that the register has held (R1).
    let seen = copies.iter().filter_map(|copy| Some(copy.data()?.promised));
    let noted = copies.iter().filter_map(|copy| copy.noted).map(|(_, epoch, _)| epoch);
    let newest = finding.newest.as_ref().map_or(Epoch(0), |view| view.epoch);
    let top = seen.chain(noted).chain([highest, newest]).max().unwrap_or_default();
    let epoch = Epoch(top.0 + EPOCHS_SKIPPED);
    let own = (source.clone(), data.incarnation);
    // The others stay known to clients as members; none of them is counted on before it has joined anew.
    let known = finding.newest.iter().flat_map(|view| view.members.clone());
    Ok(View {
        cluster: data.cluster,
        epoch,
        leader: source.clone(),
        led_since: epoch,
        in_sync: [own.clone()].into(),
        members: known.chain([own]).collect(),
        // What the source holds now is what it is counted on for (R24).
        floor: Index(data.last.index),
        recovered: epoch,
        // Made by hand: it continues no chain.
        previous: Checksum(0),
    })
}

fn set(view: &View) -> String {
    let nodes: Vec<NodeId> = view.in_sync.keys().cloned().collect();
    format!("{{{}}}, in epoch {}", list(&nodes), view.epoch)
}

fn list(nodes: &[NodeId]) -> String {
    nodes.iter().map(NodeId::as_str).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.index, self.epoch)
    }
}

#[cfg(test)]
#[path = "recovery_tests.rs"]
mod tests;
