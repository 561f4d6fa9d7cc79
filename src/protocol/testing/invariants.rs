//! What must be true after every step, each as a sentence. The checks look at the world from outside: at disks, logs
//! and the register, never at what a node believes, save where the claim is about that.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::cluster::{Cluster, Disk, Entry, outline_runs};
use super::text;
use crate::protocol::Role;
use crate::view::{Epoch, Incarnation, Index, View, ViewId};

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
    DampedStaysOut,
    NothingIsPutOnAnOldRegister,
    NothingIsLostSilently,
    NoStaleReadIsProved,
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
            Claim::DampedStaysOut => "nobody joins before its time as a learner is over (R36)",
            Claim::NothingIsPutOnAnOldRegister => {
                "nobody swaps on a register that is older than what it has heard of (R11)"
            }
            Claim::NothingIsLostSilently => {
                "after the register was put back all that was acknowledged is held where an operator is asked"
            }
            Claim::NoStaleReadIsProved => "a read that is proved sees everything that was acknowledged (R17)",
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
    leaders: BTreeMap<ViewId, u64>,
    /// How much was acknowledged when an epoch came into the register.
    acknowledged: BTreeMap<Epoch, usize>,
    /// Machines whose disks a script has tampered with: what they hold is not held against anybody.
    pub(super) spoilt: BTreeSet<usize>,
    /// Copies that an operator has given up: they had gone on with another register (R11).
    pub(super) given_up: BTreeSet<Incarnation>,
    /// Leave out the claims about how a rule is followed, and see what comes of breaking it.
    pub(super) only_consequences: bool,
}

impl Seen {
    /// The register was put back to that epoch.
    pub(super) fn forget_after(&mut self, epoch: Epoch) {
        self.acknowledged.retain(|of, _| *of <= epoch);
        // A swapper that dies before it has noted its success may make the very same view once more.
        self.leaders.retain(|view, _| view.epoch <= epoch);
    }
}

fn check(holds: bool, claim: Claim, detail: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation::new(claim, detail())) }
}

