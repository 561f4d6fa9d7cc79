//! Golden scripts: one claim a file, its name is the claim. Each story is told step by step to the same world that the
//! simulation drives, with the same checks after every step.
//!
//! | command | does |
//! |---|---|
//! | `cluster 3 [failure=60] [heartbeat=20] [handback=100] [one_disk=1]` | machines `a`, `b`, `c`; nothing runs |
//! | `start a [creates] [commit=4]` | starts a process; it finds what is applied up to `commit` (all, unless said) |
//! | `run 100` | that many milliseconds in a world without faults; prints what matters |
//! | `settle` | everything under way arrives and is answered, while no time passes |
//! | `tick a`, `flush a`, `propose a 3`, `persist a [1]` | one input; `persist` completes all pending writes, or the first |
//! | `keep a` | the first promise among the pending writes of `a` is kept ahead of them |
//! | `deliver a b`, `lose a b` | what is on the way from `a` to `b`; prints what it was |
//! | `hold a b`, `release a b` | `run` and `settle` leave that link alone until the release |
//! | `slow a`, `quick a` | `run` and `settle` complete no writes of `a` until it is quick again |
//! | `register a [does|answers|unknown|unreachable]` | carries out and answers the open operation, or only that half |
//! | `mute a`, `unmute a` | `run` and `settle` leave the operations of `a` on the register alone |
//! | `crash a [keeps=1]`, `wipe a` | kills; that many pending writes survive. Replaces the disk |
//! | `died a` | the others are told of a proof that the process last seen there is dead |
//! | `pause a`, `resume a` | as SIGSTOP and SIGCONT do |
//! | `advance 50` | time passes and nobody notices |
//! | `drop a 5` | the log of `a` is dropped through 5 |
//! | `corrupt a 3`, `shorten a 3` | entries from 3 on become those of another epoch; the log ends there |
//! | `move a b`, `remove a b` | an operator asks `a` for it |
//! | `recover a 9` | the operator makes what `a` holds the source, in that epoch |
//! | `old 1` | the register is put back to that epoch, as a restored backup would |
//! | `status` | where everybody stands |
//!
//! Write a new script without output and run `UPDATE_GOLDENFILES=1 cargo test --lib scripts`; then read what came out.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;

use super::cluster::{Answer, Cluster, Settings, outline_runs};
use super::invariants::Violation;
use super::register::Cell;
use super::text;
use crate::protocol::{Input, Millis, RegisterUnreachable, Role, Swapped};
use crate::view::{Checksum, Epoch, Index, View};

/// How much of what happens is printed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Detail {
    Everything,
    Effects,
    Milestones,
}

/// What goes on all the time and says nothing.
const CHATTER: [&str; 5] = [" ping", " heartbeat ", " appended ", ": tick", ": flush"];
/// What `run` prints.
const MILESTONES: [&str; 14] = [
    "swaps in",
    "adopts",
    "persists promise",
    "serves",
    "orders",
    "warns",
    "halts",
    "truncates",
    "installs",
    "starts a snapshot",
    " transfer",
    " stale",
    " starts",
    "is killed",
];

#[derive(Default)]
struct Story {
    cluster: Option<Cluster>,
    sessions: BTreeMap<usize, u64>,
    held: BTreeSet<(usize, usize)>,
    slow: BTreeSet<usize>,
    muted: BTreeSet<usize>,
    paused: BTreeSet<usize>,
    done: BTreeMap<usize, Answer>,
    /// The register after each view.
    cells: Vec<Cell>,
}

impl From<Violation> for Box<dyn Error> {
    fn from(violation: Violation) -> Box<dyn Error> {
        format!("broken: {}: {}", violation.claim, violation.detail).into()
    }
}

impl Story {
    fn cluster(&mut self) -> &mut Cluster {
        self.cluster.as_mut().expect("a script begins with `cluster`")
    }

    fn machine(&mut self, name: Option<&str>) -> Result<usize, Box<dyn Error>> {
        let name = name.ok_or("which node?")?;
        let found = self.cluster().machines.iter().position(|machine| text::name(&machine.id) == name);
        found.ok_or_else(|| format!("there is no node {name}").into())
    }

