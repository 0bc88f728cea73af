//! The gate of a gated feed-forward: `out = silu(gate) * up` with `silu(x) = x sigmoid(x)`.
//!
//! Source: Shazeer 2020, arXiv:2002.05202, eq. 6 (SwiGLU). `gate` and `up` come packed in one row, as one product
//! makes them. Rounded once, unlike separate ops, which round `silu(gate)` as well.

use crate::fused::{Arithmetic, UNIT, multiversion_fused, sigmoid_and_rest, sigmoid_of_minus, write};
use crate::rows::{for_rows, rows, rows_per_task};
use crate::{Cpu, Element};
use std::array::from_fn;
use std::f32::consts::LOG2_E;

/// `gate_up` `[N, 2F]`: each row is `F` = `width` gates, then `F` ups. `out` is `[N, F]`.
pub fn forward<T: Element>(cpu: &Cpu, width: usize, gate_up: &[T], out: &mut [T]) {
    assert!(width > 0 && out.len().is_multiple_of(width), "silu_mul::forward: out");
    assert_eq!(gate_up.len(), 2 * out.len(), "silu_mul::forward: length of gate_up");
    for_rows(cpu, out.len() / width, rows_per_task(2 * width), rows(out, width), |range, out| {
        forward_rows(cpu.isa, width, &gate_up[range.start * 2 * width..range.end * 2 * width], out);
    });
}

multiversion_fused! {
    fn forward_rows<T: Element> = forward_rows_body(width: usize, gate_up: &[T], out: &mut [T])
}

#[inline(always)]
fn forward_rows_body<F: Arithmetic, T: Element>(width: usize, gate_up: &[T], out: &mut [T]) {
    let element = |gate: T, up: T| {
        let gate = gate.to_f32();
        gate * sigmoid_of_minus::<F>(gate * -LOG2_E) * up.to_f32()
    };
    for (gate_up, out) in gate_up.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)) {
        let (gate, up) = gate_up.split_at(width);
        let ((gates, gate_rest), (ups, up_rest)) = (gate.as_chunks::<UNIT>(), up.as_chunks::<UNIT>());
        let (outs, out_rest) = out.as_chunks_mut::<UNIT>();
        for ((out, gate), up) in outs.iter_mut().zip(gates).zip(ups) {
            write::<F, T>(&from_fn(|lane| element(gate[lane], up[lane])), out);
        }
        for ((out, gate), up) in out_rest.iter_mut().zip(gate_rest).zip(up_rest) {
            *out = T::from_f32(element(*gate, *up));
        }
    }
}

/// The gradient of `gate_up`, packed like it, from that of `out`.
pub fn backward<T: Element>(cpu: &Cpu, width: usize, gate_up: &[T], dout: &[T], d_gate_up: &mut [T]) {
    assert!(width > 0 && dout.len().is_multiple_of(width), "silu_mul::backward: dout");
    assert!(
        gate_up.len() == 2 * dout.len() && d_gate_up.len() == gate_up.len(),
        "silu_mul::backward: lengths of gate_up and d_gate_up"
    );
    for_rows(cpu, dout.len() / width, rows_per_task(2 * width), rows(d_gate_up, 2 * width), |range, d_gate_up| {
        let gate_up = &gate_up[range.start * 2 * width..range.end * 2 * width];
        backward_rows(cpu.isa, width, gate_up, &dout[range.start * width..range.end * width], d_gate_up);
    });
}

multiversion_fused! {
    fn backward_rows<T: Element> = backward_rows_body(width: usize, gate_up: &[T], dout: &[T], d_gate_up: &mut [T])
}

