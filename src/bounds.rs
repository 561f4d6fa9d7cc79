//! Everything of which a node takes only so much, and what happens when it is full. A row here for each; the constants
//! stand beside what they bound, those without a better home here.
//!
//! | what | at most | when full |
//! |---|---|---|
//! | descriptors | the hard limit; [`descriptors`](crate::descriptors) divides it | a client's connection is refused, never the node's own |
//! | connections of clients | `--max-connections` (`server::port`) | refused with a text; the controller and health checks are answered |
//! | connections that have not said what they are, or that are one too many | [`WAITING_MAX`](crate::descriptors::WAITING_MAX), 10 s each | the oldest is closed |
//! | a connection that never asks for anything | 60 s (`api::serve`) | closed gracefully |
//! | requests at a time on one connection | 4,096 (`api::serve`) | the client waits, as HTTP/2 wants |
//! | requests that a client resets before they are looked at | 4,096 (`api::serve`) | the connection is closed |
//! | headers of one request | 16 KiB (`api::serve`) | refused |
//! | one request | `--max-request-bytes` (1.5 MiB) | `etcdserver: request is too large`; beyond 512 KiB more it is not read |
//! | one request without keys and values | 64 KiB (`api`) | not read |
//! | requests that arrive | 256 MiB (`api::held`) | `etcdserver: too many requests` |
//! | changes that wait for their entries | 8,192 (`node::engine`), 128 MiB (`node::handle`) | `etcdserver: too many requests` |
//! | reads of more than one step at a time | 2 (`node::handle`) | they wait for their turn until their deadline |
//! | answers of 16 KiB and more until they are read | 128 MiB, or one that is larger (`api::held`) | made again when there is room, else `etcdserver: too many requests` |
//! | a connection that takes no byte of such an answer | 60 s (`api::held`) | closed |
//! | transactions inside each other | 129 (`proto::nested`) | `etcdserver: too many operations in txn request` |
//! | operations of transactions inside others, each counted as often as it is deep | 65,536 (`proto::nested`) | `etcdserver: too many operations in txn request` |
//! | keys that one transaction looks at, reads and writes counting eightfold | 134 million (`kv::COST`) | `etcdserver: request is too large` |
//! | the answer of one request | 512 MiB (`kv::ANSWER_BYTES`) | `grpc: trying to send message larger than max` |
//! | what is done under the state's lock at once | 4,096 keys or as much (`kv::STEP_UNITS`) | the rest waits for the next step |
//! | how long the thread of the protocol waits for the state | 1 ms (`node::handle`) | it goes on, and tries again in its next turn |
//! | reads of several steps that go on at a time | 2 (`node::handle`) | the others wait for their turn |
//! | entries applied in one turn | 1,024, or 4 MiB (`node::engine`) | the next turn goes on |
//! | one entry of the log | 16 MiB (`node::log`) | refused; a larger `--max-request-bytes` is a usage error |
//! | refused entries that are logged | 1 a second (`node::engine`) | counted |
//! | what waits for one peer | 4,096 items, 2,048 of them with requests; 32 MiB, and frames under 4 KiB (`node::link`) | dropped, sent again later |
//! | forwarded requests that wait to be ordered | 32 MiB (`node::engine`) | not taken, given again by their node |
//! | reports that wait for the driver | 4,096 (`node`) | peers' connections are not read |
//! | entries and forwarded requests that are not taken or not written | 96 MiB (`node`) | peers' connections are not read |
//! | peers that are greeting | 64, 5 s each, 4 KiB a message (`node::greeting`) | the oldest is closed |
//! | peers that have greeted | 64 (`node`) | refused |
//! | snapshots that arrive | 1, of 4 chunks in memory (`node::inbound`, `node::snapshot`) | refused, sent again later |

mod budget;
mod room;

pub use budget::{Budget, Charge};
pub use room::{Place, Room};
