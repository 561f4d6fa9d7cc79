//! `supervise`: the background process that `up` starts, or a service manager. Not for hands: `up --foreground` is.

use std::path::PathBuf;

use clap::Args;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::config::{self, Config};
use crate::supervisor::layout::Layout;
use crate::supervisor::run::Options;
use crate::telemetry::{self, LogFile};

use super::context::config_path;
use super::exit::{Exit, Failure, Outcome};
use super::{ignore_signals, orphans};

#[derive(Debug, Args)]
pub(super) struct Supervise {}

pub(super) async fn run(_: &Supervise, given: Option<PathBuf>, interrupt: CancellationToken) -> Outcome {
    let path = config_path(given)?;
    log(&config::load(&path)?)?;
    // A process handle, a socket and files for each node.
    let _ = crate::descriptors::raise_limit();
    let _orphans = AbortOnDropHandle::new(tokio::spawn(orphans::collect()));
    let _signals = AbortOnDropHandle::new(tokio::spawn(ignore_signals(true)));
    let options = Options { config: path, server: None, foreground: false, interrupt };
    crate::supervisor::run::run(options).await?;
    Ok(Exit::Done)
}

/// Starts the log of a process that supervises.
pub(super) fn log(config: &Config) -> Result<(), Failure> {
    let path = Layout::new(config).supervisor_log();
    let file = LogFile { path: &path, limits: config.logs.limits, alone: true };
    telemetry::start(config.logs.level.as_deref(), Some(file))
        .map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    tracing::info!(pid = std::process::id(), version = env!("CARGO_PKG_VERSION"), "{}", telemetry::STARTED);
    Ok(())
}
