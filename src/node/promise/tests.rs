use std::collections::BTreeMap;

use super::*;
use crate::node::testing::disk::{Fault, Operation, SimDisk};
use crate::protocol::testing::random::Random;
use crate::rules::without;
use crate::view::{ClusterId, Incarnation, NodeId};

const DIRECTORY: &str = "data";

fn view(epoch: u64) -> View {
    let node = NodeId::parse("127.0.0.1:2379").unwrap();
    // More than a sector holds.
    let nodes: BTreeMap<_, _> = (0..20)
        .map(|number| (NodeId::parse(&format!("127.0.0.1:{}", 2379 + number)).unwrap(), Incarnation(epoch)))
        .collect();
    View {
        cluster: ClusterId(9),
        epoch: Epoch(epoch),
        leader: node,
        led_since: Epoch(1),
        in_sync: nodes.clone(),
        members: nodes,
        floor: Index(3),
        recovered: Epoch(0),
        previous: crate::view::Checksum(0),
    }
}

fn promise(number: u64) -> Promise {
    let view = (!number.is_multiple_of(3)).then(|| view(number));
    Promise { promised: Epoch(number), view, commit: Index(number * 10) }
}

fn fresh() -> SimDisk {
    let disk = SimDisk::new();
    disk.make_directory(Path::new(DIRECTORY)).unwrap();
    disk.sync_directory(Path::new("")).unwrap();
    disk
}

fn open(disk: &SimDisk) -> Result<Promises, PromiseError> {
    Promises::open(disk, Path::new(DIRECTORY))
}

fn save(promises: &Promises, number: u64) -> Result<(), PromiseError> {
    let Promise { promised, view, commit } = promise(number);
    promises.save(promised, view.as_ref(), commit)
}

fn path() -> PathBuf {
    Path::new(DIRECTORY).join(NAME)
}

/// One history of promises, broken off again and again; the number of the promise counts up.
fn history(seed: u64) -> Result<(), String> {
    let mut random = Random::new(seed);
    let disk = fresh();
    let mut given = 0;
    let mut tried = 0;
    for _ in 0..6 {
        if random.chance(500) {
            disk.power_off_after(random.below(16));
        }
        if random.chance(200) {
            let fault = random.pick(&[Fault::Io, Fault::SyncDrops, Fault::SyncForgets]);
            disk.fail(random.pick(&[Operation::Write, Operation::Sync]), random.below(6), fault);
        }
        if let Ok(promises) = open(&disk) {
            let found = promises.promise().promised.0;
            if found < given || found > tried {
                return Err(format!("{given} was given and {tried} tried, {found} is there"));
            }
            if promises.promise() != if found == 0 { Promise::default() } else { promise(found) } {
                return Err(format!("{:?} was never tried", promises.promise()));
            }
            // Whatever is read is told to others.
            (given, tried) = (found, found);
            for _ in 0..random.below(5) {
                tried += 1;
                if save(&promises, tried).is_err() {
                    if save(&promises, tried + 1).is_ok() {
                        return Err("a promise was given after a failure".to_owned());
                    }
                    break;
                }
                given = tried;
            }
        }
        if random.chance(700) {
            disk.power_cut(&mut random);
        } else {
            disk.crash();
        }
    }
    disk.heal();
    open(&disk).map(drop).map_err(|error| error.to_string())
}

