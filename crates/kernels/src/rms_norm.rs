//! RMSNorm over the last axis: `y = x / sqrt(mean(x^2) + eps) * (weight_offset + weight)`.
//!
//! Source: Zhang & Sennrich 2019, arXiv:1910.07467. Rounding follows Transformers: with offset 0 (Llama) the
//! normalised row is rounded to the storage format before it meets the weight; with another offset (Gemma: 1) all is
//! f32 and rounded once.
//!
//! Backward, with `xhat = x inv_rms` and `g = dy (weight_offset + weight)`:
//! `dx = inv_rms (g - xhat mean(g xhat))`, `dweight = sum dy xhat` over the rows. The rounding of the normalised row
//! is passed over, as automatic differentiation does.

use crate::isa::multiversion;
use crate::lanes::sum;
use crate::rows::{ColumnSums, for_rows, rows, rows_per_sum, rows_per_task};
use crate::{Cpu, Element};

/// Normalises each row of `x` `[N, D]` into `y`; `weight` is `[D]`. Writes each row's `1 / sqrt(mean(x^2) + eps)` to
/// `inv_rms` `[N]`, which [`backward`] takes.
pub fn forward<T: Element>(
    cpu: &Cpu,
    x: &[T],
    weight: &[T],
    weight_offset: f32,
    eps: f32,
    y: &mut [T],
    inv_rms: &mut [f32],
) {
    let (width, num_rows) = (weight.len(), inv_rms.len());
    assert!(width > 0, "rms_norm::forward: weight");
    assert!(x.len() == num_rows * width && y.len() == x.len(), "rms_norm::forward: x and y");
    let outputs = (rows(y, width), rows(inv_rms, 1));
    for_rows(cpu, num_rows, rows_per_task(width), outputs, |range, (y, inv_rms)| {
        let x = &x[range.start * width..range.end * width];
        forward_rows(cpu.isa, x, weight, weight_offset, eps, y, inv_rms);
    });
}

multiversion! {
    fn forward_rows<T: Element>(
        x: &[T], weight: &[T], weight_offset: f32, eps: f32, y: &mut [T], inv_rms: &mut [f32],
    ) {
        let width = weight.len();
        for ((x, y), inv_rms) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)).zip(inv_rms) {
            let squares = sum([x], |[x]| x * x);
            let r = 1.0 / (squares / width as f32 + eps).sqrt();
            let terms = y.iter_mut().zip(x).zip(weight);
            if weight_offset == 0.0 {
                terms.for_each(|((y, x), w)| *y = T::from_f32(T::from_f32(x.to_f32() * r).to_f32() * w.to_f32()));
            } else {
                terms.for_each(|((y, x), w)| *y = T::from_f32(x.to_f32() * r * (weight_offset + w.to_f32())));
            }
            *inv_rms = r;
        }
    }
}

/// Writes the gradient of `x` to `dx` and that of `weight` to `dweight` `[D]`, or adds the latter where `accumulate`
/// is set. `x` and `inv_rms` are those of [`forward`].
#[allow(clippy::too_many_arguments, reason = "five inputs and two outputs")]
pub fn backward<T: Element>(
    cpu: &Cpu,
    x: &[T],
    weight: &[T],
    weight_offset: f32,
    inv_rms: &[f32],
    dy: &[T],
    dx: &mut [T],
    dweight: &mut [f32],
    accumulate: bool,
) {
    let (width, num_rows) = (weight.len(), inv_rms.len());
    assert!(width > 0 && x.len() == num_rows * width, "rms_norm::backward: weight, inv_rms and x");
    assert!(dy.len() == x.len() && dx.len() == x.len(), "rms_norm::backward: dy and dx");
    let rows_per_task = rows_per_sum(width);
    let mut dweight_sums = ColumnSums::new(num_rows, rows_per_task, width);
    let outputs = (rows(dx, width), dweight_sums.cut());
    for_rows(cpu, num_rows, rows_per_task, outputs, |range, (dx, dweight)| {
        let elements = range.start * width..range.end * width;
        let (x, dy) = (&x[elements.clone()], &dy[elements]);
        backward_rows(cpu.isa, x, weight, weight_offset, &inv_rms[range], dy, dx, dweight);
    });
    dweight_sums.finish(cpu, dweight, accumulate);
}

