//! What a block sees while it runs.

use crate::precision::Cast;
use crate::probe::{Probe, watched};
use crate::tape::Run;
use crate::{
    Batch, Cost, Family, KvCache, Op, Params, Precision, RecomputedOp, Regions, Result, Saw, Segment, Site, Tape, Var,
};
use std::cell::Cell;
use tensor::{DType, DropoutArgs, LossTerms, MemoryKind, Queue, Shape, Tensor};

/// What the head is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HeadRequest {
    /// The log-probability of every target, with `terms` added, f32 `[N]`.
    ///
    /// `seed`: the gradient of the loss with respect to every counted log-probability, when it is one constant known
    /// beforehand (mean cross-entropy): forward and backward of the head then run in one pass over the logits.
    TokenLogprobs {
        /// See above.
        seed: Option<f32>,
        /// What training adds to cross-entropy; the default adds nothing.
        terms: LossTerms,
    },
    /// The logits after the last token of each document, f32 [documents, V].
    LastLogits,
    /// The logits after every token, f32 [N, V]: for tests and small inputs.
    AllLogits,
}

/// What the head gave: log-probabilities or logits, as was asked.
pub type HeadOutput = Tensor;

/// Everything of a step that does not change from op to op.
#[derive(Clone, Copy)]
pub struct Env<'a> {
    /// The device.
    pub queue: &'a Queue,
    /// Weights and gradients.
    pub params: &'a dyn Params,
    /// What happens where ranks share a layer.
    pub regions: &'a dyn Regions,
    /// The tokens.
    pub batch: &'a Batch,
    /// The format of activations; for an op, that of its own output.
    pub dtype: DType,
    /// The format of each op; none: all run in `dtype`.
    pub precision: Option<&'a dyn Precision>,
    /// What the head is asked for.
    pub head: HeadRequest,
    /// (seed, step) when dropout is on.
    pub dropout: Option<(u64, u64)>,
    /// Keys and values of earlier tokens, in generation.
    pub cache: Option<&'a KvCache>,
    /// Hears of every op; none: nobody watches.
    pub probe: Option<&'a dyn Probe>,
}

impl Env<'_> {
    /// A tensor for a value on the tape.
    pub fn alloc(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        Ok(self.queue.alloc(MemoryKind::Activations, self.dtype, shape)?)
    }

    /// An f32 tensor for statistics on the tape.
    pub fn alloc_f32(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        Ok(self.queue.alloc(MemoryKind::Activations, DType::F32, shape)?)
    }

    /// The arguments of a dropout at a site, or `None` if nothing is dropped.
    pub(crate) fn dropout_args(&self, site: DropoutSite) -> Option<DropoutArgs<&Tensor>> {
        let (seed, step) = self.dropout.filter(|_| site.probability > 0.0)?;
        Some(DropoutArgs {
            probability: site.probability,
            key: tensor::rng::site_key(seed, step, site.site),
            samples: &self.batch.samples,
            positions: &self.batch.row_positions,
            first_feature: 0,
        })
    }
}

/// One place of the model where values are dropped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DropoutSite {
    pub(crate) probability: f32,
    pub(crate) site: u64,
}

/// What flows from block to block: the hidden states and named side tensors (the wire format of a pipeline).
#[derive(Clone, Debug, PartialEq)]
pub struct Flow<T = Var> {
    /// [N, D]; absent before the first block.
    pub hidden: Option<T>,
    /// Declared by the family: encoder output, vision tokens, value residuals.
    pub sides: Vec<(&'static str, T)>,
}

impl<T> Default for Flow<T> {
    fn default() -> Self {
        Self { hidden: None, sides: Vec::new() }
    }
}

impl Flow {
    /// A flow of hidden states alone.
    pub fn hidden(hidden: Var) -> Self {
        Self { hidden: Some(hidden), sides: Vec::new() }
    }

    /// The hidden states.
    ///
    /// # Panics
    /// If the block that reads them is the first of its model.
    pub fn expect_hidden(&self, block: &str) -> Var {
        self.hidden.unwrap_or_else(|| panic!("{block}: no hidden states; a block before it must make them"))
    }
}

/// What an op gives in f32 for the same inputs. What it saves for backward is overwritten by its forward proper. None for
/// the head, whose forward has made gradients, and where keys are appended to a cache.
fn exact_output(op: &mut impl Op, env: &Env<'_>, site: Site, inputs: &[Tensor]) -> Result<Option<Tensor>> {
    if site.family == Family::Head || env.cache.is_some() {
        return Ok(None);
    }
    let inputs = inputs.iter().map(|x| env.cast(x, DType::F32)).collect::<Result<Vec<Tensor>>>()?;
    op.forward(&Env { dtype: DType::F32, ..*env }, &inputs).map(Some)
}

/// A block's view of one forward pass: applies ops and puts them on the tape.
pub struct Cx<'a> {
    /// What does not change from op to op.
    pub env: &'a Env<'a>,
    tape: Tape,
    block: usize,
    num_sites: Cell<u64>,
    cost: Cost,
    output: Option<Var>,
    losses: Vec<(&'static str, Var)>,
}

impl<'a> Cx<'a> {
    /// For block number `block` of the model. `record`: whether backward will be asked for.
    pub fn new(env: &'a Env<'a>, block: usize, record: bool) -> Self {
        let (num_sites, cost, output, losses) = Default::default();
        Self { env, tape: Tape::new(record), block, num_sites, cost, output, losses }
    }

    /// Whether backward will be asked for.
    pub(crate) fn records(&self) -> bool {
        self.tape.records()
    }

    /// Number of this block in the model.
    pub fn block(&self) -> usize {
        self.block
    }

