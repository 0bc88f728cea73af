//! Matrix products: `c = a b (+ bias) (+ c)`, f32 accumulation, rounded once to the format of `c`.
//!
//! One blocked driver (`block`) copies parts of `a` and `b` into panels (`pack`) and runs one micro-kernel body
//! (`micro`) on them, compiled for each instruction set: `micro_avx512_bf16` (pairs of bf16, `vdpbf16ps`),
//! `micro_avx512`, `micro_avx2` (both f32 fused multiply-add; bf16 and f16 become f32 while they are packed) and
//! `scalar` (portable, not fused). Up to eight rows against a weight, the product of token-by-token generation, are bound
//! by memory: `skinny` (weights `[n, k]`) and `skinny_columns` (`[k, n]`) stream the weight once and pack nothing.
//!
//! Source: Goto & van de Geijn 2008, "Anatomy of High-Performance Matrix Multiplication"; Van Zee & van de Geijn 2015,
//! "BLIS". We pack both operands in one parallel pass, then cut C into tiles.
//!
//! # Invariants
//! - An element of C is summed over the blocks of k in order, each block by one task. The blocks and the order inside
//!   them depend on the shape, the types and the instruction set alone: any number of threads gives the same bits.
//! - Nothing is allocated per call once the scratch of the calling thread has grown to the shapes in use.
//! - `vdpbf16ps` takes subnormal inputs as zero and flushes subnormal sums; the other instruction sets keep them.

mod block;
mod micro;
#[cfg(target_arch = "x86_64")]
mod micro_avx2;
#[cfg(target_arch = "x86_64")]
mod micro_avx512;
#[cfg(target_arch = "x86_64")]
mod micro_avx512_bf16;
mod pack;
mod scalar;
mod skinny;
mod skinny_columns;
#[cfg(test)]
mod tests;

use crate::element::{Element, bf16, f16};
use crate::{Cpu, Isa};
use micro::Kernel;
use std::any::TypeId;

/// A matrix inside a slice: element `(i, j)` is `data[i * row_stride + j * col_stride]`, so a block of a wider matrix
/// is `&wider[first..]` with the stride of the wider one. Elements between those of the matrix are never read.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a, T> {
    /// Starts at element (0, 0); may go on after the last.
    pub data: &'a [T],
    /// Elements from one row to the next.
    pub row_stride: usize,
    /// Elements from one column to the next.
    pub col_stride: usize,
}

impl<'a, T> Mat<'a, T> {
    /// A matrix stored row after row, `row_stride` elements apart (its width, or that of the matrix it is part of).
    pub fn row_major(data: &'a [T], row_stride: usize) -> Self {
        Self { data, row_stride, col_stride: 1 }
    }

    /// The transpose of a matrix stored row after row: `Mat::transposed(w, k)` of a weight `[n, k]` is `[k, n]`.
    pub fn transposed(data: &'a [T], row_stride: usize) -> Self {
        Self { data, row_stride: 1, col_stride: row_stride }
    }
}

/// A matrix to be written: element `(i, j)` is `data[i * row_stride + j]`. Elements between rows are left alone.
#[derive(Debug)]
pub struct MatMut<'a, T> {
    /// Starts at element (0, 0); may go on after the last.
    pub data: &'a mut [T],
    /// Elements from one row to the next, at least the number of columns.
    pub row_stride: usize,
}

impl<'a, T> MatMut<'a, T> {
    /// A matrix stored row after row, `row_stride` elements apart.
    pub fn row_major(data: &'a mut [T], row_stride: usize) -> Self {
        Self { data, row_stride }
    }
}

/// The arguments of [`gemm`]: `c[m, n] = a[m, k] b[k, n] (+ bias[n] in every row) (+ c)`.
#[derive(Debug)]
pub struct GemmArgs<'a, T, C> {
    /// Rows of `a` and `c`.
    pub m: usize,
    /// Columns of `b` and `c`.
    pub n: usize,
    /// Columns of `a`, rows of `b`. At 0 the product is zero.
    pub k: usize,
    /// `[m, k]`; one of its strides is 1.
    pub a: Mat<'a, T>,
    /// `[k, n]`; one of its strides is 1.
    pub b: Mat<'a, T>,
    /// `[m, n]`.
    pub c: MatMut<'a, C>,
    /// `[n]`, added to every row.
    pub bias: Option<&'a [T]>,
    /// Whether the product is added to what `c` holds; otherwise `c` is only written.
    pub accumulate: bool,
}

/// What a matrix product can be taken of: `f32`, `bf16`, `f16`.
pub trait GemmInput: Element + sealed::Sealed {}

impl GemmInput for f32 {}
impl GemmInput for bf16 {}
impl GemmInput for f16 {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for super::bf16 {}
    impl Sealed for super::f16 {}
}

