//! The one table of refusals: every reason for which a request is not served, with the gRPC code and the exact text
//! that etcd gives for it. Clients match by text. What etcd has no word for has ours.

use tonic::{Code, Status};

use crate::kv::Refusal;
use crate::node::{CommandError, HashError, Unavailable};

/// What the API itself refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rejection {
    /// The request is larger than the node accepts.
    RequestTooLarge,
    /// No member has the number to which leadership should move.
    BadLeaderTransferee,
    /// No member has that number.
    MemberNotFound,
    /// Only a learner can be promoted, and that member is none.
    NotALearner,
    /// Not a version.
    WrongDowngradeFormat,
    /// A version to which this cluster cannot go back.
    InvalidDowngradeTarget,
    /// There is no downgrade to cancel.
    NoDowngrade,
    /// Alarms are listed, raised and ended, and nothing else.
    UnknownAlarmAction,
    /// Authentication is off.
    AuthNotEnabled,
    /// It cannot be turned on without a root user.
    NoRootUser,
    /// A user without a name.
    UserEmpty,
    /// No user has that name.
    UserNotFound,
    /// A role without a name.
    RoleEmpty,
    /// No role has that name.
    RoleNotFound,
    /// There is no permission to grant.
    PermissionNotGiven,
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Status {
        let (code, text) = match refusal {
            Refusal::EmptyKey => (Code::InvalidArgument, "etcdserver: key is not provided"),
            Refusal::ValueProvided => (Code::InvalidArgument, "etcdserver: value is provided"),
            Refusal::LeaseProvided => (Code::InvalidArgument, "etcdserver: lease is provided"),
            // etcd answers an operation without content as a key that is not there.
            Refusal::KeyNotFound | Refusal::EmptyOperation | Refusal::EmptyMutation => {
                (Code::InvalidArgument, "etcdserver: key not found")
            }
            Refusal::LeaseNotFound(_) => (Code::NotFound, "etcdserver: requested lease not found"),
            Refusal::TooManyOperations { .. } | Refusal::TooDeep => {
                (Code::InvalidArgument, "etcdserver: too many operations in txn request")
            }
            Refusal::TooCostly => (Code::InvalidArgument, "etcdserver: request is too large"),
            Refusal::Undecodable => (Code::InvalidArgument, "replcluster: the request cannot be decoded"),
            // What etcd's gRPC says of an answer that it cannot send.
            Refusal::AnswerTooLarge { bytes, allowed } => {
                return Status::resource_exhausted(format!(
                    "grpc: trying to send message larger than max ({bytes} vs. {allowed})"
                ));
            }
            Refusal::DuplicateKey => {
                (Code::InvalidArgument, "etcdserver: duplicate key given in txn request")
            }
            Refusal::SpaceExceeded => (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
            Refusal::InvalidSort => (Code::InvalidArgument, "etcdserver: invalid sort option"),
            Refusal::Compacted { .. } => {
                (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted")
            }
            Refusal::FutureRevision { .. } => {
                (Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision")
            }
        };
        Status::new(code, text)
    }
}

impl From<Unavailable> for Status {
    fn from(unavailable: Unavailable) -> Status {
        let (code, text) = match unavailable {
            Unavailable::NoLeader => (Code::Unavailable, "etcdserver: no leader"),
            Unavailable::LeaderChanged => (Code::Unavailable, "etcdserver: leader changed"),
            Unavailable::TimedOut => (Code::Unavailable, "etcdserver: request timed out"),
            Unavailable::TooManyRequests => (Code::ResourceExhausted, "etcdserver: too many requests"),
            Unavailable::Stopping => (Code::Unavailable, "etcdserver: server stopped"),
            Unavailable::NoRoomHere => (
                Code::Unavailable,
                "replcluster: this node has no room on its disk, is not in sync, and reaches no leader",
            ),
            Unavailable::HeldByTooFew { have, need } => {
                let text = format!(
                    "replcluster: the write is done, but it is not safe: min_in_sync is {need}, and the nodes in sync that hold it are {have}"
                );
                return Status::unavailable(text);
            }
            Unavailable::TooFewInSync { have, need } => {
                let text = format!(
                    "replcluster: writes need {need} nodes in sync, and {have} are; start more nodes"
                );
                return Status::unavailable(text);
            }
        };
        Status::new(code, text)
    }
}

impl From<CommandError> for Status {
    fn from(error: CommandError) -> Status {
        match error {
            CommandError::Unavailable(unavailable) => unavailable.into(),
            CommandError::UnknownMember(_) => Status::not_found("etcdserver: member not found"),
            CommandError::Refused(why) => Status::failed_precondition(format!("replcluster: {why}")),
        }
    }
}

impl From<HashError> for Status {
    fn from(error: HashError) -> Status {
        match error {
            HashError::Refused(refusal) => refusal.into(),
            HashError::Stopping => Unavailable::Stopping.into(),
        }
    }
}

impl From<Rejection> for Status {
    fn from(rejection: Rejection) -> Status {
        let (invalid, failed) = (Code::InvalidArgument, Code::FailedPrecondition);
        let (code, text) = match rejection {
            Rejection::RequestTooLarge => (invalid, "etcdserver: request is too large"),
            Rejection::BadLeaderTransferee => (failed, "etcdserver: bad leader transferee"),
            Rejection::MemberNotFound => (Code::NotFound, "etcdserver: member not found"),
            Rejection::NotALearner => (failed, "etcdserver: can only promote a learner member"),
            Rejection::WrongDowngradeFormat => (invalid, "etcdserver: wrong downgrade target version format"),
            Rejection::InvalidDowngradeTarget => (invalid, "etcdserver: invalid downgrade target version"),
            Rejection::NoDowngrade => (failed, "etcdserver: no inflight downgrade job"),
            // etcd ends its process there.
            Rejection::UnknownAlarmAction => (invalid, "replcluster: no such alarm action"),
            Rejection::AuthNotEnabled => (failed, "etcdserver: authentication is not enabled"),
            Rejection::NoRootUser => (failed, "etcdserver: root user does not exist"),
            Rejection::UserEmpty => (invalid, "etcdserver: user name is empty"),
            Rejection::UserNotFound => (failed, "etcdserver: user name not found"),
            Rejection::RoleEmpty => (invalid, "etcdserver: role name is empty"),
            Rejection::RoleNotFound => (failed, "etcdserver: role name not found"),
            Rejection::PermissionNotGiven => (invalid, "etcdserver: permission not given"),
        };
        Status::new(code, text)
    }
}

/// What [`Unavailable::NoLeader`] is called where it is reported and not answered.
pub(super) const NO_LEADER: &str = "etcdserver: no leader";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_the_code_and_the_text_that_clients_match() {
        let revisions = Refusal::Compacted { requested: 1, compacted: 2 };
        let future = Refusal::FutureRevision { requested: 2, current: 1 };
        let too_many = Refusal::TooManyOperations { given: 129, allowed: 128 };
        let invalid = Code::InvalidArgument;
        let table: Vec<(Status, Code, &str)> = vec![
            (Refusal::EmptyKey.into(), invalid, "etcdserver: key is not provided"),
            (Refusal::ValueProvided.into(), invalid, "etcdserver: value is provided"),
            (Refusal::LeaseProvided.into(), invalid, "etcdserver: lease is provided"),
            (Refusal::KeyNotFound.into(), invalid, "etcdserver: key not found"),
            (Refusal::EmptyOperation.into(), invalid, "etcdserver: key not found"),
            (Refusal::LeaseNotFound(7).into(), Code::NotFound, "etcdserver: requested lease not found"),
            (too_many.into(), invalid, "etcdserver: too many operations in txn request"),
            (Refusal::DuplicateKey.into(), invalid, "etcdserver: duplicate key given in txn request"),
            (
                Refusal::SpaceExceeded.into(),
                Code::ResourceExhausted,
                "etcdserver: mvcc: database space exceeded",
            ),
            (Refusal::InvalidSort.into(), invalid, "etcdserver: invalid sort option"),
            (revisions.into(), Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted"),
            (future.into(), Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision"),
            (Unavailable::NoLeader.into(), Code::Unavailable, NO_LEADER),
            (Unavailable::LeaderChanged.into(), Code::Unavailable, "etcdserver: leader changed"),
            (Unavailable::TimedOut.into(), Code::Unavailable, "etcdserver: request timed out"),
            (Unavailable::TooManyRequests.into(), Code::ResourceExhausted, "etcdserver: too many requests"),
            (Unavailable::Stopping.into(), Code::Unavailable, "etcdserver: server stopped"),
            (
                Unavailable::TooFewInSync { have: 1, need: 2 }.into(),
                Code::Unavailable,
                "replcluster: writes need 2 nodes in sync, and 1 are; start more nodes",
            ),
            (
                Unavailable::HeldByTooFew { have: 1, need: 2 }.into(),
                Code::Unavailable,
                "replcluster: the write is done, but it is not safe: min_in_sync is 2, and the nodes in sync that hold it are 1",
            ),
            (CommandError::Unavailable(Unavailable::NoLeader).into(), Code::Unavailable, NO_LEADER),
            (CommandError::UnknownMember("x".into()).into(), Code::NotFound, "etcdserver: member not found"),
            (CommandError::Refused("why".into()).into(), Code::FailedPrecondition, "replcluster: why"),
            (Rejection::RequestTooLarge.into(), invalid, "etcdserver: request is too large"),
            (
                Rejection::BadLeaderTransferee.into(),
                Code::FailedPrecondition,
                "etcdserver: bad leader transferee",
            ),
        ];
        for (status, code, text) in table {
            assert_eq!((status.code(), status.message()), (code, text));
        }
    }
}
