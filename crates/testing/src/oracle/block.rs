//! One transformer block: `x += attention(norm(x))`, then `x += mlp(norm(x))`, and its backward in the opposite order.
//!
//! Shape legend: T = tokens of the row, D = hidden size, Q = heads * head_dim, F = feed-forward width.
#![allow(non_snake_case, reason = "tensor names end in their shape, see the legend")]

use super::attention::Attention;
use super::config::Family;
use super::linear::Linear;
use super::norm::Norm;
use super::rope::{Tables, rotate, rotate_backward};
use super::{Gradients, Oracle, Row, sum};

/// What a block keeps for its backward.
pub(super) struct Saved {
    x_TD: Vec<f64>,
    normed1_TD: Vec<f64>,
    /// q, k and v after the rotation.
    qkv: [Vec<f64>; 3],
    probs: Vec<f64>,
    mixed_TQ: Vec<f64>,
    middle_TD: Vec<f64>,
    normed2_TD: Vec<f64>,
    /// Input of the activation.
    gate_TF: Vec<f64>,
    /// What the activation is multiplied by; `None` for GPT-2.
    up_TF: Option<Vec<f64>>,
    hidden_TF: Vec<f64>,
}

/// Names of a block's parts under its prefix.
struct Names {
    norm1: String,
    /// One fused matrix, or three.
    qkv: Vec<String>,
    attention_out: String,
    norm2: String,
    gate: String,
    up: Option<String>,
    down: String,
}

impl Names {
    fn of(family: Family, layer: usize) -> Self {
        match family {
            Family::Gpt2 => {
                let name = |part: &str| format!("transformer.h.{layer}.{part}");
                Self {
                    norm1: name("ln_1"),
                    qkv: vec![name("attn.c_attn")],
                    attention_out: name("attn.c_proj"),
                    norm2: name("ln_2"),
                    gate: name("mlp.c_fc"),
                    up: None,
                    down: name("mlp.c_proj"),
                }
            }
            Family::Llama => {
                let name = |part: &str| format!("model.layers.{layer}.{part}");
                Self {
                    norm1: name("input_layernorm"),
                    qkv: vec![name("self_attn.q_proj"), name("self_attn.k_proj"), name("self_attn.v_proj")],
                    attention_out: name("self_attn.o_proj"),
                    norm2: name("post_attention_layernorm"),
                    gate: name("mlp.gate_proj"),
                    up: Some(name("mlp.up_proj")),
                    down: name("mlp.down_proj"),
                }
            }
        }
    }
}

impl Oracle {
    /// `x_TD` through block `layer`.
    pub(super) fn block_forward(
        &self,
        layer: usize,
        x_TD: Vec<f64>,
        row: &Row,
        rope: Option<&Tables>,
    ) -> (Vec<f64>, Saved) {
        let names = Names::of(self.config.family, layer);
        let normed1_TD = self.norm(&names.norm1).forward(&x_TD);
        let mut qkv = self.qkv_forward(&names, &normed1_TD);
        if let Some(tables) = rope {
            rotate(&mut qkv[0], tables, self.config.head_dim);
            rotate(&mut qkv[1], tables, self.config.head_dim);
        }
        let sees = |i, j| row.sees(i, j, self.config.sliding_window);
        let (mixed_TQ, probs) = self.attention(layer).forward(&qkv[0], &qkv[1], &qkv[2], sees);
        let middle_TD = sum(&x_TD, &self.linear(&names.attention_out).forward(&mixed_TQ));

        let normed2_TD = self.norm(&names.norm2).forward(&middle_TD);
        let gate_TF = self.linear(&names.gate).forward(&normed2_TD);
        let up_TF = names.up.as_ref().map(|up| self.linear(up).forward(&normed2_TD));
        let mut hidden_TF: Vec<f64> = gate_TF.iter().map(|&g| self.config.activation.value_and_slope(g).0).collect();
        if let Some(up_TF) = &up_TF {
            hidden_TF.iter_mut().zip(up_TF).for_each(|(hidden, up)| *hidden *= up);
        }
        let y_TD = sum(&middle_TD, &self.linear(&names.down).forward(&hidden_TF));
        let saved = Saved { x_TD, normed1_TD, qkv, probs, mixed_TQ, middle_TD, normed2_TD, gate_TF, up_TF, hidden_TF };
        (y_TD, saved)
    }

