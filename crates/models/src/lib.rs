//! Bessemer: models.
