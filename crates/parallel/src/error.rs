//! What can go wrong between ranks.

use comm::CommError;
use ops::OpError;
use tensor::KernelError;

/// Why ranks could not do their part together.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ParallelError {
    /// Another rank is lost, or made another call.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// The model did not run.
    #[error(transparent)]
    Op(#[from] OpError),
}

impl From<KernelError> for ParallelError {
    fn from(error: KernelError) -> Self {
        Self::Op(error.into())
    }
}

/// Result of what ranks do together.
pub type Result<T> = std::result::Result<T, ParallelError>;

/// In a pass over the model's blocks errors travel as those of ops.
pub(crate) fn in_pass(error: ParallelError) -> OpError {
    match error {
        ParallelError::Op(error) => error,
        ParallelError::Comm(CommError::Kernel(error)) => error.into(),
        ParallelError::Comm(error) => OpError::Ranks(error.to_string()),
    }
}
