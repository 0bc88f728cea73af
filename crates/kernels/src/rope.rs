//! Rotary position embedding: in each head, element `j` and element `j + rotary_dim / 2` are turned by the angle of
//! the token's position and of `j`.
//!
//! Source: Su et al. 2021, arXiv:2104.09864, with the pairs of Transformers' `rotate_half`. Angles come as tables, so
//! that scaled variants (llama3, yarn) are the caller's. Arithmetic is f32; the tables are not rounded.

use crate::isa::multiversion;
use crate::rows::rows_per_task;
use crate::{Cpu, Element};

/// Turns the first `num_heads` heads of each row of `x` in place.
///
/// - `x`: row `n` begins at `n * row_stride` and holds heads of `head_dim` elements; what follows the heads is left
///   alone, so that the keys in a packed `[q | k | v]` row are turned by passing `&mut x[first_key..]`.
/// - `cos`, `sin` `[P, rotary_dim / 2]`: tables by position; `positions` `[N]`, each below `P`.
/// - `rotary_dim`: even, at most `head_dim`; the rest of a head is left alone.
/// - `inverse`: turn back (the transpose: what the gradient needs, also where the tables carry a scale).
#[allow(clippy::too_many_arguments, reason = "three numbers describe the layout")]
pub fn apply<T: Element>(
    cpu: &Cpu,
    x: &mut [T],
    row_stride: usize,
    num_heads: usize,
    head_dim: usize,
    cos: &[f32],
    sin: &[f32],
    rotary_dim: usize,
    positions: &[u32],
    inverse: bool,
) {
    let (num_rows, row_len, half) = (positions.len(), num_heads * head_dim, rotary_dim / 2);
    if num_rows == 0 || half == 0 {
        return;
    }
    assert!(rotary_dim.is_multiple_of(2) && rotary_dim <= head_dim, "rope::apply: rotary_dim");
    assert!(row_len <= row_stride && x.len() >= (num_rows - 1) * row_stride + row_len, "rope::apply: length of x");
    assert!(cos.len() == sin.len() && cos.len().is_multiple_of(half), "rope::apply: length of cos and sin");
    let table_len = cos.len() / half;
    assert!(positions.iter().all(|&p| (p as usize) < table_len), "rope::apply: a position beyond the tables");
    let end = x.len().min(num_rows * row_stride);
    let rows_per_task = rows_per_task(row_len);
    cpu.pool.run_parts(&mut x[..end], rows_per_task * row_stride, |i, x| {
        let first = i * rows_per_task;
        let positions = &positions[first..(first + rows_per_task).min(num_rows)];
        apply_rows(cpu.isa, x, row_stride, row_len, head_dim, cos, sin, half, positions, inverse);
    });
}

