//! A node that is stopped for most of the time, again and again (R36). Writers may stand still while it is found out;
//! not for as long as it goes on.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::faults::{Kind, Stop, Torturer};
use crate::clock;

/// How long it goes on: long enough that finding it out is a small part of it.
const LASTING: Duration = Duration::from_secs(20);

/// How long a node is stopped, out of how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rhythm {
    stopped: Duration,
    runs: Duration,
}

impl Rhythm {
    /// Silent for longer than the failure timeout each time.
    pub(super) const SEEN: Rhythm =
        Rhythm { stopped: Duration::from_millis(400), runs: Duration::from_millis(50) };
    /// Never silent for that long.
    pub(super) const UNSEEN: Rhythm =
        Rhythm { stopped: Duration::from_millis(280), runs: Duration::from_millis(20) };
}

impl Torturer<'_> {
    pub(super) async fn flap(&mut self, node: usize, rhythm: Rhythm) -> Result<String, Stop> {
        let leads = if self.whole().await? == node { ", which led" } else { "" };
        self.disturb(&[node]);
        self.strike(Kind::Flapping);
        self.board.take_stalled();
        let began = clock::now();
        while began.elapsed() < LASTING {
            self.cluster.signal(node, Signal::SIGSTOP)?;
            tokio::time::sleep(rhythm.stopped).await;
            self.cluster.signal(node, Signal::SIGCONT)?;
            tokio::time::sleep(rhythm.runs).await;
        }
        let lasted = began.elapsed();
        let now = self.board.now();
        self.acknowledged(now, "the nodes, one of them flapping,").await?;
        let percent = 100.0 * self.board.take_stalled().as_secs_f64() / lasted.as_secs_f64();
        let worst = self.done.stalled_percent.unwrap_or(0.0).max(percent);
        self.done.stalled_percent = Some(worst);
        Ok(format!(
            "stopped {}{leads} for {} of every {} ms; writers stood still for {percent:.0} % of it",
            self.names(&[node]),
            rhythm.stopped.as_millis(),
            (rhythm.stopped + rhythm.runs).as_millis()
        ))
    }
}
