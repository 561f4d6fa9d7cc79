//! One connection of a client, from its first bytes to its end: HTTP/2 for gRPC, HTTP/1.1 for probes.
//!
//! | what | bound | beyond it |
//! |---|---|---|
//! | time until the first request | [`FIRST_REQUEST_MAX`] | the connection is closed gracefully |
//! | time for the head of an HTTP/1.1 request, and between two of them | [`HTTP1_HEAD_MAX`] | closed |
//! | headers of one request | [`HEADERS_MAX`] | refused: 431 |
//! | requests at a time on one connection | [`STREAMS_MAX`] | the client waits, as HTTP/2 wants |
//! | requests that a client resets before they are looked at | [`RESETS_MAX`] | closed |
//! | silence of a client that does not answer pings | [`PING_INTERVAL`] and [`PING_TIMEOUT`] | closed |

use std::convert::Infallible;
use std::future::Ready;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use futures_util::future::Either;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::BoxFuture;
use tonic::service::Routes;

use super::answer;
use super::authority::Forgiving;
use super::held::{Activity, Arriving, STALLED_MAX, in_pieces};
use super::web::Web;
use crate::bounds::Budget;
use crate::node::Unavailable;

/// Largest frame that a client may send, in bytes.
pub(super) const FRAME_BYTES: u32 = 1 << 18;
/// A connection that has asked for nothing is kept this long.
const FIRST_REQUEST_MAX: Duration = Duration::from_secs(60);
/// A request of HTTP/1.1 must begin, and its head must be whole, within this time.
const HTTP1_HEAD_MAX: Duration = Duration::from_secs(10);
/// Names and values of one request's headers together, in bytes.
const HEADERS_MAX: u32 = 16 << 10;
/// Requests at a time on one connection. A client multiplexes everything over one.
const STREAMS_MAX: u32 = 1 << 12;
/// Requests that are cancelled before they are looked at: a client that cancels many at once is no attacker.
const RESETS_MAX: usize = 4096;
/// Finds clients whose host is gone, and gives back what their streams hold.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// How long the answer to a ping may take.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a connection beyond the clients' share may last.
const CONTROL_MAX: Duration = Duration::from_secs(10);
/// How often a connection that holds a large answer is looked at.
const STALLED_LOOK: Duration = Duration::from_secs(5);

/// What a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// For probes and whatever else is not gRPC.
    Http1,
    /// For gRPC.
    Http2,
}

/// Which requests a connection may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All.
    Everything,
    /// Those of the controller and of health checks: the connection is beyond the clients' share of so many.
    Control {
        /// Connections that clients may have.
        most: usize,
    },
}

/// Everything that a node answers to its clients. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    pub(super) routes: Routes,
    pub(super) web: Arc<Web>,
    /// What requests that arrive may hold.
    pub(super) requests: Budget,
}

/// What one connection asks of.
#[derive(Clone)]
struct Service {
    api: Api,
    scope: Scope,
    activity: Arc<Activity>,
}

type Answer = Result<Response<Body>, Infallible>;
type Called = <Routes as tonic::codegen::Service<Request<Arriving>>>::Future;

/// An answer of gRPC in the making.
struct Grpc {
    called: Called,
    activity: Arc<Activity>,
}

impl Future for Grpc {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer> {
        let answer = answer::put_right(ready!(Pin::new(&mut self.called).poll(context)));
        Poll::Ready(answer.map(|answer| in_pieces(answer, &self.activity)))
    }
}

