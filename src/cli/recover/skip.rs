//! `recover --skip-entry`: an entry by which nodes end is stepped over by all of them. The order stands in the register,
//! where each node reads it when it starts, and in each data directory; it is given while no node can run.
//!
//! It is refused where a copy has applied the entry: the others would step over what that one has done, and the copies
//! would differ. So it is where the copies do not agree on what stands there.

use std::time::Duration;

use crate::inspection::{EntryHeld, Inspection};
use crate::register::operator::Hold;
use crate::skips::Skips;
use crate::supervisor::events::Event;
use crate::view::{Epoch, Index, NodeId, Position};

use super::super::context::{Context, confirm, names};
use super::super::exit::{Exit, Failure, Outcome};
use super::super::survey::Survey;
use super::super::{down, wait::say};
use super::gather::{Depth, inspect};

/// How long a node may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) async fn run(context: &Context, survey: &Survey, index: u64, yes: bool) -> Outcome {
    if let Some(leader) = &survey.sum.leader {
        return Err(Failure::new(
            Exit::Failed,
            format!(
                "{leader} leads: entries are applied, and none is to be stepped over\nsee how it stands with `replcluster status`"
            ),
        ));
    }
    let runs = !survey.running().is_empty();
    let question = if runs {
        format!("end {} and step over entry {index} on every node?", context.config.name)
    } else {
        let (entry, _) = look(context, index).await?;
        if !context.json {
            anstream::println!("{entry}");
        }
        "step over it on every node? what it asks for is not done, on none of them".to_owned()
    };
    confirm(&question, yes)?;
    down::end_all(context, false, PATIENCE).await?;
    let data = context.config.nodes.iter().map(|node| (node.clone(), context.layout.data(node))).collect();
    // From here on no node can start before this is done.
    let _hold = Hold::take(&context.layout.register(), &data).map_err(super::failure)?;
    let (entry, holders) = look(context, index).await?;
    let command = format!("recover --skip-entry {index}");
    context.note(None, Event::Command { command, nodes: names(&holders), signal: None, leader: None }).await;
    order(context, &entry)?;
    if context.json {
        let text = serde_json::json!({"schema": 1, "cluster": context.config.name, "skipped": entry});
        anstream::println!("{text}");
    } else {
        say(&format!("every node steps over {entry}"));
        anstream::println!("next: replcluster up");
    }
    Ok(Exit::Done)
}

/// The entry, and the nodes whose logs hold it.
async fn look(context: &Context, index: u64) -> Result<(EntryHeld, Vec<NodeId>), Failure> {
    let mut copies = Vec::new();
    for node in &context.config.nodes {
        let directory = context.layout.data(node);
        if directory.exists() {
            let found = inspect(&directory, Depth::Entry(index)).await?;
            let found = found.map_err(|why| Failure::new(Exit::Failed, format!("{node}: {why}")))?;
            copies.push((node.clone(), found));
        }
    }
    agreed(index, &copies).map_err(|why| Failure::new(Exit::Failed, format!("{why}\nnothing was changed")))
}

/// What stands there by all copies, or why it cannot be stepped over.
fn agreed(index: u64, copies: &[(NodeId, Inspection)]) -> Result<(EntryHeld, Vec<NodeId>), String> {
    let mut agreed: Option<EntryHeld> = None;
    let mut holders = Vec::new();
    for (node, copy) in copies {
        if let Some(state) = &copy.state
            && state.applied.index >= index
        {
            return Err(format!(
                "{node} has applied everything up to entry {}: the others would step over what it has done, and the copies would differ",
                state.applied.index
            ));
        }
        let Some(entry) = copy.entries.iter().find(|entry| entry.index == index) else { continue };
        match &agreed {
            Some(other) if (other.epoch, other.chain) != (entry.epoch, entry.chain) => {
                return Err(format!("the copies of {} and {node} differ at entry {index}", holders[0]));
            }
            Some(_) | None => agreed = Some(entry.clone()),
        }
        holders.push(node.clone());
    }
    agreed.map(|entry| (entry, holders)).ok_or_else(|| format!("no copy holds an entry {index}"))
}

/// First in the register, where every node reads it: from then on it holds for all.
fn order(context: &Context, entry: &EntryHeld) -> Result<(), Failure> {
    let position = Position { index: Index(entry.index), epoch: Epoch(entry.epoch), chain: entry.chain };
    let directories = context.config.nodes.iter().map(|node| context.layout.data(node));
    let directories = directories.filter(|directory| directory.exists());
    for directory in std::iter::once(context.layout.register()).chain(directories) {
        let written = Skips::read([directory.as_path()]).and_then(|mut skips| {
            skips.add(position);
            skips.write(&directory)
        });
        written.map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::inspection::{At, StateHeld};

    use super::*;

    fn node(port: u16) -> NodeId {
        NodeId::parse(&format!("127.0.0.1:{port}")).unwrap()
    }

    fn copy(applied: u64, entry: Option<(u64, u32)>) -> Inspection {
        let held = |(index, chain)| EntryHeld {
            index,
            epoch: 3,
            chain,
            bytes: 252,
            what: "a transaction".to_owned(),
            refused: None,
            skipped: false,
        };
        let state = StateHeld { applied: At { epoch: 3, index: applied }, revision: 1 };
        Inspection {
            state: Some(state),
            entries: entry.map(held).into_iter().collect(),
            ..Inspection::default()
        }
    }

    #[test]
    fn an_entry_is_stepped_over_where_all_copies_agree_on_it() {
        let copies =
            [(node(1), copy(6, Some((7, 1)))), (node(2), copy(4, None)), (node(3), copy(5, Some((7, 1))))];
        let (entry, holders) = agreed(7, &copies).unwrap();
        assert_eq!((entry.index, holders), (7, vec![node(1), node(3)]));
        assert!(agreed(8, &copies).unwrap_err().contains("no copy holds an entry 8"));
    }

    #[test]
    fn an_entry_that_a_copy_has_applied_is_not_stepped_over() {
        let copies = [(node(1), copy(6, Some((7, 1)))), (node(2), copy(7, None))];
        assert!(agreed(7, &copies).unwrap_err().contains("would differ"));
    }

    #[test]
    fn copies_with_different_entries_there_are_refused() {
        let copies = [(node(1), copy(6, Some((7, 1)))), (node(2), copy(6, Some((7, 2))))];
        assert!(agreed(7, &copies).unwrap_err().contains("differ at entry 7"));
    }
}
