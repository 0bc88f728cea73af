//! The one matrix product of attention: `C[r, l] (+)= sum_k A[r, k] B[k, l]`, on blocks that fit the first-level caches.
//!
//! `A` is read one *word* at a time and broadcast, so it may have any two strides; `B` and `C` are read in *units* of 16
//! adjacent words. A word is one f32, or two bf16 that are neighbours along `k` ([`Format`]); `C` is always f32.
//! Blocks are padded with zeros to whole units and to [`UNIT`] rows: there are no remainders.

/// Adjacent lanes of `B` and `C` that are always handled together; rows of `A` and `C` are a multiple of it too.
pub(super) use crate::fused::UNIT;
use crate::{Element, Isa};

/// What one 32-bit word of `A` and `B` holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// One f32.
    Single,
    /// Two bf16, the first along `k` in the low half.
    Bf16Pair,
}

impl Format {
    /// Pairs where the inputs are bf16 and the machine multiplies them as they are.
    pub(super) fn of<T: Element>(isa: Isa) -> Self {
        if T::NAME == "BF16" && isa.has_avx512_bf16() { Format::Bf16Pair } else { Format::Single }
    }

    /// Values in one word.
    pub(super) fn per_word(self) -> usize {
        match self {
            Format::Single => 1,
            Format::Bf16Pair => 2,
        }
    }
}

/// The sizes of a product and how `A` and `B` lie in memory, all in words.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    /// Element `(r, k)` is `a[r * a_row + k * a_depth]`.
    pub(super) a: &'a [u32],
    pub(super) a_row: usize,
    pub(super) a_depth: usize,
    /// Element `(k, l)` is `b[k * b_row + l]`.
    pub(super) b: &'a [u32],
    pub(super) b_row: usize,
    /// A multiple of [`UNIT`].
    pub(super) rows: usize,
    /// Lanes in units of [`UNIT`].
    pub(super) units: usize,
    /// Words summed over.
    pub(super) depth: usize,
}

/// `C = A B`, or `C += A B` if `add`; element `(r, l)` of `C` is `c[r * c_row + l]`.
pub(super) fn product(isa: Isa, format: Format, c: &mut [f32], c_row: usize, add: bool, p: Product<'_>) {
    if p.rows == 0 || p.units == 0 || (p.depth == 0 && add) {
        return;
    }
    let lanes = p.units * UNIT;
    assert!(p.depth > 0 && p.rows.is_multiple_of(UNIT), "attention product: {} rows, depth {}", p.rows, p.depth);
    assert!((p.rows - 1) * c_row + lanes <= c.len(), "attention product: C is too short");
    assert!((p.rows - 1) * p.a_row + (p.depth - 1) * p.a_depth < p.a.len(), "attention product: A is too short");
    assert!((p.depth - 1) * p.b_row + lanes <= p.b.len(), "attention product: B is too short");
    #[cfg(target_arch = "x86_64")]
    {
        if format == Format::Bf16Pair {
            assert!(isa.has_avx512_bf16(), "attention product: bf16 pairs need AVX-512 BF16");
            // SAFETY: the machine has AVX-512 BF16, and the lines above checked every index against its slice.
            return unsafe { x86::avx512_bf16(c.as_mut_ptr(), c_row, add, p) };
        }
        if isa.has_avx512() {
            // SAFETY: the machine has AVX-512, and the lines above checked every index against its slice.
            return unsafe { x86::avx512(c.as_mut_ptr(), c_row, add, p) };
        }
        if isa.has_avx2() {
            // SAFETY: the machine has AVX2 and FMA, and the lines above checked every index against its slice.
            return unsafe { x86::avx2(c.as_mut_ptr(), c_row, add, p) };
        }
    }
    let _ = (isa, format);
    portable(c, c_row, add, p);
}

