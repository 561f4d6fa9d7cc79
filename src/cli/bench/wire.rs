//! A load generator's half of HTTP/2: one connection that carries many closed-loop clients, each with one unary gRPC
//! request after another. It is here because the load shares two cores with the servers it measures: a general client
//! spends more on a request than a fast server does, and would measure itself.
//!
//! What makes it cheap: a request is a template with two stream ids and a key patched in; all requests and answers
//! that are ready share one system call; and header blocks of answers are never decoded, because a unary call that
//! succeeded is one that brought a message. It is no general client: no TLS, one method a connection, requests no
//! longer than one frame.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::request::Template;
use crate::clock;

/// RFC 9113, section 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD: usize = 9;
const READ_BUFFER: usize = 64 << 10;
/// The largest window there is; an answer never waits for us.
const LARGEST_WINDOW: u32 = (1 << 31) - 1;
const DEFAULT_WINDOW: u32 = 65_535;
const DEFAULT_HEADER_TABLE: u32 = 4096;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// What one connection saw between two moments.
#[derive(Debug)]
pub(super) struct Tally {
    /// Microseconds from the wish to send to the last byte of the answer, of the requests that ended in the window.
    pub(super) latency: Histogram<u64>,
    /// Requests that were answered without a message, in or out of the window.
    pub(super) failed: u64,
}

/// When requests count.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    /// Answers before it are warm-up.
    pub(super) begins: Instant,
    /// No request is sent after it.
    pub(super) ends: Instant,
}

/// What the server allows.
#[derive(Debug)]
struct Allowance {
    /// Bytes of data that may be sent on the connection.
    connection_window: i64,
    /// Bytes of data that may be sent on a new stream.
    stream_window: u32,
    streams: usize,
    may_index: bool,
    known: bool,
}

/// One request under way.
#[derive(Clone, Copy, Debug)]
struct Open {
    since: Instant,
    /// A message arrived.
    answered: bool,
    /// Nothing more comes.
    ended: bool,
}

/// One connection with its clients.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    template: Template,
    /// Bytes to send; `sent` of them are gone.
    out: Vec<u8>,
    sent: usize,
    /// Bytes received; `parsed` of them are done with.
    received: Vec<u8>,
    parsed: usize,
    /// Requests under way by stream id: the front is stream `first_open`, the next that plus two, and so on.
    open: VecDeque<Open>,
    first_open: u32,
    in_flight: usize,
    /// Clients that want to send and must wait for the server's allowance, with the moment they wanted to.
    waiting: VecDeque<Instant>,
    allowance: Allowance,
    /// The headers are in the server's table, so that an index stands for each.
    indexed: bool,
    /// Data received since the window was last widened.
    consumed: u32,
    tally: Tally,
}

