//! What can go wrong while a model runs.

use std::fmt;
use tensor::{KernelError, Shape};

/// A tensor whose shape breaks the contract of an op.
#[derive(Clone, Debug, PartialEq)]
pub struct ShapeError {
    /// The op that refused.
    pub op: &'static str,
    /// The argument at fault.
    pub arg: &'static str,
    /// The shape that came in.
    pub got: Shape,
    /// What it should have been and why, as the end of a sentence.
    pub rule: String,
}

impl fmt::Display for ShapeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} is {}; {}", self.op, self.arg, self.got, self.rule)
    }
}

impl std::error::Error for ShapeError {}

/// Why an op did not run.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum OpError {
    /// A shape is wrong.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// The device refused or failed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A weight was asked for while it is not gathered.
    #[error("weight {name} was used outside gather..release of its block")]
    NotGathered {
        /// The weight's name.
        name: String,
    },
    /// The ranks of a region could not exchange a tensor.
    #[error("region {region}: {message}")]
    Region {
        /// Which region.
        region: &'static str,
        /// In the communicator's words.
        message: String,
    },
    /// The data are not what the model predicts: classes for a language model, tokens for a classifier.
    #[error("{0}")]
    WrongTask(String),
    /// Ranks that share weights or gradients lost one of them.
    #[error("{0}")]
    Ranks(String),
    /// A block that runs on some of the tokens would leave its side tensors without the others.
    #[error(
        "block {block} hands on side tensors and cannot run on some of the tokens; take its layer out of \
         data_efficiency.data_routing.random_ltd.random_ltd_layer_id"
    )]
    SideTensors {
        /// Its name.
        block: String,
    },
    /// The sequence does not fit what the model or the cache can hold.
    #[error("{0}")]
    TooLong(String),
}
