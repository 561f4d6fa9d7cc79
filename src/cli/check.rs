//! `check`: is the configuration right, and what does it come to?

use clap::Args;

use crate::config::byte_order_warnings;

use super::context::Context;
use super::exit::{Exit, Outcome};
use super::render::{PLAIN, YELLOW, table};

#[derive(Debug, Args)]
pub(super) struct Check {
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
}

pub(super) fn run(_: &Check, context: &Context) -> Outcome {
    let config = &context.config;
    let settings = config.settings();
    let warnings = byte_order_warnings(&config.nodes);
    if context.json {
        let value = serde_json::json!({
            "schema": 1, "config": config.path, "settings": settings, "warnings": warnings,
        });
        anstream::println!("{value}");
        return Ok(Exit::Done);
    }
    anstream::println!("{}", config.path.display());
    let rows = settings.into_iter().map(|(key, value)| vec![format!("  {key}"), value]).collect();
    for line in table(&["  SETTING", "VALUE"], rows) {
        anstream::println!("{line}");
    }
    for warning in warnings {
        anstream::eprintln!("{YELLOW}warning:{PLAIN} {warning}");
    }
    Ok(Exit::Done)
}
