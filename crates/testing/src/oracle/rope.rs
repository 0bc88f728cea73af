//! Rotary positions: the pair (x_j, x_{j + d/2}) of each head is turned by `position * inv_freq_j`.
//!
//! Halves are paired, as Transformers stores q and k; neighbours are paired in Meta's own files.
//! Source: Su et al. 2021, arXiv:2104.09864; the scaled kinds as `modeling_rope_utils.py` of Transformers computes them,
//! here in f64. YaRN: Peng et al. 2023, arXiv:2309.00071, section 3.2 to 3.4.

use std::f64::consts::TAU;

use serde_json::Value;

use super::config::number;

/// The frequencies of one head.
#[derive(Clone, Debug)]
pub struct Rope {
    /// Angle per position, `[head_dim / 2]`, radians.
    pub inv_freq: Vec<f64>,
    /// What cos and sin are multiplied by; 1 except for YaRN.
    pub attention_factor: f64,
}

/// cos and sin of every angle of a row, `[T, head_dim / 2]`.
pub struct Tables {
    /// Multiplied by `attention_factor`.
    pub cos: Vec<f64>,
    /// Multiplied by `attention_factor`.
    pub sin: Vec<f64>,
}

impl Rope {
    /// Reads `rope_parameters` (v5), or `rope_theta` and `rope_scaling` (v4).
    ///
    /// # Panics
    /// If the type is not default, linear, llama3 or yarn, or lacks a number.
    pub(super) fn read(config: &Value, head_dim: usize, max_position_embeddings: usize) -> Self {
        let find = |key: &str| config.get(key).filter(|value| value.is_object());
        let none = Value::Null;
        let scaling = find("rope_parameters").or_else(|| find("rope_scaling")).unwrap_or(&none);
        let theta = number(scaling, "rope_theta").or_else(|| number(config, "rope_theta")).unwrap_or(10000.0);
        for place in [config, scaling] {
            assert_eq!(number(place, "partial_rotary_factor").unwrap_or(1.0), 1.0, "oracle: partial_rotary_factor");
        }
        let needed = |key: &str| number(scaling, key).unwrap_or_else(|| panic!("oracle: rope has no {key}"));
        let original_length =
            number(scaling, "original_max_position_embeddings").unwrap_or(max_position_embeddings as f64);
        let plain: Vec<f64> = (0..head_dim / 2).map(|j| theta.powf(-((2 * j) as f64) / head_dim as f64)).collect();
        let mut attention_factor = 1.0;
        let inv_freq = match scaling["rope_type"].as_str().or(scaling["type"].as_str()).unwrap_or("default") {
            "default" => plain,
            "linear" => plain.iter().map(|f| f / needed("factor")).collect(),
            "llama3" => {
                let (low, high) = (needed("low_freq_factor"), needed("high_freq_factor"));
                plain.iter().map(|&f| llama3(f, needed("factor"), low, high, original_length)).collect()
            }
            "yarn" => {
                attention_factor = yarn_attention_factor(scaling, needed("factor"));
                yarn(&plain, scaling, needed("factor"), theta, original_length)
            }
            other => panic!("oracle: rope_type {other}"),
        };
        Self { inv_freq, attention_factor }
    }

    /// The angles of a row of tokens at these positions.
    pub fn tables(&self, positions: &[usize]) -> Tables {
        let angles = || positions.iter().flat_map(|&p| self.inv_freq.iter().map(move |f| p as f64 * f));
        Tables {
            cos: angles().map(|a| a.cos() * self.attention_factor).collect(),
            sin: angles().map(|a| a.sin() * self.attention_factor).collect(),
        }
    }
}

/// Wavelengths that the original length holds `high` times or more stay, those it holds less than `low` times are
/// stretched by `factor`, between the two it blends.
fn llama3(inv_freq: f64, factor: f64, low: f64, high: f64, original_length: f64) -> f64 {
    let turns = original_length * inv_freq / TAU;
    let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
    (1.0 - keep) * inv_freq / factor + keep * inv_freq
}

/// Dimensions that turn more than `beta_fast` times within the original length stay, those that turn less than
/// `beta_slow` times are stretched by `factor`, between the two a ramp over the dimension's index.
fn yarn(plain: &[f64], scaling: &Value, factor: f64, theta: f64, original_length: f64) -> Vec<f64> {
    let head_dim = (2 * plain.len()) as f64;
    let dim_that_turns = |times: f64| head_dim * (original_length / (times * TAU)).ln() / (2.0 * theta.ln());
    let or = |key: &str, default: f64| number(scaling, key).filter(|&value| value != 0.0).unwrap_or(default);
    let mut first = dim_that_turns(or("beta_fast", 32.0));
    let mut last = dim_that_turns(or("beta_slow", 1.0));
    if scaling["truncate"].as_bool().unwrap_or(true) {
        (first, last) = (first.floor(), last.ceil());
    }
    (first, last) = (first.max(0.0), last.min(head_dim - 1.0));
    if first == last {
        last += 0.001;
    }
    let stretch = |j: usize| ((j as f64 - first) / (last - first)).clamp(0.0, 1.0);
    plain.iter().enumerate().map(|(j, f)| stretch(j) * f / factor + (1.0 - stretch(j)) * f).collect()
}

fn yarn_attention_factor(scaling: &Value, factor: f64) -> f64 {
    let scale = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    let set = |key: &str| number(scaling, key).filter(|&value| value != 0.0);
    match (number(scaling, "attention_factor"), set("mscale"), set("mscale_all_dim")) {
        (Some(given), _, _) => given,
        (None, Some(mscale), Some(all_dim)) => scale(mscale) / scale(all_dim),
        _ => scale(1.0),
    }
}

/// Turns every head of `x` `[T, heads * head_dim]` in place.
pub(super) fn rotate(x: &mut [f64], tables: &Tables, head_dim: usize) {
    turn(x, tables, head_dim, 1.0);
}

/// The backward of [`rotate`]: its transpose, the turn by the opposite angle.
pub(super) fn rotate_backward(dx: &mut [f64], tables: &Tables, head_dim: usize) {
    turn(dx, tables, head_dim, -1.0);
}

fn turn(x: &mut [f64], tables: &Tables, head_dim: usize, direction: f64) {
    let half = head_dim / 2;
    let num_tokens = tables.cos.len() / half;
    let width = x.len() / num_tokens;
    for (t, token) in x.chunks_mut(width).enumerate() {
        for head in token.chunks_mut(head_dim) {
            for j in 0..half {
                let (cos, sin) = (tables.cos[t * half + j], direction * tables.sin[t * half + j]);
                let (a, b) = (head[j], head[j + half]);
                head[j] = a * cos - b * sin;
                head[j + half] = b * cos + a * sin;
            }
        }
    }
}
