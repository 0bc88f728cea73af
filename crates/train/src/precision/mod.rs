//! Which op family of which block runs in which format, and when that changes.
//!
//! | file | what |
//! | --- | --- |
//! | `formats` | the table that the run file asks for: a mode, `torch_autocast`, `run.precision` |
//! | [`adaptive`] | statistics while training, and ops that run in f32 for a while because of them |
//! | `half` | gradients and masters in 16 bits |
//!
//! Here masters are f32 and products read a rounded copy that the optimizer writes; PyTorch's autocast has f32 weights alone
//! and casts them op by op. The numbers are the same, the copy is made once a step.

pub mod adaptive;
mod formats;
pub(crate) mod half;

pub(crate) use formats::shown;
pub use formats::{FormatTable, Formats};
