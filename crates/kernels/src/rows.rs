//! How the row kernels share their work: fixed chunks of rows, and column sums over them in a fixed order.
//!
//! # Invariants
//! - Chunks depend on the shape alone, so that the same bits come out of any number of threads.
//! - A task sees its own rows of every output and nothing else: kernels that use [`for_rows`] need no `unsafe`.

use std::ops::Range;

use crate::Cpu;
use crate::isa::multiversion;
use crate::lanes::LANES;
use crate::pool::Parts;

/// About this many elements make a task: five to twenty microseconds, so that handing it out costs little and a small
/// model still gives every thread some.
pub(crate) const ELEMENTS_PER_TASK: usize = 16 * 1024;

/// At least this many rows share one partial column sum, so that partial sums stay small beside the rows themselves.
const MIN_ROWS_PER_SUM: usize = 32;

/// Columns that one task of [`ColumnSums::finish`] adds up.
const COLUMNS_PER_TASK: usize = 1024;

/// Rows of `width` elements that make a task.
pub(crate) fn rows_per_task(width: usize) -> usize {
    (ELEMENTS_PER_TASK / width.max(1)).max(1)
}

/// Rows of `width` elements that make a task of a kernel that also sums columns.
pub(crate) fn rows_per_sum(width: usize) -> usize {
    rows_per_task(width).max(MIN_ROWS_PER_SUM)
}

/// Outputs that can be cut by rows: one matrix, or a tuple or an option of such.
///
/// # Safety
/// What the promise of [`Cut::part`] allows must be sound: the parts of two chunks share no element, and each may be
/// written on any thread while the others are in use.
pub(crate) unsafe trait Cut: Sync {
    type Part;
    /// The given rows.
    ///
    /// # Safety
    /// While the part is alive, no other is taken whose rows meet these, as the chunks of [`for_rows`] never do.
    unsafe fn part(&self, rows: Range<usize>) -> Self::Part;
}

/// A matrix `[rows, width]` to be cut by rows.
pub(crate) struct Rows<'a, T> {
    parts: Parts<'a, T>,
    width: usize,
}

pub(crate) fn rows<T>(matrix: &mut [T], width: usize) -> Rows<'_, T> {
    Rows { parts: Parts::new(matrix), width }
}

// SAFETY: rows that do not meet are elements that do not meet; `T: Send` lets any thread write them.
unsafe impl<'a, T: Send> Cut for Rows<'a, T> {
    type Part = &'a mut [T];
    unsafe fn part(&self, rows: Range<usize>) -> &'a mut [T] {
        // SAFETY: row ranges that do not meet are element ranges that do not meet.
        unsafe { self.parts.get(rows.start * self.width..rows.end * self.width) }
    }
}

// SAFETY: its part is that of a `Cut`, or nothing.
unsafe impl<C: Cut> Cut for Option<C> {
    type Part = Option<C::Part>;
    unsafe fn part(&self, rows: Range<usize>) -> Self::Part {
        // SAFETY: the same promise, passed on.
        self.as_ref().map(|cut| unsafe { cut.part(rows) })
    }
}

// SAFETY: each output is a `Cut`, and two outputs share nothing.
unsafe impl<A: Cut, B: Cut> Cut for (A, B) {
    type Part = (A::Part, B::Part);
    unsafe fn part(&self, rows: Range<usize>) -> Self::Part {
        // SAFETY: the same promise, passed on to each.
        unsafe { (self.0.part(rows.clone()), self.1.part(rows)) }
    }
}

// SAFETY: each output is a `Cut`, and two outputs share nothing.
unsafe impl<A: Cut, B: Cut, C: Cut> Cut for (A, B, C) {
    type Part = (A::Part, B::Part, C::Part);
    unsafe fn part(&self, rows: Range<usize>) -> Self::Part {
        // SAFETY: the same promise, passed on to each.
        unsafe { (self.0.part(rows.clone()), self.1.part(rows.clone()), self.2.part(rows)) }
    }
}

// SAFETY: each output is a `Cut`, and two outputs share nothing.
unsafe impl<A: Cut, B: Cut, C: Cut, D: Cut> Cut for (A, B, C, D) {
    type Part = (A::Part, B::Part, C::Part, D::Part);
    unsafe fn part(&self, rows: Range<usize>) -> Self::Part {
        // SAFETY: the same promise, passed on to each.
        unsafe { (self.0.part(rows.clone()), self.1.part(rows.clone()), self.2.part(rows.clone()), self.3.part(rows)) }
    }
}

/// Runs `task(rows, its part of the outputs)` for chunks of `rows_per_task` rows, in parallel.
pub(crate) fn for_rows<C: Cut>(
    cpu: &Cpu,
    num_rows: usize,
    rows_per_task: usize,
    outputs: C,
    task: impl Fn(Range<usize>, C::Part) + Sync,
) {
    cpu.pool.run(num_rows.div_ceil(rows_per_task), |i| {
        let rows = i * rows_per_task..((i + 1) * rows_per_task).min(num_rows);
        // SAFETY: chunk `i` meets no other chunk, and the pool runs task `i` once.
        let part = unsafe { outputs.part(rows.clone()) };
        task(rows, part);
    });
}