fn check_disk_holds(
    disk: &Disk,
    truth: &[Entry],
    from: usize,
    name: &str,
    claim: Claim,
) -> Result<(), Violation> {
    let held = disk.log.len();
    check(held >= truth.len(), claim, || {
        format!("{name}#{} has {held} entries, {} are acknowledged", disk.incarnation.0, truth.len())
    })?;
    let differs = (from..truth.len()).find(|at| disk.log[*at] != truth[*at]);
    differs.map_or(Ok(()), |at| {
        let (has, is) = (disk.log[at], truth[at]);
        let detail =
            format!("{name}#{} has {has:?} at {}, acknowledged is {is:?}", disk.incarnation.0, at + 1);
        Err(Violation::new(claim, detail))
    })
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
        let view = process.node.view().map(View::id);
        let of = process.node.epoch();
        let leads = matches!(process.node.role(), Role::Leader(_));
        let applied = process.log[from.0 as usize..to.0 as usize].to_vec();
        if let Some(vault) = &mut self.vault
            && view.is_some_and(|view| vault.cell.has(view))
        {
            for (at, entry) in (from.0 as usize..).zip(&applied) {
                match vault.truth.get(at) {
                    Some(agreed) => check(agreed == entry, Claim::EveryoneAppliesTheSame, || {
                        format!("{name} applies {entry:?} at {}, others {agreed:?}", at + 1)
                    })?,
                    None => {
                        vault.truth.push(*entry);
                        vault.truth_of.push(of);
                    }
                }
            }
        }
        let ours = view.is_none_or(|view| self.cell.has(view));
        for (at, entry) in (from.0 as usize..).zip(applied).filter(|_| ours) {
            if let Some(agreed) = self.truth.get(at) {
                check(*agreed == entry, Claim::EveryoneAppliesTheSame, || {
                    format!("{name} applies {entry:?} at {}, others {agreed:?}", at + 1)
                })?;
            } else {
                // Under the register that was taken away a leader did, and the entry belongs to both chains.
                let before = self.vault.as_ref().is_some_and(|vault| vault.truth.get(at) == Some(&entry));
                check(leads || before, Claim::OnlyALeaderCommitsFirst, || {
                    format!("{name} applies {entry:?} at {}", at + 1)
                })?;
                self.truth.push(entry);
                self.truth_of.push(of);
            }
        }
        process.announced = to;
        place.disk.applied = place.disk.applied.max(to);
        if self.truth.len() > known {
            self.check_held(known)?;
        }
        self.check_vault()?;
        self.check_reads()
    }

    /// Everything committed from `from` on is where it must be.
    fn check_held(&self, from: usize) -> Result<(), Violation> {
        let Some(view) = self.register() else { return Ok(()) };
        for (node, incarnation) in &view.in_sync {
            if self.seen.spoilt.contains(&self.machine_of(node)) || self.seen.given_up.contains(incarnation) {
                continue;
            }
            let disk = self.disk_of(*incarnation);
            let claim = Claim::AcknowledgedIsOnEveryCountedDisk;
            check_disk_holds(disk, &self.truth, from, text::name(node), claim)?;
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

    /// The same of a register that an older copy has taken the place of: what was acknowledged under its views stays
    /// where it is until an operator decides.
    fn check_vault(&self) -> Result<(), Violation> {
        let Some(vault) = &self.vault else { return Ok(()) };
        let Some(view) = &vault.cell.newest else { return Ok(()) };
        let holds = |incarnation: &Incarnation| self.disk_of(*incarnation).log.starts_with(&vault.truth);
        check(view.in_sync.values().any(holds), Claim::NothingIsLostSilently, || {
            format!("{} entries are whole on no disk of {}", vault.truth.len(), text::view(view))
        })
    }

    /// What a leader could prove now by a look at the register is the newest. A leader whom nobody has told of later
    /// views because all who knew them are dead has a view of its own by then, and is measured by that.
    pub(super) fn check_reads(&self) -> Result<(), Violation> {
        let Some(newest) = self.register() else { return Ok(()) };
        let Some(process) = self.process(self.machine_of(&newest.leader)) else { return Ok(()) };
        let view = newest.id();
        let looks = process.node.view().is_some_and(|known| known.id() == view);
        let proves = process.node.proof_until().is_some_and(|until| self.now <= until);
        if !looks || !proves || !self.seen.spoilt.is_empty() {
            return Ok(());
        }
        let older =
            self.vault.as_ref().filter(|vault| vault.cell.has(view)).map_or(0, |vault| vault.truth.len());
        let acknowledged = self.truth.len().max(older);
        check(process.announced.0 as usize >= acknowledged, Claim::NoStaleReadIsProved, || {
            format!(
                "{} proves reads at {}, {acknowledged} are acknowledged",
                text::name(&newest.leader),
                process.announced
            )
        })
    }

    /// Entries `from..to`, counted from zero.
    fn check_leader_holds(&self, machine: usize, from: usize, to: usize) -> Result<(), Violation> {
        let Some(process) = self.process(machine) else { return Ok(()) };
        if process.node.view().is_some_and(|view| !self.cell.has(view.id())) {
            return Ok(()); // of a register that was taken away
        }
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
                check_disk_holds(&place.disk, &self.truth, 0, text::name(&place.id), claim)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// A snapshot was taken for the log.
    pub(super) fn check_snapshot(&self, machine: usize) -> Result<(), Violation> {
        let Some(process) = self.process(machine) else { return Ok(()) };
        let older = self.vault.as_ref().map(|vault| &vault.truth);
        let agrees = std::iter::once(&self.truth)
            .chain(older)
            .any(|truth| truth.get(..process.log.len()) == Some(&process.log[..]));
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
        let same_chain = process.node.view().is_none_or(|view| self.cell.has(view.id()));
        if !leads || !ours || !same_chain || view.epoch > epoch.next() || self.seen.only_consequences {
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
        let view = process.node.view().expect("a leader knows its view").id();
        if let std::collections::btree_map::Entry::Vacant(slot) = self.seen.leaders.entry(view) {
            slot.insert(session);
            // What was acknowledged after its view stood may be news to a leader that was slow to hear of its luck.
            let before = self.seen.acknowledged.get(&epoch).copied().unwrap_or_default();
            self.check_leader_holds(machine, 0, before)?;
        }
        let led_by = self.seen.leaders[&view];
        check(led_by == session, Claim::OneLeaderAnEpoch, || {
            format!("epoch {epoch}: sessions {led_by} and {session}")
        })?;
        let newest = self.register().is_some_and(|newest| newest.id() == view);
        if serves_now && newest {
            check(announced.0 == self.truth.len() as u64, Claim::ServesOnlyWithAllCommitted, || {
                format!("{} serves at {announced}, {} are acknowledged", self.name(machine), self.truth.len())
            })?;
        }
        self.check_reads()?;
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
            let older = self.vault.as_ref().map(|vault| &vault.truth);
            let mut truths = std::iter::once(&self.truth).chain(older);
            check(
                truths.any(|truth| truth.get(..applied) == process.log.get(..applied)),
                Claim::EveryoneAppliesTheSame,
                || format!("{} has applied something else up to {at}", self.name(number)),
            )?;
        }
        Ok(())
    }
}
