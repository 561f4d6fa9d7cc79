//! A whole copy of the state for a node that the log no longer reaches (R30): rows of the state store over a connection
//! of its own, so that neither heartbeats nor entries wait behind it.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::event::ArrivedSnapshot;
use super::greeting::{Secrets, greet};
use super::hands::Snapshot;
use super::log::Position;
use super::state::{Placement, SnapshotReader, StateBackend, StateInstaller};
use super::wire::{put, take};
use crate::disk::RealDisk;
use crate::kv;
use crate::proto::replcluster::{
    Frame, Hello, SnapshotBegin, SnapshotChunk, SnapshotEnd, SnapshotRow, frame::Body,
};
use crate::view::{Epoch, Index};

/// Chunks that wait for the network, or for the disk at the other end.
const QUEUE_MAX: usize = 4;
/// Name under which the store keeps the last entry applied to it.
pub const APPLIED: &str = "applied";

/// Where a receiving node builds the new state.
#[derive(Clone)]
pub struct Place {
    /// The node's data directory.
    pub directory: Arc<PathBuf>,
}

/// What the store says of the last entry applied to it.
#[must_use]
pub fn applied_of(store: &kv::Store<StateBackend>) -> Position {
    use kv::Backend as _;
    store.backend().meta(APPLIED).and_then(|bytes| decode_position(&bytes)).unwrap_or_default()
}

/// The last entry applied to what is on the disk.
#[must_use]
pub fn durable_of(store: &kv::Store<StateBackend>) -> Position {
    store.backend().durable_meta(APPLIED).and_then(|bytes| decode_position(&bytes)).unwrap_or_default()
}

/// The last entry applied to what a snapshot shows.
#[must_use]
pub fn position_of(reader: &SnapshotReader) -> Position {
    reader.meta(APPLIED).and_then(|bytes| decode_position(&bytes)).unwrap_or_default()
}

/// As kept under [`APPLIED`].
#[must_use]
pub fn encode_position(position: Position) -> Bytes {
    let mut bytes = Vec::with_capacity(20);
    bytes.extend_from_slice(&position.index.0.to_le_bytes());
    bytes.extend_from_slice(&position.epoch.0.to_le_bytes());
    bytes.extend_from_slice(&position.chain.to_le_bytes());
    Bytes::from(bytes)
}

fn decode_position(bytes: &[u8]) -> Option<Position> {
    let (index, rest) = bytes.split_first_chunk::<8>()?;
    let (epoch, rest) = rest.split_first_chunk::<8>()?;
    let chain = rest.first_chunk::<4>()?;
    Some(Position {
        index: Index(u64::from_le_bytes(*index)),
        epoch: Epoch(u64::from_le_bytes(*epoch)),
        chain: u32::from_le_bytes(*chain),
    })
}

/// Sends a snapshot and waits until the peer has taken it in.
///
/// # Errors
/// In words; the peer will report again.
pub async fn send(hello: Hello, secrets: &Secrets, snapshot: Snapshot) -> Result<u64, String> {
    let Snapshot { epoch, position, rows: reader } = snapshot;
    let text = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect(hello.to.as_str()).await.map_err(text)?;
    greet(&mut stream, &hello, secrets).await.map_err(text)?;
    let mut buffer = BytesMut::new();
    let begin = SnapshotBegin { index: position.index.0, epoch: position.epoch.0, chain: position.chain };
    put(&mut buffer, &Frame { epoch: epoch.0, view: 0, body: Some(Body::SnapshotBegin(begin)) });
    let (chunks, mut ready) = tokio::sync::mpsc::channel::<Result<Vec<(Bytes, Bytes)>, String>>(QUEUE_MAX);
    let reading = tokio::task::spawn_blocking(move || {
        for chunk in reader {
            if chunks.blocking_send(chunk.map_err(|error| error.to_string())).is_err() {
                return;
            }
        }
    });
    let mut count = 0;
    while let Some(chunk) = ready.recv().await {
        let rows: Vec<SnapshotRow> =
            chunk?.into_iter().map(|(key, value)| SnapshotRow { key, value }).collect();
        count += rows.len() as u64;
        put(
            &mut buffer,
            &Frame { epoch: epoch.0, view: 0, body: Some(Body::SnapshotChunk(SnapshotChunk { rows })) },
        );
        stream.write_all(&buffer).await.map_err(text)?;
        buffer.clear();
    }
    reading.await.map_err(|error| error.to_string())?;
    put(
        &mut buffer,
        &Frame { epoch: epoch.0, view: 0, body: Some(Body::SnapshotEnd(SnapshotEnd { rows: count })) },
    );
    stream.write_all(&buffer).await.map_err(text)?;
    stream.shutdown().await.map_err(text)?;
    let mut nothing = [0_u8; 1];
    let _ = stream.read(&mut nothing).await; // the peer closes when it has it
    Ok(count)
}

