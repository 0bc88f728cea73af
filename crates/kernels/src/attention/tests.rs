//! Attention against plain loops in f64 that hold the whole matrix of probabilities.

use super::*;
use crate::philox::philox4x32;
use crate::testing::{assert_close, dot, elements, gradient, round, to_f64};
use crate::{Cpu, Isa, bf16, f16};

/// f32: the error of an element beside its own size. bf16, f16: the root of the mean squared error of a tensor relative
/// to the root mean square of its elements. Two roundings to 8 bits lie on the way of a gradient (the output that
/// backward reads, and a factor of a product), one to 11 bits for f16.
fn bound<T: Element>() -> f64 {
    match T::NAME {
        "BF16" => 2.0 / 256.0,
        "F16" => 1.0 / 2048.0,
        _ => 4e-6,
    }
}

fn root_mean_square(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0), |(sum, count), x| (sum + x * x, count + 1));
    (sum / f64::from(count.max(1))).sqrt()
}

/// `want` is a part of `whole`: a gradient of scores may be small where larger terms, which were rounded, cancel, so that
/// errors are measured by the whole.
fn assert_near<T: Element>(what: &str, got: &[T], want: &[f64], whole: &[f64]) {
    if T::NAME == "F32" {
        return assert_close(what, got, want, bound::<T>());
    }
    let error = root_mean_square(to_f64(got).iter().zip(want).map(|(got, want)| got - want));
    let allowed = bound::<T>() * root_mean_square(whole.iter().copied());
    assert!(error <= allowed, "{what}: root mean square error {error:e}, allowed {allowed:e}");
}

fn spec(num_heads: usize, num_kv_heads: usize, head_dim: usize) -> AttentionSpec {
    let scale = 1.0 / (head_dim as f32).sqrt();
    AttentionSpec { num_heads, num_kv_heads, head_dim, scale, window: None, softcap: None, dropout: None, causal: true }
}

/// A document in rows `start..start + len`, `row_position` tokens into its sample.
fn document(start: usize, len: usize, sample: u32, row_position: u32) -> Segment {
    Segment {
        q_start: start,
        q_len: len,
        k_start: start,
        k_len: len,
        q_position: 0,
        k_position: 0,
        sample,
        row_position,
    }
}

impl AttentionSpec {
    fn width(&self) -> usize {
        self.num_heads * self.head_dim
    }

