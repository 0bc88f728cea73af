//! LayerNorm over the last axis: `y = (x - mean) / sqrt(var + eps) * weight + bias`, with the biased variance.
//!
//! Source: Ba, Kiros & Hinton 2016, arXiv:1607.06450. Mean and variance are two passes over the row, which is in the
//! cache by then: the one-pass formula loses the variance of rows with a large mean.
//!
//! Backward, with `xhat = (x - mean) inv_std` and `g = dy * weight`:
//! `dx = inv_std (g - mean(g) - xhat mean(g xhat))`, `dweight = sum dy xhat`, `dbias = sum dy` over the rows.

use crate::isa::multiversion;
use crate::lanes::sum;
use crate::rows::{ColumnSums, for_rows, rows, rows_per_sum, rows_per_task};
use crate::{Cpu, Element};

/// Normalises each row of `x` `[N, D]` into `y`; `weight` and `bias` are `[D]`. Writes each row's mean and
/// `1 / sqrt(var + eps)` to `mean` and `inv_std` `[N]`, which [`backward`] takes.
#[allow(clippy::too_many_arguments, reason = "three inputs and three outputs")]
pub fn forward<T: Element>(
    cpu: &Cpu,
    x: &[T],
    weight: &[T],
    bias: &[T],
    eps: f32,
    y: &mut [T],
    mean: &mut [f32],
    inv_std: &mut [f32],
) {
    let (width, num_rows) = (weight.len(), mean.len());
    assert!(width > 0 && bias.len() == width, "layer_norm::forward: weight and bias");
    assert!(x.len() == num_rows * width && y.len() == x.len(), "layer_norm::forward: x and y");
    assert!(inv_std.len() == num_rows, "layer_norm::forward: mean and inv_std");
    let outputs = (rows(y, width), rows(mean, 1), rows(inv_std, 1));
    for_rows(cpu, num_rows, rows_per_task(width), outputs, |range, (y, mean, inv_std)| {
        let x = &x[range.start * width..range.end * width];
        forward_rows(cpu.isa, x, weight, bias, eps, y, mean, inv_std);
    });
}

multiversion! {
    fn forward_rows<T: Element>(
        x: &[T], weight: &[T], bias: &[T], eps: f32, y: &mut [T], mean: &mut [f32], inv_std: &mut [f32],
    ) {
        let width = weight.len();
        let rows = x.chunks_exact(width).zip(y.chunks_exact_mut(width)).zip(mean.iter_mut().zip(inv_std));
        for ((x, y), (mean, inv_std)) in rows {
            let m = sum([x], |[x]| x) / width as f32;
            let squares = sum([x], |[x]| (x - m) * (x - m));
            let s = 1.0 / (squares / width as f32 + eps).sqrt();
            for (((y, x), w), b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
                *y = T::from_f32((x.to_f32() - m) * s * w.to_f32() + b.to_f32());
            }
            *mean = m;
            *inv_std = s;
        }
    }
}

/// Writes the gradient of `x` to `dx` and that of `weight` and `bias` to `dweight` and `dbias` `[D]`, or adds the
/// latter two where `accumulate` is set. `x`, `mean`, `inv_std` are those of [`forward`].
#[allow(clippy::too_many_arguments, reason = "five inputs and three outputs")]
pub fn backward<T: Element>(
    cpu: &Cpu,
    x: &[T],
    weight: &[T],
    mean: &[f32],
    inv_std: &[f32],
    dy: &[T],
    dx: &mut [T],
    dweight: &mut [f32],
    dbias: &mut [f32],
    accumulate: bool,
) {
    let (width, num_rows) = (weight.len(), mean.len());
    assert!(width > 0 && inv_std.len() == num_rows, "layer_norm::backward: weight, mean and inv_std");
    assert!(x.len() == num_rows * width, "layer_norm::backward: x");
    assert!(dy.len() == x.len() && dx.len() == x.len(), "layer_norm::backward: dy and dx");
    let rows_per_task = rows_per_sum(width);
    let mut dweight_sums = ColumnSums::new(num_rows, rows_per_task, width);
    let mut dbias_sums = ColumnSums::new(num_rows, rows_per_task, width);
    let outputs = (rows(dx, width), dweight_sums.cut(), dbias_sums.cut());
    for_rows(cpu, num_rows, rows_per_task, outputs, |range, (dx, dweight, dbias)| {
        let elements = range.start * width..range.end * width;
        let (x, dy) = (&x[elements.clone()], &dy[elements]);
        backward_rows(cpu.isa, x, weight, &mean[range.clone()], &inv_std[range], dy, dx, dweight, dbias);
    });
    dweight_sums.finish(cpu, dweight, accumulate);
    dbias_sums.finish(cpu, dbias, accumulate);
}

