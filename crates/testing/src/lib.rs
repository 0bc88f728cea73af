//! What tests hold the engine against, and the stand-ins that let one machine show what clusters need.
//!
//! Numbers to agree with:
//! - [`oracle`]: a transformer in plain f64 loops with its backward by hand; shares no code with the engine.
//! - [`fixtures`]: small pretrained folders with what Transformers and PyTorch computed from them.
//! - [`golden`]: curves that must not move, as text files.
//! - [`close`]: agreement to a stated bound.
//!
//! Stand-ins for what is not on this machine; with each, a model must train as it does without:
//! - [`far`]: a device with opaque memory whose calls run only when the host reads. Stands for a GPU.
//! - [`nan`]: weights that are NaN or absent while their block does not run. Stands for ZeRO-3.
//! - [`mod@ranks`]: ranks as threads, over the transport that runs use. Stands for a launcher.
//! - [`regions`]: layers split over ranks. Stands for tensor parallelism.
//! - [`trainee`]: the model that trains there: any device, regions and residency, one AdamW update a step.
//!
//! `tensor::dry`, a device that computes nothing, is no stand-in: `plan` runs on it.

#![forbid(unsafe_code)]

pub mod close;
pub mod far;
pub mod fixtures;
pub mod golden;
pub mod nan;
pub mod oracle;
pub mod ranks;
pub mod regions;
pub mod trainee;

pub use ranks::ranks;
