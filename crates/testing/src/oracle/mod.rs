//! The oracle: a transformer in plain f64 loops with its backward written by hand, that everything else is held against.
//!
//! It shares no code with the engine: weights and gradients are `Vec<f64>` under their Hugging Face names and in their
//! Hugging Face orientation, every row of a batch is computed alone, nothing is fused, tiled or parallel. It is itself
//! held against PyTorch (the fixtures) and against its own finite differences (`tests.rs`).
//!
//! Order of events in [`Oracle::loss_and_gradients`]: count the targets of all rows; for each row embed, blocks, final
//! norm, head, cross-entropy; then the same backwards, adding to one set of gradients.
//!
//! There is no dropout. Sizes are meant to be tiny.

mod activation;
mod adamw;
mod attention;
mod block;
mod config;
mod linear;
mod norm;
mod rope;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde_json::Value;

pub use activation::erf;
pub use adamw::{AdamW, AdamWState};
pub use config::{Activation, Config, Family};
pub use rope::{Rope, Tables};

/// Tensors by their Hugging Face name: shape, and elements in row-major order.
pub type Tensors<T> = BTreeMap<String, (Vec<usize>, Vec<T>)>;

/// Gradients by the name of their weight, each in its weight's order.
pub type Gradients = BTreeMap<String, Vec<f64>>;

/// A label that is no target.
pub const IGNORE: i64 = -100;

/// One row of a batch.
#[derive(Clone, Debug)]
pub struct Row {
    /// Tokens `[T]`.
    pub ids: Vec<u32>,
    /// `labels[t]` is held against the prediction at `t - 1`, so `labels[0]` is never a target; [`IGNORE`] does not count.
    pub labels: Vec<i64>,
    /// Position of each token `[T]`.
    pub positions: Vec<usize>,
    /// The document of each token `[T]`; tokens see only their own.
    pub documents: Vec<usize>,
}

impl Row {
    /// A row of one document.
    ///
    /// # Panics
    /// If ids and labels differ in length.
    pub fn new(ids: Vec<u32>, labels: Vec<i64>) -> Self {
        assert_eq!(ids.len(), labels.len(), "Row::new: ids and labels");
        let num_tokens = ids.len();
        Self { ids, labels, positions: (0..num_tokens).collect(), documents: vec![0; num_tokens] }
    }

    /// The same row cut into documents of these lengths: positions restart in each, and its first token is no target.
    ///
    /// # Panics
    /// If the lengths do not add up to the row.
    #[must_use]
    pub fn with_documents(mut self, lengths: &[usize]) -> Self {
        assert_eq!(lengths.iter().sum::<usize>(), self.ids.len(), "Row::with_documents: lengths {lengths:?}");
        let mut t = 0;
        for (document, &length) in lengths.iter().enumerate() {
            for position in 0..length {
                self.positions[t] = position;
                self.documents[t] = document;
                if position == 0 {
                    self.labels[t] = IGNORE;
                }
                t += 1;
            }
        }
        self
    }

    /// Whether token `i` attends to token `j`.
    fn sees(&self, i: usize, j: usize, sliding_window: Option<usize>) -> bool {
        j <= i && self.documents[i] == self.documents[j] && sliding_window.is_none_or(|window| i - j < window)
    }

    /// The target of each prediction `[T]`: the label of the next token, if it counts.
    fn targets(&self) -> Vec<Option<usize>> {
        let next = self.labels.iter().skip(1).chain([&IGNORE]);
        next.map(|&label| if label == IGNORE { None } else { Some(label as usize) }).collect()
    }
}

/// What a batch gives.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Mean cross-entropy over the targets of all rows, in nats.
    pub loss: f64,
    /// How many targets that is.
    pub num_targets: usize,
    /// `[T, V]` for each row.
    pub logits: Vec<Vec<f64>>,
    /// Gradient of `loss` by every weight.
    pub gradients: Gradients,
}

/// A model and its weights.
#[derive(Clone, Debug)]
pub struct Oracle {
    /// The numbers of the model.
    pub config: Config,
    /// Its weights; names and shapes are those of [`Config::parameter_shapes`].
    pub weights: Tensors<f64>,
}

