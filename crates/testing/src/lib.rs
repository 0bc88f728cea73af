//! Bessemer: testing.

#![forbid(unsafe_code)]

pub mod close;
pub mod fixtures;
pub mod golden;
pub mod oracle;
