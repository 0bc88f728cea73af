//! AdamW and Adam in one pass over a shard: moments, update, decay and the rounded copy.
//!
//! Source: Loshchilov & Hutter 2019, arXiv:1711.05101, Algorithm 2, and Kingma & Ba 2015, arXiv:1412.6980, in the form
//! and the order of `torch.optim.AdamW`: the decay is multiplied by `lr`, and `eps` is added after the bias correction.

use crate::elementwise::cast_part;
use crate::isa::multiversion;
use crate::rows::{for_elements, rows};
use crate::{Cpu, Element};

/// Elements whose parameters are still in the first-level cache when they are rounded.
const BLOCK: usize = 1024;

/// The numbers of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate after the schedule.
    pub lr: f32,
    /// Decay of the first moment. f64, because `1 - beta` is what counts: in f32 it is off by 5e-5 for 0.999.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Weight decay.
    pub weight_decay: f32,
    /// Whether the decay shrinks the parameter by `lr * weight_decay` (AdamW) or joins the gradient (Adam with L2).
    pub decoupled: bool,
    /// `1 - beta1^t` at step `t`, counted from 1.
    pub bias_correction1: f32,
    /// `1 - beta2^t`
    pub bias_correction2: f32,
    /// What the gradient is multiplied by first: the factor of clipping and of loss scaling.
    pub grad_scale: f32,
}

/// One update of one shard, in f32.
///
/// - `param` `[n]`: master weights; `compute` `[n]`: their copy, rounded to the type that is computed with.
/// - `grad` `[n]`: before `grad_scale`.
/// - `exp_avg`, `exp_avg_sq` `[n]`: first and second moment, zero before the first step.
pub fn step<T: Element>(
    cpu: &Cpu,
    param: &mut [f32],
    grad: &[f32],
    exp_avg: &mut [f32],
    exp_avg_sq: &mut [f32],
    compute: Option<&mut [T]>,
    h: &AdamW,
) {
    let len = grad.len();
    assert!(param.len() == len && exp_avg.len() == len && exp_avg_sq.len() == len, "adamw::step: lengths");
    assert!(compute.as_ref().is_none_or(|compute| compute.len() == len), "adamw::step: length of compute");
    let outputs = (rows(param, 1), rows(exp_avg, 1), rows(exp_avg_sq, 1), compute.map(|compute| rows(compute, 1)));
    for_elements(cpu, len, outputs, |range, (param, exp_avg, exp_avg_sq, mut compute)| {
        for first in (0..param.len()).step_by(BLOCK) {
            let block = first..(first + BLOCK).min(param.len());
            let (param, grad) = (&mut param[block.clone()], &grad[range.clone()][block.clone()]);
            update(cpu.isa, param, grad, &mut exp_avg[block.clone()], &mut exp_avg_sq[block.clone()], h);
            if let Some(compute) = &mut compute {
                cast_part(cpu.isa, param, &mut compute[block]);
            }
        }
    });
}

