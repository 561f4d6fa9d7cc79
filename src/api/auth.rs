//! etcd's Auth service as an etcd answers whose authentication is off and that has neither users nor roles. A client with
//! user and password asks for a token on the way to something else, hears that authentication is not enabled, and goes
//! on without one. Users and roles cannot be made in this version.

use tonic::{Request, Response, Status};

use super::answer::lacking;
use super::deadline::deadline;
use super::header;
use super::refusal::Rejection;
use crate::node::{Handle, StateStore};
use crate::proto::etcdserverpb as pb;
use crate::proto::etcdserverpb::auth_server::Auth;

/// Revision of users and roles where none was ever made, as in etcd.
const AUTH_REVISION: u64 = 1;

pub(super) struct Service {
    pub(super) handle: Handle,
}

impl Service {
    /// Refuses where this node cannot answer, else the header of an answer.
    async fn header<T>(&self, request: &Request<T>) -> Result<Option<pb::ResponseHeader>, Status> {
        header::check(&self.handle, request.metadata())?;
        let until = deadline(request.metadata());
        // As etcd orders even what only asks, so that a node that is cut off does not answer.
        let revision = self.handle.read(false, until, StateStore::revision).await?;
        Ok(Some(header::with_revision(&self.handle, revision)))
    }
}

#[tonic::async_trait]
impl Auth for Service {
    async fn auth_enable(
        &self,
        request: Request<pb::AuthEnableRequest>,
    ) -> Result<Response<pb::AuthEnableResponse>, Status> {
        self.header(&request).await?;
        Err(Rejection::NoRootUser.into())
    }

    async fn auth_disable(
        &self,
        request: Request<pb::AuthDisableRequest>,
    ) -> Result<Response<pb::AuthDisableResponse>, Status> {
        Ok(Response::new(pb::AuthDisableResponse { header: self.header(&request).await? }))
    }

    async fn auth_status(
        &self,
        request: Request<pb::AuthStatusRequest>,
    ) -> Result<Response<pb::AuthStatusResponse>, Status> {
        let header = self.header(&request).await?;
        Ok(Response::new(pb::AuthStatusResponse { header, enabled: false, auth_revision: AUTH_REVISION }))
    }

    async fn authenticate(
        &self,
        request: Request<pb::AuthenticateRequest>,
    ) -> Result<Response<pb::AuthenticateResponse>, Status> {
        header::check(&self.handle, request.metadata())?;
        Err(Rejection::AuthNotEnabled.into())
    }

    async fn user_add(
        &self,
        request: Request<pb::AuthUserAddRequest>,
    ) -> Result<Response<pb::AuthUserAddResponse>, Status> {
        self.header(&request).await?;
        Err(if request.get_ref().name.is_empty() { Rejection::UserEmpty.into() } else { lacking("users") })
    }

    async fn user_get(
        &self,
        request: Request<pb::AuthUserGetRequest>,
    ) -> Result<Response<pb::AuthUserGetResponse>, Status> {
        self.header(&request).await?;
        Err(Rejection::UserNotFound.into())
    }

    async fn user_list(
        &self,
        request: Request<pb::AuthUserListRequest>,
    ) -> Result<Response<pb::AuthUserListResponse>, Status> {
        let header = self.header(&request).await?;
        Ok(Response::new(pb::AuthUserListResponse { header, users: Vec::new() }))
    }

    async fn user_delete(
        &self,
        request: Request<pb::AuthUserDeleteRequest>,
    ) -> Result<Response<pb::AuthUserDeleteResponse>, Status> {
        self.header(&request).await?;
        Err(Rejection::UserNotFound.into())
    }

    async fn user_change_password(
        &self,
        request: Request<pb::AuthUserChangePasswordRequest>,
    ) -> Result<Response<pb::AuthUserChangePasswordResponse>, Status> {
        self.header(&request).await?;
        Err(Rejection::UserNotFound.into())
    }

    async fn user_grant_role(
        &self,
        request: Request<pb::AuthUserGrantRoleRequest>,
    ) -> Result<Response<pb::AuthUserGrantRoleResponse>, Status> {
        self.header(&request).await?;
        Err(Rejection::UserNotFound.into())
    }

    async fn user_revoke_role(
        &self,
        request: Request<pb::AuthUserRevokeRoleRequest>,
    ) -> Result<Response<pb::AuthUserRevokeRoleResponse>, Status> {
        self.header(&request).await?;
        Err(Rejection::UserNotFound.into())
    }

    async fn role_add(
        &self,
        request: Request<pb::AuthRoleAddRequest>,
    ) -> Result<Response<pb::AuthRoleAddResponse>, Status> {
        self.header(&request).await?;
        Err(if request.get_ref().name.is_empty() { Rejection::RoleEmpty.into() } else { lacking("roles") })
    }

    async fn role_get(
        &self,
        request: Request<pb::AuthRoleGetRequest>,
    ) -> Result<Response<pb::AuthRoleGetResponse>, Status> {
        self.header(&request).await?;
        Err(Rejection::RoleNotFound.into())
    }

    async fn role_list(
        &self,
        request: Request<pb::AuthRoleListRequest>,
    ) -> Result<Response<pb::AuthRoleListResponse>, Status> {
        let header = self.header(&request).await?;
        Ok(Response::new(pb::AuthRoleListResponse { header, roles: Vec::new() }))
    }

    async fn role_delete(
        &self,
        request: Request<pb::AuthRoleDeleteRequest>,
    ) -> Result<Response<pb::AuthRoleDeleteResponse>, Status> {
        self.header(&request).await?;
        Err(Rejection::RoleNotFound.into())
    }

    async fn role_grant_permission(
        &self,
        request: Request<pb::AuthRoleGrantPermissionRequest>,
    ) -> Result<Response<pb::AuthRoleGrantPermissionResponse>, Status> {
        self.header(&request).await?;
        Err(match request.get_ref().perm {
            Some(_) => Rejection::RoleNotFound.into(),
            None => Rejection::PermissionNotGiven.into(),
        })
    }

    async fn role_revoke_permission(
        &self,
        request: Request<pb::AuthRoleRevokePermissionRequest>,
    ) -> Result<Response<pb::AuthRoleRevokePermissionResponse>, Status> {
        self.header(&request).await?;
        Err(Rejection::RoleNotFound.into())
    }
}
