//! The seams hold: the models train the same on a device that defers, with weights that are there only while their block
//! runs, and split over two ranks; and a device that computes nothing knows what a step costs.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use models::families::FamilyConfig;
use models::families::presets::preset;
use models::weights::WeightSource;
use models::{Model, ModelConfig, Residency, Resident, registry};
use ops::{ParamId, Params, Part, Regions, Single};
use tensor::{Isa, MemoryKind, Queue, Tensor, cpu, dry};
use testing::close::{Bound, assert_close};
use testing::far;
use testing::fixtures::Fixture;
use testing::nan::{NanOutside, Outside};
use testing::oracle::{AdamW, Row};
use testing::ranks::ranks;
use testing::regions::SplitLayers;
use testing::trainee::{Trainee, pack};

const FIXTURES: [&str; 2] = ["gpt2", "llama"];
/// GPT-2 drops at four places: embeddings, probabilities, and both ends of the residual stream's layers.
const DROPOUT: f64 = 0.1;

/// A fixture and its model.
struct Case {
    label: String,
    folder: PathBuf,
    model: Model,
    fixture: Fixture,
    dropout_seed: Option<u64>,
}

impl Case {
    fn read(name: &str) -> Self {
        Self::new(name, None)
    }

    fn gpt2_with_dropout() -> Self {
        Self::new("gpt2", Some(DROPOUT))
    }

    fn new(name: &str, dropout: Option<f64>) -> Self {
        let folder = Fixture::folder(name);
        let mut config = ModelConfig::from_folder(&folder).expect("a readable config.json");
        if let (FamilyConfig::Gpt2(gpt2), Some(dropout)) = (&mut config.family, dropout) {
            (gpt2.embd_pdrop, gpt2.attn_pdrop, gpt2.resid_pdrop) = (dropout, dropout, dropout);
        }
        let model = registry::build(&config, config.max_positions());
        let label = format!("{name}, dropout {dropout:?}");
        Self { label, folder, model, fixture: Fixture::read(name), dropout_seed: dropout.map(|_| 1234) }
    }

    fn trainee<'a>(&'a self, queue: Queue, regions: &'a dyn Regions) -> Trainee<'a> {
        let source = WeightSource::folder(&self.folder, &self.model).expect("weights that fit");
        let mut trainee = Trainee::new(queue, &self.model, regions, Some(&source), self.fixture.adamw);
        trainee.dropout_seed = self.dropout_seed;
        trainee
    }
}

fn cpu_queue(threads: usize) -> Queue {
    cpu::queue(threads, false, Isa::detect())
}

/// The log-probabilities of each step, not yet read.
fn train(trainee: &mut Trainee<'_>, rows: &[Row], steps: usize) -> Vec<Tensor> {
    let batch = pack(&trainee.queue, rows);
    let step = |_| {
        let (logprobs, _) = trainee.forward_backward(&batch, &Resident).expect("forward and backward");
        trainee.update().expect("an update");
        logprobs
    };
    (0..steps).map(step).collect()
}

fn train_and_read(trainee: &mut Trainee<'_>, rows: &[Row], steps: usize) -> Vec<f64> {
    let logprobs = train(trainee, rows, steps);
    let batch = pack(&trainee.queue, rows);
    logprobs.iter().map(|x| trainee.loss(&batch, x)).collect()
}

#[test]
fn a_trainee_on_the_cpu_gives_the_losses_of_pytorch() {
    for name in FIXTURES {
        let case = Case::read(name);
        let losses = train_and_read(&mut case.trainee(cpu_queue(2), &Single), &case.fixture.rows(), 5);
        assert_close(name, &losses, &case.fixture.adamw_losses[..5], Bound::Absolute(1e-5));
    }
}

#[test]
fn a_device_that_runs_nothing_before_the_host_reads_trains_to_the_same_bits() {
    for case in [Case::read("gpt2"), Case::read("llama"), Case::gpt2_with_dropout()] {
        let rows = case.fixture.rows();
        let mut want = case.trainee(cpu_queue(2), &Single);
        let mut got = case.trainee(far::queue(2, Isa::detect()), &Single);
        let want_losses = train_and_read(&mut want, &rows, 3);
        let logprobs = train(&mut got, &rows, 3);
        // Three whole steps are recorded, and nothing has run: not even the weights are there yet.
        let num_calls = far::pending(&got.queue);
        assert!(num_calls > case.model.params.len() + 3 * 40, "{}: {num_calls} calls", case.label);
        // Buffers went back to the allocator and out again meanwhile, exactly as on the CPU.
        let peaks = |trainee: &Trainee<'_>| (trainee.queue.ledger().peak, trainee.queue.ledger().reserved_peak);
        assert_eq!(peaks(&got), peaks(&want), "{}", case.label);
        let batch = pack(&got.queue, &rows);
        let losses: Vec<f64> = logprobs.iter().map(|x| got.loss(&batch, x)).collect();
        assert_eq!(far::pending(&got.queue), 0);
        assert_eq!(losses, want_losses, "{}", case.label);
        assert_eq!(got.gradients(), want.gradients(), "{}", case.label);
    }
}