    /// The gradient of the block's output to the gradient of its input.
    pub(super) fn block_backward(
        &self,
        layer: usize,
        saved: &Saved,
        dy_TD: &[f64],
        rope: Option<&Tables>,
        gradients: &mut Gradients,
    ) -> Vec<f64> {
        let names = Names::of(self.config.family, layer);
        let d_normed2_TD = self.mlp_backward(&names, saved, dy_TD, gradients);
        let d_branch_TD = self.norm(&names.norm2).backward(&saved.middle_TD, &d_normed2_TD, gradients);
        let d_middle_TD = sum(dy_TD, &d_branch_TD);

        let d_mixed_TQ = self.linear(&names.attention_out).backward(&saved.mixed_TQ, &d_middle_TD, gradients);
        let [q, k, v] = &saved.qkv;
        let mut d_qkv = self.attention(layer).backward(q, k, v, &saved.probs, &d_mixed_TQ);
        if let Some(tables) = rope {
            rotate_backward(&mut d_qkv[0], tables, self.config.head_dim);
            rotate_backward(&mut d_qkv[1], tables, self.config.head_dim);
        }
        let d_normed1_TD = self.qkv_backward(&names, &saved.normed1_TD, &d_qkv, gradients);
        sum(&d_middle_TD, &self.norm(&names.norm1).backward(&saved.x_TD, &d_normed1_TD, gradients))
    }

    fn mlp_backward(&self, names: &Names, saved: &Saved, dy_TD: &[f64], gradients: &mut Gradients) -> Vec<f64> {
        let d_hidden_TF = self.linear(&names.down).backward(&saved.hidden_TF, dy_TD, gradients);
        let mut d_gate_TF = vec![0.0; d_hidden_TF.len()];
        let mut d_up_TF = vec![0.0; d_hidden_TF.len()];
        for n in 0..d_hidden_TF.len() {
            let (value, slope) = self.config.activation.value_and_slope(saved.gate_TF[n]);
            d_gate_TF[n] = d_hidden_TF[n] * slope * saved.up_TF.as_ref().map_or(1.0, |up_TF| up_TF[n]);
            d_up_TF[n] = d_hidden_TF[n] * value;
        }
        let d_normed2_TD = self.linear(&names.gate).backward(&saved.normed2_TD, &d_gate_TF, gradients);
        match &names.up {
            None => d_normed2_TD,
            Some(up) => sum(&d_normed2_TD, &self.linear(up).backward(&saved.normed2_TD, &d_up_TF, gradients)),
        }
    }

    fn qkv_forward(&self, names: &Names, x_TD: &[f64]) -> [Vec<f64>; 3] {
        match names.qkv.as_slice() {
            [fused] => split3(&self.linear(fused).forward(x_TD), self.config.hidden_size),
            [q, k, v] => [q, k, v].map(|name| self.linear(name).forward(x_TD)),
            _ => unreachable!("Names::of gives one name or three"),
        }
    }

    fn qkv_backward(&self, names: &Names, x_TD: &[f64], d: &[Vec<f64>; 3], gradients: &mut Gradients) -> Vec<f64> {
        match names.qkv.as_slice() {
            [fused] => self.linear(fused).backward(x_TD, &join3(d, self.config.hidden_size), gradients),
            [q, k, v] => {
                let [dx_q, dx_k, dx_v] = [(q, &d[0]), (k, &d[1]), (v, &d[2])]
                    .map(|(name, dy)| self.linear(name).backward(x_TD, dy, gradients));
                sum(&sum(&dx_q, &dx_k), &dx_v)
            }
            _ => unreachable!("Names::of gives one name or three"),
        }
    }

    fn attention(&self, layer: usize) -> Attention {
        Attention {
            num_heads: self.config.num_heads,
            num_kv_heads: self.config.num_kv_heads,
            head_dim: self.config.head_dim,
            scale: self.config.attention_scale(layer),
        }
    }

    fn linear<'a>(&'a self, name: &'a str) -> Linear<'a> {
        Linear::new(&self.weights, name, self.config.family == Family::Gpt2)
    }

    pub(super) fn norm<'a>(&'a self, name: &'a str) -> Norm<'a> {
        Norm::new(&self.weights, name, self.config.norm_eps)
    }
}

/// `[T, 3 * width]` to three of `[T, width]`.
fn split3(fused: &[f64], width: usize) -> [Vec<f64>; 3] {
    [0, 1, 2].map(|part| {
        fused.chunks(3 * width).flat_map(|token| token[part * width..(part + 1) * width].iter().copied()).collect()
    })
}

/// The inverse of [`split3`].
fn join3(parts: &[Vec<f64>; 3], width: usize) -> Vec<f64> {
    let num_tokens = parts[0].len() / width;
    let token = |t: usize| parts.iter().flat_map(move |part| part[t * width..(t + 1) * width].iter().copied());
    (0..num_tokens).flat_map(token).collect()
}
