//! Bessemer: ops.
