//! Products against a plain triple loop in f64, at every size around the blocks, on every instruction set.
//!
//! The bound: f32 sums in any order err by at most `(k + 3) * 2^-24 * S` to first order, `S = sum |a b| + |bias| + |c|`;
//! we allow `(k + 4) * 2^-23 * S`, since `vdpbf16ps` may round its first product, plus half a unit in the last place of
//! C and what a flush of subnormals can take.

use super::*;

/// Numbers between -1 and 1 that are exact in no format, a different sequence for each seed.
fn numbers<T: Element>(len: usize, seed: u32) -> Vec<T> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            T::from_f32(state as f32 / 2f32.powi(31) - 1.0)
        })
        .collect()
}

#[derive(Clone, Copy, Debug)]
struct Case {
    m: usize,
    n: usize,
    k: usize,
    a_transposed: bool,
    b_transposed: bool,
    bias: bool,
    accumulate: bool,
    /// Columns by which every matrix is narrower than the one it is part of.
    gap: usize,
}

impl Case {
    fn new(m: usize, n: usize, k: usize) -> Self {
        Self { m, n, k, a_transposed: false, b_transposed: false, bias: false, accumulate: false, gap: 0 }
    }

    /// Every storage form, with and without bias and accumulation, packed and as part of a wider matrix.
    fn all_forms(self) -> impl Iterator<Item = Self> {
        (0..32).map(move |bits: u32| Self {
            a_transposed: bits & 1 != 0,
            b_transposed: bits & 2 != 0,
            bias: bits & 4 != 0,
            accumulate: bits & 8 != 0,
            gap: if bits & 16 != 0 { 5 } else { 0 },
            ..self
        })
    }

    /// The product and what was in C before it.
    fn run<T: GemmInput, C: Element>(self, cpu: &Cpu) -> Product<T, C> {
        let Case { m, n, k, gap, .. } = self;
        let stored = |rows: usize, cols: usize, transposed: bool, seed| {
            let (rows, cols) = if transposed { (cols, rows) } else { (rows, cols) };
            (numbers::<T>(rows * (cols + gap), seed), cols + gap)
        };
        let (a, a_stride) = stored(m, k, self.a_transposed, 1);
        let (b, b_stride) = stored(k, n, self.b_transposed, 2);
        let bias: Vec<T> = numbers(n, 3);
        let before: Vec<C> = numbers(m * (n + gap), 4);
        let mut c = before.clone();
        let mat = |transposed, data, stride| match transposed {
            true => Mat::transposed(data, stride),
            false => Mat::row_major(data, stride),
        };
        let args = GemmArgs {
            m,
            n,
            k,
            a: mat(self.a_transposed, &a, a_stride),
            b: mat(self.b_transposed, &b, b_stride),
            c: MatMut::row_major(&mut c, n + gap),
            bias: self.bias.then_some(&bias),
            accumulate: self.accumulate,
        };
        gemm(cpu, args);
        Product { case: self, a, b, bias, before, c }
    }
}

struct Product<T, C> {
    case: Case,
    a: Vec<T>,
    b: Vec<T>,
    bias: Vec<T>,
    before: Vec<C>,
    c: Vec<C>,
}

impl<T: GemmInput, C: Element> Product<T, C> {
    /// Compares with the plain loop, and the elements between rows with what they were.
    fn assert_right(&self, isa: Isa) {
        let Case { m, n, k, gap, .. } = self.case;
        let at = |data: &[T], transposed, rows: usize, cols: usize, i: usize, j: usize| {
            f64::from(data[if transposed { j * (rows + gap) + i } else { i * (cols + gap) + j }].to_f32())
        };
        for i in 0..m {
            for j in 0..n + gap {
                let got = self.c[i * (n + gap) + j].to_f32();
                let before = self.before[i * (n + gap) + j].to_f32();
                if j >= n {
                    assert!(got == before, "a neighbour of C was written: {:?} {isa}", self.case);
                    continue;
                }
                let bias = if self.case.bias { f64::from(self.bias[j].to_f32()) } else { 0.0 };
                let old = if self.case.accumulate { f64::from(before) } else { 0.0 };
                let (mut want, mut size) = (bias + old, bias.abs() + old.abs());
                for l in 0..k {
                    let product = at(&self.a, self.case.a_transposed, m, k, i, l)
                        * at(&self.b, self.case.b_transposed, k, n, l, j);
                    want += product;
                    size += product.abs();
                }
                let half_unit = match C::NAME {
                    "F32" => 0.0,
                    "BF16" => 2f64.powi(-8),
                    _ => 2f64.powi(-11),
                };
                let smallest = if C::NAME == "F16" { 2f64.powi(-24) } else { 2f64.powi(-120) };
                let bound =
                    (k + 4) as f64 * 2f64.powi(-23) * size * (1.0 + half_unit) + want.abs() * half_unit + smallest;
                let error = (f64::from(got) - want).abs();
                assert!(error <= bound, "({i}, {j}): {got} for {want}, {error:e} > {bound:e}: {:?} {isa}", self.case);
            }
        }
    }
}

fn check_types(cpu: &Cpu, case: Case) {
    case.run::<f32, f32>(cpu).assert_right(cpu.isa);
    case.run::<bf16, f32>(cpu).assert_right(cpu.isa);
    case.run::<bf16, bf16>(cpu).assert_right(cpu.isa);
    case.run::<f16, f32>(cpu).assert_right(cpu.isa);
    case.run::<f16, f16>(cpu).assert_right(cpu.isa);
}

