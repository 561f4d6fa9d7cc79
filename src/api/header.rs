//! The header that stands in every answer.

use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::node::{Handle, Unavailable};
use crate::proto::etcdserverpb::ResponseHeader;

/// A header with a revision of the caller's choice.
pub(super) fn with_revision(handle: &Handle, revision: i64) -> ResponseHeader {
    let facts = handle.header();
    ResponseHeader { cluster_id: facts.cluster, member_id: facts.member, revision, raft_term: facts.epoch }
}

/// A header with the newest revision that this node holds.
pub(super) fn now(handle: &Handle) -> ResponseHeader {
    with_revision(handle, handle.revision())
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
