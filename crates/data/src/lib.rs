//! Bessemer: data.
