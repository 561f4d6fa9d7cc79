//! The header that stands in every answer.

use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::node::{Handle, Unavailable};
use crate::proto::etcdserverpb::ResponseHeader;

/// A header with a revision that was read from the store itself: what a node publishes beside it may lag behind
/// what it has just acknowledged, and a client must never see a revision go back.
pub(super) fn with_revision(handle: &Handle, revision: i64) -> ResponseHeader {
    let facts = handle.header();
    ResponseHeader { cluster_id: facts.cluster, member_id: facts.member, revision, raft_term: facts.epoch }
}

/// Completes the header of an answer that the store made: it knows the revision and nothing else.
pub(super) fn complete(handle: &Handle, header: &mut Option<ResponseHeader>) {
    let revision = header.as_ref().map_or(0, |header| header.revision);
    *header = Some(with_revision(handle, revision));
}

/// Refuses what this node cannot answer at all: as long as it knows no cluster, or, for a client that insists on a
/// leader (`hasleader`), as long as it hears none.
pub(super) fn check(handle: &Handle, metadata: &MetadataMap) -> Result<(), Status> {
    let insists = metadata.get("hasleader").is_some_and(|value| value == "true");
    if handle.header().cluster == 0 || (insists && handle.describe().leader.is_none()) {
        return Err(Unavailable::NoLeader.into());
    }
    Ok(())
}
