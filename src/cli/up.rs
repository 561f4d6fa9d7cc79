//! `up`: from whatever is there to a cluster that has acknowledged a write. Every step is in the plan first.

use std::time::Duration;

use clap::Args;
use clap_complete::engine::ArgValueCandidates;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::client::probe;
use crate::config::{self, parse_duration};
use crate::control::plan::{self, Spec, Step};
use crate::inherited;
use crate::notify;
use crate::supervisor::adopt;
use crate::supervisor::os;
use crate::supervisor::ports;
use crate::supervisor::run::Options;
use crate::supervisor::socket::Conversation;
use crate::supervisor::spawn;
use crate::supervisor::wire::Request;
use crate::view::NodeId;

use super::context::{Context, ask, ask_nodes, list, names};
use super::exit::{Exit, Failure, Outcome};
use super::holder::Holder;
use super::render::{PLAIN, YELLOW};
use super::survey::{self, NodeSurvey, Survey};
use super::wait::{self, say};
use super::{check, deserted, down, ignore_signals, kill, orphans, recover, remove, start, status, targets};

/// How long a leader that is to go may take to hand over.
const HANDOVER_PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(super) struct Up {
    /// Start only these nodes: addresses, ends of them, leader, follower or followers
    #[arg(long, value_name = "ADDR,…", value_delimiter = ',', add = ArgValueCandidates::new(targets))]
    only: Vec<String>,
    /// Stay, print what happens, and end the cluster with Ctrl-C
    #[arg(long)]
    foreground: bool,
    /// How long the nodes may take to be in sync
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    timeout: Duration,
    /// Print the steps and take none
    #[arg(long)]
    dry_run: bool,
}

impl Up {
    /// True where it stays and is the service.
    pub(super) fn serves(&self) -> bool {
        self.foreground && !self.dry_run
    }
}

pub(super) async fn run(verb: &Up, context: &Context) -> Outcome {
    config::load_and_resolve(&context.config.path)?;
    check::served(&context.config)?;
    context.may_begin()?;
    let mut found = survey::survey(context).await?;
    let mut only: Vec<NodeId> = Vec::new();
    for text in &verb.only {
        only.extend(found.targets(text)?);
    }
    let spec = Spec { nodes: context.config.nodes.clone(), only: (!only.is_empty()).then_some(only) };
    refuse_foreign(&spec, &found)?;
    same_name(context, &found)?;
    let doomed = found.deserted();
    if verb.dry_run {
        for (node, id) in &doomed {
            anstream::println!("end {node} (pid {}), whose directory was deleted while it ran", id.pid);
        }
    } else if !deserted::end(context, &found, down::PATIENCE).await?.is_empty()
        || end_moved(context, &found).await?
    {
        found = survey::survey(context).await?;
    }
    let observed = found.observed(context)?;
    if observed.running.is_empty()
        && let Some(trouble) = recover::register_trouble(context).await?
    {
        let message = format!(
            "{trouble}\nnothing was started: put the right register back, or see what is left with `replcluster recover`"
        );
        return Err(Failure::new(Exit::Failed, message));
    }
    let steps = plan::up(&spec, &observed);
    // Before anything is started: a conflict on the last port must not leave half a cluster behind.
    for step in &steps {
        if let Step::Spawn { node, .. } = step
            && !doomed.iter().any(|(of, id)| of == node && os::is_alive(id))
        {
            ports::await_free(node).await?;
        }
    }
    if steps.contains(&Step::StartSupervisor) {
        // Said here rather than in the log of a supervisor that cannot begin.
        spawn::find_server().map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    }
    if verb.dry_run {
        for step in &steps {
            anstream::println!("{step}");
        }
        return Ok(Exit::Done);
    }
    let ports = if begins_any(&steps) { config::port_warnings(&context.config.nodes) } else { Vec::new() };
    for warning in inherited::warnings().into_iter().chain(ports) {
        anstream::eprintln!("{YELLOW}warning:{PLAIN} {warning}");
    }
    if verb.foreground {
        return foreground(verb, context, &spec, (&found, &steps)).await;
    }
    let supervisor = context.ensure_supervisor().await?;
    let interrupted = context.interrupt.cancelled();
    let found = tokio::select! {
        found = carry_out(verb, context, &spec, (&found, &steps), supervisor) => found?,
        () = interrupted => {
            anstream::eprintln!("interrupted: what was started goes on; end it with `replcluster down`");
            return Ok(Exit::Interrupted);
        }
    };
    finish(context, &found)
}

/// Nothing is started beside another cluster that has one of the addresses.
fn refuse_foreign(spec: &Spec, found: &Survey) -> Result<(), Failure> {
    let wanted = spec.wanted();
    for one in found.nodes.iter().filter(|one| wanted.contains(&one.node)) {
        if let Some(holder @ Holder::Foreign { .. }) = &one.holder {
            let message = format!(
                "{}\nend that cluster from its own directory, or give these nodes other addresses",
                holder.sentence(&one.node)
            );
            return Err(Failure::new(Exit::Conflict, message));
        }
    }
    Ok(())
}