multiversion! {
    fn backward_rows<T: Element>(
        x: &[T], weight: &[T], mean: &[f32], inv_std: &[f32], dy: &[T],
        dx: &mut [T], dweight: &mut [f32], dbias: &mut [f32],
    ) {
        let width = weight.len();
        let inputs = x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(mean.iter().zip(inv_std));
        for (((x, dy), (&m, &s)), dx) in inputs.zip(dx.chunks_exact_mut(width)) {
            let g = sum([dy, weight], |[dy, w]| dy * w) / width as f32;
            let g_xhat = sum([x, dy, weight], |[x, dy, w]| dy * w * ((x - m) * s)) / width as f32;
            let outputs = dx.iter_mut().zip(dweight.iter_mut()).zip(dbias.iter_mut());
            for (((((dx, dweight), dbias), x), dy), w) in outputs.zip(x).zip(dy).zip(weight) {
                let (xhat, dy) = ((x.to_f32() - m) * s, dy.to_f32());
                *dx = T::from_f32(s * (dy * w.to_f32() - g - xhat * g_xhat));
                *dweight += dy * xhat;
                *dbias += dy;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16;
    use crate::testing::*;

    const EPS: f32 = 1e-5;

    fn reference(x: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
        let width = weight.len();
        let normalise = |row: &[f64]| {
            let mean = row.iter().sum::<f64>() / width as f64;
            let var = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
            let inv_std = 1.0 / (var + f64::from(EPS)).sqrt();
            (0..width).map(|j| (row[j] - mean) * inv_std * weight[j] + bias[j]).collect::<Vec<_>>()
        };
        x.chunks(width).flat_map(normalise).collect()
    }

    struct Run<T> {
        y: Vec<T>,
        dx: Vec<T>,
        dweight: Vec<f32>,
        dbias: Vec<f32>,
    }

    fn run<T: Element>(cpu: &Cpu, num_rows: usize, x: &[T], weight: &[T], bias: &[T], dy: &[T]) -> Run<T> {
        let width = weight.len();
        let (mut y, mut dx) = (vec![T::ZERO; x.len()], vec![T::ZERO; x.len()]);
        let (mut mean, mut inv_std) = (vec![0.0; num_rows], vec![0.0; num_rows]);
        let (mut dweight, mut dbias) = (vec![1.0; width], vec![1.0; width]);
        forward(cpu, x, weight, bias, EPS, &mut y, &mut mean, &mut inv_std);
        backward(cpu, x, weight, &mean, &inv_std, dy, &mut dx, &mut dweight, &mut dbias, false);
        Run { y, dx, dweight, dbias }
    }

    fn agrees_with_f64<T: Element>(num_rows: usize, width: usize) {
        let (x, dy) = (elements::<T>(1, num_rows * width), elements::<T>(2, num_rows * width));
        let (weight, bias) = (elements::<T>(3, width), elements::<T>(4, width));
        let got = run(&Cpu::single(), num_rows, &x, &weight, &bias, &dy);
        let (x, dy, weight, bias) = (to_f64(&x), to_f64(&dy), to_f64(&weight), to_f64(&bias));
        assert_close("y", &got.y, &reference(&x, &weight, &bias), 2e-6);
        let dx = gradient(&x, |x| dot(&reference(x, &weight, &bias), &dy));
        let dweight = gradient(&weight, |weight| dot(&reference(&x, weight, &bias), &dy));
        let dbias = gradient(&bias, |bias| dot(&reference(&x, &weight, bias), &dy));
        assert_close("dx", &got.dx, &dx, 5e-6);
        assert_close("dweight", &got.dweight, &dweight, 2e-6);
        assert_close("dbias", &got.dbias, &dbias, 2e-6);
    }

    #[test]
    fn forward_and_backward_agree_with_f64_and_its_finite_differences() {
        for (num_rows, width) in [(3, 5), (2, 16), (5, 33), (1, 70)] {
            agrees_with_f64::<f32>(num_rows, width);
            agrees_with_f64::<bf16>(num_rows, width);
        }
    }

    #[test]
    fn every_instruction_set_and_thread_count_gives_the_same_bits() {
        for (num_rows, width) in [(3, 1), (7, 19), (40, 1023), (2000, 31)] {
            let (x, dy) = (elements::<bf16>(1, num_rows * width), elements::<bf16>(2, num_rows * width));
            let (weight, bias) = (elements::<bf16>(3, width), elements::<bf16>(4, width));
            assert_same_bits(|cpu| {
                let got = run(cpu, num_rows, &x, &weight, &bias, &dy);
                let floats = got.y.iter().chain(&got.dx).map(|v| v.to_f32());
                floats.chain(got.dweight).chain(got.dbias).collect::<Vec<f32>>()
            });
        }
    }

    #[test]
    fn a_large_mean_does_not_drown_the_variance() {
        let x: Vec<f32> = values(5, 257).iter().map(|v| (1000.0 + v) as f32).collect();
        let (weight, bias) = (vec![1.0; 257], vec![0.0; 257]);
        let got = run(&Cpu::single(), 1, &x, &weight, &bias, &x);
        assert_close("y", &got.y, &reference(&to_f64(&x), &to_f64(&weight), &to_f64(&bias)), 1e-4);
    }

    #[test]
    fn accumulating_adds_to_the_gradients_of_weight_and_bias_and_overwrites_dx() {
        let (x, weight) = (elements::<f32>(1, 12), elements::<f32>(2, 4));
        let once = run(&Cpu::single(), 3, &x, &weight, &weight, &x);
        let (mut y, mut dx, mut mean, mut inv_std) = (vec![0.0; 12], vec![9.0; 12], vec![0.0; 3], vec![0.0; 3]);
        let (mut dweight, mut dbias) = (vec![2.0; 4], vec![3.0; 4]);
        let cpu = Cpu::single();
        forward(&cpu, &x, &weight, &weight, EPS, &mut y, &mut mean, &mut inv_std);
        backward(&cpu, &x, &weight, &mean, &inv_std, &x, &mut dx, &mut dweight, &mut dbias, true);
        assert_eq!(dx, once.dx);
        assert!((0..4).all(|j| dweight[j] == once.dweight[j] + 2.0 && dbias[j] == once.dbias[j] + 3.0));
    }
}
