//! How the cluster stands right now: what the supervisor (or its file) knows of the processes, what the kernel says
//! of them, and what every node says of itself. Reads only; works with the supervisor dead.

use std::time::Duration;

use crate::clock;
use crate::control::health::{self, ClusterState, Found, Process, Role, Sum};
use crate::control::plan::{self, Observed, Running};
use crate::proto::replcluster::DescribeResponse;
use crate::rules::{Rule, breaks};
use crate::supervisor::adopt;
use crate::supervisor::ask;
use crate::supervisor::events::Event;
use crate::supervisor::os::{self, ProcessId, Stat};
use crate::supervisor::owner;
use crate::supervisor::record::{self, NodeRecord, Phase, Record};
use crate::supervisor::spawn::{self, MIN_IN_SYNC_FLAG};
use crate::supervisor::wire::{Reply, Request};
use crate::view::NodeId;

use super::context::Context;
use super::exit::{Exit, Failure};
use super::holder::{self, Holder, Origin};
use super::target::{self, Known};

/// How long a node may take to say how it is.
pub const PATIENCE: Duration = Duration::from_millis(500);

/// After this long a process that has not answered yet is not just starting.
const START_PATIENCE: Duration = Duration::from_secs(10);

/// The supervisor as found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Supervision {
    /// This process answers.
    Running(u32),
    /// This process lives and does not answer.
    Silent(u32),
    /// None lives.
    Dead,
}

impl Supervision {
    /// The process, where one lives.
    #[must_use]
    pub fn pid(self) -> Option<u32> {
        match self {
            Supervision::Running(pid) | Supervision::Silent(pid) => Some(pid),
            Supervision::Dead => None,
        }
    }
}

/// The cluster as found.
#[derive(Debug)]
pub struct Survey {
    /// The supervisor.
    pub supervisor: Supervision,
    /// Every configured node, in byte order.
    pub nodes: Vec<NodeSurvey>,
    /// What it adds up to; its lists are in the order of `nodes`.
    pub sum: Sum,
    /// Nodes that were started here once and are not in the configuration any more.
    pub unlisted: Vec<NodeId>,
    /// Those of them whose process lives.
    pub unlisted_running: Vec<NodeId>,
    /// Why nobody could take over, though somebody leads: what is wrong with the register.
    pub register_trouble: Option<String>,
}

/// One node as found.
#[derive(Debug)]
pub struct NodeSurvey {
    /// Which.
    pub node: NodeId,
    /// What is remembered of it.
    pub record: NodeRecord,
    /// Its living process.
    pub process: Option<ProcessId>,
    /// What the kernel says of it.
    pub stat: Option<Stat>,
    /// What it says of itself.
    pub answer: Option<DescribeResponse>,
    /// Who answers at its address, or serves from its directory, and is not it.
    pub holder: Option<Holder>,
    /// How old its own last answer is: this one, or else the last that a supervisor got.
    pub seen: Option<Duration>,
    /// Why it gave no answer, where it gave none.
    pub unanswered: Option<String>,
    /// The process that answered for it where none was started here, if it is one that we see and that is the node's.
    pub named: Option<ProcessId>,
}

