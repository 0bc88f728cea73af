//! Ranks 1, 2, 4 and 8 x ZeRO stages 0 to 3 train one model alike: bit for bit in a deterministic run, else to a bound; and
//! they move and keep what the table of `parallel::zero` says.

use comm::{Kind, TrafficByKind};
use models::weights::{WeightSource, cast, declare};
use models::{Model, ModelConfig, Pass, registry};
use ops::{Batch, Env, HeadRequest, ParamId, ParamStore, Params, Part, Single};
use optim::{AdamW, Granularity, Optimizer, Shard, Step};
use parallel::{Order, Owned, Partition, Stage, Zero, grad_norm};
use std::path::PathBuf;
use tensor::{DType, Isa, LossTerms, MemoryKind, Queue, Tensor, cpu};
use testing::close::{Bound, assert_close};
use testing::fixtures::Fixture;
use testing::oracle::Row;
use testing::ranks::{Rank, ranks};
use testing::trainee::pack;

const STAGES: [Stage; 4] = [Stage::Nothing, Stage::Optimizer, Stage::Gradients, Stage::Parameters];
const MICRO_BATCHES: usize = 8;
const STEPS: usize = 3;

/// How a model is trained.
#[derive(Clone, Copy, Debug)]
struct Way {
    ranks: usize,
    stage: Stage,
    order: Order,
    dtype: DType,
    recompute: bool,
}

/// What one rank saw.
struct Trained {
    losses: Vec<f64>,
    norms: Vec<f64>,
    /// This rank's masters: (weight, first element, values).
    masters: Vec<(ParamId, usize, Vec<f32>)>,
    traffic: TrafficByKind,
}

/// What a rank keeps of a weight.
struct Kept {
    id: ParamId,
    master: Tensor,
    moments: [Tensor; 2],
    /// The part that products read, where it is not the master.
    compute: Option<Tensor>,
}

struct Case {
    model: Model,
    folder: PathBuf,
    rows: Vec<Row>,
}

fn fixture(name: &str) -> Case {
    let folder = Fixture::folder(name);
    let config = ModelConfig::from_folder(&folder).expect("a readable config.json");
    let model = registry::build(&config, config.max_positions());
    let vocab = model.vocab_size as u32;
    // Rows of different lengths: micro-batches count different numbers of targets.
    let row = |g: u32| {
        let ids: Vec<u32> = (0..10 + g % 4).map(|t| (g * 7 + t * t * 3 + t) % vocab).collect();
        let labels = ids.iter().map(|id| i64::from(*id)).collect();
        Row::new(ids, labels)
    };
    Case { rows: (0..MICRO_BATCHES as u32).map(row).collect(), model, folder }
}

/// One rank in training: what the engine does, in its smallest form.
struct Trainer<'a> {
    case: &'a Case,
    way: Way,
    queue: Queue,
    store: ParamStore,
    zero: Zero,
    kept: Vec<Kept>,
}

