//! Tokens one after another: the prompt in chunks, then one token at a time, keys and values kept in a cache.
//!
//! # Order of events
//! 1. [`Generator::new`] refuses what cannot be: nothing runs before everything fits.
//! 2. Each [`Generator::next`] runs what has not been run (first the whole prompt, then the token before), reads the logits
//!    after the last token, chooses ([`crate::sampling`]) and hands the token out.
//! 3. It ends after a token that ends the text (which is handed out), after `max_new_tokens`, or when no position is left
//!    to run another token at; [`Generator::stop_reason`] says which.
//!
//! # Invariants
//! - Random numbers are a function of (seed, number of the new token): the same text on any number of threads.
//! - A model of P positions makes token P + 1 of a text at most, which it predicts from P tokens.

use std::fmt;
use std::ops::ControlFlow;

use data::{DataError, Tokenizer};
use ops::{Batch, Document, KvCache, OpError};
use tensor::rng::Stream;

use crate::forward::Forward;
use crate::options::GenerateOptions;
use crate::sampling::SamplingError;

/// Tokens of the prompt that one pass takes: bounds the memory of activations.
const PREFILL_TOKENS: usize = 256;

/// Why nothing, or nothing more, could be generated.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// A setting is out of range.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// Nothing to start from.
    #[error("the prompt is empty and the model has no bos_token_id to start from; give a prompt of at least one token")]
    EmptyPrompt,
    /// A token that the model has no embedding for.
    #[error("token {index} of the prompt is {id}; it must be below the model's vocab_size {vocab_size}")]
    UnknownToken {
        /// Which, from 0.
        index: usize,
        /// Its id.
        id: u32,
        /// Ids that the model knows.
        vocab_size: usize,
    },
    /// The prompt does not fit the model.
    #[error("the prompt has {tokens} tokens and the model {positions} positions; shorten the prompt")]
    PromptTooLong {
        /// Its length.
        tokens: usize,
        /// What the model can hold.
        positions: usize,
    },
    /// It predicts classes.
    #[error("the model is a classifier, which makes no text; evaluate it on labelled rows (bessemer eval)")]
    Classifier,
    /// Text, and no tokenizer.
    #[error("the model's folder has no tokenizer.json, so it takes no text; give tokens as ids (--tokens)")]
    NoTokenizer,
    /// The tokenizer refused the text.
    #[error("the text cannot be turned into tokens: {0}")]
    Tokenizer(#[from] DataError),
    /// NaN or infinities where logits should be.
    #[error(
        "the logits of new token {step} are not finite; the model's weights are damaged, its training diverged, or repetition_penalty is extreme"
    )]
    NotFinite {
        /// Which new token, from 1.
        step: usize,
    },
    /// The device refused or failed.
    #[error(transparent)]
    Op(#[from] OpError),
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// With this token, which is the last one handed out.
    EndOfText(u32),
    /// `max_new_tokens` were made.
    MaxNewTokens(usize),
    /// No position is left of so many.
    PositionsFull(usize),
    /// Whoever reads the text wants no more.
    Interrupted,
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EndOfText(id) => write!(f, "the model ended the text with token {id}"),
            Self::MaxNewTokens(count) => write!(f, "the {count} new tokens asked for were made"),
            Self::PositionsFull(positions) => write!(f, "the model's {positions} positions are full"),
            Self::Interrupted => f.write_str("it was interrupted"),
        }
    }
}

/// Makes tokens: an iterator over the new ones. After an error it ends.
pub struct Generator<'a> {
    forward: Forward<'a>,
    options: GenerateOptions,
    random: Stream,
    cache: KvCache,
    /// Prompt and new tokens; the first `cache.len()` of them have been run.
    tokens: Vec<u32>,
    num_prompt: usize,
    stop: Option<StopReason>,
    has_failed: bool,
}

impl<'a> Generator<'a> {
    /// Ready to continue `prompt`; an empty one starts from `options.bos`. Runs nothing.
    pub fn new(forward: Forward<'a>, prompt: &[u32], options: GenerateOptions) -> Result<Self, GenerateError> {
        options.sampling.check()?;
        if forward.model.labels().is_some() {
            return Err(GenerateError::Classifier);
        }
        let tokens = match (prompt, options.bos) {
            ([], None) => return Err(GenerateError::EmptyPrompt),
            ([], Some(bos)) => vec![bos],
            (prompt, _) => prompt.to_vec(),
        };
        let vocab_size = forward.model.vocab_size;
        if let Some(index) = tokens.iter().position(|&id| id as usize >= vocab_size) {
            return Err(GenerateError::UnknownToken { index, id: tokens[index], vocab_size });
        }
        let (num_prompt, positions) = (tokens.len(), forward.positions);
        if num_prompt > positions {
            return Err(GenerateError::PromptTooLong { tokens: num_prompt, positions });
        }
        // The last new token is handed out and not run.
        let capacity = num_prompt.saturating_add(options.max_new_tokens).saturating_sub(1).clamp(1, positions);
        let stop = (options.max_new_tokens == 0).then_some(StopReason::MaxNewTokens(0));
        let random = Stream::new(options.seed, "generate");
        let cache = KvCache::new(capacity);
        Ok(Self { forward, options, random, cache, tokens, num_prompt, stop, has_failed: false })
    }

