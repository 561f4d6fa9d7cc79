//! The background process of a cluster: it starts the nodes' processes, restarts those that fail, remembers what it
//! did, and serves the command line over a Unix socket. What to do is decided in [`control`](crate::control).
//!
//! It is not needed for the cluster to serve: killing it ends no node, and the next one takes over what lives.
//!
//! - [`run`]: the one task that owns all state: wait for a message, handle it, do what follows
//! - [`spawn`], [`os`], [`adopt`]: processes started, held, found again
//! - [`lock`], [`socket`], [`wire`]: only one supervisor, and how it is talked to
//! - [`record`], [`events`], [`past`], [`layout`]: what is on disk, and what a new supervisor learns from it
//! - [`heal`]: what is owed where a supervisor died in the middle of a fault and none runs
//! - [`owner`]: which user the directory belongs to, and what follows from that
//! - [`ask`], [`ports`]: the nodes' own answers, and who holds a port

pub mod adopt;
pub mod ask;
mod crash;
pub mod events;
pub mod heal;
pub mod layout;
pub mod lock;
pub mod os;
pub mod owner;
pub mod past;
pub mod ports;
pub mod record;
pub mod run;
mod slot;
pub mod socket;
pub mod spawn;
pub mod wire;
