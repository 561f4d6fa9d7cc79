//! What the supervisor should do, as values: no clock, no process, no file. Time comes in as an argument.
//!
//! - [`life`]: the life of one node's process, one `match (state, event)`
//! - [`restart`]: which exits are answered with a restart, and when
//! - [`cause`]: who or what ended a process
//! - [`fault`]: the phases of a pause or a kill, and what is owed where one was cut short
//! - [`plan`]: the steps of `up`, `down` and a rolling restart, printable before they are taken
//! - [`health`]: what the nodes' own answers add up to
//!
//! The supervisor's loop carries this out; the command line prints it.

pub mod cause;
pub mod fault;
pub mod health;
pub mod life;
pub mod plan;
pub mod recovery;
pub mod restart;
