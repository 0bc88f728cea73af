//! The last block of a decoder-only family, by the model's task.

use super::ModelConfig;
use crate::block::ModelBuilder;
use crate::layers::{ClassificationHead, LmHead, Norm};
use crate::param::{Dim, EMBED, Init, LABELS, VOCAB};
use crate::task::{SCORE, Task};
use ops::{Linear, ParamId, WeightLayout};

/// Adds `lm_head`, tied to the embedding `tokens` or with a weight of its own, or `score`.
pub(super) fn head(builder: &mut ModelBuilder, config: &ModelConfig, norm: Norm, tokens: ParamId, width: usize) {
    let (embed, init) = (Dim::new(EMBED, width), Init::Normal { std: config.initializer_range as f32 });
    let linear = |weight| Linear { weight, bias: None, layout: WeightLayout::OutIn };
    match (&config.task, config.vocab_size) {
        (Task::SequenceClassification(labels), _) => {
            let weight = builder.param(SCORE, [Dim::new(LABELS, labels.names().len()), embed], init);
            builder.block("score", ClassificationHead { norm, linear: linear(weight) });
        }
        (Task::CausalLm, Some(vocab_size)) if !config.tie_word_embeddings => {
            let weight = builder.param("lm_head.weight", [Dim::new(VOCAB, vocab_size), embed], init);
            builder.block("lm_head", LmHead { norm, linear: linear(weight) });
        }
        (Task::CausalLm, _) => {
            let weight = builder.share(tokens);
            builder.block("lm_head", LmHead { norm, linear: linear(weight) });
        }
    }
}
