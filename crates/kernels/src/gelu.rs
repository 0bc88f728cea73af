//! GELU: `x Phi(x)`, with the normal distribution function `Phi` exact or in its tanh form.
//!
//! Source: Hendrycks & Gimpel 2016, arXiv:1606.08415. The tanh form, `x/2 (1 + tanh u)` with
//! `u = sqrt(2/pi) (x + 0.044715 x^3)`, is computed as `x sigmoid(2u)`, which is the same function and does not cancel
//! for negative `x`, in fused operations; the exact form gives the same bits on every instruction set.

use crate::fused::{Arithmetic, UNIT, multiversion_fused, sigmoid_and_rest, sigmoid_of_minus, write};
use crate::isa::multiversion;
use crate::math::{erf, exp};
use crate::rows::{for_elements, rows};
use crate::{Cpu, Element};

/// Which form of the normal distribution function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gelu {
    /// `gelu_new`, `gelu_pytorch_tanh`: GPT-2's.
    Tanh,
    /// `gelu`: exact.
    Erf,
}

/// `y = gelu(x)`, element by element.
pub fn forward<T: Element>(cpu: &Cpu, kind: Gelu, x: &[T], y: &mut [T]) {
    assert_eq!(x.len(), y.len(), "gelu::forward: length of y");
    for_elements(cpu, x.len(), rows(y, 1), |range, y| match kind {
        Gelu::Tanh => forward_tanh(cpu.isa, &x[range], y),
        Gelu::Erf => forward_erf(cpu.isa, &x[range], y),
    });
}

/// `dx = dy gelu'(x)`, element by element; `x` is the input of [`forward`].
pub fn backward<T: Element>(cpu: &Cpu, kind: Gelu, x: &[T], dy: &[T], dx: &mut [T]) {
    assert!(x.len() == dy.len() && x.len() == dx.len(), "gelu::backward: lengths of dy and dx");
    for_elements(cpu, x.len(), rows(dx, 1), |range, dx| match kind {
        Gelu::Tanh => backward_tanh(cpu.isa, &x[range.clone()], &dy[range], dx),
        Gelu::Erf => backward_erf(cpu.isa, &x[range.clone()], &dy[range], dx),
    });
}

/// `2 sqrt(2/pi)`: `2u = SLOPE x (1 + CUBIC x^2)`.
const SLOPE: f32 = 1.595_769;
const CUBIC: f32 = 0.044_715;

/// `gelu(x)`; `-2u` to base 2 goes into the sigmoid.
#[inline(always)]
fn tanh_form<F: Arithmetic>(x: f32) -> f32 {
    const LINEAR: f32 = -SLOPE * std::f32::consts::LOG2_E;
    x * sigmoid_of_minus::<F>(x * F::multiply_add(LINEAR * CUBIC, x * x, LINEAR))
}

/// `gelu'(x) = s + x s (1 - s) 2u'`. Beyond 12 it is 0 or 1 in f32; the clamp keeps `x^3` finite.
#[inline(always)]
fn tanh_form_slope<F: Arithmetic>(x: f32) -> f32 {
    const LINEAR: f32 = -SLOPE * std::f32::consts::LOG2_E;
    let x = x.clamp(-12.0, 12.0);
    let square = x * x;
    let (s, rest) = sigmoid_and_rest::<F>(x * F::multiply_add(LINEAR * CUBIC, square, LINEAR));
    let two_u_slope = F::multiply_add(3.0 * SLOPE * CUBIC, square, SLOPE);
    F::multiply_add(x * two_u_slope * rest, s, s)
}

/// `Phi(x)`
#[inline(always)]
fn normal_cdf(x: f32) -> f32 {
    0.5 + 0.5 * erf(x * std::f32::consts::FRAC_1_SQRT_2)
}

multiversion_fused! {
    fn forward_tanh<T: Element> = forward_tanh_body(x: &[T], y: &mut [T])
}

#[inline(always)]
fn forward_tanh_body<F: Arithmetic, T: Element>(x: &[T], y: &mut [T]) {
    let ((x_units, x_rest), (y_units, y_rest)) = (x.as_chunks::<UNIT>(), y.as_chunks_mut::<UNIT>());
    for (y, x) in y_units.iter_mut().zip(x_units) {
        write::<F, T>(&x.map(|x| tanh_form::<F>(x.to_f32())), y);
    }
    for (y, x) in y_rest.iter_mut().zip(x_rest) {
        *y = T::from_f32(tanh_form::<F>(x.to_f32()));
    }
}

multiversion_fused! {
    fn backward_tanh<T: Element> = backward_tanh_body(x: &[T], dy: &[T], dx: &mut [T])
}

