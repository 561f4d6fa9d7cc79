//! Reads in the store's history what became of acknowledged writes that are not there any more as they were acknowledged.
//! Without it the delete of another client would look like a loss, and a loss like the delete of another client.
//!
//! One read of the whole prefix at the revision of the newest write in doubt shows all older ones that stood then: a few
//! such reads explain a few deletes, however many keys they took. What they do not explain is read key by key.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt as _;
use tonic::Code;

use super::super::{Client, ClientError, Options};
use super::history::{self, Ending, Past, ReadBack, WriteId};
use super::{pb, range_all};

/// Reads of the whole prefix, each at the revision of the newest write that is still in doubt.
const WHOLE_READS: usize = 8;
/// Keys that are read one by one at the same time.
const AT_A_TIME: usize = 16;

/// Looks back, through the endpoint of the first replica, and adds what it finds to the read-back.
pub(super) async fn look_back(
    prefix: &[u8],
    readback: &mut ReadBack,
    in_doubt: Vec<(WriteId, i64)>,
    patience: Duration,
) {
    let Some(first) = readback.replicas.first().filter(|_| !in_doubt.is_empty()) else { return };
    let options = Options { timeout: patience, ..Options::default() };
    let mut past = BTreeMap::new();
    let mut ending = None;
    let why = match Client::new(std::slice::from_ref(&first.endpoint), options) {
        Err(error) => error.what(),
        Ok(client) => {
            let store = Store { client, prefix, newest: first.revision };
            let found = tokio::time::timeout(patience, async {
                settle(&store, in_doubt.clone(), &mut past).await?;
                ending = example(&store, &in_doubt, &past).await?;
                Ok::<(), ClientError>(())
            });
            match found.await {
                Ok(Ok(())) => String::new(),
                Ok(Err(error)) => error.what(),
                Err(_) => format!("it took longer than {:.1} s", patience.as_secs_f64()),
            }
        }
    };
    for (id, _) in in_doubt {
        past.entry(id).or_insert_with(|| Past::Unread(why.clone()));
    }
    readback.past = past;
    readback.ending = ending;
}

/// The keys of one run at earlier revisions.
struct Store<'a> {
    client: Client,
    prefix: &'a [u8],
    /// The revision of the read-back.
    newest: i64,
}

impl Store<'_> {
    /// Every write that stood at this revision, with the revision that wrote it.
    async fn all(&self, revision: i64) -> Result<BTreeMap<Vec<u8>, (i64, Vec<u8>)>, ClientError> {
        let (_, found) = range_all(&self.client, self.prefix, revision).await?;
        Ok(found.into_iter().map(|found| (found.key, (found.mod_revision, found.value))).collect())
    }

    /// The revision of one key's value at this revision, and whether the value is the load's; `None` without a value.
    async fn one(&self, id: WriteId, revision: i64) -> Result<Option<(i64, bool)>, ClientError> {
        let key = history::key(self.prefix, id);
        let request = pb::RangeRequest { key: key.into(), revision, ..Default::default() };
        let found = self.client.range(request).await?.kvs.into_iter().next();
        Ok(found.map(|kv| (kv.mod_revision, kv.value == history::value(self.prefix, id))))
    }

    /// The oldest revision from `from` on that can be read.
    async fn oldest(&self, from: i64) -> Result<i64, ClientError> {
        let (mut low, mut high) = (from, self.newest);
        while low < high {
            let middle = low + (high - low) / 2;
            let request = pb::RangeRequest {
                key: bytes::Bytes::copy_from_slice(self.prefix),
                revision: middle,
                count_only: true,
                ..Default::default()
            };
            match self.client.range(request).await {
                Ok(_) => high = middle,
                Err(error) if is_compacted(&error) => low = middle + 1,
                Err(error) => return Err(error),
            }
        }
        Ok(low)
    }
}

/// True where the revision asked for was compacted away.
pub(super) fn is_compacted(error: &ClientError) -> bool {
    error.status().is_some_and(|status| {
        status.code() == Code::OutOfRange && status.message().contains("revision has been compacted")
    })
}

async fn settle(
    store: &Store<'_>,
    mut left: Vec<(WriteId, i64)>,
    past: &mut BTreeMap<WriteId, Past>,
) -> Result<(), ClientError> {
    left.sort_unstable_by_key(|(_, revision)| *revision);
    let Some((_, lowest)) = left.first().copied() else { return Ok(()) };
    let oldest = store.oldest(lowest).await?;
    let (compacted, mut left): (Vec<_>, Vec<_>) =
        left.into_iter().partition(|(_, revision)| *revision < oldest);
    if !compacted.is_empty() {
        let there = store.all(oldest).await?;
        for (id, revision) in compacted {
            let stood = stands(store, &there, id, revision);
            past.insert(id, if stood { Past::Stood } else { Past::Compacted { up_to: oldest } });
        }
    }
    for _ in 0..WHOLE_READS {
        let Some((newest, revision)) = left.last().copied() else { return Ok(()) };
        let there = store.all(revision).await?;
        if !stands(store, &there, newest, revision) {
            past.insert(newest, Past::NeverStood);
            left.pop();
        }
        left.retain(|(id, revision)| {
            let stood = stands(store, &there, *id, *revision);
            if stood {
                past.insert(*id, Past::Stood);
            }
            !stood
        });
    }
    let single = left.into_iter().map(|(id, revision)| async move {
        Ok::<_, ClientError>((id, store.one(id, revision).await? == Some((revision, true))))
    });
    let mut single = futures_util::stream::iter(single).buffer_unordered(AT_A_TIME);
    while let Some(found) = single.next().await {
        let (id, stood) = found?;
        past.insert(id, if stood { Past::Stood } else { Past::NeverStood });
    }
    Ok(())
}

fn stands(store: &Store<'_>, there: &BTreeMap<Vec<u8>, (i64, Vec<u8>)>, id: WriteId, revision: i64) -> bool {
    let found = there.get(&history::key(store.prefix, id));
    found.is_some_and(|(at, value)| *at == revision && *value == history::value(store.prefix, id))
}

/// Where the newest of those that stood came to its end.
async fn example(
    store: &Store<'_>,
    in_doubt: &[(WriteId, i64)],
    past: &BTreeMap<WriteId, Past>,
) -> Result<Option<Ending>, ClientError> {
    let stood = in_doubt.iter().filter(|(id, _)| past.get(id) == Some(&Past::Stood));
    let Some((id, stood_at)) = stood.max_by_key(|(_, revision)| *revision).copied() else { return Ok(None) };
    let (mut low, mut high) = (store.oldest(stood_at).await?, store.newest);
    while low < high {
        let middle = low + (high - low) / 2;
        match store.one(id, middle).await? {
            Some((revision, true)) if revision == stood_at => low = middle + 1,
            Some(_) | None => high = middle,
        }
    }
    let after = store.one(id, low).await?;
    Ok(Some(Ending { id, stood_at, ended_at: low, deleted: after.is_none() }))
}
