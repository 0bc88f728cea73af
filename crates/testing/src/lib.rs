//! Bessemer: testing.