    fn runs(&self, machine: usize) -> bool {
        !self.paused.contains(&machine)
            && self.cluster.as_ref().is_some_and(|cluster| cluster.process(machine).is_some())
    }

    /// What can happen happens, until nothing can.
    fn settle(&mut self) -> Result<(), Violation> {
        loop {
            let mut quiet = true;
            for machine in 0..self.cluster().machines.len() {
                if !self.runs(machine) {
                    continue;
                }
                let process = self.cluster().process(machine).expect("runs");
                let (writes, call) = (process.writes.len(), process.call.clone());
                if writes > 0 && !self.slow.contains(&machine) {
                    self.cluster().persist(machine, writes)?;
                    quiet = false;
                }
                if let Some(call) = call
                    && !self.muted.contains(&machine)
                {
                    let answer = self.at_register(&call)?;
                    self.cluster().answer(machine, answer)?;
                    quiet = false;
                }
                self.cluster().input(machine, Input::Flush)?;
            }
            for flight in std::mem::take(&mut self.cluster().sent) {
                if self.held.contains(&(flight.from, flight.to)) || self.paused.contains(&flight.to) {
                    self.cluster().sent.push(flight);
                } else {
                    self.cluster().deliver(flight)?;
                    quiet = false;
                }
            }
            for snapshot in std::mem::take(&mut self.cluster().snapshots) {
                if self.held.contains(&(snapshot.from, snapshot.to)) || self.paused.contains(&snapshot.to) {
                    self.cluster().snapshots.push(snapshot);
                } else {
                    self.cluster().deliver_snapshot(&snapshot)?;
                    quiet = false;
                }
            }
            if quiet {
                return Ok(());
            }
        }
    }

    fn at_register(&mut self, call: &super::cluster::Call) -> Result<Answer, Violation> {
        let answer = self.cluster().at_register(call)?;
        let stands = self.cluster().cell.clone();
        self.cells.push(stands);
        Ok(answer)
    }

    fn run_for(&mut self, time: Millis) -> Result<(), Violation> {
        let end = self.cluster().now + time;
        while self.cluster().now < end {
            self.cluster().now += 5.min(end - self.cluster().now);
            for machine in 0..self.cluster().machines.len() {
                if self.runs(machine) {
                    self.cluster().input(machine, Input::Tick)?;
                }
            }
            self.settle()?;
        }
        Ok(())
    }

    fn register(&mut self, machine: usize, how: Option<&str>) -> Result<(), Box<dyn Error>> {
        let call = self.cluster().process(machine).and_then(|process| process.call.clone());
        let call = call.ok_or("it asks nothing of the register")?;
        match how {
            None => {
                let answer = self.at_register(&call)?;
                self.cluster().answer(machine, answer)?;
            }
            Some("does") => {
                let answer = self.at_register(&call)?;
                self.done.insert(machine, answer);
            }
            Some("answers") => {
                let answer = self.done.remove(&machine).ok_or("the register has not done it yet")?;
                self.cluster().answer(machine, answer)?;
            }
            Some("unknown") => self.cluster().answer(machine, Answer::Swap(Swapped::Unknown))?,
            Some("unreachable") => {
                self.cluster().answer(machine, Answer::Read(Err(RegisterUnreachable)))?;
            }
            Some(other) => return Err(format!("the register cannot {other}").into()),
        }
        Ok(())
    }

    fn crash(&mut self, machine: usize, keeps: usize) -> Result<(), Violation> {
        if let Some(process) = self.cluster().process(machine) {
            let session = process.session;
            self.sessions.insert(machine, session);
        }
        self.paused.remove(&machine);
        self.done.remove(&machine);
        self.cluster().crash(machine, keeps, 0)
    }

