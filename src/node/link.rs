//! Our side of the connection to one peer: dial, greet, send, dial again. Whatever cannot be sent is dropped: the
//! protocol repeats itself, and the driver gives requests again when the link stands anew.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use super::event::{Events, Internal};
use super::greeting::{Secrets, greet};
use super::recent::Recent;
use super::wire::{append_body, framed, put};
use crate::bounds::{Budget, Charge};
use crate::proto::replcluster::{Frame, Hello};
use crate::protocol::Mark;
use crate::view::{Checksum, Epoch, Index, NodeId};

/// Items that wait for one link, and their bytes; more are dropped, as if the network had lost them.
const QUEUE_MAX: usize = 4096;
const QUEUE_BYTES_MAX: usize = 32 << 20;
/// Frames that are smaller are bounded by their number alone.
const SMALL_BYTES: usize = 4 << 10;
/// Forwarded requests take no more of the queue: acknowledgements and signs of life go out however many requests wait.
const REQUESTS_MAX: usize = QUEUE_MAX / 2;
/// Bytes gathered into one write.
const WRITE_BYTES: usize = 256 << 10;
/// Entries in one frame, in bytes.
pub const ENTRIES_BYTES: usize = 1 << 20;
const BACKOFF_MIN: Duration = Duration::from_millis(5);
const BACKOFF_MAX: Duration = Duration::from_millis(200);
const CONNECT_MAX: Duration = Duration::from_secs(1);

/// One thing to send.
pub enum Item {
    /// A frame as it goes out, length and all.
    Frame(Bytes),
    /// A frame with requests of clients: refused first where much waits.
    Requests(Bytes),
    /// Entries `(previous, last]`, read when their turn comes.
    Entries {
        /// Under which epoch.
        epoch: Epoch,
        /// Under which view of that epoch.
        view: Checksum,
        /// What comes before them.
        previous: Mark,
        /// The last of them.
        last: Index,
        /// What is known to be committed.
        commit: Index,
        /// When the engine sent them, by its clock.
        sent: Option<u64>,
    },
}

/// An item, and the bytes that it holds while it waits.
struct Queued {
    item: Item,
    _held: Charge,
}

