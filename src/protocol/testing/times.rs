//! Claims about time: how long writers wait, who leads, how often that changes. A small world in which every step takes
//! a known time: messages one millisecond, a sync two, the register none. One fault each, and a client that writes all
//! the time. Each story names the rule without which its claim does not hold.

use super::cluster::{Answer, Call, Cluster, Settings};
use crate::protocol::rules::Rule;
use crate::protocol::{Input, Millis, NotPrepared, Swapped};
use crate::view::{Epoch, Index};

/// What is wrong with a machine at a moment.
#[derive(Clone, Copy, Default)]
struct State {
    /// It is stopped, as by SIGSTOP.
    frozen: bool,
    /// Its disk takes nothing.
    hangs: bool,
    /// Its disk is nearly full.
    full: bool,
    /// Its operations on the register are not answered.
    mute: bool,
    /// Nothing arrives from it, or at it.
    cut: bool,
}

/// A cluster of three and what was seen of it.
struct Story {
    cluster: Cluster,
    time: Millis,
    syncing: Vec<Option<(Millis, usize)>>,
    /// Nothing new can be made ready in the register.
    no_room: bool,
    proposed: usize,
    /// Milliseconds in which nothing was committed although a client was waiting.
    stalled: Millis,
    longest: Millis,
    stall: Millis,
}

const MACHINES: usize = 3;

impl Story {
    /// Three nodes in sync, led by `a`.
    fn new(broken: Option<Rule>, handback_after: Option<Millis>) -> Story {
        Story::with(Settings { handback_after, broken, ..Settings::default() })
    }

    fn with(settings: Settings) -> Story {
        let mut cluster = Cluster::new(MACHINES, settings);
        cluster.seen.only_consequences = true;
        cluster.machines[0].creates = true;
        let mut story = Story {
            cluster,
            time: 0,
            syncing: vec![None; MACHINES],
            no_room: false,
            proposed: 0,
            stalled: 0,
            longest: 0,
            stall: 0,
        };
        (0..MACHINES).for_each(|machine| story.start(machine));
        story.run(300, |_, _| State::default());
        assert_eq!(story.view().0, 0, "a leads");
        assert_eq!(story.view().1, MACHINES, "all are in sync");
        (story.stalled, story.longest, story.stall) = (0, 0, 0);
        story
    }

    fn start(&mut self, machine: usize) {
        self.cluster.start(machine, Index(u64::MAX));
    }

    fn kill(&mut self, machine: usize) -> u64 {
        let session = self.cluster.process(machine).expect("runs").session;
        self.cluster.crash(machine, 0, 0).expect("a crash breaks nothing");
        self.syncing[machine] = None;
        session
    }

    fn died(&mut self, machine: usize, session: u64) {
        let node = self.cluster.machines[machine].id.clone();
        for other in (0..MACHINES).filter(|other| *other != machine) {
            let died = Input::Died { node: node.clone(), session: Some(session) };
            self.cluster.input(other, died).expect("a proof breaks nothing");
        }
    }

    /// The leader, how many are in sync, and the epoch.
    fn view(&self) -> (usize, usize, Epoch) {
        let view = self.cluster.register().expect("a view");
        (self.cluster.machine_of(&view.leader), view.in_sync.len(), view.epoch)
    }

    /// That many milliseconds, in which machine `m` is at time `t` as `state(m, t)` says.
    fn run(&mut self, length: Millis, state: impl Fn(usize, Millis) -> State) {
        let began = self.time;
        while self.time < began + length {
            self.time += 1;
            self.cluster.now += 1;
            let since = self.time - began;
            self.tick(&|machine| state(machine, since));
        }
    }

