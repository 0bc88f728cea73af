//! 8-bit blocks: numbers of one sign or both in a byte each, for the moments of optimizers.
//!
//! A block is [`BLOCK`] elements and takes [`WORDS`] words: the largest magnitude, then four codes to a word. A code is a
//! number between -1 and 1 on a grid that is fine near 1 and reaches down by seven powers of ten, times that magnitude.
//! Decade `i` of seven, `10^(i-7)..10^(i-6)`, is cut into `2^i` equal steps (twice as many without signs), and a number
//! stands for the middle of its step.
//!
//! Source: Dettmers et al. 2021, "8-bit Optimizers via Block-wise Quantization", arXiv:2110.02861, section 2.2 (dynamic tree
//! quantization), with blocks of 256. Where we differ: a block without negative numbers takes the finer grid by itself
//! (its magnitude is written with a minus sign), and with signs the highest step is -1 and 1 exactly.
//!
//! # Invariants
//! - Codes of what was decoded are the same codes: what is stored as f32 and read back is the same block, bit for bit.
//! - A block whose largest magnitude is below 1e-32 is zero.

use crate::Cpu;
use crate::isa::multiversion;
use crate::rows::{ELEMENTS_PER_TASK, for_rows, rows};
use std::ops::Range;

/// Elements that share a magnitude.
pub const BLOCK: usize = 256;

/// Words of a block.
pub const WORDS: usize = 1 + BLOCK / 4;

/// Below it, the products of codes with the magnitude would leave the range in which f32 is exact enough.
const SMALLEST: f32 = 1e-32;

const DECADES: usize = 7;

/// Words that hold `len` elements.
pub fn words(len: usize) -> usize {
    len.div_ceil(BLOCK) * WORDS
}

/// The words of a range of elements that begins with a block.
pub(crate) fn words_of(elements: Range<usize>) -> Range<usize> {
    elements.start / BLOCK * WORDS..elements.end.div_ceil(BLOCK) * WORDS
}

/// `blocks = x`: `[n]` into [`words`] of `n`.
pub fn quantize(cpu: &Cpu, x: &[f32], blocks: &mut [u32]) {
    assert_eq!(blocks.len(), words(x.len()), "quantize: length of the blocks");
    for_rows(cpu, x.len().div_ceil(BLOCK), ELEMENTS_PER_TASK / BLOCK, rows(blocks, WORDS), |range, blocks| {
        encode(cpu.isa, &x[range.start * BLOCK..x.len().min(range.end * BLOCK)], blocks);
    });
}

/// `x = blocks`: [`words`] of `n` into `[n]`.
pub fn dequantize(cpu: &Cpu, blocks: &[u32], x: &mut [f32]) {
    assert_eq!(blocks.len(), words(x.len()), "dequantize: length of the blocks");
    cpu.pool.run_parts(x, ELEMENTS_PER_TASK, |i, x| {
        let start = i * ELEMENTS_PER_TASK;
        decode(cpu.isa, &blocks[words_of(start..start + x.len())], x);
    });
}

/// The numbers of one grid.
struct Grid {
    /// By code. With signs: bit 7 is the sign.
    values: [f32; 256],
    /// Steps of the lowest decade.
    steps: f32,
    /// The highest code of a positive number; it stands for 1.
    top: u8,
    /// From here on a number is nearer to 1 than to the code below.
    near_one: f32,
    /// Below it a number is nearer to 0 than to the first code.
    near_zero: f32,
}

static SIGNED: Grid = grid(1);
static UNSIGNED: Grid = grid(2);

const fn grid(steps: usize) -> Grid {
    let mut values = [0.0; 256];
    let (mut code, mut decade, mut scale) = (1, 0, 1e-6);
    while decade < DECADES {
        let count = steps << decade;
        let mut step = 0;
        while step < count {
            values[code] = ((0.1 + 0.9 * (step as f64 + 0.5) / count as f64) * scale) as f32;
            code += 1;
            step += 1;
        }
        decade += 1;
        scale *= 10.0;
    }
    // With signs the last step itself; without, the one code that is left.
    let top = if steps == 1 { 127 } else { 255 };
    values[top] = 1.0;
    let mut code = 0;
    while steps == 1 && code < 128 {
        values[128 + code] = -values[code];
        code += 1;
    }
    let (near_one, near_zero) = ((values[top - 1] + 1.0) / 2.0, values[1] / 2.0);
    Grid { values, steps: steps as f32, top: top as u8, near_one, near_zero }
}

impl Grid {
    /// The code of `n` from 0 to 1.
    #[inline(always)]
    fn code(&self, n: f32) -> u8 {
        const FLOORS: [f32; DECADES] = [0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1];
        const SCALES: [f32; DECADES] = [1e6, 1e5, 1e4, 1e3, 1e2, 1e1, 1.0];
        let (mut scale, mut power) = (SCALES[0], 1.0);
        for decade in 1..DECADES {
            let is_above = n >= FLOORS[decade];
            scale = if is_above { SCALES[decade] } else { scale };
            power = if is_above { (1 << decade) as f32 } else { power };
        }
        let count = self.steps * power;
        let step = ((n * scale - 0.1) * (count / 0.9)).clamp(0.0, count - 1.0) as i32;
        let code = 1 + (self.steps * (power - 1.0)) as i32 + step;
        let code = code.min(i32::from(self.top) - 1);
        let code = if n >= self.near_one { i32::from(self.top) } else { code };
        (if n < self.near_zero { 0 } else { code }) as u8
    }
}

