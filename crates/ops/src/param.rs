//! How ops reach weights and their gradients.

use crate::Result;
use tensor::{DType, Shape, Tensor};

/// A weight of a model, by its place in the model's list of parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParamId(pub u32);

impl ParamId {
    /// As an index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where an op puts the gradient of a weight.
pub struct GradSlot {
    /// f32, the weight's shape.
    pub tensor: Tensor,
    /// Add to it; otherwise write: nothing has been put there yet.
    pub accumulate: bool,
}

/// Weights and gradients, wherever they live.
pub trait Params {
    /// The weight in the compute dtype. It may be asked for only between gather and release of its block.
    fn weight(&self, id: ParamId) -> Result<Tensor>;

    /// The weight in `dtype`, or in whatever other format it is kept: whoever asks casts it. As [`Params::weight`] otherwise.
    fn weight_in(&self, id: ParamId, _dtype: DType) -> Result<Tensor> {
        self.weight(id)
    }

    /// The shape this rank holds; always known.
    fn shape(&self, id: ParamId) -> Shape;

    /// Where to put a gradient, or `None` if the weight is not trained. Each call must be followed by a kernel that
    /// writes or adds as the slot says.
    fn gradient(&self, id: ParamId) -> Result<Option<GradSlot>>;

    /// Whether the weight is trained.
    fn is_trained(&self, id: ParamId) -> bool;
}
