//! The CPU: turns handles into slices and calls the kernel.
//!
//! Inputs are locked for reading and outputs for writing while a kernel runs, so an output that overlaps an argument by
//! mistake is a panic that names the kernel, not a wrong number.

use crate::*;
use kernels::aligned::AlignedMemory;
use kernels::gemm::{GemmArgs, Mat, MatMut, gemm};
use kernels::{Cpu, Element};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::{RwLockReadGuard, RwLockWriteGuard};

mod cross_entropy;
mod sum;
mod survey;
mod update;

use cross_entropy::{cross_entropy, cross_entropy_backward};
use rows::scatter_rows;
pub use sum::tree_sum;
use survey::{distance, survey};
use update::{adafactor, dequantize, lamb, normalize, quantize, update};

/// The kernels of the CPU.
pub static CPU: Backend = Backend {
    name: "cpu",
    allocate: |_, bytes| Storage::host(bytes).ok_or(KernelError::OutOfMemory { bytes }),
    write: |_, out, bytes| {
        write_guard::<u8>("write", out).copy_from_slice(bytes);
        Ok(())
    },
    read: |_, x, bytes| {
        bytes.copy_from_slice(&read_guard::<u8>("read", x));
        Ok(())
    },
    matmul,
    layer_norm,
    layer_norm_backward,
    rms_norm,
    rms_norm_backward,
    gelu,
    gelu_backward,
    silu_mul,
    silu_mul_backward,
    rope,
    embedding,
    embedding_backward,
    scatter_rows,
    residual,
    residual_backward,
    dropout,
    attention,
    attention_backward,
    cross_entropy,
    cross_entropy_backward,
    update,
    lamb,
    adafactor,
    normalize,
    quantize,
    dequantize,
    sum_squares,
    survey,
    distance,
    column_sum,
    add,
    copy,
    noise,
    fill,
};

/// A CPU queue: `threads` threads (at least 1, the caller's included) on an instruction set.
///
/// `spin`: idle threads may spin briefly; only where all ranks together have no more threads than cores.
pub fn queue(threads: usize, spin: bool, isa: Isa) -> Queue {
    Queue::new(&CPU, 0, Box::new(Cpu::new(threads, spin, isa)))
}

/// Multiplications and additions per second that one core can do at most in products of this format; takes a few
/// milliseconds to measure.
pub fn peak_flops(isa: Isa, dtype: DType) -> f64 {
    if dtype == DType::BF16 { kernels::peak::bf16_flops(isa) } else { kernels::peak::f32_flops(isa) }
}

/// Bytes per second that `threads` threads together read from memory; takes about a tenth of a second to measure. `None` if
/// there are no 256 MiB to read.
pub fn peak_read_bandwidth(threads: usize, isa: Isa) -> Option<f64> {
    kernels::peak::read_bytes_per_second(&Cpu::new(threads, false, isa))
}

type Done = Result<(), KernelError>;

/// Read access to the elements of a tensor.
struct Read<'a, T> {
    memory: RwLockReadGuard<'a, AlignedMemory>,
    range: std::ops::Range<usize>,
    element: PhantomData<T>,
}

/// Write access to the elements of a tensor.
struct Write<'a, T> {
    memory: RwLockWriteGuard<'a, AlignedMemory>,
    range: std::ops::Range<usize>,
    element: PhantomData<T>,
}

impl<T: bytemuck::Pod> Deref for Read<'_, T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.memory.as_slice()[self.range.clone()]
    }
}

impl<T: bytemuck::Pod> Deref for Write<'_, T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.memory.as_slice()[self.range.clone()]
    }
}

impl<T: bytemuck::Pod> DerefMut for Write<'_, T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let range = self.range.clone();
        &mut self.memory.as_mut_slice()[range]
    }
}

fn elements<T>(x: &Tensor) -> std::ops::Range<usize> {
    // `u8` is how bytes are moved to and from the host.
    let per_element = x.dtype().size() / size_of::<T>();
    x.offset() * per_element..(x.offset() + x.span()) * per_element
}

