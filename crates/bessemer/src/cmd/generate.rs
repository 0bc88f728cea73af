//! `bessemer generate`.

use crate::Global;
use crate::cmd::model::ModelArgs;
use crate::cmd::numbers::{count, token_id};
use crate::failure::Failure;
use crate::ui::Ui;
use generate::{GenerateError, GenerateOptions, LoadedModel, StopReason};
use serde_json::json;
use std::io::{Write, stdout};
use std::ops::ControlFlow;

/// Go on from a prompt; text appears as it is made
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("from").required(true).args(["prompt", "tokens"]))]
#[command(allow_negative_numbers = true)]
#[command(after_help = "Examples:
  bessemer generate runs/shakespeare --prompt ROMEO:
  bessemer generate gpt2/ --prompt 'Once upon a time' --temperature 0.8 --top-p 0.95 --seed 1
  bessemer generate model/ --tokens 1,2,3 --temperature 0 --json")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Text to go on from
    #[arg(long)]
    prompt: Option<String>,
    /// Token ids to go on from, for models without a tokenizer
    #[arg(long, value_name = "ID,ID,...", value_delimiter = ',', value_parser = token_id)]
    tokens: Vec<u32>,
    /// New tokens at most
    #[arg(long, value_name = "N", value_parser = count)]
    max_new_tokens: Option<usize>,
    /// 0 is greedy; by default the model's own, else 1
    #[arg(long, value_name = "X")]
    temperature: Option<f64>,
    /// Choose among the K likeliest tokens; 0 = all
    #[arg(long, value_name = "K", value_parser = count)]
    top_k: Option<usize>,
    /// Choose among the likeliest tokens that together have probability P
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// Drop tokens less likely than P times the likeliest
    #[arg(long, value_name = "P")]
    min_p: Option<f64>,
    /// Makes tokens that are there already less likely; 1 = off
    #[arg(long, value_name = "X")]
    repetition_penalty: Option<f64>,
    /// The same seed gives the same text
    #[arg(long, default_value_t = 0, value_name = "S")]
    seed: u64,
    /// Print {"tokens", "text"} when done
    #[arg(long)]
    json: bool,
}

impl Args {
    fn options(&self, model: &LoadedModel, prompt_tokens: usize) -> GenerateOptions {
        let mut options = model.generate_options(prompt_tokens);
        options.seed = self.seed;
        options.max_new_tokens = self.max_new_tokens.unwrap_or(options.max_new_tokens);
        let sampling = &mut options.sampling;
        sampling.temperature = self.temperature.unwrap_or(sampling.temperature);
        sampling.top_k = self.top_k.unwrap_or(sampling.top_k);
        sampling.top_p = self.top_p.unwrap_or(sampling.top_p);
        sampling.min_p = self.min_p.unwrap_or(sampling.min_p);
        sampling.repetition_penalty = self.repetition_penalty.unwrap_or(sampling.repetition_penalty);
        options
    }
}

pub(crate) fn run(args: Args, global: Global) -> Result<(), Failure> {
    let model = args.model.open()?;
    let prompt = match &args.prompt {
        Some(prompt) => model.encode(prompt).map_err(Failure::request)?,
        None => args.tokens.clone(),
    };
    let options = args.options(&model, prompt.len());
    let mut out = stdout().lock();
    let mut write_error = None;
    // Shown with the first new text: until then the request may still be refused.
    let mut unshown_prompt = args.prompt.as_deref().filter(|_| !args.json);
    let generated = generate::generate(model.forward(), model.tokenizer.as_ref(), &prompt, options, |text| {
        let prompt = unshown_prompt.take().unwrap_or_default();
        let shown = if args.json { Ok(()) } else { write!(out, "{prompt}{text}").and_then(|()| out.flush()) };
        match shown {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                write_error = Some(error);
                ControlFlow::Break(())
            }
        }
    });
    let generated = generated.map_err(|error| match error {
        GenerateError::NotFinite { .. } | GenerateError::Op(_) => Failure::running(error),
        error => Failure::request(error),
    })?;
    if let Some(error) = write_error {
        return Err(error.into());
    }
    if args.json {
        return Ok(writeln!(out, "{}", json!({"tokens": generated.tokens, "text": generated.text}))?);
    }
    if model.tokenizer.is_none() {
        let tokens: Vec<String> = generated.tokens.iter().map(u32::to_string).collect();
        write!(out, "{}", tokens.join(","))?;
    }
    writeln!(out, "{}", unshown_prompt.unwrap_or_default())?;
    if let StopReason::PositionsFull(_) = generated.stop {
        Ui::new(global).note(&format!("the text ends here because {}", generated.stop));
    }
    Ok(())
}
