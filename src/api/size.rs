//! A request too large to be read at all gets the code that gRPC servers of other languages give it, and that
//! clients know: the library under us says `OutOfRange`, which etcd's clients take for a compacted revision.

use std::task::{Context, Poll};

use futures_util::FutureExt as _;
use futures_util::future::Map;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;

/// How the library's message starts, in the encoding of the header it stands in.
const TOO_LARGE: &[u8] = b"Error,%20decoded%20message%20length%20too%20large";
const MESSAGE_HEADER: &str = "grpc-message";
const OUT_OF_RANGE: &str = "11";
const RESOURCE_EXHAUSTED: &str = "8";

/// A service with that one answer put right.
#[derive(Clone)]
pub(super) struct TooLargeIsExhausted<S>(pub(super) S);

impl<S: NamedService> NamedService for TooLargeIsExhausted<S> {
    const NAME: &'static str = S::NAME;
}

type Answer<E> = Result<http::Response<Body>, E>;

impl<S, E> Service<http::Request<Body>> for TooLargeIsExhausted<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = E>,
{
    type Response = http::Response<Body>;
    type Error = E;
    type Future = Map<S::Future, fn(Answer<E>) -> Answer<E>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), E>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        self.0.call(request).map(|answer| answer.map(put_right))
    }
}

fn put_right(mut answer: http::Response<Body>) -> http::Response<Body> {
    let headers = answer.headers_mut();
    let out_of_range = headers.get(Status::GRPC_STATUS).is_some_and(|code| code == OUT_OF_RANGE);
    if out_of_range && headers.get(MESSAGE_HEADER).is_some_and(|text| text.as_bytes().starts_with(TOO_LARGE))
    {
        headers.insert(Status::GRPC_STATUS, http::HeaderValue::from_static(RESOURCE_EXHAUSTED));
    }
    answer
}
