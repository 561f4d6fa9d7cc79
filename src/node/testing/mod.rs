//! Whole nodes in a made-up world: the engine, the log and the promises on simulated disks, the state in memory, a
//! network of connections, a register, clients, and a clock; everything that happens comes from one seed.
//!
//! * `disk`, `rows`, `register`: what a node stands on
//! * `machine`: a place where a node lives, and its process
//! * `world`: all machines, and what is under way between them
//! * `clients`: what they ask and are told, as a history to be judged by [`check`](crate::check)
//! * `storm`: faults, then a time without faults in which the cluster must become whole again
//! * `seeds`: the tests with many seeds
//! * `room`, `heavy`: full disks; entries that take long
//! * `places`: whose a directory is, what it holds and what is put in its place, with power cuts and without a network
//!
//! Nothing here is part of a program. The core alone is tried harder, and by far more seeds, in `protocol::testing`:
//! there messages may be lost one by one, repeated and reordered. Here connections behave as TCP does.

mod clients;
pub mod disk;
mod heavy;
mod machine;
mod places;
pub mod register;
mod room;
pub mod rows;
mod seeds;
mod storm;
mod world;