impl hyper::service::Service<Request<Incoming>> for Service {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<Grpc, Either<BoxFuture<Response<Body>, Infallible>, Ready<Answer>>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        use tonic::codegen::Service as _;
        let refuse = |answer| Either::Right(Either::Right(std::future::ready(Ok(answer))));
        self.activity.note(&self.activity.asked);
        let path = request.uri().path();
        if let Scope::Control { most } = self.scope
            && !answer::is_control(path)
        {
            self.activity.note(&self.activity.refused);
            return refuse(answer::too_many_connections(&request, most));
        }
        if !answer::is_grpc(&request) {
            let web = self.api.web.clone();
            return Either::Right(Either::Left(Box::pin(async move { Ok(web.answer(&request).await) })));
        }
        if let Some(refusal) = answer::unserved(path) {
            return refuse(refusal);
        }
        let (head, body) = request.into_parts();
        // The controller is answered whatever clients hold.
        let body = if answer::is_control(head.uri.path()) {
            Arriving::uncounted(body)
        } else {
            match Arriving::new(body, head.uri.path(), &self.api.requests) {
                Some(body) => body,
                None => return refuse(Status::from(Unavailable::TooManyRequests).into_http()),
            }
        };
        let called = self.api.routes.clone().call(Request::from_parts(head, body));
        Either::Left(Grpc { called, activity: self.activity.clone() })
    }
}

/// Serves a connection until it ends, or until `drain` says that the node stops and its requests are answered. `read` is
/// what was read from it already.
pub async fn connection(
    stream: TcpStream,
    read: BytesMut,
    protocol: Protocol,
    (api, scope): (Api, Scope),
    drain: watch::Receiver<bool>,
) {
    let activity = Activity::new();
    let service = Service { api, scope, activity: activity.clone() };
    let io = TokioIo::new(Forgiving::new(stream, read));
    let served = match protocol {
        Protocol::Http1 => {
            let connection = http1().serve_connection(io, service);
            drive(connection, |connection| connection.graceful_shutdown(), scope, &activity, drain).await
        }
        Protocol::Http2 => {
            let connection = http2().serve_connection(io, service);
            drive(connection, |connection| connection.graceful_shutdown(), scope, &activity, drain).await
        }
    };
    if let Err(error) = served {
        tracing::debug!("a client's connection: {error}");
    }
}

/// Runs a connection, and ends it gracefully when its time is up: requests under way are answered, new ones are not
/// taken. One that holds a large answer and takes nothing of it is dropped.
async fn drive<C: Future<Output = hyper::Result<()>>>(
    connection: C,
    shut_down: impl Fn(Pin<&mut C>),
    scope: Scope,
    activity: &Activity,
    mut drain: watch::Receiver<bool>,
) -> hyper::Result<()> {
    let mut connection = pin!(connection);
    let idle = match scope {
        Scope::Everything => FIRST_REQUEST_MAX,
        Scope::Control { .. } => CONTROL_MAX,
    };
    let mut idle = pin!(tokio::time::sleep(idle));
    let mut look = pin!(tokio::time::sleep(STALLED_LOOK));
    let mut ends = false;
    loop {
        let asked = activity.asked.load(Ordering::Relaxed) && scope == Scope::Everything;
        tokio::select! {
            biased;
            served = &mut connection => return served,
            // A sender that is gone belongs to a process that ends anyway.
            _ = drain.wait_for(|drain| *drain), if !ends => {
                ends = true;
                shut_down(connection.as_mut());
            }
            () = &mut idle, if !asked && !ends => {
                ends = true;
                shut_down(connection.as_mut());
            }
            () = &mut look, if activity.holds() => {
                if activity.is_stalled() {
                    tracing::info!("a client has taken nothing of its answer for {STALLED_MAX:?}: closed");
                    return Ok(());
                }
                look.as_mut().reset(tokio::time::Instant::now() + STALLED_LOOK);
            }
            () = activity.changed.notified() => {
                // What it may not ask was refused: the place is for the controller.
                if scope != Scope::Everything && activity.refused.load(Ordering::Relaxed) && !ends {
                    ends = true;
                    shut_down(connection.as_mut());
                }
            }
        }
    }
}

fn http1() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HTTP1_HEAD_MAX)
        .max_buf_size(usize::try_from(HEADERS_MAX).expect("small"));
    builder
}

/// Set up for etcd's clients: hundreds of requests at a time on one connection, answers of megabytes, and keep-alive pings
/// as often as they like.
fn http2() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_pending_accept_reset_streams(RESETS_MAX)
        .max_header_list_size(HEADERS_MAX)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(16 << 20)
        .max_frame_size(FRAME_BYTES)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}
