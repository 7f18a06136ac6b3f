//! How sure an accuracy is, and whether two runs on the same problems differ.

use serde::Serialize;

use crate::random::SplitMix64;

/// The 97.5% quantile of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// Resamples of a bootstrap.
const RESAMPLES: usize = 10_000;

/// A 95% confidence interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// Its lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

/// The score interval of a share of right answers (Wilson, JASA 22, 1927), inside 0..=1; all of it for `n` = 0.
///
/// More than `n` successes count as `n`.
pub fn wilson(successes: u64, n: u64) -> Interval {
    if n == 0 {
        return Interval { low: 0.0, high: 1.0 };
    }
    let (trials, share) = (n as f64, successes.min(n) as f64 / n as f64);
    let z2 = Z * Z;
    let centre = (share + z2 / (2.0 * trials)) / (1.0 + z2 / trials);
    let half = Z / (1.0 + z2 / trials) * (share * (1.0 - share) / trials + z2 / (4.0 * trials * trials)).sqrt();
    // At 0 and at n the interval ends at the share itself, which rounding would miss by a hair.
    Interval { low: (centre - half).clamp(0.0, share), high: (centre + half).clamp(share, 1.0) }
}

/// The two-sided p-value of the exact form of McNemar's test (Psychometrika 12, 1947): of the problems that only one of
/// two runs got right, `gained` went to the second and `lost` to the first; without a difference each is a fair coin.
///
/// In 0..=1, and 1 when nothing differs. Its time grows with the smaller of the two.
pub fn mcnemar_exact(gained: u64, lost: u64) -> f64 {
    let (n, k) = (gained as f64 + lost as f64, gained.min(lost));
    // The tail is 2 * sum of C(n, i) / 2^n over i <= k: its largest term as a logarithm, the others relative to it.
    let log_largest = (1..=k).map(|i| ((n - i as f64 + 1.0) / i as f64).ln()).sum::<f64>() - n * 2f64.ln();
    let relative = (1..=k).rev().scan(1.0, |term, i| {
        *term *= i as f64 / (n - i as f64 + 1.0);
        Some(*term)
    });
    let tail = 1.0 + relative.take_while(|&term| term > f64::EPSILON * 1e-3).sum::<f64>();
    (2.0 * log_largest.exp() * tail).min(1.0)
}

