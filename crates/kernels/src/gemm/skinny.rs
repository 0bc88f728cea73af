//! A few rows against a weight whose k is contiguous: `y[m, n] = x[m, k] w[n, k]^T`, the product of generation.
//!
//! Every weight is used `m` times, so memory is the bound: the weight is streamed once, as it lies, in dot products. One
//! line at a time: a core that reads four lines side by side gets 13 GB/s of the 34 that it gets from one stream.
//! The bits differ from those of [`super::block`], but not with the number of threads.

use super::micro::{Kernel, Simd};
use super::{GemmArgs, GemmInput};
use crate::Cpu;
use crate::element::Element;

/// Rows up to which this pays.
pub(super) const MAX_ROWS: usize = 8;

/// Bytes of weights in a task: some microseconds of streaming.
const TASK_BYTES: usize = 64 << 10;

/// Below this many multiply-adds the product is done before another thread would wake.
pub(super) const SERIAL_WORK: usize = 1 << 16;

/// Some neighbouring outputs (columns of C) of a few rows of x.
pub(super) struct Few<T, C> {
    pub(super) x: *const T,
    pub(super) x_stride: usize,
    pub(super) rows: usize,
    /// The weight of the first output and the first k.
    pub(super) w: *const T,
    /// From one line of the weight, as it lies in memory, to the next.
    pub(super) w_stride: usize,
    pub(super) outputs: usize,
    pub(super) k: usize,
    /// Where the product of row 0 and the first output goes.
    pub(super) c: *mut C,
    pub(super) c_stride: usize,
    /// One number for each output.
    pub(super) bias: Option<*const T>,
    /// Whether the old C is added.
    pub(super) adds_c: bool,
}

/// Computes the product; `args` were checked, `a` and `b` are contiguous along k and there is at least one element.
pub(super) fn run<T: GemmInput, C: Element>(cpu: &Cpu, kernel: &Kernel<T, C>, args: GemmArgs<'_, T, C>) {
    let lines = (TASK_BYTES / (args.k.max(1) * size_of::<T>())).clamp(8, 1024).next_multiple_of(8);
    run_outputs(cpu, kernel.dots, lines, args.b.col_stride, args);
}

/// Runs `compute` on `per_task` outputs at a time; `w_stride`: from one line of the weight to the next.
pub(super) fn run_outputs<T: GemmInput, C: Element>(
    cpu: &Cpu,
    compute: unsafe fn(&Few<T, C>),
    per_task: usize,
    w_stride: usize,
    args: GemmArgs<'_, T, C>,
) {
    let GemmArgs { m, n, k, a, b, c, bias, accumulate } = args;
    let out = super::Out { data: c.data.as_mut_ptr() };
    let task = |index: usize| {
        let first = index * per_task;
        let job = Few {
            x: a.data.as_ptr(),
            x_stride: a.row_stride,
            rows: m,
            w: b.data[(first * b.col_stride).min(b.data.len())..].as_ptr(),
            w_stride,
            outputs: per_task.min(n - first),
            k,
            c: out.at(first),
            c_stride: c.row_stride,
            bias: bias.map(|bias| bias[first..].as_ptr()),
            adds_c: accumulate,
        };
        // SAFETY: `check` found the matrices inside their slices; tasks write different columns of C.
        unsafe { compute(&job) };
    };
    super::run_tasks(cpu, n.div_ceil(per_task), m * n * k < SERIAL_WORK, task);
}

/// # Safety
/// The rows of x and w may be read for `k` elements, C may be read and written; `rows` is 1 to [`MAX_ROWS`].
#[inline(always)]
pub(super) unsafe fn dots<S: Simd, T: Element, C: Element>(s: S, job: &Few<T, C>) {
    // SAFETY: as the caller promises.
    unsafe {
        match job.rows {
            1 => by_rows::<S, T, C, 1, 8>(s, job),
            2 => by_rows::<S, T, C, 2, 4>(s, job),
            3..=4 => by_rows::<S, T, C, 4, 2>(s, job),
            _ => by_rows::<S, T, C, MAX_ROWS, 1>(s, job),
        }
    }
}

/// One line at a time against up to `R` rows, `U` vectors along k at once; rows past the last repeat it and are not written.
#[inline(always)]
unsafe fn by_rows<S: Simd, T: Element, C: Element, const R: usize, const U: usize>(s: S, job: &Few<T, C>) {
    let vector = S::K_PER_WORD * S::LANES;
    for line in 0..job.outputs {
        let mut acc = [[s.zero(); U]; R];
        for first in (0..job.k).step_by(U * vector) {
            for u in 0..U {
                let k = (first + u * vector).min(job.k);
                // SAFETY: rows, lines and `k` are clamped to those that exist; the caller lets us read them.
                unsafe {
                    let src = job.w.add(line * job.w_stride + k);
                    let w = s.along_k(src, job.k - k);
                    for (i, acc) in acc.iter_mut().enumerate() {
                        let x = s.along_k(job.x.add(i.min(job.rows - 1) * job.x_stride + k), job.k - k);
                        acc[u] = s.mul_add(x, w, acc[u]);
                    }
                }
            }
        }
        for (row, acc) in acc.iter().enumerate().take(job.rows) {
            let mut sums = acc[0];
            acc[1..].iter().for_each(|acc| sums = s.add(sums, *acc));
            let mut sum = s.sum(sums);
            // SAFETY: the row and the line exist; the caller lets us use C and the bias there.
            unsafe {
                if let Some(bias) = job.bias {
                    sum += (*bias.add(line)).to_f32();
                }
                let c = job.c.add(row * job.c_stride + line);
                if job.adds_c {
                    sum += (*c).to_f32();
                }
                *c = C::from_f32(sum);
            }
        }
    }
}
