//! Odds-Equal Bridge: a floor under the attention that a row gives to the segment before its own (section 4.1).
//!
//! A row is one (query token, head) of one layer. Its visible keys fall into three groups: `S`, the row's own segment;
//! `B`, the segment before it, which the bridge protects; `O`, all others. If `B` holds less than its floor, `S` gives
//! it the difference; the odds inside each group stay as they were. It equals adding `ln(factor)` to the logits.

/// Keeps divisions and logarithms away from zero; the value of the released code.
pub const EPSILON: f64 = 1e-6;

/// The group of a visible key as its row sees it; numbered as in kernels/args.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// The row's own segment.
    Same,
    /// The segment before the row's own: question for thinking, thinking for summary.
    Bridge,
    /// Every other visible key.
    Other,
}

/// Softmax mass of the three groups of one row, as the softmax wrote it (with sinks it adds up to less than 1).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Mass {
    /// Mass on the row's own segment.
    pub same: f64,
    /// Mass on the bridged segment.
    pub bridge: f64,
    /// Mass on all other visible keys.
    pub other: f64,
}

/// What each group of a row is multiplied by; the renormalisation is already inside.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Factors {
    /// Factor of the row's own segment.
    pub same: f64,
    /// Factor of the bridged segment.
    pub bridge: f64,
    /// Factor of every other key.
    pub other: f64,
}

impl Mass {
    /// The mass of a group.
    pub fn of_mut(&mut self, group: Group) -> &mut f64 {
        match group {
            Group::Same => &mut self.same,
            Group::Bridge => &mut self.bridge,
            Group::Other => &mut self.other,
        }
    }

    /// Share of the bridged group among all keys, sinks left out: the `pB` of the formulas, in 0..=1.
    pub fn bridge_share(&self) -> f64 {
        let keys = self.same + self.bridge + self.other;
        if keys > 0.0 { self.bridge / keys } else { 0.0 }
    }
}

impl Factors {
    /// The factor of a group.
    pub fn of(&self, group: Group) -> f64 {
        match group {
            Group::Same => self.same,
            Group::Bridge => self.bridge,
            Group::Other => self.other,
        }
    }
}

/// Factors that lift a row to its floor, or `None` when the row already meets it or nothing can be moved.
///
/// `n_same` and `n_bridge` count visible keys. `tau_max` caps the floor, in 0..=1; 0 never bridges. `sinks` says that
/// the softmax kept a share for an attention sink: it then takes part in the renormalisation, as a further key would.
pub fn factors(mass: Mass, n_same: usize, n_bridge: usize, tau_max: f64, sinks: bool) -> Option<Factors> {
    let keys = mass.same + mass.bridge + mass.other;
    if n_bridge == 0 || !(keys > 0.0) {
        return None;
    }
    let (same, bridge, other) = (mass.same / keys, mass.bridge / keys, mass.other / keys);
    let tau = (n_bridge as f64 / (n_bridge + n_same) as f64).sqrt().min(tau_max);
    if !(bridge < tau && same > EPSILON && 1.0 - other > EPSILON) {
        return None;
    }
    let tau = tau.min(1.0 - other - EPSILON).max(EPSILON);
    let tau_same = 1.0 - other - tau;
    let to_bridge = (tau + EPSILON) / (bridge + EPSILON);
    let to_same = (tau_same + EPSILON) / (same + EPSILON);
    let sink = if sinks { (1.0 - keys).max(0.0) } else { 0.0 };
    let norm = keys * (other + to_bridge * bridge + to_same * same) + sink;
    // Without sinks the row must add up to what it did before, which rounding leaves a little off 1.
    let scale = if sinks { 1.0 / norm } else { keys / norm };
    Some(Factors { same: to_same * scale, bridge: to_bridge * scale, other: scale })
}

