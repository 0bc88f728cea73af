//! Llama (Touvron et al. 2023): rotary positions, RMSNorm, grouped key-value heads, SwiGLU.
//!
//! Matrices are stored [out, in]. q, k and v run as one product with packed output, gate and up as another. Start: normal
//! with `initializer_range`. Reference: `modeling_llama.py` of Transformers 5.23.

use super::head::head;
use super::{LlamaConfig, ModelConfig};
use crate::block::{LinearSpec, Model, ModelBuilder};
use crate::layers::{Activation, Embedding, Mlp, Norm, PreNorm, SelfAttention};
use crate::param::{Dim, EMBED, HEADS, Init, KV_HEADS, MLP, POSITIONS, VOCAB};
use ops::{AttentionLayout, Linear, ParamId, WeightLayout};

/// The blocks `model.embed_tokens`, `model.layers.0`, ..., `lm_head` or `score`. `positions`: rows of the rotary tables.
pub fn build(config: &ModelConfig, llama: &LlamaConfig, vocab_size: usize, positions: usize) -> Model {
    let mut builder = ModelBuilder::default();
    let std = config.initializer_range as f32;
    let (embed, vocab) = (Dim::new(EMBED, llama.hidden_size), Dim::new(VOCAB, vocab_size));
    let init = Init::Normal { std };
    let tokens = builder.param("model.embed_tokens.weight", [vocab.clone(), embed.clone()], init.clone());
    builder.block("model.embed_tokens", Embedding { tokens, positions: None, dropout: 0.0 });
    let rope = rope_tables(&mut builder, llama, positions.min(llama.max_position_embeddings));
    for layer in 0..llama.num_hidden_layers {
        let name = format!("model.layers.{layer}");
        if layer > 0 {
            builder.share(rope.0);
            builder.share(rope.1);
        }
        let block = pre_norm(&mut builder, &name, std, llama, rope);
        builder.block(name, block);
    }
    let norm = rms_norm(&mut builder, "model.norm.weight", llama);
    head(&mut builder, config, norm, tokens, llama.hidden_size);
    builder.build(vocab_size, Some(llama.max_position_embeddings), Some(config.clone()))
}

/// Tables of the first layer that every layer shares.
fn rope_tables(builder: &mut ModelBuilder, llama: &LlamaConfig, positions: usize) -> (ParamId, ParamId) {
    let spec = llama.rope();
    let (cos, sin) = spec.tables(positions);
    let dims = || [Dim::new(POSITIONS, positions), Dim::new("rotary", spec.rotary_dim / 2)];
    let cos = builder.param("rope.cos", dims(), Init::Table(cos.into()));
    let sin = builder.param("rope.sin", dims(), Init::Table(sin.into()));
    (cos, sin)
}

fn rms_norm(builder: &mut ModelBuilder, name: &str, llama: &LlamaConfig) -> Norm {
    let weight = builder.param(name, [Dim::new(EMBED, llama.hidden_size)], Init::Constant(1.0));
    Norm::Rms { weight, weight_offset: 0.0, eps: llama.rms_norm_eps as f32 }
}

fn pre_norm(
    builder: &mut ModelBuilder,
    name: &str,
    std: f32,
    llama: &LlamaConfig,
    rope: (ParamId, ParamId),
) -> PreNorm {
    let (embed, mlp) = (Dim::new(EMBED, llama.hidden_size), Dim::new(MLP, llama.intermediate_size));
    let q = Dim::heads(&[(HEADS, llama.num_attention_heads)], llama.head_dim);
    let kv = Dim::heads(&[(KV_HEADS, llama.num_key_value_heads)], llama.head_dim);
    let attention = LinearSpec { layout: WeightLayout::OutIn, bias: llama.attention_bias, std };
    let feed = LinearSpec { bias: llama.mlp_bias, ..attention };
    let attention_norm = rms_norm(builder, &format!("{name}.input_layernorm.weight"), llama);
    let qkv = [("q", &q), ("k", &kv), ("v", &kv)].map(|(which, heads)| {
        builder.linear(&format!("{name}.self_attn.{which}_proj"), embed.clone(), heads.clone(), attention)
    });
    let out = builder.linear(&format!("{name}.self_attn.o_proj"), q, embed.clone(), attention);
    let mlp_norm = rms_norm(builder, &format!("{name}.post_attention_layernorm.weight"), llama);
    let up = ["gate", "up"]
        .map(|which| builder.linear(&format!("{name}.mlp.{which}_proj"), embed.clone(), mlp.clone(), feed));
    let down = builder.linear(&format!("{name}.mlp.down_proj"), mlp, embed, feed);
    PreNorm {
        attention_norm,
        attention: SelfAttention {
            qkv: qkv.to_vec(),
            out: Linear { bias: None, ..out },
            layout: AttentionLayout {
                num_heads: llama.num_attention_heads,
                num_kv_heads: llama.num_key_value_heads,
                head_dim: llama.head_dim,
                scale: (llama.head_dim as f32).sqrt().recip(),
                window: None,
                softcap: None,
                dropout: llama.attention_dropout as f32,
            },
            rope: Some(rope),
        },
        attention_bias: out.bias,
        mlp_norm,
        mlp: Mlp { up: up.to_vec(), activation: Activation::SiluMul, down: Linear { bias: None, ..down } },
        mlp_bias: down.bias,
        dropout: 0.0,
    }
}
