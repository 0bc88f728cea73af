//! The head on a vocabulary so large that its tokens go through in chunks, with every way to state what is predicted.

use ops::{Batch, Cx, Document, Env, HeadRequest, Linear, ParamStore, Params, Role, Single, WeightLayout};
use tensor::rng::Stream;
use tensor::{DType, Isa, LossTerms, MemoryKind, Queue, SoftTargets, cpu};

const TOKENS: usize = 300;
const WIDTH: usize = 3;
/// 239 rows of so many f32 logits fill a chunk.
const VOCAB: usize = 70_000;
const SEED: f32 = -0.5;

fn normal(name: &str, len: usize) -> Vec<f32> {
    let stream = Stream::new(1, name);
    (0..len as u64).map(|i| stream.normal(i) as f32).collect()
}

fn targets() -> Vec<i32> {
    (0..TOKENS).map(|token| if token % 7 == 6 { -100 } else { (token * 997 % VOCAB) as i32 }).collect()
}

/// Log-probabilities, and the gradients of hidden states and weight under `SEED`.
fn run(queue: &Queue, terms: LossTerms, one_pass: bool, soft: Option<SoftTargets<tensor::Tensor>>) -> [Vec<f32>; 3] {
    let documents = [Document { len: TOKENS, sample: 0, row_position: 0, position: 0 }];
    let mut batch = Batch::new(queue, &[0; TOKENS], Some(&targets()), &documents).unwrap();
    batch.soft_targets = soft;
    let mut store = ParamStore::default();
    let weight = store.declare("lm_head.weight", [VOCAB, WIDTH].into(), Role::Trained);
    let values = normal("weight", VOCAB * WIDTH);
    store.set_weight(weight, Some(queue.upload(MemoryKind::Weights, [VOCAB, WIDTH], &values).unwrap()));
    store.allocate_gradients(queue).unwrap();
    let env = Env {
        queue,
        params: &store,
        regions: &Single,
        batch: &batch,
        dtype: DType::F32,
        precision: None,
        head: HeadRequest::TokenLogprobs { seed: Some(SEED), terms },
        dropout: None,
        cache: None,
        probe: None,
    };
    let mut cx = Cx::new(&env, 0, true);
    let hidden = normal("hidden", TOKENS * WIDTH);
    let x = cx.input(queue.upload(MemoryKind::Activations, [TOKENS, WIDTH], &hidden).unwrap(), true);
    let linear = Linear { weight, bias: None, layout: WeightLayout::OutIn };
    let out = if one_pass {
        cx.output_head(x, linear).unwrap();
        cx.output().unwrap()
    } else {
        cx.head(x, linear).unwrap()
    };
    let logprobs = queue.read(cx.value(out)).unwrap();
    let seed = queue.upload(MemoryKind::Activations, [TOKENS], &[SEED; TOKENS]).unwrap();
    let (segment, _) = cx.finish(&[]);
    let dx = segment.backward(&env, vec![(out, seed)], &[x]).unwrap().grads.remove(0).unwrap();
    let dw = store.gradient(weight).unwrap().unwrap().tensor;
    [logprobs, queue.read(&dx).unwrap(), queue.read(&dw).unwrap()]
}

/// The same in plain f64: log-probabilities and the gradient of the hidden states.
fn reference(terms: LossTerms) -> [Vec<f64>; 2] {
    let (hidden, weight) = (normal("hidden", TOKENS * WIDTH), normal("weight", VOCAB * WIDTH));
    let (smoothing, z) = (f64::from(terms.label_smoothing), f64::from(terms.z_loss));
    let (mut logprobs, mut dx) = (Vec::new(), Vec::new());
    for (x, target) in hidden.chunks(WIDTH).zip(targets()) {
        let Ok(target) = usize::try_from(target) else {
            logprobs.push(0.0);
            dx.extend([0.0; WIDTH]);
            continue;
        };
        let dot = |w: &[f32]| w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>();
        let logits: Vec<f64> = weight.chunks(WIDTH).map(dot).collect();
        let lse = logits.iter().map(|l| l.exp()).sum::<f64>().ln();
        let q = |v: usize| if v == target { 1.0 - smoothing } else { 0.0 } + smoothing / VOCAB as f64;
        logprobs.push(logits.iter().enumerate().map(|(v, l)| q(v) * (l - lse)).sum::<f64>() - z * lse * lse);
        let mut row = [0.0; WIDTH];
        for (v, (l, w)) in logits.iter().zip(weight.chunks(WIDTH)).enumerate() {
            let dlogit = f64::from(SEED) * (q(v) - (1.0 + 2.0 * z * lse) * (l - lse).exp());
            row.iter_mut().zip(w).for_each(|(row, w)| *row += dlogit * f64::from(*w));
        }
        dx.extend(row);
    }
    [logprobs, dx]
}

const WITH: LossTerms = LossTerms { label_smoothing: 0.1, z_loss: 1e-3 };

#[test]
fn in_chunks_the_one_pass_and_the_general_way_give_the_same_bits_and_those_of_f64_but_for_rounding() {
    let queue = cpu::queue(2, false, Isa::detect());
    for terms in [LossTerms::default(), WITH] {
        let [logprobs, dx, dw] = run(&queue, terms, true, None);
        let general = run(&queue, terms, false, None);
        assert!(general == [logprobs.clone(), dx.clone(), dw], "{terms:?}: the two ways differ");
        let [want_logprobs, want_dx] = reference(terms);
        for (what, got, want) in [("logprob", logprobs, want_logprobs), ("dx", dx, want_dx)] {
            let worst = got.iter().zip(&want).map(|(got, want)| (f64::from(*got) - want).abs()).fold(0.0, f64::max);
            // `dx` is a sum of 70,000 f32 products: a random walk of roundings of up to 6e-8 is about 2e-5 long.
            assert!(worst < 5e-5, "{terms:?}: {what} is off by {worst:.1e}");
        }
    }
}

#[test]
fn lists_of_one_certain_id_give_the_bits_of_hard_targets() {
    let queue = cpu::queue(2, false, Isa::detect());
    let ids: Vec<u32> = targets().into_iter().map(|target| target.max(0) as u32).collect();
    let starts: Vec<u32> = (0..=TOKENS as u32).collect();
    let upload = |values: &[u32]| queue.upload(MemoryKind::Activations, [values.len()], values).unwrap();
    let probabilities = queue.upload(MemoryKind::Activations, [TOKENS], &[1.0f32; TOKENS]).unwrap();
    for terms in [LossTerms::default(), WITH] {
        let soft = SoftTargets { starts: upload(&starts), ids: upload(&ids), probabilities: probabilities.clone() };
        assert!(run(&queue, terms, true, Some(soft)) == run(&queue, terms, true, None), "{terms:?}");
    }
}
