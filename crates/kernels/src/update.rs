//! The driver of element-wise optimizers: one pass over a shard that reads parameter, gradient and states, applies a rule
//! and writes parameter, states and the rounded copy.
//!
//! A rule ([`ElementRule`]) is a pure function of the numbers of one element. What is the same for all of them stands here:
//! how the work is cut, how it is compiled for each instruction set, and the formats in which states are kept.
//!
//! | format | bytes an element | written |
//! | --- | --- | --- |
//! | f32 | 4 | exactly |
//! | bf16 | 2 | rounded up or down by chance, so that the mean of many updates is right |
//! | 8-bit blocks | 1.02 | to the nearest code ([`crate::quantize`]) |
//!
//! # Order of events, for each block of 1,024 elements
//! 1. States that are not f32 are widened into a buffer of the task (there is none if all are).
//! 2. The rule runs over the block.
//! 3. The buffers are narrowed again, and the parameters, still in the first-level cache, are rounded into the copy.
//!
//! # Invariants
//! - The chance by which a bf16 state is rounded is a function of (key, state, global index of the element): the same
//!   bits come out of any cut into shards and any number of threads.
//! - Rules see f32 only.
//!
//! Source of rounding by chance: Zamirai et al. 2020, "Revisiting BFloat16 Training", arXiv:2010.06192.

use crate::elementwise::cast_part;
use crate::isa::multiversion;
use crate::pool::Parts;
use crate::rows::{Cut, for_elements, rows};
use crate::{Cpu, Element, Isa, bf16, philox, quantize};
use std::ops::Range;

/// Elements whose numbers are still in the first-level cache when they are rounded.
const BLOCK: usize = 1024;

/// The most states a rule keeps of an element.
pub const MAX_STATES: usize = 3;

/// The states of one element; those that a rule does not keep are 0 before it and dropped after it.
pub type States = [f32; MAX_STATES];

/// An update rule of one element, with the numbers of one step in it.
///
/// `update` must be `#[inline(always)]` and free of branches that differ between elements (`if` as a choice of values is
/// fine), so that the loop around it becomes vector code.
pub trait ElementRule: Send + Sync + 'static {
    /// The new parameter and states, from the parameter, its gradient (scaled) and the states.
    fn update(&self, param: f32, grad: f32, states: States) -> (f32, States);
}

/// A rule as the driver calls it: compiled for every instruction set. Every [`ElementRule`] is one.
pub trait BlockRule: Send + Sync {
    /// Updates a block; `grad` is multiplied by `grad_scale` first. States that are there come first.
    ///
    /// # Panics
    /// If the states are not as long as the parameters: a bug of the driver.
    fn update_block(
        &self,
        isa: Isa,
        param: &mut [f32],
        grad: &[f32],
        grad_scale: f32,
        states: [Option<&mut [f32]>; MAX_STATES],
    );
}

impl<R: ElementRule> BlockRule for R {
    fn update_block(
        &self,
        isa: Isa,
        param: &mut [f32],
        grad: &[f32],
        grad_scale: f32,
        states: [Option<&mut [f32]>; MAX_STATES],
    ) {
        let len = param.len();
        let is_whole = states.iter().flatten().all(|state| state.len() == len);
        assert!(is_whole && grad.len() == len, "BlockRule::update_block: lengths");
        match states {
            [Some(a), Some(b), Some(c)] => with_three(isa, param, grad, a, b, c, grad_scale, self),
            [Some(a), Some(b), None] => with_two(isa, param, grad, a, b, grad_scale, self),
            [Some(a), None, None] => with_one(isa, param, grad, a, grad_scale, self),
            [None, None, None] => without(isa, param, grad, grad_scale, self),
            _ => panic!("BlockRule::update_block: states that are there come first"),
        }
    }
}

// One loop for each number of states: slices that are arguments of their own are known not to overlap.

multiversion! {
    fn without<R: ElementRule>(param: &mut [f32], grad: &[f32], grad_scale: f32, rule: &R) {
        for (p, g) in param.iter_mut().zip(grad) {
            (*p, _) = rule.update(*p, g * grad_scale, [0.0; MAX_STATES]);
        }
    }
}

multiversion! {
    fn with_one<R: ElementRule>(param: &mut [f32], grad: &[f32], a: &mut [f32], grad_scale: f32, rule: &R) {
        for ((p, g), a) in param.iter_mut().zip(grad).zip(a) {
            (*p, [*a, ..]) = rule.update(*p, g * grad_scale, [*a, 0.0, 0.0]);
        }
    }
}

