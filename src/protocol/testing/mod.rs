//! A cluster of real [`Node`](super::Node)s in a made-up world: disks, a network, a register and a clock that do what
//! the test says. Two things drive it: `simulation` (tests: `seeds`), a random schedule that a seed repeats to the byte, and `scripts`,
//! short stories with one claim each. `invariants` is checked after every step of both.
//!
//! `model` walks through every schedule within small bounds instead, on a leaner world of its own.
//!
//! Nothing here is part of a program.

mod cluster;
mod event;
mod invariants;
mod model;
pub(crate) mod random;
pub mod register;
pub(crate) mod scripts;
mod seeds;
mod simulation;
pub(crate) mod spread;
mod text;
mod times;
mod weather;
