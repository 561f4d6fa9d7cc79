//! The one port: takes connections, tells peers from clients by their first bytes, and lets only so many clients in.
//!
//! ```text
//!   accept ──▶ waiting room ──▶ peer       to the replication thread, never counted
//!              10 s, the    ├─▶ client     counted; leaves the room; served until it ends
//!              oldest goes  └─▶ too many   stays in the room; the controller and health checks are answered,
//!              when full                   all else is refused with a text
//! ```
//!
//! The bytes that were read to tell are replayed to whoever serves the connection: nothing is looked at twice, and a
//! client that sends one byte and waits costs nothing while it waits.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::task::TaskTracker;

use crate::api::{Api, Protocol, Scope, connection};
use crate::bounds::{Place, Room};
use crate::descriptors::{AcceptFailures, Shares};
use crate::node::{PEER_MAGIC, PeerConnection};

/// How long a connection may take to say what it is.
const FIRST_BYTES_MAX: Duration = Duration::from_secs(10);
/// Bytes read at a time until it has.
const FIRST_READ_BYTES: usize = 1024;
/// What every HTTP/2 connection begins with (RFC 9113, section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a connection is, by its first bytes.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Peer,
    Client(Protocol),
}

/// `None` where more bytes are needed to tell.
fn kind(read: &[u8]) -> Option<Kind> {
    let begins = |with: &[u8]| with[..read.len().min(with.len())] == read[..read.len().min(with.len())];
    if begins(PEER_MAGIC) {
        (read.len() >= PEER_MAGIC.len()).then_some(Kind::Peer)
    } else if begins(HTTP2_PREFACE) {
        (read.len() >= HTTP2_PREFACE.len()).then_some(Kind::Client(Protocol::Http2))
    } else {
        Some(Kind::Client(Protocol::Http1))
    }
}

/// Everything that a connection can become.
pub(super) struct Port {
    api: Api,
    peers: mpsc::Sender<PeerConnection>,
    most: usize,
    clients: Arc<Semaphore>,
    waiting: Room,
    drain: watch::Sender<bool>,
    connections: TaskTracker,
}

impl Port {
    pub(super) fn new(api: Api, peers: mpsc::Sender<PeerConnection>, shares: Shares) -> Arc<Port> {
        Arc::new(Port {
            api,
            peers,
            most: shares.clients,
            clients: Arc::new(Semaphore::new(shares.clients)),
            waiting: Room::new(shares.waiting),
            drain: watch::Sender::new(false),
            connections: TaskTracker::new(),
        })
    }

    /// Takes connections until it is aborted.
    pub(super) async fn accept(self: Arc<Self>, listener: TcpListener) {
        let mut failures = AcceptFailures::default();
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    failures.end();
                    let port = self.clone();
                    self.waiting.enter(|place| async move {
                        let sorted = tokio::time::timeout(FIRST_BYTES_MAX, sort(stream)).await;
                        // Silent, gone, or ended for one that came later.
                        let Ok(Ok(Some((kind, stream, read)))) = sorted else { return };
                        match kind {
                            Kind::Peer => {
                                if let Ok(stream) = stream.into_std() {
                                    let _ = port.peers.send(PeerConnection { stream, read }).await;
                                }
                            }
                            Kind::Client(protocol) => port.admit(stream, read, protocol, place).await,
                        }
                    });
                }
                Err(error) => tokio::time::sleep(failures.wait(&error, crate::clock::now())).await,
            }
        }
    }

    async fn admit(&self, stream: TcpStream, read: BytesMut, protocol: Protocol, place: Place) {
        if stream.set_nodelay(true).is_err() {
            return;
        }
        // A client leaves the room; one that is one too many stays in it, and is the next to go.
        let permit = self.clients.clone().try_acquire_owned();
        let (scope, _place) = if permit.is_ok() {
            if !place.leave() {
                return; // ended for a later one at this very moment
            }
            (Scope::Everything, None)
        } else {
            (Scope::Control { most: self.most }, Some(place))
        };
        let serving = connection(stream, read, protocol, (self.api.clone(), scope), self.drain.subscribe());
        self.connections.track_future(serving).await;
    }

    /// Lets clients have the answers that are under way, and returns when their connections are closed.
    pub(super) async fn drain(&self) {
        self.drain.send_replace(true);
        self.connections.close();
        self.connections.wait().await;
    }
}

/// Reads until it is clear what the connection is. `None` where it ended before.
async fn sort(mut stream: TcpStream) -> std::io::Result<Option<(Kind, TcpStream, BytesMut)>> {
    let mut read = BytesMut::new();
    loop {
        // Nothing is held for a connection that says nothing.
        stream.readable().await?;
        read.reserve(FIRST_READ_BYTES);
        if stream.read_buf(&mut read).await? == 0 {
            return Ok(None);
        }
        if let Some(kind) = kind(&read) {
            return Ok(Some((kind, stream, read)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_told_by_its_first_bytes_however_they_come() {
        let cases: [(&[u8], Kind); 5] = [
            (PEER_MAGIC, Kind::Peer),
            (HTTP2_PREFACE, Kind::Client(Protocol::Http2)),
            (b"GET / HTTP/1.1\r\n", Kind::Client(Protocol::Http1)),
            (b"PUT / HTTP/1.1\r\n", Kind::Client(Protocol::Http1)),
            (b"REPORT / HTTP/1.1\r\n", Kind::Client(Protocol::Http1)),
        ];
        for (bytes, expected) in cases {
            let first = (1..=bytes.len()).find_map(|end| kind(&bytes[..end]));
            assert_eq!(first, Some(expected));
            assert!((1..=bytes.len()).all(|end| kind(&bytes[..end]).is_none_or(|kind| Some(kind) == first)));
        }
    }
}
