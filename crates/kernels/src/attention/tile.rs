//! Moving rows of tensors into the blocks that [`super::product`] multiplies.
//!
//! A row of a head is padded with zeros to whole units of 16 values; rows to whole units of 16. With `P` values a word
//! ([`Format`]) the same values can lie as
//! - *natural*: `[row][padded / P]`, neighbours in a row share a word;
//! - *transposed*: `[padded / P][BLOCK rows]`, the natural words with rows along the lanes;
//! - *interleaved*: `[rows / P][padded]`, neighbours in a column share a word.
//!
//! With one value a word natural and interleaved are the same.

use super::product::{Format, UNIT};
use super::{BLOCK, Rows};
use crate::Element;
use crate::isa::multiversion;
use crate::lanes::tree;
use crate::pool::Parts;

/// `head_dim` in whole units.
pub(super) fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(UNIT)
}

/// `out[i] = scale row[i]` for the shorter of the two. Rows are short: whole units first, so that nothing is decided
/// at run time for them.
#[inline(always)]
fn convert<A: Element, B: Element>(row: &[A], out: &mut [B], scale: f32) {
    let len = row.len().min(out.len());
    let ((row, row_rest), (out, out_rest)) = (row[..len].as_chunks::<UNIT>(), out[..len].as_chunks_mut::<UNIT>());
    for (row, out) in row.iter().zip(out) {
        // By value: the compiler need not fear that a store changes what is read next.
        let (values, mut results) = (*row, [B::ZERO; UNIT]);
        for lane in 0..UNIT {
            results[lane] = B::from_f32(values[lane].to_f32() * scale);
        }
        *out = results;
    }
    for (value, out) in row_rest.iter().zip(out_rest) {
        *out = B::from_f32(value.to_f32() * scale);
    }
}

/// Copies `row` to the beginning of `out`, without a call.
#[inline(always)]
fn copy(row: &[u16], out: &mut [u16]) {
    let ((row, row_rest), (out, out_rest)) = (row.as_chunks::<UNIT>(), out[..row.len()].as_chunks_mut::<UNIT>());
    row.iter().zip(out).for_each(|(row, out)| *out = *row);
    row_rest.iter().zip(out_rest).for_each(|(row, out)| *out = *row);
}

/// `sum_i a[i] b[i]`, lane by lane, then across the lanes in a tree.
#[inline(always)]
pub(super) fn dot<A: Element, B: Element>(a: &[A], b: &[B]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<UNIT>(), b.as_chunks::<UNIT>());
    let mut sums = [0.0; UNIT];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..UNIT {
            sums[lane] += a[lane].to_f32() * b[lane].to_f32();
        }
    }
    for (sum, (a, b)) in sums.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *sum += a.to_f32() * b.to_f32();
    }
    tree(sums, |a, b| a + b)
}

multiversion! {
    /// Rows `0..num_rows` of `head_dim` values, natural; zeros up to whole units.
    pub(super) fn pack_natural<T: Element>(format: Format, rows: Rows<T>, num_rows: usize, head_dim: usize, out: &mut [u32]) {
        let width = head_dim.next_multiple_of(UNIT) / format.per_word();
        for (r, out) in out.chunks_exact_mut(width).take(num_rows.next_multiple_of(UNIT)).enumerate() {
            if r >= num_rows {
                out.fill(0);
                continue;
            }
            let row = rows.row(r, 0, head_dim);
            let used = match format {
                Format::Single => {
                    convert::<T, f32>(row, bytemuck::cast_slice_mut(out), 1.0);
                    head_dim
                }
                Format::Bf16Pair => {
                    let halves: &mut [u16] = bytemuck::cast_slice_mut(out);
                    let row: &[u16] = bytemuck::cast_slice(row);
                    copy(row, halves);
                    halves[head_dim..].fill(0);
                    width
                }
            };
            out[used..].fill(0);
        }
    }
}

