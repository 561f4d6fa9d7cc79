//! What the controller asks the nodes themselves, and what it makes of the answers.
//! Each question goes to one named node: nothing is retried and nobody else is asked instead.

use std::collections::BTreeMap;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use crate::control::health::{Account, Role};
use crate::proto::etcdserverpb::kv_client::KvClient;
use crate::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use crate::proto::etcdserverpb::{DeleteRangeRequest, MoveLeaderRequest, PutRequest};
use crate::proto::replcluster::describe_response::Role as WireRole;
use crate::proto::replcluster::node_client::NodeClient;
use crate::proto::replcluster::{
    DescribeRequest, DescribeResponse, RemoveRequest, SetLogLevelRequest, SetLogLevelResponse,
    ShutdownRequest,
};
use crate::view::NodeId;

/// Why a node gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It did not answer in time.
    #[error("{node} did not answer within {} ms", .patience.as_millis())]
    Late {
        /// Who was asked.
        node: NodeId,
        /// For how long.
        patience: Duration,
    },
    /// It, or the system, said no.
    #[error("{node}: {}", .status.message())]
    Refused {
        /// Who was asked.
        node: NodeId,
        /// What was said.
        status: Box<tonic::Status>,
    },
}

impl AskError {
    /// What was asked about is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        match self {
            AskError::Late { .. } => false,
            AskError::Refused { status, .. } => status.code() == tonic::Code::NotFound,
        }
    }
}

/// Connections to nodes, made when first needed and kept. Cheap to clone: clones share the connections they have.
#[derive(Clone, Debug, Default)]
pub struct Asker {
    channels: BTreeMap<NodeId, Channel>,
}

impl Asker {
    /// A connection to each of these nodes, made when first used. Must be called within a runtime.
    #[must_use]
    pub fn new(nodes: &[NodeId]) -> Asker {
        let mut asker = Asker::default();
        for node in nodes {
            asker.channel(node);
        }
        asker
    }

    /// The connection to a node.
    fn channel(&mut self, node: &NodeId) -> Option<Channel> {
        if !self.channels.contains_key(node) {
            let endpoint = Endpoint::from_shared(format!("http://{node}"))
                .ok()?
                .connect_timeout(Duration::from_secs(1))
                .tcp_nodelay(true)
                .http2_keep_alive_interval(Duration::from_secs(5))
                .keep_alive_timeout(Duration::from_secs(2));
            self.channels.insert(node.clone(), endpoint.connect_lazy());
        }
        self.channels.get(node).cloned()
    }

    fn existing(&self, node: &NodeId) -> Result<Channel, AskError> {
        match self.channels.get(node) {
            Some(channel) => Ok(channel.clone()),
            None => self.clone().channel(node).ok_or_else(|| AskError::Refused {
                node: node.clone(),
                status: Box::new(tonic::Status::invalid_argument("the address cannot be called")),
            }),
        }
    }

    /// What the node says of itself.
    ///
    /// # Errors
    /// [`AskError`]; also where an older connection has just died: asking again makes a new one.
    pub async fn describe(&self, node: &NodeId, patience: Duration) -> Result<DescribeResponse, AskError> {
        let mut client = NodeClient::new(self.existing(node)?);
        within(node, patience, client.describe(DescribeRequest {})).await
    }

