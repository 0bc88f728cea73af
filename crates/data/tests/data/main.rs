//! The crate from outside, on real text. One program, because linking is most of a test's cost.

mod common;
mod samples;
mod tokenization;
mod tokenizers;
