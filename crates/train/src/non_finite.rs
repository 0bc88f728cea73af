//! Where a loss stopped being finite: the forward pass again, sample by sample, looking at every block's output.

use crate::error::Result;
use crate::step::StepContext;
use data::Sample;
use generate::to_batch;
use models::Pass;

impl StepContext<'_> {
    /// The first block that makes a value that is not finite, sample by sample.
    pub(crate) fn first_non_finite(&self, samples: &[Sample]) -> Result<String> {
        if self.zero.stage() == parallel::Stage::Parameters {
            // Weights are gathered by all ranks together, and each would stop at another block.
            return Ok("not looked for where ranks share weights (zero_optimization.stage 3)".to_owned());
        }
        let residency = self.zero.pass(self.queue, &self.state.store, false);
        let pass = Pass { model: self.model, residency: &residency };
        for (index, sample) in samples.iter().enumerate().filter(|(_, sample)| !sample.input_ids.is_empty()) {
            let batch = to_batch(self.queue, std::slice::from_ref(sample), index as u32)?;
            if let Some(block) = pass.first_non_finite(&self.env(&batch, None))? {
                return Ok(block);
            }
        }
        Ok("none when each sample runs alone: the sum over the batch overflowed".to_owned())
    }
}
