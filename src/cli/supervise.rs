//! `supervise`: the background process that `up` starts. Not for hands: `up --foreground` is.

use std::path::PathBuf;

use clap::Args;

use crate::supervisor::run::Options;

use super::context::config_path;
use super::exit::{Exit, Failure, Outcome};

#[derive(Debug, Args)]
pub(super) struct Supervise {}

pub(super) async fn run(_: &Supervise, given: Option<PathBuf>) -> Outcome {
    crate::telemetry::start(None, None).map_err(|error| Failure::usage(error.to_string()))?;
    let options = Options { config: config_path(given)?, server: None, foreground: false };
    crate::supervisor::run::run(options).await?;
    Ok(Exit::Done)
}
