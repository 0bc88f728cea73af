//! `bessemer score`.

use crate::cmd::model::ModelArgs;
use crate::failure::Failure;
use data::{OpenOptions, Packing, Sources};
use generate::{LoadedModel, ScoreError, Scores, TokenizedRow, score};
use serde_json::json;
use std::io::{Write, stdout};

/// The log-probability of every token of a text
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["text", "tokens"]))]
#[command(after_help = "Examples:
  bessemer score gpt2/ --text 'The quick brown fox'
  bessemer score gpt2/ --tokens rows.jsonl --json")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The text to score
    #[arg(long)]
    text: Option<String>,
    /// JSONL rows {"input_ids": [...], "labels": [...]} to score
    #[arg(long, value_name = "FILE")]
    tokens: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn rows(args: &Args, model: &LoadedModel) -> Result<Vec<TokenizedRow>, Failure> {
    let Some(path) = &args.tokens else {
        let input_ids = model.encode(args.text.as_deref().unwrap_or_default()).map_err(Failure::request)?;
        return Ok(vec![TokenizedRow { input_ids, labels: None }]);
    };
    let mut sources = Sources::from(path.as_str());
    sources.0.iter_mut().for_each(|source| source.format = Some(data::Format::Tokenized));
    let options = OpenOptions {
        sequence_length: model.positions,
        packing: Packing::None,
        cache: data::default_cache().map_err(Failure::request)?,
        threads: args.model.threads,
        chunk_bytes: data::CHUNK_BYTES,
        vocab_size: model.config.vocab_size,
        classes: None,
        on_event: &|_| {},
    };
    let dataset = data::open_evaluation(&sources, None, &options, "--tokens").map_err(Failure::request)?;
    Ok((0..dataset.num_samples()).map(|index| dataset.get(index).into()).collect())
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let model = args.model.open()?;
    let rows = rows(&args, &model)?;
    let Scores { loss, tokens, logprobs } = score(&model.forward(), &rows).map_err(|error| match error {
        ScoreError::Op(_) => Failure::running(error),
        error => Failure::request(error),
    })?;
    let mut out = stdout().lock();
    if args.json {
        return Ok(writeln!(out, "{}", json!({"loss": loss, "tokens": tokens, "logprobs": logprobs}))?);
    }
    for (row, (tokens, logprobs)) in tokens.iter().zip(&logprobs).enumerate() {
        if row > 0 {
            writeln!(out)?;
        }
        for (token, logprob) in tokens.iter().zip(logprobs) {
            let text = model.tokenizer.as_ref().and_then(|tokenizer| tokenizer.decode(&[*token], false).ok());
            let logprob = logprob.map_or("-".to_owned(), |logprob| format!("{logprob:.4}"));
            writeln!(out, "{logprob:>9}  {token:>7}  {}", text.map_or(String::new(), |text| format!("{text:?}")))?;
        }
    }
    if let Some(loss) = loss {
        writeln!(out, "loss {loss:.4}")?;
    }
    Ok(())
}
