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
        let hash = self.0.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        hash.max(1)
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
}

impl View {
    /// True where this node, with this data directory, is in sync.
    #[must_use]
    pub fn is_in_sync(&self, node: &NodeId, incarnation: Incarnation) -> bool {
        self.in_sync.get(node) == Some(&incarnation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