    fn stride(&self) -> usize {
        (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
    }

    /// Columns of `head` in a row of `qkv`: of q, k and v.
    fn columns(&self, head: usize) -> [usize; 3] {
        let kv_head = self.num_heads + head / self.group();
        [head, kv_head, kv_head + self.num_kv_heads].map(|head| head * self.head_dim)
    }
}

/// One head of one segment: scores, probabilities, what dropout multiplies them by, each `[query][key]`.
struct Head {
    /// Derivative of a score by the product `q k`; 0 where nothing is seen.
    derivative: Vec<Vec<f64>>,
    p: Vec<Vec<f64>>,
    factor: Vec<Vec<f64>>,
    log_sum_exp: Vec<f64>,
}

fn reference_head(spec: &AttentionSpec, segment: &Segment, head: usize, qkv: &[f64]) -> Head {
    let (stride, [q_column, k_column, _]) = (spec.stride(), spec.columns(head));
    let row = |row: usize, column: usize| &qkv[row * stride + column..][..spec.head_dim];
    let mut all = Head { derivative: vec![], p: vec![], factor: vec![], log_sum_exp: vec![] };
    for i in 0..segment.q_len {
        let position = segment.q_position + i;
        let (mut scores, mut derivative, mut factor) = (vec![], vec![], vec![]);
        for j in 0..segment.k_len {
            let key = segment.k_position + j;
            let seen = (!spec.causal || key <= position) && spec.window.is_none_or(|window| key + window > position);
            let product = dot(row(segment.q_start + i, q_column), row(segment.k_start + j, k_column));
            let scaled = product * f64::from(spec.scale);
            let (score, slope) = match spec.softcap.map(f64::from) {
                None => (scaled, 1.0),
                Some(cap) => (cap * (scaled / cap).tanh(), 1.0 - (scaled / cap).tanh().powi(2)),
            };
            scores.push(if seen { score } else { f64::NEG_INFINITY });
            derivative.push(if seen { slope * f64::from(spec.scale) } else { 0.0 });
            factor.push(spec.dropout.map_or(1.0, |dropout| {
                let [position, key] = [position, key].map(|p| segment.row_position + p as u32);
                let counter = [segment.sample, position, key / 4, 1 + dropout.first_head + head as u32];
                let word = philox4x32(dropout.key, counter)[key as usize % 4];
                let kept = f64::from(word) >= f64::from(dropout.probability) * 2f64.powi(32);
                if kept { 1.0 / (1.0 - f64::from(dropout.probability)) } else { 0.0 }
            }));
        }
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> =
            scores.iter().map(|s| if *s == f64::NEG_INFINITY { 0.0 } else { (s - max).exp() }).collect();
        let sum: f64 = weights.iter().sum();
        all.p.push(weights.iter().map(|weight| if sum > 0.0 { weight / sum } else { 0.0 }).collect());
        all.log_sum_exp.push(max + sum.ln());
        all.derivative.push(derivative);
        all.factor.push(factor);
    }
    all
}

/// `out` and `log_sum_exp` from packed rows.
fn reference(spec: &AttentionSpec, segments: &[Segment], qkv: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let (stride, width, num_rows) = (spec.stride(), spec.width(), qkv.len() / spec.stride());
    let mut out = vec![0.0; num_rows * width];
    let mut log_sum_exp = vec![f64::NEG_INFINITY; spec.num_heads * num_rows];
    for (segment, head) in segments.iter().flat_map(|segment| (0..spec.num_heads).map(move |head| (segment, head))) {
        let all = reference_head(spec, segment, head, qkv);
        let column = spec.columns(head)[2];
        for i in 0..segment.q_len {
            log_sum_exp[head * num_rows + segment.q_start + i] = all.log_sum_exp[i];
            for j in 0..segment.k_len {
                for d in 0..spec.head_dim {
                    out[(segment.q_start + i) * width + head * spec.head_dim + d] +=
                        all.p[i][j] * all.factor[i][j] * qkv[(segment.k_start + j) * stride + column + d];
                }
            }
        }
    }
    (out, log_sum_exp)
}

/// `dqkv` from packed rows: the chain rule, written out.
fn reference_backward(spec: &AttentionSpec, segments: &[Segment], qkv: &[f64], dout: &[f64]) -> Vec<f64> {
    let (stride, width) = (spec.stride(), spec.width());
    let mut dqkv = vec![0.0; qkv.len()];
    for (segment, head) in segments.iter().flat_map(|segment| (0..spec.num_heads).map(move |head| (segment, head))) {
        let all = reference_head(spec, segment, head, qkv);
        let [q_column, k_column, v_column] = spec.columns(head);
        for i in 0..segment.q_len {
            let q_row = (segment.q_start + i) * stride;
            let dout = &dout[(segment.q_start + i) * width + head * spec.head_dim..][..spec.head_dim];
            let v = |j: usize| &qkv[(segment.k_start + j) * stride + v_column..][..spec.head_dim];
            let dp: Vec<f64> = (0..segment.k_len).map(|j| dot(dout, v(j)) * all.factor[i][j]).collect();
            let mean = dot(&dp, &all.p[i]);
            for (j, dp) in dp.iter().enumerate() {
                let k_row = (segment.k_start + j) * stride;
                let ds = all.p[i][j] * (dp - mean) * all.derivative[i][j];
                for d in 0..spec.head_dim {
                    dqkv[k_row + v_column + d] += all.p[i][j] * all.factor[i][j] * dout[d];
                    dqkv[k_row + k_column + d] += ds * qkv[q_row + q_column + d];
                    dqkv[q_row + q_column + d] += ds * qkv[k_row + k_column + d];
                }
            }
        }
    }
    dqkv
}

/// The given columns of every row.
fn columns(rows: &[f64], stride: usize, columns: std::ops::Range<usize>) -> Vec<f64> {
    rows.chunks_exact(stride).flat_map(|row| row[columns.clone()].to_vec()).collect()
}

struct Results<T> {
    out: Vec<T>,
    log_sum_exp: Vec<f32>,
    dqkv: Vec<T>,
}

/// Forward on packed rows, everything filled with NaN before.
fn run_forward<T: Element>(cpu: &Cpu, spec: &AttentionSpec, segments: &[Segment], qkv: &[T]) -> (Vec<T>, Vec<f32>) {
    let (stride, num_rows) = (spec.stride(), qkv.len() / spec.stride());
    let rows = |part: usize| Rows { data: qkv, stride }.starting_at(0, part * spec.head_dim);
    let (q, k, v) = (rows(0), rows(spec.num_heads), rows(spec.num_heads + spec.num_kv_heads));
    let mut out = vec![T::from_f32(f32::NAN); num_rows * spec.width()];
    let mut log_sum_exp = vec![f32::NAN; spec.num_heads * num_rows];
    forward(cpu, spec, segments, q, k, v, &mut out, &mut log_sum_exp);
    (out, log_sum_exp)
}

fn run<T: Element>(cpu: &Cpu, spec: &AttentionSpec, segments: &[Segment], qkv: &[T], dout: &[T]) -> Results<T> {
    let (out, log_sum_exp) = run_forward(cpu, spec, segments, qkv);
    let mut dqkv = vec![T::from_f32(f32::NAN); qkv.len()];
    backward_packed(cpu, spec, segments, qkv, &out, &log_sum_exp, dout, &mut dqkv);
    Results { out, log_sum_exp, dqkv }
}

fn assert_log_sum_exp(what: &str, got: &[f32], want: &[f64]) {
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let equal = f64::from(got) == want || (f64::from(got) - want).abs() <= 4e-6 * (1.0 + want.abs());
        assert!(equal, "{what}: log_sum_exp[{i}]: got {got}, want {want}");
    }
}