    fn tick(&mut self, state: &dyn Fn(usize) -> State) {
        let committed = self.cluster.truth.len();
        for flight in std::mem::take(&mut self.cluster.sent) {
            if state(flight.to).frozen {
                self.cluster.sent.push(flight);
            } else if !state(flight.from).cut && !state(flight.to).cut {
                self.cluster.deliver(flight).expect("no claim breaks");
            }
        }
        self.cluster.snapshots.clear();
        for machine in 0..MACHINES {
            let now = state(machine);
            let Some(process) = self.cluster.process(machine).filter(|_| !now.frozen) else { continue };
            let (call, pending) = (process.call.clone(), process.writes.len());
            let full = process.node.is_full();
            if let Some(call) = call.filter(|_| !now.mute) {
                let answer = self.at_register(machine, &call);
                self.cluster.answer(machine, answer).expect("no claim breaks");
            }
            match self.syncing[machine] {
                Some((due, count)) if self.time >= due && !now.hangs => {
                    self.syncing[machine] = None;
                    self.cluster.persist(machine, count).expect("no claim breaks");
                }
                None if pending > 0 => self.syncing[machine] = Some((self.time + 2, pending)),
                Some(_) | None => {}
            }
            if full != now.full {
                self.cluster.input(machine, Input::Space { full: now.full }).expect("no claim breaks");
            }
            if self.time.is_multiple_of(5) {
                self.cluster.input(machine, Input::Tick).expect("no claim breaks");
                self.proposed += usize::from(self.cluster.propose(machine, 1).expect("no claim breaks"));
            }
            self.cluster.input(machine, Input::Flush).expect("no claim breaks");
        }
        let stands = self.cluster.truth.len() == committed;
        // A millisecond or two between two writes is no stall.
        self.stall = if stands { self.stall + 1 } else { 0 };
        if self.stall > 20 {
            self.stalled += 1;
        }
        self.longest = self.longest.max(self.stall);
    }

    fn at_register(&mut self, machine: usize, call: &Call) -> Answer {
        let ready = self.cluster.process(machine).and_then(|process| process.prepared.clone());
        match call {
            Call::Prepare(_) if self.no_room => Answer::Prepare(Err(NotPrepared)),
            Call::Swap { view, .. } if self.no_room && ready.as_ref() != Some(view) => {
                Answer::Swap(Swapped::Failed)
            }
            _ => self.cluster.at_register(call).expect("no claim breaks"),
        }
    }
}

type Outcome = Result<String, String>;

fn claim(holds: bool, what: String) -> Outcome {
    if holds { Ok(what) } else { Err(what) }
}

const WELL: State = State { frozen: false, hangs: false, full: false, mute: false, cut: false };

/// R36: f is 60 ms here. Frozen for 80 of every 90 ms, `c` is silent for too long in each round.
fn a_follower_that_comes_and_goes_stalls_writers_little(broken: Option<Rule>) -> Outcome {
    let mut story = Story::new(broken, None);
    story.run(3_000, |machine, time| State { frozen: machine == 2 && time % 90 < 80, ..WELL });
    let share = 100 * story.stalled / 3_000;
    claim(share <= 15, format!("writers stand still for {share} % of 50 f"))
}

/// R36: frozen for 56 of every 60 ms it is never silent for long enough.
fn a_follower_that_is_slow_but_speaks_stalls_writers_little(broken: Option<Rule>) -> Outcome {
    let mut story = Story::new(broken, None);
    story.run(6_000, |machine, time| State { frozen: machine == 2 && time % 60 < 56, ..WELL });
    let share = 100 * story.stalled / 6_000;
    claim(share <= 25, format!("writers stand still for {share} % of 100 f"))
}

/// R36: a leader that is frozen so is never silent for long enough either, and nothing is ordered meanwhile.
fn a_leader_that_is_slow_but_speaks_stalls_writers_little(broken: Option<Rule>) -> Outcome {
    let mut story = Story::new(broken, None);
    story.run(6_000, |machine, time| State { frozen: machine == 0 && time % 60 < 56, ..WELL });
    let (leader, ..) = story.view();
    let share = 100 * story.stalled / 6_000;
    claim(
        leader == 1 && share <= 35,
        format!("machine {leader} leads, writers stand still for {share} % of 100 f"),
    )
}