impl<'a> Trainer<'a> {
    fn new(case: &'a Case, way: Way, rank: &Rank) -> Self {
        let queue = cpu::queue(1, false, Isa::detect());
        let (model, whole) = (&case.model, |_: &str| Part::WHOLE);
        let source = WeightSource::folder(&case.folder, model).expect("weights that fit");
        let store = declare(model, &whole);
        let granularity = |id: ParamId| (!model.params[id.index()].is_table()).then_some(Granularity::Element);
        let zero = Zero::new(rank.comm.clone(), Partition::new(model, &granularity, way.ranks), way.stage, way.order);
        let mut kept = Vec::new();
        for (id, spec) in model.iter() {
            let values = source.values(id, spec, &whole).expect("weights");
            let all = queue.upload(MemoryKind::Weights, spec.shape(), &values).unwrap();
            if spec.is_table() {
                store.set_weight(id, Some(all));
                continue;
            }
            let range = zero.kept(id);
            let shares = range.len() < values.len() || zero.stage() != Stage::Nothing;
            let master = if shares {
                queue.upload(MemoryKind::Weights, [range.len()], &values[range]).unwrap()
            } else {
                all.clone()
            };
            let narrow = |x: &Tensor| cast(&queue, x, way.dtype).unwrap();
            let compute = if zero.stage() == Stage::Nothing {
                store.set_weight(id, Some(narrow(&all)));
                (way.dtype != DType::F32).then(|| store.weight(id).unwrap())
            } else if zero.stage() == Stage::Parameters {
                let share = narrow(&master);
                zero.set_share(id, share.clone());
                (way.dtype != DType::F32).then_some(share)
            } else {
                store.set_weight(id, Some(narrow(&all)));
                (way.dtype != DType::F32).then(|| narrow(&master))
            };
            let zeros = || queue.zeros(MemoryKind::Optimizer, DType::F32, master.shape()).unwrap();
            kept.push(Kept { id, moments: [zeros(), zeros()], compute, master });
        }
        if zero.keeps_gradients() {
            store.allocate_gradients(&queue).unwrap();
        }
        Self { case, way, queue, store, zero, kept }
    }

    fn micro_batch(&self, batch: &Batch, is_last: bool, targets: usize) -> f64 {
        let residency = self.zero.pass(&self.queue, &self.store, is_last);
        let env = Env {
            queue: &self.queue,
            params: &self.store,
            regions: &Single,
            batch,
            dtype: self.way.dtype,
            precision: None,
            head: HeadRequest::TokenLogprobs { seed: Some(-1.0 / targets as f32), terms: LossTerms::default() },
            dropout: None,
            cache: None,
            probe: None,
        };
        let pass = Pass { model: &self.case.model, residency: &residency };
        let output = pass.forward_backward(&env, 0.0, &self.way.recompute.into()).expect("forward and backward");
        self.queue.read::<f32>(&output.logprobs).unwrap().into_iter().map(f64::from).sum()
    }

    /// One step; the loss and the norm.
    fn step(&self, step: u64) -> (f64, f64) {
        let (rank, ranks) = (self.zero.comm().index(), self.way.ranks);
        let targets: usize = self.case.rows.iter().map(|row| row.ids.len() - 1).sum();
        self.store.clear_gradients();
        let mut sums = Vec::new();
        for round in 0..MICRO_BATCHES / ranks {
            let batch = pack(&self.queue, std::slice::from_ref(&self.case.rows[round * ranks + rank]));
            sums.push(self.micro_batch(&batch, round + 1 == MICRO_BATCHES / ranks, targets));
        }
        let all = self.zero.comm().exchange(&self.queue, &sums).unwrap();
        let by_micro_batch = (0..sums.len()).flat_map(|round| all.iter().map(move |rank| rank[round]));
        let loss = -by_micro_batch.sum::<f64>() / targets as f64;
        let owned = self.zero.finish(&self.queue, &self.store).unwrap();
        let norm = self.norm(&owned);
        self.update(step, &owned);
        self.zero.give_back(owned);
        (loss, norm)
    }

    fn norm(&self, owned: &[Owned]) -> f64 {
        grad_norm(&self.queue, &self.zero, owned).unwrap()
    }

    fn update(&self, step: u64, owned: &[Owned]) {
        let rule = AdamW { betas: [0.9, 0.999], eps: 1e-8, decoupled: true, bias_correction: true, amsgrad: false };
        let at = Step { step, lr: 1e-3, weight_decay: 0.01, grad_scale: 1.0, betas: None };
        for Owned { id, first, grad } in owned {
            let Kept { master, moments, compute, .. } = self.find(*id);
            let param = &master.reshape(grad.shape());
            let states = moments.each_ref().map(|x| x.reshape(grad.shape()));
            let compute = compute.as_ref().map(|x| x.reshape(grad.shape()));
            let shard =
                Shard { param, grad, states: &states, compute: compute.as_ref(), first: *first as u64, key: [0; 2] };
            rule.step(&self.queue, &shard, &at).unwrap();
        }
        for block in 0..self.case.model.blocks.len() {
            let part = |id| {
                let kept = self.find(id);
                kept.compute.as_ref().unwrap_or(&kept.master).clone()
            };
            if let Some(pending) = self.zero.begin_spread(&self.store, block, part).unwrap() {
                pending.wait(&self.queue).unwrap();
            }
        }
    }

