//! How hard a seed is: how often what goes wrong.

use crate::node::testing::machine::Load;
use crate::protocol::Millis;
use crate::protocol::testing::random::Random;

/// How hard a seed is.
#[derive(Clone, Debug)]
pub(super) struct Climate {
    pub(super) machines: usize,
    pub(super) clients: usize,
    pub(super) network_delay: Millis,
    pub(super) disk_delay: Millis,
    pub(super) register_delay: Millis,
    /// Per mille of operations whose outcome is lost.
    pub(super) register_failures: u64,
    /// Per mille of deaths that are proved to the others.
    pub(super) proofs: u64,
    pub(super) between_faults: Millis,
    pub(super) between_requests: Millis,
    pub(super) power_cuts: bool,
    pub(super) wipes: bool,
    pub(super) disk_faults: bool,
    /// Clocks run at rates up to so many per mille apart.
    pub(super) drift: u64,
    pub(super) log_keep_bytes: u64,
    /// A piece of work on the state takes up to so long.
    pub(super) work_delay: Millis,
    pub(super) load: Load,
    /// Builds of level 0 run at first, each replaced when it next starts.
    pub(super) old_builds: bool,
    /// Sessions come again (R32).
    pub(super) sessions_repeat: bool,
    /// Who stops goes on stopping, again and again (R36).
    pub(super) flaps: bool,
}

impl Climate {
    pub(super) fn draw(random: &mut Random) -> Climate {
        Climate {
            machines: random.pick(&[2, 3, 3, 3, 4]),
            clients: random.pick(&[2, 4, 8]),
            network_delay: random.pick(&[0, 1, 4, 20]),
            disk_delay: random.pick(&[0, 1, 5, 20]),
            register_delay: random.pick(&[0, 2, 10]),
            register_failures: random.pick(&[0, 0, 50, 300]),
            proofs: random.pick(&[0, 500, 1000, 1000]),
            between_faults: random.pick(&[30, 60, 120]),
            between_requests: random.pick(&[1, 3, 10]),
            power_cuts: random.chance(700),
            wipes: random.chance(400),
            disk_faults: random.chance(400),
            drift: random.pick(&[0, 10, 100]),
            log_keep_bytes: random.pick(&[0, 4 << 10, 1 << 20]),
            work_delay: random.pick(&[0, 2, 20, 60]),
            load: Load { piece_units: random.pick(&[1, 4, 1000]), apart_every: random.pick(&[0, 1, 3, 10]) },
            old_builds: random.chance(300),
            sessions_repeat: random.chance(300),
            flaps: false,
        }
    }

    pub(super) fn calm(&self) -> Climate {
        Climate {
            network_delay: self.network_delay.min(4),
            disk_delay: self.disk_delay.min(5),
            work_delay: self.work_delay.min(4),
            register_failures: 0,
            proofs: 1000,
            ..self.clone()
        }
    }
}
