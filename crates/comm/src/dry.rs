//! A transport that moves nothing and waits for nobody: `plan` runs one rank of any number on it, with [`tensor::dry`].
//!
//! What is counted ([`Comm::traffic`]) and what the queue's ledger says are those of a real rank, because the code that
//! calls is the same. What a call gives is of unspecified content.

use crate::{Call, CallName, Comm, Link, Operation, Result, Transport};
use std::sync::Arc;
use tensor::Queue;

/// The group of all ranks as `rank` of `size` sees it, with nobody there.
pub fn comm(rank: usize, size: usize) -> Comm {
    Comm::world(Arc::new(Dry { rank, size })).expect("nobody can be lost")
}

struct Dry {
    rank: usize,
    size: usize,
}

impl Transport for Dry {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn link(&self, group: &str, ranks: &[usize]) -> Result<Arc<dyn Link>> {
        Ok(Arc::new(DryLink { group: group.into(), ranks: ranks.into() }))
    }

    fn abort(&self, _why: &str) {}
}

struct DryLink {
    group: Arc<str>,
    ranks: Arc<[usize]>,
}

impl Link for DryLink {
    fn begin(&self, call: Call) -> Result<Box<dyn Operation>> {
        let name =
            CallName { kind: call.kind, number: 0, group: Arc::clone(&self.group), ranks: Arc::clone(&self.ranks) };
        // The tensors are held until the call is waited for, as a real one does.
        Ok(Box::new(DryOperation { name, _call: call }))
    }
}

struct DryOperation {
    name: CallName,
    _call: Call,
}

impl Operation for DryOperation {
    fn name(&self) -> CallName {
        self.name.clone()
    }

    fn output(&mut self, _queue: &Queue) -> Result<()> {
        Ok(())
    }

    fn inputs_free(&mut self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;
    use tensor::{DType, MemoryKind, dry};

    #[test]
    fn a_call_of_a_thousand_ranks_is_counted_and_made_by_nobody() {
        let (comm, queue) = (comm(3, 1000), dry::queue());
        let x = queue.alloc(MemoryKind::Gradients, DType::F32, [64_000_000]).unwrap();
        comm.all_reduce(&queue, &x).unwrap();
        assert_eq!(comm.traffic()[&Kind::AllReduce].elements, 2 * (64_000_000 - 64_000));
        assert_eq!(comm.exchange(&queue, &[1.0f64]).unwrap().len(), 1000);
    }
}
