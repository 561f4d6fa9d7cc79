//! What may enter the log (R33): nothing that this node has not shown it can read and carry out within bounds. The very
//! bytes that are to be logged are decoded here, for the requests of own clients and for those that peers forward.
//!
//! * An own request is refused before it is queued: its client hears why, and a peer never sees it.
//! * A forwarded one was admitted by its node. One that cannot be read is sent by no node of this cluster's builds: it
//!   closes the connection it came by, and nothing of it reaches the engine. Its client, if there is one, waits until its
//!   time is up, as for a request that was lost on the way: it was never ordered, so it is done at most once.
//! * What only the level of the log forbids (R37) is not taken now, and is given again by its node, which knows it to be
//!   raised, until this node has applied that too.

use bytes::Bytes;
use prost::Message as _;

use super::log::PAYLOAD_MAX;
use crate::kv::{self, Limits, Refusal};
use crate::proto::replcluster::Mutation;
use crate::rules::{Rule, breaks};

/// How a `Mutation` with a space alarm or a feature level begins: fields 5 and 6, with a length.
const LEADERS_TAGS: [u8; 2] = [5 << 3 | 2, 6 << 3 | 2];

/// A request that may be logged: its bytes decode within bounds and fit into a record. Nothing else is ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    bytes: Bytes,
    /// It makes the state larger.
    grows: bool,
}

impl Admitted {
    /// Encodes a request for the log, and shows that what was encoded can be read at this level.
    ///
    /// # Errors
    /// The [`Refusal`] for its client.
    pub fn request(mutation: &Mutation, level: u32) -> Result<Admitted, Refusal> {
        // Shows as much of what it encodes.
        Admitted::bounded(kv::encode(mutation)?, kv::grows(mutation), level)
    }

    fn bounded(bytes: Bytes, grows: bool, level: u32) -> Result<Admitted, Refusal> {
        if bytes.len() > PAYLOAD_MAX {
            return Err(Refusal::Undecodable); // no record holds so much
        }
        if level == 0 {
            // A member may be of a build that ends by what it cannot decode: its decoder decides.
            Mutation::decode(bytes.clone()).map_err(|_| Refusal::TooDeep)?;
        }
        Ok(Admitted { bytes, grows })
    }

    /// A request that a peer has forwarded, at a level of the log.
    ///
    /// # Errors
    /// The [`Refusal`]; nothing of it may be ordered.
    pub fn forwarded(bytes: Bytes, level: u32) -> Result<Admitted, Refusal> {
        if breaks(Rule::DecodeForwarded) {
            return Ok(Admitted { bytes, grows: true });
        }
        let mutation = kv::decode(&bytes, level)?;
        kv::check(&mutation, Limits::NONE)?;
        Admitted::bounded(bytes, kv::grows(&mutation), level)
    }

    /// True for what makes the state larger (R25).
    #[must_use]
    pub fn grows(&self) -> bool {
        self.grows
    }

    /// True for what only a leader asks for, by its own disk or by what it knows of the members. It belongs to one
    /// leadership: the next leader does not order it.
    #[must_use]
    pub fn is_for_the_leader(&self) -> bool {
        // The field's tag: no client's request begins so.
        self.bytes.first().is_some_and(|tag| LEADERS_TAGS.contains(tag))
    }

    /// An entry that the leader makes itself.
    #[must_use]
    pub fn made_here(mutation: &Mutation) -> Admitted {
        Admitted { bytes: Bytes::from(mutation.encode_to_vec()), grows: kv::grows(mutation) }
    }

    /// The same, in memory of its own.
    #[must_use]
    pub fn detached(&self) -> Admitted {
        Admitted { bytes: Bytes::copy_from_slice(&self.bytes), grows: self.grows }
    }

    /// As they are logged.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// How many bytes are logged.
    #[must_use]
    pub fn length(&self) -> usize {
        self.bytes.len()
    }

    /// Any bytes, for tests of what does not look into them.
    #[cfg(test)]
    pub fn unchecked(text: &'static str) -> Admitted {
        Admitted { bytes: Bytes::from_static(text.as_bytes()), grows: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::etcdserverpb::{PutRequest, RequestOp, TxnRequest, request_op::Request};
    use crate::proto::replcluster::{FeatureLevel, SpaceAlarm, mutation};

    /// A put inside so many transactions.
    fn nested(depth: usize) -> Mutation {
        let put = PutRequest { key: "k".into(), value: "v".into(), ..PutRequest::default() };
        let mut operation = RequestOp { request: Some(Request::RequestPut(put)) };
        for _ in 1..depth {
            let txn = TxnRequest { success: vec![operation], ..TxnRequest::default() };
            operation = RequestOp { request: Some(Request::RequestTxn(txn)) };
        }
        let txn = TxnRequest { success: vec![operation], ..TxnRequest::default() };
        Mutation { request: Some(mutation::Request::Txn(txn)) }
    }

    fn bytes(mutation: &Mutation) -> Bytes {
        Bytes::from(mutation.encode_to_vec())
    }

    #[test]
    fn what_an_older_build_cannot_read_is_admitted_from_level_1_on() {
        for depth in [1, 49] {
            assert!(Admitted::request(&nested(depth), 0).is_ok(), "{depth}");
        }
        assert_eq!(Admitted::request(&nested(50), 0), Err(Refusal::TooDeep));
        for depth in [50, 128] {
            let admitted = Admitted::request(&nested(depth), 1).unwrap();
            assert_eq!(kv::decode(&admitted.into_bytes(), 1), Ok(nested(depth)), "{depth}");
        }
        assert_eq!(Admitted::request(&nested(130), 1), Err(Refusal::TooDeep));
    }

    #[test]
    fn what_is_for_the_leader_is_known_by_its_first_byte() {
        let level = mutation::Request::FeatureLevel(FeatureLevel { level: 1 });
        let alarms = [true, false].map(|raised| mutation::Request::Space(SpaceAlarm { raised }));
        for request in alarms.into_iter().chain([level]) {
            assert!(Admitted::made_here(&Mutation { request: Some(request) }).is_for_the_leader());
        }
        assert!(!Admitted::request(&nested(1), 1).unwrap().is_for_the_leader());
    }

    #[test]
    fn a_forwarded_request_is_read_before_it_is_taken() {
        assert!(Admitted::forwarded(bytes(&nested(128)), 1).is_ok());
        assert_eq!(Admitted::forwarded(bytes(&nested(50)), 0), Err(Refusal::TooDeep), "not at this level");
        assert!(Admitted::forwarded(Bytes::from_static(&[0xff, 0xff, 0xff]), 1).is_err());
        assert!(Admitted::forwarded(Bytes::from(vec![0; PAYLOAD_MAX + 1]), 1).is_err(), "no record holds it");
    }
}