multiversion! {
    fn update(param: &mut [f32], grad: &[f32], exp_avg: &mut [f32], exp_avg_sq: &mut [f32], h: &AdamW) {
        let (rest1, beta2, rest2) = ((1.0 - h.beta1) as f32, h.beta2 as f32, (1.0 - h.beta2) as f32);
        let (l2, keep) = if h.decoupled { (0.0, 1.0 - h.lr * h.weight_decay) } else { (h.weight_decay, 1.0) };
        let (step_size, root) = (h.lr / h.bias_correction1, h.bias_correction2.sqrt());
        let (grad_scale, eps) = (h.grad_scale, h.eps);
        for (((p, g), m), v) in param.iter_mut().zip(grad).zip(exp_avg).zip(exp_avg_sq) {
            let g = g * grad_scale + l2 * *p;
            *m += (g - *m) * rest1;
            *v = *v * beta2 + rest2 * g * g;
            let denom = v.sqrt() / root + eps;
            *p = *p * keep - step_size * *m / denom;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16;
    use crate::testing::*;

    fn rates(params: (f64, f64, f64, f64, f64), decoupled: bool, t: i32, grad_scale: f32) -> AdamW {
        let (lr, beta1, beta2, eps, weight_decay) = params;
        AdamW {
            lr: lr as f32,
            beta1,
            beta2,
            eps: eps as f32,
            weight_decay: weight_decay as f32,
            decoupled,
            bias_correction1: (1.0 - beta1.powi(t)) as f32,
            bias_correction2: (1.0 - beta2.powi(t)) as f32,
            grad_scale,
        }
    }

    /// The first four weights of `reference/optimizers.json` (PyTorch 2.15) after one, two and ten steps.
    #[test]
    fn ten_steps_match_pytorch_to_1e_6() {
        type Case = (&'static str, (f64, f64, f64, f64, f64), bool, [[f32; 4]; 3]);
        let cases: [Case; 3] = [
            (
                "Adam",
                (0.01, 0.9, 0.999, 1e-8, 0.0),
                false,
                [
                    [1.550_996_1, -0.303_428_9, -2.168_789_4, 0.578_431_25],
                    [1.554_951_3, -0.313_356_58, -2.159_386_4, 0.583_775_94],
                    [1.532_116_5, -0.359_611_78, -2.105_443_7, 0.603_848_5],
                ],
            ),
            (
                "Adam L2",
                (0.01, 0.8, 0.99, 1e-6, 0.1),
                false,
                [
                    [1.550_996_1, -0.303_428_86, -2.168_789_4, 0.578_431_25],
                    [1.550_743_5, -0.313_445_5, -2.159_049_8, 0.582_907_8],
                    [1.516_726_4, -0.356_431_48, -2.103_257, 0.596_068_5],
                ],
            ),
            (
                "AdamW",
                (0.01, 0.9, 0.95, 1e-8, 0.1),
                true,
                [
                    [1.549_455, -0.303_135_46, -2.166_610_7, 0.577_862_8],
                    [1.551_900_9, -0.312_715_65, -2.155_125_4, 0.582_694_1],
                    [1.516_704_1, -0.355_657_58, -2.082_708_8, 0.598_431_1],
                ],
            ),
        ];
        for (name, params, decoupled, after) in cases {
            let mut param = OPTIMIZER_WEIGHT.to_vec();
            let (mut m, mut v) = (vec![0.0; 4], vec![0.0; 4]);
            for (i, grad) in OPTIMIZER_GRADS.iter().enumerate() {
                // Halved and doubled back: grad_scale must be exact here.
                let halved = grad.map(|g| g * 0.5);
                let h = rates(params, decoupled, i as i32 + 1, 2.0);
                step::<f32>(&Cpu::single(), &mut param, &halved, &mut m, &mut v, None, &h);
                let want = match i {
                    0 | 1 => after[i],
                    9 => after[2],
                    _ => continue,
                };
                for (got, want) in param.iter().zip(want) {
                    assert!((got - want).abs() <= 1e-6 * want.abs(), "{name}, step {i}: got {got}, want {want}");
                }
            }
        }
    }

    #[test]
    fn the_copy_is_the_rounded_parameter() {
        let (mut param, grad) = (elements::<f32>(1, 5000), elements::<f32>(2, 5000));
        let (mut m, mut v, mut compute) = (vec![0.0; 5000], vec![0.0; 5000], vec![bf16::ZERO; 5000]);
        let h = rates((0.1, 0.9, 0.999, 1e-8, 0.01), true, 1, 1.0);
        step(&Cpu::single(), &mut param, &grad, &mut m, &mut v, Some(&mut compute), &h);
        assert!(param.iter().zip(&compute).all(|(p, c)| bf16::from_f32(*p) == *c));
    }

    #[test]
    fn a_step_agrees_with_f64() {
        let (before, grad) = (values(1, 300), values(2, 300));
        let (m, v): (Vec<f64>, Vec<f64>) = values(3, 300).iter().map(|m| (*m, m * m + 0.01)).unzip();
        for decoupled in [false, true] {
            let h = rates((0.01, 0.9, 0.999, 1e-8, 0.1), decoupled, 20, 0.3);
            let (mut param, mut got_m, mut got_v) = (round::<f32>(&before), round::<f32>(&m), round::<f32>(&v));
            step::<f32>(&Cpu::single(), &mut param, &round::<f32>(&grad), &mut got_m, &mut got_v, None, &h);
            let mut want = [vec![], vec![], vec![]];
            for i in 0..300 {
                let g = 0.3 * grad[i] + if decoupled { 0.0 } else { 0.1 * before[i] };
                let (m, v) = (0.9 * m[i] + 0.1 * g, 0.999 * v[i] + 0.001 * g * g);
                let decayed = if decoupled { before[i] * (1.0 - 0.001) } else { before[i] };
                let (m_hat, v_hat) = (m / (1.0 - 0.9f64.powi(20)), v / (1.0 - 0.999f64.powi(20)));
                want[0].push(decayed - 0.01 * m_hat / (v_hat.sqrt() + 1e-8));
                want[1].push(m);
                want[2].push(v);
            }
            assert_close("param", &param, &want[0], 2e-7);
            assert_close("exp_avg", &got_m, &want[1], 2e-7);
            assert_close("exp_avg_sq", &got_v, &want[2], 2e-7);
        }
    }

    #[test]
    fn every_instruction_set_and_thread_count_gives_the_same_bits() {
        let h = rates((0.01, 0.9, 0.999, 1e-8, 0.1), true, 3, 0.7);
        for len in (1..40).chain([50_001]) {
            let (param, grad, m) = (elements::<f32>(1, len), elements::<f32>(2, len), elements::<f32>(3, len));
            assert_same_bits(|cpu| {
                let (mut param, mut m, mut compute) = (param.clone(), m.clone(), vec![bf16::ZERO; len]);
                let mut v: Vec<f32> = m.iter().map(|m| m * m).collect();
                step(cpu, &mut param, &grad, &mut m, &mut v, Some(&mut compute), &h);
                let compute = compute.iter().map(|c| c.to_f32()).collect();
                [param, m, v, compute].concat()
            });
        }
    }
}