#[inline(always)]
fn backward_tanh_body<F: Arithmetic, T: Element>(x: &[T], dy: &[T], dx: &mut [T]) {
    let (x_units, x_rest) = x.as_chunks::<UNIT>();
    let (dy_units, dy_rest) = dy.as_chunks::<UNIT>();
    let (dx_units, dx_rest) = dx.as_chunks_mut::<UNIT>();
    let element = |x: T, dy: T| dy.to_f32() * tanh_form_slope::<F>(x.to_f32());
    for ((dx, x), dy) in dx_units.iter_mut().zip(x_units).zip(dy_units) {
        write::<F, T>(&std::array::from_fn(|lane| element(x[lane], dy[lane])), dx);
    }
    for ((dx, x), dy) in dx_rest.iter_mut().zip(x_rest).zip(dy_rest) {
        *dx = T::from_f32(element(*x, *dy));
    }
}

multiversion! {
    fn forward_erf<T: Element>(x: &[T], y: &mut [T]) {
        for (y, x) in y.iter_mut().zip(x) {
            let x = x.to_f32();
            *y = T::from_f32(x * normal_cdf(x));
        }
    }
}

multiversion! {
    fn backward_erf<T: Element>(x: &[T], dy: &[T], dx: &mut [T]) {
        const INV_SQRT_2_PI: f32 = 0.398_942_3;
        for ((dx, x), dy) in dx.iter_mut().zip(x).zip(dy) {
            let x = x.to_f32();
            let density = INV_SQRT_2_PI * exp(-0.5 * x * x);
            *dx = T::from_f32(dy.to_f32() * (normal_cdf(x) + x * density));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;
    use crate::{Isa, bf16};

    const KINDS: [Gelu; 2] = [Gelu::Tanh, Gelu::Erf];

    fn reference(kind: Gelu, x: f64) -> f64 {
        let phi = match kind {
            Gelu::Tanh => (std::f64::consts::FRAC_2_PI.sqrt() * (x + 0.044715 * x * x * x)).tanh(),
            Gelu::Erf => crate::testing::erf(x * std::f64::consts::FRAC_1_SQRT_2),
        };
        0.5 * x * (1.0 + phi)
    }

    fn run<T: Element>(cpu: &Cpu, kind: Gelu, x: &[T], dy: &[T]) -> (Vec<T>, Vec<T>) {
        let (mut y, mut dx) = (vec![T::ZERO; x.len()], vec![T::ZERO; x.len()]);
        forward(cpu, kind, x, &mut y);
        backward(cpu, kind, x, dy, &mut dx);
        (y, dx)
    }

    /// Four times the usual range, so that both flat ends are in it.
    fn wide<T: Element>(len: usize) -> Vec<T> {
        round(&values(1, len).iter().map(|v| 4.0 * v).collect::<Vec<_>>())
    }

    fn agrees_with_f64<T: Element>(isa: Isa, kind: Gelu) {
        let (x, dy) = (wide::<T>(1001), elements::<T>(2, 1001));
        let (y, dx) = run(&Cpu::new(1, false, isa), kind, &x, &dy);
        let (x, dy) = (to_f64(&x), to_f64(&dy));
        assert_close("y", &y, &x.iter().map(|&x| reference(kind, x)).collect::<Vec<_>>(), 5e-7);
        let slope = |x: f64| (reference(kind, x + 1e-5) - reference(kind, x - 1e-5)) / 2e-5;
        assert_close("dx", &dx, &x.iter().zip(&dy).map(|(&x, dy)| slope(x) * dy).collect::<Vec<_>>(), 1e-6);
    }

    #[test]
    fn forward_and_backward_agree_with_f64_and_its_finite_differences() {
        for isa in Isa::all() {
            for kind in KINDS {
                agrees_with_f64::<f32>(isa, kind);
                agrees_with_f64::<bf16>(isa, kind);
            }
        }
    }

    #[test]
    fn far_from_zero_it_is_the_identity_or_zero_and_so_is_its_slope() {
        for kind in KINDS {
            let (y, dx) = run(&Cpu::single(), kind, &[1e30f32, -1e30, 1e6, -40.0, f32::NAN], &[1.0; 5]);
            assert_eq!((y[0], dx[0], y[2], dx[2]), (1e30, 1.0, 1e6, 1.0), "{kind:?}");
            assert!(
                y[1].abs() < 1e-6 && dx[1] == 0.0 && y[3].abs() < 1e-30 && dx[3].abs() < 1e-30,
                "{kind:?} {y:?} {dx:?}"
            );
            assert!(y[4].is_nan() && dx[4].is_nan());
        }
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bits() {
        for len in (1..40).chain([50_001]) {
            for kind in KINDS {
                let (x, dy) = (wide::<f32>(len), elements::<f32>(2, len));
                assert_same_bits_on_each(|cpu| {
                    let (y, dx) = run(cpu, kind, &x, &dy);
                    [y, dx].concat()
                });
            }
        }
    }
}