/// Forward and backward are the reference's, on every instruction set.
fn assert_matches<T: Element>(what: &str, spec: &AttentionSpec, segments: &[Segment], num_rows: usize) {
    let (qkv, dout) = (elements::<T>(1, num_rows * spec.stride()), elements::<T>(2, num_rows * spec.width()));
    let (qkv_f64, dout_f64) = (to_f64(&qkv), to_f64(&dout));
    let (out, log_sum_exp) = reference(spec, segments, &qkv_f64);
    let dqkv = reference_backward(spec, segments, &qkv_f64, &dout_f64);
    for isa in Isa::all() {
        let what = format!("{what}, {}, {isa}", T::NAME);
        let got = run(&Cpu::new(1, false, isa), spec, segments, &qkv, &dout);
        assert_near(&format!("{what}: out"), &got.out, &out, &out);
        assert_log_sum_exp(&what, &got.log_sum_exp, &log_sum_exp);
        let widths = [spec.num_heads, spec.num_kv_heads, spec.num_kv_heads].map(|heads| heads * spec.head_dim);
        let mut first = 0;
        for (name, width) in ["dq", "dk", "dv"].into_iter().zip(widths) {
            let [got, want] =
                [&to_f64(&got.dqkv), &dqkv].map(|rows| columns(rows, spec.stride(), first..first + width));
            assert_near(&format!("{what}: {name}"), &round::<T>(&got), &want, &dqkv);
            first += width;
        }
    }
}

fn assert_matches_in_every_format(what: &str, spec: &AttentionSpec, segments: &[Segment], num_rows: usize) {
    assert_matches::<f32>(what, spec, segments, num_rows);
    assert_matches::<bf16>(what, spec, segments, num_rows);
    assert_matches::<f16>(what, spec, segments, num_rows);
}

