//! Sums along a row in a fixed order that vectorises: lane `l` takes the elements `l`, `l + 16`, ..., and the lanes are
//! added in a tree. The order is part of the kernels' results: it is the same on every instruction set.

use crate::Element;

/// Floats in the widest vector, and independent sums where vectors are narrower.
pub(crate) const LANES: usize = 16;

/// The sum of `f` over the elements of rows of equal length: `f` takes one element of each row. It must be free of
/// branches, and is also called with zeros, whose terms are dropped.
///
/// One sum at a time: with two, the compiler gives up on vectors.
#[inline(always)]
pub(crate) fn sum<T: Element, const IN: usize>(rows: [&[T]; IN], f: impl Fn([f32; IN]) -> f32) -> f32 {
    let split = rows.map(|row| row.as_chunks::<LANES>());
    let (num_chunks, rest) = (split[0].0.len(), split[0].1.len());
    let mut sums = [0.0; LANES];
    for chunk in 0..num_chunks {
        let mut lanes = [[0.0; LANES]; IN];
        for row in 0..IN {
            let chunk = &split[row].0[chunk];
            for lane in 0..LANES {
                lanes[row][lane] = chunk[lane].to_f32();
            }
        }
        for lane in 0..LANES {
            sums[lane] += f(std::array::from_fn(|row| lanes[row][lane]));
        }
    }
    if rest > 0 {
        let lanes = split.map(|(_, rest)| padded(rest, 0.0));
        for lane in 0..LANES {
            let term = f(std::array::from_fn(|row| lanes[row][lane]));
            sums[lane] += if lane < rest { term } else { 0.0 };
        }
    }
    tree(sums, |a, b| a + b)
}

/// The largest element; NaNs are passed over; minus infinity for an empty row.
#[inline(always)]
pub(crate) fn max(row: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut most = [f32::NEG_INFINITY; LANES];
    for chunk in chunks.iter().chain([&padded(rest, f32::NEG_INFINITY)]) {
        for (most, &value) in most.iter_mut().zip(chunk) {
            *most = larger(*most, value);
        }
    }
    tree(most, larger)
}

/// A short chunk, filled up.
#[inline(always)]
fn padded<T: Element>(rest: &[T], filler: f32) -> [f32; LANES] {
    let mut lanes = [filler; LANES];
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane = value.to_f32();
    }
    lanes
}

/// Lane `l` with lane `l + 8`, then `l + 4`, `l + 2`, `l + 1`.
#[inline(always)]
pub(crate) fn tree(mut lanes: [f32; LANES], join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] = join(lanes[lane], lanes[lane + half]);
        }
        half /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_maxima_take_every_element_once_at_every_length_around_the_lanes() {
        for len in 0..=50usize {
            let a: Vec<f32> = (0..len).map(|i| i as f32 - 60.0).collect();
            let b: Vec<f32> = (0..len).map(|i| (i * i % 7) as f32).collect();
            let product = sum([&a, &b], |[a, b]| a * b);
            assert_eq!(sum([&a], |[a]| a + 1.0), a.iter().map(|a| a + 1.0).sum::<f32>(), "length {len}");
            assert_eq!(product, a.iter().zip(&b).map(|(a, b)| a * b).sum::<f32>(), "length {len}");
            assert_eq!(max(&a), if len == 0 { f32::NEG_INFINITY } else { len as f32 - 61.0 });
        }
    }
}
