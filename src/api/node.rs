//! What the controller asks a node beyond etcd's API.

use std::collections::BTreeMap;

use tonic::{Request, Response, Status};

use super::deadline::deadline;
use crate::node::{Description, Handle, RoleName};
use crate::proto::replcluster::describe_response::Role;
use crate::proto::replcluster::node_server::Node;
use crate::proto::replcluster::{
    Copy, DescribeRequest, DescribeResponse, RemoveRequest, RemoveResponse, SetLogLevelRequest,
    SetLogLevelResponse, ShutdownRequest, ShutdownResponse, View,
};
use crate::telemetry::{self, Changed, TelemetryError};
use crate::view::{self, Incarnation, NodeId};

pub(super) struct Service {
    pub(super) handle: Handle,
}

#[tonic::async_trait]
impl Node for Service {
    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        let settings = self.handle.settings();
        let description = self.handle.describe();
        Ok(Response::new(DescribeResponse {
            cluster_name: settings.cluster_name.clone(),
            nonce: settings.nonce.clone(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..described(description)
        }))
    }

    async fn remove(&self, request: Request<RemoveRequest>) -> Result<Response<RemoveResponse>, Status> {
        let until = deadline(request.metadata());
        let node = NodeId::parse(&request.get_ref().address)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let epoch = self.handle.remove(node, until).await?;
        Ok(Response::new(RemoveResponse { epoch: epoch.0 }))
    }

    async fn shutdown(&self, _: Request<ShutdownRequest>) -> Result<Response<ShutdownResponse>, Status> {
        self.handle.shutdown().await;
        Ok(Response::new(ShutdownResponse {}))
    }

    async fn set_log_level(
        &self,
        request: Request<SetLogLevelRequest>,
    ) -> Result<Response<SetLogLevelResponse>, Status> {
        let filter = &request.get_ref().filter;
        let Changed { before, after } = if filter.is_empty() {
            telemetry::level().map(|level| Changed { before: level.clone(), after: level })
        } else {
            telemetry::set_level(filter)
        }
        .map_err(|error| match &error {
            TelemetryError::Level { .. } => Status::invalid_argument(error.to_string()),
            TelemetryError::Off | TelemetryError::Twice | TelemetryError::File { .. } => {
                Status::failed_precondition(error.to_string())
            }
        })?;
        Ok(Response::new(SetLogLevelResponse { before, after }))
    }
}

/// What the node says of itself; what is known of the process is added by the caller.
fn described(description: Description) -> DescribeResponse {
    let texts = |nodes: &[NodeId]| nodes.iter().map(NodeId::to_string).collect();
    let role = match description.role {
        RoleName::None => Role::None,
        RoleName::Leader => Role::Leader,
        RoleName::Follower => Role::Follower,
        RoleName::Joining => Role::Joining,
    };
    DescribeResponse {
        cluster_id: description.cluster.0,
        address: description.address.to_string(),
        incarnation: description.incarnation.0,
        role: role.into(),
        ready: description.ready,
        epoch: description.epoch.0,
        leader: description.leader.as_ref().map(NodeId::to_string).unwrap_or_default(),
        in_sync: texts(&description.in_sync),
        members: texts(&description.members),
        last_index: description.last_index.0,
        last_epoch: description.last_epoch.0,
        view: description.view.as_ref().map(view),
        durable_index: description.durable_index.0,
        commit_index: description.commit_index.0,
        applied_index: description.applied_index.0,
        revision: description.revision,
        uptime_ms: description.uptime_ms,
        disk_bytes: description.disk_bytes,
        waiting_for: description.waiting_for,
        healthy_age_ms: description.healthy_age_ms,
        feature_level: description.feature_level,
        refused_entries: description.refused_entries,
        ..DescribeResponse::default()
    }
}

fn view(view: &view::View) -> View {
    let copies = |nodes: &BTreeMap<NodeId, Incarnation>| {
        let copy = |(node, incarnation): (&NodeId, &Incarnation)| Copy {
            address: node.to_string(),
            incarnation: incarnation.0,
        };
        nodes.iter().map(copy).collect()
    };
    View {
        cluster_id: view.cluster.0,
        epoch: view.epoch.0,
        leader: view.leader.to_string(),
        led_since: view.led_since.0,
        floor: view.floor.0,
        recovered: view.recovered.0,
        previous: view.previous.0,
        in_sync: copies(&view.in_sync),
        members: copies(&view.members),
    }
}
