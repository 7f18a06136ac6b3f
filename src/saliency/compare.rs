//! Whether a metric differs between two groups of traces.

use statrs::stats_tests::Alternative;
use statrs::stats_tests::mannwhitneyu::{MannWhitneyUMethod, mannwhitneyu};

/// What a rank test says of two samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RankTest {
    /// How likely a difference as large is among samples of one distribution: the two-sided p of Mann and Whitney's U
    /// (Annals of Mathematical Statistics 18, 1947), exact for small samples without ties.
    pub p: f64,
    /// How much more often a value of the second sample is above one of the first than below, -1 to 1 (Cliff's delta).
    pub delta: f64,
}

impl RankTest {
    /// Of two samples of finite numbers, with two each at least.
    pub fn new(a: &[f64], b: &[f64]) -> Option<Self> {
        if a.len().min(b.len()) < 2 || a.iter().chain(b).any(|value| !value.is_finite()) {
            return None;
        }
        let above = a.iter().flat_map(|x| b.iter().map(move |y| f64::from(y.total_cmp(x) as i8))).sum::<f64>();
        let n_pairs = (a.len() * b.len()) as f64;
        let mut values: Vec<f64> = a.iter().chain(b).copied().collect();
        values.sort_by(f64::total_cmp);
        let ties = values.windows(2).any(|pair| pair[0] == pair[1]);
        let p = match ties {
            // The statistic has no spread to be judged by.
            _ if values[0] == values[values.len() - 1] => 1.0,
            false if a.len() + b.len() <= EXACT => exact_p(a.len(), b.len(), (n_pairs - above.abs()) / 2.0),
            _ => {
                // statrs' own exact p is wrong for samples of equal size.
                let method = MannWhitneyUMethod::AsymptoticInclContinuityCorrection;
                mannwhitneyu(a, b, method, Alternative::TwoSided).ok()?.1
            }
        };
        Some(Self { p: p.clamp(0.0, 1.0), delta: above / n_pairs })
    }
}

/// The most values of which the exact p is computed; of more, the normal approximation is as good.
const EXACT: usize = 50;

/// The chance that U of two samples without ties is `u` at most, or as far on the other side.
fn exact_p(n: usize, m: usize, u: f64) -> f64 {
    // Orders of both samples by their U: the coefficients of the product of (1 - x^(m + i)) / (1 - x^i) for i up to n.
    let mut orders = vec![0.0; n * m + 1];
    orders[0] = 1.0;
    for i in 1..=n {
        (m + i..orders.len()).rev().for_each(|k| orders[k] -= orders[k - m - i]);
        (i..orders.len()).for_each(|k| orders[k] += orders[k - i]);
    }
    let as_low: f64 = orders.iter().take(u as usize + 1).sum();
    2.0 * as_low / orders.iter().sum::<f64>()
}

/// p-values of a family of tests, corrected so that the chance of any false alarm in it is what each says (Holm,
/// Scandinavian Journal of Statistics 6, 1979).
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&i, &j| p[i].total_cmp(&p[j]));
    let (mut corrected, mut least) = (vec![0.0; p.len()], 0.0_f64);
    for (rank, index) in order.into_iter().enumerate() {
        least = least.max(p[index] * (p.len() - rank) as f64).min(1.0);
        corrected[index] = least;
    }
    corrected
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many pairs of a set and an unset bit have the set one higher.
    fn u_of(bits: u32) -> usize {
        (0..16).filter(|i| bits >> i & 1 == 1).map(|i| (0..i).filter(|j| bits >> j & 1 == 0).count()).sum()
    }

    #[test]
    fn a_rank_test_tells_samples_apart() {
        // Every y above every x: two of C(8, 4) = 70 orders are as extreme.
        let apart = RankTest::new(&[1.0, 2.0, 3.0, 4.0], &[5.0, 6.0, 7.0, 8.0]).unwrap();
        assert!((apart.p - 2.0 / 70.0).abs() < 1e-12, "{apart:?}");
        assert_eq!(apart.delta, 1.0);
        // Against a count of all orders of 8 and 8 values.
        let orders = |u: usize| (0..1u32 << 16).filter(|bits| bits.count_ones() == 8 && u_of(*bits) <= u).count();
        let expected = 2.0 * orders(9) as f64 / 12_870.0;
        assert!((exact_p(8, 8, 9.0) - expected).abs() < 1e-12, "{expected}");
        // And against scipy 1.17's mannwhitneyu: exact of 50 values, by the normal approximation of 52.
        let (x, y): (Vec<f64>, Vec<f64>) =
            (0..26).map(|i| (f64::from(i * 37 % 61), f64::from(i * 37 % 61) + 9.5)).unzip();
        let p = |n: usize| RankTest::new(&x[..n], &y[..n]).unwrap().p;
        assert!((p(25) - 0.080_718_788_131_695_13).abs() < 1e-12, "{}", p(25));
        assert!((p(26) - 0.071_440_487_186_994_79).abs() < 1e-9, "{}", p(26));
        let mixed = RankTest::new(&[1.0, 4.0, 5.0], &[2.0, 3.0, 6.0]).unwrap();
        assert!(mixed.p > 0.5, "{mixed:?}");
        assert!((mixed.delta - 1.0 / 9.0).abs() < 1e-12);
        assert_eq!(RankTest::new(&[0.5; 3], &[0.5; 4]).unwrap(), RankTest { p: 1.0, delta: 0.0 });
        assert_eq!(RankTest::new(&[1.0], &[2.0, 3.0]), None);
        assert_eq!(RankTest::new(&[1.0, f64::NAN], &[2.0, 3.0]), None);
    }

    #[test]
    fn holms_correction() {
        let corrected = holm(&[0.01, 0.04, 0.03, 0.005]);
        let expected = [0.03, 0.06, 0.06, 0.02];
        assert!(corrected.iter().zip(expected).all(|(p, e)| (p - e).abs() < 1e-12), "{corrected:?}");
        assert_eq!(holm(&[0.6, 0.9]), [1.0, 1.0]);
        assert!(holm(&[]).is_empty());
    }
}
