//! A replicated key-value cluster that speaks the etcd v3 API, and the controller that runs, breaks and proves it.
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests measure and wait"))]

pub mod api;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod control;
pub mod kv;
pub mod node;
pub mod proto;
pub mod protocol;
pub mod register;
pub mod server;
pub mod supervisor;
pub mod telemetry;
pub mod view;
