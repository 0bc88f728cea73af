//! Rows of the data crate as one packed micro-batch: one row after another, without padding.

use data::{Sample, SoftLabels};
use models::Model;
use ops::{Batch, Document, OpError, Result};
use tensor::{MemoryKind, Queue, SoftTargets};

/// Tokens that one forward pass takes at most, unless a single row is longer.
pub const TOKENS_PER_PASS: usize = 4096;

/// Refuses a row that has not the kind of target that the model predicts: a class, or tokens.
///
/// # Errors
/// [`OpError::WrongTask`].
pub fn check_task(model: &Model, sample: &Sample) -> Result<()> {
    let wrong = |message: String| Err(OpError::WrongTask(message));
    match (model.labels().map(|labels| labels.names().len()), sample.class) {
        (None, None) => Ok(()),
        (Some(count), Some(class)) if (class as usize) < count => Ok(()),
        (Some(count), Some(class)) => {
            wrong(format!("a row is of class {class}; the model's classes are 0 to {}: correct the row", count - 1))
        }
        (Some(_), None) => wrong("the model is a classifier and a row has no class; give rows with a label".to_owned()),
        (None, Some(_)) => {
            wrong("the model predicts tokens and a row has a class; make it a classifier (model.labels)".to_owned())
        }
    }
}

/// The micro-batch of `samples`. N = tokens of all of them. Its targets are tokens, or classes where the samples have them.
///
/// `first_sample`: the number of the first one in the global batch; dropout draws by it.
///
/// # Panics
/// If a sample's fields contradict each other.
pub fn to_batch(queue: &Queue, samples: &[Sample], first_sample: u32) -> Result<Batch> {
    let num_tokens = samples.iter().map(|sample| sample.input_ids.len()).sum();
    let (mut ids, mut targets) = (Vec::with_capacity(num_tokens), Vec::with_capacity(num_tokens));
    let mut documents = Vec::new();
    for (number, sample) in (first_sample..).zip(samples) {
        ids.extend_from_slice(&sample.input_ids);
        targets.extend_from_slice(&sample.targets);
        documents.extend(documents_of(sample, number));
    }
    let mut batch = Batch::new(queue, &ids, Some(&targets), &documents)?;
    if samples.iter().any(|sample| sample.class.is_some()) {
        let class = |sample: &Sample| sample.class.expect("to_batch: all samples have a class or none") as i32;
        targets = samples.iter().map(class).collect();
        batch = batch.with_classes(queue, &targets)?;
    }
    batch.soft_targets = soft_targets(queue, samples, &targets)?;
    Ok(batch)
}

/// A list for each of `targets`, if any sample has soft labels: its own, else its single label.
fn soft_targets(queue: &Queue, samples: &[Sample], targets: &[i32]) -> Result<Option<SoftTargets<tensor::Tensor>>> {
    if samples.iter().all(|sample| sample.soft.is_none()) {
        return Ok(None);
    }
    let (mut lists, mut row) = (SoftLabels::default(), 0);
    for sample in samples {
        let num_targets = if sample.class.is_some() { 1 } else { sample.input_ids.len() };
        for index in 0..num_targets {
            let soft: Vec<(u32, f32)> = sample.soft.iter().flat_map(|soft| soft.list(index)).collect();
            let single = u32::try_from(targets[row]).ok().filter(|_| soft.is_empty());
            lists.push(soft.into_iter().chain(single.map(|id| (id, 1.0))));
            row += 1;
        }
    }
    let SoftLabels { starts, ids, probabilities } = lists;
    let upload = |data: &[u32]| queue.upload(MemoryKind::Activations, [data.len()], data);
    let (starts, ids) = (upload(&starts)?, upload(&ids)?);
    let probabilities = queue.upload(MemoryKind::Activations, [probabilities.len()], &probabilities)?;
    Ok(Some(SoftTargets { starts, ids, probabilities }))
}

fn documents_of(sample: &Sample, number: u32) -> impl Iterator<Item = Document> + '_ {
    let starts = &sample.document_starts;
    let ends = starts.iter().skip(1).copied().chain([sample.input_ids.len() as u32]);
    starts.iter().zip(ends).map(move |(&start, end)| Document {
        len: (end - start) as usize,
        sample: number,
        row_position: start,
        position: sample.positions[start as usize],
    })
}

/// Cuts rows, in order, into passes of at most `max_tokens` tokens and at least one row.
pub(crate) struct Passes<I> {
    samples: I,
    max_tokens: usize,
    /// A row that did not fit the pass before.
    kept: Option<Sample>,
}

impl<I: Iterator<Item = Sample>> Passes<I> {
    pub(crate) fn new(samples: I, max_tokens: usize) -> Self {
        Self { samples, max_tokens, kept: None }
    }
}

impl<I: Iterator<Item = Sample>> Iterator for Passes<I> {
    type Item = Vec<Sample>;

    fn next(&mut self) -> Option<Vec<Sample>> {
        let first = self.kept.take().or_else(|| self.samples.next())?;
        let (mut num_tokens, mut pass) = (first.input_ids.len(), vec![first]);
        for sample in self.samples.by_ref() {
            num_tokens += sample.input_ids.len();
            if num_tokens > self.max_tokens {
                self.kept = Some(sample);
                break;
            }
            pass.push(sample);
        }
        Some(pass)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use data::IGNORE;
    use tensor::{Isa, cpu};

    fn row(len: u32) -> Sample {
        Sample {
            input_ids: (0..len).collect(),
            targets: vec![IGNORE; len as usize],
            positions: (0..len).collect(),
            document_starts: vec![0],
            ..Sample::default()
        }
    }

    #[test]
    fn documents_of_a_row_begin_at_position_zero_and_do_not_see_each_other() {
        let queue = cpu::queue(1, false, Isa::PORTABLE);
        let two_documents = Sample {
            input_ids: vec![5, 6, 7, 8, 9],
            targets: vec![6, IGNORE, 8, 9, 1],
            positions: vec![0, 1, 0, 1, 2],
            document_starts: vec![0, 2],
            ..Sample::default()
        };
        let batch = to_batch(&queue, &[two_documents, row(3)], 40).unwrap();
        let read = |x| queue.read::<u32>(x).unwrap();
        assert_eq!(read(&batch.ids), [5, 6, 7, 8, 9, 0, 1, 2]);
        assert_eq!(read(&batch.positions), [0, 1, 0, 1, 2, 0, 1, 2]);
        assert_eq!(read(&batch.row_positions), [0, 1, 2, 3, 4, 0, 1, 2]);
        assert_eq!(read(&batch.samples), [40, 40, 40, 40, 40, 41, 41, 41]);
        assert_eq!(batch.num_targets, 4);
        let segments: Vec<_> = batch.segments.iter().map(|s| (s.q_start, s.q_len, s.k_start, s.k_len)).collect();
        assert_eq!(segments, [(0, 2, 0, 2), (2, 3, 2, 3), (5, 3, 5, 3)]);
    }

    #[test]
    fn passes_keep_the_order_and_hold_at_most_so_many_tokens_or_one_row() {
        let lengths = [3, 3, 2, 9, 1, 7, 1];
        let passes: Vec<Vec<usize>> = Passes::new(lengths.into_iter().map(row), 8)
            .map(|pass| pass.iter().map(|sample| sample.input_ids.len()).collect())
            .collect();
        assert_eq!(passes, [vec![3, 3, 2], vec![9], vec![1, 7], vec![1]]);
    }
}
