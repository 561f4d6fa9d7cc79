//! What can go wrong with a request, and what each failure says about whether the request was carried out.
//! The refusals of a server are kept exactly as it sent them; nothing is translated here.

use std::error::Error as _;
use std::time::Duration;

use tonic::{Code, ConnectError, Status};

/// Why a request has no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The list of endpoints is empty.
    #[error("no endpoint is known\nname at least one, for example --endpoints 127.0.0.1:2379")]
    NoEndpoints,
    /// An endpoint's text cannot be used.
    #[error("endpoint \"{endpoint}\" cannot be used: {reason}\nwrite host:port or http://host:port")]
    BadEndpoint {
        /// As it was given.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No connection could be made, or it was closed before its turn came: nothing was sent.
    #[error("no endpoint can be reached: {}\nis the cluster running? see `replcluster status`", list(.tried))]
    Unreachable {
        /// Every endpoint that was tried with the reason it failed.
        tried: Vec<(String, String)>,
    },
    /// The server answered with a gRPC error.
    #[error("{endpoint} answered {:?}: {}", .status.code(), .status.message())]
    Refused {
        /// Who answered.
        endpoint: String,
        /// Code and message as the server sent them.
        status: Status,
    },
    /// The connection ended before the answer came: the request may have been carried out.
    #[error(
        "the connection to {endpoint} ended before its answer came ({cause})\n{}",
        if *.read { READ_AGAIN } else { "the request may have been carried out: read before trying again" }
    )]
    Broken {
        /// Whom the connection led to.
        endpoint: String,
        /// What the transport reported, from the outside in.
        cause: String,
        /// It only read, so nothing can have been changed.
        read: bool,
    },
    /// No answer within the time allowed: the request may have been carried out, or may yet be.
    #[error(
        "{endpoint} did not answer within {after:?}\n{}",
        if *.read {
            READ_AGAIN
        } else {
            "the request may have been carried out, or may yet be: read before trying again"
        }
    )]
    TimedOut {
        /// Who was asked last.
        endpoint: String,
        /// How long was waited.
        after: Duration,
        /// It only read, so nothing can have been changed.
        read: bool,
    },
}

/// What to do about a read without an answer.
const READ_AGAIN: &str =
    "nothing was changed by it: see how the nodes stand with `replcluster status`, then read again";

/// What a failure says about the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certainty {
    /// It was not carried out and never will be.
    NotDone,
    /// It may have been carried out, or may yet be.
    Unknown,
}

impl ClientError {
    /// Tells a refusal by the server from a failure of the way there.
    /// A status that the transport made up carries its cause; one that came over the wire has none.
    #[must_use]
    pub fn from_status(endpoint: &str, status: Status) -> ClientError {
        let mut causes = Vec::new();
        let mut unsent = false;
        let mut source = status.source();
        while let Some(error) = source {
            unsent |= error.is::<ConnectError>()
                || error.downcast_ref().is_some_and(was_never_sent)
                || error.downcast_ref().is_some_and(was_not_taken);
            let text = error.to_string();
            if causes.last() != Some(&text) {
                causes.push(text);
            }
            source = error.source();
        }
        let endpoint = endpoint.to_owned();
        match (causes.last(), unsent) {
            (None, _) if status.code() == Code::Unknown && status.message().starts_with(NOT_READY) => {
                ClientError::Unreachable { tried: vec![(endpoint, status.message().to_owned())] }
            }
            (None, _) => ClientError::Refused { endpoint, status },
            (Some(innermost), true) => {
                ClientError::Unreachable { tried: vec![(endpoint, innermost.clone())] }
            }
            (Some(_), false) => ClientError::Broken { endpoint, cause: causes.join(": "), read: false },
        }
    }

    /// The same of a request that only read.
    #[must_use]
    pub fn of_read(self) -> ClientError {
        match self {
            ClientError::Broken { endpoint, cause, read: _ } => {
                ClientError::Broken { endpoint, cause, read: true }
            }
            ClientError::TimedOut { endpoint, after, read: _ } => {
                ClientError::TimedOut { endpoint, after, read: true }
            }
            ClientError::NoEndpoints
            | ClientError::BadEndpoint { .. }
            | ClientError::Unreachable { .. }
            | ClientError::Refused { .. } => self,
        }
    }

    /// What happened, without what to do about it: its first line.
    #[must_use]
    pub fn what(&self) -> String {
        self.to_string().lines().next().unwrap_or_default().to_owned()
    }

    /// What is known about a write that failed like this.
    #[must_use]
    pub fn certainty(&self) -> Certainty {
        match self {
            ClientError::NoEndpoints | ClientError::BadEndpoint { .. } | ClientError::Unreachable { .. } => {
                Certainty::NotDone
            }
            ClientError::Broken { .. } | ClientError::TimedOut { .. } => Certainty::Unknown,
            ClientError::Refused { status, .. } => refused_certainty(status.code()),
        }
    }

    /// True where another endpoint, or the same one a little later, may answer a read.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            ClientError::NoEndpoints | ClientError::BadEndpoint { .. } => false,
            ClientError::Unreachable { .. } | ClientError::Broken { .. } | ClientError::TimedOut { .. } => {
                true
            }
            ClientError::Refused { status, .. } => matches!(
                status.code(),
                Code::Unavailable
                    | Code::DeadlineExceeded
                    | Code::Aborted
                    | Code::Cancelled
                    | Code::ResourceExhausted
            ),
        }
    }

    /// The server's own answer, where there was one.
    #[must_use]
    pub fn status(&self) -> Option<&Status> {
        match self {
            ClientError::Refused { status, .. } => Some(status),
            ClientError::NoEndpoints
            | ClientError::BadEndpoint { .. }
            | ClientError::Unreachable { .. }
            | ClientError::Broken { .. }
            | ClientError::TimedOut { .. } => None,
        }
    }
}

