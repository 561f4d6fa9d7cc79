//! What must be true after every step, each as a sentence. The checks look at the world from outside: at disks, logs
//! and the register, never at what a node believes, save where the claim is about that.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::cluster::{Cluster, Disk, outline_runs};
use super::text;
use crate::protocol::Role;
use crate::view::{Epoch, Incarnation, Index, View};

/// The sentences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Claim {
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
    EffectsFitTheLog,
    DurableMeansOnDisk,
    NobodyStopsUnasked,
    NoPanic,
    OneServesAgain,
    LowestLeadsAgain,
    AllAreInSyncAgain,
    NewEntryCommits,
}

impl Claim {
    /// The claim in words.
    pub fn sentence(self) -> &'static str {
        match self {
            Claim::AcknowledgedIsOnEveryCountedDisk => {
                "what was acknowledged is on the disk of every node of the register's in-sync set"
            }
            Claim::EveryoneAppliesTheSame => "all nodes apply the same entries in the same order",
            Claim::OnlyALeaderCommitsFirst => "nobody applies what no leader has committed (R15)",
            Claim::CommitNeverGoesBack => "the commit index of a process never goes back",
            Claim::OneLeaderAnEpoch => "at most one process leads in an epoch",
            Claim::LeaderHoldsWhatWasAcknowledged => "a leader's log holds everything that was acknowledged",
            Claim::ServesOnlyWithAllCommitted => {
                "a leader that serves has committed everything that was acknowledged (R7)"
            }
            Claim::WaitsForWhomeverMayBeElected => {
                "whom a leader waits for is a superset of whom the register lets be elected (R3)"
            }
            Claim::EpochsGrowByOne => "epochs of the register grow by one, in one cluster (R1)",
            Claim::SetHoldsItsLeader => "the in-sync set is never empty and holds its leader",
            Claim::PromiseIsOnDiskBeforeTheSwap => "whoever elects itself has its promise on disk (R5)",
            Claim::OnlyTheSetElects => "only an in-sync node elects itself (R4)",
            Claim::OnlyTheLeaderGrows => "only the leader grows the set (R4)",
            Claim::EffectsFitTheLog => "effects fit the log that they are about",
            Claim::DurableMeansOnDisk => "what a node calls durable is on its disk (R20)",
            Claim::NobodyStopsUnasked => "no node stops that nobody has removed",
            Claim::NoPanic => "no legal input makes a node panic",
            Claim::OneServesAgain => "once faults end, one leader serves",
            Claim::LowestLeadsAgain => "once faults end, the lowest address leads",
            Claim::AllAreInSyncAgain => "once faults end, everyone is in sync again",
            Claim::NewEntryCommits => "once faults end, a new entry reaches everybody",
        }
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.sentence())
    }
}

/// A claim that does not hold, and where.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Violation {
    pub claim: Claim,
    pub detail: String,
}

impl Violation {
    pub fn new(claim: Claim, detail: String) -> Violation {
        Violation { claim, detail }
    }
}

/// What the checks remember.
#[derive(Debug, Default)]
pub struct Seen {
    /// Which process led which epoch.
    leaders: BTreeMap<Epoch, u64>,
    /// How much was acknowledged when an epoch came into the register.
    acknowledged: BTreeMap<Epoch, usize>,
    /// Machines whose disks a script has tampered with: what they hold is not held against anybody.
    pub(super) spoilt: BTreeSet<usize>,
    /// Leave out the claims about how a rule is followed, and see what comes of breaking it.
    pub(super) only_consequences: bool,
}

fn check(holds: bool, claim: Claim, detail: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation::new(claim, detail())) }
}

impl Cluster {
    /// A node was told that it may apply up to `to`.
    pub(super) fn committed(&mut self, machine: usize, to: Index) -> Result<(), Violation> {
        let place = &mut self.machines[machine];
        let Some(process) = &mut place.process else { return Ok(()) };
        let from = process.announced;
        let name = text::name(&place.id);
        check(to > from, Claim::CommitNeverGoesBack, || format!("{name} from {from} to {to}"))?;
        check(to.0 <= place.disk.log.len() as u64, Claim::DurableMeansOnDisk, || {
            format!("{name} applies {to} and has {} on disk", place.disk.log.len())
        })?;
        if self.seen.spoilt.contains(&machine) {
            process.announced = to;
            return Ok(());
        }
        let known = self.truth.len();
        for at in from.0 as usize..to.0 as usize {
            let entry = process.log[at];
            if let Some(agreed) = self.truth.get(at) {
                check(*agreed == entry, Claim::EveryoneAppliesTheSame, || {
                    format!("{name} applies {entry:?} at {}, others {agreed:?}", at + 1)
                })?;
            } else {
                check(
                    matches!(process.node.role(), Role::Leader(_)),
                    Claim::OnlyALeaderCommitsFirst,
                    || format!("{name} applies {entry:?} at {}", at + 1),
                )?;
                self.truth.push(entry);
            }
        }
        process.announced = to;
        place.disk.applied = place.disk.applied.max(to);
        if self.truth.len() > known { self.check_held(known) } else { Ok(()) }
    }

