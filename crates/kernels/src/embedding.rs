//! Rows of a table by number, and the scatter-add that is the gradient.

use crate::isa::multiversion;
use crate::pool::Parts;
use crate::rows::{ELEMENTS_PER_TASK, for_rows, rows, rows_per_task};
use crate::{Cpu, Element};

/// Columns of the gradient that one task adds to: four cache lines.
const COLUMNS_PER_TASK: usize = 64;

/// `y[n] = table[ids[n]]`, or `y[n] += table[ids[n]]` where `accumulate` is set (positions on top of tokens).
/// `table` is `[V, width]`, `y` is `[N, width]`, ids are below `V`.
pub fn forward<T: Element>(cpu: &Cpu, table: &[T], ids: &[u32], width: usize, accumulate: bool, y: &mut [T]) {
    assert_eq!(y.len(), ids.len() * width, "embedding::forward: length of y");
    check_ids("embedding::forward", ids, table.len(), width);
    for_rows(cpu, ids.len(), rows_per_task(width), rows(y, width), |range, y| {
        for (y, &id) in y.chunks_exact_mut(width).zip(&ids[range]) {
            let row = &table[id as usize * width..(id as usize + 1) * width];
            if accumulate { add(cpu.isa, row, y) } else { y.copy_from_slice(row) }
        }
    });
}

/// `dtable[ids[n]] += dy[n]`, in the order of `n`. `dy` is `[N, width]`, `dtable` is `[V, width]`.
pub fn backward<T: Element>(cpu: &Cpu, dy: &[T], ids: &[u32], width: usize, dtable: &mut [f32]) {
    assert_eq!(dy.len(), ids.len() * width, "embedding::backward: length of dy");
    check_ids("embedding::backward", ids, dtable.len(), width);
    // Tasks share columns, not tokens: the same row may be hit by any token, and its order must not change.
    let columns = if dy.len() <= ELEMENTS_PER_TASK { width } else { COLUMNS_PER_TASK };
    let dtable = Parts::new(dtable);
    cpu.pool.run(width.div_ceil(columns.max(1)), |task| {
        let (first, last) = (task * columns, ((task + 1) * columns).min(width));
        for (dy, &id) in dy.chunks_exact(width).zip(ids) {
            let row = id as usize * width;
            // SAFETY: other tasks take other columns, and this task drops each part before it takes the next.
            let sum = unsafe { dtable.get(row + first..row + last) };
            add_to_f32(cpu.isa, &dy[first..last], sum);
        }
    });
}

fn check_ids(kernel: &str, ids: &[u32], table_len: usize, width: usize) {
    assert!(width > 0 && table_len.is_multiple_of(width), "{kernel}: length of the table");
    let num_rows = table_len / width;
    let beyond = ids.iter().find(|&&id| id as usize >= num_rows);
    assert!(beyond.is_none(), "{kernel}: id {beyond:?} in a table of {num_rows} rows");
}

multiversion! {
    fn add<T: Element>(row: &[T], y: &mut [T]) {
        for (y, row) in y.iter_mut().zip(row) {
            *y = T::from_f32(y.to_f32() + row.to_f32());
        }
    }
}

multiversion! {
    fn add_to_f32<T: Element>(dy: &[T], sum: &mut [f32]) {
        for (sum, dy) in sum.iter_mut().zip(dy) {
            *sum += dy.to_f32();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16;
    use crate::testing::*;

    fn ids(num_rows: usize, vocab: u32) -> Vec<u32> {
        (0..num_rows as u32).map(|n| n * n % vocab).collect()
    }

    fn reference(table: &[f64], ids: &[u32], width: usize) -> Vec<f64> {
        ids.iter().flat_map(|&id| table[id as usize * width..][..width].to_vec()).collect()
    }

    fn agrees_with_f64<T: Element>(num_rows: usize, width: usize) {
        let (table, ids) = (elements::<T>(1, 11 * width), ids(num_rows, 11));
        let dy = elements::<T>(2, num_rows * width);
        let (cpu, mut y, mut dtable) = (Cpu::single(), dy.clone(), vec![1.0; 11 * width]);
        forward(&cpu, &table, &ids, width, false, &mut y);
        assert_close("y", &y, &reference(&to_f64(&table), &ids, width), 0.0);
        let mut sum = dy.clone();
        forward(&cpu, &table, &ids, width, true, &mut sum);
        let want: Vec<f64> = to_f64(&y).iter().zip(to_f64(&dy)).map(|(y, before)| y + before).collect();
        assert_close("y added to", &sum, &want, 0.0);
        backward(&cpu, &dy, &ids, width, &mut dtable);
        let want = gradient(&to_f64(&table), |t| dot(&reference(t, &ids, width), &to_f64(&dy)) + t.iter().sum::<f64>());
        assert_close("dtable, 1 before", &dtable, &want, 1e-6);
    }

    #[test]
    fn forward_and_backward_agree_with_f64_and_its_finite_differences() {
        for (num_rows, width) in [(1, 1), (5, 3), (30, 17)] {
            agrees_with_f64::<f32>(num_rows, width);
            agrees_with_f64::<bf16>(num_rows, width);
        }
    }

    #[test]
    fn every_instruction_set_and_thread_count_gives_the_same_bits_although_tokens_share_rows() {
        for (num_rows, width) in [(3, 5), (300, 70), (200, 200)] {
            let (table, ids) = (elements::<bf16>(1, 11 * width), ids(num_rows, 11));
            let dy = elements::<bf16>(2, num_rows * width);
            assert_same_bits(|cpu| {
                let (mut y, mut dtable) = (dy.clone(), vec![0.5; 11 * width]);
                forward(cpu, &table, &ids, width, true, &mut y);
                backward(cpu, &dy, &ids, width, &mut dtable);
                y.iter().map(|y| y.to_f32()).chain(dtable).collect::<Vec<f32>>()
            });
        }
    }

    #[test]
    #[should_panic(expected = "embedding::forward: id Some(3) in a table of 3 rows")]
    fn an_id_beyond_the_table_is_named() {
        forward(&Cpu::single(), &[0.0f32; 6], &[0, 3], 2, false, &mut [0.0; 4]);
    }
}
