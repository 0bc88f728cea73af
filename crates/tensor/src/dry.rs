//! A device that computes nothing and holds no memory.
//!
//! On it `plan` runs one training step of a model of any size on shapes alone: the queue's [`crate::Ledger`] then says
//! how much memory of each kind the step takes, and the costs of the ops how much work it is. Both are exact, because
//! the code that runs is the code that trains.
//!
//! # Invariants
//! - Every call succeeds; reads give zeros.
//! - What ops put into the ledger depends on shapes only, never on values.

use crate::{Backend, Queue, Storage};

macro_rules! dry_backend {
    ($($kernel:ident: $args:ident),*) => {
        /// Kernels that do nothing.
        pub static DRY: Backend = Backend {
            name: "dry",
            allocate: |_, _| Ok(Storage::Device(Box::new(()))),
            write: |_, _, _| Ok(()),
            read: |_, _, bytes| {
                bytes.fill(0);
                Ok(())
            },
            $($kernel: |_, _| Ok(())),*
        };
    };
}
for_each_kernel!(dry_backend);

/// A queue on which everything succeeds and nothing happens.
pub fn queue() -> Queue {
    Queue::new(&DRY, 0, Box::new(()))
}

#[cfg(test)]
mod tests {
    use crate::{DType, FillArgs, MemoryKind, dry};

    #[test]
    fn a_tensor_of_a_terabyte_is_in_the_ledger_and_nowhere_else() {
        let queue = dry::queue();
        let x = queue.alloc(MemoryKind::Weights, DType::F32, [1 << 19, 1 << 19]).unwrap();
        (queue.backend().fill)(&queue, FillArgs { out: &x, value: 1.0 }).unwrap();
        assert_eq!(queue.ledger().current[MemoryKind::Weights as usize], 1 << 40);
        drop(x);
        assert_eq!(queue.ledger().current[MemoryKind::Weights as usize], 0);
        assert_eq!(queue.ledger().peak[MemoryKind::Weights as usize], 1 << 40);
    }

    #[test]
    fn what_is_read_is_zero() {
        let queue = dry::queue();
        let x = queue.upload(MemoryKind::Activations, [3], &[1.0f32, 2.0, 3.0]).unwrap();
        assert_eq!(queue.read::<f32>(&x).unwrap(), [0.0; 3]);
    }
}
