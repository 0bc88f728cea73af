//! The end of a residual branch in one pass: `out = x + dropout(y + bias)`.
//!
//! Backward: the gradient of `x` is that of `out` as it is; `dy` is it under the same mask; `dbias` sums `dy` over the
//! rows (`dy` as it is stored).

use crate::dropout::{Dropout, apply_block, keep};
use crate::elementwise::add_part;
use crate::isa::multiversion;
use crate::reduce::add_rows;
use crate::rows::{ColumnSums, for_rows, rows, rows_per_sum, rows_per_task};
use crate::{Cpu, Element};

/// `x`, `y`, `out` are `[N, D]`, `bias` is `[D]`, and `dropout` has `N` rows.
pub fn forward<T: Element>(
    cpu: &Cpu,
    x: &[T],
    y: &[T],
    bias: Option<&[T]>,
    dropout: Option<&Dropout<'_>>,
    out: &mut [T],
) {
    assert!(x.len() == out.len() && y.len() == out.len(), "residual::forward: lengths of x and y");
    let width = row_width("residual::forward", x.len(), bias.map(<[T]>::len), dropout);
    for_rows(cpu, x.len() / width, rows_per_task(width), rows(out, width), |range, out| {
        let elements = range.start * width..range.end * width;
        let (x, y) = (&x[elements.clone()], &y[elements]);
        match (bias, dropout.map(|dropout| dropout.rows(range))) {
            (None, None) => add_part(cpu.isa, x, y, out),
            (Some(bias), None) => add_biased(cpu.isa, x, y, bias, out),
            (None, Some(mask)) => mask.for_blocks(cpu.isa, width, |elements, _, factors| {
                add_masked(cpu.isa, &x[elements.clone()], &y[elements.clone()], factors, &mut out[elements]);
            }),
            (Some(bias), Some(mask)) => mask.for_blocks(cpu.isa, width, |elements, columns, factors| {
                let (x, y) = (&x[elements.clone()], &y[elements.clone()]);
                add_biased_masked(cpu.isa, x, y, &bias[columns], factors, &mut out[elements]);
            }),
        }
    });
}

multiversion! {
    fn add_biased<T: Element>(x: &[T], y: &[T], bias: &[T], out: &mut [T]) {
        let width = bias.len();
        for ((x, y), out) in x.chunks_exact(width).zip(y.chunks_exact(width)).zip(out.chunks_exact_mut(width)) {
            for (((out, x), y), bias) in out.iter_mut().zip(x).zip(y).zip(bias) {
                *out = T::from_f32(x.to_f32() + (y.to_f32() + bias.to_f32()));
            }
        }
    }
}

multiversion! {
    fn add_masked<T: Element>(x: &[T], y: &[T], factors: &[f32], out: &mut [T]) {
        for (((out, x), y), &factor) in out.iter_mut().zip(x).zip(y).zip(factors) {
            *out = T::from_f32(x.to_f32() + keep(factor, y.to_f32()));
        }
    }
}

multiversion! {
    fn add_biased_masked<T: Element>(x: &[T], y: &[T], bias: &[T], factors: &[f32], out: &mut [T]) {
        for ((((out, x), y), bias), &factor) in out.iter_mut().zip(x).zip(y).zip(bias).zip(factors) {
            *out = T::from_f32(x.to_f32() + keep(factor, y.to_f32() + bias.to_f32()));
        }
    }
}

/// `D`, if the bias or the dropout tell; without both, rows do not matter and each element is one.
fn row_width(kernel: &str, len: usize, bias_len: Option<usize>, dropout: Option<&Dropout<'_>>) -> usize {
    let width = bias_len.or(dropout.map(|dropout| len / dropout.samples.len().max(1))).unwrap_or(1).max(1);
    assert!(len.is_multiple_of(width), "{kernel}: {len} elements in rows of {width}");
    if let Some(dropout) = dropout {
        dropout.check(len / width);
    }
    width
}

