//! The kernels of one kind of device: one function per kernel, absent by default.
//!
//! A new kernel is one entry in the list (`backend/list.rs`) and one in each device that has it. Arguments travel in a
//! struct generic over the handle: calls pass `&Tensor`, a device that defers work keeps `Tensor`s ([`MatmulArgs::map`]).
//!
//! Shape legend: N tokens, D width, V vocabulary, H heads, P positions.

use crate::{AttentionSpec, BlockRule, Gelu, MAX_STATES, Queue, Segment, Storage, Tensor};
use std::sync::Arc;

/// Why a device could not do what it was asked.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum KernelError {
    /// The device has no such kernel.
    #[error("device {device} has no kernel {op}; use another device for this run")]
    Unsupported {
        /// The device's name.
        device: &'static str,
        /// The kernel's name.
        op: &'static str,
    },
    /// The device has no memory left.
    #[error(
        "out of memory: {bytes} more bytes were asked for; lower train_micro_batch_size_per_gpu or \
         data.sequence_length, or set run.recompute"
    )]
    OutOfMemory {
        /// What was asked for.
        bytes: usize,
    },
    /// The device reported an error of its own.
    #[error("device {device}: {message}")]
    Device {
        /// The device's name.
        device: &'static str,
        /// In the device's words.
        message: String,
    },
}

/// How a dropout mask is drawn: a number is a function of (key, sample, position, global feature), so any mesh and any
/// number of threads draws the same.
#[derive(Clone, Copy, Debug)]
pub struct DropoutArgs<H> {
    /// Chance that an element is dropped, in [0, 1).
    pub probability: f32,
    /// Made of seed, step and site.
    pub key: [u32; 2],
    /// u32 `[N]`: sample in the global batch.
    pub samples: H,
    /// u32 `[N]`: position in the row.
    pub positions: H,
    /// Global index of column 0, for ranks that hold a range of the columns.
    pub first_feature: u32,
}

impl<H> DropoutArgs<H> {
    /// The same arguments with other handles.
    pub fn map<G>(self, f: &mut impl FnMut(H) -> G) -> DropoutArgs<G> {
        DropoutArgs {
            probability: self.probability,
            key: self.key,
            samples: f(self.samples),
            positions: f(self.positions),
            first_feature: self.first_feature,
        }
    }
}

impl DropoutArgs<Tensor> {
    /// Arguments that were kept, as a call takes them.
    pub fn borrowed(&self) -> DropoutArgs<&Tensor> {
        let Self { probability, key, ref samples, ref positions, first_feature } = *self;
        DropoutArgs { probability, key, samples, positions, first_feature }
    }
}

/// Distributions to predict, as lists row after row; what a list leaves out has probability 0.
#[derive(Clone, Copy, Debug)]
pub struct SoftTargets<H> {
    /// u32 `[C + 1]`: the list of row `r` is entries `starts[r]` to `starts[r + 1]`.
    pub starts: H,
    /// u32 `[E]`: each at most once in a list.
    pub ids: H,
    /// f32 `[E]`.
    pub probabilities: H,
}

impl<H> SoftTargets<H> {
    /// The same lists with other handles.
    pub fn map<G>(self, f: &mut impl FnMut(H) -> G) -> SoftTargets<G> {
        SoftTargets { starts: f(self.starts), ids: f(self.ids), probabilities: f(self.probabilities) }
    }
}

impl SoftTargets<Tensor> {
    /// Lists that were kept, as a call takes them.
    pub fn borrowed(&self) -> SoftTargets<&Tensor> {
        let Self { starts, ids, probabilities } = self;
        SoftTargets { starts, ids, probabilities }
    }

    /// The lists of a range of rows.
    pub fn rows(&self, rows: std::ops::Range<usize>) -> Self {
        Self { starts: self.starts.rows(rows.start..rows.end + 1), ..self.clone() }
    }
}

/// What is added to cross-entropy.
pub type LossTerms = kernels::cross_entropy::LossTerms;
/// Optimizer constants of one LAMB step.
pub type LambParams = kernels::lamb::Lamb;
/// Optimizer constants of one Adafactor step.
pub type AdafactorParams = kernels::adafactor::Adafactor;

