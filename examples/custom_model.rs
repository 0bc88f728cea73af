//! A model of your own: blocks in a list, trained by the engine.
//!
//!     cargo run --release --example custom_model
//!
//! The block here is GPT-J's and Phi's parallel one, `x + attention(norm x) + mlp(norm x)`, which no built-in family has.

use bessemer::models::layers::{Activation, Embedding, LmHead, Mlp, Norm, SelfAttention};
use bessemer::models::param::{EMBED, HEADS, MLP, POSITIONS, VOCAB};
use bessemer::models::{Block, Dim, Init, LinearSpec, Model, ModelBuilder};
use bessemer::ops::{AttentionLayout, Cx, Flow, Linear, Result, WeightLayout};
use bessemer::tensor::Gelu;
use bessemer::{RunConfig, Silent, TrainError, TrainingData, initialize};
use serde_json::json;
use std::path::Path;

const HIDDEN_SIZE: usize = 64;
const NUM_HEADS: usize = 4;
const NUM_LAYERS: usize = 2;
const POSITIONS_IN_A_ROW: usize = 64;

/// Attention and feed-forward side by side, after one norm.
struct Parallel {
    norm: Norm,
    attention: SelfAttention,
    mlp: Mlp,
}

impl Block for Parallel {
    fn forward(&self, cx: &mut Cx<'_>, flow: Flow) -> Result<Flow> {
        let x = flow.expect_hidden("Parallel");
        let normed = self.norm.forward(cx, x)?;
        let attended = self.attention.forward(cx, normed)?;
        let fed = self.mlp.forward(cx, normed)?;
        let x = cx.residual(x, attended, None, 0.0)?;
        let x = cx.residual(x, fed, None, 0.0)?;
        Ok(Flow { hidden: Some(x), ..flow })
    }
}

/// Declares the parameters, by name and named axes, and puts the blocks in order.
fn model(vocab_size: usize) -> Model {
    let mut builder = ModelBuilder::default();
    let normal = Init::Normal { std: 0.02 };
    let (embed, vocab) = (Dim::new(EMBED, HIDDEN_SIZE), Dim::new(VOCAB, vocab_size));
    let tokens = builder.param("embed.weight", [vocab, embed.clone()], normal.clone());
    let positions = [Dim::new(POSITIONS, POSITIONS_IN_A_ROW), embed];
    let positions = builder.param("positions.weight", positions, normal);
    builder.block("embed", Embedding { tokens, positions: Some(positions), dropout: 0.0 });
    for layer in 0..NUM_LAYERS {
        let block = parallel(&mut builder, &format!("layers.{layer}"));
        builder.block(format!("layers.{layer}"), block);
    }
    let norm = rms_norm(&mut builder, "norm.weight");
    let weight = builder.share(tokens);
    builder.block("head", LmHead { norm, linear: Linear { weight, bias: None, layout: WeightLayout::OutIn } });
    builder.build(vocab_size, Some(POSITIONS_IN_A_ROW), None)
}

fn rms_norm(builder: &mut ModelBuilder, name: &str) -> Norm {
    let weight = builder.param(name, [Dim::new(EMBED, HIDDEN_SIZE)], Init::Constant(1.0));
    Norm::Rms { weight, weight_offset: 0.0, eps: 1e-6 }
}

fn parallel(builder: &mut ModelBuilder, name: &str) -> Parallel {
    let head_dim = HIDDEN_SIZE / NUM_HEADS;
    let spec = LinearSpec { layout: WeightLayout::OutIn, bias: false, std: 0.02 };
    let embed = || Dim::new(EMBED, HIDDEN_SIZE);
    let heads = |parts: usize| Dim::heads(&vec![(HEADS, NUM_HEADS); parts], head_dim);
    let width = || Dim::new(MLP, 4 * HIDDEN_SIZE);
    Parallel {
        norm: rms_norm(builder, &format!("{name}.norm.weight")),
        attention: SelfAttention {
            qkv: vec![builder.linear(&format!("{name}.qkv"), embed(), heads(3), spec)],
            out: builder.linear(&format!("{name}.out"), heads(1), embed(), spec),
            layout: AttentionLayout {
                num_heads: NUM_HEADS,
                num_kv_heads: NUM_HEADS,
                head_dim,
                scale: (head_dim as f32).sqrt().recip(),
                window: None,
                softcap: None,
                dropout: 0.0,
            },
            rope: None,
        },
        mlp: Mlp {
            up: vec![builder.linear(&format!("{name}.up"), embed(), width(), spec)],
            activation: Activation::Gelu(Gelu::Tanh),
            down: builder.linear(&format!("{name}.down"), width(), embed(), spec),
        },
    }
}

/// Trains on a text file; returns the number of steps done and the loss over the validation data.
pub(crate) fn train(text: &Path, output: &Path, steps: u64) -> std::result::Result<(u64, f64), TrainError> {
    let config = json!({
        "model": { "config": { "model_type": "custom" } },
        "data": { "train": text, "validation": { "split": 0.1 }, "tokenizer": "char", "sequence_length": POSITIONS_IN_A_ROW },
        "run": { "output": output, "steps": steps },
        "train_batch_size": 16,
        "optimizer": { "type": "AdamW", "params": { "lr": 1e-3 } },
    });
    let config = RunConfig::from_value(config, "custom_model")?;
    let data = TrainingData::open(&config, None, Some(POSITIONS_IN_A_ROW), None, &mut Silent)?;
    let model = model(data.vocab_size().expect("a character tokenizer"));
    let mut engine = initialize(model, config)?;
    engine.train(&data)?;
    let validation = &data.validation.first().expect("the split of the configuration").dataset;
    Ok((engine.counters().step, engine.evaluate(validation, &mut Silent)?.loss))
}

#[allow(dead_code, reason = "the tests run `train`")]
fn main() {
    let (text, output) = (Path::new("examples/data/tinyshakespeare.txt"), Path::new("runs/custom_model"));
    match train(text, output, 300) {
        Ok((steps, loss)) => println!("{steps} steps, validation loss {loss:.3}"),
        Err(error) => eprintln!("error: {error}"),
    }
}