/// Runs `task(elements, its part of the outputs)` for chunks of [`ELEMENTS_PER_TASK`] elements, in parallel.
pub(crate) fn for_elements<C: Cut>(
    cpu: &Cpu,
    num_elements: usize,
    outputs: C,
    task: impl Fn(Range<usize>, C::Part) + Sync,
) {
    for_rows(cpu, num_elements, ELEMENTS_PER_TASK, outputs, task);
}

/// Column sums of a matrix while its rows are worked on: one partial sum a task, added in order at the end.
pub(crate) struct ColumnSums {
    /// `[tasks, width]`
    partial: Vec<f32>,
    width: usize,
    rows_per_task: usize,
}

impl ColumnSums {
    /// Zeros. `rows_per_task`: that of the [`for_rows`] which fills it, see [`rows_per_sum`].
    pub(crate) fn new(num_rows: usize, rows_per_task: usize, width: usize) -> Self {
        Self { partial: vec![0.0; num_rows.div_ceil(rows_per_task) * width], width, rows_per_task }
    }

    /// An output of [`for_rows`]: each task gets the `[width]` sums of its rows, zero before.
    pub(crate) fn cut(&mut self) -> Partial<'_> {
        Partial { parts: Parts::new(&mut self.partial), width: self.width, rows_per_task: self.rows_per_task }
    }

    /// Writes the sums over all rows to `out` `[width]`, or adds them.
    pub(crate) fn finish(self, cpu: &Cpu, out: &mut [f32], accumulate: bool) {
        assert_eq!(out.len(), self.width, "ColumnSums::finish: length of the sums");
        cpu.pool.run_parts(out, COLUMNS_PER_TASK, |i, out| {
            add_partials(cpu.isa, &self.partial, self.width, i * COLUMNS_PER_TASK, out, accumulate);
        });
    }
}

/// See [`ColumnSums::cut`].
pub(crate) struct Partial<'a> {
    parts: Parts<'a, f32>,
    width: usize,
    rows_per_task: usize,
}

// SAFETY: `part` refuses all but the chunks that `rows_per_task` makes, and each of these has sums of its own.
unsafe impl<'a> Cut for Partial<'a> {
    type Part = &'a mut [f32];
    unsafe fn part(&self, rows: Range<usize>) -> &'a mut [f32] {
        let chunk = self.rows_per_task;
        assert!(
            rows.start.is_multiple_of(chunk) && (1..=chunk).contains(&rows.len()),
            "Partial::part: rows {rows:?} are no chunk of {chunk}"
        );
        let task = rows.start / chunk;
        // SAFETY: chunks that do not meet begin at different multiples of `rows_per_task`: their numbers differ.
        unsafe { self.parts.get(task * self.width..(task + 1) * self.width) }
    }
}

multiversion! {
    /// The partials are summed before they meet `out`: small terms do not drown in a gradient that has grown large.
    fn add_partials(partial: &[f32], width: usize, first_column: usize, out: &mut [f32], accumulate: bool) {
        for (block, out) in out.chunks_mut(LANES).enumerate() {
            let first = first_column + block * LANES;
            let mut sums = [0.0; LANES];
            for row in partial.chunks_exact(width) {
                for (sum, &term) in sums.iter_mut().zip(&row[first..first + out.len()]) {
                    *sum += term;
                }
            }
            for (out, &sum) in out.iter_mut().zip(&sums) {
                *out = if accumulate { *out + sum } else { sum };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    #[test]
    fn every_row_reaches_one_task_with_its_part_of_each_output() {
        let cpu = Cpu::new(3, false, Isa::detect());
        for num_rows in [0, 1, 4, 5, 23] {
            let (mut a, mut b) = (vec![0; num_rows * 3], vec![0; num_rows]);
            for_rows(&cpu, num_rows, 4, (rows(&mut a, 3), Some(rows(&mut b, 1))), |range, (a, b)| {
                assert_eq!(a.len(), 3 * range.len());
                a.iter_mut().enumerate().for_each(|(i, a)| *a += range.start * 3 + i + 1);
                b.expect("it was given").iter_mut().zip(range).for_each(|(b, row)| *b += row + 1);
            });
            assert_eq!(a, (1..=num_rows * 3).collect::<Vec<_>>());
            assert_eq!(b, (1..=num_rows).collect::<Vec<_>>());
        }
    }

    #[test]
    #[should_panic(expected = "Partial::part: rows 0..8 are no chunk of 4")]
    fn column_sums_refuse_chunks_that_are_not_theirs() {
        let cpu = Cpu::new(1, false, Isa::detect());
        for_rows(&cpu, 16, 8, ColumnSums::new(16, 4, 3).cut(), |_, _| ());
    }

    #[test]
    fn column_sums_cover_every_row_once_and_can_be_added_to_what_is_there() {
        let cpu = Cpu::new(2, false, Isa::detect());
        let (num_rows, width) = (71, 2053);
        let mut sums = ColumnSums::new(num_rows, 8, width);
        for_rows(&cpu, num_rows, 8, sums.cut(), |range, sum| {
            for row in range {
                sum.iter_mut().enumerate().for_each(|(j, s)| *s += (row + j) as f32);
            }
        });
        let mut out = vec![1.0; width];
        sums.finish(&cpu, &mut out, true);
        for (j, &got) in out.iter().enumerate() {
            assert_eq!(got, 1.0 + (70 * 71 / 2 + 71 * j) as f32, "column {j}");
        }
    }
}