/// A row on its way through the model.
struct Forward {
    blocks: Vec<block::Saved>,
    rope: Option<Tables>,
    last: Vec<f64>,
    normed: Vec<f64>,
    logits: Vec<f64>,
}

impl Oracle {
    /// A model from its `config.json` and weights under the names Transformers gives them (`transformer.` included).
    ///
    /// # Panics
    /// If the config asks for what the oracle does not compute, or names or shapes are not those of the model.
    pub fn new(config: &Value, weights: &Tensors<f32>) -> Self {
        let config = Config::read(config);
        let shapes: BTreeMap<_, _> = weights.iter().map(|(name, (shape, _))| (name.clone(), shape.clone())).collect();
        assert_eq!(shapes, config.parameter_shapes(), "Oracle::new: shapes given (left) and of the model (right)");
        let widen = |(name, (shape, data)): (&String, &(Vec<usize>, Vec<f32>))| {
            (name.clone(), (shape.clone(), data.iter().map(|&w| f64::from(w)).collect()))
        };
        Self { weights: weights.iter().map(widen).collect(), config }
    }

    /// A model of random weights that f32 holds exactly: norm weights around 1, biases around 0, both with a deviation
    /// of 0.1; matrices with 0.08. The same for the same config and seed.
    pub fn random(config: &Value, seed: u64) -> Self {
        let config = Config::read(config);
        let mut state = seed;
        let mut tensors = Tensors::new();
        for (name, shape) in config.parameter_shapes() {
            let (mean, deviation) = match (shape.len(), name.ends_with(".bias")) {
                (1, false) => (1.0, 0.1),
                (1, true) => (0.0, 0.1),
                _ => (0.0, 0.08),
            };
            let draw = |_| f64::from((mean + deviation * standard_normal(&mut state)) as f32);
            tensors.insert(name, (shape.clone(), (0..shape.iter().product()).map(draw).collect()));
        }
        Self { config, weights: tensors }
    }

    /// The weights in f32, for the engine under test.
    pub fn weights_f32(&self) -> Tensors<f32> {
        let narrow = |(name, (shape, data)): (&String, &(Vec<usize>, Vec<f64>))| {
            (name.clone(), (shape.clone(), data.iter().map(|&w| w as f32).collect()))
        };
        self.weights.iter().map(narrow).collect()
    }

    /// The logits of a row, `[T, V]`.
    pub fn logits(&self, row: &Row) -> Vec<f64> {
        self.forward(row).logits
    }

    /// The mean cross-entropy over the targets of all rows; 0 without targets.
    pub fn loss(&self, rows: &[Row]) -> f64 {
        let num_targets = count_targets(rows);
        let mut d_logits = Vec::new();
        rows.iter().map(|row| self.cross_entropy(row, &self.logits(row), num_targets, &mut d_logits)).sum()
    }

    /// Forward and backward of a batch.
    pub fn loss_and_gradients(&self, rows: &[Row]) -> Outcome {
        let num_targets = count_targets(rows);
        let gradients = self.weights.iter().map(|(name, (_, data))| (name.clone(), vec![0.0; data.len()])).collect();
        let mut outcome = Outcome { loss: 0.0, num_targets, logits: Vec::new(), gradients };
        for row in rows {
            let forward = self.forward(row);
            let mut d_logits = Vec::new();
            outcome.loss += self.cross_entropy(row, &forward.logits, num_targets, &mut d_logits);
            self.backward(row, &forward, &d_logits, &mut outcome.gradients);
            outcome.logits.push(forward.logits);
        }
        outcome
    }

    fn forward(&self, row: &Row) -> Forward {
        let rope = self.config.rope.as_ref().map(|rope| rope.tables(&row.positions));
        let mut x = self.embed(row);
        let mut blocks = Vec::new();
        for layer in 0..self.config.num_layers {
            let (y, saved) = self.block_forward(layer, x, row, rope.as_ref());
            blocks.push(saved);
            x = y;
        }
        let normed = self.norm(self.final_norm()).forward(&x);
        let logits = self.head().forward(&normed);
        Forward { blocks, rope, last: x, normed, logits }
    }

