//! A few rows against a weight whose n is contiguous: `y[m, n] = x[m, k] w[k, n]`, the product of generation with GPT-2's
//! `Conv1D` weights.
//!
//! As in [`super::skinny`] memory is the bound and the weight is read once, as it lies.
//! - One row of x: a task takes whole rows of the weight, one long stream, and adds them to sums that stay in the nearest
//!   cache (of up to about 8,000 columns); the tasks' sums are added at the end, in order.
//! - More rows: a task takes a strip of columns whose sums stay in registers while it walks down k. A strip's part of a row
//!   is a few cache lines, too short for the processor to see a stream in, so the rows to come are asked for by hand.
//!
//! The cuts follow from the shape: the same bits on any number of threads.

use super::block::Buffer;
use super::micro::{Kernel, Simd, prefetch};
use super::skinny::{Few, MAX_ROWS, SERIAL_WORK, run_outputs};
use super::{GemmArgs, GemmInput};
use crate::Cpu;
use crate::element::Element;
use crate::isa::multiversion;
use crate::pool::Parts;
use std::cell::Cell;

/// Bytes of the weight that a task streams: some microseconds.
const STREAM_BYTES: usize = 128 << 10;
/// Tasks at most that one product is streamed in: each leaves sums to be added.
const MAX_STREAMS: usize = 8;
/// Vectors of the weight that are read side by side. The processor then sees as many streams of one stride and fetches far
/// ahead by itself, into the second cache. Asking by hand for lines in the nearest one, whose misses in flight are few, halves
/// that: 14 GB/s a core of Zen 4 where this reads 33.
const UNROLL: usize = 8;

/// Vectors of sums in registers: rows of x times vectors of columns.
const SUMS: usize = 8;
/// Rows of the weight by which reading runs ahead of multiplying.
const AHEAD_ROWS: usize = 24;
/// Bytes of a cache line.
const LINE_BYTES: usize = 64;
thread_local! {
    /// Sums of the streams, which grow to the largest product met.
    static SUMS_OF_STREAMS: Cell<Buffer> = Cell::default();
}

/// Computes the product; `args` were checked, `a` is contiguous along k, `b` along n, and there is at least one element.
pub(super) fn run<T: GemmInput, C: Element>(cpu: &Cpu, kernel: &Kernel<T, C>, args: GemmArgs<'_, T, C>) {
    if args.m == 1 {
        return stream_rows(cpu, kernel, args);
    }
    run_outputs(cpu, kernel.columns, SUMS * kernel.lanes, args.b.row_stride, args);
}

/// Rows of the weight, streamed and added to one row of sums.
pub(super) struct Stream<T> {
    /// Row 0 of those to be streamed.
    pub(super) w: *const T,
    pub(super) w_stride: usize,
    /// One for each row.
    pub(super) x: *const T,
    pub(super) rows: usize,
}

fn stream_rows<T: GemmInput, C: Element>(cpu: &Cpu, kernel: &Kernel<T, C>, args: GemmArgs<'_, T, C>) {
    let GemmArgs { n, k, a, b, c, bias, accumulate, .. } = args;
    let is_serial = n * k < SERIAL_WORK;
    let rows = (STREAM_BYTES / (n * size_of::<T>())).max(k.div_ceil(MAX_STREAMS)).max(1);
    let streams = k.div_ceil(rows).max(1); // over no k the sums are zero
    let mut buffer = SUMS_OF_STREAMS.take();
    let sums = buffer.first::<f32>(streams * n);
    let parts = Parts::new(sums);
    super::run_tasks(cpu, streams, is_serial, |index| {
        let first = index * rows;
        let job = Stream {
            w: b.data[first * b.row_stride..].as_ptr(),
            w_stride: b.row_stride,
            x: a.data[first..].as_ptr(),
            rows: rows.min(k - first),
        };
        // SAFETY: each stream has its own sums; `check` found the rows of `b` and the elements of `a` in their slices.
        unsafe { (kernel.stream)(&job, parts.get(index * n..(index + 1) * n)) };
    });
    let (sum, others) = sums.split_at_mut(n);
    others.chunks_exact(n).for_each(|other| add(cpu.isa, sum, other));
    if let Some(bias) = bias {
        add(cpu.isa, sum, bias);
    }
    let c = &mut c.data[..n];
    if accumulate {
        add(cpu.isa, sum, c);
    }
    round(cpu.isa, sum, c);
    SUMS_OF_STREAMS.set(buffer);
}

