//! The loader: sample number g of a run, for ever, as a pure function of (dataset, seed, g).
//!
//! The only state of a run is how many samples were consumed, so that a checkpoint holds one number, any rank can ask
//! for its part of a batch, and a resumed run sees what the undisturbed one would have seen.
//!
//! Without weights an epoch is every sample once, and sample g is number g mod n of epoch g / n. With weights [`Mix`] says which source g comes
//! from, and each source goes through its own epochs. Shuffled epochs are [`Permutation`]s.

use crate::dataset::Dataset;
use crate::mix::Mix;
use crate::packing::Sample;
use crate::shuffle::Permutation;

/// Samples in the order of training.
#[derive(Clone, Debug)]
pub struct Loader {
    dataset: Dataset,
    seed: u64,
    shuffle: bool,
}

impl Loader {
    /// The order of `dataset` under `seed`; with `shuffle` false, file order again and again.
    pub fn new(dataset: Dataset, seed: u64, shuffle: bool) -> Self {
        assert!(dataset.num_samples() > 0, "Loader::new: a dataset without samples");
        Self { dataset, seed, shuffle }
    }

    /// What is loaded from.
    pub fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    /// Samples of an epoch.
    pub fn epoch_samples(&self) -> u64 {
        self.dataset.num_samples()
    }

    /// Sample `global_index`, counted from 0 at the start of the run.
    pub fn sample(&self, global_index: u64) -> Sample {
        let (source, index) = match &self.dataset.mix {
            None => self.dataset.locate(self.turn(global_index, self.dataset.num_samples(), 0)),
            Some(mix) => self.weighted(mix, global_index),
        };
        self.dataset.sources[source].get(index)
    }

    /// `count` samples from `first` on.
    pub fn batch(&self, first: u64, count: usize) -> Vec<Sample> {
        (first..first + count as u64).map(|index| self.sample(index)).collect()
    }

    fn weighted(&self, mix: &Mix, global_index: u64) -> (usize, u64) {
        let (source, position) = mix.at(global_index);
        let num_samples = self.dataset.sources[source].num_samples();
        (source, self.turn(position, num_samples, source as u64 + 1))
    }

    /// Which of `num_samples` comes at `position`, counted on over the epochs.
    fn turn(&self, position: u64, num_samples: u64, stream: u64) -> u64 {
        let (epoch, index) = (position / num_samples, position % num_samples);
        if self.shuffle { Permutation::new(num_samples, self.seed, epoch, stream).at(index) } else { index }
    }
}
