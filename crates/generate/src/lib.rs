//! Bessemer: generate.
