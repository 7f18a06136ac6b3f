//! Derivatives of functions of one number or of two.

use crate::llama::replay::{Glu, Unary};

const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const GELU_CUBIC: f32 = 0.044_715;
const GELU_QUICK: f32 = 1.702;

pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// Value and derivative at `x`.
pub(super) fn unary(function: Unary, x: f32) -> (f32, f32) {
    match function {
        Unary::Neg => (-x, -1.0),
        Unary::Tanh => {
            let t = x.tanh();
            (t, 1.0 - t * t)
        }
        Unary::Relu => (x.max(0.0), if x > 0.0 { 1.0 } else { 0.0 }),
        Unary::Sigmoid => {
            let s = sigmoid(x);
            (s, s * (1.0 - s))
        }
        Unary::Gelu => gelu(x),
        Unary::GeluErf => gelu_erf(x),
        Unary::GeluQuick => times_sigmoid(x, GELU_QUICK),
        Unary::Silu => times_sigmoid(x, 1.0),
        Unary::Exp => (x.exp(), x.exp()),
        Unary::Softplus => (if x > 20.0 { x } else { x.exp().ln_1p() }, sigmoid(x)),
        Unary::Sqr => (x * x, 2.0 * x),
        Unary::Sqrt => (x.sqrt(), 0.5 / x.sqrt()),
    }
}

/// Derivatives by the gate and by the other number.
pub(super) fn glu(kind: Glu, gate: f32, other: f32) -> (f32, f32) {
    let times = |(value, slope): (f32, f32)| (slope * other, value);
    match kind {
        Glu::Reglu => times(unary(Unary::Relu, gate)),
        Glu::Geglu => times(gelu(gate)),
        Glu::GegluErf => times(gelu_erf(gate)),
        Glu::GegluQuick => times(times_sigmoid(gate, GELU_QUICK)),
        Glu::Swiglu => times(times_sigmoid(gate, 1.0)),
        Glu::SwigluOai { alpha, limit } => {
            let (value, slope) = times_sigmoid(gate.min(limit), alpha);
            let slope = if gate <= limit { slope } else { 0.0 };
            let inside = if other.abs() <= limit { 1.0 } else { 0.0 };
            (slope * (other.clamp(-limit, limit) + 1.0), value * inside)
        }
    }
}

/// `x sigmoid(alpha x)` and its derivative.
fn times_sigmoid(x: f32, alpha: f32) -> (f32, f32) {
    let s = sigmoid(alpha * x);
    (x * s, s + alpha * x * s * (1.0 - s))
}

/// ggml's approximation by the hyperbolic tangent. It looks it up in a table of half-precision floats; this is the derivative of
/// the function in the table.
fn gelu(x: f32) -> (f32, f32) {
    let t = (SQRT_2_OVER_PI * x * (1.0 + GELU_CUBIC * x * x)).tanh();
    let inner = SQRT_2_OVER_PI * (1.0 + 3.0 * GELU_CUBIC * x * x);
    (0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner)
}

fn gelu_erf(x: f32) -> (f32, f32) {
    let x = f64::from(x);
    let cumulative = 0.5 * (1.0 + statrs::function::erf::erf(x / std::f64::consts::SQRT_2));
    let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
    ((x * cumulative) as f32, (cumulative + x * density) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The middle of a step of 2^-8 to either side, in float32.
    fn difference(f: impl Fn(f32) -> f32, x: f32) -> f32 {
        const STEP: f32 = 1.0 / 256.0;
        (f(x + STEP) - f(x - STEP)) / (2.0 * STEP)
    }

    /// The third derivative of any of them is below 20, which with the step squared leaves 5e-5; values of some units in
    /// float32 over the step leave as much again.
    const TOLERANCE: f32 = 3e-4;

    proptest! {
        #[test]
        fn slopes_of_one_number_are_those_of_differences(x in -6.0..6.0f32) {
            use Unary::*;
            for function in [Neg, Tanh, Relu, Sigmoid, Gelu, GeluErf, GeluQuick, Silu, Softplus, Sqr] {
                prop_assume!(function != Relu || x.abs() > 0.01);
                let (found, expected) = (unary(function, x).1, difference(|x| unary(function, x).0, x));
                prop_assert!((found - expected).abs() <= TOLERANCE * expected.abs().max(1.0), "{function:?}: {found}, {expected}");
            }
            for (function, x) in [(Exp, x / 4.0), (Sqrt, x.abs() + 1.0)] {
                let (found, expected) = (unary(function, x).1, difference(|x| unary(function, x).0, x));
                prop_assert!((found - expected).abs() <= TOLERANCE * expected.abs().max(1.0), "{function:?}: {found}, {expected}");
            }
        }

        #[test]
        fn slopes_of_two_numbers_are_those_of_differences(gate in -6.0..6.0f32, other in -6.0..6.0f32) {
            let oai = Glu::SwigluOai { alpha: 1.702, limit: 3.0 };
            let value = |kind, gate: f32, other: f32| match kind {
                Glu::Reglu => gate.max(0.0) * other,
                Glu::Geglu => unary(Unary::Gelu, gate).0 * other,
                Glu::GegluErf => unary(Unary::GeluErf, gate).0 * other,
                Glu::GegluQuick => unary(Unary::GeluQuick, gate).0 * other,
                Glu::Swiglu => gate * sigmoid(gate) * other,
                Glu::SwigluOai { alpha, limit } => {
                    let x = gate.min(limit);
                    x * sigmoid(alpha * x) * (other.clamp(-limit, limit) + 1.0)
                }
            };
            for kind in [Glu::Reglu, Glu::Geglu, Glu::GegluErf, Glu::GegluQuick, Glu::Swiglu, oai] {
                let near = |x: f32, at: f32| (x - at).abs() < 0.01;
                prop_assume!(!near(gate, 0.0) && !near(gate, 3.0) && !near(other.abs(), 3.0));
                let (by_gate, by_other) = glu(kind, gate, other);
                let expected = difference(|gate| value(kind, gate, other), gate);
                prop_assert!((by_gate - expected).abs() <= 6.0 * TOLERANCE, "{kind:?} {by_gate} {expected}");
                let expected = difference(|other| value(kind, gate, other), other);
                prop_assert!((by_other - expected).abs() <= 6.0 * TOLERANCE, "{kind:?} {by_other} {expected}");
            }
        }
    }
}
