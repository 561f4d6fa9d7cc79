//! The feature level of the log (R37): what an entry may ask of every node. It stands in the state, grows by an entry,
//! and is raised by the leader once every member is known to have it. Nothing that an older build would carry out in
//! another way, or not at all, is ordered before.
//!
//! | level | since |
//! |---|---|
//! | 0 | transactions nest as deep as the old decoder reads; a request costs what it costs |
//! | 1 | transactions nest by etcd's rule of operations; a request that costs too much is the same refusal everywhere |
//!
//! A member's level comes with its greeting. It is forgotten when its process is proved dead, since the next one at that
//! address may be an older build.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Engine;
use crate::node::admission::Admitted;
use crate::node::event::Outcome;
use crate::node::hands::Hands;
use crate::node::registrar::Ask;
use crate::proto::replcluster::{FeatureLevel, Mutation, mutation};
use crate::protocol::Input;
use crate::rules::{Rule, breaks};
use crate::view::NodeId;

/// The level of this build.
pub const FEATURE_LEVEL: u32 = 1;
/// After so long without an answer the level is raised again.
const RAISE_MAX: Duration = Duration::from_secs(5);
/// Who greeted us no longer ago may be joining.
const JOINING: Duration = Duration::from_secs(10);
/// How often it is looked whether what comes with the level is there.
const ENSURE_EVERY: Duration = Duration::from_secs(30);

/// What is known of the levels of other members.
#[derive(Default)]
pub(super) struct Levels {
    /// By address: the session that said so, its level, and when.
    known: BTreeMap<NodeId, (u64, u32, Instant)>,
    /// The entry that raises the level, on its way into the log.
    raising: Option<oneshot::Receiver<Outcome>>,
    /// When the register was last asked for what comes with the level.
    ensured_at: Option<Instant>,
}

impl Levels {
    /// Another leadership has begun: its leader judges by what it knows itself.
    pub(super) fn forget_raising(&mut self) {
        self.raising = None;
    }

    /// A process has greeted us.
    pub(super) fn greeted(&mut self, node: NodeId, session: u64, level: u32, now: Instant) {
        self.known.insert(node, (session, level, now));
    }

    /// A process of this node is dead; without a session, all are.
    pub(super) fn died(&mut self, node: &NodeId, session: Option<u64>) {
        if let Some((known, ..)) = self.known.get(node)
            && session.is_none_or(|session| session == *known)
        {
            self.known.remove(node);
        }
    }

    /// The lowest level among the members, 0 while one is not known, and among those that have just come to join them.
    fn lowest<'m>(
        &self,
        own: (&NodeId, u32),
        members: impl Iterator<Item = &'m NodeId>,
        now: Instant,
    ) -> u32 {
        let of = |node: &NodeId| {
            if node == own.0 { own.1 } else { self.known.get(node).map_or(0, |(_, level, _)| *level) }
        };
        let joining = self.known.values().filter(|(.., at)| now.duration_since(*at) < JOINING);
        members.map(of).chain(joining.map(|(_, level, _)| *level)).min().unwrap_or(0)
    }

    /// True while an entry that raises the level may still come.
    fn is_raising(&mut self) -> bool {
        let open = self
            .raising
            .as_mut()
            .is_some_and(|answer| matches!(answer.try_recv(), Err(oneshot::error::TryRecvError::Empty)));
        if !open {
            self.raising = None;
        }
        open
    }
}

impl<H: Hands> Engine<H> {
    /// The leader orders the level that every member has, once nothing before it waits to be applied.
    pub(super) fn raise_level(&mut self) {
        if !self.node.can_propose() || !self.leadership_is_open() || self.levels.is_raising() {
            return;
        }
        let Some(view) = self.node.view() else { return };
        let own = (&self.shared.address, self.options.feature_level);
        let all = if breaks(Rule::RaiseTogether) {
            own.1
        } else {
            self.levels.lowest(own, view.members.keys(), self.now)
        };
        if all <= self.shared.feature_level.load(Ordering::Acquire) {
            return;
        }
        tracing::info!("every member knows feature level {all}: raising the level of the log");
        let request = mutation::Request::FeatureLevel(FeatureLevel { level: all });
        let mutation = Admitted::made_here(&Mutation { request: Some(request) });
        let (answer, outcome) = oneshot::channel();
        self.requests.arrive(mutation, self.now + RAISE_MAX, answer);
        self.levels.raising = Some(outcome);
    }

    /// What comes with the level is made as soon as the state has reached it, and looked after now and then: the disk may
    /// have been full.
    pub(super) fn ensure_secret(&mut self) {
        let since = self.levels.ensured_at.map(|at| self.now.duration_since(at));
        let due = since.is_none_or(|since| since >= ENSURE_EVERY);
        if due && self.shared.feature_level.load(Ordering::Acquire) > 0 {
            self.levels.ensured_at = Some(self.now);
            self.hands.ask(Ask::EnsureSecret);
            // Every member reads a view that names the one before it (R11).
            self.step(Input::ChainViews);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::parse(&format!("{name}:1")).unwrap()
    }

    #[test]
    fn a_member_that_is_not_known_holds_the_level_down() {
        let (a, b, c) = (node("a"), node("b"), node("c"));
        let now = Instant::now();
        let mut levels = Levels::default();
        let members = [a.clone(), b.clone(), c.clone()];
        let lowest = |levels: &Levels, own, now| levels.lowest((&a, own), members.iter(), now);
        levels.greeted(b.clone(), 7, 2, now);
        assert_eq!(lowest(&levels, 1, now), 0);
        levels.greeted(c.clone(), 8, 1, now);
        assert_eq!(lowest(&levels, 2, now), 1);
        levels.died(&c, Some(9));
        assert_eq!(lowest(&levels, 2, now), 1, "another process of it is dead");
        levels.died(&c, Some(8));
        assert_eq!(lowest(&levels, 2, now), 0);
        levels.greeted(c.clone(), 9, 2, now);
        levels.greeted(node("d"), 4, 0, now);
        assert_eq!(lowest(&levels, 2, now), 0, "an older build is about to join");
        assert_eq!(lowest(&levels, 2, now + JOINING), 2, "it has not come");
    }
}