/// Of a generated client whose connection ended before it had the request.
const NOT_READY: &str = "Service was not ready: ";

/// A server that stops names the last stream that it has taken, and no failure: all later ones were not looked at
/// (RFC 9113, 6.8). Those that it has taken end in another way if they do.
fn was_not_taken(error: &h2::Error) -> bool {
    error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR)
}

/// A server that is about to stop closes its connections in order: what was queued here for one of them was not sent.
fn was_never_sent(error: &hyper::Error) -> bool {
    error.is_canceled()
}

/// These codes mean that the request was looked at and turned down; the others also stand for "gave up waiting".
fn refused_certainty(code: Code) -> Certainty {
    match code {
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented => Certainty::NotDone,
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => Certainty::Unknown,
    }
}

fn list(tried: &[(String, String)]) -> String {
    let parts: Vec<String> = tried.iter().map(|(endpoint, cause)| format!("{endpoint} ({cause})")).collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_over_the_wire_is_a_refusal_with_its_exact_words() {
        let error = ClientError::from_status("a:1", Status::unavailable("etcdserver: no leader"));
        assert_eq!(error.status().map(Status::message), Some("etcdserver: no leader"));
        assert_eq!(error.certainty(), Certainty::Unknown);
        assert!(error.is_passing());
    }

    #[test]
    fn only_a_failed_connect_is_surely_not_sent() {
        let refused = ConnectError("tcp connect error".into());
        let error = ClientError::from_status("a:1", Status::from_error(Box::new(refused)));
        assert!(matches!(&error, ClientError::Unreachable { tried } if tried.len() == 1), "{error:?}");
        assert_eq!(error.certainty(), Certainty::NotDone);

        let reset = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        let error = ClientError::from_status("a:1", Status::from_error(Box::new(reset)));
        assert!(matches!(error, ClientError::Broken { .. }), "{error:?}");
        assert_eq!(error.certainty(), Certainty::Unknown);
    }

    #[test]
    fn a_read_without_an_answer_is_never_said_to_have_changed_anything() {
        let after = Duration::from_secs(1);
        let errors = [
            ClientError::TimedOut { endpoint: "a:1".to_owned(), after, read: false },
            ClientError::Broken { endpoint: "a:1".to_owned(), cause: "reset".to_owned(), read: false },
        ];
        for error in errors {
            assert!(error.to_string().contains("may have been carried out"), "{error}");
            let (what, of_read) = (error.what(), error.of_read());
            assert_eq!(of_read.what(), what);
            assert!(of_read.to_string().contains("nothing was changed"), "{of_read}");
        }
    }

    #[test]
    fn a_request_that_was_turned_down_was_not_carried_out_and_is_not_tried_elsewhere() {
        let error =
            ClientError::from_status("a:1", Status::invalid_argument("etcdserver: key is not provided"));
        assert_eq!(error.certainty(), Certainty::NotDone);
        assert!(!error.is_passing());
    }

    #[test]
    fn a_connection_that_ended_before_it_had_the_request_is_a_sure_no() {
        let error =
            ClientError::from_status("a:1", Status::unknown("Service was not ready: transport error"));
        assert_eq!(error.certainty(), Certainty::NotDone);
        let error = ClientError::from_status("a:1", Status::unknown("anything else"));
        assert_eq!(error.certainty(), Certainty::Unknown);
    }

    /// What a client makes of a server that answers its first request with this frame.
    async fn answered_by(frame: &'static [u8]) -> ClientError {
        use crate::client::Link;
        use crate::proto::etcdserverpb::{PutRequest, kv_client::KvClient};
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"\0\0\0\x04\0\0\0\0\0").await.unwrap();
            let (mut read, mut buffer) = (Vec::new(), [0; 1024]);
            while !read.windows(3).any(|window| window == b"\x12\x01x") {
                let count = stream.read(&mut buffer).await.unwrap();
                assert_ne!(count, 0, "no request came");
                read.extend_from_slice(&buffer[..count]);
            }
            stream.write_all(frame).await.unwrap();
            drop(stream);
        });
        let link = Link::new(&endpoint, std::time::Duration::from_secs(5)).unwrap();
        let put = PutRequest { key: "k".into(), value: "x".into(), ..PutRequest::default() };
        let status = KvClient::new(link.channel()).put(put).await.unwrap_err();
        server.await.unwrap();
        ClientError::from_status(&endpoint, status)
    }

    #[tokio::test]
    async fn what_a_stopping_server_has_not_taken_was_not_done_and_what_it_has_may_have_been() {
        // Of type 7: the last stream that was taken, and the reason.
        let none = answered_by(b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\0").await;
        assert_eq!(none.certainty(), Certainty::NotDone, "{none}");
        let the_first = answered_by(b"\0\0\x08\x07\0\0\0\0\0\0\0\0\x01\0\0\0\0").await;
        assert_eq!(the_first.certainty(), Certainty::Unknown, "{the_first}");
        let failed = answered_by(b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x02").await;
        assert_eq!(failed.certainty(), Certainty::Unknown, "{failed}");
    }
}
