//! etcd's Cluster service: who the members are. Adding and removing nodes is the controller's business; etcd's own
//! ways to it answer as etcd does where that needs no change, else `Unimplemented`, with the verb that does it.

use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::answer::lacking;
use super::header;
use super::refusal::Rejection;
use super::relay::{NotHere, Relay, Repeat};
use crate::bounds::Budget;
use crate::node::Handle;
use crate::proto::etcdserverpb::cluster_client::ClusterClient;
use crate::proto::etcdserverpb::cluster_server::Cluster;
use crate::proto::etcdserverpb::{
    Member, MemberListRequest, MemberListResponse, MemberPromoteRequest, MemberPromoteResponse,
    MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest, MemberUpdateResponse,
};
use crate::view::NodeId;

pub(super) struct Service {
    handle: Handle,
    relay: Relay,
}

#[tonic::async_trait]
impl Cluster for Service {
    async fn member_list(
        &self,
        request: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        let here = async |request, until| self.member_list_here(request, until).await;
        let there = async |leader, request| ClusterClient::new(leader).member_list(request).await;
        self.relay.answer(request, Repeat::Safe, here, there).await
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        self.known(request.metadata(), request.get_ref().id)?;
        Err(lacking("MemberRemove; use `replcluster remove`"))
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        self.known(request.metadata(), request.get_ref().id)?;
        Err(lacking("MemberUpdate; add a node at the new address, then remove the old one"))
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        self.known(request.metadata(), request.get_ref().id)?;
        // A node that joins becomes a full member by itself: none is ever shown as a learner.
        Err(Rejection::NotALearner.into())
    }
}

impl Service {
    pub(super) fn new(handle: Handle, answers: Budget) -> Service {
        Service { relay: Relay::new(handle.clone(), answers), handle }
    }

    /// Refuses a number that no member has.
    fn known(&self, metadata: &MetadataMap, id: u64) -> Result<(), Status> {
        header::check(&self.handle, metadata)?;
        let members = self.handle.describe().members;
        let known = members.iter().any(|node| node.member_id() == id);
        if known { Ok(()) } else { Err(Rejection::MemberNotFound.into()) }
    }

    /// Without a view there are no members, and a client that is told so forgets every endpoint it has: such a node
    /// does not come this far.
    async fn member_list_here(
        &self,
        request: MemberListRequest,
        until: Instant,
    ) -> Result<MemberListResponse, NotHere> {
        let revision = self.handle.read(!request.linearizable, until, |store| store.revision()).await?;
        let header = Some(header::with_revision(&self.handle, revision));
        let members = self.handle.describe().members.iter().map(member).collect();
        Ok(MemberListResponse { header, members })
    }
}

/// In sync or not, every member can be tried by a client, which skips learners: so none is shown as one.
fn member(node: &NodeId) -> Member {
    let url = format!("http://{node}");
    Member {
        id: node.member_id(),
        name: node.to_string(),
        peer_ur_ls: vec![url.clone()],
        client_ur_ls: vec![url],
        is_learner: false,
    }
}