/// Looks at everything, all nodes at once.
///
/// # Errors
/// Where the cluster's directory cannot be read.
pub async fn survey(context: &Context) -> Result<Survey, Failure> {
    let (supervisor, record) = remembered(context).await?;
    let looks = context.config.nodes.iter().map(|node| async {
        let one = look(context, &record, node).await;
        (one, clock::now())
    });
    // One that is slow to answer makes the answers of the others old.
    let mut nodes: Vec<NodeSurvey> = Vec::new();
    for (mut one, at) in futures_util::future::join_all(looks).await {
        if one.answer.is_some() {
            one.seen = Some(at.elapsed());
        }
        nodes.push(one);
    }
    let nothing_remembered =
        supervisor == Supervision::Dead && record.nodes.values().all(|one| one.spawns == 0);
    if nothing_remembered {
        // Not started yet; or the directory was deleted while nodes ran.
        for (node, process) in holder::deserted(&context.layout, &context.config.nodes) {
            for one in nodes.iter_mut().filter(|one| one.node == node && one.process.is_none()) {
                one.holder = Some(Holder::Deserted(process.clone()));
            }
        }
    }
    let unlisted: Vec<NodeId> = record
        .nodes
        .iter()
        .filter(|(_, known)| known.spawns > 0 || known.process.is_some())
        .filter_map(|(name, _)| NodeId::parse(name).ok())
        .filter(|node| !context.config.nodes.contains(node))
        .collect();
    let lives = |node: &&NodeId| adopt::living(&context.layout, &record, node).is_some();
    let unlisted_running: Vec<NodeId> = unlisted.iter().filter(lives).cloned().collect();
    // One of them may lead still.
    let outside = unlisted_running.iter().map(|node| look(context, &record, node));
    let outside = futures_util::future::join_all(outside).await;
    let found: Vec<Found> = nodes.iter().map(NodeSurvey::found).collect();
    let found_outside: Vec<Found> = outside.iter().map(NodeSurvey::found).collect();
    let mut sum = health::sum(&found, &found_outside, min_in_sync(context, nodes.iter().chain(&outside)));
    let register_trouble = holder::register_trouble(context).filter(|_| sum.leader.is_some());
    if register_trouble.is_some() {
        sum.failures_tolerated = 0;
        if sum.state == ClusterState::Healthy {
            sum.state = ClusterState::Degraded;
        }
    }
    Ok(Survey { supervisor, nodes, sum, unlisted, unlisted_running, register_trouble })
}

/// What the leader was told at its start; the configuration may have been edited since.
fn min_in_sync<'a>(context: &Context, nodes: impl Iterator<Item = &'a NodeSurvey>) -> usize {
    let leads = |one: &NodeSurvey| {
        one.answer.as_ref().map(ask::account).is_some_and(|account| account.role == Role::Leader)
    };
    let leader =
        nodes.filter(|one| leads(one)).max_by_key(|one| one.answer.as_ref().map(|answer| answer.epoch));
    let told = leader.and_then(|one| one.record.settings.get(MIN_IN_SYNC_FLAG)?.parse().ok());
    told.unwrap_or(context.config.replication.min_in_sync)
}

async fn remembered(context: &Context) -> Result<(Supervision, Record), Failure> {
    if let Ok(Some(mut supervisor)) = context.supervisor().await
        && let Ok(Ok(Reply::Snapshot { record })) =
            tokio::time::timeout(PATIENCE, supervisor.ask(&Request::Snapshot)).await
        && let Some(id) = &record.supervisor
    {
        return Ok((Supervision::Running(id.pid), record));
    }
    let supervisor = context.supervisor_pid().map_or(Supervision::Dead, Supervision::Silent);
    let path = context.layout.state();
    let record = record::load(&path).map_err(|error| {
        let message = format!("cannot read {}: {error}\n{}", path.display(), owner::advice(&path));
        Failure::new(Exit::Failed, message)
    })?;
    Ok((supervisor, record))
}

async fn look(context: &Context, record: &Record, node: &NodeId) -> NodeSurvey {
    let of_node = record.nodes.get(node.as_str()).cloned().unwrap_or_default();
    let process = adopt::living(&context.layout, record, node);
    let stat = process.as_ref().and_then(|id| os::stat(id.pid).ok());
    // A frozen process cannot answer: asking it would only cost the whole patience.
    let frozen = stat.as_ref().is_some_and(Stat::is_frozen);
    let asked = if frozen { Err("it is frozen".to_owned()) } else { ask(context, node).await };
    let unanswered = asked.as_ref().err().cloned();
    let answer = asked.ok();
    let known = process.as_ref().map(|id| (id, of_node.nonce.as_str()));
    let (answer, holder) = match answer {
        None => (None, None),
        Some(answer) => match holder::origin(context, node, known, &answer) {
            Origin::Ours => (Some(answer), None),
            Origin::Held(holder) => (None, Some(holder)),
        },
    };
    // The number that an answer names is a process of ours only where it works in the node's directory: in a container
    // it is another process.
    let named =
        answer.as_ref().filter(|_| process.is_none()).and_then(|answer| named(context, node, answer.pid));
    let stat = stat.or_else(|| named.as_ref().and_then(|id| os::stat(id.pid).ok()));
    let seen = of_node.last_answer.as_ref().and_then(|last| age(&last.at));
    NodeSurvey { node: node.clone(), record: of_node, process, stat, answer, holder, seen, unanswered, named }
}