fn host<'a>(kernel: &str, x: &'a Tensor) -> &'a std::sync::RwLock<AlignedMemory> {
    match x.buffer().storage() {
        Storage::Host(memory) => memory,
        Storage::Device(_) => panic!("cpu {kernel}: a tensor of another device"),
    }
}

fn read_guard<'a, T: bytemuck::Pod>(kernel: &str, x: &'a Tensor) -> Read<'a, T> {
    assert!(size_of::<T>() <= x.dtype().size(), "cpu {kernel}: {} read as a wider type", x.dtype());
    let memory = host(kernel, x).try_read();
    let memory = memory.unwrap_or_else(|_| panic!("cpu {kernel}: an input overlaps an output"));
    Read { memory, range: elements::<T>(x), element: PhantomData }
}

fn write_guard<'a, T: bytemuck::Pod>(kernel: &str, x: &'a Tensor) -> Write<'a, T> {
    assert!(size_of::<T>() <= x.dtype().size(), "cpu {kernel}: {} written as a wider type", x.dtype());
    let memory = host(kernel, x).try_write();
    let memory = memory.unwrap_or_else(|_| panic!("cpu {kernel}: an output overlaps an argument"));
    Write { memory, range: elements::<T>(x), element: PhantomData }
}

/// Contiguous elements for reading.
fn input<'a, T: Scalar>(kernel: &str, x: &'a Tensor) -> Read<'a, T> {
    assert!(x.is_contiguous(), "cpu {kernel}: rows of an input lie apart");
    strided_input(kernel, x)
}

/// Elements for reading whose rows may lie apart.
fn strided_input<'a, T: Scalar>(kernel: &str, x: &'a Tensor) -> Read<'a, T> {
    assert!(x.dtype() == T::DTYPE, "cpu {kernel}: an input is {}, expected {}", x.dtype(), T::DTYPE);
    read_guard(kernel, x)
}

/// Contiguous elements for writing.
fn output<'a, T: Scalar>(kernel: &str, x: &'a Tensor) -> Write<'a, T> {
    assert!(x.is_contiguous(), "cpu {kernel}: rows of an output lie apart");
    strided_output(kernel, x)
}

/// Elements for writing whose rows may lie apart.
fn strided_output<'a, T: Scalar>(kernel: &str, x: &'a Tensor) -> Write<'a, T> {
    assert!(x.dtype() == T::DTYPE, "cpu {kernel}: an output is {}, expected {}", x.dtype(), T::DTYPE);
    write_guard(kernel, x)
}

fn cpu(queue: &Queue) -> &Cpu {
    queue.state()
}

/// Runs `$body` with `$T` as the Rust type of a float format.
macro_rules! float {
    ($kernel:expr, $dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            DType::F32 => {
                type $T = f32;
                $body
            }
            DType::BF16 => {
                type $T = bf16;
                $body
            }
            DType::F16 => {
                type $T = f16;
                $body
            }
            other => panic!("cpu {}: {other} is not a float format", $kernel),
        }
    };
}

// After the macro that it uses.
mod rows;
use float;

fn matmul(queue: &Queue, args: MatmulArgs<&Tensor>) -> Done {
    float!("matmul", args.a.dtype(), T => {
        if args.out.dtype() == DType::F32 { matmul_typed::<T, f32>(queue, args) } else { matmul_typed::<T, T>(queue, args) }
    });
    Ok(())
}

