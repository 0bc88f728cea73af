//! `bessemer eval`.

use crate::Global;
use crate::cmd::model::ModelArgs;
use crate::cmd::numbers::at_least_one;
use crate::failure::Failure;
use crate::ui::Ui;
use data::{Classes, DataError, OpenOptions, Packing, Sources};
use generate::{LoadedModel, TOKENS_PER_PASS, evaluate};
use serde_json::json;
use std::cell::RefCell;
use std::io::{Write, stdout};
use train::Observer;
use train::training_data::tell;

/// Mean loss, perplexity and bits per byte over a whole set; of a classifier accuracy and F1
#[derive(clap::Args)]
#[command(after_help = "Examples:
  bessemer eval runs/shakespeare --data valid.txt
  bessemer eval gpt2/ --data 'valid/*.jsonl' --json
  bessemer eval classifier/ --data reviews.jsonl   # rows {\"text\", \"label\"}")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// What to evaluate on: a file or a glob; text, JSONL or rows of tokens
    #[arg(long, value_name = "PATH")]
    data: String,
    /// Tokens of a window; by default the smaller of 1024 and the model's positions
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    sequence_length: Option<u64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn open(args: &Args, model: &LoadedModel, ui: &RefCell<Ui>) -> Result<data::Dataset, Failure> {
    let longest = model.positions;
    let sources = Sources::from(args.data.as_str());
    // What is wrong with the files is said when they are opened, below.
    let labels = model.model.labels();
    // Rows of tokens, and a classifier's rows, are samples as they are.
    let rows_of_tokens = labels.is_some() || data::holds_token_rows(&sources).unwrap_or(false);
    let window = if rows_of_tokens { longest } else { longest.min(1024) };
    let sequence_length = args.sequence_length.map_or(window, |length| length as usize);
    if sequence_length > longest {
        return Err(Failure::request(format!(
            "--sequence-length is {sequence_length}; it must be at most {longest}, the positions of the model"
        )));
    }
    let on_event = |event: data::Event<'_>| tell(event, &mut *ui.borrow_mut());
    let options = OpenOptions {
        sequence_length,
        packing: if rows_of_tokens { Packing::None } else { Packing::Concat },
        cache: data::default_cache().map_err(Failure::request)?,
        threads: args.model.threads,
        chunk_bytes: data::CHUNK_BYTES,
        vocab_size: model.config.vocab_size,
        classes: labels.map(|labels| Classes { names: labels.names(), pad: model.config.tokens.pad }),
        on_event: &on_event,
    };
    data::open_evaluation(&sources, model.tokenizer.as_ref(), &options, "--data").map_err(|error| match error {
        DataError::Under { error, .. } if matches!(*error, DataError::NoTokenizer) => Failure::request(format!(
            "--data {}: it is text, and the model's folder has no tokenizer.json; put one there, or give rows of tokens",
            args.data
        )),
        error => Failure::request(error),
    })
}

pub(crate) fn run(args: Args, global: Global) -> Result<(), Failure> {
    let model = args.model.open()?;
    let ui = RefCell::new(Ui::new(global));
    let dataset = open(&args, &model, &ui)?;
    let total = dataset.num_samples();
    let samples = (0..total).map(|index| {
        ui.borrow_mut().on(train::Event::Evaluating { done: index, total });
        dataset.get(index)
    });
    let sum = evaluate(&model.forward(), samples, TOKENS_PER_PASS).map_err(Failure::running)?;
    drop(ui);
    let evaluation = sum.evaluation(dataset.text_bytes()).ok_or_else(|| {
        Failure::request(format!(
            "--data {}: no target counts: every label is -100, or every row has one token",
            args.data
        ))
    })?;
    if !evaluation.loss.is_finite() {
        let loss = evaluation.loss;
        return Err(Failure::running(format!("the loss is {loss}: the model's weights or outputs are not finite")));
    }
    let mut out = stdout().lock();
    if args.json {
        return Ok(writeln!(out, "{}", json!(evaluation))?);
    }
    writeln!(out, "loss           {:.4}", evaluation.loss)?;
    if let (Some(accuracy), Some(f1)) = (evaluation.accuracy, evaluation.f1) {
        writeln!(out, "accuracy       {accuracy:.4}")?;
        writeln!(out, "F1 (macro)     {f1:.4}")?;
        return Ok(writeln!(out, "rows           {}", evaluation.tokens)?);
    }
    writeln!(out, "perplexity     {:.3}", evaluation.perplexity)?;
    if let Some(bits) = evaluation.bits_per_byte {
        writeln!(out, "bits per byte  {bits:.4}")?;
    }
    Ok(writeln!(out, "tokens         {}", evaluation.tokens)?)
}