multiversion! {
    fn with_two<R: ElementRule>(
        param: &mut [f32], grad: &[f32], a: &mut [f32], b: &mut [f32], grad_scale: f32, rule: &R,
    ) {
        for (((p, g), a), b) in param.iter_mut().zip(grad).zip(a).zip(b) {
            (*p, [*a, *b, _]) = rule.update(*p, g * grad_scale, [*a, *b, 0.0]);
        }
    }
}

multiversion! {
    fn with_three<R: ElementRule>(
        param: &mut [f32], grad: &[f32], a: &mut [f32], b: &mut [f32], c: &mut [f32], grad_scale: f32, rule: &R,
    ) {
        for ((((p, g), a), b), c) in param.iter_mut().zip(grad).zip(a).zip(b).zip(c) {
            (*p, [*a, *b, *c]) = rule.update(*p, g * grad_scale, [*a, *b, *c]);
        }
    }
}

/// A state tensor of `[n]` elements as it is kept.
pub enum State<'a> {
    /// `[n]`
    F32(&'a mut [f32]),
    /// `[n]`
    Bf16(&'a mut [bf16]),
    /// [`quantize::words`] of `n`.
    Blocks(&'a mut [u32]),
}

/// What one update is told beside its arrays.
pub struct Update<'a> {
    /// The rule, with the numbers of this step.
    pub rule: &'a dyn BlockRule,
    /// What the gradient is multiplied by first: the factor of clipping and of loss scaling.
    pub grad_scale: f32,
    /// Made of seed, step and parameter: how bf16 states are rounded.
    pub key: [u32; 2],
    /// Global index of the shard's first element, a multiple of 256.
    pub first: u64,
}

/// One update of one shard, in f32.
///
/// - `param` `[n]`: master weights; `compute` `[n]`: their copy, rounded to the type that is computed with.
/// - `grad` `[n]`: before `grad_scale`.
/// - `states`: of `n` elements each; those that are there come first.
pub fn step<T: Element>(
    cpu: &Cpu,
    param: &mut [f32],
    grad: &[f32],
    states: [Option<State<'_>>; MAX_STATES],
    compute: Option<&mut [T]>,
    update: &Update<'_>,
) {
    let len = grad.len();
    assert!(param.len() == len, "update::step: length of param");
    assert!(compute.as_ref().is_none_or(|compute| compute.len() == len), "update::step: length of compute");
    assert!(update.first.is_multiple_of(quantize::BLOCK as u64), "update::step: shards begin at multiples of 256");
    assert!(states.iter().flatten().all(|state| state.fits(len)), "update::step: length of a state");
    let [a, b, c] = states.map(|state| state.map(StateParts::new));
    let outputs = (rows(param, 1), (a, b, c), compute.map(|compute| rows(compute, 1)));
    for_elements(cpu, len, outputs, |range, (param, (a, b, c), mut compute)| {
        let (mut states, grad) = ([a, b, c], &grad[range.clone()]);
        let mut scratch;
        let wide: &mut [[f32; BLOCK]] = if states.iter().flatten().all(|state| matches!(state, State::F32(_))) {
            &mut []
        } else {
            scratch = [[0.0; BLOCK]; MAX_STATES];
            &mut scratch
        };
        for start in (0..param.len()).step_by(BLOCK) {
            let block = start..(start + BLOCK).min(param.len());
            let first = update.first + (range.start + start) as u64;
            update_block(cpu.isa, &mut param[block.clone()], &grad[block.clone()], &mut states, wide, start, update);
            for (index, (state, wide)) in states.iter_mut().zip(&*wide).enumerate() {
                if let Some(state) = state {
                    state.narrow(cpu.isa, &wide[..block.len()], block.clone(), update.key, index as u32, first);
                }
            }
            if let Some(compute) = &mut compute {
                cast_part(cpu.isa, &param[block.clone()], &mut compute[block]);
            }
        }
    });
}

/// Steps 1 and 2 of a block that begins at element `start` of the task.
fn update_block(
    isa: Isa,
    param: &mut [f32],
    grad: &[f32],
    states: &mut [Option<State<'_>>; MAX_STATES],
    wide: &mut [[f32; BLOCK]],
    start: usize,
    update: &Update<'_>,
) {
    let block = start..start + param.len();
    let mut buffers = wide.iter_mut();
    let states = states.each_mut().map(|state| {
        let buffer = buffers.next().map_or(&mut [][..], |buffer| &mut buffer[..block.len()]);
        state.as_mut().map(|state| state.widen(isa, block.clone(), buffer))
    });
    update.rule.update_block(isa, param, grad, update.grad_scale, states);
}

impl State<'_> {
    fn fits(&self, len: usize) -> bool {
        match self {
            State::F32(x) => x.len() == len,
            State::Bf16(x) => x.len() == len,
            State::Blocks(x) => x.len() == quantize::words(len),
        }
    }

    /// The elements `block` in f32: themselves, or copied into `buffer`, which is as long; f32 needs none.
    fn widen<'a>(&'a mut self, isa: Isa, block: Range<usize>, buffer: &'a mut [f32]) -> &'a mut [f32] {
        match self {
            State::F32(x) => return &mut x[block],
            State::Bf16(x) => cast_part(isa, &x[block], buffer),
            State::Blocks(x) => quantize::decode(isa, &x[quantize::words_of(block)], buffer),
        }
        buffer
    }

    /// Writes back what [`State::widen`] copied. `first`: the global index of the block's first element.
    fn narrow(&mut self, isa: Isa, wide: &[f32], block: Range<usize>, key: [u32; 2], index: u32, first: u64) {
        match self {
            State::F32(_) => {}
            State::Bf16(x) => round_by_chance(isa, wide, &mut x[block], key, index, first),
            State::Blocks(x) => quantize::encode(isa, wide, &mut x[quantize::words_of(block)]),
        }
    }
}

/// bf16 numbers that one call of [`philox::words`] rounds: two to a word.
const DRAWS: usize = 2 * philox::WORDS;

multiversion! {
    /// `out = x`, up with a chance of its distance from the lower neighbour. `first` is a multiple of 8.
    fn round_by_chance(x: &[f32], out: &mut [bf16], key: [u32; 2], state: u32, first: u64) {
        for (i, (x, out)) in x.chunks(DRAWS).zip(out.chunks_mut(DRAWS)).enumerate() {
            // A counter gives four words, eight draws.
            let counter = first / 8 + (i * DRAWS / 8) as u64;
            let words = philox::words(key, state, (counter >> 32) as u32, counter as u32, 0);
            let mut draws = [0; DRAWS];
            for (draws, word) in draws.as_chunks_mut::<2>().0.iter_mut().zip(words) {
                *draws = [word & 0xffff, word >> 16];
            }
            for ((x, out), draw) in x.iter().zip(out).zip(draws) {
                let up = bf16::from_bits((x.to_bits().wrapping_add(draw) >> 16) as u16);
                *out = if x.is_finite() { up } else { <bf16 as Element>::from_f32(*x) };
            }
        }
    }
}

/// A state that tasks cut into parts.
enum StateParts<'a> {
    F32(Parts<'a, f32>),
    Bf16(Parts<'a, bf16>),
    Blocks(Parts<'a, u32>),
}

impl<'a> StateParts<'a> {
    fn new(state: State<'a>) -> Self {
        match state {
            State::F32(x) => Self::F32(Parts::new(x)),
            State::Bf16(x) => Self::Bf16(Parts::new(x)),
            State::Blocks(x) => Self::Blocks(Parts::new(x)),
        }
    }
}

// SAFETY: ranges of elements that do not meet are ranges of numbers that do not meet; those of 8-bit blocks begin at a
// block's border, which is checked, so that two ranges share no block.
unsafe impl<'a> Cut for StateParts<'a> {
    type Part = State<'a>;
    unsafe fn part(&self, range: Range<usize>) -> State<'a> {
        match self {
            // SAFETY: the promise of the caller.
            Self::F32(parts) => State::F32(unsafe { parts.get(range) }),
            // SAFETY: the promise of the caller.
            Self::Bf16(parts) => State::Bf16(unsafe { parts.get(range) }),
            Self::Blocks(parts) => {
                assert!(range.start.is_multiple_of(quantize::BLOCK), "update: a part begins inside a block");
                // SAFETY: the promise of the caller, and parts begin at blocks.
                State::Blocks(unsafe { parts.get(quantize::words_of(range)) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;

    /// Three running means and a step along them.
    struct Means;

    impl ElementRule for Means {
        #[inline(always)]
        fn update(&self, p: f32, g: f32, [a, b, c]: States) -> (f32, States) {
            let (a, b) = (a + 0.1 * (g - a), b + 0.01 * (g * g - b));
            (p - 0.1 * a / (b.sqrt() + 1e-3), [a, b, c + g])
        }
    }

    fn update() -> Update<'static> {
        Update { rule: &Means, grad_scale: 0.5, key: [1, 2], first: 512 }
    }

    #[test]
    fn a_step_with_every_number_of_states_agrees_with_f64() {
        let (param, grad) = (values(1, 3000), values(2, 3000));
        for count in 0..=MAX_STATES {
            let mut got = round::<f32>(&param);
            let mut kept = [(); MAX_STATES].map(|()| vec![0.0; 3000]);
            let mut index = 0;
            let states = kept.each_mut().map(|state| {
                index += 1;
                (index <= count).then_some(State::F32(state))
            });
            let mut compute = vec![bf16::ZERO; 3000];
            step(&Cpu::single(), &mut got, &round::<f32>(&grad), states, Some(&mut compute), &update());
            let want = |(p, g): (&f64, &f64)| p - 0.1 * (0.1 * 0.5 * g) / ((0.01f64 * 0.25 * g * g).sqrt() + 1e-3);
            assert_close("param", &got, &param.iter().zip(&grad).map(want).collect::<Vec<_>>(), 3e-7);
            assert!(
                got.iter().zip(&compute).all(|(p, c)| bf16::from_f32(*p) == *c),
                "the copy is the rounded parameter"
            );
            for (i, state) in kept.iter().enumerate() {
                assert_eq!(state.iter().any(|&x| x != 0.0), i < count, "state {i} of {count}");
            }
        }
    }

    #[test]
    fn rounding_by_chance_is_right_on_average_and_leaves_what_bf16_holds_alone() {
        let x = vec![1.0 + 1.0 / 512.0; 100_000]; // a quarter between 1 and its upper neighbour 1 + 1/128
        let mut out = vec![bf16::ZERO; x.len()];
        round_by_chance(Isa::detect(), &x, &mut out, [3, 4], 0, 0);
        let mean = out.iter().map(|x| f64::from(x.to_f32())).sum::<f64>() / x.len() as f64;
        // Four standard errors: 4 sqrt(3 / 16 / n) / 128.
        assert!((mean - 1.0 - 1.0 / 512.0).abs() < 4.3e-5, "mean {mean}");
        assert!(out.iter().all(|x| [1.0, 1.0 + 1.0 / 128.0].contains(&x.to_f32())));
        let held: Vec<f32> = (0..=u16::MAX).map(|bits| bf16::from_bits(bits).to_f32()).collect();
        let mut out = vec![bf16::ZERO; held.len()];
        round_by_chance(Isa::detect(), &held, &mut out, [3, 4], 0, 0);
        assert!(held.iter().zip(&out).all(|(x, out)| x.is_nan() || x.to_bits() == out.to_f32().to_bits()));
    }

    #[test]
    fn a_shard_cut_in_two_is_rounded_like_the_whole() {
        let (cpu, param, grad) = (Cpu::single(), elements::<f32>(1, 3000), elements::<f32>(2, 3000));
        let run = |cuts: &[Range<usize>]| {
            let (mut param, mut state) = (param.clone(), vec![bf16::ZERO; 3000]);
            for cut in cuts {
                let update = Update { first: cut.start as u64, ..update() };
                let states = [Some(State::Bf16(&mut state[cut.clone()])), None, None];
                step::<f32>(&cpu, &mut param[cut.clone()], &grad[cut.clone()], states, None, &update);
            }
            (param, state)
        };
        assert_eq!(run(&[0..0, 0..3000]), run(&[0..1280, 1280..3000]));
    }

    #[test]
    fn every_instruction_set_and_thread_count_gives_the_same_bits_in_every_format() {
        for len in (1..40).chain([50_001]) {
            let (param, grad) = (elements::<f32>(1, len), elements::<f32>(2, len));
            assert_same_bits(|cpu| {
                let (mut param, mut compute) = (param.clone(), vec![bf16::ZERO; len]);
                let (mut a, mut b, mut c) = (vec![0u32; quantize::words(len)], vec![bf16::ZERO; len], vec![0.0; len]);
                for _ in 0..2 {
                    let states = [State::Blocks(&mut a), State::Bf16(&mut b), State::F32(&mut c)].map(Some);
                    step(cpu, &mut param, &grad, states, Some(&mut compute), &update());
                }
                let words = a.iter().flat_map(|word| [word >> 16, word & 0xffff]).map(|half| half as f32);
                let short = b.iter().chain(&compute).map(|x| x.to_f32());
                param.iter().copied().chain(words).chain(short).chain(c).collect::<Vec<f32>>()
            });
        }
    }
}