/// The process with this number, if it is one of ours that works in this node's directory.
fn named(context: &Context, node: &NodeId, pid: u32) -> Option<ProcessId> {
    let id = os::identify(pid).ok()?;
    (os::sees_our_files(pid) && adopt::uses(&context.layout, node, &id)).then_some(id)
}

async fn ask(context: &Context, node: &NodeId) -> Result<DescribeResponse, String> {
    match context.asker.describe(node, PATIENCE).await {
        Ok(answer) => Ok(answer),
        Err(error) => {
            let text = error.to_string();
            let told = text.strip_prefix(node.as_str()).unwrap_or(&text);
            Err(told.trim_start_matches([':', ' ']).to_owned())
        }
    }
}

/// How long ago a stamp was written, by this machine's clock.
fn age(stamp: &str) -> Option<Duration> {
    let at: std::time::SystemTime = stamp.parse::<jiff::Timestamp>().ok()?.into();
    Some(clock::wall().duration_since(at).unwrap_or_default())
}

impl NodeSurvey {
    pub(super) fn found(&self) -> Found {
        let process = if self.process.is_some() {
            Process::Present { paused: self.is_paused(), overdue: self.is_overdue() }
        } else if self.record.phase == Phase::Failed {
            Process::GivenUp
        } else {
            Process::Absent
        };
        Found { node: self.node.clone(), process, account: self.answer.as_ref().map(ask::account) }
    }

    /// It is frozen.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.stat.as_ref().is_some_and(Stat::is_frozen)
    }

    /// It should answer by now, where it does not.
    #[must_use]
    pub fn is_overdue(&self) -> bool {
        let has_served = match self.record.phase {
            Phase::Serving | Phase::Paused => true,
            Phase::Down | Phase::Starting | Phase::Stopping | Phase::Waiting | Phase::Failed => false,
        };
        has_served || self.uptime().is_some_and(|uptime| uptime >= START_PATIENCE)
    }

    /// It runs: a process of ours lives, or somebody answers for it.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.process.is_some() || self.answer.is_some()
    }

    /// What its process said, where what was said came from that process. Where no process is known nobody's word is
    /// its own: a crashing node has none between two starts, and another may answer at its address.
    #[must_use]
    pub fn own_answer(&self) -> Option<&DescribeResponse> {
        let id = self.process.as_ref()?;
        self.answer.as_ref().filter(|answer| adopt::matches(answer, id, &self.record.nonce))
    }

    /// Its process id, where it is known to be its own: what a node of another container says means nothing here.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().or(self.named.as_ref()).map(|id| id.pid)
    }

    /// How long its process has run.
    #[must_use]
    pub fn uptime(&self) -> Option<Duration> {
        let stat = self.stat.as_ref()?;
        let ticks = os::uptime_ticks().ok()?.saturating_sub(stat.start_time);
        Some(Duration::from_millis(ticks * 1000 / os::ticks_per_second()))
    }

    /// Its share of one processor in percent: lately where the supervisor measures it, else since it was started.
    #[must_use]
    pub fn cpu_percent(&self) -> Option<f64> {
        let since_start = || {
            let stat = self.stat.as_ref()?;
            let seconds = self.uptime()?.as_secs_f64();
            let used = stat.cpu_ticks as f64 / os::ticks_per_second() as f64;
            (seconds > 0.0).then(|| (used / seconds * 1000.0).round() / 10.0)
        };
        self.process.as_ref().and(self.record.cpu_percent).or_else(since_start)
    }
}

impl Survey {
    /// The nodes that run.
    #[must_use]
    pub fn running(&self) -> Vec<NodeId> {
        self.nodes.iter().filter(|one| one.runs()).map(|one| one.node.clone()).collect()
    }