    fn status(&mut self) -> String {
        let cluster = self.cluster();
        let mut lines = Vec::new();
        for machine in &cluster.machines {
            let name = text::name(&machine.id);
            let Some(process) = &machine.process else {
                lines.push(format!("{name}: down"));
                continue;
            };
            let node = &process.node;
            let role = match node.role() {
                Role::Leader(_) if node.can_propose() => "leader, serves",
                Role::Leader(_) if node.is_serving() => "leader, hands over",
                Role::Leader(_) => "leader, opens its epoch",
                Role::Candidate(_) => "candidate",
                Role::Follower(_) if node.is_in_sync() => "follower, in sync",
                Role::Follower(_) => "follower, outside",
            };
            let base = node.log().base().index;
            let runs = outline_runs(&process.log, base);
            lines.push(format!(
                "{name}: {role}, epoch {} promised {}, log {}[{}] durable {} commit {}",
                node.epoch(),
                node.promised(),
                if base == Index(0) { String::new() } else { format!("after {base} ") },
                text::runs(&runs, node.log().last().index),
                node.log().durable(),
                node.log().commit(),
            ));
        }
        lines.push(
            cluster
                .register()
                .map_or("register: empty".to_owned(), |view| format!("register: {}", text::view(view))),
        );
        lines.join("\n")
    }

    /// What has happened since the last command.
    fn told(&mut self, detail: Detail) -> String {
        let lines = self.cluster().trace.replace(Vec::new()).unwrap_or_default();
        let mut told = String::new();
        for line in lines {
            let time: Millis = line[..5].trim().parse().expect("a trace line begins with the time");
            let what = &line[6..];
            let effect = what.starts_with("  ") || what.starts_with("register:");
            let matters = match detail {
                Detail::Everything => !what.ends_with(" ping"),
                Detail::Effects => effect && !CHATTER.iter().any(|chatter| what.contains(chatter)),
                Detail::Milestones => {
                    (effect || !what.contains(": "))
                        && MILESTONES.iter().any(|milestone| what.contains(milestone))
                        || what.starts_with("register:")
                }
            };
            if matters {
                told += &format!("{:>4} {}\n", time - 1000, what.strip_prefix("  ").unwrap_or(what));
            }
        }
        told
    }
}

impl goldenscript::Runner for Story {
    type Command = goldenscript::Command;

