//! The peers' side of the connections that they dialled: be greeted, read frames, hand them to the driver. Nothing that a
//! peer says reaches the driver before it has shown that it belongs to the cluster (R38).
//! The driver's queue is bounded; while it is full the connection is not read, and TCP makes the peer wait.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use prost::Message as _;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::admission::Admitted;
use super::engine::FEATURE_LEVEL;
use super::event::{Events, Internal};
use super::greeting::{GREETING_MAX, Greeted, Secrets, listen};
use super::snapshot;
use super::wire::{BadFrame, FORMAT, FRAME_MAX, open_append, take_bytes};
use crate::bounds::{Budget, Place, Room};
use crate::proto::replcluster::{Appended, Frame, Hello, frame::Body};
use crate::protocol::{Envelope, Message};
use crate::view::{Checksum, Epoch, Incarnation, Index, NodeId};

const READ_BYTES: usize = 256 << 10;
/// Frames that are smaller are bounded by their number.
const SMALL_BYTES: usize = 4 << 10;

/// What a connection needs to know of its node.
pub struct Inbound {
    /// Our address, as the peer must have called us.
    pub address: NodeId,
    /// Says the cluster: its own, else that of its register, else 0.
    pub cluster: Box<dyn Fn() -> u64 + Send + Sync>,
    /// By which peers know each other.
    pub secrets: Arc<Secrets>,
    /// Where there is one, peers must know it; only a test says no.
    pub demands_proof: bool,
    /// Connections whose greeting is not over.
    pub greeting: Room,
    /// Connections whose greeting is over.
    pub greeted: Semaphore,
    /// What was said of refused peers.
    pub refusals: Refusals,
    /// What frames may hold until the driver has taken them and their entries are written.
    pub backlog: Budget,
    /// Snapshots that may arrive at a time.
    pub snapshots: Semaphore,
    /// Says the feature level of the log (R37).
    pub level: Box<dyn Fn() -> u32 + Send + Sync>,
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

/// Says that a peer was refused, once in a while: a stranger may come again and again.
#[derive(Default)]
pub struct Refusals(Mutex<(Option<Instant>, u64)>);

impl Refusals {
    const LOG_INTERVAL: Duration = Duration::from_secs(5);

