//! The control socket's side of the loop: takes connections, and turns each line into a message and its answer.

use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};

use super::super::socket::{self, Conversation};
use super::super::wire::Request;
use super::Message;

/// Takes connections until the supervisor ends.
pub(super) async fn accept(listener: UnixListener, inbox: mpsc::Sender<Message>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) if socket::is_trusted(&stream) => {
                // Ends when the other side hangs up, and with the runtime at the latest.
                tokio::spawn(converse(Conversation::new(stream), inbox.clone()));
            }
            Ok(_) => tracing::warn!("a process of another user tried to use the control socket"),
            // Out of descriptors: it will be some time until those that talk now free theirs.
            Err(error) => {
                tracing::warn!(%error, "cannot take a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn converse(mut conversation: Conversation, inbox: mpsc::Sender<Message>) {
    let mut unconfirmed = Unconfirmed { fault: None, inbox: inbox.clone() };
    while let Ok(Some(request)) = conversation.receive::<Request>().await {
        match &request {
            Request::Pause { fault, .. } => unconfirmed.fault = Some(fault.clone()),
            Request::Hold { fault } if unconfirmed.fault.as_ref() == Some(fault) => unconfirmed.fault = None,
            Request::Hold { .. }
            | Request::Forsake { .. }
            | Request::Snapshot
            | Request::Start { .. }
            | Request::Stop { .. }
            | Request::Restart { .. }
            | Request::Kill { .. }
            | Request::Resume { .. }
            | Request::Reload
            | Request::Forget { .. }
            | Request::Note { .. }
            | Request::Quit => {}
        }
        let (reply, answer) = oneshot::channel();
        if inbox.send(Message::Asked { request, reply }).await.is_err() {
            return;
        }
        let Ok(answer) = answer.await else { return };
        if conversation.send(&answer).await.is_err() {
            return;
        }
    }
}

/// An order whose giver has not said yet that they know of it. It is forsaken when they hang up.
struct Unconfirmed {
    fault: Option<String>,
    inbox: mpsc::Sender<Message>,
}

impl Drop for Unconfirmed {
    fn drop(&mut self) {
        let Some(fault) = self.fault.take() else { return };
        let inbox = self.inbox.clone();
        // Ends when the loop takes it, and with the runtime at the latest.
        tokio::spawn(async move {
            let _ = inbox.send(Message::Forsaken { fault }).await;
        });
    }
}