fn dropout() -> AttentionDropout {
    AttentionDropout { probability: 0.3, key: [11, 22], first_head: 4 }
}

#[test]
fn the_reference_gradient_is_the_finite_difference_of_the_reference() {
    let mut spec = spec(2, 1, 3);
    (spec.window, spec.softcap, spec.dropout) = (Some(4), Some(1.5), Some(dropout()));
    let segments = [document(0, 6, 0, 0), document(6, 3, 0, 6)];
    let (qkv, dout) = (crate::testing::values(1, 9 * spec.stride()), crate::testing::values(2, 9 * spec.width()));
    let want = gradient(&qkv, |qkv| dot(&reference(&spec, &segments, qkv).0, &dout));
    for (i, (got, want)) in reference_backward(&spec, &segments, &qkv, &dout).iter().zip(&want).enumerate() {
        assert!((got - want).abs() <= 1e-8 * (1.0 + want.abs()), "dqkv[{i}]: {got}, finite difference {want}");
    }
}

#[test]
fn every_length_around_the_blocks_matches_the_reference() {
    for len in [1, 2, 3, 4, 5, 15, 16, 17, 31, 33, 63, 64, 65, 80, 127, 128, 129, 200] {
        assert_matches_in_every_format(&format!("length {len}"), &spec(1, 1, 16), &[document(0, len, 0, 0)], len);
    }
}

#[test]
fn every_head_dim_matches_the_reference() {
    for head_dim in [1, 12, 16, 33, 64, 80, 128] {
        let what = format!("head_dim {head_dim}");
        assert_matches_in_every_format(&what, &spec(2, 2, head_dim), &[document(0, 70, 0, 0)], 70);
    }
}

#[test]
fn query_heads_share_key_heads() {
    assert_matches_in_every_format("4 heads over 2", &spec(4, 2, 16), &[document(0, 70, 0, 0)], 70);
    assert_matches_in_every_format("3 heads over 1", &spec(3, 1, 8), &[document(0, 70, 0, 0)], 70);
}

#[test]
fn a_window_hides_older_keys() {
    for window in [1, 2, 16, 17, 64, 100, 1000] {
        let spec = AttentionSpec { window: Some(window), ..spec(1, 1, 16) };
        assert_matches_in_every_format(&format!("window {window}"), &spec, &[document(0, 210, 0, 0)], 210);
    }
}

#[test]
fn softcap_bends_scores() {
    let spec = AttentionSpec { softcap: Some(2.0), scale: 1.0, ..spec(2, 2, 16) };
    assert_matches::<f32>("softcap", &spec, &[document(0, 70, 0, 0)], 70);
    assert_matches::<bf16>("softcap", &spec, &[document(0, 70, 0, 0)], 70);
}

#[test]
fn without_the_causal_mask_every_key_is_seen() {
    let spec = AttentionSpec { causal: false, ..spec(2, 2, 16) };
    assert_matches_in_every_format("not causal", &spec, &[document(0, 70, 0, 0), document(70, 9, 0, 0)], 79);
}

#[test]
fn dropout_drops_what_the_reference_drops() {
    let spec = AttentionSpec { dropout: Some(dropout()), ..spec(2, 1, 16) };
    // The second document begins at a position that is no multiple of four; the third has a few queries only.
    let segments = [document(0, 70, 3, 0), document(70, 81, 3, 70), document(151, 2, 3, 151)];
    assert_matches_in_every_format("dropout", &spec, &segments, 153);
}

#[test]
fn dropout_keeps_the_share_it_says() {
    let spec = AttentionSpec { dropout: Some(dropout()), ..spec(1, 1, 4) };
    let head = reference_head(&spec, &document(0, 200, 0, 0), 0, &vec![0.0; 200 * spec.stride()]);
    let kept = head.factor.iter().flatten().filter(|factor| **factor > 0.0).count() as f64 / 40_000.0;
    assert!((kept - 0.7).abs() < 0.01, "kept {kept}");
}

