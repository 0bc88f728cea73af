//! The optimizers' kernels on the CPU.

use super::*;
use kernels::adafactor::Squares;
use kernels::update::{State, Update};

/// A state tensor, locked for writing.
enum StateGuard<'a> {
    F32(Write<'a, f32>),
    Bf16(Write<'a, bf16>),
    Blocks(Write<'a, u32>),
}

impl<'a> StateGuard<'a> {
    fn lock(kernel: &str, state: &'a Tensor) -> Self {
        match state.dtype() {
            DType::F32 => Self::F32(output(kernel, state)),
            DType::BF16 => Self::Bf16(output(kernel, state)),
            DType::U32 => Self::Blocks(output(kernel, state)),
            other => panic!("cpu {kernel}: {other} is no format of a state"),
        }
    }

    fn state(&mut self) -> State<'_> {
        match self {
            Self::F32(x) => State::F32(x),
            Self::Bf16(x) => State::Bf16(x),
            Self::Blocks(x) => State::Blocks(x),
        }
    }
}

pub(super) fn update(queue: &Queue, a: UpdateArgs<&Tensor>) -> Done {
    const K: &str = "update";
    let mut states = a.states.map(|state| state.map(|state| StateGuard::lock(K, state)));
    let states = states.each_mut().map(|state| state.as_mut().map(StateGuard::state));
    let update = Update { rule: &*a.rule, grad_scale: a.grad_scale, key: a.key, first: a.first };
    float!(K, a.compute.map_or(DType::F32, Tensor::dtype), T => {
        let mut compute = a.compute.map(|compute| output::<T>(K, compute));
        kernels::update::step::<T>(
            cpu(queue), &mut output(K, a.param), &input(K, a.grad), states, compute.as_deref_mut(), &update,
        )
    });
    Ok(())
}

pub(super) fn lamb(queue: &Queue, a: LambArgs<&Tensor>) -> Done {
    const K: &str = "lamb";
    float!(K, a.compute.map_or(DType::F32, Tensor::dtype), T => {
        let mut compute = a.compute.map(|compute| output::<T>(K, compute));
        kernels::lamb::step::<T>(
            cpu(queue), &mut output(K, a.param), &input(K, a.grad), &mut output(K, a.exp_avg),
            &mut output(K, a.exp_avg_sq), compute.as_deref_mut(), &a.params,
        )
    });
    Ok(())
}

pub(super) fn adafactor(queue: &Queue, a: AdafactorArgs<&Tensor>) -> Done {
    const K: &str = "adafactor";
    let (mut row, mut column) = (output::<f32>(K, a.row), a.column.map(|column| output::<f32>(K, column)));
    let squares = match &mut column {
        Some(column) => Squares::Factored(&mut row, column),
        None => Squares::Whole(&mut row),
    };
    float!(K, a.compute.map_or(DType::F32, Tensor::dtype), T => {
        let mut compute = a.compute.map(|compute| output::<T>(K, compute));
        kernels::adafactor::step::<T>(
            cpu(queue), &mut output(K, a.param), &input(K, a.grad), squares, compute.as_deref_mut(), &a.params,
        )
    });
    Ok(())
}

pub(super) fn normalize(queue: &Queue, a: NormalizeArgs<&Tensor>) -> Done {
    kernels::normalize::normalize(cpu(queue), &mut output("normalize", a.x), a.eps);
    Ok(())
}

pub(super) fn quantize(queue: &Queue, a: QuantizeArgs<&Tensor>) -> Done {
    const K: &str = "quantize";
    kernels::quantize::quantize(cpu(queue), &input(K, a.x), &mut output(K, a.out));
    Ok(())
}

pub(super) fn dequantize(queue: &Queue, a: DequantizeArgs<&Tensor>) -> Done {
    const K: &str = "dequantize";
    kernels::quantize::dequantize(cpu(queue), &input(K, a.x), &mut output(K, a.out));
    Ok(())
}