fn portable(c: &mut [f32], c_row: usize, add: bool, p: Product<'_>) {
    for unit in 0..p.units {
        for r in 0..p.rows {
            let c = &mut c[r * c_row + unit * UNIT..][..UNIT];
            let mut sums = [0f32; UNIT];
            if add {
                sums.copy_from_slice(c);
            }
            for k in 0..p.depth {
                let a = f32::from_bits(p.a[r * p.a_row + k * p.a_depth]);
                let b = &p.b[k * p.b_row + unit * UNIT..][..UNIT];
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum += a * f32::from_bits(*b);
                }
            }
            c.copy_from_slice(&sums);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Product, UNIT};
    use std::arch::x86_64::*;

    /// One vector register of lanes.
    ///
    /// Its functions may only be called from code compiled for the instruction set of the type; pointers must be good
    /// for [`Lanes::WIDTH`] words (`splat`: for one).
    trait Lanes {
        type Sum: Copy;
        type Word: Copy;
        const WIDTH: usize;
        unsafe fn zero() -> Self::Sum;
        unsafe fn load(c: *const f32) -> Self::Sum;
        unsafe fn store(c: *mut f32, sum: Self::Sum);
        unsafe fn words(b: *const u32) -> Self::Word;
        unsafe fn splat(a: *const u32) -> Self::Word;
        unsafe fn multiply_add(sum: Self::Sum, a: Self::Word, b: Self::Word) -> Self::Sum;
    }

    macro_rules! lanes {
        ($name:ident, $width:literal, $sum:ty, $word:ty, $zero:ident, $load:ident, $store:ident,
         $words:expr, $splat:expr, $multiply_add:expr) => {
            struct $name;
            // SAFETY (of each call below): the trait's contract is what the intrinsics ask for.
            impl Lanes for $name {
                type Sum = $sum;
                type Word = $word;
                const WIDTH: usize = $width;
                #[inline(always)]
                unsafe fn zero() -> $sum {
                    // SAFETY: the caller has the instruction set.
                    unsafe { $zero() }
                }
                #[inline(always)]
                unsafe fn load(c: *const f32) -> $sum {
                    // SAFETY: the caller has the instruction set and a pointer good for WIDTH words.
                    unsafe { $load(c) }
                }
                #[inline(always)]
                unsafe fn store(c: *mut f32, sum: $sum) {
                    // SAFETY: the caller has the instruction set and a pointer good for WIDTH words.
                    unsafe { $store(c, sum) }
                }
                #[inline(always)]
                unsafe fn words(b: *const u32) -> $word {
                    // SAFETY: the caller has the instruction set and a pointer good for WIDTH words.
                    unsafe { $words(b) }
                }
                #[inline(always)]
                unsafe fn splat(a: *const u32) -> $word {
                    // SAFETY: the caller has the instruction set and a pointer good for one word.
                    unsafe { $splat(*a) }
                }
                #[inline(always)]
                unsafe fn multiply_add(sum: $sum, a: $word, b: $word) -> $sum {
                    // SAFETY: the caller has the instruction set.
                    unsafe { $multiply_add(sum, a, b) }
                }
            }
        };
    }

    lanes!(
        Avx2,
        8,
        __m256,
        __m256,
        _mm256_setzero_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        |b: *const u32| _mm256_loadu_ps(b.cast()),
        |a| _mm256_set1_ps(f32::from_bits(a)),
        |sum, a, b| _mm256_fmadd_ps(a, b, sum)
    );
    lanes!(
        Avx512,
        16,
        __m512,
        __m512,
        _mm512_setzero_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        |b: *const u32| _mm512_loadu_ps(b.cast()),
        |a| _mm512_set1_ps(f32::from_bits(a)),
        |sum, a, b| _mm512_fmadd_ps(a, b, sum)
    );
    lanes!(
        Avx512Bf16,
        16,
        __m512,
        __m512i,
        _mm512_setzero_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        |b: *const u32| _mm512_loadu_si512(b.cast()),
        |a: u32| _mm512_set1_epi32(a as i32),
        // The two types are 64 bytes of the same bits.
        |sum, a, b| _mm512_dpbf16_ps(
            sum,
            std::mem::transmute::<__m512i, __m512bh>(a),
            std::mem::transmute::<__m512i, __m512bh>(b)
        )
    );

    /// `R` rows by `N` registers, from row `r` and lane `l` on; the sums stay in registers over the whole depth.
    ///
    /// # Safety
    /// As for [`Lanes`]; the indices of rows `r..r + R`, lanes `l..l + N * WIDTH` and all of the depth are in bounds.
    #[inline(always)]
    unsafe fn tile<L: Lanes, const R: usize, const N: usize>(
        c: *mut f32,
        c_row: usize,
        add: bool,
        p: Product<'_>,
        r: usize,
        l: usize,
    ) {
        // SAFETY: the caller promises the instruction set and that every index formed here is in bounds.
        unsafe {
            let c = c.add(r * c_row + l);
            let (mut a, mut b) = (p.a.as_ptr().add(r * p.a_row), p.b.as_ptr().add(l));
            let mut sums = [[L::zero(); N]; R];
            if add {
                for (i, sums) in sums.iter_mut().enumerate() {
                    for (j, sum) in sums.iter_mut().enumerate() {
                        *sum = L::load(c.add(i * c_row + j * L::WIDTH));
                    }
                }
            }
            for _ in 0..p.depth {
                let mut words = [L::words(b); N];
                for (j, word) in words.iter_mut().enumerate().skip(1) {
                    *word = L::words(b.add(j * L::WIDTH));
                }
                for (i, sums) in sums.iter_mut().enumerate() {
                    let a = L::splat(a.add(i * p.a_row));
                    for (sum, word) in sums.iter_mut().zip(words) {
                        *sum = L::multiply_add(*sum, a, word);
                    }
                }
                // `wrapping`: the last step leaves the slices.
                a = a.wrapping_add(p.a_depth);
                b = b.wrapping_add(p.b_row);
            }
            for (i, sums) in sums.iter().enumerate() {
                for (j, sum) in sums.iter().enumerate() {
                    L::store(c.add(i * c_row + j * L::WIDTH), *sum);
                }
            }
        }
    }

    /// All tiles of `R x N` registers over the rows, for the lanes from `l` on.
    ///
    /// # Safety
    /// As for [`tile`], for all rows.
    #[inline(always)]
    unsafe fn column<L: Lanes, const R: usize, const N: usize>(
        c: *mut f32,
        c_row: usize,
        add: bool,
        p: Product<'_>,
        l: usize,
    ) {
        for r in (0..p.rows).step_by(R) {
            // SAFETY: the caller promises the instruction set and that all rows are in bounds.
            unsafe { tile::<L, R, N>(c, c_row, add, p, r, l) };
        }
    }

    /// Tiles of 16 of the 32 registers: their sums are stored while the next tile is multiplied.
    ///
    /// # Safety
    /// As for [`tile`], for all rows and lanes.
    #[inline(always)]
    unsafe fn by_units<L: Lanes>(c: *mut f32, c_row: usize, add: bool, p: Product<'_>) {
        for unit in (0..p.units).step_by(2) {
            let l = unit * UNIT;
            // SAFETY: the caller promises the instruction set and that all rows and lanes are in bounds.
            unsafe {
                match p.units - unit {
                    1 => column::<L, 8, 1>(c, c_row, add, p, l),
                    _ => column::<L, 8, 2>(c, c_row, add, p, l),
                }
            }
        }
    }

    /// # Safety
    /// The machine has AVX2 and FMA, and every index of the product is in bounds.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn avx2(c: *mut f32, c_row: usize, add: bool, p: Product<'_>) {
        for unit in 0..p.units {
            // SAFETY: the caller's promise; a unit is two registers.
            unsafe { column::<Avx2, 4, 2>(c, c_row, add, p, unit * UNIT) };
        }
    }

    /// # Safety
    /// The machine has AVX-512 F, and every index of the product is in bounds.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn avx512(c: *mut f32, c_row: usize, add: bool, p: Product<'_>) {
        // SAFETY: the caller's promise.
        unsafe { by_units::<Avx512>(c, c_row, add, p) }
    }

    /// # Safety
    /// The machine has AVX-512 F and BF16, and every index of the product is in bounds.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn avx512_bf16(c: *mut f32, c_row: usize, add: bool, p: Product<'_>) {
        // SAFETY: the caller's promise.
        unsafe { by_units::<Avx512Bf16>(c, c_row, add, p) }
    }
}
