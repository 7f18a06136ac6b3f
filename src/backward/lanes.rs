//! Inner loops over rows of numbers, compiled for several kinds of processors; the one it runs on is told when it runs. They
//! use no fused operations, so they give the same bits on all of them.

use multiversion::multiversion;

/// `exp`, to 2 units in the last place; 0 below -87, where the smallest normal numbers are near.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const LEAST: f32 = -87.0;
    const MOST: f32 = 88.0;
    /// Adding it leaves no room for a fraction.
    const ROOM: f32 = 12_582_912.0;
    let clamped = if x < LEAST { LEAST } else { x };
    let clamped = if clamped > MOST { MOST } else { clamped };
    let shifted = clamped * std::f32::consts::LOG2_E + ROOM;
    let n = shifted - ROOM;
    // ln 2 in two parts, of which the first has room for n.
    let r = (clamped - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + coefficient;
    }
    let p = p * (r * r) + (r + 1.0);
    let value = p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x < LEAST { 0.0 } else { value }
}

/// Each number's exponential, less `minus` before; returns their sum.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub(super) fn exponentials(numbers: &mut [f32], minus: f32) -> f32 {
    for x in numbers.iter_mut() {
        *x = exp(*x - minus);
    }
    sum_of(numbers)
}

/// The largest.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub(super) fn largest(numbers: &[f32]) -> f32 {
    let (lanes, rest) = numbers.as_chunks::<16>();
    let mut most = [f32::NEG_INFINITY; 16];
    for lane in lanes {
        most.iter_mut().zip(lane).for_each(|(most, x)| *most = if *x > *most { *x } else { *most });
    }
    most.iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a })
}

/// What of a row of attention is the same for many keys.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowConstants {
    /// Logarithm of the sum of exponentials.
    pub log_sum: f32,
    /// What the softmax is multiplied with.
    pub factor: f32,
    /// What is added to the loss's derivative by each probability of the softmax.
    pub added: f32,
}

/// Of scores and the loss's derivatives by attention: `scores` become attention, `gradients` the derivatives by the scores,
/// `products` attention times its derivative.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub(super) fn attention_back(scores: &mut [f32], gradients: &mut [f32], products: &mut [f32], row: RowConstants) {
    let RowConstants { log_sum, factor, added } = row;
    for ((score, gradient), product) in scores.iter_mut().zip(gradients.iter_mut()).zip(products.iter_mut()) {
        let p = exp(*score - log_sum);
        let attention = factor * p;
        let both = attention * *gradient;
        *score = attention;
        *product = both;
        *gradient = both + p * added;
    }
}

/// The sums of numbers and of their absolute values.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub(crate) fn sums(numbers: &[f32]) -> (f32, f32) {
    let (lanes, rest) = numbers.as_chunks::<16>();
    let (mut signed, mut absolute) = ([0f32; 16], [0f32; 16]);
    for lane in lanes {
        for i in 0..16 {
            signed[i] += lane[i];
            absolute[i] += lane[i].abs();
        }
    }
    let (mut a, mut b) = (total(&signed), total(&absolute));
    for x in rest {
        a += x;
        b += x.abs();
    }
    (a, b)
}

#[inline(always)]
fn sum_of(numbers: &[f32]) -> f32 {
    let (lanes, rest) = numbers.as_chunks::<16>();
    let mut sums = [0f32; 16];
    for lane in lanes {
        sums.iter_mut().zip(lane).for_each(|(sum, x)| *sum += x);
    }
    total(&sums) + rest.iter().sum::<f32>()
}

#[inline(always)]
fn total(lanes: &[f32; 16]) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|i| lanes[i] + lanes[i + 8]);
    let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn exponentials_are_those_of_the_library(x in -120.0..80.0f32) {
            let expected = f64::from(x).exp();
            let found = f64::from(exp(x));
            // Two units in the last place, and nothing below e^-87.
            prop_assert!((found - expected).abs() <= expected * 2.5e-7 + 1.7e-38, "{found} {expected}");
        }

        #[test]
        fn rows_are_summed_whole(numbers in prop::collection::vec(-9.0..9.0f32, 0..70)) {
            let (signed, absolute) = sums(&numbers);
            let exact: f64 = numbers.iter().map(|x| f64::from(*x)).sum();
            let all: f64 = numbers.iter().map(|x| f64::from(x.abs())).sum();
            // Sums of at most 70 numbers below 9, in float32.
            prop_assert!((f64::from(signed) - exact).abs() <= 1e-4 && (f64::from(absolute) - all).abs() <= 1e-4);
            let most = numbers.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            prop_assert_eq!(largest(&numbers), most);
        }
    }

    #[test]
    fn no_number_stays_none() {
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    }
}