    fn backward(&self, row: &Row, forward: &Forward, d_logits: &[f64], gradients: &mut Gradients) {
        let d_normed = self.head().backward(&forward.normed, d_logits, gradients);
        let mut dx = self.norm(self.final_norm()).backward(&forward.last, &d_normed, gradients);
        for (layer, saved) in forward.blocks.iter().enumerate().rev() {
            dx = self.block_backward(layer, saved, &dx, forward.rope.as_ref(), gradients);
        }
        self.embed_backward(row, &dx, gradients);
    }

    /// The row of each token's id, plus that of its position where positions are learned.
    fn embed(&self, row: &Row) -> Vec<f64> {
        let size = self.config.hidden_size;
        let row_of = |table: &str, index: usize| &self.weights[table].1[index * size..(index + 1) * size];
        let mut x = Vec::with_capacity(row.ids.len() * size);
        for (&id, &position) in row.ids.iter().zip(&row.positions) {
            let token = row_of(self.token_table(), id as usize);
            match self.config.family {
                Family::Gpt2 => x.extend(sum(token, row_of("transformer.wpe.weight", position))),
                Family::Llama => x.extend_from_slice(token),
            }
        }
        x
    }

    fn embed_backward(&self, row: &Row, dx: &[f64], gradients: &mut Gradients) {
        let size = self.config.hidden_size;
        for (t, dx) in dx.chunks(size).enumerate() {
            let mut places = vec![(self.token_table(), row.ids[t] as usize)];
            if self.config.family == Family::Gpt2 {
                places.push(("transformer.wpe.weight", row.positions[t]));
            }
            for (table, index) in places {
                let gradient = gradients.get_mut(table).expect("a gradient for every weight");
                for d in 0..size {
                    gradient[index * size + d] += dx[d];
                }
            }
        }
    }

    /// The row's part of the mean loss, and in `d_logits` `[T, V]` its gradient: `(softmax - one_hot) / num_targets`.
    fn cross_entropy(&self, row: &Row, logits: &[f64], num_targets: usize, d_logits: &mut Vec<f64>) -> f64 {
        let mut loss = 0.0;
        *d_logits = vec![0.0; logits.len()];
        let tokens = logits.chunks(self.config.vocab_size).zip(d_logits.chunks_mut(self.config.vocab_size));
        for ((logits, d_logits), target) in tokens.zip(row.targets()) {
            let Some(target) = target else { continue };
            let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let log_sum = largest + logits.iter().map(|l| (l - largest).exp()).sum::<f64>().ln();
            loss += (log_sum - logits[target]) / num_targets as f64;
            for (v, d) in d_logits.iter_mut().enumerate() {
                let one_hot = if v == target { 1.0 } else { 0.0 };
                *d = ((logits[v] - log_sum).exp() - one_hot) / num_targets as f64;
            }
        }
        loss
    }

    /// The product with the vocabulary: its own matrix, or the token table again.
    fn head(&self) -> linear::Linear<'_> {
        let table = self.token_table().strip_suffix(".weight").expect("a weight's name");
        linear::Linear::new(&self.weights, if self.config.tie_word_embeddings { table } else { "lm_head" }, false)
    }

    fn token_table(&self) -> &'static str {
        match self.config.family {
            Family::Gpt2 => "transformer.wte.weight",
            Family::Llama => "model.embed_tokens.weight",
        }
    }

    fn final_norm(&self) -> &'static str {
        match self.config.family {
            Family::Gpt2 => "transformer.ln_f",
            Family::Llama => "model.norm",
        }
    }
}

fn count_targets(rows: &[Row]) -> usize {
    rows.iter().map(|row| row.targets().iter().flatten().count()).sum()
}

/// `a + b`, element by element.
fn sum(a: &[f64], b: &[f64]) -> Vec<f64> {
    assert_eq!(a.len(), b.len(), "oracle sum");
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// Adds to the gradient called `name`.
fn add(gradients: &mut Gradients, name: &str, part: &[f64]) {
    let gradient = gradients.get_mut(name).expect("a gradient for every weight");
    gradient.iter_mut().zip(part).for_each(|(gradient, part)| *gradient += part);
}

/// A draw from N(0, 1): SplitMix64 (Steele et al. 2014) through Box and Muller's formula.
fn standard_normal(state: &mut u64) -> f64 {
    let mut uniform = || {
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    };
    let radius = (-2.0 * (1.0 - uniform()).ln()).sqrt();
    radius * (std::f64::consts::TAU * uniform()).cos()
}
