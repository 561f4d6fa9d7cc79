//! Entries that take long (R35): the protocol, other clients and the disk go on meanwhile.

use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::time::Instant;

use super::storm::Storm;
use crate::check::{Freshness, Key, Request, Token};
use crate::node::event::Outcome;
use crate::node::snapshot;
use crate::proto::etcdserverpb as pb;
use crate::proto::replcluster::mutation;
use crate::rules::{Rule, without};

type Order = oneshot::Receiver<Outcome>;

/// A cluster in which every entry takes long.
fn heavy() -> Storm {
    let mut storm = Storm::new(7, false, Instant::from_std(crate::clock::now()));
    storm.every_entry_is_heavy(60);
    storm.begin_calm().unwrap_or_else(|broken| panic!("{broken:?}"));
    storm
}

fn go_on(storm: &mut Storm, time: u64) {
    storm.go_on(time).unwrap_or_else(|broken| panic!("{broken:?}"));
}

/// Does the view stay as it is while entries are applied that take far longer than the failure timeout?
fn heavy_entries_depose_nobody() -> bool {
    let mut storm = heavy();
    let before = storm.world.register().expect("a view");
    for round in 0..5 {
        storm.send(0, Request::Put { key: Key(1), value: Token(1_000_000 + round) });
        go_on(&mut storm, 1_000);
    }
    storm.world.register().is_some_and(|view| view.epoch == before.epoch)
}

#[test]
fn entries_that_take_longer_than_the_failure_timeout_depose_nobody() {
    assert!(heavy_entries_depose_nobody());
    assert!(!without(Some(Rule::ApplyApart), heavy_entries_depose_nobody));
}

/// One heavy entry follows the other without a pause, for many times as long as a flush and a read may wait.
#[test]
fn a_flush_and_a_read_find_their_turn_between_heavy_entries() {
    let mut storm = heavy();
    let leader = storm.leader();
    let shared = storm.world.machines[leader].process.as_ref().expect("it runs").shared.clone();
    let durable = || snapshot::durable_of(&shared.store.read()).index;
    let before = durable();
    let mut orders: Vec<_> = Vec::new();
    let (mut looks_that_find_some, mut read_at) = (0, None);
    for look in 0..600 {
        // Never less than some wait behind the one that is applied.
        orders.retain_mut(|order: &mut Order| matches!(order.try_recv(), Err(TryRecvError::Empty)));
        while orders.len() < 12 {
            let (key, value) = (b"k".as_slice().into(), b"v".as_slice().into());
            let put = pb::PutRequest { key, value, ..Default::default() };
            orders.push(storm.order(leader, mutation::Request::Put(put)));
        }
        let process = storm.world.machines[leader].process.as_ref().expect("it runs");
        looks_that_find_some +=
            u64::from(process.engine.node().log().commit() > process.engine.applied().index);
        if look == 100 {
            storm.send(0, Request::Read { first: Key(0), last: Key(9), freshness: Freshness::Linearizable });
        }
        if look > 100 && read_at.is_none() && storm.world.clients.is_idle(0) {
            read_at = Some(look);
        }
        go_on(&mut storm, 10);
    }
    assert!(
        looks_that_find_some > 550,
        "entries waited to be applied at {looks_that_find_some} of 600 looks"
    );
    assert!(read_at.is_some_and(|at| at < 200), "the read came to its end at look {read_at:?}");
    assert!(durable() > before, "the state on the disk still ends at {before}");
}
