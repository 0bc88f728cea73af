//! Every op: its gradients are those of finite differences, at odd sizes.

use ops::gradcheck::{Case, worst_error};
use ops::{AttentionLayout, Cx, HeadRequest, Linear, ParamId, Result, Var, WeightLayout};
use tensor::{Gelu, Isa, LossTerms, MemoryKind, Shape, cpu};

/// Rounding of f32 in the five-point rule: see `gradcheck`.
const BOUND: f64 = 1e-3;

fn check(case: Case<'_>, op: impl Fn(&mut Cx<'_>, &[Var], &[ParamId]) -> Result<Var>) {
    for isa in Isa::all() {
        let queue = cpu::queue(2, false, isa);
        let error = worst_error(&queue, &case, &op).expect("the op runs");
        assert!(error < BOUND, "{isa}: the gradient is off by {error:.1e} of its norm");
    }
}

fn shape<const N: usize>(dims: [usize; N]) -> Shape {
    Shape::from(dims)
}

#[test]
fn linear_in_both_layouts_with_and_without_bias() {
    for (layout, weight) in [(WeightLayout::OutIn, [7, 13]), (WeightLayout::InOut, [13, 7])] {
        let case = Case { inputs: &[shape([5, 13])], params: &[shape(weight), shape([7])], ..Case::default() };
        check(case, |cx, x, p| cx.linear(x[0], Linear { weight: p[0], bias: Some(p[1]), layout }));
        let case = Case { inputs: &[shape([5, 13])], params: &[shape(weight)], ..Case::default() };
        check(case, |cx, x, p| cx.linear(x[0], Linear { weight: p[0], bias: None, layout }));
    }
}

#[test]
fn linears_side_by_side_share_their_input() {
    let params = [shape([7, 13]), shape([3, 13]), shape([3])];
    let case = Case { inputs: &[shape([5, 13])], params: &params, ..Case::default() };
    let layout = WeightLayout::OutIn;
    check(case, |cx, x, p| {
        let parts = [Linear { weight: p[0], bias: None, layout }, Linear { weight: p[1], bias: Some(p[2]), layout }];
        cx.linear_concat(x[0], &parts)
    });
}

#[test]
fn a_value_used_twice_gets_the_sum_of_both_gradients() {
    let case = Case { inputs: &[shape([5, 13])], params: &[shape([13, 13]), shape([13])], ..Case::default() };
    let layout = WeightLayout::OutIn;
    check(case, |cx, x, p| {
        let y = cx.linear(x[0], Linear { weight: p[0], bias: None, layout })?;
        let y = cx.residual(x[0], y, Some(p[1]), 0.0)?;
        let z = cx.linear(y, Linear { weight: p[0], bias: None, layout })?;
        cx.residual(y, z, None, 0.0)
    });
}

#[test]
fn layer_norm() {
    let case = Case { inputs: &[shape([5, 19])], params: &[shape([19]), shape([19])], ..Case::default() };
    check(case, |cx, x, p| cx.layer_norm(x[0], p[0], p[1], 1e-5));
}

#[test]
fn two_layer_norms_may_share_their_weight_and_not_their_bias() {
    let params = [shape([19]), shape([19]), shape([19])];
    let case = Case { inputs: &[shape([5, 19])], params: &params, ..Case::default() };
    check(case, |cx, x, p| {
        let y = cx.layer_norm(x[0], p[0], p[1], 1e-5)?;
        cx.layer_norm(y, p[0], p[2], 1e-5)
    });
}

#[test]
fn rms_norm_of_both_kinds() {
    for offset in [0.0, 1.0] {
        let case = Case { inputs: &[shape([5, 19])], params: &[shape([19])], ..Case::default() };
        check(case, |cx, x, p| cx.rms_norm(x[0], p[0], offset, 1e-5));
    }
}

#[test]
fn some_tokens_out_of_a_batch_and_back_into_it() {
    let case = Case { inputs: &[shape([7, 13])], params: &[shape([13, 13])], ..Case::default() };
    check(case, |cx, x, p| {
        let rows = cx.env.queue.upload(MemoryKind::Activations, [3], &[0u32, 2, 6])?;
        let kept = cx.gather_tokens(x[0], &rows)?;
        let y = cx.linear(kept, Linear { weight: p[0], bias: None, layout: WeightLayout::OutIn })?;
        let y = cx.residual(kept, y, None, 0.0)?;
        cx.scatter_tokens(x[0], y, &rows)
    });
}