    /// Ends the node gracefully. It may be gone before its answer arrives.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn shutdown(&self, node: &NodeId, patience: Duration) -> Result<(), AskError> {
        let mut client = NodeClient::new(self.existing(node)?);
        within(node, patience, client.shutdown(ShutdownRequest {})).await.map(|_| ())
    }

    /// Changes what the node logs; an empty filter only asks. Answers with the filters before and after.
    ///
    /// # Errors
    /// [`AskError`]; also where the node takes the filter for none.
    pub async fn log_level(
        &self,
        node: &NodeId,
        filter: &str,
        patience: Duration,
    ) -> Result<SetLogLevelResponse, AskError> {
        let mut client = NodeClient::new(self.existing(node)?);
        let request = SetLogLevelRequest { filter: filter.to_owned() };
        within(node, patience, client.set_log_level(request)).await
    }

    /// Asks `through` to have `node` taken out of the cluster for good.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn remove(&self, through: &NodeId, node: &NodeId, patience: Duration) -> Result<u64, AskError> {
        let mut client = NodeClient::new(self.existing(through)?);
        let request = RemoveRequest { address: node.as_str().to_owned() };
        Ok(within(through, patience, client.remove(request)).await?.epoch)
    }

    /// Asks the leader to hand over to `target`.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn move_leader(
        &self,
        leader: &NodeId,
        target: &NodeId,
        patience: Duration,
    ) -> Result<(), AskError> {
        let mut client = MaintenanceClient::new(self.existing(leader)?);
        let request = MoveLeaderRequest { target_id: target.member_id() };
        within(leader, patience, client.move_leader(request)).await.map(|_| ())
    }

    /// Writes one key, waits until that is acknowledged, and takes it back.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn canary(&self, node: &NodeId, key: &[u8], patience: Duration) -> Result<(), AskError> {
        let mut client = KvClient::new(self.existing(node)?);
        let put = PutRequest {
            key: bytes::Bytes::copy_from_slice(key),
            value: bytes::Bytes::from_static(b"acknowledged"),
            ..PutRequest::default()
        };
        within(node, patience, client.put(put)).await?;
        let delete =
            DeleteRangeRequest { key: bytes::Bytes::copy_from_slice(key), ..DeleteRangeRequest::default() };
        within(node, patience, client.delete_range(delete)).await.map(|_| ())
    }

    /// What each of these nodes says of itself, all asked at once.
    pub async fn describe_all(
        &self,
        nodes: &[NodeId],
        patience: Duration,
    ) -> BTreeMap<NodeId, Result<DescribeResponse, AskError>> {
        let answers =
            nodes.iter().map(|node| async move { (node.clone(), self.describe(node, patience).await) });
        futures_util::future::join_all(answers).await.into_iter().collect()
    }
}

async fn within<T>(
    node: &NodeId,
    patience: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, AskError> {
    match tokio::time::timeout(patience, call).await {
        Err(_) => Err(AskError::Late { node: node.clone(), patience }),
        Ok(Err(status)) => Err(AskError::Refused { node: node.clone(), status: Box::new(status) }),
        Ok(Ok(response)) => Ok(response.into_inner()),
    }
}

/// A node's answer in the words of the controller. Addresses that are none are left out.
#[must_use]
pub fn account(answer: &DescribeResponse) -> Account {
    Account {
        role: match answer.role() {
            WireRole::None => Role::None,
            WireRole::Leader => Role::Leader,
            WireRole::Follower => Role::Follower,
            WireRole::Joining => Role::Joining,
        },
        ready: answer.ready,
        epoch: answer.epoch,
        leader: NodeId::parse(&answer.leader).ok(),
        in_sync: answer.in_sync.iter().filter_map(|text| NodeId::parse(text).ok()).collect(),
        durable: answer.durable_index,
        applied: answer.applied_index,
    }
}

/// True where the node says that it serves and is in sync.
#[must_use]
pub fn is_in_sync(answer: &DescribeResponse) -> bool {
    answer.ready && answer.in_sync.contains(&answer.address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_keeps_its_meaning() {
        let answer = DescribeResponse {
            address: "h:2".to_owned(),
            role: WireRole::Follower.into(),
            ready: true,
            epoch: 4,
            leader: "h:1".to_owned(),
            in_sync: vec!["h:1".to_owned(), "h:2".to_owned()],
            durable_index: 7,
            applied_index: 6,
            ..DescribeResponse::default()
        };
        let account = account(&answer);
        assert_eq!((account.role, account.ready, account.epoch), (Role::Follower, true, 4));
        assert_eq!(account.leader.unwrap().as_str(), "h:1");
        assert_eq!((account.durable, account.applied, account.in_sync.len()), (7, 6, 2));
        assert!(is_in_sync(&answer));
        assert!(!is_in_sync(&DescribeResponse { in_sync: vec!["h:1".to_owned()], ..answer.clone() }));
        assert!(!is_in_sync(&DescribeResponse { ready: false, ..answer }));
    }

    #[test]
    fn a_node_that_is_not_there_is_an_error_with_its_name() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let node = NodeId::parse(&port.to_string()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let asker = Asker::new(std::slice::from_ref(&node));
            let error = asker.describe(&node, Duration::from_secs(5)).await.unwrap_err();
            assert!(matches!(error, AskError::Refused { .. }), "{error}");
            assert!(error.to_string().starts_with(node.as_str()), "{error}");
        });
    }

    #[test]
    fn a_node_that_says_nothing_is_late() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let node = NodeId::parse(&listener.local_addr().unwrap().to_string()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let asker = Asker::new(std::slice::from_ref(&node));
            let error = asker.describe(&node, Duration::from_millis(50)).await.unwrap_err();
            assert!(matches!(error, AskError::Late { .. }), "{error}");
        });
    }
}