    fn log(&self, peer: Option<SocketAddr>, why: &Closed) {
        let now = crate::clock::now();
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if said.0.is_some_and(|at| now.duration_since(at) < Self::LOG_INTERVAL) {
            said.1 += 1;
            return;
        }
        let (_, unsaid) = std::mem::replace(&mut *said, (Some(now), 0));
        let more = if unsaid > 0 { format!(" ({unsaid} more were refused before)") } else { String::new() };
        tracing::warn!("peer connection from {peer:?} refused: {why}{more}");
    }
}

/// Serves one connection to its end; `begun` is what was read of it already.
pub async fn serve(inbound: Arc<Inbound>, stream: TcpStream, begun: BytesMut, place: Place) {
    let peer = stream.peer_addr().ok();
    if let Err(closed) = read(&inbound, stream, begun, place).await {
        match closed {
            Closed::Io(error) => tracing::debug!("peer connection from {peer:?}: {error}"),
            Closed::Bad(_) | Closed::Stranger(_) | Closed::Snapshot(_) => inbound.refusals.log(peer, &closed),
        }
    }
}

async fn read(
    inbound: &Inbound,
    mut stream: TcpStream,
    mut buffer: BytesMut,
    place: Place,
) -> Result<(), Closed> {
    stream.set_nodelay(true)?;
    let greeted = listen(&mut stream, &mut buffer, &inbound.secrets, inbound.demands_proof);
    let greeted = tokio::time::timeout(GREETING_MAX, greeted)
        .await
        .map_err(|_| Closed::Stranger("no greeting in time".to_owned()))??;
    let Some(Greeted { hello, proved }) = greeted else { return Ok(()) };
    let from = check(inbound, &hello)?;
    if !place.leave() {
        return Ok(()); // ended for a later one at this very moment
    }
    let Ok(_one) = inbound.greeted.try_acquire() else {
        return Err(Closed::Stranger(format!("too many connections of peers, and {from} wants one more")));
    };
    if proved {
        return frames(inbound, (from, hello), stream, buffer).await;
    }
    tokio::select! {
        biased;
        () = inbound.secrets.appears() => {
            Err(Closed::Stranger(format!("the cluster has a secret by now, and {from} did not show that it knows it", from = hello.from)))
        }
        ended = frames(inbound, (from, hello.clone()), stream, buffer) => ended,
    }
}

/// Everything after the greeting.
async fn frames(
    inbound: &Inbound,
    (from, hello): (NodeId, Hello),
    mut stream: TcpStream,
    mut buffer: BytesMut,
) -> Result<(), Closed> {
    let (session, level) = (hello.session, hello.feature_level);
    inbound.events.send(Internal::PeerArrived { node: from.clone(), session, level }).await;
    let incarnation = Incarnation(hello.incarnation);
    loop {
        while let Some(bytes) = take_bytes(&mut buffer, FRAME_MAX)? {
            let length = bytes.len();
            let frame = Frame::decode(bytes).map_err(BadFrame::from)?;
            let under = (Epoch(frame.epoch), Checksum(frame.view));
            // It may have greeted us before the level was raised.
            check_level(inbound, &hello)?;
            let Some(body) = frame.body else { continue };
            if let Body::SnapshotBegin(begin) = body {
                let Ok(_only) = inbound.snapshots.try_acquire() else {
                    return Err(Closed::Snapshot("another one is arriving".to_owned()));
                };
                let arrived = snapshot::receive(&inbound.installer, begin, &mut stream, &mut buffer).await;
                let arrived = arrived.map_err(Closed::Snapshot)?;
                inbound.events.send(Internal::SnapshotArrived(Box::new(arrived))).await;
                return Ok(()); // a snapshot has a connection to itself
            }
            let event = event_of(&from, incarnation, hello.session, under, body)?;
            let taken = if length < SMALL_BYTES {
                inbound.events.send(event).await
            } else {
                inbound.backlog.room_for(length).await;
                inbound.events.send_held(event, inbound.backlog.charge(length)).await
            };
            if !taken {
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
/// [`BadFrame`] where the records of an `Append` or a forwarded request cannot be read (R33).
pub fn event_of(
    from: &NodeId,
    incarnation: Incarnation,
    session: u64,
    (epoch, view): (Epoch, Checksum),
    body: Body,
) -> Result<Internal, BadFrame> {
    let said = |message, entries| Internal::Message {
        envelope: Envelope { from: from.clone(), incarnation, session, epoch, view, message },
        entries,
    };
    Ok(match body {
        Body::Append(append) => {
            let (message, entries) = open_append(append)?;
            said(message, entries)
        }
        Body::Appended(appended) => {
            let Appended { durable, full, heard, disk } = appended;
            said(Message::Appended { durable: Index(durable), full, heard, disk }, None)
        }
        Body::Report(report) => {
            said(Message::Report { commit: Index(report.commit), last: Index(report.last_index) }, None)
        }
        Body::Ping(_) => said(Message::Ping, None),
        Body::Stale(_) => said(Message::Stale, None),
        Body::Transfer(_) => said(Message::Transfer, None),
        Body::Forward(forward) => {
            // At the highest level: what only the level of the log forbids is a question for the engine.
            for mutation in &forward.mutations {
                Admitted::forwarded(mutation.clone(), FEATURE_LEVEL)
                    .map_err(|refusal| BadFrame::Request(refusal.to_string()))?;
            }
            Internal::Frame { from: from.clone(), epoch, body: Body::Forward(forward) }
        }
        other => Internal::Frame { from: from.clone(), epoch, body: other },
    })
}

/// A peer that cannot carry out what the log may hold by now would diverge (R37).
fn check_level(inbound: &Inbound, hello: &Hello) -> Result<(), Closed> {
    let level = (inbound.level)();
    if hello.feature_level >= level {
        return Ok(());
    }
    Err(Closed::Stranger(format!(
        "{} knows feature level {} and the log of the cluster is at {level}: start it with a newer build",
        hello.from, hello.feature_level
    )))
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
    check_level(inbound, hello)?;
    if hello.to != inbound.address.as_str() {
        return refuse(format!("{} looks for {} and found {}", hello.from, hello.to, inbound.address));
    }
    match NodeId::parse(&hello.from) {
        Ok(from) if from == inbound.address => refuse("a peer with our own address".to_owned()),
        Ok(from) => Ok(from),
        Err(error) => refuse(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
