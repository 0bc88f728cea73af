//! Sums over many elements: squares for the norm of the gradient, columns for the gradient of a bias.

use crate::isa::multiversion;
use crate::lanes::sum;
use crate::rows::{ColumnSums, ELEMENTS_PER_TASK, for_rows, rows, rows_per_sum};
use crate::{Cpu, Element};

/// Elements that share one partial sum: the unit in which shards are cut, so that a norm does not depend on the cut.
pub const UNIT: usize = 4096;

/// The sum of squares of each unit of `x`; `partial` has one entry for each [`UNIT`] elements, the last unit may be
/// short. An entry is not finite exactly where its unit holds a value that is not, or where the sum overflows f32.
pub fn sum_squares(cpu: &Cpu, x: &[f32], partial: &mut [f32]) {
    assert_eq!(partial.len(), x.len().div_ceil(UNIT), "reduce::sum_squares: one partial for each unit");
    for_rows(cpu, partial.len(), ELEMENTS_PER_TASK / UNIT, rows(partial, 1), |range, partial| {
        let x = &x[range.start * UNIT..x.len().min(range.end * UNIT)];
        for (partial, unit) in partial.iter_mut().zip(x.chunks(UNIT)) {
            *partial = unit_sum(cpu.isa, unit);
        }
    });
}

multiversion! {
    fn unit_sum(unit: &[f32]) -> f32 {
        sum([unit], |[x]| x * x)
    }
}

/// `out = sum over the rows of x`, or `out += ...` where `accumulate` is set. `x` is `[N, out.len()]`, its rows
/// `row_stride` apart (columns of a wider matrix), and ends with the last element of the last row.
pub fn column_sum<T: Element>(cpu: &Cpu, x: &[T], row_stride: usize, out: &mut [f32], accumulate: bool) {
    let width = out.len();
    assert!(width > 0 && row_stride >= width, "reduce::column_sum: rows of {width} that lie {row_stride} apart");
    assert!(x.is_empty() || x.len() % row_stride == width % row_stride, "reduce::column_sum: x");
    let (num_rows, rows_per_task) = (x.len().div_ceil(row_stride), rows_per_sum(width));
    let mut columns = ColumnSums::new(num_rows, rows_per_task, width);
    for_rows(cpu, num_rows, rows_per_task, columns.cut(), |range, sum| {
        let end = ((range.end - 1) * row_stride + width).max(range.start * row_stride);
        add_rows(cpu.isa, &x[range.start * row_stride..end], row_stride, sum);
    });
    columns.finish(cpu, out, accumulate);
}

multiversion! {
    /// `sum += sum over the rows of x`; a row is as long as `sum`.
    pub(crate) fn add_rows<T: Element>(x: &[T], row_stride: usize, sum: &mut [f32]) {
        for row in x.chunks(row_stride) {
            for (sum, x) in sum.iter_mut().zip(row) {
                *sum += x.to_f32();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16;
    use crate::testing::*;

    fn squares(cpu: &Cpu, x: &[f32]) -> Vec<f32> {
        let mut partial = vec![0.0; x.len().div_ceil(UNIT)];
        sum_squares(cpu, x, &mut partial);
        partial
    }

    #[test]
    fn sums_of_squares_agree_with_f64_to_3e_7_relative_also_in_a_short_last_unit() {
        for len in [0, 1, 15, UNIT - 1, UNIT, 5 * UNIT + 1, 9 * UNIT + 77] {
            let x = elements::<f32>(1, len);
            let want: Vec<f64> = to_f64(&x).chunks(UNIT).map(|unit| dot(unit, unit)).collect();
            for (got, want) in squares(&Cpu::single(), &x).iter().zip(want) {
                assert!((f64::from(*got) - want).abs() <= 3e-7 * want, "length {len}: got {got}, want {want}");
            }
        }
    }

    #[test]
    fn a_unit_is_not_finite_exactly_where_it_holds_such_a_value_or_overflows() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 2e19] {
            let mut x = vec![1e15; 4 * UNIT];
            x[2 * UNIT + 17] = bad;
            let finite: Vec<bool> = squares(&Cpu::single(), &x).iter().map(|p| p.is_finite()).collect();
            assert_eq!(finite, [true, true, false, true], "{bad}");
        }
    }

    #[test]
    fn column_sums_agree_with_f64_and_add_to_what_is_there() {
        fn agrees<T: Element>(num_rows: usize, width: usize) {
            let x = elements::<T>(1, num_rows * width);
            let (mut written, mut added) = (vec![9.0; width], vec![1.0; width]);
            column_sum(&Cpu::single(), &x, width, &mut written, false);
            column_sum(&Cpu::single(), &x, width, &mut added, true);
            let x = to_f64(&x);
            let want: Vec<f64> = (0..width).map(|j| x.iter().skip(j).step_by(width).sum()).collect();
            assert_close("written", &written, &want, 1e-5);
            assert_close("added", &added, &want.iter().map(|w| w + 1.0).collect::<Vec<_>>(), 1e-5);
        }
        for (num_rows, width) in [(0, 3), (1, 1), (1000, 5), (100, 1300)] {
            agrees::<f32>(num_rows, width);
            agrees::<bf16>(num_rows, width);
        }
    }

    #[test]
    fn columns_of_a_wider_matrix_are_summed_alone() {
        let x = elements::<f32>(1, 7 * 100);
        let mut got = vec![0.0; 3];
        column_sum(&Cpu::single(), &x[2..6 * 100 + 5], 100, &mut got, false);
        let want: Vec<f64> = (2..5).map(|j| to_f64(&x).iter().skip(j).step_by(100).sum()).collect();
        assert_close("columns 2 to 4", &got, &want, 1e-5);
    }

    #[test]
    fn every_instruction_set_and_thread_count_gives_the_same_bits() {
        for len in (1..40).chain([9 * UNIT + 77]) {
            let x = elements::<f32>(1, len);
            assert_same_bits(|cpu| squares(cpu, &x));
        }
        for (num_rows, width) in [(3, 5), (5000, 19), (100, 1300)] {
            let x = elements::<bf16>(1, num_rows * width);
            assert_same_bits(|cpu| {
                let mut out = vec![0.5; width];
                column_sum(cpu, &x, width, &mut out, true);
                out
            });
        }
    }
}
