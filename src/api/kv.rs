//! etcd's KV service.

use std::time::Duration;

use prost::Message as _;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::deadline::deadline;
use super::header;
use super::refusal::Rejection;
use crate::kv::{Applied, Limits, Refusal, check, check_range, check_txn, grows, is_read_only};
use crate::node::{Handle, StateStore, Unavailable};
use crate::proto::etcdserverpb::kv_server::Kv;
use crate::proto::etcdserverpb::request_op::Request as Operation;
use crate::proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, TxnRequest, TxnResponse,
};
use crate::proto::replcluster::{Mutation, mutation};

/// How often a client that waits for a physical compaction is looked after: nothing announces its end.
const REMOVAL_POLL: Duration = Duration::from_millis(10);

pub(super) struct Service {
    pub(super) handle: Handle,
}

#[tonic::async_trait]
impl Kv for Service {
    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let until = self.admit(request.metadata())?;
        let request = request.into_inner();
        check_range(&request)?;
        let mut answer =
            self.handle.read(request.serializable, until, |store| store.range(&request)).await??;
        header::complete(&self.handle, &mut answer.header);
        Ok(Response::new(answer))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let until = self.admit(request.metadata())?;
        match self.mutate(mutation::Request::Put(request.into_inner()), until).await? {
            Applied::Put(mut answer) => {
                header::complete(&self.handle, &mut answer.header);
                Ok(Response::new(answer))
            }
            other => unreachable!("a put was answered with {other:?}"),
        }
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let until = self.admit(request.metadata())?;
        match self.mutate(mutation::Request::DeleteRange(request.into_inner()), until).await? {
            Applied::DeleteRange(mut answer) => {
                header::complete(&self.handle, &mut answer.header);
                Ok(Response::new(answer))
            }
            other => unreachable!("a delete was answered with {other:?}"),
        }
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let until = self.admit(request.metadata())?;
        let request = request.into_inner();
        let mut answer = if is_read_only(&request) {
            check_txn(&request, self.limits())?;
            self.handle.read(is_serializable(&request), until, |store| store.read_txn(&request)).await??
        } else {
            match self.mutate(mutation::Request::Txn(request), until).await? {
                Applied::Txn(answer) => answer,
                other => unreachable!("a transaction was answered with {other:?}"),
            }
        };
        header::complete(&self.handle, &mut answer.header);
        Ok(Response::new(answer))
    }

    async fn compact(
        &self,
        request: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        let until = self.admit(request.metadata())?;
        let request = request.into_inner();
        let physical = request.physical;
        match self.mutate(mutation::Request::Compact(request), until).await? {
            Applied::Compact(mut answer) => {
                if physical {
                    self.wait_for_removal(until).await?;
                }
                header::complete(&self.handle, &mut answer.header);
                Ok(Response::new(answer))
            }
            other => unreachable!("a compaction was answered with {other:?}"),
        }
    }
}

impl Service {
    /// Refuses what this node cannot serve, and says until when the rest is worth working on.
    fn admit(&self, metadata: &MetadataMap) -> Result<Instant, Status> {
        header::check(&self.handle, metadata)?;
        Ok(deadline(metadata))
    }

    fn limits(&self) -> Limits {
        Limits { operations: self.handle.settings().max_txn_operations }
    }

    async fn mutate(&self, request: mutation::Request, until: Instant) -> Result<Applied, Status> {
        let mutation = Mutation { request: Some(request) };
        check(&mutation, self.limits())?;
        if mutation.encoded_len() > self.handle.settings().max_request_bytes {
            return Err(Rejection::RequestTooLarge.into());
        }
        // What the state would refuse need not fill the log first (R25).
        if grows(&mutation) && self.handle.read(true, until, StateStore::has_space_alarm).await? {
            return Err(Refusal::SpaceExceeded.into());
        }
        Ok(self.handle.mutate(mutation, until).await??)
    }

    /// Returns when this node has removed what compaction made unreadable.
    async fn wait_for_removal(&self, until: Instant) -> Result<(), Status> {
        while self.handle.read(true, until, |store| store.is_compacting()).await? {
            let now = Instant::from_std(crate::clock::now());
            if now >= until {
                return Err(Unavailable::TimedOut.into());
            }
            tokio::time::sleep_until(until.min(now + REMOVAL_POLL)).await;
        }
        Ok(())
    }
}

/// True where a transaction reads something and accepts stale answers for all of it. One that only compares says
/// nothing of the kind.
fn is_serializable(request: &TxnRequest) -> bool {
    let mut ranges = request.success.iter().chain(&request.failure).peekable();
    ranges.peek().is_some()
        && ranges.all(|operation| match &operation.request {
            Some(Operation::RequestRange(range)) => range.serializable,
            Some(Operation::RequestTxn(inner)) => is_serializable(inner),
            Some(Operation::RequestPut(_) | Operation::RequestDeleteRange(_)) | None => false,
        })
}
