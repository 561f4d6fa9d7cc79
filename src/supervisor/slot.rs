//! One node as its supervisor holds it: the life as decided by `control`, and the process it stands for.

use std::time::Instant;

use crate::control::cause::{self, Cause, Ended};
use crate::control::life::{Life, Moment, State};

use super::os::{self, Handle};
use super::record::{LastExit, NodeRecord, Phase};

/// One node.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// Where its process stands, and what follows.
    pub life: Life,
    /// The process, from its start until its end was seen.
    pub process: Option<Process>,
    /// It is to run.
    pub wanted: bool,
    /// How many processes were started, ever.
    pub spawns: u64,
    /// How the last one ended.
    pub last_exit: Option<LastExit>,
    /// When a pause ends by itself.
    pub resume_at: Option<Moment>,
    /// The last question has not been answered yet: no second one is asked meanwhile.
    pub asking: bool,
    /// Last answer named this epoch.
    pub epoch: u64,
}

/// A node's process.
#[derive(Debug)]
pub(super) struct Process {
    /// To signal it.
    pub handle: Handle,
    /// Tells its messages from those of earlier processes.
    pub number: u64,
    /// What it must say to be believed.
    pub nonce: String,
    /// When it was started or taken over.
    pub since: Instant,
    /// Was taken over.
    pub adopted: bool,
    /// A command of ours is to end it.
    pub asked_to_end: bool,
    /// Processes killed for memory when it was started.
    pub memory_kills_before: u64,
    /// Processor time at the last look.
    pub usage: Option<(Instant, u64)>,
    /// Share of one processor between the last two looks.
    pub cpu_percent: Option<f64>,
}

impl Process {
    /// Looks at how much processor time was used since the last look.
    pub fn measure(&mut self, now: Instant) {
        let Ok(stat) = os::stat(self.handle.id.pid) else { return };
        if let Some((before, ticks)) = self.usage {
            let seconds = now.duration_since(before).as_secs_f64();
            let used = stat.cpu_ticks.saturating_sub(ticks) as f64 / os::ticks_per_second() as f64;
            if seconds > 0.1 {
                self.cpu_percent = Some((used / seconds * 1000.0).round() / 10.0);
            }
        }
        self.usage = Some((now, stat.cpu_ticks));
    }

    /// Who or what ended it.
    pub fn attribute(&self, ended: Ended) -> Cause {
        cause::attribute(ended, self.asked_to_end, os::memory_kills() > self.memory_kills_before)
    }
}

impl Slot {
    /// What is remembered and shown of it.
    pub fn record(&self, now: Moment) -> NodeRecord {
        let (phase, restart_in_ms) = match self.life.state {
            State::Down => (Phase::Down, None),
            State::Spawning | State::Starting => (Phase::Starting, None),
            State::Serving { .. } => (Phase::Serving, None),
            State::Paused { .. } => (Phase::Paused, None),
            State::Stopping { .. } => (Phase::Stopping, None),
            State::Waiting { until } => {
                let wait = u64::try_from(until.saturating_sub(now).as_millis()).unwrap_or(u64::MAX);
                (Phase::Waiting, Some(wait))
            }
            State::Failed => (Phase::Failed, None),
        };
        NodeRecord {
            wanted: self.wanted,
            phase,
            process: self.process.as_ref().map(|process| process.handle.id.clone()),
            nonce: self.process.as_ref().map(|process| process.nonce.clone()).unwrap_or_default(),
            spawns: self.spawns,
            last_exit: self.last_exit.clone(),
            cpu_percent: self.process.as_ref().and_then(|process| process.cpu_percent),
            restart_in_ms,
        }
    }

    /// When something is due of it, if ever.
    pub fn due(&self) -> Option<Moment> {
        match (self.life.due(), self.resume_at) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }
}