multiversion! {
    fn apply_rows<T: Element>(
        x: &mut [T], row_stride: usize, row_len: usize, head_dim: usize,
        cos: &[f32], sin: &[f32], half: usize, positions: &[u32], inverse: bool,
    ) {
        let sign = if inverse { -1.0 } else { 1.0 };
        for (row, &position) in x.chunks_mut(row_stride).zip(positions) {
            let angle = position as usize * half..(position as usize + 1) * half;
            let (cos, sin) = (&cos[angle.clone()], &sin[angle]);
            for head in row[..row_len].chunks_exact_mut(head_dim) {
                let (low, high) = head[..2 * half].split_at_mut(half);
                for (((low, high), &cos), &sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                    let (a, b, sin) = (low.to_f32(), high.to_f32(), sign * sin);
                    *low = T::from_f32(a * cos - b * sin);
                    *high = T::from_f32(b * cos + a * sin);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16;
    use crate::testing::*;

    struct Case {
        row_stride: usize,
        num_heads: usize,
        head_dim: usize,
        rotary_dim: usize,
        positions: Vec<u32>,
        cos: Vec<f32>,
        sin: Vec<f32>,
    }

    impl Case {
        /// Tables of a rotation that also scales by 1.25, as yarn's do.
        fn new(num_rows: usize, num_heads: usize, head_dim: usize, rotary_dim: usize) -> Self {
            let angle = |i: usize| (i as f32 * 0.37).rem_euclid(6.0);
            let table = |f: fn(f32) -> f32| (0..50 * rotary_dim / 2).map(|i| 1.25 * f(angle(i))).collect();
            Self {
                row_stride: num_heads * head_dim + 3,
                num_heads,
                head_dim,
                rotary_dim,
                positions: (0..num_rows as u32).map(|n| n * 7 % 50).collect(),
                cos: table(f32::cos),
                sin: table(f32::sin),
            }
        }

        fn apply<T: Element>(&self, cpu: &Cpu, x: &mut [T], inverse: bool) {
            let Case { row_stride, num_heads, head_dim, rotary_dim, positions, cos, sin } = self;
            apply(cpu, x, *row_stride, *num_heads, *head_dim, cos, sin, *rotary_dim, positions, inverse);
        }

        fn len(&self) -> usize {
            self.positions.len() * self.row_stride
        }

        fn reference(&self, x: &[f64]) -> Vec<f64> {
            let (mut y, half) = (x.to_vec(), self.rotary_dim / 2);
            for (n, &position) in self.positions.iter().enumerate() {
                for head in 0..self.num_heads {
                    for j in 0..half {
                        let low = n * self.row_stride + head * self.head_dim + j;
                        let entry = position as usize * half + j;
                        let (cos, sin) = (f64::from(self.cos[entry]), f64::from(self.sin[entry]));
                        y[low] = x[low] * cos - x[low + half] * sin;
                        y[low + half] = x[low + half] * cos + x[low] * sin;
                    }
                }
            }
            y
        }
    }

    fn agrees_with_f64<T: Element>(case: &Case) {
        let (x, dy) = (elements::<T>(1, case.len()), elements::<T>(2, case.len()));
        let (mut y, mut dx) = (x.clone(), dy.clone());
        case.apply(&Cpu::single(), &mut y, false);
        case.apply(&Cpu::single(), &mut dx, true);
        let (x, dy) = (to_f64(&x), to_f64(&dy));
        assert_close("y", &y, &case.reference(&x), 3e-7);
        assert_close("dx", &dx, &gradient(&x, |x| dot(&case.reference(x), &dy)), 3e-7);
    }

    #[test]
    fn forward_and_inverse_agree_with_f64_and_its_finite_differences() {
        for (heads, head_dim, rotary_dim) in [(1, 2, 2), (3, 10, 6), (2, 64, 64), (2, 9, 0)] {
            agrees_with_f64::<f32>(&Case::new(4, heads, head_dim, rotary_dim));
            agrees_with_f64::<bf16>(&Case::new(4, heads, head_dim, rotary_dim));
        }
    }

    #[test]
    fn keys_inside_a_packed_row_are_turned_and_their_neighbours_are_not() {
        let case = Case { row_stride: 12, ..Case::new(5, 1, 4, 4) };
        let x = elements::<f32>(1, case.len());
        let mut packed = x.clone();
        case.apply(&Cpu::single(), &mut packed[4..], false);
        let mut alone = x.clone();
        alone.drain(..4);
        case.apply(&Cpu::single(), &mut alone, false);
        assert_eq!(packed[4..], alone);
        let outside = |i: &usize| !(4..8).contains(&(i % 12));
        assert!((0..x.len()).filter(outside).all(|i| packed[i] == x[i]));
        assert!((0..x.len()).filter(|i| !outside(i)).any(|i| packed[i] != x[i]));
    }

    #[test]
    fn every_instruction_set_and_thread_count_gives_the_same_bits() {
        for (num_rows, heads, head_dim, rotary_dim) in [(1, 1, 2, 2), (300, 3, 70, 66), (9, 40, 64, 64)] {
            let case = Case::new(num_rows, heads, head_dim, rotary_dim);
            let x = elements::<f32>(1, case.len());
            assert_same_bits(|cpu| {
                let mut y = x.clone();
                case.apply(cpu, &mut y, false);
                y
            });
        }
    }
}