/// Takes a snapshot in, up to a state that stands beside the old one and only has to be put in its place.
///
/// # Errors
/// In words; what was built is dropped.
pub async fn receive(
    place: &Place,
    begin: SnapshotBegin,
    stream: &mut TcpStream,
    buffer: &mut BytesMut,
) -> Result<ArrivedSnapshot, String> {
    let position = Position { index: Index(begin.index), epoch: Epoch(begin.epoch), chain: begin.chain };
    let (chunks, rows) = std::sync::mpsc::sync_channel::<Step>(QUEUE_MAX);
    let directory = place.directory.clone();
    let building = tokio::task::spawn_blocking(move || build(&directory, position, &rows));
    let fed = feed(&chunks, stream, buffer).await;
    drop(chunks);
    let built = building.await.map_err(|error| error.to_string())?;
    fed?;
    built
}

enum Step {
    Rows(Vec<SnapshotRow>),
    End(u64),
}

async fn feed(
    chunks: &std::sync::mpsc::SyncSender<Step>,
    stream: &mut TcpStream,
    buffer: &mut BytesMut,
) -> Result<(), String> {
    loop {
        while let Some(frame) = take::<Frame>(buffer).map_err(|error| error.to_string())? {
            let (step, ended) = match frame.body {
                Some(Body::SnapshotChunk(chunk)) => (Step::Rows(chunk.rows), false),
                Some(Body::SnapshotEnd(end)) => (Step::End(end.rows), true),
                other => return Err(format!("unexpected within a snapshot: {other:?}")),
            };
            // The disk sets the pace; the thread that waits is one of the pool made for waiting.
            let chunks = chunks.clone();
            let sent = tokio::task::spawn_blocking(move || chunks.send(step).is_ok()).await;
            if !matches!(sent, Ok(true)) {
                return Err("the new state could not be written".to_owned());
            }
            if ended {
                return Ok(());
            }
        }
        buffer.reserve(1 << 20);
        if stream.read_buf(buffer).await.map_err(|error| error.to_string())? == 0 {
            return Err("cut off before its end".to_owned());
        }
    }
}

fn build(
    directory: &std::path::Path,
    position: Position,
    rows: &std::sync::mpsc::Receiver<Step>,
) -> Result<ArrivedSnapshot, String> {
    let mut installer = StateInstaller::create(&RealDisk, directory).map_err(|error| error.to_string())?;
    let mut count = 0;
    loop {
        match rows.recv() {
            Ok(Step::Rows(rows)) => {
                count += rows.len() as u64;
                installer
                    .push(rows.into_iter().map(|row| (row.key, row.value)))
                    .map_err(|error| error.to_string())?;
            }
            Ok(Step::End(announced)) if announced == count => break,
            Ok(Step::End(announced)) => {
                installer.give_up();
                return Err(format!("{count} rows of {announced}"));
            }
            Err(_) => {
                installer.give_up();
                return Err("cut off before its end".to_owned());
            }
        }
    }
    let (backend, place) = installer.finish().map_err(|error| error.to_string())?;
    let place = Unplaced(place);
    let store = kv::Store::open(backend).map_err(|error| error.to_string())?;
    if applied_of(&store) != position {
        return Err(format!("it holds {:?} and was announced as {position:?}", applied_of(&store)));
    }
    let place = Box::new(move || place.0.put().map_err(|error| error.to_string()));
    Ok(ArrivedSnapshot { position, store, place })
}

/// A new state's file, removed where the state is not installed: it would use room for nothing.
struct Unplaced(Placement<RealDisk>);

impl Drop for Unplaced {
    fn drop(&mut self) {
        // Where it was put in its place, nothing has this name any more.
        self.0.give_up();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(count: u64) -> std::sync::mpsc::Receiver<Step> {
        let (chunks, rows) = std::sync::mpsc::channel();
        for number in 0..count {
            let key = Bytes::from(format!("k{number}"));
            chunks.send(Step::Rows(vec![SnapshotRow { key, value: Bytes::new() }])).unwrap();
        }
        chunks.send(Step::End(count)).unwrap();
        rows
    }

    #[test]
    fn a_state_that_never_takes_its_place_leaves_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let files = || std::fs::read_dir(directory.path()).unwrap().count();
        let mut built = StateInstaller::create(&RealDisk, directory.path()).unwrap();
        built.push([(Bytes::from("k"), Bytes::new())].into_iter()).unwrap();
        let (_, place) = built.finish().unwrap();
        assert_eq!(files(), 1, "what is built has a file");
        drop(Unplaced(place));
        assert_eq!(files(), 0);
        let announced = Position { index: Index(9), epoch: Epoch(1), chain: 1 };
        assert!(build(directory.path(), announced, &rows(3)).is_err(), "it holds something else");
        assert_eq!(files(), 0);
    }
}
