//! The kill itself, step by step: the order is given, its victims are seen gone, the others settle. A step that fails does
//! not end the kill: once a signal may have been sent, what the load saw is evidence, and must be judged.

use std::time::Duration;

use crate::client::probe::Probe;
use crate::clock;
use crate::supervisor::events::{self, Event};
use crate::supervisor::os;
use crate::supervisor::wire::{OutcomeKind, Reply, Request};

use super::super::context::{Context, POLL_INTERVAL, ask, names, other_version};
use super::super::exit::{Exit, Failure};
use super::super::survey::{self, Survey};
use super::super::wait::say;
use super::super::waiting::{self, Waiting};
use super::victims::{Intent, SUPERVISOR, Victim};
use super::{Kill, Stage, signals};

/// How long the processes may take to end, and the others to agree on a leader.
const KILL_PATIENCE: Duration = Duration::from_secs(15);
/// A process that has not ended this long after its signal is worth a word.
const WORTH_A_WORD: Duration = Duration::from_secs(2);
/// How long victims are looked for after an order of which nobody knows whether it was carried out.
const DOUBT: Duration = Duration::from_secs(1);
/// Nobody leading is a matter of milliseconds, unless it will not pass by itself; that is looked into after this long.
const PASSING: Duration = Duration::from_secs(2);

/// What became of it.
#[derive(Debug)]
pub(super) struct Struck {
    /// The cluster afterwards; `None` where it could not be looked at.
    pub after: Option<Survey>,
    /// What did not go as it should have.
    pub failure: Option<Failure>,
    /// Why nobody leads and nobody will.
    pub waiting: Option<Waiting>,
}

/// One kill.
pub(super) struct Strike<'a> {
    pub verb: &'a Kill,
    pub context: &'a Context,
    /// No in-sync node need be left: the operator knows.
    pub even_last: bool,
    pub stage: &'a Stage,
}

