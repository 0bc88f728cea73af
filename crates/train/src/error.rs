//! Why a run did not do what it was asked.

use crate::config::ConfigError;
use models::hf::HfError;
use models::weights::WeightError;
use ops::OpError;
use std::io;
use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T, E = TrainError> = std::result::Result<T, E>;

/// Why a run did not do what it was asked. Its text is one paragraph.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The run file is at fault.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data are.
    #[error(transparent)]
    Data(#[from] data::DataError),
    /// A model folder is.
    #[error(transparent)]
    Files(#[from] HfError),
    /// A checkpoint could not be written or read.
    #[error(transparent)]
    Checkpoint(#[from] crate::checkpoint::CheckpointError),
    /// A text could not be generated.
    #[error(transparent)]
    Generate(#[from] generate::GenerateError),
    /// A model could not be loaded.
    #[error(transparent)]
    Load(#[from] generate::LoadError),
    /// An op failed while the model ran.
    #[error(transparent)]
    Op(#[from] OpError),
    /// Another rank is lost, or the ranks did not do the same.
    #[error(transparent)]
    Comm(#[from] comm::CommError),
    /// One of the ranks of this process ended in a way that is no error of the others.
    #[error("rank {rank} {how}")]
    Rank {
        /// Which.
        rank: usize,
        /// As the end of the sentence.
        how: String,
    },
    /// The request cannot be carried out as it stands.
    #[error("{0}")]
    Request(String),
    /// A file or folder of the run.
    #[error("{}: cannot {action}: {source}", .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// As the end of "cannot ...".
        action: &'static str,
        /// The system's words.
        source: io::Error,
    },
    /// A step whose samples are all masked: its mean loss is not defined.
    #[error(
        "step {step}: of its {samples} samples none has a target that counts (every label is -100, the rows have one token, \
         or curriculum_learning cuts them before their first label). The run has stopped. Give rows with labels, a larger \
         train_batch_size, or a larger curriculum_learning.min_difficulty"
    )]
    NoTarget {
        /// Optimizer step, from 1.
        step: u64,
        /// Of the step.
        samples: usize,
    },
    /// Weights or the validation loss are not numbers any more.
    #[error(
        "step {step}: {what} is not finite (NaN or infinite): the run has diverged and has stopped; nothing was saved \
         after the last checkpoint. Lower the learning rate, or clip gradients (gradient_clipping)"
    )]
    Diverged {
        /// Optimizer step, from 1.
        step: u64,
        /// What is not finite.
        what: String,
    },
    /// The loss scale of an fp16 run cannot fall any further.
    #[error(
        "step {step}: a gradient overflows although the loss scale is {scale}, the lowest that fp16.min_loss_scale allows. \
         The run has stopped before the update. Lower the learning rate, clip gradients (gradient_clipping), or train in bf16"
    )]
    LossScale {
        /// Optimizer step, from 1.
        step: u64,
        /// The lowest scale.
        scale: f64,
    },
    /// A batch whose loss leaps, under a guard that stops.
    #[error(
        "step {step}: the loss is {loss}, {:.1} times the mean {mean} of the steps before it (run.loss_spike.factor is \
         {factor}){row}. The batch is samples {first} to {last} of the run, counted from 0. The run has stopped before its \
         update. Look at these samples, lower the learning rate, or raise \
         run.loss_spike.factor",
        .loss / .mean
    )]
    LossSpike {
        /// Optimizer step, from 1.
        step: u64,
        /// The loss.
        loss: f64,
        /// What it was held against.
        mean: f64,
        /// How many times the mean is a spike.
        factor: f64,
        /// First sample of the batch.
        first: u64,
        /// Last sample of the batch.
        last: u64,
        /// Said where it is one of several in a row.
        row: String,
    },
    /// The loss is not a number any more.
    #[error(
        "step {step}: the loss is {loss}; the first block whose output is not finite is {block}. The run has stopped; \
         nothing was written after the last checkpoint. Lower the learning rate, or clip gradients (gradient_clipping)"
    )]
    NonFinite {
        /// Optimizer step, from 1.
        step: u64,
        /// The loss.
        loss: f64,
        /// The block's name.
        block: String,
    },
}

impl TrainError {
    /// Whether it ended a step before anything had changed, so that the state is worth saving.
    pub(crate) fn leaves_weights_whole(&self) -> bool {
        matches!(self, Self::NoTarget { .. } | Self::LossScale { .. } | Self::LossSpike { .. })
    }

    /// Whether it only says how another rank ended: the cause is that rank's own error.
    pub(crate) fn is_of_another_rank(&self) -> bool {
        matches!(self, Self::Comm(_) | Self::Op(OpError::Ranks(_) | OpError::Region { .. }))
    }

    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, action, source }
    }
}

impl From<WeightError> for TrainError {
    fn from(error: WeightError) -> Self {
        match error {
            WeightError::Files(error) => Self::Files(error),
            WeightError::Op(error) => Self::Op(error),
        }
    }
}

impl From<parallel::ParallelError> for TrainError {
    fn from(error: parallel::ParallelError) -> Self {
        match error {
            parallel::ParallelError::Comm(error) => Self::Comm(error),
            parallel::ParallelError::Op(error) => Self::Op(error),
        }
    }
}

impl From<tensor::KernelError> for TrainError {
    fn from(error: tensor::KernelError) -> Self {
        Self::Op(error.into())
    }
}
