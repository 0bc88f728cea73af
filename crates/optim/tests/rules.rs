//! What PyTorch's numbers do not cover: LAMB, Adafactor and schedule-free AdamW against their formulas in f64, Muon's
//! singular values, the formats of moments, and the average of weights.

use optim::{
    AVERAGE, Adafactor, Adagrad, AdamW, AdjustLr, Granularity, Lamb, Lion, Moments, Muon, NAdam, Optimizer, RAdam,
    RmsProp, ScheduleFree, Sgd, Shard, Step,
};
use tensor::rng::Stream;
use tensor::{Isa, MemoryKind, Queue, Shape, Tensor, cpu};

const ADAMW: AdamW = AdamW { betas: [0.9, 0.999], eps: 1e-8, decoupled: true, bias_correction: true, amsgrad: false };

fn queue(threads: usize) -> Queue {
    cpu::queue(threads, false, Isa::detect())
}

fn at(step: u64, lr: f64) -> Step {
    Step { step, lr, weight_decay: 0.01, grad_scale: 1.0, betas: None }
}

/// Normal numbers that depend on `name` alone.
fn normal(name: &str, len: usize) -> Vec<f32> {
    let stream = Stream::new(1, name);
    (0..len as u64).map(|i| stream.normal(i) as f32).collect()
}

fn gradient(step: u64, len: usize) -> Vec<f32> {
    normal(&format!("grad {step}"), len)
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

struct Run {
    param: Tensor,
    states: Vec<Tensor>,
}

/// `steps` steps from [`normal`] weights along [`gradient`]s.
fn run(queue: &Queue, rule: &dyn Optimizer, shape: Shape, moments: Moments, steps: u64, lr: f64) -> Run {
    let len = shape.elements();
    let param = queue.upload(MemoryKind::Weights, shape, &normal("weight", len)).unwrap();
    let states: Vec<Tensor> = rule.states(shape).iter().map(|state| state.allocate(queue, moments).unwrap()).collect();
    for step in 1..=steps {
        let grad = &queue.upload(MemoryKind::Gradients, shape, &gradient(step, len)).unwrap();
        let shard = Shard { param: &param, grad, states: &states, compute: None, first: 0, key: [7, step as u32] };
        rule.step(queue, &shard, &at(step, lr)).unwrap();
    }
    Run { param, states }
}

fn assert_close(what: &str, got: &[f32], want: &[f64], bound: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((f64::from(*got) - want).abs() <= bound * (1.0 + want.abs()), "{what}[{i}]: got {got}, want {want}");
    }
}

/// Six steps of an element-wise rule with a decay of 0.01 against its formula: (step, weight, gradient, states) to weight.
fn assert_follows(rule: &dyn Optimizer, lr: f64, formula: impl Fn(i32, f64, f64, &mut [f64; 3]) -> f64) {
    let (queue, len) = (queue(1), 300);
    let got = run(&queue, rule, [len].into(), Moments::F32, 6, lr);
    let (mut weights, mut states) = (wide(&normal("weight", len)), vec![[0.0; 3]; len]);
    for step in 1..=6 {
        for ((p, g), states) in weights.iter_mut().zip(wide(&gradient(step, len))).zip(&mut states) {
            *p = formula(step as i32, *p, g, states);
        }
    }
    assert_close(rule.name(), &queue.read(&got.param).unwrap(), &weights, 2e-6);
}

