//! Element by element: sum, scaling, conversion, filling.

use crate::isa::multiversion;
use crate::rows::{for_elements, rows};
use crate::{Cpu, Element};

/// `a += b`
pub fn add_in_place<T: Element>(cpu: &Cpu, a: &mut [T], b: &[T]) {
    assert_eq!(a.len(), b.len(), "elementwise::add_in_place: lengths");
    for_elements(cpu, b.len(), rows(a, 1), |range, a| add_in_place_part(cpu.isa, a, &b[range]));
}

/// `a *= factor`
pub fn scale<T: Element>(cpu: &Cpu, a: &mut [T], factor: f32) {
    for_elements(cpu, a.len(), rows(a, 1), |_, a| scale_part(cpu.isa, a, factor));
}

/// `dst = src`, rounded to the format of `dst`.
pub fn cast<A: Element, B: Element>(cpu: &Cpu, src: &[A], dst: &mut [B]) {
    assert_eq!(src.len(), dst.len(), "elementwise::cast: lengths");
    for_elements(cpu, src.len(), rows(dst, 1), |range, dst| cast_part(cpu.isa, &src[range], dst));
}

/// `x = value`
pub fn fill<T: Element>(cpu: &Cpu, x: &mut [T], value: T) {
    for_elements(cpu, x.len(), rows(x, 1), |_, x| x.fill(value));
}

multiversion! {
    pub(crate) fn add_part<T: Element>(a: &[T], b: &[T], out: &mut [T]) {
        for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
            *out = T::from_f32(a.to_f32() + b.to_f32());
        }
    }
}

multiversion! {
    fn add_in_place_part<T: Element>(a: &mut [T], b: &[T]) {
        for (a, b) in a.iter_mut().zip(b) {
            *a = T::from_f32(a.to_f32() + b.to_f32());
        }
    }
}

multiversion! {
    fn scale_part<T: Element>(a: &mut [T], factor: f32) {
        for a in a {
            *a = T::from_f32(a.to_f32() * factor);
        }
    }
}

multiversion! {
    /// Also what the optimizers write their rounded copy with.
    pub(crate) fn cast_part<A: Element, B: Element>(src: &[A], dst: &mut [B]) {
        for (dst, src) in dst.iter_mut().zip(src) {
            *dst = B::from_f32(src.to_f32());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;
    use crate::{bf16, f16};

    /// Each result is the f64 result rounded once: no bound beyond the format's own.
    fn agrees_with_f64<T: Element>(len: usize) {
        let (cpu, a, b) = (Cpu::single(), elements::<T>(1, len), elements::<T>(2, len));
        let (mut in_place, mut scaled) = (a.clone(), a.clone());
        add_in_place(&cpu, &mut in_place, &b);
        scale(&cpu, &mut scaled, 0.7);
        let (a, b) = (to_f64(&a), to_f64(&b));
        let sum: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
        assert_close("add_in_place", &in_place, &sum, 0.0);
        // In f16 the f32 product is rounded again: a hair more than half a unit.
        assert_close("scale", &scaled, &a.iter().map(|a| a * f64::from(0.7f32)).collect::<Vec<_>>(), 1e-7);
    }

    #[test]
    fn sums_and_products_agree_with_f64() {
        for len in [0, 1, 17, 1000] {
            agrees_with_f64::<f32>(len);
            agrees_with_f64::<bf16>(len);
        }
    }

    #[test]
    fn a_cast_rounds_once_and_a_cast_to_a_wider_format_is_exact() {
        let (cpu, x) = (Cpu::single(), elements::<f32>(1, 999));
        let (mut short, mut half, mut back) = (vec![bf16::ZERO; 999], vec![f16::ZERO; 999], vec![0.0f32; 999]);
        cast(&cpu, &x, &mut short);
        cast(&cpu, &x, &mut half);
        assert!(x.iter().zip(&short).all(|(x, s)| bf16::from_f32(*x) == *s));
        assert!(x.iter().zip(&half).all(|(x, h)| f16::from_f32(*x) == *h));
        cast(&cpu, &half, &mut back);
        assert!(back.iter().zip(&half).all(|(b, h)| *b == h.to_f32()));
    }

    #[test]
    fn fill_reaches_every_element() {
        let mut x = vec![0.0f32; 40_000];
        fill(&Cpu::new(2, false, crate::Isa::detect()), &mut x, 3.0);
        assert!(x.iter().all(|&x| x == 3.0));
    }

    #[test]
    fn every_instruction_set_and_thread_count_gives_the_same_bits() {
        for len in (1..40).chain([50_001]) {
            let (a, b) = (elements::<f32>(1, len), elements::<f32>(2, len));
            assert_same_bits(|cpu| {
                let (mut out, mut short) = (a.clone(), vec![bf16::ZERO; len]);
                add_in_place(cpu, &mut out, &b);
                scale(cpu, &mut out, 1.7);
                cast(cpu, &out, &mut short);
                out.iter().copied().chain(short.iter().map(|s| s.to_f32())).collect::<Vec<f32>>()
            });
        }
    }
}
