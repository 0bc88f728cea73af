//! Where a loss stopped being finite: the forward pass again, sample by sample, looking at every block's output.

use crate::error::Result;
use crate::step::StepContext;
use data::Sample;
use generate::to_batch;
use models::{Pass, Resident};

impl StepContext<'_> {
    /// The first block that makes a value that is not finite, sample by sample.
    pub(crate) fn first_non_finite(&self, samples: &[Sample]) -> Result<String> {
        let pass = Pass { model: self.model, residency: &Resident };
        for (index, sample) in samples.iter().enumerate().filter(|(_, sample)| !sample.input_ids.is_empty()) {
            let batch = to_batch(self.queue, std::slice::from_ref(sample), index as u32)?;
            if let Some(block) = pass.first_non_finite(&self.env(&batch, None))? {
                return Ok(block);
            }
        }
        Ok("none when each sample runs alone: the sum over the batch overflowed".to_owned())
    }
}