#[test]
fn documents_in_one_row_do_not_see_each_other() {
    let spec = spec(2, 1, 16);
    let segments = [document(0, 21, 0, 0), document(21, 90, 0, 21), document(111, 1, 0, 111)];
    assert_matches_in_every_format("three documents", &spec, &segments, 112);
    let (mut qkv, dout) = (elements::<f32>(1, 112 * spec.stride()), elements::<f32>(2, 112 * spec.width()));
    let before = run(&Cpu::single(), &spec, &segments, &qkv, &dout);
    qkv[..21 * spec.stride()].iter_mut().for_each(|x| *x = -*x + 1.0);
    let after = run(&Cpu::single(), &spec, &segments, &qkv, &dout);
    assert_eq!(before.out[21 * spec.width()..], after.out[21 * spec.width()..]);
    assert_eq!(before.dqkv[21 * spec.stride()..], after.dqkv[21 * spec.stride()..]);
}

#[test]
fn rows_of_no_segment_get_zeros() {
    let spec = spec(2, 1, 16);
    assert_matches_in_every_format("gaps", &spec, &[document(3, 20, 0, 0), document(30, 5, 0, 0)], 40);
    assert_matches_in_every_format("no segment", &spec, &[], 4);
    assert_matches_in_every_format("no rows", &spec, &[], 0);
    assert_matches_in_every_format("an empty segment", &spec, &[document(1, 0, 0, 0), document(1, 2, 0, 0)], 4);
}

#[test]
fn large_and_equal_scores_do_not_overflow() {
    let spec = AttentionSpec { scale: 100.0, ..spec(1, 1, 16) };
    let qkv: Vec<f32> = elements::<f32>(1, 70 * spec.stride());
    let (out, log_sum_exp) = reference(&spec, &[document(0, 70, 0, 0)], &to_f64(&qkv));
    let got = run_forward(&Cpu::single(), &spec, &[document(0, 70, 0, 0)], &qkv);
    // Scores reach 3,000: an f32 there has steps of 2^-12, which the exponential turns into relative errors.
    assert_close("out", &got.0, &out, 2e-3);
    assert_log_sum_exp("scale 100", &got.1, &log_sum_exp);
}

#[test]
fn a_nan_in_a_key_reaches_every_query_that_sees_it() {
    let spec = spec(1, 1, 16);
    let mut qkv = elements::<f32>(1, 70 * spec.stride());
    qkv[40 * spec.stride() + 16] = f32::NAN;
    for isa in Isa::all() {
        let (out, _) = run_forward(&Cpu::new(1, false, isa), &spec, &[document(0, 70, 0, 0)], &qkv);
        for (row, out) in out.chunks_exact(16).enumerate() {
            assert!(out.iter().all(|x| x.is_nan() == (row >= 40)), "{isa}: row {row}: {out:?}");
        }
    }
}

/// The last `q_len` queries of a document of `len` against all of its keys.
fn assert_tail<T: Element>(spec: &AttentionSpec, len: usize, q_len: usize) {
    let qkv = elements::<T>(1, len * spec.stride());
    let (out, log_sum_exp) = reference(spec, &[document(0, len, 0, 0)], &to_f64(&qkv));
    let rows = |part: usize| Rows { data: &qkv[part * spec.head_dim..], stride: spec.stride() };
    let (q, k, v) = (rows(0), rows(spec.num_heads), rows(spec.num_heads + spec.num_kv_heads));
    let first = len - q_len;
    let segment = Segment { q_start: 0, q_len, q_position: first, ..document(0, len, 0, 0) };
    let want: Vec<f64> =
        (0..spec.num_heads).flat_map(|head| log_sum_exp[head * len + first..(head + 1) * len].to_vec()).collect();
    for isa in Isa::all() {
        let (mut got, mut got_log) = (vec![T::ZERO; q_len * spec.width()], vec![0.0; spec.num_heads * q_len]);
        forward(&Cpu::new(2, false, isa), spec, &[segment], q.starting_at(first, 0), k, v, &mut got, &mut got_log);
        let what = format!("{q_len} of {len}, {}, {isa}", T::NAME);
        let out = &out[first * spec.width()..];
        assert_near(&what, &got, out, out);
        assert_log_sum_exp(&what, &got_log, &want);
    }
}

