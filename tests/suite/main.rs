//! Tests that run the built programs as processes, and the rules that the source itself keeps.
#![allow(clippy::disallowed_methods, reason = "tests measure real time")]
#![allow(missing_docs, reason = "a test's name is its claim")]

mod admission;
mod big;
mod cli;
mod cluster;
mod completions;
mod containers;
mod disaster;
mod elsewhere;
#[cfg(feature = "full-tests")]
mod etcdctl;
mod failover;
#[cfg(feature = "full-tests")]
mod full_disk;
mod fuzz;
mod hoarders;
mod hung;
mod inherited;
mod kernel;
mod ledger;
mod logs;
#[cfg(feature = "full-tests")]
mod memory;
mod operator;
mod outputs;
#[cfg(feature = "full-tests")]
mod outside;
mod packaging;
mod place;
mod port;
mod readme;
mod refusals;
mod signals;
mod terminal;
mod tidy;
mod top;
mod torture;
mod truth;
mod upgrade;
mod verdict;
