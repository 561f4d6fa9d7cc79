//! etcd's API, and what the controller asks beyond it, over gRPC: translation only. What a request means is decided
//! in `kv`, when it may be answered in `node`; here it is checked as far as that needs no state, given a deadline,
//! passed on, and its answer gets a header; what only the leader can answer goes there (`relay`). Every refusal gets its code and text in `refusal` and nowhere else.
//!
//! Watches, leases, and the parts of Cluster and Maintenance that are not here answer `Unimplemented`.

mod authority;
mod cluster;
mod deadline;
mod header;
mod health;
mod kv;
mod maintenance;
mod node;
mod refusal;
mod relay;
mod size;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use authority::Forgiving;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::pb::health_server::HealthServer;

use crate::node::Handle;
use crate::proto::etcdserverpb::cluster_server::ClusterServer;
use crate::proto::etcdserverpb::kv_server::KvServer;
use crate::proto::etcdserverpb::lease_server::{Lease, LeaseServer};
use crate::proto::etcdserverpb::maintenance_server::MaintenanceServer;
use crate::proto::etcdserverpb::watch_server::{Watch, WatchServer};
use crate::proto::replcluster::node_server::NodeServer;

/// What a client may send beyond the largest request before its bytes are not even read, as in etcd: room for what
/// surrounds the request.
const REQUEST_OVERHEAD_BYTES: usize = 512 * 1024;
/// Largest frame that a client may send, in bytes.
const FRAME_BYTES: u32 = 1 << 18;

/// Every gRPC service of a node: etcd's, the controller's, health and reflection (v1 and v1alpha).
#[must_use]
pub fn services(handle: Handle) -> Routes {
    let most_bytes = handle.settings().max_request_bytes.saturating_add(REQUEST_OVERHEAD_BYTES);
    crate::proto::codec::admit_operations(handle.settings().max_txn_operations);
    let kv = KvServer::new(kv::Service::new(handle.clone())).max_decoding_message_size(most_bytes);
    Routes::new(size::TooLargeIsExhausted(kv))
        .add_service(ClusterServer::new(cluster::Service::new(handle.clone())))
        .add_service(MaintenanceServer::new(maintenance::Service { handle: handle.clone() }))
        .add_service(WatchServer::new(Unserved))
        .add_service(LeaseServer::new(Unserved))
        .add_service(NodeServer::new(node::Service { handle: handle.clone() }))
        .add_service(HealthServer::new(health::Service { handle }))
        .add_service(reflection().build_v1().expect("the descriptors were made by the build"))
        .add_service(reflection().build_v1alpha().expect("the descriptors were made by the build"))
        .prepare()
}

/// An HTTP/2 server set up for etcd's clients: hundreds of requests at a time on one connection, answers of
/// megabytes, and keep-alive pings as often as they like.
#[must_use]
pub fn server_builder() -> Server {
    Server::builder()
        .tcp_nodelay(true)
        // A client multiplexes everything over one connection; the node bounds its work by its own queue.
        .max_concurrent_streams(u32::MAX)
        // A client that cancels many requests at once is no attacker: by default 20 end the connection.
        .http2_max_pending_accept_reset_streams(Some(4096))
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(16 << 20)
        .max_frame_size(FRAME_BYTES)
        // Finds clients whose host is gone, and gives back what their streams hold.
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(crate::proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

/// Services that are known by name and answer `Unimplemented` to everything.
struct Unserved;

impl Watch for Unserved {}
impl Lease for Unserved {}