/// A peer's link, as the driver holds it. Dropping it ends the task.
pub struct Link {
    queue: mpsc::Sender<Queued>,
    waiting: Budget,
    kick: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Link {
    /// Starts dialling.
    #[must_use]
    pub fn open(hello: Hello, secrets: Arc<Secrets>, recent: Arc<Recent>, events: Events) -> Link {
        let (queue, items) = mpsc::channel(QUEUE_MAX);
        let kick = Arc::new(Notify::new());
        let dialer = Dialer { hello, secrets, recent, events, items, kick: kick.clone() };
        Link { queue, waiting: Budget::new(QUEUE_BYTES_MAX), kick, task: tokio::spawn(dialer.run()) }
    }

    /// Queues an item; false where the queue is full and it was dropped.
    #[must_use]
    pub fn send(&self, item: Item) -> bool {
        let bytes = match &item {
            Item::Requests(_) if self.queue.capacity() <= QUEUE_MAX - REQUESTS_MAX => return false,
            Item::Requests(frame) => frame.len(),
            Item::Frame(frame) if frame.len() >= SMALL_BYTES => frame.len(),
            Item::Frame(_) | Item::Entries { .. } => 0,
        };
        let held = self.waiting.try_charge(bytes);
        held.is_some_and(|held| self.queue.try_send(Queued { item, _held: held }).is_ok())
    }

    /// The peer was just heard: do not wait to dial.
    pub fn dial_now(&self) {
        self.kick.notify_one();
    }
}

struct Dialer {
    hello: Hello,
    secrets: Arc<Secrets>,
    recent: Arc<Recent>,
    events: Events,
    items: mpsc::Receiver<Queued>,
    kick: Arc<Notify>,
}

impl Dialer {
    async fn run(mut self) {
        let mut backoff = BACKOFF_MIN;
        loop {
            let dialled = tokio::time::timeout(CONNECT_MAX, TcpStream::connect(self.hello.to.as_str())).await;
            if let Ok(Ok(stream)) = dialled
                && stream.set_nodelay(true).is_ok()
            {
                let begun = tokio::time::Instant::now();
                if let Err(error) = self.talk(stream).await {
                    tracing::debug!("link to {}: {error}", self.hello.to);
                }
                // A peer that closes at once has refused us: it is not asked ever faster.
                if begun.elapsed() > CONNECT_MAX {
                    backoff = BACKOFF_MIN;
                }
            }
            if !self.wait(backoff).await {
                return;
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// Waits before dialling again, dropping what nobody can receive. False where the driver let go.
    async fn wait(&mut self, time: Duration) -> bool {
        let end = tokio::time::sleep(time);
        tokio::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => return true,
                () = self.kick.notified() => return true,
                item = self.items.recv() => if item.is_none() { return false },
            }
        }
    }

    async fn talk(&mut self, mut stream: TcpStream) -> std::io::Result<()> {
        while self.items.try_recv().is_ok() {} // queued for a connection that is no more
        greet(&mut stream, &self.hello, &self.secrets).await?;
        let Ok(peer) = NodeId::parse(&self.hello.to) else { return Ok(()) };
        if !self.events.send(Internal::LinkUp(peer)).await {
            return Ok(());
        }
        let (mut reader, mut writer) = stream.split();
        let mut nothing = [0_u8; 1];
        let mut buffer = BytesMut::new();
        loop {
            tokio::select! {
                biased;
                item = self.items.recv() => match item {
                    None => return Ok(()),
                    Some(queued) => self.gather(&mut buffer, &mut writer, queued).await?,
                },
                // The peer never answers on this connection; reading only shows that it has gone.
                _ = reader.read(&mut nothing) => return Ok(()),
            }
            while buffer.len() < WRITE_BYTES
                && let Ok(queued) = self.items.try_recv()
            {
                self.gather(&mut buffer, &mut writer, queued).await?;
            }
            writer.write_all(&buffer).await?;
            buffer.clear();
        }
    }

    async fn gather(
        &self,
        buffer: &mut BytesMut,
        writer: &mut (impl AsyncWriteExt + Unpin),
        queued: Queued,
    ) -> std::io::Result<()> {
        match queued.item {
            Item::Frame(frame) | Item::Requests(frame) => buffer.extend_from_slice(&frame),
            Item::Entries { epoch, view, mut previous, last, commit, sent } => {
                while previous.index < last {
                    let first = previous.index.next();
                    let chunk = match self.recent.read_memory(first, ENTRIES_BYTES) {
                        Some(chunk) => chunk,
                        None => {
                            let recent = self.recent.clone();
                            let read =
                                tokio::task::spawn_blocking(move || recent.read(first, ENTRIES_BYTES)).await;
                            // Dropped or cut meanwhile: the follower will report where it stands.
                            let Ok(Ok(Some(chunk))) = read else { return Ok(()) };
                            chunk
                        }
                    };
                    let end = Mark { index: chunk.last.index, epoch: chunk.last.epoch };
                    let body = append_body(previous, end.index, end.epoch, commit, sent, chunk.frames);
                    put(buffer, &Frame { epoch: epoch.0, view: view.0, body: Some(body) });
                    previous = end;
                    // A long catch-up goes out as it is read.
                    if buffer.len() >= WRITE_BYTES {
                        writer.write_all(buffer).await?;
                        buffer.clear();
                    }
                }
            }
        }
        Ok(())
    }
}

/// A frame with nothing but a body, ready to queue.
#[must_use]
pub fn item(epoch: Epoch, body: crate::proto::replcluster::frame::Body) -> Item {
    item_of(epoch, Checksum(0), body)
}

/// The same, under a view that the receiver can tell from another one of that epoch.
#[must_use]
pub fn item_of(epoch: Epoch, view: Checksum, body: crate::proto::replcluster::frame::Body) -> Item {
    Item::Frame(framed(epoch, view, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_waits_for_a_peer_is_bounded_in_bytes_and_not_only_in_number() {
        let (queue, _items) = mpsc::channel(QUEUE_MAX);
        let task = tokio::spawn(std::future::pending());
        let link = Link { queue, waiting: Budget::new(QUEUE_BYTES_MAX), kick: Arc::new(Notify::new()), task };
        let frame = || Item::Frame(Bytes::from(vec![0; 1 << 20]));
        let sent = (0..100).filter(|_| link.send(frame())).count();
        assert_eq!(sent, QUEUE_BYTES_MAX >> 20);
        assert!(link.send(Item::Frame(Bytes::from(vec![0; 100]))), "a sign of life finds room");
        let requests = || Item::Requests(Bytes::from(vec![0; 10]));
        assert!(!link.send(requests()), "requests are bounded in bytes, however small");
        let entries = Item::Entries {
            epoch: Epoch(1),
            view: Checksum(0),
            previous: Mark::default(),
            last: Index(1 << 20),
            commit: Index(0),
            sent: None,
        };
        assert!(link.send(entries), "entries are read when their turn comes and hold nothing before");
    }

    #[tokio::test]
    async fn requests_leave_half_of_the_queue_to_acknowledgements_and_signs_of_life() {
        let (queue, _items) = mpsc::channel(QUEUE_MAX);
        let task = tokio::spawn(std::future::pending());
        let link = Link { queue, waiting: Budget::new(QUEUE_BYTES_MAX), kick: Arc::new(Notify::new()), task };
        let sent = (0..QUEUE_MAX).filter(|_| link.send(Item::Requests(Bytes::from_static(b"r")))).count();
        assert_eq!(sent, REQUESTS_MAX);
        let sent = (0..QUEUE_MAX).filter(|_| link.send(Item::Frame(Bytes::from_static(b"f")))).count();
        assert_eq!(sent, QUEUE_MAX - REQUESTS_MAX);
    }
}
