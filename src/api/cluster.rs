//! etcd's Cluster service: who the members are. Adding and removing nodes is the controller's business; etcd's own
//! ways to it answer `Unimplemented`.

use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::header;
use super::relay::{NotHere, Relay, Repeat};
use crate::node::Handle;
use crate::proto::etcdserverpb::cluster_client::ClusterClient;
use crate::proto::etcdserverpb::cluster_server::Cluster;
use crate::proto::etcdserverpb::{Member, MemberListRequest, MemberListResponse};
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
}

impl Service {
    pub(super) fn new(handle: Handle) -> Service {
        Service { relay: Relay::new(handle.clone()), handle }
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