    fn find(&self, id: ParamId) -> &Kept {
        self.kept.iter().find(|kept| kept.id == id).expect("every weight is kept")
    }
}

fn train_rank(case: &Case, way: Way, rank: &Rank) -> Trained {
    let trainer = Trainer::new(case, way, rank);
    let (losses, norms) = (1..=STEPS as u64).map(|step| trainer.step(step)).unzip();
    let read = |kept: &Kept| (kept.id, trainer.zero.kept(kept.id).start, trainer.queue.read(&kept.master).unwrap());
    let masters = trainer.kept.iter().map(read).collect();
    Trained { losses, norms, masters, traffic: rank.comm.traffic() }
}

fn train(case: &Case, way: Way) -> Vec<Trained> {
    ranks(way.ranks, |rank| train_rank(case, way, rank))
}

/// The masters of all ranks, put together.
fn whole(trained: &[Trained], case: &Case) -> Vec<Vec<f32>> {
    let mut all: Vec<Vec<f32>> = case.model.params.iter().map(|spec| vec![f32::NAN; spec.elements()]).collect();
    for (id, first, values) in trained.iter().flat_map(|rank| &rank.masters) {
        all[id.index()][*first..*first + values.len()].copy_from_slice(values);
    }
    let tables = case.model.params.iter().zip(&mut all).filter(|(spec, _)| spec.is_table());
    tables.for_each(|(_, values)| values.fill(0.0));
    all
}

const ONE: Way = Way { ranks: 1, stage: Stage::Nothing, order: Order::Tree, dtype: DType::F32, recompute: false };

#[test]
fn in_a_deterministic_run_every_number_of_ranks_and_every_stage_gives_the_same_bits() {
    for name in ["gpt2", "llama"] {
        let case = fixture(name);
        for dtype in [DType::F32, DType::BF16] {
            let one = train(&case, Way { dtype, ..ONE });
            let want = whole(&one, &case);
            assert!(want.iter().flatten().all(|x| x.is_finite()));
            for ranks in [2, 4, 8] {
                for stage in STAGES {
                    let way = Way { ranks, stage, dtype, ..ONE };
                    let trained = train(&case, way);
                    for rank in &trained {
                        assert_eq!(rank.losses, one[0].losses, "{name} {way:?}");
                        assert_eq!(rank.norms, one[0].norms, "{name} {way:?}");
                    }
                    assert!(whole(&trained, &case) == want, "{name} {way:?}: other weights");
                }
            }
        }
    }
}

#[test]
fn without_determinism_losses_differ_by_less_than_1e_6_and_ranks_agree() {
    let case = fixture("gpt2");
    let one = train(&case, Way { order: Order::AsTheyCome, ..ONE });
    for ranks in [2, 3, 4] {
        // Three ranks: what is left of the eight rows is not used.
        let want = if ranks == 3 { None } else { Some(&one[0].losses) };
        for stage in STAGES {
            let way = Way { ranks, stage, order: Order::AsTheyCome, ..ONE };
            let trained = train(&case, way);
            for rank in &trained {
                assert_eq!(rank.losses, trained[0].losses, "{way:?}");
                if let Some(want) = want {
                    assert_close(&format!("{way:?}"), &rank.losses, want, Bound::Absolute(1e-6));
                }
            }
        }
    }
}