    /// Everything committed from `from` on is where it must be.
    fn check_held(&self, from: usize) -> Result<(), Violation> {
        let Some(view) = self.register() else { return Ok(()) };
        for (node, incarnation) in &view.in_sync {
            if self.seen.spoilt.contains(&self.machine_of(node)) {
                continue;
            }
            let disk = self.disk_of(*incarnation);
            self.check_disk_holds(disk, from, text::name(node), Claim::AcknowledgedIsOnEveryCountedDisk)?;
        }
        // Whoever leads the newest view must hold it too, though it may have been committed under an older one.
        let leader = self.machine_of(&view.leader);
        match self.process(leader) {
            Some(process)
                if matches!(process.node.role(), Role::Leader(_)) && process.node.epoch() == view.epoch =>
            {
                self.check_leader_holds(leader, from, self.truth.len())
            }
            Some(_) | None => Ok(()),
        }
    }

    fn check_disk_holds(&self, disk: &Disk, from: usize, name: &str, claim: Claim) -> Result<(), Violation> {
        let held = disk.log.len();
        check(held >= self.truth.len(), claim, || {
            format!("{name}#{} has {held} entries, {} are acknowledged", disk.incarnation.0, self.truth.len())
        })?;
        let differs = (from..self.truth.len()).find(|at| disk.log[*at] != self.truth[*at]);
        match differs {
            None => Ok(()),
            Some(at) => Err(Violation::new(
                claim,
                format!(
                    "{name}#{} has {:?} at {}, acknowledged is {:?}",
                    disk.incarnation.0,
                    disk.log[at],
                    at + 1,
                    self.truth[at]
                ),
            )),
        }
    }

    /// Entries `from..to`, counted from zero.
    fn check_leader_holds(&self, machine: usize, from: usize, to: usize) -> Result<(), Violation> {
        let Some(process) = self.process(machine) else { return Ok(()) };
        let name = self.name(machine);
        // A disk that a test has put back may take office; what it must not do is serve, which R15 notices.
        let spoilt = self.seen.spoilt.contains(&machine);
        let holds = spoilt || process.log.get(from..to) == self.truth.get(from..to);
        check(holds, Claim::LeaderHoldsWhatWasAcknowledged, || {
            format!("{name} leads with {} entries, {to} were acknowledged before", process.log.len())
        })
    }

    /// The register is about to take this view.
    pub(super) fn check_swap(
        &self,
        next: &View,
        by_leader: bool,
        caller: usize,
        incarnation: Incarnation,
    ) -> Result<(), Violation> {
        if self.seen.only_consequences {
            return Ok(());
        }
        let say = || format!("{} swaps in {}", self.name(caller), text::view(next));
        let id = &self.machines[caller].id;
        let counted = next.in_sync.contains_key(&next.leader) && next.leader == *id;
        check(counted, Claim::SetHoldsItsLeader, say)?;
        if let Some(stands) = self.register() {
            let follows = stands.cluster == next.cluster && stands.epoch.next() == next.epoch;
            check(follows, Claim::EpochsGrowByOne, say)?;
            let elects = stands.in_sync.get(id) == Some(&incarnation);
            check(elects, Claim::OnlyTheSetElects, say)?;
            let grows = next.in_sync.iter().any(|(node, inc)| stands.in_sync.get(node) != Some(inc));
            check(!grows || (by_leader && stands.leader == *id), Claim::OnlyTheLeaderGrows, say)?;
            check(next.floor >= stands.floor, Claim::EpochsGrowByOne, || {
                format!("{}: the floor sinks", say())
            })?;
            let led_since = if by_leader { stands.led_since } else { next.epoch };
            check(next.led_since == led_since, Claim::EpochsGrowByOne, || format!("{}: led since?", say()))?;
        }
        let promised = self.disk_of(incarnation).promised;
        check(by_leader || promised >= next.epoch, Claim::PromiseIsOnDiskBeforeTheSwap, || {
            format!("{} and has promised {promised}", say())
        })
    }

    /// The register has just taken a view.
    pub(super) fn check_set(&mut self) -> Result<(), Violation> {
        if let Some(view) = self.register() {
            self.seen.acknowledged.entry(view.epoch).or_insert(self.truth.len());
        }
        self.check_held(0)?;
        (0..self.machines.len()).try_for_each(|machine| self.check_waits(machine))
    }

