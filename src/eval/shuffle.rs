//! A shuffle that a seed determines, for the options of multiple-choice questions.

use crate::random::SplitMix64;

/// The numbers 0 to `n - 1` in an order that `seed` determines, every order equally likely (Fisher and Yates, 1938, in
/// Durstenfeld's form, CACM 1964).
pub fn permutation(n: usize, seed: u64) -> Vec<usize> {
    let mut random = SplitMix64::new(seed);
    let mut order: Vec<usize> = (0..n).collect();
    for last in (1..n).rev() {
        order.swap(last, random.below(last + 1));
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        #[test]
        fn is_a_permutation_and_repeats(n in 0usize..200, seed: u64) {
            let order = permutation(n, seed);
            prop_assert_eq!(&order, &permutation(n, seed));
            let mut sorted = order;
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..n).collect::<Vec<_>>());
        }
    }

    #[test]
    fn orders_are_equally_likely() {
        let mut counts: HashMap<Vec<usize>, usize> = HashMap::new();
        (0..24_000).for_each(|seed| *counts.entry(permutation(4, seed)).or_default() += 1);
        assert_eq!(counts.len(), 24);
        // 1,000 each are expected, with a standard deviation of 31.
        assert!(counts.values().all(|n| (850..1150).contains(n)), "{counts:?}");
    }
}
