//! Curriculum by sequence length: early steps train on the beginnings of rows, later ones on ever more of them.
//!
//! # Invariants
//! - The length is a function of the optimizer step, counted from 1 and skipped steps included: a resumed run needs nothing
//!   but its step.
//! - Rows are cut where they are used, not where they are made: every step consumes as many samples as without a curriculum.
//!
//! Source: DeepSpeed `runtime/data_pipeline/curriculum_scheduler.py`, its section `curriculum_learning` (the model there
//! truncates what it is given). Li et al. 2021, arXiv:2108.06084.

use data::Sample;
use serde::{Deserialize, Serialize};

/// The `curriculum_learning` section. What is absent and needed has been refused.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct CurriculumConfig {
    /// Whether rows are cut.
    pub enabled: bool,
    /// What grows: `seqlen`.
    pub curriculum_type: String,
    /// First length.
    pub min_difficulty: Option<u64>,
    /// Last length.
    pub max_difficulty: Option<u64>,
    /// How it grows.
    pub schedule_type: Option<ScheduleType>,
    /// Settings of the growth.
    pub schedule_config: ScheduleSettings,
}

/// How the length grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleType {
    /// Along a line.
    FixedLinear,
    /// Along a root: fast at first.
    FixedRoot,
    /// From one given length to the next.
    FixedDiscrete,
    /// By a program's own function; refused.
    Custom,
}

/// Settings of the growth.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct ScheduleSettings {
    /// Steps of a line or root.
    pub total_curriculum_step: Option<u64>,
    /// Lengths of a line or root are multiples of this.
    pub difficulty_step: Option<u64>,
    /// Of a root: 2 is the square root.
    pub root_degree: Option<u64>,
    /// The given lengths.
    pub difficulty: Option<Vec<u64>>,
    /// The last step of each given length but the last.
    pub max_step: Option<Vec<u64>>,
}

/// The length of the rows of every step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Curriculum {
    /// `min + (max - min) (step / total)^(1 / degree)`, rounded down to a multiple of `difficulty_step`, at most `max`.
    Root {
        /// First length.
        min: u64,
        /// Last length.
        max: u64,
        /// Steps from the first to the last.
        total_steps: u64,
        /// What lengths are multiples of.
        difficulty_step: u64,
        /// 1: a line.
        degree: u64,
    },
    /// Length `i` up to its last step; a length of at least `max` stays.
    Discrete {
        /// The lengths.
        lengths: Vec<u64>,
        /// One fewer.
        last_steps: Vec<u64>,
        /// Where growth ends.
        max: u64,
    },
}

impl Curriculum {
    /// The curriculum of a run file; none where it is off.
    pub fn of(config: &CurriculumConfig) -> Option<Self> {
        let CurriculumConfig { min_difficulty, max_difficulty, schedule_type, schedule_config: settings, .. } = config;
        let (min, max) = (min_difficulty.filter(|_| config.enabled)?, (*max_difficulty)?);
        if *schedule_type == Some(ScheduleType::FixedDiscrete) {
            let (lengths, last_steps) = (settings.difficulty.clone()?, settings.max_step.clone()?);
            return Some(Self::Discrete { lengths, last_steps, max });
        }
        let degree = if *schedule_type == Some(ScheduleType::FixedRoot) { settings.root_degree? } else { 1 };
        let (total_steps, difficulty_step) = (settings.total_curriculum_step?, settings.difficulty_step?);
        Some(Self::Root { min, max, total_steps, difficulty_step, degree })
    }

    /// The longest row of a step, counted from 1.
    pub fn length(&self, step: u64) -> u64 {
        match self {
            Self::Root { min, max, total_steps, difficulty_step, degree } => {
                let way = (step as f64 / *total_steps as f64).powf(1.0 / *degree as f64);
                let length = (way * (max - min) as f64 + *min as f64).floor() as u64;
                (length - length % difficulty_step).min(*max)
            }
            Self::Discrete { lengths, last_steps, max } => {
                // DeepSpeed looks at the last entry of max_step first; the steps need not ascend.
                let is_over = last_steps.last().is_none_or(|last| step > *last);
                let is_at = |i: &usize| lengths[*i] >= *max || (!is_over && step <= last_steps[*i]);
                let found = (0..last_steps.len()).find(is_at);
                lengths[found.unwrap_or(last_steps.len())]
            }
        }
    }

    /// What is said once in the log, as DeepSpeed says it.
    pub fn notice(&self) -> Option<String> {
        match self {
            Self::Root { difficulty_step, .. } if difficulty_step % 8 != 0 => Some(format!(
                "curriculum_learning.schedule_config.difficulty_step is {difficulty_step}; products are fastest where row \
                 lengths are multiples of 8"
            )),
            _ => None,
        }
    }
}

/// The first `length` tokens of a row. The target of the last one stays the token after it.
pub(crate) fn cut(sample: &Sample, length: usize) -> Sample {
    let length = length.min(sample.input_ids.len());
    Sample {
        input_ids: sample.input_ids[..length].to_vec(),
        targets: sample.targets[..length].to_vec(),
        positions: sample.positions[..length].to_vec(),
        document_starts: sample.document_starts.iter().copied().filter(|start| (*start as usize) < length).collect(),
        class: sample.class,
        soft: sample.soft.as_ref().map(|soft| soft.range(0..length.min(soft.len()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(curriculum: &Curriculum, steps: impl IntoIterator<Item = u64>) -> Vec<u64> {
        steps.into_iter().map(|step| curriculum.length(step)).collect()
    }

    #[test]
    fn a_line_rises_by_whole_steps_and_reaches_its_end_even_where_that_is_no_multiple() {
        let line = |max| Curriculum::Root { min: 8, max, total_steps: 10, difficulty_step: 8, degree: 1 };
        assert_eq!(lengths(&line(48), [1, 2, 3, 4, 5, 6, 8, 10, 11]), [8, 16, 16, 24, 24, 32, 40, 48, 48]);
        // 44 is rounded down to 40 until the line has gone past it.
        assert_eq!(lengths(&line(44), [9, 10, 11, 12]), [40, 40, 40, 44]);
    }

    #[test]
    fn a_root_rises_faster_at_first() {
        let root = Curriculum::Root { min: 8, max: 40, total_steps: 16, difficulty_step: 8, degree: 2 };
        assert_eq!(lengths(&root, [1, 3, 4, 9, 15, 16, 100]), [16, 16, 24, 32, 32, 40, 40]);
    }

    #[test]
    fn given_lengths_hold_up_to_their_last_step_and_growth_ends_at_the_largest() {
        let discrete = |max| Curriculum::Discrete { lengths: vec![4, 16, 8], last_steps: vec![2, 5], max };
        assert_eq!(lengths(&discrete(64), 1..8), [4, 4, 16, 16, 16, 8, 8]);
        assert_eq!(lengths(&discrete(16), 1..8), [4, 4, 16, 16, 16, 16, 16]);
    }

    #[test]
    fn a_cut_row_keeps_its_beginning_with_the_documents_that_begin_there() {
        let row = Sample {
            input_ids: vec![5, 6, 7, 8],
            targets: vec![6, 7, 8, 9],
            positions: vec![0, 1, 0, 1],
            document_starts: vec![0, 2],
            ..Sample::default()
        };
        let short = cut(&row, 2);
        assert_eq!((short.input_ids, short.targets, short.document_starts), (vec![5, 6], vec![6, 7], vec![0]));
        assert_eq!(cut(&row, 3).document_starts, [0, 2]);
        assert_eq!(cut(&row, 9).positions, row.positions);
    }
}