/// The plain oracle: bridges one row in place, in float64. `groups[k]` is `None` for a masked key, whose probability is
/// left alone. Returns whether the row was changed.
pub fn bridge_row(probs: &mut [f64], groups: &[Option<Group>], tau_max: f64, sinks: bool) -> bool {
    let mut mass = Mass::default();
    let (mut n_same, mut n_bridge) = (0, 0);
    for (p, group) in probs.iter().zip(groups) {
        match group {
            Some(Group::Same) => (mass.same, n_same) = (mass.same + p, n_same + 1),
            Some(Group::Bridge) => (mass.bridge, n_bridge) = (mass.bridge + p, n_bridge + 1),
            Some(Group::Other) => mass.other += p,
            None => {}
        }
    }
    let Some(factors) = factors(mass, n_same, n_bridge, tau_max, sinks) else { return false };
    for (p, group) in probs.iter_mut().zip(groups) {
        *p *= group.map_or(1.0, |group| factors.of(group));
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn softmax(logits: &[f64], sink: Option<f64>) -> Vec<f64> {
        let max = logits.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
        let exp: Vec<f64> = logits.iter().map(|x| (x - max).exp()).collect();
        let total: f64 = exp.iter().sum::<f64>() + sink.map_or(0.0, |s| (s - max).exp());
        exp.iter().map(|e| e / total).collect()
    }

    fn group(i: u8) -> Group {
        [Group::Same, Group::Bridge, Group::Other][i as usize % 3]
    }

    proptest! {
        /// The definition: multiplying the probabilities equals adding log factors to the logits before the softmax.
        #[test]
        fn equals_added_logits(keys in prop::collection::vec((-8.0..8.0f64, 0u8..3), 1..60), tau_max in 0.0..=1.0f64,
                               sink in prop::option::of(-4.0..4.0f64)) {
            let logits: Vec<f64> = keys.iter().map(|k| k.0).collect();
            let groups: Vec<_> = keys.iter().map(|k| Some(group(k.1))).collect();
            let mut probs = softmax(&logits, sink);
            let before = probs.clone();
            if bridge_row(&mut probs, &groups, tau_max, sink.is_some()) {
                let ratio = |g: Group| {
                    let at = groups.iter().position(|&x| x == Some(g));
                    at.map_or(1.0, |at| probs[at] / before[at])
                };
                let (same, bridge) = (ratio(Group::Same), ratio(Group::Bridge));
                // Any common factor cancels in the softmax, so factors relative to `other` (or to `same`) are enough.
                let other = match groups.contains(&Some(Group::Other)) {
                    true => ratio(Group::Other),
                    false if sink.is_some() => return Ok(()),
                    false => 1.0,
                };
                let shifted: Vec<f64> = logits.iter().zip(&groups).map(|(x, g)| x + (match g.unwrap() {
                    Group::Same => same, Group::Bridge => bridge, Group::Other => other,
                } / other).ln()).collect();
                let expected = softmax(&shifted, sink);
                for (p, e) in probs.iter().zip(&expected) {
                    // Float64 arithmetic over at most 60 keys.
                    prop_assert!((p - e).abs() <= 1e-12, "{p} against {e}");
                }
            } else {
                prop_assert_eq!(probs, before);
            }
        }

        /// A bridged row meets its floor as far as epsilon lets it, and total mass is kept.
        #[test]
        fn meets_the_floor(keys in prop::collection::vec((-8.0..8.0f64, 0u8..3), 1..60), tau_max in 0.0..=1.0f64) {
            let groups: Vec<_> = keys.iter().map(|k| Some(group(k.1))).collect();
            let mut probs = softmax(&keys.iter().map(|k| k.0).collect::<Vec<_>>(), None);
            let before = probs.clone();
            if bridge_row(&mut probs, &groups, tau_max, false) {
                let bridge = |(p, g): (&f64, &Option<Group>)| if *g == Some(Group::Bridge) { *p } else { 0.0 };
                let before: f64 = before.iter().zip(&groups).map(bridge).sum();
                let sum = |g| probs.iter().zip(&groups).filter(|(_, x)| **x == Some(g)).map(|(p, _)| p).sum::<f64>();
                let (n_same, n_bridge) = (groups.iter().filter(|g| **g == Some(Group::Same)).count(),
                                          groups.iter().filter(|g| **g == Some(Group::Bridge)).count());
                let tau = ((n_bridge as f64 / (n_bridge + n_same) as f64).sqrt()).min(tau_max);
                let floor = tau.min(1.0 - sum(Group::Other) - EPSILON);
                // The factor is (tau + e) / (pB + e), so of the floor pB / (pB + e) is met; the rest is renormalisation.
                let met = floor * before / (before + EPSILON) - 4.0 * EPSILON;
                prop_assert!(sum(Group::Bridge) >= met, "{} of {floor}", sum(Group::Bridge));
                prop_assert!((probs.iter().sum::<f64>() - 1.0).abs() <= 1e-12);
            }
        }
    }

    #[test]
    fn tau_max_zero_never_bridges() {
        let mut probs = [0.0, 1.0];
        assert!(!bridge_row(&mut probs, &[Some(Group::Bridge), Some(Group::Same)], 0.0, false));
        assert_eq!(probs, [0.0, 1.0]);
    }

    #[test]
    fn empty_and_lost_groups_are_left_alone() {
        assert_eq!(factors(Mass::default(), 3, 3, 0.5, false), None);
        assert_eq!(factors(Mass { same: 1.0, ..Mass::default() }, 3, 0, 0.5, false), None);
        assert_eq!(factors(Mass { other: 1.0, ..Mass::default() }, 3, 3, 0.5, false), None);
        assert_eq!(factors(Mass { same: f64::NAN, ..Mass::default() }, 3, 3, 0.5, false), None);
    }
}
