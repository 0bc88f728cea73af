//! The blocked driver: cuts a product into blocks whose packed operands stay in the caches.
//!
//! # Order of events
//! For each block of columns of C, of rows of C, and of k:
//! 1. The panels of A and B of the block are packed, in parallel, into scratch that all threads share.
//! 2. The tiles of the block of C are computed in parallel. Where k has several blocks, the sum over the earlier ones is
//!    kept in C if that is f32, otherwise in scratch, so that C is rounded once.
//!
//! # Sizes
//! A tile's panels of A (`TILE_ROW_PANELS` of `K_WORDS` words) stay in the second cache while its panels of B stream
//! through the first one. All cuts follow from the shape and the instruction set.

use super::micro::{Kernel, Tile};
use super::pack::Strip;
use super::{GemmArgs, GemmInput, Mat, Out, is_same, run_tasks};
use crate::Cpu;
use crate::aligned::AlignedMemory;
use crate::element::Element;
use crate::pool::Parts;
use bytemuck::Pod;
use std::cell::Cell;
use std::ops::Range;

/// Most words of k in a block.
const K_WORDS: usize = 512;
/// Most rows of C in a block.
const BLOCK_ROWS: usize = 1024;
/// Most columns of C in a block.
const BLOCK_COLS: usize = 1024;
/// Most panels of A in a tile.
const TILE_ROW_PANELS: usize = 12;
/// Most panels of B in a tile.
const TILE_COL_PANELS: usize = 8;
/// Tiles wanted in a block, so that threads finish together.
const MIN_TILES: usize = 32;
/// Words packed by one task: a few microseconds.
const PACK_TASK_WORDS: usize = 16 << 10;
/// Below this many multiply-adds the product is done before another thread would wake.
const SERIAL_WORK: usize = 1 << 18;

/// Buffers that live as long as their thread and grow to the largest block it met.
#[derive(Default)]
struct Scratch {
    a: Buffer,
    b: Buffer,
    sum: Buffer,
    bias: Vec<f32>,
}

/// Memory that grows to the largest part asked of it.
#[derive(Default)]
pub(super) struct Buffer(Option<AlignedMemory>);

impl Buffer {
    /// The first `len` elements, of any value; larger memory is taken if need be.
    pub(super) fn first<T: Pod>(&mut self, len: usize) -> &mut [T] {
        let has = self.0.as_ref().map_or(0, |memory| memory.as_slice::<T>().len());
        if has < len {
            self.0 = None;
            self.0 = Some(AlignedMemory::zeroed(len * size_of::<T>()).expect("gemm: a few megabytes for packing"));
        }
        match &mut self.0 {
            Some(memory) => &mut memory.as_mut_slice()[..len],
            None => &mut [],
        }
    }
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
}

/// A part of the product: rows and columns of C, and a part of k.
#[derive(Clone)]
struct Block {
    rows: Range<usize>,
    cols: Range<usize>,
    ks: Range<usize>,
}

/// Computes the product; `args` were checked and have at least one element of C.
pub(super) fn run<T: GemmInput, C: Element>(cpu: &Cpu, kernel: &Kernel<T, C>, args: GemmArgs<'_, T, C>) {
    let (m, n, k) = (args.m, args.n, args.k);
    let mut scratch = SCRATCH.take();
    scratch.bias.clear();
    scratch.bias.extend(args.bias.unwrap_or_default().iter().map(|value| value.to_f32()));

    let block_rows = even_cut(m, BLOCK_ROWS, kernel.rows);
    let block_cols = even_cut(n, BLOCK_COLS, kernel.cols());
    let block_k = even_cut(k, K_WORDS * kernel.k_per_word, kernel.k_per_word);
    let needs_sum = !is_same::<C, f32>() && block_k < k;
    let sum = scratch.sum.first(if needs_sum { block_rows * block_cols } else { 0 });
    let product = Product {
        cpu,
        kernel,
        k,
        a: args.a,
        b: args.b,
        c_stride: args.c.row_stride,
        c: Out { data: args.c.data.as_mut_ptr() },
        sum: Out { data: sum.as_mut_ptr() },
        sum_stride: block_cols,
        bias: args.bias.map(|_| scratch.bias.as_slice()),
        accumulate: args.accumulate,
        is_serial: m * n * k < SERIAL_WORK,
    };
    for cols in blocks(n, block_cols) {
        for rows in blocks(m, block_rows) {
            for ks in blocks(k, block_k) {
                let block = Block { rows: rows.clone(), cols: cols.clone(), ks };
                let k_words = product.k_words(&block);
                let a_len = block.rows.len().div_ceil(kernel.rows) * k_words * kernel.lanes;
                let b_len = block.cols.len().div_ceil(kernel.cols()) * k_words * kernel.cols();
                let (a, b) = (scratch.a.first(a_len), scratch.b.first(b_len));
                // With one block of k, the panels of B serve every block of rows.
                let packs_b = rows.start == 0 || block_k < k;
                product.pack(&block, a, if packs_b { &mut *b } else { &mut [] });
                product.compute(&block, a, b);
            }
        }
    }
    SCRATCH.set(scratch);
}

