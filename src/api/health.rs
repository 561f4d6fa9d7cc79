//! gRPC's health service: a node is healthy while it serves writes, for as long as that lasts and not a moment
//! longer. Nothing is stored: each answer is what the node says of itself then.

use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, stream};
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::node::Handle;
use crate::proto::{etcdserverpb, replcluster};

/// How often a stream looks anew where nothing is known to have changed: that a node was replaced while it did not run
/// is known to the register only.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// What can be asked about: the whole, and the services that answer. All are as healthy as the node.
const KNOWN: [&str; 5] = [
    "",
    etcdserverpb::kv_server::SERVICE_NAME,
    etcdserverpb::cluster_server::SERVICE_NAME,
    etcdserverpb::maintenance_server::SERVICE_NAME,
    replcluster::node_server::SERVICE_NAME,
];

pub(super) struct Service {
    pub(super) handle: Handle,
}

type Statuses = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Health for Service {
    type WatchStream = Statuses;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if !KNOWN.contains(&request.get_ref().service.as_str()) {
            return Err(Status::not_found("no such service"));
        }
        Ok(Response::new(answer(status(&self.handle))))
    }

    /// The status now, then each change of it, until the client goes or the node ends.
    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        if !KNOWN.contains(&request.get_ref().service.as_str()) {
            let unknown = stream::once(async { Ok(answer(ServingStatus::ServiceUnknown)) });
            // The protocol wants the stream to stay open: a service may appear. Here none does.
            return Ok(Response::new(Box::pin(stream::StreamExt::chain(unknown, stream::pending()))));
        }
        let state = (self.handle.clone(), self.handle.changes(), None);
        let statuses = stream::unfold(state, |(handle, mut changes, told)| async move {
            loop {
                // Marked before looking, so that a change while looking wakes the wait below.
                changes.borrow_and_update();
                let status = status(&handle);
                if told != Some(status) {
                    return Some((Ok(answer(status)), (handle, changes, Some(status))));
                }
                if let Ok(ended) = tokio::time::timeout(LOOK_INTERVAL, changes.changed()).await {
                    ended.ok()?;
                }
            }
        });
        Ok(Response::new(Box::pin(statuses)))
    }
}

fn status(handle: &Handle) -> ServingStatus {
    if handle.is_healthy() { ServingStatus::Serving } else { ServingStatus::NotServing }
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}
