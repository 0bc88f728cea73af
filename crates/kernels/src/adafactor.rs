//! Adafactor: a second moment that is kept as the means of its rows and columns, in three passes over the gradient.
//!
//! Source: Shazeer & Stern 2018, arXiv:1804.04235, Algorithms 4 and 5, in the form of `torch.optim.Adafactor`: no first
//! moment, the update clipped by its root mean square, the rate relative to the parameter's.
//!
//! # Order of events
//! 1. Squares of the gradient go into the means of rows and columns (of a vector: into its own second moment).
//! 2. The root mean squares of the parameter and of the update `grad / sqrt(estimate)` are summed, row by row.
//! 3. The update, made again, is added. It is never stored.

use crate::elementwise::cast_part;
use crate::isa::multiversion;
use crate::lanes::sum;
use crate::rows::{ColumnSums, for_rows, rows, rows_per_sum, rows_per_task};
use crate::{Cpu, Element};

/// The numbers of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adafactor {
    /// Rate before it is multiplied by the root mean square of the parameter.
    pub rate: f32,
    /// Share of the new squares in the means: `step ^ beta2_decay`.
    pub entering: f32,
    /// Floor of the root of the second moment, and of the root mean square of the parameter.
    pub eps: [f32; 2],
    /// Largest root mean square of the update.
    pub clip: f32,
    /// What the decay leaves of the parameter: `1 - lr * weight_decay`.
    pub keep: f32,
    /// What the gradient is multiplied by first.
    pub grad_scale: f32,
}

/// The second moment.
pub enum Squares<'a> {
    /// Of a matrix `[R, C]`: means of rows `[R]` and of columns `[C]`.
    Factored(&'a mut [f32], &'a mut [f32]),
    /// Of a vector, element by element.
    Whole(&'a mut [f32]),
}

/// One update of one whole parameter, in f32.
///
/// - `param`, `grad`: `[R, C]`, or a vector of `C` (`R` = 1); `compute`: the parameter's rounded copy.
/// - `squares`: zero before the first step.
pub fn step<T: Element>(
    cpu: &Cpu,
    param: &mut [f32],
    grad: &[f32],
    squares: Squares<'_>,
    compute: Option<&mut [T]>,
    h: &Adafactor,
) {
    assert!(param.len() == grad.len(), "adafactor::step: length of param");
    assert!(compute.as_ref().is_none_or(|compute| compute.len() == param.len()), "adafactor::step: length of compute");
    if grad.is_empty() {
        return;
    }
    match squares {
        Squares::Whole(squares) => {
            assert_eq!(squares.len(), grad.len(), "adafactor::step: length of the second moment");
            take_in(cpu.isa, grad, squares, h);
            finish(cpu, param, grad, grad.len(), &|_| (1.0, &*squares), compute, h);
        }
        Squares::Factored(row, column) => {
            let width = column.len();
            assert_eq!(row.len() * width, grad.len(), "adafactor::step: lengths of the means");
            means(cpu, grad, row, column, h);
            let mean = (row.iter().map(|&x| f64::from(x)).sum::<f64>() / row.len() as f64) as f32;
            let mean = mean.max(h.eps[0]);
            finish(cpu, param, grad, width, &|i| (row[i] / mean, &*column), compute, h);
        }
    }
}

/// The second moment of row `i` is the number times the vector.
type Estimate<'a> = dyn Fn(usize) -> (f32, &'a [f32]) + Sync + 'a;

