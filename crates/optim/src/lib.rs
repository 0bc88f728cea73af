//! Bessemer: optim.