/// Turns a field of an argument struct over to other handles: `tensor`, `option`, `states`, `dropout`, `soft`, or a plain
/// `value`.
macro_rules! map_field {
    (tensor, $field:expr, $f:expr) => {
        $f($field)
    };
    (option, $field:expr, $f:expr) => {
        $field.map(&mut *$f)
    };
    (states, $field:expr, $f:expr) => {
        $field.map(|state| state.map(&mut *$f))
    };
    (dropout, $field:expr, $f:expr) => {
        $field.map(|dropout| dropout.map($f))
    };
    (soft, $field:expr, $f:expr) => {
        $field.map(|soft| soft.map($f))
    };
    (value($ty:ty), $field:expr, $f:expr) => {
        $field
    };
}

macro_rules! field_type {
    (tensor, $h:ident) => { $h };
    (option, $h:ident) => { Option<$h> };
    (states, $h:ident) => { [Option<$h>; MAX_STATES] };
    (dropout, $h:ident) => { Option<DropoutArgs<$h>> };
    (soft, $h:ident) => { Option<SoftTargets<$h>> };
    (value($ty:ty), $h:ident) => { $ty };
}

/// Declares the kernels: per kernel an argument struct with `map`, a field of [`Backend`], and its absence.
macro_rules! kernels {
    ($($(#[$doc:meta])* $kernel:ident: $args:ident { $($(#[$fdoc:meta])* $field:ident: $kind:ident $(($ty:ty))?),* $(,)? })*) => {
        $(
            $(#[$doc])*
            pub struct $args<H> { $($(#[$fdoc])* pub $field: field_type!($kind $(($ty))?, H)),* }

            impl<H> $args<H> {
                /// The same arguments with other handles.
                pub fn map<G>(self, f: &mut impl FnMut(H) -> G) -> $args<G> {
                    $args { $($field: map_field!($kind $(($ty))?, self.$field, f)),* }
                }
            }

            impl $args<Tensor> {
                /// Arguments that were kept, as a call takes them.
                pub fn borrowed(&self) -> $args<&Tensor> {
                    $args { $($field: borrow_field!($kind $(($ty))?, self.$field)),* }
                }
            }
        )*

        /// The kernels of one kind of device. What a device lacks is as in [`Backend::UNSUPPORTED`] and says so by name.
        pub struct Backend {
            /// The device's name in messages and in `run.device`.
            pub name: &'static str,
            /// Zeroed or stale memory of so many bytes.
            pub allocate: fn(&Queue, usize) -> Result<Storage, KernelError>,
            /// Copies host bytes into a contiguous tensor.
            pub write: fn(&Queue, &Tensor, &[u8]) -> Result<(), KernelError>,
            /// Waits for a contiguous tensor and copies it to the host.
            pub read: fn(&Queue, &Tensor, &mut [u8]) -> Result<(), KernelError>,
            $($(#[$doc])* pub $kernel: fn(&Queue, $args<&Tensor>) -> Result<(), KernelError>),*
        }

        impl Backend {
            /// A device without kernels: what a new one starts from.
            pub const UNSUPPORTED: Backend = Backend {
                name: "unsupported",
                allocate: |queue, _| Err(unsupported(queue, "allocate")),
                write: |queue, _, _| Err(unsupported(queue, "write")),
                read: |queue, _, _| Err(unsupported(queue, "read")),
                $($kernel: |queue, _| Err(unsupported(queue, stringify!($kernel)))),*
            };
        }

        /// Calls `$callback! { kernel: Args, ... }` with the list of all kernels: for devices that treat all alike.
        #[macro_export]
        macro_rules! for_each_kernel {
            ($callback:ident) => { $callback! { $($kernel: $args),* } };
        }
    };
}

macro_rules! borrow_field {
    (tensor, $field:expr) => {
        &$field
    };
    (option, $field:expr) => {
        $field.as_ref()
    };
    (states, $field:expr) => {
        $field.each_ref().map(Option::as_ref)
    };
    (dropout, $field:expr) => {
        $field.as_ref().map(DropoutArgs::borrowed)
    };
    (soft, $field:expr) => {
        $field.as_ref().map(SoftTargets::borrowed)
    };
    (value($ty:ty), $field:expr) => {
        $field.clone()
    };
}

fn unsupported(queue: &Queue, op: &'static str) -> KernelError {
    KernelError::Unsupported { device: queue.backend().name, op }
}

#[macro_use]
mod list;
pub use list::*;
