//! The peers' side of the connections that they dialled: check the greeting, read frames, hand them to the driver.
//! The driver's queue is bounded; while it is full the connection is not read, and TCP makes the peer wait.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::event::{Events, Internal};
use super::snapshot;
use super::wire::{BadFrame, FORMAT, MAGIC, open_append, take};
use crate::proto::replcluster::{Frame, Hello, frame::Body};
use crate::protocol::{Envelope, Message};
use crate::view::{Epoch, Incarnation, Index, NodeId};

const GREETING_MAX: Duration = Duration::from_secs(5);
const READ_BYTES: usize = 256 << 10;

/// What a connection needs to know of its node.
pub struct Inbound {
    /// Our address, as the peer must have called us.
    pub address: NodeId,
    /// Says the cluster: its own, else that of its register, else 0.
    pub cluster: Box<dyn Fn() -> u64 + Send + Sync>,
    /// Where frames go.
    pub events: Events,
    /// Where a snapshot is built.
    pub installer: snapshot::Place,
}

/// Why a peer's connection was closed.
#[derive(Debug, thiserror::Error)]
pub enum Closed {
    /// The network.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// Something else than the protocol.
    #[error(transparent)]
    Bad(#[from] BadFrame),
    /// A peer that is not ours.
    #[error("{0}")]
    Stranger(String),
    /// A snapshot that could not be taken in.
    #[error("snapshot: {0}")]
    Snapshot(String),
}

/// Serves one connection to its end.
pub async fn serve(inbound: Arc<Inbound>, stream: TcpStream) {
    let peer = stream.peer_addr();
    if let Err(closed) = read(&inbound, stream).await {
        match closed {
            Closed::Io(error) => tracing::debug!("peer connection from {peer:?}: {error}"),
            Closed::Bad(_) | Closed::Stranger(_) | Closed::Snapshot(_) => {
                tracing::warn!("peer connection from {peer:?} refused: {closed}");
            }
        }
    }
}

async fn read(inbound: &Inbound, mut stream: TcpStream) -> Result<(), Closed> {
    stream.set_nodelay(true)?;
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    let hello = tokio::time::timeout(GREETING_MAX, greeting(&mut stream, &mut buffer))
        .await
        .map_err(|_| Closed::Stranger("no greeting in time".to_owned()))??;
    let Some(hello) = hello else { return Ok(()) };
    let from = check(inbound, &hello)?;
    inbound.events.send(Internal::PeerArrived(from.clone())).await;
    let incarnation = Incarnation(hello.incarnation);
    loop {
        while let Some(frame) = take::<Frame>(&mut buffer)? {
            let epoch = Epoch(frame.epoch);
            let Some(body) = frame.body else { continue };
            if let Body::SnapshotBegin(begin) = body {
                let arrived = snapshot::receive(&inbound.installer, begin, &mut stream, &mut buffer).await;
                let arrived = arrived.map_err(Closed::Snapshot)?;
                inbound.events.send(Internal::SnapshotArrived(Box::new(arrived))).await;
                return Ok(()); // a snapshot has a connection to itself
            }
            let event = event_of(&from, incarnation, hello.session, epoch, body)?;
            if !inbound.events.send(event).await {
                return Ok(());
            }
        }
        buffer.reserve(READ_BYTES);
        if stream.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}

/// What a frame is to the engine.
///
/// # Errors
/// [`BadFrame`] where the records of an `Append` cannot be read.
pub fn event_of(
    from: &NodeId,
    incarnation: Incarnation,
    session: u64,
    epoch: Epoch,
    body: Body,
) -> Result<Internal, BadFrame> {
    let said = |message, entries| Internal::Message {
        envelope: Envelope { from: from.clone(), incarnation, session, epoch, message },
        entries,
    };
    Ok(match body {
        Body::Append(append) => {
            let (message, entries) = open_append(append)?;
            said(message, entries)
        }
        Body::Appended(appended) => {
            let (durable, full, heard) = (Index(appended.durable), appended.full, appended.heard);
            said(Message::Appended { durable, full, heard }, None)
        }
        Body::Report(report) => {
            said(Message::Report { commit: Index(report.commit), last: Index(report.last_index) }, None)
        }
        Body::Ping(_) => said(Message::Ping, None),
        Body::Stale(_) => said(Message::Stale, None),
        Body::Transfer(_) => said(Message::Transfer, None),
        other => Internal::Frame { from: from.clone(), epoch, body: other },
    })
}

async fn greeting(stream: &mut TcpStream, buffer: &mut BytesMut) -> Result<Option<Hello>, Closed> {
    loop {
        if buffer.len() >= MAGIC.len() {
            if buffer[..MAGIC.len()] != MAGIC[..] {
                return Err(Closed::Stranger("not a peer's greeting".to_owned()));
            }
            let mut rest = buffer.split_off(MAGIC.len());
            let hello = take::<Hello>(&mut rest)?;
            if hello.is_some() {
                *buffer = rest;
                return Ok(hello);
            }
            buffer.unsplit(rest);
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

fn check(inbound: &Inbound, hello: &Hello) -> Result<NodeId, Closed> {
    let refuse = |why: String| Err(Closed::Stranger(why));
    if hello.format != FORMAT {
        return refuse(format!(
            "{} speaks version {} of the peer protocol, this node {FORMAT}",
            hello.from, hello.format
        ));
    }
    // Also a node that belongs to none yet listens to no other cluster: what it heard from there, such as a high epoch,
    // would count against its own register for ever (R11).
    let ours = (inbound.cluster)();
    if ours != hello.cluster_id {
        return refuse(format!(
            "{} belongs to cluster {:016x}, this node to {ours:016x}",
            hello.from, hello.cluster_id
        ));
    }
    if hello.to != inbound.address.as_str() {
        return refuse(format!("{} looks for {} and found {}", hello.from, hello.to, inbound.address));
    }
    match NodeId::parse(&hello.from) {
        Ok(from) if from == inbound.address => refuse("a peer with our own address".to_owned()),
        Ok(from) => Ok(from),
        Err(error) => refuse(error.to_string()),
    }
}
