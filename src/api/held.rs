//! What a node holds in memory for its clients: requests while they arrive, and large answers until they are read.
//!
//! | what | at most | when full |
//! |---|---|---|
//! | requests that arrive, [`REQUEST_BYTES`] each and their bodies | [`REQUESTS_MAX`], a quarter of it for small ones only | `etcdserver: too many requests` |
//! | time in which a request of [`KV_PATH`] arrives | [`ARRIVAL_MAX`] | `DeadlineExceeded` |
//! | answers of [`LARGE`] and more, until their client has read them | [`ANSWERS_MAX`]; one that is larger goes alone | a further one is dropped and made again when there is room, until its deadline; then the same |
//! | a connection that holds one and takes no byte of it | [`STALLED_MAX`] | it is closed |
//!
//! Small answers are neither counted nor delayed: [`super::serve`] bounds how many a connection can have open.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tonic::body::Body;
use tonic::{Response, Status};

use crate::bounds::{Budget, Charge};
use crate::node::Unavailable;

/// What a request holds beside its body, about.
pub(super) const REQUEST_BYTES: usize = 4 << 10;
/// Requests that arrive, in bytes.
pub(super) const REQUESTS_MAX: usize = 256 << 20;
/// Answers of [`LARGE`] and more together, in bytes.
pub(super) const ANSWERS_MAX: usize = 128 << 20;
/// Smaller answers are not counted, in bytes.
pub(super) const LARGE: usize = 16 << 10;
/// A connection that holds a large answer must take some of it within this time.
pub(super) const STALLED_MAX: Duration = Duration::from_secs(60);
/// A large answer is given to the connection in pieces, as it takes them.
const PIECE: usize = 256 << 10;

/// How much of it requests of more than [`LARGE`] leave to smaller ones.
const FOR_SMALL: usize = REQUESTS_MAX / 4;
/// Requests that are one message each: they have no reason to arrive slowly.
const KV_PATH: &str = "/etcdserverpb.KV/";
/// How long such a request may take to arrive.
const ARRIVAL_MAX: Duration = Duration::from_secs(10);