#[test]
fn gelu_of_both_kinds() {
    for kind in [Gelu::Tanh, Gelu::Erf] {
        check(Case { inputs: &[shape([5, 19])], ..Case::default() }, |cx, x, _| cx.gelu(x[0], kind));
    }
}

#[test]
fn silu_mul() {
    check(Case { inputs: &[shape([5, 26])], ..Case::default() }, |cx, x, _| cx.silu_mul(x[0]));
}

#[test]
fn rope_of_queries_and_keys_in_packed_rows() {
    let angles: Vec<f32> = (0..7 * 3).map(|i| i as f32 * 0.37).collect();
    let table = |f: fn(f32) -> f32| (shape([7, 3]), angles.iter().map(|a| f(*a)).collect::<Vec<f32>>());
    let case = Case {
        inputs: &[shape([7, 4 * 6])],
        constants: &[table(f32::cos), table(f32::sin)],
        ids: &[0; 7],
        targets: &[0; 7],
        documents: &[4, 3],
        ..Case::default()
    };
    check(case, |cx, x, p| cx.rope(x[0], p[0], p[1], 3, 6));
}

#[test]
fn embedding_of_tokens_and_positions() {
    let case = Case {
        params: &[shape([11, 5]), shape([4, 5])],
        ids: &[3, 10, 3, 0, 3, 7, 3],
        targets: &[0; 7],
        documents: &[4, 3],
        ..Case::default()
    };
    check(case, |cx, _, p| cx.embedding(p[0], Some(p[1])));
}

#[test]
fn residual_and_dropout_with_the_same_mask_forward_and_backward() {
    for dropout in [false, true] {
        let case = Case {
            inputs: &[shape([7, 13]), shape([7, 13])],
            params: &[shape([13])],
            ids: &[0; 7],
            targets: &[0; 7],
            documents: &[7],
            dropout,
            ..Case::default()
        };
        check(case, |cx, x, p| {
            let y = cx.dropout(x[1], 0.4)?;
            cx.residual(x[0], y, Some(p[0]), 0.3)
        });
    }
}

#[test]
fn attention_with_shared_keys_documents_window_and_dropout() {
    let layout = AttentionLayout {
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 5,
        scale: 0.4,
        window: None,
        softcap: None,
        dropout: 0.0,
    };
    for (window, softcap, dropout) in
        [(None, None, 0.0), (Some(3), None, 0.0), (None, Some(2.0), 0.0), (None, None, 0.3)]
    {
        let case = Case {
            inputs: &[shape([13, 8 * 5])],
            ids: &[0; 13],
            targets: &[0; 13],
            documents: &[9, 4],
            dropout: dropout > 0.0,
            ..Case::default()
        };
        let layout = AttentionLayout { window, softcap, dropout, ..layout };
        check(case, |cx, x, _| cx.self_attention(x[0], layout));
    }
}

#[test]
fn the_head_in_one_pass_and_in_general_with_and_without_smoothing_and_z_loss() {
    let with = LossTerms { label_smoothing: 0.2, z_loss: 0.05 };
    for (seed, terms) in [None, Some(-0.25)].into_iter().flat_map(|seed| [(seed, LossTerms::default()), (seed, with)]) {
        let case = Case {
            inputs: &[shape([7, 13])],
            params: &[shape([11, 13])],
            ids: &[0; 7],
            targets: &[3, 10, -100, 0, 5, 5, -100],
            documents: &[7],
            head: HeadRequest::TokenLogprobs { seed, terms },
            ..Case::default()
        };
        let layout = WeightLayout::OutIn;
        check(case, |cx, x, p| {
            let linear = Linear { weight: p[0], bias: None, layout };
            if seed.is_none() {
                return cx.head(x[0], linear);
            }
            cx.output_head(x[0], linear)?;
            Ok(cx.output().expect("the output that was just declared"))
        });
    }
}
