//! The log-probability of every token of given rows, and their loss.
//!
//! As in Transformers `labels[t]` is held against the prediction made at t - 1, -100 is not counted, absent labels are the
//! tokens. Log-probabilities are those of the tokens themselves, whatever the labels say; where a label is another token
//! than the one in its place, its pass is run once more for the loss.

use data::{IGNORE, Sample};
use ops::OpError;
use serde::Serialize;

use crate::batch::{Passes, TOKENS_PER_PASS, to_batch};
use crate::eval::LossSum;
use crate::forward::Forward;

/// One row: a text as tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenizedRow {
    /// `[T]`, at least one.
    pub input_ids: Vec<u32>,
    /// `[T]` ids or -100; the first is used by nobody. `None`: the tokens.
    pub labels: Option<Vec<i32>>,
}

impl From<Sample> for TokenizedRow {
    /// A sample of one document: its targets, moved back by one.
    fn from(sample: Sample) -> Self {
        let labels = [IGNORE].into_iter().chain(sample.targets).take(sample.input_ids.len());
        Self { labels: Some(labels.collect()), input_ids: sample.input_ids }
    }
}

/// What `score` reports.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scores {
    /// Mean of `-ln p(label)`; absent if no label counts.
    pub loss: Option<f64>,
    /// The tokens of each row.
    pub tokens: Vec<Vec<u32>>,
    /// `ln p` of each token given those before it in its row; the first one's is unknown.
    pub logprobs: Vec<Vec<Option<f32>>>,
}

/// Why rows could not be scored. Rows count from 1, tokens from 0.
#[derive(Debug, thiserror::Error)]
pub enum ScoreError {
    /// A row without tokens.
    #[error("row {row} is empty; a row must hold at least one token")]
    Empty {
        /// Which.
        row: usize,
    },
    /// A row that the model has not enough positions for.
    #[error("row {row} has {tokens} tokens and the model {positions} positions; shorten the row")]
    TooLong {
        /// Which.
        row: usize,
        /// Its length.
        tokens: usize,
        /// What the model can hold.
        positions: usize,
    },
    /// Labels that do not belong to the tokens.
    #[error("row {row} has {tokens} input_ids and {labels} labels; they must be equally many")]
    Labels {
        /// Which.
        row: usize,
        /// Tokens.
        tokens: usize,
        /// Labels.
        labels: usize,
    },
    /// A token or label that the model does not know.
    #[error("row {row}: {field}[{index}] is {id}; it must be below the model's vocab_size {vocab_size}{or}", or = if *field == "labels" { ", or -100" } else { "" })]
    Unknown {
        /// Which row.
        row: usize,
        /// `input_ids` or `labels`.
        field: &'static str,
        /// Which of them.
        index: usize,
        /// Its value.
        id: i64,
        /// Ids that the model knows.
        vocab_size: usize,
    },
    /// It predicts classes.
    #[error("the model is a classifier, which predicts no tokens; evaluate it on labelled rows (bessemer eval)")]
    Classifier,
    /// The device refused or failed.
    #[error(transparent)]
    Op(#[from] OpError),
}

/// Scores `rows`, in passes of at most [`TOKENS_PER_PASS`] tokens and at least one row.
pub fn score(forward: &Forward<'_>, rows: &[TokenizedRow]) -> Result<Scores, ScoreError> {
    if forward.model.labels().is_some() {
        return Err(ScoreError::Classifier);
    }
    for (row, number) in rows.iter().zip(1..) {
        check(row, number, forward)?;
    }
    let (mut sum, mut logprobs) = (LossSum::default(), Vec::with_capacity(rows.len()));
    let mut remaining = rows;
    for samples in Passes::new(rows.iter().map(predict_tokens), TOKENS_PER_PASS) {
        let (rows, rest) = remaining.split_at(samples.len());
        remaining = rest;
        let of_tokens = run(forward, &samples)?;
        let labels = || rows.iter().flat_map(targets);
        if labels().zip(samples.iter().flat_map(|s| &s.targets)).all(|(label, &token)| label < 0 || label == token) {
            sum.add(labels(), &of_tokens);
        } else {
            let of_labels = rows
                .iter()
                .zip(&samples)
                .map(|(row, sample)| Sample { targets: targets(row).collect(), ..sample.clone() });
            sum.add(labels(), &run(forward, &of_labels.collect::<Vec<_>>())?);
        }
        let mut of_tokens = of_tokens.as_slice();
        for row in rows {
            let (own, rest) = of_tokens.split_at(row.input_ids.len());
            of_tokens = rest;
            logprobs.push([None].into_iter().chain(own[..own.len() - 1].iter().copied().map(Some)).collect());
        }
    }
    Ok(Scores { loss: sum.loss(), tokens: rows.iter().map(|row| row.input_ids.clone()).collect(), logprobs })
}

fn run(forward: &Forward<'_>, samples: &[Sample]) -> Result<Vec<f32>, OpError> {
    forward.token_logprobs(&to_batch(forward.queue, samples, 0)?)
}

/// The row with each token as the target of the one before.
fn predict_tokens(row: &TokenizedRow) -> Sample {
    let ids = &row.input_ids;
    Sample {
        targets: ids[1..].iter().map(|&id| id as i32).chain([IGNORE]).collect(),
        positions: (0..ids.len() as u32).collect(),
        document_starts: vec![0],
        input_ids: ids.clone(),
        ..Sample::default()
    }
}

/// What the labels make the target of each token.
fn targets(row: &TokenizedRow) -> impl Iterator<Item = i32> + '_ {
    let target = |t| match &row.labels {
        Some(labels) => labels[t],
        None => row.input_ids[t] as i32,
    };
    (1..row.input_ids.len()).map(target).chain([IGNORE])
}

fn check(row: &TokenizedRow, number: usize, forward: &Forward<'_>) -> Result<(), ScoreError> {
    let (tokens, positions) = (row.input_ids.len(), forward.positions);
    if tokens == 0 {
        return Err(ScoreError::Empty { row: number });
    }
    if tokens > positions {
        return Err(ScoreError::TooLong { row: number, tokens, positions });
    }
    let labels = row.labels.as_deref().unwrap_or_default();
    if row.labels.is_some() && labels.len() != tokens {
        return Err(ScoreError::Labels { row: number, tokens, labels: labels.len() });
    }
    let vocab_size = forward.model.vocab_size;
    let unknown = |field, index, id| ScoreError::Unknown { row: number, field, index, id, vocab_size };
    let is_known = |id: i64| (0..vocab_size as i64).contains(&id);
    if let Some(index) = row.input_ids.iter().position(|&id| !is_known(id.into())) {
        return Err(unknown("input_ids", index, row.input_ids[index].into()));
    }
    if let Some(index) = labels.iter().position(|&id| id != IGNORE && !is_known(id.into())) {
        return Err(unknown("labels", index, labels[index].into()));
    }
    Ok(())
}