#[test]
fn every_form_is_right_on_every_instruction_set() {
    for isa in Isa::all() {
        let cpu = Cpu::new(1, false, isa);
        for (m, n, k) in [(3, 5, 7), (8, 33, 65), (17, 31, 16), (31, 49, 33)] {
            Case::new(m, n, k).all_forms().for_each(|case| check_types(&cpu, case));
        }
    }
}

#[test]
fn sizes_around_every_block_are_right() {
    const SIZES: [usize; 20] = [0, 1, 2, 3, 5, 6, 7, 8, 9, 13, 14, 15, 16, 17, 31, 32, 33, 47, 48, 65];
    for isa in Isa::all() {
        let cpu = Cpu::new(1, false, isa);
        for (i, &m) in SIZES.iter().enumerate() {
            for (j, &n) in SIZES.iter().enumerate() {
                // A different k and form for each pair: all of them meet every m and n.
                let k = SIZES[(i * 7 + j * 3) % SIZES.len()];
                let case = Case::new(m, n, k).all_forms().nth((i * 5 + j * 11) % 32).expect("32 forms");
                check_types(&cpu, case);
            }
        }
    }
}

#[test]
fn blocks_of_rows_columns_and_k_add_up() {
    for isa in Isa::all() {
        let cpu = Cpu::new(2, true, isa);
        let few_rows = [(1, 300, 700), (2, 300, 70), (5, 257, 513), (8, 1100, 40)];
        for (m, n, k) in
            few_rows.into_iter().chain([(1027, 3, 19), (20, 1041, 9), (15, 33, 1025), (9, 17, 2049), (1030, 1030, 2)])
        {
            for case in Case::new(m, n, k).all_forms().step_by(5) {
                check_types(&cpu, case);
            }
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    fn check<T: GemmInput, C: Element>(case: Case, isa: Isa) {
        let want = case.run::<T, C>(&Cpu::new(1, false, isa)).c;
        for threads in 2..=3 {
            let got = case.run::<T, C>(&Cpu::new(threads, true, isa)).c;
            assert!(bytemuck::cast_slice::<C, u8>(&got) == bytemuck::cast_slice::<C, u8>(&want), "{case:?} {isa}");
        }
    }
    for isa in Isa::all() {
        for (m, n, k) in [(1, 300, 700), (5, 257, 513), (129, 130, 1100), (300, 65, 128)] {
            for case in Case::new(m, n, k).all_forms().take(16) {
                check::<f32, f32>(case, isa);
                check::<bf16, bf16>(case, isa);
                check::<f16, f16>(case, isa);
            }
        }
    }
}

#[test]
fn a_product_over_no_k_is_the_bias_or_nothing() {
    let cpu = Cpu::single();
    for m in [1, 20] {
        for b_transposed in [false, true] {
            let case = Case { b_transposed, ..Case::new(m, 9, 0) };
            let c = case.run::<bf16, f32>(&cpu).c;
            assert!(c.iter().all(|&x| x == 0.0));
            let product = Case { bias: true, ..case }.run::<bf16, f32>(&cpu);
            assert!(product.c.chunks(9).all(|row| row.iter().zip(&product.bias).all(|(c, b)| *c == b.to_f32())));
            let product = Case { accumulate: true, ..case }.run::<bf16, bf16>(&cpu);
            assert!(product.c == product.before);
        }
    }
}

#[test]
fn infinities_and_nans_reach_the_result_and_nothing_else() {
    for isa in Isa::all() {
        let cpu = Cpu::new(1, false, isa);
        for (m, value) in [(3, f32::INFINITY), (20, f32::INFINITY), (3, f32::NAN), (20, f32::NAN)] {
            let (a, b) = (vec![bf16::ONE; m * 9], vec![bf16::ONE; 18 * 9]);
            let mut a = a;
            a[9] = <bf16 as Element>::from_f32(value);
            let mut c = vec![bf16::ZERO; m * 18];
            let args = GemmArgs {
                m,
                n: 18,
                k: 9,
                a: Mat::row_major(&a, 9),
                b: Mat::transposed(&b, 9),
                c: MatMut::row_major(&mut c, 18),
                bias: None,
                accumulate: false,
            };
            gemm(&cpu, args);
            for (i, row) in c.chunks(18).enumerate() {
                let want = if i == 1 { value } else { 9.0 };
                let right = |x: &bf16| Element::to_f32(*x) == want || x.is_nan() && want.is_nan();
                assert!(row.iter().all(right), "row {i}: {row:?} {isa}");
            }
        }
    }
}

#[test]
#[should_panic(expected = "gemm: b [4, 3] reaches past its slice")]
fn a_matrix_that_reaches_past_its_slice_is_refused() {
    let (a, b, mut c) = (vec![0f32; 8], vec![0f32; 11], vec![0f32; 6]);
    let args = GemmArgs {
        m: 2,
        n: 3,
        k: 4,
        a: Mat::row_major(&a, 4),
        b: Mat::row_major(&b, 3),
        c: MatMut::row_major(&mut c, 3),
        bias: None,
        accumulate: false,
    };
    gemm(&Cpu::single(), args);
}

#[test]
#[should_panic(expected = "reaches past its slice")]
fn strides_whose_product_wraps_are_refused() {
    let (a, b, mut c) = ([0.0f32; 8], [0.0f32; 8], [0.0f32; 3]);
    let a = Mat { data: &a, row_stride: 1 << 63, col_stride: 1 };
    let (b, c) = (Mat::transposed(&b, 8), MatMut::row_major(&mut c, 1));
    gemm(&Cpu::single(), GemmArgs { m: 3, n: 1, k: 8, a, b, c, bias: None, accumulate: false });
}
