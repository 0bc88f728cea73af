//! LAMB: Adam whose step on each parameter is as long as the parameter's norm says, in two passes over it.
//!
//! Source: You et al. 2020, arXiv:1904.00962, Algorithm 2, in the form of DeepSpeed's FusedLamb: the bias corrections
//! multiply the rate instead of the moments, and the trust ratio is clamped.
//!
//! # Order of events
//! 1. The moments take in the gradient; norms of the parameter and of the update are summed by units of 4,096 elements.
//! 2. The update, made again from the moments, is added with the trust ratio in its rate. It is never stored.

use crate::elementwise::cast_part;
use crate::isa::multiversion;
use crate::lanes::sum;
use crate::reduce::UNIT;
use crate::rows::{ELEMENTS_PER_TASK, for_elements, for_rows, rows};
use crate::{Cpu, Element};

/// The numbers of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lamb {
    /// Learning rate after the schedule, with the bias corrections in it.
    pub step_size: f32,
    /// Decay of the first and of the second moment.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Weight decay, part of the update.
    pub weight_decay: f32,
    /// Lowest and highest trust ratio.
    pub coeff: [f32; 2],
    /// What the gradient is multiplied by first.
    pub grad_scale: f32,
}

/// One update of one whole parameter, in f32.
///
/// - `param` `[n]`: master weights; `compute` `[n]`: their rounded copy.
/// - `grad`, `exp_avg`, `exp_avg_sq` `[n]`; the moments are zero before the first step.
pub fn step<T: Element>(
    cpu: &Cpu,
    param: &mut [f32],
    grad: &[f32],
    exp_avg: &mut [f32],
    exp_avg_sq: &mut [f32],
    compute: Option<&mut [T]>,
    h: &Lamb,
) {
    let len = grad.len();
    assert!(param.len() == len && exp_avg.len() == len && exp_avg_sq.len() == len, "lamb::step: lengths");
    assert!(compute.as_ref().is_none_or(|compute| compute.len() == len), "lamb::step: length of compute");
    let units = len.div_ceil(UNIT);
    let mut squares = vec![[0.0f32; 2]; units];
    let moments = (UnitRows::new(exp_avg), UnitRows::new(exp_avg_sq), rows(&mut squares, 1));
    let weights = &*param;
    for_rows(cpu, units, ELEMENTS_PER_TASK / UNIT, moments, |range, (m, v, squares)| {
        let here = range.start * UNIT..len.min(range.end * UNIT);
        let (param, grad) = (&weights[here.clone()], &grad[here]);
        let units = param.chunks(UNIT).zip(grad.chunks(UNIT)).zip(m.chunks_mut(UNIT)).zip(v.chunks_mut(UNIT));
        for ((((param, grad), m), v), squares) in units.zip(squares) {
            *squares = moments_and_squares(cpu.isa, param, grad, m, v, h);
        }
    });
    let norm = |which: usize| squares.iter().map(|unit| f64::from(unit[which])).sum::<f64>().sqrt();
    let (of_param, of_update) = (norm(0), norm(1));
    let is_defined = of_param > 0.0 && of_update > 0.0;
    let trust = if is_defined { ((of_param / of_update) as f32).clamp(h.coeff[0], h.coeff[1]) } else { 1.0 };
    let rate = h.step_size * trust;
    let (m, v) = (&*exp_avg, &*exp_avg_sq);
    for_elements(cpu, len, (rows(param, 1), compute.map(|compute| rows(compute, 1))), |range, (param, compute)| {
        apply(cpu.isa, param, &m[range.clone()], &v[range], rate, h);
        if let Some(compute) = compute {
            cast_part(cpu.isa, param, compute);
        }
    });
}

/// A vector cut by units of [`UNIT`] elements, the last of which may be short.
struct UnitRows<'a> {
    parts: crate::pool::Parts<'a, f32>,
    len: usize,
}

impl<'a> UnitRows<'a> {
    fn new(x: &'a mut [f32]) -> Self {
        Self { len: x.len(), parts: crate::pool::Parts::new(x) }
    }
}

