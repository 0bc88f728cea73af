//! Every kernel there is: its name, its arguments, what it does.
//!
//! Shape legend: N tokens, D width, V vocabulary, H heads, P positions.

use super::*;

kernels! {
    /// `out = a b (+ bias) (+ out)`, f32 accumulation. `a` is [m, k], or [k, m] when transposed; `b` [k, n] or [n, k].
    matmul: MatmulArgs {
        /// Left factor; rows may lie apart.
        a: tensor,
        /// Whether `a` is stored [k, m].
        transpose_a: value(bool),
        /// Right factor, in the format of `a`; rows may lie apart.
        b: tensor,
        /// Whether `b` is stored [n, k].
        transpose_b: value(bool),
        /// `[n]`, in the format of `a`.
        bias: option,
        /// [m, n], f32 or the format of `a`; rows may lie apart.
        out: tensor,
        /// Add to what `out` holds.
        accumulate: value(bool),
    }
    /// LayerNorm of the rows of `x` [N, D].
    layer_norm: LayerNormArgs {
        /// [N, D].
        x: tensor,
        /// `[D]`.
        weight: tensor,
        /// `[D]`.
        bias: tensor,
        /// Added to the variance.
        eps: value(f32),
        /// [N, D].
        y: tensor,
        /// f32 `[N]`.
        mean: tensor,
        /// f32 `[N]`.
        inv_std: tensor,
    }
    /// Gradients of LayerNorm.
    layer_norm_backward: LayerNormBackwardArgs {
        /// [N, D].
        x: tensor,
        /// `[D]`.
        weight: tensor,
        /// f32 `[N]`.
        mean: tensor,
        /// f32 `[N]`.
        inv_std: tensor,
        /// [N, D].
        dy: tensor,
        /// [N, D], written.
        dx: tensor,
        /// f32 `[D]`.
        dweight: tensor,
        /// f32 `[D]`.
        dbias: tensor,
        /// Add to `dweight` and `dbias` instead of writing them.
        accumulate: value(bool),
    }
    /// RMSNorm of the rows of `x` [N, D]; the factor is `weight_offset + weight`.
    rms_norm: RmsNormArgs {
        /// [N, D].
        x: tensor,
        /// `[D]`.
        weight: tensor,
        /// 0, or 1 for the Gemma kind.
        weight_offset: value(f32),
        /// Added to the mean square.
        eps: value(f32),
        /// [N, D].
        y: tensor,
        /// f32 `[N]`.
        inv_rms: tensor,
    }
    /// Gradients of RMSNorm.
    rms_norm_backward: RmsNormBackwardArgs {
        /// [N, D].
        x: tensor,
        /// `[D]`.
        weight: tensor,
        /// 0, or 1 for the Gemma kind.
        weight_offset: value(f32),
        /// f32 `[N]`.
        inv_rms: tensor,
        /// [N, D].
        dy: tensor,
        /// [N, D], written.
        dx: tensor,
        /// f32 `[D]`.
        dweight: tensor,
        /// Add to `dweight` instead of writing it.
        accumulate: value(bool),
    }
    /// `y = gelu(x)`.
    gelu: GeluArgs {
        /// tanh approximation or erf.
        kind: value(Gelu),
        /// Any shape.
        x: tensor,
        /// As `x`.
        y: tensor,
    }
    /// `dx = gelu'(x) dy`.
    gelu_backward: GeluBackwardArgs {
        /// tanh approximation or erf.
        kind: value(Gelu),
        /// Any shape.
        x: tensor,
        /// As `x`.
        dy: tensor,
        /// As `x`, written.
        dx: tensor,
    }
    /// `out = silu(gate) * up` with `gate_up` [N, 2F] = [gate | up].
    silu_mul: SiluMulArgs {
        /// [N, 2F].
        gate_up: tensor,
        /// [N, F].
        out: tensor,
    }
    /// Gradient of `silu_mul`.
    silu_mul_backward: SiluMulBackwardArgs {
        /// [N, 2F].
        gate_up: tensor,
        /// [N, F].
        dout: tensor,
        /// [N, 2F], written.
        dgate_up: tensor,
    }
    /// Rotates the first `num_heads` heads of every row, in place (Su et al. 2021; halves, not pairs).
    rope: RopeArgs {
        /// [N, at least num_heads x head_dim].
        x: tensor,
        /// Heads to rotate: queries, then keys.
        num_heads: value(usize),
        /// Width of a head.
        head_dim: value(usize),
        /// f32 [P, rotary_dim / 2].
        cos: tensor,
        /// f32 [P, rotary_dim / 2].
        sin: tensor,
        /// u32 `[N]`.
        positions: tensor,
        /// By the negative angle: the backward.
        inverse: value(bool),
    }
    /// `y[n] = table[ids[n]]`, or `y[n] += ...`.
    embedding: EmbeddingArgs {
        /// [V, D].
        table: tensor,
        /// u32 `[N]`.
        ids: tensor,
        /// [N, D].
        y: tensor,
        /// Add to `y`.
        accumulate: value(bool),
    }
    /// `dtable[ids[n]] += dy[n]`.
    embedding_backward: EmbeddingBackwardArgs {
        /// [N, D].
        dy: tensor,
        /// u32 `[N]`.
        ids: tensor,
        /// f32 [V, D]; added to.
        dtable: tensor,
    }
    /// `out[rows[i]] = x[i]`; other rows stay.
    scatter_rows: ScatterRowsArgs {
        /// [R, D]; none: zeros.
        x: option,
        /// u32 `[R]`, ascending.
        rows: tensor,
        /// [N, D].
        out: tensor,
    }
    /// `out = x + dropout(y + bias)`.
    residual: ResidualArgs {
        /// [N, D]: the residual stream.
        x: tensor,
        /// [N, D]: what the layer adds.
        y: tensor,
        /// `[D]`.
        bias: option,
        /// None in evaluation.
        dropout: dropout,
        /// [N, D].
        out: tensor,
    }
    /// `dy = dropout'(dout)`, `dbias = sum over tokens of dy`; `dx` is `dout` itself.
    residual_backward: ResidualBackwardArgs {
        /// [N, D].
        dout: tensor,
        /// As in forward.
        dropout: dropout,
        /// [N, D], written.
        dy: tensor,
        /// f32 `[D]`.
        dbias: option,
        /// Add to `dbias` instead of writing it.
        accumulate: value(bool),
    }
    /// `y = dropout(x)`; its own backward.
    dropout: DropoutOpArgs {
        /// [N, D].
        x: tensor,
        /// Always there.
        dropout: dropout,
        /// [N, D].
        y: tensor,
    }
    /// Tiled causal attention over segments; `q` rows and `k`, `v` rows may be column ranges of wider rows.
    attention: AttentionArgs {
        /// Heads, scale, window, dropout.
        spec: value(AttentionSpec),
        /// Which queries see which keys.
        segments: value(Arc<[Segment]>),
        /// [Nq, H hd].
        q: tensor,
        /// [Nk, KV hd].
        k: tensor,
        /// [Nk, KV hd].
        v: tensor,
        /// [Nq, H hd].
        out: tensor,
        /// f32 [H, Nq].
        log_sum_exp: tensor,
    }
    /// Gradient of attention over packed rows [q | k | v].
    attention_backward: AttentionBackwardArgs {
        /// As in forward.
        spec: value(AttentionSpec),
        /// As in forward.
        segments: value(Arc<[Segment]>),
        /// [N, (H + 2 KV) hd].
        qkv: tensor,
        /// [N, H hd].
        out: tensor,
        /// f32 [H, N].
        log_sum_exp: tensor,
        /// [N, H hd].
        dout: tensor,
        /// As `qkv`, written.
        dqkv: tensor,
    }
    /// Log-probability of each row's target, with what `terms` add, and the row's log-sum-exp.
    cross_entropy: CrossEntropyArgs {
        /// f32 [C, V].
        logits: tensor,
        /// i32 `[C]`; negative: not counted.
        targets: tensor,
        /// Distributions, used instead of `targets` where `targets` is not negative.
        soft_targets: soft,
        /// Label smoothing and z-loss.
        terms: value(LossTerms),
        /// f32 `[C]`, written; 0 where not counted.
        logprobs: tensor,
        /// f32 `[C]`, written.
        log_sum_exp: tensor,
    }
    /// Gradient with respect to the logits of `sum scale * logprob`.
    cross_entropy_backward: CrossEntropyBackwardArgs {
        /// f32 [C, V].
        logits: tensor,
        /// i32 `[C]`.
        targets: tensor,
        /// As in forward.
        soft_targets: soft,
        /// As in forward.
        terms: value(LossTerms),
        /// f32 `[C]`.
        log_sum_exp: tensor,
        /// f32 `[C]`: gradient of each row's log-probability.
        scale: tensor,
        /// [C, V], any float format, written.
        dlogits: tensor,
    }
    /// One update of an element-wise optimizer, in place: `param` and `states` by `grad`.
    update: UpdateArgs {
        /// f32: the master weights.
        param: tensor,
        /// f32, of as many elements.
        grad: tensor,
        /// f32 or bf16, of as many elements, or u32 words of 8-bit blocks; those that are there come first.
        states: states,
        /// The rounded copy products read.
        compute: option,
        /// The rule, with the numbers of this step in it.
        rule: value(Arc<dyn BlockRule>),
        /// What the gradient is multiplied by first.
        grad_scale: value(f32),
        /// Made of seed, step and parameter: how bf16 states are rounded.
        key: value([u32; 2]),
        /// Global index of the first element, a multiple of 256.
        first: value(u64),
    }
    /// One LAMB update of a whole parameter, in place.
    lamb: LambArgs {
        /// f32: the master weights.
        param: tensor,
        /// f32.
        grad: tensor,
        /// f32.
        exp_avg: tensor,
        /// f32.
        exp_avg_sq: tensor,
        /// The rounded copy products read.
        compute: option,
        /// Rates.
        params: value(LambParams),
    }
    /// One Adafactor update of a whole parameter, in place.
    adafactor: AdafactorArgs {
        /// f32 [R, C], or a vector: the master weights.
        param: tensor,
        /// f32.
        grad: tensor,
        /// f32 `[R]`: means of rows; of a vector its second moment.
        row: tensor,
        /// f32 `[C]`: means of columns; absent for a vector.
        column: option,
        /// The rounded copy products read.
        compute: option,
        /// Rates.
        params: value(AdafactorParams),
    }
    /// `x /= max(|x|, eps)`, with the L2 norm over all elements.
    normalize: NormalizeArgs {
        /// f32, any shape.
        x: tensor,
        /// Lowest divisor.
        eps: value(f32),
    }
    /// f32 into 8-bit blocks.
    quantize: QuantizeArgs {
        /// f32, any shape.
        x: tensor,
        /// u32: the words of as many elements.
        out: tensor,
    }
    /// 8-bit blocks into f32.
    dequantize: DequantizeArgs {
        /// u32: the words of as many elements.
        x: tensor,
        /// f32, any shape.
        out: tensor,
    }
    /// Sum of squares of each unit of 4,096 elements; not finite where the unit is not.
    sum_squares: SumSquaresArgs {
        /// f32, any shape.
        x: tensor,
        /// f32 `[units]`.
        partial: tensor,
    }
    /// What values look like beside the limits of a format, for each unit of 4,096 elements: largest finite magnitude; how
    /// many are not finite, are not zero, and are neither zero nor as large as `tiny`.
    survey: SurveyArgs {
        /// Any float format, any shape.
        x: tensor,
        /// The smallest normal number of a format.
        tiny: value(f32),
        /// f32 [units, 4].
        out: tensor,
    }
    /// `sum (x - y)^2` and `sum y^2` of each unit of 4,096 elements.
    distance: DistanceArgs {
        /// Any float format, any shape.
        x: tensor,
        /// f32, as `x`.
        y: tensor,
        /// f32 [units, 2].
        out: tensor,
    }
    /// `out = sum over rows of x`.
    column_sum: ColumnSumArgs {
        /// [N, D].
        x: tensor,
        /// f32 `[D]`.
        out: tensor,
        /// Add to `out`.
        accumulate: value(bool),
    }
    /// `out += x`.
    add: AddArgs {
        /// Any shape.
        x: tensor,
        /// As `x`.
        out: tensor,
    }
    /// Copies rows, converting between float formats; rows of either side may lie apart.
    copy: CopyArgs {
        /// [N, D].
        x: tensor,
        /// [N, D].
        out: tensor,
    }
    /// `x += std z`, with `z` standard normal and a function of the key and the element's global index.
    noise: NoiseArgs {
        /// f32, any shape.
        x: tensor,
        /// Standard deviation.
        std: value(f32),
        /// Made of seed, step and parameter.
        key: value([u32; 2]),
        /// Global index of the first element, a multiple of 4,096.
        first: value(u64),
    }
    /// Every element of `out` becomes `value`.
    fill: FillArgs {
        /// Any tensor.
        out: tensor,
        /// Rounded to the format of `out`; for whole numbers towards 0.
        value: value(f32),
    }
}