/// Nodes know their files and the register by the name that the directory had when they were started: where it was moved
/// since, no view could be changed any more. Ends them all, for they are started anew; says whether there were any.
async fn end_moved(context: &Context, found: &Survey) -> Result<bool, Failure> {
    let has_moved = |one: &&NodeSurvey| {
        let Some(pid) = one.process.as_ref().map(|process| process.pid) else { return false };
        // In a container the directory may well have another name.
        let given = adopt::data_dir(pid).filter(|_| os::sees_our_files(pid));
        given.is_some_and(|given| !os::is_same_file(&given, &context.layout.data(&one.node)))
    };
    let moved: Vec<NodeId> = found.nodes.iter().filter(has_moved).map(|one| one.node.clone()).collect();
    if moved.is_empty() {
        return Ok(false);
    }
    say(&format!("end {}: the directory was moved while it ran", list(&moved)));
    down::end_all(context, false, down::PATIENCE).await?;
    Ok(true)
}

/// Nodes that run under another name are those of another cluster, whatever the configuration says now.
fn same_name(context: &Context, found: &Survey) -> Result<(), Failure> {
    let name = &context.config.name;
    let other = found.nodes.iter().find_map(|one| {
        let pid = one.process.as_ref()?.pid;
        let given = os::argument(pid, spawn::CLUSTER_FLAG)?;
        (given != name.as_str()).then(|| (&one.node, pid, given.to_string_lossy().into_owned()))
    });
    let Some((node, pid, given)) = other else { return Ok(()) };
    let message = format!(
        "{node} (pid {pid}) runs for a cluster called {given}, and the configuration says {name} now\nput name = \"{given}\" back, or end that cluster first with `replcluster down`"
    );
    Err(Failure::new(Exit::Failed, message))
}

async fn carry_out(
    verb: &Up,
    context: &Context,
    spec: &Spec,
    (found, steps): (&Survey, &[Step]),
    mut supervisor: Conversation,
) -> Result<Survey, Failure> {
    let wanted = spec.wanted();
    // The configuration may have been edited since the supervisor read it.
    ask(&mut supervisor, &Request::Reload).await?;
    for step in steps {
        if matches!(step, Step::Spawn { .. } | Step::Resume { .. } | Step::Keep { adopt: true, .. }) {
            say(&step.to_string());
        }
    }
    let begun: Vec<NodeId> = steps.iter().filter_map(begins).cloned().collect();
    if !begun.is_empty() {
        context.note(Some(&mut supervisor), found.command("up".to_owned(), &begun)).await;
    }
    // One request for all: they are started together, and those that run are left alone.
    let started = ask_nodes(&mut supervisor, &Request::Start { nodes: names(&wanted) }).await?;
    tracing::debug!(?started, "asked the supervisor");
    let mut found = wait::in_sync(context, &wanted, verb.timeout).await?;
    if lead_from_within(context, &found).await {
        found = wait::in_sync(context, &wanted, verb.timeout).await?;
    }
    for step in steps {
        match step {
            Step::AwaitInSync(nodes) => found = wait::in_sync(context, nodes, verb.timeout).await?,
            Step::Lead(node) => found = have_lead(context, node, found).await?,
            Step::TakeOut(node) => {
                say(&step.to_string());
                take_out(context, &mut supervisor, node).await?;
            }
            Step::Restart { node, .. } => {
                say(&step.to_string());
                start::restart_one(&mut supervisor, node).await?;
            }
            Step::ConfirmWrite => confirm_write(context, &found).await?,
            Step::StartSupervisor
            | Step::Keep { .. }
            | Step::Resume { .. }
            | Step::Spawn { .. }
            | Step::Stop(_)
            | Step::Kill(_)
            | Step::EndSupervisor => {}
        }
    }
    status::after_change(context).await
}

/// A leader that the configuration lists no more hands over to a node that it lists, before it is taken out. Says
/// whether it was asked to; where it does not, taking it out tells why.
async fn lead_from_within(context: &Context, found: &Survey) -> bool {
    let nodes = &context.config.nodes;
    let leader = found.sum.leader.as_ref().filter(|leader| !nodes.contains(leader));
    let successor = nodes.iter().find(|node| found.sum.in_sync.contains(node));
    let (Some(leader), Some(successor)) = (leader, successor) else { return false };
    say(&format!("have {successor} lead instead of {leader}, which the configuration lists no more"));
    if let Err(error) = context.asker.move_leader(leader, successor, HANDOVER_PATIENCE).await {
        say(&format!("{leader} did not hand over: {error}"));
    }
    true
}

/// Ends a node that the configuration lists no more, and takes it out of the cluster. Its data stays.
async fn take_out(context: &Context, supervisor: &mut Conversation, node: &NodeId) -> Result<(), Failure> {
    let found = survey::survey(context).await?;
    let Some(leader) = found.sum.leader.clone() else {
        return Err(Failure::new(Exit::Failed, "no node leads any more\nlook at `replcluster status`"));
    };
    let event = found.command("take out".to_owned(), std::slice::from_ref(node));
    context.note(Some(supervisor), event).await;
    remove::out_of_the_cluster(context, &found, supervisor, node, leader).await?;
    ask(supervisor, &Request::Forget { nodes: vec![node.to_string()] }).await?;
    Ok(())
}