#[test]
fn queries_against_a_cache_are_the_tail_of_the_whole() {
    for spec in [spec(4, 2, 33), AttentionSpec { window: Some(70), softcap: Some(3.0), ..spec(2, 2, 16) }] {
        for (len, q_len) in [(1, 1), (64, 1), (200, 1), (200, 3), (200, 4), (200, 70), (130, 100)] {
            assert_tail::<f32>(&spec, len, q_len);
            assert_tail::<bf16>(&spec, len, q_len);
        }
    }
}

#[test]
fn two_parts_of_the_keys_join_by_their_log_sum_exp() {
    let (spec, len, cut) = (spec(1, 1, 16), 100, 43);
    let qkv = elements::<f32>(1, len * spec.stride());
    let (want, _) = reference(&spec, &[document(0, len, 0, 0)], &to_f64(&qkv));
    let rows = |part: usize| Rows { data: &qkv[part * 16..], stride: spec.stride() };
    let part = |k_start: usize, k_len: usize| {
        let segment = Segment { k_start, k_len, k_position: k_start, ..document(0, len, 0, 0) };
        let (mut out, mut log_sum_exp) = (vec![0f32; len * 16], vec![0.0; len]);
        forward(&Cpu::single(), &spec, &[segment], rows(0), rows(1), rows(2), &mut out, &mut log_sum_exp);
        (out, log_sum_exp)
    };
    let (first, second) = (part(0, cut), part(cut, len - cut));
    let joined: Vec<f32> = (0..len * 16)
        .map(|i| {
            let (a, b) = (first.1[i / 16], second.1[i / 16]);
            let weight = 1.0 / (1.0 + (b - a).exp());
            first.0[i] * weight + second.0[i] * (1.0 - weight)
        })
        .collect();
    assert!(second.1[..cut].iter().all(|x| *x == f32::NEG_INFINITY), "they see none of the second part");
    assert_close("joined", &joined, &want, 4e-6);
}

fn assert_same_bits_on_any_threads<T: Element>(spec: &AttentionSpec) {
    let segments = [document(0, 100, 0, 0), document(100, 2, 0, 100), document(102, 200, 1, 0)];
    let (qkv, dout) = (elements::<T>(1, 302 * spec.stride()), elements::<T>(2, 302 * spec.width()));
    for isa in Isa::all() {
        let one = run(&Cpu::new(1, false, isa), spec, &segments, &qkv, &dout);
        for threads in 2..=3 {
            let other = run(&Cpu::new(threads, false, isa), spec, &segments, &qkv, &dout);
            let same = one.out == other.out && one.dqkv == other.dqkv && one.log_sum_exp == other.log_sum_exp;
            assert!(same, "{}, {isa}: {threads} threads", T::NAME);
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let spec = AttentionSpec { dropout: Some(dropout()), ..spec(4, 2, 32) };
    assert_same_bits_on_any_threads::<f32>(&spec);
    assert_same_bits_on_any_threads::<bf16>(&spec);
    assert_same_bits_on_any_threads::<f16>(&AttentionSpec { dropout: None, ..spec });
}

#[test]
#[should_panic(expected = "attention forward: segments overlap or are out of order at row 5")]
fn overlapping_segments_are_refused() {
    let spec = spec(1, 1, 4);
    run_forward(&Cpu::single(), &spec, &[document(0, 6, 0, 0), document(5, 3, 0, 0)], &round::<f32>(&[0.0; 12 * 8]));
}
