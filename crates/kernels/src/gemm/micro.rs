//! The micro-kernel: one small tile of C held in registers while k runs. Written once, compiled per instruction set.
//!
//! Panels are made of 32-bit *words*: an f32, or two bf16 that follow each other along k where the instruction set
//! multiplies pairs. A panel of A holds up to `ROWS` rows, a panel of B up to `COL_VECTORS * LANES` columns, both as
//! `[k_words][width]`; a panel of A is `LANES` wide, so that packing it stores whole registers.
//!
//! # Order of events in a tile
//! 1. The tile of A B is summed over the k of this block, in registers.
//! 2. If earlier blocks of k (or an accumulation into f32) left a sum, it is added.
//! 3. In the last block the bias and, where C is not f32, the old C are added and C is written, rounded once;
//!    in the others the sum is written.

use crate::element::Element;

/// Registers side by side in a tile of C.
pub(super) const COL_VECTORS: usize = 2;
/// Steps of k before the end of a tile of registers at which the lines of C are asked for.
const PREFETCH_STEPS: usize = 64;
/// The widest vector, in words.
pub(super) const MAX_LANES: usize = 16;

/// The instructions a kernel is made of. A value is a token: it is only made in functions compiled for its instruction
/// set, so the methods may use it; they are always inlined into such a function.
pub(super) trait Simd: Copy {
    /// A vector of `LANES` words, or of `LANES` f32.
    type Reg: Copy;
    /// Words in a vector, at most [`MAX_LANES`].
    const LANES: usize;
    /// Rows in a tile of C, at most `LANES`.
    const ROWS: usize;
    /// Elements along k in one word.
    const K_PER_WORD: usize = 1;

    /// All lanes 0.
    fn zero(self) -> Self::Reg;
    /// # Safety
    /// `LANES` words may be read.
    unsafe fn load(self, words: *const u32) -> Self::Reg;
    /// # Safety
    /// `LANES` words may be written.
    unsafe fn store(self, words: *mut u32, reg: Self::Reg);
    /// One word in all lanes.
    ///
    /// # Safety
    /// The word may be read.
    unsafe fn splat(self, word: *const u32) -> Self::Reg;
    /// f32 lanes `acc + a b`, where `a` and `b` are words: the sum of two products where words are pairs.
    fn mul_add(self, a: Self::Reg, b: Self::Reg, acc: Self::Reg) -> Self::Reg;
    /// f32 lanes `a b + acc`, where words are pairs as well.
    #[inline(always)]
    fn mul_add_f32(self, a: Self::Reg, b: Self::Reg, acc: Self::Reg) -> Self::Reg {
        self.mul_add(a, b, acc)
    }
    /// f32 lanes `a + b`.
    fn add(self, a: Self::Reg, b: Self::Reg) -> Self::Reg;
    /// The sum of the f32 lanes, in an order that is always the same.
    fn sum(self, a: Self::Reg) -> f32;
    /// `min(len, LANES)` elements as f32 lanes, 0 in the lanes after them.
    ///
    /// # Safety
    /// As many elements may be read.
    unsafe fn read<E: Element>(self, src: *const E, len: usize) -> Self::Reg;
    /// The first `min(len, LANES)` f32 lanes, rounded to nearest.
    ///
    /// # Safety
    /// As many elements may be written.
    unsafe fn write<E: Element>(self, dst: *mut E, len: usize, reg: Self::Reg);
    /// Transposes the square of the first `LANES` registers.
    fn transpose(self, block: &mut [Self::Reg; MAX_LANES]);

    /// Words from the next `min(k_left, K_PER_WORD * LANES)` elements along k, which lie next to each other; zeros after.
    ///
    /// # Safety
    /// As many elements may be read.
    #[inline(always)]
    unsafe fn along_k<T: Element>(self, src: *const T, k_left: usize) -> Self::Reg {
        // SAFETY: as the caller promises.
        unsafe { self.read(src, k_left) }
    }
    /// One word for each of `min(lines, LANES)` lines that lie next to each other, from the next
    /// `min(k_left, K_PER_WORD)` elements of each, `k_stride` apart; zeros after.
    ///
    /// # Safety
    /// These elements may be read; `k_left` is not 0.
    #[inline(always)]
    unsafe fn across<T: Element>(self, src: *const T, _k_stride: usize, _k_left: usize, lines: usize) -> Self::Reg {
        // SAFETY: as the caller promises.
        unsafe { self.read(src, lines) }
    }
}

