//! A client of the etcd v3 API, for the controller's own use: key-value, members, status.
//! It works against any etcd v3 server. It keeps no cache and no session; watches and leases are not here.
//!
//! **What is tried again.** A read goes to the next endpoint when one cannot be reached, breaks, is slow or has no
//! leader, until the time is up. A write goes to the next endpoint only when no connection could be made, so that
//! nothing was sent; every other failure is handed to the caller, because a second try could do it twice.

mod error;
pub mod probe;

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

pub use error::{Certainty, ClientError};

use crate::clock;
use crate::proto::etcdserverpb as pb;
use crate::proto::etcdserverpb::cluster_client::ClusterClient;
use crate::proto::etcdserverpb::kv_client::KvClient;
use crate::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use crate::view::NodeId;

/// Longest answer taken, in bytes: what etcd's own client takes.
pub const MAX_ANSWER_BYTES: usize = i32::MAX as usize;
/// First pause after a round in which no endpoint could answer a read; doubled each round.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// Longest pause between two rounds.
const LONGEST_PAUSE: Duration = Duration::from_millis(160);

/// How long to wait.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// For one request, with everything that is tried on its behalf.
    pub timeout: Duration,
    /// For one endpoint to answer a read before the next is asked, where there are several.
    pub attempt_timeout: Duration,
    /// For one connection to be made.
    pub connect_timeout: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            timeout: Duration::from_secs(5),
            attempt_timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(1),
        }
    }
}

/// A client of one cluster. Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Grows by [`Client::sync`]; the endpoints given by the user stay in front.
    links: RwLock<Vec<Link>>,
    /// The endpoint that answered last, so that a dead one is paid for once and not by every request.
    preferred: AtomicUsize,
    options: Options,
}

/// One endpoint with its connection, which is made when first used and made again when it broke.
#[derive(Clone, Debug)]
pub struct Link {
    endpoint: Arc<str>,
    channel: Channel,
}

/// Whether a request may be sent again when nobody knows what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Repeat {
    /// It changes nothing.
    Safe,
    /// A second copy could change the store a second time.
    Unsafe,
}

impl Link {
    /// Prepares, but does not make, a connection to `host:port` or `http://host:port`.
    ///
    /// # Errors
    /// [`ClientError::BadEndpoint`] where the text is no such thing, or asks for TLS.
    pub fn new(endpoint: &str, connect_timeout: Duration) -> Result<Link, ClientError> {
        let address = address_of(endpoint)?;
        let bad = |reason: String| ClientError::BadEndpoint { endpoint: endpoint.to_owned(), reason };
        let channel = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| bad(error.to_string()))?
            .connect_timeout(connect_timeout)
            .tcp_nodelay(true)
            // Not more often than etcd's servers tolerate (5 s); finds a host that vanished under a waiting request.
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(3))
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .connect_lazy();
        Ok(Link { endpoint: Arc::from(address.as_str()), channel })
    }

    /// `host:port`.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The connection, for services that this module does not wrap.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }
}

impl Client {
    /// Takes the endpoints; connects when first used.
    ///
    /// # Errors
    /// [`ClientError::NoEndpoints`], [`ClientError::BadEndpoint`].
    pub fn new(endpoints: &[String], options: Options) -> Result<Client, ClientError> {
        let mut links: Vec<Link> = Vec::with_capacity(endpoints.len());
        for endpoint in endpoints {
            let link = Link::new(endpoint, options.connect_timeout)?;
            if links.iter().all(|known| known.endpoint != link.endpoint) {
                links.push(link);
            }
        }
        if links.is_empty() {
            return Err(ClientError::NoEndpoints);
        }
        let shared = Shared { links: RwLock::new(links), preferred: AtomicUsize::new(0), options };
        Ok(Client { shared: Arc::new(shared) })
    }