fn matmul_typed<T: Scalar + kernels::gemm::GemmInput, C: Scalar + Element>(queue: &Queue, args: MatmulArgs<&Tensor>) {
    let dims = |x: &Tensor, transposed: bool| {
        let shape = x.shape();
        if transposed { (shape.width(), shape.rows()) } else { (shape.rows(), shape.width()) }
    };
    let strides = |x: &Tensor, transposed: bool| if transposed { (1, x.row_stride()) } else { (x.row_stride(), 1) };
    let (m, k) = dims(args.a, args.transpose_a);
    let (b_k, n) = dims(args.b, args.transpose_b);
    let out = (args.out.shape().rows(), args.out.shape().width());
    assert!(b_k == k && out == (m, n), "cpu matmul: [{m}, {k}] x [{b_k}, {n}] into {out:?}");
    let (a, b) = (strided_input::<T>("matmul", args.a), strided_input::<T>("matmul", args.b));
    let bias = args.bias.map(|bias| input::<T>("matmul", bias));
    let mut c = strided_output::<C>("matmul", args.out);
    let (a_row, a_col) = strides(args.a, args.transpose_a);
    let (b_row, b_col) = strides(args.b, args.transpose_b);
    gemm(
        cpu(queue),
        GemmArgs {
            m,
            n,
            k,
            a: Mat { data: &a, row_stride: a_row, col_stride: a_col },
            b: Mat { data: &b, row_stride: b_row, col_stride: b_col },
            c: MatMut { data: &mut c, row_stride: args.out.row_stride() },
            bias: bias.as_deref(),
            accumulate: args.accumulate,
        },
    );
}

fn layer_norm(queue: &Queue, a: LayerNormArgs<&Tensor>) -> Done {
    const K: &str = "layer_norm";
    float!(K, a.x.dtype(), T => kernels::layer_norm::forward::<T>(
        cpu(queue), &input(K, a.x), &input(K, a.weight), &input(K, a.bias), a.eps,
        &mut output(K, a.y), &mut output(K, a.mean), &mut output(K, a.inv_std),
    ));
    Ok(())
}

fn layer_norm_backward(queue: &Queue, a: LayerNormBackwardArgs<&Tensor>) -> Done {
    const K: &str = "layer_norm_backward";
    float!(K, a.x.dtype(), T => kernels::layer_norm::backward::<T>(
        cpu(queue), &input(K, a.x), &input(K, a.weight), &input(K, a.mean), &input(K, a.inv_std), &input(K, a.dy),
        &mut output(K, a.dx), &mut output(K, a.dweight), &mut output(K, a.dbias), a.accumulate,
    ));
    Ok(())
}

fn rms_norm(queue: &Queue, a: RmsNormArgs<&Tensor>) -> Done {
    const K: &str = "rms_norm";
    float!(K, a.x.dtype(), T => kernels::rms_norm::forward::<T>(
        cpu(queue), &input(K, a.x), &input(K, a.weight), a.weight_offset, a.eps,
        &mut output(K, a.y), &mut output(K, a.inv_rms),
    ));
    Ok(())
}

fn rms_norm_backward(queue: &Queue, a: RmsNormBackwardArgs<&Tensor>) -> Done {
    const K: &str = "rms_norm_backward";
    float!(K, a.x.dtype(), T => kernels::rms_norm::backward::<T>(
        cpu(queue), &input(K, a.x), &input(K, a.weight), a.weight_offset, &input(K, a.inv_rms), &input(K, a.dy),
        &mut output(K, a.dx), &mut output(K, a.dweight), a.accumulate,
    ));
    Ok(())
}

fn gelu(queue: &Queue, a: GeluArgs<&Tensor>) -> Done {
    const K: &str = "gelu";
    float!(K, a.x.dtype(), T => kernels::gelu::forward::<T>(cpu(queue), a.kind, &input(K, a.x), &mut output(K, a.y)));
    Ok(())
}

fn gelu_backward(queue: &Queue, a: GeluBackwardArgs<&Tensor>) -> Done {
    const K: &str = "gelu_backward";
    float!(K, a.x.dtype(), T => kernels::gelu::backward::<T>(
        cpu(queue), a.kind, &input(K, a.x), &input(K, a.dy), &mut output(K, a.dx),
    ));
    Ok(())
}

fn silu_mul(queue: &Queue, a: SiluMulArgs<&Tensor>) -> Done {
    const K: &str = "silu_mul";
    let width = a.out.shape().width();
    float!(K, a.out.dtype(), T => kernels::silu_mul::forward::<T>(
        cpu(queue), width, &input(K, a.gate_up), &mut output(K, a.out),
    ));
    Ok(())
}

