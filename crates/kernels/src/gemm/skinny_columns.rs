//! A few rows against a weight whose n is contiguous: `y[m, n] = x[m, k] w[k, n]`, the product of generation with GPT-2's
//! `Conv1D` weights.
//!
//! As in [`super::skinny`] memory is the bound: a task takes a range of columns and streams its part of the weight once,
//! four rows of it at a time, into sums that stay in the nearest cache. The order of k is that of a plain loop in groups of
//! four, so the bits are the same on every instruction set and any number of threads.

use super::{GemmArgs, GemmInput};
use crate::Cpu;
use crate::element::Element;
use crate::isa::multiversion;

/// Columns of a task at most: 256 sums of 8 rows are 8 KiB.
const MAX_COLUMNS: usize = 256;

/// Rows of the weight that are taken at once.
const GROUP: usize = 4;

/// Below this many multiply-adds the product is done before another thread would wake.
const SERIAL_WORK: usize = 1 << 16;

/// Computes the product; `args` were checked, `a` is contiguous along k, `b` along n, and there is at least one element.
pub(super) fn run<T: GemmInput, C: Element>(cpu: &Cpu, args: GemmArgs<'_, T, C>) {
    let GemmArgs { m, n, k, a, b, c, bias, accumulate } = args;
    // At least eight tasks where there are columns for them.
    let columns = (n / 8).next_multiple_of(16).clamp(16, MAX_COLUMNS);
    let out = super::Out { data: c.data.as_mut_ptr() };
    let task = |index: usize| {
        let (first, end) = (index * columns, ((index + 1) * columns).min(n));
        let mut sums = [[0f32; MAX_COLUMNS]; super::skinny::MAX_ROWS];
        let line = |row: usize| &b.data[row * b.row_stride + first..row * b.row_stride + end];
        let x = |row: usize, at: usize| a.data[row * a.row_stride + at].to_f32();
        for start in (0..k).step_by(GROUP) {
            for (row, sums) in sums.iter_mut().enumerate().take(m) {
                let sums = &mut sums[..end - first];
                if start + GROUP <= k {
                    let (x, w) = (std::array::from_fn(|i| x(row, start + i)), std::array::from_fn(|i| line(start + i)));
                    add_group(cpu.isa, x, w, sums);
                } else {
                    (start..k).for_each(|at| add_line(cpu.isa, x(row, at), line(at), sums));
                }
            }
        }
        for (row, sums) in sums.iter().enumerate().take(m) {
            for (j, sum) in sums[..end - first].iter().enumerate() {
                // SAFETY: `check` found row `row` and column `first + j < n` inside C; tasks write different columns.
                let c = unsafe { &mut *out.at(row * c.row_stride + first + j) };
                let bias = bias.map_or(0.0, |bias| bias[first + j].to_f32());
                let held = if accumulate { c.to_f32() } else { 0.0 };
                *c = C::from_f32(sum + bias + held);
            }
        }
    };
    super::run_tasks(cpu, n.div_ceil(columns), m * n * k < SERIAL_WORK, task);
}

multiversion! {
    fn add_group<T: Element>(x: [f32; GROUP], w: [&[T]; GROUP], sums: &mut [f32]) {
        let len = sums.len();
        let w = w.map(|line| &line[..len]);
        for (j, sum) in sums.iter_mut().enumerate() {
            let low = x[0] * w[0][j].to_f32() + x[1] * w[1][j].to_f32();
            let high = x[2] * w[2][j].to_f32() + x[3] * w[3][j].to_f32();
            *sum += low + high;
        }
    }
}

multiversion! {
    fn add_line<T: Element>(x: f32, w: &[T], sums: &mut [f32]) {
        for (sum, w) in sums.iter_mut().zip(w) {
            *sum += x * w.to_f32();
        }
    }
}
