//! Attention forward and backward: time and the rate of the products' arithmetic, which counts visible pairs only.
//!
//!     cargo bench -p bessemer-kernels --bench attention -- [threads] [instruction set] [name filter]

use std::time::Instant;

use kernels::attention::{AttentionSpec, Rows, Segment, backward_packed, forward};
use kernels::{Cpu, Element, Isa, bf16};

struct Case {
    rows: usize,
    length: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

fn values<T: Element>(len: usize) -> Vec<T> {
    (0..len as u32).map(|i| T::from_f32((i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0)).collect()
}

/// The shortest of several runs, in seconds.
fn time(mut run: impl FnMut()) -> f64 {
    let begin = Instant::now();
    let mut shortest = f64::INFINITY;
    for count in 0.. {
        let one = Instant::now();
        run();
        shortest = shortest.min(one.elapsed().as_secs_f64());
        if count >= 4 && begin.elapsed().as_secs_f64() > 0.5 {
            break;
        }
    }
    shortest
}

fn spec(case: &Case) -> AttentionSpec {
    AttentionSpec {
        num_heads: case.heads,
        num_kv_heads: case.kv_heads,
        head_dim: case.head_dim,
        scale: 1.0 / (case.head_dim as f32).sqrt(),
        window: None,
        softcap: None,
        dropout: None,
        causal: true,
    }
}

fn train<T: Element>(cpu: &Cpu, case: &Case, filter: &str) {
    let Case { rows, length, heads, kv_heads, head_dim } = case;
    let name = format!("{} {rows} x {length}, heads {heads}/{kv_heads} x {head_dim}", T::NAME);
    if !name.contains(filter) {
        return;
    }
    let spec = spec(case);
    let width = case.heads * case.head_dim;
    let stride = width + 2 * case.kv_heads * case.head_dim;
    let num_rows = case.rows * case.length;
    let segments: Vec<Segment> = (0..case.rows)
        .map(|row| Segment {
            q_start: row * case.length,
            q_len: case.length,
            k_start: row * case.length,
            k_len: case.length,
            q_position: 0,
            k_position: 0,
            sample: row as u32,
            row_position: 0,
        })
        .collect();
    let (qkv, dout) = (values::<T>(num_rows * stride), values::<T>(num_rows * width));
    let mut out = vec![T::ZERO; num_rows * width];
    let mut log_sum_exp = vec![0.0; case.heads * num_rows];
    let mut dqkv = vec![T::ZERO; num_rows * stride];
    let columns = |first: usize| Rows { data: &qkv[first..], stride };
    let (q, k, v) = (columns(0), columns(width), columns(width + case.kv_heads * case.head_dim));
    let forward_s = time(|| forward(cpu, &spec, &segments, q, k, v, &mut out, &mut log_sum_exp));
    let backward_s = time(|| backward_packed(cpu, &spec, &segments, &qkv, &out, &log_sum_exp, &dout, &mut dqkv));
    let pairs = (case.rows * case.heads * case.length * (case.length + 1) / 2) as f64;
    let flops = 2.0 * pairs * case.head_dim as f64;
    println!(
        "{name:<36} forward {:>9.1} us {:>6.1} GFLOP/s, backward {:>9.1} us {:>6.1} GFLOP/s",
        forward_s * 1e6,
        2.0 * flops / forward_s * 1e-9,
        backward_s * 1e6,
        5.0 * flops / backward_s * 1e-9,
    );
}

/// One query against a cache.
fn generate<T: Element>(cpu: &Cpu, case: &Case, filter: &str) {
    let Case { length, heads, kv_heads, head_dim, .. } = case;
    let name = format!("{} 1 query, {length} keys, heads {heads}/{kv_heads} x {head_dim}", T::NAME);
    if !name.contains(filter) {
        return;
    }
    let spec = spec(case);
    let (width, kv_width) = (case.heads * case.head_dim, case.kv_heads * case.head_dim);
    let position = case.length - 1;
    let segment = Segment {
        q_start: 0,
        q_len: 1,
        k_start: 0,
        k_len: case.length,
        q_position: position,
        k_position: 0,
        sample: 0,
        row_position: 0,
    };
    let (q, k, v) = (values::<T>(width), values::<T>(case.length * kv_width), values::<T>(case.length * kv_width));
    let (mut out, mut log_sum_exp) = (vec![T::ZERO; width], vec![0.0; case.heads]);
    let rows = |data| Rows { data, stride: kv_width };
    let q = Rows { data: &q[..], stride: width };
    let seconds = time(|| forward(cpu, &spec, &[segment], q, rows(&k), rows(&v), &mut out, &mut log_sum_exp));
    let bytes = (2 * k.len() * size_of::<T>()) as f64;
    println!("{name:<44} {:>7.1} us, {:.1} GB/s of keys and values", seconds * 1e6, bytes / seconds * 1e-9);
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let threads = args.first().map_or(2, |arg| arg.parse().expect("a number of threads"));
    let isa = args.get(1).map_or(Isa::detect(), |name| Isa::at_most(name).expect("the name of an instruction set"));
    let filter = args.get(2).map_or("", String::as_str);
    let case = |rows, length, heads, kv_heads, head_dim| Case { rows, length, heads, kv_heads, head_dim };
    let cases = [
        case(12, 64, 4, 4, 32),
        case(4, 256, 12, 12, 64),
        case(1, 1024, 12, 12, 64),
        case(1, 4096, 12, 12, 64),
        case(1, 1024, 32, 8, 128),
    ];
    let cpu = Cpu::new(threads, true, isa);
    println!("{isa}, {threads} threads");
    for case in &cases {
        train::<f32>(&cpu, case, filter);
        train::<bf16>(&cpu, case, filter);
    }
    generate::<f32>(&cpu, &case(1, 4096, 12, 12, 64), filter);
    generate::<bf16>(&cpu, &case(1, 4096, 12, 12, 64), filter);
    generate::<bf16>(&cpu, &case(1, 4096, 32, 8, 128), filter);
}
