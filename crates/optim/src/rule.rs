//! The contract of an optimizer.

use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tensor::{
    CopyArgs, DType, DequantizeArgs, ElementRule, KernelError, MemoryKind, QuantizeArgs, Queue, Shape, Tensor,
    UpdateArgs, block_words,
};

/// What a rule needs to see at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granularity {
    /// Any range of elements: shards may be cut anywhere, at multiples of 4,096.
    Element,
    /// Whole parameters, because the step of an element depends on the others (Muon, LAMB, Adafactor).
    Matrix,
}

/// The name of a state that holds averaged weights: evaluation and export read it in place of the weights themselves.
pub const AVERAGE: &str = "average";

/// A tensor that a rule keeps beside a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// As checkpoints call it.
    pub name: &'static str,
    /// Its shape: the parameter's for what is kept by element.
    pub shape: Shape,
    /// A moment may be kept in fewer bits ([`Moments`]); anything else is f32.
    pub is_moment: bool,
}

impl State {
    /// Moments by element, of a parameter or shard of this shape.
    pub fn moments(names: &[&'static str], shape: Shape) -> Vec<Self> {
        names.iter().map(|name| Self { name, shape, is_moment: true }).collect()
    }

    /// What is always f32.
    pub fn exact(name: &'static str, shape: Shape) -> Self {
        Self { name, shape, is_moment: false }
    }

    /// Zeros, in the format that `moments` says for this state.
    ///
    /// # Errors
    /// The device has no memory left.
    pub fn allocate(&self, queue: &Queue, moments: Moments) -> Result<Tensor, KernelError> {
        let elements = self.shape.elements();
        let (dtype, shape) = match moments {
            _ if !self.is_moment => (DType::F32, self.shape),
            Moments::F32 => (DType::F32, self.shape),
            Moments::Bf16 => (DType::BF16, self.shape),
            Moments::Int8 if elements < SMALLEST_IN_8_BITS => (DType::F32, self.shape),
            Moments::Int8 => (DType::U32, Shape::from([block_words(elements)])),
        };
        queue.zeros(MemoryKind::Optimizer, dtype, shape)
    }

    /// The values of a tensor made by [`State::allocate`], in f32.
    ///
    /// # Errors
    /// The device failed.
    pub fn read(&self, queue: &Queue, tensor: &Tensor) -> Result<Vec<f32>, KernelError> {
        if tensor.dtype() != DType::U32 {
            return queue.read_f32(tensor);
        }
        let wide = queue.alloc(MemoryKind::Workspace, DType::F32, self.shape)?;
        (queue.backend().dequantize)(queue, DequantizeArgs { x: tensor, out: &wide })?;
        queue.read(&wide)
    }

    /// Writes values into a tensor made by [`State::allocate`]. What [`State::read`] gave comes back bit for bit.
    ///
    /// # Errors
    /// The device failed.
    ///
    /// # Panics
    /// If there are not as many values as elements.
    pub fn write(&self, queue: &Queue, tensor: &Tensor, values: &[f32]) -> Result<(), KernelError> {
        if tensor.dtype() == DType::F32 {
            return queue.write(tensor, values);
        }
        let x = &queue.upload(MemoryKind::Workspace, self.shape, values)?;
        match tensor.dtype() {
            DType::U32 => (queue.backend().quantize)(queue, QuantizeArgs { x, out: tensor }),
            _ => (queue.backend().copy)(queue, CopyArgs { x, out: tensor }),
        }
    }
}

/// Below this many elements, moments stay f32: there is nothing to gain, and norms and biases are sensitive
/// (Dettmers et al. 2021, arXiv:2110.02861, section 3).
const SMALLEST_IN_8_BITS: usize = 4096;

/// The format in which moments are kept; arithmetic is f32 in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Moments {
    /// 4 bytes.
    #[default]
    F32,
    /// 2 bytes, rounded up or down by chance: a function of (seed, step, parameter, element).
    Bf16,
    /// 1 byte and 4 for each 256 elements (Dettmers et al. 2021); f32 for weights of fewer than 4,096 elements.
    Int8,
}

