//! Ten steps of every optimizer that PyTorch has, against PyTorch 2.15.
//!
//! `fixtures/optimizers.json` is `reference/optimizers.json`: a weight [3, 4] and a bias `[4]`, their gradients in ten steps,
//! and where each optimizer brings them, written with nine digits. Lion is held to its paper.

use optim::{
    Adadelta, Adagrad, AdamW, Adamax, AdjustLr, Lion, Moments, Muon, NAdam, Optimizer, RAdam, RmsProp, Sgd, Shard, Step,
};
use serde_json::Value;
use tensor::{DType, Isa, MemoryKind, Queue, Shape, Tensor, cpu};

fn reference() -> Value {
    serde_json::from_str(include_str!("fixtures/optimizers.json")).expect("the fixture is JSON")
}

fn numbers(list: &Value) -> Vec<f32> {
    list.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number") as f32).collect()
}

/// The rule of a case, its rate and its decay.
fn rule(case: &Value) -> (Box<dyn Optimizer>, f64, f64) {
    let params = &case["params"];
    let number = |key: &str, default: f64| params[key].as_f64().unwrap_or(default);
    let flag = |key: &str| params[key].as_bool().unwrap_or(false);
    let pair = |default: [f64; 2]| match params["betas"].as_array() {
        Some(betas) => [0, 1].map(|i| betas[i].as_f64().expect("a number")),
        None => default,
    };
    let (betas, eps) = (pair([0.9, 0.999]), number("eps", 1e-8));
    let kind = case["type"].as_str().expect("a name");
    let rule: Box<dyn Optimizer> = match kind {
        "SGD" => Box::new(Sgd { momentum: number("momentum", 0.0), dampening: 0.0, nesterov: flag("nesterov") }),
        "Adam" | "AdamW" => {
            Box::new(AdamW { betas, eps, decoupled: kind == "AdamW", bias_correction: true, amsgrad: flag("amsgrad") })
        }
        "Adagrad" => Box::new(Adagrad { lr_decay: 0.0, initial_accumulator_value: 0.0, eps }),
        "RMSprop" => Box::new(RmsProp {
            alpha: number("alpha", 0.99),
            eps,
            momentum: number("momentum", 0.0),
            centered: flag("centered"),
        }),
        "Adadelta" => Box::new(Adadelta { rho: number("rho", 0.9), eps }),
        "Adamax" => Box::new(Adamax { betas, eps }),
        "NAdam" => Box::new(NAdam { betas, eps, momentum_decay: 4e-3, decoupled_weight_decay: false }),
        "RAdam" => Box::new(RAdam { betas, eps, decoupled_weight_decay: false }),
        "Lion" => Box::new(Lion { betas }),
        "Muon" => Box::new(Muon {
            momentum: number("momentum", 0.95),
            nesterov: flag("nesterov"),
            ns_steps: 5,
            adjust_lr_fn: AdjustLr::Original,
        }),
        other => panic!("no optimizer is called {other}"),
    };
    (rule, number("lr", 0.0), number("weight_decay", 0.0))
}

/// A parameter with its states.
struct Trained {
    param: Tensor,
    states: Vec<Tensor>,
}

impl Trained {
    fn new(queue: &Queue, rule: &dyn Optimizer, shape: Shape, values: &[f32]) -> Self {
        let param = queue.upload(MemoryKind::Weights, shape, values).unwrap();
        let states = rule.states(shape).iter().map(|state| state.allocate(queue, Moments::F32).unwrap()).collect();
        Self { param, states }
    }

    /// Without a copy products read f32; Muon is the one rule that has products.
    fn step_in_f32(&self, queue: &Queue, rule: &dyn Optimizer, grad: &[f32], at: &Step) -> Vec<f32> {
        let grad = &queue.upload(MemoryKind::Gradients, self.param.shape(), grad).unwrap();
        let shard = Shard { param: &self.param, grad, states: &self.states, compute: None, first: 0, key: [0; 2] };
        rule.step(queue, &shard, at).unwrap();
        queue.read::<f32>(&self.param).unwrap()
    }

    fn step(&self, queue: &Queue, rule: &dyn Optimizer, grad: &[f32], at: &Step) -> Vec<f32> {
        let grad = &queue.upload(MemoryKind::Gradients, self.param.shape(), grad).unwrap();
        let compute = queue.alloc(MemoryKind::Weights, DType::BF16, self.param.shape()).unwrap();
        let shard =
            Shard { param: &self.param, grad, states: &self.states, compute: Some(&compute), first: 0, key: [0; 2] };
        rule.step(queue, &shard, at).unwrap();
        let after = queue.read::<f32>(&self.param).unwrap();
        let rounded: Vec<f32> = after.iter().map(|&x| tensor::bf16::from_f32(x).to_f32()).collect();
        assert_eq!(queue.read_f32(&compute).unwrap(), rounded, "the copy is the rounded parameter");
        after
    }
}

/// PyTorch orthogonalises in bf16 and rounds every result. In f32 the bound is a share of the length of the way that the
/// weights have come; where our products are in bf16 too, with other roundings, it is one of each weight.
const MUON_BOUND: f32 = 0.02;

fn distance(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt()
}

#[test]
fn ten_steps_of_every_optimizer_are_pytorch_s_within_a_millionth_and_muon_s_within_2_percent_of_its_path() {
    let (reference, queue) = (reference(), cpu::queue(1, false, Isa::detect()));
    let cases = reference["cases"].as_array().expect("a list");
    assert_eq!(cases.len(), 15);
    let mut failures = Vec::new();
    for case in cases {
        let ((rule, lr, weight_decay), name) = (rule(case), &case["name"]);
        for (part, shape) in [("weight", Shape::from([3, 4])), ("bias", Shape::from([4]))] {
            if case["after"][0][part].is_null() {
                continue;
            }
            let [trained, in_f32] =
                [(); 2].map(|()| Trained::new(&queue, rule.as_ref(), shape, &numbers(&reference[part])));
            for (i, after) in case["after"].as_array().expect("a list").iter().enumerate() {
                // Halved and doubled back: the factor on the gradient must be exact here.
                let halved: Vec<f32> = numbers(&reference["grads"][i][part]).iter().map(|g| g * 0.5).collect();
                let at = Step { step: i as u64 + 1, lr, weight_decay, grad_scale: 2.0, betas: None };
                let got = trained.step(&queue, rule.as_ref(), &halved, &at);
                let want = numbers(&after[part]);
                if case["type"] == "Muon" {
                    let exact = in_f32.step_in_f32(&queue, rule.as_ref(), &halved, &at);
                    let (off, path) = (distance(&exact, &want), distance(&numbers(&reference[part]), &want));
                    if off > MUON_BOUND * path {
                        failures.push(format!("{name} {part}, step {i}: {} of its path off", off / path));
                    }
                    for (got, want) in got.iter().zip(want) {
                        if (got - want).abs() > MUON_BOUND * want.abs() {
                            failures.push(format!("{name} {part} in bf16, step {i}: got {got}, want {want}"));
                        }
                    }
                    continue;
                }
                for (got, want) in got.iter().zip(want) {
                    if (got - want).abs() > 1e-6 * want.abs() {
                        failures.push(format!("{name} {part}, step {i}: got {got}, want {want}"));
                    }
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
