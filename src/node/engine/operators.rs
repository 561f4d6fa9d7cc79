//! Commands of operators, and a graceful end.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Engine;
use crate::node::Ended;
use crate::node::handle::{CommandError, Unavailable};
use crate::node::hands::Hands;
use crate::node::link::item;
use crate::proto::replcluster::{Command, command, frame::Body};
use crate::protocol::{Input, Role};
use crate::view::{Epoch, NodeId};

/// How often a wish is repeated to whoever leads.
const ADMIN_RETRY: Duration = Duration::from_millis(100);

/// An operator's wish, kept until the view shows that it came true.
pub(super) struct Admin {
    wish: Wish,
    deadline: Instant,
    asked_at: Option<Instant>,
    answer: oneshot::Sender<Result<Epoch, CommandError>>,
}

pub(super) enum Wish {
    Remove(NodeId),
    MoveLeader(NodeId),
}

impl<H: Hands> Engine<H> {
    // --- operators ---

    pub(super) fn wish(
        &mut self,
        wish: Wish,
        deadline: Instant,
        answer: oneshot::Sender<Result<Epoch, CommandError>>,
    ) {
        let refusal = match (&wish, self.node.view()) {
            (_, None) => Some(CommandError::Unavailable(Unavailable::NoLeader)),
            (Wish::Remove(node) | Wish::MoveLeader(node), Some(view)) if !view.members.contains_key(node) => {
                Some(CommandError::UnknownMember(node.to_string()))
            }
            (Wish::Remove(_), Some(view)) if view.members.len() == 1 => Some(CommandError::Refused(
                "it is the last node of the cluster; `replcluster down --purge` ends a cluster".to_owned(),
            )),
            (Wish::Remove(node), Some(view))
                if view.in_sync.len() == 1 && view.in_sync.contains_key(node) =>
            {
                Some(CommandError::Refused(format!(
                    "{node} holds the only in-sync copy; wait until another is in sync"
                )))
            }
            (Wish::MoveLeader(node), Some(view)) if !view.in_sync.contains_key(node) => {
                Some(CommandError::Refused(format!("{node} is not in sync")))
            }
            (Wish::Remove(_) | Wish::MoveLeader(_), Some(_)) => None,
        };
        match refusal {
            Some(refusal) => drop(answer.send(Err(refusal))),
            None => {
                self.admin.push(Admin { wish, deadline, asked_at: None, answer });
                self.pursue_wishes();
            }
        }
    }

    /// Asks whoever leads again and again until the view shows that it is done.
    pub(super) fn pursue_wishes(&mut self) {
        let now = self.now;
        for mut admin in std::mem::take(&mut self.admin) {
            let Some(view) = self.node.view().cloned() else { continue };
            let done = match &admin.wish {
                Wish::Remove(node) => !view.members.contains_key(node),
                Wish::MoveLeader(node) => view.leader == *node && self.leadership_is_open(),
            };
            if done {
                let _ = admin.answer.send(Ok(view.epoch));
                continue;
            }
            if now >= admin.deadline {
                let _ = admin.answer.send(Err(Unavailable::TimedOut.into()));
                continue;
            }
            if admin.asked_at.is_none_or(|at| now.duration_since(at) >= ADMIN_RETRY) {
                admin.asked_at = Some(now);
                let what = match &admin.wish {
                    Wish::Remove(node) => command::What::Remove(node.to_string()),
                    Wish::MoveLeader(node) => command::What::MoveLeader(node.to_string()),
                };
                let command = Command { question: 0, what: Some(what) };
                if matches!(self.node.role(), Role::Leader(_)) {
                    self.command(command);
                } else {
                    let epoch = self.node.epoch();
                    self.queue(&view.leader, item(epoch, Body::Command(command)));
                }
            }
            self.admin.push(admin);
        }
    }

    pub(super) fn command(&mut self, command: Command) {
        if !matches!(self.node.role(), Role::Leader(_)) {
            return;
        }
        match command.what {
            Some(command::What::Remove(node)) => match NodeId::parse(&node) {
                Ok(node) if node == self.shared.address => self.move_leadership_away(),
                Ok(node) => self.step(Input::Remove(node)),
                Err(error) => tracing::warn!("remove: {error}"),
            },
            Some(command::What::MoveLeader(node)) => match NodeId::parse(&node) {
                Ok(node) if node == self.shared.address => {}
                Ok(node) => self.step(Input::MoveLeader(node)),
                Err(error) => tracing::warn!("move leader: {error}"),
            },
            None => {}
        }
    }

    /// To the lowest other in-sync node.
    fn move_leadership_away(&mut self) {
        let target = self
            .node
            .view()
            .and_then(|view| view.in_sync.keys().find(|node| **node != self.shared.address).cloned());
        if let Some(target) = target {
            self.step(Input::MoveLeader(target));
        }
    }

    // --- stopping ---

    fn must_hand_over(&self) -> bool {
        matches!(self.node.role(), Role::Leader(_))
            && self.node.view().is_some_and(|view| view.in_sync.len() > 1)
    }

    pub(super) fn begin_stop(&mut self) {
        if self.stopping.is_some() {
            return;
        }
        self.stopping = Some(self.now + 2 * self.options.failure_timeout);
        if self.must_hand_over() {
            tracing::info!("stopping: handing leadership over first");
            self.move_leadership_away();
        }
    }

    pub(super) fn stop_when_handed_over(&mut self) {
        if let Some(deadline) = self.stopping
            && (self.now >= deadline || !self.must_hand_over())
        {
            self.ended.get_or_insert(Ended::Stopped);
        }
    }
}
