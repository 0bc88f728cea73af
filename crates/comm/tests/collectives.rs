//! Every collective against a plain loop, over random sizes, formats, groups and 1 to 8 ranks.

use comm::{Comm, Flat, Limits, even_shares, local};
use proptest::prelude::*;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use tensor::{DType, Isa, MemoryKind, Queue, Tensor, bf16, cpu, f16};

const LIMITS: Limits = Limits { timeout: Duration::from_secs(20), spin: false };

/// What every rank of a random case knows.
#[derive(Clone, Debug)]
struct Case {
    ranks: usize,
    dtype: DType,
    counts: Vec<usize>,
    root: usize,
    /// Tensors that a row of elements is cut into.
    pieces: usize,
    seed: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    let dtypes = prop::sample::select(vec![DType::F32, DType::BF16, DType::F16, DType::I32, DType::U32]);
    (1usize..=8, dtypes, prop::collection::vec(0usize..300, 8), 0usize..8, 1usize..4, any::<u64>()).prop_map(
        |(ranks, dtype, mut counts, root, pieces, seed)| {
            counts.truncate(ranks);
            Case { ranks, dtype, counts, root: root % ranks, pieces, seed }
        },
    )
}

/// Runs `work` on every rank and returns what it gave, in the order of ranks.
fn on_ranks<T: Send + 'static>(ranks: usize, work: impl Fn(&Comm, &Queue) -> T + Send + Sync + 'static) -> Vec<T> {
    let work = Arc::new(work);
    let threads: Vec<_> = (local::world(ranks, LIMITS).into_iter())
        .map(|comm| {
            let work = Arc::clone(&work);
            thread::spawn(move || work(&comm, &cpu::queue(1, false, Isa::detect())))
        })
        .collect();
    threads.into_iter().map(|thread| thread.join().expect("no rank fails")).collect()
}

/// The value of element `i` of what rank `rank` gives: small whole numbers and halves, exact in every float format.
fn value(case: &Case, rank: usize, i: usize) -> f32 {
    let mixed = case.seed.wrapping_add((rank as u64) << 32).wrapping_add(i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let whole = (mixed >> 59) as f32;
    if matches!(case.dtype, DType::I32 | DType::U32) { whole } else { whole / 2.0 - 4.0 }
}

impl Case {
    /// Row `rank` of `len` elements, in several tensors.
    fn flat(&self, queue: &Queue, rank: usize, len: usize) -> Flat {
        let values: Vec<f32> = (0..len).map(|i| value(self, rank, i)).collect();
        let mut at = 0;
        let lens = even_shares(len, 1, self.pieces);
        Flat::new(lens.into_iter().map(|len| {
            at += len;
            self.tensor(queue, &values[at - len..at])
        }))
    }

    fn tensor(&self, queue: &Queue, values: &[f32]) -> Tensor {
        let len = [values.len()];
        macro_rules! upload {
            ($convert:expr) => {
                queue.upload(MemoryKind::Workspace, len, &values.iter().map($convert).collect::<Vec<_>>()).unwrap()
            };
        }
        match self.dtype {
            DType::F32 => upload!(|x| *x),
            DType::BF16 => upload!(|x| bf16::from_f32(*x)),
            DType::F16 => upload!(|x| f16::from_f32(*x)),
            DType::I32 => upload!(|x| *x as i32),
            DType::U32 => upload!(|x| *x as u32),
        }
    }

    fn room(&self, queue: &Queue, len: usize) -> Flat {
        self.flat(queue, 99, len)
    }

    fn read(&self, queue: &Queue, flat: &Flat) -> Vec<f32> {
        let read = |part: &Tensor| match self.dtype {
            DType::I32 => queue.read::<i32>(part).unwrap().into_iter().map(|x| x as f32).collect(),
            DType::U32 => queue.read::<u32>(part).unwrap().into_iter().map(|x| x as f32).collect(),
            _ => queue.read_f32(part).unwrap(),
        };
        flat.parts().iter().flat_map(read).collect()
    }

    fn row(&self, rank: usize, len: usize) -> Vec<f32> {
        (0..len).map(|i| value(self, rank, i)).collect()
    }

    fn total(&self) -> usize {
        self.counts.iter().sum()
    }

    fn sum(&self, len: usize) -> Vec<f32> {
        (0..len).map(|i| (0..self.ranks).map(|rank| value(self, rank, i)).sum()).collect()
    }

    fn share<'a>(&self, row: &'a [f32], rank: usize) -> &'a [f32] {
        let start: usize = self.counts[..rank].iter().sum();
        &row[start..start + self.counts[rank]]
    }

    fn gathered(&self) -> Vec<f32> {
        (0..self.ranks).flat_map(|rank| self.row(rank, self.counts[rank])).collect()
    }
}