#[inline(always)]
fn backward_rows_body<F: Arithmetic, T: Element>(width: usize, gate_up: &[T], dout: &[T], d_gate_up: &mut [T]) {
    let inputs = gate_up.chunks_exact(2 * width).zip(dout.chunks_exact(width));
    for ((gate_up, dout), d_gate_up) in inputs.zip(d_gate_up.chunks_exact_mut(2 * width)) {
        let ((gate, up), (dgate, dup)) = (gate_up.split_at(width), d_gate_up.split_at_mut(width));
        let ((gates, gate_rest), (ups, up_rest)) = (gate.as_chunks::<UNIT>(), up.as_chunks::<UNIT>());
        let (douts, dout_rest) = dout.as_chunks::<UNIT>();
        let ((dgates, dgate_rest), (dups, dup_rest)) = (dgate.as_chunks_mut::<UNIT>(), dup.as_chunks_mut::<UNIT>());
        for ((((dgate, dup), gate), up), dout) in dgates.iter_mut().zip(dups).zip(gates).zip(ups).zip(douts) {
            let (mut dgates, mut dups) = ([0.0; UNIT], [0.0; UNIT]);
            for lane in 0..UNIT {
                (dgates[lane], dups[lane]) = gradients::<F, T>(gate[lane], up[lane], dout[lane]);
            }
            write::<F, T>(&dgates, dgate);
            write::<F, T>(&dups, dup);
        }
        for ((((dgate, dup), gate), up), dout) in
            dgate_rest.iter_mut().zip(dup_rest).zip(gate_rest).zip(up_rest).zip(dout_rest)
        {
            let gradients = gradients::<F, T>(*gate, *up, *dout);
            (*dgate, *dup) = (T::from_f32(gradients.0), T::from_f32(gradients.1));
        }
    }
}

/// Of gate and up. `silu'(x) = s + x s (1 - s)`; below -100 it is 0 in f32, and the limit keeps it so where x is huge.
#[inline(always)]
fn gradients<F: Arithmetic, T: Element>(gate: T, up: T, dout: T) -> (f32, f32) {
    let (gate, up, dout) = (gate.to_f32(), up.to_f32(), dout.to_f32());
    let (s, rest) = sigmoid_and_rest::<F>(gate * -LOG2_E);
    let limited = if gate < -100.0 { -100.0 } else { gate };
    (dout * up * F::multiply_add(limited * rest, s, s), dout * gate * s)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;
    use crate::{Isa, bf16};

    fn reference(width: usize, gate_up: &[f64]) -> Vec<f64> {
        let row =
            |row: &[f64]| (0..width).map(|j| row[j] / (1.0 + (-row[j]).exp()) * row[width + j]).collect::<Vec<_>>();
        gate_up.chunks(2 * width).flat_map(row).collect()
    }

    fn run<T: Element>(cpu: &Cpu, width: usize, gate_up: &[T], dout: &[T]) -> (Vec<T>, Vec<T>) {
        let (mut out, mut d_gate_up) = (vec![T::ZERO; dout.len()], vec![T::ZERO; gate_up.len()]);
        forward(cpu, width, gate_up, &mut out);
        backward(cpu, width, gate_up, dout, &mut d_gate_up);
        (out, d_gate_up)
    }

    fn agrees_with_f64<T: Element>(isa: Isa, num_rows: usize, width: usize) {
        let (gate_up, dout) = (elements::<T>(1, num_rows * 2 * width), elements::<T>(2, num_rows * width));
        let (out, d_gate_up) = run(&Cpu::new(1, false, isa), width, &gate_up, &dout);
        let (gate_up, dout) = (to_f64(&gate_up), to_f64(&dout));
        assert_close("out", &out, &reference(width, &gate_up), 3e-7);
        assert_close("d_gate_up", &d_gate_up, &gradient(&gate_up, |x| dot(&reference(width, x), &dout)), 1e-6);
    }

    #[test]
    fn forward_and_backward_agree_with_f64_and_its_finite_differences() {
        for isa in Isa::all() {
            for (num_rows, width) in [(3, 1), (2, 16), (3, 37)] {
                agrees_with_f64::<f32>(isa, num_rows, width);
                agrees_with_f64::<bf16>(isa, num_rows, width);
            }
        }
    }

    #[test]
    fn a_gate_far_below_zero_closes_without_overflow() {
        let (out, d_gate_up) = run(&Cpu::single(), 2, &[-200.0f32, 200.0, 1.0, 3.0], &[1.0, 1.0]);
        assert_eq!((out, d_gate_up), (vec![0.0, 600.0], vec![0.0, 3.0, 0.0, 200.0]));
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bits() {
        for (num_rows, width) in [(1, 1), (3, 29), (70, 501)] {
            let (gate_up, dout) = (elements::<f32>(1, num_rows * 2 * width), elements::<f32>(2, num_rows * width));
            assert_same_bits_on_each(|cpu| {
                let (out, d_gate_up) = run(cpu, width, &gate_up, &dout);
                [out, d_gate_up].concat()
            });
        }
    }
}
