//! A matrix divided by its Frobenius norm: what Newton-Schulz iterations begin with.

use crate::Cpu;
use crate::elementwise::scale;
use crate::reduce::{UNIT, sum_squares};

/// `x /= max(|x|, eps)`, with the L2 norm over all elements.
pub fn normalize(cpu: &Cpu, x: &mut [f32], eps: f32) {
    let mut partial = vec![0.0; x.len().div_ceil(UNIT)];
    sum_squares(cpu, x, &mut partial);
    let norm = partial.iter().map(|&sum| f64::from(sum)).sum::<f64>().sqrt() as f32;
    scale(cpu, x, 1.0 / norm.max(eps));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;

    #[test]
    fn the_norm_becomes_one_and_zero_stays_zero() {
        for len in [1, 4096, 10_000] {
            let mut x = elements::<f32>(1, len);
            normalize(&Cpu::single(), &mut x, 1e-7);
            let squares = dot(&to_f64(&x), &to_f64(&x));
            assert!((squares - 1.0).abs() < 1e-6, "length {len}: {squares}");
        }
        let mut zero = vec![0.0f32; 10];
        normalize(&Cpu::single(), &mut zero, 1e-7);
        assert_eq!(zero, [0.0; 10]);
    }

    #[test]
    fn every_instruction_set_and_thread_count_gives_the_same_bits() {
        let x = elements::<f32>(1, 50_001);
        assert_same_bits(|cpu| {
            let mut x = x.clone();
            normalize(cpu, &mut x, 1e-7);
            x
        });
    }
}