/// R36: a follower that is the lowest begins to be slow before it has been in sync for long enough to lead again.
fn leadership_is_not_handed_back_to_a_slow_node(broken: Option<Rule>) -> Outcome {
    let mut story = Story::new(broken, Some(200));
    let session = story.kill(0);
    story.died(0, session);
    story.run(50, |_, _| WELL);
    story.start(0);
    story.run(100, |_, _| WELL);
    let (before, in_sync, _) = story.view();
    assert_eq!((before, in_sync), (1, MACHINES), "b leads, a is back");
    let mut led = 0;
    for _ in 0..50 {
        story.run(60, |machine, time| State { frozen: machine == 0 && time < 56, ..WELL });
        led += u64::from(story.view().0 == 0);
    }
    claim(led == 0, format!("it leads at the end of {led} of 50 rounds"))
}

/// R9, R36: as soon as it is well it leads again.
fn leadership_is_handed_back_to_a_node_that_was_slow_for_a_moment(broken: Option<Rule>) -> Outcome {
    let mut story = Story::new(broken, Some(200));
    story.run(120, |machine, _| State { frozen: machine == 0, ..WELL });
    let (before, ..) = story.view();
    story.run(700, |_, _| WELL);
    let (after, ..) = story.view();
    claim((before, after) == (1, 0), format!("machine {before} leads meanwhile, {after} 12 f later"))
}

/// R36: one silence costs a node nothing but the time until it is back.
fn a_node_that_was_silent_once_is_back_at_once(broken: Option<Rule>) -> Outcome {
    let mut story = Story::new(broken, None);
    story.run(200, |machine, time| State { frozen: machine == 2 && time < 100, ..WELL });
    let (_, in_sync, _) = story.view();
    claim(in_sync == MACHINES, format!("{in_sync} are in sync 100 ms after it is well"))
}

/// R8: `b` is slow to read the register; `c` waits for it.
fn the_lowest_live_node_takes_over(broken: Option<Rule>) -> Outcome {
    let mut story = Story::new(broken, None);
    let session = story.kill(0);
    story.died(0, session);
    story.run(100, |machine, time| State { mute: machine == 1 && time < 8, ..WELL });
    let (leader, ..) = story.view();
    claim(leader == 1, format!("machine {leader} leads"))
}

/// R9: `a` crashes again and again soon after it has come back.
fn a_node_that_crashes_again_and_again_does_not_make_leadership_flap(broken: Option<Rule>) -> Outcome {
    let mut story = Story::new(broken, Some(400));
    let (mut changes, mut leads) = (0, 0);
    for _ in 0..8 {
        let session = story.kill(0);
        story.died(0, session);
        story.run(20, |_, _| WELL);
        story.start(0);
        for _ in 0..18 {
            story.run(10, |_, _| WELL);
            let (leader, ..) = story.view();
            changes += u64::from(leader != leads);
            leads = leader;
        }
    }
    claim(changes <= 2, format!("leadership changes {changes} times in 8 crashes"))
}

/// R9: all that was ordered before a hand-over is committed after it, also what has not reached the target yet.
fn a_hand_over_loses_nothing_that_was_ordered(broken: Option<Rule>) -> Outcome {
    let mut story = Story::new(broken, None);
    for _ in 0..20 {
        let (leader, ..) = story.view();
        let target = (leader + 1) % 2;
        let to = story.cluster.machines[target].id.clone();
        // What is sent now does not arrive there.
        story.run(10, |machine, time| State { cut: machine == target && time > 4, ..WELL });
        story.cluster.input(leader, Input::MoveLeader(to)).expect("no claim breaks");
        story.run(90, |_, _| WELL);
    }
    let lost = story.proposed - story.cluster.truth.iter().filter(|(_, payload)| *payload > 0).count();
    claim(lost <= 1, format!("{lost} of {} are not committed", story.proposed))
}

/// R25: the leader's disk is nearly full, those of others are not.
fn a_leader_with_room_leads(broken: Option<Rule>) -> Outcome {
    let mut story = Story::new(broken, None);
    story.run(200, |machine, _| State { full: machine == 0, ..WELL });
    let (leader, ..) = story.view();
    claim(leader != 0, format!("machine {leader} leads"))
}