/// Step 1 of a matrix.
fn means(cpu: &Cpu, grad: &[f32], row: &mut [f32], column: &mut [f32], h: &Adafactor) {
    let (num_rows, width, rows_per_task) = (row.len(), column.len(), rows_per_sum(column.len()));
    let mut sums = ColumnSums::new(num_rows, rows_per_task, width);
    for_rows(cpu, num_rows, rows_per_task, (rows(row, 1), sums.cut()), |range, (row, sums)| {
        let grad = &grad[range.start * width..range.end * width];
        for (row, grad) in row.iter_mut().zip(grad.chunks_exact(width)) {
            let mean = add_squares(cpu.isa, grad, sums, h.grad_scale) / width as f32;
            *row += (mean - *row) * h.entering;
        }
    });
    let mut sum = vec![0.0; width];
    sums.finish(cpu, &mut sum, false);
    for (column, sum) in column.iter_mut().zip(sum) {
        *column += (sum / num_rows as f32 - *column) * h.entering;
    }
}

/// Steps 2 and 3.
fn finish<T: Element>(
    cpu: &Cpu,
    param: &mut [f32],
    grad: &[f32],
    width: usize,
    estimate: &Estimate<'_>,
    compute: Option<&mut [T]>,
    h: &Adafactor,
) {
    let (num_rows, per_task) = (grad.len() / width, rows_per_task(width));
    let mut squares = vec![[0.0f32; 2]; num_rows];
    let weights = &*param;
    for_rows(cpu, num_rows, per_task, rows(&mut squares, 1), |range, squares| {
        for (i, squares) in range.zip(squares) {
            let here = i * width..(i + 1) * width;
            let (factor, column) = estimate(i);
            *squares = row_squares(cpu.isa, &weights[here.clone()], &grad[here], factor, column, h);
        }
    });
    let root_mean = |which: usize| {
        let sum = squares.iter().map(|row| f64::from(row[which])).sum::<f64>();
        (sum / grad.len() as f64).sqrt() as f32
    };
    let rate = root_mean(0).max(h.eps[1]) * h.rate / (root_mean(1) / h.clip).max(1.0);
    let outputs = (rows(param, width), compute.map(|compute| rows(compute, width)));
    for_rows(cpu, num_rows, per_task, outputs, |range, (param, mut compute)| {
        for (at, i) in range.enumerate() {
            let (factor, column) = estimate(i);
            let part = at * width..(at + 1) * width;
            let param = &mut param[part.clone()];
            apply(cpu.isa, param, &grad[i * width..(i + 1) * width], factor, column, rate, h);
            if let Some(compute) = &mut compute {
                cast_part(cpu.isa, param, &mut compute[part]);
            }
        }
    });
}

multiversion! {
    fn take_in(grad: &[f32], squares: &mut [f32], h: &Adafactor) {
        for (g, v) in grad.iter().zip(squares) {
            let g = g * h.grad_scale;
            *v += (g * g - *v) * h.entering;
        }
    }
}

multiversion! {
    /// Adds the squares of a row to those of its columns; their sum.
    fn add_squares(grad: &[f32], sums: &mut [f32], grad_scale: f32) -> f32 {
        for (sum, g) in sums.iter_mut().zip(grad) {
            let g = g * grad_scale;
            *sum += g * g;
        }
        sum([grad], |[g]| (g * grad_scale) * (g * grad_scale))
    }
}

#[inline(always)]
fn direction(grad: f32, estimate: f32, h: &Adafactor) -> f32 {
    grad * h.grad_scale / estimate.max(h.eps[0] * h.eps[0]).sqrt()
}

multiversion! {
    /// The squares of a row of the parameter and of its update.
    fn row_squares(param: &[f32], grad: &[f32], factor: f32, column: &[f32], h: &Adafactor) -> [f32; 2] {
        let of_update = sum([grad, column], |[g, v]| {
            let u = direction(g, factor * v, h);
            u * u
        });
        [sum([param], |[p]| p * p), of_update]
    }
}

