//! The words every part of the program shares: who a node is, and who leads whom since when.
//! Plain values; no rule of the protocol is applied here.

// Of the two places that have it the one without sockets.
use core::net::IpAddr;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// A node's address as configured, `host:port`. Addresses order by their bytes: the lowest in-sync one leads (O7).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(Arc<str>);

/// Why a text is not a node address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// No `:` or nothing before it.
    #[error("\"{0}\" is not an address: expected host:port, for example 127.0.0.1:2379")]
    Form(String),
    /// The part after the last `:` is not a number from 1 to 65535.
    #[error("\"{0}\" has no usable port: expected a number from 1 to 65535 after the last ':'")]
    Port(String),
    /// A wildcard address can be listened on but not be called.
    #[error("\"{0}\" names every interface of the host: a node needs an address that the others can call")]
    Wildcard(String),
}

impl NodeId {
    /// Checks the form `host:port` (an IPv6 host in brackets) and nothing else: no name is looked up.
    ///
    /// # Errors
    /// [`AddressError`] with the text that was refused.
    pub fn parse(text: &str) -> Result<NodeId, AddressError> {
        let (host, port) = text.rsplit_once(':').ok_or_else(|| AddressError::Form(text.to_owned()))?;
        let bracketed = host.starts_with('[') && host.ends_with(']') && host.len() > 2;
        let plain = !host.is_empty()
            && host
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'-' || byte == b'_');
        if !bracketed && !plain {
            return Err(AddressError::Form(text.to_owned()));
        }
        match port.parse::<u16>() {
            Ok(number) if number > 0 && !port.starts_with('+') && !port.starts_with('0') => {}
            _ => return Err(AddressError::Port(text.to_owned())),
        }
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        // However it is spelt: [::0] and [::ffff:0.0.0.0] name every interface too.
        if bare.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_unspecified()) {
            return Err(AddressError::Wildcard(text.to_owned()));
        }
        Ok(NodeId(Arc::from(text)))
    }

    /// The address as configured.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The number that etcd's API knows this node by: stable, never zero (FNV-1a of the address).
    #[must_use]
    pub fn member_id(&self) -> u64 {
        let mut hash = Fnv(0xcbf2_9ce4_8422_2325);
        hash.bytes(self.0.as_bytes());
        hash.0.max(1)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Random number minted with a data directory; a wiped directory gets another (R24). Never zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u64);

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Random number minted with a cluster; data of another cluster is refused. Never zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub u64);

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Numbers views. Only grows; zero means "no view yet" (R1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch after this one.
    #[must_use]
    pub fn next(self) -> Epoch {
        Epoch(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A checksum of a whole view, the checksum of the view before it included: two chains of views that have parted never
/// meet again. Zero: there is no view before, or a build that knows no chain wrote the view.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Checksum(pub u64);

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Names one view and no other: where a register was put back to an older copy, two views can have one epoch (R11).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ViewId {
    /// Its epoch.
    pub epoch: Epoch,
    /// Its checksum.
    pub checksum: Checksum,
}

/// A position in the log. The first entry has index 1; zero means "nothing".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Index(pub u64);

impl Index {
    /// The index after this one.
    #[must_use]
    pub fn next(self) -> Index {
        Index(self.0 + 1)
    }
}

impl fmt::Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A place in the log with everything that tells whether two logs agree up to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Position {
    /// Where.
    pub index: Index,
    /// The epoch of the entry there.
    pub epoch: Epoch,
    /// The running checksum up to and including it.
    pub chain: u32,
}

/// Who leads and who must hold an entry before it is acknowledged, since this epoch.
/// The register holds the newest one; every change is a new epoch (R1).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct View {
    /// The cluster this view belongs to; never changes.
    pub cluster: ClusterId,
    /// Numbers the views of the cluster; without a gap, but for one that an operator made (see `recovered`).
    pub epoch: Epoch,
    /// Orders the writes; a member of `in_sync`.
    pub leader: NodeId,
    /// The epoch in which this leader took office; changes of the in-sync set alone leave it as it is.
    pub led_since: Epoch,
    /// Everyone who must hold an entry before it is acknowledged, and who may be elected. Never empty.
    pub in_sync: BTreeMap<NodeId, Incarnation>,
    /// Every node that belongs to the cluster, in sync or not; what clients are told to try.
    pub members: BTreeMap<NodeId, Incarnation>,
    /// Every in-sync node held at least this much when the view was made: a log that ends below it is not the
    /// log that was counted on (R24).
    pub floor: Index,
    /// The epoch of the newest view that an operator made by declaring one copy the source of all others (R4); zero:
    /// there is none. What other copies hold from before it no longer belongs to the cluster.
    pub recovered: Epoch,
    /// The checksum of the view that this one replaced (R11).
    pub previous: Checksum,
}

/// What a view may take as text, in bytes: it must fit wherever it is kept (a promise has 32 KiB for each copy of it).
pub const VIEW_BYTES_MAX: usize = 31 << 10;

impl View {
    /// What it takes as text at most, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        // Words, numbers and a checksum before the nodes; a word and an incarnation beside each address.
        let nodes = self.in_sync.keys().chain(self.members.keys());
        400 + self.leader.as_str().len() + nodes.map(|node| node.as_str().len() + 32).sum::<usize>()
    }

    /// Names this view and no other.
    #[must_use]
    pub fn id(&self) -> ViewId {
        ViewId { epoch: self.epoch, checksum: self.checksum() }
    }

    /// The checksum over every field; the same on every host and in every build. FNV-1a over each number as eight bytes
    /// and each text behind its length, mixed at the end so that every bit counts. Never zero.
    #[must_use]
    pub fn checksum(&self) -> Checksum {
        let mut hash = Fnv(0xcbf2_9ce4_8422_2325);
        for number in
            [self.cluster.0, self.epoch.0, self.led_since.0, self.floor.0, self.recovered.0, self.previous.0]
        {
            hash.number(number);
        }
        hash.text(self.leader.as_str());
        for nodes in [&self.in_sync, &self.members] {
            hash.number(nodes.len() as u64);
            for (node, incarnation) in nodes {
                hash.text(node.as_str());
                hash.number(incarnation.0);
            }
        }
        Checksum(hash.mixed().max(1))
    }

    /// True where this node, with this data directory, is in sync.
    #[must_use]
    pub fn is_in_sync(&self, node: &NodeId, incarnation: Incarnation) -> bool {
        self.in_sync.get(node) == Some(&incarnation)
    }
}

/// FNV-1a over 64 bits.
struct Fnv(u64);

impl Fnv {
    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn number(&mut self, number: u64) {
        self.bytes(&number.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.bytes(text.as_bytes());
    }

    /// The finalizer of splitmix64.
    fn mixed(&self) -> u64 {
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> View {
        let node = |text| NodeId::parse(text).unwrap();
        View {
            cluster: ClusterId(7),
            epoch: Epoch(4),
            leader: node("a:1"),
            led_since: Epoch(3),
            in_sync: [(node("a:1"), Incarnation(1))].into(),
            members: [(node("a:1"), Incarnation(1)), (node("b:1"), Incarnation(2))].into(),
            floor: Index(9),
            recovered: Epoch(0),
            previous: Checksum(5),
        }
    }

    #[test]
    fn the_checksum_of_a_view_is_the_same_in_every_build() {
        assert_eq!(view().checksum(), Checksum(0x9068_cccb_f935_efe3));
        assert_eq!(view().id(), ViewId { epoch: Epoch(4), checksum: Checksum(0x9068_cccb_f935_efe3) });
    }

    #[test]
    fn every_field_of_a_view_changes_its_checksum() {
        let node = |text| NodeId::parse(text).unwrap();
        let views = [
            view(),
            View { cluster: ClusterId(8), ..view() },
            View { epoch: Epoch(5), ..view() },
            View { leader: node("a:2"), ..view() },
            View { led_since: Epoch(4), ..view() },
            View { in_sync: [(node("a:1"), Incarnation(2))].into(), ..view() },
            View { in_sync: view().members, ..view() },
            View { members: view().in_sync, ..view() },
            View { floor: Index(8), ..view() },
            View { recovered: Epoch(1), ..view() },
            View { previous: Checksum(6), ..view() },
        ];
        let checksums: std::collections::BTreeSet<_> = views.iter().map(View::checksum).collect();
        assert_eq!(checksums.len(), views.len());
    }

    #[test]
    fn addresses_order_by_their_bytes_not_by_their_numbers() {
        let long = NodeId::parse("127.0.0.1:10000").unwrap();
        let short = NodeId::parse("127.0.0.1:9999").unwrap();
        assert!(long < short);
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_reason() {
        for text in ["", "host", ":2379", "a b:1", "[]:1"] {
            assert!(matches!(NodeId::parse(text), Err(AddressError::Form(_))), "{text}");
        }
        for text in ["h:0", "h:", "h:70000", "h:+1", "h:01", "h:x"] {
            assert!(matches!(NodeId::parse(text), Err(AddressError::Port(_))), "{text}");
        }
        for text in ["0.0.0.0:1", "[::]:1", "[::0]:1", "[0:0:0:0:0:0:0:0]:1", "[::ffff:0.0.0.0]:1"] {
            assert!(matches!(NodeId::parse(text), Err(AddressError::Wildcard(_))), "{text}");
        }
        for text in ["127.0.0.1:1", "[::1]:2379", "node-1.example:65535"] {
            assert_eq!(NodeId::parse(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn member_ids_are_stable() {
        assert_eq!(NodeId::parse("127.0.0.1:2379").unwrap().member_id(), 0x5321_0701_ab19_3277);
    }
}