fn begins_any(steps: &[Step]) -> bool {
    steps.iter().any(|step| matches!(step, Step::Spawn { .. }))
}

/// The node that a step makes run.
fn begins(step: &Step) -> Option<&NodeId> {
    match step {
        Step::Spawn { node, .. } | Step::Resume { node, .. } | Step::Restart { node, .. } => Some(node),
        Step::StartSupervisor
        | Step::Keep { .. }
        | Step::AwaitInSync(_)
        | Step::Lead(_)
        | Step::ConfirmWrite
        | Step::Stop(_)
        | Step::Kill(_)
        | Step::TakeOut(_)
        | Step::EndSupervisor => None,
    }
}

async fn have_lead(context: &Context, node: &NodeId, found: Survey) -> Result<Survey, Failure> {
    if found.sum.leader.as_ref() == Some(node) {
        return Ok(found);
    }
    say(&Step::Lead(node.clone()).to_string());
    wait::lead(context, node).await
}

/// One write that the cluster acknowledges, below the probes' documented prefix, and taken back at once.
async fn confirm_write(context: &Context, found: &Survey) -> Result<(), Failure> {
    let Some(leader) = &found.sum.leader else {
        return Err(Failure::new(Exit::Failed, "no node leads any more\nlook at `replcluster status`"));
    };
    let key = [probe::PREFIX, format!("up-{:016x}", rand::random::<u64>()).as_bytes()].concat();
    context.asker.canary(leader, &key, Duration::from_secs(10)).await.map_err(|error| {
        let message =
            format!("no write is acknowledged: {error}\nlook at `replcluster status` and `replcluster logs`");
        Failure::new(Exit::Failed, message).with_node_log(&context.layout, leader)
    })?;
    // Of kills after which nobody was left, say.
    kill::sweep(&[leader.to_string()]).await;
    Ok(())
}

fn finish(context: &Context, found: &Survey) -> Outcome {
    status::print_table(context, found);
    let endpoints = found.endpoints().join(",");
    anstream::println!("\nnext: replcluster kill leader      (any etcd v3 client: --endpoints {endpoints})");
    Ok(Exit::Done)
}

/// The supervisor runs in this process. It ends with it, and with it the cluster: that is what was asked for.
async fn foreground(verb: &Up, context: &Context, spec: &Spec, begin: (&Survey, &[Step])) -> Outcome {
    if let Some(pid) = context.supervisor_pid() {
        let message = format!(
            "a supervisor runs already (pid {pid})\nwork with it as it is, or end it first with `replcluster down`"
        );
        return Err(Failure::new(Exit::Conflict, message));
    }
    // A process keeps its parent: what another supervisor started cannot be made to end with this one.
    let running = [begin.0.running(), begin.0.unlisted_running.clone()].concat();
    if !running.is_empty() {
        let message = format!(
            "{} runs already and would outlive a supervisor in the foreground\nend it first with `replcluster down`, or take it over with `replcluster up`",
            list(&running)
        );
        return Err(Failure::new(Exit::Conflict, message));
    }
    super::supervise::log(&context.config)?;
    let config = context.config.path.clone();
    // This command handles signals, and ends the cluster before its supervisor.
    let interrupt = CancellationToken::new();
    let options = Options { config, server: None, foreground: true, interrupt };
    let mut supervisor = tokio::spawn(crate::supervisor::run::run(options));
    let _orphans = AbortOnDropHandle::new(tokio::spawn(orphans::collect()));
    let _signals = AbortOnDropHandle::new(tokio::spawn(ignore_signals(false)));
    let serving = async {
        let conversation = loop {
            match context.supervisor().await? {
                Some(conversation) => break conversation,
                None => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        };
        let found = carry_out(verb, context, spec, begin, conversation).await?;
        status::print_table(context, &found);
        notify::tell(notify::READY);
        anstream::println!(
            "\nrunning {} in the foreground; end the cluster with Ctrl-C",
            list(&found.running())
        );
        super::events::follow(context).await
    };
    let mut outcome = tokio::select! {
        ended = &mut supervisor => {
            return match ended {
                Ok(Ok(())) => Ok(Exit::Done),
                Ok(Err(error)) => Err(error.into()),
                Err(error) => Err(Failure::new(Exit::Failed, format!("the supervisor ended: {error}\nstart it again with `replcluster up`"))),
            };
        }
        outcome = serving => outcome,
        () = context.interrupt.cancelled() => Ok(Exit::Interrupted),
    };
    // A failed start leaves nothing behind in the foreground either; its data stays.
    notify::tell(notify::STOPPING);
    anstream::eprintln!("ending the cluster; Ctrl-C again to leave at once");
    let ended = down::end_all(context, false, down::PATIENCE).await;
    if let Err(failure) = ended
        && outcome.is_ok()
    {
        outcome = Err(failure);
    }
    outcome
}
