//! Layers: what blocks are made of. Each names its parameters by id and its crossings by region; none knows of ranks.

mod classification_head;
mod embedding;
mod lm_head;
mod mlp;
mod norm;
mod pre_norm;
pub mod rope_table;
mod self_attention;

pub use classification_head::ClassificationHead;
pub use embedding::Embedding;
pub use lm_head::LmHead;
pub use mlp::{Activation, Mlp};
pub use norm::Norm;
pub use pre_norm::PreNorm;
pub use self_attention::SelfAttention;
