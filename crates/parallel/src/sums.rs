//! Gradients summed over the micro-batches of a step.
//!
//! In a deterministic run each micro-batch's gradient is made alone. Summed over the ranks it is the term of one round of
//! micro-batches; terms are added as a binary counter carries, so that over all micro-batches `g = round x ranks + rank`
//! the sum follows one binary tree, whatever power of two the number of ranks is. It costs one array for each bit of the
//! number of rounds, and one more for the term that comes in.

use tensor::{AddArgs, KernelError, Queue, Tensor};

/// In which order terms are added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// One after the other.
    AsTheyCome,
    /// Along a binary tree: `run.deterministic`.
    Tree,
}

/// A sum under way.
#[derive(Debug)]
pub struct Sums {
    order: Order,
    /// By power of two: the sum of as many terms. In [`Order::AsTheyCome`] the first alone.
    levels: Vec<Option<Tensor>>,
}

impl Sums {
    /// No term yet.
    pub fn new(order: Order) -> Self {
        Self { order, levels: Vec::new() }
    }

    /// Whether there is no term yet.
    pub fn is_empty(&self) -> bool {
        self.levels.iter().all(Option::is_none)
    }

    /// Adds a term, whose memory is taken over; returns memory that is done with.
    ///
    /// # Errors
    /// The device failed.
    pub fn add(&mut self, queue: &Queue, mut term: Tensor) -> Result<Vec<Tensor>, KernelError> {
        let (mut level, mut done) = (0, Vec::new());
        while let Some(sum) = self.levels.get_mut(level).and_then(Option::take) {
            (queue.backend().add)(queue, AddArgs { x: &term, out: &sum })?;
            done.push(std::mem::replace(&mut term, sum));
            if self.order == Order::AsTheyCome {
                break;
            }
            level += 1;
        }
        if level == self.levels.len() {
            self.levels.push(None);
        }
        self.levels[level] = Some(term);
        Ok(done)
    }

    /// The sum of all terms, which the next one begins anew after; `None` if there was none.
    ///
    /// # Errors
    /// The device failed.
    pub fn take(&mut self, queue: &Queue) -> Result<Option<Tensor>, KernelError> {
        let mut total: Option<Tensor> = None;
        // The smallest first: as `tensor::cpu::tree_sum` ends.
        for sum in self.levels.drain(..).flatten() {
            if let Some(x) = &total {
                (queue.backend().add)(queue, AddArgs { x, out: &sum })?;
            }
            total = Some(sum);
        }
        Ok(total)
    }

    /// Drops all terms.
    pub fn clear(&mut self) {
        self.levels.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tensor::{Isa, MemoryKind, cpu};

    fn value(term: usize, i: usize) -> f32 {
        ((term * 100 + i) as f32 * 0.37).sin() * 1e3
    }

    fn term(queue: &Queue, index: usize) -> Tensor {
        let values: Vec<f32> = (0..100).map(|i| value(index, i)).collect();
        queue.upload(MemoryKind::Gradients, [100], &values).unwrap()
    }

    #[test]
    fn rounds_of_2_4_and_8_ranks_sum_to_the_bits_of_one_rank_for_any_number_of_rounds() {
        let queue = cpu::queue(1, false, Isa::detect());
        for rounds in 1..=7 {
            let mut one = Sums::new(Order::Tree);
            let terms = rounds * 8;
            (0..terms).for_each(|g| _ = one.add(&queue, term(&queue, g)).unwrap());
            let want: Vec<f32> = queue.read(&one.take(&queue).unwrap().unwrap()).unwrap();
            for ranks in [2, 4, 8] {
                let mut sums = Sums::new(Order::Tree);
                for round in 0..terms / ranks {
                    let by_rank: Vec<Tensor> = (0..ranks).map(|rank| term(&queue, round * ranks + rank)).collect();
                    let out = queue.alloc(MemoryKind::Gradients, tensor::DType::F32, [100]).unwrap();
                    cpu::tree_sum(&queue, &by_rank, &out);
                    sums.add(&queue, out).unwrap();
                }
                let got: Vec<f32> = queue.read(&sums.take(&queue).unwrap().unwrap()).unwrap();
                assert_eq!(got, want, "{rounds} x 8 micro-batches on {ranks} ranks");
            }
        }
    }

    #[test]
    fn as_they_come_one_array_is_kept_and_taking_it_begins_anew() {
        let queue = cpu::queue(1, false, Isa::detect());
        let mut sums = Sums::new(Order::AsTheyCome);
        for _ in 0..2 {
            assert!(sums.take(&queue).unwrap().is_none());
            (0..5).for_each(|g| _ = sums.add(&queue, term(&queue, g)).unwrap());
            assert_eq!(sums.levels.len(), 1);
            let got: Vec<f32> = queue.read(&sums.take(&queue).unwrap().unwrap()).unwrap();
            let want: Vec<f32> = (0..100).map(|i| (1..5).fold(value(0, i), |sum, g| sum + value(g, i))).collect();
            assert_eq!(got, want);
        }
    }
}