impl Strike<'_> {
    /// Kills. Whoever was not struck is no victim any more afterwards.
    ///
    /// # Errors
    /// Why nobody was struck.
    pub async fn carry_out(
        &self,
        intent: &mut Intent,
        command: Event,
        probe: Option<&Probe>,
    ) -> Result<Struck, Failure> {
        let mut failure = self.order(intent, command, probe).await?;
        self.stage.set("waiting until they have ended");
        let gone = match self.gone(intent).await {
            Ok(gone) => gone,
            Err(late) => {
                failure = failure.or(Some(late));
                false
            }
        };
        if gone && let Some(probe) = probe {
            probe.mark_seen();
        }
        self.stage.set("waiting until the others agree on a leader");
        let (after, waiting) = match self.settle(intent, gone).await {
            Ok((after, waiting)) => (Some(after), waiting),
            Err(unread) => {
                failure = failure.or(Some(unread));
                (None, None)
            }
        };
        Ok(Struck { after, failure, waiting })
    }

    /// Nodes through the supervisor, which then leaves them down; where it is dead a new one takes over first. The
    /// supervisor itself directly. Answers with what of it failed.
    async fn order(
        &self,
        intent: &mut Intent,
        command: Event,
        probe: Option<&Probe>,
    ) -> Result<Option<Failure>, Failure> {
        let mark = || probe.into_iter().for_each(Probe::mark_ordered);
        let signal = self.verb.signal as i32;
        if intent.is_supervisor() {
            // One that is frozen or cannot be reached is one to kill all the same.
            let mut supervisor = self.context.supervisor().await.ok().flatten();
            self.context.note(supervisor.as_mut(), command).await;
            mark();
            let Some(handle) = intent.handles.first() else { return Ok(None) };
            return match handle.signal(signal) {
                Ok(_) => Ok(None),
                Err(error) => {
                    let message =
                        format!("cannot signal pid {}: {error}\ncheck that you are its user", handle.id.pid);
                    Err(Failure::new(Exit::Failed, message))
                }
            };
        }
        let mut supervisor = self.context.ensure_supervisor().await?;
        self.context.note(Some(&mut supervisor), command).await;
        let only = intent.handles.iter().map(|handle| handle.id.pid).collect();
        let (nodes, fault) = (names(&intent.nodes()), events::new_id());
        let request = Request::Kill { nodes, signal, fault, only, even_last: self.even_last };
        mark();
        let failure = match ask(&mut supervisor, &request).await {
            Ok(Reply::Outcomes { outcomes }) => {
                let struck: Vec<bool> = outcomes
                    .iter()
                    .map(|outcome| match outcome.result {
                        OutcomeKind::Accepted => true,
                        OutcomeKind::Already | OutcomeKind::Denied { .. } => false,
                    })
                    .collect();
                let denied = outcomes.iter().find_map(|outcome| match &outcome.result {
                    OutcomeKind::Denied { reason } => Some(Failure::new(
                        Exit::Failed,
                        format!("{}: {reason}\nsee how it stands with `replcluster status`", outcome.node),
                    )),
                    OutcomeKind::Accepted | OutcomeKind::Already => None,
                });
                intent.retain(&struck);
                denied
            }
            Ok(Reply::Snapshot { .. } | Reply::Done | Reply::Refused { .. }) => return Err(other_version()),
            Err(refused) if refused.exit == Exit::Conflict => return Err(refused),
            // The supervisor went away or is stuck. It may have sent the signal before that.
            Err(unanswered) => {
                let ended = self.ended_within(intent, DOUBT).await;
                intent.retain(&ended);
                Some(unanswered)
            }
        };
        match failure {
            Some(failure) if intent.victims.is_empty() => Err(failure),
            failure => Ok(failure),
        }
    }

    /// Which of the victims end meanwhile.
    async fn ended_within(&self, intent: &Intent, patience: Duration) -> Vec<bool> {
        let deadline = clock::now() + patience;
        loop {
            let ended: Vec<bool> = intent.handles.iter().map(|handle| !os::is_alive(&handle.id)).collect();
            if ended.iter().all(|ended| *ended) || clock::now() >= deadline {
                return ended;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Waits until all victims have ended; `false` where the user does not want to.
    async fn gone(&self, intent: &Intent) -> Result<bool, Failure> {
        let signal = self.verb.signal;
        let begun = clock::now();
        let again = signals::sent_again_after(signal);
        let mut again_at = again.map(|after| begun + after);
        let mut word_at = (!signals::is_graceful(signal)).then_some(begun + WORTH_A_WORD);
        loop {
            let left = intent.handles.iter().position(|handle| os::is_alive(&handle.id));
            let Some(left) = left else { return Ok(true) };
            let now = clock::now();
            if self.context.interrupt.is_cancelled() {
                return Ok(false);
            }
            // Again and again: two of a kind that meet before the process takes one are one.
            if again_at.is_some_and(|at| at <= now) {
                again_at = again.map(|after| now + after);
                for handle in intent.signalled() {
                    // One that has ended meanwhile needs none.
                    let _ = handle.signal(signal as i32);
                }
            }
            if word_at.take_if(|at| *at <= now).is_some() {
                say(&format!(
                    "{} got {signal} and has not ended yet; Ctrl-C stops waiting",
                    intent.victims[left]
                ));
            }
            if now >= begun + KILL_PATIENCE {
                return Err(self.stays(intent, left));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn stays(&self, intent: &Intent, left: usize) -> Failure {
        let victim = &intent.victims[left];
        let late = |name: &str| {
            let message = format!(
                "{victim} got {} and has not ended\nend it with `replcluster kill {name}`",
                self.verb.signal
            );
            Failure::new(Exit::TimedOut, message)
        };
        match victim {
            Victim::Node { node, .. } => late(node.as_str()).with_node_log(&self.context.layout, node),
            Victim::Supervisor { .. } => late(SUPERVISOR).with_log(self.context.layout.supervisor_log()),
        }
    }

    /// Looks until the survivors have settled, or will not by themselves. While a victim lives there is nothing to settle.
    async fn settle(&self, intent: &Intent, gone: bool) -> Result<(Survey, Option<Waiting>), Failure> {
        let begun = clock::now();
        loop {
            let survey = survey::survey(self.context).await?;
            let waited = begun.elapsed();
            if !gone || waited >= KILL_PATIENCE || settled(&survey, intent) {
                let waiting =
                    waiting::waiting(self.context, &survey).filter(|_| !intent.survivors.is_empty());
                return Ok((survey, waiting));
            }
            if self.context.interrupt.is_cancelled() {
                return Ok((survey, None));
            }
            if waited >= PASSING
                && let Some(waiting) = waiting::waiting(self.context, &survey)
            {
                return Ok((survey, Some(waiting)));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

/// The survivors that were in sync agree on a leader among them that serves; or nobody is left.
fn settled(survey: &Survey, intent: &Intent) -> bool {
    if intent.survivors.is_empty() {
        return true;
    }
    let Some(leader) = survey.sum.confirmed_leader() else { return false };
    let victims = intent.nodes();
    intent.survivors.contains(leader)
        && !victims.iter().any(|victim| survey.sum.in_sync.contains(victim))
        && survey
            .nodes
            .iter()
            .filter(|one| survey.sum.in_sync.contains(&one.node))
            .all(|one| one.answer.as_ref().is_some_and(|answer| answer.leader == leader.as_str()))
}