#[test]
fn no_cut_crash_or_failed_sync_loses_a_promise_that_was_given_or_makes_one_up() {
    for seed in 0..1500 {
        history(seed).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

#[test]
fn the_histories_notice_each_rule_that_is_left_out() {
    for rule in [Rule::SyncPromise, Rule::TwoSlots, Rule::RewritePromise, Rule::SyncDirectories] {
        let found = (0..1500).find(|seed| without(Some(rule), || history(*seed)).is_err());
        assert!(found.is_some(), "{rule:?} can be left out");
    }
}

/// The bits of a promise that tell something, each flipped: how many were not made good.
fn flips() -> usize {
    let disk = fresh();
    let promises = open(&disk).unwrap();
    for number in 1..=4 {
        save(&promises, number).unwrap();
    }
    let length = encode(&promise(4), 5).unwrap().len();
    let wrong = |bit: &usize| {
        let disk = disk.fork();
        disk.flip(&path(), (SLOT_BYTES + bit / 8) as u64, (bit % 8) as u8);
        open(&disk).unwrap().promise() != promise(4) || open(&disk).unwrap().promise() != promise(4)
    };
    (0..8 * length).step_by(23).filter(wrong).count()
}

#[test]
fn no_flipped_bit_loses_a_promise() {
    assert_eq!(flips(), 0);
    assert!(without(Some(Rule::TwoCopies), flips) > 0, "the second copy is what helps");
}

#[test]
fn a_file_that_says_nothing_is_no_empty_promise() {
    let disk = fresh();
    save(&open(&disk).unwrap(), 1).unwrap();
    disk.zero_tail(&path(), 0);
    let error = open(&disk).err().unwrap();
    assert!(matches!(error, PromiseError::Damaged { .. }), "{error}");
}

#[test]
fn a_full_disk_hinders_no_promise_once_the_file_is_there() {
    let disk = fresh();
    let promises = open(&disk).unwrap();
    disk.limit(Some(disk.used()));
    for number in 1..9 {
        save(&promises, number).unwrap();
    }
}

/// Copy-on-write file systems can lack room for a promise. Is the one before not lost, and can this one be given again?
fn promise_waits_for(fault: Fault, after: u64) -> bool {
    let disk = fresh();
    let promises = open(&disk).unwrap();
    save(&promises, 1).unwrap();
    disk.fail(Operation::Write, after, fault);
    let waits = matches!(save(&promises, 2), Err(PromiseError::Lack { .. }));
    let survivor = disk.fork();
    survivor.power_cut(&mut Random::new(after));
    // Its first copy may be whole on the disk; it was not told to anybody.
    let found = open(&survivor).unwrap().promise();
    let kept = [promise(1), promise(2)].contains(&found) && promises.promise() == promise(1);
    waits && kept && save(&promises, 2).is_ok() && open(&disk).unwrap().promise() == promise(2)
}

#[test]
fn a_promise_that_lacks_something_is_no_failure_and_loses_none_before_it() {
    for after in 0..2 {
        for fault in [Fault::NoSpace(500), Fault::Lacks(nix::libc::EDQUOT)] {
            assert!(promise_waits_for(fault, after), "{fault:?} {after}");
            let fatal = !without(Some(Rule::LackIsNoFailure), || promise_waits_for(fault, after));
            assert!(fatal, "{fault:?} {after}");
        }
    }
    let disk = fresh();
    save(&open(&disk).unwrap(), 1).unwrap();
    disk.fail(Operation::Write, 0, Fault::NoSpace(500));
    assert!(
        matches!(open(&disk), Err(PromiseError::Lack { .. })),
        "what is found is not known to be on the disk"
    );
    assert_eq!(open(&disk).unwrap().promise(), promise(1));
}

#[test]
fn a_view_without_room_is_refused_and_harms_nothing() {
    let disk = fresh();
    let promises = open(&disk).unwrap();
    save(&promises, 1).unwrap();
    let mut huge = view(2);
    for number in 0..1000 {
        let node = NodeId::parse(&format!("a-rather-long-host-name-{number}:1")).unwrap();
        huge.members.insert(node, Incarnation(1));
    }
    let refused = promises.save(Epoch(2), Some(&huge), Index(2));
    assert!(matches!(refused, Err(PromiseError::TooBig { .. })));
    save(&promises, 2).unwrap();
    assert_eq!(open(&disk).unwrap().promise(), promise(2));
}