/// `c[m, n] = a[m, k] b[k, n] (+ bias) (+ c)`; see [`GemmArgs`].
///
/// - `T`: format of `a`, `b` and the bias. `C`: f32 or `T`. Sums are f32 throughout and rounded once, when `c` is
///   written.
/// - The three forms of training, with `x [m, k]`, `w [n, k]` and `dy [m, n]` row-major: `y = x w^T` is
///   `a: row_major(x, k), b: transposed(w, k)`; `dx = dy w` is `row_major(dy, n), row_major(w, k)`; `dw = dy^T x` is
///   `transposed(dy, n), row_major(x, k)`. None makes a transposed copy of an operand.
/// - Sums associate differently from a plain loop, so that the error against exact arithmetic is within
///   `(k + 4) * 2^-23 * (sum |a b| + |bias| + |c|)` before the rounding of `c`, subnormals apart.
///
/// # Panics
/// If a matrix reaches past its slice, has no stride of 1, or the rows of `c` overlap; if `C` is neither f32 nor `T`.
pub fn gemm<T: GemmInput, C: Element>(cpu: &Cpu, args: GemmArgs<'_, T, C>) {
    check(&args);
    if args.m == 0 || args.n == 0 {
        return;
    }
    let kernel = kernel::<T, C>(cpu.isa);
    let few_rows = args.m <= skinny::MAX_ROWS && args.a.col_stride == 1;
    if few_rows && args.b.row_stride == 1 {
        skinny::run(cpu, &kernel, args);
    } else if few_rows && args.b.col_stride == 1 {
        skinny_columns::run(cpu, &kernel, args);
    } else {
        block::run(cpu, &kernel, args);
    }
}

/// The micro-kernel for products of `T` on this instruction set.
fn kernel<T: GemmInput, C: Element>(isa: Isa) -> Kernel<T, C> {
    #[cfg(target_arch = "x86_64")]
    if is_same::<T, bf16>() && isa.has_avx512_bf16() {
        return micro_avx512_bf16::kernel();
    } else if isa.has_avx512() {
        return micro_avx512::kernel();
    } else if isa.has_avx2() {
        return micro_avx2::kernel();
    }
    let _ = isa;
    scalar::kernel()
}

/// What the raw pointers of the drivers rely on.
fn check<T: GemmInput, C: Element>(args: &GemmArgs<'_, T, C>) {
    let GemmArgs { m, n, k, a, b, c, bias, .. } = args;
    assert!(is_same::<C, f32>() || is_same::<C, T>(), "gemm: {} x {} into {}", T::NAME, T::NAME, C::NAME);
    let fits = |rows: usize, cols: usize, row_stride: usize, col_stride: usize, len: usize| {
        let last = || {
            let row = (rows - 1).checked_mul(row_stride)?;
            row.checked_add((cols - 1).checked_mul(col_stride)?)
        };
        rows == 0 || cols == 0 || last().is_some_and(|last| last < len)
    };
    assert!(fits(*m, *k, a.row_stride, a.col_stride, a.data.len()), "gemm: a [{m}, {k}] reaches past its slice");
    assert!(fits(*k, *n, b.row_stride, b.col_stride, b.data.len()), "gemm: b [{k}, {n}] reaches past its slice");
    assert!(fits(*m, *n, c.row_stride, 1, c.data.len()), "gemm: c [{m}, {n}] reaches past its slice");
    assert!(a.row_stride == 1 || a.col_stride == 1, "gemm: a has strides {} and {}", a.row_stride, a.col_stride);
    assert!(b.row_stride == 1 || b.col_stride == 1, "gemm: b has strides {} and {}", b.row_stride, b.col_stride);
    assert!(*m < 2 || c.row_stride >= *n, "gemm: rows of c are {n} wide and {} apart", c.row_stride);
    assert!(bias.is_none_or(|bias| bias.len() == *n), "gemm: a bias of {:?} for {n} columns", bias.map(<[T]>::len));
}

/// Whether two types are one; known to the compiler, so that a branch on it costs nothing.
fn is_same<X: 'static, Y: 'static>() -> bool {
    TypeId::of::<X>() == TypeId::of::<Y>()
}

/// Where tasks write, each its own part of a slice: rows are interleaved, so the parts are not slices themselves.
struct Out<C> {
    data: *mut C,
}

// SAFETY: a pointer alone does nothing; those who write through it promise that no two tasks share an element.
unsafe impl<C: Send> Sync for Out<C> {}

impl<C> Out<C> {
    /// The address of element `index`; whether it exists is for the one who uses it to know.
    fn at(&self, index: usize) -> *mut C {
        self.data.wrapping_add(index)
    }
}

/// Runs the tasks on the pool, or here if they are too small to share.
fn run_tasks(cpu: &Cpu, num_tasks: usize, is_serial: bool, task: impl Fn(usize) + Sync) {
    if is_serial { (0..num_tasks).for_each(task) } else { cpu.pool.run(num_tasks, task) }
}