/// What the drivers know of an instruction set. The functions may be called wherever the machine has it, which the
/// [`crate::Isa`] that chose the kernel promises.
pub(super) struct Kernel<T, C> {
    /// Rows in a tile of C.
    pub(super) rows: usize,
    /// Words in a vector: the width of a panel of A.
    pub(super) lanes: usize,
    /// Elements along k in one word.
    pub(super) k_per_word: usize,
    /// [`super::pack::strip`].
    pub(super) pack: unsafe fn(&super::pack::Strip<T>, &mut [u32]),
    /// [`tile`].
    pub(super) tile: unsafe fn(&Tile<C>),
    /// [`super::skinny::dots`].
    pub(super) dots: unsafe fn(&super::skinny::Few<T, C>),
    /// [`super::skinny_columns::stream`].
    pub(super) stream: unsafe fn(&super::skinny_columns::Stream<T>, &mut [f32]),
    /// [`super::skinny_columns::columns`].
    pub(super) columns: unsafe fn(&super::skinny::Few<T, C>),
}

impl<T, C> Kernel<T, C> {
    /// Columns in a tile of C: the width of a panel of B.
    pub(super) fn cols(&self) -> usize {
        COL_VECTORS * self.lanes
    }
}

/// Makes `kernel()`, the [`Kernel`] of a [`Simd`] token, whose functions are compiled for the features named.
macro_rules! entry_points {
    ($simd:ident $(, $features:literal)?) => {
        /// The entry points of this instruction set.
        pub(super) fn kernel<T: $crate::Element, C: $crate::Element>() -> $crate::gemm::micro::Kernel<T, C> {
            use $crate::gemm::{micro, pack, skinny, skinny_columns};

            $(#[target_feature(enable = $features)])?
            unsafe fn pack_entry<T: $crate::Element>(strip: &pack::Strip<T>, out: &mut [u32]) {
                // SAFETY: the caller promises what `strip` asks for.
                unsafe { pack::strip($simd, strip, out) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn tile_entry<C: $crate::Element>(tile: &micro::Tile<C>) {
                // SAFETY: the caller promises what `tile` asks for.
                unsafe { micro::tile($simd, tile) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn dots_entry<T: $crate::Element, C: $crate::Element>(job: &skinny::Few<T, C>) {
                // SAFETY: the caller promises what `dots` asks for.
                unsafe { skinny::dots($simd, job) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn stream_entry<T: $crate::Element>(job: &skinny_columns::Stream<T>, sums: &mut [f32]) {
                // SAFETY: the caller promises what `stream` asks for.
                unsafe { skinny_columns::stream($simd, job, sums) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn columns_entry<T: $crate::Element, C: $crate::Element>(job: &skinny::Few<T, C>) {
                // SAFETY: the caller promises what `columns` asks for.
                unsafe { skinny_columns::columns($simd, job) }
            }
            micro::Kernel {
                rows: <$simd as micro::Simd>::ROWS,
                lanes: <$simd as micro::Simd>::LANES,
                k_per_word: <$simd as micro::Simd>::K_PER_WORD,
                pack: pack_entry::<T>,
                tile: tile_entry::<C>,
                dots: dots_entry::<T, C>,
                stream: stream_entry::<T>,
                columns: columns_entry::<T, C>,
            }
        }
    };
}
pub(super) use entry_points;

/// A block of C of `rows` x `cols`, computed by one task from packed panels.
pub(super) struct Tile<'a, C> {
    /// The panels of A, one after the other, each `k_words * LANES` words.
    pub(super) a: &'a [u32],
    /// The panels of B, one after the other, each `k_words * COL_VECTORS * LANES` words.
    pub(super) b: &'a [u32],
    pub(super) k_words: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Where C (0, 0) goes.
    pub(super) c: *mut C,
    pub(super) c_stride: usize,
    /// Where the sum over earlier blocks of k is kept: C itself if it is f32.
    pub(super) sum: *mut f32,
    pub(super) sum_stride: usize,
    /// Whether `sum` holds something to be added.
    pub(super) has_sum: bool,
    /// Whether this is the last block of k: C is written, otherwise `sum`.
    pub(super) is_last: bool,
    /// Whether the old C is added when C is written.
    pub(super) adds_c: bool,
    /// One number for each column.
    pub(super) bias: Option<&'a [f32]>,
}

/// Computes a [`Tile`].
///
/// # Safety
/// `c` may be written (and read, if `adds_c`) at `rows` rows of `cols` elements, and so may `sum` unless this is the
/// only block of k; nobody else uses them meanwhile.
#[inline(always)]
pub(super) unsafe fn tile<S: Simd, C: Element>(s: S, tile: &Tile<C>) {
    let (a_len, b_len) = (tile.k_words * S::LANES, tile.k_words * COL_VECTORS * S::LANES);
    assert!(tile.a.len() >= tile.rows.div_ceil(S::ROWS) * a_len, "gemm: panels of a are missing");
    assert!(tile.b.len() >= tile.cols.div_ceil(COL_VECTORS * S::LANES) * b_len, "gemm: panels of b are missing");
    assert!(tile.bias.is_none_or(|bias| bias.len() >= tile.cols), "gemm: the bias is short");
    for (b_panel, col) in (0..tile.cols).step_by(COL_VECTORS * S::LANES).enumerate() {
        let b = &tile.b[b_panel * b_len..][..b_len];
        for (a_panel, row) in (0..tile.rows).step_by(S::ROWS).enumerate() {
            let a = &tile.a[a_panel * a_len..][..a_len];
            // SAFETY: the panels are whole (checked above) and as wide as `registers` reads; (row, col) lies in the tile.
            unsafe {
                match (tile.rows - row).min(S::ROWS) {
                    0..=2 => by_width::<S, C, 2>(s, tile, a, b, row, col),
                    3..=4 => by_width::<S, C, 4>(s, tile, a, b, row, col),
                    5..=6 => by_width::<S, C, 6>(s, tile, a, b, row, col),
                    7..=8 => by_width::<S, C, 8>(s, tile, a, b, row, col),
                    _ => by_width::<S, C, 14>(s, tile, a, b, row, col),
                }
            }
        }
    }
}

/// Leaves out the right half of the registers where it lies past the last column.
#[inline(always)]
unsafe fn by_width<S: Simd, C: Element, const R: usize>(
    s: S,
    tile: &Tile<C>,
    a: &[u32],
    b: &[u32],
    row: usize,
    col: usize,
) {
    if R > S::ROWS {
        return; // Never called; spares the code.
    }
    // SAFETY: as the caller promises.
    unsafe {
        if tile.cols - col > S::LANES {
            registers::<S, C, R, COL_VECTORS>(s, tile, a, b, row, col)
        } else {
            registers::<S, C, R, 1>(s, tile, a, b, row, col)
        }
    }
}

/// `R` rows of `V` vectors of C at (row, col) of the tile. Rows of A past the last are zero in the panel.
///
/// # Safety
/// As [`tile`]; `a` and `b` are one panel each, `R <= LANES` and `V <= COL_VECTORS`.
#[inline(always)]
unsafe fn registers<S: Simd, C: Element, const R: usize, const V: usize>(
    s: S,
    tile: &Tile<C>,
    a: &[u32],
    b: &[u32],
    row: usize,
    col: usize,
) {
    let prefetch_from = tile.k_words.saturating_sub(PREFETCH_STEPS);
    let mut acc = [[s.zero(); V]; R];
    let (mut a, mut b) = (a.as_ptr(), b.as_ptr());
    for step in 0..tile.k_words {
        // One row of C at a time: the loads of the panels must not queue behind it.
        let next_row = step.wrapping_sub(prefetch_from);
        if next_row < R {
            prefetch_row::<S, C>(tile, row + next_row, col);
        }
        let mut b_row = [s.zero(); V];
        // SAFETY: each step takes one row of `k_words` of either panel, which are `LANES` and `COL_VECTORS * LANES` wide.
        unsafe {
            for (v, reg) in b_row.iter_mut().enumerate() {
                *reg = s.load(b.add(v * S::LANES));
            }
            for (i, acc) in acc.iter_mut().enumerate() {
                let a_ik = s.splat(a.add(i));
                for v in 0..V {
                    acc[v] = s.mul_add(a_ik, b_row[v], acc[v]);
                }
            }
            a = a.add(S::LANES);
            b = b.add(COL_VECTORS * S::LANES);
        }
    }
    // SAFETY: (row, col) lies in the tile.
    unsafe { finish_registers(s, tile, row, col, acc) };
}

/// Adds what belongs to `R` rows of `V` vectors of C and writes them. In whole tiles each step is a loop of its own, short
/// enough that the sums stay in registers.
///
/// # Safety
/// As [`tile`]; (row, col) lies in it.
#[inline(always)]
unsafe fn finish_registers<S: Simd, C: Element, const R: usize, const V: usize>(
    s: S,
    tile: &Tile<C>,
    row: usize,
    col: usize,
    mut acc: [[S::Reg; V]; R],
) {
    let is_whole = row + R <= tile.rows && col + V * S::LANES <= tile.cols;
    // SAFETY: rows and columns lie in the tile.
    unsafe {
        if !is_whole || tile.adds_c {
            let mut rows = [[0f32; COL_VECTORS * MAX_LANES]; R];
            write_registers(s, acc, rows.as_mut_ptr().cast::<f32>(), COL_VECTORS * MAX_LANES);
            for (i, values) in rows.iter().enumerate().take(tile.rows - row) {
                for v in 0..V.min((tile.cols - col).div_ceil(S::LANES)) {
                    let acc = s.read(values.as_ptr().add(v * S::LANES), S::LANES);
                    finish(s, tile, row + i, col + v * S::LANES, acc);
                }
            }
            return;
        }
        if tile.has_sum {
            for (i, acc) in acc.iter_mut().enumerate() {
                let sum = tile.sum.add((row + i) * tile.sum_stride + col);
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = s.add(*acc, s.read(sum.add(v * S::LANES), S::LANES));
                }
            }
        }
        if !tile.is_last {
            return write_registers(s, acc, tile.sum.add(row * tile.sum_stride + col), tile.sum_stride);
        }
        if let Some(bias) = tile.bias {
            for v in 0..V {
                let bias = s.read(bias.as_ptr().add(col + v * S::LANES), S::LANES);
                for acc in acc.iter_mut() {
                    acc[v] = s.add(acc[v], bias);
                }
            }
        }
        write_registers(s, acc, tile.c.add(row * tile.c_stride + col), tile.c_stride);
    }
}

/// # Safety
/// `R` rows of `V * LANES` elements from `dst` on may be written.
#[inline(always)]
unsafe fn write_registers<S: Simd, E: Element, const R: usize, const V: usize>(
    s: S,
    acc: [[S::Reg; V]; R],
    dst: *mut E,
    stride: usize,
) {
    for (i, acc) in acc.iter().enumerate() {
        for (v, acc) in acc.iter().enumerate() {
            // SAFETY: as the caller promises.
            unsafe { s.write(dst.add(i * stride + v * S::LANES), S::LANES, *acc) };
        }
    }
}

/// Adds what belongs to one vector of C and writes it.
///
/// # Safety
/// As [`tile`]; (row, col) lies in it.
#[inline(always)]
unsafe fn finish<S: Simd, C: Element>(s: S, tile: &Tile<C>, row: usize, col: usize, mut acc: S::Reg) {
    let len = tile.cols - col;
    // SAFETY: `len` elements from (row, col) on lie in the tile, where the caller lets us use `sum` and `c`; the bias is
    // as long as the tile is wide.
    unsafe {
        if tile.has_sum {
            acc = s.add(acc, s.read(tile.sum.add(row * tile.sum_stride + col), len));
        }
        if !tile.is_last {
            return s.write(tile.sum.add(row * tile.sum_stride + col), len, acc);
        }
        if let Some(bias) = tile.bias {
            acc = s.add(acc, s.read(bias.as_ptr().add(col), len));
        }
        let c = tile.c.add(row * tile.c_stride + col);
        if tile.adds_c {
            acc = s.add(acc, s.read(c, len));
        }
        s.write(c, len, acc);
    }
}

/// Asks for the part of C, or of the sum, that a tile of registers will write.
#[inline(always)]
fn prefetch_row<S: Simd, C>(tile: &Tile<C>, row: usize, col: usize) {
    if tile.is_last {
        let c = tile.c.wrapping_add(row * tile.c_stride + col);
        prefetch(c);
        prefetch(c.wrapping_add(S::LANES));
    } else {
        let sum = tile.sum.wrapping_add(row * tile.sum_stride + col);
        prefetch(sum);
        prefetch(sum.wrapping_add(S::LANES));
    }
}

/// Asks for the cache line of an address, which need not exist.
#[inline(always)]
pub(super) fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch of any address is harmless, and every x86-64 has the instruction.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast())
    };
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