fn silu_mul_backward(queue: &Queue, a: SiluMulBackwardArgs<&Tensor>) -> Done {
    const K: &str = "silu_mul_backward";
    let width = a.dout.shape().width();
    float!(K, a.dout.dtype(), T => kernels::silu_mul::backward::<T>(
        cpu(queue), width, &input(K, a.gate_up), &input(K, a.dout), &mut output(K, a.dgate_up),
    ));
    Ok(())
}

fn rope(queue: &Queue, a: RopeArgs<&Tensor>) -> Done {
    const K: &str = "rope";
    let (stride, rotary_dim) = (a.x.row_stride(), 2 * a.cos.shape().width());
    float!(K, a.x.dtype(), T => kernels::rope::apply::<T>(
        cpu(queue), &mut output(K, a.x), stride, a.num_heads, a.head_dim, &input(K, a.cos), &input(K, a.sin), rotary_dim,
        &input(K, a.positions), a.inverse,
    ));
    Ok(())
}

fn embedding(queue: &Queue, a: EmbeddingArgs<&Tensor>) -> Done {
    const K: &str = "embedding";
    float!(K, a.table.dtype(), T => kernels::embedding::forward::<T>(
        cpu(queue), &input(K, a.table), &input(K, a.ids), a.table.shape().width(), a.accumulate, &mut output(K, a.y),
    ));
    Ok(())
}

fn embedding_backward(queue: &Queue, a: EmbeddingBackwardArgs<&Tensor>) -> Done {
    const K: &str = "embedding_backward";
    float!(K, a.dy.dtype(), T => kernels::embedding::backward::<T>(
        cpu(queue), &input(K, a.dy), &input(K, a.ids), a.dy.shape().width(), &mut output(K, a.dtable),
    ));
    Ok(())
}

/// Holds the guards of a dropout's index tensors while a kernel borrows them.
struct DropoutGuards<'a> {
    args: DropoutArgs<&'a Tensor>,
    samples: Read<'a, u32>,
    positions: Read<'a, u32>,
}

impl<'a> DropoutGuards<'a> {
    fn new(kernel: &str, args: DropoutArgs<&'a Tensor>) -> Self {
        Self { args, samples: input(kernel, args.samples), positions: input(kernel, args.positions) }
    }

    fn view(&self) -> kernels::dropout::Dropout<'_> {
        kernels::dropout::Dropout {
            probability: self.args.probability,
            key: self.args.key,
            samples: &self.samples,
            positions: &self.positions,
            first_feature: self.args.first_feature,
        }
    }
}

fn residual(queue: &Queue, a: ResidualArgs<&Tensor>) -> Done {
    const K: &str = "residual";
    let dropout = a.dropout.map(|d| DropoutGuards::new(K, d));
    let dropout = dropout.as_ref().map(DropoutGuards::view);
    float!(K, a.x.dtype(), T => {
        let bias = a.bias.map(|bias| input::<T>(K, bias));
        kernels::residual::forward::<T>(
            cpu(queue), &input(K, a.x), &input(K, a.y), bias.as_deref(), dropout.as_ref(), &mut output(K, a.out),
        )
    });
    Ok(())
}

fn residual_backward(queue: &Queue, a: ResidualBackwardArgs<&Tensor>) -> Done {
    const K: &str = "residual_backward";
    let dropout = a.dropout.map(|d| DropoutGuards::new(K, d));
    let dropout = dropout.as_ref().map(DropoutGuards::view);
    let mut dbias = a.dbias.map(|dbias| output::<f32>(K, dbias));
    float!(K, a.dout.dtype(), T => kernels::residual::backward::<T>(
        cpu(queue), &input(K, a.dout), dropout.as_ref(), &mut output(K, a.dy), dbias.as_deref_mut(), a.accumulate,
    ));
    Ok(())
}

fn dropout(queue: &Queue, a: DropoutOpArgs<&Tensor>) -> Done {
    const K: &str = "dropout";
    let guards = DropoutGuards::new(K, a.dropout.expect("cpu dropout: called without a dropout"));
    float!(K, a.x.dtype(), T => kernels::dropout::apply::<T>(
        cpu(queue), &input(K, a.x), a.x.shape().width(), &guards.view(), &mut output(K, a.y),
    ));
    Ok(())
}

