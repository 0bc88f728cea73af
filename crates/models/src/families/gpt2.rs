//! GPT-2 (Radford et al. 2019): learned positions, LayerNorm, fused q, k, v, GELU, head tied to the embedding.
//!
//! Matrices are `Conv1D`: stored [in, out]. Start: normal with `initializer_range`, the two projections back into the
//! residual stream divided by `sqrt(2 n_layer)`. Reference: `modeling_gpt2.py` of Transformers 5.23.

use super::head::head;
use super::{Gpt2Config, ModelConfig};
use crate::block::{LinearSpec, Model, ModelBuilder};
use crate::layers::{Activation, Embedding, Mlp, Norm, PreNorm, SelfAttention};
use crate::param::{Dim, EMBED, HEADS, Init, MLP, POSITIONS, VOCAB};
use ops::{AttentionLayout, Linear, WeightLayout};
use tensor::Gelu;

/// The blocks `transformer.wte`, `transformer.h.0`, ..., `lm_head` or `score`.
pub fn build(config: &ModelConfig, gpt2: &Gpt2Config, vocab_size: usize) -> Model {
    let mut builder = ModelBuilder::default();
    let std = config.initializer_range as f32;
    let (embed, vocab) = (Dim::new(EMBED, gpt2.n_embd), Dim::new(VOCAB, vocab_size));
    let init = Init::Normal { std };
    let tokens = builder.param("transformer.wte.weight", [vocab.clone(), embed.clone()], init.clone());
    let positions = Dim::new(POSITIONS, gpt2.n_positions);
    let positions = builder.param("transformer.wpe.weight", [positions, embed.clone()], init.clone());
    let dropout = gpt2.embd_pdrop as f32;
    builder.block("transformer.wte", Embedding { tokens, positions: Some(positions), dropout });
    for layer in 0..gpt2.n_layer {
        let name = format!("transformer.h.{layer}");
        let block = pre_norm(&mut builder, &name, std, gpt2, layer);
        builder.block(name, block);
    }
    let norm = layer_norm(&mut builder, "transformer.ln_f", gpt2);
    head(&mut builder, config, norm, tokens, gpt2.n_embd);
    builder.build(vocab_size, Some(gpt2.n_positions), Some(config.clone()))
}

fn layer_norm(builder: &mut ModelBuilder, prefix: &str, gpt2: &Gpt2Config) -> Norm {
    let embed = || [Dim::new(EMBED, gpt2.n_embd)];
    let weight = builder.param(format!("{prefix}.weight"), embed(), Init::Constant(1.0));
    let bias = builder.param(format!("{prefix}.bias"), embed(), Init::Constant(0.0));
    Norm::Layer { weight, bias, eps: gpt2.layer_norm_epsilon as f32 }
}

fn pre_norm(builder: &mut ModelBuilder, name: &str, std: f32, gpt2: &Gpt2Config, layer: usize) -> PreNorm {
    let (embed, mlp) = (Dim::new(EMBED, gpt2.n_embd), Dim::new(MLP, gpt2.inner()));
    let heads = |parts: usize| Dim::heads(&vec![(HEADS, gpt2.n_head); parts], gpt2.head_dim());
    let into = LinearSpec { layout: WeightLayout::InOut, bias: true, std };
    let back = LinearSpec { std: std / (2.0 * gpt2.n_layer as f32).sqrt(), ..into };
    let attention_norm = layer_norm(builder, &format!("{name}.ln_1"), gpt2);
    let qkv = builder.linear(&format!("{name}.attn.c_attn"), embed.clone(), heads(3), into);
    let out = builder.linear(&format!("{name}.attn.c_proj"), heads(1), embed.clone(), back);
    let mlp_norm = layer_norm(builder, &format!("{name}.ln_2"), gpt2);
    let up = builder.linear(&format!("{name}.mlp.c_fc"), embed.clone(), mlp.clone(), into);
    let down = builder.linear(&format!("{name}.mlp.c_proj"), mlp, embed, back);
    let kind = if gpt2.activation_function.is_tanh() { Gelu::Tanh } else { Gelu::Erf };
    PreNorm {
        attention_norm,
        attention: SelfAttention {
            qkv: vec![qkv],
            out: Linear { bias: None, ..out },
            layout: AttentionLayout {
                num_heads: gpt2.n_head,
                num_kv_heads: gpt2.n_head,
                head_dim: gpt2.head_dim(),
                scale: gpt2.attention_scale(layer) as f32,
                window: None,
                softcap: None,
                dropout: gpt2.attn_pdrop as f32,
            },
            rope: None,
        },
        attention_bias: out.bias,
        mlp_norm,
        mlp: Mlp { up: vec![up], activation: Activation::Gelu(kind), down: Linear { bias: None, ..down } },
        mlp_bias: down.bias,
        dropout: gpt2.resid_pdrop as f32,
    }
}