/// The length of pieces, a multiple of `unit`, that cut `total` evenly into the fewest pieces of about `most`.
fn even_cut(total: usize, most: usize, unit: usize) -> usize {
    let pieces = total.div_ceil(most).max(1);
    total.div_ceil(pieces).next_multiple_of(unit).max(unit)
}

/// `0..total` in pieces of `len`; one empty piece if there is nothing, so that a product over no k is still written.
fn blocks(total: usize, len: usize) -> impl Iterator<Item = Range<usize>> {
    (0..total.max(1)).step_by(len).map(move |start| start..(start + len).min(total))
}

/// The arguments and what follows from them for all blocks.
struct Product<'a, T, C> {
    cpu: &'a Cpu,
    kernel: &'a Kernel<T, C>,
    k: usize,
    a: Mat<'a, T>,
    b: Mat<'a, T>,
    c: Out<C>,
    c_stride: usize,
    /// Sums over the earlier blocks of k, if C cannot hold them.
    sum: Out<f32>,
    sum_stride: usize,
    bias: Option<&'a [f32]>,
    accumulate: bool,
    is_serial: bool,
}

impl<T: GemmInput, C: Element> Product<'_, T, C> {
    fn k_words(&self, block: &Block) -> usize {
        block.ks.len().div_ceil(self.kernel.k_per_word)
    }

    /// Packs the rows of A and the columns of B of a block into `a` and `b`; an empty `b` is left out.
    fn pack(&self, block: &Block, a: &mut [u32], b: &mut [u32]) {
        let (kernel, k_words) = (self.kernel, self.k_words(block));
        if k_words == 0 {
            return;
        }
        let a_part = k_words * kernel.lanes;
        let b_part = k_words * kernel.cols();
        let a_group = (PACK_TASK_WORDS / a_part).max(1);
        let b_group = (PACK_TASK_WORDS / b_part).max(1);
        let a_groups = a.len().div_ceil(a_group * a_part);
        let b_groups = b.len().div_ceil(b_group * b_part);
        let num_tasks = a_groups.max(b_groups);
        let (a_len, b_len) = (a.len(), b.len());
        let (a, b) = (Parts::new(a), Parts::new(b));
        // Each task takes a share of both, so that a thread packs the rows of A that it will multiply.
        let share = |task: usize, groups: usize| task * groups / num_tasks..(task + 1) * groups / num_tasks;
        run_tasks(self.cpu, num_tasks, self.is_serial, |task| {
            for group in share(task, a_groups) {
                let start = group * a_group * a_part;
                // SAFETY: each task takes its own groups of panels.
                let panels = unsafe { a.get(start..(start + a_group * a_part).min(a_len)) };
                for (i, panel) in panels.chunks_exact_mut(a_part).enumerate() {
                    self.pack_rows(block, (group * a_group + i) * kernel.rows, panel);
                }
            }
            for group in share(task, b_groups) {
                let start = group * b_group * b_part;
                // SAFETY: each task takes its own groups of panels.
                let panels = unsafe { b.get(start..(start + b_group * b_part).min(b_len)) };
                for (i, panel) in panels.chunks_exact_mut(b_part).enumerate() {
                    self.pack_cols(block, (group * b_group + i) * kernel.cols(), panel);
                }
            }
        });
    }

    /// Packs the panel of A that starts at row `first` of the block.
    fn pack_rows(&self, block: &Block, first: usize, panel: &mut [u32]) {
        let a = &self.a;
        let row = block.rows.start + first;
        let strip = Strip {
            src: a.data[row * a.row_stride + block.ks.start * a.col_stride..].as_ptr(),
            line_stride: a.row_stride,
            k_stride: a.col_stride,
            lines: self.kernel.rows.min(block.rows.end - row),
            k: block.ks.len(),
            width: self.kernel.lanes,
        };
        // SAFETY: `check` found these rows and columns of A inside its slice.
        unsafe { (self.kernel.pack)(&strip, panel) };
    }

    /// Packs the panel of B that starts at column `first` of the block.
    fn pack_cols(&self, block: &Block, first: usize, panel: &mut [u32]) {
        let b = &self.b;
        let col = block.cols.start + first;
        let strip = Strip {
            src: b.data[block.ks.start * b.row_stride + col * b.col_stride..].as_ptr(),
            line_stride: b.col_stride,
            k_stride: b.row_stride,
            lines: self.kernel.cols().min(block.cols.end - col),
            k: block.ks.len(),
            width: self.kernel.cols(),
        };
        // SAFETY: `check` found these rows and columns of B inside its slice.
        unsafe { (self.kernel.pack)(&strip, panel) };
    }

    /// Computes the block of C from its panels.
    fn compute(&self, block: &Block, a: &[u32], b: &[u32]) {
        let row_panels = block.rows.len().div_ceil(self.kernel.rows);
        let col_panels = block.cols.len().div_ceil(self.kernel.cols());
        let (tile_rows, tile_cols) = tile_panels(row_panels, col_panels);
        let tiles_across = col_panels.div_ceil(tile_cols);
        let tiles = row_panels.div_ceil(tile_rows) * tiles_across;
        // Along the rows first: a thread's share of the tiles is a band of rows of C.
        run_tasks(self.cpu, tiles, self.is_serial, |index| {
            let (row, col) = (index / tiles_across * tile_rows, index % tiles_across * tile_cols);
            let rows = row..(row + tile_rows).min(row_panels);
            let cols = col..(col + tile_cols).min(col_panels);
            // SAFETY: every tile lies in C, inside its slice as `check` found, and is the work of one task.
            unsafe { (self.kernel.tile)(&self.tile(block, a, b, rows, cols)) };
        });
    }

    /// The tile of these panels.
    fn tile<'a>(
        &'a self,
        block: &Block,
        a: &'a [u32],
        b: &'a [u32],
        row_panels: Range<usize>,
        col_panels: Range<usize>,
    ) -> Tile<'a, C> {
        let (kernel, k_words) = (self.kernel, self.k_words(block));
        let (row, col) = (row_panels.start * kernel.rows, col_panels.start * kernel.cols());
        let (c_row, c_col) = (block.rows.start + row, block.cols.start + col);
        let sums_in_c = is_same::<C, f32>();
        let c = self.c.at(c_row * self.c_stride + c_col);
        let (sum, sum_stride) = if sums_in_c {
            (c.cast(), self.c_stride)
        } else {
            (self.sum.at(row * self.sum_stride + col), self.sum_stride)
        };
        Tile {
            a: &a[row_panels.start * k_words * kernel.lanes..row_panels.end * k_words * kernel.lanes],
            b: &b[col_panels.start * k_words * kernel.cols()..col_panels.end * k_words * kernel.cols()],
            k_words,
            rows: (row_panels.len() * kernel.rows).min(block.rows.len() - row),
            cols: (col_panels.len() * kernel.cols()).min(block.cols.len() - col),
            c,
            c_stride: self.c_stride,
            sum,
            sum_stride,
            has_sum: block.ks.start > 0 || sums_in_c && self.accumulate,
            is_last: block.ks.end == self.k,
            adds_c: self.accumulate && !sums_in_c,
            bias: self.bias.map(|bias| &bias[c_col..]),
        }
    }
}

/// Panels of A and of B in a tile: as large as the caches like, but small enough that there are [`MIN_TILES`].
fn tile_panels(row_panels: usize, col_panels: usize) -> (usize, usize) {
    let (mut rows, mut cols) = (even_cut(row_panels, TILE_ROW_PANELS, 1), even_cut(col_panels, TILE_COL_PANELS, 1));
    while row_panels.div_ceil(rows) * col_panels.div_ceil(cols) < MIN_TILES && rows * cols > 1 {
        if cols > 1 {
            cols = cols.div_ceil(2);
        } else {
            rows = rows.div_ceil(2);
        }
    }
    (rows, cols)
}
