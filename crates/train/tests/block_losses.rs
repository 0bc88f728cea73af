//! A loss that a block declares is part of the step's loss and of its gradient, whatever the micro-batches.

use data::Sample;
use models::layers::{Embedding, LmHead, Norm};
use models::param::{EMBED, VOCAB};
use models::weights::WeightSource;
use models::{Block, Dim, Init, Model, ModelBuilder};
use ops::{Cost, Cx, Env, Flow, Linear, Op, Result, WeightLayout};
use serde_json::json;
use tensor::{MemoryKind, Tensor};
use train::{Engine, RunConfig};

const WEIGHT: f32 = 3.0;

/// `WEIGHT x mean(x^2)`, on the host: an op of a user's own.
struct MeanSquare {
    x: Option<Tensor>,
}

impl Op for MeanSquare {
    fn name(&self) -> &'static str {
        "mean_square"
    }

    fn forward(&mut self, env: &Env<'_>, inputs: &[Tensor]) -> Result<Tensor> {
        let x = env.queue.read_f32(&inputs[0])?;
        let mean = x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32;
        self.x = Some(inputs[0].clone());
        Ok(env.queue.upload(MemoryKind::Activations, [1], &[WEIGHT * mean])?)
    }

    fn backward(self: Box<Self>, env: &Env<'_>, grad: Tensor) -> Result<Vec<Option<Tensor>>> {
        let (x, grad) = (self.x.expect("forward ran"), env.queue.read_f32(&grad)?[0]);
        let factor = 2.0 * WEIGHT * grad / x.shape().elements() as f32;
        let dx: Vec<f32> = env.queue.read_f32(&x)?.iter().map(|x| factor * x).collect();
        Ok(vec![Some(env.queue.upload(MemoryKind::Activations, x.shape(), &dx)?)])
    }

    fn cost(&self, _: &Env<'_>, _: &[Tensor]) -> Cost {
        Cost::default()
    }
}

struct KeepsHiddenStatesSmall;

impl Block for KeepsHiddenStatesSmall {
    fn forward(&self, cx: &mut Cx<'_>, flow: Flow) -> Result<Flow> {
        let x = flow.expect_hidden("KeepsHiddenStatesSmall");
        let loss = cx.apply(MeanSquare { x: None }, &[x])?;
        cx.add_loss("hidden_size_penalty", loss);
        Ok(flow)
    }
}

fn model() -> Model {
    let mut builder = ModelBuilder::default();
    let (vocab, embed) = (Dim::new(VOCAB, 7), Dim::new(EMBED, 4));
    let tokens = builder.param("embed.weight", [vocab, embed.clone()], Init::Normal { std: 0.5 });
    builder.block("embed", Embedding { tokens, positions: None, dropout: 0.0 });
    builder.block("penalty", KeepsHiddenStatesSmall);
    let weight = builder.param("norm.weight", [embed], Init::Constant(1.0));
    let norm = Norm::Rms { weight, weight_offset: 0.0, eps: 1e-6 };
    let weight = builder.share(tokens);
    builder.block("head", LmHead { norm, linear: Linear { weight, bias: None, layout: WeightLayout::OutIn } });
    builder.build(7, Some(8), None)
}

fn samples() -> Vec<Sample> {
    let row = |ids: &[u32], targets: &[i32]| Sample {
        input_ids: ids.to_vec(),
        targets: targets.to_vec(),
        positions: (0..ids.len() as u32).collect(),
        document_starts: vec![0],
        ..Sample::default()
    };
    vec![row(&[1, 2, 3, 4], &[2, 3, 4, 5]), row(&[6, 0, 1, 2], &[0, -100, -100, 3])]
}

/// Loss, and the embedding after one step of SGD with rate 1, with `delta` added to element 9 of the embedding before.
fn step(delta: f32, micro_batch: u64) -> (f64, Vec<f32>) {
    let config = json!({
        "run": { "threads": 1 }, "train_batch_size": 2, "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_clipping": 0.0, "optimizer": { "type": "SGD", "params": { "lr": 1.0 } },
    });
    let config = RunConfig::from_value(config, "test").expect("a configuration");
    let source = WeightSource::Reader(Box::new(move |spec, range| {
        let mut values = spec.initial(5, range);
        if spec.name == "embed.weight" {
            values[9] += delta;
        }
        Ok(values)
    }));
    let mut engine = Engine::with_weights(model(), config, &source).expect("an engine");
    let loss = engine.train_batch(&samples()).expect("a step").loss;
    let folder = tempfile::tempdir().expect("a folder");
    engine.save_pretrained(&folder.path().join("model"), None).expect("a model folder");
    let files = models::hf::WeightFiles::open(&folder.path().join("model")).expect("weights");
    (loss, files.read_f32("embed.weight", 0..28).expect("the embedding"))
}

#[test]
fn the_gradient_of_a_blocks_own_loss_is_that_of_finite_differences_of_the_reported_loss() {
    for micro_batch in [2, 1] {
        let before = model().params[0].initial(5, 0..28);
        let (_, after) = step(0.0, micro_batch);
        let gradient = f64::from(before[9] - after[9]);
        let h = 1e-2;
        let slope = (step(h, micro_batch).0 - step(-h, micro_batch).0) / (2.0 * f64::from(h));
        assert!((gradient - slope).abs() < 1e-3, "micro-batches of {micro_batch}: {gradient} and {slope}");
        // Without its block the penalty's share, 2 x 3 x x / 32 a use, would be missing.
        assert!(slope.abs() > 1e-2, "slope {slope}");
    }
}