#[test]
fn recomputed_blocks_gather_again_and_change_no_bit() {
    let case = fixture("llama");
    let way = Way { ranks: 2, stage: Stage::Parameters, ..ONE };
    let (kept, recomputed) = (train(&case, way), train(&case, Way { recompute: true, ..way }));
    assert!(whole(&kept, &case) == whole(&recomputed, &case));
}

#[test]
fn a_step_without_accumulation_moves_what_the_table_says() {
    // Llama's head is its own weight; one micro-batch a rank.
    let case = fixture("llama");
    let psi = case.model.num_parameters() as u64;
    for stage in STAGES {
        let way = Way { ranks: MICRO_BATCHES, stage, order: Order::AsTheyCome, ..ONE };
        let trained = train(&case, way);
        let moved = |kind: Kind| -> u64 {
            trained.iter().map(|rank| rank.traffic.get(&kind).map_or(0, |traffic| traffic.elements)).sum()
        };
        let others = (MICRO_BATCHES - 1) as u64;
        let per_step = |elements: u64| elements * STEPS as u64 * others;
        let (reduced, scattered, gathered) = match stage {
            Stage::Nothing => (2 * psi, 0, 0),
            Stage::Optimizer | Stage::Gradients => (0, psi, psi),
            Stage::Parameters => (0, psi, 2 * psi),
        };
        assert_eq!(moved(Kind::AllReduce), per_step(reduced), "{stage:?}");
        assert_eq!(moved(Kind::ReduceScatter), per_step(scattered), "{stage:?}");
        assert_eq!(moved(Kind::AllGather), per_step(gathered), "{stage:?}");
    }
}

#[test]
fn model_states_of_a_rank_take_what_the_stage_leaves_it() {
    let case = fixture("llama");
    let psi = case.model.num_parameters() as f64;
    let tables: usize = case.model.params.iter().filter(|spec| spec.is_table()).map(|spec| spec.elements()).sum();
    for (stage, weights, gradients) in [
        // bf16 weights and f32 masters; f32 gradients.
        (Stage::Nothing, 2.0 + 4.0, 4.0),
        // Masters, and a copy of the share to send around.
        (Stage::Optimizer, 2.0 + 6.0 / 4.0, 4.0),
        (Stage::Gradients, 2.0 + 6.0 / 4.0, 4.0 / 4.0),
        (Stage::Parameters, 6.0 / 4.0, 4.0 / 4.0),
    ] {
        let way = Way { ranks: 4, stage, order: Order::AsTheyCome, dtype: DType::BF16, recompute: false };
        let ledgers = ranks(4, |rank| {
            let trainer = Trainer::new(&case, way, rank);
            (1..=2).for_each(|step| _ = trainer.step(step));
            trainer.queue.ledger().current
        });
        let mean = |kind: MemoryKind| ledgers.iter().map(|ledger| ledger[kind as usize] as f64).sum::<f64>() / 4.0;
        let states = if stage == Stage::Nothing { 8.0 } else { 8.0 / 4.0 };
        for (what, got, want) in [
            ("weights", mean(MemoryKind::Weights) - 4.0 * tables as f64, weights * psi),
            ("gradients", mean(MemoryKind::Gradients), gradients * psi),
            ("optimizer", mean(MemoryKind::Optimizer), states * psi),
        ] {
            assert!((got / want - 1.0).abs() < 0.05, "{stage:?} {what}: {got} bytes, want {want}");
        }
    }
}

#[test]
fn a_rank_that_panics_in_the_middle_of_a_step_ends_the_others() {
    let case = fixture("gpt2");
    let way = Way { ranks: 2, stage: Stage::Parameters, ..ONE };
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        ranks(2, |rank| {
            let trainer = Trainer::new(&case, way, rank);
            trainer.step(1);
            assert!(rank.index != 1, "no memory on this rank");
            trainer.step(2);
        })
    }));
    let panic = panic.expect_err("a failed rank fails the test");
    assert_eq!(panic.downcast_ref::<String>().unwrap(), "rank 1 of 2: no memory on this rank");
}