/// Everything one rank gets from one call of each kind.
fn all_kinds(case: &Case, comm: &Comm, queue: &Queue) -> Vec<(&'static str, Vec<f32>)> {
    let (rank, total, own, root) = (comm.index(), case.total(), case.counts[comm.index()], case.root);
    let mut got = Vec::new();
    let x = case.flat(queue, rank, total);
    comm.all_reduce(queue, &x).unwrap();
    got.push(("all_reduce", case.read(queue, &x)));
    let (x, out) = (case.flat(queue, rank, total), case.room(queue, own));
    comm.reduce_scatter(queue, &x, &case.counts, &out).unwrap();
    got.push(("reduce_scatter", case.read(queue, &out)));
    let (x, out) = (case.flat(queue, rank, own), case.room(queue, total));
    comm.all_gather(queue, &x, &case.counts, &out).unwrap();
    got.push(("all_gather", case.read(queue, &out)));
    let x = case.flat(queue, rank, total);
    comm.broadcast(queue, &x, root).unwrap();
    got.push(("broadcast", case.read(queue, &x)));
    let one = |len: usize| case.tensor(queue, &vec![0.0; len]);
    let (x, out) = (case.flat(queue, rank, total), (rank == root).then(|| one(total)));
    comm.reduce(queue, &x, out.as_ref(), root).unwrap();
    got.push(("reduce", out.map_or(Vec::new(), |out| case.read(queue, &out.into()))));
    let (x, out) = (case.flat(queue, rank, own), (rank == root).then(|| one(total)));
    comm.gather(queue, &x, &case.counts, out.as_ref(), root).unwrap();
    got.push(("gather", out.map_or(Vec::new(), |out| case.read(queue, &out.into()))));
    let (x, out) = ((rank == root).then(|| case.tensor(queue, &case.row(rank, total))), case.room(queue, own));
    comm.scatter(queue, x.as_ref(), &case.counts, &out, root).unwrap();
    got.push(("scatter", case.read(queue, &out)));
    // Rank i sends counts[j] elements to rank j: rank j gets counts[j] from each.
    let (x, out) = (case.flat(queue, rank, total), case.room(queue, own * case.ranks));
    comm.all_to_all(queue, &x, &case.counts, &out, &vec![own; case.ranks]).unwrap();
    got.push(("all_to_all", case.read(queue, &out)));
    // Around the ring, begun by all before anybody receives.
    if case.ranks > 1 {
        let (next, previous) = ((rank + 1) % case.ranks, (rank + case.ranks - 1) % case.ranks);
        let (x, out) = (case.flat(queue, rank, total), case.room(queue, total));
        let sending = comm.begin_send(&x, next).unwrap();
        comm.recv(queue, &out, previous).unwrap();
        sending.wait(queue).unwrap();
        got.push(("ring", case.read(queue, &out)));
    }
    comm.barrier(queue).unwrap();
    let numbers = comm.exchange(queue, &[rank as f64 + 0.25, -1.0]).unwrap();
    got.push(("exchange", numbers.into_iter().map(|pair| (pair[0] + pair[1]) as f32).collect()));
    got
}

fn expected(case: &Case, rank: usize) -> Vec<(&'static str, Vec<f32>)> {
    let total = case.total();
    let at_root = |values: Vec<f32>| if rank == case.root { values } else { Vec::new() };
    let mut want = vec![
        ("all_reduce", case.sum(total)),
        ("reduce_scatter", case.share(&case.sum(total), rank).to_vec()),
        ("all_gather", case.gathered()),
        ("broadcast", case.row(case.root, total)),
        ("reduce", at_root(case.sum(total))),
        ("gather", at_root(case.gathered())),
        ("scatter", case.share(&case.row(case.root, total), rank).to_vec()),
        ("all_to_all", (0..case.ranks).flat_map(|from| case.share(&case.row(from, total), rank).to_vec()).collect()),
    ];
    if case.ranks > 1 {
        want.push(("ring", case.row((rank + case.ranks - 1) % case.ranks, total)));
    }
    want.push(("exchange", (0..case.ranks).map(|rank| rank as f32 - 0.75).collect()));
    want
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_collective_gives_what_a_plain_loop_gives(case in cases()) {
        let given = case.clone();
        let got = on_ranks(case.ranks, move |comm, queue| all_kinds(&given, comm, queue));
        for (rank, got) in got.into_iter().enumerate() {
            prop_assert_eq!(got, expected(&case, rank), "rank {}", rank);
        }
    }

    #[test]
    fn groups_work_side_by_side_and_count_their_own_calls(ranks in 2usize..=8, stride in 1usize..=4) {
        let sums = on_ranks(ranks, move |comm, queue| {
            let own: Vec<usize> = (0..ranks).filter(|rank| rank % stride == comm.rank() % stride).collect();
            let group = comm.group("data", &own).unwrap();
            let x = queue.upload(MemoryKind::Workspace, [3], &[comm.rank() as f32; 3]).unwrap();
            for _ in 0..=comm.rank() % stride {
                group.all_reduce(queue, &x).unwrap();
            }
            comm.barrier(queue).unwrap();
            queue.read::<f32>(&x).unwrap()[2]
        });
        for (rank, sum) in sums.into_iter().enumerate() {
            let own: Vec<usize> = (0..ranks).filter(|other| other % stride == rank % stride).collect();
            let times = (own.len() as f32).powi((rank % stride) as i32);
            prop_assert_eq!(sum, own.iter().sum::<usize>() as f32 * times, "rank {} of {} by {}", rank, ranks, stride);
        }
    }
}