    /// Why a command that changes the cluster has nothing to work on, where no node runs. Who holds the addresses instead
    /// is a conflict.
    #[must_use]
    pub fn nothing_to_change(&self, context: &Context) -> Failure {
        self.nothing_runs(context, Exit::Conflict)
    }

    /// The same for a command that only looks.
    #[must_use]
    pub fn nothing_to_show(&self, context: &Context) -> Failure {
        self.nothing_runs(context, Exit::NotRunning)
    }

    fn nothing_runs(&self, context: &Context, held: Exit) -> Failure {
        let holders: Vec<String> =
            self.nodes.iter().filter_map(|one| Some(one.holder.as_ref()?.sentence(&one.node))).collect();
        if holders.is_empty() {
            return Failure::not_running(&context.config.name);
        }
        let message = format!(
            "no node of {} in {} is running\n{}\ngo to the directory of that cluster, or give these nodes other addresses",
            context.config.name,
            context.layout.root().display(),
            holders.join("\n")
        );
        Failure::new(held, message)
    }

    /// The processes that serve from deleted directories of this cluster.
    #[must_use]
    pub fn deserted(&self) -> Vec<(NodeId, ProcessId)> {
        let of_node = |one: &NodeSurvey| match one.holder.as_ref()? {
            Holder::Deserted(id) => Some((one.node.clone(), id.clone())),
            Holder::Foreign { .. } => None,
        };
        self.nodes.iter().filter_map(of_node).collect()
    }

    /// The nodes that run and are not frozen.
    #[must_use]
    pub fn awake(&self) -> Vec<NodeId> {
        self.nodes.iter().filter(|one| one.runs() && !one.is_paused()).map(|one| one.node.clone()).collect()
    }

