//! Layers that run on some of the tokens: what the kept ones see, what becomes of the others, and the gradients of it all.

use models::weights::WeightSource;
use models::{Block, Model, ModelConfig, Recompute, Residency, Resident, registry};
use ops::{Batch, Cx, Flow, KeptTokens, Params, Single};
use tensor::{Isa, MemoryKind, Queue, cpu};
use testing::close::{Bound, assert_close};
use testing::fixtures::Fixture;
use testing::oracle::Row;
use testing::trainee::{Trainee, pack};

/// Some layers run on `kept`, others are left out.
struct Routes {
    kept: KeptTokens,
    routed: Vec<usize>,
    left_out: Vec<usize>,
}

impl Residency for Routes {
    fn leaves_out(&self, _: &Model, block: usize) -> bool {
        self.left_out.contains(&block)
    }
    fn tokens(&self, _: &Model, block: usize) -> Option<&KeptTokens> {
        self.routed.contains(&block).then_some(&self.kept)
    }
}

struct Case {
    model: Model,
    fixture: Fixture,
    rows: Vec<Row>,
}

impl Case {
    /// Rows of two documents each.
    fn read(name: &str) -> Self {
        let config = ModelConfig::from_folder(&Fixture::folder(name)).expect("a readable config.json");
        let fixture = Fixture::read(name);
        let mut rows = fixture.rows();
        for row in &mut rows {
            let half = row.ids.len() / 2;
            row.documents.iter_mut().skip(half).for_each(|document| *document += 1);
        }
        Self { model: registry::build(&config, config.max_positions()), fixture, rows }
    }

    fn trainee(&self, name: &str) -> Trainee<'_> {
        let queue = cpu::queue(2, false, Isa::detect());
        let source = WeightSource::folder(&Fixture::folder(name), &self.model).expect("weights that fit");
        Trainee::new(queue, &self.model, &Single, Some(&source), self.fixture.adamw)
    }

    fn ids(&self) -> Vec<u32> {
        self.rows.iter().flat_map(|row| row.ids.clone()).collect()
    }

    fn routes(&self, queue: &Queue, batch: &Batch, rows: &[u32], routed: &[usize]) -> Routes {
        let kept = KeptTokens::new(queue, batch, rows, &self.ids()).expect("kept tokens");
        Routes { kept, routed: routed.to_vec(), left_out: Vec::new() }
    }
}

/// Two of three tokens, and none of the second document of the first row.
fn some(batch: &Batch) -> Vec<u32> {
    let second = batch.segments[1].q_start..batch.segments[1].q_start + batch.segments[1].q_len;
    (0..batch.num_tokens).filter(|row| row % 3 != 1 && !second.contains(row)).map(|row| row as u32).collect()
}

#[test]
fn all_tokens_through_gather_and_scatter_give_the_bits_of_the_plain_layers() {
    for name in ["gpt2", "llama"] {
        let case = Case::read(name);
        let mut trainee = case.trainee(name);
        trainee.dropout_seed = Some(3);
        let batch = pack(&trainee.queue, &case.rows);
        let (want, _) = trainee.forward_backward(&batch, &Resident).expect("forward and backward");
        let (want, want_gradients) = (trainee.queue.read::<f32>(&want).expect("numbers"), trainee.gradients());
        let all: Vec<u32> = (0..batch.num_tokens as u32).collect();
        let routes = case.routes(&trainee.queue, &batch, &all, &[1, 2]);
        let (got, _) = trainee.forward_backward(&batch, &routes).expect("forward and backward");
        assert_eq!(trainee.queue.read::<f32>(&got).expect("numbers"), want, "{name}");
        assert_eq!(trainee.gradients(), want_gradients, "{name}");
    }
}

#[test]
fn kept_tokens_are_as_in_a_batch_of_them_alone_and_the_others_as_without_the_layer() {
    for name in ["gpt2", "llama"] {
        let case = Case::read(name);
        let trainee = case.trainee(name);
        let queue = &trainee.queue;
        let batch = pack(queue, &case.rows);
        let rows = some(&batch);
        let run = |batch: &Batch, residency: &dyn Residency| -> Vec<f32> {
            let (logprobs, _) = trainee.forward_backward(batch, residency).expect("forward and backward");
            queue.read(&logprobs).expect("log-probabilities")
        };
        let targets: Vec<i32> = queue.read(batch.targets.as_ref().expect("targets")).expect("targets");
        let routes = case.routes(queue, &batch, &rows, &[1, 2]);
        let got = run(&batch, &routes);
        let mut alone = case.routes(queue, &batch, &rows, &[]).kept.batch;
        let kept_targets: Vec<i32> = rows.iter().map(|row| targets[*row as usize]).collect();
        alone.num_targets = batch.num_targets;
        alone.targets =
            Some(queue.upload(MemoryKind::Activations, [rows.len()], &kept_targets).expect("memory for targets"));
        let kept: Vec<f32> = rows.iter().map(|row| got[*row as usize]).collect();
        assert_close(name, &kept, &run(&alone, &Resident), Bound::Absolute(2e-6));

        let without = run(&batch, &Routes { left_out: vec![1, 2], routed: vec![], ..routes });
        let is_kept = |row: &usize| rows.contains(&(*row as u32));
        for row in (0..batch.num_tokens).filter(|row| !is_kept(row)) {
            assert!((got[row] - without[row]).abs() < 2e-6, "{name}: token {row} is not as if it had passed by");
        }
        // Positions are those of the whole row.
        assert_eq!(queue.read::<u32>(&alone.positions).expect("numbers")[1], rows[1]);
    }
}