    fn run(
        &mut self,
        command: &goldenscript::Command,
        _context: &goldenscript::Context,
    ) -> Result<String, Box<dyn Error>> {
        let mut args = command.consume_args();
        let mut number = |key: &str, default: u64| -> Result<u64, Box<dyn Error>> {
            Ok(args.take_key(key).map(str::parse).transpose()?.unwrap_or(default))
        };
        let (commit, keeps) = (number("commit", u64::MAX)?, number("keeps", 0)?);
        if command.name == "cluster" {
            let settings = Settings {
                heartbeat_interval: number("heartbeat", 20)?,
                failure_timeout: number("failure", 60)?,
                stall_timeout: number("stall", 200)?,
                handback_after: Some(number("handback", 0)?).filter(|after| *after > 0),
                few_sessions: false,
                one_disk: number("one_disk", 0)? > 0,
                broken: None,
            };
            let count = args.next_pos().ok_or("how many?")?.parse()?;
            let mut cluster = Cluster::new(count, settings);
            cluster.trace = Some(Vec::new());
            self.cluster = Some(cluster);
            return Ok(String::new());
        }
        let first = args.next_pos();
        let second = args.next_pos();
        args.reject_next()?;
        let mut detail = Detail::Everything;
        match command.name.as_str() {
            "start" => {
                let machine = self.machine(first)?;
                self.cluster().machines[machine].creates = second == Some("creates");
                self.cluster().start(machine, Index(commit));
            }
            "run" => {
                detail = Detail::Milestones;
                self.run_for(first.ok_or("for how long?")?.parse()?)?;
            }
            "advance" => self.cluster().now += first.ok_or("by how much?")?.parse::<Millis>()?,
            "settle" => {
                detail = Detail::Effects;
                self.settle()?;
            }
            "tick" => {
                let machine = self.machine(first)?;
                self.cluster().input(machine, Input::Tick)?;
            }
            "flush" => {
                let machine = self.machine(first)?;
                self.cluster().input(machine, Input::Flush)?;
            }
            "propose" => {
                let machine = self.machine(first)?;
                if !self.cluster().propose(machine, second.unwrap_or("1").parse()?)? {
                    return Ok(format!("{} takes nothing\n", self.cluster().name(machine)));
                }
            }
            "persist" => {
                let machine = self.machine(first)?;
                self.cluster().persist(machine, second.map_or(Ok(usize::MAX), str::parse)?)?;
            }
            "keep" => {
                let machine = self.machine(first)?;
                self.cluster().keep_promise(machine)?;
            }
            "deliver" | "lose" => {
                let link = (self.machine(first)?, self.machine(second)?);
                for flight in std::mem::take(&mut self.cluster().sent) {
                    if (flight.from, flight.to) != link {
                        self.cluster().sent.push(flight);
                    } else if command.name == "deliver" {
                        self.cluster().deliver(flight)?;
                    }
                }
            }
            "hold" | "release" => {
                let link = (self.machine(first)?, self.machine(second)?);
                if command.name == "hold" {
                    self.held.insert(link)
                } else {
                    self.held.remove(&link)
                };
            }
            "slow" | "quick" => {
                let machine = self.machine(first)?;
                if command.name == "slow" {
                    self.slow.insert(machine)
                } else {
                    self.slow.remove(&machine)
                };
            }
            "full" | "roomy" => {
                let machine = self.machine(first)?;
                self.cluster().input(machine, Input::Space { full: command.name == "full" })?;
            }
            "mute" | "unmute" => {
                let machine = self.machine(first)?;
                if command.name == "mute" {
                    self.muted.insert(machine)
                } else {
                    self.muted.remove(&machine)
                };
            }
            "pause" | "resume" => {
                let machine = self.machine(first)?;
                if command.name == "pause" {
                    self.paused.insert(machine)
                } else {
                    self.paused.remove(&machine)
                };
            }
            "register" => {
                let machine = self.machine(first)?;
                self.register(machine, second)?;
            }
            "crash" => {
                let machine = self.machine(first)?;
                self.crash(machine, keeps as usize)?;
            }
            "wipe" => {
                let machine = self.machine(first)?;
                self.cluster().wipe(machine);
                self.cluster().seen.spoilt.remove(&machine);
            }
            "died" => {
                let machine = self.machine(first)?;
                let node = self.cluster().machines[machine].id.clone();
                let session = self.sessions.get(&machine).copied();
                for other in 0..self.cluster().machines.len() {
                    if other != machine && self.runs(other) {
                        self.cluster().input(other, Input::Died { node: node.clone(), session })?;
                    }
                }
            }
            "drop" => {
                let machine = self.machine(first)?;
                self.cluster().drop_log(machine, Index(second.ok_or("through what?")?.parse()?))?;
            }
            "corrupt" | "shorten" => {
                let machine = self.machine(first)?;
                let at: usize = second.ok_or("which entry?")?.parse()?;
                self.cluster().seen.spoilt.insert(machine);
                let log = &mut self.cluster().machines[machine].disk.log;
                if command.name == "shorten" {
                    log.truncate(at);
                } else {
                    log[at - 1..].iter_mut().for_each(|entry| entry.0 = Epoch(entry.0.0 - 1));
                }
            }
            "move" | "remove" => {
                let (machine, other) = (self.machine(first)?, self.machine(second)?);
                let node = self.cluster().machines[other].id.clone();
                let move_leader = command.name == "move";
                self.cluster().input(
                    machine,
                    if move_leader { Input::MoveLeader(node) } else { Input::Remove(node) },
                )?;
            }
            "recover" => {
                let machine = self.machine(first)?;
                let epoch = Epoch(second.ok_or("in which epoch?")?.parse()?);
                let cluster = self.cluster();
                let source = &cluster.machines[machine];
                let own = BTreeMap::from([(source.id.clone(), source.disk.incarnation)]);
                let floor = Index(source.disk.log.len() as u64);
                let leader = source.id.clone();
                let old =
                    cluster.cell.newest.clone().or_else(|| source.disk.view.clone()).ok_or("no view")?;
                let members = old.members.iter().map(|(node, own)| (node.clone(), *own)).chain(own.clone());
                cluster.cell.declare(View {
                    epoch,
                    leader,
                    led_since: epoch,
                    recovered: epoch,
                    members: members.collect(),
                    in_sync: own,
                    floor,
                    previous: Checksum(0),
                    ..old
                });
                // What only the other copies held is given up: the source's log is the truth from now on.
                cluster.truth.truncate(floor.0 as usize);
                cluster.seen.spoilt.extend((0..cluster.machines.len()).filter(|other| *other != machine));
            }
            "old" => {
                let epoch: u64 = first.ok_or("which epoch?")?.parse()?;
                let cell = self.cells.iter().find(|cell| cell.epoch().0 == epoch).cloned();
                self.cluster().cell = cell.ok_or("no such view")?;
            }
            "status" => {
                self.told(detail);
                return Ok(self.status());
            }
            other => return Err(format!("no such command: {other}").into()),
        }
        Ok(self.told(detail))
    }
}

