//! What the tests are made of: histories that are right by construction, mistakes to put into them, and a search
//! that is too slow for anything but a few operations and too simple to be wrong in the same way.

pub(super) mod exhaustive;
pub(super) mod mistake;
pub(super) mod store;

use super::{
    Answer, Found, Freshness, History, Key, Operation, Outcome, Request, Sets, Span, Token, Transaction,
};
