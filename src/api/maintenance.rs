//! etcd's Maintenance service: how a node is, its alarms, a hash of what it holds, and moving leadership.

use tonic::{Request, Response, Status};

use super::answer::lacking;
use super::deadline::deadline;
use super::header;
use super::refusal::{NO_LEADER, Rejection};
use crate::node::{CommandError, Handle, RoleName};
use crate::proto::etcdserverpb::alarm_request::AlarmAction;
use crate::proto::etcdserverpb::downgrade_request::DowngradeAction;
use crate::proto::etcdserverpb::maintenance_server::Maintenance;
use crate::proto::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, AlarmType, DefragmentRequest, DefragmentResponse,
    DowngradeRequest, DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest, HashResponse,
    MoveLeaderRequest, MoveLeaderResponse, StatusRequest, StatusResponse,
};
use crate::proto::replcluster::{Mutation, SpaceAlarm, mutation};
use crate::view::NodeId;

/// The version of etcd whose API this is, for clients that look before they use one of its parts.
pub(super) const API_VERSION: &str = "3.5.0";

pub(super) struct Service {
    pub(super) handle: Handle,
}

#[tonic::async_trait]
impl Maintenance for Service {
    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        // Answered by the node for itself, whoever leads.
        let until = deadline(request.metadata());
        let (revision, record_bytes, space_alarm) = self
            .handle
            .read(true, until, |store| (store.revision(), store.record_bytes(), store.has_space_alarm()))
            .await?;
        let node = self.handle.describe();
        let mut errors = if node.leader.is_none() { vec![NO_LEADER.to_owned()] } else { Vec::new() };
        if space_alarm {
            // As etcd prints an alarm.
            errors.push(format!("memberID:{} alarm:NOSPACE ", node.address.member_id()));
        }
        Ok(Response::new(StatusResponse {
            header: Some(header::with_revision(&self.handle, revision)),
            version: API_VERSION.to_owned(),
            db_size: i64::try_from(node.disk_bytes).unwrap_or(i64::MAX),
            leader: node.leader.as_ref().map_or(0, NodeId::member_id),
            raft_index: node.last_index.0,
            raft_term: node.epoch.0,
            raft_applied_index: node.applied_index.0,
            errors,
            db_size_in_use: i64::try_from(record_bytes).unwrap_or(i64::MAX),
            is_learner: match node.role {
                RoleName::Joining => true,
                RoleName::None | RoleName::Leader | RoleName::Follower => false,
            },
        }))
    }

    /// In etcd a hash of the file with everything in it, which is the same nowhere else. Here it is that of all keys and
    /// revisions, so that nodes at one revision can be compared by it.
    async fn hash(&self, request: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        header::check(&self.handle, request.metadata())?;
        let hash = self.handle.hash(0).await?;
        let header = Some(header::with_revision(&self.handle, hash.revision));
        Ok(Response::new(HashResponse { header, hash: hash.hash }))
    }

    async fn hash_kv(&self, request: Request<HashKvRequest>) -> Result<Response<HashKvResponse>, Status> {
        header::check(&self.handle, request.metadata())?;
        let hash = self.handle.hash(request.get_ref().revision).await?;
        Ok(Response::new(HashKvResponse {
            header: Some(header::with_revision(&self.handle, hash.revision)),
            hash: hash.hash,
            compact_revision: hash.compact_revision,
            hash_revision: hash.hash_revision,
        }))
    }

    async fn move_leader(
        &self,
        request: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        let until = deadline(request.metadata());
        let target = request.get_ref().target_id;
        let members = self.handle.describe().members;
        let Some(node) = members.into_iter().find(|node| node.member_id() == target) else {
            return Err(Rejection::BadLeaderTransferee.into());
        };
        self.handle.move_leader(node, until).await.map_err(|error| match error {
            CommandError::UnknownMember(_) => Rejection::BadLeaderTransferee.into(),
            CommandError::Unavailable(_) | CommandError::Refused(_) => Status::from(error),
        })?;
        // As in etcd, without a header.
        Ok(Response::new(MoveLeaderResponse { header: None }))
    }

    /// The space alarm, which the leader raises and ends by itself. Ended by hand it comes again where there is no room.
    async fn alarm(&self, request: Request<AlarmRequest>) -> Result<Response<AlarmResponse>, Status> {
        header::check(&self.handle, request.metadata())?;
        let until = deadline(request.metadata());
        let AlarmRequest { action, member_id, alarm } = *request.get_ref();
        let action = AlarmAction::try_from(action).map_err(|_| Rejection::UnknownAlarmAction)?;
        let node = self.handle.address().member_id();
        let (revision, raised) =
            self.handle.read(false, until, |store| (store.revision(), store.has_space_alarm())).await?;
        let of_space = alarm == i32::from(AlarmType::Nospace);
        let listed = match action {
            AlarmAction::Get => raised && (of_space || alarm == i32::from(AlarmType::None)),
            AlarmAction::Activate if alarm == i32::from(AlarmType::None) => false,
            AlarmAction::Activate => return Err(lacking("alarms that are raised by hand")),
            AlarmAction::Deactivate => {
                let ends = raised && of_space && member_id == node;
                if ends {
                    let request = mutation::Request::Space(SpaceAlarm { raised: false });
                    self.handle.mutate(Mutation { request: Some(request) }, until).await??;
                }
                ends
            }
        };
        let alarms = if listed {
            vec![AlarmMember { member_id: node, alarm: AlarmType::Nospace.into() }]
        } else {
            Vec::new()
        };
        Ok(Response::new(AlarmResponse {
            header: Some(header::with_revision(&self.handle, revision)),
            alarms,
        }))
    }

    /// Nothing is ever to be done: the state gives back by itself what compaction freed. As in etcd, without a header.
    async fn defragment(
        &self,
        _: Request<DefragmentRequest>,
    ) -> Result<Response<DefragmentResponse>, Status> {
        Ok(Response::new(DefragmentResponse { header: None }))
    }

    /// There is no older version to go back to.
    async fn downgrade(
        &self,
        request: Request<DowngradeRequest>,
    ) -> Result<Response<DowngradeResponse>, Status> {
        header::check(&self.handle, request.metadata())?;
        let request = request.get_ref();
        Err(match DowngradeAction::try_from(request.action) {
            Ok(DowngradeAction::Cancel) => Rejection::NoDowngrade,
            Ok(DowngradeAction::Validate | DowngradeAction::Enable) if is_version(&request.version) => {
                Rejection::InvalidDowngradeTarget
            }
            Ok(DowngradeAction::Validate | DowngradeAction::Enable) | Err(_) => {
                Rejection::WrongDowngradeFormat
            }
        }
        .into())
    }
}

/// True for `3.4` and `3.4.0`.
fn is_version(text: &str) -> bool {
    let numbers: Vec<&str> = text.split('.').collect();
    matches!(numbers.len(), 2 | 3)
        && numbers.iter().all(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}
