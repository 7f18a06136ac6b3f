//! How noisy a computed loss is, and how far to step from a point to see its slope there.
//!
//! Quantized matrix products round activations, so the loss as a function of a smooth parameter is smooth plus noise. The
//! noise is what is left of its values at equally spaced points once differences of some order have removed the smooth
//! part (difference table; Moré and Wild, *Estimating Computational Noise*, SIAM J. Sci. Comput. 33, 2011, section 3).

/// Offsets from a point, equally spaced, at which the loss is to be known: to choose a step from it.
pub const OFFSETS: [f64; 9] = [-0.4, -0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.4];

/// Factors on [`OFFSETS`], to see the noise: so close, the smooth part is gone from differences of low order, while the
/// rounding of activations still differs from point to point. Where the closest points hardly change any rounding, the
/// others do.
pub const CLOSE: [f64; 2] = [0.01, 0.05];

/// The longest step: nothing is known of the loss beyond. Where noise hides the curvature, it shows a slope best.
const LONGEST: f64 = 0.4;
/// The shortest step.
const SHORTEST: f64 = 0.01;
/// Three orders of differences whose levels are within this factor agree (ibid., section 3.2).
const AGREE: f64 = 4.0;

/// Standard deviation of the noise in equally spaced `values` of a smooth function, four at least.
pub fn noise_level(values: &[f64]) -> f64 {
    assert!(values.len() >= 4, "differences of three orders need four values");
    let mut differences = values.to_vec();
    let mut levels: Vec<(f64, bool)> = Vec::new();
    let mut gamma = 1.0;
    for order in 1..values.len() {
        differences = differences.windows(2).map(|pair| pair[1] - pair[0]).collect();
        // (k!)^2 / (2k)!: what independent noise of variance 1 becomes in the mean square of differences of order k.
        gamma *= order as f64 / (2 * (2 * order - 1)) as f64;
        let mean_square = differences.iter().map(|d| d * d).sum::<f64>() / differences.len() as f64;
        let both_signs = differences.iter().any(|d| *d < 0.0) && differences.iter().any(|d| *d > 0.0);
        levels.push(((gamma * mean_square).sqrt(), both_signs));
    }
    let agreeing = levels.windows(3).find(|three| {
        let (low, high) = three.iter().fold((f64::INFINITY, 0.0_f64), |(a, b), (x, _)| (a.min(*x), b.max(*x)));
        three[0].1 && high <= AGREE * low
    });
    // Where none agree, the highest orders have the least of the smooth part left in them.
    let mut three: Vec<f64> = agreeing.unwrap_or(&levels[levels.len() - 3..]).iter().map(|(level, _)| *level).collect();
    three.sort_by(f64::total_cmp);
    three[1]
}

/// The step at which a central difference errs least: as much by `noise` as by the third derivative of the loss, which is
/// seen in its `values` at [`OFFSETS`].
pub fn best_step(values: &[f64; OFFSETS.len()], noise: f64) -> f64 {
    let slope = |reach: usize| (values[4 + reach] - values[4 - reach]) / (OFFSETS[4 + reach] - OFFSETS[4 - reach]);
    let (near, far) = (OFFSETS[4 + 2], OFFSETS[4 + 4]);
    let per_slope = 6.0 / (far * far - near * near);
    let third = per_slope * (slope(4) - slope(2)).abs();
    let third_noise = per_slope * noise * (0.5 / (far * far) + 0.5 / (near * near)).sqrt();
    if third <= 2.0 * third_noise {
        return LONGEST;
    }
    (3.0 * noise / third).cbrt().clamp(SHORTEST, LONGEST)
}

/// Standard error of a central difference of step `eps` when each of its values has that noise.
pub fn standard_error(noise: f64, eps: f64) -> f64 {
    noise / (std::f64::consts::SQRT_2 * eps)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Normal enough: the sum of 12 uniform numbers, by a linear congruential generator.
    fn normal(state: &mut u64) -> f64 {
        let mut uniform = || {
            *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (*state >> 11) as f64 / (1u64 << 53) as f64
        };
        (0..12).map(|_| uniform()).sum::<f64>() - 6.0
    }

    fn smooth(x: f64) -> f64 {
        2.0 + 0.03 * x + 0.01 * x * x - 0.02 * x * x * x + 0.002 * (2.0 * x).sin()
    }

    #[test]
    fn noise_is_told_from_a_smooth_function() {
        for sigma in [1e-7, 1e-5, 1e-3] {
            let mut state = 7;
            let levels: Vec<f64> = (0..200)
                .map(|_| noise_level(&OFFSETS.map(|x| smooth(CLOSE[0] * x) + sigma * normal(&mut state))))
                .collect();
            let root_mean_square = (levels.iter().map(|l| l * l).sum::<f64>() / 200.0).sqrt();
            assert!((0.8..1.25).contains(&(root_mean_square / sigma)), "{root_mean_square} for {sigma}");
            // Nine values leave an estimate within a factor of four of the truth, nearly always.
            assert!(levels.iter().filter(|l| !(0.25..4.0).contains(&(*l / sigma))).count() <= 4);
        }
    }

    #[test]
    fn the_best_step_errs_less_than_others() {
        let (mut state, sigma) = (11, 1e-6);
        let table = OFFSETS.map(|x| smooth(x) + sigma * normal(&mut state));
        let chosen = best_step(&table, sigma);
        let slope_at_0 = 0.034;
        let mut error = |eps: f64| {
            let mean_square = (0..400).map(|_| {
                let (up, down) = (smooth(eps) + sigma * normal(&mut state), smooth(-eps) + sigma * normal(&mut state));
                ((up - down) / (2.0 * eps) - slope_at_0).powi(2)
            });
            (mean_square.sum::<f64>() / 400.0).sqrt()
        };
        let best = error(chosen);
        assert!(best < error(chosen * 4.0) && best < error(chosen / 4.0), "step {chosen}");
        assert!((best / standard_error(sigma, chosen)) < 2.5);
        assert_eq!(best_step(&OFFSETS.map(|x| 1.0 + x), 1e-3), LONGEST, "curvature is hidden");
    }
}