    /// The endpoints that are tried, in order.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.links().iter().map(|link| link.endpoint.to_string()).collect()
    }

    /// Asks the cluster for its members and adds their addresses to the endpoints, so that the cluster can be
    /// reached when those it was given are gone (O9). Returns how many were added.
    ///
    /// # Errors
    /// Those of [`Client::members`].
    pub async fn sync(&self) -> Result<usize, ClientError> {
        let members = self.members(false).await?;
        let mut added = 0;
        for url in members.members.iter().flat_map(|member| &member.client_ur_ls) {
            // A member may advertise what this client cannot use, such as TLS; the others still count.
            let Ok(link) = Link::new(url, self.shared.options.connect_timeout) else { continue };
            let mut links = self.shared.links.write().unwrap_or_else(PoisonError::into_inner);
            if links.iter().all(|known| known.endpoint != link.endpoint) {
                links.push(link);
                added += 1;
            }
        }
        Ok(added)
    }

    /// Reads a range.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn range(&self, request: pb::RangeRequest) -> Result<pb::RangeResponse, ClientError> {
        self.call(Repeat::Safe, |link| {
            let request = request.clone();
            async move { link.kv().range(request).await }
        })
        .await
    }

    /// The newest value of one key, linearizable; `None` where there is no such key.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn get(
        &self,
        key: impl Into<Bytes>,
    ) -> Result<Option<crate::proto::mvccpb::KeyValue>, ClientError> {
        let request = pb::RangeRequest { key: key.into(), ..Default::default() };
        Ok(self.range(request).await?.kvs.into_iter().next())
    }

    /// Writes one key.
    ///
    /// # Errors
    /// Any [`ClientError`]; its [`ClientError::certainty`] tells whether it may have been written.
    pub async fn put(&self, request: pb::PutRequest) -> Result<pb::PutResponse, ClientError> {
        self.call(Repeat::Unsafe, |link| {
            let request = request.clone();
            async move { link.kv().put(request).await }
        })
        .await
    }

    /// Deletes a range.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn delete(
        &self,
        request: pb::DeleteRangeRequest,
    ) -> Result<pb::DeleteRangeResponse, ClientError> {
        self.call(Repeat::Unsafe, |link| {
            let request = request.clone();
            async move { link.kv().delete_range(request).await }
        })
        .await
    }

    /// Carries out a transaction; one that only reads is tried again like a read.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn txn(&self, request: pb::TxnRequest) -> Result<pb::TxnResponse, ClientError> {
        let repeat = if only_reads(&request) { Repeat::Safe } else { Repeat::Unsafe };
        self.call(repeat, |link| {
            let request = request.clone();
            async move { link.kv().txn(request).await }
        })
        .await
    }

    /// Forgets what was overwritten or deleted before `revision`.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn compact(
        &self,
        revision: i64,
        physical: bool,
    ) -> Result<pb::CompactionResponse, ClientError> {
        self.call(Repeat::Unsafe, |link| async move {
            link.kv().compact(pb::CompactionRequest { revision, physical }).await
        })
        .await
    }

    /// The members with their names and client addresses.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn members(&self, linearizable: bool) -> Result<pb::MemberListResponse, ClientError> {
        self.call(Repeat::Safe, |link| async move {
            ClusterClient::new(link.channel()).member_list(pb::MemberListRequest { linearizable }).await
        })
        .await
    }

    /// What every endpoint says of itself, each asked alone and all at once; in the order of the endpoints.
    pub async fn status(&self) -> Vec<(String, Result<pb::StatusResponse, ClientError>)> {
        let timeout = self.shared.options.timeout;
        let answers = self.links().into_iter().map(|link| async move {
            let asked = link.clone();
            let call =
                async move { MaintenanceClient::new(asked.channel()).status(pb::StatusRequest {}).await };
            (link.endpoint.to_string(), attempt(&link, timeout, call).await.map_err(ClientError::of_read))
        });
        futures_util::future::join_all(answers).await
    }

    /// Asks the leader to hand over to the member with this id.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn move_leader(&self, target: u64) -> Result<pb::MoveLeaderResponse, ClientError> {
        self.call(Repeat::Unsafe, |link| async move {
            MaintenanceClient::new(link.channel())
                .move_leader(pb::MoveLeaderRequest { target_id: target })
                .await
        })
        .await
    }

    fn links(&self) -> Vec<Link> {
        self.shared.links.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tries the endpoints in turn, from the one that answered last, as the head of this module says.
    async fn call<T, F, Fut>(&self, repeat: Repeat, operation: F) -> Result<T, ClientError>
    where
        F: Fn(Link) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let links = self.links();
        let options = self.shared.options;
        let deadline = clock::now() + options.timeout;
        let mut pause = FIRST_PAUSE;
        let mut first = self.shared.preferred.load(Ordering::Relaxed) % links.len();
        loop {
            let mut unreachable = Vec::new();
            let mut passing = None;
            for turn in 0..links.len() {
                let position = (first + turn) % links.len();
                let link = &links[position];
                let left = deadline.saturating_duration_since(clock::now());
                let allowed = match repeat {
                    Repeat::Safe if links.len() > 1 => left.min(options.attempt_timeout),
                    Repeat::Safe | Repeat::Unsafe => left,
                };
                let error = match attempt(link, allowed, operation(link.clone())).await {
                    Ok(answer) => {
                        self.shared.preferred.store(position, Ordering::Relaxed);
                        return Ok(answer);
                    }
                    Err(error) if repeat == Repeat::Safe => error.of_read(),
                    Err(error) => error,
                };
                match error {
                    ClientError::Unreachable { tried } => unreachable.extend(tried),
                    error if repeat == Repeat::Safe && error.is_passing() => passing = Some(error),
                    error => return Err(error),
                }
                if clock::now() >= deadline {
                    break;
                }
            }
            let error = passing.unwrap_or(ClientError::Unreachable { tried: unreachable });
            // Where nobody even listens, waiting is for the caller to decide.
            if matches!(error, ClientError::Unreachable { .. }) || clock::now() + pause >= deadline {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            first = (first + 1) % links.len();
        }
    }
}

