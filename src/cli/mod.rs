//! The verbs of `replcluster`.

pub mod bench;
pub mod client;
