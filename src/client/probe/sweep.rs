//! Removes what loads left behind: their own keys at their end, and those of earlier loads that came to none.

use std::time::Duration;

use bytes::Bytes;

use super::super::{Client, ClientError, Options, prefix_end};
use super::PREFIX;
use crate::proto::etcdserverpb as pb;

/// How long all of it may take: it is done on the way to something else.
const PATIENCE: Duration = Duration::from_secs(2);
/// So often a range is looked at again before it counts as removed.
const ROUNDS: usize = 5;

/// Removes the keys of every run below [`PREFIX`] of whose name `is_over` says so, and answers with how many those were.
/// The name of a single key that belongs to no load is what follows the prefix.
///
/// # Errors
/// Any [`ClientError`]; what is left then is found by the next sweep.
pub async fn sweep(endpoints: &[String], is_over: impl Fn(&str) -> bool) -> Result<u64, ClientError> {
    let client = Client::new(endpoints, Options { timeout: PATIENCE, ..Options::default() })?;
    let late = |_| {
        let endpoint = endpoints.join(", ");
        ClientError::TimedOut { endpoint, after: PATIENCE, read: false }
    };
    tokio::time::timeout(PATIENCE, sweep_all(&client, is_over)).await.map_err(late)?
}

async fn sweep_all(client: &Client, is_over: impl Fn(&str) -> bool) -> Result<u64, ClientError> {
    let mut removed = 0;
    let mut from = Bytes::from_static(PREFIX);
    loop {
        // One key tells of a whole run; the next look begins behind that.
        let first = pb::RangeRequest {
            key: from,
            range_end: prefix_end(PREFIX),
            limit: 1,
            keys_only: true,
            ..Default::default()
        };
        let Some(found) = client.range(first).await?.kvs.into_iter().next() else { return Ok(removed) };
        let name = &found.key[PREFIX.len()..];
        let slash = name.iter().position(|byte| *byte == b'/');
        let start = slash.map_or_else(|| found.key.clone(), |slash| found.key.slice(..=PREFIX.len() + slash));
        let end = match slash {
            Some(_) => prefix_end(&start),
            None => [&start[..], &[0]].concat().into(),
        };
        if is_over(&String::from_utf8_lossy(&name[..slash.unwrap_or(name.len())])) {
            removed += delete(client, &start, end.clone()).await?;
        }
        from = end;
    }
}

/// Removes a range. A write of unknown fate may still land after the first round, hence the second look.
pub(super) async fn delete(client: &Client, start: &[u8], end: Bytes) -> Result<u64, ClientError> {
    let request =
        pb::DeleteRangeRequest { key: Bytes::copy_from_slice(start), range_end: end, prev_kv: false };
    // Deleting what is not there changes nothing, so a delete of unknown fate may be repeated.
    let mut removed = 0;
    let mut failure = None;
    for _ in 0..ROUNDS {
        match client.delete(request.clone()).await {
            Ok(answer) if answer.deleted == 0 => return Ok(removed),
            Ok(answer) => {
                removed += u64::try_from(answer.deleted).unwrap_or(0);
                failure = None;
            }
            Err(error) if error.is_passing() => failure = Some(error),
            Err(error) => return Err(error),
        }
    }
    failure.map_or(Ok(removed), Err)
}
