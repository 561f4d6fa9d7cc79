//! etcd's KV service.

use std::time::Duration;

use prost::Message as _;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::header;
use super::refusal::Rejection;
use super::relay::{self, NotHere, Relay, Repeat};
use crate::bounds::Budget;
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
    handle: Handle,
    relay: Relay,
}

#[tonic::async_trait]
impl Kv for Service {
    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let here = async |request, until| self.range_here(&request, until).await;
        let there = async |leader, request| relay::kv(leader).range(request).await;
        self.relay.answer(request, Repeat::Safe, here, there).await
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let here = async |request, until| self.put_here(request, until).await;
        let there = async |leader, request| relay::kv(leader).put(request).await;
        self.relay.answer(request, Repeat::Unsafe, here, there).await
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let here = async |request, until| self.delete_here(request, until).await;
        let there = async |leader, request| relay::kv(leader).delete_range(request).await;
        self.relay.answer(request, Repeat::Unsafe, here, there).await
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let repeat = if is_read_only(request.get_ref()) { Repeat::Safe } else { Repeat::Unsafe };
        let here = async |request, until| self.txn_here(request, until).await;
        let there = async |leader, request| relay::kv(leader).txn(request).await;
        self.relay.answer(request, repeat, here, there).await
    }

    async fn compact(
        &self,
        request: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        let here = async |request, until| self.compact_here(request, until).await;
        let there = async |leader, request| relay::kv(leader).compact(request).await;
        self.relay.answer(request, Repeat::Unsafe, here, there).await
    }
}

impl Service {
    pub(super) fn new(handle: Handle, answers: Budget) -> Service {
        Service { relay: Relay::new(handle.clone(), answers), handle }
    }

    async fn range_here(&self, request: &RangeRequest, until: Instant) -> Result<RangeResponse, NotHere> {
        check_range(request)?;
        let mut reserved = None;
        loop {
            let mut answer = self.handle.range(request, until).await??;
            let bytes = answer.encoded_len();
            if self.relay.has_room(bytes, reserved.as_ref()) {
                header::complete(&self.handle, &mut answer.header);
                return Ok(answer);
            }
            drop((answer, reserved.take()));
            reserved = Some(self.relay.reserve(bytes, until).await?);
        }
    }

    async fn put_here(&self, request: PutRequest, until: Instant) -> Result<PutResponse, NotHere> {
        match self.mutate(mutation::Request::Put(request), until).await? {
            Applied::Put(mut answer) => {
                header::complete(&self.handle, &mut answer.header);
                Ok(answer)
            }
            other => unreachable!("a put was answered with {other:?}"),
        }
    }

    async fn delete_here(
        &self,
        request: DeleteRangeRequest,
        until: Instant,
    ) -> Result<DeleteRangeResponse, NotHere> {
        match self.mutate(mutation::Request::DeleteRange(request), until).await? {
            Applied::DeleteRange(mut answer) => {
                header::complete(&self.handle, &mut answer.header);
                Ok(answer)
            }
            other => unreachable!("a delete was answered with {other:?}"),
        }
    }

    async fn txn_here(&self, request: TxnRequest, until: Instant) -> Result<TxnResponse, NotHere> {
        let mut answer = if is_read_only(&request) {
            check_txn(&request, self.limits())?;
            let mut reserved = None;
            loop {
                let serializable = is_serializable(&request);
                let answer = self.handle.read_txn(&request, serializable, until).await??;
                let bytes = answer.encoded_len();
                if self.relay.has_room(bytes, reserved.as_ref()) {
                    break answer;
                }
                drop((answer, reserved.take()));
                reserved = Some(self.relay.reserve(bytes, until).await?);
            }
        } else {
            match self.mutate(mutation::Request::Txn(request), until).await? {
                Applied::Txn(answer) => answer,
                other => unreachable!("a transaction was answered with {other:?}"),
            }
        };
        header::complete(&self.handle, &mut answer.header);
        Ok(answer)
    }

    async fn compact_here(
        &self,
        request: CompactionRequest,
        until: Instant,
    ) -> Result<CompactionResponse, NotHere> {
        let physical = request.physical;
        match self.mutate(mutation::Request::Compact(request), until).await? {
            Applied::Compact(mut answer) => {
                if physical {
                    self.wait_for_removal(until).await?;
                }
                header::complete(&self.handle, &mut answer.header);
                Ok(answer)
            }
            other => unreachable!("a compaction was answered with {other:?}"),
        }
    }

    fn limits(&self) -> Limits {
        Limits { operations: self.handle.settings().max_txn_operations }
    }

    async fn mutate(&self, request: mutation::Request, until: Instant) -> Result<Applied, NotHere> {
        let mutation = Mutation { request: Some(request) };
        check(&mutation, self.limits())?;
        if mutation.encoded_len() > self.handle.settings().max_request_bytes {
            return Err(Rejection::RequestTooLarge.into());
        }
        // What the state would refuse need not fill the log first (R25). A node that is behind may not have heard of
        // the end of an alarm, so what is here is not enough for a refusal.
        if grows(&mutation)
            && self.handle.has_space_alarm()
            && self.handle.read(false, until, StateStore::has_space_alarm).await?
        {
            return Err(Refusal::SpaceExceeded.into());
        }
        Ok(self.handle.mutate(mutation, until).await??)
    }

    /// Returns when this node has removed what compaction made unreadable.
    async fn wait_for_removal(&self, until: Instant) -> Result<(), NotHere> {
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
