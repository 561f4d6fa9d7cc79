//! HTTP without gRPC, for probes and scripts: etcd's `/version`, `/health`, `/livez` and `/readyz`, with its words and codes.
//! Everything else is refused in JSON; what a later version will have is named.

use std::fmt::Write as _;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use super::answer::lacking;
use super::deadline::deadline;
use super::maintenance::API_VERSION;
use crate::node::{Handle, RoleName, StateStore};

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// A check of `/livez` or `/readyz`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    DataCorruption,
    SerializableRead,
    LinearizableRead,
    NonLearner,
}

impl Check {
    const LIVE: &[Check] = &[Check::SerializableRead];
    const READY: &[Check] =
        &[Check::DataCorruption, Check::SerializableRead, Check::LinearizableRead, Check::NonLearner];

    fn name(self) -> &'static str {
        match self {
            Check::DataCorruption => "data_corruption",
            Check::SerializableRead => "serializable_read",
            Check::LinearizableRead => "linearizable_read",
            Check::NonLearner => "non_learner",
        }
    }
}

/// Answers what is asked without gRPC.
pub(super) struct Web {
    handle: Handle,
}

impl Web {
    pub(super) fn new(handle: Handle) -> Web {
        Web { handle }
    }

    pub(super) async fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        let path = request.uri().path();
        let query = request.uri().query().unwrap_or_default();
        if path == "/v3" || path.starts_with("/v3/") || path.starts_with("/v3beta/") {
            let lacks = lacking("JSON gateway");
            return error(StatusCode::NOT_IMPLEMENTED, lacks.code(), lacks.message());
        }
        if path == "/metrics" {
            let lacks = lacking("metrics");
            return error(StatusCode::NOT_IMPLEMENTED, lacks.code(), lacks.message());
        }
        let checks = match path.split_once("z/").map_or((path, None), |(root, one)| (root, Some(one))) {
            ("/livez", None) | ("/live", Some(_)) => Some(Check::LIVE),
            ("/readyz", None) | ("/ready", Some(_)) => Some(Check::READY),
            _ => None,
        };
        let one = path.split_once("z/").map(|(_, one)| one);
        let known = match checks {
            Some(checks) => one.is_none_or(|one| checks.iter().any(|check| check.name() == one)),
            None => matches!(path, "/version" | "/health"),
        };
        if !known {
            return error(StatusCode::NOT_FOUND, Code::NotFound, &format!("no such path: {path}"));
        }
        if request.method() != Method::GET {
            let mut refusal =
                respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, "Method Not Allowed\n".to_owned());
            refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
            return refusal;
        }
        match checks {
            Some(checks) => self.checks(checks, one, query).await,
            None if path == "/version" => {
                let version = json!({ "etcdserver": API_VERSION, "etcdcluster": API_VERSION });
                respond(StatusCode::OK, JSON, version.to_string())
            }
            None => self.health(query).await,
        }
    }

    /// What is wrong comes first: an alarm, no leader, a read that fails.
    async fn health(&self, query: &str) -> Response<Body> {
        let serializable = values(query, "serializable").next() == Some("true");
        let excluded = |alarm: &str| values(query, "exclude").any(|excluded| excluded == alarm);
        let reason = if self.has_space_alarm().await == Ok(true) && !excluded("NOSPACE") {
            "ALARM NOSPACE".to_owned()
        } else if !serializable && self.handle.describe().leader.is_none() {
            "RAFT NO LEADER".to_owned()
        } else {
            match self.read(serializable).await {
                Ok(()) => String::new(),
                Err(why) => format!("RANGE ERROR:{why}"),
            }
        };
        let (status, health) = match reason.as_str() {
            "" => (StatusCode::OK, "true"),
            _ => (StatusCode::SERVICE_UNAVAILABLE, "false"),
        };
        let health = serde_json::to_string(health).expect("a word is JSON");
        let reason = serde_json::to_string(&reason).expect("a text is JSON");
        // In etcd's order: some probes compare the whole.
        respond(status, JSON, format!("{{\"health\":{health},\"reason\":{reason}}}"))
    }

    async fn checks(&self, checks: &[Check], one: Option<&str>, query: &str) -> Response<Body> {
        let is_excluded = |check: &Check| values(query, "exclude").any(|excluded| excluded == check.name());
        let chosen = checks.iter().filter(|check| match one {
            Some(one) => check.name() == one,
            None => !is_excluded(check),
        });
        let (mut lines, mut failed) = (String::new(), false);
        for check in chosen {
            let line = match self.check(*check).await {
                Ok(()) => writeln!(lines, "[+]{} ok", check.name()),
                Err(why) => {
                    failed = true;
                    writeln!(lines, "[-]{} failed: {why}", check.name())
                }
            };
            line.expect("a String takes every write");
        }
        if failed {
            return respond(StatusCode::SERVICE_UNAVAILABLE, TEXT, lines + "\n");
        }
        let verbose = query.split('&').any(|part| part.split('=').next() == Some("verbose"));
        respond(StatusCode::OK, TEXT, if verbose { lines + "ok\n" } else { "ok\n".to_owned() })
    }

    async fn check(&self, check: Check) -> Result<(), String> {
        match check {
            // A node that finds its data damaged ends (R23): one that answers has not.
            Check::DataCorruption => Ok(()),
            Check::SerializableRead => self.read(true).await,
            Check::LinearizableRead => self.read(false).await,
            Check::NonLearner => match self.handle.describe().role {
                RoleName::Joining => Err("not supported for learner".to_owned()),
                RoleName::None | RoleName::Leader | RoleName::Follower => Ok(()),
            },
        }
    }

    /// As etcd reads for a check: anything, so that it is known that reading works.
    async fn read(&self, serializable: bool) -> Result<(), String> {
        let said = |status: Status| status.message().to_owned();
        super::header::check(&self.handle, &MetadataMap::new()).map_err(said)?;
        let until = deadline(&MetadataMap::new());
        let read = self.handle.read(serializable, until, StateStore::revision).await;
        read.map(|_| ()).map_err(|why| said(why.into()))
    }

    async fn has_space_alarm(&self) -> Result<bool, crate::node::Unavailable> {
        self.handle.read(true, deadline(&MetadataMap::new()), StateStore::has_space_alarm).await
    }
}

/// The values of a parameter; none of those that are asked for here needs decoding.
fn values<'a>(query: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    query
        .split('&')
        .filter_map(move |part| part.split_once('='))
        .filter(move |(key, _)| *key == name)
        .map(|(_, value)| value)
}

/// A refusal in JSON, as etcd's gateway puts it: clients of 3.5 read `error`, of 3.6 `message`.
pub(super) fn error(status: StatusCode, code: Code, text: &str) -> Response<Body> {
    respond(status, JSON, json!({ "error": text, "code": i32::from(code), "message": text }).to_string())
}

fn respond(status: StatusCode, kind: &'static str, text: String) -> Response<Body> {
    let mut answer = Response::new(Body::new(Full::new(Bytes::from(text))));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    answer
}
