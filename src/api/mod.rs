//! etcd's API, and what the controller asks beyond it, over gRPC: translation only. What a request means is decided
//! in `kv`, when it may be answered in `node`; here it is checked as far as that needs no state, given a deadline,
//! passed on, and its answer gets a header; what only the leader can answer goes there (`relay`). Every refusal gets its code and text in `refusal` and nowhere else.
//!
//! What this version lacks says so with a text of its own (`answer`), or answers as an etcd that does not use it (`auth`).
//! HTTP/1.1 on the same port is for probes (`web`); connections are served in `serve`.

mod answer;
mod auth;
mod authority;
mod cluster;
mod deadline;
mod header;
mod health;
mod held;
mod kv;
mod maintenance;
mod node;
mod refusal;
mod relay;
mod serve;
#[cfg(test)]
mod tests;
mod web;

use std::sync::Arc;

pub use serve::{Api, Protocol, Scope, connection};
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;

use crate::bounds::Budget;
use crate::node::Handle;
use crate::proto::etcdserverpb::auth_server::AuthServer;
use crate::proto::etcdserverpb::cluster_server::ClusterServer;
use crate::proto::etcdserverpb::kv_server::KvServer;
use crate::proto::etcdserverpb::maintenance_server::MaintenanceServer;
use crate::proto::replcluster::node_server::NodeServer;

/// What a client may send beyond the largest request before its bytes are not even read, as in etcd: room for what
/// surrounds the request.
const REQUEST_OVERHEAD_BYTES: usize = 512 * 1024;

/// Largest request that carries neither keys nor values, in bytes.
const SMALL_REQUEST_BYTES: usize = 64 * 1024;

/// Every gRPC service of a node (etcd's, the controller's, health and reflection) and what it answers without gRPC.
#[must_use]
pub fn services(handle: Handle) -> Api {
    let answers = Budget::new(held::ANSWERS_MAX);
    let most_bytes = handle.settings().max_request_bytes.saturating_add(REQUEST_OVERHEAD_BYTES);
    crate::proto::codec::admit_operations(handle.settings().max_txn_operations);
    let kv = kv::Service::new(handle.clone(), answers.clone());
    let kv = KvServer::new(kv).max_decoding_message_size(most_bytes);
    let cluster = ClusterServer::new(cluster::Service::new(handle.clone(), answers));
    let maintenance = MaintenanceServer::new(maintenance::Service { handle: handle.clone() });
    let auth = AuthServer::new(auth::Service { handle: handle.clone() });
    let routes = Routes::new(kv)
        .add_service(cluster.max_decoding_message_size(SMALL_REQUEST_BYTES))
        .add_service(maintenance.max_decoding_message_size(SMALL_REQUEST_BYTES))
        .add_service(auth.max_decoding_message_size(SMALL_REQUEST_BYTES))
        .add_service(NodeServer::new(node::Service { handle: handle.clone() }))
        .add_service(HealthServer::new(health::Service { handle: handle.clone() }))
        .add_service(reflection().build_v1().expect("the descriptors were made by the build"))
        .add_service(reflection().build_v1alpha().expect("the descriptors were made by the build"))
        .prepare();
    Api { routes, web: Arc::new(web::Web::new(handle)), requests: Budget::new(held::REQUESTS_MAX) }
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(crate::proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}
