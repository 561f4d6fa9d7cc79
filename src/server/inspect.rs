//! `replserver inspect`: what the directory of a stopped node holds, for people or as JSON.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use super::Exit;
use crate::inspection::{At, EntryHeld, Inspection, KeptView, LogHeld, StateHeld};
use crate::node::inspect::{Found, inspect_entry, inspect_promise};
use crate::node::log::Position;
use crate::skips::Skips;
use crate::telemetry;
use crate::view::Index;

/// The word on the command line.
pub(super) const VERB: &str = "inspect";

/// Show what the data directory of a stopped node holds. Nothing is changed and nothing is started.
#[derive(Parser, Debug)]
#[command(name = "replserver inspect", bin_name = "replserver inspect", version = crate::VERSION, max_term_width = 100)]
struct Arguments {
    /// The node's directory.
    #[arg(long)]
    data_dir: PathBuf,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
    /// Look only at what the node has promised and seen, not at its log and state.
    #[arg(long)]
    brief: bool,
    /// Show this entry of the log too.
    #[arg(long, value_name = "INDEX", conflicts_with = "brief")]
    entry: Option<u64>,
}

/// The whole verb; `arguments` are those of the program.
pub(super) fn main(arguments: &[OsString]) -> ExitCode {
    let arguments = match Arguments::try_parse_from(&arguments[1..]) {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { Exit::Usage as u8 } else { Exit::Done as u8 });
        }
    };
    let directory = &arguments.data_dir;
    let look = match arguments.brief {
        true => inspect_promise(directory),
        false => inspect_entry(directory, arguments.entry.map(Index)),
    };
    let found = match look {
        Ok(found) => found,
        Err(error) => {
            eprintln!("replserver: {error}");
            let exit = if error.is_conflict() { Exit::Conflict } else { Exit::Failed };
            return ExitCode::from(exit as u8);
        }
    };
    let inspection = told(&found);
    if arguments.json {
        match serde_json::to_string(&inspection) {
            Ok(text) => println!("{text}"),
            Err(error) => {
                eprintln!("replserver: cannot print it: {error}");
                return ExitCode::from(Exit::Failed as u8);
            }
        }
    } else {
        print!("{}", text(&inspection));
    }
    ExitCode::from(Exit::Done as u8)
}

fn at(position: Position) -> At {
    At { epoch: position.epoch.0, index: position.index.0 }
}

fn told(found: &Found) -> Inspection {
    let identity = found.identity.as_ref();
    Inspection {
        directory: found.path.clone(),
        address: identity.map(|(address, _, _)| address.to_string()),
        incarnation: identity.map(|(_, incarnation, _)| format!("{incarnation:?}")),
        cluster: identity.and_then(|(_, _, cluster)| *cluster).map(|cluster| cluster.to_string()),
        promised: found.promise.promised.0,
        view: found.promise.view.as_ref().map(KeptView::from),
        log: found.log.as_ref().map(|log| LogHeld {
            base: at(log.base),
            last: at(log.last),
            torn_bytes: log.torn_bytes,
        }),
        commit: found.commit().0,
        state: found
            .state
            .as_ref()
            .map(|state| StateHeld { applied: at(state.applied), revision: state.revision }),
        entries: entries(found),
        written_at: found.written_at.map(telemetry::stamp),
        damage: found.damage.clone(),
        usable: found.is_usable(),
        aside: found.aside.iter().map(told).collect(),
    }
}

fn entries(found: &Found) -> Vec<EntryHeld> {
    // Only the node's own list: the register's is not known here.
    let skips = Skips::read([found.path.as_path()]).unwrap_or_default();
    let held = |entry: &crate::node::inspect::EntryFound| EntryHeld {
        index: entry.position.index.0,
        epoch: entry.position.epoch.0,
        chain: entry.position.chain,
        bytes: entry.bytes as u64,
        what: entry.what.to_owned(),
        refused: entry.refused.clone(),
        skipped: skips.contain(entry.position),
    };
    found.entries.iter().map(held).collect()
}

/// One line a fact.
fn text(found: &Inspection) -> String {
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".to_owned());
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        // Writing into a string cannot fail.
        let _ = writeln!(text, "{name:<12} {value}");
    };
    line("directory", found.directory.display().to_string());
    line("address", or_none(&found.address));
    line("incarnation", or_none(&found.incarnation));
    line("cluster", or_none(&found.cluster));
    line("promised", format!("epoch {}", found.promised));
    line("view", found.view.as_ref().map_or("none".to_owned(), seen));
    match &found.log {
        Some(log) => {
            line("log", format!("after entry {} of epoch {}", log.base.index, log.base.epoch));
            line("", format!("to entry {} of epoch {}", log.last.index, log.last.epoch));
            if log.torn_bytes > 0 {
                line(
                    "",
                    format!("a torn tail of {} bytes follows, to be cut at the next start", log.torn_bytes),
                );
            }
        }
        None => line("log", "none that can be read".to_owned()),
    }
    line("committed", format!("to entry {}, as far as it knows", found.commit));
    match &found.state {
        Some(state) => line(
            "state",
            format!(
                "applied to entry {} of epoch {}, revision {}",
                state.applied.index, state.applied.epoch, state.revision
            ),
        ),
        None => line("state", "none that can be read".to_owned()),
    }
    for (number, entry) in found.entries.iter().enumerate() {
        line(if number == 0 { "entries" } else { "" }, entry.to_string());
    }
    let written = found.written_at.as_ref().map_or("unknown".to_owned(), |time| {
        format!("{time} by the times of its files, which prove nothing")
    });
    line("last write", written);
    for damage in &found.damage {
        line("damage", damage.clone());
    }
    line("usable", if found.usable { "yes: a node would start on it" } else { "no" }.to_owned());
    for aside in &found.aside {
        let end = aside.log.as_ref().map_or("no log".to_owned(), |log| {
            format!("to entry {} of epoch {}", log.last.index, log.last.epoch)
        });
        line("set aside", format!("{}: {end}", aside.directory.display()));
    }
    text
}

fn seen(view: &KeptView) -> String {
    let in_sync: Vec<&str> = view.in_sync.keys().map(String::as_str).collect();
    format!("epoch {}, led by {}, in sync {}", view.epoch, view.leader, in_sync.join(", "))
}
