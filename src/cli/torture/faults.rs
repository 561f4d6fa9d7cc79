//! What is done to the nodes, cycle by cycle. What and to whom is decided from the seed alone; only who leads at the
//! moment is asked of the nodes.

use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use serde::Serialize;

use super::TortureFailure;
use super::cluster::Cluster;
use super::disk::Disk;
use super::flapping::Rhythm;
use super::load::Board;
use super::rollback::{Rollback, Way};
use crate::check::{Operation, Outcome, Request};
use crate::clock;

/// How long the cluster may take to serve or to be whole again.
const PATIENCE: Duration = Duration::from_secs(30);
/// One look counts for no more than this, however long it took.
const MOST_AT_A_TIME: Duration = Duration::from_secs(2);
/// A process that ended by itself where it may is started again after this long.
const AGAIN: Duration = Duration::from_millis(100);
/// Who asks what is asked beside the load.
const ASIDE: u32 = u32::MAX;
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(2);

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
    /// Kill some nodes at once, never all; the others must go on
    Kill,
    /// Stop a node for 0.05 to 2 s
    Stop,
    /// Kill all nodes at once
    AllKill,
    /// Stop all followers for a moment, kill the leader, let them go on
    Strand,
    /// Fill the disk that holds the cluster to the last byte for a moment; sometimes kill the leader meanwhile
    FullDisk,
    /// Take a node's descriptors with idle connections, and stop another meanwhile
    NoDescriptors,
    /// Put the register back to an older copy while the leader sleeps or is dead, and later the newer one
    RegisterRollback,
    /// Stop a node for most of the time, again and again
    Flapping,
    /// Kill the leader while nobody talks to it; what --survivors-only does
    #[value(skip)]
    Leader,
}

/// What one cycle does.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fault {
    Kill { nodes: Vec<usize>, back: Vec<usize> },
    Stop { node: usize, lasting: Duration },
    AllKill { back: Vec<usize> },
    Strand { lasting: Duration },
    FullDisk { lasting: Duration, kills_leader: bool },
    NoDescriptors { node: usize, lowers_limit: bool, lasting: Duration },
    Rollback(Rollback),
    Flapping { node: usize, rhythm: Rhythm },
    Leader,
}

/// A cycle as it is decided.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cycle {
    kind: Kind,
    /// How long the cluster is left alone before.
    calm: Duration,
    fault: Fault,
    /// Between the starts of two nodes that come back.
    pause: Duration,
}

/// Decides one cycle after the other.
#[derive(Debug)]
pub(super) struct Plan {
    random: StdRng,
    nodes: usize,
    kinds: Vec<Kind>,
}

/// What was done.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// The faults in order, each with the time at which it struck.
    pub(super) faults: Vec<(Kind, u64)>,
    /// Processes that were sent SIGKILL.
    pub(super) killed: usize,
    /// What was asked beside the load.
    pub(super) operations: Vec<Operation>,
    /// The largest share of a time with a flapping node in which writers stood still, in percent.
    pub(super) stalled_percent: Option<f64>,
    /// What was seen that must never be.
    pub(super) violations: Vec<String>,
    /// Why it ended before all cycles were done.
    pub(super) broken: Option<Broken>,
}

/// What a cluster did not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// It took longer than it may.
    TooSlow(String),
    /// One of its processes ended.
    Ended(String),
}

impl Plan {
    /// The same seed, nodes and kinds give the same cycles.
    pub(super) fn new(seed: u64, nodes: usize, kinds: &[Kind]) -> Plan {
        Plan { random: StdRng::seed_from_u64(seed), nodes, kinds: kinds.to_vec() }
    }

