//! etcd's Cluster service: who the members are. Adding and removing nodes is the controller's business; etcd's own
//! ways to it answer `Unimplemented`.

use tonic::{Request, Response, Status};

use super::deadline::deadline;
use super::header;
use crate::node::Handle;
use crate::proto::etcdserverpb::cluster_server::Cluster;
use crate::proto::etcdserverpb::{Member, MemberListRequest, MemberListResponse};
use crate::view::NodeId;

pub(super) struct Service {
    pub(super) handle: Handle,
}

#[tonic::async_trait]
impl Cluster for Service {
    async fn member_list(
        &self,
        request: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        // Without a view there are no members, and a client that is told so forgets every endpoint it has.
        header::check(&self.handle, request.metadata())?;
        let until = deadline(request.metadata());
        let serializable = !request.get_ref().linearizable;
        let revision = self.handle.read(serializable, until, |store| store.revision()).await?;
        let header = Some(header::with_revision(&self.handle, revision));
        let members = self.handle.describe().members.iter().map(member).collect();
        Ok(Response::new(MemberListResponse { header, members }))
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