#[test]
fn sums_of_16_bit_floats_are_made_in_f32_and_rounded_once() {
    let sums = on_ranks(4, |comm, queue| {
        // 256 + 1 + 1 + 1: one by one in bf16 each 1 would be lost.
        let mine = bf16::from_f32(if comm.rank() == 0 { 256.0 } else { 1.0 });
        let x = queue.upload(MemoryKind::Workspace, [1], &[mine]).unwrap();
        comm.all_reduce(queue, &x).unwrap();
        queue.read::<bf16>(&x).unwrap()[0].to_f32()
    });
    assert_eq!(sums, [260.0; 4]);
}

#[test]
fn eight_ranks_and_one_that_sums_in_aligned_runs_give_the_same_bits() {
    let values =
        |rank: usize| (0..5000).map(move |i| ((rank * 5000 + i) as f32 * 0.37).sin() * 1e3).collect::<Vec<f32>>();
    let sums = on_ranks(8, move |comm, queue| {
        let x = queue.upload(MemoryKind::Workspace, [5000], &values(comm.rank())).unwrap();
        comm.all_reduce(queue, &x).unwrap();
        queue.read::<f32>(&x).unwrap()
    });
    let add = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a + b).collect::<Vec<f32>>();
    let mut terms: Vec<Vec<f32>> = (0..8).map(values).collect();
    while terms.len() > 1 {
        terms = terms.chunks(2).map(|pair| add(&pair[0], &pair[1])).collect();
    }
    sums.iter().for_each(|sum| assert_eq!(*sum, terms[0]));
}

#[test]
fn calls_may_be_under_way_together_and_waited_for_in_any_order() {
    on_ranks(3, |comm, queue| {
        let upload = |value: usize| queue.upload(MemoryKind::Workspace, [100], &[value as f32; 100]).unwrap();
        let tensors: Vec<Tensor> = (0..5).map(|i| upload(10 * i + comm.rank())).collect();
        let mut pending: Vec<_> = tensors.iter().map(|x| comm.begin_all_reduce(x).unwrap()).collect();
        // Each rank in another order. An all_reduce needs the others twice, so they must share an order of waits; gathers
        // do not.
        for pending in pending.drain(..) {
            pending.wait(queue).unwrap();
        }
        for (i, x) in tensors.iter().enumerate() {
            assert_eq!(queue.read::<f32>(x).unwrap()[0], (30 * i + 3) as f32);
        }
        let outs: Vec<Tensor> = (0..5).map(|_| upload(0).reshape([100])).collect();
        let counts = [100 / 4, 100 / 2, 100 / 4];
        let own = counts[comm.index()];
        let begin = |i: usize| comm.begin_all_gather(tensors[i].rows(0..own), &counts, &outs[i]).unwrap();
        let mut gathers: Vec<_> = (0..5).map(|i| (i, begin(i))).collect();
        gathers.rotate_left(comm.rank());
        for (i, gather) in gathers {
            gather.output(queue).unwrap();
            assert_eq!(queue.read::<f32>(&outs[i]).unwrap(), [(30 * i + 3) as f32; 100]);
        }
        comm.barrier(queue).unwrap();
    });
}

#[test]
fn the_volume_over_all_ranks_is_that_of_the_textbook() {
    const N: usize = 10_000;
    let volumes = on_ranks(4, |comm, queue| {
        let counts = even_shares(N, 64, 4);
        let (own, zeros) =
            (counts[comm.index()], |len: usize| queue.zeros(MemoryKind::Workspace, DType::F32, [len]).unwrap());
        let whole = zeros(N);
        comm.all_reduce(queue, &whole).unwrap();
        comm.reduce_scatter(queue, &whole, &counts, zeros(own)).unwrap();
        comm.all_gather(queue, zeros(own), &counts, &whole).unwrap();
        let traffic = comm.traffic();
        ["all_reduce", "reduce_scatter", "all_gather"].map(|name| {
            let traffic = traffic.iter().find(|(kind, _)| kind.name() == name).expect("it was called").1;
            assert_eq!((traffic.calls, traffic.bytes), (1, 4 * traffic.elements));
            traffic.elements
        })
    });
    let total = |call: usize| volumes.iter().map(|rank| rank[call]).sum::<u64>();
    assert_eq!([total(0), total(1), total(2)], [2 * 3 * N as u64, 3 * N as u64, 3 * N as u64]);
}
