//! What must be true in every state: the sentences of `invariants`, looked up in the model's own world.

use stateright::Property;

use super::super::invariants::{Claim, Violation};
use super::super::text;
use super::Setup;
use super::world::{Attempt, World};
use crate::protocol::testing::spread::letter;
use crate::protocol::{Node, Role};
use crate::view::{Epoch, Index, NodeId, View};

fn check(holds: bool, claim: Claim, detail: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation::new(claim, detail())) }
}

/// One property for each sentence: nothing in a state breaks it.
macro_rules! always {
    ($($claim:ident),* $(,)?) => {
        vec![$(Property::always(Claim::$claim.sentence(), |_, world: &World| world.keeps(Claim::$claim))),*]
    };
}

/// The claims that this model can see broken.
pub fn always() -> Vec<Property<Setup>> {
    always![
        AcknowledgedIsOnEveryCountedDisk,
        EveryoneAppliesTheSame,
        OnlyALeaderCommitsFirst,
        CommitNeverGoesBack,
        OneLeaderAnEpoch,
        LeaderHoldsWhatWasAcknowledged,
        ServesOnlyWithAllCommitted,
        WaitsForWhomeverMayBeElected,
        EpochsGrowByOne,
        SetHoldsItsLeader,
        PromiseIsOnDiskBeforeTheSwap,
        OnlyTheSetElects,
        OnlyTheLeaderGrows,
        DampedStaysOut,
        NothingIsPutOnAnOldRegister,
        EffectsFitTheLog,
        DurableMeansOnDisk,
        NobodyStopsUnasked,
        NoPanic,
    ]
}

/// A leader asks for this view (R36).
pub(super) fn check_damped(node: &Node, next: &View) -> Result<(), Violation> {
    let (Role::Leader(leader), Some(view)) = (node.role(), node.view()) else { return Ok(()) };
    let joins = next.in_sync.keys().filter(|id| !view.in_sync.contains_key(*id));
    let damped = |id: &&NodeId| leader.strikes.get(*id).is_some_and(|strikes| !strikes.are_over(node.now));
    match joins.clone().find(damped) {
        Some(id) => Err(Violation::new(Claim::DampedStaysOut, format!("{id} joins by {}", text::view(next)))),
        None => Ok(()),
    }
}

impl World {
    fn keeps(&self, claim: Claim) -> bool {
        self.violation.as_ref().is_none_or(|violation| violation.claim != claim)
    }

    /// A node was told that it may apply up to `to`.
    pub(super) fn committed(&mut self, at: usize, to: Index) -> Result<(), Violation> {
        let known = self.truth.len();
        let place = self.place(at);
        let Some(process) = &mut place.process else { return Ok(()) };
        let (from, name) = (process.announced, letter(at));
        check(to > from, Claim::CommitNeverGoesBack, || format!("{name} from {from} to {to}"))?;
        let held = place.disk.log.len();
        check(to.0 <= held as u64, Claim::DurableMeansOnDisk, || {
            format!("{name} applies {to} and has {held} on disk")
        })?;
        process.announced = to;
        place.disk.applied = place.disk.applied.max(to);
        let leads = matches!(process.node.role(), Role::Leader(_));
        let applied = process.log[from.0 as usize..to.0 as usize].to_vec();
        for (at, entry) in applied.into_iter().enumerate().map(|(n, entry)| (from.0 as usize + n, entry)) {
            if let Some(agreed) = self.truth.get(at) {
                check(*agreed == entry, Claim::EveryoneAppliesTheSame, || {
                    format!("{name} applies {entry:?} at {}, others {agreed:?}", at + 1)
                })?;
            } else {
                check(leads, Claim::OnlyALeaderCommitsFirst, || {
                    format!("{name} applies {entry:?} at {}", at + 1)
                })?;
                self.truth.push(entry);
            }
        }
        if self.truth.len() > known {
            let epoch = self.register.newest.as_ref().map_or(Epoch(0), |view| view.epoch);
            for place in 0..self.places.len() {
                if self.process(place).is_some_and(|process| process.node.epoch() == epoch) {
                    self.check_leader_holds(place, self.truth.len())?;
                }
            }
        }
        Ok(())
    }

    /// After every action: the disks, and whom leaders wait for.
    pub(super) fn check_all(&self) -> Result<(), Violation> {
        let Some(view) = &self.register.newest else { return Ok(()) };
        for node in view.in_sync.keys() {
            let at = self.place_of(node);
            let held = &self.places[at].disk.log;
            check(held.starts_with(&self.truth), Claim::AcknowledgedIsOnEveryCountedDisk, || {
                format!("{} has {held:?} on disk, acknowledged is {:?}", letter(at), self.truth)
            })?;
        }
        (0..self.places.len()).try_for_each(|at| self.check_waits(at))
    }

