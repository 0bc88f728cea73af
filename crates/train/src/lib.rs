//! Training: from a run file to a trained model.
//!
//! | module | what |
//! | --- | --- |
//! | [`config`] | what the run file says |
//! | [`plan`] | what follows from it: every number final |
//! | [`model_source`] | where the model comes from: folder, preset, config |
//! | [`training_data`] | the training and validation samples of a run |
//! | [`engine`] | a model in training: batches in, reports out |
//! | [`callback`] | code of a user's own at every stage of training |
//! | [`step`] | one optimizer step |
//! | [`evaluation`] | the validation sets, and what follows their figures |
//! | [`early_stop`] | a run without gain ends |
//! | [`best`] | the best checkpoints, kept beside the newest |
//! | [`task`] | next tokens, or classes of rows |
//! | [`curriculum`] | rows that grow with the steps |
//! | [`layer_drop`] | layers left out at random |
//! | [`random_ltd`] | layers that run on some tokens only |
//! | [`loss_scale`] | the scale of an fp16 run's loss |
//! | [`loss_spike`] | the guard against batches whose loss leaps |
//! | [`precision`] | formats of op families, fixed or adapting |
//! | [`ranks`] | the ranks of this process, each with an engine of its own |
//! | [`run`] | a whole run: loop, evaluation, checkpoints, samples, signals |
//! | [`checkpoint`] | what is kept so that a run can go on bit for bit |
//! | [`metrics`] | one JSON line a step |
//! | [`monitor`] | the same numbers for TensorBoard and as CSV |
//! | [`norms`] | norms of gradient and weights, block by block |
//! | [`Breakdown`] | where the time of a step goes |
//! | [`flops_profiler`] | one step measured module by module |
//! | [`pretrained`] | a trained model opened again, checkpoints included |
//! | [`tune`] | short trials that find a rate and a batch size |
//! | [`plot`] | curves as SVG and PNG |
//! | [`bench`](mod@bench) | how fast this machine trains a model |
#![forbid(unsafe_code)]

pub mod bench;
pub mod best;
mod breakdown;
pub mod callback;
pub mod checkpoint;
pub mod config;
pub mod curriculum;
pub mod early_stop;
pub mod engine;
mod error;
pub mod evaluation;
pub mod event;
mod export;
pub mod flops_profiler;
mod grad_norm;
pub mod layer_drop;
mod log_file;
pub mod loss_scale;
pub mod loss_spike;
pub mod metrics;
pub mod model_source;
pub mod monitor;
mod non_finite;
pub mod norms;
mod output;
pub mod plan;
pub mod plot;
pub mod precision;
pub mod pretrained;
pub mod random_ltd;
pub mod ranks;
mod resume;
pub mod run;
mod saving;
mod state;
pub mod step;
pub mod system;
pub mod task;
pub mod training_data;
pub mod tune;

pub use breakdown::Breakdown;
pub use callback::{Callback, Control};
pub use config::RunConfig;
pub use engine::{Engine, LoadOptions, Loss, initialize};
pub use error::{Result, TrainError};
pub use event::{Event, Observer, Silent};
pub use run::{Outcome, Run};
pub use step::StepReport;
pub use training_data::TrainingData;
