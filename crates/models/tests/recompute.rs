//! Recompute of every kind changes no bit and takes less memory, which a dry run knows to the byte.

use models::families::FamilyConfig;
use models::weights::WeightSource;
use models::{Model, ModelConfig, Recompute, Resident, registry};
use ops::RecomputedOp::{self, Attention, Gelu, Linear, Norm, SiluMul};
use ops::{Cost, Single};
use tensor::{Isa, Ledger, MemoryKind, Queue, cpu, dry};
use testing::fixtures::Fixture;
use testing::nan::{NanOutside, Outside};
use testing::trainee::{Trainee, pack};

const LAYERS: usize = 5;

/// A fixture's architecture with five layers; GPT-2 with dropout.
struct Case {
    name: &'static str,
    model: Model,
    fixture: Fixture,
}

impl Case {
    fn read(name: &'static str) -> Self {
        let mut config = ModelConfig::from_folder(&Fixture::folder(name)).expect("a readable config.json");
        match &mut config.family {
            FamilyConfig::Gpt2(gpt2) => {
                gpt2.n_layer = LAYERS;
                (gpt2.embd_pdrop, gpt2.attn_pdrop, gpt2.resid_pdrop) = (0.1, 0.1, 0.1);
            }
            FamilyConfig::Llama(llama) => llama.num_hidden_layers = LAYERS,
        }
        Self { name, model: registry::build(&config, config.max_positions()), fixture: Fixture::read(name) }
    }

    fn trainee(&self, queue: Queue, recompute: &Recompute) -> Trainee<'_> {
        let source = WeightSource::Random { seed: 5 };
        let mut trainee = Trainee::new(queue, &self.model, &Single, Some(&source), self.fixture.adamw);
        (trainee.recompute, trainee.dropout_seed) = (recompute.clone(), Some(9));
        trainee
    }

    /// Two steps: log-probabilities of the last, its gradients, the ledger, and the forward cost.
    fn train(&self, queue: Queue, recompute: &Recompute) -> (Vec<f32>, Vec<Vec<f32>>, Ledger, Cost) {
        let mut trainee = self.trainee(queue, recompute);
        let batch = pack(&trainee.queue, &self.fixture.rows());
        trainee.forward_backward(&batch, &Resident).expect("forward and backward");
        trainee.update().expect("an update");
        let (logprobs, cost) = trainee.forward_backward(&batch, &Resident).expect("forward and backward");
        let ledger = trainee.queue.ledger();
        let gradients = trainee.gradients().into_iter().map(|(_, gradient)| gradient).collect();
        (trainee.queue.read(&logprobs).expect("log-probabilities"), gradients, ledger, cost)
    }
}

fn kinds() -> Vec<Recompute> {
    let ops = |ops: &[RecomputedOp]| Recompute::Ops(ops.to_vec());
    let mut kinds: Vec<Recompute> = [1, 2, 3, 9].map(Recompute::Segments).to_vec();
    kinds.extend([1, 2, 9].map(Recompute::Parts));
    kinds.extend([1, 2].map(Recompute::Every));
    kinds.extend(RecomputedOp::ALL.map(|op| ops(&[op])));
    kinds.extend([ops(&[Norm, Gelu, SiluMul]), ops(&[Attention, Linear]), ops(&RecomputedOp::ALL)]);
    kinds
}

fn cpu_queue() -> Queue {
    cpu::queue(2, false, Isa::detect())
}

#[test]
fn every_kind_gives_the_bits_of_none_and_a_dry_run_knows_its_memory_to_the_byte() {
    for case in [Case::read("gpt2"), Case::read("llama")] {
        let (want, want_gradients, plain, want_cost) = case.train(cpu_queue(), &Recompute::Nothing);
        let activations = |ledger: &Ledger| ledger.peak[MemoryKind::Activations as usize];
        for kind in kinds() {
            let label = format!("{}, {kind:?}", case.name);
            let (logprobs, gradients, ledger, cost) = case.train(cpu_queue(), &kind);
            assert!(logprobs == want && gradients == want_gradients, "{label}: other bits");
            assert_eq!(cost, want_cost, "{label}");
            // GPT-2 has no gate and Llama no GELU.
            let is_absent = match &kind {
                Recompute::Ops(ops) => {
                    ops == &[if case.name == "gpt2" { RecomputedOp::SiluMul } else { RecomputedOp::Gelu }]
                }
                kind => *kind == Recompute::Segments(9) || *kind == Recompute::Parts(1),
            };
            let (less, whole) = (activations(&ledger), activations(&plain));
            assert!(is_absent || less < whole, "{label}: {less} bytes of {whole}");
            assert_eq!(case.train(dry::queue(), &kind).2, ledger, "{label}");
        }
    }
}

#[test]
fn two_layers_at_a_time_keep_fewer_inputs_and_more_of_what_ops_save() {
    let case = Case::read("gpt2");
    let activations = |kind: &Recompute| case.train(dry::queue(), kind).2.peak[MemoryKind::Activations as usize];
    let by_segment = [1, 2, 3, 5].map(|length| activations(&Recompute::Segments(length)));
    assert!(by_segment.is_sorted(), "{by_segment:?}");
    let by_step = [1, 2, 3].map(|step| activations(&Recompute::Every(step)));
    assert!(by_step.is_sorted(), "{by_step:?}");
    assert_eq!(activations(&Recompute::Parts(3)), by_segment[1]);
}

#[test]
fn weights_that_are_there_only_while_a_block_runs_are_enough() {
    for case in [Case::read("gpt2"), Case::read("llama")] {
        let (_, want, ..) = case.train(cpu_queue(), &Recompute::Nothing);
        for kind in [Recompute::Segments(2), Recompute::Every(2), Recompute::Ops(RecomputedOp::ALL.to_vec())] {
            let mut trainee = case.trainee(cpu_queue(), &kind);
            let batch = pack(&trainee.queue, &case.fixture.rows());
            trainee.forward_backward(&batch, &Resident).expect("forward and backward");
            trainee.update().expect("an update");
            let residency = NanOutside::new(&trainee.queue, &trainee.store, Outside::Nan).expect("copies");
            trainee.forward_backward(&batch, &residency).expect("forward and backward");
            let got: Vec<Vec<f32>> = trainee.gradients().into_iter().map(|(_, gradient)| gradient).collect();
            assert!(got == want, "{}, {kind:?}", case.name);
        }
    }
}