fn attention(queue: &Queue, a: AttentionArgs<&Tensor>) -> Done {
    const K: &str = "attention";
    fn rows<'a, T>(data: &'a [T], x: &Tensor) -> kernels::attention::Rows<'a, T> {
        kernels::attention::Rows { data, stride: x.row_stride() }
    }
    float!(K, a.q.dtype(), T => {
        let (q, k, v) = (strided_input::<T>(K, a.q), strided_input::<T>(K, a.k), strided_input::<T>(K, a.v));
        kernels::attention::forward::<T>(
            cpu(queue), &a.spec, &a.segments, rows(&q, a.q), rows(&k, a.k), rows(&v, a.v),
            &mut output(K, a.out), &mut output(K, a.log_sum_exp),
        )
    });
    Ok(())
}

fn attention_backward(queue: &Queue, a: AttentionBackwardArgs<&Tensor>) -> Done {
    const K: &str = "attention_backward";
    float!(K, a.qkv.dtype(), T => kernels::attention::backward_packed::<T>(
        cpu(queue), &a.spec, &a.segments, &input(K, a.qkv), &input(K, a.out), &input(K, a.log_sum_exp),
        &input(K, a.dout), &mut output(K, a.dqkv),
    ));
    Ok(())
}

fn sum_squares(queue: &Queue, a: SumSquaresArgs<&Tensor>) -> Done {
    const K: &str = "sum_squares";
    kernels::reduce::sum_squares(cpu(queue), &input(K, a.x), &mut output(K, a.partial));
    Ok(())
}

fn column_sum(queue: &Queue, a: ColumnSumArgs<&Tensor>) -> Done {
    const K: &str = "column_sum";
    float!(K, a.x.dtype(), T => kernels::reduce::column_sum::<T>(
        cpu(queue), &strided_input(K, a.x), a.x.row_stride(), &mut output(K, a.out), a.accumulate,
    ));
    Ok(())
}

fn add(queue: &Queue, a: AddArgs<&Tensor>) -> Done {
    const K: &str = "add";
    float!(K, a.x.dtype(), T => kernels::elementwise::add_in_place::<T>(
        cpu(queue), &mut output(K, a.out), &input(K, a.x),
    ));
    Ok(())
}

fn copy(queue: &Queue, a: CopyArgs<&Tensor>) -> Done {
    const K: &str = "copy";
    assert!(a.x.shape().elements() == a.out.shape().elements(), "cpu copy: {} to {}", a.x.shape(), a.out.shape());
    float!(K, a.x.dtype(), A => float!(K, a.out.dtype(), B => {
        let (x, mut out) = (strided_input::<A>(K, a.x), strided_output::<B>(K, a.out));
        if a.x.is_contiguous() && a.out.is_contiguous() {
            kernels::elementwise::cast(cpu(queue), &x, &mut out);
        } else {
            let (width, from, to) = (a.x.shape().width(), a.x.row_stride(), a.out.row_stride());
            for row in 0..a.x.shape().rows() {
                kernels::elementwise::cast(cpu(queue), &x[row * from..][..width], &mut out[row * to..][..width]);
            }
        }
    }));
    Ok(())
}

fn noise(queue: &Queue, a: NoiseArgs<&Tensor>) -> Done {
    kernels::noise::add(cpu(queue), &mut output("noise", a.x), a.std, a.key, a.first);
    Ok(())
}

fn fill(queue: &Queue, a: FillArgs<&Tensor>) -> Done {
    const K: &str = "fill";
    if a.out.dtype() == DType::U32 {
        output::<u32>(K, a.out).fill(a.value as u32);
        return Ok(());
    }
    float!(K, a.out.dtype(), T => kernels::elementwise::fill(
        cpu(queue), &mut output::<T>(K, a.out), <T as Element>::from_f32(a.value),
    ));
    Ok(())
}
