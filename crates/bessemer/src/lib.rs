//! Bessemer: a training engine for large language models, in one library and one program.
//!
//! ```text
//! let config = RunConfig::load(path, &Overrides::default())?;
//! let data = TrainingData::open(&config, None, None, None, &mut Silent)?;
//! let mut engine = initialize(model, config)?;
//! engine.train(&data)?;
//! ```
//! | what is yours | how | example |
//! | --- | --- | --- |
//! | the model | a list of blocks | `examples/custom_model.rs` |
//! | the optimizer | a formula for one element | `examples/custom_optimizer.rs` |
//! | the loop | `forward`, `backward`, `step`, in DeepSpeed's shape ([`train::engine`]) | `examples/engine.rs` |
//! | what happens on the way | callbacks at every stage of a run ([`train::callback`]) | `examples/callbacks.rs` |
//! | whoever watches | an [`Observer`] | `crates/bessemer/src/ui.rs` |
//!
//! # The map
//! | crate | what it is | begin at |
//! | --- | --- | --- |
//! | `kernels` | CPU kernels on slices; `unsafe` lives there | `crates/kernels/src/lib.rs` |
//! | [`tensor`] | handles on device memory, queues, devices, random numbers | [`tensor::Backend`] |
//! | [`ops`] | differentiable fused operations, the tape, regions | [`ops::Op`] |
//! | [`models`] | blocks, layers, families, Hugging Face files | [`models::Block`] |
//! | [`optim`] | update rules and schedules | [`optim::Optimizer`] |
//! | [`comm`] | collectives between ranks, over threads of one process | [`comm::Comm`] |
//! | [`parallel`] | who owns what, ZeRO, sums and norms over ranks | [`parallel::Zero`] |
//! | [`data`] | sources, tokenizers, packing, the loader | [`data::Loader`] |
//! | [`generate`] | cache, sampling, scoring, evaluation | [`generate::Generator`] |
//! | [`train`] | configuration, plan, engine, runs, checkpoints | [`train::Engine`] |
//!
//! Arrows between them: `bessemer -> train -> {data, parallel, generate}`, `generate -> {models, data}`,
//! `parallel -> {comm, models, optim}`, `models -> ops -> tensor -> kernels`, `optim -> tensor`, `comm -> tensor`. The crate graph forbids the others: models know no ranks,
//! optimizers do not communicate, nothing depends on `train` but this crate.
//!
//! # One training step, on one rank
//! 1. [`train::RunConfig`] is what the file says; [`train::plan::RunPlan`] has every number final.
//! 2. A family ([`models::families`]) makes a list of blocks: shapes only. [`models::weights`] fills them:
//!    a number is a function of (seed, name, global index), or read from a slice of a file.
//! 3. [`data::Loader`] gives the samples of the step: a function of the samples consumed.
//! 4. [`models::Pass`] runs each block forward on a fresh tape segment and backward in reverse, between gather and release.
//! 5. The head ([`ops::Cx::head`]) makes log-probabilities and, in the same pass, gradients.
//! 6. [`train::step`]: norm over all gradients, nominal / counted targets, clip factor; one fused update per parameter.
//! 7. Metrics, and where due evaluation, checkpoint, sample ([`train::run`]).
//!
//! On several ranks ([`train::ranks`]) each runs these steps on its own micro-batches: 4 gathers weights and reduces gradients
//! ([`parallel::zero`]), 6 updates what the rank owns, and every decision follows from numbers that all ranks have.
//!
//! # Where a new thing goes
//! op: a file in `crates/kernels` and one in `crates/ops`, a line in `backend/list.rs` and `cpu.rs` · family: a file in
//! `crates/models/src/families` and a line in `registry.rs` · optimizer: a file in `crates/optim`, a line in
//! `crates/train/src/config/rules.rs` and its keys in `config/table/types.rs` · data source: a file in
//! `crates/data/src/source` · command: a file in `crates/bessemer/src/cmd` and a line in `main.rs`.
#![forbid(unsafe_code)]

pub use comm;
pub use data;
pub use generate;
pub use models;
pub use ops;
pub use optim;
pub use parallel;
pub use tensor;
pub use train;

pub use train::config::{Overrides, RunConfig};
pub use train::{
    Callback, Control, Engine, Event, Observer, Outcome, Run, Silent, TrainError, TrainingData, initialize,
};