    /// A tensor that comes from outside.
    pub fn input(&mut self, value: Tensor, needs_grad: bool) -> Var {
        self.tape.input(value, needs_grad)
    }

    /// The tensor of a value.
    pub fn value(&self, var: Var) -> &Tensor {
        self.tape.value(var)
    }

    /// This rank's share of `count` things along an axis.
    ///
    /// # Panics
    /// If the ranks do not divide them: the plan checks that before anything runs.
    pub fn share(&self, axis: &str, count: usize) -> usize {
        let part = self.env.regions.part(axis);
        assert!(count.is_multiple_of(part.count), "Cx::share: {count} {axis} on {} ranks", part.count);
        count / part.count
    }

    /// Applies an op without weights. Users' own ops come in here too.
    pub fn apply(&mut self, op: impl Op + 'static, inputs: &[Var]) -> Result<Var> {
        self.apply_with(op, inputs, false)
    }

    /// Applies an op; `trains`: whether it has a trained weight.
    pub(crate) fn apply_with(&mut self, op: impl Op + 'static, vars: &[Var], trains: bool) -> Result<Var> {
        let (env, run) = self.run_of(&op, vars);
        if self.agree(&env, vars) {
            let inputs: Vec<Tensor> = vars.iter().map(|v| self.tape.value(*v).clone()).collect();
            return self.append(op, &env, run, vars, &inputs, trains);
        }
        let vars = vars.iter().map(|var| self.cast(*var, env.dtype)).collect::<Result<Vec<Var>>>()?;
        let inputs: Vec<Tensor> = vars.iter().map(|v| self.tape.value(*v).clone()).collect();
        self.append(op, &env, run, &vars, &inputs, trains)
    }

    /// Applies an op that may write its output over its input, which nobody may use afterwards.
    pub(crate) fn apply_in_place(&mut self, op: impl Op + 'static, var: Var) -> Result<Var> {
        let (env, run) = self.run_of(&op, &[var]);
        let var = self.cast(var, env.dtype)?;
        let input = self.tape.consume(var);
        self.append(op, &env, run, &[var], &[input], false)
    }

    fn append(
        &mut self,
        mut op: impl Op + 'static,
        env: &Env<'_>,
        run: Run,
        vars: &[Var],
        inputs: &[Tensor],
        trains: bool,
    ) -> Result<Var> {
        self.cost += op.cost(env, inputs);
        let seen = run.site.and_then(|site| Some((env.precision.filter(|precision| precision.watches())?, site)));
        let Some((precision, site)) = seen else {
            return self.tape.append(watched(op, env, self.block), env, run, vars, inputs, trains);
        };
        let compares = env.dtype != DType::F32 && precision.compares(site);
        let exact = compares.then(|| exact_output(&mut op, env, site, inputs)).transpose()?.flatten();
        let output = self.tape.append(watched(op, env, self.block), env, run, vars, inputs, trains)?;
        precision.saw(env, site, Saw::Output, self.tape.value(output), exact.as_ref())?;
        Ok(output)
    }

    /// Where an op stands and the environment in its format.
    fn run_of(&self, op: &impl Op, vars: &[Var]) -> (Env<'a>, Run) {
        let Some(precision) = self.env.precision else { return (*self.env, Run { site: None, dtype: self.env.dtype }) };
        let site = op.family().map(|family| Site { block: self.block, family });
        let dtype = match (site, vars.first()) {
            (Some(site), _) => precision.dtype(site),
            (None, Some(first)) => self.tape.value(*first).dtype(),
            (None, None) => self.env.dtype,
        };
        (Env { dtype, ..*self.env }, Run { site, dtype })
    }

    /// Whether nothing must be cast.
    fn agree(&self, env: &Env<'_>, vars: &[Var]) -> bool {
        env.precision.is_none() || vars.iter().all(|var| self.tape.value(*var).dtype() == env.dtype)
    }

    /// A value in another format; itself if it has that already, or if there is one format only.
    fn cast(&mut self, var: Var, dtype: DType) -> Result<Var> {
        let from = self.tape.value(var).dtype();
        if self.env.precision.is_none() || from == dtype {
            return Ok(var);
        }
        let (env, input) = (Env { dtype, ..*self.env }, self.tape.value(var).clone());
        self.append(Cast { from }, &env, Run { site: None, dtype }, &[var], &[input], false)
    }

    /// The next dropout site of this block.
    pub(crate) fn dropout_site(&self, probability: f32) -> DropoutSite {
        let index = self.num_sites.replace(self.num_sites.get() + 1);
        DropoutSite { probability, site: (self.block as u64) << 32 | index }
    }

    /// Declares what the head made; the executor reads it after the pass.
    pub fn set_output(&mut self, output: Var) {
        self.output = Some(output);
    }

    /// Adds a loss of the block's own (balance of experts, z-loss): a scalar with its factor already applied.
    pub fn add_loss(&mut self, name: &'static str, loss: Var) {
        self.losses.push((name, loss));
    }

    /// What [`Cx::set_output`] declared.
    pub fn output(&self) -> Option<Var> {
        self.output
    }

    /// What [`Cx::add_loss`] declared.
    pub fn losses(&self) -> &[(&'static str, Var)] {
        &self.losses
    }

    /// Cost of what has run.
    pub fn cost(&self) -> Cost {
        self.cost
    }

    /// Closes the segment: see [`Tape::finish`].
    pub fn finish(self, outputs: &[Var]) -> (Segment, Vec<Tensor>) {
        self.tape.finish(outputs)
    }

    /// Closes the segment without the outputs of `ops`: see [`Tape::finish_forgetting`].
    pub fn finish_forgetting(self, outputs: &[Var], ops: &[RecomputedOp]) -> (Segment, Vec<Tensor>) {
        self.tape.finish_forgetting(outputs, ops)
    }
}
