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
        let pairs = || a.iter().flat_map(|x| b.iter().map(move |y| y.total_cmp(x) as i8));
        let delta = pairs().map(f64::from).sum::<f64>() / (a.len() * b.len()) as f64;
        // Where all values are equal the statistic has no spread to be judged by.
        let all_equal = a.iter().chain(b).all(|value| *value == a[0]);
        let p = match all_equal {
            true => 1.0,
            false => mannwhitneyu(a, b, MannWhitneyUMethod::Automatic, Alternative::TwoSided).ok()?.1,
        };
        Some(Self { p: p.clamp(0.0, 1.0), delta })
    }
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

    #[test]
    fn a_rank_test_tells_samples_apart() {
        // Every y above every x: two of C(8, 4) = 70 orders are as extreme.
        let apart = RankTest::new(&[1.0, 2.0, 3.0, 4.0], &[5.0, 6.0, 7.0, 8.0]).unwrap();
        assert!((apart.p - 2.0 / 70.0).abs() < 1e-12, "{apart:?}");
        assert_eq!(apart.delta, 1.0);
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