/// Sets `sums` to the sum of the rows of `job`, each times its x.
///
/// # Safety
/// The rows may be read for as many elements as `sums` has, and x for `rows`.
#[inline(always)]
pub(super) unsafe fn stream<S: Simd, T: Element>(s: S, job: &Stream<T>, sums: &mut [f32]) {
    sums.fill(0.0);
    let whole = sums.len() - sums.len() % (UNROLL * S::LANES);
    for row in 0..job.rows {
        // SAFETY: row and columns exist; the caller lets us read them.
        unsafe {
            let line = job.w.add(row * job.w_stride);
            let x = (*job.x.add(row)).to_f32().to_bits();
            let x = s.splat(&raw const x);
            let add = |col: usize, len: usize, sums: &mut [f32]| {
                let sum = sums[col..].as_mut_ptr();
                s.write(sum, len, s.mul_add_f32(x, s.read(line.add(col), len), s.read(sum, len)));
            };
            for first in (0..whole).step_by(UNROLL * S::LANES) {
                for vector in 0..UNROLL {
                    add(first + vector * S::LANES, S::LANES, sums);
                }
            }
            for col in (whole..sums.len()).step_by(S::LANES) {
                add(col, S::LANES.min(sums.len() - col), sums);
            }
        }
    }
}

multiversion! {
    fn add<E: Element>(sums: &mut [f32], other: &[E]) {
        sums.iter_mut().zip(other).for_each(|(sum, other)| *sum += other.to_f32());
    }
}

multiversion! {
    fn round<E: Element>(sums: &[f32], out: &mut [E]) {
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = E::from_f32(*sum));
    }
}

/// # Safety
/// The rows of x may be read for `k` elements and those of w for `outputs`, C may be read and written; `rows` is 2 to
/// [`MAX_ROWS`].
#[inline(always)]
pub(super) unsafe fn columns<S: Simd, T: Element, C: Element>(s: S, job: &Few<T, C>) {
    // SAFETY: as the caller promises.
    unsafe {
        match job.rows {
            0..=2 => by_rows::<S, T, C, 2, { SUMS / 2 }>(s, job),
            3..=4 => by_rows::<S, T, C, 4, { SUMS / 4 }>(s, job),
            _ => by_rows::<S, T, C, MAX_ROWS, { SUMS / MAX_ROWS }>(s, job),
        }
    }
}

/// `V` vectors of columns at a time against up to `R` rows; rows past the last repeat it and are not written.
#[inline(always)]
unsafe fn by_rows<S: Simd, T: Element, C: Element, const R: usize, const V: usize>(s: S, job: &Few<T, C>) {
    for first in (0..job.outputs).step_by(V * S::LANES) {
        let width = (job.outputs - first).min(V * S::LANES);
        let mut acc = [[s.zero(); V]; R];
        for k in 0..job.k {
            // SAFETY: rows and columns are clamped to those that exist; the caller lets us read them.
            unsafe {
                let line = job.w.add(k * job.w_stride + first);
                let ahead = line.wrapping_add(AHEAD_ROWS * job.w_stride).cast::<u8>();
                for offset in (0..V * S::LANES * size_of::<T>()).step_by(LINE_BYTES) {
                    prefetch(ahead.wrapping_add(offset));
                }
                let mut w = [s.zero(); V];
                for (v, w) in w.iter_mut().enumerate() {
                    // A whole strip is the common case; a vector past the last column is never written.
                    let left = if width == V * S::LANES { S::LANES } else { width.saturating_sub(v * S::LANES) };
                    *w = s.read(line.wrapping_add(v * S::LANES), left);
                }
                for (i, acc) in acc.iter_mut().enumerate() {
                    let x = (*job.x.add(i.min(job.rows - 1) * job.x_stride + k)).to_f32().to_bits();
                    let x = s.splat(&raw const x);
                    for v in 0..V {
                        acc[v] = s.mul_add_f32(x, w[v], acc[v]);
                    }
                }
            }
        }
        for (row, acc) in acc.iter().enumerate().take(job.rows) {
            for (v, acc) in acc.iter().enumerate().take(width.div_ceil(S::LANES)) {
                let (col, left) = (first + v * S::LANES, width - v * S::LANES);
                let mut sum = *acc;
                // SAFETY: the row exists and `left` columns from `col` on; the caller lets us use C and the bias there.
                unsafe {
                    if let Some(bias) = job.bias {
                        sum = s.add(sum, s.read(bias.add(col), left));
                    }
                    let c = job.c.add(row * job.c_stride + col);
                    if job.adds_c {
                        sum = s.add(sum, s.read(c, left));
                    }
                    s.write(c, left, sum);
                }
            }
        }
    }
}
