//! The gate of SwiGLU: `silu(gate) * up` with `[gate | up]` packed in one row. Source: Shazeer 2020, arXiv:2002.05202.
//!
//! Saved: the packed rows.

use crate::{Cost, Cx, Env, Family, Kept, Op, Result, ShapeError, Var};
use tensor::{SiluMulArgs, SiluMulBackwardArgs, Tensor};

struct SiluMul {
    gate_up: Option<Tensor>,
}

impl Op for SiluMul {
    fn name(&self) -> &'static str {
        "silu_mul"
    }

    fn family(&self) -> Option<Family> {
        Some(Family::Activation)
    }

    fn forward(&mut self, env: &Env<'_>, inputs: &[Tensor]) -> Result<Tensor> {
        let (gate_up, shape) = (&inputs[0], inputs[0].shape());
        if !shape.width().is_multiple_of(2) {
            let rule = "its last axis must be even: gate, then up, of one width".to_owned();
            return Err(ShapeError { op: "silu_mul", arg: "gate_up", got: shape, rule }.into());
        }
        let out = env.alloc([shape.rows(), shape.width() / 2])?;
        (env.queue.backend().silu_mul)(env.queue, SiluMulArgs { gate_up, out: &out })?;
        self.gate_up = Some(gate_up.clone());
        Ok(out)
    }

    fn backward(self: Box<Self>, env: &Env<'_>, dout: Tensor) -> Result<Vec<Option<Tensor>>> {
        let gate_up = self.gate_up.as_ref().expect("SiluMul::backward: before forward");
        let dgate_up = env.alloc(gate_up.shape())?;
        let args = SiluMulBackwardArgs { gate_up, dout: &dout, dgate_up: &dgate_up };
        (env.queue.backend().silu_mul_backward)(env.queue, args)?;
        Ok(vec![Some(dgate_up)])
    }

    fn kept(&mut self) -> Vec<(Kept, &mut Option<Tensor>)> {
        vec![(Kept::Input(0), &mut self.gate_up)]
    }

    fn cost(&self, env: &Env<'_>, inputs: &[Tensor]) -> Cost {
        let elements = inputs[0].shape().elements() as u64;
        Cost { flops: 5 * elements, bytes: 3 * elements / 2 * env.dtype.size() as u64 }
    }
}

impl Cx<'_> {
    /// `silu(gate) * up`: [N, 2F] to [N, F].
    pub fn silu_mul(&mut self, gate_up: Var) -> Result<Var> {
        self.apply(SiluMul { gate_up: None }, &[gate_up])
    }
}
