//! Products with weights: `y = x W^T + b`, the only op through which a weight meets a product.
//!
//! Several weights may share one input and lie side by side in one output (`[q | k | v]`, `[gate | up]`): `x` is then read
//! once and what follows sees the packed rows that fused checkpoints have anyway.
//!
//! Backward: `dx = dy W`, `dW = dy^T x`, `db = sum over tokens of dy`. Saved: `x`.

use crate::{Cost, Cx, Env, Family, GradSlot, Kept, Op, ParamId, Result, ShapeError, Var};
use tensor::{ColumnSumArgs, MatmulArgs, Shape, Tensor};

/// How a checkpoint stores a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightLayout {
    /// [out, in]: PyTorch's `Linear`.
    OutIn,
    /// [in, out]: GPT-2's `Conv1D`.
    InOut,
}

/// A weight matrix and its bias, by id.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    /// The matrix.
    pub weight: ParamId,
    /// `[out]`.
    pub bias: Option<ParamId>,
    /// How the matrix is stored.
    pub layout: WeightLayout,
}

impl Linear {
    fn out_features(&self, env: &Env<'_>) -> usize {
        let shape = env.params.shape(self.weight);
        if self.layout == WeightLayout::OutIn { shape.rows() } else { shape.width() }
    }

    fn in_features(&self, env: &Env<'_>) -> usize {
        let shape = env.params.shape(self.weight);
        if self.layout == WeightLayout::OutIn { shape.width() } else { shape.rows() }
    }

    fn is_trained(&self, env: &Env<'_>) -> bool {
        env.params.is_trained(self.weight) || self.bias.is_some_and(|bias| env.params.is_trained(bias))
    }

    /// `out = x W^T + b`.
    pub(crate) fn forward(&self, env: &Env<'_>, x: &Tensor, out: &Tensor) -> Result<()> {
        let weight = env.weight(self.weight)?;
        let bias = self.bias.map(|bias| env.weight(bias)).transpose()?;
        let args = MatmulArgs {
            a: x,
            transpose_a: false,
            b: &weight,
            transpose_b: self.layout == WeightLayout::OutIn,
            bias: bias.as_ref(),
            out,
            accumulate: false,
        };
        Ok((env.queue.backend().matmul)(env.queue, args)?)
    }

    /// `dx (+)= dy W`.
    pub(crate) fn backward_input(&self, env: &Env<'_>, dy: &Tensor, dx: &Tensor, accumulate: bool) -> Result<()> {
        let weight = env.weight(self.weight)?;
        let transpose_b = self.layout == WeightLayout::InOut;
        let args = MatmulArgs { a: dy, transpose_a: false, b: &weight, transpose_b, bias: None, out: dx, accumulate };
        Ok((env.queue.backend().matmul)(env.queue, args)?)
    }

    /// `dW (+)= dy^T x`, `db (+)= sum dy`, for those that are trained.
    pub(crate) fn backward_weight(&self, env: &Env<'_>, x: &Tensor, dy: &Tensor) -> Result<()> {
        if let Some(GradSlot { tensor, accumulate }) = env.params.gradient(self.weight)? {
            let (a, b) = if self.layout == WeightLayout::OutIn { (dy, x) } else { (x, dy) };
            let args = MatmulArgs { a, transpose_a: true, b, transpose_b: false, bias: None, out: &tensor, accumulate };
            (env.queue.backend().matmul)(env.queue, args)?;
        }
        if let Some(bias) = self.bias
            && let Some(GradSlot { tensor, accumulate }) = env.params.gradient(bias)?
        {
            (env.queue.backend().column_sum)(env.queue, ColumnSumArgs { x: dy, out: &tensor, accumulate })?;
        }
        Ok(())
    }
}

struct LinearOp {
    parts: Vec<Linear>,
    x: Option<Tensor>,
}

impl LinearOp {
    /// Each part with its range of output columns.
    fn columns<'a>(&'a self, env: &'a Env<'_>) -> impl Iterator<Item = (&'a Linear, std::ops::Range<usize>)> {
        self.parts.iter().scan(0, |start, part| {
            let range = *start..*start + part.out_features(env);
            *start = range.end;
            Some((part, range))
        })
    }

    fn out_shape(&self, env: &Env<'_>, x: Shape) -> Result<Shape> {
        for part in &self.parts {
            let (arg, in_features) = ("x", part.in_features(env));
            if x.width() != in_features {
                let rule = format!("its last axis (in_features) must be {in_features}");
                return Err(ShapeError { op: "linear", arg, got: x, rule }.into());
            }
        }
        let out_features = self.parts.iter().map(|part| part.out_features(env)).sum();
        Ok(Shape::from([x.rows(), out_features]))
    }
}

impl Op for LinearOp {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn family(&self) -> Option<Family> {
        Some(Family::Linear)
    }

    fn forward(&mut self, env: &Env<'_>, inputs: &[Tensor]) -> Result<Tensor> {
        let x = &inputs[0];
        let out = env.alloc(self.out_shape(env, x.shape())?)?;
        for (part, columns) in self.columns(env) {
            part.forward(env, x, &out.columns(columns))?;
        }
        self.x = Some(x.clone());
        Ok(out)
    }

    fn backward(self: Box<Self>, env: &Env<'_>, dy: Tensor) -> Result<Vec<Option<Tensor>>> {
        let x = self.x.as_ref().expect("LinearOp::backward: before forward");
        let dx = env.alloc(x.shape())?;
        for (index, (part, columns)) in self.columns(env).enumerate() {
            let dy = dy.columns(columns);
            part.backward_weight(env, x, &dy)?;
            part.backward_input(env, &dy, &dx, index > 0)?;
        }
        Ok(vec![Some(dx)])
    }

    fn kept(&mut self) -> Vec<(Kept, &mut Option<Tensor>)> {
        vec![(Kept::Input(0), &mut self.x)]
    }

    fn cost(&self, env: &Env<'_>, inputs: &[Tensor]) -> Cost {
        let (rows, size) = (inputs[0].shape().rows() as u64, env.dtype.size() as u64);
        self.parts.iter().fold(Cost::default(), |mut cost, part| {
            let (input, output) = (part.in_features(env) as u64, part.out_features(env) as u64);
            cost += Cost {
                flops: 2 * rows * input * output,
                bytes: size * (rows * input + input * output + rows * output),
            };
            cost
        })
    }
}

impl Cx<'_> {
    /// `x W^T + b`, [N, in] to [N, out].
    pub fn linear(&mut self, x: Var, linear: Linear) -> Result<Var> {
        self.linear_concat(x, &[linear])
    }

    /// Several products of one input side by side: [N, in] to [N, sum of out].
    pub fn linear_concat(&mut self, x: Var, parts: &[Linear]) -> Result<Var> {
        let trains = parts.iter().any(|part| part.is_trained(self.env));
        self.apply_with(LinearOp { parts: parts.to_vec(), x: None }, &[x], trains)
    }
}
