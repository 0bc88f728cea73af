//! A look at every op while it runs: its time, its cost and the weights it read. For profiles.
//!
//! With a [`Probe`] in [`Env::probe`] each op goes onto the tape inside one that watches it; without, nothing is added. Times
//! are those of calls: a device that defers work shows it under whatever waits for it.

use crate::{Cost, Env, Family, GradSlot, Kept, Op, ParamId, Params, Result};
use std::cell::RefCell;
use std::time::{Duration, Instant};
use tensor::{DType, Shape, Tensor};

/// An op that has run forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RanForward {
    /// Number of its block in the model.
    pub block: usize,
    /// [`Op::name`].
    pub op: &'static str,
    /// The weights it read, in the order of reading.
    pub weights: Vec<ParamId>,
    /// [`Op::cost`].
    pub cost: Cost,
    /// Of the call.
    pub time: Duration,
}

/// Hears of every op.
pub trait Probe {
    /// An op has run forward; the number that is returned names it in [`Probe::backward`].
    fn forward(&self, ran: RanForward) -> usize;
    /// The op of this number has run backward.
    fn backward(&self, number: usize, time: Duration);
}

/// `op`, watched if the environment has a probe.
pub(crate) fn watched(op: impl Op + 'static, env: &Env<'_>, block: usize) -> Box<dyn Op> {
    match env.probe {
        None => Box::new(op),
        Some(_) => Box::new(Watched { op: Box::new(op), block, number: 0 }),
    }
}

struct Watched {
    op: Box<dyn Op>,
    block: usize,
    number: usize,
}

impl Op for Watched {
    fn name(&self) -> &'static str {
        self.op.name()
    }

    fn family(&self) -> Option<Family> {
        self.op.family()
    }

    fn forward(&mut self, env: &Env<'_>, inputs: &[Tensor]) -> Result<Tensor> {
        let params = Read { params: env.params, weights: RefCell::default() };
        let cost = self.op.cost(env, inputs);
        let start = Instant::now();
        let output = self.op.forward(&Env { params: &params, ..*env }, inputs)?;
        let (time, weights) = (start.elapsed(), params.weights.take());
        if let Some(probe) = env.probe {
            self.number = probe.forward(RanForward { block: self.block, op: self.op.name(), weights, cost, time });
        }
        Ok(output)
    }

    fn backward(self: Box<Self>, env: &Env<'_>, grad: Tensor) -> Result<Vec<Option<Tensor>>> {
        let start = Instant::now();
        let grads = self.op.backward(env, grad)?;
        if let Some(probe) = env.probe {
            probe.backward(self.number, start.elapsed());
        }
        Ok(grads)
    }

    fn kept(&mut self) -> Vec<(Kept, &mut Option<Tensor>)> {
        self.op.kept()
    }

    fn is_cheap(&self) -> bool {
        self.op.is_cheap()
    }

    fn cost(&self, env: &Env<'_>, inputs: &[Tensor]) -> Cost {
        self.op.cost(env, inputs)
    }
}

/// Weights and gradients of somebody else, with a list of the weights that were asked for.
struct Read<'a> {
    params: &'a dyn Params,
    weights: RefCell<Vec<ParamId>>,
}

impl Params for Read<'_> {
    fn weight(&self, id: ParamId) -> Result<Tensor> {
        self.weights.borrow_mut().push(id);
        self.params.weight(id)
    }

    fn weight_in(&self, id: ParamId, dtype: DType) -> Result<Tensor> {
        self.weights.borrow_mut().push(id);
        self.params.weight_in(id, dtype)
    }

    fn shape(&self, id: ParamId) -> Shape {
        self.params.shape(id)
    }

    fn gradient(&self, id: ParamId) -> Result<Option<GradSlot>> {
        self.params.gradient(id)
    }

    fn is_trained(&self, id: ParamId) -> bool {
        self.params.is_trained(id)
    }
}