    /// A disk has changed.
    pub(super) fn check_disk(&self, machine: usize) -> Result<(), Violation> {
        let place = &self.machines[machine];
        match self.register() {
            Some(view)
                if view.is_in_sync(&place.id, place.disk.incarnation)
                    && !self.seen.spoilt.contains(&machine) =>
            {
                let claim = Claim::AcknowledgedIsOnEveryCountedDisk;
                self.check_disk_holds(&place.disk, 0, text::name(&place.id), claim)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// A snapshot was taken for the log.
    pub(super) fn check_snapshot(&self, machine: usize) -> Result<(), Violation> {
        let Some(process) = self.process(machine) else { return Ok(()) };
        let agrees = self.truth.get(..process.log.len()) == Some(&process.log[..]);
        check(agrees, Claim::EveryoneAppliesTheSame, || {
            format!("{} takes a snapshot of other entries", self.name(machine))
        })
    }

    /// R3: as long as the register holds this leader's view, or one that this leader has sent.
    fn check_waits(&self, machine: usize) -> Result<(), Violation> {
        let (Some(process), Some(view)) = (self.process(machine), self.register()) else { return Ok(()) };
        let ours = view.leader == self.machines[machine].id
            && view.is_in_sync(&view.leader, self.machines[machine].disk.incarnation);
        let epoch = process.node.epoch();
        let leads = matches!(process.node.role(), Role::Leader(_));
        // A register that was put back to an older state is another matter (R11).
        if !leads || !ours || view.epoch > epoch.next() || view.epoch < epoch || self.seen.only_consequences {
            return Ok(());
        }
        let waited: BTreeMap<_, _> = process.node.waited_for().collect();
        let superset = view.in_sync.iter().all(|(node, inc)| waited.get(node) == Some(&inc));
        check(superset, Claim::WaitsForWhomeverMayBeElected, || {
            format!("{} waits for {waited:?}, the register has {}", self.name(machine), text::view(view))
        })
    }

    /// A node has taken a step.
    pub(super) fn check_node(&mut self, machine: usize, was_serving: bool) -> Result<(), Violation> {
        let Some(process) = self.process(machine) else { return Ok(()) };
        let (last, epoch) = (process.node.log().last(), process.node.epoch());
        let written = process.log.last().map_or(Epoch(0), |entry| entry.0);
        let fits =
            last.index.0 == process.log.len() as u64 && (last.index == Index(0) || last.epoch == written);
        check(fits, Claim::EffectsFitTheLog, || {
            format!(
                "{} believes in {last:?}, has {} entries to {written}",
                self.name(machine),
                process.log.len()
            )
        })?;
        let durable = process.node.log().durable();
        check(durable.0 <= self.machines[machine].disk.log.len() as u64, Claim::DurableMeansOnDisk, || {
            format!(
                "{} has {} entries on disk, not {durable}",
                self.name(machine),
                self.machines[machine].disk.log.len()
            )
        })?;
        if !matches!(process.node.role(), Role::Leader(_)) {
            return Ok(());
        }
        let session = process.session;
        let serves_now = process.node.is_serving() && !was_serving;
        let announced = process.announced;
        if let std::collections::btree_map::Entry::Vacant(slot) = self.seen.leaders.entry(epoch) {
            slot.insert(session);
            // What was acknowledged after its view stood may be news to a leader that was slow to hear of its luck.
            let before = self.seen.acknowledged.get(&epoch).copied().unwrap_or_default();
            self.check_leader_holds(machine, 0, before)?;
        }
        let led_by = self.seen.leaders[&epoch];
        check(led_by == session, Claim::OneLeaderAnEpoch, || {
            format!("epoch {epoch}: sessions {led_by} and {session}")
        })?;
        let newest = self.register().is_some_and(|view| view.epoch == epoch);
        if serves_now && newest {
            check(announced.0 == self.truth.len() as u64, Claim::ServesOnlyWithAllCommitted, || {
                format!("{} serves at {announced}, {} are acknowledged", self.name(machine), self.truth.len())
            })?;
        }
        self.check_waits(machine)
    }

    /// Everything again and from the first entry: what the checks of single steps might have stepped over.
    pub fn check_all(&mut self) -> Result<(), Violation> {
        self.check_set()?;
        for (number, machine) in self.machines.iter().enumerate() {
            let Some(process) = &machine.process else { continue };
            let base = process.node.log().base();
            let mut at = base.index;
            for run in outline_runs(&process.log, base.index) {
                at = run.first;
                check(process.node.log().epoch_at(at) == Some(run.epoch), Claim::EffectsFitTheLog, || {
                    format!("{} errs about {at}", self.name(number))
                })?;
            }
            let applied = process.announced.0 as usize;
            check(
                self.truth.get(..applied) == process.log.get(..applied),
                Claim::EveryoneAppliesTheSame,
                || format!("{} has applied something else up to {at}", self.name(number)),
            )?;
        }
        Ok(())
    }
}
