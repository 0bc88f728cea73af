//! No hang, and everybody is told who was lost and what they were in: deaths, panics, stalls, calls that do not match.

use comm::local::{End, run, world};
use comm::{Comm, CommError, Limits};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use tensor::{Isa, MemoryKind, Queue, Tensor, cpu};

const TIMEOUT: Duration = Duration::from_secs(2);
const LIMITS: Limits = Limits { timeout: TIMEOUT, spin: false };

fn queue() -> Queue {
    cpu::queue(1, false, Isa::detect())
}

fn ones(queue: &Queue, len: usize) -> Tensor {
    queue.upload(MemoryKind::Workspace, [len], &vec![1.0f32; len]).unwrap()
}

/// The errors of all ranks that had one.
fn errors(ends: &[End<(), CommError>]) -> Vec<String> {
    let text = |end: &End<(), CommError>| match end {
        End::Failed(error) => Some(error.to_string()),
        _ => None,
    };
    ends.iter().filter_map(text).collect()
}

/// `sums` all_reduces, with something in between on one rank.
fn sums(comm: &Comm, sums: usize, mut before: impl FnMut(usize)) -> Result<(), CommError> {
    let queue = queue();
    let x = ones(&queue, 100);
    for call in 0..sums {
        before(call);
        comm.all_reduce(&queue, &x)?;
    }
    Ok(())
}

#[test]
fn a_rank_that_returns_early_is_named_by_every_survivor() {
    let start = Instant::now();
    let ends = run(4, LIMITS, |comm| sums(&comm, if comm.rank() == 2 { 3 } else { 5 }, |_| ()));
    assert!(start.elapsed() < TIMEOUT, "nobody waits for a rank that is gone");
    assert_eq!(ends[2], End::Done(()));
    let want = "all_reduce 3 of group world (ranks 0 to 3): rank 2 has ended; the last call it began was all_reduce 2 of \
                group world (ranks 0 to 3)";
    assert_eq!(errors(&ends), [want; 3]);
}

#[test]
fn a_rank_that_panics_is_named_with_its_message() {
    let ends = run(3, LIMITS, |comm| {
        let rank = comm.rank();
        sums(&comm, 5, |call| assert!(rank != 1 || call != 2, "out of luck"))
    });
    assert_eq!(ends[1], End::Panicked("out of luck".to_owned()));
    let want = "all_reduce 2 of group world (ranks 0 to 2): rank 1 has stopped: it panicked: out of luck; the last call it \
                began was all_reduce 1 of group world (ranks 0 to 2)";
    assert_eq!(errors(&ends), [want; 2]);
}

#[test]
fn a_rank_that_stalls_is_named_after_the_timeout_and_left_behind() {
    let start = Instant::now();
    let ends = run(3, LIMITS, |comm| {
        let rank = comm.rank();
        sums(&comm, 5, |call| {
            if rank == 1 && call == 2 {
                thread::sleep(Duration::from_secs(30));
            }
        })
    });
    assert!(start.elapsed() >= TIMEOUT && start.elapsed() < TIMEOUT + Duration::from_secs(8));
    assert_eq!(ends[1], End::Stalled);
    let want = "all_reduce 2 of group world (ranks 0 to 2): rank 1 did not answer within 2 s; the last call it began was \
                all_reduce 1 of group world (ranks 0 to 2)";
    assert_eq!(errors(&ends), [want; 2]);
}

#[test]
fn who_waits_for_a_rank_that_waits_itself_is_told_of_the_one_at_the_end_of_the_chain() {
    let limits = Limits { timeout: Duration::from_millis(500), spin: false };
    let ends = run(3, limits, |comm| {
        let (queue, rank) = (queue(), comm.rank());
        let x = ones(&queue, 8);
        // 0 waits for 1 in one group, 1 for 2 in another; 2 does nothing. 0 begins, and so is the first to run out of time.
        let first = (rank < 2).then(|| comm.group("first", &[0, 1]).unwrap());
        let second = (rank > 0).then(|| comm.group("second", &[1, 2]).unwrap());
        match rank {
            0 => first.unwrap().all_reduce(&queue, &x),
            1 => {
                thread::sleep(Duration::from_millis(200));
                second.unwrap().all_reduce(&queue, &x)
            }
            _ => {
                thread::sleep(Duration::from_secs(3));
                second.unwrap().barrier(&queue)
            }
        }
    });
    let how = "rank 2 did not answer within 0.5 s; it has begun no call";
    let late = format!("barrier 0 of group second (ranks 1, 2): {how}");
    let want = [
        format!("all_reduce 0 of group first (ranks 0, 1): {how}"),
        format!("all_reduce 0 of group second (ranks 1, 2): {how}"),
    ];
    let got = errors(&ends);
    assert_eq!(got[..2], want);
    // The late one hears that the others have given it up, or that its call does not match.
    assert!(got.get(2).is_none_or(|text| *text == late), "{got:?}");
}

#[test]
fn ranks_that_wait_for_each_other_are_named_both() {
    let limits = Limits { timeout: Duration::from_millis(300), spin: false };
    let ends = run(2, limits, |comm| {
        let queue = queue();
        comm.recv(&queue, ones(&queue, 4), 1 - comm.rank())
    });
    for text in errors(&ends) {
        assert!(text.contains("wait for each other, for 0.3 s"), "{text}");
    }
    assert_eq!(errors(&ends).len(), 2);
}

