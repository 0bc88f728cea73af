//! A fork-join pool: the calling thread and its helpers take numbered tasks, each from its own share first.
//!
//! A training step of a small model calls hundreds of kernels of ten to a hundred microseconds, so handing out work
//! must cost about a microsecond: idle helpers spin for a while on one word before they sleep, and the caller never
//! waits for a helper that is still asleep.
//!
//! The tasks of a job are cut into one run of numbers per thread, and a thread takes those of the others only when its own
//! are done. Kernels number their tasks along the rows of what they write, so that a thread finds in its own cache the
//! rows it wrote in the kernel before: cores that share no cache are far apart.
//!
//! # Order of events
//! 1. The caller publishes the job under the lock, open, bumps `epoch` and wakes sleepers.
//! 2. A helper that sees a new epoch *enters* under the lock if the job is still open, takes tasks until none are left,
//!    and leaves.
//! 3. The caller takes tasks as well; when none are left it closes the job under the lock, so that nobody can enter any
//!    more, and waits for the helpers inside.
//! 4. When nobody is inside it removes the job under the lock.
//!
//! # Invariants
//! - A helper touches the job only between entering and leaving; the caller returns only when nobody is inside. The
//!   closure and what it borrows therefore outlive every use.
//! - One job at a time: it stands from 1 to 4, and publishing another one meanwhile, from a task or from a second thread
//!   (a pool is `Sync`), panics before it touches anything. So `taken` goes back to zero only when nobody takes tasks
//!   from it, and each task runs once.
//! - Which thread runs a task is left to chance; what a task computes must not depend on it.
//! - A panic in a task is carried to the caller once everybody has left.

use std::any::Any;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

/// How often an idle helper looks at the epoch before it sleeps: about 50 microseconds.
const SPINS_BEFORE_SLEEP: u32 = 20_000;

/// The threads of one rank. Dropping it ends them.
pub struct Pool {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    /// Signalled when there is a new job or the pool ends.
    wake: Condvar,
    /// Counts jobs; helpers watch it without the lock.
    epoch: AtomicU64,
    /// Tasks taken of each thread's share.
    taken: Box<[Taken]>,
    /// Helpers inside the job.
    inside: AtomicUsize,
    spins: u32,
}

/// A counter in cache lines of its own.
#[derive(Default)]
#[repr(align(128))]
struct Taken(AtomicUsize);

struct State {
    /// Stands until nobody is inside any more.
    job: Option<Job>,
    /// Helpers may enter the job.
    open: bool,
    sleeping: usize,
    ended: bool,
    panic: Option<Box<dyn Any + Send>>,
}

/// A closure that lives on the caller's stack, without its lifetime.
#[derive(Clone, Copy)]
struct Job {
    task: *const (dyn Fn(usize) + Sync),
    num_tasks: usize,
}

// SAFETY: the closure is `Sync`, and the pool's invariant keeps it alive while a helper holds the pointer.
unsafe impl Send for Job {}

