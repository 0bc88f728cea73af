//! Rows written to their places in a larger matrix: the inverse of gathering them (`embedding::forward`).

use crate::rows::{for_rows, rows, rows_per_task};
use crate::{Cpu, Element};

/// `out[places[i]] = x[i]`, or 0 where there is no `x`; other rows stay. `x` is `[R, width]`, `out` `[N, width]`, the R
/// places ascend and are below N.
pub fn scatter_rows<T: Element>(cpu: &Cpu, x: Option<&[T]>, places: &[u32], width: usize, out: &mut [T]) {
    assert!(width > 0 && out.len().is_multiple_of(width), "scatter_rows: length of out");
    assert!(x.is_none_or(|x| x.len() == places.len() * width), "scatter_rows: length of x");
    let num_rows = out.len() / width;
    assert!(places.is_sorted_by(|a, b| a < b), "scatter_rows: places must ascend");
    let last = places.last();
    assert!(last.is_none_or(|last| (*last as usize) < num_rows), "scatter_rows: place {last:?} of {num_rows} rows");
    // Tasks share rows of `out`, so that no two of them write the same one.
    for_rows(cpu, num_rows, rows_per_task(width), rows(out, width), |range, out| {
        let first = places.partition_point(|place| (*place as usize) < range.start);
        for (i, place) in places.iter().enumerate().skip(first).take_while(|(_, place)| (**place as usize) < range.end)
        {
            let row = &mut out[(*place as usize - range.start) * width..][..width];
            match x {
                Some(x) => row.copy_from_slice(&x[i * width..][..width]),
                None => row.fill(T::from_f32(0.0)),
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16;
    use crate::testing::*;

    /// About every third of `num_rows`.
    fn places(num_rows: usize) -> Vec<u32> {
        (0..num_rows as u32).filter(|row| row * row % 7 % 3 == 1).collect()
    }

    #[test]
    fn every_row_is_in_its_place_and_the_others_stay_on_any_number_of_threads() {
        for (num_rows, width) in [(1, 1), (9, 3), (300, 70), (40, 1000)] {
            let places = places(num_rows);
            let (x, before) = (elements::<bf16>(1, places.len() * width), elements::<bf16>(2, num_rows * width));
            let mut want: Vec<Vec<bf16>> = before.chunks(width).map(<[bf16]>::to_vec).collect();
            let mut zeroed = want.clone();
            for (i, place) in places.iter().enumerate() {
                want[*place as usize] = x[i * width..][..width].to_vec();
                zeroed[*place as usize] = vec![bf16::from_f32(0.0); width];
            }
            for threads in 1..4 {
                let cpu = Cpu::new(threads, false, crate::Isa::detect());
                let (mut out, mut zeros) = (before.clone(), before.clone());
                scatter_rows(&cpu, Some(&x), &places, width, &mut out);
                scatter_rows(&cpu, None, &places, width, &mut zeros);
                assert_eq!((out, zeros), (want.concat(), zeroed.concat()), "[{num_rows}, {width}]");
            }
        }
    }

    #[test]
    #[should_panic(expected = "scatter_rows: place Some(3) of 3 rows")]
    fn a_place_beyond_the_matrix_is_named() {
        scatter_rows(&Cpu::single(), None, &[0, 3], 2, &mut [0.0f32; 6]);
    }
}
