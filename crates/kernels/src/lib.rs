//! Bessemer: kernels.
