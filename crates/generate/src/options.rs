//! What a text is generated with, and where the defaults come from.

use data::Tokenizer;
use models::ModelConfig;
use models::hf::GenerationConfig;

use crate::sampling::Sampling;

/// New tokens where neither the user nor the model's files say how many.
const DEFAULT_NEW_TOKENS: usize = 128;

/// Settings of one generation.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    /// New tokens at most.
    pub max_new_tokens: usize,
    /// How each is chosen.
    pub sampling: Sampling,
    /// The same seed gives the same tokens.
    pub seed: u64,
    /// What an empty prompt starts from.
    pub bos: Option<u32>,
    /// Any of these ends the text.
    pub eos: Vec<u32>,
}

impl GenerateOptions {
    /// The defaults of a model for a prompt of `prompt_tokens`: what its `generation_config.json` says, else temperature 1
    /// and 128 tokens. Special tokens: that file's, else `config.json`'s, else the tokenizer's.
    ///
    /// As in Transformers `max_new_tokens` goes before `max_length`, which counts the prompt, and `do_sample` false is
    /// greedy whatever the temperature.
    pub fn for_model(
        config: &ModelConfig,
        generation: &GenerationConfig,
        tokenizer: Option<&Tokenizer>,
        prompt_tokens: usize,
    ) -> Self {
        let from_length = generation.max_length.map(|length| length.saturating_sub(prompt_tokens));
        let default = Sampling::default();
        let temperature = if generation.do_sample == Some(false) { Some(0.0) } else { generation.temperature };
        let end_of_text = || tokenizer.and_then(Tokenizer::end_of_text).into_iter().collect();
        let models_own = Some(&config.tokens.eos).filter(|eos| !eos.is_empty());
        Self {
            max_new_tokens: generation.max_new_tokens.or(from_length).unwrap_or(DEFAULT_NEW_TOKENS),
            sampling: Sampling {
                temperature: temperature.unwrap_or(default.temperature),
                top_k: generation.top_k.unwrap_or(default.top_k),
                top_p: generation.top_p.unwrap_or(default.top_p),
                min_p: generation.min_p.unwrap_or(default.min_p),
                repetition_penalty: generation.repetition_penalty.unwrap_or(default.repetition_penalty),
            },
            seed: 0,
            bos: generation.bos_token_id.or(config.tokens.bos),
            eos: generation.eos_token_ids.clone().or_else(|| models_own.cloned()).unwrap_or_else(end_of_text),
        }
    }
}
