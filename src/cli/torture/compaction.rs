//! Keeps history short, as a cluster in use does: compacts again and again up to some revision of late. Before that,
//! each revision that nobody knows of is read, because it could not be later: so the check has nothing to guess.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::load::{Board, Load, home};
use crate::check::{Freshness, Key, Operation, Outcome, Request};

/// How long it rests.
const REST: Duration = Duration::from_millis(250);
/// More than so many are not read before one compaction: then it goes less far.
const MOST_READ: usize = 64;
/// How often a read is tried again.
const ATTEMPTS: u32 = 50;

/// Compacts until the clients are to stop; answers with what it asked.
pub(super) async fn keep(board: Arc<Board>, load: Load) -> Vec<Operation> {
    let mut random = StdRng::seed_from_u64(load.seed ^ 0xc0);
    let (mut done, mut compacted) = (Vec::new(), 0);
    while !board.stop.load(Ordering::SeqCst) {
        tokio::time::sleep(REST).await;
        let wanted = board.newest_known() - random.random_range(10..1000);
        let unknown = board.unknown_up_to(wanted);
        let to = unknown.get(MOST_READ).map_or(wanted, |first_left| first_left - 1);
        if to <= compacted || !read_all(&board, load, &unknown, to, &mut done).await {
            continue;
        }
        board.note_complete(to);
        if let Some(node) = home(&board, load.clients) {
            let asked = board.ask(load.clients, node, Request::Compact { revision: to }).await;
            done.extend(asked.filter(|asked| asked.outcome != Outcome::Refused));
            compacted = to;
        }
    }
    done
}

/// Reads the state of each of these revisions up to `to`; false where one cannot be had.
async fn read_all(board: &Board, load: Load, unknown: &[i64], to: i64, done: &mut Vec<Operation>) -> bool {
    let last = Key(load.keys.saturating_sub(1));
    for revision in unknown.iter().take_while(|revision| **revision <= to) {
        let read = Request::Read { first: Key(0), last, freshness: Freshness::At(*revision) };
        let mut tries = 0;
        loop {
            let node = home(board, load.clients + tries);
            let asked = match node {
                Some(node) => board.ask(load.clients, node, read).await,
                None => None,
            };
            if let Some(asked) = asked.filter(|asked| matches!(asked.outcome, Outcome::Done { .. })) {
                done.push(asked);
                break;
            }
            tries += 1;
            if tries == ATTEMPTS || board.stop.load(Ordering::SeqCst) {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    true
}
