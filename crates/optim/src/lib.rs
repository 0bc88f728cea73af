//! Bessemer: optim.

pub mod schedule;
