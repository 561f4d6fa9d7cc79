//! What the libraries under us answer by themselves, put as etcd puts it: a request too large to be read, one that cannot
//! be decoded, a service or method that does not exist or that this version lacks. Every refusal has a text.

use std::convert::Infallible;

use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::{Request, Response, StatusCode};
use tonic::body::Body;
use tonic::{Code, Status};

use super::web;
use crate::kv::Refusal;

/// How the library's message of a request that is too large starts and goes on.
const TOO_LARGE: &str = "Error, decoded message length too large: found ";
const TOO_LARGE_LIMIT: &str = " bytes, the limit is: ";
/// How its message of one that cannot be decoded starts, and how that of one that is nested too deep ends.
const UNDECODABLE: &str = "failed to decode Protobuf message: ";
const TOO_DEEP: &str = "recursion limit reached";

/// Services and methods of etcd that this version lacks, each with what it would bring.
const UNSERVED: [(&str, &str); 7] = [
    ("/etcdserverpb.Watch/", "watches"),
    ("/etcdserverpb.Lease/", "leases"),
    ("/v3lockpb.Lock/", "locks"),
    ("/v3electionpb.Election/", "elections"),
    ("/etcdserverpb.Maintenance/Snapshot", "snapshots to a file"),
    ("/etcdserverpb.Cluster/MemberAdd", "MemberAdd; use `replcluster add-follower`"),
    ("/etcdserverpb.KV/RangeStream", "streamed ranges"),
];

/// Services that answer at least some methods.
const SERVED: [&str; 8] = [
    "etcdserverpb.KV",
    "etcdserverpb.Cluster",
    "etcdserverpb.Maintenance",
    "etcdserverpb.Auth",
    "replcluster.Node",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

/// What this version says of a part that it lacks: `replcluster 0.1 has no leases; version 0.2 will`.
pub(super) fn lacking(what: &str) -> Status {
    let (major, minor) = (env!("CARGO_PKG_VERSION_MAJOR"), env!("CARGO_PKG_VERSION_MINOR"));
    let next = minor.parse::<u32>().map_or(0, |minor| minor + 1);
    let (what, instead) =
        what.split_once(';').map_or((what, String::new()), |(what, instead)| (what, format!(";{instead}")));
    Status::unimplemented(format!(
        "replcluster {major}.{minor} has no {what}; version {major}.{next} will{instead}"
    ))
}

/// True for what is asked with gRPC.
pub(super) fn is_grpc(request: &Request<Incoming>) -> bool {
    let kind = request.headers().get(CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// True for what must be answered also where clients have all connections.
pub(super) fn is_control(path: &str) -> bool {
    path.starts_with("/replcluster.Node/")
        || path.starts_with("/grpc.health.v1.Health/")
        || path.starts_with("/livez")
        || path.starts_with("/readyz")
        || matches!(path, "/health" | "/version")
}

/// The answer to what this version does not serve.
pub(super) fn unserved(path: &str) -> Option<Response<Body>> {
    // The one path that nearly every request has.
    if path.starts_with("/etcdserverpb.KV/") && !path.ends_with("/RangeStream") {
        return None;
    }
    if let Some((_, what)) = UNSERVED.iter().find(|(prefix, _)| path.starts_with(prefix)) {
        return Some(lacking(what).into_http());
    }
    let Some((service, _)) = path.strip_prefix('/').and_then(|path| path.rsplit_once('/')) else {
        return Some(Status::unimplemented(format!("malformed method name: {path:?}")).into_http());
    };
    let known = SERVED.contains(&service);
    (!known).then(|| Status::unimplemented(format!("unknown service {service}")).into_http())
}

/// What a client gets whose connection is one too many.
pub(super) fn too_many_connections<B>(request: &Request<B>, most: usize) -> Response<Body> {
    let text = format!(
        "replcluster: too many connections: this node takes {most} of clients; close some, or raise connections under [limits] in cluster.toml (--max-connections)"
    );
    let kind = request.headers().get(CONTENT_TYPE);
    if kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
        return Status::resource_exhausted(text).into_http();
    }
    web::error(StatusCode::SERVICE_UNAVAILABLE, Code::ResourceExhausted, &text)
}

/// Puts right what the library says by itself.
pub(super) fn put_right(answer: Result<Response<Body>, Infallible>) -> Result<Response<Body>, Infallible> {
    let Ok(answer) = answer;
    // Answers have their status at their end; only a refusal has it in its head.
    if answer.headers().get(Status::GRPC_STATUS).is_none() {
        return Ok(answer);
    }
    let better = match answer.extensions().get::<Status>() {
        Some(status) => reword(status),
        None => Some(Status::unimplemented("unknown method")),
    };
    Ok(better.map_or(answer, Status::into_http))
}

fn reword(status: &Status) -> Option<Status> {
    let text = status.message();
    match status.code() {
        Code::OutOfRange => {
            let (found, limit) = text.strip_prefix(TOO_LARGE)?.split_once(TOO_LARGE_LIMIT)?;
            let limit = limit.strip_suffix(" bytes")?;
            // As servers written in Go put it. `OutOfRange` is what etcd's clients take for a compacted revision.
            let text = format!("grpc: received message larger than max ({found} vs. {limit})");
            Some(Status::resource_exhausted(text))
        }
        Code::Internal => {
            let why = text.strip_prefix(UNDECODABLE)?;
            Some(if why.ends_with(TOO_DEEP) {
                // Only transactions nest, and each level counts as an operation.
                Refusal::TooManyOperations { given: usize::MAX, allowed: 0 }.into()
            } else {
                Status::internal(format!("grpc: error unmarshalling request: {why}"))
            })
        }
        _ => None,
    }
}