impl Connection {
    /// Connects and says hello.
    pub(super) async fn open(address: &str, template: Template) -> io::Result<Connection> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let mut out = PREFACE.to_vec();
        // No pushes, answers of any length, no table for us to keep.
        let settings = [(1_u16, 0_u32), (2, 0), (4, LARGEST_WINDOW)];
        head(&mut out, settings.len() * 6, SETTINGS, 0, 0);
        for (name, value) in settings {
            out.extend_from_slice(&name.to_be_bytes());
            out.extend_from_slice(&value.to_be_bytes());
        }
        widen(&mut out, LARGEST_WINDOW - DEFAULT_WINDOW);
        Ok(Connection {
            stream,
            template,
            out,
            sent: 0,
            received: Vec::with_capacity(READ_BUFFER),
            parsed: 0,
            open: VecDeque::new(),
            first_open: 1,
            in_flight: 0,
            waiting: VecDeque::new(),
            allowance: Allowance {
                connection_window: i64::from(DEFAULT_WINDOW),
                stream_window: DEFAULT_WINDOW,
                streams: usize::MAX,
                may_index: true,
                known: false,
            },
            indexed: false,
            consumed: 0,
            tally: Tally { latency: histogram(), failed: 0 },
        })
    }

    /// Runs `clients` closed-loop clients until the window ends and the last answer is there. Nothing more is sent once
    /// `stop` is set.
    pub(super) async fn run(
        mut self,
        clients: usize,
        window: Window,
        stop: &AtomicBool,
    ) -> io::Result<Tally> {
        let start = clock::now();
        self.waiting.extend(std::iter::repeat_n(start, clients));
        loop {
            // Seen at the next answer; a server that gives none is given up from outside.
            if stop.load(Ordering::Relaxed) {
                self.waiting.clear();
            }
            self.send_waiting(window.ends);
            self.flush()?;
            if self.in_flight == 0 && self.waiting.is_empty() {
                return Ok(self.tally);
            }
            let interest = if self.sent < self.out.len() {
                Interest::READABLE | Interest::WRITABLE
            } else {
                Interest::READABLE
            };
            let patience = window.ends.saturating_duration_since(clock::now()) + Duration::from_secs(10);
            let ready = tokio::time::timeout(patience, self.stream.ready(interest)).await;
            let ready = ready.map_err(|_| broken("the server does not answer"))??;
            if ready.is_readable() {
                self.receive(window)?;
            }
        }
    }

    /// Sends for every client that waits, as far as the server allows.
    fn send_waiting(&mut self, ends: Instant) {
        let length = i64::from(self.template.data_length());
        while self.allowance.known
            && self.in_flight < self.allowance.streams
            && self.allowance.connection_window >= length
            && let Some(since) = self.waiting.pop_front()
        {
            if since >= ends {
                continue;
            }
            let stream = self.first_open + 2 * u32::try_from(self.open.len()).unwrap_or(u32::MAX / 4);
            let index = self.allowance.may_index && self.indexed;
            self.template.append(&mut self.out, stream, index);
            self.indexed = true;
            self.allowance.connection_window -= length;
            self.open.push_back(Open { since, answered: false, ended: false });
            self.in_flight += 1;
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.sent < self.out.len() {
            match self.stream.try_write(&self.out[self.sent..]) {
                Ok(0) => return Err(broken("the server closed the connection")),
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.out.clear();
        self.sent = 0;
        Ok(())
    }

    /// Reads what is there and acts on every whole frame.
    fn receive(&mut self, window: Window) -> io::Result<()> {
        if self.parsed > 0 {
            self.received.drain(..self.parsed);
            self.parsed = 0;
        }
        match self.stream.try_read_buf(&mut self.received) {
            Ok(0) => return Err(broken("the server closed the connection")),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
        // One look at the clock for all answers that came together.
        let now = clock::now();
        while let Some(header) = self.received.get(self.parsed..self.parsed + HEAD) {
            let length = usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
            let (kind, flags) = (header[3], header[4]);
            let stream = u32::from_be_bytes([header[5] & 0x7f, header[6], header[7], header[8]]);
            let begin = self.parsed + HEAD;
            if self.received.len() < begin + length {
                // The rest must fit, however long the frame is.
                self.received.reserve(length + HEAD);
                return Ok(());
            }
            self.parsed = begin + length;
            self.frame(kind, flags, stream, begin..begin + length, now, window)?;
        }
        Ok(())
    }

    fn frame(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: std::ops::Range<usize>,
        now: Instant,
        window: Window,
    ) -> io::Result<()> {
        match kind {
            DATA => {
                self.consume(u32::try_from(payload.len()).unwrap_or(u32::MAX));
                if !payload.is_empty()
                    && let Some(open) = self.open_mut(stream)
                {
                    open.answered = true;
                }
                if flags & END_STREAM != 0 {
                    self.end(stream, now, window);
                }
            }
            HEADERS if flags & END_STREAM != 0 => self.end(stream, now, window),
            RST_STREAM => {
                if let Some(open) = self.open_mut(stream) {
                    open.answered = false;
                }
                self.end(stream, now, window);
            }
            SETTINGS if flags & ACK == 0 => self.settings(payload)?,
            PING if flags & ACK == 0 => {
                let echo: Vec<u8> = self.received[payload].to_vec();
                head(&mut self.out, echo.len(), PING, ACK, 0);
                self.out.extend_from_slice(&echo);
            }
            GOAWAY => return Err(broken("the server asked the client to go away")),
            WINDOW_UPDATE if stream == 0 => {
                let bytes: [u8; 4] =
                    self.received[payload].try_into().map_err(|_| broken("a frame is malformed"))?;
                self.allowance.connection_window += i64::from(u32::from_be_bytes(bytes) & LARGEST_WINDOW);
            }
            // Windows of streams are wider than a request; the rest says nothing that is needed here.
            _ => {}
        }
        Ok(())
    }

    fn settings(&mut self, payload: std::ops::Range<usize>) -> io::Result<()> {
        for setting in self.received[payload].chunks_exact(6) {
            let value = u32::from_be_bytes([setting[2], setting[3], setting[4], setting[5]]);
            match u16::from_be_bytes([setting[0], setting[1]]) {
                1 => self.allowance.may_index = value >= DEFAULT_HEADER_TABLE,
                3 => self.allowance.streams = usize::try_from(value).unwrap_or(usize::MAX),
                4 => self.allowance.stream_window = value,
                _ => {}
            }
        }
        if self.allowance.stream_window < self.template.data_length() {
            return Err(broken("the server's window is smaller than one request"));
        }
        self.allowance.known = true;
        head(&mut self.out, 0, SETTINGS, ACK, 0);
        Ok(())
    }

    /// A request is over: count it, and let its client send the next.
    fn end(&mut self, stream: u32, now: Instant, window: Window) {
        let Some(open) = self.open_mut(stream).filter(|open| !open.ended) else { return };
        open.ended = true;
        let Open { since, answered, ended: _ } = *open;
        self.in_flight -= 1;
        if !answered {
            self.tally.failed += 1;
        } else if now >= window.begins && now < window.ends {
            let micros = u64::try_from((now - since).as_micros()).unwrap_or(u64::MAX);
            self.tally.latency.saturating_record(micros);
        }
        while self.open.front().is_some_and(|open| open.ended) {
            self.open.pop_front();
            self.first_open += 2;
        }
        self.waiting.push_back(now);
    }

    fn open_mut(&mut self, stream: u32) -> Option<&mut Open> {
        let position = stream.checked_sub(self.first_open)? / 2;
        self.open.get_mut(usize::try_from(position).ok()?)
    }

    /// Gives the server its window back, long before it runs out.
    fn consume(&mut self, bytes: u32) {
        self.consumed = self.consumed.saturating_add(bytes);
        if self.consumed >= LARGEST_WINDOW / 2 {
            widen(&mut self.out, self.consumed);
            self.consumed = 0;
        }
    }
}

/// Microseconds up to a minute with three digits.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("constant bounds are in range")
}

/// The head of a frame.
pub(super) fn head(out: &mut Vec<u8>, length: usize, kind: u8, flags: u8, stream: u32) {
    let length = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    out.extend_from_slice(&length[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
}

/// HEADERS that end the header block, then DATA that ends the stream.
pub(super) fn request_frames(block: &[u8], message: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    head(&mut out, block.len(), HEADERS, END_HEADERS, 0);
    out.extend_from_slice(block);
    head(&mut out, message.len(), DATA, END_STREAM, 0);
    out.extend_from_slice(message);
    out
}

/// Offset of the stream id in the head of a frame.
pub(super) const STREAM_ID: usize = 5;
/// Length of the head of a frame.
pub(super) const FRAME_HEAD: usize = HEAD;

fn widen(out: &mut Vec<u8>, bytes: u32) {
    head(out, 4, WINDOW_UPDATE, 0, 0);
    out.extend_from_slice(&bytes.to_be_bytes());
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, what.to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::{Arc, Mutex};

    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::{Request, Response, Status};

    use super::super::request::Mix;
    use super::*;
    use crate::proto::etcdserverpb as pb;
    use crate::proto::etcdserverpb::kv_server::{Kv, KvServer};

    /// Counts what arrives; an ordinary gRPC server, so that what it understands is what others understand.
    #[derive(Clone, Default)]
    struct Counting {
        puts: Arc<Mutex<Vec<pb::PutRequest>>>,
        refuses: bool,
    }

    #[tonic::async_trait]
    impl Kv for Counting {
        async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
            self.puts.lock().unwrap().push(request.into_inner());
            if self.refuses {
                return Err(Status::resource_exhausted("etcdserver: too many requests"));
            }
            Ok(Response::new(pb::PutResponse { header: Some(pb::ResponseHeader::default()), prev_kv: None }))
        }
    }

    async fn load(server: &Counting, streams: u32, clients: usize) -> Tally {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serving = tonic::transport::Server::builder()
            .max_concurrent_streams(streams)
            .initial_connection_window_size(70_000)
            .add_service(KvServer::new(server.clone()));
        tokio::spawn(serving.serve_with_incoming(TcpListenerStream::new(listener)));
        let template = Template::new(Mix::Put, &address, 256, 100, 0, 7);
        let connection = Connection::open(&address, template).await.unwrap();
        let begins = clock::now();
        connection
            .run(
                clients,
                Window { begins, ends: begins + Duration::from_millis(300) },
                &AtomicBool::new(false),
            )
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn every_request_arrives_whole_and_every_answer_counts() {
        let server = Counting::default();
        let tally = load(&server, 1000, 50).await;
        let puts = server.puts.lock().unwrap();
        // More than the server's window of 70 000 bytes holds, so that its updates were heeded.
        assert!(puts.len() > 300, "{}", puts.len());
        assert!(tally.latency.len() + 50 >= u64::try_from(puts.len()).unwrap());
        assert_eq!(tally.failed, 0);
        assert!(puts.iter().all(|put| put.key.len() == 32 && put.value.len() == 256));
        let keys: BTreeSet<_> = puts.iter().map(|put| put.key.clone()).collect();
        assert_eq!(keys.len(), 100);
    }

    #[tokio::test]
    async fn more_clients_than_the_server_allows_streams_wait_their_turn() {
        let server = Counting::default();
        let tally = load(&server, 2, 20).await;
        assert!(tally.latency.len() > 20 && tally.failed == 0, "{tally:?}");
    }

    #[tokio::test]
    async fn a_refusal_is_a_failure_and_no_answer() {
        let server = Counting { refuses: true, ..Counting::default() };
        let tally = load(&server, 1000, 4).await;
        assert_eq!(tally.latency.len(), 0);
        assert_eq!(tally.failed, u64::try_from(server.puts.lock().unwrap().len()).unwrap());
        assert!(tally.failed > 0);
    }

    #[tokio::test]
    async fn a_server_that_goes_away_is_an_error() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let template = Template::new(Mix::Put, &address, 256, 100, 0, 7);
        let connection = Connection::open(&address, template).await.unwrap();
        drop(listener.accept().await.unwrap());
        let begins = clock::now();
        let window = Window { begins, ends: begins + Duration::from_secs(60) };
        assert!(connection.run(1, window, &AtomicBool::new(false)).await.is_err());
    }
}