impl Pool {
    /// A pool of `threads` threads, the caller included; 0 and 1 both mean: no helpers.
    pub fn new(threads: usize, spin: bool) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(State { job: None, open: false, sleeping: 0, ended: false, panic: None }),
            wake: Condvar::new(),
            epoch: AtomicU64::new(0),
            taken: (0..threads.max(1)).map(|_| Taken::default()).collect(),
            inside: AtomicUsize::new(0),
            spins: if spin { SPINS_BEFORE_SLEEP } else { 0 },
        });
        let helpers = (1..threads)
            .map(|index| {
                let shared = Arc::clone(&shared);
                let thread = std::thread::Builder::new().name(format!("kernel-{index}"));
                thread.spawn(move || shared.help(index)).expect("Pool::new: the system refused a thread")
            })
            .collect();
        Self { shared, helpers }
    }

    /// Threads that may work at once, the caller included.
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Runs `task(0)`, ..., `task(num_tasks - 1)`, each once, in any order, and returns when all are done.
    ///
    /// # Panics
    /// If a task panics; and if work is to be shared out while the pool is in use: by a task of its own or by a second
    /// thread.
    pub fn run(&self, num_tasks: usize, task: impl Fn(usize) + Sync) {
        if self.helpers.is_empty() || num_tasks < 2 {
            return (0..num_tasks).for_each(task);
        }
        let task: &(dyn Fn(usize) + Sync) = &task;
        // SAFETY: only the lifetime changes; `finish` below ends every use of the pointer before `task` goes away.
        let task: *const (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(task) };
        let job = Job { task, num_tasks };
        self.shared.publish(job);
        let own = catch_unwind(AssertUnwindSafe(|| self.shared.take_tasks(job, 0)));
        let helpers_panic = self.shared.finish();
        if let Some(panic) = own.err().or(helpers_panic) {
            resume_unwind(panic);
        }
    }

    /// Runs `task(i, part)` for the parts of `data` of `len` elements each (the last may be shorter).
    pub fn run_parts<T: Send>(&self, data: &mut [T], len: usize, task: impl Fn(usize, &mut [T]) + Sync) {
        let total = data.len();
        let parts = Parts::new(data);
        self.run(total.div_ceil(len.max(1)), |i| {
            // SAFETY: the ranges of different tasks do not meet, and each task runs once.
            task(i, unsafe { parts.get(i * len..((i + 1) * len).min(total)) });
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.epoch.fetch_add(1, Ordering::Release);
        self.shared.wake.notify_all();
        for helper in self.helpers.drain(..) {
            // A helper catches the panics of its tasks; it has nothing else to fail at.
            let _ = helper.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn publish(&self, job: Job) {
        let mut state = self.lock();
        assert!(state.job.is_none(), "Pool::run: called from inside a task or from two threads at once");
        state.job = Some(job);
        state.open = true;
        self.taken.iter().for_each(|taken| taken.0.store(0, Ordering::Relaxed));
        self.epoch.fetch_add(1, Ordering::Release);
        if state.sleeping > 0 {
            self.wake.notify_all();
        }
    }

    fn finish(&self) -> Option<Box<dyn Any + Send>> {
        self.lock().open = false;
        let mut looks = 0u32;
        while self.inside.load(Ordering::Acquire) > 0 {
            looks += 1;
            // The helper may have lost its core: give ours away now and then.
            if self.spins == 0 || looks.is_multiple_of(1000) {
                std::thread::yield_now()
            } else {
                std::hint::spin_loop()
            }
        }
        let mut state = self.lock();
        state.job = None;
        state.panic.take()
    }

    /// Tasks of share `own`, then of the shares after it.
    fn take_tasks(&self, job: Job, own: usize) {
        // SAFETY: the caller of `run` is still inside it: it waits for everybody who entered.
        let task = unsafe { &*job.task };
        let shares = self.taken.len();
        for share in (own..shares).chain(0..own) {
            // The caller's share, which is begun first, is the longest.
            let start = |share: usize| (share * job.num_tasks).div_ceil(shares);
            let (first, end) = (start(share), start(share + 1));
            let taken = &self.taken[share].0;
            // A share that is done is only looked at: adding to it would take its line from the others.
            while first + taken.load(Ordering::Relaxed) < end {
                let index = first + taken.fetch_add(1, Ordering::Relaxed);
                if index >= end {
                    break;
                }
                task(index);
            }
        }
    }

    /// The life of the helper whose share is `own`.
    fn help(&self, own: usize) {
        let mut seen = 0;
        loop {
            for _ in 0..self.spins {
                if self.epoch.load(Ordering::Acquire) != seen {
                    break;
                }
                std::hint::spin_loop();
            }
            let mut state = self.lock();
            while self.epoch.load(Ordering::Acquire) == seen && !state.ended {
                state.sleeping += 1;
                state = self.wake.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
                state.sleeping -= 1;
            }
            if state.ended {
                return;
            }
            seen = self.epoch.load(Ordering::Acquire);
            let Some(job) = state.job.filter(|_| state.open) else { continue };
            self.inside.fetch_add(1, Ordering::Relaxed);
            drop(state);
            let result = catch_unwind(AssertUnwindSafe(|| self.take_tasks(job, own)));
            if let Err(panic) = result {
                self.lock().panic = Some(panic);
            }
            self.inside.fetch_sub(1, Ordering::Release);
        }
    }
}

/// A slice from which tasks take parts that do not overlap.
pub struct Parts<'a, T> {
    data: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it only hands out `&mut [T]`, under the promise of `get` that no two overlap.
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    /// Borrows the whole slice.
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { data: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// One part.
    ///
    /// # Safety
    /// No two parts that are alive at the same time may overlap.
    ///
    /// # Panics
    /// If the range is not inside the slice.
    #[allow(clippy::mut_from_ref, reason = "that parts do not overlap is the caller's promise")]
    pub unsafe fn get(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "Parts::get: {range:?} of {}", self.len);
        // SAFETY: the range is inside the slice borrowed in `new`; the caller promises that nothing else holds it.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(range.start), range.end - range.start) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    /// That `run` panicked because the pool was in use.
    fn assert_in_use(result: std::thread::Result<()>) {
        let panic = result.expect_err("the pool is in use");
        let message = panic.downcast_ref::<&str>().expect("a message without arguments");
        assert_eq!(*message, "Pool::run: called from inside a task or from two threads at once");
    }

    fn assert_works(pool: &Pool) {
        let count = AtomicUsize::new(0);
        pool.run(8, |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.load(Ordering::Relaxed), 8);
    }

    #[test]
    fn every_task_runs_once_on_any_number_of_threads() {
        for threads in 1..=5 {
            let pool = Pool::new(threads, threads % 2 == 0);
            for num_tasks in [0, 1, 2, 3, 7, 100] {
                let counts: Vec<AtomicUsize> = (0..num_tasks).map(|_| AtomicUsize::new(0)).collect();
                for _ in 0..50 {
                    pool.run(num_tasks, |i| {
                        counts[i].fetch_add(1, Ordering::Relaxed);
                    });
                }
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 50), "{threads} threads, {num_tasks} tasks");
            }
        }
    }

    #[test]
    fn parts_cover_the_slice_with_a_short_last_one() {
        let mut data = vec![0; 23];
        Pool::new(3, false).run_parts(&mut data, 5, |i, part| part.fill(i + 1));
        assert_eq!(data, (0..23).map(|i| i / 5 + 1).collect::<Vec<_>>());
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_the_pool_works_on() {
        let pool = Pool::new(2, true);
        let result = catch_unwind(AssertUnwindSafe(|| pool.run(8, |i| assert!(i != 5, "task five"))));
        assert!(result.is_err());
        assert_works(&pool);
    }

    #[test]
    fn a_task_that_calls_run_on_its_own_pool_panics_and_the_pool_works_on() {
        for spin in [false, true] {
            let pool = Pool::new(3, spin);
            for _ in 0..50 {
                assert_in_use(catch_unwind(AssertUnwindSafe(|| pool.run(8, |_| pool.run(2, |_| ())))));
                assert_works(&pool);
            }
        }
    }

    #[test]
    fn a_closed_job_with_a_helper_inside_still_refuses_another_from_its_task_and_from_a_second_thread() {
        for spin in [false, true] {
            let pool = Pool::new(2, spin);
            let (caller, both_in) = (std::thread::current().id(), Barrier::new(2));
            let second_ran = AtomicUsize::new(0);
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(2, |_| {
                    both_in.wait();
                    if std::thread::current().id() == caller {
                        return;
                    }
                    while pool.shared.lock().open {
                        std::thread::yield_now();
                    }
                    let second = || {
                        pool.run(2, |_| {
                            second_ran.fetch_add(1, Ordering::Relaxed);
                        })
                    };
                    assert_in_use(std::thread::scope(|scope| scope.spawn(second).join()));
                    second();
                })
            }));
            assert_in_use(result);
            assert_eq!(second_ran.load(Ordering::Relaxed), 0);
            assert_works(&pool);
        }
    }

    #[test]
    fn of_two_threads_on_one_pool_each_runs_all_its_tasks_once_or_none_and_panics() {
        let pool = Pool::new(3, true);
        let start = Barrier::new(2);
        // Nothing is asserted in the threads: one that fails would leave the other at the barrier.
        let rounds = || {
            let round = |_| {
                let counts = [(); 16].map(|()| AtomicUsize::new(0));
                start.wait();
                let result = catch_unwind(AssertUnwindSafe(|| {
                    pool.run(counts.len(), |i| {
                        counts[i].fetch_add(1, Ordering::Relaxed);
                    })
                }));
                (result, counts.map(AtomicUsize::into_inner))
            };
            (0..500).map(round).collect::<Vec<_>>()
        };
        let [a, b] = std::thread::scope(|scope| {
            [scope.spawn(rounds), scope.spawn(rounds)].map(|thread| thread.join().expect("panics are caught"))
        });
        for (round, (a, b)) in a.into_iter().zip(b).enumerate() {
            assert!(a.0.is_ok() || b.0.is_ok(), "round {round}: nobody ran");
            for (result, counts) in [a, b] {
                assert_eq!(counts, [usize::from(result.is_ok()); 16], "round {round}");
                if result.is_err() {
                    assert_in_use(result);
                }
            }
        }
        assert_works(&pool);
    }
}