multiversion! {
    fn backward_rows<T: Element>(
        x: &[T], weight: &[T], weight_offset: f32, inv_rms: &[f32], dy: &[T], dx: &mut [T], dweight: &mut [f32],
    ) {
        let width = weight.len();
        let inputs = x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(inv_rms);
        for (((x, dy), &r), dx) in inputs.zip(dx.chunks_exact_mut(width)) {
            let g_xhat = sum([x, dy, weight], |[x, dy, w]| dy * (weight_offset + w) * (x * r)) / width as f32;
            for ((((dx, dweight), x), dy), w) in dx.iter_mut().zip(dweight.iter_mut()).zip(x).zip(dy).zip(weight) {
                let xhat = x.to_f32() * r;
                *dx = T::from_f32(r * (dy.to_f32() * (weight_offset + w.to_f32()) - xhat * g_xhat));
                *dweight += dy.to_f32() * xhat;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16;
    use crate::testing::*;

    const EPS: f32 = 1e-6;

    fn reference(x: &[f64], weight: &[f64], offset: f64) -> Vec<f64> {
        let width = weight.len();
        let normalise = |row: &[f64]| {
            let inv_rms = 1.0 / (dot(row, row) / width as f64 + f64::from(EPS)).sqrt();
            (0..width).map(|j| row[j] * inv_rms * (offset + weight[j])).collect::<Vec<_>>()
        };
        x.chunks(width).flat_map(normalise).collect()
    }

    fn run<T: Element>(cpu: &Cpu, x: &[T], weight: &[T], offset: f32, dy: &[T]) -> (Vec<T>, Vec<T>, Vec<f32>) {
        let (mut y, mut dx) = (vec![T::ZERO; x.len()], vec![T::ZERO; x.len()]);
        let (mut inv_rms, mut dweight) = (vec![0.0; x.len() / weight.len()], vec![1.0; weight.len()]);
        forward(cpu, x, weight, offset, EPS, &mut y, &mut inv_rms);
        backward(cpu, x, weight, offset, &inv_rms, dy, &mut dx, &mut dweight, false);
        (y, dx, dweight)
    }

    fn agrees_with_f64<T: Element>(num_rows: usize, width: usize, offset: f32) {
        let (x, dy) = (elements::<T>(1, num_rows * width), elements::<T>(2, num_rows * width));
        let weight = elements::<T>(3, width);
        let got = run(&Cpu::single(), &x, &weight, offset, &dy);
        let (x, dy, weight, offset) = (to_f64(&x), to_f64(&dy), to_f64(&weight), f64::from(offset));
        // The inner rounding of Llama's form counts once more, relative to the result.
        let inner = if offset == 0.0 { 1.01 * rounding::<T>() } else { 0.0 };
        assert_close("y", &got.0, &reference(&x, &weight, offset), 1e-6 + inner);
        assert_close("dx", &got.1, &gradient(&x, |x| dot(&reference(x, &weight, offset), &dy)), 2e-6);
        assert_close("dweight", &got.2, &gradient(&weight, |w| dot(&reference(&x, w, offset), &dy)), 2e-6);
    }

    #[test]
    fn forward_and_backward_agree_with_f64_and_its_finite_differences() {
        for (num_rows, width) in [(3, 5), (2, 16), (5, 33), (1, 70)] {
            for offset in [0.0, 1.0] {
                agrees_with_f64::<f32>(num_rows, width, offset);
                agrees_with_f64::<bf16>(num_rows, width, offset);
            }
        }
    }

    #[test]
    fn offset_0_rounds_the_normalised_row_before_the_weight_and_offset_1_rounds_once() {
        let (x, weight) = (elements::<bf16>(1, 64), elements::<bf16>(2, 64));
        let inv_rms = 1.0 / (dot(&to_f64(&x), &to_f64(&x)) / 64.0 + f64::from(EPS)).sqrt();
        let llama = |(x, w): (&bf16, &bf16)| bf16::from_f64(f64::from(bf16::from_f64(x.to_f64() * inv_rms) * *w));
        let gemma = |(x, w): (&bf16, &bf16)| bf16::from_f64(x.to_f64() * inv_rms * (1.0 + w.to_f64()));
        let cpu = Cpu::single();
        assert_eq!(run(&cpu, &x, &weight, 0.0, &x).0, x.iter().zip(&weight).map(llama).collect::<Vec<_>>());
        assert_eq!(run(&cpu, &x, &weight, 1.0, &x).0, x.iter().zip(&weight).map(gemma).collect::<Vec<_>>());
    }

    #[test]
    fn every_instruction_set_and_thread_count_gives_the_same_bits() {
        for (num_rows, width) in [(3, 1), (7, 19), (40, 1023), (2000, 31)] {
            let (x, dy) = (elements::<bf16>(1, num_rows * width), elements::<bf16>(2, num_rows * width));
            let weight = elements::<bf16>(3, width);
            assert_same_bits(|cpu| {
                let (y, dx, dweight) = run(cpu, &x, &weight, 0.0, &dy);
                y.iter().chain(&dx).map(|v| v.to_f32()).chain(dweight).collect::<Vec<f32>>()
            });
        }
    }

    #[test]
    fn accumulating_adds_to_the_gradient_of_the_weight() {
        let (x, weight) = (elements::<f32>(1, 12), elements::<f32>(2, 4));
        let (cpu, mut y, mut dx, mut inv_rms) = (Cpu::single(), vec![0.0; 12], vec![0.0; 12], vec![0.0; 3]);
        forward(&cpu, &x, &weight, 0.0, EPS, &mut y, &mut inv_rms);
        let once = run(&cpu, &x, &weight, 0.0, &x).2;
        let mut dweight = vec![2.0; 4];
        backward(&cpu, &x, &weight, 0.0, &inv_rms, &x, &mut dx, &mut dweight, true);
        assert_eq!(dweight, once.iter().map(|d| d + 2.0).collect::<Vec<_>>());
    }
}