#[test]
fn settings_that_pytorch_s_numbers_do_not_cover_agree_with_f64() {
    let sgd = Sgd { momentum: 0.9, dampening: 0.25, nesterov: false };
    assert_follows(&sgd, 0.05, |step, p, g, s| {
        let g = g + 0.01 * p;
        s[0] = if step == 1 { g } else { 0.9 * s[0] + 0.75 * g };
        p - 0.05 * s[0]
    });
    let adam = AdamW { bias_correction: false, ..ADAMW };
    assert_follows(&adam, 0.01, |_, p, g, s| {
        (s[0], s[1]) = (0.9 * s[0] + 0.1 * g, 0.999 * s[1] + 0.001 * g * g);
        p * (1.0 - 1e-4) - 0.01 * s[0] / (s[1].sqrt() + 1e-8)
    });
    let adagrad = Adagrad { lr_decay: 0.1, initial_accumulator_value: 0.5, eps: 1e-10 };
    assert_follows(&adagrad, 0.05, |step, p, g, s| {
        let g = g + 0.01 * p;
        s[0] += if step == 1 { 0.5 } else { 0.0 } + g * g;
        p - 0.05 / (1.0 + 0.1 * f64::from(step - 1)) * g / (s[0].sqrt() + 1e-10)
    });
    for (momentum, centered) in [(0.0, true), (0.8, false)] {
        let rms = RmsProp { alpha: 0.9, eps: 1e-4, momentum, centered };
        assert_follows(&rms, 0.01, |_, p, g, s| {
            let g = g + 0.01 * p;
            s[0] = 0.9 * s[0] + 0.1 * g * g;
            s[1] = if centered { 0.9 * s[1] + 0.1 * g } else { 0.0 };
            s[2] = momentum * s[2] + g / ((s[0] - s[1] * s[1]).sqrt() + 1e-4);
            p - 0.01 * s[2]
        });
    }
    // Long enough for both forms of RAdam: its variance is tractable from the sixth step on.
    let radam = RAdam { betas: [0.9, 0.999], eps: 1e-8, decoupled_weight_decay: true };
    assert_follows(&radam, 0.01, |t, p, g, s| {
        (s[0], s[1]) = (0.9 * s[0] + 0.1 * g, 0.999 * s[1] + 0.001 * g * g);
        let (rest, longest, m) = (1.0 - 0.999f64.powi(t), 1999.0, s[0] / (1.0 - 0.9f64.powi(t)));
        let rho = longest - 2.0 * f64::from(t) * 0.999f64.powi(t) / rest;
        let ratio = (rho - 4.0) * (rho - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * rho);
        let step = if rho > 5.0 { m * (ratio * rest).sqrt() / (s[1].sqrt() + 1e-8) } else { m };
        p * (1.0 - 1e-4) - 0.01 * step
    });
    let nadam = NAdam { betas: [0.9, 0.999], eps: 1e-8, momentum_decay: 4e-3, decoupled_weight_decay: true };
    assert_follows(&nadam, 0.01, |t, p, g, s| {
        let momentum = |t: i32| 0.9 * (1.0 - 0.5 * 0.96f64.powf(f64::from(t) * 4e-3));
        let product: f64 = (1..=t).map(momentum).product();
        (s[0], s[1]) = (0.9 * s[0] + 0.1 * g, 0.999 * s[1] + 0.001 * g * g);
        let denom = (s[1] / (1.0 - 0.999f64.powi(t))).sqrt() + 1e-8;
        let next = momentum(t + 1);
        let step = (1.0 - momentum(t)) / (1.0 - product) * g + next / (1.0 - product * next) * s[0];
        p * (1.0 - 1e-4) - 0.01 * step / denom
    });
}

#[test]
fn five_steps_of_lamb_agree_with_f64() {
    let (queue, len) = (queue(1), 15);
    let rule = Lamb { betas: [0.9, 0.999], eps: 1e-8, bias_correction: true, min_coeff: 0.01, max_coeff: 10.0 };
    let got = run(&queue, &rule, [3, 5].into(), Moments::F32, 5, 0.02);
    let (mut p, mut m, mut v) = (wide(&normal("weight", len)), vec![0.0; len], vec![0.0; len]);
    for step in 1..=5 {
        let g = wide(&gradient(step, len));
        for i in 0..len {
            m[i] = 0.9 * m[i] + 0.1 * g[i];
            v[i] = 0.999 * v[i] + 0.001 * g[i] * g[i];
        }
        let u: Vec<f64> = (0..len).map(|i| m[i] / (v[i].sqrt() + 1e-8) + 0.01 * p[i]).collect();
        let rate = 0.02 * (1.0 - 0.999f64.powi(step as i32)).sqrt() / (1.0 - 0.9f64.powi(step as i32));
        let trust = (norm(&p) / norm(&u)).clamp(0.01, 10.0);
        p.iter_mut().zip(&u).for_each(|(p, u)| *p -= rate * trust * u);
    }
    assert_close("Lamb", &queue.read(&got.param).unwrap(), &p, 1e-6);
}

