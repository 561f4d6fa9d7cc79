//! A replicated key-value cluster that speaks the etcd v3 API, and the controller that runs, breaks and proves it.
//!
//! # The square
//!
//! Two programs, each with a *brain* (pure: no clock, disk, network, async, randomness) and *hands* (everything else):
//!
//! ```text
//!                  brain             hands
//!  replserver      protocol   kv     node   register   api   server
//!  replcluster     control   check   supervisor   cli   client   config
//!  shared          view              proto   telemetry   clock   notify   inspection   signals   descriptors   bounds
//! ```
//!
//! Arrows go from hands to brains, never back, and never between the two brains of a program; a table in
//! `tests/suite/tidy.rs` holds them there. `kv` works on etcd's own message types (`proto`), so that nothing is
//! translated twice on the way of a request. `check` judges what clients were told and knows no other module.
//!
//! # Words
//!
//! | word | means |
//! |---|---|
//! | *node* | an address with a data directory |
//! | *incarnation* | random number minted with a data directory |
//! | *view* | epoch, leader, in-sync set: what the register holds |
//! | *epoch* | numbers views; only grows |
//! | *in sync* | must hold an entry before it is acknowledged; may be elected |
//! | *register* | the cell that holds the newest view and knows only compare-and-swap |
//! | *index*, *commit* | a place in the log; up to where all in-sync nodes hold it on disk |
//! | *revision* | etcd's number of a change; belongs to the data, not to the log |
//! | *supervisor* | the background process that `up` starts |
//!
//! # The way of a write
//!
//! `api` checks it and hands it to [`node::Handle`]; the driver gives it a sequence number and, on a follower, forwards
//! it. The leader's `protocol` orders it; the record is encoded once, goes to the log's writer and to every follower at
//! the same time, and each syncs. When the last in-sync node has said so it is committed; every node applies it to
//! `kv`, and the node whose client asked answers when it applies it. So an answer never depends on who led meanwhile.
//! Only a node that has no room and is not in sync cannot apply: its `api` becomes a `client` of the leader instead.
//!
//! # Reading order
//!
//! [`view`], the essay of [`protocol`], [`kv`], then [`node`] for how they are driven; [`control`] and [`supervisor`]
//! for how processes live.
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests measure and wait"))]

pub mod api;
pub mod bounds;
pub mod check;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod control;
pub mod descriptors;
pub mod disk;
#[cfg(test)]
mod fuzz;
pub mod inherited;
pub mod inspection;
pub mod kv;
#[cfg(test)]
mod mutations;
pub mod node;
pub mod notify;
pub mod proto;
pub mod protocol;
pub mod register;
mod rules;
pub mod server;
pub mod signals;
pub mod skips;
pub mod supervisor;
pub mod telemetry;
pub mod view;

/// The version of both programs, and in a release also the commit it was built from, such as `0.1.0 (abc1234 2026-11-23)`.
pub const VERSION: &str = env!("REPLCLUSTER_VERSION");