    /// The nodes that answered, as endpoints for clients.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().filter(|one| one.answer.is_some()).map(|one| one.node.to_string()).collect()
    }

    /// What the operator asks for, for the history.
    #[must_use]
    pub fn command(&self, command: String, nodes: &[NodeId]) -> Event {
        let leader = self.sum.leader.as_ref().map(NodeId::to_string);
        Event::Command { command, nodes: super::context::names(nodes), signal: None, leader }
    }

    /// What a user means by `text`.
    ///
    /// # Errors
    /// Where it names nothing, with the names that would.
    pub fn targets(&self, text: &str) -> Result<Vec<NodeId>, Failure> {
        let nodes: Vec<NodeId> = self.nodes.iter().map(|one| one.node.clone()).collect();
        // No node has a role that no in-sync node confirmed: without a leader every node that runs may be it.
        let unconfirmed = breaks(Rule::ConfirmRoles);
        let leader = if unconfirmed { self.sum.leader.as_ref() } else { self.sum.confirmed_leader() };
        let mut followers: Vec<NodeId> = self
            .nodes
            .iter()
            .filter(|one| (leader.is_some() || unconfirmed) && one.runs() && Some(&one.node) != leader)
            .map(|one| one.node.clone())
            .collect();
        // "follower" means one that follows: not one that is frozen or on its way in.
        if text == "follower" {
            followers.sort_by_key(|node| {
                let stands = self.nodes.iter().any(|one| one.node == *node && !one.is_paused());
                !(stands && self.sum.in_sync.contains(node))
            });
        }
        let known = Known { nodes: &nodes, leader, followers: &followers };
        target::resolve(text, known).map_err(|error| match error {
            target::TargetError::Unknown { .. }
            | target::TargetError::Ambiguous { .. }
            | target::TargetError::Several { .. } => Failure::usage(error.to_string()),
            target::TargetError::Vacant(role) => self.vacant(role, &error),
        })
    }

    /// Why nothing is done to a role: nothing runs, no node has it, or none confirms which has it.
    fn vacant(&self, role: &str, error: &target::TargetError) -> Failure {
        if self.running().is_empty() {
            return Failure::new(Exit::NotRunning, error.to_string());
        }
        match self.why_unconfirmed() {
            Some(why) => Failure::new(
                Exit::Unavailable,
                format!("no node is confirmed as {role}: {why}\nname the nodes by their addresses"),
            ),
            None if self.sum.leader.is_some() => Failure::new(Exit::Failed, error.to_string()),
            None => Failure::new(Exit::Unavailable, error.to_string()),
        }
    }

    /// Why it cannot be known who leads: two nodes claim to, or one that may lead cannot be asked. `None` where it is
    /// known, also where it is known that none does.
    #[must_use]
    pub fn why_unconfirmed(&self) -> Option<String> {
        if let Some(two) = self.two_leaders() {
            return Some(two);
        }
        if self.sum.leader.is_some() || self.sum.unasked.is_empty() {
            return None;
        }
        let unasked = self.nodes.iter().filter(|one| self.sum.unasked.contains(&one.node));
        let why = unasked.map(|one| {
            let why = one.unanswered.as_deref().unwrap_or("it does not answer");
            format!("{} may lead and cannot be asked: {why}", one.node)
        });
        Some(why.collect::<Vec<_>>().join("; "))
    }

    /// That several nodes claim to lead, and which.
    #[must_use]
    pub fn two_leaders(&self) -> Option<String> {
        if self.sum.rivals.is_empty() {
            return None;
        }
        let claims = self.sum.rivals.iter().map(|claim| format!("{} (epoch {})", claim.node, claim.epoch));
        Some(format!("two leaders: {}", claims.collect::<Vec<_>>().join(" and ")))
    }

    /// The one node a user means by `text`.
    ///
    /// # Errors
    /// Where it names nothing, or several.
    pub fn target(&self, text: &str) -> Result<NodeId, Failure> {
        target::only(text, self.targets(text)?).map_err(|error| Failure::usage(error.to_string()))
    }

    /// What a plan starts from.
    ///
    /// # Errors
    /// Where the register cannot be read.
    pub fn observed(&self, context: &Context) -> Result<Observed, Failure> {
        let register_has_view = context.layout.has_view().map_err(|error| {
            let message = format!(
                "cannot read {}: {error}\ncheck that you are the user who started the cluster",
                context.layout.register().display()
            );
            Failure::new(Exit::Failed, message)
        })?;
        let now = spawn::settings(&context.config);
        let running = self
            .nodes
            .iter()
            .filter_map(|one| {
                let pid = one.process.as_ref()?.pid;
                // One that was started by hand, or by an older supervisor, tells nothing of its settings.
                let told = &one.record.settings;
                let changes = if told.is_empty() { Vec::new() } else { plan::changes(told, &now) };
                Some((one.node.clone(), Running { pid, paused: one.is_paused(), changes }))
            })
            .collect();
        Ok(Observed {
            supervisor: self.supervisor.pid(),
            register_has_view,
            running,
            unlisted: self.unlisted.clone(),
            leader: self.sum.leader.clone(),
            in_sync: self.sum.in_sync.clone(),
        })
    }
}

/// The nodes that a client may talk to, running or not: what it writes must not go to another cluster that has their
/// addresses. Whoever may not look into the cluster's directory gets all of them.
///
/// # Errors
/// Where only others are at the nodes' addresses.
pub async fn for_clients(context: &Context) -> Result<Vec<String>, Failure> {
    let Ok(found) = survey(context).await else { return Ok(super::context::names(&context.config.nodes)) };
    let free: Vec<NodeId> =
        found.nodes.iter().filter(|one| one.holder.is_none()).map(|one| one.node.clone()).collect();
    if free.is_empty() { Err(found.nothing_to_change(context)) } else { Ok(super::context::names(&free)) }
}

/// Looks again and again until `done` says so; `None` where that took longer than `patience`.
///
/// # Errors
/// Where the cluster's directory cannot be read.
pub async fn until(
    context: &Context,
    patience: Duration,
    mut done: impl FnMut(&Survey) -> bool,
) -> Result<Result<Survey, Survey>, Failure> {
    let deadline = clock::now() + patience;
    loop {
        let survey = survey(context).await?;
        if done(&survey) {
            return Ok(Ok(survey));
        }
        if clock::now() >= deadline {
            return Ok(Err(survey));
        }
        tokio::time::sleep(super::context::POLL_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests;
