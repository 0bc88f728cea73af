//! What a tensor's values look like beside the limits of a number format: for precision that adapts while training.
//!
//! Numbers are kept for each unit of [`UNIT`] elements and joined by whoever reads them, so that they do not depend on the
//! number of threads; a unit's counts are exact in f32.

use crate::isa::multiversion;
use crate::reduce::UNIT;
use crate::rows::{ELEMENTS_PER_TASK, for_rows, rows};
use crate::{Cpu, Element};

/// Numbers of one unit in [`survey`]: the largest finite magnitude; how many values are not finite, are not zero, and are
/// neither zero nor as large as `tiny`.
pub const SURVEY: usize = 4;

/// Numbers of one unit in [`distance`]: the sums of `(x - y)^2` and of `y^2`.
pub const DISTANCE: usize = 2;

/// Looks at the values of `x`. `tiny`: the smallest normal number of a format. `out` has [`SURVEY`] numbers for each
/// [`UNIT`] elements, the last unit may be short.
pub fn survey<T: Element>(cpu: &Cpu, x: &[T], tiny: f32, out: &mut [f32]) {
    let units = x.len().div_ceil(UNIT);
    assert_eq!(out.len(), units * SURVEY, "survey::survey: numbers for each unit");
    for_rows(cpu, units, ELEMENTS_PER_TASK / UNIT, rows(out, SURVEY), |range, out| {
        let x = &x[range.start * UNIT..x.len().min(range.end * UNIT)];
        for (out, unit) in out.chunks_mut(SURVEY).zip(x.chunks(UNIT)) {
            out.copy_from_slice(&survey_unit(cpu.isa, unit, tiny));
        }
    });
}

/// How far `x` is from `y`. `out` has [`DISTANCE`] numbers for each [`UNIT`] elements.
pub fn distance<T: Element>(cpu: &Cpu, x: &[T], y: &[f32], out: &mut [f32]) {
    let units = x.len().div_ceil(UNIT);
    assert_eq!((y.len(), out.len()), (x.len(), units * DISTANCE), "survey::distance: lengths");
    for_rows(cpu, units, ELEMENTS_PER_TASK / UNIT, rows(out, DISTANCE), |range, out| {
        let elements = range.start * UNIT..x.len().min(range.end * UNIT);
        let units = x[elements.clone()].chunks(UNIT).zip(y[elements].chunks(UNIT));
        for (out, (x, y)) in out.chunks_mut(DISTANCE).zip(units) {
            out.copy_from_slice(&distance_unit(cpu.isa, x, y));
        }
    });
}

multiversion! {
    fn survey_unit<T: Element>(unit: &[T], tiny: f32) -> [f32; SURVEY] {
        let (mut largest, mut not_finite, mut not_zero, mut is_tiny) = (0.0f32, 0u32, 0u32, 0u32);
        for x in unit {
            let x = x.to_f32().abs();
            let finite = x < f32::INFINITY;
            largest = if finite && x > largest { x } else { largest };
            not_finite += u32::from(!finite);
            not_zero += u32::from(x != 0.0);
            is_tiny += u32::from(x > 0.0 && x < tiny);
        }
        [largest, not_finite as f32, not_zero as f32, is_tiny as f32]
    }
}

multiversion! {
    fn distance_unit<T: Element>(x: &[T], y: &[f32]) -> [f32; DISTANCE] {
        let (mut apart, mut size) = (0.0f32, 0.0f32);
        for (x, y) in x.iter().zip(y) {
            let d = x.to_f32() - y;
            apart += d * d;
            size += y * y;
        }
        [apart, size]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;
    use crate::{bf16, f16};

    #[test]
    fn every_value_is_counted_where_it_belongs_also_in_a_short_last_unit() {
        let mut x = vec![f16::ZERO; UNIT + 5];
        (x[0], x[7], x[9]) = (f16::from_f32(-3.0), f16::from_f32(2.0), f16::from_bits(3));
        (x[UNIT], x[UNIT + 1], x[UNIT + 4]) = (f16::INFINITY, f16::NAN, f16::MAX);
        let mut out = [0.0; 2 * SURVEY];
        survey(&Cpu::single(), &x, f16::MIN_POSITIVE.to_f32(), &mut out);
        assert_eq!(out, [3.0, 0.0, 3.0, 1.0, 65504.0, 2.0, 3.0, 0.0]);
    }

    #[test]
    fn a_distance_is_that_of_f64_to_1e_5() {
        let (len, cpu) = (2 * UNIT + 33, Cpu::single());
        let (x, y) = (elements::<bf16>(1, len), elements::<f32>(2, len));
        let mut out = vec![0.0; 3 * DISTANCE];
        distance(&cpu, &x, &y, &mut out);
        for (unit, out) in out.chunks(DISTANCE).enumerate() {
            let range = unit * UNIT..len.min((unit + 1) * UNIT);
            let (x, y) = (to_f64(&x[range.clone()]), to_f64(&y[range]));
            let apart: f64 = x.iter().zip(&y).map(|(x, y)| (x - y) * (x - y)).sum();
            let size: f64 = y.iter().map(|y| y * y).sum();
            assert!((f64::from(out[0]) / apart - 1.0).abs() < 1e-5 && (f64::from(out[1]) / size - 1.0).abs() < 1e-5);
        }
    }

    #[test]
    fn every_instruction_set_and_thread_count_gives_the_same_bits() {
        for len in [1, 5000, 50_001] {
            let (x, y) = (elements::<bf16>(1, len), elements::<f32>(2, len));
            assert_same_bits(|cpu| {
                let units = len.div_ceil(UNIT);
                let (mut seen, mut apart) = (vec![0.0f32; units * SURVEY], vec![0.0f32; units * DISTANCE]);
                survey(cpu, &x, 0.1, &mut seen);
                distance(cpu, &x, &y, &mut apart);
                seen.into_iter().chain(apart).collect::<Vec<f32>>()
            });
        }
    }
}