/// The part of one parameter that a rank owns. Parameter, gradient and copy have one shape.
pub struct Shard<'a> {
    /// f32: the master weights, updated in place.
    pub param: &'a Tensor,
    /// f32: sum over all micro-batches and ranks, before [`Step::grad_scale`].
    pub grad: &'a Tensor,
    /// In the order of [`Optimizer::states`]; zero before the first step.
    pub states: &'a [Tensor],
    /// The rounded copy that products read, written in the same pass; `None` where products read the masters.
    pub compute: Option<&'a Tensor>,
    /// Global index of the first element of the shard, a multiple of 4,096.
    pub first: u64,
    /// Made of seed, step and parameter: how bf16 moments are rounded.
    pub key: [u32; 2],
}

impl Shard<'_> {
    /// Runs an element-wise rule over the shard in one pass, with all its states.
    ///
    /// # Errors
    /// The device has no kernel for it, or failed.
    pub fn update(&self, queue: &Queue, grad_scale: f32, rule: impl ElementRule) -> Result<(), KernelError> {
        let Shard { param, grad, compute, first, key, .. } = *self;
        let states = std::array::from_fn(|i| self.states.get(i));
        let args = UpdateArgs { param, grad, states, compute, rule: Arc::new(rule), grad_scale, key, first };
        (queue.backend().update)(queue, args)
    }
}

/// Runs an element-wise rule of two arrays, f32 and of one shape: `x` becomes what the rule makes of it and `y`.
///
/// # Errors
/// The device has no kernel for it, or failed.
pub(crate) fn zip(queue: &Queue, x: &Tensor, y: &Tensor, rule: impl ElementRule) -> Result<(), KernelError> {
    Shard { param: x, grad: y, states: &[], compute: None, first: 0, key: [0; 2] }.update(queue, 1.0, rule)
}

/// What one step has in common for all parameters of a group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// 1 at the first update that is applied.
    pub step: u64,
    /// After the schedule.
    pub lr: f64,
    /// Of this group: 0 where nothing decays.
    pub weight_decay: f64,
    /// Multiplies the gradient: clip factor and loss scale.
    pub grad_scale: f32,
    /// In place of the rule's own betas, where the schedule moves them (OneCycle).
    pub betas: Option<[f64; 2]>,
}

impl Step {
    /// `1 - beta^step`
    pub(crate) fn correction(&self, beta: f64) -> f64 {
        assert!(self.step >= 1, "Step::correction: steps count from 1");
        1.0 - beta.powf(self.step as f64)
    }

    /// Whether states are not there yet.
    pub(crate) fn is_first(&self) -> bool {
        self.step == 1
    }

    /// Decay that joins the gradient, and what decoupled decay leaves of the parameter: one of the two is on.
    pub(crate) fn decay(&self, decoupled: bool) -> Decay {
        let (lr, decay) = (self.lr as f32, self.weight_decay as f32);
        if decoupled { Decay { l2: 0.0, keep: 1.0 - lr * decay } } else { Decay { l2: decay, keep: 1.0 } }
    }
}

/// See [`Step::decay`].
#[derive(Clone, Copy)]
pub(crate) struct Decay {
    /// Times the parameter, added to the gradient.
    pub(crate) l2: f32,
    /// Times the parameter, before the step is taken.
    pub(crate) keep: f32,
}

/// An update rule.
pub trait Optimizer: Send + Sync {
    /// The type's name in the run file; a checkpoint is resumed only with the same.
    fn name(&self) -> &'static str;

    /// What it needs to see at once.
    fn granularity(&self) -> Granularity {
        Granularity::Element
    }

    /// The tensors it keeps beside a parameter or shard of this shape. Element-wise rules: at most three, of this shape.
    fn states(&self, shape: Shape) -> Vec<State>;

    /// One update, in place.
    ///
    /// # Errors
    /// The device has no kernel for it, or failed.
    fn step(&self, queue: &Queue, shard: &Shard<'_>, at: &Step) -> Result<(), KernelError>;
}