#[test]
fn weights_that_are_nan_or_absent_outside_their_block_change_no_bit() {
    for case in [Case::read("gpt2"), Case::read("llama"), Case::gpt2_with_dropout()] {
        for recompute in [false, true] {
            let mut want = case.trainee(cpu_queue(2), &Single);
            want.recompute = recompute.into();
            let batch = pack(&want.queue, &case.fixture.rows());
            let (logprobs, _) = want.forward_backward(&batch, &Resident).expect("forward and backward");
            for outside in [Outside::Nan, Outside::Absent] {
                let label = format!("{}, recompute {recompute}, {outside:?}", case.label);
                let mut got = case.trainee(cpu_queue(2), &Single);
                got.recompute = recompute.into();
                let residency = NanOutside::new(&got.queue, &got.store, outside).expect("copies");
                let batch = pack(&got.queue, &case.fixture.rows());
                let (got_logprobs, _) = got.forward_backward(&batch, &residency).expect("forward and backward");
                // Every block gathers what it lists once forward and once backward.
                let listed: usize = case.model.blocks.iter().map(|block| block.params.len()).sum();
                assert_eq!(residency.num_gathers(), 2 * listed, "{label}");
                assert_eq!(got.loss(&batch, &got_logprobs), want.loss(&batch, &logprobs), "{label}");
                assert_eq!(got.gradients(), want.gradients(), "{label}");
            }
        }
    }
}

#[test]
fn a_weight_is_nan_outside_its_block_and_a_kept_buffer_is_nan_for_ever() {
    let case = Case::read("gpt2");
    let trainee = case.trainee(cpu_queue(1), &Single);
    let (queue, store, block) = (&trainee.queue, &trainee.store, 1);
    let id = case.model.blocks[block].params[0];
    let read = |x: &Tensor| queue.read::<f32>(x).expect("numbers");
    let clean = read(&store.weight(id).expect("a weight"));
    let residency = NanOutside::new(queue, store, Outside::Nan).expect("copies");
    assert!(read(&store.weight(id).expect("NaN")).iter().all(|x| x.is_nan()));

    residency.gather(&case.model, block).expect("gather");
    let kept = store.weight(id).expect("a weight");
    residency.gather(&case.model, block).expect("gather, a second block in flight");
    residency.release(&case.model, block).expect("release");
    assert_eq!(read(&kept), clean, "one block still holds it");
    residency.release(&case.model, block).expect("release");
    residency.gather(&case.model, block).expect("gather");
    assert_eq!(read(&store.weight(id).expect("a weight")), clean);
    assert!(read(&kept).iter().all(|x| x.is_nan()), "backward with a buffer of forward would compute NaN");

    residency.release(&case.model, block).expect("release");
}

#[test]
fn an_op_that_runs_without_gathering_is_refused_by_the_name_of_the_weight() {
    let case = Case::read("llama");
    let trainee = case.trainee(cpu_queue(1), &Single);
    let _absent = NanOutside::new(&trainee.queue, &trainee.store, Outside::Absent).expect("copies");
    let batch = pack(&trainee.queue, &case.fixture.rows());
    let refused = trainee.forward_backward(&batch, &Resident).map(|_| ()).expect_err("a refusal");
    assert_eq!(refused.to_string(), "weight model.embed_tokens.weight was used outside gather..release of its block");
}

/// What one rank has after some steps: losses, gradients of the first step, weights after the last.
struct Trained {
    losses: Vec<f64>,
    first_gradients: Vec<(ParamId, Vec<f32>)>,
    weights: Vec<Vec<f32>>,
}

fn train_rank(case: &Case, regions: &dyn Regions, steps: usize) -> Trained {
    let mut trainee = case.trainee(cpu_queue(1), regions);
    let batch = pack(&trainee.queue, &case.fixture.rows());
    let (logprobs, _) = trainee.forward_backward(&batch, &Resident).expect("forward and backward");
    let first_gradients = trainee.gradients();
    trainee.update().expect("an update");
    let mut losses = vec![trainee.loss(&batch, &logprobs)];
    losses.extend(train_and_read(&mut trainee, &case.fixture.rows(), steps - 1));
    let read = |id| trainee.queue.read(&trainee.store.weight(id).expect("a weight")).expect("numbers");
    Trained { losses, first_gradients, weights: trainee.store.ids().map(read).collect() }
}

