//! From files to training samples: sources, tokenizers, the token cache, packing, shuffling, the loader.
//!
//! # Order of events
//! 1. [`choose_tokenizer`]: the run file's tokenizer, or the model folder's own ([`Tokenizer`]).
//! 2. [`open`]: every source is resolved to files (`source`), tokenised once into a memory-mapped cache
//!    (`tokenize`, `join`, `cache`) and laid out in rows (`packing`): a [`Dataset`].
//! 3. [`Loader`]: sample number g, for ever, as a pure function of the seed and g. Its whole state is how many
//!    samples were consumed.
//!
//! # Invariants
//! - Nothing is skipped in silence: what cannot be used is an error that names file, line or byte, and value.
//! - The ids of a document depend on the document and the tokenizer alone, never on chunk size or thread count.
//! - Memory is bounded by threads x chunk size, whatever the size of the corpus; samples are read from the map.
//!
//! Not here: turning samples into tensors, padding a batch, which rank takes which sample (crate `train`).

#![deny(unsafe_code)] // `forbid` but for one module, `mmap`, which says why.

mod cache;
mod config;
mod dataset;
mod error;
mod join;
mod loader;
mod mix;
mod mmap;
mod packing;
mod remember;
mod shuffle;
mod soft;
mod source;
mod tokenize;
mod tokenizer;

pub use config::{DataConfig, DataSource, Format, NamedSources, Packing, Sources, Validation};
pub use dataset::{
    Dataset, Event, OpenOptions, ValidationSet, choose_tokenizer, default_cache, holds_token_rows, open,
    open_evaluation,
};
pub use error::{DataError, Result};
pub use loader::Loader;
pub use mix::Mix;
pub use packing::{IGNORE, Sample};
pub use shuffle::Permutation;
pub use soft::SoftLabels;
pub use source::glob_matches;
pub use source::labels::Classes;
pub use tokenize::{CHUNK_BYTES, LEAST_CHUNK_BYTES};
pub use tokenizer::{DecodeStream, Tokenizer};
