//! Each rule against differences of ggml's own operation.
#![allow(unused_unsafe, reason = "functions of ggml are arguments of others")]

use llama_cpp_sys_2 as sys;

use super::*;
use crate::llama::replay::{Bench, Which};
use crate::random::SplitMix64;

type Tensor = *mut sys::ggml_tensor;

/// Numbers between -1.5 and 1.5.
fn random(seed: u64) -> impl FnMut() -> f32 {
    let mut random = SplitMix64::new(seed);
    move || random.below(3001) as f32 / 1000.0 - 1.5
}

/// Holds the derivatives of `build` of tensors of these shapes to differences.
fn check(name: &str, shapes: &[[i64; 4]], build: impl FnOnce(&mut Bench, &[Tensor]) -> Tensor) {
    let mut bench = Bench::new();
    let given: Vec<Tensor> = shapes.iter().map(|shape| bench.given(*shape)).collect();
    let target = build(&mut bench, &given);
    let mut part = bench.part(target).unwrap_or_else(|error| panic!("{name}: {error}"));
    let adjoint = Adjoint::new(&mut part).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut workspace = Workspace::new(1).unwrap();
    let sizes: Vec<usize> = part.given().iter().map(|node| part.nodes()[*node].layout.len()).collect();
    let mut next = random(7);
    let data: Vec<Vec<f32>> = sizes.iter().map(|n| (0..*n).map(|_| next()).collect()).collect();
    let way: Vec<Vec<f32>> = sizes.iter().map(|n| (0..*n).map(|_| next()).collect()).collect();
    let by_target: Vec<f32> = (0..part.nodes()[part.targets()[0]].layout.len()).map(|_| next()).collect();
    let mut value = |step: f32| -> f64 {
        let shift = |(data, way): (&Vec<f32>, &Vec<f32>)| data.iter().zip(way).map(|(x, w)| x + step * w).collect();
        let shifted: Vec<Vec<f32>> = data.iter().zip(&way).map(shift).collect();
        let shifted: Vec<&[f32]> = shifted.iter().map(Vec::as_slice).collect();
        part.run(&mut workspace, Which::Targets, &shifted, 3).unwrap();
        let found = part.rows(&workspace, part.targets()[0]);
        found.iter().zip(&by_target).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    const STEP: f32 = 1.0 / 128.0;
    let difference =
        |step: f32, value: &mut dyn FnMut(f32) -> f64| (value(step) - value(-step)) / f64::from(2.0 * step);
    // Richardson's: what the square of the step leaves cancels.
    let expected = (4.0 * difference(STEP, &mut value) - difference(2.0 * STEP, &mut value)) / 3.0;
    let given: Vec<&[f32]> = data.iter().map(Vec::as_slice).collect();
    part.run(&mut workspace, Which::Kept, &given, 3).unwrap();
    let gradients = adjoint.run(&part, &workspace, vec![by_target.into()]);
    let along = |(gradient, way): (&Vec<f32>, &Vec<f32>)| -> f64 {
        gradient.iter().zip(way).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let found: f64 = gradients.iter().zip(&way).map(along).sum();
    // Values of about 10 in float32, over a step of 2^-7.
    let error = (found - expected).abs();
    assert!(error <= 5e-4 * expected.abs().max(1.0), "{name}: {found} for {expected}");
}

/// One of ggml's functions of tensors.
macro_rules! ggml {
    ($bench:expr, $function:ident $(, $argument:expr)*) => {
        // SAFETY: tensors of the bench's context, of shapes that the operation takes; arguments may be such functions.
        unsafe { sys::$function($bench.context() $(, $argument)*) }
    };
}

#[test]
fn arithmetic() {
    let (all, row, column, one) = ([6, 3, 4, 1], [6, 1, 1, 1], [1, 3, 4, 1], [6, 3, 1, 1]);
    for other in [all, row, column, one] {
        check("add", &[all, other], |b, x| ggml!(b, ggml_add, x[0], x[1]));
        check("sub", &[all, other], |b, x| ggml!(b, ggml_sub, x[0], x[1]));
        check("mul", &[all, other], |b, x| ggml!(b, ggml_mul, x[0], x[1]));
        check("div", &[all, other], |b, x| {
            // Away from zero.
            let square = ggml!(b, ggml_mul, x[1], x[1]);
            let divisor = ggml!(b, ggml_scale_bias, square, 1.0, 2.0);
            ggml!(b, ggml_div, x[0], divisor)
        });
    }
    check("scale", &[all], |b, x| ggml!(b, ggml_scale, x[0], -1.7));
    check("repeat", &[one], |b, x| ggml!(b, ggml_repeat_4d, x[0], 6, 3, 4, 1));
    check("sum rows", &[all], |b, x| ggml!(b, ggml_sum_rows, x[0]));
    check("twice", &[all], |b, x| ggml!(b, ggml_mul, x[0], x[0]));
}

#[test]
fn clamps_and_views() {
    let all = [8, 3, 4, 1];
    check("clamp", &[all], |b, x| {
        let sum = ggml!(b, ggml_sum_rows, x[0]);
        let clamped = ggml!(b, ggml_clamp, sum, -1.0, f32::INFINITY);
        ggml!(b, ggml_div, x[0], ggml!(b, ggml_scale_bias, clamped, 1.0, 4.0))
    });
    check("view", &[all], |b, x| ggml!(b, ggml_cont, ggml!(b, ggml_view_3d, x[0], 4, 3, 4, 32, 96, 16)));
    check("transposed", &[all], |b, x| ggml!(b, ggml_cont, ggml!(b, ggml_permute, x[0], 1, 0, 2, 3)));
    check("reshaped", &[all], |b, x| ggml!(b, ggml_scale, ggml!(b, ggml_reshape_2d, x[0], 24, 4), 3.0));
}

#[test]
fn norms_and_softmax() {
    let all = [16, 3, 4, 1];
    check("rms norm", &[all], |b, x| ggml!(b, ggml_rms_norm, x[0], 1e-5));
    check("norm", &[all], |b, x| ggml!(b, ggml_norm, x[0], 1e-5));
    check("soft max", &[all], |b, x| ggml!(b, ggml_soft_max_ext, x[0], std::ptr::null_mut(), 0.7, 0.0));
}

#[test]
fn products_with_weights() {
    check("matrix", &[[300, 5, 1, 1]], |b, x| {
        let weight = b.weight([300, 700, 1, 1], random(3));
        ggml!(b, ggml_scale, ggml!(b, ggml_mul_mat, weight, x[0]), 0.05)
    });
    // Two of five experts for each of four tokens; with the same input for both, and with one for each.
    for inputs in [1, 2] {
        check("experts", &[[24, inputs, 4, 1], [5, 4, 1, 1]], |b, x| {
            let weight = b.weight([24, 9, 5, 1], random(3));
            let bias = b.weight([9, 5, 1, 1], random(4));
            let ids = ggml!(b, ggml_argsort_top_k, x[1], 2);
            let y = ggml!(b, ggml_mul_mat_id, weight, x[0], ids);
            ggml!(b, ggml_add_id, y, bias, ids)
        });
    }
}

#[test]
fn routing() {
    check("chosen and normalized", &[[5, 4, 1, 1], [7, 2, 4, 1]], |b, x| {
        let probs = ggml!(b, ggml_soft_max, x[0]);
        let ids = ggml!(b, ggml_argsort_top_k, probs, 2);
        let chosen = ggml!(b, ggml_get_rows, ggml!(b, ggml_reshape_3d, probs, 1, 5, 4), ids);
        let weights = ggml!(b, ggml_reshape_2d, chosen, 2, 4);
        let sum = ggml!(b, ggml_clamp, ggml!(b, ggml_sum_rows, weights), 6e-5, f32::INFINITY);
        let weights = ggml!(b, ggml_reshape_3d, ggml!(b, ggml_div, weights, sum), 1, 2, 4);
        ggml!(b, ggml_mul, x[1], weights)
    });
}

#[test]
fn rotations() {
    for (mode, n_dims) in
        [(sys::LLAMA_ROPE_TYPE_NORM, 16), (sys::LLAMA_ROPE_TYPE_NEOX, 16), (sys::LLAMA_ROPE_TYPE_NEOX, 8)]
    {
        for yarn in [0.0, 1.0] {
            check("rotation", &[[16, 3, 4, 1]], |b, x| {
                let factors = b.weight([n_dims / 2, 1, 1, 1], || 1.3);
                let positions = b.positions(4);
                ggml!(
                    b,
                    ggml_rope_ext,
                    x[0],
                    positions,
                    factors,
                    n_dims as i32,
                    mode,
                    4096,
                    1e4,
                    0.7,
                    yarn,
                    1.1,
                    32.0,
                    1.0
                )
            });
        }
    }
}

#[test]
fn functions() {
    let all = [8, 3, 4, 1];
    use sys::*;
    let kinds = [
        GGML_UNARY_OP_NEG,
        GGML_UNARY_OP_TANH,
        GGML_UNARY_OP_SIGMOID,
        GGML_UNARY_OP_GELU_ERF,
        GGML_UNARY_OP_SILU,
        GGML_UNARY_OP_EXP,
        GGML_UNARY_OP_SOFTPLUS,
    ];
    for kind in kinds {
        check("function", &[all], |b, x| ggml!(b, ggml_unary, x[0], kind));
    }
    check("square", &[all], |b, x| ggml!(b, ggml_sqr, x[0]));
    check("root", &[all], |b, x| ggml!(b, ggml_sqrt, ggml!(b, ggml_scale_bias, ggml!(b, ggml_sqr, x[0]), 1.0, 1.0)));
    for kind in [GGML_GLU_OP_SWIGLU, GGML_GLU_OP_GEGLU_ERF] {
        check("gated", &[all, all], |b, x| ggml!(b, ggml_glu_split, x[0], x[1], kind));
        for swapped in [false, true] {
            check("gated halves", &[[16, 3, 4, 1]], |b, x| ggml!(b, ggml_glu, x[0], kind, swapped));
        }
    }
    check("gated with limits", &[all, all], |b, x| ggml!(b, ggml_swiglu_oai, x[0], x[1], 1.702, 7.0));
}

#[test]
fn what_has_no_rule_is_named() {
    let refused = |build: &dyn Fn(&mut Bench, Tensor) -> Tensor| {
        let mut bench = Bench::new();
        let given = bench.given([8, 8, 1, 1]);
        let target = build(&mut bench, given);
        bench.part(target).and_then(|mut part| Adjoint::new(&mut part).map(|_| ())).unwrap_err()
    };
    let message = refused(&|b, x| ggml!(b, ggml_cumsum, x));
    assert!(message.contains("no rule for CUMSUM"), "{message}");
    let message = refused(&|b, x| ggml!(b, ggml_mul_mat, x, x));
    assert!(message.contains("no rule for a product"), "{message}");
    let message = refused(&|b, x| ggml!(b, ggml_add, x, ggml!(b, ggml_new_tensor_2d, sys::GGML_TYPE_F32, 8, 8)));
    assert!(message.contains("expected weights and positions, found the input"), "{message}");
}