/// A request's body, charged as it arrives.
pub(super) struct Arriving {
    body: Incoming,
    charge: Option<Charge>,
    /// It must arrive in time.
    is_timed: bool,
    /// From the first time that it has to be waited for.
    late: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Arriving {
    /// `None` where too much arrives already.
    pub(super) fn new(body: Incoming, path: &str, requests: &Budget) -> Option<Arriving> {
        let charge = Some(requests.try_charge(REQUEST_BYTES)?);
        Some(Arriving { body, charge, is_timed: path.starts_with(KV_PATH), late: None })
    }

    /// One that must be answered whatever arrives.
    pub(super) fn uncounted(body: Incoming) -> Arriving {
        Arriving { body, charge: None, is_timed: false, late: None }
    }
}

impl HttpBody for Arriving {
    type Data = Bytes;
    type Error = tonic::codegen::StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error.into()))),
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending if self.is_timed => {
                let late = self.late.get_or_insert_with(|| Box::pin(tokio::time::sleep(ARRIVAL_MAX)));
                ready!(late.as_mut().poll(context));
                let text = format!("replcluster: the request did not arrive within {ARRIVAL_MAX:?}");
                return Poll::Ready(Some(Err(Status::deadline_exceeded(text).into())));
            }
            Poll::Pending => return Poll::Pending,
        };
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        let fits = self.charge.as_mut().is_none_or(|charge| {
            let others = if charge.bytes() + bytes > LARGE { FOR_SMALL } else { 0 };
            charge.try_grow_leaving(bytes, others)
        });
        Poll::Ready(Some(if fits {
            Ok(frame)
        } else {
            Err(Status::from(Unavailable::TooManyRequests).into())
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What happens on one connection, as far as its end depends on it.
pub(super) struct Activity {
    /// It has asked for something.
    pub(super) asked: AtomicBool,
    /// It has asked for something that it may not.
    pub(super) refused: AtomicBool,
    /// Large answers that it has not taken whole.
    held: AtomicUsize,
    /// When it last took some of one, in milliseconds since `begun`.
    moved_at: AtomicU64,
    begun: Instant,
    /// Told when one of the above begins.
    pub(super) changed: tokio::sync::Notify,
}

impl Activity {
    pub(super) fn new() -> Arc<Activity> {
        Arc::new(Activity {
            asked: AtomicBool::new(false),
            refused: AtomicBool::new(false),
            held: AtomicUsize::new(0),
            moved_at: AtomicU64::new(0),
            begun: crate::clock::now(),
            changed: tokio::sync::Notify::new(),
        })
    }

    /// Sets a flag, and wakes the connection the first time.
    pub(super) fn note(&self, flag: &AtomicBool) {
        // Looked at first: the write is needed once a connection.
        if !flag.load(Ordering::Relaxed) && !flag.swap(true, Ordering::Relaxed) {
            self.changed.notify_one();
        }
    }

    fn since_begun(&self) -> u64 {
        u64::try_from((crate::clock::now() - self.begun).as_millis()).unwrap_or(u64::MAX)
    }

    fn moved(&self) {
        self.moved_at.store(self.since_begun(), Ordering::Relaxed);
    }

    /// True while a large answer is not taken whole.
    pub(super) fn holds(&self) -> bool {
        self.held.load(Ordering::Relaxed) > 0
    }

    /// True where it holds one and has taken nothing for too long.
    pub(super) fn is_stalled(&self) -> bool {
        let limit = u64::try_from(STALLED_MAX.as_millis()).unwrap_or(u64::MAX);
        self.holds() && self.since_begun().saturating_sub(self.moved_at.load(Ordering::Relaxed)) >= limit
    }
}

/// Marks a large answer; travels with it from where it was made to where it is sent.
#[derive(Clone)]
struct Large(Arc<Charge>);

/// An answer, charged where it is large, whether there is room or not: one that could not be made again must be given.
/// Those that could are given only where there is room ([`super::relay`]).
pub(super) fn charged<T: prost::Message>(answer: T, answers: &Budget) -> Response<T> {
    let bytes = answer.encoded_len();
    let mut response = Response::new(answer);
    if bytes >= LARGE {
        response.extensions_mut().insert(Large(Arc::new(answers.charge(bytes))));
    }
    response
}

/// Gives a large answer to the connection piece by piece; each holds the charge until it is on its way.
pub(super) fn in_pieces(
    mut answer: hyper::Response<Body>,
    activity: &Arc<Activity>,
) -> hyper::Response<Body> {
    let Some(Large(charge)) = answer.extensions_mut().remove::<Large>() else { return answer };
    if activity.held.fetch_add(1, Ordering::Relaxed) == 0 {
        // More of them are no sign that any is taken.
        activity.moved();
        activity.changed.notify_one();
    }
    let held = Arc::new(Held { _charge: charge, activity: activity.clone() });
    answer.map(|body| Body::new(Pieces { body, rest: Bytes::new(), held }))
}

/// A large answer on its connection.
struct Held {
    _charge: Arc<Charge>,
    activity: Arc<Activity>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.activity.held.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Some bytes of a large answer.
struct Piece {
    bytes: Bytes,
    held: Arc<Held>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.held.activity.moved();
    }
}

struct Pieces {
    body: Body,
    rest: Bytes,
    held: Arc<Held>,
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.rest.is_empty() {
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => frame,
                other => return Poll::Ready(other),
            };
            match frame.into_data() {
                Ok(data) => self.rest = data,
                Err(other) => return Poll::Ready(Some(Ok(other))),
            }
        }
        let length = self.rest.len().min(PIECE);
        let bytes = self.rest.split_to(length);
        let piece = Piece { bytes, held: self.held.clone() };
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_owner(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }
}
