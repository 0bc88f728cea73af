//! Causal attention with grouped queries over one row, the whole T x T matrix in memory.
//!
//! `p_ij = softmax_j(scale * q_i . k_j)` over the j that i sees, `out_i = sum_j p_ij v_j`; query head h reads key and
//! value head `h / (heads / kv_heads)`. Backward: `dp_ij = dout_i . v_j`, `ds_ij = p_ij (dp_ij - sum_j p_ij dp_ij)`.
//! Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1; Ainslie et al. 2023, arXiv:2305.13245.

/// The shape of attention in one layer.
pub(super) struct Attention {
    pub(super) num_heads: usize,
    pub(super) num_kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) scale: f64,
}

impl Attention {
    /// `q` `[T, heads * head_dim]`, `k` and `v` `[T, kv_heads * head_dim]` to the output, shaped as `q`, and the
    /// probabilities `[heads, T, T]`. `sees(i, j)`: whether token i attends to token j; each sees at least itself.
    pub(super) fn forward(
        &self,
        q: &[f64],
        k: &[f64],
        v: &[f64],
        sees: impl Fn(usize, usize) -> bool,
    ) -> (Vec<f64>, Vec<f64>) {
        let num_tokens = q.len() / (self.num_heads * self.head_dim);
        let mut out = vec![0.0; q.len()];
        let mut probs = vec![0.0; self.num_heads * num_tokens * num_tokens];
        for h in 0..self.num_heads {
            for i in 0..num_tokens {
                let p = &mut probs[(h * num_tokens + i) * num_tokens..][..num_tokens];
                for j in 0..num_tokens {
                    let score = self.scale * dot(&q[self.query(i, h)], &k[self.key(j, h)]);
                    p[j] = if sees(i, j) { score } else { f64::NEG_INFINITY };
                }
                let largest = p.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = p.iter().map(|score| (score - largest).exp()).sum();
                p.iter_mut().for_each(|score| *score = (*score - largest).exp() / sum);
                for j in 0..num_tokens {
                    add_scaled(&mut out[self.query(i, h)], p[j], &v[self.key(j, h)]);
                }
            }
        }
        (out, probs)
    }

    /// The gradient of the output to `[dq, dk, dv]`.
    pub(super) fn backward(&self, q: &[f64], k: &[f64], v: &[f64], probs: &[f64], d_out: &[f64]) -> [Vec<f64>; 3] {
        let num_tokens = q.len() / (self.num_heads * self.head_dim);
        let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
        for h in 0..self.num_heads {
            for i in 0..num_tokens {
                let p = &probs[(h * num_tokens + i) * num_tokens..][..num_tokens];
                let d_out_i = &d_out[self.query(i, h)];
                let dp: Vec<f64> = (0..num_tokens).map(|j| dot(d_out_i, &v[self.key(j, h)])).collect();
                let mean_dp = dot(p, &dp);
                for j in 0..num_tokens {
                    let d_score = self.scale * p[j] * (dp[j] - mean_dp);
                    add_scaled(&mut dq[self.query(i, h)], d_score, &k[self.key(j, h)]);
                    add_scaled(&mut dk[self.key(j, h)], d_score, &q[self.query(i, h)]);
                    add_scaled(&mut dv[self.key(j, h)], p[j], d_out_i);
                }
            }
        }
        [dq, dk, dv]
    }

    /// Where query head `h` of token `t` lies.
    fn query(&self, t: usize, h: usize) -> std::ops::Range<usize> {
        let start = (t * self.num_heads + h) * self.head_dim;
        start..start + self.head_dim
    }

    /// Where the key and value head that query head `h` reads lies for token `t`.
    fn key(&self, t: usize, h: usize) -> std::ops::Range<usize> {
        let kv_head = h / (self.num_heads / self.num_kv_heads);
        let start = (t * self.num_kv_heads + kv_head) * self.head_dim;
        start..start + self.head_dim
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add_scaled(to: &mut [f64], scale: f64, from: &[f64]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += scale * from);
}