#[cfg(test)]
mod tests {
    use super::Story;

    fn directory() -> std::path::PathBuf {
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/protocol/scripts")
    }

    macro_rules! scripts {
        ($($name:ident)*) => {
            const NAMES: &[&str] = &[$(stringify!($name)),*];
            $(
                #[test]
                fn $name() {
                    goldenscript::run(&mut Story::default(), directory().join(stringify!($name))).unwrap();
                }
            )*
        };
    }

    scripts! {
        a_cluster_is_created_by_one_swap
        acknowledgement_follows_the_disk
        candidate_promises_before_it_swaps
        commit_needs_every_in_sync_node
        counted_node_gets_the_log_however_little_it_knows
        divergence_below_commit_halts
        doubt_about_the_register_outlasts_its_absence
        every_change_of_the_set_is_a_new_epoch
        follower_dropped_only_after_the_swap_is_confirmed
        follower_whose_disk_hangs_is_dropped
        full_follower_leaves_the_set_until_it_has_room
        full_leader_hands_over_and_all_full_changes_nothing
        handback_when_lower_node_has_stayed
        healthy_set_serves_while_the_register_is_unreachable
        higher_epoch_makes_a_node_read_the_register
        joiner_is_waited_for_before_it_is_counted
        late_proof_of_an_older_death_harms_nobody
        late_snapshot_cuts_nothing
        leader_dead_by_proof_is_replaced_by_the_lowest_live
        leader_put_back_to_an_old_backup_steps_aside
        leader_restarting_at_once_opens_a_new_epoch
        leader_whose_disk_hangs_falls_silent
        leadership_moves_on_request_without_loss
        lost_entries_are_sent_again
        lost_swap_answer_is_settled_before_anything_else
        new_leader_commits_the_tail_it_found
        new_leader_drops_who_does_not_answer
        new_leader_serves_only_after_its_opening_is_everywhere
        node_outside_the_set_does_not_lead
        node_that_lives_but_does_not_follow_is_dropped
        node_that_lost_what_it_acknowledged_leaves_the_set
        node_waits_for_lower_live_ones_but_not_for_ever
        old_leader_waking_up_steps_down
        operator_makes_one_copy_the_source
        promise_outlives_a_restart
        register_older_than_what_others_have_seen_is_refused
        register_put_back_is_refused
        removed_node_stops
        restart_finds_what_was_durable_and_no_more
        short_log_does_not_lead
        silent_leader_is_replaced_after_failure_timeout
        sleeper_blames_nobody_for_its_own_silence
        snapshot_then_log_join
        stale_epoch_is_refused
        transfer_that_fails_ends_in_time
        uncommitted_tail_is_cut_above_commit
        views_do_not_change_while_the_register_is_unreachable
        what_is_durable_counts_as_soon_as_the_view_is
        wiped_leader_is_replaced
        wiped_node_leaves_the_set_first
    }

    #[test]
    fn every_script_is_run() {
        let files = std::fs::read_dir(directory()).unwrap();
        let mut files: Vec<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        files.sort();
        assert_eq!(files, NAMES, "scripts in the directory, and scripts that are run (by name)");
    }
}
