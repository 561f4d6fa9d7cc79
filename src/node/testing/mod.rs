//! A made-up world for the parts of a node. Nothing here is part of a program.

pub mod disk;