    fn next(&mut self) -> Cycle {
        let random = &mut self.random;
        let mut all: Vec<usize> = (0..self.nodes).collect();
        all.shuffle(random);
        let kind = self.kinds[random.random_range(0..self.kinds.len())];
        let calm = Duration::from_millis(random.random_range(20..120));
        let pause = Duration::from_millis(random.random_range(0..60));
        let fault = match kind {
            Kind::Kill => {
                all.truncate(random.random_range(1..self.nodes.max(2)));
                let mut back = all.clone();
                back.shuffle(random);
                Fault::Kill { nodes: all, back }
            }
            Kind::Stop => {
                let lasting = Duration::from_millis(random.random_range(50..2000));
                Fault::Stop { node: all[0], lasting }
            }
            Kind::AllKill => Fault::AllKill { back: all },
            Kind::Strand => Fault::Strand { lasting: Duration::from_millis(random.random_range(10..400)) },
            Kind::FullDisk => Fault::FullDisk {
                lasting: Duration::from_millis(random.random_range(100..1500)),
                kills_leader: random.random_bool(0.5),
            },
            Kind::NoDescriptors => Fault::NoDescriptors {
                node: all[0],
                lowers_limit: random.random_bool(0.5),
                lasting: Duration::from_millis(random.random_range(300..1500)),
            },
            Kind::RegisterRollback => Fault::Rollback(Rollback {
                leader_dies: random.random_bool(0.5),
                way: if random.random_bool(0.5) { Way::InPlace } else { Way::AnotherDirectory },
                lasting: Duration::from_millis(random.random_range(300..1500)),
            }),
            Kind::Flapping => Fault::Flapping {
                node: all[0],
                rhythm: if random.random_bool(0.5) { Rhythm::SEEN } else { Rhythm::UNSEEN },
            },
            Kind::Leader => Fault::Leader,
        };
        Cycle { kind, calm, fault, pause }
    }
}

/// Carries out cycles on a cluster under load.
#[derive(Debug)]
pub(super) struct Torturer<'c> {
    pub(super) cluster: &'c mut Cluster,
    pub(super) board: Arc<Board>,
    pub(super) done: &'c mut Done,
    /// The disk that holds the cluster, where it can be filled.
    pub(super) disk: Option<&'c Disk>,
    /// Processes may end by themselves at the moment, and are started again.
    pub(super) forgives_ends: bool,
}

/// Why a cycle did not come to its end.
#[derive(Debug)]
pub(super) enum Stop {
    /// The cluster did not do what it promises.
    Broken(Broken),
    Failed(TortureFailure),
}

impl From<TortureFailure> for Stop {
    fn from(failure: TortureFailure) -> Stop {
        Stop::Failed(failure)
    }
}

