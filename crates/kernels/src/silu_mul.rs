//! The gate of a gated feed-forward: `out = silu(gate) * up` with `silu(x) = x sigmoid(x)`.
//!
//! Source: Shazeer 2020, arXiv:2002.05202, eq. 6 (SwiGLU). `gate` and `up` come packed in one row, as one product
//! makes them. Rounded once, unlike separate ops, which round `silu(gate)` as well.

use crate::isa::multiversion;
use crate::math::{sigmoid, sigmoid_and_slope};
use crate::rows::{for_rows, rows, rows_per_task};
use crate::{Cpu, Element};

/// `gate_up` `[N, 2F]`: each row is `F` = `width` gates, then `F` ups. `out` is `[N, F]`.
pub fn forward<T: Element>(cpu: &Cpu, width: usize, gate_up: &[T], out: &mut [T]) {
    assert!(width > 0 && out.len().is_multiple_of(width), "silu_mul::forward: out");
    assert_eq!(gate_up.len(), 2 * out.len(), "silu_mul::forward: length of gate_up");
    for_rows(cpu, out.len() / width, rows_per_task(2 * width), rows(out, width), |range, out| {
        forward_rows(cpu.isa, width, &gate_up[range.start * 2 * width..range.end * 2 * width], out);
    });
}

multiversion! {
    fn forward_rows<T: Element>(width: usize, gate_up: &[T], out: &mut [T]) {
        for (gate_up, out) in gate_up.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)) {
            let (gate, up) = gate_up.split_at(width);
            for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                let gate = gate.to_f32();
                *out = T::from_f32(gate * sigmoid(gate) * up.to_f32());
            }
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

multiversion! {
    fn backward_rows<T: Element>(width: usize, gate_up: &[T], dout: &[T], d_gate_up: &mut [T]) {
        let inputs = gate_up.chunks_exact(2 * width).zip(dout.chunks_exact(width));
        for ((gate_up, dout), d_gate_up) in inputs.zip(d_gate_up.chunks_exact_mut(2 * width)) {
            let ((gate, up), (dgate, dup)) = (gate_up.split_at(width), d_gate_up.split_at_mut(width));
            for ((((dgate, dup), gate), up), dout) in dgate.iter_mut().zip(dup).zip(gate).zip(up).zip(dout) {
                let (gate, up, dout) = (gate.to_f32(), up.to_f32(), dout.to_f32());
                let (s, slope) = sigmoid_and_slope(gate);
                *dgate = T::from_f32(dout * up * (s + gate * slope));
                *dup = T::from_f32(dout * gate * s);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16;
    use crate::testing::*;

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

    fn agrees_with_f64<T: Element>(num_rows: usize, width: usize) {
        let (gate_up, dout) = (elements::<T>(1, num_rows * 2 * width), elements::<T>(2, num_rows * width));
        let (out, d_gate_up) = run(&Cpu::single(), width, &gate_up, &dout);
        let (gate_up, dout) = (to_f64(&gate_up), to_f64(&dout));
        assert_close("out", &out, &reference(width, &gate_up), 3e-7);
        assert_close("d_gate_up", &d_gate_up, &gradient(&gate_up, |x| dot(&reference(width, x), &dout)), 1e-6);
    }

    #[test]
    fn forward_and_backward_agree_with_f64_and_its_finite_differences() {
        for (num_rows, width) in [(3, 1), (2, 16), (3, 37)] {
            agrees_with_f64::<f32>(num_rows, width);
            agrees_with_f64::<bf16>(num_rows, width);
        }
    }

    #[test]
    fn a_gate_far_below_zero_closes_without_overflow() {
        let (out, d_gate_up) = run(&Cpu::single(), 2, &[-200.0f32, 200.0, 1.0, 3.0], &[1.0, 1.0]);
        assert_eq!((out, d_gate_up), (vec![0.0, 600.0], vec![0.0, 3.0, 0.0, 200.0]));
    }

    #[test]
    fn every_instruction_set_and_thread_count_gives_the_same_bits() {
        for (num_rows, width) in [(1, 1), (3, 29), (70, 501)] {
            let (gate_up, dout) = (elements::<f32>(1, num_rows * 2 * width), elements::<f32>(2, num_rows * width));
            assert_same_bits(|cpu| {
                let (out, d_gate_up) = run(cpu, width, &gate_up, &dout);
                [out, d_gate_up].concat()
            });
        }
    }
}
