//! What this node must not answer although the cluster can: handed whole, as the client asked it, to whoever leads.
//!
//! A node that has left the in-sync set for want of room takes no entries (R25), so it can neither say what became of
//! a write nor what is newest, and nobody knows for how long. Its clients should not have to know: any node takes any
//! request. So the node becomes a client of the leader. A request is handed on once and never further, or two nodes
//! that each hold the other for the leader would hand it to and fro. What was surely not carried out is tried again
//! with the then leader until its time is up; a write whose answer is lost is not, because a second try could do it
//! twice. The header of an answer names the node that gave it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::deadline::deadline;
use super::header;
use super::held::{LARGE, charged};
use super::refusal::Rejection;
use crate::bounds::{Budget, Charge};
use crate::client::{ClientError, Link, MAX_ANSWER_BYTES};
use crate::kv::Refusal;
use crate::node::{Handle, Unavailable};
use crate::proto::etcdserverpb::kv_client::KvClient;
use crate::view::NodeId;

/// Marks a request that another node has handed on.
const MARK: &str = "replcluster-handed-on";
/// How long a leader may take to accept a connection; on one host it does so at once or not at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long to wait before looking again for a leader that answers.
const PAUSE: Duration = Duration::from_millis(20);

/// Why a request was not answered here.
#[derive(Debug)]
pub(super) enum NotHere {
    /// Whoever leads can answer it.
    Elsewhere,
    /// Nobody would answer otherwise.
    Refused(Status),
}

impl From<Unavailable> for NotHere {
    fn from(why: Unavailable) -> NotHere {
        match why {
            Unavailable::NoRoomHere => NotHere::Elsewhere,
            Unavailable::NoLeader
            | Unavailable::LeaderChanged
            | Unavailable::TimedOut
            | Unavailable::TooManyRequests
            | Unavailable::HeldByTooFew { .. }
            | Unavailable::TooFewInSync { .. }
            | Unavailable::Stopping => NotHere::Refused(why.into()),
        }
    }
}

impl From<Refusal> for NotHere {
    fn from(refusal: Refusal) -> NotHere {
        NotHere::Refused(refusal.into())
    }
}

impl From<Rejection> for NotHere {
    fn from(rejection: Rejection) -> NotHere {
        NotHere::Refused(rejection.into())
    }
}

/// Whether a request may be sent again when nobody knows what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// It changes nothing.
    Safe,
    /// A second copy could change the store a second time.
    Unsafe,
}

/// The way from this node to the leader, for one service.
pub(super) struct Relay {
    handle: Handle,
    /// What large answers may hold.
    answers: Budget,
    /// To the last leader that was asked, so that not every request connects anew.
    link: Mutex<Option<(NodeId, Link)>>,
}

impl Relay {
    pub(super) fn new(handle: Handle, answers: Budget) -> Relay {
        Relay { handle, answers, link: Mutex::new(None) }
    }

    /// Answers `request` with `here`, or, where this node must not, with `there` at the leader.
    ///
    /// # Errors
    /// The refusal of either.
    pub(super) async fn answer<Asked, Answer>(
        &self,
        request: Request<Asked>,
        repeat: Repeat,
        here: impl AsyncFnOnce(Asked, Instant) -> Result<Answer, NotHere>,
        there: impl AsyncFn(Channel, Request<Asked>) -> Result<Response<Answer>, Status>,
    ) -> Result<Response<Answer>, Status>
    where
        Asked: Clone,
        Answer: prost::Message,
    {
        let (metadata, _, asked) = request.into_parts();
        header::check(&self.handle, &metadata)?;
        let until = deadline(&metadata);
        match here(asked.clone(), until).await {
            Ok(answer) => Ok(charged(answer, &self.answers)),
            Err(NotHere::Refused(status)) => Err(status),
            Err(NotHere::Elsewhere) if metadata.contains_key(MARK) => Err(Unavailable::NoRoomHere.into()),
            Err(NotHere::Elsewhere) => self.hand_on(&metadata, &asked, until, repeat, there).await,
        }
    }

    /// True where an answer that only reads may be given. Where not, it is to be let go, and made again under what
    /// [`Relay::reserve`] gives.
    pub(super) fn has_room(&self, bytes: usize, reserved: Option<&Charge>) -> bool {
        bytes < LARGE
            || reserved.is_some_and(|reserved| reserved.bytes() >= bytes)
            || self.answers.has_room(bytes)
    }

    /// Waits until clients have read so much that there is room for an answer of so many bytes, and holds it.
    ///
    /// # Errors
    /// Where they do not in time.
    pub(super) async fn reserve(&self, bytes: usize, until: Instant) -> Result<Charge, NotHere> {
        let reserve = async {
            loop {
                self.answers.room_for(bytes).await;
                if let Some(reserved) = self.answers.try_charge(bytes) {
                    return reserved;
                }
            }
        };
        // A little before its time is up, so that the client hears why.
        let at = now();
        let until = at + until.saturating_duration_since(at).mul_f64(0.9);
        tokio::time::timeout_at(until, reserve).await.map_err(|_| Unavailable::TooManyRequests.into())
    }

    async fn hand_on<Asked, Answer>(
        &self,
        metadata: &MetadataMap,
        asked: &Asked,
        until: Instant,
        repeat: Repeat,
        there: impl AsyncFn(Channel, Request<Asked>) -> Result<Response<Answer>, Status>,
    ) -> Result<Response<Answer>, Status>
    where
        Asked: Clone,
        Answer: prost::Message,
    {
        loop {
            let own = NodeId::clone(self.handle.address());
            let leader = self.handle.describe().leader.filter(|leader| *leader != own);
            if let Some(link) = leader.and_then(|leader| self.link_to(&leader)) {
                let left = until.saturating_duration_since(now());
                let mut request = Request::new(asked.clone());
                *request.metadata_mut() = metadata.clone();
                request.metadata_mut().insert(MARK, MetadataValue::from_static("true"));
                // The leader counts from when it hears of it.
                request.set_timeout(left);
                let status = match tokio::time::timeout(left, there(link.channel(), request)).await {
                    Ok(Ok(answer)) => return Ok(charged(answer.into_inner(), &self.answers)),
                    Ok(Err(status)) => status,
                    Err(_) => return Err(Unavailable::TimedOut.into()),
                };
                match ClientError::from_status(link.endpoint(), status.clone()) {
                    ClientError::Unreachable { .. } => {}
                    failure if repeat == Repeat::Safe && failure.is_passing() => {}
                    // What the leader itself says, the client is told as it was said.
                    ClientError::Refused { .. } => return Err(status),
                    ClientError::Broken { .. }
                    | ClientError::TimedOut { .. }
                    | ClientError::NoEndpoints
                    | ClientError::BadEndpoint { .. } => return Err(Unavailable::LeaderChanged.into()),
                }
            }
            if now() + PAUSE >= until {
                return Err(Unavailable::NoRoomHere.into());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// `None` for an address that no connection can lead to.
    fn link_to(&self, leader: &NodeId) -> Option<Link> {
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((node, link)) = &*link
            && node == leader
        {
            return Some(link.clone());
        }
        let new = Link::new(leader.as_str(), CONNECT_TIMEOUT).ok()?;
        *link = Some((leader.clone(), new.clone()));
        Some(new)
    }
}

/// The leader's key-value service; its answers are as large as a client may ask for.
pub(super) fn kv(channel: Channel) -> KvClient<Channel> {
    KvClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES)
}

fn now() -> Instant {
    Instant::from_std(crate::clock::now())
}