    /// Why it ended; `None` while it has not, or if it failed.
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.stop
    }

    /// The new tokens so far.
    pub fn new_tokens(&self) -> &[u32] {
        &self.tokens[self.num_prompt..]
    }

    fn step(&mut self) -> Result<u32, GenerateError> {
        let mut logits = self.run_pending()?;
        let step = self.new_tokens().len();
        let u = if self.options.sampling.is_greedy() { 0.0 } else { self.random.uniform(step as u64) };
        let chosen = self.options.sampling.choose(&mut logits, &self.tokens, u);
        let token = chosen.ok_or(GenerateError::NotFinite { step: step + 1 })?;
        self.tokens.push(token);
        self.stop = self.reason_to_stop(token);
        Ok(token)
    }

    /// Runs the tokens that are not in the cache, at least one; the logits after the last.
    fn run_pending(&self) -> Result<Vec<f32>, GenerateError> {
        let mut logits = Vec::new();
        for ids in self.tokens[self.cache.len()..].chunks(PREFILL_TOKENS) {
            let position = self.cache.len() as u32;
            let document = Document { len: ids.len(), sample: 0, row_position: position, position };
            let batch = Batch::new(self.forward.queue, ids, None, &[document])?;
            logits = self.forward.last_logits(&batch, &self.cache)?;
        }
        Ok(logits)
    }

    fn reason_to_stop(&self, token: u32) -> Option<StopReason> {
        let (num_new, positions) = (self.new_tokens().len(), self.forward.positions);
        if self.options.eos.contains(&token) {
            Some(StopReason::EndOfText(token))
        } else if num_new >= self.options.max_new_tokens {
            Some(StopReason::MaxNewTokens(num_new))
        } else {
            (self.tokens.len() > positions).then_some(StopReason::PositionsFull(positions))
        }
    }
}

impl Iterator for Generator<'_> {
    type Item = Result<u32, GenerateError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.stop.is_some() || self.has_failed {
            return None;
        }
        let token = self.step();
        self.has_failed = token.is_err();
        Some(token)
    }
}

/// A finished generation.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// The new tokens, the one that ended the text included.
    pub tokens: Vec<u32>,
    /// Their text without special tokens; `None` without a tokenizer.
    pub text: Option<String>,
    /// Why it ended.
    pub stop: StopReason,
}

/// Generates to the end. `on_text` gets the new text as it is made, whole characters only and never nothing; it may
/// break off.
pub fn generate(
    forward: Forward<'_>,
    tokenizer: Option<&Tokenizer>,
    prompt: &[u32],
    options: GenerateOptions,
    mut on_text: impl FnMut(&str) -> ControlFlow<()>,
) -> Result<Generated, GenerateError> {
    let mut generator = Generator::new(forward, prompt, options)?;
    let mut stream = tokenizer.map(|tokenizer| tokenizer.decode_stream(true));
    let mut text = tokenizer.map(|_| String::new());
    let mut show = |piece: Option<String>| match (&mut text, piece) {
        (Some(text), Some(piece)) => {
            text.push_str(&piece);
            on_text(&piece)
        }
        _ => ControlFlow::Continue(()),
    };
    let mut flow = ControlFlow::Continue(());
    while flow.is_continue() {
        let Some(token) = generator.next().transpose()? else {
            // What was held back; it is the end either way.
            let _ = show(stream.as_mut().and_then(|stream| stream.finish()));
            break;
        };
        flow = show(stream.as_mut().and_then(|stream| stream.push(token)));
    }
    let stop = generator.stop_reason().unwrap_or(StopReason::Interrupted);
    Ok(Generated { tokens: generator.new_tokens().to_vec(), text, stop })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loaded::{LoadOptions, LoadedModel};
    use models::ModelConfig;
    use models::hf::GenerationConfig;
    use models::weights::WeightSource;
    use testing::close::{Bound, assert_close};

    fn random_model() -> LoadedModel {
        let config = serde_json::json!({
            "model_type": "llama", "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024, "initializer_range": 0.2
        });
        let config = ModelConfig::from_json(&config, "test").unwrap();
        let weights = |_: &_| Ok(WeightSource::Random { seed: 7 });
        LoadedModel::from_parts(config, None, GenerationConfig::default(), weights, LoadOptions::default()).unwrap()
    }

    #[test]
    fn a_prompt_of_several_chunks_gives_the_logits_of_one_pass() {
        let loaded = random_model();
        let prompt: Vec<u32> = (0..2 * PREFILL_TOKENS as u32 + 37).map(|i| i * i % 50).collect();
        let options = loaded.generate_options(prompt.len());
        let mut generator = Generator::new(loaded.forward(), &prompt, options).unwrap();
        let chunked = generator.run_pending().unwrap();
        assert_eq!(generator.cache.len(), prompt.len());
        let whole = |ids: &[u32]| {
            let document = Document { len: ids.len(), sample: 0, row_position: 0, position: 0 };
            let batch = Batch::new(&loaded.queue, ids, None, &[document]).unwrap();
            loaded.forward().last_logits(&batch, &KvCache::new(ids.len())).unwrap()
        };
        assert_close("logits after the prompt", &chunked, &whole(&prompt), Bound::Absolute(1e-5));
        generator.tokens.push(3);
        let next = generator.run_pending().unwrap();
        assert_close("logits after one token", &next, &whole(&generator.tokens), Bound::Absolute(1e-5));
    }
}