#[test]
fn five_steps_of_adafactor_agree_with_f64_on_a_matrix() {
    let (queue, rows, columns) = (queue(1), 3, 5);
    let len = rows * columns;
    let rule = Adafactor { beta2_decay: -0.8, eps: [None; 2], d: 1.0 };
    assert_eq!(rule.granularity(), Granularity::Matrix);
    let got = run(&queue, &rule, [rows, columns].into(), Moments::F32, 5, 0.02);
    let (mut p, mut row, mut column) = (wide(&normal("weight", len)), vec![0.0; rows], vec![0.0; columns]);
    for step in 1..=5 {
        let g = wide(&gradient(step, len));
        let entering = (step as f64).powf(-0.8);
        for (i, row) in row.iter_mut().enumerate() {
            let mean = (0..columns).map(|j| g[i * columns + j].powi(2)).sum::<f64>() / columns as f64;
            *row += entering * (mean - *row);
        }
        for (j, column) in column.iter_mut().enumerate() {
            let mean = (0..rows).map(|i| g[i * columns + j].powi(2)).sum::<f64>() / rows as f64;
            *column += entering * (mean - *column);
        }
        let mean = row.iter().sum::<f64>() / rows as f64;
        let u: Vec<f64> = (0..len).map(|at| g[at] / (row[at / columns] * column[at % columns] / mean).sqrt()).collect();
        let root_mean = |x: &[f64]| norm(x) / (len as f64).sqrt();
        let rate = root_mean(&p).max(1e-3) * 0.02f64.min(1.0 / (step as f64).sqrt()) / root_mean(&u).max(1.0);
        p.iter_mut().zip(&u).for_each(|(p, u)| *p = *p * (1.0 - 0.02 * 0.01) - rate * u);
    }
    assert_close("Adafactor", &queue.read(&got.param).unwrap(), &p, 1e-6);
}

/// The authors' own form, which keeps y and z alone; the average comes out of the two.
#[test]
fn ten_steps_of_schedule_free_adamw_agree_with_the_authors_form_in_f64() {
    let (queue, len) = (queue(1), 12);
    let rule = ScheduleFree { betas: [0.9, 0.999], eps: 1e-8, warmup_steps: 4 };
    let got = run(&queue, &rule, [len].into(), Moments::F32, 10, 0.02);
    let mut y = wide(&normal("weight", len));
    let (mut z, mut v, mut weight_sum) = (y.clone(), vec![0.0; len], 0.0);
    for step in 1..=10 {
        let g = wide(&gradient(step, len));
        let lr = 0.02 * (step as f64 / 4.0).min(1.0);
        weight_sum += lr * lr;
        let share = lr * lr / weight_sum;
        for i in 0..len {
            v[i] = 0.999 * v[i] + 0.001 * g[i] * g[i];
            let u = g[i] / ((v[i] / (1.0 - 0.999f64.powi(step as i32))).sqrt() + 1e-8) + 0.01 * y[i];
            y[i] += share * (z[i] - y[i]) + lr * (0.9 * (1.0 - share) - 1.0) * u;
            z[i] -= lr * u;
        }
    }
    let x: Vec<f64> = (0..len).map(|i| y[i] + (1.0 - 1.0 / 0.9) * (z[i] - y[i])).collect();
    assert_close("y", &queue.read(&got.param).unwrap(), &y, 2e-6);
    let place = rule.states([len].into()).iter().position(|state| state.name == AVERAGE).expect("an average");
    assert_close("x", &queue.read(&got.states[place]).unwrap(), &x, 2e-6);
}

/// The step of a first update with a rate of 1 and no decay is the orthogonalised gradient. The polynomial brings singular
/// values between 0.6 and 1.3, so that the product with its own transpose has them squared on its diagonal.
#[test]
fn muon_steps_along_a_matrix_whose_singular_values_are_near_one_whatever_side_is_longer() {
    let queue = queue(2);
    for (rows, columns) in [(8, 8), (5, 40), (40, 5)] {
        let rule = Muon { momentum: 0.95, nesterov: true, ns_steps: 5, adjust_lr_fn: AdjustLr::Original };
        let len = rows * columns;
        let param = queue.zeros(MemoryKind::Weights, tensor::DType::F32, [rows, columns]).unwrap();
        let grad = &queue.upload(MemoryKind::Gradients, [rows, columns], &gradient(1, len)).unwrap();
        let states = [queue.zeros(MemoryKind::Optimizer, tensor::DType::F32, [rows, columns]).unwrap()];
        let shard = Shard { param: &param, grad, states: &states, compute: None, first: 0, key: [0; 2] };
        let at = Step { weight_decay: 0.0, ..at(1, 1.0) };
        rule.step(&queue, &shard, &at).unwrap();
        let factor = (rows as f64 / columns as f64).max(1.0);
        let x = wide(&queue.read(&param).unwrap());
        let side = rows.min(columns);
        let element = |i: usize, k: usize| if rows <= columns { x[i * columns + k] } else { x[k * columns + i] };
        let mut trace = 0.0;
        for i in 0..side {
            let square = (0..len / side).map(|k| element(i, k).powi(2)).sum::<f64>() / factor;
            assert!((0.36..1.7).contains(&square), "{rows} x {columns}: row {i} has the squared norm {square}");
            trace += square;
        }
        let mean = trace / side as f64;
        assert!((0.5..1.4).contains(&mean), "{rows} x {columns}: mean squared singular value {mean}");
    }
}