#[test]
fn gradients_through_layers_on_some_tokens_are_those_of_finite_differences_and_recompute_changes_no_bit() {
    for name in ["gpt2", "llama"] {
        let case = Case::read(name);
        let mut trainee = case.trainee(name);
        let batch = pack(&trainee.queue, &case.rows);
        let routes = case.routes(&trainee.queue, &batch, &some(&batch), &[1, 2]);
        trainee.forward_backward(&batch, &routes).expect("forward and backward");
        let gradients = trainee.gradients();
        for kind in [Recompute::Segments(1), Recompute::Segments(2), Recompute::Ops(ops::RecomputedOp::ALL.to_vec())] {
            trainee.recompute = kind;
            trainee.forward_backward(&batch, &routes).expect("forward and backward");
            assert!(trainee.gradients() == gradients, "{name}, {:?}", trainee.recompute);
        }
        // Along the gradient itself, weight by weight: the slope is its squared norm.
        for (id, gradient) in &gradients {
            let weight: Vec<f32> = read(&trainee, *id);
            let squared: f64 = gradient.iter().map(|g| f64::from(*g).powi(2)).sum();
            let h = 2e-3 / squared.sqrt();
            let loss_at = |offset: f64| {
                let moved: Vec<f32> = weight
                    .iter()
                    .zip(gradient)
                    .map(|(w, g)| (f64::from(*w) + offset * h * f64::from(*g)) as f32)
                    .collect();
                set(&trainee, *id, &moved);
                let (logprobs, _) = trainee.forward_backward(&batch, &routes).expect("forward and backward");
                trainee.loss(&batch, &logprobs)
            };
            let slope = (8.0 * (loss_at(1.0) - loss_at(-1.0)) - (loss_at(2.0) - loss_at(-2.0))) / (12.0 * h);
            set(&trainee, *id, &weight);
            let (error, norm) = ((slope - squared).abs() / squared.sqrt(), squared.sqrt());
            // Rounding of the loss, 1e-7, over h |g| = 2e-3.
            let parameter = &case.model.params[id.index()].name;
            assert!(error < 1e-3 * norm.max(0.2), "{name} {parameter}: slope {slope}, want {squared}");
        }
    }
}

/// Hands its input on as a side tensor too.
struct WithSide;

impl Block for WithSide {
    fn forward(&self, _: &mut Cx<'_>, flow: Flow) -> ops::Result<Flow> {
        let x = flow.expect_hidden("WithSide");
        Ok(Flow { hidden: Some(x), sides: vec![("first_hidden", x)] })
    }
}

#[test]
fn a_block_with_side_tensors_does_not_run_on_some_tokens_and_is_named() {
    let mut case = Case::read("gpt2");
    case.model.blocks[1].block = Box::new(WithSide);
    let trainee = case.trainee("gpt2");
    let batch = pack(&trainee.queue, &case.rows);
    let routes = case.routes(&trainee.queue, &batch, &some(&batch), &[1]);
    let refused = trainee.forward_backward(&batch, &routes).map(|_| ()).expect_err("a refusal").to_string();
    assert!(refused.starts_with("block transformer.h.0 hands on side tensors and cannot run on some of"), "{refused}");
    // The same model without routes hands its side tensors on to the blocks after it.
    assert!(trainee.forward_backward(&batch, &Resident).is_ok());
}

fn read(trainee: &Trainee<'_>, id: ops::ParamId) -> Vec<f32> {
    trainee.queue.read(&trainee.store.weight(id).expect("a weight")).expect("numbers")
}

fn set(trainee: &Trainee<'_>, id: ops::ParamId, values: &[f32]) {
    let shape = trainee.store.shape(id);
    let weight = trainee.queue.upload(MemoryKind::Weights, shape, values).expect("memory for a weight");
    trainee.store.set_weight(id, Some(weight));
}
