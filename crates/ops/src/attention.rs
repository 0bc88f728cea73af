//! Causal self-attention over packed [q | k | v] rows: tiled, so that no tokens x tokens matrix is ever in memory.
//! Source: Dao et al. 2022, arXiv:2205.14135, and Dao 2023, arXiv:2307.08691.
//!
//! Tokens see each other only within their document. With a cache (generation) new keys and values join those of earlier
//! tokens. Saved: the packed rows, the output, one log-sum-exp a token and head.

use crate::cx::DropoutSite;
use crate::{Cost, Cx, Env, Family, Kept, Op, OpError, Result, ShapeError, Var};
use std::sync::Arc;
use tensor::{AttentionArgs, AttentionBackwardArgs, AttentionDropout, AttentionSpec, Segment, Tensor};

/// Heads of one attention layer on this rank, and what it does to scores.
#[derive(Clone, Copy, Debug)]
pub struct AttentionLayout {
    /// Query heads.
    pub num_heads: usize,
    /// Key-value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Scores are multiplied by this: usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Keys a query sees at most, itself included; `None`: all before it.
    pub window: Option<usize>,
    /// `c tanh(s / c)` on scores.
    pub softcap: Option<f32>,
    /// Chance that a probability is dropped.
    pub dropout: f32,
}

impl AttentionLayout {
    /// Width of a packed row, [q | k | v].
    pub fn packed_width(&self) -> usize {
        (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
    }
}

struct Attention {
    layout: AttentionLayout,
    dropout: DropoutSite,
    block: usize,
    qkv: Option<Tensor>,
    out: Option<Tensor>,
    log_sum_exp: Option<Tensor>,
}

impl Attention {
    fn spec(&self, env: &Env<'_>) -> AttentionSpec {
        let layout = self.layout;
        let first_head = (env.regions.part("heads").index * layout.num_heads) as u32;
        AttentionSpec {
            num_heads: layout.num_heads,
            num_kv_heads: layout.num_kv_heads,
            head_dim: layout.head_dim,
            scale: layout.scale,
            window: layout.window,
            softcap: layout.softcap,
            dropout: env.dropout_args(self.dropout).map(|dropout| AttentionDropout {
                probability: dropout.probability,
                key: dropout.key,
                first_head,
            }),
            causal: true,
        }
    }

    /// Keys, values and segments: the batch's own, or those of the cache with the new ones appended.
    fn keys(&self, env: &Env<'_>, k: Tensor, v: Tensor) -> Result<(Tensor, Tensor, Arc<[Segment]>)> {
        let Some(cache) = env.cache else { return Ok((k, v, Arc::clone(&env.batch.segments))) };
        assert!(env.batch.segments.len() == 1, "Attention: a cache holds one sequence");
        let mut segment = env.batch.segments[0];
        let (k, v) = cache.append(env, self.block, &k, &v)?;
        (segment.k_start, segment.k_len, segment.k_position) = (0, k.shape().rows(), 0);
        Ok((k, v, Arc::from([segment])))
    }
}

impl Op for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn family(&self) -> Option<Family> {
        Some(Family::Attention)
    }

    fn forward(&mut self, env: &Env<'_>, inputs: &[Tensor]) -> Result<Tensor> {
        let (qkv, layout) = (&inputs[0], self.layout);
        let (shape, packed) = (qkv.shape(), layout.packed_width());
        if shape.width() != packed {
            let rule = format!("its last axis must be {packed}: [q | k | v] heads of {}", layout.head_dim);
            return Err(ShapeError { op: "attention", arg: "qkv", got: shape, rule }.into());
        }
        let q_width = layout.num_heads * layout.head_dim;
        let kv_width = layout.num_kv_heads * layout.head_dim;
        let q = qkv.columns(0..q_width);
        let k = qkv.columns(q_width..q_width + kv_width);
        let v = qkv.columns(q_width + kv_width..packed);
        let (k, v, segments) = self.keys(env, k, v)?;
        let out = env.alloc([shape.rows(), q_width])?;
        let log_sum_exp = env.alloc_f32([layout.num_heads, shape.rows()])?;
        let spec = self.spec(env);
        let args = AttentionArgs { spec, segments, q: &q, k: &k, v: &v, out: &out, log_sum_exp: &log_sum_exp };
        (env.queue.backend().attention)(env.queue, args)?;
        (self.qkv, self.out, self.log_sum_exp) = (Some(qkv.clone()), Some(out.clone()), Some(log_sum_exp));
        Ok(out)
    }

    fn backward(self: Box<Self>, env: &Env<'_>, dout: Tensor) -> Result<Vec<Option<Tensor>>> {
        if env.cache.is_some() {
            return Err(OpError::TooLong("attention: there is no backward through a cache".to_owned()));
        }
        let [qkv, out, log_sum_exp] = [&self.qkv, &self.out, &self.log_sum_exp]
            .map(|saved| saved.as_ref().expect("Attention::backward: before forward"));
        let dqkv = env.alloc(qkv.shape())?;
        let args = AttentionBackwardArgs {
            spec: self.spec(env),
            segments: Arc::clone(&env.batch.segments),
            qkv,
            out,
            log_sum_exp,
            dout: &dout,
            dqkv: &dqkv,
        };
        (env.queue.backend().attention_backward)(env.queue, args)?;
        Ok(vec![Some(dqkv)])
    }

    fn kept(&mut self) -> Vec<(Kept, &mut Option<Tensor>)> {
        vec![(Kept::Input(0), &mut self.qkv), (Kept::Output, &mut self.out)]
    }

    fn cost(&self, env: &Env<'_>, inputs: &[Tensor]) -> Cost {
        let width = (self.layout.num_heads * self.layout.head_dim) as u64;
        let pairs: u64 = env.batch.segments.iter().map(|s| visible_pairs(s, self.layout.window)).sum();
        let bytes =
            (inputs[0].shape().elements() as u64 + inputs[0].shape().rows() as u64 * width) * env.dtype.size() as u64;
        Cost { flops: 4 * pairs * width, bytes }
    }
}

/// Query-key pairs of a segment that causality and the window let through.
fn visible_pairs(segment: &Segment, window: Option<usize>) -> u64 {
    let window = window.unwrap_or(usize::MAX);
    (0..segment.q_len).map(|i| (segment.q_position + i + 1).min(window) as u64).sum()
}

impl Cx<'_> {
    /// Self-attention of packed rows [N, (H + 2K) hd] to [N, H hd].
    pub fn self_attention(&mut self, qkv: Var, layout: AttentionLayout) -> Result<Var> {
        let dropout = self.dropout_site(layout.dropout);
        let block = self.block();
        let qkv = self.attention(qkv)?;
        let op = Attention { layout, dropout, block, qkv: None, out: None, log_sum_exp: None };
        self.apply(op, &[qkv])
    }
}
