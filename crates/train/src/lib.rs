//! Bessemer: train.