impl Torturer<'_> {
    /// Does `cycles` of them, or as many as the cluster stands; `tell` hears of each.
    pub(super) async fn run(
        &mut self,
        plan: &mut Plan,
        cycles: u32,
        mut tell: impl FnMut(u32, &str),
    ) -> Result<(), TortureFailure> {
        for number in 1..=cycles {
            let cycle = plan.next();
            match self.cycle(&cycle).await {
                Ok(text) => tell(number, &text),
                Err(Stop::Failed(failure)) => return Err(failure),
                Err(Stop::Broken(what)) => {
                    let in_cycle = |what| format!("cycle {number}: {what}");
                    self.done.broken = Some(match what {
                        Broken::TooSlow(what) => Broken::TooSlow(in_cycle(what)),
                        Broken::Ended(what) => Broken::Ended(in_cycle(what)),
                    });
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn cycle(&mut self, cycle: &Cycle) -> Result<String, Stop> {
        tokio::time::sleep(cycle.calm).await;
        self.board.take_longest_gap();
        let began = clock::now();
        let what = match &cycle.fault {
            Fault::Kill { nodes, back } => {
                self.disturb(nodes);
                let struck = self.strike(cycle.kind);
                self.kill(nodes)?;
                self.acknowledged(struck, "the survivors").await?;
                self.bring_back(back, cycle.pause).await?;
                format!("killed {}", self.names(nodes))
            }
            Fault::Stop { node, lasting } => {
                self.disturb(&[*node]);
                self.strike(cycle.kind);
                self.cluster.signal(*node, Signal::SIGSTOP)?;
                tokio::time::sleep(*lasting).await;
                self.cluster.signal(*node, Signal::SIGCONT)?;
                format!("stopped {} for {} ms", self.names(&[*node]), lasting.as_millis())
            }
            Fault::AllKill { back } => {
                self.disturb(back);
                self.strike(cycle.kind);
                self.kill(back)?;
                self.bring_back(back, cycle.pause).await?;
                "killed all".to_owned()
            }
            Fault::Strand { lasting } => self.strand(*lasting).await?,
            Fault::FullDisk { lasting, kills_leader } => self.fill_disk(*lasting, *kills_leader).await?,
            Fault::NoDescriptors { node, lowers_limit, lasting } => {
                self.take_descriptors(*node, *lowers_limit, *lasting).await?
            }
            Fault::Rollback(rollback) => self.roll_back(*rollback).await?,
            Fault::Flapping { node, rhythm } => self.flap(*node, *rhythm).await?,
            Fault::Leader => self.kill_leader().await?,
        };
        let whole = self.whole().await?;
        for node in 0..self.cluster.len() {
            self.board.set_disturbed(node, false);
            self.board.shun(node, false);
        }
        let now = self.board.now();
        self.acknowledged(now, "all nodes together").await?;
        let leader = self.cluster.address(whole);
        let (paused, elapsed) = (self.board.take_longest_gap().as_millis(), began.elapsed().as_millis());
        Ok(format!("{what}; writes paused {paused} ms; whole after {elapsed} ms, {leader} leads"))
    }

    /// The followers are stopped, so that what the leader says now it says alone; then it is killed.
    async fn strand(&mut self, lasting: Duration) -> Result<String, Stop> {
        let leader = self.whole().await?;
        let all: Vec<usize> = (0..self.cluster.len()).collect();
        self.disturb(&all);
        let followers: Vec<usize> = all.into_iter().filter(|node| *node != leader).collect();
        for follower in &followers {
            self.cluster.signal(*follower, Signal::SIGSTOP)?;
        }
        tokio::time::sleep(lasting).await;
        self.strike(Kind::Strand);
        self.kill(&[leader])?;
        for follower in &followers {
            self.cluster.signal(*follower, Signal::SIGCONT)?;
        }
        // Where the leader had let go of the followers, only it may lead again: nobody waits for them here.
        tokio::time::sleep(lasting / 2).await;
        self.bring_back(&[leader], Duration::ZERO).await?;
        Ok(format!("stranded {} for {} ms and killed it", self.names(&[leader]), lasting.as_millis()))
    }

    async fn kill_leader(&mut self) -> Result<String, Stop> {
        loop {
            let leader = self.whole().await?;
            self.board.shun(leader, true);
            let idle = self.wait(async |this| this.board.is_idle(leader).then_some(())).await?;
            if idle.is_none() {
                let what = format!("{} answers no more", self.cluster.address(leader));
                return Err(Stop::Broken(Broken::TooSlow(what)));
            }
            // Leadership may have been handed on meanwhile.
            if self.cluster.agreed_leader().await == Some(leader) {
                self.disturb(&[leader]);
                let struck = self.strike(Kind::Leader);
                self.kill(&[leader])?;
                self.acknowledged(struck, "the survivors").await?;
                self.bring_back(&[leader], Duration::ZERO).await?;
                return Ok(format!("killed the leader {}", self.names(&[leader])));
            }
            self.board.shun(leader, false);
        }
    }

    pub(super) fn disturb(&self, nodes: &[usize]) {
        nodes.iter().for_each(|node| self.board.set_disturbed(*node, true));
    }

    pub(super) fn strike(&mut self, kind: Kind) -> u64 {
        let now = self.board.now();
        self.done.faults.push((kind, now));
        now
    }

    /// All at once, then waits until they are gone.
    pub(super) fn kill(&mut self, nodes: &[usize]) -> Result<(), TortureFailure> {
        for node in nodes {
            self.cluster.signal(*node, Signal::SIGKILL)?;
        }
        for node in nodes {
            self.cluster.reap(*node)?;
            self.board.note_gone(*node);
        }
        self.done.killed += nodes.len();
        Ok(())
    }

    pub(super) async fn bring_back(
        &mut self,
        nodes: &[usize],
        pause: Duration,
    ) -> Result<(), TortureFailure> {
        for (turn, node) in nodes.iter().enumerate() {
            if turn > 0 {
                tokio::time::sleep(pause).await;
            }
            self.cluster.restart(*node)?;
            self.board.note_started(*node);
        }
        Ok(())
    }

    /// Waits until a change that was asked for after this time is acknowledged.
    pub(super) async fn acknowledged(&mut self, time: u64, by: &str) -> Result<(), Stop> {
        let done = self.wait(async |this| this.board.has_acknowledged_since(time).then_some(())).await?;
        done.ok_or_else(|| {
            let what = format!("{by} acknowledged no change for {} s", PATIENCE.as_secs());
            Stop::Broken(Broken::TooSlow(what))
        })
    }

    /// Waits until all running nodes are in sync and agree who leads.
    pub(super) async fn whole(&mut self) -> Result<usize, Stop> {
        let leader = self.wait(async |this| this.cluster.agreed_leader().await).await?;
        leader.ok_or_else(|| {
            let what = format!("the nodes were not all in sync and agreed within {} s", PATIENCE.as_secs());
            Stop::Broken(Broken::TooSlow(what))
        })
    }

    pub(super) async fn wait<T>(
        &mut self,
        mut look: impl AsyncFnMut(&Self) -> Option<T>,
    ) -> Result<Option<T>, Stop> {
        let mut waited = Duration::ZERO;
        loop {
            let began = clock::now();
            if let Some(found) = look(self).await {
                return Ok(Some(found));
            }
            if self.forgives_ends {
                self.restart_ended().await?;
            } else if let Some((address, status)) = self.cluster.ended_by_itself() {
                let log = self.cluster.last_lines(&address);
                let what = format!("{address} ended by itself ({status}):\n{log}");
                return Err(Stop::Broken(Broken::Ended(what)));
            }
            if waited >= PATIENCE {
                return Ok(None);
            }
            tokio::time::sleep(LOOK).await;
            // Where this program itself stands still, so do the nodes: that is not their fault.
            waited += began.elapsed().min(MOST_AT_A_TIME);
        }
    }

    /// Starts again what has ended by itself, not too often.
    pub(super) async fn restart_ended(&mut self) -> Result<(), TortureFailure> {
        let ended = self.cluster.take_ended();
        if !ended.is_empty() {
            ended.iter().for_each(|node| self.board.note_gone(*node));
            tokio::time::sleep(AGAIN).await;
            self.bring_back(&ended, Duration::ZERO).await?;
        }
        Ok(())
    }

    /// Asks something beside the load, on each node in turn, until it is answered.
    pub(super) async fn demand(&mut self, request: Request, what: &str) -> Result<(), Stop> {
        let mut turn = 0;
        let board = self.board.clone();
        let client = ASIDE;
        let mut asked = Vec::new();
        let nodes = self.cluster.len();
        let answered = self
            .wait(async |_| {
                turn += 1;
                let operation = board.ask(client, turn % nodes, request).await?;
                let done = matches!(operation.outcome, Outcome::Done { .. });
                if done || request.may_change() {
                    asked.push(operation);
                }
                done.then_some(())
            })
            .await;
        self.done.operations.append(&mut asked);
        answered?.ok_or_else(|| {
            Stop::Broken(Broken::TooSlow(format!("{what} was not answered for {} s", PATIENCE.as_secs())))
        })
    }

    pub(super) fn names(&self, nodes: &[usize]) -> String {
        let names: Vec<&str> = nodes.iter().map(|node| self.cluster.address(*node)).collect();
        names.join(", ")
    }
}

impl Kind {
    /// As it is typed and printed.
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Kill => "kill",
            Kind::Stop => "stop",
            Kind::AllKill => "all-kill",
            Kind::Strand => "strand",
            Kind::FullDisk => "full-disk",
            Kind::NoDescriptors => "no-descriptors",
            Kind::RegisterRollback => "register-rollback",
            Kind::Flapping => "flapping",
            Kind::Leader => "leader",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_same_seed_decides_the_same() {
        let kinds = [Kind::Kill, Kind::Stop, Kind::AllKill, Kind::Strand];
        let cycles = |seed| {
            let mut plan = Plan::new(seed, 4, &kinds);
            (0..50).map(|_| plan.next()).collect::<Vec<_>>()
        };
        assert_eq!(cycles(7), cycles(7));
        assert_ne!(cycles(7), cycles(8));
    }

    #[test]
    fn every_subset_but_all_is_killed_and_comes_back_in_every_order() {
        let mut plan = Plan::new(1, 3, &[Kind::Kill]);
        let mut seen = BTreeSet::new();
        for _ in 0..200 {
            let Fault::Kill { nodes, back } = plan.next().fault else { panic!("another kind") };
            let (mut one, mut other) = (nodes.clone(), back.clone());
            one.sort_unstable();
            other.sort_unstable();
            assert_eq!(one, other, "who is killed comes back");
            seen.insert(back);
        }
        assert_eq!(seen.len(), 3 + 6, "{seen:?}");
    }
}