multiversion! {
    fn apply(param: &mut [f32], grad: &[f32], factor: f32, column: &[f32], rate: f32, h: &Adafactor) {
        for ((p, g), v) in param.iter_mut().zip(grad).zip(column) {
            *p = *p * h.keep - rate * direction(*g, factor * v, h);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16;
    use crate::testing::*;

    const H: Adafactor =
        Adafactor { rate: 0.01, entering: 0.3, eps: [f32::EPSILON, 1e-3], clip: 1.0, keep: 0.999, grad_scale: 0.5 };

    /// The parameter after a step, from the second moment's estimate by element.
    fn want(before: &[f64], grad: &[f64], estimate: &[f64]) -> Vec<f64> {
        let u: Vec<f64> = grad.iter().zip(estimate).map(|(g, v)| 0.5 * g / v.max(1.4e-14).sqrt()).collect();
        let root_mean = |x: &[f64]| (dot(x, x) / x.len() as f64).sqrt();
        let rate = root_mean(before).max(1e-3) * 0.01 / root_mean(&u).max(1.0);
        before.iter().zip(&u).map(|(p, u)| p * 0.999 - rate * u).collect()
    }

    #[test]
    fn a_step_on_a_matrix_agrees_with_f64() {
        for (num_rows, width) in [(1, 1), (3, 4), (70, 33), (5, 5000)] {
            let len = num_rows * width;
            let (before, grad) = (values(1, len), values(2, len));
            let mut row: Vec<f64> = values(3, num_rows).iter().map(|x| x.abs()).collect();
            let mut column: Vec<f64> = values(4, width).iter().map(|x| x.abs()).collect();
            let (mut param, mut compute) = (round::<f32>(&before), vec![bf16::ZERO; len]);
            let (mut got_row, mut got_column) = (round::<f32>(&row), round::<f32>(&column));
            let squares = Squares::Factored(&mut got_row, &mut got_column);
            step(&Cpu::single(), &mut param, &round::<f32>(&grad), squares, Some(&mut compute), &H);
            let square = |i: usize, j: usize| (0.5 * grad[i * width + j]).powi(2);
            for (i, row) in row.iter_mut().enumerate() {
                *row += 0.3 * ((0..width).map(|j| square(i, j)).sum::<f64>() / width as f64 - *row);
            }
            for (j, column) in column.iter_mut().enumerate() {
                *column += 0.3 * ((0..num_rows).map(|i| square(i, j)).sum::<f64>() / num_rows as f64 - *column);
            }
            assert_close("row", &got_row, &row, 1e-6);
            assert_close("column", &got_column, &column, 1e-6);
            let mean = row.iter().sum::<f64>() / num_rows as f64;
            let estimate: Vec<f64> = (0..len).map(|at| row[at / width] * column[at % width] / mean).collect();
            assert_close("param", &param, &want(&before, &grad, &estimate), 1e-6);
            assert!(param.iter().zip(&compute).all(|(p, c)| bf16::from_f32(*p) == *c));
        }
    }

    #[test]
    fn a_step_on_a_vector_agrees_with_f64() {
        let (before, grad, old) = (values(1, 300), values(2, 300), values(3, 300));
        let (mut param, mut squares) = (round::<f32>(&before), old.iter().map(|x| x.abs() as f32).collect::<Vec<_>>());
        step::<f32>(&Cpu::single(), &mut param, &round::<f32>(&grad), Squares::Whole(&mut squares), None, &H);
        let estimate: Vec<f64> =
            old.iter().zip(&grad).map(|(v, g)| v.abs() + 0.3 * ((0.5 * g).powi(2) - v.abs())).collect();
        assert_close("param", &param, &want(&before, &grad, &estimate), 1e-6);
    }

    #[test]
    fn every_instruction_set_and_thread_count_gives_the_same_bits() {
        for (num_rows, width) in [(3, 17), (300, 129)] {
            let (param, grad) = (elements::<f32>(1, num_rows * width), elements::<f32>(2, num_rows * width));
            assert_same_bits(|cpu| {
                let (mut param, mut row, mut column) = (param.clone(), vec![0.0; num_rows], vec![0.0; width]);
                step::<f32>(cpu, &mut param, &grad, Squares::Factored(&mut row, &mut column), None, &H);
                [param, row, column].concat()
            });
        }
    }
}