/// R25: one disk under all of them is full; they notice one after the other.
fn a_set_whose_disks_are_all_full_stays_as_it_is(broken: Option<Rule>) -> Outcome {
    let mut story = Story::new(broken, None);
    let (.., before) = story.view();
    story.run(600, |machine, time| State { full: time > 20 * (2 - machine as Millis), ..WELL });
    let (leader, in_sync, epoch) = story.view();
    claim(
        epoch == before,
        format!("machine {leader} leads {in_sync} in epoch {epoch}, before it was {before}"),
    )
}

/// R25: one disk holds the data of all; the leader finds it full first, and none has more room than it.
fn on_one_full_disk_leader_and_set_stay(broken: Option<Rule>) -> Outcome {
    let mut story = Story::with(Settings { one_disk: true, broken, ..Settings::default() });
    let (.., before) = story.view();
    story.run(600, |machine, time| State { full: time > 100 * machine as Millis, ..WELL });
    let (leader, in_sync, epoch) = story.view();
    claim(
        epoch == before,
        format!("machine {leader} leads {in_sync} in epoch {epoch}, before it was {before}"),
    )
}

/// R31: the leader's disk hangs for good.
fn a_leader_whose_disk_hangs_is_replaced(broken: Option<Rule>) -> Outcome {
    let mut story = Story::new(broken, None);
    story.run(1_000, |machine, _| State { hangs: machine == 0, ..WELL });
    claim(story.longest < 500, format!("writers wait {} ms", story.longest))
}

/// R31: a follower's disk hangs for good.
fn a_follower_whose_disk_hangs_is_dropped(broken: Option<Rule>) -> Outcome {
    let mut story = Story::new(broken, None);
    story.run(1_000, |machine, _| State { hangs: machine == 2, ..WELL });
    claim(story.longest < 500, format!("writers wait {} ms", story.longest))
}

/// R28: the proof of an older death comes when the next process has long spoken.
fn a_late_proof_of_an_older_death_changes_nothing(broken: Option<Rule>) -> Outcome {
    let mut story = Story::new(broken, None);
    let session = story.kill(2);
    story.start(2);
    story.run(200, |_, _| WELL);
    let (.., before) = story.view();
    story.died(2, session);
    story.run(200, |_, _| WELL);
    let (.., epoch) = story.view();
    claim(epoch == before, format!("epoch {before} becomes {epoch}"))
}

/// R11: the leader is killed, the next takes over and goes on, and then the register is put back to what it was before.
/// The old leader starts anew, and finds in the register what it has on its disk.
fn an_old_leader_that_starts_on_an_older_register_hears_the_others_first(broken: Option<Rule>) -> Outcome {
    let mut story = Story::new(broken, None);
    let (copy, (_, _, before)) = (story.cluster.cell.clone(), story.view());
    let session = story.kill(0);
    story.died(0, session);
    story.run(100, |_, _| WELL);
    story.cluster.put_back(copy);
    story.start(0);
    // The first connections take a moment.
    story.run(300, |machine, time| State { cut: machine == 0 && time < 15, ..WELL });
    let (.., epoch) = story.view();
    claim(epoch == before, format!("the older register stands at epoch {epoch}, and at {before} before"))
}

/// R11: nobody else runs, and that is proved: there is nobody to be heard.
fn a_leader_that_starts_alone_waits_for_nobody_who_is_proved_dead(broken: Option<Rule>) -> Outcome {
    let mut story = Story::new(broken, None);
    let (.., before) = story.view();
    let sessions: Vec<u64> = (0..MACHINES).map(|machine| story.kill(machine)).collect();
    story.start(0);
    for (machine, session) in sessions.into_iter().enumerate().skip(1) {
        story.died(machine, session);
    }
    story.run(20, |_, _| WELL);
    let (.., epoch) = story.view();
    claim(epoch == before.next(), format!("epoch {before} becomes {epoch} in a third of a silence"))
}

/// R34: the register has no room, and the leader is silent for a moment.
fn without_room_for_a_view_a_leader_that_is_back_serves_on(broken: Option<Rule>) -> Outcome {
    let mut story = Story::new(broken, None);
    story.no_room = true;
    story.run(150, |machine, _| State { cut: machine == 0, ..WELL });
    story.stall = 0;
    let before = story.cluster.truth.len();
    story.run(1_000, |_, _| WELL);
    let committed = story.cluster.truth.len() - before;
    claim(committed > 50, format!("{committed} entries are committed in a second after that"))
}

