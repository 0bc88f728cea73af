//! A device that defers: its memory cannot be reached from outside and its kernels run only when the host reads.
//!
//! It stands in for a GPU in tests: code that looks into memory, or relies on a call having run when it returned, fails here.
//!
//! # Order of events
//! 1. A kernel call, and a write with its bytes, is put on the queue's list.
//! 2. [`Queue::read`] runs the list in order on a CPU queue of the device's own, then copies out.
//!
//! # Invariants
//! - A recorded call holds the memory it works on, but no handle of the caller's: a buffer whose last handle is dropped
//!   goes back to the allocator at once and may be handed out again before any call on it has run. That is legal
//!   because the list runs in order; it is what streams of GPUs do.
//! - What an op sees of a tensor (its shape, whether it is unique) is what it sees on the CPU, so the bits are the same.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tensor::{Backend, Buffer, DType, Isa, KernelError, MemoryKind, Queue, Storage, Tensor, cpu};

type Call = Box<dyn FnOnce(&Queue) -> Result<(), KernelError> + Send>;

/// State of a far queue.
struct Far {
    /// Where calls run and memory lies.
    cpu: Queue,
    calls: Mutex<Vec<Call>>,
}

/// What a far buffer holds: opaque to everybody else.
struct Memory(Buffer);

/// A far queue whose calls run, when they do, on `threads` CPU threads.
pub fn queue(threads: usize, isa: Isa) -> Queue {
    Queue::new(&FAR, 0, Box::new(Far { cpu: cpu::queue(threads, false, isa), calls: Mutex::default() }))
}

/// How many calls were recorded on a far queue and have not run.
///
/// # Panics
/// If the queue is another device's.
pub fn pending(queue: &Queue) -> usize {
    queue.state::<Far>().lock().len()
}

impl Far {
    fn lock(&self) -> MutexGuard<'_, Vec<Call>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs what was recorded; after an error the rest is dropped.
    fn run(&self) -> Result<(), KernelError> {
        let calls = std::mem::take(&mut *self.lock());
        calls.into_iter().try_for_each(|call| call(&self.cpu))
    }
}

fn record(queue: &Queue, call: impl FnOnce(&Queue) -> Result<(), KernelError> + Send + 'static) {
    queue.state::<Far>().lock().push(Box::new(call));
}

/// The tensor as the device's own CPU queue sees it.
fn near(x: &Tensor) -> Tensor {
    let Storage::Device(handle) = x.buffer().storage() else { panic!("far: a tensor of another device") };
    let Memory(buffer) = handle.downcast_ref().expect("far: a tensor of another device");
    x.in_buffer(buffer)
}

macro_rules! far_backend {
    ($($kernel:ident: $args:ident),*) => {
        static FAR: Backend = Backend {
            name: "far",
            allocate: |queue, bytes| {
                // Not recycled there: the far queue's own allocator decides what is handed out again, and when.
                let cpu = &queue.state::<Far>().cpu;
                let memory = cpu.alloc(MemoryKind::Weights, DType::U32, [bytes.div_ceil(DType::U32.size())])?;
                Ok(Storage::Device(Box::new(Memory(memory.buffer().clone()))))
            },
            write: |queue, out, bytes| {
                let (out, bytes) = (near(out), bytes.to_vec());
                record(queue, move |cpu| (cpu.backend().write)(cpu, &out, &bytes));
                Ok(())
            },
            read: |queue, x, bytes| {
                let far: &Far = queue.state();
                far.run()?;
                (far.cpu.backend().read)(&far.cpu, &near(x), bytes)
            },
            $($kernel: |queue, args| {
                let kept = args.map(&mut near);
                record(queue, move |cpu| (cpu.backend().$kernel)(cpu, kept.borrowed()));
                Ok(())
            }),*
        };
    };
}
tensor::for_each_kernel!(far_backend);

#[cfg(test)]
mod tests {
    use super::*;
    use tensor::{AddArgs, FillArgs};

    const LEN: usize = 1000;

    /// Adds `value` to `total` through a buffer that is dropped before anything has run.
    fn add_through_scratch(queue: &Queue, total: &Tensor, value: f32) {
        let scratch = queue.alloc(MemoryKind::Workspace, DType::F32, [LEN]).unwrap();
        (queue.backend().fill)(queue, FillArgs { out: &scratch, value }).unwrap();
        (queue.backend().add)(queue, AddArgs { x: &scratch, out: total }).unwrap();
    }

    #[test]
    fn nothing_runs_before_the_host_reads() {
        let queue = queue(1, Isa::detect());
        let total = queue.zeros(MemoryKind::Activations, DType::F32, [LEN]).unwrap();
        add_through_scratch(&queue, &total, 2.0);
        assert_eq!(pending(&queue), 3);
        assert_eq!(queue.read::<f32>(&total).unwrap(), [2.0; LEN]);
        assert_eq!(pending(&queue), 0);
    }

    #[test]
    fn a_freed_buffer_is_handed_out_again_before_its_calls_have_run() {
        let queue = queue(1, Isa::detect());
        let total = queue.zeros(MemoryKind::Weights, DType::F32, [LEN]).unwrap();
        add_through_scratch(&queue, &total, 1.0);
        let reserved = queue.ledger().reserved_peak;
        add_through_scratch(&queue, &total, 2.0);
        add_through_scratch(&queue, &total, 4.0);
        assert_eq!(pending(&queue), 7);
        assert_eq!(queue.ledger().reserved_peak, reserved, "three scratch buffers in the memory of one");
        assert_eq!(queue.read::<f32>(&total).unwrap(), [7.0; LEN]);
    }

    #[test]
    fn bytes_to_write_are_those_of_the_time_of_the_call() {
        let queue = queue(1, Isa::detect());
        let mut host = [1.0f32, 2.0];
        let x = queue.upload(MemoryKind::Activations, [2], &host).unwrap();
        host.fill(3.0);
        let y = queue.upload(MemoryKind::Activations, [2], &host).unwrap();
        assert_eq!(queue.read::<f32>(&x).unwrap(), [1.0, 2.0]);
        assert_eq!(queue.read::<f32>(&y).unwrap(), [3.0, 3.0]);
    }

    #[test]
    fn memory_cannot_be_reached_without_the_queue() {
        let queue = queue(1, Isa::detect());
        let x = queue.upload(MemoryKind::Activations, [1], &[1.0f32]).unwrap();
        assert!(matches!(x.buffer().storage(), Storage::Device(_)));
    }
}