#[test]
fn two_tensor_ranks_train_like_one() {
    for case in [Case::read("gpt2"), Case::read("llama"), Case::gpt2_with_dropout()] {
        let one = train_rank(&case, &Single, 5);
        let two = ranks(2, |rank| train_rank(&case, &SplitLayers(rank), 5));
        // Sums over heads and over the feed-forward width are cut in two: their order differs, their values do not.
        assert_close(&case.label, &two[0].losses, &one.losses, Bound::Absolute(2e-6));
        assert_eq!(two[0].losses, two[1].losses, "{}: the head is whole on both", case.label);
        let mut num_split = 0;
        for (index, (id, want)) in one.first_gradients.iter().enumerate() {
            let (spec, label) = (&case.model.params[id.index()], &case.label);
            for (rank, trained) in two.iter().enumerate() {
                let part_of = |axis: &str| match axis {
                    "heads" | "kv_heads" | "mlp" => Part { index: rank, count: 2 },
                    _ => Part::WHOLE,
                };
                let share: Vec<f32> =
                    spec.share_runs(&part_of).into_iter().flat_map(|run| want[run].to_vec()).collect();
                num_split += usize::from(share.len() < want.len());
                let got = &trained.first_gradients[index].1;
                let what = format!("{label} rank {rank} grad {}", spec.name);
                let largest = want.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                assert_close(&what, got, &share, Bound::Absolute(1e-5 * f64::from(largest)));
            }
            let whole = two[0].first_gradients[index].1.len() == want.len();
            if whole {
                assert_eq!(two[0].first_gradients[index], two[1].first_gradients[index], "{label} {}", spec.name);
                assert_eq!(two[0].weights[id.index()], two[1].weights[id.index()], "{label} {}", spec.name);
            }
        }
        // Two ranks, two layers; GPT-2 splits 4 matrices and 2 biases, Llama 7 matrices.
        assert!([2 * 2 * 6, 2 * 2 * 7].contains(&num_split), "{}: {num_split}", case.label);
    }
}

#[test]
fn a_rank_that_fails_in_the_middle_of_a_step_ends_the_others() {
    let case = Case::read("gpt2");
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        ranks(2, |rank| {
            assert!(rank.index != 1, "no memory on this rank");
            train_rank(&case, &SplitLayers(rank), 1).losses
        })
    }));
    let panic = panic.expect_err("a failed rank fails the test");
    let message = panic.downcast_ref::<String>().expect("a formatted message");
    assert_eq!(message, "rank 1 of 2: no memory on this rank");
}

#[test]
fn the_dry_device_has_the_ledger_and_the_costs_of_the_cpu_to_the_byte() {
    for case in [Case::read("gpt2"), Case::read("llama"), Case::gpt2_with_dropout()] {
        for recompute in [false, true] {
            let [(cpu_ledger, cpu_cost), (dry_ledger, dry_cost)] = [cpu_queue(2), dry::queue()].map(|queue| {
                let mut trainee = case.trainee(queue, &Single);
                trainee.recompute = recompute.into();
                let batch = pack(&trainee.queue, &case.fixture.rows());
                let (_, cost) = trainee.forward_backward(&batch, &Resident).expect("forward and backward");
                trainee.update().expect("an update");
                (trainee.queue.ledger(), cost)
            });
            assert_eq!(dry_ledger, cpu_ledger, "{}, recompute {recompute}", case.label);
            assert_eq!(dry_cost, cpu_cost, "{}, recompute {recompute}", case.label);
        }
    }
}

#[test]
fn a_step_of_gpt2_with_1_5_billion_weights_runs_dry_in_seconds() {
    let (rows, positions, layers, width, vocab) = (4, 1024, 48, 1600, 50257);
    let begin = Instant::now();
    let config = preset("gpt2-1.5b", "model").expect("a preset");
    let model = registry::build(&config, positions);
    let adamw = AdamW { lr: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
    let mut trainee = Trainee::new(dry::queue(), &model, &Single, None, adamw);
    let row = Row::new(vec![0; positions], vec![0; positions]);
    let batch = pack(&trainee.queue, &vec![row; rows]);
    let (_, cost) = trainee.forward_backward(&batch, &Resident).expect("forward and backward");
    trainee.update().expect("an update");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());

    let (ledger, bytes) = (trainee.queue.ledger(), 4 * model.num_parameters());
    assert_eq!(model.num_parameters(), 1_557_611_200);
    assert_eq!(ledger.peak[MemoryKind::Weights as usize], bytes);
    assert_eq!(ledger.peak[MemoryKind::Gradients as usize], bytes);
    assert_eq!(ledger.peak[MemoryKind::Optimizer as usize], 2 * bytes);
    // Two operations a weight of every product and token, and four a pair of query and key and a feature.
    let products = 2 * rows * positions * (12 * layers * width * width + vocab * width);
    let pairs = 4 * layers * width * rows * positions * (positions + 1) / 2;
    let share = cost.flops as f64 / (products + pairs) as f64;
    assert!((1.0..1.01).contains(&share), "{} operations, {share} of products and pairs", cost.flops);
}
