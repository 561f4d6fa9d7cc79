//! Time in the model: a node's clock stands still unless an action moves it, and only what it can still tell apart is
//! kept. Without this every state would be new.

use super::world::Process;
use crate::protocol::Millis;
use crate::protocol::node::{RegisterTask, Role};
use crate::protocol::takeover::Stage;
use crate::view::Index;

/// What every clock shows between two actions.
pub const NOW: Millis = 1_000;
/// The shortest interval for which all that a node derives from it is a whole number.
pub const HEARTBEAT: Millis = 2;
/// A tick apart is not yet a sleep (`Node::forgive`), three ticks are a silence.
pub const TIMEOUT: Millis = 4;
/// Ticks after which the silent are gone, and after which a node of rank 1 has waited for the one before it.
pub const SILENCE: usize = 5;
/// Longer than anything that a node waits for: ages beyond are all the same.
const OLD: Millis = TIMEOUT + 1;
/// Longer than anything that a node forgives itself.
pub const SLEEP: Millis = 100;

/// Brings a process into the one form that it shares with all that will behave the same: times count from [`NOW`], and
/// writes from one.
pub fn settle(process: &mut Process) {
    let node = &mut process.node;
    let now = node.now;
    let past = |time: &mut Millis| *time = NOW - (now - *time).min(OLD);
    let future = |time: &mut Millis| *time = NOW + time.saturating_sub(now);
    node.now = NOW;
    past(&mut node.started_at);
    node.leader_gone_since.iter_mut().for_each(past);
    future(&mut node.next_read_at);
    // What others have spoken under matters where it is ahead of the view.
    let epoch = node.epoch();
    node.heard = node.heard.max(epoch);
    if let RegisterTask::Reading { heard, .. } = &mut node.register {
        *heard = epoch.max(*heard);
    }
    for peer in node.peers.values_mut() {
        past(&mut peer.last_heard);
        // Every tick comes a heartbeat later, and so finds everything due.
        peer.last_sent = None;
        // Only for telling a wiped directory, and no directory is wiped here.
        peer.incarnation = None;
        // Silences of less than `failure_timeout` are not told apart here.
        peer.silences.forget();
        if let Some(dead) = &mut peer.dead {
            future(&mut dead.stragglers_until);
        }
    }
    // Every pause is one heartbeat interval.
    node.pause.until = if node.pause.until > now { NOW + HEARTBEAT } else { 0 };
    node.pause.length = 0;
    node.full_since = None;
    match &mut node.role {
        Role::Follower(follower) => {
            for time in [&mut follower.acknowledged_at, &mut follower.fitted_at, &mut follower.reported_at] {
                time.iter_mut().for_each(past);
            }
        }
        Role::Candidate(_) => {}
        Role::Leader(leader) => {
            for known in leader.progress.values_mut() {
                past(&mut known.answered_at);
                known.obeyed.iter_mut().for_each(past);
                // No disk is so slow here.
                known.lag.forget();
                // No disk is taken for hung.
                known.owing_since = None;
                past(&mut known.round.0);
                if let Some(since) = &mut known.in_sync_since {
                    // Nobody hands back unasked here, and rounds are for those who are not in sync.
                    *since = NOW;
                    known.round = (NOW, Index(0));
                    known.quick = false;
                }
            }
            leader.stuck_since = None;
            leader.transfer_pause = crate::protocol::views::Pause::default();
            for strikes in leader.strikes.values_mut() {
                future(strikes.out_until_mut());
            }
            if let Some(transfer) = &mut leader.transfer {
                future(&mut transfer.until);
            }
        }
    }
    // What is pending is numbered without a gap up to the next.
    let before = node.next_write - 1 - node.pending.len() as u64;
    node.next_write -= before;
    node.pending.iter_mut().for_each(|(write, _)| *write -= before);
    process.writes.iter_mut().for_each(|(write, _)| *write -= before);
    if let Role::Candidate(candidate) = &mut node.role
        && let Stage::Promising { write, .. } = &mut candidate.stage
    {
        *write -= before;
    }
}
