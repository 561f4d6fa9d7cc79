//! `add-follower`: into `cluster.toml` first, then into the cluster. A node that then cannot start is listed and
//! down, and `up` tries it again; the other order could leave one running that nobody lists.

use std::time::Duration;

use clap::Args;

use crate::config::{self, Config, byte_order_warnings, parse_duration, port_warnings, spelling};
use crate::supervisor::ports;
use crate::supervisor::wire::Request;
use crate::view::NodeId;

use super::context::{Context, ask, ask_nodes, list, names};
use super::exit::{Exit, Failure, Outcome};
use super::render::{PLAIN, YELLOW};
use super::wait::{self, say};
use super::{remove, status, survey};

#[derive(Debug, Args)]
pub(super) struct AddFollower {
    /// Its address [default: the next free port beside the last node]
    #[arg(value_name = "ADDR", conflicts_with = "count")]
    address: Option<String>,
    /// How many
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    count: u16,
    /// How long the nodes may take to be in sync
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_duration)]
    timeout: Duration,
}

pub(super) async fn run(verb: &AddFollower, context: &mut Context) -> Outcome {
    // From here on the file is ours: two commands would choose the same port.
    let editor = remove::editor(context).await?;
    let config = config::load_and_resolve(&context.config.path)?;
    let added = match &verb.address {
        Some(text) => vec![new_node(text, &config)?],
        None => next_free(&config.nodes, usize::from(verb.count), |node| ports::check(node).is_ok())
            .ok_or_else(|| {
                Failure::new(Exit::Conflict, "no free port is left beside the last node\nname an address")
            })?,
    };
    for node in &added {
        ports::await_free(node).await?;
    }
    let found = survey::survey(context).await?;
    editor.add_nodes(&added).map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    drop(editor);
    context.reload()?;
    for warning in byte_order_warnings(&context.config.nodes).into_iter().chain(port_warnings(&added)) {
        anstream::eprintln!("{YELLOW}warning:{PLAIN} {warning}");
    }
    if found.running().is_empty() {
        anstream::println!(
            "added {} to {}\nnext: replcluster up",
            list(&added),
            context.config.path.display()
        );
        return Ok(Exit::Done);
    }
    say(&format!("added {} to {}", list(&added), context.config.path.display()));
    let mut supervisor = context.ensure_supervisor().await?;
    ask(&mut supervisor, &Request::Reload).await?;
    let event = found.command("add-follower".to_owned(), &added);
    context.note(Some(&mut supervisor), event).await;
    ask_nodes(&mut supervisor, &Request::Start { nodes: names(&added) }).await?;
    wait::in_sync(context, &added, verb.timeout).await?;
    // Another command may have added others meanwhile.
    context.reload()?;
    status::print_table(context, &status::after_change(context).await?);
    Ok(Exit::Done)
}

/// The address that was typed, where it can be one of a new node.
fn new_node(text: &str, config: &Config) -> Result<NodeId, Failure> {
    let node = NodeId::parse(text).map_err(|error| {
        let advice = spelling::advice(text).map_or(String::new(), |advice| format!("\n{advice}"));
        Failure::usage(format!("{error}{advice}"))
    })?;
    let same = config::same_socket(&node, &config.nodes)
        .map_err(|error| Failure::usage(format!("{text}: {error}\nname an address of this host")))?;
    let Some(same) = same else { return Ok(node) };
    let other_name = if same == node { String::new() } else { format!("{same}, which is ") };
    let message = format!(
        "{node} is {other_name}a node of {} already\nstart it with `replcluster start {same}`",
        config.name
    );
    Err(Failure::new(Exit::Conflict, message))
}

/// The next addresses after the highest port in use, on the host of that node.
fn next_free(
    nodes: &[NodeId],
    count: usize,
    mut is_free: impl FnMut(&NodeId) -> bool,
) -> Option<Vec<NodeId>> {
    let (host, highest) = nodes
        .iter()
        .filter_map(|node| {
            let (host, port) = node.as_str().rsplit_once(':')?;
            Some((host, port.parse::<u16>().ok()?))
        })
        .max_by_key(|(_, port)| *port)?;
    let mut free = Vec::new();
    for port in highest.checked_add(1)?..=u16::MAX {
        let node = NodeId::parse(&format!("{host}:{port}")).ok()?;
        if is_free(&node) {
            free.push(node);
        }
        if free.len() == count {
            return Some(free);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(text: &str) -> NodeId {
        NodeId::parse(text).unwrap()
    }

    #[test]
    fn the_next_ports_that_are_free_are_taken() {
        let nodes = [node("127.0.0.1:2379"), node("127.0.0.1:2381")];
        let found = next_free(&nodes, 2, |node| !node.as_str().ends_with("2383")).unwrap();
        assert_eq!(found, [node("127.0.0.1:2382"), node("127.0.0.1:2384")]);
    }

    #[test]
    fn the_end_of_the_ports_is_the_end() {
        assert_eq!(next_free(&[node("h:65535")], 1, |_| true), None);
        assert_eq!(next_free(&[node("h:65534")], 2, |_| true), None);
        assert_eq!(next_free(&[node("h:1")], 1, |_| false), None);
    }
}
