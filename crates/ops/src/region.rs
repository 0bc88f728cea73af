//! Regions: where a tensor crosses into or out of the part of a layer that ranks share.
//!
//! Model code names the crossing and nothing else; what happens there is the implementor's business. On one rank every
//! crossing is the identity ([`Single`]). Collectives appear in implementors of this trait and nowhere else.
//!
//! | region | forward | backward | split |
//! | --- | --- | --- | --- |
//! | `enter` | x is the same on all ranks | sum of the ranks' gradients | what follows |
//! | `leave` | sum of the ranks' terms | the gradient is the same on all ranks | what came before |
//!
//! With sequence parallelism `enter` gathers tokens and `leave` scatters them. `lookup` is a `leave` after a vocabulary
//! split embedding; `loss` reduces a vocabulary split head; `attention` exchanges heads or keys; `dispatch` and
//! `combine` carry tokens to experts and back. Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3 (f and g).

use crate::cx::Cx;
use crate::{Cost, Env, Op, Result, Var};
use tensor::Tensor;

/// Which share of an axis this rank holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Counted from 0.
    pub index: usize,
    /// Shares in all.
    pub count: usize,
}

impl Part {
    /// All of it.
    pub const WHOLE: Part = Part { index: 0, count: 1 };
}

/// What happens at the crossings. Each forward has its backward; the default is one rank: the identity.
pub trait Regions {
    /// The share of a named axis (`heads`, `kv_heads`, `mlp`, `vocab`, `experts`) that this rank holds.
    fn part(&self, _axis: &str) -> Part {
        Part::WHOLE
    }
    /// Into a split part: `x` is the same on all ranks.
    fn enter(&self, _env: &Env<'_>, x: Tensor) -> Result<Tensor> {
        Ok(x)
    }
    /// Gradient of `enter`: each rank has its term.
    fn enter_backward(&self, _env: &Env<'_>, dx: Tensor) -> Result<Tensor> {
        Ok(dx)
    }
    /// Out of a split part: `y` is this rank's term of a sum.
    fn leave(&self, _env: &Env<'_>, y: Tensor) -> Result<Tensor> {
        Ok(y)
    }
    /// Gradient of `leave`: the same on all ranks.
    fn leave_backward(&self, _env: &Env<'_>, dy: Tensor) -> Result<Tensor> {
        Ok(dy)
    }
    /// After an embedding of this rank's share of the vocabulary.
    fn lookup(&self, _env: &Env<'_>, y: Tensor) -> Result<Tensor> {
        Ok(y)
    }
    /// Gradient of `lookup`.
    fn lookup_backward(&self, _env: &Env<'_>, dy: Tensor) -> Result<Tensor> {
        Ok(dy)
    }
    /// Before the head: the hidden states, the same on all ranks.
    fn loss(&self, _env: &Env<'_>, x: Tensor) -> Result<Tensor> {
        Ok(x)
    }
    /// Gradient of `loss`.
    fn loss_backward(&self, _env: &Env<'_>, dx: Tensor) -> Result<Tensor> {
        Ok(dx)
    }
    /// Before attention: packed [q | k | v] rows, from this rank's tokens to this rank's heads.
    fn attention(&self, _env: &Env<'_>, qkv: Tensor) -> Result<Tensor> {
        Ok(qkv)
    }
    /// Gradient of `attention`.
    fn attention_backward(&self, _env: &Env<'_>, dqkv: Tensor) -> Result<Tensor> {
        Ok(dqkv)
    }
    /// Tokens to the ranks of their experts.
    fn dispatch(&self, _env: &Env<'_>, x: Tensor) -> Result<Tensor> {
        Ok(x)
    }
    /// Gradient of `dispatch`.
    fn dispatch_backward(&self, _env: &Env<'_>, dx: Tensor) -> Result<Tensor> {
        Ok(dx)
    }
    /// Tokens back from their experts.
    fn combine(&self, _env: &Env<'_>, y: Tensor) -> Result<Tensor> {
        Ok(y)
    }
    /// Gradient of `combine`.
    fn combine_backward(&self, _env: &Env<'_>, dy: Tensor) -> Result<Tensor> {
        Ok(dy)
    }
}

/// One rank: every region is the identity.
pub struct Single;

impl Regions for Single {}

macro_rules! region_ops {
    ($($region:ident, $backward:ident, $op:ident;)*) => {
        $(
            struct $op;
            impl Op for $op {
                fn name(&self) -> &'static str {
                    stringify!($region)
                }
                fn forward(&mut self, env: &Env<'_>, inputs: &[Tensor]) -> Result<Tensor> {
                    env.regions.$region(env, inputs[0].clone())
                }
                fn backward(self: Box<Self>, env: &Env<'_>, grad: Tensor) -> Result<Vec<Option<Tensor>>> {
                    Ok(vec![Some(env.regions.$backward(env, grad)?)])
                }
                fn is_cheap(&self) -> bool {
                    true
                }
                fn cost(&self, _: &Env<'_>, _: &[Tensor]) -> Cost {
                    Cost::default()
                }
            }
        )*

        impl Cx<'_> {
            $(
                /// The region of this name: see [`Regions`].
                pub fn $region(&mut self, x: Var) -> Result<Var> {
                    self.apply($op, &[x])
                }
            )*
        }
    };
}

region_ops! {
    enter, enter_backward, Enter;
    leave, leave_backward, Leave;
    lookup, lookup_backward, Lookup;
    loss, loss_backward, LossRegion;
    attention, attention_backward, AttentionRegion;
    dispatch, dispatch_backward, Dispatch;
    combine, combine_backward, Combine;
}