multiversion! {
    pub(crate) fn encode(x: &[f32], blocks: &mut [u32]) {
        for (x, block) in x.chunks(BLOCK).zip(blocks.as_chunks_mut::<WORDS>().0) {
            let (mut largest, mut signs) = (0u32, 0u32);
            for x in x {
                // Magnitudes are ordered as their bits are; a NaN is the largest.
                largest = largest.max(x.to_bits() & 0x7fff_ffff);
                signs |= x.to_bits();
            }
            let largest = f32::from_bits(largest);
            let [header, codes @ ..] = block;
            let codes: &mut [u8] = bytemuck::cast_slice_mut(codes);
            if largest < SMALLEST {
                *header = 0;
                codes.fill(0);
                continue;
            }
            let is_signed = signs >> 31 == 1;
            *header = if is_signed { largest } else { -largest }.to_bits();
            let grid = if is_signed { &SIGNED } else { &UNSIGNED };
            codes[x.len()..].fill(0);
            for (code, x) in codes.iter_mut().zip(x) {
                *code = grid.code(x.abs() / largest) | (x.to_bits() >> 31 << 7) as u8;
            }
        }
    }
}

multiversion! {
    pub(crate) fn decode(blocks: &[u32], x: &mut [f32]) {
        for (x, block) in x.chunks_mut(BLOCK).zip(blocks.as_chunks::<WORDS>().0) {
            let [header, codes @ ..] = block;
            let largest = f32::from_bits(*header);
            let grid = if largest.is_sign_negative() { &UNSIGNED } else { &SIGNED };
            let codes: &[u8] = bytemuck::cast_slice(codes);
            for (x, code) in x.iter_mut().zip(codes) {
                *x = grid.values[usize::from(*code)] * largest.abs();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;

    fn there_and_back(x: &[f32]) -> (Vec<u32>, Vec<f32>) {
        let (mut blocks, mut back) = (vec![0; words(x.len())], vec![0.0; x.len()]);
        quantize(&Cpu::single(), x, &mut blocks);
        dequantize(&Cpu::single(), &blocks, &mut back);
        (blocks, back)
    }

    /// Numbers over nine powers of ten.
    fn spread(seed: u32, len: usize, signed: bool) -> Vec<f32> {
        let (a, b) = (values(seed, len), values(seed + 1, len));
        let number = |(a, b): (&f64, &f64)| (if signed { *a } else { a.abs() }) * 10f64.powf(b * 2.0 - 4.0);
        a.iter().zip(&b).map(|x| number(x) as f32).collect()
    }

    #[test]
    fn the_grids_rise_and_no_number_is_farther_from_its_code_than_three_quarters_of_a_step() {
        assert!(UNSIGNED.values.is_sorted_by(|a, b| a < b) && SIGNED.values[..128].is_sorted_by(|a, b| a < b));
        for (signed, steps) in [(true, 1.0), (false, 2.0)] {
            let x = spread(1, 4096, signed);
            let (_, back) = there_and_back(&x);
            for (x, back) in x.chunks(BLOCK).zip(back.chunks(BLOCK)) {
                let largest = x.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                for (x, back) in x.iter().zip(back) {
                    let n = x.abs() / largest;
                    let decade = (n.log10().floor() + 7.0).clamp(0.0, 6.0);
                    let step = 0.9 * 10f32.powf(decade - 6.0) / (steps * 2f32.powf(decade));
                    assert!((x - back).abs() <= 0.751 * step * largest, "{x} came back as {back}; largest {largest}");
                }
            }
        }
    }

    #[test]
    fn what_was_decoded_encodes_to_the_same_codes() {
        let mut numbers = [spread(1, 4000, true), spread(3, 3333, false)].concat();
        numbers
            .extend([vec![0.0; 256], vec![-0.0; 256], vec![1e-40; 256], vec![-3.0; 300], vec![1e-31, -2e-38]].concat());
        numbers.extend(spread(5, 2000, true).iter().map(|x| x * 1e-27));
        for signed in [&SIGNED, &UNSIGNED] {
            numbers.extend(signed.values.map(|x| x * 0.7123));
        }
        let (blocks, back) = there_and_back(&numbers);
        assert!(there_and_back(&back) == (blocks, back));
    }

    #[test]
    fn the_largest_number_of_a_block_is_exact_on_either_side_and_zero_is_zero() {
        for x in [vec![0.3, -7.77, 0.0], vec![0.3, 7.77, 0.0], vec![0.0, 0.0], vec![-0.1, 7.77, 0.0]] {
            let (_, back) = there_and_back(&x);
            for (x, back) in x.iter().zip(&back) {
                assert!(*back == *x || ![0.0, 7.77].contains(&x.abs()), "{x} came back as {back}");
            }
        }
    }

    #[test]
    fn every_instruction_set_and_thread_count_gives_the_same_bits() {
        for len in [1, 255, 256, 257, 40_000] {
            let x = spread(7, len, len % 2 == 0);
            assert_same_bits(|cpu| {
                let (mut blocks, mut back) = (vec![0; words(len)], vec![0.0; len]);
                quantize(cpu, &x, &mut blocks);
                dequantize(cpu, &blocks, &mut back);
                back
            });
        }
    }
}
