//! How views, messages and effects read in scripts and traces: one line each, no ports, no noise.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::protocol::{Effect, Found, Input, Mark, Message, Run, Swapped};
use crate::view::{Epoch, Incarnation, Index, NodeId, View};

/// `a:1` is called `a`.
pub fn name(node: &NodeId) -> &str {
    node.as_str().split(':').next().unwrap_or_default()
}

fn set(nodes: &BTreeMap<NodeId, Incarnation>) -> String {
    let names: Vec<String> = nodes.iter().map(|(node, inc)| format!("{}#{}", name(node), inc.0)).collect();
    names.join(" ")
}

pub fn view(view: &View) -> String {
    let mut text =
        format!("epoch {} leader {} in sync {}", view.epoch, name(&view.leader), set(&view.in_sync));
    if view.members != view.in_sync {
        let _ = write!(text, " members {}", set(&view.members));
    }
    let _ = write!(text, " led since {} floor {}", view.led_since, view.floor);
    if view.recovered > Epoch(0) {
        let _ = write!(text, " recovered {}", view.recovered);
    }
    text
}

fn found(found: &Found) -> String {
    match found {
        Found::Empty => "empty".to_owned(),
        Found::Holds(held) => view(held),
        Found::Behind { newest } => format!("behind, at epoch {newest}"),
        Found::Forked { newest } => format!("forked, {}", view(newest)),
        Found::Replaced => "replaced".to_owned(),
    }
}

fn mark(mark: Mark) -> String {
    format!("{}@{}", mark.index, mark.epoch)
}

/// `4..=6@2 7..=7@3`: entries 4 to 6 of epoch 2, then 7 of epoch 3.
pub fn runs(runs: &[Run], last: Index) -> String {
    let mut text = String::new();
    for (number, run) in runs.iter().enumerate() {
        let end = runs.get(number + 1).map_or(last, |next| Index(next.first.0 - 1));
        let _ = write!(text, "{}{}..={end}@{}", if number > 0 { " " } else { "" }, run.first, run.epoch);
    }
    text
}

pub fn message(message: &Message) -> String {
    match message {
        Message::Append { previous, runs: entries, last, commit, .. } if entries.is_empty() => {
            debug_assert_eq!(previous.index, *last);
            format!("heartbeat after {} commit {commit}", mark(*previous))
        }
        Message::Append { previous, runs: entries, last, commit, .. } => {
            format!("append {} after {} commit {commit}", runs(entries, *last), mark(*previous))
        }
        Message::Appended { durable, full, .. } => {
            format!("appended {durable}{}", if *full { ", full" } else { "" })
        }
        Message::Report { commit, last } => format!("report commit {commit} last {last}"),
        Message::Ping => "ping".to_owned(),
        Message::Stale => "stale".to_owned(),
        Message::Transfer => "transfer".to_owned(),
    }
}

pub fn effect(effect: &Effect) -> String {
    match effect {
        Effect::Append { epoch, first, last, opening: true, .. } => {
            format!("writes opening {first}..={last}@{epoch}")
        }
        Effect::Append { epoch, first, last, opening: false, .. } => {
            format!("writes {first}..={last}@{epoch}")
        }
        Effect::Accept { first, last, .. } => format!("accepts {first}..={last}"),
        Effect::Truncate { after, .. } => format!("truncates after {after}"),
        Effect::Persist { promised, view: kept, .. } => {
            let kept = kept.as_ref().map_or(0, |view| view.epoch.0);
            format!("persists promise {promised} view {kept}")
        }
        Effect::Install { mark: at, .. } => format!("installs snapshot {}", mark(*at)),
        Effect::Commit(index) => format!("commits {index}"),
        Effect::Send { to, epoch, message: what, .. } => {
            format!("-> {} (epoch {epoch}) {}", name(to), message(what))
        }
        Effect::SendSnapshot(to) => format!("starts a snapshot to {}", name(to)),
        Effect::ReadRegister { .. } => "reads the register".to_owned(),
        Effect::Prepare(next) => format!("prepares epoch {}", next.epoch),
        Effect::Swap { next, .. } => format!("swaps in {}", view(next)),
        Effect::Adopted(next) => format!("adopts {}", view(next)),
        Effect::Serving => "serves".to_owned(),
        Effect::Fenced(true) => "orders nothing new".to_owned(),
        Effect::Fenced(false) => "orders again, or follows".to_owned(),
        Effect::Warn(warning) => format!("warns {warning:?}"),
        Effect::Halt(reason) => format!("halts {reason:?}"),
    }
}

pub fn input(input: &Input) -> String {
    match input {
        Input::Tick => "tick".to_owned(),
        Input::Flush => "flush".to_owned(),
        Input::Proposed { count } => format!("proposed {count}"),
        Input::Received(envelope) => format!(
            "from {}#{} session {} epoch {}: {}",
            name(&envelope.from),
            envelope.incarnation.0,
            envelope.session,
            envelope.epoch,
            message(&envelope.message)
        ),
        Input::Linked(node) => format!("linked to {}", name(node)),
        Input::Persisted(write) => format!("persisted {write}"),
        Input::PromiseKept(write) => format!("keeps promise of write {write}"),
        Input::RegisterAnswered(Ok(found)) => format!("register: {}", self::found(found)),
        Input::RegisterAnswered(Err(_)) => "register: unreachable".to_owned(),
        Input::SwapAnswered(Swapped::Won) => "swap: won".to_owned(),
        Input::SwapAnswered(Swapped::Lost(found)) => format!("swap: lost to {}", self::found(found)),
        Input::SwapAnswered(Swapped::Failed) => "swap: failed".to_owned(),
        Input::Prepared(Ok(())) => "register: has room".to_owned(),
        Input::Prepared(Err(_)) => "register: has no room".to_owned(),
        Input::ChainViews => "views form a chain from now on".to_owned(),
        Input::RegisterDoubted => "the register is in doubt".to_owned(),
        Input::SwapAnswered(Swapped::Unknown) => "swap: unknown".to_owned(),
        Input::Died { node, session } => match session {
            Some(session) => format!("{} session {session} died", name(node)),
            None => format!("nobody runs at {}", name(node)),
        },
        Input::SnapshotReceived(at) => format!("snapshot {} received", mark(*at)),
        Input::Space { full: true } => "the disk is nearly full".to_owned(),
        Input::Space { full: false } => "the disk has room".to_owned(),
        Input::Dropped(index) => format!("log dropped through {index}"),
        Input::MoveLeader(to) => format!("operator: move the leader to {}", name(to)),
        Input::Remove(node) => format!("operator: remove {}", name(node)),
    }
}
