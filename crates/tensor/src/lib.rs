//! Bessemer: tensor.