multiversion! {
    /// Natural rows of `width` words, interleaved: `out[pair][value]` holds the value of rows `2 pair` and `2 pair + 1`.
    pub(super) fn interleave(natural: &[u32], num_rows: usize, width: usize, out: &mut [u32]) {
        let pairs = natural.chunks_exact(2 * width).zip(out.chunks_exact_mut(2 * width));
        for (rows, out) in pairs.take(num_rows.next_multiple_of(UNIT) / 2) {
            let (first, second) = rows.split_at(width);
            for ((out, a), b) in out.as_chunks_mut::<2>().0.iter_mut().zip(first).zip(second) {
                *out = [a & 0xffff | b << 16, a >> 16 | b & 0xffff_0000];
            }
        }
    }
}

/// Natural rows of `width` words (a multiple of 4), transposed: `out[word][row]`, rows of [`BLOCK`] words.
pub(super) fn transpose(natural: &[u32], num_rows: usize, width: usize, out: &mut [u32]) {
    for row in (0..num_rows).step_by(4) {
        let mut rows = natural[row * width..][..4 * width].chunks_exact(width).map(|row| row.as_chunks::<4>().0);
        let rows: [&[[u32; 4]]; 4] = [(); 4].map(|()| rows.next().expect("four rows were cut"));
        for (i, out) in out.chunks_exact_mut(4 * BLOCK).take(width / 4).enumerate() {
            let lanes = transpose_4x4([rows[0][i], rows[1][i], rows[2][i], rows[3][i]]);
            for (out, lanes) in out.chunks_exact_mut(BLOCK).zip(lanes) {
                out[row..row + 4].copy_from_slice(&lanes);
            }
        }
    }
}

/// Written for the vectors that every x86-64 has: left to itself the compiler moves word by word.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn transpose_4x4(rows: [[u32; 4]; 4]) -> [[u32; 4]; 4] {
    use std::arch::x86_64::{_mm_unpackhi_epi32, _mm_unpackhi_epi64, _mm_unpacklo_epi32, _mm_unpacklo_epi64};
    // SAFETY: an `__m128i` is 16 bytes of any bits, as four words are; SSE2 is part of x86-64.
    unsafe {
        let [a, b, c, d] = std::mem::transmute::<[[u32; 4]; 4], [std::arch::x86_64::__m128i; 4]>(rows);
        let (ab, cd) = (_mm_unpacklo_epi32(a, b), _mm_unpacklo_epi32(c, d));
        let (ab_high, cd_high) = (_mm_unpackhi_epi32(a, b), _mm_unpackhi_epi32(c, d));
        std::mem::transmute([
            _mm_unpacklo_epi64(ab, cd),
            _mm_unpackhi_epi64(ab, cd),
            _mm_unpacklo_epi64(ab_high, cd_high),
            _mm_unpackhi_epi64(ab_high, cd_high),
        ])
    }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn transpose_4x4(rows: [[u32; 4]; 4]) -> [[u32; 4]; 4] {
    let mut columns = [[0; 4]; 4];
    for (i, row) in rows.iter().enumerate() {
        for (column, word) in columns.iter_mut().zip(row) {
            column[i] = *word;
        }
    }
    columns
}

/// Some columns of some rows of a tensor, to be written by one task.
pub(super) struct Columns<'a, T> {
    tensor: &'a Parts<'a, T>,
    first: usize,
    stride: usize,
    width: usize,
}

impl<'a, T> Columns<'a, T> {
    /// `width` columns of rows of `stride` elements; `first` is the first element of the first row.
    ///
    /// # Safety
    /// Of the rows that are written through this value, nobody else uses these columns while it is alive.
    pub(super) unsafe fn new(tensor: &'a Parts<'a, T>, first: usize, stride: usize, width: usize) -> Self {
        assert!(width <= stride, "Columns::new: {width} columns of {stride}");
        Self { tensor, first, stride, width }
    }

    #[inline(always)]
    fn row(&mut self, row: usize) -> &mut [T] {
        let first = self.first + row * self.stride;
        // SAFETY: nobody else uses these elements (`new`), and `self` is borrowed while the part is alive.
        unsafe { self.tensor.get(first..first + self.width) }
    }
}

multiversion! {
    /// Writes rows of sums `[row][width]`, each times its scale, in the format of a tensor: one row a scale.
    pub(super) fn store_rows<T: Element>(sums: &[f32], width: usize, scales: &[f32], out: &mut Columns<'_, T>) {
        for (row, (sums, scale)) in sums.chunks_exact(width).zip(scales).enumerate() {
            convert(sums, out.row(row), *scale);
        }
    }
}