/// Under a bf16 copy of the weights products read bf16. PyTorch's own orthogonalisation in bf16 is 1.3 to 1.7 % from its f32
/// one at these shapes.
#[test]
fn muon_in_bf16_steps_where_f32_does_within_2_percent_with_the_same_bits_on_any_number_of_threads() {
    let rule = Muon { momentum: 0.95, nesterov: true, ns_steps: 5, adjust_lr_fn: AdjustLr::Original };
    for (rows, columns) in [(64, 64), (48, 160), (160, 48)] {
        let shape = [rows, columns];
        let step = |threads: usize, has_copy: bool| {
            let queue = queue(threads);
            let zeros = |dtype| queue.zeros(MemoryKind::Weights, dtype, shape).unwrap();
            let (param, copy) = (zeros(tensor::DType::F32), zeros(tensor::DType::BF16));
            let grad = &queue.upload(MemoryKind::Gradients, shape, &normal("gradient", rows * columns)).unwrap();
            let states = [zeros(tensor::DType::F32)];
            let compute = has_copy.then_some(&copy);
            let shard = Shard { param: &param, grad, states: &states, compute, first: 0, key: [0; 2] };
            rule.step(&queue, &shard, &Step { weight_decay: 0.0, ..at(1, 1.0) }).unwrap();
            (queue.read::<f32>(&param).unwrap(), queue.read_f32(&copy).unwrap())
        };
        let (exact, _) = step(1, false);
        let [(one, copy), (three, _)] = [step(1, true), step(3, true)];
        assert!(one == three, "{shape:?}: other bits on three threads");
        let off: Vec<f64> = one.iter().zip(&exact).map(|(a, b)| f64::from(a - b)).collect();
        let share = norm(&off) / norm(&wide(&exact));
        assert!((1e-5..0.02).contains(&share), "{shape:?}: {share} of the step from f32's");
        let copied = one.iter().zip(&copy).all(|(wide, copy)| (wide - copy).abs() <= wide.abs() / 256.0);
        assert!(copied, "{shape:?}: the copy is not the weights' own");
    }
}

#[test]
fn moments_in_fewer_bits_go_where_f32_goes_and_are_the_same_on_any_number_of_threads() {
    // Lion steps by signs: where a direction is within its rounding of 0, a whole step turns around. With a share f of such
    // steps the way is off by 2 sqrt(f); f is near a thousandth in bf16, a hundredth in 8 bits.
    let rules: [(&dyn Optimizer, f64, [f64; 2]); 3] = [
        (&ADAMW, 0.02, [0.02, 0.1]),
        (&AdamW { amsgrad: true, ..ADAMW }, 0.02, [0.02, 0.1]),
        (&Lion { betas: [0.9, 0.99] }, 0.002, [0.07, 0.2]),
    ];
    let shape = Shape::from([40_000]);
    for (rule, lr, bounds) in rules {
        let (name, steps) = (rule.name(), 20);
        let exact = run(&queue(1), rule, shape, Moments::F32, steps, lr);
        let exact = queue(1).read::<f32>(&exact.param).unwrap();
        for (moments, bound) in [Moments::Bf16, Moments::Int8].into_iter().zip(bounds) {
            let ones = [1, 3].map(|threads| {
                let queue = queue(threads);
                queue.read::<f32>(&run(&queue, rule, shape, moments, steps, lr).param).unwrap()
            });
            assert!(ones[0] == ones[1], "{name} {moments:?}: other bits on three threads");
            let start = normal("weight", shape.elements());
            let moved = |to: &[f32]| wide(&to.iter().zip(&start).map(|(to, from)| to - from).collect::<Vec<_>>());
            let off: Vec<f64> = moved(&ones[0]).iter().zip(moved(&exact)).map(|(a, b)| a - b).collect();
            let share = norm(&off) / norm(&moved(&exact));
            assert!(share < bound, "{name} {moments:?}: {share} of the way from f32's");
            assert!(share > 0.0, "{name} {moments:?} is not f32");
        }
    }
}

