//! How hard a seed is on the cluster.

use super::random::Random;
use crate::protocol::Millis;

/// How hard a seed is on the cluster; drawn from the seed itself, so that some seeds are gentle in some way.
#[derive(Clone, Debug)]
pub struct Weather {
    pub machines: usize,
    /// Messages of one sender to one receiver keep their order.
    pub ordered: bool,
    /// Per mille of messages.
    pub loss: u64,
    pub duplicates: u64,
    pub network_delay: Millis,
    pub disk_delay: Millis,
    pub register_delay: Millis,
    /// Per mille of operations whose outcome is lost.
    pub register_failures: u64,
    /// Per mille of deaths that are proved to the others.
    pub proofs: u64,
    pub between_faults: Millis,
    pub between_proposals: Millis,
    pub drops_log: bool,
    pub wipes: bool,
    pub removes: bool,
    /// Processes are numbered 1 or 2, and no more (R32).
    pub few_sessions: bool,
    /// The register runs out of room.
    pub rooms: bool,
    /// The register is put back to an older copy.
    pub puts_back: bool,
    /// Who stops goes on stopping, again and again (R36).
    pub flaps: bool,
}

impl Weather {
    pub fn draw(random: &mut Random) -> Weather {
        Weather {
            machines: random.pick(&[2, 3, 3, 3, 4, 5]),
            ordered: random.chance(400),
            loss: random.pick(&[0, 0, 10, 100]),
            duplicates: random.pick(&[0, 0, 20]),
            network_delay: random.pick(&[0, 1, 4, 30]),
            disk_delay: random.pick(&[0, 1, 5, 40]),
            register_delay: random.pick(&[0, 2, 10]),
            register_failures: random.pick(&[0, 0, 50, 300]),
            proofs: random.pick(&[0, 500, 1000, 1000]),
            between_faults: random.pick(&[20, 40, 80]),
            between_proposals: random.pick(&[2, 8, 30]),
            drops_log: random.chance(600),
            wipes: random.chance(500),
            removes: random.chance(200),
            few_sessions: random.chance(500),
            rooms: random.chance(500),
            puts_back: random.chance(300),
            flaps: false,
        }
    }

    /// No faults, and a world that answers soon.
    pub fn calm(&self) -> Weather {
        Weather {
            loss: 0,
            duplicates: 0,
            network_delay: self.network_delay.min(4),
            disk_delay: self.disk_delay.min(5),
            register_failures: 0,
            proofs: 1000,
            ..self.clone()
        }
    }
}
