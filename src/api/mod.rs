//! tmp
#![allow(missing_docs)]
use crate::kv;
use crate::node::{Handle, Unavailable};
use crate::proto::etcdserverpb::{kv_server::*, maintenance_server::*, *};
use crate::proto::replcluster::{Mutation, mutation, node_server::*, *};
use tokio::time::Instant;
use tonic::{Request, Response, Status};
#[derive(Clone)]
struct Api(Handle);
fn st(u: Unavailable) -> Status { Status::unavailable(u.to_string()) }
fn rf(u: kv::Refusal) -> Status { Status::invalid_argument(u.to_string()) }
fn dl() -> Instant { Instant::now() + std::time::Duration::from_secs(7) }
impl Api {
    fn h(&self, r: i64) -> Option<ResponseHeader> { let f = self.0.header(); Some(ResponseHeader { cluster_id: f.cluster, member_id: f.member, revision: r, raft_term: f.epoch }) }
    async fn m(&self, r: mutation::Request) -> Result<kv::Applied, Status> {
        self.0.mutate(Mutation { request: Some(r) }, dl()).await.map_err(st)?.map_err(rf)
    }
}
#[tonic::async_trait]
impl Kv for Api {
    async fn range(&self, r: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let r = r.into_inner();
        let mut out = self.0.read(r.serializable, dl(), |s| s.range(&r)).await.map_err(st)?.map_err(rf)?;
        out.header = self.h(out.header.map_or(0, |h| h.revision));
        Ok(Response::new(out))
    }
    async fn put(&self, r: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        match self.m(mutation::Request::Put(r.into_inner())).await? { kv::Applied::Put(mut p) => { p.header = self.h(p.header.map_or(0, |h| h.revision)); Ok(Response::new(p)) } _ => unreachable!() }
    }
    async fn delete_range(&self, r: Request<DeleteRangeRequest>) -> Result<Response<DeleteRangeResponse>, Status> {
        match self.m(mutation::Request::DeleteRange(r.into_inner())).await? { kv::Applied::DeleteRange(mut p) => { p.header = self.h(p.header.map_or(0, |h| h.revision)); Ok(Response::new(p)) } _ => unreachable!() }
    }
}
#[tonic::async_trait]
impl Maintenance for Api {
    async fn move_leader(&self, r: Request<MoveLeaderRequest>) -> Result<Response<MoveLeaderResponse>, Status> {
        let d = self.0.describe();
        let to = d.members.into_iter().find(|m| m.member_id() == r.get_ref().target_id).unwrap();
        self.0.move_leader(to, dl()).await.map_err(|e| Status::internal(e.to_string()))?;
        Ok(Response::new(MoveLeaderResponse { header: None }))
    }
}
#[tonic::async_trait]
impl Node for Api {
    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        let d = self.0.describe();
        Ok(Response::new(DescribeResponse { address: d.address.to_string(), ready: d.ready, epoch: d.epoch.0, leader: d.leader.map_or(String::new(), |l| l.to_string()), in_sync: d.in_sync.iter().map(|n| n.to_string()).collect(), members: d.members.iter().map(|n| n.to_string()).collect(), role: d.role as i32, pid: std::process::id(), last_index: d.last_index.0, durable_index: d.durable_index.0, commit_index: d.commit_index.0, applied_index: d.applied_index.0, revision: d.revision, waiting_for: d.waiting_for, nonce: self.0.settings().nonce.clone(), uptime_ms: d.uptime_ms, ..Default::default() }))
    }
}
pub fn server_builder() -> tonic::transport::Server { tonic::transport::Server::builder().max_concurrent_streams(None) }
pub fn services(h: Handle) -> tonic::service::Routes {
    let a = Api(h);
    tonic::service::Routes::new(KvServer::new(a.clone())).add_service(MaintenanceServer::new(a.clone())).add_service(NodeServer::new(a))
}
