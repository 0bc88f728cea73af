//! Stochastic gradient descent with momentum in one pass over a shard, in the form of `torch.optim.SGD`.
//!
//! Source: Sutskever et al. 2013 with PyTorch's differences: the learning rate multiplies the whole update, and the
//! first momentum is the gradient itself, without dampening.

use crate::elementwise::cast_part;
use crate::isa::multiversion;
use crate::rows::{for_elements, rows};
use crate::{Cpu, Element};

/// The numbers of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    /// Learning rate after the schedule.
    pub lr: f32,
    /// Share of the momentum that is kept.
    pub momentum: f32,
    /// Share of the gradient that does not enter the momentum.
    pub dampening: f32,
    /// Step along the gradient plus the kept share of the new momentum.
    pub nesterov: bool,
    /// Added to the gradient, times the parameter.
    pub weight_decay: f32,
    /// The momentum is not there yet: it becomes the gradient.
    pub first_step: bool,
    /// What the gradient is multiplied by first: the factor of clipping and of loss scaling.
    pub grad_scale: f32,
}

/// One update of one shard, in f32.
///
/// - `param` `[n]`: master weights; `compute` `[n]`: their copy, rounded to the type that is computed with.
/// - `grad` `[n]`: before `grad_scale`.
/// - `momentum` `[n]`: without it, `h.momentum`, `h.dampening` and `h.nesterov` are not looked at.
pub fn step<T: Element>(
    cpu: &Cpu,
    param: &mut [f32],
    grad: &[f32],
    momentum: Option<&mut [f32]>,
    compute: Option<&mut [T]>,
    h: &Sgd,
) {
    let len = grad.len();
    assert_eq!(param.len(), len, "sgd::step: length of param");
    assert!(momentum.as_ref().is_none_or(|momentum| momentum.len() == len), "sgd::step: length of momentum");
    assert!(compute.as_ref().is_none_or(|compute| compute.len() == len), "sgd::step: length of compute");
    let outputs = (rows(param, 1), momentum.map(|m| rows(m, 1)), compute.map(|compute| rows(compute, 1)));
    for_elements(cpu, len, outputs, |range, (param, momentum, compute)| {
        match momentum {
            None => update(cpu.isa, param, &grad[range], h),
            Some(momentum) => update_with_momentum(cpu.isa, param, &grad[range], momentum, h),
        }
        if let Some(compute) = compute {
            cast_part(cpu.isa, param, compute);
        }
    });
}

multiversion! {
    fn update(param: &mut [f32], grad: &[f32], h: &Sgd) {
        for (p, g) in param.iter_mut().zip(grad) {
            *p -= h.lr * (g * h.grad_scale + h.weight_decay * *p);
        }
    }
}

multiversion! {
    fn update_with_momentum(param: &mut [f32], grad: &[f32], momentum: &mut [f32], h: &Sgd) {
        let (kept, entering) = if h.first_step { (0.0, 1.0) } else { (h.momentum, 1.0 - h.dampening) };
        // The step is along `from_grad * g + from_momentum * m`.
        let (from_grad, from_momentum) = if h.nesterov { (1.0, h.momentum) } else { (0.0, 1.0) };
        for ((p, g), m) in param.iter_mut().zip(grad).zip(momentum) {
            let g = g * h.grad_scale + h.weight_decay * *p;
            *m = *m * kept + g * entering;
            *p -= h.lr * (g * from_grad + *m * from_momentum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16;
    use crate::testing::*;

    const PLAIN: Sgd = Sgd {
        lr: 0.1,
        momentum: 0.0,
        dampening: 0.0,
        nesterov: false,
        weight_decay: 0.0,
        first_step: false,
        grad_scale: 1.0,
    };
    const NESTEROV: Sgd = Sgd { lr: 0.05, momentum: 0.9, nesterov: true, weight_decay: 0.01, ..PLAIN };

    /// The first four weights of `reference/optimizers.json` (PyTorch 2.15) after one, two and ten steps.
    #[test]
    fn ten_steps_match_pytorch_to_1e_6() {
        let plain = [
            [1.597_627_9, -0.330_740_36, -2.089_589_8, 0.719_342_05],
            [1.578_428_4, -0.385_017_5, -1.867_711_9, 0.693_443_6],
            [1.382_731_6, -0.739_227_06, -1.579_167_5, 0.841_456],
        ];
        let nesterov = [
            [1.593_332_3, -0.328_596_03, -2.091_98, 0.711_256_5],
            [1.595_890_9, -0.394_839_44, -1.842_200_4, 0.746_865_9],
            [1.031_890_8, -1.120_824_1, -0.354_464_6, 1.190_608_9],
        ];
        for (h, after) in [(PLAIN, plain), (NESTEROV, nesterov)] {
            let (mut param, mut momentum) = (OPTIMIZER_WEIGHT.to_vec(), vec![f32::MAX; 4]);
            for (i, grad) in OPTIMIZER_GRADS.iter().enumerate() {
                let momentum = (h.momentum != 0.0).then_some(&mut momentum[..]);
                step::<f32>(&Cpu::single(), &mut param, grad, momentum, None, &Sgd { first_step: i == 0, ..h });
                let want: [f32; 4] = match i {
                    0 | 1 => after[i],
                    9 => after[2],
                    _ => continue,
                };
                for (got, want) in param.iter().zip(want) {
                    assert!((got - want).abs() <= 1e-6 * want.abs(), "step {i}: got {got}, want {want}");
                }
            }
        }
    }

    #[test]
    fn dampening_and_grad_scale_agree_with_f64() {
        let h = Sgd { nesterov: false, dampening: 0.25, grad_scale: 0.5, ..NESTEROV };
        let (before, grad, old) = (values(1, 300), values(2, 300), values(3, 300));
        let (mut param, mut momentum) = (round::<f32>(&before), round::<f32>(&old));
        let mut compute = vec![bf16::ZERO; 300];
        step(&Cpu::single(), &mut param, &round::<f32>(&grad), Some(&mut momentum), Some(&mut compute), &h);
        let new = |i: usize| 0.9 * old[i] + 0.75 * (0.5 * grad[i] + 0.01 * before[i]);
        assert_close("momentum", &momentum, &(0..300).map(new).collect::<Vec<_>>(), 3e-7);
        assert_close("param", &param, &(0..300).map(|i| before[i] - 0.05 * new(i)).collect::<Vec<_>>(), 3e-7);
        assert!(param.iter().zip(&compute).all(|(p, c)| bf16::from_f32(*p) == *c));
    }

    #[test]
    fn every_instruction_set_and_thread_count_gives_the_same_bits() {
        for len in (1..40).chain([50_001]) {
            let (param, grad, momentum) = (elements::<f32>(1, len), elements::<f32>(2, len), elements::<f32>(3, len));
            assert_same_bits(|cpu| {
                let (mut param, mut momentum, mut compute) = (param.clone(), momentum.clone(), vec![bf16::ZERO; len]);
                step(cpu, &mut param, &grad, None, Some(&mut compute), &PLAIN);
                step(cpu, &mut param, &grad, Some(&mut momentum), Some(&mut compute), &NESTEROV);
                [param, momentum, compute.iter().map(|c| c.to_f32()).collect()].concat()
            });
        }
    }
}