#[test]
fn calls_that_do_not_match_are_named_both_on_both_ranks() {
    let ends = run(2, LIMITS, |comm| {
        let queue = queue();
        if comm.rank() == 0 {
            comm.all_reduce(&queue, ones(&queue, 5))
        } else {
            comm.all_gather(&queue, ones(&queue, 3), &[2, 3], ones(&queue, 5))
        }
    });
    for text in errors(&ends) {
        assert!(text.contains("all_reduce of 5 f32") && text.contains("all_gather of shares [2, 3] f32"), "{text}");
        assert!(text.contains("rank 0 calls") && text.contains("rank 1 calls"), "{text}");
    }
    assert_eq!(errors(&ends).len(), 2);
}

#[test]
fn lengths_formats_roots_and_messages_that_differ_are_mismatches() {
    type Work = fn(&Comm, &Queue) -> Result<(), CommError>;
    let cases: [(Work, &str, &str); 4] = [
        (|comm, queue| comm.all_reduce(queue, ones(queue, 5 + comm.rank())), "all_reduce of 5 f32", "of 6 f32"),
        (
            |comm, queue| match comm.rank() {
                0 => comm.all_reduce(queue, ones(queue, 5)),
                _ => comm.all_reduce(queue, queue.upload(MemoryKind::Workspace, [5], &[1u32; 5]).unwrap()),
            },
            "all_reduce of 5 f32",
            "all_reduce of 5 u32",
        ),
        (|comm, queue| comm.broadcast(queue, ones(queue, 5), comm.rank()), "with root 0", "with root 1"),
        (
            |comm, queue| match comm.rank() {
                0 => comm.send(queue, ones(queue, 5), 1),
                _ => comm.recv(queue, ones(queue, 4), 0),
            },
            "rank 0 sends 5 f32",
            "rank 1 expects 4 f32",
        ),
    ];
    for (work, first, second) in cases {
        let got = errors(&run(2, LIMITS, move |comm| work(&comm, &queue())));
        assert_eq!(got.len(), 2, "{got:?}");
        assert!(got.iter().all(|text| text.contains(first) && text.contains(second)), "{got:?}");
    }
}

#[test]
fn a_rank_that_stops_says_why_to_the_others() {
    let ends = run(2, LIMITS, |comm| {
        if comm.rank() == 0 {
            return Err("the disk is full".to_owned());
        }
        sums(&comm, 1, |_| ()).map_err(|error| error.to_string())
    });
    assert_eq!(ends[0], End::Failed("the disk is full".to_owned()));
    let want = "all_reduce 0 of group world (ranks 0, 1): rank 0 has stopped: the disk is full; it has begun no call";
    assert_eq!(ends[1], End::Failed(want.to_owned()));
}

#[test]
fn a_call_that_is_dropped_before_its_output_is_named() {
    let ends = run(2, LIMITS, |comm| {
        let queue = queue();
        let x = ones(&queue, 10);
        if comm.rank() == 0 {
            drop(comm.begin_all_reduce(&x)?);
            thread::sleep(Duration::from_millis(300));
            return Ok(());
        }
        comm.all_reduce(&queue, &x)
    });
    let [text] = &errors(&ends)[..] else { panic!("{ends:?}") };
    assert!(text.contains("rank 0 gave up its all_reduce 0 of group world"), "{text}");
}

/// A number that looks random and depends on what is given alone.
fn mixed(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[test]
fn under_random_delays_the_sums_of_a_hundred_calls_are_the_same_bits() {
    let once = |seed: u64, spin: bool| {
        let threads = world(5, Limits { spin, ..LIMITS }).into_iter().map(|comm| {
            thread::spawn(move || {
                let (queue, rank) = (queue(), comm.rank());
                let values: Vec<f32> = (0..2000).map(|i| ((rank * 2000 + i) as f32).sin()).collect();
                let x = queue.upload(MemoryKind::Workspace, [2000], &values).unwrap();
                for call in 0..100u64 {
                    let wait = mixed(seed ^ (call << 8) ^ rank as u64) % 400;
                    if wait > 200 {
                        thread::sleep(Duration::from_micros(wait));
                    }
                    comm.all_reduce(&queue, &x).unwrap();
                    let values: Vec<f32> = queue.read::<f32>(&x).unwrap().iter().map(|x| (x * 0.9).sin()).collect();
                    queue.write(&x, &values).unwrap();
                }
                queue.read::<f32>(&x).unwrap()
            })
        });
        let threads: Vec<_> = threads.collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    };
    let want = once(1, false);
    for (seed, spin) in [(2, false), (3, true)] {
        assert!(once(seed, spin) == want, "delays {seed} changed a sum");
    }
}

#[test]
fn twenty_deaths_at_random_calls_leave_nobody_waiting() {
    for seed in 0..20u64 {
        let (victim, at, how) = (mixed(seed) as usize % 4, mixed(seed + 100) as usize % 30, mixed(seed + 200) % 2);
        let start = Instant::now();
        let ends = run(4, LIMITS, move |comm| {
            let rank = comm.rank();
            let dies = Arc::new(rank == victim);
            sums(&comm, if *dies && how == 0 { at } else { 30 }, |call| {
                assert!(!*dies || call != at, "an injected death");
            })
        });
        assert!(start.elapsed() < TIMEOUT, "death {seed}");
        let named = errors(&ends).iter().filter(|text| text.contains(&format!("rank {victim} has"))).count();
        assert_eq!(named, 3, "rank {victim} at call {at}: {ends:?}");
    }
}
