//! What a stopped node answers when it wakes. Reads are written into its sockets while it is stopped, over connections
//! that it had accepted and over new ones; each was sent after a write had been acknowledged elsewhere, and must not be
//! older than that.

use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;

use super::BenchFailure;
use super::request::PREFIX;
use crate::client::{Client, Link, Options};
use crate::proto::etcdserverpb as pb;
use crate::proto::etcdserverpb::kv_client::KvClient;

/// Connections made before the node is stopped, and as many after.
const CONNECTIONS: usize = 4;
/// Reads on each.
const READS: usize = 4;
/// How long an answer may take once the node is awake; without one there was none.
const PATIENCE: Duration = Duration::from_secs(10);
/// A connection's requests are in the node's socket after this long: loopback takes microseconds.
const ON_THE_WAY: Duration = Duration::from_millis(20);

/// Connections to a node that is about to be stopped.
pub(super) struct Sleeper {
    address: String,
    connections: Vec<Link>,
}

/// Reads that wait in the sockets of a stopped node.
pub(super) struct Asked {
    reads: JoinSet<Option<bool>>,
    revision: i64,
    address: String,
}

/// What became of them.
#[derive(Debug, Default)]
pub(super) struct Awakening {
    /// Reads that were answered with a value.
    pub(super) answered: u64,
    /// Of these, older than what had been acknowledged before they were sent.
    pub(super) stale: u64,
    /// In words.
    pub(super) violations: Vec<String>,
}

impl Sleeper {
    /// Makes the connections and reads once over each, so that they stand.
    pub(super) async fn connect(address: &str) -> Result<Sleeper, BenchFailure> {
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            let link = Link::new(address, Duration::from_secs(1))?;
            // Whether it can be answered at this moment does not matter; the connection stands after it.
            let _ = tokio::time::timeout(PATIENCE, KvClient::new(link.channel()).range(read())).await;
            connections.push(link);
        }
        Ok(Sleeper { address: address.to_owned(), connections })
    }

    /// To be called while the node is stopped: writes through the others, then asks the sleeper to read that.
    pub(super) async fn ask(mut self, others: &[String]) -> Result<Asked, BenchFailure> {
        let options = Options { timeout: PATIENCE, ..Options::default() };
        let put = pb::PutRequest { key: key(), ..Default::default() };
        let written = Client::new(others, options)?.put(put).await?;
        let revision = written.header.unwrap_or_default().revision;
        for _ in 0..CONNECTIONS {
            self.connections.push(Link::new(&self.address, PATIENCE)?);
        }
        let mut reads = JoinSet::new();
        for link in self.connections.iter().flat_map(|link| std::iter::repeat_n(link, READS)) {
            let mut kv = KvClient::new(link.channel());
            reads.spawn(async move {
                let answer = tokio::time::timeout(PATIENCE, kv.range(read())).await.ok()?.ok()?.into_inner();
                let found = answer.kvs.first().map_or(0, |kv| kv.mod_revision);
                Some(found < revision || answer.header.unwrap_or_default().revision < revision)
            });
        }
        tokio::time::sleep(ON_THE_WAY).await;
        Ok(Asked { reads, revision, address: self.address })
    }
}

impl Asked {
    /// To be called once the node is awake.
    pub(super) async fn answers(mut self) -> Awakening {
        let mut awakening = Awakening::default();
        while let Some(ended) = self.reads.join_next().await {
            let stale = ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
            awakening.answered += u64::from(stale.is_some());
            awakening.stale += u64::from(stale == Some(true));
        }
        if awakening.stale > 0 {
            awakening.violations.push(format!(
                "{} answered {} of {} linearizable reads with less than revision {}, acknowledged before they were sent",
                self.address, awakening.stale, awakening.answered, self.revision
            ));
        }
        awakening
    }
}

fn key() -> Bytes {
    [PREFIX, b"awake"].concat().into()
}

fn read() -> pb::RangeRequest {
    pb::RangeRequest { key: key(), ..Default::default() }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::{Request, Response, Status};

    use super::*;
    use crate::proto::etcdserverpb::kv_server::{Kv, KvServer};

    /// Reads show what was written only while it is honest.
    #[derive(Clone, Default)]
    struct Forgetful {
        written: Arc<AtomicI64>,
        honest: bool,
    }

    #[tonic::async_trait]
    impl Kv for Forgetful {
        async fn put(&self, _: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
            let revision = self.written.fetch_add(1, Ordering::SeqCst) + 1;
            let header = Some(pb::ResponseHeader { revision, ..Default::default() });
            Ok(Response::new(pb::PutResponse { header, prev_kv: None }))
        }

        async fn range(&self, _: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
            let mod_revision = if self.honest { self.written.load(Ordering::SeqCst) } else { 0 };
            let kv = crate::proto::mvccpb::KeyValue { mod_revision, ..Default::default() };
            let header = Some(pb::ResponseHeader { revision: mod_revision, ..Default::default() });
            Ok(Response::new(pb::RangeResponse { header, kvs: vec![kv], ..Default::default() }))
        }

        async fn delete_range(
            &self,
            _: Request<pb::DeleteRangeRequest>,
        ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
            Err(Status::unimplemented("not asked here"))
        }

        async fn txn(&self, _: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
            Err(Status::unimplemented("not asked here"))
        }

        async fn compact(
            &self,
            _: Request<pb::CompactionRequest>,
        ) -> Result<Response<pb::CompactionResponse>, Status> {
            Err(Status::unimplemented("not asked here"))
        }
    }

    async fn awakening(honest: bool) -> Awakening {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = KvServer::new(Forgetful { honest, ..Forgetful::default() });
        let incoming = TcpListenerStream::new(listener);
        tokio::spawn(tonic::transport::Server::builder().add_service(server).serve_with_incoming(incoming));
        let sleeper = Sleeper::connect(&address).await.unwrap();
        sleeper.ask(std::slice::from_ref(&address)).await.unwrap().answers().await
    }

    #[tokio::test]
    async fn a_node_that_forgets_a_write_is_found_out_and_an_honest_one_is_not() {
        let honest = awakening(true).await;
        assert_eq!((honest.answered, honest.stale), (32, 0));
        let forgetful = awakening(false).await;
        assert_eq!((forgetful.answered, forgetful.stale, forgetful.violations.len()), (32, 32, 1));
    }
}
