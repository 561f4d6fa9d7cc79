//! What one copy of the data holds, as `replserver inspect --json` prints it and `replcluster recover` reads it: the
//! contract between the two programs. Values only; nothing is opened and nothing decided here.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::view::{Checksum, ClusterId, Epoch, Incarnation, Index, NodeId, View};

/// A place in the log. The order of these is the order by which logs are compared: the later epoch, then the longer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct At {
    /// Under which the entry was ordered.
    pub epoch: u64,
    /// Which entry.
    pub index: u64,
}

/// A view as it is kept, with numbers as numbers and incarnations in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptView {
    /// See [`View`].
    pub cluster: String,
    /// See [`View`].
    pub epoch: u64,
    /// See [`View`].
    pub leader: String,
    /// See [`View`].
    pub led_since: u64,
    /// See [`View`].
    pub floor: u64,
    /// See [`View`].
    pub recovered: u64,
    /// See [`View`].
    #[serde(default)]
    pub previous: u64,
    /// See [`View`].
    pub in_sync: BTreeMap<String, String>,
    /// See [`View`].
    pub members: BTreeMap<String, String>,
}

/// The log of a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogHeld {
    /// What comes before its first entry.
    pub base: At,
    /// Its last entry.
    pub last: At,
    /// Bytes of a torn tail that the next start will cut.
    pub torn_bytes: u64,
}

/// The state of a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateHeld {
    /// The last entry applied to what is on the disk.
    pub applied: At,
    /// The revision after it.
    pub revision: i64,
}

/// An entry of the log that is worth a look: the next to be applied, one that every node refuses, or one asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryHeld {
    /// Which.
    pub index: u64,
    /// Under which it was ordered.
    pub epoch: u64,
    /// The running checksum of the log up to it.
    pub chain: u32,
    /// Length of what was asked for, in bytes.
    pub bytes: u64,
    /// What it is, in words.
    pub what: String,
    /// Why every node refuses it, where it cannot be read.
    pub refused: Option<String>,
    /// An operator has ordered it to be stepped over.
    pub skipped: bool,
}

/// What a directory holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// Which.
    pub directory: PathBuf,
    /// Whose it is; none for a new one.
    pub address: Option<String>,
    /// Minted with it, in hexadecimal.
    pub incarnation: Option<String>,
    /// The cluster it belongs to, in hexadecimal; none until it belongs to one.
    pub cluster: Option<String>,
    /// It obeys no epoch below this one.
    pub promised: u64,
    /// The newest view it has seen.
    pub view: Option<KeptView>,
    /// Its log, as far as it can be read.
    pub log: Option<LogHeld>,
    /// Up to here it is known to be committed.
    pub commit: u64,
    /// Its state, as far as it can be read.
    pub state: Option<StateHeld>,
    /// Entries behind the state: the next to be applied, and some that every node refuses; and the one asked for.
    #[serde(default)]
    pub entries: Vec<EntryHeld>,
    /// The newest time of its files, which is about when something was written last. Times of files are set by whoever
    /// copies them and by wrong clocks: this is for people, and nothing may be decided by it.
    pub written_at: Option<String>,
    /// What is wrong with it, in words.
    pub damage: Vec<String>,
    /// A node would start on it, and it has belonged to a cluster.
    pub usable: bool,
    /// What was set aside in it.
    pub aside: Vec<Inspection>,
}

impl From<&View> for KeptView {
    fn from(view: &View) -> KeptView {
        let texts = |nodes: &BTreeMap<NodeId, Incarnation>| {
            nodes.iter().map(|(node, incarnation)| (node.to_string(), format!("{incarnation:?}"))).collect()
        };
        KeptView {
            cluster: view.cluster.to_string(),
            epoch: view.epoch.0,
            leader: view.leader.to_string(),
            led_since: view.led_since.0,
            floor: view.floor.0,
            recovered: view.recovered.0,
            previous: view.previous.0,
            in_sync: texts(&view.in_sync),
            members: texts(&view.members),
        }
    }
}

impl KeptView {
    /// The view; `None` where a text is not what it should be.
    #[must_use]
    pub fn view(&self) -> Option<View> {
        let nodes = |texts: &BTreeMap<String, String>| -> Option<BTreeMap<NodeId, Incarnation>> {
            texts
                .iter()
                .map(|(node, incarnation)| {
                    Some((NodeId::parse(node).ok()?, Incarnation(hexadecimal(incarnation)?)))
                })
                .collect()
        };
        Some(View {
            cluster: ClusterId(hexadecimal(&self.cluster)?),
            epoch: Epoch(self.epoch),
            leader: NodeId::parse(&self.leader).ok()?,
            led_since: Epoch(self.led_since),
            floor: Index(self.floor),
            recovered: Epoch(self.recovered),
            previous: Checksum(self.previous),
            in_sync: nodes(&self.in_sync)?,
            members: nodes(&self.members)?,
        })
    }
}

impl Inspection {
    /// Its incarnation.
    #[must_use]
    pub fn incarnation(&self) -> Option<Incarnation> {
        self.incarnation.as_deref().and_then(hexadecimal).map(Incarnation)
    }

    /// Its cluster.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        self.cluster.as_deref().and_then(hexadecimal).map(ClusterId)
    }
}

impl std::fmt::Display for EntryHeld {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "entry {} of epoch {}, {} bytes: {}", self.index, self.epoch, self.bytes, self.what)?;
        if let Some(why) = &self.refused {
            write!(f, "; every node refuses it: {why}")?;
        }
        if self.skipped {
            write!(f, "; stepped over by order of an operator")?;
        }
        Ok(())
    }
}

fn hexadecimal(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_comes_back_as_it_was() {
        let node = |port: u16| NodeId::parse(&format!("127.0.0.1:{port}")).unwrap();
        let view = View {
            cluster: ClusterId(u64::MAX),
            epoch: Epoch(9),
            leader: node(1),
            led_since: Epoch(8),
            in_sync: [(node(1), Incarnation(7))].into(),
            members: [(node(1), Incarnation(7)), (node(2), Incarnation(u64::MAX))].into(),
            floor: Index(5),
            recovered: Epoch(4),
            previous: Checksum(u64::MAX),
        };
        let kept = KeptView::from(&view);
        let text = serde_json::to_string(&kept).unwrap();
        assert_eq!(serde_json::from_str::<KeptView>(&text).unwrap().view(), Some(view));
        assert_eq!(KeptView { leader: "nobody".to_owned(), ..kept }.view(), None);
    }

    #[test]
    fn logs_are_ordered_by_the_epoch_of_their_last_entry_and_then_by_length() {
        let at = |epoch, index| At { epoch, index };
        assert!(at(2, 1) > at(1, 9) && at(2, 2) > at(2, 1));
    }
}