/// One request to one endpoint.
async fn attempt<T>(
    link: &Link,
    allowed: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, ClientError> {
    match tokio::time::timeout(allowed, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(ClientError::from_status(&link.endpoint, status)),
        Err(_) => {
            Err(ClientError::TimedOut { endpoint: link.endpoint.to_string(), after: allowed, read: false })
        }
    }
}

/// The exclusive end of the range of all keys that begin with `prefix`; a zero byte, "to the last key", where no
/// key can follow them.
#[must_use]
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    match prefix.iter().rposition(|byte| *byte != u8::MAX) {
        Some(last) => {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            Bytes::from(end)
        }
        None => Bytes::from_static(&[0]),
    }
}

/// `host:port` of an endpoint, checked.
fn address_of(endpoint: &str) -> Result<String, ClientError> {
    let bad = |reason: String| ClientError::BadEndpoint { endpoint: endpoint.to_owned(), reason };
    let rest = match endpoint.trim().split_once("://") {
        Some(("http", rest)) => rest,
        Some(("https", _)) => return Err(bad("TLS is not in this version".to_owned())),
        Some((scheme, _)) => return Err(bad(format!("unknown scheme \"{scheme}\""))),
        None => endpoint.trim(),
    };
    let address = rest.strip_suffix('/').unwrap_or(rest);
    let node = NodeId::parse(address).map_err(|error| bad(error.to_string()))?;
    Ok(node.as_str().to_owned())
}

/// True where neither branch of the transaction can change anything.
fn only_reads(request: &pb::TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).all(|operation| match &operation.request {
        Some(pb::request_op::Request::RequestRange(_)) | None => true,
        Some(pb::request_op::Request::RequestPut(_) | pb::request_op::Request::RequestDeleteRange(_)) => {
            false
        }
        Some(pb::request_op::Request::RequestTxn(nested)) => only_reads(nested),
    })
}

#[cfg(test)]
mod tests;
