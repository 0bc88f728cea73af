//! Rows that are tokens already: `{"input_ids": [...], "labels": [...]}`, one a line.
//!
//! As in Transformers, `labels[t]` is held against the prediction made at t-1, -100 is not counted, absent labels are the
//! input. An `attention_mask` may stand there if it is all ones. `soft_labels`, and the class of a row of a classifier's data, are
//! described in [`super::labels`]; other fields mean nothing to us.

use serde_json::{Map, Value};

use super::jsonl::{RowPlace, kind};
use super::labels::{Distribution, soft_labels};
use crate::error::Result;
use crate::packing::IGNORE;

/// One row.
#[derive(Debug, PartialEq)]
pub(crate) struct TokenRow {
    pub(crate) input_ids: Vec<u32>,
    /// As long as `input_ids`; a label is [`IGNORE`] or an id.
    pub(crate) labels: Option<Vec<i32>>,
    /// As long as `input_ids`; an empty one leaves the label in force.
    pub(crate) soft: Option<Vec<Distribution>>,
}

/// Reads a row; every id must lie below `vocab_size`, if that is known.
pub(crate) fn row_of(place: RowPlace<'_>, row: &Map<String, Value>, vocab_size: Option<usize>) -> Result<TokenRow> {
    let limit = vocab_size.map_or(i32::MAX as i64, |size| size as i64 - 1);
    let array = |field: &str| match row.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(values)) => Ok(Some(values)),
        Some(other) => {
            let of = if field == "soft_labels" { "lists" } else { "integers" };
            Err(place.error(format!("{field:?} is {}; it must be an array of {of}", kind(other))))
        }
    };
    let integers = |field: &str, values: &[Value], may_ignore: bool| -> Result<Vec<i32>> {
        let integer = |(index, value): (usize, &Value)| match value.as_i64() {
            Some(id) if (0..=limit).contains(&id) || (may_ignore && id == i64::from(IGNORE)) => Ok(id as i32),
            Some(id) => {
                let or = if may_ignore { ", or -100" } else { "" };
                Err(place.error(format!("{field}[{index}] is {id}; it must be a token id from 0 to {limit}{or}")))
            }
            None => Err(place.error(format!("{field}[{index}] is {}; it must be an integer", kind(value)))),
        };
        values.iter().enumerate().map(integer).collect()
    };
    let Some(ids) = array("input_ids")? else {
        return Err(place.error("has no field \"input_ids\"; a row of the format `tokenized` must have it"));
    };
    if ids.is_empty() {
        return Err(place.error("input_ids is empty; a row must hold at least one token"));
    }
    for field in ["labels", "attention_mask", "soft_labels"] {
        let values = array(field)?;
        if let Some(values) = values
            && values.len() != ids.len()
        {
            let (length, ids) = (values.len(), ids.len());
            return Err(
                place.error(format!("{field} has {length} values and input_ids {ids}; they must be equally long"))
            );
        }
    }
    if let Some(index) =
        array("attention_mask")?.and_then(|mask| mask.iter().position(|value| value.as_i64() != Some(1)))
    {
        return Err(place
            .error(format!("attention_mask[{index}] is not 1; take padding out of the row, batches are padded here")));
    }
    let input_ids = integers("input_ids", ids, false)?.into_iter().map(|id| id as u32).collect();
    let labels = array("labels")?.map(|labels| integers("labels", labels, true)).transpose()?;
    let soft = array("soft_labels")?.map(|values| soft_labels(place, values, vocab_size)).transpose()?;
    Ok(TokenRow { input_ids, labels, soft })
}
