//! `check`: is the configuration right, and what does it come to?

use clap::Args;

use crate::config::{self, Config, Register, byte_order_warnings, port_warnings};

use super::context::Context;
use super::exit::{Exit, Failure, Outcome};
use super::render::{PLAIN, YELLOW, table};

#[derive(Debug, Args)]
pub(super) struct Check {
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
}

pub(super) fn run(_: &Check, context: &Context) -> Outcome {
    let config = &config::load_and_resolve(&context.config.path)?;
    let settings = config.settings();
    let warnings = [byte_order_warnings(&config.nodes), port_warnings(&config.nodes)].concat();
    if context.json {
        let value = serde_json::json!({
            "schema": 1, "config": config.path.to_string_lossy(), "settings": settings, "warnings": warnings,
        });
        anstream::println!("{value}");
        served(config)?;
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
    served(config)?;
    Ok(Exit::Done)
}

/// What is right and yet cannot be run by this version.
///
/// # Errors
/// What that is.
pub(super) fn served(config: &Config) -> Result<(), Failure> {
    match config.register {
        Register::File => Ok(()),
        Register::Etcd { .. } => Err(Failure::usage(
            "a register in etcd is not served by this version\nset kind = \"file\" under [register] to run the cluster on this host",
        )),
    }
}