/// `dout`, `dy` are `[N, D]`; writes `dy` and, if given, `dbias` `[D]`, or adds to `dbias` where `accumulate` is set.
/// `dropout` is that of [`forward`].
pub fn backward<T: Element>(
    cpu: &Cpu,
    dout: &[T],
    dropout: Option<&Dropout<'_>>,
    dy: &mut [T],
    dbias: Option<&mut [f32]>,
    accumulate: bool,
) {
    assert_eq!(dy.len(), dout.len(), "residual::backward: length of dy");
    let width = row_width("residual::backward", dout.len(), dbias.as_ref().map(|dbias| dbias.len()), dropout);
    let num_rows = dout.len() / width;
    let rows_per_task = rows_per_sum(width);
    let mut sums = dbias.is_some().then(|| ColumnSums::new(num_rows, rows_per_task, width));
    let outputs = (rows(dy, width), sums.as_mut().map(ColumnSums::cut));
    for_rows(cpu, num_rows, rows_per_task, outputs, |range, (dy, dbias)| {
        let dout = &dout[range.start * width..range.end * width];
        match dropout {
            None => dy.copy_from_slice(dout),
            Some(dropout) => dropout.rows(range).for_blocks(cpu.isa, width, |elements, _, factors| {
                apply_block(cpu.isa, &dout[elements.clone()], factors, &mut dy[elements]);
            }),
        }
        if let Some(dbias) = dbias {
            add_rows(cpu.isa, dy, width, dbias);
        }
    });
    if let (Some(sums), Some(dbias)) = (sums, dbias) {
        sums.finish(cpu, dbias, accumulate);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16;
    use crate::testing::*;

    struct Case {
        num_rows: usize,
        width: usize,
        samples: Vec<u32>,
        positions: Vec<u32>,
    }

    impl Case {
        fn new(num_rows: usize, width: usize) -> Self {
            let (samples, positions) = (0..num_rows as u32).map(|n| (n / 5, n % 5)).unzip();
            Self { num_rows, width, samples, positions }
        }

        fn dropout(&self) -> Dropout<'_> {
            let (samples, positions) = (&self.samples, &self.positions);
            Dropout { probability: 0.25, key: [3, 4], samples, positions, first_feature: 6 }
        }

        /// 0 or 4/3 for each element, by the dropout kernel, which has tests of its own.
        fn factors(&self, dropped: bool) -> Vec<f64> {
            let ones = vec![1.0f32; self.num_rows * self.width];
            let mut factors = ones.clone();
            if dropped {
                crate::dropout::apply(&Cpu::single(), &ones, self.width, &self.dropout(), &mut factors);
            }
            to_f64(&factors)
        }

        fn run<T: Element>(&self, cpu: &Cpu, biased: bool, dropped: bool) -> (Vec<T>, Vec<T>, Vec<f32>) {
            let (x, y, dout, bias) = self.inputs::<T>();
            let dropout = self.dropout();
            let dropout = dropped.then_some(&dropout);
            let (mut out, mut dy, mut dbias) = (x.clone(), x.clone(), vec![1.0; self.width]);
            forward(cpu, &x, &y, biased.then_some(&bias[..]), dropout, &mut out);
            backward(cpu, &dout, dropout, &mut dy, biased.then_some(&mut dbias[..]), false);
            (out, dy, dbias)
        }

        fn inputs<T: Element>(&self) -> (Vec<T>, Vec<T>, Vec<T>, Vec<T>) {
            let len = self.num_rows * self.width;
            (elements(1, len), elements(2, len), elements(3, len), elements(4, self.width))
        }
    }

    fn agrees_with_f64<T: Element>(case: &Case, biased: bool, dropped: bool) {
        let (x, y, dout, bias) = case.inputs::<T>();
        let (x, y, dout, mut bias) = (to_f64(&x), to_f64(&y), to_f64(&dout), to_f64(&bias));
        if !biased {
            bias.fill(0.0);
        }
        let factors = case.factors(dropped);
        let reference = |y: &[f64], bias: &[f64]| -> Vec<f64> {
            (0..x.len()).map(|i| x[i] + factors[i] * (y[i] + bias[i % case.width])).collect()
        };
        let got = case.run::<T>(&Cpu::single(), biased, dropped);
        assert_close("out", &got.0, &reference(&y, &bias), 5e-7);
        assert_close("dy", &got.1, &gradient(&y, |y| dot(&reference(y, &bias), &dout)), 1e-8);
        if biased {
            let dbias = gradient(&bias, |bias| dot(&reference(&y, bias), &dout));
            // dbias sums the rounded dy: rounding costs at most 8/3 for each row.
            let rounding = if dropped { case.num_rows as f64 * 8.0 / 3.0 * rounding::<T>() } else { 0.0 };
            assert_close("dbias", &got.2, &dbias, 1e-6 + rounding);
        }
    }

    #[test]
    fn forward_and_backward_agree_with_f64_and_its_finite_differences() {
        for (biased, dropped) in [(false, false), (true, false), (false, true), (true, true)] {
            for (num_rows, width) in [(1, 1), (6, 65), (40, 7)] {
                let case = Case::new(num_rows, width);
                agrees_with_f64::<f32>(&case, biased, dropped);
                agrees_with_f64::<bf16>(&case, biased, dropped);
            }
        }
    }

    #[test]
    fn every_instruction_set_and_thread_count_gives_the_same_bits() {
        for (biased, dropped) in [(false, false), (true, false), (false, true), (true, true)] {
            for (num_rows, width) in [(3, 5), (7, 131), (500, 67)] {
                let case = Case::new(num_rows, width);
                assert_same_bits(|cpu| {
                    let (out, dy, dbias) = case.run::<f32>(cpu, biased, dropped);
                    [out, dy, dbias].concat()
                });
            }
        }
    }

    #[test]
    fn accumulating_adds_to_the_gradient_of_the_bias() {
        let (mut dy, mut dbias) = (vec![0.0f32; 6], vec![10.0, 20.0]);
        let dout = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        backward(&Cpu::single(), &dout, None, &mut dy, Some(&mut dbias), true);
        assert_eq!((dbias, dy), (vec![19.0, 32.0], dout.to_vec()));
    }
}