/// The percentile interval of the mean of paired differences, over 10,000 resamples of the problems (Efron, Annals of
/// Statistics 7, 1979).
///
/// A difference is 1 where only the second run was right, -1 where only the first was, else 0. The mean is a
/// difference of accuracies, in -1..=1; without any problem the interval is all of that. The random numbers are
/// SplitMix64's from `seed`: equal input gives equal output on every machine.
pub fn paired_bootstrap(differences: &[i8], seed: u64) -> Interval {
    let n = differences.len();
    if n == 0 {
        return Interval { low: -1.0, high: 1.0 };
    }
    // With three values only their counts matter: a draw among the first is a gain, among the next a loss.
    let gained = differences.iter().filter(|&&d| d > 0).count();
    let changed = gained + differences.iter().filter(|&&d| d < 0).count();
    let mut random = SplitMix64::new(seed);
    let mut resample = || -> i64 {
        (0..n)
            .map(|_| {
                let at = random.below(n);
                i64::from(at < gained) - i64::from((gained..changed).contains(&at))
            })
            .sum()
    };
    let mut totals: Vec<i64> = (0..RESAMPLES).map(|_| resample()).collect();
    totals.sort_unstable();
    let cut = RESAMPLES / 40 - 1;
    let mean = |at: usize| totals[at] as f64 / n as f64;
    Interval { low: mean(cut), high: mean(RESAMPLES - 1 - cut) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn close(found: f64, expected: f64, tolerance: f64) {
        assert!((found - expected).abs() <= tolerance, "{found} instead of {expected}");
    }

    #[test]
    fn wilson_matches_known_values() {
        // To the four digits that textbooks print.
        for (successes, n, low, high) in [
            (8, 10, 0.4902, 0.9433),
            (0, 10, 0.0, 0.2775),
            (10, 10, 0.7225, 1.0),
            (5, 10, 0.2366, 0.7634),
            (50, 100, 0.4038, 0.5962),
            (1, 1, 0.2065, 1.0),
            (15, 30, 0.3315, 0.6685),
        ] {
            let interval = wilson(successes, n);
            close(interval.low, low, 5e-5);
            close(interval.high, high, 5e-5);
        }
        assert_eq!(wilson(0, 0), Interval { low: 0.0, high: 1.0 });
        assert_eq!(wilson(0, 7).low, 0.0);
        assert_eq!(wilson(7, 7).high, 1.0);
    }

    #[test]
    fn mcnemar_matches_binomial_tails() {
        // Sums of binomial coefficients over powers of two, exact up to the division.
        for (gained, lost, expected) in [
            (0, 0, 1.0),
            (1, 0, 1.0),
            (0, 5, 2.0 / 32.0),
            (0, 6, 2.0 / 64.0),
            (1, 9, 2.0 * 11.0 / 1024.0),
            (5, 15, 2.0 * 21_700.0 / 1_048_576.0),
            (7, 7, 1.0),
            (10, 11, 1.0),
            (2, 8, 2.0 * 56.0 / 1024.0),
        ] {
            close(mcnemar_exact(gained, lost), expected, 1e-12);
        }
        close(mcnemar_exact(5, 15), 0.0414, 5e-5);
    }

    #[test]
    fn mcnemar_is_stable_for_large_counts() {
        // Summed in whole numbers; 50,000 logarithms of rounding are left.
        close(mcnemar_exact(49_684, 50_316), 0.045_999_035_384_277_45, 1e-9);
        assert_eq!(mcnemar_exact(50_000, 50_000), 1.0);
        assert_eq!(mcnemar_exact(0, 100_000), 0.0);
    }

    #[test]
    fn bootstrap_matches_the_normal_interval() {
        let differences: Vec<i8> = (0..1_319).map(|i| if i < 120 { 1 } else { -i8::from(i < 200) }).collect();
        let interval = paired_bootstrap(&differences, 1);
        let mean = 40.0 / 1319.0;
        let deviation = ((200.0 / 1319.0 - mean * mean) / 1319.0f64).sqrt();
        // A percentile of 10,000 resamples strays by some 3% of a standard deviation, and sums come in steps of 1/n.
        close(interval.low, mean - Z * deviation, 0.15 * deviation);
        close(interval.high, mean + Z * deviation, 0.15 * deviation);
        assert_eq!(interval, paired_bootstrap(&differences, 1));
    }

    #[test]
    fn bootstrap_of_extremes() {
        assert_eq!(paired_bootstrap(&[], 0), Interval { low: -1.0, high: 1.0 });
        assert_eq!(paired_bootstrap(&[0; 9], 0), Interval { low: 0.0, high: 0.0 });
        assert_eq!(paired_bootstrap(&[-1; 9], 0), Interval { low: -1.0, high: -1.0 });
    }

    proptest! {
        #[test]
        fn wilson_holds_the_share(n in 1u64..100_000, part in 0.0..=1.0f64) {
            let successes = (n as f64 * part) as u64;
            let (share, interval) = (successes as f64 / n as f64, wilson(successes, n));
            prop_assert!(0.0 <= interval.low && interval.low <= share);
            prop_assert!(share <= interval.high && interval.high <= 1.0);
            let mirrored = wilson(n - successes, n);
            // Rounding of numbers of about 1.
            prop_assert!((interval.low - (1.0 - mirrored.high)).abs() <= 1e-12);
            let more = wilson(10 * successes, 10 * n);
            prop_assert!(more.high - more.low <= interval.high - interval.low);
        }

        #[test]
        fn mcnemar_is_a_symmetric_probability(gained in 0u64..3_000, lost in 0u64..3_000) {
            let p = mcnemar_exact(gained, lost);
            prop_assert!((0.0..=1.0).contains(&p));
            prop_assert_eq!(p, mcnemar_exact(lost, gained));
            let further = mcnemar_exact(gained.max(lost) + 1, gained.min(lost));
            // Equal where both are 1; else smaller, as far as rounding lets it show.
            prop_assert!(further <= p * (1.0 + 1e-9));
        }
    }

    proptest! {
        // Each case costs 10,000 resamples.
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn bootstrap_holds_the_mean(mut differences in prop::collection::vec(-1i8..=1, 1..60), seed: u64) {
            let interval = paired_bootstrap(&differences, seed);
            let mean = differences.iter().map(|&d| f64::from(d)).sum::<f64>() / differences.len() as f64;
            prop_assert!(interval.low <= mean + 1e-12 && mean - 1e-12 <= interval.high);
            prop_assert!(-1.0 <= interval.low && interval.high <= 1.0);
            differences.reverse();
            prop_assert_eq!(interval, paired_bootstrap(&differences, seed));
        }
    }
}
