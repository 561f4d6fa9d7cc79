//! What can be under way in a simulation. Whatever concerns a process names its session: another process at the same
//! place does not get it. Messages alone find whoever lives there when they arrive.

use super::cluster::{Answer, Call, Flight, Snapshot};

/// Something that will happen at a time.
#[derive(Debug)]
pub enum Event {
    Tick {
        machine: usize,
        session: u64,
    },
    Flush {
        machine: usize,
        session: u64,
    },
    Deliver(Flight),
    Arrives(Snapshot),
    SnapshotLost(Snapshot),
    Disk {
        machine: usize,
        session: u64,
    },
    /// The register carries out an operation; the answer goes back where `answers`.
    AtRegister {
        machine: usize,
        session: u64,
        call: Call,
        answers: bool,
    },
    Answer {
        machine: usize,
        session: u64,
        answer: Answer,
    },
    Died {
        to: usize,
        machine: usize,
        session: Option<u64>,
    },
    Propose,
    /// An operator copies the register, or puts the copy back.
    Meddle,
    /// An operator notices that the register was put back.
    PutRight,
    Fault,
    /// A process stops, and so many times more.
    Flap {
        machine: usize,
        rounds: u64,
    },
    Start(usize),
}