/// R34: a swap or a view that the register has no room for is tried again at growing intervals.
fn without_room_for_a_view_the_register_is_asked_seldom(broken: Option<Rule>) -> Outcome {
    let mut story = Story::new(broken, None);
    story.no_room = true;
    story.cluster.trace = Some(Vec::new());
    let session = story.kill(0);
    story.died(0, session);
    story.run(2_400, |_, _| WELL);
    let trace = story.cluster.trace.take().unwrap_or_default();
    let asked = trace.iter().filter(|line| line.contains("prepares")).count();
    claim((4..40).contains(&asked), format!("it is asked {asked} times in 40 f by two nodes"))
}

type Tale = fn(Option<Rule>) -> Outcome;

/// Each claim, and the rules without which it does not hold.
const TALES: &[(&str, Tale, &[Rule])] = &[
    ("comes and goes", a_follower_that_comes_and_goes_stalls_writers_little, &[Rule::JoinUndamped]),
    ("slow but speaks", a_follower_that_is_slow_but_speaks_stalls_writers_little, &[Rule::WaitForSlow]),
    ("slow leader", a_leader_that_is_slow_but_speaks_stalls_writers_little, &[Rule::FollowSlow]),
    ("handed to nobody slow", leadership_is_not_handed_back_to_a_slow_node, &[Rule::HandBackToSlow]),
    ("handed back", leadership_is_handed_back_to_a_node_that_was_slow_for_a_moment, &[]),
    ("silent once", a_node_that_was_silent_once_is_back_at_once, &[]),
    ("lowest takes over", the_lowest_live_node_takes_over, &[Rule::TakeOverAtOnce]),
    (
        "no flapping",
        a_node_that_crashes_again_and_again_does_not_make_leadership_flap,
        &[Rule::HandBackAtOnce],
    ),
    ("hand-over", a_hand_over_loses_nothing_that_was_ordered, &[Rule::HandOverUndrained]),
    ("full leader", a_leader_with_room_leads, &[Rule::LeadWithFullDisk]),
    ("all full", a_set_whose_disks_are_all_full_stays_as_it_is, &[]),
    ("one full disk", on_one_full_disk_leader_and_set_stay, &[Rule::CompareSharedDisk]),
    ("leader's disk hangs", a_leader_whose_disk_hangs_is_replaced, &[Rule::LeadWithHungDisk]),
    ("follower's disk hangs", a_follower_whose_disk_hangs_is_dropped, &[Rule::WaitForHungDisk]),
    ("late proof", a_late_proof_of_an_older_death_changes_nothing, &[Rule::AnyDeathCounts]),
    (
        "older register",
        an_old_leader_that_starts_on_an_older_register_hears_the_others_first,
        &[Rule::SwapUnheard],
    ),
    ("alone", a_leader_that_starts_alone_waits_for_nobody_who_is_proved_dead, &[]),
    ("no room", without_room_for_a_view_a_leader_that_is_back_serves_on, &[Rule::PromiseUnprepared]),
    ("no room, asked seldom", without_room_for_a_view_the_register_is_asked_seldom, &[]),
];

#[test]
fn every_claim_about_time_holds() {
    let mut broken = Vec::new();
    for (name, tale, _) in TALES {
        match tale(None) {
            Ok(what) => println!("{name}: {what}"),
            Err(what) => broken.push(format!("{name}: {what}")),
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn claims_about_time_miss_each_rule_that_is_left_out() {
    let mut unnoticed = Vec::new();
    for (name, tale, rules) in TALES {
        for rule in *rules {
            match tale(Some(*rule)) {
                Ok(what) => unnoticed.push(format!("{name} without {rule:?}: {what}")),
                Err(what) => println!("{name} without {rule:?}: {what}"),
            }
        }
    }
    assert!(unnoticed.is_empty(), "{}", unnoticed.join("\n"));
}
