//! The verbs of `replcluster`.

pub mod client;