// SAFETY: units that do not meet are elements that do not meet.
unsafe impl<'a> crate::rows::Cut for UnitRows<'a> {
    type Part = &'a mut [f32];
    unsafe fn part(&self, units: std::ops::Range<usize>) -> &'a mut [f32] {
        // SAFETY: the promise of the caller; only the last unit is cut short.
        unsafe { self.parts.get(units.start * UNIT..self.len.min(units.end * UNIT)) }
    }
}

#[inline(always)]
fn direction(param: f32, m: f32, v: f32, h: &Lamb) -> f32 {
    m / (v.sqrt() + h.eps) + h.weight_decay * param
}

multiversion! {
    /// The squares of a unit of the parameter and of its update.
    fn moments_and_squares(param: &[f32], grad: &[f32], m: &mut [f32], v: &mut [f32], h: &Lamb) -> [f32; 2] {
        let (rest1, beta2, rest2) = ((1.0 - h.betas[0]) as f32, h.betas[1] as f32, (1.0 - h.betas[1]) as f32);
        for ((g, m), v) in grad.iter().zip(m.iter_mut()).zip(v.iter_mut()) {
            let g = g * h.grad_scale;
            *m += (g - *m) * rest1;
            *v = *v * beta2 + rest2 * g * g;
        }
        let of_update = sum([param, m, v], |[p, m, v]| {
            let u = direction(p, m, v, h);
            u * u
        });
        [sum([param], |[p]| p * p), of_update]
    }
}

multiversion! {
    fn apply(param: &mut [f32], m: &[f32], v: &[f32], rate: f32, h: &Lamb) {
        for ((p, m), v) in param.iter_mut().zip(m).zip(v) {
            *p -= rate * direction(*p, *m, *v, h);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16;
    use crate::testing::*;

    const H: Lamb = Lamb {
        step_size: 0.01,
        betas: [0.9, 0.999],
        eps: 1e-8,
        weight_decay: 0.01,
        coeff: [0.01, 10.0],
        grad_scale: 0.5,
    };

    #[test]
    fn a_step_agrees_with_f64_also_where_the_ratio_is_clamped_or_not_defined() {
        for (len, size, coeff) in [(5000, 1.0, [0.01, 10.0]), (300, 1.0, [0.01, 0.02]), (300, 0.0, [0.01, 10.0])] {
            let (before, grad): (Vec<f64>, _) = (values(1, len).iter().map(|p| p * size).collect(), values(2, len));
            let (m, v): (Vec<f64>, Vec<f64>) = values(3, len).iter().map(|m| (*m, m * m + 0.01)).unzip();
            let (mut param, mut got_m, mut got_v) = (round::<f32>(&before), round::<f32>(&m), round::<f32>(&v));
            let mut compute = vec![bf16::ZERO; len];
            let h = Lamb { coeff, ..H };
            step(&Cpu::single(), &mut param, &round::<f32>(&grad), &mut got_m, &mut got_v, Some(&mut compute), &h);
            let new = |i: usize| (0.9 * m[i] + 0.05 * grad[i], 0.999 * v[i] + 0.001 * (0.5 * grad[i]).powi(2));
            let u: Vec<f64> = (0..len).map(|i| new(i).0 / (new(i).1.sqrt() + 1e-8) + 0.01 * before[i]).collect();
            let ratio = (dot(&before, &before) / dot(&u, &u)).sqrt();
            let trust = if size == 0.0 { 1.0 } else { ratio.clamp(f64::from(coeff[0]), f64::from(coeff[1])) };
            let want: Vec<f64> = (0..len).map(|i| before[i] - 0.01 * trust * u[i]).collect();
            assert_close("param", &param, &want, 3e-7);
            assert!(param.iter().zip(&compute).all(|(p, c)| bf16::from_f32(*p) == *c));
        }
    }

    #[test]
    fn every_instruction_set_and_thread_count_gives_the_same_bits() {
        for len in [1, 17, 50_001] {
            let (param, grad, m) = (elements::<f32>(1, len), elements::<f32>(2, len), elements::<f32>(3, len));
            assert_same_bits(|cpu| {
                let (mut param, mut m) = (param.clone(), m.clone());
                let mut v: Vec<f32> = m.iter().map(|m| m * m).collect();
                step::<f32>(cpu, &mut param, &grad, &mut m, &mut v, None, &H);
                [param, m, v].concat()
            });
        }
    }
}