    /// Entries up to `to`, counted from one, where this node leads.
    fn check_leader_holds(&self, at: usize, to: usize) -> Result<(), Violation> {
        let Some(process) = self.process(at) else { return Ok(()) };
        let holds = !matches!(process.node.role(), Role::Leader(_))
            || process.log.get(..to).is_some_and(|log| log == &self.truth[..to]);
        check(holds, Claim::LeaderHoldsWhatWasAcknowledged, || {
            format!("{} leads with {:?}, acknowledged is {:?}", letter(at), process.log, self.truth)
        })
    }

    /// The register is about to take this view.
    pub(super) fn check_swap(&self, attempt: &Attempt) -> Result<(), Violation> {
        if self.only_consequences {
            return Ok(());
        }
        let next = &attempt.view;
        let say = || format!("{} swaps in {}", letter(attempt.caller), text::view(next));
        let place = &self.places[attempt.caller];
        let counted = next.in_sync.contains_key(&next.leader) && next.leader == place.id;
        check(counted, Claim::SetHoldsItsLeader, say)?;
        if let Some(stands) = &self.register.newest {
            let follows = stands.cluster == next.cluster && stands.epoch.next() == next.epoch;
            check(follows, Claim::EpochsGrowByOne, say)?;
            let elects = stands.in_sync.get(&place.id) == Some(&attempt.incarnation);
            check(elects, Claim::OnlyTheSetElects, say)?;
            let grows = next.in_sync.iter().any(|(node, inc)| stands.in_sync.get(node) != Some(inc));
            let may = attempt.by_leader && stands.leader == place.id;
            check(!grows || may, Claim::OnlyTheLeaderGrows, say)?;
            check(next.floor >= stands.floor, Claim::EpochsGrowByOne, say)?;
            let led_since = if attempt.by_leader { stands.led_since } else { next.epoch };
            check(next.led_since == led_since, Claim::EpochsGrowByOne, say)?;
        }
        let promised = place.disk.promised;
        let kept = attempt.by_leader || promised >= next.epoch;
        check(kept, Claim::PromiseIsOnDiskBeforeTheSwap, || format!("{} and has promised {promised}", say()))
    }

    /// R3: as long as the register holds this leader's view, or one that this leader has sent.
    fn check_waits(&self, at: usize) -> Result<(), Violation> {
        let (Some(process), Some(view)) = (self.process(at), &self.register.newest) else { return Ok(()) };
        let ours = view.leader == self.places[at].id;
        let epoch = process.node.epoch();
        let leads = matches!(process.node.role(), Role::Leader(_));
        if !leads || !ours || view.epoch > epoch.next() || self.only_consequences {
            return Ok(());
        }
        let superset = view
            .in_sync
            .iter()
            .all(|(node, inc)| process.node.waited_for().any(|(id, waited)| id == node && waited == inc));
        check(superset, Claim::WaitsForWhomeverMayBeElected, || {
            let waited: Vec<_> = process.node.waited_for().collect();
            format!("{} waits for {waited:?}, the register has {}", letter(at), text::view(view))
        })
    }

    /// A node has taken a step.
    pub(super) fn check_node(&mut self, at: usize, was_serving: bool) -> Result<(), Violation> {
        let Some(process) = self.process(at) else { return Ok(()) };
        let (last, epoch) = (process.node.log().last(), process.node.epoch());
        let written = process.log.last().map_or(Epoch(0), |entry| entry.0);
        let fits =
            last.index.0 == process.log.len() as u64 && (last.index == Index(0) || last.epoch == written);
        check(fits, Claim::EffectsFitTheLog, || {
            format!("{} believes in {last:?}, has {:?}", letter(at), process.log)
        })?;
        let (durable, on_disk) = (process.node.log().durable(), self.places[at].disk.log.len());
        check(durable.0 <= on_disk as u64, Claim::DurableMeansOnDisk, || {
            format!("{} has {on_disk} entries on disk, not {durable}", letter(at))
        })?;
        if !matches!(process.node.role(), Role::Leader(_)) {
            return Ok(());
        }
        let (session, announced) = (self.places[at].session, process.announced);
        let serves_now = process.node.is_serving() && !was_serving;
        match self.leaders.iter().find(|(led, _, _)| *led == epoch) {
            Some(&(_, place, by)) => check((place, by) == (at, session), Claim::OneLeaderAnEpoch, || {
                format!("epoch {epoch}: {}#{by} and {}#{session}", letter(place), letter(at))
            })?,
            None => {
                self.leaders.push((epoch, at, session));
                // What was acknowledged after its view stood may be news to a leader that hears of its luck late.
                let before = self.acknowledged.iter().find(|(of, _)| *of == epoch);
                self.check_leader_holds(at, before.map_or(0, |(_, acknowledged)| *acknowledged))?;
            }
        }
        let newest = self.register.newest.as_ref().is_some_and(|view| view.epoch == epoch);
        check(
            !serves_now || !newest || announced.0 == self.truth.len() as u64,
            Claim::ServesOnlyWithAllCommitted,
            || format!("{} serves at {announced}, {} are acknowledged", letter(at), self.truth.len()),
        )
    }
}