#[test]
fn what_is_read_from_a_state_and_written_back_is_the_same_state_in_every_format() {
    let (queue, shape) = (queue(1), Shape::from([5000]));
    for moments in [Moments::F32, Moments::Bf16, Moments::Int8] {
        let trained = run(&queue, &ADAMW, shape, moments, 3, 0.01);
        for (state, tensor) in ADAMW.states(shape).iter().zip(&trained.states) {
            let values = state.read(&queue, tensor).unwrap();
            let copy = state.allocate(&queue, moments).unwrap();
            state.write(&queue, &copy, &values).unwrap();
            assert_eq!(copy.dtype(), tensor.dtype());
            match tensor.dtype() {
                tensor::DType::U32 => {
                    assert!(queue.read::<u32>(&copy).unwrap() == queue.read::<u32>(tensor).unwrap(), "{moments:?}");
                }
                _ => assert!(queue.read_f32(&copy).unwrap() == queue.read_f32(tensor).unwrap(), "{moments:?}"),
            }
        }
    }
}

#[test]
fn a_moment_takes_the_bytes_that_its_format_says() {
    let queue = queue(1);
    for (moments, bytes) in [(Moments::F32, 4.0), (Moments::Bf16, 2.0), (Moments::Int8, 65.0 / 64.0)] {
        let state = optim::State::moments(&["exp_avg"], [256 * 1024].into())[0];
        let tensor = state.allocate(&queue, moments).unwrap();
        let held = tensor.shape().elements() * tensor.dtype().size();
        assert_eq!(held as f64, bytes * 256.0 * 1024.0, "{moments:?}");
    }
}

#[test]
fn the_average_moves_towards_the_weights_by_what_the_decay_leaves() {
    let queue = queue(1);
    let average = queue.upload(MemoryKind::Optimizer, [3], &[0.0f32, 1.0, -2.0]).unwrap();
    let weights = queue.upload(MemoryKind::Weights, [3], &[1.0f32, 1.0, 2.0]).unwrap();
    optim::average(&queue, &average, &weights, 0.75).unwrap();
    assert_eq!(queue.read::<f32>(&average).unwrap(), [0.25, 1.0, -1.0]);
}

/// A weight after `steps` steps of one element along `gradient`.
fn after(rule: &dyn Optimizer, gradient: f32, moments: Moments, steps: u64) -> f32 {
    let (queue, shape) = (queue(1), Shape::from([1]));
    let param = queue.upload(MemoryKind::Weights, shape, &[0.5f32]).unwrap();
    let states: Vec<Tensor> = rule.states(shape).iter().map(|state| state.allocate(&queue, moments).unwrap()).collect();
    let grad = &queue.upload(MemoryKind::Gradients, shape, &[gradient]).unwrap();
    for step in 1..=steps {
        let shard = Shard { param: &param, grad, states: &states, compute: None, first: 0, key: [7, step as u32] };
        rule.step(&queue, &shard, &at(step, 1e-4)).unwrap();
    }
    queue.read::<f32>(&param).unwrap()[0]
}

#[test]
fn a_gradient_that_is_no_number_shows_in_the_weight() {
    let sgd = Sgd { momentum: 0.0, dampening: 0.0, nesterov: false };
    let rules: [&dyn Optimizer; 3] = [&Lion { betas: [0.9, 0.99] }, &ADAMW, &sgd];
    for rule in rules {
        assert!(after(rule, f32::NAN, Moments::F32, 1).is_nan(), "{}", rule.name());
    }
    assert_eq!(after(&Lion { betas: [0.9, 0.99] }, 0.0, Moments::F32, 1), 0.5 * (1.0 - 1e-4 * 0.01) as f32);
}

#[test]
fn a_variance_that_rounding_makes_negative_is_none() {
    let centered = RmsProp { alpha: 0.9, eps: 1e-8, momentum: 0.0, centered: true };
    assert!(after(&centered, 1.0, Moments::Bf16, 200).is_finite());
}
